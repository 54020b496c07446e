"""``gradience resize``."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.types import PositiveInt
from cyclopts.validators import Number

from gradience.cli.options import DryRun, Force, Verbose, given_once, place_of, printed
from gradience.cli.output import cleaning_up, on_terminal, prepare_jax
from gradience.errors import AdapterError
from gradience.render.writing import resize_text

_Share = Annotated[float | None, Parameter(validator=Number(gt=0.0, lte=1.0))]
_Flag = Parameter(negative=())


def resize(
    path: Path | None = None,
    /,
    *,
    peft_dir: Path | None = None,
    out: Path | None = None,
    rank: PositiveInt | None = None,
    energy: _Share = None,
    rel_error: Annotated[float | None, Parameter(validator=Number(gte=0.0, lt=1.0))] = None,
    max_mb: Annotated[float | None, Parameter(validator=Number(gt=0.0))] = None,
    max_params: PositiveInt | None = None,
    like_suggested: Annotated[bool, _Flag] = False,
    sv_ratio: Annotated[float | None, Parameter(validator=Number(gte=1.0))] = None,
    sv_fro: _Share = None,
    sv_cumulative: _Share = None,
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    base: Path | None = None,
    adapter_config: Path | None = None,
    weights: Path | None = None,
    dry_run: DryRun = False,
    force: Force = False,
    verbose: Verbose = False,
    json: Annotated[bool, _Flag] = False,
) -> int:
    """Write a copy of a LoRA adapter whose updates have lower ranks, each the best of its rank.

    Give exactly one criterion. sigma_1 >= sigma_2 >= ... are the singular values of a module's update s B A, and k
    is its new rank, at least 1 and at most the present one. s stays as it is; all other tensors are copied bit for
    bit. The adapter that is read is never changed. Verify the result with an evaluation.

    Parameters
    ----------
    path:
        The folder that PEFT saved, or its weights file; or a LoRA file of kohya's (sd-scripts).
    peft_dir:
        The same, as an option.
    out:
        The folder to write; for a file of kohya's, the .safetensors file.
    rank:
        k = RANK in every module that has more.
    energy:
        Least k with sum_{i<=k} sigma_i^2 >= ENERGY * sum sigma_i^2.
    rel_error:
        Least k with sqrt(sum_{i>k} sigma_i^2 / sum sigma_i^2) <= REL_ERROR: the relative error of the module.
    max_mb:
        The weights file has at most MAX_MB * 10^6 bytes. Ranks go where they keep most sigma^2 per byte.
    max_params:
        The factors A and B have at most MAX_PARAMS parameters. Ranks go where they keep most sigma^2 per parameter.
    like_suggested:
        Each module at the rank that 'gradience audit --suggest-per-layer' suggests: k@90%, rounded up to 1, 2, 4, 8...
    sv_ratio:
        k = the number of sigma_i > sigma_1 / SV_RATIO. This and the next two as in sd-scripts' resize_lora.py.
    sv_fro:
        Least k with sqrt(sum_{i<=k} sigma_i^2 / sum sigma_i^2) >= SV_FRO.
    sv_cumulative:
        Least k with sum_{i<=k} sigma_i / sum sigma_i >= SV_CUMULATIVE.
    dtype:
        Of the new factors; without it they keep theirs.
    base:
        The base model, which DoRA needs for its magnitudes: a folder with safetensors, or organisation/name in the
        hub's cache.
    adapter_config:
        An adapter_config.json elsewhere than beside the weights.
    weights:
        A weights file of another name.
    json:
        Print one JSON document (schemas/resize-report-v2.schema.json).
    """
    adapter = given_once("resize", path, peft_dir)
    place = place_of(out, dry_run=dry_run)
    _one_of(
        rank=rank,
        energy=energy,
        rel_error=rel_error,
        max_mb=max_mb,
        max_params=max_params,
        like_suggested=like_suggested,
        sv_ratio=sv_ratio,
        sv_fro=sv_fro,
        sv_cumulative=sv_cumulative,
    )
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # r x r problems only: more threads wait for each other
    prepare_jax("auto")
    from gradience.verbs.resize import resize_adapter  # noqa: PLC0415  # imports jax, after its environment is set

    with cleaning_up():
        report = resize_adapter(
            adapter,
            place,
            rank=rank,
            energy=energy,
            rel_error=rel_error,
            max_mb=max_mb,
            max_params=max_params,
            like_suggested=like_suggested,
            sv_ratio=sv_ratio,
            sv_fro=sv_fro,
            sv_cumulative=sv_cumulative,
            dtype=dtype,
            base=base,
            adapter_config=adapter_config,
            weights=weights,
            force=force,
            progress=on_terminal("resize"),
        )
    return printed(report, resize_text, verbose=verbose, json=json)


def _one_of(**given: float | None) -> None:
    """Refuse none and several, and what is no number."""
    found = [name for name, value in given.items() if value is not None and value is not False]
    if len(found) != 1:
        named = " and ".join(map(_option, found)) or "none"
        raise AdapterError(f"expected exactly one criterion, got {named}", advice=f"give one of {_listed(given)}")
    if not math.isfinite(given[found[0]] or 0.0):
        raise AdapterError(f"{_option(found[0])} is {given[found[0]]}, expected a finite number")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(_option, names))
