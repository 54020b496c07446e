"""A log is followed whatever happens to it: late, torn, cut, replaced; until its run ends."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import time

import pytest
from hypothesis import given, strategies as st
from logs import falling, record

from gradience.cli.main import main
from gradience.errors import SchemaError
from gradience.reading.follow import LiveRun, Tail, thinned
from gradience.telemetry import TelemetryWriter
from gradience.telemetry.codec import MAX_LINE_BYTES
from gradience.verbs.monitor.command import follow_log, log_to_follow
from gradience.verbs.monitor.view import frame_lines

COMMAND = [sys.executable, "-m", "gradience", "monitor"]
DEADLINE_S = 300.0  # of what must come at all: a busy machine takes its time, and no claim here is about speed


@pytest.fixture
def lines(tmp_path):
    """The lines of a finished run."""
    return record(tmp_path / "whole.jsonl", evals=[(20, 1.5), (40, 1.2)]).read_bytes().splitlines(keepends=True)


class Steps:
    """Stands for the wait between two looks: each look finds what the next step did to the log."""

    def __init__(self, *steps):
        self.steps = list(steps)

    def __call__(self, seconds):
        assert seconds > 0
        if not self.steps:
            raise KeyboardInterrupt
        self.steps.pop(0)()


def append(path, data):
    def step():
        with path.open("ab") as file:
            file.write(data)

    return step


# --- the tail ----------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=30), max_size=12), st.data())
def test_a_file_that_grows_byte_by_byte_gives_its_whole_lines_once(tmp_path_factory, pieces, data):
    whole = b"".join(pieces)
    path = tmp_path_factory.mktemp("tail") / "log"
    seen: list[bytes] = []
    with Tail(path) as tail:
        while whole:
            cut = data.draw(st.integers(1, len(whole)))
            append(path, whole[:cut])()
            whole = whole[cut:]
            seen += tail.poll()
    assert tail.restarts == 0
    assert seen == [line for line in b"".join(pieces).split(b"\n")[:-1] if line.strip()]


def test_what_was_written_before_a_rotation_is_not_lost(tmp_path):
    path, old = tmp_path / "log", tmp_path / "log.1"
    path.write_bytes(b"one\n")
    with Tail(path) as tail:
        assert list(tail.poll()) == [b"one"]
        append(path, b"two\n")()
        path.rename(old)
        path.write_bytes(b"three\n")
        assert list(tail.poll()) == [b"two", b"three"]


def test_a_line_of_64_kib_comes_and_one_byte_more_does_not_however_it_is_read(tmp_path):
    path = tmp_path / "log"
    longest = b"x" * MAX_LINE_BYTES
    with Tail(path) as tail:
        append(path, longest + b"\n" + longest + b"x\nnext\n")()
        assert list(tail.poll()) == [longest, b"next"]
        append(path, longest)()
        assert list(tail.poll()) == []
        append(path, b"\n")()
        assert list(tail.poll()) == [longest]


# --- what is watched ---------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000))
def test_a_curve_of_any_length_keeps_the_mean_of_its_rows_in_at_most_512_points(values):
    pairs = thinned(range(len(values)), values)
    width = pairs[0][0] + 1
    assert len(pairs) == math.ceil(len(values) / width) <= 512
    assert width == 1 or len(values) / width > 256
    for point, (step, mean) in enumerate(pairs):
        held = values[point * width : (point + 1) * width]
        assert step == point * width + len(held) - 1
        assert mean == pytest.approx(math.fsum(held) / len(held), abs=1e-6)


def test_values_that_are_not_finite_are_left_out_of_a_curve_and_counted(tmp_path):
    assert thinned([1, 2, 3, 4], [1.0, math.nan, math.inf, 3.0]) == [(1, 1.0), (4, 3.0)]
    watch = LiveRun()
    for line in record(tmp_path / "nan.jsonl", [1.0, math.nan, math.inf, -math.inf]).read_bytes().splitlines():
        watch.add(line)
    assert watch.not_finite == 3


def test_a_resume_takes_back_what_lay_beyond_it(lines):
    watch = LiveRun()
    for line in lines[:-1]:
        watch.add(line)
    start = json.loads(lines[0]) | {"resumed_from_step": 25}
    watch.add(json.dumps(start).encode())
    assert watch.run.last_step == 25
    assert max(step for step, _ in watch.points) == 25
    assert [step for _, step, _ in watch.evals] == [20]


def test_under_rl_the_reward_is_drawn_and_not_the_loss(tmp_path):
    rows = {step: {"reward": 0.5 + step / 100} for step in range(1, 41)}
    watch = LiveRun()
    for line in record(tmp_path / "rl.jsonl", [0.0001] * 40, rows=rows).read_bytes().splitlines():
        watch.add(line)
    assert watch.rewards[-1] == (40, 0.9)
    frame = frame_lines(watch, dots=False)
    assert frame[-1].strip() == "reward"
    assert "reward 0.9" in frame[1]
    assert frame[2].strip().startswith("0.9 |")


def test_damaged_lines_are_counted_and_watching_goes_on(lines):
    watch = LiveRun()
    for line in (lines[0], b"{torn", b'{"event": 1}', lines[1]):
        watch.add(line)
    assert (watch.bad_lines, watch.run.last_step) == (2, 1)


def test_a_log_of_another_major_version_is_refused_instead_of_waiting_for_ever(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text('{"schema":"gradience.vnext.telemetry/v2","event":"run_start"}\n')
    with pytest.raises(SchemaError, match="v2"):
        follow_log(path, quiet=True, sleep=Steps())


# --- following ---------------------------------------------------------------------------------------------------


def test_following_ends_with_the_run_and_prints_each_evaluation(tmp_path, lines, capsys):
    path = tmp_path / "run.jsonl"
    steps = Steps(append(path, b"".join(lines[:15])), append(path, lines[15][:9]), append(path, lines[15][9:]))
    steps.steps += [append(path, b"".join(lines[16:]))]
    assert follow_log(path, sleep=steps) is True
    out = capsys.readouterr().out
    assert out.startswith(f"waiting for {path}\n")
    assert "evaluation at step 20  loss 1.5" in out
    assert "step 15 of 40  loss " in out
    assert "lines are not events" not in out
    assert "\x1b" not in out


def test_a_step_is_printed_once_though_other_events_follow_at_it(tmp_path, capsys):
    path = tmp_path / "run.jsonl"
    with TelemetryWriter(path) as log:
        log.run_start({"model_name": "m"})
        others = [
            lambda: log.eval(1, split="eval", metrics={"loss": 0.5}),
            lambda: log.metrics(1, kind="a", metrics={}),
        ]
        later = [lambda: log.train_step(2, loss=1.0), lambda: log.run_end("ok")]
        assert follow_log(path, sleep=Steps(lambda: log.train_step(1, loss=1.0), *others, *later)) is True
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in rows] == ["-", "1", "2"]


def test_a_log_written_anew_is_followed_from_its_beginning(tmp_path, lines, capsys):
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"".join(lines[:30]))
    other = record(tmp_path / "other.jsonl", falling(12), run_id="other").read_bytes()
    assert follow_log(path, sleep=Steps(lambda: path.write_bytes(other))) is True
    assert "step 12 of 12" in capsys.readouterr().out.splitlines()[-1]


def test_the_end_of_an_earlier_run_in_the_log_is_not_the_end(tmp_path, lines):
    path = record(tmp_path / "run.jsonl", run_id="first")
    record(path, run_id="second", end=None)
    assert follow_log(path, quiet=True, sleep=Steps()) is False


def test_a_folder_is_followed_by_its_log_even_before_either_exists(tmp_path):
    assert log_to_follow(tmp_path) == tmp_path / "run.jsonl"
    assert log_to_follow(tmp_path / "new") == tmp_path / "new" / "run.jsonl"
    assert log_to_follow(tmp_path / "new.jsonl") == tmp_path / "new.jsonl"


def test_the_report_follows_the_last_line_and_fail_on_counts(tmp_path, capsys):
    path = record(tmp_path / "run.jsonl")
    assert main(["monitor", str(path), "--follow", "--fail-on", "warning"]) == 0
    out = capsys.readouterr().out
    assert out.index("step 40 of 40") < out.index("GRADIENCE MONITOR")


def test_a_quiet_follower_says_on_stderr_that_it_waits(tmp_path, lines, capsys):
    path = tmp_path / "run.jsonl"
    assert follow_log(path, quiet=True, sleep=Steps(lambda: None, append(path, b"".join(lines)))) is True
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"gradience: waiting for {path}\n")


def test_ctrl_c_ends_a_follower_in_one_line(tmp_path, capsys):
    assert follow_log(record(tmp_path / "run.jsonl", end=None), sleep=Steps()) is False
    said = capsys.readouterr()
    assert "step 40" in said.out
    assert said.err == "gradience: stopped watching; the run itself goes on\n"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_a_terminal_gets_a_curve_that_is_redrawn_in_place(tmp_path, lines, monkeypatch):
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"".join(lines[:30]))
    monkeypatch.setattr("sys.stdout", screen := Terminal())
    assert follow_log(path, sleep=Steps(append(path, b"".join(lines[30:])))) is True
    first, again = screen.getvalue().split("\x1b[", 1)
    height = first.count("\n")
    assert again.startswith(f"{height}F\x1b[J")
    for frame, step in ((first, "step 28 of 40"), (again, "step 40 of 40")):
        assert step in frame
        assert "training loss, o held-out loss" in frame


def wait_for(condition):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow  # two interpreters; what is followed is seen above in this process
def test_a_process_that_writes_is_followed_by_another_to_its_end(tmp_path):
    path, out = tmp_path / "runs" / "run.jsonl", tmp_path / "out"
    script = (
        "import sys, pathlib\n"
        "from gradience import TelemetryWriter\n"
        "path = pathlib.Path(sys.argv[1]); path.parent.mkdir()\n"
        "with TelemetryWriter(path) as log:\n"
        "    log.run_start()\n"
        "    log.train_step(1, loss=1.0)\n"
        "    sys.stdin.read()\n"  # until the follower has seen the run begin
        "    for step in range(2, 31):\n"
        "        log.train_step(step, loss=1 / step)\n"
    )
    with out.open("wb") as file:
        watcher = subprocess.Popen([*COMMAND, str(path.parent), "-f"], stdout=file, stderr=subprocess.PIPE)
    wait_for(lambda: b"waiting for" in out.read_bytes())
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE)
    wait_for(lambda: b"step 1 " in out.read_bytes())
    writer.communicate(timeout=DEADLINE_S)
    _, errors = watcher.communicate(timeout=DEADLINE_S)
    assert (writer.returncode, watcher.returncode, errors) == (0, 0, b"")
    text = out.read_text()
    assert "ends: ok" in text
    assert "Rows:    30" in text
