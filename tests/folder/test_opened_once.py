"""No verb reads a file of a folder that it is given twice.

What is counted is how often a file is opened to read what it says. Not counted are its first bytes, by which a file is
recognised, its tensors, which are read a slice at a time after the header, and its digest, which is counted by itself.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from audited import save_adapter
from hand_made import base as save_base
from tables import grid

from gradience import TelemetryWriter
from gradience.cli.main import main

GOLDEN = Path(__file__).parents[1] / "golden"
COMMANDS = {
    **{verb: [verb, "RUN"] for verb in ("audit", "check", "diagnose", "monitor", "report", "runs")},
    **{f"{verb} --base": [verb, "RUN", "--base", "BASE"] for verb in ("audit", "check", "diagnose", "report")},
    "PATH": ["RUN"],
    "why": ["why", "RUN", "OTHER"],
    "compare": ["compare", "RUN", "OTHER"],
    "fleet": ["fleet", "audit", "RUN", "--out", "OUT", "--workers", "1"],
    "resize": ["resize", "RUN", "--rank", "2", "--out", "OUT"],
    "resize --base": ["resize", "RUN", "--energy", "0.9", "--base", "BASE", "--out", "OUT"],
    "merge": ["merge", "RUN", "OTHER", "--out", "OUT"],
    "merge --check": ["merge", "RUN", "OTHER", "--check"],
    "convert": ["convert", "RUN", "--to", "mlx", "--out", "OUT"],
    "verify": ["verify", "BASE", "--adapter", "RUN", "--base", "BASE"],
    "import": ["import", "RUN", "--out", "OUT"],
}

FIRST_BYTES = {"is_log", "is_pointer", "_head", "require_file", "format_of"}
TENSORS = {"load", "spectra", "factors_of", "_bytes", "file_digest"}
DIGEST = "sha256_of"
"""Functions by which a file is opened for something else than to read what it says."""

AGAIN = {
    *("config.json", "model.safetensors"),  # of a base: by each of coverage, the model's sizes, and names of modules
    *("tokenizer.json", "tokenizer_config.json", "added_tokens.json"),  # by vocabulary and by prompt
}
"""Files that are still read more than once."""

_SEEN: Counter[str] = Counter()
_WATCHED: list[Path] = []


def _watch(event: str, given: tuple[object, ...]) -> None:
    if event != "open" or not _WATCHED or not isinstance(given[0], str | os.PathLike):
        return
    path = Path(os.path.realpath(given[0]))
    names = _names()
    if path.is_relative_to(_WATCHED[0]) and path.is_file() and names.isdisjoint(FIRST_BYTES | TENSORS):
        _SEEN[path.relative_to(_WATCHED[0]).as_posix() + " for its digest" * (DIGEST in names)] += 1


def _names() -> set[str]:
    """The functions that are being called."""
    frame, names = sys._getframe(2), set()  # as traceback has it, without reading the source's lines
    while frame is not None:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    return names


@pytest.fixture(scope="session")
def watch():
    """A function that counts the opens of each file of a folder in one command.

    The hook itself stays for good, so there must be one: a worker may come back to this file after others.
    """
    sys.addaudithook(_watch)

    def opened(folder: Path, words: list[str]) -> Counter[str]:
        _SEEN.clear()
        _WATCHED[:] = [Path(os.path.realpath(folder))]
        try:
            main(words)
        finally:
            _WATCHED.clear()
        return Counter(_SEEN)

    return opened


def adapter(folder: Path, seed: int = 0) -> None:
    draw = np.random.default_rng(seed)
    pairs = [(0.01 * draw.normal(size=(16, 4)), draw.normal(size=(4, 16))) for _ in range(2)]
    save_adapter(folder, pairs, task_type="CAUSAL_LM")


def of_trainer(folder: Path) -> None:
    """An output folder of the Trainer, with three checkpoints, of which the last is what was saved at the end."""
    history = [{"step": step, "epoch": step / 30, "loss": 2.0 - step / 30} for step in range(1, 31)]
    held = [{"step": step, "epoch": step / 30, "eval_loss": 1.0 + abs(step - 10) / 9} for step in (10, 20, 30)]
    places = [*((folder / f"checkpoint-{step}", step) for step in (10, 20, 30)), (folder, 30)]
    for place, step in places:
        adapter(place, seed=step)
        rows = [row for row in [*history, *held] if row["step"] <= step]
        state = {"global_step": step, "max_steps": 30, "log_history": rows}
        (place / "trainer_state.json").write_text(json.dumps(state))
        (place / "training_args.json").write_text(json.dumps({"learning_rate": 1e-3, "optim": "adamw_torch"}))


def of_recorder(folder: Path) -> None:
    """A folder with our recorder's log, an adapter and a recipe."""
    adapter(folder)
    with TelemetryWriter(folder / "run.jsonl") as log:
        log.run_start(config={"optimizer": {"lr": 1e-3}, "model_name": "owner/base"})
        for step in range(1, 31):
            log.train_step(step, loss=1.0 / step, lr=1e-3)
    (folder / "train.yaml").write_text("dataset: rows.jsonl\nlearning_rate: 0.001\n")


def with_optimizer(folder: Path) -> None:
    """An output folder of the Trainer, with the states of the optimizer."""
    of_trainer(folder)
    for place in (folder, folder / "checkpoint-30"):
        state = {0: {"step": torch.tensor(30.0), "exp_avg": torch.zeros(3)}}
        torch.save({"state": state, "param_groups": [{"lr": 1e-3, "params": [0]}]}, place / "optimizer.pt")


def with_base(folder: Path) -> None:
    """A run's folder that holds its base, with a recipe and the rows that it names."""
    of_recorder(folder)
    base(folder / "model")
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    stated = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**stated, "base_model_name_or_path": "model"}))


def of_golden(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.copytree(GOLDEN / name, folder, dirs_exist_ok=True)


FOLDERS = {
    "trainer": of_trainer,
    "recorder": of_recorder,
    "optimizer": with_optimizer,
    "base": with_base,
    **{name: of_golden(name) for name in ("readme", "drawn/one", "drawn/dora", "drawn/series")},
}


def base(folder: Path) -> None:
    """A small Llama with a tokenizer."""
    draw, stem = np.random.default_rng(9), "model.layers"
    names = [f"{stem}.{n}.self_attn.{side}_proj.weight" for n in range(2) for side in "qkvo"]
    save_base(folder, **{name: draw.normal(size=(16, 16)).astype(np.float32) for name in names})
    kind = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(kind))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))


@grid(each=4, command=COMMANDS, folder=FOLDERS)
def test_each_file_is_read_once(tmp_path, watch, command, folder):
    run, other, model = tmp_path / "run", tmp_path / "other", tmp_path / "base"
    run.mkdir()
    FOLDERS[folder](run)
    of_trainer(other)
    base(model)
    places = {"RUN": run, "OTHER": other, "BASE": model, "OUT": tmp_path / "out.jsonl"}
    opened = watch(tmp_path, [str(places.get(word, word)) for word in COMMANDS[command]])
    twice = {name for name, count in opened.items() if count > 1 and "out.jsonl" not in name}
    assert {name for name in twice if Path(name.partition(" ")[0]).name not in AGAIN} == set()


def test_the_counter_sees_what_is_read(tmp_path, watch):
    of_trainer(tmp_path)
    assert watch(tmp_path, ["check", str(tmp_path)])["adapter_config.json"] == 1
