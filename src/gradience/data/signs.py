"""What the text of one row shows without tokens: turns out of order, prompts written twice, echoes, calls.

Each sign is a name of a field of `RowsSeen`. Patterns are heuristics; the rules say how many rows make a finding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from gradience.data import ANSWERERS, Columns, Turn, answers_of, content_of, every_turn, part_text
from gradience.schema import Json

# DeepSeek's tokens have a full-width bar, and U+2581 between their words.
CONTROL: Final = re.compile(
    r"<[|\uff5c][A-Za-z0-9_\u2581]{1,40}[|\uff5c]>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
)
_PROMPT: Final = re.compile(r"^### (?:Instruction|Response|Human|Assistant):", re.MULTILINE)
_REFUSAL: Final = re.compile(
    r"\s*(?:I['\u2019]?m (?:really |very |so )?sorry|I am (?:really |very |so )?sorry|Sorry, (?:but )?I|I apologi[sz]e|"
    r"As an AI|I (?:cannot|can['\u2019]t|am unable|am not able|won['\u2019]t be able)|I['\u2019]m (?:unable|not able)|"
    r"Unfortunately, I|"
    r"(?:Es )?[Tt]ut mir leid, (?:aber )?(?:ich|da(?:bei|zu|s)?)|Leider kann ich|"
    r"Ich kann (?:dir|Ihnen|Ihre|deine|diese)\b[^.]{0,40}\bnicht|"
    r"(?:Je suis )?[Dd]\u00e9sol\u00e9e?, (?:mais )?je|Je ne peux pas|"
    r"(?:Lo siento|Lo lamento), (?:pero )?no|No puedo)\b"
)
_TOOLS: Final = frozenset({"tool", "ipython", "observation", "function", "tool_response", "function_response"})
_QUOTED_CALL: Final = re.compile(r"<tool|<function|\{\s*\"(?:name|function|arguments)\"|Action:|```")
_MISSING: Final = frozenset({"nan", "NaN", "<NA>", "NaT", "#N/A", "[object Object]"})  # None and null may be answers
_WORD: Final = re.compile(r"\w+")
_ECHO: Final = 4  # words of a question from which its repetition is no chance


class ControlTokens(NamedTuple):
    """The control tokens of the tokenizer, as text, and those among them that the chat template writes."""

    known: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()


def signs_of(columns: Columns, own: ControlTokens) -> list[str]:
    """The names of the fields of `RowsSeen` that the text of a row shows."""
    turns, answers = every_turn(columns), answers_of(columns)
    signs = [*_of_turns(columns, turns), *_of_calls(turns), *_of_answers(answers)]
    spoken = [content_of(turn) for turn in turns]
    texts = [columns[name] for name in ("text", "prompt", "completion") if isinstance(columns.get(name), str)]
    if any(_holds(text, own.written) for text in spoken):
        signs.append("template_twice")
    if foreign_in([*spoken, *texts], own) or any(_PROMPT.search(text) for text in spoken):
        signs.append("foreign_tokens")
    if _echoes(columns, turns):
        signs.append("echo")
    parts = (part for turn in turns for part in _parts(turn))
    if (columns.get("images") or "media" in columns or any(map(_is_media, parts))) and "image_tokens" not in columns:
        signs.append("media")
    if "pictured" in columns:
        signs.append("images_unread")
    if any(_parts(turn) for turn in turns):
        signs.append("parts")
    if any("value" in part and "text" not in part and part_text(part) for turn in turns for part in _parts(turn)):
        signs.append("value_parts")
    return signs


def foreign_in(texts: list[str], own: ControlTokens) -> set[str]:
    """Control tokens in these texts that the tokenizer does not have."""
    return {token for text in texts for token in _controls(text) if token not in own.known}


def _controls(text: str) -> Iterator[str]:
    if "<" not in text and "[" not in text:
        return
    for hit in CONTROL.finditer(text):
        # <s> is also strikethrough in HTML: as a token it stands at an end of the text
        inside = (hit[0] == "<s>" and text[: hit.start()].strip()) or (hit[0] == "</s>" and text[hit.end() :].strip())
        if not inside:
            yield hit[0]


def _holds(text: str, tokens: frozenset[str]) -> bool:
    return ("<" in text or "[" in text) and any(token in text for token in tokens)


def _of_turns(columns: Columns, turns: list[Turn]) -> Iterator[str]:
    roles = [str(turn.get("role")) for turn in turns]
    speakers = roles[1:] if roles[:1] in (["system"], ["developer"]) else roles
    if "messages" in columns and not any(role in ANSWERERS for role in speakers):
        yield "no_assistant"
    elif "messages" in columns and speakers[-1] == "user":
        yield "unanswered"
    if "completion" in columns or "messages" in columns or "chosen" in columns:
        repeated = any(one == other and one in {"user", *ANSWERERS} for one, other in pairwise(speakers))
        late = "system" in speakers or "developer" in speakers
        backwards = len(speakers) > 1 and speakers[0] in ANSWERERS and speakers[-1] == "user"
        if repeated or late or backwards:
            yield "roles_out_of_order"
    questions = [turn for turn in turns if turn.get("role") == "user"]
    blank = any(not content_of(turn).strip() and not any(map(_is_media, _parts(turn))) for turn in questions)
    if blank or (isinstance(columns.get("prompt"), str) and not columns["prompt"].strip()):
        yield "empty_prompt"


def _parts(turn: Turn) -> list[Turn]:
    content = turn.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _is_media(part: Turn) -> bool:
    return str(part.get("type", "text")).startswith(("image", "video", "audio", "input_audio"))


def _of_calls(turns: list[Turn]) -> Iterator[str]:
    """Yield what is wrong with the calls of tools: results without call, calls without result, arguments as text."""
    if not any(turn.get("tool_calls") or turn.get("role") in _TOOLS for turn in turns):
        return
    before: Turn = {}
    signs = set()
    for turn, after in zip(turns, [*turns[1:], None], strict=True):
        if turn.get("tool_calls") and after is not None and after.get("role") not in _TOOLS:
            signs.add("call_unanswered")
        if turn.get("role") in _TOOLS and not _may_be_answered(before):
            signs.add("result_uncalled")
        for arguments in _arguments(turn):
            is_text = isinstance(arguments, str)
            kind = "arguments_broken" if is_text and not _is_object(arguments) else "arguments_text"
            signs.add(kind if is_text else "arguments_object")
        before = turn
    yield from sorted(signs)


def _may_be_answered(turn: Turn) -> bool:
    is_call = turn.get("tool_calls") or turn.get("function_call") or turn.get("role") in {*_TOOLS, "function_call"}
    return bool(is_call or turn.get("role") == "tool_call" or _QUOTED_CALL.search(content_of(turn)))


def _arguments(turn: Turn) -> Iterator[str | dict[str, Json]]:
    """Arguments of a turn's calls, as text or as an object."""
    calls = turn.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function", call) if isinstance(call, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(arguments, str | dict):
            yield arguments


def _is_object(text: Json) -> bool:
    try:
        return isinstance(text, str) and isinstance(json.loads(text or "{}"), dict)
    except (ValueError, RecursionError):
        return False


def _of_answers(answers: list[str]) -> Iterator[str]:
    if any(answer.strip() in _MISSING for answer in answers):
        yield "missing_value"
    if any(_REFUSAL.match(answer) for answer in answers[:1]):
        yield "refusal"


def _echoes(columns: Columns, turns: list[Turn]) -> bool:
    """Whether an answer begins with the whole of what was asked last."""
    question = columns.get("prompt")
    if not isinstance(question, str):
        question = next((content_of(turn) for turn in reversed(turns) if turn.get("role") == "user"), "")
    words = _WORD.findall(question.casefold())
    if len(words) < _ECHO:
        return False
    answer = next(iter(answers_of(columns)[-1:] if "messages" in columns else answers_of(columns)), "")
    # Of a long answer only as much is split as may hold the question, since blanks and marks may be more there.
    return _WORD.findall(answer[: 2 * len(question) + 64].casefold())[: len(words)] == words
