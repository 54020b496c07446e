"""What each rule on a data set states, and that it speaks at its threshold and not under it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gradience.rules import judge
from gradience.rules.data import DATA_RULES
from gradience.rules.data.content import counted
from gradience.schema.document import Finding
from gradience.schema.reports import DataReport, Rows

STATED = {
    "DAT300": ("warning", 0.9),
    "DAT301": ("error", 0.95),
    "DAT302": ("error", 0.95),
    "DAT303": ("info", 0.5),
    "DAT304": ("warning", 0.85),
    "DAT305": ("info", 0.9),
    "DAT306": ("warning", 0.9),
    "DAT307": ("error", 0.8),
    "DAT308": ("error", 0.8),
    "DAT309": ("warning", 0.85),
    "DAT310": ("warning", 0.85),
    "DAT311": ("warning", 0.8),
    "DAT312": ("warning", 0.7),
    "DAT313": ("info", 0.8),
    "DAT314": ("warning", 0.9),
    "DAT315": ("warning", 0.7),
    "DAT316": ("error", 0.95),
    "DAT317": ("error", 0.9),
    "DAT318": ("info", 0.75),
    "DAT319": ("info", 0.6),
    "DAT320": ("info", 0.8),
}


def data(**changed: Any) -> DataReport:
    """A data set of 1000 rows without a fault, but for what is changed."""
    seen = {name: {"count": count, "first": [1]} for name, count in changed.pop("seen", {}).items()}
    whole = {
        "path": "train.jsonl",
        "format": "messages",
        "trainer": "sft",
        "rows": 1000,
        "rows_read": 1000,
        "sequences": 1000,
        "whole_rows": 1000,
        "tokenizer": "tok",
        "template": "the tokenizer",
        "template_marks_answers": True,
        "loss": "assistant",
        "max_length": 512,
        "pad_is_end": False,
        "end_tokens": ["<|im_end|>"],
        "tokens": {"total": 100_000, "kept": 100_000, "supervised": 40_000},
        "lengths": {"p50": 100, "p95": 200, "p99": 300, "longest": 400, "longest_rows": [7]},
        "batching": {"batch_size": 8, "padding_share": 0.2},
        "seen": {"end_supervised": {"count": 1000, "first": [1]}, **seen},
        "answers": {"rows": 1000, "most_common": 3},
        **changed,
    }
    return msgspec.convert(whole, DataReport)


def found(report: DataReport) -> dict[str, Finding]:
    return {finding.id: finding for finding in judge(DATA_RULES, report).findings}


def why(report: DataReport) -> dict[str, str]:
    return {item.id: item.reason for item in judge(DATA_RULES, report).not_run}


LABELLED = {"format": "classification", "trainer": "classification", "loss": "none", "num_labels": 3}
TOKENISED = {"format": "tokenised", "has_labels": True, "pad_is_end": True}


def test_rules_state_their_severity_and_confidence() -> None:
    assert {rule.id: (rule.severity, rule.confidence) for rule in DATA_RULES} == STATED


def test_a_data_set_without_a_fault_has_no_finding() -> None:
    assert found(data()) == {}


@pytest.mark.parametrize(
    ("rule", "speaks", "severity", "silent"),
    [
        ("DAT300", {"seen": {"unreadable": 1}}, "warning", {}),
        ("DAT300", {"seen": {"unreadable": 11}}, "error", {}),
        ("DAT300", {"seen": {"unreadable": 10}, "rows_read": 990}, "error", {}),
        ("DAT300", {"seen": {"unreadable": 10}, "rows_read": 991}, "warning", {}),
        ("DAT301", {"seen": {"unsupervised": 1}}, "error", {}),
        ("DAT301", {"seen": {"unsupervised": 1000}}, "critical", {}),
        ("DAT302", {"template_marks_answers": False}, "error", {"template_marks_answers": False, "loss": "all"}),
        (
            "DAT302",
            {"template_marks_answers": False},
            "error",
            {"template_marks_answers": False, "masked_by": "axolotl"},
        ),
        (
            "DAT303",
            {"tokens": {"total": 100_000, "kept": 100_000, "supervised": 1999}},
            "info",
            {"tokens": {"total": 100_000, "kept": 100_000, "supervised": 2000}},
        ),
        ("DAT304", {"seen": {"all_supervised": 500}}, "warning", {"seen": {"all_supervised": 499}}),
        ("DAT304", {"seen": {"all_supervised": 500}}, "warning", {"seen": {"all_supervised": 500}, "loss": "all"}),
        ("DAT305", {"seen": {"cut": 49}}, "info", {}),
        ("DAT305", {"seen": {"cut": 50}}, "warning", {}),
        ("DAT306", {"seen": {"answer_cut": 1}}, "warning", {"seen": {"cut": 1}}),
        ("DAT306", {"seen": {"answer_cut": 60, "answer_lost": 49}}, "warning", {}),
        ("DAT306", {"seen": {"answer_cut": 60, "answer_lost": 50}}, "error", {}),
        ("DAT307", {"seen": {"end_supervised": 0}}, "error", {"seen": {"end_supervised": 500}}),
        ("DAT307", {"seen": {"end_supervised": 499}}, "warning", {"seen": {"end_supervised": 500}}),
        ("DAT307", {"seen": {"end_supervised": 0}, "turn_end": "<|eot|>"}, "warning", {}),
        ("DAT308", {**TOKENISED, "seen": {"end_masked": 500}}, "error", {**TOKENISED, "seen": {"end_masked": 499}}),
        (
            "DAT308",
            {**TOKENISED, "has_labels": False},
            "warning",
            {**TOKENISED, "has_labels": False, "pad_is_end": False},
        ),
        ("DAT309", {"seen": {"double_bos": 10}}, "warning", {"seen": {"double_bos": 9}}),
        ("DAT310", {"template_tokens_split": ["<|turn|>"]}, "warning", {}),
        ("DAT311", {"seen": {"empty_answer": 1}}, "warning", {}),
        (
            "DAT312",
            {"answers": {"rows": 20, "most_common": 10}},
            "warning",
            {"answers": {"rows": 20, "most_common": 9}},
        ),
        ("DAT313", {"seen": {"duplicate": 10}}, "info", {"seen": {"duplicate": 9}}),
        ("DAT313", {"seen": {"duplicate": 100}}, "warning", {}),
        ("DAT318", {"seen": {"mojibake": 9}}, "info", {}),
        ("DAT318", {"seen": {"replacement": 10}}, "warning", {}),
        (
            "DAT319",
            {"lengths": {"p50": 30, "longest": 601}},
            "info",
            {"lengths": {"p50": 30, "longest": 600}},
        ),
        ("DAT319", {"lengths": {"p50": 2, "longest": 513}}, "info", {"lengths": {"p50": 2, "longest": 512}}),
        (
            "DAT320",
            {"batching": {"batch_size": 8, "padding_share": 0.5}},
            "info",
            {"batching": {"batch_size": 8, "padding_share": 0.49}},
        ),
        (
            "DAT315",
            {**LABELLED, "labels": {"1": 900, "0": 100}, "labels_total": 2},
            "warning",
            {**LABELLED, "labels": {"1": 899, "0": 101}, "labels_total": 2},
        ),
        (
            "DAT316",
            {**LABELLED, "labels": {"1": 1, "0": 1}, "seen": {"label_out_of_range": 1}},
            "error",
            {**LABELLED, "labels": {"1": 1, "0": 1}},
        ),
        (
            "DAT317",
            {**LABELLED, "labels": {"1": 1000}, "labels_total": 1},
            "error",
            {**LABELLED, "labels": {"1": 999, "0": 1}, "labels_total": 2},
        ),
    ],
)
def test_a_rule_speaks_from_its_threshold_on(rule: str, speaks: Any, severity: str, silent: Any) -> None:
    assert found(data(**speaks))[rule].severity == severity
    assert rule not in found(data(**silent))


@pytest.mark.parametrize(("exact", "near", "severity"), [(1, 0, "warning"), (0, 1, "warning"), (3, 2, "error")])
def test_overlap_counts_exact_and_near_rows(exact: int, near: int, severity: str) -> None:
    counts = {"exact": {"count": exact, "first": [1]}, "near": {"count": near, "first": [2]}}
    report = data(overlap={"eval_rows": 100, "near_judged": True, **counts})
    assert found(report)["DAT314"].severity == severity


def test_overlap_without_minhash_is_judged_by_exact_rows_and_listed_as_not_judged() -> None:
    report = data(overlap={"eval_rows": 100, "near_reason": "no datasketch"})
    assert "DAT314" not in found(report)
    assert why(report)["DAT314"] == "no datasketch"


@pytest.mark.parametrize(
    ("rule", "changed", "reason"),
    [
        ("DAT301", {"template_marks_answers": False}, "see DAT302"),
        ("DAT304", {"loss": "all"}, "as asked"),
        ("DAT305", {"max_length": None}, "no length limit"),
        ("DAT307", {"end_tokens": []}, "no end token"),
        ("DAT307", {"whole_rows": 0}, "no supervised answer is complete"),
        ("DAT308", {"pad_is_end": None}, "no tokenizer"),
        ("DAT310", {"template": ""}, "no chat template"),
        ("DAT312", {"answers": {"rows": 19, "most_common": 19}}, "19 answers"),
        ("DAT313", {"sampled": True}, "--samples all"),
        ("DAT314", {}, "--eval-data"),
        ("DAT315", {}, "no label"),
        ("DAT316", {**LABELLED, "labels": {"0": 1}, "num_labels": None}, "number of classes"),
        ("DAT320", {"packing": True}, "packing is on"),
        ("DAT301", LABELLED, "not on tokens"),
    ],
)
def test_a_rule_that_lacks_its_input_says_why(rule: str, changed: Any, reason: str) -> None:
    assert reason in why(data(**changed))[rule]


@pytest.mark.parametrize(
    ("cut", "lost", "says"),
    [
        (7, 7, "7 of 1,000 rows (0.7 %: 1, ...) lose part of their answer at 512 tokens (0.0% of the supervised"),
        (9, 7, "9 of 1,000 rows (0.9 %: 1, ...) lose part of their answer at 512 tokens (0.0% of the supervised"),
        (5, 7, "7 of 1,000 rows (0.7 %: 2, ...) lose part of their answer at 512 tokens (0.0% of the supervised"),
    ],
)
def test_answers_that_are_cut_are_counted_by_the_larger_of_both_counts(cut: int, lost: int, says: str) -> None:
    report = data(seen={"answer_cut": cut, "answer_lost": lost})
    gone = msgspec.structs.replace(report.seen.answer_lost, first=[2])
    report = msgspec.structs.replace(report, seen=msgspec.structs.replace(report.seen, answer_lost=gone))
    message = found(report)["DAT306"].message
    assert message.startswith(says)
    assert message.endswith(f"; {lost} of 1,000 rows ({lost / 10:.1f} %: 2, ...) lose the whole answer")


@pytest.mark.parametrize(
    ("count", "of", "shown"),
    [(0, 9, "0"), (1, 3, "33"), (1, 9, "11"), (1, 11, "9.1"), (99, 1000, "9.9"), (1, 10, "10"), (1, 1000, "0.1")],
)
def test_a_share_of_rows_has_two_digits(count: int, of: int, shown: str) -> None:
    assert counted(Rows(count=count), of) == f"{count} of {of:,} rows ({shown} %)"
