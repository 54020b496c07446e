"""The numbers in a report's findings and stories, without the words, so that wording may change.

After an intended change, `python tests/said.py` writes the golden files of `test_numbers_said.py` again.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from log_runs import AT, RUNS, field_logs

from gradience.judge.monitor import monitor_run
from gradience.rules.log import detect
from gradience.rules.log.facts import RunFacts
from gradience.rules.log.story import story_parts
from gradience.schema.reports import TrainSummary

NUMBER: Final = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?%?")
GOLDEN: Final = Path(__file__).parent / "golden" / "numbers_said.json"
ABSTAINED: Final = "not judged"
_SILENT: Final = f" {ABSTAINED}: "


def numbers(text: str | None) -> str:
    """The numbers in a sentence, as they are printed."""
    return " ".join(NUMBER.findall(text or ""))


def shown(value: Any) -> Any:
    """A value with its floats at five digits, so that differences between platforms' libm do not matter."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return [shown(each) for each in value[:5]]
    return value


def finding(found: Any) -> str:
    """A finding on one line: id, severity, confidence; the numbers of its sentences; its values; its evidence."""
    seen = " | ".join(numbers(ground.says) for ground in found.evidence if ground.source == "the log")
    values = " ".join(f"{name}={shown(value)}" for name, value in found.values.items())
    said = f"{numbers(found.message)} | {numbers(found.action)}"
    return f"{found.id} {found.severity} {found.confidence:g}: {said}; {values}; {seen}"


def verdict(findings: Iterable[Any], not_run: Iterable[Any]) -> list[str]:
    """The findings, and the rules that were not judged with the numbers of their reasons."""
    silent = [f"{item.id}{_SILENT}{numbers(item.reason)}" for item in not_run]
    return [*map(finding, findings), *silent]


def part(clause: Any) -> str:
    """A clause of a story on one line: the numbers that it shows, and its values."""
    values = " ".join(f"{name}={shown(value)}" for name, value in clause.values.items())
    return f"story {clause.finding or ''}: {numbers(clause.says)}; {values}"


def all_said() -> Mapping[str, list[str]]:
    """The verdicts on every log and run of the golden files, by name."""
    said = {}
    for log in field_logs():
        report = monitor_run(log)
        said[log.stem] = [*verdict(report.findings, report.not_run), *map(part, report.story_parts)]
    return said | {name: _of_run(run) for name, run in (RUNS | AT).items()}


def _of_run(run: RunFacts) -> list[str]:
    found = detect(run)
    losses = run.series.losses
    train = TrainSummary(rows=len(losses), first_loss=next(iter(losses), None), last_loss=[*losses, None][-2:][0])
    return [*verdict(*found), *map(part, story_parts(run, found.findings, train))]


def golden(said: Mapping[str, list[str]]) -> dict[str, Any]:
    """What a golden file keeps: of each run what was said, and of each rule how often it abstained with which numbers.

    So a rule that comes anew changes what is kept of the runs of which it speaks, and of no other.
    """
    abstained: dict[str, Counter[str]] = {}
    for lines in said.values():
        for line in lines:
            rule, silent, reason = line.partition(_SILENT)
            if silent:
                abstained.setdefault(rule, Counter())[reason] += 1
    spoken = {name: [line for line in lines if _SILENT not in line] for name, lines in said.items()}
    return {**spoken, ABSTAINED: {rule: dict(sorted(reasons.items())) for rule, reasons in sorted(abstained.items())}}


def changed(said: Mapping[str, list[str]], expected: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from a golden file; of rules that are not in it the findings alone."""
    now = golden(said)
    of_rules = {
        rule: now[ABSTAINED].get(rule) for rule, then in expected[ABSTAINED].items() if now[ABSTAINED].get(rule) != then
    }
    runs = {name: lines for name, lines in now.items() if name != ABSTAINED and lines != expected.get(name)}
    return runs | {rule: reasons for rule, reasons in of_rules.items() if reasons != expected[ABSTAINED][rule]}


def write(path: Path, said: Mapping[str, list[str]]) -> None:
    """Write a golden file anew."""
    sys.stdout.write(f"{path}\n")
    path.write_text(json.dumps(golden(said), indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(GOLDEN, all_said())
