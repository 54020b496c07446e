"""Which checkpoint to keep, go back to, or is short of the end: worked out on paper, each bound from either side."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from tables import every

from gradience.judge.diagnose import IDS, _causes, checkpoints as choosing, unjudged
from gradience.judge.diagnose.checkpoints import (
    CheckpointChoice,
    _before_nan,
    _lasting,
    _mid_run,
    _nearest,
    _noise,
    _short,
    _standing,
    _to_keep,
    _within,
    choose,
    disk_symptoms,
    loss_noise,
    standard_error,
)
from gradience.judge.diagnose.identity import CheckpointFolder, Identity
from gradience.judge.diagnose.sources import _single_file
from gradience.rules import Observation
from gradience.rules.joins import Correlated, Symptom
from gradience.schema import real
from gradience.schema.diagnose import BestCheckpoint, Cause, Checkpoint, DiagnosedSource, Piece
from gradience.schema.document import Finding
from gradience.schema.events import Eval, EvalMetrics
from gradience.schema.reports import Ending, EvalPoint, MetricAccount, RunAccount, Selection
from gradience.telemetry.series import RunSeries


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
    monkeypatch.setattr(
        choosing, "identify", lambda folder, _: Identity(said["whose"].get(folder.step, True), why="as said")
    )
    monkeypatch.setattr(choosing, "unreadable", lambda path: said["faults"].get(path.name, ""))
    return said


def listed(*steps: int, of_run: bool | None = True) -> CheckpointChoice:
    found = [Checkpoint(name=folder.path.name, step=folder.step, of_run=of_run) for folder in folders(*steps)]
    return CheckpointChoice(found, paths={folder.path.name: folder.path for folder in folders(*steps)})


LOSSES = {10: 2.0, 20: 1.5, 30: 1.25, 40: 1.3, 50: 1.75}


def test_the_checkpoint_with_the_lowest_loss_is_the_best_and_the_lowest_of_all_is_named(own):
    found = choose(folders(20, 40, 50), run_of(evals(LOSSES)), report(n=100, accuracy=0.5), None)
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
    found = choose(folders(20, 30, 40), run_of(evals(LOSSES)), report(), None)  # a noise of .18
    assert [(c.step, c.tied) for c in found.checkpoints] == [(20, False), (30, False), (40, True)]


def test_what_was_not_evaluated_cannot_be_chosen(own):
    assert choose(folders(20), run_of([]), report(None, decisive=None), None).best is None
    assert choose(folders(20), run_of(evals(LOSSES, "other")), report(), None).best is None
    none = choose(folders(25), run_of(evals(LOSSES)), report(), None)
    assert (none.best, [(c.name, c.loss) for c in none.checkpoints]) == (None, [("checkpoint-25", None)])
    odd = choose(folders(20), run_of(evals({20: math.nan, 10: 1.0})), report(), None)
    assert odd.best is None
    later = choose(folders(20), run_of([*evals({20: 9.0}), *evals({20: 1.0})]), report(), None)
    assert later.best is not None
    assert later.best.loss == 1.0


def test_the_split_of_the_account_is_the_one_compared(own):
    other = [*evals(LOSSES), *evals({20: 0.5}, "other")]
    for split in ("eval", "other"):
        best = choose(folders(20), run_of(other), report(split), None).best
        assert best is not None
        assert best.split == split


@pytest.mark.parametrize("whose", [False, None])
def test_a_checkpoint_that_is_not_shown_to_be_of_the_run_is_never_chosen(own, whose):
    """Its number alone would make it the best."""
    own["whose"] = {30: whose}
    found = choose(folders(20, 30, 40), run_of(evals(LOSSES)), report(), None)
    assert found.best is not None
    assert found.best.name == "checkpoint-40"
    assert [(c.name, c.loss, c.of_run, c.why) for c in found.checkpoints if c.step == 30] == [
        ("checkpoint-30", None, whose, "as said")
    ]


def test_weights_that_are_not_whole_are_passed_over_and_their_fault_is_named(own):
    own["faults"] = {"checkpoint-30": "it is cut short"}
    found = choose(folders(20, 30, 40), run_of(evals(LOSSES)), report(), None)
    assert found.best is not None
    assert found.best.name == "checkpoint-40"
    assert [c.fault for c in found.checkpoints] == ["", "it is cut short", ""]
    own["faults"] = {f"checkpoint-{step}": "gone" for step in (20, 30, 40)}
    none = choose(folders(20, 30, 40, 50), run_of(evals(LOSSES)), report(), None)  # at most three are opened
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
    found = choose(folders(10, 30, 50), run_of(measured), report(decisive="m", metrics=[metric]), None).best
    assert found is not None
    assert (found.step, found.by, found.value, found.best_value, found.best_step) == (step, "m", step, step, step)
    assert (found.loss, found.lowest_step, found.standard_error) == (LOSSES[step], 30, None)


@every(
    ("loss", "noise", "within"),
    [(1.0, None, True), (1.1, None, None), (1.25, 0.25, True), (1.2501, 0.25, False), (0.9, 0.1, True)],
)
def test_a_loss_is_as_good_as_the_lowest_within_one_noise(loss, noise, within):
    assert _within(loss, 1.0, noise) is within


def test_four_evaluations_show_no_noise_and_five_do():
    assert loss_noise([1.0, 2.0, 1.0, 2.0]).value is None
    assert loss_noise([1.0, 2.0, 1.0, 2.0, 1.0]).value == pytest.approx(0.6053 * 2.0)
    assert "4 evaluations" in loss_noise([1.0] * 4).source
    assert "5 evaluations" in loss_noise([1.0] * 5).source


def test_the_standard_error_is_the_loss_over_the_root_of_n():
    assert standard_error(0.5, 25, None) == pytest.approx(0.1)
    assert standard_error(0.5, 25, 0.4) == pytest.approx(0.1)  # sqrt(.4 / .6) is under 1
    assert standard_error(0.5, 25, 0.8) == pytest.approx(0.2)
    assert [standard_error(0.5, n, None) for n in (0, None)] == [None, None]
    assert standard_error(-0.5, 25, None) is None


def best(**more: Any) -> BestCheckpoint:
    fields = {
        "name": "checkpoint-40",
        "step": 40,
        "loss": 1.3,
        "split": "eval",
        "noise": 0.25,
        "noise_from": "why",
        "lowest_loss": 1.25,
        "lowest_step": 30,
        "value": 1.3,
        "best_value": 1.3,
        "best_step": 30,
    }
    return BestCheckpoint(**{**fields, **more})


def test_the_best_is_described_beside_the_best_of_the_run():
    assert _standing(best()) == "eval loss 1.3, the best of the run"
    for within, words in ((True, "within the noise of"), (None, "perhaps no worse than")):
        expected = f"eval loss 1.3, {words} the best, 1.25 at step 30, which was not saved"
        assert _standing(best(within_noise=within, best_value=1.25)) == expected
    assert _standing(best(by="f1", value=0.5, best_value=0.5)) == "eval f1 0.5, the best of the run"
    assert _noise(best()) == "+/- 0.25 (why)"
    assert _noise(best(noise=None)) == "why"
    assert _noise(best(n=9, standard_error=0.125)) == "+/- 0.25 (why); on other data +/- 0.12 (n=9; a heuristic)"
    assert _noise(best(standard_error=0.25)) == "+/- 0.25 (why)"


RESTORED = {"selection": Selection(step=30, restored=True), "ending": Ending(status="ok", finished=True)}


@every(
    ("choice", "account", "fact", "says", "action"),
    [
        (
            CheckpointChoice([], best(within_noise=True)),
            {},
            "best_checkpoint",
            "checkpoint-40 (eval loss 1.3, the best of the run); noise +/- 0.25 (why)",
            "Keep checkpoint-40.",
        ),
        (
            CheckpointChoice([], best(within_noise=True, saved_as="w")),
            {},
            "best_checkpoint",
            "checkpoint-40 (eval loss 1.3, the best of the run); noise +/- 0.25 (why)",
            None,
        ),
        (
            CheckpointChoice([], best(within_noise=False, best_value=1.0)),
            {},
            "no_checkpoint",
            "the best one on disk is checkpoint-40 (eval loss 1.3); the best of the run, 1 at step 30, was not kept",
            "Next time set load_best_model_at_end=True, or stop near step 30.",
        ),
        (
            CheckpointChoice([]),
            {"decisive": "f1"},
            "no_checkpoint",
            "no checkpoint-N folder holds weights",
            "Next time set load_best_model_at_end=True and metric_for_best_model='f1', or stop near step 30.",
        ),
        (
            listed(30, of_run=False),
            {},
            "no_checkpoint",
            "checkpoint-30 is of another run: ",
            "Next time set load_best_model_at_end=True, or stop near step 30.",
        ),
        (
            listed(30, of_run=None),
            {},
            "no_checkpoint",
            "checkpoint-30 is not shown to be of this run: ",
            "Next time set load_best_model_at_end=True, or stop near step 30.",
        ),
        (
            listed(30),
            {},
            "no_checkpoint",
            "no checkpoint on disk was evaluated at its own step",
            "Next time set load_best_model_at_end=True, or stop near step 30.",
        ),
        (
            CheckpointChoice([Checkpoint(name="checkpoint-30", step=30, of_run=True, fault="it is cut short")]),
            {},
            "no_checkpoint",
            "checkpoint-30 cannot be used: it is cut short",
            "Next time set load_best_model_at_end=True, or stop near step 30.",
        ),
        (
            CheckpointChoice([]),
            RESTORED,
            "restored",
            "the trainer loaded its best checkpoint, of step 30, at the end (load_best_model_at_end)",
            None,
        ),
        (
            CheckpointChoice([]),
            {**RESTORED, "ending": Ending(status="no_run_end")},
            "no_checkpoint",
            "no checkpoint-N folder holds weights",
            "Next time stop earlier; try fewer epochs or more data.",
        ),
    ],
)
def test_what_can_be_kept_of_a_run_that_overfits(choice, account, fact, says, action):
    found = _to_keep(choice, report(**{"best_step": 30, **account}))
    assert (found.id, found.seen.message, found.seen.action) == (fact, says, action)


@every(("step", "near"), [(25, 20), (20, 20), (19, 10), (35, 30), (5, 10), (100, 40)])
def test_one_goes_back_to_the_checkpoint_before_rather_than_after(monkeypatch, step, near):
    monkeypatch.setattr(choosing, "unreadable", lambda _: "")
    (found,) = _nearest(listed(10, 20, 30, 40), step, "lowest", "what", "then")
    assert found.seen.message == f"checkpoint-{near} is the nearest to step {step}, what"
    assert found.seen.action == f"Go back to checkpoint-{near}; then"
    assert list(_nearest(listed(), step, "lowest", "", "")) == list(_nearest(listed(10), None, "lowest", "", "")) == []
    assert list(_nearest(listed(10, of_run=False), step, "lowest", "", "")) == []


def test_one_goes_back_to_a_checkpoint_that_can_be_read(own):
    own["faults"] = {"checkpoint-20": "gone"}
    (found,) = _nearest(listed(10, 20), 25, "lowest", "what", "then")
    assert found.seen.message.startswith("checkpoint-10 is the nearest")


def sources(at: Path | None, *steps: int) -> Any:
    return SimpleNamespace(checkpoints=folders(*steps), weights=SimpleNamespace(path=at))


@pytest.mark.parametrize(("last", "mid"), [(100, False), (101, True), (None, False)])
def test_weights_from_before_nine_tenths_of_the_log_are_from_mid_run(last, mid):
    found = list(_mid_run(sources(Path("/run/checkpoint-90"), 50, 90), listed(50, 90), last))
    assert [symptom.seen.values for symptom in found] == [{"weights_step": 90, "last_step": last}] * mid
    chosen = listed(90)._replace(best=best(step=90))
    assert list(_mid_run(sources(Path("/run/checkpoint-90"), 90), chosen, last)) == []
    assert list(_mid_run(sources(None, 90), listed(90), last)) == []
    assert list(_mid_run(sources(Path("/run/checkpoint-90"), 90), listed(90, of_run=False), last)) == []


@pytest.mark.parametrize(("last", "short"), [(90, False), (91, True), (None, False)])
def test_weights_older_than_the_log_are_short_of_the_end(last, short):
    found = list(_short(sources(Path("/run/checkpoint-90"), 50, 90), last))
    assert [symptom.seen.values for symptom in found] == [{"weights_step": 90}] * short
    assert list(_short(sources(Path("/elsewhere"), 90), last)) == []


@pytest.mark.parametrize(("ended", "fact"), [(["END114"], "short_of_the_end"), ([], "mid_run")])
def test_old_weights_of_a_run_that_did_not_end_are_short_of_it_and_else_of_mid_run(ended, fact):
    at = sources(Path("/run/checkpoint-50"), 50)
    at.folder = Path("/run")
    said = SimpleNamespace(
        findings=[Finding(id=rule, severity="warning", message="m") for rule in ended],
        train=SimpleNamespace(last_step=100),
    )
    assert [symptom.id for symptom in disk_symptoms(at, listed(50), said, RunSeries("r"))] == [fact]
    at.folder = None
    assert list(disk_symptoms(at, CheckpointChoice([]), said, RunSeries("r"))) == []


def series(norms: dict[int, float], lost: frozenset[int] = frozenset()) -> RunSeries:
    run = RunSeries("r")
    run.steps.extend(norms)
    run.grad_norms.extend(norms.values())
    run.lost_norms = set(lost)
    return run


def test_numbers_are_bad_for_good_from_a_masked_loss_or_from_where_no_gradient_is_finite_up_to_the_end():
    inf = math.inf
    assert _lasting(series({1: 1.0, 2: inf, 3: 1.0}), [{}]) is None
    assert _lasting(series({1: 1.0, 2: inf, 3: 1.0, 4: inf, 5: inf}), [{}]) == 4
    assert _lasting(series({1: 1.0, 2: math.nan, 3: math.nan}, frozenset({3})), [{}]) == 3  # at 2 none was logged
    assert _lasting(series({1: 1.0, 2: inf}), [{"first_step": 7}, {"first_step": 5}]) == 2
    assert _lasting(series({1: 1.0}), [{"first_step": 7}, {"first_step": 5}]) == 5


def test_of_the_last_three_checkpoints_before_a_step_the_latest_finite_one_is_named(monkeypatch):
    monkeypatch.setattr(choosing, "unreadable", lambda path: "" if path.name == "checkpoint-20" else "not finite")
    found = _before_nan(listed(10, 20, 30, 40), 40).seen
    assert found.message == "checkpoint-20, saved before step 40: its weights are finite; checkpoint-30 is not"
    found = _before_nan(listed(10, 20, 30, 40, 50), 60).seen
    assert (
        found.message == "checkpoint-50, checkpoint-40, checkpoint-30, saved before step 60: not finite or not readable"
    )
    assert found.action == "Start again; look at the learning rate, the precision and the data of that step."
    for none in (listed(40), listed(20, of_run=False)):
        assert _before_nan(none, 40).seen.message == "no checkpoint of this run from before step 40 is on disk"


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


@every(("accuracy", "known"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (-0.01, None), (1.01, None), (None, None)])
def test_an_accuracy_is_a_share_and_its_ends_are(accuracy, known):
    held = {"accuracy": None if accuracy is None else real(accuracy)}
    points = [
        SimpleNamespace(split="test", metrics=None),
        SimpleNamespace(split="eval", metrics=EvalMetrics(n=7, **held)),
    ]
    assert choosing._n_and_accuracy(SimpleNamespace(evals=points), "eval") == (7, known)
    assert choosing._n_and_accuracy(SimpleNamespace(evals=points), "train") == (None, None)


def test_the_gravest_cause_comes_first_and_of_two_the_joined_one(monkeypatch):
    def symptom(rule: str, severity: Any) -> Symptom:
        found = Finding(id=rule, severity=severity, message=rule)
        return Symptom("log", rule, Observation(rule, {}), found)

    symptoms = [symptom(rule, severity) for rule, severity in (("A", "info"), ("B", "error"), ("C", "warning"))]
    assert [(cause.id, cause.severity) for cause in _causes([], symptoms, [])] == [
        ("B", "error"),
        ("C", "warning"),
        ("A", "info"),
    ]
    both = [Piece(source="log", id=rule, severity="warning", says=rule) for rule in "AC"]
    joined = Cause(id="J", severity="warning", message="j", joined=True, pieces=both)
    monkeypatch.setattr("gradience.judge.diagnose.correlate", lambda *_: Correlated([joined], symptoms))
    assert [cause.id for cause in _causes([], symptoms, [])] == ["B", "J", "C", "A"]


def test_a_weights_file_of_another_name_counts_where_it_is_alone():
    def one(*files: str) -> tuple[str | None, str]:
        found = _single_file(Path("/f"), list(files))
        return found.path and found.path.name, found.chosen or found.reason

    assert one("a.safetensors", "notes.txt") == ("a.safetensors", "the only weights file")
    for two in (("a.safetensors", "b.safetensors"), ("a.safetensors", "model.safetensors")):
        assert one(*two) == (None, f"{', '.join(two)}: not named as an adapter is (name it with --adapter)")
    assert one("model.safetensors") == (None, "model.safetensors: a whole model, no adapter")
    assert one("notes.txt") == (None, "no adapter in the folder")
    assert (
        one("adapter_config.json")[1] == "no adapter in the folder: adapter_config.json is there, its weights are not"
    )
