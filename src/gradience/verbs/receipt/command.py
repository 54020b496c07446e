"""The command ``gradience receipt``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

from gradience.commands import options as opt
from gradience.commands.bar import on_terminal
from gradience.commands.output import DONE, emit_json, print_text
from gradience.errors import AdapterError
from gradience.verbs.receipt.options import ReceiptOptions

_DEFAULTS: Final = ReceiptOptions()


def receipt(
    path: Path | None = None,
    /,
    *,
    peft_dir: opt.PeftDir = None,
    base: opt.RequiredBase,
    data: Path | None = None,
    out: Path | None = None,
    force: opt.Flag = False,
    options: Annotated[ReceiptOptions, opt.RECORD] = _DEFAULTS,
    json: opt.AsJson = False,
) -> int:
    """Write down what an adapter answers, so that 'gradience verify' can tell whether it is what is served.

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
        raise AdapterError("needs --out", advice="give --out receipt.json")
    from gradience.io.atomic import refuse_file  # --help needs none of it

    refuse_file(out, force=force)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # avoids its warning about forks
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
