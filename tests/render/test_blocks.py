"""What each printer makes of each block: a report's words are shown in all of them, and are markup in none."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from pages import parse
from tables import every

from gradience.blocks import (
    Bars,
    Block,
    FactList,
    Figure,
    Findings,
    Fold,
    Heading,
    Intervals,
    Next,
    Note,
    Page,
    Section,
    ShownFinding,
    Table,
    Title,
    VerdictLine,
)
from gradience.blocks.markdown import page_markdown
from gradience.blocks.plots import Grid
from gradience.blocks.text import printed
from gradience.schema.document import Evidence, Finding

EVIL = "<b>|\x1b[31m@me\u202e"
GRAVE = Finding(id="LR001", severity="warning", message="high", action="lower it", confidence=0.9)
PROVEN = Finding(id="LR002", severity="info", message="odd", evidence=[Evidence(source="a", says="b")])
COLUMNS = (("n", ">3"), ("name", ""))


class Case(NamedTuple):
    """A block, the lines of a terminal, the lines of Markdown without blank ones, and the text of the page."""

    block: Block
    text: list[str]
    markdown: list[str]
    page: str


CASES: dict[str, Case] = {
    "a line": Case("  at 3", ["  at 3"], ["at 3"], "at 3"),
    "a hostile line": Case(EVIL, ["<b>|@me"], [r"\<b>\|@<!-- -->me"], "<b>|@me"),
    "no line": Case("", [""], [], ""),
    "title": Case(Title("A"), ["=" * 72, "A", "=" * 72], [], ""),
    "heading": Case(Heading("Sizes"), ["Sizes:"], ["**Sizes**"], "Sizes"),
    "verdict": Case(VerdictLine("holds", " (so)"), ["Verdict: HOLDS (so)"], ["**Holds** (so)"], "Holds (so)"),
    "note": Case(Note("odd"), ["Note: odd"], ["Odd"], "odd"),
    "next": Case(Next("go", "stay"), ["Next: go", "   or: stay"], ["**Next:** go; or: stay"], "Next: go; or: stay"),
    "next alone": Case(Next("go"), ["Next: go"], ["**Next:** go"], "Next: go"),
    "facts": Case(
        FactList((("r", "8"),), indent=1, width=4), [" r:  8"], ["| Fact | Value |", "|---|---|", "| r | 8 |"], "r8"
    ),
    "a long label": Case(
        FactList((("rank", "8"),), width=3), ["rank: 8"], ["| Fact | Value |", "|---|---|", "| rank | 8 |"], "rank8"
    ),
    "facts as a table": Case(FactList((("r", "8"),), caption="Read"), ["r:          8"],
        ["| Fact | Value |", "|---|---|", "| r | 8 |"], "ReadNameValuer8"),
    "table, its names first where there is room": Case(
        Table(COLUMNS, (("1", "one"), ("2", EVIL)), caption="Some", below=("", "    why"), named=True),
        ["    n  name", "    1  one", "    2  <b>|@me", "    why"],
        ["Some:", "| Name | n |", "|---|---|", "| one | 1 |", r"| \<b>\|@<!-- -->me | 2 |"],
        "SomeNamenone1<b>|@me2",
    ),
    "table cut on a terminal": Case(Table(COLUMNS, (("1", "a"), ("2", "b"), ("3", "c")), most=1, of="rows"),
        ["    n  name", "    1  a", "  ... and 2 more rows (--verbose lists all)"],
        ["| n | Name |", "|---|---|", "| 1 | a |", "| 2 | b |", "| 3 | c |"], "nName1a2b3c"),
    "table in words": Case(Table(COLUMNS, (("1", "a"),), told=("  a has 1",)), ["  a has 1"],
        ["| n | Name |", "|---|---|", "| 1 | a |"], "nName1a"),
    "table without rows": Case(Table(COLUMNS, ()), ["    n  name"], [], ""),
    "findings": Case(
        Findings((ShownFinding(GRAVE, where=" (log)", number=1), ShownFinding(PROVEN, number=2)), verbose=False),
        ["  [WARNING] LR001 (log): high", "      -> lower it", "  [INFO] LR002: odd"],
        [
            "| Severity | Id | Observation | Source |",
            "|---|---|---|---|",
            "| WARNING | LR001 | high | log |",
            "| INFO | LR002 | odd |  |",
        ],
        "1 highwarning LR001 (log)Lower it.Grounds: why, confidence, evidence, how to verifyConfidence0.90"
        "2 oddinfo LR002 Grounds: why, confidence, evidence, how to verifyEvidencea: b",
    ),
    "findings with their grounds": Case(
        Findings((ShownFinding(PROVEN, pieces=(("log", "DIV103", "fell"), ("disk", "", "full"))),)),
        ["  [INFO] LR002: odd", "      log     DIV103: fell", "      disk    full", "      evidence: a: b"],
        ["| Severity | Id | Observation | Source |", "|---|---|---|---|", "| INFO | LR002 | odd |  |"],
        "0 oddinfo LR002 log DIV103: felldisk: fullGrounds: why, confidence, evidence, how to verifyEvidencea: b",
    ),
    "only the first infos": Case(Findings((ShownFinding(PROVEN),) * 6, verbose=False),
        [*["  [INFO] LR002: odd"] * 5, "  ... and 1 more (--verbose lists all)"],
        ["| Severity | Id | Observation | Source |", "|---|---|---|---|", *["| INFO | LR002 | odd |  |"] * 6],
        "0 oddinfo LR002 Grounds: why, confidence, evidence, how to verifyEvidencea: b" * 6),
    "fold": Case(
        Fold("Two", ("a", "b")), ["Two", "a", "b"], ["<details><summary>Two</summary>", "a", "b", "</details>"], "Twoab"
    ),
    "a fold that a terminal closes": Case(
        Fold("Two", ("a",), is_open=False), ["Two"], ["<details><summary>Two</summary>", "a", "</details>"], "Twoa"
    ),
    "section": Case(Section("s", "Part", ("a",)), ["Part:", "a"], ["**Part**", "a"], "Parta"),
    "bars": Case(
        Figure("Lengths", Bars((1, 2), 4, limit=4), summary="3 rows", caption="Before the cut."),
        [
            "  Lengths:",
            "         2 | \u2502\u2588",
            "           | \u2502\u2588",
            "           |\u2584\u2502\u2588",
            "           |\u2588\u2502\u2588",
            "           |\u2588\u2502\u2588",
            "            0 limit 4 8",
        ],
        [],
        "Lengths" + "0 to 3: 14 to 7: 208limit 4" * 2 + "Before the cut.",
    ),
    "map": Case(
        Figure("Sizes", Grid("norm", {"q": {0: 1.0, 1: "!"}}, [0, 1], 1.0, {0: "0", 1: "1"}, outside=2)),
        ["Heat map of norm, layer x module, from 0 (\u2581) to 1 (\u2588):", "     0", "  q  \u2588!"],
        [],
        "Sizes"
        + "qlayer0layer 0 q: 11!" * 2
        + "0  1Norm by layer and kind of module; . 2 modules in no layer are not shown.",
    ),
    "one interval": Case(
        Figure("Harm", Intervals((("a", 50.0, 0.0, 0.5, 1.0),), 2.0, "size", "harm", "Harm", unicode=False)),
        [
            "  Harm; | is 0, : the tolerance:",
            f"  {'a':<24} [--------------o--------------]{'':29}:",
            f"  {'':<24} 0{'2':>60}",
        ],
        [],
        "",
    ),
}  # fmt: skip


@every("name", CASES)
def test_a_terminal_shows(name):
    assert list(printed([CASES[name].block])) == CASES[name].text


@every("name", CASES)
def test_markdown_shows(name):
    head, *lines, foot = page_markdown(Page("report", "n", "n", (CASES[name].block,), ())).split("\n")[:-1]
    assert (head, foot) == ("### Gradience report: n", "<sub>It instruments, you decide.</sub>")
    assert [line for line in lines if line] == CASES[name].markdown


@every("name", CASES)
def test_a_page_shows(name):
    pytest.importorskip("matplotlib")
    from gradience.blocks.html.pieces import page_html

    html = page_html(Page("report", "n", "", (), (Section("s", "S", (CASES[name].block,)),)))
    body = html[html.index("<main>") : html.index("<footer>")]
    assert parse(body).text.removeprefix("S") == CASES[name].page


def test_a_page_shows_intervals_as_points_beside_the_tolerance():
    pytest.importorskip("matplotlib")
    from gradience.blocks.html.pieces import page_html

    drawn = Intervals((("a", 50.0, 0.0, 0.5, 1.0), ("b", 70.0, 0.5, 0.75, 1.0)), 2.0, "size", "harm")
    html = page_html(Page("bench", "n", "", (), (Section("s", "S", (Figure("Harm", drawn),)),)))
    assert [name in html for name in ("swatch s0 points", "swatch s1 points", "swatch s1")] == [True, False, True]
