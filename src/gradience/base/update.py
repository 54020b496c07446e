"""One module's update in the orientation of the base weight, and how much of the update survives a merge.

The update is kept as two factors wherever the factors are all of it. Norms, singular vectors and the survival of a
merge are then computed without the product in memory.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from gradience.adapters.layout import Array, Module, within_range
from gradience.base.weights import check_shape, matrix_of, plain_factors
from gradience.schema.audit import MergeSurvival
from gradience.spectral.base import MergeSums, Updated, merge_sums
from gradience.spectral.grams import Floats
from gradience.spectral.krylov import Operator, as_float32
from gradience.spectral.update import decomposed

_HALF: Final = 2  # bytes of a 16-bit float


class Update(NamedTuple):
    """The update `scale * b @ a`, or `dense` if the update is held as a full matrix.

    `sigma` holds the singular values if this module factored the update, so that b and a are orthogonal factors. It is
    None if b and a are the adapter's own factors, or if the update is dense.
    """

    b: Array
    a: Array
    scale: float
    dense: Array | None = None
    sigma: Floats | None = None

    def operators(self, w: Array) -> tuple[Operator, Operator]:
        """W and W + dW as operators, for a weight that `as_float32` has converted."""
        base = Operator.of(w)
        if self.dense is not None:
            return base, Operator.of(as_float32(w + self.dense))
        left = (self.b.astype(np.float32) * np.float32(self.scale)).astype(np.float32)
        return base, base.plus(left, self.a)

    def merged(self, w: Array, dtype: str) -> MergeSums:
        """Sums over the entries of a merge into the stored weight `w`, whose `dtype` is given by safetensors' name."""
        # PEFT rounds the product of 16-bit factors to their dtype before it adds the product to the weight.
        stored = self.b.dtype.name if self.dense is None and self.b.dtype.itemsize == _HALF else "float32"
        whole = Updated(w, self.b, self.a, self.dense)
        return merge_sums(whole, scale=self.scale, target=_target(dtype), delta_dtype=stored)


def update_of(module: Module, w: Array) -> Update:
    """The module's update in the orientation of the base weight `w`.

    Raises:
        AdapterError: the base weight has another shape.
    """
    if module.factored is not None:
        b, a = module.factored(w)
        check_shape((len(b), a.shape[1]), w.shape)
        if not within_range(b, a):
            return Update(b, a, 1.0, sigma=np.full(1, np.nan))
        # Orthogonal factors, because the part that the initialisation took out of the base is large beside the update.
        low = decomposed(b, a)
        return Update((low.u * low.sigma).astype(np.float32), low.v.astype(np.float32), 1.0, sigma=low.sigma)
    if module.dense is not None:
        return Update(w[:, :0], w[:0], 1.0, matrix_of(module.dense, w))
    b, a = plain_factors(module, w.shape)
    return Update(b, a, module.scale)


def _target(dtype: str) -> str:
    """The dtype in which a merge is judged: float16 for a float16 weight, else bfloat16, in which models are served."""
    return "float16" if dtype == "F16" else "bfloat16"


def survival_of(sums: MergeSums, dtype: str) -> MergeSurvival:
    """The report's entry on how much of an update survives a merge."""
    return MergeSurvival(
        dtype=_target(dtype),  # type: ignore[arg-type]  # one of the two
        changed=sums.changed / sums.entries,
        cosine=sums.cosine,
        gain=math.sqrt(sums.realised / sums.intended) if sums.intended > 0.0 else None,
    )
