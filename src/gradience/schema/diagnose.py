"""Types of the report of ``diagnose``: one verdict, with its causes, from config, log and weights."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from gradience.schema import NonNegativeInt, Real, Severity, about
from gradience.schema.audit import AuditReport
from gradience.schema.document import Finding, NotRun, Report
from gradience.schema.reports import CheckReport, MonitorReport

DIAGNOSE_SCHEMA_ID: Final = "gradience.diagnose/v3"

SourceKind: TypeAlias = Literal["config", "log", "weights"]
PieceSource: TypeAlias = Literal["config", "log", "weights", "disk"]
Verdict: TypeAlias = Literal["no_fault_found", "worth_a_look", "needs_attention", "broken", "could_not_judge"]

VERDICT_LABELS: Final[dict[Verdict, str]] = {
    "no_fault_found": "no problems found",
    "worth_a_look": "worth a look",
    "needs_attention": "needs attention",
    "broken": "broken",
    "could_not_judge": "could not judge",
}
SOURCES: Final[tuple[SourceKind, ...]] = ("config", "log", "weights")


class DiagnosedSource(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One of the three sources: whether it was there, and what was read from it."""

    source: SourceKind
    state: Annotated[
        Literal["read", "absent", "unreadable"],
        about("`unreadable`: it exists but could not be read, so nothing was judged by it."),
    ]
    path: str | None = None
    holds: Annotated[str, about("What it contains, in a few words.")] = ""
    chosen: Annotated[str, about("Why this file was chosen, if there were several.")] = ""
    reason: Annotated[str, about("Why it is absent or unreadable.")] = ""
    damaged: Annotated[bool, about("Whether it is unreadable because its file ends too early.")] = False


class Piece(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The part of one source in a cause."""

    source: Annotated[PieceSource, about("Where it comes from; `disk`: the checkpoints that are on disk.")]
    id: Annotated[str, about("Id of the rule or detector; empty for a plain fact.")] = ""
    severity: Severity | None = None
    says: str


class Cause(Finding, kw_only=True, frozen=True, omit_defaults=True):
    """One thing to look at, with the evidence from each source. Each finding of a source is in exactly one cause."""

    joined: Annotated[bool, about("Whether it combines several findings or facts.")] = False
    pieces: list[Piece] = msgspec.field(default_factory=list)


class CauseAdvice(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The one piece of advice of a diagnosis, for its leading cause."""

    cause: Annotated[str, about("Id of the cause that it answers.")]
    text: str
    alternative: str | None = None


class Unjudged(NotRun, kw_only=True, frozen=True):
    """A check that could not run, and why."""

    source: Annotated[
        Literal["config", "log", "weights", "join"], about("The source it needs; `join`: several sources.")
    ]


class SourceCoverage(msgspec.Struct, kw_only=True, frozen=True):
    """How many rules, detectors and checks ran on one source; `join`: on several sources."""

    source: Literal["config", "log", "weights", "join"]
    judged: Annotated[NonNegativeInt, about("Those that ran.")]
    total: Annotated[NonNegativeInt, about("All there are, those that could not run included.")]


class Checkpoint(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A checkpoint folder that holds weights."""

    name: str
    step: NonNegativeInt
    loss: Annotated[Real, about("Held-out loss at this step, nats; null if not measured.")] | None = None
    tied: Annotated[
        bool, about("Whether its loss equals the best checkpoint's, within the noise of the evaluation.")
    ] = False
    of_run: (
        Annotated[bool, about("Whether its own history is that of the run's log; null if nothing shows it.")] | None
    ) = None
    why: Annotated[str, about("What shows whose it is, or why nothing does.")] = ""
    fault: Annotated[str, about("Why its weights cannot be used; empty if they can, or were not opened.")] = ""


class SpareCheckpoint(msgspec.Struct, kw_only=True, frozen=True):
    """A checkpoint that could go, because one that is kept is as good or better."""

    path: str
    bytes: Annotated[NonNegativeInt, about("Of its files.")]
    kept: Annotated[str, about("The best checkpoint, which is kept.")]
    within_noise: Annotated[bool, about("Whether it equals that one within the noise; else it is worse.")]


class BestCheckpoint(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The best checkpoint on disk: of this run by its own history, and with weights that are whole."""

    name: str
    step: NonNegativeInt
    loss: Annotated[Real, about("Its held-out loss, nats.")]
    split: Annotated[str, about("Split of the evaluations that were compared.")]
    by: Annotated[str, about("What decided: `loss`, or the name of a task metric.")] = "loss"
    value: Annotated[Real, about("Its value of that.")] = 0.0
    best_value: Annotated[Real, about("The best value of the run, whether or not a checkpoint was saved there.")] = 0.0
    best_step: Annotated[NonNegativeInt, about("Step of the best value.")] = 0
    noise: (
        Annotated[
            float,
            about("Noise of one evaluation relative to the others, in the unit of what decided; null if unknown."),
        ]
        | None
    )
    noise_from: Annotated[str, about("How the noise was estimated, or why it is unknown.")]
    n: Annotated[NonNegativeInt, about("Examples evaluated.")] | None = None
    standard_error: (
        Annotated[float, about("Standard error of the loss, nats, on other data of this kind and size; a heuristic.")]
        | None
    ) = None
    lowest_loss: Annotated[
        Real, about("Lowest held-out loss of the run, nats, whether or not a checkpoint was saved there.")
    ]
    lowest_step: Annotated[NonNegativeInt, about("Step of the lowest held-out loss.")]
    within_noise: (
        Annotated[bool, about("Whether its value equals the best within the noise; null if unknown.")] | None
    ) = None
    saved_as: Annotated[str, about("The diagnosed weights, if their file equals this checkpoint's; else empty.")] = ""


class DiagnoseReport(Report, kw_only=True, frozen=True):
    """One verdict from config, log and weights, as `gradience diagnose --json` prints it."""

    schema: Literal["gradience.diagnose/v3"]
    path: str
    verdict: Annotated[
        Verdict,
        about(
            "`broken`: a cause has severity error or critical. `needs_attention`: a cause has severity warning. "
            "`could_not_judge`: neither, and no source could be judged, an existing one could not be read, or there "
            "were neither a log nor weights that could be analysed. "
            "`worth_a_look`: what the run did is no fault by itself (its held-out loss rose while its metric gained, "
            "say), and somebody has to decide. "
            "`no_fault_found`: none of these in what could be judged; `sources`, `coverage` and `not_run` say what "
            "was not examined."
        ),
    ]
    headline: Annotated[str, about("The verdict in one line, with what was examined and what was not.")]
    complete: Annotated[
        bool, about("False (exit code 2) if no rule could be applied, or an existing source could not be read.")
    ]
    sources: list[DiagnosedSource]
    findings: Annotated[list[Cause], about("Most severe first; each of a source is in one of them.")] = []
    advice: Annotated[CauseAdvice, about("What to do next; null if nothing needs doing.")] | None = None
    coverage: list[SourceCoverage] = []
    not_run: Annotated[list[Unjudged], about("Every check that did not run, with the reason.")] = []
    checkpoints: list[Checkpoint] = []
    best_checkpoint: BestCheckpoint | None = None
    spare: Annotated[list[SpareCheckpoint], about("Checkpoints that could go; nothing is removed.")] = []
    check: CheckReport | None = None
    monitor: MonitorReport | None = None
    audit: AuditReport | None = None
    notes: Annotated[list[str], about("Choices that were made, and other observations.")] = []
