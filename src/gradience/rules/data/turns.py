"""Rules on the turns of conversations: roles, prompt formats written as text, the calls of tools."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Final

from gradience.data import ANSWERERS, Turn, content_of, part_text, turns_of
from gradience.data.asked import AskedRow, RowTests, foreign_in, parts_of, row_kinds, row_test
from gradience.errors import few
from gradience.rules import Observation, Unknown, cite, premise
from gradience.rules.data.content import (
    HALF,
    SLIPS,
    SOME,
    DataRule,
    as_tokens,
    counted,
    on_rows,
    seen_in,
    share,
    values,
)
from gradience.schema import Json, Severity
from gradience.schema.reports import DataReport, Rows

_SEEN = (cite("definition", "the turns of a row, in their order"),)
TRL_ROLES = cite("TRL 1.16, maybe_convert_to_chatml", "renames from and value, and leaves roles as they are")
_PROMPT: Final = re.compile(r"^### (?:Instruction|Response|Human|Assistant):", re.MULTILINE)
_TOOLS: Final = frozenset({"tool", "ipython", "observation", "function", "tool_response", "function_response"})
_QUOTED_CALL: Final = re.compile(r"<tool|<function|\{\s*\"(?:name|function|arguments)\"|Action:|```")
_WORD: Final = re.compile(r"\w+")
_ECHO: Final = 4  # words of a question from which its repetition is no chance
_END_PART: Final = 0.2  # share of a row that the loss leaves out at its end, where more than an end token is left out


@premise("the rows are conversations")
def _spoken(data: DataReport) -> str | None:
    """The need of rules on turns: the rows are conversations with answers."""
    return "the rows have no turns" if data.format in {"text", "tokenised", "classification", "steps"} else None


@row_test
def translated(row: AskedRow) -> bool:
    """Roles, calls or parts are written as other programs do; TRL would not translate them."""
    return "translated" in row.columns


@DataRule("DAT322", severity="info", confidence=0.9, needs=(_spoken,), evidence=(TRL_ROLES,))
def _translated(data: DataReport) -> Iterator[Observation]:
    """names of another program

    roles, calls or parts are named as other programs do, and no recipe says which program trains

    Why: human and gpt, function_call and observation are translated by some trainers only.
    Scope: conversations without a recipe
    Action: give the recipe (--training), or rename the roles to user, assistant and tool
    Verify: the text of a row after apply_chat_template
    Source: trl/data_utils.py:maybe_convert_to_chatml@1.16.0 -- renames from and value, and leaves roles as they are
    """
    rows = data.rows_with("translated")
    if rows.count and not data.program_stated:
        yield on_rows(
            data,
            rows,
            "name roles, calls or parts as Axolotl, LLaMA-Factory and ms-swift read them, and are read so; SFTTrainer "
            "would hand them to the template as they stand",
        )


@row_kinds("parts", "value_parts")
def _of_parts(row: AskedRow) -> Iterator[str]:
    """A message is a list of parts; one of them has its text under `value`."""
    if row.parts:
        yield "parts"
    if any("value" in part and "text" not in part and part_text(part) for part in row.parts):
        yield "value_parts"


@DataRule(
    "DAT323",
    severity="info",
    confidence=0.8,
    needs=(_spoken,),
)
def _parts(data: DataReport) -> Iterator[Observation]:
    """messages in parts that the template does not read

    TRL trains, and a part has its text under value, or the template takes text only

    Why: A template that reads `text` writes nothing of such a part.
    Scope: messages in parts; Axolotl reads text, content and value
    Action: give the text of a message as its content, or each part's as text
    Verify: the text of a row after apply_chat_template
    Seen: public repositories -- parts that the template does not read
    Source: Axolotl 0.19, chat_template strategy -- takes a part's text, content or value
    """
    if data.masked_by != "trl":
        raise Unknown(f"{data.masked_by} joins the text of parts itself")
    if data.parts_joined and data.rows_with("parts").count:
        yield on_rows(
            data,
            data.rows_with("parts"),
            "hold messages in parts, which the chat template does not take: their text is joined here, and SFTTrainer "
            "stops at them",
        )
    rows = data.rows_with("value_parts")
    if rows.count:
        yield on_rows(data, rows, "hold parts whose text is under `value`: it is read, but chat templates read `text`")


@DataRule("DAT324", severity="error", confidence=0.9, needs=(_spoken, as_tokens), evidence=(TRL_ROLES,))
def _unwritten(data: DataReport) -> Iterator[Observation]:
    """turns that the template leaves out

    turns have a role whose text the chat template does not write, or calls whose arguments it does not write

    Why: The model never sees these turns, and trains on what is left.
    Scope: conversations with a chat template, which is asked with a turn of each role and with a call
    Action: rename the role to one of the template's: user, assistant, system, tool
    Verify: the text of a row after apply_chat_template
    Source: trl/data_utils.py:maybe_convert_to_chatml@1.16.0 -- leaves roles as they are, which a template may not
        know
    """
    if not data.template:
        raise Unknown("no chat template is used")
    for role, rows in data.unwritten_roles.items():
        says = f"hold turns of the role {role[:40]!r}, which the chat template leaves out"
        severity: Severity | None = "warning" if role in _OFTEN_DROPPED else None
        yield on_rows(data, rows, says, severity=severity, role=role[:40])
    if (
        data.calls_unwritten and data.masked_by == "trl" and not data.rows_with("translated").count
    ):  # others write their own
        calls = max(data.rows_with("arguments_text"), data.rows_with("arguments_object"), key=lambda rows: rows.count)
        action = "use a chat template that writes tool_calls"
        yield on_rows(data, calls, "hold calls, which the chat template leaves out", action=action, calls=True)


@row_kinds("no_assistant", "unanswered")
def _without_answer(row: AskedRow) -> Iterator[str]:
    """No turn is the assistant's; or the last one is the user's."""
    speakers = _speakers(row)
    if "messages" in row.spoken and not any(role in ANSWERERS for role in speakers):
        yield "no_assistant"
    elif "messages" in row.spoken and speakers[-1] == "user":
        yield "unanswered"


def _speakers(row: AskedRow) -> list[str]:
    """The roles of the turns, without a system turn that is the first."""
    roles = [str(turn.get("role")) for turn in row.turns]
    return roles[1:] if roles[:1] in (["system"], ["developer"]) else roles


@DataRule("DAT325", severity="warning", confidence=0.85, needs=(_spoken,), evidence=_SEEN)
def _no_answer(data: DataReport) -> Iterator[Observation]:
    """conversations without an answer

    no turn is the assistant's, or the last one is the user's; error if that is so in all rows

    Why: There is nothing to answer with: an answer was lost, or stored under the user's role.
    Scope: messages and ShareGPT
    Action: look at these rows: a lost answer, an answer under another role's name
    Verify: the roles of their turns
    Source: arithmetic -- without an assistant turn there is no token of an answer to learn
    """
    for rows, says in (
        (data.rows_with("no_assistant"), "have no turn of the assistant"),
        (data.rows_with("unanswered"), "end with a user's turn, which nothing answers"),
    ):
        if rows.count:
            yield on_rows(data, rows, says, severity="error" if rows.count == data.rows_read else None)


@row_test
def foreign_tokens(row: AskedRow) -> bool:
    """The text holds control tokens that the tokenizer does not have, or a message the headers of a prompt format."""
    texts = [row.spoken[name] for name in ("text", "prompt", "completion") if isinstance(row.spoken.get(name), str)]
    found = foreign_in([*row.contents, *texts], row.vocabulary.own)
    return bool(found) or any(_PROMPT.search(text) for text in row.contents)


@DataRule(
    "DAT329",
    severity="info",
    confidence=0.85,
    groups=("data", "log"),
    needs=(as_tokens,),
    thresholds=(SLIPS,),
)
def _foreign(data: DataReport) -> Iterator[Observation]:
    """turn tokens of another model as text

    a row holds turn tokens that the tokenizer does not have, or headers of another prompt format in messages; from
    {slips} of the rows: warning

    Why: To this model they are pieces of text: it learns to write them, and no single token ends a turn.
    Scope: names such as <|im_end|>, [INST], </s> and ### Instruction:
    Action: remove them, and let this tokenizer's template write its own
    Verify: tokenizer.tokenize of the token
    Seen: public repositories -- turn tokens of another model in the text
    Source: definition -- control tokens in the text that are not among the tokenizer's added tokens
    """
    rows = data.rows_with("foreign_tokens")
    if not rows.count:
        return
    named = f" ({few(data.foreign)})" if data.foreign else ""
    yield on_rows(
        data,
        rows,
        f"hold, as text, turn tokens or prompt headers{named} that are not this tokenizer's and template's",
        severity="warning" if share(rows, data.rows_read) >= SLIPS.value else None,
        tokens=data.foreign[:10],
    )


@row_test
def inverted(row: AskedRow) -> bool:
    """The beginning of the row is supervised, and its end is not."""
    return any(
        next(i for i, bit in enumerate(reversed(one.mask)) if bit) >= _END_PART * len(one.ids)
        for one in row.in_loss
        if one.mask and one.mask[0] and sum(one.mask) < len(one.ids)
    )


@DataRule(
    "DAT333",
    severity="error",
    confidence=0.85,
    groups=("data", "log"),
    needs=(as_tokens,),
    thresholds=(HALF,),
)
def _inverted(data: DataReport) -> Iterator[Observation]:
    """the mask is inverted

    in {half} of the rows the loss is on the beginning and not on the last fifth; fewer: warning

    Why: The model learns the prompts, and never an answer.
    Scope: rows with a mask on tokens
    Action: exchange what is masked and what is not
    Verify: decode the supervised tokens of a row
    Source: arithmetic -- no token of the answer is in the loss: its gradient is 0
    """
    rows = data.rows_with("inverted")
    if share(rows, data.rows_read) >= HALF.value:
        yield on_rows(data, rows, "have their beginning in the loss and their end outside of it")
    elif rows.count:
        says = "have their beginning in the loss and their end outside of it"
        yield on_rows(data, rows, says, severity="warning")


@row_kinds(
    *("call_unanswered", "result_uncalled", "result_of_no_call", "call_unlisted"),
    *("arguments_broken", "arguments_text", "arguments_object"),
)
def _of_calls(row: AskedRow) -> Iterator[str]:
    """A call without its result, a result without a call, one of no listed tool, and how arguments are written."""
    turns = row.turns
    if not any(turn.get("tool_calls") or turn.get("role") in _TOOLS for turn in turns):
        return
    before: Turn = {}
    signs = set[str]()
    listed, called = _listed(row.spoken.get("tools")), {name for turn in turns for name in _called(turn)}
    if listed and not called <= listed:
        signs.add("call_unlisted")
    ids = set[str]()
    for turn, after in zip(turns, [*turns[1:], None], strict=True):
        if turn.get("tool_calls") and after is not None and after.get("role") not in _TOOLS:
            signs.add("call_unanswered")
        if turn.get("role") in _TOOLS and not _may_be_answered(before):
            signs.add("result_uncalled")
        ids |= {call["id"] for call in turns_of(turn.get("tool_calls")) if isinstance(call.get("id"), str)}
        if ids and isinstance(turn.get("tool_call_id"), str) and turn["tool_call_id"] not in ids:
            signs.add("result_of_no_call")
        for arguments in _arguments_of(turn):
            is_text = isinstance(arguments, str)
            kind = "arguments_broken" if is_text and not _is_object(arguments) else "arguments_text"
            signs.add(kind if is_text else "arguments_object")
        before = turn
    yield from signs


def _may_be_answered(turn: Turn) -> bool:
    is_call = turn.get("tool_calls") or turn.get("function_call") or turn.get("role") in {*_TOOLS, "function_call"}
    return bool(is_call or turn.get("role") == "tool_call" or _QUOTED_CALL.search(content_of(turn)))


def _arguments_of(turn: Turn) -> Iterator[str | dict[str, Json]]:
    """Arguments of a turn's calls, as text or as an object."""
    for function in _functions(turn.get("tool_calls")):
        if isinstance(arguments := function.get("arguments"), str | dict):
            yield arguments


