"""The formats of rows: recognised by their columns, and each row in the columns that its trainer tokenises.

Columns of TRL are treated as in TRL 1.16 (data_utils.py); those of other programs as they write them: Alpaca and
ShareGPT with `chosen`, `rejected` or `kto_tag` as in LLaMA-Factory 0.9, `query` and `response` as in ms-swift 4.6,
`segments` as in Axolotl 0.19. Columns that no program reads are refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from gradience.data import Columns, Shape, Turn, Unusable
from gradience.errors import ConfigError, few
from gradience.schema import Json
from gradience.schema.reports import DataFormat

_TEXT_COLUMNS: Final = ("text", "sentence", "content", "review", "question")
_LABEL_COLUMNS: Final = ("label", "labels")
_ROLES: Final = {
    "human": "user",
    "gpt": "assistant",
    "bing": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function": "tool",
}
_CALLS: Final = frozenset({"function_call", "tool_call"})  # roles whose content is a call
_PASSED: Final = ("tools", "chat_template_kwargs")
_LARGEST_ID: Final = 1 << 31
_LONGEST_LABEL: Final = 1024  # characters of a class's name
_MOST_COLUMNS: Final = 12  # columns named in an error
ALPACA_END: Final = "\n\n### Response:\n"
_ALPACA: Final = "### Instruction:\n{instruction}\n\n### Input:\n{input}" + ALPACA_END
_ALPACA_NO_INPUT: Final = "### Instruction:\n{instruction}" + ALPACA_END
_ASKED: Final = ("instruction", "query", "question")  # columns of a question, if no prompt is stated
_ASKS: Final = ("question", "problem", "query", "instruction", "messages", "input")  # of sets for RL
_BY_PROMPT: Final = frozenset({"grpo", "rloo"})  # tasks whose trainer reads a column prompt
_PARTED: Final = ("seq_lengths", "cu_seq_lens_q", "cu_seqlens", "document_ids", "segment_ids", "sequence_ids")
_PICTURE: Final = re.compile(r"data:image/|[^\s]+\.(?:png|jpe?g|webp|gif|bmp|tiff?)$", re.IGNORECASE)
_ANSWERED: Final = ("output", "response", "answer")
REFERENCES: Final = frozenset({"solution", "answer", "ground_truth", "target", "label", "reference"})
"""Columns with which a reward compares what a model of GRPO wrote."""

_KNOWN: Final = (  # the first format whose columns are all present applies
    (("input_ids",), Shape("tokenised", "sft")),
    (("segments",), Shape("segments", "sft")),
    (("prompt", "completions", "labels"), Shape("steps", "prm")),
    (("chosen", "rejected"), Shape("preference", "dpo")),
    (("rejected_response",), Shape("preference", "dpo")),
    (("prompt", "completion", "label"), Shape("kto", "kto")),
    (("kto_tag",), Shape("kto", "kto", label_column="kto_tag")),
    (("prompt", "completion"), Shape("prompt-completion", "sft")),
    (("messages",), Shape("messages", "sft")),
    (("conversations",), Shape("sharegpt", "sft")),
    (("instruction", "output"), Shape("instruction", "sft")),
    (("instruction", "response"), Shape("instruction", "sft")),
    (("query", "response"), Shape("instruction", "sft")),
    (("question", "answer"), Shape("instruction", "sft")),
)
_READ: Final = frozenset({*_ASKED, *_ANSWERED, "input", "system", "history", "tools", "language", "lang"})
_OPTIONAL: Final = frozenset({"rejected_response", "kto_tag"})  # null where a row has none
_UNREAD: Final = frozenset({"response", "responses", "output", "target", "completions", "text", "summary"})


def recognise(row: Mapping[str, Json], task: str | None = None) -> Shape:
    """The format of a data set, recognised by one of its rows.

    Args:
        row: the first usable row.
        task: what is trained, such as `reward`; it decides which trainer reads preferences.

    Raises:
        ConfigError: the columns are of no known format.
    """
    if task in _BY_PROMPT:
        if "prompt" in row:
            return Shape("prompt-only", "grpo")
        raise ConfigError(
            f"columns {few(list(row), _MOST_COLUMNS) or 'none'}: {task} reads what is asked from a column prompt",
            advice=f"rename {next((name for name in _ASKS if name in row), 'its column')} to prompt",
        )
    names = {name for name, value in row.items() if value is not None or name not in _OPTIONAL}
    for columns, shape in _KNOWN:
        if names >= set(columns):
            if shape.format == "preference" and task in {"reward", "rm"}:
                return shape._replace(trainer="reward")
            others = (name for name, value in row.items() if isinstance(value, str) and name not in _READ)
            return shape._replace(unread=tuple(others)) if shape.format == "instruction" else shape
    label = next((name for name in _LABEL_COLUMNS if name in row), None)
    text = next((name for name in _TEXT_COLUMNS if name in row), None)
    if label is not None and text is not None:
        return Shape("classification", "classification", text, label)
    if "text" in row:
        return Shape("text", "sft")
    if "prompt" in row and not row.keys() & _UNREAD:
        return Shape("prompt-only", "grpo")
    raise ConfigError(
        f"columns {few(list(row), _MOST_COLUMNS) or 'none'}: expected those of a known format",
        advice="rename them to messages; conversations; prompt, completion; instruction, output; query, response; "
        "question, answer; text; chosen, rejected; prompt (GRPO); prompt, completions, labels (PRM); segments; text, "
        "label; input_ids, labels",
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
    columns = _READERS[shape.format](row, shape, chat)
    if not trl:
        read = {name: _common_roles(value) for name, value in columns.items()}
        columns = read if read == columns else {**read, "translated": True}
    passed = {name: row[name] for name in _PASSED if row.get(name)}
    if name := next((name for name in ("images", "image") if name in row), None):
        images = row[name]
        passed["images"] = images if isinstance(images, list) else [] if images is None else [images]
    elif any(map(_is_picture, (*row.values(), *(part for name in columns for part in _parts_in(columns[name]))))):
        passed["pictured"] = True
    if row.get("videos") or row.get("audios"):
        passed["media"] = True
    return {**columns, **passed}


def _is_picture(value: Json) -> bool:
    """Whether a value holds an image: a path, a `data:` URL, bytes as `datasets` stores them, a part of a message."""
    if isinstance(value, dict):
        places = [value[name] for name in ("image", "image_url", "url", "path") if value.get(name)]
        return ("image" in str(value.get("type")) and bool(places)) or value.keys() == {"bytes", "path"}
    if isinstance(value, list):
        # A list of lists is no list of images, and a stranger's may be nested as deep as a file can hold.
        return bool(value) and not isinstance(value[0], list) and _is_picture(value[0])
    return isinstance(value, str) and _PICTURE.match(value) is not None


def _parts_in(value: Json) -> Iterator[Json]:
    """The parts of the messages of a column."""
    for turn in value if isinstance(value, list) else ():
        content = turn.get("content") if isinstance(turn, dict) else None
        yield from content if isinstance(content, list) else ()


def _messages(row: Mapping[str, Json], _: Shape, __: bool) -> Columns:  # noqa: FBT001  # the readers' one signature
    return {"messages": conversation(row, "messages")}


def _sharegpt(row: Mapping[str, Json], _: Shape, __: bool) -> Columns:  # noqa: FBT001
    return {"messages": [*_system(row), *conversation(row, "conversations")]}


def _system(row: Mapping[str, Json]) -> list[Turn]:
    system = row.get("system")
    return [{"role": "system", "content": system}] if isinstance(system, str) and system else []


def _pair(row: Mapping[str, Json], _: Shape, __: bool) -> Columns:  # noqa: FBT001
    columns = {name: _said(row, name) for name in ("prompt", "completion")}
    if isinstance(columns["prompt"], str) is not isinstance(columns["completion"], str):
        raise Unusable("prompt and completion: one is text, the other a list of messages")
    return columns


def _instruction(row: Mapping[str, Json], _: Shape, chat: bool) -> Columns:  # noqa: FBT001
    answer = _text(row, next((name for name in _ANSWERED if name in row), "output"))
    return _answered(_asked(row, chat=chat), answer, "completion")


def _asked(row: Mapping[str, Json], *, chat: bool) -> Json:
    """The question of a row as messages, with its system text and history; as text if there is no template."""
    name = next((name for name in _ASKED if name in row), "instruction")
    instruction, extra = _text(row, name), row.get("input") or ""
    if not isinstance(extra, str):
        raise Unusable("input: expected text")
    if not chat:
        pattern = _ALPACA if extra else _ALPACA_NO_INPUT
        return pattern.format(instruction=instruction, input=extra)
    question = "\n".join(part for part in (instruction, extra) if part)
    return [*_system(row), *_history(row), {"role": "user", "content": question}]


def _history(row: Mapping[str, Json]) -> list[Turn]:
    """Earlier questions and answers, as LLaMA-Factory and ms-swift store them."""
    pairs = row.get("history") or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in pairs
    ):  # question and answer
        raise Unusable("history: expected pairs of question and answer")
    turns = [(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    return [{"role": role, "content": text} for role, text in turns if isinstance(text, str)]


def _answered(prompt: Json, answer: Json, name: str) -> Columns:
    """A prompt and an answer, both as text or both as messages."""
    spoken = answer if isinstance(prompt, str) or isinstance(answer, list) else [_assistant(answer)]
    return {"prompt": prompt, name: spoken}


def _assistant(answer: Json) -> Turn:
    return {"role": "assistant", "content": answer}


def _plain(row: Mapping[str, Json], _: Shape, __: bool) -> Columns:  # noqa: FBT001
    return {"text": _text(row, "text")}


def _preference(row: Mapping[str, Json], shape: Shape, chat: bool) -> Columns:  # noqa: FBT001
    if "rejected_response" in row:
        return _rejected(row, chat=chat)
    if "prompt" not in row:
        if any(name in row for name in _ASKED) and isinstance(row["chosen"], str):
            prompt = _asked(row, chat=chat)
            sides = (_answered(prompt, _text(row, side), side) for side in ("chosen", "rejected"))
            return {name: value for side in sides for name, value in side.items()}
        if "conversations" in row or "messages" in row:
            return _after_turns(row)
    columns: Columns = {name: _said(row, name) for name in ("chosen", "rejected")}
    if isinstance(columns["chosen"], str) is not isinstance(columns["rejected"], str):
        raise Unusable("chosen and rejected: one is text, the other a list of messages")
    if "prompt" in row:
        columns["prompt"] = _said(row, "prompt")
        if isinstance(columns["prompt"], str) is not isinstance(columns["chosen"], str):
            raise Unusable("prompt and chosen: one is text, the other a list of messages")
    elif shape.trainer == "dpo":
        columns = _without_prompt(columns["chosen"], columns["rejected"])
    return columns


def _after_turns(row: Mapping[str, Json]) -> Columns:
    """Turns in one column, and the two answers that may follow, as LLaMA-Factory reads ShareGPT preferences."""
    name = "conversations" if "conversations" in row else "messages"
    prompt = [*_system(row), *conversation(row, name)]
    return {"prompt": prompt, **{side: _side(row, side) for side in ("chosen", "rejected")}}


def _side(row: Mapping[str, Json], name: str) -> list[Turn]:
    value = _column(row, name)
    if isinstance(value, str):
        return [_assistant(value)]
    return conversation({name: [value] if isinstance(value, dict) else value}, name)


def _rejected(row: Mapping[str, Json], *, chat: bool) -> Columns:
    """The answer and the rejected one of ms-swift: `rejected_response` stands for the last answer."""
    prompt: Json
    if "messages" in row:
        turns = conversation(row, "messages")
        prompt, answer = turns[:-1], _answered(turns[:-1], turns[-1:], "chosen")
    else:
        prompt = _asked(row, chat=chat)
        answer = _answered(prompt, _text(row, "response"), "chosen")
    return {**answer, **_answered(prompt, _text(row, "rejected_response"), "rejected")}


def _without_prompt(chosen: Json, rejected: Json) -> Columns:
    """The prompt that both answers begin with, and the rest of each, as in `trl.data_utils.extract_prompt`."""
    shorter = min(len(chosen), len(rejected))
    differs = next((i for i in range(shorter) if chosen[i] != rejected[i]), None)
    # Where nothing differs, TRL's loop ends at the last place, so one element is left for each answer.
    place = max(shorter - 1, 0) if differs is None else differs
    if differs and chosen[differs - 1] == " ":
        place -= 1
    if not place and not isinstance(chosen, str):
        raise Unusable("no prompt: chosen and rejected differ from the beginning")
    return {"prompt": chosen[:place], "chosen": chosen[place:], "rejected": rejected[place:]}


def _kto(row: Mapping[str, Json], shape: Shape, chat: bool) -> Columns:  # noqa: FBT001
    label = _column(row, shape.label_column)
    if not isinstance(label, bool) and label not in {0, 1, "true", "false", "True", "False"}:
        raise Unusable(f"{shape.label_column}: expected true or false")
    return {
        **_tagged(row, shape, chat=chat),
        "label": label if isinstance(label, bool) else str(label) in {"1", "true", "True"},
    }


def _tagged(row: Mapping[str, Json], shape: Shape, *, chat: bool) -> Columns:
    if "completion" in row:
        return _pair(row, shape, chat)
    if "messages" not in row and "conversations" not in row:
        return _instruction(row, shape, chat)
    name = "messages" if "messages" in row else "conversations"
    turns = [*_system(row), *conversation(row, name)]
    return {"prompt": turns[:-1], "completion": turns[-1:]}


def _prompt_only(row: Mapping[str, Json], _: Shape, __: bool) -> Columns:  # noqa: FBT001
    return {"prompt": _said(row, "prompt")}


def _steps(row: Mapping[str, Json], _: Shape, __: bool) -> Columns:  # noqa: FBT001
    steps, labels = _column(row, "completions"), _column(row, "labels")
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps) or not steps:
        raise Unusable("completions: expected a list of texts, one for each step")
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise Unusable("labels: expected true or false for each step")
    if len(labels) != len(steps):
        raise Unusable(f"labels: {len(labels)} for {len(steps)} steps")
    return {"prompt": _text(row, "prompt"), "steps": steps, "step_labels": [bool(label) for label in labels]}


def _segments(row: Mapping[str, Json], _: Shape, __: bool) -> Columns:  # noqa: FBT001
    segments = _column(row, "segments")
    if not isinstance(segments, list) or not segments:
        raise Unusable("segments: expected a list of label and text")
    for one in segments:
        if not isinstance(one, dict) or not isinstance(one.get("text"), str) or not isinstance(one.get("label"), bool):
            raise Unusable("segments: expected a text with a label of true or false")
    return {"segments": segments}


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
    columns: Columns = {"input_ids": _ids(row, "input_ids")}
    for name in ("labels", "completion_mask", "assistant_masks"):
        if row.get(name) is not None:
            columns[name] = _ids(row, name)
            if len(columns[name]) != len(columns["input_ids"]):
                raise Unusable(f"{name}: {len(columns[name])} values for {len(columns['input_ids'])} tokens")
    positions, mask = row.get("position_ids"), row.get("attention_mask")
    # A packer shows where texts begin: positions start at 0 again, or the mask is square or numbers the texts.
    anew = isinstance(positions, list) and positions.count(0) > 1
    apart = isinstance(mask, list) and (isinstance(mask[0], list) or mask[-1] not in (0, 1)) if mask else False
    if anew or apart or any(row.get(name) is not None for name in _PARTED):
        columns["parted"] = True
    return columns


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


def conversation(row: Mapping[str, Json], name: str) -> list[Turn]:
    """The messages of a column, each of which has a role.

    Raises:
        Unusable: the column holds no messages.
    """
    value = _column(row, name)
    value = _parsed(value) if isinstance(value, str) else value
    if not isinstance(value, list) or not value:
        raise Unusable(f"{name}: expected a list of messages with role and content, not {_kind_of(value)}")
    turns = [_renamed(turn) for turn in value]
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise Unusable(f"{name}: expected messages with role and content")
        content = turn.get("content")
        if not isinstance(content, str) and not _parts(content) and not _calls(turn):
            raise Unusable(f"{name}: a message without content")
    return turns


def _kind_of(value: Json) -> str:
    names = {str: "a text", bool: "true or false", list: "an empty list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")


def _renamed(turn: Json) -> Json:
    """The turn with `role` and `content` for ShareGPT's `from` and `value`, as `trl.maybe_convert_to_chatml`."""
    if not isinstance(turn, dict) or not ("from" in turn or "value" in turn):
        return turn
    names = {"from": "role", "value": "content"}
    return {names.get(key, key): value for key, value in turn.items()}


