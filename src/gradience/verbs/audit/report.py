"""The last step of an audit: the verdict, suggested ranks and findings on what was measured, and the report of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from gradience.adapters.layout import Adapter
from gradience.adapters.traits import Operation, obstacles
from gradience.configs.commands import known_of, with_commands
from gradience.folder import Documents
from gradience.io import Progress
from gradience.io.safetensors import is_known
from gradience.rules.judged import OF_PROMPT, judge_parts, judge_weights, of_part
from gradience.rules.weights import JUDGED_SHARE, health, suggests_ranks
from gradience.rules.weights.ranks import NO_SUGGESTIONS, Suggestions, priced, suggestions
from gradience.schema.audit import (
    AUDIT_SCHEMA_ID,
    AuditReport,
    AuditSummary,
    Health,
    LedgerEntry,
    ModuleAudit,
    NotAnalysed,
    ResizedAs,
)
from gradience.spectral.batch import SINGLE_ERROR
from gradience.spectral.devices import has_float64
from gradience.spectral.grams import Grams
from gradience.verbs.audit.measured import AdapterNumbers, measure
from gradience.verbs.audit.options import AuditOptions
from gradience.verbs.audit.summary import bytes_per_param, layer_summaries, ledger_of, summary_of, with_shares

_CONVERTED: Final = frozenset({"mlx", "diffusers"})  # formats of which `convert` makes a PEFT LoRA without a base


class AuditJudgement(NamedTuple):
    """What the rules say of an adapter as a whole, before its report is judged for findings."""

    modules: list[ModuleAudit]
    """With their errors at the ranks that the report states."""
    not_analysed: list[NotAnalysed]
    summary: AuditSummary
    ledger: list[LedgerEntry]
    health: Health
    ranks: Suggestions


def audit_documents(
    documents: Documents,
    options: AuditOptions,
    *,
    left_out: Mapping[str, str],
    grams: Sequence[Grams] | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """The audit of a run's adapter.

    Args:
        documents: the run.
        options: those of `audit_adapter`.
        left_out: the rules that are not applied, each with the reason.
        grams: the Gram matrices of the modules, in order, if the caller has them.
        progress: as of `audit_adapter`.

    Raises:
        AdapterError: the adapter or the base cannot be read.
    """
    opened = documents.adapter.take()
    measured = measure(opened.adapter, options.top_singular_values, grams=grams, progress=progress)
    if options.base is not None:
        from gradience.verbs.audit.against_base import beside_base  # keeps a plain audit quick

        measured = beside_base(measured, opened, Path(options.base), options, progress)
    return _report_of(documents, measured, options, left_out)


def _judge(measured: AdapterNumbers, optimizer: str | None, *, unscaled: bool) -> AuditJudgement:
    """The verdict, and the ranks to compress to if it allows any."""
    adapter, size, ledger = measured.adapter, _size_beside(measured), ledger_of(measured.adapter)
    rows = with_shares([module.row for module in measured.modules])
    modules = priced(rows, [module.errors for module in measured.modules])
    summary = summary_of(modules)
    names = {module.name for module in modules}
    left = [NotAnalysed(name=s.name, reason=s.reason, cause=s.cause) for s in adapter.skipped if s.name not in names]
    verdict = health(
        modules,
        peft_type=adapter.config.peft_type,
        not_analysed=left,
        relative_frobenius=size,
        update_size=summary.update_size,
        optimizer=optimizer,
    )
    # A kind that only PEFT can merge, and weights without their config, have no rank that resize could lower.
    has_ranks = suggests_ranks(verdict.verdict) and not adapter.by_peft and not unscaled
    ranks = suggestions(modules, bytes_per_param=bytes_per_param(ledger)) if has_ranks else NO_SUGGESTIONS
    rank = {purpose: item.rank for purpose, item in ranks.suggested.items()}
    summary = msgspec.structs.replace(
        summary, suggested_r_global_median=rank.get("median"), suggested_r_global_90=rank.get("p90")
    )
    return AuditJudgement(modules, left, summary, ledger, verdict, ranks)


def _report_of(
    documents: Documents, measured: AdapterNumbers, options: AuditOptions, left_out: Mapping[str, str]
) -> AuditReport:
    opened, optimizer = documents.adapter.take(), options.optimizer or documents.optimizer
    config = measured.adapter.config
    around = documents.beside(config.base_model_name_or_path or config.model)
    judgement = _judge(measured, optimizer, unscaled=opened.is_unscaled)
    adapter, ranks = measured.adapter, judgement.ranks
    of_peft = adapter.format == "peft" and adapter.config.peft_type in {"LORA", None}  # it can have a rank_pattern
    report = AuditReport(
        schema=AUDIT_SCHEMA_ID,
        peft_dir=opened.path,
        config_path=None if opened.config is None else str(opened.config),
        weights_path=opened.weights,
        weights_paths=[str(path) for path in adapter.weights] if len(adapter.weights) > 1 else [],
        format=adapter.format,
        peft_type=adapter.config.peft_type,
        base_model=adapter.config.base_model_name_or_path,
        task_type=adapter.config.task_type,
        optimizer=optimizer,
        health=judgement.health,
        summary=judgement.summary,
        suggested=ranks.suggested,
        like_suggested=ranks.like_suggested,
        candidates=ranks.candidates,
        resized_as="not" if opened.is_unscaled else _resized_as(adapter),
        rank_rules=ranks.rank_rules,
        rank_disagreements=ranks.disagreements,
        per_layer=ranks.per_layer if options.suggest_per_layer and of_peft else None,
        unmatched_patterns=[*adapter.unmatched_rank_patterns, *adapter.unmatched_alpha_patterns],
        base=measured.base,
        beside=around,
        modules=judgement.modules,
        layers=layer_summaries(judgement.modules),
        ledger=judgement.ledger,
        not_analysed=judgement.not_analysed,
        notes=[*_chosen(documents), *adapter.notes, *_unknown_dtypes(adapter), *_precision(), *measured.notes],
    )
    base = None if measured.base is None else Path(measured.base.path)
    verdict = judge_weights(documents, report, base=base).without(left_out)
    kept, readings = (
        with_commands(some, lambda: known_of(opened.path or None, around))
        for some in (verdict.findings, verdict.readings)
    )
    return msgspec.structs.replace(report, findings=kept, not_run=verdict.not_run, readings=readings)


def _resized_as(adapter: Adapter) -> ResizedAs:
    """How `resize` takes the file: what it refuses ends in an error, so no command names it."""
    if adapter.format in _CONVERTED and next(obstacles(adapter, Operation.CONVERT), None) is None:
        # A file of a pipeline may adapt several models, of which `convert` writes one at a time.
        models = {m.name.partition(".")[0] for m in adapter.modules if adapter.file_format.component_prefix}
        of_one_model = len(models) < 2  # models
        is_plain = of_one_model and all(m.kind == "linear" and m.dense is None for m in adapter.modules)
        return "converted" if is_plain and set(adapter.roles.values()) <= {"lora_pair", "scale"} else "not"
    refused = next(obstacles(adapter, Operation.RESIZE), None) or "not_analysed" in adapter.roles.values()
    return "not" if refused else "as_it_is"


def _size_beside(measured: AdapterNumbers) -> float | None:
    """The norm of the update over the base's, if enough of the modules were compared to speak of the adapter."""
    base = measured.base
    if base is None or base.compared < JUDGED_SHARE.value * len(measured.modules):
        return None
    return base.relative_frobenius


