"""The further values of a training row that tell how preference training and RL go: TRL's names for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from gradience.policy.detectors.curve import median

__all__ = ["SIGNALS", "Signal", "Signals", "ends"]

_PARTS: Final = 5  # of a column: its first and its last are compared

SIGNALS: Final[Mapping[str, str]] = {
    "rewards/margins": "margins",
    "rewards/accuracies": "accuracies",
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "log_odds_ratio": "log_odds_ratio",
    "nll_loss": "nll_loss",
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "zero_std",
    "kl": "kl",
    "objective/kl": "objective_kl",
    "completions/clipped_ratio": "clipped",
}  # name on the wire: name as a field


class Signal(NamedTuple):
    """One column: the steps it was logged at, rising, and its finite values."""

    steps: Sequence[int]
    values: Sequence[float]


Signals: TypeAlias = Mapping[str, Signal]


def ends(signal: Signal) -> tuple[float, float, int]:
    """Return the medians of the first and of the last fifth of a column, and the rows of a fifth."""
    width = max(1, len(signal.values) // _PARTS)
    return median(signal.values[:width]), median(signal.values[-width:]), width
