"""The options of ``audit`` that say what its text shows; they change no number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt

from gradience.cli.output import draws_blocks
from gradience.render.audit import View
from gradience.render.heatmap import Quantity

__all__ = ["Showing"]

_Switch = Parameter(negative=())


@dataclass(frozen=True, kw_only=True)
class Showing:
    """The options.

    Parameters
    ----------
    top_wasteful:
        How many of the least utilised modules to list.
    layers:
        List every layer and every module, with the random null and the scale beside each.
    scales:
        Show how each module's scaling comes about: alpha, rank, the patterns that matched.
    rank_rules:
        Show what other rules for a rank say, and on which modules they disagree, and why.
    heatmap:
        Draw a map of the update, layer x module.
    heatmap_of:
        What the map shows.
    verbose:
        Show the grounds of each finding, and all that was not analysed.
    """

    top_wasteful: NonNegativeInt = 5
    layers: Annotated[bool, _Switch] = False
    scales: Annotated[bool, _Switch] = False
    rank_rules: Annotated[bool, _Switch] = False
    heatmap: Annotated[bool, _Switch] = False
    heatmap_of: Quantity = "norm"
    verbose: Annotated[bool, Parameter(alias="-v", negative=())] = False

    def view(self) -> View:
        """Return what to show on this terminal."""
        return View(
            top_wasteful=self.top_wasteful,
            layers=self.layers,
            scales=self.scales,
            rank_rules=self.rank_rules,
            heatmap=self.heatmap_of if self.heatmap else None,
            unicode=draws_blocks(),
            verbose=self.verbose,
        )
