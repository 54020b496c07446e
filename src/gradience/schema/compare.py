"""Types of the reports that compare: adapters by ``compare``, candidates by ``bench``."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema import Fraction, Json, NonNegativeInt, Real, about
from gradience.schema.document import Report


class ConfigDifference(msgspec.Struct, kw_only=True, frozen=True):
    """One value of the configuration that differs between the adapters."""

    key: Annotated[str, about("Place in the configuration, such as `optimizer.lr`.")]
    values: Annotated[list[Json], about("One value per adapter, in their order; null if not recorded.")]


COMPARE_ADAPTERS_SCHEMA_ID: Final = "gradience.compare-adapters/v2"

Cosine = Annotated[float, Meta(ge=-1.0, le=1.0)]


class ComparedAdapter(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One adapter of a comparison or a merge."""

    name: Annotated[str, about("Short name, unique among the adapters of this report.")]
    path: str
    format: Annotated[str, about("`peft`, `mlx`, `kohya` or `diffusers`.")]
    peft_type: str | None = None
    base_model: str | None = None
    step: Annotated[NonNegativeInt, about("Step of a checkpoint, by its folder's name.")] | None = None
    modules: Annotated[NonNegativeInt, about("Modules of the adapter.")]
    rank: Annotated[list[NonNegativeInt], about("[least, most] rank of its modules on disk.")]
    scaling: Annotated[list[float], about("[least, most] scaling s of its modules, in s B A.")]
    frobenius_norm: Annotated[
        float | None,
        about("Frobenius norm of the whole update: root of the sum of squares. Null if a module is not finite."),
    ] = None


class OnlyIn(msgspec.Struct, kw_only=True, frozen=True):
    """A module that some of the adapters lack."""

    module: str
    adapters: Annotated[list[str], about("Names of the adapters that have it.")]


class Overlap(msgspec.Struct, kw_only=True, frozen=True):
    """Overlap of two spans: phi(i, j) = norm(U_i^T V_j)_F^2 / min(i, j).

    U_i and V_j are leading singular vectors (arXiv 2106.09685, equation 4).
    """

    i: Annotated[NonNegativeInt, about("Number i of leading directions of the first adapter.")]
    j: Annotated[NonNegativeInt, about("Number j of leading directions of the second adapter.")]
    phi: Annotated[Fraction, about("1: one span contains the other. 0: they are orthogonal.")]
    chance: Annotated[float, about("Mean of phi for independent random subspaces: max(i, j) / d.")]
    chance_sd: Annotated[float, about("Standard deviation of phi for independent random subspaces.")]


class SideOverlap(msgspec.Struct, kw_only=True, frozen=True):
    """The subspaces on one side of a module: overlaps of leading directions, and angles of the whole spans."""

    overlaps: Annotated[list[Overlap], about("At i = j = 1, 2, 4, ..., and with i and j the two ranks.")]
    angles: Annotated[
        list[float], about("Principal angles in degrees between the two whole spans, smallest first, at most 16.")
    ]


