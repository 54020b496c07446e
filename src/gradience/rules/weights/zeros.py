"""Where the modules lie whose update is zero: a part of the model, if they are all of it and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Final, TypeVar

from gradience.adapters import TOWER, layer_index
from gradience.errors import few

_TEXT_ENCODER: Final = re.compile(r"^(?:lora_te\d?_|text_encoder(?:_\d)?\.)")
_PARTS: Final = ((TOWER, "all of the tower that looks or listens"), (_TEXT_ENCODER, "all of the text encoder"))
_EXPERT: Final = re.compile(r"\.experts(?:\.|\[)(\d+)")
_SHOWN: Final = 4

T = TypeVar("T", bound=Hashable)


def place_of(zero: Sequence[str], every: Sequence[str]) -> str | None:
    """The part of the model that the modules of zero update are, in words; None if they are no such part.

    >>> names = [f"model.layers.{n}.self_attn.{m}" for n in range(4) for m in ("q_proj", "v_proj")]
    >>> place_of(names[:4], names), place_of(names[1::2], names), place_of(names[:3], names)
    ('all of layers 0 and 1', 'every v_proj', None)
    >>> place_of(names, [*names, "lm_head"])
    'all but lm_head'
    """
    gone, left = set(zero), [name for name in every if name not in set(zero)]
    if not gone or not left:
        return None
    for pattern, says in _PARTS:
        if gone == {name for name in every if pattern.search(name)}:
            return says
    if all(layer_index(name) is None for name in left) and all(layer_index(name) is not None for name in gone):
        return f"all but {few(left, _SHOWN)}"
    if layers := _whole(gone, every, layer_index):
        return f"all of layer{'s' if len(layers) > 1 else ''} {_ranges(sorted(layers))}"
    if len(gone) > 1 and (leaves := _whole(gone, every, _leaf)):
        return f"every {few(sorted(leaves), _SHOWN)}"
    experts, total = _whole(gone, every, _expert), len({_expert(name) for name in every} - {None})
    return f"all of {len(experts)} of {total} experts" if experts else None


def _leaf(name: str) -> str:
    return name.partition("[")[0].rpartition(".")[2]


def _expert(name: str) -> int | None:
    hit = _EXPERT.search(name)
    return int(hit[1]) if hit else None


def _whole(gone: set[str], every: Sequence[str], of: Callable[[str], T | None]) -> set[T]:
    """The groups that the modules are all of, by a function of their names; none if they are a part of one."""
    groups = {of(name) for name in gone}
    if None in groups or {of(name) for name in every} == groups:
        return set()
    if gone != {name for name in every if of(name) in groups}:
        return set()
    return {group for group in groups if group is not None}


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in rising order, with a dash for three or more in a row."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [word for run in runs for word in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
