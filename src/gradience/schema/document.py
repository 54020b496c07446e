"""Report documents: the Structs that verbs return, as JSON in which no key is ever missing.

Telemetry events leave out what is at its default, because a log holds millions of them. A report is read by scripts, so
its document has every key of its schema at every level: empty lists, null and zero are written out.
"""

from __future__ import annotations

import msgspec

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


def _expanded(value: Json) -> Json:
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        tag = {} if config.tag_field is None else {config.tag_field: config.tag}
        keys = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        return tag | {key: _expanded(getattr(value, name)) for key, name in keys}
    if isinstance(value, dict):
        return {key: _expanded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_expanded(item) for item in value]
    return value
