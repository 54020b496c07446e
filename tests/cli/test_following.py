"""What is shown of a run that is followed: where it is, and how a terminal draws it."""

from __future__ import annotations

import io
import json
import os
from typing import Any

from tables import every

from gradience.reading.follow import LiveRun
from gradience.schema import SCHEMA_ID
from gradience.verbs.monitor import command as monitor
from gradience.verbs.monitor.view import progress_line


def test_the_progress_is_of_the_last_row():
    live = LiveRun()
    assert progress_line(live) == "step -"
    head = {"schema": SCHEMA_ID, "run_id": "r", "ts": 1.0}
    for event in (
        {"event": "run_start", "step": None, "config": {"model_name": "m", "training": {"max_steps": 9}}},
        {"event": "train_step", "step": 6, "loss": 3.0, "lr": 2e-4, "reward": 0.25},
        {"event": "train_step", "step": 7, "loss": 2.5, "lr": 1e-4, "reward": 0.5},
        {"event": "train_step", "step": 8, "loss": "NaN"},
        {"event": "eval", "split": "dev", "step": 6, "metrics": {"loss": 2.75}},
    ):
        live.add(json.dumps({**head, **event}).encode())
    live.add(b"no JSON")
    assert progress_line(live) == (
        "step 8 of 9  loss nan  reward 0.5  lr 1e-4  dev loss 2.75 @ 6  1 losses not finite  1 lines are not events"
    )


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
