"""Structs that check what they are built of, and Structs whose further values stand flat on the wire.

msgspec does not check the fields of a Struct that is built by a call. A `Checked` class does: its fields are made JSON
(`schema.values.plain`) and converted as if they had been read. Decoding checks by itself and calls no class.

msgspec writes exactly the fields of a Struct. A `Flat` Struct with `extras` is therefore an instance of a subclass that
has a field for each of them, so that every encoder of msgspec writes them beside the known keys. Such a class is made
once for each set of names, and lives as long as its instances.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Self, TypeVar, get_args
from weakref import WeakValueDictionary

import msgspec
from msgspec import StructMeta

from gradience.errors import RecorderError, SchemaError
from gradience.schema import EventSeverity, Json, Status, TaskProfile
from gradience.schema.values import plain

S_ = TypeVar("S_")
F_ = TypeVar("F_", bound="Flat")
JsonObject = dict[str, Any]

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
_UNWRITABLE: Final = re.compile(r'["\\\x00-\x1f]')  # no field of a Struct can be named so on the wire
_REST: Final = "extras"  # the key of further values that cannot have a field of their own
_REST_FIELD: Final = "extras_rest"
_MOST_OWN: Final = 1000  # extras with fields of their own: making a Struct takes the square of their number
_KEPT_CLASSES: Final = 256


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
            SchemaError: a field has a wrong value.
            TypeError: a field is missing, or there is none of that name.
        """
        checked: S_ = _checked(cls, StructMeta.__call__(cls, *args, **fields), {})
        return checked


@lru_cache(maxsize=_KEPT_CLASSES)
def _fields(cls: type[msgspec.Struct]) -> list[tuple[str, str, Any]]:
    """Return each field's name, its key on the wire, and its default."""
    return [(field.name, field.encode_name, field.default) for field in msgspec.structs.fields(cls)]


def _checked(cls: Any, made: msgspec.Struct, extras: JsonObject) -> Any:
    config = cls.__struct_config__
    document = {} if config.tag_field is None else {config.tag_field: config.tag}
    try:
        for name, key, default in _fields(cls):
            value = getattr(made, name)
            if value is not default:  # what is left at its default is omitted on the wire
                document[key] = _plain(value, key, cls)
        return cls.from_document(document | extras)
    except msgspec.ValidationError as error:
        path, expected, got = expectation(str(error))
        came = f", got {got}" if got else ""
        raise SchemaError(f"{cls.__name__}: expected {expected} at `{path}`{came}", advice=str(error)) from error


def _plain(value: Any, name: str, cls: Any) -> Json:
    """Return a value as JSON.

    Raises:
        SchemaError: it is none.
    """
    try:
        return plain(value, name)
    except RecorderError as error:
        raise SchemaError(f"{cls.__name__}: {error}", advice=error.advice) from error
    except Exception as error:  # a value's own methods may raise anything
        raise SchemaError(f"{cls.__name__}: `{name}` could not be read: {type(error).__name__}") from error


class Checked(msgspec.Struct, metaclass=CheckedMeta, frozen=True):
    """A Struct that checks its fields when it is built; its `extras`, if it has any, are an object of their own."""

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
        nested = document.get(_REST, {})
        if not rest or _REST not in known or not isinstance(nested, dict):
            return document
        return {**{key: document[key] for key in document if key in known}, _REST: {**nested, **rest}}


class FlatMeta(CheckedMeta):
    """The metaclass of Structs whose `extras` are fields."""

    def __call__(
        cls: type[S_],  # noqa: N805  # a metaclass
        /,
        *args: Any,
        extras: Mapping[str, Json] | None = None,
        **fields: Any,
    ) -> S_:
        """Return a checked instance, with a field for each of the `extras`.

        Raises:
            SchemaError: a field has a wrong value, or an extra a name that is taken or cannot be written.
            TypeError: a field is missing, or there is none of that name.
        """
        made: Any = StructMeta.__call__(cls, *args, **{**cls.given, **fields})  # type: ignore[attr-defined]  # of Flat
        further = {} if extras is None else _plain(extras, _REST, cls)
        if not isinstance(further, dict):
            raise SchemaError(f"{cls.__name__}: expected a mapping as `extras`, got {type(extras).__name__}")
        refuse_taken(type(made), further)
        if odd := sorted(filter(_is_unwritable, further)):
            message = f"extras of {cls.__name__} may not be named {odd[0]!r}: msgspec cannot write it beside the fields"
            raise SchemaError(message, advice="leave quotes, backslashes and control characters out of the name")
        checked: S_ = _checked(cls, made, further)
        return checked

    @property
    def __signature__(cls) -> Signature:  # noqa: N805  # a metaclass
        """The signature with the defaults that `given` has, and `extras`."""
        own: Signature = StructMeta.__signature__.__get__(cls)
        given: Mapping[str, Any] = cls.given  # type: ignore[attr-defined]  # of every Flat class
        parameters = [p.replace(default=given[p.name]) if p.name in given else p for p in own.parameters.values()]
        extras = Parameter(_REST, Parameter.KEYWORD_ONLY, default=None, annotation="Mapping[str, Json] | None")
        return own.replace(parameters=[*parameters, extras])


