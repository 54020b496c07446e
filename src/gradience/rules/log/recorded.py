"""TRN202 and its kin on the newest audit in a log; DAT301 and its kin on the batches that the recorder saw.

The audit describes the trained update: to what rank it could be compressed afterwards, and at what cost. No rule here
advises a lower rank for training, because utilization falls as r grows in any run. CMP213 alone says that a log
holds no audit.

The `metrics` event of kind `data` holds counts of some batches. They are judged by those rules on a data set that need
no more. If no token was supervised, that is the only finding, and the rules on loss and gradient are not judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from gradience.configs.document import KEEPS_OVERFLOW
from gradience.rules import ENERGY, Observation, Observe, Premise, Threshold, Unknown, cite, premise
from gradience.rules.data import content, supervision, tokens
from gradience.rules.data.content import counted
from gradience.rules.log.facts import JUDGEMENT, LogRule, RunFacts, log_rule, seen
from gradience.rules.weights import Verdicts, observe_verdict, suggests_ranks
from gradience.rules.weights.rules import NON_FINITE, RANDOM_LIKE, TOO_LARGE, ZERO_UPDATE, observe_size
from gradience.schema import Json, number_in
from gradience.schema.reports import Batching, DataReport, Rows, RowsSeen, TokenCounts

IDLE_ENERGY = Threshold("idle_energy", 0.01, "fraction of the update's energy", JUDGEMENT)
IDLE_PARAMS = Threshold("idle_params", 0.1, "fraction of the LoRA parameters", JUDGEMENT)

_LOST = (("energy_rank_99", 0.01), ("energy_rank_95", 0.05), ("energy_rank_90", 0.10))  # most energy lost at that rank


def no_weights(audit: Mapping[str, Json]) -> bool:
    """Whether an audit says that it found nothing to measure, so that its means are not measurements."""
    return any(audit.get(name) == 0 for name in ("n_layers", "total_lora_params"))


def _health(verdicts: Verdicts, facts: RunFacts) -> Observation | None:
    verdict = (facts.audit or {}).get("verdict")
    if not isinstance(verdict, str):
        return None
    return observe_verdict(verdicts, verdict, "the audit in the log says so", source="the log")


def _large(facts: RunFacts) -> Observation | None:
    return _health(TOO_LARGE.verdicts, facts) or observe_size(_real(facts.audit or {}, "update_size"))


def _compressible(facts: RunFacts) -> Observation | None:
    audit = facts.audit
    if audit is None:
        raise Unknown("no lora_audit in the log ('gradience audit --append run.jsonl' adds one)")
    if no_weights(audit):
        raise Unknown("the audit in the log found no LoRA weights")
    verdict = audit.get("verdict")
    if isinstance(verdict, str) and not suggests_ranks(verdict):
        raise Unknown(f"the adapter is {verdict}: there is no rank to compress it to")
    rank = audited_rank(facts)
    middle, tail = (_rank(audit, key) for key in ("suggested_r_global_median", "suggested_r_global_90"))
    if rank is None or tail is None:
        raise Unknown("the audit in the log suggests no rank, or its modules do not share one")
    if tail >= rank:
        return None
    bound = error_bound(_modules(audit), tail) if "modules_omitted" not in audit else None
    return Observation(
        f"After training the update fits rank {tail} of {rank} in nine modules of ten"
        + (f", rank {middle} in half of them" if middle is not None and middle < tail else "")
        + f": {_cost(tail, bound)}.",
        {"rank": rank, "suggested_median": middle, "suggested_p90": tail, "error_bound": bound},
        action=f"Consider compressing the trained adapter to rank {tail} and evaluating it; keep training at r={rank}.",
        evidence=seen(
            f"k@90 % of the modules: median {audit.get('energy_rank_90_p50')}, p90 {audit.get('energy_rank_90_p90')}"
        ),
    )


def _cost(rank: int, bound: float | None) -> str:
    if bound is None:
        return "where 90 % of a module's energy is kept, its relative error is 31.6 % at most"
    return f"cut to rank {rank}, the relative error of the whole update is {bound:.1%} at most"


def error_bound(modules: Sequence[Mapping[str, Json]], rank: int) -> float | None:
    """An upper bound of the relative Frobenius error if all modules are cut to `rank`; None if a norm or r is missing.

    It uses the ranks that hold 90, 95 and 99 % of a module's energy. Below them, the first k of r directions hold k / r
    of the energy at least.
    """
    total = lost = 0.0
    for module in modules:
        norm, r = _real(module, "frobenius_norm"), _rank(module, "r")
        if norm is None or not r:
            return None
        total += norm * norm
        lost += norm * norm * _lost(module, rank, r)
    return math.sqrt(lost / total) if total > 0.0 else None


def _lost(module: Mapping[str, Json], rank: int, r: int) -> float:
    if rank >= r:
        return 0.0
    shares = [share for key, share in _LOST if (k := _rank(module, key)) is not None and rank >= k]
    return min([*shares, 1.0 - rank / r])


def _idle_types(facts: RunFacts) -> Observation | None:
    audit = facts.audit
    if audit is None:
        return None
    groups = audit.get("by_type")
    types = {k: v for k, v in groups.items() if isinstance(v, dict)} if isinstance(groups, dict) else {}
    params = sum(_real(group, "params") or 0.0 for group in types.values())
    if (
        len(types) < 2 or not params or all(_real(g, "energy_share") is None for g in types.values())
    ):  # one type alone cannot be compared
        raise Unknown("the audit in the log does not say how the energy is spread over two types of modules or more")
    idle = list(_idle(types, params))
    if not idle:
        return None
    name, share, energy, n = max(idle, key=lambda item: item[1])
    others = f" (and {', '.join(item[0] for item in idle if item[0] != name)})" if len(idle) > 1 else ""
    return Observation(
        f"Modules of type {name}{others} carry next to nothing: {n} modules, {share:.0%} of the LoRA parameters, "
        f"{energy:.2%} of the update's energy.",
        {"type": name, "modules": n, "params_share": share, "energy_share": energy},
        evidence=seen(f"energy_share of {name} {energy:.4f}"),
    )


def _idle(types: Mapping[str, Mapping[str, Json]], params: float) -> Iterator[tuple[str, float, float, int]]:
    for name, group in types.items():
        share, energy = (_real(group, "params") or 0.0) / params, _real(group, "energy_share")
        if energy is not None and energy < IDLE_ENERGY.value and share >= IDLE_PARAMS.value:
            yield name, share, energy, _rank(group, "n") or 0


def audited_rank(facts: RunFacts) -> int | None:
    """The rank that all audited modules share, None if they differ. If no module has one, the config's rank."""
    ranks = {rank for module in _modules(facts.audit or {}) if (rank := _rank(module, "r")) is not None}
    if ranks:
        return ranks.pop() if len(ranks) == 1 else None
    return None if facts.config.lora.rank_pattern else facts.config.lora.r


