"""Data sets as their trainer feeds them to the model: files to rows, rows to examples, examples to tokens and masks.

This module recognises the format of a data set by its columns, and turns each row into the columns that trainers
expect. Names and treatment of columns follow TRL 1.16 (data_utils.py). Columns that TRL does not read, such as
instruction/input/output, become messages or text as in LLaMA-Factory and Axolotl.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from gradience.errors import ConfigError, few
from gradience.schema import Json
from gradience.schema.reports import DataFormat, Trainer

Columns = dict[str, Json]

_TEXT_COLUMNS: Final = ("text", "sentence", "content", "review", "question")
_LABEL_COLUMNS: Final = ("label", "labels")
_ROLES: Final = {"human": "user", "gpt": "assistant", "bing": "assistant", "chatgpt": "assistant", "bard": "assistant"}
_PASSED: Final = ("tools", "chat_template_kwargs")
_LARGEST_ID: Final = 1 << 31
_LONGEST_LABEL: Final = 1024  # characters of a class's name
_MOST_COLUMNS: Final = 12  # columns named in an error
_ALPACA: Final = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
_ALPACA_NO_INPUT: Final = "### Instruction:\n{instruction}\n\n### Response:\n"

_SPOKEN: Final = ("prompt", "messages", "completion", "chosen", "rejected", "text")


class Unusable(Exception):  # noqa: N818  # a row that is not of the format, which becomes a finding
    """The row cannot be used; the exception's text is the reason."""


class Shape(NamedTuple):
    """A format, the trainer that reads it, and the column with the texts to classify."""

    format: DataFormat
    trainer: Trainer
    text_column: str = "text"
    label_column: str = "label"


_KNOWN: Final = (  # the first format whose columns are all present applies
    (("input_ids",), Shape("tokenised", "sft")),
    (("chosen", "rejected"), Shape("preference", "dpo")),
    (("prompt", "completion", "label"), Shape("kto", "kto")),
    (("prompt", "completion"), Shape("prompt-completion", "sft")),
    (("messages",), Shape("messages", "sft")),
    (("conversations",), Shape("sharegpt", "sft")),
    (("instruction", "output"), Shape("instruction", "sft")),
    (("instruction", "response"), Shape("instruction", "sft")),
)


def recognise(row: Mapping[str, Json], task: str | None = None) -> Shape:
    """The format of a data set, recognised by one of its rows.

    Args:
        row: the first usable row.
        task: what is trained, such as `reward`; it decides which trainer reads preferences.

    Raises:
        ConfigError: the columns are of no known format.
    """
    for columns, shape in _KNOWN:
        if row.keys() >= set(columns):
            preferred = shape.format == "preference" and task in {"reward", "rm"}
            return shape._replace(trainer="reward") if preferred else shape
    label = next((name for name in _LABEL_COLUMNS if name in row), None)
    text = next((name for name in _TEXT_COLUMNS if name in row), None)
    if label is not None and text is not None:
        return Shape("classification", "classification", text, label)
    if "text" in row:
        return Shape("text", "sft")
    raise ConfigError(
        f"columns {few(list(row), _MOST_COLUMNS) or 'none'}: expected those of a known format",
        advice="messages; conversations; prompt, completion; instruction, output; text; chosen, rejected; "
        "text, label; input_ids, labels",
    )


def canonical(row: Mapping[str, Json], shape: Shape, *, chat: bool, trl: bool) -> Columns:
    """The row in the columns that the trainer tokenises.

    Args:
        row: the row as stored in the file.
        shape: the format of the data set.
        chat: whether the tokenizer has a chat template, which decides how an instruction is written.
        trl: whether to keep roles as TRL does; otherwise `human` and `gpt` become `user` and `assistant`.

    Raises:
        Unusable: a column is missing or of another type.
    """
    found = _READERS[shape.format](row, shape, chat)
    if not trl:
        found = {name: _common_roles(value) for name, value in found.items()}
    return {**found, **{name: row[name] for name in _PASSED if row.get(name)}}


def _messages(row: Mapping[str, Json], _: Shape, __: bool) -> Columns:  # noqa: FBT001  # the readers' one signature
    return {"messages": conversation(row, "messages")}


