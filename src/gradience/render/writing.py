"""What the reports of verbs that write an adapter share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from gradience.blocks import Block, listed

MODULES: Final = 12  # rows of a table without --verbose
EXACT: Final = 1e-6  # relative error below which an update counts as equal: float32 factors hold no more digits
LESSER: Final = "modules, of no larger error"


def destination(out: str | None) -> str:
    """The folder or file that was written, or words for a dry run."""
    return out or "(dry run: nothing is written)"


def error_cell(error: float | None) -> str:
    """A module's relative error for a table; None stands for a zero update."""
    if error is None:
        return "zero"
    return "exact" if error <= EXACT else f"{error:.2%}"


def name_list(title: str, names: Sequence[str]) -> Iterator[Block]:
    """A line with the number of names and the first ones; nothing without names."""
    if names:
        yield f"{title} ({len(names)}): {listed(names)}"


def worst_error(errors: Iterable[float | None]) -> float:
    """The largest error; 0 where none is known."""
    return max((error or 0.0 for error in errors), default=0.0)
