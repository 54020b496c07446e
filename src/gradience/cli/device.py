"""The accelerator side of a command: JAX, set up before anything imports it."""

from __future__ import annotations

import os
from pathlib import Path

from gradience.errors import GradienceError

__all__ = ["prepare_jax"]


def prepare_jax(device: str) -> None:
    """Set this process's JAX up: no preallocation, compiled kernels kept between runs."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax  # noqa: PLC0415  # only an audit pays for it

    if (cache := _cache_dir()) is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    from gradience.spectral.batch import use_device  # noqa: PLC0415

    try:
        use_device(device)
    except ValueError as error:
        raise GradienceError(str(error), advice="use --device auto") from error


def _cache_dir() -> Path | None:
    """Return the user's cache folder for compiled kernels, or None where there is none to write to."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradience" / "jax"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # a read-only home: compile again next time
    return root if os.access(root, os.W_OK) else None
