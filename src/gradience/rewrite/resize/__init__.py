"""The verb `resize`: write a copy of an adapter with lower ranks, and report the error in each module.

The output is a folder that PEFT loads, or one file in kohya's format. It is written only after all ranks are decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from gradience.adapters.layout import Adapter, Array
from gradience.adapters.open import AdapterFiles, open_adapter
from gradience.base.weights import BaseWeights, find_shards
from gradience.errors import OutputError, few
from gradience.io import PathLike, Progress
from gradience.io.atomic import atomic_file
from gradience.io.safetensors import PlannedTensor, write_safetensors
from gradience.rewrite.options import Dtype, ResizeOptions, Target
from gradience.rewrite.resize.calibrated import calibrate_adapter, plan_by_outputs
from gradience.rewrite.resize.plan import NewConfig, Plan, new_config, plan_of
from gradience.rewrite.resize.recovered import recovered_plan
from gradience.rewrite.sides import raw_config
from gradience.rewrite.writing import (
    PROVENANCE_NAME,
    STORED,
    NewAdapter,
    SourceFiles,
    encoded,
    loaded_ahead,
    provenance_of,
    refuse_place,
    weight_files,
    write_adapter,
)
from gradience.schema.writing import Provenance, ResizeReport

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
    **keywords: Any,
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
    options = replace(options, **keywords)
    target, dtype = options.target(), options.dtype
    files, adapter = open_adapter(path, adapter_config=adapter_config, weights=weights)
    shards = [] if options.base is None else find_shards(Path(options.base))
    is_kohya = adapter.format == "kohya"
    if out is not None:
        refuse_place(Path(out), [files], base=shards, force=force, one_file=is_kohya)
    stored = None if dtype is None else STORED[dtype]
    sources = SourceFiles([] if out is None else [files.config, *adapter.weights])
    if options.inputs is None:
        plan = plan_of(adapter, target, dtype=stored, base=None if options.base is None else BaseWeights(shards))
    else:
        plan = plan_by_outputs(calibrate_adapter(files, adapter, options, progress=progress), target, dtype=stored)
        if progress is not None:
            progress(1, 1, "measured")  # removes a progress bar that is still shown
    config = None if is_kohya else new_config(raw_config(files.config), plan)
    if options.recover is not None:
        plan = recovered_plan(plan, files, adapter, options, progress=progress)
        if progress is not None:
            progress(1, 1, "recovered")  # as above
    report = _report(path, files, adapter, target, plan, dtype=dtype, config=config)
    if out is None:
        return report
    # Calibration and recovery have records of their own
    chosen = {"criterion": target.criterion, "value": target.value, "dtype": dtype}
    record = partial(provenance_of, "resize", sources, chosen, report)
    with loaded_ahead(plan.tensors) as loaded:
        tensors = _with_progress(loaded, progress)
        if config is None:
            _write_kohya(Path(out), tensors, plan, record(), sources=sources, force=force)
        else:
            write_adapter(
                Path(out), NewAdapter(tensors, config.fields, plan.metadata), record, sources=sources, force=force
            )
    nbytes = Path(out).stat().st_size if config is None else report.bytes_after
    return msgspec.structs.replace(report, out=str(out), bytes_after=nbytes)


def _report(
    path: PathLike,
    files: AdapterFiles,
    adapter: Adapter,
    target: Target,
    plan: Plan,
    *,
    dtype: Dtype | None,
    config: NewConfig | None,
) -> ResizeReport:
    """The report of a plan; `config` is the new folder's config, or None for a file in kohya's format."""
    return ResizeReport(
        source=str(path),
        criterion=target.criterion,
        value=target.value,
        dtype=None if dtype is None else STORED[dtype],
        use_rslora=adapter.config.use_rslora,
        r=plan.patterns.r,
        lora_alpha=plan.patterns.lora_alpha,
        rank_pattern=plan.patterns.rank_pattern if config is not None else {},
        alpha_pattern=plan.patterns.alpha_pattern if config is not None else {},
        relative_error=plan.relative_error,
        params_before=sum(row.params_before for row in plan.rows),
        params_after=sum(row.params_after for row in plan.rows),
        bytes_before=sum(file.stat().st_size for file in adapter.weights),
        bytes_after=plan.nbytes,
        modules=plan.rows,
        calibration=plan.calibration,
        recovery=plan.recovery,
        notes=[*(config.notes if config is not None else []), *_notes(plan, dtype), *_left_behind(files)],
    )


def _write_kohya(
    out: Path, tensors: Sequence[PlannedTensor], plan: Plan, record: Provenance, *, sources: SourceFiles, force: bool
) -> None:
    """Write a file in kohya's format. It keeps the metadata, with rank and alpha updated and a provenance record added.

    If ranks differ between modules, rank and alpha are `Dynamic`, as in sd-scripts.

    Raises:
        OutputError: the name does not end in .safetensors, exists, or cannot be written.
    """
    if out.suffix != ".safetensors":
        raise OutputError(
            f"{out}: a LoRA in kohya's format is one file", advice="give a name that ends in .safetensors"
        )
    metadata = {key: value for key, value in plan.metadata.items() if key not in _STALE}
    is_uniform = not plan.patterns.rank_pattern and not plan.patterns.alpha_pattern
    metadata["ss_network_dim"] = str(plan.patterns.r) if is_uniform else "Dynamic"
    metadata["ss_network_alpha"] = str(plan.patterns.lora_alpha) if is_uniform else "Dynamic"
    metadata[PROVENANCE_KEY] = encoded(msgspec.structs.replace(record, modules=[])).decode()
    with atomic_file(out, sources=sources.files, force=force) as partial:
        write_safetensors(partial, tensors, metadata=metadata)


def _with_progress(tensors: list[PlannedTensor], progress: Progress | None) -> list[PlannedTensor]:
    """Return the tensors, changed so that each reports progress when it is loaded."""
    if progress is None:
        return tensors

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


def _notes(plan: Plan, dtype: Dtype | None) -> list[str]:
    notes = []
    if any(row.kind == "dora" and row.rank_after < row.rank_before for row in plan.rows):
        notes.append("DoRA: magnitudes fitted anew by least squares; errors are of the whole change to the weight")
    if dtype in {"float16", "bfloat16"}:
        notes.append(f"errors are those of the lower rank; rounding the factors to {dtype} comes on top")
    return notes
