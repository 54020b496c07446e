"""The cost of the Trainer callback, per logged step and as a share of a training run, with it on and off in turn.

    python benchmarks/callback_overhead.py

The hooks alone: `on_step_end` and `on_log` are called as the Trainer calls them, with the log on disk. The time of a
callback that does nothing is subtracted.

Whole runs of the real Trainer: off and on alternately, with each step logged. The model takes no time, so that
microseconds show; next to a real step of 100 ms they would vanish in the jitter of clock and scheduler. Measured is
the CPU time of the training thread from one step's end to the next: the median over steps, and the best of the rounds.
The caches are cold here, so a row costs more than in the hooks' tight loop. The same rounds time the lower limit of
any recorder that loses nothing: a callback that only hands the operating system one line per step by `os.write`.
A LoRA of a small Llama in the same way, in turns: here the model's hooks, the digests and the first looks cost too.
Aims: under 50 us a logged step; under 0.1 % of a 100 ms step; with LoRA under 500 us a step.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from gradience.hf import GradienceCallback

STEP_S = 0.1
AIM_US, AIM_SHARE, AIM_LORA_US = 50.0, 0.001, 500.0


class Instant(torch.nn.Module):
    """A model of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a loss."""
        return {"loss": (self.weight * x).mean() ** 2}


def arguments(out: str, steps: int) -> TrainingArguments:
    return TrainingArguments(
        out,
        max_steps=steps,
        logging_steps=1,
        per_device_train_batch_size=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )


def per_step_us(callback: TrainerCallback, steps: int, out: str) -> list[float]:
    """Return the microseconds of each logged step: `on_step_end` and `on_log`, as `call_event` calls them."""
    args, control = arguments(out, steps), TrainerControl()
    state = TrainerState(max_steps=steps, train_batch_size=1, log_history=[])
    shown = dict.fromkeys(("processing_class", "lr_scheduler", "train_dataloader", "eval_dataloader"))
    shown |= {"model": Instant(), "optimizer": SimpleNamespace(param_groups=[])}
    callback.on_train_begin(args, state, control, **shown)
    taken = []
    for step in range(1, steps + 1):
        state.global_step = step
        logs = {"loss": 1.0 / step, "grad_norm": 0.5 + 1e-6 * step, "learning_rate": 1e-4, "epoch": step / steps}
        state.log_history = [{**logs, "step": step}]
        began = time.perf_counter()
        callback.on_step_end(args, state, control, **shown)
        callback.on_log(args, state, control, logs=logs, **shown)
        taken.append((time.perf_counter() - began) * 1e6)
    callback.on_train_end(args, state, control, **shown)
    return taken


class Clock(TrainerCallback):
    """Records the time at which each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_args: object, **_kwargs: object) -> None:
        """Record the time. Until the next step's end come logging and training."""
        self.ends.append(time.thread_time())  # CPU time, in which other programs do not count


class OneWrite(TrainerCallback):
    """Writes the same line with `os.write` at each logged step."""

    line = b"x" * 220 + b"\n"

    def on_train_begin(self, args: TrainingArguments, *_args: object, **_kwargs: object) -> None:
        """Open the file, as the recorder does."""
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        self.file = os.open(Path(args.output_dir) / "bare.jsonl", os.O_RDWR | os.O_APPEND | os.O_CREAT)

    def on_log(self, *_args: object, **_kwargs: object) -> None:
        """Write the line."""
        os.write(self.file, self.line)

    def on_train_end(self, *_args: object, **_kwargs: object) -> None:
        """Close the file."""
        os.close(self.file)


def lora() -> torch.nn.Module:
    """A Llama of two layers with LoRA on its attention."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=512, num_key_value_heads=2, **sizes))
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def step_s(steps: int, *callbacks: TrainerCallback, model: torch.nn.Module | None = None) -> float:
    """Return the median CPU seconds from one step's end to the next in a whole Trainer run, by default of `Instant`."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        data = [{"x": torch.ones(1)} for _ in range(steps)]
        if model is not None:
            ids = torch.randint(512, (steps, 64), generator=torch.Generator().manual_seed(1))
            data = [{"input_ids": row, "labels": row} for row in ids]
        made = Trainer(model or Instant(), arguments(out, steps), train_dataset=data, callbacks=[clock, *callbacks])
        made.train()
    return statistics.median(b - a for a, b in pairwise(clock.ends))


