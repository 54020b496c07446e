"""No text is ever markup."""

from __future__ import annotations

from hypothesis import example, given, strategies as st
from pages import parse

from gradience.blocks import clean
from gradience.blocks.html import document, tag

HOSTILE = st.text() | st.sampled_from(
    ["<script>alert(1)</script>", "</td></table><img src=x onerror=alert(1)>", '" onload="x', "]]><!--", "&lt;&amp;"]
)


@given(HOSTILE, HOSTILE)
@example("</style><script>", "'\"><svg onload=1>")
def test_text_and_attributes_come_back_as_they_went_in_and_make_no_element(text, attribute):
    page = parse(document(tag("p", "before ", tag("b", text), text, title=attribute)))
    assert [name for name, _ in page.elements] == ["p", "b"]
    assert page.elements[0][1] == {"title": clean(attribute)}
    assert page.text.strip("\n") == f"before {clean(text) * 2}".strip("\n")


def test_text_loses_escape_sequences_and_bidi_overrides():
    assert "\x1b" not in document(tag("p", "a\x1b[31mb\u202ec"))
