"""Rows 8, 9, 11, 12 and 13, small inputs of great cost: time and memory are bounded by the size of the file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hostile.inputs import STEM, adapter, base, factors, log_line, run_log, trainer_state
from tables import few, grid, once

LIMIT = 3  # seconds of processor time: none of these takes one where work is bounded


def ended_soon(told, memory_mb=300):
    assert told.code in {0, 1, 2, 3}
    assert len(told.errors) <= (told.code == 2)
    assert told.memory_mb < memory_mb


RANKS = {
    "1 x 1 of rank 2000": [(1, 1, 2000)],
    "1 x 1 of rank 10000": [(1, 1, 10_000)],
    "4 x 8 of rank 20000": [(4, 8, 20_000)],
    "64 x 1 of rank 3000": [(64, 1, 3000)],
    "fifty of 2 x 2, of rank 1000": [(2, 2, 1000)] * 50,
}


@once(verb=["audit", "compare", "merge-check", "resize", "merge", "diagnose"], case=RANKS)
def test_work_and_memory_are_bounded_by_the_least_of_rows_columns_and_rank(run, tmp_path, verb, case):
    for name, seed in (("a", 0), ("b", 1)):
        tensors = {}
        for n, (rows, columns, r) in enumerate(RANKS[case]):
            stem = STEM.replace("layers.0", f"layers.{n}")
            tensors |= factors((rows, columns), r, stem=stem, seed=seed)
        adapter(tmp_path / name, tensors, {"r": r, "lora_alpha": 2 * r})
    more = {
        "compare": ["b"],
        "merge-check": ["b"],
        "resize": ["--rank", "1", "--out", "o"],
        "merge": ["b", "--method", "svd", "--out", "o"],
    }
    ended_soon(run(verb, "a", *more.get(verb, []), limit_s=LIMIT))


def parts(n):
    return ".".join("a" for _ in range(n))


NAMES = {
    "40000 parts": parts(40_000),
    "40000 parts and a layer in each": ".".join(f"{n}" for n in range(20_000)),
    "100000 underscores": "lora_unet_" + "_" * 100_000,
    "80 KB in one part": "a" * 80_000,
}


@once(verb=["audit", "compare", "merge-check", "resize", "convert", "merge", "check"], case=NAMES)
def test_a_long_name_costs_no_more_than_its_length(run, tmp_path, verb, case):
    tensors = factors(stem=f"base_model.model.{NAMES[case]}.q_proj")
    adapter(tmp_path / "a", tensors)
    base(tmp_path / "base")
    more = {
        "compare": ["a", "a"],
        "merge-check": ["a", "a"],
        "resize": ["a", "--rank", "2", "--out", "o"],
        "convert": ["a", "--to", "mlx", "--out", "o"],
        "merge": ["a", "a", "--out", "o"],
        "check": ["--peft-dir", "a", "--base", "base"],
    }
    ended_soon(run(verb, *more.get(verb, ["a"]), limit_s=LIMIT))


TARGETS = {
    "a target of 40000 parts": {"target_modules": [parts(40_000)]},
    "a pattern of 40000 parts": {"rank_pattern": {parts(40_000): 2}},
    "an excluded module of 40000 parts": {"exclude_modules": [parts(40_000)]},
    "3000 targets": {"target_modules": [f"m{n}" for n in range(3000)]},
    "3000 patterns": {"rank_pattern": {f"m{n}": 2 for n in range(3000)}},
}


@pytest.mark.parametrize("case", TARGETS)
def test_check_bounds_what_the_names_in_a_config_cost(run, tmp_path, case):
    adapter(tmp_path / "a", config=TARGETS[case])
    base(tmp_path / "base", {f"model.layers.{n}.q_proj.weight": np.zeros((2, 2), np.float32) for n in range(300)})
    ended_soon(run("check", "--peft-dir", "a", "--base", "base", limit_s=LIMIT))


BASES = [
    "check --peft-dir a --base base",
    "verify-merge --base base --adapter a --merged base",
    "audit a --base base --no-cache",
]


@grid(each=3, line=BASES, case=["40000 parts", "15000 numbers", "80 KB in one part"])
def test_a_long_name_in_a_base_costs_no_more_than_its_length(run, tmp_path, line, case):
    name = ".".join(map(str, range(15_000))) if case == "15000 numbers" else NAMES[case]
    base(tmp_path / "base", {f"{name}.q_proj.weight": np.zeros((20, 12), np.float32)})
    adapter(tmp_path / "a")
    ended_soon(run(*line.split(), limit_s=LIMIT))


def splits(path, n):
    rows = [{"step": 1, "loss": 1.0}, {"step": 1, **{f"eval_s{i}_loss": 1.0 for i in range(n)}}]
    return trainer_state(path, rows)


def test_sixty_thousand_splits_are_read_in_linear_time_or_refused(run, tmp_path):
    splits(tmp_path / "out" / "trainer_state.json", 60_000)
    ended_soon(run("import", "out", "--out", "r.jsonl", limit_s=2 * LIMIT))


def test_columns_that_are_new_in_every_row_are_read_in_linear_time_or_refused(run, tmp_path):
    rows = [{"step": n, "loss": 1.0, **{f"c{n}_{i}": 1.0 for i in range(2000)}} for n in range(50)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended_soon(run("import", "log.jsonl", "--out", "r.jsonl", limit_s=LIMIT))


def test_splits_of_a_log_of_ours_are_read_in_linear_time(run, tmp_path):
    lines = [log_line("eval", 1, split=f"s{n}", metrics={"loss": 1.0}) for n in range(20_000)]
    run_log(tmp_path / "run.jsonl", *lines)
    ended_soon(run("monitor", "run.jsonl", "--json", limit_s=LIMIT))


PATTERNS = {
    "groups of stars and a back-reference": r"((.*)(.*)(.*))((.*)(.*)(.*))((.*)(.*)(.*))(x)\13y",
    "stars in groups in groups": r"(((.*)))(((.*)))(((.*)))(((.*)))(x)\13y",
    "stars in branches": r"(?:(.*)|b)(?:(.*)|b)(?:(.*)|b)(?:(.*)|b)(?:(.*)|b)(x)\6y",
    "a look-ahead": r"(?=(.*)(.*)(.*)(.*)(.*)y)x",
    "a conditional": r"(a)?(?(1)(.*)(.*)(.*)(.*)(.*)y|z)",
    "counted repeats": r"(.{0,200})(.{0,200})(.{0,200})(.{0,200})(x)\5y",
    "optional letters": r"(x)?" + "a?" * 30 + "a" * 30 + r"\1y",
}


@pytest.mark.parametrize("line", ["monitor run.jsonl --json", "runs run.jsonl --out store"])
def test_the_metrics_of_an_evaluation_are_read_in_linear_time(run, tmp_path, line):
    metrics = {f"metric_{n}": 0.5 for n in range(20_000)}
    run_log(tmp_path / "run.jsonl", *(log_line("eval", step, split="test", metrics=metrics) for step in (1, 2)))
    ended_soon(run(*line.split(), limit_s=2 * LIMIT))


@once(verb=["audit", "check", "convert"], key=["rank_pattern", "alpha_pattern", "target_modules"], case=PATTERNS)
def test_no_pattern_takes_for_ever_to_match(run, tmp_path, verb, key, case):
    stem = "base_model.model." + "a" * 60 + "." * 3 + "a" * 300 + ".q_proj"
    pattern = PATTERNS[case]
    adapter(tmp_path / "a", factors(stem=stem), {key: pattern if key == "target_modules" else {pattern: 4}})
    base(tmp_path / "base", {f"{'a' * 300}.q_proj.weight": np.zeros((20, 12), np.float32)})
    more = {
        "audit": ["a"],
        "check": ["--peft-dir", "a", "--base", "base"],
        "convert": ["a", "--to", "mlx", "--out", "o"],
    }
    ended_soon(run(verb, *more[verb], limit_s=LIMIT))


KEYS = {
    "letters": "a" * 240_000,
    "underscores": "_" * 240_000,
    "tokens": "token_" * 40_000,
    "dashes": "-api-key" * 30_000,
    "assignments": "password=" * 26_000,
    "colons": "://a:" * 48_000,
    "base64": "eyJhbGciOiJ9." * 18_000,
    "camels": "aB" * 120_000,
    "beginnings of keys": "sk-" * 80_000,
    "beginnings of hub tokens": "hf_" * 80_000,
    "beginnings of web tokens": "eyJ-" * 60_000,
    "beginnings of private keys": "-----BEGIN " * 22_000,
    "at signs": "https://u:p" + "@" * 240_000,
    "options": "--password " * 22_000,
}


@pytest.mark.parametrize("case", few(KEYS, each=2))
def test_a_long_key_is_scanned_for_secrets_in_linear_time(run, case):
    told = run(
        limit_s=LIMIT,
        python=f"""
