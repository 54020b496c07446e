"""The output formats that commands share: `--format`, and findings for other programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeAlias

from gradience.cli.output import print_document
from gradience.errors import GradienceError
from gradience.render.cards import Place
from gradience.schema.findings import Finding, NotRun
from gradience.schema.rules import RuleGroup

__all__ = ["Format", "chosen_format", "print_for_programs"]

Format: TypeAlias = Literal["text", "json", "sarif", "github"]


def chosen_format(given: Format | None, *, json: bool) -> Format:
    """Return the format asked for; `--json` is short for `--format json`.

    Raises:
        GradienceError: both are given, and differ.
    """
    if json and given not in {None, "json"}:
        raise GradienceError(f"--json and --format {given} ask for different things", advice="give one of them")
    return "json" if json else given or "text"


def print_for_programs(
    kind: Literal["sarif", "github"],
    findings: Sequence[Finding],
    *,
    places: Sequence[Place | None],
    groups: Sequence[RuleGroup],
    not_run: Iterable[NotRun] = (),
) -> None:
    """Print findings as SARIF 2.1.0 (one JSON document) or as annotations of GitHub Actions (a line each).

    Args:
        kind: which.
        findings: what was found.
        places: where each of them points, in their order; None where nowhere.
        groups: of the rules that were applied, for SARIF.
        not_run: the rules that could not be judged, for SARIF.
    """
    if kind == "github":
        from gradience.render.github import github_lines  # noqa: PLC0415  # for those who ask

        sys.stdout.writelines(f"{line}\n" for line in github_lines(findings, places=places))
        sys.stdout.flush()
        return
    from gradience.policy.registry import cards_of  # noqa: PLC0415  # the same
    from gradience.render.sarif import sarif_log  # noqa: PLC0415  # the same

    log = sarif_log(
        findings,
        places=places,
        known=cards_of(*groups),
        not_run=not_run,
        version=version("gradience"),
        root=Path.cwd(),
    )
    print_document(log)
