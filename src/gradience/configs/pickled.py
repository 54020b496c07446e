"""A `training_args.bin`, read and never executed: the pickle of a TrainingArguments as a mapping of plain values.

`torch.save` writes it as a zip archive with one pickle in it, old versions as several pickles in a row, and some
scripts as a bare pickle. All are walked by `opcodes`, which imports and calls nothing; which classes may be named
stands here.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from gradience.configs.files import MAX_JSON_BYTES, read_bytes
from gradience.configs.opcodes import Name, Record, Walk
from gradience.configs.values import Malformed
from gradience.errors import ConfigError
from gradience.io.decoding import MAX_DEPTH
from gradience.schema.scalars import Json

MAX_PICKLE: Final = 1024 * 1024  # bytes; the largest seen in the wild, with a DeepSpeed config in it, has 12 kB
MAX_VALUES: Final = 20_000  # of the mapping, those that occur twice counted twice
_MAX_ENTRIES: Final = 1000  # of an archive
_ARCHIVE: Final = b"PK"
_LFS: Final = b"version https://git-lfs"
_PICKLE: Final = re.compile(r"[^/\\.][^/\\]*/data\.pkl")  # where torch.save puts it
_MAGIC: Final = 0x1950A86A20F9469CFC6C  # the first of the pickles in a row that torch.save wrote before version 1.6
_BEFORE_THE_OBJECT: Final = 2  # the protocol's version, and the sizes of C's types

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


def read_pickled(path: Path) -> dict[str, Json]:
    """The settings in a pickle of training arguments, by name; what it holds besides settings by its type's name.

    Raises:
        ConfigError: it is none, or holds anything that is not known to be harmless.
    """
    try:
        mapping = _Plain().value(_walk(_pickle_of(read_bytes(path, MAX_JSON_BYTES))))
    except Malformed as error:
        advice = "write args.to_json_string() into training_args.json beside it"
        raise ConfigError(f"{path}: not read: {error}", advice=advice) from error
    if not isinstance(mapping, dict):
        advice = "give the training_args.bin that a Trainer wrote"
        raise ConfigError(f"{path}: not read: a pickle of something other than training arguments", advice=advice)
    return mapping


def _pickle_of(data: bytes) -> bytes:
    """The pickle's bytes: those of the file, or of the one entry of torch.save's archive that holds it."""
    if data.startswith(_LFS):
        raise Malformed("a git-lfs pointer, not the file itself (`git lfs pull` fetches it)")
    if not data.startswith(_ARCHIVE):
        return _bounded(data)
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            return _bounded(_entry(archive))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise Malformed("a zip archive that is damaged, encrypted or cut off") from error


def _entry(archive: zipfile.ZipFile) -> bytes:
    entries = archive.infolist()
    found = [entry for entry in entries[:_MAX_ENTRIES] if _PICKLE.fullmatch(entry.filename)]
    if len(entries) > _MAX_ENTRIES or len(found) != 1:
        raise Malformed("a zip archive that torch.save did not write: it holds no single FOLDER/data.pkl")
    if found[0].compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise Malformed("a zip archive that torch.save did not write: it is compressed in another way")
    with archive.open(found[0]) as file:  # the sizes that the archive states are not believed
        return file.read(MAX_PICKLE + 1)


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_PICKLE:
        raise Malformed(f"a pickle of more than {MAX_PICKLE // 1024} KiB: no training arguments")
    return data


def _walk(data: bytes) -> object:
    walk = Walk(data, is_known)
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


class _Plain:
    """Records to JSON values, of bounded number and depth: a memo makes a short pickle a large tree, or a ring."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def value(self, value: object, depth: int = MAX_DEPTH) -> Json:
        """The value; what has no plain form by its type's name."""
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


def _ordered(record: Record) -> dict[Any, Any]:
    return record.state


_CONVERTED: Final[dict[str, Callable[[Record], Any]]] = {
    "torch device": _device,
    "datetime timedelta": _span,
    "collections OrderedDict": _ordered,
    "collections defaultdict": _ordered,
    **{
        f"{module} {kind}": _path
        for module in ("pathlib", "pathlib._local")
        for kind in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
}
