"""The tensors of an adapter in the groups that programs which load it treat alike, by their names alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

from gradience.adapters import EMBEDDINGS, OUTPUTS, TOWER
from gradience.adapters.layout import PREFIX, module_path, parse_key

Group: TypeAlias = Literal[
    "language",
    "tower",
    "expert_parameters",
    "experts",
    "embedding",
    "head",
    "tied_head",
    "magnitudes",
    "biases",
    "token_rows",
    "copies",
    "whole",
    "tied_whole",
]


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """The modules of each group of a file's tensors, by PEFT's names; in the file's order, each once.

    >>> grouped(["base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight"])
    {'expert_parameters': ['model.layers.0.mlp.experts.base_layer']}
    """
    groups: dict[Group, dict[str, None]] = {}
    for name in names:
        group, module = _place(name)
        groups.setdefault(group, {})[module] = None
    return {group: list(modules) for group, modules in groups.items()}


def on_tied_base(groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The groups of a base that ties its head to its embedding: a head that is adapted or saved is one of its own.

    >>> on_tied_base({"language": ["q"], "head": ["lm_head"], "whole": ["score"]})
    {'language': ['q'], 'whole': ['score'], 'tied_head': ['lm_head']}
    """
    whole = groups.get("whole", ())
    heads = [name for name in whole if name.endswith(OUTPUTS)]
    told = {
        **groups,
        "head": [],
        "whole": [name for name in whole if name not in heads],
        "tied_head": list(groups.get("head", ())),
        "tied_whole": heads,
    }
    return {group: list(modules) for group, modules in told.items() if modules}


def _place(name: str) -> tuple[Group, str]:
    key = parse_key(name)
    if key is None:
        stem, _, leaf = name.removeprefix(PREFIX).rpartition(".")
        if "token_adapter" in name:
            return "token_rows", stem
        return ("biases" if leaf == "bias" else "copies" if stem.endswith(".base_layer") else "whole"), stem
    if key.field == "lora_magnitude_vector":
        return "magnitudes", key.module
    if key.leaf == "bias":
        return "biases", key.module
    return _of_factors(key.module), key.module


def _of_factors(module: str) -> Group:
    """The group of a module that has factors.

    PEFT wraps the parameters of a module of experts and not modules in it, so nothing follows the name there.
    """
    path = module_path(module).split(".")
    if TOWER.search(module):
        return "tower"
    if "experts" in path:
        return "experts" if path[-1] != "experts" else "expert_parameters"
    return "embedding" if path[-1] in EMBEDDINGS else "head" if path[-1] in OUTPUTS else "language"
