"""Find what a path holds: a file's format by its content, the logs of a run's folder, the runs of a folder of runs.

File names are only habits, and two formats share one, so a file is recognised by its first lines. If a folder holds
several logs of one run, the richest is read, in the order of `_READERS`. Rows that others have beyond it are added, and
the notes name what was not read.

A new format needs a line in `Format` and in `_READERS`, its mark in `format_of`, and a module that makes a `SourceRun`
of a file.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final, Literal, TypeAlias

from gradience.configs.training import STATE_NAME
from gradience.errors import RecorderError, SchemaError
from gradience.importers.databases import META, database_of, is_meta, read_mlflow, read_trackio
from gradience.importers.files import (
    SourceRun,
    add_settings,
    is_pointer,
    json_lines,
    log_bytes,
    readable,
    require_file,
    whole_json,
)
from gradience.importers.table import MAX_COLUMNS, csv_header, find_columns, flatten, read_table
from gradience.importers.tensorboard import is_event_file, read_tensorboard
from gradience.importers.text import dialect_of, is_ludwig, is_text_log, read_json_lines, read_ludwig, read_text
from gradience.importers.trainer_state import add_results, find_states, join_states, read_state
from gradience.importers.wandb import SUMMARY, is_wandb, read_wandb
from gradience.io import CHECKPOINT_PREFIX, natural_key
from gradience.io.reading import open_regular
from gradience.schema import Json
from gradience.telemetry.codec import parse

Format: TypeAlias = Literal[
    "trainer-state", "llama-factory", "ms-swift", "table", "tensorboard", "trackio", "mlflow", "text", "ludwig", "wandb"
]

_HEAD: Final = 4096
MAX_HEADER: Final = 1024**2  # most bytes of a table's first line: ten thousand columns of a hundred characters
_ROWS: Final = 50  # lines examined
_SQLITE: Final = b"SQLite format 3\0"
_OURS: Final = "gradience."
_EVENT: Final = {"event", "run_id"}  # keys that mark a gradience event even if its schema is broken
MAX_ENTRIES: Final = 2000  # entries of a folder that are examined
MAX_RUNS: Final = 100
MAX_DEPTH: Final = 3  # ms-swift: output/MODEL/v0-DATE/checkpoint-N
_LOGS: Final = (".jsonl", ".json", ".csv", ".tsv", ".db", ".txt", ".log", ".out", ".wandb")
TABLES: Final = {".csv", ".tsv"}  # a file with such a name is a table even if its columns are unknown
_OF_LOGGERS: Final = frozenset({"runs", "logs", "tensorboard", "wandb", "mlruns"})
_OF_WANDB: Final = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-\w+")
_HPARAMS: Final = re.compile(r"\d{10}\.\d+")  # a clock reading
_LATEST: Final = "latest-run"
_FILES: Final = "files"
_CONFIGS: Final = re.compile(r"(?:.*config|tokenizer.*|.*index|vocab|special_tokens.*|.*_results|.*args)\.json")
_CLOSE: Final = 1e-3  # relative: LLaMA-Factory and ms-swift round what they log
_Reader: TypeAlias = Callable[[Path, Mapping[str, str] | None], list[SourceRun]]
_READERS: Final[dict[Format, _Reader]] = {  # the best log of a folder first
    "trainer-state": lambda path, _: [read_state(path)],
    "ms-swift": lambda path, _: [read_json_lines(path)],
    "llama-factory": lambda path, _: [read_json_lines(path)],
    "table": lambda path, columns: [read_table(path, columns)],
    "trackio": read_trackio,
    "mlflow": read_mlflow,
    "ludwig": lambda path, columns: [read_ludwig(path, columns)],
    "wandb": lambda path, columns: [read_wandb(path, columns)],
    "text": lambda path, columns: [read_text(path, columns)],
    "tensorboard": lambda path, columns: [read_tensorboard([path], columns)],
}
# logs without settings, which are in files beside the log
WITHOUT_SETTINGS: Final = frozenset({"trainer-state", "ms-swift", "llama-factory"})


def format_of(path: Path) -> Format | Literal["gradience"] | None:
    """Return the format of a file, `gradience` for a gradience log, None for anything else."""
    head = _head(path)
    if b"\0" in head or is_meta(path, head) or path.name == SUMMARY:
        return _of_logger(path, head)
    text = head.removeprefix(BOM_UTF8).lstrip()
    if text.startswith(b"{"):
        return _of_objects(path, text)
    if _is_list(path, text) or _is_csv(_header(path, text)):
        return "table"
    return "text" if is_text_log(path) else None


def _of_logger(path: Path, head: bytes) -> Format | None:
    """Return the format of a file written by a logger's own library, or None."""
    if head.startswith(_SQLITE):
        return database_of(path)
    if is_event_file(head):
        return "tensorboard"
    if is_wandb(path, head):
        return None if is_pointer(path) else "wandb"
    return "mlflow" if is_meta(path, head) else None


