"""Rules on what is served: one for each thing that `gradience verify` finds in place of the adapter.

The numbers are compared in `gradience.verbs.receipt.verdict`, on log-probabilities; a rule says what follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gradience.rules import Observation, Rule, Threshold, cite
from gradience.schema.document import RuleGroup
from gradience.schema.receipt import ServedVerdict, VerifyServedReport

_MEASURED: Final = "benchmarks/receipt.py, on the models that the thresholds were chosen on"
FINE = Threshold("fine", 2.0, "times the noise that was measured in the target's dtype", _MEASURED)
COARSE = Threshold("coarse", 2.0, "times the largest noise of 4-bit weights that was measured", _MEASURED)
APART = Threshold(
    "apart",
    50.0,
    "times the noise to expect in floats",
    "a judgement: from here on 4 bits that the values do not show are no excuse",
)
CLEAR = Threshold("clear", 0.15, "distance from the explanation over distance from the adapter", _MEASURED)
EXPLAINED = Threshold("explained", 0.5, "the same, where what is left is within the noise of 4 bits", _MEASURED)
BEYOND = Threshold(
    "beyond", 0.1, "share of the difference along what parts of the adapter do, more than of noise", _MEASURED
)
UNLIKE = Threshold(
    "unlike", 0.7, "cosine of what was read and the adapter in probabilities, both less the base's", _MEASURED
)

_BENCH = cite("benchmarks/receipt.py", "how often each verdict is right, and its cause: docs/evidence/receipt.md")


@dataclass(frozen=True, kw_only=True)
class _ServedRule(Rule[VerifyServedReport]):
    """A rule that `gradience verify` applies."""

    groups: tuple[RuleGroup, ...] = ("served",)
    scope: str = "what serves an adapter of which there is a receipt"
    verify: str = "Load base and adapter with PEFT, write a receipt, and compare again."


def _if(report: VerifyServedReport, verdict: ServedVerdict) -> Observation | None:
    if report.verdict != verdict:
        return None
    values = {"residual": report.residual, "share": report.share, "from_base": report.from_base}
    if report.factor is not None:
        values["factor"] = report.factor
    message = f"{report.story}. {report.cause}" if report.cause else report.story
    return Observation(message, {name: value for name, value in values.items() if value is not None})


@_ServedRule("RCP501", severity="error", confidence=0.95, thresholds=(EXPLAINED,), evidence=(_BENCH,))
def _the_base(report: VerifyServedReport) -> Observation | None:
    """the base answers

    what was read is the base's within noise, and nearer to it than {explained} of its distance from the adapter

    Why: The adapter is not applied: not loaded, not asked for by name, or loaded under keys that match nothing.
    Action: Ask for the adapter by the name under which it is served; see the server's log for ignored keys, and
        'gradience check --serve'.
    Seen: https://github.com/unslothai/unsloth/issues/869 -- what was merged and saved is exactly the base
    """
    return _if(report, "the_base")


@_ServedRule("RCP502", severity="error", confidence=0.9, thresholds=(EXPLAINED,), evidence=(_BENCH,))
def _part_missing(report: VerifyServedReport) -> Observation | None:
    """a part of the adapter is missing

    without a group of modules the adapter reads as the target does, within noise and within {explained} of the
    distance from the whole adapter

    Why: Engines leave out modules that they do not adapt, and keys that they do not know.
    Action: See 'gradience check --serve' for what the engine leaves out; merge the adapter if it cannot serve these
        modules.
    Seen: https://github.com/unslothai/unsloth-zoo/pull/779 -- a merged model of experts is the base and a part of
        the updates
    """
    return _if(report, "part_missing")


@_ServedRule("RCP503", severity="error", confidence=0.9, thresholds=(EXPLAINED,), evidence=(_BENCH,))
def _wrong_scale(report: VerifyServedReport) -> Observation | None:
    """another scale

    at another scale the adapter reads as the target does, within {explained} of the distance at its own

    Why: alpha / r was left out, applied twice, or is not that of rsLoRA.
    Action: Compare lora_alpha, r and use_rslora in the served config with those of the adapter.
    Seen: https://github.com/NVIDIA/TensorRT-LLM/issues/1668 -- use_rslora is ignored: a scale of 2 instead of 5.7
    """
    return _if(report, "wrong_scale")


@_ServedRule("RCP504", severity="error", confidence=0.8, thresholds=(UNLIKE, BEYOND), evidence=(_BENCH,))
def _another_checkpoint(report: VerifyServedReport) -> Observation | None:
    """another checkpoint, or a near relative

    beyond noise, unexplained, and at a cosine of {unlike} or more; where the noise of 4 bits reaches as far, only
    if {beyond} more of it than of that noise lies along what parts of the adapter do

    Why: What answers goes the adapter's way and is not it: an earlier or later checkpoint, or another run on the
        same data.
    Action: Compare the adapter's digest with that of the files that are served.
    Seen: https://github.com/vllm-project/vllm/issues/42125 -- an adapter that is loaded again under its name is
        served with parts of the old one
    """
    return _if(report, "another_checkpoint")


@_ServedRule("RCP505", severity="error", confidence=0.9, thresholds=(UNLIKE,), evidence=(_BENCH,))
def _another_adapter(report: VerifyServedReport) -> Observation | None:
    """another adapter or another base

    beyond noise, unexplained, and at a cosine under {unlike}

    Why: What answers is neither the base nor near the adapter.
    Action: Check which adapter and which base the server loaded; an old one may still be in its cache.
    Seen: https://github.com/vllm-project/vllm/issues/47724 -- a request is served with another user's adapter
    """
    return _if(report, "another_adapter")


@_ServedRule("RCP506", severity="error", confidence=0.95)
def _tokens_or_template_differ(report: VerifyServedReport) -> Observation | None:
    """other tokens or another chat template

    a text of our own becomes other token ids than when the receipt was written

    Why: The model is asked something else than it was trained on, whatever its weights.
    Action: Serve with the tokenizer and chat template saved beside the adapter.
    Seen: https://github.com/hiyouga/LlamaFactory/issues/6020 -- Ollama without the chat template of training:
        nonsense
    Source: the token ids -- equality of lists
    """
    return _if(report, "tokens_or_template_differ")


SERVED_RULES: Final[tuple[Rule[VerifyServedReport], ...]] = (
    _the_base,
    _part_missing,
    _wrong_scale,
    _another_checkpoint,
    _another_adapter,
    _tokens_or_template_differ,
)
