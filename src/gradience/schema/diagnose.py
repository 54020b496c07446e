"""What ``diagnose`` prints as JSON: config, log and weights as one verdict with its causes."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from gradience.schema import NonNegativeInt, Real, Severity, about
from gradience.schema.audit import AuditReport
from gradience.schema.document import Finding, NotRun, Report
from gradience.schema.reports import CheckReport, MonitorReport

DIAGNOSE_SCHEMA_ID: Final = "gradience.diagnose/v2"

Source: TypeAlias = Literal["config", "log", "weights"]
PieceSource: TypeAlias = Literal["config", "log", "weights", "disk"]
Verdict: TypeAlias = Literal["no_fault_found", "needs_attention", "broken", "could_not_judge"]

VERDICT_LABELS: Final[dict[Verdict, str]] = {
    "no_fault_found": "no problems found",
    "needs_attention": "needs attention",
    "broken": "broken",
    "could_not_judge": "could not judge",
}
SOURCES: Final[tuple[Source, ...]] = ("config", "log", "weights")


class DiagnosedSource(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One of the three sources: whether it was there, and what was read of it."""

    source: Source
    state: Annotated[
        Literal["read", "absent", "unreadable"],
        about("`unreadable`: it is there and could not be read, so nothing was judged by it."),
    ]
    path: str | None = None
    holds: Annotated[str, about("What was read, in a few words.")] = ""
    chosen: Annotated[str, about("Why this one, where several could be meant.")] = ""
    reason: Annotated[str, about("Why it is absent or unreadable.")] = ""


class Piece(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One source's part in a cause."""

    source: Annotated[PieceSource, about("`disk`: which checkpoints lie there.")]
    id: Annotated[str, about("The rule or detector behind it; empty for a plain fact.")] = ""
    severity: Severity | None = None
    says: str


class Cause(Finding, kw_only=True, frozen=True, omit_defaults=True):
    """One thing to look at, with the evidence of each source. Every finding of a source is in exactly one cause."""

    joined: Annotated[bool, about("Whether it joins several findings or facts.")] = False
    pieces: list[Piece] = msgspec.field(default_factory=list)


class Unjudged(NotRun, kw_only=True, frozen=True):
    """A check that could not run, and why."""

    source: Annotated[Literal["config", "log", "weights", "join"], about("What it looks at; `join`: several sources.")]


class SourceCoverage(msgspec.Struct, kw_only=True, frozen=True):
    """How many rules, detectors and checks of one kind ran."""

    source: Literal["config", "log", "weights", "join"]
    judged: NonNegativeInt
    total: NonNegativeInt


class Checkpoint(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A checkpoint folder that holds an adapter."""

    name: str
    step: NonNegativeInt
    loss: Annotated[Real, about("Held-out loss measured at this step, nats.")] | None = None
    tied: Annotated[bool, about("Its loss is within the noise of the evaluation of the best checkpoint's.")] = False


class BestCheckpoint(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The checkpoint on disk with the lowest held-out loss."""

    name: str
    step: NonNegativeInt
    loss: Real
    split: Annotated[str, about("The evaluations that were compared.")]
    noise: Annotated[float, about("Noise of one evaluation beside others, nats; null where unknown.")] | None
    noise_from: Annotated[str, about("How the noise was come by, or why it is unknown.")]
    n: Annotated[NonNegativeInt, about("Examples evaluated.")] | None = None
    standard_error: (
        Annotated[float, about("Of the loss on other data of this kind and size, nats; a heuristic.")] | None
    ) = None
    lowest_loss: Annotated[Real, about("Lowest held-out loss of the run, saved or not.")]
    lowest_step: NonNegativeInt
    within_noise: (
        Annotated[bool, about("Whether it is as good as the lowest, within the noise; null if unknown.")] | None
    ) = None
    saved_as: Annotated[str, about("The diagnosed weights, if their file equals this checkpoint's.")] = ""


class DiagnoseReport(Report, kw_only=True, frozen=True):
    """One verdict from config, log and weights, as `gradience diagnose --json` prints it."""

    schema: Literal["gradience.diagnose/v2"]
    path: str
    verdict: Annotated[
        Verdict,
        about(
            "`broken`: a cause of severity error or critical. `needs_attention`: a warning. `could_not_judge`: nothing "
            "of the two, and no source could be judged, or one that is there could not be read. `no_fault_found`: none "
            "of these, in what could be judged; see `sources`, `coverage` and `not_run` for what was not looked at."
        ),
    ]
    headline: Annotated[str, about("The verdict in one line, with what was seen and what was not.")]
    complete: Annotated[
        bool, about("False where no source could be judged, or one that is there could not be read: exit 2.")
    ]
    sources: list[DiagnosedSource]
    causes: Annotated[list[Cause], about("Most severe first.")] = []
    coverage: list[SourceCoverage] = []
    not_run: Annotated[list[Unjudged], about("Every check that did not run, with the reason.")] = []
    checkpoints: list[Checkpoint] = []
    best_checkpoint: BestCheckpoint | None = None
    check: CheckReport | None = None
    monitor: MonitorReport | None = None
    audit: AuditReport | None = None
    notes: Annotated[list[str], about("Choices made, and what was found besides.")] = []