class ModulePair(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One module in two adapters, with the updates dW1 and dW2."""

    name: str
    module_type: str
    layer: NonNegativeInt | None = None
    state: Annotated[
        Literal["ok", "zero", "non_finite"], about("`zero`: one of the two updates, or both, is zero.")
    ] = "ok"
    shape: list[NonNegativeInt]
    ranks: Annotated[list[NonNegativeInt], about("Ranks on disk in the first and the second adapter.")]
    frobenius_norms: Annotated[
        list[float] | None, about("Frobenius norms of dW1 and dW2; null if one is not finite.")
    ] = None
    norm_ratio: Annotated[float | None, about("norm(dW2) / norm(dW1), Frobenius; null if dW1 is zero.")] = None
    cosine: Annotated[Cosine | None, about("<dW1, dW2>_F / (norm(dW1) norm(dW2)); null if one is zero.")] = None
    relative_change: Annotated[float | None, about("norm(dW2 - dW1) / norm(dW1), Frobenius; null if dW1 is zero.")] = (
        None
    )
    output_side: Annotated[SideOverlap | None, about("Left singular vectors: the column spaces.")] = None
    input_side: Annotated[SideOverlap | None, about("Right singular vectors: the row spaces.")] = None


class LayerShare(msgspec.Struct, kw_only=True, frozen=True):
    """Share of each adapter's squared Frobenius norm that lies in one layer."""

    layer: Annotated[NonNegativeInt | None, about("Index of the layer; null for the modules outside any layer.")]
    first: Fraction
    second: Fraction


class AdapterPair(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Two of the adapters as a whole, and over the modules that both have."""

    first: str
    second: str
    compared: Annotated[NonNegativeInt, about("Modules that both have in one shape, and that are finite in both.")]
    cosine: Annotated[
        Cosine | None,
        about(
            "Cosine of the two adapters, each as one vector of all its updates. A module that one of them lacks "
            "counts as zero there."
        ),
    ] = None
    norm_ratio: Annotated[float | None, about("Frobenius norm of the whole second adapter over the first.")] = None
    relative_change: Annotated[
        float | None, about("norm(second - first) / norm(first), each adapter as one vector of all its updates.")
    ] = None
    energy_moved: Annotated[
        Fraction | None,
        about(
            "Share of the squared norm that lies in other layers: half the sum of the absolute changes of the "
            "layers' shares."
        ),
    ] = None
    output_side: Annotated[
        list[Overlap], about("Overlap of left singular vectors at i = j = 1, 2, 4, ..., averaged over modules.")
    ] = []
    input_side: Annotated[list[Overlap], about("Overlap of right singular vectors, averaged likewise.")] = []
    layers: list[LayerShare] = []
    modules: list[ModulePair] = []


class CheckpointPoint(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One checkpoint of a series. Means run over the modules with a finite, non-zero update."""

    name: str
    step: Annotated[NonNegativeInt, about("Optimizer step, by its folder's name.")] | None = None
    frobenius_norm: Annotated[float, about("Frobenius norm of the whole update.")] | None = None
    cosine_to_final: Annotated[Cosine, about("Cosine with the last checkpoint's update.")] | None = None
    cosine_to_previous: Annotated[Cosine, about("Cosine with the previous checkpoint's update.")] | None = None
    relative_change: Annotated[float | None, about("norm(change since the previous checkpoint) / norm(previous).")] = (
        None
    )
    stable_rank_mean: float | None = None
    effective_rank_mean: float | None = None
    energy_rank_90_mean: Annotated[float | None, about("Mean of the least k that holds 90 % of a module's energy.")] = (
        None
    )


class CheckpointSeries(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The adapter at each checkpoint of its training."""

    points: list[CheckpointPoint]
    settled: Annotated[
        str | None,
        about(
            "First checkpoint, before the last, from which on every cosine to the final update is at least "
            "`threshold`. Null if there is none."
        ),
    ] = None
    settled_step: Annotated[NonNegativeInt, about("Step of `settled`.")] | None = None
    threshold: Annotated[Cosine, about("Cosine that counts as settled, a heuristic: .99, an angle of 8 degrees.")]
    rank_growth: Annotated[
        float | None, about("Mean effective rank of the last checkpoint over that of the first.")
    ] = None


class CompareAdaptersReport(Report, kw_only=True, frozen=True):
    """Adapters side by side, as `gradience compare A B --json` prints them."""

    schema: Literal["gradience.compare-adapters/v2"]
    adapters: list[ComparedAdapter]
    differences: Annotated[list[ConfigDifference], about("Settings that differ, one value per adapter.")] = []
    cosines: Annotated[
        list[list[Cosine | None]],
        about("Cosines between whole adapters, each with every other: row and column in the order of `adapters`."),
    ] = []
    pairs: Annotated[
        list[AdapterPair],
        about("The first adapter with each other one; in a series, each checkpoint with the previous one."),
    ] = []
    series: CheckpointSeries | None = None
    only_in: Annotated[list[OnlyIn], about("Modules that some adapters lack.")] = []
    different_shapes: Annotated[list[str], about("Modules that were not compared because their shapes differ.")] = []
    notes: list[str] = []


BENCH_SCHEMA_ID: Final = "gradience.bench/v3"

Size: TypeAlias = Annotated[float, Meta(ge=0.0)]
Role: TypeAlias = Literal["reference", "anchor", "candidate"]
Outcome: TypeAlias = Literal["within", "over", "open", "not_finite", "reference", "anchor"]


class BenchMetric(msgspec.Struct, kw_only=True, frozen=True):
    """The score that a bench measures."""

    name: Annotated[str, about("`loss`, `accuracy`, `exact-match`, or the user's command.")]
    higher_is_better: bool
    mean_over: Annotated[
        Literal["examples", "tokens"],
        about("What the mean is over: examples that count once each, or by their predicted tokens."),
    ] = "examples"


class BenchTask(msgspec.Struct, kw_only=True, frozen=True):
    """One held-out data set, and the reference adapter that the candidates are compared with on it."""

    name: str
    data: Annotated[str, about("The file, as given; empty if the evaluator has its own data.")] = ""
    digest: Annotated[str, about("`sha256:...` of the file; empty without a file.")] = ""
    reference: Annotated[str, about("Name of the candidate that the others are compared with.")]
    n: Annotated[NonNegativeInt, about("Number of examples.")]
    score: Annotated[Real, about("Score of the reference.")]
    missed: Annotated[Fraction, about("Chance that a failure in 1 % of such examples is not among these.")]
    seen_from: Annotated[Fraction, about("Share of examples with a failure from which one is among these with 95 %.")]
    margin: Annotated[Size, about("The tolerance, in the metric's unit.")]
    has_contrast: Annotated[
        bool | None,
        about(
            "Whether the base without the update is worse by more than the tolerance, with 95 % confidence. If not, "
            "these data cannot show what a smaller adapter loses. Null if the base was not evaluated."
        ),
    ] = None


class BenchResult(msgspec.Struct, kw_only=True, frozen=True):
    """One candidate on one task. `harm` says how much worse than the reference it is, in the metric's unit."""

    task: str
    score: Annotated[Real, about("Mean score; for `loss` in nats per prediction.")]
    harm: Annotated[Real, about("Mean of the paired differences to the reference; above 0 it is worse.")] | None = None
    low: Annotated[
        Real | None, about("Lower bound of harm, with 95 % confidence for all compared candidates at once.")
    ] = None
    worst: Annotated[Real | None, about("Upper bound of harm, with the same confidence: the worst plausible loss.")] = (
        None
    )
    diluted: Annotated[
        Real | None,
        about(
            "For a merge: harm of the reference alone at its weight in the merge. The rest of `harm` is by the other "
            "adapters, and by what the method drops. Null for all else."
        ),
    ] = None
    outcome: Annotated[
        Outcome,
        about(
            "`within`: worst <= margin. `over`: low > margin. `open`: neither. `not_finite`: it has no score. A "
            "reference or an anchor is not judged."
        ),
    ]
    needed: Annotated[
        NonNegativeInt | None,
        about(
            "Examples with which it would be `within` in 80 % of fresh trials, if its true harm is the measured one, "
            "with the error of this sample. Null if it is decided, or if no number is known to be enough."
        ),
    ] = None
    needed_from: Annotated[NonNegativeInt | None, about("Fewer examples than this would hardly do.")] = None
    kl: Annotated[Real | None, about("KL(reference, candidate) in nats per prediction; null if not measured.")] = None
    flips: Annotated[
        Fraction | None,
        about("Share of predictions whose most probable class differs from the reference's; null if not measured."),
    ] = None


class BenchCandidate(msgspec.Struct, kw_only=True, frozen=True):
    """An adapter that was evaluated, or the base."""

    name: Annotated[str, about("Name as asked for: `full`, `base`, `svd:8`, ...")]
    role: Role
    made: Annotated[str, about("How it was made, in words.")] = ""
    folder: Annotated[str, about("Folder that holds it.")]
    params: Annotated[NonNegativeInt, about("Parameters of its factors; 0 for the base.")]
    share: Annotated[Size | None, about("`params` over the parameters of the adapter; null if those are 0.")] = None
    outcome: Annotated[Outcome, about("Worst of its outcomes over the tasks.")]
    results: list[BenchResult] = []


class BenchVerdict(msgspec.Struct, kw_only=True, frozen=True):
    """The result of the bench over all candidates and tasks."""

    state: Annotated[
        Literal["holds", "none", "not_decided", "no_contrast"],
        about(
            "`holds`: `candidate` is the smallest one whose worst plausible loss is within the tolerance. `none`: "
            "every candidate was shown to lose more. `not_decided`: none holds and one is `open`. `no_contrast`: the "
            "base itself was not shown to lose more, so nothing follows."
        ),
    ]
    candidate: Annotated[str, about("Name of the candidate that holds; null if none does.")] | None = None
    n: Annotated[NonNegativeInt, about("Smallest n of the tasks.")]
    needed: Annotated[
        NonNegativeInt | None, about("Smallest n that would decide an open candidate; null if unknown.")
    ] = None
    says: Annotated[str, about("The verdict in one sentence.")]


class BenchReport(Report, kw_only=True, frozen=True):
    """Candidates compared with an adapter on held-out data: paired differences, their bounds, and a verdict."""

    schema: Literal["gradience.bench/v3"] = BENCH_SCHEMA_ID
    kind: Annotated[Literal["resize", "merge"], about("The verb whose results are measured.")]
    adapters: Annotated[list[str], about("The adapters, as given.")]
    base: Annotated[str, about("The base model, as given; empty if the evaluator has its own.")] = ""
    out: Annotated[str, about("The folder of the candidates and evaluations.")]
    metric: BenchMetric
    tolerance: Annotated[str, about("As given: `1%` of the reference's score, or `0.01` in its unit.")]
    confidence: Annotated[Fraction, about("Confidence of the bounds, for all candidates at once.")]
    cap: Annotated[Size | None, about("The most that one example counts, in the metric's unit; null without one.")] = (
        None
    )
    seed: NonNegativeInt
    tasks: list[BenchTask] = []
    candidates: Annotated[list[BenchCandidate], about("The reference first, then by size.")] = []
    verdict: BenchVerdict
    evaluated: Annotated[NonNegativeInt, about("Evaluations that were run in this call.")] = 0
    reused: Annotated[NonNegativeInt, about("Evaluations that were found in `out`.")] = 0
    notes: list[str] = []
