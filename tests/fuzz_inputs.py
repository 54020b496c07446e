"""Inputs for `fuzz.py`: valid seeds for every verb, and damages to them, all determined by a number."""

from __future__ import annotations

import io
import json
import os
import random
import sqlite3
import struct
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from hostile import further
from hostile.inputs import CONFIG, container, factors, log_line, safetensors
from hostile.secrets import SECRETS
from pyarrow import parquet

__all__ = ["DROPPABLE", "Input", "draw", "place"]

Random = random.Random
GOLDEN = Path(__file__).resolve().parent / "golden"
DROPPABLE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=,")
UNFIT: Final = (  # errors of a damage that cannot be applied after an earlier one
    *(ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, OverflowError),
    *(struct.error, sqlite3.Error),
)
KEEP_CONFIG: Final = {"resize", "convert", "merge", "bench"}  # an adapter's own config is copied, not shown


class Special(NamedTuple):
    """Something that is no regular file: pipe, zero, folder, dangling, loop, empty, sparse."""

    kind: str


class Input(NamedTuple):
    """A command line, its files, and the data by which its output is checked."""

    argv: tuple[str, ...]
    files: dict[str, bytes | Special]
    kind: str  # of the seed
    damages: int  # how many were drawn
    secrets: tuple[str, ...]
    secret_kind: str
    writes: tuple[str, ...]  # names under the case's folder that may appear or change

    @property
    def json(self) -> bool:
        """Whether stdout is one JSON document."""
        asked = "--json" in self.argv or ("--format", "sarif") in pairwise(self.argv)
        return asked and not {"--help", "-h", "--version"} & set(self.argv)

    @property
    def keeps_config(self) -> bool:
        """Whether the verb copies one of the user's files into its output."""
        return self.argv[0] in KEEP_CONFIG


class _Seed(NamedTuple):
    kind: str
    argv: tuple[str, ...]
    files: dict[str, bytes]
    weight: int


def draw(number: int, seed: int, dropped: list[int] | tuple[int, ...] = ()) -> Input:
    """Return the input of that number, without the damages dropped."""
    rng = Random(f"{seed}/{number}")  # no secret hangs on it
    chosen = rng.choices(_seeds(), _weights())[0]
    argv, files = list(chosen.argv), dict(chosen.files)
    plan = [rng.getrandbits(48) for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 4, 6]))]
    for index, key in enumerate(plan):
        if index not in dropped:
            with suppress(*UNFIT):
                _damage(Random(key), argv, files)  # the same
    planted: tuple[str, ...] = ()
    kind = ""
    secret = rng.choice(PLANTED) if rng.random() < 0.3 else None  # three in ten
    if secret is not None and _plant(rng, argv, files, secret):
        planted, kind = (secret.core,), f"{secret.kind}, {getattr(secret, 'shape', 'further')}"
    writes = ("out",)
    if "--append" in argv:
        writes = ("out", "in/run.jsonl", "in/.run.jsonl")
    argv = [word.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") for word in map(_spelt, argv)]
    return Input(tuple(argv), files, chosen.kind, len(plan), planted, kind, writes)


def _spelt(word: str) -> str:
    """Return a word in a form that a command line can hold: without NUL, and with lone surrogates as bytes."""
    return word.replace("\0", "").encode("utf-8", "replace").decode() if "\ud800" in word else word.replace("\0", "")


def place(given: Input, folder: Path) -> int:
    """Write the files below `folder/in`, and an empty `folder/out`; return their size in bytes."""
    (folder / "in").mkdir(parents=True, exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    for name, data in given.files.items():
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, Special):
            _make(path, data.kind)
        else:
            path.write_bytes(data)
    return sum(len(data) for data in given.files.values() if not isinstance(data, Special))


def _make(path: Path, kind: str) -> None:
    targets = {"zero": "/dev/zero", "dangling": "nowhere", "loop": path.name, "full": "/dev/full"}
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(60 * 1024**3)
    else:
        path.symlink_to(targets[kind])


# Seeds ---------------------------------------------------------------------------------------------------------------


def _log() -> bytes:
    lines = [
        log_line("run_start", config={"model_name": "org/m", "optimizer": {"lr": 1e-4}, "lora": {"r": 4, "alpha": 8.0}})
    ]
    lines += [log_line("train_step", s, loss=2.0 / s, lr=1e-4, grad_norm=1.0) for s in range(1, 9)]
    lines += [log_line("eval", s, split="test", metrics={"loss": 2.1 / s, "ppl": 3.0, "n": 10}) for s in (4, 8)]
    lines += [log_line("alert", 5, severity="warning", code="c", message="m", context={"a": 1})]
    lines += [log_line("metrics", 8, kind="lora_audit", metrics={"stable_rank": 1.5})]
    return ("\n".join([*lines, log_line("run_end", status="ok")]) + "\n").encode()


def _state() -> bytes:
    rows = [{"step": s, "loss": 1.0 / s, "learning_rate": 1e-4, "grad_norm": 1.0, "epoch": s / 9} for s in range(1, 9)]
    rows += [{"step": 8, "eval_loss": 0.5, "eval_runtime": 1.0, "epoch": 1.0}]
    state = {
        "global_step": 8,
        "max_steps": 8,
        "num_train_epochs": 1,
        "best_model_checkpoint": None,
        "log_history": rows,
    }
    return json.dumps(state, indent=2).encode()


def _weights_file(seed: int, shape: tuple[int, int] = (20, 12)) -> bytes:
    tensors: dict[str, Any] = {}
    for n in range(2):
        tensors |= factors(shape, 4, stem=f"base_model.model.model.layers.{n}.self_attn.q_proj", seed=seed + n)
    return safetensors(tensors)


def _adapter(folder: str, seed: int = 0) -> dict[str, bytes]:
    config = CONFIG | {"task_type": "CAUSAL_LM", "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
    return {f"{folder}/adapter_model.safetensors": _weights_file(seed), f"{folder}/adapter_config.json": _dump(config)}


def _base(folder: str) -> dict[str, bytes]:
    import numpy as np

    rng = np.random.default_rng(7)
    names = [f"model.layers.{n}.self_attn.q_proj.weight" for n in range(2)]
    tensors = {name: rng.standard_normal((20, 12)).astype(np.float32) for name in names}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 12, "vocab_size": 8}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    return {f"{folder}/model.safetensors": safetensors(tensors), f"{folder}/config.json": _dump(config)}


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def _yaml() -> bytes:
    return (
        b"model_name: org/m\ndataset_name: glue/sst2\nlr: 1e-4\noptimizer: adamw_torch\nlora:\n  r: 8\n  alpha: 16\n"
        b"  target_modules: [q_proj, v_proj]\ntraining: &t\n  max_steps: 100\n  batch_size: 4\nseed: 1\n"
    )


def _events() -> bytes:
    from hostile.test_foreign_logs import event, simple, tensor

    head = b"\x09" + struct.pack("<d", 1.7e9) + b"\x1a\x0dbrain.Event:2"
    events = [simple(step, tag, 1.0 / step) for step in (1, 2, 3) for tag in ("train/loss", "train/learning_rate")]
    events.append(event(3, "eval/loss", tensor([], content=struct.pack("<f", 0.5))))
    return _records([head, *events])


def _trackio() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.db"
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(
                "CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp TEXT, run_name TEXT, step INTEGER, metrics)"
            )
            db.execute("CREATE TABLE configs (id INTEGER PRIMARY KEY, run_name TEXT, config TEXT)")
            db.execute("INSERT INTO configs VALUES (NULL, 'r', ?)", (json.dumps({"learning_rate": 1e-4}),))
            for step in range(5):
                row = json.dumps({"train/loss": 1 / (step + 1)})
                db.execute("INSERT INTO metrics VALUES (NULL, '2025-01-01T00:00:00', 'r', ?, ?)", (step, row))
        return path.read_bytes()


def _torch() -> bytes:
    import io

    import torch

    file = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in factors().items()}, file)
    return file.getvalue()


