"""Row 10 and part of 22, places that are no files: none is waited for, none is read without end."""

from __future__ import annotations

import json
import os

from hostile.inputs import CONFIG, adapter, base, run_log, trainer_state
from tables import grid

LIMIT = 3


def fifo(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def zero(path):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def sparse(path):
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(200 * 1024**3)


def terminal(path):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/ptmx")


KINDS = {"a pipe": fifo, "a link to /dev/zero": zero, "200 GB of nothing": sparse, "a link to a terminal": terminal}

WHERE = {
    "a/adapter_config.json": ["audit a", "compare a b", "merge-check a b", "resize a --rank 2 --out o", "report a"],
    "a/adapter_model.safetensors": ["audit a", "diagnose a", "convert a --to mlx --out o"],
    "a/adapter_model.safetensors.index.json": ["audit a", "diagnose a"],
    "base/config.json": ["check --peft-dir b --base base", "audit b --base base --no-cache"],
    "base/model.safetensors": ["check --peft-dir b --base base", "verify-merge --base base --adapter b --merged base"],
    "base/model.safetensors.index.json": ["verify-merge --base base --adapter b --merged base"],
    "run/trainer_state.json": ["import run --out r.jsonl", "monitor run", "diagnose run", "report run"],
    "run/run.jsonl": ["monitor run/run.jsonl", "validate run/run.jsonl", "check run/run.jsonl", "diagnose run"],
    "run/training_args.json": ["check --training-dir run", "check run"],
    "run/training_args.bin": ["check --training-dir run", "import run --out r.jsonl", "diagnose run"],
    "run/README.md": ["diagnose run", "report run"],
    "run/adapter_config.json": ["check run", "import run --out r.jsonl"],
    "run/all_results.json": ["import run --out r.jsonl"],
    "pyproject.toml": ["monitor good/run.jsonl"],
    "gradience.toml": ["monitor good/run.jsonl"],
}


@grid(each=4, where=[(n, line) for n, lines in WHERE.items() for line in lines], kind=KINDS)
def test_only_regular_files_of_a_sensible_size_are_read(run, tmp_path, where, kind):
    name, line = where
    for folder in ("a", "b"):
        adapter(tmp_path / folder)
    base(tmp_path / "base")
    run_log(tmp_path / "good" / "run.jsonl")
    trainer_state(tmp_path / "run" / "trainer_state.json")
    if name == "a/adapter_model.safetensors.index.json":
        (tmp_path / "a" / "adapter_model.safetensors").unlink()
    if name == "base/model.safetensors.index.json":
        (tmp_path / "base" / "model.safetensors").unlink()
    KINDS[kind](tmp_path / name)
    told = run(*line.split(), limit_s=LIMIT, limit_mb=3000)
    assert told.code in {0, 1, 2}
    assert len(told.errors) <= (told.code == 2)
    assert told.memory_mb < 300


def hub_entry(folder, main):
    base(folder / "snapshots" / "abc")
    base(folder / "snapshots" / "def")
    base(folder / "elsewhere" / "inner")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_bytes(main)
    return folder


REFS = {
    "out of the folder": b"../elsewhere",
    "out of the folder and down": b"../elsewhere/inner",
    "an absolute path": b"/etc",
    "the folder of snapshots itself": b".",
    "not UTF-8": b"\xff\xfe\x00",
    "a NUL": b"abc\0",
    "a megabyte": b"a" * 1_000_000,
    "nothing": b"",
    "two lines": b"abc\ndef\n",
}


@grid(each=2, verb=["check", "verify-merge"], case=REFS)
def test_a_ref_that_names_no_revision_is_refused_in_words(run, tmp_path, verb, case):
    adapter(tmp_path / "a")
    hub_entry(tmp_path / "hub", REFS[case])
    argv = {
        "check": ("--peft-dir", "a", "--base", "hub"),
        "verify-merge": ("--base", "hub", "--adapter", "a", "--merged", "hub"),
    }
    told = run(verb, *argv[verb])
    assert told.code == 2
    assert len(told.errors) == 1
    assert len(told.err) < 1000


def test_a_ref_that_is_a_pipe_is_not_waited_for(run, tmp_path):
    adapter(tmp_path / "a")
    fifo(hub_entry(tmp_path / "hub", b"abc") / "refs" / "main")
    told = run("check", "--peft-dir", "a", "--base", "hub", limit_s=LIMIT)
    assert told.refused


def test_a_config_over_the_limit_is_refused_by_the_limits_name(run, tmp_path):
    folder = adapter(tmp_path / "a", config=json.dumps(CONFIG) + " " * 20_000_000)
    told = run("audit", folder)
    assert told.refused
    assert "MiB" in told.err


def test_links_in_a_circle_are_one_line(run, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").symlink_to("adapter_config.json")
    (tmp_path / "b").symlink_to("b")
    assert run("compare", "a/adapter_config.json", "--heatmap").refused
    assert run("compare", "b", "a").refused
    assert run("resize", "a", "--rank", "2", "--out", "b").refused
