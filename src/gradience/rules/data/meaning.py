"""Rules on what rows mean: secrets, answers that stand in the question, empty references, classes told by form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from gradience.data import ANSWERERS, content_of, question_of, turns_of
from gradience.data.asked import AskedRow, RowTests, row_kinds, row_test
from gradience.data.formats import REFERENCES
from gradience.errors import few
from gradience.rules import Observation, Threshold, Unknown, premise
from gradience.rules.data.content import (
    FEW_LABELS,
    HALF,
    MAJORITY,
    SLIPS,
    SOME,
    DataRule,
    counted,
    on_rows,
    seen_in,
    share,
    values,
)
from gradience.schema.reports import DataReport
from gradience.telemetry.tokens import BEGINNING, shapes

TOLD = Threshold(
    "told", 0.95, "area under the ROC curve", "arXiv 2212.08399: classes whose lengths hardly overlap are told by them"
)
KNOWN_WORDS = Threshold("known_words", 30, "words", "proposal: fewer are no sample")
CUT_LENGTH = Threshold(
    "cut_length", 100, "characters", "proposal: shorter texts are of one length by their form, as dates and codes are"
)
CELL = Threshold("cell", 32_767, "characters", "Excel specifications and limits: what a cell holds")
CUT_SHARE = Threshold("cut_share", 0.2, "of such answers", "public sets with 20 such answers and more: at most 0.05")
_SAID: Final = frozenset({"prompt", "completion", "chosen"})
_GIVEN: Final = ("solution", "answer", "ground_truth")  # references that no prompt states as the aim
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?")
_TRANSFERS: Final = re.compile(r"translat|\u00fcbersetz|traduis|traduc|summari[sz]|zusammenfass", re.IGNORECASE)
_QUOTE_ASKED: Final = re.compile(
    r"\b(?:cop(?:y|ies)|quot(?:e|es|ing)|verbatim|extract|repeat|span|exact(?:ly)?|word for word|highlight|select"
    r"|choose|which of|which (?:sentence|line|option)|options?|zitier|kopier)\b",
    re.IGNORECASE,
)
_QUOTED: Final = 4  # words of an answer from which its standing in the question is no chance
_PASTED: Final = 60  # characters that all turns of a user begin with, from which they are no greeting
_SENTENCES: Final = 3  # ends of sentences within an answer
_LEAST: Final = 15  # characters without a blank that a secret has at least, and few words: it saves the longer search
_BLOCKS: Final = ("-----BEGIN", "Private-Lines")  # which begin one of several words
_DATA_URL: Final = re.compile(r"data:[\w.+/-]{3,80};base64,[A-Za-z0-9+/=]{200}")
_WHO: Final = re.compile(
    r"\s*(?:You are|You're|Act as|Du bist|Tu es|Vous \u00eates|Eres)\b|\s*\u4f60\u662f", re.IGNORECASE
)
_CALL: Final = re.compile(r"<tool_call>\s*(\{.*?)\s*(?:</tool_call>|<tool_call>|\Z)", re.DOTALL)
_ROLE: Final = re.compile(r"\s*(?:\*\*)?(?:Assistant|AI|Bot|Chatbot|ChatGPT|User|Human)(?:\*\*)?\s?:", re.IGNORECASE)
_OTHERS_TURN: Final = re.compile(r"^(?:User|Human): .*\n(?:.*\n){0,8}?(?:Assistant|AI|Bot|Chatbot): ", re.MULTILINE)
_TALK: Final = re.compile(r"dialog|conversation|chat|transcript|script|interview|\brole|\bturns?\b", re.IGNORECASE)
_SENTENCE_END: Final = re.compile(r"[.!?]\s+\S")
_FENCE: Final = re.compile(r"^\s*```", re.MULTILINE)
_ITEM: Final = re.compile(r"\s*(?:[-*+#>|\u2022]|\d+[.)])")
_LINE: Final = 80  # characters of a last line from which it is no heading and no signature
_PLACEHOLDER: Final = re.compile(r"(?<![\\\w${}%])(\{\{? ?[A-Za-z][A-Za-z_ ]{1,29}\}?\})(?![\w}])")
_UNFILLED: Final = re.compile(r"(?<!\{)\{\{ ?[A-Za-z][\w ]{1,29}\}\}(?!\})")
_TEMPLATE_ASKED: Final = re.compile(
    r"template|placeholder|jinja|latex|json|f-string|format|variable|css|html|regex|blank|schema|brace|string|\\|\$",
    re.IGNORECASE,
)
_END: Final = re.compile(r"(?:</([A-Za-z_]\w{0,20})>|\[(?:EOS|PAD|UNK)\])\s*\Z")
_EXPORT: Final = re.compile(
    r"\n\[?\d{1,2}[/.]\d{1,2}[/.]\d{2,4},? \d{1,2}:\d{2}(?::\d{2})?(?:\s?[AaPp][Mm])?\]?(?: -)? [^:\n]{1,40}:"
)
_PYTHON: Final = re.compile(r"\s*(?:[\[{(]+'[^'\n]{0,200}'\s*[\]}),:]|array\(\[)")
_CODE_ASKED: Final = re.compile(
    r"python|\bcode\b|\b(?:list|tuple|dict|array|set|function|script|print|return|evaluate|expression)s?\b|\bdef |```",
    re.IGNORECASE,
)
_JSON: Final = re.compile(r"\s*(?:\{\s*[\"}]|\[\s*[\[{\"\]])")


@row_test
def secret(row: AskedRow) -> bool:
    """The text holds a key or a token, known by its shape."""
    text = row.text
    if not any(block in text for block in _BLOCKS):
        text = " ".join([word for word in text.split() if len(word) >= _LEAST])
    return BEGINNING.search(text) is not None and any(shape.search(text) for _, shape in shapes())


@DataRule("DAT367", severity="warning", confidence=0.85)
def _secrets(data: DataReport) -> Iterator[Observation]:
    """secrets in rows

    a row holds what has the shape of a key or a token: of a hub, a cloud, a vendor, a private key

    Why: A model repeats what it was trained on, and whoever has its weights can ask for it.
    Scope: texts; secrets that are known by their shape, as the recorder knows them, and not by a name beside them
    Action: revoke the secret, and remove it from the rows
    Verify: these rows
    Source: https://huggingface.co/docs/hub/security-secrets -- the hub scans what is pushed, since such keys leak
    Source: Carlini et al. 2021, arXiv 2012.07805 -- keys and addresses were extracted from a trained language model
    """
    return seen_in(data, data.rows_with("secret"), "hold what has the shape of a key or a token")


@row_kinds("answer_in_question", "source_copied")
def _given_away(row: AskedRow) -> Iterator[str]:
    """The whole last answer, of four words and more, stands in what was asked, and is half of a text to translate.

    Where a reward knows the answer, that one is looked for; a number, at the end of the numbers.
    """
    references = [row.stored[name] for name in _GIVEN if name in row.stored] if "completion" not in row.spoken else []
    answers = (row.answers[-1:] if "messages" in row.spoken else row.answers) or [str(one) for one in references]
    answer, prompt = next(iter(answers), "").strip(), row.spoken.get("prompt")
    asked = [prompt] if isinstance(prompt, str) else [content_of(one) for one in row.turns if one.get("role") == "user"]
    if not row.answers:  # all that GRPO gives the model, its own turn too
        asked = [*asked, *(content_of(one) for one in turns_of(prompt) if one.get("role") in ANSWERERS)]
    if len(answer.split()) < _QUOTED:
        if not row.answers and _NUMBER.fullmatch(answer) and _NUMBER.findall("".join(asked[-1:]))[-1:] == [answer]:
            yield "answer_in_question"
    elif any(answer in one for one in asked):
        if not _QUOTE_ASKED.search(" ".join([*row.contents, *asked]).replace(answer, " ")):
            yield "answer_in_question"
        if 2 * len(answer) >= len(asked[-1]) and _TRANSFERS.search(" ".join([*row.contents, *asked])):
            yield "source_copied"


@DataRule("DAT368", severity="warning", confidence=0.7, thresholds=(HALF, SOME, MAJORITY))
def _leaks(data: DataReport) -> Iterator[Observation]:
    """the answer stands in the question

    in {half} of the rows the whole answer stands in the question, in {some} it is the text to be translated or
    summed up, or in {majority} the name of the row's class and of no other stands in the text

    Why: The model learns to copy; where nothing is given to copy it has learnt nothing.
    Scope: answers of four words and more, letter for letter, unless what is asked speaks of quoting, extracting,
        choosing or the like; of GRPO's solution, answer or ground_truth a number, too, if it is the last one of the
        question or of a turn of the model in it; classes that are named by words
    Action: look whether the answer was meant to be given
    Verify: the text of these rows (--set show_rows=true)
    Seen: https://github.com/jiacheng-ye/ZeroGen/issues/2 -- the name of the class in the prompt
    Source: definition -- the answer is a part of the question
    """
    of = data.rows_read
    for rows, limit, says in (
        (data.rows_with("answer_in_question"), HALF, "the whole answer stands in the question"),
        (data.rows_with("source_copied"), SOME, "the answer is the text that it should translate or sum up"),
        (data.rows_with("label_in_text"), MAJORITY, "the text names the row's own class and no other"),
    ):
        if rows.count and share(rows, of) >= limit.value:
            yield Observation(f"in {counted(rows, of)} {says}", values(rows, of))
            break


@row_test
def no_reference(row: AskedRow) -> bool:
    """A column that a reward compares with is empty."""
    stored = row.stored if row.spoken.keys() & _SAID == {"prompt"} else {}
    return any(stored[name] in (None, "", []) or str(stored[name]).isspace() for name in REFERENCES & stored.keys())


@premise("rewards compare with a column")
def _referenced(data: DataReport) -> str | None:
    has = data.trainer == "grpo" and not REFERENCES.isdisjoint(data.columns)
    return None if has else "no column that rewards compare with"


@DataRule("DAT369", severity="warning", confidence=0.8, needs=(_referenced,), thresholds=(SLIPS,))
def _unreferenced(data: DataReport) -> Iterator[Observation]:
    """nothing to compare an answer with

    in {slips} of the rows a column that a reward compares with, such as solution, is empty

    Why: Whatever the model writes gets the same reward, so the row teaches nothing; some functions give full marks.
    Scope: GRPO and RLOO; solution, answer, ground_truth, target, label, reference
    Action: remove these rows, or give the column that holds the answer to the reward
    Verify: the reward of these rows
    Seen: https://github.com/huggingface/open-r1/issues/503 -- the column solution is empty, and the accuracy has
        nothing to parse
    """
    columns = [name for name in data.columns if name in REFERENCES]
    named = few(columns) if len(columns) == 1 else f"one of {few(columns)}"
    return seen_in(
        data, data.rows_with("no_reference"), f"have nothing in {named}, with which a reward compares", at_least=SLIPS
    )


@row_test
def image_as_text(row: AskedRow) -> bool:
    """A message or a text holds a file coded in base64."""
    return "base64," in row.text and _DATA_URL.search(row.text) is not None


@DataRule("DAT370", severity="warning", confidence=0.9)
def _images_as_text(data: DataReport) -> Iterator[Observation]:
    """a file as text

    a text holds a data: URL with 200 characters of base64 and more

    Why: A tokenizer makes thousands of tokens of it, which the model reads as letters, and not as an image.
    Scope: texts; not a part of a message that is an image, nor a column of images
    Action: move the file to a part of type image, or remove it
    Verify: the length of these rows in tokens
    Seen: https://github.com/vllm-project/vllm/issues/6324 -- an image of base64 in the prompt takes 254,201 tokens
    """
    return seen_in(data, data.rows_with("image_as_text"), "hold a file coded in base64 in the midst of a text")


@row_test
def call_unparsed(row: AskedRow) -> bool:
    """A call that is written in an answer begins as JSON and is none."""
    return any("<tool_call>" in answer and not all(map(_parses, _CALL.findall(answer))) for answer in row.answers)


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@DataRule("DAT371", severity="warning", confidence=0.85)
def _unparsed(data: DataReport) -> Iterator[Observation]:
    """calls that no parser reads

    between <tool_call> and </tool_call> an answer has what begins as a JSON object and is none

    Why: The model learns to write calls that the server rejects, or hands on as text.
    Scope: answers with calls written as text, as the templates of Hermes and Qwen write them
    Action: correct these calls, or remove their rows
    Verify: json.loads of each call
    Source: vllm/tool_parsers/hermes_tool_parser.py:Hermes2ProToolParser@0.11.0 -- what stands between the two marks
        is read by json.loads
    """
    return seen_in(data, data.rows_with("call_unparsed"), "hold a <tool_call> that is no JSON")


@row_test
def system_pasted(row: AskedRow) -> bool:
    """All of several turns of the user begin with one text of 60 characters and more."""
    asked = [content for turn, content in zip(row.turns, row.contents, strict=True) if turn.get("role") == "user"]
    return len(asked) > 1 and all(
        len(one) >= _PASTED and one[:_PASTED] == other[:_PASTED] for one, other in pairwise(asked)
    )


@row_test
def told_who(row: AskedRow) -> bool:
    """The first question begins by telling the model who it is, and no turn of the role system does."""
    first = next(iter(row.turns), {})
    return first.get("role") == "user" and len(row.contents[0]) >= _PASTED and bool(_WHO.match(row.contents[0]))


@DataRule("DAT372", severity="warning", confidence=0.7, thresholds=(SOME, HALF))
def _pasted(data: DataReport) -> Iterator[Observation]:
    """a system text in the questions

    in {some} of the rows all turns of the user begin with the same 60 characters; info if in {half} of the rows the
    first one tells the model who it is, and no system turn does

    Why: The model learns to expect the text before each question, and its tokens are paid for at every turn.
    Scope: conversations; those with two questions and more, or a first one of 60 characters that begins with You are
    Action: put the text into one turn of the role system
    Verify: the first turns of a row after apply_chat_template
    Seen: https://github.com/lm-sys/FastChat/issues/386 -- whether an instruction goes before every turn or the first
    """
    told, says = data.rows_with("told_who"), "tell the model who it is in the user's turn, and have no system turn"
    yield from seen_in(
        data, data.rows_with("system_pasted"), "repeat one text before every question of the user", at_least=SOME
    )
    if share(told, data.rows_read) >= HALF.value:
        yield on_rows(data, told, says, severity="info")


@premise("the rows have classes")
def _classes(data: DataReport) -> str | None:
    if data.trainer != "classification" or data.labels_total < 2:  # one class is for DAT315
        return "the rows do not have two classes"
    fewest = min(data.labels.values())
    return None if fewest >= FEW_LABELS.value else f"{fewest} rows of one class, under {FEW_LABELS.value:g}"


@DataRule("DAT373", severity="info", confidence=0.9, needs=(_classes,), thresholds=(FEW_LABELS,))
def _sorted(data: DataReport) -> Iterator[Observation]:
    """a file sorted by class

    all rows of a class, at least {few_labels} of each, stand together

    Why: A part cut from the front or the end lacks classes, and so does the beginning of a stream; batches that are
        not shuffled are of one class.
    Scope: classification; Trainer shuffles a data set, and no stream and no evaluation set
    Action: shuffle the file once
    Verify: the labels of its first and last hundred rows
    Seen: https://github.com/zalandoresearch/fashion-mnist/pull/5 -- rows sorted by label: who takes a part for
        validation gets one class
    Seen: https://github.com/Project-MONAI/tutorials/issues/122 -- trained on one class and validated on the other
    """
    if data.label_stretches == data.labels_total:
        yield Observation(
            f"the {data.rows_read:,} rows are sorted by their {data.labels_total} classes",
            {"classes": data.labels_total, "stretches": data.label_stretches},
        )


@DataRule("DAT374", severity="warning", confidence=0.75, needs=(_classes,), thresholds=(TOLD, FEW_LABELS))
def _told_by_length(data: DataReport) -> Iterator[Observation]:
    """the length of the text tells its class

    of a text of one class and one of the others, the longer is of the same side in {told} of all pairs

    Why: The model learns the length, and is right on such data and no other.
    Scope: classification, enough rows of each class; lengths in characters
    Action: look how the texts of each class were collected; compare with a classifier of lengths
    Verify: accuracy on texts of one length
    Seen: https://github.com/AMontgomerie/CEFR-English-Level-Predictor -- texts of level A1 are the shorter ones in 96 %
        of 1 494 texts' pairs
    Source: arXiv 2212.08399 -- classes of other lengths make encoders classify by length
    Source: Mann and Whitney 1947, doi 10.1214/aoms/1177730491 -- the share of pairs in order is the area under the
        curve
    """
    if (told := data.length_tells) is None:
        raise Unknown("no text is classified")
    part, longer = max((told, "longer"), (1 - told, "shorter"))
    if part >= TOLD.value:
        label = next(iter(data.labels))
        yield Observation(
            f"in {part:.0%} of all pairs with a text of another class, that of class {label} is the {longer} one",
            {"label": label, "auc": told},
        )


@DataRule("DAT375", severity="warning", confidence=0.65, thresholds=(SOME,))
def _answered_in(data: DataReport) -> Iterator[Observation]:
    """answers in another language than the question

    {some} of the rows have a question in one language and an answer in another, and no word asks for it

    Why: A question in one language and its answer in another teach to change between them.
    Scope: questions and answers of 60 characters and more, code and tables left out, at most 1000 drawn from all
    Action: remove these rows, or say in the question which language is wanted
    Verify: their text (--set show_rows=true)
    Seen: https://github.com/simplescaling/s1/issues/65 -- 150 of 1000 rows answer English questions with Chinese
        words
    Source: definition -- the languages that py3langid finds, where it is sure of both
    """
    asked = data.answered
    if asked.reason or not asked.stated:
        raise Unknown(asked.reason or "no question and answer of 60 characters")
    if share(asked.rows, asked.stated) >= SOME.value:
        says = "are answered in another language than the question's, which asks for none"
        yield Observation(f"{counted(asked.rows, asked.stated)} {says}", values(asked.rows, asked.stated))


@row_kinds("role_said", "tag_left", "exported", "turns_within")
def _left_over(row: AskedRow) -> Iterator[str]:
    """An answer begins with a role's name, ends with a tag that nothing opened, or holds further turns.

    Or a line is a chat's export.
    """
    answers = row.answers
    if any(map(_OTHERS_TURN.search, answers)) and not _TALK.search(question_of(row.columns)):
        yield "turns_within"
    if any(map(_ROLE.match, answers)):
        yield "role_said"
    ends = [(answer, end) for answer in answers if answer.rstrip()[-1:] in {">", "]"} and (end := _END.search(answer))]
    if any(end[1] is None or f"<{end[1]}" not in answer + question_of(row.columns) for answer, end in ends):
        yield "tag_left"
    if answers and ("<Media omitted>" in row.text or _EXPORT.search(f"\n{row.text}")):
        yield "exported"


@DataRule("DAT377", severity="warning", confidence=0.75, thresholds=(SOME,))
def _leavings(data: DataReport) -> Iterator[Observation]:
    """what another program wrote around the texts

    in {some} of the rows an answer begins with the name of a role, ends with a closing tag that nothing opened or with
    [EOS], or has a line of the user and one of the assistant, which nobody asked for; or a row has the dates and names
    of a chat's export

    Why: The model learns to write it with each answer; the template marks turns by tokens of its own.
    Scope: formats with answers; control tokens such as </s> are for DAT328 and DAT329
    Action: cut it off before training
    Verify: their text (--set show_rows=true)
    Seen: https://github.com/karpathy/llama2.c/issues/404 -- the answer goes on with a line of ### Human
    Source: definition -- what begins, ends or dates a turn is no part of what was said
    """
    for rows, says in (
        (data.rows_with("role_said"), "have an answer that begins with the name of a role, such as Assistant:"),
        (data.rows_with("tag_left"), "have an answer that ends with a tag that nothing opened, or with [EOS]"),
        (data.rows_with("turns_within"), "have an answer that goes on with turns of the user and the assistant"),
        (data.rows_with("exported"), "hold the dates and names of a chat's export, or <Media omitted>"),
    ):
        yield from seen_in(data, rows, says, at_least=SOME)


@DataRule("DAT379", severity="warning", confidence=0.85)
def _spellings(data: DataReport) -> Iterator[Observation]:
    """one class under several names

    names of classes differ in case, blanks, hyphens or underscores only

    Why: To the trainer each spelling is a class of its own: rows that are alike pull apart, and accuracy counts a right
        answer as wrong.
    Scope: classification; the 50 most frequent names
    Action: write each class in one way
    Verify: the classes after the change
    Seen: https://github.com/explosion/prodigy-openai-recipes/pull/31 -- a case that no screen shows stays in the
        data
    """
    if data.trainer != "classification" or data.labels_total < 2:
        raise Unknown("the rows do not have two classes")
    spelt: dict[str, list[str]] = {}
    for name in data.labels:
        key = name if _number(name) else re.sub(r"[\s_-]+", "", name.casefold())
        spelt.setdefault(key, []).append(name)
    for names in spelt.values():
        if len(names) > 1:
            counts = {name: data.labels[name] for name in names}
            yield Observation(
                f"one class is written in {len(names)} ways: "
                + ", ".join(f"{name!r} ({count:,} rows)" for name, count in counts.items()),
                {"names": names, "rows": sum(counts.values())},
            )


def _number(name: str) -> bool:
    return name.lstrip("-").replace(".", "").isdecimal()  # -1 and 1 are two classes


@row_kinds("json_said", "json_broken", "python_said", "code_asked")
def _notation(row: AskedRow) -> Iterator[str]:
    """The last answer is JSON, begins as JSON and is none, or is a value of Python, and code was asked for."""
    answer = next(iter(row.answers[-1:] if "messages" in row.spoken else row.answers), "")
    python = _PYTHON.match(answer) is not None
    if not python and _JSON.match(answer) is None:
        return
    if not python and _parses(answer):
        yield "json_said"
        return
    yield "python_said" if python else "json_broken"
    asked = " ".join([question_of(row.columns), *(one for one in row.contents if one != answer)])
    if _CODE_ASKED.search(asked) and "json" not in asked.casefold():
        yield "code_asked"


@DataRule("DAT381", severity="warning", confidence=0.7, thresholds=(HALF, SLIPS))
def _unreadable_values(data: DataReport) -> Iterator[Observation]:
    """values that no parser of JSON reads

    {half} of the answers are, or begin as, objects or lists, and {slips} of all are values as Python prints them, such
    as ['a'] or array([...]), or begin as JSON and are none; unless {half} of these were asked for code, or for a list,
    and JSON was not spoken of

    Why: The model learns to write them, and what reads its answers fails. Python prints a value where text was asked.
    Scope: whole answers; JSON within prose is not judged
    Action: json.dumps the values; correct or remove what is cut
    Verify: json.loads of each answer
    Seen: https://github.com/qcri/llmxcpg/issues/15 -- single quotes in the values of a training set: models write them
    Seen: https://github.com/tetherto/qvac/pull/1092 -- calls in Python's syntax in place of JSON
    """
    broken, python, answers = data.rows_with("json_broken"), data.rows_with("python_said"), data.answers.rows
    said, bad = data.rows_with("json_said").count, broken.count + python.count
    wanted = data.rows_with("code_asked").count >= HALF.value * max(bad, 1) and said < bad
    if not wanted and said + bad >= HALF.value * max(answers, 1):
        for rows, says in ((python, "are values as Python prints them"), (broken, "begin as JSON, and are none")):
            if share(rows, answers) >= SLIPS.value:
                yield Observation(f"{counted(rows, answers, 'answers')} {says}", values(rows, answers))


@row_test
def header(row: AskedRow) -> bool:
    """Each of several columns holds its own name."""
    return len(row.stored) > 1 and all(
        isinstance(value, str) and len(value) <= 2 * len(name) and value.strip().casefold() == name.strip().casefold()
        for name, value in row.stored.items()
    )


@DataRule("DAT382", severity="warning", confidence=0.95)
def _headers(data: DataReport) -> Iterator[Observation]:
    """a header among the rows

    in a row of several columns each holds the column's own name

    Why: Files were joined with their first lines: the names are trained on as text, and as a class of their own.
    Scope: rows whose columns are text
    Action: join the files without their first lines
    Verify: the rows of these numbers
    Source: arithmetic -- the name of the label's column is one class more than there are
    """
    return seen_in(data, data.rows_with("header"), "hold the names of their columns")


@row_kinds("fence_open", "several_sentences", "unended")
def _ends_early(row: AskedRow) -> Iterator[str]:
    """The last answer opens a block of code and leaves it open; or it is prose, whose last sentence has no end."""
    answer = (row.answers or [""])[-1].rstrip()
    if len(_FENCE.findall(answer)) % 2:
        yield "fence_open"
    line = answer.rpartition("\n")[2]
    if len(line) < _LINE or "```" in answer or _ITEM.match(line) or len(_SENTENCE_END.findall(answer)) < _SENTENCES:
        return
    yield "several_sentences"
    if line[-1].isalpha() or line[-1] == ",":
        yield "unended"


@DataRule("DAT383", severity="warning", confidence=0.75, thresholds=(SOME, CUT_SHARE, FEW_LABELS))
def _cut_off(data: DataReport) -> Iterator[Observation]:
    """answers that are cut off

    in {some} of the rows the answer opens a block of code and leaves it open; or of the answers of several
    sentences {cut_share}, {few_labels} at least, end with a letter or a comma

    Why: The model learns to stop in the midst of a sentence or of code.
    Scope: the last answer; prose of four sentences and more whose last line is no item of a list
    Action: take the whole answers; raise the limit of tokens with which they were written
    Verify: the ends of these answers
    Source: arithmetic -- what is cut by a count ends where a sentence does only by chance
    """
    prose, unended = data.rows_with("several_sentences"), data.rows_with("unended")
    says = "open a block of code in the answer, and leave it open"
    yield from seen_in(data, data.rows_with("fence_open"), says, at_least=SOME)
    if unended.count >= max(CUT_SHARE.value * prose.count, FEW_LABELS.value):
        what = "answers of several sentences"
        yield Observation(f"{counted(unended, prose.count, what)} end within a sentence", values(unended, prose.count))


@row_test
def placeholder_left(row: AskedRow) -> bool:
    """The question has a name in braces that its answer has not, and speaks of nothing that is written with braces."""
    question = question_of(row.columns)
    left = _PLACEHOLDER.findall(question) if "{" in question and row.answers else []
    asked = left and (_TEMPLATE_ASKED.search(question) or _CODE_ASKED.search(question))
    return bool(left and not asked and not any(one in answer for one in left for answer in row.answers))


@row_test
def placeholder_said(row: AskedRow) -> bool:
    """An answer has a name in double braces that its question has not, which speaks of nothing written with braces."""
    left = [name for answer in row.answers if "{{" in answer for name in _UNFILLED.findall(answer)]
    question = question_of(row.columns) if left else ""
    asked = _TEMPLATE_ASKED.search(question) or _CODE_ASKED.search(question)
    return not asked and any(one not in question for one in left)


@DataRule("DAT384", severity="warning", confidence=0.75, thresholds=(SOME,))
def _unfilled(data: DataReport) -> Iterator[Observation]:
    """names in braces

    in {some} of the rows the question holds a name in braces that the answer does not have, or the answer one in double
    braces that the question does not have

    Why: Where a pattern was not filled in, what the answer is about is not in the question: the model learns to make it
        up, or to answer with braces.
    Scope: questions that speak neither of code nor of templates, formats and the like; a program that fills in the
        model's answers needs such names
    Action: fill in the pattern, by str.format or an f-string
    Verify: the text of these rows (--set show_rows=true)
    Seen: https://github.com/transformerlab/transformerlab-app/issues/505 -- rows of {{messages}} that was not filled
        in: the model answers with braces
    """
    left = data.rows_with("placeholder_left")
    yield from seen_in(data, left, "ask with a name in braces that nothing was put in place of", at_least=SOME)
    said = data.rows_with("placeholder_said")
    yield from seen_in(
        data, said, "answer with a name in double braces that nothing was put in place of", at_least=SOME
    )


@DataRule("DAT378", severity="error", confidence=0.8, thresholds=(KNOWN_WORDS, SOME, HALF))
def _other_rows(data: DataReport) -> Iterator[Observation]:
    """answers of other rows

    of the words of answers that at most 4 questions and 4 answers have, at least {known_words}, fewer than {some} stand
    in the question of their row, in all rows or from one row to another; a warning unless more than {half} of them
    stand equally many rows apart; a warning of rejected answers, where those of the chosen ones do stand in it

    Why: Questions and answers were sorted or joined apart: the model learns to answer something else. A rejected answer
        on another subject is told by its subject.
    Scope: words of four letters and more in the last question and its answer, at most 5000 rows drawn from all
    Action: join questions and answers by a key, not by their place
    Verify: read ten rows; the next answer may be the right one
    Seen: https://github.com/google-research/xtreme/issues/17 -- pairs of sentences out of alignment
    Source: arithmetic -- of N rows joined at random 1 in N of such words is in its own row
    """
    paired = data.paired
    if paired.words < KNOWN_WORDS.value:
        raise Unknown(
            f"{paired.words} words of answers stand in few questions and few answers, under {KNOWN_WORDS.value:g}"
        )
    stretch = paired if paired.own < SOME.value * paired.words else data.shifted
    for one, whose in ((stretch, "answers"), (data.rejected, "rejected answers")):
        if one.words < KNOWN_WORDS.value or one.own >= SOME.value * one.words:
            continue
        shifted = one.at_offset > HALF.value * one.words
        far = f"{abs(one.offset):,} row{'s' if abs(one.offset) > 1 else ''}"
        says = (
            f"of {one.at_offset:,} the answer stands {far} {'before' if one.offset > 0 else 'after'} its question"
            if shifted
            else f"the {whose} are those of other rows, unless an answer should have no word of its question"
        )
        where = f", from row {one.rows[0]:,} to row {one.rows[1]:,}" if one.rows else ""
        yield Observation(
            f"of {one.words:,} words of {whose}{where}, which few questions and few {whose} have, {one.own:,} "
            f"stand in the question of their row: {says}",
            {"words": one.words, "own": one.own, "offset": one.offset, "at_offset": one.at_offset},
            severity=None if shifted and one is stretch else "warning",
        )
        return  # what lies apart in the chosen answers lies so in the rejected ones


@DataRule("DAT380", severity="warning", confidence=0.75, thresholds=(CUT_LENGTH, CELL, SOME, FEW_LABELS, MAJORITY))
def _one_length(data: DataReport) -> Iterator[Observation]:
    """texts cut at one length

    {some} of the questions or answers, at least {few_labels}, are of one length, {cut_length} characters or more; none
    is longer, and {majority} of these are of words and end with a letter, a comma or a blank; of {cell} characters, a
    cell's most, one text is enough

    Why: A text was cut by a count of characters: the model learns to stop in the midst of a sentence, or to answer half
        a question.
    Scope: the last question and its answer, texts of one pattern once, at most 5000 rows drawn from all
    Action: take the whole texts, and leave out what is too long
    Verify: the end of the longest ones
    Source: Excel specifications and limits -- a cell holds 32 767 characters
    Source: arithmetic -- of texts that nobody cut few share their greatest length
    """
    for longest, what in ((data.longest_questions, "questions"), (data.longest_answers, "answers")):
        many = longest.texts >= max(SOME.value * longest.of, FEW_LABELS.value) or longest.characters == CELL.value
        if many and longest.characters >= CUT_LENGTH.value and longest.unended >= MAJORITY.value * longest.texts:
            yield Observation(
                f"of {longest.of:,} {what} {longest.texts:,} that differ have {longest.characters:,} characters, none "
                f"has more, and {longest.unended:,} of these end in the midst of a sentence: they were cut",
                {"characters": longest.characters, "texts": longest.texts, "of": longest.of},
            )


RULES = (
    _secrets,
    _leaks,
    _unreferenced,
    _images_as_text,
    _unparsed,
    _pasted,
    _sorted,
    _told_by_length,
    _answered_in,
    _leavings,
    _spellings,
    _unreadable_values,
    _headers,
    _other_rows,
    _one_length,
    _cut_off,
    _unfilled,
)

ROW_TESTS: RowTests = (
    secret,
    _given_away,
    no_reference,
    image_as_text,
    call_unparsed,
    system_pasted,
    told_who,
    _left_over,
    _notation,
    header,
    _ends_early,
    placeholder_left,
    placeholder_said,
)