def _called(turn: Turn) -> Iterator[str]:
    for function in _functions(turn.get("tool_calls")):
        if isinstance(name := function.get("name"), str):
            yield name


def _functions(calls: Json) -> Iterator[Turn]:
    """Functions that a list of calls or of tools names, within `function` or not."""
    for one in calls if isinstance(calls, list) else ():
        if isinstance(one, dict) and isinstance(function := one.get("function", one), dict):
            yield function


def _listed(tools: Json) -> set[str]:
    """The names of a row's tools; empty if one of them has none."""
    with suppress(ValueError, RecursionError):
        tools = json.loads(tools) if isinstance(tools, str) else tools
    names = [function.get("name") for function in _functions(tools)]
    every = isinstance(tools, list) and len(names) == len(tools) and all(isinstance(name, str) for name in names)
    return {name for name in names if isinstance(name, str)} if every else set()


def _is_object(text: Json) -> bool:
    try:
        return isinstance(text, str) and isinstance(json.loads(text or "{}"), dict)
    except (ValueError, RecursionError):
        return False


@DataRule("DAT336", severity="warning", confidence=0.8, needs=(_spoken,), evidence=_SEEN)
def _calls(data: DataReport) -> Iterator[Observation]:
    """calls without their tools or results

    a call is not followed by its result, or a result does not follow a call; a last turn may be a call; a result names
    the id of no call before it; or a call names a function that the row's tools do not list

    Why: The model learns to go on without the result that it asked for, or to make up functions.
    Scope: messages with tool_calls; of tools those rows whose tools are a list of functions with names
    Action: add the results as turns of the role tool, or end these rows with the call; list what is called
    Verify: the roles of their turns
    Seen: https://github.com/mistralai/client-python/issues/234 -- refused: not the same number of function calls
        and responses
    """
    for rows, says in (
        (data.rows_with("call_unanswered"), "hold a call of a tool that its result does not follow"),
        (data.rows_with("result_uncalled"), "hold a result of a tool that no call precedes"),
        (data.rows_with("result_of_no_call"), "hold a result whose tool_call_id is that of no call before it"),
        (data.rows_with("call_unlisted"), "call a function that their tools do not list"),
    ):
        if rows.count:
            yield on_rows(data, rows, says)


