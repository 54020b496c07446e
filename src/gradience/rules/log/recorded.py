"""TRN202 and its kin on the newest audit in a log; DAT301 and its kin on the batches that the recorder saw.

TRN202 and UTL204 alone say that a log holds no audit.

The `metrics` event of kind `data` holds counts of some batches. They are judged by those rules on a data set that need
no more. If no token was supervised, that is the only finding, and the rules on loss and gradient are not judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from msgspec.structs import replace as replace_report

from gradience.configs.document import KEEPS_OVERFLOW
from gradience.rules import Observation, Observe, Premise, Threshold, Unknown, premise
from gradience.rules.data import content, prompts, supervision, tokenised, tokens, turns
from gradience.rules.data.content import HALF, SOME, counted
from gradience.rules.log.facts import LogRule, RunFacts, log_rule
from gradience.rules.weights import Verdicts, observe_verdict, suggests_ranks
from gradience.rules.weights.rules import non_finite, observe_size, random_like, too_large, zero_update
from gradience.rules.weights.utilization import LOW_UTILIZATION, over_provisioned, under_used
from gradience.schema import Json, number_in
from gradience.schema.reports import Batching, DataReport, Rows, TokenCounts

SHARE_APART = Threshold(
    "share_apart", 0.1, "supervised share of tokens", "proposal: more than batches differ by chance"
)
LENGTH_APART = Threshold("length_apart", 0.25, "of the announced tokens per sequence", "proposal; the same")
FEW_ROWS = Threshold("few_rows", 32, "rows seen", "proposal: of fewer, means differ by chance")
# Without a `data` event only the rule on rows without a supervised token reports its absence
_IS_RECORDED: Final[Premise[RunFacts]] = Premise(
    "the log has a data event", lambda facts: _NOT_RECORDED if facts.data is None else None
)


def no_weights(audit: Mapping[str, Json]) -> bool:
    """Whether an audit says that it found nothing to measure, so that its means are not measurements."""
    return any(audit.get(name) == 0 for name in ("n_layers", "total_lora_params"))


@premise("the log holds an audit of LoRA weights")
def _audited(facts: RunFacts) -> str | None:
    if facts.audit is None:
        return "no lora_audit in the log ('gradience audit --append run.jsonl' adds one)"
    return "the audit in the log found no LoRA weights" if no_weights(facts.audit) else None


def _health(verdicts: Verdicts, facts: RunFacts) -> Observation | None:
    verdict = (facts.audit or {}).get("verdict")
    if not isinstance(verdict, str):
        return None
    return observe_verdict(verdicts, verdict, "the audit in the log says so", source="the log")


def _large(facts: RunFacts) -> Observation | None:
    return _health(too_large.verdicts, facts) or observe_size(_real(facts.audit or {}, "update_size"))


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


def _low_utilization(facts: RunFacts) -> Observation | None:
    audit = facts.audit or {}
    used, verdict = _real(audit, "utilization_mean"), audit.get("verdict", "trained")
    if used is None or used >= LOW_UTILIZATION.value or not isinstance(verdict, str) or not suggests_ranks(verdict):
        return None
    return over_provisioned(used, *(_rank(audit, f"suggested_r_global_{which}") for which in ("median", "90")))


_ON_THE_ADAPTER: tuple[LogRule, ...] = (
    *(log_rule(rule, partial(_health, rule.verdicts)) for rule in (non_finite, random_like)),
    log_rule(zero_update, partial(_health, zero_update.verdicts), needs=(_audited,)),
    log_rule(too_large, _large),
    log_rule(under_used, _low_utilization, needs=(_audited,)),
)

_NAME: Final = 60  # characters of a file's name
_NOT_RECORDED: Final = "what the model was fed was not recorded (no `data` event in the log)"


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
    if lacking is None and _all_unattended(facts):
        return "the attention mask hides every token, or all in the loss (see DAT366)"
    return lacking


def _number(facts: RunFacts, name: str) -> int | None:
    value: Json = (facts.data or {}).get(name)
    # JSON's true is an int to Python
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _count(facts: RunFacts, name: str) -> int | None:
    value = _number(facts, name)
    return None if value is None or value < 0 else value


def _all_unattended(facts: RunFacts) -> bool:
    rows = _seen_asked(facts, "unattended").count
    return rows > 0 and rows == _count(facts, "rows_asked")


def everything_masked(facts: RunFacts) -> bool:
    """Whether batches were seen and none of their tokens is supervised."""
    rows = _count(facts, "rows")
    return (
        bool(rows)
        and not _all_unattended(facts)
        and _count(facts, "rows_unsupervised") == rows
        and _count(facts, "supervised") == 0
    )


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
        # What rules on data ask for before they judge: batches that were seen have it
        batch_stated=True,
        end_tokens=["the model's end token"],
        num_labels=classes,
        tokens=TokenCounts(total=total, kept=total, supervised=_count(facts, "supervised") or 0),
        batching=Batching(
            batch_size=facts.config.training.batch_size or 0,
            padding_share=padding / (total + padding) if total + padding else None,
        ),
        seen={
            "unsupervised": seen("rows_unsupervised"),
            "end_supervised": seen("rows_with_end"),
            "duplicate": seen("rows_repeated"),
            "label_out_of_range": Rows(count=int(outside)),
        },
    )


def _as_of_data(observe: Observe[DataReport]) -> Observe[RunFacts]:
    return lambda facts: observe(as_data(facts))


@premise("the rows of the first batches were asked one by one")
def _asked(facts: RunFacts) -> str | None:
    lacking = _supervision(facts)
    return lacking or (None if _count(facts, "rows_asked") else "no row of the batches was asked by itself")


def _seen_asked(facts: RunFacts, name: str) -> Rows:
    asked: Json = (facts.data or {}).get("asked")
    count = asked.get(name) if isinstance(asked, dict) else None
    return Rows(count=count if isinstance(count, int) else 0)


def _as_asked(observe: Observe[DataReport]) -> Observe[RunFacts]:
    """A rule on what each row shows, over the rows of the first batches."""

    def observed(facts: RunFacts) -> Iterator[Observation] | Observation | None:
        asked: Json = (facts.data or {}).get("asked")
        seen = {name: _seen_asked(facts, name) for name in asked} if isinstance(asked, dict) else {}
        return observe(replace_report(as_data(facts), rows_read=_count(facts, "rows_asked") or 0, seen=seen))  # type: ignore[return-value]

    return observed


@LogRule(
    "DAT366",
    severity="critical",
    confidence=0.95,
    needs=(_recorded,),
    meant_for=_IS_RECORDED,
    place="broken",
    live=True,
    phrase=lambda v: "the attention mask hides every token" if v["rows"] == v["of"] else None,
)
def _unattended(facts: RunFacts) -> Iterator[Observation]:
    """an attention mask of zeros

    a row of the first batches has an attention mask of zeros alone, or of zeros for every token in the loss; critical
    if all have, else error

    Why: Its tokens are hidden from the model: it reads nothing, or learns to answer from padding.
    Scope: batches with an attention mask
    Action: look at the collator: the mask is 1 for each token, and 0 for padding
    Verify: batch["attention_mask"].sum(1)
    Source: arithmetic -- each token is masked: attention is over none
    """
    rows, of = _seen_asked(facts, "unattended"), _count(facts, "rows_asked") or 0
    if rows.count:
        yield Observation(
            f"{counted(rows, of)} of the first batches have an attention mask of zeros for their tokens",
            {"rows": rows.count, "of": of},
            severity=None if rows.count == of else "error",
        )


@LogRule("DAT358", severity="error", confidence=0.9, needs=(_asked,), meant_for=_IS_RECORDED, live=True)
def _placeless(facts: RunFacts) -> Iterator[Observation]:
    """one position for every token

    a row of the first batches has several tokens, and one and the same position id for all of them

    Why: A model that takes places from position_ids cannot tell the order of the words, and is served with places.
    Scope: batches that give position_ids of the shape of their tokens
    Action: leave position_ids out, or count them from 0 in each row: the model then places tokens itself
    Verify: batch["position_ids"][0]
    Source: arithmetic -- a rotation by equal angles leaves every score as it is without places
    """
    rows, of = _seen_asked(facts, "placeless"), _count(facts, "rows_asked") or 0
    if rows.count:
        yield Observation(
            f"{counted(rows, of)} of the first batches have one and the same position id for every token",
            {"rows": rows.count, "of": of},
        )


def _foreign(facts: RunFacts) -> Iterator[Observation]:
    """Of a few rows one may speak of tokens by chance: they are a template's if half of the rows have them."""
    rows, of = _seen_asked(facts, "foreign_tokens").count, _count(facts, "rows_asked") or 0
    if 0 < of <= 2 * rows:
        yield Observation(
            f"{counted(Rows(count=rows), of)} of the first batches hold, in pieces of text, turn tokens that this "
            "tokenizer does not have and its template does not write",
            {"rows": rows, "of": of},
            severity="warning",
        )


