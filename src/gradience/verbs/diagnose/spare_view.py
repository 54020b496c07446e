"""Checkpoints that could go, with the commands that would remove them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from gradience.blocks import Block, counted
from gradience.schema.diagnose import SpareCheckpoint


def spare_lines(spare: Sequence[SpareCheckpoint]) -> Iterator[Block]:
    """The checkpoints that could go, a command each; nothing if there are none."""
    if not spare:
        return
    size = _size(sum(one.bytes for one in spare))
    kept = f"{spare[0].kept} and the newest stay; nothing is removed here"
    yield f"Could go: {counted(len(spare), 'checkpoint')}, {size} ({kept}):"
    for one in spare:
        why = f"within noise of {one.kept}" if one.within_noise else f"worse than {one.kept}"
        yield f"  rm -r -- {shlex.quote(one.path)}  # {PurePath(one.path).name}: {why}; {_size(one.bytes)}"


def _size(size: int) -> str:
    """Bytes in GB or MB (10**9, 10**6).

    >>> _size(14_200_000_000), _size(3_400_000), _size(12)
    ('14.2 GB', '3.4 MB', '0.0 MB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"  # noqa: PLR2004  # a thousand MB
