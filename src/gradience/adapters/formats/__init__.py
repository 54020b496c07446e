"""The formats of adapter files: a table of what is tried, in order, and the opening of one file of weights.

To add a format, write a module that ends in a `Format` record (what it matches, how it is read, what it keeps where)
and put the record into `FORMATS` before any that would match its files too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gradience.adapters.formats.containers import SUFFIXES
from gradience.adapters.formats.kohya import DIFFUSERS, KOHYA
from gradience.adapters.formats.mlx import MLX, MLX_FULL, TORCHTUNE
from gradience.adapters.formats.peft import PEFT
from gradience.adapters.layout import Files, Format
from gradience.errors import AdapterError
from gradience.io.safetensors import SafetensorsFile, TensorSource

FORMATS: Final[tuple[Format, ...]] = (MLX, TORCHTUNE, KOHYA, PEFT, DIFFUSERS, MLX_FULL)
"""The first that matches reads the files. PEFT comes before diffusers, whose names are PEFT's under a prefix."""

_PICKLED: Final = frozenset({".bin", ".pt", ".pth"})


def format_of(files: Files) -> Format:
    """The format of the files; PEFT where none matches, which then reports what it misses."""
    return next((one for one in FORMATS if one.matches(files)), PEFT)


def open_weights(path: Path) -> TensorSource:
    """One file of tensors, its header read and no data.

    Raises:
        AdapterError: it is missing, damaged or of neither kind; a pickle without torch installed.
    """
    if path.suffix in _PICKLED:
        from gradience.adapters.formats.containers import TorchFile  # noqa: PLC0415  # torch only where it is needed

        return TorchFile(path)
    if path.suffix in SUFFIXES:
        raise AdapterError(
            f"{path} holds arrays as JAX and Keras programs save them, which only audit reads",
            advice=f"run: gradience audit {path}",
        )
    return SafetensorsFile(path)
