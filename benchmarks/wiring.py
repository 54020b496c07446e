"""What the looks at a training cost: a LoRA of a small model, with no callback, a plain one, and one that looks.

    python benchmarks/wiring.py  # about a minute

The Trainer runs in turns without a callback, with `GradienceCallback(wiring=False, digests=False)` and with the looks
and the digests of batches and random states that are on by default. Each step has a batch of 8 rows of 256 tokens; the
model is two linear layers, so that microseconds show. A round gives the mean CPU time of the training thread over all
steps after the first, so that the looks after eight steps and at a save count. The bytes are what the log has beyond
the plain callback's, by step.
Aims: 1 % of a step of 50 ms; 200 bytes a step.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments
from wired import unheard

from gradience.hf import GradienceCallback

AIM_SHARE, STEP_S, AIM_BYTES = 0.01, 0.05, 200
ROWS, TOKENS = 8, 256


class Clock(TrainerCallback):
    """Notes the CPU time at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_args: object, **_kwargs: object) -> None:
        """Note the time."""
        self.ends.append(time.thread_time())


class Small(torch.nn.Module):
    """A language model of two linear layers, so that a step takes a few milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(64, 16)
        self.up_proj, self.down_proj = torch.nn.Linear(16, 32), torch.nn.Linear(32, 64)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss."""
        logits = self.down_proj(self.up_proj(self.embedding(input_ids)))
        return {"loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return get_peft_model(Small(), LoraConfig(r=8, target_modules=["up_proj", "down_proj"]))


def run(steps: int, callback: TrainerCallback | None) -> tuple[float, int]:
    """Return the mean CPU seconds of a step, and the bytes of the log."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        args = TrainingArguments(
            out, max_steps=steps, logging_steps=1, per_device_train_batch_size=ROWS, save_steps=steps // 2,
            report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        ids = torch.randint(0, 64, (ROWS * 4, TOKENS), generator=torch.Generator().manual_seed(1))
        data = [{"input_ids": row, "labels": row} for row in ids]
        callbacks = [clock, *([] if callback is None else [callback])]
        with unheard():
            Trainer(model(), args, train_dataset=data, callbacks=callbacks).train()
        log = Path(out) / "run.jsonl"
        size = log.stat().st_size if log.exists() else 0
    return (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1), size


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the looks at a training cost.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    quiet = {"verbose": False}
    run(10, GradienceCallback(**quiet))
    rounds = [
        (
            run(options.steps, None)[0],
            run(options.steps, GradienceCallback(wiring=False, digests=False, **quiet)),
            run(options.steps, GradienceCallback(**quiet)),
        )
        for _ in range(options.rounds)
    ]
    none = statistics.median(each[0] for each in rounds)
    plain = statistics.median(each[1][0] for each in rounds)
    looks = statistics.median(each[2][0] for each in rounds)
    extra = statistics.median(each[2][0] - each[1][0] for each in rounds)
    size = (rounds[0][2][1] - rounds[0][1][1]) / options.steps
    print(f"{options.rounds} rounds of {options.steps} steps, {ROWS} x {TOKENS} tokens a step; medians of CPU time")
    print(f"  no callback {none * 1e3:7.2f} ms   plain {plain * 1e3:7.2f} ms   with looks {looks * 1e3:7.2f} ms a step")
    print(f"  looks - plain {extra * 1e6:+7.1f} us a step: {extra / STEP_S:.2%} of 50 ms (aim {AIM_SHARE:.0%})")
    print(f"  {size:.0f} bytes a step more in the log (aim {AIM_BYTES})")


if __name__ == "__main__":
    main()
