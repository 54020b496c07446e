"""The mutation run: change one token of the source, run the tests that reach it, and see whether one of them fails.

    python tests/mutants.py --count 400 --seed 0     a sample, equal from every room; --skip 200: without its first
    python tests/mutants.py --only FILE              every mutant of a file; --file-line FILE:LINE of a line
    python tests/mutants.py --again                  what survived last time and is not argued, against every test that
                                                     reaches it

A mutant is killed if a test fails, if the import fails, or if time runs out. A test that also fails on the unchanged
source kills nothing. A mutant that no test can kill, or that is not worth a test, has a reason in `mutants.toml`, by
function and text, and is counted apart. The source is copied at the start, so later edits have no effect.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from mutant_children import BROKEN, SOURCE, forked, preload
from mutant_edits import Mutant, all_mutants, sample
from mutant_reach import CACHE, RECORDING, ROOT, recorded, say
from mutant_warm import NO_TESTS, Warm, collected

ROOMS: Final = (  # folders or modules under src/gradience; missing ones are ignored
    *("policy", "rules", "spectral", "adapters", "telemetry"),
    *("resize", "rewrite/resize", "merge", "rewrite/merge"),
)
UNUSED: Final = (  # tests that train for minutes, watch the clock, or read the source as text
    *("tests/examples", "tests/hf", "tests/house", "tests/monitor/test_follow.py", "tests/report/test_browser.py"),
    "tests/diagnose/test_command.py",  # a run trained within a test prints into the output that the test reads
)
LAST: Final = CACHE / "last.json"
ARGUED: Final = Path(__file__).with_suffix(".toml")
SECONDS: Final = 8.0  # recorded test time for one mutant
NEAREST: Final = 12  # tests of a mutant that are run before the others
FATES: Final = ("killed", "late", "survived", "unreached", "argued")
UNNOTICED: Final = {"survived", "unreached"}
_FATE_OF: Final = {0: "survived", NO_TESTS: "unreached", BROKEN: "survived"}  # a run that broke kills nothing
_NO_START: Final = "no test can start"

Job = tuple[Mutant, list[str]]  # and its tests
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Result:
    """The fate of a mutant, with the test that killed it or the reason why it lives, and the seconds it took.

    Killed and late (out of time) mutants count as noticed; survived and unreached (by no test) ones do not; argued ones
    are left out. Seconds are processor time. `is_cold` means that the tests ran in a process that imported `gradience`
    again.
    """

    mutant: Mutant
    fate: str
    by: str
    seconds: float
    is_cold: bool = False


def tried(
    jobs: Sequence[Job], texts: Mapping[str, bytes], limit: Callable[[Job], float], workers: int, warm: Warm
) -> Iterator[Result]:
    """Run every mutant against its tests; print and yield its result."""

    def work(job: Job, slot: Path) -> int:
        mutant, tests = job
        note, old = slot / "failed", texts[mutant.path]
        note.write_text("", encoding="utf-8")
        (slot / "cold").unlink(missing_ok=True)
        (slot / "src" / "gradience" / mutant.path).write_bytes(mutant.applied(old))
        if warm.put(mutant, old, mutant.applied(old)):
            return warm.run(tests, note, slot, stop=True)
        (slot / "cold").touch()
        code = NO_TESTS
        for part in (tests[:NEAREST], tests[NEAREST:]):  # the nearest kill most mutants, so other files are not opened
            if part and (code := warm.run_cold(slot, part, note, "-x", "--tb=no")) not in {0, NO_TESTS}:
                break
        return code

    for (mutant, _), code, slot, seconds in forked(jobs, workers, work, limit):
        (slot / "src" / "gradience" / mutant.path).write_bytes(texts[mutant.path])
        failed = (slot / "failed").read_text(encoding="utf-8").splitlines() if code else []
        fate = "late" if code is None else _FATE_OF.get(code, "killed")
        by = (failed[0] if failed else _NO_START) if fate == "killed" else ""
        say(f"{fate:9} {seconds:5.1f} s  {shown(mutant)}" + (f"\n      {by}" if by else ""))
        if code == BROKEN:
            say((slot / "log").read_text(encoding="utf-8", errors="replace")[-2000:])
        yield Result(mutant, fate, by, seconds, (slot / "cold").exists())


def failing_anyway(killed: Iterable[Result], workers: int, warm: Warm) -> set[str]:
    """Return the tests that killed a mutant but also fail on the unchanged source: flaky or order-dependent tests.

    Each runs as it did when it killed the mutant, in a warm or a cold process.
    """
    files: dict[tuple[str, bool], dict[str, None]] = defaultdict(dict)
    for result in killed:
        files[result.by.partition("::")[0], result.is_cold][result.by] = None

    def work(job: tuple[list[str], bool], slot: Path) -> int:
        chosen, is_cold = job
        if not is_cold:
            return warm.run(chosen, slot / "failed", slot, stop=False)
        return warm.run_cold(slot, chosen, slot / "failed", "--tb=no")

    jobs = [(list(chosen), is_cold) for (_, is_cold), chosen in files.items()]
    done = forked(jobs, workers, work, lambda _: RECORDING)
    return {test for *_, slot, _ in done for test in (slot / "failed").read_text(encoding="utf-8").splitlines()}


def key(mutant: Mutant) -> Key:
    """Return a key that identifies a mutant even if lines or files have moved: function, line before, line after."""
    return mutant.function, mutant.before, mutant.after


def read_argued() -> dict[Key, str]:
    """Return the reasons in `mutants.toml`."""
    entries = tomllib.loads(ARGUED.read_text(encoding="utf-8")).get("argued", [])
    return {(entry["function"], entry["before"], entry["after"]): entry["reason"] for entry in entries}


def shown(mutant: Mutant) -> str:
    """Return a mutant as text: its place and its changed line."""
    where = f"{mutant.path}:{mutant.line} {mutant.function or 'module'} [{mutant.kind}]"
    return f"{where}\n      - {mutant.before}\n      + {mutant.after}"


def keep(results: Sequence[Result]) -> None:
    """Write the results so far, for `--again`, so that a run which is ended early is not lost."""
    entries = [{"fate": r.fate, "by": r.by, "seconds": round(r.seconds, 1), **asdict(r.mutant)} for r in results]
    LAST.parent.mkdir(parents=True, exist_ok=True)
    LAST.write_text(json.dumps(entries, indent=1), encoding="utf-8")


def report(results: Sequence[Result]) -> float:
    """Print a line per room and one for all; return the percentage of mutants noticed, without argued ones."""
    percent = 100.0
    for room in (*dict.fromkeys(r.mutant.room for r in results), "all"):
        fates = Counter(r.fate for r in results if room in {r.mutant.room, "all"})
        counted = fates.total() - fates["argued"]
        percent = 100 * (fates["killed"] + fates["late"]) / counted if counted else 100.0
        say(f"{room:16} {percent:5.1f} %  " + ", ".join(f"{fates[fate]} {fate}" for fate in FATES))
    return percent


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=400, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--skip", type=int, default=0, help="mutants of the draw that were run before")
    parser.add_argument("--rooms", nargs="+", default=ROOMS, metavar="ROOM", help="folders under src/gradience")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="of these kinds only, such as bound or message")
    parser.add_argument("--only", metavar="FILE", help="every mutant of one file, as src/gradience/...")
    parser.add_argument("--file-line", metavar="FILE:LINE", help="every mutant of one line")
    parser.add_argument("--again", action="store_true", help="what survived last time, against all tests that reach it")
    parser.add_argument("--list", action="store_true", help="list the mutants, run nothing")
    parser.add_argument("--workers", type=int, default=2, help="children at a time")
    parser.add_argument("--cap", type=int, default=2000, help="tests for one mutant")
    parser.add_argument("--limit", type=float, default=60, help="seconds for one mutant, beyond its tests' own")
    parser.add_argument("--tests", nargs="+", default=["tests"], metavar="PATH", help="tests to use, files or folders")
    parser.add_argument("--record", action="store_true", help="record every test file again")
    parser.add_argument("--at-least", type=float, default=0, metavar="PERCENT", help="exit with 1 under this")
    return parser.parse_args()


def _wanted(mutants: Sequence[Mutant], options: argparse.Namespace) -> Sequence[Mutant]:
    if options.again:
        last = json.loads(LAST.read_bytes())
        left = {(m["function"], m["before"], m["after"]) for m in last if m["fate"] in UNNOTICED} - read_argued().keys()
        return [mutant for mutant in mutants if key(mutant) in left]
    if options.named:
        line = options.named.partition(":")[2]
        return [mutant for mutant in mutants if line in {"", str(mutant.line)}]
    return sample(mutants, options.count, options.seed)[options.skip :]


def _test_files(paths: Sequence[str]) -> list[str]:
    files = (f for path in paths for f in ([ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("test_*.py")))
    names = sorted({file.relative_to(ROOT).as_posix() for file in files})
    return [name for name in names if not any(name == path or name.startswith(f"{path}/") for path in UNUSED)]


def _room_of(named: str) -> str:
    """The room that is one file: FILE or FILE:LINE, as src/gradience/..., without its suffix."""
    return Path(named.partition(":")[0]).resolve().relative_to(SOURCE).with_suffix("").as_posix()


def _texts(rooms: Sequence[str]) -> Iterator[tuple[str, str, bytes]]:
    for room in rooms:
        for file in (SOURCE / f"{room}.py", *sorted((SOURCE / room).rglob("*.py"))):
            if file.is_file():
                yield room, file.relative_to(SOURCE).as_posix(), file.read_bytes()


def _run(
    wanted: Sequence[Mutant], texts: Mapping[str, bytes], options: argparse.Namespace, warm: Warm
) -> Iterator[Result]:
    """Yield the result of every mutant. A mutant killed by a test that fails anyway is run again without that test."""
    reach = recorded(_test_files(options.tests), options.workers, warm, again=options.record)
    cap, seconds = (sys.maxsize, float("inf")) if options.again else (options.cap, SECONDS)
    jobs = [(mutant, reach.chosen(mutant, cap, seconds)) for mutant in wanted]

    def limit(job: Job) -> float:
        return float(options.limit + 3 * sum(reach.seconds[test] for test in job[1]))

    while jobs:
        yield from (Result(mutant, "unreached", "", 0.0) for mutant, tests in jobs if not tests)
        killed = []
        for result in tried([job for job in jobs if job[1]], texts, limit, options.workers, warm):
            if result.fate == "killed" and result.by != _NO_START:
                killed.append(result)
            else:
                yield result
        flaky = failing_anyway(killed, options.workers, warm)
        yield from (result for result in killed if result.by not in flaky)
        for test in flaky:
            say(f"kills nothing, since it fails on the unchanged source too: {test}")
        doubted = {result.mutant for result in killed if result.by in flaky}
        jobs = [(mutant, [t for t in tests if t not in flaky]) for mutant, tests in jobs if mutant in doubted]


def main() -> int:
    """Choose mutants, run them and report; return the exit code."""
    os.chdir(ROOT)
    options = _options()
    options.named = options.file_line or options.only
    files = list(_texts([_room_of(options.named)] if options.named else options.rooms))
    every = all_mutants(files)
    wanted = _wanted([m for m in every if not options.kinds or m.kind in options.kinds], options)
    if options.list:
        say("\n".join(shown(mutant) for mutant in wanted))
        return 0
    began, argued, results = time.monotonic(), read_argued(), []
    texts = {path: text for _, path, text in files}

    def work(warm: Warm) -> None:
        for result in _run(wanted, texts, options, warm):
            if result.fate in UNNOTICED and key(result.mutant) in argued:
                results.append(replace(result, fate="argued", by=argued[key(result.mutant)]))
            else:
                results.append(result)
            keep(results)

    preload()
    collected(_test_files(options.tests), texts, work)
    for result in results:
        if result.fate != "killed":
            say(f"{result.fate:9} {shown(result.mutant)}" + (f"\n      {result.by}" if result.by else ""))
    whole = options.rooms == ROOMS and not options.named
    for function, _, after in argued.keys() - {key(m) for m in every} if whole else ():
        say(f"argued in {ARGUED.name}, but no mutant any more: {function}: {after}")
    say(f"\n{len(results)} of {len(every)} mutants, {time.monotonic() - began:.0f} s, see {LAST.relative_to(ROOT)}")
    return int(report(results) < options.at_least)


if __name__ == "__main__":
    sys.exit(main())
