"""Real runs of the real Trainer, each broken in one known way, made once; and what a diagnosis found."""

from __future__ import annotations

import importlib.util
import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TRAINING = HERE.parent / "hf" / "training.py"
SOURCES = HERE / "runs.py"


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def training():
    """The module with the tiny models and their Trainer."""
    pytest.importorskip("peft", reason="needs the hf extra: pip install -e '.[hf]'")
    pytest.importorskip("transformers", reason="needs the hf extra: pip install -e '.[hf]'")
    return load("hf_training", TRAINING)


@pytest.fixture(scope="session")
def trained(training, tmp_path_factory):
    """A function that returns the output folder of a run of this kind (see `runs.py`); do not write into it."""
    runs, made = load("diagnosed_runs", SOURCES), {}

    def run(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("diagnosed") / kind
            with redirect_stdout(io.StringIO()):  # the Trainer prints its losses: into what a test reads
                getattr(runs, kind)(training, folder)
            made[kind] = folder
        return made[kind]

    return run


@pytest.fixture(scope="session")
def cause_of():
    """A function that returns the one cause of this id; it fails where there is none, or more than one."""

    def find(report, rule_id):
        (cause,) = [cause for cause in report.findings if cause.id == rule_id]
        return cause

    return find
