"""``gradience merge-check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt

from gradience.cli.device import prepare_jax
from gradience.cli.formats import print_for_programs
from gradience.cli.judging import NONE_GIVEN, Options
from gradience.cli.merge import parsed_weights
from gradience.cli.output import print_document, print_text
from gradience.cli.progress import on_terminal
from gradience.errors import AdapterError
from gradience.render.cards import Place
from gradience.render.merge import merge_check_text

__all__ = ["merge_check"]


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
    from gradience.merge import merge_check as check  # noqa: PLC0415  # after the flags that JAX reads once

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
