"""A program of a caller that writes a log: its own kind of row, and its losses as they come."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path

import gradience
from gradience.events import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, Real, TrainStep


class Row(TrainStep, frozen=True):
    """A row with a value that this program alone has."""

    kl: Real | None = None


def record(log: Path, losses: Iterable[float], run_id: str = "r1") -> int:
    """Write one row for each loss, and return how many events were lost."""
    config = ConfigSnapshot(optimizer=OptimizerSnapshot(lr=1e-4), lora=LoraSnapshot(r=8, alpha=16))
    step = 0
    with gradience.TelemetryWriter(log, run_id) as writer:
        writer.run_start(config)
        for step, loss in enumerate(losses, 1):
            writer.write(Row(ts=time.time(), run_id=run_id, step=step, loss=loss, lr=[1e-4, 1e-5], kl=loss / 10))
        writer.eval(step, split="test", metrics={"loss": 0.5, "f1": 0.25})
    return writer.lost


if __name__ == "__main__":
    try:
        sys.exit(record(Path(sys.argv[1]), [float(word) for word in sys.argv[2:]]))
    except gradience.GradienceError as error:
        sys.exit(str(error))
