"""Resizing an adapter by the effect of its pieces on the model's outputs, measured on inputs without labels.

A piece is a rank-one part of a module's update (`pieces`). One forward and backward pass over some inputs estimates
each piece's effect (`models.statistics`). The pieces of all modules with the largest effect per parameter are kept.
The result is measured on other inputs: KL divergence and flipped predictions against the original adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np

from gradience.adapters.layout import Array
from gradience.adapters.pairs import StoredPair
from gradience.errors import AdapterError
from gradience.io import Progress
from gradience.io.atomic import scratch_folder
from gradience.models.inputs import ModelInput, digest_of
from gradience.schema.writing import Calibration, Limit
from gradience.spectral.batch import Maps
from gradience.spectral.grams import Floats
from gradience.verbs.resize.factors import Cut, Loss, ResizePlan, bytes_beside, plan_of
from gradience.verbs.resize.options import Target
from gradience.verbs.resize.pieces import (
    Kept,
    Order,
    Pieces,
    RankCandidate,
    combined,
    first_pieces,
    gates_of,
    ordered,
    pieces_of,
    predicted_kl,
    share_left_out,
    shortest,
    within,
)
from gradience.verbs.resize.subject import Running, Split, Subject, factor_names, targets_of
from gradience.verbs.resize.weights import MEGABYTE

if TYPE_CHECKING:
    from gradience.models.outputs import Divergence
    from gradience.models.states import LayerFactors

CHOSEN_BY: Final = 128  # inputs: with 96 the KL was .44 of plain SVD's on MiniLM at r = 16, with 32 it was .54
OF_EFFECT: Final = 0.05  # heuristic: of the adapter's own KL from the base, so that little of a small effect is lost

_ROUNDS: Final = 8  # measurements that a search takes at most, for the progress bar
_BACKWARD: Final = 2  # cost of a forward and backward pass in forward passes, for the progress bar


class Effects(NamedTuple):
    """The pieces of each module by path, what they do to the outputs, and the number of predictions that say so."""

    pieces: Mapping[str, Pieces]
    candidates: Mapping[str, RankCandidate]
    predictions: int


class Choice(NamedTuple):
    """The pieces that are kept, and what the next smaller choice would have passed; nothing if none was measured."""

    kept: Kept
    bound_by: list[Limit]


class Measurement(NamedTuple):
    """What running the model says of the pieces, and the held-out inputs on which choices of them are tried."""

    split: Split
    seed: int
    effects: Effects
    trials: Trials


def measure(subject: Subject, running: Running, split: Split, seed: int, progress: Progress) -> Measurement:
    """Run the model on the inputs, of which some are held out.

    Args:
        subject: the adapter.
        running: the model that runs with it.
        split: the inputs that it is run on.
        seed: of the labels that are drawn from the model.
        progress: called with (units done, units in all, the name of the step).

    Raises:
        AdapterError: the model's outputs are not finite.
    """
    done = _BACKWARD * len(split.chosen_by)
    units = done + _ROUNDS * len(split.measured_on)
    effects = effects_of(
        subject, running, split.chosen_by, seed, lambda n, _, name: progress(_BACKWARD * n, units, name)
    )
    # The bar never fills here: a search may take more rounds than were counted.
    trials = Trials(
        running, effects.pieces, split.measured_on, lambda n: progress(min(done + n, units - 1), units, "measuring")
    )
    return Measurement(split, seed, effects, trials)


def plan_by_outputs(
    subject: Subject, running: Running, measurement: Measurement, target: Target
) -> tuple[ResizePlan, Calibration]:
    """Return the plan of the new file from the pieces that the criterion keeps, and the record of how they were chosen.

    Raises:
        AdapterError: the budget is below the smallest adapter that can be written.
    """
    effects, trials = measurement.effects, measurement.trials
    choice = chosen(subject, measurement, target)
    kept = choice.kept
    cuts = [_cut(subject, pair, effects.pieces[path], kept[path]) for path, pair in running.pairs.items()]
    fields = {} if all(kept.values()) else targets_of([path for path, some in kept.items() if some], running.loaded)
    plan = plan_of(subject, cuts, fields)
    # Of each module's cut alone, with all other modules whole
    costs = {name: predicted_kl({name: one}, kept, effects.predictions) for name, one in effects.candidates.items()}
    rows = [
        msgspec.structs.replace(row, kl_predicted=costs[path])
        for row, path in zip(plan.rows, running.pairs, strict=True)
    ]
    return plan._replace(rows=rows), _record(measurement, choice, trials.of(kept), trials.effect)


def _record(measurement: Measurement, choice: Choice, measured: Divergence, effect: Divergence) -> Calibration:
    split, effects = measurement.split, measurement.effects
    return Calibration(
        seed=measurement.seed,
        inputs=len(split.chosen_by),
        predictions=effects.predictions,
        digest=digest_of(split.chosen_by),
        kl_predicted=predicted_kl(effects.candidates, choice.kept, effects.predictions),
        kl=measured.kl,
        flips=measured.flips,
        effect_kl=effect.kl,
        effect_flips=effect.flips,
        measured_inputs=len(split.measured_on),
        measured_predictions=measured.predictions,
        cut_inputs=split.cut,
        bound_by=choice.bound_by,
    )


def effects_of(
    subject: Subject, running: Running, examples: Sequence[ModelInput], seed: int, progress: Progress
) -> Effects:
    """Return the pieces of each module with their effects, from a forward and a backward pass over the inputs.

    Raises:
        AdapterError: the model's outputs are not finite.
    """
    from gradience.models.outputs import batched  # torch, which only those who run a model need
    from gradience.models.statistics import statistics  # the same

    with scratch_folder() as folder:
        sums = statistics(
            running.loaded,
            running.layers,
            batched(running.loaded, examples),
            seed=seed,
            folder=folder,
            progress=progress,
        )
        pieces, candidates = {}, {}
        for path, pair in running.pairs.items():
            pieces[path] = pieces_of(*sums.moments[path])
            gates = gates_of(pieces[path], sums.gradients(path))
            candidates[path] = RankCandidate(gates, pair.layout.params_per_rank, _least(subject, pair))
    return Effects(pieces, candidates, sums.predictions)


def _least(subject: Subject, pair: StoredPair) -> int:
    """The smallest rank that a module may get: 0 if the module can leave the adapter, else 1.

    It cannot leave if the file holds another tensor of it, such as a bias, which would be lost.
    """
    names = factor_names(pair)
    stem = names[0].partition(".lora_")[0] + "."
    return int(any(name.startswith(stem) for name in subject.tensors.tensors if name not in names))


class Trials:
    """The divergence of the model with some pieces from the model with all of them, each choice measured once.

    A is replaced by M A in memory, and nothing is written.

    Args:
        running: the model.
        pieces: the pieces of each module, by path.
        examples: the inputs to measure on.
        report: called with the number of inputs run so far.
    """

    def __init__(
        self,
        running: Running,
        pieces: Mapping[str, Pieces],
        examples: Sequence[ModelInput],
        report: Callable[[int], None],
    ) -> None:
        from gradience.models.outputs import HeldOut  # torch, late

        self._layers, self._pieces, self._report = running.layers, pieces, report
        self._held_out = HeldOut(running.loaded, examples)
        self._known: dict[tuple[tuple[int, ...], ...], Divergence] = {}
        self._count = 0

    def of(self, kept: Kept) -> Divergence:
        """The divergence with the pieces kept."""
        from gradience.models.outputs import divergence  # torch, late
        from gradience.models.states import with_factors  # the same

        key = tuple(tuple(kept[path]) for path in self._pieces)
        if key not in self._known:
            factors = factors_with(self._layers, self._pieces, kept)
            rows = []
            for row in self._held_out.scores(partial(with_factors, self._layers, factors)):
                rows.append(row)
                self._count += 1
                self._report(self._count)
            self._known[key] = divergence(rows)
        return self._known[key]

    @property
    def effect(self) -> Divergence:
        """The divergence without any piece: what the adapter's factors do."""
        return self.of({path: [] for path in self._pieces})