def _torch_adapter() -> dict[str, bytes]:
    return {"a/adapter_model.bin": _torch(), "a/adapter_config.json": _dump(CONFIG)}


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(_dump(row) + b"\n" for row in rows)


def _npz() -> bytes:
    arrays = {"layer.lora_a": np.ones((8, 2), np.float32), "layer.lora_b": np.ones((2, 8), np.float32)}
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def _columnar(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    table = pa.Table.from_pylist(rows)
    arrow, columns = pa.BufferOutputStream(), pa.BufferOutputStream()
    with pa.ipc.new_stream(arrow, table.schema) as writer:
        writer.write_table(table)
    parquet.write_table(table, columns)
    return {"d.arrow": arrow.getvalue().to_pybytes(), "d.parquet": columns.getvalue().to_pybytes()}


def _add_strangers(add: Callable[..., None]) -> None:
    """Add data sets, pickled tensors, arrays, evaluators, stores, and logs of verl, MLflow and W&B."""
    out = "--out ../out/r.jsonl"
    add("torch", 6, _torch_adapter(), "audit a --json", "convert a --to mlx --drop --out ../out/c --json")
    add("arrays", 4, {"x.npz": _npz()}, "audit x.npz", "audit x.npz --json")
    columns = [{"input_ids": [1, 2, 3, n], "labels": [-100, 2, 3, n]} for n in range(1, 7)]
    ids = {
        "d.jsonl": _jsonl(columns),
        "d.json": _dump(columns),
        "d.csv": b"input_ids,labels\n" + b'"[1, 2, 3]","[1, 2, 3]"\n' * 6,
        "d.tsv": b"input_ids\tlabels\n" + b"[1, 2, 3]\t[1, 2, 3]\n" * 6,
    }
    for name, data in ids.items():
        add("data", 6, {name: data}, f"check --data {name} --json", f"check --data {name} --set samples=3")
        add("held-out data", 2, {name: data}, f"check --data {name} --eval-data {name} --json")
    for name, data in _columnar(columns).items():
        add("columnar data", 3, {name: data}, f"check --data {name} --json")
    saved = {
        "d/state.json": _dump({"_data_files": [{"filename": "a.arrow"}]}),
        "d/a.arrow": _columnar(columns)["d.arrow"],
    }
    add("saved data", 2, saved, "check --data d --json")
    printed = {"s.txt": _dump({"scores": [0.5, 1, 0, 0.25] * 4})} | _adapter("a")
    scored = "bench a --metric env~A={adapter}~cat~s.txt --candidates svd:2 --tolerance 0.5 --timeout 5"
    add("evaluator", 3, printed, f"{scored} --out ../out/b --json")
    step = "step:{n} - actor/loss:{x:.3f} - critic/score/mean:{x:.3f} - response_length/mean:90.5\n"
    verl = "".join(step.format(n=n, x=1 / n) for n in range(1, 9)).encode()
    add("verl", 4, {"verl.log": verl}, f"import verl.log {out} --json", "monitor verl.log --json")
    mlflow = {
        f"run/metrics/{name}": b"".join(b"%d %f %d\n" % (n, 1 / n, n) for n in range(1, 9)) for name in ("loss", "lr")
    }
    mlflow["run/meta.yaml"] = b"run_id: a\nstatus: 3\nstart_time: 1\nend_time: 2\n"
    add("mlflow", 4, mlflow, f"import run {out} --json", "monitor run --json")
    history = {"run/files/wandb-summary.json": _dump({"loss": 0.5}), "run/files/config.yaml": b"lr: {value: 0.1}\n"}
    add("wandb", 3, history | {"run/run-a.wandb": b"W&B\x00" * 9}, f"import run {out} --json", "diagnose run --json")
    _add_stores(add)
    _add_tokenizers(add, out)


def _add_stores(add: Callable[..., None]) -> None:
    """Add fleets of adapters and stores of runs: made from a stranger's files, and read from a stranger's store."""
    two = _adapter("a") | _adapter("b", 5)
    add("adapters of a fleet", 2, two, "fleet audit a b --out ../out/f --workers 1 --json")
    fleet = _store("fleet")
    shown = ("fleet show f --json", "fleet show f -v", "fleet query f --named verdicts --csv")
    asked = ("fleet query f select~*~from~modules --json", "fleet query f select~path,name,r~from~modules --csv")
    add("fleet", 3, fleet, *shown, *asked, "fleet query f select~1 --parquet ../out/q.parquet")
    kept = {f"../out/{name}": data for name, data in _store("runs").items()}
    log = {"run.jsonl": _log()}
    listed = ("runs . --out ../out/f --json", "runs . --out ../out/f --csv", "runs . --out ../out/f")
    add("runs", 2, log, *listed, "runs . --out ../out/f --html ../out/p.html")
    queried = ("runs query . select~*~from~rows --out ../out/f --csv", "runs best . --out ../out/f --metric test/loss")
    add("store of runs", 2, log | kept, *listed, *queried)


def _store(kind: str) -> dict[str, bytes]:
    """The files of a store with one part, whose rows have a plain value in every column."""
    from gradience.collect.runs.collect import RUNS
    from gradience.tables import arrow_schema
    from gradience.tables.query import FLEET

    tables = FLEET if kind == "fleet" else RUNS
    files = {"f/fleet.json": _dump({"schema": tables.schema, "parts": [1], "next": 2})}
    plain = {"string": "a", "double": 0.5, "int64": 1, "bool": True}
    for name, row in tables.rows.items():
        schema = arrow_schema(row)
        rows = [{f.name: plain.get(str(f.type), [0.5, 0.25]) for f in schema} for _ in range(3)]
        out = pa.BufferOutputStream()
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), out)
        files[f"f/{name}/part-000001.parquet"] = out.getvalue().to_pybytes()
    return files


