"""Rules on what rows hold: rows that cannot be used, empty and repeated answers, duplicates, overlap, broken text."""

from __future__ import annotations

from collections.abc import Iterator

from gradience.rules.data.rows import counted, share, values
from gradience.rules.rule import Observation, Rule, Threshold, Unknown
from gradience.schema.data import DataReport, Rows
from gradience.schema.findings import Evidence

UNREADABLE_MANY = Threshold("unreadable_many", 0.01, "share of rows", "proposal: trainers stop at the first")
SAME_ANSWER = Threshold("same_answer", 0.5, "share of answers", "proposal: one answer is right for half of the prompts")
SAME_ANSWER_ROWS = Threshold("same_answer_rows", 20, "answers", "proposal: fewer are no sample")
DUPLICATES_SOME = Threshold("duplicates_some", 0.01, "share of rows", "proposal; deduplicated web text has under it")
DUPLICATES_MANY = Threshold("duplicates_many", 0.1, "share of rows", "proposal: an epoch is then more than one pass")
OVERLAP_MANY = Threshold("overlap_many", 0.05, "share of evaluation rows", "proposal: enough to move a mean loss")
BROKEN_MANY = Threshold("broken_many", 0.01, "share of rows", "proposal: a wrong decoding breaks many rows, chance few")


def _unreadable(data: DataReport) -> Iterator[Observation]:
    rows, of = data.seen.unreadable, data.rows_read + data.seen.unreadable.count
    if rows.count:
        why = f": {data.faults[0].reason}" if data.faults else ""
        yield Observation(
            f"{counted(rows, of)} cannot be used{why}",
            values(rows, of, reasons=[fault.reason for fault in data.faults[:3]]),
            severity="error" if share(rows, of) >= UNREADABLE_MANY.value else None,
        )


def _empty(data: DataReport) -> Iterator[Observation]:
    rows = data.seen.empty_answer
    if rows.count:
        yield Observation(f"{counted(rows, data.rows_read)} have an empty answer", values(rows, data.rows_read))


def _constant(data: DataReport) -> Iterator[Observation]:
    answers = data.answers
    if answers.rows < SAME_ANSWER_ROWS.value:
        raise Unknown(f"{answers.rows} answers to compare, under {SAME_ANSWER_ROWS.value:g}")
    part = answers.most_common / answers.rows
    if part >= SAME_ANSWER.value:
        yield Observation(
            f"{part:.0%} of {answers.rows:,} answers are the same text",
            {"most_common": answers.most_common, "answers": answers.rows, "share": part},
        )


def duplicates(data: DataReport) -> Iterator[Observation]:
    """Rows whose tokens are those of an earlier row."""
    rows, part = data.seen.duplicate, share(data.seen.duplicate, data.rows_read)
    if part >= DUPLICATES_SOME.value:
        yield Observation(
            f"{counted(rows, data.rows_read)} repeat an earlier row",
            values(rows, data.rows_read),
            severity="warning" if part >= DUPLICATES_MANY.value else None,
        )
    elif data.sampled:
        raise Unknown("a sample shows few of the duplicates: --samples all")


def _overlap(data: DataReport) -> Iterator[Observation]:
    found = data.overlap
    if found is None:
        raise Unknown("no evaluation set is given (--eval-data)")
    both = found.exact.count + found.near.count
    if both:
        parts = [f"{counted(found.exact, found.eval_rows)} exactly"] if found.exact.count else []
        parts += [f"{counted(found.near, found.eval_rows)} nearly"] if found.near.count else []
        yield Observation(
            f"evaluation rows stand in the training set: {', '.join(parts)}",
            {
                "exact": found.exact.count,
                "near": found.near.count,
                "eval_rows": found.eval_rows,
                "first": found.exact.first,
            },
            severity="error" if both >= OVERLAP_MANY.value * found.eval_rows else None,
        )
    if not found.near_judged:
        raise Unknown(found.near_reason)
    if data.sampled and not both:
        raise Unknown("a sample of the training rows shows few of the overlaps: --samples all")


