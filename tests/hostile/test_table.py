"""The table of hostile inputs and the commands that meet them: each ends in a report or in one line of error, soon.

The usual run takes of each group so many cells that each input and each command is met; GRADIENCE_SLOW=1 takes all.
Work and memory are bounded by the size of the input: none of these takes a second of processor time where they are.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hostile.events import event, event_file, simple, tensor
from hostile.inputs import (
    CONFIG,
    STEM,
    adapter,
    base,
    container,
    database,
    factors,
    lay_out,
    log_line,
    run_log,
    safetensors,
    trainer_state,
)
from hostile.outcome import ended
from tables import SLOW

Make = Callable[[Path], Any]


class Group(NamedTuple):
    """Inputs that the same commands meet; a command is written with blanks between its words."""

    inputs: dict[str, Make]
    lines: Iterable[str]
    options: Mapping[str, Any] = MappingProxyType({})  # of `ended`: what must be so
    limit_s: int = 3  # of processor time
    imports: tuple[str, ...] = ()
    meets_all: bool = True  # inputs, in the usual run; else one for each command


# Adapters of odd sizes, names and numbers ----------------------------------------------------------------------------


def sizes(*shapes: tuple[int, int, int]) -> Make:
    """Two adapters of modules of these rows, columns and ranks."""

    def make(at: Path) -> None:
        for name, seed in (("a", 0), ("b", 1)):
            tensors = {}
            for n, (rows, columns, r) in enumerate(shapes):
                tensors |= factors((rows, columns), r, stem=STEM.replace("layers.0", f"layers.{n}"), seed=seed)
            adapter(at / name, tensors, {"r": r, "lora_alpha": 2 * r})

    return make


ON_ADAPTERS = (
    "audit a",
    "compare a b",
    "merge a b --check",
    "resize a --rank 1 --out o",
    "merge a b --method svd --out o",
    "diagnose a",
)
RANKS = Group(
    {
        "1 x 1 of rank 10000": sizes((1, 1, 10_000)),
        "4 x 8 of rank 20000": sizes((4, 8, 20_000)),
        "fifty of 2 x 2, of rank 1000": sizes(*[(2, 2, 1000)] * 50),
    },
    ON_ADAPTERS,
)

DOTTED = ".".join("a" * 40_000)
NAMES = {
    "40000 parts": DOTTED,
    "40000 parts and a layer in each": ".".join(f"{n}" for n in range(20_000)),
    "100000 underscores": "lora_unet_" + "_" * 100_000,
    "80 KB in one part": "a" * 80_000,
}
ON_BASE = (
    "check --peft-dir a --base base",
    "verify base --base base --adapter a",
    "audit a --base base --no-cache",
)


def named(name: str, at: Path) -> None:
    for folder in "ab":
        adapter(at / folder, factors(stem=f"base_model.model.{name}.q_proj"))


def named_base(name: str, at: Path) -> None:
    base(at / "base", {f"{name}.q_proj.weight": np.zeros((20, 12), np.float32)})


def configured(at: Path, **config: Any) -> None:
    adapter(at / "a", config=config)
    base(at / "base", {f"model.layers.{n}.q_proj.weight": np.zeros((2, 2), np.float32) for n in range(300)})


LONG_NAMES = Group(
    {name: partial(named, text) for name, text in NAMES.items()},
    (*ON_ADAPTERS[:5], "convert a --to mlx --out o", ON_BASE[0]),
)
LONG_BASE_NAMES = Group({name: partial(named_base, text) for name, text in [*NAMES.items()][:2]}, ON_BASE)
TARGETS = Group(
    {
        "a target of 40000 parts": partial(configured, target_modules=[DOTTED]),
        "a pattern of 40000 parts": partial(configured, rank_pattern={DOTTED: 2}),
        "an excluded module of 40000 parts": partial(configured, exclude_modules=[DOTTED]),
        "3000 targets": partial(configured, target_modules=[f"m{n}" for n in range(3000)]),
        "3000 patterns": partial(configured, rank_pattern={f"m{n}": 2 for n in range(3000)}),
    },
    ON_BASE[:1],
)

PATTERNS = {
    "groups of stars and a back-reference": r"((.*)(.*)(.*))((.*)(.*)(.*))((.*)(.*)(.*))(x)\13y",
    "stars in branches": r"(?:(.*)|b)(?:(.*)|b)(?:(.*)|b)(?:(.*)|b)(?:(.*)|b)(x)\6y",
    "a look-ahead": r"(?=(.*)(.*)(.*)(.*)(.*)y)x",
    "counted repeats": r"(.{0,200})(.{0,200})(.{0,200})(.{0,200})(x)\5y",
    "optional letters": r"(x)?" + "a?" * 30 + "a" * 30 + r"\1y",
}


def pattern(key: str, text: str, at: Path) -> None:
    stem = "base_model.model." + "a" * 60 + "." * 3 + "a" * 300 + ".q_proj"
    adapter(at / "a", factors(stem=stem), {key: text if key == "target_modules" else {text: 4}})
    named_base("a" * 300, at)


IN_PATTERNS = Group(
    {
        name: partial(pattern, key, text)
        for (name, text), key in zip(
            PATTERNS.items(), itertools.cycle(["rank_pattern", "alpha_pattern", "target_modules"]), strict=False
        )
    },
    ("audit a", ON_BASE[0], "convert a --to mlx --out o") if SLOW else (ON_BASE[0],),
    meets_all=False,  # each takes the seconds that an expression is given
)


def entry(value: float) -> dict[str, Any]:
    tensors = factors()
    tensors[f"{STEM}.lora_A.weight"][0, 0] = value
    return tensors


def weighed(tensors: Any, at: Path, **config: Any) -> None:
    adapter(at / "a", tensors, config)


NUMBERS = Group(
    {
        "alpha 1e160": partial(weighed, None, lora_alpha=1e160),
        "alpha 1e-320": partial(weighed, None, lora_alpha=1e-320),
        "factors of 1e30": partial(weighed, factors(scale=1e30)),
        "factors of 1e-30": partial(weighed, factors(scale=1e-30)),
        "float64 factors of 1e200": partial(weighed, factors(scale=1e200, dtype=np.float64)),
        "float16 factors at the limit": partial(weighed, factors(scale=3e4, dtype=np.float16)),
        "one entry of 3e38": partial(weighed, entry(3e38)),
        "one entry inf": partial(weighed, entry(np.inf)),
        "one entry NaN": partial(weighed, entry(np.nan)),
    },
    (
        *(f"{line} --json" for line in ON_ADAPTERS),
        "audit a --base base --intruders --no-cache --json",
        "merge a b --method ties --out o --json",
        "convert a --to mlx --out o --json",
        f"{ON_BASE[1]} --json",
        "report a --out page.md",
        "report a --out page.html",
        "check --peft-dir a --json",
    ),
    limit_s=8,
)


def shaped(*adapters: dict[str, tuple[int, int]]) -> Make:
    """Adapters a, b, c of modules of these shapes."""

    def make(at: Path) -> None:
        for name, modules in zip("abc", (*adapters, adapters[0])[:3], strict=True):
            tensors = {}
            for module, shape in modules.items():
                tensors |= factors(shape, stem=STEM.replace("q_proj", f"{module}_proj"))
            adapter(at / name, tensors, {"target_modules": [f"{m}_proj" for m in modules]})

    return make


SHAPES = Group(
    {
        "all differ": shaped({"q": (20, 12)}, {"q": (40, 24)}),
        "of three all differ": shaped({"q": (20, 12)}, {"q": (40, 24)}, {"q": (60, 36)}),
        "none is shared": shaped({"q": (20, 12)}, {"v": (20, 12)}),
        "one of two fits": shaped({"q": (20, 12), "v": (8, 8)}, {"q": (20, 12), "v": (9, 9)}),
    },
    ("merge a b c --check", "compare a b c", "merge a b c --out o"),
    {"codes": {0, 2}},
)

# Tensors that no array is: what is written opens in safetensors, or nothing is written -------------------------------

FOREIGN = {
    "F99": ("F99", [2, 2], b"\0" * 16),
    "an empty dtype": ("", [2, 2], b"\0" * 16),
    "lower case": ("f32", [2, 2], b"\0" * 16),
    "F4 of odd length": ("F4", [3], b"\0\0"),
    "C64": ("C64", [2], b"\0" * 16),
    "I128": ("I128", [1], b"\0" * 16),
    "F32 of other length": ("F32", [2, 2], b"\0" * 12),
}
METADATA = {
    "long": '{"format": "pt", "x": "' + "y" * 100_000 + '"}',
    "a number": '{"x": 1}',
    "half a pair": '{"\\ud800": "a"}',
    "a null": '{"a": null}',
}


def foreign(name: str, held: tuple[str, list[int], bytes], at: Path) -> None:
    for folder in "ab":
        adapter(at / folder, **{name: held})


def metadata(text: str, at: Path) -> None:
    whole = safetensors(factors())
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length].decode()
    (at / "a" / "adapter_model.safetensors").write_bytes(
        container(f'{{"__metadata__": {text}, {header[1:]}'.encode(), whole[8 + length :])
    )


CARRIED = Group(
    {
        f"{case} as {name}": partial(foreign, name, held)
        for (case, held), name in zip(
            FOREIGN.items(), itertools.cycle(["base_model.model.lm_head.weight", f"{STEM}.bias", "extra"]), strict=False
        )
    }
    | {f"metadata: {case}": partial(metadata, text) for case, text in METADATA.items()},
    ("convert a --to mlx --out o", "convert a --rank 2 --out o", "resize a --rank 2 --out o", "merge a b --out o"),
    {"codes": {0, 2}},
)


def bin_of(kind: str, at: Path) -> None:
    import torch

    with torch.no_grad():
        strange = {
            "a jagged tensor": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(4)], layout=torch.jagged),
            "a quantized tensor": lambda: torch.quantize_per_tensor(torch.zeros(2, 3), 0.1, 0, torch.qint8),
            "a complex tensor": lambda: torch.zeros(2, 3, dtype=torch.complex64).conj(),
            "a sparse tensor": lambda: torch.eye(3).to_sparse_csr(),
            "a tensor on meta": lambda: torch.zeros(2, 3, device="meta"),
            "a parameter": lambda: torch.nn.Parameter(torch.zeros(2, 3)),
            "a dtype": lambda: torch.float32,
            "an empty tensor of 70 axes": lambda: torch.zeros([1] * 60),
        }[kind]()
    tensors = {name: torch.from_numpy(array) for name, array in factors().items()}
    (at / "a" / "adapter_model.safetensors").unlink()
    torch.save(tensors | {"base_model.model.lm_head.weight": strange}, at / "a" / "adapter_model.bin")


BINS = Group(
    {
        kind: partial(bin_of, kind)
        for kind in (
            *("a jagged tensor", "a quantized tensor", "a complex tensor", "a sparse tensor", "a tensor on meta"),
            *("a parameter", "a dtype", "an empty tensor of 70 axes"),
        )
    },
    ("audit a --json", "convert a --to mlx --drop --out o"),
    {"codes": {0, 2}},
    limit_s=30,
    imports=("torch",),
)

# Nesting and digits: one decoder bounds both, whoever asks -----------------------------------------------------------


def nested(depth: int, core: str = "NaN", opening: str = "[", closing: str = "]") -> str:
    return opening * depth + core + closing * depth


DEEP = {
    "480 lists around NaN": nested(480),
    "900 lists around NaN": nested(900),
    "480 objects around Infinity": nested(480, "Infinity", '{"a":', "}"),
    "990 lists around nothing": nested(990, ""),
    "20000 lists": nested(20_000, "1"),
    "20000 lists never closed": "[" * 20_000,
    "lists and objects in turn": nested(300, "-Infinity", '[{"a":', "}]"),
}
LINES = {
    "train_step": log_line("train_step", 4, loss=1.0)[:-1],
    "run_start": log_line("run_start", config={})[:-1],
    "of another program": '{"step": 4, "loss": 1.0',
}


def deep_line(kind: str, text: str, at: Path) -> None:
    deep = f'{LINES[kind]}, "deep": {text}}}'
    if kind == "of another program":
        (at / "L").write_text("".join(f'{{"step": {n}, "loss": 1.0}}\n' for n in range(3)) + deep + "\n")
    else:
        run_log(at / "L", deep)


DEEP_LINES = Group(
    {
        f"{case}, in a line {kind}": partial(deep_line, kind, text)
        for (case, text), kind in zip(DEEP.items(), itertools.cycle(LINES), strict=False)
    },
    ("monitor L", "validate L", "diagnose L", "report L", "check L", "import L --out o", "monitor L --json"),
    {"codes": {0, 2}},
)


def deep_document(name: str, text: str, at: Path) -> None:
    documents = {
        "adapter_config.json": f'{json.dumps(CONFIG)[:-1]}, "rank_pattern": {text}}}',
        "trainer_state.json": f'{{"log_history": [{{"step": 1, "loss": 1.0}}], "x": {text}}}',
        "table.json": f'[{{"step": 1, "loss": 1.0, "x": {text}}}]',
    }
    path = at / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(documents.get(path.name, f'{{"metadata": {text}, "weight_map": {{"x": "model.safetensors"}}}}'))
    if path.name.endswith("model.safetensors.index.json"):
        path.with_name(path.name.removesuffix(".index.json")).unlink(missing_ok=True)


OF_A_BASE = ("base/model.safetensors.index.json", "base/config.json")
OF_A, OF_A_STATE = "a/adapter_config.json", "state/trainer_state.json"
DEEP_DOCUMENTS = [
    Group(
        {f"{case}, in {name}": partial(deep_document, name, text) for (case, text), name in cells},
        lines,
        {"codes": {0, 1, 2}},
    )
    for cells, lines in (
        (zip([*DEEP.items()][:4], itertools.cycle(OF_A_BASE), strict=False), ON_BASE),
        (((case, OF_A) for case in [*DEEP.items()][2:5]), ("audit a", ON_BASE[0], "convert a --to mlx --out o")),
        (((case, OF_A_STATE) for case in [*DEEP.items()][4:6]), ("import state --out o", "diagnose state")),
        ([(("200000 lists", nested(200_000, "1")), "table.json")], ("import table.json --out o",)),
    )
]


def deep_header(file: str, text: str, at: Path) -> None:
    (at / file).write_bytes(container(f'{{"__metadata__": {{"a": {text}}}}}'.encode()))


HEADERS = [
    Group({case: partial(deep_header, file, text) for case, text in part}, (line,), {"codes": {2}})
    for file, line, part in (
        ("a/adapter_model.safetensors", "audit a", [*DEEP.items()][::2]),
        ("base/model.safetensors", ON_BASE[0], [*DEEP.items()][1::2]),
    )
]


def yaml(key: str, value: str, at: Path) -> None:
    (at / "c.yaml").write_text(f"lr: 1e-4\nlora_alpha: 8\n{key}: {value}\n")


DIGITS = {
    "hexadecimal": "0x" + "f" * 4000,
    "octal": "0o" + "7" * 9000,
    "binary": "0b" + "1" * 20_000,
    "decimal": "9" * 5000,
    "decimal with underscores": "1" + "_000" * 2000,
    "sexagesimal": "1" + ":59" * 3000,
    "a float of many digits": "1." + "9" * 50_000,
    "an exponent of many digits": "1e" + "9" * 5000,
    "a year of many digits": "9" * 5000 + "-01-01",
}
IN_YAML = Group(
    {
        f"{case} as {key}": partial(yaml, key, value)
        for (case, value), key in zip(
            DIGITS.items(),
            itertools.cycle(["r", "bf16", "use_rslora", "model_name", "max_steps", "unheard_of"]),
            strict=False,
        )
    },
    ("check c.yaml --json",),
    {"codes": {0, 2}},
)
DEEP_YAML = Group(
    {
        text[:6]: partial(yaml, "x", text)
        for text in ("{" * 5000, "[" * 5000, "- " * 5000, "? " * 5000, "{a: " * 3000 + "1", "&a " * 5000, "!x " * 5000)
    },
    ("check c.yaml",),
    {"codes": {2}},
)


def config_text(text: str, at: Path) -> None:
    adapter(at / "a", config=text)


HUGE = Group(
    {
        "r": partial(config_text, '{"peft_type": "LORA", "r": %s}' % ("9" * 5000)),
        "alpha of 400 digits": partial(config_text, '{"peft_type": "LORA", "r": 8, "lora_alpha": %s}' % ("9" * 400)),
        "alpha and a half": partial(config_text, '{"peft_type": "LORA", "r": 8, "lora_alpha": -%s.5}' % ("9" * 5000)),
        "a pattern": partial(config_text, '{"peft_type": "LORA", "r": 8, "rank_pattern": {"q": %s}}' % ("9" * 5000)),
    },
    ("audit a", "check --peft-dir a", "convert a --to mlx --out o"),
    {"codes": {0, 2}},
)

# Logs that are long, wide or lie -------------------------------------------------------------------------------------


def many_splits(at: Path) -> None:
    rows = [{"step": 1, "loss": 1.0}, {"step": 1, **{f"eval_s{i}_loss": 1.0 for i in range(60_000)}}]
    trainer_state(at / "state" / "trainer_state.json", rows)


def new_columns(at: Path) -> None:
    rows = [{"step": n, "loss": 1.0, **{f"c{n}_{i}": 1.0 for i in range(2000)}} for n in range(50)]
    (at / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def many_metrics(at: Path) -> None:
    metrics = {f"metric_{n}": 0.5 for n in range(20_000)}
    run_log(at / "run.jsonl", *(log_line("eval", step, split="test", metrics=metrics) for step in (1, 2)))


def our_splits(count: int, at: Path) -> None:
    rows = (log_line("eval", step, split=f"s{n}", metrics={"loss": 1.0}) for n in range(count) for step in (1, 2))
    run_log(at / "run.jsonl", *rows)


def wide_table(at: Path) -> None:
    names = [f"train/metrics/a_rather_long_name_of_a_metric_{n}" for n in range(2000)]
    rows = ["step,loss," + ",".join(names), *(f"{s},{1 / s}," + ",".join("1" * 2000) for s in (1, 2, 3))]
    (at / "t.csv").write_text("\n".join(rows) + "\n")


def written(name: str, text: str, at: Path) -> None:
    (at / name).write_text(text)


LONG_LOGS = [
    Group({"60000 splits": many_splits}, ("import state --out r.jsonl",), limit_s=6),
    Group({"columns that are new in every row": new_columns}, ("import log.jsonl --out r.jsonl",)),
    Group({"10000 splits of a log of ours": partial(our_splits, 10_000)}, ("monitor run.jsonl --json",)),
    Group({"20000 metrics": many_metrics}, ("monitor run.jsonl --json", "runs run.jsonl --out store"), limit_s=6),
    Group({"2000 columns": wide_table}, ("import t.csv --out r.jsonl",), {"codes": {0}}),
    Group(
        {
            "a long cell": partial(written, "t.csv", "step,loss\n1,1," + "x" * 50_000 + "\n"),
            "a long column": partial(written, "t.csv", "step," + "l" * 50_000 + "\n1,1\n"),
        },
        ("import t.csv --out r.jsonl",),
    ),
    Group(
        {
            "a long key": partial(written, "t.json", json.dumps([{"s" * 50_000: 1}])),
            "a key of secrets": partial(
                written, "t.json", json.dumps([{"step": 1, "loss": 1, "-api-key" * 30_000: 1}])
            ),
            "a key of URLs": partial(written, "t.json", json.dumps([{"step": 1, "loss": 1, "://a:" * 48_000: 1}])),
            "a key of web tokens": partial(
                written, "t.json", json.dumps([{"step": 1, "loss": 1, "eyJhbGciOiJ9." * 18_000: 1}])
            ),
        },
        ("import t.json --out r.jsonl", "check t.json"),
    ),
]

TENSORS = {
    "a shape of 10^12": tensor([10**6, 10**6], values=[1.0]),
    "a shape of 10^9 with content": tensor([10**9], content=struct.pack("<f", 1.0)),
    "less content than the shape": tensor([3], content=struct.pack("<f", 1.0)),
    "content of half a number": tensor([1], content=b"\0\0"),
    "a negative axis": tensor([-1], values=[1.0]),
    "axes of 2^62": tensor([2**62, 4], values=[1.0]),
    "a hundred axes": tensor([1] * 100, values=[1.0]),
    "a dtype of no name": tensor([], dtype=99, values=[1.0]),
    "text for a scalar": tensor([], dtype=7) + b"\x42\x05words",
    "no value": tensor([]),
    "a scalar beside nothing": b"",
}


def events(proto: bytes, at: Path) -> None:
    rows = [simple(step, "train/loss", 1.0 / step) for step in (1, 2, 3)]
    event_file(at / "events.out.tfevents.1.host", *rows, event(4, "eval/loss", proto))


EVENTS = Group(
    {case: partial(events, proto) for case, proto in TENSORS.items()},
    ("import events.out.tfevents.1.host --out r.jsonl",),
    {"codes": {0, 2}},
)

COUNT = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) "
VIEWS = {
    "a view that never ends": [
        "DROP TABLE metrics",
        f"CREATE VIEW metrics AS {COUNT}SELECT n AS id, '' AS timestamp, 'r' AS run_name, n AS step, '' AS metrics FROM c",  # noqa: E501, S608  # a lie
    ],
    "a join without end": [
        "CREATE TABLE configs (id INTEGER, run_name TEXT, config)",
        *["INSERT INTO configs SELECT id, run_name, metrics FROM metrics"] * 12,
        "ALTER TABLE metrics RENAME TO m",
        "CREATE VIEW metrics AS SELECT m.* FROM m, " + ", ".join(f"configs c{n}" for n in range(12)),  # noqa: S608  # a lie
    ],
    "a blob of 900 MB that is not there": [
        "ALTER TABLE metrics RENAME TO m",
        "CREATE VIEW metrics AS SELECT id, timestamp, run_name, step, zeroblob(900000000) AS metrics FROM m",
    ],
    "a computed column": [
        "ALTER TABLE metrics RENAME TO m",
        "CREATE TABLE metrics (id, timestamp, run_name, step, metrics AS (zeroblob(900000000)))",
        "INSERT INTO metrics SELECT id, timestamp, run_name, step FROM m",
    ],
}


def computing(statements: list[str], at: Path) -> None:
    database(at / "t.db", statements)


DATABASES = Group(
    {case: partial(computing, VIEWS[case]) for case in (VIEWS if SLOW else [*VIEWS][:-1])},  # the last takes seconds
    ("import t.db --out r.jsonl",),
    {"codes": {0, 2}},
    limit_s=5,
)

# Settings files, and places that are no files ------------------------------------------------------------------------

SETTINGS = Group(
    {
        "dotted keys": partial(written, "pyproject.toml", "# gradience\n" + ".".join("a" * 30_000) + "=1\n"),
        "arrays in arrays": partial(written, "gradience.toml", "a=" + "[" * 30_000 + "]" * 30_000 + "\n"),
        "many dotted keys": partial(
            written,
            "pyproject.toml",
            "# gradience\n" + "".join(f"{'.'.join('a' * 300)}.b{n}=1\n" for n in range(300)),
        ),
        "a number without end": partial(written, "gradience.toml", "select=" + "9" * 60_000 + "\n"),
    },
    ("monitor run.jsonl",),
)


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(name: str, path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(name)


def sparse(path: Path) -> None:
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(200 * 1024**3)


KINDS = {
    "a pipe": fifo,
    "a link to /dev/zero": partial(device, "/dev/zero"),
    "200 GB of nothing": sparse,
    "a link to a terminal": partial(device, "/dev/ptmx"),
}
WHERE = {
    "a/adapter_config.json": ("audit a", "compare a b", "merge a b --check", "resize a --rank 2 --out o", "report a"),
    "a/adapter_model.safetensors": ("audit a", "diagnose a", "convert a --to mlx --out o"),
    "a/adapter_model.safetensors.index.json": ("audit a", "diagnose a"),
    "base/config.json": (ON_BASE[0], ON_BASE[2]),
    "base/model.safetensors": ON_BASE[:2],
    "base/model.safetensors.index.json": ON_BASE[1:2],
    "state/trainer_state.json": ("import state --out r.jsonl", "monitor state", "diagnose state", "report state"),
    "run.jsonl": ("monitor run.jsonl", "validate run.jsonl", "check run.jsonl", "diagnose run.jsonl"),
    "state/training_args.json": ("check --training-dir state", "check state"),
    "state/training_args.bin": ("check --training-dir state", "import state --out r.jsonl", "diagnose state"),
    "state/README.md": ("diagnose state", "report state"),
    "state/adapter_config.json": ("check state", "import state --out r.jsonl"),
    "state/all_results.json": ("import state --out r.jsonl",),
    "pyproject.toml": ("monitor run.jsonl",),
    "gradience.toml": ("monitor run.jsonl",),
}


def special(name: str, kind: str, at: Path) -> None:
    if name.endswith(".index.json"):
        (at / name.removesuffix(".index.json")).unlink()
    KINDS[kind](at / name)


SPECIAL = [
    Group(
        {f"{kind} as {name}": partial(special, name, kind) for kind in KINDS},
        lines,
        {"codes": {0, 1, 2, 3}},  # 3: settings alone, where no weights could be opened
        meets_all=False,
    )
    for name, lines in WHERE.items()
]


def ref(content: bytes, at: Path) -> Path:
    for name in ("snapshots/abc", "elsewhere/inner"):
        base(at / "hub" / name)
    (at / "hub" / "refs").mkdir()
    (at / "hub" / "refs" / "main").write_bytes(content)
    return at / "hub" / "refs" / "main"


REFS = Group(
    {
        "out of the folder": partial(ref, b"../elsewhere"),
        "an absolute path": partial(ref, b"/etc"),
        "the folder of snapshots itself": partial(ref, b"."),
        "not UTF-8": partial(ref, b"\xff\xfe\x00"),
        "a NUL": partial(ref, b"abc\0"),
        "a megabyte": partial(ref, b"a" * 1_000_000),
        "nothing": partial(ref, b""),
        "a pipe": lambda at: fifo(ref(b"abc", at)),
    },
    ("check --peft-dir a --base hub", "verify hub --base hub --adapter a"),
    {"codes": {2}},
)


def circle(at: Path) -> None:
    (at / "a" / "adapter_config.json").unlink()
    (at / "a" / "adapter_config.json").symlink_to("adapter_config.json")
    (at / "c").symlink_to("c")


def overflowing(entry: float, at: Path) -> None:
    weight = np.full((20, 12), entry, np.float32)
    base(at / "base", {"model.layers.0.self_attn.q_proj.weight": weight})
    base(at / "merged", {"model.layers.0.self_attn.q_proj.weight": -weight})


REFUSED = Group(
    {
        "links in a circle": circle,
        "a config of 20 MB": partial(config_text, json.dumps(CONFIG) + " " * 20_000_000),
    },
    ("audit a", "compare a b", "resize a --rank 2 --out c"),
    {"codes": {2}},
)
OVERFLOW = Group(
    {f"weights of {entry}": partial(overflowing, entry) for entry in (np.inf, 3e38, np.nan)},
    ("verify merged --base base --adapter a --json",),
    {"codes": {1, 3}},
)

# Pages of extreme values: they cost no more time than others ---------------------------------------------------------

VALUES = {
    "1e308 and -1e308": [1e308, -1e308, 1e308],
    "subnormal": [5e-324, 1e-323, 0.0],
    "all the same and huge": [1.7e308] * 3,
    "one finite among none": ["NaN", 1.0, "NaN"],
    "nearly the same": [1.0, 1.0 + 2e-16, 1.0],
    "one of 1e300": [1.0, 1e300, 1.0],
}
STEPS = [[1, 2, 3], [1, 2, 2**53], [2**63 - 3, 2**63 - 2, 2**63 - 1], [5, 5, 5], [3, 2, 1], [1, 2, 3]]


def extreme(values: list[Any], steps: list[int], at: Path) -> None:
    rows = []
    for step, value in zip(steps, values, strict=True):
        rows += [
            log_line("train_step", step, loss=value, lr=value, grad_norm=value),
            log_line("eval", step, split="test", metrics={"loss": value, "ppl": value, "accuracy": value}),
        ]
    run_log(at / "run.jsonl", *rows, steps=0)


def long_run(at: Path) -> None:
    values = [1e308, 1e-300, "NaN", 1.0, 5e-324, "Infinity"]
    losses = [values[step * step % len(values)] for step in range(6_000)]
    lines = [log_line("train_step", step, loss=value, lr=value, grad_norm=value) for step, value in enumerate(losses)]
    run_log(at / "run.jsonl", *lines, steps=0)


def clock(times: list[Any], at: Path) -> None:
    lines = [json.dumps(json.loads(log_line("train_step", s, loss=1.0)) | {"ts": t}) for s, t in enumerate(times, 1)]
    run_log(at / "run.jsonl", *lines, steps=0)


def three_layers(scale: float, alpha: float, at: Path) -> None:
    tensors = {}
    for n in range(3):
        tensors |= factors(stem=STEM.replace("layers.0", f"layers.{n}"), scale=scale, seed=n)
    adapter(at / "a", tensors, {"lora_alpha": alpha})


PAGES = [
    Group(
        {case: partial(extreme, values, steps) for (case, values), steps in zip(VALUES.items(), STEPS, strict=True)}
        | {"a long run": long_run, "3000 splits": partial(our_splits, 3000)}
        | {f"times such as {times[0]}": partial(clock, times) for times in ([-1e300, 0, 1e300], ["NaN", None, 1e18])},
        ("report run.jsonl --out page.html", "report run.jsonl --out page.md", "report run.jsonl"),
        {"memory_mb": 400},
        limit_s=8,
    ),
    Group({"huge": partial(three_layers, 1e30, 1e160), "tiny": partial(three_layers, 1e-30, -1e-160)},
          ("report a --out page.html",), limit_s=8),
]  # fmt: skip

# Command lines -------------------------------------------------------------------------------------------------------

LONG = "x" * 50_000


def nothing(_: Path) -> None:
    """The command line itself is what is hostile."""


OPTIONS = (
    *(f"--set targets={value}" for value in ("t" * 100_000, ",".join(["q_proj"] * 5000))),
    *(f"--set r={value}" for value in ("9" * 5000, 2**63, f"0x{'f' * 4000}")),
    *(f"--set lr={value}" for value in ("9" * 400, "1e999", "nan")),
    *(f"--set alpha={value}" for value in ("inf", "9" * 5000)),
    *(f"--task {'x' * 257}", f"--serve {'vllm,' * 10_000}", f"--base {'b' * 5000}", f"--select {'L' * 5000}"),
    *(f"--ignore {'LR001,' * 3000}", f"--settings {'s' * 5000}", "--peft-dir a\0b", f"--peft-dir {'d' * 300}"),
    *(f"--peft-dir {'d/' * 3000}", f"--training-dir {'d' * 300}", f"--training {'d' * 300}"),
)
NUMBERED = (
    *("merge a b --weights {} --out o", "merge a b --check --weights {}", "resize a --rank {} --out o"),
    *("resize a --max-mb {} --out o", "audit a --top-wasteful {}"),
    *("merge a b --method dare_ties --density 0.5 --seed {} --out o", "merge a b --method svd --rank {} --out o"),
    *("compare a b --top {}", "monitor run.jsonl --gap-threshold {}", "validate run.jsonl --max-issues {}"),
)
GIVEN = ("9" * 30, "9" * 5000, "1e999", "nan", "-1", "1,1e308", "1e308,1e308", "nan,1")
COMMAND_LINES = [
    Group({"an option": nothing}, [f"check --set lr=1e-4 {option}" for option in OPTIONS], {"codes": {0, 2}}),
    Group(
        {"a number": nothing},
        [line.format(value) for line, value in itertools.product(NUMBERED, GIVEN)]
        if SLOW
        else [line.format(GIVEN[n % len(GIVEN)]) for n, line in enumerate(NUMBERED)],
    ),
    Group(
        {"a long word": nothing},
        (
            *(f"check --{LONG}", LONG, f"rules {LONG}", f"monitor {LONG}", f"import run.jsonl --map {LONG}"),
            f"merge a b --weights {'1,' * 20_000}x --out o",
        ),
        {"codes": {2}},
    ),
]

TABLE = (
    *(RANKS, LONG_NAMES, LONG_BASE_NAMES, TARGETS, IN_PATTERNS, NUMBERS, SHAPES, CARRIED, BINS, DEEP_LINES),
    *(*DEEP_DOCUMENTS, *HEADERS, IN_YAML, DEEP_YAML, HUGE, *LONG_LOGS, EVENTS, DATABASES, SETTINGS, *SPECIAL, REFS),
    *(REFUSED, OVERFLOW),
    *(*PAGES, *COMMAND_LINES),
)


def cells(place: int, group: Group) -> Iterable[tuple[str, str]]:
    """The input and the command of each cell: all, or as many as meet each of both."""
    inputs, lines = list(group.inputs), list(group.lines)
    if SLOW:
        return itertools.product(inputs, lines)
    several = max(len(inputs), len(lines)) if group.meets_all else len(lines)
    return [(inputs[(n + place) % len(inputs)], lines[n % len(lines)]) for n in range(several)]


CELLS = [
    pytest.param(group, name, line, id=f"{name}-{line[:60]}")
    for place, group in enumerate(TABLE)
    for name, line in cells(place, group)
]


@pytest.mark.parametrize(("group", "name", "line"), CELLS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of the strange tensors that are made here
def test_a_hostile_input_ends_in_a_report_or_in_one_line_of_error_soon(run, tmp_path, group, name, line):
    lay_out(tmp_path)
    group.inputs[name](tmp_path)
    limits = {"limit_s": group.limit_s, "limit_mb": 6_000 if group.imports else 3_000}
    told = run(*line.split(" "), imports=group.imports, **limits)
    ended(told, line, tmp_path, **group.options)


def test_a_dtype_unknown_to_us_is_named(run, tmp_path):
    adapter(tmp_path / "a", **{"base_model.model.lm_head.weight": FOREIGN["F99"]})
    told = run("audit", "a", "--json")
    assert "F99" in told.out + told.err
