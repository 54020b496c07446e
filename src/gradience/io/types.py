"""Types that every layer above files shares."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeAlias

PathLike: TypeAlias = str | os.PathLike[str]
Progress: TypeAlias = Callable[[int, int, str], None]  # items done, items in all, the name of the current one
