"""The audit of one adapter: what is in the file, and what its update looks like."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from gradience.schema import Fraction, NonNegativeInt, Real, about
from gradience.schema.document import Finding, NotRun, Report

Rank = Annotated[int, Meta(ge=0)]


class SuggestedRank(msgspec.Struct, kw_only=True, frozen=True):
    """A rank to compress to after training, and what it would cost and save. Verify with an evaluation."""

    rank: Rank
    energy_kept: Annotated[Fraction, about("Share of the adapter's squared Frobenius norm kept.")]
    relative_error: Annotated[Fraction, about("sqrt(1 - energy_kept).")]
    relative_error_worst: Annotated[Fraction, about("The same for the worst module.")]
    params_saved: NonNegativeInt
    bytes_saved: Annotated[NonNegativeInt, about("At the factors' present dtype.")] = 0
    for_engines: Annotated[Rank, about("The next power of two, for engines that want one.")] = 1


class RankRule(msgspec.Struct, kw_only=True, frozen=True):
    """The result of one rule of thumb over all modules; `median` and `p90` in directions, then as whole ranks."""

    rule: Annotated[str, about("`energy_90`, `effective_rank`, `stable_rank` or `knee`.")]
    says: Annotated[str, about("The rule in words.")]
    median: float
    p90: float
    median_rank: Rank
    p90_rank: Rank


class RankDisagreement(msgspec.Struct, kw_only=True, frozen=True):
    """A module where the rules differ by more than one bucket, and why."""

    name: str
    buckets: Annotated[dict[str, int], about("Rank by rule, rounded up to a power of two.")]
    why: str


class ModuleRank(msgspec.Struct, kw_only=True, frozen=True):
    """One module's suggested rank and its price."""

    name: str
    r: Annotated[Rank, about("Present rank.")]
    rank: Rank
    relative_error: Fraction
    params_saved: NonNegativeInt


class RankPattern(msgspec.Struct, kw_only=True, frozen=True):
    """Arguments of PEFT's LoraConfig that give each module its own rank at its present scaling s."""

    r: Rank
    lora_alpha: int | float
    use_rslora: bool
    rank_pattern: Annotated[dict[str, int], about("Exceptions to `r`: escaped module paths, as PEFT matches them.")]
    alpha_pattern: Annotated[dict[str, int | float], about("Exceptions to `lora_alpha`.")]
    energy_kept: Fraction
    relative_error: Fraction
    params_saved: NonNegativeInt
    bytes_saved: NonNegativeInt
    modules: list[ModuleRank]


class MergeSurvival(msgspec.Struct, kw_only=True, frozen=True):
    """What merging the update into a 16-bit weight keeps of it, computed entry by entry."""

    dtype: Annotated[Literal["bfloat16", "float16"], about("The merged weight's type.")]
    changed: Annotated[Fraction, about("Share of the entries of W that a merge changes.")]
    cosine: Annotated[float, about("Cosine between the realised and the intended change.")] | None
    gain: Annotated[float, about("Norm of the realised over the intended change.")] | None


class Intruders(msgspec.Struct, kw_only=True, frozen=True):
    """Leading left singular vectors of W + dW that resemble none of W's (arXiv 2410.21228)."""

    k: Annotated[NonNegativeInt, about("How many leading vectors were looked at.")]
    eps: Annotated[Fraction, about("A vector under this overlap with each of W's is an intruder.")]
    count: Annotated[NonNegativeInt, about("Intruders at eps.")]
    counts: Annotated[dict[str, int], about("Intruders by threshold.")]
    undecided: Annotated[NonNegativeInt, about("Vectors counted at eps that the bounds leave open; 0 where exact.")]
    method: Annotated[
        Literal["exact", "lanczos"], about("Dense SVD of both matrices, or Lanczos with bounds on every overlap.")
    ]
    converged: bool


