"""The smallest inputs that are whole, and bytes that only a hostile file holds."""

from __future__ import annotations

import json
import sqlite3
import struct
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "CONFIG",
    "SCHEMA",
    "STEM",
    "adapter",
    "base",
    "container",
    "database",
    "factors",
    "lay_out",
    "log_line",
    "run_log",
    "safetensors",
    "trainer_state",
]

STEM = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "b"}
SCHEMA = "gradience.vnext.telemetry/v1"


def container(header: bytes, data: bytes = b"") -> bytes:
    """Return a safetensors file of that header, sound or not."""
    return struct.pack("<Q", len(header)) + header + data


def safetensors(tensors: dict[str, Any], **foreign: tuple[str, list[int], bytes]) -> bytes:
    """Return a safetensors file of arrays, and of tensors given as (dtype, shape, bytes) that no array can be."""
    names = {"float32": "F32", "float64": "F64", "float16": "F16"}
    parts = [(name, names[str(a.dtype)], list(a.shape), a.tobytes()) for name, a in tensors.items()]
    parts += [(name, *rest) for name, rest in foreign.items()]
    header, data = {}, b""
    for name, dtype, shape, held in parts:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(held)]}
        data += held
    return container(json.dumps(header).encode(), data)


def factors(shape=(20, 12), r=4, *, stem=STEM, scale=1.0, seed=0, dtype=np.float32) -> dict[str, Any]:
    """Return a module's factors, their entries normal with that deviation."""
    rng = np.random.default_rng(seed)
    with np.errstate(over="ignore"):
        a = (rng.standard_normal((r, shape[1])) * scale).astype(dtype)
        b = (rng.standard_normal((shape[0], r)) * scale).astype(dtype)
    return {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}


def adapter(folder: Path, tensors=None, config=None, **foreign) -> Path:
    """Write an adapter as PEFT does, and return its folder; a config given as text is written as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(
        safetensors(factors() if tensors is None else tensors, **foreign)
    )
    text = config if isinstance(config, str) else json.dumps(CONFIG | (config or {}))
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return folder


def base(folder: Path, tensors=None) -> Path:
    """Write a base model of one projection, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if tensors is None:
        rng = np.random.default_rng(7)
        tensors = {"model.layers.0.self_attn.q_proj.weight": rng.standard_normal((20, 12)).astype(np.float32)}
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 12, "vocab_size": 8}
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    (folder / "config.json").write_text(json.dumps(config | sizes))
    return folder


def log_line(event: str, step: int | None = None, **fields: Any) -> str:
    """Return one line of a run.jsonl."""
    return json.dumps({"schema": SCHEMA, "ts": 1.0, "run_id": "r", "event": event, "step": step, **fields})


def run_log(path: Path, *lines: str, config=None, steps: int = 3) -> Path:
    """Write a run that ended well, with further lines in it, and return the log."""
    start = log_line("run_start", config=config or {"lora": {"r": 4, "alpha": 8.0}})
    rows = [log_line("train_step", step, loss=1.0 / step, lr=1e-4) for step in range(1, steps + 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([start, *rows, *lines, log_line("run_end", status="ok")]) + "\n"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def trainer_state(path: Path, history=None, **top: Any) -> Path:
    """Write a trainer_state.json, and return it."""
    rows = [{"step": s, "loss": 1.0 / s, "learning_rate": 1e-4, "epoch": s / 10} for s in range(1, 4)]
    state = {"global_step": 3, "max_steps": 3, "log_history": rows if history is None else history, **top}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(state), encoding="utf-8")
    return path


def database(path: Path, statements: tuple[str, ...] | list[str] = (), rows: int = 3) -> Path:
    """Write trackio's database, on which those statements were executed, and return it."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp TEXT, run_name TEXT, step INTEGER, metrics)"
        )
        row = "INSERT INTO metrics VALUES (NULL, '2025-01-01T00:00:00', 'r', ?, '{\"train/loss\": 1.0}')"
        db.executemany(row, [(step,) for step in range(rows)])
        for statement in statements:
            db.execute(statement)
    return path


@cache
def _place() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        adapter(at / "a")
        adapter(at / "b", factors(seed=1))
        base(at / "base")
        run_log(at / "run.jsonl")
        trainer_state(at / "state" / "trainer_state.json")
        return {str(path.relative_to(at)): path.read_bytes() for path in at.rglob("*") if path.is_file()}


def lay_out(at: Path) -> Path:
    """Write two adapters `a` and `b`, a `base`, a `run.jsonl` and a trainer's `state`, and return their folder."""
    for name, data in _place().items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes(data)
    return at
