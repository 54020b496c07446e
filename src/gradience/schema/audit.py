"""The audit of one adapter: what is in the file, and what its update looks like."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from gradience.schema.base import BaseComparison, BaseReport
from gradience.schema.findings import Finding, NotRun
from gradience.schema.ranks import RankDisagreement, RankPattern, RankRule, SuggestedRank
from gradience.schema.scalars import Fraction, NonNegativeInt, Real

__all__ = [
    "AUDIT_SCHEMA_ID",
    "AuditReport",
    "AuditSummary",
    "GroupSummary",
    "Health",
    "LayerSummary",
    "LedgerEntry",
    "ModuleAudit",
    "NotAnalysed",
    "SuggestedRank",
]

AUDIT_SCHEMA_ID: Final = "gradience.audit/v1"

ModuleType = Annotated[str, Meta(description="`attn`, `mlp`, `ssm`, `embedding` or `other`.")]
Rank = Annotated[int, Meta(ge=0)]
StableRank = Annotated[float, Meta(ge=0.0, description="sum(sigma^2) / sigma_1^2; null for a zero update.")]

Role = Literal[
    "lora_pair",
    "magnitude",
    "bias",
    "full_module",
    "token_rows",
    "base_copy",
    "scale",
    "not_analysed",
    "unknown",
]


class ModuleAudit(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The update dW = s B A of one module. Ratios are null for a zero or non-finite update."""

    name: Annotated[str, Meta(description="Module path without `base_model.model.`.")]
    module_type: ModuleType
    layer: NonNegativeInt | None = None
    kind: Annotated[str, Meta(description="How the update is stored: `linear`, `embedding`, `conv`, ...")] = "linear"
    shape: Annotated[list[int], Meta(description="Rows and columns of dW.")]
    r: Annotated[Rank, Meta(description="Rank on disk.")]
    config_r: Annotated[Rank, Meta(description="Rank by the config, where it differs from the file's.")] | None = None
    alpha: Real | None = None
    rslora: Annotated[bool, Meta(description="s = alpha / sqrt(r) instead of alpha / r.")] = False
    rank_pattern: Annotated[str, Meta(description="The key of rank_pattern that applied.")] | None = None
    alpha_pattern: Annotated[str, Meta(description="The key of alpha_pattern that applied.")] | None = None
    expert: Annotated[NonNegativeInt, Meta(description="Which slice of a 3-D parameter.")] | None = None
    scaling: Annotated[Real, Meta(description="s in dW = s B A.")]
    params: Annotated[NonNegativeInt, Meta(description="Parameters of the factors.")]
    stable_rank: StableRank | None = None
    effective_rank: Annotated[float, Meta(description="exp(entropy of sigma / sum sigma).")] | None = None
    participation_ratio: Annotated[float, Meta(description="(sum sigma^2)^2 / sum sigma^4.")] | None = None
    utilization: Annotated[float, Meta(description="stable_rank / r.")] | None = None
    energy_rank_90: Annotated[Rank, Meta(description="Least k holding 90 % of sum sigma^2.")] | None = None
    energy_rank_95: Rank | None = None
    energy_rank_99: Rank | None = None
    knee_rank: (
        Annotated[Rank, Meta(description="k farthest above the chord of the cumulative energy curve.")] | None
    ) = None
    spectral_norm: Annotated[Real, Meta(description="sigma_1 of dW, scaled.")]
    frobenius_norm: Annotated[Real, Meta(description="Frobenius norm of dW, scaled.")]
    relative_errors: Annotated[
        dict[str, float],
        Meta(description="Relative Frobenius error of the best rank-k update, by bucket k < r."),
    ] = {}
    null_stable_rank: (
        Annotated[float, Meta(description="Stable rank expected of random factors of this shape.")] | None
    ) = None
    energy_share: (
        Annotated[Fraction, Meta(description="Share of the adapter's sum of squared Frobenius norms.")] | None
    ) = None
    top_singular_values: Annotated[list[float], Meta(description="Largest first, scaled.")] = []
    udr: Annotated[Real, Meta(description="norm2(dW) / norm2(W); null without base.")] | None = None
    sdi: Annotated[Real, Meta(description="log10(udr).")] | None = None
    relative_frobenius: Annotated[Real, Meta(description="Frobenius norm of dW over that of W.")] | None = None
    base: BaseComparison | None = None
    note: Annotated[str, Meta(description="What the numbers do not say of this kind of update.")] | None = None
    state: Annotated[Literal["ok", "zero", "non_finite"], Meta(description="`zero`: the module was never trained.")] = (
        "ok"
    )


