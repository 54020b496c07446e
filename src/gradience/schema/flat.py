"""Structs that check what they are built of, and Structs whose further values stand beside the known keys on the wire.

msgspec does not check the fields of a Struct that is built by a call. A `Checked` class does: its fields are made JSON
(`schema.values.plain`) and converted as if they had been read. Decoding checks by itself and calls no class.

A `Checked` class keeps further values in a mapping, `extras`. On the wire that is an object of its own, in which a
reader also puts the keys that it does not know. The `extras` of a `Flat` class are keys of the object itself:
`fold` makes the class's document of what is on the wire, and `spread` does the reverse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from inspect import Signature
from typing import Annotated, Any, ClassVar, Final, NamedTuple, Self, TypeVar, get_args

import msgspec
from msgspec import StructMeta

from gradience.errors import RecorderError, SchemaError
from gradience.schema import EventSeverity, Json, Status, TaskProfile, about
from gradience.schema.values import plain

S_ = TypeVar("S_")
JsonObject = dict[str, Any]
Extras = Annotated[dict[str, Json], about("Further values of this level that have no field of their own.")]
FlatExtras = Annotated[dict[str, Json], about("Further values; on the wire of a log they stand beside the known keys.")]

A_NUMBER: Final = 'a number, "NaN", "Infinity" or "-Infinity"'
CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "severity": get_args(EventSeverity),
    "status": get_args(Status),
    "task_profile": get_args(TaskProfile),
}

_AT: Final = re.compile(r" - at `(?P<path>[^`]+)`$")
_EXPECTED: Final = re.compile(r"^Expected (?P<expected>.+?)(?:, got `(?P<got>[^`]+)`)?$")
_CHOSEN: Final = re.compile(r"^Invalid enum value (?P<value>.+?)(?: - at `|$)", re.DOTALL)
_SHOWN: Final = 80  # characters of a wrong value
_EXTRAS: Final = "extras"


class Expectation(NamedTuple):
    """What a message of msgspec says: where, what was expected there, and the type or value that came, if it has it."""

    path: str
    expected: str
    got: str | None


def expectation(message: str) -> Expectation:
    """Return what a msgspec.ValidationError says, with the values that a choice has.

    >>> expectation("Invalid enum value 'done' - at `$.status`")
    Expectation(path='$.status', expected='one of ok, aborted, error, interrupted, unknown', got="'done'")
    """
    at = _AT.search(message)
    path = at["path"] if at else "$"
    hit = _EXPECTED.search(message.removesuffix(f" - at `{path}`"))
    if hit:
        return Expectation(path, hit["expected"].replace("`", ""), hit["got"])
    choices = CHOICES.get(path.rsplit(".", 1)[-1])
    value = _CHOSEN.match(message)
    return Expectation(
        path, f"one of {', '.join(choices)}" if choices else A_NUMBER, value["value"][:_SHOWN] if value else None
    )


def unchecked(cls: type[S_], /, **fields: Any) -> S_:
    """Return an instance made of fields that are known to be valid."""
    made: S_ = StructMeta.__call__(cls, **fields)
    return made


class CheckedMeta(StructMeta):
    """The metaclass of Structs that check their fields when they are built by a call."""

    def __call__(cls: type[S_], /, *args: Any, **fields: Any) -> S_:  # noqa: N805  # a metaclass
        """Return an instance whose fields are valid: numbers of NumPy and torch as Python's, NaN by its name.

        Raises:
            SchemaError: a field has a wrong value, or an extra the name of a known key.
            TypeError: a field is missing, or there is none of that name.
        """
        given: Mapping[str, Any] = cls.given  # type: ignore[attr-defined]  # of Checked
        checked: S_ = _checked(cls, StructMeta.__call__(cls, *args, **{**given, **fields}))
        return checked

    @property
    def __signature__(cls) -> Signature:  # noqa: N805  # a metaclass
        """The signature with the defaults that `given` has."""
        own: Signature = StructMeta.__signature__.__get__(cls)
        given: Mapping[str, Any] = cls.given  # type: ignore[attr-defined]  # of Checked
        return own.replace(
            parameters=[p.replace(default=given[p.name]) if p.name in given else p for p in own.parameters.values()]
        )


@lru_cache(maxsize=256)
def _fields(cls: type[msgspec.Struct]) -> list[tuple[str, str, Any]]:
    """Return each field's name, its key on the wire, and its default."""
    return [(field.name, field.encode_name, field.default) for field in msgspec.structs.fields(cls)]


