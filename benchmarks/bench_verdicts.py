"""How often the verdicts of `gradience bench` are wrong, and how good its required n is, on simulated outcomes.

``python benchmarks/bench_verdicts.py [--trials N]`` prints two Markdown tables:

1. For candidates that lose exactly the tolerance: the share of trials in which any passes, which should be at most 5 %.
   For losses one also looks again at growing samples of up to that n, and any look may pass.
2. The n that a pilot on the same outcomes asks for, beside the n at which 80 % of trials pass, and the share of fresh
   samples of that n that pass.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gradience.verbs.bench.betting import log_capital
from gradience.verbs.bench.trial import CAP, POWER, ExampleCounts, Sample, bounds, needed, sample_of

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]
DRAWS = 1000
LONG = 55.0  # tokens


class Case(NamedTuple):
    """A distribution of harms, and the tolerance."""

    name: str
    draw: Draw  # harms
    margin: float
    largest: float | None = None
    weighted: bool = False  # examples of 10 to 100 tokens, and only those of over 55 fail


def flips(worse: float, better: float) -> Draw:
    share = [worse, better, 1.0 - worse - better]
    return lambda rng, shape: rng.choice([1.0, -1.0, 0.0], shape, p=share)


def normal(mean: float, sd: float) -> Draw:
    return lambda rng, shape: rng.normal(mean, sd, shape)


def heavy(mean: float, scale: float) -> Draw:
    return lambda rng, shape: mean + scale * rng.standard_t(3, shape)


def skewed(mean: float, sigma: float) -> Draw:
    return lambda rng, shape: mean * np.exp(rng.normal(0.0, sigma, shape) - sigma**2 / 2)


def rare(share: float, nats: float) -> Draw:
    return lambda rng, shape: np.where(rng.random(shape) < share, nats, 0.0)


LOOKS = (25, 50, 100, 200, 400, 800)
FALSE = (
    Case("answers: 1 % worse", flips(0.01, 0.0), 0.01, 1.0),
    Case("answers: 3 % worse, 2 % better", flips(0.03, 0.02), 0.01, 1.0),
    Case("answers: 11 % worse, 10 % better", flips(0.11, 0.10), 0.01, 1.0),
    Case("loss: normal, sd 5 tolerances", normal(0.02, 0.1), 0.02),
    Case("loss: Student t3, scale 2.5 tolerances", heavy(0.02, 0.05), 0.02),
    Case("loss: lognormal, sigma 1", skewed(0.02, 1.0), 0.02),
    Case("loss: 2 nats in 1 % of examples", rare(0.01, 2.0), 0.02),
    Case("loss: 2 nats in 2 % of examples, twice the tolerance", rare(0.02, 2.0), 0.02),
    Case("loss: 1 nat in 4 % of the longest examples", rare(0.04, 1.0), 0.02, weighted=True),
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


def sampled(harm: Floats, case: Case, seed: int) -> Sample:
    n, weight, margin = len(harm), np.ones(len(harm)), case.margin
    if case.weighted:
        weight = np.random.default_rng(seed).uniform(10.0, 100.0, n)
        harm = np.where(weight[:, None] > LONG, harm, 0.0)
        margin = 0.04 * (100.0**2 - LONG**2) / (100.0**2 - 10.0**2)  # the true ratio of expectations
    heaviest = 100.0 if case.weighted else 1.0
    return sample_of(harm, weight, np.full(n, margin), largest=case.largest, cap=CAP, heaviest=heaviest)


def _holds(harm: Floats, case: Case, seed: int) -> bool:
    sample = sampled(harm, case, seed)
    if sample.cap is None:
        return bool((bounds(sample, seed=seed, draws=DRAWS).upper <= 0.0).any())
    bar = math.log(harm.shape[1] / 0.05)  # that of `capped_bounds`, asked at the tolerance alone
    return any(log_capital(e, sample.share, sample.largest, 0.0) >= bar for e in sample.excess.T)


def share(case: Case, n: int, candidates: int, trials: int) -> float:
    rng = np.random.default_rng(n + candidates)
    return sum(holds(case, rng, n, candidates, seed) for seed in range(trials)) / trials


def looked(case: Case, trials: int) -> float:
    """The share of trials in which the candidate passes at any look at a growing sample."""
    rng, passed = np.random.default_rng(1), 0
    for seed in range(trials):
        harm = case.draw(rng, (max(LOOKS), 1))
        passed += any(_holds(harm[:n], case, seed) for n in LOOKS)
    return passed / trials


def pilots(case: Case, n: int, count: int) -> list[ExampleCounts | None]:
    """What each pilot asks for; None if the pilot says that no number would do."""
    rng = np.random.default_rng(7)
    level = 0.95
    return [needed(sampled(case.draw(rng, (n, 1)), case, seed), 0, level, seed=seed) for seed in range(count)]


def reached(case: Case, guess: float, trials: int) -> float:
    """The n at which 80 % of trials pass, by bisection on the logarithm of n."""
    low, high = guess / 4, guess * 2.5
    for _ in range(7):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if share(case, round(middle), 1, trials) >= POWER else (middle, high)
    return (low * high) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    print(f"| true loss = tolerance ({trials} trials) | n | one candidate | five | any look up to {max(LOOKS)} |")
    print("|---|---|---|---|---|")
    for case in FALSE:
        again = "" if case.largest is not None else f"{looked(case, trials):.1%}"
        for n in (50, 200, 600):
            one, five = (share(case, n, m, trials) for m in (1, 5))
            print(f"| {case.name} | {n} | {one:.1%} | {five:.1%} | {again} |", flush=True)
    print("\n| outcomes | n for 80 % | pilots of | range asked for (medians) | fresh samples of its end that pass |")
    print("|---|---|---|---|---|")
    for case in NEEDED:
        guess = float(np.median([one.most or 1e4 for one in pilots(case, 400, 9) if one is not None]))
        true = reached(case, guess, trials // 2)
        for size in (round(2 * true), round(true / 2)):
            asked = pilots(case, size, 40)
            known = [one for one in asked if one is not None and one.most is not None]
            least, most = (int(np.median([getattr(one, end) for one in known])) for end in ("least", "most"))
            fresh = [share(case, min(one.most or 0, 20_000), 1, max(5, trials // 40)) for one in known]
            print(
                f"| {case.name} | {true:.0f} | {size} | {least} to {most} ({len(asked) - len(known)} of {len(asked)} "
                f"name no end) | {np.mean(fresh):.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
