"""How often `gradience bench` calls a candidate `within` falsely where rows differ in length, and what the bound costs.

``python benchmarks/bench_lengths.py [--trials N]`` prints two Markdown tables:

1. The candidate loses 1 nat per token (or every token's answer) in the long rows only, which is the tolerance in the
   mean, or several times it. The share of trials in which it passes should be at most 5 %, at one look at n rows and
   at any of fifty. Judged is the mean over tokens, with the longest row that could come (1,024 tokens) as the limit;
   the same with the longest row of the sample, as before 2026-12; and the mean over examples.
2. The rows that 80 % of trials need where nothing is lost, by the mean that is judged.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradience.verbs.bench.betting import log_capital
from gradience.verbs.bench.trial import CAP, needed, sample_of

Floats = npt.NDArray[np.float64]
LONGEST: Final = 1024.0  # tokens: --max-length
SIZES: Final = (30, 100, 200, 400, 1000)
LOOKS: Final = 50
BAR: Final = math.log(20)
TOLERANCE: Final = 0.02


class Lengths(NamedTuple):
    """A distribution of rows' lengths, and the length from which a row counts as long."""

    name: str
    draw: Callable[[np.random.Generator, int], Floats]
    long: float


def mixed(share: float, tokens: float) -> Callable[[np.random.Generator, int], Floats]:
    return lambda rng, n: np.where(rng.random(n) < share, tokens, 20.0)


LENGTHS: Final = (
    Lengths("constant, 20 tokens", lambda _, n: np.full(n, 20.0), 0.0),
    Lengths("lognormal, median 60", lambda rng, n: np.clip(np.exp(rng.normal(4.1, 1.0, n)), 2, LONGEST), 310.0),
    Lengths("1 % of 500 tokens, else 20", mixed(0.01, 500.0), 100.0),
    Lengths("1 in 500 of 1,024 tokens, else 20", mixed(0.002, 1024.0), 100.0),
)
# mean over: each row's share of the most that a row can count
MEANS: Final[dict[str, Callable[[Floats], Floats]]] = {
    "tokens": lambda weight: weight / LONGEST,
    "tokens, by the sample's longest": lambda weight: weight / weight.max(),
    "examples": np.ones_like,
}


def harms(rng: np.random.Generator, lengths: Lengths, n: int) -> tuple[Floats, Floats]:
    """Weights, and harms of 1 in the long rows; where all are equally long, in 2 % of them."""
    weight = lengths.draw(rng, n)
    hit = weight > lengths.long if lengths.long else rng.random(n) < TOLERANCE
    return weight, hit.astype(np.float64)


def true_mean(lengths: Lengths, mean: str) -> float:
    weight, harm = harms(np.random.default_rng(99), lengths, 4_000_000)
    weight = np.ones_like(weight) if mean == "examples" else weight
    return float(weight @ harm / weight.sum())


def false_within(lengths: Lengths, mean: str, cap: float, n: int, *, part: float, trials: int) -> tuple[float, float]:
    """The shares of trials that pass at the last look, and at any of them; the tolerance is `part` of the true loss."""
    rng, share, margin = np.random.default_rng(n), MEANS[mean], part * true_mean(lengths, mean)
    looks = np.unique(np.linspace(max(2, n // LOOKS), n, LOOKS).astype(int))
    last = ever = 0
    for _ in range(trials):
        weight, harm = harms(rng, lengths, n)
        passed = [log_capital(harm[:k] - margin, share(weight[:k]), cap - margin, 0.0) >= BAR for k in looks]
        last, ever = last + passed[-1], ever + any(passed)
    return last / trials, ever / trials


def price(lengths: Lengths, mean: str, noise: float) -> str:
    """The rows that are needed where a row's harm is noise around 0."""
    rng = np.random.default_rng(5)
    weight = lengths.draw(rng, 2000)
    share = np.ones(2000) if mean == "examples" else weight
    harm, margin = rng.normal(0.0, noise, (2000, 1)), np.full(2000, TOLERANCE)
    heaviest = {"tokens": LONGEST, "examples": 1.0}.get(mean, float(weight.max()))
    found = needed(sample_of(harm, share, margin, largest=None, cap=CAP, heaviest=heaviest), 0, 0.95)
    return "no number" if found is None else f"{found.least:,} to {found.most or math.inf:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=400)
    trials = parser.parse_args().trials
    print(f"| lengths | mean over | loss is | n = {', '.join(map(str, SIZES))}: one look | fifty looks |")
    print("|---|---|---|---|---|")
    worst = dict.fromkeys(MEANS, 0.0)
    for lengths in LENGTHS:
        for mean in MEANS:
            for cap, part, what in ((CAP, 1.0, "the tolerance"), (CAP, 0.2, "5 tolerances"), (1.0, 1.0, "accuracy")):
                found = [false_within(lengths, mean, cap, n, part=part, trials=trials) for n in SIZES]
                worst[mean] = max(worst[mean], *(max(pair) for pair in found))
                one, fifty = (", ".join(f"{100 * pair[i]:.1f}" for pair in found) for i in (0, 1))
                print(f"| {lengths.name} | {mean} | {what} | {one} % | {fifty} % |", flush=True)
    print(f"\nworst cells: {worst}")
    print("\n| lengths | noise of a row, nats | mean over tokens | over tokens, as before | over examples |")
    print("|---|---|---|---|---|")
    for lengths in LENGTHS:
        for noise in (0.02, 0.1):
            print(f"| {lengths.name} | {noise} | {' | '.join(price(lengths, mean, noise) for mean in MEANS)} |")


if __name__ == "__main__":
    main()
