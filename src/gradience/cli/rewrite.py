"""The commands ``gradience resize`` and ``convert``, which write an adapter from another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gradience.cli import options as opt
from gradience.cli.bar import on_terminal
from gradience.cli.output import keep_freed
from gradience.device import prepare_jax
from gradience.render.writing import convert_text, resize_text
from gradience.rewrite.options import ConvertOptions, ResizeOptions

_OR_BARE = Parameter(metavar="[PATH]")


@dataclass(frozen=True, kw_only=True)
class _ResizeOptions(ResizeOptions):
    calibrate: Annotated[Path | bool | None, _OR_BARE] = None
    recover: Annotated[Path | bool | None, _OR_BARE] = None
    max_params: Annotated[int | None, opt.LIBRARY_ONLY] = None
    flips: Annotated[float | None, opt.LIBRARY_ONLY] = None
    calibrate_tokens: Annotated[Path | None, opt.LIBRARY_ONLY] = None
    seed: opt.Seed = 0


_RESIZE = _ResizeOptions()


@dataclass(frozen=True, kw_only=True)
class _ConvertOptions(ConvertOptions):
    renames: Annotated[Sequence[str], Parameter(name="--rename")] = ()


_CONVERT = _ConvertOptions()


def resize(
    path: Path,
    /,
    *,
    out: Path | None = None,
    options: Annotated[_ResizeOptions, opt.RECORD] = _RESIZE,
    writing: opt.Writing = opt.WRITING,
) -> int:
    """Write a copy of a LoRA adapter whose updates have lower ranks, each the best of its rank.

    Give exactly one criterion. sigma_1 >= sigma_2 >= ... are the singular values of a module's update s B A, and k
    is its new rank, at least 1 and at most the present one. s stays as it is; all other tensors are copied bit for
    bit. The input adapter is never changed. DoRA needs --base for its magnitudes. Verify the result by
    an evaluation.

    Parameters
    ----------
    path:
        The folder that PEFT saved, or its weights file; or a LoRA file of kohya's (sd-scripts).
    out:
        The folder to write; for a file of kohya's, the .safetensors file.
    """
    place = writing.place(out)
    options.target()  # raises before JAX is imported
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for r x r problems, more threads would wait for each other
    keep_freed()
    prepare_jax("auto")
    from gradience.rewrite.resize import resize_adapter  # imports jax, after its environment is set

    report = resize_adapter(path, place, options=options, force=writing.force, progress=on_terminal("resize"))
    return writing.shown(report, resize_text)


def convert(
    path: Path,
    /,
    *,
    out: opt.OutFolder = None,
    options: Annotated[_ConvertOptions, opt.RECORD] = _CONVERT,
    writing: opt.Writing = opt.WRITING,
) -> int:
    """Write an adapter in another format: a plain PEFT LoRA, or MLX-LM's.

    Exact where the update has a low rank; what is not exact is asked for with --rank or --energy, and its error is
    reported for every module. The input adapter is never changed. --base is needed where the update depends on
    the base's weights (DoRA, HiRA, MiSS, PiSSA, OLoRA, KaSA, some VeRA) or names (kohya).

    Parameters
    ----------
    path:
        The adapter's folder, or its weights file: PEFT (LoRA of any kind, AdaLoRA, LoHa, LoKr, VeRA, HiRA, MiSS),
        MLX-LM, kohya, diffusers.
    """
    place = writing.place(out)
    from gradience.rewrite.convert import convert_adapter  # numpy

    report = convert_adapter(path, place, options=options, force=writing.force, progress=on_terminal("convert"))
    return writing.shown(report, convert_text)