def factors_with(layers: Mapping[str, Any], pieces: Mapping[str, Pieces], kept: Kept) -> dict[str, LayerFactors]:
    """The factors of each layer with the pieces kept: M A and B."""
    from gradience.models.states import mixed  # torch, late

    return {path: mixed(layers[path], combined(pieces[path], kept[path])) for path in pieces}


def chosen(subject: Subject, measurement: Measurement, target: Target) -> Choice:
    """Return the pieces that the criterion keeps.

    Raises:
        AdapterError: the budget is below the smallest adapter that can be written.
    """
    order = ordered(measurement.effects.candidates)
    if target.criterion == "kl":
        return nearest(order, target, measurement.trials)
    return Choice(affordable(subject, order, target), [])


def affordable(subject: Subject, order: Order, target: Target) -> Kept:
    """Return the pieces that fit the budget: so many bytes or parameters, or those of a rank.

    Raises:
        AdapterError: the budget is below the smallest adapter that can be written.
    """
    if target.criterion == "max_mb":
        costs = {pair.path: subject.bytes_per_rank(pair) for pair in subject.pairs}
        budget, unit = int(target.value * MEGABYTE) - bytes_beside(subject), "bytes"
    else:
        costs = {pair.path: pair.layout.params_per_rank for pair in subject.pairs}
        budget, unit = int(target.value), "parameters"
        if target.criterion == "rank":
            budget = sum(costs[pair.path] * min(budget, pair.layout.rank) for pair in subject.pairs)
    kept = within(order, budget, costs)
    if kept is None:
        raise AdapterError(
            f"the budget leaves {budget} {unit}, and the least that can be written needs more",
            advice="give a larger one",
        )
    return kept


