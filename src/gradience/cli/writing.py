"""What the verbs that write an adapter have in common: options in the same words, what they refuse, how they end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Protocol, TypeAlias, TypeVar

import msgspec
from cyclopts import Parameter

from gradience.cli.output import DONE, print_document, print_text
from gradience.errors import AdapterError

__all__ = ["DryRun", "Force", "Verbose", "given_once", "place_of", "printed"]

DryRun: TypeAlias = Annotated[
    bool, Parameter(negative=(), help="Write nothing; print what would be written, and what it costs.")
]
Force: TypeAlias = Annotated[
    bool,
    Parameter(negative=(), help="Replace --out if it is an adapter that exists, once the new one is complete."),
]
Verbose: TypeAlias = Annotated[bool, Parameter(alias="-v", negative=(), help="List every module.")]

_Report_contra = TypeVar("_Report_contra", bound=msgspec.Struct, contravariant=True)


class _Render(Protocol[_Report_contra]):
    def __call__(self, report: _Report_contra, /, *, verbose: bool) -> str: ...


def given_once(verb: str, path: Path | None, peft_dir: Path | None) -> Path:
    """Return the adapter's place, which is an argument or an option.

    Raises:
        AdapterError: it is given twice, or not at all.
    """
    place = path or peft_dir
    if place is None or (path is not None and peft_dir is not None):
        raise AdapterError(f"give the adapter's folder once: 'gradience {verb} DIR' or '--peft-dir DIR'")
    return place


def place_of(out: Path | None, *, dry_run: bool) -> Path | None:
    """Return where to write, or None for a dry run.

    Raises:
        AdapterError: there is no place, and it is no dry run.
    """
    if out is None and not dry_run:
        raise AdapterError("nowhere to write to", advice="give --out FOLDER, or look first with --dry-run")
    return None if dry_run else out


def printed(report: _Report_contra, render: _Render[_Report_contra], *, verbose: bool, json: bool) -> int:
    """Print the report, once, and return the exit code."""
    if json:
        print_document(report)
    else:
        print_text(render(report, verbose=verbose))
    return DONE
