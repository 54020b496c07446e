"""Explain where two runs part, and by what: from their logs alone.

What differs before the first step (settings, weights, versions) is a candidate. The first step at which a recorded
quantity differs, and which one it is, shows which candidates act there: within a step, weights come before the batch,
then the random states, the learning rate, the loss and the gradient. One candidate is the cause; of several it is said
that they cannot be told apart; if there is none, what to record.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from gradience.rules.log.pace import pace_of
from gradience.schema import Json
from gradience.schema.events import ConfigSnapshot, Wiring
from gradience.schema.why import WHY_SCHEMA_ID, Difference, Parting, Verdict, WhyReport
from gradience.schema.wiring import ParameterGroup
from gradience.verbs.why.causes import ACTS_ON, EXPLAINS, ORDER, RATES, SETTINGS, WORDS
from gradience.verbs.why.traces import Trace, column, traces_of

_ROUNDING: Final = 1e-6  # relative difference under which two losses are of one computation, written by other trainers
_SAME_ROWS: Final = 0.5  # share of a batch's rows that both runs have in a step in which single rows were changed


def explain_difference(
    first: str | os.PathLike[str], second: str | os.PathLike[str], *, runs: Sequence[str] = ()
) -> WhyReport:
    """Explain where two runs part, and by what.

    Args:
        first: a run.jsonl, the folder that holds one, or another trainer's log that `gradience import` reads.
        second: the other run. If both are the same log, its last two runs, or a run and its resume, are compared.
        runs: of sources with several runs, the name or id of the first run, and that of the second.

    Raises:
        RecorderError: a log is missing, empty, or holds no event of a run, or no such run.
        SchemaError: a log is of another major version.
    """
    a, b = traces_of(Path(first), Path(second), runs)
    names = (*(f" ({run})" for run in runs), "", "")
    return _TracePair(a, b, [f"{path}{run}" for path, run in zip((first, second), names, strict=False)]).report()


class _TracePair:
    """Two traces, what differs between them, and where."""

    def __init__(self, a: Trace, b: Trace, names: list[str]) -> None:
        self._a, self._b, self._names = a, b, names

    def report(self) -> WhyReport:
        """Return the report."""
        partings = self._partings()
        causes = self._candidates(partings)
        step = partings[0].step if partings else None
        acting = _acting([each for each in causes if not self._came_too_late(each, partings)], partings)
        several: Verdict = "several" if acting else "unknown"
        compared = self._compared()
        alike: Verdict = "same" if compared else "unknown"
        verdict: Verdict = alike if not partings else "one_cause" if len(acting) == 1 else several
        lacking = self._not_told(partings, acting)
        rest = [each for each in causes if each not in acting]
        paces = [pace_of(trace.paces) for trace in (self._a, self._b)]
        return WhyReport(
            schema=WHY_SCHEMA_ID,
            runs=self._names,
            verdict=verdict,
            story=_story(partings, acting, ", ".join(WORDS[each.cause] for each in rest), compared)
            + self._anew(partings),
            step=step,
            cause=acting[0] if len(acting) == 1 else None,
            parts=partings,
            differences=[*acting, *rest],
            paces=paces if any(paces) else [],
            compared=compared,
            not_told=lacking,
        )

    def _anew(self, partings: Sequence[Parting]) -> str:
        """What it means that a run which was to resume does what the other one does, from its first step."""
        both = [(name, trace) for name, trace in zip(self._names, (self._a, self._b), strict=True) if _resumes(trace)]
        loss, other = column(self._a, "loss"), column(self._b, "loss")
        if partings or len(both) != 1 or not loss or min(loss) != min(other, default=None):
            return ""
        name = Path(both[0][0]).name
        return f"; {name} was to resume, and repeats the other from its first step: it did not resume, it began anew"

    def _partings(self) -> list[Parting]:
        """What differs at the first step at which anything does, in the order in which a step is computed."""
        every = (self._weights(), *map(self._first, ORDER[1:]))
        partings = [part for part in every if part is not None and not self._is_idle(part)]
        # Weights are of step 0, before the first, and what they change shows in step 1: it is one parting.
        least = min((part.step for part in partings), default=0)
        return (
            [part for part in partings if part.step <= max(least, 1)]
            if least == 0
            else [part for part in partings if part.step == least]
        )

    def _is_idle(self, part: Parting) -> bool:
        """Whether other random states changed nothing in their step: two loops may draw, but not for the model."""
        losses = [column(trace, "loss").get(part.step) for trace in (self._a, self._b)]
        return part.quantity == "rng" and None not in losses and _equal(*losses)

    def _came_too_late(self, cause: Difference, partings: Sequence[Parting]) -> bool:
        """Whether a seed is no cause of other rows, because the first batches of both runs are the same."""
        part = next(iter(partings), None)
        if cause.cause != "seed" or part is None or part.quantity != "batch":
            return False
        return part.step > min(column(self._a, "batch").keys() & column(self._b, "batch").keys())

    def _weights(self) -> Parting | None:
        pair = self._looks()
        if pair is None:
            return None
        a, b = pair
        for group in a.groups:
            other = next((each for each in b.groups if each.kind == group.kind), None)
            if other is None:
                continue
            for name, every in (("digest", "sampled"), ("frozen_digest", "frozen_sampled")):
                one, two = getattr(group, name), getattr(other, name)
                if one and two and one != two and getattr(group, every) == getattr(other, every):
                    return Parting(quantity="weights", step=a.step or 0, first=one, second=two)
        return None

    def _first(self, quantity: str) -> Parting | None:
        one, two = (column(trace, quantity) for trace in (self._a, self._b))
        for step in sorted(one.keys() & two.keys()):
            if not _equal(one[step], two[step]):
                return Parting(quantity=quantity, step=step, first=one[step], second=two[step])
        return None

    def _candidates(self, partings: Sequence[Parting]) -> list[Difference]:
        differences = [*self._of_settings(), *self._of_wiring(), *self._of_batches(partings), *self._of_versions()]
        # Other rates in the log follow from these settings, and are no second cause.
        if not any(each.cause in RATES for each in differences):
            # Of other batches the rates differ since the steps are fewer or more.
            of_batches = any(each.cause in {"batch_size", "accumulation", "data"} for each in differences)
            differences += self._of_rates("length" if of_batches else "schedule")
        first: dict[str, Difference] = {}
        # A setting names its cause best, and settings come first.
        for each in differences:
            first.setdefault(each.cause, each)
        return list(first.values())

    def _of_settings(self) -> Iterator[Difference]:
        for cause, paths in SETTINGS.items():
            pairs = {path: (_at(self._a.config, path), _at(self._b.config, path)) for path in paths}
            apart = {path: (x, y) for path, (x, y) in pairs.items() if x != y and None not in (x, y)}
            if apart:
                says = "; ".join(f"{path.replace('.extras', '')}: {x} and {y}" for path, (x, y) in apart.items())
                first, second = (
                    next(iter(apart.values())) if len(apart) == 1 else map(list, zip(*apart.values(), strict=True))
                )
                yield Difference(cause=cause, says=says, first=first, second=second)

    def _of_wiring(self) -> Iterator[Difference]:
        pair = self._looks()
        if pair is None:
            return
        a, b = pair
        if a.seed != b.seed:
            yield _differs("seed", "torch's seed", a.seed, b.seed)
        for group in a.groups:
            other = next((each for each in b.groups if each.kind == group.kind), None)
            if other is not None:
                yield from _of_group(group, other)
        yield from _of_data(a, b)
        if a.dropouts != b.dropouts:
            yield _differs("dropout", "dropout modules by probability", a.dropouts, b.dropouts)
        for name in sorted(a.settings.keys() & b.settings.keys()):
            if a.settings[name] != b.settings[name]:
                cause = "dropout" if name == "dropout" else "environment"
                yield _differs(cause, name, a.settings[name], b.settings[name])

    def _looks(self) -> tuple[Wiring, Wiring] | None:
        """Looks at one step in both runs: both starts, or the save of one and the resume of the other."""
        a, b = self._a.start, self._b.start
        if a is None or b is None:
            return None
        if a.step == b.step:
            return a, b
        saves = {wiring.step: wiring for wiring in self._a.wirings if wiring.phase == "save"}
        return (saves[b.step], b) if b.step in saves else None

    def _of_batches(self, partings: Sequence[Parting]) -> Iterator[Difference]:
        part = next((each for each in partings if each.quantity == "batch"), None)
        if part is None:
            return
        batches = [trace.batches[part.step] for trace in (self._a, self._b)]
        micro, (one, two) = [len(batch.micro) for batch in batches], [batch.rows for batch in batches]
        if len(one) != len(two):
            if micro[0] != micro[1]:
                yield _differs("accumulation", "micro-batches of a step", micro[0], micro[1], part.step)
            if len(one) * micro[1] != len(two) * micro[0]:
                yield _differs("batch_size", "rows of a step", len(one), len(two), part.step)
            return
        if sorted(one) == sorted(two):
            by = "accumulation" if micro[0] != micro[1] else "order"
            yield _differs(
                by, f"the rows of step {part.step} in another arrangement", part.first, part.second, part.step
            )
            return
        shared = sum(x == y for x, y in zip(one, two, strict=True)) / len(one)
        others = {row for batch in self._b.batches.values() for row in batch.rows}
        moved = sum(row in others for row in one) / len(one)
        # Rows that the other run has in another step were shuffled; those that it never has were changed.
        if shared < _SAME_ROWS and moved > shared:
            yield _differs("order", f"other rows in step {part.step}", part.first, part.second, part.step)
        else:
            changed = [place for place, (x, y) in enumerate(zip(one, two, strict=True)) if x != y]
            says = f"{len(changed)} of the {len(one)} rows of step {part.step}"
            yield _differs("data_row", says, part.first, part.second, part.step)

    def _of_rates(self, later: str) -> Iterator[Difference]:
        part = self._first("lr")
        if part is None:
            return
        one, two = column(self._a, "lr"), column(self._b, "lr")
        steps = sorted(one.keys() & two.keys())
        ratios = {round(one[s] / two[s], 6) for s in steps if two[s]}
        late = steps[len(steps) // 2 :]
        # One ratio throughout is another peak. A warm-up ends, so that the later rates agree.
        cause = "lr" if len(ratios) == 1 else "warmup" if all(_equal(one[s], two[s]) for s in late) else later
        yield _differs(cause, f"learning rate of step {part.step}", part.first, part.second, part.step)

    def _of_versions(self) -> Iterator[Difference]:
        other: dict[str, tuple[str, str]] = {}
        for a, b in zip(self._a.versions, self._b.versions, strict=True):
            other |= {name: (a[name], b[name]) for name in sorted(a.keys() & b.keys()) if a[name] != b[name]}
        if other:
            says = ", ".join(f"{name} {x} and {y}" for name, (x, y) in other.items())
            first, second = ({name: pair[i] for name, pair in other.items()} for i in (0, 1))
            yield Difference(cause="version", says=says, first=first, second=second)

    def _compared(self) -> list[str]:
        quantities = [name for name in ORDER[1:] if column(self._a, name).keys() & column(self._b, name).keys()]
        return (["weights"] if self._a.start and self._b.start else []) + quantities

    def _not_told(self, partings: Sequence[Parting], acting: Sequence[Difference]) -> list[str]:
        compared = self._compared()
        lacking: dict[str, str] = {
            "weights": "the weights before the first step: record them (GradienceCallback, or TelemetryWriter.watch)",
            "batch": "the rows of each step: record the digests (digests=True)",
            "loss": "no step has a loss in both: log every step (logging_steps=1)",
        }
        reasons = [says for name, says in lacking.items() if name not in compared]
        if partings and not acting and not reasons:
            reasons.append(
                "nothing that was recorded differs before it: kernels that are not deterministic, the data's "
                "processing, or code; call torch.use_deterministic_algorithms(True) and run both again"
            )
        return reasons


def _of_group(group: ParameterGroup, other: ParameterGroup) -> Iterator[Difference]:
    if group.dtypes != other.dtypes:
        yield _differs("dtype", f"dtype of the {group.kind} weights", group.dtypes, other.dtypes)
    if group.trainable != other.trainable:
        yield _differs("trainable", f"trainable parameters of the {group.kind}", group.trainable, other.trainable)
    cause = "adapter_init" if group.kind in {"adapter", "whole"} else "base_weights"
    for name in ("digest", "frozen_digest"):
        one, two = getattr(group, name), getattr(other, name)
        if one and two and one != two:
            yield _differs(cause, f"digest of the {group.kind} weights before the first step", one, two)


def _of_data(a: Wiring, b: Wiring) -> Iterator[Difference]:
    one, two = a.data, b.data
    if one is None or two is None:
        return
    for cause, name in (
        ("order", "seed"),
        ("batch_size", "batch_size"),
        ("accumulation", "accumulation"),
        ("batch_size", "world_size"),
        ("data", "rows"),
        ("order", "sampler"),
    ):
        x, y = getattr(one, name), getattr(two, name)
        if x is not None and y is not None and x != y:
            yield _differs(cause, name, x, y)


def _acting(causes: Sequence[Difference], partings: Sequence[Parting]) -> list[Difference]:
    """The differences that may be behind the first quantity that parts, without those that follow from another."""
    if not partings:
        return []
    quantity, step = partings[0].quantity, partings[0].step
    able = [each for each in causes if quantity in ACTS_ON.get(each.cause, frozenset()) and each.step <= max(step, 1)]
    followed = frozenset[str]().union(*(EXPLAINS.get(each.cause, frozenset()) for each in able))
    roots = [each for each in able if each.cause not in followed]
    # Versions and machines seldom agree in all, so they are named only where nothing else can be.
    sure = [each for each in roots if each.cause not in {"version", "environment"}]
    return sure or roots


def _story(partings: Sequence[Parting], acting: Sequence[Difference], others: str, compared: Sequence[str]) -> str:
    if not partings:
        alike = f"the runs do not part in what both recorded ({', '.join(compared)})"
        begun = alike if compared else "nothing could be compared: no step has the same quantity in both logs"
        return begun + (f"; what differs: {others}" if others else "")
    first = partings[0]
    what = {"weights": "their weights differ", "rng": "their random states differ", "batch": "they get other rows"}
    how = what.get(first.quantity, f"the {first.quantity} differs")
    at = "before the first step" if first.step == 0 else f"at step {first.step}"
    if len(acting) == 1:
        return f"the runs part {at}, where {how}: {WORDS[acting[0].cause]} ({acting[0].says})"
    if acting:
        names = ", ".join(WORDS[each.cause] for each in acting)
        return f"the runs part {at}, where {how}: it cannot be told which of these is behind it: {names}"
    return f"the runs part {at}, where {how}, and nothing that both recorded explains it"


def _differs(cause: str, what: str, first: Any, second: Any, step: int = 0) -> Difference:
    return Difference(cause=cause, says=f"{what}: {first} and {second}", first=first, second=second, step=step)


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=_ROUNDING)
    return bool(one == two)


def _resumes(trace: Trace) -> bool:
    """Whether the run's settings say that it resumes another."""
    return bool(trace.config.training.extras.get("resumes"))


def _at(config: ConfigSnapshot, path: str) -> Json:
    value: Any = config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name)
        if value is None:
            return None
    # Names in a list, such as target modules, are a set, which PEFT saves in no order.
    return sorted(value) if isinstance(value, list) and all(isinstance(x, str) for x in value) else value
