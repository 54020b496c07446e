"""Whose a checkpoint is, on disk: its own history decides and not its number, and what is advised can be opened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tables import every
from written_runs import Rows, write_adapter, write_run, write_state

from gradience import diagnose
from gradience.folder import Documents, find
from gradience.folder.found import CheckpointFolder
from gradience.verbs.diagnose.checkpoints import unreadable
from gradience.verbs.diagnose.sources import read_sources


def rows(steps: int, *, train: float = 2.0, best: int = 20, every_: int = 10) -> Rows:
    """A training loss that falls, and a held-out loss that is lowest at `best` and rises after it."""
    found: Rows = []
    for step in range(1, steps + 1):
        found.append({"step": step, "epoch": step / 20, "loss": train - 0.01 * step, "learning_rate": 1e-3})
        if step % every_ == 0:
            found.append({"step": step, "epoch": step / 20, "eval_loss": 1.0 + 0.02 * abs(step - best)})
    return found


def kept(folder: Path) -> tuple[str | None, str | None]:
    """The best checkpoint of a folder, and the advice for a run that overfits."""
    report = diagnose(folder)
    (cause,) = [cause for cause in report.findings if cause.id == "OVF304"]
    return (report.best_checkpoint.name if report.best_checkpoint else None, cause.action)


def test_a_checkpoint_of_the_run_with_the_best_loss_is_kept(tmp_path):
    assert kept(write_run(tmp_path, rows(100), [20, 60, 100], 100)) == ("checkpoint-20", "Keep checkpoint-20.")


def test_a_checkpoint_of_another_run_is_never_advised_by_its_number(tmp_path):
    """The other run's checkpoint-20 stands where this run's best one would."""
    write_run(tmp_path, rows(100), [60, 100], 100)
    write_run(tmp_path, rows(30, train=3.0), [20], 30)
    best, action = kept(tmp_path)
    assert best == "checkpoint-60"  # the best on disk, and far above the lowest
    assert "Keep" not in str(action)
    report = diagnose(tmp_path)
    assert [(c.name, c.of_run) for c in report.checkpoints] == [
        ("checkpoint-20", False),
        ("checkpoint-60", True),
        ("checkpoint-100", True),
    ]
    assert "2 runs here, and that of checkpoint-100 is judged, not that of checkpoint-20" in report.headline


def test_the_weights_are_those_of_the_run_that_is_judged(tmp_path):
    """The newest checkpoint by its number is another run's."""
    write_run(tmp_path, rows(100), [60, 100], 100)
    write_run(tmp_path, rows(30, train=3.0), [30], 900)
    (tmp_path / "checkpoint-30").rename(tmp_path / "checkpoint-800")
    state = tmp_path / "checkpoint-800" / "trainer_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "global_step": 800}))
    write_state(tmp_path, rows(100), 100, 100)  # the folder's own log is the first run's
    read = read_sources(Documents(find(tmp_path)), None, None, 1.5)
    assert read.documents.weights.path == tmp_path / "checkpoint-100"
    assert read.documents.weights.chosen == "checkpoint-100 is the last of the log's run; checkpoint-800 is of another"
    shutil.rmtree(tmp_path / "checkpoint-100")
    shutil.rmtree(tmp_path / "checkpoint-60")
    none = read_sources(Documents(find(tmp_path)), None, None, 1.5)
    assert (none.documents.weights.path, none.audit) == (None, None)
    assert none.documents.weights.reason == "checkpoint-800 is of another run than the log"


def test_a_truncated_checkpoint_is_not_advised(tmp_path):
    write_run(tmp_path, rows(100), [20, 30, 100], 100)
    file = tmp_path / "checkpoint-20" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    best, action = kept(tmp_path)
    assert best == "checkpoint-30"
    assert "checkpoint-20" not in str(action)
    report = diagnose(tmp_path)
    assert ["is truncated" in c.fault for c in report.checkpoints] == [True, False, False]


@every(
    ("step", "state", "of_run", "why"),
    [
        (20, None, None, "it has no trainer_state.json"),
        (20, "{", None, "its trainer_state.json cannot be read"),
        (20, {"global_step": 20}, True, "its history is the log's"),
        (20, {"global_step": 10}, None, "its trainer_state.json is of step 10"),
        (20, {"global_step": 20, "train": 2.5}, False, "its history has other losses at the same steps"),
        (20, {"global_step": 20, "max_steps": 900, "log_history": []}, False,
         "its run planned 900 steps, the log's 100"),
        (20, {"global_step": 20, "log_history": []}, None, "its history shares no step with the log"),
        (20, {"global_step": 20, "log_history": [{"step": 10, "eval_loss": 1.2}]}, True, "its history is the log's"),
        (20, {"global_step": 20, "log_history": [{"step": 10, "eval_loss": 1.3}]}, False,
         "its history has other losses at the same steps"),
    ],
)  # fmt: skip
def test_the_history_decides_whose_a_checkpoint_is(tmp_path, step, state, of_run, why):
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    folder = write_run(tmp_path / "run", rows(100), [100], 100)
    write_state(folder, rows(100), 100, 100)
    write_adapter(folder / f"checkpoint-{step}")
    place = folder / f"checkpoint-{step}" / "trainer_state.json"
    if isinstance(state, str):
        place.write_text(state)
    elif state is not None:
        own = rows(step, train=state.pop("train", 2.0))
        place.write_text(json.dumps({"max_steps": 100, "log_history": own, **state}))
    (found,) = [c for c in diagnose(folder).checkpoints if c.step == step]
    assert (found.of_run, found.why) == (of_run, why)


