"""Measure fleets and runs: adapters per second beside a peer, memory, second calls, kills, queries, run lists.

    python benchmarks/fleet.py [--toys 1000] [--large 20] [--peer-toys 100] [--peer COMMAND] [--kills 25] [--runs 2000]

Toy adapters are 1.2 MB each. 64 different ones are made; further ones are links to their weights beside another config.
COMMAND is a peer's command: `{root}` is the folder, `{list}` a file with one path per line, `{out}` the output.
Everything runs on one machine in one run; rates are those of whole processes. `--only NAME` runs one part: peer,
memory, second, query, similar, kills, large, runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

LAYERS, MODULES, WIDTH, RANK = 6, ("q_lin", "k_lin", "v_lin", "out_lin"), 768, 8
DISTINCT = 64
LLAMA = {"q_proj": (4096, 4096), "k_proj": (4096, 4096), "v_proj": (4096, 4096), "o_proj": (4096, 4096)} | {
    "gate_proj": (4096, 11008),
    "up_proj": (4096, 11008),
    "down_proj": (11008, 4096),
}


def tensors(seed: int, shapes: dict[str, tuple[int, int]], layers: int, rank: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    decay = (rng.uniform(0.5, 0.9) ** np.arange(rank)).astype(np.float32)[:, None]
    found = {}
    for layer in range(layers):
        for name, (d_in, d_out) in shapes.items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            found[f"{stem}.lora_A.weight"] = rng.standard_normal((rank, d_in), dtype=np.float32) * decay / d_in**0.5
            found[f"{stem}.lora_B.weight"] = rng.standard_normal((d_out, rank), dtype=np.float32) * np.float32(0.01)
    return found


def config(number: int, rank: int, modules: list[str]) -> str:
    peft = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": modules}
    return json.dumps({**peft, "base_model_name_or_path": f"base-{number % 5}", "revision": str(number)})


def toys(root: Path, count: int) -> Path:
    """Make folders of toy adapters, each with its own config."""
    shapes = dict.fromkeys((f"attention.{name}" for name in MODULES), (WIDTH, WIDTH))
    weights = root / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    for seed in range(min(count, DISTINCT)):
        if not (weights / f"{seed}").exists():
            save_file(tensors(seed, shapes, LAYERS, RANK), weights / f"{seed}")
    home = root / f"toys-{count}"
    for number in range(count):
        folder = home / f"{number % 100:02d}" / f"{number}"
        if not folder.exists():
            folder.mkdir(parents=True)
            os.link(weights / f"{number % DISTINCT}", folder / "adapter_model.safetensors")
            (folder / "adapter_config.json").write_text(config(number, RANK, list(MODULES)))
    return home


def large(root: Path, count: int) -> Path:
    """Make adapters of 160 MB, four of them different."""
    home = root / "large"
    for number in range(count):
        folder = home / f"{number}"
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        first = home / f"{number % 4}" / "adapter_model.safetensors"
        if number < 4:
            save_file(tensors(number, LLAMA, 32, 16), first)
        else:
            os.link(first, folder / first.name)
        (folder / "adapter_config.json").write_text(config(number, 16, list(LLAMA)))
    return home


def timed(command: list[str], **options: Any) -> tuple[float, float, str]:
    """Wall seconds and CPU seconds of a process with its children, and its stdout."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{shlex.join(command)[:200]}\n{done.stderr[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, done.stdout


def ours(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "gradience", *map(str, arguments)]


def audit(home: Path, out: Path, *more: str) -> tuple[float, float, dict[str, Any]]:
    wall, cpu, text = timed(ours("fleet", "audit", home, "--out", out, "--workers", "2", "--json", *more))
    return wall, cpu, json.loads(text)


