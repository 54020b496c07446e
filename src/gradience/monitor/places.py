"""Where the findings on a log point: the file that was read, as other programs' formats want it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gradience.render.cards import Place

__all__ = ["log_place"]

_OF_FOLDERS: Final = ("run.jsonl", "trainer_state.json")


def log_place(file: str) -> Place | None:
    """Return the place of a log: itself, of a folder the log in it, or None where several files were read."""
    path = Path(file)
    if path.is_file():
        return Place(file)
    return next((Place(str(path / name)) for name in _OF_FOLDERS if (path / name).is_file()), None)
