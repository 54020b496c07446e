"""No text is ever markup."""

from __future__ import annotations

import pytest
from hypothesis import example, given, strategies as st
from pages import parse

from gradience.blocks import clean
from gradience.blocks.html import document, style_element, tag

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


def test_a_name_that_is_no_attribute_is_refused():
    with pytest.raises(ValueError, match="not the name of an attribute"):
        tag("p", **{"x onload": "1"})


def test_a_style_element_cannot_end_itself():
    with pytest.raises(ValueError, match="style sheet"):
        style_element("a {} </style>")
