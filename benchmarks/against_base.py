"""An adapter beside a base of a Llama 7B: `audit --base` and `--intruders`, whole processes, beside their limits.

    python benchmarks/against_base.py make FOLDER [--layers 32] [--size 7b]   # 13 GB; made shard by shard
    python benchmarks/against_base.py run FOLDER [--intruders]
    python benchmarks/against_base.py floor FOLDER         # what reading, products and passes cost at the least
    python benchmarks/against_base.py busy FOLDER [--runs 3]   # CPU seconds beside processes that compute, and without
    python benchmarks/against_base.py peft FOLDER          # beside PEFT's reduce_intruder_dimension, for small sizes

A weight is a Gaussian matrix whose rows and columns differ in size, plus 256 directions that fall by a power law. So
its spectrum has a bulk and a heavy tail, like that of trained weights. Exponents and sizes differ between modules. The
weights are stored in bfloat16. `--distinct N` repeats the weights of N layers.
The adapter has rank 16. In every fourth layer it is eight times as large, so that its own directions lead.
`make --size minilm` makes six layers of widths 384 and 1536.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np

SIZES = {"7b": (4096, 11008), "minilm": (384, 1536), "toy": (768, 768)}
RANK = 16
TAIL = 256


def modules(size: str) -> list[tuple[str, int, int]]:
    hidden, ffn = SIZES[size]
    square = [(f"self_attn.{m}_proj", hidden, hidden) for m in "qkvo"]
    return [*square, ("mlp.gate_proj", ffn, hidden), ("mlp.up_proj", ffn, hidden), ("mlp.down_proj", hidden, ffn)]


def weight(shape: tuple[int, int], seed: int) -> np.ndarray:
    """A matrix with the spectrum that the module's docstring describes."""
    rng = np.random.default_rng(seed)
    m, n = shape
    tail = min(TAIL, m // 4, n // 4)
    w = rng.standard_normal(shape, dtype=np.float32)
    w *= np.exp(0.3 * rng.standard_normal((m, 1), dtype=np.float32))
    w *= np.exp(0.3 * rng.standard_normal((1, n), dtype=np.float32))
    edge = np.sqrt(m) + np.sqrt(n)
    largest, power = rng.uniform(1.5, 8.0), rng.uniform(0.4, 0.8)
    sigma = (largest * edge * np.arange(1, tail + 1) ** -power).astype(np.float32)
    u = rng.standard_normal((m, tail), dtype=np.float32) / np.float32(np.sqrt(m))
    v = rng.standard_normal((tail, n), dtype=np.float32) / np.float32(np.sqrt(n))
    w += (u * sigma) @ v
    w *= np.float32(0.02)
    return w.astype(ml_dtypes.bfloat16)


def make(folder: Path, layers: int, size: str, distinct: int) -> None:
    """Write the base and the adapter. Existing files are kept."""
    from safetensors.numpy import save_file

    base, adapter = folder / "base", folder / "adapter"
    base.mkdir(parents=True, exist_ok=True)
    adapter.mkdir(exist_ok=True)
    where, factors = {}, {}
    rng = np.random.default_rng(0)
    for layer in range(layers):
        shard = base / f"model-{layer + 1:05}-of-{layers:05}.safetensors"
        names = {f"model.layers.{layer}.{name}.weight": (d_out, d_in) for name, d_out, d_in in modules(size)}
        where |= dict.fromkeys(names, shard.name)
        if not shard.exists():
            tensors = {
                name: weight(shape, 100 * (layer % distinct) + i) for i, (name, shape) in enumerate(names.items())
            }
            save_file(tensors, shard.with_suffix(".part"), metadata={"format": "pt"})
            shard.with_suffix(".part").rename(shard)
        for name, d_out, d_in in modules(size):
            stem = f"base_model.model.model.layers.{layer}.{name}"
            fall = (0.7 ** np.arange(RANK)).astype(np.float32)[:, None] * (8.0 if layer % 4 == 0 else 1.0)
            a = rng.standard_normal((RANK, d_in), dtype=np.float32) / np.float32(np.sqrt(d_in)) * fall
            factors[f"{stem}.lora_A.weight"] = a.astype(np.float32)
            factors[f"{stem}.lora_B.weight"] = rng.standard_normal((d_out, RANK), dtype=np.float32) * np.float32(0.01)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    save_file(factors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name.rsplit(".", 1)[-1] for name, _, _ in modules(size)})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": targets}
    (adapter / "adapter_config.json").write_text(json.dumps(config))


