"""Split a row that a trainer logged into training, evaluations and summary, and rename its columns for events.

A row of the Hugging Face Trainer, and of loggers that follow it, mixes values of training (`loss`), of evaluations
(`eval_loss`, `eval_hard_accuracy`) and of the summary at the end (`train_runtime`). `split_row` separates them by their
keys. `train_columns` and `eval_columns` then rename the known columns to the fields of an event, and keep all others as
extras. The callback uses this module on live rows and the importers on imported ones, so both log the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from gradience.schema import Json, Real
from gradience.schema.events import EvalMetrics, EventBase, TrainStep
from gradience.schema.values import described, number_of, step_of

HELD_OUT: Final = ("eval", "val", "valid", "validation", "test", "dev", "predict")

_SUMMARY: Final = "total_flos"  # only the summary at the end of training has it
SPOKEN: Final = ("loss", "accuracy", "acc", "ppl", "perplexity", "runtime")  # `test_` before these is a split's prefix
_TRAINING: Final = frozenset({"loss", "learning_rate", "lr", "grad_norm"})
_USUAL: Final = _TRAINING | {"epoch"}  # the keys that the Trainer logs for a step
_OF_THE_CRITIC: Final = "val/ratio"  # in TRL's PPO `val/` is the value function's
_BEGINNINGS: Final = tuple(f"{word}{mark}" for word in HELD_OUT for mark in "_/")

_COLUMNS: Final = {
    **{name: name for name in TrainStep.__struct_fields__ if name not in EventBase.__struct_fields__},
    "learning_rate": "lr",
}
_METRICS: Final = {**{name: name for name in EvalMetrics.__struct_fields__ if name != "extras"}, "perplexity": "ppl"}
# Names that an extra may not have. `self` is one, because extras are passed to the writer's methods as keywords.
_RESERVED: Final = frozenset({*TrainStep.__struct_fields__, "event", "self"})
_RESERVED_METRICS: Final = frozenset(EvalMetrics.__struct_fields__)

Values = dict[str, Json]


class Parts(NamedTuple):
    """The parts of one row."""

    train: Values
    evals: dict[str, Values]  # split -> its measurements, without the prefix
    summary: Values


class Columns(NamedTuple):
    """The numbers of the known columns by their names in an event, and all other columns as JSON values."""

    known: dict[str, Any]  # Real, or a list of them for `lr`, or an int for `n`
    extras: Values


def plain_columns(row: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the columns of a row that has only known columns and only floats, which nearly all rows have; else None.

    >>> plain_columns({"loss": 1.5, "learning_rate": 2e-4}), plain_columns({"epoch": 1.0}), plain_columns({"loss": 1})
    ({'loss': 1.5, 'lr': 0.0002}, None, None)
    """
    if "loss" not in row:
        return None
    columns = {}
    for key, value in row.items():
        if type(value) is not float or key not in _COLUMNS:
            return None
        columns[_COLUMNS[key]] = value
    # If there are fewer columns than keys, `lr` and `learning_rate` are both there, and one is an extra.
    return columns if len(columns) == len(row) else None


def train_columns(row: Mapping[str, Any]) -> Columns:
    """Return a training row's columns. A known column that holds no number becomes an extra, `loss_` for `loss`.

    >>> train_columns({"loss": "1.5", "learning_rate": 2e-4, "grad_norm": None, "reward": 0.5})
    Columns(known={'loss': 1.5, 'lr': 0.0002}, extras={'grad_norm_': None, 'reward': 0.5})
    """
    return _columns(row, _COLUMNS, _RESERVED)


def eval_columns(measured: Mapping[str, Any]) -> Columns:
    """Return one evaluation's columns, by the rules of `train_columns`. The number of examples `n` is a known column.

    >>> eval_columns({"loss": 0.5, "accuracy": {"a": 1}, "n": 8.0, "runtime": 2.0})
    Columns(known={'loss': 0.5, 'n': 8}, extras={'accuracy_': {'a': 1}, 'runtime': 2.0})
    """
    return _columns(measured, _METRICS, _RESERVED_METRICS)


def _columns(values: Mapping[str, Any], names: Mapping[str, str], reserved: frozenset[str]) -> Columns:
    known: dict[str, Any] = {}
    extras: Values = {}
    for key, value in values.items():
        name, plain = names.get(key), described(value)
        # The second name of one field, as `lr` beside `learning_rate`, stays among the extras.
        number = None if name is None or name in known else _READ.get(name, number_of)(plain)
        if name is not None and number is not None:
            known[name] = number
        else:
            safe = str(described(key))
            extras[f"{safe}_" if safe in reserved else safe] = plain
    return Columns(known, extras)


def _rates(value: Json) -> Real | list[Real] | None:
    """Return a learning rate, or a list of one per parameter group; None if it is neither."""
    if not isinstance(value, list):
        return number_of(value)
    rates = [rate for item in value if (rate := number_of(item)) is not None]
    return rates if rates and len(rates) == len(value) else None


_READ: Final[dict[str, Callable[[Json], Any]]] = {"lr": _rates, "n": step_of}  # all others are read as numbers


