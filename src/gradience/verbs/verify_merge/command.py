"""The command ``gradience verify-merge``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from gradience.commands import options as opt
from gradience.commands.bar import on_terminal
from gradience.commands.output import DONE, FOUND, NOT_DECIDED
from gradience.errors import AdapterError
from gradience.schema.merge import VerifyMergeReport
from gradience.verbs.verify_merge.view import verify_merge_text

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
    from gradience.verbs.verify_merge.run import verify_merged  # --help needs none of it

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
