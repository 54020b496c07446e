"""Resizing an adapter by the effect of its pieces on the model's outputs, measured on inputs without labels.

A piece is a rank-one part of a module's update (`pieces`). One forward and backward pass over some inputs estimates
each piece's effect (`models.statistics`). The pieces of all modules with the largest effect per parameter are kept.
The result is measured on other inputs: KL divergence and flipped predictions against the original adapter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np

from gradience.adapters.layout import Adapter
from gradience.adapters.open import CONFIG_NAME, AdapterFiles
from gradience.adapters.pairs import StoredPair
from gradience.adapters.traits import traits_of
from gradience.errors import AdapterError, ConfigError, OptionError
from gradience.io import PathLike, Progress
from gradience.io.atomic import scratch_folder
from gradience.models import LoadedModel, load_model
from gradience.models.inputs import Example, batches, digest_of, read_inputs
from gradience.rewrite.options import ResizeOptions, Target
from gradience.rewrite.resize.cut import Job
from gradience.rewrite.resize.pieces import (
    Adapted,
    Candidate,
    Kept,
    Order,
    Pieces,
    combined,
    first_pieces,
    gates_of,
    measuring,
    ordered,
    pieces_of,
    predicted_by_module,
    predicted_kl,
    share_left_out,
    shortest,
    within,
)
from gradience.rewrite.resize.plan import Loss, Plan, plan_of_jobs, resizable_pairs, sizes_of, source_of
from gradience.schema.writing import Calibration, Limit
from gradience.spectral.batch import Maps
from gradience.spectral.grams import Floats

if TYPE_CHECKING:
    from gradience.models.outputs import Divergence

CHOSEN_BY: Final = 128  # inputs: with 96 the KL was .44 of plain SVD's on MiniLM at r = 16, with 32 it was .54
MEASURED_ON: Final = 64  # held-out inputs, if each has many predictions
MEASURED_ROWS: Final = 256  # held-out inputs, if each has one prediction
LEAST: Final = 24  # different inputs: choosing by 8 gained nothing, and 8 must be left to measure on

OF_EFFECT: Final = 0.05  # heuristic: of the adapter's own KL from the base, so that little of a small effect is lost

BY_WEIGHTS: Final = "resize it by its weights, without --calibrate and --recover"

_OF_PEFT: Final = ("adapter_model.safetensors", "adapter_model.bin")
_ROUNDS: Final = 8  # measurements that a search takes at most, for the progress bar
_BACKWARD: Final = 2  # cost of a forward and backward pass in forward passes, for the progress bar


def without_modules(kept: Collection[str], of_model: Iterable[str]) -> dict[str, Any]:
    """The fields of a LoraConfig that target exactly the modules kept.

    PEFT's rule for a list is that a name equals an entry, or ends with a dot and an entry (tuners_utils.py,
    check_target_module_exists). If that matches no other module, the result is a list of whole paths, which every
    inference engine reads. Otherwise it is one regular expression, which PEFT matches against whole names. PEFT allows
    no layers_to_transform beside an expression.

    Args:
        kept: paths of modules of the base.
        of_model: the paths of all its modules.
    """
    wanted = set(kept)
    others = [name for name in of_model if name not in wanted]
    if not any(tail in wanted for name in others for tail in _tails(name)):
        return {"target_modules": sorted(wanted)}
    pattern = "|".join(re.escape(name) for name in sorted(wanted))
    return {"target_modules": f"(?:{pattern})", "layers_to_transform": None, "layers_pattern": None}


def _tails(name: str) -> Iterable[str]:
    at = name.find(".")
    while at >= 0:
        yield name[at + 1 :]
        at = name.find(".", at + 1)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """An adapter with the statistics of its pieces and a loaded model, from which plans of any size can be made."""

    adapter: Adapter
    options: ResizeOptions
    model: Adapted
    pairs: Mapping[str, StoredPair]
    pieces: Mapping[str, Pieces]
    candidates: Mapping[str, Candidate]
    order: Order
    predictions: int
    inputs: Split
    measure: Callable[[Kept], Divergence]


def calibrate_adapter(
    files: AdapterFiles, adapter: Adapter, options: ResizeOptions, *, progress: Progress | None = None
) -> Calibrated:
    """Load the model, and compute the statistics of the adapter's pieces.

    Args:
        files: the adapter's files, in a folder that PEFT can load.
        adapter: the adapter in these files.
        options: the base, the inputs, the seed.
        progress: called with (units done, units in all, the name of the step).

    Raises:
        AdapterError: the base does not fit, or the adapter is of a kind that cannot be calibrated.
        ConfigError: the inputs cannot be read, or are too few.
        GradienceError: torch, transformers or PEFT is not installed.
    """
    if options.base is None or options.inputs is None:
        raise OptionError("calibration runs the model on inputs", advice="give --base MODEL and --calibrate FILE")
    pairs = runnable_pairs(files, adapter)
    report = progress or (lambda _done, _total, _name: None)
    report(0, 0, "loading the model")
    loaded = load_model(options.base, files.folder)
    from gradience.models.outputs import tokens_within  # torch, which only a calibration needs
    from gradience.models.statistics import lora_layers, statistics  # the same

    adapted = Adapted(loaded, lora_layers(loaded, list(pairs)))
    inputs = split_inputs(
        options.inputs, loaded, most=CHOSEN_BY, seed=options.seed, token_ids=options.calibrate is None
    )
    units = _BACKWARD * len(inputs.chosen_by) + _ROUNDS * len(inputs.measured_on)
    with scratch_folder() as folder:
        found = statistics(
            loaded,
            adapted.layers,
            batches(inputs.chosen_by, tokens=tokens_within(loaded), pad=loaded.pad),
            seed=options.seed,
            folder=folder,
            progress=lambda done, _total, name: report(_BACKWARD * done, units, name),
        )
        pieces, candidates = {}, {}
        for path, pair in pairs.items():
            pieces[path] = pieces_of(*found.moments[path])
            gates = gates_of(pieces[path], found.gradients(path))
            candidates[path] = Candidate(gates, pair.layout.params_per_rank, _least(adapter, pair))
    done = _BACKWARD * len(inputs.chosen_by)
    return Calibrated(
        adapter=adapter,
        options=options,
        model=adapted,
        pairs=pairs,
        pieces=pieces,
        candidates=candidates,
        order=ordered(candidates),
        predictions=found.predictions,
        inputs=inputs,
        measure=measuring(
            adapted, pieces, inputs.measured_on, lambda n: report(min(done + n, units - 1), units, "measuring")
        ),
    )


def plan_by_outputs(found: Calibrated, target: Target, *, dtype: str | None = None) -> Plan:
    """The plan of the new file from the pieces that the criterion keeps; `dtype` is that of the new factors.

    Raises:
        AdapterError: the budget is below the smallest adapter that can be written.
    """
    kept = kept_for(found, target, dtype=dtype)
    jobs, losses = [], []
    for path, pair in found.pairs.items():
        gram_a, gram_b = _grams(found.adapter, pair)
        maps = _maps(found.pieces[path], kept[path], gram_a, gram_b)
        jobs.append(Job(pair, len(kept[path]), [None], maps=maps))
        losses.append([_loss(found, path, kept[path], gram_a, gram_b)])
    plan = plan_of_jobs(source_of(found.adapter), jobs, losses, dtype=dtype)
    costs = predicted_by_module(found.candidates, kept, found.predictions)
    rows = [
        msgspec.structs.replace(row, kl_predicted=costs[path]) for row, path in zip(plan.rows, found.pairs, strict=True)
    ]
    record = _record(found, kept)
    if target.criterion == "kl":
        record = msgspec.structs.replace(record, bound_by=_bound_by(found, target))
    return replace(plan, rows=rows, fields=_fields(found, kept), calibration=record)


class Split(NamedTuple):
    """The inputs to choose or train by, the held-out inputs to measure on, and how many inputs were truncated."""

    chosen_by: list[Example]
    measured_on: list[Example]
    cut: int


def split_inputs(place: PathLike, loaded: LoadedModel, *, most: int, seed: int, token_ids: bool = False) -> Split:
    """Read the inputs and split them; if there are fewer than wanted, a third of them is held out to measure on.

    Args:
        place: the file.
        loaded: the model.
        most: the inputs that are not held out, at most.
        seed: seed of the choice of inputs.
        token_ids: whether the file holds token ids.

    Raises:
        ConfigError: the file cannot be read, or holds too few different inputs.
    """
    measured = MEASURED_ROWS if loaded.task == "sequence-classification" else MEASURED_ON
    found = read_inputs(place, loaded, most=most + measured, seed=seed, token_ids=token_ids)
    different = list({example.ids: example for example in reversed(found.examples)}.values())[::-1]
    if len(different) < LEAST:
        raise ConfigError(
            f"{place} has {len(different)} different inputs that can be used, expected at least {LEAST}",
            advice=f"{most + measured} are used where there are so many; they need no labels",
        )
    count = min(most, math.ceil(len(different) * 2 / 3))
    return Split(different[:count], different[count:], found.cut)


def runnable_pairs(files: AdapterFiles, adapter: Adapter) -> dict[str, StoredPair]:
    """The adapter's pairs by path, for a model that runs with it.

    Raises:
        AdapterError: PEFT would not load these files, or the adapter is of a kind that cannot be resized so.
    """
    if adapter.format != "peft":
        raise AdapterError(
            f"the adapter is in {adapter.format}'s format, which PEFT does not load",
            advice="'gradience convert' makes a PEFT adapter of it",
        )
    if files.config != files.folder / CONFIG_NAME or files.weights.name not in _OF_PEFT:
        raise AdapterError(
            f"PEFT loads {CONFIG_NAME} and {_OF_PEFT[0]} of one folder, and these are {files.config} and "
            f"{files.weights}",
            advice="to run the model, put both into a folder under these names",
        )
    if traits_of(adapter).dora:
        raise AdapterError(
            "DoRA's magnitudes are relative to norm(W + s B A), and would have to follow each change of B A",
            advice=BY_WEIGHTS,
        )
    pairs = {pair.path: pair for pair in resizable_pairs(adapter)}
    experts = next((path for path, pair in pairs.items() if pair.first.expert is not None), None)
    if experts is not None:
        raise AdapterError(
            f"{experts} is a parameter of experts: their factors are multiplied before any token meets them, so that "
            "there is no A x to observe",
            advice=BY_WEIGHTS,
        )
    return pairs


def _least(adapter: Adapter, pair: StoredPair) -> int:
    """The smallest rank that a module may get: 0 if the module can leave the adapter, else 1.

    It cannot leave if the file holds another tensor of it, such as a bias, which would be lost.
    """
    layout = pair.layout
    stem = layout.a_name.partition(".lora_")[0] + "."
    return int(any(name.startswith(stem) for name in adapter.tensors if name not in {layout.a_name, layout.b_name}))


def _grams(adapter: Adapter, pair: StoredPair) -> tuple[Floats, Floats]:
    """The Gram matrices A A^T and B^T B of a pair's factors as stored, in float64."""
    b, a = (factor[0].astype(np.float64) for factor in pair.layout.read(source_of(adapter)))
    return a @ a.T, b.T @ b