from gradience import TelemetryWriter
from gradience.errors import GradienceError
key = {KEYS[case]!r}
with TelemetryWriter("run.jsonl", allow_text=True, on_error="raise") as writer:
    for extras in ({{key: 1.0}}, {{"x": {{key: "v"}}}}, {{"note": key}}):
        try:
            writer.train_step(1, **extras)
        except GradienceError:
            pass
""",
    )
    assert (told.code, told.err) == (0, "")


@pytest.mark.parametrize("case", few([*KEYS][1:], each=2))
def test_a_long_key_in_a_foreign_log_or_config_is_scanned_in_linear_time(run, tmp_path, case):
    trainer_state(tmp_path / "out" / "trainer_state.json", [{"step": 1, "loss": 1.0, KEYS[case]: 1.0}])
    (tmp_path / "config.json").write_text(json.dumps({"lr": 1e-4, KEYS[case]: "v"}))
    ended_soon(run("import", "out", "--out", "r.jsonl", limit_s=LIMIT))
    ended_soon(run("check", "config.json", limit_s=LIMIT))


TOMLS = {
    "dotted keys": ("pyproject.toml", "# gradience\n" + ".".join("a" * 30_000) + "=1\n"),
    "dotted keys, again": ("gradience.toml", ".".join("a" * 30_000) + "=1\n"),
    "a header of dots": ("pyproject.toml", "# gradience\n[" + ".".join("a" * 120_000) + "]\n"),
    "arrays in arrays": ("gradience.toml", "a=" + "[" * 30_000 + "]" * 30_000 + "\n"),
    "tables in tables": ("gradience.toml", "a=" + "{a=" * 20_000 + "1" + "}" * 20_000 + "\n"),
    "many dotted keys": (
        "pyproject.toml",
        "# gradience\n" + "".join(f"{'.'.join('a' * 300)}.b{n}=1\n" for n in range(300)),
    ),
    "a number without end": ("gradience.toml", "select=" + "9" * 60_000 + "\n"),
}


@pytest.mark.parametrize("case", TOMLS)
def test_a_settings_file_in_the_working_folder_costs_no_more_than_its_size(run, tmp_path, case):
    name, text = TOMLS[case]
    (tmp_path / name).write_text(text)
    run_log(tmp_path / "run.jsonl")
    ended_soon(run("monitor", "run.jsonl", limit_s=LIMIT))
