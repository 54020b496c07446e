"""The verb `resize`: write a copy of an adapter with lower ranks, and report the error in each module.

The output is a folder that PEFT loads, or one file in kohya's format. It is written only after all ranks are decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Final, NamedTuple, Unpack

import msgspec

from gradience.adapters.files import AdapterFiles
from gradience.adapters.layout import Array
from gradience.adapters.patterns import Patterns
from gradience.base.weights import BaseWeights, find_shards
from gradience.errors import OutputError, few
from gradience.io import PathLike, Progress
from gradience.io.atomic import atomic_file
from gradience.io.safetensors import PlannedTensor, file_size, write_safetensors
from gradience.rewriting.sides import open_stored
from gradience.rewriting.writing import (
    PROVENANCE_NAME,
    STORED,
    Destination,
    NewAdapter,
    destination,
    encoded,
    loaded_ahead,
    provenance_of,
    weight_files,
)
from gradience.schema.writing import Calibration, Provenance, Recovery, ResizeReport
from gradience.verbs.resize.factors import NewConfig, ResizePlan, new_config
from gradience.verbs.resize.options import ResizeKeywords, ResizeOptions, Target
from gradience.verbs.resize.outputs import CHOSEN_BY, measure, plan_by_outputs
from gradience.verbs.resize.recovery import TRAINED_ON, recovered
from gradience.verbs.resize.subject import Subject, resizable_pairs, run, split_inputs
from gradience.verbs.resize.weights import plan_by_weights

PROVENANCE_KEY: Final = "gradience_provenance"
_STALE: Final = ("sshs_model_hash", "sshs_legacy_hash")  # hashes of the old weights
_NAMED: Final = 8
_DEFAULTS: Final = ResizeOptions()


def resize_adapter(
    path: PathLike,
    out: PathLike | None = None,
    *,
    options: ResizeOptions = _DEFAULTS,
    adapter_config: PathLike | None = None,
    weights: PathLike | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **keywords: Unpack[ResizeKeywords],
) -> ResizeReport:
    """Write a copy of a LoRA adapter whose updates have lower ranks, each the best approximation at its rank.

    Args:
        path: the folder that PEFT saved, or its weights file; or a LoRA file in kohya's format. It is not changed.
        out: the folder (for kohya's format the .safetensors file) to write; None computes the report only.
        options: how the new ranks are chosen: exactly one criterion.
        adapter_config: the config, if it is not beside the weights.
        weights: the weights file, if it has an unusual name.
        force: replace `out` if it exists, once the new folder is complete.
        progress: called with (modules done, modules in all, the module's name) while the folder is written.
        keywords: single options by name, such as `rank=8`; they win over `options`.

    Raises:
        AdapterError: the adapter cannot be read, or is of a kind that cannot be resized; the message says why.
        ConfigError: the inputs cannot be read, or are too few.
        GradienceError: calibration needs torch, transformers or PEFT, and it is not installed.
        OptionError: not exactly one criterion is given, or options are out of range or do not go together.
        OutputError: `out` exists, or cannot be written.
        TypeError: no option has such a name.
    """
    options = options.completed(keywords)
    target = options.target()
    stored = open_stored(path, adapter_config=adapter_config, weights=weights)
    base = None if options.base is None else BaseWeights(find_shards(Path(options.base)))
    is_kohya = stored.adapter.format == "kohya"
    shards = [] if base is None else [file.path for file in base.files]
    place = destination(out, [stored.files], stored.paths, base=shards, force=force, one_file=is_kohya)
    subject = Subject(stored, resizable_pairs(stored.adapter), None if options.dtype is None else STORED[options.dtype])
    result = _result(subject, target, options, base, progress or _silent)
    config = None if is_kohya else new_config(stored.raw, result.plan)
    report = _report(path, subject, target, result, config)
    if place is None:
        return report
    # Calibration and recovery have records of their own
    chosen = {"criterion": target.criterion, "value": target.value, "dtype": options.dtype}
    record = partial(provenance_of, "resize", place.sources, chosen, report)
    with loaded_ahead(result.plan.tensors) as loaded:
        tensors = _with_progress(loaded, progress or _silent)
        if config is None:
            _write_kohya(place, tensors, subject.metadata, result.plan.patterns, record())
        else:
            place.write(NewAdapter(tensors, config.fields, subject.metadata), record)
    # How long the record in a file of kohya's is, only the file tells.
    nbytes = place.out.stat().st_size if config is None else report.bytes_after
    return msgspec.structs.replace(report, out=str(out), bytes_after=nbytes)


def _silent(_done: int, _total: int, _name: str) -> None:
    """Progress that nobody watches."""


class ResizeResult(NamedTuple):
    """The plan of the new file, and the records of what was measured on the way to it, as far as it was."""

    plan: ResizePlan
    calibration: Calibration | None
    recovery: Recovery | None


def _result(
    subject: Subject, target: Target, options: ResizeOptions, base: BaseWeights | None, progress: Progress
) -> ResizeResult:
    running = cache(partial(run, subject, options.base, progress))  # loaded once, by the first step that needs it
    calibration = recovery = None
    if options.inputs is None:
        plan = plan_by_weights(subject, target, base)
    else:
        split = split_inputs(options.inputs, running().loaded, most=CHOSEN_BY, seed=options.seed)
        measurement = measure(subject, running(), split, options.seed, progress)
        plan, calibration = plan_by_outputs(subject, running(), measurement, target)
        progress(1, 1, "measured")  # removes a progress bar that is still shown
    if options.recovers_on is not None:
        split = split_inputs(options.recovers_on, running().loaded, most=TRAINED_ON, seed=options.seed)
        plan, recovery = recovered(subject, running(), plan, split, seed=options.seed, progress=progress)
        progress(1, 1, "recovered")  # as above
    return ResizeResult(plan, calibration, recovery)


def _report(
    path: PathLike, subject: Subject, target: Target, result: ResizeResult, config: NewConfig | None
) -> ResizeReport:
    """The report of a result; `config` is the new folder's config, or None for a file in kohya's format."""
    plan, adapter = result.plan, subject.stored.adapter
    return ResizeReport(
        source=str(path),
        criterion=target.criterion,
        value=target.value,
        dtype=subject.dtype,
        use_rslora=adapter.config.use_rslora,
        r=plan.patterns.r,
        lora_alpha=plan.patterns.lora_alpha,
        rank_pattern=plan.patterns.rank_pattern if config is not None else {},
        alpha_pattern=plan.patterns.alpha_pattern if config is not None else {},
        relative_error=plan.relative_error,
        params_before=sum(row.params_before for row in plan.rows),
        params_after=sum(row.params_after for row in plan.rows),
        bytes_before=sum(file.stat().st_size for file in adapter.weights),
        bytes_after=file_size(plan.tensors, metadata=subject.metadata),
        modules=plan.rows,
        calibration=result.calibration,
        recovery=result.recovery,
        notes=[
            *(config.notes if config is not None else []),
            *_notes(plan, subject.dtype),
            *_left_behind(subject.stored.files),
        ],
    )


def _write_kohya(
    place: Destination,
    tensors: Sequence[PlannedTensor],
    metadata: Mapping[str, str],
    patterns: Patterns,
    record: Provenance,
) -> None:
    """Write a file in kohya's format. It keeps the metadata, with rank and alpha updated and a provenance record added.

    If ranks differ between modules, rank and alpha are `Dynamic`, as in sd-scripts.

    Raises:
        OutputError: the name does not end in .safetensors, exists, or cannot be written.
    """
    if place.out.suffix != ".safetensors":
        raise OutputError(
            f"{place.out}: a LoRA in kohya's format is one file", advice="give a name that ends in .safetensors"
        )
    is_uniform = not patterns.rank_pattern and not patterns.alpha_pattern
    new = {
        **{key: value for key, value in metadata.items() if key not in _STALE},
        "ss_network_dim": str(patterns.r) if is_uniform else "Dynamic",
        "ss_network_alpha": str(patterns.lora_alpha) if is_uniform else "Dynamic",
        PROVENANCE_KEY: encoded(msgspec.structs.replace(record, modules=[])).decode(),
    }
    with atomic_file(place.out, sources=place.sources.files, force=place.force) as partial_file:
        write_safetensors(partial_file, tensors, metadata=new)


def _with_progress(tensors: list[PlannedTensor], progress: Progress) -> list[PlannedTensor]:
    """Return the tensors, changed so that each reports progress when it is loaded."""

    def reporting(place: int, tensor: PlannedTensor) -> PlannedTensor:
        def load() -> Array:
            progress(place, len(tensors), tensor.name)
            return tensor.load()

        return tensor._replace(load=load)

    return [reporting(place, tensor) for place, tensor in enumerate(tensors, 1)]


def _left_behind(files: AdapterFiles) -> list[str]:
    """Return a note on the other files in the adapter's folder, if it is a folder that PEFT saved."""
    if not files.config.is_file():
        return []
    read = {files.config.name, PROVENANCE_NAME, *(file.name for file in weight_files(files))}
    names = sorted(p.name for p in files.folder.iterdir() if p.name not in read)
    return [f"not copied from the adapter's folder: {few(names, _NAMED)}"] if names else []


def _notes(plan: ResizePlan, dtype: str | None) -> list[str]:
    notes = []
    if any(row.kind == "dora" and row.rank_after < row.rank_before for row in plan.rows):
        notes.append("DoRA: magnitudes fitted anew by least squares; errors are of the whole change to the weight")
    if dtype in {"F16", "BF16"}:
        name = next(name for name, stored in STORED.items() if stored == dtype)
        notes.append(f"errors are those of the lower rank; rounding the factors to {name} comes on top")
    return notes
