"""Rules on the content of rows: labels, unusable rows, answers, duplicates, overlap and broken text.

The functions at the top are shared by all rules on data. They put rows into a message: the count, the share, and the
numbers of the first rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gradience.data import question_of, unsaid
from gradience.data.asked import AskedRow, RowTests, row_kinds, row_test
from gradience.rules import Observation, Rule, Threshold, Unknown, premise
from gradience.schema import Json, Severity
from gradience.schema.document import RuleGroup
from gradience.schema.reports import DataReport, Rows

SLIPS = Threshold("slips", 0.01, "share", "proposal: fewer are slips, or texts about such things")
SOME = Threshold("some", 0.05, "share", "proposal: 1 of 20 is no chance; the limit that keeps 95 % is the usual choice")
HALF = Threshold("half", 0.5, "share", "proposal: a few such rows are no wrong setting")
MAJORITY = Threshold("majority", 0.9, "share of rows", "proposal: guessing one class is right in 9 of 10")
FEW_LABELS = Threshold("few_labels", 20, "rows", "proposal: fewer are no sample")
SAME_ANSWER = Threshold(
    "same_answer", 1 / 3, "share of answers", "proposal: one answer is right for a third of prompts"
)
FEW_ANSWERS = Threshold(
    "few_answers", 0.05, "different answers per answer", "proposal: fewer are the classes of a task, such as yes and no"
)
SAME_ANSWER_ROWS = Threshold("same_answer_rows", 20, "answers", "proposal: fewer are no sample")
DUPLICATES_MANY = Threshold("duplicates_many", 0.1, "share of rows", "proposal: an epoch is then more than one pass")
_BROKEN: Final = re.compile(
    r"[\u00c2-\u00df][\u0080-\u00bf\u0152-\u0178\u02c6-\u2122]|[\u00e0-\u00ef][\u0080-\u00bf\u0152-\u0178\u02c6-\u2122]{2}"
)
_MARKS: Final = frozenset(
    "\u2018\u2019\u201a\u201c\u201d\u201e\u2013\u2014\u2026\u2022\u2039\u203a\u00ab\u00bb\u00b7\u00a0"
)  # follow letters
_RARE: Final = (0x07C0, 0x0800)  # letters of N'Ko, whose bytes are those of "ß" and a sign: "5ß€" is no mojibake
_ENTITY: Final = re.compile(r"&(?:quot|apos|amp|lt|gt|nbsp|#\d{2,5}|#[xX][0-9a-fA-F]{2,5});")
_MARKUP: Final = re.compile(r"</?[A-Za-z][^<>\n]{0,200}>|```|\b(?:HTML|XML)\b", re.IGNORECASE)
_REPLACEMENT: Final = "\ufffd"
# None, null and n/a may be answers.
_MISSING: Final = frozenset(
    (
        *(
            "nan",
            "NaN",
            "<NA>",
            "NaT",
            "[object Object]",
            "TODO",
            "todo",
            "TBD",
            "tbd",
            "FIXME",
            "[deleted]",
            "[removed]",
        ),
        *("#N/A", "#NAME?", "#REF!", "#VALUE!", "#DIV/0!", "#NUM!"),
    )
)
_BESIDE: Final = ("input", "context", "system", "document", "passage")
_FAILURE: Final = re.compile(
    r"\s*(?:Error code: [45]\d\d\b|(?:HTTP |Error:? )*[45]\d\d (?:Bad Gateway|Too Many Requests|Service Unavailable"
    r"|Gateway Time-?out|Internal Server Error)|Internal Server Error\W*\Z|Rate limit (?:reached|exceeded)"
    r"|(?:The )?(?:request|read) timed out|upstream connect error|\{?[\"']error[\"']: ?\{"
    r"|(?:I['\u2019]m sorry, )?(?:but )?an internal (?:server )?error (?:has )?occurred)",
    re.IGNORECASE,
)
_FAILURE_ASKED: Final = re.compile(r"error|status|http|exception|json|code|fail|server|\b[45]\d\d\b", re.IGNORECASE)
_ROUNDED: Final = re.compile(r"(?<![\w.])\d\.(\d{1,8})E\+\d\d(?!\w)")
_LONG_ID: Final = re.compile(r"(?<![\w.,])\d{12,}(?![\w])")
_ZEROS: Final = re.compile(r"(?<![\w.,:/+-])0+([1-9]\d{2,})(?![\w/-]|[.,:]\d)")
_CELL_DATE: Final = re.compile(
    r"\s*(?:\d{1,2}-(?:{0})|(?:{0})-\d\d)\s*\Z".replace("{0}", "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec")
)
_DATE_ASKED: Final = re.compile(r"date|day|when|month|year|datum", re.IGNORECASE)
_FORM_ASKED: Final = re.compile(r"scientific|notation|exponent|standard form", re.IGNORECASE)
_FLAT: Final = re.compile(
    r"^def \w+\([^\n]*\)[^\n:]*:[ \t]*\n(?:return\b|for |while |try:|with |if [^\n]*:|[\w.]+ ?[+-]?= |[\w.]+\(|\"{3})",
    re.MULTILINE,
)
_DIGITS: Final = re.compile(r"\d{3}")
# A line break in two letters. Before a lower-case letter it may be a command of LaTeX, and between quotes it is code.
_SPELT_BREAK: Final = re.compile(r"[^\s\\]\\n(?![a-z])")
_QUOTES: Final = re.compile(r"[`\"']|^\s*[\[{<]")
# \frac and \beta read as a form feed or a backspace and letters; C1; controls of no text. ESC colours logs.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f]|\x0c[a-z]|\t(?:imes\b|heta\b|ext\{)")
# Between letters of other scripts such characters part or join words.
_UNSEEN: Final = re.compile(
    r"\A\ufeff|(?<=[A-Za-z\u00c0-\u04ff])[\u200b-\u200d\u2060\ufeff\u00ad](?=[A-Za-z\u00c0-\u04ff])"
)


@dataclass(frozen=True, kw_only=True)
class DataRule(Rule[DataReport]):
    """A rule that `gradience check --data` applies to a data set."""

    groups: tuple[RuleGroup, ...] = ("data",)


def share(rows: Rows, of: int) -> float:
    """The share of `rows` among `of` rows; 0 if there are none."""
    return rows.count / of if of else 0.0


def counted(rows: Rows, of: int, what: str = "rows") -> str:
    """The count of rows for a message, with their share and the numbers of the first.

    >>> counted(Rows(count=3, first=[1, 4, 9]), 60), counted(Rows(count=60, first=[1]), 60)
    ('3 of 60 rows (5 %: 1, 4, 9)', 'all 60 rows')
    """
    if rows.count == of:
        return f"all {of:,} {what}" if of != 1 else f"1 of 1 {what}"
    named = (
        f": {', '.join(map(str, rows.first))}{', ...' if rows.count > len(rows.first) else ''}" if rows.first else ""
    )
    part = 100 * share(rows, of)
    shown = f"{part:.2g}" if part < 10 else f"{part:.0f}"  # two significant digits
    return f"{rows.count:,} of {of:,} {what} ({shown} %{named})"


def values(rows: Rows, of: int, **more: Json) -> dict[str, Json]:
    """The values of a finding on rows, and further ones."""
    return {"rows": rows.count, "of": of, "share": share(rows, of), "first": rows.first, **more}


def on_rows(
    data: DataReport,
    rows: Rows,
    says: str,
    *,
    severity: Severity | None = None,
    action: str | None = None,
    **more: Json,
) -> Observation:
    """The observation that some of the rows that were read have a property, which the text `says` names."""
    of = data.rows_read
    return Observation(f"{counted(rows, of)} {says}", values(rows, of, **more), severity=severity, action=action)


def seen_in(data: DataReport, rows: Rows, says: str, *, at_least: Threshold | None = None) -> Iterator[Observation]:
    """The observation that rows have a property, if there are any, or `at_least` this share of them."""
    if rows.count and (at_least is None or share(rows, data.rows_read) >= at_least.value):
        yield on_rows(data, rows, says)


@premise("the rows are tokens")
def as_tokens(data: DataReport) -> str | None:
    """The need of rules on tokens: they were given, or a tokenizer was."""
    is_text = data.tokenizer is None and data.format != "tokenised"
    return "no tokenizer is given: rows are read as text (--tokenizer FOLDER)" if is_text else None


@premise("the loss is computed on tokens")
def of_tokens(data: DataReport) -> str | None:
    """The need of rules on supervised tokens: the reason why a data set has none, or None if it has them."""
    if data.trainer in {"reward", "classification", "prm"}:
        per = "step" if data.trainer == "prm" else "sequence"
        return f"{data.trainer}: the loss is computed on one output per {per}, not on tokens"
    if data.trainer == "grpo":
        return "grpo: the model writes the answers itself"
    return as_tokens(data) if data.rows_read else "no row could be tokenised"


@premise("the rows have labels")
def _labelled(data: DataReport) -> str | None:
    return None if data.labels else "the rows have no label"


@DataRule(
    "DAT315",
    severity="warning",
    confidence=0.7,
    needs=(_labelled,),
    thresholds=(MAJORITY, FEW_LABELS),
)
def _balance(data: DataReport) -> Iterator[Observation]:
    """unbalanced classes

    {majority} of at least {few_labels} rows have one label; an error if all rows have it

    Why: Accuracy looks high for a model that always answers the same. Of one class the loss goes to 0 and looks like
        success.
    Scope: classification and KTO
    Action: weight the classes, or report balanced accuracy or F1
    Verify: accuracy per class; the labels of the whole file (--set samples=all)
    Seen: public repositories -- one class for nine rows of ten
    Source: definition -- rows of the most frequent label over all rows
    """
    # The report has the most frequent label first
    label, most = next(iter(data.labels.items()))
    part, kinds = most / data.rows_read, {"label": label, "rows": most, "labels": data.labels_total}
    if data.labels_total == 1:
        yield Observation(
            f"all {data.rows_read:,} rows have the label {label}",
            kinds,
            severity="error",
            confidence=0.9,
            action="look at how rows were selected: sorted files cut at the front have one class",
        )
    elif data.rows_read < FEW_LABELS.value:
        raise Unknown(f"{data.rows_read} rows, under {FEW_LABELS.value:g}")
    elif part >= MAJORITY.value and not data.label_weights:  # of KTO the weights decide (DAT364)
        yield Observation(
            f"{part:.0%} of {data.rows_read:,} rows have the label {label}",
            {**kinds, "share": part},
        )


@premise("labels are classes, or KTO's")
def _classified(data: DataReport) -> str | None:
    return None if data.trainer in {"classification", "kto"} else "the rows are not classified"


@row_test
def label_as_text(row: AskedRow) -> bool:
    """KTO's label is a text; a CSV has nothing else, and is read as truth."""
    return "completion" in row.spoken and any(isinstance(row.stored.get(name), str) for name in ("label", "kto_tag"))


