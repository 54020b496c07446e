"""Damaged inputs of every verb: each ends in a report or one line of error, writes only what it is told to, and shows
no secret.

An input depends only on the command, its number and the seed: `GRADIENCE_FUZZ=100 GRADIENCE_FUZZ_SEED=1 pytest
tests/hostile/test_fuzz.py -n 2`, or `nox -s fuzz`, tries other ones. A test that fails leaves its files.
"""

from __future__ import annotations

import io
import json
import os
import random
import struct
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import SECRETS
from data.made import QWEN
from hostile.events import event_file, simple
from hostile.inputs import CONFIG, container, database, factors, lay_out
from hostile.outcome import ended
from tables import SLOW

INPUTS = int(os.environ.get("GRADIENCE_FUZZ", "20" if SLOW else "1"))  # of each command
SEED = os.environ.get("GRADIENCE_FUZZ_SEED", "0")

COMMANDS = """
monitor run.jsonl
monitor run.jsonl --json
monitor run.jsonl -v --format github
monitor run.jsonl --format sarif
monitor run.jsonl run.jsonl --json
validate run.jsonl
validate run.jsonl --json
diagnose run.jsonl
diagnose run.jsonl --json
check run.jsonl --json
report run.jsonl
report run.jsonl --out o.md
import run.jsonl --out o.jsonl
check c.yaml
check c.yaml --json -v
check c.yaml --format sarif
check c.json --json
check --peft-dir a --json
check --peft-dir a --serve vllm,mlx -v
check --peft-dir a --base base --json
import state --out o.jsonl --json
monitor state --json
diagnose state --json
import t.jsonl --out o.jsonl --json
import t.json --out o.jsonl --json
monitor t.jsonl
import trainer_log.jsonl --out o.jsonl --json
import logging.jsonl --out o.jsonl --json
import t.csv --out o.jsonl --json
import t.csv --out o.jsonl --map loss=train/loss
monitor t.csv
import events.out.tfevents.1.h --out o.jsonl --json
import t.db --out o.jsonl --json
import verl.log --out o.jsonl --json
import mlflow --out o.jsonl --json
monitor mlflow --json
import wandb --out o.jsonl --json
audit a --json
audit a --layers -v --heatmap
audit a --suggest-per-layer --json
audit a --format sarif
audit a --append run.jsonl
audit a --base base --no-cache --json
audit a --base base --intruders --no-cache
audit x.npz --json
audit bin --json
diagnose a --json
report a
resize a --rank 2 --out o --json
resize a --energy 0.9 --out o --json
convert a --to mlx --out o --json
convert a --rank 2 --out o --json
convert bin --to mlx --drop --out o --json
compare a b --json
compare a b --heatmap -v
merge a b --check --json
merge a b --check -v
merge a b --out o --json
merge a b --method svd --rank 2 --out o --json
merge a b --method ties --out o --json
verify base --base base --adapter a --json
why run.jsonl state --json
check --data d.jsonl --json
check --data d.csv --samples 3
check --data d.jsonl --eval-data d.csv --json
check --data d.parquet --json
check --data chats.jsonl --tokenizer tok --json
check --data chats.jsonl --tokenizer tok --template c.jinja -v
fleet show fleet --json
fleet query fleet select(1) --csv
runs run.jsonl state --out o --json
runs best run.jsonl --out o --metric test/loss
rules
rules LR001
schema audit
""".strip().splitlines()


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@cache
def whole() -> dict[str, bytes]:
    """The files that the commands read, none of them damaged."""
    with tempfile.TemporaryDirectory() as folder:
        at = lay_out(Path(folder))
        database(at / "t.db", rows=5)
        event_file(at / "events.out.tfevents.1.h", *(simple(n, "train/loss", 1 / n) for n in (1, 2, 3)))
        files = {str(path.relative_to(at)): path.read_bytes() for path in at.rglob("*") if path.is_file()}
    steps = range(1, 9)
    step = "step:{n} - actor/loss:{x:.3f} - critic/score/mean:{x:.3f} - response_length/mean:90.5\n"
    ids = [{"input_ids": [1, 2, 3, n], "labels": [-100, 2, 3, n]} for n in steps]
    turns = [{"role": "user", "content": "what is two and two"}, {"role": "assistant", "content": "four"}]
    files |= {
        "c.yaml": b"model_name: org/m\ndataset_name: glue/sst2\nlr: 1e-4\nlora:\n  r: 8\n  alpha: 16\n"
        b"  target_modules: [q_proj]\ntraining: &t\n  max_steps: 100\nseed: 1\n",
        "c.json": json.dumps({"lr": 1e-4, "r": 8, "lora_alpha": 16, "model_name": "org/m"}).encode(),
        "pyproject.toml": b"[tool.gradience]\nselect = ['LR', 'DIV']\nfail-on = 'error'\n",
        "t.jsonl": lines([{"step": n, "train/loss": 1 / n, "eval/loss": 1.1 / n, "lr": 1e-4} for n in steps]),
        "t.json": json.dumps([{"step": n, "loss": 1 / n} for n in steps]).encode(),
        "trainer_log.jsonl": lines([{"current_steps": n, "total_steps": 9, "loss": 1 / n, "lr": 1e-4} for n in steps]),
        "logging.jsonl": lines([{"loss": 1 / n, "global_step/max_steps": f"{n}/9", "epoch": 0.1} for n in steps]),
        "t.csv": b"step,train/loss,lr\n" + b"".join(b"%d,%f,1e-4\n" % (n, 1 / n) for n in steps),
        "verl.log": "".join(step.format(n=n, x=1 / n) for n in steps).encode(),
        "mlflow/meta.yaml": b"run_id: a\nstatus: 3\nstart_time: 1\nend_time: 2\n",
        "mlflow/metrics/loss": b"".join(b"%d %f %d\n" % (n, 1 / n, n) for n in steps),
        "wandb/files/wandb-summary.json": b'{"loss": 0.5}',
        "wandb/files/config.yaml": b"lr: {value: 0.1}\n",
        "wandb/run-a.wandb": b"W&B\x00" * 9,
        "bin/adapter_config.json": json.dumps(CONFIG).encode(),
        "d.jsonl": lines(ids),
        "d.csv": b'input_ids,labels\n"[1, 2, 3]","[1, 2, 3]"\n',
        "chats.jsonl": lines([{"messages": turns}] * 6),
        "c.jinja": QWEN.encode(),
    }
    return files | arrays(ids) | tokenizer() | fleet()


