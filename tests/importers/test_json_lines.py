"""LLaMA-Factory's trainer_log.jsonl in both layouts, and ms-swift's logging.jsonl."""

from __future__ import annotations

import json

from gradience.judge.monitor import monitor_run


def test_the_layout_of_llama_factory_v0(tmp_path, import_events, write_lines):
    rows = [
        {"current_steps": 5, "total_steps": 20, "loss": 2.0, "lr": 1e-5, "epoch": 0.1, "elapsed_time": "0:00:10"},
        {"current_steps": 10, "total_steps": 20, "eval_loss": 1.9, "epoch": 0.2, "percentage": 50.0},
        {"current_steps": 15, "total_steps": 20, "loss": 1.8, "lr": 5e-6, "epoch": 0.3, "remaining_time": "0:00:05"},
    ]
    events, _ = import_events(write_lines(tmp_path / "trainer_log.jsonl", rows))
    assert events.steps == [5, 15]
    assert [(e.step, e.split, e.metrics.loss) for e in events.of("eval")] == [(10, "eval", 1.9)]
    assert events.of("train_step")[0].extras == {"elapsed_time": "0:00:10"}
    assert (events.end.status, events.end.reason) == ("unknown", "the source ends before its 20 planned steps")


def test_the_layout_of_llama_factory_v1(tmp_path, import_events, write_lines):
    rows = [
        {"loss": 2.0 / s, "grad_norm": 1.0, "learning_rate": 1e-5, "epoch": s / 3, "step": s, "total_steps": 3}
        for s in (1, 2, 3)
    ]
    events, imported = import_events(write_lines(tmp_path / "trainer_log.jsonl", rows))
    assert imported.format == "llama-factory"
    assert events.steps == [1, 2, 3]
    assert events.of("train_step")[2].grad_norm == 1.0
    assert events.end.status == "ok"


def test_ms_swift_has_its_step_in_a_text(tmp_path, import_events, write_lines):
    place = "global_step/max_steps"
    history = [{"loss": 2.0, "step": 1}]
    rows = [
        {"loss": 2.0, "grad_norm": 1.5, "learning_rate": 1e-4, place: "1/12", "memory(GiB)": 9.1, "elapsed_time": "3s"},
        {"eval_loss": 1.9, "eval_runtime": 2.0, "eval_samples_per_second": 5.0, "epoch": 1.0, place: "12/12"},
        {"train_runtime": 40.0, "total_flos": 1e12, "train_loss": 1.95, place: "12/12"},
        {"best_metric": 1.9, "global_step": 12, "log_history": history * 3000, "last_model_checkpoint": "/home/me/x"},
    ]
    path = write_lines(tmp_path / "logging.jsonl", rows)
    assert len(path.read_bytes()) > 64 * 1024  # longer than a line of ours may be
    events, imported = import_events(path)
    assert imported.format == "ms-swift"
    row = events.of("train_step")[0]
    assert (row.step, row.loss, row.grad_norm, row.extras["memory(GiB)"]) == (1, 2.0, 1.5, 9.1)
    assert events.of("eval")[0].step == 12
    assert events.of("metrics")[0].kind == "train_summary"
    assert events.start.config.training.max_steps == 12
    assert "line 4 repeats the whole history and was not read" in imported.notes


def test_bad_lines_are_counted_with_their_numbers(tmp_path, import_events):
    good = {"current_steps": 5, "total_steps": 20, "loss": 2.0}
    path = tmp_path / "trainer_log.jsonl"
    lines = [
        json.dumps(good),
        "{broken",
        "",
        json.dumps({**good, "current_steps": None}),
        "[1]",
        '{"current_steps": 10, "to',
    ]
    path.write_text("\n".join(lines))
    _, imported = import_events(path)
    assert [bad.line for bad in imported.skipped] == [2, 4, 5, 6]
    assert imported.skipped[-1].reason.startswith("cut off while being written")


def test_bare_nan_is_read(tmp_path, import_events):
    path = tmp_path / "trainer_log.jsonl"
    path.write_text('{"current_steps": 5, "total_steps": 20, "loss": NaN, "lr": Infinity}\n')
    events, imported = import_events(path)
    assert (events.losses, events.of("train_step")[0].lr) == (["NaN"], "Infinity")
    assert imported.skipped == []


def test_tinker_s_metrics_have_rewards_groups_and_the_sampler_s_kl(tmp_path, import_events, write_lines):
    """The keys are those of tinker_cookbook's metrics.jsonl: no loss of the policy, and evaluations in the same row."""
    rows = [
        {
            "step": step,
            "progress/batch": step,
            "optim/lr": 4e-05,
            "env/all/reward/total": 0.5 + 0.01 * step,
            "env/all/ac_tokens_per_turn": 3725.0,
            "env/all/by_group/frac_mixed": 0.25,
            "optim/entropy": 0.46,
            "optim/kl_sample_train_v1": 0.0009,
            "optim/kl_sample_train_v2": 0.02,
            "time/total": 752.8,
        }
        for step in range(30)
    ]
    rows[0] |= {"test/env/all/reward/total": 0.61, "test/env/all/ac_tokens_per_turn": 3513.65}
    path = write_lines(tmp_path / "metrics.jsonl", rows)
    events, imported = import_events(path)
    assert imported.format == "table"
    assert events.of("train_step")[1].lr == 4e-5
    assert (events.of("eval")[0].split, events.of("eval")[0].metrics.extras["reward"]) == ("test", 0.61)
    found = {finding.id: finding.severity for finding in monitor_run(path).findings}
    assert found == {"SMP196": "warning", "ZVR123": "info"}  # and nothing of a loss that was not logged
