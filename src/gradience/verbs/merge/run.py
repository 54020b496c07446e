"""The verb `merge`: merge several adapters into one, and report the error in each module.

The merged config is the first adapter's, with new ranks, scale 1 everywhere, and targets that match exactly the modules
of the file. Heads, biases and token rows are whole tensors, which have no sum. They are copied if the adapters agree on
them, or from the adapter that was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Unpack

import msgspec
import numpy as np

from gradience.adapters.patterns import Patterns, patterns_of
from gradience.errors import AdapterError, few
from gradience.io import PathLike, Progress
from gradience.io.atomic import scratch_folder
from gradience.io.safetensors import PlannedTensor, TensorSource, copied
from gradience.rewriting.sides import Matching, StoredAdapter, described, matched, open_sides, why_not_together
from gradience.rewriting.writing import STORED, ArraySpool, NewAdapter, destination, provenance_of
from gradience.schema.audit import Role
from gradience.schema.merge import MERGE_SCHEMA_ID, MergedModule, MergeReport
from gradience.verbs.merge.methods import Recipe, recipe_of
from gradience.verbs.merge.options import MergeKeywords, MergeOptions
from gradience.verbs.merge.pairs import (
    MergedFactors,
    MergedPair,
    common_dtype,
    merged_modules,
    merged_pairs,
    ranks_of,
    refuse,
    tensors_of,
)

_RECORDED = ("method", "weights", "density", "seed", "rank", "heads_from", "dtype")  # options kept in the provenance

_DEFAULTS: Final = MergeOptions()
_WHOLE: Final[frozenset[Role]] = frozenset({"full_module", "bias", "base_copy", "token_rows"})
_FIELDS: Final = ("modules_to_save", "bias", "trainable_token_indices")
_NONE: Final = {"bias": "none"}
_SHOWN: Final = 4

_NARROWING: Final = ("layers_to_transform", "layers_pattern", "exclude_modules")
_INITIAL: Final[dict[str, Any]] = {  # values for fields of an initialisation, which PEFT would otherwise repeat
    "loftq_config": {},
    "eva_config": None,
    "corda_config": None,
    "lora_ga_config": None,
}


def merge_adapters(
    paths: Sequence[PathLike],
    out: PathLike | None = None,
    *,
    options: MergeOptions = _DEFAULTS,
    force: bool = False,
    progress: Progress | None = None,
    **keywords: Unpack[MergeKeywords],
) -> MergeReport:
    """Merge plain PEFT LoRA adapters of one base model into one, and return a report with the error in each module.

    dW_i = s_i B_i A_i is adapter i's update (zero if it lacks the module), and w_i is its weight.

    Args:
        paths: two adapters or more. They are not changed.
        out: the folder to write; None computes the report and writes nothing.
        options: the method (TIES: arXiv 2306.01708, DARE: arXiv 2311.03099) and what it takes; S = sum w_i dW_i.
        force: replace `out` if it exists, once the new folder is complete.
        progress: called with (modules done, modules in all, the module's name).
        keywords: single options by name, such as `method="ties"`; they win over `options`.

    Raises:
        AdapterError: an adapter cannot be read, is not a plain LoRA, or does not fit the others; the message says why.
        OptionError: an option is out of range, or does not go with the method.
        OutputError: `out` exists, or cannot be written.
        TypeError: no option has such a name.
    """
    options = options.completed(keywords)
    recipe = recipe_of(len(paths), options)
    return merge_sides(open_sides(paths), recipe, options, out, force=force, progress=progress)


def merge_sides(
    sides: Sequence[StoredAdapter],
    recipe: Recipe,
    options: MergeOptions,
    out: PathLike | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """As `merge_adapters`, of adapters that are open, by a recipe that was made for them."""
    read = [path for side in sides for path in (side.files.config, *side.adapter.weights)]
    place = destination(out, [side.files for side in sides], read, force=force)
    refuse(sides)
    matching = matched(sides, overlapping=False)
    if matching.odd:
        raise AdapterError(
            f"{matching.odd[0]} is of different shapes in these adapters", advice="are they of one base model?"
        )
    if not options.force_mix and (why := why_not_together(sides, matching)) is not None:
        raise AdapterError(f"cannot merge these adapters: {why}", advice="--force-mix merges them nevertheless")
    heads = heads_of(sides, None if options.heads_from is None else side_named(sides, options.heads_from))
    pairs = merged_pairs(sides, matching.rows)
    stored = STORED[options.dtype] if options.dtype is not None else common_dtype(sides, pairs)
    with scratch_folder() as folder:
        merged = merged_modules(pairs, recipe, stored, ArraySpool(folder), progress)
        ranks = ranks_of(pairs, merged, recipe)
        decided = _MergeDecisions(recipe, stored, ranks, patterns_of(ranks, dict(ranks)), heads)  # alpha = r: scale 1
        report = _report(sides, matching, pairs, merged, decided)
        if place is None:
            return report
        modules = list(dict.fromkeys(pair.path for pair in pairs if not pair.is_parameter))
        tensors = [*heads.carried, *tensors_of(pairs, merged, ranks, stored)]
        config = merged_config(sides, decided.patterns, heads, modules)
        chosen = {name: getattr(report, name) for name in _RECORDED}
        new = NewAdapter(sorted(tensors, key=lambda tensor: tensor.name), config)
        place.write(new, partial(provenance_of, "merge", place.sources, chosen, report))
    return msgspec.structs.replace(report, out=str(out))


class _MergeDecisions(NamedTuple):
    """The decisions that both the report and the files follow."""

    recipe: Recipe
    stored: str
    ranks: dict[str, int]
    patterns: Patterns
    heads: Heads


def _report(
    sides: Sequence[StoredAdapter],
    matching: Matching,
    pairs: Sequence[MergedPair],
    merged: Sequence[Sequence[MergedFactors]],
    decided: _MergeDecisions,
) -> MergeReport:
    recipe, patterns, heads = decided.recipe, decided.patterns, decided.heads
    modules = [module for some in merged for module in some]
    losses = [module.losses for module in modules]
    rows = [_row(m, decided.ranks[pair.path]) for pair, some in zip(pairs, merged, strict=True) for m in some]
    return MergeReport(
        schema=MERGE_SCHEMA_ID,
        adapters=[described(side, None) for side in sides],
        weights=list(recipe.weights),
        method=recipe.method,
        density=recipe.density,
        seed=recipe.seed if recipe.method.startswith("dare") else None,
        rank=recipe.rank,
        heads_from=heads.chosen,
        dtype=decided.stored,
        r=patterns.r,
        lora_alpha=float(patterns.lora_alpha),
        rank_pattern=patterns.rank_pattern,
        alpha_pattern=patterns.alpha_pattern,
        relative_error=_relative(sum(x.left_out for x in losses), sum(x.target for x in losses)),
        distance_from_sum=_relative(sum(x.from_plain for x in losses), sum(x.plain for x in losses)),
        params=sum(pair.layout.params_per_rank * decided.ranks[pair.path] for pair in pairs),
        largest_dense_bytes=max(module.dense_bytes for module in modules),
        modules=rows,
        only_in=matching.partial,
        carried=[tensor.name for tensor in heads.carried],
        dropped=heads.dropped,
        notes=_notes(sides),
    )


def _row(module: MergedFactors, rank: int) -> MergedModule:
    losses = module.losses
    return MergedModule(
        name=module.name,
        kind=module.kind,
        ranks=module.ranks,
        rank=rank,
        relative_error=_relative(losses.left_out, losses.target),
        distance_from_sum=_relative(losses.from_plain, losses.plain),
    )


def _relative(lost: float, energy: float) -> float | None:
    return math.sqrt(max(lost, 0.0) / energy) if energy > 0.0 else None


def _notes(sides: Sequence[StoredAdapter]) -> list[str]:
    notes = []
    bases = sorted({str(side.adapter.config.base_model_name_or_path) for side in sides})
    if len(bases) > 1:
        notes.append(f"the configs name different base models ({', '.join(bases)}): the first one's is kept")
    tasks = {side.adapter.config.task_type for side in sides}
    if len(tasks) > 1:
        notes.append("the configs name different task types: the first one's is kept")
    if any(side.adapter.config.use_rslora for side in sides):
        notes.append("rsLoRA's scale is in the factors: the merged adapter has alpha = r and use_rslora off")
    return notes


class Heads(NamedTuple):
    """The whole tensors to copy, the config's fields about them, the names left out, and the chosen adapter's name."""

    carried: list[PlannedTensor]
    fields: dict[str, Any]
    dropped: list[str]
    chosen: str | None = None


def side_named(sides: Sequence[StoredAdapter], name: str) -> StoredAdapter:
    """Return the adapter that `name` identifies by its place (A, B, ... or 1, 2, ...), its name or its path.

    Raises:
        AdapterError: it identifies none.
    """
    for place, side in enumerate(sides):
        if name in {side.name, str(side.path), str(place + 1), chr(ord("A") + place)}:
            return side
    known = ", ".join(f"{chr(ord('A') + place)} ({side.name})" for place, side in enumerate(sides))
    raise AdapterError(f"--heads-from {name!r} names none of the adapters", advice=f"give one of {known}")


def heads_of(sides: Sequence[StoredAdapter], chosen: StoredAdapter | None) -> Heads:
    """Return the whole tensors to copy: the chosen adapter's, or else those of all adapters.

    Raises:
        AdapterError: none was chosen, and two adapters hold different tensors under one name.
    """
    if chosen is not None:
        names = _whole(chosen)
        left = sorted({name for side in sides for name in _whole(side)} - set(names))
        source = chosen.tensors
        fields = {field: chosen.raw.get(field) or _NONE.get(field) for field in _FIELDS}
        return Heads([copied(source, name) for name in names], fields, left, chosen.name)
    holders: dict[str, StoredAdapter] = {}
    differing = []
    for side in sides:
        for name in _whole(side):
            first = holders.setdefault(name, side)
            if first is not side and not _equal(first.tensors, side.tensors, name):
                differing.append(name)
    if differing:
        raise AdapterError(
            f"the adapters hold different values of {few(differing, _SHOWN)}: whole tensors (a head, a bias, token "
            "rows) have no sum",
            advice="take one adapter's with --heads-from A (or B, ...)",
        )
    return Heads([copied(side.tensors, name) for name, side in holders.items()], _agreed(sides), [])


def _whole(side: StoredAdapter) -> list[str]:
    return [name for name, role in side.adapter.roles.items() if role in _WHOLE]


def _equal(one: TensorSource, two: TensorSource, name: str) -> bool:
    first, second = one.tensors[name], two.tensors[name]
    # By their bytes: as numbers, NaN would not equal itself.
    return (first.dtype, first.shape) == (second.dtype, second.shape) and np.array_equal(one.raw(name), two.raw(name))


def _agreed(sides: Sequence[StoredAdapter]) -> dict[str, Any]:
    """Return the config's fields about whole tensors: the only value given, or for modules_to_save the union.

    Raises:
        AdapterError: the adapters give two values of another field.
    """
    fields: dict[str, Any] = {}
    for field in _FIELDS:
        values = [value for side in sides if (value := side.raw.get(field)) not in (None, [], _NONE.get(field))]
        if field == "modules_to_save" and values:
            fields[field] = sorted({name for value in values for name in value})
        elif any(value != values[0] for value in values):
            raise AdapterError(
                f"the adapters disagree on {field}: {values[0]!r} and another",
                advice="take one adapter's with --heads-from A (or B, ...)",
            )
        else:
            fields[field] = values[0] if values else _NONE.get(field)
    return fields


def merged_config(
    sides: Sequence[StoredAdapter], patterns: Patterns, heads: Heads, modules: Sequence[str]
) -> dict[str, Any]:
    """Return the merged adapter's `adapter_config.json`: the first adapter's, with the fields that the merge decides.

    `modules` are the paths of layers, not of parameters. They become the targets if shorter names would match others.
    """
    first = sides[0].raw
    return {
        **first,
        **patterns._asdict(),
        **{field: value for field, value in _INITIAL.items() if first.get(field)},
        **heads.fields,
        **_targets(sides, modules),
        # All that have some have the same, or `obstacles_between` would have refused them.
        "target_parameters": next((one for side in sides if (one := side.raw.get("target_parameters"))), None),
        "peft_type": "LORA",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _targets(sides: Sequence[StoredAdapter], modules: Sequence[str]) -> dict[str, Any]:
    """Return the fields that choose modules, as far as they change.

    If the adapters' target lists differ, their union matches the modules of all. If targets are patterns and differ, or
    if the fields that narrow them differ, the modules are listed one by one.
    """
    raw = [side.raw for side in sides]
    narrowed = [[one.get(field) or None for field in _NARROWING] for one in raw]
    targets = [one.get("target_modules") for one in raw]
    if all(one == narrowed[0] for one in narrowed):
        if all(one == targets[0] for one in targets):
            return {}
        if all(isinstance(one, list) for one in targets):
            return {"target_modules": sorted({name for one in targets for name in one or ()})}
    return {**dict.fromkeys(_NARROWING), "target_modules": list(modules)}
