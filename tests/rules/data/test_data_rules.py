"""What each rule on a data set states, and that it speaks at its threshold and not under it."""

from __future__ import annotations

from typing import Any

import msgspec
from tables import every

from gradience.rules import judge
from gradience.rules.data import DATA_RULES
from gradience.rules.data.content import counted
from gradience.schema.document import Finding
from gradience.schema.reports import DataReport, Rows


def data(**changed: Any) -> DataReport:
    """A data set of 1000 rows without a fault, but for what is changed."""
    seen = {name: {"count": count, "first": [1]} for name, count in changed.pop("seen", {}).items()}
    whole = {
        "path": "train.jsonl",
        "format": "messages",
        "trainer": "sft",
        "rows": 1000,
        "rows_read": 1000,
        "sequences": 2000,
        "whole_rows": 1000,
        "tokenizer": "tok",
        "template": "the tokenizer",
        "template_marks_answers": True,
        "loss": "assistant",
        "max_length": 512,
        "pad_is_end": False,
        "end_tokens": ["<|im_end|>"],
        "tokens": {"total": 100_000, "kept": 100_000, "supervised": 40_000},
        "lengths": {"p50": 100, "p95": 200, "p99": 300, "longest": 400},
        "batching": {"batch_size": 8, "padding_share": 0.2},
        "batch_stated": True,
        "seen": {"end_supervised": {"count": 1000, "first": [1]}, **seen},
        "answers": {"rows": 1000, "most_common": 3},
        **changed,
    }
    return msgspec.convert(whole, DataReport)


def seen(base: dict[str, Any] | None = None, **counts: int) -> dict[str, Any]:
    """Changes of a report: so many rows with each of these."""
    return {**(base or {}), "seen": counts}


def padded(share: float | None, packed: int | None = None, **changed: Any) -> dict[str, Any]:
    sequences = {} if packed is None else {"packed_sequences": packed}
    return {"batching": {"batch_size": 8, "padding_share": share, **sequences}, **changed}


def same(most_common: int, *, of: int, **changed: int) -> dict[str, Any]:
    """So many answers are one text."""
    return {"answers": {"rows": of, "most_common": most_common, **changed}}


def repeated(count: int, *, of: int) -> dict[str, Any]:
    """So many answers share a sentence."""
    return {"repeated": {"answers": of, "rows": {"count": count}}}


def near(count: int) -> dict[str, Any]:
    return {"near": {"compared": 1000, "rows": {"count": count}}}


def paired(own: int, *, of: int, apart: int) -> dict[str, Any]:
    """So many of the words that one question and one answer have are in one row, and so many equally far apart."""
    return {"paired": {"words": of, "own": own, "offset": -1, "at_offset": apart}}


def longest(count: int, *, of: int, characters: int = 100, unended: int = 18) -> dict[str, Any]:
    """So many questions have the greatest length."""
    return {"longest_questions": {"of": of, "characters": characters, "texts": count, "unended": unended}}


def supervised(count: int, *, of: int, total: int) -> dict[str, Any]:
    return {"tokens": {"total": total, "kept": of, "supervised": count}}


def kto(wanted: int, unwanted: int, weights: list[float] | None = None) -> dict[str, Any]:
    """So many answers of each kind, under KTO's two weights."""
    labels = {"True": wanted, "False": unwanted}
    return {**LABELLED, "trainer": "kto", "labels": labels, "labels_total": 2, "label_weights": weights or [1.0, 1.0]}


def answered(count: int, *, of: int) -> dict[str, Any]:
    """So many answers are in another language than their question."""
    return {"answered": {"stated": of, "rows": {"count": count, "first": [4, 9]}}}


def found(report: DataReport) -> dict[str, Finding]:
    return {finding.id: finding for finding in judge(DATA_RULES, report).findings}


def why(report: DataReport) -> dict[str, str]:
    return {item.id: item.reason for item in judge(DATA_RULES, report).not_run}


UNMARKED = {"template_marks_answers": False}
LABELLED = {"format": "classification", "trainer": "classification", "loss": "none", "num_labels": 3}
CLASSES = {**LABELLED, "labels": {"spam": 980, "ham": 20}, "labels_total": 2}
FEWER = {**CLASSES, "labels": {"spam": 981, "ham": 19}}
REWARDED = {"format": "prompt-only", "trainer": "grpo", "loss": "none", "columns": ["prompt", "solution"]}
TOKENISED = {"format": "tokenised", "has_labels": True, "pad_is_end": True}


def test_a_data_set_without_a_fault_has_no_finding() -> None:
    assert found(data()) == {}
    assert all(0 < rule.confidence <= 1 for rule in DATA_RULES)


