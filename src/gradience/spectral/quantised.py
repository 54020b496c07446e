"""Weights as 4- and 8-bit codes give them back: in blocks, each with a scale, as the named formats define it.

Only what a format loses is computed; no codes are stored. bitsandbytes also stores the scales of NF4 and FP4 in 8 bits
if asked (`bnb_4bit_use_double_quant`); that is not repeated here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

NF4: Final = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""QLoRA's levels, in units of a block's largest magnitude (arXiv 2305.14314, appendix E)."""

FP4: Final = (
    *(-1.0, -0.6666667, -0.5, -0.3333333, -0.25, -0.1666667, -0.005208333, 0.0),
    *(0.005208333, 0.1666667, 0.25, 0.3333333, 0.5, 0.6666667, 1.0),
)
"""bitsandbytes' levels of a float of 4 bits, in the same units."""


class BlockFormat(NamedTuple):
    """How weights are stored: so many in a row share a scale, and a function gives such a block back."""

    block: int
    restored: Callable[[Array], Array]
    """From blocks (n, block) to blocks, in float32."""


def _symmetric(x: Array, levels: float) -> Array:
    """Whole multiples of max|x| / levels."""
    step = jnp.max(jnp.abs(x), axis=1, keepdims=True) / levels
    return jnp.round(x / jnp.where(step > 0.0, step, 1.0)) * step


def _q4_0(x: Array) -> Array:
    """Multiples from -8 to 7 of a float16, such that the entry of the largest magnitude is -8 of them."""
    largest = jnp.take_along_axis(x, jnp.argmax(jnp.abs(x), axis=1)[:, None], axis=1)
    exact = largest / -8.0
    # gguf.quants chooses the code by the exact step, and rounds only the step that it stores to float16.
    code = jnp.clip(jnp.floor(x / jnp.where(exact == 0.0, 1.0, exact) + 8.5), 0.0, 15.0) - 8.0
    return code * exact.astype(jnp.float16).astype(jnp.float32)


def _between(x: Array) -> Array:
    """Sixteen levels from the least entry to the largest."""
    low, high = jnp.min(x, axis=1, keepdims=True), jnp.max(x, axis=1, keepdims=True)
    step = (high - low) / 15.0
    return jnp.round((x - low) / jnp.where(step > 0.0, step, 1.0)) * step + low


def _of_book(x: Array, levels: tuple[float, ...]) -> Array:
    """The nearest of the levels, which are in units of max|x|."""
    book = jnp.array(levels, jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    unit = x / jnp.where(scale > 0.0, scale, 1.0)
    return book[jnp.searchsorted((book[1:] + book[:-1]) / 2.0, unit)] * scale


FORMATS: Final = MappingProxyType(
    {
        "int8": BlockFormat(32, partial(_symmetric, levels=127.0)),  # llama.cpp's Q8_0, but for its float16 scales
        "int4": BlockFormat(32, partial(_symmetric, levels=7.0)),
        "q4_0": BlockFormat(32, _q4_0),  # llama.cpp's, as gguf.quants rounds
        "nf4": BlockFormat(64, partial(_of_book, levels=NF4)),
        "fp4": BlockFormat(64, partial(_of_book, levels=FP4)),
        "int4, 128 to a scale": BlockFormat(128, _between),  # GPTQ's and AWQ's grid, without their calibration
        "int4, 128 to a scale, symmetric": BlockFormat(128, partial(_symmetric, levels=7.0)),
    }
)


@partial(jax.jit, static_argnames=("name", "block"))
def restored(weight: Array, name: str, block: int | None = None) -> Array:
    """The weight as a format of `FORMATS` gives it back, float32, of the same shape; blocks run along the rows.

    `block` is another number of weights that share a scale.
    """
    flat = weight.astype(jnp.float32).reshape(-1)
    usual, give_back = FORMATS[name]
    block = usual if block is None else block
    padded = jnp.pad(flat, (0, -flat.size % block)).reshape(-1, block)
    return give_back(padded).reshape(-1)[: flat.size].reshape(weight.shape)