def _checked(cls: Any, made: msgspec.Struct) -> Any:
    config = cls.__struct_config__
    document = {} if config.tag_field is None else {config.tag_field: config.tag}
    for name, key, default in _fields(cls):
        value = getattr(made, name)
        if value is not default:  # what is left at its default is omitted on the wire
            document[key] = _plain(value, key, cls)
    try:
        return cls.from_document(_unfolded(cls, document) if issubclass(cls, Flat) else document)
    except msgspec.ValidationError as error:
        path, expected, got = expectation(str(error))
        came = f", got {got}" if got else ""
        raise SchemaError(f"{cls.__name__}: expected {expected} at `{path}`{came}") from error


def _on_wire(value: Any) -> Any:
    """Return a `Flat` Struct, or each of a list, as its object on the wire; any other value as it is."""
    if isinstance(value, list | tuple):
        return [spread(msgspec.to_builtins(item)) if isinstance(item, Flat) else item for item in value]
    return spread(msgspec.to_builtins(value)) if isinstance(value, Flat) else value


def _unfolded(cls: type[msgspec.Struct], document: JsonObject) -> JsonObject:
    extras = document.pop(_EXTRAS, {})
    if not isinstance(extras, dict):
        raise SchemaError(f"{cls.__name__}: expected a mapping as `extras`, got {type(extras).__name__}")
    refuse_taken(cls, extras, known_keys(cls))
    return document | extras


def _plain(value: Any, name: str, cls: Any) -> Json:
    """Return a value as JSON.

    Raises:
        SchemaError: it is none.
    """
    try:
        return plain(_on_wire(value), name)
    except RecorderError as error:
        raise SchemaError(f"{cls.__name__}: {error.message}", advice=error.advice) from error
    except Exception as error:  # a value's own methods may raise anything
        raise SchemaError(f"{cls.__name__}: `{name}` could not be read: {type(error).__name__}") from error


class Checked(msgspec.Struct, metaclass=CheckedMeta, frozen=True):
    """A Struct that checks its fields when it is built; its `extras`, if it has any, are an object of their own."""

    given: ClassVar[Mapping[str, Any]] = {}
    """Fields that a call may leave out, although they stand on every line."""

    @classmethod
    def from_document(cls, document: JsonObject) -> Self:
        """Return the Struct of a JSON object. Keys that it does not know are put into its `extras`.

        Raises:
            msgspec.ValidationError: a field has the wrong type.
        """
        return msgspec.convert(cls.fold(document), cls)

    @classmethod
    def fold(cls, document: JsonObject) -> JsonObject:
        """Return the object with unknown keys moved into `extras`, at this level and below."""
        known = set(cls.__struct_encode_fields__)
        rest = {key: value for key, value in document.items() if key not in known}
        nested = document.get(_EXTRAS, {})
        if not rest or _EXTRAS not in known or not isinstance(nested, dict):
            return document
        return {**{key: document[key] for key in document if key in known}, _EXTRAS: {**nested, **rest}}


class Flat(Checked, kw_only=True, frozen=True):
    """A Struct whose `extras` are keys beside the known ones on the wire, where `extras` is a key like any other."""

    @classmethod
    def fold(cls, document: JsonObject) -> JsonObject:
        """Return the object with all keys that are unknown in `extras`, at this level and below."""
        known = known_keys(cls)
        rest = {key: value for key, value in document.items() if key not in known}
        if not rest:
            return document
        return {**{key: document[key] for key in document if key in known}, _EXTRAS: rest}


def folded(held: Any, part: type[Checked]) -> Any:
    """Return a part of a document, or each of a list of parts, with its unknown keys in its `extras`."""
    if isinstance(held, list):
        return [folded(item, part) for item in held]
    return part.fold(held) if isinstance(held, dict) else held


def spread(document: JsonObject) -> JsonObject:
    """Return the object of a `Flat` Struct as on the wire, with its extras behind the known keys."""
    extras = document.get(_EXTRAS)
    return {**{key: value for key, value in document.items() if key != _EXTRAS}, **extras} if extras else document


def refuse_taken(cls: type[msgspec.Struct], extras: Mapping[str, Json], taken: frozenset[str]) -> None:
    """Refuse extras that have a name which is taken.

    Raises:
        SchemaError: one has.
    """
    if hits := sorted(taken & extras.keys()):
        raise SchemaError(f"extras of {cls.__name__} may not use the name of a known key: {', '.join(hits)}")


@lru_cache(maxsize=256)
def known_keys(cls: type[msgspec.Struct]) -> frozenset[str]:
    """Return the keys that a `Flat` Struct has on the wire, its tag among them."""
    config = cls.__struct_config__
    tag = {config.tag_field} if config.tag_field else set()
    return frozenset({*cls.__struct_encode_fields__, *tag} - {_EXTRAS})
