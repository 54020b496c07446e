"""The events of a `run.jsonl` as typed classes: build them, encode them, hand them to the writer, read them back.

>>> from gradience.events import TrainStep, encode
>>> row = TrainStep(ts=None, run_id="r1", step=3, loss=0.7, extras={"tokens": 512})
>>> encode(row).decode()
'{"event":"train_step","loss":0.7,"schema":"gradience.vnext.telemetry/v1","ts":null,"run_id":"r1","step":3,"tokens":512}'

A call checks every field, and raises a `SchemaError` that names the wrong one. `msgspec.json.encode` writes the same
line; `decode` reads it, as `TelemetryReader` does a whole log. `extras` are values without a field of their own. They
stand beside the fields on the wire, and so does each field of a class that inherits from an event:

>>> class Row(TrainStep, frozen=True):
...     kl: float | None = None
>>> Row(ts=None, run_id="r1", step=3, kl=0.5).kl
0.5
"""

from __future__ import annotations

from gradience.schema import SCHEMA_ID
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
    "decode",
    "encode",
]