@DataRule(
    "DAT337",
    severity="warning",
    confidence=0.85,
    needs=(_spoken,),
)
def _arguments(data: DataReport) -> Iterator[Observation]:
    """arguments of calls as text

    arguments are no JSON object, or they are text and the template encodes text once more; an error if they are
    text in some rows and objects in others

    Why: The model learns arguments in quotes within quotes, which a parser of calls rejects. Of two types, it learns
        two forms, if load_dataset loads the rows at all.
    Scope: messages with tool_calls; the template is asked with a call of its own
    Action: store arguments as objects
    Verify: the text of a row after apply_chat_template
    Source: transformers docs, chat_templating -- arguments of a call are a dictionary, not a string
    Source: datasets/packaged_modules/json/json.py:Json@4.6.0 -- a call whose arguments are a text here and an
        object there is an error
    """
    if data.rows_with("arguments_broken").count:
        yield on_rows(data, data.rows_with("arguments_broken"), "hold a call whose arguments are no JSON object")
    text, objects = data.rows_with("arguments_text"), data.rows_with("arguments_object")
    if text.count and objects.count:
        fewer, kind = min((text, "text"), (objects, "an object"), key=lambda pair: pair[0].count)
        yield on_rows(
            data,
            fewer,
            f"hold arguments of calls as {kind}, the others as {'an object' if kind == 'text' else 'text'}: "
            "datasets up to 4.6 cannot load such a column",
            severity="error",
        )
    elif text.count and data.encodes_arguments:
        yield on_rows(data, text, "hold arguments as text, which the chat template encodes as JSON once more")


