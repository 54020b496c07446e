"""A module's update by its factors, and in the orientation and shape of the base's weight."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gradience.adapters.layout import Array, DenseUpdate, Module
from gradience.errors import AdapterError
from gradience.spectral.grams import Factors


def factors_of(module: Module) -> Callable[[], Factors]:
    """A loader of the module's update for the spectral kernels."""

    def load() -> Factors:
        b, a = module.load()
        return Factors(b=b, a=a, scale=module.scale)

    return load


def plain_factors(module: Module, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The factors (b, a) for a base weight of a shape.

    Raises:
        AdapterError: the base is of another shape.
    """
    b, a = module.load()
    # Experts whose file does not say how the base stores them: the base's shape decides.
    if (len(b), a.shape[1]) != shape and (a.shape[1], len(b)) == shape:
        b, a = a.T, b.T
    check_shape((len(b), a.shape[1]), shape)
    return b, a


def matrix_of(update: DenseUpdate, w: Array) -> Array:
    """The update as a matrix, in float32.

    Raises:
        AdapterError: the base is of another shape.
    """
    dense = update(w)
    check_shape(dense.shape, w.shape)
    return dense.astype(np.float32, copy=False)


def check_shape(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Do nothing if an update is of the base weight's shape.

    Raises:
        AdapterError: it is not.
    """
    if shape != expected:
        raise AdapterError(f"an update of shape {list(shape)} for a base weight of {list(expected)}")
