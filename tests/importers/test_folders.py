"""What a run leaves in its folder: several files that tell one story, or several stories."""

from __future__ import annotations

import argparse
import json
import pickle
import shutil

import pytest
from tables import every

from gradience.errors import RecorderError

ADAPTER = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": "/home/me/models/tiny"}
SUMMARY = {"train_runtime": 9.0, "train_loss": 1.0, "total_flos": 1e9}


def test_a_stale_root_is_completed_from_the_last_checkpoint(tmp_path, import_events, write_state, rows):
    write_state(tmp_path, rows(range(10, 61, 10)), max_steps=60)
    write_state(tmp_path / "checkpoint-100", rows(range(10, 101, 10)), max_steps=100)
    events, imported = import_events(tmp_path)
    assert events.steps == list(range(10, 101, 10))
    assert events.start.config.training.max_steps == 100
    assert "4 rows come from checkpoint-100/trainer_state.json: trainer_state.json lacks them" in imported.notes


def test_a_summary_in_the_middle_is_no_end(tmp_path, import_events, write_state, rows):
    early = [*rows([10, 20]), {"step": 20, **SUMMARY}, *rows([30, 40])]
    events, _ = import_events(write_state(tmp_path, early))
    assert events.end.status == "unknown"


def test_three_runs_in_one_folder_are_three_runs_and_named(tmp_path, import_events, write_state, rows):
    write_state(tmp_path, rows([10, 20]))
    write_state(tmp_path / "checkpoint-50", rows(range(10, 51, 10), scale=2.0))
    write_state(tmp_path / "checkpoint-90", rows(range(10, 91, 10), scale=3.0))
    events, imported = import_events(tmp_path)
    assert [len(list(run.events)) for run in imported.runs] == [7, 11, 4]
    assert events.losses == [1 / 10, 1 / 20]
    assert any("3 runs in one folder" in note for note in imported.notes)
    assert len({run.run_id for run in imported.runs}) == 3


@pytest.mark.parametrize("step", [5, 30])
def test_a_state_without_training_rows_is_of_the_same_run(step, tmp_path, import_events, write_state, rows):
    """The first checkpoint may come before the first logged row; nothing in it speaks for another run."""
    write_state(tmp_path / f"checkpoint-{step}", [{"step": step, "epoch": 0.5, "eval_loss": 2.5}])
    write_state(tmp_path / "checkpoint-20", rows([10, 20]))
    events, imported = import_events(tmp_path)
    assert (len(imported.runs), events.losses) == (1, [1 / 10, 1 / 20])
    assert [(e.step, e.metrics.loss) for e in events.of("eval")] == [(step, 2.5)]


def test_a_row_without_a_step_stands_before_all_steps_when_states_are_joined(
    tmp_path, import_events, write_state, rows
):
    """Behind the last step it would be taken for an evaluation at the end."""
    write_state(tmp_path / "checkpoint-20", [*rows([10, 20]), {"eval_loss": 2.5}])
    write_state(tmp_path / "checkpoint-10", [*rows([10]), {"step": 10, "eval_loss": 1.5}])
    events, _ = import_events(tmp_path)
    assert [(e.step, e.metrics.loss) for e in events.of("eval")] == [(None, 2.5), (10, 1.5)]


def test_a_folder_of_runs_shows_the_last_by_number_and_one_can_be_chosen(tmp_path, import_events, write_state, rows):
    for name in ("v9", "v10", "v1"):
        write_state(tmp_path / "model" / name / "checkpoint-20", rows([10, 20], scale=int(name[1:])))
    events, imported = import_events(tmp_path)
    assert [run.name for run in imported.runs] == ["model/v1", "model/v9", "model/v10"]
    assert events.losses[0] == 1.0
    assert "3 runs: model/v1, model/v9, model/v10; model/v10 is shown; --run NAME chooses" in imported.notes
    chosen, _ = import_events(tmp_path, run="model/v9")
    assert chosen.losses[0] == 0.9
    with pytest.raises(RecorderError, match="no run is called"):
        import_events(tmp_path, run="v11")


def test_runs_beside_the_folders_own_are_named_and_not_read(tmp_path, import_events, write_state, rows):
    write_state(tmp_path, rows([10, 20]))
    write_state(tmp_path / "earlier", rows([10, 20], scale=2.0))
    _, imported = import_events(tmp_path)
    assert "runs in subfolders, not read: earlier" in imported.notes
    assert len(imported.runs) == 1