class Flat(msgspec.Struct, metaclass=FlatMeta, kw_only=True, frozen=True):
    """A Struct that keeps further values: given as `extras`, and written beside the known keys by any encoder."""

    given: ClassVar[Mapping[str, Any]] = {}
    """Fields that a call may leave out, although they stand on every line."""
    known: ClassVar[type[Flat] | None] = None
    """The class without the further fields, if this one was made for some."""

    if TYPE_CHECKING:
        extras: Mapping[str, Json] = {}
    else:

        @property
        def extras(self) -> dict[str, Json]:
            """The further values by name; empty if there are none."""
            known = self.known
            if known is None:
                return {}
            named = zip(self.__struct_fields__, self.__struct_encode_fields__, strict=True)
            return spread({key: getattr(self, name) for name, key in named if name not in known.__struct_fields__})

    @classmethod
    def from_document(cls, document: JsonObject) -> Self:
        """Return the Struct of a JSON object, with every key that it does not know as an extra.

        Raises:
            msgspec.ValidationError: a field has the wrong type.
        """
        return msgspec.convert(document, cls).with_rest(document)

    def with_rest(self, document: JsonObject) -> Self:
        """Return the Struct with the unknown keys of the object that it was converted from."""
        names = wire_names(type(self))
        rest = {key: value for key, value in document.items() if key not in names}
        return extended(self, rest) if rest else self

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to copy it: a class made for some extras cannot be imported."""
        if self.known is None:
            return msgspec.Struct.__reduce__(self)  # type: ignore[return-value]  # a tuple, says pickle
        return extended, (extended(self, {}), dict(self.extras))

    def __repr__(self) -> str:
        """Return the call that makes it."""
        if self.known is None:
            return msgspec.Struct.__repr__(self)
        return f"{msgspec.Struct.__repr__(extended(self, {}))[:-1]}, extras={self.extras!r})"


def extended(struct: F_, extras: Mapping[str, Json]) -> F_:
    """Return the Struct with these extras, which are JSON, in place of its own."""
    if not extras and struct.known is None:
        return struct
    base = struct.known or type(struct)
    fields = {name: getattr(struct, name) for name in base.__struct_fields__}
    if not extras:
        return unchecked(base, **fields)  # type: ignore[return-value]  # the class of the Struct, or its base
    names = sorted(extras)
    own = [name for name in names if not _is_unwritable(name)] if len(names) <= _MOST_OWN else []
    fields |= {f"{_REST}_{i}": extras[name] for i, name in enumerate(own)}
    if len(own) < len(names):
        fields[_REST_FIELD] = {name: extras[name] for name in names if not own or _is_unwritable(name)}
    made: type[F_] = _class_with(base, tuple(own), len(own) < len(names))  # type: ignore[assignment]  # a subclass
    return unchecked(made, **fields)


def refuse_taken(cls: type[msgspec.Struct], extras: Mapping[str, Json]) -> None:
    """Refuse extras that have the name of a known key.

    Raises:
        SchemaError: one has.
    """
    if taken := sorted(wire_names(cls) & extras.keys()):
        raise SchemaError(f"extras of {cls.__name__} may not use the name of a known key: {', '.join(taken)}")


@lru_cache(maxsize=2 * _KEPT_CLASSES)
def wire_names(cls: type[msgspec.Struct]) -> frozenset[str]:
    """Return the keys that a Struct has on the wire, its tag among them."""
    config = cls.__struct_config__
    return frozenset(cls.__struct_encode_fields__) | ({config.tag_field} if config.tag_field else set())


def spread(document: JsonObject) -> JsonObject:
    """Return the object of a Flat Struct, with the extras that have no field of their own flat too."""
    rest = document.get(_REST)
    return {**{key: value for key, value in document.items() if key != _REST}, **rest} if rest else document


def _is_unwritable(name: str) -> bool:
    return name == _REST or _UNWRITABLE.search(name) is not None


_alive: WeakValueDictionary[tuple[type, tuple[str, ...], bool], FlatMeta] = WeakValueDictionary()


@lru_cache(maxsize=_KEPT_CLASSES)
def _class_with(base: type[Flat], names: tuple[str, ...], rest: bool) -> FlatMeta:  # noqa: FBT001  # part of the key
    """Return the subclass that has a field for each of the names, and one more for the rest."""
    key = (base, names, rest)
    if (found := _alive.get(key)) is not None:
        return found
    rename = {f"{_REST}_{i}": name for i, name in enumerate(names)} | ({_REST_FIELD: _REST} if rest else {})
    types = dict.fromkeys(rename, Any)
    space = {"__annotations__": types, "__module__": base.__module__, "__qualname__": base.__qualname__, "known": base}
    made = FlatMeta(base.__name__, (base,), space, rename=rename, kw_only=True, frozen=True)
    return _alive.setdefault(key, made)
