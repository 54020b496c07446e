"""Runs of the real Trainer, broken on purpose: the diagnosis names what was done to them, once."""

from __future__ import annotations

import json
import shutil

import pytest

from gradience import audit_adapter, diagnose


@pytest.fixture(scope="module")
def seen(trained):
    """A function that returns the diagnosis of a run of this kind."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = diagnose(trained(kind))
        return made[kind]

    return of


def pieces(cause):
    return {(piece.source, piece.id) for piece in cause.pieces}


def test_a_masked_nan_is_one_error_with_evidence_from_loss_gradient_and_weights(seen, cause_of):
    report = seen("masked_nan")
    cause = cause_of(report, "NUM301")
    assert (report.verdict, cause.severity) == ("broken", "error")
    assert {("log", "NUM101"), ("log", "NUM102"), ("weights", "NUM201")} <= pieces(cause)
    said = {piece.id: piece.says for piece in cause.pieces}
    assert "exactly 0.0 from step 21" in said["NUM102"]
    assert "gradient norm at steps 21, 22, 23, 24, 25 and " in said["NUM101"]
    assert "masked in the log from step 21" in cause.message
    assert not {"NUM101", "NUM102", "NUM201"} & {other.id for other in report.findings}


def test_the_checkpoint_to_go_back_to_is_the_last_one_whose_weights_are_finite(trained, seen, cause_of):
    action = cause_of(seen("masked_nan"), "NUM301").action
    verdicts = {n: audit_adapter(trained("masked_nan") / f"checkpoint-{n}").health.verdict for n in (10, 20)}
    assert verdicts == {10: "trained", 20: "broken"}  # 20 was saved before the first bad row, and is bad itself
    assert action is not None
    assert "checkpoint-10;" in action


def test_an_untrained_adapter_is_one_error_from_the_flat_loss_and_the_zero_update(seen, cause_of):
    report = seen("untrained")
    cause = cause_of(report, "TRN302")
    assert (report.verdict, cause.severity) == ("broken", "error")
    assert {("log", "NOL106"), ("log", "GRD108"), ("weights", "TRN202")} <= pieces(cause)


def test_a_rate_of_zero_is_the_cause_of_an_update_of_zero(seen, cause_of):
    cause = cause_of(seen("zero_rate"), "TRN302")
    assert cause.severity == "error"
    assert "the configuration says why: lr is 0" in cause.message
    assert "The learning rate is 0 in 40 rows" in " ".join(piece.says for piece in cause.pieces)
    assert {("config", "VAL001"), ("log", "LRS109"), ("weights", "TRN202")} <= pieces(cause)


def test_divergence_and_exploded_weights_are_one_error_with_a_checkpoint_from_before(seen, cause_of):
    report = seen("diverged")
    cause = cause_of(report, "DIV305")
    assert (report.verdict, cause.severity) == ("broken", "error")
    assert {("log", "DIV104"), ("log", "GRD107"), ("weights", "exploded"), ("disk", "lowest")} <= pieces(cause)
    assert "checkpoint-60" in str(cause.action)  # the rate rose after step 60


def test_a_log_that_learns_beside_a_zero_update_says_that_something_else_was_trained(seen, cause_of):
    report = seen("head_only")
    cause = cause_of(report, "SAV303")
    assert report.verdict == "broken"
    assert ("weights", "TRN202") in pieces(cause)
    assert "is not in this file" in cause.message


def test_an_overfit_run_names_the_evaluated_checkpoint_on_disk(trained, seen, cause_of):
    """The loss overfits. It is a fault unless the metric that decides holds, which the processor's rounding decides."""
    folder, report = trained("overfit"), seen("overfit")
    cause = cause_of(report, "OVF304")
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses = {row["step"]: row["eval_loss"] for row in history if "eval_loss" in row}
    on_disk = sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))
    accuracies = [row["eval_accuracy"] for row in history if "eval_loss" in row]
    holds = accuracies[-1] >= 0.9 * max(accuracies)
    expected = ("no_fault_found", "info") if holds else ("needs_attention", "warning")
    assert (report.verdict, cause.severity) == expected
    assert report.best_checkpoint is not None
    assert report.best_checkpoint.name in {f"checkpoint-{step}" for step in on_disk}
    assert [c.step for c in report.checkpoints] == on_disk
    assert {c.step: c.loss for c in report.checkpoints} == {step: losses[step] for step in on_disk}
    assert ("log", "OVF110") in pieces(cause)


def test_weights_that_are_the_best_checkpoint_already_need_no_attention(trained, seen, cause_of, tmp_path):
    best = seen("overfit").best_checkpoint
    copy = tmp_path / "out"
    shutil.copytree(trained("overfit"), copy)
    shutil.copy(copy / best.name / "adapter_model.safetensors", copy / "adapter_model.safetensors")
    cause = cause_of(diagnose(copy), "OVF304")
    assert cause.severity == "info"
    assert f"those of {best.name}" in cause.message


def test_without_checkpoints_an_overfit_run_says_that_there_is_none_to_keep(trained, cause_of, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(trained("overfit"), copy, ignore=shutil.ignore_patterns("checkpoint-*"))
    report = diagnose(copy)
    assert "no checkpoint" in cause_of(report, "OVF304").message
    assert report.best_checkpoint is None


def test_a_healthy_run_has_no_fault_in_what_was_judged(seen):
    report = seen("healthy")
    assert report.verdict == "no_fault_found"
    assert report.complete
    assert {cause.severity for cause in report.findings} <= {"info"}
    assert [source.state for source in report.sources] == ["read", "read", "read"]
    assert report.audit is not None
    assert report.audit.health.verdict == "trained"


def test_the_config_of_another_run_is_found_out_by_rank_alpha_and_targets(trained, cause_of, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"peft_type": "LORA", "r": 64, "lora_alpha": 128, "target_modules": ["q_proj"]}))
    cause = cause_of(diagnose(trained("healthy"), config=other), "CFG306")
    assert cause.severity == "warning"
    said = " ".join(piece.says for piece in cause.pieces)
    for part in ("r=64", "r=8 on disk", "lora_alpha=128", "alpha=16", "target_modules q_proj", "was adapted"):
        assert part in said


def test_the_log_of_another_run_is_found_out_by_its_run_start(trained, cause_of):
    report = diagnose(adapter=trained("overfit"), run=trained("healthy") / "run.jsonl")
    assert "the log's settings" in cause_of(report, "CFG306").pieces[0].says


def test_a_target_that_hit_nothing_is_named(trained, cause_of, tmp_path):
    folder = trained("masked_nan")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] += ["gate_projection"]
    stated = tmp_path / "stated.json"
    stated.write_text(json.dumps(config))
    assert "gate_projection" in cause_of(diagnose(folder, config=stated), "TGT307").message
