"""What ``monitor`` prints as JSON where it was given several runs."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from gradience.schema.findings import FindingRef
from gradience.schema.scalars import Json, NonNegativeInt, Real

__all__ = [
    "COMPARE_SCHEMA_ID",
    "AlignedRow",
    "CompareReport",
    "ComparedRun",
    "ConfigDifference",
    "UnreadRun",
]

COMPARE_SCHEMA_ID: Final = "gradience.compare/v1"


class ComparedRun(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One run, as a column of the comparison."""

    name: Annotated[str, Meta(description="Short, and its own among the runs compared.")]
    file: str
    run_id: str | None = None
    story: Annotated[str, Meta(description="The run in one line.")] = ""
    status: Annotated[str, Meta(description="Status of run_end, or `no_run_end`.")]
    rows: NonNegativeInt = 0
    last_step: NonNegativeInt | None = None
    max_steps: NonNegativeInt | None = None
    first_loss: Real | None = None
    last_loss: Real | None = None
    min_loss: Real | None = None
    min_loss_step: NonNegativeInt | None = None
    split: Annotated[str, Meta(description="The held-out split that the next four speak of.")] | None = None
    eval_loss: Annotated[Real, Meta(description="Newest held-out loss.")] | None = None
    best_eval_loss: Real | None = None
    best_eval_step: NonNegativeInt | None = None
    accuracy: Annotated[Real, Meta(description="Newest held-out accuracy, 0 to 1.")] | None = None
    gap: Annotated[Real, Meta(description="Held-out over train perplexity.")] | None = None
    signals: Annotated[
        dict[str, float],
        Meta(description="Rewards, margins, KL, ...: medians of the last fifth of their rows."),
    ] = {}
    lr: Annotated[Real, Meta(description="Peak learning rate: the highest logged, else the configured one.")] | None = (
        None
    )
    r: Annotated[int, Meta(description="Rank where no pattern matches.")] | None = None
    alpha: Real | None = None
    utilization_mean: float | None = None
    duration_s: float | None = None
    findings: list[FindingRef] = []


class ConfigDifference(msgspec.Struct, kw_only=True, frozen=True):
    """One value of the configuration that is not the same in all runs."""

    key: Annotated[str, Meta(description="Place in the configuration, such as `optimizer.lr`.")]
    values: Annotated[list[Json], Meta(description="One per run, in their order; null where not recorded.")]


class AlignedRow(msgspec.Struct, kw_only=True, frozen=True):
    """The runs over the same steps: those after the step of the row before, up to this one's."""

    step: NonNegativeInt
    train: Annotated[
        list[Real | None], Meta(description="Median training loss over these steps, one per run; null where none.")
    ]
    held_out: Annotated[
        list[Real | None], Meta(description="Newest held-out loss over these steps, one per run; null where none.")
    ]


class UnreadRun(msgspec.Struct, kw_only=True, frozen=True):
    """A log of the folder that could not be read, and why."""

    file: str
    reason: str


class CompareReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Several runs side by side, as `gradience monitor A B --json` prints them."""

    schema: Literal["gradience.compare/v1"]
    runs: list[ComparedRun]
    differences: list[ConfigDifference] = []
    aligned: list[AlignedRow] = []
    unread: list[UnreadRun] = []
    notes: list[str] = []
