"""The commands ``gradience merge``, ``merge-check``, ``verify-merge`` and ``compare``.

They merge several adapters or compare them, or look for an adapter in a merged model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, Token
from cyclopts.types import NonNegativeInt

from gradience.cli import options as opt
from gradience.cli.bar import on_terminal
from gradience.cli.output import DONE, FOUND, NOT_DECIDED, draws_blocks, keep_freed
from gradience.device import prepare_jax
from gradience.errors import AdapterError
from gradience.render.compare import compare_adapters_text
from gradience.render.merge import merge_check_text, merge_text, verify_merge_text
from gradience.rewrite.options import MergeOptions
from gradience.schema.merge import VerifyMergeReport
from gradience.schema.reports import SourceLocation


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
    from gradience.rewrite.merge import merge_adapters  # imports jax, after its environment is set

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
    from gradience.rewrite.merge.check import merge_check as check  # after the flags that JAX reads once

    report = check(*adapters, weights=chosen, exact=exact, progress=on_terminal("merge-check"), **resolved.rules)
    return resolved.show(
        report,
        lambda it: merge_check_text(it, top=top, verbose=verbose),
        report.findings,
        groups=("merge",),
        locations=lambda: [SourceLocation(report.adapters[0].adapter.path)] * len(report.findings),
        not_run=report.not_run,
    )


FailOn = Literal["verdict", "changes", "never"]


def verify_merge(  # noqa: PLR0913  # two of them name one adapter
    path: Path | None = None,
    /,
    *,
    peft_dir: Annotated[Path | None, Parameter(alias="--adapter", help="Alias of PATH.")] = None,
    base: opt.Base = None,
    merged: Path | None = None,
    files: opt.Files = opt.BESIDE,
    receipt: Path | None = None,
    fail_on: FailOn = "verdict",
    verbose: opt.Verbose = False,
    json: opt.AsJson = False,
) -> int:
    """Check that a merged model contains an adapter. Only files are read; nothing is written.

    W is the base's weight, M the merged one, dW = s B A the update (DoRA and kin: their true update). exact: M is bit
    for bit W + dW, rounded to float32 or M's dtype. within rounding: every entry of |M - (W + dW)| is within the bound
    of the dtypes. absent: M = W. c = <M - W, dW> / norm(dW)^2; residual =
    norm(M - W - c dW) / norm(dW); expected = the c of a correct merge in these dtypes. Exit codes: 0 contained, 1 not,
    3 inconclusive, 2 unusable input.

    Parameters
    ----------
    path:
        The adapter's folder, or its weights file.
    merged:
        The merged model, as the base.
    receipt:
        A file of 'gradience receipt': the merged model is run, and asked for the same.
    fail_on:
        verdict: exit 0 contained, 1 not, 3 inconclusive. changes: 1 also if any other tensor differs. never: 0.
    verbose:
        List every module, and every other tensor that differs.
    """
    sides = {"PATH": path or peft_dir, "--base": base, "--merged": merged}
    if base is None or merged is None or (path or peft_dir) is None:
        lacks = " and ".join(name for name, side in sides.items() if side is None)
        raise AdapterError(
            f"verify-merge needs an adapter, its base and the merged model: no {lacks}",
            advice="give 'gradience verify-merge ADAPTER --base MODEL --merged MODEL'",
        )
    adapter = opt.given_once("verify-merge", path, peft_dir)
    from gradience.prove.verify_merge import verify_merged  # --help needs none of it

    report = verify_merged(
        base, adapter, merged, receipt=receipt, progress=on_terminal("verify-merge"), **asdict(files)
    )
    opt.print_report(report, lambda it: verify_merge_text(it, verbose=verbose), json=json)
    return _code(report, fail_on)


def _code(report: VerifyMergeReport, fail_on: FailOn) -> int:
    if fail_on == "never":
        return DONE
    if report.verdict == "not_contained" or (fail_on == "changes" and report.others):
        return FOUND
    return DONE if report.verdict == "contained" else NOT_DECIDED


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
    from gradience.rewrite.compare import compare_adapters  # after the flags that JAX reads once

    report = compare_adapters(*adapters, progress=on_terminal("compare"))
    return opt.print_report(
        report,
        lambda it: compare_adapters_text(it, top=top, heatmap=heatmap, unicode=draws_blocks(), verbose=verbose),
        json=json,
    )
