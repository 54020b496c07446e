"""One module's update in the orientation of the base's weight, and what a merge makes of it.

The update stays as its two factors wherever that is the whole of it: norms, singular vectors and the survival of a
merge are then found without the product ever being in memory.
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
    """scale * b @ a, or `dense` where the update is a whole matrix.

    `sigma` are the singular values of an update that was factored here; None where the module's factors are the update.
    """

    b: Array
    a: Array
    scale: float
    dense: Array | None = None
    sigma: Floats | None = None

    def operators(self, w: Array) -> tuple[Operator, Operator]:
        """W and W + dW, for a weight in float32 as `as_float32` gives it."""
        base = Operator.of(w)
        if self.dense is not None:
            return base, Operator.of(as_float32(w + self.dense))
        left = (self.b.astype(np.float32) * np.float32(self.scale)).astype(np.float32)
        return base, base.plus(left, self.a)

    def merged(self, w: Array, dtype: str) -> MergeSums:
        """Sums over the changes that a merge into the weight as stored makes; `dtype` as safetensors names it."""
        # PEFT rounds the product of 16-bit factors to their own type before it adds it to the weight.
        stored = self.b.dtype.name if self.dense is None and self.b.dtype.itemsize == _HALF else "float32"
        whole = Updated(w, self.b, self.a, self.dense)
        return merge_sums(whole, scale=self.scale, target=_target(dtype), delta_dtype=stored)


def update_of(module: Module, w: Array) -> Update:
    """The module's update in the weight's orientation.

    Raises:
        AdapterError: the base is of another shape.
    """
    if module.factored is not None:
        b, a = module.factored(w)
        check_shape((len(b), a.shape[1]), w.shape)
        if not within_range(b, a):
            return Update(b, a, 1.0, sigma=np.full(1, np.nan))
        # Orthogonal factors: what the start took out of the base is large beside what is left of it after training.
        low = decomposed(b, a)
        return Update((low.u * low.sigma).astype(np.float32), low.v.astype(np.float32), 1.0, sigma=low.sigma)
    if module.dense is not None:
        return Update(w[:, :0], w[:0], 1.0, matrix_of(module.dense, w))
    b, a = plain_factors(module, w.shape)
    return Update(b, a, module.scale)


def _target(dtype: str) -> str:
    """The type a merge is judged in: the weight's own if of 16 bits, else bfloat16, which people serve."""
    return "float16" if dtype == "F16" else "bfloat16"


def survival_of(sums: MergeSums, dtype: str) -> MergeSurvival:
    """The part of an update that survives a merge, for the report."""
    return MergeSurvival(
        dtype=_target(dtype),  # type: ignore[arg-type]  # one of the two
        changed=sums.changed / sums.entries,
        cosine=sums.cosine,
        gain=math.sqrt(sums.realised / sums.intended) if sums.intended > 0.0 else None,
    )