def _add_tokenizers(add: Callable[..., None], out: str) -> None:
    """Add a stranger's tokenizer and chat template, asked by `check --data` for conversations and for texts."""
    from data.made import QWEN

    controls = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    words = {
        word: n
        for n, word in enumerate(
            [*controls, "[UNK]", *["what", "is", "two", "and", "two", "four", "user", "assistant"]]
        )
    }
    added = [
        {"id": n, "content": word, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for n, word in enumerate(controls)
    ]
    model = {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None}
    tokenizer |= {"pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None, "model": model}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    folder = {"t/tokenizer.json": _dump(tokenizer), "t/tokenizer_config.json": _dump(config | {"chat_template": QWEN})}
    turns = [{"role": "user", "content": "what is two and two"}, {"role": "assistant", "content": "four"}]
    chats = folder | {"d.jsonl": _jsonl([{"messages": turns}] * 6)}
    add("tokenizer", 4, chats, "check --data d.jsonl --tokenizer t --json", "check --data d.jsonl --tokenizer t -v")
    given = {"d.jsonl": chats["d.jsonl"], "c.jinja": QWEN.encode()} | folder
    add("template", 8, given, "check --data d.jsonl --tokenizer t --set template=c.jinja --json")
    pairs = folder | {"d.jsonl": _jsonl([{"prompt": "what is", "chosen": "four", "rejected": "two"}] * 6)}
    add("preferences", 2, pairs, "check --data d.jsonl --tokenizer t --json")
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    tooled = folder | {"d.jsonl": _jsonl([{"messages": turns, "tools": tools}] * 3)}
    add("tools", 2, tooled, "check --data d.jsonl --tokenizer t --json")


@cache
def _seeds() -> tuple[_Seed, ...]:
    seeds: list[_Seed] = []

    def add(kind: str, weight: int, files: dict[str, bytes], *lines: str) -> None:
        words = [tuple(word.replace("~", " ") for word in line.split()) for line in lines]
        seeds.extend(_Seed(kind, argv, files, weight) for argv in words)

    log = {"run.jsonl": _log()}
    state = {"run/trainer_state.json": _state(), "run/adapter_config.json": _dump(CONFIG)}
    two = _adapter("a") | _adapter("b", 5)
    add(
        "log",
        16,
        log,
        "monitor run.jsonl",
        "monitor run.jsonl --json",
        "validate run.jsonl --json",
        "validate run.jsonl",
    )
    add("log", 8, log, "monitor run.jsonl -v --format github", "monitor run.jsonl --format sarif", "diagnose run.jsonl")
    add("log", 6, log, "check run.jsonl --json", "import run.jsonl --out ../out/r.jsonl", "diagnose run.jsonl --json")
    add("log", 3, log, "report run.jsonl", "monitor run.jsonl run.jsonl --json", "report run.jsonl --out ../out/p.md")
    add("log", 1, log, "report run.jsonl --out ../out/page.html")
    for path in sorted(GOLDEN.glob("cases/*/*.jsonl")):
        add("golden log", 1, {"run.jsonl": path.read_bytes()}, "monitor run.jsonl", "validate run.jsonl --json")
    config = {"c.yaml": _yaml()}
    add("yaml", 14, config, "check c.yaml", "check c.yaml --json -v", "check c.yaml --format sarif")
    add(
        "json config",
        14,
        {"c.json": _dump({"lr": 1e-4, "r": 8, "lora_alpha": 16, "max_steps": 5})},
        "check c.json --json",
    )
    for path in sorted(p for p in GOLDEN.glob("configs/*/*") if p.suffix in {".json", ".yaml"}):
        add(
            "golden config",
            1,
            {f"c{path.suffix}": path.read_bytes()},
            f"check c{path.suffix} -v",
            f"check c{path.suffix} --json",
        )
    add("peft config", 10, _adapter("a"), "check --peft-dir a --json", "check --peft-dir a --serve vllm,mlx -v")
    add("base", 10, _adapter("a") | _base("base"), "check --peft-dir a --base base --json")
    settings = {"pyproject.toml": b"[tool.gradience]\nselect = ['LR']\nfail-on = 'error'\n", **log}
    add("toml", 8, settings, "monitor run.jsonl", "monitor run.jsonl --json", "check run.jsonl")
    out = "--out ../out/r.jsonl"
    add(
        "trainer state",
        12,
        state,
        f"import run {out} --json",
        f"import run {out}",
        "monitor run --json",
        "diagnose run --json",
    )
    rows = [{"step": s, "train/loss": 1 / s, "eval/loss": 1.1 / s, "lr": 1e-4} for s in range(1, 9)]
    add("jsonl", 10, {"t.jsonl": _jsonl(rows)}, f"import t.jsonl {out} --json", "monitor t.jsonl")
    add("json table", 6, {"t.json": _dump(rows)}, f"import t.json {out} --json")
    llama = [
        {"current_steps": s, "total_steps": 9, "loss": 1 / s, "lr": 1e-4, "epoch": 0.1, "percentage": 1.0}
        for s in (1, 2)
    ]
    add("llama-factory", 6, {"trainer_log.jsonl": _jsonl(llama)}, f"import trainer_log.jsonl {out} --json")
    swift = [{"loss": 1 / s, "learning_rate": 1e-4, "global_step/max_steps": f"{s}/9", "epoch": 0.1} for s in (1, 2)]
    add("ms-swift", 6, {"logging.jsonl": _jsonl(swift)}, f"import logging.jsonl {out} --json")
    table = b"step,train/loss,eval/loss,lr\n" + b"".join(b"%d,%f,%f,1e-4\n" % (s, 1 / s, 1.1 / s) for s in range(1, 9))
    add(
        "csv",
        12,
        {"t.csv": table},
        f"import t.csv {out} --json",
        f"import t.csv {out} --map loss=train/loss",
        "monitor t.csv",
    )
    add("event file", 12, {"events.out.tfevents.1.h": _events()}, f"import events.out.tfevents.1.h {out} --json")
    add("sqlite", 12, {"t.db": _trackio()}, f"import t.db {out} --json", "monitor t.db")
    add(
        "adapter",
        12,
        _adapter("a"),
        "audit a --json",
        "audit a -v --heatmap",
        "audit a --suggest-per-layer --json",
    )
    add("adapter", 4, _adapter("a"), "audit a --format sarif", "diagnose a --json", "report a", "diagnose a")
    add(
        "adapter",
        4,
        _adapter("a"),
        "convert a --to mlx --out ../out/c --json",
        "convert a --rank 2 --out ../out/c --json",
    )
    add(
        "adapter",
        6,
        _adapter("a"),
        "resize a --rank 2 --out ../out/r --json",
        "resize a --energy 0.9 --out ../out/r --json",
    )
    add("adapter and log", 3, _adapter("a") | log, "audit a --append run.jsonl", "diagnose . --json", "report .")
    add(
        "two adapters",
        5,
        two,
        "compare a b --json",
        "compare a b --heatmap -v",
        "merge-check a b --json",
        "merge-check a b -v",
    )
    add(
        "two adapters",
        3,
        two,
        "merge a b --out ../out/m --json",
        "merge a b --method svd --rank 2 --out ../out/m --json",
    )
    add(
        "two adapters", 2, two, "merge a b --method ties --out ../out/m --json", "merge a b --method cat --out ../out/m"
    )
    based = _adapter("a") | _base("base")
    add("adapter and base", 4, based, "verify-merge --base base --adapter a --merged base --json")
    add(
        "adapter and base",
        2,
        based,
        "audit a --base base --no-cache --json",
        "audit a --base base --intruders --no-cache",
    )
    index = {"weight_map": {f"model.layers.{n}.self_attn.q_proj.weight": "model.safetensors" for n in range(2)}}
    add(
        "index", 4, based | {"base/model.safetensors.index.json": _dump(index)}, "check --peft-dir a --base base --json"
    )
    add(
        "nothing",
        3,
        {},
        "rules",
        "rules --json",
        "rules LR001",
        "schema",
        "schema audit",
        "monitor nowhere",
        "audit nowhere",
    )
    _add_strangers(add)
    return tuple(seeds)


@cache
def _weights() -> tuple[int, ...]:
    return tuple(seed.weight for seed in _seeds())


# Damages -------------------------------------------------------------------------------------------------------------

TEXTS = [
    "", " ", "a" * 300, "a" * 5000, "\x1b[31m", "\u202e", "\x9b31m", "\u2028", "\x7f", "\x00", "é", "模型",
    "\U0001f600", "NaN", "-Infinity",
    "1e999", "1e-999", "0x1F", "1_000", "../../x", "/etc/passwd", "~", "a/b", "C:\\x", "<script>",
    "]]>", "|", "`", "::error::x", "%0A", "%s", "{}", "${x}", "q_proj", "lora_A", "(a+)+$", "(", "[", "a{1,999999}",
    ".".join("a" * 2000), "-", "--json", "null", "true", "2025-01-01", "12:30:45", "1:1:1",
    "\ud800", "1" * 400, "9" * 5000, "model.layers.0.self_attn.q_proj", "base_model.model.", "=1+1", "loss", "step",
]  # fmt: skip
NUMBERS: list[Any] = [
    0, -1, 1, 2, 3, 255, 256, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**300,
    0.0, -0.0, 0.5, 1e-300, 1e300, 1.7976931348623157e308, 5e-324, 1e16, 1e160, -1e160, 1e38, 3.5e38,
    float("nan"), float("inf"), float("-inf"),
]  # fmt: skip


def _value(rng: Random) -> Any:
    kind = rng.randrange(10)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 6:
        return rng.choice(TEXTS)
    if kind < 7:
        return rng.choice([None, True, False, [], {}, [[]], [None], {"": None}])
    if kind < 8:
        return [rng.choice(NUMBERS + TEXTS) for _ in range(rng.choice([1, 2, 3, 30]))]
    if kind < 9:
        return {rng.choice(TEXTS): rng.choice(NUMBERS + TEXTS) for _ in range(rng.choice([1, 2, 30]))}
    depth = rng.choice([5, 70, 300, 480])
    value: Any = rng.choice([1, float("nan"), "x"])
    for _ in range(depth):
        value = [value] if depth % 2 else {"a": value}
    return value


def _damage(rng: Random, argv: list[str], files: dict[str, bytes | Special]) -> None:
    """Change one thing, in place."""
    kind = rng.random()
    if kind < 0.08 or not files:  # shares of all damages
        _options(rng, argv)
        return
    name = rng.choice(sorted(files))
    data = files[name]
    if kind < 0.11:  # the same
        kinds = ["pipe", "zero", "folder", "dangling", "loop", "sparse", "full"]
        files[name] = Special(rng.choice(kinds))
        return
    if isinstance(data, Special):
        return
    if kind < 0.14:  # the same
        files.pop(name)
    elif kind < 0.16:  # the same
        files[name] = rng.choice(
            [b"", b"\0" * 100, b"{" * 5000, b"[" * 5000, b"\xff\xfe", data * 50, b"\xef\xbb\xbf" + data]
        )
    elif kind < 0.36:  # the same
        files[name] = _bytes(rng, data)
    else:
        files[name] = _by_kind(name)(rng, data)


def _by_kind(name: str) -> Callable[[Random, bytes], bytes]:
    suffix = Path(name).suffix
    kinds = {
        ".json": _json, ".jsonl": _lines, ".yaml": _text, ".toml": _text, ".csv": _cells, ".db": _sql,
        ".safetensors": _header, ".jinja": _template, ".log": _text, ".tsv": _cells,
    }  # fmt: skip
    return _event_records if "tfevents" in name else kinds.get(suffix, _bytes)


def _bytes(rng: Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(out)) if out else 0
        kind = rng.randrange(7)
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[at] = rng.randrange(256)
        elif kind == 2:
            del out[at : at + rng.choice([1, 4, 100])]
        elif kind == 3:
            out[at:at] = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
        elif kind == 4:
            out[at:at] = out[at : at + rng.choice([8, 64, 1000])] * rng.choice([1, 10])
        elif kind == 5:
            del out[at:]
        else:
            out[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**40, 2**63, 2**64 - 1]))
    return bytes(out)


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, item in items:
        found.append((value, key))
        _places(item, found)
    return found


