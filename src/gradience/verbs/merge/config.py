"""The parts of a merged adapter other than its pairs: the merge's options, the config, and tensors that have no sum.

The config is the first adapter's, with new ranks, scale 1 everywhere, and targets that match exactly the modules of
the file. Heads, biases and token rows are whole tensors. They are copied if the adapters agree on them, or from the
adapter that was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, get_args

import numpy as np

from gradience.adapters.layout import Role
from gradience.errors import AdapterError
from gradience.io.safetensors import PlannedTensor, TensorSource, copied
from gradience.rules.weights.ranks import Patterns, patterns_of
from gradience.schema.merge import MergeMethod
from gradience.verbs.merge.methods import DENSE, Recipe
from gradience.verbs.sides import Side

TIES_DENSITY: Final = 0.2  # arXiv 2306.01708: the top 20 % of entries, its default if there is no validation set
_LARGEST: Final = 1e6  # of a weight's magnitude: more is a mistake, and products in float32 stay in range
_MEANS: Final = frozenset({"ties", "dare_ties"})

_WHOLE: Final[frozenset[Role]] = frozenset({"full_module", "bias", "base_copy", "token_rows"})
_FIELDS: Final = ("modules_to_save", "bias", "trainable_token_indices")
_NONE: Final = {"bias": "none"}
_SHOWN: Final = 4

_NARROWING: Final = ("layers_to_transform", "layers_pattern", "exclude_modules")
_INITIAL: Final[dict[str, Any]] = {  # values for fields of an initialisation, which PEFT would otherwise repeat
    "loftq_config": {},
    "eva_config": None,
    "corda_config": None,
    "lora_ga_config": None,
}


def weights_of(n: int, weights: Sequence[float] | None, method: MergeMethod = "linear") -> tuple[float, ...]:
    """Return a weight for each of n adapters: those given, or else 1/n for a sum and 1 for a mean.

    Raises:
        ValueError: there are not n weights, or one is not finite or above 10^6 in magnitude.
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
    """Return the validated recipe for a merge of n adapters.

    Raises:
        ValueError: an option is out of range, or does not fit the method.
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


class Heads(NamedTuple):
    """The whole tensors to copy, the config's fields about them, the names left out, and the chosen adapter's name."""

    carried: list[PlannedTensor]
    fields: dict[str, Any]
    dropped: list[str]
    chosen: str | None = None


def side_named(sides: Sequence[Side], name: str) -> Side:
    """Return the adapter that `name` identifies by its place (A, B, ... or 1, 2, ...), its name or its path.

    Raises:
        AdapterError: it identifies none.
    """
    for place, side in enumerate(sides):
        if name in {side.name, str(side.path), str(place + 1), chr(ord("A") + place)}:
            return side
    known = ", ".join(f"{chr(ord('A') + place)} ({side.name})" for place, side in enumerate(sides))
    raise AdapterError(f"--heads-from {name!r} names none of the adapters", advice=f"give one of {known}")


def heads_of(sides: Sequence[Side], chosen: Side | None) -> Heads:
    """Return the whole tensors to copy: the chosen adapter's, or else those of all adapters.

    Raises:
        AdapterError: none was chosen, and two adapters hold different tensors under one name.
    """
    if chosen is not None:
        names = _whole(chosen)
        left = sorted({name for side in sides for name in _whole(side)} - set(names))
        source = _source(chosen)
        fields = {field: chosen.raw.get(field) or _NONE.get(field) for field in _FIELDS}
        return Heads([copied(source, name) for name in names], fields, left, chosen.name)
    held: dict[str, Side] = {}
    differing = []
    for side in sides:
        for name in _whole(side):
            first = held.setdefault(name, side)
            if first is not side and not _equal(_source(first), _source(side), name):
                differing.append(name)
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise AdapterError(
            f"the adapters hold different values of {', '.join(differing[:_SHOWN])}{more}: whole tensors (a head, a "
            "bias, token rows) have no sum",
            advice="take one adapter's with --heads-from A (or B, ...)",
        )
    return Heads([copied(_source(side), name) for name, side in held.items()], _agreed(sides), [])


def _whole(side: Side) -> list[str]:
    return [name for name, role in side.adapter.roles.items() if role in _WHOLE]


def _source(side: Side) -> TensorSource:
    if side.adapter.source is None:
        raise AdapterError(f"the tensors of {side.path} cannot be read again", advice="open it from its files")
    return side.adapter.source


def _equal(one: TensorSource, two: TensorSource, name: str) -> bool:
    first, second = one.tensors[name], two.tensors[name]
    return (first.dtype, first.shape) == (second.dtype, second.shape) and np.array_equal(one.raw(name), two.raw(name))


def _agreed(sides: Sequence[Side]) -> dict[str, Any]:
    """Return the config's fields about whole tensors: the only value given, or for modules_to_save the union.

    Raises:
        AdapterError: the adapters give two values of another field.
    """
    fields: dict[str, Any] = {}
    for field in _FIELDS:
        given = [value for side in sides if (value := side.raw.get(field)) not in (None, [], _NONE.get(field))]
        if field == "modules_to_save" and given:
            fields[field] = sorted({name for value in given for name in value})
        elif any(value != given[0] for value in given):
            raise AdapterError(
                f"the adapters disagree on {field}: {given[0]!r} and another",
                advice="take one adapter's with --heads-from A (or B, ...)",
            )
        else:
            fields[field] = given[0] if given else _NONE.get(field)
    return fields


def merged_patterns(ranks: Mapping[str, int]) -> Patterns:
    """Return r, alpha and their patterns for modules of these ranks, all with scale 1, so that alpha = r."""
    return patterns_of(ranks, dict(ranks))


def merged_config(sides: Sequence[Side], patterns: Patterns, heads: Heads, modules: Sequence[str]) -> dict[str, Any]:
    """Return the merged adapter's `adapter_config.json`: the first adapter's, with the fields that the merge decides.

    `modules` are the paths of layers, not of parameters. They become the targets if shorter names would match others.
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
    """Return the fields that choose modules, as far as they change.

    If the adapters' target lists differ, their union matches the modules of all. If targets are patterns and differ, or
    if the fields that narrow them differ, the modules are listed one by one.
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
