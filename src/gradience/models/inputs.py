"""Inputs of a model from a user's file: rows of text, prompts or conversations, or token ids, as padded batches.

Rows are chosen by a seeded hash of their content. The choice therefore does not depend on the order of the rows, and
equal rows count once. A file of any length is read in one pass, with only the chosen rows in memory. torch is not
imported.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from gradience.data.encoder import Chat, Encoder
from gradience.errors import ConfigError
from gradience.io import PathLike
from gradience.io.columnar import rows_of
from gradience.io.reading import decode_json, numbered_lines, open_regular
from gradience.models import LoadedModel

LONGEST: Final = 512  # tokens of an input; longer inputs are cut, as their first predictions compare as well
_LARGEST_ROW: Final = 16 << 20  # bytes of a line; a conversation of a million tokens takes about 5 MB
_PARQUET: Final = b"PAR1"
_FIELDS: Final = ("messages", "text", "prompt", "input_ids")
_COMPLETIONS: Final = ("completion", "response", "output")
_WANTED: Final = "one JSON object a line with text, prompt or messages, or plain text with an input a line"

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class ModelInput(NamedTuple):
    """One input: its tokens, the positions [first, stop) whose predictions count, and its label if the row has one.

    A causal model predicts token t + 1 at position t. A sequence classifier makes one prediction, whatever the
    positions.
    """

    ids: tuple[int, ...]
    first: int
    stop: int
    label: int | str | None = None


class Inputs(NamedTuple):
    """The chosen inputs, the number of different inputs in the file, and the number of inputs that were cut."""

    examples: list[ModelInput]
    found: int
    cut: int


def digest_of(examples: Iterable[ModelInput]) -> str:
    """`sha256:...` of the token ids of the examples in their order."""
    whole = hashlib.sha256()
    for example in examples:
        whole.update(json.dumps([example.ids, example.first, example.stop]).encode() + b"\n")
    return f"sha256:{whole.hexdigest()}"


class InputBatch(NamedTuple):
    """Rows of similar length, padded on the right.

    `ids`, `mask`, and `counts`, which says whether a prediction counts, have shape (rows, width). `rows` are indices of
    the examples.
    """

    ids: Ints
    mask: Ints
    counts: Bools
    rows: list[int]


def read_inputs(path: PathLike, loaded: LoadedModel, *, most: int, seed: int = 0, longest: int = LONGEST) -> Inputs:
    """Read up to `most` different inputs of a file, chosen by the seed, as tokens of the model.

    Args:
        path: JSONL or Parquet whose rows have `text`, `prompt` or `messages`; or text with an input on each line. With
            a `completion` beside `prompt`, only its predictions count.
        loaded: the model, for its tokenizer, task and length.
        most: maximal number of inputs.
        seed: seed of the choice.
        longest: maximal number of tokens; longer inputs are cut.

    Raises:
        ConfigError: the file cannot be read, or a row has none of these forms; the message has the line.
    """
    place = Path(path)
    if loaded.tokenizer is None:
        raise ConfigError(
            f"{place} holds texts, and neither the base nor the adapter has a tokenizer beside it",
            advice="save the tokenizer with the base",
        )
    chosen, count = _chosen(_rows(place), most, seed)
    limit = min(longest, loaded.longest or longest)
    read = _Reader(place, loaded, limit)
    examples = [read.example(number, row) for number, row in chosen]
    return Inputs([e for e in examples if e.first < e.stop], count, read.cut)


def batches(examples: Sequence[ModelInput], *, tokens: int, pad: int | None) -> list[InputBatch]:
    """Return the examples in batches, the longest examples first.

    Args:
        examples: the inputs.
        tokens: maximal rows times width of a batch, padding included; a single row may exceed it.
        pad: the token id that pads short rows; None puts every row in a batch of its own.
    """
    order = sorted(range(len(examples)), key=lambda i: (-len(examples[i].ids), i))
    made: list[InputBatch] = []
    while order:
        width = len(examples[order[0]].ids)
        count = 1 if pad is None else max(1, tokens // width)
        rows, order = order[:count], order[count:]
        made.append(_batch(examples, rows, width, pad or 0))
    return made


def _batch(examples: Sequence[ModelInput], rows: list[int], width: int, pad: int) -> InputBatch:
    ids = np.full((len(rows), width), pad, np.int64)
    mask = np.zeros_like(ids)
    counts = np.zeros(ids.shape, np.bool_)
    for place, row in enumerate(rows):
        example = examples[row]
        ids[place, : len(example.ids)] = example.ids
        mask[place, : len(example.ids)] = 1
        counts[place, example.first : example.stop] = True
    return InputBatch(ids, mask, counts, rows)


Row = dict[str, Any] | list[Any] | str


def _chosen(rows: Iterable[tuple[int, Row]], most: int, seed: int) -> tuple[list[tuple[int, Row]], int]:
    """The rows with the lowest hashes of seed and content, by rising hash; and the number of different rows."""
    keys: set[int] = set()
    kept: list[tuple[int, int, Row]] = []
    for number, row in rows:
        # In ASCII, because a lone surrogate cannot be encoded; `str` is for the dates and bytes of a Parquet file.
        content = json.dumps(row, sort_keys=True, ensure_ascii=True, default=str)
        key = int.from_bytes(hashlib.sha256(f"{seed}\0{content}".encode()).digest()[:8], "big")
        if key in keys:
            continue
        keys.add(key)
        entry = (-key, number, row)
        if len(kept) < most:
            heapq.heappush(kept, entry)
        elif entry[0] > kept[0][0]:
            heapq.heapreplace(kept, entry)
    return [(number, row) for _, number, row in sorted(kept, key=lambda entry: -entry[0])], len(keys)


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Each row with its number from 1; a row is an object, a list, or a line of plain text."""
    try:
        with open_regular(path) as file:
            head = file.peek(4096)[:4096]
            if head[:4] == _PARQUET:
                yield from _of_parquet(path)
                return
            if not head:
                raise ConfigError(f"{path} is empty", advice=f"give {_WANTED}")
            as_json = head.lstrip()[:1] in {b"{", b"["}
            for number, line in numbered_lines(file, _LARGEST_ROW):
                if line is None:
                    raise ConfigError(
                        f"{path}:{number}: a line of over {_LARGEST_ROW >> 20} MiB", advice=f"give {_WANTED}"
                    )
                if line.strip():
                    yield number, _decoded(path, number, line.strip(), as_json=as_json)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", advice=f"give {_WANTED}") from error


