"""Draw the pictures at the top of the README of the toy run in tests/golden/readme: `python tests/pictures.py`.

A terminal with `monitor`, by rich; and the first figure of the page, with the page's own style sheet.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from gradience import write_report
from gradience.cli.main import main

ROOT: Final = Path(__file__).parents[1]
RUN: Final = ROOT / "tests" / "golden" / "readme"
PICTURES: Final = ROOT / "docs" / "pictures"
_COLUMNS: Final = 102
_FONTS: Final = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
_WEB: Final = re.compile(r"<!--.*?-->\s*", re.DOTALL)


class _Screen(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def terminal() -> str:
    """`gradience monitor` on a terminal, as SVG; it asks no server for a font."""
    screen, before = _Screen(), sys.stdout
    os.environ |= {"COLUMNS": str(_COLUMNS), "TERM": "xterm"}
    here = Path.cwd()
    os.chdir(RUN)
    sys.stdout = screen
    try:
        main(["monitor", "run.jsonl"])
    finally:
        sys.stdout = before
        os.chdir(here)
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(screen.getvalue()))
    svg = console.export_svg(title="gradience monitor runs/toy", unique_id="terminal")
    return _WEB.sub("", _FONTS.sub("", svg))


def figure() -> str:
    """The first figure of the report's page as SVG, with the page's style sheet."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "report.html")
        write_report(RUN, out)
        page = out.read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    drawn = re.search(r"<svg .*?</svg>", page, re.DOTALL)
    assert style is not None
    assert drawn is not None
    begin, _, rest = drawn[0].partition(">")
    xmlns = "" if "xmlns=" in begin else ' xmlns="http://www.w3.org/2000/svg"'
    return f"{begin}{xmlns}><style>{style[1]}</style>{rest}\n"


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / "terminal.svg").write_text(terminal(), encoding="utf-8")
    (PICTURES / "figure.svg").write_text(figure(), encoding="utf-8")
