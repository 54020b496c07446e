"""How often the verdicts of `gradience bench` are wrong, and how good its required n is, on simulated outcomes.

``python benchmarks/bench_verdicts.py [--trials N]`` prints two Markdown tables:

1. For candidates that lose exactly the tolerance: the share of trials in which any passes, which should be at most 5 %.
2. The n that a pilot on the same outcomes asks for, beside the n at which 80 % of trials pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gradience.prove.bench.trial import POWER, bounds, needed, sample_of

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]
DRAWS = 1000


class Case(NamedTuple):
    """A distribution of harms, and the tolerance."""

    name: str
    draw: Draw  # harms
    margin: float
    largest: float | None = None


def flips(worse: float, better: float) -> Draw:
    share = [worse, better, 1.0 - worse - better]
    return lambda rng, shape: rng.choice([1.0, -1.0, 0.0], shape, p=share)


def normal(mean: float, sd: float) -> Draw:
    return lambda rng, shape: rng.normal(mean, sd, shape)


def heavy(mean: float, scale: float) -> Draw:
    return lambda rng, shape: mean + scale * rng.standard_t(3, shape)


def skewed(mean: float, sigma: float) -> Draw:
    return lambda rng, shape: mean * np.exp(rng.normal(0.0, sigma, shape) - sigma**2 / 2)


FALSE = (
    Case("answers: 1 % worse", flips(0.01, 0.0), 0.01, 1.0),
    Case("answers: 3 % worse, 2 % better", flips(0.03, 0.02), 0.01, 1.0),
    Case("answers: 11 % worse, 10 % better", flips(0.11, 0.10), 0.01, 1.0),
    Case("loss: normal, sd 10 tolerances", normal(0.01, 0.1), 0.01),
    Case("loss: Student t3, scale 5 tolerances", heavy(0.01, 0.05), 0.01),
    Case("loss: lognormal, sigma 1", skewed(0.01, 1.0), 0.01),
)
NEEDED = (
    Case("answers: none flips, tolerance 1 %", flips(0.0, 0.0), 0.01, 1.0),
    Case("answers: 1 % worse, 1 % better, tolerance 2 %", flips(0.01, 0.01), 0.02, 1.0),
    Case("answers: 3 % worse, 2 % better, tolerance 3 %", flips(0.03, 0.02), 0.03, 1.0),
    Case("loss: normal, sd 5 tolerances, no loss", normal(0.0, 0.1), 0.02),
    Case("loss: normal, sd 5 tolerances, a quarter of it lost", normal(0.005, 0.1), 0.02),
    Case("loss: Student t3, scale 2.5 tolerances, no loss", heavy(0.0, 0.05), 0.02),
)


def holds(case: Case, rng: np.random.Generator, n: int, candidates: int, seed: int) -> bool:
    harm = case.draw(rng, (n, candidates))
    if case.largest is not None and candidates == 1:  # answers differ by their counts only, which come again
        return _of_counts(n, int((harm > 0).sum()), int((harm < 0).sum()), case.margin)
    return _holds(harm, case, seed)


@cache
def _of_counts(n: int, worse: int, better: int, margin: float) -> bool:
    harm = np.array([1.0] * worse + [-1.0] * better + [0.0] * (n - worse - better))[:, None]
    return _holds(harm, Case("", flips(0.0, 0.0), margin, 1.0), 0)


def _holds(harm: Floats, case: Case, seed: int) -> bool:
    n = len(harm)
    sample = sample_of(harm, np.ones(n), np.full(n, case.margin), largest=case.largest)
    return bool((bounds(sample, seed=seed, draws=DRAWS).upper <= 0.0).any())


def share(case: Case, n: int, candidates: int, trials: int) -> float:
    rng = np.random.default_rng(n + candidates)
    return sum(holds(case, rng, n, candidates, seed) for seed in range(trials)) / trials


def pilots(case: Case, n: int, count: int) -> list[float]:
    """The n that each pilot asks for; infinite if the pilot says that no number would do."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(count):
        sample = sample_of(case.draw(rng, (n, 1)), np.ones(n), np.full(n, case.margin), largest=case.largest)
        found.append(float(needed(sample, 0, 0.95) or np.inf))
    return found


def reached(case: Case, guess: float, trials: int) -> float:
    """The n at which 80 % of trials pass, by bisection on the logarithm of n."""
    low, high = guess / 2.5, guess * 2.5
    for _ in range(6):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if share(case, round(middle), 1, trials) >= POWER else (middle, high)
    return (low * high) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    print(f"| true loss = tolerance ({trials} trials) | n | one candidate | five candidates |\n|---|---|---|---|")
    for case in FALSE:
        for n in (50, 200, 600):
            one, five = (share(case, n, m, trials) for m in (1, 5))
            print(f"| {case.name} | {n} | {one:.1%} | {five:.1%} |", flush=True)
    print("\n| outcomes | n for 80 % | asked for by large pilots | ratio | by pilots of half of it: quartiles |")
    print("|---|---|---|---|---|")
    for case in NEEDED:
        guess = float(np.median(pilots(case, 400, 25)))
        true = reached(case, guess, trials // 2)
        large = float(np.median(pilots(case, round(2 * true), 25)))
        quartiles = np.percentile(pilots(case, round(true / 2), 100), [25, 50, 75], method="nearest")
        spread = ", ".join("none" if np.isinf(q) else f"{q:.0f}" for q in quartiles)
        print(f"| {case.name} | {true:.0f} | {large:.0f} | {large / true:.2f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
