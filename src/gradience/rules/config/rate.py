"""Rules on the learning rate (LR001, LR003 to LR005).

The published bands hold for the Adam family and one objective each, so the rules abstain elsewhere. If scaling, rank
and rate are all known, their product decides before the rate alone. It says how far early Adam steps move the update,
up to a constant; this is a heuristic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradience.errors import few
from gradience.rules import LWR, RECIPES, SWEEP, SWEEP_HIGH, TRL_RL, Observation, Sign, Threshold, Unknown, cite
from gradience.rules.config.facts import AN_ADAPTER, LORA, NOT_FOREGONE, SUPERVISED, Facts, LoraRule
from gradience.schema import Real, Severity, as_float

TINKER_RL = cite("tinker-cookbook, skills/research/references/hyperparams.md", "DPO 1e-5, GRPO 4e-5")
LOW_LR = Threshold(
    "low_lr", 5e-5, "peak learning rate", "default of transformers' TrainingArguments; just above the sweep's 4e-5"
)
BAND_TOP = Threshold(
    "band_top", 1e-3, "peak learning rate", "tinker-cookbook sft_sweep: the highest rate that is still best somewhere"
)
DIVERGENT_LR = Threshold(
    "divergent_lr", 3e-3, "peak learning rate", "tinker-cookbook sft_sweep: 101 of 110 divergences are at 3e-3"
)
PREFERENCE_LR = Threshold(
    "preference_lr", 5e-5, "peak learning rate", "just above the highest published one: GRPO 4e-5 (tinker-cookbook)"
)
LOW_PREFERENCE_LR = Threshold(
    "low_preference_lr", 2e-6, "peak learning rate", "half the lowest published for LoRA (5e-6), twice TRL's default"
)
SPIKE_LR = Threshold("spike_lr", 2e-4, "peak learning rate", "Biderman et al. 2024, r = 256, alpha = 512")
USUAL_STEP = Threshold(
    "usual_step", 3.2e-3, "scaling x r x lr", "16 x 2e-4: QLoRA's and Unsloth's recipe, the smallest widely shipped"
)
BEST_STEP = Threshold(
    "best_step", 9.6e-3, "scaling x r x lr", "32 x 3e-4: the best rate of the median model in tinker-cookbook sft_sweep"
)
RANK_HIGH = Threshold("rank_high", 128, "rank", "proposal: half the rank of Biderman et al. 2024's unstable runs")
SPIKE_ALPHA_RATIO = Threshold("spike_alpha_ratio", 2.0, "alpha / r", "Biderman et al. 2024, r = 256, alpha = 512")
SWEEP_LOW = cite(SWEEP, "median excess test loss: 4e-5 +2.6 % (up to 9.9), 1e-4 +1.1 %, 3e-4 0.0 %, 1e-3 +0.5 %")

_DEFAULTS = {  # by the format of the file, or the family of TRL's configs that it shows
    "": (5e-5, "transformers' TrainingArguments"),
    "sft": (2e-5, "TRL's SFTConfig"),
    "mlx-lm": (1e-5, "MLX-LM"),
}
_HINTED_CONFIDENCE = 0.6  # the objective is a guess from the model, or the evidence is from another objective
_BELOW_DIVERGENCE = 0.7  # confidence: some models still train well there
_EMBEDDINGS = ("embed", "lm_head", "wte")  # names of whole matrices for which a low rate is usual
_PREDICTS = (LORA, AN_ADAPTER, NOT_FOREGONE)


@LoraRule(
    "LR001",
    groups=("config", "log"),
    severity="warning",
    confidence=0.8,
    needs=(*_PREDICTS, SUPERVISED),
    predicts=True,
    signs=("low_rate",),
    settings=("lr",),
    thresholds=(LOW_LR, USUAL_STEP),
    evidence=(
        SWEEP_LOW,
        cite(LWR, "the best LoRA rate is about 10 x that of full fine-tuning"),
        cite(
            "TRL docs, peft_integration.md",
            "LoRA SFT 2e-4 (10 x 2e-5); the same page's command line has 2e-5: it disagrees with itself",
        ),
        RECIPES,
        cite("library defaults", "transformers 5e-5, TRL's SFTConfig 2e-5, MLX-LM 1e-5"),
    ),
)
def _full_fine_tuning_rate(facts: Facts) -> Iterator[Observation]:
    """learning rate of full fine-tuning

    peak lr <= {low_lr}, unless scaling x r x lr >= {usual_step} (MLX-LM: in a digit of the rate); as info of a run
    that has begun

    Why: The adapter learns slowly, and the run ends before it has learnt what it could.
    Scope: supervised LoRA; Adam family; peak learning rate; not where scaling x r x lr already reaches a shipped
        recipe's, or the rate also trains an embedding
    Action: try 1e-4 to 5e-4 (2e-4 is the usual start)
    Verify: run both rates for the same number of steps and compare held-out loss
    Seen: https://github.com/wyek1n/MLX-CLI -- an adapter trained with MLX-LM's default of 1e-5
    """
    if "lr_from" in facts.config.optimizer.extras:
        raise Unknown("the configured rate is not known: the largest one logged may be far below it")
    whole = [name for name in facts.config.lora.modules_to_save or [] if any(part in name for part in _EMBEDDINGS)]
    if whole:
        raise Unknown(f"the rate also trains whole matrices ({few(whole)}), which want a lower one")
    lr = facts.adam_lr
    if lr > LOW_LR.value or _step(facts, default=0.0) >= USUAL_STEP.value:
        return
    source = str(facts.config.extras.get("format") or facts.config.training.extras.get("trainer") or "")
    # NaN is close to no rate
    value, name = _DEFAULTS.get(source, (math.nan, ""))
    named = f", the default of {name}" if math.isclose(lr, value) else ""
    sure = facts.objective.kind == "sft" and facts.objective.stated
    severity: Severity | None = None if facts.around.moment == "to come" else "info"  # what came of it may be well
    step = _step(facts, default=0.0)
    if source == "mlx-lm" and step > 0:  # its scales are 10 and 20, so the rate alone says little
        low, high = (f"{band.value / step * lr:.1g}" for band in (USUAL_STEP, BEST_STEP))
        if float(low) <= lr:
            return  # a rate that rounds to the lowest of the band is in it
        yield Observation(
            f"lr {lr:g}{named} moves the update slowly: scaling x r x lr is {step:.1e}, and 3e-3 to 1e-2 in shipped "
            "recipes",
            {"lr": lr, **_step_value(facts)},
            action=f"try {low} to {high}",
            severity=severity,
            confidence=None if sure else _HINTED_CONFIDENCE,
        )
        return
    yield Observation(
        f"lr {lr:g} looks like a full fine-tuning rate{named}; LoRA usually wants about 10 x that",
        {"lr": lr, **_step_value(facts)},
        severity=severity,
        confidence=None if sure else _HINTED_CONFIDENCE,
    )


def _refuse_groups(facts: Facts, most: Threshold) -> None:
    """Abstain where only some groups of the optimizer are above a bound, as B is in LoRA+, or a new head."""
    held = facts.config.optimizer.extras.get("lr_groups")
    rates: list[Real] = held if isinstance(held, list) else []
    lowest = min((as_float(rate) for rate in rates), default=math.inf)
    if lowest <= most.value:
        raise Unknown(f"the optimizer's groups have several rates, from {lowest:g}: the bands are those of one")


@LoraRule(
    "LR003",
    groups=("config", "log"),
    severity="warning",
    confidence=0.85,
    needs=_PREDICTS,
    predicts=True,
    signs=("high_rate",),
    settings=("lr",),
    thresholds=(BAND_TOP, DIVERGENT_LR, BEST_STEP),
    evidence=(SWEEP_HIGH,),
)
def _high_rate(facts: Facts) -> Iterator[Observation]:
    """learning rate above the published band

    peak lr > {band_top}, and scaling x r x lr, where known, > {best_step}; surer from {divergent_lr} on

    Why: Some models still train well above the band, others lose several percent; at 3e-3 most diverge.
    Scope: not preference or RL; Adam family; peak learning rate; evidence from one chat data set with alpha 32
    Action: lower lr to 1e-3 at most; 2e-4 is the usual start
    Verify: 100 steps at this rate: the loss falls below its start and stays there
    Seen: https://github.com/tloen/alpaca-lora/issues/391 -- lr 0.003 with r = 128, alpha = 256: the loss went to 0
    """
    if facts.objective.kind in {"preference", "rl"}:
        raise Unknown(f"the objective is {facts.objective.kind}: LR004 covers it")
    lr = facts.adam_lr
    if lr <= BAND_TOP.value or _step(facts, default=math.inf) <= BEST_STEP.value:
        return
    # Asked only now: lr is the highest rate of the groups, so none is above a bound that lr is not above
    _refuse_groups(facts, BAND_TOP)
    diverges = lr >= DIVERGENT_LR.value
    what = f"at lr {lr:g} most LoRA runs of a 35-model sweep diverged"
    yield Observation(
        what if diverges else f"lr {lr:g} is above the published band for LoRA",
        {"lr": lr, **_step_value(facts)},
        confidence=None if diverges else _BELOW_DIVERGENCE,
    )


@LoraRule(
    "LR004",
    severity="warning",
    confidence=0.7,
    needs=_PREDICTS,
    predicts=True,
    signs=(
        Sign("high_rate", unless=frozenset({"low"})),
        Sign("high_rate_for_preferences", unless=frozenset({"low"})),
        Sign("low_rate", frozenset({"low"})),
    ),
    settings=("lr",),
    thresholds=(PREFERENCE_LR, LOW_PREFERENCE_LR),
    evidence=(
        TRL_RL,
        TINKER_RL,
        cite("Unsloth LoRA hyperparameters guide", "2e-4 for SFT, 5e-6 for reinforcement learning"),
        RECIPES,
        cite("TRL 1.16, DPOConfig and GRPOConfig", "learning_rate 1e-6: for full fine-tuning; LoRA wants 10 x that"),
    ),
)
def _preference_rate(facts: Facts) -> Iterator[Observation]:
    """learning rate too high or too low for preference or RL

    peak lr > {preference_lr}, or <= {low_preference_lr}, under a preference or RL objective

    Why: These objectives drift from the reference model long before the loss shows it; at too low a rate the adapter
        hardly moves, and the reward stays where it began.
    Scope: preference optimisation and RL with LoRA; Adam family; peak learning rate
    Action: try 5e-6 for DPO, 1e-5 to 4e-5 for GRPO
    Verify: KL to the reference, within the first hundred steps too, and the reward on held-out prompts
    Seen: public repositories -- the full fine-tuning default of TRL's RL trainers, with LoRA
    """
    kind = facts.objective.kind
    if kind == "unknown":
        because = facts.objective.because
        raise Unknown(f"the objective is not known ({because}): say --task sft, dpo, grpo or a task's name")
    if kind not in {"preference", "rl"}:
        return
    if facts.adam_lr > PREFERENCE_LR.value:
        _refuse_groups(facts, PREFERENCE_LR)
        what = "preference optimisation" if kind == "preference" else "reinforcement learning"
        yield Observation(
            f"lr {facts.lr:g} is high for {what}: DPO uses about 5e-6, GRPO 1e-5 to 4e-5", {"lr": facts.lr}
        )
    if facts.adam_lr <= LOW_PREFERENCE_LR.value:
        if "lr_from" in facts.config.optimizer.extras:
            raise Unknown("the configured rate is not known: the largest one logged may be far below it")
        named = ", the default of TRL's trainers," if math.isclose(facts.lr, 1e-6) else ""
        yield Observation(
            f"lr {facts.lr:g}{named} is a rate of full fine-tuning: with LoRA DPO uses about 5e-6, GRPO 1e-5 to 4e-5",
            {"lr": facts.lr, "low": True, **_step_value(facts)},
            confidence=0.65,
        )


@LoraRule(
    "LR005",
    severity="warning",
    confidence=0.6,
    needs=_PREDICTS,
    predicts=True,
    signs=("high_rate",),
    settings=("lr", "r"),
    thresholds=(RANK_HIGH, SPIKE_ALPHA_RATIO, SPIKE_LR),
)
def _spiking_corner(facts: Facts) -> Iterator[Observation]:
    """high rank, high alpha and high rate together

    r >= {rank_high}, alpha >= {spike_alpha_ratio} r and lr >= {spike_lr}, without rsLoRA

    Why: The update's step grows with alpha x lr: here it is far beyond shipped recipes.
    Scope: plain LoRA; evidence from LionW on one 7B model, so weak for AdamW
    Action: halve lr, or alpha
    Verify: see whether the loss spikes in the first epoch at this rate, but not at half of it
    Seen: https://github.com/tloen/alpaca-lora/issues/391 -- r = 128, alpha = 256, lr 0.003: the loss went to 0
    Source: LoRA Learns Less and Forgets Less, Biderman et al. 2024, repository README (Llama-2-7B, LionW) -- r =
        256, alpha = 512: 1e-4, not 2e-4, 'due to instabilities/loss spikes'; math 5e-5, not 1e-4
    """
    if facts.config.lora.use_rslora:
        return
    r, alpha, lr = facts.r, facts.alpha, facts.lr
    if r >= RANK_HIGH.value and alpha >= SPIKE_ALPHA_RATIO.value * r and lr >= SPIKE_LR.value:
        three = f"r {r}, alpha {alpha:g} and lr {lr:g} together"
        yield Observation(
            f"{three} are a combination for which loss spikes were published", {"r": r, "alpha": alpha, "lr": lr}
        )


def _step(facts: Facts, *, default: float) -> float:
    try:
        return facts.early_step
    except Unknown:
        return default


def _step_value(facts: Facts) -> dict[str, float]:
    try:
        return {"scaling_r_lr": facts.early_step}
    except Unknown:
        return {}


RULES = (
    _full_fine_tuning_rate,
    _high_rate,
    _preference_rate,
    _spiking_corner,
)
