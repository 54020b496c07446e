"""Logs of runs, written by the real writer."""

from __future__ import annotations

import math

from gradience.schema import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.telemetry.writer import TelemetryWriter


def config(*, lr=1e-3, r=8, steps=40, save=None, **more):
    return ConfigSnapshot(
        model_name="toy",
        optimizer=OptimizerSnapshot(name="adamw", lr=lr),
        lora=LoraSnapshot(r=r, alpha=2 * r, task_type="CAUSAL_LM"),
        training=TrainingSnapshot(max_steps=steps, save_steps=save, save_strategy="steps" if save else None),
        **more,
    )


def falling(n=40, *, start=2.0, fall=0.5):
    """A smooth loss that falls by `fall` of its start."""
    return [start * (1 - fall * (1 - math.exp(-4 * i / n))) for i in range(n)]


def record(path, losses=None, *, evals=(), norms=None, setup=None, run_id=None, end="ok", audit=None, rows=None):
    """Write one run: a row a step, evaluations as (step, loss), an audit, and further values by step in `rows`."""
    losses = falling() if losses is None else losses
    by_step = dict(evals)
    log = TelemetryWriter(path, run_id=run_id, fsync="never")
    log.run_start(setup or config(steps=len(losses)))
    for step, loss in enumerate(losses, 1):
        norm = 1.0 if norms is None else norms[step - 1]
        log.train_step(step, loss=loss, lr=1e-3, grad_norm=norm, **(rows or {}).get(step, {}))
        if step in by_step:
            log.eval(step, split="eval", metrics={"loss": by_step[step]})
    if audit is not None:
        log.metrics(len(losses), kind="lora_audit", metrics=audit)
    if end:
        log.run_end(status=end)
    log.close()
    return path