@DataRule(
    "DAT316",
    severity="error",
    confidence=0.95,
    groups=("data", "log"),
    needs=(_labelled, _classified),
    settings=("num_labels",),
)
def _range(data: DataReport) -> Iterator[Observation]:
    """labels that the loss does not take

    a label is below 0, or not below the number of classes; or KTO's is a text, such as "False"

    Why: Cross entropy raises on the CPU, and ends a CUDA context with an assertion. KTOTrainer sums its labels, and
        where a program asks whether a text is true, "False" is.
    Scope: classification with whole numbers as labels; KTO from files other than CSV, where datasets makes truth of it
    Action: set num_labels (here: --set num_labels=N), or map the labels to 0 and up; for KTO write true and false
    Verify: max(label) < model.config.num_labels
    Source: trl/trainer/kto_trainer.py:KTOTrainer._prepare_dataset@1.16.0 -- sum(dataset["label"]): a TypeError of texts
    Source: torch/nn/functional.py:cross_entropy@2.13.0 -- raises 'Target out of bounds'
    """
    rows = data.rows_with("label_out_of_range")
    if rows.count:
        what = f"that is not one of 0 to {data.num_labels - 1}" if data.num_labels else "below 0"
        yield on_rows(data, rows, f"have a label {what}", num_labels=data.num_labels)
    yield from seen_in(data, data.rows_with("label_as_text"), 'have a text as KTO\'s label: "False" is true, too')
    if data.trainer == "classification" and not rows.count and data.num_labels is None:
        raise Unknown("the number of classes is not known (--set num_labels=N, or --base with its config.json)")


