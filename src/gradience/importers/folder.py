"""A folder that a run left behind, or a folder of such folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from gradience.errors import RecorderError
from gradience.importers.detect import Format, format_of
from gradience.importers.json_lines import read_json_lines
from gradience.importers.raw import Raw
from gradience.importers.results import add_results
from gradience.importers.settings import add_settings
from gradience.importers.table import read_table
from gradience.importers.tensorboard import read_tensorboard
from gradience.importers.trackio import read_trackio
from gradience.importers.trainer_state import STATE_NAME, find_states, join_states, read_state

__all__ = ["find_log", "inner_runs", "read_file", "read_run_folder", "run_folders"]

MAX_ENTRIES: Final = 2000  # of a folder that are looked at
MAX_RUNS: Final = 100
MAX_DEPTH: Final = 3  # ms-swift: output/MODEL/v0-DATE/checkpoint-N

_LOGS: Final = {".jsonl", ".json", ".csv", ".tsv", ".db"}
_BEST_FIRST: Final[tuple[Format, ...]] = (
    "trainer-state",
    "ms-swift",
    "llama-factory",
    "table",
    "trackio",
    "tensorboard",
)
_CONFIGS: Final = re.compile(r"(?:.*config|tokenizer.*|.*index|vocab|special_tokens.*|.*_results|.*args)\.json")
_CLOSE: Final = 1e-3  # relative: LLaMA-Factory and ms-swift round what they log


def read_file(path: Path, kind: Format, columns: Mapping[str, str] | None = None) -> list[Raw]:
    """Return the runs of one file.

    Raises:
        RecorderError: the file is not of that format, or holds no run.
    """
    match kind:
        case "trainer-state":
            return [read_state(path).raw]
        case "llama-factory" | "ms-swift":
            return [read_json_lines(path)]
        case "table":
            return [read_table(path, columns)]
        case "tensorboard":
            return [read_tensorboard([path], columns)]
        case "trackio":
            return read_trackio(path, columns)


def run_folders(folder: Path) -> list[Path]:
    """Return the folder itself if a run wrote into it, else those of its subfolders in which one did."""
    if _is_run(folder):
        return [folder]
    found: list[Path] = []
    level = [folder]
    for _ in range(MAX_DEPTH):
        children = [child for parent in level for child in _subfolders(parent)]
        found += [child for child in children if _is_run(child)]
        level = [child for child in children if child not in found][:MAX_ENTRIES]
    return sorted(found, key=_natural)[:MAX_RUNS]


def inner_runs(folder: Path) -> list[Path]:
    """Return the subfolders, checkpoints aside, that are runs of their own."""
    children = sorted(child for child in _subfolders(folder) if not child.name.startswith("checkpoint-"))
    return [child for child in children if _is_run(child)]


def _is_run(folder: Path) -> bool:
    return bool(find_states(folder)) or bool(_logs(folder))


def _subfolders(folder: Path) -> list[Path]:
    try:
        children = [child for child in folder.iterdir() if child.is_dir() and not child.is_symlink()]
    except OSError:
        return []
    return [child for child in children if not child.name.startswith(".")][:MAX_ENTRIES]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a key that puts `v10` behind `v9`."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d{1,15})", str(path))]


def _logs(folder: Path) -> dict[Format, list[Path]]:
    """Return the folder's logs by format; of a logger's own folders (`runs/`, `logs/`) event files, too."""
    logs: dict[Format, list[Path]] = {}
    for path in _files(folder):
        kind = format_of(path)
        if kind is not None and kind != "gradience":
            logs.setdefault(kind, []).append(path)
    return logs


def _files(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())[:MAX_ENTRIES]
    except OSError as error:
        raise RecorderError(f"cannot read {folder}: {error.strerror}", advice="check the path") from error
    return [path for path in entries if path.is_file() and _may_be_log(path)]


def _may_be_log(path: Path) -> bool:
    """Leave out what is large and no log: weights, tokenizers, model configs."""
    if path.name == STATE_NAME or _CONFIGS.fullmatch(path.name):
        return False
    return path.suffix.lower() in _LOGS or "tfevents" in path.name


def find_log(folder: Path) -> Path | None:
    """Return the folder's `run.jsonl` if it is a log of ours."""
    log = folder / "run.jsonl"
    return log if log.is_file() and format_of(log) == "gradience" else None