def nearest(order: Order, target: Target, trials: Trials) -> Choice:
    """Return the fewest pieces whose outputs are within the bounds of KL and flips from the whole adapter's."""
    passed: dict[int, list[Limit]] = {}

    def holds(count: int) -> bool:
        measured = trials.of(first_pieces(order, count))
        limits: dict[Limit, bool] = {
            "kl": measured.kl > target.value,
            "effect": measured.kl > OF_EFFECT * trials.effect.kl,
            "flips": measured.flips > target.flips,
        }
        passed[count] = [name for name, is_passed in limits.items() if is_passed]
        return not passed[count]

    count = shortest(order, holds)
    refused = [number for number, limits in passed.items() if limits]
    return Choice(first_pieces(order, count), passed[max(refused)] if refused else [])


def grams_of(subject: Subject, pair: StoredPair) -> tuple[Floats, Floats]:
    """The Gram matrices A A^T and B^T B of a pair's factors as stored, in float64."""
    b, a = (factor[0].astype(np.float64) for factor in pair.layout.read(subject.tensors))
    return a @ a.T, b.T @ b


def _cut(subject: Subject, pair: StoredPair, pieces: Pieces, kept: Sequence[int]) -> Cut:
    """The pair with the pieces kept."""
    gram_a, gram_b = grams_of(subject, pair)
    energy = pair.first.scale**2 * float(np.einsum("ij,ji->", gram_b, gram_a))
    # a pair that keeps all pieces is copied, and loses not even what rounding would
    is_whole = len(kept) == pair.layout.rank
    share = 0.0 if is_whole else share_left_out(combined(pieces, kept), gram_a, gram_b) or 0.0
    compute = partial(_mapped_factors, subject, pair, _maps(pieces, kept, gram_a, gram_b))
    return Cut(pair, len(kept), [Loss(share**2 * energy, energy)], compute)


def _mapped_factors(subject: Subject, pair: StoredPair, maps: Maps) -> dict[str, Array]:
    """Return the new tensors b @ left and right @ a of a pair, by name."""
    b, a = (factor[0].astype(np.float64) for factor in pair.layout.read(subject.tensors))
    return pair.layout.named((b @ maps.left)[None], (maps.right @ a)[None], len(maps.right))


def _maps(pieces: Pieces, kept: Sequence[int], gram_a: Floats, gram_b: Floats) -> Maps:
    """The maps to the new factors B' = B left and A' = right A, in which each piece's two vectors are equally long."""
    left, right = pieces.left[:, kept], pieces.right[kept]
    size_b = np.sqrt(np.maximum(np.einsum("ik,ij,jk->k", left, gram_b, left), 0.0))
    size_a = np.sqrt(np.maximum(np.einsum("ki,ij,kj->k", right, gram_a, right), 0.0))
    has_both = (size_a > 0.0) & (size_b > 0.0)
    turn = np.sqrt(np.where(has_both, size_a, 1.0) / np.where(has_both, size_b, 1.0))
    return Maps(left * turn, right / turn[:, None])