READ = """
import sys, time
import numpy as np
from pathlib import Path
from gradience.base.weights import BaseWeights, find_shards
base = BaseWeights(find_shards(Path(sys.argv[1])))
start = time.perf_counter()
for file in base.files:
    for name in file.tensors:
        file.read(name).astype(np.float32)
print(time.perf_counter() - start)
"""


def reading(base: Path) -> float:
    """The seconds to read each of the base's tensors once and convert it to float32, one at a time."""
    done = subprocess.run([sys.executable, "-c", READ, str(base)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def audit(folder: Path, *options: str) -> tuple[dict[str, float], dict[str, object]]:
    """The cost of one process with an empty norms cache, and its report."""
    command = [sys.executable, "-m", "gradience", "audit", str(folder / "adapter"), "--base", str(folder / "base")]
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--json", *options],
            stdout=subprocess.PIPE,
            env=os.environ | {"XDG_CACHE_HOME": cache},
        )
        output = process.stdout.read() if process.stdout else b""
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) not in {0, 1}:
        raise SystemExit(f"{shlex.join(command)} failed")
    cost = {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "MB": usage.ru_maxrss / 1024}
    return cost, json.loads(output)


def run(folder: Path, *, intruders: bool, cached: bool) -> None:
    limit = reading(folder / "base")
    options = ["--intruders"] * intruders + ["--no-cache"] * (not cached)
    cost, report = audit(folder, *options)
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores; reading and converting {limit:.2f} s")
    print(
        f"audit --base {' '.join(options)}: wall {cost['wall']:.1f} s ({cost['wall'] / limit:.2f} x reading), "
        f"CPU {cost['cpu']:.1f} s, peak {cost['MB']:.0f} MB"
    )
    rows = [m["base"] for m in report["modules"] if m.get("base")]
    print(f"  {len(rows)} modules compared, {sum(not r['converged'] for r in rows)} norms not converged")
    found = [r["intruders"] for r in rows if r.get("intruders")]
    if found:
        open_ = sum(i["undecided"] for i in found)
        counts = Counter()
        for i in found:
            counts.update(i["counts"])
        print(
            f"  intruders {dict(counts)}, {open_} undecided at eps {found[0]['eps']}, "
            f"{sum(not i['converged'] for i in found)} modules not converged, "
            f"{dict(Counter(i['method'] for i in found))}"
        )


FLOOR = """
import sys, time
import ml_dtypes
import numpy as np
from pathlib import Path
from gradience.base.weights import BaseWeights, find_shards
from gradience.spectral.krylov import spectral_norm
base = BaseWeights(find_shards(Path(sys.argv[1])))
file = base.files[0]
name = max(file.tensors, key=lambda name: np.prod(file.tensors[name].shape))
w = file.read(name)
rows = max(1, (1 << 17) // w.shape[1])
part = np.empty((rows, w.shape[1]), np.float32)
b, a = np.ones((rows, 16), np.float32), np.ones((16, w.shape[1]), np.float32)
x, y = np.ones((2, w.shape[1]), np.float32)
def widen():
    for i in range(0, len(w) - rows, rows): np.copyto(part, w[i : i + rows], casting="unsafe")
def product():
    for i in range(0, len(w) - rows, rows): np.dot(b, a, out=part)
def one_pass():
    for i in range(0, len(w) - rows, rows):
        np.copyto(part, w[i : i + rows], casting="unsafe")
        (part @ x) @ part
        (part @ y) @ part
def cost(work):
    times = []
    for _ in range(5):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times) / w.size * 1e9
print(cost(lambda: file.read(name)), cost(widen), cost(product), cost(one_pass), spectral_norm(w).passes)
"""


