"""What is found in a folder: by name, one level deep, bounded, and never by opening a pickle or following a link."""

from __future__ import annotations

import os
import shutil
import sys

import numpy as np
import pytest
from audited import save_adapter
from tables import every

from gradience import GradienceError, TelemetryWriter, audit_adapter, diagnose
from gradience.cli.main import main
from gradience.folder import find, found as module

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def adapter():
    """A function that makes a folder that looks like an adapter's: nothing is opened to find it."""

    def make(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WEIGHTS).write_bytes(b"not opened")
        (folder / "adapter_config.json").write_text("{}")
        return folder

    return make


def record(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with TelemetryWriter(path) as log:
        log.run_start()
        for step in range(1, 31):
            log.train_step(step, loss=1.0 / step)
        log.run_end()
    return path


JOINED = ["log and adapter are in different subfolders (logs, peft) and taken as one run's"]


@every(
    ("adapters", "logs", "weights", "log", "notes"),
    [
        (["", "peft", "checkpoint-9", "checkpoint-10"], [], "", None, []),  # its own first
        (["checkpoint-10", "peft"], [], "peft", None, []),  # then the only one in a sub-folder
        (["checkpoint-9", "checkpoint-100"], [], "checkpoint-100", None, []),  # then the last by number
        (["peft"], ["logs"], "peft", "logs", JOINED),
        ([""], ["logs"], "", "logs", []),
        (["", "earlier"], ["earlier"], "", None, []),  # a whole run is not the log of the adapter above it
    ],
)
def test_which_adapter_and_which_log_a_folder_has(adapters, logs, weights, log, notes, tmp_path, adapter):
    for name in adapters:
        adapter(tmp_path / name)
    for name in logs:
        record(tmp_path / name / "run.jsonl")
    (tmp_path / "checkpoint-200").mkdir()  # killed before its weights were written
    found = find(tmp_path)
    assert (found.weights.path, found.log.path) == (tmp_path / weights, log and tmp_path / log)
    assert found.notes == notes
    steps = sorted(int(name.partition("-")[2]) for name in adapters if "-" in name)
    assert [one.step for one in found.checkpoints if one.step < 200] == steps
    assert ("last checkpoint" in found.weights.chosen) is bool(steps and weights)


def test_of_several_adapters_in_subfolders_none_is_guessed(tmp_path, adapter):
    record(tmp_path / "run.jsonl")
    adapter(tmp_path / "one")
    adapter(tmp_path / "two")
    found = find(tmp_path)
    assert found.weights.path is None
    assert "one, two" in found.weights.reason
    assert "--adapter" in found.weights.reason
    assert find(tmp_path, adapter=tmp_path / "two").weights.path == tmp_path / "two"


def test_a_config_without_its_weights_is_said(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "its weights are not" in find(tmp_path).weights.reason


def test_a_whole_model_is_not_taken_for_an_adapter(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert find(tmp_path).weights.path is None
    (tmp_path / "model.safetensors").rename(tmp_path / "style.safetensors")
    assert find(tmp_path).weights.path == tmp_path / "style.safetensors"


def test_links_to_folders_are_not_followed_and_are_said(tmp_path, adapter):
    adapter(tmp_path / "elsewhere")
    run = tmp_path / "run"
    record(run / "run.jsonl")
    (run / "checkpoint-5").symlink_to(tmp_path / "elsewhere")
    (run / "around").symlink_to(run)
    (run / "nowhere").symlink_to(tmp_path / "missing")
    found = find(run)
    assert (found.weights.path, found.checkpoints) == (None, [])
    assert found.notes == [
        "links to folders, not followed: around, checkpoint-5",
        "neither files nor folders, not read: nowhere",
    ]


def test_a_pipe_is_not_waited_for_and_is_said(tmp_path, adapter):
    adapter(tmp_path)
    os.mkfifo(tmp_path / "run.jsonl")
    (tmp_path / "trainer_state.json").symlink_to("nowhere")
    found = find(tmp_path)
    assert found.log.path is None
    assert found.notes == ["neither files nor folders, not read: run.jsonl, trainer_state.json"]


def test_a_folder_of_very_many_files_is_looked_at_up_to_a_bound_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", 10)
    for number in range(30):
        (tmp_path / f"{number}.txt").touch()
    assert any("more than 10 entries" in note for note in find(tmp_path).notes)


def test_a_folder_of_one_run_is_that_run_and_of_two_the_user_s_choice(tmp_path, adapter, capsys):
    record(tmp_path / "a" / "run.jsonl")
    adapter(tmp_path / "a" / "peft")
    found = find(tmp_path)
    assert (found.log.path, found.weights.path) == (tmp_path / "a" / "run.jsonl", tmp_path / "a" / "peft")
    assert "in a" in found.notes[0]
    record(tmp_path / "b" / "run.jsonl")
    with pytest.raises(GradienceError, match="2 folders in it do") as caught:
        find(tmp_path)
    assert str(tmp_path / "b") in caught.value.advice
    assert main(["diagnose", str(tmp_path)]) == 2
    asked = capsys.readouterr()
    assert [line.split()[0] for line in asked.out.splitlines()[:3]] == ["run", "a", "b"]  # the table to choose from
    assert f"{tmp_path} holds no run itself, and 2 folders in it do (a, b)" in asked.err
    assert main(["diagnose", str(tmp_path), "--json"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["missing", "n" * 300, "nul\0"])
def test_a_path_that_does_not_exist_is_an_error_that_names_it(tmp_path, name):
    with pytest.raises(GradienceError, match="no such file or folder"):
        diagnose(tmp_path / name)


def test_nothing_given_is_an_error():
    with pytest.raises(GradienceError, match="nothing to diagnose"):
        diagnose()


def test_a_file_is_the_one_source_that_its_name_says(tmp_path):
    log = record(tmp_path / "run.jsonl")
    found = find(log)
    assert (found.path, found.log.path, found.weights.path, found.folder) == (log, log, None, tmp_path)
    config, _, weights = diagnose(log).sources
    none = "no adapter_config.json, training arguments or run_start"  # the log's own states no setting
    assert (config.state, config.reason) == ("absent", none)
    assert (weights.state, weights.reason) == ("absent", "no adapter in the folder")


def test_a_log_by_a_name_of_its_own_is_of_the_adapter_beside_it(tmp_path, adapter):
    log = record(tmp_path / "mine.jsonl")
    assert (find(log).weights.path, find(log).folder) == (None, None)
    adapter(tmp_path)
    found = find(log)
    assert (found.weights.path, found.weights.chosen, found.folder) == (tmp_path, "beside the log", tmp_path)


_OPENED: list[str] = []


@pytest.fixture
def opened():
    """The names of files opened from here on; the hook itself stays, for Python cannot remove one."""
    if not _OPENED:
        _OPENED.append("")
        sys.addaudithook(lambda event, given: _OPENED.append(str(given[0])) if event == "open" else None)
    _OPENED[:] = [""]
    return _OPENED


def test_the_pickle_of_training_arguments_is_the_configuration_and_that_of_the_schedule_stays_shut(trained, opened):
    folder = trained("masked_nan")
    report = diagnose(folder)
    assert report.check is not None
    assert report.check.config.optimizer.lr == 1e-3
    assert ("training", str(folder / "training_args.bin")) in [(s.role, s.path) for s in report.check.sources]
    assert any(name.endswith("adapter_config.json") for name in opened)
    assert [name for name in opened if os.path.basename(name) in {"scheduler.pt", "rng_state.pth"}] == []  # noqa: PTH119


def poisoned(name: str, value: float, also: tuple[str, ...] = ()):
    """A change of the optimizer's state: one number of one average of one parameter."""

    def change(run, state) -> None:
        for each in (name, *also):
            state["state"][3][each].flatten()[1] = value

    return change


def earlier(run, state) -> None:
    state.update(pytest.importorskip("torch").load(run / "checkpoint-50" / "optimizer.pt", weights_only=True))


def further(run, state) -> None:
    for one in [*state["state"].values()][1:]:  # the first parameter came later: the most steps count
        one["step"] += 7


BROKEN = "optimizer.pt holds NaN or infinity in 1 of 56 averages, named {}, and the weights are finite: "
ADDED = BROKEN.format("exp_avg") + "a resume adds them to the weights with its first step."
DIVIDING = BROKEN.format("exp_avg_sq")
DIVIDING += "after a resume the entries that they divide stay as they are, or become NaN."
FEWER = "optimizer.pt is at step 50 by its own count, and its folder at step 100: the others changed no weight "
FEWER += "(skipped in fp16), or a resume began with a new optimizer."
MORE = "optimizer.pt is at step 107 by its own count, and its folder at step 100: it is the state of another "
MORE += "checkpoint or run, or the count of the run began again."


@every(
    ("change", "rule", "severity", "said"),
    [
        (lambda run, state: None, None, None, ""),
        (poisoned("exp_avg", float("nan"), ("exp_avg_sq",)), "TRN425", "error", f"{ADDED} | {DIVIDING}"),
        (poisoned("exp_avg_sq", float("inf")), "TRN425", "error", DIVIDING),
        (earlier, "TRN426", "info", FEWER),
        (further, "TRN426", "warning", MORE),
    ],
)
def test_the_state_that_a_trainer_saved_beside_the_weights_is_judged(trained, change, rule, severity, said, tmp_path):
    torch = pytest.importorskip("torch")
    run = shutil.copytree(trained("healthy"), tmp_path / "run")
    place = run / "checkpoint-100" / "optimizer.pt"
    state = torch.load(place, weights_only=True)
    change(run, state)
    torch.save(state, place)
    found = [item for item in audit_adapter(place.parent).findings if item.id in {"TRN425", "TRN426"}]
    assert {item.id for item in found} == ({rule} if rule else set())
    assert {item.severity for item in found} == ({severity} if rule else set())
    assert " | ".join(item.message for item in found) == said


@every(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "it is a git-lfs pointer ('git lfs pull' fetches it)"),
        (b"", "BadZipFile: File is not a zip file"),
    ],
)
def test_a_state_that_cannot_be_read_is_a_rule_that_was_not_judged(content, said, tmp_path):
    save_adapter(tmp_path, [(np.ones((5, 2)), np.ones((2, 6)))])
    (tmp_path / "optimizer.pt").write_bytes(content)
    skipped = {item.id: item.reason for item in audit_adapter(tmp_path).not_run}
    assert skipped["TRN425"] == f"{tmp_path / 'optimizer.pt'}: not read: {said}"


def test_a_pickle_with_a_class_of_the_users_own_is_left_out_and_named(trained, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(trained("healthy"), copy)
    (copy / "training_args.bin").write_bytes(b"cmine\nArguments\n)\x81.")
    report = diagnose(copy)
    config = report.sources[0]
    assert (config.source, config.state) == ("config", "read")
    assert config.chosen == (
        "training_args.bin was not used: not read: "
        "a pickle that names mine.Arguments, which is none of the classes known here"
    )


def test_nothing_is_written_into_the_folder(trained, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(trained("overfit"), copy)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    diagnose(copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
