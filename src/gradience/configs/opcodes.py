"""The opcodes of a pickle, walked into plain records: nothing is imported, called or unpickled.

A pickle is a program for a small stack machine. Here the stack holds only lists, dicts, texts, numbers, `Name` for a
class that the program names, and `Record` for an object that it would make. A class that is not allowed, and an opcode
that has no harmless reading, end the walk with the reason.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final

from gradience.configs.values import Malformed, printable

MAX_OPCODES: Final = 100_000  # a TrainingArguments takes 600
_SHOWN: Final = 80  # characters of a class in an error

_CONSTANTS: Final[dict[str, object]] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES: Final = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_SAVED: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_RECALLED: Final = frozenset({"GET", "BINGET", "LONG_BINGET"})
_NOTHING: Final = frozenset({"PROTO", "FRAME", "STOP"})
_COLLECTED: Final[dict[str, type]] = {"LIST": list, "TUPLE": tuple, "FROZENSET": list}
_EMPTY: Final[dict[str, type]] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": list}
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_RECONSTRUCT: Final = frozenset({"copyreg _reconstructor", "copy_reg _reconstructor"})
_GET: Final = frozenset({"builtins getattr", "__builtin__ getattr"})  # how Python 3.11.0 wrote a member of an enum


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the pickle names: `module name`, never looked up."""

    text: str


@dataclass(eq=False, slots=True)
class Record:
    """An object that the pickle would make: of which class, of which arguments, and with what state."""

    name: Name
    arguments: tuple[Any, ...] = ()
    state: dict[Any, Any] = field(default_factory=dict)


class _Mark:
    """Where a group of values begins on the stack."""


