"""Random runs, which combine shapes of losses, gradient norms, learning rates, evaluations and columns.

`log_runs` has one run on either side of each threshold. The random runs vary everything else: positions, lengths,
orders and combinations. The verdicts on them are pinned in `golden/numbers_drawn.json`. After an intended change,
`python tests/drawn_runs.py` writes the file again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from log_runs import line, run, swings, times
from said import _of_run, write

from gradience.rules.log.facts import RunFacts, Series
from gradience.telemetry.series import LogRecord

GOLDEN: Final = Path(__file__).parent / "golden" / "numbers_drawn.json"
COUNT: Final = 180
Shape = Callable[[random.Random, int], list[float]]


def _with(values: list[float], rng: random.Random, value: Callable[[float], float], most: int) -> list[float]:
    """The values with one stretch changed, at a random position and of a random length."""
    start, length = rng.randrange(len(values)), rng.randint(1, most)
    return [value(x) if start <= i < start + length else x for i, x in enumerate(values)]


def _stepped(rng: random.Random, n: int) -> list[float]:
    """A sequence of levels, each lower or higher than the one before."""
    levels = [2.0]
    for _ in range(rng.randint(1, 5)):
        levels.append(levels[-1] * rng.choice([0.3, 0.7, 0.9, 0.97, 1.0, 1.2]))
    return [levels[i * len(levels) // n] for i in range(n)]


def _there_and_back(rng: random.Random, n: int) -> list[float]:
    turn = max(1, int(n * rng.uniform(0.2, 0.9)))
    end = rng.choice([0.7, 1.0, 1.6, 3.0, 8.0])
    return (line(max(turn, 2), 2.0, 0.6) + line(max(n - turn, 2), 0.6, end))[:n]


LOSSES: Final[list[Shape]] = [
    lambda rng, n: [rng.uniform(0.5, 3.0)] * n,
    lambda rng, n: line(max(n, 2), 2.5, rng.choice([0.01, 0.5, 1.5, 2.3]))[:n],
    lambda rng, n: [2.5 * math.exp(-i / (n * rng.choice([0.1, 0.3]))) + rng.choice([0.0, 0.3]) for i in range(n)],
    _stepped,
    _there_and_back,
    lambda _rng, n: [0.69] * n,
    lambda rng, n: [12.6 if i == 0 else rng.choice([1.0, 9.0]) for i in range(n)],
]
RATES: Final[list[Shape]] = [
    lambda _rng, n: [2e-4] * n,
    lambda _rng, n: line(max(n, 2), 2e-4, 0.0)[:n],
    lambda rng, n: [2e-4 * min(1.0, (i + 1) / max(1, n // rng.choice([2, 10]))) for i in range(n)],
    lambda rng, n: _with([2e-4] * n, rng, lambda _: 0.0, n),
    lambda rng, n: [2e-4 * abs(math.cos(i * rng.choice([3, 7]) / n)) for i in range(n)],
    lambda _rng, n: [3e-2] * n,
    lambda _rng, n: [math.nan] * n,
]


def _losses(rng: random.Random, n: int) -> list[float]:
    values = times(rng.choice(LOSSES)(rng, n), swings(n, rng.choice([0.0, 0.0, 0.003, 0.03, 0.2])))
    for chance, value, most in (
        (0.15, lambda x: x * rng.choice([1.4, 2.0, 5.0, 40.0]), 4),
        (0.08, lambda _: math.nan, 3),
        (0.06, lambda _: 0.0, 6),
        (0.03, lambda _: math.inf, 1),
    ):
        values = _with(values, rng, value, most) if rng.random() < chance else values
    return values


def _norms(rng: random.Random, n: int) -> list[float]:
    values = times([rng.choice([0.3, 1.0, 1.5])] * n, swings(n, rng.choice([0.0, 0.05, 0.3])))
    for chance, value, most in (
        (0.2, lambda x: x * rng.choice([5.0, 12.0, 100.0]), 6),
        (0.2, lambda x: x * rng.choice([0.0, 1e-6]), n),
        (0.12, lambda _: math.nan, 4),
    ):
        values = _with(values, rng, value, most) if rng.random() < chance else values
    return values


def _columns(rng: random.Random, n: int, kind: str | None) -> dict[str, Sequence[float]]:
    def level(*levels: float) -> list[float]:
        first, last, width = rng.choice(levels), rng.choice(levels), rng.choice([0.0, 0.02, 0.3])
        return [x + (width if i % 2 else -width) for i, x in enumerate(line(max(n, 2), first, last)[:n])]

    made = {
        "preference": {
            "rewards/margins": level(-0.6, 0.0, 0.1, 3.0, 9.0),
            "rewards/accuracies": level(0.4, 0.5, 0.6, 0.9),
            "rewards/chosen": level(-9.0, -1.0, 0.0, 0.5),
            "rewards/rejected": level(-9.0, -1.0, 0.0),
            "log_odds_ratio": level(-1.0, 0.0),
        },
        "rl": {
            "reward": level(0.0, 0.2, 0.9, 1.0),
            "reward_std": level(0.0, 0.3),
            "frac_reward_zero_std": level(0.1, 0.4, 0.95),
            "kl": level(0.0, 0.3, 2.0, 12.0),
            "completions/clipped_ratio": level(0.0, 0.4, 0.8),
        },
    }.get(kind or "", {})
    return {name: values for name, values in made.items() if rng.random() < 0.6}


def drawn(seed: int) -> RunFacts:
    """The run of a seed."""
    rng = random.Random(seed)  # noqa: S311  # a run repeats itself
    n = rng.choice([1, 3, 6, 9, 12, 20, 30, 40, 60, 90, 90, 700])
    kind = rng.choice([None, None, None, "preference", "rl"])
    losses, norms, every = _losses(rng, n), _norms(rng, n), rng.choice([1, 1, 5, 10])
    evals = rng.choice([0, 0, 1, 2, 3, 5, 8, 12])
    held_out = [max(abs(x), 0.01) for x in _losses(rng, evals)] if evals else []
    columns = _columns(rng, n, kind)
    epochs = rng.choice([None, None, 0.5, 1.0, 2.0, 3.0, 6.0, 12.0, 30.0])
    more: dict[str, Any] = {"training": {}}
    if rng.random() < 0.3:
        more["training"]["max_grad_norm"] = rng.choice([0.5, 1.0, math.inf])
    if rng.random() < 0.3:
        more["training"]["max_steps"] = n * every * rng.choice([1, 2])
    if rng.random() < 0.25:
        replaced = [(step, rng.uniform(0.5, 3.0)) for step in range(1, rng.randint(2, 9))]
        numbers = {"duplicates": rng.choice([0, 2]), "out_of_order": rng.choice([0, 1]), "missing": rng.choice([0, 3])}
        more["record"] = LogRecord({"a", "b"}, [rng.randint(1, 9)], replaced, **numbers)
    facts = run(
        losses,
        norms=norms,
        rates=rng.choice(RATES)(rng, n),
        held_out=[x for x in held_out if math.isfinite(x)],
        every=every,
        accuracy=rng.choice([None, None, 0.3, 0.5, 0.52, 0.9, 1.5]),
        n=rng.choice([None, 50, 400, 5000]),
        lost=[every * (i + 1) for i, norm in enumerate(norms) if norm != norm],  # noqa: PLR0124  # NaN
        kind=kind,
        lr=rng.choice([None, 2e-4, 4e-4]),
        columns={name: values for name, values in columns.items() if values},
        epoch=epochs,
        num_labels=rng.choice([None, None, 2, 5]),
        **more,
    )
    rows = [i for i, loss in enumerate(losses) if loss == loss]  # noqa: PLR0124  # rows without a loss have no place
    kept = facts.series if rng.random() < 0.5 else _only(facts.series, rows)
    return replace(facts, series=kept, status=rng.choice(["ok", "ok", "error", "interrupted", "no_run_end"]))


def _only(series: Series, rows: Sequence[int]) -> Series:
    def of(values: Sequence[Any]) -> list[Any]:
        return [values[i] for i in rows] if values else []

    return replace(
        series,
        steps=of(series.steps),
        losses=of(series.losses),
        grad_norms=of(series.grad_norms),
        rates=of(series.rates),
    )


def all_drawn() -> dict[str, list[str]]:
    """The verdict on each run, by its seed."""
    return {str(seed): _of_run(drawn(seed)) for seed in range(COUNT)}


if __name__ == "__main__":
    write(GOLDEN, all_drawn())
