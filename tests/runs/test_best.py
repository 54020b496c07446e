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
from gradience.verbs.runs.best import best_runs
from gradience.verbs.runs.collect import collect_runs


def log(
    folder, loss, *, model="m", seed=None, accuracy=None, examples=None, lr=1e-4, decay=None, status="ok", data="d"
):
    """A run with one evaluation, and its settings; a killed one has no status."""
    folder.mkdir(parents=True)
    head = {"schema": "gradience.vnext.telemetry/v1", "ts": 1.0, "run_id": folder.name}
    config = {
        "model_name": model, "dataset_name": data, "optimizer": {"lr": lr, "weight_decay": decay},
        "training": {"seed": seed},
    }  # fmt: skip
    timed = {} if examples is None else {"runtime": 2.0, "samples_per_second": examples / 2.0}
    metrics = {k: v for k, v in {"loss": loss, "accuracy": accuracy, **timed}.items() if v}
    lines = [
        {**head, "event": "run_start", "step": None, "config": config},
        {**head, "event": "train_step", "step": 1, "loss": loss, "lr": lr},
        {**head, "event": "eval", "step": 1, "split": "eval", "metrics": metrics},
        *([{**head, "event": "run_end", "step": 1, "status": status}] if status else []),
    ]
    (folder / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def groups(root, metric="eval/loss"):
    return best_runs(collect_runs(root, out=root / "store"), metric).groups


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
def test_runs_whose_metric_means_another_thing_are_apart(tmp_path, metric, other, apart):
    log(tmp_path / "a", 1.0, accuracy=0.5, examples=100)
    log(tmp_path / "b", 0.5, **{"accuracy": 0.6, "examples": 100, **other})
    assert sorted(len(group.ranked) for group in groups(tmp_path, metric)) == ([1, 1] if apart else [2])


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
    "a third was killed": Sweep(killed=tuple(range(0, 48, 3)), expected=(32, 12)),
    "a third failed": Sweep(killed=tuple(range(1, 48, 3)), status="error", expected=(32, 12)),
    "two diverged": Sweep(diverged=(7, 30)),
    "pairs of weight decay": Sweep(decays=2, expected=(48, 24)),
    "each seed with another weight decay": Sweep(decays=4, expected=None),
    "two seeds, each twice": Sweep(seeds=2),
    "one seed": Sweep(seeds=1, expected=None),
}


@every("name", SWEEPS)
def test_the_noise_of_a_sweep_is_the_true_one(name, tmp_path):
    sweep, chance = SWEEPS[name], random.Random(50)  # noqa: S311  # no secret
    scatter = [chance.gauss(0.0, SIGMA) for _ in range(48)]
    for place in range(48):
        setting, seed = divmod(place, 4)
        killed, same = place in sweep.killed, seed % sweep.seeds
        value = 1.0 + 0.2 * setting + scatter[place - seed + same] + (killed or place in sweep.diverged)
        own = {"lr": 1e-5 * (setting + 1), "decay": seed % sweep.decays / 10}
        log(tmp_path / f"run{place}", value, seed=same, status=sweep.status if killed else "ok", **own)
    (group,) = groups(tmp_path)
    found = group.noise and (group.noise.n, group.noise.groups)
    assert found == sweep.expected
    if group.noise is not None:
        assert group.noise.difference == pytest.approx(2.0 * math.sqrt(2.0) * SIGMA, rel=0.3)
        assert [group.ranked[1].worse_than_noise, group.ranked[4].worse_than_noise] == [False, True]


def test_the_noise_is_that_of_runs_that_differ_in_their_seed_alone(tmp_path):
    for name, loss, seed, lr in (("a", 1.0, 1, 1e-4), ("b", 1.2, 2, 1e-4), ("c", 1.5, 3, 2e-4), ("d", 1.65, 1, 3e-4)):
        log(tmp_path / name, loss, seed=seed, lr=lr)
    (group,) = groups(tmp_path)
    assert (group.noise.source, group.noise.n, group.noise.groups) == ("seeds", 2, 1)
    assert group.noise.difference == pytest.approx(2.0 * 0.2 / 0.6744897502)  # 0.2 apart, as half of all pairs are
    worse = [(run.run, run.worse_than_noise) for run in group.ranked]
    assert worse == [("a", False), ("b", False), ("c", False), ("d", True)]


