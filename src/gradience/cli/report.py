"""``gradience report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gradience.cli.device import prepare_jax
from gradience.cli.output import exit_code, print_text
from gradience.errors import OutputError
from gradience.report.formats import ReportFormat, format_of
from gradience.schema.scalars import Severity

__all__ = ["report"]


def report(
    run: Path | None = None,
    /,
    *,
    adapter: Path | None = None,
    config: Path | None = None,
    base: Path | None = None,
    out: Path | None = None,
    kind: Annotated[ReportFormat | None, Parameter(name="--format")] = None,
    force: Annotated[bool, Parameter(negative=())] = False,
    fail_on: Severity | None = None,
) -> int:
    """Write one file about a run: a page to look at, or Markdown for a pull request.

    The page needs no script, no server and no network, and says what it could not judge.

    Parameters
    ----------
    run:
        The run.jsonl, the folder of a run, or anything that gradience import reads.
    adapter:
        The trained adapter: its folder or its weights file.
    config:
        A configuration to judge instead of the one in the log.
    base:
        The adapter's base model: a folder with safetensors, or organisation/name in the hub's local cache.
    out:
        The file to write: .html or .md. Without it, Markdown goes to the terminal.
    kind:
        The format, where the file's name does not tell it.
    force:
        Replace the file if it is there.
    fail_on:
        Exit with 1 if a finding is at least this severe.
    """
    chosen = kind or (format_of(out) if out is not None else "md")
    if out is None and chosen == "html":
        raise OutputError("where should the page be written?", advice="say --out report.html")
    if adapter is not None:
        prepare_jax("auto")
    from gradience.report.gather import gather  # noqa: PLC0415  # numpy and the verbs: --help need not pay for them
    from gradience.report.write import report_text, write_report  # noqa: PLC0415  # the same

    if out is None:
        story = gather(run, adapter=adapter, config=config, base=base)
        print_text(report_text(story, chosen).rstrip("\n"))
    else:
        story = write_report(run, out, adapter=adapter, config=config, base=base, kind=chosen, force=force)
        print_text(f"wrote {out} ({out.stat().st_size / 1e3:.0f} KB, {_counted(len(story.found))})")
    return exit_code(story.found, fail_on)


def _counted(findings: int) -> str:
    return "1 finding" if findings == 1 else f"{findings} findings"
