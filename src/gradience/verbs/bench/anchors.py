"""Variants of an adapter that make a number mean something: no update, the update shuffled, the update scaled.

All keep the adapter's heads, biases and everything else that is not a LoRA factor: what differs is the update alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from gradience.adapters.layout import Array
from gradience.adapters.open import open_adapter
from gradience.adapters.pairs import LoraPair
from gradience.errors import AdapterError
from gradience.io.safetensors import copied, planned
from gradience.verbs.resize.plan import resizable_pairs
from gradience.verbs.writing import PEFT_METADATA, Changes, NewAdapter, provenance_of, raw_config, write_adapter

Factors: TypeAlias = tuple[Array, Array]


def write_without_update(adapter: Path, out: Path) -> None:
    """Write the adapter with every lora_B zero: the base, as any program that loads an adapter can evaluate it."""
    _write(adapter, out, "zero", lambda b, a: (np.zeros_like(b), a))


def write_shuffled(adapter: Path, out: Path, *, seed: int) -> None:
    """Write the adapter with the outputs of each update permuted among themselves, and its inputs likewise.

    Every singular value stays, and so do all norms; what the directions had learnt is lost.
    """
    random = np.random.default_rng(seed)
    _write(adapter, out, f"shuffled, seed {seed}", lambda b, a: (_permuted(random, b, 1), _permuted(random, a, 2)))


def write_scaled(adapter: Path, out: Path, *, factor: float) -> None:
    """Write the adapter with alpha times a factor, its tensors bit for bit."""
    _write(adapter, out, f"alpha x {factor:g}", None, alpha=factor)


def _permuted(random: np.random.Generator, values: Array, axis: int) -> Array:
    return np.take(values, random.permutation(values.shape[axis]), axis=axis)


def _write(
    adapter: Path, out: Path, what: str, change: Callable[[Array, Array], Factors] | None, *, alpha: float = 1.0
) -> None:
    """Write the adapter with its factors b (E, out, r) and a (E, r, in) changed.

    Raises:
        AdapterError: it is no adapter as PEFT saves one, or its tensors are not all understood.
        OutputError: the folder cannot be written.
    """
    files, opened = open_adapter(adapter)
    source = opened.source
    if source is None or not files.config.is_file():
        raise AdapterError(f"{adapter} is no folder as PEFT saves one", advice="see 'gradience convert'")
    new = {}
    layouts = [pair.layout for pair in resizable_pairs(opened)]
    if change is not None:
        for layout in layouts:
            loads = _Changed(layout, partial(layout.read, source), change)
            for name in (layout.a_name, layout.b_name):
                info = source.tensors[name]
                new[name] = planned(name, info.dtype, info.shape, partial(loads.take, name))
    tensors = [new.get(name) or copied(source, name) for name in source.tensors]
    record = provenance_of("bench", [files.config, *opened.weights], {"variant": what}, Changes([]))
    config = _scaled(raw_config(files.config), alpha)
    write_adapter(out, NewAdapter(tensors, config, source.metadata or PEFT_METADATA), record)


class _Changed:
    """The two changed factors of a pair: made once for both, each released when it is taken."""

    def __init__(
        self, layout: LoraPair, read: Callable[[], Factors], change: Callable[[Array, Array], Factors]
    ) -> None:
        self._layout = layout
        self._read = read
        self._change = change
        self._made: dict[str, Array] = {}

    def take(self, name: str) -> Array:
        """The factor of that name."""
        if name not in self._made:
            b, a = self._layout.joined(*self._change(*self._read()), self._layout.rank)
            self._made = {self._layout.a_name: a, self._layout.b_name: b}
        return self._made.pop(name)


def _scaled(config: dict[str, Any], factor: float) -> dict[str, Any]:
    if factor == 1.0:
        return config
    pattern = {key: value * factor for key, value in (config.get("alpha_pattern") or {}).items()}
    return {**config, "lora_alpha": config["lora_alpha"] * factor, "alpha_pattern": pattern}
