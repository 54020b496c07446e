"""Read a `training_args.bin`, a pickled TrainingArguments, into plain values without executing the pickle.

`torch.save` writes a zip archive that holds one pickle. Its old versions wrote several pickles in a row, and some
scripts write a bare pickle.

A pickle is a program for a small stack machine. This module walks its opcodes, and imports, calls and unpickles
nothing. The stack holds only lists, dicts, texts, numbers, a `Name` for each class that the program names, and a
`Record` for each object that the program would make. A class that is not on the list of known ones, or an opcode
without a harmless reading, ends the walk with the reason.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

from gradience.configs.values import Malformed, printable
from gradience.errors import ConfigError
from gradience.io.reading import MAX_DEPTH
from gradience.schema import Json

MAX_OPCODES: Final = 100_000  # a TrainingArguments takes 600
_SHOWN: Final = 80  # characters of a class in an error

_RECONSTRUCT: Final = frozenset({"copyreg _reconstructor", "copy_reg _reconstructor"})
_GET: Final = frozenset({"builtins getattr", "__builtin__ getattr"})  # how Python 3.11.0 wrote a member of an enum

_VALUES: Final = (  # opcodes that carry a value
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)

MAX_PICKLE: Final = 1024 * 1024  # bytes; the largest seen in the wild, with a DeepSpeed config in it, has 12 kB
MAX_VALUES: Final = 20_000  # values in the mapping; a value that occurs twice counts twice
_MAX_ENTRIES: Final = 1000  # entries of an archive
_ARCHIVE: Final = b"PK"
_LFS: Final = b"version https://git-lfs"
_PICKLE: Final = re.compile(r"[^/\\.][^/\\]*/data\.pkl")  # the entry of torch.save's archive that holds the pickle
_MAGIC: Final = 0x1950A86A20F9469CFC6C  # the value of the first pickle in a file of torch.save before version 1.6
_BEFORE_THE_OBJECT: Final = 2  # the protocol's version, and the sizes of C's types
# `__main__` has a script's own subclass of the arguments; Unsloth writes its trainers into a folder of modules.
_LIBRARIES: Final = (
    r"(?:transformers|trl|accelerate|peft|sentence_transformers|setfit|optimum|llamafactory|llmtuner|swift|axolotl"
    r"|unsloth|unsloth_compiled_cache|Unsloth\w*Trainer|__main__)(?:\.\w+)*"
)
_SETTINGS: Final = re.compile(
    rf"{_LIBRARIES} \w*(?:TrainingArguments|Arguments|Config|Configuration|Plugin|State|Kwargs)|argparse Namespace"
)
_CHOICES: Final = re.compile(
    rf"{_LIBRARIES} (?:IntervalStrategy|EvaluationStrategy|LoggingStrategy|SaveStrategy|HubStrategy|SchedulerType"
    r"|OptimizerNames|ShardedDDPOption|FSDPOption|DebugOption|DistributedType|ParallelMode|PrecisionType|DynamoBackend"
    r"|RNGType|FDivergenceType|SageMakerDistributedType|ComputeEnvironment)"
)
_DTYPES: Final = re.compile(r"torch (?:b?float(?:8_\w+|16|32|64)?|half|double|u?int(?:8|16|32|64)|long|bool)")
_BUILTINS: Final = re.compile(
    r"(?:builtins|__builtin__) (?:object|getattr|set|frozenset|list|dict|tuple|str|int|float|bool)"
    r"|copy_?reg _reconstructor"
)


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the pickle names, as `module name`. It is never looked up."""

    text: str


@dataclass(eq=False, slots=True)
class Record:
    """An object that the pickle would make: its class, its arguments and its state."""

    name: Name
    arguments: tuple[Any, ...] = ()
    state: dict[Any, Any] = field(default_factory=dict)


class _PickleMark:
    """The mark on the stack where a group of values begins."""


