"""Rules on logs exactly at their thresholds: whether the threshold itself counts, for each comparison.

A number such as 0.02 has no exact value in binary, so that few runs are exactly at it. Where that is so, the threshold
is set to a sum of powers of two, of which a run can have exactly as much. What noise leaves open is set, too, where a
rule compares with it.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from log_runs import FALL, FLAT, NAN, _skipped as skipped, line, run, said, with_row
from tables import every

from gradience.rules.log import detect
from gradience.rules.log.facts import RunFacts
from gradience.schema import ConfigSnapshot
from gradience.telemetry.series import LogRecord

LN2 = math.log(2.0)


class At(NamedTuple):
    """A rule, what is set in this case, runs by a number, and the answer to each: a severity, "?", or None."""

    rule: str
    thresholds: dict[str, Any]  # by module and name: a threshold's value, or a function's answer
    make: Callable[[Any], RunFacts]
    answers: dict[Any, str | None]


def answer(rule: str, facts: RunFacts) -> str | None:
    """The severity of the rule's finding, "?" where it was not judged, None where it is silent."""
    verdict = detect(facts)
    if any(item.id == rule for item in verdict.not_run):
        return "?"
    return next((found.severity for found in verdict.findings if found.id == rule), None)


def evaluated(*losses: float, **more: Any) -> RunFacts:
    return run(FALL, held_out=losses, **more)


def classes(loss: float, accuracy: float | None = None, *, n: int | None = None, of: int | None = None) -> RunFacts:
    facts = run(FALL, held_out=[1.4, loss], accuracy=accuracy, n=n, num_labels=of)
    return replace(facts, config=ConfigSnapshot(num_labels=of)) if of else facts


def straight(rise: float, rows: int = 33) -> list[float]:
    """From 2 on, each row by as much higher."""
    return [2.0 + rise * row for row in range(rows)]


def falls_then_drifts(fall: float) -> RunFacts:
    """21 rows from 2 to 1, and 9 about 1, each lower than the one before by an eighth of the fall."""
    return run([*line(21, 2.0, 1.0), *[1.0 + fall * (4 - row) / 8 for row in range(9)]])


