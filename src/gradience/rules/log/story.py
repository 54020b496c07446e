"""The story of a run in one line: what it did, in the words of its findings and of what was logged.

Each part rests on a finding or on recorded numbers and names it. Nothing is said that a finding does not
support: "learns" is said only where the detector of no learning looked and stayed silent, or where the held-out
loss fell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

import msgspec

from gradience.rules.log.adapter import audited_rank
from gradience.rules.log.facts import RunFacts, ends
from gradience.rules.log.overfitting import evaluation_noise, held_out_curve
from gradience.rules.log.thresholds import LEAST_EVALS, NO_LEARNING_DROP, OVERFIT_NOISE
from gradience.schema.findings import SEVERITIES, Finding, NotRun
from gradience.schema.reports import StoryPart, TrainSummary
from gradience.schema.scalars import Json, NonFinite, as_float, real

_GRAVE: Final = SEVERITIES.index("warning")
_BROKEN: Final = ("NUM102", "NUM101", "DIV104")  # the worst that a loss can say, worst first
_SHAPES: Final = ("OVF110", "NOL106", "PLT105")  # the first that was seen is told
_OBJECTIVE: Final = ("PRF119", "RWD122", "ZVR123", "KLD124")
_LATER: Final = (
    "MEM127",
    "UND126",
    "DIV103",
    "GRD107",
    "GRD108",
    "LRS109",
    "GAP111",
    "CHN112",
    "TRN202",
    "NUM201",
    "RND203",
)
_LOG: Final = ("TRN115", "DUP117", "RES116")
_TOLD: Final = {*_BROKEN, *_SHAPES, *_OBJECTIVE, *_LATER, *_LOG, "END114"}
_ALSO_AS_INFO: Final = {"OVF110", "PLT105", "ZVR123", "UND126", "MEM127"}  # a shape of the curve, at any severity


def line_of(parts: Iterable[StoryPart]) -> str:
    """Return the parts as one line."""
    return "; ".join(part.says for part in parts)


def tell(
    facts: RunFacts, findings: Iterable[Finding], not_run: Iterable[NotRun], train: TrainSummary
) -> list[StoryPart]:
    """Return the story's parts: how the run went, its loss, held-out data, the update, and how the log ends."""
    found = {f.id: f for f in findings if SEVERITIES.index(f.severity) >= _GRAVE or f.id in _ALSO_AS_INFO}
    abstained = {item.id for item in not_run}
    parts = chain(
        _spoken(found, _BROKEN),
        _shape(found, abstained) or _learning(found, abstained, facts),
        _loss(facts, train),
        _spoken(found, _OBJECTIVE),
        _reward(facts),
        _spoken(found, _LATER),
        _held_out(facts, found),
        _update(facts),
        _spoken(found, sorted(found.keys() - _TOLD)),
        _spoken(found, _LOG),
        _end(facts, found),
    )
    return list(parts)


def _spoken(found: Mapping[str, Finding], ids: Sequence[str]) -> list[StoryPart]:
    return [StoryPart(says=_phrase(found[i]), finding=i, values=_brief(found[i].values)) for i in ids if i in found]


def _shape(found: Mapping[str, Finding], abstained: set[str]) -> list[StoryPart]:
    """Return what the curve looks like, by the first finding on it."""
    shape = _spoken(found, _SHAPES)[:1]
    if shape and shape[0].finding == "PLT105" and "NOL106" not in abstained and not found.keys() & set(_BROKEN):
        return [msgspec.structs.replace(shape[0], says=f"learns, then is {shape[0].says}")]
    return shape


def _phrase(finding: Finding) -> str:
    """Return the finding as a clause; one that has no words here is told in its own."""
    phrase = _PHRASES.get(finding.id)
    values = finding.values
    return (phrase(values) if phrase else None) or finding.message.split(":")[0].rstrip(".")


