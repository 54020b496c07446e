"""Which checkpoint to keep, go back to, or is short of the end: worked out on paper, each bound from either side."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from gradience.folder.checkpoints import Identity, OwnedCheckpoint
from gradience.folder.found import CheckpointFolder
from gradience.rules.judged import IDS
from gradience.schema import real
from gradience.schema.diagnose import Checkpoint, DiagnosedSource
from gradience.schema.document import Finding
from gradience.schema.events import Eval, EvalMetrics
from gradience.schema.reports import EvalPoint, MetricAccount, RunAccount
from gradience.telemetry.series import RunSeries
from gradience.verbs.diagnose import checkpoints as choosing
from gradience.verbs.diagnose.checkpoints import CheckpointChoice, choose, disk_symptoms, loss_noise, standard_error
from gradience.verbs.diagnose.run import unjudged


def evals(losses: dict[int, float], split: str = "eval") -> list[Eval]:
    return [
        Eval(
            schema="gradience.vnext.telemetry/v1",
            ts=None,
            run_id="r",
            step=step,
            split=split,
            metrics=EvalMetrics(loss=real(loss)),
        )
        for step, loss in losses.items()
    ]


def run_of(measured: list[Eval]) -> RunSeries:
    return RunSeries("r", evals=measured)


def report(
    split: str | None = "eval",
    *,
    n: int | None = None,
    accuracy: float | None = None,
    decisive: str | None = "loss",
    metrics: Any = (),
    **account: Any,
) -> Any:
    points = [
        EvalPoint(split="train", step=9, metrics=EvalMetrics(n=7)),
        EvalPoint(split=split or "eval", step=9, metrics=EvalMetrics(n=n, accuracy=accuracy)),
    ]
    told = RunAccount(split=split, decisive=decisive, metrics=list(metrics), **account)
    return SimpleNamespace(evals=points, findings=[], account=told)


def folders(*steps: int) -> list[CheckpointFolder]:
    return [CheckpointFolder(step, Path(f"/run/checkpoint-{step}")) for step in steps]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is said of whose checkpoints are, and of what is wrong with their weights; by default all are in order."""
    said: dict[str, Any] = {"whose": {}, "faults": {}}
    monkeypatch.setattr(choosing, "unreadable", lambda path: said["faults"].get(path.name, ""))
    return said


def owned(own: dict[str, Any], *steps: int) -> list[OwnedCheckpoint]:
    whose = own["whose"]
    return [OwnedCheckpoint(each, Identity(whose.get(each.step, True), why="as said")) for each in folders(*steps)]


def listed(*steps: int, of_run: bool | None = True) -> CheckpointChoice:
    found = [Checkpoint(name=folder.path.name, step=folder.step, of_run=of_run) for folder in folders(*steps)]
    return CheckpointChoice(found, paths={folder.path.name: folder.path for folder in folders(*steps)})


LOSSES = {10: 2.0, 20: 1.5, 30: 1.25, 40: 1.3, 50: 1.75}


def test_the_checkpoint_with_the_lowest_loss_is_the_best_and_the_lowest_of_all_is_named(own):
    found = choose(owned(own, 20, 40, 50), run_of(evals(LOSSES)), report(n=100, accuracy=0.5), None)
    best = found.best
    assert best is not None
    assert (best.name, best.step, best.loss, best.split, best.n) == ("checkpoint-40", 40, 1.3, "eval", 100)
    assert (best.lowest_step, best.lowest_loss, best.saved_as) == (30, 1.25, "")
    slopes = [-0.5, -0.25, 0.05, 0.45]
    jumps = sorted(abs(b - a) for a, b in pairwise(slopes))
    assert best.noise == pytest.approx(0.6053 * jumps[1])
    assert best.standard_error == pytest.approx(1.3 / 10)
    assert best.within_noise is True
    assert [(c.step, c.loss, c.tied) for c in found.checkpoints] == [
        (20, 1.5, False),
        (40, 1.3, False),
        (50, 1.75, False),
    ]


def test_a_checkpoint_within_the_noise_of_the_best_is_tied(own):
    found = choose(owned(own, 20, 30, 40), run_of(evals(LOSSES)), report(), None)  # a noise of .18
    assert [(c.step, c.tied) for c in found.checkpoints] == [(20, False), (30, False), (40, True)]


def test_what_was_not_evaluated_cannot_be_chosen(own):
    assert choose(owned(own, 20), run_of([]), report(None, decisive=None), None).best is None
    assert choose(owned(own, 20), run_of(evals(LOSSES, "other")), report(), None).best is None
    none = choose(owned(own, 25), run_of(evals(LOSSES)), report(), None)
    assert (none.best, [(c.name, c.loss) for c in none.checkpoints]) == (None, [("checkpoint-25", None)])
    odd = choose(owned(own, 20), run_of(evals({20: math.nan, 10: 1.0})), report(), None)
    assert odd.best is None
    later = choose(owned(own, 20), run_of([*evals({20: 9.0}), *evals({20: 1.0})]), report(), None)
    assert later.best is not None
    assert later.best.loss == 1.0


def test_the_split_of_the_account_is_the_one_compared(own):
    other = [*evals(LOSSES), *evals({20: 0.5}, "other")]
    for split in ("eval", "other"):
        best = choose(owned(own, 20), run_of(other), report(split), None).best
        assert best is not None
        assert best.split == split


