"""Rules on answers and on rows beside each other: repetition, refusals, cut ends, pairs, near rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from gradience.data import question_of, text_of
from gradience.data.asked import AskedRow, RowTests, row_kinds, row_test
from gradience.rules import Observation, Threshold, Unknown
from gradience.rules.data.content import (
    HALF,
    MAJORITY,
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
from gradience.schema.reports import DataReport

THIRD = Threshold("third", 1 / 3, "share of answers", "proposal: a phrase of a third of the answers is learnt first")
REFUSING = Threshold("refusing", 0.25, "share of answers", "proposal: sets that teach refusals hold fewer")
FEW_ANSWERED = Threshold("few_answered", 50, "answers", "proposal: fewer are no sample")
FORM = Threshold("form", 0.9, "share of answers", "proposal: a phrase of all answers is the form of the task")
BIASED = Threshold("biased", 0.8, "share of pairs", "proposal: length alone then tells the chosen answer in 4 of 5")
_SCORES: Final = [
    tuple(form.format(of=of, side=side) for side in ("chosen", "rejected"))
    for of in ("score", "rating", "reward")
    for form in ("{of}_{side}", "{side}_{of}", "{side}-{of}")
]
RARELY = Threshold("rarely", 0.1, "of its share on the other side", "proposal: by chance both sides have a mark alike")
RATED = Threshold(
    "rated", 0.25, "area under the ROC curve", "proposal: far from the half of a rating that tells nothing"
)
_TOKEN: Final = re.compile(r"</?s>|<\|\w{1,40}\|>|\[/?INST\]|<(?:start|end)_of_turn>")
_ENTITY: Final = re.compile(r"&(?:quot|apos|amp|lt|gt|nbsp|#\d{2,5}|#x[0-9a-fA-F]{2,5});")
_BREAK: Final = re.compile(r"\\n(?![a-z])")
_MARKDOWN: Final = re.compile(r"\*\*\S|^#{1,4} \S|^[-*] \S", re.MULTILINE)
_ROLE: Final = re.compile(
    r"\s*(?:\*\*)?(?:Assistant|AI|Bot|Chatbot|User|Human|Response|Answer)(?:\*\*)?\s?:", re.IGNORECASE
)
_REQUEST: Final = re.compile(
    r"(?:\A|[.!?:\n])\W*(?:(?:hey|hi|hello|ok|okay|so|and|but|also|now|then|thanks|thank you|briefly|quickly)\W+)*"
    r"(?:how|what|why|who|when|where|which|can|could|would|will|do|does|is|are|please|write|give|list|describe|explain"
    r"|create|make|tell|show|generate|summari[sz]e|translate|find|compare|suggest|help|i (?:need|want|am|have)|i'm)\b",
    re.IGNORECASE,
)
_QUESTION: Final = re.compile(r"(?:[^.!?]|\.\w)*\?\s*")
_OFFERS: Final = re.compile(
    r"(?:can|may|could|do) I (?:help|assist|do for)|would you like to know|ask me (?:any|about)", re.IGNORECASE
)
_ASKED: Final = 20  # characters of a prompt from which its repetition is no chance


class _Mark(NamedTuple):
    """What answers of one side may have: from which share of them it counts, in words, and whether a text has it."""

    least: Threshold
    says: str
    has: Callable[[str, str], object]  # given the prompt and the answer


_MARKS: Final = {
    "prompt": _Mark(SOME, "begin with the whole prompt", lambda p, text: len(p) >= _ASKED and text.startswith(p)),
    "entity": _Mark(SOME, "hold characters as HTML escapes them", lambda _, text: _ENTITY.search(text)),
    "role": _Mark(SOME, "begin with the name of a role, such as Assistant:", lambda _, text: _ROLE.match(text)),
    "token": _Mark(SOME, "hold a control token as text, such as </s>", lambda _, text: _TOKEN.search(text)),
    "break": _Mark(SOME, r"write line breaks as the two letters \n", lambda _, text: _BREAK.search(text)),
    "blank": _Mark(HALF, "begin or end with white space", lambda _, text: text != text.strip()),
    "markdown": _Mark(MAJORITY, "hold marks of Markdown", lambda _, text: _MARKDOWN.search(text)),
    "open": _Mark(MAJORITY, "end without a mark that ends a sentence", lambda _, text: text.rstrip()[-1:].isalnum()),
}
_SIDES: Final = ("wanted", "unwanted")
_OPTION: Final = re.compile(r"^[ \t]*\(?([A-J])[.):][ \t]+(\S[^\n]*)", re.MULTILINE)
_SECOND: Final = re.compile(r"\n[ \t]*\(?B[.):]")
_NAMED: Final = re.compile(r"(?:^|[\s(*])([A-J])[.):]\)?\*{0,2}[ \t]+(\S[^\n]*)\Z")
_REFUSAL: Final = re.compile(
    r"\s*(?:I['\u2019]?m (?:really |very |so )?sorry|I am (?:really |very |so )?sorry|Sorry, (?:but )?I|I apologi[sz]e|"
    r"As an AI|I (?:cannot|can['\u2019]t|am unable|am not able|won['\u2019]t be able)|I['\u2019]m (?:unable|not able)|"
    r"Unfortunately, I|"
    r"(?:Es )?[Tt]ut mir leid, (?:aber )?(?:ich|da(?:bei|zu|s)?)|Leider kann ich|"
    r"Ich kann (?:dir|Ihnen|Ihre|deine|diese)\b[^.]{0,40}\bnicht|"
    r"(?:Je suis )?[Dd]\u00e9sol\u00e9e?, (?:mais )?je|Je ne peux pas|"
    r"(?:Lo siento|Lo lamento), (?:pero )?no|No puedo)\b"
)


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


@row_kinds("scored_lower", "choice_differs")
def _contradicts(row: AskedRow) -> Iterator[str]:
    """The chosen answer has the lower score; or the answer's letter is that of another option than its text."""
    scores = [[row.stored.get(name) for name in names] for names in (_SCORES if "chosen" in row.columns else ())]
    if any(isinstance(one, int | float) and isinstance(other, int | float) and one < other for one, other in scores):
        yield "scored_lower"
    listed = row.answers[-1:] if _SECOND.search(row.text) else []
    named = [hit for answer in listed if (hit := _NAMED.search(answer.rstrip(" .*\n")))]
    options = _OPTION.findall(question_of(row.columns)) if named else []
    texts = [text.strip(" .*").casefold() for _, text in options]
    told = named[0][2].strip(" .*").casefold() if named else ""
    in_order = "".join(letter for letter, _ in options) == "ABCDEFGHIJ"[: len(options)]
    if texts.count(told) == 1 and in_order and options[texts.index(told)][0] != named[0][1]:
        yield "choice_differs"


@row_test
def sides_swapped(row: AskedRow) -> bool:
    """Each answer is a question or a request, and no turn of the user is, but for a greeting that offers help."""
    turns = zip(row.turns, row.contents, strict=True)
    asked = [row.spoken["prompt"]] if isinstance(row.spoken.get("prompt"), str) else []
    asked += [content for turn, content in turns if turn.get("role") == "user"]
    answers = row.answers if "messages" in row.spoken else row.answers[:1]
    if not answers or not all(_REQUEST.match(one) or _QUESTION.fullmatch(one) for one in answers):
        return False
    return not any(
        not _OFFERS.search(one) and ("?" in one or (_REQUEST.match if i else _REQUEST.search)(one))
        for i, one in enumerate(asked)
    )


@DataRule("DAT386", severity="warning", confidence=0.65, thresholds=(REFUSING, FEW_ANSWERED))
def _exchanged(data: DataReport) -> Iterator[Observation]:
    """questions where answers should stand

    in {refusing} of at least {few_answered} rows each answer is a question or a request, and no turn of the user is

    Why: The model learns to write the user's side.
    Scope: English requests, and question marks; a user's offer of help is the assistant's; models that are to ask, such
        as interviewers, are meant to
    Action: look at these rows: columns or roles may be exchanged
    Verify: the text of a row after apply_chat_template
    Source: llamafactory/data/converter.py:SharegptDatasetConverter@0.9.4 -- what stands under gpt is learnt
    """
    rows, answers = data.rows_with("sides_swapped"), data.answers.rows
    if answers < FEW_ANSWERED.value:
        raise Unknown(f"{answers} answers, under {FEW_ANSWERED.value:g}")
    if share(rows, answers) >= REFUSING.value:
        yield on_rows(data, rows, "ask in each answer and in no turn of the user: the sides may be exchanged")


def _of_two_lists(data: DataReport) -> Iterator[Observation]:
    """The first name that stands beside several labels, each of which has several names."""
    shared = {label: names for label, names in data.label_names.items() if len(names) > 1}
    for name in dict.fromkeys(name for names in shared.values() for name in names):
        rows = {label: names[name] for label, names in shared.items() if name in names}
        if len(rows) > 1 and min(rows.values()) >= SLIPS.value * data.rows_read:
            counts = " and ".join(f"{label} ({count:,} rows)" for label, count in rows.items())
            says = f"{name} stands beside the labels {counts}, which have other names, too: they are of two lists"
            yield Observation(says, {"name": name, "labels": [*rows]})
            return


@DataRule("DAT340", severity="warning", confidence=0.85, thresholds=(SLIPS, RATED))
def _conflict(data: DataReport) -> Iterator[Observation]:
    """contradictions

    a row has the text of an earlier row and another label, or prefers what that one rejects; or in {slips} of the rows
    the chosen answer has a lower score than the rejected one, KTO's wanted answers are rated lower than its unwanted
    ones in all but {rated} of their pairs, the letter of the answer is another option's than its
    text, or a name in label_text or label_name stands beside a label that is not its own elsewhere

    Why: The two pull against each other, or the row teaches the opposite: one label is wrong.
    Scope: preferences, KTO and classification; scores in columns such as score_chosen and rejected_rating, for KTO
        rating, score, reward, stars or quality; options in lines of their own
    Action: keep one of the two; look where sides or letters were exchanged
    Verify: their text (--set show_rows=true)
    Seen: https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized -- score_chosen is the higher score
    Source: arithmetic -- one text with two labels: no answer fits both
    """
    yield from seen_in(
        data,
        data.rows_with("scored_lower"),
        "choose the answer with the lower score (unless less is better there)",
        at_least=SLIPS,
    )
    if data.rating_agrees is not None and data.rating_agrees <= RATED.value:
        yield Observation(
            f"a wanted answer has the higher rating in {data.rating_agrees:.0%} of all pairs with an unwanted one",
            {"agrees": data.rating_agrees},
        )
    yield from _of_two_lists(data)
    yield from seen_in(
        data,
        data.rows_with("choice_differs"),
        "answer with the letter of one option and the text of another",
        at_least=SLIPS,
    )
    rows = data.rows_with("conflict")
    if rows.count:
        says = (
            "prefer what an earlier row rejects" if data.pairs else "have the text of an earlier row and another label"
        )
        yield on_rows(data, rows, says)


@row_test
def thought_open(row: AskedRow) -> bool:
    """An answer begins a thought, and does not end it."""
    return any(answer.lstrip().startswith("<think>") and "</think>" not in answer for answer in row.answers)


@row_test
def thought_alone(row: AskedRow) -> bool:
    """Nothing follows the thought of an answer, no call either."""
    return any(answer.rstrip().endswith("</think>") for answer in row.answers)


@DataRule("DAT376", severity="warning", confidence=0.8, thresholds=(SLIPS,))
def _thinks_on(data: DataReport) -> Iterator[Observation]:
    """thoughts without an end, or without an answer

    in {slips} of the rows an answer begins with <think> and has no </think>, or has nothing after it

    Why: The model learns to end while it thinks: no answer follows.
    Scope: answers with their thoughts as text; a column of its own for the thought is not asked
    Action: generate these rows again with more tokens, or remove them
    Verify: the end of these answers
    Seen: https://github.com/sotanengel/qwen3-swallow-8B-RL-v0.2-AWQ-INT4-joryu-pipline/issues/232 -- thoughts cut off
        in the midst of a sentence, and rows with nothing after them
    """
    rows = data.rows_with("thought_open")
    yield from seen_in(data, rows, "have an answer that begins with <think> and never ends the thought", at_least=SLIPS)
    alone = data.rows_with("thought_alone")
    yield from seen_in(data, alone, "have an answer with nothing after </think>", at_least=SLIPS)


def _sides_of(row: AskedRow) -> Iterator[tuple[str, str]]:
    """Each answer of a pair, or the one of KTO, with its side."""
    spoken = row.spoken
    if "rejected" in spoken:
        yield from zip(_SIDES, (text_of(spoken.get("chosen")), text_of(spoken["rejected"])), strict=True)
    elif isinstance(spoken.get("label"), bool) and "completion" in spoken:
        yield _SIDES[not spoken["label"]], text_of(spoken["completion"])


@row_kinds(*(f"{side}{mark}" for side in _SIDES for mark in ("", *(f"_{name}" for name in _MARKS))))
def _marked(row: AskedRow) -> Iterator[str]:
    """The sides that a row has an answer of, and the marks of each."""
    asked = question_of(row.spoken).strip()
    for side, text in _sides_of(row):
        yield side
        yield from (f"{side}_{name}" for name, mark in _MARKS.items() if mark.has(asked, text))


@DataRule("DAT385", severity="warning", confidence=0.8, thresholds=(SOME, HALF, MAJORITY, RARELY, FEW_ANSWERED))
def _one_sided(data: DataReport) -> Iterator[Observation]:
    """a mark of one side

    of at least {few_answered} answers of each side {some} of one have what a program left in them: the whole prompt,
    entities of HTML, the name of a role, control tokens, line breaks as two letters; or {half} begin or end with white
    space; or {majority} are in Markdown or end without a mark that ends a sentence; and of the other side at most
    {rarely} of this share have it

    Why: The mark tells the sides without the answers: the loss falls, and what makes an answer better is not learnt.
    Scope: preferences and KTO
    Action: prepare both sides by the same code
    Verify: their text (--set show_rows=true)
    Seen: https://github.com/xfactlab/orpo/issues/26 -- a plain pattern of one side: accuracy is high from the start
    Source: trl/trainer/dpo_trainer.py:DPOTrainer@1.16.0 -- puts the prompt before both answers: one that repeats it has
        it twice
    """
    of = [data.rows_with(side).count for side in _SIDES]
    if min(of) < FEW_ANSWERED.value:
        raise Unknown(f"{min(of)} answers of one side, under {FEW_ANSWERED.value:g}")
    for name, mark in _MARKS.items():
        found = [data.rows_with(f"{side}_{name}") for side in _SIDES]
        shares = [share(rows, many) for rows, many in zip(found, of, strict=True)]
        most = shares.index(max(shares))
        if shares[most] >= mark.least.value and shares[1 - most] <= RARELY.value * shares[most]:
            yield Observation(
                f"{counted(found[most], of[most], f'{_SIDES[most]} answers')} {mark.says}, and "
                f"{found[1 - most].count:,} of {of[1 - most]:,} {_SIDES[1 - most]} ones do",
                values(found[most], of[most], mark=name, other=found[1 - most].count),
            )


RULES = (
    _one_sided,
    _exchanged,
    _phrases,
    _equal,
    _length_bias,
    _conflict,
    _thinks_on,
)

ROW_TESTS: RowTests = (_marked, sides_swapped, equal_pair, _contradicts, refusal, thought_open, thought_alone)
