"""The check: a configuration in, a typed report out; of a data set, in `data`."""

from __future__ import annotations

from gradience.verbs.check.config import check_config

__all__ = ["check_config"]
