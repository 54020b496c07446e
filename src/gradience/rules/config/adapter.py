"""What the adapter touches, how strongly, and what of it is saved."""

from __future__ import annotations

from collections.abc import Iterator

from gradience.rules.config.facts import Facts, given
from gradience.rules.config.hits import Hit, Rule
from gradience.rules.config.targets import reaches_mlp
from gradience.rules.evidence import (
    CLASSIFIER_DOCS,
    DEFAULT_TARGETS,
    FP16_DOCS,
    LORA_BIAS,
    LWR_TARGETS,
    METAMATH_MLP,
    METAMATH_RSLORA,
    NEMOTRON,
    QLORA_TARGETS,
    RECIPES,
    RSLORA,
)
from gradience.rules.rule import Unknown
from gradience.rules.thresholds import DATA_LARGE, RANK_MODERATE, RSLORA_SCALING, SMALL_ALPHA_LR, SMALL_ALPHA_RATIO


def _attention_only(facts: Facts) -> Iterator[Hit]:
    lora = facts.config.lora
    if facts.objective.kind != "sft" or lora.task_type not in {None, "CAUSAL_LM"}:
        reason = f"objective {facts.objective.kind} ({facts.objective.because}): the evidence is for causal SFT"
        raise Unknown(reason)
    if lora.extras.get("target_parameters"):
        return
    if lora.extras.get("target_modules_null") and lora.target_modules is None:
        reason = "target_modules is null: PEFT's default decides (see TGT003)"
        raise Unknown(reason)
    targets = given(lora.target_modules, "target_modules")
    reached = reaches_mlp(targets)
    if reached is None:
        reason = "the names of the targets do not tell attention from MLP"
        raise Unknown(reason)
    if not reached:
        examples = facts.config.training.extras.get("train_examples")
        large = isinstance(examples, int) and examples > DATA_LARGE.value
        yield Hit(
            "only attention modules are targeted",
            {"target_modules": targets, **({"train_examples": examples} if large else {})},
            severity="warning" if large else None,
        )


def _default_targets(facts: Facts) -> Iterator[Hit]:
    lora = facts.config.lora
    null = bool(lora.extras.get("target_modules_null"))
    if lora.target_modules is None and not null:
        reason = "target_modules is not given"
        raise Unknown(reason)
    if lora.target_modules is None and not lora.extras.get("target_parameters"):
        yield Hit("target_modules is null: PEFT picks its default for the model type, or refuses", {})


def _unsaved_head(facts: Facts) -> Iterator[Hit]:
    lora = facts.config.lora
    if lora.task_type or lora.modules_to_save:
        return
    if lora.peft_type is None:
        reason = "task_type is not given, and the file is not PEFT's, where that would mean unset"
        raise Unknown(reason)
    if facts.objective.kind == "unknown":
        reason = f"task_type is unset; whether there is a new head is not known ({facts.objective.because})"
        raise Unknown(reason)
    if facts.objective.kind == "classification":
        yield Hit(
            "task_type and modules_to_save are unset: the classifier head is neither trained nor saved",
            {"objective": facts.objective.because},
        )


def _large_scaling(facts: Facts) -> Iterator[Hit]:
    if facts.config.lora.use_rslora and facts.scaling > RSLORA_SCALING.value:
        yield Hit(
            f"rsLoRA with alpha {facts.alpha:g}, r {facts.r}: scaling {facts.scaling:.3g}",
            {"scaling": facts.scaling, "alpha": facts.alpha, "r": facts.r},
        )


def _small_alpha(facts: Facts) -> Iterator[Hit]:
    if facts.config.lora.use_rslora:
        return
    r, alpha, lr = facts.r, facts.alpha, facts.adam_lr
    if r >= RANK_MODERATE.value and alpha < SMALL_ALPHA_RATIO.value * r and lr <= SMALL_ALPHA_LR.value:
        yield Hit(
            f"alpha {alpha:g} at r {r} and lr {lr:g}: alpha x lr = {alpha * lr:.1e} is a small step",
            {"alpha": alpha, "r": r, "lr": lr, "alpha_lr": alpha * lr},
        )