def kept_for(found: Calibrated, target: Target, *, dtype: str | None = None) -> Kept:
    """The pieces that the criterion keeps; `dtype`, that of the new factors, affects a size in megabytes.

    Raises:
        AdapterError: the budget is below the smallest adapter that can be written.
    """
    order = found.order
    if target.criterion == "kl":
        return _nearest(found, target)
    if target.criterion == "max_mb":
        sizes = sizes_of(found.adapter, list(found.pairs.values()), dtype)
        each = {path: sizes.bytes_per_rank(pair) for path, pair in found.pairs.items()}
        budget, unit = sizes.budget(target.value), "bytes"
    else:
        each = {path: pair.layout.params_per_rank for path, pair in found.pairs.items()}
        budget, unit = int(target.value), "parameters"
        if target.criterion == "rank":
            budget = sum(cost * min(budget, found.pairs[path].layout.rank) for path, cost in each.items())
    kept = within(order, budget, each)
    if kept is None:
        raise AdapterError(
            f"the budget leaves {budget} {unit}, and the least that can be written needs more",
            advice="give a larger one",
        )
    return kept


def _nearest(found: Calibrated, target: Target) -> Kept:
    """The fewest pieces whose outputs are within the bounds of KL and flips from the whole adapter's."""
    return first_pieces(found.order, shortest(found.order, lambda count: not _passed(found, target, count)))


