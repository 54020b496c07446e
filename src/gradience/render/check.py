"""The check report as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from gradience.render.text import banner, clean, coverage_rows, finding_lines, not_run_lines, number
from gradience.schema.config import ConfigSnapshot, LoraSnapshot, TrainingSnapshot
from gradience.schema.diagnose import BestCheckpoint, Cause, DiagnosedSource, DiagnoseReport, Unjudged
from gradience.schema.findings import SEVERITIES
from gradience.schema.reports import CheckReport
from gradience.schema.scalars import Real, as_float

_MOST_NAMES = 10  # targets and unknown keys on one line
_ASKED_FOR = {"not selected", "no engine is named (--serve)"}  # reasons that are no want of input
_MOST_TEXT = 60  # characters of one value


def check_text(report: CheckReport, *, verbose: bool = False) -> str:
    """Return the report for a terminal: what was read, how it was understood, findings, what did not run."""
    return "\n".join(_lines(report, verbose=verbose))


def _lines(report: CheckReport, *, verbose: bool) -> Iterator[str]:
    yield from banner("GRADIENCE CHECK")
    for source in report.sources:
        yield f"{source.role.capitalize() + ':':<14}{clean(source.path)}"
    if report.sources:
        yield ""
    yield "Config as understood:"
    for label, value in config_rows(report):
        yield f"  {label + ':':<12}{value}"
    yield ""
    if report.coverage is not None:
        yield f"In the base ({_text(report.coverage.base)}, {_text(report.coverage.layout)}):"
        for label, value in coverage_rows(report.coverage):
            yield f"  {label + ':':<12}{value}"
        yield ""
    yield from _findings(report, verbose=verbose)
    yield from _rest(report, verbose=verbose)
    yield "Findings are hypotheses with their grounds, not verdicts: verify on held-out data."


def config_rows(report: CheckReport) -> Iterator[tuple[str, str]]:
    """Yield the configuration as understood: what it speaks of, and its value in words."""
    config, derived = report.config, report.derived
    yield "Model", _text(config.model_name)
    if config.dataset_name:
        yield "Dataset", _text(config.dataset_name)
    if task := _task(config):
        yield "Task", task
    if config.lora != LoraSnapshot():
        yield "Adapter", _adapter(config, derived.get("scaling"))
        if config.lora.peft_type in {None, "LORA"}:
            yield "Targets", _targets(config.lora)
    yield "Optimizer", _optimizer(config)
    if config.training.batch_size is not None:
        yield "Batch", _batch(config.training, derived)
    yield "Length", _length(config.training, derived)
    if "scaling_r_lr" in derived:
        yield "Early step", _early_step(config, derived["scaling_r_lr"])


def _task(config: ConfigSnapshot) -> str:
    task, profile = config.extras.get("task"), config.task_profile
    named = " ".join(_text(str(part)) for part in (task, profile) if part and part != "unknown")
    objective = config.extras.get("objective")
    if not objective:
        return named
    understood = f"{objective}, by {_text(str(config.extras.get('objective_because')))}"
    if named == objective:
        return named
    return f"{named} ({understood})" if named else understood


def _adapter(config: ConfigSnapshot, scaling: Real | None) -> str:
    lora = config.lora
    kind = lora.peft_type or "LoRA"
    if lora.peft_type not in {None, "LORA"}:
        return f"{_text(kind)}: recognised; the rules about LoRA do not apply"
    flags = [name for name, on in (("rsLoRA", lora.use_rslora), ("DoRA", lora.use_dora)) if on]
    parts = [f"r={_plain(lora.r)}", f"alpha={_g(lora.alpha)}", f"scaling={_g(scaling)}"]
    parts += [f"dropout={_g(lora.dropout)}"] if lora.dropout is not None else []
    parts += [f"bias={_text(lora.bias)}"] if lora.bias not in {None, "none"} else []
    parts += [f"init={_text(lora.init)}"] if lora.init not in {None, "true"} else []
    origin = " (MLX-LM: alpha = scale x rank)" if config.extras.get("format") == "mlx-lm" else ""
    return f"{'+'.join(flags) or 'LoRA'}  {' '.join(parts)}{origin}"


def _targets(lora: LoraSnapshot) -> str:
    if lora.target_modules is None:
        null = lora.extras.get("target_modules_null")
        return "PEFT's default (target_modules is null)" if null else "not given"
    if isinstance(lora.target_modules, str):
        return _text(lora.target_modules)
    return _names(lora.target_modules)


def _optimizer(config: ConfigSnapshot) -> str:
    optimizer, training = config.optimizer, config.training
    if optimizer.name is None and optimizer.lr is None:
        return "not given"
    logged = " (the largest logged; the configured rate may be higher)" if "lr_from" in optimizer.extras else ""
    parts = [_text(optimizer.name), f"lr={_g(optimizer.lr)}{logged}"]
    if training.lr_scheduler:
        parts.append(_text(training.lr_scheduler))
    if optimizer.weight_decay is not None:
        parts.append(f"weight_decay={_g(optimizer.weight_decay)}")
    return " ".join(parts)


def _batch(training: TrainingSnapshot, derived: dict[str, Real]) -> str:
    if training.gradient_accumulation is None and "samples_per_step" in training.extras:
        device = f"; {training.batch_size} per device" if training.batch_size is not None else ""
        return f"{_g(derived.get('effective_batch'))} per step (by the log's summary{device})"
    if training.gradient_accumulation is None and "batch_from" in training.extras:
        return f"{training.batch_size} per device; gradient accumulation not given"
    accumulation = training.gradient_accumulation or 1
    line = f"{training.batch_size} x {accumulation} accumulation"
    if "effective_batch" in derived:
        return f"{line} x {training.world_size} processes = {_g(derived['effective_batch'])} per step"
    if "batch_per_process" in derived:
        return f"{line} = {_g(derived['batch_per_process'])} per step and process"
    return line


def _length(training: TrainingSnapshot, derived: dict[str, Real]) -> str:
    parts = [f"{_g(derived['planned_steps'])} steps"] if "planned_steps" in derived else []
    if training.epochs is not None and not training.extras.get("epochs_overridden"):
        parts.append(f"{_g(training.epochs)} epochs")
    if (derived.get("warmup_share") or 0) != 0:
        parts.append(f"warmup {number(derived['warmup_share'], '.1%')}")
    return ", ".join(parts) or "not given"


def _findings(report: CheckReport, *, verbose: bool) -> Iterator[str]:
    findings = report.findings
    if not findings:
        yield f"No findings, of {_g(report.derived.get('rules_judged'))} rules that could be judged."
        yield ""
        return
    counts = [(severity, sum(f.severity == severity for f in findings)) for severity in reversed(SEVERITIES)]
    yield f"Findings ({', '.join(_counted(n, severity) for severity, n in counts if n)}):"
    yield from finding_lines(findings, verbose=verbose)
    yield ""


def _counted(n: int, severity: str) -> str:
    return f"{n} {severity}" if n == 1 or severity == "info" else f"{n} {severity}s"


def _rest(report: CheckReport, *, verbose: bool) -> Iterator[str]:
    if report.unknown_keys:
        yield f"Unknown keys (no setting of PEFT, transformers or TRL): {_names(report.unknown_keys)}"
        yield ""
    not_run = [item for item in report.not_run if verbose or item.reason not in _ASKED_FOR]
    if not not_run:
        return
    n = len(not_run)
    if verbose:
        yield f"Not judged ({n}):"
        yield from not_run_lines(not_run)
    else:
        ids = " ".join(dict.fromkeys(item.id for item in not_run))
        yield f"Not judged, for want of input or because they do not fit ({n}; --verbose says why):"
        yield f"  {clean(ids)}"
    yield ""


def _early_step(config: ConfigSnapshot, value: Real) -> str:
    supervised = config.extras.get("objective") in {"sft", "classification"}
    plain = supervised and not config.lora.use_rslora  # rsLoRA ran well at 5e-2: no recipes to compare with
    beside = "; shipped recipes for supervised training 3e-3 to 1e-2" if plain else ""
    return f"{number(value, '.1e')} (scaling x r x lr{beside})"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(_text(name) for name in names[:_MOST_NAMES]) + more


def _text(value: str | None) -> str:
    shown = clean(value) if value else "not given"
    return shown if len(shown) <= _MOST_TEXT else f"{shown[: _MOST_TEXT - 3]}..."


def _plain(value: int | None) -> str:
    return "?" if value is None else str(value)


def _g(value: Real | None) -> str:
    return "?" if value is None else f"{as_float(value):.4g}"


_WIDTH: Final = 8  # of the longest name of a source and a blank


def diagnose_text(report: DiagnoseReport, *, verbose: bool = False) -> str:
    """Return the report for a terminal; verbose adds to each cause why, confidence, scope, evidence, verification."""
    return "\n".join(_diagnose_lines(report, verbose=verbose))


def _diagnose_lines(report: DiagnoseReport, *, verbose: bool) -> Iterator[str]:
    yield from banner("GRADIENCE DIAGNOSE")
    yield f"Run:     {clean(report.path)}"
    yield f"Verdict: {_verdict(report.headline)}"
    if report.monitor is not None and report.monitor.story:
        yield f"Story:   {clean(report.monitor.story)}"
    yield ""
    yield "Sources:"
    for source in report.sources:
        yield f"  {source.source:<{_WIDTH}}{_source(source)}"
    yield ""
    yield from _causes(report.causes, verbose=verbose)
    if report.best_checkpoint is not None:
        yield from _best(report.best_checkpoint)
    yield from _not_judged(report.not_run, verbose=verbose)
    for note in report.notes:
        yield f"Note: {clean(note)}."
    yield "Causes are hypotheses with their grounds: verify on held-out data."


def _verdict(headline: str) -> str:
    """Return the headline with the verdict itself in capitals, so that it is seen first."""
    first, mark, rest = clean(headline).partition(";")
    words, bracket, counts = first.partition(" (")
    return f"{words.upper()}{bracket}{counts}{mark}{rest}"


def _source(source: DiagnosedSource) -> str:
    if source.state == "absent":
        return f"not there: {clean(source.reason)}"
    if source.state == "unreadable":
        return f"NOT READABLE: {clean(source.reason)}"
    chosen = f" ({clean(source.chosen)})" if source.chosen else ""
    return f"{clean(source.path or 'in the log')}: {clean(source.holds)}{chosen}"


def _causes(causes: Iterable[Cause], *, verbose: bool) -> Iterator[str]:
    told = list(causes)
    yield f"Causes ({len(told)}):" if told else "Causes: none found by what could be judged"
    for cause in told:
        yield from _cause(cause, verbose=verbose)
    yield ""


def _cause(cause: Cause, *, verbose: bool) -> Iterator[str]:
    alone = "" if cause.joined else f" ({cause.pieces[0].source})"
    yield f"  [{cause.severity.upper()}] {cause.id}{alone}: {clean(cause.message)}"
    for piece in cause.pieces if cause.joined else ():
        yield f"      {piece.source:<{_WIDTH}}{piece.id + ': ' if piece.severity else ''}{clean(piece.says)}"
    if cause.action:
        yield f"      -> {clean(cause.action)}"
    if verbose:
        yield from _grounds(cause)


def _grounds(cause: Cause) -> Iterator[str]:
    if cause.rationale:
        yield f"      why: {clean(cause.rationale)}"
    if cause.confidence is not None:
        yield f"      confidence: {cause.confidence:.2f}"
    if cause.scope:
        yield f"      scope: {clean(cause.scope)}"
    for item in cause.evidence:
        yield f"      evidence: {clean(item.source)}: {clean(item.says)}"
    if cause.verify:
        yield f"      verify: {clean(cause.verify)}"


def _best(best: BestCheckpoint) -> Iterator[str]:
    noise = "noise unknown" if best.noise is None else f"noise +/- {best.noise:.2g}"
    same = ", which the weights here are" if best.saved_as else ""
    loss = f"{clean(best.split)} loss {number(best.loss, '.4g')}"
    yield f"Best checkpoint on disk: {clean(best.name)}{same} ({loss}; {noise})"
    yield ""


def _not_judged(not_run: Sequence[Unjudged], *, verbose: bool) -> Iterator[str]:
    """Yield how many checks did not run; verbose, every one, those of one reason together."""
    if not_run and not verbose:
        counts = Counter(item.source for item in not_run)
        shown = ", ".join(f"{source} {n}" for source, n in counts.items())
        yield f"Not judged: {len(not_run)} checks ({shown}); --verbose lists them with their reasons."
        yield ""
        return
    groups: dict[tuple[str, str], list[str]] = {}
    for item in not_run:
        groups.setdefault((item.source, item.reason), []).append(item.id)
    if not groups:
        return
    yield f"Not judged ({sum(map(len, groups.values()))}):"
    for (source, reason), ids in groups.items():
        yield f"  {source:<{_WIDTH}}{clean(reason)}: {clean(' '.join(dict.fromkeys(ids)))}"
    yield ""