def _joined(facts: RunFacts) -> Iterator[Observation]:
    """One row a batch that should hold several; rows of one length may be chats, whose turns end so, too."""
    of, rows = _count(facts, "rows_asked") or 0, _count(facts, "rows") or 0
    masked = _seen_asked(facts, "documents_masked").count
    if masked >= HALF.value * of:
        yield Observation(
            f"{counted(Rows(count=masked), of)} of the first batches have position_ids that begin anew, and an "
            "attention_mask beside them: documents attend to each other",
            {"rows": masked, "of": of},
        )
        return
    flat = rows == _count(facts, "watched") and (facts.config.training.batch_size or 1) > 1
    joined = sum(_seen_asked(facts, name).count for name in ("documents_joined", "turns_or_documents"))
    if flat and joined >= HALF.value * of:
        yield Observation(
            f"{counted(Rows(count=joined), of)} of the first batches hold several documents, and nothing parts them",
            {"rows": joined, "of": of},
        )


@LogRule(
    "FED227",
    severity="error",
    confidence=0.85,
    needs=(_recorded,),
    meant_for=_IS_RECORDED,
    thresholds=(HALF,),
    place="broken",
    phrase=lambda _: "the loss asks for the token that was read, not for the next",
    live=True,
)
def _own_token(facts: RunFacts) -> Observation | None:
    """the loss asks for the token that was read

    at {half} of the places of the first batch that are in the loss its gradient raises the token of that place, and at
    fewer the next one

    Why: A model that reads a token can copy it: the loss falls to 0, and nothing is learnt of what comes next.
    Scope: causal language models of transformers, whose output has logits for each token of the batch
    Action: give labels to the model, which shifts them; or compare logits[:, :-1] with labels[:, 1:]
    Verify: the loss of one's own beside model(**batch).loss
    Source: transformers/loss/loss_utils.py:ForCausalLMLoss@5.24.0 -- shifts the labels by one before the cross entropy
    """
    wanted: Json = (facts.data or {}).get("wanted")
    own, following, of = (wanted.get(name, 0) if isinstance(wanted, dict) else 0 for name in ("own", "next", "of"))
    if not of:
        raise Unknown("the gradient of no logits was seen")
    if own < HALF.value * of or own <= following:
        return None
    return Observation(
        f"of {of:,} tokens in the loss of the first batch, it asks at {own:,} for the very token that the model read "
        f"there, and at {following:,} for the next: labels and logits are not shifted against each other",
        {"own": own, "next": following, "of": of},
    )


