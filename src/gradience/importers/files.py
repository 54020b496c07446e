"""The files of a source: bounded, hashed, split into lines at newline bytes only; its rows, runs and settings.

A file of settings that cannot be read becomes a note on the run, not an error.
"""

from __future__ import annotations

import hashlib
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec

from gradience.configs.document import CONFIG_NAME, MODEL_CONFIG, labels_in, peft_in
from gradience.configs.files import MAX_JSON_BYTES, read_bytes
from gradience.configs.settings import LORA, OPTIMIZER, RUN, TRAINING, Draft, Layer, stack
from gradience.configs.training import TRAINING_NAMES, fields_in, note_training, training_in
from gradience.configs.values import Fields
from gradience.errors import ConfigError, RecorderError, SchemaError
from gradience.io.reading import numbered_lines, open_regular, read_small
from gradience.names import Level
from gradience.schema import Json, Status
from gradience.schema.reports import SkippedRow
from gradience.schema.values import number_of, step_of
from gradience.telemetry.codec import parse
from gradience.telemetry.secrets import hide_secrets

_SECONDS: Final = (1e9, 1e10)  # Unix times of 2001 to 2286; other values of a `timestamp` column are not times
_MAX_TEXT: Final = 64  # most characters of a clock reading
MAX_BYTES: Final = 512 * 1024**2  # the largest trainer_state.json seen in the wild is under 50 MB
MAX_ROWS: Final = 1_000_000  # ten times a run that logs 100 000 steps; a row takes some 300 bytes beyond its values
MAX_LINE: Final = 32 * 1024**2  # ms-swift's closing record repeats the whole history on one line
LFS: Final = b"version https://git-lfs"

_OF_MODEL: Final = "_name_or_path"
_MODEL_NAMES: Final = frozenset(name for setting in RUN[:1] for name in (*setting.native, *setting.loose))
_LEVELS: Final[tuple[Level, ...]] = ("run", "optimizer", "lora", "training")
_SUMMARIES: Final = re.compile(r"(all|train|eval|predict|test)_results\.json")


def count_of(value: Json) -> int | None:
    """Return a positive whole number, such as a planned number of steps; None for anything else."""
    return step_of(value) or None


def clock_of(value: Json) -> float | None:
    """Return a clock reading as Unix seconds; None for anything else, such as text without a time zone.

    >>> clock_of(1700000000.5), clock_of(1700000000500), clock_of("2023-11-14T22:13:20+00:00"), clock_of(12.5)
    (1700000000.5, 1700000000.5, 1700000000.0, None)
    """
    number = number_of(value)
    if isinstance(number, float):
        low, high = _SECONDS
        if low <= number < high:
            return number
        return number / 1000 if low <= number / 1000 < high else None
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        return None
    try:
        moment = datetime.fromisoformat(value.strip())
        return moment.timestamp() if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


