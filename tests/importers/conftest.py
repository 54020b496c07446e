"""Small runs of other programs, written as those programs write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradience.importers import read_source


def row(step, loss=None, **more):
    """Return one row of a `log_history`."""
    known = {} if loss is None else {"loss": loss, "learning_rate": 1e-4, "grad_norm": 1.0}
    return {"epoch": step / 10, "step": step, **known, **more}


@pytest.fixture(scope="session")
def rows():
    """A function that returns training rows at the steps, their losses falling with the step."""
    return lambda steps, scale=1.0, **more: [row(step, scale / step, **more) for step in steps]


@pytest.fixture(scope="session")
def write_state():
    """A function that writes a trainer_state.json, and returns its path."""

    def write(folder, history, **top):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        steps = [r["step"] for r in history if isinstance(r, dict) and isinstance(r.get("step"), int)]
        state = {"global_step": max(steps, default=0), "max_steps": 100, "log_history": history, **top}
        path = folder / "trainer_state.json"
        path.write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def write_lines():
    """A function that writes one JSON object a line, and returns the path."""

    def write(path, objects):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{json.dumps(o)}\n" for o in objects), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def import_events():
    """A function that imports a source and returns (the run to show, as a RunEvents, and the import)."""

    def read(source, **options):
        imported = read_source(Path(source), **options)
        return RunEvents(imported.runs[-1].events), imported

    return read


class RunEvents(list):
    """The events of a run, and ways to ask for some of them."""

    def of(self, name):
        return [event for event in self if event.__struct_config__.tag == name]

    @property
    def steps(self):
        return [event.step for event in self.of("train_step")]

    @property
    def losses(self):
        return [event.loss for event in self.of("train_step")]

    @property
    def start(self):
        return self.of("run_start")[0]

    @property
    def end(self):
        return self[-1]
