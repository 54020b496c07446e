"""Names of logged values that only one kind of objective has: those of TRL and LLaMA-Factory."""

from __future__ import annotations

from typing import Final

OF_PREFERENCE: Final = frozenset(
    {"rewards/margins", "rewards/chosen", "rewards/accuracies", "log_odds_ratio", "log_odds_chosen", "odds_ratio_loss"}
)
OF_RL: Final = frozenset({"reward", "reward_std", "frac_reward_zero_std", "objective/kl"})
OF_REWARD: Final = frozenset({"mean_reward", "min_reward", "max_reward"})
TELLING: Final = OF_PREFERENCE | OF_RL | OF_REWARD