class Walk:
    """A walk through a stream of pickles, one after the other."""

    most: ClassVar[int] = MAX_OPCODES

    def __init__(self, data: bytes) -> None:
        self._file = BytesIO(data)
        self._left = self.most
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def next(self) -> object:
        """The value of the next pickle.

        Raises:
            Malformed: the pickle is damaged, too long, or holds a class or opcode that is not allowed.
        """
        self.stack, self.memo = [], {}
        try:
            for opcode, argument, _ in pickletools.genops(self._file):
                self.step(opcode.name, argument)
            return self.stack.pop()
        except Malformed:
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            raise Malformed("a pickle that is damaged or cut off") from error

    def step(self, opcode: str, argument: Any) -> None:  # whatever the opcode carries
        """Do what one opcode does."""
        self._left -= 1
        if self._left < 0:
            raise Malformed(f"a pickle of more than {self.most} opcodes")
        action = _ACTIONS.get(opcode)
        if action is None:
            raise Malformed(f"a pickle with the opcode {opcode}, which has no harmless reading")
        action(self, argument)

    def save(self, place: int | None) -> None:
        """Store the top value in the memo, at `place` or at the next free place."""
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def take(self, n: int) -> tuple[Any, ...]:
        """Pop the last n values."""
        if len(self.stack) < n:
            raise IndexError
        taken = tuple(self.stack[-n:])
        del self.stack[-n:]
        return taken

    def group(self) -> list[Any]:
        """Pop the values above the last mark, and the mark itself."""
        places = range(len(self.stack) - 1, -1, -1)
        at = next((i for i in places if isinstance(self.stack[i], _PickleMark)), None)
        if at is None:
            raise IndexError
        group = self.stack[at + 1 :]
        del self.stack[at:]
        return group

    def name(self, text: str) -> Name:
        """The class or function called `module name`; Malformed if it is not known."""
        if not self.known(text):
            raise Malformed(f"a pickle that names {_dotted(text)}, which is none of the classes known here")
        return Name(text)

    def known(self, text: str) -> bool:
        """Whether a class may be named."""
        return is_known(text)

    def stack_name(self) -> Name:
        """Pop a module and a name, and return the class that they name."""
        if not all(isinstance(part, str) for part in self.stack[-2:]):
            raise TypeError
        return self.name(" ".join(self.take(2)))

    def call(self, name: object, arguments: object, *keywords: object) -> None:
        """Push the record of a call; the call is not made."""
        record = _record(name, arguments)
        for part in keywords:
            record.state |= _mapping(part)
        self.stack.append(record)

    def build(self) -> None:
        """Pop a state and merge it into the object below. The object's `__setstate__` is not called."""
        state, record = self.stack.pop(), self.stack[-1]
        if not isinstance(record, Record):
            raise TypeError
        for part in state if isinstance(state, tuple) else (state,):  # a pair: __dict__ and __slots__
            record.state |= {} if part is None else _mapping(part)

    def add(self, items: Iterable[Any]) -> None:
        """Extend the list on top of the stack."""
        if not isinstance(self.stack[-1], list):
            raise TypeError
        self.stack[-1].extend(items)

    def set(self, items: Sequence[Any]) -> None:
        """Update the mapping or object on top of the stack with alternating keys and values."""
        top = self.stack[-1]
        target = top.state if isinstance(top, Record) else _mapping(top)
        target.update(_paired(items))


_Action: TypeAlias = Callable[[Walk, Any], object]


def _put(value: Callable[[Walk, Any], object]) -> _Action:
    """The action of an opcode that pushes a value."""
    return lambda walk, argument: walk.stack.append(value(walk, argument))


