"""The commands ``gradience fleet audit``, ``show`` and ``query``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final, TypeVar

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from gradience.blocks import counted
from gradience.commands import options as opt
from gradience.commands.output import COULD_NOT_JUDGE, FOUND, tell
from gradience.commands.page import write_page
from gradience.errors import AdapterError
from gradience.schema.document import Finding, Report, RuleGroup
from gradience.schema.reports import SourceLocation
from gradience.verbs.fleet import view as words
from gradience.verbs.fleet.results import DEFAULT_RESULT, ResultOptions, answer, rate_on_stderr

_EVERY: Final = 1 << 40
_ReportT = TypeVar("_ReportT", bound=Report)


def audit(
    *roots: str,
    out: Path | None = None,
    list: Path | None = None,  # noqa: A002  # the option's name
    base: opt.Base = None,
    workers: PositiveInt | None = None,
    gate: opt.Gate = opt.DEFAULT_GATE,
) -> int:
    """Audit every adapter below some folders, and keep the numbers as Parquet.

    A second call reads only what changed. One that was killed is taken up where it was.

    Parameters
    ----------
    roots:
        Folders or weights files.
    out:
        The fleet's folder: written, or brought up to date.
    list:
        A file with one further path on each line.
    workers:
        How many processes. Default: one for each core.
    """
    if not roots and list is None:
        raise AdapterError("no folder to look in", advice="give folders with adapters below, or --list FILE")
    if out is None:
        raise AdapterError("no output folder", advice="give --out FLEET")
    resolved = gate.resolved()
    from gradience.verbs.fleet.audit import audit_fleet  # the help needs none of it
    from gradience.verbs.fleet.find import read_list  # the same

    report = audit_fleet(
        *roots,
        out=out,
        listed=() if list is None else read_list(list),
        base=base,
        workers=workers,
        progress=rate_on_stderr("fleet"),
    )
    unread = report.errors + report.crashed
    code = _shown(report, words.fleet_audit_text, resolved, lambda: _findings(out), unread=unread)
    if code == FOUND:
        tell(f"gradience: findings at or above {resolved.fail_on}: see 'gradience fleet show {shlex.quote(str(out))}'")
    return code


def _shown(
    report: _ReportT,
    text: Callable[[_ReportT], str],
    resolved: opt.ResolvedOptions,
    findings: Callable[[], Sequence[tuple[str, Finding]]],
    *,
    unread: int,
    groups: Sequence[RuleGroup] = ("weights", "weights_and_base"),
) -> int:
    """Print the report, and return the exit code that the findings of its adapters give, if these are asked for."""
    is_judged = resolved.fail_on is not None or resolved.format not in {"text", "json"}
    pairs = findings() if is_judged else ()
    code = resolved.show(
        report,
        text,
        [finding for _, finding in pairs],
        groups=groups,
        locations=lambda: [SourceLocation(path) for path, _ in pairs],
    )
    if unread and resolved.fail_on is not None:
        tell(f"gradience: {counted(unread, 'adapter')} could not be judged")
        return code or COULD_NOT_JUDGE
    return code


def _findings(fleet: Path) -> Sequence[tuple[str, Finding]]:
    from gradience.verbs.fleet.show import findings_of  # duckdb, for those who ask

    return findings_of(fleet)


def show(
    fleet: Path,
    /,
    *,
    top: PositiveInt = 10,
    serve: opt.Strings = None,
    server_flags: opt.ServerFlags = "",
    verbose: opt.Verbose = False,
    html: Path | None = None,
    force: opt.Flag = False,
    gate: opt.Gate = opt.DEFAULT_GATE,
) -> int:
    """Show what is in a fleet: bases, ranks, verdicts; what is broken, wasteful, alike, or of another base.

    Parameters
    ----------
    fleet:
        The folder that fleet audit wrote.
    top:
        How many adapters a list names.
    serve:
        Plan instead how the trained adapters are served together, by engines separated by commas, as of check:
        which fit one process, how it is started, what each of the others needs. Findings are then about that.
        hotswap is PEFT's hotswap_adapter.
    server_flags:
        The flags that the server is started with, as of check.
    verbose:
        List every adapter.
    html:
        A page to write as well.
    force:
        Replace the page if it is there.
    """
    resolved = gate.resolved()
    from gradience.verbs.fleet.show import show_fleet  # the help needs none of it

    report = show_fleet(fleet, top=_EVERY if verbose else top, serve=serve or (), server_flags=server_flags)
    if html is not None:
        from gradience.tables.store import MANIFEST  # only a page needs it

        write_page(report, words.fleet_page, html, sources=[fleet / MANIFEST], force=force)
    unread = sum(reason.adapters for reason in report.unread)
    if not report.plans:
        return _shown(report, words.fleet_show_text, resolved, lambda: _findings(fleet), unread=unread)
    from gradience.verbs.fleet.serve import findings_of_plans, not_judged  # for those who ask

    return _shown(
        report,
        lambda shown: words.plans_text(shown, top=_EVERY if verbose else top),
        resolved,
        lambda: list(findings_of_plans(report.plans)),
        unread=unread + len(not_judged(report.plans)),
        groups=("serve",),
    )


def query(
    fleet: Path,
    sql: str,
    /,
    *,
    result: Annotated[ResultOptions, Parameter(name="*")] = DEFAULT_RESULT,
) -> int:
    """Ask a fleet in SQL (DuckDB): one SELECT over adapters, modules and findings.

    It is read only: no other file, no network, no settings.

    Parameters
    ----------
    fleet:
        The folder that fleet audit wrote.
    sql:
        The query, such as "select r, avg(stable_rank) from modules group by r".
    """
    from gradience.tables.query import existing  # the help needs none of it

    return answer(existing(fleet), sql, result)
