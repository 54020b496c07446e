"""What a base in codes costs an audit: the time and memory of `audit --base` beside the same weights in FP8 and int4.

    python benchmarks/base_codes.py [--layers 2] [--width 4096] [--turns 3] [--at DIR]

Layers have the shapes of a 7B Llama. The three bases are written once; each run is a process of its own, in turns, and
the least time of each counts. FP8 has blocks of 128 x 128 as DeepSeek's, int4 128 weights to a scale as
compressed-tensors packs them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np

from gradience.io.safetensors import DTYPES, planned, write_safetensors

BLOCK: Final = 128
RANK: Final = 16
FORMS: Final = ("bf16", "fp8", "int4")


def weights(layers: int, width: int) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The matrices of a Llama, with a few large singular values over noise."""
    inner = width * 43 // 16 // BLOCK * BLOCK
    shapes = {f"self_attn.{x}_proj": (width, width) for x in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    rng = np.random.default_rng(0)
    for layer in range(layers):
        for name, (m, n) in shapes.items():
            u, v = rng.standard_normal((m, 8), np.float32), rng.standard_normal((8, n), np.float32)
            top = (u * 0.7 ** np.arange(8, dtype=np.float32)) @ v
            yield f"model.layers.{layer}.{name}", 0.02 * rng.standard_normal((m, n), np.float32) + 0.004 * top


def in_form(form: str, w: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a weight, by what follows the module's name."""
    m, n = w.shape
    if form == "bf16":
        return {"weight": w.astype(ml_dtypes.bfloat16)}
    if form == "fp8":
        blocks = w.reshape(m // BLOCK, BLOCK, n // BLOCK, BLOCK)
        scales = np.abs(blocks).max((1, 3)) / 448.0
        codes = (blocks / scales[:, None, :, None]).astype(ml_dtypes.float8_e4m3fn).reshape(m, n)
        return {"weight": codes, "weight_scale_inv": scales}
    groups = w.reshape(m, n // BLOCK, BLOCK)
    scales = np.abs(groups).max(2) / 7.5
    codes = np.clip(np.round(groups / scales[..., None]) + 8, 0, 15).astype(np.uint8).reshape(m, n)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).view(np.int32)
    shape = np.array([m, n], np.int64)
    return {"weight_packed": packed, "weight_scale": scales.astype(ml_dtypes.bfloat16), "weight_shape": shape}


def write(folder: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    """Write one file of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {kind: name for name, kind in DTYPES.items()}
    plan = [planned(key, names[x.dtype], x.shape, lambda x=x: x) for key, x in tensors.items()]
    write_safetensors(folder / f"model-{len(list(folder.iterdir())):05}.safetensors", plan, metadata={})


def build(at: Path, layers: int, width: int) -> None:
    """Write the bases, a file for each weight, and an adapter on all of their matrices."""
    rng, factors = np.random.default_rng(1), {}
    for name, w in weights(layers, width):
        for form in FORMS:
            write(at / form, {f"{name}.{key}": x for key, x in in_form(form, w).items()})
        stem, (m, n) = f"base_model.model.{name}", w.shape
        factors[f"{stem}.lora_A.weight"] = rng.standard_normal((RANK, n), np.float32) / np.float32(n**0.5)
        factors[f"{stem}.lora_B.weight"] = 0.01 * rng.standard_normal((m, RANK), np.float32)
    write(at / "adapter", factors)
    (at / "adapter" / "model-00000.safetensors").rename(at / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": "all-linear"}
    (at / "adapter" / "adapter_config.json").write_text(json.dumps(config))


def measured(argv: list[str]) -> tuple[float, float, float]:
    """The seconds of a run, those of its processors, and the most memory that it held, in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, argv
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--at", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as own:
        at = options.at or Path(own)
        if not (at / "adapter").exists():  # by a process of its own: a child's peak of memory begins at its parent's
            worker = multiprocessing.get_context("spawn").Process(
                target=build, args=(at, options.layers, options.width)
            )
            worker.start()
            worker.join()
        ask = [sys.executable, "-m", "gradience", "audit", str(at / "adapter"), "--no-cache", "--base"]
        runs = {form: [] for form in FORMS}
        for _ in range(options.turns):
            for form in FORMS:
                runs[form].append(measured([*ask, str(at / form)]))
                print(form, *(f"{x:.1f}" for x in runs[form][-1]), file=sys.stderr, flush=True)
        least = {form: [min(one) for one in zip(*found, strict=True)] for form, found in runs.items()}
        for form, found in least.items():
            wall, cpu, memory = (x / y for x, y in zip(found, least["bf16"], strict=True))
            beside = f"of bf16: time {wall:.2f}, processor {cpu:.2f}, memory {memory:.2f}"
            print(f"{form}: {found[0]:.1f} s, {found[2]:.0f} MiB; {beside}")


if __name__ == "__main__":
    main()
