"""Run the README's first command without a network, once for all workers of a session."""

from __future__ import annotations

import fcntl
import json
import re
import shlex
import shutil
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from warmed import Warmed

__all__ = ["GUARDED", "Toy", "once"]

# Refuses every look-up and connection of an interpreter, and names it on stderr.
GUARD = """
import sys

def refuse(event, args):
    if event in {"socket.getaddrinfo", "socket.gethostbyname", "socket.connect"}:
        print("NETWORK", event, args, file=sys.stderr)
        raise OSError("this test allows no network")

sys.addaudithook(refuse)
"""
# Runs the script that its arguments name, under the guard.
GUARDED = f"{GUARD}\nimport runpy\ndel sys.argv[0]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
COMMAND = re.compile(r"<!-- run: toy -->\n```bash\n(.*?)\n```", re.DOTALL)


class Toy(NamedTuple):
    """A copy of the clone, with runs/toy in it, and the command's output."""

    clone: Path
    out: str
    err: str

    @property
    def run(self) -> Path:
        """The folder that the command wrote."""
        return self.clone / "runs" / "toy"


def once(root: Path, shared: Path, warmed: Callable[[], Warmed]) -> Toy:
    """Run the command in a folder that all workers of a session share, unless a worker has run it before."""
    clone, said = shared / "toy-clone", shared / "toy-said.json"
    with (shared / "toy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            said.write_text(json.dumps(_run(root, clone, warmed())), encoding="utf-8")
    code, out, err = json.loads(said.read_text(encoding="utf-8"))
    assert code == 0, err
    return Toy(clone, out, err)


def _run(root: Path, clone: Path, warmed: Warmed) -> tuple[int, str, str]:
    """Run the command under the guard. Its stderr includes what the earlier imports wrote to stderr."""
    python, *words = shlex.split(COMMAND.findall((root / "README.md").read_text(encoding="utf-8"))[0])
    assert python == "python"
    shutil.copytree(root / "examples", clone / "examples")
    done = warmed.run("-c", GUARDED, *words, cwd=clone, HF_HUB_OFFLINE="0")
    return done.returncode, done.stdout, warmed.imports_said + done.stderr
