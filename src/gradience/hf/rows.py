"""What the Trainer logs, by the recorder's names and in JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, TypeAlias

__all__ = ["Row", "eval_metrics", "plain", "train_columns"]

Row: TypeAlias = dict[str, Any]

MAX_VALUES: Final = 64  # of an array or list that a row may carry in full

_COLUMNS: Final = {"loss": "loss", "learning_rate": "lr", "lr": "lr", "grad_norm": "grad_norm", "epoch": "epoch"}
_FRACTIONS: Final = ("loss", "ppl", "accuracy")
_RESERVED: Final = frozenset(
    {"self", "step", "loss", "lr", "grad_norm", "epoch", "event", "schema", "ts", "run_id", "seq", "session"}
)


def train_columns(row: Mapping[str, Any]) -> Row:
    """Return a train row by the recorder's names; what it does not know stays beside them."""
    columns: Row = {}
    for key, value in row.items():
        name = _COLUMNS.get(key)
        number = None if name is None or name in columns else value if type(value) is float else _number(value)
        if name is not None and number is not None:
            columns[name] = number
        else:
            columns[f"{key}_" if key in _RESERVED else key] = plain(value)
    return columns


def eval_metrics(measured: Mapping[str, Any]) -> Row:
    """Return one split's measurements as JSON values; what is called a loss and is no number keeps its value."""
    metrics = {key: plain(value) for key, value in measured.items()}
    for name in _FRACTIONS:
        if name in metrics and not isinstance(metrics[name], (int, float)):
            metrics[f"{name}_"] = metrics.pop(name)
    return metrics


def plain(value: Any) -> Any:
    """Return a JSON value: tensors and arrays as numbers, too large or foreign things by their kind."""
    if isinstance(value, Enum):
        return plain(value.value)  # before text: transformers' choices are both
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value] if len(value) <= MAX_VALUES else f"<{len(value)} values>"
    return _of_array(value)


def _of_array(value: Any) -> Any:
    """Return a torch or numpy value as numbers, if it is one and small."""
    shape = getattr(value, "shape", None)
    if shape is None or not callable(getattr(value, "tolist", None)):
        return f"<{type(value).__name__}>"
    count = 1
    for n in shape:
        count *= int(n)
    if count == 1:
        return plain(value.item())
    return plain(value.tolist()) if count <= MAX_VALUES else f"<array of shape {list(shape)}>"


def _number(value: Any) -> Any:
    """Return a number of a known column, or one a group; some trainers log their numbers as text. None for the rest."""
    value = plain(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    listed = isinstance(value, list) and bool(value) and all(map(_is_number, value))
    return value if listed or _is_number(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
