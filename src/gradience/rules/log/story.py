"""The story of a run in one line: what it did, told by its findings and by the numbers logged.

Each part rests on a finding or on recorded numbers, and names them. It claims no more than they support: "learns" is
written only if losses fell by more than chance explains. Otherwise the part names the fall that would have been seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

import msgspec

from gradience.rules.log import preference, rewards
from gradience.rules.log.divergence import ABSURD_RATE
from gradience.rules.log.facts import LogRule, RunFacts
from gradience.rules.log.learning import Learning, learning
from gradience.rules.log.recorded import audited_rank
from gradience.schema import Json, NonFinite, as_float, real
from gradience.schema.document import SEVERITIES, Finding
from gradience.schema.reports import StoryPart, TrainSummary

_GRAVE: Final = SEVERITIES.index("warning")
_ERROR: Final = SEVERITIES.index("error")
_BROKEN: Final = ("DAT301", "NUM102", "NUM101", "DIV104")  # a broken loss, worst first
_MEANING: Final = ("SCL129", "PRF130")  # what the loss means; told before what it does
_SHAPES: Final = ("OVF110", "NOL106", "CHN112", "PLT105")  # only the first of them that was found is told
_OBJECTIVE: Final = ("REP128", *(rule.id for rule in (*rewards.RULES, *preference.RULES) if rule.id != "PRF130"))
_LATER: Final = (
    "MEM127",
    "LEK132",
    "UND126",
    "DIV103",
    "GRD107",
    "GRD108",
    "LRS109",
    "GAP111",
    "CHN112",
    "NUM131",
    "TRN202",
    "NUM201",
    "RND203",
    "SIZ215",
)
_LOG: Final = ("TRN115", "DUP117", "RES116")
_PLACED: Final = {*_BROKEN, *_MEANING, *_SHAPES, *_OBJECTIVE, *_LATER, *_LOG, "END114"}
# shapes of the curve that are reported at any severity
_ALSO_AS_INFO: Final = {"OVF110", "PLT105", "ZVR123", "UND126", "MEM127", "LEK132", "NUM131"}


def line_of(parts: Iterable[StoryPart]) -> str:
    """Join the parts into one line."""
    return "; ".join(part.says for part in parts)


def story_parts(facts: RunFacts, findings: Iterable[Finding], train: TrainSummary) -> list[StoryPart]:
    """The story's parts: how the run went, its loss, held-out data, the update, and how the log ends."""
    found = {f.id: f for f in findings if SEVERITIES.index(f.severity) >= _GRAVE or f.id in _ALSO_AS_INFO}
    shape = _shape(found, facts)
    shaped = {part.finding for part in shape}
    parts = chain(
        _spoken(found, _BROKEN),
        _spoken(found, _MEANING),
        shape or _learning(found, facts),
        preference.told(facts, found) if facts.objective.kind == "preference" else (),
        _loss(facts, train),
        _spoken(found, _OBJECTIVE),
        rewards.told(facts, found) if facts.objective.kind == "rl" else (),
        _spoken(found, [rule for rule in _LATER if rule not in shaped]),
        _held_out(facts, found),
        _update(facts),
        _spoken(found, sorted(found.keys() - _PLACED)),
        _spoken(found, _LOG),
        _end(facts, found),
    )
    return list(parts)


def _spoken(found: Mapping[str, Finding], ids: Sequence[str]) -> list[StoryPart]:
    return [StoryPart(says=_phrase(found[i]), finding=i, values=_brief(found[i].values)) for i in ids if i in found]


def _shape(found: Mapping[str, Finding], facts: RunFacts) -> list[StoryPart]:
    """The shape of the loss curve, told by the first finding on it."""
    shape = _spoken(found, _SHAPES)[:1]
    if shape and shape[0].finding == "PLT105" and not _broken(found) and learning(facts).shown:
        return [msgspec.structs.replace(shape[0], says=f"learns, then is {shape[0].says}")]
    return shape


def _broken(found: Mapping[str, Finding]) -> bool:
    """Whether the loss is broken, so that "it learns" would be false."""
    if "DAT301" in found and found["DAT301"].severity == "critical":
        return True
    return "DIV104" in found or any(
        rule in found and SEVERITIES.index(found[rule].severity) >= _ERROR for rule in ("NUM101", "NUM102")
    )


def _phrase(finding: Finding) -> str:
    """The finding as a clause: its phrase from `_PHRASES`, else its own message up to the first colon."""
    phrase = _PHRASES.get(finding.id) or _OF_RULES.get(finding.id)
    values = finding.values
    return (phrase(values) if phrase else None) or finding.message.split(":")[0].rstrip(".")


