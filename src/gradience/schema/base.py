"""An adapter's update beside the weights of its base model."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gradience.schema.scalars import Fraction, NonNegativeInt, Real

__all__ = ["BaseComparison", "BaseReport", "Intruders", "MergeSurvival", "NotCompared"]


class MergeSurvival(msgspec.Struct, kw_only=True, frozen=True):
    """What merging the update into a 16-bit weight keeps of it, computed entry by entry."""

    dtype: Annotated[Literal["bfloat16", "float16"], Meta(description="The merged weight's type.")]
    changed: Annotated[Fraction, Meta(description="Share of the entries of W that a merge changes.")]
    cosine: Annotated[float, Meta(description="Cosine between the realised and the intended change.")] | None
    gain: Annotated[float, Meta(description="Norm of the realised over the intended change.")] | None


class Intruders(msgspec.Struct, kw_only=True, frozen=True):
    """Leading left singular vectors of W + dW that resemble none of W's (arXiv 2410.21228)."""

    k: Annotated[NonNegativeInt, Meta(description="How many leading vectors were looked at.")]
    eps: Annotated[Fraction, Meta(description="A vector under this overlap with each of W's is an intruder.")]
    count: Annotated[NonNegativeInt, Meta(description="Intruders at eps.")]
    counts: Annotated[dict[str, int], Meta(description="Intruders by threshold.")]
    undecided: Annotated[
        NonNegativeInt, Meta(description="Vectors counted at eps that the bounds leave open; 0 where exact.")
    ]
    method: Annotated[
        Literal["exact", "lanczos"],
        Meta(description="Dense SVD of both matrices, or Lanczos with bounds on every overlap."),
    ]
    converged: bool


class BaseComparison(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One module's update beside its weight W. The true update, where it is a function of W (DoRA, PiSSA, ...)."""

    weight: Annotated[str, Meta(description="The tensor's name in the base.")]
    dtype: Annotated[str, Meta(description="As stored, such as `BF16`.")]
    update: Annotated[Literal["factors", "dense"], Meta(description="dW = s B A, or the true W' - W computed from W.")]
    spectral_norm: Annotated[Real, Meta(description="norm2(W).")]
    frobenius_norm: Annotated[Real, Meta(description="Frobenius norm of W.")]
    update_spectral_norm: Annotated[Real, Meta(description="norm2 of the update compared.")]
    update_frobenius_norm: Real
    converged: Annotated[bool, Meta(description="Whether both norms reached their tolerance.")] = True
    survival: MergeSurvival | None = None
    intruders: Intruders | None = None


class NotCompared(msgspec.Struct, kw_only=True, frozen=True):
    """A module without a number against the base, and why."""

    name: str
    reason: str


class BaseReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The adapter as a whole beside its base. Sums run over the compared modules."""

    path: Annotated[str, Meta(description="The folder the weights were read from.")]
    identity: (
        Annotated[str, Meta(description="Hash over the files' names, sizes, etags or contents; null without cache.")]
        | None
    ) = None
    files: NonNegativeInt
    compared: Annotated[NonNegativeInt, Meta(description="Modules with numbers against the base.")]
    not_compared: list[NotCompared] = []
    norms_cached: Annotated[NonNegativeInt, Meta(description="Weight norms taken from the cache.")] = 0
    relative_frobenius: (
        Annotated[float, Meta(description="sqrt(sum of squared norms of dW / sum of squared norms of W).")] | None
    ) = None
    udr_median: float | None = None
    udr_max: float | None = None
    sdi_median: float | None = None
    survival_dtype: str | None = None
    survival_cosine_median: float | None = None
    survival_changed_median: Fraction | None = None
    survival_at_risk: Annotated[NonNegativeInt, Meta(description="Modules under the survival threshold.")] = 0
    intruder_total: Annotated[NonNegativeInt, Meta(description="Intruder dimensions over all modules.")] | None = None
    intruder_modules: NonNegativeInt | None = None
    method: Annotated[str, Meta(description="How norms and vectors were computed.")] = ""
    notes: list[str] = []
