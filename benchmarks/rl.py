"""Compare what `monitor` says of RL and preference runs with the fault induced in each: ``python benchmarks/rl.py``.

The runs are those of rl_runs.py, in the folder ``--out``; with ``--drawn seen`` or ``unseen``, the half of those of
rl_drawn.py, drawn into it. Printed are, for the tuning seeds and for those held out, how
many of the faults are named by their cause, how many healthy twins get a warning, and which false things are said.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import rl_drawn
from rl_recipes import RECIPES, TUNING, labels_of

from gradience.schema.reports import MonitorReport
from gradience.verbs.monitor.run import monitor_run

GRAVE = {"warning", "error", "critical"}
OF_THE_FILE = {"END114", "TRN115", "DUP117", "GAP118"}


class Says(NamedTuple):
    """How a statement is recognised: by a finding at warning or worse with one of the words, or by the story."""

    ids: tuple[str, ...] = ()
    word: str = ""
    story: str | None = None
    ungraded: bool = False  # as info, too


SAYS: dict[str, Says] = {
    "ENTROPY": Says(("ENT135",), "collapsed"),
    "KL": Says(("KLD124",)),
    "LONG": Says(("LEN136",), "grew"),
    "SHORT": Says(("LEN136",), "shrank"),
    "CLIP": Says(("CLF137",)),
    "EQUAL": Says(("ZVR123",)),
    "CUT_OFF": Says(("CLP125",)),
    "KL_ZERO": Says(("KLZ138",)),
    "NULL_REWARD": Says(("RWN139",)),
    "FELL": Says(("RWD122",)),
    "RATE": Says(("RAT141", "DIV104"), "learning rate"),
    "TIES": Says(("PRF140",)),
    "NOT_APART": Says(("PRF119",), "not told apart"),
    "SWAPPED": Says(("PRF119", "PRF194"), "wrong way|swapped"),
    "SOME_NULL": Says(("RWN139",), ungraded=True),
    "COMPONENT": Says(("RWC199",)),
    "CONSTANT": Says(("RWC199",), "teaches nothing", ungraded=True),
    "LOW_RATE": Says(("RWD122",), "learning rate"),
    "UNSTABLE": Says(("UNS198", "DIV104")),
    "MISMATCH": Says(("SMP196",)),
    "OVERFITS": Says(("OVF110",)),
    "BOTH_FALL": Says(("PRF120",)),
    "SATURATED": Says(("PRF130",)),
    "DIVERGED": Says(("DIV104",)),
    "CANNOT_TELL": Says(story="cannot tell"),
    "LEARNS": Says(story="learns|the reward rises|tells chosen from rejected"),
}


def said(report: MonitorReport, what: str) -> bool:
    """Whether a report makes a statement. `WARNING` is any warning that is not about the file itself."""
    grave = [f for f in report.findings if f.severity in GRAVE and f.id not in OF_THE_FILE]
    if what == "WARNING":
        return bool(grave)
    says = SAYS[what]
    words = says.word.split("|")
    findings = report.findings if says.ungraded else grave
    if any(f.id in says.ids and any(word in f.message for word in words) for f in findings):
        return True
    clauses = [part.says for part in report.story_parts]
    return says.story is not None and any(c.startswith(tuple(says.story.split("|"))) for c in clauses)


class Outcome(NamedTuple):
    """One run: what was to be said and was not, and what was said and is false."""

    name: str
    must: int
    missed: list[str]
    false: list[str]


def judged(folder: Path, report: MonitorReport) -> Outcome:
    """The outcome of one run. A statement of several words, `A|B`, is made if any of them is."""
    must, mustnot = labels_of(folder.name.rpartition("-")[0])
    missed = [words for words in must if not any(said(report, word) for word in words.split("|"))]
    return Outcome(folder.name, len(must), missed, [word for word in mustnot if said(report, word)])


def lines(title: str, outcomes: list[Outcome]) -> Iterator[str]:
    """A summary of the runs of some seeds, then each miss and each false statement."""
    must, missed = sum(o.must for o in outcomes), sum(len(o.missed) for o in outcomes)
    twins = [o for o in outcomes if "WARNING" in RECIPES[o.name.rpartition("-")[0]].mustnot]
    warned = [o for o in twins if "WARNING" in o.false]
    false = sum(len([word for word in o.false if word != "WARNING"]) for o in outcomes)
    kinds = len({o.name.rpartition("-")[0] for o in outcomes if o.must})
    yield (
        f"{title}: {must - missed} of {must} faults named ({kinds} kinds), {len(warned)} of {len(twins)} healthy twins "
        f"with a warning, {false} false"
    )
    for o in outcomes:
        if o.missed or o.false:
            yield f"  {o.name}: missed {', '.join(o.missed) or '-'}; false {', '.join(o.false) or '-'}"


def drawn(out: Path, *, unseen: bool) -> Iterator[Outcome]:
    """The outcomes of half of the drawn runs; a healthy one must have no warning."""
    for run in rl_drawn.runs():
        if run.unseen is unseen:
            report = monitor_run(rl_drawn.write(run, out))
            fault = rl_drawn.FAULTS.get(run.fault)
            must, mustnot = (fault.must, fault.mustnot) if fault else ((), ("WARNING",))
            missed = [words for words in must if not said(report, words)]
            yield Outcome(run.name, len(must), missed, [word for word in mustnot if said(report, word)])


def totals(title: str, outcomes: list[Outcome]) -> Iterator[str]:
    """A summary of drawn runs, then each miss and each false statement."""
    twins, missed = [o for o in outcomes if not o.must], sum(len(o.missed) for o in outcomes)
    must, warned = sum(o.must for o in outcomes), sum(bool(o.false) for o in twins)
    false = sum(len(o.false) for o in outcomes if o.must)
    said_of = f"{must - missed} of {must} faults said"
    yield f"{title}: {said_of}, {warned} of {len(twins)} twins with a warning, {false} false"
    yield from (f"  {o.name}: missed {o.missed}; false {o.false}" for o in outcomes if o.missed or o.false)


def main() -> None:
    """Print both parts; with ``--words`` also every sentence about each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("rl_runs"))
    parser.add_argument("--words", action="store_true")
    parser.add_argument("--drawn", choices=["seen", "unseen"])
    options = parser.parse_args()
    if options.drawn:
        outcomes = list(drawn(options.out, unseen=options.drawn == "unseen"))
        print("\n".join(totals(f"drawn, {options.drawn}", outcomes)))
        return
    parts: dict[bool, list[Outcome]] = {True: [], False: []}
    for path in sorted(options.out.glob("*/label.json")):
        report = monitor_run(path.parent / "trainer_state.json")
        parts[int(path.parent.name.rpartition("-")[2]) in TUNING].append(judged(path.parent, report))
        if options.words:
            print(f"{path.parent.name}: {report.story}")
            print("".join(f"    [{f.severity}] {f.id}: {f.message} -> {f.action}\n" for f in report.findings), end="")
    for title, tuning in (("tuning seeds", True), ("held out", False)):
        print("\n".join(lines(title, parts[tuning])))


if __name__ == "__main__":
    main()