STEP = 2.0**-10  # of a row of `straight`: over 32 rows 2^-5, of a start of 2 the 64th part
LEARNING: Sequence[At] = [
    At(
        "NOL106",
        {"learning.HELD_STILL": 0.0625},
        lambda x: run([2.0, 2.1, 1.9, 2.0] * 3, held_out=[2.0, x]),
        {1.875: "?", 1.8755: "warning"},
    ),
    At(
        "NOL106",
        {"learning.STILL": 2.0**-6, "learning.STILL_SLOPE": 0.9, "learning.STILL_BOUND": 0.9},
        lambda x: run([2.0] * 8 + [2.0 - x] * 32),
        {0.03125: "?", 0.03124: "warning"},
    ),
    At(
        "NOL106",
        {"learning.STILL": 0.9, "learning.STILL_SLOPE": 2.0**-6, "learning.STILL_BOUND": 0.9},
        lambda x: run(straight(-x)),
        {STEP: "?", 0.999 * STEP: "warning"},
    ),
    At(
        "NOL106",
        {"learning.STILL": 0.9, "learning.STILL_SLOPE": 0.9, "learning.STILL_BOUND": 2.0**-6},
        lambda x: run(straight(-x)),
        {STEP: "?", 0.999 * STEP: "warning"},
    ),
    At(
        "NOL106",
        {"learning.LEAST_FALL": 0.03125, "learning.STILL_ROWS": 99},
        lambda x: run([2.0, 2.0, 2.0, *line(45, 2.0, 2.0 - 0.9 * x), *[2.0 - x] * 12]),
        {0.0625: None, 0.0624: "?"},
    ),
    At(
        "NOL106",
        {},
        lambda x: run([LN2] * 40, kind="preference", columns={"rewards/margins": [x - 0.001] * 40}),
        {0.0: "warning", 0.1: None},
    ),
    At(
        "NOL106",
        {"learning.TINY_FALL": 0.125, "learning.STILL_ROWS": 99},
        lambda x: run([2.0] * 3 + line(13, 1.6, 2.4) + [x] * 4, rates=9e-8),
        {1.75: "?", 1.7501: "warning"},
    ),
    At("PLT105", {}, lambda x: run(line(20, 1.0, x) + [x] * 40), {0.02: None, 0.0201: "info"}),
    At("PLT105", {}, lambda x: run([*line(20, 4.0, 2.0), *[2.0] * 39, x]), {2.0: "info", NAN: None, math.inf: None}),
    At(
        "PLT105",
        {"learning.FLAT": 2.0**-8, "learning.STILL_FALLS": 0.9},
        falls_then_drifts,
        {2.0**-8: "info", 1.01 * 2.0**-8: None},
    ),
    At("PLT105", {"learning.STILL_FALLS": 2.0**-9}, falls_then_drifts, {2.0**-9: "info", 1.01 * 2.0**-9: "?"}),
]
CHANCE = {"held_out.CHANCE_MARGIN": 0.0625, "held_out.CHANCE_NEAR": 0.0625}
HELD_OUT: Sequence[At] = [
    At(
        "OVF110",
        {"held_out.OVERFIT_MUCH": 0.125},
        lambda x: evaluated(1.5, 1.0, x, x),
        {1.125: "info", 1.1251: "warning"},
    ),
    At(
        "OVF110",
        {"held_out.OVERFIT_RISE": 0.125},
        lambda x: evaluated(1.5, 1.0, x, x),
        {1.125: None, 1.1251: "warning"},
    ),
    # of the least rise and the noise the larger counts, not their sum
    At(
        "OVF110",
        {"facts.noise": lambda *_, **__: 2.0**-6},
        lambda x: evaluated(1.5, 1.25, 1.0, x, x),
        {1.046875: None, 1.05: "info"},
    ),
    At(
        "UND126",
        {"facts.noise": lambda *_, **__: 2.0**-6},
        lambda x: evaluated(2.0, 2.0, 2.0, 2.0, x),
        {1.953125: None, 1.94: "info"},
    ),
    At("SML113", {"held_out.SMALL_EVAL": 1.96 * 0.05}, lambda n: classes(0.5, 0.5, n=n), {100: None, 99: "info"}),
    At("CHN112", {}, lambda x: classes(x, of=2), {0.98 * LN2: "warning", 0.979 * LN2: None, math.inf: None}),
    At(
        "CHN112",
        CHANCE,
        lambda x: classes(math.log(2.0), x),
        {0.5625: "warning", 0.4375: "warning", 0.563: "?", 0.437: "?"},
    ),
    At(
        "CHN112",
        CHANCE | {"held_out.CHANCE_NEAR": 1.0},
        lambda x: classes(LN2 * x, 0.5),
        {2.0: "warning", 0.0: "warning", 2.001: "?", -0.001: "?"},
    ),
    At("CHN112", {}, lambda k: classes(math.log(k), 1.0 / k), {2.0: "warning", 20.0: "warning", 22.0: "?"}),
    At("UND126", {}, lambda x: evaluated(2.0, 1.0, 1.5, x), {1.2: None, 0.99: "info"}),
    At("UND126", {"facts.UNFINISHED_FALL": 0.125}, lambda x: evaluated(2.0, 1.0, x), {0.875: None, 0.8749: "info"}),
]


def of(level: float) -> Callable[..., float]:
    """A function with one answer."""
    return lambda *_, **__: level


def noisy_with_a_zero(spike: float) -> RunFacts:
    """Half of the rows twice the others, one exactly 0, and one far above: no logarithm is taken."""
    return run([0.0 if i == 2 else spike if i == 40 else 1.0 + i % 2 for i in range(60)])


