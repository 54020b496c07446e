"""The events of a `run.jsonl` as typed classes: build them, encode them, hand them to the writer, read them back.

>>> from gradience.events import TrainStep, encode
>>> row = TrainStep(ts=None, run_id="r1", step=3, loss=0.7, extras={"tokens": 512})
>>> encode(row).decode()
'{"event":"train_step","loss":0.7,"schema":"gradience.vnext.telemetry/v1","ts":null,"run_id":"r1","step":3,"tokens":512}'

A call checks every field, and raises a `SchemaError` that names the wrong one. `msgspec.json.encode` writes the same
line; `decode` reads it, as `TelemetryReader` does a whole log. `extras` are values without a field of their own. They
stand beside the fields on the wire, and so does each field of a class that inherits from an event. A `Real` is a
number, or the name of one that is not finite, because JSON has none; `as_float` gives the number of either:

>>> class Row(TrainStep, frozen=True):
...     kl: Real | None = None
>>> row = Row(ts=None, run_id="r1", step=3, loss=0.5, kl=float("nan"))
>>> row.kl, as_float(row.kl), as_float(row.loss), as_float(row.grad_norm)
('NaN', nan, 0.5, None)
"""

from __future__ import annotations

from gradience.schema import SCHEMA_ID, Real, as_float
from gradience.schema.events import (
    EVENT_TYPES,
    Alert,
    ConfigSnapshot,
    Eval,
    EvalMetrics,
    Event,
    EventBase,
    LoraSnapshot,
    Metrics,
    OptimizerSnapshot,
    Recommendation,
    RecommendationItem,
    RunEnd,
    RunStart,
    StepDigests,
    Throughput,
    TrainingSnapshot,
    TrainStep,
    UnknownEvent,
    Wiring,
)
from gradience.telemetry.codec import decode, encode

__all__ = [
    "EVENT_TYPES",
    "SCHEMA_ID",
    "Alert",
    "ConfigSnapshot",
    "Eval",
    "EvalMetrics",
    "Event",
    "EventBase",
    "LoraSnapshot",
    "Metrics",
    "OptimizerSnapshot",
    "Real",
    "Recommendation",
    "RecommendationItem",
    "RunEnd",
    "RunStart",
    "StepDigests",
    "Throughput",
    "TrainStep",
    "TrainingSnapshot",
    "UnknownEvent",
    "Wiring",
    "as_float",
    "decode",
    "encode",
]
