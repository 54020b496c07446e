"""Logs that a trainer prints: torchtune's DiskLogger, MLX-LM (sentences, and the table of newer versions), Megatron."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Final

from gradience.errors import RecorderError
from gradience.importers.files import SourceRun, count_of, require_file
from gradience.importers.table import Numbered, cell_value, rows_to_raw
from gradience.io.reading import open_regular
from gradience.schema.scalars import Json

_HEAD: Final = 1 << 20  # bytes looked at: Megatron prints some 20 KB of arguments first
_MAX_LINE: Final = 64 * 1024
_ANSI: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_TORCHTUNE: Final = re.compile(r"Step (\d{1,15}) \| (\S+:.*)")
_MLX: Final = re.compile(r"Iter (\d{1,15}): ((?:Train|Val) loss .*)")
_MLX_ROW: Final = re.compile(
    r" *(\d{1,15}) {2,}(val )?([\d.]+|nan|inf)(?: [▲▼] {2,}([\d,]+) {2,}[\d.]+k| {2,}[\d.]+s) *"
)
_MEGATRON: Final = re.compile(r"iteration +(\d{1,15})/ *(\d{1,15}) \|(.*)")
_MEGATRON_HELD: Final = re.compile(r"(validation|test) loss at iteration (\d{1,15})[^|]*\|(.*)")
_MLX_NAMES: Final = {"Train loss": "loss", "Learning Rate": "learning_rate", "Val loss": "val_loss"}
_NAMED: Final = re.compile(r"([A-Za-z][A-Za-z /]*?) ([-+\d.eE]+|nan|inf)(?: ?[A-Za-z]*)?")
_Row = dict[str, Json]


def is_text_log(path: Path) -> bool:
    """Whether one of the file's first lines is a step that a known trainer printed."""
    try:
        with open_regular(path) as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return b"\0" not in head and any(_row(line) for line in _ANSI.sub("", head.decode("utf-8", "replace")).splitlines())


def read_text(path: Path, columns: Mapping[str, str] | None = None) -> SourceRun:
    """Return the run whose steps are printed in the file, among other lines.

    Raises:
        RecorderError: no line is a step as torchtune, MLX-LM or Megatron print it.
    """
    require_file(path)
    raw = SourceRun(path, files=[path])
    rows = _rows(raw, path)
    first = next(rows, None)
    if first is None:
        message = f"{path}: no line is a step as torchtune, MLX-LM or Megatron print it"
        raise RecorderError(message, advice="give the trainer's own log, or a table of its values")
    return rows_to_raw(raw, chain([first], rows), columns)


def _rows(raw: SourceRun, path: Path) -> Iterator[Numbered]:
    with open_regular(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), 1):
            row = _row(_ANSI.sub("", line.decode("utf-8", "replace")).rstrip("\r\n"))
            if row is not None:
                raw.planned = count_of(row.pop("planned", None)) or raw.planned
                yield number, row


def _row(line: str) -> _Row | None:
    """Return the values of a line that is a step, by the names of a table's columns."""
    return next((row for read in _READERS if (row := read(line)) is not None), None)


def _torchtune(line: str) -> _Row | None:
    """`Step 1 | loss:1.5 lr:0.0003 tokens_per_second_per_gpu:12.5`."""
    found = _TORCHTUNE.fullmatch(line.strip())
    if found is None:
        return None
    pairs = (word.rpartition(":") for word in found[2].split())
    return {**{name: cell_value(value) for name, _, value in pairs if name}, "step": int(found[1])}


def _mlx(line: str) -> _Row | None:
    """`Iter 10: Train loss 2.1, Learning Rate 1.000e-05, It/sec 0.5`; `Iter 1: Val loss 3.0, Val took 1.2s`."""
    found = _MLX.fullmatch(line.strip())
    if found is None:
        return None
    parts = (_NAMED.fullmatch(part.strip()) for part in found[2].split(","))
    values = {_MLX_NAMES.get(part[1], part[1]): cell_value(part[2]) for part in parts if part}
    return {**values, "step": int(found[1])}


def _mlx_table(line: str) -> _Row | None:
    """`  10    2.100 ▼    1,234     12.3k` (step, loss, tokens per second); `   1    val 3.000    1.20s`."""
    found = _MLX_ROW.fullmatch(line)
    if found is None or (found[2] is None) != (found[4] is not None):
        return None
    step, loss = int(found[1]), cell_value(found[3])
    if found[2]:
        return {"step": step, "val_loss": loss}
    return {"step": step, "loss": loss, "tokens_per_second": cell_value(found[4].replace(",", ""))}


def _megatron(line: str) -> _Row | None:
    """` iteration 10/ 100 | learning rate: 1.5E-04 | lm loss: 1.0E+00 | grad norm: 1.0 |`; validation likewise."""
    if found := _MEGATRON.search(line):
        return {**_pairs(found[3]), "step": int(found[1]), "planned": int(found[2])}
    if found := _MEGATRON_HELD.search(line):
        split = "val" if found[1] == "validation" else "test"
        values = _pairs(found[3])
        named = {"lm loss value": f"{split}_loss", "lm loss PPL": f"{split}_ppl"}
        return {**{named[name]: value for name, value in values.items() if name in named}, "step": int(found[2])}
    return None


def _pairs(text: str) -> _Row:
    parts = (part.rpartition(":") for part in text.split("|"))
    return {name.strip(): cell_value(value) for name, _, value in parts if name.strip()}


_READERS: Final[tuple[Callable[[str], _Row | None], ...]] = (_torchtune, _mlx, _mlx_table, _megatron)
