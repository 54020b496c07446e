"""The tiny Trainer as a fixture, and a reader of what a run left."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path

import pytest

from gradience.telemetry import TelemetryReader

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def training():
    """The module `training.py`."""
    pytest.importorskip("peft", reason="needs the hf extra: pip install -e '.[hf]'")
    pytest.importorskip("transformers", reason="needs the hf extra: pip install -e '.[hf]'")
    spec = importlib.util.spec_from_file_location("hf_training", HERE / "training.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["hf_training"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tokenizer(training):
    """A tokenizer of the words w0, w1, ... of the tiny models."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(training.WORDS - 3)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106  # no password
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


@pytest.fixture(scope="session")
def callback(training):
    """The class GradienceCallback."""
    return training.GradienceCallback


class Kept(logging.Handler):
    """Keeps every record of a logger."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def records():
    """What is logged by `gradience` during the test, from INFO up, as it comes."""
    logger, kept = logging.getLogger("gradience"), Kept()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(kept)
    yield kept.records
    logger.removeHandler(kept)
    logger.setLevel(level)


@pytest.fixture(scope="session")
def log():
    """A function that returns a folder's events, all of them valid, as (all, those of one name)."""

    def read(path):
        path = Path(path)
        reader = TelemetryReader(path if path.is_file() else path / "run.jsonl")
        events = list(reader)
        assert reader.issues == []
        return Log(events)

    return read


class Log(list):
    """Events, and ways to ask for some of them."""

    def of(self, name):
        return [event for event in self if event.__struct_config__.tag == name]

    @property
    def names(self):
        return [event.__struct_config__.tag for event in self]

    def kind(self, kind):
        return [event for event in self.of("metrics") if event.kind == kind]

    @property
    def steps(self):
        return [event.step for event in self.of("train_step")]
