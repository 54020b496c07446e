"""Record a training run in an Accelerate loop. Copy the lines marked `# recorder`; one process writes the log.

accelerate launch examples/vnext/accelerate_loop.py --out runs/accelerate
gradience monitor runs/accelerate/run.jsonl
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradience import TelemetryWriter
from gradience.events import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot

LR, R, ALPHA, BATCH, SEED = 1e-2, 4, 8, 32, 0


def main() -> None:
    """Train a small model and record the run."""
    parser = argparse.ArgumentParser(description="Record a small Accelerate loop.")
    parser.add_argument("--out", type=Path, required=True, help="folder for run.jsonl")
    parser.add_argument("--epochs", type=int, default=4, help="passes over 512 examples")
    options = parser.parse_args()

    accelerator = Accelerator(cpu=True)
    torch.manual_seed(SEED)
    x = torch.randn(512, 16)
    data = TensorDataset(x, torch.sin(x.sum(dim=1, keepdim=True)))
    base = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    model = get_peft_model(base, LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["0", "2"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, BATCH, shuffle=True))

    config = ConfigSnapshot(  # recorder: what `gradience check` judges
        model_name="perceptron-16-64-1",
        optimizer=OptimizerSnapshot(name="adamw", lr=LR),
        lora=LoraSnapshot(r=R, alpha=ALPHA, target_modules=["0", "2"]),
        training=TrainingSnapshot(seed=SEED, batch_size=BATCH, world_size=accelerator.num_processes),
    )
    recorder = TelemetryWriter(options.out / "run.jsonl") if accelerator.is_main_process else None  # recorder
    with recorder or nullcontext():  # recorder: also says how the loop ended
        if recorder:  # recorder
            recorder.run_start(config)  # recorder
            recorder.watch(model, optimizer, loader=loader)  # recorder: is what trains what was meant to train?
        step = 0
        for epoch in range(options.epochs):
            for inputs, targets in loader:
                step += 1
                loss = nn.functional.mse_loss(model(inputs), targets)
                accelerator.backward(loss)
                norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                mean = accelerator.reduce(loss.detach(), "mean")  # on every process: it is a collective
                if recorder:  # recorder
                    recorder.train_step(step, loss=mean.item(), lr=LR, grad_norm=float(norm), epoch=epoch)  # recorder
    accelerator.end_training()


if __name__ == "__main__":
    main()
