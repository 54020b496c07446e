"""NaN in a log beside checkpoints: what lasted is told from what passed, and only what lasted sends anyone back."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from gradience import TelemetryWriter, diagnose
from gradience.schema import ConfigSnapshot, TrainingSnapshot

NAN, INF = math.nan, math.inf
HALF = ConfigSnapshot(training=TrainingSnapshot(dtype="float16"))


@pytest.fixture
def run(trained, tmp_path, cause_of):
    """A function that puts a log of these rows beside healthy weights and returns the diagnosis and its cause."""

    def diagnosed(losses, norms):
        folder = tmp_path / "out"
        shutil.copytree(trained("healthy"), folder, ignore=shutil.ignore_patterns("run.jsonl", "trainer_state.json"))
        with TelemetryWriter(folder / "run.jsonl") as log:
            log.run_start(HALF)
            for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), 1):
                log.train_step(step, loss=loss, grad_norm=norm, lr=1e-3)
            log.run_end()
        for kept in folder.glob("checkpoint-*"):
            rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
            of_step(kept, rows)
        report = diagnose(folder)
        return report, cause_of(report, "NUM301")

    return diagnosed


def of_step(checkpoint, rows):
    """Give a checkpoint the history of a run up to its step."""
    step = int(checkpoint.name.partition("-")[2])
    state = {"global_step": step, "max_steps": 100, "log_history": [row for row in rows if row["step"] <= step]}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))


def falling(n=100):
    return [2.0 - 0.01 * i for i in range(n)]


def test_one_gradient_that_fp16_skipped_sends_nobody_back(run):
    report, cause = run(falling(), [INF if i == 0 else 1.0 for i in range(100)])
    assert cause.severity == "info"
    assert report.verdict == "no_fault_found"
    assert {piece.source for piece in cause.pieces} >= {"log", "weights"}
    assert "skipped by fp16" in cause.action
    assert "Go back" not in cause.action


def test_the_checkpoint_is_from_before_what_lasted_and_not_before_an_early_skip(run):
    losses = [0.0 if i >= 60 else loss for i, loss in enumerate(falling())]
    norms = [INF if i == 0 else NAN if i >= 60 else 1.0 for i in range(100)]
    _, cause = run(losses, norms)
    assert cause.severity == "error"
    assert "Go back to checkpoint-50;" in cause.action


def test_gradients_that_stay_not_finite_to_the_end_count_without_any_word_of_the_loss(run):
    _, cause = run(falling(), [NAN if i >= 70 else 1.0 for i in range(100)])
    assert "saved before step 71" in " ".join(piece.says for piece in cause.pieces)


def test_before_the_first_checkpoint_there_is_none_to_go_back_to(run):
    losses = [0.0 if i >= 20 else loss for i, loss in enumerate(falling())]
    _, cause = run(losses, [NAN if i >= 20 else 1.0 for i in range(100)])
    assert "no checkpoint of this run from before step 21 is on disk" in [piece.says for piece in cause.pieces]
