"""Write a conforming log from a training loop of your own: ``python custom_logger.py --out runs/mine``.

Three ways to the same log. The writer's methods are the shortest. Typed events are checked when they are built, and the
writer takes those too. Where you write the file yourself, `encode` makes their lines.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from gradience.events import (
    ConfigSnapshot,
    Eval,
    EvalMetrics,
    LoraSnapshot,
    OptimizerSnapshot,
    RunEnd,
    RunStart,
    TrainingSnapshot,
    TrainStep,
    encode,
)
from gradience.telemetry import TelemetryReader, TelemetryWriter

CONFIG = ConfigSnapshot(
    model_name="my-model",
    dataset_name="my-data",
    optimizer=OptimizerSnapshot(name="sgd", lr=0.1),
    lora=LoraSnapshot(r=8, alpha=16.0, target_modules=["q_proj", "v_proj"]),
    training=TrainingSnapshot(seed=0, batch_size=8, max_steps=20),
)


def train(log: TelemetryWriter) -> None:
    """Imitate a training loop and record it. The run ends when the log is left, also by an exception."""
    log.run_start(CONFIG, meta={"framework": "none"})
    for step in range(1, 21):
        loss = math.exp(-step / 10)
        log.train_step(step, loss=loss, lr=0.1, grad_norm=loss / 2, tokens=step * 512)
        if step % 10 == 0:
            log.eval(step, split="train", metrics={"loss": loss, "accuracy": 1 - loss / 2, "n": 64})
            log.eval(step, split="test", metrics={"loss": loss + 0.1, "accuracy": 0.9 - loss / 2, "n": 64})


def typed(run_id: str) -> list[RunStart | TrainStep | Eval | RunEnd]:
    """Build events by hand. Values without a field of their own are `extras`: they stand beside the fields in a log."""
    now = time.time()
    return [
        RunStart(ts=now, run_id=run_id, step=None, config=CONFIG, meta={"framework": "none"}),
        TrainStep(ts=now, run_id=run_id, step=1, loss=0.9, lr=0.1, extras={"tokens": 512}),
        TrainStep(ts=now, run_id=run_id, step=2, loss=float("nan"), lr=0.1, extras={"tokens": 1024}),
        Eval(ts=now, run_id=run_id, step=2, split="test", metrics=EvalMetrics(loss=0.8, n=64, extras={"f1": 0.7})),
        RunEnd(ts=now, run_id=run_id, step=2, status="ok"),
    ]


def main() -> None:
    """Record a run in each way, and read one back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/custom"))
    out = parser.parse_args().out
    with TelemetryWriter(out / "run.jsonl") as log:
        train(log)

    with TelemetryWriter(out / "typed.jsonl", on_error="raise") as log:
        for event in typed(log.run_id):  # redacted, numbered and appended at once, as with the methods
            log.write(event)

    with (out / "encoded.jsonl").open("ab") as file:  # nothing is redacted here, and no lock is held
        file.writelines(encode(event) + b"\n" for event in typed("by-hand"))

    newest = TelemetryReader(out / "run.jsonl").latest_eval("test")
    print(f"{out / 'run.jsonl'}: test accuracy {newest.metrics.accuracy if newest else '-'}")


if __name__ == "__main__":
    main()
