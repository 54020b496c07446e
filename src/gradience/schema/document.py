"""Report documents: the Structs that verbs return, as JSON in which no key is ever missing.

Telemetry events leave out what is at its default, because a log holds millions of them. A report is read by scripts, so
its document has every key of its schema at every level: empty lists, null and zero are written out.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from gradience.schema.display import as_html, summary, table_of
from gradience.schema.scalars import Json


class Report(msgspec.Struct, kw_only=True, frozen=True):
    """What a verb of the library returns."""

    def to_dict(self) -> dict[str, Json]:
        """The document as plain dicts and lists, with every key of its schema."""
        document: dict[str, Json] = _expanded(self)
        return document

    def to_json(self) -> str:
        """The document as indented JSON, with every key of its schema."""
        return msgspec.json.format(msgspec.json.encode(self.to_dict())).decode()

    def table(self, name: str) -> list[dict[str, Any]]:
        """One of its lists as rows of plain values, which pandas.DataFrame and polars.DataFrame take as columns.

        Raises:
            ValueError: it has no such list; the message has the names of those it has.
        """
        return table_of(self, name)

    def __repr__(self) -> str:
        """A summary: scalars, the ids of findings, how long the lists are."""
        return summary(self)

    def _repr_html_(self) -> str:
        """The summary and the findings as tables, for a notebook."""
        return as_html(self)


def _expanded(value: Json) -> Json:
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        tag = {} if config.tag_field is None else {config.tag_field: config.tag}
        keys = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        return tag | {key: _expanded(getattr(value, name)) for key, name in keys}
    if isinstance(value, dict):
        return {writable(key): _expanded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_expanded(item) for item in value]
    return writable(value)


def writable(value: Json) -> Json:
    r"""The value with texts that UTF-8 can hold: a byte of a path that is not UTF-8 becomes `\xff`.

    The names of files are bytes, which Python keeps as lone surrogates; JSON has no place for those.
    """
    if isinstance(value, str):
        return value if value.isascii() else _decodable(value)
    if isinstance(value, dict):
        return {writable(key): writable(item) for key, item in value.items()}
    return [writable(item) for item in value] if isinstance(value, list) else value


def _decodable(text: str) -> str:
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        raw = text.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


_STEERING: Final = re.compile(  # Cc but newline, Cf, Zl and Zp of Unicode 16
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0001-\U000e007f]"
)
_NOT_ASCII: Final = re.compile(r"[^\n\x20-\x7e]")


def escape_controls(text: str) -> str:
    """A JSON text of the same value, without characters that steer a terminal or turn the order of letters."""
    return _STEERING.sub(_escaped, text)


def escape_all(text: str) -> str:
    """A JSON text of the same value, in ASCII."""
    return _NOT_ASCII.sub(_escaped, text)


def _escaped(hit: re.Match[str]) -> str:
    units = hit[0].encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
