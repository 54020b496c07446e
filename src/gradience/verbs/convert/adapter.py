"""The verb: an adapter's files in, another format's files out, and a report on what that cost."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from gradience.adapters.layout import Role
from gradience.errors import AdapterError
from gradience.io.safetensors import PlannedTensor, copied
from gradience.io.spool import Spool
from gradience.io.types import PathLike, Progress
from gradience.schema.writing import CONVERT_SCHEMA_ID, ConvertedModule, ConvertReport, ModuleChange, Target
from gradience.verbs.convert.factored import Choice
from gradience.verbs.convert.pieces import Experts, Piece, experts_of, pieces_of
from gradience.verbs.convert.source import Source, open_source, refuse_modules
from gradience.verbs.convert.to_mlx import (
    MLX_WEIGHTS,
    components_of,
    mlx_config,
    mlx_notes,
    mlx_tensors,
    parsed_renames,
    paths_of,
    renamed,
)
from gradience.verbs.convert.to_peft import peft_config, peft_notes, peft_tensors
from gradience.verbs.writing import WEIGHTS_NAME, provenance_of, refuse_place, write_adapter

_PLACED_IN_PEFT: Final[frozenset[Role]] = frozenset({"full_module", "bias", "base_copy", "token_rows"})
_UPDATES: Final[frozenset[Role]] = frozenset({"lora_pair", "magnitude", "scale"})
_SHOWN: Final = 3


class Beside(NamedTuple):
    """Tensors to copy, and the names of those that are left out."""

    carried: list[PlannedTensor]
    dropped: list[str]


def beside(source: Source, target: Target, *, drop: bool, other_components: Collection[str]) -> Beside:
    """Return what becomes of the tensors that belong to no update.

    Raises:
        AdapterError: the target has no place for one, and `drop` does not say to leave it out.
    """
    from_peft = source.adapter.format == "peft"
    carried, dropped = [], []
    for name, role in source.adapter.roles.items():
        if role in _UPDATES or name in other_components:
            continue
        if target == "peft" and from_peft and role in _PLACED_IN_PEFT:
            carried.append(copied(source.tensors, name))
        else:
            dropped.append(name)
    if dropped and not drop:
        more = f" and {len(dropped) - _SHOWN} more" if len(dropped) > _SHOWN else ""
        what = "MLX-LM's LoRA" if target == "mlx" else "a plain PEFT LoRA"
        raise AdapterError(
            f"{what} has no place for {len(dropped)} tensors of {source.files.weights}: "
            f"{', '.join(dropped[:_SHOWN])}{more}",
            advice="leave them out with --drop, or keep the adapter as it is",
        )
    return Beside(carried, dropped)


def convert_adapter(
    path: PathLike,
    out: PathLike | None = None,
    *,
    to: Target = "peft",
    rank: int | None = None,
    energy: float | None = None,
    base: PathLike | None = None,
    component: str | None = None,
    renames: Iterable[str] = (),
    drop: bool = False,
    force: bool = False,
    adapter_config: PathLike | None = None,
    weights: PathLike | None = None,
    progress: Progress | None = None,
) -> ConvertReport:
    """Write an adapter in another format, and return what became of each module.

    Args:
        path: the adapter's folder, or its weights file.
        out: the folder to write; None only computes the report.
        to: `peft`, a plain LoRA; `mlx`, MLX-LM's LoRA or DoRA.
        rank: the largest rank of a module. Without it and `energy`, only exact conversions are made.
        energy: the share of a module's squared Frobenius norm to keep, over 0 and at most 1.
        base: the base model's folder, where the update is a function of its weights or its names are needed.
        component: which of a pipeline's models to convert, where the file adapts several.
        renames: prefixes of module paths to replace, as `OLD=NEW`.
        drop: leave out tensors that the target has no place for.
        force: replace `out` if it exists.
        adapter_config: a config elsewhere than beside the weights.
        weights: a weights file of another name.
        progress: called with (done, total, name) as modules are worked on.

    Raises:
        AdapterError: it cannot be read, or not be converted as asked; the message says why.
        OutputError: `out` exists already, or cannot be written.
        ValueError: rank and energy contradict each other, or are out of range.
    """
    choice = _choice(rank, energy)
    source = open_source(path, adapter_config=adapter_config, weights=weights, base=base)
    _refuse_vain(source, to, choice)
    refuse_modules(source)
    if out is not None:
        held = [file.path for file in source.base.files] if source.base is not None else []
        refuse_place(Path(out), [source.files], base=held, force=force)
    replaced = parsed_renames(renames)
    paths = paths_of(source, component=component, renames=replaced)
    rest = beside(source, to, drop=drop, other_components=_elsewhere(source, paths))
    options: dict[str, str | int | float | bool] = {
        name: value
        for name, value in (("to", to), ("rank", rank), ("energy", energy), ("component", component), ("drop", drop))
        if value
    }
    with tempfile.TemporaryDirectory(prefix="gradience-") as folder:
        pieces = list(pieces_of(source, choice, Spool(Path(folder)), target=to, paths=paths, progress=progress))
        experts = _experts(source, choice, to, replaced)
        written = _written(source, _Updates(pieces, experts), rest, to)
        report = _report(source, _Updates(pieces, experts), rest, written, options)
        if out is not None:
            _write(Path(out), source, written, report, force=force)
            report = msgspec.structs.replace(report, out=str(out))
    return report


class _Updates(NamedTuple):
    """The pairs to write."""

    pieces: list[Piece]
    experts: list[Experts]


def _experts(source: Source, choice: Choice, to: Target, replaced: dict[str, str]) -> list[Experts]:
    if source.experts and not choice.everything:
        raise AdapterError(
            f"{source.experts[0].name}: stacked experts are converted whole, not cut to a rank",
            advice="leave out --rank and --energy",
        )
    return [stack._replace(path=renamed(stack.path, replaced)) for stack in experts_of(source.experts, to)]


def _choice(rank: int | None, energy: float | None) -> Choice:
    if rank is not None and energy is not None:
        raise ValueError("give a rank or an energy, not both")
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1")
    if energy is not None and not 0.0 < energy <= 1.0:
        raise ValueError(f"energy is {energy}, expected over 0 and at most 1")
    return Choice(rank, energy)


def _refuse_vain(source: Source, to: Target, choice: Choice) -> None:
    if to == "peft" and source.is_plain:
        done = "gradience resize changes its rank" if not choice.everything else "use it as it is"
        raise AdapterError(f"{source.files.weights} is a plain PEFT LoRA already", advice=done)
    if to == "mlx" and source.adapter.format == "mlx":
        raise AdapterError(f"{source.files.weights} is MLX-LM's already", advice="use it as it is")


def _elsewhere(source: Source, paths: dict[str, str]) -> set[str]:
    """Return the tensors of other components."""
    return {name for module in source.layers if module.name not in paths for name in module.keys.values()}


class _Written(NamedTuple):
    """What the target's files will hold."""

    tensors: list[PlannedTensor]
    config: dict[str, Any]
    weights_name: str
    metadata: dict[str, str]
    notes: list[str]


