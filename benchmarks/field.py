"""Compare what `monitor` says of real runs with what an experienced engineer says: ``python benchmarks/field.py``.

There are four sets of logs, each with labels (`must` be said; `mustnot` be said, because it would be false):

* ``--data``: real trainer states that people published (`field/`, labels in its README.md), and those of
  `trainer_states/`, of which is printed what is said.
* ``--out``: short real trainings with known faults, made once by trainings.py and kept. Half of the seeds are for
  tuning, half are held out.
* the short logs of tests/golden/field, which imitate published runs.
* the synthetic curves of curves.py with the faults of faults.py, in a separate column.

`SAYS` defines how a class of statement is recognised in a report. Add the id of a new rule there.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import faults
from curves import KINDS, clean, write_native, write_trainer_state

from gradience.errors import GradienceError
from gradience.schema.reports import MonitorReport
from gradience.verbs.monitor.run import monitor_run

GRAVE = {"warning", "error"}
GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "field"
HELD_OUT = 7001  # seed of the synthetic curves, as in detectors.py


class Says(NamedTuple):
    """How a class of statement is recognised: by the id of a finding, or by the beginning of a clause of the story."""

    ids: tuple[str, ...] = ()
    grave: bool = False  # count the finding only as warning or worse
    story: str | None = None


SAYS: dict[str, Says] = {
    "LEARNS": Says(story="learns"),
    "DIVERGED": Says(("DIV104",)),
    "REPEATED": Says(("REP128",)),
    "SCALE": Says(("SCL129",)),
    "SATURATED": Says(("PRF130",)),
    "SKIPPED": Says(("NUM131",)),
    "CLIPPED": Says(("CLP125",)),
    "PLATEAU": Says(("PLT105",)),
    "NO_LEARNING": Says(("NOL106", "LRS109", "GRD108")),
    "AT_CHANCE": Says(("CHN112",)),
    "OVERFIT": Says(("OVF110",)),
    "UNFINISHED": Says(("UND126",)),
    "RESUMED": Says(("RES116",)),
    "SPIKE": Says(("DIV103",)),
    "GAP": Says(("GAP111",), grave=True),
    "NAN": Says(("NUM101", "NUM102"), grave=True),
}
ANY_WARNING = "ANY_WARNING"  # any finding at warning or worse, but for those of the file itself
OF_THE_FILE = {"END114", "TRN115", "DUP117", "GAP118"}
SYNTHETIC: dict[str, tuple[faults.Fault, ...]] = {
    "DIVERGED": (faults.divergence,),
    "PLATEAU": (faults.plateau,),
    "NO_LEARNING": (faults.no_learning, faults.rate_zero),
    "AT_CHANCE": (faults.chance,),
    "OVERFIT": (faults.overfit,),
    "UNFINISHED": (faults.unfinished,),
    "RESUMED": (faults.resumed_same, faults.resumed_other),
    "SPIKE": (faults.spike, faults.tall_spike),
    "NAN": (faults.nan_loss, faults.nan_gradient, faults.masked_zero, faults.masked_average),
    "CLIPPED": (faults.cut_off,),
    "GAP": (faults.memorized,),
}


class Case(NamedTuple):
    """One log and its labels."""

    group: str
    name: str
    path: Path
    must: frozenset[str]
    mustnot: frozenset[str]


def said_of(report: MonitorReport) -> set[str]:
    """Return the classes of the statements in a report."""
    said = set()
    for name, how in SAYS.items():
        found = (f for f in (*report.findings, *report.readings) if f.id in how.ids)
        by_id = any(f.severity in GRAVE or not how.grave for f in found)
        if by_id or (how.story and any(part.says.startswith(how.story) for part in report.story_parts)):
            said.add(name)
    if any(f.severity in GRAVE and f.id not in OF_THE_FILE for f in report.findings):
        said.add(ANY_WARNING)
    return said


def published(data: Path) -> Iterator[Case]:
    """Yield the published runs with the labels of their README."""
    table = (data / "field" / "README.md").read_text(encoding="utf-8")
    for row in re.finditer(r"^\| `([^`]+)` \|[^|]*\|[^|]*\|([^|]*)\|([^|]*)\|", table, re.MULTILINE):
        must, mustnot = (
            frozenset(word.strip() for word in cell.split(",") if word.strip() not in {"", "-"})
            for cell in row.group(2, 3)
        )
        yield Case("published", row[1], data / "field" / row[1], must, mustnot)


def drawn(folder: Path = GOLDEN) -> Iterator[Case]:
    """Yield the short logs that the tests keep, drawn from what was seen of published runs."""
    for path in sorted(folder.glob("*.json")):
        label = json.loads(path.read_text(encoding="utf-8"))["label"]
        yield Case("drawn", path.stem, path, frozenset(label["must"]), frozenset(label["mustnot"]))


def trained(out: Path) -> Iterator[Case]:
    """Yield the trainings made here. Even seeds are for tuning, odd ones are held out."""
    for path in sorted(out.glob("*/label.json")):
        label = json.loads(path.read_text(encoding="utf-8"))
        group = "trained, held out" if label["seed"] % 2 else "trained, tuning"
        log = path.with_name("run.jsonl")
        log = log if log.is_file() else path.parent
        yield Case(group, path.parent.name, log, frozenset(label["must"]), frozenset(label["mustnot"]))


class Score:
    """The counts of one group, by class: how often it had to be said and was, and how often it was said falsely."""

    def __init__(self) -> None:
        self.cases = 0
        self.must: Counter[str] = Counter()
        self.hit: Counter[str] = Counter()
        self.mustnot: Counter[str] = Counter()
        self.false: Counter[str] = Counter()

    def take(self, must: frozenset[str], mustnot: frozenset[str], said: set[str]) -> None:
        """Count one log."""
        self.cases += 1
        self.must.update(must)
        self.hit.update(must & said)
        self.mustnot.update(mustnot)
        self.false.update(mustnot & said)

    def recall(self, name: str) -> str:
        """Return the recall of a class as `found/wanted`."""
        return f"{self.hit[name]}/{self.must[name]}" if self.must[name] else "-"

    def wrong(self, name: str) -> str:
        """Return the false statements of a class, with the number of logs on which it would be false."""
        return f"{self.false[name]}/{self.mustnot[name]}" if self.mustnot[name] else "-"


def score(cases: Iterator[Case], *, verbose: bool) -> dict[str, Score]:
    """Run `monitor` over the cases and count by group."""
    scores: dict[str, Score] = {}
    for case in cases:
        report = monitor_run(case.path)
        said = said_of(report)
        scores.setdefault(case.group, Score()).take(case.must, case.mustnot, said)
        missed, false = case.must - said, case.mustnot & said
        if verbose and (missed or false):
            ids = ", ".join(f"{f.id} ({f.severity})" for f in report.findings)
            print(f"- {case.name}: missed {sorted(missed)}, false {sorted(false)}. {report.story} [{ids}]")
    return scores


def synthetic(runs: int) -> Score:
    """Score the same classes on synthetic curves: recall on their faults, false statements on healthy ones."""
    counted = Score()
    healthy = frozenset({*SYNTHETIC, ANY_WARNING, "REPEATED", "SCALE", "SATURATED", "SKIPPED", "LEAK"})
    true_of_clean = {"SPIKE", "PLATEAU", "UNFINISHED", "RESUMED", "CLIPPED"}  # many healthy curves end flat, or falling
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run.jsonl"
        state = Path(name) / "trainer_state.json"
        for kind in KINDS:
            rng = random.Random(f"{HELD_OUT} {kind}")  # noqa: S311  # seeded on purpose
            for _ in range(runs):
                write_trainer_state(clean(rng, kind), state)
                counted.take(frozenset(), healthy - true_of_clean, said_of(monitor_run(state)))
        for label, made in SYNTHETIC.items():
            for fault in made:
                rng = random.Random(f"{HELD_OUT} {fault.__name__}")  # noqa: S311  # the same
                for _ in range(runs):
                    write_native(faults.broken(rng, fault)[0], path)
                    counted.take(frozenset({label}), frozenset(), said_of(monitor_run(path)))
    return counted


def show(scores: dict[str, Score]) -> None:
    """Print recall and false statements of every class, one column per group."""
    groups = list(scores)
    for title, of in (("recall", Score.recall), ("false statements", Score.wrong)):
        print(f"\n| {title} | " + " | ".join(f"{group} ({scores[group].cases})" for group in groups) + " |")
        print("|---" * (len(groups) + 1) + "|")
        for name in (*SAYS, ANY_WARNING):
            cells = [_cell(of, scores[group], name) for group in groups]
            if any(cell != "-" for cell in cells):
                print(f"| {name} | " + " | ".join(cells) + " |")
        total = {"recall": (lambda s: (s.hit, s.must)), "false statements": (lambda s: (s.false, s.mustnot))}[title]
        sums = [tuple(counter.total() for counter in total(scores[group])) for group in groups]
        print("| **all** | " + " | ".join(f"**{part}/{whole}**" for part, whole in sums) + " |")


def _cell(of: Callable[[Score, str], str], counted: Score, name: str) -> str:
    return of(counted, name)


def show_unlabelled(data: Path) -> None:
    """Print the statements on trainer states that have no label."""
    print("\n| log | story | findings |\n|---|---|---|")
    for path in sorted((data / "trainer_states").glob("*.json")):
        try:
            report = monitor_run(path)
        except GradienceError as error:
            print(f"| {path.name} | {error} | |")
            continue
        print(f"| {path.name} | {report.story} | {', '.join(f'{f.id} ({f.severity})' for f in report.findings)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of published runs")
    parser.add_argument("--out", type=Path, default=Path("runs/field"), help="where the trainings are, or are made")
    parser.add_argument("--runs", type=int, default=50, help="synthetic curves of each kind and fault; 0 for none")
    parser.add_argument("--no-training", action="store_true", help="use the trainings that are there, make none")
    parser.add_argument("--verbose", action="store_true", help="name each log with something missed or false")
    args = parser.parse_args()
    if not args.no_training:
        from trainings import make_all  # heavy: torch, transformers, peft, trl

        print(f"{make_all(args.out)} trainings made in {args.out}")
    scores = score(trained(args.out), verbose=args.verbose)
    if (args.data / "field").is_dir():
        scores |= score(published(args.data), verbose=args.verbose)
    scores |= score(drawn(), verbose=args.verbose)
    if args.runs:
        scores["synthetic"] = synthetic(args.runs)
    show(scores)
    if (args.data / "trainer_states").is_dir():
        show_unlabelled(args.data)


if __name__ == "__main__":
    main()