@LogRule("FED228", severity="warning", confidence=0.75, needs=(_recorded,), meant_for=_IS_RECORDED, live=True)
def _untaught(facts: RunFacts) -> Iterator[Observation]:
    """tokens whose embedding nothing trains

    a row of the first batches has a token whose embedding is the mean of all, or is 0, and the embedding is frozen

    Why: Tokens that were added begin as the mean of the others, and are all alike: LoRA on the layers between cannot
        tell them apart, and a head that does not train cannot write them.
    Scope: models whose embedding is frozen, in plain numbers and whole; the padding token is left out
    Action: train these rows (trainable_token_indices), or the embedding and the head (modules_to_save)
    Verify: model.get_input_embeddings().weight[token] beside the mean of all rows
    Source: transformers/modeling_utils.py:PreTrainedModel._init_added_embeddings_weights_with_mean@5.24.0 -- a resize
        draws new rows around the mean of the old ones
    """
    rows, of = _seen_asked(facts, "untaught_tokens"), _count(facts, "rows_asked") or 0
    if rows.count:
        yield Observation(
            f"{counted(rows, of)} of the first batches have a token whose embedding was never trained, and is frozen",
            {"rows": rows.count, "of": of},
        )


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
    if rows and at >= SOME.value * rows:
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
    if as_data(facts).rows_with("label_out_of_range").count:
        bound = f"0 to {classes - 1}" if classes else "0 and more"
        yield Observation(
            f"labels in the batches run from {low} to {high}, the model takes {bound}",
            {"label_min": low, "label_max": high, "num_labels": classes},
        )


def _repeated(facts: RunFacts) -> Iterator[Observation]:
    """Duplicates in the few batches watched: a hint of the rule's own severity. `check` counts the whole data set."""
    for observation in content.duplicates.observations(as_data(facts)):
        yield replace(observation, severity=None)


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


@LogRule(
    "DAT321",
    severity="warning",
    confidence=0.7,
    needs=(_recorded,),
    meant_for=_IS_RECORDED,
    thresholds=(SHARE_APART, LENGTH_APART, FEW_ROWS),
)
def _announced(facts: RunFacts) -> Iterator[Observation]:
    """the batches differ from what the check of the data announced

    from {few_rows} rows on, the supervised share of the tokens differs by over {share_apart} from what was
    announced, or the tokens per row by over {length_apart} of it; or the length limit, the chat template or the
    data set's file is another

    Why: The trainer tokenises, masks or cuts differently from the check, so what the check found right may be
        wrong.
    Scope: runs whose recorder was given the report of check_data
    Action: check the data with the trainer's own template, loss mode and length limit
    Verify: decode a batch of the trainer
    Seen: https://github.com/unslothai/unsloth/issues/2904 -- max_seq_length 15000 is ignored: rows are cut at 1024
    Source: the log -- the counts of the `data` event beside those announced
    """
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


