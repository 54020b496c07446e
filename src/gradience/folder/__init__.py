"""The folder that a run left, found and opened once, for every verb and every rule.

`find` takes a path and gives `Found`: where the parts of one run are, by names and first bytes. `Documents` holds what
they say, each part opened when it is first asked for; a part that is absent or damaged is a value with its reason.
`runs` tells the runs of a folder apart, `checkpoints` whose a checkpoint is.
"""

from __future__ import annotations

from gradience.folder.documents import Documents, OpenAdapter, Part, open_run
from gradience.folder.found import Found, Place, find

__all__ = ["Documents", "Found", "OpenAdapter", "Part", "Place", "find", "open_run"]
