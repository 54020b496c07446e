"""``gradience merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveInt
from cyclopts.validators import Number

from gradience.cli.options import NONE_GIVEN, DryRun, Force, Options, Verbose, place_of, printed
from gradience.cli.output import cleaning_up, on_terminal, prepare_jax, print_document, print_for_programs, print_text
from gradience.errors import AdapterError
from gradience.render.merge import merge_check_text, merge_text
from gradience.render.text import Place
from gradience.schema.merge import MergeMethod


def merge(
    *adapters: Path,
    out: Path | None = None,
    method: MergeMethod = "linear",
    weights: str | None = None,
    rank: PositiveInt | None = None,
    density: Annotated[float | None, Parameter(validator=Number(gt=0.0, lte=1.0))] = None,
    seed: NonNegativeInt = 0,
    heads_from: str | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    dry_run: DryRun = False,
    force: Force = False,
    verbose: Verbose = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Merge plain PEFT LoRA adapters of one base model into one adapter, with its error in every module.

    dW_i = s_i B_i A_i is adapter i's update (zero where it has no such module), w_i its weight, S = sum w_i dW_i.
    Whatever the ranks, scales, rsLoRA or patterns of the adapters; no base model is needed.

    Parameters
    ----------
    adapters:
        Two adapters or more. They are not changed.
    out:
        The folder to write.
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
    seed:
        Of dare's random masks.
    heads_from:
        Whose heads, biases and token rows to take where they differ: A, B, ... by place, or the adapter's name.
    dtype:
        Of the factors: float32, float16 or bfloat16. Without it the adapters' own, if they have one in common.
    json:
        Print one JSON document (schemas/merge-report-v2.schema.json).
    """
    place = place_of(out, dry_run=dry_run)
    chosen = parsed_weights(weights)
    from gradience.verbs.merge import merge_adapters  # noqa: PLC0415  # numpy, after the arguments are known to be right

    with cleaning_up():
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
    return printed(report, merge_text, verbose=verbose, json=json)


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
        raise AdapterError(f"--weights {text!r} is no list of numbers", advice="write --weights 0.5,0.5") from error


def merge_check(
    *adapters: Path,
    weights: str | None = None,
    exact: Annotated[bool, Parameter(negative=())] = False,
    seed: NonNegativeInt = 0,
    top: NonNegativeInt = 5,
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto",
    judging: Options = NONE_GIVEN,
    verbose: Annotated[bool, Parameter(alias="-v", negative=())] = False,
) -> int:
    """Say what would get in each other's way if adapters were merged. Nothing is written.

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
    seed:
        Of the rows.
    top:
        How many modules to list, those that cancel most first.
    device:
        Where JAX adds up the long axes.
    verbose:
        Show the grounds of each finding, and which rules had nothing to judge.
    """
    settled, chosen = judging.settled(), parsed_weights(weights)
    prepare_jax(device, serial_kernels=True)
    from gradience.verbs.merge import merge_check as check  # noqa: PLC0415  # after the flags that JAX reads once

    try:
        report = check(
            *adapters,
            weights=chosen,
            exact=exact,
            seed=seed,
            select=settled.select,
            ignore=settled.ignore,
            settings=settled.settings,
            progress=on_terminal("merge-check"),
        )
    except ValueError as error:
        raise AdapterError(str(error), advice="see 'gradience merge-check --help'") from error
    if settled.format == "json":
        print_document(report)
    elif settled.format == "text":
        print_text(merge_check_text(report, top=top, verbose=verbose))
    else:
        places = [Place(report.adapters[0].adapter.path)] * len(report.findings)
        print_for_programs(settled.format, report.findings, places=places, groups=("merge",), not_run=report.not_run)
    return settled.exit_code(report.findings)