def _modules(audit: Mapping[str, Json]) -> list[Mapping[str, Json]]:
    modules = audit.get("modules")
    return [m for m in modules if isinstance(m, dict)] if isinstance(modules, list) else []


def _real(values: Mapping[str, Json], key: str) -> float | None:
    value = number_in(values, key)
    return None if value is None or not math.isfinite(value) else value


def _rank(values: Mapping[str, Json], key: str) -> int | None:
    value = _real(values, key)
    return int(value) if value is not None and value.is_integer() and value >= 0 else None


_ON_THE_ADAPTER: tuple[LogRule, ...] = (
    *(log_rule(rule, partial(_health, rule.verdicts)) for rule in (NON_FINITE, ZERO_UPDATE, RANDOM_LIKE)),
    log_rule(TOO_LARGE, _large),
    LogRule(
        id="CMP213",
        title="compressible after training",
        severity="info",
        condition="the audit in the log: in nine modules of ten, a rank lower than theirs holds 90 % of the energy",
        observe=_compressible,
        confidence=0.5,
        evidence=(
            cite("Eckart-Young", "truncated SVD is the closest rank-k matrix; its squared error is the energy cut off"),
        ),
        rationale="A smaller adapter is cheaper to store and to serve; the rank it was trained with may still have "
        "been needed to get there.",
        action="Consider compressing the trained adapter, and evaluate it.",
        scope="trained LoRA adapters; logs that hold an audit; the error is of weights, not of quality",
        verify="Evaluate the compressed and the whole adapter on the same held-out data.",
    ),
    LogRule(
        id="TYP214",
        title="modules that carry nothing",
        severity="info",
        condition="the audit in the log: a type of modules has at least {idle_params} of the LoRA parameters and under "
        "{idle_energy} of the update's energy",
        observe=_idle_types,
        confidence=0.4,
        evidence=(ENERGY,),
        rationale="Parameters that hardly move cost memory and optimizer state.",
        action="Leave these modules out of a copy of the adapter and evaluate it; it says nothing about the next run.",
        scope="LoRA on several types of modules; energy of dW, not relative to the base weights",
        verify="Held-out loss with and without them.",
        thresholds=(IDLE_ENERGY, IDLE_PARAMS),
    ),
)


