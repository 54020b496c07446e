"""The verb `convert`: read an adapter, write it as PEFT LoRA or for MLX-LM, and report the error of each module."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, Unpack

import msgspec

from gradience.adapters.layout import PREFIX
from gradience.errors import AdapterError
from gradience.io import PathLike, Progress
from gradience.io.atomic import scratch_folder
from gradience.io.safetensors import PlannedTensor, copied
from gradience.rewriting.writing import ArraySpool, NewAdapter, destination, provenance_of
from gradience.schema.writing import CONVERT_SCHEMA_ID, ConvertedModule, ConvertReport, TargetFormat
from gradience.verbs.convert.holds import REST, Subject, left_out, remarks
from gradience.verbs.convert.options import ConvertKeywords, ConvertOptions
from gradience.verbs.convert.source import SourceAdapter, components_of, open_source, parsed_renames, paths_of, renamed
from gradience.verbs.convert.updates import Conversion, LayerUpdate, RankChoice, layer_updates
from gradience.verbs.convert.write import (
    MLX_METADATA,
    MLX_WEIGHTS,
    expert_updates,
    mlx_config,
    mlx_tensors,
    peft_config,
    peft_tensors,
)

_RECORDED: Final = ("to", "rank", "energy", "component", "drop")  # options kept in report and provenance, where given
_DEFAULTS: Final = ConvertOptions()


def convert_adapter(
    path: PathLike,
    out: PathLike | None = None,
    *,
    options: ConvertOptions = _DEFAULTS,
    force: bool = False,
    adapter_config: PathLike | None = None,
    weights: PathLike | None = None,
    progress: Progress | None = None,
    **keywords: Unpack[ConvertKeywords],
) -> ConvertReport:
    """Write an adapter in another format, and return a report on each module.

    Args:
        path: the adapter's folder, or its weights file.
        out: the folder to write; None only computes the report.
        options: the format to write. Without a rank and an energy, only exact conversions are made.
        force: replace `out` if it exists.
        adapter_config: a config that does not lie beside the weights.
        weights: a weights file of another name.
        progress: called with (done, total, name) as modules are worked on.
        keywords: single options by name, such as `to="mlx"`; they win over `options`.

    Raises:
        AdapterError: the adapter cannot be read, or not converted as asked; the message says why.
        OptionError: rank and energy contradict each other, or are out of range.
        OutputError: `out` exists already, or cannot be written.
        TypeError: no option has such a name.
    """
    options = options.completed(keywords)
    to, choice = options.to, RankChoice(options.rank, options.energy)
    source = open_source(path, adapter_config=adapter_config, weights=weights, base=options.base)
    replaced = parsed_renames(options.renames)
    # Under new names, a copy in the same format is not in vain.
    if not replaced:
        _refuse_vain(source, to, choice)
    shards = [file.path for file in source.base.files] if source.base is not None else []
    read = [*source.adapter.weights, source.files.config]
    place = destination(out, [source.files], read, base=shards, force=force)
    paths = paths_of(source, component=options.component, renames=replaced)
    elsewhere = {name for module in source.layers if module.name not in paths for name in module.keys.values()}
    recorded = {name: value for name in _RECORDED if (value := getattr(options, name))}
    with scratch_folder() as folder:
        subject = Subject(Conversion(source, choice, ArraySpool(folder), to), paths, elsewhere)
        lost = left_out(subject, drop=options.drop)
        rest = _rest(subject, lost).renamed(replaced)
        source = source._replace(modules=[module for module in source.modules if module.name not in lost])
        run = subject.run._replace(source=source)
        updates = [*layer_updates(run, paths, progress), *_experts(source, choice, to, replaced)]
        new = _new_adapter(source, updates, rest, to, renames=bool(replaced))
        report = ConvertReport(
            schema=CONVERT_SCHEMA_ID,
            source=str(source.files.weights),
            source_format=source.adapter.format,
            source_type=source.label,
            target_format=to,
            options=recorded,
            modules=[_row(update) for update in updates],
            relative_error=_relative_error(updates),
            params_before=sum(info.size for info in source.adapter.tensors.values()),
            params_after=sum(math.prod(tensor.shape) for tensor in new.tensors),
            carried=[tensor.name for tensor in rest.carried],
            dropped=rest.dropped,
            notes=[*_others(source, updates), *remarks(subject._replace(run=run, updates=updates))],
        )
        if place is None:
            return report
        place.write(new, partial(provenance_of, "convert", place.sources, recorded, report))
    return msgspec.structs.replace(report, out=str(out))


def _refuse_vain(source: SourceAdapter, to: TargetFormat, choice: RankChoice) -> None:
    """Refuse to convert an adapter that is already in the target's format."""
    if to == "peft" and source.traits.is_plain:
        advice = "gradience resize changes its rank" if not choice.everything else "use it as it is"
        raise AdapterError(f"{source.files.weights} is a plain PEFT LoRA already", advice=advice)
    if to == source.adapter.format == "mlx":
        raise AdapterError(f"{source.files.weights} is MLX-LM's already", advice="use it as it is")