def against_peer(root: Path, options: argparse.Namespace) -> None:
    home, few = toys(root, options.toys), toys(root, options.peer_toys)
    wall, cpu, report = audit(home, root / "fleet-peer")
    n = report["found"]
    one_wall, one_cpu, _ = audit(next(path for path in home.rglob("0") if path.name == "0"), root / "fleet-one")
    print(f"ours, {n} toys, 2 workers: {wall:.1f} s wall, {n / wall:.1f} a second, {cpu:.1f} s CPU in all")
    print(f"  beyond the start ({one_wall:.1f} s wall, {one_cpu:.1f} s CPU with one adapter):")
    print(f"  {1000 * (cpu - 2 * one_cpu) / n:.1f} ms CPU an adapter at least, {1000 * cpu / n:.1f} at most")
    if options.peer:
        listed = root / "list.txt"
        listed.write_text("".join(f"{path.parent}\n" for path in few.rglob("adapter_config.json")))
        command = shlex.split(options.peer.format(list=listed, root=few, out=root / "peer-out"))
        peer, peer_cpu, _ = timed(command)
        rate, theirs = n / wall, options.peer_toys / peer
        print(f"peer, {options.peer_toys} toys: {peer:.1f} s wall, {theirs:.2f} a second, {peer_cpu:.1f} s CPU")
        print(f"  ours / peer: {rate / theirs:.1f}x by wall, {(peer_cpu / options.peer_toys) / (cpu / n):.1f}x by CPU")


def peak(command: list[str]) -> tuple[float, float]:
    """Largest resident megabytes of a process, and of any of its children, by sampling."""
    process, parent, child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), 0.0, 0.0
    while process.poll() is None:
        parent = max(parent, resident(process.pid))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        with suppress(OSError):
            child = max([child, *(resident(int(pid)) for pid in children.read_text().split())])
        time.sleep(0.05)
    return parent, child


