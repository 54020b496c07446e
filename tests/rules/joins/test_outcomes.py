"""How a run turned out: what makes a held-out result good, in numbers and in words."""

from __future__ import annotations

from types import SimpleNamespace

from tables import every

from gradience.rules.joins.symptoms import Outcome, outcome_of, outweighed
from gradience.schema.document import Finding, NotRun
from gradience.schema.events import ConfigSnapshot, Eval, EvalMetrics
from gradience.schema.reports import CHECK_SCHEMA_ID, CheckReport, EvalPoint


def outcome(losses=(), *, accuracy=None, labels=None, split="eval", findings=(), not_run=(), status="ok"):
    metrics = EvalMetrics(loss=losses[-1] if losses else None, accuracy=accuracy)
    report = SimpleNamespace(
        status=status,
        findings=[Finding(id=rule, severity=severity, message="x") for rule, severity in findings],
        not_run=[NotRun(id=rule, reason="few rows") for rule in not_run],
        evals=[EvalPoint(split="train", step=1, metrics=metrics), EvalPoint(split=split, step=1, metrics=metrics)],
        config=ConfigSnapshot(num_labels=labels),
    )
    evals = [
        Eval(
            schema="gradience.vnext.telemetry/v1",
            ts=None,
            run_id="r",
            step=n,
            split=name,
            metrics=EvalMetrics(loss=loss),
        )
        for n, (name, loss) in enumerate(
            [("other", 9.0), *((split, loss) for loss in losses), (split, None), ("z", 0.1)]
        )
    ]
    return outcome_of(report, evals)


@every(
    ("losses", "good"),
    [
        ([2.0, 1.5], "held-out loss 2 -> 1.5"),
        ([2.0, 1.941], ""),
        ([2.0, 1.94], "held-out loss 2 -> 1.94"),
        ([2.0, 1.0, 1.02], "held-out loss 2 -> 1.02"),
        ([2.0, 1.939], "held-out loss 2 -> 1.939"),
        ([2.0, 1.5, 1.529], "held-out loss 2 -> 1.529"),
        ([2.0, 1.5, 1.531], ""),
        (["NaN", 2.0, "Infinity", 1.5], "held-out loss 2 -> 1.5"),
        ([2.0], ""),
        ([-1.0, -2.0], ""),
        ([0.0, -2.0], ""),
        ([0.0, 0.0], ""),
    ],
)
def test_a_held_out_loss_is_good_that_fell_by_three_per_cent_and_is_near_its_best(losses, good):
    assert outcome(losses) == Outcome(converged=True, good=good)


@every(
    ("accuracy", "labels", "good"),
    [(0.75, None, True), (0.749, None, False), (0.625, 4, True), (0.624, 4, False), (1.0, 2, True), (1.001, 2, False),
     (0.75, 1, True), (0.75, 0, True)],
)  # fmt: skip
def test_an_accuracy_is_good_half_of_the_way_from_chance_to_one(accuracy, labels, good):
    found = outcome([2.0, 1.0], accuracy=accuracy, labels=labels)
    assert found.good == (f"held-out accuracy {accuracy:.3g}" if good else "")  # and outweighs the loss


@every(
    ("more", "converged"),
    [
        ({}, True),
        ({"status": "error"}, False),
        ({"findings": [("SML113", "info")]}, True),
        ({"findings": [("OVF110", "warning")]}, False),
        ({"not_run": ["GAP111"]}, True),
        ({"not_run": ["NOL106"]}, False),
        ({"findings": [("NUM101", "info")]}, False),
        ({"not_run": ["NOL106"], "losses": [2.0, 1.0]}, True),  # the held-out loss says it
    ],
)
def test_a_run_converged_that_was_judged_and_has_no_warning(more, converged):
    losses = more.pop("losses", [])
    assert outcome(losses, **more).converged is converged


RATES = ("LR001", "LR002", "LR003", "LR004", "LR005", "ALP001", "ALP002", "SCH002", "BAT001")


def checked() -> CheckReport:
    findings = [Finding(id=rule, severity="warning", message=rule) for rule in RATES]
    not_run = [NotRun(id="TGT001", reason="no targets")]
    return CheckReport(schema=CHECK_SCHEMA_ID, config=ConfigSnapshot(), findings=findings, not_run=not_run)


def test_a_good_outcome_outweighs_conventions_and_refutes_that_such_a_rate_diverges():
    found = outweighed(checked(), Outcome(converged=True, good="so"))
    severities = {item.id: item.severity for item in found.findings}
    milder = dict.fromkeys(("LR001", "LR004", "ALP001", "ALP002", "SCH002"), "info")
    assert severities == {**milder, "BAT001": "warning"}
    messages = {item.id: item.message for item in found.findings}
    said = {item.id: [(ground.source, ground.says) for ground in item.evidence] for item in found.findings}
    assert said == {"BAT001": [], **{rule: [("the log", "so")] for rule in milder}}
    assert messages["SCH002"] == "a convention that this run's outcome outweighs (so): SCH002"
    assert messages["BAT001"] == "BAT001"
    assert found.findings[0].id == "BAT001"  # the gravest first
    assert [(item.id, item.reason) for item in found.not_run] == [
        ("TGT001", "no targets"),
        *((rule, "this run did not diverge (so)") for rule in ("LR002", "LR003", "LR005")),
    ]


def test_an_outcome_that_is_only_not_bad_refutes_and_outweighs_nothing_else():
    found = outweighed(checked(), Outcome(converged=True))
    assert {item.severity for item in found.findings} == {"warning"}
    assert {item.id for item in found.findings} == set(RATES) - {"LR002", "LR003", "LR005"}
    assert {item.reason for item in found.not_run} == {"no targets", "this run did not diverge"}
    assert outweighed(checked(), Outcome()) == checked()