def _broken(data: DataReport) -> Iterator[Observation]:
    for rows, what in (
        (data.seen.replacement, "U+FFFD, lost characters"),
        (data.seen.mojibake, "UTF-8 decoded as Latin-1"),
    ):
        if rows.count:
            yield _broken_rows(data, rows, what)


def _broken_rows(data: DataReport, rows: Rows, what: str) -> Observation:
    many = share(rows, data.rows_read) >= BROKEN_MANY.value
    message = f"{counted(rows, data.rows_read)} hold {what}"
    return Observation(message, values(rows, data.rows_read), severity="warning" if many else None)


RULES = (
    Rule(
        id="DAT300",
        severity="warning",
        title="rows cannot be used",
        groups=("data",),
        condition="a row cannot be read, or is not of the data set's format; from {unreadable_many} of the rows: error",
        observe=_unreadable,
        confidence=0.9,
        scope="every data set",
        rationale="The trainer stops at such a row, or skips it in silence.",
        action="correct or remove these rows",
        verify="their lines",
        thresholds=(UNREADABLE_MANY,),
        evidence=(Evidence(source="definition", says="the format is that of the first usable row"),),
    ),
    Rule(
        id="DAT311",
        severity="warning",
        title="empty answers",
        groups=("data",),
        condition="an answer holds nothing but white space",
        observe=_empty,
        confidence=0.8,
        scope="formats with answers",
        rationale="The model learns to answer with nothing.",
        action="remove these rows",
        verify="their text (--show-rows)",
        evidence=(Evidence(source="definition", says="the answer without white space is empty"),),
    ),
    Rule(
        id="DAT312",
        severity="warning",
        title="one answer for many prompts",
        groups=("data",),
        condition="{same_answer} of at least {same_answer_rows} answers are the same text",
        observe=_constant,
        confidence=0.7,
        scope="formats with answers; of a pair, the chosen one",
        rationale="The loss falls while the model learns one text.",
        action="look whether a column was filled with a constant",
        verify="the most frequent answers",
        thresholds=(SAME_ANSWER, SAME_ANSWER_ROWS),
        evidence=(Evidence(source="definition", says="rows of the most frequent answer over all answers"),),
    ),
    Rule(
        id="DAT313",
        severity="info",
        title="duplicate rows",
        groups=("data", "log"),
        condition="{duplicates_some} of the rows repeat an earlier one; from {duplicates_many}: warning",
        observe=duplicates,
        confidence=0.8,
        scope="rows whose tokens are equal",
        rationale="A row that stands twice is trained on twice an epoch, and may stand in the evaluation set, too.",
        action="remove duplicates",
        verify="their numbers",
        thresholds=(DUPLICATES_SOME, DUPLICATES_MANY),
        evidence=(
            Evidence(
                source="Lee et al. 2022, arXiv 2107.06499",
                says="models trained on deduplicated text emit memorised text ten times less often",
            ),
        ),
    ),
    Rule(
        id="DAT314",
        severity="warning",
        title="the evaluation set is inside the training set",
        groups=("data",),
        condition="an evaluation row stands in the training set, exactly or nearly; from {overlap_many}: error",
        observe=_overlap,
        confidence=0.9,
        scope="with --eval-data; near is a Jaccard similarity of word trigrams of 0.8 and more",
        rationale="The held-out loss then measures memory, and overfitting is not seen.",
        action="remove these rows from one of the sets",
        verify="the evaluation loss on the other rows",
        thresholds=(OVERLAP_MANY,),
        evidence=(Evidence(source="benchmarks/data.py", says="what MinHash finds and misses: docs/data.md"),),
    ),
    Rule(
        id="DAT318",
        severity="info",
        title="broken text",
        groups=("data",),
        condition="a row holds U+FFFD, or UTF-8 decoded as Latin-1; from {broken_many} of the rows: warning",
        observe=_broken,
        confidence=0.75,
        scope="rows of text",
        rationale="The model learns the broken spelling.",
        action="read the source as UTF-8 again",
        verify="the text of these rows (--show-rows)",
        thresholds=(BROKEN_MANY,),
        evidence=(Evidence(source="Unicode 16, U+FFFD", says="stands for what could not be decoded"),),
    ),
)
