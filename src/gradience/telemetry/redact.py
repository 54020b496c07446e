"""Hide secrets in values, events and whole reports; redact long texts and absolute paths in events.

A value may be marked as secret by a name beside it: a mapping's key, a pair's first half, an option before it. Secrets
never reach a log; long texts do only if asked for. A length limit does not stop secrets (a hub token has 37
characters), so every string is scanned, keys included.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from gradience.errors import RecorderError, SchemaError, said
from gradience.schema.events import Event, EventBase, TrainStep, UnknownEvent
from gradience.schema.flat import refuse_taken
from gradience.telemetry.codec import (
    MAX_LINE_BYTES,
    JsonObject,
    convert,
    decode_known,
    encode_document,
    parse,
    to_document,
)
from gradience.telemetry.secrets import HIDDEN, MAX_NAME, hide_secrets, holds_secret, is_mixed, kind_of

_NAME_KEYS: Final = ("name", "key", "option", "variable", "field")
_VALUE_KEYS: Final = frozenset({
    "value", "val", "default", "values",
})  # fmt: skip

_NUMBERS: Final = frozenset({int, float, bool})

DEFAULT_MAX_STR_LEN: Final = 256
MAX_KEY_LEN: Final = 128
_SCANNED_KEY: Final = 1024  # characters of a key that are scanned, before it is cut to MAX_KEY_LEN
_CONSTANT: Final = frozenset({"schema", "ts", "event", "step", "seq"})  # envelope fields that never hold a user's text
_IDS: Final = frozenset({"run_id", "session"})
_ENVELOPE: Final = _CONSTANT | _IDS
_WHOLE_PATH: Final = re.compile(
    r"/(?=\S|$)|~(?:[A-Za-z_][\w.-]*)?(?:/|$)|\.{1,2}/|[A-Za-z]:[/\\]|\\\\[\w.-]+\\|file://"
)
_HOME_IN_TEXT: Final = re.compile(
    r"(?<![\w.:/\\-])(?:/(?:home|Users|root|mnt|scratch|gpfs|lustre|data|tmp|var|workspace|content)(?:/[\w.@+=-]+)+"
    r"|~(?:[A-Za-z_][\w.-]*)?(?:/[\w.@+=-]+)+|[A-Za-z]:[\\/](?:[\w.@+=-]+[\\/])+[\w.@+=-]+)/?"
)
_TAIL_OF_WORDS: Final = re.compile(r"\s[^/\\]*$")  # the rest of a sentence that begins with a path
_SEPARATORS: Final = re.compile(r"[/\\]+")


def hide_in(value: Any, key: str = "") -> Any:  # noqa: PLR0911  # one return for each type
    """Return a report, or a JSON value, with the secrets in its texts hidden; the same object if there are none.

    Every text below a secret name is hidden, in lists and mappings too. So are the item after `--token` in a list of
    arguments, and the value beside `{"name": "API_KEY"}`. Keys are scanned as texts.
    """
    if isinstance(value, str):
        return HIDDEN if holds_secret(key, value) else hide_secrets(value, key)
    if isinstance(value, msgspec.Struct):
        return _hide_in_fields(value, value.__struct_fields__, key, msgspec.structs.replace)
    if dataclasses.is_dataclass(value):
        return _hide_in_fields(value, [field.name for field in dataclasses.fields(value)], key, dataclasses.replace)
    if isinstance(value, dict):
        hidden = {
            hide_secrets(k) if isinstance(k, str) else k: hide_in(v, below(key, name))
            for (k, v), name in zip(value.items(), names_in(value), strict=True)
        }
        return value if _same(hidden, value) else hidden
    if isinstance(value, (list, tuple)):
        named = zip(value, names_beside(value, key), strict=True)
        items = [item if type(item) in _NUMBERS else hide_in(item, name) for item, name in named]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return items if isinstance(value, list) else getattr(value, "_make", tuple)(items)
    return value


def _hide_in_fields(value: Any, names: Iterable[str], key: str, replace: Callable[..., Any]) -> Any:
    changed = {}
    fields = {name: getattr(value, name) for name in names}
    for (name, old), judged in zip(fields.items(), names_in(fields), strict=True):
        if old is not None and type(old) not in _NUMBERS and (new := hide_in(old, below(key, judged))) is not old:
            changed[name] = new
    return replace(value, **changed) if changed else value


def _same(new: dict[Any, Any], old: dict[Any, Any]) -> bool:
    if len(new) != len(old):
        return False
    return all(k is j and v is w for (k, v), (j, w) in zip(new.items(), old.items(), strict=True))


def below(key: str, name: Any) -> str:
    """Return the name by which a value is judged, given its own name and the key of the mapping that holds it.

    Below a secret key, a harmless name does not end the secrecy.

    >>> below("hub_token", "value"), below("wandb", "key"), below("config", "lr")
    ('hub_token', 'wandb.key', 'lr')
    """
    if not isinstance(name, str):
        return key
    if key and kind_of(key[-MAX_NAME:]) in {"secret", "token"} and not kind_of(name[-MAX_NAME:]):
        return key
    return f"{key}.{name}" if "wandb" in key[:MAX_NAME].lower() else name


def names_in(mapping: dict[Any, Any]) -> list[Any]:
    """Return the names by which a mapping's values are judged: its keys, but n for v in `{"name": n, "value": v}`."""
    label = next(
        (mapping[k] for k in _NAME_KEYS if isinstance(mapping.get(k), str) and kind_of(mapping[k][-MAX_NAME:])), ""
    )
    if not label:
        return list(mapping)
    return [label if k in _VALUE_KEYS else k for k in mapping]


