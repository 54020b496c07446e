"""The merged adapter's config: ranks and scales, and targets that reach exactly the modules of the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gradience.merge.heads import Heads
from gradience.policy.pattern_keys import Patterns, patterns_of
from gradience.rewrite.several import Side

__all__ = ["merged_config", "merged_patterns"]

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
