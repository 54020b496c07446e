"""Record a Lightning run with one line of its Trainer: `gradience.lightning.GradienceCallback`.

pip install lightning
python examples/vnext/lightning_loop.py --out runs/lightning
gradience monitor runs/lightning/run.jsonl
"""

# ruff: noqa: D102  # the hooks are Lightning's, and documented there

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradience.events import ConfigSnapshot
from gradience.lightning import GradienceCallback

LR, R, ALPHA, BATCH, SEED = 1e-2, 4, 8, 32, 0


class Perceptron(lightning.LightningModule):
    """A small network with an adapter on both of its layers."""

    def __init__(self) -> None:
        super().__init__()
        base = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
        self.model = get_peft_model(base, LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["0", "2"]))

    def training_step(self, batch: Any, _index: int) -> torch.Tensor:
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, _index: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self.model(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=LR)


def main() -> None:
    """Train a small model and record the run."""
    parser = argparse.ArgumentParser(description="Record a small Lightning run.")
    parser.add_argument("--out", type=Path, required=True, help="folder for run.jsonl")
    parser.add_argument("--epochs", type=int, default=4, help="passes over 512 examples")
    options = parser.parse_args()

    lightning.seed_everything(SEED)
    x = torch.randn(576, 16)
    y = torch.sin(x.sum(dim=1, keepdim=True))
    loaders = [DataLoader(TensorDataset(x[part], y[part]), BATCH) for part in (slice(512), slice(512, None))]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    recorder = GradienceCallback(options.out / "run.jsonl", config=ConfigSnapshot(model_name="perceptron-16-64-1"))
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=options.epochs, callbacks=[recorder], **quiet)
    trainer.fit(Perceptron(), *loaders)


if __name__ == "__main__":
    main()
