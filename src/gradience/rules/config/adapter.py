"""Rules on the adapter itself: which modules it touches, how strongly, and what of it is saved.

Most read target_modules as names, without the base model. TGT002 and TGT005 read the counts that `--base` gives, from
the base's config.json and file headers, and abstain without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from gradience.adapters import module_type
from gradience.configs.families import known_modules
from gradience.errors import few
from gradience.rules import CLASSIFIER_DOCS, LWR, NEMOTRON, RECIPES, Observation, Sign, Threshold, Unknown, cite
from gradience.rules.config.facts import (
    AN_ADAPTER,
    CAUSAL_SFT,
    LORA,
    NOT_FOREGONE,
    OPEN_OR_WEIGHED,
    Facts,
    LoraRule,
    Moved,
    given,
    stops,
)
from gradience.rules.config.families import asked
from gradience.schema.document import Coverage

Part = Literal["attn", "mlp", "either", "unknown"]

_EITHER = frozenset(["c_proj", "dense", "proj", "output"])  # attention in one model, MLP in another
_ALL = "all-linear"
FEW_LAYERS = Threshold("few_layers", 0.25, "share of the base's layers", "proposal; huggingface/peft#3554 had 4 of 56")
_METAMATH = "PEFT method_comparison/MetaMathQA (Llama-3.2-3B, one seed, GSM8K n = 1319: standard error 1.4 pp)"
SMALL_ALPHA_LR = Threshold("small_alpha_lr", 1e-4, "peak learning rate", "proposal: the low end of shipped recipes")
RANK_MODERATE = Threshold("rank_moderate", 32, "rank", "proposal: from where alpha / r gets small by itself (rsLoRA)")
SMALL_ALPHA_RATIO = Threshold("small_alpha_ratio", 0.25, "alpha / r", "QLoRA ships r = 64, alpha = 16: the lowest seen")
METAMATH_RSLORA = cite(_METAMATH, "r = 64 with rsLoRA, scaling 8: 51.3 %; r = 64, alpha = 128, scaling 2: 47.4 %")
RSLORA = cite("rsLoRA, arXiv 2312.03732 (abstract)", "alpha / r makes high ranks learn slowly")


def part_of(name: str) -> Part:
    """The part of a layer that a module's name, or its last component, suggests.

    "either" means that only the rest of the path would tell.

    >>> part_of("model.layers.0.mlp.up_proj"), part_of("q_proj"), part_of("dense"), part_of("foo")
    ('mlp', 'attn', 'either', 'unknown')
    """
    if name.lower() in _EITHER:
        return "either"
    match module_type(name):
        case "attn" | "mlp" as part:
            return part
    last = name.lower().rpartition(".")[2]
    return "either" if last in _EITHER else "unknown"


def reaches_mlp(targets: Sequence[str] | str) -> bool | None:
    """Whether the targets include an MLP module; None if the names do not tell."""
    if isinstance(targets, str):
        return _expression_reaches_mlp(targets)
    parts = {part_of(name) for name in targets}
    if "mlp" in parts:
        return True
    return False if parts == {"attn"} else None


def _expression_reaches_mlp(text: str) -> bool | None:
    if text.lower() == _ALL:
        return True
    parts = {part_of(word) for word in re.findall(r"[a-z][a-z0-9_]*", text.lower())}
    if "mlp" in parts:
        return True
    return False if "attn" in parts and "either" not in parts else None


@LoraRule(
    "TGT001",
    severity="info",
    reading=True,
    confidence=0.75,
    needs=(LORA, AN_ADAPTER, CAUSAL_SFT),
    settings=("target_modules",),
    evidence=(
        cite(LWR, "adapt all layers, above all the MLP; attention only is worse even with as many parameters"),
        cite(
            _METAMATH,
            "MLP only, r = 10: 49.4 %, train loss 0.581; q and v, r = 32, as many parameters: 47.8 %, 0.607",
        ),
        cite("QLoRA scripts; PEFT docs", "adapters on all linear layers are needed to equal full fine-tuning"),
        RECIPES,
    ),
)
def _attention_only(facts: Facts) -> Iterator[Observation]:
    """attention-only targets

    no target reaches an MLP module

    Why: At equal size an adapter on the MLP, or on all linear layers, usually learns more.
    Scope: supervised training of a causal LM; RL is fine with little capacity
    Action: add the MLP modules, or target_modules='all-linear' with a smaller r
    Verify: same parameters, same steps, with and without the MLP: compare held-out loss
    """
    lora = facts.config.lora
    # These are fused weights of experts, which are MLPs
    if lora.extras.get("target_parameters"):
        return
    if lora.extras.get("target_modules_null") and lora.target_modules is None:
        raise Unknown("target_modules is null: PEFT's default decides (see TGT003)")
    targets = given(lora.target_modules, "target_modules")
    reached = reaches_mlp(targets)
    if reached is None:
        raise Unknown("the target names do not show which are attention and which MLP")
    if not reached:
        yield Observation("only attention modules are targeted", {"target_modules": targets})


@LoraRule(
    "TGT003",
    severity="info",
    reading=True,
    confidence=0.9,
    predicts=True,
    signs=("default_targets",),
    settings=("target_modules",),
    evidence=(NEMOTRON,),
)
def _default_targets(facts: Facts) -> Iterator[Observation]:
    """default targets

    target_modules is null: PEFT chooses by model type

    Why: For most model families the default is attention only; for hybrid models, a few layers only.
    Scope: PEFT configs before training
    Action: name target_modules, or 'all-linear'
    Verify: model.print_trainable_parameters(), and the list of adapted modules
    Source: peft/utils/constants.py (0.21) -- llama, mistral, qwen, gemma: q_proj, v_proj; bert, roberta: query,
        value; unknown type: ValueError
    """
    lora = facts.config.lora
    null = bool(lora.extras.get("target_modules_null"))
    if lora.target_modules is None and not null:
        raise Unknown("target_modules is not given")
    if lora.target_modules is None and not lora.extras.get("target_parameters"):
        yield Observation("target_modules is null: PEFT picks its default for the model type, or refuses", {})


@LoraRule(
    "TGT004",
    severity="warning",
    confidence=0.8,
    signs=("head_left_out",),
    settings=("task_type", "modules_to_save"),
    evidence=(CLASSIFIER_DOCS,),
)
def _unsaved_head(facts: Facts) -> Iterator[Observation]:
    """classifier head not saved

    classification with task_type and modules_to_save unset

    Why: The reloaded model gets a fresh random head and predicts at chance.
    Scope: classification models, PEFT configs
    Action: set task_type='SEQ_CLS' (or TOKEN_CLS), or name the head in modules_to_save
    Verify: the adapter file holds a tensor of the head (gradience audit lists it)
    Source: https://huggingface.co/docs/peft/main/en/developer_guides/troubleshooting -- a new head is saved only if
        task_type or modules_to_save says so
    """
    lora = facts.config.lora
    if lora.task_type or lora.modules_to_save:
        return
    if lora.peft_type is None:
        raise Unknown("task_type is not given; only in a PEFT file would that mean that it is unset")
    if facts.objective.kind in {"unknown", "reward"}:
        raise Unknown(f"task_type is unset; whether there is a new head is not known ({facts.objective.because})")
    if facts.objective.kind == "classification":
        yield Observation(
            "task_type and modules_to_save are unset: the classifier head is neither trained nor saved",
            {"objective": facts.objective.because},
        )


@LoraRule(
    "ALP002",
    severity="info",
    confidence=0.5,
    needs=(LORA, AN_ADAPTER, NOT_FOREGONE),
    predicts=True,
    signs=("low_rate",),
    settings=("alpha",),
    thresholds=(RANK_MODERATE, SMALL_ALPHA_RATIO, SMALL_ALPHA_LR),
    evidence=(RSLORA, METAMATH_RSLORA),
)
def _small_alpha(facts: Facts) -> Iterator[Observation]:
    """small alpha at high rank

    r >= {rank_moderate}, alpha < {small_alpha_ratio} r and lr <= {small_alpha_lr}, without rsLoRA

    Why: alpha / r shrinks as r grows: high rank with small alpha learns slowly.
    Scope: plain LoRA; Adam family
    Action: raise alpha to r / 2 or more, or lr, or set use_rslora
    Verify: same run with alpha = r: compare train loss after 100 steps
    Seen: https://github.com/huggingface/lerobot/issues/3551 -- r = 64 with the default alpha of 8: the robot hardly
        moved until alpha was 64
    """
    if facts.config.lora.use_rslora:
        return
    r, alpha, lr = facts.r, facts.alpha, facts.adam_lr
    if r >= RANK_MODERATE.value and alpha < SMALL_ALPHA_RATIO.value * r and lr <= SMALL_ALPHA_LR.value:
        yield Observation(
            f"alpha {alpha:g} at r {r} and lr {lr:g}: alpha x lr = {alpha * lr:.1e} is a small step",
            {"alpha": alpha, "r": r, "lr": lr, "alpha_lr": alpha * lr},
        )


@LoraRule(
    "NUM001",
    severity="warning",
    confidence=0.8,
    needs=(LORA, AN_ADAPTER, OPEN_OR_WEIGHED),
    predicts=True,
    signs=("half_precision",),
    settings=("dtype", "autocast_adapter_dtype"),
)
def _fp16_weights(facts: Facts) -> Iterator[Observation]:
    """fp16 adapter under fp16 training

    fp16 training with autocast_adapter_dtype off

    Why: The gradient scaler refuses fp16 gradients: the run stops at its first step.
    Scope: fp16 mixed precision
    Action: leave autocast_adapter_dtype on, or train in bf16
    Verify: see whether the first optimizer step raises an error
    Source: torch/amp/grad_scaler.py:GradScaler._unscale_grads_@2.13.0 -- raises 'Attempting to unscale FP16
        gradients.'
    """
    if given(facts.config.training.dtype, "dtype (fp16, bf16)") not in {"float16", "fp16"}:
        return
    autocast = given(facts.config.lora.extras.get("autocast_adapter_dtype"), "autocast_adapter_dtype")
    if autocast is False:
        yield Observation(
            "fp16 training with autocast_adapter_dtype off keeps the adapter in fp16", {"dtype": "float16"}
        )


@LoraRule(
    "BIA001",
    severity="info",
    confidence=0.9,
    settings=("bias",),
)
def _trained_bias(facts: Facts) -> Iterator[Observation]:
    """biases of the base model are trained

    bias is not 'none'

    Why: Disabling the adapter no longer restores the base model; serving engines refuse the adapter.
    Scope: PEFT LoRA configs
    Action: set bias='none' unless this is meant
    Verify: compare the base model's output with the adapter disabled
    Seen: https://github.com/AguLeon/LoRA_RoBERTa_AGNews -- bias "all": 105 tensors of the base model in the adapter
    Source: PEFT, LoraConfig docstring -- disabling the adapter no longer gives the base model's output
    """
    bias = given(facts.config.lora.bias, "bias")
    if bias != "none":
        yield Observation(f"bias is '{bias}': biases of the base model are trained and saved too", {"bias": bias})


@LoraRule(
    "TGT002",
    severity="warning",
    confidence=0.9,
    groups=("base",),
    signs=(Sign("stops", frozenset({"error"}), values=stops), "missed_targets"),
    settings=("target_modules", "exclude_modules", "target_parameters"),
    thresholds=(FEW_LAYERS,),
    evidence=(NEMOTRON,),
)
def _reach(facts: Facts) -> Iterator[Observation]:
    """targets reach little or nothing

    PEFT would refuse a target, the targets match no module (both errors), they reach under {few_layers} of the
    layers, or one of them matches nothing (info, unless misspelt)

    Why: A module that no target names is not trained, and a run of hours can adapt almost nothing.
    Scope: PEFT LoRA; with --base, for models whose modules are named as in their files
    Action: check the list against the base's module names
    Verify: model.print_trainable_parameters(), and model.targeted_module_names
    Seen: https://github.com/huggingface/peft/issues/3554 -- default targets hit 4 of 56 layers; the loss stayed at
        ln 2 for all of DPO
    Source: PEFT 0.21.2, tuners/tuners_utils.py: check_target_module_exists, inject_adapter -- a listed name must
        equal a module's name or its end after a dot; a string is a regular expression for the whole name; a module
        that PEFT has no LoRA for raises
    """
    coverage, moved = facts.coverage, facts.around.moved
    elsewhere = None if moved is None else _renaming(moved)
    if coverage.refused:
        yield _refused(coverage)
    if not coverage.modules and not coverage.refused:
        yield Observation(
            f"the targets match no module of {coverage.base}",
            {"modules": 0, "layers_total": coverage.layers_total, "unmatched_targets": coverage.unmatched_targets},
            severity="error",
            action=elsewhere or "name modules that exist, or use 'all-linear'",
        )
        return
    share = coverage.layers / coverage.layers_total if coverage.layers_total else 1.0
    if coverage.modules and share < FEW_LAYERS.value and not facts.config.lora.extras.get("layers_to_transform"):
        yield Observation(
            f"the adapter touches {coverage.layers} of {coverage.layers_total} layers",
            {"layers": coverage.layers, "layers_total": coverage.layers_total, "modules": coverage.modules},
        )
    missed = coverage.unmatched_targets
    if missed and coverage.modules:
        shown = [asked(name, known_modules()) for name in missed]
        yield Observation(
            f"nothing in {coverage.base} matches {few(shown)}",
            {"unmatched_targets": missed},
            # `asked` adds to misspelt names only; others that match nothing are usual in lists made for many families
            severity="info" if shown == missed else "warning",
            action=elsewhere or "correct the spelling, or leave the name out",
        )


def _renaming(moved: Moved) -> str:
    if moved.saved:
        return f"rename the adapter's modules: gradience convert ADAPTER --rename {moved.old}={moved.new} --out NEW"
    return f"name modules below {moved.new or 'the top'}, as the base does, not below {moved.old}"


def _refused(coverage: Coverage) -> Observation:
    names = [item.name for item in coverage.refused]
    return Observation(
        f"PEFT will refuse {few(names)}: {coverage.refused[0].reason}",
        {"refused": names},
        severity="error",
        action="name the layers that hold weights, and leave these out",
    )


@LoraRule(
    "TGT005",
    severity="warning",
    confidence=0.7,
    groups=("base",),
    settings=("trainable_token_indices", "modules_to_save", "target_modules"),
)
def _untrained_tokens(facts: Facts) -> Iterator[Observation]:
    """added tokens without trained embeddings

    the tokenizer has added tokens, and no row of the embedding is trained

    Why: The rows of new tokens are random and stay so; the model sees noise wherever they occur.
    Scope: with --base, and a tokenizer saved beside the configuration
    Action: set trainable_token_indices to their ids, or put the embedding in modules_to_save
    Verify: the adapter file holds token rows or an embedding (gradience audit lists it)
    Source: https://huggingface.co/docs/peft/main/en/developer_guides/troubleshooting -- with an extended vocabulary
        the embedding must be trained and saved
    """
    coverage = facts.coverage
    if facts.around.no_tokenizers:
        raise Unknown(facts.around.no_tokenizers)
    added = coverage.added_tokens
    if added and not coverage.embedding_trained:
        yield Observation(
            f"{len(added)} tokens were added to the tokenizer ({few(added)}), and no embedding row is trained",
            {"added_tokens": added, "vocabulary": coverage.vocabulary},
        )


RULES = (
    _attention_only,
    _default_targets,
    _unsaved_head,
    _small_alpha,
    _fp16_weights,
    _trained_bias,
    _reach,
    _untrained_tokens,
)
