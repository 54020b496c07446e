"""What the evaluations of a run say together: the newest of each split, and train against held-out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

import msgspec

from gradience.schema.events import EvalMetrics
from gradience.schema.reports import EvalPoint, GapReading
from gradience.schema.scalars import MAX_INT, Json, as_float, real
from gradience.telemetry.summary import RunSeries

__all__ = ["derived_notes", "gap_of", "held_out_of", "latest_evals", "number_in"]

_HELD_OUT: Final = ("test", "eval", "validation", "valid", "val", "dev")
_WINDOW: Final = 10  # training rows averaged where the train split was never evaluated
_DERIVED: Final = "n_derived_from"
_DERIVATION: Final = "runtime * samples_per_second"


def latest_evals(run: RunSeries) -> list[EvalPoint]:
    """Return the newest evaluation of every split, train first, then held-out splits, then others."""
    newest = {event.split: event for event in run.evals}
    order = {split: place for place, split in enumerate(("train", *_HELD_OUT))}
    splits = sorted(newest, key=lambda split: (order.get(split, len(order)), split))
    return [_with_count(EvalPoint(split=s, step=newest[s].step, metrics=newest[s].metrics)) for s in splits]


def _with_count(point: EvalPoint) -> EvalPoint:
    """Return the evaluation with its number of examples, worked out where a log has only its speed."""
    metrics = point.metrics
    rate, runtime = (number_in(metrics.extras, key) for key in ("samples_per_second", "runtime"))
    if metrics.n is not None or rate is None or runtime is None or not 0.5 <= rate * runtime < MAX_INT:  # noqa: PLR2004  # rounds to one example at least
        return point
    extras = {**metrics.extras, _DERIVED: _DERIVATION}
    return msgspec.structs.replace(
        point, metrics=msgspec.structs.replace(metrics, n=round(rate * runtime), extras=extras)
    )


def derived_notes(evals: Sequence[EvalPoint]) -> list[str]:
    """Return what is to be said of numbers of examples that no log held."""
    counts = [f"{point.split} {point.metrics.n}" for point in evals if _DERIVED in point.metrics.extras]
    return [f"examples per evaluation, derived as {_DERIVATION} (about): {', '.join(counts)}"] if counts else []


def held_out_of(evals: Sequence[EvalPoint]) -> EvalPoint | None:
    """Return the evaluation that stands for held-out data, or None."""
    return next((point for point in evals if point.split != "train"), None)


def gap_of(run: RunSeries, evals: Sequence[EvalPoint]) -> GapReading | None:
    """Return train against held-out, or None where one of them was not measured."""
    held_out = held_out_of(evals)
    if held_out is None or (test := _nats(held_out.metrics)) is None:
        return None
    train = next((point for point in evals if point.split == "train"), None)
    if train is not None and (nats := _nats(train.metrics)) is not None:
        return _reading("train", nats, held_out.split, test, same_step=train.step == held_out.step)
    window = _recent(run, held_out.step)
    if not window:
        return None
    name = f"train rows (mean of {len(window)})"
    return _reading(name, sum(window) / len(window), held_out.split, test, same_step=True)


def _nats(metrics: EvalMetrics) -> float | None:
    """Return the loss, or the logarithm of the perplexity where only that was recorded."""
    if metrics.loss is not None:
        return as_float(metrics.loss)
    if metrics.ppl is None or not as_float(metrics.ppl) > 0.0:
        return None
    return math.log(as_float(metrics.ppl))


def _recent(run: RunSeries, step: int | None) -> list[float]:
    """Return the finite training losses logged last up to a step."""
    backwards = zip(reversed(run.steps), reversed(run.losses), strict=True)
    wanted = (loss for s, loss in backwards if (step is None or s <= step) and math.isfinite(loss))
    return list(islice(wanted, _WINDOW))


def _reading(train_split: str, train: float, test_split: str, test: float, *, same_step: bool) -> GapReading:
    nats = test - train
    try:
        ratio = math.exp(nats)
    except OverflowError:
        ratio = math.inf
    return GapReading(
        train_split=train_split,
        test_split=test_split,
        ratio=real(ratio),
        nats=real(nats),
        same_step=same_step,
    )


def number_in(values: Mapping[str, Json], key: str) -> float | None:
    """Return the number under a key, or None where there is none."""
    value = values.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