def _sharegpt(row: Mapping[str, Json], _: Shape, __: bool) -> Columns:  # noqa: FBT001
    given = _column(row, "conversations")
    if not isinstance(given, list):
        raise Unusable("conversations: expected a list of turns")
    turns = [_renamed(turn) for turn in given]
    if isinstance(row.get("system"), str) and row["system"]:
        turns = [{"role": "system", "content": row["system"]}, *turns]
    return {"messages": conversation({"conversations": turns}, "conversations")}


def _renamed(turn: Json) -> Json:
    if not isinstance(turn, dict):
        return turn
    names = {"from": "role", "value": "content"}
    return {names.get(key, key): value for key, value in turn.items()}


def _pair(row: Mapping[str, Json], _: Shape, __: bool) -> Columns:  # noqa: FBT001
    found = {name: _said(row, name) for name in ("prompt", "completion")}
    if isinstance(found["prompt"], str) is not isinstance(found["completion"], str):
        raise Unusable("prompt and completion: one is text, the other a list of messages")
    return found


def _instruction(row: Mapping[str, Json], _: Shape, chat: bool) -> Columns:  # noqa: FBT001
    answer = _text(row, "output" if "output" in row else "response")
    instruction, extra = _text(row, "instruction"), row.get("input") or ""
    if not isinstance(extra, str):
        raise Unusable("input: expected text")
    if not chat:
        pattern = _ALPACA if extra else _ALPACA_NO_INPUT
        return {"prompt": pattern.format(instruction=instruction, input=extra), "completion": answer}
    system = row.get("system")
    before = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    asked = f"{instruction}\n{extra}" if extra else instruction
    prompt = [*before, {"role": "user", "content": asked}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]}


def _plain(row: Mapping[str, Json], _: Shape, __: bool) -> Columns:  # noqa: FBT001
    return {"text": _text(row, "text")}


def _preference(row: Mapping[str, Json], shape: Shape, _: bool) -> Columns:  # noqa: FBT001
    found: Columns = {name: _said(row, name) for name in ("chosen", "rejected")}
    if isinstance(found["chosen"], str) is not isinstance(found["rejected"], str):
        raise Unusable("chosen and rejected: one is text, the other a list of messages")
    if "prompt" in row:
        found["prompt"] = _said(row, "prompt")
        if isinstance(found["prompt"], str) is not isinstance(found["chosen"], str):
            raise Unusable("prompt and chosen: one is text, the other a list of messages")
    elif shape.trainer == "dpo":
        found = _without_prompt(found["chosen"], found["rejected"])
    return found


def _without_prompt(chosen: Json, rejected: Json) -> Columns:
    """The prompt that both answers begin with, and the rest of each, as in `trl.data_utils.extract_prompt`."""
    shorter = min(len(chosen), len(rejected))
    differs = next((i for i in range(shorter) if chosen[i] != rejected[i]), None)
    place = max(shorter - 1, 0) if differs is None else differs
    if differs and chosen[differs - 1] == " ":
        place -= 1
    if not place and not isinstance(chosen, str):
        raise Unusable("no prompt: chosen and rejected differ from the beginning")
    return {"prompt": chosen[:place], "chosen": chosen[place:], "rejected": rejected[place:]}


def _kto(row: Mapping[str, Json], shape: Shape, chat: bool) -> Columns:  # noqa: FBT001
    label = _column(row, "label")
    if not isinstance(label, bool) and label not in {0, 1, "true", "false", "True", "False"}:
        raise Unusable("label: expected true or false")
    return {
        **_pair(row, shape, chat),
        "label": label if isinstance(label, bool) else str(label) in {"1", "true", "True"},
    }


def _classification(row: Mapping[str, Json], shape: Shape, _: bool) -> Columns:  # noqa: FBT001
    label = _column(row, shape.label_column)
    if isinstance(label, list | dict):
        raise Unusable(f"{shape.label_column}: expected one label")
    if len(label) > _LONGEST_LABEL if isinstance(label, str) else abs(label) > _LARGEST_ID:
        raise Unusable(f"{shape.label_column}: longer than a label is")
    return {"text": _text(row, shape.text_column), "label": _number(label)}


