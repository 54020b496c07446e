"""How many numbers LoRA adds at each site, by PEFT's rules for ranks."""

from __future__ import annotations

import math
from typing import Final

from gradience.adapters.patterns import PatternTable
from gradience.base.peft_emulation.layout import Layout
from gradience.base.peft_emulation.sites import Site
from gradience.base.peft_emulation.targets import Hits, NotFollowedError
from gradience.errors import AdapterError
from gradience.schema.config import LoraSnapshot

_STACK: Final = 3


def lora_sizes(lora: LoraSnapshot, hits: Hits, layout: Layout) -> list[int | None]:
    """Return the LoRA entries of each adapted site, None where they cannot be known."""
    try:
        ranks = PatternTable(lora.rank_pattern or {})
        return [_size(lora, name, layout.sites[name], ranks, hits) for name in hits.adapted]
    except AdapterError as error:
        raise NotFollowedError(f"rank_pattern: {error}") from error


def _size(lora: LoraSnapshot, name: str, site: Site, ranks: PatternTable, hits: Hits) -> int | None:
    rank = _rank(lora, name, site, ranks, hits)
    if rank is None or rank < 1 or site.kind == "packed":
        return None
    if site.kind == "conv":
        if site.shape[1] == 1 < site.shape[0]:
            return None  # depthwise, as far as a header tells: its groups decide
        out, width, *kernel = site.shape
        return rank * (width * math.prod(kernel) + out) + _per_output(lora, out)
    if len(site.shape) == _STACK:
        return rank * site.shape[0] * (site.shape[1] + site.shape[2])
    rows, width = site.shape
    outputs = width if site.kind == "embedding" else rows
    extra = 0 if site.kind in {"parameter", "router"} else _per_output(lora, outputs)
    return rank * (rows + width) + extra


def _per_output(lora: LoraSnapshot, outputs: int) -> int:
    """Return what DoRA's magnitude and a bias on B add for each output."""
    return outputs * (bool(lora.use_dora) + bool(lora.extras.get("lora_bias")))


def _rank(lora: LoraSnapshot, name: str, site: Site, ranks: PatternTable, hits: Hits) -> int | None:
    """Return the rank at a site: the first pattern that hits, as PEFT, else r; twice r where PEFT doubles it."""
    path = f"{name}.weight" if site.kind == "router" else name
    keys = ranks.matching(path)
    if keys:
        return (lora.rank_pattern or {})[keys[0]]
    doubled = name.rpartition(".")[2] in hits.doubled
    return None if lora.r is None else lora.r * (2 if doubled else 1)
