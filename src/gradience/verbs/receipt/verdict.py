"""What was read at a target, placed among what the base, the adapter, and the adapter after a mistake would read.

Let a be the log-probabilities under base and adapter, b under the base, y those of the target, as vectors over all
tokens of the receipt. Distances are in units of the adapter's effect |a - b|. A mistake that can be repeated (a part
left out, another scale) is an explanation if y is nearer to what it gives than to a, by a wide margin.

What no mistake explains is noise or another adapter. Rounding moves log-probabilities in no direction of its own; a
checkpoint moves them along what parts of the adapter do. So the share of y - a in the span of a - b and of what each
part does tells them apart, tokens weighted by how much rounding moves them. Behind 4 bits that share does not tell:
their noise is larger than what separates checkpoints. There y is the adapter only if one of the usual forms in 4 bits,
computed here from base and adapter, gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from gradience.rules.served import APART, BEYOND, CLEAR, COARSE, EXPLAINED, FINE, UNLIKE
from gradience.schema.receipt import NoiseOf, Receipt, ServedVerdict

if TYPE_CHECKING:
    from gradience.models.probes import Probes

Vector = npt.NDArray[np.float64]
Reading = Sequence[Vector]
"""For each sequence its log-probabilities in nats."""

FLOOR: Final = -12.0  # nats: of a token this improbable (6e-6) only that it is, since rounding moves it most
_LEAST: Final = 32  # log-probabilities; with fewer a verdict rests on a sentence
_COVERED: Final = 0.2  # share of the adapter's effect, by squares, that a target's log-probabilities must cover
_ROUNDED: Final = 0.5e-4  # nats by which a log-probability of a receipt is rounded at most
_LOST: Final = 0.5  # residual of bfloat16 from which the adapter does too little on these rows
_NO_CHANCE: Final = 0.99  # share of all directions from which chance explains everything
_TINY: Final = 1e-300  # in place of a divisor that is 0
_PASSES: Final = 2  # forward passes that narrow a factor down
_NEAR: Final = 0.02  # by which a factor may miss that of a known mistake
_SMALLEST: Final = 0.1  # factor; under it an update counts as absent
_SHOWN: Final = 8  # explanations that a report has

_OF_PRECISION: Final[dict[str, dict[NoiseOf, float]]] = {
    "float32": {"batch": 1.0},
    "float16": {"batch": 1.0, "bfloat16": 0.125},  # it has three bits more
    "bfloat16": {"batch": 1.0, "bfloat16": 1.0},
}
_OTHERWISE: Final[dict[NoiseOf, float]] = {"batch": 1.0, "bfloat16": 1.0, "int8": 1.0}
"""The noise to expect in a dtype, as multiples of what was measured."""


class Conclusion(NamedTuple):
    """A verdict, and the numbers that it rests on."""

    verdict: ServedVerdict
    story: str
    residual: float | None = None
    share: float | None = None
    from_base: float | None = None
    noise: float | None = None
    factor: float | None = None
    missing: frozenset[str] = frozenset()
    tried: tuple[tuple[str, float], ...] = ()
    compared: int = 0


class _Explanation(NamedTuple):
    name: str
    verdict: ServedVerdict
    vector: Vector
    """What it gives."""
    left: float
    """|y - what it gives| / |a - b|."""
    paths: frozenset[str] = frozenset()
    factor: float | None = None
    form: str = ""
    """In 4 bits, the form."""
    away: float = 0.0
    """In a form, |y - what the adapter gives in it|."""


def vector_of(reading: Reading) -> Vector:
    """The log-probabilities of all sequences, one after the other, none under the floor. NaN stays."""
    return np.maximum(np.concatenate(reading), FLOOR)


class LogProbPairs:
    """The receipt's log-probabilities beside those that a target gave, where it gave one.

    Args:
        receipt: the receipt.
        reading: of each row the target's log-probabilities, NaN where there is none.
    """

    def __init__(self, receipt: Receipt, reading: Reading) -> None:
        b, a = (
            vector_of([np.array(values) for values in rows])
            for rows in ([row.base for row in receipt.rows], [row.adapter for row in receipt.rows])
        )
        y = vector_of(reading)
        self.kept = np.isfinite(y)
        self.covered = _square(a[self.kept] - b[self.kept]) / max(_square(a - b), _TINY)
        self.a, self.b, self.y = a[self.kept], b[self.kept], y[self.kept]
        self.size = float(np.linalg.norm(self.a - self.b)) or 1.0
        self.rounded = _ROUNDED * len(self.y) ** 0.5 / self.size
        self.noise = {one.of: one.residual for one in receipt.noise}

    def seen(self, reading: Reading) -> Vector:
        """What another reading has of the log-probabilities that the target gave."""
        return vector_of(reading)[self.kept]

    def distance(self, other: Vector) -> float:
        """|y - other| in units of the adapter's effect."""
        return float(np.linalg.norm(self.y - other)) / self.size

    def from_adapter(self, other: Vector) -> float:
        """|other - a| in the same units."""
        return float(np.linalg.norm(other - self.a)) / self.size

    def share(self) -> float:
        """<y - b, a - b> / |a - b|^2."""
        return float((self.y - self.b) @ (self.a - self.b)) / self.size**2

    def cosine(self) -> float:
        """The cosine of what y and what a change in the base's probabilities.

        Any training lifts what the base held for nearly impossible, and log-probabilities of it move by most.
        """
        base = np.exp(self.b)
        of_y, of_a = np.exp(self.y) - base, np.exp(self.a) - base
        return float(of_y @ of_a) / max(float(np.linalg.norm(of_y) * np.linalg.norm(of_a)), _TINY)