_OFTEN_DROPPED = frozenset({"system", "developer", "tool"})  # the conversation goes on without them


@row_test
def echo(row: AskedRow) -> bool:
    """An answer begins with the whole of what was asked last."""
    question = row.spoken.get("prompt")
    if not isinstance(question, str):
        question = next((content_of(turn) for turn in reversed(row.turns) if turn.get("role") == "user"), "")
    answer = next(iter(row.answers[-1:] if "messages" in row.spoken else row.answers), "")
    first = [hit and hit[0].casefold() for hit in (_WORD.search(question), _WORD.search(answer))]
    words = _WORD.findall(question.casefold()) if first[0] == first[1] else []  # most begin otherwise
    if len(words) < _ECHO:
        return False
    # Of a long answer only as much is split as may hold the question, since blanks and marks may be more there.
    return _WORD.findall(answer[: 2 * len(question) + 64].casefold())[: len(words)] == words


@DataRule(
    "DAT332",
    severity="warning",
    confidence=0.75,
    thresholds=(SOME,),
)
def _echo(data: DataReport) -> Iterator[Observation]:
    """answers repeat the question

    in {some} of the rows the answer begins with the whole question

    Why: The model learns to repeat the prompt; completions of a full text often hold it.
    Scope: questions of four words and more
    Action: remove the prompt from the answers
    Verify: their text (--set show_rows=true)
    Seen: public repositories -- answers that begin with the question
    Source: definition -- the answer begins with the last thing asked, without case and spaces
    """
    rows = data.rows_with("echo")
    if share(rows, data.rows_read) >= SOME.value:
        yield Observation(
            f"in {counted(rows, data.rows_read)} the answer begins with the whole question",
            values(rows, data.rows_read),
        )