@DataRule(
    "DAT300",
    severity="warning",
    confidence=0.9,
    thresholds=(SLIPS,),
)
def _unreadable(data: DataReport) -> Iterator[Observation]:
    """rows cannot be used

    a row cannot be read, or is not of the data set's format; from {slips} of the rows: error

    Why: The trainer stops at such a row, or skips it in silence.
    Scope: every data set
    Action: correct or remove these rows
    Verify: their lines
    Source: arithmetic -- a row that cannot be read teaches nothing
    """
    rows, of = data.rows_with("unreadable"), data.rows_read + data.rows_with("unreadable").count
    if rows.count:
        why = f": {data.faults[0].reason}" if data.faults else ""
        yield Observation(
            f"{counted(rows, of)} cannot be used{why}",
            values(rows, of, reasons=[fault.reason for fault in data.faults[:3]]),
            severity="error" if share(rows, of) >= SLIPS.value else None,
        )


@DataRule(
    "DAT312",
    severity="warning",
    confidence=0.7,
    thresholds=(SAME_ANSWER, SAME_ANSWER_ROWS, FEW_ANSWERS, MAJORITY),
)
def _constant(data: DataReport) -> Iterator[Observation]:
    """one answer for many prompts

    {same_answer} of at least {same_answer_rows} answers are the same text; {majority} if the answers are few
    different ones, at most {few_answers} of their number, as in a choice of yes and no

    Why: The loss falls while the model learns one text.
    Scope: formats with answers; of a pair, the chosen one
    Action: look whether a column was filled with a constant
    Verify: the most frequent answers
    Seen: public repositories -- one answer for most rows
    Source: definition -- rows of the most frequent answer over all answers
    """
    answers = data.answers
    if answers.rows < SAME_ANSWER_ROWS.value:
        raise Unknown(f"{answers.rows} answers to compare, under {SAME_ANSWER_ROWS.value:g}")
    part = answers.most_common / answers.rows
    is_choice = 1 < answers.distinct <= FEW_ANSWERS.value * answers.rows  # as yes and no are
    if part >= (MAJORITY.value if is_choice else SAME_ANSWER.value):
        yield Observation(
            f"{part:.0%} of {answers.rows:,} answers are the same text",
            {"most_common": answers.most_common, "answers": answers.rows, "share": part},
        )


