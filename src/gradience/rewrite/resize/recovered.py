"""A smaller adapter trained towards the outputs of the whole one, and kept only if held-out texts say that it helped.

The base with the whole adapter is the teacher (`models.distil`). Only A and B of the smaller adapter change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from gradience.adapters.layout import Adapter, Array, all_finite
from gradience.adapters.open import AdapterFiles
from gradience.adapters.pairs import StoredPair
from gradience.errors import AdapterError, OptionError
from gradience.io import Progress
from gradience.io.safetensors import DTYPES, PlannedTensor
from gradience.models import load_model
from gradience.models.inputs import Example, batches, digest_of
from gradience.models.sums import Sums, estimate, sums_of
from gradience.rewrite.options import ResizeOptions
from gradience.rewrite.resize.calibrated import runnable_pairs, split_inputs
from gradience.rewrite.resize.plan import Loss, Plan, relative_error, source_of
from gradience.schema.writing import Apart, Recovery
from gradience.spectral.update import core_singular_values, stacked

if TYPE_CHECKING:
    from gradience.models import LoadedModel

TRAINED_ON: Final = 512  # texts

_BROKEN: Final = "the training left numbers that are not finite"
_WORSE: Final = "the KL on held-out texts did not fall beyond chance"
_FLIPPED: Final = "more predictions changed on held-out texts"


def recovered_plan(
    plan: Plan, files: AdapterFiles, adapter: Adapter, options: ResizeOptions, *, progress: Progress | None = None
) -> Plan:
    """The plan with trained factors if they are better, else with its own; and the record of the training.

    Args:
        plan: the smaller adapter.
        files: the whole adapter's files, in a folder that PEFT can load.
        adapter: the whole adapter.
        options: the base, the texts, the seed.
        progress: called with (steps done, steps in all, the name of the work).

    Raises:
        AdapterError: the base does not fit, the adapter is of a kind that cannot be trained so, or outputs are not
            finite.
        ConfigError: the texts cannot be read, or are too few.
        GradienceError: torch, transformers or PEFT is not installed.
    """
    if options.base is None or options.recover is None:
        raise OptionError("recovery runs the model on texts", advice="give --base MODEL and --recover FILE")
    pairs = runnable_pairs(files, adapter)
    if progress is not None:
        progress(0, 0, "loading the model")
    loaded = load_model(options.base, files.folder)
    from gradience.models.distil import STEPS, distil  # torch, late
    from gradience.models.statistics import lora_layers  # the same

    layers = lora_layers(loaded, list(pairs))
    texts = split_inputs(options.recover, loaded, most=TRAINED_ON, seed=options.seed)
    cut = InMemory(plan, pairs, layers)
    held = _HeldOut(loaded, texts.measured_on)
    before = held.read(cut.state)
    if not (before.finite and held.whole.finite):
        raise AdapterError("the model's outputs are not finite", advice="check the weights of base and adapter")
    stopped = distil(loaded, layers, cut.factors, texts.chosen_by, seed=options.seed, progress=progress)
    made = cut.stored()
    after = held.read(cut.state)
    is_sound = stopped is None and after.finite and all(map(all_finite, made.values()))
    change = held.apart(after, before) if is_sound else None
    reason = _BROKEN if change is None else _why_not(change)
    record = Recovery(
        written=not reason,
        reason=reason,
        steps=STEPS if stopped is None else stopped,
        seed=options.seed,
        inputs=len(texts.chosen_by),
        digest=digest_of(texts.chosen_by),
        held_inputs=len(texts.measured_on),
        held_predictions=int(before.predictions.sum()),
        held_digest=digest_of(texts.measured_on),
        cut_inputs=texts.cut,
        effect_kl=held.effect(),
        before=held.apart(before, held.whole),
        after=held.apart(after, held.whole) if is_sound else None,
        change=change,
    )
    return replace(plan if reason else _with_factors(plan, made, adapter, pairs), recovery=record)


def _why_not(change: Apart) -> str:
    """Why the trained factors are not taken; empty if they are better: less KL, beyond chance, and no more flips."""
    if change.kl.high >= 0.0:
        return _WORSE
    return _FLIPPED if change.flips.value > 0.0 else ""


class InMemory:
    """The factors of a plan beside a model that runs. A module that leaves the adapter has zeros, which stay.

    Args:
        plan: the plan.
        pairs: the whole adapter's pairs, by path.
        layers: PEFT's layers of the whole adapter, by path.
    """

    def __init__(self, plan: Plan, pairs: Mapping[str, StoredPair], layers: Mapping[str, Any]) -> None:
        import torch  # only a recovery needs it

        from gradience.models.states import Factors, factors_of  # the same

        self._layers = layers
        self._tensors = {tensor.name: tensor for tensor in plan.tensors}
        self.factors: dict[str, Factors] = {}
        self._named: dict[str, Any] = {}
        for path, pair in pairs.items():
            own, names = factors_of(layers[path]), (pair.layout.a_name, pair.layout.b_name)
            is_kept = names[0] in self._tensors
            some = (
                [torch.from_numpy(_loaded(self._tensors[name]).astype(np.float32)) for name in names]
                if is_kept
                else [torch.zeros_like(x) for x in own]
            )
            self.factors[path] = Factors(*(torch.nn.Parameter(x.to(y)) for x, y in zip(some, own, strict=True)))
            self._named |= dict(zip(names, self.factors[path], strict=True)) if is_kept else {}

    def state(self) -> AbstractContextManager[None]:
        """A context in which the model has these factors."""
        from gradience.models.states import with_factors  # torch, late

        return with_factors(self._layers, self.factors)

    def stored(self) -> dict[str, Array]:
        """The factors as they are stored, by their tensors' names; those in memory are rounded as well."""
        import torch  # as above

        made = {}
        for name, factor in self._named.items():
            with np.errstate(over="ignore"):
                made[name] = factor.detach().float().cpu().numpy().astype(DTYPES[self._tensors[name].dtype])
            factor.data.copy_(torch.from_numpy(made[name].astype(np.float32)))
        return made