class _Rest(NamedTuple):
    """The tensors that belong to no update: those to copy, and the names of those to leave out."""

    carried: list[PlannedTensor]
    dropped: list[str]

    def renamed(self, replaced: Mapping[str, str]) -> _Rest:
        """The same with the prefixes of PEFT's names replaced."""
        new = [PREFIX + renamed(tensor.name.removeprefix(PREFIX), replaced) for tensor in self.carried]
        moved = [tensor._replace(name=name) for tensor, name in zip(self.carried, new, strict=True)]
        return self._replace(carried=moved) if replaced else self


def _rest(subject: Subject, lost: set[str]) -> _Rest:
    """Return the tensors to copy, and the names of those that are left out, of modules and beside them."""
    source, beside = subject.run.source, subject.tensors(*REST)
    modules = [module for module in source.modules if module.name in lost]
    dropped = {name for module in modules for name in module.keys.values()} | (lost & {*beside})
    carried = [copied(source.tensors, name) for name in beside if name not in lost]
    return _Rest(carried, [name for name in source.adapter.roles if name in dropped])


def _experts(
    source: SourceAdapter, choice: RankChoice, to: TargetFormat, replaced: dict[str, str]
) -> list[LayerUpdate]:
    if source.experts and not choice.everything:
        raise AdapterError(
            f"{source.experts[0].name}: stacked experts are converted whole, not cut to a rank",
            advice="leave out --rank and --energy",
        )
    if source.experts and to == "mlx" and source.has_experts_elsewhere:
        raise AdapterError(
            f"{source.experts[0].name}: MLX-LM has Mixtral's experts and those of its kin below block_sparse_moe, and "
            "gpt-oss's gate and up by turns: neither layout is written",
            advice="merge the adapter into the base, and convert that",
        )
    return [stack._replace(path=renamed(stack.path, replaced)) for stack in expert_updates(source.experts, to)]


def _new_adapter(
    source: SourceAdapter, updates: Sequence[LayerUpdate], rest: _Rest, to: TargetFormat, *, renames: bool
) -> NewAdapter:
    if to == "mlx":
        return NewAdapter(mlx_tensors(updates), mlx_config(source, updates), MLX_METADATA, MLX_WEIGHTS)
    tensors = sorted([*peft_tensors(updates), *rest.carried], key=lambda tensor: tensor.name)
    return NewAdapter(tensors, peft_config(source, updates, renames=renames))


def _row(update: LayerUpdate) -> ConvertedModule:
    return ConvertedModule(
        name=" + ".join(update.names),
        kind=update.kind,
        target=update.target,
        rank_before=update.rank_before,
        rank_after=update.part.rank,
        method=update.part.method,
        relative_error=update.part.relative_error,
    )


def _relative_error(updates: Sequence[LayerUpdate]) -> float | None:
    norm = math.hypot(*(update.part.norm for update in updates))
    return math.hypot(*(update.part.rest for update in updates)) / norm if norm > 0.0 else None


def _others(source: SourceAdapter, updates: Sequence[LayerUpdate]) -> Iterator[str]:
    """Yield a note on the components that were not asked for."""
    converted = {name for update in updates for name in update.names}
    left = {name: some for name, some in components_of(source).items() if not converted & {m.name for m in some}}
    if left:
        named = ", ".join(f"{name} ({len(some)} modules)" for name, some in left.items())
        yield f"other components of the file were not asked for: {named}"
