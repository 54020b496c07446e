"""What `gradience merge` and `gradience merge-check` print as JSON."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema import Fraction, Json, NonNegativeInt, Real, about
from gradience.schema.compare import ComparedAdapter, ConfigDifference, Cosine, OnlyIn, Overlap
from gradience.schema.document import Finding, NotRun, Report

MERGE_SCHEMA_ID: Final = "gradience.merge/v2"
MERGE_CHECK_SCHEMA_ID: Final = "gradience.merge-check/v2"

MergeMethod: TypeAlias = Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties"]


Size: TypeAlias = Annotated[float, Meta(ge=0.0)]


class MergedModule(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One module of the merged adapter."""

    name: str
    kind: Annotated[str, about("`linear`, `embedding`, `conv` or `expert`.")]
    ranks: Annotated[list[NonNegativeInt], about("Of each adapter, in their order; 0 where it has none.")]
    rank: Annotated[NonNegativeInt, about("As written.")]
    relative_error: Annotated[
        Size | None,
        about(
            "norm(written - target) / norm(target), Frobenius, the rounding to the dtype included; target "
            "is what the method defines. Null where that is zero."
        ),
    ] = None
    distance_from_sum: Annotated[
        Size | None, about("norm(written - S) / norm(S) with S = sum w_i dW_i; null where S is zero.")
    ] = None

    @property
    def rank_before(self) -> int:
        """The rank of the adapters' factors side by side."""
        return sum(self.ranks)

    @property
    def rank_after(self) -> int:
        """The rank as written, under the name that other reports have for it."""
        return self.rank


class MergeReport(Report, kw_only=True, frozen=True):
    """Adapters merged into one, module by module."""

    schema: Literal["gradience.merge/v2"]
    adapters: list[ComparedAdapter]
    weights: Annotated[list[float], about("w_i, in the order of the adapters.")]
    method: MergeMethod
    density: Annotated[Fraction | None, about("Share of entries that TIES or DARE keeps.")] = None
    seed: Annotated[NonNegativeInt | None, about("Of DARE's masks.")] = None
    rank: Annotated[NonNegativeInt | None, about("As asked for; null where the method decides.")] = None
    heads_from: Annotated[str | None, about("The adapter whose whole tensors were taken, if asked for.")] = None
    out: Annotated[str, about("The folder that was written; empty on a dry run.")] = ""
    dtype: Annotated[str, about("Of the factors, such as `F32`.")]
    r: NonNegativeInt
    lora_alpha: float
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, Json] = {}
    relative_error: Annotated[Size | None, about("Of all modules: root of the sums of squares' ratio.")] = None
    distance_from_sum: Annotated[Size | None, about("Of all modules, likewise.")] = None
    params: Annotated[NonNegativeInt, about("Of the factors written.")] = 0
    largest_dense_bytes: Annotated[
        NonNegativeInt, about("TIES and DARE: bytes of the largest update as a float64 matrix.")
    ] = 0
    modules: list[MergedModule] = []
    only_in: Annotated[list[OnlyIn], about("Modules that not all adapters have: zero in the others.")] = []
    carried: Annotated[list[str], about("Tensors copied bit for bit: heads, biases, token rows.")] = []
    dropped: Annotated[list[str], about("Such tensors that were left out, as asked with heads_from.")] = []
    notes: list[str] = []


class Kept(msgspec.Struct, kw_only=True, frozen=True):
    """What the weighted sum M = sum w_i dW_i holds of one adapter."""

    coefficient: Annotated[
        float | None,
        about("<M, dW> / norm(dW)^2: how much of the adapter's own update M applies; null where it is zero."),
    ]
    other: Annotated[
        Fraction | None, about("Share of norm(M)^2 that is orthogonal to the adapter's update; null where M is zero.")
    ]


