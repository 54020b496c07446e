"""Append N events to a log once told to: ``python write_events.py LOG N``.

Prints the path it writes, waits for a line on stdin, writes.
"""

from __future__ import annotations

import sys
import warnings

from gradience.telemetry import TelemetryWriter


def main(log: str, n: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        writer = TelemetryWriter(log)
    with writer:
        print(writer.path, *(str(w.message) for w in caught), sep="\t", flush=True)  # noqa: T201  # how it talks to the test
        sys.stdin.readline()
        writer.run_start()
        for step in range(n):
            writer.train_step(step, loss=0.5, note="y" * 200)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
