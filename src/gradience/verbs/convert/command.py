"""The command ``gradience convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from gradience.commands import options as opt
from gradience.commands.bar import on_terminal
from gradience.verbs.convert.options import ConvertOptions
from gradience.verbs.convert.view import convert_text

_CONVERT = ConvertOptions()


def convert(
    path: Path,
    /,
    *,
    out: opt.OutFolder = None,
    options: Annotated[ConvertOptions, opt.RECORD] = _CONVERT,
    writing: opt.Writing = opt.WRITING,
) -> int:
    """Write an adapter in another format: a plain PEFT LoRA, or MLX-LM's.

    Exact where the update has a low rank; what is not exact is asked for with --rank or --energy, and its error is
    reported for every module. The input adapter is never changed. --base is needed where the update depends on
    the base's weights (DoRA, HiRA, MiSS, PiSSA, OLoRA, KaSA, some VeRA) or names (kohya).

    Parameters
    ----------
    path:
        The adapter's folder, or its weights file: PEFT (LoRA of any kind, AdaLoRA, LoHa, LoKr, VeRA, HiRA, MiSS),
        MLX-LM, kohya, diffusers.
    """
    place = writing.place(out)
    from gradience.verbs.convert.run import convert_adapter  # numpy

    report = convert_adapter(path, place, options=options, force=writing.force, progress=on_terminal("convert"))
    return writing.shown(report, convert_text)
