"""Plain rows of training, decoded by the thousand: what a long log mostly holds.

A row is plain if it is of the run and session of the row before, and its numbers are finite. The decoder is
made for one run and session: their names are then compared while decoding, and not built again for each row.
Whatever is not plain is left to the typed events, which accept all that is accepted here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gradience.schema.events import TrainStep
from gradience.schema.scalars import SCHEMA_ID, NonNegativeInt

__all__ = ["PlainRow", "row_decoder"]


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
