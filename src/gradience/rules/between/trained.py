"""Rules that name a cause where the numbers of an adapter and what lies beside them agree on one."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Final

from gradience.adapters import layer_index
from gradience.errors import few
from gradience.rules import Observation, Threshold, premise
from gradience.rules.between import BetweenRule, Parts, measured
from gradience.schema import as_float
from gradience.schema.audit import ModuleAudit

UNDERFLOWN = Threshold("underflown", 0.1, "share of exact zeros in lora_B", "float16's smallest number is 6e-8")
ALONE = Threshold("alone", 100, "times the median of the other modules' updates", "measured: 3.4 in 5 public adapters")
LEAST_OTHERS = Threshold("least_others", 8, "modules", "a judgement: a median of fewer says little")
SMALL_SCALE = Threshold("small_scale", 1 / 32, "alpha over rank", "alpha 1, sd-scripts' default, at rank 32")

_HALF: Final = ("fp16", "float16", "16")
_SQUARES: Final = ("exp_avg_sq", "max_exp_avg_sq")


@premise("gradient checkpointing was on")
def _checkpointing(parts: Parts) -> str | None:
    on = parts.settings.get("gradient_checkpointing") is True
    said = str(parts.metadata.get("ss_gradient_checkpointing", "")).lower() == "true"
    return None if on or said else "nothing beside the adapter says that gradient checkpointing was on"


@BetweenRule("TRN420", severity="error", confidence=0.75, needs=(measured, _checkpointing))
def _cut_gradient(parts: Parts) -> Observation | None:
    """layers without a gradient, under gradient checkpointing

    every module within a layer has an update of exactly zero, and the training arguments say gradient_checkpointing

    Why: Reentrant checkpointing computes no gradient in a layer whose inputs need none: with a frozen embedding that
        is every layer, and a head alone is trained.
    Scope: adapters whose lora_B began at zero
    Action: Call model.enable_input_require_grads() before training, or set gradient_checkpointing_kwargs to
        {"use_reentrant": False}, and train again.
    Verify: lora_B of a layer after ten steps.
    Source: https://huggingface.co/docs/peft/main/en/developer_guides/troubleshooting -- gradient checkpointing needs
        inputs that require gradients
    Source: torch/utils/checkpoint.py:checkpoint@2.13.0 -- warns that none of the inputs have requires_grad=True
    """
    inside = [m for m in parts.modules or () if layer_index(m.name) is not None]
    if not inside or any(m.state != "zero" for m in inside):
        return None
    kwargs = parts.settings.get("gradient_checkpointing_kwargs")
    if isinstance(kwargs, dict) and kwargs.get("use_reentrant") is False:
        return None
    rest = [m.name for m in parts.modules or () if m.state == "ok"]
    others = f"; only {few(rest, 2)} moved" if rest else ""
    return Observation(
        f"No module of any layer has moved{others}, and gradient_checkpointing was on: the inputs of the layers needed "
        "no gradient, so that none reached lora_B (enable_input_require_grads, or use_reentrant=False).",
        {"modules": len(inside)},
    )


@premise("lora_B is stored in float16")
def _in_float16(parts: Parts) -> str | None:
    return None if parts.zeros is not None else "lora_B is not stored in float16, or was not read"


@BetweenRule("NUM421", severity="warning", confidence=0.7, needs=(_in_float16,), thresholds=(UNDERFLOWN,))
def _underflow(parts: Parts) -> Observation | None:
    """entries of lora_B that float16 rounded to zero

    at least {underflown} of the entries of lora_B, of the modules that moved, are exactly zero in float16

    Why: What is under 6e-8 is zero in float16: small gradients, or small steps, were lost one by one.
    Scope: factors in float16; modules that did not move at all are told apart
    Action: Train in bfloat16, or keep the factors in float32 (autocast_adapter_dtype).
    Verify: The share of exact zeros in lora_B after training in bfloat16.
    Seen: https://github.com/kohya-ss/sd-scripts/issues/93 -- many zeros in the modules of a file saved in fp16
    """
    if parts.zeros is None or parts.zeros < UNDERFLOWN.value:
        return None
    return Observation(
        f"{parts.zeros:.0%} of the entries of lora_B are exactly zero in float16, in modules that moved: an underflow.",
        {"zeros": parts.zeros},
    )


@BetweenRule("NUM422", severity="error", confidence=0.8, needs=(measured,), signs=("half_precision",))
def _nan_in_half(parts: Parts) -> Observation | None:
    """weights that are not finite, trained in float16

    a module holds NaN or infinity, and the file's metadata or the training arguments say fp16

    Why: float16 ends at 65504: an activation or a gradient beyond it is infinite, and the weights become NaN.
    Scope: kohya's metadata (ss_mixed_precision), and training arguments beside the adapter
    Action: Train again in bf16.
    Verify: The first steps in bf16: is the loss finite?
    Seen: https://github.com/kohya-ss/musubi-tuner/issues/26 -- loss NaN from the start in fp16, black video
    """
    broken = [m for m in parts.modules or () if m.state == "non_finite"]
    said = parts.metadata.get("ss_mixed_precision") in _HALF and "ss_mixed_precision in the file"
    said = said or (parts.settings.get("fp16") is True and "fp16 in the training arguments")
    said = said or (parts.settings.get("mixed_precision") in _HALF and "mixed_precision in the training arguments")
    if not broken or not said:
        return None
    return Observation(
        f"{len(broken)} of {len(parts.modules or ())} modules hold NaN or infinity, and were trained in fp16 "
        f"({said}): train in bf16.",
        {"modules": len(broken), "said": said},
    )


def _size(module: ModuleAudit) -> float:
    """The norm of an update beside that of fresh weights of its shape."""
    norm = as_float(module.frobenius_norm or 0.0)
    out, inner = (*module.shape, 1, 1)[:2]
    return norm / (2.0 * out * inner / (out + inner)) ** 0.5 if out and inner else 0.0


@premise("enough modules were measured to compare one with the others")
def _enough(parts: Parts) -> str | None:
    n = sum(m.state == "ok" for m in parts.modules or ())
    least = LEAST_OTHERS.value
    return None if n > least else f"needs more than {least:g} measured modules; there are {n}"


@BetweenRule("SIZ423", severity="warning", confidence=0.7, needs=(measured, _enough), thresholds=(ALONE, LEAST_OTHERS))
def _one_apart(parts: Parts) -> Observation | None:
    """one module far larger than the others

    the update of a module, beside fresh weights of its shape, is {alone} times the median of the other modules' or
    more; it takes {least_others} others

    Why: One module that runs away decides what the model answers, whatever the others learnt.
    Scope: any adapter; a head or an embedding is usually larger, and not by so much
    Action: Look at its alpha (alpha_pattern), its rate, and what it was merged from; audit an earlier checkpoint.
    Verify: The outputs without this module's factors.
    Seen: https://github.com/kohya-ss/sd-scripts/pull/545 -- single keys outgrow the others, so that the trainer scales
        their norms back
    """
    known = [m for m in parts.modules or () if m.state == "ok"]
    largest = max(known, key=_size)
    others = median(_size(m) for m in known if m is not largest)
    times = _size(largest) / others if others else 0.0
    if times < ALONE.value:
        return None
    return Observation(
        f"The update of {largest.name} is {times:,.0f} times as large as that of a usual module, beside weights of "
        "its shape.",
        {"module": largest.name, "times": times},
    )


@BetweenRule("SCL424", severity="info", confidence=0.6, needs=(measured,), thresholds=(SMALL_SCALE,))
def _small_scale(parts: Parts) -> Observation | None:
    """a small alpha over its rank

    alpha over rank is {small_scale} or less in every module, without rsLoRA

    Why: The update is scaled by alpha / rank: a file that looks trained may change hardly anything.
    Scope: kohya's files, whose scripts set alpha to 1 unless told otherwise, and PEFT's LoRA
    Action: Train with alpha of half the rank or more, or with a rate that is as many times higher.
    Verify: Outputs at a strength of rank / alpha.
    Seen: https://github.com/kohya-ss/sd-scripts/issues/98 -- alpha 1 at rank 128 hardly changed an image, at any rate
    """
    known = [m for m in parts.modules or () if m.state == "ok" and m.alpha is not None and not m.rslora]
    if not known or any(abs(as_float(m.scaling)) > SMALL_SCALE.value for m in known):
        return None
    one = max(known, key=lambda m: abs(as_float(m.scaling)))
    rate = parts.metadata.get("ss_unet_lr") or parts.metadata.get("ss_learning_rate")
    at = f", at a rate of {rate}" if rate and rate != "None" else ""
    return Observation(
        f"alpha is {as_float(one.alpha or 0.0):g} at rank {one.r}: every update is scaled by "
        f"{as_float(one.scaling):.2g}, which is small{at}.",
        {"alpha": one.alpha, "r": one.r, "scaling": one.scaling},
    )


@premise("the state of the optimizer was read")
def _optimizer(parts: Parts) -> str | None:
    return parts.no_optimizer if parts.optimizer is None else None


@BetweenRule("TRN425", severity="error", confidence=0.97, needs=(measured, _optimizer))
def _broken_state(parts: Parts) -> Iterator[Observation]:
    """an optimizer whose averages are not finite

    an average of gradients in optimizer.pt holds NaN or infinity, and the weights beside it do not

    Why: NaN stays in a running average, and each step adds the average to the weights; an infinite average of squares
        makes each step of its entries zero.
    Scope: exp_avg, exp_avg_sq and momentum_buffer, as torch's Adam, AdamW and SGD name them
    Action: Resume from an earlier checkpoint, or give the adapter as a start, with a new optimizer.
    Verify: torch.load("optimizer.pt", weights_only=True)["state"], and torch.isfinite on each tensor.
    Source: arithmetic -- a running average keeps NaN and infinity whatever comes after
    """
    state = parts.optimizer
    if state is None or any(m.state == "non_finite" for m in parts.modules or ()):
        return
    for name, count in state.broken.items():
        end = (
            "after a resume the entries that they divide stay as they are, or become NaN"
            if name in _SQUARES
            else "a resume adds them to the weights with its first step"
        )
        yield Observation(
            f"{state.name} holds NaN or infinity in {count} of {state.tensors} averages, named {name}, and the weights "
            f"are finite: {end}.",
            {"average": name, "broken": count, "averages": state.tensors},
        )


@BetweenRule("TRN426", severity="info", confidence=0.9, needs=(measured, _optimizer))
def _other_count(parts: Parts) -> Observation | None:
    """an optimizer that counts other steps than its checkpoint

    the steps that the optimizer counts are not those of the folder checkpoint-N that holds it

    Why: The Trainer counts a step that fp16 skipped, too; the optimizer does not.
    Scope: checkpoint-N of the Hugging Face Trainer, with an optimizer that counts
    Action: If more was counted, take the optimizer.pt of this checkpoint; if fewer, look where the loss scale fell.
    Verify: max(s["step"] for s in torch.load("optimizer.pt", weights_only=True)["state"].values())
    Source: transformers/trainer.py:Trainer@5.24.0 -- global_step grows after optimizer.step(), also where the scaler
        skipped it
    """
    state = parts.optimizer
    if state is None or state.at is None or state.steps is None or state.steps == state.at:
        return None
    more = state.steps > state.at
    why = (
        "it is the state of another checkpoint or run, or the count of the run began again"
        if more
        else "the others changed no weight (skipped in fp16), or a resume began with a new optimizer"
    )
    return Observation(
        f"{state.name} is at step {state.steps} by its own count, and its folder at step {state.at}: {why}.",
        {"steps": state.steps, "at": state.at},
        severity="warning" if more else "info",
    )


RULES: Final = (_cut_gradient, _underflow, _nan_in_half, _one_apart, _small_scale, _broken_state, _other_count)
