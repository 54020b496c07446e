"""The plan of a resized adapter, made before a byte is written: tensors, config, and the error of each module."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from gradience.adapters.layout import Module
from gradience.adapters.patterns import Patterns, alpha_for, patterns_of
from gradience.io.safetensors import PlannedTensor
from gradience.rewrite.resize.factors import Cut, Loss, planned_file
from gradience.rewrite.resize.subject import Subject
from gradience.schema.writing import ResizedModule

_RUN_AGAIN: Final = ("orthogonal", "mica")  # initialisations that PEFT runs again on loading


class ResizePlan(NamedTuple):
    """The tensors of the new file, its ranks and the errors; `relative_error` is None if every update is zero."""

    tensors: list[PlannedTensor]
    patterns: Patterns
    rows: list[ResizedModule]
    relative_error: float | None
    fields: Mapping[str, Any]
    """The config's fields that change beside the ranks: target_modules, if modules leave the adapter."""


def plan_of(subject: Subject, cuts: Sequence[Cut], fields: Mapping[str, Any]) -> ResizePlan:
    """Return the plan for pairs whose ranks are decided."""
    error = relative_error([loss for cut in cuts for loss in cut.losses])
    return ResizePlan(planned_file(subject, cuts), _patterns(cuts), _rows(cuts), error, fields)


class NewConfig(NamedTuple):
    """The new config as PEFT will read it, and notes on changes beside the ranks."""

    fields: dict[str, Any]
    notes: list[str]


def new_config(raw: dict[str, Any], plan: ResizePlan) -> NewConfig:
    """Return the config with the new ranks and all of its other keys."""
    fields = {**raw, **plan.patterns._asdict(), **plan.fields}
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower() in _RUN_AGAIN:
        fields["init_lora_weights"] = True
        note = f"init_lora_weights was {init!r}: PEFT would run it again on loading, for a rank it may refuse"
        return NewConfig(fields, [note])
    return NewConfig(fields, [])


def _patterns(cuts: Iterable[Cut]) -> Patterns:
    """Return r, alpha and their patterns, such that each pair gets its new rank and keeps its scale s."""
    kept = {cut.pair.path: cut for cut in cuts if cut.rank}
    first = {path: cut.pair.first for path, cut in kept.items()}
    alphas = {path: alpha_for(m.scale, kept[path].rank, rslora=m.rslora) for path, m in first.items()}
    return patterns_of({path: cut.rank for path, cut in kept.items()}, alphas)


def _rows(cuts: Iterable[Cut]) -> list[ResizedModule]:
    return [_row(cut, module, loss) for cut in cuts for module, loss in zip(cut.pair.modules, cut.losses, strict=True)]


def _row(cut: Cut, module: Module, loss: Loss) -> ResizedModule:
    params = cut.pair.layout.params_per_rank // len(cut.pair.modules)
    return ResizedModule(
        name=module.name,
        kind=module.kind,
        rank_before=module.r,
        rank_after=cut.rank,
        relative_error=relative_error([loss]),
        params_before=params * module.r,
        params_after=params * cut.rank,
    )


def relative_error(losses: Sequence[Loss]) -> float | None:
    """Return the relative Frobenius error over some modules, at most 1; None if their updates are zero."""
    lost, energy = sum(one.lost for one in losses), sum(one.energy for one in losses)
    return min(1.0, math.sqrt(lost / energy)) if energy > 0.0 else None
