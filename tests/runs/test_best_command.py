"""`gradience runs best`: each option changes the ranking as it says."""

from __future__ import annotations

import json

import pytest
from tables import every

pytest.importorskip("duckdb", reason="needs the extra [fleet]")
pytest.importorskip("pyarrow", reason="needs the extra [fleet]")

from gradience.cli.main import main
from gradience.telemetry import TelemetryWriter


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Six runs on two models: the lower the eval loss, the lower the accuracy."""
    root = tmp_path_factory.mktemp("best")
    for number in range(6):
        with TelemetryWriter(root / f"run{number}" / "run.jsonl", run_id=f"run{number}", fsync="never") as log:
            log.run_start({"model_name": f"m{number % 2}", "optimizer": {"lr": 1e-4 * (number + 1)}})
            log.train_step(1, loss=2.0, lr=1e-4)
            log.eval(1, split="eval", metrics={"loss": 1.0 + number / 10, "accuracy": 0.5 + number / 20, "n": 1000})
            log.run_end(status="ok")
    return root


def ranked(roots, tmp_path, capsys, *options):
    """The names of the runs of each group, best first."""
    assert main(["runs", "best", str(roots), "--out", str(tmp_path / "tables"), "--json", *options]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    return [[run["run"] for run in group["ranked"]] for group in groups]


@every(
    ("options", "names"),
    [
        ([], ["run0 run2 run4", "run1 run3 run5"]),  # a loss per token depends on the tokenizer
        (["--limit", "2"], ["run0 run2", "run1 run3"]),
        (["--goal", "most", "--limit", "2"], ["run4 run2", "run5 run3"]),
        (["--metric", "eval/accuracy"], ["run5 run4 run3 run2 run1"]),
        (["--metric", "eval/accuracy", "--limit", "6"], ["run5 run4 run3 run2 run1 run0"]),
        (["--metric", "eval/accuracy", "--goal", "least", "--limit", "1"], ["run0"]),
        (["--metric", "eval/accuracy", "--by", "model", "--limit", "2"], ["run4 run2", "run5 run3"]),
    ],
)
def test_a_ranking_is_by_the_metric_the_goal_the_group_and_the_limit(roots, tmp_path, capsys, options, names):
    assert [" ".join(group) for group in ranked(roots, tmp_path, capsys, *options)] == names
