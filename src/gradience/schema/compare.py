"""What ``monitor`` of several runs, ``compare`` and ``bench`` print as JSON: runs, adapters, candidates together."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema import Fraction, Json, NonNegativeInt, Real, about
from gradience.schema.document import FindingRef, Report

COMPARE_SCHEMA_ID: Final = "gradience.compare/v2"


class ComparedRun(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One run, as a column of the comparison."""

    name: Annotated[str, about("Short, and its own among the runs compared.")]
    file: str
    run_id: str | None = None
    story: Annotated[str, about("The run in one line.")] = ""
    status: Annotated[str, about("Status of run_end, or `no_run_end`.")]
    rows: NonNegativeInt = 0
    last_step: NonNegativeInt | None = None
    max_steps: NonNegativeInt | None = None
    first_loss: Real | None = None
    last_loss: Real | None = None
    min_loss: Real | None = None
    min_loss_step: NonNegativeInt | None = None
    split: Annotated[str, about("The held-out split that the next four speak of.")] | None = None
    eval_loss: Annotated[Real, about("Newest held-out loss.")] | None = None
    best_eval_loss: Real | None = None
    best_eval_step: NonNegativeInt | None = None
    accuracy: Annotated[Real, about("Newest held-out accuracy, 0 to 1.")] | None = None
    gap: Annotated[Real, about("Held-out over train perplexity.")] | None = None
    signals: Annotated[
        dict[str, float], about("Rewards, margins, KL, ...: medians of the last fifth of their rows.")
    ] = {}
    lr: Annotated[Real, about("Peak learning rate: the highest logged, else the configured one.")] | None = None
    r: Annotated[int, about("Rank where no pattern matches.")] | None = None
    alpha: Real | None = None
    utilization_mean: float | None = None
    duration_s: float | None = None
    findings: list[FindingRef] = []


class ConfigDifference(msgspec.Struct, kw_only=True, frozen=True):
    """One value of the configuration that is not the same in all runs."""

    key: Annotated[str, about("Place in the configuration, such as `optimizer.lr`.")]
    values: Annotated[list[Json], about("One per run, in their order; null where not recorded.")]


class AlignedRow(msgspec.Struct, kw_only=True, frozen=True):
    """The runs over the same steps: those after the step of the row before, up to this one's."""

    step: NonNegativeInt
    train: Annotated[list[Real | None], about("Median training loss over these steps, one per run; null where none.")]
    held_out: Annotated[
        list[Real | None], about("Newest held-out loss over these steps, one per run; null where none.")
    ]


class UnreadRun(msgspec.Struct, kw_only=True, frozen=True):
    """A log of the folder that could not be read, and why."""

    file: str
    reason: str


class CompareReport(Report, kw_only=True, frozen=True):
    """Several runs side by side, as `gradience monitor A B --json` prints them."""

    schema: Literal["gradience.compare/v2"]
    runs: list[ComparedRun]
    differences: list[ConfigDifference] = []
    aligned: list[AlignedRow] = []
    unread: list[UnreadRun] = []
    notes: list[str] = []


COMPARE_ADAPTERS_SCHEMA_ID: Final = "gradience.compare-adapters/v2"

Cosine = Annotated[float, Meta(ge=-1.0, le=1.0)]