AT_LIMIT = Threshold("at_limit", 0.05, "share of rows", "as cut_many of DAT305")
SHARE_APART = Threshold(
    "share_apart", 0.1, "supervised share of tokens", "proposal: more than batches differ by chance"
)
LENGTH_APART = Threshold("length_apart", 0.25, "of the announced tokens per sequence", "proposal; the same")
FEW_ROWS = Threshold("few_rows", 32, "rows seen", "proposal: of fewer, means differ by chance")
_NAME: Final = 60  # characters of a file's name
_NOT_RECORDED: Final = "what the model was fed was not recorded (no `data` event in the log)"


# Without a `data` event only the rule on rows without a supervised token reports its absence
_IS_RECORDED: Final[Premise[RunFacts]] = Premise(
    "the log has a data event", lambda facts: _NOT_RECORDED if facts.data is None else None
)


@premise("the recorder saw batches")
def _recorded(facts: RunFacts) -> str | None:
    if facts.data is None:
        return _NOT_RECORDED
    unseen = facts.data.get("unseen")
    return f"the recorder saw no batch: {unseen}" if isinstance(unseen, str) else None


@premise("the recorder saw batches with labels of tokens")
def _supervision(facts: RunFacts) -> str | None:
    lacking = _recorded(facts)
    if lacking is None and _count(facts, "supervised") is None:
        return "the batches hold no token labels"
    return lacking


def _number(facts: RunFacts, name: str) -> int | None:
    value: Json = (facts.data or {}).get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _count(facts: RunFacts, name: str) -> int | None:
    value = _number(facts, name)
    return None if value is None or value < 0 else value


def everything_masked(facts: RunFacts) -> bool:
    """Whether batches were seen and none of their tokens is supervised."""
    rows = _count(facts, "rows")
    return bool(rows) and _count(facts, "rows_unsupervised") == rows and _count(facts, "supervised") == 0


