"""The report as a comment: short, and nothing of a log becomes markup, a mention or a link."""

from __future__ import annotations

from hypothesis import example, given, strategies as st
from markdown_it import MarkdownIt
from pages import gather, parse
from tables import every

from gradience.blocks import clean
from gradience.blocks.markdown import escape
from gradience.report import report_text

GFM = MarkdownIt("gfm-like", {"html": True, "linkify": False})


@given(st.text(st.characters(codec="utf-8"), max_size=80))
@example("a|b **c** `d` [e](javascript:f) <script>alert(1)</script> ~~g~~ &lt; \\| __h__ ![i](j)")
@example("*_*")
@example("$x$ <!-- y -->")
def test_a_cell_shows_the_text_and_nothing_else(text):
    shown = clean(text).strip()
    found = parse(GFM.render(f"| a | b |\n|---|---|\n| x{escape(text)}x | c |\n"))
    assert {name for name, _ in found.elements} == {"table", "thead", "tbody", "tr", "th", "td"}
    assert [name for name, _ in found.elements].count("td") == 2
    assert " ".join(f"x{clean(text)}x".split()) in " ".join(found.text.split())
    assert shown in found.text or not shown.isascii() or "  " in shown


@every("text", ["@someone", "fixes #12", "a/repo#3", "see https://evil.example/x", "www.evil.example"])
def test_no_one_is_summoned_and_no_address_becomes_a_link(text):
    written = escape(text)
    for trigger in ("@s", "#1", "#3", "https:/", "www.e"):
        assert trigger not in written


def test_a_report_on_everything_is_short_and_parses(log, adapter):
    story = gather(log, adapter=adapter)
    text = report_text(story, "md")
    found = parse(GFM.render(text))
    assert len(text) < 8_000
    assert len(found.all("table")) == 5
    for words in (
        "acme/base-7b",
        "ok, step 120 of 120",
        "trained",
        "most modules",
        "DIV103",
        "Skipped (missing input or not applicable): ",
    ):
        assert words in found.text


def test_a_hostile_model_name_stays_text(write_log):
    name = "x | <img src=q onerror=alert(1)> @everyone"
    text = report_text(gather(write_log(model=name)), "md")
    assert "img" not in {element for element, _ in parse(GFM.render(text)).elements}
    assert "@everyone" not in text
