"""Types of the report of ``why``: where two runs part, and by what."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from gradience.schema import Json, NonNegativeInt, about
from gradience.schema.document import Report
from gradience.schema.reports import Pace

WHY_SCHEMA_ID: Final = "gradience.why/v2"

Verdict: TypeAlias = Literal["same", "one_cause", "several", "unknown"]


class Difference(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One thing that differs between the runs."""

    cause: Annotated[str, about("Its kind: `seed`, `order`, `data_row`, `batch_size`, `accumulation`, `lr`, ...")]
    says: str
    first: Annotated[Json, about("In the first run.")] = None
    second: Annotated[Json, about("In the second run.")] = None
    step: Annotated[NonNegativeInt, about("The step from which it acts; 0 is before the first.")] = 0


class Parting(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The first step at which a recorded quantity differs."""

    quantity: Annotated[str, about("`weights`, `batch`, `rng`, `lr`, `loss` or `grad_norm`.")]
    step: NonNegativeInt
    first: Json = None
    second: Json = None


class WhyReport(Report, kw_only=True, frozen=True, omit_defaults=True):
    """Where two runs part, and the one cause, or what cannot be told and what to record to tell it."""

    schema: str
    runs: Annotated[list[str], about("The two logs.")]
    verdict: Annotated[Verdict, about("`several`: more than one difference acts from the same step on.")]
    story: Annotated[str, about("The answer in one line.")]
    step: Annotated[NonNegativeInt, about("The first step at which they part.")] | None = None
    cause: Difference | None = None
    parts: Annotated[list[Parting], about("What differs first, in the order in which a step is computed.")] = []
    differences: Annotated[list[Difference], about("Everything that was found to differ, causes first.")] = []
    paces: Annotated[list[Pace | None], about("Speed and memory of both runs, if one recorded them.")] = []
    compared: Annotated[list[str], about("What both runs recorded.")] = []
    not_told: Annotated[list[str], about("What cannot be told, and what to record to tell it.")] = []
