"""Checkpoints that could go are named with their command, and those that are needed are not; nothing is removed."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from tables import every
from written_runs import Rows, write_run, write_state

from gradience.cli.main import main

LOSSES = {20: 1.5, 25: 0.9, 30: 1.0, 40: 1.0005, 50: 1.2, 60: 1.21, 70: 1.9}
MEGABYTES = {"checkpoint-20": 2.5, "checkpoint-40": 1.2, "checkpoint-50": 7.0, "checkpoint-60": 9.0}
TWENTY = ("checkpoint-20", "worse than checkpoint-30; 2.5 MB")
FORTY = ("checkpoint-40", "within noise of checkpoint-30; 1.2 MB")
BOTH = "Could go: 2 checkpoints, 3.7 MB (checkpoint-30 and the newest stay; nothing is removed here):"
FOUR = "Could go: 4 checkpoints, 0.0 MB (checkpoint-30 and the newest stay; nothing is removed here):"
SCORED = [
    (f"checkpoint-{step}", f"{'within noise of' if step == 40 else 'worse than'} checkpoint-30; 0.0 MB")
    for step in (20, 40, 50, 60)
]
ONE = "Could go: 1 checkpoint, {} MB (checkpoint-30 and the newest stay; nothing is removed here):"


def rows(*evaluated: int) -> Rows:
    """A training loss that falls over 70 steps, and the held-out losses of these steps."""
    trained: Rows = [{"step": n, "epoch": n / 20, "loss": 2.0 - 0.01 * n, "learning_rate": 1e-3} for n in range(1, 71)]
    held_out: Rows = [{"step": n, "epoch": n / 20, "eval_loss": LOSSES[n]} for n in evaluated]
    return sorted([*trained, *held_out], key=lambda row: row["step"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 is the best that is whole and 70 the newest; 40 is tied, 20 worse, 25 cut off, 50 another run's, 60 nobody's.

    10 was not evaluated. `linked` leads to checkpoint-20.
    """
    root = tmp_path_factory.mktemp("spare")
    run = write_run(root / "run 1", rows(*LOSSES), [10, *LOSSES], 70)
    cut = run / "checkpoint-25" / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-40])
    write_state(run / "checkpoint-50", [{**row, "loss": 3.0} for row in rows() if row["step"] <= 50], 50, 70)
    (run / "checkpoint-60" / "trainer_state.json").unlink()
    for name, size in MEGABYTES.items():
        (run / name / "optimizer.pt").touch()
        os.truncate(run / name / "optimizer.pt", int(size * 1e6))
    (root / "linked").symlink_to(run / "checkpoint-20")
    scores = {20: 0.7, 25: 0.8, 30: 0.9, 40: 0.9, 50: 0.7, 60: 0.8, 70: 0.8}
    scored = [{**row, "eval_accuracy": scores[row["step"]]} if "eval_loss" in row else row for row in rows(*LOSSES)]
    write_run(root / "scored", scored, [*LOSSES], 70)
    few = write_run(root / "few", rows(20, 30, 40, 70), [20, 30, 40, 70], 70)
    (few / "checkpoint-20" / "here").symlink_to(few)  # what a link leads to is not counted
    return root


@every(
    ("where", "given", "told"),
    [
        ("", ["run 1"], [BOTH, TWENTY, FORTY]),
        ("", ["run 1", "--adapter", "run 1/checkpoint-40"], [ONE.format(2.5), TWENTY]),
        ("", ["run 1", "--adapter", "run 1/checkpoint-20/adapter_model.safetensors"], [ONE.format(1.2), FORTY]),
        ("", ["run 1", "--adapter", "linked"], [ONE.format(1.2), FORTY]),
        ("run 1", ["{root}/run 1", "--adapter", "checkpoint-20"], [ONE.format(1.2), FORTY]),
        ("", ["scored"], [FOUR, *SCORED]),  # 25 is worse by its accuracy, and has the lower loss
        ("", ["few"], []),  # four evaluations do not show their noise
    ],
)
def test_what_is_no_better_than_what_stays_could_go_save_the_weights_that_are_diagnosed(
    made, monkeypatch, capsys, where, given, told
):
    monkeypatch.chdir(made / where)
    main(["diagnose", *(word.format(root=made) for word in given)])
    run = f"{made}/run 1" if where else given[0]
    said = [
        f"  rm -r -- {shlex.quote(f'{run}/{line[0]}')}  # {line[0]}: {line[1]}" if isinstance(line, tuple) else line
        for line in told
    ]
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith(("Could go", "  rm "))] == said
    assert (made / "run 1/checkpoint-20").exists()
