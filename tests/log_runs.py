"""The rules on logs, one entry each, and the constructed runs that the entries are made of.

An entry's edges are pairs of runs with one on either side of a threshold.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from msgspec.structs import replace as replace_struct

from gradience.rules import judge
from gradience.rules.log import RULE_OF, detect
from gradience.rules.log.facts import RunFacts, Signal
from gradience.rules.log.recorded import everything_masked
from gradience.schema import SCHEMA_ID, ConfigSnapshot, EvalMetrics, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.schema.document import Finding
from gradience.schema.events import Eval, Metrics, RunEnd, Throughput, Wiring
from gradience.schema.reports import BadLine, EvalPoint
from gradience.schema.wiring import DataWiring
from gradience.telemetry.series import Column, LogRecord, RunSeries

NAN: Final = math.nan
_GAP: Final = "sampling__sampling_logp_difference__mean"
_APART: Final = "Sampler and trainer give the same tokens other probabilities: "
_UNEVEN: Final = "Nearly all of the reward's variance is of rewards/size: its standard deviation is "
_SCALE = " at once, as by another scale. Rows before and after it are not comparable."
_NO_COMPLETION = ": no completion there got one from this function."
_TRADED: Final = "rewards/right falls from "
_RATIO: Final = "sampling__importance_sampling_ratio__mean"


class Edge(NamedTuple):
    """Two runs that differ in one number, on either side of the value where the answer changes, or one at it.

    `answers` has a letter for the run below, above, and at the value: i, w, e for a finding (info, warning, error), "-"
    where the rule is silent, "?" where it is not judged. Where both are alike, the findings differ in their confidence
    or their words; or, if their numbers alone differ, `says` has words of each of which the other has none.
    """

    number: str
    answers: str
    below: float
    above: float
    make: Callable[[Any], RunFacts]
    at: float | None = None
    says: tuple[str, str] | None = None

    def runs(self, rule: str) -> dict[str, RunFacts]:
        """Both runs, by name."""
        return {f"{rule} {self.number} {x:g}": self.make(x) for x in (self.below, self.above)}


class At(NamedTuple):
    """Runs by a number, and the answer to each: a severity, "?" (not judged), or None (silent).

    A number such as 0.02 has no exact value in binary, so that few runs are exactly at it. Where that is so, the
    threshold is set to a sum of powers of two, of which a run can have exactly as much. `given` holds what is set: by
    module and name a threshold's value, or a function's answer.
    """

    make: Callable[[Any], RunFacts]
    answers: dict[Any, str | None]
    given: Mapping[str, Any] = MappingProxyType({})
    number: str = ""  # the threshold that is between the answers


class Entry(NamedTuple):
    """One rule on logs.

    Attributes:
        edges: runs on either side of a threshold.
        at: runs with their answers.
        told: values of a finding, and its clause of the story.
        says: runs with the rule's sentence, or its reason to abstain.
        told_as_info: whether the story tells a finding that is only info, too.
    """

    edges: Sequence[Edge] = ()
    at: Sequence[At] = ()
    told: Sequence[tuple[dict[str, Any], str]] = ()
    says: Sequence[tuple[RunFacts, str]] = ()
    told_as_info: bool = False


def logged_rows(
    steps: Sequence[int] = (),
    losses: Sequence[float] = (),
    norms: Sequence[float] = (),
    rates: Sequence[float] = (),
    lost: frozenset[int] = frozenset(),
) -> RunSeries:
    """A run that logged these training rows, and nothing else."""
    made = RunSeries("r", steps=steps, losses=losses, grad_norms=norms, rates=rates, lost_norms=set(lost))  # type: ignore[arg-type]  # arrays are read only
    made.record.out_of_order = sum(b < a for a, b in pairwise(steps))
    return made


_KINDS: Final = {"audit": "lora_audit", "data": "data", "chosen": "selection"}  # kinds of metrics by the fact
_OF_FACTS: Final = {"issues", "issues_total", "gap_threshold"}
_STATED: Final = {"held_out", "evals", "num_labels"}  # facts that a test may state whatever the log says


def facts_of(series: RunSeries, **more: Any) -> RunFacts:
    """The facts of a run, whose end is not known unless told; `more` as in `changed`."""
    return changed(RunFacts(series), **{"status": "unknown", **more})


def changed(facts: RunFacts, **more: Any) -> RunFacts:
    """The facts of the same run but for these: fields of its log by their names, or by those of the facts."""
    run, of_run, head = facts.run, {}, {"ts": None, "run_id": "r", "step": None}
    stated = dict(vars(facts).get("stated", {}))
    metrics = dict(run.latest_metrics)
    for name, value in more.items():
        if name in _KINDS:
            metrics |= {_KINDS[name]: Metrics(**head, kind=_KINDS[name], metrics=value)} if value is not None else {}
        elif name in _STATED:
            stated[name] = value
        elif name in {"status", "status_reason"}:
            status, reason = more.get("status", facts.status), more.get("status_reason", facts.status_reason)
            of_run["end"] = None if status == "no_run_end" else RunEnd(**head, status=status, reason=reason)
        elif name == "logged":
            of_run["columns"] = {each: Column() for each in value} | run.columns | of_run.get("columns", {})
        elif name == "signals":
            names = {*run.columns, *more.get("logged", ())}
            of_run["columns"] = {each: Column() for each in names} | dict(value)
        elif name in _OF_FACTS:
            facts = replace(facts, **{name: value})
        else:
            of_run[{"history": "evals", "epoch": "last_epoch"}.get(name, name)] = value
    made = replace(facts, run=replace(run, latest_metrics=metrics, **of_run))
    vars(made).update(stated, stated=stated)
    return made


def _classed(batches: int, alike: int, *, low: int = 0, high: int = 3, rows: int = 64, num_labels: Any = 4) -> RunFacts:
    """A run whose recorder saw that many batches with class labels, some of them of one class."""
    of_labels = {"label_batches": batches, "label_batches_alike": alike, "label_min": low, "label_max": high}
    return fed(**of_labels, rows=rows, num_labels=num_labels)


def paced(
    n: int = 12,
    *,
    waits: float = 0.01,
    padding: float = 0.1,
    seconds: Callable[[int], float] = lambda _: 0.1,
    work: Callable[[int], float] = lambda _: 1000.0,
    held: Callable[[int], int] = lambda _: 1 << 30,
    peak: int | Callable[[int], int] = 1 << 30,
    longest: Callable[[int], int] = lambda _: 512,
    text: bool = True,
    **more: Any,
) -> RunFacts:
    """A run of so many windows of ten steps, by the seconds a step and the memory held of each; `text` has tokens."""
    windows = [
        Throughput(
            schema=SCHEMA_ID,
            ts=None,
            run_id="r",
            step=10 * (i + 1),
            steps=10,
            seconds_per_step=seconds(i),
            waiting_share=waits,
            tokens_per_second=(1 - padding) * work(i) / seconds(i) if text else None,
            padded_tokens_per_second=work(i) / seconds(i) if text else None,
            longest=longest(i),
            rows=4 if text else None,
            peak_bytes=peak(i) if callable(peak) else peak,
            held_bytes=held(i),
            total_bytes=16 << 30,
        )
        for i in range(n)
    ]
    kind = more.pop("kind", None)
    return changed(run(FALL, kind=kind), paces=windows, last_step=10 * n, **more)


def _tight(**more: Any) -> RunFacts:
    """A run whose peak rises to 15 GiB of 16 in its eighth window, of steps 71 to 80."""
    return paced(peak=lambda i: (15 if i > 6 else 10) << 30, **more)


def _slower(times: float, turned: Sequence[int] = (), **more: Any) -> RunFacts:
    """A run whose steps become slower along a line; the four windows from each of `turned` on come backwards."""
    place = list(range(13))
    for at in turned:
        place[at : at + 4] = reversed(place[at : at + 4])
    return paced(13, seconds=lambda i: 0.1 * (1 + (times - 1) * place[i] / 12), **more)


def field_logs() -> list[Path]:
    """The logs that are drawn from published runs."""
    return sorted((Path(__file__).parent / "golden" / "field").glob("*.json"))


def run(
    losses: Sequence[float] = (),
    *,
    norms: Sequence[float] | None = None,
    rates: Sequence[float] | float = 2e-4,
    held_out: Sequence[float] = (),
    every: int = 1,
    accuracy: float | None = None,
    n: int | None = None,
    lost: Sequence[int] = (),
    kind: str | None = None,
    lr: float | None = None,
    columns: dict[str, Sequence[float]] | None = None,
    **more: Any,
) -> RunFacts:
    """A run with these rows. Its evaluations are spread over the run."""
    rows = len(losses) or max(map(len, (columns or {"": ()}).values()))
    losses = losses or [0.69 - 0.003 * i for i in range(rows)]
    apart = max(1, rows // max(1, len(held_out))) * every
    history = [evaluation(apart * (i + 1), loss, accuracy=accuracy, n=n) for i, loss in enumerate(held_out)]
    steps = [every * (i + 1) for i in range(rows)]
    training = TrainingSnapshot(**{"extras": {"trainer": kind} if kind else {}, **more.pop("training", {})})
    return facts_of(
        logged_rows(
            steps,
            list(losses),
            [1.0] * rows if norms is None else list(norms),
            [rates] * rows if isinstance(rates, float) else list(rates),
            frozenset(lost),
        ),
        history=history,
        held_out=EvalPoint(split="eval", step=history[-1].step, metrics=history[-1].metrics) if history else None,
        last_step=rows * every,
        status="ok",
        config=ConfigSnapshot(training=training, optimizer=OptimizerSnapshot(lr=lr)),
        logged=frozenset(columns or ()),
        signals={name: Signal(steps[-len(values) :], list(values)) for name, values in (columns or {}).items()},
        **more,
    )


def evaluation(step: int, loss: Any = None, split: str = "eval", **metrics: Any) -> Eval:
    """An evaluation. Metrics other than the loss, `accuracy` and `n` are extras."""
    known = {name: metrics.pop(name) for name in ("accuracy", "n") if name in metrics}
    measured = EvalMetrics(loss=loss, **known, extras=metrics)
    return Eval(schema="gradience.vnext.telemetry/v1", ts=None, run_id="r", step=step, split=split, metrics=measured)


def _scored(first: float, later: Sequence[float], name: str = "bleu", **others: Sequence[float]) -> RunFacts:
    """A run whose metric is evaluated three times, beside a loss that falls."""
    rows = zip([first, *later], *others.values(), strict=True)
    scores = [dict(zip((name, *others), values, strict=True)) for values in rows]
    return with_history(*(evaluation(20 * (i + 1), 1.2 - 0.2 * i, **each) for i, each in enumerate(scores)))


def _memorised(held_out: Sequence[float], losses: Sequence[float] = ()) -> RunFacts:
    """A run with these held-out losses beside a training loss that falls from 2."""
    return run(losses or line(60, 2.0, 1.0), held_out=held_out)


def _stands(evaluations: int, *, fall: float = 0.3, gain: float = 0.0) -> RunFacts:
    """A held-out loss that falls until step 20 and then stands, while the training loss falls to a share of itself."""
    steps = [20 + 8 * i for i in range(evaluations)]
    losses = [2.0 - 0.05 * i for i in range(20)] + line(40, 1.0, fall)[: steps[-1] - 20] + [fall] * (60 - steps[-1])
    train = losses[:20] + line(steps[-1] - 20, 1.0, fall) + [fall] * (60 - steps[-1])
    held = [1.9, *(1.2 - gain * i for i in range(evaluations))]
    return with_history(*(evaluation(step, x) for step, x in zip([10, *steps], held, strict=True)), losses=train)


def with_history(*events: Eval, losses: Sequence[float] | None = None, **more: Any) -> RunFacts:
    """A run with these evaluations, the last of which is its held-out result."""
    shown = EvalPoint(split=events[-1].split, step=events[-1].step, metrics=events[-1].metrics)
    return changed(run(losses or FALL), history=events, held_out=shown, **more)


def said(rule: str, facts: RunFacts) -> Any:
    """The finding of a rule, or the reason why the rule was not judged."""
    verdict = detect(facts) if everything_masked(facts) else judge((RULE_OF[rule],), facts)
    reasons = [item.reason for item in verdict.not_run if item.id == rule]
    return next((found for found in verdict.told if found.id == rule), reasons[0] if reasons else None)


def finding(rule: str, facts: RunFacts) -> Finding | None:
    """The finding of a rule; None where it is silent, or was not judged."""
    answer = said(rule, facts)
    return answer if isinstance(answer, Finding) else None


def reason(rule: str, facts: RunFacts) -> str | None:
    """The reason why a rule was not judged; None where it was."""
    answer = said(rule, facts)
    return answer if isinstance(answer, str) else None


def with_row(values: Sequence[float], *at: int, by: float) -> list[float]:
    """The values, with those of some rows multiplied by a factor."""
    return [value * (by if i in at else 1.0) for i, value in enumerate(values)]


def swings(n: int, size: float) -> list[float]:
    """Values that alternate above and below 1, by the same distance on a log scale."""
    return [math.exp(size if i % 2 else -size) for i in range(n)]


def times(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """The products, value by value."""
    return [a * b for a, b in zip(values, others, strict=True)]


FLAT: Final = [2.0 + 0.0002 * (i % 3) for i in range(60)]


FALL: Final = [2.0 - 0.01 * i for i in range(60)]


def line(n: int, first: float, last: float) -> list[float]:
    """Values on a straight line from the first to the last."""
    return [first + (last - first) * i / (n - 1) for i in range(n)]


def _masked(share: float) -> RunFacts:
    norms = [1.0] * 60
    norms[30] = NAN
    return run(with_row(FLAT, 30, by=1.0 - share), norms=norms, lost=[31])


def _skipped(bad: Sequence[int], frozen: Sequence[int], n: int = 40) -> RunFacts:
    rates, rate = [], 2e-4
    for row in range(n):
        rates.append(rate)
        rate -= 0.0 if row in frozen else 1e-6
    norms = [NAN if row in bad else 1.0 for row in range(n)]
    return run([4.0 * 0.97**i for i in range(n)], rates=rates, norms=norms, lost=[row + 1 for row in bad])


def _half_still(share: float) -> RunFacts:
    """A run of two-step rows, where one row's rate moved by a share of the usual change."""
    rates, rate = [], 2e-4
    for row in range(40):
        rates.append(rate)
        rate -= 2e-6 * (share if row == 20 else 1.0)
    norms = [NAN if row == 20 else 1.0 for row in range(40)]
    return run([4.0 * 0.97**i for i in range(40)], rates=rates, norms=norms, lost=[42], every=2)


_PAIRS: Final = [*(row for row in range(40) if row % 4 < 2), 2]  # half of 40 rows, and one more


def _noisy(d: float) -> RunFacts:
    return run([3.3 if i == 40 else 1.0 + d * (i % 2) for i in range(60)])


def _late(noise: float, n: int = 40, start: float = 1.0, end: float = 1.1) -> RunFacts:
    third = n // 3
    return run(times([*line(third, start, 0.6), *[0.6] * third, *[end] * (n - 2 * third)], swings(n, noise)))


def _still_held(fall: float) -> RunFacts:
    return run(line(40, 2.0, 2.0 * (1.0 - 1.12 * fall)), held_out=[2.0, 2.0, 2.0])


def _margins(mean: float) -> RunFacts:
    columns = {"rewards/margins": [mean + (0.5 if i % 2 else -0.5) for i in range(40)]}
    return run([0.69] * 40, kind="preference", columns=columns)


def _plateau(fall: float, noise: float = 0.0, n: int = 60) -> RunFacts:
    head, tail = n - math.ceil(0.3 * n), math.ceil(0.3 * n)
    return run(times([*line(head, 2.0, 1.0), *line(tail, 1.0, 1.0 - fall)], swings(n, noise)))


_ORDERS: Final = {
    0.00955: [10, 11, 9, 4, 6, 5, 7, 8, 1, 0, 2, 3],
    0.01085: [9, 10, 11, 7, 5, 6, 8, 1, 0, 3, 2, 4],
    0.0473: [11, 10, 8, 1, 7, 2, 5, 3, 6, 9, 0, 4],
    0.0503: [11, 8, 9, 6, 5, 2, 1, 3, 10, 4, 0, 7],
    0.00097: [11, 9, 10, 5, 7, 8, 3, 4, 1, 6, 2, 0],
    0.00106: [12, 11, 7, 8, 6, 9, 4, 3, 10, 5, 2, 1, 0],
    0.00964: [13, 9, 11, 10, 12, 3, 7, 2, 5, 1, 0, 6, 8, 4],
    0.01049: [10, 11, 8, 2, 7, 9, 3, 4, 1, 6, 5, 0],
}


def _ordered(p: float, start: float = 1.8, step: float = 0.02) -> list[float]:
    return [start + step * place for place in _ORDERS[p]]


def _scattered(n: int, size: float) -> list[float]:
    """Values about 2 in an order of their own."""
    return [2.0 + size * math.sin(i * i) for i in range(n)]


def _jump(*at: int, by: float, answer: float = 1.0) -> RunFacts:
    return run(with_row(FLAT, 41, by=answer), norms=with_row([1.0] * 60, *at, by=by))


