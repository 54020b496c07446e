"""Logs and adapters that a report is made of."""

from __future__ import annotations

import copy
import json
import math
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradience.blocks.html import pieces
from gradience.schema.events import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.telemetry.writer import TelemetryWriter

_TESTS = str(Path(__file__).resolve().parents[1])
if _TESTS not in sys.path:  # tests are no package: this puts `pages` of the folder above within reach
    sys.path.insert(0, _TESTS)


def losses(steps: int) -> Iterator[tuple[int, float]]:
    """A curve that falls, with a spike and with rows that are not finite."""
    for step in range(1, steps + 1):
        usual = 2.0 * math.exp(-step / steps) + 0.1 * math.sin(step)
        yield step, {steps // 3: 9.5, steps // 2: math.nan}.get(step, usual)


@pytest.fixture(scope="session")
def write_log(tmp_path_factory) -> Callable[..., Path]:
    """Return a function that writes a log by the library's own writer."""

    def write(steps: int = 120, *, model: str = "acme/base-7b", split: str = "test", end: bool = True) -> Path:
        folder = tmp_path_factory.mktemp("run")
        config = ConfigSnapshot(
            model_name=model,
            dataset_name="acme/sentences",
            lora=LoraSnapshot(r=8, alpha=16.0, target_modules=["q_proj"]),
            optimizer=OptimizerSnapshot(name="adamw_torch", lr=2e-4),
            training=TrainingSnapshot(max_steps=steps, batch_size=4, gradient_accumulation=1),
        )
        with TelemetryWriter(folder / "run.jsonl", fsync="never") as log:
            log.run_start(config)
            for step, loss in losses(steps):
                log.train_step(step, loss=loss, lr=2e-4 * (1 - step / steps), grad_norm=1.0 + 0.1 * math.cos(step))
                if step % max(steps // 6, 1) == 0:
                    for name, more in (("train", 0.0), (split, 0.1 + step / steps)):
                        log.eval(step, split=name, metrics={"loss": 0.7 + more, "accuracy": 0.8, "n": 200})
            if end:
                log.run_end(status="ok")
        return folder / "run.jsonl"

    return write


@pytest.fixture(scope="session")
def log(write_log) -> Path:
    return write_log()


@pytest.fixture(scope="session")
def write_adapter(tmp_path_factory) -> Callable[..., Path]:
    """Return a function that writes an adapter of three layers, by the names of its modules."""

    def write(*names: str) -> Path:
        rng = np.random.default_rng(0)
        folder = tmp_path_factory.mktemp("adapter") / "peft"
        folder.mkdir()
        tensors = {}
        for layer in range(3):
            for name in names or ("self_attn.q_proj", "mlp.up_proj"):
                stem = f"base_model.model.model.layers.{layer}.{name}"
                tensors[f"{stem}.lora_A.weight"] = rng.standard_normal((8, 32)).astype(np.float32)
                fall = rng.standard_normal((48, 8)) * 0.6 ** np.arange(8)
                tensors[f"{stem}.lora_B.weight"] = fall.astype(np.float32)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": "acme/base-7b"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return write


@pytest.fixture(scope="session")
def adapter(write_adapter) -> Path:
    return write_adapter()


@pytest.fixture(autouse=True)
def drawn(monkeypatch, drawings) -> dict[bytes, Element]:
    """What pages have drawn so far, by what was asked for: two of three figures of these tests were drawn before.

    Empty it where what is claimed is of drawing itself. `test_figures` calls `draw`, which keeps nothing.
    """
    for name in ("draw", "draw_map"):
        monkeypatch.setattr(pieces, name, _kept(getattr(pieces, name), drawings))
    return drawings


@pytest.fixture(scope="session")
def drawings() -> dict[bytes, Element]:
    return {}


def _kept(draw: Callable[..., Element], drawings: dict[bytes, Element]) -> Callable[..., Element]:
    def kept(*asked: object) -> Element:
        key = pickle.dumps((draw.__name__, *asked))
        if key not in drawings:
            drawings[key] = draw(*asked)
        return copy.deepcopy(drawings[key])

    return kept


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
