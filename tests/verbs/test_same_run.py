"""Every verb finds the same runs in a place, takes their names from every other verb, and reads the same of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradience import GradienceError, TelemetryWriter, diagnose, importers
from gradience.cli.main import main
from gradience.configs.settings import Layer
from gradience.folder import find
from gradience.folder.runs import names_of_runs, runs_in
from gradience.verbs.check.run import CheckOptions
from gradience.verbs.monitor.run import monitor_run
from gradience.verbs.report.options import ReportOptions
from gradience.verbs.report.run import build_story
from gradience.verbs.runs.collect import find_runs, run_job
from gradience.verbs.runs.rows import read_rows
from gradience.verbs.why.traces import traces_of

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def ours(path: Path, *runs: str, rows: int = 9) -> None:
    """A log of our own, with runs of these ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for run in runs:
        with TelemetryWriter(path, run_id=run) as log:
            log.run_start(config={"optimizer": {"lr": 1e-3}})
            for step in range(1, rows + 1):
                log.train_step(step, loss=len(run) / step)


def trained(folder: Path, *, at: int = 90, scale: float = 1.0) -> None:
    """What the Trainer leaves in its output folder, with a checkpoint."""
    for place in (folder, folder / f"checkpoint-{at}"):
        place.mkdir(parents=True, exist_ok=True)
        history = [{"step": step, "epoch": step / at, "loss": scale / step} for step in range(10, at + 1, 10)]
        state = {"global_step": at, "max_steps": at, "log_history": history}
        (place / "trainer_state.json").write_text(json.dumps(state))
    (folder / "all_results.json").write_text(json.dumps({"train_runtime": 9.0, "train_loss": 0.5, "eval_loss": 0.25}))


