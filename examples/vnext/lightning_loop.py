"""The flight recorder in Lightning: a callback of ten lines, `Recorder`, to copy.

pip install lightning
python examples/vnext/lightning_loop.py --out runs/lightning
gradience monitor runs/lightning/run.jsonl
"""

# ruff: noqa: ARG002, D102  # the hooks and their arguments are Lightning's, and documented there

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradience import TelemetryWriter
from gradience.schema import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot

LR, R, ALPHA, BATCH, SEED = 1e-2, 4, 8, 32, 0


class Recorder(lightning.Callback):
    """Records a fit in run.jsonl, on the first process only; Lightning tells how it ended."""

    def __init__(self, path: Path, config: ConfigSnapshot) -> None:
        self.path, self.config, self.norm = path, config, None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.writer = TelemetryWriter(self.path) if trainer.is_global_zero else None
        if self.writer:
            self.writer.run_start(self.config, meta={"framework": "lightning"})

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.norm = nn.utils.get_total_norm([p.grad for p in pl_module.parameters() if p.grad is not None])

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        if self.writer:
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            self.writer.train_step(trainer.global_step, loss=outputs["loss"].item(), lr=lr, grad_norm=self.norm.item())

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.writer and not trainer.sanity_checking:
            metrics = {"loss": trainer.callback_metrics["val_loss"].item()}
            self.writer.eval(trainer.global_step, split="eval", metrics=metrics)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._close("interrupted" if isinstance(exception, KeyboardInterrupt) else "error", type(exception).__name__)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._close("ok")

    def _close(self, status: Any, reason: str | None = None) -> None:
        if self.writer:
            self.writer.run_end(status=status, reason=reason)
            self.writer.close()
            self.writer = None


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
    """Train, recording as it goes."""
    parser = argparse.ArgumentParser(description="Record a small Lightning run.")
    parser.add_argument("--out", type=Path, required=True, help="folder for run.jsonl")
    parser.add_argument("--epochs", type=int, default=4, help="passes over 512 examples")
    options = parser.parse_args()

    lightning.seed_everything(SEED)
    x = torch.randn(576, 16)
    y = torch.sin(x.sum(dim=1, keepdim=True))
    loaders = [DataLoader(TensorDataset(x[part], y[part]), BATCH) for part in (slice(512), slice(512, None))]
    config = ConfigSnapshot(
        model_name="perceptron-16-64-1",
        optimizer=OptimizerSnapshot(name="adamw", lr=LR),
        lora=LoraSnapshot(r=R, alpha=ALPHA, target_modules=["0", "2"]),
        training=TrainingSnapshot(seed=SEED, batch_size=BATCH, epochs=options.epochs),
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    recorder = Recorder(options.out / "run.jsonl", config)
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=options.epochs, callbacks=[recorder], **quiet)
    trainer.fit(Perceptron(), *loaders)


if __name__ == "__main__":
    main()
