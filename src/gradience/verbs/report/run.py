"""The verb ``report``: describe a run, its config and its adapter in one file that can be passed on.

The data of a report are gathered first: a run's diagnosis, its logged rows, a comparison, a bench, and the files read.
The file is an HTML page or Markdown, depending on its suffix. It is written whole or not at all, and an existing file
is refused before any work. Only the HTML page needs matplotlib, which the extra `report` installs.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final, Unpack

import msgspec

from gradience.adapters.files import WEIGHT_NAMES, find_files
from gradience.base.weights import find_shards
from gradience.blocks import short_path
from gradience.commands.page import ReportFormat, check_format, format_of, write_text
from gradience.errors import GradienceError
from gradience.folder import Documents, Found, find
from gradience.io import CHECKPOINT_PREFIX, PathLike
from gradience.io.atomic import atomic_file
from gradience.io.reading import real_path
from gradience.rules.log.facts import DEFAULT_GAP
from gradience.schema.compare import BenchReport, CompareAdaptersReport
from gradience.schema.diagnose import DiagnoseReport
from gradience.telemetry.redact import hide_in
from gradience.verbs.diagnose.run import judge_sources
from gradience.verbs.diagnose.sources import SourceReports, read_sources
from gradience.verbs.report.options import ReportKeywords, ReportOptions
from gradience.verbs.report.page import report_html, report_markdown
from gradience.verbs.report.story import FileRead, Story

_DEFAULTS: Final = ReportOptions()
_ALL_VALUES: Final = 4096  # singular values kept per module, which is more than any adapter's rank


def write_report(
    path: PathLike | None,
    out: PathLike,
    *,
    options: ReportOptions = _DEFAULTS,
    kind: ReportFormat | None = None,
    force: bool = False,
    **keywords: Unpack[ReportKeywords],
) -> Story:
    """Write a report, whole or not at all, and return the data in it.

    Args:
        path: the folder of a run, which is searched for log, adapter and configuration; or a log.
        out: the file to write.
        options: where the run's parts are, if they are elsewhere, and what the report says beside the diagnosis.
        kind: `html` (one page without script or network; needs matplotlib) or `md` (short, for a pull request); None
            decides by the suffix.
        force: replace the file if it exists.
        keywords: single options by name, such as `compare=["other"]`; they win over `options`.

    Raises:
        GradienceError: a source cannot be read, the file cannot be written or exists already, or matplotlib is missing.
        TypeError: no option has such a name.
    """
    options = options.completed(keywords)
    found = find(path, run=options.run, adapter=options.adapter, config=options.config)
    return write_found(found, Path(out), options, kind=kind, force=force)


def write_found(
    found: Found, out: Path, options: ReportOptions, *, kind: ReportFormat | None = None, force: bool = False
) -> Story:
    """Write a report on what was found already. The arguments are those of `write_report`."""
    chosen = kind or format_of(out)
    check_format(chosen)
    named = (found.log.path, found.weights.path, found.config.path, found.training)
    beside = (Path(place) for place in (*options.compare, options.bench) if place is not None)
    with atomic_file(out, sources=[*(path for path in named if path is not None), *beside], force=force) as draft:
        story = build_story(found, options)
        write_text(draft, out, report_text(story, chosen))
    return story


def report_text(story: Story, kind: ReportFormat) -> str:
    """The report as text in a format, with secrets masked that other programs left in its sources."""
    story = hide_in(story)
    return report_html(story) if kind == "html" else report_markdown(story)


def build_story(found: Found, options: ReportOptions = _DEFAULTS) -> Story:
    """Build the data of a report from what was found already, and from what `options` says beside them.

    Raises:
        GradienceError: none of the sources can be read, or an adapter to be compared or the bench cannot.
    """
    base = options.base
    measured, benched = (None, []) if options.bench is None else _measured(Path(options.bench))
    if base is not None:
        find_shards(Path(base))  # a base that cannot be read is an error before any work
    read = read_sources(Documents(found), base, options.task, DEFAULT_GAP, top_singular_values=_ALL_VALUES)
    if read.check is None and read.log is None and read.audit is None:
        reasons = [state.reason for state in read.states.values() if state.state == "unreadable"]
        reason = "; ".join(reasons) or "neither log, adapter nor configuration"
        raise GradienceError(f"{found.path}: {reason}", advice="give a run, --adapter or --config")
    comparison = _comparison(found.weights.path, options.compare) if options.compare else None
    names = ("gradience", "numpy", *(("jax",) if read.audit is not None or comparison is not None else ()))
    return Story(
        diagnosis=_without_folders(judge_sources(read)),
        series=read.log.reading.run if read.log else None,
        comparison=comparison,
        bench=measured,
        files=_files([*_roles(read), *_compared_files(comparison), *benched], read.documents.digest_of),
        versions={**{name: version(name) for name in names}, "python": platform.python_version()},
    )


def _without_folders(report: DiagnoseReport) -> DiagnoseReport:
    """The diagnosis with paths in its reasons shortened by `short_path`, because a report is passed on to others."""
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


def _comparison(weights: Path | None, others: Sequence[PathLike]) -> CompareAdaptersReport:
    """Compare the run's adapter with others; or, if only a folder of checkpoints is given, those as a series.

    Raises:
        GradienceError: there is nothing to compare, or an adapter cannot be read.
    """
    from gradience.verbs.compare.run import compare_adapters  # imports JAX, which a log does not need

    folders = [Path(other) for other in others]
    if len(folders) == 1 and _holds_checkpoints_only(folders[0]):
        return compare_adapters(folders[0])
    adapters = folders if weights is None else [weights, *folders]
    if len({real_path(adapter) for adapter in adapters}) < 2:
        raise GradienceError(
            f"compare: expected a second adapter, got {', '.join(map(str, adapters))}",
            advice="give this run's adapter by --adapter, another by --compare; or a folder of checkpoints",
        )
    return compare_adapters(*adapters)


def _holds_checkpoints_only(folder: Path) -> bool:
    own = any((folder / name).is_file() for name in WEIGHT_NAMES)
    return folder.is_dir() and not own and any(folder.glob(f"{CHECKPOINT_PREFIX}*"))


def _compared_files(comparison: CompareAdaptersReport | None) -> Iterator[tuple[str, Path]]:
    for adapter in comparison.adapters if comparison is not None else ():
        files = find_files(Path(adapter.path))
        yield from (("compared weights", path) for path in files.shards or (files.weights,))


def _measured(bench: Path) -> tuple[BenchReport, list[tuple[str, Path]]]:
    """The report of a bench, and the report's file with its role."""
    from gradience.verbs.bench.store import read_report, report_path  # only a report on a bench

    return read_report(bench), [("bench", report_path(bench))]


def _files(roles: Iterable[tuple[str, Path]], digest_of: Callable[[Path], str]) -> list[FileRead]:
    """The files that exist, each once, with the first of its roles."""
    roles_by_file: dict[str, tuple[str, Path]] = {}
    for role, path in roles:
        if path.is_file():
            roles_by_file.setdefault(os.path.realpath(path), (role, path))
    return [FileRead(role, path, path.stat().st_size, digest_of(path)) for role, path in roles_by_file.values()]


def _roles(read: SourceReports) -> Iterator[tuple[str, Path]]:
    """The files that the sources were read from, each with its role."""
    if read.log is not None:
        reading = read.log.reading
        yield from (("log", path) for path in (reading.files if reading.path.is_dir() else [reading.path]))
    if read.audit is not None:
        for weights in read.audit.weights_paths or [read.audit.weights_path]:
            yield "weights", Path(weights)
        if read.audit.config_path:
            yield "adapter config", Path(read.audit.config_path)
    for source in read.check.sources if read.check is not None else ():
        yield source.role, Path(source.path)
