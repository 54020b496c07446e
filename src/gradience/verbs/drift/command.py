"""The command ``gradience drift``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from gradience.commands import options as opt
from gradience.commands.bar import on_terminal
from gradience.errors import AdapterError
from gradience.verbs.drift.options import DriftOptions


@dataclass(frozen=True, kw_only=True)
class _DriftOptions(DriftOptions):
    seed: opt.Seed = 0


_DEFAULTS: Final = _DriftOptions()


def drift(
    path: Path,
    /,
    *,
    base: opt.RequiredBase,
    data: Annotated[Path | None, opt.Parameter(alias="--texts")] = None,
    elsewhere: Path | None = None,
    options: Annotated[_DriftOptions, opt.RECORD] = _DEFAULTS,
    verbose: Annotated[opt.Flag, opt.Parameter(alias="-v", help="List every group of modules.")] = False,
    json: opt.AsJson = False,
) -> int:
    """Measure how much an adapter changes what it was not trained for, without a benchmark.

    KL of the outputs from the base's, flips and loss: on texts of the adapter's task and on others. The same at lower
    scales of the adapter, and without each group of its modules. Needs gradience[hf].

    Parameters
    ----------
    path:
        The folder that PEFT saved.
    data:
        Texts of the adapter's task that it was not trained on: JSONL or Parquet with text, prompt or messages, or plain
        text with one a line. They need no labels.
    elsewhere:
        Texts of what should not change, in the same forms. Default: 48 built-in sentences.
    """
    if data is None:
        raise AdapterError("no texts of the adapter's task", advice="give --data FILE, such as the evaluation set")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # avoids its warning about forks
    from gradience.verbs.drift.run import measure_drift  # --help needs none of it
    from gradience.verbs.drift.view import drift_text  # as above

    report = measure_drift(path, base, texts=data, elsewhere=elsewhere, options=options, progress=on_terminal("drift"))
    return opt.print_report(report, lambda it: drift_text(it, verbose=verbose), json=json)
