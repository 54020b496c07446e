"""``gradience merge``."""

from __future__ import annotations

from pathlib import Path

from cyclopts.types import NonNegativeInt, PositiveInt

from gradience.cli import options as opt
from gradience.cli.output import on_terminal
from gradience.errors import AdapterError
from gradience.render.merge import merge_check_text, merge_text
from gradience.schema.merge import MergeMethod
from gradience.schema.reports import SourceLocation
from gradience.verbs.device import prepare_jax


def merge(
    *adapters: Path,
    out: opt.OutFolder = None,
    method: MergeMethod = "linear",
    weights: str | None = None,
    rank: PositiveInt | None = None,
    density: opt.Share = None,
    seed: opt.Seed = 0,
    heads_from: str | None = None,
    dtype: opt.Dtype = None,
    dry_run: opt.DryRun = False,
    force: opt.Force = False,
    verbose: opt.Verbose = False,
    json: opt.AsJson = False,
) -> int:
    """Merge plain PEFT LoRA adapters of one base model into one adapter, with its error in every module.

    dW_i = s_i B_i A_i is adapter i's update (zero where it has no such module), w_i its weight, S = sum w_i dW_i.
    Whatever the ranks, scales, rsLoRA or patterns of the adapters; no base model is needed.

    Parameters
    ----------
    adapters:
        Two adapters or more. They are not changed.
    method:
        linear: S, at the rank that it has. cat: S, factors side by side, rank sum r_i. svd: the best rank-RANK
        approximation of S. ties: entries kept are the DENSITY * n largest of n in each dW_i; then, entry by entry,
        the mean of w_i dW_i over the adapters that agree with the sign of their sum. dare_linear: each entry kept
        with probability DENSITY and divided by it, then S. dare_ties: the same, then signs and means as for ties.
        ties and dare are dense (one module in memory: about 24 bytes an entry), and cut to the best rank RANK.
    weights:
        One number per adapter, as 0.5,0.5. Without it 1/n each; 1 for ties and dare_ties, which are means already.
    rank:
        Of svd, ties and dare: without it the largest rank that an adapter has in the module.
    density:
        Share of entries that ties or dare keeps. ties: 0.2 without it, the paper's. dare: to be given.
    heads_from:
        Which adapter's heads, biases and token rows win on conflict: A, B, ... by position, or the adapter's name.
    """
    place = opt.output_path(out, dry_run=dry_run)
    chosen = parsed_weights(weights)
    from gradience.verbs.merge import merge_adapters  # noqa: PLC0415  # numpy, after the arguments are known to be right

    try:
        report = merge_adapters(
            adapters,
            place,
            method=method,
            weights=chosen,
            rank=rank,
            density=density,
            seed=seed,
            heads_from=heads_from,
            dtype=dtype,
            force=force,
            progress=on_terminal("merge"),
        )
    except ValueError as error:
        raise AdapterError(str(error), advice="see 'gradience merge --help'") from error
    return opt.print_report(report, lambda it: merge_text(it, verbose=verbose), json=json)


def parsed_weights(text: str | None) -> list[float] | None:
    """Return the numbers of a list such as `0.5,0.5`, or None where none is given.

    Raises:
        AdapterError: one is no number.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise AdapterError(f"--weights {text!r} is not a list of numbers", advice="write --weights 0.5,0.5") from error


def merge_check(
    *adapters: Path,
    weights: str | None = None,
    exact: opt.Flag = False,
    seed: opt.Seed = 0,
    top: NonNegativeInt = 5,
    device: opt.Device = "auto",
    options: opt.Options = opt.DEFAULT_OPTIONS,
    verbose: opt.Details = False,
) -> int:
    """Report conflicts before merging adapters. Nothing is written.

    dW_i = s_i B_i A_i, M = sum w_i dW_i. Keeps: <M, dW_i> / norm(dW_i)^2, the weight with which M applies adapter i's
    own update. Conflict: the share of entries where two of the w_i dW_i have opposite signs. Cancelled:
    1 - sum |M| / sum sum_i |w_i dW_i| over entries. Overlaps phi(k, k) as of 'gradience compare'.

    Parameters
    ----------
    adapters:
        Two adapters or more, of one base model.
    weights:
        One number per adapter, as 0.5,0.5. Without it 1/n each.
    exact:
        Read every entry for the signs; without it random rows of about half a million entries of each module.
    top:
        How many modules to list, those that cancel most first.
    """
    resolved, chosen = options.resolved(), parsed_weights(weights)
    prepare_jax(device, serial_kernels=True)
    from gradience.verbs.merge import merge_check as check  # noqa: PLC0415  # after the flags that JAX reads once

    try:
        report = check(
            *adapters,
            weights=chosen,
            exact=exact,
            seed=seed,
            progress=on_terminal("merge-check"),
            **resolved.rules,
        )
    except ValueError as error:
        raise AdapterError(str(error), advice="see 'gradience merge-check --help'") from error
    return resolved.show(
        report,
        lambda it: merge_check_text(it, top=top, verbose=verbose),
        report.findings,
        groups=("merge",),
        locations=lambda: [SourceLocation(report.adapters[0].adapter.path)] * len(report.findings),
        not_run=report.not_run,
    )
