"""What a diagnosis makes of a run that turned out well, of what it did not look at, and of weights that tell on it."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file, save_file
from tables import every

from gradience import diagnose
from gradience.rules.joins.symptoms import Outcome, outcome_of, outweighed
from gradience.schema.document import Finding, NotRun
from gradience.schema.events import ConfigSnapshot, Eval, EvalMetrics
from gradience.schema.reports import EvalPoint
from gradience.verbs.check import check_config


@pytest.fixture
def copied(trained, tmp_path):
    """A function that copies a run's folder, with another learning rate in its arguments."""

    def copy(kind, rate=None):
        folder = tmp_path / "out"
        shutil.copytree(trained(kind), folder)
        if rate is not None:
            arguments = {"learning_rate": rate, "optim": "adamw_torch", "num_train_epochs": 1}
            (folder / "training_args.json").write_text(json.dumps(arguments))
        return folder

    return copy


def of(report, rule):
    return next((cause for cause in report.causes if rule in {piece.id for piece in cause.pieces}), None)


def test_a_low_rate_of_a_run_that_turned_out_well_is_info_and_says_that_the_outcome_outweighs_it(copied):
    report = diagnose(copied("healthy", 2e-5))
    cause = of(report, "LR001")
    assert cause.severity == "info"
    assert cause.message.startswith("a convention that this run's outcome outweighs (held-out loss ")
    assert "nothing is wrong with this run" in cause.action
    assert report.verdict == "no_fault_found"


def test_a_converged_run_is_not_told_that_most_such_runs_diverge(copied):
    report = diagnose(copied("healthy", 5e-2))
    assert of(report, "LR003") is None
    reason = next(item.reason for item in report.not_run if item.id == "LR003")
    assert reason.startswith("this run did not diverge (held-out loss ")


def test_a_run_that_did_not_turn_out_well_is_told_of_its_rate_as_before(copied):
    report = diagnose(copied("overfit", 5e-2))
    assert of(report, "LR003").severity in {"warning", "error"}


def seen(*, accuracy=None, losses=(), findings=(), not_run=(), status="ok", labels=None):
    """A report as far as the outcome reads it, and the evaluations."""
    metrics = EvalMetrics(loss=losses[-1] if losses else None, accuracy=accuracy)
    report = SimpleNamespace(
        status=status,
        findings=[Finding(id=rule, severity=severity, message="x") for rule, severity in findings],
        not_run=[NotRun(id=rule, reason="few rows") for rule in not_run],
        evals=[EvalPoint(split="eval", step=1, metrics=metrics)],
        config=ConfigSnapshot(num_labels=labels),
    )
    evals = [
        Eval(schema="gradience.vnext.telemetry/v1", ts=None, run_id="r", step=n, split="eval",
             metrics=EvalMetrics(loss=loss)) for n, loss in enumerate(losses)
    ]  # fmt: skip
    return outcome_of(report, evals)


@every(
    ("accuracy", "labels", "good"),
    [(0.91, None, True), (0.75, None, True), (0.74, None, False), (0.625, 4, True), (0.62, 4, False), (1.01, 2, False)],
)
def test_accuracy_is_good_from_half_the_way_between_chance_and_one(accuracy, labels, good):
    assert bool(seen(accuracy=accuracy, labels=labels).good) == good


@every(
    ("losses", "good"),
    [
        ([1.0, 0.97], True),
        ([1.0, 0.98], False),  # fell by less than 3 %
        ([1.0, 0.5, 0.51], True),
        ([1.0, 0.5, 0.52], False),  # rose again by more than 2 %
        ([0.5], False),
    ],
)
def test_held_out_loss_is_good_where_it_fell_and_stayed_near_its_lowest(losses, good):
    assert bool(seen(losses=losses).good) == good


def test_nothing_is_said_well_of_a_run_with_a_warning_or_without_an_end():
    assert seen(accuracy=0.9, findings=[("OVF110", "warning")]) == Outcome()
    assert seen(accuracy=0.9, status="unknown") == Outcome()
    assert seen(accuracy=0.9, findings=[("GAP118", "info")]).good


def test_without_a_held_out_result_a_run_converged_only_where_divergence_was_judged():
    assert seen().converged
    assert not seen(not_run=["DIV104"]).converged
    check = check_config(ConfigSnapshot(dataset_name="d"))
    assert outweighed(check, Outcome()) is check


def test_the_verdict_says_how_much_was_judged_and_what_was_not_seen(copied):
    folder = copied("healthy")
    report = diagnose(folder)
    assert report.headline.startswith("no problems found (checked: config 26 of 35, log 42 of 48, weights 10 of 13)")
    shutil.rmtree(folder / "checkpoint-50")
    shutil.rmtree(folder / "checkpoint-100")
    (folder / "adapter_model.safetensors").unlink()
    report = diagnose(folder)
    assert report.headline.startswith("no problems found (checked: config ")
    assert "; not there: weights" in report.headline
    assert "healthy" not in report.headline.lower()


def test_weights_of_an_early_checkpoint_shipped_as_the_final_ones_are_named(copied):
    folder = copied("masked_nan")  # checkpoints at 10, 20, 30 and 40
    shutil.copy(folder / "checkpoint-10" / "adapter_model.safetensors", folder)
    report = diagnose(folder)
    (cause,) = [cause for cause in report.causes if cause.id == "MID318"]
    assert cause.message == "These weights are those of step 10, and the log reaches step 40."
    last = diagnose(folder, adapter=folder / "checkpoint-40")
    assert "MID318" not in {cause.id for cause in last.causes}


@pytest.mark.parametrize(("factor", "words"), [(1e-3, "almost zero"), (3e3, "huge")])
def test_a_tiny_and_a_huge_update_are_said(copied, factor, words):
    folder = copied("healthy")
    path = folder / "adapter_model.safetensors"
    tensors = {name: t * factor if "lora_B" in name else t for name, t in load_file(path).items()}
    save_file({name: t.astype("float32") for name, t in tensors.items()}, path)
    (cause,) = [cause for cause in diagnose(folder).causes if cause.id == "UPD316"]
    assert cause.severity == "warning"
    assert words in cause.message


def test_few_layers_are_said(copied):
    folder = copied("healthy")
    path = folder / "adapter_model.safetensors"
    moved = {name.replace(".layers.0.", ".layers.9."): t for name, t in load_file(path).items()}
    save_file(moved, path)
    (cause,) = [cause for cause in diagnose(folder).causes if cause.id == "LYR317"]
    assert cause.message.startswith("2 of at least 10 layers") or cause.message.startswith("1 of at least 10 layers")
