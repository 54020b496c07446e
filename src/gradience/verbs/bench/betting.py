"""Bounds of a mean by betting: they hold for any harms within a cap, at every look at a growing sample.

A gambler bets against "the mean excess is m or more". Each example multiplies the capital by
1 - s v (e - m) / (top - m), for an excess e of at most `top`, a weight v of at most 1 and a stake s of at most 1. If
the claim is true, the capital does not grow on average, and ever reaches 1 / a with a chance of at most a (Ville 1939).
So m is excluded as soon as the capital is that high, whenever one looks (Waudby-Smith and Ramdas, JRSS B 86(1), 2024,
arXiv 2010.09686). The capital is spread over fixed stakes, so the order of the examples does not matter.

The mean is a ratio, sum(v e) / sum(v): the expectation of v (e - m) is 0 if and only if the ratio of expectations is
m. A weight v is relative to the largest that any example could have, and not to the largest that was drawn: a rare long
example that is not in the sample must not overturn what the bets have won.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from gradience.spectral.grams import Floats

STAKES: Final = 0.5 ** np.arange(12)
SHARES: Final = np.array([0.5, *[0.5 / 11] * 11])
"""Half of the capital is at the whole stake, which is best where harms are rare beside what they may be."""
_STEPS: Final = 40  # halvings of the interval of m


def log_capital(excess: Floats, share: Floats, top: float, m: float) -> float:
    """The logarithm of the capital of bets against a mean excess of `m` or more.

    Args:
        excess: how much an example is over the tolerance (n,), each at most `top`.
        share: how much each example counts (n,), above 0, where the heaviest possible example counts 1.
        top: the largest possible excess, above `m`.
        m: the weighted mean that is to be excluded, the ratio sum(share * excess) / sum(share).
    """
    gain = share * (excess - m) / (top - m)
    with np.errstate(divide="ignore"):  # an excess of `top` loses the whole stake
        grown = np.log1p(-np.minimum(STAKES[:, None] * gain, 1.0)).sum(axis=1)
    return float(np.logaddexp.reduce(np.log(SHARES) + grown))


def upper_bound(excess: Floats, share: Floats, top: float, level: float) -> float:
    """The least mean excess such that all larger ones are excluded with this one-sided level, such as 0.95."""
    bar = -math.log1p(-level)
    low, high = float(share @ excess / share.sum()), top  # the mean itself is never excluded
    if low >= top:
        return top
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        if middle >= top or log_capital(excess, share, top, middle) >= bar:
            high = middle
        else:
            low = middle
    return high


def needed_examples(excess: Floats, share: Floats, top: float, level: float, z: float) -> float:
    """The examples with which a mean excess of 0 is excluded, for draws from this sample; infinite if none suffice.

    The capital's logarithm is a sum over examples: it reaches the bar with the chance of the normal quantile `z`. The
    best stake is taken, and what it costs that the capital is spread.
    """
    if top <= 0.0:
        return 1.0
    gain = share * excess / top
    best = math.inf
    for stake, part in zip(STAKES, SHARES, strict=True):
        # Just under a whole stake lost, of which the logarithm, and with it the spread, would not be finite.
        grown = np.log1p(-np.minimum(stake * gain, 1.0 - 1e-9))
        rate, spread = float(grown.mean()), float(grown.std())
        if rate <= 0.0:
            continue
        # Only this part of the capital is at the stake, and has to reach the bar for all of it.
        bar = -math.log1p(-level) - math.log(part)
        # n rate - z spread sqrt(n) = bar, solved for sqrt(n).
        root = (z * spread + math.sqrt((z * spread) ** 2 + 4.0 * rate * bar)) / (2.0 * rate)
        best = min(best, root**2)
    return best
