"""What the parts of a run say together has the same id and words in every verb that judges these parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from audited import save_adapter

from gradience import audit_adapter, diagnose, monitor_run
from gradience.rules.joins.run import JOINS
from gradience.schema.document import Finding


def state(folder: Path, rows: list[dict[str, float]], **arguments: object) -> None:
    folder.mkdir(exist_ok=True)
    last = rows[-1]["step"]
    (folder / "trainer_state.json").write_text(
        json.dumps({"global_step": last, "max_steps": last, "log_history": rows})
    )
    (folder / "training_args.json").write_text(json.dumps(arguments))


def told(findings: list[Finding], rule: str) -> str:
    (finding,) = [each for each in findings if each.id == rule]
    return finding.message


@pytest.fixture
def learnt_and_empty(tmp_path):
    """A run whose loss falls, and an adapter whose update is zero."""
    noise = np.random.default_rng(0).normal(size=80)
    losses = {step: 2.0 * 0.97**step + 0.5 + 0.01 * noise[step - 1] for step in range(1, 81)}
    rows = [{"step": s, "epoch": s / 80, "loss": loss, "grad_norm": 1.0 + loss / 9} for s, loss in losses.items()]
    state(tmp_path, rows, learning_rate=1e-3)
    draw = np.random.default_rng(1)
    save_adapter(tmp_path, [(np.zeros((16, 4)), draw.normal(size=(4, 16))) for _ in range(4)], task_type="CAUSAL_LM")
    return tmp_path


def test_an_audit_has_what_the_log_beside_the_weights_adds(learnt_and_empty):
    audit = audit_adapter(learnt_and_empty)
    assert told(audit.findings, "SAV303") == told(diagnose(learnt_and_empty).findings, "SAV303")
    assert "TRN202" not in {finding.id for finding in audit.findings}  # is part of it
    (learnt_and_empty / "trainer_state.json").unlink()
    assert "TRN202" in {finding.id for finding in audit_adapter(learnt_and_empty).findings}


def test_a_join_that_is_left_out_leaves_its_parts(learnt_and_empty):
    assert "TRN202" in {finding.id for finding in audit_adapter(learnt_and_empty, ignore=["SAV303"]).findings}


def test_a_monitor_has_what_the_settings_beside_the_log_add(tmp_path):
    state(tmp_path, [{"step": 3, "train_runtime": 9.0, "train_loss": 1.0}], logging_steps=25)
    report, whole = monitor_run(tmp_path), diagnose(tmp_path)
    assert [finding.id for finding in report.findings] == ["STP001", "REC310"]
    for rule in ("REC310", "STP001"):
        assert told(report.findings, rule) == told(whole.findings, rule)


def test_a_monitor_says_no_other_finding_on_settings(tmp_path):
    """Those are of a run to come, or for `check`."""
    rows = [{"step": s, "epoch": s / 40, "loss": 2.0} for s in range(1, 41)]
    state(tmp_path, rows, learning_rate=5e-2, num_train_epochs=1, lr_scheduler_type="constant", optim="adamw_torch")
    of_settings = {cause.id for cause in diagnose(tmp_path).findings if cause.pieces[0].source == "config"}
    found = {finding.id for finding in monitor_run(tmp_path).findings}
    assert found & of_settings <= {"LR001", "LR003", "STP001"}


def test_a_message_on_one_part_takes_all_that_its_join_looks_at():
    """ "There are no weights to confirm it" is not said by a verb that did not look for weights."""
    by_id = {join.id: join for join in JOINS}
    nan = by_id["NUM301"]
    assert nan.among(("log", "config")) is None
    both = nan.among(("weights", "log", "config"))
    assert both is not None
    assert {message.sources for message in both.messages} == {("log", "weights"), ("log",)}
    diverged = by_id["DIV305"].among(("log", "config"))
    assert diverged is not None
    assert {message.sources for message in diverged.messages} == {("log", "config")}