_ACTIONS: Final[dict[str, _Action]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda *_: None),
    **dict.fromkeys(_VALUES, _put(lambda _, value: value)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Walk.save),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _put(lambda walk, place: walk.memo[place])),
    **dict.fromkeys(("LIST", "FROZENSET"), _put(lambda walk, _: walk.group())),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), _put(lambda *_: [])),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda walk, _: walk.call(*walk.take(2))),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda walk, _: walk.add(walk.group())),
    "NONE": _put(lambda *_: None),
    "NEWTRUE": _put(lambda *_: True),
    "NEWFALSE": _put(lambda *_: False),
    "EMPTY_TUPLE": _put(lambda *_: ()),
    "EMPTY_DICT": _put(lambda *_: {}),
    "TUPLE": _put(lambda walk, _: tuple(walk.group())),
    "TUPLE1": _put(lambda walk, _: walk.take(1)),
    "TUPLE2": _put(lambda walk, _: walk.take(2)),
    "TUPLE3": _put(lambda walk, _: walk.take(3)),
    "MARK": _put(lambda *_: _PickleMark()),
    "POP": lambda walk, _: walk.take(1),
    "POP_MARK": lambda walk, _: walk.group(),
    "DUP": _put(lambda walk, _: walk.stack[-1]),
    "GLOBAL": _put(Walk.name),
    "STACK_GLOBAL": _put(lambda walk, _: walk.stack_name()),
    "NEWOBJ_EX": lambda walk, _: walk.call(*walk.take(3)),
    "INST": lambda walk, text: walk.call(walk.name(text), tuple(walk.group())),
    "OBJ": lambda walk, _: walk.call(*_first_and_rest(walk.group())),
    "BUILD": lambda walk, _: walk.build(),
    "APPEND": lambda walk, _: walk.add(walk.take(1)),
    "SETITEM": lambda walk, _: walk.set(walk.take(2)),
    "SETITEMS": lambda walk, _: walk.set(walk.group()),
    "DICT": _put(lambda walk, _: _paired(walk.group())),
}


