"""The quantities that RL and preference trainers log, and the names under which each trainer logs them.

Columns of one quantity have the same unit; where a unit differs, there are two quantities.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, TypeAlias

from gradience.schema.events import TELLING

Names: TypeAlias = Sequence[str]

# TRL's name first, then those of older TRL, verl, OpenRLHF, Tinker, NeMo-RL, prime-rl
REWARD: Final[Names] = ("reward", "critic/rewards/mean", "critic/score/mean", "objective/scores")
REWARD_STD: Final[Names] = ("reward_std", "group_reward_std")
HIGHEST_REWARD: Final[Names] = ("critic/rewards/max",)
LOWEST_REWARD: Final[Names] = ("critic/rewards/min",)
EQUAL_GROUPS: Final[Names] = ("frac_reward_zero_std",)
MIXED_GROUPS: Final[Names] = ("env/all/by_group/frac_mixed", "effective_batch_size/all", "batch/effective_batch_size")
"""Fraction of the groups with different rewards."""
ENTROPY: Final[Names] = (
    *("entropy", "actor/entropy", "actor/entropy_loss", "policy/entropy_avg", "entropy_loss"),
    *("optim/entropy", "approx_entropy", "entropy/all/mean", "entropy/mean"),
)
"""Entropy of the next token, mean over the tokens, in nats."""
LENGTH: Final[Names] = (
    *("completions/mean_length", "completion_length", "response_length/mean", "response_length"),
    *("env/all/ac_tokens_per_turn", "mean_gen_tokens_per_sample", "decode_len/all/mean", "completion_len/mean"),
)
ENDED_LENGTH: Final[Names] = ("completions/mean_terminated_length",)
"""Mean length of the completions that ended by themselves."""
CUT_OFF: Final[Names] = (
    *("completions/clipped_ratio", "response_length/clip_ratio", "truncated"),
    *("truncation_rate", "is_truncated/all/mean", "is_truncated/mean"),
)
ENDED: Final[Names] = ("val/num_eos_tokens",)
"""Number of end-of-sequence tokens in the completions of a batch: TRL's PPO."""
EXPLAINED: Final[Names] = ("critic/vf_explained_var",)
"""Share of the variance of the returns that the critic's values explain: below 0, a constant is the better critic."""
CLIPPED: Final[Names] = (
    *("clip_ratio/region_mean", "clip_ratio", "policy/clipfrac_avg"),
    *("actor/pg_clipfrac", "ppo_clip_ratio"),
)
"""Fraction of the tokens whose probability ratio to the policy that wrote them was outside the clipping range."""
TOKEN_KL: Final[Names] = ("kl", "actor/kl_loss", "actor/reward_kl_penalty", "critic/kl", "kl_policy_base", "kl_penalty")
"""KL from the reference, mean over the tokens, in nats."""
ANSWER_KL: Final[Names] = ("objective/kl",)
"""KL from the reference, summed over the tokens of a completion, in nats."""

# The same tokens by the engine that sampled them and by the trainer
SAMPLER_GAP: Final[Names] = (
    "sampling/sampling_logp_difference/mean",
    "policy/rollout_train_logprobs_abs_diff_mean",
    "train/train_rollout_logprob_abs_diff",
    "rollout_corr/logprob_abs_diff/mean",
)
"""Mean size of the difference of their log-probabilities, in nats a token."""
SAMPLER_KL: Final[Names] = (
    *("rollout_corr/k3_kl", "rollout_corr/kl", "rollout_correction/k3_kl", "rollout_correction/kl"),
    *("mismatch/mismatch_k3_kl", "mismatch/mismatch_kl", "mismatch_kl/mean", "vllm_kl"),
    *("optim/kl_sample_train_v2", "gen_kl_error", "mismatch_kl/all/mean"),
)
"""KL of the trainer's policy from the sampler's, in nats a token."""
SAMPLER_FACTOR: Final[Names] = ("token_mult_prob_error",)
"""Mean factor between their probabilities, the larger over the smaller: NeMo-RL."""
SAMPLER_PROBABILITIES: Final[Names] = ("training/rollout_probs_diff_mean",)
"""Mean size of the difference of their probabilities."""
SAMPLER_RATIO: Final[Names] = ("sampling/importance_sampling_ratio/mean", "sampling_importance_ratio")
"""Mean of the trainer's probability over the sampler's, after what is too large or small was cut."""

COMPONENTS: Final = "rewards/"
"""How the columns of a reward's functions begin."""
COMPONENT: Final = re.compile(f"{COMPONENTS}.+/mean")
"""The column of the mean of a reward's function."""

CHOSEN: Final = "rewards/chosen"
REJECTED: Final = "rewards/rejected"
MARGINS: Final = "rewards/margins"
ACCURACIES: Final = "rewards/accuracies"
CHOSEN_LOGPS: Final = "logps/chosen"
REJECTED_LOGPS: Final = "logps/rejected"

SIGNALS: Final[Names] = (  # in the order of a report
    *(MARGINS, ACCURACIES, CHOSEN, REJECTED, CHOSEN_LOGPS, REJECTED_LOGPS, "log_odds_ratio", "nll_loss"),
    *(*REWARD, *REWARD_STD, *HIGHEST_REWARD, *LOWEST_REWARD, *EQUAL_GROUPS, *MIXED_GROUPS),
    *(*TOKEN_KL, *ANSWER_KL, "actor/ppo_kl", *ENTROPY, *CLIPPED),
    *(*LENGTH, *ENDED_LENGTH, *CUT_OFF, *ENDED, *EXPLAINED),
    *(*SAMPLER_GAP, *SAMPLER_KL, *SAMPLER_FACTOR, *SAMPLER_PROBABILITIES, *SAMPLER_RATIO),
)
"""The columns of rewards and the like that a summary of a run keeps."""

KEPT: Final = frozenset({*SIGNALS, *TELLING, COMPONENTS, "mean_token_accuracy"})
"""Names of further values of training rows that a summary keeps."""
