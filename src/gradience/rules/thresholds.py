"""Every number a rule compares with: its unit, and where it comes from."""

from __future__ import annotations

from gradience.rules.rule import Threshold

LOW_LR = Threshold(
    "low_lr",
    5e-5,
    "peak learning rate",
    "default of transformers' TrainingArguments; just above the sweep's 4e-5",
)
BAND_TOP = Threshold(
    "band_top",
    1e-3,
    "peak learning rate",
    "tinker-cookbook sft_sweep: the highest rate that is still best somewhere",
)
DIVERGENT_LR = Threshold(
    "divergent_lr",
    3e-3,
    "peak learning rate",
    "tinker-cookbook sft_sweep: 72 of all 80 divergences are at 3e-3",
)
PREFERENCE_LR = Threshold(
    "preference_lr",
    5e-5,
    "peak learning rate",
    "just above the highest published one: GRPO 4e-5 (tinker-cookbook)",
)
SPIKE_LR = Threshold("spike_lr", 2e-4, "peak learning rate", "Biderman et al. 2024, r = 256, alpha = 512")
VARIANT_LR = Threshold("variant_lr", 1e-4, "peak learning rate", "proposal; arXiv 2602.04998 gives the direction only")
SMALL_ALPHA_LR = Threshold("small_alpha_lr", 1e-4, "peak learning rate", "proposal: the low end of shipped recipes")
USUAL_STEP = Threshold(
    "usual_step",
    3.2e-3,
    "scaling x r x lr",
    "16 x 2e-4: QLoRA's and Unsloth's recipe, the smallest widely shipped",
)
BEST_STEP = Threshold(
    "best_step",
    9.6e-3,
    "scaling x r x lr",
    "32 x 3e-4: the best rate of the median model in tinker-cookbook sft_sweep",
)
RANK_HIGH = Threshold("rank_high", 128, "rank", "proposal: half the rank of Biderman et al. 2024's unstable runs")
RANK_MODERATE = Threshold("rank_moderate", 32, "rank", "proposal: from where alpha / r gets small by itself (rsLoRA)")
SPIKE_ALPHA_RATIO = Threshold("spike_alpha_ratio", 2.0, "alpha / r", "Biderman et al. 2024, r = 256, alpha = 512")
SMALL_ALPHA_RATIO = Threshold("small_alpha_ratio", 0.25, "alpha / r", "QLoRA ships r = 64, alpha = 16: the lowest seen")
RSLORA_SCALING = Threshold(
    "rslora_scaling",
    8.0,
    "alpha / sqrt(r)",
    "PEFT MetaMathQA: r = 64, alpha = 64, scaling 8 was still its best run",
)
BATCH_LARGE = Threshold("batch_large", 256, "sequences per optimizer step", "proposal: twice tinker-cookbook's 128")
SHORT_RUN = Threshold("short_run", 100, "optimizer steps", "tinker-cookbook hyperparams: at least 100 steps")
EPOCHS_MANY = Threshold("epochs_many", 3, "epochs", "Unsloth's guide: 1 to 3 epochs")
DATA_LARGE = Threshold("data_large", 50_000, "training examples", "proposal: where an adapter may run out of capacity")
WARMUP_LONG = Threshold("warmup_long", 0.5, "share of all steps", "mechanical: the peak comes after half the run")
WARMUP_RATIO_REMOVED = Threshold(
    "warmup_ratio_removed", 5.2, "transformers version", "huggingface/peft#2949; absent in 5.24"
)
FEW_LAYERS = Threshold("few_layers", 0.25, "share of the base's layers", "proposal; huggingface/peft#3554 had 4 of 56")
BITS_PER_PARAMETER = Threshold(
    "bits_per_parameter", 2.0, "bits per adapter parameter", "LoRA Without Regret, as quoted; not re-measured"
)
BITS_PER_TOKEN = Threshold("bits_per_token", 1.0, "bits per token", "LoRA Without Regret, as quoted; not re-measured")
CAPACITY_EXCESS = Threshold(
    "capacity_excess", 3.0, "bits of data over bits of adapter", "proposal: slack for padding and repeated data"
)

# the weights
LOW_UTILIZATION = Threshold("low_utilization", 0.25, "stable rank / r", "a convention of the project's first document")
RANDOM_SHARE = Threshold(
    "random_share", 0.9, "stable rank over that of random factors, median", "a judgement: factors measured at d = 4096"
)
RANDOM_RANK = Threshold("random_rank", 4, "rank", "a judgement: below it the null leaves no room to tell")
RANDOM_MODULES = Threshold("random_modules", 4, "modules of that rank", "a judgement: one flat spectrum may be chance")
NEAR_UNTRAINED = Threshold("near_untrained", 1e-4, "norm of all updates over that of the base weights", "a judgement")
MOSTLY_OTHER = Threshold("mostly_other", 0.5, "share of the file's bytes", "definition: more than half")
ALPHA_DEFAULT = Threshold("alpha_default", 8, "lora_alpha", "PEFT's LoraConfig")
SURVIVAL_BFLOAT16 = Threshold(
    "survival_bfloat16", 3e-3, "norm(dW) / norm(W)", "measured on Gaussian W: 53 % of entries change, cosine .887"
)
SURVIVAL_FLOAT16 = Threshold(
    "survival_float16", 3e-4, "norm(dW) / norm(W)", "eight times finer mantissa: about ten times lower"
)
SURVIVAL_COSINE = Threshold(
    "survival_cosine", 0.9, "cosine of what a merge adds with dW", "about what survival_bfloat16 gives"
)

# several sources together
TIED = Threshold("tied", 1.0, "noise of one evaluation", "one-standard-error rule, Breiman et al., CART, 1984")
EXPLODED_RMS = Threshold(
    "exploded_rms",
    0.2,
    "root mean square of an update's entries",
    "a judgement: 10 x transformers' initializer_range of 0.02; real adapters at hand had at most 0.0026",
)
