"""Weights that files hold in codes: which formats are known, and what the headers tell of them.

`FORMS` is the table. A format is recognised by the names and dtypes of its tensors, as in vLLM and transformers, since
a config.json may be missing or cover only some modules; the config decides only what tensors do not show. `coded` reads
them. Nothing here imports JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from itertools import accumulate
from typing import Final, Literal, NamedTuple, TypeAlias

import ml_dtypes
import msgspec
import numpy as np

from gradience.base.weights import READABLE, BaseTensor, BaseWeights
from gradience.errors import AdapterError
from gradience.io.reading import decode_json
from gradience.io.safetensors import Array

WORD: Final = 32
"""Bits of a word of codes."""
_AXES: Final = 2  # of a matrix
_BITS: Final = (4, 8, 2)  # others cross the borders of words


class DamagedCodesError(AdapterError):
    """What is stored beside codes of a known format is missing or damaged, or does not fit them."""


class UnreadCodesError(AdapterError):
    """A weight in codes of no known format."""


class Tensors:
    """The tensors of one weight. In names, `{weight}` is its parameter and `{module}` the layer that holds that."""

    def __init__(self, weights: BaseWeights, parameter: str, form: Form, expert: int | None) -> None:
        self.weights, self.names, self.form = weights, set[str](), form
        self._parameter, self._expert = parameter, expert

    def find(self, pattern: str) -> BaseTensor | None:
        """The tensor of that name, in this folder and of this very weight."""
        name = pattern.format(weight=self._parameter, module=self._parameter.rpartition(".")[0])
        tensor = self.weights.find(name)
        return tensor if tensor is not None and tensor.name == name else None

    def header(self, pattern: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        tensor = self.find(pattern)
        if tensor is None:
            raise DamagedCodesError(f"{self._parameter}: {_tail(pattern).lstrip('._')} is not beside its codes")
        return tensor.info.shape

    def read(self, *patterns: str) -> Array:
        """The data of the first of these tensors that there is, of a stack this expert's; E8M0 as bytes."""
        tensor = next((one for pattern in patterns if (one := self.find(pattern)) is not None), None)
        if tensor is None:
            raise DamagedCodesError(f"{self._parameter}: {_tail(patterns[0]).lstrip('._')} is not beside its codes")
        self.names.add(tensor.name)
        if tensor.info.dtype == "F8_E8M0":
            data = tensor.file.raw(tensor.name).reshape(tensor.info.shape)
            return data if self._expert is None else data[self._expert]
        if self._expert is None or not tensor.info.shape:
            return tensor.file.read(tensor.name)
        return tensor.file.read_slice(tensor.name, self._expert)

    def codes(self) -> Array:
        """The tensor of codes, a matrix."""
        codes = self.read(self.form.codes)
        if codes.ndim != _AXES:
            raise ValueError(f"codes of shape {list(codes.shape)}")
        return codes

    def numbers(self, *patterns: str) -> Array:
        """Scales or zero points in float32; bytes are exponents of two (E8M0, of the OCP's MX formats)."""
        data = self.read(*patterns)
        powers = data.view(ml_dtypes.float8_e8m0fnu) if data.dtype == np.uint8 else data
        numbers = powers.astype(np.float32)
        refuse_infinite(self._parameter, numbers)
        return numbers


def refuse_infinite(parameter: str, *numbers: Array | None) -> None:
    """Refuse scales and zero points of a weight that are NaN or infinite.

    Raises:
        DamagedCodesError: one is.
    """
    if not all(one is None or np.isfinite(one).all() for one in numbers):
        raise DamagedCodesError(f"{parameter}: a scale or zero point beside its codes is NaN or infinite")


def _tail(pattern: str) -> str:
    return pattern.partition("}")[2]


Kind: TypeAlias = Literal["nf4", "fp4", "bnb8", "fp8", "mxfp4", "int8", "nvfp4", "nvfp4-modelopt", "packed", "gptq"]


class Form(NamedTuple):
    """One format: its reader's name, the tensor of its codes with their dtypes, what else it needs, and its source."""

    kind: Kind
    codes: str
    dtypes: frozenset[str]
    needs: tuple[str, ...]
    shape: Callable[[Tensors], Sequence[int]]
    """The shape of the model's parameter, without its codes being read."""
    source: str
    turned: bool = False


