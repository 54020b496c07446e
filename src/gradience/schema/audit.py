"""Types of the audit of one adapter: the contents of its file, and the numbers of its update."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from gradience.schema import Fraction, NonNegativeInt, Real, about
from gradience.schema.document import Finding, NotRun, Report

Rank = Annotated[int, Meta(ge=0)]


class SuggestedRank(msgspec.Struct, kw_only=True, frozen=True):
    """A rank to compress to after training, with its cost and saving: a hypothesis to verify by an evaluation."""

    rank: Annotated[Rank, about("Largest rank of a module after the cut.")]
    energy_kept: Annotated[Fraction, about("Share of the adapter's squared Frobenius norm kept.")]
    relative_error: Annotated[Fraction, about("sqrt(1 - energy_kept), a relative Frobenius error.")]
    relative_error_worst: Annotated[Fraction, about("Largest relative error of a single module.")]
    params_saved: Annotated[NonNegativeInt, about("Parameters of the factors that the cut removes.")]
    bytes_saved: Annotated[NonNegativeInt, about("Bytes that the cut removes, at the factors' present dtype.")] = 0
    for_engines: Annotated[Rank, about("`rank` rounded up to a power of two, at most the present rank.")] = 1


class RankRule(msgspec.Struct, kw_only=True, frozen=True):
    """The rank by one rule of thumb: median and 90th percentile over all modules, then both as whole ranks."""

    rule: Annotated[str, about("`energy_90`, `effective_rank`, `stable_rank` or `knee`.")]
    says: Annotated[str, about("The rule in words.")]
    median: Annotated[float, about("Median over the modules, interpolated.")]
    p90: Annotated[float, about("90th percentile over the modules, interpolated.")]
    median_rank: Annotated[Rank, about("`median` rounded up, at most the present rank.")]
    p90_rank: Annotated[Rank, about("`p90` rounded up, at most the present rank.")]


class RankDisagreement(msgspec.Struct, kw_only=True, frozen=True):
    """A module for which the rules of thumb lie more than one power of two apart, and why."""

    name: str
    buckets: Annotated[dict[str, int], about("Rank by rule, rounded up to a power of two, at most the present rank.")]
    why: str


class ModuleRank(msgspec.Struct, kw_only=True, frozen=True):
    """One module's suggested rank, with the error and the saving of a cut to it."""

    name: str
    r: Annotated[Rank, about("Present rank.")]
    rank: Annotated[Rank, about("Suggested rank.")]
    relative_error: Annotated[Fraction, about("Relative Frobenius error of the cut.")]
    params_saved: NonNegativeInt


class RankPattern(msgspec.Struct, kw_only=True, frozen=True):
    """Arguments of PEFT's LoraConfig that cut each module to its own energy_rank_90 and keep its scaling s."""

    r: Annotated[Rank, about("The commonest rank.")]
    lora_alpha: Annotated[int | float, about("The commonest alpha.")]
    use_rslora: Annotated[bool, about("Whether the scaling is alpha / sqrt(r).")]
    rank_pattern: Annotated[dict[str, int], about("Ranks other than `r`, by module path, escaped as PEFT matches it.")]
    alpha_pattern: Annotated[dict[str, int | float], about("Alphas other than `lora_alpha`, by module path.")]
    energy_kept: Annotated[Fraction, about("Share of the squared Frobenius norm kept.")]
    relative_error: Annotated[Fraction, about("Relative Frobenius error over all modules.")]
    params_saved: Annotated[NonNegativeInt, about("Parameters that the cut removes.")]
    bytes_saved: Annotated[NonNegativeInt, about("Bytes that the cut removes.")]
    modules: list[ModuleRank]


class MergeSurvival(msgspec.Struct, kw_only=True, frozen=True):
    """The part of an update that is left after a merge into a 16-bit weight, computed entry by entry."""

    dtype: Annotated[Literal["bfloat16", "float16"], about("Dtype of the merged weight.")]
    changed: Annotated[Fraction, about("Share of the entries of W that the merge changes.")]
    cosine: Annotated[float, about("Cosine between the realised and the intended change; null if that is zero.")] | None
    gain: Annotated[float, about("Norm of the realised over that of the intended change; null if that is zero.")] | None