def _loaded(tensor: PlannedTensor) -> Array:
    """A tensor's data in its shape; a copied one loads as bytes."""
    data = np.ascontiguousarray(tensor.load()).reshape(-1)
    return data.view(np.uint8).view(DTYPES[tensor.dtype]).reshape(tensor.shape)


class _HeldOut:
    """The held-out texts, and what the whole adapter says to them."""

    def __init__(self, loaded: LoadedModel, examples: Sequence[Example]) -> None:
        from gradience.models.outputs import Reference, tokens_within  # torch, late

        self._loaded, self._examples = loaded, examples
        self._parts = batches(examples, tokens=tokens_within(loaded), pad=loaded.pad)
        self._reference = Reference(loaded)
        self.whole = self.read(nullcontext)

    def read(self, state: Callable[[], AbstractContextManager[Any]]) -> Sums:
        """Read the model in a state."""
        return sums_of(self._loaded, self._examples, self._parts, reference=self._reference, state=state)

    def effect(self) -> float:
        """The KL of the base from the whole adapter, in nats per prediction."""
        from gradience.models.reading import as_base  # torch, late

        found = self.read(partial(as_base, self._loaded))
        return float(found.kl.sum() / found.predictions.sum())

    @staticmethod
    def apart(one: Sums, other: Sums) -> Apart:
        """How much further one state is from the whole adapter than the other."""
        return Apart(
            kl=estimate(one.kl - other.kl, one.predictions),
            flips=estimate(one.flips - other.flips, one.predictions),
            loss=estimate(one.loss - other.loss, one.known) if one.known.any() else None,
        )


def _with_factors(plan: Plan, made: Mapping[str, Array], adapter: Adapter, pairs: Mapping[str, StoredPair]) -> Plan:
    """The plan with other factors of its own ranks, and the errors that they have."""
    tensors = [
        tensor._replace(load=partial(made.__getitem__, tensor.name), with_another=False)
        if tensor.name in made
        else tensor
        for tensor in plan.tensors
    ]
    losses = [_loss(adapter, pair, made) for pair in pairs.values()]
    rows = [
        msgspec.structs.replace(row, relative_error=relative_error([loss]))
        for row, loss in zip(plan.rows, losses, strict=True)
    ]
    return replace(plan, tensors=tensors, rows=rows, relative_error=relative_error(losses))


def _loss(adapter: Adapter, pair: StoredPair, made: Mapping[str, Array]) -> Loss:
    layout, scale = pair.layout, pair.first.scale
    whole = [(b, a, scale) for b, a in zip(*layout.read(source_of(adapter)), strict=True)]
    if layout.a_name not in made:
        new = []  # the module left the adapter
    else:
        rank = len(made[layout.a_name])
        split = layout._replace(rank=rank).split(made[layout.b_name], made[layout.a_name])
        new = [(b, a, -scale) for b, a in zip(*split, strict=True)]
    lost, energy = (float(np.sum(core_singular_values(*stacked(parts)) ** 2)) for parts in (whole + new, whole))
    return Loss(lost, energy)
