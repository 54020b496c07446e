"""Plain rows of training, decoded by the thousand: what a long log mostly holds.

A row is plain if it is of the run and session of the row before, and its numbers are finite. The decoder is
made for one run and session: their names are then compared while decoding, and not built again for each row.
Whatever is not plain is left to the typed events, which accept all that is accepted here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from gradience.schema.events import TrainStep
from gradience.schema.scalars import SCHEMA_ID, Json, NonNegativeInt


class PlainRow(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="event", tag="train_step"):
    """A row of training without its extras."""

    schema: Literal["gradience.vnext.telemetry/v1"]
    ts: float | None
    run_id: Annotated[str, Meta(min_length=1)]
    step: NonNegativeInt
    loss: float
    lr: float | None = None
    grad_norm: float | None = None
    epoch: float | None = None
    seq: NonNegativeInt | None = None
    session: str | None = None

    def event(self) -> TrainStep:
        """Return the row as the typed event it is."""
        return TrainStep(
            schema=SCHEMA_ID,
            ts=self.ts,
            run_id=self.run_id,
            step=self.step,
            loss=self.loss,
            lr=self.lr,
            grad_norm=self.grad_norm,
            epoch=self.epoch,
            seq=self.seq,
            session=self.session,
        )


@lru_cache(maxsize=16)
def row_decoder(run_id: str, session: str | None) -> msgspec.json.Decoder[list[PlainRow]]:
    """Return a decoder of an array of plain rows of one run and session; anything else makes it fail."""
    own = ("session", Literal[session]) if session else ("session", None, None)
    cls = msgspec.defstruct(
        "PlainRow",
        [("run_id", Literal[run_id]), own],
        bases=(PlainRow,),
        frozen=True,
        kw_only=True,
        gc=False,
    )
    return msgspec.json.Decoder(list[cls])  # type: ignore[valid-type]  # a class made above


HELD_OUT: Final = ("eval", "val", "valid", "validation", "test", "dev", "predict")

_SUMMARY: Final = "total_flos"  # only the summary at the end of training has it
_SPOKEN: Final = ("loss", "accuracy", "acc", "ppl", "perplexity", "runtime")  # what makes `test_` a split's prefix
_TRAINING: Final = frozenset({"loss", "learning_rate", "lr", "grad_norm"})
_USUAL: Final = _TRAINING | {"epoch"}  # what the Trainer logs of a step
_BEGINNINGS: Final = tuple(f"{word}_" for word in HELD_OUT)

Values = dict[str, Json]


class Parts(NamedTuple):
    """One row, taken apart."""

    train: Values
    evals: dict[str, Values]  # split to its measurements, without prefix
    summary: Values


def split_of(prefix: str) -> str:
    """Return the split's name: the Trainer evaluates a dict of data sets under `eval_<name>`.

    >>> split_of("eval"), split_of("eval_hard"), split_of("test")
    ('eval', 'hard', 'test')
    """
    return prefix.removeprefix("eval_") or prefix


def split_row(values: Values) -> Parts:
    """Return the row's parts.

    >>> split_row({"loss": 1.2, "epoch": 0.1}).train
    {'loss': 1.2, 'epoch': 0.1}
    >>> split_row({"eval_g0_loss": 1.2, "eval_g0_runtime": 3.0, "epoch": 1.0}).evals
    {'g0': {'loss': 1.2, 'runtime': 3.0, 'epoch': 1.0}}
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
    """Whether no key is of an evaluation or a summary: what nearly all rows are, and all that they are asked."""
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
    """Return the prefixes under which the row holds evaluations, the longest first."""
    trained = "loss" in values
    timed = {key.removesuffix("_runtime") for key in values if key.endswith("_runtime")}
    found = {p for p in timed if p.startswith("eval") or p in HELD_OUT or not trained}
    found = {p for p in found if not any(p.startswith(f"{q}_") for q in found)}  # a metric that is called so
    found |= {word for word in HELD_OUT if any(f"{word}_{metric}" in values for metric in _SPOKEN)}
    if not any(p == "eval" or p.startswith("eval_") for p in found) and (named := _untimed(values)):
        found.add(named)
    return sorted(found, key=len, reverse=True)


def _untimed(values: Values) -> str | None:
    """Return the prefix of `eval_` keys that come without their runtime."""
    keys = [key for key in values if key.startswith("eval_")]
    losses = [key for key in keys if key.endswith("_loss")]
    if len(losses) == 1 and all(key.startswith(losses[0].removesuffix("loss")) for key in keys):
        return losses[0].removesuffix("_loss")
    return "eval" if keys else None


def _owner(key: str, prefixes: list[str]) -> str | None:
    for prefix in prefixes:
        if key.startswith(f"{prefix}_"):
            return prefix
    if not key.startswith("eval_"):
        return None
    return next((p for p in prefixes if p.startswith("eval")), None)  # TRL's own metrics lack the data set's name


def _by_split(owned: dict[str, Values]) -> dict[str, Values]:
    """Return the evaluations by split; a prefix keeps its whole name where the short one is another's."""
    evals: dict[str, Values] = {}
    for prefix in sorted(owned, key=len):
        if owned[prefix]:
            evals[prefix if split_of(prefix) in evals else split_of(prefix)] = owned[prefix]
    return evals


def _without(key: str, prefix: str) -> str:
    name = key.removeprefix(f"{prefix}_")
    return name if name != key else key.removeprefix("eval_")


def _share(free: Values, owned: dict[str, Values]) -> Values:
    """Give what has no prefix to the row of training, or to the one evaluation that came alone; return the rest."""
    if free.keys() & _TRAINING or not owned:
        return free
    if len(owned) == 1:
        for held in owned.values():
            held.update({key: value for key, value in free.items() if key not in held})
        return {}
    for held in owned.values():
        held.update({key: free[key] for key in ("epoch",) if key in free})
    return {key: value for key, value in free.items() if key != "epoch"}
