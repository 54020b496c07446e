"""Types of the reports of `gradience merge` and of `gradience verify` on a merged model."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema import Fraction, Json, NonNegativeInt, Real, about
from gradience.schema.audit import Beside
from gradience.schema.compare import ComparedAdapter, ConfigDifference, Cosine, OnlyIn
from gradience.schema.document import Finding, NotRun, Report

MERGE_SCHEMA_ID: Final = "gradience.merge/v2"
MERGE_CHECK_SCHEMA_ID: Final = "gradience.merge-check/v3"

MergeMethod: TypeAlias = Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties"]


Size: TypeAlias = Annotated[float, Meta(ge=0.0)]


class MergedModule(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One module of the merged adapter."""

    name: str
    kind: Annotated[str, about("`linear`, `embedding`, `conv` or `expert`.")]
    ranks: Annotated[
        list[NonNegativeInt], about("Rank in each adapter, in their order; 0 in an adapter that lacks the module.")
    ]
    rank: Annotated[NonNegativeInt, about("Rank as written.")]
    relative_error: Annotated[
        Size | None,
        about(
            "norm(written - target) / norm(target), Frobenius, with the rounding to the dtype included; the method "
            "defines the target. Null if the target is zero."
        ),
    ] = None
    distance_from_sum: Annotated[
        Size | None, about("norm(written - S) / norm(S), Frobenius, with S = sum w_i dW_i; null if S is zero.")
    ] = None

    @property
    def rank_before(self) -> int:
        """Return the sum of the adapters' ranks: the rank of their factors side by side."""
        return sum(self.ranks)

    @property
    def rank_after(self) -> int:
        """Return the rank as written, under the name that other reports use."""
        return self.rank


class MergeReport(Report, kw_only=True, frozen=True):
    """Adapters merged into one, module by module."""

    schema: Literal["gradience.merge/v2"]
    adapters: list[ComparedAdapter]
    weights: Annotated[list[float], about("w_i, in the order of the adapters.")]
    method: MergeMethod
    density: Annotated[Fraction | None, about("Share of entries that TIES or DARE keeps; null for other methods.")] = (
        None
    )
    seed: Annotated[NonNegativeInt | None, about("Seed of DARE's masks; null for other methods.")] = None
    rank: Annotated[NonNegativeInt | None, about("Rank that was asked for; null if the method decides.")] = None
    heads_from: Annotated[
        str | None, about("Adapter that the whole tensors (heads, biases) come from; null if not asked for.")
    ] = None
    out: Annotated[str, about("The folder that was written; empty on a dry run.")] = ""
    dtype: Annotated[str, about("Dtype of the factors, such as `F32`.")]
    r: Annotated[NonNegativeInt, about("`r` of the written config.")]
    lora_alpha: float
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, Json] = {}
    relative_error: Annotated[
        Size | None, about("relative_error over all modules: root of the ratio of the sums of squares.")
    ] = None
    distance_from_sum: Annotated[Size | None, about("distance_from_sum over all modules, computed likewise.")] = None
    params: Annotated[NonNegativeInt, about("Parameters of the factors that were written.")] = 0
    largest_dense_bytes: Annotated[
        NonNegativeInt, about("For TIES and DARE: bytes of the largest update as a float64 matrix.")
    ] = 0
    modules: list[MergedModule] = []
    only_in: Annotated[list[OnlyIn], about("Modules that some adapters lack; they count as zero there.")] = []
    carried: Annotated[list[str], about("Tensors that were copied bit for bit: heads, biases, token rows.")] = []
    dropped: Annotated[list[str], about("Whole tensors that were left out, as heads_from asks.")] = []
    notes: list[str] = []


class Kept(msgspec.Struct, kw_only=True, frozen=True):
    """The part of one adapter's update dW in the weighted sum M = sum w_i dW_i."""

    coefficient: Annotated[
        float | None,
        about("<M, dW> / norm(dW)^2: the multiple of dW that M applies; null if dW is zero."),
    ]
    other: Annotated[Fraction | None, about("Share of norm(M)^2 that is orthogonal to dW; null if M is zero.")]