def read_run_folder(folder: Path, kind: Format | None = None, columns: Mapping[str, str] | None = None) -> list[Raw]:
    """Return the runs of one folder, the one to show last: from the best log in it, named in the notes.

    Raises:
        RecorderError: there is no log of that format, or it cannot be read.
    """
    states, logs = find_states(folder), _logs(folder)
    if states:
        logs["trainer-state"] = states
    order = [kind] if kind is not None else list(_BEST_FIRST)
    chosen = next((name for name in order if name in logs), None)
    if chosen is None:
        wanted = f"a log of the format {kind}" if kind else f"{STATE_NAME}, a log or event files"
        raise RecorderError(
            f"{folder}: found no {wanted.removeprefix('a ')}", advice="give the folder that training wrote into"
        )
    runs = _read(folder, chosen, logs[chosen], columns)
    shown = runs[-1]
    if chosen == "trainer-state":
        _add_later_rows(shown, logs)
        add_results(shown, folder)
    _say_unread(shown, chosen, logs)
    add_settings(shown, folder, *dict.fromkeys(path.parent for path in reversed(states)))
    return runs


def _read(folder: Path, kind: Format, paths: list[Path], columns: Mapping[str, str] | None) -> list[Raw]:
    if kind == "trainer-state":
        named = [path for path in paths if path.name == STATE_NAME]
        return join_states(folder, named) if named else read_file(paths[-1], kind)
    if kind == "tensorboard":
        return [read_tensorboard(paths, columns)]
    runs = read_file(paths[-1], kind, columns)
    if len(paths) > 1:
        runs[-1].notes.append(f"{len(paths)} such logs in the folder; read: {paths[-1].name}")
    return runs


def _add_later_rows(raw: Raw, logs: Mapping[Format, list[Path]]) -> None:
    """Add what a log of single lines has beyond the last checkpoint: it survives a crash between two of them."""
    path = next((logs[kind][-1] for kind in ("llama-factory", "ms-swift") if kind in logs), None)
    if path is None:
        return
    log = read_json_lines(path)
    last = max((row.step for row in raw.rows if row.step is not None), default=-1)
    later = [row for row in log.rows if row.step is not None and row.step > last]
    if not later:
        return
    if not _same_run(raw, log):
        raw.notes.append(f"{path.name} is of another run than {raw.path.name} and was not read; import it by itself")
        return
    raw.rows += later
    raw.files.append(path)
    raw.planned, raw.reached = raw.planned or log.planned, max(raw.reached or 0, log.reached or 0)
    raw.notes.append(f"{len(later)} rows beyond step {last} come from {path.name}: no checkpoint was made after them")


def _same_run(raw: Raw, log: Raw) -> bool:
    """Whether both logged the same losses, as far as rounding lets them."""
    losses = {row.step: row.values["loss"] for row in raw.rows if isinstance(row.values.get("loss"), int | float)}
    pairs = [(losses[row.step], row.values.get("loss")) for row in log.rows if row.step in losses]
    close = (isinstance(b, int | float) and abs(a - b) <= _CLOSE * max(abs(a), 1.0) for a, b in pairs)
    return not losses or (bool(pairs) and all(close))


def _say_unread(raw: Raw, chosen: Format, logs: Mapping[Format, Iterable[Path]]) -> None:
    names = [path.name for kind, paths in logs.items() if kind != chosen for path in paths if path not in raw.files]
    if names:
        why = " (it has grad_norm)" if chosen == "trainer-state" else ""
        raw.notes.append(f"read {raw.path.name}{why}; also there and not read: {', '.join(names[:5])}")