@row_test
def roles_out_of_order(row: AskedRow) -> bool:
    """Two turns of one side follow each other, a system turn is not the first, or the assistant asks."""
    if not row.spoken.keys() & {"completion", "messages", "chosen"}:
        return False
    speakers = _speakers(row)
    repeated = any(one == other and one in {"user", *ANSWERERS} for one, other in pairwise(speakers))
    late = "system" in speakers or "developer" in speakers
    return repeated or late or (len(speakers) > 1 and speakers[0] in ANSWERERS and speakers[-1] == "user")


@DataRule("DAT326", severity="warning", confidence=0.75, needs=(_spoken,), evidence=_SEEN)
def _roles_out_of_order(data: DataReport) -> Iterator[Observation]:
    """turns out of order

    two turns of one side follow each other, a system turn is not the first, or the assistant asks and the user
    answers

    Why: Many templates raise on such rows, and the model learns to answer nobody.
    Scope: conversations
    Action: sort or join the turns
    Verify: the roles of their turns
    Seen: public repositories -- turns out of order
    """
    return seen_in(data, data.rows_with("roles_out_of_order"), "have turns out of order")


@row_test
def empty_prompt(row: AskedRow) -> bool:
    """What is asked is empty."""
    prompt = row.spoken.get("prompt")
    return (isinstance(prompt, str) and not prompt.strip()) or any(
        turn.get("role") == "user" and not content.strip() and not any(map(_is_media, parts_of(turn)))
        for turn, content in zip(row.turns, row.contents, strict=True)
    )