def conclude(
    evidence: LogProbPairs,
    *,
    precision: str,
    exact: bool,
    probes: Probes | None = None,
    own_head: Reading | None = None,
) -> Conclusion:
    """Return what the target is.

    Args:
        evidence: what was read.
        precision: dtype of the target's weights, which sets the noise that is expected; empty if unknown.
        exact: the target was run here on the base that was given, so that no rounding is an excuse.
        probes: base and adapter, to repeat mistakes; None if they are not at hand.
        own_head: of a classifier, what the base gives with the head in its own files; None without one.
    """
    e = evidence
    if len(e.y) < _LEAST or e.covered < _COVERED:
        story = (
            f"The target gave {len(e.y)} log-probabilities of {len(e.kept)}, which cover {e.covered:.0%} of what the "
            "adapter changes: too few"
        )
        return Conclusion("cannot_tell", story, compared=len(e.y))
    rounding = _Rounding.of(e.noise, precision, e.rounded, exact=exact)
    residual = e.distance(e.a)
    conclusion = Conclusion("same", "", residual, e.share(), e.distance(e.b), rounding.fine, compared=len(e.y))
    is_lost = precision != "float32" and e.noise.get("bfloat16", 0.0) > _LOST
    if is_lost and residual <= APART.value * rounding.fine:
        return conclusion._replace(
            verdict="cannot_tell",
            story="The adapter changes these rows by no more than bfloat16 does: write the receipt on rows of its task",
        )
    if residual <= max(e.rounded, FINE.value * e.noise.get("batch", 0.0)):
        return conclusion._replace(story=f"Every log-probability is the adapter's, to {residual:.1g} of its effect")
    if probes is None:
        return _Judgement(e, conclusion, rounding, own_head).alone()
    readings = {of: e.seen(reading) for of, reading in probes.noises().items()}
    # The receipt's noise was measured on some of its rows, and here on all.
    noise = e.noise | {of: max(e.noise.get(of, 0.0), e.from_adapter(vector)) for of, vector in readings.items()}
    rounding = _Rounding.of(noise, precision, e.rounded, exact=exact)
    stored = {}
    if not exact and residual > rounding.fine:
        # Each form costs a pass of the model, and none is needed where finer rounding explains what is left.
        stored = {form: e.seen(reading) for form, reading in probes.stored().items()}
        of_forms = [e.from_adapter(vector) for vector in stored.values()]
        noise |= {"int4": max(of_forms)}
        rounding = _Rounding.of(noise, precision, e.rounded, exact=False, finest=min(of_forms))
    judgement = _Judgement(e, conclusion._replace(noise=rounding.fine), rounding, own_head)
    return judgement.with_probes(probes, [vector - e.a for vector in readings.values()], stored)


