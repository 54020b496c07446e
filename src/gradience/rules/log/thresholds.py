"""Every number a detector compares with: its unit, and where it comes from.

"Trial" is benchmarks/detectors.py: the number was set on its tuning seeds and judged on held-out ones.
"""

from __future__ import annotations

from gradience.rules.rule import Threshold

_JUDGEMENT = "a judgement"

# rows
FEW_ROWS = Threshold("few_rows", 20, "training rows", "a judgement: below it a curve's noise hides its shape")
NO_LEARNING_ROWS = Threshold("no_learning_rows", 30, "training rows", "proposal of the project's design")
GRADIENT_ROWS = Threshold("gradient_rows", 10, "training rows with a gradient norm", _JUDGEMENT)
RATE_ROWS = Threshold("rate_rows", 5, "training rows with a learning rate", _JUDGEMENT)
LEAST_EVALS = Threshold("least_evals", 3, "evaluations of one split", "proposal of the project's design")

# not a number
MASKED_FALL = Threshold("masked_fall", 0.15, "fraction of the loss just before", "transformers 5.24: 4.15 to 3.33 seen")
ROUNDS_TO_ZERO = Threshold("rounds_to_zero", 0.01, "nats", "transformers logs four decimals: 0.0000 is under 5e-5")

# spikes
SPIKE_K = Threshold("spike_k", 6.0, "median |first difference| of 32 rows, at least 5 % of the level", "spike trial")
SPIKE_FLOOR = Threshold("spike_floor", 0.05, "fraction of the level", "spike trial")
SPIKE_ROWS = Threshold("spike_rows", 3, "consecutive rows", "trial: one row alone is often a heavy tail")
NOISY = Threshold(
    "noisy", 0.25, "median |first difference| over the median", "trial: above it, judged on the logarithm"
)

# level
DIVERGED_RATIO = Threshold("diverged_ratio", 1.5, "end over the lowest window", "proposal of the project's design")
DIVERGED_NOISE = Threshold(
    "diverged_noise",
    6.0,
    "standard errors of the difference",
    "trial: 4 called 4 % of flat, very noisy losses diverged",
)
LOST_SHARE = Threshold("lost_share", 0.5, "fraction of the whole fall that was lost again", _JUDGEMENT)
WINDOW_SHARE = Threshold(
    "window_share", 0.05, "fraction of the rows, at least 5 rows", "proposal of the project's design"
)
PLATEAU_SPAN = Threshold("plateau_span", 0.3, "fraction of the rows, the last ones", "proposal of the project's design")
PLATEAU_LONG = Threshold("plateau_long", 0.5, "the same, where the learning rate has decayed by then", "a real plateau")
PLATEAU_DROP = Threshold(
    "plateau_drop", 0.005, "fraction of the level over the span", "proposal; ReduceLROnPlateau 1e-4"
)
FALLING = Threshold("falling", 1.5, "standard errors of the fall, added to plateau_drop", "trial")
RISING = Threshold("rising", 3.0, "standard errors of the rise, added to plateau_drop", "trial")
PLATEAU_ERROR = Threshold("plateau_error", 0.03, "standard error of that fraction", "trial: above it, cannot tell")
PLATEAU_LR = Threshold("plateau_lr", 0.1, "fraction of the peak learning rate", "proposal of the project's design")
NO_LEARNING_DROP = Threshold(
    "no_learning_drop", 0.02, "fraction of the first level", "proposal of the project's design"
)
NO_LEARNING_ERROR = Threshold("no_learning_error", 0.03, "standard error of that", "trial: above it, cannot tell")
AT_CHANCE = Threshold("at_chance", 0.01, "fraction of ln K", "proposal of the project's design")

# gradients
GRADIENT_K = Threshold(
    "gradient_k", 8.0, "median |first difference| of ln(grad_norm)", "spike trial; proposal for norms"
)
GRADIENT_FLOOR = Threshold("gradient_floor", 0.25, "in ln(grad_norm)", "trial: 8 x 0.25 is a factor of 7")
GRADIENT_RATIO = Threshold("gradient_ratio", 10.0, "times the median before", "Megatron: 10 x; proposal for 3 rows")
CLIPPED_SHARE = Threshold("clipped_share", 0.9, "fraction of the rows", "proposal of the project's design")
VANISHED_RATIO = Threshold("vanished_ratio", 1e-3, "of the early median", "proposal of the project's design")
VANISHED_ROWS = Threshold("vanished_rows", 5, "consecutive rows", "proposal of the project's design")
MEMORIZED = Threshold("memorized", 0.01, "of the early loss", "a judgement: a fitted model has no gradient left")