class Walk:
    """A stream of pickles, read one after the other.

    Args:
        data: the bytes.
        allowed: whether a class may be named, by `module name`.
    """

    def __init__(self, data: bytes, allowed: Callable[[str], bool]) -> None:
        self._file = BytesIO(data)
        self._allowed = allowed
        self._left = MAX_OPCODES
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def next(self) -> object:
        """The next pickle's value.

        Raises:
            Malformed: it is damaged, too long, or holds what is not allowed.
        """
        self._stack, self._memo = [], {}
        try:
            for opcode, argument, _ in pickletools.genops(self._file):
                self._count()
                self._step(opcode.name, argument)
            return self._stack.pop()
        except Malformed:
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            raise Malformed("a pickle that is damaged or cut off") from error

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Malformed(f"a pickle of more than {MAX_OPCODES} opcodes")

    def _step(self, name: str, argument: Any) -> None:  # whatever the opcode carries
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in _COLLECTED:
            self._stack.append(_COLLECTED[name](self._group()))
        elif name in _TUPLES:
            n = _TUPLES[name]
            self._stack[-n:] = [tuple(self._last(n))]
        elif name in _SAVED or name == "MEMOIZE":
            self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]
        elif name in _RECALLED:
            self._stack.append(self._memo[argument])
        elif name not in _NOTHING:
            self._act(name, argument)

    def _act(self, name: str, argument: Any) -> None:  # as above
        action = _ACTIONS.get(name)
        if action is None:
            raise Malformed(f"a pickle with the opcode {name}, which has no harmless reading")
        action(self, argument)

    def _last(self, n: int) -> list[Any]:
        if len(self._stack) < n:
            raise IndexError
        return self._stack[-n:]

    def _group(self) -> list[Any]:
        """Take the values down to the last mark, and the mark."""
        places = range(len(self._stack) - 1, -1, -1)
        at = next((i for i in places if isinstance(self._stack[i], _Mark)), None)
        if at is None:
            raise IndexError
        group = self._stack[at + 1 :]
        del self._stack[at:]
        return group

    def _name(self, text: str) -> Name:
        if not self._allowed(text):
            raise Malformed(f"a pickle that names {_dotted(text)}, which is none of the classes known here")
        return Name(text)

    def mark(self, _: object) -> None:
        """MARK."""
        self._stack.append(_Mark())

    def pop(self, _: object) -> None:
        """POP."""
        self._stack.pop()

    def pop_mark(self, _: object) -> None:
        """POP_MARK."""
        self._group()

    def duplicate(self, _: object) -> None:
        """DUP."""
        self._stack.append(self._stack[-1])

    def name(self, text: str) -> None:
        """GLOBAL."""
        self._stack.append(self._name(text))

    def stack_name(self, _: object) -> None:
        """STACK_GLOBAL."""
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError
        self._stack.append(self._name(f"{module} {name}"))

    def call(self, _: object) -> None:
        """REDUCE and NEWOBJ: the record of a call that is not made."""
        arguments, name = self._stack.pop(), self._stack.pop()
        self._stack.append(_record(name, arguments))

    def call_with_names(self, _: object) -> None:
        """NEWOBJ_EX."""
        keywords, arguments, name = self._stack.pop(), self._stack.pop(), self._stack.pop()
        record = _record(name, arguments)
        record.state |= _mapping(keywords)
        self._stack.append(record)

    def instance(self, text: str) -> None:
        """INST."""
        self._stack.append(_record(self._name(text), tuple(self._group())))

    def of_group(self, _: object) -> None:
        """OBJ."""
        name, *arguments = self._group()
        self._stack.append(_record(name, tuple(arguments)))

    def build(self, _: object) -> None:
        """BUILD: the state of the object below it; its `__setstate__` is not known here, let alone called."""
        state, record = self._stack.pop(), self._stack[-1]
        if not isinstance(record, Record):
            raise TypeError
        for part in state if isinstance(state, tuple) else (state,):  # a pair: __dict__ and __slots__
            record.state |= {} if part is None else _mapping(part)

    def append(self, _: object) -> None:
        """APPEND."""
        self._add([self._stack.pop()])

    def extend(self, _: object) -> None:
        """APPENDS and ADDITEMS."""
        self._add(self._group())

    def _add(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise TypeError
        self._stack[-1].extend(items)

    def set_item(self, _: object) -> None:
        """SETITEM."""
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def set_items(self, _: object) -> None:
        """SETITEMS."""
        self._set(self._group())

    def mapping(self, _: object) -> None:
        """DICT."""
        items = self._group()
        self._stack.append({})
        self._set(items)

    def _set(self, items: list[Any]) -> None:
        top = self._stack[-1]
        target = top.state if isinstance(top, Record) else _mapping(top)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value


def _record(name: object, arguments: object) -> Record:
    """The record of `name(*arguments)`, which is not called."""
    if not isinstance(name, Name) or not isinstance(arguments, tuple):
        raise TypeError
    if name.text in _RECONSTRUCT:
        return _record(arguments[0], ())
    if name.text in _GET:
        owner, member = arguments
        if not isinstance(owner, Name) or not isinstance(member, str):
            raise TypeError
        return Record(owner, (member.lower(),))
    return Record(name, arguments)


def _mapping(value: object) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _key(value: object) -> str:
    """A key as text; a whole number of JSON's size too."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return str(value)
    raise Malformed("a pickle with a key that is no text")


def _dotted(text: str) -> str:
    shown = printable(text).replace(" ", ".")
    clean = ascii(shown)[1:-1]
    return clean if len(clean) <= _SHOWN else f"{clean[:_SHOWN]}..."


_ACTIONS: Final[dict[str, Callable[[Walk, Any], None]]] = {
    "MARK": Walk.mark,
    "POP": Walk.pop,
    "POP_MARK": Walk.pop_mark,
    "DUP": Walk.duplicate,
    "GLOBAL": Walk.name,
    "STACK_GLOBAL": Walk.stack_name,
    "REDUCE": Walk.call,
    "NEWOBJ": Walk.call,
    "NEWOBJ_EX": Walk.call_with_names,
    "INST": Walk.instance,
    "OBJ": Walk.of_group,
    "BUILD": Walk.build,
    "APPEND": Walk.append,
    "APPENDS": Walk.extend,
    "ADDITEMS": Walk.extend,
    "SETITEM": Walk.set_item,
    "SETITEMS": Walk.set_items,
    "DICT": Walk.mapping,
}
