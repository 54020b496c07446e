"""The check: a configuration in, and a data set if one is given; a typed report out."""

from __future__ import annotations

from gradience.verbs.check.config import check_config
from gradience.verbs.check.data import check_data

__all__ = ["check_config", "check_data"]
