"""How far each threshold on logs could lie elsewhere: ``python benchmarks/thresholds.py LOG ...``.

Each threshold of the rules on logs is moved down and up in steps, and every log is judged anew. Printed is the span of
values within which no finding of its rule comes, goes or changes its severity on these logs, and the log that changes
first beyond either end. A span without an end is no ground: no log needs the threshold.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gradience.rules
from gradience.errors import GradienceError, Unknown
from gradience.folder import open_run
from gradience.rules import Threshold, judge
from gradience.rules.log import DETECTORS
from gradience.rules.log.facts import LogRule, RunFacts

DOWN = (0.9, 0.8, 0.67, 0.5, 0.33, 0.25, 0.1, 0.01, 0.0)
UP = (1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 10.0, 100.0, 1e9)
Said = Mapping[str, tuple[str, ...]]


def said(rule: LogRule, logs: Mapping[str, RunFacts]) -> Said:
    """The severities of what a rule finds, by log; the facts are made anew, since they keep what they found."""
    return {
        name: tuple(sorted(one.severity for one in judge([rule], replace(facts)).told)) for name, facts in logs.items()
    }


def moved(threshold: Threshold, value: float, rule: LogRule, logs: Mapping[str, RunFacts]) -> Said:
    """What a rule finds with another value of a threshold, wherever a module of the rules holds it."""
    held = [
        (module, name)
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("gradience.")
        for name, it in vars(module).items()
        if it is threshold
    ]
    for module, name in held:
        setattr(module, name, threshold._replace(value=value))
    try:
        return said(rule, logs)
    finally:
        for module, name in held:
            setattr(module, name, threshold)


def end(
    threshold: Threshold, factors: tuple[float, ...], rule: LogRule, logs: Mapping[str, RunFacts], now: Said
) -> str:
    """The last value on one side with which all is said as before, and the log that changes beyond it."""
    last = threshold.value
    whole = isinstance(threshold.value, int)
    for value in (threshold.value * factor for factor in factors):
        new = round(value) if whole else value
        new += (1 if factors is UP else -1) * (whole and new == threshold.value)
        if new < 0 <= threshold.value:
            break
        try:
            then = moved(threshold, new, rule, logs)
        except (ArithmeticError, LookupError, ValueError):
            break
        other = [name for name in logs if now[name] != then[name]]
        if other:
            turns = f"{'/'.join(now[other[0]]) or 'silent'} -> {'/'.join(then[other[0]]) or 'silent'}"
            return f"{last:.4g} (at {new:.4g} {len(other)}: {other[0]} {turns})"
        last = new
    return "no end"


def main() -> None:
    """Print a line for each threshold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", type=Path, nargs="+")
    parser.add_argument("--only", default="", help="ids of rules, with commas between")
    options = parser.parse_args()
    for module in pkgutil.walk_packages(gradience.rules.__path__, "gradience.rules."):
        importlib.import_module(module.name)
    logs = {}
    for path in options.logs:
        try:
            reading = open_run(path).log.need()
        except (GradienceError, Unknown) as error:
            print(f"{path}: {error}", file=sys.stderr)
            continue
        logs["/".join(path.parts[-2:])] = RunFacts(reading.run, reading.log.issues, reading.log.issues_total)
    print(f"{len(logs)} logs")
    for rule in (each for each in DETECTORS if not options.only or each.id in options.only.split(",")):
        now = said(rule, logs)
        speaks = sum(1 for each in now.values() if each)
        for threshold in rule.thresholds:
            below, above = (end(threshold, factors, rule, logs, now) for factors in (DOWN, UP))
            print(
                f"{rule.id} speaks on {speaks} | {threshold.name} {threshold.value:g} | {below} | {above}", flush=True
            )


if __name__ == "__main__":
    main()
