"""Which column is which: as the user maps them, else by the names that everyone knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from gradience.errors import RecorderError
from gradience.telemetry.logged import HELD_OUT

__all__ = ["Columns", "find_columns", "parse_map"]

Columns = dict[str, str]  # column of the source -> name here: step, ts, or a row's key such as loss or eval_loss

_KNOWN: Final[dict[str, tuple[str, ...]]] = {  # the first that is there counts
    "step": (
        "step",
        "_step",
        "global_step",
        "train_global_step",
        "trainer_global_step",
        "current_steps",
        "train_step",
        "iteration",
        "iter",
        "steps",
    ),
    "loss": ("loss", "train_loss", "training_loss", "train_loss_step", "train_mean_nll", "loss_train"),
    "learning_rate": ("learning_rate", "lr", "train_learning_rate", "train_lr", "optim_lr"),
    "grad_norm": ("grad_norm", "train_grad_norm", "gradient_norm", "global_grad_norm", "grad_norm_total"),
    "epoch": ("epoch", "train_epoch"),
    "ts": ("ts", "_timestamp", "timestamp", "wall_time"),
}
_SHORT: Final = {"acc": "accuracy", "ppl": "ppl", "perplexity": "ppl"}
_TARGETS: Final = {"lr": "learning_rate", **{name: name for name in _KNOWN}}
_SEPARATOR: Final = re.compile(r"[/.: \-]+")
_GROUP: Final = re.compile(rf"({'|'.join(HELD_OUT)})[/._](.+)", re.IGNORECASE)
_ADVICE: Final = "for example --map loss=train/loss,step=_step,eval.loss=val_loss"
_SHOWN: Final = 12


def parse_map(texts: Iterable[str]) -> Columns:
    """Return the columns of `--map loss=train/loss,step=_step`; `eval.loss` is the loss of the split `eval`.

    Raises:
        RecorderError: not of that form, or a name that is none.
    """
    columns: Columns = {}
    for pair in (piece for text in texts for piece in text.split(",") if piece.strip()):
        target, equals, column = (part.strip() for part in pair.partition("="))
        if not (equals and target and column):
            raise RecorderError(f"--map: expected NAME=COLUMN, got {pair.strip()[:60]!r}", advice=_ADVICE)
        columns[column] = _target(target)
    if len(set(columns.values())) < len(columns):
        raise RecorderError("--map gives two columns one name", advice=_ADVICE)
    return columns


def _target(name: str) -> str:
    if name in _TARGETS:
        return _TARGETS[name]
    split, dot, metric = _SEPARATOR.sub(".", name).partition(".")
    if not (dot and split and metric):
        known = ", ".join(sorted(_TARGETS))
        raise RecorderError(f"--map: no value is called {name[:60]!r}", advice=f"{known}, or SPLIT.METRIC; {_ADVICE}")
    return f"{split}_{metric}" if split in HELD_OUT else f"eval_{split}_{metric}"


def find_columns(present: Iterable[str], given: Mapping[str, str] | None = None) -> Columns:
    """Return the name here of every column that has one; what the user says comes first.

    Raises:
        RecorderError: a column of the map is not there, or no column can be the step or anything measured.
    """
    names = list(dict.fromkeys(present))
    columns = dict(given or {})
    if missing := [column for column in columns if column not in names]:
        raise RecorderError(f"--map: there is no column {missing[0][:60]!r}", advice=f"there are {_listed(names)}")
    free = [name for name in names if name not in columns]
    columns |= _by_name(free, set(columns.values()))
    if "step" not in columns.values():
        raise RecorderError("no column is the step", advice=f"say --map step=COLUMN; there are {_listed(names)}")
    if not any(_measures(name) for name in columns.values()):
        raise RecorderError("no column is a loss or an evaluation", advice=f"say --map loss=COLUMN; {_listed(names)}")
    return columns


def _measures(name: str) -> bool:
    return name == "loss" or name.startswith(tuple(f"{word}_" for word in HELD_OUT))


def _by_name(names: list[str], taken: set[str]) -> Columns:
    plain: dict[str, str] = {}
    for name in names:
        plain.setdefault(_SEPARATOR.sub("_", name).lower(), name)
    found: Columns = {}
    for target, known in _KNOWN.items():
        column = next((plain[name] for name in known if name in plain), None)
        if target not in taken and column is not None:
            found[column] = target
    for name in names:
        if name not in found and (target := _other(name)) not in taken | set(found.values()):
            found[name] = target
    return found


def _other(name: str) -> str:
    """Return the name of a column that is none of the well-known ones: a split's, or its own."""
    group = _GROUP.fullmatch(name)
    if group:
        metric = group[2].replace("/", "_")
        return f"{group[1].lower()}_{_SHORT.get(metric.lower(), metric)}"
    return name.removeprefix("train/")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:40] for name in names[:_SHOWN]) + more