def test_a_log_and_a_logger_s_copy_of_it_are_one_run(tmp_path):
    """A trainer's output folder and the folder of a logger beside it."""
    write_run(tmp_path / "output", rows(60), [60], 60)
    lines = [f"{row['step']},{row['loss']},1e-3" for row in rows(60) if "loss" in row]
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "history.csv").write_text("\n".join(["step,loss,learning_rate", *lines]))
    report = diagnose(tmp_path)
    assert report.sources[1].path == str(tmp_path / "output")
    assert report.notes[1] == "wandb is a log of the same run as output, which is read"


@every(
    ("files", "fault"),
    [
        ({}, "it holds no weights"),
        ({"model.safetensors": b"\x08\0\0\0\0\0\0\0{}      "}, ""),
        (
            {"model.safetensors": b"\x08\0\0\0\0\0\0\0{}"},
            "model.safetensors is truncated: 16 bytes expected by its header, 10 found",
        ),
        ({"pytorch_model.bin": b"PK\x03\x04 cut"}, "pytorch_model.bin is no file that torch wrote whole"),
    ],
)
def test_weights_of_a_whole_model_are_opened_as_far_as_their_header(tmp_path, files, fault):
    folder = tmp_path / f"checkpoint-{len(fault)}"
    folder.mkdir(exist_ok=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    assert unreadable(folder) == fault
    assert CheckpointFolder(1, folder).has_weights is bool(files)


def test_a_damaged_adapter_is_a_cause_and_a_pointer_is_weights_that_are_not_there(tmp_path):
    folder = write_run(tmp_path, rows(60, best=60), [], 60)
    write_state(folder, rows(60, best=60), 60, 60)
    write_adapter(folder)
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    report = diagnose(folder)
    assert (report.verdict, report.complete) == ("broken", False)
    (cause,) = [cause for cause in report.findings if cause.id == "FIL319"]
    assert "is truncated" in cause.message
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    report = diagnose(folder)
    assert (report.verdict, report.complete) == ("worth_a_look", True)
    assert report.sources[2].state == "absent"
    assert "'git lfs pull' fetches the weights" in report.sources[2].reason
    for name in ("trainer_state.json", "run.jsonl"):
        (folder / name).unlink(missing_ok=True)
    assert diagnose(folder).verdict == "could_not_judge"  # of settings alone


def test_a_target_that_adapted_nothing_is_found_in_a_folder_by_its_own_config(tmp_path):
    write_adapter(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "V"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (cause,) = [cause for cause in diagnose(tmp_path).findings if cause.id == "TGT307"]
    assert cause.severity == "warning"
    assert cause.message == "target_modules names V, and no module of that name was adapted: only q_proj."


@pytest.mark.parametrize("weights", [True, False])
def test_a_target_that_the_family_lacks_is_found_without_weights(tmp_path, weights):
    write_adapter(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config |= {"target_modules": ["q_proj", "query_key_value"], "base_model_name_or_path": "microsoft/phi-2"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    if not weights:
        (tmp_path / "adapter_model.safetensors").unlink()
    ids = {piece.id for cause in diagnose(tmp_path).findings for piece in cause.pieces}
    assert "TGT006" in ids


def test_a_run_whose_log_has_no_row_says_why(tmp_path):
    """logging_steps was more than the steps: the Trainer wrote its state without a row."""
    state = {"global_step": 6, "max_steps": 6, "logging_steps": 50, "log_history": []}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    report = diagnose(tmp_path)
    assert report.sources[1].holds == "0 rows, 0 evaluations, status ok"
    (cause,) = [cause for cause in report.findings if cause.joined]
    assert cause.message == "The log holds 0 training rows: logging_steps is 50, and the run had 6."
    assert (cause.severity, cause.action) == ("info", "Set logging_steps to 1 next time.")
    assert report.verdict == "worth_a_look"


def test_a_checkpoint_before_a_loss_rounded_to_zero_is_not_gone_back_to(tmp_path):
    """A loss of 0.0 after one of 5e-4 is a small loss and no NaN."""
    history = [{"step": n, "loss": 2.0 * 0.9**n, "grad_norm": 1.0, "learning_rate": 1e-3} for n in range(1, 81)]
    history += [{"step": n, "loss": 0.0, "grad_norm": 0.5, "learning_rate": 1e-3} for n in range(81, 90)]
    write_run(tmp_path, history, [40, 80], 89)
    write_state(tmp_path, history, 89, 89)
    write_adapter(tmp_path, seed=80)
    ids = {cause.id for cause in diagnose(tmp_path).findings}
    assert "NUM301" not in ids
