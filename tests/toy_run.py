"""The README's first command, run where no network is, once for all workers of a session."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

__all__ = ["GUARD", "Toy", "once"]

# Refuses every look-up and connection of an interpreter, and names it on stderr.
GUARD = """
import sys

def refuse(event, args):
    if event in {"socket.getaddrinfo", "socket.gethostbyname", "socket.connect"}:
        print("NETWORK", event, args, file=sys.stderr)
        raise OSError("this test allows no network")

sys.addaudithook(refuse)
"""
COMMAND = re.compile(r"<!-- run: toy -->\n```bash\n(.*?)\n```", re.DOTALL)


class Toy(NamedTuple):
    """The folder that looks like a clone, with runs/toy in it, and what the command said."""

    clone: Path
    out: str
    err: str

    @property
    def run(self) -> Path:
        """What the command left."""
        return self.clone / "runs" / "toy"


def once(root: Path, shared: Path) -> Toy:
    """Run the command in a folder that all workers of a session share, unless one of them has."""
    clone, said = shared / "toy-clone", shared / "toy-said.json"
    with (shared / "toy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            said.write_text(json.dumps(_run(root, clone)), encoding="utf-8")
    code, out, err = json.loads(said.read_text(encoding="utf-8"))
    assert code == 0, err
    return Toy(clone, out, err)


def _run(root: Path, clone: Path) -> tuple[int, str, str]:
    command = COMMAND.findall((root / "README.md").read_text(encoding="utf-8"))[0]
    shutil.copytree(root / "examples", clone / "examples")
    guard = clone.with_name("toy-guard")
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    modules = os.pathsep.join(filter(None, [str(guard), os.environ.get("PYTHONPATH")]))
    hub = {name: value for name, value in os.environ.items() if not name.startswith("HF_HUB_OFFLINE")}
    environment = {**hub, "PATH": path, "PYTHONPATH": modules}
    done = subprocess.run(
        ["bash", "-c", command], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr
