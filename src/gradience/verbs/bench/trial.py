"""A trial: the built-in evaluation of a model, and the test whether a candidate's mean harm is within a tolerance.

The evaluation gives loss, accuracy and exact match of a causal model or a classifier, and how outputs differ. Every
example is scored in one forward pass. Exact match under greedy decoding is found without decoding: the completion is
reproduced if and only if each of its tokens is the most probable one after the tokens before it.

The statistics are of paired differences: each example is scored with the adapter and with the candidate. Their mean is
bounded by the Bayesian bootstrap of the sample plus one example of the largest possible harm (Gaffke's bound; Phan,
Thomas and Learned-Miller, ICML 2021, arXiv 2106.03163). For answers that are only right or wrong, this is the
Clopper-Pearson limit: 100 answers without a flip show at most 3 % harm, where an ordinary bootstrap would say 0.
A loss has no largest harm. There the harm of an example is capped, and the mean is bounded by bets (`betting`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np

from gradience.adapters.open import open_adapter
from gradience.errors import ConfigError, GradienceError
from gradience.models import FIRST, LoadedModel, active, drop_adapter, load_adapter, load_model
from gradience.models.inputs import Inputs, read_inputs
from gradience.schema import real
from gradience.spectral.grams import Floats
from gradience.verbs.bench.betting import needed_examples, upper_bound
from gradience.verbs.bench.store import Evaluation

if TYPE_CHECKING:
    from gradience.models.outputs import InputScores


BuiltIn: TypeAlias = Literal["loss", "accuracy", "exact-match"]

_OTHER: Final = "candidate"  # the name in PEFT of the adapter beside the reference
_ALL: Final = 1 << 40  # inputs
_CUT: Final = 1024  # tokens of an example, where no limit was given

CONFIDENCE: Final = 0.95
DRAWS: Final = 4000
POWER: Final = 0.8
"""The statistical power that `needed` plans for: the chance that a candidate passes if its harm is as observed."""
REACH: Final = 2.0
"""If the harm has no known bound, the added example is this many times as far from the mean as the worst one seen. This
is a heuristic: at 1, lognormal harms (sigma 1.5, n = 200) passed falsely in 8 % of simulated trials, at 2 in 2 %."""
CAP: Final = 2.0
"""The most nats that one example counts, as harm or as gain: its loss is then 7 times less probable per token."""
PILOTS: Final = 200  # samples drawn again from the one at hand
RANGE: Final = (0.1, 0.9)  # quantiles over them
_CELLS: Final = 4_000_000  # random weights that are held at a time
_MOST: Final = 1e9  # examples; a trial that needs more is not worth naming


def default_metric(adapter: Path) -> BuiltIn:
    """Return `accuracy` if the adapter's config says that the model is a classifier, else `loss`."""
    _, opened = open_adapter(adapter)
    return "accuracy" if opened.config.task_type in {"SEQ_CLS", "TOKEN_CLS"} else "loss"


class ModelEvaluator:
    """Scores adapters on one file of rows, and compares them with a reference. The model is loaded when needed."""

    def __init__(self, metric: BuiltIn, *, base: str, data: Path, longest: int | None, of: dict[str, Any]) -> None:
        self.name: str = metric
        self.higher_is_better = metric != "loss"
        self.of = {"built_in": metric, "longest": longest, **of}
        self._metric = metric
        self._base = base
        self._data = data
        self._longest = longest
        self._held: _LoadedReference | None = None

    def evaluate(self, adapter: Path, reference: Path | None) -> Evaluation:
        """The scores of an adapter, and the KL divergence and flips from the reference, if there is one.

        Raises:
            GradienceError: the base does not fit, the data cannot be read or have no labels, or torch is missing.
        """
        first = adapter if reference is None else reference
        if self._held is None or self._held.reference != first:
            self._held = None  # freed first, because two models may not fit in memory
            self._held = _LoadedReference(first, self._base, self._data, self._longest or _CUT)
        rows = self._held.scored(None if reference is None else adapter)
        return self._evaluation(rows, compared=reference is not None)

    def _evaluation(self, rows: Sequence[InputScores], *, compared: bool) -> Evaluation:
        from gradience.models.outputs import divergence  # imports torch, which is loaded by now

        known = sorted((row for row in rows if row.known), key=lambda row: row.place)
        if self._metric == "exact-match":
            scores, weights = [float(row.hits == row.known) for row in known], [1.0] * len(known)
        else:
            sums = [row.loss if self._metric == "loss" else float(row.hits) for row in known]
            scores = [value / row.known for value, row in zip(sums, known, strict=True)]
            weights = [1.0 if self._longest is None else float(row.known) for row in known]
        apart = divergence(rows) if compared else None
        return Evaluation(
            scores=[real(score) for score in scores],
            weights=weights,
            kl=None if apart is None else real(apart.kl),
            flips=None if apart is None else apart.flips,
            notes=self._held.notes if self._held is not None else [],
        )