@DataRule(
    "DAT327",
    severity="warning",
    confidence=0.85,
)
def _empty_prompt(data: DataReport) -> Iterator[Observation]:
    """empty prompts

    a prompt, or a user's turn, holds nothing but white space

    Why: The model learns an answer to nothing.
    Scope: formats with prompts
    Action: remove these rows, or look where their prompt was lost
    Verify: their text (--set show_rows=true)
    Seen: https://github.com/hiyouga/ChatGLM-Efficient-Tuning/issues/100 -- rows with an empty prompt are left out
        in preprocessing
    Source: definition -- the prompt without white space is empty
    """
    return seen_in(data, data.rows_with("empty_prompt"), "ask nothing: a prompt or a user's turn is empty")


@row_test
def template_twice(row: AskedRow) -> bool:
    """A message holds control tokens that the chat template writes."""
    written = row.vocabulary.own.written
    return any(("<" in text or "[" in text) and any(token in text for token in written) for text in row.contents)


@DataRule(
    "DAT328",
    severity="warning",
    confidence=0.9,
    needs=(_spoken, as_tokens),
    thresholds=(SLIPS,),
)
def _template_twice(data: DataReport) -> Iterator[Observation]:
    """the template is applied twice

    {slips} of the rows hold, inside a message, control tokens that the chat template writes around it

    Why: The template adds its tokens again: the model learns a prompt that generation does not have.
    Scope: conversations with a chat template
    Action: give the messages without control tokens, or the rendered text as `text`
    Verify: the text of a row after apply_chat_template
    Seen: https://github.com/huggingface/transformers/pull/31796 -- a rendered template holds all special tokens
        already
    Source: transformers docs, chat_templating -- a template adds all control tokens that a model needs
    """
    return seen_in(
        data,
        data.rows_with("template_twice"),
        "hold control tokens of the chat template inside a message: it is applied twice",
        at_least=SLIPS,
    )


@row_kinds("media", "images_unread")
def _of_media(row: AskedRow) -> Iterator[str]:
    """The row holds images, videos or sounds whose tokens are not counted; or images in no column that is read."""
    columns = row.spoken
    holds = columns.get("images") or "media" in columns or any(map(_is_media, row.parts))
    if holds and "image_tokens" not in columns:
        yield "media"
    if "pictured" in columns:
        yield "images_unread"


def _is_media(part: Turn) -> bool:
    return str(part.get("type", "text")).startswith(("image", "video", "audio", "input_audio"))


@DataRule("DAT357", severity="warning", confidence=0.8)
def _images_unread(data: DataReport) -> Iterator[Observation]:
    """images that are not read

    a row holds images in parts of its messages, or in a column of another name, and no column image or images; or
    it holds images, videos or sounds, and no processor is beside the tokenizer: info

    Why: TRL's trainers read images from these columns only, by the first row; others are dropped in silence. A
        collator of text drops all.
    Scope: names of columns: TRL; paths of image files, data: URLs, and bytes as datasets stores them
    Action: put the images of a row into a list in a column images, in the order of their places
    Verify: a batch of the trainer's data loader holds pixel_values
    Source: trl/trainer/sft_trainer.py:SFTTrainer@1.16.0 -- takes a data set for one of images if its rows have
        image or images
    """
    unread = data.rows_with("images_unread") if data.masked_by == "trl" else Rows()
    if unread.count:
        yield on_rows(data, unread, "hold images, and no column images that the trainer reads")
    elif data.rows_with("media").count and data.has_processor is False:
        says = f"hold images, videos or sounds, and no processor is beside the tokenizer {data.tokenizer}"
        action = "give the folder of the model's processor (processor_config.json), and train with it"
        yield on_rows(data, data.rows_with("media"), says, severity="info", action=action)


RULES = (
    _images_unread,
    _translated,
    _parts,
    _unwritten,
    _no_answer,
    _roles_out_of_order,
    _empty_prompt,
    _template_twice,
    _foreign,
    _echo,
    _inverted,
    _calls,
    _arguments,
)

ROW_TESTS: RowTests = (
    translated,
    _of_parts,
    _without_answer,
    roles_out_of_order,
    empty_prompt,
    template_twice,
    foreign_tokens,
    echo,
    inverted,
    _of_calls,
    _of_media,
)
ASKED_LIVE: RowTests = (inverted,)
