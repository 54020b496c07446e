"""The verb `resize`: write a copy of an adapter with lower ranks, and report the error in each module.

The output is a folder that PEFT loads, or one file in kohya's format. It is written only after all ranks are decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from gradience.adapters.layout import Adapter, Array
from gradience.adapters.open import AdapterFiles, open_adapter
from gradience.base.weights import BaseWeights, find_shards
from gradience.errors import OutputError
from gradience.io import PathLike, Progress
from gradience.io.atomic import atomic_file, keep_private
from gradience.io.safetensors import PlannedTensor, write_safetensors
from gradience.rewrite.resize.calibrated import CRITERIA, Asked, PiecesOf, calibrate_adapter, plan_by_outputs
from gradience.rewrite.resize.cut import Target, target_of
from gradience.rewrite.resize.plan import NewConfig, Plan, new_config, plan_of
from gradience.rewrite.sides import raw_config
from gradience.rewrite.writing import (
    PROVENANCE_NAME,
    STORED,
    Dtype,
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


def resize_adapter(
    path: PathLike,
    out: PathLike | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    rel_error: float | None = None,
    max_mb: float | None = None,
    max_params: int | None = None,
    like_suggested: bool = False,
    sv_ratio: float | None = None,
    sv_fro: float | None = None,
    sv_cumulative: float | None = None,
    kl: float | None = None,
    calibrate: PathLike | None = None,
    calibrate_tokens: PathLike | None = None,
    pieces: PiecesOf = "two-sided",
    seed: int = 0,
    dtype: Dtype | None = None,
    base: PathLike | None = None,
    adapter_config: PathLike | None = None,
    weights: PathLike | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ResizeReport:
    """Write a copy of a LoRA adapter whose updates have lower ranks, each the best approximation at its rank.

    Exactly one criterion must be given. sigma are a module's singular values, largest first.

    Args:
        path: the folder that PEFT saved, or its weights file; or a LoRA file in kohya's format. It is not changed.
        out: the folder (for kohya's format the .safetensors file) to write; None computes the report only.
        rank: k = `rank` for every module that has more.
        energy: least k with sum_{i<=k} sigma_i^2 >= energy * sum sigma_i^2.
        rel_error: least k with sqrt(sum_{i>k} sigma_i^2 / sum sigma_i^2) <= rel_error.
        max_mb: the largest size of the weights file in megabytes (10^6 bytes); ranks are chosen to keep most sigma^2.
        max_params: the largest number of parameters in the factors; ranks are chosen as for `max_mb`.
        like_suggested: each module at the rank that the audit suggests for it (`suggest_per_layer`).
        sv_ratio: k = the number of sigma_i > sigma_1 / sv_ratio.
        sv_fro: least k with sqrt(sum_{i<=k} sigma_i^2 / sum sigma_i^2) >= sv_fro.
        sv_cumulative: least k with sum_{i<=k} sigma_i / sum sigma_i >= sv_cumulative.
        kl: the fewest pieces whose KL divergence from the whole adapter, measured on the calibration inputs, is at most
            `kl` nats per prediction.
        calibrate: inputs without labels. Pieces are chosen over all modules at once by their effect on the outputs: for
            `kl`, or within `rank` (the parameters of that rank everywhere), `max_params` or `max_mb`.
        calibrate_tokens: the calibration inputs as token ids.
        pieces: the pieces that calibration chooses from: `two-sided`, or those of the weights alone (`svd`).
        seed: the seed of calibration, for the choice of inputs and the drawn labels.
        dtype: the dtype of the new factors; None keeps the old one.
        base: the base model, which DoRA and calibration need: a folder, or organisation/name in the hub's cache.
        adapter_config: the config, if it is not beside the weights.
        weights: the weights file, if it has an unusual name.
        force: replace `out` if it exists, once the new folder is complete.
        progress: called with (modules done, modules in all, the module's name) while the folder is written.

    Raises:
        AdapterError: the adapter cannot be read, or is of a kind that cannot be resized; the message says why.
        ConfigError: the inputs cannot be read, or are too few.
        GradienceError: calibration needs torch, transformers or PEFT, and it is not installed.
        OutputError: `out` exists, or cannot be written.
        ValueError: not exactly one criterion is given, or its number is out of range.
    """
    target = target_of(
        {
            "rank": rank,
            "energy": energy,
            "rel_error": rel_error,
            "max_mb": max_mb,
            "max_params": max_params,
            "like_suggested": like_suggested,
            "sv_ratio": sv_ratio,
            "sv_fro": sv_fro,
            "sv_cumulative": sv_cumulative,
            "kl": kl,
        }
    )
    asked = _asked(target, base=base, texts=calibrate, token_ids=calibrate_tokens, pieces=pieces, seed=seed)
    files, adapter = open_adapter(path, adapter_config=adapter_config, weights=weights)
    shards = find_shards(Path(base)) if base is not None else []
    is_kohya = adapter.format == "kohya"
    if out is not None:
        refuse_place(Path(out), [files], base=shards, force=force, one_file=is_kohya)
    stored = None if dtype is None else STORED[dtype]
    sources = SourceFiles([] if out is None else [files.config, *adapter.weights])
    if asked is None:
        plan = plan_of(adapter, target, dtype=stored, base=BaseWeights(shards) if base is not None else None)
    else:
        plan = plan_by_outputs(calibrate_adapter(files, adapter, asked, progress=progress), target, dtype=stored)
        if progress is not None:
            progress(1, 1, "measured")  # removes a progress bar that is still shown
    config = None if is_kohya else new_config(raw_config(files.config), plan)
    report = _report(path, files, adapter, target, plan, dtype=dtype, config=config)
    if out is None:
        return report
    options = {"criterion": target.criterion, "value": target.value, "dtype": dtype}  # calibration has its own record
    record = partial(provenance_of, "resize", sources, options, report)
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
        notes=[*(config.notes if config is not None else []), *_notes(plan, dtype), *_left_behind(files)],
    )


def _asked(
    target: Target,
    *,
    base: PathLike | None,
    texts: PathLike | None,
    token_ids: PathLike | None,
    pieces: PiecesOf,
    seed: int,
) -> Asked | None:
    """Return the options of calibration, or None without calibration.

    Raises:
        ValueError: an option is missing or given twice, or the criterion does not use calibration.
    """
    inputs = texts if texts is not None else token_ids
    if inputs is None:
        if target.criterion == "kl":
            message = "kl is measured on inputs: expected calibrate or calibrate_tokens"
            raise ValueError(message)
        return None
    if texts is not None and token_ids is not None:
        message = "expected calibrate or calibrate_tokens, got both"
        raise ValueError(message)
    if base is None:
        message = "calibration runs the model: expected base"
        raise ValueError(message)
    if target.criterion not in CRITERIA:
        message = f"{target.criterion} is a rule on singular values; calibration takes {', '.join(CRITERIA)}"
        raise ValueError(message)
    return Asked(base, inputs, token_ids=texts is None, pieces=pieces, seed=seed)


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
    with atomic_file(out, force=force) as partial:
        write_safetensors(partial, tensors, metadata=metadata)
        keep_private(partial, sources.files)


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
    if not names:
        return []
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [f"not copied from the adapter's folder: {', '.join(names[:_NAMED])}{more}"]


def _notes(plan: Plan, dtype: Dtype | None) -> list[str]:
    notes = []
    if any(row.kind == "dora" and row.rank_after < row.rank_before for row in plan.rows):
        notes.append("DoRA: magnitudes fitted anew by least squares; errors are of the whole change to the weight")
    if dtype in {"float16", "bfloat16"}:
        notes.append(f"errors are those of the lower rank; rounding the factors to {dtype} comes on top")
    return notes