@DataRule(
    "DAT313",
    severity="info",
    confidence=0.8,
    groups=("data", "log"),
    thresholds=(SLIPS, DUPLICATES_MANY),
)
def duplicates(data: DataReport) -> Iterator[Observation]:
    """duplicate rows

    {slips} of the rows repeat an earlier one, or nearly repeat one; from {duplicates_many}: warning

    Why: A repeated row is trained on twice an epoch, and may be in the evaluation set, too.
    Scope: rows that are equal in every column that a trainer could read: all but an id, and for GRPO that, too; near
        is a Jaccard similarity of 0.8 of word trigrams that few rows share, among at most 5000 of the rows, like rows
        drawn together
    Action: keep one of each group
    Verify: their text (--set show_rows=true)
    Seen: public repositories -- the same row many times
    Source: Lee et al. 2022, arXiv 2107.06499 -- models trained on deduplicated text emit memorised text ten times
        less often
    """
    rows, near = data.rows_with("duplicate"), data.near
    exact = share(rows, data.rows_read)
    if exact >= SLIPS.value:
        yield on_rows(data, rows, "repeat an earlier row", severity=_of_duplicates(exact))
    part = share(near.rows, near.compared) if near is not None else 0.0
    if near is not None and part >= SLIPS.value:
        drawn = f"; these were drawn from {near.drawn_from:,}, like rows together" if near.drawn_from else ""
        yield Observation(
            f"{counted(near.rows, near.compared)} nearly repeat an earlier row{drawn}",
            values(near.rows, near.compared, drawn_from=near.drawn_from),
            severity=_of_duplicates(part),
        )
    if near is not None and near.reason:
        raise Unknown(f"near repetitions: {near.reason}")
    if data.sampled and max(exact, part) < SLIPS.value:
        raise Unknown("a sample shows few of the duplicates: --set samples=all")