def recognised(weights: BaseWeights, parameter: str, expert: int | None) -> tuple[Tensors, str] | None:
    """The tensors of a parameter in codes of a known format, and the name of that of its codes; None if it is not."""
    module, _, leaf = parameter.rpartition(".")
    for form in FORMS:
        codes = weights.find(form.codes.format(weight=parameter, module=module))
        if codes is None or codes.info.dtype not in form.dtypes:
            continue
        # `find` may have added or dropped a prefix: what belongs to the codes has the prefix that they have.
        stem = codes.name.removesuffix(_tail(form.codes))
        own = stem if form.codes.startswith("{weight}") else f"{stem}.{leaf}"
        tensors = Tensors(weights, own, form, expert)
        if all(tensors.find(name) is not None for name in form.needs):
            return tensors, codes.name
    return None


def declared(weights: BaseWeights) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape and dtype of each tensor of a base, where a weight in codes of a known format stands as one parameter.

    A parameter in codes has the dtype that it is computed in. Codes that are damaged or of no known format stay as they
    are stored.
    """
    shapes = dict(_shapes_of_codes(weights))
    plain = {name: one for name in weights.names if (one := weights.find(name)) and not _stands_for(name, shapes)}
    return shapes | {name: (one.info.shape, one.info.dtype) for name, one in plain.items()}


def _shapes_of_codes(weights: BaseWeights) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
    for one in filter(None, map(weights.find, weights.names)):
        parameter = _parameter_of(one.name)
        known = None if one.info.dtype in READABLE else recognised(weights, parameter, None)
        if known is None or known[1] != one.name:
            continue
        tensors, _ = known
        try:
            shape = tuple(tensors.form.shape(tensors))
        except (AdapterError, msgspec.MsgspecError, ValueError, TypeError, IndexError):
            continue  # damaged: it stays as stored, and whoever reads it says what is wrong
        halves = any(need.info.dtype == "F16" for need in map(tensors.find, tensors.form.needs) if need is not None)
        yield parameter, (shape, "F16" if halves else "BF16")


def _parameter_of(name: str) -> str:
    """The parameter of which a tensor may hold the codes."""
    tails = ((form, _tail(form.codes)) for form in FORMS)
    form, tail = next((each for each in tails if each[1] and name.endswith(each[1])), (FORMS[0], ""))
    return name.removesuffix(tail) + (".weight" if form.codes.startswith("{module}") else "")


def _stands_for(name: str, coded: Container[str]) -> bool:
    """Whether a tensor holds a parameter in codes, or something that belongs to its codes."""
    stem, _, leaf = name.rpartition("_")
    # gpt-oss's parameters have no `.weight`: gate_up_proj is held as gate_up_proj_blocks and gate_up_proj_scales.
    if stem in coded and leaf in {"blocks", "scales"}:
        return True
    modules = accumulate(name.split("."), "{}.{}".format)
    # A quantised layer keeps its bias in floats.
    return not name.endswith(".bias") and any(f"{module}.weight" in coded for module in modules)


class BitsandbytesState(msgspec.Struct):
    """What bitsandbytes writes beside codes of 4 bits."""

    blocksize: int
    dtype: str
    shape: list[int]
    nested_blocksize: int = 0
    nested_offset: float = 0.0


def bits_of(words: int, numbers: int) -> int:
    """The bits of each of so many numbers in so many words.

    Raises:
        ValueError: no such number.
        UnreadCodesError: they cross the borders of words.
    """
    # Of few numbers several sizes fit the words, so those that are read here are tried before those that are not.
    bits: int | None = next((bits for bits in (*_BITS, *range(1, 9)) if -(-numbers * bits // WORD) == words), None)
    if bits is None:
        raise ValueError(f"{numbers} codes in {words} words of {WORD} bits")
    if bits not in _BITS:
        raise UnreadCodesError(f"stored in codes of {bits} bits, which are not read here")
    return bits


def _bnb4_shape(kind: Kind) -> Callable[[Tensors], Sequence[int]]:
    def read(tensors: Tensors) -> Sequence[int]:
        return decode_json(
            tensors.read(f"{{weight}}.quant_state.bitsandbytes__{kind}").tobytes(), BitsandbytesState
        ).shape

    return read


def _as_stored(tensors: Tensors) -> Sequence[int]:
    return tensors.header(tensors.form.codes)


def _as_stated(tensors: Tensors) -> Sequence[int]:
    shape: list[int] = tensors.read("{weight}_shape").tolist()
    return shape


def _two_to_a_byte(tensors: Tensors) -> Sequence[int]:
    """Of (..., m, n / 2) bytes; in gpt-oss's blocks (experts, m, g, n / 2g) of the transpose."""
    *above, m, n = tensors.header(tensors.form.codes)
    return (above[0], 2 * m * n, above[1]) if tensors.form.turned else (*above, m, 2 * n)