def quite_noisy(apart: float) -> RunFacts:
    """By turns at 8 less 1 and 8 plus 1: changes of a quarter of the median. A spike of 30 is 11 such changes high, but
    in the logarithm, which is taken of noisier losses, only 5.
    """
    rows = [8.0 + (apart if i % 2 else -apart) for i in range(60)]
    return run([*rows[:40], 30.0, *rows[41:], 8.0 - apart, 8.0 - apart])


UP = [*[1.0] * 4, *[4.0] * 4, *[0.98] * 12]  # and down again
BACK = [*[1.0] * 8, *[0.5] * 4, *[1.0] * 8]
LEVELS: Sequence[At] = [
    At("DIV103", {}, noisy_with_a_zero, {20.0: "info", 2.0: None}),
    At("DIV103", {}, quite_noisy, {1.0: "info", 1.1: None}),
    At("DIV103", {}, lambda x: run(with_row([1.0] * 12, 8, by=x)), {1.5: None, 1.51: "info"}),
    At(
        "DIV104",
        {"divergence.median_error": of(LN2 / 4)},
        lambda x: run([1.0] * 16 + [x] * 4),
        {2.0: None, 2.01: "error"},
    ),
    At("DIV104", {"divergence.noise": of(math.log(4) / 4)}, lambda x: run([1.0, *[x] * 9]), {4.0: None, 4.01: "error"}),
    At(
        "DIV104",
        {"divergence.noise": of(math.log(4) / 6)},
        lambda x: run([*UP[:4], *[x] * 4, *UP[8:]]),
        {4.0: None, 4.01: "warning"},
    ),
    At("DIV104", {"divergence.noise": of(0.0)}, lambda n: run([1.0, *[3.0] * (n - 2), 1.0]), {5: "warning", 4: None}),
    At(
        "DIV104",
        {"divergence.median_error": of(LN2 / 6)},
        lambda x: run([*BACK[:8], *[x] * 4, *BACK[12:]]),
        {0.5: None, 0.49: "warning"},
    ),
    At("DIV104", {}, lambda x: run([*line(15, 3.0, 1.0), *[1.0] * 5, *[x] * 10]), {2.0: None, 2.01: "warning"}),
    At("DIV104", {}, lambda x: run([*[1.0] * 4, *[3.0] * 4, *[x] * 12]), {0.97: None, 0.98: "warning"}),
    At(
        "DIV104",
        {"divergence.ABSURD_LEVEL": 1.25},
        lambda x: run([1.0, 1.4, 1.4, x, *[1.4] * 6], rates=0.05),
        {1.25: None, 1.26: "error"},
    ),
    At(
        "DIV104",
        {"divergence.noise": of(0.0)},
        lambda n: run([1.0, 1.0, *[0.5] * (n - 5), 1.1, 1.1, 1.1]),
        {7: None, 8: "error"},
    ),
    At(
        "DIV104",
        {"divergence.noise": of(0.0), "divergence.median_error": of(9.0)},
        lambda x: run([1.0, x, *[4.0] * 10]),
        {1.5: "warning", 1.51: "error"},
    ),
    At("SCL129", {}, lambda x: run([x] * 12, held_out=[0.5] * 3), {1.5: "warning", 1.49: None}),
    At("SCL129", {}, lambda x: run([x] * 12, held_out=[2.0] * 3), {6.0: "warning", 5.99: None}),
    At("SCL129", {}, lambda n: run([1.0, 1.0, 6.0] * n, held_out=[2.0] * 4), {4: "warning", 8: None}),
    At("SCL129", {}, lambda n: run([12.6, 5.1, 5.0][:n]), {1: None, 2: "warning", 3: "warning"}),
    At("SCL129", {}, lambda x: run([x, 10.0, 4.0, 3.0]), {math.log(262_144): None, 12.4767: "warning"}),
]