def _of_duplicates(part: float) -> Severity | None:
    return "warning" if part >= DUPLICATES_MANY.value else None


@DataRule(
    "DAT314",
    severity="warning",
    confidence=0.9,
    thresholds=(SOME,),
)
def _overlap(data: DataReport) -> Iterator[Observation]:
    """the evaluation set is inside the training set

    an evaluation row is also in the training set, equal or nearly so, or its question is there with another answer;
    from {some} of the former: error

    Why: The held-out loss then measures memorization, and overfitting is not seen.
    Scope: with --eval-data; near is a Jaccard similarity of word trigrams of 0.8 and more; questions of four words and
        more are compared word for word
    Action: remove these rows from one of the sets; split by question, not by row
    Verify: the evaluation loss on the other rows
    Source: benchmarks/data.py -- what MinHash finds and misses: docs/evidence/data.md
    Source: arithmetic -- a row that was trained on is no held-out row
    """
    overlap = data.overlap
    if overlap is None:
        raise Unknown("no evaluation set is given (--eval-data)")
    kinds = ((overlap.exact, "exactly"), (overlap.by_words, "word for word"), (overlap.near, "nearly"))
    both = sum(rows.count for rows, _ in kinds)
    if both:
        parts = [f"{counted(rows, overlap.eval_rows)} {how}" for rows, how in kinds if rows.count]
        yield Observation(
            f"evaluation rows are also in the training set: {', '.join(parts)}",
            {
                "exact": overlap.exact.count,
                "by_words": overlap.by_words.count,
                "near": overlap.near.count,
                "eval_rows": overlap.eval_rows,
                "first_of_eval": next((rows.first for rows, _ in kinds if rows.count), []),
            },
            severity="error" if both >= SOME.value * overlap.eval_rows else None,
        )
    if (rows := overlap.other_answer).count:
        counts = values(rows, overlap.eval_rows)
        yield Observation(
            f"{counted(rows, overlap.eval_rows, 'evaluation rows')} ask what the training set asks, with other answers",
            {"first_of_eval" if name == "first" else name: value for name, value in counts.items()},
            confidence=0.8,
        )
    if not overlap.near_judged:
        raise Unknown(overlap.near_reason)
    if data.sampled and not both:
        raise Unknown("a sample of the training rows shows few of the overlaps: --set samples=all")


@row_test
def replacement(row: AskedRow) -> bool:
    """The text holds U+FFFD."""
    return _REPLACEMENT in row.text


@row_test
def mojibake(row: AskedRow) -> bool:
    """The text is UTF-8 that was decoded as Latin-1 or cp1252."""
    return is_mojibake(row.text)


def is_mojibake(text: str) -> bool:
    """Whether a part of the text is UTF-8 that was decoded as Latin-1 or cp1252.

    >>> is_mojibake("caf\u00c3\u00a9"), is_mojibake("caf\u00e9 S\u00c3O")
    (True, False)
    """
    return not text.isascii() and any(_decodes(hit[0]) for hit in _BROKEN.finditer(text))


def _decodes(piece: str) -> bool:
    if _MARKS.issuperset(piece[1:]):  # FET\u00d6 and an apostrophe are two bytes of UTF-8, too
        return False
    for encoding in ("cp1252", "latin-1"):
        try:
            text = piece.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
        return ord(text) < _RARE[0] or ord(text) >= _RARE[1]
    return False


@row_test
def entities(row: AskedRow) -> bool:
    """The text holds characters as HTML escapes them, and neither tags nor code nor a word of HTML."""
    text = row.text
    return "&" in text and _ENTITY.search(text) is not None and _MARKUP.search(text) is None


@row_test
def break_spelt(row: AskedRow) -> bool:
    """An answer, or a text without one, has line breaks as two letters, and no other; neither code nor quotes."""
    return "\\n" in row.text and any(
        "\n" not in one and _SPELT_BREAK.search(one) and not _QUOTES.search(one) for one in row.answers or [row.text]
    )


