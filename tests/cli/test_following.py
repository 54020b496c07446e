"""What is shown of a run that is followed: where it is, and how a terminal draws it."""

from __future__ import annotations

import io
import os
from types import SimpleNamespace
from typing import Any

from tables import every

from gradience.cli import monitor
from gradience.schema.events import ConfigSnapshot, TrainingSnapshot
from gradience.telemetry.series import Column, RunSeries


def watched(**fields: Any) -> Any:
    run = RunSeries("r")
    given = {"rate": None, "points": [], "evals": [], "rewards": [], "not_finite": 0, "bad_lines": 0}
    return SimpleNamespace(run=run, **{**given, **fields})


def test_a_glance_is_of_the_last_row():
    nothing = monitor._glance(watched())
    assert (nothing.loss, nothing.step, nothing.reward, nothing.max_steps) == (None, None, None, None)
    watch = watched(rewards=[(1, 0.5)], rate=1e-4, not_finite=2, bad_lines=3)
    watch.run.losses.extend([3.0, 2.5])
    watch.run.last_step = 7
    watch.run.config = ConfigSnapshot(model_name="m", training=TrainingSnapshot(max_steps=9))
    column = Column()
    column.extend([1, 2], [0.25, 0.5])
    watch.run.columns["reward"] = column
    found = monitor._glance(watch)
    assert (found.loss, found.step, found.max_steps, found.model, found.reward) == (2.5, 7, 9, "m", 0.5)
    assert (found.rate, found.not_finite, found.bad_lines) == (1e-4, 2, 3)


@every(
    ("columns", "rows", "width", "height"),
    [(80, 40, 79, 12), (300, 17, 100, 7), (101, 5, 100, 3), (60, 13, 59, 3), (60, 22, 59, 12)],
)
@every(("encoding", "dots"), [("utf-8", True), ("UTF-8", True), ("ascii", False)])
def test_a_frame_fits_the_terminal(monkeypatch, columns, rows, width, height, encoding, dots):
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(monitor.shutil, "get_terminal_size", lambda: os.terminal_size((columns, rows)))
    monkeypatch.setattr(monitor.sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    monkeypatch.setattr(monitor, "frame_lines", lambda _, **asked: drawn.append(asked) or ["a", "b"])
    written: list[tuple[list[str], str]] = []
    monkeypatch.setattr(monitor, "_write", lambda lines, back="": written.append((lines, back)))
    terminal = monitor._Terminal()
    terminal.show(None)  # type: ignore[arg-type]  # drawn by the stand-in
    terminal.show(None)  # type: ignore[arg-type]  # the same
    assert drawn == [{"width": width, "height": height, "dots": dots}] * 2
    assert written == [(["a", "b"], ""), (["a", "b"], "\x1b[2F\x1b[J")]
