"""Each kernel of pairs, sums, merges, bases and overlaps lowers for every platform, in its own dtypes."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from gradience.spectral import base, krylov, merging, subspace, sums
from gradience.verbs.resize import pieces


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float32)


def f64(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float64)


def i32() -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), np.int32)


BF16 = jax.ShapeDtypeStruct((40, 30), np.uint16)  # as `stored.put` gives it
WHOLE = krylov.Operator(f32(40, 30), f32(40, 2), f32(2, 30))
BASES = krylov.Bidiagonal(f32(3, 8, 40), f32(3, 8, 30), f64(3, 8, 3, 8), i32())
MEASURE = base.Measure(f64(24), f64(2, 24), f64(8, 24))

KERNELS = {
    "subspace.compared_by_grams": (subspace.compared_by_grams, [f64(2, 16, 16), f64(2, 16, 16), f64(2, 2)]),
    "subspace.compared_by_qr": (subspace.compared_by_qr, [f64(40, 16), f64(16, 30), f64(2)]),
    "sums.new_factor": (partial(sums.new_factor, dtype="float16", in_rows=False), [f32(64, 8), f32(8, 4)]),
    "sums.loss": (
        sums.loss,
        [(f64(8, 8), f64(8, 4), f64(4, 4)), (f64(8, 8), f64(8, 4), f64(4, 4)), f64(8, 4), f64(4, 8)],
    ),
    "merging.dense_update": (merging.dense_update, [f32(40, 4), f32(4, 30), f32()]),
    "merging.zeroed_under": (merging.zeroed_under, [f32(40, 30), f32()]),
    "merging.rescaled": (merging.rescaled, [f32(40, 30), jax.ShapeDtypeStruct((40, 30), np.bool), f32()]),
    "merging.with_agreeing": (merging.with_agreeing, [f32(40, 30)] * 4),
    "merging.row_sums": (merging.row_sums, [f32(2, 8, 4), f32(2, 4, 30)]),
    "krylov.advanced": (krylov.advanced, [WHOLE, f32(8, 40), BASES, i32()]),
    "krylov.looked": (partial(krylov.looked, size=3, k=2, vectors=True), [BASES]),
    "krylov.dense_svd": (krylov.dense_svd, [WHOLE]),
    "krylov.lanczos": (partial(krylov.lanczos, most=8), [BF16, f32(2, 30)]),
    "base.sums_of_low": (
        partial(base.sums_of_low, target="bfloat16", delta_dtype="float16"),
        [BF16, f32(40, 4), f32(4, 30), f32()],
    ),
    "base.sums_of_dense": (partial(base.sums_of_dense, target="float16"), [f32(40, 30), f32(40, 30)]),
    "base.seen_from": (partial(base.seen_from, size=3, k=2), [BASES]),
    "base.within": (base.within, [base.Measures(MEASURE, MEASURE, MEASURE), f64(160), f64(160), f64()]),
    "base.exact_overlaps": (partial(base.exact_overlaps, k=3), [WHOLE, WHOLE]),
    "pieces.split": (pieces.split, [f64(8, 8), f64(8, 8)]),
}


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_lowers_for_every_platform(name, platform):
    kernel, shapes = KERNELS[name]
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        found = export.export(jax.jit(kernel), platforms=[platform])(*shapes)
    assert found.platforms == (platform,)
    assert "stablehlo" in found.mlir_module()


def test_every_jitted_function_of_these_files_is_among_the_kernels():
    jitted = {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module in (base, krylov, merging, subspace, sums, pieces)
        for name, value in vars(module).items()
        if isinstance(value, type(jax.jit(jnp.sin))) and value.__module__ == module.__name__
    }
    assert jitted - {"subspace._square", "base.bound_within"} == set(KERNELS)
