"""Elements of an HTML page. Figures, which the page's printer draws, need matplotlib (extra `report`).

Elements are a tree of the standard library's. Text is escaped when the tree is written, and no string is ever pasted
into markup: a model called `<script>` is shown by that name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias
from xml.etree.ElementTree import Element, tostring  # builds and writes; nothing is parsed

from gradience.blocks import clean

Node: TypeAlias = "Element | str | Iterable[Node] | None"


def tag(name: str, /, *children: Node, **attributes: str | float | bool | None) -> Element:
    """An element of the page.

    Strings lose controls, escape sequences and bidi overrides (CWE-150), and None is omitted. In names of attributes
    `_` stands for `-`, and a last `_` is dropped: `class_`, `aria_label`. True gives an attribute without a value.
    """
    element = Element(name)
    for key, value in attributes.items():
        if value is not None and value is not False:
            element.set(key.removesuffix("_").replace("_", "-"), "" if value is True else _text(value))
    for child in _flat(children):
        _append(element, child)
    return element


def style_element(css: str) -> Element:
    """A style element. Its text is the package's own, so it is written without escapes."""
    element = Element("style")
    element.text = css
    return element


def document(root: Element) -> str:
    """The page as HTML, with text and attributes escaped."""
    return "<!doctype html>\n" + tostring(root, encoding="unicode", method="html") + "\n"


def _text(value: str | float) -> str:
    return clean(value) if isinstance(value, str) else f"{value:.12g}"


def _flat(children: Iterable[Node]) -> Iterator[Element | str]:
    for child in children:
        match child:
            case None:
                continue
            case str() | Element():
                yield child
            case _:
                yield from _flat(child)


def _append(element: Element, child: Element | str) -> None:
    if isinstance(child, Element):
        element.append(child)
    elif len(element):
        # ElementTree keeps a text that follows a child in the child's `tail`.
        element[-1].tail = (element[-1].tail or "") + clean(child)
    else:
        element.text = (element.text or "") + clean(child)
