"""How finely weights are rounded is told by their values, whatever dtype holds them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from tables import every

from gradience.verbs.receipt.precision import precision_of

PLAIN = np.random.default_rng(0).normal(scale=0.02, size=(96, 128)).astype("f4")
HALF = PLAIN.astype(ml_dtypes.bfloat16).astype("f4")


def coded(levels, group):
    """The weights behind codes of so many levels to either side of 0, a group of them to a scale."""
    groups = PLAIN.reshape(-1, group)
    step = np.abs(groups).max(axis=1, keepdims=True) / levels
    return (np.round(groups / step) * step).reshape(PLAIN.shape).astype("f4")


@every(
    ("matrices", "stored", "width"),
    [
        ([PLAIN], "float32", "float32"),
        ([HALF], "float32", "bfloat16"),
        ([PLAIN.astype("f2").astype("f4")], "float32", "float16"),
        ([coded(127, 128)], "float32", "int8"),  # a row to a scale
        ([coded(127, 32)], "float32", "int8"),
        ([coded(127, 64).astype("f2")], "float16", "int8"),
        ([coded(7, 32)], "float32", "int4"),
        ([coded(7, 64).astype(ml_dtypes.bfloat16)], "bfloat16", "int4"),
        ([HALF, HALF + 1e-4 * PLAIN], "float32", "float32"),  # a merge of some modules, kept in float32
        ([HALF, coded(127, 32)], "float32", "bfloat16"),
        ([HALF, 0 * PLAIN], "float32", "bfloat16"),  # zeros say nothing
        ([PLAIN], "bfloat16", "bfloat16"),
        ([PLAIN], "", ""),
        ([], "float32", "float32"),
    ],
)
def test_the_width_is_that_of_the_finest_matrix(matrices, stored, width):
    assert precision_of(matrices, stored) == width
