"""Everything that needs torch or transformers. The base install never imports it; users import it by name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradience.hf.before import preflight
    from gradience.hf.callback import GradienceCallback
    from gradience.hf.watch import watch_batches

__all__ = ["GradienceCallback", "preflight", "watch_batches"]

_HOMES = {
    "GradienceCallback": "gradience.hf.callback",
    "preflight": "gradience.hf.before",
    "watch_batches": "gradience.hf.watch",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use: `gradience.adapters.formats` needs torch only."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from gradience.errors import INSTALL, other_project  # only a failure pays for it

        message = f"{name} needs {error.name} ({other_project() or INSTALL})"
        raise ModuleNotFoundError(message, name=error.name) from error


def __dir__() -> list[str]:
    return __all__