@every(
    ("rule", "speaks", "severity", "silent"),
    [
        ("DAT300", seen(unreadable=1), "warning", {}),
        ("DAT300", seen(unreadable=11), "error", {}),
        ("DAT300", seen({"rows_read": 990}, unreadable=10), "error", {}),
        ("DAT300", seen({"rows_read": 991}, unreadable=10), "warning", {}),
        ("DAT301", seen(unsupervised=1), "error", {}),
        ("DAT301", seen(unsupervised=1000), "critical", {}),
        ("DAT302", UNMARKED, "error", {**UNMARKED, "loss": "all"}),
        ("DAT302", UNMARKED, "error", {**UNMARKED, "masked_by": "axolotl"}),
        ("DAT304", seen(all_supervised=500), "warning", seen(all_supervised=499)),
        ("DAT304", seen(all_supervised=500), "warning", seen({"loss": "all"}, all_supervised=500)),
        ("DAT305", seen(cut=49), "info", {}),
        ("DAT305", seen(cut=50), "warning", {}),
        ("DAT305", seen({"overlong": "left_out"}, cut=499), "warning", {}),
        ("DAT305", seen({"overlong": "left_out"}, cut=500), "error", {}),
        ("DAT305", seen({"overlong": "refused"}, cut=1), "error", seen({"overlong": "refused"})),
        ("DAT305", seen(cut=500), "warning", {}),
        ("DAT306", seen(answer_lost=1), "warning", seen({"overlong": "left_out"}, answer_lost=1)),
        ("DAT306", seen(answer_lost=1), "warning", seen({"overlong": "refused"}, answer_lost=1)),
        ("DAT306", seen(answer_cut=1), "warning", seen(cut=1)),
        ("DAT306", seen(answer_cut=60, answer_lost=49), "warning", {}),
        ("DAT306", seen(answer_cut=60, answer_lost=50), "error", {}),
        ("DAT307", seen(end_supervised=0), "error", seen(end_supervised=500)),
        ("DAT307", seen(end_supervised=0, labels_differ=499), "error", seen(end_supervised=0, labels_differ=500)),
        ("DAT307", seen(end_supervised=499), "warning", seen(end_supervised=500)),
        ("DAT307", seen({"turn_end": "<|eot|>"}, end_supervised=0), "warning", {}),
        ("DAT308", seen(TOKENISED, end_masked=500), "error", seen(TOKENISED, end_masked=499)),
        ("DAT308", {**TOKENISED, "has_labels": False}, "warning",
         {**TOKENISED, "has_labels": False, "pad_is_end": False}),
        ("DAT309", seen(double_bos=10), "warning", seen(double_bos=9)),
        ("DAT310", {"template_tokens_split": ["<|turn|>"]}, "warning", {}),
        ("DAT311", seen(empty_answer=1), "warning", {}),
        ("DAT312", same(7, of=21), "warning", same(7, of=22)),
        ("DAT313", seen(duplicate=10), "info", seen(duplicate=9)),
        ("DAT313", seen(duplicate=100), "warning", {}),
        ("DAT318", seen(mojibake=9), "info", {}),
        ("DAT318", seen(replacement=10), "warning", {}),
        ("DAT318", seen(entities=10), "warning", seen(entities=9)),
        ("DAT318", seen(break_spelt=10), "warning", seen(break_spelt=9)),
        ("DAT318", seen(control_characters=10), "warning", seen(control_characters=9)),
        ("DAT318", seen(unseen_characters=10), "info", seen(unseen_characters=9)),
        ("DAT376", seen(thought_open=10), "warning", seen(thought_open=9)),
        ("DAT320", padded(0.5), "info", padded(0.49)),
        ("DAT315", {**LABELLED, "labels": {"1": 900, "0": 100}, "labels_total": 2}, "warning",
         {**LABELLED, "labels": {"1": 899, "0": 101}, "labels_total": 2}),
        ("DAT316", seen({**LABELLED, "labels": {"1": 1, "0": 1}}, label_out_of_range=1), "error",
         {**LABELLED, "labels": {"1": 1, "0": 1}}),
        ("DAT315", {**LABELLED, "labels": {"1": 1000}, "labels_total": 1}, "error",
         {**LABELLED, "labels": {"1": 899, "0": 1}, "labels_total": 2}),
        ("DAT312", same(900, of=1000, distinct=2), "warning", same(899, of=1000, distinct=2)),
        ("DAT312", same(500, of=1000, distinct=51), "warning", same(500, of=1000, distinct=50)),
        ("DAT312", same(1000, of=1000, distinct=1), "warning", {}),
        ("DAT322", seen(translated=1), "info", seen({"program_stated": True}, translated=1)),
        ("DAT323", seen(value_parts=1), "info", seen({"masked_by": "axolotl"}, value_parts=1)),
        ("DAT323", seen({"parts_joined": True}, parts=1), "info", seen(parts=1)),
        ("DAT324", {"unwritten_roles": {"ai": {"count": 1}}}, "error", seen(parts=1)),
        ("DAT324", {"unwritten_roles": {"tool": {"count": 1}}}, "warning", {}),
        ("DAT324", {"calls_unwritten": True, "seen": {"arguments_text": 3}}, "error", seen(arguments_text=3)),
        ("DAT324", {"calls_unwritten": True, "seen": {"arguments_object": 3}}, "error",
         {"calls_unwritten": True, "seen": {"arguments_object": 3, "translated": 3}}),
        ("DAT324", {"calls_unwritten": True, "seen": {"arguments_object": 3}}, "error",
         {"calls_unwritten": True, "seen": {"arguments_object": 3}, "masked_by": "axolotl"}),
        ("DAT325", seen(no_assistant=999), "warning", {}),
        ("DAT325", seen(no_assistant=1000), "error", seen({"format": "text"}, no_assistant=1)),
        ("DAT325", seen(unanswered=1), "warning", {}),
        ("DAT326", seen(roles_out_of_order=1), "warning", {}),
        ("DAT327", seen(empty_prompt=1), "warning", {}),
        ("DAT328", seen(template_twice=10), "warning", seen(template_twice=9)),
        ("DAT329", seen(foreign_tokens=9), "info", {}),
        ("DAT329", seen(foreign_tokens=10), "warning", {}),
        ("DAT332", seen(echo=50), "warning", seen(echo=49)),
        ("DAT333", seen(inverted=500), "error", {}),
        ("DAT333", seen(inverted=499), "warning", {}),
        ("DAT334", seen(refusal=250), "warning", seen(refusal=249)),
        ("DAT334", repeated(300, of=900), "warning", repeated(300, of=901)),
        ("DAT334", repeated(300, of=900) | same(333, of=1000), "warning", repeated(300, of=900) | same(334, of=1000)),
        ("DAT334", repeated(899, of=1000), "warning", {}),
        ("DAT334", repeated(900, of=1000), "info", {}),
        ("DAT304", seen(mask_unused=1), "warning", {}),
        ("DAT336", seen(call_unanswered=1), "warning", {}),
        ("DAT336", seen(result_uncalled=1), "warning", {}),
        ("DAT337", seen(arguments_broken=1), "warning", {}),
        ("DAT337", seen(arguments_text=1, arguments_object=9), "error", seen(arguments_object=9)),
        ("DAT337", seen(arguments_text=9, arguments_object=1), "error", seen(arguments_text=9)),
        ("DAT355", seen(TOKENISED, documents_joined=500), "warning", seen(TOKENISED, documents_joined=499)),
        ("DAT355", {**TOKENISED, "seen": {"turns_or_documents": 500}, "lengths": {"mean": 95.0, "longest": 100}},
         "warning", {**TOKENISED, "seen": {"turns_or_documents": 500}, "lengths": {"mean": 94.9, "longest": 100}}),
        ("DAT356", {"rewards_lack": {"accuracy_reward": ["solution"]}, "columns": ["prompt"]}, "error", {}),
        ("DAT357", seen({"has_processor": False}, media=1), "info", seen(media=1)),
        ("DAT357", seen(images_unread=1), "warning", seen({"masked_by": "axolotl"}, images_unread=1)),
        ("DAT337", seen({"encodes_arguments": True}, arguments_text=1), "warning", seen(arguments_text=1)),
        ("DAT338", seen(equal_pair=9), "warning", {}),
        ("DAT338", seen(equal_pair=10), "error", {}),
        ("DAT339", {"pairs": {"compared": 50, "chosen_longer": 40}}, "warning",
         {"pairs": {"compared": 50, "chosen_longer": 39}}),
        ("DAT339", {"pairs": {"compared": 50, "rejected_longer": 40}}, "warning",
         {"pairs": {"compared": 49, "rejected_longer": 49}}),
        ("DAT340", seen(conflict=1), "warning", {}),
        ("DAT340", {"rating_agrees": 0.25}, "warning", {"rating_agrees": 0.26}),
        ("DAT385", seen(wanted=50, unwanted=50, unwanted_role=3), "warning",
         seen(wanted=50, unwanted=49, unwanted_role=3)),
        ("DAT385", seen(wanted=100, unwanted=100, wanted_entity=10, unwanted_entity=1), "warning",
         seen(wanted=100, unwanted=100, wanted_entity=10, unwanted_entity=2)),
        ("DAT386", seen({"answers": {"rows": 50}}, sides_swapped=13), "warning",
         seen({"answers": {"rows": 49}}, sides_swapped=49)),
        ("DAT367", seen(secret=1), "warning", {}),
        ("DAT368", seen(answer_in_question=500), "warning", seen(answer_in_question=499)),
        ("DAT368", seen(label_in_text=900), "warning", seen(label_in_text=899)),
        ("DAT369", seen(REWARDED, no_reference=10), "warning", seen(REWARDED, no_reference=9)),
        ("DAT369", seen(REWARDED, no_reference=10), "warning",
         seen({**REWARDED, "columns": ["prompt"]}, no_reference=10)),
        ("DAT370", seen(image_as_text=1), "warning", {}),
        ("DAT371", seen(call_unparsed=1), "warning", {}),
        ("DAT372", seen(system_pasted=50), "warning", seen(system_pasted=49)),
        ("DAT372", seen(told_who=500), "info", seen(told_who=499)),
        ("DAT377", seen(role_said=50), "warning", seen(role_said=49)),
        ("DAT377", seen(tag_left=50), "warning", seen(tag_left=49)),
        ("DAT377", seen(exported=50), "warning", seen(exported=49)),
        ("DAT378", paired(4, of=100, apart=51), "error", paired(5, of=100, apart=51)),
        ("DAT378", paired(9, of=100, apart=51) | {"rejected": paired(4, of=100, apart=51)["paired"]}, "warning",
         paired(9, of=100, apart=51) | {"rejected": paired(5, of=100, apart=51)["paired"]}),
        ("DAT378", paired(9, of=100, apart=51) | {"rejected": paired(1, of=30, apart=9)["paired"]}, "warning",
         paired(9, of=100, apart=51) | {"rejected": paired(0, of=29, apart=9)["paired"]}),
        ("DAT378", paired(4, of=100, apart=50), "warning", paired(0, of=29, apart=15)),
        ("DAT382", seen(header=1), "warning", seen()),
        ("DAT311", seen(failure_said=10), "warning", seen(failure_said=9)),
        ("DAT377", seen(turns_within=50), "warning", seen(turns_within=49)),
        ("DAT383", seen(fence_open=50), "warning", seen(fence_open=49)),
        ("DAT383", seen(several_sentences=100, unended=20), "warning", seen(several_sentences=101, unended=20)),
        ("DAT383", seen(several_sentences=20, unended=20), "warning", seen(several_sentences=19, unended=19)),
        ("DAT384", seen(placeholder_left=50), "warning", seen(placeholder_left=49)),
        ("DAT380", longest(20, of=400), "warning", longest(19, of=100)),
        ("DAT380", longest(20, of=400), "warning", longest(20, of=401)),
        ("DAT380", longest(20, of=400), "warning", longest(20, of=400, characters=99)),
        ("DAT380", longest(20, of=400), "warning", longest(20, of=400, unended=17)),
        ("DAT379", {**CLASSES, "labels": {"spam": 980, "Spam": 20}}, "warning",
         {**CLASSES, "labels": {"spam": 980, "spams": 20}}),
        ("DAT381", {**seen(json_said=490, python_said=10), "answers": {"rows": 1000}}, "warning",
         {**seen(json_said=489, python_said=10), "answers": {"rows": 1000}}),
        ("DAT381", {**seen(json_said=600, python_said=600, code_asked=300), "answers": {"rows": 1000}}, "warning",
         {**seen(json_said=599, python_said=600, code_asked=300), "answers": {"rows": 1000}}),
        ("DAT381", {**seen(json_said=599, python_said=600, code_asked=299), "answers": {"rows": 1000}}, "warning",
         {**seen(json_said=599, python_said=600, code_asked=300), "answers": {"rows": 1000}}),
        ("DAT381", {**seen(json_said=600, json_broken=10), "answers": {"rows": 1000}}, "warning",
         {**seen(json_said=600, json_broken=9), "answers": {"rows": 1000}}),
        ("DAT373", {**CLASSES, "label_stretches": 2}, "info", {**CLASSES, "label_stretches": 3}),
        ("DAT373", {**CLASSES, "label_stretches": 2}, "info", {**FEWER, "label_stretches": 2}),
        ("DAT374", {**CLASSES, "length_tells": 0.95}, "warning", {**CLASSES, "length_tells": 0.949}),
        ("DAT374", {**CLASSES, "length_tells": 0.05}, "warning", {**CLASSES, "length_tells": 0.051}),
        ("DAT374", {**CLASSES, "length_tells": 0.95}, "warning", {**FEWER, "length_tells": 0.95}),
        ("DAT375", answered(10, of=200), "warning", answered(9, of=200)),
        ("DAT313", near(10), "info", near(9)),
        ("DAT313", near(100), "warning", {}),
        ("DAT314", {"overlap": {"eval_rows": 9, "other_answer": {"count": 1}}}, "warning",
         {"overlap": {"eval_rows": 9}}),
        ("DAT305", seen(cut=50), "warning", seen({"keeps_overflow": True}, cut=50)),
        ("DAT347", seen(TOKENISED, labels_differ=10, labels_shifted=6), "error", seen(TOKENISED, labels_differ=9)),
        ("DAT347", seen(TOKENISED, labels_differ=10, labels_shifted=5), "warning", {}),
        ("DAT348", seen(TOKENISED, unknown_ids=1), "error", seen(unknown_ids=1)),
        ("DAT349", seen(TOKENISED, padding_supervised=10), "warning", seen(TOKENISED, padding_supervised=9)),
        ("DAT361", seen(last_answer_only=50, several_answers=100), "warning",
         seen(last_answer_only=49, several_answers=90)),
        ("DAT361", seen(last_answer_only=50, several_answers=100), "warning",
         seen(last_answer_only=50, several_answers=101)),
        ("DAT362", seen(thought_added=500), "warning", seen(thought_added=499)),
        ("DAT363", seen({"format": "text"}, written_prompt=500), "info", seen({"format": "text"}, written_prompt=499)),
        ("DAT364", kto(200, 100), "warning", kto(199, 100)),
        ("DAT364", kto(100, 300), "warning", kto(100, 300, [2.0, 1.0])),
        ("DAT364", kto(100, 100, [1.0, 2.0]), "warning", kto(100, 100)),
        ("DAT365", seen({"unread_length": 4096}, over_default=10), "warning", seen(over_default=1000)),
        ("DAT365", seen({"unread_length": 4096}, over_default=10), "warning",
         seen({"unread_length": 4096}, over_default=9)),
        ("DAT311", seen(missing_value=10), "warning", seen(missing_value=9)),
        ("DAT311", seen(missing_asked=10), "warning", seen(missing_asked=9)),
        ("DAT376", seen(thought_alone=10), "warning", seen(thought_alone=9)),
        ("DAT384", seen(placeholder_said=50), "warning", seen(placeholder_said=49)),
        ("DAT306", seen(answer_cut=50), "warning", seen({"keeps_overflow": True}, answer_cut=50)),
        ("DAT320", padded(0.5), "info", padded(0.5, batch_stated=False)),
        ("DAT320", padded(0.5), "info", padded(0.5, pads=False)),
    ],
)  # fmt: skip
def test_a_rule_speaks_from_its_threshold_on(rule: str, speaks: Any, severity: str, silent: Any) -> None:
    assert found(data(**speaks))[rule].severity == severity
    assert rule not in found(data(**silent))