def arrays(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    """Rows as Parquet, and factors as NumPy and torch write them."""
    import pyarrow as pa
    import torch
    from pyarrow import parquet

    columns, packed, pickled = io.BytesIO(), io.BytesIO(), io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), columns)
    np.savez(packed, **{"layer.lora_a": np.ones((8, 2), np.float32), "layer.lora_b": np.ones((2, 8), np.float32)})
    torch.save({name: torch.from_numpy(array) for name, array in factors().items()}, pickled)
    held = {"d.parquet": columns, "x.npz": packed, "bin/adapter_model.bin": pickled}
    return {name: file.getvalue() for name, file in held.items()}


def tokenizer() -> dict[str, bytes]:
    words = ("<|im_start|>", "<|im_end|>", "[UNK]", "what", "is", "two", "and", "four", "user", "assistant")
    added = [
        {"id": n, "content": word, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for n, word in enumerate(words[:2])
    ]
    whole = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    whole |= {"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "Whitespace"}}
    whole["model"] = {"type": "WordLevel", "vocab": {w: n for n, w in enumerate(words)}, "unk_token": "[UNK]"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": words[1], "chat_template": QWEN}
    return {f"tok/{n}.json": json.dumps(v).encode() for n, v in (("tokenizer", whole), ("tokenizer_config", config))}


def fleet() -> dict[str, bytes]:
    """The files of a store with one part, whose rows have a plain value in every column."""
    import pyarrow as pa
    from pyarrow import parquet

    from gradience.tables import arrow_schema
    from gradience.tables.query import FLEET

    files = {"fleet/fleet.json": json.dumps({"schema": FLEET.schema, "parts": [1], "next": 2}).encode()}
    plain = {"string": "a", "double": 0.5, "int64": 1, "bool": True}
    for name, row in FLEET.rows.items():
        schema, out = arrow_schema(row), io.BytesIO()
        values = {f.name: plain.get(str(f.type), [0.5, 0.25]) for f in schema}
        rows = [values] * 3
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), out)
        files[f"fleet/{name}/part-000001.parquet"] = out.getvalue()
    return files


# Damages -------------------------------------------------------------------------------------------------------------

TEXTS = (
    *("", " ", "a" * 300, "a" * 5000, "\x1b[31m", "\u202e", "\x9b31m", "\u2028", "\x7f", "\x00", "é", "模型", "\ud800"),
    *("NaN", "-Infinity", "1e999", "0x1F", "1_000", "1" * 400, "9" * 5000, "2025-13-45", "1:1:1", "~", "*t", "&a b"),
    *("../../x", "/etc/passwd", "C:\\x", "<script>", "]]>", "|", "`", "::error::x", "%0A", "%s", "${x}", "=1+1"),
    *("(a+)+$", "(", "[", "a{1,999999}", ".".join("a" * 2000), "-", "--json", "null", "true", "loss", "q_proj"),
    *("!!python/object:os.system x", "{a: {b: 1}}", "'", '"', "<<: *t", "{{ 1/0 }}", "{% for a in range(9**9) %}"),
)
NUMBERS = (
    *(0, -1, 1, 2, 255, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**30, 10**300, -0.0, 0.5, 1e-300, 5e-324),
    *(1e16, 1e160, -1e160, 3.5e38, 1.7976931348623157e308, float("nan"), float("inf"), float("-inf")),
)
WORDS = (
    *("--json", "-v", "--format", "sarif", "--fail-on", "error", "--select", "LR", "--settings", "none", "--rank"),
    *("--energy", "--weights", "0.5,0.5", "--method", "ties", "--density", "--seed", "--top", "--base", "--run"),
    *("--map", "--task", "sst2", "--set", "lr=1", "targets=q_proj", "--heatmap", "--dry-run", "--force", "--to"),
    "--help",
)
UNFIT = (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError, struct.error)


def value(rng: random.Random) -> Any:
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(TEXTS)
    if kind == 5:
        return rng.choice([None, True, [], {}, [[]], [None], {"": None}])
    if kind == 6:
        return {rng.choice(TEXTS): rng.choice(NUMBERS) for _ in range(rng.choice([1, 30]))}
    deep: Any = float("nan")
    for _ in range(rng.choice([5, 300, 480])):
        deep = [deep]
    return deep


def places(document: Any) -> list[tuple[Any, Any]]:
    """Each container within a document, with each of its keys."""
    keys = list(document) if isinstance(document, dict) else range(len(document) if isinstance(document, list) else 0)
    return [place for key in keys for place in ((document, key), *places(document[key]))]


def change(rng: random.Random, document: Any) -> bytes:
    holder, key = rng.choice(places(document))
    kind = rng.randrange(5)
    if kind < 3:
        holder[key] = value(rng)
    elif kind == 3:
        del holder[key]
    elif isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = holder.pop(key)
    else:
        holder[key:key] = [value(rng)] * rng.choice([1, 200])
    return json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")  # half of them


def of_lines(rng: random.Random, data: bytes, *, json_lines: bool) -> bytes:
    rows = data.split(b"\n")
    at, kind = rng.randrange(len(rows)), rng.randrange(6)
    if json_lines and kind < 4:
        rows[at] = change(rng, json.loads(rows[at]))
    elif kind < 2:
        rows[at] = rows[at].partition(b":")[0] + b": " + rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    elif kind == 2:
        rows[at] = rng.choice(TEXTS).encode("utf-8", "surrogatepass") + rows[at]
    elif kind == 3:
        rows[at] += b"," + rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    elif kind == 4:
        rows[at:at] = [rows[at]] * rng.choice([1, 300])
    else:
        rng.shuffle(rows)
    return b"\n".join(rows)


def of_bytes(rng: random.Random, data: bytes) -> bytes:
    out, at = bytearray(data), rng.randrange(len(data))
    new = rng.choice([b"", struct.pack("<Q", rng.choice([0, 1, 2**40, 2**64 - 1])), rng.randbytes(1), bytes(100)])
    out[at : at + rng.choice([1, 8, len(data)])] = new
    return bytes(out)


def damaged(rng: random.Random, name: str, data: bytes) -> bytes:
    if rng.random() < 0.25:  # a quarter
        return of_bytes(rng, data)
    suffix = Path(name).suffix
    if suffix == ".json":
        return change(rng, json.loads(data))
    if suffix == ".safetensors":
        length = struct.unpack("<Q", data[:8])[0]
        return container(change(rng, json.loads(data[8 : 8 + length])), data[8 + length :])
    if suffix in {".jsonl", ".yaml", ".toml", ".csv", ".log", ".jinja"}:
        return of_lines(rng, data, json_lines=suffix == ".jsonl")
    return of_bytes(rng, data)


def planted(name: str, data: bytes, key: str, secret: str) -> bytes:
    """The file with a secret under its key, and in a text that is shown."""
    if name.endswith((".json", ".jsonl")):
        first, _, rest = data.partition(b"\n") if name.endswith(".jsonl") else (data, b"", b"")
        document = json.loads(first)
        document |= {key: secret}
        if key == "note":
            document |= {field: secret for field in ("model_name", "base_model_name_or_path") if field in document}
        return json.dumps(document).encode() + b"\n" * bool(rest) + rest
    if name.endswith(".yaml"):
        return data + f"{key}: {json.dumps(secret)}\n".encode()
    return data


def drawn(command: str, number: int, at: Path) -> tuple[list[str], str]:
    """Write the files of an input; return its command line, and the secret that it must not show."""
    rng = random.Random(f"{SEED}/{command}/{number}")  # noqa: S311  # no secret hangs on it
    argv, key, core = command.split(), "", ""
    files = {name: data for name, data in whole().items() if name.split("/")[0] in {*argv, "pyproject.toml"}}
    if number % 3 == 0:
        key, secret, core = rng.choice(SECRETS)
        for name, data in files.items():
            with suppress(*UNFIT):
                files[name] = planted(name, data, key, secret)
    for _ in range(rng.choice([1, 1, 2, 3])):
        kind, name = (rng.random(), rng.choice(sorted(files))) if files else (0.0, "")  # a word, where no file is left
        with suppress(*UNFIT):
            if kind < 0.1:  # one in ten
                spots = [n for n in range(1, len(argv) + 1) if argv[n - 1] not in {"--out", "--append"}]
                argv.insert(rng.choice(spots), rng.choice([*WORDS, *TEXTS]))
            elif kind < 0.13:  # few: what is not there is soon refused
                del files[name]
            else:
                files[name] = damaged(rng, name, files[name])
    if core and any(core.encode() in data and key.encode() not in data for data in files.values()):
        core = ""  # the damage took the name away by which it is known
    at.mkdir()
    for name, data in files.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes(data)
    return [word.replace("\0", "").encode("utf-8", "replace").decode() for word in argv], core


def state(at: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(at)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in at.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_input_ends_in_a_report_or_one_line_and_nothing_else_is_written_or_shown(run, tmp_path, command):
    pytest.importorskip("torch")
    for number in range(INPUTS):
        at = tmp_path / f"{number}"
        argv, core = drawn(command, number, at)
        before = state(at)
        told = run(*argv, cwd=at, limit_s=10, imports=("torch",))
        if not {"--help", "-h"} & {*argv}:
            ended(told, command, at)
        assert not core or core not in told.out + told.err, (argv, core)
        after = {name: held for name, held in state(at).items() if before.get(name) != held}
        allowed = ("o", *(("run.jsonl", ".run.jsonl") if "--append" in argv else ()))
        assert [name for name in after if not name.startswith(allowed)] == [], argv
