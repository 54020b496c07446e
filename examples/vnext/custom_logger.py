"""Write a conforming log from a training loop of your own: ``python custom_logger.py --out runs/mine``.

The typed events are the contract. The writer checks each event, redacts what must not be logged, and appends the
event to ``run.jsonl`` at once. The run ends when the ``with`` block is left, also by an exception.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from gradience.schema import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.telemetry import TelemetryReader, TelemetryWriter

CONFIG = ConfigSnapshot(
    model_name="my-model",
    dataset_name="my-data",
    optimizer=OptimizerSnapshot(name="sgd", lr=0.1),
    lora=LoraSnapshot(r=8, alpha=16.0, target_modules=["q_proj", "v_proj"]),
    training=TrainingSnapshot(seed=0, batch_size=8, max_steps=20),
)


def train(log: TelemetryWriter) -> None:
    """Imitate a training loop and record it."""
    log.run_start(CONFIG, meta={"framework": "none"})
    for step in range(1, 21):
        loss = math.exp(-step / 10)
        log.train_step(step, loss=loss, lr=0.1, grad_norm=loss / 2, tokens=step * 512)
        if step % 10 == 0:
            log.eval(step, split="train", metrics={"loss": loss, "accuracy": 1 - loss / 2, "n": 64})
            log.eval(step, split="test", metrics={"loss": loss + 0.1, "accuracy": 0.9 - loss / 2, "n": 64})


def main() -> None:
    """Record a run, and read it back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/custom"))
    path = parser.parse_args().out / "run.jsonl"
    with TelemetryWriter(path) as log:
        train(log)
    newest = TelemetryReader(path).latest_eval("test")
    print(f"{path}: test accuracy {newest.metrics.accuracy if newest else '-'}")


if __name__ == "__main__":
    main()
