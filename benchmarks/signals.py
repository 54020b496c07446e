"""Send SIGINT and SIGTERM at random moments to verbs that write; check files, messages and the exit code.

    python benchmarks/signals.py [--signals 100]

An output must be complete or absent. The temporary folder and the output's folder must hold nothing else, and stderr no
traceback. The exit code must be the signal's, or that of a command that had already finished.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from hostile.inputs import adapter, base, factors, run_log  # after the path is set

VERBS = {
    "convert": ["convert", "a", "--to", "mlx", "--out", "out/c"],
    "resize": ["resize", "a", "--rank", "2", "--out", "out/r"],
    "merge": ["merge", "a", "b", "--out", "out/m"],
    "report": ["report", "run.jsonl", "--out", "out/page.html"],
    "import": ["import", "t.csv", "--out", "out/run.jsonl"],
    "audit": ["audit", "a", "--json"],
}
WHOLE = {
    "c": "adapters.safetensors",
    "r": "adapter_config.json",
    "m": "adapter_config.json",
}


def place(folder: Path) -> None:
    """Write the inputs of the verbs, large enough that a signal arrives during the work."""
    names = [f"base_model.model.model.layers.{n}.self_attn.q_proj" for n in range(24)]
    for seed, name in enumerate("ab"):
        tensors = {}
        for stem in names:
            tensors |= factors((256, 256), 8, stem=stem, seed=seed)
        adapter(folder / name, tensors, {"r": 8})
    rng = np.random.default_rng(0)
    weights = [stem.replace("base_model.model.", "") + ".weight" for stem in names]
    base(folder / "base", {name: rng.standard_normal((256, 256)).astype(np.float32) for name in weights})
    run_log(folder / "run.jsonl", steps=2000)
    (folder / "t.csv").write_text("step,loss\n" + "".join(f"{n},{1 / (n + 1)}\n" for n in range(3000)))
    (folder / "tmp").mkdir()
    (folder / "out").mkdir()


def run(verb: str, folder: Path, number: int, after_s: float) -> tuple[list[str], int]:
    """Run a verb, send it a signal, and return the faults and the exit code."""
    environment = os.environ | {"TMPDIR": str(folder / "tmp"), "XDG_CACHE_HOME": str(folder / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-m", "gradience", *VERBS[verb]],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(after_s)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    faults = []
    if "Traceback" in err:
        faults.append("traceback" if "/gradience/" in err else "traceback before the program's first line")
    if process.returncode not in {0, 1, 128 + number, -number}:
        faults.append(f"exit code {process.returncode}")
    if process.returncode == -number:
        faults.append("ended by the signal before the program's first line")
    left = [path.name for path in (folder / "tmp").iterdir()]
    made = {path.name: path for path in (folder / "out").iterdir()}
    for name, path in made.items():
        if (
            name.startswith(".")
            or (path.is_dir() and not (path / WHOLE.get(name, "-")).is_file())
            or (path.is_file() and not path.read_text().rstrip().endswith(("</html>", "}")))
        ):
            left.append(name)
    if faults or left:
        sys.stderr.write(f"{verb} {number} after {after_s:.2f} s: {faults} {left}\n{err[-1500:]}\n")
    return [*faults, *(["something left"] * bool(left))], process.returncode


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", type=int, default=100)
    count = parser.parse_args().signals
    rng = random.Random(0)  # noqa: S311  # a benchmark repeats itself
    longest: dict[str, float] = {}
    faults: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    for _ in range(count):
        verb, number = rng.choice(list(VERBS)), rng.choice([signal.SIGINT, signal.SIGTERM])
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            place(folder)
            if verb not in longest:
                start = time.monotonic()
                subprocess.run(
                    [sys.executable, "-m", "gradience", *VERBS[verb]], cwd=folder, capture_output=True, check=False
                )
                longest[verb] = time.monotonic() - start
            else:
                wrong, code = run(verb, folder, number, rng.uniform(0.1, 1.0) * longest[verb])
                codes[code] += 1
                for fault in wrong:
                    faults[f"{fault} ({verb})"] += 1
    sys.stdout.write(f"{codes.total()} signals; exit codes {dict(sorted(codes.items()))}; faults {dict(faults)}\n")


if __name__ == "__main__":
    main()
