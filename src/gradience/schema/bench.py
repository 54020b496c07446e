"""What `gradience bench` prints as JSON: candidates, their scores beside the reference's, and what that decides."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema.document import Report
from gradience.schema.scalars import Fraction, NonNegativeInt, Real, about

BENCH_SCHEMA_ID: Final = "gradience.bench/v2"

Size: TypeAlias = Annotated[float, Meta(ge=0.0)]
Role: TypeAlias = Literal["reference", "anchor", "candidate"]
Outcome: TypeAlias = Literal["within", "over", "open", "not_finite", "reference", "anchor"]


class BenchMetric(msgspec.Struct, kw_only=True, frozen=True):
    """What is measured."""

    name: Annotated[str, about("`loss`, `accuracy`, `exact-match`, `lm-eval:TASK`, or the user's command.")]
    higher_is_better: bool
    unit: Annotated[
        Literal["example", "seed"],
        about("What is paired: the score of each example, or one score of each run with another seed."),
    ]


class BenchTask(msgspec.Struct, kw_only=True, frozen=True):
    """One set of held-out data and the adapter that candidates are compared with on it."""

    name: str
    data: Annotated[str, about("The file, as given; empty where the evaluator has its own data.")] = ""
    digest: Annotated[str, about("`sha256:...` of the file; empty without one.")] = ""
    reference: Annotated[str, about("The candidate's name that the others are compared with.")]
    n: Annotated[NonNegativeInt, about("Examples, or runs with different seeds.")]
    score: Annotated[Real, about("The reference's.")]
    margin: Annotated[Size, about("The tolerance in the metric's unit.")]
    judged: Annotated[bool, about("Whether the verdict rests on it; else it is only reported.")] = True
    has_contrast: Annotated[
        bool | None,
        about(
            "Whether the base without the update is worse by more than the tolerance, with 95 %: if not, "
            "these data cannot show what a smaller adapter loses. Null where the base was not evaluated."
        ),
    ] = None


class BenchResult(msgspec.Struct, kw_only=True, frozen=True):
    """One candidate on one task. `harm` is how much worse than the reference it is, in the metric's unit."""

    task: str
    score: Annotated[Real, about("The mean; for `loss` in nats per prediction.")]
    harm: Real | None = None
    low: Annotated[Real | None, about("Lower end of harm: holds with 95 % for all that were compared at once.")] = None
    worst: Annotated[Real | None, about("Upper end of harm, likewise: the worst plausible loss.")] = None
    outcome: Annotated[
        Outcome,
        about(
            "`within`: worst <= margin. `over`: low > margin. `open`: neither. `not_finite`: it has no "
            "score. A reference or an anchor is not judged."
        ),
    ]
    needed: Annotated[
        NonNegativeInt | None,
        about(
            "Examples with which it would be `within` in 80 % of trials if its harm is as it looks; null "
            "where it is decided, or no number would do."
        ),
    ] = None
    kl: Annotated[Real | None, about("KL(reference, candidate) in nats per prediction; null where not measured.")] = (
        None
    )
    flips: Annotated[Fraction | None, about("Share of predictions whose most probable class is another.")] = None


class BenchCandidate(msgspec.Struct, kw_only=True, frozen=True):
    """An adapter that was evaluated."""

    name: Annotated[str, about("As asked for: `full`, `base`, `svd:8`, ...")]
    role: Role
    made: Annotated[str, about("How it was made, in words.")] = ""
    folder: Annotated[str, about("Where it is.")]
    params: Annotated[NonNegativeInt, about("Parameters of its factors; 0 for the base.")]
    share: Annotated[Size | None, about("Of the adapter's parameters; null where it has none.")] = None
    outcome: Annotated[Outcome, about("The worst of its outcomes over the judged tasks.")]
    results: list[BenchResult] = []


class BenchVerdict(msgspec.Struct, kw_only=True, frozen=True):
    """What the trial decides."""

    state: Annotated[
        Literal["holds", "none", "not_decided", "no_contrast"],
        about(
            "`holds`: the candidate named is the smallest whose worst plausible loss is within the "
            "tolerance. `none`: all were shown to be over it. `no_contrast`: neither is the base, so nothing follows."
        ),
    ]
    candidate: str | None = None
    n: NonNegativeInt
    needed: Annotated[NonNegativeInt | None, about("The least that a candidate left open needs.")] = None
    says: Annotated[str, about("In one sentence.")]


class BenchReport(Report, kw_only=True, frozen=True):
    """Candidates beside an adapter on held-out data: paired differences, their bounds, and a verdict."""

    schema: Literal["gradience.bench/v2"] = BENCH_SCHEMA_ID
    kind: Literal["resize", "merge", "mitigate"]
    adapters: Annotated[list[str], about("As given.")]
    base: Annotated[str, about("The base model, as given; empty where the evaluator has its own.")] = ""
    out: Annotated[str, about("The folder with candidates and evaluations.")]
    metric: BenchMetric
    tolerance: Annotated[str, about("As given: `1%` of the reference's score, or `0.01` in its unit.")]
    confidence: Fraction
    seed: NonNegativeInt
    tasks: list[BenchTask] = []
    candidates: Annotated[list[BenchCandidate], about("The reference first, then by size.")] = []
    verdict: BenchVerdict
    evaluated: Annotated[NonNegativeInt, about("Evaluations that were run.")] = 0
    reused: Annotated[NonNegativeInt, about("Evaluations that were found in the folder.")] = 0
    notes: list[str] = []