def _changed(rng: Random, document: Any) -> Any:
    places = _places(document, [])
    if not places:
        return _value(rng)
    holder, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind < 3:
        holder[key] = _value(rng)
    elif kind == 3:
        del holder[key]
    elif kind == 4 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = holder.pop(key)
    elif isinstance(holder, dict):
        holder[rng.choice([*TEXTS, *holder])] = _value(rng)
    else:
        holder[key:key] = [_value(rng)] * rng.choice([1, 2, 200])
    return document


def _json(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.1:  # one in ten
        return _bytes(rng, data)
    changed = _changed(rng, json.loads(data))
    text = json.dumps(changed, indent=rng.choice([None, 2]), ensure_ascii=rng.random() < 0.5)  # half
    if rng.random() < 0.1 and text.startswith("{"):  # a key twice
        text = "{" + text[1:-1] + "," + text[1:]
    return text.encode("utf-8", "surrogatepass")


def _lines(rng: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    kind = rng.randrange(8)
    if kind < 5:
        lines[at] = _json(rng, lines[at] or b"{}").replace(b"\n", b" ")
    elif kind == 5:
        lines[at:at] = [lines[at]] * rng.choice([1, 2, 500])
    elif kind == 6:
        rng.shuffle(lines)
    else:
        del lines[at]
    return b"\n".join(lines)


SCALARS = [
    "0xffffffffffffffffffff", "0o777", "1:1:1", ".inf", "-.inf", ".nan", "~", "!!python/object:os.system x", "*t",
    "&a b", "!!binary aGk=", "!!set {a}", "2025-01-01", "[[[[[[", "{a: {b: {c: 1}}}", "'", '"', "|", ">", "? a", "- x",
    "<<: *t", "!!float nan", "!!int 0x" + "f" * 4000, "1e400", "'''x'''", "[1, 2", "2025-13-45",
    "\t", "#", "%TAG", "---", "...",
]  # fmt: skip


def _text(rng: Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "surrogateescape")
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    kind = rng.randrange(5)
    head, colon, _ = lines[at].partition(":")
    if kind == 0:
        lines[at] = head + colon + " " + rng.choice(SCALARS + TEXTS)
    elif kind == 1:
        lines[at:at] = [lines[at]]
    elif kind == 2:
        lines[at] = rng.choice(TEXTS + SCALARS) + lines[at]
    elif kind == 3:
        lines[at] = " " * rng.choice([1, 2, 7]) + lines[at]
    else:
        lines[at:at] = [f"{rng.choice(TEXTS)}{rng.choice([': ', ' = '])}{rng.choice(SCALARS + TEXTS)}"]
    return "\n".join(lines).encode("utf-8", "surrogateescape" if "\ud800" not in "".join(lines) else "replace")


TEMPLATES = [
    "{{ 1/0 }}", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}", "{{ messages.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__.os.popen('true').read() }}", "{% include 'x' %}", "{{ raise_exception('no') }}",
    "{{ messages | tojson(indent=10**9) }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ messages[9].content }}", "{{ 9**9**9 }}", "{% generation %}", "{% endgeneration %}", "{% if %}", "{{", "{#",
    "{% raw %}", "{{ '%1000000000d' % 1 }}", "{{ messages | map('upper') | join }}",
    "{{ strftime_now('%Y' * 99999) }}", "{{ tools[0].x.y }}", "{{ ('x' ~ '\u202e\x1b[31m') }}",
    "{% set messages = 1 %}", "{{ range(10**9) | list }}", "{{ messages.append(1) }}", "{% import 'os' as os %}",
    "{{ namespace(a=1).a.b }}", "{{ undefined + 1 }}", "{{ [1] | batch(0) | list }}", "\udcff",
]  # fmt: skip


def _template(rng: Random, data: bytes) -> bytes:
    """Put a hostile piece into a chat template, before, behind or within it, or in its place."""
    text, piece = data.decode("utf-8", "surrogateescape"), rng.choice(TEMPLATES)
    at = rng.choice([0, len(text), text.find("{{"), rng.randrange(len(text) + 1)])
    whole = piece if rng.random() < 0.2 else text[:at] + piece + text[at:]  # one in five
    return whole.encode("utf-8", "surrogateescape")


def _cells(rng: Random, data: bytes) -> bytes:
    rows = [line.split(b",") for line in data.split(b"\n")]
    row = rng.choice(rows)
    text = rng.choice([*TEXTS, *(str(n) for n in NUMBERS if abs(n) < 1e300 or n != n), '"', '""', ";", "\r", '"a\nb"'])  # noqa: PLR0124
    kind = rng.randrange(5)
    if kind < 2:
        row[rng.randrange(len(row))] = text.encode("utf-8", "surrogatepass")
    elif kind == 2:
        row.extend([b"1"] * rng.choice([1, 5, 3000]))
    elif kind == 3:
        rows.extend([list(row)] * rng.choice([1, 300]))
    else:
        rng.shuffle(rows)
    return b"\n".join(b",".join(row) for row in rows)


STATEMENTS = [
    "ALTER TABLE metrics RENAME TO m",
    "DROP TABLE configs",
    "UPDATE metrics SET metrics = zeroblob(5000000) WHERE step = 2",
    "UPDATE metrics SET metrics = '{\"train/loss\": ' || step || 'e308}'",
    "UPDATE metrics SET step = 9223372036854775807 WHERE step = 3",
    "UPDATE metrics SET step = 'x', timestamp = x'ff00ff'",
    "UPDATE metrics SET run_name = char(155) || char(8238) || 'r'",
    "UPDATE metrics SET run_name = x'ff', metrics = 'null'",
    "UPDATE configs SET config = '[' || config || ']'",
    "INSERT INTO metrics SELECT NULL, timestamp, run_name || id, step, metrics FROM metrics",
    "PRAGMA user_version = 2147483647",
    "CREATE INDEX i ON metrics (step)",
    "CREATE VIEW v AS SELECT * FROM metrics",
    "ALTER TABLE metrics ADD COLUMN run_id TEXT",
    "PRAGMA journal_mode = wal",
    "ALTER TABLE metrics RENAME TO m; CREATE VIEW metrics AS SELECT * FROM m",
    (
        "ALTER TABLE metrics RENAME TO m; CREATE VIEW metrics AS SELECT id, timestamp, run_name, step, "
        "zeroblob(900000000) AS metrics FROM m"
    ),
    (
        "ALTER TABLE metrics RENAME TO m; CREATE VIEW metrics AS WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL "
        "SELECT n + 1 FROM c) SELECT n AS id, '' AS timestamp, 'r' AS run_name, n AS step, '{}' AS metrics FROM c"
    ),
]


def _sql(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.4:  # four in ten
        return _bytes(rng, data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.db"
        path.write_bytes(data)
        with closing(sqlite3.connect(path)) as db:
            db.executescript(rng.choice(STATEMENTS))
            db.commit()
        return path.read_bytes()


DTYPES = ["F32", "F16", "BF16", "F64", "I8", "U8", "I64", "BOOL", "F8_E4M3", "F99", "", "f32", "F4", "C64", "U32"]


def _header(rng: Random, data: bytes) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    header, rest = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    name = rng.choice(sorted(header))
    entry = header[name]
    kind = rng.randrange(9)
    if kind == 0:
        entry["dtype"] = rng.choice(DTYPES)
    elif kind == 1:
        entry["shape"] = rng.choice([[], [0], [-1, 2], [2**40], entry["shape"][::-1], [*entry["shape"], 1], [1] * 40])
    elif kind == 2:
        entry["data_offsets"] = rng.choice([[0, 0], [8, 0], [0, 2**62], entry["data_offsets"][::-1], [0, 4]])
    elif kind == 3:
        fields = ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_E", "hada_w1_a", "lokr_w1", "weight"]
        header[f"{name.rpartition('.lora_')[0]}.{rng.choice(fields + TEXTS)}"] = header.pop(name)
    elif kind == 4:
        header[rng.choice(TEXTS)] = header.pop(name)
    elif kind == 5:
        header["__metadata__"] = rng.choice(
            [{"format": "pt"}, {"a": 1}, [], {rng.choice(TEXTS): rng.choice(TEXTS)}, _value(rng)]
        )
    elif kind == 6:
        return container(json.dumps(_changed(rng, header)).encode("utf-8", "surrogatepass"), bytes(rest))
    else:
        for _ in range(rng.choice([1, 3, 50])):
            at = rng.randrange(0, max(len(rest) - 4, 1), 4)
            special = [0.0, 1e38, -3e38, 1e-45, float("inf"), float("nan"), 1e30]
            rest[at : at + 4] = struct.pack("<f", rng.choice(special))
    return container(json.dumps(header).encode("utf-8", "surrogatepass"), bytes(rest))


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


def _crc(data: bytes) -> bytes:
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _records(records: list[bytes]) -> bytes:
    lengths = [struct.pack("<Q", len(record)) for record in records]
    return b"".join(
        length + _crc(length) + record + _crc(record) for length, record in zip(lengths, records, strict=True)
    )


def _event_records(rng: Random, data: bytes) -> bytes:
    records, at = [], 0
    while at + 12 <= len(data):
        length = struct.unpack("<Q", data[at : at + 8])[0]
        records.append(data[at + 12 : at + 12 + length])
        at += 16 + length
    from hostile.test_foreign_logs import event, tensor

    where = rng.randrange(len(records))
    kind = rng.randrange(4)
    if kind == 0:
        records[where] = _bytes(rng, records[where])
    elif kind == 1:
        shape = rng.choice([[10**6], [2**62, 4], [-1], [], [3], [0], [1] * 50])
        content = rng.choice([None, b"", b"\0\0", b"\0" * 4, b"\0" * 12])
        values = () if content else rng.choice([(), (1.0,)])
        proto = tensor(shape, rng.choice([1, 2, 3, 7, 10, 14, 99]), content=content, values=values)
        records.append(event(rng.choice([4, 2**40, 2**63 - 1]), rng.choice(["eval/loss", *TEXTS[:20]]), proto))
    elif kind == 2:
        records[where:where] = [records[where]] * rng.choice([1, 100])
    else:
        rng.shuffle(records)
    return _records(records)


OPTIONS = [
    "--json",
    "-v",
    "--format",
    "sarif",
    "github",
    "--fail-on",
    "error",
    "never",
    "--select",
    "LR",
    "--ignore",
    "--settings",
    "none",
    "--settings",
    "--rank",
    "--energy",
    "--weights",
    "0.5,0.5",
    "nan,1",
    "--method",
    "ties",
    "--density",
    "--seed",
    "--top",
    "--out",
    "../out/x",
    "--base",
    "--run",
    "r",
    "--gap-threshold",
    "--max-issues",
    "--map",
    "loss=step",
    "--task",
    "sst2",
    "--serve",
    "vllm",
    "--set",
    "lr=1e-4",
    "targets=q_proj",
    "--heatmap",
    "--intruders",
    "--dry-run",
    "--force",
    "--peft-dir",
    "--adapter-config",
    "--component",
    "--rename",
    "a=b",
    "--drop",
    "--compare",
    "--to",
    "peft",
    "mlx",
    "--help",
]
NEVER: Final = {"-f", "--follow", "--append"}  # these wait, or write where they are told to


def _options(rng: Random, argv: list[str]) -> None:
    words = [*OPTIONS, *(t for t in TEXTS if not t.startswith("/")), *(repr(n) for n in NUMBERS)]
    at = rng.randrange(1, len(argv) + 1)
    kind = rng.randrange(4)
    if kind == 0 and at < len(argv) and not argv[at].startswith("../out"):
        argv[at] = rng.choice(words)
    elif kind == 1 and at < len(argv):
        del argv[at]
    elif kind == 2:
        argv[at:at] = [rng.choice([w for w in OPTIONS if w.startswith("--")]), rng.choice(words)]
    else:
        argv[at:at] = [rng.choice(words)]
    if "--out" in argv and not argv[(argv.index("--out") + 1) % len(argv)].startswith("../out"):
        argv[argv.index("--out") :] = ["--out", "../out/x"]  # an output of a name of its own, below `out`
    if any(word in NEVER for word in argv[1:]) and "run.jsonl" not in argv:
        argv[:] = [word for word in argv if word not in NEVER]


PLANTED: Final = [*SECRETS, *further.SECRETS]

# Secrets -------------------------------------------------------------------------------------------------------------


SHOWN: Final = ("model_name", "message", "code", "reason", "split", "kind", "status", "base_model_name_or_path")


def _plant(rng: Random, argv: list[str], files: dict[str, bytes | Special], secret: Any) -> bool:
    """Put a secret in a place where a user may have put it; return whether there was such a place."""
    fits = [(n, plant) for n, d in files.items() if not isinstance(d, Special) if (plant := _planter_of(n)) is not None]
    if not fits:
        return False
    name, plant = rng.choice(sorted(fits, key=lambda fit: fit[0]))
    data = files[name]
    assert isinstance(data, bytes)
    with suppress(*UNFIT):
        planted = plant(rng, data, secret)
        if planted is not None:
            files[name] = planted
            return True
    return False


def _planter_of(name: str) -> Callable[[Random, bytes, Any], bytes | None] | None:
    if name.endswith("index.json") or name.startswith("../out"):  # file names, which errors must show; no input
        return None
    return next((plant for ending, plant in PLANTERS.items() if name.endswith(ending)), None)


def _plant_object(rng: Random, data: bytes, secret: Any) -> bytes | None:
    document = json.loads(data)
    if isinstance(document, list):
        document, whole = rng.choice(document), document
    else:
        whole = document
    if not isinstance(document, dict):
        return None
    holders = [document, *(v for v in document.values() if isinstance(v, dict))]
    holders += [row for v in document.values() if isinstance(v, list) for row in v[:3] if isinstance(row, dict)]
    rng.choice(holders)[secret.key] = secret.value
    fields = [(h, field) for h in holders for field in SHOWN if isinstance(h.get(field), str)]
    if fields and isinstance(secret.value, str) and secret.key == "note":
        shown, field = rng.choice(fields)
        shown[field] = secret.value
    return json.dumps(whole).encode()


def _plant_line(rng: Random, data: bytes, secret: Any) -> bytes | None:
    lines = data.split(b"\n")
    showing = [n for n, line in enumerate(lines) if any(b'"%b"' % field.encode() in line for field in SHOWN)]
    at = rng.choice(showing) if showing and rng.random() < 0.7 else rng.randrange(len(lines))  # mostly
    planted = _plant_object(rng, lines[at], secret)
    return None if planted is None else b"\n".join([*lines[:at], planted, *lines[at + 1 :]])


def _plant_setting(rng: Random, data: bytes, secret: Any, sign: str) -> bytes:
    """Put the secret on its own line, or after a value that is shown. A JSON string is also a YAML and TOML string."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    text = json.dumps(secret.value)
    shown = [n for n, line in enumerate(lines) if any(f"{field}{sign}" in line for field in SHOWN)]
    if shown and isinstance(secret.value, str) and secret.key == "note" and rng.random() < 0.5:
        at = rng.choice(shown)
        lines[at] = lines[at].partition(sign)[0] + sign + " " + text
    else:
        lines.insert(rng.choice([0, len(lines) // 2, len(lines)]), f"{secret.key}{sign} {text}")
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def _plant_cells(rng: Random, data: bytes, secret: Any) -> bytes | None:
    """Add a column of secrets under the secret's key, or a column whose name is the secret."""
    if not isinstance(secret.value, str):
        return None
    quoted = b'"' + secret.value.replace('"', '""').encode() + b'"'
    head, *rows = data.split(b"\n")
    if secret.key == "note" and rng.random() < 0.3:
        return b"\n".join([head + b"," + quoted, *(row + b",1" for row in rows)])
    return b"\n".join([head + b"," + secret.key.encode(), *(row + b"," + quoted for row in rows if row), b""])


def _plant_metadata(rng: Random, data: bytes, secret: Any) -> bytes:
    """Put the secret into the metadata of an adapter's weights, or into a tensor's name."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    text = secret.value if isinstance(secret.value, str) else json.dumps(secret.value)
    if secret.key == "note" and rng.random() < 0.3:
        name = rng.choice([n for n in header if n != "__metadata__"])
        header[f"{text}.{name}"[:900]] = header[name]
    header["__metadata__"] = {"format": "pt", secret.key: text}
    return container(json.dumps(header).encode(), data[8 + length :])


def _plant_cell_of_a_database(rng: Random, data: bytes, secret: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.db"
        path.write_bytes(data)
        with closing(sqlite3.connect(path)) as db:
            text = json.dumps({"train/loss": 1.0, secret.key: secret.value})
            kind = rng.randrange(3)
            if kind == 0:
                db.execute("UPDATE metrics SET metrics = ? WHERE step = 2", (text,))
            elif kind == 1:
                db.execute("UPDATE configs SET config = ?", (text,))
            else:
                db.execute("UPDATE metrics SET run_name = ?", (text[:200],))
            db.commit()
        return path.read_bytes()


PLANTERS: Final[dict[str, Callable[[Random, bytes, Any], bytes | None]]] = {
    ".jsonl": _plant_line,
    ".json": _plant_object,
    ".yaml": lambda rng, data, secret: _plant_setting(rng, data, secret, ":"),
    ".toml": lambda rng, data, secret: _plant_setting(rng, data, secret, " ="),
    ".csv": _plant_cells,
    ".safetensors": _plant_metadata,
    ".db": _plant_cell_of_a_database,
}
