"""Whole-process time, CPU time and peak memory of `verify`, beside reading the files and another tool.

    python benchmarks/verify.py FOLDER [--layers 18] [--rank 16] [--runs 3] [--peer PATH]

FOLDER gets a synthetic model (bfloat16, hidden size 2048, 32 000 tokens; 2.1 GB at 18 layers), an adapter of all its
linear layers, and the model merged as PEFT merges on a CPU. They are made once and kept. `read` is a process that only
reads the base and merged files through a buffer. `products` is a process that multiplies factors of these shapes, in
blocks of rows. The ratio at the end is verify's CPU time without the products, over that of reading. PATH is the
`deltalint` command of deltalint==0.1.0 from the index, in its own environment. The tools take turns, after one
uncounted turn, so that all read from the page cache. CPU time (user and system) is not distorted by a loaded machine.
The last lines give each tool's verdict on the merged model, and on the base in its place.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

_HIDDEN, _INNER, _TOKENS = 2048, 5632, 32_000
_SHAPES = {
    **{f"self_attn.{name}_proj": (_HIDDEN, _HIDDEN) for name in "qkvo"},
    "mlp.gate_proj": (_INNER, _HIDDEN),
    "mlp.up_proj": (_INNER, _HIDDEN),
    "mlp.down_proj": (_HIDDEN, _INNER),
}
_ALPHA = 32
_READER = """
import sys
buffer = bytearray(1 << 24)
for path in sys.argv[1:]:
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
"""


_PRODUCTS = """
import sys
import numpy as np
layers, rank = int(sys.argv[1]), int(sys.argv[2])
for out, inner in [tuple(map(int, shape.split("x"))) for shape in sys.argv[3:]] * layers:
    b, a = np.ones((out, rank), np.float32), np.ones((rank, inner), np.float32)
    rows = max(1, (1 << 18) // inner)
    product = np.empty((rows, inner), np.float32)
    for start in range(0, out, rows):
        part = b[start : start + rows]
        np.matmul(part, a, out=product[: len(part)])
"""


class Cost(NamedTuple):
    """Wall seconds, CPU seconds, peak resident megabytes and exit code of one process."""

    wall: float
    cpu: float
    megabytes: float
    code: int


def run(command: list[str]) -> Cost:
    """Run one process to its end and return its cost, as the operating system measured it."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    code = os.waitstatus_to_exitcode(status)
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, code)


def modules(layers: int) -> Iterator[tuple[str, tuple[int, int]]]:
    for layer in range(layers):
        for name, shape in _SHAPES.items():
            yield f"model.layers.{layer}.{name}", shape


def make(folder: Path, *, layers: int, rank: int) -> None:
    """Write base, adapter and merged model, one tensor in memory at a time."""
    from gradience.io.safetensors import planned, write_safetensors

    def numbers(seed: int, shape: tuple[int, int], scale: float) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(scale)

    def weight(seed: int, shape: tuple[int, int]) -> np.ndarray:
        return numbers(seed, shape, 0.02).astype(ml_dtypes.bfloat16)

    def merge(seed: int, shape: tuple[int, int]) -> np.ndarray:
        b, a = numbers(seed + 1, (shape[0], rank), 0.01), numbers(seed + 2, (rank, shape[1]), 0.01)
        return weight(seed, shape).astype(np.float32) + (b @ a) * np.float32(_ALPHA / rank)

    whole = [(name, (_TOKENS, _HIDDEN)) for name in ("model.embed_tokens.weight", "lm_head.weight")]
    base, merged, factors = [], [], []
    for place, (name, shape) in enumerate(whole):
        for side in (base, merged):
            side.append(planned(name, "BF16", shape, lambda p=place, s=shape: weight(3 * p, s)))
    for place, (name, shape) in enumerate(modules(layers), len(whole)):
        base.append(planned(f"{name}.weight", "BF16", shape, lambda p=place, s=shape: weight(3 * p, s)))
        merged.append(planned(f"{name}.weight", "BF16", shape, lambda p=place, s=shape: merge(3 * p, s)))
        stem, (out, inner) = f"base_model.model.{name}", shape
        for part, seed, size in (("lora_A", 2, (rank, inner)), ("lora_B", 1, (out, rank))):
            load = lambda s=3 * place + seed, z=size: numbers(s, z, 0.01)  # noqa: E731  # one of a list
            factors.append(planned(f"{stem}.{part}.weight", "F32", size, load))
    files = {"base/model": base, "merged/model": merged, "adapter/adapter_model": factors}
    for name, tensors in files.items():
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, tensors, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _ALPHA,
        "target_modules": [n.rpartition(".")[2] for n in _SHAPES],
    }
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    for name in ("base", "merged"):
        (folder / name / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer", type=Path)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # so that installed modules are not compiled again in every run
    if not (options.folder / "adapter" / "adapter_config.json").is_file():
        make(options.folder, layers=options.layers, rank=options.rank)
    base, adapter, merged = (options.folder / name for name in ("base", "adapter", "merged"))
    files = [str(folder / "model.safetensors") for folder in (base, merged)]
    sides = ["--base", str(base), "--adapter", str(adapter)]
    tools = {"verify": lambda model: [sys.executable, "-m", "gradience", "verify", str(model), *sides]}
    if options.peer is not None:
        tools["deltalint 0.1.0"] = lambda model: [str(options.peer), "check", *sides, "--merged", str(model)]
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as verify sets it
    shapes = [f"{out}x{inner}" for out, inner in _SHAPES.values()]
    limits = {
        "read": [sys.executable, "-c", _READER, *files],
        "numpy": [sys.executable, "-c", "import numpy"],
        "products": [sys.executable, "-c", _PRODUCTS, str(options.layers), str(options.rank), *shapes],
    }
    turns = {**limits, **{name: of(merged) for name, of in tools.items()}}
    costs: dict[str, list[Cost]] = {name: [] for name in turns}
    for turn in range(options.runs + 1):
        for name, command in turns.items():
            cost = run(command)
            if turn:
                costs[name].append(cost)
    size = sum(Path(file).stat().st_size for file in files)
    print(
        f"{size / 1e9:.2f} GB of base and merged model, {options.layers * len(_SHAPES)} modules, "
        f"median of {options.runs}"
    )
    first = [
        statistics.median(c.cpu for c in costs["verify"]),
        statistics.median(c.wall for c in costs["verify"]),
    ]
    for name, some in costs.items():
        cpu, wall, peak = (statistics.median(getattr(c, field) for c in some) for field in ("cpu", "wall", "megabytes"))
        print(
            f"{name:<16} CPU {cpu:7.2f} s ({cpu / first[0]:5.2f}x)  wall {wall:7.2f} s ({wall / first[1]:5.2f}x)"
            f"  peak {peak:6.0f} MB"
        )
    products, start, read = (statistics.median(c.cpu for c in costs[name]) for name in ("products", "numpy", "read"))
    print(f"without the products {(first[0] - products + start) / read:.2f} times the CPU time of reading")
    for name, of in tools.items():
        right, wrong = costs[name][-1].code, run(of(base)).code
        print(f"{name:<16} exit code {right} for the merged model, {wrong} for the base in its place")


if __name__ == "__main__":
    main()