def _head(path: Path) -> bytes:
    """Return the file's first bytes; none of a pipe, because a pipe can be read only once."""
    try:
        with open_regular(path) as file:
            return file.read(_HEAD)
    except (OSError, ValueError):
        return b""


def _of_objects(path: Path, head: bytes) -> Format | Literal["gradience"] | None:
    if _is_document(head):
        return _of_document(path)
    rows = list(islice(_rows(path), _ROWS))
    if any(_is_ours(row) for row in rows):
        return "gradience"
    if len(rows) == 1 and dialect_of(rows[0]) is None and (kind := _of_keys(rows[0])) is not None:
        return kind
    dialects = [dialect for row in rows if (dialect := dialect_of(row)) is not None]
    if dialects:
        return max(dialects, key=dialects.count)
    return "table" if _has_columns(rows) else None


def _rows(path: Path) -> Iterator[dict[str, Json]]:
    try:
        for _, row in json_lines(path):
            if isinstance(row, dict):
                yield row
    except RecorderError:
        return


def _is_document(head: bytes) -> bool:
    """Whether the text is one object over several lines, so that its first line alone is none."""
    first, newline, _ = head.partition(b"\n")
    try:
        parse(first)
    except SchemaError:
        return bool(newline) and not first.rstrip().endswith(b"}")
    return False


def _of_document(path: Path) -> Format | None:
    try:
        return _of_keys(whole_json(path))
    except RecorderError:  # cut off: reading it gives an error
        return "trainer-state" if _names_history(path) else None


def _names_history(path: Path) -> bool:
    with suppress(RecorderError):
        return b'"log_history"' in log_bytes(path)
    return False


def _of_keys(document: Json) -> Format | None:
    if isinstance(document, dict) and "log_history" in document:
        return "trainer-state"
    return "ludwig" if isinstance(document, dict) and is_ludwig(document) else None


def _is_ours(row: Mapping[str, Json]) -> bool:
    schema = row.get("schema")
    return (isinstance(schema, str) and schema.startswith(_OURS)) or row.keys() >= _EVENT


def _has_columns(rows: list[dict[str, Json]]) -> bool:
    names = dict.fromkeys(name for row in rows for name in flatten(row))
    if len(names) > MAX_COLUMNS:
        return True  # reading it gives an error that names the limit
    try:
        find_columns(names)
    except RecorderError:
        return False
    return True


def _is_list(path: Path, head: bytes) -> bool:
    if not head.startswith(b"["):
        return False
    try:
        rows = whole_json(path)
    except RecorderError:
        return False
    return isinstance(rows, list) and _has_columns([row for row in rows[:_ROWS] if isinstance(row, dict)])


def _header(path: Path, head: bytes) -> bytes:
    """Return a table's first line, which may be longer than `head`: a table may have thousands of metrics."""
    if b"\n" in head or len(head) < _HEAD // 2:
        return head
    try:
        with open_regular(path) as file:
            return file.readline(MAX_HEADER).removeprefix(BOM_UTF8)
    except OSError:
        return head


def _is_csv(head: bytes) -> bool:
    line, newline, _ = head.partition(b"\n")
    try:
        header, _ = csv_header(line.decode().rstrip("\r"))
    except UnicodeDecodeError:
        return False
    return bool(newline) and len(header) > 1 and _has_columns([dict.fromkeys(header)])


