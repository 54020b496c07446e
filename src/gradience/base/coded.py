"""Weights in the 4 bits of bitsandbytes, as files hold them: NF4 or FP4 codes, and scales that may be codes too."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
import numpy as np

from gradience.base.weights import BaseTensor, BaseWeights
from gradience.errors import AdapterError
from gradience.io.reading import decode_json
from gradience.io.safetensors import DTYPES, Array
from gradience.spectral.quantised import decoded

_FORMS: Final = ("nf4", "fp4")
_HALVES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


class _State(msgspec.Struct):
    """What bitsandbytes writes beside the codes."""

    quant_type: str
    blocksize: int
    dtype: str
    shape: list[int]
    nested_blocksize: int = 0
    nested_offset: float = 0.0


class Coded(NamedTuple):
    """A weight that is stored in codes."""

    values: Array
    """As they give it back, a matrix in the dtype that it had before."""
    dtype: str
    """That dtype, by safetensors' name."""
    form: str
    """`nf4` or `fp4`."""
    block: int
    """Weights that share a scale."""
    names: frozenset[str]
    """The tensors that hold it."""


def state_of(weights: BaseWeights, found: BaseTensor) -> str | None:
    """The suffix of the tensor that says how a tensor of codes is to be read; None if it holds none of these forms."""
    beside = (f".quant_state.bitsandbytes__{form}" for form in _FORMS)
    is_codes = found.info.dtype == "U8"
    return next((suffix for suffix in beside if is_codes and f"{found.name}{suffix}" in weights.names), None)


def coded(weights: BaseWeights, found: BaseTensor) -> Coded | None:
    """The weight that a tensor of codes stands for; None if it holds no codes of these forms.

    Raises:
        AdapterError: a tensor beside the codes is missing or does not fit them.
    """
    if (suffix := state_of(weights, found)) is None:
        return None
    try:
        told = decode_json(_read(weights, found, suffix).tobytes(), _State)
        scales = _read(weights, found, ".absmax")
        if scales.dtype == np.uint8:
            outer = np.repeat(_read(weights, found, ".nested_absmax"), told.nested_blocksize)[: scales.size]
            scales = _read(weights, found, ".nested_quant_map")[scales] * outer + told.nested_offset
        levels = _read(weights, found, ".quant_map")
        flat = decoded(found.file.read(found.name).reshape(-1), scales.astype(np.float32), levels, told.blocksize)
        dtype = _HALVES[told.dtype]
        values = np.asarray(flat).reshape(told.shape).astype(DTYPES[dtype])
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError, IndexError) as error:
        raise AdapterError(f"{found.name}: what is stored beside its codes does not fit them: {error}") from error
    names = {name for name in weights.names if name == found.name or name.startswith(f"{found.name}.")}
    return Coded(values, dtype, told.quant_type, told.blocksize, frozenset(names))


def _read(weights: BaseWeights, found: BaseTensor, suffix: str) -> Array:
    held = weights.find(f"{found.name}{suffix}")
    if held is None or held.info.dtype not in DTYPES:
        raise AdapterError(f"{found.name}: {suffix.removeprefix('.')} is not beside its codes")
    return held.file.read(held.name)
