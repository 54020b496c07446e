"""The commands ``gradience merge`` and ``merge-check``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, Token
from cyclopts.types import NonNegativeInt

from gradience.commands import options as opt
from gradience.commands.bar import on_terminal
from gradience.commands.output import keep_freed
from gradience.device import prepare_jax
from gradience.errors import AdapterError
from gradience.schema.reports import SourceLocation
from gradience.verbs.merge.options import MergeOptions
from gradience.verbs.merge.view import merge_check_text, merge_text


def parsed_weights(text: str | None) -> list[float] | None:
    """Return the numbers of a list such as `0.5,0.5`, or None if no list is given.

    Raises:
        AdapterError: an item is not a number.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise AdapterError(f"--weights {text!r} is not a list of numbers", advice="write --weights 0.5,0.5") from error


def _weights(_: object, tokens: Sequence[Token]) -> list[float] | None:
    return parsed_weights(tokens[0].value)


@dataclass(frozen=True, kw_only=True)
class _MergeOptions(MergeOptions):
    weights: Annotated[Sequence[float] | None, Parameter(converter=_weights, n_tokens=1, metavar="STR")] = None


_MERGE = _MergeOptions()


def merge(
    *adapters: Path,
    out: opt.OutFolder = None,
    options: Annotated[_MergeOptions, opt.RECORD] = _MERGE,
    writing: opt.Writing = opt.WRITING,
) -> int:
    """Merge plain PEFT LoRA adapters of one base model into one adapter, with its error in every module.

    dW_i = s_i B_i A_i is adapter i's update (zero where it has no such module), w_i its weight, S = sum w_i dW_i.
    Whatever the ranks, scales, rsLoRA or patterns of the adapters; no base model is needed.

    Parameters
    ----------
    adapters:
        Two adapters or more. They are not changed.
    """
    place = writing.place(out)
    if options.method in {"linear", "cat", "svd"}:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the cores work on different modules, one thread each
    keep_freed()
    prepare_jax("auto")
    from gradience.verbs.merge.run import merge_adapters  # imports jax, after its environment is set

    report = merge_adapters(adapters, place, options=options, force=writing.force, progress=on_terminal("merge"))
    return writing.shown(report, merge_text)


def merge_check(
    *adapters: Path,
    weights: str | None = None,
    exact: opt.Flag = False,
    top: NonNegativeInt = 3,
    device: opt.Device = "auto",
    options: opt.Options = opt.DEFAULT_OPTIONS,
    verbose: opt.Details = False,
) -> int:
    """Report before a merge what it leaves of each adapter, then conflicts. Nothing is written.

    dW_i = s_i B_i A_i, M = sum w_i dW_i. Left of adapter i's own update: w_i. Keeps: <M, dW_i> / norm(dW_i)^2, the
    weight with which M applies it. Conflict: the share of entries where two of the w_i dW_i have opposite signs.
    Cancelled: 1 - sum |M| / sum sum_i |w_i dW_i| over entries. Overlaps phi(k, k) as of 'gradience compare'.

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
    from gradience.verbs.merge.check import merge_check as check  # after the flags that JAX reads once

    report = check(*adapters, weights=chosen, exact=exact, progress=on_terminal("merge-check"), **resolved.rules)
    return resolved.show(
        report,
        lambda it: merge_check_text(it, top=top, verbose=verbose),
        report.findings,
        groups=("merge",),
        locations=lambda: [SourceLocation(report.adapters[0].adapter.path)] * len(report.findings),
        not_run=report.not_run,
    )