@every(
    ("rule", "changed", "reason"),
    [
        ("DAT301", UNMARKED, "see DAT302"),
        ("DAT304", {"loss": "all"}, "as asked"),
        ("DAT305", {"max_length": None}, "no length limit"),
        ("DAT307", {"end_tokens": []}, "no end token"),
        ("DAT307", {"whole_rows": 0}, "no supervised answer is complete"),
        ("DAT308", {"pad_is_end": None}, "no tokenizer"),
        ("DAT312", same(19, of=19), "19 answers"),
        ("DAT313", {"sampled": True}, "--set samples=all"),
        ("DAT314", {}, "--eval-data"),
        ("DAT315", {}, "no label"),
        ("DAT316", {**LABELLED, "labels": {"0": 1}, "num_labels": None}, "number of classes"),
        ("DAT301", LABELLED, "not on tokens"),
        ("DAT361", seen(LABELLED, last_answer_only=900, several_answers=900), "not on tokens"),
        ("DAT363", seen(written_prompt=1000), "the rows are no text: the trainer writes their prompt"),
        ("DAT364", {"labels": {"True": 900, "False": 100}, "labels_total": 2}, "not KTO"),
        ("DAT364", {"label_weights": [1.0, 1.0], "labels": {"True": 900}, "labels_total": 1}, "are of one kind"),
        # though its numbers would speak
        ("DAT304", seen({"loss": "all"}, all_supervised=1000), "the loss is set on all"),
        ("DAT306", seen({"max_length": None}, answer_lost=9), "no length limit is given"),
        ("DAT307", seen({**TOKENISED, "turn_end": "<end>"}, end_supervised=0, end_masked=1000),
         "masked with the padding (see DAT308)"),
        ("DAT310", {"template": "", "template_tokens_split": ["<x>"]}, "no chat template is used"),
        ("DAT320", padded(0.9, packed=9, packing=True), "packing is on: nothing is padded"),
    ],
)  # fmt: skip
def test_a_rule_that_lacks_its_input_says_why(rule: str, changed: Any, reason: str) -> None:
    assert reason in why(data(**changed))[rule]
    assert rule not in found(data(**changed))