class _LoadedReference:
    """A loaded model with the reference adapter, and the data as tokens."""

    def __init__(self, reference: Path, base: str, data: Path, longest: int) -> None:
        self.reference = reference
        self._loaded = load_model(base, reference)
        read = read_inputs(data, self._loaded, most=_ALL, longest=longest)
        inputs = read._replace(examples=list(dict.fromkeys(read.examples)))  # a repeated example adds no information
        _refuse_unlabelled(data, inputs, self._loaded)
        self.notes = _notes(data, inputs)
        from gradience.models.outputs import HeldOut  # imports torch, loaded by now

        self._held_out = HeldOut(self._loaded, inputs.examples)

    def scored(self, adapter: Path | None) -> list[InputScores]:
        """The scores of an adapter, compared with the reference; None scores the reference itself."""
        if adapter is None:
            return list(self._held_out.scores())
        load_adapter(self._loaded, adapter, _OTHER)
        try:
            # The reference is read without a state of its own, so its adapter must be the active one.
            with active(self._loaded, FIRST):
                return list(self._held_out.scores(lambda: active(self._loaded, _OTHER)))
        finally:
            drop_adapter(self._loaded, _OTHER)


def _refuse_unlabelled(data: Path, found: Inputs, loaded: LoadedModel) -> None:
    """Refuse data on which scores would say nothing.

    Raises:
        ConfigError: there are no examples, or a classifier's examples have no label, an unknown one, or all the same.
        GradienceError: the model is a token classifier.
    """
    if not found.examples:
        raise ConfigError(f"{data} has no example with a prediction to score", advice="give held-out examples")
    if loaded.task == "token-classification":
        raise GradienceError("token classification is not scored here", advice="give a command as --metric")
    if loaded.task != "sequence-classification":
        return
    from gradience.models.outputs import class_of  # as above

    labels = {class_of(loaded, example.label): example.label for example in found.examples}
    if -1 in labels:
        names = ", ".join(getattr(loaded.config, "label2id", None) or ())
        raise ConfigError(
            f"{data}: a row has the label {labels[-1]!r}, expected a number from 0 to {loaded.config.num_labels - 1}"
            + (f", or one of {names}" if names else ""),
            advice="give rows with text and label",
        )
    if len(labels) == 1:
        raise ConfigError(
            f"{data} has rows of one class only ({labels.popitem()[0]}): accuracy on them says nothing",
            advice="give held-out rows of all classes",
        )


def _notes(data: Path, found: Inputs) -> list[str]:
    notes = []
    if found.found > len(found.examples):
        left = found.found - len(found.examples)
        notes.append(f"{data.name}: {left} rows are left out: they repeat another, or have no prediction to score")
    if found.cut:
        notes.append(f"{data.name}: {found.cut} rows are longer than the model or --max-length, and were cut")
    return notes


class Sample(NamedTuple):
    """The excess harm over the tolerance, `excess` (n, m) by example and candidate. Positive is worse.

    `weight` (n,) is the weight of each example, such as its number of tokens, and `heaviest` the most that any example
    could have. `worst` and `best` (m,) are the excess of the added example for the upper and the lower bound. `margin`
    is the tolerance. `cap` is the most that an example counts, and `largest` and `least` the excess that it then has at
    most and at least.
    """

    excess: Floats
    weight: Floats
    worst: Floats
    best: Floats
    margin: float
    cap: float | None = None
    largest: float = math.inf
    least: float = -math.inf
    heaviest: float = 1.0

    @property
    def share(self) -> Floats:
        """Each example's weight over the largest that any could have (n,)."""
        return self.weight / self.heaviest

    @property
    def mean(self) -> Floats:
        """The weighted mean excess of each candidate (m,)."""
        return np.asarray(self.weight @ self.excess / self.weight.sum())

    def drawn(self, random: np.random.Generator) -> Sample:
        """A sample of as many examples, drawn from this one with replacement."""
        some = random.integers(len(self.weight), size=len(self.weight))
        return self._replace(excess=self.excess[some], weight=self.weight[some])