def _number(label: Json) -> Json:
    """A label of a CSV as a number if it is one; otherwise unchanged."""
    if isinstance(label, str) and label.strip().lstrip("-").isdecimal():
        return int(label)
    return int(label) if isinstance(label, float) and label.is_integer() else label


def _tokenised(row: Mapping[str, Json], _: Shape, __: bool) -> Columns:  # noqa: FBT001
    found: Columns = {"input_ids": _ids(row, "input_ids")}
    for name in ("labels", "completion_mask", "assistant_masks"):
        if row.get(name) is not None:
            found[name] = _ids(row, name)
            if len(found[name]) != len(found["input_ids"]):
                raise Unusable(f"{name}: {len(found[name])} values for {len(found['input_ids'])} tokens")
    return found


def _ids(row: Mapping[str, Json], name: str) -> list[int]:
    value = row[name]
    value = _parsed(value) if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
        raise Unusable(f"{name}: expected a list of whole numbers")
    if any(abs(item) > _LARGEST_ID for item in value):
        raise Unusable(f"{name}: a number beyond 2^31, where token ids are expected")
    if not value:
        raise Unusable(f"{name}: empty")
    return value


def _said(row: Mapping[str, Json], name: str) -> Json:
    """The value of a column that holds text or messages."""
    value = _column(row, name)
    if isinstance(value, str) and value.lstrip().startswith("[{"):  # a CSV holds messages as JSON
        parsed = _parsed(value)
        value = parsed if isinstance(parsed, list) else value
    return value if isinstance(value, str) else conversation({name: value}, name)


def _parsed(text: str) -> Json:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _text(row: Mapping[str, Json], name: str) -> str:
    value = _column(row, name)
    if not isinstance(value, str):
        raise Unusable(f"{name}: expected text, got {type(value).__name__}")
    return value


def _column(row: Mapping[str, Json], name: str) -> Json:
    if row.get(name) is None:
        raise Unusable(f"{name}: missing")
    return row[name]


def conversation(row: Mapping[str, Json], name: str) -> list[dict[str, Json]]:
    """The messages of a column, each of which has a role.

    Raises:
        Unusable: the column holds no messages.
    """
    value = _column(row, name)
    value = _parsed(value) if isinstance(value, str) else value
    if not isinstance(value, list) or not value:
        raise Unusable(f"{name}: expected a list of messages with role and content")
    for turn in value:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise Unusable(f"{name}: expected messages with role and content")
        content = turn.get("content")
        if not isinstance(content, str) and not (content is None and turn.get("tool_calls")) and not _parts(content):
            raise Unusable(f"{name}: a message without content")
    return value


def _parts(content: Json) -> bool:
    """Whether the content is a list of parts, all of them text."""
    return isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content)


def _common_roles(value: Json) -> Json:
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return value
    return [{**turn, "role": _ROLES.get(turn.get("role"), turn.get("role"))} for turn in value]


def text_of(value: Json) -> str:
    """The text of a column of text or messages, without system messages and roles."""
    if isinstance(value, str):
        return value
    return "\n".join(content_of(turn) for turn in _turns(value) if turn.get("role") != "system")


def _turns(value: Json) -> Iterable[Mapping[str, Json]]:
    return (turn for turn in value if isinstance(turn, dict)) if isinstance(value, list) else ()


def content_of(turn: Mapping[str, Json]) -> str:
    """The text of one message."""
    content = turn.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def whole_text(columns: Columns) -> str:
    """The whole text of a row, for comparison with other rows; system messages are left out."""
    return "\n".join(text_of(columns[name]) for name in _SPOKEN if name in columns)


def answers_of(columns: Columns) -> list[str]:
    """The answers of a row, which a model should learn to write; none for plain text."""
    if "messages" in columns:
        turns = _turns(columns["messages"])
        return [
            content_of(turn)
            for turn in turns
            if turn.get("role") in {"assistant", "gpt"} and not turn.get("tool_calls")
        ]
    return [text_of(columns[name]) for name in ("completion", "chosen", "rejected") if name in columns]


_READERS: Final[dict[DataFormat, Callable[[Mapping[str, Json], Shape, bool], Columns]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt-completion": _pair,
    "instruction": _instruction,
    "text": _plain,
    "preference": _preference,
    "kto": _kto,
    "classification": _classification,
    "tokenised": _tokenised,
}
