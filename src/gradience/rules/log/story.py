"""The story of a run in one line: what it did, told by its findings and by its account.

A rule's own record says how its finding is told, where, and what needs no further word. "Learns" is written only if
losses or a task metric moved by more than chance explains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Final, NamedTuple

from gradience.rules.log import RULE_OF, preference, rewards
from gradience.rules.log.account import account, decisive_metric, gain
from gradience.rules.log.divergence import HIGH_START, fell_before
from gradience.rules.log.facts import EVAL_NOISE, LogRule, Place, RunFacts, Topic
from gradience.rules.log.held_out import of_metric
from gradience.rules.log.learning import OVERFIT_RISE, held_still, learning, memorises
from gradience.rules.log.recorded import audited_rank
from gradience.rules.log.statistics import Trend, median
from gradience.schema import Json, NonFinite, as_float, real
from gradience.schema.document import SEVERITIES, Finding
from gradience.schema.reports import StoryPart, TrainSummary
from gradience.schema.values import finite_of

_GRAVE: Final = SEVERITIES.index("warning")
_MEDIAN_ROWS: Final = 20  # rows from which a fifth has a median
_SCATTERS: Final = 0.1  # noise of a row over the level
_MANY_PASSES: Final = 10.0  # passes over the data that the story names
_HIGH_NORM: Final = 50.0  # median gradient norm: over it in 7 of 326 trainings at hand
_RATES: Final = (1e-6, 5e-3)  # peak rates of Adam outside of which no recipe is
_SOME_RATES: Final = 3  # rows from which the largest rate logged is near the peak
_PEAK_NORM: Final = (100.0, 20.0)  # the highest gradient norm, and that over the median: both in 7 of these
_BEGINS: Final = 5.5  # nats at which no pretrained model begins: see INI195
_NEAR_CHANCE: Final = 0.25  # of the way from chance to all right


class _Told(NamedTuple):
    rule: LogRule
    finding: Finding


def line_of(parts: Iterable[StoryPart]) -> str:
    """Join the parts into one line."""
    return "; ".join(part.says for part in parts)


def story_parts(facts: RunFacts, findings: Iterable[Finding], train: TrainSummary) -> list[StoryPart]:
    """The story's parts: how the run went, its loss, held-out data, the update, and how the log ends."""
    told = [_Told(RULE_OF[finding.id], finding) for finding in findings]
    told = [each for each in told if SEVERITIES.index(each.finding.severity) >= _GRAVE or each.rule.as_info]
    covered = frozenset[Topic]().union(*(each.rule.covered_by(each.finding) for each in told))
    parts = chain(
        _at(told, "broken"),
        _at(told, "meaning"),
        () if "learning" in covered else _learning(facts),
        _at(told, "shape"),
        _loss(facts, train),
        _rate(facts, told),
        _norms(facts),
        _at(told, "objective"),
        rewards.told(facts, covered) if facts.objective.kind == "rl" else (),
        _at(told, "later"),
        _held_out(facts, covered),
        _passes(facts, covered),
        _update(facts),
        _at(told, "log"),
        _end(facts, _at(told, "end")),
    )
    return list(parts)


def _at(told: Iterable[_Told], place: Place) -> list[StoryPart]:
    order = {rule: number for number, rule in enumerate(RULE_OF)}
    here = sorted((each for each in told if each.rule.place == place), key=lambda each: order[each.rule.id])
    return [
        StoryPart(says=_phrase(*each), finding=each.finding.id, values=_brief(each.finding.values)) for each in here
    ]


def _phrase(rule: LogRule, finding: Finding) -> str:
    """The finding as a clause: as its rule says it, else its own message up to the first colon."""
    clause = rule.phrase(finding.values) if rule.phrase is not None else None
    return clause or finding.message.split(":")[0].rstrip(".")


