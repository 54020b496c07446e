"""What `gradience verify-merge` prints as JSON."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema.scalars import Fraction, NonNegativeInt, Real

__all__ = [
    "VERIFY_MERGE_SCHEMA_ID",
    "MergeReplay",
    "ModuleVerdict",
    "OtherTensor",
    "VerifiedModule",
    "VerifyMergeReport",
    "VerifyVerdict",
]

VERIFY_MERGE_SCHEMA_ID: Final = "gradience.verify-merge/v1"

VerifyVerdict: TypeAlias = Literal["contained", "not_contained", "inconclusive"]
ModuleVerdict: TypeAlias = Literal[
    "exact", "within_rounding", "unresolved", "absent", "scaled", "other", "not_compared"
]


class MergeReplay(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One way in which programs merge: T(T(W) + D(dW)), T and D roundings to a dtype, cast to the merged dtype."""

    weight: Annotated[str, Meta(description="T: the dtype of the model while it was merged, such as `BF16`.")]
    delta: Annotated[str, Meta(description="D: the dtype in which dW was added.")] = "F32"
    factors: Annotated[str | None, Meta(description="B and A were cast to it first; null: as stored.")] = None
    rounds_product: Annotated[bool, Meta(description="B A was rounded to D before it was scaled, and after.")] = False
    scales_factor: Annotated[bool, Meta(description="(s B) A instead of s (B A).")] = False
    times: Annotated[NonNegativeInt, Meta(description="How often the merge was done.")] = 1
    factor: Annotated[float, Meta(description="Of dW.")] = 1.0
    without_base_change: Annotated[
        bool, Meta(description="dW = s B A alone, where the true update is a function of W (DoRA, PiSSA).")
    ] = False


class VerifiedModule(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One tensor that the adapter changes. W is the base's, M the merged one, dW the update."""

    name: Annotated[str, Meta(description="The module's path; `.bias` behind it for a bias.")]
    kind: Annotated[
        Literal["update", "replacement", "rows"],
        Meta(description="W + dW, a tensor that the adapter holds whole, or some rows of one."),
    ] = "update"
    verdict: Annotated[
        ModuleVerdict,
        Meta(
            description="`exact`: bit for bit one of the replays. `within_rounding`: every entry of M - (W + dW) is "
            "within the bound of the dtypes. `unresolved`: M equals W, and so would a merge, or all but. `absent`: M "
            "equals W, a merge would change it. `scaled`: M is W + factor dW, factor not 1. `other`: none of these. "
            "`not_compared`: see `reason`."
        ),
    ]
    reason: Annotated[str | None, Meta(description="Why it was not compared, or what else is to be said.")] = None
    base_tensor: str | None = None
    merged_tensor: str | None = None
    base_dtype: Annotated[str | None, Meta(description="As stored, such as `BF16`.")] = None
    merged_dtype: str | None = None
    replay: Annotated[MergeReplay | None, Meta(description="The one that M equals bit for bit.")] = None
    factor: Annotated[float | None, Meta(description="Of dW in M, where the verdict is `scaled`.")] = None
    precision: Annotated[
        str | None,
        Meta(description="`within_rounding` and `scaled`: the dtype whose roundings of dW explain what is left."),
    ] = None
    coefficient: Annotated[
        Real | None, Meta(description="c = <M - W, dW> / norm(dW)^2, least squares; null where dW is zero.")
    ] = None
    expected_coefficient: Annotated[
        Real | None,
        Meta(description="c of a correct merge in these dtypes: under 1 where rounding swallows part of dW."),
    ] = None
    residual: Annotated[Real | None, Meta(description="norm(M - W - c dW) / norm(dW), Frobenius.")] = None
    changed: Annotated[Fraction | None, Meta(description="Share of the entries in which M differs from W.")] = None


class OtherTensor(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A tensor that the adapter does not touch, and that is not the same in base and merged model."""

    name: str
    what: Annotated[
        Literal["changed", "missing", "added", "not_compared"],
        Meta(description="`missing`: in the base only. `added`: in the merged model only."),
    ]
    relative_change: Annotated[Real | None, Meta(description="norm(M - W) / norm(W).")] = None
    reason: str | None = None


class VerifyMergeReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Whether a merged model contains an adapter, tensor by tensor."""

    schema: Literal["gradience.verify-merge/v1"]
    base: str
    adapter: str
    merged: str
    verdict: Annotated[
        VerifyVerdict,
        Meta(
            description="`not_contained`: a module is absent, scaled or other. Else `inconclusive`: one was not "
            "compared, or none was resolved. Else `contained`."
        ),
    ]
    reasons: Annotated[list[str], Meta(description="Why, where the verdict is not `contained`.")] = []
    counts: Annotated[dict[str, int], Meta(description="Modules by verdict.")]
    coefficient: Annotated[
        Real | None, Meta(description="Of all updates together: sum <M - W, dW> / sum norm(dW)^2.")
    ] = None
    replays: Annotated[dict[str, int], Meta(description="The replays that were met bit for bit, in words.")] = {}
    dtypes: Annotated[
        dict[str, int], Meta(description="Tensors by dtype in base and merged model, such as `F32 -> BF16`.")
    ] = {}
    modules: list[VerifiedModule]
    untouched: Annotated[NonNegativeInt, Meta(description="Tensors that the adapter does not touch, compared.")] = 0
    others: Annotated[list[OtherTensor], Meta(description="Those of them that are not the same.")] = []
    notes: list[str] = []
