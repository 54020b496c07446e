"""The file and line that each finding of a check points at, for other programs' formats."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from gradience.configs import Layer
from gradience.configs.settings import keys_of, line_of
from gradience.io.reading import real_path
from gradience.rules.config.facts import CheckContext
from gradience.rules.config.judge import RULES, settings_of
from gradience.schema.config import ConfigSnapshot
from gradience.schema.findings import Coverage, Finding
from gradience.schema.reports import CheckReport, SourceFile, SourceLocation

_NOT_CONFIGURATION = {"base", "settings", "data", "eval data", "tokenizer"}
_OF_CONFIGURATION = frozenset(rule.id for rule in RULES)
_BY_LINE = frozenset({".jsonl", ".ndjson"})


def source_locations(report: CheckReport) -> list[SourceLocation | None]:
    """The source location of each finding, in their order; None where no file was read."""
    files = [source for source in report.sources if source.role not in _NOT_CONFIGURATION]
    data = None if report.data is None else report.data.path
    return [
        _row(finding, Path(data))
        if data is not None and finding.id not in _OF_CONFIGURATION
        else _place(finding, files)
        for finding in report.findings
    ]


def _row(finding: Finding, data: Path) -> SourceLocation:
    """The place of a finding on data: the line of its first row, where rows are lines."""
    first = finding.values.get("first")
    by_line = data.suffix.lower() in _BY_LINE and isinstance(first, list) and first
    return SourceLocation(str(data), first[0] if by_line and first else None)


def _place(finding: Finding, files: list[SourceFile]) -> SourceLocation | None:
    if not files:
        return None
    keys = [key for field in settings_of(finding) for key in keys_of(field)]
    for source in reversed(files):  # a later source wins
        line = line_of(Path(source.path), keys)
        if line is not None:
            return SourceLocation(source.path, line)
    return SourceLocation(files[0].path)


_OF_A_RUN = ("trainer_state.json", "run.jsonl", "adapter_model.safetensors", "model.safetensors", "trainer_log.jsonl")
_MOST_NAMES = 5
_MOST_ENTRIES = 2000  # of the output folder that are looked at


def gather_context(
    whole: Layer, config: ConfigSnapshot, *, base: Path | None, folders: Iterable[Path], transformers: str | None
) -> CheckContext:
    """The context of a check; without a base, its files are not read.

    Raises:
        AdapterError: the base cannot be read.
    """
    keys = tuple(dict.fromkeys(whole.unknown_keys)) if whole.sources else None
    around = _output(whole, CheckContext(unknown_keys=keys))
    return around if base is None else _with_base(around, config, base, folders, transformers)


def _output(whole: Layer, around: CheckContext) -> CheckContext:
    place = whole.output_dir
    if place is None:
        return around
    try:
        inside = any(real_path(place) in real_path(source.path).parents for source in whole.sources)
        if inside:
            return around._replace(no_output="the configuration is read from the output folder itself")
        return around._replace(output=tuple(_held(Path(place))))
    except (OSError, ValueError, RuntimeError):
        return around._replace(no_output="the output folder cannot be looked into")


def _held(folder: Path) -> Iterator[str]:
    """Yield the traces of a run in a folder; none if the folder does not exist."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        names = [entry.name for entry, _ in zip(entries, range(_MOST_ENTRIES), strict=False)]
    found = sorted(name for name in names if name in _OF_A_RUN or name.startswith("checkpoint-"))
    yield from found[:_MOST_NAMES]
    if len(found) > _MOST_NAMES:
        yield f"and {len(found) - _MOST_NAMES} more"


def _with_base(
    around: CheckContext, config: ConfigSnapshot, base: Path, folders: Iterable[Path], transformers: str | None
) -> CheckContext:
    from gradience.base.coverage import cover  # noqa: PLC0415  # numpy, for those who give a base
    from gradience.base.peft_emulation.layout import read_layout  # noqa: PLC0415
    from gradience.base.peft_emulation.targets import NotFollowedError  # noqa: PLC0415  # numpy, for those who give a base

    if config.lora.peft_type not in {None, "LORA"}:
        return around._replace(no_coverage=f"peft_type {config.lora.peft_type} is not LoRA: not counted")
    if config.extras.get("format") == "mlx-lm":
        return around._replace(no_coverage="MLX-LM counts its layers from the end: its targets are not followed")
    layout = read_layout(base, transformers=transformers, task_type=config.lora.task_type)
    try:
        coverage = cover(config, layout, base=base.name or str(base))
    except NotFollowedError as error:
        return around._replace(no_coverage=str(error))
    return _with_tokens(around, coverage, base, folders)


def _with_tokens(around: CheckContext, coverage: Coverage, base: Path, folders: Iterable[Path]) -> CheckContext:
    """Add the tokens that the run's tokenizer has and the base's has not."""
    from gradience.base.coverage import added_tokens, read_vocabulary  # noqa: PLC0415  # as above
    from gradience.base.weights import find_shards  # noqa: PLC0415  # as above

    run = next((found for folder in folders if (found := read_vocabulary(folder)) is not None), None)
    if run is None:
        return around._replace(coverage=coverage, no_tokenizers="no tokenizer lies beside the configuration")
    known = read_vocabulary(find_shards(base)[0].parent)
    if known is None:
        return around._replace(coverage=coverage, no_tokenizers="no tokenizer lies beside the base")
    return around._replace(coverage=msgspec.structs.replace(coverage, added_tokens=added_tokens(run, known)))