class _Rounding(NamedTuple):
    """How far rounding moves the adapter from itself, as residuals."""

    measured: float
    """In the target's dtype, as measured."""
    fine: float
    """In the target's dtype, at most."""
    least: float
    """From here on it may be what 4 bits do: of a model in 16 bits, 4 bits that it was merged into before."""
    coarse: float
    """Up to here."""
    beside: float
    """Up to here rounding may come on top of a mistake."""

    @classmethod
    def of(
        cls, noise: Mapping[NoiseOf, float], precision: str, digits: float, *, exact: bool, finest: float = 0.0
    ) -> _Rounding:
        """From the noise that was measured, of the finest form in 4 bits too, and what the receipt's digits leave."""
        kinds = _OF_PRECISION.get(precision, _OTHERWISE)
        measured = max(times * noise.get(kind, 0.0) for kind, times in kinds.items())
        fine = max(digits, FINE.value * measured)
        coarse = fine if exact else max(fine, COARSE.value * noise.get("int4", 0.0))
        is_float = precision in _OF_PRECISION
        coarse = max(fine, min(coarse, APART.value * fine)) if is_float else coarse
        least = max(fine, finest) if is_float else fine
        return cls(measured, fine, least, coarse, fine if is_float else coarse)

    def may_be_4_bits(self, residual: float) -> bool:
        """Whether a residual is one that 4-bit weights leave."""
        return self.least < residual <= self.coarse


class _Span:
    """The directions in which the adapter and its parts move log-probabilities, seen through the noise of rounding."""

    def __init__(self, evidence: LogProbPairs, parts: Mapping[str, Vector], noises: Sequence[Vector]) -> None:
        self._weights = _precision_of(noises)
        directions = [evidence.a - evidence.b, *(vector - evidence.a for vector in parts.values())]
        self._basis = np.linalg.qr(np.stack(directions, axis=1) * self._weights[:, None])[0]
        self._noises = noises

    def is_like(self, difference: Vector, noises: Sequence[Vector] | None = None) -> bool:
        """Whether no more of a difference lies along these directions than of noises; None: those of 16 and 8 bits."""
        most = max(self.share(noise) for noise in noises or self._noises)
        return self.share(difference) <= most + BEYOND.value

    def share(self, difference: Vector) -> float:
        """The share of |d|^2 along these directions, beyond what chance puts there."""
        d = difference * self._weights
        # A random direction has this share of its square within a subspace of so many dimensions.
        chance: float = min(self._basis.shape[1] / len(d), _NO_CHANCE)
        share: float = _square(self._basis.T @ d) / max(_square(d), _TINY)
        return max(0.0, (share - chance) / (1.0 - chance))


def _precision_of(noises: Sequence[Vector]) -> Vector:
    """A weight for each token: one over what rounding moves it by, and over the median token's at most."""
    # Each noise counts alike, however large it is.
    variance = sum((noise**2 / max(_square(noise), _TINY) for noise in noises), np.zeros_like(noises[0]))
    deviations: Vector = np.sqrt(variance + max(float(np.median(variance)), _TINY))
    weights: Vector = deviations.min() / deviations
    return weights


