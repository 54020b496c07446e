"""The page of a check of data: its sections, its histograms, and rows as the model sees them, whatever they hold."""

from __future__ import annotations

from typing import Any

import pytest
from pages import parse
from tables import every

from gradience.blocks.html.pieces import page_html
from gradience.data.examples import Examples
from gradience.data.tokens import CutSequence, Sequence, TokenRow
from gradience.schema.document import Finding
from gradience.schema.events import ConfigSnapshot
from gradience.schema.reports import (
    CHECK_SCHEMA_ID,
    CheckReport,
    DataReport,
    Example,
    Lengths,
    ShownSequence,
    TokenCounts,
    TokenRun,
)
from gradience.verbs.check.page import data_page

HOSTILE = "<script>alert(1)</script>\n\u202e\x1b[31m&amp;"


class Decoder:
    """A tokenizer whose tokens are letters."""

    def decoded(self, runs: Any) -> list[str]:
        return ["".join(chr(97 + token % 26) for token in run) for run in runs]


def _html(checked: CheckReport) -> str:
    return page_html(data_page(checked))


def report(**changed: Any) -> CheckReport:
    data = DataReport(
        path="/home/me/train.jsonl",
        format="messages",
        trainer="sft",
        loss="assistant",
        rows=7,
        rows_read=7,
        sequences=7,
        max_length=32,
        tokens=TokenCounts(total=200, kept=150, supervised=30),
        lengths=Lengths(longest=90, bin_width=16, bins=[0, 5, 2]),
        **changed,
    )
    found = Finding(id="DAT305", severity="warning", message=f"rows are cut {HOSTILE}", action="raise it")
    return CheckReport(schema=CHECK_SCHEMA_ID, config=ConfigSnapshot(), data=data, findings=[found])


def test_the_page_has_findings_histograms_rows_and_the_data_as_understood() -> None:
    pieces = [
        TokenRun(kind="context", text="ask"),
        TokenRun(kind="loss", text="answer"),
        TokenRun(kind="cut", text="gone"),
    ]
    shown = Example(row=3, faults=["answer_cut"], sequences=[ShownSequence(tokens=9, pieces=pieces)])
    shares = [0] * 19 + [7]
    html = _html(report(shares=shares, examples=[shown]))
    page = parse(html)
    assert [section["id"] for section in page.all("section")] == ["findings", "lengths", "rows", "data"]
    for text in (
        "<h1>train.jsonl</h1>",
        "<dt>in the loss</dt><dd>20.0%</dd>",
        "16 to 31: 5",
        "95 to 99: 7",
        "limit 32",
        "Row 3: answer cut",
        'class="token context" title="read, not learnt">ask<',
        'class="token loss" title="in the loss: the model learns to write it">answer<',
        'class="token cut" title="cut off: the model never sees it">gone<',
        "Raise it.",
    ):
        assert text in html, text
    assert "/home/me" not in html.partition("Data as understood")[0]
    bare = parse(_html(report()))
    assert [section["id"] for section in bare.all("section")] == ["findings", "lengths", "data"]


def test_text_of_rows_and_findings_is_shown_and_never_run() -> None:
    piece = TokenRun(kind="loss", text=HOSTILE)
    shown = Example(row=1, faults=["<b>"], sequences=[ShownSequence(name="chosen", tokens=1, pieces=[piece])])
    html = _html(report(examples=[shown]))
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\u21b5<br>&amp;amp;" in html
    assert not {"\u202e", "\x1b"} & set(html)
    assert "&lt;b&gt;" in html


def test_a_report_on_a_configuration_alone_has_no_such_page() -> None:
    with pytest.raises(ValueError, match="without data"):
        _html(CheckReport(schema=CHECK_SCHEMA_ID, config=ConfigSnapshot()))


def row(number: int, ids: int = 4, mask: list[int] | None = None, kept: CutSequence | None = None) -> TokenRow:
    return TokenRow(number, {}, (Sequence(list(range(ids)), mask, kept),))


def kinds(example: Example) -> list[tuple[str, str]]:
    return [(piece.kind, piece.text) for piece in example.sequences[0].pieces]


def test_rows_with_the_most_faults_come_first_and_of_each_kind_of_fault_only_some() -> None:
    worst = Examples(6, None, "cut")
    for number in range(1, 10):
        worst.add(row(number), ["duplicate"] if number < 9 else ["unsupervised", "duplicate"])
    for number in range(10, 20):
        worst.add(row(number), ["whole", "end_supervised"])
    found = worst.result(Decoder())  # type: ignore[arg-type]
    assert [(one.row, one.faults) for one in found] == [
        (9, ["unsupervised", "duplicate"]),
        (1, ["duplicate"]),
        (2, ["duplicate"]),
        (10, []),
        (11, []),
        (12, []),
    ]
    assert worst.result(None) == []
    none = Examples(0, None, "cut")
    none.add(row(1), ["duplicate"])
    assert none.result(Decoder()) == []  # type: ignore[arg-type]


@every(
    ("limit", "overlong", "given", "expected"),
    [
        (None, "cut", row(1), [("loss", "abcd")]),
        (9, "cut", row(1, 4, [0, 0, 1, 1]), [("context", "ab"), ("loss", "cd")]),
        (3, "cut", row(1, 4, [0, 0, 1, 1]), [("context", "ab"), ("loss", "c"), ("cut", "d")]),
        (3, "cut_left", row(1, 4, [0, 0, 1, 1]), [("cut", "a"), ("context", "b"), ("loss", "cd")]),
        (3, "left_out", row(1, 4, [0, 0, 1, 1]), [("cut", "abcd")]),
        (2, "shared", row(1, 4, [0, 0, 1, 1]), [("context", "a"), ("cut", "b"), ("loss", "c"), ("cut", "d")]),
        (3, "shared", row(1, 4, [0, 0, 1, 1], CutSequence([5, 6], [0, 1])), [("context", "f"), ("loss", "g")]),
    ],
)
def test_a_row_is_shown_as_the_model_sees_it(limit: Any, overlong: Any, given: TokenRow, expected: Any) -> None:
    some = Examples(1, limit, overlong)
    some.add(given, ["cut"])
    (found,) = some.result(Decoder())  # type: ignore[arg-type]
    assert kinds(found) == expected


def test_of_a_long_row_the_beginning_and_the_end_are_shown() -> None:
    some = Examples(1, None, "cut")
    some.add(row(1, 700, [0] * 290 + [1] * 410), ["cut"])
    (found,) = some.result(Decoder())  # type: ignore[arg-type]
    assert [(kind, len(text) if kind != "left_out" else text) for kind, text in kinds(found)] == [
        ("context", 290),
        ("loss", 10),
        ("left_out", "100 tokens"),
        ("loss", 300),
    ]
    pair = TokenRow(1, {}, (Sequence([1]), Sequence([2])))
    some = Examples(1, None, "cut")
    some.add(pair, [])
    assert [one.name for one in some.result(Decoder())[0].sequences] == ["chosen", "rejected"]  # type: ignore[arg-type]