def test_the_state_is_read_before_the_log_of_lines_for_its_grad_norm(
    tmp_path, import_events, write_state, write_lines, rows
):
    write_state(tmp_path, rows([10, 20]))
    lines = [{"current_steps": s, "total_steps": 100, "loss": round(1 / s, 4)} for s in (10, 20)]
    write_lines(tmp_path / "trainer_log.jsonl", lines)
    events, imported = import_events(tmp_path)
    assert events.of("train_step")[0].grad_norm == 1.0
    assert "read trainer_state.json (it has grad_norm); also there and not read: trainer_log.jsonl" in imported.notes


def test_what_a_log_has_beyond_the_last_checkpoint_is_added(tmp_path, import_events, write_state, write_lines, rows):
    write_state(tmp_path / "checkpoint-20", rows([10, 20]))
    lines = [{"current_steps": s, "total_steps": 100, "loss": round(1 / s, 4)} for s in (10, 20, 30, 40)]
    path = write_lines(tmp_path / "trainer_log.jsonl", lines)
    events, imported = import_events(tmp_path)
    assert events.steps == [10, 20, 30, 40]
    assert any(note.startswith("2 rows beyond step 20 come from trainer_log.jsonl") for note in imported.notes)
    write_lines(path, [{**line, "loss": 3.0} for line in lines])
    events, imported = import_events(tmp_path)
    assert events.steps == [10, 20]
    assert any("of another run" in note for note in imported.notes)


def test_saved_results_add_the_summary_and_the_number_of_examples(tmp_path, import_events, write_state, rows):
    evaluation = {"step": 20, "eval_loss": 1.5, "eval_runtime": 2.0}
    write_state(tmp_path / "checkpoint-20", [*rows([10, 20]), evaluation])
    results = {"eval_loss": 1.5, "eval_runtime": 2.0, "eval_samples": 277, "train_loss": 1.0, "train_runtime": 9.0}
    (tmp_path / "all_results.json").write_text(json.dumps(results))
    events, imported = import_events(tmp_path)
    assert [e.metrics.n for e in events.of("eval")] == [277]
    assert [(e.kind, e.step) for e in events.of("metrics")] == [("train_summary", None)]
    assert events.end.status == "ok"
    assert any(note.startswith("all_results.json adds") for note in imported.notes)


def test_configs_come_from_the_folder_or_the_checkpoint(tmp_path, import_events, write_state, rows):
    write_state(tmp_path / "checkpoint-20", rows([10, 20]), num_train_epochs=3, train_batch_size=4)
    (tmp_path / "checkpoint-20" / "adapter_config.json").write_text(json.dumps(ADAPTER))
    arguments = {"learning_rate": 5e-4, "seed": 7, "hub_token": "hf_" + "a" * 34}
    (tmp_path / "training_args.json").write_text(json.dumps(arguments))
    events, imported = import_events(tmp_path)
    config = events.start.config
    assert (config.lora.r, config.lora.alpha_over_r, config.model_name) == (8, 2.0, "tiny")
    assert (config.optimizer.lr, config.optimizer.extras) == (5e-4, {})
    assert (config.training.seed, config.training.epochs, config.training.batch_size) == (7, 3.0, 4)
    assert "not copied, for they hold a secret: hub_token" in imported.notes


