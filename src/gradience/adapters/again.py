"""Adapters that are laid out as one that was read before: what names and config decide is not worked out again.

The checkpoints of one model, and adapters of one base by one recipe, have equal headers: their modules differ in
nothing but the numbers. Only plain LoRA in PEFT's layout is kept; whatever else is read as ever.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from gradience.adapters.config import AdapterConfig, read_config
from gradience.adapters.layout import Adapter
from gradience.adapters.open import AdapterFiles, notes_on, read_adapter
from gradience.errors import AdapterError
from gradience.io.held import Bytes, HeldFile, header_of

_MOST: Final = 32  # layouts that are kept
_MOST_HEADER: Final = 1 << 20  # bytes of the header of one: thousands of modules


class _Known(NamedTuple):
    size: int
    source: HeldFile
    config: bytes
    adapter: Adapter
    notes: list[str]


class Layouts:
    """The layouts last met, by the header of the file. For one thread: an adapter holds until the next is read."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    def read(self, files: AdapterFiles, data: Bytes) -> Adapter:
        """The adapter of one safetensors file whose bytes are in memory, as `read_adapter` reads it.

        Raises:
            AdapterError: as `read_adapter`.
        """
        header = header_of(files.weights, data)
        known = self._known.get(header)
        config = None if known is None or known.size != len(data) else _config(files.config)
        if known is not None and config is not None and _decisive(config) == known.config:
            self._known.move_to_end(header)
            return _again(known, files, data, config)
        source = HeldFile(files.weights, data, header)
        adapter = read_adapter(files, lambda _: source)
        if _is_plain(adapter) and len(header) <= _MOST_HEADER:
            notes = adapter.notes[: len(adapter.notes) - len(notes_on(files))]
            self._known[header] = _Known(len(data), source, _decisive(adapter.config), adapter, notes)
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
        return adapter


def _again(known: _Known, files: AdapterFiles, data: Bytes, config: AdapterConfig) -> Adapter:
    known.source.turn_to(files.weights, data)
    notes = [*known.notes, *notes_on(files)]
    return replace(known.adapter, config=config, notes=notes, weights=[files.weights])


def _config(path: Path) -> AdapterConfig | None:
    try:
        return read_config(path)
    except AdapterError:  # which the format's own reader says, where it reads one at all
        return None


def _decisive(config: AdapterConfig) -> bytes:
    """A config but for the name of the base, which decides nothing; as text, where 1 is not true and order counts."""
    return msgspec.json.encode(msgspec.structs.replace(config, base_model_name_or_path=None))


def _is_plain(adapter: Adapter) -> bool:
    """Whether the modules are pairs read by themselves, of a config that was read: nothing is kept between two."""
    return (
        adapter.format == "peft"
        and adapter.config.peft_type in {"LORA", None}
        and not adapter.base_dependent
        and all(m.expert is None and m.dense is None and not m.is_unknown for m in adapter.modules)
    )
