"""Rules on what is served: one for each thing that `gradience verify-served` finds in place of the adapter.

The numbers are compared in `gradience.prove.receipt.verdict`, on log-probabilities; a rule says what follows.
"""

from __future__ import annotations

from collections.abc import Callable
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

_BENCH = cite("benchmarks/receipt.py", "how often each verdict is right, and its cause: docs/receipt.md")


@dataclass(frozen=True, kw_only=True)
class _ServedRule(Rule[VerifyServedReport]):
    """A rule that `gradience verify-served` applies."""

    groups: tuple[RuleGroup, ...] = ("served",)
    scope: str = "what serves an adapter of which there is a receipt"
    verify: str = "Load base and adapter with PEFT, write a receipt, and compare again."


def _if(verdict: ServedVerdict) -> Callable[[VerifyServedReport], Observation | None]:
    def observe(report: VerifyServedReport) -> Observation | None:
        if report.verdict != verdict:
            return None
        values = {"residual": report.residual, "share": report.share, "from_base": report.from_base}
        if report.factor is not None:
            values["factor"] = report.factor
        return Observation(report.story, {name: value for name, value in values.items() if value is not None})

    return observe


SERVED_RULES: Final[tuple[Rule[VerifyServedReport], ...]] = (
    _ServedRule(
        id="RCP501",
        severity="error",
        title="the base answers",
        condition="what was read is the base's within noise, and nearer to it than {explained} of its distance from "
        "the adapter",
        observe=_if("the_base"),
        confidence=0.95,
        evidence=(_BENCH,),
        rationale="The adapter is not applied: not loaded, not asked for by name, or loaded under keys that match "
        "nothing.",
        action="Ask for the adapter by the name under which it is served; see the server's log for ignored keys, and "
        "'gradience check --serve'.",
        thresholds=(EXPLAINED,),
    ),
    _ServedRule(
        id="RCP502",
        severity="error",
        title="a part of the adapter is missing",
        condition="without a group of modules the adapter reads as the target does, within noise and within "
        "{explained} of the distance from the whole adapter",
        observe=_if("part_missing"),
        confidence=0.9,
        evidence=(_BENCH,),
        rationale="Engines leave out modules that they do not adapt, and keys that they do not know.",
        action="See 'gradience check --serve' for what the engine leaves out; merge the adapter if it cannot serve "
        "these modules.",
        thresholds=(EXPLAINED,),
    ),
    _ServedRule(
        id="RCP503",
        severity="error",
        title="another scale",
        condition="at another scale the adapter reads as the target does, within {explained} of the distance at its "
        "own",
        observe=_if("wrong_scale"),
        confidence=0.9,
        evidence=(_BENCH,),
        rationale="alpha / r was left out, applied twice, or is not that of rsLoRA.",
        action="Compare lora_alpha, r and use_rslora in the served config with those of the adapter.",
        thresholds=(EXPLAINED,),
    ),
    _ServedRule(
        id="RCP504",
        severity="error",
        title="another checkpoint, or a near relative",
        condition="beyond noise, unexplained, and at a cosine of {unlike} or more; where the noise of 4 bits reaches "
        "as far, only if {beyond} more of it than of that noise lies along what parts of the adapter do",
        observe=_if("another_checkpoint"),
        confidence=0.8,
        evidence=(_BENCH,),
        rationale="What answers goes the adapter's way and is not it: an earlier or later checkpoint, or another run "
        "on the same data.",
        action="Compare the adapter's digest with that of the files that are served.",
        thresholds=(UNLIKE, BEYOND),
    ),
    _ServedRule(
        id="RCP505",
        severity="error",
        title="another adapter or another base",
        condition="beyond noise, unexplained, and at a cosine under {unlike}",
        observe=_if("another_adapter"),
        confidence=0.9,
        evidence=(_BENCH,),
        rationale="What answers is neither the base nor near the adapter.",
        action="Check which adapter and which base the server loaded; an old one may still be in its cache.",
        thresholds=(UNLIKE,),
    ),
    _ServedRule(
        id="RCP506",
        severity="error",
        title="other tokens or another chat template",
        condition="a text of our own becomes other token ids than when the receipt was written",
        observe=_if("tokens_or_template_differ"),
        confidence=0.95,
        evidence=(cite("the token ids", "equality of lists"),),
        rationale="The model is asked something else than it was trained on, whatever its weights.",
        action="Serve with the tokenizer and chat template saved beside the adapter.",
    ),
)