def test_a_pickle_with_a_call_in_it_is_a_note_and_is_not_run(tmp_path, import_events, write_state, rows):
    write_state(tmp_path, rows([10, 20]))
    (tmp_path / "training_args.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    _, imported = import_events(tmp_path)
    assert any("training_args.bin was not used: not read: a pickle that names os.system" in n for n in imported.notes)


def test_the_pickle_of_the_arguments_is_the_configuration_where_there_is_no_json(
    tmp_path, import_events, write_state, rows
):
    write_state(tmp_path, rows([10, 20]))
    arguments = argparse.Namespace(learning_rate=5e-4, seed=7, hub_token="hf_" + "a" * 34)
    (tmp_path / "training_args.bin").write_bytes(pickle.dumps(arguments))
    events, imported = import_events(tmp_path)
    assert (events.start.config.optimizer.lr, events.start.config.training.seed) == (5e-4, 7)
    assert "not copied, for they hold a secret: hub_token" in imported.notes


def test_one_unreadable_checkpoint_does_not_hide_the_others(tmp_path, import_events, write_state, rows):
    write_state(tmp_path / "checkpoint-10", rows([10]))
    path = write_state(tmp_path / "checkpoint-20", rows([10, 20]))
    path.write_bytes(path.read_bytes()[:-40])
    events, imported = import_events(tmp_path)
    assert events.steps == [10]
    assert any(note.startswith("not used: ") and "checkpoint-20" in note for note in imported.notes)


def test_a_state_names_no_clock_and_the_log_says_where_it_comes_from(tmp_path, import_events, write_state, rows):
    events, _ = import_events(write_state(tmp_path / "my-run", rows([10, 20])).parent)
    assert {event.ts for event in events} == {None}
    assert events.start.meta["imported_from"] == "my-run"
    assert len(events.start.meta["source_sha256"]) == 64
    assert events.start.meta["importer"].startswith("gradience ")
    assert str(tmp_path) not in str(events.start.meta)


def test_rows_that_are_none_are_counted_by_number(tmp_path, import_events, write_state, rows):
    history = [*rows([10]), 5, {"step": -1, "loss": 1.0}, {"step": 20, "epoch": 1.0}, {"step": 30, "loss": "lost"}]
    events, imported = import_events(write_state(tmp_path, history))
    assert [bad.line for bad in imported.skipped] == [2, 3, 4]
    assert events.of("train_step")[1].extras == {"loss_": "lost"}


def test_a_symlink_out_of_the_folder_is_not_followed(tmp_path, import_events, write_state, rows):
    write_state(tmp_path / "far" / "run", rows([10, 20]))
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far" / "run")
    with pytest.raises(RecorderError, match=r"no run\.jsonl"):
        import_events(tmp_path / "near")
    shutil.rmtree(tmp_path / "near")


def test_three_logs_in_one_folder_are_three_runs(tmp_path, import_events, write_lines):
    for n in (1, 2, 10):
        lines = [{"current_steps": s, "total_steps": 20, "loss": n / s} for s in (10, 20)]
        write_lines(tmp_path / f"run-{n}.jsonl", lines)
    events, imported = import_events(tmp_path)
    assert [run.name for run in imported.runs] == ["run-1.jsonl", "run-2.jsonl", "run-10.jsonl"]
    assert events.losses == [1.0, 0.5]
    assert any(note.startswith("3 runs: ") for note in imported.notes)


def test_states_under_other_names_are_runs_too_and_beside_a_real_one_they_are_named(
    tmp_path, import_events, write_state, rows
):
    path = write_state(tmp_path, rows([10, 20]))
    path.rename(tmp_path / "old-state.json")
    assert import_events(tmp_path)[0].steps == [10, 20]
    write_state(tmp_path, rows([10, 20, 30]))
    _, imported = import_events(tmp_path)
    assert any(note.endswith("also there and not read: old-state.json") for note in imported.notes)


def test_a_log_with_a_crashed_try_in_it_is_still_the_run_of_its_checkpoints(
    tmp_path, import_events, write_state, write_lines, rows
):
    write_state(tmp_path / "checkpoint-40", rows([10, 20, 30, 40]))
    tries = [(10, 0.1), (20, 0.05), (30, 0.9), (20, 0.05), (30, 1 / 30), (40, 0.025), (50, 0.02)]
    lines = [{"current_steps": s, "total_steps": 100, "loss": loss} for s, loss in tries]
    write_lines(tmp_path / "trainer_log.jsonl", lines)
    events, _ = import_events(tmp_path)
    assert events.steps == [10, 20, 30, 40, 50]


@every(
    ("state", "silence"),
    [
        ({"global_step": 3, "max_steps": 3, "logging_steps": 25}, ": logging_steps is 25, and 3 steps were made"),
        ({"global_step": 1, "max_steps": 1, "logging_steps": 25}, ": logging_steps is 25, and 1 step was made"),
        ({"global_step": 25, "max_steps": 25, "logging_steps": 25}, ""),
        ({"global_step": 3, "max_steps": 3, "logging_steps": 0.5}, ""),  # a share of the steps
        ({"global_step": 3, "max_steps": 3}, ""),
    ],
)
def test_a_run_without_a_training_row_says_why(tmp_path, import_events, state, silence):
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({**state, "log_history": [{"step": 1, "eval_loss": 0.5}]}))
    events, _ = import_events(path)
    assert (events.end.status, events.end.reason) == (
        "ok",
        f"the planned steps were made; no training row was logged{silence}",
    )
