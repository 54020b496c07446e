"""The user's cache folder, where what is costly to compute again is kept between runs."""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_cache_path


def cache_folder(kind: str) -> Path:
    """The folder for one kind of thing (`norms`, `jax`), where the platform keeps caches; it may not exist yet.

    On Linux that is under XDG_CACHE_HOME, or ~/.cache without it.
    """
    return user_cache_path("gradience", appauthor=False) / kind
