"""Rules on an adapter beside the base model it changes: a 16-bit merge that rounds it away, another base, intruders.

They need an audit with `--base`; without one they are listed as not judged.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from gradience.rules.rule import Observation, Rule, Threshold, cite, few
from gradience.rules.weights.health import AdapterFacts, WeightsRule
from gradience.schema.audit import MergeSurvival, ModuleAudit

SURVIVAL_BFLOAT16 = Threshold(
    "survival_bfloat16", 3e-3, "norm(dW) / norm(W)", "measured on Gaussian W: 53 % of entries change, cosine .887"
)
SURVIVAL_FLOAT16 = Threshold(
    "survival_float16", 3e-4, "norm(dW) / norm(W)", "eight times finer mantissa: about ten times lower"
)
SURVIVAL_COSINE = Threshold(
    "survival_cosine", 0.9, "cosine of what a merge adds with dW", "about what survival_bfloat16 gives"
)
_SURVIVAL: Final = {"bfloat16": SURVIVAL_BFLOAT16, "float16": SURVIVAL_FLOAT16}
_SHOWN: Final = 5  # modules in a message
_HALF: Final = frozenset({"BF16", "F16"})  # dtypes as safetensors names them


def at_risk(module: ModuleAudit) -> bool:
    """Whether a 16-bit merge would lose a good part of this update, by its size or by what the merge adds."""
    return _loss(module) is not None


class _Loss(NamedTuple):
    cosine: float
    survival: MergeSurvival


def _loss(module: ModuleAudit) -> _Loss | None:
    survival = module.base.survival if module.base is not None else None
    size = module.relative_frobenius
    if survival is None or survival.cosine is None or not isinstance(size, float):
        return None  # no cosine: the update is zero, and nothing can be lost
    small = 0.0 < size < _SURVIVAL[survival.dtype].value
    return _Loss(survival.cosine, survival) if small or survival.cosine < SURVIVAL_COSINE.value else None


def _merge_loss(facts: AdapterFacts) -> Observation | None:
    modules = facts.report.modules
    risky = [(loss, module) for module in modules if (loss := _loss(module)) is not None]
    if not risky:
        return None
    (cosine, survival), worst = min(risky, key=lambda pair: pair[0].cosine)
    served = any(module.base is not None and module.base.dtype in _HALF for _, module in risky)
    return Observation(
        f"Merging into {survival.dtype} would lose part of the update in {len(risky)} of {len(modules)} "
        f"modules: in {worst.name} it changes {survival.changed:.0%} of the entries, and what it adds has cosine "
        f"{cosine:.2f} with the update.",
        {"modules": len(risky), "worst": worst.name},
        severity=None if served else "info",  # a float32 base may be merged, and kept, in float32
    )


def _not_compared(facts: AdapterFacts) -> Observation | None:
    base = facts.report.base
    if base is None or not base.not_compared:
        return None
    missed = base.not_compared
    named = few([f"{item.name}: {item.reason}" for item in missed], _SHOWN, "; ")
    nothing = base.compared == 0
    return Observation(
        f"{'None' if nothing else f'Only {base.compared}'} of {len(facts.report.modules)} modules could be compared "
        f"with the base: {named}.",
        {"compared": base.compared, "not_compared": len(missed)},
        severity=None if nothing else "warning",
        action=None if nothing else "See why each of these has no weight in the base; the others' numbers stand.",
        evidence=tuple(cite(item.name, item.reason) for item in missed[:_SHOWN]),
    )


def _intruders(facts: AdapterFacts) -> Observation | None:
    base = facts.report.base
    counted = [
        (m.base.intruders, m) for m in facts.report.modules if m.base is not None and m.base.intruders is not None
    ]
    if base is None or not base.intruder_total or not counted:
        return None
    most, where = max(counted, key=lambda pair: pair[0].count)
    return Observation(
        f"{base.intruder_total} intruder dimensions in {base.intruder_modules} modules "
        f"(k={most.k}, eps={most.eps:g}); most in {where.name}: {most.count}.",
        {"total": base.intruder_total, "k": most.k, "eps": most.eps},
    )


def _base(facts: AdapterFacts) -> str | None:
    return None if facts.report.base is not None else "no base model was given (--base)"


def _intruders_counted(facts: AdapterFacts) -> str | None:
    if facts.report.base is not None and facts.report.base.intruder_total is not None:
        return None
    return "intruder dimensions were not counted ('gradience audit --base BASE --intruders')"


BASE_RULES: Final[tuple[Rule[AdapterFacts], ...]] = (
    WeightsRule(
        id="MRG210",
        severity="warning",
        title="a 16-bit merge that loses the update",
        groups=("weights_and_base",),
        condition="norm(dW) / norm(W) under {survival_bfloat16} for bfloat16 ({survival_float16} for float16), or "
        "what the merge adds has a cosine under {survival_cosine} with dW",
        observe=_merge_loss,
        confidence=0.9,
        evidence=(
            cite(
                "measured on gaussian weights",
                "in bfloat16 norm(dW)/norm(W) of 3e-3 keeps cosine .89, 1e-3 keeps .63, 1e-4 keeps .21",
            ),
            cite("this adapter and base", "computed entry by entry, rounding as the merge does"),
        ),
        action="Serve the adapter unmerged, or merge in float32 and keep float32.",
        scope="merges into 16-bit weights; info where the base is stored in float32",
        verify="Compare the outputs of the merged and the unmerged model.",
        rationale="An update smaller than half a unit in the last place of a weight is rounded away.",
        thresholds=(SURVIVAL_BFLOAT16, SURVIVAL_FLOAT16, SURVIVAL_COSINE),
        needs=(_base,),
    ),
    WeightsRule(
        id="BAS211",
        severity="error",
        title="a base that does not fit",
        groups=("weights_and_base",),
        condition="modules have no weight of their name and shape in the base; an error where none has",
        observe=_not_compared,
        confidence=0.95,
        action="Give the base model this adapter was trained on; see base_model in the config.",
        scope="audits with --base; warning where some modules could be compared",
        verify="Load the adapter on that base with PEFT.",
        rationale="A module without its weight has no UDR; the others' numbers stand.",
        needs=(_base,),
    ),
    WeightsRule(
        id="INT212",
        severity="info",
        title="intruder dimensions",
        groups=("weights_and_base",),
        condition="a leading singular vector of W + dW overlaps less than --intruder-eps with each of W's",
        observe=_intruders,
        confidence=0.5,
        evidence=(cite("arXiv 2410.21228", "LoRA has intruder dimensions where full fine-tuning has few"),),
        action="If forgetting matters, evaluate on tasks the base was good at.",
        scope="audits with --base and --intruders",
        verify="Compare with the base on a held-out general benchmark.",
        rationale="New leading directions were linked to forgetting, not to the accuracy on the new task.",
        needs=(_intruders_counted,),
    ),
)
