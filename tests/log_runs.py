"""Constructed runs, as facts from their logs, in pairs with one run on either side of a rule's threshold.

`EDGES` lists for each pair the rule, the number that decides, and the two runs. The verdicts are in the golden file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from msgspec.structs import replace as replace_struct

from gradience.rules.log import detect
from gradience.rules.log.facts import RunFacts, Series, Signal
from gradience.schema import ConfigSnapshot, EvalMetrics, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.schema.events import Eval
from gradience.schema.reports import BadLine, EvalPoint
from gradience.telemetry.series import LogRecord

NAN: Final = math.nan


class Edge(NamedTuple):
    """Two runs that differ in one number, one on either side of the value where the rule's answer changes."""

    rule: str
    number: str
    below: float
    above: float
    make: Callable[[Any], RunFacts]

    @property
    def names(self) -> tuple[str, str]:
        """The names of both runs in the golden file."""
        return tuple(f"{self.rule} {self.number} {x:g}" for x in (self.below, self.above))  # type: ignore[return-value]


def field_logs() -> list[Path]:
    """The logs that are drawn from published runs."""
    return sorted((Path(__file__).parent / "golden" / "field").glob("*.json"))


def run(
    losses: Sequence[float] = (),
    *,
    norms: Sequence[float] | None = None,
    rates: Sequence[float] | float = 2e-4,
    held_out: Sequence[float] = (),
    every: int = 1,
    accuracy: float | None = None,
    n: int | None = None,
    lost: Sequence[int] = (),
    kind: str | None = None,
    lr: float | None = None,
    columns: dict[str, Sequence[float]] | None = None,
    **more: Any,
) -> RunFacts:
    """A run with these rows. Its evaluations are spread over the run."""
    rows = len(losses) or max(map(len, (columns or {"": ()}).values()))
    losses = losses or [0.69 - 0.003 * i for i in range(rows)]
    apart = max(1, rows // max(1, len(held_out))) * every
    history = [evaluation(apart * (i + 1), loss, accuracy=accuracy, n=n) for i, loss in enumerate(held_out)]
    steps = [every * (i + 1) for i in range(rows)]
    training = TrainingSnapshot(extras={"trainer": kind} if kind else {}, **more.pop("training", {}))
    return RunFacts(
        series=Series(
            steps,
            list(losses),
            [1.0] * rows if norms is None else list(norms),
            [rates] * rows if isinstance(rates, float) else list(rates),
            frozenset(lost),
        ),
        history=history,
        held_out=EvalPoint(split="eval", step=history[-1].step, metrics=history[-1].metrics) if history else None,
        last_step=rows * every,
        status="ok",
        config=ConfigSnapshot(training=training, optimizer=OptimizerSnapshot(lr=lr)),
        logged=frozenset(columns or ()),
        signals={name: Signal(steps[-len(values) :], list(values)) for name, values in (columns or {}).items()},
        **more,
    )


def evaluation(step: int, loss: Any = None, split: str = "eval", **metrics: Any) -> Eval:
    """An evaluation. Metrics other than the loss, `accuracy` and `n` are extras."""
    known = {name: metrics.pop(name) for name in ("accuracy", "n") if name in metrics}
    measured = EvalMetrics(loss=loss, **known, extras=metrics)
    return Eval(schema="gradience.vnext.telemetry/v1", ts=None, run_id="r", step=step, split=split, metrics=measured)


def with_history(*events: Eval, losses: Sequence[float] | None = None, **more: Any) -> RunFacts:
    """A run with these evaluations, the last of which is its held-out result."""
    shown = EvalPoint(split=events[-1].split, step=events[-1].step, metrics=events[-1].metrics)
    return replace(run(losses or FALL), history=events, held_out=shown, **more)


def said(rule: str, facts: RunFacts) -> Any:
    """The finding of a rule, or the reason why the rule was not judged."""
    verdict = detect(facts)
    reasons = [item.reason for item in verdict.not_run if item.id == rule]
    return next((found for found in verdict.findings if found.id == rule), reasons[0] if reasons else None)


def with_row(values: Sequence[float], *at: int, by: float) -> list[float]:
    """The values, with those of some rows multiplied by a factor."""
    return [value * (by if i in at else 1.0) for i, value in enumerate(values)]


def swings(n: int, size: float) -> list[float]:
    """Values that alternate above and below 1, by the same distance on a log scale."""
    return [math.exp(size if i % 2 else -size) for i in range(n)]


def times(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """The products, value by value."""
    return [a * b for a, b in zip(values, others, strict=True)]


FLAT: Final = [2.0 + 0.0002 * (i % 3) for i in range(60)]
FALL: Final = [2.0 - 0.01 * i for i in range(60)]


def line(n: int, first: float, last: float) -> list[float]:
    """Values on a straight line from the first to the last."""
    return [first + (last - first) * i / (n - 1) for i in range(n)]


# --- NUM102, NUM131: numbers -------------------------------------------------------------------------------------


def _masked(share: float) -> RunFacts:
    norms = [1.0] * 60
    norms[30] = NAN
    return run(with_row(FLAT, 30, by=1.0 - share), norms=norms, lost=[31])


def _skipped(bad: Sequence[int], frozen: Sequence[int], n: int = 40) -> RunFacts:
    rates, rate = [], 2e-4
    for row in range(n):
        rates.append(rate)
        rate -= 0.0 if row in frozen else 1e-6
    norms = [NAN if row in bad else 1.0 for row in range(n)]
    return run([4.0 * 0.97**i for i in range(n)], rates=rates, norms=norms, lost=[row + 1 for row in bad])


def _half_still(share: float) -> RunFacts:
    """A run of two-step rows, where one row's rate moved by a share of the usual change."""
    rates, rate = [], 2e-4
    for row in range(40):
        rates.append(rate)
        rate -= 2e-6 * (share if row == 20 else 1.0)
    norms = [NAN if row == 20 else 1.0 for row in range(40)]
    return run([4.0 * 0.97**i for i in range(40)], rates=rates, norms=norms, lost=[42], every=2)


_PAIRS: Final = [*(row for row in range(40) if row % 4 < 2), 2]  # half of 40 rows, and one more


NUMBERS: Final = [
    Edge("NUM102", "rounds_to_zero", 0.0495, 0.0505, lambda x: run([x] * 20 + [0.0] * 2, norms=[NAN] * 22)),
    Edge("NUM102", "masked_fall", 0.148, 0.152, _masked),
    Edge(
        "NUM131",
        "skips_shown",
        7,
        10,
        lambda x: _skipped(range(5, 5 + 4 * x, 4), range(5, 21 if x < 10 else 29, 4), 60),
    ),
    Edge("NUM131", "stood_still", 0.645, 0.655, _half_still),
    Edge("NUM131", "skips_many", 20, 21, lambda x: _skipped(_PAIRS[:x], _PAIRS[:x])),
]

# --- DIV103, DIV104, SCL129: levels ------------------------------------------------------------------------------


def _noisy(d: float) -> RunFacts:
    return run([3.3 if i == 40 else 1.0 + d * (i % 2) for i in range(60)])


def _late(noise: float, n: int = 40, start: float = 1.0, end: float = 1.1) -> RunFacts:
    third = n // 3
    return run(times([*line(third, start, 0.6), *[0.6] * third, *[end] * (n - 2 * third)], swings(n, noise)))


LEVELS: Final = [
    Edge("DIV103", "spike_k", 1.295, 1.305, lambda x: run(with_row(FLAT, 40, by=x))),
    Edge(
        "DIV103",
        "spike_start",
        0.099,
        0.101,
        lambda x: run([2.0] * 3 + with_row([0.2] * 57, 40, by=1 + 5 * x)),
    ),
    Edge("DIV103", "spike_rows", 2, 3, lambda x: run(with_row(FLAT, *range(40, 40 + x), by=2.0))),
    Edge("DIV103", "noisy", 0.33, 0.337, _noisy),
    Edge("DIV103", "many_rows", 19, 20, lambda x: run(with_row(FLAT[:x], 12, by=1.35))),
    Edge("DIV103", "some_rows", 7, 8, lambda x: run(with_row(FLAT[:x], 6, by=3.0))),
    Edge("DIV103", "short_spike", 0.45, 0.47, lambda x: run(with_row(swings(14, 0.025), 9, by=math.exp(x)))),
    Edge("DIV103", "short_ratio", 1.49, 1.51, lambda x: run(with_row(FLAT[:12], 8, by=x))),
    Edge("DIV104", "diverged_ratio", 1.49, 1.51, lambda x: run([1.0] * 16 + [x] * 4)),
    Edge("DIV104", "lost_level", 0.049, 0.051, lambda x: run([*line(20, 0.06, 0.001), *[0.001] * 20, *[x] * 20])),
    Edge("DIV104", "at_once", 1.99, 2.01, lambda x: run([1.0, *[x] * 9])),
    Edge(
        "DIV104",
        "diverged_errors",
        0.0714,
        0.0743,
        lambda x: run(times([1.0] * 16 + [math.exp(0.6)] * 4, swings(20, x))),
    ),
    Edge("DIV104", "absurd_rate", 0.0099, 0.0101, lambda x: run([1.0, *[1.4] * 9], rates=x)),
    Edge("DIV104", "absurd_level", 1.195, 1.205, lambda x: run([1.0, 1.4, 1.4, x, *[1.4] * 6], rates=0.05)),
    Edge("DIV104", "absurd_rise", 1.295, 1.305, lambda x: run([1.0, *[x] * 9], rates=0.05)),
    Edge("DIV104", "diverged_noise", 0.0465, 0.0477, _late),
    Edge("DIV104", "exploded", 1.98, 2.02, lambda x: run([1.0] * 4 + [x] * 4 + [0.98] * 12)),
    Edge("DIV104", "no_lower", 0.965, 0.975, lambda x: run([1.0] * 4 + [3.0] * 4 + [x] * 12)),
    Edge("DIV104", "lost_share", 0.49, 0.51, lambda x: run([*line(15, 3.0, 1.0), *[1.0] * 5, *[1.0 + 2.0 * x] * 10])),
    Edge(
        "DIV104", "window_share", 100, 102, lambda x: run([*line(30, 1.0, 0.5), *[0.5] * (x - 40), *line(10, 0.6, 1.5)])
    ),
    Edge("DIV104", "diverged_rows", 2, 3, lambda x: run([1.6, 11.0, 11.0][:x])),
    Edge(
        "SCL129",
        "scale_ratio",
        2.98,
        3.02,
        lambda x: run([x * h for h in (2.0, 1.6, 1.4, 1.3) for _ in range(4)], held_out=[2.0, 1.6, 1.4, 1.3]),
    ),
    Edge("SCL129", "scale_nats", 1.48, 1.5, lambda x: run([x] * 12, held_out=[0.49] * 3)),
    Edge("SCL129", "ln_vocabulary", 12.47, 12.48, lambda x: run([x, 10.0, 4.0, 3.0])),
    Edge("SCL129", "second_row", 5.0, 5.1, lambda x: run([12.6, x, 4.0, 3.0])),
]

# --- NOL106, PLT105: learning ------------------------------------------------------------------------------------


def _still_held(fall: float) -> RunFacts:
    return run(line(40, 2.0, 2.0 * (1.0 - 1.12 * fall)), held_out=[2.0, 2.0, 2.0])


def _two_levels(fall: float) -> RunFacts:
    return run([2.0] * 8 + [2.0 * (1.0 - fall)] * 32)


def _slope(fall: float) -> RunFacts:
    losses = line(40, 2.0, 2.0 * (1.0 - fall))
    return run([losses[29]] * 8 + losses[8:])


def _margins(mean: float) -> RunFacts:
    columns = {"rewards/margins": [mean + (0.5 if i % 2 else -0.5) for i in range(40)]}
    return run([0.69] * 40, kind="preference", columns=columns)


def _plateau(fall: float, noise: float = 0.0, n: int = 60) -> RunFacts:
    head, tail = n - math.ceil(0.3 * n), math.ceil(0.3 * n)
    return run(times([*line(head, 2.0, 1.0), *line(tail, 1.0, 1.0 - fall)], swings(n, noise)))


# rows in an order that chance makes with the p named, by `mann_kendall`, `trend_of` or `moves`
_ORDERS: Final = {
    0.00955: [10, 11, 9, 4, 6, 5, 7, 8, 1, 0, 2, 3],
    0.01085: [9, 10, 11, 7, 5, 6, 8, 1, 0, 3, 2, 4],
    0.0473: [11, 10, 8, 1, 7, 2, 5, 3, 6, 9, 0, 4],
    0.0503: [11, 8, 9, 6, 5, 2, 1, 3, 10, 4, 0, 7],
    0.00097: [11, 9, 10, 5, 7, 8, 3, 4, 1, 6, 2, 0],
    0.00106: [12, 11, 7, 8, 6, 9, 4, 3, 10, 5, 2, 1, 0],
    0.00964: [13, 9, 11, 10, 12, 3, 7, 2, 5, 1, 0, 6, 8, 4],
    0.01049: [10, 11, 8, 2, 7, 9, 3, 4, 1, 6, 5, 0],
}


def _ordered(p: float, start: float = 1.8, step: float = 0.02) -> list[float]:
    return [start + step * place for place in _ORDERS[p]]


def _scattered(n: int, size: float) -> list[float]:
    """Values about 2 in an order of their own."""
    return [2.0 + size * math.sin(i * i) for i in range(n)]


LEARNING: Final = [
    Edge("NOL106", "alpha", 0.00955, 0.01085, lambda p: run(_ordered(p))),
    Edge("NOL106", "alpha_moved", 0.0473, 0.0503, lambda p: run(_ordered(p), norms=line(12, 1.0, 9.0))),
    Edge("NOL106", "moved", 0.00097, 0.00955, lambda p: run(_ordered(p), held_out=[2.0, 2.0, 2.0])),
    Edge("NOL106", "moved_norms", 0.00097, 0.00106, lambda p: run(FLAT[: len(_ORDERS[p])], norms=_ordered(p))),
    Edge("NOL106", "held_still", 1.9939, 1.9941, lambda x: run([2.0, 2.1, 1.9, 2.0] * 3, held_out=[2.0, x])),
    Edge("NOL106", "held_rises", 2.039, 2.041, lambda x: run([2.0, 2.1, 1.9, 2.0] * 3, held_out=[2.0, 2.0, x])),
    Edge("NOL106", "clear_fall", 0.19, 0.21, lambda x: run([2.0, 1.9, 2.0 - 2.0 * x], held_out=[1.0] * 3)),
    Edge("NOL106", "sure_fall", 0.0497, 0.051, _still_held),
    Edge("NOL106", "tiny_rate", 0.99e-7, 1.01e-7, lambda x: run([2.0, 1.99, 2.01, 2.0], rates=x)),
    Edge("NOL106", "tiny_fall", 0.098, 0.102, lambda x: run([2.0, 2.05, 2.0, 2.05, 2.0 * (1.0 - x)], rates=5e-8)),
    Edge("NOL106", "still", 0.0095, 0.0105, _two_levels),
    Edge("NOL106", "still_slope", 0.0193, 0.0201, _slope),
    Edge("NOL106", "still_bound", 0.028, 0.0295, lambda x: run(swings(40, x))),
    Edge("NOL106", "still_rows", 7, 8, lambda x: run([2.0, 2.001, 1.999, 2.0, 2.001, 2.0, 1.999, 2.001][:x])),
    Edge("NOL106", "margin_grows", 0.225, 0.234, _margins),
    Edge("NOL106", "at_ln_k", 0.0095, 0.0105, lambda x: run([math.log(2) * (1.0 + x)] * 20, num_labels=2)),
    Edge("NOL106", "least_fall", 0.0222, 0.023, lambda x: run(line(40, 2.0, 2.0 * (1.0 - x)))),
    Edge(
        "NOL106", "eval_noise", 0.0001, 0.05, lambda x: run(FLAT[:24], held_out=times(line(8, 2.0, 1.9), swings(8, x)))
    ),
    Edge("PLT105", "flat", 0.04, 0.042, lambda x: _plateau(0.0, x, 30)),
    Edge("PLT105", "still_falls", 0.0068, 0.0072, _plateau),
    Edge("PLT105", "flat_bound", 0.01, 0.1, lambda x: run(line(20, 4.0, 2.0) + _scattered(40, x))),
    Edge("PLT105", "rises", 0.049, 0.051, lambda x: run([*line(20, 4.0, 2.0), *[2.0] * 20, *[2.0 + 2.0 * x] * 20])),
    Edge("PLT105", "flat_rows", 7, 8, lambda x: run([2.0, *FLAT[:7]][:x])),
    Edge("PLT105", "flat_points", 16, 17, lambda x: run(line(x - 6, 4.0, 2.1) + [2.0] * 6)),
    Edge("PLT105", "fitted", 0.0195, 0.0205, lambda x: run(line(20, 1.0, x) + [x] * 40)),
    Edge(
        "PLT105",
        "idle_rate",
        0.099,
        0.101,
        lambda x: run(line(20, 4.0, 2.0) + [2.0] * 20, rates=[2e-4] * 20 + [2e-4 * x] * 20),
    ),
]

# --- GRD107, GRD108, LRS109: gradients and the learning rate -----------------------------------------------------


def _jump(*at: int, by: float, answer: float = 1.0) -> RunFacts:
    return run(with_row(FLAT, 41, by=answer), norms=with_row([1.0] * 60, *at, by=by))


def _rates(*levels: float) -> RunFacts:
    return run(FALL, rates=[2e-4 * level for level in levels for _ in range(60 // len(levels))])


def _solved(accuracy: float, loss: float) -> RunFacts:
    """No gradient late on, at a low training loss."""
    norms = [1.0] * 20 + [1e-6] * 40
    return run([0.5] * 20 + [loss] * 40, norms=norms, held_out=[0.1, 0.1], accuracy=accuracy)


def _lora(facts: RunFacts) -> RunFacts:
    return replace(facts, config=replace_struct(facts.config, lora=LoraSnapshot(r=8)))


def _stopped(steps: int) -> RunFacts:
    """A run of 60 planned steps that stopped before, its rate still rising."""
    rates = line(60, 1e-6, 1e-4)[:steps]
    return replace(run(FALL[:steps], rates=rates, training={"max_steps": 60}), status="unknown")


def _from_step(first: int, planned: int) -> RunFacts:
    """A constant rate far under the configured one, logged from a step on."""
    facts = run(FALL, rates=1e-5, lr=2e-4, training={"max_steps": planned})
    steps = [first + 2 * row for row in range(60)]
    return replace(facts, series=replace(facts.series, steps=steps))


GRADIENTS: Final = [
    Edge("GRD107", "gradient_k", 7.3, 7.5, lambda x: _jump(40, 41, 42, by=x)),
    Edge("GRD107", "gradient_ratio", 9.95, 10.05, lambda x: _jump(*range(40, 60), by=x)),
    Edge("GRD107", "lasting", 2, 3, lambda x: _jump(*range(40, 40 + x), by=100.0)),
    Edge("GRD107", "loss_after", 1.99, 2.01, lambda x: run([*FLAT[:40], *[x] * 20], norms=[1.0] * 40 + [20.0] * 20)),
    Edge("GRD107", "jump_rows", 7, 8, lambda x: run(FALL[:x])),
    Edge("GRD108", "vanished_ratio", 0.98e-3, 1.02e-3, lambda x: _jump(*range(30, 36), by=x)),
    Edge("GRD108", "vanished_rows", 4, 5, lambda x: _jump(*range(30, 30 + x), by=1e-6)),
    Edge(
        "GRD108",
        "memorized",
        0.0098,
        0.0102,
        lambda x: run([2.0] * 20 + [2.0 * x] * 40, norms=[1.0] * 20 + [1e-6] * 40),
    ),
    Edge(
        "GRD108",
        "memorized_in_most_rows",
        30,
        50,
        lambda x: run([2.0] * x + [0.002] * (60 - x), norms=[1.0] * 20 + [1e-6] * 40),
    ),
    Edge("GRD108", "solved", 0.96, 0.97, lambda x: _solved(x, 0.01)),
    Edge("GRD108", "fitted_loss", 0.0199, 0.0201, lambda x: _solved(0.99, x)),
    Edge("LRS109", "zero_rate_rows", 2, 3, lambda x: run(FALL, rates=[0.0] * x + [2e-4] * (60 - x))),
    Edge("LRS109", "zero_tail_share", 10, 11, lambda x: run(line(100, 2.0, 1.0), rates=[2e-4] * (100 - x) + [0.0] * x)),
    Edge("LRS109", "peak_share", 0.99e-4, 1.01e-4, lambda x: run(FALL, rates=x, lr=2e-4)),
    Edge("LRS109", "decayed", 0.49, 0.51, lambda x: _rates(1.0, x, 1.03)),
    Edge("LRS109", "risen", 0.59, 0.61, lambda x: _rates(1.0, 0.3, x)),
    Edge("LRS109", "a_tenth_of_the_highest", 0.149, 0.151, lambda x: _rates(1.0, 0.05, x)),
    Edge("LRS109", "high_rate", 0.99e-2, 1.01e-2, lambda x: _lora(run(FALL, rates=x))),
    Edge("LRS109", "peak_missed", 6, 7, lambda x: _from_step(x, 60)),
    Edge("LRS133", "almost", 53, 54, _stopped),
    Edge("LRS133", "rising", 0, 1, lambda x: run(FALL, rates=line(60, 1e-6, 1e-4)[:: 1 if x else -1])),
    Edge("LRS109", "times", 1, 2, lambda x: _rates(1.0, 0.1, 0.9, 0.1, 0.9 if x > 1 else 0.1)),
]

# --- OVF110, GAP111, SML113, UND126, CHN112: held-out data -------------------------------------------------------


def _evaluated(*losses: float, noise: float = 0.0) -> RunFacts:
    return run(FALL, held_out=times(losses, swings(len(losses), noise)), training={"save_steps": 25})


def _classified(accuracy: float, loss: float, n: int | None = 400, classes: int | None = 2) -> RunFacts:
    return run(FALL, held_out=[1.4, loss], accuracy=accuracy, n=n, num_labels=classes)


def _gap(ratio: float, *, epochs: float | None = 3.0, train: float = 2.0, **metrics: Any) -> RunFacts:
    """One evaluation, above the last training rows by a ratio of perplexities."""
    losses = [*FALL[:57], *[train] * 3]
    event = evaluation(60, train + math.log(ratio), **metrics)
    return with_history(event, losses=losses, epoch=epochs)


HELD_OUT: Final = [
    Edge("OVF110", "overfit_rise", 0.0195, 0.0205, lambda x: _evaluated(1.5, 1.2, 1.2 * (1 + x), 1.2 * (1 + x))),
    Edge("OVF110", "overfit_much", 0.098, 0.102, lambda x: _evaluated(1.5, 1.2, 1.25, 1.2 * (1 + x))),
    Edge("OVF110", "overfit_evals", 2, 3, lambda x: _evaluated(*[1.5, 1.2, 1.3, 1.35][: x + 1])),
    Edge("OVF110", "least_evals", 2, 3, lambda x: _evaluated(*[1.2, 1.3, 1.35][:x])),
    Edge(
        "OVF110", "eval_noise", 0.0095, 0.0099, lambda x: _evaluated(1.5, 1.4, 1.3, 1.2, 1.25, 1.3, 1.32, 1.34, noise=x)
    ),
    Edge("GAP111", "loss_gap", 1.49, 1.51, _gap),
    Edge("GAP111", "one_epoch", 1.0, 1.1, lambda x: _gap(2.0, epochs=x)),
    Edge("GAP111", "gap_times", 1.99, 2.01, lambda x: _gap(math.exp(0.2 * (x - 1.0)), train=0.2)),
    Edge("GAP111", "gap_nats", 0.099, 0.101, lambda x: _gap(math.exp(x), train=0.01)),
    Edge("GAP111", "a_task_metric_decides", 0, 1, lambda x: _gap(2.0, **({"f1": 0.5} if x else {}))),
    Edge("EVL134", "not_finite", 0, 1, lambda x: with_history(evaluation(60, "NaN" if x else None, runtime=1.0))),
    Edge("EVL134", "values", 0, 1, lambda x: with_history(evaluation(60, runtime=1.0, **({"f1": 0.5} if x else {})))),
    Edge("SML113", "small_eval", 1060, 1075, lambda x: _classified(0.5, 0.3, n=x)),
    Edge("UND126", "unfinished_fall", 0.8905, 0.8915, lambda x: _evaluated(1.0, 0.9, x)),
    Edge("UND126", "eval_noise", 0.0265, 0.0274, lambda x: _evaluated(1.4, 1.3, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7, noise=x)),
    Edge("UND126", "least_evals", 2, 3, lambda x: _evaluated(*[1.0, 0.9, 0.8][:x])),
    Edge("CHN112", "chance_z", 0.5405, 0.5415, lambda x: _classified(x, 0.5)),
    Edge("CHN112", "chance_margin", 0.529, 0.531, lambda x: _classified(x, 0.5, n=None)),
    Edge("CHN112", "per_cent", 1.0, 1.5, lambda x: _classified(x, 0.5)),
    Edge(
        "CHN112",
        "chance_loss",
        0.678,
        0.681,
        lambda x: replace(run(FALL, held_out=[0.7, x], num_labels=2), config=ConfigSnapshot(num_labels=2)),
    ),
    Edge("CHN112", "chance_band", 0.2915, 0.293, lambda x: _classified(x, 1.386, classes=None)),
    Edge("CHN112", "chance_band_below", 0.207, 0.2085, lambda x: _classified(x, 1.386, classes=None)),
    Edge("CHN112", "chance_near", 1.413, 1.415, lambda x: _classified(0.25, x, classes=None)),
    Edge("CHN112", "chance_near_below", 1.357, 1.36, lambda x: _classified(0.25, x, classes=None)),
]

# --- REP128, MEM127, LEK132: repetition --------------------------------------------------------------------------


def _epochs(
    drops: Sequence[float],
    rows: int = 40,
    noise: float = 0.0,
    epochs: float | None = None,
    held_out: Sequence[float] = (),
) -> RunFacts:
    """Losses that are constant within each epoch, and fall by a share at its end."""
    level, losses = 2.0, []
    for drop in (*drops, 0.0):
        losses += [level] * rows
        level *= 1.0 - drop
    return run(times(losses, swings(len(losses), noise)), epoch=epochs or len(drops) + 1.0, held_out=held_out)


REPETITION: Final = [
    Edge("REP128", "many_epochs", 19.9, 20.0, lambda x: run(line(20, 2.0, 1.2), epoch=x)),
    Edge("REP128", "surely", 0.198, 0.202, lambda x: run([2.0, *[x] * 11], epoch=30.0)),
    Edge("REP128", "some_epochs", 9.9, 10.0, lambda x: run([2.0, *[0.9] * 11], epoch=x)),
    Edge("REP128", "some_level", 0.99, 1.01, lambda x: run([2.0, *[x] * 11], epoch=12.0)),
    Edge("REP128", "some_level_nats", 0.495, 0.505, lambda x: run([0.6, *[x] * 11], epoch=12.0)),
    Edge("REP128", "few_epochs", 3.5, 3.6, lambda x: run([2.0, *[0.19] * 11], epoch=x)),
    Edge("REP128", "few_level", 0.198, 0.202, lambda x: run([2.0, *[x] * 11], epoch=6.0)),
    Edge("REP128", "few_level_nats", 0.098, 0.102, lambda x: run([0.6, *[x] * 11], epoch=6.0)),
    Edge("MEM127", "epoch_drop", 0.049, 0.051, lambda x: _epochs([x, x])),
    Edge("MEM127", "epoch_errors", 0.0247, 0.0257, lambda x: _epochs([0.07, 0.07], noise=x)),
    Edge("MEM127", "epoch_share", 30, 32, lambda x: _epochs([0.3], rows=x // 2)),
    Edge("MEM127", "epoch_rows", 7, 8, lambda x: _epochs([0.3], rows=x)),
    Edge("MEM127", "epoch_rest", 1.19, 1.21, lambda x: run([2.0] * 100 + [1.4] * 21, epoch=x)),
    Edge("MEM127", "epochs_many", 3, 4, lambda x: _epochs([*[0.1] * (x - 1), 0.0])),
    Edge("MEM127", "both_fall", 0.149, 0.151, lambda x: _epochs([0.3], held_out=[1.0, 1.0 - x])),
    Edge("MEM127", "seen_as_new", 1.53, 1.55, lambda x: _epochs([0.3], held_out=[1.4, 1.4, x])),
    Edge(
        "MEM127",
        "fell_before",
        0.2,
        0.3,
        lambda x: run([*line(40, 2.0, 2.0 * (1 - x)), *[1.8 * (1 - x)] * 40], epoch=2.0),
    ),
    Edge(
        "LEK132",
        "leak_epochs",
        4.9,
        5.0,
        lambda x: run([2.0, 1.0, 0.5, 0.3, 0.2, 0.2], held_out=[2.0, 0.6, 0.2], epoch=x),
    ),
    Edge("LEK132", "leak_level", 0.298, 0.302, lambda x: run([2.0, *[x] * 9], held_out=[2.0, 0.6, 0.25], epoch=6.0)),
    Edge(
        "LEK132",
        "leak_level_held_out",
        0.298,
        0.302,
        lambda x: run([2.0, *[0.28] * 9], held_out=[1.9, 0.6, x], epoch=6.0),
    ),
    Edge("LEK132", "leak_near", 0.249, 0.251, lambda x: run([2.0, *[0.2] * 9], held_out=[2.0, 0.6, x], epoch=6.0)),
    Edge("LEK132", "least_evals", 2, 3, lambda x: run([2.0, *[0.2] * 9], held_out=[2.0, 0.6, 0.2][-x:], epoch=6.0)),
]

# --- PRF119, PRF120, PRF121, PRF130: preferences -----------------------------------------------------------------


def _pairs(accuracy: float, spread: float, margin: float, width: float, n: int = 40) -> RunFacts:
    """A run with two columns that alternate around a level."""
    columns = {
        "rewards/accuracies": [accuracy + (spread if i % 2 else -spread) for i in range(n)],
        "rewards/margins": [margin + (width if i % 2 else -width) for i in range(n)],
    }
    return run([0.6] * n, kind="preference", columns=columns)


def _chosen(values: Sequence[float]) -> RunFacts:
    return run([0.6] * len(values), kind="preference", columns={"rewards/chosen": values})


def _logps(values: Sequence[float]) -> RunFacts:
    return run([0.6] * len(values), kind="preference", columns={"logps/chosen": values})


def _ties(margins: Sequence[float]) -> RunFacts:
    return run([0.69] * len(margins), kind="preference", columns={"rewards/margins": margins})


def _start(margin: float, step: int = 1) -> RunFacts:
    return run(
        [0.4] * 20, kind="preference", columns={"rewards/margins": [margin + 0.01 * i for i in range(21 - step)]}
    )


PREFERENCE: Final = [
    Edge("PRF119", "separated", 0.549, 0.551, lambda x: _pairs(x, 0.01, 0.0, 0.5)),
    Edge("PRF119", "swapped", 0.449, 0.451, lambda x: _pairs(x, 0.01, -0.1, 0.5)),
    Edge("PRF119", "surely", 0.337, 0.351, lambda x: _pairs(0.51, 0.01, x, 0.5)),
    Edge("PRF119", "separation_error", 0.128, 0.134, lambda x: _pairs(0.5, x, 0.2, 0.5)),
    Edge("PRF119", "separation_error_said", 0.128, 0.134, lambda x: _pairs(0.5, x, 0.0, 0.5)),
    Edge("PRF119", "margin_error", 0.342, 0.356, lambda x: _pairs(0.5, x, 0.0, 0.5)),
    Edge("PRF119", "margin_still", 0.112, 0.117, lambda x: _pairs(0.5, 0.2, x, 0.5)),
    Edge("PRF119", "two_errors", 0.567, 0.589, lambda x: _pairs(x, 0.17, 0.0, 0.5)),
    Edge("PRF119", "separation_rows", 9, 10, lambda x: _pairs(0.5, 0.01, 0.0, 0.5, n=x)),
    Edge("PRF120", "chosen_fall", 0.99, 1.01, lambda x: _chosen([0.0] * 20 + [-x] * 20)),
    Edge(
        "PRF120",
        "chosen_errors",
        0.189,
        0.197,
        lambda x: _chosen([(0.0 if i < 20 else -1.5) + (x if i % 2 else -x) for i in range(40)]),
    ),
    Edge("PRF120", "chosen_rows", 4, 5, lambda x: _chosen([-1.0 * i for i in range(x)])),
    Edge("PRF120", "many_rows", 19, 20, lambda x: _chosen([0.0] * 5 + [-1.0, -3.0] * 4 + [-1.5] * (x - 13))),
    Edge("PRF120", "chosen_nats", -109.9, -110.1, lambda x: _logps([-100.0] * 20 + [x] * 20)),
    Edge("PRF120", "a_tenth", -329.9, -330.1, lambda x: _logps([-300.0] * 20 + [x] * 20)),
    Edge("PRF120", "chosen_most", -149.9, -150.1, lambda x: _logps([-100.0] * 20 + [x] * 20)),
    Edge("PRF140", "tie", 9e-5, 1.1e-4, lambda x: _ties([0.0] * 19 + [x])),
    Edge("PRF140", "few_rows", 2, 3, lambda x: _ties([0.0] * x)),
    Edge("PRF121", "start_margin", 0.49, 0.51, _start),
    Edge("PRF121", "start_margin_below", -0.51, -0.49, _start),
    Edge("PRF121", "start_step", 1, 2, lambda x: _start(1.0, x)),
    Edge(
        "PRF130",
        "saturated_loss",
        0.0195,
        0.0205,
        lambda x: run([0.69] * 6 + [x] * 6, kind="preference", columns={"rewards/margins": [0.0] * 6 + [9.0] * 6}),
    ),
    Edge(
        "PRF130",
        "saturated_margin",
        3.95,
        4.05,
        lambda x: run([0.69] * 6 + [0.01] * 6, kind="preference", columns={"rewards/margins": [0.0] * 6 + [x] * 6}),
    ),
    Edge(
        "PRF130", "few_rows", 2, 3, lambda x: run([0.01] * x, kind="preference", columns={"rewards/margins": [9.0] * x})
    ),
]

# --- RWD122, ZVR123, KLD124, CLP125: rewards ---------------------------------------------------------------------


def _rl(**columns: Sequence[float]) -> RunFacts:
    return run(
        [1e-4] * len(next(iter(columns.values()))),
        kind="rl",
        columns={name.replace("__", "/"): values for name, values in columns.items()},
    )


def _reward(first: float, best: float, last: float, noise: float = 0.0) -> RunFacts:
    levels = [first] * 10 + [best] * 20 + [last] * 10
    return _rl(reward=[level + (noise if i % 2 else -noise) for i, level in enumerate(levels)])


def _risen(factor: float) -> Sequence[float]:
    """A reward that alternates by one and steps up by so many times 7; its standard error is 1.752."""
    return [(1.0 if i % 2 else -1.0) + factor * 7.0 * (i >= 15) for i in range(30)]


REWARDS: Final = [
    Edge("RWD122", "alpha", 0.00964, 0.01049, lambda p: _rl(reward=_ordered(p, 1.0, 0.1))),
    Edge("RWD122", "alpha_rises", 0.00964, 0.01049, lambda p: _rl(reward=[-x for x in _ordered(p, 1.0, 0.1)])),
    Edge("RWD122", "reward_fall", 0.892, 0.908, lambda x: _reward(0.95, 1.0, x)),
    Edge("RWD122", "reward_lost", 0.796, 0.804, lambda x: _reward(0.6, 1.0, x)),
    Edge("RWD122", "reward_errors", 0.0484, 0.0505, lambda x: _reward(0.9, 1.0, 0.7, x)),
    Edge("RWD122", "reward_flat", 0.0323, 0.0336, lambda x: _reward(1.0, 1.0, 1.0, x)),
    Edge("RWD122", "reward_shown", 0.74, 0.76, lambda x: _rl(reward=_risen(x))),
    Edge("RWN139", "null_rows", 10, 11, lambda x: _rl(frac_reward_zero_std=[0.0] * 20, reward=[1.0] * x)),
    Edge("RWN139", "none_at_all", 0, 1, lambda x: _rl(frac_reward_zero_std=[0.0] * 20, reward=[1.0] * x)),
    Edge("ENT135", "collapsed", 0.19, 0.21, lambda x: _rl(entropy=[2.0] * 10 + [x] * 10)),
    Edge("ENT135", "narrowed", 0.49, 0.51, lambda x: _rl(entropy=[2.0] * 10 + [x] * 10)),
    Edge("ENT135", "spread_out", 2.9, 3.1, lambda x: _rl(entropy=[1.0] * 10 + [x] * 10)),
    Edge("ENT135", "random", 1.9, 2.1, lambda x: _rl(entropy=[0.5] * 10 + [x] * 10)),
    Edge("KLD124", "kl_answer", 99.0, 101.0, lambda x: _rl(objective__kl=[1.0] * 20 + [x] * 10)),
    Edge("KLZ138", "kl_none", 0.9e-6, 1.1e-6, lambda x: _rl(frac_reward_zero_std=[0.0] * 20, kl=[0.0] * 19 + [x])),
    Edge("KLZ138", "kl_rows", 4, 5, lambda x: _rl(frac_reward_zero_std=[0.0] * 20, kl=[0.0] * x)),
    Edge("CLF137", "clipped_much", 0.29, 0.31, lambda x: _rl(clip_ratio__region_mean=[x] * 10 + [0.0] * 20)),
    Edge("LEN136", "longer", 19.9, 20.1, lambda x: _rl(completions__mean_length=[10.0] * 10 + [x] * 10)),
    Edge(
        "LEN136",
        "longer_cut",
        14.9,
        15.1,
        lambda x: _rl(completions__mean_length=[10.0] * 10 + [x] * 10, completions__clipped_ratio=[0.5] * 20),
    ),
    Edge("LEN136", "shorter", 4.9, 5.1, lambda x: _rl(completions__mean_length=[10.0] * 10 + [x] * 10)),
    Edge(
        "RAT141",
        "rate_of_weights",
        0.049,
        0.05,
        lambda x: run([1e-4] * 9, kind="rl", rates=x, columns={"reward": FALL[:9]}),
    ),
    Edge("RWD122", "two_errors", 1.043, 1.045, lambda x: _reward(1.0, 1.0, x, 0.02)),
    Edge("RWD122", "many_rows", 19, 20, lambda x: _rl(reward=([1.0] * 8 + [0.3, 0.5] * 6)[:x])),
    Edge("RWD122", "few_rows", 2, 3, lambda x: _rl(reward=[1.0] * x)),
    Edge("ZVR123", "zero_groups", 0.49, 0.51, lambda x: _rl(frac_reward_zero_std=[0.1] * 20 + [x] * 10)),
    Edge("ZVR123", "zero_groups_most", 0.89, 0.91, lambda x: _rl(frac_reward_zero_std=[0.1] * 20 + [x] * 10)),
    Edge("ZVR123", "few_rows", 2, 3, lambda x: _rl(frac_reward_zero_std=[0.95] * x)),
    Edge("KLD124", "kl_late", 0.99, 1.01, lambda x: _rl(kl=[0.1] * 20 + [x] * 10)),
    Edge("KLD124", "kl_row", 9.9, 10.1, lambda x: _rl(kl=[0.1] * 10 + [x] + [0.1] * 10)),
    Edge("CLP125", "cut_off", 0.49, 0.51, lambda x: _rl(completions__clipped_ratio=[0.1] * 20 + [x] * 10)),
    Edge(
        "CLP125",
        "zero_groups_also",
        0.295,
        0.305,
        lambda x: _rl(completions__clipped_ratio=[0.8] * 9, frac_reward_zero_std=[x] * 9),
    ),
]

# --- RES116, DUP117, GAP118, CMP213, TYP214, UTL204: the log itself, and the audit in it -------------------------


def _replayed(apart: float, rows: int = 5) -> RunFacts:
    replaced = [(step, FALL[step - 1] / (1.0 + apart)) for step in range(20, 20 + rows)]
    return run(FALL, record=LogRecord({"a", "b"}, [19], replaced))


def _types(energy: float, params: float) -> RunFacts:
    groups = {
        "attn": {"n": 8, "params": 1000 - params, "energy_share": 1 - energy},
        "mlp": {"n": 6, "params": params, "energy_share": energy},
    }
    return _audited(by_type=groups)


def _audited(**more: Any) -> RunFacts:
    module = {"name": "q", "module_type": "attn", "r": 16, "frobenius_norm": 2.0}
    ranks = {"energy_rank_90": 1, "energy_rank_95": 2, "energy_rank_99": 3}
    audit = {
        "verdict": "trained",
        "utilization_mean": 0.1,
        "energy_rank_90_p50": 1.0,
        "energy_rank_90_p90": 2.0,
        "suggested_r_global_median": 1,
        "suggested_r_global_90": 2,
        "modules": [{**module, **ranks}, {**module, "name": "v", "frobenius_norm": 1.0, "energy_rank_90": 8}],
        **more,
    }
    return run(FALL, audit=audit, utilization_mean=audit["utilization_mean"])


def _of_lines(*torn: bool) -> RunFacts:
    issues = [BadLine(line=9 + n, offset=100 * n, reason="not JSON", torn=each) for n, each in enumerate(torn)]
    return run(FALL, issues=issues, issues_total=len(issues))


def _ended(status: str, *, planned: int | None = None, steps: int = 60) -> RunFacts:
    training = {"max_steps": planned} if planned else {}
    return replace(run(FALL[:steps], training=training), status=status, last_step=steps or None)


RECORD: Final = [
    Edge("TRN115", "torn", 1, 2, lambda x: _of_lines(*[x == 1] * x)),
    Edge("TRN115", "torn_or_not", 0, 1, lambda x: _of_lines(bool(x))),
    Edge("END114", "ended", 0, 1, lambda x: _ended("no_run_end" if x else "error")),
    Edge("END114", "planned", 0, 100, lambda x: _ended("no_run_end", planned=x)),
    Edge("END114", "before_the_first_step", 0, 1, lambda x: _ended("no_run_end", steps=x)),
    Edge("DUP117", "interleaved", 0, 3, lambda x: run(FALL, record=LogRecord(interleaved=x))),
    Edge("RES116", "replayed_again", 0, 1, lambda x: run(FALL, record=LogRecord(resumed_from=[10, 20][: x + 1]))),
    Edge("RES116", "replay_difference", 0.195, 0.205, _replayed),
    Edge("RES116", "replay_rows", 2, 3, lambda x: _replayed(0.5, x)),
    Edge("GAP118", "few_rows", 2, 3, lambda x: run(FALL[:x], every=20)),
    Edge("GAP118", "some_steps", 19, 20, lambda x: run(FALL[:1], every=x)),
    Edge("GAP118", "evaluated", 0, 1, lambda x: run(FALL[:2], every=20, held_out=[2.0] * x)),
    Edge("DUP117", "twice", 0, 1, lambda x: run(FALL, record=LogRecord(duplicates=x, out_of_order=2 * x))),
    Edge("TRN115", "missing", 0, 1, lambda x: run(FALL, record=LogRecord(missing=x))),
    Edge("TYP214", "idle_energy", 0.0098, 0.0102, lambda x: _types(x, 500)),
    Edge("TYP214", "idle_params", 98, 102, lambda x: _types(0.001, x)),
    Edge("CMP213", "rank", 15, 16, lambda x: _audited(suggested_r_global_90=x)),
    Edge("CMP213", "bound", 2, 8, lambda x: _audited(suggested_r_global_90=x)),
    Edge("UTL204", "low_utilization", 0.245, 0.255, lambda x: _audited(utilization_mean=x)),
]
EDGES: Final = [*NUMBERS, *LEVELS, *LEARNING, *GRADIENTS, *HELD_OUT, *REPETITION, *PREFERENCE, *REWARDS, *RECORD]
RUNS: Final[dict[str, RunFacts]] = {
    name: edge.make(x) for edge in EDGES for name, x in zip(edge.names, (edge.below, edge.above), strict=True)
}
# Runs exactly at a threshold, which test whether the bound is inclusive. Their numbers need no logarithm.
AT: Final[dict[str, RunFacts]] = {
    f"{edge.rule} at {edge.number}": edge.make(x)
    for edge in EDGES
    for x in [
        {
            ("PRF120", "chosen_fall"): 1.0,
            ("PRF121", "start_margin"): 0.5,
            ("PRF121", "start_margin_below"): -0.5,
            ("PRF130", "saturated_margin"): 4.0,
            ("PRF119", "separated"): 0.55,
            ("ZVR123", "zero_groups"): 0.5,
            ("ZVR123", "zero_groups_most"): 0.9,
            ("KLD124", "kl_late"): 1.0,
            ("KLD124", "kl_row"): 10.0,
            ("CLP125", "cut_off"): 0.5,
            ("CLP125", "zero_groups_also"): 0.3,
            ("RWD122", "reward_fall"): 0.9,
            ("DIV104", "diverged_ratio"): 1.5,
            ("DIV104", "at_once"): 2.0,
            ("DIV104", "absurd_rate"): 0.01,
            ("DIV104", "absurd_rise"): 1.3,
            ("DIV104", "exploded"): 2.0,
            ("SCL129", "second_row"): 12.6 * 0.4,
            ("NOL106", "tiny_rate"): 1e-7,
            ("GRD107", "gradient_ratio"): 10.0,
            ("GRD108", "vanished_ratio"): 1e-3,
            ("LRS109", "peak_share"): 1e-4,
            ("LRS109", "decayed"): 0.5,
            ("OVF110", "overfit_rise"): 0.02,
            ("GAP111", "loss_gap"): 1.5,
            ("CHN112", "chance_margin"): 0.53,
            ("REP128", "surely"): 0.2,
            ("MEM127", "epoch_drop"): 0.05,
            ("TYP214", "idle_energy"): 0.01,
            ("TYP214", "idle_params"): 100,
            ("UTL204", "low_utilization"): 0.25,
        }.get((edge.rule, edge.number))
    ]
    if x is not None
}
