"""Measure the recorder's claims in one run: ``python benchmarks/telemetry.py [--events N]``.

* ``summarize`` and ``validate``, compared with msgspec's decoding of the same file, line by line.
* Writing: events per second without fsync, and microseconds per event with the extras that a trainer logs.
* Redaction: how much of the two corpora in ``tests/corpus.py`` is caught, and how much is left unchanged.
* ``--peer-python PATH``: a Python with ``gradience==0.11.0`` that reads the same file.

Every time is the least of several runs. The runs are interleaved, so that a busy machine affects all alike.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from gradience.schema.events import Event
from gradience.telemetry import TelemetryWriter
from gradience.telemetry.reader import summarize, validate_log
from gradience.telemetry.redact import redact_text

CORPUS = Path(__file__).parents[1] / "tests"


def make_log(path: Path, events: int) -> None:
    """Write a log of the schema's rows as another program would, with two evaluations at every tenth row."""
    head = {"schema": "gradience.vnext.telemetry/v1", "run_id": "r-1"}
    with path.open("w", encoding="utf-8") as file:

        def put(event: str, step: int | None, **body: object) -> None:
            file.write(json.dumps({**head, "ts": 1.7e9 + (step or 0), "event": event, "step": step, **body}) + "\n")

        put("run_start", None, config={"model_name": "m", "optimizer": {"lr": 2e-4}, "lora": {"r": 8, "alpha": 16}})
        for step in range(1, events + 1):
            loss = 2 * math.exp(-step / events) + 0.01 * math.sin(step)
            put("train_step", step, loss=loss, lr=2e-4, grad_norm=1.0)
            if step % max(events // 10, 1) == 0:
                for split in ("train", "test"):
                    put("eval", step, split=split, metrics={"loss": 0.7, "ppl": 2.0, "accuracy": 0.6, "n": 256})
        put("run_end", None, status="ok")


def decode_lines(path: Path) -> None:
    decode = msgspec.json.Decoder(Event).decode
    with path.open("rb") as file:
        for line in file:
            decode(line)


def least(rounds: int, **calls: Callable[[], object]) -> dict[str, float]:
    """Return the least processor time of each call in seconds, over interleaved rounds."""
    best = dict.fromkeys(calls, math.inf)
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - start)
    return best


def read(path: Path, rounds: int) -> None:
    best = least(
        rounds,
        decode=lambda: decode_lines(path),
        summarize=lambda: summarize(path),
        validate=lambda: validate_log(path),
    )
    print(f"read {path.stat().st_size / 1e6:.0f} MB, {rounds} rounds, processor time:")
    for name, seconds in best.items():
        print(f"  {name:<10} {seconds:6.3f} s   {seconds / best['decode']:.2f}x msgspec's decoder, line by line")


def memory(path: Path) -> None:
    """Print the peak memory of a fresh process that summarises the log."""
    code = "import sys; from gradience.telemetry import TelemetryReader; TelemetryReader(sys.argv[1]).summarize()"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    peak = max(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, before)
    print(f"  summarize  {peak / 1024:6.0f} MB resident at most, interpreter included")


def write(folder: Path, events: int, rounds: int) -> None:
    def rows(**extras: float) -> None:
        with (
            tempfile.TemporaryDirectory(dir=folder) as place,
            TelemetryWriter(f"{place}/run.jsonl", fsync="never") as log,
        ):
            for step in range(events):
                log.train_step(step, loss=1.234, lr=2e-4, grad_norm=0.5, **extras)

    best = least(rounds, plain=rows, extras=lambda: rows(num_tokens=1234.0, mean_token_accuracy=0.5, entropy=0.4))
    print(f"write {events} events without fsync, {rounds} rounds, processor time:")
    for name, seconds in best.items():
        print(f"  {name:<10} {events / seconds:9,.0f} events/s   {1e6 * seconds / events:.1f} us an event")


def redaction() -> None:
    sys.path.insert(0, str(CORPUS))
    from corpus import INNOCENTS, SECRETS  # beside the tests that use it

    caught = sum(core not in redact_text(value, key=key) for key, value, core in SECRETS)
    untouched = sum(redact_text(value, key=key) == value for key, value in INNOCENTS)
    print("redaction, on the corpora of tests/corpus.py:")
    print(f"  secrets    {caught} of {len(SECRETS)} caught")
    print(f"  innocents  {untouched} of {len(INNOCENTS)} untouched")


PEER = """
import sys, time
from gradience.vnext.telemetry_reader import TelemetryReader
start = time.process_time()
TelemetryReader(sys.argv[1]).summarize()
print(time.process_time() - start)
"""


def peer(python: str, path: Path) -> None:
    done = subprocess.run([python, "-c", PEER, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  peer       could not read it: {done.stderr.strip().splitlines()[-1]}")
        return
    ours = least(1, summarize=lambda: summarize(path))["summarize"]
    print(f"  peer       {float(done.stdout):6.3f} s   {float(done.stdout) / ours:.0f}x the time of ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--log", type=Path, help="read this log instead of a new one")
    parser.add_argument("--peer-python", help="a Python that has gradience==0.11.0")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        log = options.log or Path(place) / "run.jsonl"
        if options.log is None:
            make_log(log, options.events)
        read(log, options.rounds)
        memory(log)
        if options.peer_python:
            peer(options.peer_python, log)
        write(Path(place), max(options.events // 5, 1000), options.rounds)
    redaction()


if __name__ == "__main__":
    main()
