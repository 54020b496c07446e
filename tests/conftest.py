"""Hypothesis profiles, shared fixtures, and the folder of data made by others."""

from __future__ import annotations

import atexit
import gc
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings


def _remove_cache(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not a fork of it
        shutil.rmtree(folder, ignore_errors=True)


# Set before numpy and torch are imported. Each worker has one core, so a second thread of BLAS or OpenMP would spin
# while it waits for a thread that the other worker delays. With two threads the tests of `resize` took three times the
# processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Kernels on a few dozen numbers take longer to compile than to run: so they take a third of the time (jaxlib 0.10.2).
# XLA aborts at a flag that it does not know, and only the first two are old.
_FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if metadata.version("jaxlib").startswith("0.10."):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # each program is compiled once for all workers and commands
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gradience-jax-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(_remove_cache, os.environ["JAX_COMPILATION_CACHE_DIR"], os.getpid())

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job begins so, and its children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

for name in ("COLUMNS", "LINES"):  # the width of the terminal that the tests were started from
    os.environ.pop(name, None)

settings.register_profile(
    "ci", max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("properties", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT / "tests") not in sys.path:  # tests are no package: this puts the modules of this folder within reach
    sys.path.insert(0, str(ROOT / "tests"))

import compiled_once  # noqa: E402  # found by the line above
import toy_run  # noqa: E402  # the same
from kept_signatures import keep_signatures  # noqa: E402  # the same
from warmed import Warmed  # noqa: E402  # the same

keep_signatures()
if find_spec("jinja2") is not None:
    compiled_once.install()

# In `nox -s oracles` each oracle must be there; elsewhere the tests that need one that is absent are left for it.
_MUST = "GRADIENCE_ORACLES" in os.environ
_WHOLE_FILE = re.compile(r'^pytestmark = pytest\.mark\.oracle\("(\w+)"\)', re.MULTILINE)


def _is_left_out(name: str) -> bool:
    return not _MUST and find_spec(name) is None


gc.set_threshold(20_000)  # at 700, a test in ten waits for a collection of some 100 000 objects that all live
gc.disable()  # until the first test: what is imported and collected before it stays
_FROZEN = {"modules": 0}  # how many modules there were when the collector last set aside all that lived


def pytest_ignore_collect(collection_path):
    """Leave out a file of which every test needs an oracle that is absent: it imports it."""
    if collection_path.name.startswith("test_") and collection_path.suffix == ".py":
        marked = _WHOLE_FILE.search(collection_path.read_text(encoding="utf-8"))
        return True if marked and _is_left_out(marked[1]) else None
    return None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Let one of two workers begin at the other end: in a fresh clone each compiles half of the files."""
    report = yield
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw1" and isinstance(collector, pytest.Directory):
        report.result.reverse()
    return report


def pytest_collection_modifyitems(config, items):
    """Leave out the slow tests, which `nox -s properties` runs, and those of absent oracles; begin with the longest.

    Two workers begin with half of the tests each. One of them makes the toy run first, and runs the tests of it: near
    the end it would keep one worker busy long after the other has done.
    """
    items.sort(key=lambda item: item.path)  # all workers need one order
    slow = set() if "GRADIENCE_SLOW" in os.environ else {item for item in items if item.get_closest_marker("slow")}
    oracles = {i for i in items if any(_is_left_out(name) for mark in i.iter_markers("oracle") for name in mark.args)}
    if left := slow | oracles:
        config.hook.pytest_deselected(items=[item for item in items if item in left])
        items[:] = [item for item in items if item not in left]
    toy = {item.path for item in items if "toy" in item.fixturenames}
    items.sort(key=lambda item: item.path not in toy)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    """Around each test, as one hook: a fixture of every test costs more.

    Objects of large imports are excluded from later garbage collections: each Trainer's end runs a full one. SIGINT and
    SIGTERM are restored: the program ignores both at its end, and commands started later inherit that.
    """
    if len(sys.modules) > _FROZEN["modules"] + 300:
        gc.freeze()
        gc.enable()
        _FROZEN["modules"] = len(sys.modules)
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    result = yield
    for number, handler in old.items():
        signal.signal(number, handler)
    return result


def pytest_unconfigure():
    """Let a worker end without JAX's own end, which takes thousands of compiled programs apart, one by one."""
    jax_api = sys.modules.get("jax._src.api")
    if "PYTEST_XDIST_WORKER" in os.environ and hasattr(jax_api, "clean_up"):
        atexit.unregister(jax_api.clean_up)


@pytest.fixture(scope="session")
def _new_folder(tmp_path_factory):
    """Makes a folder under a name and the next number."""
    parent, number = tmp_path_factory.mktemp("tests"), count()

    def make(name: str) -> Path:
        folder = parent / f"{name}{next(number)}"
        folder.mkdir(mode=0o700)
        return folder

    return make


@pytest.fixture
def tmp_path(_new_folder, request):
    """A folder of this test alone. To number it, pytest's own fixture lists the folders of all tests before it."""
    return _new_folder(re.sub(r"\W", "_", request.node.name)[:30])


@pytest.fixture(scope="session")
def warmed(tmp_path_factory):
    """Runs Python programs in forks of a process that has imported torch, transformers and PEFT."""
    for name in ("torch", "transformers", "peft"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install -e '.[hf]'")
    made = Warmed(tmp_path_factory.mktemp("programs"), _shared(tmp_path_factory))
    yield made
    made.close()


def _shared(tmp_path_factory) -> Path:
    """A folder that all workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def toy(root, tmp_path_factory, request):
    """Run the README's first command once for all workers, in a folder like a fresh clone; return both.

    Every network look-up and connection is refused, and named on stderr. Copy the folder before writing into it.
    """
    for name in ("torch", "transformers", "peft", "datasets"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install -e '.[hf]'")
    return toy_run.once(root, _shared(tmp_path_factory), lambda: request.getfixturevalue("warmed"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The clone."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real files made by others, which is not part of the clone."""
    folder = Path(os.environ.get("GRADIENCE_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("the real files of ../shared/data are not beside this clone")
    return folder


@pytest.fixture
def wait_a_tick() -> Callable[[Path], None]:
    """Return a function that waits until the file system, which counts time in steps, gives a change another time."""

    def wait(file: Path) -> None:
        probe = file.with_name("probe")
        while probe.write_bytes(b"") or probe.stat().st_ctime_ns <= file.stat().st_ctime_ns:
            time.sleep(0.001)
        probe.unlink()

    return wait
