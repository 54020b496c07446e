"""Folders that a Trainer's run leaves, written without training: a history, and checkpoints with small adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from audited import save_adapter

__all__ = ["Rows", "write_adapter", "write_run", "write_state"]

Rows = list[dict[str, Any]]


def write_state(folder: Path, history: Rows, step: int, planned: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {"global_step": step, "max_steps": planned, "log_history": [row for row in history if row["step"] <= step]}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def write_adapter(folder: Path, seed: int = 0) -> None:
    draw = np.random.default_rng(seed)
    pairs = [(0.01 * draw.normal(size=(16, 4)), draw.normal(size=(4, 16))) for _ in range(2)]
    save_adapter(folder, pairs, task_type="CAUSAL_LM")


def write_run(folder: Path, history: Rows, steps: list[int], planned: int) -> Path:
    for step in steps:
        write_adapter(folder / f"checkpoint-{step}", seed=step)
        write_state(folder / f"checkpoint-{step}", history, step, planned)
    return folder