def _first_and_rest(group: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    return group[0], tuple(group[1:])


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
        # What counts is the member's value, which in transformers' enums is its name in small letters.
        return Record(owner, (member.lower(),))
    return Record(name, arguments)


def _mapping(value: object) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _paired(items: Sequence[Any]) -> dict[str, Any]:
    """The mapping of a sequence that alternates keys and values."""
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _key(value: object) -> str:
    """A key as text; a whole number below 2**63 in size is converted."""
    if isinstance(value, str):
        return value
    # str() raises on a number of thousands of digits.
    if isinstance(value, int) and abs(value) < 2**63:
        return str(value)
    raise Malformed("a pickle with a key that is not text")


def _dotted(text: str) -> str:
    shown = printable(text).replace(" ", ".")
    clean = ascii(shown)[1:-1]
    return clean if len(clean) <= _SHOWN else f"{clean[:_SHOWN]}..."


def pickled_in(path: Path, data: bytes) -> dict[str, Json]:
    """The settings in a pickle of training arguments, by name. A value without a plain form is its type's name.

    Raises:
        ConfigError: the file is no such pickle, or holds anything that is not known to be harmless.
    """
    try:
        mapping = _JsonValues().value(_walk(_pickle_of(data)))
    except Malformed as error:
        advice = "write args.to_json_string() into training_args.json beside it"
        raise ConfigError(f"{path}: not read: {error}", advice=advice) from error
    if not isinstance(mapping, dict):
        advice = "give the training_args.bin that a Trainer wrote"
        raise ConfigError(f"{path}: not read: a pickle of something other than training arguments", advice=advice)
    return mapping


def _pickle_of(data: bytes) -> bytes:
    """The bytes of the pickle: the whole file, or the `data.pkl` entry of the archive that torch.save writes."""
    if data.startswith(_LFS):
        raise Malformed("a git-lfs pointer, not the file itself (`git lfs pull` fetches it)")
    if not data.startswith(_ARCHIVE):
        return _bounded(data)
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            return entry_of(archive)[1]
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise Malformed("a zip archive that is damaged, encrypted or cut off") from error


def entry_of(archive: zipfile.ZipFile, most: int = _MAX_ENTRIES) -> tuple[str, bytes]:
    """The name and the bytes of the pickle in an archive of torch.save.

    Raises:
        Malformed: there is none, or it is too large.
    """
    entries = archive.infolist()
    pickles = [entry for entry in entries[:most] if _PICKLE.fullmatch(entry.filename)]
    if len(entries) > most or len(pickles) != 1:
        raise Malformed("a zip archive that torch.save did not write: it holds no single FOLDER/data.pkl")
    if pickles[0].compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise Malformed("a zip archive that torch.save did not write: it is compressed in another way")
    with archive.open(pickles[0]) as file:  # the read is bounded, because the sizes in an archive may be false
        return pickles[0].filename, _bounded(file.read(MAX_PICKLE + 1))


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_PICKLE:
        raise Malformed(f"a pickle of more than {MAX_PICKLE // 1024} KiB")
    return data


def _walk(data: bytes) -> object:
    walk = Walk(data)
    first = walk.next()
    if type(first) is not int or first != _MAGIC:
        return first
    for _ in range(_BEFORE_THE_OBJECT):
        walk.next()
    return walk.next()


def is_known(name: str) -> bool:
    """Whether a class, as `module name`, is one that training arguments are made of."""
    patterns = (_SETTINGS, _CHOICES, _DTYPES, _BUILTINS)
    return name in _CONVERTED or any(pattern.fullmatch(name) for pattern in patterns)


class _JsonValues:
    """Turns records into JSON values, of limited number and depth: a memo can make a short pickle huge or cyclic."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def value(self, value: object, depth: int = MAX_DEPTH) -> Json:
        """The value as JSON. A value without a plain form is its type's name."""
        self._left -= 1
        if self._left < 0 or depth < 0:
            raise Malformed(f"a pickle of more than {MAX_VALUES} values, or nested more than {MAX_DEPTH} deep")
        if isinstance(value, Record):
            return self._record(value, depth)
        if isinstance(value, dict):
            return {key: self.value(item, depth - 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item, depth - 1) for item in value]
        if isinstance(value, Name):
            return value.text.rpartition(" ")[2]
        return value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__

    def _record(self, record: Record, depth: int) -> Json:
        name = record.name.text
        if name in _CONVERTED:
            return self.value(_CONVERTED[name](record), depth - 1)
        if _SETTINGS.fullmatch(name):
            return self.value(record.state, depth - 1)
        if _CHOICES.fullmatch(name) and len(record.arguments) == 1:
            return self.value(record.arguments[0], depth - 1)
        if name.endswith(("set", " list", " tuple")) and len(record.arguments) == 1:
            return self.value(record.arguments[0], depth - 1)
        return name.rpartition(" ")[2]


def _device(record: Record) -> str:
    return ":".join(_texts(record.arguments))


def _path(record: Record) -> str:
    return "/".join(_texts(record.arguments)).replace("//", "/")


def _texts(arguments: Iterable[Any]) -> list[str]:
    if any(isinstance(item, int) and abs(item) >= 2**63 for item in arguments):
        raise Malformed("a pickle with a number where a path or a device was expected")
    return [str(item) for item in arguments if isinstance(item, str | int)]


def _span(record: Record) -> float:
    """A timedelta in seconds."""
    parts = [float(part) if type(part) is int and abs(part) < 2**63 else 0.0 for part in record.arguments]
    return sum(part * unit for part, unit in zip(parts, (86400.0, 1.0, 1e-6), strict=False))


_CONVERTED: Final[dict[str, Callable[[Record], Any]]] = {
    "torch device": _device,
    "datetime timedelta": _span,
    "collections OrderedDict": lambda record: record.state,
    "collections defaultdict": lambda record: record.state,
    **{
        f"{module} {kind}": _path
        for module in ("pathlib", "pathlib._local")
        for kind in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
}
