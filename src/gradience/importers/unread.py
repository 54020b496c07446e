"""Logs that are recognised and not read: each is refused with what to export, and how."""

from __future__ import annotations

from pathlib import Path

from gradience.errors import RecorderError


def refuse_unread(path: Path) -> None:
    """Refuse an Aim repository by name.

    Raises:
        RecorderError: the folder is one, or holds one.
    """
    if (path / ".aim").is_dir() or path.name == ".aim":
        raise RecorderError(
            f"{path} is an Aim repository, whose database has no documented format",
            advice="export the run's metrics as CSV in Aim's Metrics Explorer, and import the table",
        )