def names_beside(items: list[Any] | tuple[Any, ...], key: str) -> list[str]:
    """Return the names by which a list's items are judged: the list's own name, or the option before an item."""
    names = [key] * len(items)
    for place, item in enumerate(items[:-1], 1):
        if isinstance(item, str) and item[:1] == "-" and kind_of(item[-MAX_NAME:]) and "=" not in item:
            names[place] = item.lstrip("-")
    if len(items) == 2 and isinstance(items[0], str) and len(items[0]) <= MAX_NAME:  # perhaps a (name, value) pair
        kind = kind_of(items[0])
        if kind == "secret" or (kind == "token" and isinstance(items[1], str) and is_mixed(items[1])):
            names[1] = items[0]
    return names


class Redaction(NamedTuple):
    """How much of a string may be written: whether long text may, and the length from which text is long."""

    allow_text: bool = False
    max_str_len: int = DEFAULT_MAX_STR_LEN


DEFAULT_REDACTION: Final = Redaction()


def redact_text(text: str, rule: Redaction = DEFAULT_REDACTION, *, key: str = "") -> str:
    """Return the text as it may be written: secrets and long texts are described, a path becomes its last part.

    >>> redact_text("hf_" + "a" * 34)
    '<redacted: hub token>'
    >>> redact_text("/mnt/models/llama")
    'llama'
    """
    if holds_secret(key, text):
        return "<redacted: secret key>"
    if len(text) > rule.max_str_len and not rule.allow_text:
        return f"<redacted: text of {len(text)} characters>"
    # Secrets go before the path is cut: its last part may be one.
    text = hide_secrets(text, key)
    if _WHOLE_PATH.match(text) and not _TAIL_OF_WORDS.search(text):
        return _basename(text)
    return _HOME_IN_TEXT.sub(lambda hit: _basename(hit[0]), text)


def to_line(
    event: EventBase | UnknownEvent, rule: Redaction = DEFAULT_REDACTION, extras: Mapping[str, Any] | None = None
) -> bytes:
    """Return the event's redacted line without its newline. It is read back first, so every line written is readable.

    Args:
        event: of any kind.
        rule: how much of a string may be written.
        extras: further keys of the line beside those of the event's class and its envelope, JSON already.

    Raises:
        RecorderError: the event is not valid, or the line is too long.
    """
    try:
        if extras:
            refuse_taken(type(event), extras, _ENVELOPE)
        line = encode_document(redact_document({**to_document(event), **(extras or {})}, rule))
        _read_back(line)
    except (msgspec.MsgspecError, SchemaError, TypeError, ValueError, RecursionError) as error:
        advice = "see the event's fields in gradience.events"
        raise RecorderError(f"not a valid {type(event).__name__} event: {said(error)}", advice=advice) from error
    if len(line) > MAX_LINE_BYTES:
        message = f"a {type(event).__name__} event of {len(line)} bytes; a line may have {MAX_LINE_BYTES}"
        raise RecorderError(message, advice="record a summary, or split it into several events")
    return line


def _read_back(line: bytes) -> None:
    try:
        decode_known(line)
    except msgspec.ValidationError:
        # The event is of a class of the user's own, or a whole float stands for an integer.
        convert(parse(line)[0])


def redact_document(document: JsonObject, rule: Redaction) -> JsonObject:
    """Return an event's document as it may be written. The envelope stays as it is, because it identifies the run."""
    return {
        _key(k): v if k in _CONSTANT else redact_id(v) if k in _IDS else _redact(v, rule, k)
        for k, v in document.items()
    }


def redact_event(event: Event, rule: Redaction = DEFAULT_REDACTION) -> Event:
    """Return an event that comes from no log as a log would hold it; the same object if nothing is to hide."""
    if isinstance(event, TrainStep) and event.run_id == redact_id(event.run_id):  # its only text is in its extras
        extras = {_key(k): _redact(v, rule, k) for k, v in event.extras.items()}
        return event if extras == event.extras else msgspec.structs.replace(event, extras=extras)
    document = to_document(event)
    safe = redact_document(document, rule)
    return event if safe == document else convert(safe)  # type: ignore[return-value]  # its name is known


@lru_cache(maxsize=256)
def redact_id(name: Any) -> Any:
    """Return a run's or session's id without secrets: the user may have chosen the text."""
    return hide_secrets(name) if isinstance(name, str) else name


def _redact(value: Any, rule: Redaction, key: str) -> Any:
    kind = type(value)
    if kind is float or kind is int:
        return value
    if isinstance(value, str):
        return redact_text(value, rule, key=key)
    if isinstance(value, dict):
        named = zip(value.items(), names_in(value), strict=True)
        return {_key(k): _redact(v, rule, below(key, name)) for (k, v), name in named}
    if isinstance(value, list):
        return [_redact(item, rule, name) for item, name in zip(value, names_beside(value, key), strict=True)]
    return value


@lru_cache(maxsize=4096)
def _key(key: str) -> str:
    """Return a key without secrets and at most 128 characters long; metric names are user text too."""
    safe = hide_secrets(key[:_SCANNED_KEY])
    if len(safe) <= MAX_KEY_LEN and len(key) <= _SCANNED_KEY:
        return safe
    # Two long names that begin alike must stay two keys: the sum of the whole name tells them apart.
    return f"{safe[: MAX_KEY_LEN - 9]}~{zlib.crc32(key.encode(errors='replace')):08x}"


def _basename(path: str) -> str:
    return _SEPARATORS.split(path.rstrip("/\\"))[-1] or "<path>"
