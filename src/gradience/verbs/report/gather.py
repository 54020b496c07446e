"""What a report is made of: one diagnosis of a run, the rows behind it, and the files that were read."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from gradience.adapters.open import WEIGHT_NAMES, find_files
from gradience.base.weights import find_shards
from gradience.errors import GradienceError
from gradience.importers import is_foreign, read_source
from gradience.importers.files import is_folder, sha256_of
from gradience.io.types import PathLike
from gradience.render.html.content import FileRead, Story
from gradience.render.text import short_path
from gradience.rules.log.facts import DEFAULT_GAP
from gradience.schema.compare import CompareAdaptersReport
from gradience.schema.diagnose import DiagnoseReport
from gradience.verbs.compare import compare_adapters
from gradience.verbs.diagnose.read import Read, read_sources
from gradience.verbs.diagnose.run import judge_sources
from gradience.verbs.diagnose.sources import Sources, find_sources


def compared(weights: Path | None, others: Sequence[str | os.PathLike[str]]) -> CompareAdaptersReport:
    """Return the run's adapter beside others; or a run's checkpoints as a series, where one such folder is given.

    Raises:
        GradienceError: there is nothing to compare, or an adapter cannot be read.
    """
    places = [Path(other) for other in others]
    if len(places) == 1 and _holds_checkpoints_only(places[0]):
        return compare_adapters(places[0])
    both = [*([] if weights is None else [weights]), *places]
    if len({place.resolve() for place in both}) < 2:
        raise GradienceError(
            f"compare: expected a second adapter, came {', '.join(map(str, both))}",
            advice="give this run's adapter by --adapter, another by --compare; or a folder of checkpoints",
        )
    return compare_adapters(*both)


def _holds_checkpoints_only(place: Path) -> bool:
    return (
        place.is_dir()
        and not any((place / name).is_file() for name in WEIGHT_NAMES)
        and any(place.glob("checkpoint-*"))
    )


def compared_files(report: CompareAdaptersReport) -> Iterator[Path]:
    """Yield the files of weights that were compared."""
    for adapter in report.adapters:
        found = find_files(Path(adapter.path))
        yield from found.shards or (found.weights,)


_ALL_VALUES: Final = 4096  # singular values kept per module: more than any adapter's rank


def gather(
    path: PathLike | None = None,
    *,
    adapter: PathLike | None = None,
    config: PathLike | None = None,
    base: PathLike | None = None,
    task: str | None = None,
    compare: Sequence[PathLike] = (),
) -> Story:
    """Return what log, config and adapter say. What is named wins over what the run's folder holds.

    Raises:
        GradienceError: nothing was given, a path does not exist, or nothing that is there can be read.
    """
    return tell(find_sources(path, adapter=adapter, config=config), base=base, task=task, compare=compare)


def tell(
    sources: Sources, *, base: PathLike | None = None, task: str | None = None, compare: Sequence[PathLike] = ()
) -> Story:
    """Return what sources that were found say, and how the adapter compares with others.

    Raises:
        GradienceError: none of the sources can be read, or one to be compared cannot.
    """
    if base is not None:
        find_shards(Path(base))  # what was named and cannot be read is said at once
    read = read_sources(sources, base, task, DEFAULT_GAP, top_singular_values=_ALL_VALUES)
    if read.check is None and read.log is None and read.audit is None:
        reasons = [state.reason for state in read.states.values() if state.state == "unreadable"]
        reason = "; ".join(reasons) or "neither log, adapter nor configuration"
        raise GradienceError(f"{sources.path}: {reason}", advice="give a run, --adapter or --config")
    comparison = _comparison(sources.weights.path, compare)
    return Story(
        diagnosis=_without_folders(judge_sources(sources, read)),
        series=read.log.run if read.log else None,
        comparison=comparison,
        files=_files([*_named(sources, read), *_others(comparison)]),
        versions=_versions(with_jax=read.audit is not None or comparison is not None),
    )


def _without_folders(report: DiagnoseReport) -> DiagnoseReport:
    """Return the diagnosis with reasons that name a source by its last two parts: a report is passed on."""
    paths = [source.path for source in report.sources if source.path is not None]

    def short(reason: str) -> str:
        for path in paths:
            reason = reason.replace(path, short_path(path))
        return reason

    return msgspec.structs.replace(
        report,
        sources=[msgspec.structs.replace(s, reason=short(s.reason)) for s in report.sources],
        not_run=[msgspec.structs.replace(item, reason=short(item.reason)) for item in report.not_run],
    )


def _comparison(weights: Path | None, others: Sequence[PathLike]) -> CompareAdaptersReport | None:
    if not others:
        return None

    return compared(weights, others)


def _others(comparison: CompareAdaptersReport | None) -> Iterator[tuple[str, Path]]:
    if comparison is not None:
        yield from (("compared weights", path) for path in compared_files(comparison))


def _files(named: Iterable[tuple[str, Path]]) -> list[FileRead]:
    """Return the files, each once, by the first role it was read in."""
    places: dict[str, tuple[str, Path]] = {}
    for role, path in named:
        if path.is_file():
            places.setdefault(os.path.realpath(path), (role, path))
    return [FileRead(role, path, path.stat().st_size, sha256_of(path)) for role, path in places.values()]


def _named(sources: Sources, read: Read) -> Iterator[tuple[str, Path]]:
    if read.log and sources.log.path:
        yield from (("log", path) for path in _log_files(sources.log.path, Path(read.log.report.file)))
    if read.audit is not None:
        for weights in read.audit.weights_paths or [read.audit.weights_path]:
            yield "weights", Path(weights)
        if read.audit.config_path:
            yield "adapter config", Path(read.audit.config_path)
    for source in read.check.sources if read.check is not None else ():
        yield source.role, Path(source.path)


def _log_files(place: Path, log: Path) -> list[Path]:
    """Return the files that a log was read from; a folder of another program is asked again for its own."""
    return read_source(place).files if is_folder(place) and is_foreign(place) else [log]


def _versions(*, with_jax: bool) -> dict[str, str]:
    names = ("gradience", "numpy", *(("jax",) if with_jax else ()))
    return {**{name: version(name) for name in names}, "python": platform.python_version()}