def watched(folder: Path, *, at: int = 90, scale: float = 1.0) -> None:
    """A table of the same run, as a logger leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{step},{scale / step}\n" for step in range(10, at + 1, 10))
    (folder / "metrics.csv").write_text(f"step,loss\n{rows}")


def wandb(folder: Path, step: int) -> None:
    files = folder / "files"
    files.mkdir(parents=True)
    (files / "wandb-summary.json").write_text(json.dumps({"train/loss": 1 / step, "train/global_step": step}))


def one_of_ours(place: Path) -> None:
    ours(place / "run.jsonl", "first", "second")


def folders_of_ours(place: Path) -> None:
    for name in ("seed-1", "seed-22"):
        ours(place / "deep" / name / "run.jsonl", name)


def files_of_ours(place: Path) -> None:
    for name in ("a", "bcd"):
        ours(place / f"{name}.jsonl", name)


def ours_deeper(place: Path) -> None:
    ours(place / "one" / "two" / "run.jsonl", "alone")


def with_its_logger(place: Path) -> None:
    trained(place / "output")
    watched(place / "lightning_logs" / "version_0")


def three_trained(place: Path) -> None:
    for number in (1, 2, 3):
        trained(place / f"lr-{number}", scale=number)


def watched_by_wandb(place: Path) -> None:
    for number in (1, 2):
        wandb(place / "wandb" / f"run-20260101_00000{number}-abc{number}", 10 * number)
    wandb(place / "wandb" / "latest-run", 20)


def mixed(place: Path) -> None:
    trained(place / "peft")
    ours(place / "toy" / "run.jsonl", "toy")


PLACES = {  # number of runs, and the names by which --run takes them
    one_of_ours: (1, ["first", "second"]),
    folders_of_ours: (2, ["seed-1", "seed-22", "deep/seed-1", "..ed-22"]),
    files_of_ours: (2, ["a", "bcd", "a.jsonl"]),
    ours_deeper: (1, ["one/two", "alone"]),
    with_its_logger: (1, ["output"]),
    three_trained: (3, ["lr-1", "lr-2", "..r-3"]),
    watched_by_wandb: (2, ["wandb/run-20260101_000001-abc1", "abc2"]),
    mixed: (2, ["peft", "toy"]),
}


def read_by(verb: str, place: Path, run: str | None) -> tuple[str, list[int]]:
    """The id of the run that a verb reads, and the steps that it reads of it."""
    if verb == "why":
        trace, _ = traces_of(place, place, () if run is None else (run, run))
        return "", list(trace.rows)
    if verb == "report":
        story = build_story(find(place, run=run), ReportOptions())
        shown = story.diagnosis.monitor
    else:
        shown = monitor_run(place, run=run) if verb == "monitor" else diagnose(place, run=run).monitor
    assert shown is not None
    return shown.run_id, [shown.train.rows, shown.train.last_step, *(point.step for point in shown.evals)]


@pytest.mark.parametrize("make", PLACES, ids=lambda make: make.__name__)
def test_every_verb_finds_the_same_runs_and_takes_their_names(tmp_path, make):
    make(tmp_path)
    count, names = PLACES[make]
    shown = read_rows(tmp_path) if len(runs_in(tmp_path)) > 1 else []
    assert (len(shown) or 1) == count
    if make is not with_its_logger:  # `runs` lists logs: it does not read them to see which are copies
        assert len(list(find_runs([tmp_path]))) == count
    names = [*names, *names_of_runs([(str(row.path), str(row.run)) for row in shown])]
    read = {}
    for name in names:
        by_verb = {verb: read_by(verb, tmp_path, name) for verb in ("monitor", "diagnose", "report")}
        assert len(set(map(str, by_verb.values()))) == 1, by_verb
        read[name] = by_verb["monitor"]
        assert len(read_by("why", tmp_path, name)[1]) == read[name][1][0]
    assert len({run for run, _ in read.values()}) == max(count, len(names) if make is one_of_ours else count)
    if count == 1:
        shown = read_by("monitor", tmp_path, None)
        assert shown == read[names[-1]] == read_by("diagnose", tmp_path, None) == read_by("report", tmp_path, None)
        assert CheckOptions(document=tmp_path).read() != Layer()
    else:
        with pytest.raises(GradienceError, match="no run is called 'none'"):
            monitor_run(tmp_path, run="none")
        with pytest.raises(GradienceError, match="no run is called 'none'"):
            diagnose(tmp_path, run="none")


def test_a_name_that_several_runs_have_is_refused_with_their_paths(tmp_path):
    for name in ("a", "b"):
        trained(tmp_path / name / "output", scale=len(name) + ord(name))
    with pytest.raises(GradienceError, match="several runs are called 'output'") as caught:
        monitor_run(tmp_path, run="output")
    assert str(tmp_path / "b" / "output") in caught.value.advice


def test_a_file_is_read_with_what_its_run_wrote_beside_it(tmp_path):
    trained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16}))
    of_file, of_folder = (monitor_run(place) for place in (tmp_path / "trainer_state.json", tmp_path))
    assert (of_file.status, of_file.status_reason) == ("ok", "the source has the summary of a finished run")
    assert [point.metrics.loss for point in of_file.evals] == [0.25]
    for name in ("status", "status_reason", "evals", "train", "config", "run_id"):
        assert getattr(of_file, name) == getattr(of_folder, name)
    of_file, of_folder = (diagnose(place) for place in (tmp_path / "trainer_state.json", tmp_path))
    assert [(source.source, source.state) for source in of_file.sources] == [
        (source.source, source.state) for source in of_folder.sources
    ]
    assert (of_file.verdict, of_file.check.config.lora.r) == (of_folder.verdict, 8)


POINTERS = {
    "run.jsonl": "run.jsonl",
    "checkpoint-5/trainer_state.json": "checkpoint-5",
    "events.out.tfevents.1.host.1.0": "events.out.tfevents.1.host.1.0",
    "run-abc.wandb": "run-abc.wandb",
    "metrics.csv": "metrics.csv",
    "mlflow.db": "mlflow.db",
}


@pytest.mark.parametrize("name", POINTERS)
def test_a_git_lfs_pointer_could_not_be_judged_and_is_no_damaged_run(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(LFS)
    for place in (path, tmp_path):
        said = []
        for verb in (monitor_run, lambda it: traces_of(it, it)):
            with pytest.raises(GradienceError) as caught:
                verb(place)
            said.append(f"{caught.value} {caught.value.advice}")
        report = diagnose(place)
        assert report.verdict == "could_not_judge"
        said += [source.reason for source in report.sources if source.source == "log"]
        assert all("is a git-lfs pointer" in each and path.name in each for each in said), said
    rows = [run_job(job) for job in find_runs([tmp_path])]
    assert all(b"git-lfs pointer" in row for row in rows)


def test_weights_that_are_a_pointer_are_not_read_and_the_run_is_judged(tmp_path):
    trained(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_text(LFS)
    (tmp_path / "adapter_config.json").write_text(LFS)
    report = diagnose(tmp_path)
    states = {source.source: (source.state, source.reason) for source in report.sources}
    assert states["log"] == ("read", "")
    assert states["weights"][0] == "absent"
    assert "is a git-lfs pointer" in states["weights"][1]
    assert report.monitor.train.rows == 9
    assert any("adapter_config.json is a git-lfs pointer" in note for note in report.monitor.notes)


@pytest.mark.parametrize(
    ("verb", "places", "times"),
    [("monitor", "a", 1), ("diagnose", "a", 1), ("report", "a", 1), ("why", "ab", 2), ("monitor", ".", 2)],
)
def test_a_verb_imports_each_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, places: str, times: int
):
    trained(tmp_path / "a")
    trained(tmp_path / "b", scale=2.0)
    imported = []
    read = importers.read_source
    monkeypatch.setattr(importers, "read_source", lambda path, **how: imported.append(path) or read(path, **how))
    assert main([verb, *(str(tmp_path / place) for place in places)]) in {0, 3}
    assert len(imported) == times
