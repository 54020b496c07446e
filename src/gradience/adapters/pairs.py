"""The layout of a LoRA pair's two tensors in a file: names, shapes at any rank, orientation, experts.

Everything that cuts, merges, converts or scales an adapter lays out its factors through `LoraPair`. A layer's pair is
A (r, in, *kernel) and B (out, r, *1). A parameter of E experts has one pair for all of them: A is (E r, in) with
experts outermost, B is (out, r E) with experts innermost (PEFT's `lora/layer.py`, ParamWrapper.get_delta_weight).
Computations use 3-D arrays, b (E, out, r) and a (E, r, in * kernel), with E = 1 for a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np

from gradience.adapters.layout import PREFIX, Adapter, Array, Module
from gradience.errors import AdapterError
from gradience.io.safetensors import TensorSource

Shape: TypeAlias = tuple[int, ...]
T = TypeVar("T")


class LoraPair(NamedTuple):
    """The layout of the two factor tensors of one layer, or of all experts of a parameter."""

    a_name: str
    b_name: str
    rank: int
    inner: int
    """A's size along the axis after the rank, without the kernel."""
    out: int
    kernel: Shape = ()
    experts: int = 1
    transposed: bool = False
    """Whether the base stores the weight transposed to B A: embeddings, and Conv1D (`fan_in_fan_out`)."""

    @property
    def params_per_rank(self) -> int:
        """The number of parameters that one more rank adds."""
        return self.experts * (self.inner * math.prod(self.kernel) + self.out)

    def shapes(self, rank: int) -> tuple[Shape, Shape]:
        """Return the shapes of A and B at a rank."""
        rows = rank * self.experts
        return (rows, self.inner, *self.kernel), (self.out, rows, *(1 for _ in self.kernel))

    def swapped(self, left: T, right: T) -> tuple[T, T]:
        """Swap two values that belong to the file's B and A if the base stores the weight transposed.

        This turns the file's order into that of the base's orientation, and back.
        """
        return (right, left) if self.transposed else (left, right)

    def split(self, b: Array, a: Array) -> tuple[Array, Array]:
        """Return the file's tensors as views b (E, out, r) and a (E, r, in * kernel)."""
        experts_last = b.reshape(self.out, self.rank, self.experts)
        return experts_last.transpose(2, 0, 1), a.reshape(self.experts, self.rank, -1)

    def joined(self, b: Array, a: Array, rank: int) -> tuple[Array, Array]:
        """Return the file's (B, A) for b (E, out, k) and a (E, k, in * kernel), zero-padded from k to `rank`."""
        return self.joined_b(b, rank), self.joined_a(a, rank)

    def joined_b(self, b: Array, rank: int) -> Array:
        """Return only the file's B, from b (E, out, k)."""
        return padded(b, (self.experts, self.out, rank)).transpose(1, 2, 0).reshape(self.shapes(rank)[1])

    def joined_a(self, a: Array, rank: int) -> Array:
        """Return only the file's A, from a (E, k, in * kernel)."""
        return padded(a, (self.experts, rank, a.shape[2])).reshape(self.shapes(rank)[0])

    def named(self, b: Array, a: Array, rank: int) -> dict[str, Array]:
        """The file's A and B by their names."""
        return {self.a_name: self.joined_a(a, rank), self.b_name: self.joined_b(b, rank)}

    def read(self, source: TensorSource) -> tuple[Array, Array]:
        """Read the pair from a file as b (E, out, r) and a (E, r, in * kernel), in the file's orientation."""
        return self.split(source.read(self.b_name), source.read(self.a_name))


def peft_pair(
    path: str, rank: int, shape: tuple[int, int], *, kernel: Shape = (), experts: int = 1, embedding: bool = False
) -> LoraPair:
    """Return the layout of a module's pair under PEFT's names; `shape` is (out, in * kernel), that of B A."""
    infix, leaf = ("lora_embedding_", "") if embedding else ("lora_", ".weight")
    a_name, b_name = (f"{PREFIX}{path}.{infix}{side}{leaf}" for side in "AB")
    out, inner = shape[0], shape[1] // math.prod(kernel)
    return LoraPair(a_name, b_name, rank, inner, out, kernel, experts, transposed=embedding)


class StoredPair(NamedTuple):
    """A pair in an adapter's file, and the modules it updates: one module, or all experts of a parameter in order.

    PEFT matches patterns against `path`. Pairs with the same path share their rank: those of several adapters in one
    file, or of one MultiheadAttention.
    """

    path: str
    layout: LoraPair
    modules: tuple[Module, ...]

    @property
    def first(self) -> Module:
        """The first module. Kind, scale and rank are the same for all modules of the pair."""
        return self.modules[0]


def stored_pairs(adapter: Adapter) -> list[StoredPair]:
    """Return the pairs of an adapter in PEFT's or kohya's format, in the order of its modules.

    Raises:
        AdapterError: the config does not say which parameter a pair belongs to.
    """
    by_tensor: dict[str, list[Module]] = {}
    for module in adapter.modules:
        by_tensor.setdefault(_factor_names(module)[0], []).append(module)
    return [
        StoredPair(_path(adapter, modules[0]), layout_of(adapter, modules), tuple(modules))
        for modules in by_tensor.values()
    ]


def layout_of(adapter: Adapter, modules: Sequence[Module]) -> LoraPair:
    """Return the layout of the pair of one module, or of the pair that all these experts share."""
    first = modules[0]
    a_name, b_name = _factor_names(first)
    _, inner, *kernel = adapter.tensors[a_name].shape
    # PEFT ignores fan_in_fan_out for a convolution.
    transposed = "lora_embedding_A" in first.keys or (adapter.config.fan_in_fan_out and not kernel)
    out = adapter.tensors[b_name].shape[0]
    return LoraPair(a_name, b_name, first.r, inner, out, tuple(kernel), len(modules), transposed)


def _factor_names(module: Module) -> tuple[str, str]:
    """Return the names of A and B in the file."""
    side = "lora_embedding_" if "lora_embedding_A" in module.keys else "lora_"
    return module.keys[f"{side}A"], module.keys[f"{side}B"]


def _path(adapter: Adapter, module: Module) -> str:
    path = module.name if adapter.format == "kohya" else module.pattern_path
    if path is None or (module.expert is not None and module.base_name is None):
        raise AdapterError(
            f"{module.name}: the config does not say which parameter this pair belongs to, so no pattern can give it "
            "a rank",
            advice="name the parameters in target_parameters as the model does",
        )
    return path


def padded(array: Array, shape: Shape) -> Array:
    """Return the array zero-padded at the end of each axis, up to the shape."""
    if array.shape == shape:
        return array
    larger = np.zeros(shape, array.dtype)
    larger[tuple(slice(0, size) for size in array.shape)] = array
    return larger