# learning rate
ZERO_RATE_ROWS = Threshold("zero_rate_rows", 3, "consecutive rows", "proposal: warmup starts at 0 for one row")
ZERO_TAIL_SHARE = Threshold("zero_tail_share", 0.1, "fraction of the rows", "a judgement: a schedule ends at 0")
PEAK_SHARE = Threshold("peak_share", 0.5, "of the configured peak", "proposal of the project's design")
DECAYED = Threshold("decayed", 0.5, "of the highest rate before", _JUDGEMENT)
RISEN = Threshold("risen", 2.0, "times the lowest rate since, and 10 % of the highest", _JUDGEMENT)

# evaluation
LOSS_GAP = Threshold(
    "loss_gap", 1.5, "held-out over train perplexity, 0.41 nats", "a project convention, no source found"
)
OVERFIT_RISE = Threshold("overfit_rise", 0.02, "generalisation loss E / E_opt - 1", "Prechelt: GL, alpha = 2")
OVERFIT_MUCH = Threshold("overfit_much", 0.10, "generalisation loss E / E_opt - 1", "proposal of the project's design")
OVERFIT_NOISE = Threshold("overfit_noise", 3.0, "of the noise between evaluations", "trial")
OVERFIT_EVALS = Threshold("overfit_evals", 2, "last evaluations in succession", "proposal; Prechelt: UP_s, s = 2")
CHANCE_Z = Threshold("chance_z", 1.64, "standard deviations", "one-sided 95 %")
CHANCE_MARGIN = Threshold("chance_margin", 0.03, "accuracy, where n is unknown", _JUDGEMENT)
CHANCE_LOSS = Threshold("chance_loss", 0.98, "of ln K", "proposal of the project's design")
SMALL_EVAL = Threshold("small_eval", 0.03, "half-width of a 95 % interval", _JUDGEMENT)
UNFINISHED_EVALS = Threshold("unfinished_evals", 4, "evaluations of one split", _JUDGEMENT)
UNFINISHED_FALL = Threshold("unfinished_fall", 0.01, "fraction of the loss, over the last quarter", _JUDGEMENT)
EPOCH_DROP = Threshold("epoch_drop", 0.05, "fraction of the level before the end of an epoch", _JUDGEMENT)
EPOCH_ERRORS = Threshold("epoch_errors", 3.0, "standard errors of that fraction", "trial")
EPOCH_SHARE = Threshold("epoch_share", 0.25, "of an epoch, before and after its end", _JUDGEMENT)
EPOCH_ROWS = Threshold("epoch_rows", 3, "points before and after", _JUDGEMENT)
EPOCH_REST = Threshold("epoch_rest", 0.2, "of an epoch that must follow its end", "as epoch_share")

# the log
REPLAY_DIFFERENCE = Threshold(
    "replay_difference", 0.2, "median relative difference", "proposal of the project's design"
)
REPLAY_ROWS = Threshold("replay_rows", 3, "steps logged before and after", _JUDGEMENT)

# the audit in the log
IDLE_ENERGY = Threshold("idle_energy", 0.01, "fraction of the update's energy", _JUDGEMENT)
IDLE_PARAMS = Threshold("idle_params", 0.1, "fraction of the LoRA parameters", _JUDGEMENT)

# rewards
REWARD_ROWS = Threshold("reward_rows", 20, "rows that logged it", "as few_rows")
REWARD_ERRORS = Threshold("reward_errors", 4.0, "standard errors of the difference", "trial: the best of ten levels")
REWARD_FALL = Threshold("reward_fall", 0.1, "fraction of the best level", _JUDGEMENT)
REWARD_FLAT = Threshold("reward_flat", 0.05, "standard error over the level: above it, cannot tell", _JUDGEMENT)
ZERO_GROUPS = Threshold("zero_groups", 0.5, "fraction of the groups", _JUDGEMENT)
ZERO_GROUPS_MOST = Threshold("zero_groups_most", 0.9, "fraction of the groups", _JUDGEMENT)
KL_LATE = Threshold("kl_late", 1.0, "nats a token, median of the last third", _JUDGEMENT)
KL_ROW = Threshold("kl_row", 10.0, "nats a token, one row", _JUDGEMENT)
CUT_OFF = Threshold("cut_off", 0.5, "fraction of the completions", _JUDGEMENT)
SEPARATED = Threshold("separated", 0.05, "reward accuracy over one half", _JUDGEMENT)
SURELY = Threshold("surely", 3.0, "standard errors of the margin over 0", "trial: one healthy run of 100 without it")
SEPARATION_ERROR = Threshold("separation_error", 0.03, "standard error of the accuracy", "above it, cannot tell")
CHOSEN_FALL = Threshold("chosen_fall", 1.0, "reward: beta x nats", "a judgement: 10 nats at beta = 0.1")
START_MARGIN = Threshold("start_margin", 0.5, "reward: beta x nats", _JUDGEMENT)
START_STEP = Threshold("start_step", 10, "steps", "a judgement: later a margin has been learnt")