class CodesSurvival(msgspec.Struct, kw_only=True, frozen=True):
    """The part of an update that is left if W + dW is rounded to the codes of W, with their scales and zero points."""

    changed: Annotated[Fraction, about("Share of the codes that the merge changes.")]
    cosine: Annotated[float, about("Cosine between the realised and the intended change; null if that is zero.")] | None
    gain: Annotated[float, about("Norm of the realised over that of the intended change; null if that is zero.")] | None


class Intruders(msgspec.Struct, kw_only=True, frozen=True):
    """Intruder dimensions: leading left singular vectors of W + dW that resemble none of W's (arXiv 2410.21228)."""

    k: Annotated[NonNegativeInt, about("Number of leading vectors that were examined.")]
    eps: Annotated[Fraction, about("Threshold: an intruder's overlap with each of W's vectors is below it.")]
    count: Annotated[NonNegativeInt, about("Intruders at eps, undecided ones included.")]
    counts: Annotated[dict[str, int], about("Intruders by threshold.")]
    undecided: Annotated[NonNegativeInt, about("Intruders at eps that may reach it by their upper bound.")]
    method: Annotated[
        Literal["exact", "lanczos"],
        about("`exact`: dense SVD of both matrices. `lanczos`: Lanczos with bounds on every overlap."),
    ]
    converged: Annotated[bool, about("Whether the k leading vectors reached their tolerance.")]