def _passed(found: Calibrated, target: Target, count: int) -> list[Limit]:
    """The limits that the first pieces do not keep."""
    seen = found.measure(first_pieces(found.order, count))
    limits: dict[Limit, bool] = {
        "kl": seen.kl > target.value,
        "effect": seen.kl > OF_EFFECT * _effect(found).kl,
        "flips": seen.flips > target.flips,
    }
    return [name for name, is_passed in limits.items() if is_passed]


def _bound_by(found: Calibrated, target: Target) -> list[Limit]:
    """The limits that the largest size that was refused does not keep; the search again, on what it measured."""
    refused: dict[int, list[Limit]] = {}

    def holds(count: int) -> bool:
        refused[count] = _passed(found, target, count)
        return not refused[count]

    shortest(found.order, holds)
    return next((refused[count] for count in sorted(refused, reverse=True) if refused[count]), [])


def _effect(found: Calibrated) -> Divergence:
    """The divergence of the model without any piece from the model with all: what the adapter's factors do."""
    return found.measure({path: [] for path in found.pairs})


def _maps(pieces: Pieces, kept: Sequence[int], gram_a: Floats, gram_b: Floats) -> Maps:
    """The maps to the new factors B' = B left and A' = right A, in which each piece's two vectors are equally long."""
    left, right = pieces.left[:, kept], pieces.right[kept]
    size_b = np.sqrt(np.maximum(np.einsum("ik,ij,jk->k", left, gram_b, left), 0.0))
    size_a = np.sqrt(np.maximum(np.einsum("ki,ij,kj->k", right, gram_a, right), 0.0))
    has_both = (size_a > 0.0) & (size_b > 0.0)
    turn = np.sqrt(np.where(has_both, size_a, 1.0) / np.where(has_both, size_b, 1.0))
    return Maps(left * turn, right / turn[:, None])


