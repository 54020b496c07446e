r"""Ranks and alphas by module as PEFT's LoraConfig takes them: a default, and patterns for the exceptions.

PEFT matches a key as `re.match(rf"(.*\.)?({key})$", path)` and takes the first that hits, so keys are whole
module paths without `base_model.model.`, escaped; one that also ends another module's path is anchored.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias, TypeVar

__all__ = ["Number", "Patterns", "alpha_for", "patterns_of"]

Number: TypeAlias = int | float
_T = TypeVar("_T", int, float)


class Patterns(NamedTuple):
    """Four fields of a LoraConfig that give every module its rank and alpha."""

    r: int
    lora_alpha: Number
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, Number]


def patterns_of(
    ranks: Mapping[str, int], alphas: Mapping[str, Number], *, default: tuple[int, Number] | None = None
) -> Patterns:
    """Return the fields for modules by path (as PEFT matches them); both mappings have the same keys.

    The default rank and alpha are the given ones, else the commonest of each; then there is at least one key.
    """
    r, alpha = default or (_commonest(ranks.values()), _commonest(alphas.values()))
    tails = {tail for path in ranks for tail in _tails(path)}
    return Patterns(
        r,
        alpha,
        {_key(path, tails): rank for path, rank in ranks.items() if rank != r},
        {_key(path, tails): value for path, value in alphas.items() if value != alpha},
    )


def alpha_for(scale: float, rank: int, *, rslora: bool) -> Number:
    """Return the alpha that gives the scale at the rank: s r, or s sqrt(r) with rsLoRA; whole numbers as such."""
    alpha = scale * (math.sqrt(rank) if rslora else rank)
    near = round(alpha)
    return near if math.isclose(alpha, near, rel_tol=1e-12) else alpha


def _commonest(values: Iterable[_T]) -> _T:
    return Counter(values).most_common(1)[0][0]


def _tails(path: str) -> Iterable[str]:
    """Yield what a path ends with, from each of its dots on."""
    return (path[hit.end() :] for hit in re.finditer(r"\.", path))


def _key(path: str, tails: set[str]) -> str:
    return ("^" if path in tails else "") + re.escape(path)
