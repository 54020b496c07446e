"""When two rows are equal: in everything that a trainer could read, not in the texts alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from gradience.data import Columns, Shape, digest
from gradience.data.rows import Row
from gradience.schema import Json

_IDENTITY: Final = frozenset({  # names of a row, which no trainer reads; a reward function of GRPO may
    "id", "_id", "idx", "index", "uuid", "guid", "row_id", "example_id", "conversation_id", "prompt_id",
    "__index_level_0__",
})  # fmt: skip
_ORIGIN: Final = frozenset({"source", "split", "dataset", "origin", "url", "subset", "meta", "metadata", "score"})
_TAKEN: Final = frozenset({"prompt", "text", "label", "labels", "language", "lang"})  # judged as texts and as labels
_BESIDE: Final = frozenset({  # what stands beside the texts and gives them another sense
    "tools", "functions", "chat_template_kwargs", "images", "image", "videos", "video", "audios", "audio", "documents",
    "document", "context", "contexts", "passage", "passages", "paragraph", "sentence2", "text2", "text_pair", "premise",
    "hypothesis", "question2", "solution", "ground_truth",
})  # fmt: skip
_WHOLE: Final = frozenset({"grpo", "classification"})  # trainers for which any column may give the text its sense


def with_keys(columns: Columns, row: Row, shape: Shape) -> Columns:
    """The columns with the row as `stored`, its hash as `row`, and `beside`, hashes of what its texts depend on.

    A value that is null is one that is missing: Parquet has no other way to leave one out. A row's id does not count,
    except where a reward function could look it up.
    """
    values = {name: _without_nulls(value) for name, value in row.items() if value is not None}
    content = {name: value for name, value in values.items() if shape.trainer == "grpo" or name not in _IDENTITY}
    beside = {name: _hash(values[name]) for name in sorted(_senses(values, shape)) if values[name] not in ([], {}, "")}
    return {**columns, "stored": row, "row": _hash(content), "beside": beside}


def _senses(held: Mapping[str, Json], shape: Shape) -> set[str]:
    if shape.trainer not in _WHOLE:
        return held.keys() & _BESIDE
    return held.keys() - _IDENTITY - _ORIGIN - _TAKEN - {shape.text_column, shape.label_column}


def row_key(columns: Columns) -> bytes:
    """What two rows share that are equal in everything that a trainer could read."""
    return bytes.fromhex(columns["row"]) if "row" in columns else digest(encoded(columns))


def beside_of(columns: Columns) -> Mapping[str, str]:
    """The hashes of what the texts of a row depend on: tools, images, a passage, a solution."""
    columns_beside: Mapping[str, str] = columns.get("beside", {})
    return columns_beside


def differ(some: Mapping[str, str], others: Mapping[str, str]) -> bool:
    """Whether two rows with the same texts are told apart by what stands beside them, in columns that both have."""
    return any(some[name] != others[name] for name in some.keys() & others.keys())


def _hash(value: Json) -> str:
    return digest(encoded(value)).hex()


def encoded(value: Json) -> bytes:
    """A value as bytes; two files may write the keys of one object in another order."""
    return msgspec.json.encode(value, order="sorted", enc_hook=str)


def _without_nulls(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value
