"""The command ``gradience verify``."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from cyclopts import Parameter

from gradience.commands import options as opt
from gradience.commands.bar import on_terminal
from gradience.commands.output import DONE, FOUND, NOT_DECIDED
from gradience.errors import AdapterError
from gradience.verbs.verify.options import AnswerOptions
from gradience.verbs.verify.started import PORT, serving

FailOn: TypeAlias = Literal["verdict", "changes", "never"]

_CODES: Final = {
    "contained": DONE,
    "same": DONE,
    "same_within_quantisation": DONE,
    "inconclusive": NOT_DECIDED,
    "cannot_tell": NOT_DECIDED,
}
"""Of each verdict; all others are something else than the adapter."""


_ANSWERS: Final = AnswerOptions()


def verify(
    what: str,
    /,
    *,
    adapter: Annotated[Path | None, Parameter(alias="--peft-dir", help="The adapter's folder, or its weights.")] = None,
    base: opt.Base = None,
    files: opt.Files = opt.BESIDE,
    answers: Annotated[AnswerOptions, opt.RECORD] = _ANSWERS,
    fail_on: Annotated[FailOn, Parameter(group=opt.FINDINGS)] = "verdict",
    verbose: opt.Verbose = False,
    json: opt.AsJson = False,
) -> int:
    """Tell whether what is shipped is what was trained. Nothing is written.

    A merged model is compared tensor by tensor (--adapter, --base). What serves, and an adapter's folder, are asked for
    what a receipt holds, and what answers is named: same; same within quantisation; another checkpoint; part missing;
    wrong scale; another adapter; the base; tokens or template differ; cannot tell. With --adapter and --base parts and
    scales are tried. A key is read from GRADIENCE_API_KEY.

    W is the base's weight, M the merged one, dW = s B A the update (DoRA and kin: their true update). exact: M is bit
    for bit W + dW, rounded to float32 or M's dtype. within rounding: every entry of |M - (W + dW)| is within the bound
    of the dtypes. absent: M = W. c = <M - W, dW> / norm(dW)^2; residual = norm(M - W - c dW) / norm(dW); expected = the
    c of a correct merge in these dtypes.

    Of a merged model's folder the rest is read too (config.json, tokenizer, template): would it load as it is?

    Exit codes: 0 the same, or contained; 1 not, or it would not load as it is; 3 it cannot be told; 2 unusable input.

    Parameters
    ----------
    what:
        A merged model's folder or file; an adapter's folder; http://host:port of a server with OpenAI's completions; or
        a command that starts one, with {port} in it.
    fail_on:
        changes: exit 1 also if a tensor differs that the adapter does not touch. never: 0.
    """
    if _is_asked(what) or (answers.receipt is not None and adapter is None):
        verdict = _asked(what, base, adapter, answers, verbose=verbose, json=json)
        changed = False
    else:
        if adapter is None or base is None:
            lacks = " and ".join(name for name, side in (("--adapter", adapter), ("--base", base)) if side is None)
            raise AdapterError(
                f"needs {lacks}: a merged model is verified beside adapter and base",
                advice="give 'gradience verify MERGED --adapter ADAPTER --base MODEL', or --receipt",
            )
        from gradience.verbs.verify.run import verify_merged  # --help needs none of it
        from gradience.verbs.verify.view import verify_merged_text  # as above

        report = verify_merged(
            base,
            adapter,
            what,
            adapter_config=files.adapter_config,
            receipt=answers.receipt,
            progress=on_terminal("verify"),
        )
        opt.print_report(report, lambda it: verify_merged_text(it, verbose=verbose), json=json)
        verdict, changed = report.verdict, bool(report.others)
        if _CODES.get(verdict) == DONE and any(each.severity == "error" for each in report.findings):
            verdict = "not_loaded"
    if fail_on == "never":
        return DONE
    code = _CODES.get(verdict, FOUND)
    return FOUND if fail_on == "changes" and changed else code


def _is_asked(what: str) -> bool:
    """Whether it is known by its answers alone: an address, a command, or an adapter."""
    return _is_address(what) or PORT in what or (Path(what) / "adapter_config.json").is_file()


def _is_address(what: str) -> bool:
    return what.startswith(("http://", "https://"))


def _asked(
    what: str, base: Path | None, adapter: Path | None, answers: AnswerOptions, *, verbose: bool, json: bool
) -> str:
    """Ask for what the receipt holds, print the report, and return its verdict."""
    if answers.receipt is None:
        raise AdapterError(
            f"{what} is verified by its answers, and no receipt is given",
            advice="give --receipt FILE, of 'gradience receipt ADAPTER --base MODEL --out FILE'",
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # avoids its warning about forks
    from gradience.verbs.receipt.view import verify_served_text  # --help needs none of it
    from gradience.verbs.verify.served import verify_asked  # as above

    target: AbstractContextManager[str] = nullcontext(what)
    if PORT in what and not _is_address(what):
        target = serving(what, timeout=answers.timeout)
        if adapter is not None:
            answers = replace(answers, server_flags=answers.server_flags or what)
    with target as place:
        report = verify_asked(place, answers, base=base, adapter=adapter, progress=on_terminal("verify"))
    opt.print_report(report, lambda it: verify_served_text(it, verbose=verbose), json=json)
    return report.verdict
