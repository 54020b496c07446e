"""The types of logs and reports, with units. Needs msgspec only.

Each is had from here by its name, as in `from gradience.schema import ConfigSnapshot`; the module that holds it is
imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gradience.schema.config import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot

__all__ = ["ConfigSnapshot", "LoraSnapshot", "OptimizerSnapshot", "TrainingSnapshot"]

_HOMES: Final = ("config", "events", "findings", "reports", "audit", "diagnose", "scalars")


def __getattr__(name: str) -> Any:
    """A type or constant of one of the modules."""
    for home in () if name.startswith("_") else _HOMES:
        module = import_module(f"{__name__}.{home}")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
