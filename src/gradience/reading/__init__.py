"""What a run's log says, read once: the `Reading` that every verb on a run takes.

`logs` reads one, and `follow` watches a log that grows.
"""

from __future__ import annotations

from gradience.reading.logs import Reading

__all__ = ["Reading"]
