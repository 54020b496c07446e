"""A folder that a run left behind, or a folder of such folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from gradience.configs.training import STATE_NAME
from gradience.errors import RecorderError
from gradience.importers.detect import Format, format_of
from gradience.importers.files import SourceRun
from gradience.importers.json_lines import read_json_lines
from gradience.importers.settings import add_settings
from gradience.importers.table import read_table
from gradience.importers.tensorboard import read_tensorboard
from gradience.importers.trackio import read_trackio
from gradience.importers.trainer_state import add_results, find_states, join_states, read_state
from gradience.io.sorting import natural_key

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


def read_file(path: Path, kind: Format, columns: Mapping[str, str] | None = None) -> list[SourceRun]:
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
    if is_run(folder):
        return [folder]
    found: list[Path] = []
    level = [folder]
    for _ in range(MAX_DEPTH):
        children = [child for parent in level for child in _subfolders(parent)]
        found += [child for child in children if is_run(child)]
        level = [child for child in children if child not in found][:MAX_ENTRIES]
    return sorted(found, key=_by_name)[:MAX_RUNS]


def inner_runs(folder: Path) -> list[Path]:
    """Return the subfolders, checkpoints aside, that are runs of their own."""
    children = sorted(child for child in _subfolders(folder) if not child.name.startswith("checkpoint-"))
    return [child for child in children if is_run(child)]


def is_run(folder: Path) -> bool:
    """Whether another program's run wrote a log into the folder, or a state into one of its checkpoints."""
    return bool(find_states(folder)) or bool(_logs(folder))


def _subfolders(folder: Path) -> list[Path]:
    try:
        children = [child for child in folder.iterdir() if child.is_dir() and not child.is_symlink()]
    except OSError:
        return []
    return [child for child in children if not child.name.startswith(".")][:MAX_ENTRIES]


def _by_name(path: Path) -> list[tuple[int, str]]:
    return natural_key(str(path))


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


def read_run_folder(
    folder: Path, kind: Format | None = None, columns: Mapping[str, str] | None = None
) -> list[SourceRun]:
    """Return the runs of one folder, the one to show last: from the best log in it, named in the notes.

    Raises:
        RecorderError: there is no log of that format, or it cannot be read.
    """
    states, logs = find_states(folder), _logs(folder)
    if states and kind in {None, "trainer-state"}:
        runs = join_states(folder, states)
        _add_later_rows(runs[-1], logs)
        add_results(runs[-1], folder)
    else:
        chosen = next((name for name in ([kind] if kind else _BEST_FIRST) if name in logs), None)
        if chosen is None:
            what = f"log of the format {kind}" if kind else f"{STATE_NAME}, log or event file"
            raise RecorderError(f"{folder}: found no {what}", advice="give the folder that training wrote into")
        runs = _read(logs[chosen], chosen, columns)
    _say_unread(runs, logs, why=" (it has grad_norm)" if states else "")
    add_settings(runs[-1], folder, *dict.fromkeys(path.parent for path in reversed(states)))
    return runs


def _read(paths: list[Path], kind: Format, columns: Mapping[str, str] | None) -> list[SourceRun]:
    """Return the runs of a folder's logs of one format: each file is one, save event files, which follow each other."""
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
    runs[-1].notes += [f"not used: {fault}" for fault in faults]
    return runs


def _add_later_rows(raw: SourceRun, logs: Mapping[Format, list[Path]]) -> None:
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
    raw.skipped += log.skipped
    raw.planned, raw.reached = raw.planned or log.planned, max(raw.reached or 0, log.reached or 0)
    raw.notes.append(f"{len(later)} rows beyond step {last} come from {path.name}: no checkpoint was made after them")


def _same_run(raw: SourceRun, log: SourceRun) -> bool:
    """Whether both logged the same losses, as far as rounding lets them; a log may hold more than one try at a step."""
    ours, theirs = _losses(raw), _losses(log)
    common = ours.keys() & theirs.keys()
    close = (any(abs(a - b) <= _CLOSE * max(abs(a), 1.0) for a in ours[s] for b in theirs[s]) for s in common)
    return not ours or (bool(common) and all(close))


def _losses(raw: SourceRun) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for row in raw.rows:
        loss = row.values.get("loss")
        if row.step is not None and isinstance(loss, int | float):
            found.setdefault(row.step, []).append(loss)
    return found


def _say_unread(runs: list[SourceRun], logs: Mapping[Format, Iterable[Path]], why: str) -> None:
    raw = runs[-1]
    read = {path for run in runs for path in run.files}
    names = [path.name for paths in logs.values() for path in paths if path not in read]
    if names:
        raw.notes.append(f"read {raw.path.name}{why}; also there and not read: {', '.join(names[:5])}")
