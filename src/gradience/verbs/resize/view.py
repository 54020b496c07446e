"""The report of a resize as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from gradience.blocks import Block, Columns, Title, count, counted, estimated, facts, megabytes, percent, table
from gradience.blocks.text import as_text
from gradience.render.writing import LESSER, MODULES, destination, worst_error
from gradience.schema.document import Estimate
from gradience.schema.writing import Calibration, Recovery, ResizedModule, ResizeReport

_LIMITS: Final = {"kl": "the KL asked for", "effect": "5 % of the adapter's own KL", "flips": "the share of flips"}
_MANY_FLIPS: Final = 0.05  # of the predictions, from which a choice by outputs is warned of
_CRITERIA: Final = {
    "rank": "rank {:g}",
    "energy": "energy >= {:g}",
    "max_mb": "at most {:g} MB",
    "max_params": "at most {:.0f} parameters",
    "like_suggested": "the audit's suggestion for each module",
    "kl": "KL of the outputs <= {:g} nats per prediction",
}

_RESIZED: Final[Columns[ResizedModule]] = (
    ("rank", ">7", lambda row: f"{row.rank_before}>{row.rank_after}"),
    ("rel. error", ">10", lambda row: "zero" if row.relative_error is None else percent(row.relative_error)),
    ("params", ">7", lambda row: count(row.params_after)),
    ("module", "", lambda row: row.name),
)
_BY_OUTPUTS: Final[Columns[ResizedModule]] = (
    _RESIZED[0],
    ("predicted KL", ">12", lambda row: f"{row.kl_predicted or 0.0:.1e}"),
    *_RESIZED[1:],
)


@as_text
def resize_text(report: ResizeReport, *, verbose: bool = False) -> Iterator[Block]:
    """The report of a resize for a terminal; `verbose` lists every module."""
    yield Title("GRADIENCE RESIZE")
    yield f"From: {report.source}"
    yield f"To:   {destination(report.out)}"
    worst = worst_error(row.relative_error for row in report.modules)
    values = {
        "Criterion": _CRITERIA[report.criterion].format(report.value),
        "Parameters": f"{count(report.params_before)} -> {count(report.params_after)}",
        "File": f"{megabytes(report.bytes_before)} -> {megabytes(report.bytes_after)}",
        "Error": f"{percent(report.relative_error)} of the whole update, at most {percent(worst)} of a module",
    }
    yield facts(values.items())
    if report.calibration is not None:
        yield from _calibration(report.calibration)
    if report.recovery is not None:
        yield from _recovery(report.recovery)
    yield ""
    yield "Modules by rank:"
    ranks = Counter((row.rank_before, row.rank_after) for row in report.modules)
    for (before, after), n in sorted(ranks.items(), key=lambda item: (-item[1], item[0])):
        yield f"  r={before} -> {after}: {n}" + (" (kept)" if before == after else "")
    most = None if verbose else MODULES
    if report.calibration is None:
        rows = sorted(report.modules, key=lambda row: -(row.relative_error or 0.0))
        yield table(_RESIZED, rows, most=most, of=LESSER)
    else:
        rows = sorted(report.modules, key=lambda row: -(row.kl_predicted or 0.0))
        yield table(_BY_OUTPUTS, rows, most=most, of="modules, of no larger KL")
    yield from (f"Note: {note}" for note in report.notes)
    if report.calibration is None:
        yield "The error is of the weights: verify the result on held-out data."
    else:
        yield "KL says how near the outputs are to the whole adapter's, not how good they are: verify on held-out data."


def _calibration(found: Calibration) -> Iterator[Block]:
    """The lines on what was measured, and on how many inputs."""
    measured = _inputs(found.measured_inputs, found.measured_predictions)
    yield f"KL:         {found.kl:.2g} nats per prediction on {measured}{_of(found.kl, found.effect_kl)}"
    of = "" if found.effect_flips is None else f"; the adapter itself changes {percent(found.effect_flips)}"
    yield f"Flips:      {percent(found.flips)} of these predictions{of}"
    if found.bound_by:
        yield f"Bound by:   {' and '.join(_LIMITS[name] for name in found.bound_by)}"
        yield f"{'':12}limits of the calibration texts: other texts may pass them"
    if found.flips > _MANY_FLIPS:
        yield f"Warning: over {_MANY_FLIPS:.0%} of the predictions changed, which a small KL can hide; --kl bounds both"
    yield f"Pieces:     chosen by {_inputs(found.inputs, found.predictions)}; seed {found.seed}"
    yield f"Predicted:  KL {found.kl_predicted:.2g}, on the inputs that they were chosen by"


def _recovery(recovery: Recovery) -> Iterator[Block]:
    """The lines on what the training changed on held-out texts."""
    yield f"Recovery:   {counted(recovery.steps, 'step')} on {counted(recovery.inputs, 'text')}; seed {recovery.seed}"
    texts = _inputs(recovery.held_inputs, recovery.held_predictions)
    yield f"  From the whole adapter on {texts} held out, with 95 % intervals over texts:"
    rows = [_apart(recovery, name) for name in _UNITS]
    yield table(_APART, [row for row in rows if row[1] is not None])
    cut = f"the factors as cut, because {recovery.reason}"
    yield f"Written:    {'the trained factors' if recovery.written else cut}"
    last = recovery.after if recovery.written and recovery.after is not None else recovery.before
    if last.flips.value > _MANY_FLIPS:
        yield f"Warning: over {_MANY_FLIPS:.0%} of the predictions on held-out texts are not the whole adapter's"


def _apart(recovery: Recovery, name: str) -> tuple[str, Estimate | None, Estimate | None, Estimate | None]:
    """A quantity by its field's name, and its values before and after, and their difference."""
    stages = (recovery.before, recovery.after, recovery.change)
    before, after, change = (None if one is None else getattr(one, name) for one in stages)
    return name, before, after, change


_UNITS: Final = {"kl": ("KL, nats", ".4f"), "flips": ("flips", ".1%"), "loss": ("loss, nats", ".4f")}
_APART: Final[Columns[tuple[str, Estimate | None, Estimate | None, Estimate | None]]] = (
    ("before", "<26", lambda row: estimated(row[1], _UNITS[row[0]][1])),
    ("after", "<26", lambda row: estimated(row[2], _UNITS[row[0]][1])),
    ("change", "<29", lambda row: estimated(row[3], "+" + _UNITS[row[0]][1])),
    ("", "", lambda row: _UNITS[row[0]][0]),
)


def _of(kl: float, effect: float | None) -> str:
    return f"; {percent(kl / effect)} of what the adapter itself does ({effect:.2g})" if effect else ""


def _inputs(inputs: int, predictions: int) -> str:
    return f"{inputs} inputs" if inputs == predictions else f"{inputs} inputs ({count(predictions)} predictions)"