def _brief(values: Mapping[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in values.items() if isinstance(value, (int, float, str))}


def _learning(facts: RunFacts) -> Iterator[StoryPart]:
    """Say whether the run learns, or name the fall that would have been seen."""
    if facts.objective.kind == "rl" or (len(facts.rate.values) > 1 and facts.peak_rate <= 0.0):
        return
    if facts.objective.kind == "preference":
        yield from preference.told(facts)
        return
    result = learning(facts)
    trend = result.trend
    values: dict[str, Json] = {}
    if trend is not None:
        values = {"fall": trend.fall, "least_seen": result.least, "p": trend.p, "rows": trend.rows}
    if (below := _below_zero(facts)) is not None:
        yield below
    elif result.shown:
        words = _first_words(facts)
        yield StoryPart(says=words, values=values, doubt=words != "learns")
    elif not facts.series.steps:
        yield StoryPart(says="no training loss was logged", doubt=True)
    else:
        yield StoryPart(says=f"cannot tell whether it learns: {result.says}", values=values, doubt=True)


def _first_words(facts: RunFacts) -> str:
    """What a loss that falls means where no finding denies it: where held-out data never followed, no learning."""
    still, values = held_still(facts), facts.loss.values
    if len(values) > 1 and not fell_before(facts) and _rose(values[0], values[-1]):
        return "the training loss ends above where it began"
    return f"memorises; {still.what} did not improve" if still is not None and memorises(facts) else "learns"


def _rose(first: float, last: float) -> bool:
    return last - first > _SCATTERS * abs(first)


def _below_zero(facts: RunFacts) -> StoryPart | None:
    """A loss of tokens or classes that is below 0, as no cross-entropy can be; of others nothing is known."""
    rows = [row for row, loss in enumerate(facts.series.losses) if loss < 0.0]
    if not rows or account(facts).loss not in {"language_model", "tokens", "classification"}:
        return None
    says = f"the loss is below 0 in {len(rows)} of {len(facts.series.losses)} rows, first at step {facts.step(rows[0])}"
    return StoryPart(says=f"{says}: no cross-entropy is", values={"below_zero": len(rows)}, doubt=True)


def _loss(facts: RunFacts, train: TrainSummary) -> Iterator[StoryPart]:
    if not train.rows or facts.objective.kind == "rl":  # under RL a loss says little
        return
    if train.first_loss == train.last_loss == train.min_loss == 0.0:
        return  # told by a finding
    noisy = train.first_level is not None and train.last_level is not None
    first, last = (train.first_level, train.last_level) if noisy else (train.first_loss, train.last_loss)
    medians = " (medians)" if noisy else ""
    says = f"loss {_n(first)} -> {_n(last)}{medians}" if train.rows > 1 else f"loss {_n(last)} (1 row)"
    began, ended = as_float(first or 0.0), as_float(last or 0.0)
    of = account(facts)
    high = of.loss == "language_model" and train.rows > 1 and _BEGINS < ended < math.inf
    high = high and (began < HIGH_START.value or of.adapter is True)  # else trained from scratch, which INI195 says
    says += ", over what a pretrained model begins with" if high else ""
    yield StoryPart(says=says, values={"first": first, "last": last}, doubt=high or _rose(began, ended))


def _rate(facts: RunFacts, told: Iterable[_Told]) -> Iterator[StoryPart]:
    """A peak rate that no recipe has, where no finding names it; of optimizers that take steps of about that size."""
    peak, optimizer = facts.peak_rate, (facts.config.optimizer.name or "adamw").lower()
    lowest, highest = _RATES
    if not optimizer.startswith(("adam", "paged_adam", "lion")) or facts.warming_up or not 0.0 < peak < math.inf:
        return
    if peak < lowest and len(facts.rate.values) < _SOME_RATES:
        return  # those may be of the end of a decay
    if lowest <= peak < highest or any("peak" in f.values or rule.cause_of(f) == "no_learning" for rule, f in told):
        return
    says = f"the learning rate never was above {peak:.2g}" if peak < lowest else f"learning rate up to {peak:.2g}"
    yield StoryPart(says=says, values={"peak": peak}, doubt=True)


def _norms(facts: RunFacts) -> Iterator[StoryPart]:
    """Gradient norms far over those of other trainings."""
    norms, (least, over) = facts.norm.points, _PEAK_NORM
    if not norms or not math.isfinite(usual := median(norms)):
        return
    if usual <= _HIGH_NORM:
        highest = max(facts.norm.values)
        if highest > max(least, over * usual):
            at = facts.step(facts.norm.rows[facts.norm.values.index(highest)])
            yield StoryPart(says=f"gradient norm {_n(highest)} at step {at}", values={"norm": highest})
        return
    yield StoryPart(says=f"gradient norm {_n(usual)} (median)", values={"norm": usual}, doubt=True)


def noisy_levels(facts: RunFacts) -> Trend | None:
    """The levels of the loss, where its rows scatter so much that the first and the last one tell less than medians."""
    trend = facts.trend
    if trend is None or len(facts.loss.values) < _MEDIAN_ROWS or trend.noise < _SCATTERS:
        return None
    return trend


def _held_out(facts: RunFacts, covered: frozenset[Topic]) -> Iterator[StoryPart]:
    of, curve = account(facts), facts.held_out_curve
    restored = of.selection.restored is True
    if curve is None and not of.metrics:
        shown = facts.held_out.metrics.loss if facts.held_out is not None else None
        if shown is not None:  # of an evaluation without a step, as results files and summaries have it
            yield StoryPart(says=f"{of.split} loss {_n(shown)}", values={"last": shown})
        elif "no_held_out" not in covered:
            yield StoryPart(says="no held-out signal")
        return
    if curve is not None and "held_out" not in covered:
        last, best = curve.losses[-1], curve.losses[curve.best]
        step = curve.steps[curve.best]
        first = f"{_n(curve.losses[0])} -> " if not facts.series.steps and len(curve.losses) > 1 else ""
        says = f"{curve.split} loss {first}{_n(last)}" + (" before the first step" if curve.steps == [0] else "")
        if len(curve.losses) > 1 and _n(curve.losses[0]) != _n(last):
            is_best, still = _n(last) == _n(best), held_still(facts) is not None
            says += f" (best {_n(best)} at step {step})" if not is_best else "" if still else ", its best"
        least = max(OVERFIT_RISE.value * best, EVAL_NOISE.value * curve.noise)
        yield StoryPart(
            says=says,
            values={"last": last, "best": best, "best_step": step},
            doubt=last - best > least and not restored,
        )
    metric = decisive_metric(of) or next((each for each in of.metrics if each.name == "accuracy"), None)
    if metric is not None and "accuracy" not in covered:
        says = f"{metric.split} {metric.name} {of_metric(metric.name, metric.last)}"
        if metric.best is not None and metric.best != metric.last:
            at = "" if metric.best_step is None else f" at step {metric.best_step}"
            says += f" (best {of_metric(metric.name, metric.best)}{at})"
        classes = facts.num_labels or 0
        chance = 1.0 / classes if metric.name == "accuracy" and classes > 1 else 0.0
        near = 0.0 < chance <= metric.last < chance + _NEAR_CHANCE * (1.0 - chance)
        says += f" (chance {chance:.1%})" if near else ""
        lost = metric.best is not None and gain(metric, metric.best, metric.last) < -metric.error
        yield StoryPart(
            says=says, values={metric.name: metric.last, "best": metric.best}, doubt=near or (lost and not restored)
        )


def _passes(facts: RunFacts, covered: frozenset[Topic]) -> Iterator[StoryPart]:
    passes = account(facts).passes
    if passes is not None and passes >= _MANY_PASSES and "no_held_out" not in covered:
        yield StoryPart(says=f"{passes:.0f} passes over the data", values={"passes": passes})


def _update(facts: RunFacts) -> Iterator[StoryPart]:
    used, rank = finite_of((facts.audit or {}).get("energy_rank_90_p50")), audited_rank(facts)
    if used is None or rank is None or not 0 < used <= rank:
        return
    says = f"90 % of the update's energy in {used:g} of {rank} ranks (median module)"
    yield StoryPart(says=says, values={"energy_rank_90_p50": used, "rank": rank})


def _end(facts: RunFacts, told: list[StoryPart]) -> Iterator[StoryPart]:
    if facts.status == "ok":
        yield from told
        return
    planned = f" of {facts.max_steps}" if facts.max_steps else ""
    at = f" at step {facts.run.last_step}{planned}" if facts.run.last_step is not None else ""
    ending = {"no_run_end": "the log stops", "unknown": "the log ends"}.get(facts.status)
    known = facts.status_reason if facts.status != "unknown" or not facts.in_mid_run else None
    says = f"{ending or facts.status}{at}" + (f": {known}" if known else "")
    says += " without run_end" if facts.status == "no_run_end" else ""
    cut = facts.status != "unknown" or facts.in_mid_run
    yield StoryPart(says=says, finding=next((part.finding for part in told), None), doubt=cut)


def _n(value: float | NonFinite | None) -> str:
    """A number as text with four digits; a non-finite one by name, "-" for None."""
    if value is None:
        return "-"
    number = as_float(value)
    return f"{number:.4g}" if math.isfinite(number) else str(real(number))