def _loss(found: Calibrated, path: str, kept: Sequence[int], gram_a: Floats, gram_b: Floats) -> Loss:
    pair = found.pairs[path]
    energy = pair.first.scale**2 * float(np.einsum("ij,ji->", gram_b, gram_a))
    if len(kept) == pair.layout.rank:
        return Loss(0.0, energy)  # the pair's tensors are copied
    share = share_left_out(combined(found.pieces[path], kept), gram_a, gram_b) or 0.0
    return Loss(share**2 * energy, energy)


def _fields(found: Calibrated, kept: Kept) -> dict[str, Any]:
    """The config's fields that exclude the modules without any piece left; none if all modules keep one."""
    if all(kept.values()):
        return {}
    model = found.model.loaded.model.base_model.model
    names = [name.replace(".base_layer", "") for name, _ in model.named_modules() if ".lora_" not in name]
    return without_modules([path for path, pieces in kept.items() if pieces], names)


def _record(found: Calibrated, kept: Kept) -> Calibration:
    measured, effect = found.measure(kept), _effect(found)
    return Calibration(
        seed=found.options.seed,
        inputs=len(found.inputs.chosen_by),
        predictions=found.predictions,
        digest=digest_of(found.inputs.chosen_by),
        kl_predicted=predicted_kl(found.candidates, kept, found.predictions),
        kl=measured.kl,
        flips=measured.flips,
        effect_kl=effect.kl,
        effect_flips=effect.flips,
        measured_inputs=len(found.inputs.measured_on),
        measured_predictions=measured.predictions,
        measured_digest=digest_of(found.inputs.measured_on),
        cut_inputs=found.inputs.cut,
    )
