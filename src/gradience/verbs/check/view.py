"""The report of a check as text.

It shows the files that were read, the configuration as understood, the modules that it adapts in the base model, the
data set with a histogram of lengths, and the findings. Without `verbose`, it gives the number of checks that did not
run in one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from gradience.blocks import (
    Bars,
    Block,
    FactList,
    Figure,
    Title,
    brief,
    by_severities,
    count,
    counted,
    duration,
    facts,
    findings,
    gib,
    listed,
    number,
    part,
    percent,
    shorter,
    skipped,
)
from gradience.blocks.text import as_text
from gradience.configs.settings import states_adapter
from gradience.schema import Real, as_float
from gradience.schema.document import Coverage, by_severity
from gradience.schema.events import ConfigSnapshot, LoraSnapshot, TrainingSnapshot
from gradience.schema.memory import Memory, Time
from gradience.schema.reports import CheckReport, DataReport, GroupFate

_TRAINERS = {
    "sft": "SFTTrainer",
    "dpo": "DPOTrainer",
    "reward": "RewardTrainer",
    "kto": "KTOTrainer",
    "classification": "Trainer with a classifier head",
    "grpo": "GRPOTrainer",
    "prm": "PRMTrainer",
}
_LABELS = 6

_NAMES: Final = 10  # targets and unknown keys on one line
_UNMATCHED: Final = 5  # targets without a module on one line
_TEXT: Final = 60  # characters of one value
_LEAST_SHARE: Final = 0.001  # of the steps that is shown as a number
_SHOWN: Final = 1 << 20  # bytes of a part that is worth a word
_TWO_DIGITS: Final = 10  # megabytes from which a size is shown without decimals


def data_blocks(data: DataReport, derived: Mapping[str, Real], *, caption: str = "") -> Iterator[Block]:
    """The data set as understood, and the histogram of its lengths."""
    yield facts(_data(data, derived), indent=2, caption=caption)
    if not data.sequences:
        return
    drawing = Bars(tuple(data.lengths.bins), data.lengths.bin_width, data.max_length)
    about = f"Before the cut, {data.lengths.bin_width:,} tokens a bar."
    yield Figure("Tokens per sequence", drawing, summary=f"{data.sequences:,} sequences, in tokens", caption=about)


def _data(data: DataReport, derived: Mapping[str, Real]) -> Iterator[tuple[str, str | None]]:
    yield "Prompt", data.prompt
    read = f"{data.rows_read:,} of {data.rows:,}, drawn with seed {data.seed}" if data.sampled else f"{data.rows:,}"
    yield "Rows", f"{read} ({data.format}, for {_trainer(data)})"
    none = "the rows are tokens" if data.sequences else "what needs tokens is not judged (--tokenizer FOLDER)"
    yield "Tokenizer", f"{data.tokenizer or f'none: {none}'}{_template(data)}"
    yield "Loss", "" if data.loss == "none" else f"on {_loss(data)} ({data.loss_from})"
    packed = ", packed" if data.packing else ""
    yield "Limit", f"{data.max_length:,} tokens{packed}" if data.max_length is not None else f"none{packed}"
    lengths = data.lengths
    if data.sequences:
        yield "Tokens", _tokens(data)
        at = f"95 % {lengths.p95:,}, 99 % {lengths.p99:,}, longest {lengths.longest:,}"
        yield "Lengths", f"median {lengths.p50:,}, {at}"
    if data.batching.padding_share is not None:
        packing = f"; packed {data.batching.packed_sequences:,} sequences" if data.batching.packed_sequences else ""
        yield "Padding", f"{percent(data.batching.padding_share)} at {data.batching.batch_size} rows{packing}"
    yield "Labels", listed([f"{label} {n:,}" for label, n in data.labels.items()], _LABELS)
    yield "Overlap", _overlap(data)
    yield "Epoch", _per_epoch(derived)
    yield from (("Note", note) for note in data.notes)


def _trainer(data: DataReport) -> str:
    named = _TRAINERS[data.trainer]
    return named if data.masked_by == "trl" else f"{named}, masked as by {data.masked_by}"


def _template(data: DataReport) -> str:
    return f", chat template of {data.template}" if data.template else ""


def _loss(data: DataReport) -> str:
    return {"assistant": "the assistant's turns", "completion": "completions"}.get(data.loss, "all tokens")


def _tokens(data: DataReport) -> str:
    tokens = data.tokens
    lost = f"; {count(tokens.total - tokens.kept)} lost to the limit" if tokens.total > tokens.kept else ""
    if data.loss == "none":
        return f"{count(tokens.kept)}{lost}"
    share = tokens.supervised / tokens.kept if tokens.kept else 0.0
    return f"{count(tokens.kept)}, {count(tokens.supervised)} of them supervised ({share:.1%}){lost}"


def _overlap(data: DataReport) -> str:
    overlap = data.overlap
    if overlap is None:
        return ""
    near = f"{overlap.near.count:,} near" if overlap.near_judged else overlap.near_reason
    return f"{overlap.exact.count:,} of {overlap.eval_rows:,} evaluation rows in the training set, {near}"


def _per_epoch(derived: Mapping[str, Real]) -> str:
    parts = [f"{count(int(as_float(derived['tokens_per_epoch'])))} tokens"] if "tokens_per_epoch" in derived else []
    if "steps_per_epoch" in derived:
        parts.append(f"{int(as_float(derived['steps_per_epoch'])):,} steps")
    if "tokens_per_parameter" in derived:
        parts.append(f"{number(derived['tokens_per_parameter'], '.3g')} tokens per adapter parameter")
    return ", ".join(parts)


@as_text
def check_text(report: CheckReport, *, verbose: bool = False) -> Iterator[Block]:
    """The report of a check for a terminal; `verbose` adds the evidence of findings, and the skipped rules."""
    yield Title("GRADIENCE CHECK")
    if report.sources:
        yield from (facts(((s.role.capitalize(), s.path) for s in report.sources), width=14), "")
    if report.data is None or report.config != ConfigSnapshot():
        yield from ("Config as understood:", config_facts(report), "")
    if (reach := report.coverage) is not None:
        yield from part(
            f"In the base ({_text(reach.base)}, {_text(reach.layout)})", [facts(_coverage(reach), indent=2)]
        )
    yield from memory_blocks(report.memory, counted=report.coverage is not None)
    yield from _time(report.time)
    yield from part("Served, by what is known of the engine", _serving(report.serving))
    if report.data is not None:
        yield from ("Data as the trainer feeds it:", *data_blocks(report.data, report.derived), "")
    if report.findings:
        yield f"Findings ({by_severities(report.findings)}):"
        surest = sorted(report.findings, key=lambda item: -(item.confidence or 0))
        yield findings(by_severity(surest), verbose=verbose)
    else:
        yield f"No findings, of {_g(report.derived.get('rules_judged'))} rules that could be judged."
    yield ""
    yield from part("Readings", (f"  {one.message}" for one in report.readings))
    rows = report.data.shown if report.data is not None else ()
    yield from part("Rows named above", (f"  {shown.row}: {shown.text}" for shown in rows))
    if report.unknown_keys:
        yield from (f"Keys that no rule reads: {listed(list(map(_text, report.unknown_keys)), _NAMES)}", "")
    if report.not_run:
        yield from (*skipped(report.not_run, verbose=verbose), "")
    if report.findings:
        yield "Findings are hypotheses with their grounds, not verdicts: verify on held-out data."


def _serving(groups: Sequence[GroupFate]) -> Iterator[Block]:
    for one in groups:
        start = f"; {one.reason}" if one.fate in {"applied", "not judged"} and one.reason else ""
        n = f"{one.modules:,} of {counted(one.of, 'module')}" if one.of else counted(one.modules, "module")
        share = "" if one.share is None else f"{one.share:.0%} of the factors' energy"
        part = "; ".join(filter(None, (one.which and _text(one.which), share)))
        what = f"{n} of {one.group}{f' ({part})' if part else ''}" if one.modules else one.group
        yield f"  {one.engine}: {what}: {one.fate}{start}"


def _time(time: Time | None) -> Iterator[Block]:
    """What training takes by a log of the same base or a given time of a step; or what is missing to tell it."""
    if time is None:
        return
    if time.seconds_per_step is None:
        yield f"Time: not known by {time.by}: {time.reason}"
    elif not time.by and time.seconds is None:
        yield "Time: not known: the planned steps are not stated (max_steps)"
    else:
        whole = "" if time.seconds is None else f"about {duration(as_float(time.seconds))} for {time.steps:,} steps, "
        each, logged = (number(x, ".3g") for x in (time.seconds_per_step, time.logged_seconds_per_step))
        by = f"as in {time.by}" if each == logged else f"{logged} in {time.by}, by the rows"
        by, where = (by, "on the same device, ") if time.by else ("as given", "")
        yield f"Time: {whole}{each} s a step ({by}); {where}without evaluations"
    yield ""


def memory_blocks(memory: Memory | None, *, counted: bool) -> Iterator[Block]:
    """What a step takes of the device's memory, what is assumed, and what the adapter is if it was not counted."""
    if memory is None:
        return
    parts = msgspec.structs.asdict(memory.parts) if memory.parts is not None else {}
    sizes = ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size >= _SHOWN)
    if memory.peak_bytes is None or memory.reserved_bytes is None:
        yield f"Memory: unknown: {memory.reason}{f' (of it, in GiB: {sizes})' if sizes else ''}"
    else:
        least, most = map(gib, memory.reserved_bytes)
        peak = f"about {gib(memory.peak_bytes)} GiB allocated at the longest batch"
        yield f"Memory: {peak}, {least} to {most} reserved{f' ({sizes})' if sizes else ''}"
        yield f"  Assumed: {'; '.join(memory.assumes)}"
    if (reached := memory.reached) is not None and not counted:
        yield f"  Adapter: {reached.modules:,} modules, {reached.trainable_params:,} parameters that are trained"
    yield from (f"  {gib(one.peak_bytes)} GiB with {one.change}" for one in memory.changes)
    yield ""