def read_file(path: Path, kind: Format, columns: Mapping[str, str] | None = None) -> list[SourceRun]:
    """Return the runs of one file.

    Raises:
        RecorderError: the file is not of that format, or holds no run.
    """
    return _READERS[kind](path, columns)


def run_folders(folder: Path) -> list[Path]:
    """Return the folder itself if a run wrote into it, else the subfolders into which runs wrote."""
    if is_run(folder):
        return [folder]
    runs: list[Path] = []
    level = [folder]
    for _ in range(MAX_DEPTH):
        children = [child for parent in level for child in _subfolders(parent)]
        runs += [child for child in children if is_run(child)]
        level = [child for child in children if child not in runs][:MAX_ENTRIES]
    return sorted(runs, key=_by_name)[:MAX_RUNS]


def inner_runs(folder: Path) -> list[Path]:
    """Return the subfolders that are runs of their own, without checkpoints."""
    children = inner_folders(folder.name, [child.name for child in _subfolders(folder)], of_run=True)
    return [child for name in children if is_run(child := folder / name)]


def is_run(folder: Path) -> bool:
    """Whether another program's run wrote a log into the folder, or a trainer_state into one of its checkpoints."""
    return bool(find_states(folder)) or bool(_logs(folder))


def _subfolders(folder: Path) -> list[Path]:
    try:
        # A link may lead upwards, or to a run that is there under its own path.
        children = [child.name for child in folder.iterdir() if child.is_dir() and not child.is_symlink()]
    except OSError:
        return []
    return [folder / name for name in inner_folders(folder.name, children)[:MAX_ENTRIES]]


def inner_folders(folder: str, names: Iterable[str], *, of_run: bool = False) -> list[str]:
    """Return those of a folder's subfolders, all by name, that may hold runs of their own.

    Hidden ones do not, nor what W&B keeps within a run's folder, nor its name for the latest run beside that run. If a
    run wrote into the folder (`of_run`), its checkpoints and its loggers' folders do not either, nor the folder into
    which TensorBoard's writer puts a run's settings.
    """
    ordered = sorted(names)
    passed = _OF_LOGGERS if of_run else frozenset[str]()
    if any(_OF_WANDB.fullmatch(name) for name in ordered):
        passed |= {_LATEST}
    if _OF_WANDB.fullmatch(folder) or folder == _LATEST:
        passed |= {_FILES}
    kept = [name for name in ordered if not name.startswith(".") and name not in passed]
    return [name for name in kept if not (of_run and (name.startswith(CHECKPOINT_PREFIX) or _HPARAMS.fullmatch(name)))]


def _by_name(path: Path) -> list[tuple[int, str]]:
    return natural_key(str(path))


def _logs(folder: Path) -> dict[Format, list[Path]]:
    """Return the folder's logs by format."""
    logs: dict[Format, list[Path]] = {}
    for path in _files(folder):
        kind = format_of(path)
        if kind is not None and kind != "gradience":
            logs.setdefault(kind, []).append(path)
    if "tensorboard" in logs:
        below = (path for path in sorted(folder.glob("*/*tfevents*")) if _HPARAMS.fullmatch(path.parent.name))
        logs["tensorboard"] += [path for path in below if format_of(path) == "tensorboard"]
    if "wandb" not in logs and (summary := folder / _FILES / SUMMARY).is_file() and not is_pointer(summary):
        logs["wandb"] = [summary]
    return logs


def _files(folder: Path) -> list[Path]:
    with readable(folder):
        entries = sorted(folder.iterdir())[:MAX_ENTRIES]
    return [path for path in entries if may_be_log(path.name) and path.is_file()]


def require_fetched(folder: Path) -> None:
    """Refuse a folder whose logs are git-lfs pointers.

    Raises:
        RecorderError: the first of them is one.
    """
    if (pointer := pointer_in(folder)) is not None:
        require_file(pointer)


def pointer_in(folder: Path) -> Path | None:
    """The first log of a folder that is only a git-lfs pointer, or None."""
    logs = (*_files(folder), folder / _FILES / SUMMARY)
    return next((path for path in logs if is_pointer(path)), None)


def may_be_log(name: str) -> bool:
    """Whether a file of this name may be a log: not weights, tokenizers or model configs, which may be large."""
    if name == STATE_NAME or _CONFIGS.fullmatch(name):
        return False
    return name.lower().endswith(_LOGS) or "tfevents" in name or name == META


