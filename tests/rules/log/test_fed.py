"""What the recorder saw of the batches: judged by the rules on data, and one cause where every label is masked."""

from __future__ import annotations

from typing import Any

from log_runs import facts_of, logged_rows
from tables import every

from gradience.rules import Verdict
from gradience.rules.log import detect
from gradience.rules.log.facts import RunFacts
from gradience.rules.log.story import story_parts
from gradience.schema.reports import TrainSummary

FED = {
    "batches": 900,
    "watched": 16,
    "rows": 64,
    "tokens": 6400,
    "padding": 1000,
    "supervised": 3000,
    "rows_unsupervised": 0,
    "rows_at_limit": 3,
    "rows_with_end": 64,
    "rows_repeated": 0,
    "longest": 128,
    "max_length": 128,
    "label_min": None,
    "label_max": None,
    "num_labels": None,
    "packed": False,
    "unseen": None,
}
MASKED = {"supervised": 0, "rows_unsupervised": 64, "rows_with_end": 0}


def facts(losses: Any = (2.0, 1.5, 1.2), **changed: Any) -> RunFacts:
    rows = len(losses)
    return facts_of(logged_rows(list(range(1, rows + 1)), losses, [1.0] * rows, [1e-4] * rows), data={**FED, **changed})


def of_data(verdict: Verdict) -> dict[str, str]:
    return {finding.id: finding.severity for finding in verdict.findings if finding.id.startswith("DAT")}


def why(verdict: Verdict) -> dict[str, str]:
    return {item.id: item.reason for item in verdict.not_run}


def test_batches_without_a_fault_have_no_finding() -> None:
    assert of_data(detect(facts())) == {}


@every(
    ("changed", "rule", "severity"),
    [
        ({"rows_unsupervised": 1}, "DAT301", "error"),
        (MASKED, "DAT301", "critical"),
        ({"rows_at_limit": 4}, "DAT305", "warning"),
        ({"rows_with_end": 0}, "DAT307", "warning"),
        ({"rows_repeated": 1}, "DAT313", "info"),
        ({"rows_repeated": 7}, "DAT313", "info"),  # a few batches are a hint, whatever the share
        ({"label_min": 0, "label_max": 3, "num_labels": 3}, "DAT316", "error"),
        ({"label_min": -1, "label_max": 2, "num_labels": 3}, "DAT316", "error"),
        ({"padding": 6400}, "DAT320", "info"),
        ({"announced": {"supervised_share": 0.58, "tokens_per_sequence": 100.0}}, "DAT321", "warning"),
        ({"announced": {"supervised_share": 0.47, "tokens_per_sequence": 134.0}}, "DAT321", "warning"),
        ({"announced": {"max_length": 127}}, "DAT321", "warning"),
        ({"announced": {"template_digest": "ab"}, "template_digest": "cd"}, "DAT321", "warning"),
        ({"announced": {"data": "train.jsonl"}, "dataset": "other.jsonl"}, "DAT321", "warning"),
    ],
)
def test_a_fault_of_the_batches_is_found(changed: Any, rule: str, severity: str) -> None:
    assert of_data(detect(facts(**changed))) == {rule: severity}


@every(
    "changed",
    [
        {"rows_at_limit": 3},
        {"rows_with_end": 1},
        {"supervised": 128},
        {"padding": 6399},
        {"padding": 6400, "packed": True},
        {"label_min": 0, "label_max": 2, "num_labels": 3},
        {"rows": 31, "rows_with_end": 0, "rows_at_limit": 0},
        {"announced": {"supervised_share": 0.56, "tokens_per_sequence": 81.0}},
        {"announced": {"supervised_share": 0.47, "tokens_per_sequence": 134.0}, "packed": True},
        {"announced": {"max_length": 128}},
        {"announced": {"max_length": 127}, "max_length": None},
        {"announced": {"template_digest": "ab"}, "template_digest": "ab"},
        {"announced": {"template_digest": "ab"}},
        {"announced": {"template_digest": "ab"}, "template_digest": "cd", "template": "qwen"},  # it writes its own
        {"announced": {"data": "train.jsonl"}, "dataset": "train.jsonl#500"},
        {"announced": {"data": "train.jsonl"}, "dataset": "org/data"},
    ],
)
def test_at_the_thresholds_nothing_is_found(changed: Any) -> None:
    assert of_data(detect(facts(**changed))) == {}


def test_masked_labels_and_a_loss_of_zero_are_one_finding() -> None:
    verdict = detect(facts([0.0] * 40, **MASKED))
    assert [finding.id for finding in verdict.findings if finding.severity != "info"] == ["DAT301"]
    assert why(verdict)["NOL106"] == "no token is supervised (see DAT301): loss and gradient mean nothing"
    unmasked = detect(facts([0.0] * 40))
    assert "NOL106" not in why(unmasked) or "DAT301" not in why(unmasked)["NOL106"]


def test_the_story_of_such_a_run_begins_with_it_and_learns_nothing() -> None:
    masked = facts([3.0 - 0.05 * i for i in range(40)], **MASKED)
    parts = story_parts(masked, detect(masked).findings, TrainSummary(rows=40))
    assert (parts[0].says, parts[0].finding) == ("no token is supervised", "DAT301")
    assert not any(part.says == "learns" for part in parts)


@every("odd", [{"rows": "many"}, {"supervised": None}, {"tokens": -1}, {"announced": [1]}, {"rows": 0}])
def test_an_event_of_anybodys_making_is_judged_as_far_as_it_goes(odd: Any) -> None:
    detect(facts(**odd))