def split_of(prefix: str) -> str:
    """Return the name of a prefix's split. The Trainer evaluates a dict of data sets under `eval_<name>`.

    >>> split_of("eval"), split_of("eval_hard"), split_of("test")
    ('eval', 'hard', 'test')
    """
    return prefix.removeprefix("eval_") or prefix


def split_row(values: Values) -> Parts:
    """Return the parts of a row: training, evaluations by split, and summary.

    >>> split_row({"loss": 1.2, "epoch": 0.1}).train
    {'loss': 1.2, 'epoch': 0.1}
    >>> split_row({"eval_g0_loss": 1.2, "eval_g0_runtime": 3.0, "epoch": 1.0}).evals
    {'g0': {'loss': 1.2, 'runtime': 3.0, 'epoch': 1.0}}
    >>> split_row({"objective/kl": 2.0, "val/ratio": 1.0}).evals
    {}
    """
    if _is_plain(values):
        return Parts(values, {}, {})
    summary, rest = _take_summary(values)
    prefixes = _prefixes(rest)
    owned: dict[str, Values] = {prefix: {} for prefix in prefixes}
    free: Values = {}
    for key, value in rest.items():
        owner = _owner(key, prefixes)
        if owner is None:
            free[key] = value
        else:
            owned[owner][_without(key, owner)] = value
    return Parts(_share(free, owned), _by_split(owned), summary)


def _is_plain(values: Values) -> bool:
    """Whether no key belongs to an evaluation or a summary, as in nearly all rows."""
    if values.keys() <= _USUAL:
        return True
    for key in values:
        if key.startswith(_BEGINNINGS) or key.endswith("_runtime"):
            return False
    return _SUMMARY not in values


def _take_summary(values: Values) -> tuple[Values, Values]:
    if _SUMMARY not in values:
        return {}, values
    summary = {k: v for k, v in values.items() if k == _SUMMARY or k.startswith("train_")}
    rest = {k: v for k, v in values.items() if k not in summary}
    if not rest.keys() & _TRAINING and not _prefixes(rest):
        return {**summary, **rest}, {}
    return ({**summary, "epoch": rest["epoch"]} if "epoch" in rest else summary), rest


def _prefixes(values: Values) -> list[str]:
    """Return the prefixes of the row's evaluations, the longest first, of one length by their letters."""
    trained = "loss" in values
    timed = {key.removesuffix("_runtime") for key in values if key.endswith("_runtime")} - {""}  # W&B has a `_runtime`
    # Beside a loss of training, any other `x_runtime` is a measurement of the step.
    prefixes = {p for p in timed if p.startswith("eval") or p in HELD_OUT or not trained}
    prefixes = {p for p in prefixes if not any(p.startswith(f"{q}_") for q in prefixes)}  # such a p is a metric's name
    prefixes |= {word for word in HELD_OUT if any(f"{word}_{metric}" in values for metric in SPOKEN)}
    words = [word for word in HELD_OUT if word != "val" or _OF_THE_CRITIC not in values]
    prefixes |= {word for word in words if any(key.startswith(f"{word}/") for key in values)}  # no metric of training
    if not any(p.startswith("eval_") for p in prefixes) and (named := _untimed(values)):
        prefixes.add(named)
    return sorted(prefixes, key=lambda prefix: (-len(prefix), prefix))  # a set has another order in every process


def _untimed(values: Values) -> str | None:
    """Return the prefix of `eval_` keys without a runtime, or None if there are no such keys."""
    keys = [key for key in values if key.startswith("eval_")]
    losses = [key for key in keys if key.endswith("_loss")]
    if len(losses) == 1 and all(key.startswith(losses[0].removesuffix("loss")) for key in keys):
        return losses[0].removesuffix("_loss")
    return "eval" if keys else None


def _owner(key: str, prefixes: list[str]) -> str | None:
    for prefix in prefixes:
        if key.startswith((f"{prefix}_", f"{prefix}/")):
            return prefix
    if not key.startswith("eval_"):
        return None
    return next((p for p in prefixes if p.startswith("eval")), None)  # TRL's own metrics lack the data set's name


def _by_split(owned: dict[str, Values]) -> dict[str, Values]:
    """Return the evaluations by split. A prefix keeps its full name if another prefix has its split's name."""
    evals: dict[str, Values] = {}
    # The shorter prefix has the split's name: `test` before `eval_test`.
    for prefix in sorted(owned, key=len):
        evals[prefix if split_of(prefix) in evals else split_of(prefix)] = owned[prefix]
    return evals


def _without(key: str, prefix: str) -> str:
    name = key.removeprefix(f"{prefix}_").removeprefix(f"{prefix}/")
    return name if name != key else key.removeprefix("eval_")


def _share(free: Values, owned: dict[str, Values]) -> Values:
    """Add the values without a prefix to the only evaluation of a row without training; return the training values.

    With several evaluations and no training, each gets only the epoch.
    """
    if free.keys() & _TRAINING or not owned:
        return free
    if len(owned) == 1:
        for measured in owned.values():
            measured.update({key: value for key, value in free.items() if key not in measured})
        return {}
    for measured in owned.values():
        measured.update({key: free[key] for key in ("epoch",) if key in free})
    return {key: value for key, value in free.items() if key != "epoch"}