def as_data(facts: RunFacts) -> DataReport:
    """The recorded batches as a data set report, with the counts that both have."""

    def seen(name: str) -> Rows:
        return Rows(count=_count(facts, name) or 0)

    rows, total, padding = (_count(facts, name) or 0 for name in ("rows", "tokens", "padding"))
    low, high, classes = (_number(facts, name) for name in ("label_min", "label_max", "num_labels"))
    outside = low is not None and high is not None and (low < 0 or (classes is not None and high >= classes))
    return DataReport(
        path="",
        format="tokenised",
        trainer="sft",
        rows=rows,
        rows_read=rows,
        sequences=rows,
        whole_rows=rows,
        loss="all",
        has_labels=True,
        packing=(facts.data or {}).get("packed") is True,
        batch_stated=True,
        end_tokens=["the model's end token"],
        num_labels=classes,
        tokens=TokenCounts(total=total, kept=total, supervised=_count(facts, "supervised") or 0),
        batching=Batching(
            batch_size=facts.config.training.batch_size or 0,
            padding_share=padding / (total + padding) if total + padding else None,
        ),
        seen=RowsSeen(
            unsupervised=seen("rows_unsupervised"),
            end_supervised=seen("rows_with_end"),
            duplicate=seen("rows_repeated"),
            label_out_of_range=Rows(count=int(outside)),
        ),
    )


def _as_of_data(observe: Observe[DataReport]) -> Observe[RunFacts]:
    return lambda facts: observe(as_data(facts))


def _end(facts: RunFacts) -> Iterator[Observation]:
    ends, rows = _count(facts, "rows_with_end"), _count(facts, "rows") or 0
    if ends is None:
        raise Unknown("the model's configuration names no end token")
    if everything_masked(facts):
        raise Unknown("no token is supervised (see DAT301)")
    if rows < FEW_ROWS.value:
        raise Unknown(f"{rows} rows were seen; it needs {FEW_ROWS.value:g}")
    if not ends:
        yield Observation(
            f"in none of {rows} rows of the batches is the model's end token supervised",
            {"with_end": ends, "rows": rows},
            severity="warning",  # the model may be served with another end token
        )


def _at_limit(facts: RunFacts) -> Iterator[Observation]:
    at, rows = _count(facts, "rows_at_limit"), _count(facts, "rows") or 0
    if at is None:
        raise Unknown("the length limit was not known to the recorder")
    if _keeps_overflow(facts):
        raise Unknown("packing fills rows up to the limit, and puts what is beyond it into the next row")
    if rows and at >= AT_LIMIT.value * rows:
        yield Observation(
            f"{counted(Rows(count=at), rows)} in the batches are as long as the limit: they were cut, or just fit",
            {"rows": at, "of": rows, "max_length": _count(facts, "max_length")},
            severity="warning",
        )


def _keeps_overflow(facts: RunFacts) -> bool:
    """Whether TRL packs the rows in a way that cuts no token off."""
    trl: Json = facts.config.training.extras.get("trl")
    return isinstance(trl, dict) and trl.get("packing") is True and trl.get("packing_strategy") in KEEPS_OVERFLOW


def _labels(facts: RunFacts) -> Iterator[Observation]:
    low, high, classes = (_number(facts, name) for name in ("label_min", "label_max", "num_labels"))
    if low is None or high is None:
        raise Unknown("the batches hold no class labels")
    if as_data(facts).seen.label_out_of_range.count:
        bound = f"0 to {classes - 1}" if classes else "0 and more"
        yield Observation(
            f"labels in the batches run from {low} to {high}, the model takes {bound}",
            {"label_min": low, "label_max": high, "num_labels": classes},
        )


def _repeated(facts: RunFacts) -> Iterator[Observation]:
    """Duplicates in the few batches watched: a hint of the rule's own severity. `check` counts the whole data set."""
    for found in content.duplicates(as_data(facts)):
        yield replace(found, severity=None)


def _set_otherwise(seen: Mapping[str, Json], announced: Mapping[str, Json]) -> Iterator[Observation]:
    """Settings that the check did not have: the data set's file, the prompt template, the length limit."""
    limit, checked = seen.get("max_length"), announced.get("max_length")
    if isinstance(limit, int) and isinstance(checked, int) and limit != checked:
        yield Observation(
            f"the run cuts rows at {limit:,} tokens; the check took {checked:,}", {"seen": limit, "announced": checked}
        )
    digests = [known.get("template_digest") for known in (seen, announced)]
    if all(digests) and digests[0] != digests[1] and not seen.get("template"):
        yield Observation(
            "the chat template of the run's tokenizer is not the one that was checked",
            {"seen": digests[0], "announced": digests[1]},
        )
    name, read = seen.get("dataset"), announced.get("data")
    if isinstance(name, str) and isinstance(read, str) and "." in name and read and name.partition("#")[0] != read:
        yield Observation(
            f"the run reads {name[:_NAME]}; the check read {read[:_NAME]}", {"seen": name, "announced": read}
        )


