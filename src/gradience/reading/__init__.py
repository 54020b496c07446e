"""What a run's log says, read once: the `Reading` that monitor, diagnose, report, runs and why share.

`places` finds the runs of a path, `logs` reads one, and `follow` watches a log that grows.
"""

from __future__ import annotations

import os

from gradience.reading.logs import Reading, read_log
from gradience.reading.places import find_run, run_list

__all__ = ["Reading", "read_run"]


def read_run(path: str | os.PathLike[str], run: str | None = None) -> Reading:
    """Read a run of a log, of the folder that holds one, or of anything that can be imported.

    Args:
        path: a run.jsonl, the folder of a run, a folder of runs, or anything that `gradience import` reads.
        run: the run, as `find_run` takes it; the last if None.

    Raises:
        RecorderError: the source is missing, empty, or holds no event of a run, or no run of that name.
        SchemaError: the log is of another major version.
    """
    if run is None and len((runs := run_list(path)).places) == 1:
        return runs.read(runs.places[0])
    return read_log(*find_run(path, run))