def _written(source: Source, updates: _Updates, rest: Beside, to: Target) -> _Written:
    if to == "mlx":
        tensors, config = mlx_tensors(*updates), mlx_config(source, *updates)
        return _Written(tensors, config, MLX_WEIGHTS, {"format": "mlx"}, mlx_notes(*updates))
    tensors = sorted([*peft_tensors(*updates), *rest.carried], key=lambda tensor: tensor.name)
    return _Written(tensors, peft_config(source, *updates), WEIGHTS_NAME, {"format": "pt"}, peft_notes(*updates))


def _report(
    source: Source, updates: _Updates, rest: Beside, written: _Written, options: dict[str, str | int | float | bool]
) -> ConvertReport:
    pieces, experts = updates
    target: Target = "mlx" if written.weights_name == MLX_WEIGHTS else "peft"
    total = math.hypot(*(piece.part.norm for piece in pieces), *(stack.norm for stack in experts))
    left = math.hypot(*(piece.part.rest for piece in pieces))
    return ConvertReport(
        schema=CONVERT_SCHEMA_ID,
        source=str(source.files.weights),
        source_format=source.adapter.format,
        source_type=source.label,
        target_format=target,
        options=options,
        modules=[*(_row(piece) for piece in pieces), *(_expert_row(stack) for stack in experts)],
        relative_error=left / total if total > 0.0 else None,
        params_before=sum(info.size for info in source.adapter.tensors.values()),
        params_after=sum(math.prod(tensor.shape) for tensor in written.tensors),
        carried=[tensor.name for tensor in rest.carried],
        dropped=rest.dropped,
        notes=[*_notes(source, pieces, target), *written.notes],
    )


def _expert_row(stack: Experts) -> ConvertedModule:
    return ConvertedModule(
        name=" + ".join(stack.names),
        kind="expert",
        target=stack.target,
        rank_before=stack.rank_before,
        rank_after=stack.rank,
        method="copied",
        relative_error=0.0 if stack.norm > 0.0 else None,
    )


def _row(piece: Piece) -> ConvertedModule:
    return ConvertedModule(
        name=piece.module.name,
        kind=piece.module.kind,
        target=piece.path,
        rank_before=piece.module.r,
        rank_after=piece.part.rank,
        method=piece.part.method,
        relative_error=piece.part.relative_error,
    )


def _notes(source: Source, pieces: Sequence[Piece], target: Target) -> list[str]:
    notes = []
    converted = {piece.module.name for piece in pieces}
    left = {name: found for name, found in components_of(source).items() if not converted & {m.name for m in found}}
    if left:
        named = ", ".join(f"{name} ({len(found)} modules)" for name, found in left.items())
        notes.append(f"other components of the file were not asked for: {named}")
    if any(piece.embedding for piece in pieces) and "mlx" in {source.adapter.format, target}:
        notes.append(
            "MLX-LM applies an embedding's update to a tied output head too; PEFT does so with ensure_weight_tying only"
        )
    return notes


def _write(out: Path, source: Source, written: _Written, report: ConvertReport, *, force: bool) -> None:
    provenance = provenance_of(
        "convert",
        [*source.adapter.weights, source.files.config],
        options=report.options,
        modules=[
            ModuleChange(
                name=row.name,
                rank_before=row.rank_before,
                rank_after=row.rank_after,
                relative_error=None if row.relative_error is None else min(row.relative_error, 1.0),
            )
            for row in report.modules
        ],
        relative_error=None if report.relative_error is None else min(report.relative_error, 1.0),
        notes=report.notes,
    )
    write_adapter(
        out,
        tensors=written.tensors,
        config=written.config,
        provenance=provenance,
        force=force,
        weights_name=written.weights_name,
        metadata=written.metadata,
    )
