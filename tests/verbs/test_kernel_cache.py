"""Compiled kernels are kept between runs, and whatever happens to the cache, the numbers are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json
from gradience.device import prepare_jax
prepare_jax("cpu")
import jax
counts = {"cache_hits": 0, "cache_misses": 0}
def listen(event, **_):
    counts.update({name: counts[name] + 1 for name in counts if event.endswith("/" + name)})
jax.monitoring.register_event_listener(listen)
from gradience.spectral.batch import spectrum_of
found = spectrum_of([2.0, 1.0, 1.0])
print(json.dumps([found.stable_rank, counts["cache_hits"], counts["cache_misses"]]))
"""


def started(home: Path, **settings: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment = inherited | {"XDG_CACHE_HOME": str(home), "HOME": str(home)} | settings
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=pipe, stderr=pipe, text=True)


def counted(process: subprocess.Popen[str]) -> tuple[int, int]:
    """The hits and misses of a process that ended well, said nothing and had the right number."""
    out, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    stable_rank, hits, misses = json.loads(out)
    assert stable_rank == 1.5
    return hits, misses


def entries(home: Path) -> list[Path]:
    return sorted(path for path in home.rglob("*-cache") if path.is_file())


def test_only_the_first_run_compiles_and_no_accident_to_the_cache_harms_a_run(tmp_path):
    home = tmp_path / "home"
    two = [started(home), started(home)]  # at once: each compiles, or finds what the other compiled
    for process in two:
        hits, misses = counted(process)
        assert hits + misses > 0
    kept = entries(home)
    assert kept
    hits, misses = counted(started(home))
    assert hits > 0
    assert misses == 0
    for path in kept:  # as a writer that was killed leaves it
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    hits, _ = counted(started(home))
    assert hits == 0


def test_the_cache_is_off_by_jax_s_own_setting_and_a_home_that_cannot_be_written_does_no_harm(tmp_path):
    home = tmp_path / "home"
    assert counted(started(home, JAX_ENABLE_COMPILATION_CACHE="false")) == (0, 0)
    assert not entries(tmp_path)
    unwritable = tmp_path / "file"
    unwritable.touch()  # no folder can be made in it, whoever runs the test
    other = tmp_path / "other"
    two = [started(unwritable / "home"), started(home, JAX_COMPILATION_CACHE_DIR=str(other))]
    assert [counted(process)[0] for process in two] == [0, 0]
    assert entries(other)
    assert not entries(home)