def with_joint(report: AuditReport, documents: Documents, left_out: Mapping[str, str]) -> AuditReport:
    """The report with what the settings and the log that lie there say of these weights."""
    parts = judge_parts(documents, weights=report, left_out=left_out, parts=("weights", "config", "log"))
    causes = parts.together(left_out).causes
    return msgspec.structs.replace(report, findings=of_part(causes, "weights", also=OF_PROMPT))


def _chosen(documents: Documents) -> Iterator[str]:
    """Yield a note on how the adapter was chosen, if several lie in the folder that was given."""
    at = documents.weights
    if at.path is not None and not {";", ":"}.isdisjoint(at.chosen):
        yield f"{at.path.name} is audited: {at.chosen}"


def _unknown_dtypes(adapter: Adapter) -> Iterator[str]:
    """Yield a note on each dtype that safetensors does not know, because other programs cannot open such a file."""
    strange: dict[str, list[str]] = {}
    for name, info in adapter.tensors.items():
        if not is_known(info.dtype):
            strange.setdefault(info.dtype, []).append(name)
    for dtype, names in strange.items():
        yield f"{len(names)} tensors of dtype {dtype!r}, which safetensors does not know (first: {names[0]})"


def _precision() -> Iterator[str]:
    """Yield a note if singular values are computed in float32."""
    if not has_float64():
        yield (
            "computed in float32, because the device has no float64: the error of each singular value is at most"
            f" {SINGLE_ERROR:.0e} of the product of the factors' spectral norms; --device cpu computes in float64"
        )
