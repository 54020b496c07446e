"""Ranks that an update could be compressed to after training, by more than one rule. Hypotheses: verify."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from gradience.schema.scalars import Fraction, NonNegativeInt

__all__ = ["ModuleRank", "RankDisagreement", "RankPattern", "RankRule", "SuggestedRank"]

Rank = Annotated[int, Meta(ge=0)]


class SuggestedRank(msgspec.Struct, kw_only=True, frozen=True):
    """A rank to compress to after training, and what it would cost and save. Verify with an evaluation."""

    rank: Rank
    energy_kept: Annotated[Fraction, Meta(description="Share of the adapter's squared Frobenius norm kept.")]
    relative_error: Annotated[Fraction, Meta(description="sqrt(1 - energy_kept).")]
    relative_error_worst: Annotated[Fraction, Meta(description="The same for the worst module.")]
    params_saved: NonNegativeInt
    bytes_saved: Annotated[NonNegativeInt, Meta(description="At the factors' present dtype.")] = 0


class RankRule(msgspec.Struct, kw_only=True, frozen=True):
    """What one rule of thumb says of all modules; `median` and `p90` in directions, then as buckets."""

    rule: Annotated[str, Meta(description="`energy_90`, `effective_rank`, `stable_rank` or `knee`.")]
    says: Annotated[str, Meta(description="The rule in words.")]
    median: float
    p90: float
    median_bucket: Rank
    p90_bucket: Rank


class RankDisagreement(msgspec.Struct, kw_only=True, frozen=True):
    """A module where the rules differ by more than one bucket, and why."""

    name: str
    buckets: Annotated[dict[str, int], Meta(description="Suggested rank by rule.")]
    why: str


class ModuleRank(msgspec.Struct, kw_only=True, frozen=True):
    """One module's suggested rank and its price."""

    name: str
    r: Annotated[Rank, Meta(description="Present rank.")]
    rank: Rank
    relative_error: Fraction
    params_saved: NonNegativeInt


class RankPattern(msgspec.Struct, kw_only=True, frozen=True):
    """Arguments of PEFT's LoraConfig that give each module its own rank at its present scaling s."""

    r: Rank
    lora_alpha: int | float
    use_rslora: bool
    rank_pattern: Annotated[
        dict[str, int], Meta(description="Exceptions to `r`: escaped module paths, as PEFT matches them.")
    ]
    alpha_pattern: Annotated[dict[str, int | float], Meta(description="Exceptions to `lora_alpha`.")]
    energy_kept: Fraction
    relative_error: Fraction
    params_saved: NonNegativeInt
    bytes_saved: NonNegativeInt
    modules: list[ModuleRank]