@pytest.mark.parametrize("whose", [False, None])
def test_a_checkpoint_that_is_not_shown_to_be_of_the_run_is_never_chosen(own, whose):
    """Its number alone would make it the best."""
    own["whose"] = {30: whose}
    found = choose(owned(own, 20, 30, 40), run_of(evals(LOSSES)), report(), None)
    assert found.best is not None
    assert found.best.name == "checkpoint-40"
    assert [(c.name, c.loss, c.of_run, c.why) for c in found.checkpoints if c.step == 30] == [
        ("checkpoint-30", None, whose, "as said")
    ]


def test_weights_that_are_not_whole_are_passed_over_and_their_fault_is_named(own):
    own["faults"] = {"checkpoint-30": "it is cut short"}
    found = choose(owned(own, 20, 30, 40), run_of(evals(LOSSES)), report(), None)
    assert found.best is not None
    assert found.best.name == "checkpoint-40"
    assert [c.fault for c in found.checkpoints] == ["", "it is cut short", ""]
    own["faults"] = {f"checkpoint-{step}": "gone" for step in (20, 30, 40)}
    none = choose(owned(own, 20, 30, 40, 50), run_of(evals(LOSSES)), report(), None)  # at most three are opened
    assert none.best is None
    assert [c.fault for c in none.checkpoints] == ["gone", "gone", "gone", ""]


@pytest.mark.parametrize(("up", "step"), [(True, 50), (False, 10)])
def test_the_metric_that_decides_decides_in_its_direction(own, up, step):
    """The loss is lowest at 30, the word error rate or the F1 elsewhere."""
    measured = [
        msgspec.structs.replace(e, metrics=EvalMetrics(loss=e.metrics.loss, extras={"m": float(e.step or 0)}))
        for e in evals(LOSSES)
    ]
    metric = MetricAccount(name="m", split="eval", higher_is_better=up, count=5, first=10.0, last=50.0)
    found = choose(owned(own, 10, 30, 50), run_of(measured), report(decisive="m", metrics=[metric]), None).best
    assert found is not None
    assert (found.step, found.by, found.value, found.best_value, found.best_step) == (step, "m", step, step, step)
    assert (found.loss, found.lowest_step, found.standard_error) == (LOSSES[step], 30, None)


def test_four_evaluations_show_no_noise_and_five_do():
    assert loss_noise([1.0, 2.0, 1.0, 2.0]).value is None
    assert loss_noise([1.0, 2.0, 1.0, 2.0, 1.0]).value == pytest.approx(0.6053 * 2.0)
    assert loss_noise([1.0, 1.25, 1.5, 1.75, 2.0]).value == 0.0  # a steady rise is no noise
    assert "4 evaluations" in loss_noise([1.0] * 4).source
    assert "5 evaluations" in loss_noise([1.0] * 5).source


def test_the_standard_error_is_the_loss_over_the_root_of_n():
    assert standard_error(0.5, 25, None) == pytest.approx(0.1)
    assert standard_error(0.5, 25, 0.4) == pytest.approx(0.1)  # sqrt(.4 / .6) is under 1
    assert standard_error(0.5, 25, 0.8) == pytest.approx(0.2)
    assert standard_error(0.4, 100, 1.0) == pytest.approx(0.4 * math.sqrt(99.0) / 10.0)  # at most one was wrong
    assert [standard_error(0.5, n, None) for n in (0, None)] == [None, None]
    assert standard_error(-0.5, 25, None) is None


def sources(at: Path | None, *steps: int) -> Any:
    found = SimpleNamespace(checkpoints=folders(*steps), folder=Path("/run"))
    return SimpleNamespace(found=found, weights=SimpleNamespace(path=at))


@pytest.mark.parametrize(("ended", "fact"), [(["END114"], "short_of_the_end"), ([], "mid_run")])
def test_old_weights_of_a_run_that_did_not_end_are_short_of_it_and_else_of_mid_run(ended, fact):
    at = sources(Path("/run/checkpoint-50"), 50)
    said = SimpleNamespace(
        findings=[Finding(id=rule, severity="warning", message="m") for rule in ended],
        train=SimpleNamespace(last_step=100),
    )
    assert [symptom.id for symptom in disk_symptoms(at, listed(50), said, RunSeries("r"))] == [fact]
    at.found.folder = None
    assert list(disk_symptoms(at, CheckpointChoice([]), said, RunSeries("r"))) == []


# --- what was not judged -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", ["config", "log", "weights"])
def test_of_a_source_that_was_read_its_own_list_counts_and_of_another_every_rule_is_missing(read):
    own: Any = SimpleNamespace(not_run=[SimpleNamespace(id="X1", reason="own")])
    reports = [own if source == read else None for source in ("config", "log", "weights")]
    some = [DiagnosedSource(source=s, state="read" if s == read else "absent", reason=f"no {s}") for s in IDS]
    found = [item for item in unjudged(some, *reports) if item.source != "join"]
    for source, rules in IDS.items():
        expected = [("X1", "own")] if source == read else [(rule, f"no {source}") for rule in rules]
        assert [(item.id, item.reason) for item in found if item.source == source] == expected