def _announced(facts: RunFacts) -> Iterator[Observation]:
    announced: Json = (facts.data or {}).get("announced")
    rows, total = _count(facts, "rows") or 0, _count(facts, "tokens") or 0
    if not isinstance(announced, dict):
        raise Unknown("no check of the data was given to the recorder (GradienceCallback(data=check_data(...)))")
    yield from _set_otherwise(facts.data or {}, announced)
    if rows < FEW_ROWS.value:
        raise Unknown(f"{rows} rows were seen; it needs {FEW_ROWS.value:g}")
    share, length = announced.get("supervised_share"), announced.get("tokens_per_sequence")
    supervised = _count(facts, "supervised")
    shared = supervised / total if total and supervised is not None else None
    if isinstance(share, float) and shared is not None and abs(shared - share) > SHARE_APART.value:
        yield Observation(
            f"{shared:.0%} of the batches' tokens are supervised; the check announced {share:.0%}",
            {"seen": shared, "announced": share},
        )
    packed = (facts.data or {}).get("packed") is True
    if isinstance(length, float) and not packed and abs(total / rows - length) > LENGTH_APART.value * length:
        yield Observation(
            f"the batches have {total / rows:.0f} tokens a row; the check announced {length:.0f}",
            {"seen": total / rows, "announced": length},
        )


_OF_DATA: Final = {rule.id: rule for rule in (*supervision.RULES, *tokens.RULES, *content.RULES)}


def _fed(rule: str, observe: Observe[RunFacts] | None = None, *, needs: Premise[RunFacts] = _recorded) -> LogRule:
    """A rule on a data set over the batches that the recorder saw; as it judges a data set, if not told otherwise."""
    of_data = _OF_DATA[rule]
    return log_rule(of_data, observe or _as_of_data(of_data.observe), needs=(needs,), meant_for=_IS_RECORDED)


RULES: Final[tuple[LogRule, ...]] = (
    *_ON_THE_ADAPTER,
    log_rule(
        _OF_DATA["DAT301"],
        _as_of_data(_OF_DATA["DAT301"].observe),
        needs=(_supervision,),
        place="broken",
        phrase=lambda v: "no token is supervised" if v["rows"] == v["of"] else None,
        covers=frozenset({"learning"}),
        cause=lambda v: "nothing_supervised" if v["rows"] == v["of"] else None,
    ),
    _fed("DAT303", needs=_supervision),
    _fed("DAT305", _at_limit),
    _fed("DAT307", _end, needs=_supervision),
    _fed("DAT313", _repeated),
    _fed("DAT316", _labels),
    _fed("DAT320"),
    LogRule(
        id="DAT321",
        severity="warning",
        title="the batches differ from what the check of the data announced",
        condition="from {few_rows} rows on, the supervised share of the tokens differs by over {share_apart} from what "
        "was announced, or the tokens per row by over {length_apart} of it; or the length limit, the chat template or "
        "the data set's file is another",
        observe=_announced,
        needs=(_recorded,),
        meant_for=_IS_RECORDED,
        confidence=0.7,
        scope="runs whose recorder was given the report of check_data",
        rationale="The trainer tokenises, masks or cuts differently from the check, so what the check found right may "
        "be wrong.",
        action="check the data with the trainer's own template, loss mode and length limit",
        verify="decode a batch of the trainer",
        thresholds=(SHARE_APART, LENGTH_APART, FEW_ROWS),
        evidence=(cite("the log", "the counts of the `data` event beside those announced"),),
    ),
)
