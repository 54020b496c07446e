"""The commands ``gradience diagnose`` and ``gradience report``, which join everything that a run left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from gradience.blocks import clean, counted
from gradience.cli import options as opt
from gradience.cli.output import COULD_NOT_JUDGE, exit_code, print_text
from gradience.errors import OutputError
from gradience.judge.options import DiagnoseOptions, ReportOptions
from gradience.render import ReportFormat, check_format, format_of
from gradience.schema import Severity
from gradience.schema.diagnose import DiagnoseReport
from gradience.schema.document import RuleGroup

Adapter = Annotated[Path | None, Parameter(alias="--peft-dir")]


@dataclass(frozen=True, kw_only=True)
class _DiagnoseOptions(DiagnoseOptions):
    adapter: Adapter = None


@dataclass(frozen=True, kw_only=True)
class _ReportOptions(ReportOptions):
    adapter: Adapter = None


_DIAGNOSE: Final = _DiagnoseOptions()
_REPORT: Final = _ReportOptions()
_GROUPS: Final[tuple[RuleGroup, ...]] = ("config", "base", "log", "weights", "weights_and_base", "joins")


def diagnose(
    path: Path | None = None,
    /,
    *,
    options: Annotated[_DiagnoseOptions, opt.RECORD] = _DIAGNOSE,
    judging: opt.Options = opt.DEFAULT_OPTIONS,
    verbose: opt.Details = False,
) -> int:
    """Join a run's config, log and weights into one verdict with its findings.

    Exit code 2 means that the run could not be judged: no source was found, or one cannot be read. It takes precedence
    over --fail-on.

    Parameters
    ----------
    path:
        The folder that a run left: of a Trainer, or with a run.jsonl.
    """
    resolved = judging.resolved()
    options = replace(options, gap_threshold=resolved.gap(options.gap_threshold))
    options.refuse_bad()
    from gradience.judge.diagnose.sources import find_sources  # --help pays for nothing of this

    sources = find_sources(path, run=options.run, adapter=options.adapter, config=options.config)
    if sources.weights.path is not None:
        from gradience.device import prepare_jax  # only where there are weights

        prepare_jax("auto")
    from gradience.judge.diagnose import diagnose_sources  # imports jax, after its environment is set

    report = diagnose_sources(sources, options, **resolved.rules)
    from gradience.judge.diagnose import source_locations  # the same
    from gradience.render.check import diagnose_text  # --help needs none of it

    code = resolved.show(
        report,
        lambda it: diagnose_text(it, verbose=verbose, fails=resolved.fail_on is not None or not it.complete),
        report.findings,
        groups=_GROUPS,
        locations=lambda: source_locations(report),
        not_run=report.not_run,
    )
    return code if report.complete else COULD_NOT_JUDGE


def report(
    path: Path | None = None,
    /,
    *,
    options: Annotated[_ReportOptions, opt.RECORD] = _REPORT,
    out: Path | None = None,
    kind: Annotated[ReportFormat | None, Parameter(name="--format")] = None,
    force: opt.Flag = False,
    fail_on: Severity | None = None,
) -> int:
    """Write one file about a run: a page to look at, or Markdown for a pull request.

    The page needs no script, no server and no network, and says what it could not judge. Exit code 2 means that a
    source could not be read; if another could, the report on that is there.

    Parameters
    ----------
    path:
        The folder that a run left, in which log, adapter and configuration are looked for; or a log.
    out:
        The file to write: .html or .md. Without it, Markdown goes to the terminal.
    kind:
        The format, where the file's name leaves it open.
    force:
        Replace the file if it is there.
    fail_on:
        Exit with 1 if a finding is at least this severe.
    """
    chosen = kind or (format_of(out) if out is not None else "md")
    if out is None and chosen == "html":
        raise OutputError("an HTML page needs an output file", advice="say --out report.html")
    check_format(chosen)
    from gradience.judge.diagnose.sources import find_sources  # --help pays for nothing of this

    sources = find_sources(path, run=options.run, adapter=options.adapter, config=options.config)
    if sources.weights.path is not None or options.compare:
        from gradience.device import prepare_jax  # only where there are weights

        prepare_jax("auto", serial_kernels=bool(options.compare))
    # May import jax, after its environment is set
    from gradience.report import build_story, report_text, write_sources

    if out is None:
        story = build_story(sources, options)
        print_text(report_text(story, chosen).rstrip("\n"))
    else:
        story = write_sources(sources, out, options, kind=chosen, force=force)
        print_text("\n".join(_done(out, story.diagnosis)))
    return exit_code(story.diagnosis.findings, fail_on) if story.diagnosis.complete else COULD_NOT_JUDGE


def _done(out: Path, report: DiagnoseReport) -> Iterator[str]:
    """Yield a line on the file that was written, and a line for each source that could not be read."""
    yield f"wrote {out} ({out.stat().st_size / 1e3:.0f} KB, {counted(len(report.findings), 'finding')})"
    for source in report.sources:
        if source.state == "unreadable":
            yield f"not readable, so not judged: {source.source}: {clean(source.reason)}"