def config_facts(report: CheckReport, *, caption: str = "") -> FactList:
    """The configuration as understood; what is not given has no row."""
    return facts(_config(report), indent=2, caption=caption)


def _config(report: CheckReport) -> Iterator[tuple[str, str | None]]:
    config, derived = report.config, report.derived
    yield "Model", config.model_name and _text(config.model_name)
    yield "Dataset", config.dataset_name and _text(config.dataset_name)
    yield "Task", _task(config)
    if states_adapter(config.lora):
        yield "Adapter", _adapter(config, derived.get("scaling"))
        if config.lora.peft_type in {None, "LORA"}:
            yield "Targets", _targets(config.lora)
    yield "Optimizer", _optimizer(config)
    yield "Batch", "" if config.training.batch_size is None else _batch(config.training, derived)
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
    numbers = {"r": lora.r, "alpha": lora.alpha, "scaling": scaling, "dropout": lora.dropout}
    parts = [f"{name}={_g(value)}" for name, value in numbers.items() if value is not None]
    parts += [f"bias={_text(lora.bias)}"] if lora.bias not in {None, "none"} else []
    parts += [f"init={_text(lora.init)}"] if lora.init not in {None, "true"} else []
    origin = " (MLX-LM: alpha = scale x rank)" if config.extras.get("format") == "mlx-lm" else ""
    return f"{'+'.join(flags) or 'LoRA'}  {' '.join(parts)}{origin}"


