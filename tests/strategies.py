"""All hypothesis strategies: events, documents, and logs."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import strategies as st

from gradience.schema import (
    MAX_INT,
    SCHEMA_ID,
    Alert,
    ConfigSnapshot,
    Eval,
    EvalMetrics,
    Event,
    LoraSnapshot,
    Metrics,
    OptimizerSnapshot,
    Recommendation,
    RecommendationItem,
    RunEnd,
    RunStart,
    TrainingSnapshot,
    TrainStep,
)
from gradience.telemetry import encode

NON_FINITE = ("NaN", "Infinity", "-Infinity")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)
reals = finite | st.sampled_from(NON_FINITE)
counts = st.integers(0, MAX_INT)
integers = st.integers(-(2**70), 2**70)
scalars = st.none() | st.booleans() | integers | finite | texts
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
json_objects = st.dictionaries(texts, json_values, max_size=3)
severities = st.sampled_from(["info", "warning", "error", "critical"])

ENVELOPE = {"schema", "ts", "run_id", "event", "step", "seq", "session"}


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


def extras(*known: str) -> st.SearchStrategy[dict[str, Any]]:
    """Extra keys with values, where no key is a known one, or one that a Struct cannot have a field of."""
    taken = {*ENVELOPE, *known, "extras"}
    return st.dictionaries(
        texts.filter(lambda key: key not in taken and not re.search(r'["\\\x00-\x1f]', key)), json_values, max_size=3
    )


def envelope() -> dict[str, st.SearchStrategy[Any]]:
    return {
        "schema": st.just(SCHEMA_ID),
        "ts": optional(finite),
        "run_id": names,
        "step": optional(counts),
        "seq": optional(counts),
        "session": optional(texts),
    }


optimizers = st.builds(
    OptimizerSnapshot, name=optional(texts), lr=optional(reals), betas=optional(st.lists(reals)), extras=json_objects
)
loras = st.builds(
    LoraSnapshot,
    r=optional(integers),
    alpha=optional(reals),
    target_modules=optional(texts | st.lists(texts, max_size=3)),
    use_rslora=optional(st.booleans()),
    rank_pattern=optional(st.dictionaries(texts, integers, max_size=2)),
    alpha_pattern=optional(st.dictionaries(texts, reals, max_size=2)),
    extras=json_objects,
)
trainings = st.builds(
    TrainingSnapshot, seed=optional(integers), max_steps=optional(integers), epochs=optional(reals), extras=json_objects
)
configs = st.builds(
    ConfigSnapshot,
    model_name=optional(texts),
    task_profile=st.sampled_from(["easy_classification", "hard_reasoning", "generation", "unknown"]),
    optimizer=optimizers,
    lora=loras,
    training=trainings,
    notes=optional(texts),
    extras=json_objects,
)
eval_metrics = st.builds(
    EvalMetrics,
    loss=optional(reals),
    ppl=optional(reals),
    accuracy=optional(reals),
    n=optional(counts),
    extras=extras("loss", "ppl", "accuracy", "n"),
)
ITEM_KEYS = ("severity", "action", "message", "rationale", "confidence", "scope", "evidence")
items = st.builds(
    RecommendationItem,
    severity=severities,
    action=texts,
    message=texts,
    rationale=optional(texts),
    confidence=optional(st.floats(0, 1)),
    scope=optional(texts),
    evidence=json_objects,
    extras=extras(*ITEM_KEYS),
)

run_starts = st.builds(
    RunStart,
    **envelope(),
    config=configs,
    meta=json_objects,
    resumed_from_step=optional(counts),
    extras=extras("config", "meta", "resumed_from_step"),
)
train_steps = st.builds(
    TrainStep,
    **envelope(),
    loss=optional(reals),
    lr=optional(reals | st.lists(reals, max_size=3)),
    grad_norm=optional(reals),
    epoch=optional(reals),
    extras=extras("loss", "lr", "grad_norm", "epoch"),
)
evals = st.builds(Eval, **envelope(), split=texts, metrics=eval_metrics, extras=extras("split", "metrics"))
metrics = st.builds(Metrics, **envelope(), kind=texts, metrics=json_objects, extras=extras("kind", "metrics"))
alerts = st.builds(
    Alert,
    **envelope(),
    severity=severities,
    code=texts,
    message=texts,
    context=json_objects,
    extras=extras("severity", "code", "message", "context"),
)
recommendations = st.builds(
    Recommendation, **envelope(), recommendations=st.lists(items, max_size=2), extras=extras("recommendations")
)
run_ends = st.builds(
    RunEnd,
    **envelope(),
    status=st.sampled_from(["ok", "aborted", "error", "interrupted", "unknown"]),
    reason=optional(texts),
    extras=extras("status", "reason"),
)

events: st.SearchStrategy[Event] = st.one_of(run_starts, train_steps, evals, metrics, alerts, recommendations, run_ends)

logs = st.lists(events, min_size=1, max_size=4).map(lambda log: b"".join(encode(event) + b"\n" for event in log))
"""The bytes of a whole log."""

documents: st.SearchStrategy[dict[str, Any]] = events.map(lambda event: json.loads(encode(event)))
"""Events as plain documents, as another program would write them."""

_ODD = st.sampled_from(
    ["NaN", "nan", "ok", "", [], {}, 0, -1, 1.5, 4.0, True, None, [1], {"a": 1}, 2**53, "info", -0.0]
)


@st.composite
def altered_documents(draw: st.DrawFn) -> dict[str, Any]:
    """An event with values replaced, removed or added anywhere. It may be valid or invalid."""
    document = draw(documents)
    for _ in range(draw(st.integers(1, 3))):
        _alter(draw, document)
    return document


def _alter(draw: st.DrawFn, document: dict[str, Any]) -> None:
    node: Any = document
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = draw(st.sampled_from(keys))
        if isinstance(node[key], (dict, list)) and node[key] and draw(st.booleans()):
            node = node[key]
            continue
        if isinstance(node, dict) and draw(st.integers(0, 3)) == 0:
            del node[key]
        else:
            node[key] = draw(_ODD | scalars)
        return


@st.composite
def mutated_logs(draw: st.DrawFn) -> bytes:
    """A log with bytes flipped, inserted or deleted anywhere."""
    data = bytearray(draw(logs))
    for _ in range(draw(st.integers(1, 8))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["flip", "insert", "delete", "cut", "repeat"])):
            case "flip":
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                data[at:at] = draw(
                    st.binary(min_size=1, max_size=4) | st.sampled_from([b"\n", b'"', b"{", b"}", b"\xff"])
                )
            case "delete":
                del data[at : at + draw(st.integers(1, 40))]
            case "cut":
                del data[at:]
            case "repeat":
                data[at:at] = data[at : at + 200]
    return bytes(data)