_OF_DATA: Final = {
    rule.id: rule for subject in (supervision, tokens, content, tokenised, turns, prompts) for rule in subject.RULES
}


def _fed(
    rule: str, observe: Observe[RunFacts] | None = None, *, needs: Premise[RunFacts] = _recorded, live: bool = True
) -> LogRule:
    """A rule on a data set over the batches that the recorder saw; as it judges a data set, if not told otherwise."""
    of_data = _OF_DATA[rule]
    observe = observe or _as_of_data(of_data.observe)
    return log_rule(of_data, observe, needs=(needs,), meant_for=_IS_RECORDED, live=live)


OF_BATCHES: Final[tuple[LogRule, ...]] = (
    log_rule(
        _OF_DATA["DAT301"],
        _as_of_data(_OF_DATA["DAT301"].observe),
        needs=(_supervision,),
        live=True,
        place="broken",
        phrase=lambda v: "no token is supervised" if v["rows"] == v["of"] else None,
        covers=frozenset({"learning"}),
        cause=lambda v: "nothing_supervised" if v["rows"] == v["of"] else None,
    ),
    *(_fed(rule, _as_asked(_OF_DATA[rule].observe), needs=_asked) for rule in ("DAT309", "DAT333", "DAT347", "DAT349")),
    _fed("DAT361", _as_asked(_OF_DATA["DAT361"].observe), needs=_asked),
    _fed("DAT329", _foreign, needs=_asked),
    _fed("DAT355", _joined, needs=_asked),
    _unattended,
    _placeless,
    _own_token,
    _untaught,
    _fed("DAT305", _at_limit),
    _fed("DAT307", _end, needs=_supervision),
    _fed("DAT313", _repeated, live=False),
    _fed("DAT316", _labels),
    _fed("DAT320", live=False),
)
SAME_STEPS = Threshold(
    "same_steps", 8, "steps a batch", "a judgement: chance draws the same rows twice, not eight times"
)


@LogRule(
    "FED226",
    severity="error",
    confidence=0.85,
    meant_for=Premise("the log has the rows of steps", lambda facts: None if facts.run.fed else "no step_digests"),
    thresholds=(SAME_STEPS,),
    live=True,
)
def _same_rows(facts: RunFacts) -> Iterator[Observation]:
    """every step is fed the same rows

    {same_steps} steps and more, as many as are known, had the very same rows, each of them once, and these are not
    known to be the whole data set; or a few batches came so often each, and are not half of it

    Why: The model learns a handful of rows by heart, and never sees the others.
    Scope: logs with digests of the rows of each step; a run on one batch may be meant so
    Action: take a new batch at each step: next(iter(loader)) begins the loader anew each time
    Verify: print the first tokens of two consecutive batches
    Source: https://docs.pytorch.org/docs/stable/data.html -- each call of iter begins a pass of its own
    """
    steps = facts.run.fed
    kinds = {tuple(sorted(text.replace("|", " ").split())) for text in steps.values()}
    rows = {row for kind in kinds for row in kind}
    repeats = any(len({*kind}) < len(kind) for kind in kinds)  # the data hold a row more than once, whoever draws them
    looks = [wiring.data for wiring in facts.run.wirings if wiring.data is not None and wiring.data.rows]
    # A process sees its own share of the rows
    whole = min((data.rows // (data.world_size or 1) for data in looks if data.rows), default=None)
    if len(steps) < SAME_STEPS.value:
        raise Unknown(f"{len(steps)} steps, under {SAME_STEPS.value:g}")
    if not rows or repeats or any("?" in row or row.startswith("+") for row in rows):
        return
    if len(kinds) == 1 and (whole is None or whole > len(rows)):
        yield Observation(
            f"all {len(steps):,} steps were fed the same {len(rows):,} rows", {"steps": len(steps), "rows": len(rows)}
        )
    elif (
        len(kinds) > 1 and whole is not None and len(steps) >= SAME_STEPS.value * len(kinds) and 2 * len(rows) <= whole
    ):
        yield Observation(
            f"all {len(steps):,} steps were fed one of the same {len(kinds)} batches: {len(rows):,} rows of {whole:,}",
            {"steps": len(steps), "rows": len(rows), "batches": len(kinds), "of": whole},
        )


RULES: Final[tuple[LogRule, ...]] = (*_ON_THE_ADAPTER, *OF_BATCHES, _announced, _same_rows)
