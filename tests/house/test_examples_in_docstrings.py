"""The examples in docstrings print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

from tables import every

import gradience

SOURCE = Path(gradience.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(("gradience", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@every("name", WITH_EXAMPLES)
def test_examples_print_what_they_say(name):
    module = importlib.import_module(name)
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted > 0 or "+SKIP" in Path(module.__file__).read_text(encoding="utf-8")