class GroupSummary(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Means over the modules of one type. Only finite, non-zero updates enter a mean."""

    n: NonNegativeInt
    params: NonNegativeInt
    stable_rank_mean: float | None = None
    effective_rank_mean: float | None = None
    utilization_mean: float | None = None
    energy_rank_90_p50: float | None = None
    energy_share: Fraction | None = None


class LayerSummary(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One layer of the network: its share of the update."""

    layer: NonNegativeInt
    n: NonNegativeInt
    stable_rank_mean: float | None = None
    energy_share: Fraction | None = None


class AuditSummary(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The adapter in a few numbers. Only finite, non-zero updates enter a mean."""

    total_lora_params: NonNegativeInt
    n_layers: Annotated[NonNegativeInt, Meta(description="Adapted modules, as logs in the wild count.")]
    stable_rank_mean: float | None = None
    stable_rank_median: float | None = None
    stable_rank_weighted_mean: (
        Annotated[float, Meta(description="Weighted by the parameters of each module.")] | None
    ) = None
    effective_rank_mean: float | None = None
    utilization_mean: float | None = None
    energy_rank_90_p50: float | None = None
    energy_rank_90_p90: float | None = None
    by_type: dict[str, GroupSummary] = {}
    suggested_r_global_median: Annotated[Rank, Meta(description="Bucket of the median of energy_rank_90.")] | None = (
        None
    )
    suggested_r_global_90: (
        Annotated[Rank, Meta(description="Bucket of the 90th percentile of energy_rank_90.")] | None
    ) = None
    energy_concentration: (
        Annotated[Fraction, Meta(description="Herfindahl index of the energy shares of modules.")] | None
    ) = None
    null_stable_rank_mean: (
        Annotated[float, Meta(description="Stable rank expected of random factors, mean over modules.")] | None
    ) = None


class Health(msgspec.Struct, kw_only=True, frozen=True):
    """Whether the adapter is in order, before any number about it."""

    verdict: Literal["trained", "near_untrained", "untrained", "partial", "random_like", "broken", "not_analysed"]
    reason: str


class LedgerEntry(msgspec.Struct, kw_only=True, frozen=True):
    """All tensors of one role."""

    role: Role
    tensors: NonNegativeInt
    params: NonNegativeInt
    bytes: NonNegativeInt
    share: Annotated[Fraction, Meta(description="Share of the file's tensor bytes.")]


class NotAnalysed(msgspec.Struct, kw_only=True, frozen=True):
    """A tensor or group of tensors that no number here speaks of, and why."""

    name: str
    reason: str


class AuditReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The audit of one adapter, as `gradience audit --json` prints it."""

    schema: Literal["gradience.audit/v1"]
    peft_dir: str
    config_path: str | None = None
    weights_path: Annotated[str, Meta(description="As given; further files are in `weights_paths`.")]
    weights_paths: list[str] = []
    format: Annotated[str, Meta(description="`peft`, `mlx`, `kohya`, `diffusers`.")]
    peft_type: str | None = None
    base_model: str | None = None
    health: Health
    summary: AuditSummary
    suggested: Annotated[
        dict[str, SuggestedRank], Meta(description="`median` (most modules) and `p90` (worst-case tail).")
    ] = {}
    candidates: Annotated[
        list[SuggestedRank], Meta(description="Cost and saving of each bucket below the present rank.")
    ] = []
    rank_rules: Annotated[list[RankRule], Meta(description="Other rules of thumb, beside k@90.")] = []
    rank_disagreements: list[RankDisagreement] = []
    per_layer: RankPattern | None = None
    unmatched_patterns: Annotated[
        list[str], Meta(description="Keys of rank_pattern and alpha_pattern that match no module.")
    ] = []
    base: BaseReport | None = None
    modules: list[ModuleAudit] = []
    layers: list[LayerSummary] = []
    ledger: list[LedgerEntry] = []
    not_analysed: list[NotAnalysed] = []
    findings: list[Finding] = []
    not_run: Annotated[list[NotRun], Meta(description="Checks that did not run, each with the reason.")] = []
    notes: list[str] = []
