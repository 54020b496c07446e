"""What live objects are about to train, as `gradience.preflight` saw them."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from gradience.schema import Json, NonNegativeInt, Real, about
from gradience.schema.document import Finding, NotRun, Report
from gradience.schema.reports import CheckReport
from gradience.schema.wiring import AdapterWiring, OptimizerWiring, ParameterGroup

PREFLIGHT_SCHEMA_ID: Final = "gradience.preflight/v3"


class PlannedRate(msgspec.Struct, kw_only=True, frozen=True):
    """The learning rate that the schedule gives a step."""

    step: NonNegativeInt
    lr: Real


class FirstBatches(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The first micro-batches that training would draw now."""

    inputs: Annotated[dict[str, str], about("Shape and dtype of each input of the first one.")] = {}
    counts: Annotated[dict[str, Json], about("Of all, as the `metrics` event of kind `data` has them.")] = {}
    judged: Annotated[
        dict[str, NonNegativeInt], about("Tokens that TRL's completion_mask leaves in the loss, and all.")
    ] = {}
    reason: Annotated[str, about("Why none could be looked at, or not all.")] = ""


class PreflightReport(Report, kw_only=True, frozen=True):
    """What is trained, in which dtype, on what, at which rate; and the findings of the rules."""

    schema: Literal["gradience.preflight/v3"]
    check: CheckReport
    groups: Annotated[list[ParameterGroup], about("The model's parameters by kind.")] = []
    adapter: AdapterWiring | None = None
    optimizer: Annotated[OptimizerWiring, about("As the Trainer would make it; null where it is not known.")] | None = (
        None
    )
    schedule: Annotated[str, about("Name of the schedule of the learning rate.")] = ""
    rates: Annotated[list[PlannedRate], about("At the first step, each turn, the middle and the last.")] = []
    batches: FirstBatches = FirstBatches()
    findings: list[Finding] = []
    not_run: list[NotRun] = []
    notes: list[str] = []