def _fp16_weights(facts: Facts) -> Iterator[Hit]:
    if given(facts.config.training.dtype, "dtype (fp16, bf16)") not in {"float16", "fp16"}:
        return
    autocast = given(facts.config.lora.extras.get("autocast_adapter_dtype"), "autocast_adapter_dtype")
    if autocast is False:
        yield Hit("fp16 training with autocast_adapter_dtype off keeps the adapter in fp16", {"dtype": "float16"})


def _trained_bias(facts: Facts) -> Iterator[Hit]:
    bias = given(facts.config.lora.bias, "bias")
    if bias != "none":
        yield Hit(f"bias is '{bias}': biases of the base model are trained and saved too", {"bias": bias})


RULES = (
    Rule(
        id="TGT001",
        severity="info",
        title="attention-only targets",
        condition=_attention_only,
        confidence=0.75,
        evidence=(LWR_TARGETS, METAMATH_MLP, QLORA_TARGETS, RECIPES),
        rationale="At equal size an adapter on the MLP, or on all linear layers, usually learns more.",
        action="add the MLP modules, or target_modules='all-linear' with a smaller r",
        scope="supervised training of a causal LM; RL is fine with little capacity",
        verify="same parameters, same steps, with and without the MLP: compare held-out loss",
        thresholds=(DATA_LARGE,),
    ),
    Rule(
        id="TGT003",
        severity="info",
        title="default targets",
        condition=_default_targets,
        confidence=0.9,
        evidence=(DEFAULT_TARGETS, NEMOTRON),
        rationale="The default is attention only for most families, and for hybrids a few layers.",
        action="name target_modules, or 'all-linear'",
        scope="PEFT configs before training",
        verify="model.print_trainable_parameters(), and the list of adapted modules",
    ),
    Rule(
        id="TGT004",
        severity="warning",
        title="classifier head not saved",
        condition=_unsaved_head,
        confidence=0.8,
        evidence=(CLASSIFIER_DOCS,),
        rationale="The reloaded model gets a fresh random head and predicts at chance.",
        action="set task_type='SEQ_CLS' (or TOKEN_CLS), or name the head in modules_to_save",
        scope="classification models, PEFT configs",
        verify="the adapter file holds a tensor of the head (gradience audit lists it)",
    ),
    Rule(
        id="ALP001",
        severity="info",
        title="large rsLoRA scaling",
        condition=_large_scaling,
        confidence=0.45,
        evidence=(METAMATH_RSLORA, RSLORA),
        rationale="With rsLoRA the same alpha acts sqrt(r) times stronger; alpha = 2 r is rarely meant.",
        action="check alpha, and watch the first steps",
        scope="rsLoRA; beyond the largest scaling seen to work, not known to fail",
        verify="grad_norm and loss in the first 100 steps against alpha = 16",
        thresholds=(RSLORA_SCALING,),
    ),
    Rule(
        id="ALP002",
        severity="info",
        title="small alpha at high rank",
        condition=_small_alpha,
        confidence=0.5,
        evidence=(RSLORA, METAMATH_RSLORA),
        rationale="alpha / r shrinks as r grows: high rank with small alpha learns slowly.",
        action="raise alpha to r / 2 or more, or lr, or set use_rslora",
        scope="plain LoRA; Adam family",
        verify="same run with alpha = r: compare train loss after 100 steps",
        thresholds=(RANK_MODERATE, SMALL_ALPHA_RATIO, SMALL_ALPHA_LR),
    ),
    Rule(
        id="NUM001",
        severity="warning",
        title="fp16 adapter under fp16 training",
        condition=_fp16_weights,
        confidence=0.8,
        evidence=(FP16_DOCS,),
        rationale="The gradient scaler refuses fp16 gradients: the run stops at its first step.",
        action="leave autocast_adapter_dtype on, or train in bf16",
        scope="fp16 mixed precision",
        verify="the first optimizer step raises or does not",
    ),
    Rule(
        id="BIA001",
        severity="info",
        title="biases of the base model are trained",
        condition=_trained_bias,
        confidence=0.9,
        evidence=(LORA_BIAS,),
        rationale="Disabling the adapter no longer restores the base model; engines refuse it.",
        action="set bias='none' unless this is meant",
        scope="PEFT LoRA configs",
        verify="compare the base model's output with the adapter disabled",
    ),
)
