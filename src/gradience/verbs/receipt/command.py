"""The commands ``gradience receipt`` and ``gradience verify-served``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from gradience.commands import options as opt
from gradience.commands.bar import on_terminal
from gradience.commands.output import DONE, FOUND, NOT_DECIDED, emit_json, print_text
from gradience.errors import AdapterError
from gradience.schema.receipt import VerifyServedReport
from gradience.schema.reports import SourceLocation
from gradience.verbs.receipt.options import ReceiptOptions


@dataclass(frozen=True, kw_only=True)
class _ReceiptOptions(ReceiptOptions):
    seed: opt.Seed = 0


_DEFAULTS: Final = _ReceiptOptions()
_CODES: Final = {"same": DONE, "same_within_quantisation": DONE, "cannot_tell": NOT_DECIDED}


def receipt(
    path: Path | None = None,
    /,
    *,
    peft_dir: opt.PeftDir = None,
    base: opt.RequiredBase,
    data: Annotated[Path | None, Parameter(alias="--prompts")] = None,
    out: Path | None = None,
    force: opt.Flag = False,
    options: Annotated[_ReceiptOptions, opt.RECORD] = _DEFAULTS,
    json: opt.AsJson = False,
) -> int:
    """Write down what an adapter answers, so that 'gradience verify-served' can tell whether it is what is served.

    A few KB: log-probabilities of given tokens under the base and under base and adapter, how far the same adapter goes
    from itself in other dtypes on this machine, and digests of adapter, base, tokenizer and template.

    Parameters
    ----------
    path:
        The folder that PEFT saved.
    data:
        Rows of what the adapter was trained for: JSONL or Parquet with text, prompt or messages, or plain text; or a
        recipe (YAML) that names them. Without it: the data set of a recipe beside the adapter, else the model samples.
    out:
        File to write.
    force:
        Replace --out if it exists.
    """
    adapter = opt.given_once("receipt", path, peft_dir)
    if out is None:
        raise AdapterError("no output path", advice="give --out receipt.json")
    from gradience.io.atomic import refuse_file  # --help needs none of it

    refuse_file(out, force=force)
    _prepare()
    from gradience.verbs.receipt.rows import files_of  # as above
    from gradience.verbs.receipt.run import make_receipt, write_receipt  # as above
    from gradience.verbs.receipt.view import receipt_text  # as above

    made = make_receipt(adapter, base, prompts=data, options=options, progress=on_terminal("receipt"))
    size = write_receipt(made, out, sources=files_of(adapter, data), force=force)
    if json:
        import msgspec  # as above

        emit_json(msgspec.json.format(msgspec.json.encode(made)).decode())
    else:
        print_text(receipt_text(made, out=str(out), size=size))
    return DONE


def verify_served(
    receipt: Path,
    target: str,
    /,
    *,
    base: opt.Base = None,
    adapter: Annotated[Path | None, Parameter(name="--peft-dir", alias="--adapter")] = None,
    model: str | None = None,
    timeout: float = 120.0,
    options: opt.Options = opt.DEFAULT_OPTIONS,
    verbose: opt.Details = False,
) -> int:
    """Tell whether what is served is what a receipt was written of, and if not, what it is.

    Answers: same; same within quantisation; another checkpoint; part missing; wrong scale; another adapter; the base;
    tokens or template differ; cannot tell. Requests go to the address given only; a key is read from GRADIENCE_API_KEY.
    Exit codes: 0 the same, 1 something else, 3 it cannot be told, 2 unusable input.

    Parameters
    ----------
    receipt:
        The file that 'gradience receipt' wrote.
    target:
        An adapter's folder (with --base), a merged model's folder, or http://host:port of a server with
        OpenAI's completions.
    adapter:
        The receipt's adapter: with --base, parts and scales are tried to explain a difference.
    model:
        The name under which a server serves the adapter.
    timeout:
        Seconds that one request may take.
    """
    resolved = options.resolved()
    _prepare()
    from gradience.verbs.receipt.run import verify_served as verify  # --help needs none of it
    from gradience.verbs.receipt.view import verify_served_text  # as above

    report = verify(
        receipt, target, base=base, adapter=adapter, model=model, timeout=timeout, progress=on_terminal("verify-served")
    )
    resolved.show(
        report,
        lambda it: verify_served_text(it, verbose=verbose),
        report.findings,
        groups=("served",),
        locations=lambda: [SourceLocation(str(receipt))] * len(report.findings),
        not_run=report.not_run,
    )
    return _code(report)


def _code(report: VerifyServedReport) -> int:
    return _CODES.get(report.verdict, FOUND)


def _prepare() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # avoids its warning about forks
