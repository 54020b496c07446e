"""What follows from a configuration in numbers, for the report: scaling, batch, steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from gradience.policy.facts import Facts, Unknown
from gradience.schema.config import ConfigSnapshot
from gradience.schema.scalars import Real, real

__all__ = ["quantities"]


class _Quantity(NamedTuple):
    name: str
    read: Callable[[Facts], float]
    of_lora: bool = False


_QUANTITIES: Final = (
    _Quantity("scaling", lambda facts: facts.scaling, of_lora=True),
    _Quantity("scaling_r_lr", lambda facts: facts.early_step, of_lora=True),
    _Quantity("batch_per_process", lambda facts: facts.batch_per_process),
    _Quantity("effective_batch", lambda facts: facts.effective_batch),
    _Quantity("planned_steps", lambda facts: facts.steps),
    _Quantity("warmup_share", lambda facts: facts.warmup_share),
)


def quantities(config: ConfigSnapshot) -> dict[str, Real]:
    """Return the quantities that the configuration determines, by name; the others are left out.

    Why one is not known, the rules that need it say.
    """
    facts = Facts(config)
    found = {item.name: _known(item, facts) for item in _QUANTITIES if not (item.of_lora and facts.not_lora)}
    return {name: value for name, value in found.items() if value is not None}


def _known(quantity: _Quantity, facts: Facts) -> Real | None:
    try:
        return real(float(quantity.read(facts)))
    except Unknown:
        return None