def hooks(steps: int, rounds: int) -> float:
    """Print the hooks' cost per logged step and return its mean, less that of a callback that does nothing."""
    with tempfile.TemporaryDirectory() as out:
        per_step_us(GradienceCallback(Path(out) / "warm.jsonl"), 200, out)
        ours, nothing = [], []
        for index in range(rounds):
            nothing += per_step_us(TrainerCallback(), steps, out)
            ours += per_step_us(GradienceCallback(Path(out) / f"{index}.jsonl"), steps, out)
        lines = (Path(out) / "0.jsonl").read_bytes().count(b"\n")
    cost = statistics.fmean(ours) - statistics.fmean(nothing)
    p99 = statistics.quantiles(ours, n=100)[98]
    print(f"hooks: {rounds} x {steps} logged steps, {lines} lines each")
    print(f"  a logged step  mean {cost:6.1f} us   median {statistics.median(ours):6.1f} us   p99 {p99:6.1f} us")
    print(f"  of which a callback that does nothing takes {statistics.fmean(nothing):.2f} us (taken off the mean)")
    print(f"  mean / {AIM_US:.0f} us aim        = {cost / AIM_US:.3f}")
    print(f"  mean / 100 ms step    = {cost / (STEP_S * 1e6):.5%}  (aim {AIM_SHARE:.1%})")
    return cost


def runs(steps: int, rounds: int) -> None:
    """Print what a step of whole runs takes with the callback on and off, in alternation."""
    step_s(20, GradienceCallback())
    taken = [(step_s(steps), step_s(steps, OneWrite()), step_s(steps, GradienceCallback())) for _ in range(rounds)]
    off, bare, on = (min(side) for side in zip(*taken, strict=True))
    ratios = sorted(with_it / without for without, _, with_it in taken)
    print(f"whole runs: {rounds} rounds of {steps} steps, each logged")
    print(f"  off {off * 1e3:9.4f} ms/step   on {on * 1e3:9.4f} ms/step   difference {(on - off) * 1e6:+7.1f} us/step")
    print(f"  one bare os.write a step  {bare * 1e3:9.4f} ms/step   difference {(bare - off) * 1e6:+7.1f} us/step")
    print(f"  on / off: median {statistics.median(ratios):.5f}, from {ratios[0]:.5f} to {ratios[-1]:.5f}")
    print(f"  difference / 100 ms step = {(on - off) / STEP_S:.5%}  (aim {AIM_SHARE:.1%})")


def lora_runs(steps: int, rounds: int) -> None:
    """Print what a step of a small LoRA takes with the callback on and off, in alternation."""
    step_s(30, GradienceCallback(), model=lora())
    taken = [(step_s(steps, model=lora()), step_s(steps, GradienceCallback(), model=lora())) for _ in range(rounds)]
    off, on = (statistics.median(side) for side in zip(*taken, strict=True))
    more = statistics.median((with_it - without) * 1e6 for without, with_it in taken)
    print(f"LoRA: {rounds} rounds of {steps} steps, each logged")
    print(f"  off {off * 1e3:9.4f} ms/step   on {on * 1e3:9.4f} ms/step   on / off {on / off:.4f}")
    print(f"  difference, median of the rounds {more:+7.1f} us/step   (aim {AIM_LORA_US:.0f} us)")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what GradienceCallback costs.")
    parser.add_argument("--steps", type=int, default=5000, help="logged steps per round, hooks alone")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)  # of transformers' own
    hooks(options.steps, options.rounds)
    runs(1000, options.rounds)
    lora_runs(200, options.rounds)


if __name__ == "__main__":
    main()