def _decoded(path: Path, number: int, line: bytes, *, as_json: bool) -> Row:
    try:
        if as_json:
            row: Row = decode_json(line, dict[str, Any] | list[Any])  # type: ignore[arg-type]  # a union is a type to msgspec
            return row
        text = line.decode("utf-8")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        what = "no JSON object" if as_json else "no UTF-8 text"
        raise ConfigError(f"{path}:{number}: {what}: {error}", advice=f"give {_WANTED}") from error
    if "\0" in text:
        raise ConfigError(f"{path}:{number}: a NUL: this is not text", advice=f"give {_WANTED}")
    return text


def _of_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        for number, row in rows_of(path, columns=[*_FIELDS, *_COMPLETIONS, "label"]):
            if isinstance(row, str):
                raise ConfigError(f"{path}, row {number}: {row}", advice=f"give {_WANTED}")
            yield number, row
    except ValueError as error:
        raise ConfigError(f"{path} is damaged Parquet: {error}", advice=f"give {_WANTED}") from error


class _Reader:
    """A reader that turns the rows of one file into examples, and counts those that were cut."""

    def __init__(self, path: Path, loaded: LoadedModel, longest: int) -> None:
        self._path = path
        self._loaded = loaded
        self._longest = longest
        self.cut = 0

    def example(self, number: int, row: Row) -> ModelInput:
        """Return the row as an example."""
        label = row.get("label") if isinstance(row, dict) else None
        if label is not None and not isinstance(label, int | str):
            raise self._fault(number, f"label is {type(label).__name__}, expected a number or a name")
        ids, prompt, opened = self._encoded(number, row)
        if len(ids) > self._longest:
            self.cut += 1
            # Where a text was cut, the model is not the one to continue it.
            ids, opened = ids[: self._longest], False
        first, stop = self._places(ids, prompt, opened=opened)
        return ModelInput(tuple(ids), first, stop, label)

    def _places(self, ids: Sequence[int], prompt: int, *, opened: bool) -> tuple[int, int]:
        """The positions [first, stop) whose predictions count; `opened`: the model is to continue the text."""
        if self._loaded.task == "causal-lm":
            # The prompt's last token already predicts the completion's first.
            return max(prompt - 1, 0), len(ids) - (0 if opened else 1)
        if self._loaded.task == "sequence-classification":
            return 0, len(ids)
        # The tokens that a tokenizer adds at both ends are no words, and have no label.
        special = frozenset() if self._loaded.tokenizer is None else self._loaded.tokenizer.special_ids
        return int(bool(ids) and ids[0] in special), len(ids) - int(bool(ids) and ids[-1] in special)

    def _encoded(self, number: int, row: Row) -> tuple[list[int], int, bool]:
        """The row's tokens, the length of a prompt whose own predictions do not count, and whether it is open."""
        if isinstance(row, str):
            return self._tokens(row), 0, False
        if not isinstance(row, dict):
            raise self._fault(number, "a list, expected an object with text, prompt or messages")
        if isinstance(messages := row.get("messages"), list):
            return self._conversation(number, messages)
        if isinstance(text := row.get("text"), str):
            return self._tokens(text), 0, False
        if isinstance(prompt := row.get("prompt"), str):
            completion = next((row[name] for name in _COMPLETIONS if isinstance(row.get(name), str)), None)
            if completion is None:
                return self._tokens(prompt), 0, True
            whole, own = self._tokens(prompt + completion), self._tokens(prompt)
            shared = takewhile(lambda pair: pair[0] == pair[1], zip(whole, own, strict=False))
            return whole, sum(1 for _ in shared), False  # a tokenizer may end the prompt with its own token
        columns = ", ".join(sorted(row)) or "nothing"
        raise self._fault(number, f"holds {columns}, expected text, prompt or messages")

    def _conversation(self, number: int, messages: list[Any]) -> tuple[list[int], int, bool]:
        if self._tokenizer.template is None:
            raise self._fault(number, "has messages, and the tokenizer has no chat template")
        if not messages or not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages):
            raise self._fault(number, "messages must each have a role and a content")
        is_open = messages[-1]["role"] != "assistant"
        (encoded,) = self._tokenizer.chats([Chat(messages, prompt=is_open)])
        if isinstance(encoded, str):
            raise self._fault(number, encoded)
        return encoded.ids, 0, is_open

    def _tokens(self, text: str) -> list[int]:
        (ids,) = self._tokenizer.texts([text])
        return ids

    @property
    def _tokenizer(self) -> Encoder:
        if self._loaded.tokenizer is None:
            raise ConfigError(f"{self._path} holds texts, and there is no tokenizer", advice=f"give {_WANTED}")
        return self._loaded.tokenizer

    def _fault(self, number: int, what: str) -> ConfigError:
        return ConfigError(f"{self._path}, row {number}: {what}", advice=f"give {_WANTED}")