@every(
    ("count", "of", "shown"),
    [(0, 9, "0"), (1, 3, "33"), (1, 9, "11"), (1, 11, "9.1"), (99, 1000, "9.9"), (1, 10, "10"), (1, 1000, "0.1")],
)
def test_a_share_of_rows_has_two_digits(count: int, of: int, shown: str) -> None:
    assert counted(Rows(count=count), of) == f"{count} of {of:,} rows ({shown} %)"


def answer(rule: str, **changed: Any) -> str:
    """The messages of a rule with their severities, and why it was not judged."""
    verdict = judge(DATA_RULES, data(**changed))
    said = [f"{item.severity}: {item.message}" for item in verdict.findings if item.id == rule]
    return " | ".join(said + [f"? {item.reason}" for item in verdict.not_run if item.id == rule])


TWO: dict[str, Any] = {**LABELLED, "labels": {"7": 18, "0": 2}, "labels_total": 3, "rows_read": 20}


@every(
    ("rule", "changed", "says"),
    [
        (
            "DAT300",
            {
                "rows_read": 8,
                "seen": {"unreadable": 2},
                "faults": [{"row": 1, "reason": "no text"}, {"row": 2, "reason": "no list"}],
            },
            "error: 2 of 10 rows (20 %: 1, ...) cannot be used: no text",
        ),
        ("DAT300", seen(unreadable=1), "warning: 1 of 1,001 rows (0.1 %: 1) cannot be used"),
        ("DAT315", TWO, "warning: 90% of 20 rows have the label 7"),
        ("DAT315", {**TWO, "rows_read": 19}, "? 19 rows, under 20"),
        ("DAT315", {**TWO, "labels_total": 1}, "error: all 20 rows have the label 7"),
        ("DAT315", {**TWO, "labels": {"7": 20}, "labels_total": 1}, "error: all 20 rows have the label 7"),
        ("DAT315", {**TWO, "labels": {"7": 20}}, "warning: 100% of 20 rows have the label 7"),  # others are not listed
        ("DAT316", seen(TWO, label_out_of_range=1),
         "error: 1 of 20 rows (5 %: 1) have a label that is not one of 0 to 2"),
        ("DAT316", seen({**TWO, "num_labels": None}, label_out_of_range=1),
         "error: 1 of 20 rows (5 %: 1) have a label below 0"),
        ("DAT316", {**TWO, "trainer": "reward"}, "? the rows are not classified"),
        ("DAT312", same(20, of=40), "warning: 50% of 40 answers are the same text"),
        # a sample that shows duplicates is judged, one that shows none is not
        ("DAT313", {"sampled": True, "seen": {"duplicate": 10}},
         "info: 10 of 1,000 rows (1 %: 1, ...) repeat an earlier row"),
        (
            "DAT318",
            seen(replacement=1, mojibake=10),
            (
                "warning: 10 of 1,000 rows (1 %: 1, ...) hold text that was decoded wrongly, as UTF-8 read as Latin-1 "
                "| info: 1 of 1,000 rows (0.1 %: 1) hold U+FFFD, lost characters"
            ),
        ),
        (
            "DAT313",
            {"near": {"compared": 5000, "drawn_from": 90_000, "rows": {"count": 50, "first": [7]}}},
            (
                "info: 50 of 5,000 rows (1 %: 7, ...) nearly repeat an earlier row; these were drawn from 90,000, like "
                "rows together"
            ),
        ),
        ("DAT313", {"sampled": True, "near": {"compared": 9}},
         "? a sample shows few of the duplicates: --set samples=all"),
        (
            "DAT304",
            {"loss": "all", "seen": {"mask_unused": 3}},
            (
                "warning: 3 of 1,000 rows (0.3 %: 1, ...) hold a completion_mask, which SFTTrainer does not apply: "
                "every token is supervised"
            ),
        ),
        # what the loss is on
        ("DAT302", {**UNMARKED, "format": "text"}, ""),
        ("DAT302", {**UNMARKED, "loss": "completion"}, ""),
        ("DAT301", seen(unsupervised=999), "error: 999 of 1,000 rows (100 %: 1, ...) have no supervised token"),
        ("DAT301", seen(unsupervised=1000), "critical: all 1,000 rows have no supervised token"),
        ("DAT304", {"loss": "completion", "seen": {"all_supervised": 1000}},
         "warning: the loss is set on completion, and in all 1,000 rows every token is supervised"),
        # the end of answers, of those that are whole
        ("DAT307", seen({"whole_rows": 10}, end_supervised=1),
         "warning: an end token (<|im_end|>) is supervised in 1 of 10 whole answers (10 %: 1) only"),
        ("DAT307", seen(end_supervised=0), "error: no answer has a supervised end token (<|im_end|>)"),
        ("DAT307", seen({"turn_end": "<|eot|>", "end_tokens": ["a", "b"]}, end_supervised=1),
         "warning: answers end with <|eot|>, and generation ends at a or b"),
        ("DAT307", seen(TOKENISED, end_supervised=0, end_masked=500),
         "? the end token is masked with the padding (see DAT308)"),
        ("DAT307", seen({**TOKENISED, "pad_is_end": False}, end_supervised=0, end_masked=500),
         "error: no answer has a supervised end token (<|im_end|>)"),
        ("DAT308", seen({**TOKENISED, "whole_rows": 10}, end_masked=5),
         "error: pad and end token are one, and the labels mask the end of 5 of 10 answers (50 %: 1, ...)"),
        ("DAT308", seen(TOKENISED, end_masked=499), ""),
        (
            "DAT308",
            seen({**TOKENISED, "has_labels": False}, end_masked=1000),
            (
                "warning: pad and end token are one, and the rows have no labels: a collator that masks padding masks "
                "the end"
            ),
        ),
        # what the limit cuts
        (
            "DAT305",
            seen(supervised(9, of=900, total=1000), cut=40),
            (
                "info: 40 of 1,000 rows (4 %: 1, ...) are longer than 512 tokens: 10.0% of the tokens are lost; 200 "
                "tokens keep 95 % of the sequences whole, 300 keep 99 %"
            ),
        ),
        (
            "DAT305",
            seen({"overlong": "refused"}, cut=40),
            (
                "error: 40 of 1,000 rows (4 %: 1, ...) are longer than 512 tokens, at which the trainer ends; 200 "
                "tokens keep 95 % of the sequences whole, 300 keep 99 %"
            ),
        ),
        (
            "DAT306",
            seen({"tokens": {"total": 9, "kept": 9, "supervised": 3, "supervised_lost": 1}}, answer_cut=60),
            (
                "warning: 60 of 1,000 rows (6 %: 1, ...) lose part of their answer at 512 tokens (25.0% of the "
                "supervised tokens)"
            ),
        ),
        ("DAT320", padded(0.75, packed=9, sequences=40),
         "info: 75% of a batch of 8 is padding; packing makes 9 full sequences of 40"),
        ("DAT320", padded(0.5), "info: 50% of a batch of 8 is padding"),
        *(
            (
                "DAT369",
                seen({**REWARDED, "columns": ["prompt", *columns]}, no_reference=30),
                f"warning: 30 of 1,000 rows (3 %: 1, ...) have nothing in {named}, with which a reward compares",
            )
            for named, *columns in (("solution", "solution"), ("one of answer, solution", "answer", "solution"))
        ),
        ("DAT320", padded(0.5, packed=0), "info: 50% of a batch of 8 is padding"),
        ("DAT320", {"batching": {"batch_size": 8}}, "? no batch could be counted"),
        ("DAT301", {"rows_read": 0}, "? no row could be tokenised"),
        (
            "DAT361",
            seen(last_answer_only=600, several_answers=700),
            (
                "warning: of 600 of 1,000 rows (60 %: 1, ...) with several assistant turns only the last turn is in "
                "the loss"
            ),
        ),
        ("DAT364", {**kto(40, 200), "rows_read": 240},
         "warning: 40 wanted and 200 unwanted answers, with weights of 1 and 1: one side weighs 5 times the other"),
        (
            "DAT365",
            seen({"unread_length": 4096}, over_default=40),
            (
                "warning: 40 of 1,000 rows (4 %: 1, ...) are longer than 1,024 tokens, at which TRL cuts: "
                "max_seq_length 4,096 is not read by its trainers any more, and max_length is not stated"
            ),
        ),
    ],
)  # fmt: skip
def test_what_a_rule_answers(rule: str, changed: Any, says: str) -> None:
    assert answer(rule, **changed) == says


