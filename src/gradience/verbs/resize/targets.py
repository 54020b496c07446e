"""A config's target_modules without the modules that left the adapter, such that PEFT matches exactly the others."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any


def without_modules(kept: Collection[str], of_model: Iterable[str]) -> dict[str, Any]:
    """The fields of a LoraConfig that target exactly the modules kept.

    A list of whole paths, which every engine reads, where PEFT's rule for lists (a name is, or ends with a dot and, an
    entry; tuners_utils.py, check_target_module_exists) finds no other module by it; else one regular expression, which
    PEFT matches against whole names and beside which it takes no layers_to_transform.

    Args:
        kept: paths of modules of the base.
        of_model: the paths of all its modules.
    """
    wanted = set(kept)
    others = [name for name in of_model if name not in wanted]
    if not any(tail in wanted for name in others for tail in _tails(name)):
        return {"target_modules": sorted(wanted)}
    pattern = "|".join(re.escape(name) for name in sorted(wanted))
    return {"target_modules": f"(?:{pattern})", "layers_to_transform": None, "layers_pattern": None}


def _tails(name: str) -> Iterable[str]:
    at = name.find(".")
    while at >= 0:
        yield name[at + 1 :]
        at = name.find(".", at + 1)
