"""A process that has collected every test, so that its children can run a mutant without any import.

The parent imports `gradience` from its own copy and lets pytest collect. A child replaces the code of the changed
function, and runs the collected tests. If the code ran before any test (a constant, a default, a function called at
import), that would change nothing. Then the child forgets `gradience` and the tests, and imports them again.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import itertools
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Final

import pytest
from mutant_children import copy_source, run_tests
from mutant_edits import Mutant

TESTS: Final = Path(__file__).resolve().parent
NO_TESTS: Final = 5  # pytest's exit code if it collects no test


class Chosen:
    """A pytest plugin that keeps only the chosen tests, in their order, and records those that fail."""

    def __init__(self, tests: Sequence[str], note: Path) -> None:
        self.files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
        self._order = {test: (self.files.index(test.partition("::")[0]), n) for n, test in enumerate(tests)}
        self._note = note
        self.failed = False
        note.write_text("", encoding="utf-8")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self._order), key=lambda i: self._order[i.nodeid])

    def place(self, test: str) -> tuple[int, int]:
        """The sort key of a test: the place of its file, then its own place."""
        return self._order[test]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = True
            with self._note.open("a", encoding="utf-8") as note:
                note.write(f"{report.nodeid}\n")


class Warm:
    """The collected tests by id, some of which can be run in a child."""

    def __init__(self, session: pytest.Session, home: Path, ran: set[CodeType]) -> None:
        self.items = {item.nodeid: item for item in session.items}
        self.home = home
        self._session, self._ran = session, ran
        self._live: dict[CodeType, list[FunctionType]] = defaultdict(list)
        for each in gc.get_objects():
            if type(each) is FunctionType and each.__code__.co_filename.startswith(str(home)):
                self._live[each.__code__].append(each)

    def put(self, mutant: Mutant, old: bytes, new: bytes) -> bool:
        """Replace a mutant's code, in a child; return whether that is enough for the tests to run the mutant."""
        file = str(self.home / "gradience" / mutant.path)
        pairs = [list(_codes(compile(text, file, "exec"))) for text in (old, new)]
        changed = {a: b for a, b in zip(*pairs, strict=False) if a != b}
        if len(pairs[0]) != len(pairs[1]) or changed.keys() & self._ran:
            return False
        live = [(function, after) for before, after in changed.items() for function in self._live.get(before, ())]
        if any(len(function.__code__.co_freevars) != len(after.co_freevars) for function, after in live):
            return False
        for function, after in live:
            function.__code__ = after
        return bool(live)

    def run(self, tests: Sequence[str], note: Path, slot: Path, *, stop: bool) -> int:
        """Run collected tests in a child; record those that fail; return pytest's exit code.

        Tests of one file run together, so that its shared fixtures are made once.
        """
        chosen = Chosen(tests, note)
        items = [self.items[test] for test in sorted(tests, key=chosen.place) if test in self.items]
        self.go(items, chosen, slot, stop=stop)
        return NO_TESTS if not items else int(chosen.failed)

    def go(self, items: Sequence[pytest.Item], plugin: Chosen | object, slot: Path, *, stop: bool) -> None:
        """Run items in a child with a plugin; if `stop`, only until the first failure."""
        config: Any = self._session.config
        config._tmp_path_factory._given_basetemp = slot / "tmp"  # a folder of the slot
        config._tmp_path_factory._basetemp = None
        config.pluginmanager.register(plugin)
        for item, following in itertools.zip_longest(items, items[1:]):
            config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if stop and getattr(plugin, "failed", False):
                break
        config.pluginmanager.unregister(plugin)

    def run_cold(self, slot: Path, tests: Sequence[str], note: Path, *options: str) -> int:
        """Forget `gradience` and the tests, in a child, and run the tests from the slot's source."""
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            if name.partition(".")[0] == "gradience" or (file.startswith(str(TESTS)) and "mutant" not in name):
                del sys.modules[name]
        sys.path[:] = [path for path in sys.path if path != str(self.home)]
        chosen = Chosen(tests, note)
        return run_tests(slot, chosen.files, chosen, *options)


def _codes(code: CodeType) -> Iterator[CodeType]:
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield const
            yield from _codes(const)


class _Collector:
    """A pytest plugin that runs another function instead of the collected tests."""

    def __init__(self, home: Path, instead: Callable[[Warm], None]) -> None:
        self._home, self._instead = home, instead
        self._ran: set[CodeType] = set()
        self._inside = str(home)

    def watch(self, frame: FrameType, _event: str, _: object) -> None:
        """Record each function of ours that is called. Lines are not traced."""
        if frame.f_code.co_filename.startswith(self._inside):
            self._ran.add(frame.f_code)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        sys.settrace(None)
        ran = {code for code in self._ran if code.co_flags & inspect.CO_OPTIMIZED}  # no bodies of modules or classes
        warm = Warm(session, self._home, ran)
        gc.collect()
        gc.freeze()  # so that the collector in a child does not touch, and thereby copy, shared pages
        self._instead(warm)
        return True


def collected(files: Sequence[str], paths: Iterable[str], instead: Callable[[Warm], None]) -> None:
    """Import the modules at the paths from a copy, let pytest collect the files, and call `instead` with the tests."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy_source(Path(folder))
        home = Path(folder) / "src"
        sys.path.insert(0, str(home))
        os.environ["PYTHONPATH"] = str(home)
        collector = _Collector(home, instead)
        sys.settrace(collector.watch)
        for path in paths:
            importlib.import_module(
                ".".join(("gradience", *Path(path).with_suffix("").parts)).removesuffix(".__init__")
            )
        quiet = ("-q", "-s", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
        pytest.main([*files, *quiet, "--tb=no", "--continue-on-collection-errors"], plugins=[collector])
