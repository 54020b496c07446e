"""Real trainings with a fault that costs time or memory, and healthy ones: what the rules CST191 and CST195 say.

    python benchmarks/pace.py [SEED]     # two faults and 20 healthy runs, of seeds from this on; each in a child
    python benchmarks/pace.py cost       # what the recording of speed and memory costs a step

A fault is to be named by its rule and by no other of them; a healthy run by none.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from gradience import monitor_run
from gradience.hf import GradienceCallback
from gradience.hf.pace import PaceMeter
from gradience.telemetry import TelemetryWriter

FAULTS = {
    "slow loader": {"CST191"},
    "limit on the child": {"CST195"},
}
HEALTHY = 20
STEPS, LENGTH = 140, 32
LEAK, LIMIT = 1 << 21, 500 << 20  # numbers, bytes


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random rows, of a length that the fault gives."""

    def __init__(self, fault: str, seed: int) -> None:
        self.fault, self.seed = fault, seed

    def __len__(self) -> int:
        """Return a number that no run reaches."""
        return 100_000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one row."""
        if self.fault == "slow loader":
            time.sleep(0.1)
        generator = torch.Generator().manual_seed(self.seed * len(self) + index)
        ids = torch.randint(3, 512, (LENGTH,), generator=generator)
        short = LENGTH - int(ids[0]) % (LENGTH // 4)
        mask = (torch.arange(LENGTH) < short).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)}


class Fault(TrainerCallback):  # type: ignore[misc]
    """What goes wrong at each step."""

    def __init__(self, fault: str) -> None:
        self.fault, self.kept = fault, [torch.empty(0)]

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Keep memory."""
        if self.fault == "limit on the child":
            self.kept.append(torch.ones(LEAK))


def train(out: Path, fault: str, seed: int) -> None:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=512
    )
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM(config), adapter)
    if fault == "limit on the child":
        lines = Path("/proc/self/status").read_text().splitlines()
        now = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (now + LIMIT, now + LIMIT))
    args = TrainingArguments(
        str(out),
        per_device_train_batch_size=2 + seed % 3,
        gradient_accumulation_steps=1 + seed % 2,
        max_steps=STEPS,
        logging_steps=5,
        save_strategy="steps" if seed % 2 else "no",
        save_steps=40,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
    )
    recorder = GradienceCallback(verbose=False)
    with recorder:
        Trainer(model, args, train_dataset=Rows(fault, seed), callbacks=[recorder, Fault(fault)]).train()


def said(fault: str, seed: int) -> set[str]:
    """The rules that speak of a training in a child."""
    with tempfile.TemporaryDirectory() as place:
        child = os.fork()
        if child == 0:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            try:
                train(Path(place), fault, seed)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        return {found.id for found in monitor_run(place).findings if found.id.startswith("CST")}


class Instant(torch.nn.Module):
    """A model that takes no time."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        """Do nothing."""


def cost(steps: int = 3000) -> float:
    """Microseconds of processor time that a step costs, at 8 rows of 1024 tokens."""
    model, ids = Instant(), torch.ones(8, 1024, dtype=torch.long)
    taken = []
    with tempfile.TemporaryDirectory() as place, TelemetryWriter(Path(place) / "run.jsonl") as log:
        log.run_start({})
        for pace in (None, PaceMeter(model)):
            began = time.process_time()
            for step in range(steps):
                if pace is not None:
                    pace.begin()
                model(input_ids=ids, attention_mask=ids)
                if pace is not None:
                    pace.end()
                    if found := pace.look():
                        log.throughput(step, **found)
            taken.append((time.process_time() - began) / steps * 1e6)
    return taken[1] - taken[0]


def main() -> None:
    transformers.logging.set_verbosity_error()
    if sys.argv[1:] == ["cost"]:
        each = cost()
        print(f"{each:.0f} us a step: {each / 50_000:.2%} of one of 50 ms")
        return
    first = int(sys.argv[1]) if sys.argv[1:] else 0
    for fault, wanted in FAULTS.items():
        found = said(fault, first)
        print(
            f"{fault:<20} {sorted(found)} {'as wanted' if found == wanted else f'wanted {sorted(wanted)}'}", flush=True
        )
    silent = 0
    for seed in range(first, first + HEALTHY):
        found = said("", seed)
        silent += not found
        print(f"healthy {seed:<12} {sorted(found)}", flush=True)
    print(f"{silent} of {HEALTHY} healthy runs silent")


if __name__ == "__main__":
    main()
