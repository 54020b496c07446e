"""What the Trainer logs, row by row: a train row, one split's evaluation, the summary, or something else."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

from gradience.importers.rows import split_of

__all__ = ["Kind", "Row", "eval_metrics", "eval_prefix", "kind_of", "plain", "split_of", "train_columns"]

Row: TypeAlias = dict[str, Any]
Kind: TypeAlias = Literal["train", "eval", "summary", "other"]

MAX_VALUES: Final = 64  # of an array or list that a row may carry in full

_COLUMNS: Final = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm", "epoch": "epoch"}
_FRACTIONS: Final = ("loss", "ppl", "accuracy")
_RESERVED: Final = frozenset({"self", "step", "lr", "event", "schema", "ts", "run_id", "seq", "session"})


def kind_of(row: Mapping[str, Any]) -> Kind:
    """Return what a logged row is, by its keys: its position in the run says nothing.

    >>> kind_of({"loss": 1.2, "epoch": 0.1}), kind_of({"train_loss": 1.2, "total_flos": 0.0})
    ('train', 'summary')
    >>> kind_of({"eval_loss": 1.2}), kind_of({"train_loss": 1.2, "train_runtime": 1.0})
    ('eval', 'eval')
    """
    if "total_flos" in row:
        return "summary"
    if "loss" in row:
        return "train"
    return "other" if eval_prefix(row) is None else "eval"


def eval_prefix(row: Mapping[str, Any]) -> str | None:
    """Return the `metric_key_prefix` an evaluation was made under, or None for a row of another kind.

    The Trainer adds `<prefix>_runtime` to every evaluation. A name that merely ends so is longer.
    """
    timed = [key.removesuffix("_runtime") for key in row if key.endswith("_runtime")]
    if timed:
        return min(timed, key=len)
    return "eval" if any(key.startswith("eval_") for key in row) else None


def train_columns(row: Mapping[str, Any]) -> Row:
    """Return a train row by the recorder's names; what it does not know stays beside them."""
    columns: Row = {}
    for key, value in row.items():
        name = _COLUMNS.get(key)
        if name is not None:
            columns[name] = _number(value)
        else:
            columns[f"{key}_" if key in _RESERVED else key] = plain(value)
    return columns


def eval_metrics(row: Mapping[str, Any], prefix: str) -> Row:
    """Return an evaluation's measurements without their prefix."""
    metrics: Row = {}
    for key, value in row.items():
        name = key.removeprefix(f"{prefix}_")
        if name == key:
            name = key.removeprefix("eval_")  # TRL's own metrics of a named data set lack its name
        metrics[name] = plain(value)
    for name in _FRACTIONS:
        if name in metrics and not isinstance(metrics[name], (int, float)):
            metrics[f"{name}_"] = metrics.pop(name)  # a metric of this name that is no number
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
    """Return a number of a known column; some trainers log their numbers as text."""
    value = plain(value)
    return float(value) if isinstance(value, str) else value
