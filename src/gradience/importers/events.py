"""A run as its source has it, told as events: original steps, no clock but the source's own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from gradience.configs.settings import overlay
from gradience.errors import RecorderError
from gradience.importers.files import Raw, Row, json_value, number_of, step_of
from gradience.importers.order import Segment
from gradience.importers.summary import shown_in_rows
from gradience.schema.config import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.schema.events import Eval, EvalMetrics, Event, Metrics, RunEnd, RunStart, TrainStep
from gradience.schema.scalars import SCHEMA_ID, Json, Real, Status, as_float, real
from gradience.telemetry.rows import HELD_OUT, split_row

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


_TRAIN: Final = {"loss": "loss", "learning_rate": "lr", "lr": "lr", "grad_norm": "grad_norm", "epoch": "epoch"}
_EVAL: Final = {"loss": "loss", "ppl": "ppl", "perplexity": "ppl", "accuracy": "accuracy"}
_TRAIN_TAKEN: Final = frozenset({*TrainStep.__struct_fields__, "event"})  # names an extra may not have
_LAST_STEPS: Final = 1e-3  # of all: a plan rounded up, or a last step whose state was not saved
_COLUMNS: Final = ("loss", "grad_norm", "epoch")
_EVENTS_SHOWN: Final = 5
_EVAL_TAKEN: Final = frozenset(EvalMetrics.__struct_fields__)


@dataclass(slots=True)
class _EventBuilder:
    """Makes the events of one run, numbered by session."""

    run_id: str
    percent: bool = False  # accuracies are in per cent
    session: str = ""
    seq: int = 0
    odd: list[tuple[str, int]] = field(default_factory=list)  # known columns that held no number, and where

    def begin(self, session: str) -> None:
        self.session, self.seq = session, 0

    def head(self, step: int | None, ts: float | None) -> dict[str, Any]:
        self.seq += 1
        return {
            "schema": SCHEMA_ID,
            "ts": ts,
            "run_id": self.run_id,
            "step": step,
            "seq": self.seq - 1,
            "session": self.session,
        }

    def row(self, row: Row) -> Iterator[Event]:
        """Yield what one row says: a row of training, evaluations, the summary."""
        parts = split_row(row.values)
        if parts.train:
            known, extras = _known(parts.train, _TRAIN, _TRAIN_TAKEN)
            if "lr" not in known and (rates := _rates(parts.train)) is not None:
                known["lr"] = rates
                extras = {k: v for k, v in extras.items() if k not in {"learning_rate", "lr", "lr_"}}
            self.odd += [(name, row.place) for name in _COLUMNS if f"{name}_" in extras]
            yield TrainStep(**self.head(row.step, row.ts), **known, extras=extras)
        for split, measured in parts.evals.items():
            yield self.evaluation(row.step, row.ts, split, measured)
        if parts.summary:
            yield self.summary(row.step, row.ts, parts.summary)

    def evaluation(self, step: int | None, ts: float | None, split: str, measured: Mapping[str, Json]) -> Eval:
        known, extras = _known(measured, _EVAL, _EVAL_TAKEN)
        if self.percent and "accuracy" in known:
            known["accuracy"] = real(as_float(known["accuracy"]) / 100.0)
        n = step_of(measured.get("n"))
        if n is not None:
            extras.pop("n_")
        metrics = EvalMetrics(**known, n=n, extras=extras)
        return Eval(**self.head(step, ts), split=str(json_value(split)), metrics=metrics)

    def summary(self, step: int | None, ts: float | None, values: Mapping[str, Json]) -> Metrics:
        plain = {str(json_value(k)): json_value(v) for k, v in values.items()}
        return Metrics(**self.head(step, ts), kind="train_summary", metrics=plain)


def to_events(raw: Raw, segments: list[Segment], *, run_id: str, session: str, meta: Mapping[str, Json]) -> list[Event]:
    """Return the run's events, from its run_start to its run_end.

    Args:
        raw: where the rows come from.
        segments: the rows, by starts of the program.
        run_id: of the run.
        session: what the sessions' ids begin with.
        meta: provenance, for run_start.
    """
    teller = _EventBuilder(run_id, percent=any(_in_percent(row) for segment in segments for row in segment.rows))
    if teller.percent:
        raw.notes.append("accuracies above 1 were taken for per cent")
    config = _config(raw, segments)
    events: list[Event] = []
    for number, segment in enumerate(segments):
        teller.begin(f"{session}-{number}" if number else session)
        ts = next((row.ts for row in segment.rows if row.ts is not None), None)
        resumed = segment.resumed_from
        events.append(RunStart(**teller.head(resumed, ts), config=config, meta=dict(meta), resumed_from_step=resumed))
        for row in segment.rows:
            events.extend(teller.row(row))
    if teller.odd:
        places = ", ".join(f"{name} ({raw.unit} {place})" for name, place in teller.odd[:_EVENTS_SHOWN])
        more = f" and {len(teller.odd) - _EVENTS_SHOWN} more" if len(teller.odd) > _EVENTS_SHOWN else ""
        raw.notes.append(f"no numbers, kept as they are: {places}{more}")
    if segments:
        events.append(_end(teller, raw, events))
    return events


def _in_percent(row: Row) -> bool:
    """Whether the row has an accuracy that only per cent can be: one value decides for the run."""
    found = (number_of(value) for key, value in row.values.items() if key.endswith(("accuracy", "_acc")))
    return any(isinstance(number, float) and 1.0 < number <= 100.0 for number in found)  # noqa: PLR2004  # per cent


def _end(teller: _EventBuilder, raw: Raw, events: list[Event]) -> RunEnd:
    steps = [e.step for e in events if e.step is not None and not isinstance(e, RunStart)]
    reached = max([*steps, *([raw.reached] if raw.reached is not None else [])], default=None)
    ts = next((e.ts for e in reversed(events) if e.ts is not None), None)
    status, reason = _status(raw, events, reached)
    head = {**teller.head(reached, None), "ts": ts}
    return RunEnd(**head, status=status, reason=reason)


def _status(raw: Raw, events: list[Event], reached: int | None) -> tuple[Status, str]:
    trained = max((e.step for e in events if isinstance(e, TrainStep) and e.step is not None), default=0)
    summaries = [e for e in events if isinstance(e, Metrics)]
    if raw.finished or any(e.step is None or e.step >= trained for e in summaries):
        return "ok", "the source has the summary of a finished run"
    planned = raw.planned or raw.layer.config.training.max_steps
    if planned is None or planned <= 0:
        return "unknown", "the source does not say how training ended"
    if reached is not None and reached >= planned:
        return "ok", "the planned steps were made"
    if reached is not None and planned - reached <= planned * _LAST_STEPS:
        return "ok", f"the planned steps were made, save the last {planned - reached}"
    return "unknown", f"the source ends before its {planned} planned steps"


def _known(
    values: Mapping[str, Json], names: Mapping[str, str], taken: frozenset[str]
) -> tuple[dict[str, Any], dict[str, Json]]:
    """Return the numbers of known columns by the recorder's names, and all else as extras."""
    known: dict[str, Any] = {}
    extras: dict[str, Json] = {}
    for key, value in values.items():
        name = names.get(key)
        number = None if name is None or name in known else number_of(value)
        if name is not None and number is not None:
            known[name] = number
        else:
            safe = str(json_value(key))
            extras[f"{safe}_" if safe in taken else safe] = json_value(value)
    return known, extras


