"""The facts of a run that the rules judge, from its series: what was measured of its own model, by rising step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from operator import lt
from typing import Final

import msgspec

from gradience.rules.log.facts import DEFAULT_GAP, RunFacts, Series, Signal
from gradience.rules.log.signals import COMPONENTS, SIGNALS
from gradience.schema import MAX_INT, number_in
from gradience.schema.events import ConfigSnapshot
from gradience.schema.reports import BadLine, EvalPoint
from gradience.telemetry.series import Column, RunSeries

_HELD_OUT: Final = ("test", "eval", "validation", "valid", "val", "dev")
_DERIVED: Final = "n_derived_from"
_DERIVATION: Final = "runtime * samples_per_second"
_FEW_EXAMPLES: Final = 200  # under it, a difference of a few points is chance, so the count is told
_CLASSES: Final = {  # number of classes of a data set, used if the log does not state it
    "sst2": 2,
    "cola": 2,
    "mrpc": 2,
    "qqp": 2,
    "qnli": 2,
    "rte": 2,
    "wnli": 2,
    "mnli": 3,
    "imdb": 2,
    "ag_news": 4,
}


def facts_of(
    run: RunSeries, *, gap_threshold: float = DEFAULT_GAP, issues: Sequence[BadLine] = (), issues_total: int = 0
) -> RunFacts:
    """The facts of one run of a log, as the rules judge them: see `RunFacts`."""
    config = run.config or ConfigSnapshot()
    evals = [point for point in latest_evals(run) if not _is_foreign(run, point.step)]
    record = run.record
    audit, data = run.latest_metrics.get("lora_audit"), run.latest_metrics.get("data")
    chosen = run.latest_metrics.get("selection")
    return RunFacts(
        series=Series(
            run.steps, run.losses, run.grad_norms, run.rates, frozenset(run.lost_norms), not record.out_of_order
        ),
        evals=evals,
        held_out=held_out_of(evals),
        num_labels=_num_labels(config),
        epoch=run.last_epoch,
        audit=audit.metrics if audit else None,
        data=data.metrics if data else None,
        status=run.end.status if run.end else "no_run_end",
        status_reason=run.end.reason if run.end else None,
        last_step=run.last_step,
        issues=issues,
        issues_total=issues_total,
        gap_threshold=gap_threshold,
        config=config,
        logged=frozenset(run.columns),
        signals={name: by_step(run.columns[name]) for name in _signals_of(run) if run.columns[name].steps},
        history=[event for event in run.evals if not _is_foreign(run, event.step)],
        record=record,
        wirings=run.wirings,
        fed=run.fed,
        fed_before=run.fed_before,
        paces=run.paces,
        chosen=chosen.metrics if chosen else {},
    )


def _is_foreign(run: RunSeries, step: int | None) -> bool:
    """Whether an evaluation was of another model, or of this one without its adapter: it tells nothing of the run.

    An evaluation that called the same as the one before has no event of its own.
    """
    seen = [at.evaluation for at in run.wirings if at.evaluation is not None and (at.step or 0) <= (step or 0)]
    return bool(seen) and (not seen[-1].called or seen[-1].adapted is False)


def _signals_of(run: RunSeries) -> list[str]:
    """The columns of rewards and the like that a run has, in the order of a report, then the reward's functions."""
    known = [name for name in SIGNALS if name in run.columns]
    return [*known, *sorted(name for name in run.columns if name.startswith(COMPONENTS) and name not in SIGNALS)]


def by_step(column: Column) -> Signal:
    """A column sorted by step; of a step that was logged again, the last value."""
    steps, values = column.steps, column.values
    if all(map(lt, steps, islice(steps, 1, None))):
        return Signal(steps, values)
    last = dict(zip(steps, values, strict=True))
    return Signal(sorted(last), [last[step] for step in sorted(last)])


def _num_labels(config: ConfigSnapshot) -> int | None:
    if config.num_labels:
        return config.num_labels
    recorded = config.extras.get("num_labels")
    if isinstance(recorded, int):
        return recorded
    name = (config.dataset_name or "").lower().replace("-", "_").rsplit("/", 1)[-1]
    return _CLASSES.get(name)


def latest_evals(run: RunSeries) -> list[EvalPoint]:
    """The newest evaluation of every split, train first, then held-out splits, then others."""
    newest = {event.split: event for event in run.evals}
    order = {split: place for place, split in enumerate(("train", *_HELD_OUT))}
    splits = sorted(newest, key=lambda split: (order.get(split, len(order)), split))
    return [_with_count(EvalPoint(split=s, step=newest[s].step, metrics=newest[s].metrics)) for s in splits]


def _with_count(point: EvalPoint) -> EvalPoint:
    """The evaluation with its number of examples, computed from runtime and speed if the log lacks it."""
    metrics = point.metrics
    rate, runtime = (number_in(metrics.extras, key) for key in ("samples_per_second", "runtime"))
    if metrics.n is not None or rate is None or runtime is None or not 0.5 < rate * runtime < MAX_INT:  # noqa: PLR2004  # rounds to one example at least
        return point
    extras = {**metrics.extras, _DERIVED: _DERIVATION}
    counted = msgspec.structs.replace(metrics, n=round(rate * runtime), extras=extras)
    return msgspec.structs.replace(point, metrics=counted)


def derived_notes(evals: Sequence[EvalPoint]) -> list[str]:
    """A note on the numbers of examples that were computed from runtime and speed, if they are few."""
    few = [point for point in evals if _DERIVED in point.metrics.extras and (point.metrics.n or 0) < _FEW_EXAMPLES]
    counts = [f"{point.split} {point.metrics.n}" for point in few]
    return [f"examples per evaluation, derived as {_DERIVATION} (about): {', '.join(counts)}"] if counts else []


def held_out_of(evals: Sequence[EvalPoint]) -> EvalPoint | None:
    """The evaluation that stands for held-out data: the first that is not of the train split; or None."""
    return next((point for point in evals if point.split != "train"), None)
