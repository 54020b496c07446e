"""Record a training run in a plain PyTorch loop. Copy the lines marked `# recorder`.

python examples/vnext/pytorch_loop.py --out runs/pytorch
gradience monitor runs/pytorch/run.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gradience import TelemetryWriter
from gradience.events import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot

LR, R, ALPHA, BATCH, SEED = 1e-2, 4, 8, 32, 0


def main() -> None:
    """Train a small model and record the run."""
    parser = argparse.ArgumentParser(description="Record a small PyTorch loop.")
    parser.add_argument("--out", type=Path, required=True, help="folder for run.jsonl")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps")
    options = parser.parse_args()

    torch.manual_seed(SEED)
    x = torch.randn(576, 16)
    y = torch.sin(x.sum(dim=1, keepdim=True))
    base = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    model = get_peft_model(base, LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["0", "2"]))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR)

    config = ConfigSnapshot(  # recorder: what `gradience check` judges
        model_name="perceptron-16-64-1",
        optimizer=OptimizerSnapshot(name="adamw", lr=LR),
        lora=LoraSnapshot(r=R, alpha=ALPHA, target_modules=["0", "2"]),
        training=TrainingSnapshot(seed=SEED, batch_size=BATCH, max_steps=options.steps),
    )
    with TelemetryWriter(options.out / "run.jsonl") as recorder:  # recorder: also says how the loop ended
        recorder.run_start(config)  # recorder
        recorder.watch(model, optimizer)  # recorder: is what trains what was meant to train?
        for step in range(1, options.steps + 1):
            rows = torch.randint(0, 512, (BATCH,))
            loss = nn.functional.mse_loss(model(x[rows]), y[rows])
            loss.backward()
            norm = nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            recorder.train_step(step, loss=loss.item(), lr=LR, grad_norm=norm.item())  # recorder
        with torch.no_grad():
            held_out = nn.functional.mse_loss(model(x[512:]), y[512:]).item()
        recorder.eval(options.steps, split="test", metrics={"loss": held_out, "n": 64})  # recorder


if __name__ == "__main__":
    main()