@row_test
def control_characters(row: AskedRow) -> bool:
    """The text holds control characters, such as those that escapes of LaTeX were read as; not by a wrong decoding."""
    return _CONTROLS.search(row.text) is not None and not is_mojibake(row.text)


@row_kinds("cell_changed", "code_flat")
def _changed(row: AskedRow) -> Iterator[str]:
    """An answer has a number or date as a spreadsheet changes it; or functions of Python whose body is not indented."""
    answer = next(iter(row.answers[-1:]), "")
    if "def " in answer and _FLAT.search(answer):
        yield "code_flat"
    is_date = "-" in answer[:8] and _CELL_DATE.match(answer)
    if not is_date and "E+" not in answer and not _DIGITS.search(answer):
        return
    asked = question_of(row.columns)
    rounded = [(hit[0], len(hit[1])) for hit in _ROUNDED.finditer(answer)]
    known = _LONG_ID.findall(asked) if rounded else []
    lost = (hit for hit in _ZEROS.finditer(asked) if hit[0] not in answer) if "0" in asked else ()
    if (
        (is_date and answer.strip() not in asked and not _DATE_ASKED.search(asked))
        or (
            known
            and any(f"{int(one):.{places}E}" == text for text, places in rounded for one in known)
            and not _FORM_ASKED.search(asked)
        )
        or any(re.search(rf"(?<![\d.,]){hit[1]}(?![\d.,]\d|\d)", answer) for hit in lost)
    ):
        yield "cell_changed"


@row_test
def unseen_characters(row: AskedRow) -> bool:
    """The text begins with a byte order mark, or has characters without width within words."""
    return not row.text.isascii() and _UNSEEN.search(row.text) is not None


@DataRule(
    "DAT318",
    severity="info",
    confidence=0.75,
    thresholds=(SLIPS,),
)
def _broken(data: DataReport) -> Iterator[Observation]:
    """broken text

    a row holds U+FFFD, or UTF-8 decoded as Latin-1, from {slips} of the rows: warning; or {slips} of them hold
    characters as HTML escapes them, such as &quot;, and neither tags nor code; line breaks as two letters, and no
    other; control characters; numbers or dates as a spreadsheet changes them; or functions of Python without indents;
    or characters without width within words, or a byte order mark: info

    Why: The model learns the broken spelling.
    Scope: rows of text
    Action: read the source as UTF-8 again (utf-8-sig takes the byte order mark); undo what was escaped once too often,
        and escape the backslashes of LaTeX in JSON
    Verify: the text of these rows (--set show_rows=true)
    Seen: https://github.com/EleutherAI/the-pile/issues/102 -- a set decoded wrongly: models write the broken
        characters
    Seen: https://github.com/LibreTranslate/LibreTranslate/issues/203 -- a model writes entities, for the texts that it
        was trained on do
    Seen: https://github.com/HKUDS/LightRAG/pull/3238 -- the backslash of LaTeX in JSON, read as a form feed
    Seen: https://genomebiology.biomedcentral.com/articles/10.1186/s13059-016-1044-7 -- spreadsheets change names to
        dates in a fifth of papers' tables
    Seen: https://github.com/Tatoeba/tatoeba2/issues/643 -- byte order marks and spaces without width in sentences
    Source: Unicode 16, U+FFFD -- stands for what could not be decoded
    """
    for rows, what in (
        (data.rows_with("replacement"), "U+FFFD, lost characters"),
        (data.rows_with("mojibake"), "text that was decoded wrongly, as UTF-8 read as Latin-1"),
    ):
        if rows.count:
            many = share(rows, data.rows_read) >= SLIPS.value
            yield on_rows(data, rows, f"hold {what}", severity="warning" if many else None)
    severities: tuple[tuple[Rows, str, Severity], ...] = (
        (data.rows_with("entities"), "hold characters as HTML escapes them (such as &quot;)", "warning"),
        (data.rows_with("break_spelt"), r"write line breaks as the two letters \n, and have no other", "warning"),
        (
            data.rows_with("control_characters"),
            r"hold control characters, as an unescaped \frac or a wrong decoding leaves",
            "warning",
        ),
        (
            data.rows_with("cell_changed"),
            "hold a number or date as a spreadsheet changes it (5.6E+13, 1-Mar, lost zeros)",
            "warning",
        ),
        (data.rows_with("code_flat"), "hold functions of Python whose body is not indented", "warning"),
        (data.rows_with("unseen_characters"), "hold a byte order mark, or characters without width in words", "info"),
    )
    for rows, says, severity in severities:
        if share(rows, data.rows_read) >= SLIPS.value:
            yield on_rows(data, rows, says, severity=severity)