def overlap(exact: int, near: int, **fields: Any) -> dict[str, Any]:
    """Of 100 evaluation rows, and 1000 that were read."""
    counts = {"exact": {"count": exact, "first": [1][:exact]}, "near": {"count": near, "first": [2][:near]}}
    return {"overlap": {"eval_rows": 100, "near_judged": True, **counts, **fields}}


OVER_FIVE = (
    "error: evaluation rows are also in the training set: 3 of 100 rows (3 %: 1, ...) exactly, 2 of 100 rows "
    "(2 %: 2, ...) nearly"
)


@every(
    ("changed", "says"),
    [
        (overlap(0, 0), ""),
        (overlap(0, 1), "warning: evaluation rows are also in the training set: 1 of 100 rows (1 %: 2) nearly"),
        (overlap(3, 2), OVER_FIVE),
        (overlap(0, 0, near_judged=False, near_reason="no datasketch"), "? no datasketch"),
        (overlap(4, 0), "warning: evaluation rows are also in the training set: 4 of 100 rows (4 %: 1, ...) exactly"),
        (overlap(0, 5), "error: evaluation rows are also in the training set: 5 of 100 rows (5 %: 2, ...) nearly"),
        (
            overlap(1, 3),
            (
                "warning: evaluation rows are also in the training set: 1 of 100 rows (1 %: 1) exactly, 3 of 100 rows "
                "(3 %: 2, ...) nearly"
            ),
        ),
        # exact ones are found without MinHash, and in a sample; what was not looked for is said besides
        (overlap(1, 0, near_judged=False, near_reason="no datasketch"),
         "warning: evaluation rows are also in the training set: 1 of 100 rows (1 %: 1) exactly | ? no datasketch"),
        ({**overlap(1, 0), "sampled": True},
         "warning: evaluation rows are also in the training set: 1 of 100 rows (1 %: 1) exactly"),
        ({**overlap(0, 0), "sampled": True},
         "? a sample of the training rows shows few of the overlaps: --set samples=all"),
    ],
)  # fmt: skip
def test_what_is_said_of_evaluation_rows_in_the_training_set(changed: Any, says: str) -> None:
    assert answer("DAT314", **changed) == says


