"""Evaluate the detectors of `gradience monitor` on synthetic curves: ``python benchmarks/detectors.py``.

* Clean runs of seven kinds: false findings per 100 runs at severity warning or worse, with info counted apart.
* 38 faults: how many are found by the detector meant for them, at which severity, and how often it abstains.
* Precision of a detector: true findings over true and false ones (warning or worse, on the clean runs).
* Two seed sets: thresholds were set on the first, and the second was looked at only afterwards.
* ``--data DIR``: the findings on real logs, for which no truth is claimed.
* ``--peer NAME=PROGRAM``: trainproof, losslint, trainspotter or finetune-doctor reads the same runs as a
  trainer_state.json. Their findings have other names, so a run counts as found if they report anything at warning or
  worse, and the names are counted.

Every run is written to a file and read back by `monitor_run`: nothing is handed to a detector directly.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from curves import KINDS, Log, clean, write_native, write_trainer_state
from faults import FAULTS, LOG_FAULTS, Fault, broken

from gradience.errors import GradienceError
from gradience.verbs.monitor.run import monitor_run

TUNED, HELD_OUT = 1, 7001
PEERS = {
    "trainproof": ("doctor", "--json"),
    "losslint": ("check", "--format", "json"),
    "trainspotter": ("analyze", "--output", "json"),
    "finetune-doctor": ("diagnose", "-f", "json"),
}
GRAVE = {"warning", "error", "critical", "fail", "warn"}


class Case(NamedTuple):
    """One run, its name, and the detector that should speak, if any."""

    log: Log
    name: str
    wanted: str | None


def cases(seed: int, runs: int, faults: Sequence[Fault] = (*FAULTS, *LOG_FAULTS)) -> Iterator[Case]:
    """Yield `runs` clean runs of every kind and `runs` runs with every fault."""
    for kind in KINDS:
        rng = random.Random(f"{seed} {kind}")  # noqa: S311  # seeded on purpose
        for _ in range(runs):
            yield Case(clean(rng, kind), kind, None)
    for fault in faults:
        rng = random.Random(f"{seed} {fault.__name__}")  # noqa: S311  # the same
        for _ in range(runs):
            log, wanted = broken(rng, fault)
            yield Case(log, fault.__name__, wanted)


class Score:
    """The counts of findings on the runs of one seed set."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.false: dict[str, Counter[str]] = defaultdict(Counter)
        self.remarks: dict[str, Counter[str]] = defaultdict(Counter)
        self.found: Counter[str] = Counter()
        self.grave: Counter[str] = Counter()
        self.abstained: Counter[str] = Counter()
        self.wanted: dict[str, str] = {}

    def take(self, case: Case, path: Path) -> None:
        """Write the run, read it back, and count its findings."""
        write_native(case.log, path)
        report = monitor_run(path)
        self.runs[case.name] += 1
        if case.wanted is None:
            for finding in report.findings:
                (self.false if finding.severity in GRAVE else self.remarks)[case.name][finding.id] += 1
            return
        self.wanted[case.name] = case.wanted
        hits = [one for one in (*report.findings, *report.readings) if one.id == case.wanted]
        self.found[case.name] += bool(hits)
        self.grave[case.name] += any(finding.severity in GRAVE for finding in hits)
        self.abstained[case.name] += any(item.id == case.wanted for item in report.not_run)

    def show(self, title: str) -> None:
        """Print the tables."""
        print(f"\n## {title}\n\n| clean runs | n | false, warning or worse | per 100 | info besides |")
        print("|---|--:|---|--:|---|")
        for kind in KINDS:
            n, false = self.runs[kind], self.false[kind]
            print(
                f"| {kind} | {n} | {_counts(false)} | {100 * false.total() / n:.1f} | {_counts(self.remarks[kind])} |"
            )
        everywhere = sum(self.false.values(), Counter[str]())
        clean_runs = sum(self.runs[kind] for kind in KINDS)
        print(f"| all | {clean_runs} | {_counts(everywhere)} | {100 * everywhere.total() / clean_runs:.2f} | |")
        print("\n| fault | detector | n | found | as warning or worse | abstained |\n|---|---|--:|--:|--:|--:|")
        for name, wanted in self.wanted.items():
            n = self.runs[name]
            shares = (f"{100 * count[name] / n:.0f} %" for count in (self.found, self.grave, self.abstained))
            print(f"| {name} | {wanted} | {n} | {' | '.join(shares)} |")
        remarks = sum(self.remarks.values(), Counter[str]())
        print("\n| detector | recall | precision | precision, info counted as false too |\n|---|--:|--:|--:|")
        for wanted in dict.fromkeys(self.wanted.values()):
            names = [name for name, other in self.wanted.items() if other == wanted]
            found, n = sum(self.found[name] for name in names), sum(self.runs[name] for name in names)
            strict, loose = found + everywhere[wanted], found + everywhere[wanted] + remarks[wanted]
            print(f"| {wanted} | {100 * found / n:.1f} % | {_share(found, strict)} | {_share(found, loose)} |")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counter.most_common()) or "none"


