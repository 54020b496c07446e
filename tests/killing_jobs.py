"""Jobs that kill their own worker. Worker processes import them by name."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NamedTuple


class Job(NamedTuple):
    """A job that kills its worker the first `times` times, counted in a file."""

    path: str
    times: int
    count: str


def work(job: Job) -> bytes:
    so_far = Path(job.count).read_text()
    if len(so_far) < job.times:
        Path(job.count).write_text(so_far + "x")
        os.kill(os.getpid(), signal.SIGKILL)
    return job.path.encode()


def limit(_: Job) -> bytes:
    """The worker's environment variable for malloc's arenas, which is one of the limits in `PINNED`."""
    return os.environ.get("MALLOC_ARENA_MAX", "").encode()


def prepare() -> None:
    """Do nothing, because these jobs need no preparation."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