class BaseComparison(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One module's update compared with its weight W; the true update W' - W for DoRA, PiSSA and their like."""

    weight: Annotated[str, about("Name of the weight's tensor in the base.")]
    dtype: Annotated[str, about("Dtype of W as stored, such as `BF16`; of codes, the one they are computed in.")]
    codes: Annotated[str, about("Format of W's codes, such as `FP8` or `GPTQ int4`.")] | None = None
    update: Annotated[Literal["factors", "dense"], about("dW = s B A, or the true W' - W computed from W.")]
    spectral_norm: Annotated[Real, about("Spectral norm of W, its largest singular value.")]
    frobenius_norm: Annotated[Real, about("Frobenius norm of W.")]
    update_frobenius_norm: Annotated[Real, about("Frobenius norm of the compared update.")]
    converged: Annotated[bool, about("Whether both spectral norms reached their tolerance.")] = True
    held: Annotated[float, about("<W, dW> / norm(dW)^2: how often W holds dW already; of plain LoRA.")] | None = None
    survival: MergeSurvival | None = None
    in_codes: CodesSurvival | None = None
    intruders: Intruders | None = None


class NotCompared(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A module that was not compared with the base, and why."""

    name: str
    reason: str
    cause: (
        Annotated[
            Literal["unread_codes", "damaged_codes"],
            about("Of weights in codes: their format is not read here, or what is beside them does not fit them."),
        ]
        | None
    ) = None


class BaseReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The whole adapter compared with its base. Sums, medians and counts run over the compared modules."""

    path: Annotated[str, about("Folder from which the weights were read.")]
    identity: (
        Annotated[str, about("Hash over the base files' names, sizes, etags or contents; null without a cache.")] | None
    ) = None
    files: Annotated[NonNegativeInt, about("Weights files of the base.")]
    compared: Annotated[NonNegativeInt, about("Modules with numbers against the base.")]
    not_compared: list[NotCompared] = []
    norms_cached: Annotated[NonNegativeInt, about("Modules whose weight norms came from the cache.")] = 0
    relative_frobenius: Annotated[float, about("sqrt(sum norm(dW)^2 / sum norm(W)^2); null if W is zero.")] | None = (
        None
    )
    held: Annotated[float, about("sum <W, dW> / sum norm(dW)^2 of the modules that have `held`.")] | None = None
    held_error: (
        Annotated[float, about("Standard error of `held`, from the differences of the modules; null of one.")] | None
    ) = None
    udr_median: Annotated[float, about("Median of the modules' udr.")] | None = None
    udr_max: Annotated[float, about("Largest udr of a module.")] | None = None
    sdi_median: Annotated[float, about("Median of the modules' sdi.")] | None = None
    survival_dtype: Annotated[str, about("Dtype of the merged weights in `survival`.")] | None = None
    survival_cosine_median: Annotated[float, about("Median of the modules' survival.cosine.")] | None = None
    survival_changed_median: Annotated[Fraction, about("Median of the modules' survival.changed.")] | None = None
    survival_at_risk: Annotated[NonNegativeInt, about("Modules that a 16-bit merge would largely lose.")] = 0
    codes: Annotated[dict[str, int], about("Modules whose weight is in codes, by format.")] = {}
    in_codes_changed_median: Annotated[Fraction, about("Median of the modules' in_codes.changed.")] | None = None
    in_codes_cosine_median: Annotated[float, about("Median of the modules' in_codes.cosine.")] | None = None
    intruder_total: Annotated[NonNegativeInt, about("Intruders of all modules; null if not counted.")] | None = None
    intruder_modules: Annotated[NonNegativeInt, about("Modules with an intruder; null if not counted.")] | None = None
    method: Annotated[str, about("How norms and intruders were computed.")] = ""
    notes: list[str] = []


AUDIT_SCHEMA_ID: Final = "gradience.audit/v3"

ModuleType = Annotated[str, about("`attn`, `mlp`, `ssm`, `embedding` or `other`.")]
StableRank = Annotated[float, Meta(ge=0.0, description="sum(sigma^2) / sigma_1^2; null for a zero update.")]

Role = Literal[
    "lora_pair",
    "other_kind",
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
    """The update dW of one module: s B A, or W' - W computed from the base if s B A is not the whole update.

    sigma are the singular values of dW, sigma_1 the largest. Ratios are null for a zero or non-finite update.
    """

    name: Annotated[str, about("Module path without `base_model.model.`.")]
    module_type: ModuleType
    layer: Annotated[NonNegativeInt, about("Index of the layer; null outside any layer.")] | None = None
    kind: Annotated[str, about("How the update is stored: `linear`, `embedding`, `conv`, ...")] = "linear"
    shape: Annotated[list[int], about("[rows, columns] of dW; [entries] of a vector, such as a norm's weight.")]
    r: Annotated[Rank, about("Rank of the factors on disk; 0 of a kind without factors.")]
    config_r: Annotated[Rank, about("Rank by the config, if it differs from `r`.")] | None = None
    alpha: Annotated[Real, about("LoRA's alpha for this module.")] | None = None
    rslora: Annotated[bool, about("Whether s is alpha / sqrt(r) instead of alpha / r.")] = False
    rank_pattern: Annotated[str, about("Key of the config's rank_pattern that gave the rank.")] | None = None
    alpha_pattern: Annotated[str, about("Key of the config's alpha_pattern that gave alpha.")] | None = None
    expert: Annotated[NonNegativeInt, about("Index of the slice of a 3-D parameter; null for a matrix.")] | None = None
    scaling: Annotated[Real, about("s in dW = s B A.")]
    params: Annotated[NonNegativeInt, about("Parameters of the factors.")]
    stable_rank: StableRank | None = None
    effective_rank: Annotated[float, about("exp(entropy of sigma / sum sigma).")] | None = None
    participation_ratio: Annotated[float, about("(sum sigma^2)^2 / sum sigma^4.")] | None = None
    utilization: (
        Annotated[
            float,
            about(
                "stable_rank over the largest possible rank of dW: r, or 2 r if initialisation took a part out of the "
                "base (such as PiSSA). Null if r does not bound the rank (DoRA)."
            ),
        ]
        | None
    ) = None
    energy_rank_90: Annotated[Rank, about("Least k whose k largest sigma hold 90 % of sum sigma^2.")] | None = None
    energy_rank_90_bounds: Annotated[list[int], about("[lower, upper] bound of energy_rank_90 if null.")] | None = None
    energy_rank_95: Annotated[Rank, about("Least k that holds 95 % of sum sigma^2.")] | None = None
    energy_rank_99: Annotated[Rank, about("Least k that holds 99 % of sum sigma^2.")] | None = None
    knee_rank: Annotated[Rank, about("k at which the cumulative energy is farthest above its chord.")] | None = None
    spectral_norm: Annotated[Real, about("sigma_1 of dW, scaled by s; null if dW is not known.")] | None
    frobenius_norm: Annotated[Real, about("Frobenius norm of dW, scaled by s; null if dW is not known.")] | None
    relative_errors: Annotated[
        dict[str, float],
        about("Relative Frobenius error of the best rank-k update, by k: powers of two, suggested ranks."),
    ] = {}
    null_stable_rank: Annotated[float, about("Mean stable rank of B A for Gaussian B and A.")] | None = None
    b_stable_rank: Annotated[float, about("Stable rank of lora_B alone; null unless it starts at zero.")] | None = None
    b_null_stable_rank: Annotated[float, about("Mean stable rank of Gaussian numbers of lora_B's shape.")] | None = None
    b_rms: Annotated[float, about("Root mean square of lora_B's entries; null unless it starts at zero.")] | None = None
    energy_share: Annotated[Fraction, about("Squared Frobenius norm over the sum of all modules'.")] | None = None
    top_singular_values: Annotated[list[float], about("Largest sigma in falling order, as many as asked for.")] = []
    udr: Annotated[Real, about("norm2(dW) / norm2(W); null without a base.")] | None = None
    sdi: Annotated[Real, about("log10(udr); null without a base.")] | None = None
    relative_frobenius: Annotated[Real, about("Frobenius norm of dW over W's; null without a base.")] | None = None
    base: BaseComparison | None = None
    note: Annotated[str, about("What the numbers do not cover for this kind of update.")] | None = None
    state: Annotated[
        Literal["ok", "zero", "non_finite", "not_known"],
        about(
            "`zero`: dW is zero, so the module was never trained. `non_finite`: dW holds NaN or infinity. "
            "`not_known`: dW depends on the base weight, which was not given, or on something that no file holds; "
            "`note` says which."
        ),
    ] = "ok"


class GroupSummary(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The modules of one type. Means run over finite, non-zero updates whose energy_rank_90 is known."""

    n: Annotated[NonNegativeInt, about("Modules of this type, all of them.")]
    params: Annotated[NonNegativeInt, about("Parameters of their factors.")]
    stable_rank_mean: float | None = None
    effective_rank_mean: float | None = None
    utilization_mean: float | None = None
    energy_rank_90_p50: Annotated[float, about("Median of energy_rank_90.")] | None = None
    energy_share: Annotated[Fraction, about("Share of the adapter's squared Frobenius norm.")] | None = None


class LayerSummary(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One layer of the network: its modules and their share of the update."""

    layer: Annotated[NonNegativeInt, about("Index of the layer.")]
    label: Annotated[str, about("Name of the layer: `7`, or section and block, such as `2.7`, `down.1`.")] = ""
    n: Annotated[NonNegativeInt, about("Adapted modules of the layer.")]
    stable_rank_mean: float | None = None
    energy_share: Annotated[Fraction, about("Share of the adapter's squared Frobenius norm.")] | None = None


class AuditSummary(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The adapter in a few numbers. Means and norms are of finite, non-zero updates with an energy_rank_90."""

    total_lora_params: Annotated[NonNegativeInt, about("Parameters of all factors.")]
    n_layers: Annotated[NonNegativeInt, about("Adapted modules, under the name that other logs use for their number.")]
    stable_rank_mean: float | None = None
    stable_rank_median: float | None = None
    stable_rank_weighted_mean: Annotated[float, about("Mean weighted by each module's parameters.")] | None = None
    effective_rank_mean: float | None = None
    utilization_mean: float | None = None
    energy_rank_90_p50: Annotated[float, about("Median of energy_rank_90.")] | None = None
    energy_rank_90_p90: Annotated[float, about("90th percentile of energy_rank_90.")] | None = None
    by_type: dict[str, GroupSummary] = {}
    suggested_r_global_median: Annotated[Rank, about("Median of energy_rank_90, rounded up.")] | None = None
    suggested_r_global_90: Annotated[Rank, about("90th percentile of energy_rank_90, rounded up.")] | None = None
    energy_concentration: Annotated[Fraction, about("Herfindahl index of the energy shares of modules.")] | None = None
    null_stable_rank_mean: Annotated[float, about("Mean over the modules of null_stable_rank.")] | None = None
    update_norm: Annotated[float, about("Frobenius norm of the whole update: root of the sum of squares.")] | None = (
        None
    )
    update_size: (
        Annotated[
            float,
            about(
                "update_norm over that of freshly initialised weights of these shapes, with entries of variance 2 / "
                "(d_in + d_out) (Glorot and Bengio 2010)."
            ),
        ]
        | None
    ) = None


class Health(msgspec.Struct, kw_only=True, frozen=True):
    """Whether the adapter is in order; to be read before its numbers."""

    verdict: Literal[
        "trained", "near_untrained", "untrained", "partial", "oversized", "random_like", "broken", "not_analysed"
    ]
    reason: Annotated[str, about("The ground of the verdict, in words.")]


ResizedAs = Literal["as_it_is", "converted", "not"]


class LedgerEntry(msgspec.Struct, kw_only=True, frozen=True):
    """All tensors of one role, counted."""

    role: Role
    tensors: Annotated[NonNegativeInt, about("Number of tensors.")]
    params: Annotated[NonNegativeInt, about("Number of their entries.")]
    bytes: Annotated[NonNegativeInt, about("Size of their data.")]
    share: Annotated[Fraction, about("Share of the bytes of all tensors of the file.")]


class LeftoverReason(StrEnum):
    """Why a tensor or module is not analysed, as a code for programs; `reason` beside it gives the details."""

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
    """A tensor, or a group of tensors, that the numbers do not cover, and why."""

    name: str
    reason: str
    cause: LeftoverReason | None = None


class Beside(msgspec.Struct, kw_only=True, frozen=True):
    """What the next command is filled in with; null: the command has a word in capitals, to be replaced."""

    base: Annotated[str, about("Folder or hub id, by adapter_config.json or the log.")] | None = None
    texts: Annotated[str, about("File of training rows, by a recipe, below its folder.")] | None = None
    held_out: Annotated[str, about("File of held-out rows, likewise.")] | None = None


class AuditReport(Report, kw_only=True, frozen=True):
    """The audit of one adapter, as `gradience audit --json` prints it."""

    schema: Literal["gradience.audit/v3"]
    peft_dir: Annotated[str, about("The adapter's path, as given.")]
    config_path: str | None = None
    weights_path: Annotated[str, about("Weights file as given; any further files are in `weights_paths`.")]
    weights_paths: list[str] = []
    format: Annotated[str, about("`peft`, `mlx`, `kohya`, `diffusers`, `npz`, `h5`; `arrays` if in memory.")]
    peft_type: str | None = None
    base_model: str | None = None
    task_type: Annotated[str | None, about("As PEFT's config has it, such as CAUSAL_LM; null if it does not say.")] = (
        None
    )
    optimizer: Annotated[
        str | None,
        about("The optimizer that trained it, as given or by training arguments beside it; null if unknown."),
    ] = None
    health: Health
    summary: AuditSummary
    suggested: Annotated[
        dict[str, SuggestedRank], about("Median (`median`) and 90th percentile (`p90`) of energy_rank_90.")
    ] = {}
    like_suggested: Annotated[
        SuggestedRank | None,
        about("Each module cut to its own energy_rank_90, as `resize --like-suggested` does; ranks in per_layer."),
    ] = None
    candidates: Annotated[
        list[SuggestedRank], about("Cost and saving of lower ranks: the powers of two and the suggested ranks.")
    ] = []
    resized_as: Annotated[
        ResizedAs, about("Whether `resize` takes the file: as it is, after `convert` made a PEFT LoRA of it, or not.")
    ] = "as_it_is"
    rank_rules: Annotated[list[RankRule], about("Ranks by several rules of thumb, energy_rank_90 among them.")] = []
    rank_disagreements: Annotated[list[RankDisagreement], about("Modules on which the rules of thumb disagree.")] = []
    per_layer: RankPattern | None = None
    unmatched_patterns: Annotated[list[str], about("Keys of rank_pattern and alpha_pattern that match no module.")] = []
    base: BaseReport | None = None
    beside: Beside = Beside()
    modules: list[ModuleAudit] = []
    layers: Annotated[list[LayerSummary], about("Adapted layers, in their order.")] = []
    ledger: Annotated[list[LedgerEntry], about("Tensors of the file by role, most bytes first.")] = []
    not_analysed: Annotated[list[NotAnalysed], about("Tensors without numbers, with the reasons.")] = []
    findings: list[Finding] = []
    readings: Annotated[list[Finding], about("What rules read that is no finding: it counts nowhere.")] = []
    not_run: Annotated[list[NotRun], about("Checks that did not run, each with the reason.")] = []
    notes: list[str] = []

    @property
    def is_scaled(self) -> bool:
        """Whether the scale of the updates is known: of PEFT's weights without their config it is not."""
        return not self.weights_path or self.config_path is not None or self.format != "peft"