class Bounds(NamedTuple):
    """Bounds (m,) of the candidates' means. All `upper` bounds hold at once with 95 %, and so do all `lower` bounds.

    `level` is the one-sided level of each upper bound by itself.
    """

    lower: Floats
    upper: Floats
    level: float


def sample_of(
    harm: Floats,
    weight: Floats,
    margin: Floats,
    *,
    largest: float | None,
    cap: float | None = None,
    heaviest: float = 1.0,
) -> Sample:
    """Build the sample from harms (n, m), by example and candidate.

    Args:
        harm: how much worse the candidate is on the example, in the metric's unit.
        weight: the weight of each example (n,).
        margin: the tolerance on each example (n,); its weighted mean is the sample's tolerance.
        largest: the largest possible harm and gain of an example; None extrapolates from the sample (`REACH`).
        cap: the most that an example counts, as harm and as gain, where `largest` is None.
        heaviest: the largest weight that an example could have, among those that were not drawn too.
    """
    if largest is None and cap is not None:
        harm = np.clip(harm, -cap, cap)
    excess = harm - margin[:, None]
    total = weight.sum()
    mean, middle = weight @ excess / total, float(weight @ margin / total)
    if largest is not None:
        edge = np.full(harm.shape[1], largest)
        return Sample(excess, weight, edge - middle, -edge - middle, middle)
    worst, best = (mean + REACH * (end - mean) for end in (excess.max(axis=0), excess.min(axis=0)))
    if cap is None:
        return Sample(excess, weight, worst, best, middle)
    # A tolerance that varies is a share of the example's own score: an example that was not drawn may have none
    slack = float(margin.min()) if np.ptp(margin) == 0.0 else min(float(margin.min()), 0.0)
    return Sample(excess, weight, worst, best, middle, cap, cap - slack, -cap - float(margin.max()), heaviest)


def capped_bounds(sample: Sample, *, confidence: float = CONFIDENCE) -> Bounds:
    """Simultaneous bounds of the means of capped harms: by bets, corrected for the number of candidates by Bonferroni.

    They hold at every look at a sample that grows.
    """
    level = 1.0 - (1.0 - confidence) / sample.excess.shape[1]
    columns = list(sample.excess.T)
    upper = [upper_bound(e, sample.share, sample.largest, level) for e in columns]
    lower = [-upper_bound(-e, sample.share, -sample.least, level) for e in columns]
    return Bounds(np.array(lower), np.array(upper), level)


def bounds(sample: Sample, *, seed: int = 0, confidence: float = CONFIDENCE, draws: int = DRAWS) -> Bounds:
    """Simultaneous bounds of the means, from the ranks of joint bootstrap draws."""
    worst, best = _drawn(sample, seed, draws)
    upper, level = _joint(worst, confidence)
    lower, _ = _joint(-best, confidence)
    return Bounds(-lower, upper, level)


def _drawn(sample: Sample, seed: int, draws: int) -> tuple[Floats, Floats]:
    """Means (draws, m) of the sample plus its worst example, and plus its best: weights are flat Dirichlet draws."""
    # An example more, at the end of the range: what was not drawn may be worse than all that was
    weight = np.append(sample.weight, sample.weight.mean())
    whole = [weight[:, None] * np.vstack([sample.excess, end]) for end in (sample.worst, sample.best)]
    random, means = np.random.default_rng(seed), []
    for some in _weights(random, draws, len(weight)):
        # Exponential numbers over their sum are a flat Dirichlet draw.
        total = (some @ weight)[:, None]
        means.append([(some @ values) / total for values in whole])
    worst, best = (np.concatenate(parts) for parts in zip(*means, strict=True))
    return worst, best


