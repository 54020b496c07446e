"""The verb: adapters' files in, one adapter out, and what that cost in each module."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from gradience.errors import AdapterError
from gradience.merge.config import merged_config, merged_patterns
from gradience.merge.heads import heads_of, side_named
from gradience.merge.obstacles import refuse
from gradience.merge.pieces import DTYPE_NAMES, Progress, common_dtype, merged_pieces, ranks_of, tensors_of
from gradience.merge.recipe import recipe_of
from gradience.merge.report import Decided, provenance, report_of
from gradience.merge.slots import slots_of
from gradience.opened import PathLike
from gradience.rewrite.folder import write_adapter
from gradience.rewrite.place import refuse_place
from gradience.rewrite.several import matched, open_sides
from gradience.rewrite.spool import Spool
from gradience.schema.merge import MergeMethod, MergeReport

__all__ = ["Dtype", "merge_adapters"]

Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]


def merge_adapters(
    paths: Sequence[PathLike],
    out: PathLike | None = None,
    *,
    method: MergeMethod = "linear",
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
    heads_from: str | None = None,
    dtype: Dtype | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Merge plain PEFT LoRA adapters of one base model into one, and return what that cost in each module.

    dW_i = s_i B_i A_i is adapter i's update, zero where it has no such module; w_i is its weight.

    Args:
        paths: two adapters or more. They are not changed.
        out: the folder to write; None computes the report and writes nothing.
        method: `linear`: S = sum w_i dW_i at the rank that S has. `cat`: S with the factors side by side, rank
            sum r_i. `svd`: the best approximation of S of the rank. `ties` (arXiv 2306.01708): the mean of w_i dW_i
            over the adapters that agree with the sign of their sum, entry by entry, after all but the largest
            entries were set to zero. `dare_linear`, `dare_ties` (arXiv 2311.03099): entries dropped at random and
            the rest divided by the density, then summed, or merged as by TIES. These three are dense, one module
            in memory at a time, and cut to the best rank.
        weights: one per adapter; without it 1/n for sums, and 1 for the means of `ties` and `dare_ties`.
        rank: of `svd`, `ties` and `dare_*`; without it the largest rank that an adapter has in the module.
        density: the share of entries that is kept: 0.2 for `ties`, as in its paper; DARE has no default.
        seed: of DARE's masks.
        heads_from: whose heads, biases and token rows to take where they differ: A, B, ..., a name or a path.
        dtype: of the factors; without it the adapters' own if they have one in common, else float32.
        force: replace `out` if it is there, once the new folder is complete.
        progress: called with (modules done, in all, the module's name).

    Raises:
        AdapterError: an adapter cannot be read, is no plain LoRA, or does not fit the others; the message says why.
        OutputError: `out` exists, or cannot be written.
        ValueError: an option is out of range, or does not go with the method.
    """
    recipe = recipe_of(len(paths), method, weights=weights, rank=rank, density=density, seed=seed)
    sides = open_sides(paths)
    if out is not None:
        refuse_place(Path(out), [side.files for side in sides], force=force)
    refuse(sides)
    found = matched(sides, overlapping=False)
    if found.odd:
        raise AdapterError(
            f"{found.odd[0]} is of different shapes in these adapters", advice="are they of one base model?"
        )
    heads = heads_of(sides, None if heads_from is None else side_named(sides, heads_from))
    slots = slots_of(sides, found.rows)
    stored = DTYPE_NAMES[dtype] if dtype is not None else common_dtype(sides, slots)
    with tempfile.TemporaryDirectory(prefix="gradience-") as folder:
        merged = merged_pieces(slots, recipe, stored, Spool(Path(folder)), progress)
        ranks = ranks_of(slots, merged, recipe)
        decided = Decided(recipe, stored, ranks, merged_patterns(ranks), heads)
        report = report_of(sides, found, slots, merged, decided)
        if out is not None:
            modules = list(dict.fromkeys(slot.path for slot in slots if not slot.is_parameter))
            tensors = [*heads.carried, *tensors_of(slots, merged, ranks, stored)]
            write_adapter(
                Path(out),
                tensors=sorted(tensors, key=lambda tensor: tensor.name),
                config=merged_config(sides, decided.patterns, heads, modules),
                provenance=provenance(sides, report),
                force=force,
            )
            report = msgspec.structs.replace(report, out=str(out))
    return report