class SignConflict(msgspec.Struct, kw_only=True, frozen=True):
    """Conflicts of sign between the entries x_i of the weighted updates w_i dW_i."""

    conflict: Annotated[Fraction, about("Share of entries in which two adapters have opposite signs.")]
    cancelled: Annotated[Fraction, about("Share of magnitude that cancels: 1 - sum |sum_i x_i| / sum sum_i |x_i|.")]
    conflict_error: Annotated[float, about("Standard error of `conflict`; 0 if every entry was read.")]
    cancelled_error: Annotated[float, about("Standard error of `cancelled`; 0 if it is exact.")]
    entries: Annotated[NonNegativeInt, about("Number of entries that were read.")]
    of: Annotated[NonNegativeInt, about("Number of all entries.")]


class CheckedModule(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A module that two or more of the adapters have."""

    name: str
    layer: NonNegativeInt | None = None
    state: Literal["ok", "non_finite"] = "ok"
    norms: Annotated[
        list[float], about("norm(w_i dW_i), Frobenius, of each adapter; 0 for an adapter that lacks the module.")
    ] = []
    lowest_cosine: Annotated[
        Cosine | None, about("Lowest cosine between two of the weighted updates; null if there is none.")
    ] = None
    kept: Annotated[list[Kept], about("The adapters' parts in the weighted sum, in their order.")] = []
    signs: SignConflict | None = None


class CheckedAdapter(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One adapter, its weight, and its part in the weighted sum over all modules."""

    adapter: ComparedAdapter
    weight: Annotated[float, about("Its weight w in the sum.")]
    weighted_norm: Annotated[float, about("norm(w dW), Frobenius, over all its modules.")]
    kept: Kept
    obstacles: Annotated[list[str], about("Reasons why `gradience merge` would refuse the adapter as it is.")] = []
    beside: Beside = Beside()


class CheckedPair(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Two of the adapters over all modules, compared by their weighted updates."""

    first: str
    second: str
    cosine: Annotated[Cosine | None, about("Cosine of w_1 dW_1 and w_2 dW_2, each as one vector.")] = None


class MergeCheckReport(Report, kw_only=True, frozen=True):
    """Conflicts between adapters that are to be merged, as `gradience merge --check --json` prints them."""

    schema: Literal["gradience.merge-check/v3"]
    adapters: list[CheckedAdapter]
    merged: Annotated[MergeReport | None, about("What the merge would write; null if it would be refused.")] = None
    refused: Annotated[str, about("Why the merge would be refused; else empty.")] = ""
    differences: Annotated[list[ConfigDifference], about("Settings that differ, one value per adapter.")] = []
    pairs: list[CheckedPair] = []
    signs: Annotated[
        SignConflict | None,
        about("Sign conflicts over all modules that two or more adapters have; null if there is none."),
    ] = None
    trials: Annotated[
        list[list[float]],
        about(
            "Weights to try on held-out data: those asked for, and each adapter whole (1/n of each, if whole ones were "
            "asked for), unless two of them are nearly one update."
        ),
    ] = []
    modules: list[CheckedModule] = []
    only_in: list[OnlyIn] = []
    different_shapes: list[str] = []
    findings: list[Finding] = []
    not_run: list[NotRun] = []
    notes: list[str] = []


VERIFY_MERGED_SCHEMA_ID: Final = "gradience.verify-merged/v2"

VerifyVerdict: TypeAlias = Literal["contained", "not_contained", "inconclusive"]
ModuleVerdict: TypeAlias = Literal[
    "exact", "within_rounding", "unresolved", "absent", "scaled", "other", "not_compared"
]


class VerifiedModule(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One tensor that the adapter changes. W is the base's tensor, M the merged one, dW the update."""

    name: Annotated[str, about("Path of the module; for a bias, followed by `.bias`.")]
    kind: Annotated[
        Literal["update", "replacement", "rows"],
        about("`update`: W + dW. `replacement`: a tensor that the adapter holds whole. `rows`: some rows of a tensor."),
    ] = "update"
    verdict: Annotated[
        ModuleVerdict,
        about(
            "`exact`: every entry is W + dW, rounded to float32 or M's own dtype, for some order of summation in B A. "
            "`within_rounding`: "
            "every entry of M - (W + dW) is within the bound of the dtypes. `unresolved`: M equals W, and so would a "
            "merge, nearly or entirely. `absent`: M equals W, but a merge would change it. `scaled`: M is W + factor "
            "dW, with a factor other than 1. `other`: none of these. `not_compared`: see `reason`."
        ),
    ]
    reason: Annotated[str | None, about("Why it was not compared, or a remark; null without one.")] = None
    base_tensor: str | None = None
    merged_tensor: str | None = None
    base_dtype: Annotated[str | None, about("Dtype as stored, such as `BF16`.")] = None
    merged_dtype: str | None = None
    summed_in: Annotated[
        str | None, about("Dtype in which W + dW (or factor dW) gives M bit for bit; null if none does.")
    ] = None
    without_base_change: Annotated[
        bool, about("Whether dW is s B A alone although the true update is a function of W (DoRA, PiSSA).")
    ] = False
    factor: Annotated[float | None, about("Factor of dW in M if the verdict is `scaled`; else null.")] = None
    precision: Annotated[
        str | None,
        about(
            "For `within_rounding` and `scaled`: dtype of the roundings of dW that explain the remaining difference."
        ),
    ] = None
    coefficient: Annotated[
        Real | None, about("c = <M - W, dW> / norm(dW)^2, by least squares; null if dW is zero.")
    ] = None
    expected_coefficient: Annotated[
        Real | None, about("c of a correct merge in these dtypes; below 1 if rounding swallows part of dW.")
    ] = None
    residual: Annotated[Real | None, about("norm(M - W - c dW) / norm(dW), Frobenius.")] = None
    codes: Annotated[
        str | None, about("Form of the codes in which base or merged model hold the weight, such as `NF4`; else null.")
    ] = None
    lost: Annotated[
        Real | None, about("With codes: norm(M - W - dW) / norm(dW), W and M as their codes give them back.")
    ] = None
    expected_lost: Annotated[
        Real | None, about("The same of W + dW rounded to codes; null if the merged weight is in no codes.")
    ] = None
    changed: Annotated[Fraction | None, about("Share of the entries in which M differs from W.")] = None


class OtherTensor(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A tensor that the adapter does not change, but that differs between base and merged model."""

    name: str
    what: Annotated[
        Literal["changed", "missing", "added", "not_compared"],
        about("`missing`: in the base only. `added`: in the merged model only."),
    ]
    relative_change: Annotated[Real | None, about("norm(M - W) / norm(W), Frobenius; null if unknown.")] = None
    reason: str | None = None


class MergedAnswers(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What the merged model answers beside what a receipt of the adapter holds."""

    receipt: str
    verdict: Annotated[str, about("As of `gradience verify` by answers, without base and adapter.")]
    story: Annotated[str, about("The answer in one line, or why there is none.")]
    residual: Annotated[Real | None, about("|y - adapter| / |adapter - base| of log-probabilities.")] = None


class VerifyMergedReport(Report, kw_only=True, frozen=True):
    """Whether a merged model contains an adapter, judged tensor by tensor."""

    schema: Literal["gradience.verify-merged/v2"]
    base: str
    adapter: str
    merged: str
    verdict: Annotated[
        VerifyVerdict,
        about(
            "`not_contained`: a module is absent, scaled or other. Otherwise `inconclusive`: a module was not "
            "compared, or none was resolved. Otherwise `contained`."
        ),
    ]
    reasons: Annotated[list[str], about("Why the verdict is not `contained`; else empty.")] = []
    counts: Annotated[dict[str, int], about("Number of modules by verdict.")]
    coefficient: Annotated[
        Real | None, about("Coefficient of all updates together: sum <M - W, dW> / sum norm(dW)^2.")
    ] = None
    summed_in: Annotated[dict[str, int], about("Number of exact updates by the dtype in which W + dW was added.")] = {}
    dtypes: Annotated[
        dict[str, int], about("Number of tensors by dtype in base and merged model, such as `F32 -> BF16`.")
    ] = {}
    modules: list[VerifiedModule]
    untouched: Annotated[NonNegativeInt, about("Tensors that the adapter does not change and that were compared.")] = 0
    others: Annotated[list[OtherTensor], about("Tensors that the adapter does not change but that differ.")] = []
    answers: Annotated[MergedAnswers | None, about("Null if no receipt was given.")] = None
    findings: Annotated[list[Finding], about("What keeps the folder from loading as the model that was trained.")] = []
    not_run: list[NotRun] = []
    notes: list[str] = []