def _weights(random: np.random.Generator, draws: int, n: int) -> Iterator[Floats]:
    # In parts, because all at once would be draws times n numbers in memory
    step = max(1, _CELLS // n)
    for start in range(0, draws, step):
        yield random.standard_exponential((min(step, draws - start), n))


def _joint(drawn: Floats, confidence: float) -> tuple[Floats, float]:
    """The values (m,) at the least rank that no column exceeds in `confidence` of the draws, and the rank's level."""
    # By ranks, because candidates differ in spread: each is held at the same level, and not at the same distance
    ranks = np.argsort(np.argsort(drawn, axis=0, kind="stable"), axis=0)
    place = int(np.sort(ranks.max(axis=1))[math.ceil(confidence * len(drawn)) - 1])
    return np.sort(drawn, axis=0)[place], (place + 1) / len(drawn)


class ExampleCounts(NamedTuple):
    """Numbers of examples: with `most`, a candidate passes in 80 % (`POWER`) of fresh trials, if it is as it looks.

    Fewer than `least` hardly do. None is a number that the pilot cannot name.
    """

    least: int
    most: int | None


def needed(sample: Sample, column: int, level: float, *, seed: int = 0) -> ExampleCounts | None:
    """The number of examples that would do, as a range; None if no number would, as far as the sample shows.

    The sample is drawn again (`PILOTS` times), so that the range has the error of the sample itself. An observed gain
    beyond zero harm is not counted on.

    Args:
        sample: the trial so far.
        column: the candidate's column.
        level: the one-sided level of the candidate's bound.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    counts = sorted(_needed(sample.drawn(random), column, level) for _ in range(PILOTS))
    least, most = (counts[round(share * (PILOTS - 1))] for share in RANGE)
    if math.isinf(least) or math.isinf(_needed(sample, column, level)):
        return None
    return ExampleCounts(math.ceil(least), None if math.isinf(most) else math.ceil(most))


def _needed(sample: Sample, column: int, level: float) -> float:
    """The number of examples with which 80 % of trials pass, if outcomes are as in the sample; infinite if none do."""
    e, share = sample.excess[:, column], sample.weight / sample.weight.mean()
    mean = float(np.mean(share * e))
    gained = max(-sample.margin - mean, 0.0)  # a mean harm under 0 is taken for 0
    if sample.cap is not None:
        z = NormalDist().inv_cdf(POWER)
        return needed_examples(np.minimum(e + gained, sample.largest), sample.share, sample.largest, level, z)
    off = share * (e - mean)  # each example's contribution to the weighted mean, centred
    shape = _Moments(mean + gained, [float(np.mean(off**k)) for k in (2, 3, 4)], float(sample.worst[column]))
    z = NormalDist().inv_cdf(level)
    if shape.mean >= 0.0 or shape.bound(_MOST, z) > 0.0:
        return math.inf
    # Bisected in the logarithm, since the bound falls with the root of n
    low, high = 0.0, _MOST
    while high - low > max(0.5, high / 1000):
        middle = math.sqrt((low + 1) * (high + 1)) - 1
        low, high = (middle, high) if shape.bound(middle, z) > 0.0 else (low, middle)
    return high


class _Moments(NamedTuple):
    """Mean and central moments (second to fourth) of an excess, and the excess of the added example."""

    mean: float
    moments: list[float]
    worst: float

    def bound(self, n: float, z: float) -> float:
        """The value that the upper bound of 80 % of trials with n examples stays under, by Cornish-Fisher expansion."""
        s2, s3, s4 = self.moments
        shift = NormalDist().inv_cdf(POWER) * math.sqrt(s2 / max(n, 1.0))
        mean = self.mean + shift
        s2 += s3 / s2 * shift if s2 > 0.0 and s3 > 0.0 else 0.0  # a trial with more harm than usual has more spread
        total = n + 1.0
        middle = (n * mean + self.worst) / total
        d, more = mean - middle, self.worst - middle
        v2 = (n * (s2 + d**2) + more**2) / total
        v3 = (n * (s3 + 3 * s2 * d + d**3) + more**3) / total
        v4 = (n * (s4 + 4 * s3 * d + 6 * s2 * d**2 + d**4) + more**4) / total
        variance = v2 / (total + 1)  # moments of a mean under weights from a flat Dirichlet distribution
        if variance <= 0.0:
            return middle
        third = 2 * v3 / ((total + 1) * (total + 2))
        fourth = (3 * total * v2**2 + 6 * v4) / ((total + 1) * (total + 2) * (total + 3))
        skew, excess = third / variance**1.5, fourth / variance**2 - 3.0
        steps = z + (z**2 - 1) * skew / 6 + (z**3 - 3 * z) * excess / 24 - (2 * z**3 - 5 * z) * skew**2 / 36
        return float(middle + steps * math.sqrt(variance))
