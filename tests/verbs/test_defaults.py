"""What the library's functions do unless told otherwise, by value: a default that moves is a decision.

A default that writes over a file, or that costs minutes, is off. So are all others of functions and records within that
are not listed: a number is 0, a flag is off, a word is empty.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from tables import every

import gradience

DEFAULTS: dict[str, dict[str, Any]] = {  # beside None and empty sequences
    "audit_adapter": {"options": gradience.AuditOptions()},
    "audit_arrays": {"scale": 1.0, "top_singular_values": 0},
    "check_config": {"options": gradience.CheckOptions()},
    "check_data": {"options": gradience.DataOptions(), "check": gradience.CheckOptions()},
    "convert_adapter": {"options": gradience.ConvertOptions(), "force": False},
    "diagnose": {"options": gradience.DiagnoseOptions()},
    "import_run": {"force": False},
    "json_schema": {"name": "telemetry"},
    "merge_adapters": {"options": gradience.MergeOptions(), "force": False},
    "merge_check": {"exact": False, "seed": 0},
    "measure_drift": {"options": gradience.DriftOptions()},
    "monitor_run": {"gap_threshold": 1.5},
    "resize_adapter": {"options": gradience.ResizeOptions(), "force": False},
    "validate_log": {"max_issues": 100},
    "verify_merged": {"threads": 1},
    "verify_served": {"timeout": 120.0},
    "write_report": {"options": gradience.ReportOptions(), "force": False},
    "TelemetryWriter": {
        "allow_text": False,
        "max_str_len": 256,
        "fsync": "auto",
        "siblings": True,
        "on_error": "warn",
    },
}
BENCHES: dict[str, dict[str, Any]] = {
    "bench_adapter": {},
    "bench_merge": {"methods": ("linear", "svd", "ties"), "weights": (None,)},
}
OF_A_BENCH = {"tolerance": "1%", "lower_is_better": False, "seed": 0, "seeds": 3, "timeout": 3600.0}


def defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(gradience, name)).parameters.values()
    return {p.name: p.default for p in parameters if p.default not in (inspect.Parameter.empty, None, ())}


@every("name", DEFAULTS)
def test_a_function_has_these_defaults(name):
    found = defaults(name)
    found.pop("clock", None)
    assert found == DEFAULTS[name]


@pytest.mark.parametrize("name", BENCHES)
def test_the_benches_share_their_options(name):
    found = defaults(name)
    options = found.pop("options")
    assert {field: getattr(options, field) for field in OF_A_BENCH} == OF_A_BENCH
    assert found == BENCHES[name]


def test_every_function_with_a_default_is_listed():
    functions = {name for name in gradience.__all__ if inspect.isfunction(getattr(gradience, name))}
    assert {name for name in functions if defaults(name)} == (DEFAULTS.keys() | BENCHES.keys()) & functions


# --- within ------------------------------------------------------------------------------------------------------

APART = (
    "hf",
    "lightning",
    "swift",
    "axolotl",
    "__main__",
    "models.statistics",
    "models.outputs",
    "models.reading",
    "models.states",
    "models.probes",
)  # need torch, or run
WITHIN: dict[str, dict[str, Any]] = {
    "rules.log.rewards": {"find.least": 1},
    "schema.wiring": {
        "ParameterGroup.sampled": 1,
        "ParameterGroup.frozen_sampled": 1,
        "OptimizerWiring.sampled": 1,
        "PassWiring.training": True,
        "EvaluationWiring.called": True,
    },
    "io.confined": {"Limits.memory": 2 << 30, "Limits.seconds": 10.0},
    "data.encoder": {"Encoder.masks": True},
    "adapters.config": {
        "AdapterConfig.r": 8,
        "AdapterConfig.lora_alpha": 8.0,
        "AdapterConfig.bias": "none",
        "AdapterConfig.init_lora_weights": True,
        "AdapterConfig.qalora_group_size": 16,
        "AdapterConfig.init_r": 12,
    },
    "adapters.kinds.products": {"loha_module.most_rank": 1024, "lokr_module.most_rank": 1024},
    "adapters.layout": {"Format.module_paths": True},
    "adapters.pairs": {"LoraPair.experts": 1, "peft_pair.experts": 1},
    "cli.audit": {
        "ViewOptions.top_wasteful": 3,
        "_AuditOptions.intruder_k": 10,
        "_AuditOptions.intruder_eps": 0.5,
        "_AuditOptions.norms_cache": True,
        "audit.device": "auto",
    },
    "cli.bench": {
        "_BenchOptions.tolerance": "1%",
        "_BenchOptions.seeds": 3,
        "_BenchOptions.timeout": 3600.0,
        "merge.method": "linear,svd,ties",
    },
    "cli.check": {"_DataOptions.samples": 10000},
    "cli.fleet": {
        "audit.engine": "local",
        "show.top": 10,
    },
    "cli.runs": {
        "ListOptions.limit": 20,
        "ListOptions.sort": "path",
        "ListOptions.metric": "train/loss",
        "best_run.metric": "eval/loss",
        "best_run.limit": 5,
    },
    "cli.output": {"tell.end": "\n"},
    "cli.merge": {
        "_MergeOptions.method": "linear",
        "merge_check.top": 3,
        "merge_check.device": "auto",
        "verify_merge.fail_on": "verdict",
        "compare.top": 5,
        "compare.device": "auto",
    },
    "cli.drift": {"_DriftOptions.rows": 32},
    "cli.receipt": {"_ReceiptOptions.rows": 16, "verify_served.timeout": 120.0},
    "cli.rewrite": {"_ConvertOptions.to": "peft"},
    "cli.schema": {"schema.name": "telemetry", "validate.max_issues": 100},
    "configs.document": {"DataPlan.pads": True, "DataPlan.program": "trl", "DataPlan.overlong": "cut"},
    "configs.files": {"read_mapping.most": 5242880},
    "configs.pickled": {"_Plain.value.depth": 64},
    "configs.values": {"Fields.at": "$"},
    "data.measure": {"Limits.batch_size": 8, "Limits.overlong": "cut"},
    "data": {"Shape.text_column": "text", "Shape.label_column": "label"},
    "data.tokens": {"Masking.by": "trl"},
    "errors": {"require.what": "this", "few.shown": 3},
    "importers.events": {"_Walk.last": -1, "_Walk.first": -1, "_Stream.last": -1, "Tally.summary": -1.0},
    "importers.files": {"SourceRun.unit": "line"},
    "importers.table": {"flatten.depth": 1},
    "models.inputs": {"read_inputs.longest": 512},
    "render.audit": {"View.top_wasteful": 3, "View.unicode": True},
    "render.bench": {"bench_text.unicode": True},
    "render.compare": {"compare_adapters_text.top": 5, "compare_adapters_text.unicode": True},
    "render.runs": {"_told.room": 29},
    "render.html.plot": {"envelope.buckets": 480},
    "render.html.pieces": {"figure.heading": "h3", "plot_figure.heading": "h3"},
    "render.merge": {"merge_check_text.top": 3},
    "render.monitor": {"frame_lines.width": 72, "frame_lines.height": 10, "frame_lines.dots": True},
    "render.plots": {
        "curve_lines.width": 72,
        "curve_lines.height": 10,
        "curve_lines.dots": True,
        "histogram_lines.height": 5,
        "grid_of.of": "norm",
        "heatmap.of": "norm",
        "heatmap.unicode": True,
        "grid_lines.unicode": True,
    },
    "render": {
        "labelled.width": 12,
        "table.indent": 2,
        "table.gap": 2,
        "shortened.indent": 2,
        "folded.width": 100,
        "listed.most": 4,
        "number.spec": ".2f",
    },
    "rules.config.facts": {"ConfigRule.groups": ("config",), "LoraRule.groups": ("config",)},
    "rules.config.serving": {
        "RankSizes.least": 1,
        "RankSizes.step": 1,
        "_ServeRule.groups": ("serve",),
        "_FeatureRule.groups": ("serve",),
    },
    "rules.data.content": {"DataRule.groups": ("data",), "counted.what": "rows"},
    "rules.joins": {"Correlation.groups": ("joins",), "Correlation.least": 2},
    "rules.log.divergence": {"_diverged.severity": "error"},
    "rules.log.facts": {
        "LogRule.place": "later",
        "shown.spec": ".4g",
        "ends.least": 1,
        "last_part.least": 1,
        "RunFacts.status": "unknown",
        "RunFacts.gap_threshold": 1.5,
        "LogRule.groups": ("log",),
    },
    "rules.log.statistics": {"noise.few": 6},
    "rules.log.wiring": {"_WiringRule.groups": ("log",), "_WiringRule.live": True, "_WiringRule.place": "broken"},
    "rules.merge": {"_MergeRule.groups": ("merge",)},
    "rules.weights": {"WeightsRule.groups": ("weights",)},
    "schema.audit": {
        "SuggestedRank.for_engines": 1,
        "BaseComparison.converged": True,
        "ModuleAudit.kind": "linear",
        "ModuleAudit.state": "ok",
    },
    "schema.compare": {"ModulePair.state": "ok", "BenchMetric.mean_over": "examples", "BenchTask.judged": True},
    "schema.events": {"ConfigSnapshot.task_profile": "unknown"},
    "schema.document": {"_cell.tag": "td", "Coverage.adapter_dtype": "float32"},
    "schema.export": {"json_schema.name": "telemetry"},
    "schema.fleet": {
        "AdapterRow.status": "ok",
        "ModuleRow.kind": "linear",
        "ModuleRow.state": "ok",
        "RunRow.status": "unreadable",
    },
    "schema.merge": {
        "CheckedModule.state": "ok",
        "VerifiedModule.kind": "update",
    },
    "schema.reports": {
        "RunAccount.objective": "unknown",
        "RunAccount.loss": "unknown",
        "RunAccount.comparable": True,
        "Lengths.bin_width": 1,
        "DataReport.overlong": "cut",
        "DataReport.masked_by": "trl",
        "DataReport.pads": True,
        "MonitorReport.objective": "unknown",
        "ImportedRunReport.status": "unknown",
        "ImportedRunReport.sessions": 1,
    },
    "spectral.dense": {"DenseSpectrum.is_whole": True, "DenseSpectrum.converged": True, "dense_spectrum.values": 64},
    "spectral.krylov": {"leading.k": 1},
    "spectral.update": {"LowRank.factors.scale": 1.0, "decomposed.scale": 1.0},
    "telemetry.lines": {"Line.ended": True, "find_faults.most": 64, "find_unnamed.most": 64},
    "telemetry.logfile": {"notice.stacklevel": 3},
    "telemetry.reader": {"validate_logs.max_issues": 100, "validate_log.max_issues": 100},
    "telemetry.redact": {"Redaction.max_str_len": 256},
    "telemetry.writer": {
        "TelemetryWriter.max_str_len": 256,
        "TelemetryWriter.fsync": "auto",
        "TelemetryWriter.siblings": True,
        "TelemetryWriter.on_error": "warn",
        "TelemetryWriter.run_end.status": "ok",
    },
    "judge.options": {
        "AuditOptions.intruder_k": 10,
        "AuditOptions.intruder_eps": 0.5,
        "AuditOptions.norms_cache": True,
    },
    "judge.audit.tied": {"_BaseConfig.tie_word_embeddings": True},
    "judge.audit.arrays": {"audit_arrays.scale": 1.0, "audit_array_file.scale": 1.0},
    "prove.bench": {"bench_merge.methods": ("linear", "svd", "ties")},
    "prove.bench.contest": {
        "_write.alpha": 1.0,
        "Entry.judged": True,
    },
    "prove.options": {
        "BenchOptions.tolerance": "1%",
        "BenchOptions.seeds": 3,
        "BenchOptions.timeout": 3600.0,
        "ReceiptOptions.rows": 16,
        "DriftOptions.rows": 32,
    },
    "prove.bench.evaluators": {"Command.higher_is_better": True},
    "prove.bench.judge": {"Rule.heaviest": 1.0, "Task.judged": True},
    "prove.bench.trial": {
        "Sample.heaviest": 1.0,
        "Sample.largest": math.inf,
        "Sample.least": -math.inf,
        "sample_of.heaviest": 1.0,
        "bounds.confidence": 0.95,
        "bounds.draws": 4000,
        "capped_bounds.confidence": 0.95,
        "student_bounds.confidence": 0.95,
    },
    "judge.check.options": {"DataOptions.samples": 10000},
    "rewrite.convert.updates": {"LayerUpdate.experts": 1},
    "render.check": {"diagnose_text.fails": True},
    "schema.diagnose": {"BestCheckpoint.by": "loss"},
    "schema.memory": {
        "Step.batch": 1,
        "Step.length": 1,
        "Step.padded": True,
        "Step.attention": "sdpa",
        "Step.optimizer": "adamw_torch",
        "Step.adapter_float32": True,
        "Step.device": "cuda",
    },
    "spectral": {"each_in_threads.waits": True},
    "collect.fleet.audit": {"audit_fleet.engine": "local"},
    "collect.fleet.show": {"show_fleet.top": 10, "show_fleet.cosine": 0.99, "show_fleet.most_pairs": 100},
    "tables.store": {"_Manifest.next": 1},
    "rewrite.merge.methods": {"weights_of.method": "linear"},
    "judge.monitor": {
        "_signal.least": 1,
        "monitor_run.gap_threshold": 1.5,
        "report_of.gap_threshold": 1.5,
        "facts_of.gap_threshold": 1.5,
    },
    "collect.runs.rows": {"read_rows.gap_threshold": 1.5},
    "rewrite.options": {
        "Target.flips": 0.02,
        "ConvertOptions.to": "peft",
        "MergeOptions.method": "linear",
    },
    "collect.runs.best": {"best_runs.top": 5},
    "collect.runs": {
        "run_curves.metric": "train/loss",
        "list_runs.columns": (
            "path",
            "run",
            "model",
            "data",
            "status",
            "verdict",
            "r",
            "lr",
            "steps",
            "first_loss",
            "last_loss",
            "best_eval_loss",
            "eval_accuracy",
            "findings",
        ),
        "list_runs.sort": "path",
    },
    "rewrite.sides": {"matched.overlapping": True},
    "prove.receipt": {"verify_served.timeout": 120.0},
    "prove.receipt.endpoint": {"Endpoint.timeout": 120.0},
    "rules.served": {"_ServedRule.groups": ("served",)},
    "schema.receipt": {"Receipt.dtype": "float32", "Receipt.device": "cpu"},
    "prove.verify_merge": {"verify_merged.threads": 1},
    "prove.verify_merge.judge": {"_precision.factor": 1.0},
    "prove.verify_merge.measure": {"Merge.factor": 1.0},
    "prove.verify_merge.rows": {"Copy.kind": "replacement"},
    "rewrite.writing": {"NewAdapter.weights_name": "adapter_model.safetensors"},
}


def named(of: Any) -> Iterator[tuple[str, Any]]:
    """The defaults of a function's parameters, of a record's fields, and of a class's methods."""
    found: dict[str, Any] = {}
    if inspect.isfunction(of):
        found = {p.name: p.default for p in inspect.signature(of).parameters.values()}
    elif inspect.isclass(of):
        found = dict(getattr(of, "_field_defaults", {}))
        if hasattr(of, "__struct_fields__") and not issubclass(of, type):
            last = of.__struct_defaults__
            found |= dict(zip(of.__struct_fields__[len(of.__struct_fields__) - len(last) :], last, strict=True))
        if dataclasses.is_dataclass(of):
            found |= {field.name: field.default for field in dataclasses.fields(of)}
        for method in filter(inspect.isfunction, vars(of).values()):
            head = "" if method.__name__ == "__init__" else f"{method.__name__}."
            found |= {f"{head}{name}": value for name, value in named(method)}
    yield from found.items()


def is_given(value: Any) -> bool:
    """Whether a default is a number, a flag, a word or several of these, and not that of nothing."""
    is_plain = isinstance(value, bool | int | float) or (type(value) is str and " " not in value and "/v" not in value)
    return bool(value) and (is_plain or (type(value) is tuple and all(map(is_given, value))))


def test_what_is_not_nothing_unless_told_otherwise_is_listed_by_value():
    found: dict[str, dict[str, Any]] = {}
    for place in pkgutil.walk_packages(gradience.__path__, "gradience."):
        module = place.name.removeprefix("gradience.")
        if not module.startswith(APART):
            for name, each in vars(import_module(place.name)).items():
                if getattr(each, "__module__", "") == place.name:
                    held = {f"{name}.{key}": value for key, value in named(each) if is_given(value)}
                    found.setdefault(module, {}).update(held)
    assert {module: held for module, held in found.items() if held != WITHIN.get(module, {})} == {}
    assert WITHIN.keys() <= found.keys()