def _rates(values: Mapping[str, Json]) -> list[Real] | None:
    """Return learning rates logged one per parameter group."""
    given = values.get("learning_rate", values.get("lr"))
    if not isinstance(given, list) or not given:
        return None
    rates = [number_of(rate) for rate in given]
    return None if None in rates else [rate for rate in rates if rate is not None]


def _config(raw: Raw, segments: list[Segment]) -> ConfigSnapshot:
    """Return the config as far as the source's files say it, completed by what the rows show."""
    config = raw.layer.config
    plan = TrainingSnapshot(max_steps=raw.planned)
    shown = ConfigSnapshot(training=plan, optimizer=_peak(row for s in segments for row in s.rows))
    if config.optimizer.lr is not None:
        shown = msgspec.structs.replace(shown, optimizer=OptimizerSnapshot())
    shown = overlay(shown, shown_in_rows(raw, config))
    return overlay(overlay(shown, config), ConfigSnapshot(lora=_ratio(config.lora)))


def _peak(rows: Iterable[Row]) -> OptimizerSnapshot:
    rates = (number_of(row.values.get("learning_rate", row.values.get("lr"))) for row in rows)
    highest = max((as_float(rate) for rate in rates if rate is not None and math.isfinite(as_float(rate))), default=0.0)
    if highest <= 0.0:
        return OptimizerSnapshot()
    return OptimizerSnapshot(lr=highest, extras={"lr_from": "the largest learning rate logged"})


def _ratio(lora: LoraSnapshot) -> LoraSnapshot:
    if not lora.r or lora.r < 0 or lora.alpha is None:
        return LoraSnapshot()
    return LoraSnapshot(alpha_over_r=real(as_float(lora.alpha) / lora.r))