def _targets(lora: LoraSnapshot) -> str:
    if lora.target_modules is None:
        null = lora.extras.get("target_modules_null")
        return "PEFT's default (target_modules is null)" if null else ""
    if isinstance(lora.target_modules, str):
        return _text(lora.target_modules)
    names = sorted(set(lora.target_modules))  # PEFT saves a set, in no order
    return listed([_text(name) for name in names], _NAMES)


def _optimizer(config: ConfigSnapshot) -> str:
    optimizer, training = config.optimizer, config.training
    logged = " (the largest logged; the configured rate may be higher)" if "lr_from" in optimizer.extras else ""
    parts = [_text(optimizer.name)] if optimizer.name else []
    parts += [f"lr={brief(as_float(optimizer.lr))}{logged}"] if optimizer.lr is not None else []
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
    parts = [f"{as_float(derived['planned_steps']):.0f} steps"] if "planned_steps" in derived else []
    if training.epochs is not None and not training.extras.get("epochs_overridden"):
        parts.append(f"{_g(training.epochs)} epochs")
    if (share := as_float(derived.get("warmup_share") or 0)) > 0:
        parts.append(f"warmup {share:.1%}" if share >= _LEAST_SHARE else f"warmup under {_LEAST_SHARE:.1%}")
    return ", ".join(parts)


def _early_step(config: ConfigSnapshot, value: Real) -> str:
    supervised = config.extras.get("objective") in {"sft", "classification"}
    plain = supervised and not config.lora.use_rslora  # rsLoRA ran well at 5e-2: no recipes to compare with
    recipes = "; shipped recipes for supervised training 3e-3 to 1e-2" if plain else ""
    return f"{number(value, '.1e')} (scaling x r x lr{recipes})"


def _coverage(coverage: Coverage) -> Iterator[tuple[str, str]]:
    """The modules, parameters and memory that the targets amount to in the base: labels and values."""
    types = ", ".join(f"{kind} {n}" for kind, n in coverage.by_type.items())
    reach = f"{coverage.layers} of {coverage.layers_total} layers"
    yield "Reaches", f"{coverage.modules} modules{f' ({types})' if types else ''} in {reach}"
    total = coverage.trainable_params
    yield "Trains", "" if total is None else _trained(total, coverage)
    if coverage.adapter_bytes is not None:
        yield "Adapter", f"{_size(coverage.adapter_bytes)} MB in {coverage.adapter_dtype}"
    if coverage.optimizer_bytes is not None:
        yield "Optimizer", f"{_size(coverage.optimizer_bytes)} MB more ({coverage.optimizer_assumption})"
    yield "No match", listed(coverage.unmatched_targets, _UNMATCHED)
    yield from (("Note", note) for note in coverage.notes)


def _trained(total: int, coverage: Coverage) -> str:
    base = coverage.base_params
    parts = "".join(f", of them {kind} {count(n)}" for kind, n in coverage.trained_besides.items())
    share = f" = {total / base:.2%} of the base's {count(base)}" if base else ""
    return f"{count(total)} parameters{share}{parts}"


def _size(size: int) -> str:
    """Bytes in megabytes (10**6), with two significant digits.

    >>> _size(167_772_160), _size(81_920)
    ('168', '0.082')
    """
    value = size / 1e6
    return f"{value:.0f}" if value >= _TWO_DIGITS else f"{value:.2g}"


def _text(value: str | None) -> str:
    return shorter(value, _TEXT) if value else "not given"


def _g(value: Real | None) -> str:
    return "?" if value is None else f"{as_float(value):.4g}"
