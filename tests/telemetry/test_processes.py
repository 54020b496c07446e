"""Real processes: killed, side by side, on a full disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from gradience.schema import BadLine, RunStart
from gradience.telemetry import TelemetryReader

HERE = Path(__file__).parent
KILLS = 200 if os.environ.get("GRADIENCE_SLOW") else 10

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")


def python(script: str, *args: object) -> list[str]:
    return [sys.executable, str(HERE / script), *map(str, args)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A log that many writers were killed in, and what each had written."""
    log = tmp_path_factory.mktemp("killed") / "run.jsonl"
    out = subprocess.run(python("kill_writers.py", log, KILLS, 7), check=True, capture_output=True, text=True).stdout
    return log, json.loads(out)


def test_every_event_whose_write_returned_before_a_sigkill_is_in_the_log(killed) -> None:
    log, children = killed
    found = Counter()
    for event in TelemetryReader(log):
        found[event.session] += 1
    assert sum(written for _, written in children) > KILLS
    missing = [(session, written, found[session]) for session, written in children if found[session] < written]
    assert missing == []


def test_a_sigkill_tears_at_most_one_line_which_the_next_open_repairs_and_the_reader_names(killed) -> None:
    log, _ = killed
    items = list(TelemetryReader(log).read())
    after = [now for before, now in pairwise(items) if isinstance(before, BadLine)]
    assert all(isinstance(item, RunStart) for item in after)
    bad = [item for item in items if isinstance(item, BadLine)]
    assert all(item.torn and item.reason.startswith("torn tail") for item in bad)
    assert len(bad) <= KILLS


def test_events_before_a_kill_are_numbered_without_gaps(killed) -> None:
    log, _ = killed
    run = TelemetryReader(log).summarize().last
    assert run is not None
    assert run.record.missing == run.record.duplicates == run.record.interleaved == 0


def start(log: Path, n: int) -> subprocess.Popen[str]:
    return subprocess.Popen(python("write_events.py", log, n), stdin=-1, stdout=-1, text=True)


def test_six_writers_and_two_on_one_path_interleave_no_line_and_the_second_writes_a_sibling(tmp_path: Path) -> None:
    logs = [tmp_path / f"{i}.jsonl" for i in range(6)] + [tmp_path / "both.jsonl"] * 2
    writers = [start(log, 400) for log in logs]
    said = [writer.stdout.readline().rstrip("\n").split("\t") for writer in writers]
    for writer in writers:
        writer.communicate("go\n", timeout=300)
        assert writer.returncode == 0
    paths = [Path(first) for first, *_ in said]
    assert len(set(paths)) == 8
    for path in paths:
        summary = TelemetryReader(path).summarize()
        assert summary.issues == []
        assert summary.counts == {"run_start": 1, "train_step": 400, "run_end": 1}
    warned = [(path, warnings) for path, *warnings in said if warnings]
    assert len(warned) == 1
    path, (warning,) = warned[0]
    assert warning.endswith(f"is being written by another process; this run is recorded in {path}")
    assert Path(path).name.startswith("both.")


def full(log: Path, *limit: int) -> dict[str, object]:
    done = subprocess.run(python("fill_disk.py", log, *limit), capture_output=True, text=True, timeout=300, check=False)
    assert done.stderr == ""
    return json.loads(done.stdout)


def assert_survived(log: Path, told: dict[str, object]) -> None:
    summary = TelemetryReader(log).summarize()
    counts = dict(summary.counts)
    whole = counts.pop("train_step") - told["written"] - 1  # 1 where the disk ended before the line's newline alone
    assert whole in {0, 1}
    assert counts == {"run_start": 1, "run_end": 1}
    assert summary.issues_total == (told["torn"] and not whole)
    run = summary.last
    assert (run.record.missing, told["lost"]) == (1 - whole, 1)
    assert run.end.reason == "1 events could not be recorded"


def test_a_file_size_limit_raises_and_the_next_event_starts_on_a_fresh_line(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    told = full(log, 30_001)
    assert told["error"] == f"cannot write {log}: File too large (free space, or choose another path)"
    assert told["torn"]
    assert_survived(log, told)


def test_a_full_disk_raises_and_the_log_goes_on_when_there_is_room(tmp_path: Path) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
    try:
        log = mount / "run.jsonl"
        told = full(log)
        assert told["error"] == f"cannot write {log}: No space left on device (free space, or choose another path)"
        assert_survived(log, told)
    finally:
        subprocess.run(["umount", str(mount)], check=True)
