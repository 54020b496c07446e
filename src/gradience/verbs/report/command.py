"""The command ``gradience report``, which writes one file about everything that a run left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from gradience.blocks import clean, counted
from gradience.commands import options as opt
from gradience.commands.output import code_of, exit_code, print_text
from gradience.commands.page import ReportFormat, check_format, format_of
from gradience.errors import OutputError
from gradience.schema import Severity
from gradience.schema.diagnose import DiagnoseReport
from gradience.verbs.report.options import ReportOptions

_REPORT: Final = ReportOptions()


def report(
    path: Path | None = None,
    /,
    *,
    options: Annotated[ReportOptions, opt.RECORD] = _REPORT,
    out: Path | None = None,
    kind: Annotated[ReportFormat | None, Parameter(name="--format", group=opt.FINDINGS)] = None,
    force: opt.Flag = False,
    fail_on: Annotated[Severity | None, Parameter(group=opt.FINDINGS)] = None,
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
    from gradience.folder import find  # --help pays for nothing of this

    found = find(path, run=options.run, adapter=options.adapter, config=options.config)
    if found.weights.path is not None or options.compare:
        from gradience.device import prepare_jax  # only where there are weights

        prepare_jax("auto", serial_kernels=bool(options.compare))
    # May import jax, after its environment is set
    from gradience.verbs.report.run import build_story, report_text, write_found

    if out is None:
        story = build_story(found, options)
        print_text(report_text(story, chosen).rstrip("\n"))
    else:
        story = write_found(found, out, options, kind=chosen, force=force)
        print_text("\n".join(_done(out, story.diagnosis)))
    return code_of(story.diagnosis, exit_code(story.diagnosis.findings, fail_on))


def _done(out: Path, report: DiagnoseReport) -> Iterator[str]:
    """Yield a line on the file that was written, and a line for each source that could not be read."""
    yield f"wrote {out} ({out.stat().st_size / 1e3:.0f} KB, {counted(len(report.findings), 'finding')})"
    for source in report.sources:
        if source.state == "unreadable":
            yield f"not readable, so not judged: {source.source}: {clean(source.reason)}"