def _brief(values: Mapping[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in values.items() if isinstance(value, (int, float, str))}


def _learning(found: Mapping[str, Finding], facts: RunFacts) -> Iterator[StoryPart]:
    """Say whether the run learns, or name the fall that would have been seen."""
    if _broken(found) or facts.objective.kind in {"rl", "preference"}:  # told by their rewards
        return
    result = learning(facts)
    stuck = found.get("LRS109")
    if stuck is not None and stuck.values.get("throughout"):
        yield StoryPart(says="does not learn: the learning rate is 0", finding="LRS109")
    elif not facts.series.steps and not result.shown:
        yield StoryPart(says="no training loss was logged")
    elif result.shown:
        yield StoryPart(says="learns", values=_trend(result))
    else:
        yield StoryPart(says=f"cannot tell whether it learns: {result.says}", values=_trend(result))


def _trend(result: Learning) -> dict[str, Json]:
    if result.trend is None:
        return {}
    return {"fall": result.trend.fall, "least_seen": result.least, "p": result.trend.p, "rows": result.trend.rows}


def _loss(facts: RunFacts, train: TrainSummary) -> Iterator[StoryPart]:
    if not train.rows or facts.objective.kind == "rl":  # under RL a loss says little
        return
    says = f"loss {_n(train.first_loss)} -> {_n(train.last_loss)}"
    yield StoryPart(says=says, values={"first": train.first_loss, "last": train.last_loss})


def _held_out(facts: RunFacts, found: Mapping[str, Finding]) -> Iterator[StoryPart]:
    if facts.held_out is None:
        if "REP128" not in found:  # its phrase already says that nothing is held out
            yield StoryPart(says="no held-out signal")
        return
    curve = facts.held_out_curve
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
    """The median over modules of the rank that holds 90 % of the energy, from the log's audit; None if not recorded."""
    used = (facts.audit or {}).get("energy_rank_90_p50")
    return float(used) if isinstance(used, (int, float)) and math.isfinite(used) else None


def _end(facts: RunFacts, found: Mapping[str, Finding]) -> Iterator[StoryPart]:
    if facts.status == "ok":
        return
    planned = f" of {facts.max_steps}" if facts.max_steps else ""
    at = f" at step {facts.last_step}{planned}" if facts.last_step is not None else ""
    ending = {"no_run_end": "the log stops", "unknown": "how it ended is unknown"}.get(facts.status)
    why = f": {facts.status_reason}" if facts.status_reason else ""
    says = f"{ending or facts.status}{at}{why}" + (" without run_end" if facts.status == "no_run_end" else "")
    yield StoryPart(says=says, finding="END114" if "END114" in found else None)


def _n(value: float | NonFinite | None) -> str:
    """A number as text with four digits; a non-finite one by name, "-" for None."""
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


def _diverged(v: Mapping[str, Json]) -> str:
    rate = v.get("peak_rate")
    absurd = isinstance(rate, float) and rate >= ABSURD_RATE.value
    why = f", at a learning rate of {_get(v, 'peak_rate', '.3g')}" if absurd else ""
    return f"diverged: lowest loss {_get(v, 'lowest')} around step {v['lowest_step']}{why}"


def _scale(v: Mapping[str, Json]) -> str:
    if "factor" in v:
        return f"training loss is {_get(v, 'factor', '.1f')} times the held-out loss: summed over accumulation steps"
    return f"loss starts at {_get(v, 'first')}, above that of a uniform guess over any vocabulary"


def _skips(v: Mapping[str, Json]) -> str:
    return "1 step skipped by fp16 scaling" if v["rows"] == 1 else f"{v['rows']} steps skipped by fp16 scaling"


_PHRASES: Final[dict[str, Callable[[Mapping[str, Json]], str | None]]] = {
    "DAT301": lambda v: "no token is supervised" if v["rows"] == v["of"] else None,
    "NUM101": _not_finite,
    "NUM102": lambda v: (
        "loss is 0 throughout: every label is masked"
        if v.get("no_labels")
        else f"loss is probably NaN-masked from step {v['first_step']}"
    ),
    "DIV104": _diverged,
    "SCL129": _scale,
    "OVF110": _overfits,
    "NOL106": lambda _: "the loss does not fall",
    "PLT105": lambda v: f"flat from step {v['from_step']}",
    "REP128": lambda v: f"the same data {_get(v, 'epochs', '.0f')} times, no held-out signal",
    "MEM127": lambda _: "steps down with each epoch",
    "LEK132": lambda _: "held-out loss is as low as training loss",
    "UND126": lambda v: f"{v['split']} loss still falls at the end",
    "DIV103": lambda v: f"loss spike at step {v['step']}",
    "GRD107": lambda v: f"gradient norm jumps at step {v['step']}" if "step" in v else None,
    "GRD108": lambda v: f"no gradient from step {v['step']}",
    "GAP111": lambda v: f"perplexity gap {_get(v, 'ratio', '.2f')}x",
    "CHN112": lambda v: "held-out accuracy at chance" if "accuracy" in v else "held-out loss at chance",
    "NUM131": _skips,
    "RES116": lambda _: "the steps run again after the resume had other losses",
    "TRN115": lambda v: f"{v.get('lines', v.get('missing'))} lines of the log are lost",
    "DUP117": lambda _: "rows repeat or go back",
}
_OF_RULES: Final = {
    rule.id: rule.phrase for rule in (*preference.RULES, *rewards.RULES) if isinstance(rule, LogRule) and rule.phrase
}
