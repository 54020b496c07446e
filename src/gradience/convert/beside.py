"""What a file holds beside the updates: copied bit for bit where the target has a place for it, else named."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from gradience.adapters.modules import Role
from gradience.adapters.write import PlannedTensor, copied
from gradience.convert.source import Source
from gradience.errors import AdapterError
from gradience.schema.convert import Target

__all__ = ["Beside", "beside"]

_PLACED_IN_PEFT: Final[frozenset[Role]] = frozenset({"full_module", "bias", "base_copy", "token_rows"})
_UPDATES: Final[frozenset[Role]] = frozenset({"lora_pair", "magnitude", "scale"})
_SHOWN: Final = 3


class Beside(NamedTuple):
    """Tensors to copy, and the names of those that are left out."""

    carried: list[PlannedTensor]
    dropped: list[str]


def beside(source: Source, target: Target, *, drop: bool, other_components: Collection[str]) -> Beside:
    """Return what becomes of the tensors that belong to no update.

    Raises:
        AdapterError: the target has no place for one, and `drop` does not say to leave it out.
    """
    from_peft = source.adapter.format == "peft"
    carried, dropped = [], []
    for name, role in source.adapter.roles.items():
        if role in _UPDATES or name in other_components:
            continue
        if target == "peft" and from_peft and role in _PLACED_IN_PEFT:
            carried.append(copied(source.tensors, name))
        else:
            dropped.append(name)
    if dropped and not drop:
        more = f" and {len(dropped) - _SHOWN} more" if len(dropped) > _SHOWN else ""
        what = "MLX-LM's LoRA" if target == "mlx" else "a plain PEFT LoRA"
        raise AdapterError(
            f"{what} has no place for {len(dropped)} tensors of {source.files.weights}: "
            f"{', '.join(dropped[:_SHOWN])}{more}",
            advice="leave them out with --drop, or keep the adapter as it is",
        )
    return Beside(carried, dropped)