class LoggedRow:
    """One logged row under the Trainer's names (`loss`, `learning_rate`, `eval_loss`, ...), without step and nulls.

    The values are stored as JSON, and the names are shared between rows. A dict would take up to 60 times the bytes of
    the source, and a table has many rows.
    """

    __slots__ = ("_names", "_packed", "place", "step", "ts")

    def __init__(self, place: int, step: int | None, values: Mapping[str, Json], ts: float | None = None) -> None:
        self.place = place  # line of the file, or number of the row, from 1
        self.step = step
        self.ts = ts
        self._names = _shared(tuple(values))
        self._packed = msgspec.json.encode(list(values.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the values."""
        return self._names

    @property
    def values(self) -> dict[str, Json]:
        """The values by name, decoded anew at each access."""
        return dict(zip(self._names, _unpack(self._packed), strict=True))


_unpack: Final = msgspec.json.Decoder(list[Any]).decode


@lru_cache(maxsize=64)
def _shared(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the first tuple seen that equals this one, so that rows share it."""
    return names


@dataclass(slots=True)
class SourceRun:
    """One run as read from its source, with rows in the order of the file."""

    path: Path
    rows: list[LoggedRow] = field(default_factory=list)
    name: str | None = None  # set if a source holds several runs
    run_id: str | None = None  # set if the source has one
    unit: str = "line"  # what `place` counts
    planned: int | None = None  # optimizer steps
    reached: int | None = None  # the last step that the source states, even without a row
    began: bool = False  # a run of this source began, even if it logged no row
    finished: bool = False  # training finished, by evidence other than its rows
    ending: tuple[Status, str] | None = None  # how the source says that the program ended, if not by finishing
    best: dict[str, Json] = field(default_factory=dict)  # the best evaluation by the trainer's choice: metric, step
    layer: Layer = field(default_factory=Layer)
    skipped: list[SkippedRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)  # all files read; the rows are from the first
    held: dict[Path, bytes] = field(default_factory=dict)  # the bytes of the files of settings
    states: list[SourceRun] = field(default_factory=list)  # the trainer_state.json files that were joined into it
    digests: dict[Path, str] = field(default_factory=dict)  # of its files, as far as they were asked for

    def digest_of(self, path: Path) -> str:
        """The SHA-256 of one of its files, which is read for it once."""
        return self.digests.get(path) or self.digests.setdefault(path, sha256_of(path))

    @property
    def last_step(self) -> int:
        """The last step of a row; -1 without one."""
        return max((row.step for row in self.rows if row.step is not None), default=-1)

    @property
    def furthest(self) -> int:
        """The step that was reached, as the source states it, or else by its rows."""
        return max(self.last_step, 0) if self.reached is None else self.reached

    def add(self, row: LoggedRow) -> None:
        """Add a row.

        Raises:
            RecorderError: there are more rows than a source may have.
        """
        self._count()
        self.rows.append(row)

    def take(
        self, place: int, given: Json, values: Mapping[str, Json], ts: float | None = None, *, bare: bool = False
    ) -> None:
        """Add a row of this step; without a whole one (if not `bare`), or without a measurement, it is skipped."""
        step = step_of(given)
        if step is None and not (bare and given is None):
            self.skip(place, "no step in it" if given is None else "the step is not a whole number")
        elif values.keys() <= {"epoch"}:
            self.skip(place, "nothing was measured")
        else:
            self.add(LoggedRow(place, step, values, ts))

    def skip(self, place: int, reason: str) -> None:
        """List a row that could not be read. The reason may quote the row; secrets in it are hidden.

        Raises:
            RecorderError: there are more rows than a source may have.
        """
        self._count()
        self.skipped.append(SkippedRow(file=self.path.name, line=place, reason=hide_secrets(reason)))

    def _count(self) -> None:
        if len(self.rows) + len(self.skipped) >= MAX_ROWS:
            message = f"{self.path} holds more than {MAX_ROWS} rows, the limit for a source"
            raise RecorderError(message, advice="export every tenth step of it")


def require_file(path: Path) -> None:
    """Check that a path can be a log.

    Raises:
        RecorderError: the path is missing, empty, too large, a git-lfs pointer, or no regular file.
    """
    try:
        if not path.is_file():
            kind = "is not a regular file" if path.exists() else "does not exist"
            raise RecorderError(f"{path} {kind}", advice="give a log, or the folder of a run")
        size = path.stat().st_size
        with open_regular(path) as file:
            head = file.read(len(LFS))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RecorderError(f"cannot read {path}: {reason}", advice="check the path") from error
    if not size:
        raise RecorderError(f"{path} is empty", advice="give a log, or the folder of a run")
    if head == LFS:
        raise RecorderError(f"{path} is a git-lfs pointer, not the file itself", advice="fetch it with `git lfs pull`")
    refuse_large(path, size)


def is_pointer(path: Path) -> bool:
    """Whether a file is a git-lfs pointer, which stands for a file that was not fetched."""
    try:
        with open_regular(path) as file:
            return file.read(len(LFS)) == LFS
    except (OSError, ValueError):
        return False


def refuse_large(path: Path, size: int) -> None:
    """Check the size of a source, of all its files together.

    Raises:
        RecorderError: it is too large.
    """
    if size > MAX_BYTES:
        raise RecorderError(
            f"{path} is larger than {MAX_BYTES // 1024**2} MiB", advice="split it, or export less of it"
        )


def refuse_summary(path: Path) -> None:
    """Refuse a summary that the Trainer writes at the end of a run, because it has no rows.

    Raises:
        RecorderError: the file has the name of such a summary.
    """
    if _SUMMARIES.fullmatch(path.name):
        raise RecorderError(
            f"{path} is the summary of a run, without its rows", advice=f"give the folder, {path.parent}"
        )


def is_folder(path: Path) -> bool:
    """Whether the path is a folder; False for a name that no disk can hold, such as one of 300 characters."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """A context that turns an OSError while reading the path into a RecorderError.

    Raises:
        RecorderError: the path cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise RecorderError(f"cannot read {path}: {error.strerror}", advice="check the path") from error


def sha256_of(path: Path) -> str:
    """Return the file's SHA-256, in hexadecimal."""
    with readable(path), open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same_bytes(one: Path, other: Path, digest_of: Callable[[Path], str]) -> bool:
    """Whether two files are equal, by their digests; not if one cannot be read."""
    try:
        return one.stat().st_size == other.stat().st_size and digest_of(one) == digest_of(other)
    except OSError:
        return False


def whole_json(path: Path) -> Json:
    """Return the file's one JSON document, with bare NaN and Infinity replaced by their names.

    Raises:
        RecorderError: the file does not hold one JSON document.
    """
    require_file(path)
    data = log_bytes(path).removeprefix(BOM_UTF8).strip()
    array = data.startswith(b"[")
    try:
        # `parse` takes objects alone, so a list is put into one.
        document, _ = parse(b'{"rows":%b}' % data if array else data)
    except SchemaError as error:
        advice = "is the file whole? it should hold one JSON document"
        raise RecorderError(f"{path}: {error.message}", advice=advice) from error
    return document.get("rows") if array else document


def keys_of(path: Path) -> list[str] | None:
    """The keys of a file that is one JSON object; None of any other."""
    try:
        document, _ = parse(read_small(path, most=MAX_BYTES, what="JSON").removeprefix(BOM_UTF8))
    except (OSError, SchemaError):
        return None
    return list(document)


def log_bytes(path: Path) -> bytes:
    """Return the bytes of a whole log.

    Raises:
        RecorderError: it cannot be read, or is too large.
    """
    with readable(path):
        return read_small(path, most=MAX_BYTES, what="a log")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Json] | str]]:
    """Yield the number of every line that is not blank, with its object or a text about what is wrong with it.

    Raises:
        RecorderError: the file cannot be read.
    """
    require_file(path)
    with open_regular(path) as file:
        for number, line in numbered_lines(file, MAX_LINE):
            if line is None:
                yield number, f"a line of more than {MAX_LINE // 1024**2} MiB"
            elif line.strip():
                yield number, _object(line.removeprefix(BOM_UTF8) if number == 1 else line)


