"""On a terminal `monitor` draws the losses and `runs` a curve; not in a pipe, and not where TERM is dumb."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from gradience.blocks.plots import spark
from gradience.cli import main

RUN = Path(__file__).parents[1] / "golden" / "readme"
BRAILLE = {chr(code) for code in range(0x2801, 0x2900)}


class Screen(io.StringIO):
    """A terminal that keeps what is written to it."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def shown(monkeypatch):
    """A function that returns what a command prints on a terminal."""

    def run(*argv: str, term: str = "xterm", screen: type[io.StringIO] = Screen) -> str:
        out = screen()
        monkeypatch.setenv("TERM", term)
        monkeypatch.setenv("COLUMNS", "90")
        monkeypatch.setattr("sys.stdout", out)
        assert main.main(list(argv)) == 0
        return out.getvalue()

    return run


def test_monitor_draws_training_and_held_out_loss_where_it_can(shown):
    log = str(RUN / "run.jsonl")
    *_, first, last = shown("monitor", log).rstrip("\n").split("\n")
    assert first.split() == ["0", "240"]
    assert last.strip() == "training loss, o test loss"
    assert BRAILLE & {*shown("monitor", log)}
    for text in (shown("monitor", log, term="dumb"), shown("monitor", log, screen=io.StringIO)):
        assert not BRAILLE & {*text}
        assert "o test loss" not in text


def test_runs_draws_a_curve_of_each_run_where_it_can(shown, tmp_path, monkeypatch):
    pytest.importorskip("duckdb", reason="needs the extra fleet")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(RUN, tmp_path / "runs" / "toy")
    board = shown("runs", str(tmp_path / "runs"))
    head, row = (line for line in board.split("\n") if line.startswith(("run ", "toy ")))
    drawn = row[head.index("curve") :][:12]
    assert (drawn[0], set(drawn) - set("▁▂▃▄▅▆▇█")) == ("█", set())
    assert drawn[-1] in "▁▂"  # it learns
    assert "curve" not in shown("runs", str(tmp_path / "runs"), screen=io.StringIO)


def test_a_curve_is_as_high_as_its_values_lie():
    assert spark([0.0, 1.0, 7.0, float("nan"), 3.4], dots=True) == "▁▂█▄"
    assert spark([2.0, 2.0], dots=False) == "++"  # as if half-way
    assert spark([]) == ""
