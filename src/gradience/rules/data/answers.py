"""Rules on answers and on rows beside each other: repetition, refusals, cut ends, pairs, near rows, languages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from gradience.data import text_of
from gradience.data.asked import AskedRow, RowTests, row_kinds, row_test
from gradience.rules import Observation, Threshold, Unknown
from gradience.rules.data.content import (
    HALF,
    SAME_ANSWER,
    SLIPS,
    SOME,
    DataRule,
    counted,
    on_rows,
    seen_in,
    share,
    values,
)
from gradience.schema import Severity
from gradience.schema.reports import DataReport, Rows

THIRD = Threshold("third", 1 / 3, "share of answers", "proposal: a phrase of a third of the answers is learnt first")
REFUSING = Threshold("refusing", 0.25, "share of answers", "proposal: sets that teach refusals hold fewer")
FEW_ANSWERED = Threshold("few_answered", 50, "answers", "proposal: fewer are no sample")
TORN_ROWS = Threshold("torn_rows", 5, "answers", "proposal: fewer are slips")
FORM = Threshold("form", 0.9, "share of answers", "proposal: a phrase of all answers is the form of the task")
PROSE = Threshold("prose", 0.3, "share of answers that end with a mark", "proposal: others end without one by habit")
BIASED = Threshold("biased", 0.8, "share of pairs", "proposal: length alone then tells the chosen answer in 4 of 5")
_MARKUP: Final = re.compile(r"&(?:nbsp|amp|lt|gt|quot|#\d{2,4});|</?(?:p|br|div|span)\b[^<>]{0,80}>")
_ESCAPE: Final = re.compile(r"\\n(?=\\n|[A-Z ]|$)")
_LETTER: Final = re.compile(r"\\u(?:00|01|20)[0-9a-f]{2}")
_REFUSAL: Final = re.compile(
    r"\s*(?:I['\u2019]?m (?:really |very |so )?sorry|I am (?:really |very |so )?sorry|Sorry, (?:but )?I|I apologi[sz]e|"
    r"As an AI|I (?:cannot|can['\u2019]t|am unable|am not able|won['\u2019]t be able)|I['\u2019]m (?:unable|not able)|"
    r"Unfortunately, I|"
    r"(?:Es )?[Tt]ut mir leid, (?:aber )?(?:ich|da(?:bei|zu|s)?)|Leider kann ich|"
    r"Ich kann (?:dir|Ihnen|Ihre|deine|diese)\b[^.]{0,40}\bnicht|"
    r"(?:Je suis )?[Dd]\u00e9sol\u00e9e?, (?:mais )?je|Je ne peux pas|"
    r"(?:Lo siento|Lo lamento), (?:pero )?no|No puedo)\b"
)
_DANGLING: Final = frozenset(  # English, German, French, Spanish
    re.findall(
        r"\S+",
        "a an the of and or to in on at by for with from as that which this is are was were be but if into its der die "
        "das den dem des ein eine und oder zu auf mit von im nicht le la les du et ou \u00e0 pour dans sur une que qui "
        "el los las y para con por de se su",
    )
)
_LONG: Final = 12  # words from which an answer is prose that ends with a full stop
_LONG_LINE: Final = 6  # words of the last line of such an answer
_PLACEHOLDER: Final = re.compile(r"\[(?:INSERT|YOUR|Insert|Your)[ A-Za-z_]{0,40}\]|\{\{ ?[a-z]+_[a-z_]+ ?\}\}")
_PROSE: Final = re.compile(r"[^\W_]['\u2019\w-]*,?$")


@DataRule(
    "DAT352",
    severity="warning",
    confidence=0.8,
)
def _alike(data: DataReport) -> Iterator[Observation]:
    """labels that differ in capitals or blanks only

    two labels are equal but for capitals and blanks

    Why: One class becomes two, which the model cannot tell apart.
    Scope: classification with labels as text
    Action: write each label in one way
    Verify: the labels of these classes
    Source: definition -- labels in lower case, with single blanks
    """
    for group in data.labels_alike:
        yield Observation(f"labels differ in capitals or blanks only: {', '.join(map(repr, group))}", {"labels": group})


@row_test
def equal_pair(row: AskedRow) -> bool:
    """The chosen and the rejected answer are equal."""
    sides = [text_of(row.columns[name]).strip() for name in ("chosen", "rejected") if name in row.columns]
    return len(sides) == 2 and sides[0] == sides[1]


@DataRule(
    "DAT338",
    severity="warning",
    confidence=0.95,
    thresholds=(SLIPS,),
)
def _equal(data: DataReport) -> Iterator[Observation]:
    """chosen equals rejected

    both answers of a pair are the same; from {slips} of the pairs: error

    Why: Such a pair has no gradient towards either answer; its loss stays at log 2.
    Scope: preferences; white space at the ends aside
    Action: remove these rows, or look how the pairs were joined
    Verify: their two answers
    Source: Rafailov et al. 2023, arXiv 2305.18290, eq. 7 -- the margin of two equal answers is 0
    Source: arithmetic -- the margin of two equal answers is 0, and its gradient too
    """
    rows = data.rows_with("equal_pair")
    if rows.count:
        severity: Severity | None = "error" if share(rows, data.rows_read) >= SLIPS.value else None
        yield on_rows(data, rows, "have a chosen answer that equals the rejected one", severity=severity)


@DataRule(
    "DAT339",
    severity="warning",
    confidence=0.8,
    thresholds=(BIASED, FEW_ANSWERED),
)
def _length_bias(data: DataReport) -> Iterator[Observation]:
    """length tells the chosen answer

    in {biased} of at least {few_answered} pairs the chosen answer is the longer one, or the shorter one

    Why: The model may learn length in place of what makes an answer better.
    Scope: preferences, in characters
    Action: match the lengths of both sides, or use a loss that normalises length
    Verify: the reward's accuracy on pairs whose chosen answer is the other one
    Seen: public repositories -- the longer answer is the chosen one
    Source: Singhal et al. 2023, arXiv 2310.03716 -- length explains most of the gain of reward models
    """
    pairs = data.pairs
    if pairs is None:
        raise Unknown("the rows are no pairs")
    if pairs.compared < FEW_ANSWERED.value:
        raise Unknown(f"{pairs.compared} pairs, under {FEW_ANSWERED.value:g}")
    longer, shorter = pairs.chosen_longer / pairs.compared, pairs.rejected_longer / pairs.compared
    part, word = (longer, "longer") if longer >= shorter else (shorter, "shorter")
    if part >= BIASED.value:
        yield Observation(
            f"the chosen answer is the {word} one in {part:.0%} of {pairs.compared:,} pairs (on average "
            f"{pairs.chosen_mean:,.0f} characters, rejected {pairs.rejected_mean:,.0f}): a rule that only compares "
            f"lengths would be right in {part:.0%}",
            {"share": part, "pairs": pairs.compared, "chosen": pairs.chosen_mean, "rejected": pairs.rejected_mean},
        )


@row_test
def refusal(row: AskedRow) -> bool:
    """The answer begins as a refusal or an apology."""
    return any(_REFUSAL.match(answer) for answer in row.answers[:1])


@DataRule(
    "DAT334",
    severity="warning",
    confidence=0.7,
    thresholds=(REFUSING, THIRD, FORM, FEW_ANSWERED),
)
def _phrases(data: DataReport) -> Iterator[Observation]:
    """one phrase in many answers

    {refusing} of at least {few_answered} answers begin as a refusal, or {third} share a sentence or their
    beginning; from {form} info: it may be the form of the task

    Why: The phrase is what the model learns first, and writes everywhere.
    Scope: formats with answers, at most 5000 drawn from all; sentences of prose of four words and more, beginnings
        of six; refusals in English, German, French and Spanish
    Action: remove the phrase, or these rows
    Verify: their text (--set show_rows=true)
    Seen: public repositories -- one phrase in most answers
    Source: definition -- answers with the most frequent sentence over all answers compared
    """
    refusing, answers = data.rows_with("refusal"), data.answers.rows
    if answers < FEW_ANSWERED.value:
        raise Unknown(f"{answers} answers, under {FEW_ANSWERED.value:g}")
    if refusing.count >= REFUSING.value * answers:
        yield Observation(
            f"{counted(refusing, answers, 'answers')} begin as a refusal or an apology", values(refusing, answers)
        )
        return
    repeated = data.repeated
    is_one = data.answers.most_common >= SAME_ANSWER.value * answers  # one whole answer is for DAT312
    if not is_one and repeated.answers >= FEW_ANSWERED.value and repeated.rows.count >= THIRD.value * repeated.answers:
        yield Observation(
            f"{counted(repeated.rows, repeated.answers, 'answers')} share a sentence or their beginning",
            values(repeated.rows, repeated.answers),
            severity="info" if repeated.rows.count >= FORM.value * repeated.answers else None,
        )


@row_kinds("ended", "dangling", "torn")
def _ending(row: AskedRow) -> Iterator[str]:
    """How the prose of an answer ends."""
    return filter(None, map(ending, row.answers[:1]))


def ending(answer: str) -> str:
    """How the prose of an answer ends: `ended`, `dangling` without a full stop, `torn` after "of the" or a comma.

    Empty for what is no prose: few words, a list, a heading, code.

    >>> ending("word " * 12 + "."), ending("word " * 12 + "end"), ending("word " * 12 + "of the"), ending("no")
    ('ended', 'dangling', 'torn', '')
    """
    text = answer.rstrip()
    line = text.rpartition("\n")[2]
    if text.count(" ") < _LONG - 1 or line[:1] in "#-*|>`\t {}[]1234567890" or line.count(" ") < _LONG_LINE - 1:
        return ""
    if not _PROSE.search(line):
        return "ended"
    last = line.rpartition(" ")[2]
    return "torn" if last.endswith(",") or last in _DANGLING else "dangling"


@DataRule(
    "DAT335",
    severity="info",
    confidence=0.65,
    thresholds=(SOME, PROSE, SLIPS, TORN_ROWS, FEW_ANSWERED),
)
def _cut_in_source(data: DataReport) -> Iterator[Observation]:
    """answers are cut in the source

    {some} of the answers of prose end without a mark while {prose} end with one, {some} of them with a comma
    or a word such as `of`; a warning if {slips} of all, and at least {torn_rows}, do

    Why: The end token is learnt in the middle of sentences.
    Scope: answers of twelve words and more whose last line is no list, heading or code; words of English, German,
        French and Spanish
    Action: look where the source was cut: a limit of tokens or characters when the answers were made
    Verify: their text (--set show_rows=true)
    Source: definition -- answers of prose by how they end
    """
    ended, dangling, torn = data.rows_with("ended"), data.rows_with("dangling"), data.rows_with("torn")
    prose = ended.count + dangling.count + torn.count
    if prose < FEW_ANSWERED.value:
        raise Unknown(f"{prose} answers of prose, under {FEW_ANSWERED.value:g}")
    is_torn = torn.count >= max(SLIPS.value * prose, TORN_ROWS.value)
    both = Rows(count=torn.count + dangling.count, first=torn.first or dangling.first)
    stops = ended.count >= PROSE.value * prose and both.count >= SOME.value * prose
    if is_torn or (stops and torn.count >= SOME.value * both.count):
        yield Observation(
            f"{counted(both, prose, 'answers of prose')} stop in the middle of a sentence, {torn.count:,} of them "
            "after a comma or a word such as `of`",
            values(both, prose, torn=torn.count),
            severity="warning" if is_torn else None,
        )


@DataRule("DAT340", severity="warning", confidence=0.85)
def _conflict(data: DataReport) -> Iterator[Observation]:
    """contradicting rows

    a row has the text of an earlier row and another label, or prefers what that one rejects

    Why: The two rows pull against each other; one label is wrong.
    Scope: preferences, KTO and classification
    Action: keep one of the two
    Verify: their text (--set show_rows=true)
    Source: arithmetic -- one text with two labels: no answer fits both
    """
    rows = data.rows_with("conflict")
    if rows.count:
        says = (
            "prefer what an earlier row rejects" if data.pairs else "have the text of an earlier row and another label"
        )
        yield on_rows(data, rows, says)


@DataRule(
    "DAT342",
    severity="warning",
    confidence=0.65,
    thresholds=(HALF, SLIPS),
)
def _documents(data: DataReport) -> Iterator[Observation]:
    """several documents in a row

    the label that begins {half} of the rows begins a later line again in {slips} of them

    Why: Documents that no end token parts are learnt as one.
    Scope: rows of text that begin with a label, such as Title: or ### Instruction:
    Action: split these rows, or put the end token between the documents
    Verify: their text (--set show_rows=true)
    Source: definition -- lines that begin as most rows begin
    """
    texts = data.documents
    if not texts.rows:
        raise Unknown("the rows are no text")
    single = texts.begun - texts.joined.count
    begins = texts.begun >= HALF.value * texts.rows and single >= HALF.value * texts.joined.count
    if begins and texts.joined.count >= SLIPS.value * texts.rows:
        yield Observation(
            f"{counted(texts.joined, texts.rows)} hold {texts.label!r}, which begins most rows, on later lines again: "
            "several documents in one row",
            values(texts.joined, texts.rows),
        )


@DataRule(
    "DAT346",
    severity="warning",
    confidence=0.7,
    thresholds=(SOME,),
)
def _languages(data: DataReport) -> Iterator[Observation]:
    """another language than stated

    {some} of the rows have an answer in another language than their column language or lang states

    Why: The model learns to change language.
    Scope: rows with a column language or lang; answers of 60 characters and more
    Action: remove these rows, or correct the column
    Verify: their text (--set show_rows=true)
    Source: definition -- the language that py3langid finds, where it is sure
    """
    languages = data.languages
    if languages.reason or not languages.stated:
        raise Unknown(languages.reason or "no row states its language (a column language or lang)")
    if share(languages.rows, languages.stated) >= SOME.value:
        yield Observation(
            f"{counted(languages.rows, languages.stated)} have an answer in another language than they state",
            values(languages.rows, languages.stated),
        )


@row_kinds("markup", "escaped_letters", "escaped_breaks")
def _of_markup(row: AskedRow) -> Iterator[str]:
    """An answer holds tags or entities of HTML, letters as escapes of JSON, or such escapes in place of breaks."""
    if any(map(_MARKUP.search, row.answers)):
        yield "markup"
    if any(map(_LETTER.search, row.answers)):
        yield "escaped_letters"
    # An answer that has line breaks, too, speaks of the sign, as code does.
    if any("\\n" in answer and "\n" not in answer and _ESCAPE.search(answer) for answer in row.answers):
        yield "escaped_breaks"


@DataRule(
    "DAT345",
    severity="info",
    confidence=0.6,
    thresholds=(SOME,),
)
def _marked_up(data: DataReport) -> Iterator[Observation]:
    """markup left in answers

    {some} of the rows hold HTML tags or entities in an answer, or {some} the escapes of JSON in place of
    line breaks or letters

    Why: The model learns to write the markup.
    Scope: formats with answers
    Action: unescape the source, if the answers are not meant to hold markup
    Verify: their text (--set show_rows=true)
    Source: definition -- entities such as &nbsp;, tags such as <br>
    """
    yield from seen_in(data, data.rows_with("markup"), "hold tags or entities of HTML in an answer", at_least=SOME)
    yield from seen_in(data, data.rows_with("escaped_letters"), "hold letters as `\\u00e9` in an answer", at_least=SOME)
    yield from seen_in(
        data, data.rows_with("escaped_breaks"), "hold `\\n` as two characters in an answer", at_least=SOME
    )


@row_test
def placeholder(row: AskedRow) -> bool:
    """An answer holds a placeholder that was to be filled in."""
    return any(map(_PLACEHOLDER.search, row.answers))


@DataRule(
    "DAT353",
    severity="info",
    confidence=0.6,
    thresholds=(SLIPS,),
)
def _placeholder(data: DataReport) -> Iterator[Observation]:
    """placeholders in answers

    {slips} of the rows have an answer with [INSERT NAME], a name in double braces or the like

    Why: The model learns to write the placeholder.
    Scope: formats with answers
    Action: fill them in, if the answers are not meant to be forms
    Verify: their text (--set show_rows=true)
    Source: definition -- [INSERT ...], [YOUR ...], and names with _ in double braces
    """
    return seen_in(data, data.rows_with("placeholder"), "have an answer with a placeholder", at_least=SLIPS)


RULES = (
    _phrases,
    _cut_in_source,
    _equal,
    _length_bias,
    _conflict,
    _documents,
    _marked_up,
    _alike,
    _placeholder,
    _languages,
)

ROW_TESTS: RowTests = (equal_pair, refusal, _ending, _of_markup, placeholder)
