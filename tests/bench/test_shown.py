"""How a bench is shown: in a terminal, and in the report on a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_judge import judged, right

from gradience.cli.main import main
from gradience.schema.compare import BenchMetric, BenchReport
from gradience.verbs.bench.judge import Contender, LossRule, Task, judge, tolerance_of
from gradience.verbs.bench.view import bench_text


def report_of(scores, **options):
    found = judged(scores, **options)
    return BenchReport(
        kind="resize", adapters=["a\x1b[31m"], out="out", metric=BenchMetric(
            name="accuracy", higher_is_better=True), tolerance="5%", confidence=0.95, seed=0,
        tasks=found.tasks, candidates=found.candidates, verdict=found.verdict,
    )  # fmt: skip


@pytest.fixture(scope="module")
def report():
    return report_of({"full": right(0.9), "a": right(0.9), "b": right(0.7), "base": right(0.2)})


def line_of(text, name):
    return [line for line in text.splitlines() if line.startswith(f"  {name} ")]


def test_the_intervals_of_a_terminal_lie_beside_zero_and_the_tolerance(report):
    text = bench_text(report, unicode=False)
    assert "\x1b" not in text
    table, drawn = line_of(text, "b")
    assert table.split()[:4] == ["b", "80", "80%", "0.7"]
    assert table.endswith("over")
    assert drawn.index("|") < drawn.index(":") < drawn.index("[") < drawn.index("o") < drawn.index("]")
    low, high = text.splitlines()[text.splitlines().index(drawn) + 1].split()
    share = (drawn.index("o") - 27) / 60  # where the mean is drawn, between the ends of the scale
    assert float(low) + share * (float(high) - float(low)) == pytest.approx(0.2, abs=0.01)
    assert all(ord(c) < 128 for c in text)


def test_a_candidate_that_is_open_shows_what_it_needs():
    text = bench_text(report_of({"full": right(1.0, 40), "a": right(1.0, 40), "base": right(0.0, 40)}))
    assert re.search(r"open, needs \d+$", line_of(text, "a")[0])  # of equal answers no pilot differs from another
    assert "Verdict: NOT DECIDED: not decided with n = 40: 59 examples would do in 80 % of trials" in text
    told = " ".join(text.split())  # lines are folded
    assert (
        "These 40 examples show a failure of 7.2% of such examples or more (95 %); one in 1 % would be missed" in told
    )
    assert "would be missed with probability 0.67." in told


def test_what_a_merge_loses_is_split_in_dilution_and_the_rest():
    """By hand: .9 - .7 = .2 is lost, of it .9 - .85 = .05 at the weight alone; whole adapters dilute nothing."""
    scores = {"full": right(0.9), "half": right(0.7), "whole": right(0.8), "alone:0.5": right(0.85)}
    roles = {"full": "reference", "alone:0.5": "anchor"}
    metric = BenchMetric(name="m", higher_is_better=True)
    found = judge(
        [Contender(name, roles.get(name, "candidate"), Path(name), params=9) for name in scores],
        [Task("held-out", "", "", "full", scores, alone={"half": "alone:0.5", "whole": "full"})],
        metric,
        LossRule(tolerance_of("5%"), None, 0),
    )
    report = BenchReport(
        kind="merge", adapters=["a", "b"], out="out", metric=metric, tolerance="5%", confidence=0.95, seed=0,
        tasks=found.tasks, candidates=found.candidates, verdict=found.verdict,
    )  # fmt: skip
    text = bench_text(report)
    assert line_of(text, "half")[1].split() == ["half", "+0.2", "+0.05", "+0.15"]
    assert line_of(text, "whole")[1].split() == ["whole", "+0.1", "0", "+0.1"]
    assert "Dilution: what the adapter loses alone" in text
    assert "Dilution" not in bench_text(report_of({"full": right(0.9), "a": right(0.8)}))


def test_the_report_on_a_run_has_the_bench(report, classifier, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bench.json").write_text(report.to_json())
    arguments = ["report", "--adapter", str(classifier.adapter), "--bench", str(tmp_path / "out")]
    assert main([*arguments, "--out", str(tmp_path / "page.html")]) == 0
    html = (tmp_path / "page.html").read_text()
    assert "Measured on held-out data" in html
    assert "Loss by size on held-out. Tolerance 0.045: b +0.2" in html
    assert "a holds" in html
    capsys.readouterr()
    (tmp_path / "out" / "bench.json").write_text(json.dumps({"schema": "x"}))
    assert main(arguments) == 2
    assert "is not a bench report" in capsys.readouterr().err
