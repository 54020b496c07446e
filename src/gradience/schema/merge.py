"""What `gradience merge` and `gradience merge-check` print as JSON."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema.compare import ConfigDifference
from gradience.schema.compare_adapters import ComparedAdapter, Cosine, OnlyIn, Overlap
from gradience.schema.findings import Finding, NotRun
from gradience.schema.scalars import Fraction, Json, NonNegativeInt

__all__ = [
    "MERGE_CHECK_SCHEMA_ID",
    "MERGE_SCHEMA_ID",
    "CheckedAdapter",
    "CheckedModule",
    "CheckedPair",
    "Kept",
    "MergeCheckReport",
    "MergeMethod",
    "MergeReport",
    "MergedModule",
    "SignConflict",
]

MERGE_SCHEMA_ID: Final = "gradience.merge/v1"
MERGE_CHECK_SCHEMA_ID: Final = "gradience.merge-check/v1"

MergeMethod: TypeAlias = Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties"]


Size: TypeAlias = Annotated[float, Meta(ge=0.0)]


class MergedModule(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One module of the merged adapter."""

    name: str
    kind: Annotated[str, Meta(description="`linear`, `embedding`, `conv` or `expert`.")]
    ranks: Annotated[list[NonNegativeInt], Meta(description="Of each adapter, in their order; 0 where it has none.")]
    rank: Annotated[NonNegativeInt, Meta(description="As written.")]
    relative_error: Annotated[
        Size | None,
        Meta(
            description="norm(written - target) / norm(target), Frobenius, the rounding to the dtype included; target "
            "is what the method defines. Null where that is zero.",
        ),
    ] = None
    distance_from_sum: Annotated[
        Size | None,
        Meta(description="norm(written - S) / norm(S) with S = sum w_i dW_i; null where S is zero."),
    ] = None


class MergeReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Adapters merged into one, module by module."""

    schema: Literal["gradience.merge/v1"]
    adapters: list[ComparedAdapter]
    weights: Annotated[list[float], Meta(description="w_i, in the order of the adapters.")]
    method: MergeMethod
    density: Annotated[Fraction | None, Meta(description="Share of entries that TIES or DARE keeps.")] = None
    seed: Annotated[NonNegativeInt | None, Meta(description="Of DARE's masks.")] = None
    rank: Annotated[NonNegativeInt | None, Meta(description="As asked for; null where the method decides.")] = None
    heads_from: Annotated[str | None, Meta(description="The adapter whose whole tensors were taken, if asked for.")] = (
        None
    )
    out: Annotated[str, Meta(description="The folder that was written; empty on a dry run.")] = ""
    dtype: Annotated[str, Meta(description="Of the factors, such as `F32`.")]
    r: NonNegativeInt
    lora_alpha: float
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, Json] = {}
    relative_error: Annotated[Size | None, Meta(description="Of all modules: root of the sums of squares' ratio.")] = (
        None
    )
    distance_from_sum: Annotated[Size | None, Meta(description="Of all modules, likewise.")] = None
    params: Annotated[NonNegativeInt, Meta(description="Of the factors written.")] = 0
    largest_dense_bytes: Annotated[
        NonNegativeInt, Meta(description="TIES and DARE: bytes of the largest update as a float64 matrix.")
    ] = 0
    modules: list[MergedModule] = []
    only_in: Annotated[list[OnlyIn], Meta(description="Modules that not all adapters have: zero in the others.")] = []
    carried: Annotated[list[str], Meta(description="Tensors copied bit for bit: heads, biases, token rows.")] = []
    dropped: Annotated[list[str], Meta(description="Such tensors that were left out, as asked with heads_from.")] = []
    notes: list[str] = []


class Kept(msgspec.Struct, kw_only=True, frozen=True):
    """What the weighted sum M = sum w_i dW_i holds of one adapter."""

    coefficient: Annotated[
        float | None,
        Meta(
            description="<M, dW> / norm(dW)^2: how much of the adapter's own update M applies; null where it is zero."
        ),
    ]
    other: Annotated[
        Fraction | None,
        Meta(description="Share of norm(M)^2 that is orthogonal to the adapter's update; null where M is zero."),
    ]


class SignConflict(msgspec.Struct, kw_only=True, frozen=True):
    """Entries of the weighted updates w_i dW_i, added up."""

    conflict: Annotated[Fraction, Meta(description="Share of entries where two of them have opposite signs.")]
    cancelled: Annotated[
        Fraction, Meta(description="1 - sum |sum_i x_i| / sum sum_i |x_i|: the share of magnitude that cancels.")
    ]
    conflict_error: Annotated[float, Meta(description="Standard error of `conflict`; 0 where every entry was read.")]
    cancelled_error: Annotated[float, Meta(description="Standard error of `cancelled`; 0 where exact.")]
    entries: Annotated[NonNegativeInt, Meta(description="Entries that were read.")]
    of: Annotated[NonNegativeInt, Meta(description="Entries that there are.")]


class CheckedModule(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One module that two or more of the adapters have."""

    name: str
    layer: NonNegativeInt | None = None
    state: Literal["ok", "non_finite"] = "ok"
    norms: Annotated[list[float], Meta(description="norm(w_i dW_i), 0 for an adapter without it.")] = []
    lowest_cosine: Annotated[Cosine | None, Meta(description="Of any two of the weighted updates.")] = None
    kept: Annotated[list[Kept], Meta(description="One per adapter.")] = []
    signs: SignConflict | None = None


class CheckedAdapter(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One adapter, its weight, and what a weighted sum keeps of it over all modules."""

    adapter: ComparedAdapter
    weight: float
    weighted_norm: Annotated[float, Meta(description="norm(w dW) over all its modules.")]
    kept: Kept
    obstacles: Annotated[list[str], Meta(description="Why `gradience merge` would refuse it as it is.")] = []


class CheckedPair(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Two of the adapters over all modules, by their weighted updates."""

    first: str
    second: str
    cosine: Annotated[Cosine | None, Meta(description="Of w_1 dW_1 and w_2 dW_2 as one vector each.")] = None
    scale_ratio: Annotated[float | None, Meta(description="The larger weighted norm over the smaller.")] = None
    output_side: Annotated[list[Overlap], Meta(description="Mean phi(k, k) of left singular vectors.")] = []
    input_side: Annotated[list[Overlap], Meta(description="The same of right singular vectors.")] = []


class MergeCheckReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What would get in each other's way if the adapters were merged, as `gradience merge-check --json` prints it."""

    schema: Literal["gradience.merge-check/v1"]
    adapters: list[CheckedAdapter]
    differences: Annotated[list[ConfigDifference], Meta(description="One value per adapter, in their order.")] = []
    pairs: list[CheckedPair] = []
    signs: Annotated[SignConflict | None, Meta(description="Over all modules that two or more adapters have.")] = None
    expected_conflict: Annotated[
        Fraction | None,
        Meta(
            description="Two adapters: arccos(cosine) / pi, the conflict of jointly Gaussian entries of a module's "
            "cosine, in the mean over entries."
        ),
    ] = None
    modules: list[CheckedModule] = []
    only_in: list[OnlyIn] = []
    different_shapes: list[str] = []
    findings: list[Finding] = []
    not_run: list[NotRun] = []
    notes: list[str] = []
