"""DAT301 and its kin on a log: what the recorder saw in the batches that the model was fed.

The `metrics` event of kind `data` holds counts of some batches. They are judged by the rules on a data set where these
need no more than that. Where no token was supervised, the loss means nothing: that is one finding, and the rules on the
loss and the gradient are not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final

from gradience.rules.data import content, supervision, tokens
from gradience.rules.data.rows import counted
from gradience.rules.log.facts import LogRule, RunFacts
from gradience.rules.rule import Observation, Rule, Threshold, Unknown, cite
from gradience.schema.data import Batching, DataReport, Rows, RowsSeen, TokenCounts
from gradience.schema.scalars import Json

AT_LIMIT = Threshold("at_limit", 0.05, "share of rows", "as cut_many of DAT305")
SHARE_APART = Threshold(
    "share_apart", 0.1, "supervised share of tokens", "proposal: more than batches differ by chance"
)
LENGTH_APART = Threshold("length_apart", 0.25, "of the announced tokens per sequence", "proposal; the same")
FEW_ROWS = Threshold("few_rows", 32, "rows seen", "proposal: of fewer, means differ by chance")
_NOT_RECORDED: Final = "what the model was fed was not recorded (no `data` event in the log)"


def _is_recorded(facts: RunFacts) -> bool:
    """Of a log without the event DAT301 alone says that there is none."""
    return facts.data is not None


def _recorded(facts: RunFacts) -> str | None:
    if facts.data is None:
        return _NOT_RECORDED
    unseen = facts.data.get("unseen")
    return f"the recorder saw no batch: {unseen}" if isinstance(unseen, str) else None


def _supervision(facts: RunFacts) -> str | None:
    lacking = _recorded(facts)
    if lacking is None and _count(facts, "supervised") is None:
        return "the batches hold no labels of tokens"
    return lacking


def _count(facts: RunFacts, name: str) -> int | None:
    value: Json = (facts.data or {}).get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def everything_masked(facts: RunFacts) -> bool:
    """Whether no token of any batch that was seen is supervised."""
    rows = _count(facts, "rows")
    return bool(rows) and _count(facts, "rows_unsupervised") == rows and _count(facts, "supervised") == 0


def as_data(facts: RunFacts) -> DataReport:
    """The batches as a data set: the counts that both have."""

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


def _number(facts: RunFacts, name: str) -> int | None:
    value: Json = (facts.data or {}).get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _as_of_data(
    observe: Callable[[DataReport], Iterable[Observation] | Observation | None],
) -> Callable[[RunFacts], Iterable[Observation] | Observation | None]:
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
            f"none of {rows} rows in the batches has a supervised end token of the model",
            {"with_end": ends, "rows": rows},
            severity="warning",  # the model may be served with another end token
        )


def _at_limit(facts: RunFacts) -> Iterator[Observation]:
    at, rows = _count(facts, "rows_at_limit"), _count(facts, "rows") or 0
    if at is None:
        raise Unknown("the length limit was not known to the recorder")
    if rows and at >= AT_LIMIT.value * rows:
        yield Observation(
            f"{counted(Rows(count=at), rows)} in the batches are as long as the limit: they were cut, or nearly",
            {"rows": at, "of": rows, "max_length": _count(facts, "max_length")},
            severity="warning",
        )


def _labels(facts: RunFacts) -> Iterator[Observation]:
    low, high, classes = (_number(facts, name) for name in ("label_min", "label_max", "num_labels"))
    if low is None or high is None:
        raise Unknown("the batches hold no labels of classes")
    if as_data(facts).seen.label_out_of_range.count:
        bound = f"0 to {classes - 1}" if classes else "0 and more"
        yield Observation(
            f"labels in the batches run from {low} to {high}, the model takes {bound}",
            {"label_min": low, "label_max": high, "num_labels": classes},
        )


def _repeated(facts: RunFacts) -> Iterator[Observation]:
    """Of the few batches that are watched: a hint, whatever the share. The check of the data counts them all."""
    for found in content.duplicates(as_data(facts)):
        yield replace(found, severity=None)


def _announced(facts: RunFacts) -> Iterator[Observation]:
    told: Json = (facts.data or {}).get("announced")
    rows, total = _count(facts, "rows") or 0, _count(facts, "tokens") or 0
    if not isinstance(told, dict):
        raise Unknown("no check of the data was given to the recorder (GradienceCallback(data=check_data(...)))")
    if rows < FEW_ROWS.value:
        raise Unknown(f"{rows} rows were seen; it needs {FEW_ROWS.value:g}")
    share, length = told.get("supervised_share"), told.get("tokens_per_sequence")
    supervised = _count(facts, "supervised")
    if isinstance(share, float) and supervised is not None and abs(supervised / total - share) > SHARE_APART.value:
        yield Observation(
            f"{supervised / total:.0%} of the batches' tokens are supervised, by the check {share:.0%}",
            {"seen": supervised / total, "announced": share},
        )
    packed = (facts.data or {}).get("packed") is True
    if isinstance(length, float) and not packed and abs(total / rows - length) > LENGTH_APART.value * length:
        yield Observation(
            f"the batches have {total / rows:.0f} tokens a row, by the check {length:.0f}",
            {"seen": total / rows, "announced": length},
        )


_RULES: Final = {rule.id: rule for rule in (*supervision.RULES, *tokens.RULES, *content.RULES)}

RULES: Final[tuple[Rule[RunFacts], ...]] = (
    _RULES["DAT301"].over(_as_of_data(_RULES["DAT301"].observe), needs=(_supervision,)),
    _RULES["DAT303"].over(_as_of_data(_RULES["DAT303"].observe), needs=(_supervision,), applies=_is_recorded),
    _RULES["DAT305"].over(_at_limit, needs=(_recorded,), applies=_is_recorded),
    _RULES["DAT307"].over(_end, needs=(_supervision,), applies=_is_recorded),
    _RULES["DAT313"].over(_repeated, needs=(_recorded,), applies=_is_recorded),
    _RULES["DAT316"].over(_labels, needs=(_recorded,), applies=_is_recorded),
    _RULES["DAT320"].over(_as_of_data(_RULES["DAT320"].observe), needs=(_recorded,), applies=_is_recorded),
    LogRule(
        id="DAT321",
        severity="warning",
        title="the batches are not those that the check of the data announced",
        condition="from {few_rows} rows on, the supervised share differs by over {share_apart}, or tokens of a row by "
        "over {length_apart} of what was announced",
        observe=_announced,
        needs=(_recorded,),
        applies=_is_recorded,
        confidence=0.7,
        scope="runs whose recorder was given the report of check_data",
        rationale="The trainer tokenises, masks or cuts in another way than was checked: what the check found to be "
        "right need not be so.",
        action="check the data with the trainer's own template, loss mode and length limit",
        verify="decode a batch of the trainer",
        thresholds=(SHARE_APART, LENGTH_APART, FEW_ROWS),
        evidence=(cite("the log", "the counts of the `data` event beside those announced"),),
    ),
)