def separated(accuracy: float, error: float, margin: float, margin_error: float) -> RunFacts:
    """Columns whose second half begins with what `mean_error` is to answer."""
    columns = {"rewards/accuracies": (accuracy, error), "rewards/margins": (margin, margin_error)}
    return run(
        [0.69] * 20,
        kind="preference",
        columns={name: [*[0.0] * 10, *answers, *[0.0] * 8] for name, answers in columns.items()},
    )


def chosen(*, rows: int, fall: float = 2.0) -> RunFacts:
    return run(
        [0.69] * rows,
        kind="preference",
        columns={"rewards/chosen": [1.0] * (rows // 2) + [1.0 - fall] * (rows - rows // 2)},
    )


def rewarded(first: float, best: float, last: float) -> RunFacts:
    return run(kind="rl", columns={"reward": [*[first] * 4, *[best] * 8, *[last] * 8]})


def rewarded_seldom(last: float) -> RunFacts:
    return run(kind="rl", columns={"reward": [2.0, 2.0, 1.5, 1.5, last, last]})


BY_COLUMN = {"preference.mean_error": lambda values: (values[0], values[1])}
REWARDS: Sequence[At] = [
    At("PRF119", BY_COLUMN, lambda x: separated(x, 0.03125, 0.0, 1.0), {0.5625: "warning", 0.5626: None}),
    At("PRF119", BY_COLUMN, lambda x: separated(x, 0.01, 0.4, 0.125), {0.5: None, 0.499: "warning"}),
    At("PRF119", BY_COLUMN, lambda x: separated(0.5, 0.01, x, 0.125), {0.375: "warning", 0.3751: None}),
    At("PRF119", BY_COLUMN, lambda x: separated(0.5, x, 0.0, 0.125), {0.08: "warning", 0.0801: "?"}),
    At("PRF119", BY_COLUMN, lambda x: separated(0.5, 0.05, x, 0.125), {0.125: "warning", 0.126: "?"}),
    At("PRF119", BY_COLUMN, lambda x: separated(0.5, x, 0.2, 0.125), {0.03: "warning", 0.0301: "?"}),
    At("PRF120", {"preference.mann_kendall": of(0.01)}, lambda x: chosen(rows=10, fall=x), {2.0: "info", 0.9: None}),
    At("PRF120", {"preference.mann_kendall": of(0.0101)}, lambda n: chosen(rows=n), {19: None, 20: "info"}),
    At("RWD122", {"rewards.median_error": of(0.25)}, lambda x: rewarded(0.5, 2.0, x), {1.0: "?", 0.99: "warning"}),
    At("RWD122", {"rewards.median_error": of(0.125)}, lambda x: rewarded(0.0, 2.0, x), {1.0: None, 0.99: "warning"}),
    At(
        "RWD122",
        {"rewards.median_error": of(0.25), "rewards.REWARD_FLAT": 0.5},
        lambda x: rewarded(1.0, 1.5, x),
        {1.0: "info", 1.2: "?", 1.75: "?", 1.76: None},
    ),
    At(
        "RWD122",
        {"rewards.median_error": of(0.25), "rewards.REWARD_FLAT": 0.5},
        lambda x: rewarded(x, x, x),
        {1.0: "info", -1.0: "info", 0.999: "?"},
    ),
    # a tenth of a level below 0 is as far as one of a level above it
    At(
        "RWD122",
        {"rewards.median_error": of(0.0)},
        lambda x: rewarded(-10.2, -10.0, x),
        {-11.0: None, -11.01: "warning"},
    ),
    At(
        "RWD122",
        {"rewards.mann_kendall": of(0.01), "rewards.REWARD_FALL": 0.5},
        rewarded_seldom,
        {1.0: None, 0.99: "warning"},
    ),
    At("RWD122", {"rewards.mann_kendall": of(0.0101)}, rewarded_seldom, {0.99: "?"}),
    At(
        "RWD122",
        {"rewards.mann_kendall": of(0.01)},
        lambda x: run(kind="rl", columns={"reward": [-10.0, -10.0, -10.1, x, x]}),
        {-11.0: None, -11.01: "warning"},
    ),
]


def repeated(epochs: float, start: float, end: float) -> RunFacts:
    return run([start] * 20 + [end] * 20, epoch=epochs)


def stepping(held_out: float) -> RunFacts:
    """Two epochs of 32 rows, the second lower by a sixteenth; the evaluations fall as said between them."""
    return run([1.0] * 32 + [0.9375] * 32, epoch=2.5, held_out=[1.0, 1.0 - held_out])


REPETITION: Sequence[At] = [
    At("REP128", {}, lambda x: repeated(10.0, 2.0, x), {1.0: "warning", 1.01: None}),
    At("REP128", {}, lambda x: repeated(3.6, 1.0, x), {0.1: "warning", 0.101: None}),
    At("REP128", {}, lambda x: repeated(x, 1.0, 0.05), {3.5: None, 3.51: "warning"}),
    At("REP128", {}, lambda x: repeated(x, 3.0, 1.5), {9.9: None, 10.0: "warning"}),
    At("REP128", {}, lambda x: repeated(x, 3.0, 1.9), {19.9: None, 20.0: "warning"}),
    At("REP128", {}, lambda x: repeated(20.0, 10.0, x), {6.5: "warning", 6.6: None}),
]


def rates(*levels: float) -> RunFacts:
    """The learning rate of each third."""
    return run(FALL, rates=[level for level in levels for _ in range(20)])


def norms(of_rows: Sequence[float], losses: Sequence[float] = FALL, **more: Any) -> RunFacts:
    return run(losses, norms=of_rows, **more)


def risen(end: float) -> RunFacts:
    """Norms that jump in three rows, and a loss of 2 before them and another at the end."""
    return norms(with_row([1.0] * 60, 40, 41, 42, by=7.5), [*[2.0] * 40, *[end] * 20])


def masked(loss: float, *, before: Sequence[float] = (2.0,) * 20, norm: float = NAN) -> RunFacts:
    """A row whose gradient is not finite, and its loss."""
    rows = len(before)
    return norms([*[1.0] * rows, norm, *[1.0] * 5], [*before, loss, *[2.0] * 5], lost=[rows + 1])


def zeros(*last: float, before: Sequence[float] = (2.0,) * 20, kind: str | None = None) -> RunFacts:
    """Losses of exactly 0 in the last rows, with these gradient norms."""
    return norms([*[1.0] * len(before), *last], [*before, *[0.0] * len(last)], kind=kind)


def replayed(loss: float) -> RunFacts:
    """Three steps that had a loss of 1 before the resume, and have another now."""
    now = run([loss] * 20)
    return replace(now, record=LogRecord(resumed_from=[10], replaced=[(step, 1.0) for step in (11, 12, 13)]))


def faded(losses: Sequence[float], first: int = 20, last: int = 60) -> RunFacts:
    """Norms of next to nothing in some rows."""
    return norms([1e-6 if first <= row < last else 1.0 for row in range(60)], losses)


def tiny_rows(rows: tuple[int, int]) -> RunFacts:
    """A long log, judged by pairs of rows: the first pair of an odd row is not low."""
    return norms([1e-6 if rows[0] <= i < rows[1] else 1.0 for i in range(4096)], line(4096, 2.0, 1.0), rates=[])


GRADIENTS: Sequence[At] = [
    At("GRD108", {}, lambda x: norms([1.0] * 20 + [x] * 40), {1e-3: None, 0.99e-3: "warning"}),
    At("GRD108", {}, lambda x: norms([*[0.0] * 4, x, x, *[1.0] * 24, *[1e-6] * 30]), {1.0: "warning", 1e-4: None}),
    At("LRS109", {}, lambda x: run(FALL, lr=x), {0.0: None, -1.0: None, 4e-4: None, 4.1e-4: "warning", NAN: None}),
    At("GRD107", {}, lambda x: norms([x] * 20 + [1.0] * 40), {0.0: None, 0.05: "info"}),
    At(
        "GRD108",
        {},
        lambda n: norms([float(not 2001 <= i < 2001 + n) for i in range(4096)], line(4096, 2.0, 1.0), rates=[]),
        {4: None, 5: "warning"},
    ),
    At("GRD108", {}, tiny_rows, {(2001, 2006): None, (2000, 2006): "warning"}),
    At("NOL106", {}, lambda x: norms([1.0] * 39 + [x], FLAT[:40]), {0.0: "warning", 1.0: "warning"}),
    At("GRD107", {}, lambda n: norms(with_row([1.0] * 60, 20, *range(40, 40 + n), by=7.5)), {2: None, 3: "info"}),
    At("GRD107", {}, risen, {2.0: "info", 2.001: "warning"}),
    At("GRD108", {}, lambda x: faded([2.0] * 20 + [x] * 20 + [2.0] * 20, last=40), {0.001: "info", 0.1: "warning"}),
    At("GRD108", {}, lambda x: faded([1.0] * 3 + [x] * 17 + [0.02] * 40), {9.0: "info", 1.0: "warning"}),
    At(
        "GRD107",
        {},
        lambda n: norms([100.0 if 2000 <= i < 2000 + n else 1.0 for i in range(4096)], line(4096, 2.0, 1.0), rates=[]),
        {2: None, 4: "info"},
    ),
    At(
        "GRD107",
        {},
        lambda x: norms([1.0, 1.0, x, *with_row([1.0] * 57, *range(37, 40), by=7.5)]),
        {1.0: "info", 0.0: None},
    ),
    At(
        "GRD108",
        {},
        lambda x: run([2.0] * 20 + [x] * 40, norms=[1.0] * 20 + [1e-6] * 40),
        {0.02: "warning", 0.019: "info", 0.0: "warning"},
    ),
    At("LRS109", {}, lambda x: rates(10.0, 0.5, x), {1.5: None, 1.51: "warning"}),
    At("LRS109", {}, lambda x: rates(1.0, 0.25, x), {0.5: None, 0.51: "warning"}),
    At("LRS109", {}, lambda x: rates(1.0, x, 1.0), {0.5: None, 0.4375: "warning"}),
    At("LRS109", {}, lambda n: run(FALL, rates=[NAN] * (60 - n) + [2e-4] * n), {2: "?", 3: None}),
]


def at_the_end(norm: float) -> RunFacts:
    """Skipped steps up to the last row, whose norm is as said."""
    facts = skipped(range(8, 11), range(8, 11), 12)
    facts.series.grad_norms[11] = norm  # type: ignore[index]  # a list
    return facts


NUMBERS: Sequence[At] = [
    At("NUM102", {}, lambda x: zeros(1e-8, before=[x] * 20), {0.05: None, 0.049: "info"}),
    At("NUM102", {}, lambda x: zeros(NAN, x), {1e-8: None, NAN: "error"}),
    At("NUM131", {}, lambda n: skipped([5, 9, 13, 17, 21], [5, 9, 13][:n]), {2: None, 3: "info"}),
    At("NUM101", {}, lambda n: skipped([5, 9, 13, 17, 21], [5, 9, 13][:n]), {2: "info", 3: None}),
    At("NUM102", {}, masked, {1.7: None, 1.699: "error"}),
    At("NUM102", {}, lambda x: masked(x, norm=math.inf), {1.7: None, 1.699: "error"}),
    At("NUM102", {}, lambda x: zeros(NAN, NAN, before=[2.0] * 12 + [x] * 8), {0.05: "error", 0.049: "info"}),
    At("NUM102", {}, lambda x: zeros(x, 1e-8), {0.0: "error", 1e-8: None}),
    At("NUM102", {}, lambda kind: zeros(0.0, 0.0, kind=kind), {"preference": None, None: "error"}),
    At("NUM102", {}, lambda n: zeros(*[NAN] * n), {1: None, 2: "error"}),
]


def fed(**counts: Any) -> RunFacts:
    """What the recorder saw of the batches."""
    return run(FALL, data={"rows": 100, "tokens": 100, "supervised": 100, "rows_unsupervised": 0, **counts})


def announced(tokens: int, *, share: float | None = None, length: float | None = None, rows: int = 100) -> RunFacts:
    known = {"supervised_share": share, "tokens_per_sequence": length}
    return fed(tokens=tokens, rows=rows, announced=known)


RECORD: Sequence[At] = [
    At("DAT305", {}, lambda n: fed(rows_at_limit=n), {4: None, 5: "warning"}),
    At("DAT305", {}, lambda n: fed(rows_at_limit=n, rows=0), {5: None}),
    At("DAT305", {}, lambda n: fed(rows_at_limit=n, rows=None), {5: None, None: "?"}),
    At(
        "DAT321",
        {},
        lambda n: announced(n, length=100.0),
        {12_500: None, 12_600: "warning", 7_500: None, 7_400: "warning"},
    ),
    At("DAT321", {"recorded.SHARE_APART": 0.125}, lambda x: announced(200, share=x), {0.375: None, 0.374: "warning"}),
    At("DAT321", {}, lambda n: announced(900, length=1.0, rows=n), {31: "?", 32: "warning"}),
    At("NUM131", {}, at_the_end, {1.0: "info", math.inf: None, 0.0: None}),
    At("GAP118", {}, lambda n: run(FALL[:n], every=20), {0: None, 1: "warning", 2: "warning", 3: None}),
    At(
        "RES116",
        {"record.REPLAY_DIFFERENCE": 0.25},
        replayed,
        {1.25: "info", 0.75: "info", 1.26: "warning", 0.74: "warning"},
    ),
    At("NOL106", {}, lambda x: run(line(40, 2.0, 2.0 * (1.0 - x)), rates=5e-8), {0.08: None, 0.01: "warning"}),
    At("SCL129", {}, lambda x: run([*[6.0] * 16, *[x] * 4], held_out=[2.0] * 3), {12.0: None, 6.0: "warning"}),
    At("NOL106", {"facts.moves": of(1e-3)}, lambda n: run(FLAT[:n]), {40: "?"}),
    At("NOL106", {"facts.moves": of(1.001e-3)}, lambda n: run(FLAT[:n]), {40: "warning"}),
]


@every(
    "case",
    [*LEARNING, *HELD_OUT, *LEVELS, *REWARDS, *REPETITION, *GRADIENTS, *NUMBERS, *RECORD],
    ids=lambda case: f"{case.rule} {' '.join(case.thresholds)} {' '.join(map(str, case.answers))}",
)
def test_a_threshold_itself_is_on_this_side(case: At, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in case.thresholds.items():
        module, _, threshold = name.partition(".")
        held = importlib.import_module(f"gradience.rules.log.{module}")
        is_function = inspect.isfunction(getattr(held, threshold))
        monkeypatch.setattr(held, threshold, value if is_function else getattr(held, threshold)._replace(value=value))
    assert {x: answer(case.rule, case.make(x)) for x in case.answers} == case.answers


@every("k", [2, 10, 18, 19, 20])
def test_of_several_numbers_of_classes_that_fit_the_nearest_is_named(k):
    found = said("CHN112", classes(math.log(k), 1.0 / k))
    assert f"chance among {k} classes" in found.message
    assert (found.values["chance"], found.values["chance_loss"]) == (1.0 / k, math.log(k))
    # by the loss: 2.93 is nearer to ln 19 = 2.944 than to ln 18 = 2.890, though the accuracy is that of 18
    assert said("CHN112", classes(2.93, 1.0 / 18)).values["chance"] == 1.0 / 19
