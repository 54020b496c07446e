"""What the rows and the summary show of a configuration that no file states."""

from __future__ import annotations

import argparse
import json
import pickle

import pytest
from tables import every

from gradience import check_config, diagnose, monitor_run
from gradience.configs.training import objective_of
from gradience.errors import ConfigError, RecorderError
from gradience.importers.trainer_state import read_state, samples_per_step
from gradience.verbs.check.view import check_text


@every(
    ("rate", "pace", "runtime", "steps", "epochs", "micro", "batch"),
    [
        (26.2, 3.275, None, None, None, None, 8),
        (104.8, 3.275, 100.0, 328, 1.0, 4, 32),
        (15.0, 1.0, 60.0, 60, 3.0, 5, 15),
        (7.692, 1.0, 13.0, 13, 1.0, 1, 8),  # 100 examples in 13 steps of 8, the last of 4: 8 alone is a power of two
        (237.629, 14.852, 6.7332, 100, None, 16, 16),
        # 1000 examples in batches of 32: 32 steps an epoch, the last of 8; over 3 epochs 31.25 sequences a step
        (300.0, 9.6, 10.0, 96, None, None, None),
        (300.0, 9.6, 10.0, 96, 3.0, None, 32),
        (300.0, 9.6, 10.0, 96, 96.0, None, None),  # one step an epoch: any batch would do
        (300.0, 9.6, 10.0, 96, 3.0, 5, None),
        (4.8, 0.05, None, None, None, None, 96),
        *((95.0, 10.0, None, 2, 1.0, *each) for each in ((19, None), (18, 18), (9, 18))),  # 9.5 a step: 10 to 18
        (0.004, 0.001, None, None, None, None, None),  # rounded away
        (0.0, 1.0, None, None, None, None, None),
        (8.0, None, None, 100, 1.0, None, None),
    ],
)
def test_the_batch_follows_from_samples_and_steps_per_second(rate, pace, runtime, steps, epochs, micro, batch):
    summary = {"train_samples_per_second": rate, "train_steps_per_second": pace, "train_runtime": runtime}
    assert samples_per_step(summary, steps=steps, epochs=epochs, micro_batch=micro) == batch


def summary(batch, steps):
    return {
        "step": steps, "epoch": 1.0, "total_flos": 1.0, "train_loss": 1.0, "train_runtime": 100.0,
        "train_samples_per_second": batch * steps / 100.0, "train_steps_per_second": steps / 100.0,
    }  # fmt: skip


def test_a_folder_without_arguments_shows_the_batch_of_the_summary_and_names_it(tmp_path, write_state, rows):
    write_state(tmp_path, [*rows(range(10, 201, 10)), summary(8, 200)], train_batch_size=1, max_steps=200)
    report = check_config(document=tmp_path)
    assert report.derived["effective_batch"] == 8.0
    assert "8 per step (by the log's summary; 1 per device)" in check_text(report)
    assert "(the largest logged; the configured rate may be higher)" in check_text(report)


def test_arguments_go_before_what_the_summary_shows(tmp_path, write_state, rows):
    write_state(tmp_path, [*rows(range(10, 201, 10)), summary(8, 200)], train_batch_size=1, max_steps=200)
    arguments = argparse.Namespace(
        learning_rate=5e-5, per_device_train_batch_size=1, gradient_accumulation_steps=8,
        distributed_state={"num_processes": 1},
    )  # fmt: skip
    (tmp_path / "training_args.bin").write_bytes(pickle.dumps(arguments))
    report = check_config(document=tmp_path)
    assert "1 x 8 accumulation x 1 processes = 8 per step" in check_text(report)
    assert "largest logged" not in check_text(report)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("rewards/margins", "preference"), ("odds_ratio_loss", "preference"), ("reward_std", "rl"), ("kl", "unknown")],
)
def test_the_objective_is_read_from_what_was_logged_and_sft_advice_is_not_given(
    tmp_path, write_state, rows, name, kind
):
    logged = [{**row, name: 0.5, "learning_rate": 2e-5} for row in rows(range(10, 401, 10))]
    write_state(tmp_path, logged, max_steps=400)
    report = check_config(document=tmp_path)
    assert objective_of(report.config).kind == kind
    assert "LR001" not in {item.id for item in report.findings}
    assert "1e-4 to 5e-4" not in " ".join(c.action or "" for c in diagnose(tmp_path).findings)


@pytest.mark.parametrize(
    ("architecture", "labels", "found"),
    [
        ("BertForSequenceClassification", 4, 4),
        ("LlamaForCausalLM", 4, None),
        ("BertForSequenceClassification", 1, None),
    ],
)
def test_classes_come_from_the_config_of_the_model_in_the_folder(
    tmp_path, write_state, rows, architecture, labels, found
):
    write_state(tmp_path, rows(range(10, 201, 10)))
    model = {"architectures": [architecture], "id2label": {str(n): f"L{n}" for n in range(labels)}}
    (tmp_path / "config.json").write_text(json.dumps(model))
    assert monitor_run(tmp_path).config.num_labels == found


def test_a_summary_given_as_a_path_is_answered_with_the_folder(tmp_path):
    path = tmp_path / "all_results.json"
    path.write_text(json.dumps({"train_loss": 1.0}, indent=2))
    with pytest.raises(RecorderError, match="is the summary of a run, without its rows") as caught:
        monitor_run(path)
    assert str(tmp_path) in caught.value.advice
    with pytest.raises(ConfigError, match="is the summary of a run"):
        check_config(document=path)


def test_accuracies_in_per_cent_are_fractions_throughout_the_run(tmp_path, write_state, rows):
    evals = [{"step": n, "eval_loss": 0.5, "eval_accuracy": a} for n, a in ((10, 0.9), (20, 93.45))]
    write_state(tmp_path, [*rows([10, 20]), *evals])
    report = monitor_run(tmp_path)
    assert report.evals[0].metrics.accuracy == pytest.approx(0.9345)
    assert "accuracies above 1 were taken for per cent" in report.notes


@pytest.mark.parametrize(("stated", "reached"), [(9, 9), (3, 3), (None, 5)])
def test_a_state_reached_the_step_that_it_states_else_that_of_its_last_row(stated, reached, tmp_path):
    path = tmp_path / "trainer_state.json"
    history = [{"step": 5, "loss": 1.0}, {"step": 2, "loss": 2.0}]
    path.write_text(json.dumps({"log_history": history, "max_steps": 20, "global_step": stated}))
    found = read_state(path)
    assert (found.furthest, found.reached, found.planned) == (reached, stated, 20)