def floor(folder: Path) -> None:
    """Print the least processor time of an element of the base, in ns, for what the report needs.

    That is: to read and widen it, to multiply the factors of rank 16 for it, and to take each pass of the iteration for
    the largest singular value. numpy's BLAS does the products on one thread, in blocks that stay in the cache.
    """
    command = [sys.executable, "-c", FLOOR, str(folder / "base")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    read, widen, product, one_pass, passes = map(float, done.stdout.split())
    whole = read + widen + product + passes * one_pass
    print(
        f"ns of an element: reading {read:.2f}, widening {widen:.2f}, the product {product:.2f}, a pass {one_pass:.2f}"
    )
    print(f"with {passes:.0f} passes {whole:.2f}, which is {whole / (read + widen):.1f} x reading and widening")


SPIN = "import numpy as np\nx = np.ones((700, 700))\nwhile True: x @ x"


def busy(folder: Path, runs: int) -> None:
    """Print the CPU seconds while other processes keep every core busy, as a multiple of those on an idle machine."""
    quiet = min(audit(folder, "--intruders", "--no-cache")[0]["cpu"] for _ in range(runs))
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(os.cpu_count() or 1)]
    try:
        loaded = min(audit(folder, "--intruders", "--no-cache")[0]["cpu"] for _ in range(runs))
    finally:
        for process in others:
            process.kill()
            process.wait()
    print(f"CPU {quiet:.2f} s alone, {loaded:.2f} s beside {len(others)} busy processes: {loaded / quiet:.2f} x")


PEFT = """
import json, sys, time
from pathlib import Path
import torch
from peft import PeftModel
from peft.tuners.lora.intruders import reduce_intruder_dimension
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
folder, layers, hidden, inner = Path(sys.argv[1]), *map(int, sys.argv[2:])
config = LlamaConfig(vocab_size=8, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                     num_attention_heads=4, num_key_value_heads=4)
model = LlamaForCausalLM(config)
weights = {k: v for file in sorted((folder / "base").glob("*.safetensors")) for k, v in load_file(file).items()}
left = model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
assert not left.unexpected_keys and not any("proj" in k for k in left.missing_keys)
tuned = PeftModel.from_pretrained(model, str(folder / "adapter"))
said = []
start, wall = time.process_time(), time.perf_counter()
reduce_intruder_dimension(tuned, top_k=10, threshold_epsilon=0.5, logging_sink=said.append)
print(json.dumps({"cpu": time.process_time() - start, "wall": time.perf_counter() - wall, "said": said}))
"""


def peft(folder: Path, size: str) -> None:
    """Print, in turns, the time of PEFT's search without imports and that of the whole `audit --base --intruders`.

    PEFT's time includes writing an adapter without the intruders, which costs one product per module.
    """
    layers = len([*(folder / "base").glob("*.safetensors")])
    for _ in range(2):
        command = [sys.executable, "-c", PEFT, str(folder), str(layers), *map(str, SIZES[size])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        theirs = json.loads(done.stdout.splitlines()[-1])
        ours, report = audit(folder, "--intruders", "--no-cache")
    none = sum("No intruders" in line for line in theirs["said"])
    without = sum(not m["base"]["intruders"]["count"] for m in report["modules"])
    print(f"PEFT        CPU {theirs['cpu']:7.2f} s  wall {theirs['wall']:7.2f} s  {none} modules without intruders")
    print(f"audit       CPU {ours['cpu']:7.2f} s  wall {ours['wall']:7.2f} s  {without} modules without intruders")
    print(
        f"PEFT takes {theirs['cpu'] / ours['cpu']:.1f} times the CPU time, {theirs['wall'] / ours['wall']:.1f} the wall"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("make", "run", "floor", "busy", "peft"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--distinct", type=int, default=32)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--runs", type=int, default=3, help="of `busy`, each way: one is slow where others compute too")
    parser.add_argument("--intruders", action="store_true")
    parser.add_argument("--cached", action="store_true", help="fill the norms cache as well, which hashes the base")
    options = parser.parse_args()
    if options.do == "make":
        make(options.folder, options.layers, options.size, options.distinct)
    elif options.do == "run":
        run(options.folder, intruders=options.intruders, cached=options.cached)
    elif options.do == "floor":
        floor(options.folder)
    elif options.do == "busy":
        busy(options.folder, options.runs)
    else:
        peft(options.folder, options.size)


if __name__ == "__main__":
    main()
