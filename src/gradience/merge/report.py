"""What a merge came to: the report, and the record that is written beside the adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from gradience.merge.heads import Heads
from gradience.merge.methods import Recipe
from gradience.merge.pieces import Piece
from gradience.merge.slots import Slot
from gradience.policy.pattern_keys import Patterns
from gradience.rewrite.folder import provenance_of
from gradience.rewrite.several import Matching, Side, described
from gradience.schema.merge import MERGE_SCHEMA_ID, MergedModule, MergeReport
from gradience.schema.provenance import ModuleChange, Provenance

__all__ = ["Decided", "provenance", "report_of"]


class Decided(NamedTuple):
    """What is the same for the report and the files."""

    recipe: Recipe
    stored: str
    ranks: dict[str, int]
    patterns: Patterns
    heads: Heads


def report_of(
    sides: Sequence[Side],
    found: Matching,
    slots: Sequence[Slot],
    merged: Sequence[Sequence[Piece]],
    decided: Decided,
) -> MergeReport:
    """Return what the merge is, and what it costs."""
    recipe, patterns, heads = decided.recipe, decided.patterns, decided.heads
    pieces = [piece for some in merged for piece in some]
    rows = [_row(piece, decided.ranks[slot.path]) for slot, some in zip(slots, merged, strict=True) for piece in some]
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
        relative_error=_relative(sum(p.losses.left_out for p in pieces), sum(p.losses.target for p in pieces)),
        distance_from_sum=_relative(sum(p.losses.from_plain for p in pieces), sum(p.losses.plain for p in pieces)),
        params=sum(math.prod(shape) for slot in slots for shape in slot.shapes(decided.ranks[slot.path])),
        largest_dense_bytes=max(piece.dense_bytes for piece in pieces),
        modules=rows,
        only_in=found.partial,
        carried=[tensor.name for tensor in heads.carried],
        dropped=heads.dropped,
        notes=_notes(sides),
    )


def _row(piece: Piece, rank: int) -> MergedModule:
    losses = piece.losses
    return MergedModule(
        name=piece.name,
        kind=piece.kind,
        ranks=piece.ranks,
        rank=rank,
        relative_error=_relative(losses.left_out, losses.target),
        distance_from_sum=_relative(losses.from_plain, losses.plain),
    )


def _relative(lost: float, energy: float) -> float | None:
    return math.sqrt(max(lost, 0.0) / energy) if energy > 0.0 else None


def _notes(sides: Sequence[Side]) -> list[str]:
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


def provenance(sides: Sequence[Side], report: MergeReport) -> Provenance:
    """Return the record of the merge; the adapters' files are hashed."""
    files = [path for side in sides for path in (side.files.config, *side.adapter.weights)]
    options = {
        "method": report.method,
        "weights": report.weights,
        "density": report.density,
        "seed": report.seed,
        "rank": report.rank,
        "heads_from": report.heads_from,
        "dtype": report.dtype,
    }
    return provenance_of(
        "merge",
        files,
        options=options,
        modules=[
            ModuleChange(
                name=row.name,
                rank_before=sum(row.ranks),
                rank_after=row.rank,
                relative_error=_at_most_one(row.relative_error),
            )
            for row in report.modules
        ],
        relative_error=_at_most_one(report.relative_error),
        notes=report.notes,
    )


def _at_most_one(value: float | None) -> float | None:
    return None if value is None else min(1.0, value)