def show_real(data: Path) -> None:
    """Print the findings on each real log."""
    print("\n## Real logs\n\n| log | rows | findings | abstained |\n|---|--:|---|---|")
    patterns = ("runs/*.jsonl", "trainer_states/*.json", "trainer_logs/*.jsonl", "adapters/*/trainer_state.json")
    for path in sorted(path for pattern in patterns for path in data.glob(pattern)):
        name = path.parent.name if path.name == "trainer_state.json" else path.name
        try:
            report = monitor_run(path)
        except GradienceError as error:
            print(f"| {name} | | {error} | |")
            continue
        said = ", ".join(f"{f.id} ({f.severity})" for f in report.findings)
        print(f"| {name} | {report.train.rows} | {said or 'none'} | {' '.join(item.id for item in report.not_run)} |")


def show_peer(name: str, program: str, seed: int, runs: int, folder: Path) -> None:
    """Print how often a peer reports a warning or worse, on the same kinds of runs."""
    grave: Counter[str] = Counter()
    words: dict[str, Counter[str]] = defaultdict(Counter)
    failed: Counter[str] = Counter()
    order: dict[str, bool] = {}
    verb, *flags = PEERS[name]
    for case in cases(seed, runs, FAULTS):
        path = folder / "trainer_state.json"
        write_trainer_state(case.log, path)
        done = subprocess.run(
            [program, verb, str(path), *flags], capture_output=True, text=True, check=False, timeout=120
        )
        order[case.name] = case.wanted is None
        try:
            said = list(_grave_words(json.loads(done.stdout)))
        except ValueError:
            failed[case.name] += 1
            continue
        grave[case.name] += bool(said)
        words[case.name].update(said)
    print(
        f"\n### {name} ({runs} runs of each)\n\n| run | says warning or worse | no answer | what |\n|---|--:|--:|---|"
    )
    for case_name, is_clean in order.items():
        what = ", ".join(f"{word} {n}" for word, n in words[case_name].most_common(3))
        print(f"| {'clean: ' if is_clean else ''}{case_name} | {grave[case_name]} | {failed[case_name]} | {what} |")


def _grave_words(document: object) -> Iterator[str]:
    """Yield the names of all findings of severity warning or worse, anywhere in a peer's JSON."""
    if isinstance(document, list):
        for item in document:
            yield from _grave_words(item)
    elif isinstance(document, dict):
        level = document.get("severity", document.get("level"))
        if isinstance(level, str) and level.lower() in GRAVE:
            names = (document.get(key) for key in ("id", "code", "rule", "check", "kind", "title"))
            yield next((name for name in names if isinstance(name, str)), "?")
        for value in document.values():
            yield from _grave_words(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=100, help="runs of each kind and fault")
    parser.add_argument("--data", type=Path, help="folder of real logs (../shared/data)")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PROGRAM")
    parser.add_argument("--peer-runs", type=int, default=8)
    parser.add_argument("--seeds", choices=["tuned", "held-out", "both"], default="both")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, seed in (("tuned", TUNED), ("held-out", HELD_OUT)):
            if args.seeds in {title, "both"}:
                score = Score()
                for case in cases(seed, args.runs):
                    score.take(case, folder / "run.jsonl")
                score.show(f"Seeds: {title} (random.Random(f'{seed} NAME'))")
        if args.data:
            show_real(args.data)
        for peer in args.peer:
            peer_name, _, program = peer.partition("=")
            show_peer(peer_name, program, HELD_OUT, args.peer_runs, folder)


if __name__ == "__main__":
    main()
