"""The checks on an adapter's weights as data: their words and grounds. What finds them stands beside the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from gradience.rules import evidence as e
from gradience.rules import thresholds as t
from gradience.rules.rule import Threshold
from gradience.schema.findings import Evidence, Finding
from gradience.schema.scalars import Json, Severity


class AdapterCheck(NamedTuple):
    """One check: what it says of an adapter, whatever it found."""

    id: str
    severity: Severity
    title: str
    confidence: float
    evidence: tuple[Evidence, ...]
    action: str
    scope: str
    verify: str
    rationale: str
    thresholds: tuple[Threshold, ...] = ()
    needs_base: bool = False

    def finding(
        self,
        message: str,
        values: Mapping[str, Json] | None = None,
        *,
        seen: tuple[Evidence, ...] = (),
        severity: Severity | None = None,
        confidence: float | None = None,
        action: str | None = None,
    ) -> Finding:
        """Return what was found; what is given differs in this case from the check's own."""
        return Finding(
            id=self.id,
            severity=severity or self.severity,
            message=message,
            action=action or self.action,
            rationale=self.rationale,
            confidence=self.confidence if confidence is None else confidence,
            scope=self.scope,
            verify=self.verify,
            evidence=[*seen, *self.evidence],
            values=dict(values or {}),
        )


_COMPARE: Final = "Load the adapter and compare its outputs with the base model's."

