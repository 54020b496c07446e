"""A smaller adapter trained towards the outputs of the whole one, and kept only if held-out texts say that it helped.

The base with the whole adapter is the teacher (`models.distil`). Only A and B of the smaller adapter change.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from gradience.adapters.layout import Array, all_finite
from gradience.adapters.pairs import StoredPair
from gradience.errors import AdapterError
from gradience.io import Progress
from gradience.io.safetensors import DTYPES, PlannedTensor
from gradience.models.inputs import digest_of
from gradience.models.sums import Sums, estimate
from gradience.schema.writing import Apart, Recovery
from gradience.spectral.update import core_singular_values, stacked
from gradience.verbs.resize.factors import Loss, ResizePlan, relative_error
from gradience.verbs.resize.subject import Running, Split, Subject, factor_names

if TYPE_CHECKING:
    from gradience.models.states import LayerFactors

TRAINED_ON: Final = 512  # texts

_BROKEN: Final = "the training left numbers that are not finite"
_WORSE: Final = "the KL on held-out texts did not fall beyond chance"
_FLIPPED: Final = "more predictions changed on held-out texts"


def recovered(
    subject: Subject, running: Running, plan: ResizePlan, split: Split, *, seed: int, progress: Progress
) -> tuple[ResizePlan, Recovery]:
    """Return the plan with trained factors if they are better, else as it is; and the record of the training.

    Args:
        subject: the whole adapter.
        running: the model that runs with it.
        plan: the smaller adapter.
        split: the texts to train on, and those held out.
        seed: of their order.
        progress: called with (steps done, steps in all, the name of the work).

    Raises:
        AdapterError: outputs are not finite.
    """
    from gradience.models.distil import STEPS, distil  # torch, late
    from gradience.models.outputs import HeldOut  # the same
    from gradience.models.reading import as_base  # the same

    student = Student(plan, running)
    held_out = HeldOut(running.loaded, split.measured_on)
    whole, before = held_out.sums(nullcontext), held_out.sums(student.state)
    if not (before.finite and whole.finite):
        raise AdapterError("the model's outputs are not finite", advice="check the weights of base and adapter")
    stopped = distil(running.loaded, running.layers, student.factors, split.chosen_by, seed=seed, progress=progress)
    trained = student.stored()
    after = held_out.sums(student.state)
    is_sound = stopped is None and after.finite and all(map(all_finite, trained.values()))
    change = apart(after, before) if is_sound else None
    reason = _BROKEN if change is None else why_as_cut(change)
    effect = held_out.sums(partial(as_base, running.loaded))
    record = Recovery(
        written=not reason,
        reason=reason,
        steps=STEPS if stopped is None else stopped,
        seed=seed,
        inputs=len(split.chosen_by),
        digest=digest_of(split.chosen_by),
        held_inputs=len(split.measured_on),
        held_predictions=int(before.predictions.sum()),
        cut_inputs=split.cut,
        effect_kl=float(effect.kl.sum() / effect.predictions.sum()),
        before=apart(before, whole),
        after=apart(after, whole) if is_sound else None,
        change=change,
    )
    return (plan if reason else _with_factors(plan, subject, trained)), record


def why_as_cut(change: Apart) -> str:
    """Why the trained factors are not taken; empty if they are better: less KL, beyond chance, and no more flips."""
    if change.kl.high >= 0.0:
        return _WORSE
    return _FLIPPED if change.flips.value > 0.0 else ""


def apart(one: Sums, other: Sums) -> Apart:
    """Return how much further one state is from the whole adapter than the other."""
    return Apart(
        kl=estimate(one.kl - other.kl, one.predictions),
        flips=estimate(one.flips - other.flips, one.predictions),
        loss=estimate(one.loss - other.loss, one.known) if one.known.any() else None,
    )


class Student:
    """The factors of a plan, to be trained in a model that runs. A module that left the adapter has zeros, which stay.

    Args:
        plan: the smaller adapter.
        running: the model with the whole adapter.
    """

    def __init__(self, plan: ResizePlan, running: Running) -> None:
        import torch  # only a recovery needs it

        from gradience.models.states import LayerFactors, factors_of  # the same

        self._layers = running.layers
        self._tensors = {tensor.name: tensor for tensor in plan.tensors}
        self.factors: dict[str, LayerFactors] = {}
        self._named: dict[str, Any] = {}
        for path, pair in running.pairs.items():
            own, names = factors_of(self._layers[path]), factor_names(pair)
            is_kept = names[0] in self._tensors
            some = (
                # By way of float32, because torch takes no bfloat16 from NumPy.
                [torch.from_numpy(_loaded(self._tensors[name]).astype(np.float32)) for name in names]
                if is_kept
                else [torch.zeros_like(x) for x in own]
            )
            self.factors[path] = LayerFactors(*(torch.nn.Parameter(x.to(y)) for x, y in zip(some, own, strict=True)))
            self._named |= dict(zip(names, self.factors[path], strict=True)) if is_kept else {}

    def state(self) -> AbstractContextManager[None]:
        """A context in which the model has these factors."""
        from gradience.models.states import with_factors  # torch, late

        return with_factors(self._layers, self.factors)

    def stored(self) -> dict[str, Array]:
        """The factors as they are stored, by their tensors' names; those in memory are rounded as well."""
        import torch  # as above

        arrays = {}
        for name, factor in self._named.items():
            with np.errstate(over="ignore"):
                arrays[name] = factor.detach().float().cpu().numpy().astype(DTYPES[self._tensors[name].dtype])
            # What is measured from here on is then what will be written.
            factor.data.copy_(torch.from_numpy(arrays[name].astype(np.float32)))
        return arrays


def _loaded(tensor: PlannedTensor) -> Array:
    """A tensor's data in its shape; a copied one loads as bytes."""
    data = np.ascontiguousarray(tensor.load()).reshape(-1)
    return data.view(np.uint8).view(DTYPES[tensor.dtype]).reshape(tensor.shape)


def _with_factors(plan: ResizePlan, subject: Subject, trained: Mapping[str, Array]) -> ResizePlan:
    """The plan with other factors of its own ranks, and the errors that they have."""
    tensors = [
        # The trained factors are in memory, so nothing is left to be computed with another.
        tensor._replace(load=partial(trained.__getitem__, tensor.name), with_another=False)
        if tensor.name in trained
        else tensor
        for tensor in plan.tensors
    ]
    losses = [_loss(subject, pair, trained) for pair in subject.pairs]
    rows = [
        msgspec.structs.replace(row, relative_error=relative_error([loss]))
        for row, loss in zip(plan.rows, losses, strict=True)
    ]
    return plan._replace(tensors=tensors, rows=rows, relative_error=relative_error(losses))


def _loss(subject: Subject, pair: StoredPair, trained: Mapping[str, Array]) -> Loss:
    layout, scale = pair.layout, pair.first.scale
    whole = [(b, a, scale) for b, a in zip(*layout.read(subject.tensors), strict=True)]
    if layout.a_name not in trained:
        new = []  # the module left the adapter
    else:
        rank = len(trained[layout.a_name])
        split = layout._replace(rank=rank).split(trained[layout.b_name], trained[layout.a_name])
        new = [(b, a, -scale) for b, a in zip(*split, strict=True)]
    lost, energy = (float(np.sum(core_singular_values(*stacked(parts)) ** 2)) for parts in (whole + new, whole))
    return Loss(lost, energy)