def test_the_noise_of_an_accuracy_is_binomial_and_without_either_it_is_unknown(tmp_path):
    log(tmp_path / "a", 1.0, accuracy=0.9, examples=98)
    log(tmp_path / "b", 1.0, accuracy=0.8, examples=98)
    (group,) = groups(tmp_path, "eval/accuracy")
    p = (0.9 * 98 + 1) / 100
    assert group.noise.difference == pytest.approx(2.0 * math.sqrt(2.0 * p * (1.0 - p) / 98))
    assert [run.worse_than_noise for run in group.ranked] == [False, True]
    assert groups(tmp_path)[0].noise is None
    log(tmp_path / "c", 1.0, accuracy=1.5, examples=98)
    assert groups(tmp_path, "eval/accuracy")[0].noise is None  # no share


def test_a_run_whose_loss_was_not_finite_is_listed_below_the_ranking_with_what_broke_it(tmp_path, capsys):
    log(tmp_path / "a", 0.9)
    log(tmp_path / "b", 0.7)
    log(tmp_path / "c", "Infinity")  # its evaluation and its only row
    log(tmp_path / "d", 0.1)
    row = {"schema": "gradience.vnext.telemetry/v1", "ts": 1.0, "run_id": "d", "event": "train_step", "step": 2}
    with (tmp_path / "d" / "run.jsonl").open("a") as file:
        file.write(json.dumps({**row, "loss": "NaN"}) + "\n")
    report = best_runs(collect_runs(tmp_path, out=tmp_path / "store"), "eval/loss")
    assert [(run.run, run.value) for run in report.groups[0].ranked] == [("b", 0.7), ("a", 0.9)]
    assert {run.run: (run.value, run.reason) for run in report.not_ranked} == {
        "c": (None, "Not finite: loss at step 1, eval loss at step 1 (1 of 1 training rows)."),
        "d": (0.1, "Not finite: loss at step 2 (1 of 2 training rows)."),
    }
    assert main(["runs", "best", str(tmp_path), "--out", str(tmp_path / "store")]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == "Lowest eval/loss"
    assert "Not ranked, since the run is broken (2 runs):\n  c: Not finite: loss at step 1" in shown


def test_by_default_runs_are_ranked_by_the_held_out_loss_that_most_have(tmp_path, capsys):
    for name, split in (("a", "test"), ("b", "eval"), ("c", "test")):
        log(tmp_path / name, 1.0)
        path = tmp_path / name / "run.jsonl"
        path.write_text(path.read_text().replace('"split": "eval"', f'"split": "{split}"'))
    assert main(["runs", "best", str(tmp_path), "--out", str(tmp_path / "store")]) == 0
    assert capsys.readouterr().out.startswith("Lowest test/loss\n\nd, m: 2 runs\n")


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Six runs on two models: the lower the eval loss, the lower the accuracy."""
    root = tmp_path_factory.mktemp("best")
    for n in range(6):
        log(root / f"run{n}", 1.0 + n / 10, model=f"m{n % 2}", accuracy=0.5 + n / 20, lr=1e-4 * (n + 1))
    return root


@every(
    ("options", "names"),
    [
        ("", ["run0 run2 run4", "run1 run3 run5"]),  # a loss per token depends on the tokenizer
        ("--limit 2", ["run0 run2", "run1 run3"]),
        ("--goal most --limit 2", ["run4 run2", "run5 run3"]),
        ("--metric eval/accuracy", ["run5 run4 run3 run2 run1"]),
        ("--metric eval/accuracy --limit 6", ["run5 run4 run3 run2 run1 run0"]),
        ("--metric eval/accuracy --goal least --limit 1", ["run0"]),
        ("--metric eval/accuracy --by model --limit 2", ["run4 run2", "run5 run3"]),
    ],
)
def test_a_ranking_is_by_the_metric_the_goal_the_group_and_the_limit(roots, tmp_path, capsys, options, names):
    assert main(["runs", "best", str(roots), "--out", str(tmp_path / "tables"), "--json", *options.split()]) == 0
    ranked = [group["ranked"] for group in json.loads(capsys.readouterr().out)["groups"]]
    assert [" ".join(run["run"] for run in group) for group in ranked] == names
