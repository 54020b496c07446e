"""Reading and writing of files, without any knowledge of adapters.

This file has what every layer above shares: types for paths and progress, a natural sort order, and the user's cache
folder.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

PathLike: TypeAlias = str | os.PathLike[str]
Progress: TypeAlias = Callable[[int, int, str], None]  # items done, items in all, the name of the current one

CHECKPOINT_PREFIX: Final = "checkpoint-"  # of the folders that the Trainer saves, before their step
_DIGITS: Final = re.compile(r"(\d+)")
_MOST_DIGITS: Final = 9  # longer runs of digits are not worth the cost of int()


def natural_key(name: str) -> list[tuple[int, str]]:
    """A sort key that compares runs of digits as numbers.

    Numbers of more than nine digits come after all others, in the order of their text.

    >>> sorted(["layers.10.k", "layers.2.k"], key=natural_key)
    ['layers.2.k', 'layers.10.k']
    """
    return [
        (-1, part) if i % 2 == 0 else (int(part), "") if len(part) <= _MOST_DIGITS else (10**_MOST_DIGITS, part)
        for i, part in enumerate(_DIGITS.split(name))
    ]


_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # more than one letter: Windows has drives


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        OSError: it cannot be made, is within more folders than can be made at once, or is a URL, as in `s3://a/b`.
    """
    if _SCHEME.fullmatch(next(iter(path.parts), "")) and not path.exists():
        raise OSError(errno.EINVAL, "a URL is not a folder of this machine", os.fspath(path))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except RecursionError:  # pathlib makes one folder within the other, before any is there
        raise OSError(errno.ENAMETOOLONG, "too many folders within one another", os.fspath(path.name)) from None


def cache_folder(kind: str) -> Path | None:
    """The cache folder for one kind of data (`norms`, `jax`), at the platform's place for caches. It is made.

    On Linux the place is XDG_CACHE_HOME, or ~/.cache if that is not set. None if nothing can be written there: a
    caller then goes without.
    """
    from platformdirs import user_cache_path  # imported only when something is cached

    folder = user_cache_path("gradience", appauthor=False) / kind
    try:
        make_folder(folder)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