class _Judgement:
    """The verdict on a target that is not the adapter to the last digit."""

    def __init__(self, evidence: LogProbPairs, told: Conclusion, rounding: _Rounding, own_head: Reading | None) -> None:
        self._e, self._told, self._rounding = evidence, told, rounding
        self._r = evidence.distance(evidence.a)
        self._bases = [_Explanation("the base", "the_base", evidence.b, evidence.distance(evidence.b))]
        if own_head is not None:
            vector = evidence.seen(own_head)
            self._bases.append(
                _Explanation("the base with its own head", "the_base", vector, evidence.distance(vector))
            )

    def alone(self) -> Conclusion:
        """The verdict from the receipt alone."""
        if (cause := self._cause(self._bases)) is not None:
            return self._explained(cause, self._bases)
        if self._r <= self._rounding.fine:
            return self._same()
        if self._rounding.may_be_4_bits(self._r):
            return self._untold(
                f"What answers is near the adapter, {self._away}: 4 bits may leave it so, and so may a checkpoint, a "
                "missing part or another scale. --base and --adapter tell them apart"
            )
        return self._relative()

    def with_probes(self, probes: Probes, noises: Sequence[Vector], stored: Mapping[str, Vector]) -> Conclusion:
        """The verdict with base and adapter at hand.

        Args:
            probes: base and adapter.
            noises: what 16 and 8 bits do to a.
            stored: what each form in 4 bits gives, where that may be what was read.
        """
        e, rounding = self._e, self._rounding
        parts = {name: e.seen(reading) for name, reading in probes.parts().items()}
        span = _Span(e, parts, noises)
        if self._is_noise(e.a, span):
            return self._same()
        for form, vector in stored.items():
            if self._is_noise(vector, span):
                return self._within(form, e.distance(vector))
        explanations = self._explanations(parts, probes, stored)
        if (cause := self._cause(explanations)) is not None:
            return self._explained(cause, explanations)
        self._told = self._told._replace(tried=tuple((one.name, one.left) for one in explanations[:_SHOWN]))
        if self._r <= rounding.fine:
            return self._untold(
                f"What answers is near the adapter, {self._away}, as rounding may leave it; but part of that is along "
                "what parts of the adapter do: neither rounding nor another checkpoint is ruled out"
            )
        is_near = self._is_near(explanations[0])
        forms = [vector - e.a for vector in stored.values()]
        if rounding.may_be_4_bits(self._r) and (is_near or span.is_like(e.y - e.a, forms)):
            also = f", or the adapter {explanations[0].name} behind 4 bits," if is_near else ""
            return self._untold(
                f"What answers is near the adapter, {self._away}, as 4 bits may leave it; but none of the usual forms "
                f"gives it ({', '.join(stored)}), and a checkpoint{also} may lie there as well"
            )
        return self._relative()

    def _is_noise(self, other: Vector, span: _Span) -> bool:
        """Whether y is another vector but for rounding."""
        left = self._e.distance(other)
        if left > self._rounding.fine:
            return False
        return left <= self._rounding.measured or span.is_like(self._e.y - other)

    def _explanations(
        self, parts: Mapping[str, Vector], probes: Probes, stored: Mapping[str, Vector]
    ) -> list[_Explanation]:
        """The mistakes that were repeated, the nearest first."""
        e = self._e
        explanations = [self._bases[0]._replace(paths=probes.whole), *self._bases[1:]]
        explanations += [
            _Explanation(f"without {name}", "part_missing", vector, e.distance(vector), probes.groups[name])
            for name, vector in parts.items()
        ]
        explanations += self._scales(probes)
        if min(explanations, key=_left).left > CLEAR.value * self._r:
            explanations += self._pairs(parts, probes)
        if stored and not self._is_clear(min(explanations, key=_left)):
            explanations.append(self._in_a_form(explanations, stored, probes))
        return sorted(explanations, key=_left)

    def _in_a_form(self, found: Sequence[_Explanation], stored: Mapping[str, Vector], probes: Probes) -> _Explanation:
        """The mistake and the form in 4 bits whose effects, added up, come nearest; they are then run together."""
        e = self._e
        pairs = [(one, form) for one in found if one.paths or one.factor for form in stored]
        one, form = min(pairs, key=lambda pair: e.distance(pair[0].vector + stored[pair[1]] - e.a))
        vector = e.seen(probes.mistaken(form, one.paths, one.factor or 1.0))
        return one._replace(vector=vector, left=e.distance(vector), form=form, away=e.distance(stored[form]))

    def _scales(self, probes: Probes) -> list[_Explanation]:
        """The factor that comes nearest: of those that are tried, then between the neighbours of the best one.

        Between three factors the log-probabilities are taken for a parabola; its best point is then run.
        """
        e = self._e
        words = {factor: text for factor, text in probes.factors().items() if factor >= _SMALLEST}
        if not words:
            return []
        # Of these two factors the receipt has the log-probabilities.
        read = {0.0: e.b, 1.0: e.a} | {factor: e.seen(probes.scaled(factor)) for factor in words}
        best, left = self._best(read)
        for _ in range(_PASSES):
            if left <= self._rounding.fine:
                break
            factor = self._between(read)
            read[factor] = e.seen(probes.scaled(factor))
            best, left = self._best(read)
        why = next((f": {text}" for factor, text in words.items() if text and abs(factor / best - 1.0) < _NEAR), "")
        return [_Explanation(f"at {best:.3g} times its scale{why}", "wrong_scale", read[best], left, factor=best)]

    def _best(self, read: Mapping[float, Vector]) -> tuple[float, float]:
        """The factor that comes nearest, but for those of the adapter and the base, and its distance."""
        left = {factor: self._e.distance(vector) for factor, vector in read.items() if factor not in {0.0, 1.0}}
        best = min(left, key=left.__getitem__)
        return best, left[best]

    def _between(self, read: Mapping[float, Vector]) -> float:
        """The nearest point of the parabola through the best factor and its neighbours."""
        order = sorted(read)
        nearest = min(read, key=lambda factor: self._e.distance(read[factor]))
        at = min(max(order.index(nearest), 1), len(order) - 2)
        three = order[at - 1 : at + 2]

        def distance(factor: float) -> float:
            parts = [
                read[one] * np.prod([(factor - two) / (one - two) for two in three if two != one]) for one in three
            ]
            return self._e.distance(np.sum(parts, axis=0))

        minimum = minimize_scalar(distance, bounds=(max(three[0], _SMALLEST), three[2]), method="bounded")
        return float(minimum.x)

    def _pairs(self, parts: Mapping[str, Vector], probes: Probes) -> list[_Explanation]:
        """The two groups whose effects, added up, come nearest; they are then run together."""
        e = self._e
        apart = [(one, other) for one, other in combinations(parts, 2) if not probes.groups[one] & probes.groups[other]]
        if not apart:
            return []
        one, other = min(apart, key=lambda pair: e.distance(parts[pair[0]] + parts[pair[1]] - e.a))
        paths = probes.groups[one] | probes.groups[other]
        vector = e.seen(probes.without(paths))
        return [_Explanation(f"without {one} and {other}", "part_missing", vector, e.distance(vector), paths)]

    def _is_clear(self, one: _Explanation) -> bool:
        """Whether y is what the mistake gives, and hardly what the adapter gives in the same form.

        The base, or the adapter without a part, is one model: what not even the noise of 4 bits leaves of it is another
        one, such as an adapter that does little on these rows. Rounding may move a mistake's outputs by more than the
        adapter's own. A scale is one of many, of which a few were run.
        """
        noise = max(self._rounding.beside, self._e.noise.get("int4", 0.0))
        is_it = one.factor is not None or one.left <= noise
        return is_it and one.left <= CLEAR.value * (one.away or self._r)

    def _is_near(self, one: _Explanation) -> bool:
        """Whether a mistake comes within noise of y, and much nearer than the adapter."""
        return one.left <= min(self._rounding.beside, EXPLAINED.value * self._r)

    def _cause(self, found: Sequence[_Explanation]) -> _Explanation | None:
        """The mistake that explains y: the nearest one, nearly to the digit or within noise; there the base goes first.

        Where noise alone may have led y away from a, what is left of a mistake is no evidence of it.
        """
        nearest = min(found, key=_left)
        if self._is_clear(nearest):
            return nearest
        near = [one for one in (*self._bases, nearest) if self._is_near(one)]
        return near[0] if near and self._r > self._rounding.coarse else None

    def _explained(self, one: _Explanation, found: Sequence[_Explanation]) -> Conclusion:
        near = "" if self._is_clear(one) else ", within what 4 bits do"
        near = f", quantised as {one.form}" if one.form else near
        story = {
            "the_base": f"{one.name.capitalize()} answers, without the adapter: {one.left:.3f} of the adapter's effect "
            f"from it{near}",
            "part_missing": f"The adapter {one.name} answers: {one.left:.3f} of its effect from that, {self._r:.3f} "
            f"from the whole{near}",
            "wrong_scale": f"The adapter {one.name}: {one.left:.3f} of its effect from that, {self._r:.3f} from its "
            f"own{near}",
        }[one.verdict]
        return self._told._replace(
            verdict=one.verdict,
            story=story,
            factor=one.factor,
            missing=one.paths if one.verdict == "part_missing" else frozenset(),
            tried=tuple((each.name, each.left) for each in found[:_SHOWN]),
        )

    def _same(self) -> Conclusion:
        return self._told._replace(
            story=f"The adapter answers: {self._away}, within the noise of {self._rounding.fine:.4f}"
        )

    def _within(self, form: str, left: float) -> Conclusion:
        return self._told._replace(
            verdict="same_within_quantisation",
            story=f"The adapter answers, quantised: {self._away}, and {left:.3g} away from what {form} gives",
        )

    @property
    def _away(self) -> str:
        return f"{self._r:.3g} of its effect away from it"

    def _untold(self, story: str) -> Conclusion:
        return self._told._replace(verdict="cannot_tell", story=story)

    def _relative(self) -> Conclusion:
        """Another checkpoint or another adapter, by the direction that it goes from the base."""
        cosine = self._e.cosine()
        where = (
            f"{self._r:.3f} of the adapter's effect away from it; what it changes in the base's probabilities has a "
            f"cosine of {cosine:.2f} with what the adapter changes"
        )
        if cosine >= UNLIKE.value:
            return self._told._replace(
                verdict="another_checkpoint",
                story=f"Another checkpoint or a near relative answers: {where}",
            )
        return self._told._replace(
            verdict="another_adapter",
            story=f"Another adapter, or another base, answers: {where}",
        )


def _left(one: _Explanation) -> float:
    return one.left


def _square(x: Vector) -> float:
    return float(x @ x)
