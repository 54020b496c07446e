"""The ranking of runs: only comparable runs share a list, and a difference counts only beyond the noise."""

from __future__ import annotations

import json
import math
import random
from typing import NamedTuple

import pytest
from tables import every

pytest.importorskip("duckdb", reason="needs the extra [fleet]")
pytest.importorskip("pyarrow", reason="needs the extra [fleet]")

from gradience.cli.main import main
from gradience.collect.runs import run_curves
from gradience.collect.runs.best import best_runs
from gradience.collect.runs.collect import collect_runs
from gradience.reading.places import names_of_runs

SCHEMA = "gradience.vnext.telemetry/v1"


def log(
    folder, loss, *, model="m", data=None, seed=None, accuracy=None, examples=None, lr=1e-4, decay=None, status="ok"
):
    """A run with one evaluation, and its settings; a killed one has no status."""
    folder.mkdir(parents=True)
    head = {"schema": SCHEMA, "ts": 1.0, "run_id": folder.name}
    config = {
        "model_name": model,
        "dataset_name": data,
        "optimizer": {"lr": lr, "weight_decay": decay},
        "training": {"seed": seed},
    }
    timed = {} if examples is None else {"runtime": 2.0, "samples_per_second": examples / 2.0}
    metrics = {"loss": loss, "accuracy": accuracy, **timed}
    lines = [
        {**head, "event": "run_start", "step": None, "config": config},
        {**head, "event": "train_step", "step": 1, "loss": loss, "lr": lr},
        {**head, "event": "eval", "step": 1, "split": "eval", "metrics": {k: v for k, v in metrics.items() if v}},
        *([{**head, "event": "run_end", "step": 1, "status": status}] if status else []),
    ]
    (folder / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def groups(root, metric="eval/loss", **options):
    """The runs of each group, best first, largest group first."""
    report = best_runs(collect_runs(root, out=root / "store"), metric, **options)
    return [[run.run for run in group.ranked] for group in report.groups]


@every(
    ("metric", "other", "apart"),
    [
        ("eval/loss", {"data": "e"}, True),
        ("eval/loss", {"model": "n"}, True),  # a loss per token depends on the tokenizer
        ("eval/accuracy", {"model": "n"}, False),
        ("eval/loss", {"examples": 200}, True),
        ("eval/loss", {"examples": 101}, False),  # what rounding of the rate can do
        ("eval/loss", {"examples": 103}, True),
        ("eval/loss", {"lr": 1e-3}, False),
    ],
)
def test_runs_whose_metric_means_another_thing_are_apart(tmp_path_factory, metric, other, apart):
    root = tmp_path_factory.mktemp("apart")
    log(root / "a", 1.0, data="d", accuracy=0.5, examples=100)
    log(root / "b", 0.5, **{"data": "d", "accuracy": 0.6, "examples": 100, **other})
    assert sorted(map(len, groups(root, metric))) == ([1, 1] if apart else [2])


class Sweep(NamedTuple):
    """Runs of some settings with four seeds each; values scatter by 0.016 around each setting's own."""

    killed: tuple[int, ...] = ()  # places of runs that end early, at a value 1 higher
    diverged: tuple[int, ...] = ()  # of runs that end in order, at a value 1 higher
    status: str | None = None  # how a killed run ends
    decays: int = 1  # values of weight decay over which the seeds of a setting are spread
    seeds: int = 4  # below four, some runs are the same run again, and have its value
    expected: tuple[int, int] | None = (48, 12)  # runs and groups that the noise is from


SIGMA = 0.016
SWEEPS = {
    "clean": Sweep(),
    "one was killed": Sweep(killed=(5,), expected=(47, 12)),
    "a third was killed": Sweep(killed=tuple(range(0, 48, 3)), expected=(32, 12)),
    "a third failed": Sweep(killed=tuple(range(1, 48, 3)), status="error", expected=(32, 12)),
    "one diverged": Sweep(diverged=(7,)),
    "two diverged": Sweep(diverged=(7, 30)),
    "pairs of weight decay": Sweep(decays=2, expected=(48, 24)),
    "each seed with another weight decay": Sweep(decays=4, expected=None),
    "two seeds, each twice": Sweep(seeds=2),
    "one seed": Sweep(seeds=1, expected=None),
}


@every("name", SWEEPS)
def test_the_noise_of_a_sweep_is_the_true_one(name, tmp_path_factory):
    sweep, root, chance = SWEEPS[name], tmp_path_factory.mktemp("sweep"), random.Random(50)  # noqa: S311  # no secret
    scatter = [chance.gauss(0.0, SIGMA) for _ in range(48)]
    for place in range(48):
        setting, seed = divmod(place, 4)
        killed = place in sweep.killed
        value = 1.0 + 0.2 * setting + scatter[place - seed + seed % sweep.seeds] + (killed or place in sweep.diverged)
        log(
            root / f"run{place}",
            value,
            data="d",
            seed=seed % sweep.seeds,
            lr=1e-5 * (setting + 1),
            decay=seed % sweep.decays / 10,
            status=sweep.status if killed else "ok",
        )
    (group,) = best_runs(collect_runs(root, out=root / "store"), "eval/loss").groups
    found = group.noise and (group.noise.n, group.noise.groups)
    assert found == sweep.expected
    if group.noise is not None:
        assert group.noise.difference == pytest.approx(2.0 * math.sqrt(2.0) * SIGMA, rel=0.3)
        assert [group.ranked[1].worse_than_noise, group.ranked[4].worse_than_noise] == [False, True]


def test_the_noise_is_that_of_runs_that_differ_in_their_seed_alone(tmp_path):
    for name, loss, seed, lr in (("a", 1.0, 1, 1e-4), ("b", 1.2, 2, 1e-4), ("c", 1.5, 3, 2e-4), ("d", 1.65, 1, 3e-4)):
        log(tmp_path / name, loss, data="d", seed=seed, lr=lr)
    (group,) = best_runs(collect_runs(tmp_path, out=tmp_path / "store"), "eval/loss").groups
    assert (group.noise.source, group.noise.n, group.noise.groups) == ("seeds", 2, 1)
    assert group.noise.difference == pytest.approx(2.0 * 0.2 / 0.6744897502)  # 0.2 apart, as half of all pairs are
    assert [(run.run, run.worse_than_noise) for run in group.ranked] == [
        ("a", False), ("b", False), ("c", False), ("d", True),
    ]  # fmt: skip


def test_the_noise_of_an_accuracy_is_binomial_and_without_either_it_is_unknown(tmp_path):
    log(tmp_path / "a", 1.0, data="d", accuracy=0.9, examples=98)
    log(tmp_path / "b", 1.0, data="d", accuracy=0.8, examples=98)
    store = collect_runs(tmp_path, out=tmp_path / "store")
    (group,) = best_runs(store, "eval/accuracy").groups
    p = (0.9 * 98 + 1) / 100
    assert group.noise.difference == pytest.approx(2.0 * math.sqrt(2.0 * p * (1.0 - p) / 98))
    assert [run.worse_than_noise for run in group.ranked] == [False, True]
    assert best_runs(store, "eval/loss").groups[0].noise is None


def test_two_runs_of_one_log_have_names_of_their_own():
    assert names_of_runs([]) == []
    assert names_of_runs([("x/a/run.jsonl", "import-0123456789"), ("x/a/run.jsonl", "b"), ("y/run.jsonl", "c")]) == [
        "x/a #01234567", "x/a #b", "y",
    ]  # fmt: skip


def test_the_screens_fit_a_terminal_and_say_what_is_not_compared(tmp_path, capsys):
    for name, loss, data in (("first", 1.0, "d"), ("second", 0.5, "d"), ("third", 0.1, "other")):
        log(tmp_path / "deep" / name, loss, data=data)
    (tmp_path / "deep" / "broken").mkdir()
    (tmp_path / "deep" / "broken" / "run.jsonl").write_text(f'{{"schema": "{SCHEMA}", "event": "train_step"}}\n')
    out = ["--out", str(tmp_path / "store")]
    assert main(["runs", str(tmp_path / "deep"), *out, "--limit", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:3])) <= 100
    assert [line.split()[0] for line in lines[:3]] == ["run", "first", "second"]
    assert lines[3] == "... and 1 more (--limit 3; --columns shows other columns)"
    assert lines[4] == "Stories:"
    at = lines.index("Settings that differ: data d | d | other")
    assert lines[at + 1 : at + 3] == [
        "The runs differ in data sets: their losses may not be comparable.",
        "1 log not read:",
    ]
    assert lines[at + 3].startswith("  broken:")
    assert main(["runs", "best", str(tmp_path / "deep"), *out]) == 0
    text = capsys.readouterr().out
    assert text.index("d, m: 2 runs") < text.index("Comparable with none of these:") < text.index("0.1  other, m:")
    assert "no noise known" in text
    assert text.splitlines()[-1] == (
        "Runs of other data, objectives, numbers of examples or (for losses) models are not compared."
    )


def test_a_run_without_the_metric_is_named_beside_the_curves(tmp_path):
    log(tmp_path / "a", 1.0, accuracy=0.5)
    log(tmp_path / "b", 1.0)
    assert run_curves(tmp_path, metric="eval/accuracy").not_drawn == ["b"]


def test_refresh_reads_an_unchanged_log_again(tmp_path, monkeypatch):
    from gradience.collect.runs import collect  # its name is patched

    log(tmp_path / "a", 1.0)
    read = []
    monkeypatch.setattr(collect, "run_job", lambda job, do=collect.run_job: read.append(job.path) or do(job))
    for refresh, times in ((False, 1), (False, 1), (True, 2)):
        store = collect_runs(tmp_path, out=tmp_path / "store", refresh=refresh)
        assert len(read) == times
        assert store.table("runs").num_rows == 1