def _brief(values: Mapping[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in values.items() if isinstance(value, (int, float, str))}


def _learning(found: Mapping[str, Finding], abstained: set[str], facts: RunFacts) -> Iterator[StoryPart]:
    if found.keys() & set(_BROKEN) or facts.objective.kind == "rl":
        return
    if not facts.series.steps:
        yield StoryPart(says="no training loss was logged")
    elif "NOL106" not in abstained or _held_out_fell(facts):
        yield StoryPart(says="learns")
    else:
        yield StoryPart(says="whether it learns could not be judged")


def _held_out_fell(facts: RunFacts) -> bool:
    """Whether held-out loss ended well under its first value: learning that no training loss is needed to see."""
    curve = held_out_curve(facts)
    if curve is None or len(curve.losses) < LEAST_EVALS.value:
        return False
    fall = curve.losses[0] - curve.losses[-1]
    return fall > max(NO_LEARNING_DROP.value * curve.losses[0], OVERFIT_NOISE.value * evaluation_noise(curve.losses))


def _loss(facts: RunFacts, train: TrainSummary) -> Iterator[StoryPart]:
    if not train.rows or facts.objective.kind == "rl":  # under RL a loss says little
        return
    says = f"loss {_n(train.first_loss)} -> {_n(train.last_loss)}"
    yield StoryPart(says=says, values={"first": train.first_loss, "last": train.last_loss})


def _reward(facts: RunFacts) -> Iterator[StoryPart]:
    for name, word in (("reward", "reward"), ("rewards/margins", "reward margin")):
        column = facts.signals.get(name)
        if column is not None and column.values:
            first, last, width = ends(column)
            says = f"{word} {_n(first)} -> {_n(last)} (medians of {width} rows)"
            yield StoryPart(says=says, values={"first": first, "last": last, "rows": width})


def _held_out(facts: RunFacts, found: Mapping[str, Finding]) -> Iterator[StoryPart]:
    if facts.held_out is None:
        yield StoryPart(says="no held-out signal")
        return
    curve = held_out_curve(facts)
    if curve is not None and "OVF110" not in found:
        last, best = curve.losses[-1], min(curve.losses)
        step = curve.steps[curve.losses.index(best)]
        says = f"{curve.split} loss {_n(last)}"
        if len(curve.losses) > 1:
            best_now = "" if "UND126" in found else ", its best"
            says += best_now if step == curve.steps[-1] else f" (best {_n(best)} at step {step})"
        yield StoryPart(says=says, values={"last": last, "best": best, "best_step": step})
    accuracy = facts.held_out.metrics.accuracy
    if accuracy is not None and "CHN112" not in found:
        says = f"{facts.held_out.split} accuracy {as_float(accuracy):.1%}"
        yield StoryPart(says=says, values={"accuracy": accuracy})


def _update(facts: RunFacts) -> Iterator[StoryPart]:
    used, rank = _energy_rank(facts), audited_rank(facts)
    if used is None or rank is None or not 0 < used <= rank:
        return
    says = f"90 % of the update's energy in {used:g} of {rank} ranks (median module)"
    yield StoryPart(says=says, values={"energy_rank_90_p50": used, "rank": rank})


def _energy_rank(facts: RunFacts) -> float | None:
    """Return the median over the modules of the ranks that hold 90 % of the energy, as the log's audit has it."""
    used = (facts.audit or {}).get("energy_rank_90_p50")
    return float(used) if isinstance(used, (int, float)) and math.isfinite(used) else None


def _end(facts: RunFacts, found: Mapping[str, Finding]) -> Iterator[StoryPart]:
    if facts.status == "ok":
        return
    planned = f" of {facts.max_steps}" if facts.max_steps else ""
    at = f" at step {facts.last_step}{planned}" if facts.last_step is not None else ""
    said = {"no_run_end": "the log stops", "unknown": "how it ended is unknown"}.get(facts.status)
    says = f"{said or facts.status}{at}" + (" without run_end" if facts.status == "no_run_end" else "")
    yield StoryPart(says=says, finding="END114" if "END114" in found else None)


def _n(value: float | NonFinite | None) -> str:
    """Return a number as a sentence has it; non-finite ones by name."""
    if value is None:
        return "-"
    number = as_float(value)
    return f"{number:.4g}" if math.isfinite(number) else str(real(number))


def _get(values: Mapping[str, Json], key: str, spec: str = ".4g") -> str:
    value = values.get(key)
    return format(value, spec) if isinstance(value, (int, float)) else str(value)


def _overfits(v: Mapping[str, Json]) -> str:
    kept = v.get("checkpoint_step")
    best = f"best checkpoint {kept}" if kept is not None else f"best {v['split']} loss {_get(v, 'best_loss')} there"
    return f"overfits from step {v['best_step']} ({v['split']} loss +{_get(v, 'rise', '.1%')} since); {best}"


def _not_finite(v: Mapping[str, Json]) -> str:
    return f"not finite: {v['first']}" + (f", {v['rows']} training rows" if v.get("rows") else "")


_PHRASES: Final[dict[str, Callable[[Mapping[str, Json]], str | None]]] = {
    "NUM101": _not_finite,
    "NUM102": lambda v: f"loss is probably NaN-masked from step {v['first_step']}",
    "DIV104": lambda v: f"diverged: lowest loss {_get(v, 'lowest')} around step {v['lowest_step']}",
    "OVF110": _overfits,
    "NOL106": lambda _: "the loss does not fall",
    "PLT105": lambda v: f"flat from step {v['from_step']}",
    "MEM127": lambda _: "steps down with each epoch",
    "UND126": lambda v: f"{v['split']} loss still falls at the end",
    "DIV103": lambda v: f"loss spike at step {v['step']}",
    "GRD107": lambda v: f"gradient norm jumps at step {v['step']}" if "step" in v else None,
    "GRD108": lambda v: f"no gradient from step {v['step']}",
    "GAP111": lambda v: f"perplexity gap {_get(v, 'ratio', '.2f')}x",
    "CHN112": lambda v: "held-out accuracy at chance" if "accuracy" in v else "held-out loss at chance",
    "PRF119": lambda v: f"chosen and rejected are {v['how']}",
    "RWD122": lambda v: f"the reward fell from {_get(v, 'best')} around step {v['best_step']}" if "best" in v else None,
    "ZVR123": lambda v: f"{_get(v, 'share', '.0%')} of the groups have equal rewards late on",
    "KLD124": lambda v: f"KL {_get(v, 'late', '.3g')} nats a token from the reference",
    "RES116": lambda _: "the steps run again after the resume had other losses",
    "TRN115": lambda v: f"{v.get('lines', v.get('missing'))} lines of the log are lost",
    "DUP117": lambda _: "rows repeat or go back",
}
