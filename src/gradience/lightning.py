"""The flight recorder in Lightning: `lightning.Trainer(..., callbacks=[GradienceCallback()])`.

It records what the callback of the Hugging Face Trainer records: a row for each optimizer step, evaluations with all
values logged in them, the configuration, what is trained, alerts as they happen, `stop_on`, and how training ended. It
never ends a training unless `stop_on` asks for it. Needs `lightning` 2.x.
"""

# ruff: noqa: ARG002  # the hooks and their arguments are Lightning's

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Unpack

import torch
from lightning.pytorch.callbacks import Callback

from gradience.configs.settings import Draft, overlay
from gradience.hf.live import LiveOptions, LiveRun
from gradience.hf.snapshot import note_model, note_optimizer, run_meta, unwrapped
from gradience.hf.wiring import data_of
from gradience.schema.events import ConfigSnapshot
from gradience.schema.values import described
from gradience.telemetry.rows import eval_columns

_HELD_OUT: Final = re.compile(r"^(?:val|valid|validation|eval|dev)[_/.-]")
_LOADER: Final = re.compile(r"/dataloader_idx_(\d+)$")
_DTYPES: Final = {"bf16": "bfloat16", "16": "float16", "32": "float32", "64": "float64"}


class GradienceCallback(Callback):  # type: ignore[misc]
    """Records a fit in `<default_root_dir>/run.jsonl`, on the first process. It changes no number of the run.

    Args:
        path: the log, if not `<default_root_dir>/run.jsonl`; appended to, never truncated.
        config: settings that the Trainer and the module do not show; they override those that these show.
        every: optimizer steps between rows. A row waits for the device; between rows nothing does.
        meta: further facts for the log's first line.
        options: `stop_on`, `verbose`, `announce`, `allow_text`, `wiring`, `digests`: of `hf.live.LiveOptions`.

    Raises:
        ValueError: an argument is out of its range.
        GradienceError: a place to announce to is not known, or its package is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        config: ConfigSnapshot | None = None,
        every: int = 1,
        meta: Mapping[str, Any] | None = None,
        **options: Unpack[LiveOptions],
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, not {every}")
        self._run = LiveRun(**options)
        self._path = None if path is None else Path(path)
        self._given, self._every, self._meta = config or ConfigSnapshot(), every, dict(meta or {})
        self._step = self._logged = 0  # the last optimizer step, and the last with a row
        self._losses: list[torch.Tensor] = []  # losses of the batches since the last row
        self._norm: torch.Tensor | None = None
        self._rate: float | list[float] | None = None
        self._trained: set[str] = set()  # names that were logged in training
        self._evaluated: set[str] = set()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the log, or continue it if a checkpoint was loaded."""
        run, step = self._run, trainer.global_step
        self._step, self._logged, self._losses = step, step, []
        self._trained, self._evaluated = set(), set()
        if not run.judges(main=trainer.is_global_zero):
            return
        with run.recorder:
            run.begin(
                self._path or Path(trainer.default_root_dir) / "run.jsonl",
                overlay(_snapshot(trainer, pl_module, self._every), self._given),
                {**run_meta("lightning", pl_module.device.type), **self._meta},
                training=trainer,
                step=step,
                main=trainer.is_global_zero,
            )
        schedules, loader = trainer.lr_scheduler_configs, trainer.train_dataloader
        known = {"accumulation": trainer.accumulate_grad_batches, "world_size": trainer.world_size}
        run.watch(
            _only_child(pl_module),
            trainer.optimizers,
            step=step,
            schedule=schedules[0].scheduler if schedules else None,
            data=lambda: data_of(loader, **known),
            # Lightning hands the batch to `training_step`, which calls the model with parts of it.
            called=False,
        )
        _obey(run.heed(step), trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Digest the batch."""
        self._run.step_begins()
        self._run.see(batch)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Read the gradient's norm before it is clipped, and the learning rate of this step."""
        # The step is counted after it is made.
        if (trainer.global_step + 1) % self._every:
            return
        with self._run.recorder:
            # Lightning calls this once the scaler of mixed precision has unscaled them, and before it clips.
            grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            # The norm of sharded gradients would wait for the other processes.
            plain = [grad for grad in grads if type(grad) is torch.Tensor and not grad.is_sparse]
            self._norm = torch.nn.utils.get_total_norm(plain) if len(plain) == len(grads) > 0 else None
            rates = [float(group["lr"]) for group in optimizer.param_groups]
            self._rate = rates[0] if len(set(rates)) == 1 else rates

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record a row if an optimizer step was made since the last row; its loss is the mean over its batches."""
        step = trainer.global_step
        _obey(self._run.step_ended(step, step - self._step), trainer)
        self._step = step
        with self._run.recorder:
            # `callback_metrics` has what training and evaluations logged last: their names tell them apart.
            self._trained |= set(trainer.callback_metrics) - self._evaluated
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
            if isinstance(loss, torch.Tensor):
                self._losses.append(loss.detach())
            if step > self._logged and step % self._every == 0:
                self._logged = step
                self._row(trainer, pl_module, step)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Record the values logged in a validation, under any names, once for each data loader."""
        if trainer.sanity_checking:
            return
        step = trainer.global_step
        _obey(self._run.evaluated(step), trainer)
        with self._run.recorder:
            measured = {name: value for name, value in trainer.callback_metrics.items() if name not in self._trained}
            self._evaluated |= set(measured)
            for split, metrics in _by_split(measured).items():
                _obey(self._run.evaluation(step, split, metrics), trainer)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Record what is trained at a save."""
        # Lightning calls this before the file is written, so there is no folder to look into.
        _obey(self._run.saved(trainer.global_step), trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the run with the exception that ended it."""
        self._run.failed(exception, trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the run."""
        self._run.end(trainer.global_step, trainer.max_steps)
        self._run.tell_story()

    def _row(self, trainer: Any, pl_module: Any, step: int) -> None:
        known: dict[str, Any] = {"lr": self._rate, "epoch": _epoch(trainer)}
        # Lightning has divided each loss by the number of batches per step.
        if self._losses:
            share = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            known["loss"] = float(torch.stack([loss.float().mean() for loss in self._losses]).mean()) * share
        if self._norm is not None:
            known["grad_norm"] = float(self._norm)
        self._losses, self._norm = [], None
        row = {name: value for name, value in known.items() if value is not None}
        _obey(self._run.row(step, row, {}), trainer)


def _obey(stop: bool, trainer: Any) -> None:  # noqa: FBT001  # whether to
    if stop:
        trainer.should_stop = True


def _snapshot(trainer: Any, module: Any, every: int) -> ConfigSnapshot:
    """Return the configuration that the Trainer and the module show; the user's own hyperparameters are not read."""
    draft = Draft()
    adapted = (m for m in module.modules() if getattr(m, "peft_config", None))
    note_model(draft, unwrapped(next(adapted, module)))
    for optimizer in trainer.optimizers:
        name = type(optimizer).__name__.lower()
        draft.set("optimizer", "name", name)
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        draft.set("optimizer", "lr", max(rates, default=None))
        note_optimizer(draft, optimizer)
    loader = trainer.train_dataloader
    steps = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
    settings = {
        "batch_size": getattr(loader, "batch_size", None),
        "gradient_accumulation": trainer.accumulate_grad_batches,
        "world_size": trainer.world_size,
        "max_steps": int(steps) if 0 < steps < float("inf") else None,
        "epochs": trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None,
        "dtype": _DTYPES.get(str(trainer.precision).partition("-")[0]),
        "max_grad_norm": trainer.gradient_clip_val,
        "logging_steps": float(every),
        "eval_strategy": "steps" if trainer.enable_validation else "no",
        # `seed_everything` leaves it there; the Trainer does not know it.
        "seed": int(seed) if (seed := os.environ.get("PL_GLOBAL_SEED", "")).isdecimal() else None,
    }
    for name, value in settings.items():
        if value is not None:
            draft.set("training", name, value)
    return draft.snapshot()


def _only_child(module: torch.nn.Module) -> torch.nn.Module:
    """Return the model in a module that has no other parameters: its parameters then have the names of other loops."""
    own = {id(tensor) for tensor in module.parameters()}
    return next((child for child in module.children() if {id(t) for t in child.parameters()} == own), module)


def _epoch(trainer: Any) -> float | None:
    """Return the passes over the data so far; None if the loader has no length."""
    batches = trainer.num_training_batches
    if not 0 < batches < float("inf"):
        return None
    return float(trainer.current_epoch + (trainer.fit_loop.batch_idx + 1) / batches)


def _by_split(logged: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a validation's values by data loader, without the prefixes of their names, and its loss as `loss`.

    >>> _by_split({"val_loss": 0.5, "val/acc": 0.75, "avg_loss/dataloader_idx_1": 1.5})
    {'eval': {'loss': 0.5, 'accuracy': 0.75}, 'eval_1': {'loss': 1.5}}
    """
    splits: dict[str, dict[str, Any]] = {}
    for key, value in logged.items():
        loader = _LOADER.search(key)
        split = f"eval_{loader[1]}" if loader and loader[1] != "0" else "eval"
        name = _HELD_OUT.sub("", _LOADER.sub("", key))
        splits.setdefault(split, {})["accuracy" if name == "acc" else name] = described(value)
    for values in splits.values():
        losses = [name for name in values if "loss" in name.lower()]
        if "loss" not in values and len(losses) == 1:
            values["loss"] = values.pop(losses[0])
    columns = {split: eval_columns(values) for split, values in splits.items()}
    return {split: {**known, **extras} for split, (known, extras) in columns.items()}
