"""The statistics of a trial: test whether a candidate's mean harm, compared with the adapter, is within a tolerance.

Differences are paired: each example is scored with the adapter and with the candidate. Their mean is bounded by the
Bayesian bootstrap of the sample plus one example of the largest possible harm (Gaffke's bound; Phan, Thomas and
Learned-Miller, ICML 2021, arXiv 2106.03163). For answers that are only right or wrong, this is the Clopper-Pearson
limit: 100 answers without a flip show at most 3 % harm, where an ordinary bootstrap would say 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np

from gradience.spectral.grams import Floats

CONFIDENCE: Final = 0.95
DRAWS: Final = 4000
POWER: Final = 0.8
"""The statistical power that `needed` plans for: the chance that a candidate passes if its harm is as observed."""
REACH: Final = 2.0
"""If the harm has no known bound, the added example is this many times as far from the mean as the worst one seen. This
is a heuristic: at 1, lognormal harms (sigma 1.5, n = 200) passed falsely in 8 % of simulated trials, at 2 in 2 %."""
_CELLS: Final = 4_000_000  # random weights that are held at a time
_MOST: Final = 1e9  # examples; a trial that needs more is not worth naming


class Sample(NamedTuple):
    """The excess harm over the tolerance, `excess` (n, m) by example and candidate. Positive is worse.

    `weight` (n,) is the weight of each example, such as its number of tokens. `worst` and `best` (m,) are the excess of
    the added example for the upper and the lower bound. `margin` is the tolerance.
    """

    excess: Floats
    weight: Floats
    worst: Floats
    best: Floats
    margin: float

    @property
    def mean(self) -> Floats:
        """The weighted mean excess of each candidate (m,)."""
        return np.asarray(self.weight @ self.excess / self.weight.sum())


class Bounds(NamedTuple):
    """Bounds (m,) of the candidates' means. All `upper` bounds hold at once with 95 %, and so do all `lower` bounds.

    `level` is the one-sided level of each upper bound by itself.
    """

    lower: Floats
    upper: Floats
    level: float


def sample_of(harm: Floats, weight: Floats, margin: Floats, *, largest: float | None) -> Sample:
    """Build the sample from harms (n, m), by example and candidate.

    Args:
        harm: how much worse the candidate is on the example, in the metric's unit.
        weight: the weight of each example (n,).
        margin: the tolerance on each example (n,); its weighted mean is the sample's tolerance.
        largest: the largest possible harm and gain of an example; None extrapolates from the sample (`REACH`).
    """
    excess = harm - margin[:, None]
    total = weight.sum()
    mean, middle = weight @ excess / total, float(weight @ margin / total)
    if largest is not None:
        edge = np.full(harm.shape[1], largest)
        return Sample(excess, weight, edge - middle, -edge - middle, middle)
    worst, best = (mean + REACH * (end - mean) for end in (excess.max(axis=0), excess.min(axis=0)))
    return Sample(excess, weight, worst, best, middle)


def bounds(sample: Sample, *, seed: int = 0, confidence: float = CONFIDENCE, draws: int = DRAWS) -> Bounds:
    """Simultaneous bounds of the means, from the ranks of joint bootstrap draws."""
    upper, level = _joint(_drawn(sample, sample.worst, seed, draws), confidence)
    lower, _ = _joint(-_drawn(sample, sample.best, seed, draws), confidence)
    return Bounds(-lower, upper, level)


def _drawn(sample: Sample, more: Floats, seed: int, draws: int) -> Floats:
    """Means (draws, m) of the sample plus the example `more`, with weights from a flat Dirichlet distribution."""
    weight = np.append(sample.weight, sample.weight.mean())
    values = weight[:, None] * np.vstack([sample.excess, more])
    random = np.random.default_rng(seed)
    return np.concatenate([(some @ values) / (some @ weight)[:, None] for some in _weights(random, draws, len(weight))])


def _weights(random: np.random.Generator, draws: int, n: int) -> Iterator[Floats]:
    step = max(1, _CELLS // n)
    for start in range(0, draws, step):
        yield random.standard_exponential((min(step, draws - start), n))


def _joint(drawn: Floats, confidence: float) -> tuple[Floats, float]:
    """The values (m,) at the least rank that no column exceeds in `confidence` of the draws, and the rank's level."""
    ranks = np.argsort(np.argsort(drawn, axis=0, kind="stable"), axis=0)
    place = int(np.sort(ranks.max(axis=1))[math.ceil(confidence * len(drawn)) - 1])
    return np.sort(drawn, axis=0)[place], (place + 1) / len(drawn)