class BaseComparison(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One module's update beside its weight W. The true update, where it is a function of W (DoRA, PiSSA, ...)."""

    weight: Annotated[str, about("The tensor's name in the base.")]
    dtype: Annotated[str, about("As stored, such as `BF16`.")]
    update: Annotated[Literal["factors", "dense"], about("dW = s B A, or the true W' - W computed from W.")]
    spectral_norm: Annotated[Real, about("norm2(W).")]
    frobenius_norm: Annotated[Real, about("Frobenius norm of W.")]
    update_spectral_norm: Annotated[Real, about("norm2 of the update compared.")]
    update_frobenius_norm: Real
    converged: Annotated[bool, about("Whether both norms reached their tolerance.")] = True
    survival: MergeSurvival | None = None
    intruders: Intruders | None = None


class NotCompared(msgspec.Struct, kw_only=True, frozen=True):
    """A module without a number against the base, and why."""

    name: str
    reason: str


class BaseReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The adapter as a whole beside its base. Sums run over the compared modules."""

    path: Annotated[str, about("The folder the weights were read from.")]
    identity: (
        Annotated[str, about("Hash over the files' names, sizes, etags or contents; null without cache.")] | None
    ) = None
    files: NonNegativeInt
    compared: Annotated[NonNegativeInt, about("Modules with numbers against the base.")]
    not_compared: list[NotCompared] = []
    norms_cached: Annotated[NonNegativeInt, about("Weight norms taken from the cache.")] = 0
    relative_frobenius: (
        Annotated[float, about("sqrt(sum of squared norms of dW / sum of squared norms of W).")] | None
    ) = None
    udr_median: float | None = None
    udr_max: float | None = None
    sdi_median: float | None = None
    survival_dtype: str | None = None
    survival_cosine_median: float | None = None
    survival_changed_median: Fraction | None = None
    survival_at_risk: Annotated[NonNegativeInt, about("Modules under the survival threshold.")] = 0
    intruder_total: Annotated[NonNegativeInt, about("Intruder dimensions over all modules.")] | None = None
    intruder_modules: NonNegativeInt | None = None
    method: Annotated[str, about("How norms and vectors were computed.")] = ""
    notes: list[str] = []


AUDIT_SCHEMA_ID: Final = "gradience.audit/v2"

ModuleType = Annotated[str, about("`attn`, `mlp`, `ssm`, `embedding` or `other`.")]
StableRank = Annotated[float, Meta(ge=0.0, description="sum(sigma^2) / sigma_1^2; null for a zero update.")]

Role = Literal[
    "lora_pair", "magnitude", "bias", "full_module", "token_rows", "base_copy", "scale", "not_analysed", "unknown"
]


class ModuleAudit(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The update dW of one module: s B A, or W' - W from the base where s B A is not the whole of it.

    Ratios are null for a zero or non-finite update.
    """

    name: Annotated[str, about("Module path without `base_model.model.`.")]
    module_type: ModuleType
    layer: NonNegativeInt | None = None
    kind: Annotated[str, about("How the update is stored: `linear`, `embedding`, `conv`, ...")] = "linear"
    shape: Annotated[list[int], about("Rows and columns of dW.")]
    r: Annotated[Rank, about("Rank on disk.")]
    config_r: Annotated[Rank, about("Rank by the config, where it differs from the file's.")] | None = None
    alpha: Real | None = None
    rslora: Annotated[bool, about("s = alpha / sqrt(r) instead of alpha / r.")] = False
    rank_pattern: Annotated[str, about("The key of rank_pattern that applied.")] | None = None
    alpha_pattern: Annotated[str, about("The key of alpha_pattern that applied.")] | None = None
    expert: Annotated[NonNegativeInt, about("Which slice of a 3-D parameter.")] | None = None
    scaling: Annotated[Real, about("s in dW = s B A.")]
    params: Annotated[NonNegativeInt, about("Parameters of the factors.")]
    stable_rank: StableRank | None = None
    effective_rank: Annotated[float, about("exp(entropy of sigma / sum sigma).")] | None = None
    participation_ratio: Annotated[float, about("(sum sigma^2)^2 / sum sigma^4.")] | None = None
    utilization: (
        Annotated[
            float,
            about(
                "stable_rank over the most that the update's rank can be: r; 2 r where the start took a "
                "part out of the base; null where r does not bound it (DoRA)."
            ),
        ]
        | None
    ) = None
    energy_rank_90: Annotated[Rank, about("Least k holding 90 % of sum sigma^2.")] | None = None
    energy_rank_90_bounds: (
        Annotated[list[int], about("The least and the most that energy_rank_90 can be, where it is null.")] | None
    ) = None
    energy_rank_95: Rank | None = None
    energy_rank_99: Rank | None = None
    knee_rank: Annotated[Rank, about("k farthest above the chord of the cumulative energy curve.")] | None = None
    spectral_norm: Annotated[Real, about("sigma_1 of dW, scaled; null where dW is not known.")] | None
    frobenius_norm: Annotated[Real, about("Frobenius norm of dW, scaled; null where it is not known.")] | None
    relative_errors: Annotated[
        dict[str, float],
        about("Relative Frobenius error of the best rank-k update: powers of two k < r, suggested ranks."),
    ] = {}
    null_stable_rank: Annotated[float, about("Stable rank expected of random factors of this shape.")] | None = None
    b_stable_rank: Annotated[float, about("Stable rank of lora_B alone, where it starts at zero.")] | None = None
    b_null_stable_rank: Annotated[float, about("The same of random numbers of lora_B's shape.")] | None = None
    energy_share: Annotated[Fraction, about("Share of the adapter's sum of squared Frobenius norms.")] | None = None
    top_singular_values: Annotated[list[float], about("Largest first, scaled.")] = []
    udr: Annotated[Real, about("norm2(dW) / norm2(W); null without base.")] | None = None
    sdi: Annotated[Real, about("log10(udr).")] | None = None
    relative_frobenius: Annotated[Real, about("Frobenius norm of dW over that of W.")] | None = None
    base: BaseComparison | None = None
    note: Annotated[str, about("What the numbers leave out for this kind of update.")] | None = None
    state: Annotated[
        Literal["ok", "zero", "non_finite", "not_known"],
        about(
            "`zero`: the module was never trained. `not_known`: dW is a function of the base weight, which "
            "was not given, or of what no file holds; `note` says which."
        ),
    ] = "ok"


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
    label: Annotated[str, about("As people name it: `7`, or section and block: `2.7`, `down.1`.")] = ""
    n: NonNegativeInt
    stable_rank_mean: float | None = None
    energy_share: Fraction | None = None


class AuditSummary(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The adapter in a few numbers. Only finite, non-zero updates enter a mean."""

    total_lora_params: NonNegativeInt
    n_layers: Annotated[NonNegativeInt, about("Adapted modules, as logs in the wild count.")]
    stable_rank_mean: float | None = None
    stable_rank_median: float | None = None
    stable_rank_weighted_mean: Annotated[float, about("Weighted by the parameters of each module.")] | None = None
    effective_rank_mean: float | None = None
    utilization_mean: float | None = None
    energy_rank_90_p50: float | None = None
    energy_rank_90_p90: float | None = None
    by_type: dict[str, GroupSummary] = {}
    suggested_r_global_median: Annotated[Rank, about("Median of energy_rank_90, rounded up.")] | None = None
    suggested_r_global_90: Annotated[Rank, about("90th percentile of energy_rank_90, rounded up.")] | None = None
    energy_concentration: Annotated[Fraction, about("Herfindahl index of the energy shares of modules.")] | None = None
    null_stable_rank_mean: (
        Annotated[float, about("Stable rank expected of random factors, mean over modules.")] | None
    ) = None
    update_norm: Annotated[float, about("Frobenius norm of the whole update: root of the sum of squares.")] | None = (
        None
    )
    update_size: (
        Annotated[
            float,
            about(
                "update_norm over that of freshly initialised weights of these shapes, with entries of "
                "variance 2 / (d_in + d_out) (Glorot and Bengio 2010)."
            ),
        ]
        | None
    ) = None


class Health(msgspec.Struct, kw_only=True, frozen=True):
    """Whether the adapter is in order, before any number about it."""

    verdict: Literal[
        "trained", "near_untrained", "untrained", "partial", "oversized", "random_like", "broken", "not_analysed"
    ]
    reason: str


class LedgerEntry(msgspec.Struct, kw_only=True, frozen=True):
    """All tensors of one role."""

    role: Role
    tensors: NonNegativeInt
    params: NonNegativeInt
    bytes: NonNegativeInt
    share: Annotated[Fraction, about("Share of the file's tensor bytes.")]


class LeftoverReason(StrEnum):
    """Why a tensor or module is not analysed, for programs; `reason` beside it says it with its details."""

    FACTOR_MISSING = "factor_missing"
    """One of a module's factors is in the file without its partner."""
    SHAPE = "shape"
    DTYPE = "dtype"
    CONFIG = "config"
    """The config contradicts the tensors, or lacks what they need."""
    AMBIGUOUS = "ambiguous"
    """The file allows several readings."""
    TOO_LARGE = "too_large"
    NEEDS_BASE = "needs_base"
    TRAINING_ONLY = "training_only"
    """A tensor that only training uses: no merge knows it."""
    TYPE_NOT_ANALYSED = "type_not_analysed"
    """The whole adapter is of a type that is recognised, not analysed."""
    WHOLE_WEIGHTS = "whole_weights"
    KIND_NOT_ANALYSED = "kind_not_analysed"
    UNKNOWN = "unknown"


class NotAnalysed(msgspec.Struct, kw_only=True, frozen=True):
    """A tensor or group of tensors that no number here speaks of, and why."""

    name: str
    reason: str
    cause: LeftoverReason | None = None


class Percentile(msgspec.Struct, kw_only=True, frozen=True):
    """One number of an adapter among healthy adapters with modules of the same rank and type."""

    measure: Annotated[str, about("A field of the modules, such as `utilization`.")]
    module_type: ModuleType
    r: Rank
    value: Annotated[float, about("Mean over the adapter's modules of this type and rank.")]
    percentile: Annotated[float, Meta(ge=0.0, le=100.0, description="Per cent of them below it, ties by half.")]
    n: Annotated[NonNegativeInt, about("Adapters compared with; of equal ones, one.")]


class Standing(msgspec.Struct, kw_only=True, frozen=True):
    """An adapter among the healthy ones of a fleet."""

    fleet: str
    percentiles: list[Percentile] = []
    notes: list[str] = []


class AuditReport(Report, kw_only=True, frozen=True):
    """The audit of one adapter, as `gradience audit --json` prints it."""

    schema: Literal["gradience.audit/v2"]
    peft_dir: str
    config_path: str | None = None
    weights_path: Annotated[str, about("As given; further files are in `weights_paths`.")]
    weights_paths: list[str] = []
    format: Annotated[str, about("`peft`, `mlx`, `kohya`, `diffusers`, `npz`, `h5`; `arrays` in memory.")]
    peft_type: str | None = None
    base_model: str | None = None
    health: Health
    summary: AuditSummary
    suggested: Annotated[dict[str, SuggestedRank], about("`median` (most modules) and `p90` (worst-case tail).")] = {}
    like_suggested: Annotated[
        SuggestedRank | None,
        about("Each module at its own k@90%, as `resize --like-suggested` cuts it; see per_layer."),
    ] = None
    candidates: Annotated[
        list[SuggestedRank], about("Cost and saving of lower ranks: powers of two, and those suggested.")
    ] = []
    rank_rules: Annotated[list[RankRule], about("Other rules of thumb, beside k@90.")] = []
    rank_disagreements: list[RankDisagreement] = []
    per_layer: RankPattern | None = None
    unmatched_patterns: Annotated[list[str], about("Keys of rank_pattern and alpha_pattern that match no module.")] = []
    base: BaseReport | None = None
    standing: Annotated[Standing, about("With --against FLEET.")] | None = None
    modules: list[ModuleAudit] = []
    layers: list[LayerSummary] = []
    ledger: list[LedgerEntry] = []
    not_analysed: list[NotAnalysed] = []
    findings: list[Finding] = []
    not_run: Annotated[list[NotRun], about("Checks that did not run, each with the reason.")] = []
    notes: list[str] = []
