"""``gradience verify-merge``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

from gradience.cli import options as opt
from gradience.cli.output import DONE, FOUND, on_terminal
from gradience.render.merge import verify_merge_text
from gradience.schema.merge import VerifyMergeReport

_INCONCLUSIVE: Final = 3
_BLAS: Final = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_MOST_THREADS: Final = 4  # more would wait for the disk

FailOn = Literal["verdict", "changes", "never"]


def verify_merge(
    *,
    base: opt.RequiredBase,
    adapter: Path,
    merged: Path,
    adapter_config: opt.AdapterConfig = None,
    weights: opt.WeightsFile = None,
    fail_on: FailOn = "verdict",
    verbose: opt.Verbose = False,
    json: opt.AsJson = False,
) -> int:
    """Check that a merged model contains an adapter. Only files are read; nothing is written.

    W is the base's weight, M the merged one, dW = s B A the update (DoRA and kin: their true update). exact: M is bit
    for bit T(T(W) + D(dW)) cast to M's dtype, for dtypes T and D that programs merge in. within rounding: every entry
    of |M - (W + dW)| is within the bound of the dtypes. absent: M = W. c = <M - W, dW> / norm(dW)^2; residual =
    norm(M - W - c dW) / norm(dW); expected = the c of a correct merge in these dtypes. Exit codes: 0 contained, 1 not,
    3 inconclusive, 2 unusable input.

    Parameters
    ----------
    adapter:
        The adapter's folder, or its weights file.
    merged:
        The merged model, as the base.
    fail_on:
        verdict: exit 0 contained, 1 not, 3 inconclusive. changes: 1 also if any other tensor differs. never: 0.
    verbose:
        List every module, and every other tensor that differs.
    """
    threads = _threads()
    from gradience.verbs.verify_merge import verify_merged  # noqa: PLC0415  # imports numpy, after its environment is set

    report = verify_merged(
        base,
        adapter,
        merged,
        adapter_config=adapter_config,
        weights=weights,
        threads=threads,
        progress=on_terminal("verify-merge"),
    )
    opt.print_report(report, lambda it: verify_merge_text(it, verbose=verbose), json=json)
    return _code(report, fail_on)


def _threads() -> int:
    """Limit BLAS to one thread, whose own threads wait for each other in small products; the number for spans."""
    for name in _BLAS:
        os.environ.setdefault(name, "1")
    return min(os.cpu_count() or 1, _MOST_THREADS)


def _code(report: VerifyMergeReport, fail_on: FailOn) -> int:
    if fail_on == "never":
        return DONE
    if report.verdict == "not_contained" or (fail_on == "changes" and report.others):
        return FOUND
    return DONE if report.verdict == "contained" else _INCONCLUSIVE