def _rates(*levels: float) -> RunFacts:
    return run(FALL, rates=[2e-4 * level for level in levels for _ in range(60 // len(levels))])


def _staged(way: int) -> list[float]:
    """A rate that decays in 30 rows, and one more stage of 30 rows: on a longer line, or backwards, as a warm-up."""
    return [*line(30, 2e-4, 0.0), *line(30, 1.2e-4, 0.0)[::way]]


def _low_loss(loss: float) -> RunFacts:
    """No gradient late on, at a low training loss."""
    return run([0.5] * 20 + [loss] * 40, norms=[1.0] * 20 + [1e-6] * 40)


def _lora(facts: RunFacts) -> RunFacts:
    return changed(facts, config=replace_struct(facts.config, lora=LoraSnapshot(r=8)))


def _stopped(steps: int) -> RunFacts:
    """A run of 60 planned steps that stopped before, its rate still rising."""
    rates = line(60, 1e-6, 1e-4)[:steps]
    return changed(run(FALL[:steps], rates=rates, training={"max_steps": 60}), status="unknown")


def _from_step(first: int, planned: int) -> RunFacts:
    """A constant rate far under the configured one, logged from a step on."""
    facts = run(FALL, rates=1e-5, lr=2e-4, training={"max_steps": planned})
    steps = [first + 2 * row for row in range(60)]
    return changed(facts, steps=steps)


def _evaluated(*losses: float, noise: float = 0.0) -> RunFacts:
    return run(FALL, held_out=times(losses, swings(len(losses), noise)), training={"save_steps": 25})


def _classified(accuracy: float, loss: float, n: int | None = 400, classes: int | None = 2) -> RunFacts:
    return run(FALL, held_out=[1.4, loss], accuracy=accuracy, n=n, num_labels=classes)


def _gap(ratio: float, *, epochs: float | None = 3.0, train: float = 2.0, **metrics: Any) -> RunFacts:
    """One evaluation, above the last training rows by a ratio of perplexities."""
    losses = [*FALL[:57], *[train] * 3]
    event = evaluation(60, train + math.log(ratio), **metrics)
    return with_history(event, losses=losses, epoch=epochs)


def _left(*values: float, by: str = "loss", restored: bool | None = True, n: int = 1000, last: int = 60) -> RunFacts:
    """A finished run with an accuracy at steps 20, 40 and 60, whose loss was lowest at step 20."""
    steps = zip((20, 40, 60), (1.0, 1.01, 1.01), values, strict=True)
    facts = with_history(*(evaluation(step, loss, accuracy=value, n=n) for step, loss, value in steps), last_step=last)
    training = TrainingSnapshot(load_best_model_at_end=restored, metric_for_best_model=by)
    return changed(facts, config=ConfigSnapshot(training=training))


def _recalled(recall: float, accuracy: float = 0.8) -> RunFacts:
    return with_history(evaluation(60, 1.0, accuracy=accuracy, n=1000, recall=recall))


def _told_apart(held_out: float, train: float | Sequence[float] = 0.95) -> RunFacts:
    """Preference training with these shares of pairs in order."""
    shares = [train] * 60 if isinstance(train, float) else train
    columns = {"rewards/accuracies": shares, "rewards/margins": line(len(shares), 0.0, 3.0)}
    facts = run(FALL[: len(shares)], columns=columns)
    event = evaluation(60, 1.0, **{"rewards/accuracies": held_out})
    return changed(facts, history=[event], held_out=EvalPoint(split="eval", step=60, metrics=event.metrics))


def _ranked(held_out: float, loss: float | Sequence[float] = 0.5) -> RunFacts:
    """A reward model whose training loss ends at so much of ln 2, with this accuracy on held-out pairs."""
    shares = [1.0] * 20 + [loss] * 40 if isinstance(loss, float) else loss
    return run([share * math.log(2.0) for share in shares], kind="reward", accuracy=held_out, held_out=[0.7])


def _pairs_held_out(*shares: float, train: float = 0.95) -> RunFacts:
    """Preference training with these shares of held-out pairs in order, by evaluation."""
    events = [evaluation(10 * (i + 1), 1.0, **{"rewards/accuracies": share}) for i, share in enumerate(shares)]
    return changed(_told_apart(0.9, train), history=events)


def _warmed(steps: float, rows: int = 60) -> RunFacts:
    """A learning rate that rises over so many of the rows, and stays there."""
    return run(FALL[:rows], rates=[1e-4 * min(1.0, (i + 1) / steps) for i in range(rows)])


def _turned(name: str | None, up: bool | None) -> RunFacts:  # noqa: FBT001  # the setting is one
    training = TrainingSnapshot(metric_for_best_model=name, greater_is_better=up)
    return changed(run(FALL), config=ConfigSnapshot(training=training))


def _epochs(
    drops: Sequence[float],
    rows: int = 40,
    noise: float = 0.0,
    epochs: float | None = None,
    held_out: Sequence[float] = (),
) -> RunFacts:
    """Losses that are constant within each epoch, and fall by a share at its end."""
    level, losses = 2.0, []
    for drop in (*drops, 0.0):
        losses += [level] * rows
        level *= 1.0 - drop
    return run(times(losses, swings(len(losses), noise)), epoch=epochs or len(drops) + 1.0, held_out=held_out)


def _pairs(accuracy: float, spread: float, margin: float, width: float, n: int = 40) -> RunFacts:
    """A run with two columns that alternate around a level."""
    columns = {
        "rewards/accuracies": [accuracy + (spread if i % 2 else -spread) for i in range(n)],
        "rewards/margins": [margin + (width if i % 2 else -width) for i in range(n)],
    }
    return run([0.6] * n, kind="preference", columns=columns)


def _near_ln_2(last: float, margin: float, status: str = "ok", first: float = 1.0) -> RunFacts:
    """A loss of pairs that starts and ends at so much of ln 2, and a margin."""
    losses = [first * math.log(2.0)] * 20 + [last * math.log(2.0)] * 20
    columns = {"rewards/accuracies": [0.56] * 40, "rewards/margins": [margin] * 40}
    return changed(run(losses, kind="preference", columns=columns), status=status)


def _at_first(
    chosen: float,
    rejected: float | None = None,
    then: float | None = None,
    rows: int = 40,
    first: int = 1,
    **more: Sequence[float],
) -> RunFacts:
    """Rewards in the first row, and after it."""
    other = chosen if rejected is None else rejected
    after = chosen if then is None else then
    columns = {"rewards/chosen": [chosen] + [after] * (rows - 1), "rewards/rejected": [other] * rows}
    columns |= {"logps/chosen": line(rows, -100.0, -90.0), **more}
    facts = run([0.5] * rows, kind="preference", columns=columns)
    of = {name: Signal([step + first - 1 for step in each.steps], each.values) for name, each in facts.signals.items()}
    return changed(facts, signals=of)


def _moved(reward: float, margin: float, noise: float = 0.0) -> RunFacts:
    """Rewards of both answers that end so far from 0 and from each other, without accuracies."""
    margins = [margin + (noise if i % 2 else -noise) for i in range(40)]
    columns = {"rewards/chosen": [reward] * 40, "rewards/rejected": [reward] * 40, "rewards/margins": margins}
    return run([0.5] * 40, kind="preference", columns=columns)


def _chosen(values: Sequence[float]) -> RunFacts:
    return run([0.6] * len(values), kind="preference", columns={"rewards/chosen": values})


def _logps(values: Sequence[float]) -> RunFacts:
    return run([0.6] * len(values), kind="preference", columns={"logps/chosen": values})


def _both(chosen: Sequence[float], name: str = "logps", *, falls: bool = True, **more: Sequence[float]) -> RunFacts:
    """A run whose rejected answers fall like the chosen ones, or stay."""
    rejected = chosen if falls else chosen[:1] * len(chosen)
    columns = {f"{name}/chosen": chosen, f"{name}/rejected": rejected, **more}
    return run([0.6] * len(chosen), kind="preference", columns=columns)


def _parts(rows: int = 30, **functions: tuple[Any, Any]) -> RunFacts:
    """RL with the means and deviations of these functions, or with functions of the row; the reward is their sum."""
    series = {
        f"rewards/{name}/{what}": [value(i) if callable(value) else value for i in range(rows)]
        for name, pair in functions.items()
        for what, value in zip(("mean", "std"), pair, strict=True)
    }
    means = [values for name, values in series.items() if name.endswith("mean")]
    return run([1e-4] * rows, kind="rl", columns={"reward": [sum(each) for each in zip(*means, strict=True)], **series})


def _traded(last: float) -> RunFacts:
    """A function that falls from 1 to this for another's gain of 1, as old versions log them: without deviations."""
    falls, rises = _step(1.0, last), _step(0.0, 1.0)
    a, b = [falls(i) for i in range(30)], [rises(i) for i in range(30)]
    return _rl(reward=[x + y for x, y in zip(a, b, strict=True)], rewards__a=a, rewards__b=b)


def _with_function(rows: int, other: int = 0) -> RunFacts:
    """Rewards in 20 rows, of a function that is a number in so many, and of another one."""
    functions = {"rewards__a__mean": [1.0] * rows, **({"rewards__b__mean": [1.0] * other} if other else {})}
    return _rl(frac_reward_zero_std=[0.0] * 20, reward=[1.0] * 20, **functions)


def _silent(late: int, before: int) -> RunFacts:
    """Two functions, of which one is no number in so many rows at the end of 20, and in so many before them."""
    whole = _with_function(20, 20)
    kept = [i for i in range(1, 21 - late) if not 2 <= i < 2 + before]
    return changed(whole, signals={**whole.signals, "rewards/a/mean": Signal(kept, [1.0] * len(kept))})


def _scaled(
    reward: float, deviation: float, *, first: int = 10, between: float | None = None, spread: float = 0.25
) -> RunFacts:
    """A reward and its deviation, so many times as large after so many of 20 rows, or one row that lies between."""
    after = [deviation * spread] * (20 - first)
    if between is not None:
        after[2] = between * spread
    return _rl(reward=[0.5] * first + [reward * 0.5] * (20 - first), reward_std=[spread] * first + after)


def _noisier(highest: float) -> RunFacts:
    """A loss of 3 with one row at 4, and then with noise that grows slowly up to this."""
    calm, grows = (
        [3.0 + 0.01 * (i % 2) for i in range(40)],
        [1.07 ** (i - 59) * (1 if i % 2 else -1) for i in range(60)],
    )
    return run([*calm[:30], 4.0, *calm[31:], *(3.0 + (highest - 3.0) * x for x in grows)])


def _two_spikes() -> RunFacts:
    """A spike of a calm loss, and a higher one, which counts for less, among rows that swing."""
    losses = [2.0 + 0.0002 * (i % 3) for i in range(30)] + [2.1 if i % 2 else 1.9 for i in range(66)]
    return run([{20: 3.7, 80: 4.1}.get(i, loss) for i, loss in enumerate(losses)])


def _step(first: float, last: float) -> Callable[[int], float]:
    """A level of the first half of 30 rows, and one of the second."""
    return lambda i: first if i < 15 else last


def _weighed(off: float, std: float) -> RunFacts:
    """Two functions whose sum the reward misses by so much."""
    whole = _parts(a=(0.5, 0.1), b=(1.0, std))
    return changed(whole, signals={**whole.signals, "reward": Signal(range(1, 31), [1.5 + off] * 30)})


def _ties(margins: Sequence[float]) -> RunFacts:
    return run([0.69] * len(margins), kind="preference", columns={"rewards/margins": margins})


def _rl(**columns: Sequence[float]) -> RunFacts:
    return run(
        [1e-4] * len(next(iter(columns.values()))),
        kind="rl",
        columns={name.replace("__", "/"): values for name, values in columns.items()},
    )


def _no_norm(zeros: int, equal: float | None = 0.1, norm: float = 0.0, rows: int = 60, rate: float = 1e-5) -> RunFacts:
    """RL whose last rows have no gradient, with so many groups of equal rewards."""
    columns = {"reward": [0.5] * rows, **({} if equal is None else {"frac_reward_zero_std": [equal] * rows})}
    norms = [1.0] * (rows - zeros) + [norm] * zeros
    return run([0.0] * rows, kind="rl", norms=norms, rates=rate, columns=columns)


def _held_reward(*values: float, falls: bool = False, dips: bool = False, name: str = "d/reward/mean@8") -> RunFacts:
    """RL with these held-out rewards, and a training reward that rises, falls, or rises and falls in part."""
    rises = [*line(30, 0.0, 1.0), *line(30, 1.0, 0.3)] if dips else line(60, 0.0, 1.0)
    facts = _rl(reward=line(60, 1.0, 0.0) if falls else rises)
    return changed(facts, history=[evaluation(10 * (i + 1), **{name: value}) for i, value in enumerate(values)])


def _thirds(*levels: float) -> list[float]:
    return [level for level in levels for _ in range(4)]


def _noisily_held(noise: float) -> RunFacts:
    return _held_reward(*[0.5 + (noise if i % 2 else -noise) - 0.2 * (i > 6) for i in range(12)])


def _grown(last: float, cut: float = 0.0) -> RunFacts:
    """Completions whose length changes while the reward rises."""
    return _rl(
        completions__mean_length=[10.0] * 10 + [last] * 10,
        completions__clipped_ratio=[cut] * 20,
        reward=[0.0] * 10 + [1.0] * 10,
    )


def _predicted(explained: float, noise: float = 0.0, rows: int = 30) -> RunFacts:
    """A critic that explains so much of the variance of the returns."""
    return _rl(
        critic__vf_explained_var=[explained + (noise if i % 2 else -noise) for i in range(rows)],
    )


def _dip(end: float, noise: float) -> Sequence[float]:
    """A reward of 1.3 that falls to 0.5 and comes back in part."""
    return [x + (noise if i % 2 else -noise) for i, x in enumerate([1.3] * 5 + [0.5] * 6 + [end] * 5)]


def _flat_at(rate: float, r: int | None = 8, status: str = "ok", noise: float = 0.0, rows: int = 20) -> RunFacts:
    """A reward that stands still, of a LoRA at this rate."""
    flat = run(rates=rate, kind="rl", columns={"reward": [1.0 + noise * (-1) ** (i // 2) for i in range(rows)]})
    return changed(flat, config=replace_struct(flat.config, lora=LoraSnapshot(r=r)), status=status)


def _reward(first: float, best: float, last: float, noise: float = 0.0) -> RunFacts:
    levels = [first] * 10 + [best] * 20 + [last] * 10
    return _rl(reward=[level + (noise if i % 2 else -noise) for i, level in enumerate(levels)])


def _drifts(alike: float, rows: int = 60) -> Sequence[float]:
    """A reward that falls from 1 by a quarter, under noise of a tenth in which neighbours are so much alike."""
    rng, noise, values = random.Random(8), 0.0, list[float]()  # noqa: S311  # seeded on purpose
    for row in range(rows):
        noise = alike * noise + math.sqrt(1.0 - alike**2) * rng.gauss(0.0, 0.1)
        values.append(1.0 - 0.25 * row / (rows - 1) + noise)
    return values


def _risen(factor: float) -> Sequence[float]:
    """A reward that alternates by one and steps up by so many times 7; its standard error is 1.752."""
    return [(1.0 if i % 2 else -1.0) + factor * 7.0 * (i >= 15) for i in range(30)]


def _replayed(apart: float, rows: int = 5) -> RunFacts:
    replaced = [(step, FALL[step - 1] / (1.0 + apart)) for step in range(20, 20 + rows)]
    return run(FALL, record=LogRecord({"a", "b"}, [19], replaced))


def _of_lines(*torn: bool) -> RunFacts:
    issues = [BadLine(line=9 + n, offset=100 * n, reason="not JSON", torn=each) for n, each in enumerate(torn)]
    return run(FALL, issues=issues, issues_total=len(issues))


def _ended(status: str, *, planned: int | None = None, steps: int = 60) -> RunFacts:
    training = {"max_steps": planned} if planned else {}
    return changed(run(FALL[:steps], training=training), status=status, last_step=steps or None)


LN2 = math.log(2.0)


def evaluated(*losses: float, **more: Any) -> RunFacts:
    return run(FALL, held_out=losses, **more)


def classes(loss: float, accuracy: float | None = None, *, n: int | None = None, of: int | None = None) -> RunFacts:
    facts = run(FALL, held_out=[1.4, loss], accuracy=accuracy, n=n, num_labels=of)
    return changed(facts, config=ConfigSnapshot(num_labels=of)) if of else facts


def straight(rise: float, rows: int = 33) -> list[float]:
    """From 2 on, each row by as much higher."""
    return [2.0 + rise * row for row in range(rows)]


def falls_then_drifts(fall: float) -> RunFacts:
    """21 rows from 2 to 1, and 9 about 1, each lower than the one before by an eighth of the fall."""
    return run([*line(21, 2.0, 1.0), *[1.0 + fall * (4 - row) / 8 for row in range(9)]])


STEP = 2.0**-10  # of a row of `straight`: over 32 rows 2^-5, of a start of 2 the 64th part


CHANCE = {"held_out.CHANCE_MARGIN": 0.0625, "held_out.CHANCE_NEAR": 0.0625}


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


UP = [*[1.0] * 4, *[4.0] * 4, *[1.0] * 12]  # and down again


BACK = [*[1.0] * 8, *[0.5] * 4, *[1.0] * 8]


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


def repeated(epochs: float, start: float, end: float) -> RunFacts:
    return run([start] * 20 + [end] * 20, epoch=epochs)


def stepping(held_out: float) -> RunFacts:
    """Two epochs of 32 rows, the second lower by a sixteenth; the evaluations fall as said between them."""
    return run([1.0] * 32 + [0.9375] * 32, epoch=2.5, held_out=[1.0, 1.0 - held_out])


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
    return changed(now, record=LogRecord(resumed_from=[10], replaced=[(step, 1.0) for step in (11, 12, 13)]))


def faded(losses: Sequence[float], first: int = 20, last: int = 60) -> RunFacts:
    """Norms of next to nothing in some rows."""
    return norms([1e-6 if first <= row < last else 1.0 for row in range(60)], losses)


def tiny_rows(rows: tuple[int, int]) -> RunFacts:
    """A long log, judged by pairs of rows: the first pair of an odd row is not low."""
    return norms([1e-6 if rows[0] <= i < rows[1] else 1.0 for i in range(4096)], line(4096, 2.0, 1.0), rates=[])


def at_the_end(norm: float) -> RunFacts:
    """Skipped steps up to the last row, whose norm is as said."""
    facts = _skipped(range(8, 11), range(8, 11), 12)
    facts.series.grad_norms[11] = norm  # type: ignore[index]  # a list
    return facts


def fed(**counts: Any) -> RunFacts:
    """What the recorder saw of the batches."""
    return run(FALL, data={"rows": 100, "tokens": 100, "supervised": 100, "rows_unsupervised": 0, **counts})


def row_by_row(**asked: int) -> RunFacts:
    """What 100 rows of the first batches showed."""
    return fed(asked=asked, rows_asked=100)


def filled(asked: dict[str, int], *, size: int = 2, **counts: int) -> RunFacts:
    """Of 100 rows, 100 tokens and less each, what they showed; batches of so many rows were asked for."""
    known = {"rows": 100, "longest": 100, "tokens": 9800, "supervised": 98, **counts}
    return run(FALL, data={**known, "asked": asked, "rows_asked": 100}, training={"batch_size": size})


def fed_same(steps: int, *, other: int = 0, of: int = 0, world: int = 1) -> RunFacts:
    """So many steps that were fed the same rows, in either order, `of` so many; of some steps, one row is another."""
    data = DataWiring(rows=of, world_size=world)
    facts = run(FALL, wirings=[Wiring(schema=SCHEMA_ID, ts=None, run_id="r", step=0, phase="start", data=data)])
    facts.run.fed.update({step: "a1 b2" if step % 2 else "b2|a1" for step in range(1, steps + 1 - other)})
    facts.run.fed.update(dict.fromkeys(range(steps + 1 - other, steps + 1), "a1 c3"))
    return facts


def packed(strategy: str | None) -> RunFacts:
    """Rows at the limit of a run that packs in TRL's way of this name; None without packing."""
    trl = {"packing": strategy is not None, "packing_strategy": strategy or "wrapped"}
    return run(FALL, data={**fed().data, "rows_at_limit": 100}, training={"extras": {"trl": trl}})


def announced(tokens: int, *, share: float | None = None, length: float | None = None, rows: int = 100) -> RunFacts:
    known = {"supervised_share": share, "tokens_per_sequence": length}
    return fed(tokens=tokens, rows=rows, announced=known)


OVERFIT: Final = {"best_step": 43, "lowest_step": 43, "split": "test", "rise": 0.125, "best_loss": 1.23456}
FED: Final = {"rows": 64, "tokens": 100, "supervised": 50, "rows_unsupervised": 0, "rows_with_end": 0}
RISING: Final = [1e-4 * row for row in range(1, 41)]

_ADAPTER: Final = {"names": ["default"], "active": ["default"], "layers": 4, "trainable_tensors": 8}
_HELD: Final = {"names": ["AdamW"], "held": 8, "held_kinds": {"adapter": 100}, "states": 8}
_GROUPS: Final = [
    {"kind": "adapter", "tensors": 8, "trainable_tensors": 8, "trainable": 100, "digest": "s1:a"},
    {"kind": "base", "tensors": 4, "parameters": 1000},
]
_SOUND: Final = {
    "start": {"dropouts": {"0.1": 4}},
    "pass": {},
    "evaluation": {"evaluation": {"called": True, "adapted": True}},
    "gradients": {"gradients": {"steps": 8, "tensors": 8, "reached": 8, "modules": 4}},
    "save": {"saved": {"file": "a.safetensors", "tensors": 8, "parameters": 100}, "data": {"batch_size": 4}},
    "resume": {"data": {"batch_size": 4}},
}
_FAULTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "WIR170": ("start", {"groups": [_GROUPS[0], {**_GROUPS[1], "trainable": 900, "matrices": 4}], "optimizer": None}),
    "WIR171": ("start", {"adapter": {**_ADAPTER, "trainable_tensors": 0, "frozen_tensors": 8}}),
    "WIR172": ("start", {"optimizer": {**_HELD, "held": 0, "missing": {"adapter": 8}}}),
    "WIR173": ("gradients", {"gradients": {"steps": 1, "tensors": 8, "detached": 8}}),
    "WIR174": ("start", {"adapter": {**_ADAPTER, "nested": 1}}),
    "WIR175": ("resume", {"groups": [{**_GROUPS[0], "digest": "s1:b"}, _GROUPS[1]]}),
    "WIR176": ("resume", {"optimizer": {**_HELD, "states": 0}}),
    "WIR177": ("resume", {"data": {"batch_size": 8}}),
    "WIR178": ("resume", {"schedule": {"name": "LambdaLR", "step": 0, "rates": [1.0]}}),
    "WIR179": ("save", {"saved": {"file": "a.safetensors"}}),
    "WIR180": (
        "gradients",
        {
            "optimizer": {**_HELD, "rates": [{"lr": 0.0, "kinds": ["adapter"]}, {"lr": 1.0, "kinds": ["head"]}]},
            "gradients": {"steps": 8, "tensors": 8, "reached": 8},
        },
    ),
    "WIR181": ("start", {"frozen_inputs": True}),
    "WIR182": ("evaluation", {"evaluation": {"called": False}}),
    "WIR183": ("pass", {"passes": {"training": False}}),
    "WIR184": ("start", {"schedule": {"name": "LambdaLR", "step": 0, "rates": [1.0], "foreign": True}}),
    "WIR186": ("start", {"unprepared": ["optimizer"]}),
    "WIR187": (
        "save",
        {"saved": {"file": "a.safetensors", "tensors": 8, "parameters": 100, "differs": "lora_A", "of_step": 0}},
    ),
    "WIR188": ("start", {"adapter": {**_ADAPTER, "new_heads": ["score.weight"]}}),
    "WIR189": ("evaluation", {"evaluation": {"called": True, "adapted": True, "training": True}}),
    "WIR190": (
        "gradients",
        {
            "optimizer": {**_HELD, "rates": [{"lr": 1e-6, "peak": 2e-6, "kinds": ["adapter"]}]},
            "gradients": {"steps": 8, "tensors": 8, "reached": 8, "modules": 4, "narrow": 200, "unmoved": 190},
        },
    ),
    "LED405": ("start", {"adapter": {**_ADAPTER, "untied": ["embed_tokens", "lm_head"]}}),
    "LED412": (
        "save",
        {
            "adapter": {**_ADAPTER, "names": ["default", "second"], "active": ["default", "second"]},
            "saved": {
                "file": "a.safetensors",
                "tensors": 8,
                "parameters": 100,
                "adapters": ["default"],
                "lacking": ["second"],
            },
        },
    ),
    "WIR185": ("gradients", {"gradients": {"steps": 8, "tensors": 8, "reached": 8, "compared": 7, "kept": 7}}),
}


def _saved(**seen: Any) -> Callable[[Any], RunFacts]:
    """Runs whose save lacks so many tensors that train, beside those that are the same of all."""

    def make(absent: dict[str, int]) -> RunFacts:
        saved = {"file": "a.safetensors", "tensors": 8, "parameters": 100, "absent": absent, **seen}
        held = {**_HELD, "held_kinds": {"adapter": 100, "norm": 32, "base": 9}}
        groups, adapter = [{**_GROUPS[0], "parameters": 100}, _GROUPS[1]], {**_ADAPTER, "methods": ["LORA"]}
        look = {"groups": groups, "adapter": adapter, "optimizer": held, "saved": saved}
        return run(FALL, wirings=[Wiring(ts=None, run_id="r", step=2, phase="save", **look)])

    return make


def _wired(rule: str) -> Callable[[str], RunFacts]:
    """A run whose wiring has the fault of a rule, or is sound, or was not recorded."""

    def make(state: str) -> RunFacts:
        place, fault = _FAULTS[rule]
        looks = {**_SOUND, "save": {**_SOUND["save"], "schedule": {"name": "LambdaLR", "step": 5, "rates": [0.5]}}}
        if rule == "WIR181" and state == "faulty":
            looks = {"start": {}}
        events = []
        for step, (phase, fields) in enumerate(looks.items() if state != "none" else ()):
            given = {"groups": _GROUPS, "adapter": _ADAPTER, "optimizer": _HELD, **fields}
            changed = fault if state == "faulty" and phase == place else {}
            events.append(Wiring(ts=None, run_id="r", step=min(step, 2), phase=phase, **{**given, **changed}))
        return run(FALL, wirings=events)

    return make


def _anew(fell: float = 0.5, back: float = 0.9, old: int = 20, new: int = 20, noise: float = 0.0) -> RunFacts:
    """A resumed run whose loss of 2 fell by this part, and then is up again by this part of the fall."""
    low = 2.0 * (1.0 - fell)
    losses = [2.0] * 3 + [low] * (old - 3) + [low + back * (2.0 - low)] * new
    losses = [loss + noise * (i % 2) for i, loss in enumerate(losses)]
    return run(losses, training={"extras": {"resumes": True}})


def _same(n: int, loss: float = 1.36472106, rate: float = 2e-4, falls: float = 0.01) -> RunFacts:
    """A run whose last evaluations have the same loss."""
    before = [1.6, 1.5, 1.4][: max(3, 7 - n)]
    evals = [*before, *[loss] * n]
    rows = 12 * len(evals)
    rates = [2e-4 if i < 12 * len(before) else rate for i in range(rows)]
    return run([2.0 - falls * i for i in range(rows)], rates=rates, held_out=evals)


def _passes(n: int, *, rate: float = 2e-4, another: float = 0.0, different: int = 99) -> RunFacts:
    """Three passes of so many rows and a part of a fourth, all alike but for the last row of all."""
    one = [1.5 + 0.1 * ((7 * i % n) % different) for i in range(n)]
    losses = [*one, *one, *one, *one[:2]]
    return run([*losses[:-1], losses[-1] + another], rates=rate)


ENTRIES: Final[dict[str, Entry]] = {
    "NUM102": Entry(
        edges=[
            Edge("rounds_to_zero", "ie", 0.0495, 0.0505, lambda x: run([x] * 20 + [0.0] * 2, norms=[NAN] * 22)),
            Edge("masked_fall", "-e", 0.148, 0.152, _masked),
        ],
        at=[
            At(lambda x: zeros(1e-8, before=[x] * 20), {0.05: None, 0.049: "info"}),
            At(lambda x: zeros(NAN, x), {1e-8: None, NAN: "error"}),
            At(masked, {1.7: None, 1.699: "error"}),
            At(lambda x: masked(x, norm=math.inf), {1.7: None, 1.699: "error"}),
            At(lambda x: zeros(NAN, NAN, before=[2.0] * 12 + [x] * 8), {0.05: "error", 0.049: "info"}),
            At(lambda x: zeros(x, 1e-8), {0.0: "error", 1e-8: None}),
            At(lambda kind: zeros(0.0, 0.0, kind=kind), {"preference": None, None: "error"}),
            At(lambda n: zeros(*[NAN] * n), {1: None, 2: "error"}),
            At(lambda norm: zeros(norm, norm, norm), {1.0: "error", 0.99: None}),  # that to which it is clipped
        ],
        told=[
            (
                {"no_labels": True, "first_step": 1},
                "loss is 0 throughout: every label is masked, or it was NaN from the start",
            ),
            ({"first_step": 5}, "loss is probably NaN-masked from step 5"),
        ],
    ),
    "NUM101": Entry(
        at=[
            At(lambda n: _skipped([5, 9, 13, 17, 21], [5, 9, 13][:n]), {2: "info", 3: None}),
        ],
        told=[
            ({"first": "loss at step 3", "rows": 2}, "not finite: loss at step 3, 2 training rows"),
            ({"first": "eval loss at step 3", "rows": 0}, "not finite: eval loss at step 3"),
        ],
    ),
    "NUM131": Entry(
        edges=[
            Edge(
                "skips_shown",
                "-i",
                7,
                10,
                lambda x: _skipped(range(5, 5 + 4 * x, 4), range(5, 21 if x < 10 else 29, 4), 60),
            ),
            Edge("stood_still", "i-", 0.645, 0.655, _half_still),
            Edge("skips_many", "iw", 20, 21, lambda x: _skipped(_PAIRS[:x], _PAIRS[:x])),
        ],
        at=[
            At(lambda n: _skipped([5, 9, 13, 17, 21], [5, 9, 13][:n]), {2: None, 3: "info"}),
            At(at_the_end, {1.0: "info", math.inf: None, 0.0: None}),
        ],
        told=[
            ({"rows": 1}, "1 step skipped by fp16 scaling"),
            ({"rows": 2}, "2 steps skipped by fp16 scaling"),
        ],
    ),
    "DIV103": Entry(
        edges=[
            Edge("spike_k", "-i", 1.295, 1.305, lambda x: run(with_row(FLAT, 40, by=x))),
            Edge("spike_start", "-i", 0.099, 0.101, lambda x: run([2.0] * 3 + with_row([0.2] * 57, 40, by=1 + 5 * x))),
            Edge(
                "two",
                "ii",
                10,
                15,
                lambda x: run(with_row(FLAT, 40, 40 + x, by=2.0 + x / 100)),
                says=("at step 51, from 2", "at step 41, from 2"),
            ),
            Edge("noisy", "i-", 0.33, 0.337, _noisy),
            Edge("many_rows", "?i", 19, 20, lambda x: run(with_row(FLAT[:x], 12, by=1.35))),
            Edge("noisier", "i-", 3.99, 4.01, _noisier),
        ],
        at=[
            At(noisy_with_a_zero, {20.0: "info", 2.0: None}),
            At(quite_noisy, {1.0: "info", 1.1: None}),
            At(
                lambda n: run([2.0] * (48 - n) + [1.0] * n + [4.0] + [2.0] * 20), {8: "info", 40: "warning"}
            ),  # a trough before the spike is no level
        ],
        says=[(_two_spikes(), "The loss spikes to 3.7 at step 21, from 2 in the rows before; 2 spikes in all.")],
    ),
    "UNS198": Entry(
        edges=[
            Edge("exploded", "-w-", 1.98, 2.02, lambda x: run([1.0] * 4 + [x] * 4 + [0.5] * 12), at=2.0),
            Edge("two_of_three", "-w", 1, 2, lambda n: run([1.0] * 4 + [3.0] * n + [0.5] * (16 - n))),
            Edge("start", "w-", 0.99, 1.0, lambda x: run([1.0] * 4 + [3.0] * 4 + [x] * 12)),
            Edge(
                "diverged_noise",
                "w-",
                0.08,
                0.1,
                lambda x: run(times([1.0] * 4 + [3.0] * 4 + [0.5] * 12, swings(20, x))),
            ),
            Edge("diverged_rows", "?-", 2, 3, lambda x: run([1.6, 11.0, 1.0][:x])),
        ],
        says=[
            (
                run([0.69] * 4 + [2.4] * 4 + [0.55] * 12),
                "The loss was unstable: it rose from 0.69 to 2.4 and came down to 0.55.",
            ),
        ],
    ),
    "DIV104": Entry(
        edges=[
            Edge("by_class", "e-", 6, 7, lambda n: changed(run([1.0] * 16 + [3.0] * 4), data=_classed(8, n).data)),
            Edge("diverged_ratio", "-e-", 1.49, 1.51, lambda x: run([1.0] * 16 + [x] * 4), at=1.5),
            Edge("lost_level", "-w", 0.049, 0.051, lambda x: run([*line(20, 0.06, 0.001), *[0.001] * 20, *[x] * 20])),
            Edge("at_once", "-e-", 1.49, 1.51, lambda x: run([1.0, *[x] * 9]), at=1.5),
            Edge(
                "diverged_errors",
                "e-",
                0.046,
                0.048,
                lambda x: run(times([1.0] * 16 + [math.exp(0.6)] * 4, swings(20, x))),
            ),
            Edge("start", "-w", 0.99, 1.0, lambda x: run([1.0] * 4 + [3.0] * 4 + [x] * 12)),
            Edge("absurd_rate", "ee", 0.0099, 0.0101, lambda x: run([1.0, *[2.0] * 9], rates=x)),
            Edge(
                "diverged_noise", "ee", 0.0465, 0.0477, _late, says=("0.5727 around step 13", "0.6007 around step 13")
            ),
            Edge("exploded", "-w-", 1.98, 2.02, lambda x: run([1.0] * 4 + [x] * 4 + [1.0] * 12), at=2.0),
            Edge(
                "lost_share", "-w", 0.49, 0.51, lambda x: run([*line(15, 3.0, 1.0), *[1.0] * 5, *[1.0 + 2.0 * x] * 10])
            ),
            Edge("diverged_rows", "?e", 2, 3, lambda x: run([1.6, 11.0, 11.0][:x])),
            Edge("relapsed", "-e", 1.149, 1.151, lambda x: run([*[1.0] * 10, *[0.9] * 20, *[0.9 * x] * 10])),
            Edge("still_bound", "e-", 0.939, 0.941, lambda x: run([*[1.0] * 10, *[x] * 20, *[1.2] * 10])),
        ],
        at=[
            At(
                lambda x: run([1.0] * 16 + [x] * 4),
                {2.0: None, 2.01: "error"},
                given={"divergence.median_error": of(LN2 / 6)},
            ),
            At(
                lambda x: run([1.0, *[x] * 9]),
                {4.0: None, 4.01: "error"},
                given={"divergence.noise": of(math.log(4) / 6)},
            ),
            At(
                lambda x: run([*UP[:4], *[x] * 4, *UP[8:]]),
                {4.0: None, 4.01: "warning"},
                given={"divergence.noise": of(math.log(4) / 6)},
            ),
            At(
                lambda n: run([1.0, *[3.0] * (n - 2), 1.0]),
                {5: "warning", 4: None},
                given={"divergence.noise": of(0.0)},
            ),
            At(
                lambda x: run([*BACK[:8], *[x] * 4, *BACK[12:]]),
                {0.5: None, 0.49: "warning"},
                given={"divergence.median_error": of(LN2 / 6)},
            ),
            At(lambda x: run([*line(15, 3.0, 1.0), *[1.0] * 5, *[x] * 10]), {2.0: None, 2.01: "warning"}),
            At(lambda x: run([*[1.0] * 4, *[3.0] * 4, *[x] * 12]), {0.99: None, 1.0: "warning"}),
            At(
                lambda n: run([1.0, 1.0, *[0.5] * (n - 5), 1.1, 1.1, 1.1]),
                {7: None, 8: "error"},
                given={"divergence.noise": of(0.0)},
            ),
            At(
                lambda x: run([1.0, x, *[4.0] * 10]),
                {1.5: "warning", 1.51: "error"},
                given={"divergence.noise": of(0.0), "divergence.median_error": of(9.0)},
            ),
            At(lambda x: run([1.0, *[x] * 9], held_out=[2.0, 2.6, 2.4]), {1.15: None, 1.16: "warning"}),
            At(lambda x: run([1.0, x, *[1.2] * 8], held_out=[2.0, 2.6, 2.4]), {0.99: None, 1.0: "warning"}),
            At(lambda x: run([1.0, *[1.2] * 9], held_out=[2.0, 2.6, x]), {2.3: None, 2.31: "warning"}),
            At(lambda n: run([1.0, *[1.2] * 9], held_out=[2.0, 2.6, 2.4][:n]), {2: None, 3: "warning"}),
        ],
        told=[
            (
                {"lowest": 1.23456, "lowest_step": 7, "peak_rate": 0.01},
                "diverged: lowest loss 1.235 around step 7, at a learning rate of 0.01",
            ),
            ({"lowest": 1.25, "lowest_step": 7, "peak_rate": 0.00999}, "diverged: lowest loss 1.25 around step 7"),
            ({"lowest": 1.25, "lowest_step": 7, "peak_rate": None}, "diverged: lowest loss 1.25 around step 7"),
        ],
    ),
    "SCL129": Entry(
        edges=[
            Edge(
                "scale_ratio",
                "-w",
                2.98,
                3.02,
                lambda x: run([x * h for h in (2.0, 1.6, 1.4, 1.3) for _ in range(4)], held_out=[2.0, 1.6, 1.4, 1.3]),
            ),
            Edge("scale_nats", "-w", 1.48, 1.5, lambda x: run([x] * 12, held_out=[0.49] * 3)),
            Edge("ln_vocabulary", "-i", 12.47, 12.48, lambda x: run([x, 10.0, 4.0, 3.0])),
            Edge("second_row", "-ii", 5.0, 5.1, lambda x: run([12.6, x, 4.0, 3.0]), at=12.6 * 0.4),
            Edge("many_rows", "iw", 19, 20, lambda n: run(line(n, 30.0, 14.0))),
        ],
        at=[
            At(lambda x: run([x] * 12, held_out=[0.5] * 3), {1.5: "warning", 1.49: None}),
            At(lambda x: run([x] * 12, held_out=[2.0] * 3), {6.0: "warning", 5.99: None}),
            At(lambda n: run([1.0, 1.0, 6.0] * n, held_out=[2.0] * 4), {4: "warning", 8: None}),
            At(lambda n: run([12.6, 5.1, 5.0][:n]), {1: "info", 2: "info", 3: "info"}),
            At(lambda x: run([x, 10.0, 4.0, 3.0]), {math.log(262_144): None, 12.4767: "info"}),
            At(lambda x: run([*line(19, 30.0, 14.0), x]), {math.log(262_144): "info", 12.4767: "warning"}),
            At(lambda x: run([*[6.0] * 16, *[x] * 4], held_out=[2.0] * 3), {12.0: None, 6.0: "warning"}),
        ],
        told=[
            ({"factor": 8.04}, "training loss is 8.0 times the held-out loss: another scale"),
            ({"first": 12.6}, "loss starts at 12.6, above that of a uniform guess over any vocabulary"),
        ],
        told_as_info=True,
    ),
    "INI195": Entry(
        edges=[
            Edge("high_start", "-ii", 7.4, 7.6, lambda x: run([x, 4.0, 3.0]), at=7.5),
            Edge("ln_vocabulary", "i-", 12.47, 12.48, lambda x: run([x, 4.0, 3.0])),
            Edge(
                "of_classes",
                "i?",
                0.0,
                1.0,
                lambda x: run([8.0, 4.0, 3.0], held_out=[2.0], accuracy=0.5 if x else None),
            ),
        ],
        told_as_info=True,
    ),
    "NOL106": Entry(
        edges=[
            Edge("alpha", "-?", 0.00955, 0.01085, lambda p: run(_ordered(p))),
            Edge("alpha_moved", "-?", 0.0473, 0.0503, lambda p: run(_ordered(p), norms=line(12, 1.0, 9.0))),
            Edge("held_still", "?i", 1.9939, 1.9941, lambda x: run([2.0, 2.1, 1.9, 2.0] * 3, held_out=[2.0, x])),
            Edge("overfit_rise", "i?", 2.039, 2.041, lambda x: run([2.0, 2.1, 1.9, 2.0] * 3, held_out=[2.0, 2.0, x])),
            Edge("margin", "w-", 0.27, 0.36, _margins),
            Edge("clear_fall", "i?", 0.19, 0.21, lambda x: run([2.0, 1.9, 2.0 - 2.0 * x], held_out=[1.0] * 3)),
            Edge("still_bound", "w?", 0.028, 0.0295, lambda x: run(swings(40, x))),
            Edge("at_ln_k_rows", "-w", 15, 16, lambda n: run([0.8] * 20 + [LN2] * n + [0.72] * (20 - n), num_labels=2)),
            Edge("short_run", "iw", 29, 30, lambda x: run([2.0] * x)),
            Edge("still_rows", "?i", 7, 8, lambda x: run([2.0, 2.001, 1.999, 2.0, 2.001, 2.0, 1.999, 2.001][:x])),
            Edge("chance_near", "ii", 0.0195, 0.0205, lambda x: run([math.log(2) * (1.0 + x)] * 20, num_labels=2)),
            Edge("least_fall", "w-", 0.0222, 0.023, lambda x: run(line(40, 2.0, 2.0 * (1.0 - x)))),
            Edge(
                "eval_noise",
                "-i",
                0.0107,
                0.0109,
                lambda x: run(FLAT[:24], held_out=times(line(8, 2.0, 1.9), swings(8, x))),
            ),
            Edge("fell_before", "?w", 1.87, 1.89, lambda x: run([*[2.0] * 8, *[x] * 8, *[2.0] * 24])),
        ],
        at=[
            At(
                lambda x: run([2.0, 2.1, 1.9, 2.0] * 3, held_out=[2.0, x]),
                {1.875: "?", 1.8755: "info"},
                given={"learning.HELD_STILL": 0.0625},
            ),
            At(
                lambda x: run(straight(-x)),
                {STEP: "?", 0.999 * STEP: "warning"},
                given={"learning.STILL_BOUND": 2.0**-6},
            ),
            At(
                lambda x: run([2.0, 2.0, 2.0, *line(45, 2.0, 2.0 - 0.9 * x), *[2.0 - x] * 12]),
                {0.0625: None, 0.0624: "?"},
                given={"learning.LEAST_FALL": 0.03125, "learning.STILL_ROWS": 99},
            ),
            At(
                lambda x: run([LN2] * 40, kind="preference", columns={"rewards/margins": [x - 0.001] * 40}),
                {0.0: "warning", 0.1: None},
            ),
            At(lambda x: norms([1.0] * 39 + [x], FLAT[:40]), {0.0: "warning", 1.0: "warning"}),
            At(lambda n: run(FLAT[:n]), {40: "?"}, given={"facts.moves": of(1e-3)}, number="moved"),
            At(lambda n: run(FLAT[:n]), {40: "warning"}, given={"facts.moves": of(1.001e-3)}),
        ],
        told_as_info=True,
    ),
    "PLT105": Entry(
        edges=[
            Edge("still_falls", "i?", 0.0068, 0.0072, _plateau),
            Edge("flat_bound", "i?", 0.188, 0.189, lambda x: run(line(20, 4.0, 2.0) + _scattered(40, x))),
            Edge("flat_points", "?i", 16, 17, lambda x: run(line(x - 6, 4.0, 2.1) + [2.0] * 6)),
            Edge("fitted", "-i", 0.0195, 0.0205, lambda x: run(line(20, 1.0, x) + [x] * 40)),
            Edge(
                "idle_rate",
                "-i",
                0.099,
                0.101,
                lambda x: run(line(20, 4.0, 2.0) + [2.0] * 20, rates=[2e-4] * 20 + [2e-4 * x] * 20),
            ),
        ],
        at=[
            At(lambda x: run(line(20, 1.0, x) + [x] * 40), {0.02: None, 0.0201: "info"}),
            At(lambda x: run([*line(20, 4.0, 2.0), *[2.0] * 39, x]), {2.0: "info", NAN: None, math.inf: None}),
            At(
                falls_then_drifts,
                {2.0**-8: "info", 1.01 * 2.0**-8: None},
                given={"learning.FLAT": 2.0**-8, "learning.STILL_FALLS": 0.9},
                number="flat",
            ),
            At(falls_then_drifts, {2.0**-9: "info", 1.01 * 2.0**-9: "?"}, given={"learning.STILL_FALLS": 2.0**-9}),
        ],
        says=[
            (run(FLAT[:40], rates=RISING), "the learning rate had not reached its peak yet"),
            (run(FALL[:5]), "2 points in the last 30% of the rows are too few for a confidence bound on the slope"),
        ],
        told_as_info=True,
    ),
    "GRD107": Entry(
        edges=[
            Edge("gradient_k", "-i", 7.3, 7.5, lambda x: _jump(40, 41, 42, by=x)),
            Edge("gradient_ratio", "iii", 9.95, 10.05, lambda x: _jump(*range(40, 60), by=x), at=10.0),
            Edge("lasting", "-i", 2, 3, lambda x: _jump(*range(40, 40 + x), by=100.0)),
            Edge(
                "loss_after", "iw", 1.99, 2.01, lambda x: run([*FLAT[:40], *[x] * 20], norms=[1.0] * 40 + [20.0] * 20)
            ),
            Edge("jump_rows", "?-", 7, 8, lambda x: run(FALL[:x])),
        ],
        at=[
            At(lambda x: norms([x] * 20 + [1.0] * 40), {0.0: None, 0.05: "info"}),
            At(lambda n: norms(with_row([1.0] * 60, 20, *range(40, 40 + n), by=7.5)), {2: None, 3: "info"}),
            At(risen, {2.0: "info", 2.001: "warning"}),
            At(
                lambda n: norms(
                    [100.0 if 2000 <= i < 2000 + n else 1.0 for i in range(4096)], line(4096, 2.0, 1.0), rates=[]
                ),
                {2: None, 4: "info"},
            ),
            At(lambda x: norms([1.0, 1.0, x, *with_row([1.0] * 57, *range(37, 40), by=7.5)]), {1.0: "info", 0.0: None}),
            At(
                lambda n: norms([1.0] * 48 + [20.0] * 20, [2.0] * (48 - n) + [1.0] * n + [2.0] * 20),
                {8: "info", 40: "warning"},
            ),
            At(
                lambda n: norms([1.0] * 40 + [20.0] * n + [1.0] * (20 - n), [2.0] * 40 + [3.0] * 20),
                {9: "info", 11: "warning"},
            ),
        ],
        says=[
            (
                norms([1.0] * 40 + [20.0] * 4 + [0.5] * 16),
                (
                    "The gradient norm is, for some rows, over 10 x its earlier level from step 41 on (median 1 before"
                    ", 0.5 after)."
                ),
            ),
            (
                norms([1.0] * 40 + [20.0] * 20),
                "The gradient norm grows to over 10 x its earlier level from step 41 on (median 1 before, 20 after).",
            ),
        ],
    ),
    "GRD108": Entry(
        edges=[
            Edge("vanished_ratio", "w--", 0.98e-3, 1.02e-3, lambda x: _jump(*range(30, 36), by=x), at=1e-3),
            Edge("vanished_rows", "-w", 4, 5, lambda x: _jump(*range(30, 30 + x), by=1e-6)),
            Edge(
                "memorized",
                "iw",
                0.0098,
                0.0102,
                lambda x: run([2.0] * 20 + [2.0 * x] * 40, norms=[1.0] * 20 + [1e-6] * 40),
            ),
            Edge(
                "memorized_in_most_rows",
                "iw",
                39,
                40,
                lambda x: run([2.0] * x + [0.002] * (60 - x), norms=[1.0] * 20 + [1e-6] * 40),
            ),
            Edge("zero_groups", "w-", 0.49, 0.51, lambda x: _no_norm(60, x)),
            Edge("zero_groups_logged", "?w", 0, 1, lambda x: _no_norm(60, 0.1 if x else None)),
            Edge("vanished_share", "-w", 11, 12, _no_norm),
            Edge("vanished_rows_of_rl", "-w", 4, 5, lambda x: _no_norm(x, rows=20)),
            Edge("small_under_rl", "w-", 0.0, 1e-9, lambda x: _no_norm(60, norm=x)),
            Edge("no_rate_under_rl", "-w", 0.0, 1e-6, lambda x: _no_norm(60, rate=x)),
            Edge("fitted", "iw", 0.0199, 0.0201, _low_loss),
        ],
        at=[
            At(lambda x: norms([1.0] * 20 + [x] * 40), {1e-3: None, 0.99e-3: "warning"}),
            At(lambda x: norms([*[0.0] * 4, x, x, *[1.0] * 24, *[1e-6] * 30]), {1.0: "warning", 1e-4: None}),
            At(
                lambda n: norms([float(not 2001 <= i < 2001 + n) for i in range(4096)], line(4096, 2.0, 1.0), rates=[]),
                {4: None, 5: "warning"},
            ),
            At(tiny_rows, {(2001, 2006): None, (2000, 2006): "warning"}),
            At(lambda x: faded([2.0] * 20 + [x] * 20 + [2.0] * 20, last=40), {0.001: "info", 0.1: "warning"}),
            At(lambda x: faded([1.0] * 3 + [x] * 17 + [0.02] * 40), {9.0: "info", 1.0: "warning"}),
            At(
                lambda x: run([2.0] * 20 + [x] * 40, norms=[1.0] * 20 + [1e-6] * 40),
                {0.02: "warning", 0.019: "info", 0.0: "warning"},
            ),
        ],
    ),
    "LRS109": Entry(
        edges=[
            Edge("zero_rate_rows", "-w", 2, 3, lambda x: run(FALL, rates=[0.0] * x + [2e-4] * (60 - x))),
            Edge(
                "zero_tail_share",
                "-w",
                10,
                11,
                lambda x: run(line(100, 2.0, 1.0), rates=[2e-4] * (100 - x) + [0.0] * x),
            ),
            Edge("peak_share", "w--", 0.99e-4, 1.01e-4, lambda x: run(FALL, rates=x, lr=2e-4), at=1e-4),
            Edge("fallen", "w-", 0.89, 0.91, lambda x: _rates(1.0, x, 1.03)),
            Edge("risen", "-w", 0.39, 0.41, lambda x: _rates(1.0, 0.3, x)),
            Edge("absurd_rate", "-w", 0.99e-2, 1.01e-2, lambda x: _lora(run(FALL, rates=x))),
            Edge("times", "ww", 1, 2, lambda x: _rates(1.0, 0.1, 0.9, 0.1, 0.9 if x > 1 else 0.1)),
        ],
        at=[
            At(lambda x: run(FALL, lr=x), {0.0: None, -1.0: None, 4e-4: None, 4.1e-4: "warning", NAN: None}),
            At(lambda x: rates(10.0, 0.5, x), {1.5: None, 1.51: "warning"}),
            At(lambda x: rates(1.0, x, 1.0), {0.75: None, 0.6875: "warning"}, {"account.RISEN": 0.25}),
            At(lambda n: run(FALL, rates=[NAN] * (60 - n) + [2e-4] * n), {2: "?", 3: None}),
            At(lambda way: run(FALL, rates=_staged(way)), {-1: "warning", 1: "info"}),
            At(lambda way: run(FALL, rates=[*_staged(1), *_staged(way)[20:]]), {-1: "warning", 1: "info"}),
        ],
        says=[
            (
                run(FALL, rates=_staged(1)),
                (
                    "The learning rate rises again after it had decayed, once, first at step 31: the schedule was "
                    "computed anew, as for more steps."
                ),
            ),
            (
                run(FALL, rates=[2e-4] * 14 + [0.0] * 46, every=10, training={"max_steps": 600}),
                (
                    "The learning rate is 0 in 46 rows from step 150 on: nothing is learnt there: the schedule ran 4 "
                    "times too "
                    "fast, as where each of 4 processes steps it."
                ),
            ),
            (
                run(FALL, rates=[2e-4] * 16 + [0.0] * 44, every=10, training={"max_steps": 600}),
                "The learning rate is 0 in 44 rows from step 170 on: nothing is learnt there.",
            ),
        ],
        told=[
            ({"throughout": True, "rows": 9, "step": 1}, "does not learn: the learning rate is 0"),
            ({"throughout": False, "rows": 9, "step": 4}, "learning rate 0 in 9 rows from step 4"),
            ({"high": True, "peak": 0.016}, "learning rate up to 0.016"),
            ({"times": 2, "step": 5}, "the learning rate rises again at step 5"),
            ({}, "It is so"),
        ],
        told_as_info=True,
    ),
    "LRS133": Entry(
        edges=[
            Edge("ended", "-i", 53, 54, _stopped),
            Edge("rising", "-i", 0, 1, lambda x: run(FALL, rates=line(60, 1e-6, 1e-4)[:: 1 if x else -1])),
            Edge("long_warmup", "-i", 21, 22, _warmed),
            Edge("long_rows", "-i", 3, 4, lambda x: _warmed(x, rows=11 if x > 3 else 8)),
        ],
        at=[At(lambda end: run(line(60, 2.0, end), rates=line(60, 1e-6, 1e-4)), {2.0: "warning", 1.0: "info"})],
        told=[
            ({"peak": 1.2345e-5}, "ended inside its warm-up: the learning rate reached 1.23e-05"),
            ({"peak": 1e-4, "share": 0.7}, "the warm-up took 70% of it"),
        ],
        told_as_info=True,
    ),
    "OVF110": Entry(
        edges=[
            Edge(
                "overfit_rise",
                "-ww",
                0.0195,
                0.0205,
                lambda x: _evaluated(1.5, 1.2, 1.2 * (1 + x), 1.2 * (1 + x)),
                at=0.02,
            ),
            Edge("overfit_evals", "-w", 2, 3, lambda x: _evaluated(*[1.5, 1.2, 1.3, 1.35][: x + 1])),
            Edge("least_evals", "?w", 2, 3, lambda x: _evaluated(*[1.2, 1.3, 1.35][:x])),
            Edge(
                "eval_noise",
                "w-",
                0.0095,
                0.0099,
                lambda x: _evaluated(1.5, 1.4, 1.3, 1.2, 1.25, 1.3, 1.32, 1.34, noise=x),
            ),
        ],
        at=[
            At(
                lambda x: evaluated(1.5, 1.0, x, x),
                {1.125: None, 1.1251: "warning"},
                given={"held_out.OVERFIT_RISE": 0.125},
            ),
            At(
                lambda x: evaluated(1.5, 1.25, 1.0, x, x),
                {1.046875: None, 1.05: "warning"},
                given={"facts.noise": lambda *_, **__: 2.0**-6},
            ),
        ],
        told=[
            (OVERFIT, "overfits from step 43 (test loss +12.5% since)"),
            (
                {**OVERFIT, "metric": "wer", "metric_gained": True},
                "overfits from step 43 (test loss +12.5% since), but wer still gained",
            ),
            ({**OVERFIT, "metric": "f1", "metric_gained": False}, "overfits from step 43 (test loss +12.5% since)"),
            (
                {"split": "test", "metric": "accuracy", "best_step": 7, "best": 0.75, "last": 0.5},
                "test accuracy was best at step 7 (75.0%; 50.0% at the end)",
            ),
        ],
        says=[
            (
                with_history(*(evaluation(step, x) for step, x in ((1, 1.0), (2, 2.0), (3, 3.0))), losses=[NAN] * 3),
                "no training loss was recorded: overfitting cannot be told from divergence",
            ),
            (
                with_history(*(evaluation(step, x) for step, x in ((100, 1.0), (200, 2.0), (300, 3.0)))),
                "too few training rows around the best evaluation",
            ),
        ],
        told_as_info=True,
    ),
    "HLD146": Entry(
        edges=[
            Edge("dead", "-w", 1e-9, 0.0, lambda x: _scored(x, [0.0, 0.0])),
            Edge("all_wrong", "-w", 0.94, 0.96, lambda x: _scored(x, [0.97, 0.99], name="wer")),
            Edge("another_gains", "wi", 0.0299, 0.0301, lambda x: _scored(0.0, [0.0, 0.0], f1=[0.0, x, x])),
            Edge("held_still", "w-", 2.395, 2.39, lambda x: _memorised([2.4, 2.41, x])),
            Edge("least_evals", "-w", 2, 3, lambda n: _memorised([2.4, 2.4, 2.4][: int(n)])),
            Edge("clear_fall", "iw", 1.65, 1.45, lambda x: _memorised([2.4, 2.4, 2.4], line(60, 2.0, x))),
            Edge("learnt", "-w", 1.79, 1.81, lambda x: _memorised([x, x, x])),
            Edge("lost", "-i", 2.4, 2.5, lambda x: _memorised([2.4, x])),
            Edge("late_evals", "-i", 4, 5, lambda n: _stands(int(n))),
            Edge("late_fall", "i-", 0.55, 0.65, lambda x: _stands(5, fall=x)),
            Edge("still_gains", "i-", 0.00089, 0.0009, lambda x: _stands(6, gain=x)),
        ],
        told=[
            ({"how": "late", "what": "eval loss", "step": 40}, "eval loss has not improved since step 40"),
            ({"how": "first", "what": "eval loss", "memorises": True}, "memorises; eval loss did not improve"),
            (
                {"how": "lost", "what": "eval f1", "falls": True},
                "the training loss falls, but eval f1 does not improve",
            ),
            ({"how": "dead", "what": "eval f1", "falls": False}, "eval f1 does not improve"),
        ],
        told_as_info=True,
    ),
    "GAP111": Entry(
        edges=[
            Edge("loss_gap", "-ww", 1.49, 1.51, _gap, at=1.5),
            Edge("one_epoch", "iw", 1.0, 1.1, lambda x: _gap(2.0, epochs=x)),
            Edge("gap_times", "-w", 1.99, 2.01, lambda x: _gap(math.exp(0.2 * (x - 1.0)), train=0.2)),
            Edge("gap_nats", "-w", 0.099, 0.101, lambda x: _gap(math.exp(x), train=0.01)),
            Edge("a_task_metric_decides", "wi", 0, 1, lambda x: _gap(2.0, **({"f1": 0.5} if x else {}))),
        ],
        told=[
            ({"split": "test", "held_out": 1.23456, "train": 0.5}, "test loss 1.235 against 0.5 in training"),
            ({"rises": True, "nats": math.log(3.625), "held_out": 2.0, "train": 0.5}, "gap 3.62x"),
            ({"rises": True, "nats": 9.0}, "gap over 1000x"),
        ],
        told_as_info=True,
    ),
    "SEL190": Entry(
        edges=[
            Edge("worse", "-i", 0.82, 0.83, lambda x: _left(0.8, 0.8, x)),
            Edge("restored", "-i", 0.0, 1.0, lambda x: _left(0.8, 0.8, 0.9, by="loss" if x else "accuracy")),
            Edge("last", "-i", 0.0, 1.0, lambda x: _left(0.8, 0.9, 0.8 if x else 0.9, restored=False)),
            Edge("told", "?i", 0.0, 1.0, lambda x: _left(0.8, 0.8, 0.9, restored=True if x else None)),
        ],
        told_as_info=True,
    ),
    "EVL191": Entry(
        edges=[
            Edge("unmeasured", "-i", 63, 64, lambda x: _left(0.8, 0.8, 0.8, restored=False, last=int(x))),
            Edge("restored", "i?", 0.0, 1.0, lambda x: _left(0.8, 0.8, 0.8, restored=bool(x), last=90)),
            Edge("one_is_due", "i?", 78, 79, lambda x: _left(0.8, 0.8, 0.8, restored=False, last=int(x))),
            Edge("it_was_due", "?i", 81, 82, lambda x: _left(0.8, 0.8, 0.8, restored=False, last=int(x))),
        ],
    ),
    "SEL192": Entry(
        edges=[
            Edge("rises", "-w", 1.0, 0.0, lambda x: _turned("eval_accuracy", bool(x))),
            Edge("falls", "-w", 0.0, 1.0, lambda x: _turned("loss", bool(x))),
            Edge("known", "w-", 1.0, 0.0, lambda x: _turned("loss" if x else "temperature", up=True)),
            Edge("stated", "?w", 0.0, 1.0, lambda x: _turned("loss", up=True if x else None)),
        ],
    ),
    "CON193": Entry(
        edges=[
            Edge("equal_evals", "-w", 3, 4, lambda n: evaluated(*[2.0] * int(n), accuracy=0.75)),
            Edge(
                "equal",
                "-w",
                0.0,
                1.0,
                lambda x: _left(0.7, 0.7, 0.7, n=None) if not x else evaluated(*[2.0] * 4, accuracy=0.7),
            ),
            Edge("apart", "-w", 0.56, 0.565, lambda x: evaluated(*[x] * 4, accuracy=0.75)),  # their entropy: 0.5623
            Edge("of_one_class", "-w", 0.5002, 0.50005, _recalled),
            Edge("all_classes", "w-", 1 / 20, 1 / 21, _recalled),
            Edge("below_accuracy", "-w", 0.49, 0.51, lambda x: _recalled(0.5, x)),
            Edge("none", "-w", 1e-9, 0.0, _recalled),
        ],
        told=[
            ({"metric": "f1", "value": 0.66666}, "one answer to every row (f1 0.667)"),
            ({"metric": "f1", "value": 0.66666, "evaluations": 4}, "the same f1 at every evaluation (0.667)"),
        ],
    ),
    "PRF194": Entry(
        edges=[
            Edge("swapped", "-w", 0.31, 0.3, _told_apart),
            Edge("trained", "-w", 0.69, 0.7, lambda x: _told_apart(0.1, x)),
            Edge("reward_model", "-w", 0.31, 0.3, _ranked),
            Edge("told", "w?", 0.79, 0.81, lambda x: _ranked(0.1, x)),
            Edge("last_fifth", "-w", 2, 3, lambda n: _told_apart(0.1, [0.6] * (27 - n) + [0.8] * n + [0.6] * 3)),
            Edge("last_losses", "?w", 2, 3, lambda n: _ranked(0.1, [1.0] * (27 - n) + [0.55] * n + [1.0] * 3)),
        ],
    ),
    "EVL134": Entry(
        edges=[
            Edge("not_finite", "w-", 0, 1, lambda x: with_history(evaluation(60, "NaN" if x else None, runtime=1.0))),
            Edge(
                "values", "w-", 0, 1, lambda x: with_history(evaluation(60, runtime=1.0, **({"f1": 0.5} if x else {})))
            ),
        ],
    ),
    "SML113": Entry(
        edges=[
            Edge("small_eval", "i-", 1060, 1075, lambda x: _classified(0.5, 0.3, n=x)),
        ],
        at=[
            At(lambda n: classes(0.5, 0.5, n=n), {100: None, 99: "info"}, given={"held_out.SMALL_EVAL": 1.96 * 0.05}),
            At(lambda accuracy: _classified(accuracy, 0.3, n=100), {1.0: None, 0.99: None, 0.5: "info", 1.01: "?"}),
        ],
    ),
    "UND126": Entry(
        edges=[
            Edge("unfinished_fall", "i-", 0.8905, 0.8915, lambda x: _evaluated(1.0, 0.9, x)),
            Edge(
                "eval_noise",
                "i-",
                0.0265,
                0.0274,
                lambda x: _evaluated(1.4, 1.3, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7, noise=x),
            ),
            Edge("least_evals", "?i", 2, 3, lambda x: _evaluated(*[1.0, 0.9, 0.8][:x])),
        ],
        at=[
            At(
                lambda x: evaluated(2.0, 2.0, 2.0, 2.0, x),
                {1.953125: None, 1.94: "info"},
                given={"facts.noise": lambda *_, **__: 2.0**-6},
            ),
            At(lambda x: evaluated(2.0, 1.0, 1.5, x), {1.2: None, 0.99: "info"}),
            At(lambda x: evaluated(2.0, 1.0, x), {0.875: None, 0.8749: "info"}, given={"facts.UNFINISHED_FALL": 0.125}),
        ],
        told_as_info=True,
    ),
    "CHN112": Entry(
        edges=[
            Edge("chance_z", "w-", 0.5405, 0.5415, lambda x: _classified(x, 0.5)),
            Edge("chance_margin", "w-w", 0.529, 0.531, lambda x: _classified(x, 0.5, n=None), at=0.53),
            Edge("per_cent", "-w", 1.0, 1.5, lambda x: _classified(x, 0.5)),
            Edge("of_pairs", "w-", 0.52, 0.54, lambda x: _pairs_held_out(0.6, 0.6, x, x)),
            Edge("of_pairs_swapped", "-w", 0.3, 0.31, lambda x: _pairs_held_out(0.6, 0.6, x, x)),
            Edge("of_pairs_trained", "-w", 0.69, 0.71, lambda x: _pairs_held_out(*[0.5] * 4, train=x)),
            Edge("pair_evals", "?w", 3, 4, lambda n: _pairs_held_out(*[0.5] * n)),
            Edge("of_a_reward_model", "-w", 0.3, 0.31, _ranked),
            Edge(
                "chance_near_of_the_loss",
                "-w",
                0.678,
                0.681,
                lambda x: changed(run(FALL, held_out=[0.7, x], num_labels=2), config=ConfigSnapshot(num_labels=2)),
            ),
            Edge("chance_z_above", "w?", 0.284, 0.287, lambda x: _classified(x, 1.386, classes=None)),
            Edge("chance_z_below", "?w", 0.213, 0.216, lambda x: _classified(x, 1.386, classes=None)),
            Edge("chance_near", "w?", 1.413, 1.415, lambda x: _classified(0.25, x, classes=None)),
            Edge("chance_near_below", "?w", 1.357, 1.36, lambda x: _classified(0.25, x, classes=None)),
        ],
        at=[
            At(lambda x: classes(x, of=2), {0.98 * LN2: "warning", 0.979 * LN2: None, math.inf: None}),
            At(
                lambda x: classes(math.log(2.0), x),
                {0.5625: "warning", 0.4375: "warning", 0.563: "?", 0.437: "?"},
                given=CHANCE,
            ),
            At(
                lambda x: classes(LN2 * x, 0.5),
                {2.0: "warning", 0.0: "warning", 2.001: "?", -0.001: "?"},
                given=CHANCE | {"held_out.CHANCE_NEAR": 1.0},
            ),
            At(lambda k: classes(math.log(k), 1.0 / k), {2.0: "warning", 20.0: "warning", 22.0: "?"}),
        ],
        told=[
            ({"accuracy": 0.5}, "held-out accuracy at chance"),
            ({"loss": 0.69}, "held-out loss no better than chance"),
        ],
    ),
    "REP128": Entry(
        edges=[
            Edge("many_epochs", "-i", 9.9, 10.0, lambda x: run(line(20, 2.0, 1.2), epoch=x)),
            Edge("surely", "iii", 0.198, 0.202, lambda x: run([2.0, *[x] * 11], epoch=30.0), at=0.2),
            Edge("few_epochs", "-i", 3.5, 3.6, lambda x: run([2.0, *[0.19] * 11], epoch=x)),
            Edge("few_level", "i-", 0.198, 0.202, lambda x: run([2.0, *[x] * 11], epoch=6.0)),
            Edge("few_level_nats", "i-", 0.098, 0.102, lambda x: run([0.6, *[x] * 11], epoch=6.0)),
        ],
        at=[
            At(lambda x: repeated(10.0, 2.0, x), {1.3: "info", 1.31: None}),
            At(lambda x: repeated(3.6, 1.0, x), {0.1: "info", 0.101: None}),
            At(lambda x: repeated(x, 1.0, 0.05), {3.5: None, 3.51: "info"}),
            At(lambda x: repeated(x, 3.0, 1.5), {9.9: None, 10.0: "info"}),
            At(lambda x: repeated(20.0, 10.0, x), {6.5: "info", 6.6: None}),
        ],
        told_as_info=True,
    ),
    "MEM127": Entry(
        edges=[
            Edge("epoch_drop", "-i-", 0.049, 0.051, lambda x: _epochs([x, x]), at=0.05),
            Edge("epoch_errors", "i?", 0.0247, 0.0257, lambda x: _epochs([0.07, 0.07], noise=x)),
            Edge(
                "epoch_share",
                "ii",
                30,
                32,
                lambda x: _epochs([0.3], rows=x // 2),
                says=("medians of 3 points before", "medians of 4 points before"),
            ),
            Edge("epoch_rows", "?i", 7, 8, lambda x: _epochs([0.3], rows=x)),
            Edge("held_out", "?i", 0.9, 1.1, lambda x: _epochs([0.3], held_out=[1.0, x])),
            Edge("epochs_many", "-i", 3, 4, lambda x: _epochs([*[0.1] * (x - 1), 0.0])),
            Edge(
                "fell_before",
                "i-",
                0.348,
                0.349,
                lambda x: run([*line(40, 2.0, 2.0 * (1 - x)), *[1.8 * (1 - x)] * 40], epoch=2.0),
            ),
        ],
        told_as_info=True,
    ),
    "COV142": Entry(
        at=[
            At(lambda x: run(FALL, epoch=x), {0.1: None, 0.0999: "info", 0.0: "?", None: "?"}, number="little_seen"),
            At(lambda kind: run(FALL, epoch=0.01, kind=kind), {"preference": "info", "rl": "?"}),
            At(lambda n: changed(run(FALL, epoch=0.01), last_step=n), {None: "?", 60: "info"}),
        ],
        says=[
            (
                run(FALL, epoch=0.0125),
                "The run ended after 60 steps, 1.25% of one pass over the data, which takes about 4.8e+03.",
            ),
            (
                changed(run(FALL, epoch=0.05), status="unknown"),
                "the run has not made its planned steps: it may see more of the data",
            ),
            (run(FALL, epoch=0.0), "the log counts whole epochs"),
            (run(FALL), "the log does not say how much of the data was seen"),
        ],
        told_as_info=True,
    ),
    "LEK184": Entry(
        at=[
            At(
                lambda n: fed(rows_known=50, eval_rows=20, eval_rows_trained=n),
                {2: None, 3: "warning"},
                number="same_rows",
            ),
            At(
                lambda n: fed(rows_known=50, eval_rows=n, eval_rows_trained=4),
                {40: "warning", 41: None},
                number="same_share",
            ),
            At(lambda n: fed(rows_known=n, eval_rows=20, eval_rows_trained=9), {50: "warning", 0: "?", None: "?"}),
        ],
        says=[
            (
                run(
                    FALL,
                    data={**FED, "rows_known": 128, "eval_rows": 100, "eval_rows_trained": 6},
                    wirings=[
                        Wiring(schema=SCHEMA_ID, ts=None, run_id="r", step=0, phase="start", data=DataWiring(rows=2048))
                    ],
                ),
                (
                    "6 of 100 evaluation rows are among the 128 of 2048 training rows that the recorder saw: about 96% "
                    "of the evaluation was trained on."
                ),
            ),
            (run(FALL, data=FED), "the recorder saw no rows of an evaluation beside those of training"),
        ],
    ),
    "LEK185": Entry(
        edges=[
            Edge("solved", "i?", 0.02, 0.0201, lambda x: run([2.0, *[x] * 59], epoch=1.0)),
            Edge("first_pass", "i?", 4.99, 5.01, lambda x: run([2.0] * 10 + [0.01] * 50, epoch=x)),
            Edge("held_out_too", "i?", 0.02, 0.0201, lambda x: run([2.0, *[0.01] * 59], held_out=[x], epoch=1.0)),
        ],
        at=[
            At(
                lambda x: run(FALL, held_out=[0.1] * 4, accuracy=x),
                {0.99: "info", 0.989: None, 99.0: "info"},
                number="perfect",
            ),
            At(lambda n: run(FALL, held_out=[0.1] * n, accuracy=1.0), {4: "info", 3: None}, number="perfect_by"),
            At(lambda x: run(FALL, held_out=[0.1] * 4, accuracy=x), {None: "?"}),
        ],
        told=[
            ({"accuracy": 0.9951, "step": 20}, "accuracy 99.5% at step 20 already"),
            ({"loss": 0.0029}, "the loss is 0.0029 within the first pass over the data"),
        ],
        told_as_info=True,
        says=[
            (
                with_history(evaluation(0, 0.1, accuracy=1.0), evaluation(50, 0.1, accuracy=1.0)),
                "the first evaluation is of the model before training",
            ),
        ],
    ),
    "PRF220": Entry(
        edges=[
            Edge("apart", "-w", 1.9, 2.1, _at_first),
            Edge("apart_below", "w-", -2.1, -1.9, _at_first),
            Edge("other_side", "-w", -3.0, 3.0, lambda x: _at_first(3.0, rejected=x)),
            Edge("apart_stays", "w-", 4.4, 4.6, lambda x: _at_first(3.0, then=x)),
            Edge("begins_later", "w?", 1, 2, lambda n: _at_first(3.0, first=n)),
            Edge("separation_rows", "?w", 9, 10, lambda n: _at_first(3.0, rows=n)),
            Edge("a_multiple", "w?", -97.5, -98.5, lambda x: _at_first(3.0, **{"logps/chosen": [x] + [-100.0] * 39})),
            Edge("no_reference", "w?", 0, 1, lambda x: _at_first(3.0, **({"nll_loss": [1.0] * 40} if x else {}))),
        ],
        told=[({"chosen": -3.2, "rejected": -3.41}, "rewards of -3.2 and -3.4 in the first row")],
    ),
    "PRF119": Entry(
        edges=[
            Edge("swapped", "ww", 0.495, 0.496, lambda x: _pairs(x, 0.01, -0.1, 0.5)),
            Edge("surely", "w-", 0.337, 0.351, lambda x: _pairs(0.5, 0.01, x, 0.5)),
            Edge("separation_error", "w?", 0.128, 0.134, lambda x: _pairs(0.5, x, 0.2, 0.5)),
            Edge("separation_error_said", "ww", 0.128, 0.134, lambda x: _pairs(0.5, x, 0.0, 0.5)),
            Edge("margin_error", "w?", 0.342, 0.356, lambda x: _pairs(0.5, x, 0.0, 0.5)),
            Edge("margin_still", "w?", 0.112, 0.117, lambda x: _pairs(0.5, 0.2, x, 0.5)),
            Edge("two_errors", "w-", 0.567, 0.589, lambda x: _pairs(x, 0.17, 0.0, 0.5)),
            Edge("separation_rows", "?w", 9, 10, lambda x: _pairs(0.5, 0.01, 0.0, 0.5, n=x)),
            Edge("hardly", "-w", 0.979, 0.981, lambda x: _near_ln_2(x, 0.01)),
            Edge("hardly_above", "w-", 1.019, 1.021, lambda x: _near_ln_2(x, 0.01)),
            Edge("hardly_at_first", "-w", 0.979, 0.981, lambda x: _near_ln_2(0.99, 0.01, first=x)),
            Edge("hardly_apart", "w-", 0.049, 0.051, lambda x: _near_ln_2(0.99, x)),
            Edge("hardly_in_a_half", "-w", 0, 1, lambda x: _near_ln_2(0.99, 0.01, "ok" if x else "unknown")),
            Edge("together", "?w", -0.21, -0.19, lambda x: _moved(2.0, x)),
            Edge("together_by_errors", "?w", 0.295, 0.285, lambda x: _moved(2.0, 0.0, x)),
            Edge("chosen_fall", "?w", 0.99, 1.01, lambda x: _moved(x, 0.0, 0.01)),
            Edge("chosen_fall_down", "w?", -1.01, -0.99, lambda x: _moved(x, 0.0, 0.01)),
        ],
        at=[
            At(lambda x: separated(x, 0.03125, 0.0, 1.0), {0.5625: "warning", 0.5626: None}, given=BY_COLUMN),
            At(lambda x: separated(x, 0.01, 0.4, 0.125), {0.5: None, 0.499: "warning"}, given=BY_COLUMN),
            At(lambda x: separated(0.5, 0.01, x, 0.125), {0.375: "warning", 0.3751: None}, given=BY_COLUMN),
            At(lambda x: separated(0.5, x, 0.0, 0.125), {0.08: "warning", 0.0801: "?"}, given=BY_COLUMN),
            At(lambda x: separated(0.5, 0.05, x, 0.125), {0.125: "warning", 0.126: "?"}, given=BY_COLUMN),
            At(lambda x: separated(0.5, x, 0.2, 0.125), {0.03: "warning", 0.0301: "?"}, given=BY_COLUMN),
        ],
        says=[
            (
                _near_ln_2(0.99, 0.01),
                (
                    "Chosen and rejected answers are hardly told apart at a learning rate of 0.0002: the loss ends "
                    "at 0.6862, 99.0% of the ln 2 that it starts from, with a mean margin of 0.01 in the second half "
                    "of the rows."
                ),
            ),
            (
                _moved(2.0, 0.0, 0.01),
                (
                    "Chosen and rejected answers are not told apart: in the second half of the rows both rewards are 2 "
                    "from the reference, and 0 (+/- 0.0046) from each other."
                ),
            ),
        ],
    ),
    "PRF140": Entry(
        edges=[
            Edge("tie", "w-", 9e-5, 1.1e-4, lambda x: _ties([0.0] * 19 + [x])),
            Edge("few_rows", "?w", 2, 3, lambda x: _ties([0.0] * x)),
        ],
        told=[
            ({"why": "no reward"}, "margin 0 throughout: both rewards are 0"),
        ],
    ),
    "PRF120": Entry(
        edges=[
            Edge("chosen_fall", "-ii", 0.99, 1.01, lambda x: _chosen([0.0] * 20 + [-x] * 20), at=1.0),
            Edge(
                "chosen_errors",
                "i-",
                0.189,
                0.197,
                lambda x: _chosen([(0.0 if i < 20 else -1.5) + (x if i % 2 else -x) for i in range(40)]),
            ),
            Edge("chosen_rows", "?i", 4, 5, lambda x: _chosen([-1.0 * i for i in range(x)])),
            Edge("many_rows", "-i", 19, 20, lambda x: _chosen([0.0] * 5 + [-1.0, -3.0] * 4 + [-1.5] * (x - 13))),
            Edge("chosen_nats", "-i", -109.9, -110.1, lambda x: _logps([-100.0] * 20 + [x] * 20)),
            Edge("a_tenth", "-i", -329.9, -330.1, lambda x: _logps([-300.0] * 20 + [x] * 20)),
            Edge("chosen_most", "iw", -149.9, -150.1, lambda x: _logps([-100.0] * 20 + [x] * 20)),
            Edge("chosen_early", "iw", -179.9, -180.1, lambda x: _both([-150.0] * 4 + [x] * 36)),
            Edge("chosen_early", "iw", 12, 10, lambda x: _both([-150.0] * x + [-190.0] * (40 - x))),
            Edge("chosen_early_nats", "iw", -129.9, -130.1, lambda x: _both([-100.0] * 4 + [x] * 36)),
            Edge("both", "iw", 0, 1, lambda x: _both([-150.0] * 4 + [-190.0] * 36, falls=bool(x))),
            Edge("chosen_lost", "iw", -4.9, -5.1, lambda x: _both([0.0] * 4 + [x] * 36, "rewards")),
            Edge("far_below", "-w", -4.9, -5.1, lambda x: _both([x] * 40, "rewards")),
            Edge(
                "without_reference",
                "w-",
                0,
                1,
                lambda x: _both([-9.0] * 40, "rewards", **({"nll_loss": [2.0] * 40} if x else {})),
            ),
            Edge("both_rewards", "iw", 0, 1, lambda x: _both([0.0] * 4 + [-6.0] * 36, "rewards", falls=bool(x))),
            Edge(
                "the_first_row",
                "-w",
                -101.0,
                -99.0,
                lambda x: _logps([x] + [-199.0 - i % 2 for i in range(29)] + [-100.0]),
            ),
            Edge(
                "most_at_once",
                "ww",
                0,
                1,
                lambda x: _logps([-70.0, *([-199.0] if x else [-100.0]) * 9, *[-199.0] * 30]),
                says=("from -100 to", "from -70 to"),
            ),
        ],
        at=[
            At(
                lambda x: chosen(rows=10, fall=x), {2.0: "info", 0.9: None}, given={"preference.mann_kendall": of(0.01)}
            ),
            At(lambda n: chosen(rows=n), {19: None, 20: "info"}, given={"preference.mann_kendall": of(0.0101)}),
        ],
        told=[
            ({"both": True, "first": -98.76, "last": -200.0}, "both answers lose probability: chosen -98.76 -> -200"),
            ({"both": False, "first": -9.0, "last": -20.0}, "chosen answers lose probability: chosen -9 -> -20"),
        ],
    ),
    "PRF130": Entry(
        edges=[
            Edge(
                "saturated_loss",
                "w-",
                0.0195,
                0.0205,
                lambda x: run(
                    [0.69] * 6 + [x] * 6, kind="preference", columns={"rewards/margins": [0.0] * 6 + [9.0] * 6}
                ),
            ),
            Edge(
                "saturated_margin",
                "-ww",
                3.95,
                4.05,
                lambda x: run(
                    [0.69] * 6 + [0.01] * 6, kind="preference", columns={"rewards/margins": [0.0] * 6 + [x] * 6}
                ),
                at=4.0,
            ),
            Edge(
                "few_rows",
                "?w",
                2,
                3,
                lambda x: run([0.01] * x, kind="preference", columns={"rewards/margins": [9.0] * x}),
            ),
        ],
    ),
    "RWN139": Entry(
        edges=[
            Edge("null_rows", "wi", 18, 19, lambda x: _rl(frac_reward_zero_std=[0.0] * 20, reward=[1.0] * x)),
            Edge("any", "i-", 19, 20, lambda x: _rl(frac_reward_zero_std=[0.0] * 20, reward=[1.0] * x)),
            Edge("a_function", "i-", 19, 20, lambda x: _with_function(x, 20)),
            Edge("a_function_alone", "wi", 18, 19, _with_function),
            Edge("to_the_end", "iw", 1, 2, lambda x: _silent(x, 4)),
            Edge("none_at_all", "ew", 0, 1, lambda x: _rl(frac_reward_zero_std=[0.0] * 20, reward=[1.0] * x)),
        ],
        told=[
            ({"missing": 3, "rows": 20}, "no reward in 3 of 20 rows"),
            ({"missing": 3, "rows": 20, "name": "rewards/a"}, "no rewards/a in 3 of 20 rows"),
        ],
        says=[
            (_silent(7, 0), "From step 14 on rewards/a/mean is not a number" + _NO_COMPLETION),
            (_silent(1, 3), "In 4 of 20 logged rows rewards/a/mean is not a number" + _NO_COMPLETION),
            (_with_function(0, 20), "In all 20 logged rows rewards/a/mean is not a number" + _NO_COMPLETION),
        ],
    ),
    "RWS143": Entry(
        edges=[
            Edge("rescaled", "-w", 1.99, 2.01, lambda x: _scaled(x, x)),
            Edge("smaller", "w-", 0.499, 0.501, lambda x: _scaled(x, x)),
            Edge("same_factor", "w-", 4.49, 4.51, lambda x: _scaled(x, 3.0)),
            Edge("less", "-w", 1.99, 2.01, lambda x: _scaled(x, 3.0)),
            Edge("apart", "-w", 1.0, 1.01, lambda x: _scaled(3.0, 3.0, between=x)),
            Edge("rows", "-w", 4, 5, lambda x: _scaled(3.0, 3.0, first=x)),
            Edge("last_rows", "w-", 15, 16, lambda x: _scaled(3.0, 3.0, first=x)),
            Edge("no_spread", "?w", 0, 1, lambda x: _scaled(3.0, 3.0) if x else _rl(reward=[1.0] * 20)),
            Edge("nothing", "-w", 0.0, 1e-9, lambda x: _scaled(3.0, 3.0, spread=x)),
        ],
        told=[({"step": 121}, "the reward changes its scale at step 121")],
        says=[
            (
                _scaled(4.0, 4.0, first=7),
                f"At step 8 the reward and its deviation become 4 times as large{_SCALE}",
            ),
            (
                _scaled(0.2, 0.2, first=9),
                f"At step 10 the reward and its deviation become 5 times as small{_SCALE}",
            ),
        ],
    ),
    "RWD122": Entry(
        edges=[
            Edge("alpha", "w?", 0.00964, 0.01049, lambda p: _rl(reward=_ordered(p, 1.0, 0.1))),
            Edge("alpha_rises", "-?", 0.00964, 0.01049, lambda p: _rl(reward=[-x for x in _ordered(p, 1.0, 0.1)])),
            Edge("reward_fall", "w--", 0.892, 0.908, lambda x: _reward(0.95, 1.0, x), at=0.9),
            Edge("reward_lost", "w-", 0.796, 0.804, lambda x: _reward(0.6, 1.0, x)),
            Edge("reward_errors", "w?", 0.0484, 0.0505, lambda x: _reward(0.9, 1.0, 0.7, x)),
            Edge("reward_flat", "i?", 0.0323, 0.0336, lambda x: _reward(1.0, 1.0, 1.0, x)),
            Edge("reward_shown", "?-", 0.74, 0.76, lambda x: _rl(reward=_risen(x))),
            Edge("two_errors", "i?", 1.043, 1.045, lambda x: _reward(1.0, 1.0, x, 0.02)),
            Edge("rate_low", "wiw", 1.9e-6, 2.1e-6, _flat_at, at=2e-6),
            Edge("few_rows_rate_low", "w?", 1.9e-6, 2.1e-6, lambda x: _flat_at(x, noise=0.5, rows=12)),
            Edge("noisy_rate_low", "w?", 1.9e-6, 2.1e-6, lambda x: _flat_at(x, noise=0.5)),
            Edge("some_rows", "?w", 9, 10, lambda x: _rl(reward=[1.3] * 4 + [0.5] * (x - 6) + [0.6] * 2)),
            Edge("sure_errors", "w?", 0.04, 0.045, lambda x: _rl(reward=_dip(0.9, x))),
            Edge("on_the_way", "w?", 1.15, 1.2, lambda x: _rl(reward=_dip(x, 0.02))),
            Edge("many_rows", "w?", 19, 20, lambda x: _rl(reward=([1.0] * 8 + [0.3, 0.5] * 6)[:x])),
            Edge("few_rows", "?-", 2, 3, lambda x: _rl(reward=[1.0] * x)),
            Edge("of_one_scale", "w?", 0.501, 0.499, lambda x: _scaled(x, x)),
            Edge("alike", "w-", 0.314, 0.315, lambda r: _rl(reward=_drifts(r))),
        ],
        at=[
            At(lambda x: rewarded(0.5, 2.0, x), {1.0: "?", 0.99: "warning"}, given={"rewards.levels_error": of(0.25)}),
            At(
                lambda x: rewarded(0.0, 2.0, x), {1.0: None, 0.99: "warning"}, given={"rewards.levels_error": of(0.125)}
            ),
            At(
                lambda x: rewarded(1.0, 1.5, x),
                {1.0: "info", 1.2: "?", 1.75: "?", 1.76: None},
                given={"rewards.levels_error": of(0.25), "rewards.REWARD_FLAT": 0.5},
            ),
            At(
                lambda x: rewarded(x, x, x),
                {1.0: "info", -1.0: "info", 0.999: "?"},
                given={"rewards.levels_error": of(0.25), "rewards.REWARD_FLAT": 0.5},
            ),
            At(
                lambda x: rewarded(-10.2, -10.0, x),
                {-11.0: None, -11.01: "warning"},
                given={"rewards.levels_error": of(0.0)},
            ),
            At(lambda r: _flat_at(1e-6, r), {8: "warning", None: "info"}),
            At(lambda status: _flat_at(1e-6, status=status), {"ok": "warning", "error": "info"}),
            At(
                rewarded_seldom,
                {1.0: None, 0.99: "warning"},
                given={"rewards.mann_kendall": of(0.01), "rewards.REWARD_FLAT": 0.5},
            ),
            At(rewarded_seldom, {0.99: "?"}, given={"rewards.mann_kendall": of(0.0101)}),
            At(
                lambda x: run(kind="rl", columns={"reward": [-10.0, -10.0, -10.1, x, x]}),
                {-11.0: None, -11.01: "warning"},
                given={"rewards.mann_kendall": of(0.01)},
            ),
        ],
        told=[
            ({"best": 1.23456, "best_step": 30}, "the reward fell from 1.235 around step 30"),
            ({"first": 1.0, "last": 1.0}, "It is so"),
        ],
    ),
    "ZVR123": Entry(
        edges=[
            Edge("zero_groups", "-ii", 0.49, 0.51, lambda x: _rl(frac_reward_zero_std=[0.1] * 20 + [x] * 10), at=0.5),
            Edge(
                "zero_groups_most", "iww", 0.89, 0.91, lambda x: _rl(frac_reward_zero_std=[0.1] * 20 + [x] * 10), at=0.9
            ),
            Edge("few_rows", "?w", 2, 3, lambda x: _rl(frac_reward_zero_std=[0.95] * x)),
        ],
        told_as_info=True,
    ),
    "ENT135": Entry(
        edges=[
            Edge("collapsed", "wi", 0.19, 0.21, lambda x: _rl(entropy=[2.0] * 10 + [x] * 10)),
            Edge("narrowed", "i-", 0.49, 0.51, lambda x: _rl(entropy=[2.0] * 10 + [x] * 10)),
            Edge("spread_out", "-w", 2.9, 3.1, lambda x: _rl(entropy=[1.0] * 10 + [x] * 10)),
            Edge("random", "-w", 1.9, 2.1, lambda x: _rl(entropy=[0.5] * 10 + [x] * 10)),
        ],
        told=[
            (
                {"how": "collapsed", "first": 1.2345, "last": 0.0123},
                "entropy collapsed from 1.23 to 0.012 nats a token",
            ),
        ],
    ),
    "KLD124": Entry(
        edges=[
            Edge("kl_answer", "-w", 99.0, 101.0, lambda x: _rl(objective__kl=[1.0] * 20 + [x] * 10)),
            Edge("kl_late", "-w-", 0.99, 1.01, lambda x: _rl(kl=[0.1] * 20 + [x] * 10), at=1.0),
            Edge("kl_start", "-w-", 0.19, 0.21, lambda x: _rl(kl=[x, 0.3, 0.3, *[0.1] * 27]), at=0.2),
            Edge("kl_stays", "-w", 0.059, 0.061, lambda x: _rl(kl=[0.3] * 10 + [x] * 20)),
            Edge("kl_start_answer", "-w", 9.9, 10.1, lambda x: _rl(objective__kl=[x] * 30)),
            Edge("kl_first_rows", "-w", 0.19, 0.21, lambda x: _rl(kl=[0.3, x, x, *[0.1] * 27])),
            Edge("begins_later", "w-", 0, 1, lambda x: run([1e-4] * (30 + x), kind="rl", columns={"kl": [0.5] * 30})),
            Edge("kl_row", "-i-", 9.9, 10.1, lambda x: _rl(kl=[0.1] * 10 + [x] + [0.1] * 10), at=10.0),
            Edge("kl_below", "w-", -0.051, -0.049, lambda x: _rl(kl=[0.01] * 20 + [x] * 10)),
            Edge("kl_below_answer", "w-", -2.1, -1.9, lambda x: _rl(objective__kl=[0.1] * 20 + [x] * 10)),
        ],
        told=[
            ({"late": 1.2345}, "KL 1.23 nats a token from the reference"),
            ({"late": 123.4, "unit": "a completion"}, "KL 123 nats a completion from the reference"),
        ],
    ),
    "KLZ138": Entry(
        edges=[
            Edge("kl_none", "w-", 0.9e-6, 1.1e-6, lambda x: _rl(frac_reward_zero_std=[0.0] * 20, kl=[0.0] * 19 + [x])),
            Edge("kl_rows", "?w", 4, 5, lambda x: _rl(frac_reward_zero_std=[0.0] * 20, kl=[0.0] * x)),
        ],
    ),
    "RWC199": Entry(
        edges=[
            Edge("drowned", "-ww", 3.9, 4.1, lambda x: _parts(a=(0.5, 0.4), b=(-9.0, x)), at=4.0),
            Edge("drowned", "-w", 3.9, 4.1, lambda x: _parts(a=(0.5, 0.4), b=(-9.0, lambda i: x if i < 10 else 8.0))),
            Edge("levelled", "-w", 0.049, 0.051, lambda x: _parts(a=(0.5, x), b=(-9.0, 5.0))),
            Edge("sum_error", "w-", 0.24, 0.26, lambda x: _weighed(x, 5.0)),
            Edge("constant_rows", "-w", 9, 10, lambda x: _parts(x, a=(0.5, 0.4), b=(0.0, 0.0))),
            Edge("constant", "i-", 0.0, 1e-9, lambda x: _parts(a=(0.5, 0.4), b=(1.0, x))),
            Edge("nothing", "wi", 0.0, 1e-9, lambda x: _parts(a=(0.5, 0.4), b=(x, 0.0))),
            Edge("penalty", "wi", 0, 1, lambda x: _parts(a=(0.5, 0.4), **{"penalty" if x else "b": (0.0, 0.0)})),
            Edge("against", "w-", 0.66, 0.68, lambda x: _parts(a=(_step(1.0, x), 0.1), b=(_step(0.0, 1.0), 0.4))),
            Edge(
                "against_spread", "w-", 1.59, 1.61, lambda x: _parts(a=(_step(2.0, 1.2), x), b=(_step(0.0, 1.0), 0.4))
            ),
            Edge("a_share", "w-", 1.0, 1.01, lambda x: _parts(a=(_step(x, 0.6), 0.9), b=(_step(0.0, 1.0), 0.4))),
            Edge("under_0", "-w", -1e-9, 0.0, lambda x: _parts(a=(_step(0.3, x), 0.9), b=(_step(0.0, 1.0), 0.4))),
            Edge("hidden", "-w", 0.49, 0.5, lambda x: _parts(a=(_step(1.0, 0.5), 0.1), b=(_step(0.0, x), 0.4))),
            Edge("no_deviations", "w-", 0.66, 0.68, _traded),
            Edge("rises", "-w", 0.4, 0.6, lambda x: _parts(a=(_step(1.0, 0.5), 0.1), b=(_step(0.0, x), 0.4))),
            Edge("two", "?w", 0, 1, lambda x: _parts(**({"a": (0.5, 0.4)} if x else {}), b=(0.0, 0.0))),
        ],
        told=[
            ({"how": "drowned", "name": "size"}, "rewards/size has nearly all of the reward's variance"),
            ({"how": "constant", "name": "tests", "level": 0.0}, "rewards/tests is 0 for every completion"),
            ({"how": "against", "name": "right"}, "rewards/right falls at the cost of what rises"),
        ],
        says=[
            (
                _parts(right=(0.5, 0.4), form=(0.2, 0.1), size=(-9.0, 8.0)),
                _UNEVEN + "8, that of form 0.1, right 0.4. What the others ask for hardly counts.",
            ),
            (
                _parts(right=(0.5, 0.4), tests=(0.0, 0.0)),
                "rewards/tests is 0 for every completion in all 30 rows: it teaches nothing, and may never be earned.",
            ),
            (
                _parts(right=(_step(1.0, 0.5), 0.4), style=(_step(0.0, 1.0), 0.4)),
                _TRADED
                + "1 to 0.5 while the reward rises, by rewards/style: the second is learnt at the cost of the first.",
            ),
            (_parts(right=(0.5, 0.4)), "the reward has one function, or its functions were not logged"),
        ],
        told_as_info=False,
    ),
    "SMP196": Entry(
        edges=[
            Edge("gap", "-ww", 0.099, 0.101, lambda x: _rl(**{_GAP: [0.02] * 20 + [x] * 10}), at=0.1),
            Edge("gap_kl", "-ww", 0.0099, 0.0101, lambda x: _rl(rollout_corr__kl=[0.001] * 20 + [x] * 10), at=0.01),
            Edge("a_factor", "-w", 1.104, 1.106, lambda x: _rl(token_mult_prob_error=[1.01] * 20 + [x] * 10)),
            Edge("gap_share", "-w", 0.049, 0.051, lambda x: _rl(training__rollout_probs_diff_mean=[x] * 9)),
            Edge("few_rows", "?w", 2, 3, lambda x: _rl(vllm_kl=[1.0] * x)),
            Edge("grew", "ww", 0.099, 0.101, lambda x: _rl(**{_GAP: [x] * 10 + [0.2] * 20})),
            Edge("falls", "ww", 2, 3, lambda x: _rl(**{_GAP: [0.1, 0.2, 0.4] * (x + 1)})),
        ],
        told=[
            ({"level": "0.3 nats a token", "cause": "grows"}, "sampler and trainer differ by 0.3 nats a token"),
            (
                {"level": "0.3 nats a token", "cause": "first"},
                "sampler and trainer differ by 0.3 nats a token, from the first row on",
            ),
        ],
        says=[
            (
                _rl(**{_GAP: [0.3] * 9}),
                _APART
                + "0.3 nats a token, from the first row on. Usual: another dtype, engine or chat template, or sampling "
                + "cut by top_p, top_k or min_p.",
            ),
            (
                _rl(mismatch_kl__mean=[0.001] * 10 + [0.02] * 10),
                _APART
                + "KL 0.02 nats a token, from 0.001 in the first rows. Usual: weights that no longer reach the "
                + "sampler, or a policy that has moved to tokens of low probability.",
            ),
            (
                _rl(**{_GAP: [0.1, 0.2, 0.4] * 4}),
                _APART
                + "0.3 nats a token, falling back every 3 rows. Usual: weights that the sampler is given only "
                + "so often.",
            ),
            (
                _rl(**{_GAP: [0.2, 0.3] * 5}),  # no cycle: it falls by a third
                _APART
                + "0.3 nats a token, from the first row on. Usual: another dtype, engine or chat template, or sampling "
                + "cut by top_p, top_k or min_p.",
            ),
            (
                _rl(**{_GAP: [8.0, 3.0, 1.0, *[0.4] * 6]}),  # nor here, where one row falls after the other
                _APART
                + "0.4 nats a token, from the first row on. Usual: another dtype, engine or chat template, or sampling "
                + "cut by top_p, top_k or min_p.",
            ),
            (
                _rl(**{_GAP: [0.05] * 6 + [0.12] * 6}),
                _APART
                + "0.12 nats a token, from 0.05 in the first rows. Usual: weights that no longer reach the sampler, or "
                + "a policy that has moved to tokens of low probability.",
            ),
            (
                _rl(**{_GAP: [0.02] * 9, "rollout_corr__kl": [0.02] * 9}),
                _APART
                + "KL 0.02 nats a token, from the first row on. Usual: another dtype, engine or chat template, or "
                + "sampling cut by top_p, top_k or min_p.",
            ),
            (_rl(kl=[0.1] * 9), "no difference between sampler and trainer was logged, or in too few rows"),
        ],
    ),
    "SMP197": Entry(
        edges=[
            Edge("ratio_low", "w-w", 0.49, 0.51, lambda x: _rl(**{_RATIO: [1.0] * 20 + [x] * 10}), at=0.5),
            Edge("few_rows", "?w", 2, 3, lambda x: _rl(**{_RATIO: [0.1] * x})),
        ],
        told=[({"late": 0.1234}, "a mean importance ratio of 0.12")],
    ),
    "CLF137": Entry(
        edges=[
            Edge("clipped_much", "-w", 0.29, 0.31, lambda x: _rl(clip_ratio__region_mean=[x] * 10 + [0.0] * 20)),
        ],
    ),
    "CLP125": Entry(
        edges=[
            Edge("cut_off", "-ww", 0.49, 0.51, lambda x: _rl(completions__clipped_ratio=[0.1] * 20 + [x] * 10), at=0.5),
            Edge("no_end", "w-", 0, 1, lambda x: _rl(val__num_eos_tokens=[5.0] * 20 + [0.0] * 9 + [x])),
            Edge("no_end_rows", "?w", 2, 3, lambda n: _rl(val__num_eos_tokens=[0.0] * n)),
        ],
        told=[
            ({"share": 0.6}, "60% of the completions are cut off"),
        ],
    ),
    "LEN136": Entry(
        edges=[
            Edge("longer", "-w", 19.9, 20.1, lambda x: _rl(completions__mean_length=[10.0] * 10 + [x] * 10)),
            Edge(
                "longer_cut",
                "-w",
                14.9,
                15.1,
                lambda x: _rl(completions__mean_length=[10.0] * 10 + [x] * 10, completions__clipped_ratio=[0.5] * 20),
            ),
            Edge("shorter", "w-", 4.9, 5.1, lambda x: _rl(completions__mean_length=[10.0] * 10 + [x] * 10)),
            Edge("much_longer", "iw", 39.9, 40.1, _grown),
            Edge("much_longer_cut", "iw", 0.49, 0.5, lambda x: _grown(30.0, x)),
            Edge("shorter_while_it_rises", "w-", 4.9, 5.1, _grown),
        ],
        told=[
            ({"how": "grew", "first": 9.876, "last": 123.4}, "completions grew from 9.876 to 123.4 tokens"),
        ],
    ),
    "RWD221": Entry(
        edges=[
            Edge("held_out_rows", "?w", 5, 6, lambda n: _held_reward(*line(n, 0.6, 0.2))),
            Edge("reward_flat", "-w", 0.46, 0.44, lambda x: _held_reward(*_thirds(0.5, 0.5, x))),
            Edge("reward_lost", "-w", 0.31, 0.29, lambda x: _held_reward(*_thirds(0.1, 0.5, x))),
            Edge("reward_errors", "w-", 0.0141, 0.0144, _noisily_held),
            Edge("training_falls", "w-", 0, 1, lambda x: _held_reward(*line(9, 0.6, 0.2), falls=bool(x))),
            Edge("training_fell", "w-", 0, 1, lambda x: _held_reward(*line(9, 0.6, 0.2), dips=bool(x))),
            Edge("named", "w?", 0, 1, lambda x: _held_reward(*line(9, 0.6, 0.2), name="b" if x else "acc")),
        ],
        told=[({"best": 0.55, "best_step": 60}, "the held-out reward fell from 0.55 around step 60")],
    ),
    "CRT219": Entry(
        edges=[
            Edge("explains_nothing", "w-", -0.01, 0.01, _predicted),
            Edge("reward_shown", "w-", 0.1195, 0.1205, lambda x: _predicted(-0.12, x)),
            Edge("many_rows", "?w", 19, 20, lambda x: _predicted(-0.5, rows=x)),
        ],
        told=[
            ({"explained": -1.46}, "the critic explains -146% of the returns' variance"),
        ],
        says=[
            (
                _predicted(-0.5),
                (
                    "The critic's values explain -50% of the variance of the returns in the last third of the rows: a "
                    "constant would do better."
                ),
            ),
        ],
    ),
    "RAT141": Entry(
        edges=[
            Edge(
                "rate_of_weights",
                "-w",
                0.049,
                0.05,
                lambda x: run([1e-4] * 9, kind="rl", rates=x, columns={"reward": FALL[:9]}),
            ),
        ],
    ),
    "END114": Entry(
        edges=[
            Edge("ended", "ew", 0, 1, lambda x: _ended("no_run_end" if x else "error")),
            Edge("planned", "ww", 0, 1, lambda x: _ended("no_run_end", planned=x)),
            Edge("before_the_first_step", "ww", 0, 1, lambda x: _ended("no_run_end", steps=x)),
        ],
        at=[At(lambda status: changed(run(FALL), status=status), {"ok": None, "unknown": None, "aborted": "warning"})],
    ),
    "END183": Entry(
        at=[
            At(lambda n: run(FALL, training={"max_steps": n}), {66: None, 67: "warning", None: "?"}, number="ended"),
            At(
                lambda x: run(FALL, training={"max_steps": 200}, held_out=[1.5, x, 1.2]),
                {1.1: "info", 1.3: "warning"},
            ),
            At(
                lambda status: changed(run(FALL, training={"max_steps": 200}), status=status),
                {"ok": "warning", "unknown": "?", "aborted": "?"},
            ),
        ],
        says=[(run(FALL, training={"max_steps": 200}), "The run ended at step 60 of 200 planned.")],
        told_as_info=True,
    ),
    "TRN115": Entry(
        edges=[
            Edge("torn", "iw", 1, 2, lambda x: _of_lines(*[x == 1] * x)),
            Edge("torn_or_not", "wi", 0, 1, lambda x: _of_lines(bool(x))),
            Edge("missing", "-w", 0, 1, lambda x: run(FALL, record=LogRecord(missing=x))),
        ],
        told=[
            ({"lines": 3}, "3 lines of the log are lost"),
            ({"missing": 4}, "4 lines of the log are lost"),
        ],
    ),
    "RES116": Entry(
        edges=[
            Edge("replayed_again", "ii", 0, 1, lambda x: run(FALL, record=LogRecord(resumed_from=[10, 20][: x + 1]))),
            Edge("replay_difference", "iw", 0.195, 0.205, _replayed),
            Edge("replay_rows", "iw", 2, 3, lambda x: _replayed(0.5, x)),
        ],
        at=[
            At(lambda steps: run(FALL, record=LogRecord(resumed_from=steps)), {(): None, (10,): "info"}),
            At(
                replayed,
                {1.25: "info", 0.75: "info", 1.26: "warning", 0.74: "warning"},
                given={"record.REPLAY_DIFFERENCE": 0.25},
            ),
        ],
    ),
    "RES224": Entry(
        edges=[
            Edge("still_bound", "-e", 0.059, 0.061, lambda x: _anew(fell=x)),
            Edge("diverged_noise", "-e", 0.1255, 0.1275, lambda x: _anew(fell=x, back=1.0, noise=0.03)),
            Edge("back", "-e", 0.795, 0.805, lambda x: _anew(back=x)),
            Edge("back_above", "e-", 1.195, 1.205, lambda x: _anew(back=x)),
            Edge("old_rows", "-e", 5, 6, lambda x: _anew(old=int(x))),
            Edge("few_rows", "-e", 2, 3, lambda x: _anew(new=int(x))),
            Edge("few_rows_in_all", "?-", 8, 9, lambda x: _anew(old=6, new=int(x) - 6)),
        ],
        told=[({"step": 50}, "began anew at its resume, at step 50")],
        says=[
            (run(FALL), "nothing says that the run was resumed"),
            (
                _anew(),
                (
                    "At step 21 the loss is back at 1.9, where the run began (2), from 1 just before: the resume "
                    "started from an untrained adapter, not from what was saved."
                ),
            ),
        ],
    ),
    "EVL225": Entry(
        edges=[
            Edge("same_evals", "-w", 3, 4, lambda x: _same(int(x))),
            Edge("rounded", "?w", 1.3647, 1.36471, lambda x: _same(8, x)),
            Edge("rate", "-w", 0.0, 1e-9, lambda x: _same(6, rate=x)),
            Edge("training_loss", "-w", 0.0, 1e-9, lambda x: _same(6, falls=x)),
        ],
        told=[({"evaluations": 9}, "held-out loss is the same to the last digit in 9 evaluations")],
        says=[
            (run(FALL, held_out=[1.1] * 3), "3 held-out losses; it needs 4"),
            (
                _same(4),
                (
                    "The held-out loss is exactly the same in 4 evaluations, from step 48 to 84 (1.36472106), while "
                    "training "
                    "goes on: the evaluation does not see the weights that are trained."
                ),
            ),
        ],
    ),
    "REP229": Entry(
        edges=[
            Edge("recurring_rows", "-e", 7, 8, lambda x: _passes(int(x))),
            Edge("rate", "-e", 0.0, 1e-9, lambda x: _passes(8, rate=x)),
            Edge("another", "e-", 0.0, 1e-9, lambda x: _passes(9, another=x)),
            Edge("different", "-e", 5, 6, lambda x: _passes(11, different=int(x))),
            Edge("rows", "?e", 15, 16, lambda x: run(_passes(8).series.losses[: int(x)])),
        ],
        told=[({"rows": 25}, "the training loss repeats to the last digit every 25 rows")],
        says=[
            (run(FALL[:9]), "9 losses; it needs 16"),
            (
                _passes(9),
                (
                    "The training loss repeats to the last digit every 9 rows, 3 times: the rows come again, and the "
                    "weights that they meet have not moved."
                ),
            ),
        ],
    ),
    "DUP117": Entry(
        edges=[
            Edge("interleaved", "-w", 0, 1, lambda x: run(FALL, record=LogRecord(interleaved=x))),
            Edge("twice", "-w", 0, 1, lambda x: run(FALL, record=LogRecord(duplicates=x, out_of_order=2 * x))),
        ],
    ),
    "GAP118": Entry(
        edges=[
            Edge("few_rows", "i-", 2, 3, lambda x: run(FALL[:x], every=20)),
            Edge("some_steps", "-i", 19, 20, lambda x: run(FALL[:1], every=x)),
        ],
        at=[
            At(lambda n: run(FALL[:n], every=20), {0: None, 1: "info", 2: "info", 3: None}),
        ],
    ),
    "DAT301": Entry(
        told=[
            ({"rows": 4, "of": 4}, "no token is supervised"),
            ({"rows": 3, "of": 4}, "It is so"),
        ],
        says=[
            (run(FALL, data={**FED, "supervised": None}), "the batches hold no token labels"),
        ],
    ),
    "DAT305": Entry(
        at=[
            At(lambda n: fed(rows_at_limit=n), {4: None, 5: "warning"}),
            At(lambda n: fed(rows_at_limit=n, rows=0), {5: None}),
            At(lambda n: fed(rows_at_limit=n, rows=None), {5: None, None: "?"}),
            At(packed, {"wrapped": "?", "bfd_split": "?", "bfd": "warning", None: "warning"}),
        ],
    ),
    "DAT307": Entry(
        says=[
            (run(FALL, data={**FED, "rows_with_end": None}), "the model's configuration names no end token"),
        ],
    ),
    "DAT316": Entry(
        says=[
            (run(FALL, data=FED), "the batches hold no class labels"),
        ],
    ),
    "DAT309": Entry(at=[At(lambda n: row_by_row(double_bos=n), {0: None, 1: "warning"})]),
    "DAT333": Entry(at=[At(lambda n: row_by_row(inverted=n), {49: "warning", 50: "error", 0: None})]),
    "DAT347": Entry(at=[At(lambda n: row_by_row(labels_differ=9, labels_shifted=n), {4: "warning", 5: "error"})]),
    "DAT349": Entry(at=[At(lambda n: row_by_row(padding_supervised=n), {0: None, 1: "warning"})]),
    "DAT361": Entry(
        at=[
            At(lambda n: row_by_row(last_answer_only=n, several_answers=10), {4: None, 5: "warning"}),
            At(lambda n: row_by_row(last_answer_only=9, several_answers=n), {18: "warning", 19: None}),
        ],
        says=[(fed(), "no row of the batches was asked by itself")],
    ),
    "DAT366": Entry(
        at=[At(lambda n: row_by_row(unattended=n), {0: None, 1: "error", 100: "critical"})],
        told=[({"rows": 100, "of": 100}, "the attention mask hides every token"), ({"rows": 1, "of": 2}, "It is so")],
    ),
    "DAT329": Entry(
        at=[At(lambda n: row_by_row(foreign_tokens=n), {0: None, 49: None, 50: "warning"})],
        says=[(fed(), "no row of the batches was asked by itself")],
    ),
    "DAT358": Entry(at=[At(lambda n: row_by_row(placeless=n), {0: None, 1: "error"})]),
    "DAT355": Entry(
        at=[
            At(lambda n: fed(asked={"documents_masked": n}, rows_asked=100), {49: None, 50: "warning"}),
            At(lambda n: filled({"documents_joined": n}), {60: None}),
            At(
                lambda n: filled({"documents_joined": 30, "turns_or_documents": n}, watched=100, tokens=99),
                {19: None, 20: "warning"},
                number="in_one_row",
            ),
            At(lambda n: filled({"documents_joined": 50}, watched=n, tokens=99), {99: None, 100: "warning"}),
            At(lambda n: filled({"documents_joined": 50}, watched=100, tokens=99, size=n), {1: None, 2: "warning"}),
        ],
    ),
    "FED227": Entry(
        at=[
            At(lambda n: fed(wanted={"own": n, "next": 3, "of": 100}), {49: None, 50: "error"}),
            At(lambda n: fed(wanted={"own": 60, "next": n, "of": 100}), {59: "error", 60: None}),
        ],
        told=[({"own": 60}, "the loss asks for the token that was read, not for the next")],
        says=[(fed(), "the gradient of no logits was seen")],
    ),
    "FED228": Entry(at=[At(lambda n: row_by_row(untaught_tokens=n), {0: None, 1: "warning"})]),
    "FED226": Entry(
        at=[
            At(fed_same, {7: "?", 8: "error"}),
            At(lambda n: fed_same(9, other=n), {0: "error", 1: None}, number="other_rows"),
            At(lambda n: fed_same(9, of=n), {2: None, 3: "error"}, number="all_rows"),
            At(lambda n: fed_same(9, of=n, world=2), {5: None, 6: "error"}, number="all_rows_of_two"),
            At(lambda n: fed_same(n, other=7, of=6), {15: None, 16: "error"}, number="steps_of_two_batches"),
            At(lambda n: fed_same(16, other=7, of=n), {5: None, 6: "error"}, number="all_rows_of_two_batches"),
        ],
    ),
    "ORD186": Entry(
        at=[
            At(lambda n: _classed(8, n), {6: None, 7: "error", 8: "error"}, number="alike"),  # of eight, 0.8 is 6.4
            At(lambda n: _classed(n, n), {3: None, 4: "error"}, number="alike_batches"),
            At(lambda n: _classed(8, 8, low=1, high=1, rows=n), {63: None, 64: "error"}, number="one_class_rows"),
            At(lambda n: _classed(8, 8, low=1, high=1, num_labels=n), {1: None, 2: "error", None: None}),
            At(lambda n: _classed(8, n, low=1, high=1), {7: None, 8: "error"}),
        ],
        says=[(run(FALL, data=FED), "the recorder saw no batch with class labels")],
    ),
    "DAT321": Entry(
        at=[
            At(lambda n: announced(n, length=100.0), {12_500: None, 12_600: "warning", 7_500: None, 7_400: "warning"}),
            At(
                lambda x: announced(200, share=x),
                {0.375: None, 0.374: "warning"},
                given={"recorded.SHARE_APART": 0.125},
            ),
            At(lambda n: announced(900, length=1.0, rows=n), {31: "?", 32: "warning"}),
        ],
    ),
    # The runs of these rules, which read other events than rows, are in rules/log/test_wiring.py
    "WIR170": Entry(
        at=[At(_wired("WIR170"), {"faulty": "critical", "sound": None, "none": "?"})],
    ),
    "WIR171": Entry(
        at=[At(_wired("WIR171"), {"faulty": "critical", "sound": None, "none": "?"})],
        told=[
            ({"frozen": 8}, "the adapter is frozen"),
            ({"modules": 2}, "2 adapted modules are frozen"),
            ({"off": True}, "the adapter is switched off"),
        ],
    ),
    "WIR172": Entry(
        at=[At(_wired("WIR172"), {"faulty": "critical", "sound": None, "none": "?"})],
        told=[
            ({"missing": 8}, "the optimizer misses 8 trainable tensors"),
            ({"doubled": 3}, "3 tensors are in two optimizers"),
        ],
    ),
    "WIR173": Entry(
        at=[At(_wired("WIR173"), {"faulty": "critical", "sound": None, "none": "?"})],
        told=[({"tensors": 8}, "no gradient arrives"), ({"silent": 2}, "2 modules receive no gradient")],
    ),
    "WIR174": Entry(
        at=[At(_wired("WIR174"), {"faulty": "critical", "sound": None, "none": "?"})],
        told=[
            ({"nested": 1}, "the model is adapted twice"),
            ({"merged": ["default"]}, "the adapter is merged while it trains"),
        ],
    ),
    "WIR175": Entry(
        at=[At(_wired("WIR175"), {"faulty": "critical", "sound": None, "none": "?"})],
    ),
    "WIR176": Entry(
        at=[At(_wired("WIR176"), {"faulty": "error", "sound": None, "none": "?"})],
    ),
    "WIR177": Entry(
        at=[At(_wired("WIR177"), {"faulty": "warning", "sound": None, "none": "?"})],
    ),
    "WIR178": Entry(
        at=[At(_wired("WIR178"), {"faulty": "error", "sound": None, "none": "?"})],
    ),
    "WIR179": Entry(
        at=[At(_wired("WIR179"), {"faulty": "critical", "sound": None, "none": "?"})],
        told=[
            ({"step": 5}, "the adapter saved at step 5 is empty"),
            ({"step": 5, "saved": 9}, "the adapter saved at step 5 lacks a part"),
        ],
    ),
    "WIR180": Entry(
        at=[At(_wired("WIR180"), {"faulty": "warning", "sound": None, "none": "?"})],
        told=[
            ({"tensors": 3}, "learning rate 0 for 3 tensors"),
            ({"tensors": 3, "all": True}, "learning rate 0 from the start"),
            ({"backward": 9}, "the optimizer makes no step"),
        ],
    ),
    "WIR181": Entry(
        at=[At(_wired("WIR181"), {"faulty": "error", "sound": None, "none": "?"})],
    ),
    "WIR182": Entry(
        at=[At(_wired("WIR182"), {"faulty": "warning", "sound": None, "none": "?"})],
    ),
    "WIR183": Entry(
        at=[At(_wired("WIR183"), {"faulty": "warning", "sound": None, "none": "?"})],
    ),
    "WIR184": Entry(
        at=[At(_wired("WIR184"), {"faulty": "error", "sound": None, "none": "?"})],
    ),
    "WIR185": Entry(
        at=[At(_wired("WIR185"), {"faulty": "error", "sound": None, "none": "?"})],
    ),
    "WIR186": Entry(
        at=[At(_wired("WIR186"), {"faulty": "warning", "sound": None, "none": "?"})],
    ),
    "WIR187": Entry(
        at=[At(_wired("WIR187"), {"faulty": "warning", "sound": None, "none": "?"})],
        told=[
            ({"step": 5, "tensor": "lora_A"}, "the adapter saved at step 5 is not the model's"),
            ({"step": 5, "last": 6}, "the last save is of step 5 of 6"),
        ],
    ),
    "WIR188": Entry(
        at=[At(_wired("WIR188"), {"faulty": "warning", "sound": None, "none": "?"})],
    ),
    "WIR189": Entry(
        at=[At(_wired("WIR189"), {"faulty": "warning", "sound": None, "none": "?"})],
        says=[
            (
                _wired("WIR189")("faulty"),
                "The evaluation at step 2 was made in training mode: the dropout of 0.1 acts.",
            )
        ],
    ),
    "WIR190": Entry(
        at=[At(_wired("WIR190"), {"faulty": "warning", "sound": None, "none": "?"})],
        says=[
            (
                _wired("WIR190")("faulty"),
                (
                    "After 8 steps 190 of 200 elements in 16 bits that have a gradient still have the value that they "
                    "began with: steps at a rate of 1e-06 are rounded away."
                ),
            )
        ],
        told=[({"share": 0.954}, "95% of the weights in 16 bits stay as they began")],
    ),
    "LED405": Entry(
        at=[At(_wired("LED405"), {"faulty": "warning", "sound": None, "none": "?"})],
        says=[
            (
                _wired("LED405")("faulty"),
                (
                    "The base ties its head to its embedding (tie_word_embeddings), and here embed_tokens and lm_head "
                    "are trained and saved apart (modules_to_save): PEFT keeps the two apart, and in a merged model "
                    "that is still tied one overwrites the other."
                ),
            )
        ],
    ),
    "LED412": Entry(
        at=[
            At(_wired("LED412"), {"faulty": "error", "sound": None, "none": "?"}),
            At(lambda n: _saved()({"norm": n} if n else {}), {0: None, 1: "warning"}, number="norms"),
            At(lambda n: _saved(parameters=n)({"adapter": 1}), {89: None, 90: "warning"}),  # 89 is WIR179's
            At(lambda kind: _saved()({kind: 1}), {"adapter": "warning", "head": None}),  # which is in no optimizer
            At(lambda n: _saved(parameters=n)({"norm": 2}), {0: None, 1: "warning"}),
        ],
        told=[
            ({"step": 5, "lacking": ["second"]}, "the adapter second trains and is not saved"),
            ({"step": 5, "kinds": "tensors of the norms (5)"}, "trained and not saved: tensors of the norms (5)"),
        ],
        says=[
            (
                _wired("LED412")("faulty"),
                (
                    "At step 2 the adapters default, second are active, and of second, which trains, there is no file: "
                    "default was saved."
                ),
            ),
            (
                _saved()({"norm": 5, "base": 2, "head": 3}),
                "What trains is in no file of the save at step 2: tensors of the norms (5), tensors of the base (2).",
            ),
        ],
    ),
    "CST191": Entry(
        at=[
            At(lambda x: paced(waits=x), {0.29: None, 0.3: "warning"}, number="waits"),
            At(lambda n: paced(n, waits=0.5), {6: "?", 7: "warning"}),
        ],
        says=[(paced(waits=0.5), "A step waits 50% of its 0.1 s for data.")],
    ),
    "CST195": Entry(
        at=[
            At(lambda x: paced(peak=int(x * 2**34), status="no_run_end"), {0.84: None, 0.86: "warning"}, number="full"),
            At(
                lambda status: paced(peak=1 << 34, status=status),
                {"ok": None, "error": "error", "aborted": None, "unknown": "warning"},
            ),
            At(
                lambda reason: paced(status="error", status_reason=reason),
                {"OutOfMemoryError": "error", "ValueError": None},
            ),
            At(
                lambda status: changed(run(FALL), status=status, status_reason="exit 1: CUDA out of memory"),
                {"error": "error", "unknown": "error", "ok": None},
            ),
        ],
        told=[
            ({"step": 713, "named": False}, "probably out of memory at step 713"),
            ({"step": 713, "named": True}, "out of memory at step 713"),
            (
                {"step": 713, "named": False, "open": True},
                "probably out of memory at step 713, unless it still runs",
            ),
        ],
        says=[
            (
                paced(peak=15 << 30, status="no_run_end"),
                (
                    "Probably out of memory at step 120, batch of 4 x 512, unless it still runs: the highest before "
                    "was 15.0 GiB of 16.0 GiB."
                ),
            ),
            (
                changed(run(FALL, training={"batch_size": 8}), status="error", status_reason="MemoryError"),
                f"Out of memory at step {len(FALL) + 1}, batch of 8.",
            ),
        ],
    ),
}

RUNS: Final[dict[str, RunFacts]] = {
    name: facts for rule, entry in ENTRIES.items() for edge in entry.edges for name, facts in edge.runs(rule).items()
}
# Runs exactly at a threshold, which test whether the bound is inclusive. Their numbers need no logarithm.
AT: Final[dict[str, RunFacts]] = {
    f"{rule} at {edge.number}": edge.make(edge.at)
    for rule, entry in ENTRIES.items()
    for edge in entry.edges
    if edge.at is not None
}
