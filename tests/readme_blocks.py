"""Compare the blocks of output in the README and in pages of docs/ with what their commands print now.

The run in golden/readme was written once by the README's first command, so the blocks can be compared word by word on
any processor. A page's YAML that begins with `# NAME` is a file of that name. After an intended change, `python
tests/readme_blocks.py` writes the blocks again. To change their numbers, copy a new toy run over the folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from unittest import mock

ROOT: Final = Path(__file__).resolve().parents[1]
RUN: Final = ROOT / "tests" / "golden" / "readme"
BLOCK: Final = re.compile(r"<!-- run: (\w+) -->\n```bash\n([^`]*)```\n\n```text\n(.*?)```", re.DOTALL)
PAGES: Final = ("README.md", "docs/ci.md")
FILE: Final = re.compile(r"```yaml\n(# (\S+\.yaml)\n.*?)```", re.DOTALL)
_TOTALS: Final = re.compile(
    r"(?<=config )\d+ of \d+|(?<=log )\d+ of \d+|(?<=weights )\d+ of \d+|(?<=data )\d+ of \d+"
    r"|(?<=not applicable\): )\d+|(?<=why )\d+(?= checks)|(?<=not_run=<)\d+|\d+(?= rules that)"
)
CUT: Final = "...\n"  # a block that ends with this shows only the beginning of the output


@contextlib.contextmanager
def clone_with_run() -> Iterator[None]:
    """A context whose working folder has the run at runs/toy, as the README's first command leaves it.

    The user's cache is empty, and can be written whatever the home is.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as cache,
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, {"XDG_CACHE_HOME": cache}),
    ):
        shutil.copytree(RUN, "runs/toy")
        yield


def printed(command: str) -> str:
    """The output of one command line, which is run in this process."""
    from gradience.cli.main import main

    name, *arguments = shlex.split(command)
    if name != "gradience":
        raise ValueError(f"expected a gradience command, got {command!r}")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(arguments)
    return out.getvalue()


def without_totals(text: str) -> str:
    """The text without its totals of rules, so that a new rule changes no screen.

    >>> without_totals("(checked: config 19 of 35, log 62 of 90); not_run=<25 items>")
    '(checked: config #, log #); not_run=<# items>'
    """
    return _TOTALS.sub("#", text)


def as_shown(block: str, output: str) -> str:
    """The output, cut to the length of the block if the block is cut; the block itself if only totals differ."""
    if block.endswith(CUT):
        kept = block.removesuffix(CUT).count("\n")
        output = "".join(output.splitlines(keepends=True)[:kept]) + CUT
    return block if without_totals(block) == without_totals(output) else output


def blocks(text: str) -> dict[str, tuple[str, str]]:
    """Each block that shows a command's output, with the command's output now, by the name of the block's mark."""
    with clone_with_run():
        for content, name in FILE.findall(text):
            Path(name).write_text(content, encoding="utf-8")
        return {name: (block, as_shown(block, printed(command))) for name, command, block in BLOCK.findall(text)}


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for page in PAGES:
        words = (ROOT / page).read_text(encoding="utf-8")
        for old, new in blocks(words).values():
            words = words.replace(old, new)
        (ROOT / page).write_text(words, encoding="utf-8")