@row_test
def empty_answer(row: AskedRow) -> bool:
    """A wanted answer is empty, with nothing in its place."""
    return any(unsaid(row.columns))


@row_test
def missing_value(row: AskedRow) -> bool:
    """An answer is a missing value as a program writes it, such as nan."""
    return any(answer.strip() in _MISSING for answer in row.answers)


@row_test
def missing_asked(row: AskedRow) -> bool:
    """A column beside the question is a missing value as a program writes it."""
    beside = [row.stored.get(name) for name in _BESIDE]
    return any(str(one).strip() in _MISSING | {"None", "null"} for one in beside if isinstance(one, str))


@row_test
def failure_said(row: AskedRow) -> bool:
    """The last answer is what a service says that fails, and nothing of the kind was asked."""
    return bool(row.answers and _FAILURE.match(row.answers[-1]) and not _FAILURE_ASKED.search(question_of(row.columns)))


@DataRule("DAT311", severity="warning", confidence=0.8, thresholds=(SLIPS,))
def _empty_answer(data: DataReport) -> Iterator[Observation]:
    """empty answers

    a wanted answer holds nothing but white space: no thought, call, image or sound either; or {slips} of the rows have
    an answer that is only nan, NA, TODO, [deleted] or the like, or what a service says that fails; or have such a
    value, or null, as text in a column beside the question

    Why: The model learns to answer with nothing, or with what stands for a value that is missing or yet to be written;
        or it learns on a prompt that no user writes.
    Scope: formats with answers; none, null and n/a may be answers, and are not counted; columns named input, context,
        system, document and passage
    Action: remove these rows
    Verify: their text (--set show_rows=true)
    Seen: public repositories -- rows without an answer
    Source: definition -- the answer without white space is empty, or what pandas and spreadsheets write for a missing
        value
    """
    yield from seen_in(data, data.rows_with("empty_answer"), "have an empty answer")
    yield from seen_in(
        data, data.rows_with("missing_value"), "have an answer that is only nan, <NA>, TODO or the like", at_least=SLIPS
    )
    says = "have nan, None or the like as text where nothing should stand beside the question"
    yield from seen_in(data, data.rows_with("missing_asked"), says, at_least=SLIPS)
    yield from seen_in(
        data, data.rows_with("failure_said"), "have an answer that a failing service gave, such as 502", at_least=SLIPS
    )


@DataRule("DAT356", severity="error", confidence=0.9)
def _reward_columns(data: DataReport) -> Iterator[Observation]:
    """a reward function lacks a column

    a reward function of the recipe has a parameter without default that no column has the name of

    Why: Columns are passed to reward functions by name: the first step raises a TypeError.
    Scope: GRPO and RLOO with reward_funcs in the recipe: TRL's own, or functions of a file below the recipe's folder
    Action: rename the column, or the function's parameter
    Verify: call the function with the columns of a row
    Source: trl/trainer/grpo_trainer.py:GRPOTrainer._calculate_rewards@1.16.0 -- calls reward functions with all
        columns by name
    """
    for name, lacks in data.rewards_lack.items():
        yield Observation(
            f"{name} needs {', '.join(lacks)}; the rows have {', '.join(data.columns)}",
            {"function": name, "lacks": list(lacks), "columns": list(data.columns)},
        )


RULES = (
    _reward_columns,
    _balance,
    _range,
    _unreadable,
    _empty_answer,
    _constant,
    duplicates,
    _overlap,
    _broken,
)

ROW_TESTS: RowTests = (
    empty_answer,
    missing_value,
    missing_asked,
    failure_said,
    replacement,
    mojibake,
    entities,
    break_spelt,
    control_characters,
    unseen_characters,
    _changed,
    label_as_text,
)
