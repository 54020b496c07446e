"""The command ``gradience compare``."""

from __future__ import annotations

import os
from pathlib import Path

from cyclopts.types import NonNegativeInt

from gradience.commands import options as opt
from gradience.commands.bar import on_terminal
from gradience.commands.output import draws_blocks, keep_freed
from gradience.device import prepare_jax
from gradience.errors import AdapterError
from gradience.verbs.compare.view import compare_adapters_text


def compare(
    *adapters: Path,
    top: NonNegativeInt = 5,
    heatmap: opt.Flag = False,
    device: opt.Device = "auto",
    verbose: opt.Verbose = False,
    json: opt.AsJson = False,
) -> int:
    """Compare trained adapters by their weights: two or more, or the checkpoints of one run.

    dW = s B A is a module's update. The cosine is <dW1, dW2> / (norm(dW1) norm(dW2)), with Frobenius norms. Shared
    directions: phi(i, j) = norm(U_i^T V_j)^2 / min(i, j) over the i and j leading singular vectors of either
    (arXiv 2106.09685, equation 4), in [0, 1]; by chance max(i, j) / d. Energy moved: half the sum over layers of
    the change in their share of norm(dW)^2. Ranks and scales may differ; no base model is needed.

    Parameters
    ----------
    adapters:
        The adapters' folders or weights files. Given one folder: a run's, whose checkpoint-N are compared as a series.
    top:
        How many modules to list of each pair, the least alike first.
    heatmap:
        Add a map of the cosine, layer by kind of module.
    verbose:
        List every module; of a series every step from one checkpoint to the next.
    """
    if not adapters:
        raise AdapterError("compare needs adapters, none given", advice="give two, or a run's folder")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the cores work on different modules, one thread each
    keep_freed()
    prepare_jax(device, serial_kernels=True)
    from gradience.verbs.compare.run import compare_adapters  # after the flags that JAX reads once

    report = compare_adapters(*adapters, progress=on_terminal("compare"))
    return opt.print_report(
        report,
        lambda it: compare_adapters_text(it, top=top, heatmap=heatmap, unicode=draws_blocks(), verbose=verbose),
        json=json,
    )
