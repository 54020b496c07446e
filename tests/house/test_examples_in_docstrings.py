"""The examples in docstrings print what they say."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest
from tables import every

import gradience

SOURCE = Path(gradience.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(("gradience", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if re.search(r">>> (?!.*\+SKIP)", path.read_text(encoding="utf-8"))
)


def examined(name):
    module = importlib.import_module(name)
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted > 0


@every("name", [name for name in WITH_EXAMPLES if name != "gradience.lightning"])
def test_examples_print_what_they_say(name):
    examined(name)


@pytest.mark.oracle("lightning")
def test_the_examples_of_what_needs_lightning_print_what_they_say():
    examined("gradience.lightning")
