"""Which logs a folder holds, what they are called, and how the runs of two are laid beside each other."""

from __future__ import annotations

import json
import math
from pathlib import Path

from tables import every

from gradience.folder.runs import names_of, runs_in
from gradience.importers.sources import MAX_DEPTH
from gradience.rules.log.facts import RunFacts
from gradience.schema import real
from gradience.schema.events import Eval, EvalMetrics, Wiring
from gradience.telemetry.series import RunSeries

SCHEMA = "gradience.vnext.telemetry/v1"
START = {"schema": SCHEMA, "event": "run_start", "ts": None, "run_id": "r", "step": None, "config": {}}


def log(path: Path, text: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(START) + "\n" if text is None else text)
    return path


def test_logs_are_files_of_ours_by_suffix_and_content_down_to_a_depth(tmp_path):
    deep = ["/".join(["deep"] * depth) for depth in range(1, MAX_DEPTH + 2)]
    whole = [log(tmp_path / name) for name in ("a.jsonl", "b.jsonl", *(f"{place}/c.jsonl" for place in deep))]
    log(tmp_path / "a.txt")
    log(tmp_path / "no.jsonl", '{"loss": 1.0}\n')
    log(tmp_path / ".hidden" / "x.jsonl")
    (tmp_path / "link").symlink_to(tmp_path / "deep")
    assert list(runs_in(tmp_path)) == whole[:-1]


def test_beside_a_run_s_own_log_nothing_else_is_a_run(tmp_path):
    own = log(tmp_path / "one" / "run.jsonl")
    log(tmp_path / "one" / "more.jsonl")
    log(tmp_path / "one" / "below" / "run.jsonl")
    other = log(tmp_path / "two" / "run.jsonl")
    assert runs_in(tmp_path) == [own, other]
    assert runs_in(own) == [own]


@every(
    ("paths", "names"),
    [
        (["runs/a/run.jsonl", "runs/b/run.jsonl"], ["a", "b"]),
        (["x/a/1.jsonl", "x/b/1.jsonl"], ["a/1", "b/1"]),
        (["x/seed1.jsonl", "x/seed12.jsonl"], ["seed1", "seed12"]),
        (["x/a.jsonl", "x/a.jsonl"], ["x/a.jsonl", "x/a.jsonl"]),
        (["run.jsonl"], ["run.jsonl"]),
        (["a/b/c.jsonl"], ["c.jsonl"]),
        (["a-run.jsonl", "b-run.jsonl"], ["a", "b"]),  # an ending begins with a point, dash or underscore
        (["x/arun.jsonl", "x/brun.jsonl"], ["arun", "brun"]),
        (["x/a_x.y", "x/b_x.y"], ["a", "b"]),
        (["x/.x", "x/a.x"], [".x", "a.x"]),
    ],
)
def test_names_leave_out_what_paths_share(paths, names):
    assert names_of([Path(path) for path in paths]) == names


def evaluation(step: int | None, loss: float | None, split: str = "eval") -> Eval:
    metrics = EvalMetrics(loss=None if loss is None else real(loss))
    return Eval(schema=SCHEMA, ts=None, run_id="r", step=step, split=split, metrics=metrics)


def test_evaluations_beside_each_other_are_finite_by_step_the_later_of_two():
    some = [evaluation(*one) for one in ((20, 1.0), (10, 2.0), (30, math.nan), (None, 3.0), (40, None), (20, 0.5))]
    found = RunSeries("r", evals=[*some, evaluation(50, 1.0, "test")]).losses_of("eval")
    assert list(found.items()) == [(10, 2.0), (20, 0.5)]


def test_evaluations_of_another_model_count_for_nothing_until_one_is_of_this_one():
    others = [(20, {"called": False}), (40, {"called": True}), (50, {"called": True, "adapted": False})]
    looks = [Wiring(ts=None, run_id="r", step=at, phase="evaluation", evaluation=seen) for at, seen in others]
    run = RunSeries("r", evals=[evaluation(step, 1.0) for step in (10, 20, 30, 40, 50, 60)], wirings=looks)
    facts = RunFacts(run)
    assert [event.step for event in facts.history] == [10, 40]
    assert facts.held_out is None  # the newest is of another model
