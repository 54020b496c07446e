"""Rows 4 and 5, the recorder: no value holds training up, and what is lost is said."""

from __future__ import annotations

import pytest
from tables import grid

PRELUDE = """
import os, sys, warnings, shutil, time
from pathlib import Path
from gradience import TelemetryWriter
from gradience.errors import GradienceError
seen = []
warnings.showwarning = lambda message, *rest, **more: seen.append(str(message))
warnings.simplefilter("always")
"""

VALUES = {
    "a list that contains itself": "value = []; value.append(value)",
    "a list that contains itself twice": "value = []; value += [value, value]",
    "a dict that contains itself twice": "value = {}; value.update(a=value, b=value)",
    "a list and a dict that contain each other": "value = [{}, {}]; [d.update(a=value, b=value) for d in value]",
    "a mapping without end": (
        "from collections.abc import Mapping\n"
        "class Endless(Mapping):\n"
        "    def __getitem__(self, key): return 1\n"
        "    def __len__(self): return 1\n"
        "    def __iter__(self):\n"
        "        n = 0\n"
        "        while True:\n"
        "            n += 1\n"
        "            yield f'k{n}'\n"
        "value = Endless()"
    ),
    "an array of 2000 x 2000": "import numpy as np; value = np.broadcast_to(np.float32(1), (2000, 2000))",
    "an array of 10^9": "import numpy as np; value = np.broadcast_to(np.int8(1), (1000, 1000, 1000))",
    "an array of text": "import numpy as np; value = np.broadcast_to(np.array('x' * 50), (3000, 1000))",
    "lists of lists, each twice the last": "value = [1]\nfor _ in range(40): value = [value, value]",
    "a text of 50 MB": "value = 'a' * 50_000_000",
    "a number of 10^6 bits": "value = 1 << 1_000_000",
}


@grid(each=2, call=["train_step(1, x=value)", "metrics(1, kind='k', metrics={'x': value})"], case=VALUES)
def test_no_value_holds_training_up_or_fills_the_memory(run, case, call):
    told = run(
        limit_s=3,
        limit_mb=2000,
        python=f"""{PRELUDE}
writer = TelemetryWriter("run.jsonl", on_error="raise")
writer.run_start()
{VALUES[case]}
start = time.process_time()
try:
    writer.{call}
except GradienceError:
    assert writer.lost == 1
assert time.process_time() - start < 1
writer.train_step(2, loss=1.0)
writer.close()
""",
    )
    assert (told.code, told.err) == (0, "")
    assert told.memory_mb < (160 if "50 MB" in case else 60)


def test_a_pipe_as_the_log_does_not_hold_training_up(run):
    told = run(
        limit_s=3,
        python=f"""{PRELUDE}
os.mkfifo("pipe")
try:
    writer = TelemetryWriter("pipe", on_error="raise")
except GradienceError:
    sys.exit(0)
lost = 0
for step in range(3000):
    try:
        writer.train_step(step, loss=1.0)
    except GradienceError:
        lost += 1
assert writer.lost == lost > 0
""",
    )
    assert (told.code, told.err) == (0, "")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full", "/dev/random", "socket"])
def test_no_device_is_taken_for_a_log(run, path):
    told = run(
        limit_s=3,
        python=f"""{PRELUDE}
import socket
served = socket.socket(socket.AF_UNIX)
served.bind("socket")
try:
    TelemetryWriter({path!r}, on_error="raise")
except GradienceError as error:
    assert {path!r} in str(error)
    sys.exit(7)
""",
    )
    assert (told.code, told.err) == (7, "")


LOSSES = {
    "the folder is removed": "shutil.rmtree('runs')",
    "the log is removed": "os.unlink('runs/run.jsonl')",
    "another file takes the log's name": "Path('other').touch(); os.replace('other', 'runs/run.jsonl')",
    "the log is cut to nothing": "os.truncate('runs/run.jsonl', 0)",
}


@pytest.mark.parametrize("case", LOSSES)
def test_what_a_vanished_log_costs_is_said(run, case):
    told = run(
        python=f"""{PRELUDE}
writer = TelemetryWriter("runs/run.jsonl", fsync="always", on_error="raise")
writer.run_start()
writer.train_step(1, loss=1.0)
{LOSSES[case]}
said = 0
for step in range(2, 6):
    try:
        writer.train_step(step, loss=1.0)
    except GradienceError:
        said += 1
try:
    writer.close()
except GradienceError:
    said += 1
log = Path("runs/run.jsonl")
kept = log.read_text().count("train_step") if log.exists() else 0
assert kept == 5 or writer.lost or seen, (kept, said, writer.lost, seen)
""",
    )
    assert (told.code, told.err) == (0, "")
