"""Compiled kernels are kept between runs, and whatever happens to the cache, the numbers are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = """
import json, os, pathlib, sys
import jax  # which starts no backend: each fork sets itself up as a run does

def run():
    from gradience.device import prepare_jax
    prepare_jax("cpu")
    counts = {"cache_hits": 0, "cache_misses": 0}
    def listen(event, **_):
        counts.update({name: counts[name] + 1 for name in counts if event.endswith("/" + name)})
    jax.monitoring.register_event_listener(listen)
    from gradience.spectral.batch import spectrum_of
    found = spectrum_of([2.0, 1.0, 1.0])
    return [found.stable_rank, counts["cache_hits"], counts["cache_misses"]]

def started(home):
    read, write = os.pipe()
    if not (pid := os.fork()):
        os.environ.update(XDG_CACHE_HOME=home, HOME=home)
        os.write(write, json.dumps(run()).encode())
        os._exit(0)
    os.close(write)
    return pid, read

def ended(pid, read):
    assert os.waitpid(pid, 0)[1] == 0
    return json.loads(os.read(read, 1000))

def entries(home):
    return sorted(path for path in pathlib.Path(home).rglob("*-cache") if path.is_file())
"""
ALL = """
home, unwritable = sys.argv[1:]
two = [ended(*one) for one in [started(home), started(home)]]  # at once: each compiles, or finds it compiled
kept = entries(home)
third = ended(*started(home))
for path in kept:  # as a writer that was killed leaves it
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
print(json.dumps([two, len(kept), third, ended(*started(home)), ended(*started(unwritable))]))
"""
ONE = "print(json.dumps(run()))"


def said(code: str, home: Path, *arguments: Path, **settings: str) -> Any:
    """What an interpreter printed that ended well and said nothing else."""
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment = inherited | {"XDG_CACHE_HOME": str(home), "HOME": str(home)} | settings
    argv = [sys.executable, "-c", PROGRAM + code, *map(str, arguments)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def entries(home: Path) -> list[Path]:
    return sorted(path for path in home.rglob("*-cache") if path.is_file())


def test_only_the_first_run_compiles_and_no_accident_to_the_cache_harms_a_run(tmp_path):
    """Nor does a home that cannot be written."""
    unwritable = tmp_path / "file"
    unwritable.touch()  # no folder can be made in it, whoever runs the test
    home = tmp_path / "home"
    two, kept, third, damaged, nowhere = said(ALL, home, home, unwritable / "home")
    assert {rank for rank, *_ in (*two, third, damaged, nowhere)} == {1.5}
    assert all(hits + misses > 0 for _, hits, misses in two)
    assert kept > 0
    assert third[1] > 0
    assert third[2] == 0
    assert (damaged[1], nowhere[1]) == (0, 0)


def test_the_cache_is_elsewhere_by_jax_s_own_setting(tmp_path):
    home, other = tmp_path / "home", tmp_path / "other"
    assert said(ONE, home, JAX_COMPILATION_CACHE_DIR=str(other))[:2] == [1.5, 0]
    assert entries(other)
    assert not entries(home)
