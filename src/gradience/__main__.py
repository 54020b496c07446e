"""``python -m gradience``."""

from __future__ import annotations

import sys

from gradience.cli.main import script

sys.exit(script())
