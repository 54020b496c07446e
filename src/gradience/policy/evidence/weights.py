"""Sources on trained weights: what a spectrum, a size or a file's content was seen to mean."""

from __future__ import annotations

from gradience.schema.findings import Evidence

__all__ = [
    "INTRUDERS",
    "LORA_ZERO",
    "MERGE_FACT",
    "MERGE_TRIAL",
    "PATTERN_KEY",
    "SMALL_ALPHA",
    "STABLE_RANK",
    "UTILIZATION",
]

LORA_ZERO = Evidence(source="LoRA, arXiv 2106.09685", says="B starts at zero: an update of zero is that of no step")
UTILIZATION = Evidence(source="project convention", says="utilization under 25 %: likely over-provisioned")
STABLE_RANK = Evidence(source="SSRN 6580122 (abstract)", says="stable rank grows as about r^0.23 to r^0.30")
PATTERN_KEY = Evidence(source="peft/utils/other.py, get_pattern_key", says=r're.match(rf"(.*\.)?({key})$", path)')
SMALL_ALPHA = Evidence(
    source="huggingface/lerobot#3551",
    says="r=64 with the default alpha gave s=0.125, and a policy that hardly moved until alpha was 64",
)
MERGE_TRIAL = Evidence(
    source="measured on gaussian weights",
    says="in bfloat16 norm(dW)/norm(W) of 3e-3 keeps cosine .89, 1e-3 keeps .63, 1e-4 keeps .21",
)
MERGE_FACT = Evidence(source="this adapter and base", says="computed entry by entry, rounding as the merge does")
INTRUDERS = Evidence(source="arXiv 2410.21228", says="LoRA has intruder dimensions where full fine-tuning has few")