def _object(line: bytes) -> dict[str, Json] | str:
    try:
        return parse(line)[0]
    except SchemaError as error:
        return error.message if line.endswith(b"\n") else f"cut off while being written: {error.message}"


def add_settings(raw: SourceRun, *folders: Path) -> None:
    """Add the settings of an adapter config, training arguments and a model's config from the folders.

    For each kind of file, the first folder that has one counts.
    """
    for names, read in (((CONFIG_NAME,), peft_in), (TRAINING_NAMES, training_in)):
        path = next((f / name for f in folders for name in names if (f / name).is_file()), None)
        if path is not None:
            _add(raw, path, read)
    model = next((f / MODEL_CONFIG for f in folders if (f / MODEL_CONFIG).is_file()), None)
    if model is not None:
        _add(raw, model, labels_in)
    if raw.layer.secret_keys:
        raw.notes.append(f"not copied, for they hold a secret: {', '.join(dict.fromkeys(raw.layer.secret_keys))}")


def _add(raw: SourceRun, path: Path, read: Callable[[Path, dict[str, Json]], Layer]) -> None:
    if is_pointer(path):
        raw.notes.append(f"{path.name} is a git-lfs pointer and was not used")
        return
    try:
        raw.held[path] = read_bytes(path, MAX_JSON_BYTES)
        layer = read(path, fields_in(path, raw.held[path]))
    except ConfigError as error:
        raw.notes.append(f"{path.name} was not used: {error.message.removeprefix(f'{path}: ')}")
        return
    if layer == Layer():
        return
    raw.layer = stack([raw.layer, layer])
    raw.files.append(path)


def mapping_layer(mapping: Mapping[str, Json], raw: SourceRun) -> Layer:
    """Return the settings in a logger's own mapping, read by their usual names. A wrong value becomes a note."""
    flat = {**mapping, **_adapter(mapping)}
    if not flat.keys() & _MODEL_NAMES and isinstance(named := flat.get(_OF_MODEL), str):
        flat["model_name_or_path"] = named  # a model's own config beside the Trainer's arguments
    draft = Draft()
    for level, settings in zip(_LEVELS, (RUN, OPTIMIZER, LORA, TRAINING), strict=True):
        for setting in settings:
            try:
                # One setting at a time: a wrong value costs no other. `alpha`, `rank` or `dropout`, loose names of
                # LoRA's, mean other things in a model's config, which loggers write among the settings.
                draft.read(level, (setting,), Fields(dict(flat), raw.path.name), loose=level != "lora")
            except ConfigError as error:
                raw.notes.append(f"a setting was not used: {error.message}")
    try:
        note_training(Fields(dict(flat), raw.path.name), draft)
    except ConfigError as error:
        raw.notes.append(f"a setting was not used: {error.message}")
    return Layer(config=draft.snapshot())


def _adapter(mapping: Mapping[str, Json]) -> dict[str, Json]:
    """Return PEFT's settings from `peft_config`, where the Trainer's callbacks for other loggers nest them."""
    nested = mapping.get("peft_config")
    if not isinstance(nested, dict):
        return {}
    # Nested once more under the adapter's name, as in PEFT's own {"default": {...}}.
    only = next(iter(nested.values())) if len(nested) == 1 else nested
    return only if isinstance(only, dict) else nested