NON_FINITE = AdapterCheck(
    id="NUM201",
    severity="error",
    title="weights that are not finite",
    confidence=1.0,
    evidence=(),
    action="Do not use this adapter; go back to the last good checkpoint.",
    scope="any adapter; a file without an adapter tensor is called broken too",
    verify=_COMPARE,
    rationale="One NaN in a factor makes every output of its module NaN.",
)
ZERO_UPDATE = AdapterCheck(
    id="TRN202",
    severity="error",
    title="an update of zero",
    confidence=0.95,
    evidence=(e.LORA_ZERO,),
    action="Check that the adapter's parameters were trained and saved.",
    scope="LoRA that starts at B = 0; warning where some modules only are zero, or where it is tiny beside its base",
    verify=_COMPARE,
    rationale="Such an adapter leaves the base model as it was.",
    thresholds=(t.NEAR_UNTRAINED,),
)
RANDOM_LIKE = AdapterCheck(
    id="RND203",
    severity="warning",
    title="spectra like random factors'",
    confidence=0.6,
    evidence=(),
    action="Check that this is the trained adapter, not an initialisation.",
    scope="LoRA of rank 4 and more, in four modules or more",
    verify=_COMPARE,
    rationale="A trained update is seldom as flat as the product of random factors of its shape.",
    thresholds=(t.RANDOM_SHARE, t.RANDOM_RANK, t.RANDOM_MODULES),
)
LOW_RANK = AdapterCheck(
    id="UTL204",
    severity="info",
    title="low utilization",
    confidence=0.4,
    evidence=(e.UTILIZATION, e.STABLE_RANK),
    action="Consider compressing the rank after training; see the suggested ranks and their error.",
    scope="trained LoRA adapters",
    verify="Evaluate the compressed adapter on held-out data.",
    rationale="Stable rank grows far slower than r, so a low value is normal at r >= 16; "
    "it speaks of this update's weights, not of the rank to train with.",
    thresholds=(t.LOW_UTILIZATION,),
)
MOSTLY_OTHER = AdapterCheck(
    id="LED205",
    severity="info",
    title="mostly other tensors than LoRA's",
    confidence=1.0,
    evidence=(),
    action="If that is not meant, look at bias, modules_to_save and save_embedding_layers.",
    scope="any adapter's file; a new head is larger than a small adapter, and meant",
    verify="The table of what is in the file, at the end of the audit.",
    rationale="An embedding or a head that was saved along makes a small adapter a large file.",
    thresholds=(t.MOSTLY_OTHER,),
)
OTHER_RANK = AdapterCheck(
    id="SCL206",
    severity="warning",
    title="another rank on disk than in the config",
    confidence=0.9,
    evidence=(),
    action="Loaders that believe the config will refuse the file or scale it wrongly: correct r or rank_pattern.",
    scope="adapters with a config",
    verify="Load it with PEFT: a shape mismatch says the same.",
    rationale="The rank on disk is the truth, and s follows it here.",
)
UNMATCHED = AdapterCheck(
    id="SCL207",
    severity="warning",
    title="patterns that match no module",
    confidence=0.9,
    evidence=(e.PATTERN_KEY,),
    action="A key must match the end of a module's path, beginning at a dot, without base_model.model.",
    scope="PEFT's rank_pattern and alpha_pattern",
    verify="model.named_modules(): the key is the end of none of their names.",
    rationale="PEFT ignores such a key in silence: its modules train at the global rank and alpha.",
)
DEFAULT_ALPHA = AdapterCheck(
    id="SCL208",
    severity="info",
    title="lora_alpha at its default",
    confidence=0.5,
    evidence=(e.SMALL_ALPHA,),
    action="If alpha was never set on purpose, this adapter is weaker than its rank suggests.",
    scope="LoRA with PEFT's defaults",
    verify="See the training script; evaluate with lora_alpha set to what was meant.",
    rationale="s = alpha / r shrinks as r grows: a rank above 8 at the default alpha scales the update down.",
    thresholds=(t.ALPHA_DEFAULT,),
)
ONE_FACTOR = AdapterCheck(
    id="NUM209",
    severity="error",
    title="one factor without the other",
    confidence=0.95,
    evidence=(),
    action="Save or download the adapter again.",
    scope="LoRA factors in any format",
    verify="Load it with PEFT, which names the keys that are missing.",
    rationale="Half a product is no update: loaders leave the module out, or start its other factor anew.",
)
MERGE_LOSS = AdapterCheck(
    id="MRG210",
    severity="warning",
    title="a 16-bit merge that loses the update",
    confidence=0.9,
    evidence=(e.MERGE_TRIAL, e.MERGE_FACT),
    action="Serve the adapter unmerged, or merge in float32 and keep float32.",
    scope="merges into 16-bit weights; info where the base is stored in float32",
    verify="Compare the outputs of the merged and the unmerged model.",
    rationale="An update smaller than half a unit in the last place of a weight is rounded away.",
    thresholds=(t.SURVIVAL_BFLOAT16, t.SURVIVAL_FLOAT16, t.SURVIVAL_COSINE),
    needs_base=True,
)
NOT_COMPARED = AdapterCheck(
    id="BAS211",
    severity="error",
    title="a base that does not fit",
    confidence=0.95,
    evidence=(),
    action="Give the base model this adapter was trained on; see base_model in the config.",
    scope="audits with --base; warning where some modules could be compared",
    verify="Load the adapter on that base with PEFT.",
    rationale="A module without its weight has no UDR; the others' numbers stand.",
    needs_base=True,
)
INTRUDER = AdapterCheck(
    id="INT212",
    severity="info",
    title="intruder dimensions",
    confidence=0.5,
    evidence=(e.INTRUDERS,),
    action="If forgetting matters, evaluate on tasks the base was good at.",
    scope="audits with --base and --intruders",
    verify="Compare with the base on a held-out general benchmark.",
    rationale="New leading directions were linked to forgetting, not to the accuracy on the new task.",
    needs_base=True,
)

ADAPTER_CHECKS: Final = (
    NON_FINITE,
    ZERO_UPDATE,
    RANDOM_LIKE,
    LOW_RANK,
    MOSTLY_OTHER,
    OTHER_RANK,
    UNMATCHED,
    DEFAULT_ALPHA,
    ONE_FACTOR,
    MERGE_LOSS,
    NOT_COMPARED,
    INTRUDER,
)
