"""The command ``gradience merge``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from gradience.commands import options as opt
from gradience.commands.bar import on_terminal
from gradience.commands.output import keep_freed
from gradience.device import prepare_jax
from gradience.schema.reports import SourceLocation
from gradience.verbs.merge.options import MergeOptions
from gradience.verbs.merge.view import merge_check_text, merge_text

_MERGE = MergeOptions()


def merge(
    *adapters: Path,
    out: opt.OutFolder = None,
    check: opt.Flag = False,
    options: Annotated[MergeOptions, opt.RECORD] = _MERGE,
    writing: opt.Writing = opt.WRITING,
) -> int:
    """Merge plain PEFT LoRA adapters of one base model into one adapter, with its error in every module.

    dW_i = s_i B_i A_i is adapter i's update (zero where it has no such module), w_i its weight, S = sum w_i dW_i.
    Whatever the ranks, scales, rsLoRA or patterns of the adapters; no base model is needed.

    Parameters
    ----------
    adapters:
        Two adapters or more. They are not changed.
    check:
        Write nothing: what the merge would write or why it would be refused, and what would collide by module. Keeps:
        <S, dW_i> / norm(dW_i)^2. Conflict: the share of entries where two of the w_i dW_i have opposite signs.
        Cancelled: 1 - sum |S| / sum sum_i |w_i dW_i| over entries.
    """
    if check:
        return _checked(adapters, options, writing)
    place = writing.place(out)
    if options.method in {"linear", "cat", "svd"}:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the cores work on different modules, one thread each
    keep_freed()
    prepare_jax("auto")
    from gradience.verbs.merge.run import merge_adapters  # imports jax, after its environment is set

    report = merge_adapters(adapters, place, options=options, force=writing.force, progress=on_terminal("merge"))
    return writing.shown(report, merge_text)


def _checked(adapters: Sequence[Path], options: MergeOptions, writing: opt.WritingOptions) -> int:
    """Print what the merge would do; the project's settings say which rules apply, and from when the exit code is 1."""
    resolved = opt.RuleOptions(json=writing.json).resolved()
    prepare_jax("auto", serial_kernels=True)
    from gradience.verbs.merge.check import merge_check  # after the flags that JAX reads once

    report = merge_check(*adapters, options=options, progress=on_terminal("merge"), **resolved.rules)
    return resolved.show(
        report,
        lambda it: merge_check_text(it, verbose=writing.verbose),
        report.findings,
        groups=("merge",),
        locations=lambda: [SourceLocation(report.adapters[0].adapter.path)] * len(report.findings),
        not_run=report.not_run,
    )
