"""The command ``gradience resize``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from gradience.commands import options as opt
from gradience.commands.bar import on_terminal
from gradience.commands.output import keep_freed
from gradience.device import prepare_jax
from gradience.verbs.resize.options import ResizeOptions
from gradience.verbs.resize.view import resize_text

_RESIZE = ResizeOptions()


def resize(
    path: Path,
    /,
    *,
    out: Path | None = None,
    options: Annotated[ResizeOptions, opt.RECORD] = _RESIZE,
    writing: opt.Writing = opt.WRITING,
) -> int:
    """Write a copy of a LoRA adapter whose updates have lower ranks, each the best of its rank.

    Give exactly one criterion. sigma_1 >= sigma_2 >= ... are the singular values of a module's update s B A, and k
    is its new rank, at least 1 and at most the present one. s stays as it is; all other tensors are copied bit for
    bit. The input adapter is never changed. DoRA needs --base for its magnitudes. Verify the result by
    an evaluation.

    Parameters
    ----------
    path:
        The folder that PEFT saved, or its weights file; or a LoRA file of kohya's (sd-scripts).
    out:
        The folder to write; for a file of kohya's, the .safetensors file.
    """
    place = writing.place(out)
    options.target()  # raises before JAX is imported
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for r x r problems, more threads would wait for each other
    keep_freed()
    prepare_jax("auto")
    from gradience.verbs.resize.run import resize_adapter  # imports jax, after its environment is set

    report = resize_adapter(path, place, options=options, force=writing.force, progress=on_terminal("resize"))
    return writing.shown(report, resize_text)
