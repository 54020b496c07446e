"""No verb reads a file of a run's folder twice, but for tensors, which are read a slice at a time."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from audited import save_adapter

from gradience import TelemetryWriter
from gradience.cli.main import main

README = Path(__file__).parents[1] / "golden" / "readme"
VERBS = ("audit", "check", "diagnose", "monitor", "report", "")

APART = {
    *("is_log", "is_pointer", "_head", "require_file"),  # for first bytes, by which a file is recognised
    *("load", "spectra", "factors_of"),  # for numbers, a tensor at a time, after the header has told where they are
    "sha256_of",  # for a digest, which a report and an import state of the file as it lies
}
"""Functions by which a file is opened for something else than to read what it says."""

_SEEN: Counter[str] = Counter()
_WATCHED: list[Path] = []


def _watch(event: str, given: tuple[object, ...]) -> None:
    if event != "open" or not _WATCHED or not isinstance(given[0], str | os.PathLike):
        return
    path = Path(os.path.realpath(given[0]))
    if path.is_relative_to(_WATCHED[0]) and path.is_file() and _names().isdisjoint(APART):
        _SEEN[path.relative_to(_WATCHED[0]).as_posix()] += 1


def _names() -> set[str]:
    """The functions that are being called."""
    frame, names = sys._getframe(2), set()  # as traceback has it, without reading the source's lines
    while frame is not None:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    return names


@pytest.fixture(scope="module")
def watch():
    """A function that counts the opens of each file of a folder in one command; the hook itself stays for good."""
    sys.addaudithook(_watch)

    def opened(folder: Path, verb: str) -> Counter[str]:
        _SEEN.clear()
        _WATCHED[:] = [Path(os.path.realpath(folder))]
        try:
            main([*([verb] if verb else []), str(folder)])
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


def of_readme(folder: Path) -> None:
    shutil.copytree(README, folder, dirs_exist_ok=True)


@pytest.mark.parametrize("make", [of_trainer, of_recorder, of_readme])
@pytest.mark.parametrize("verb", VERBS)
def test_each_file_is_read_once(tmp_path, watch, make, verb):
    make(tmp_path)
    opened = watch(tmp_path, verb)
    assert {name: count for name, count in opened.items() if count > 1} == {}
    assert opened or not verb  # the counter sees what is read