def resident(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmHWM")), 0.0)


def memory(root: Path, options: argparse.Namespace) -> None:
    for count in (100, options.toys):
        out = root / f"fleet-memory-{count}"
        parent, child = peak(ours("fleet", "audit", toys(root, count), "--out", out, "--workers", "2"))
        print(f"{count} toys: parent {parent:.0f} MB, largest worker {child:.0f} MB")


def second(root: Path, options: argparse.Namespace) -> None:
    few, home, out = toys(root, 100), toys(root, options.toys), root / "fleet-second"
    first, first_cpu, report = audit(home, out)
    audit(few, root / "fleet-few")
    again = min((audit(home, out)[:2] for _ in range(3)), key=lambda pair: pair[1])
    little = min(audit(few, root / "fleet-few")[1] for _ in range(3))
    n = report["found"]
    print(
        f"{n} adapters: first {first:.1f} s wall, {first_cpu:.1f} s CPU; second {again[0]:.2f} s, {again[1]:.2f} s CPU"
    )
    print(f"  whole processes: {first / again[0]:.0f}x by wall, {first_cpu / again[1]:.0f}x by CPU")
    each = (again[1] - little) / (n - 100)
    print(f"  CPU of each further adapter: {1000 * first_cpu / n:.2f} ms, then {1000 * each:.3f} ms")


def query(root: Path, options: argparse.Namespace) -> None:
    out = root / "fleet-query"
    audit(toys(root, options.toys), out)
    grown(out, options.query_rows)
    sql = "select module_type, r, count(*), avg(stable_rank) from modules group by all"
    walls = sorted(timed(ours("fleet", "query", out, sql, "--json"))[0] for _ in range(7))
    cpu = min(timed(ours("fleet", "query", out, sql, "--json"))[1] for _ in range(3))
    print(f"group-by over {options.query_rows} module rows: {walls[0]:.2f} to {walls[-1]:.2f} s wall, {cpu:.2f} s CPU")


def grown(fleet: Path, rows: int) -> None:
    """Repeat the parts of a fleet under other paths until it has `rows` rows of modules."""
    import pyarrow as pa
    from pyarrow import parquet

    manifest = json.loads((fleet / "fleet.json").read_text())
    parts = list(manifest["parts"])
    have = sum(parquet.read_metadata(fleet / "modules" / f"part-{n:06d}.parquet").num_rows for n in parts)
    turn = 0
    while have < rows:
        turn += 1
        for number in parts:
            for name in ("adapters", "modules", "findings"):
                table = parquet.read_table(fleet / name / f"part-{number:06d}.parquet", partitioning=None)
                paths = pa.array([f"{path}-{turn}" for path in table["path"].to_pylist()])
                table = table.set_column(0, table.schema.field(0), paths)
                parquet.write_table(table, fleet / name / f"part-{manifest['next']:06d}.parquet", compression="zstd")
                have += table.num_rows if name == "modules" else 0
            manifest["parts"].append(manifest["next"])
            manifest["next"] += 1
    (fleet / "fleet.json").write_text(json.dumps(manifest))


def similar(_: Path, options: argparse.Namespace) -> None:
    """How many near duplicates the sketch's bands miss, over pairs of random toy adapters with a set cosine."""
    from gradience.spectral.grams import Sketch
    from gradience.verbs.fleet.show import candidate_pairs

    shapes = dict.fromkeys((f"attention.{name}" for name in MODULES), (WIDTH, WIDTH))
    for cosine in (0.999, 0.99, 0.97, 0.95):
        missed, errors = 0, []
        for seed in range(options.pairs):
            one = tensors(seed, shapes, 2, RANK)
            units = np.array([numbers(Sketch(), one), numbers(Sketch(), disturbed(one, cosine, seed))])
            units /= np.linalg.norm(units, axis=1)[:, None]
            missed += (0, 1) not in candidate_pairs(units)
            errors.append(float(units[0] @ units[1]) - cosine)
        print(f"cosine {cosine}: {missed} of {options.pairs} pairs missed; estimate off by {np.std(errors):.4f} (sd)")


def disturbed(one: dict[str, Any], cosine: float, seed: int) -> dict[str, Any]:
    """Factors whose product has about the given cosine with the first one's, made by noise in B of suitable size."""
    rng = np.random.default_rng(10_000 + seed)
    found = dict(one)
    size = (1 / cosine**2 - 1) ** 0.5
    for name, value in one.items():
        if "lora_B" in name:
            noise = rng.standard_normal(value.shape).astype(np.float32)
            found[name] = value + size * noise * (np.linalg.norm(value) / np.linalg.norm(noise)).astype(np.float32)
    return found


def numbers(sketch: Any, held: dict[str, Any]) -> list[float]:
    for name in sorted({key.rpartition(".lora_")[0] for key in held}):
        sketch.add(name, held[f"{name}.lora_B.weight"], held[f"{name}.lora_A.weight"], 2.0)
    return list(sketch.numbers())


def same_rows(one: Path, two: Path) -> bool:
    import gradience

    left, right = gradience.fleet.open(one), gradience.fleet.open(two)
    return all(getattr(left, name).equals(getattr(right, name)) for name in ("adapters", "modules", "findings"))


SMALL_BATCHES = """
import sys
from gradience.verbs.fleet.records import audit
audit.BATCH = 8
if __name__ == "__main__":
    audit.audit_fleet(sys.argv[1], out=sys.argv[2], workers=2)
"""


def kills(root: Path, options: argparse.Namespace) -> None:
    """Kill the parent or a worker at random: after zero to two further parts of eight adapters, and up to 0.3 s."""
    home, whole, script = toys(root, options.kill_toys), root / "fleet-whole", root / "small_batches.py"
    script.write_text(SMALL_BATCHES)
    audit(home, whole)
    rng = random.Random(15)  # noqa: S311  # moments to kill at
    for who in ("parent", "worker"):
        out, done, at, ended, equal = root / f"fleet-{who}", 0, [], 0, True
        shutil.rmtree(out, ignore_errors=True)
        while done < options.kills:
            job = subprocess.Popen([sys.executable, str(script), str(home), str(out)], stderr=subprocess.DEVNULL)
            while done < options.kills and further(job, out, rng.randrange(3)):
                time.sleep(rng.uniform(0.0, 0.3))
                at.append(written(out))
                done += kill(job, who, rng)
            if job.wait() == 0:
                ended, equal = ended + 1, equal and not missing(whole, out)
                shutil.rmtree(out)
        report = audit(home, out)[2]
        equal = equal and same_rows(whole, out)
        print(f"{who} killed {done} times, with {min(at)} to {max(at)} parts there, {ended} jobs came to their end:")
        print(f"  {report['found']} adapters, {report['crashed']} crashed; equal to a job in peace: {equal}")


def written(fleet: Path) -> int:
    return len(list((fleet / "adapters").glob("*.parquet")))


def further(job: subprocess.Popen[bytes], fleet: Path, parts: int) -> bool:
    """Wait until `parts` further parts exist; False if the job ends before."""
    before = written(fleet)
    while job.poll() is None and written(fleet) < before + parts:
        time.sleep(0.01)
    return job.poll() is None


def missing(whole: Path, fleet: Path) -> set[str]:
    """Paths of one fleet that another lacks or has twice. The row of a worker that died twice counts as present."""
    import gradience

    ours = gradience.fleet.open(fleet).adapters["path"].to_pylist()
    if len(set(ours)) < len(ours):
        return {"twice"}
    return set(gradience.fleet.open(whole).adapters["path"].to_pylist()) ^ set(ours)


def kill(job: subprocess.Popen[bytes], who: str, rng: random.Random) -> bool:
    if who == "parent":
        job.kill()
        job.wait()
        return True
    with suppress(OSError):
        pids = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        if pids:
            os.kill(int(rng.choice(pids)), signal.SIGKILL)
            return True
    return False


def large_ones(root: Path, options: argparse.Namespace) -> None:
    home = large(root, options.large)
    alone = """
import os, sys, time
from gradience.device import prepare_jax
prepare_jax("cpu", serial_kernels=True)
from gradience.spectral import use_threads
use_threads(1)
from gradience.verbs.audit.run import audit_adapter
audit_adapter(sys.argv[1])
start = time.process_time(), time.perf_counter()
for path in sys.argv[2:]: audit_adapter(path)
print(time.process_time() - start[0], time.perf_counter() - start[1])
"""
    folders = [str(home / f"{number}") for number in range(options.large)]
    cpu, wall = map(float, timed([sys.executable, "-c", alone, folders[0], *folders])[2].split())
    fleet_wall, fleet_cpu, report = audit(home, root / "fleet-large")
    print(f"{options.large} of 160 MB, one warm process on one thread: {wall:.1f} s wall, {cpu:.1f} s CPU")
    print(f"fleet, 2 workers: {report['seconds']:.1f} s ({fleet_wall:.1f} whole), {fleet_cpu:.1f} s CPU")
    print(
        f"  {wall / 2 / report['seconds']:.2f} of two warm processes by wall, {cpu / fleet_cpu:.2f} by CPU (with start)"
    )


def many_runs(root: Path, options: argparse.Namespace) -> None:
    home = root / f"runs-{options.runs}"
    for number in range(options.runs):
        folder = home / f"{number % 50:02d}" / f"{number}"
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        (folder / "run.jsonl").write_text(run_log(number))
    cache = {**os.environ, "XDG_CACHE_HOME": str(root / "cache")}
    shutil.rmtree(root / "cache", ignore_errors=True)
    first, cpu, _ = timed(ours("runs", home, "--json"), env=cache)
    again = [timed(ours("runs", home, "--json"), env=cache)[:2] for _ in range(5)]
    walls, cpus = zip(*again, strict=True)
    then = f"{min(walls):.2f} to {max(walls):.2f} s ({min(cpus):.2f} s CPU)"
    print(f"runs, {options.runs} runs of 300 rows: first {first:.1f} s ({cpu:.1f} s CPU), then {then}")


def run_log(number: int) -> str:
    rng = np.random.default_rng(number)
    head = {"schema": "gradience.vnext.telemetry/v1", "run_id": f"run-{number}"}
    setup = {"model_name": f"model-{number % 7}", "optimizer": {"lr": 1e-4}, "lora": {"r": 8, "alpha": 16}}
    lines: list[dict[str, Any]] = [{**head, "ts": 0.0, "event": "run_start", "step": None, "config": setup}]
    losses = 2.0 * np.exp(-np.arange(300) / 100) + 0.05 * rng.standard_normal(300) + 0.5
    for step, loss in enumerate(losses.tolist(), 1):
        lines.append(
            {**head, "ts": float(step), "event": "train_step", "step": step, "loss": round(loss, 4), "lr": 1e-4}
        )
        if step % 50 == 0:
            metrics = {"loss": round(loss + 0.1, 4), "accuracy": round(1 / loss / 2, 4)}
            lines.append(
                {**head, "ts": float(step), "event": "eval", "step": step, "split": "eval", "metrics": metrics}
            )
    lines.append({**head, "ts": 301.0, "event": "run_end", "step": 300, "status": "ok"})
    return "".join(json.dumps(line) + "\n" for line in lines)


PARTS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "peer": against_peer,
    "memory": memory,
    "second": second,
    "query": query,
    "similar": similar,
    "kills": kills,
    "large": large_ones,
    "runs": many_runs,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("toys", 1000), ("peer-toys", 100), ("large", 20), ("kills", 25), ("kill-toys", 400)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("runs", 2000), ("query-rows", 240_000), ("pairs", 200)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--peer", help="command of a peer")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--keep", type=Path, help="folder for what is made, kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = options.keep or Path(scratch)
        for name, part in PARTS.items():
            if not options.only or name in options.only:
                print(f"== {name}", flush=True)
                part(root, options)


if __name__ == "__main__":
    main()
