"""Record which test reaches which line of the source, under coverage, and choose the tests of each mutant.

The record is kept under `.cache/`. Every test file runs alone in a child, so that code which runs once per process
(because it is traced or cached) is recorded for every file. A file is recorded again if it, a conftest above it, or a
source file that it reached has changed. Code that runs at import, before any test, is found by name. For example, the
tests of a threshold are those that reach a line with its name, or with a name that is derived from it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import coverage
import pytest
from mutant_children import SOURCE, forked
from mutant_edits import Mutant, defined
from mutant_warm import Warm

ROOT: Final = Path(__file__).resolve().parents[1]
CACHE: Final = ROOT / ".cache" / "mutants"
CONTEXT: Final = "GRADIENCE_MUTANTS_TEST"  # names the running test to the processes that it starts
RECORDING: Final = 900.0  # seconds for one test file
_FAR: Final = 99  # steps
_NEAR: Final = 2 / 3  # share of a mutant's seconds for the nearest tests
_MOMENT: Final = 5.0  # seconds that a test may take which quotes the module without the mutant's name
_OF_THE_ROOM: Final = 2  # words that the paths of a test and a module of one room share; `py` is one


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Contexts:
    """Tells coverage which test runs. The lines of a shared fixture belong to every test that asks for it."""

    def __init__(self, measured: coverage.Coverage) -> None:
        self._measured, self._now = measured, ""
        self.seconds: dict[str, float] = {}
        self.failed = False
        self.unfit: set[str] = set()  # failed or skipped: they say nothing about a mutant
        self.sharing: dict[str, list[str]] = defaultdict(list)

    def _switch(self, context: str) -> str:
        before, self._now = self._now, context
        self._measured.switch_context(context)
        os.environ[CONTEXT] = context
        return before

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        for definition in (d for found in item._fixtureinfo.name2fixturedefs.values() for d in found):
            self.sharing[_fixture(definition)].append(item.nodeid)
        self._switch(item.nodeid)
        began = sum(os.times()[:4])  # processor time, with that of the processes that the test starts
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = sum(os.times()[:4]) - began

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        before = self._switch(self._now if fixturedef.scope == "function" else _fixture(fixturedef))
        try:
            return (yield)
        finally:
            self._switch(before)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.unfit.add(report.nodeid)
        self.failed = self.failed or report.failed


def _fixture(definition: Any) -> str:
    return f"{definition.baseid}#{definition.argname}"


def _record(test: str, slot: Path, warm: Warm) -> int:
    """Run one test file under coverage, and write the lines that its tests reach into the slot."""
    sources = [str(folder / "gradience") for folder in (warm.home, slot / "src")]  # here, and in commands
    config = (
        "[run]",
        f"data_file = {slot}/coverage",
        "parallel = true",
        f"source = {sources[1]}",
        "core = ctrace",
    )
    (slot / "rc").write_text("\n".join((*config, f"context = ${{{CONTEXT}}}")), encoding="utf-8")
    os.environ["COVERAGE_PROCESS_START"] = str(slot / "rc")  # for the commands that a test starts
    (slot / "src" / "sitecustomize.py").write_text("import coverage\ncoverage.process_startup()\n", encoding="utf-8")
    measured = coverage.Coverage(str(slot / "coverage"), source=sources, config_file=False, messages=False)
    measured.set_option("run:disable_warnings", ["no-data-collected"])  # by tests that judge what import has made
    contexts = Contexts(measured)
    measured.erase()
    measured.start()
    warm.go([item for name, item in warm.items.items() if name.partition("::")[0] == test], contexts, slot, stop=False)
    measured.stop()
    measured.save()
    measured.combine([str(slot)])
    fit = {name: round(contexts.seconds[name], 3) for name in contexts.seconds if name not in contexts.unfit}
    number = {name: n for n, name in enumerate(fit)}
    reached: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    data = measured.get_data()
    for file in data.measured_files():
        path = file.rpartition("/src/gradience/")[2]
        for line, found in data.contexts_by_lineno(file).items():
            tests = {name for context in found for name in contexts.sharing.get(context, [context])}
            if tests & fit.keys():
                reached[path][line].update(number[name] for name in tests & fit.keys())
    record = {"tests": fit, "failed": contexts.failed, "digests": {}}
    record["reached"] = {path: {line: sorted(x) for line, x in lines.items()} for path, lines in reached.items()}
    around = ((parent / "conftest.py").as_posix() for parent in Path(test).parents)
    files = (test, *around, *(f"src/gradience/{path}" for path in reached))
    record["digests"] = {file: _digest(file) for file in files}
    (slot / "record").write_text(json.dumps(record), encoding="utf-8")
    return 0


def _digest(file: str) -> str:
    return hashlib.sha256((ROOT / file).read_bytes()).hexdigest() if (ROOT / file).is_file() else ""


def _read_record(test: str) -> dict[str, Any] | None:
    file = CACHE / f"{test}.json"
    return json.loads(file.read_bytes()) if file.is_file() else None


def _is_current(record: Mapping[str, Any]) -> bool:
    return all(_digest(file) == digest for file, digest in record["digests"].items())


def recorded(tests: Sequence[str], workers: int, warm: Warm, *, again: bool) -> Reach:
    """Return the lines that the test files reach. Files that are new, or changed, or whose sources changed, are run."""
    known = {test: record for test in tests if (record := _read_record(test)) and not again}
    stale = [test for test in tests if test not in known or not _is_current(known[test])]

    def record(test: str, slot: Path) -> int:
        return _record(test, slot, warm)

    for number, (test, code, slot, seconds) in enumerate(forked(stale, workers, record, lambda _: RECORDING), 1):
        known.pop(test, None)
        if code == 0:
            (CACHE / f"{test}.json").parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(slot / "record", CACHE / f"{test}.json")
            known[test] = _read_record(test) or {}
        fault = "" if code == 0 and not known[test]["failed"] else "  <- has failures, and those tests are not used"
        if fault:
            shutil.copyfile(slot / "log", CACHE / "failed.log")
        say(f"recorded {number}/{len(stale)}: {test}, {seconds:.0f} s{fault}")
    return Reach(known.values())


class Reach:
    """The tests that reach each line, their durations, and the places where the source uses each name."""

    def __init__(self, records: Iterable[Mapping[str, Any]]) -> None:
        self.seconds: dict[str, float] = {}
        self._tests: dict[tuple[str, int], set[str]] = defaultdict(set)
        self._users: dict[str, set[tuple[str, int]]] = defaultdict(set)
        self._feeds: dict[str, set[str]] = defaultdict(set)
        self._inside: dict[tuple[str, int], str] = {}  # the function of a line
        self._once: set[str] = set()
        self._tables: dict[str, list[str]] = defaultdict(list)  # a module -> tests whose file quotes it
        self._importers: dict[str, set[str]] = defaultdict(set)
        self._fixtures: dict[str, float] = {}  # seconds of a file's shared fixtures, which its first test makes
        for record in records:
            self.seconds |= record["tests"]
            for name, seconds in list(record["tests"].items())[:1]:
                self._fixtures[name.partition("::")[0]] = seconds
            names = list(record["tests"])
            for file in {name.partition("::")[0] for name in names}:
                text = (ROOT / file).read_text(encoding="utf-8")
                for word in set(re.findall(r"\w+", text)):
                    self._importers[word].update(name for name in names if name.startswith(f"{file}::"))
                for module in set(re.findall(r'"([a-z_]+(?:\.[a-z_]+)+)"', text)):
                    self._tables[module] += [name for name in names if name.startswith(f"{file}::")]
            for path, lines in record["reached"].items():
                for line, numbers in lines.items():
                    self._tests[path, int(line)].update(names[n] for n in numbers)
        for file in sorted(SOURCE.rglob("*.py")):
            self._index(str(file.relative_to(SOURCE)), file.read_text(encoding="utf-8"))

    def _index(self, path: str, text: str) -> None:
        if re.search(r"\bjax\b|cache", text):  # traced or cached: runs as Python in the first test that needs it only
            self._once.add(path)
        for statement in ast.parse(text).body:
            made = set() if isinstance(statement, ast.FunctionDef) else set(defined(statement))
            for node in ast.walk(statement):
                if isinstance(node, ast.FunctionDef):
                    self._inside |= {(path, n): node.name for n in range(node.lineno, (node.end_lineno or 0) + 1)}
                    # a function's defaults are evaluated at import, and every caller sees them
                    for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
                        for name in {each.id for each in ast.walk(default) if isinstance(each, ast.Name)}:
                            self._users[name].update((path, part.lineno) for part in node.body)
                if isinstance(node, ast.Name | ast.Attribute):
                    name = node.id if isinstance(node, ast.Name) else node.attr
                    self._users[name].add((path, node.lineno))
                    self._feeds[name] |= made
                elif isinstance(node, ast.alias) and node.asname:
                    self._feeds[node.name].add(node.asname)

    def of(self, mutant: Mutant) -> dict[str, int]:
        """Return the tests that may notice a mutant, with their distance from it in steps."""
        first, last = mutant.covered
        found = {test: 0 for line in range(first, last + 1) for test in self._tests[mutant.path, line]}
        if mutant.path in self._once:
            files = {test.partition("::")[0] for test in found}
            found = {test: 1 for test in self.seconds if test.partition("::")[0] in files} | found
        if mutant.names:  # every command that a test starts runs what is run at import: few of them look at it
            return dict.fromkeys(found, _FAR) | self._of_names(mutant.names)
        return found or self._of_names((mutant.function.rpartition(".")[2],))

    def _of_names(self, names: Iterable[str]) -> dict[str, int]:
        """Return the tests that mention a name, or reach a use of it or of a name that is derived from it at import.

        If no test reaches a use, because its function's result was cached before any test, the function's uses count.
        """
        front, seen, steps = set(names), set(names), 1
        found: dict[str, int] = {}
        while front:
            places = {place for name in front for place in self._users[name]}
            for tests in (*(self._importers[name] for name in front), *(self._tests[place] for place in places)):
                found |= dict.fromkeys(tests - found.keys(), steps)
            kept = {self._inside[place] for place in places if not self._tests[place] and place in self._inside}
            front = ({made for name in front for made in self._feeds[name]} | kept) - seen
            seen, steps = seen | front, steps + 1
        return found

    def _stated(self, mutant: Mutant) -> list[str]:
        """Return the tests in a table that quotes the mutant's module and the name that it defines. They are quick."""
        module = mutant.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        words = {*mutant.names, *mutant.function.split(".")}
        quoting = [test for test in self._tables[module] if any(test in self._importers[word] for word in words)]
        own = [test for test in quoting if f"[{module}" in test]
        return own or [test for test in quoting if self.seconds[test] < _MOMENT]

    def chosen(self, mutant: Mutant, cap: int, seconds: float) -> list[str]:
        """Return the tests to run, ordered by distance in steps, then by common words in the paths, then by duration.

        If the mutant changes a value that is set at import, tables of stated values come first. One case of each test
        function comes before its other cases. The last third of the seconds goes to the fastest tests of the same room,
        at any distance.
        """
        steps, variants = self.of(mutant), Counter[str]()
        about = set(re.split(r"[/_.]", mutant.path))
        order = {}
        for test in sorted(steps, key=self.seconds.__getitem__):
            function = test.partition("[")[0]
            kin = len(about & set(re.split(r"[/_.]", test.partition("::")[0])))
            order[test] = (steps[test], -kin, variants[function], self.seconds[test])
            variants[function] += 1
        near = sorted(order, key=order.__getitem__)[:cap]
        fast = sorted((test for test in near if -order[test][1] >= _OF_THE_ROOM), key=self.seconds.__getitem__)
        taken: dict[str, None] = dict.fromkeys(self._stated(mutant) if mutant.names else ())
        opened: set[str] = set()
        spent = 0.0
        for test, within in (*((test, seconds * _NEAR) for test in near), *((test, seconds) for test in fast)):
            file = test.partition("::")[0]
            cost = self.seconds[test] + (0.0 if file in opened else self._fixtures.get(file, 0.0))
            if test not in taken and (not taken or spent + cost <= within):
                taken[test] = None
                opened.add(file)
                spent += cost
        return list(taken)