def find_log(folder: Path) -> Path | None:
    """Return the folder's `run.jsonl` if it is a gradience log, else None."""
    log = folder / "run.jsonl"
    return log if log.is_file() and format_of(log) == "gradience" else None


def read_run_folder(
    folder: Path, kind: Format | None = None, columns: Mapping[str, str] | None = None
) -> list[SourceRun]:
    """Return the runs of one folder, read from its best log; the run to show is last.

    Raises:
        RecorderError: no log of that format was found, or it cannot be read.
    """
    states, logs = find_states(folder), _logs(folder)
    if states and kind in {None, "trainer-state"}:
        runs = join_states(folder, states)
        _add_later_rows(runs[-1], logs)
        add_results(runs[-1], folder)
    else:
        chosen = next((name for name in ([kind] if kind else _READERS) if name in logs), None)
        if chosen is None:
            what = f"log of the format {kind}" if kind else f"{STATE_NAME}, log or event file"
            raise RecorderError(f"{folder}: found no {what}", advice="give the folder that training wrote into")
        runs = _read(logs[chosen], chosen, columns)
    _note_unread(runs, logs, why=" (it has grad_norm)" if states else "")
    add_settings(runs[-1], folder, *dict.fromkeys(path.parent for path in reversed(states)))
    return runs


def _read(paths: list[Path], kind: Format, columns: Mapping[str, str] | None) -> list[SourceRun]:
    """Return the runs of a folder's logs of one format: one run per file, but one for all event files together."""
    if kind == "tensorboard":
        return [read_tensorboard(paths, columns)]
    runs: list[SourceRun] = []
    faults: list[RecorderError] = []
    for path in sorted(paths, key=_by_name):
        try:
            read = read_file(path, kind, columns)
        except RecorderError as fault:
            faults.append(fault)
            continue
        for raw in read:
            raw.name = raw.name or (path.name if len(paths) > 1 else None)
        runs += read
    if not runs:
        raise faults[0]
    runs[-1].notes += [f"not used: {fault.message}" for fault in faults]
    return runs


def _add_later_rows(raw: SourceRun, logs: Mapping[Format, list[Path]]) -> None:
    """Add rows beyond the last checkpoint from a log of JSON lines, which survives a crash between checkpoints."""
    path = next((logs[kind][-1] for kind in ("llama-factory", "ms-swift") if kind in logs), None)
    if path is None:
        return
    log = read_json_lines(path)
    last = raw.last_step
    later = [row for row in log.rows if row.step is not None and row.step > last]
    if not later:
        return
    if not _same_run(raw, log):
        raw.notes.append(f"{path.name} is of another run than {raw.path.name} and was not read; import it by itself")
        return
    raw.rows += later
    raw.files.append(path)
    raw.skipped += log.skipped
    raw.planned, raw.reached = raw.planned or log.planned, max(raw.reached or 0, log.reached or 0)
    raw.notes.append(f"{len(later)} rows beyond step {last} come from {path.name}: no checkpoint was made after them")


def _same_run(raw: SourceRun, log: SourceRun) -> bool:
    """Whether both logged the same losses up to rounding. A log may hold several tries of a step; one must match."""
    ours, theirs = _losses(raw), _losses(log)
    common = ours.keys() & theirs.keys()
    close = (any(abs(a - b) <= _CLOSE * max(abs(a), 1.0) for a in ours[s] for b in theirs[s]) for s in common)
    return not ours or (bool(common) and all(close))


def _losses(raw: SourceRun) -> dict[int, list[float]]:
    losses: dict[int, list[float]] = {}
    for row in raw.rows:
        loss = row.values.get("loss")
        if row.step is not None and isinstance(loss, int | float):
            losses.setdefault(row.step, []).append(loss)
    return losses


def _note_unread(runs: list[SourceRun], logs: Mapping[Format, Iterable[Path]], why: str) -> None:
    raw = runs[-1]
    read = {path for run in runs for path in run.files}
    names = [path.name for paths in logs.values() for path in paths if path not in read]
    if names:
        raw.notes.append(f"read {raw.path.name}{why}; also there and not read: {', '.join(names[:5])}")
