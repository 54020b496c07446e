"""What three newcomers see, as files of golden/screens: one has the command line, one a notebook, one a CI job.

They walk over the run of golden/readme, so the screens are the same on any processor. After an intended change, `python
tests/screens.py` writes them again.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from unittest import mock

from readme_blocks import clone_with_run, without_totals

FOLDER: Final = Path(__file__).parent / "golden" / "screens"

COMMANDS: Final = (
    "gradience runs/toy",
    "gradience check --task sst2 --peft-dir runs/toy/peft --training-dir runs/toy/training",
    "gradience monitor runs/toy/run.jsonl",
    "gradience audit --peft-dir runs/toy/peft",
    "gradience diagnose runs/toy",
    "gradience merge runs/toy/peft runs/toy/peft --check",
    "gradience compare runs/toy/peft runs/toy/peft",
    "gradience runs runs",
)
CELLS: Final = (
    "check_config(peft='runs/toy/peft', training='runs/toy/training')",
    "monitor_run('runs/toy/run.jsonl')",
    "audit_adapter('runs/toy/peft')",
    "list(audit_adapter('runs/toy/peft').table('layers')[0])",
    "diagnose('runs/toy')",
    "check_config({'r': 8, 'lora_alpha': 16, 'learning_rate': 0.01}).findings[0].message",
    "TelemetryReader('runs/toy/run.jsonl').latest_config().lora",
)
JOBS: Final = (
    "gradience check --peft-dir runs/toy/peft --format github --fail-on warning",
    "gradience diagnose runs/toy --format github --fail-on warning",
    "gradience check --set r=8 --set alpha=16 --set lr=0.01 --format github --fail-on warning",
    "gradience monitor runs/toy/run.jsonl --json --fail-on error",
    "gradience check absent --fail-on error",
)


def shell(command: str) -> tuple[int, str, str]:
    """The exit code, the output and the errors of a command line, which is run in this process."""
    from gradience.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(shlex.split(command)[1:])
    return code, out.getvalue(), err.getvalue()


def cli() -> Iterator[str]:
    """The screens of a newcomer who has the command line only."""
    for command in COMMANDS:
        code, out, err = shell(command)
        yield f"$ {command}\n{out}{err}" + (f"[exit code {code}]\n" if code else "")


def notebook() -> Iterator[str]:
    """The output of the cells of a newcomer who has a notebook only."""
    import gradience

    known = {name: getattr(gradience, name) for name in gradience.__all__}
    for cell in CELLS:
        yield f">>> {cell}\n{eval(cell, known)!r}\n"  # noqa: S307  # the cells above


def ci() -> Iterator[str]:
    """The log of a job on GitHub."""
    with mock.patch.dict(os.environ, {"GITHUB_ACTIONS": "true"}):
        for command in JOBS:
            code, out, err = shell(command)
            kept = f"a JSON document of {len(json.loads(out))} keys\n" if "--json" in command and code < 2 else out
            yield f"$ {command}\n{kept}{err}[exit code {code}]\n"


WALKS: Final[dict[str, Callable[[], Iterator[str]]]] = {"cli": cli, "notebook": notebook, "ci": ci}


def walked(name: str) -> list[str]:
    """The screens of a walk, without totals of rules."""
    with clone_with_run():
        here = re.compile(re.escape(os.path.realpath(".")) + "|" + re.escape(str(Path.cwd())))
        return [without_totals(here.sub("~", screen)) for screen in WALKS[name]()]


def whole(screens: list[str]) -> str:
    """The text of a file of golden/screens."""
    return "\n".join(screens)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in WALKS:
        path = FOLDER / f"{name}.txt"
        path.write_text(whole(walked(name)), encoding="utf-8")
        sys.stdout.write(f"{path}\n")
