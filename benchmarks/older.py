"""Whole commands beside those of a fixed older commit, in turns: a loss of speed since then shows as a ratio over 1.

    git worktree add --detach /tmp/older d4360498
    python benchmarks/older.py /tmp/older [--rows 1000000] [--toys 300] [--rounds 5]

Both trees run in the environment of this interpreter. What is compared is the processor time of the process and of its
children, the least of several rounds: other programs on the machine change it little. Each tree has its own bytecode
and its own fleet.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path

from fleet import timed, toys
from telemetry import make_log

COMMIT = "d4360498"
HERE = Path(__file__).parents[1]


def spent(tree: Path, scratch: Path, command: list[str]) -> float:
    """Processor seconds of a command of one tree."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPATH": str(tree / "src"), "PYTHONPYCACHEPREFIX": str(scratch / "bytecode")}
    return timed([sys.executable, "-m", "gradience", *command], env=env)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("older", type=Path, help=f"a worktree of {COMMIT}")
    for name, value in (("rows", 1_000_000), ("toys", 300), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        log, home = root / "run.jsonl", toys(root, options.toys)
        make_log(log, options.rows)
        audit = ["fleet", "audit", str(home), "--workers", "1", "--out"]
        least: dict[tuple[str, str], float] = {}
        for _ in range(options.rounds + 1):  # the first writes the bytecode
            for tree in (options.older, HERE):
                scratch = root / ("new" if tree == HERE else "old")
                shutil.rmtree(scratch / "fleet", ignore_errors=True)
                for name, command in {
                    "monitor": ["monitor", str(log)],
                    "fleet audit": [*audit, str(scratch / "fleet")],
                    "second audit": [*audit, str(scratch / "fleet")],
                }.items():
                    at = name, scratch.name
                    least[at] = min(least.get(at, math.inf), spent(tree, scratch, command))
    for name in dict.fromkeys(name for name, _ in least):
        old, new = least[name, "old"], least[name, "new"]
        print(f"{name:<13} {old:6.2f} s at {COMMIT}, {new:6.2f} s here: {new / old:.2f} times as long")


if __name__ == "__main__":
    main()
