"""The project's settings for a command: found from the working folder, under what the command line says."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gradience.configs.preferences import FailOn, Preferences, find_preferences, read_preferences
from gradience.errors import ConfigError
from gradience.schema.scalars import Severity

__all__ = ["Settings", "project_settings", "severity"]


class Settings(NamedTuple):
    """The settings, and the file they come from."""

    values: Preferences = Preferences()
    path: Path | None = None


def project_settings(settings: Path | None = None, *, isolated: bool = False) -> Settings:
    """Return the settings of the file given, else of the nearest one from the working folder upwards.

    Raises:
        ConfigError: the file cannot be read or holds something else, or both options are given.
    """
    if isolated:
        if settings is not None:
            raise ConfigError("--isolated leaves settings files alone, --settings names one", advice="give one of them")
        return Settings()
    path = settings or find_preferences(Path.cwd())
    return Settings() if path is None else Settings(read_preferences(path), path)


def severity(option: FailOn | None, settings: Settings) -> Severity | None:
    """Return the severity from which a command exits with 1: the option, else the settings; None for never."""
    asked = option or settings.values.fail_on
    return None if asked is None or asked == "never" else asked