def _of_words(tensors: Tensors) -> Sequence[int]:
    """Of GPTQ's words (n * bits / 32, m) or AWQ's (n, m * bits / 32)."""
    (high, wide), (_, m) = tensors.header("{module}.qweight"), tensors.header("{module}.scales")
    bits = bits_of(tensors.header("{module}.qzeros")[1], m)
    return (m, high if wide != m else high * WORD // bits)


_U8, _I8, _I32 = frozenset({"U8"}), frozenset({"I8"}), frozenset({"I32"})
_F8: Final = frozenset({"F8_E4M3", "F8_E5M2"})
_BNB4: Final[tuple[Kind, ...]] = ("nf4", "fp4")
_COMPRESSED: Final = "compressed-tensors 0.20, compressors/"

# fmt: off
FORMS: Final = (
    *(Form(kind, "{weight}", _U8, (f"{{weight}}.quant_state.bitsandbytes__{kind}",), _bnb4_shape(kind),
           "bitsandbytes 0.50, functional.py") for kind in _BNB4),
    Form("bnb8", "{weight}", _I8, ("{module}.SCB",), _as_stored, "bitsandbytes 0.50, int8_vectorwise_dequant"),
    Form("fp8", "{weight}", _F8, ("{weight}_scale_inv",), _as_stored, "transformers 5.24, finegrained_fp8.py"),
    Form("mxfp4", "{weight}", _I8, ("{weight}_scale_inv",), _two_to_a_byte, "transformers 5.24, finegrained_fp8.py"),
    Form("fp8", "{weight}", _F8, ("{weight}_scale",), _as_stored, f"{_COMPRESSED}naive_quantized"),
    Form("int8", "{weight}", _I8, ("{weight}_scale",), _as_stored, f"{_COMPRESSED}naive_quantized"),
    Form("nvfp4", "{weight}_packed", _U8, ("{weight}_scale", "{weight}_global_scale"), _two_to_a_byte,
         f"{_COMPRESSED}nvfp4"),
    Form("mxfp4", "{weight}_packed", _U8, ("{weight}_scale",), _two_to_a_byte, f"{_COMPRESSED}mxfp4"),
    Form("packed", "{weight}_packed", _I32, ("{weight}_scale", "{weight}_shape"), _as_stated,
         f"{_COMPRESSED}pack_quantized"),
    Form("nvfp4-modelopt", "{weight}", _U8, ("{weight}_scale", "{weight}_scale_2"), _two_to_a_byte,
         "ModelOpt 0.47, nvfp4_tensor.py"),
    Form("mxfp4", "{weight}_blocks", _U8, ("{weight}_scales",), _two_to_a_byte, "transformers 5.24, mxfp4.py",
         turned=True),
    Form("gptq", "{module}.qweight", _I32, ("{module}.qzeros", "{module}.scales"), _of_words,
         "AutoGPTQ 0.7.1, qlinear_cuda.py; AutoAWQ 0.2.9, packing_utils.py"),
    Form("fp8", "{module}._weight_qdata", _F8, ("{module}._weight_scale",), _as_stored, "torchao 0.18, Float8Tensor"),
    Form("int8", "{module}._weight_qdata", _I8, ("{module}._weight_scale",), _as_stored, "torchao 0.18, Int8Tensor"),
)
# fmt: on
"""Known formats, the more particular first."""
