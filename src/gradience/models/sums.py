"""What a model says to some texts, as sums over the predictions of each, and ratios of these with their intervals."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradience.schema.document import Estimate

DRAWS: Final = 2000  # bootstrap samples of an interval

Floats = npt.NDArray[np.float64]


class Sums(NamedTuple):
    """Sums over the predictions of each text, (texts,): KL from the reference, changed choices, and the loss.

    `known` counts the predictions whose label is known, of which the loss is.
    """

    predictions: Floats
    kl: Floats
    flips: Floats
    known: Floats
    loss: Floats

    @property
    def finite(self) -> bool:
        """Whether all of them are finite."""
        return bool(np.isfinite(self).all())


def estimate(above: Floats, below: Floats) -> Estimate:
    """sum(above) / sum(below) over texts, and the 95 % percentile interval of bootstrap samples of the texts.

    Samples in which sum(below) is not above zero are left out.
    """
    # The seed is fixed, so that the same numbers always have the same interval.
    counts = np.random.default_rng(0).multinomial(len(above), np.full(len(above), 1.0 / len(above)), size=DRAWS)
    tops, bottoms = counts @ above, counts @ below
    usable = bottoms > 0.0
    low, high = np.quantile(tops[usable] / bottoms[usable], [0.025, 0.975])
    return Estimate(value=float(above.sum() / below.sum()), low=float(low), high=float(high))
