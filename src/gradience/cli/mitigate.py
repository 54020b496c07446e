"""``gradience mitigate``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt
from cyclopts.validators import Number

from gradience.cli import options as opt
from gradience.cli.output import on_terminal
from gradience.errors import AdapterError
from gradience.render.writing import mitigate_text
from gradience.verbs.device import prepare_jax


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
    from gradience.verbs.mitigate import mitigate_adapter  # noqa: PLC0415  # imports jax, after its environment is set

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