@every(
    ("rule", "changed", "values"),
    [
        ("DAT300", seen({"faults": [{"row": n, "reason": f"r{n}"} for n in (1, 2, 3, 4)]}, unreadable=4),
         {"rows": 4, "of": 1004, "share": 4 / 1004, "first": [1], "reasons": ["r1", "r2", "r3"]}),
        ("DAT314", overlap(1, 3), {"exact": 1, "by_words": 0, "near": 3, "eval_rows": 100, "first_of_eval": [1]}),
        ("DAT315", TWO, {"label": "7", "rows": 18, "share": 0.9, "labels": 3}),
        (
            "DAT305",
            seen(supervised(9, of=900, total=1000), cut=40),
            {
                "rows": 40,
                "of": 1000,
                "share": 0.04,
                "first": [1],
                "max_length": 512,
                "tokens_lost": 100,
                "p95": 200,
                "p99": 300,
            },
        ),
        (
            "DAT306",
            {
                "seen": {"answer_cut": 60, "answer_lost": 50},
                "tokens": {"total": 9, "kept": 9, "supervised": 3, "supervised_lost": 1},
            },
            {"rows": 60, "of": 1000, "share": 0.06, "first": [1], "supervised_lost": 1, "whole_answers": 50},
        ),
        ("DAT307", seen({"whole_rows": 10}, end_supervised=1),
         {"with_end": 1, "whole": 10, "end_tokens": ["<|im_end|>"], "turn_end": ""}),
        # of all rows that were read, or of the whole answers only
        ("DAT302", {**UNMARKED, "template": "chatml", "whole_rows": 7},
         {"template": "chatml", "loss": "assistant", "rows": 1000}),
        ("DAT301", seen({"whole_rows": 7}, unsupervised=3),
         {"rows": 3, "of": 1000, "share": 0.003, "first": [1], "loss": "assistant"}),
        ("DAT304", seen({"whole_rows": 7}, all_supervised=600),
         {"rows": 600, "of": 1000, "share": 0.6, "first": [1], "loss": "assistant"}),
        ("DAT308", seen({**TOKENISED, "whole_rows": 10}, end_masked=6),
         {"rows": 6, "of": 10, "share": 0.6, "first": [1]}),
        ("DAT320", padded(0.75, packed=9), {"padding_share": 0.75, "batch_size": 8, "packed": 9}),
    ],
)  # fmt: skip
def test_a_finding_has_these_values(rule: str, changed: Any, values: Any) -> None:
    assert found(data(**changed))[rule].values == values


COLUMNS = "give prompt and completion as columns: SFTTrainer masks no prompt in rows of text or messages"
USUAL = "correct the labels, or the generation block, so that it covers answers only"


@every(
    ("rule", "changed", "action"),
    [
        *(
            ("DAT304", {"format": kind, "seen": {"all_supervised": 1000}}, action)
            for kind, action in [("text", COLUMNS), ("messages", COLUMNS), ("sharegpt", COLUMNS), ("tokenised", USUAL)]
        ),
        ("DAT307", seen({"turn_end": "<|eot|>"}, end_supervised=1),
         "set eos_token to <|eot|>, or add it to eos_token_id of generation_config.json"),
    ],
)  # fmt: skip
def test_what_is_to_be_done_depends_on_the_rows(rule: str, changed: Any, action: str) -> None:
    assert found(data(**changed))[rule].action == action