class SignConflict(msgspec.Struct, kw_only=True, frozen=True):
    """Entries of the weighted updates w_i dW_i, added up."""

    conflict: Annotated[Fraction, about("Share of entries where two of them have opposite signs.")]
    cancelled: Annotated[Fraction, about("1 - sum |sum_i x_i| / sum sum_i |x_i|: the share of magnitude that cancels.")]
    conflict_error: Annotated[float, about("Standard error of `conflict`; 0 where every entry was read.")]
    cancelled_error: Annotated[float, about("Standard error of `cancelled`; 0 where exact.")]
    entries: Annotated[NonNegativeInt, about("Entries that were read.")]
    of: Annotated[NonNegativeInt, about("Entries that there are.")]


class CheckedModule(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One module that two or more of the adapters have."""

    name: str
    layer: NonNegativeInt | None = None
    state: Literal["ok", "non_finite"] = "ok"
    norms: Annotated[list[float], about("norm(w_i dW_i), 0 for an adapter without it.")] = []
    lowest_cosine: Annotated[Cosine | None, about("Of any two of the weighted updates.")] = None
    kept: Annotated[list[Kept], about("One per adapter.")] = []
    signs: SignConflict | None = None


class CheckedAdapter(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One adapter, its weight, and what a weighted sum keeps of it over all modules."""

    adapter: ComparedAdapter
    weight: float
    weighted_norm: Annotated[float, about("norm(w dW) over all its modules.")]
    kept: Kept
    obstacles: Annotated[list[str], about("Why `gradience merge` would refuse it as it is.")] = []


class CheckedPair(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Two of the adapters over all modules, by their weighted updates."""

    first: str
    second: str
    cosine: Annotated[Cosine | None, about("Of w_1 dW_1 and w_2 dW_2 as one vector each.")] = None
    scale_ratio: Annotated[float | None, about("The larger weighted norm over the smaller.")] = None
    output_side: Annotated[list[Overlap], about("Mean phi(k, k) of left singular vectors.")] = []
    input_side: Annotated[list[Overlap], about("The same of right singular vectors.")] = []


class MergeCheckReport(Report, kw_only=True, frozen=True):
    """What would get in each other's way if the adapters were merged, as `gradience merge-check --json` prints it."""

    schema: Literal["gradience.merge-check/v2"]
    adapters: list[CheckedAdapter]
    differences: Annotated[list[ConfigDifference], about("One value per adapter, in their order.")] = []
    pairs: list[CheckedPair] = []
    signs: Annotated[SignConflict | None, about("Over all modules that two or more adapters have.")] = None
    expected_conflict: Annotated[
        Fraction | None,
        about(
            "Two adapters: arccos(cosine) / pi, the conflict of jointly Gaussian entries of a module's "
            "cosine, in the mean over entries."
        ),
    ] = None
    modules: list[CheckedModule] = []
    only_in: list[OnlyIn] = []
    different_shapes: list[str] = []
    findings: list[Finding] = []
    not_run: list[NotRun] = []
    notes: list[str] = []


VERIFY_MERGE_SCHEMA_ID: Final = "gradience.verify-merge/v2"

VerifyVerdict: TypeAlias = Literal["contained", "not_contained", "inconclusive"]
ModuleVerdict: TypeAlias = Literal[
    "exact", "within_rounding", "unresolved", "absent", "scaled", "other", "not_compared"
]


class MergeReplay(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One way in which programs merge: T(T(W) + D(dW)), T and D roundings to a dtype, cast to the merged dtype."""

    weight: Annotated[str, about("T: the dtype of the model while it was merged, such as `BF16`.")]
    delta: Annotated[str, about("D: the dtype in which dW was added.")] = "F32"
    factors: Annotated[str | None, about("B and A were cast to it first; null: as stored.")] = None
    rounds_product: Annotated[bool, about("B A was rounded to D before it was scaled, and after.")] = False
    scales_factor: Annotated[bool, about("(s B) A instead of s (B A).")] = False
    times: Annotated[NonNegativeInt, about("How often the merge was done.")] = 1
    factor: Annotated[float, about("Of dW.")] = 1.0
    rescaled: Annotated[bool, about("f (W + dW) instead, dW = s B A, f = magnitude / norm(W + dW): DoRA's merge.")] = (
        False
    )
    without_base_change: Annotated[
        bool, about("dW = s B A alone, where the true update is a function of W (DoRA, PiSSA).")
    ] = False


class VerifiedModule(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One tensor that the adapter changes. W is the base's, M the merged one, dW the update."""

    name: Annotated[str, about("The module's path; `.bias` behind it for a bias.")]
    kind: Annotated[
        Literal["update", "replacement", "rows"],
        about("W + dW, a tensor that the adapter holds whole, or some rows of one."),
    ] = "update"
    verdict: Annotated[
        ModuleVerdict,
        about(
            "`exact`: every entry is one that a replay gives, in some order of adding up the products in "
            "B A. `within_rounding`: every entry of M - (W + dW) is within the bound of the dtypes. `unresolved`: M "
            "equals W, and so would a merge, or all but. `absent`: M equals W, a merge would change it. `scaled`: M is "
            "W + factor dW, factor not 1. `other`: none of these. `not_compared`: see `reason`."
        ),
    ]
    reason: Annotated[str | None, about("Why it was not compared, or a remark.")] = None
    base_tensor: str | None = None
    merged_tensor: str | None = None
    base_dtype: Annotated[str | None, about("As stored, such as `BF16`.")] = None
    merged_dtype: str | None = None
    replay: Annotated[MergeReplay | None, about("The one that gives M.")] = None
    factor: Annotated[float | None, about("Of dW in M, where the verdict is `scaled`.")] = None
    precision: Annotated[
        str | None, about("`within_rounding` and `scaled`: the dtype whose roundings of dW explain what is left.")
    ] = None
    coefficient: Annotated[
        Real | None, about("c = <M - W, dW> / norm(dW)^2, least squares; null where dW is zero.")
    ] = None
    expected_coefficient: Annotated[
        Real | None, about("c of a correct merge in these dtypes: under 1 where rounding swallows part of dW.")
    ] = None
    residual: Annotated[Real | None, about("norm(M - W - c dW) / norm(dW), Frobenius.")] = None
    changed: Annotated[Fraction | None, about("Share of the entries in which M differs from W.")] = None


class OtherTensor(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A tensor that the adapter does not touch, and that is not the same in base and merged model."""

    name: str
    what: Annotated[
        Literal["changed", "missing", "added", "not_compared"],
        about("`missing`: in the base only. `added`: in the merged model only."),
    ]
    relative_change: Annotated[Real | None, about("norm(M - W) / norm(W).")] = None
    reason: str | None = None


class VerifyMergeReport(Report, kw_only=True, frozen=True):
    """Whether a merged model contains an adapter, tensor by tensor."""

    schema: Literal["gradience.verify-merge/v2"]
    base: str
    adapter: str
    merged: str
    verdict: Annotated[
        VerifyVerdict,
        about(
            "`not_contained`: a module is absent, scaled or other. Else `inconclusive`: one was not "
            "compared, or none was resolved. Else `contained`."
        ),
    ]
    reasons: Annotated[list[str], about("Why, where the verdict is not `contained`.")] = []
    counts: Annotated[dict[str, int], about("Modules by verdict.")]
    coefficient: Annotated[Real | None, about("Of all updates together: sum <M - W, dW> / sum norm(dW)^2.")] = None
    replays: Annotated[dict[str, int], about("The replays that give M, in words.")] = {}
    dtypes: Annotated[dict[str, int], about("Tensors by dtype in base and merged model, such as `F32 -> BF16`.")] = {}
    modules: list[VerifiedModule]
    untouched: Annotated[NonNegativeInt, about("Tensors that the adapter does not touch, compared.")] = 0
    others: Annotated[list[OtherTensor], about("Those of them that are not the same.")] = []
    notes: list[str] = []