def student_bounds(sample: Sample, *, confidence: float = CONFIDENCE) -> Bounds:
    """Bounds of the means over runs with different seeds, by Student's t and Bonferroni: too few runs to resample."""
    from scipy.special import stdtrit  # noqa: PLC0415  # takes half a second, and only evaluators with seeds need it

    n, m = sample.excess.shape
    level = 1.0 - (1.0 - confidence) / m
    half = stdtrit(n - 1, level) * sample.excess.std(axis=0, ddof=1) / math.sqrt(n)
    return Bounds(sample.mean - half, sample.mean + half, level)


def needed(sample: Sample, column: int, level: float) -> int | None:
    """The number of examples with which a candidate would pass with 80 % (`POWER`), if its harm is as observed.

    An observed gain beyond zero harm is not counted on. The result is None if no number of examples would do.

    Args:
        sample: the trial so far.
        column: the candidate's column.
        level: the one-sided level of the candidate's bound.
    """
    e, share = sample.excess[:, column], sample.weight / sample.weight.mean()
    mean = float(np.mean(share * e))
    off = share * (e - mean)  # each example's contribution to the weighted mean, centred
    shape = _Shape(max(mean, -sample.margin), [float(np.mean(off**k)) for k in (2, 3, 4)], float(sample.worst[column]))
    z = NormalDist().inv_cdf(level)
    if shape.mean >= 0.0 or shape.bound(_MOST, z) > 0.0:
        return None
    low, high = 0.0, _MOST
    while high - low > max(0.5, high / 1000):
        middle = math.sqrt((low + 1) * (high + 1)) - 1
        low, high = (middle, high) if shape.bound(middle, z) > 0.0 else (low, middle)
    return math.ceil(high)


class _Shape(NamedTuple):
    """Mean and central moments (second to fourth) of an excess, and the excess of the added example."""

    mean: float
    moments: list[float]
    worst: float

    def bound(self, n: float, z: float) -> float:
        """The value that the upper bound of 80 % of trials with n examples stays under, by Cornish-Fisher expansion."""
        s2, s3, s4 = self.moments
        shift = NormalDist().inv_cdf(POWER) * math.sqrt(s2 / max(n, 1.0))
        mean = self.mean + shift
        s2 += s3 / s2 * shift if s2 > 0.0 and s3 > 0.0 else 0.0  # a trial with more harm than usual has more spread
        total = n + 1.0
        middle = (n * mean + self.worst) / total
        d, more = mean - middle, self.worst - middle
        v2 = (n * (s2 + d**2) + more**2) / total
        v3 = (n * (s3 + 3 * s2 * d + d**3) + more**3) / total
        v4 = (n * (s4 + 4 * s3 * d + 6 * s2 * d**2 + d**4) + more**4) / total
        variance = v2 / (total + 1)  # moments of a mean under weights from a flat Dirichlet distribution
        if variance <= 0.0:
            return middle
        third = 2 * v3 / ((total + 1) * (total + 2))
        fourth = (3 * total * v2**2 + 6 * v4) / ((total + 1) * (total + 2) * (total + 3))
        skew, excess = third / variance**1.5, fourth / variance**2 - 3.0
        steps = z + (z**2 - 1) * skew / 6 + (z**3 - 3 * z) * excess / 24 - (2 * z**3 - 5 * z) * skew**2 / 36
        return float(middle + steps * math.sqrt(variance))
