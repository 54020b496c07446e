"""The commands ``gradience resize``, ``mitigate`` and ``convert``, which write an adapter from another."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt
from cyclopts.validators import Number

from gradience.cli import options as opt
from gradience.cli.output import keep_freed, on_terminal
from gradience.device import prepare_jax
from gradience.errors import AdapterError
from gradience.render.writing import convert_text, mitigate_text, resize_text
from gradience.rewrite.options import ResizeOptions
from gradience.schema.writing import Target


@dataclass(frozen=True, kw_only=True)
class _ResizeOptions(ResizeOptions):
    like_suggested: opt.Flag = False  # which has no --no-like-suggested


_NO_OPTIONS = _ResizeOptions()


def resize(
    path: Path | None = None,
    /,
    *,
    peft_dir: opt.PeftDir = None,
    out: Path | None = None,
    options: Annotated[_ResizeOptions, Parameter(name="*")] = _NO_OPTIONS,
    adapter_config: opt.AdapterConfig = None,
    weights: opt.WeightsFile = None,
    dry_run: opt.DryRun = False,
    force: opt.Force = False,
    verbose: opt.Verbose = False,
    json: opt.AsJson = False,
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
    adapter = opt.given_once("resize", path, peft_dir)
    place = opt.output_path(out, dry_run=dry_run)
    options.target()  # raises before JAX is imported
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for r x r problems, more threads would wait for each other
    keep_freed()
    prepare_jax("auto")
    from gradience.rewrite.resize import resize_adapter  # imports jax, after its environment is set

    report = resize_adapter(
        adapter,
        place,
        options=options,
        adapter_config=adapter_config,
        weights=weights,
        force=force,
        progress=on_terminal("resize"),
    )
    return opt.print_report(report, lambda it: resize_text(it, verbose=verbose), json=json)


def mitigate(
    path: Path | None = None,
    /,
    *,
    base: opt.RequiredBase,
    peft_dir: opt.PeftDir = None,
    out: opt.OutFolder = None,
    scale: Annotated[float, Parameter(validator=Number(gte=0.0, lte=1.0))] = 0.5,
    k: PositiveInt = 10,
    eps: Annotated[float, Parameter(validator=Number(gt=0.0, lte=1.0))] = 0.5,
    seed: opt.Seed = 0,
    adapter_config: opt.AdapterConfig = None,
    weights: opt.WeightsFile = None,
    dry_run: opt.DryRun = False,
    force: opt.Force = False,
    verbose: opt.Verbose = False,
    json: opt.AsJson = False,
) -> int:
    """Write a copy of a PEFT LoRA adapter whose intruder dimensions are scaled down (arXiv 2410.21228).

    In each module dW' = (I - (1 - SCALE) U U^T) dW, where the columns of U are its intruders. Only what the adapter
    adds along them is scaled, never the base's own part; the rank stays. The adapter that is read is never changed.

    Parameters
    ----------
    path:
        The adapter's folder, or its weights file.
    scale:
        What is left of dW along each intruder: u^T dW' = SCALE * u^T dW.
    k:
        How many leading left singular vectors of W + dW to look at.
    eps:
        u is an intruder where max_i |<u, u_i(W)>| < EPS.
    """
    adapter = opt.given_once("mitigate", path, peft_dir)
    place = opt.output_path(out, dry_run=dry_run)
    if not (math.isfinite(scale) and math.isfinite(eps)):
        raise AdapterError(f"--scale and --eps are {scale} and {eps}, expected finite numbers")
    prepare_jax("auto")
    from gradience.rewrite.mitigate import mitigate_adapter  # imports jax, after its environment is set

    report = mitigate_adapter(
        adapter,
        base,
        place,
        scale=scale,
        k=k,
        eps=eps,
        seed=seed,
        adapter_config=adapter_config,
        weights=weights,
        force=force,
        progress=on_terminal("mitigate"),
    )
    return opt.print_report(report, lambda it: mitigate_text(it, verbose=verbose), json=json)


def convert(
    path: Path | None = None,
    /,
    *,
    peft_dir: opt.PeftDir = None,
    out: opt.OutFolder = None,
    to: Target = "peft",
    rank: PositiveInt | None = None,
    energy: opt.Share = None,
    base: opt.Base = None,
    component: str | None = None,
    rename: opt.Strings = None,
    adapter_config: opt.AdapterConfig = None,
    weights: opt.WeightsFile = None,
    drop: opt.Flag = False,
    dry_run: opt.DryRun = False,
    force: opt.Force = False,
    verbose: opt.Verbose = False,
    json: opt.AsJson = False,
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
    to:
        peft: W + s B A, s = lora_alpha / r. mlx: W + scale b^T a^T, one rank and one scale for all modules.
    rank:
        At most this rank in each module: the best approximation in Frobenius norm.
    energy:
        In each module the least k with sigma_1^2 + ... + sigma_k^2 >= ENERGY * (sum of all sigma^2).
    component:
        Which model of a pipeline, where the file adapts several: unet, text_encoder, ...
    rename:
        Replace a prefix of the modules' paths, as OLD=NEW; may be given several times.
    drop:
        Leave out tensors that the target has no place for, such as a saved head; without it they are refused.
    """
    adapter = opt.given_once("convert", path, peft_dir)
    place = opt.output_path(out, dry_run=dry_run)
    if rank is not None and energy is not None:
        raise AdapterError("--rank and --energy were both given", advice="give one of them")
    from gradience.rewrite.convert import convert_adapter  # numpy, after the arguments are known to be right

    report = convert_adapter(
        adapter,
        place,
        to=to,
        rank=rank,
        energy=energy,
        base=base,
        component=component,
        renames=rename or (),
        drop=drop,
        force=force,
        adapter_config=adapter_config,
        weights=weights,
        progress=on_terminal("convert"),
    )
    return opt.print_report(report, lambda it: convert_text(it, verbose=verbose), json=json)
