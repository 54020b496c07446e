"""Runs that are killed, broken, interrupted or shared: real processes, real signals."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gradience.telemetry import TelemetryReader

PROGRAM = Path(__file__).with_name("training.py")


QUIET = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def free_port():
    """Return a port that nobody listens on and that the kernel gives to no connection, another one in each worker."""
    for port in range(20_000 + 4 * (os.getpid() % 3000), 32_768):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    pytest.skip("no port is free")


@pytest.fixture(scope="module")
def program(training, warmed):
    """A function that runs the training program in a process of its own."""
    return lambda *arguments: warmed.run(PROGRAM, *map(str, arguments), **QUIET)


@pytest.fixture(scope="module")
def ranks(training, warmed):
    """A function that runs a script in two processes that find each other, as a launcher starts them."""

    def run(script, *arguments):
        shared = {**QUIET, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        shared["MASTER_PORT"] = str(free_port())
        own = [{"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
        started = [warmed.start(script, *map(str, arguments), **shared, **one) for one in own]
        return [program.wait() for program in started]

    return run


@pytest.fixture(scope="module")
def killed(program, tmp_path_factory):
    """A folder left by a run that SIGKILL ended at step 8, three steps after its checkpoint."""
    out = tmp_path_factory.mktemp("killed")
    done = program(out, "--act", "kill")
    assert done.returncode == -signal.SIGKILL, done.stderr
    return out


def test_a_killed_run_keeps_every_row_and_has_no_end(killed, log):
    events = log(killed)
    assert events.steps == [1, 2, 3, 4, 5, 6, 7]
    assert events.of("run_end") == []


def test_a_resumed_run_goes_on_under_its_id_and_nothing_is_deleted(killed, training, callback, log):
    before = (killed / "run.jsonl").read_bytes()
    log_before = log(killed)
    given = {"save_strategy": "steps", "save_steps": 5, "max_steps": 12}
    training.trainer(killed, callback(), **given).train(resume_from_checkpoint=True)
    after = (killed / "run.jsonl").read_bytes()
    events = log(killed)
    assert after.startswith(before)
    assert {e.run_id for e in events} == {log_before[0].run_id}
    assert len({e.session for e in events}) == 2
    assert [e.resumed_from_step for e in events.of("run_start")] == [None, 5]
    assert events.steps == [1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9, 10, 11, 12]
    assert events[-1].status == "ok"
    run = TelemetryReader(killed / "run.jsonl").summarize().last
    assert (list(run.steps), run.superseded) == (list(range(1, 13)), 2)


def test_an_exception_that_ends_the_program_is_recorded(program, log, tmp_path):
    done = program(tmp_path, "--act", "break")
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: the text of an exception may hold a prompt")
    (end,) = log(tmp_path).of("run_end")
    assert (end.status, end.reason) == ("error", "ValueError")


def test_a_program_that_leaves_on_sigterm_by_sys_exit_has_its_end_recorded(training, warmed, log, tmp_path):
    done = warmed.run(PROGRAM, tmp_path, "--act", "terminate-in-order", taken_apart=True, **QUIET)  # an end of its own
    assert done.returncode == 143, done.stderr
    (end,) = log(tmp_path).of("run_end")
    assert (end.status, end.reason) == ("aborted", "training was left before its end")


def test_no_signal_handler_and_no_hook_is_installed(training, callback, tmp_path):
    def held():
        handlers = {name: signal.getsignal(name) for name in signal.valid_signals()}
        return handlers, sys.excepthook, sys.unraisablehook, threading.excepthook

    before, seen = held(), []
    training.trainer(tmp_path, callback(), training.At(3, lambda _model: seen.append(held())), max_steps=4).train()
    assert seen == [before]
    assert held() == before


def test_of_two_processes_one_writes(ranks, log, tmp_path):
    ended = ranks(PROGRAM, tmp_path, "--steps", 6)
    assert [done.returncode for done in ended] == [0, 0], [done.stderr for done in ended]
    events = log(tmp_path)
    assert events.names.count("run_start") == 1
    assert events[0].config.training.world_size == 2
    assert events.steps == [1, 2, 3, 4, 5, 6]
    assert [(e.split, e.step, e.metrics.n) for e in events.of("eval")] == [("eval", 4, 8), ("eval", 6, 8)]
    assert len({e.session for e in events}) == 1
    assert [p.name for p in tmp_path.glob("*.jsonl")] == ["run.jsonl"]


def test_a_sharded_model_is_recorded_and_not_probed_and_none_waits(ranks, log, tmp_path):
    ended = ranks(PROGRAM.with_name("sharded.py"), tmp_path)
    assert [done.returncode for done in ended] == [0, 0], [done.stderr for done in ended]
    events = log(tmp_path)
    assert (events.names[0], events[-1].status, events[-1].reason) == ("run_start", "ok", None)
    assert events[0].config.lora.r == 4
    assert events.steps == [1, 2, 3]
    (probed,) = events.kind("spectral")
    assert probed.metrics["not_analysed"] == "no whole LoRA factors here"


def test_the_package_imports_without_torch():
    code = "import gradience.hf, sys; print({'torch', 'transformers', 'jax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()"
