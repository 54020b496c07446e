"""The merged adapter's config: ranks and scales, and targets that reach exactly the modules of the file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

from gradience.rules.weights.rank_pattern import Patterns, patterns_of
from gradience.schema.merge import MergeMethod
from gradience.verbs.merge.heads import Heads
from gradience.verbs.merge.methods import DENSE, Recipe
from gradience.verbs.several import Side

TIES_DENSITY: Final = 0.2  # arXiv 2306.01708: the top 20 % of the entries, where nothing can be validated
_LARGEST: Final = 1e6  # of a weight: no sum of updates is meant by more, and products of float32 stay in range
_MEANS: Final = frozenset({"ties", "dare_ties"})


def weights_of(n: int, weights: Sequence[float] | None, method: MergeMethod = "linear") -> tuple[float, ...]:
    """Return a weight for each of n adapters: those given, or 1/n for a sum and 1 for a mean.

    Raises:
        ValueError: there are not n, or one is not finite, or beyond reason.
    """
    if weights is None:
        return ((1.0 if method in _MEANS else 1.0 / n) if n else 0.0,) * n
    if len(weights) != n:
        raise ValueError(f"{len(weights)} weights for {n} adapters: expected one for each")
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights are {list(weights)}: expected finite numbers")
    if any(abs(weight) > _LARGEST for weight in weights):
        raise ValueError(f"weights are {list(weights)}: expected at most {_LARGEST:g} in size")
    return tuple(float(weight) for weight in weights)


def recipe_of(
    n: int,
    method: MergeMethod,
    *,
    weights: Sequence[float] | None,
    rank: int | None,
    density: float | None,
    seed: int,
) -> Recipe:
    """Return the recipe for n adapters.

    Raises:
        ValueError: an option is out of range, or does not go with the method.
    """
    if method not in get_args(MergeMethod):
        raise ValueError(f"method is {method!r}: expected one of {', '.join(get_args(MergeMethod))}")
    if rank is not None and method in {"linear", "cat"}:
        raise ValueError(f"{method} is exact and takes no rank: svd gives the best approximation of one")
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}: expected at least 1")
    if density is not None and method not in DENSE:
        raise ValueError(f"{method} drops no entries and takes no density")
    if density is not None and not 0.0 < density <= 1.0:
        raise ValueError(f"density is {density}: expected over 0 and at most 1")
    if density is None and method in DENSE:
        if method != "ties":
            raise ValueError(f"{method} needs a density: its paper keeps as little as 0.1 of the entries")
        density = TIES_DENSITY
    return Recipe(method, weights_of(n, weights, method), rank, density, seed)


_NARROWING: Final = ("layers_to_transform", "layers_pattern", "exclude_modules")
_INITIAL: Final[dict[str, Any]] = {  # of an initialisation that is over: PEFT would look at them again
    "loftq_config": {},
    "eva_config": None,
    "corda_config": None,
    "lora_ga_config": None,
    "alora_invocation_tokens": None,
}


def merged_patterns(ranks: Mapping[str, int]) -> Patterns:
    """Return r, alpha and their exceptions for modules of these ranks, all with scale 1: alpha = r."""
    return patterns_of(ranks, dict(ranks))


def merged_config(sides: Sequence[Side], patterns: Patterns, heads: Heads, modules: Sequence[str]) -> dict[str, Any]:
    """Return `adapter_config.json`: the first adapter's, with what the merge decides.

    `modules` are the paths of what is no parameter; they are listed where names would reach others.
    """
    first = sides[0].raw
    return {
        **first,
        **patterns._asdict(),
        **{field: value for field, value in _INITIAL.items() if first.get(field)},
        **heads.fields,
        **_targets(sides, modules),
        "target_parameters": next((one for side in sides if (one := side.raw.get("target_parameters"))), None),
        "peft_type": "LORA",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _targets(sides: Sequence[Side], modules: Sequence[str]) -> dict[str, Any]:
    """Return the fields that choose modules. A list reaches what its names reach, so a union reaches both.

    Where lists are narrowed down, or are patterns, and differ, the modules are listed one by one.
    """
    raw = [side.raw for side in sides]
    narrowed = [[one.get(field) or None for field in _NARROWING] for one in raw]
    targets = [one.get("target_modules") for one in raw]
    if all(one == narrowed[0] for one in narrowed):
        if all(one == targets[0] for one in targets):
            return {}
        if all(isinstance(one, list) for one in targets):
            return {"target_modules": sorted({name for one in targets for name in one or ()})}
    return {**dict.fromkeys(_NARROWING), "target_modules": list(modules)}