class ComparedAdapter(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One of the adapters."""

    name: Annotated[str, about("Short, and its own among the adapters of this report.")]
    path: str
    format: Annotated[str, about("`peft`, `mlx`, `kohya` or `diffusers`.")]
    peft_type: str | None = None
    base_model: str | None = None
    step: Annotated[NonNegativeInt, about("Of a checkpoint, from its folder's name.")] | None = None
    modules: NonNegativeInt
    rank: Annotated[list[NonNegativeInt], about("[least, most] over its modules, as on disk.")]
    scaling: Annotated[list[float], about("[least, most] factor of B A over its modules.")]
    frobenius_norm: Annotated[
        float | None, about("Of all its updates: sqrt of the sum of squares; null where one is not finite.")
    ] = None


class OnlyIn(msgspec.Struct, kw_only=True, frozen=True):
    """A module that not all of the adapters have."""

    module: str
    adapters: Annotated[list[str], about("Names of those that have it.")]


class Overlap(msgspec.Struct, kw_only=True, frozen=True):
    """phi(i, j) = norm(U_i^T V_j)_F^2 / min(i, j), of leading singular vectors (arXiv 2106.09685, equation 4)."""

    i: Annotated[NonNegativeInt, about("Leading directions of the first adapter.")]
    j: Annotated[NonNegativeInt, about("Leading directions of the second.")]
    phi: Annotated[Fraction, about("1: one span holds the other. 0: orthogonal.")]
    chance: Annotated[float, about("Mean for independent random subspaces: max(i, j) / d.")]
    chance_sd: Annotated[float, about("Standard deviation for such subspaces.")]


class SideOverlap(msgspec.Struct, kw_only=True, frozen=True):
    """Subspaces on one side of a module: `phi` at i = j = 1, 2, 4, ... and at both ranks; angles of the whole spans."""

    overlaps: list[Overlap]
    angles: Annotated[
        list[float], about("Principal angles between the column (or row) spaces, degrees, smallest first; 16.")
    ]


class ModulePair(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One module in two adapters."""

    name: str
    module_type: str
    layer: NonNegativeInt | None = None
    state: Annotated[Literal["ok", "zero", "non_finite"], about("`zero`: the update of one, or of both, is zero.")] = (
        "ok"
    )
    shape: list[NonNegativeInt]
    ranks: Annotated[list[NonNegativeInt], about("On disk, of the first and of the second.")]
    frobenius_norms: Annotated[list[float] | None, about("Of s B A, first and second.")] = None
    norm_ratio: Annotated[float | None, about("Second over first; null where the first is zero.")] = None
    cosine: Annotated[Cosine | None, about("<dW1, dW2>_F / (norm dW1 norm dW2); null where one is zero.")] = None
    relative_change: Annotated[float | None, about("norm(dW2 - dW1) / norm(dW1), Frobenius.")] = None
    output_side: Annotated[SideOverlap | None, about("Left singular vectors: the column spaces.")] = None
    input_side: Annotated[SideOverlap | None, about("Right singular vectors: the row spaces.")] = None


class LayerShare(msgspec.Struct, kw_only=True, frozen=True):
    """How much of each adapter's squared Frobenius norm lies in a layer."""

    layer: Annotated[NonNegativeInt | None, about("Null: modules outside any layer.")]
    first: Fraction
    second: Fraction


class AdapterPair(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Two of the adapters, over the modules that both have."""

    first: str
    second: str
    compared: Annotated[NonNegativeInt, about("Modules of one name and shape, finite in both.")]
    cosine: Annotated[
        Cosine | None, about("Of all updates as one vector; a module that one lacks counts as zero there.")
    ] = None
    norm_ratio: Annotated[float | None, about("Of all updates: second over first.")] = None
    relative_change: Annotated[
        float | None, about("norm(second - first) / norm(first), of all updates as one vector.")
    ] = None
    energy_moved: Annotated[
        Fraction | None, about("Half the sum over layers of the change in their share of the squared norm.")
    ] = None
    output_side: Annotated[list[Overlap], about("Mean over modules at i = j = 1, 2, 4, ...")] = []
    input_side: Annotated[list[Overlap], about("The same for the right singular vectors.")] = []
    layers: list[LayerShare] = []
    modules: list[ModulePair] = []


class CheckpointPoint(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One checkpoint of a series; means are over modules with a finite update that is not zero."""

    name: str
    step: NonNegativeInt | None = None
    frobenius_norm: float | None = None
    cosine_to_final: Cosine | None = None
    cosine_to_previous: Cosine | None = None
    relative_change: Annotated[float | None, about("From the previous: norm(change) / norm(previous).")] = None
    stable_rank_mean: float | None = None
    effective_rank_mean: float | None = None
    energy_rank_90_mean: Annotated[float | None, about("Least k that holds 90 % of the energy.")] = None


class CheckpointSeries(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The adapter as it was trained."""

    points: list[CheckpointPoint]
    settled: Annotated[
        str | None,
        about(
            "First checkpoint, before the last, from which every cosine to the final update is at least "
            "the threshold; null where none is."
        ),
    ] = None
    settled_step: NonNegativeInt | None = None
    threshold: Annotated[Cosine, about("A heuristic: .99, an angle of 8 degrees.")]
    rank_growth: Annotated[
        float | None, about("Mean effective rank of the last checkpoint over that of the first.")
    ] = None


class CompareAdaptersReport(Report, kw_only=True, frozen=True):
    """Adapters side by side, as `gradience compare A B --json` prints them."""

    schema: Literal["gradience.compare-adapters/v2"]
    adapters: list[ComparedAdapter]
    differences: Annotated[list[ConfigDifference], about("One value per adapter, in their order.")] = []
    cosines: Annotated[
        list[list[Cosine | None]], about("Of the updates as a whole, every adapter with every other.")
    ] = []
    pairs: Annotated[
        list[AdapterPair], about("The first with each other one; of a series each with the one before it.")
    ] = []
    series: CheckpointSeries | None = None
    only_in: Annotated[list[OnlyIn], about("Modules that not all adapters have.")] = []
    different_shapes: Annotated[list[str], about("Modules whose shapes differ: not compared.")] = []
    notes: list[str] = []


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