def _calls(turn: Turn) -> bool:
    """Whether a turn without content holds a call or a thought in its place."""
    names = ("tool_calls", "function_call", "reasoning_content", "reasoning")
    return turn.get("content") is None and any(turn.get(name) for name in names)


def _parts(content: Json) -> bool:
    """Whether the content is a list of parts, each with its type."""
    return isinstance(content, list) and all(isinstance(part, dict) and part.get("type") for part in content)


def _common_roles(value: Json) -> Json:
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return value
    return [_common_role(turn) for turn in value]


def _common_role(turn: Turn) -> Turn:
    role, content = turn.get("role"), turn.get("content")
    old = turn.get("function_call")
    if role not in _CALLS and not (isinstance(old, dict) and not turn.get("tool_calls")):
        return {**turn, "role": _ROLES[role]} if role in _ROLES else turn
    call = old if isinstance(old, dict) else _parsed(content) if isinstance(content, str) else None
    calls = [one for one in (call if isinstance(call, list) else [call]) if isinstance(one, dict)]
    if not calls:
        return {**turn, "role": "assistant"}
    made = [{"type": "function", "function": _with_object(one)} for one in calls]
    # Under the role function_call the content is the call itself, which would be written twice.
    return {"role": "assistant", "content": content if isinstance(old, dict) and content else "", "tool_calls": made}


def _with_object(call: Turn) -> Turn:
    """A call in the old form, whose arguments are always text, with its arguments as an object."""
    arguments = call.get("arguments")
    # Templates write arguments by `tojson`, which would encode a text once more.
    parsed = _parsed(arguments) if isinstance(arguments, str) else None
    return {**call, "arguments": parsed} if isinstance(parsed, dict) else call


_READERS: Final[dict[DataFormat, Callable[[Mapping[str, Json], Shape, bool], Columns]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt-completion": _pair,
    "instruction": _instruction,
    "text": _plain,
    "preference": _preference,
    "kto": _kto,
    "prompt-only": _prompt_only,
    "steps": _steps,
    "segments": _segments,
    "classification": _classification,
    "tokenised": _tokenised,
}
