"""Weights that files hold in codes: which formats are known, and what the headers tell of them.

`FORMS` is the table. A format is recognised by the names and dtypes of its tensors, as in vLLM and transformers, since
a config.json may be missing or cover only some modules; the config decides only what tensors do not show. `coded` reads
them. Nothing here imports JAX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator
from itertools import accumulate
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

import ml_dtypes
import msgspec
import numpy as np

from gradience.base.weights import READABLE, BaseTensor, BaseWeights
from gradience.errors import AdapterError
from gradience.io.reading import decode_json
from gradience.io.safetensors import Array

WORD: Final = 32
"""Bits of a word of codes."""
NVFP4: Final = 16
MXFP4: Final = 32
"""Weights that share a scale."""
_AXES: Final = 2  # of a matrix
_LONGEST: Final = 2**31  # of a side
_LARGEST_STATE: Final = 4096  # bytes: bitsandbytes writes 200
_LARGEST_MEAN: Final = 65504.0  # of the largest magnitudes of a weight's blocks: float16's range
_LEAST_BLOCK: Final = 16  # neighbours that share a scale, where no config says: NVFP4's
_USUAL_BLOCK: Final = 128  # weights that share a scale, where no config says (DeepSeek-V3's FP8, most of GPTQ and AWQ)
_BITS: Final = (4, 8, 2)  # others cross the borders of words


_Block: TypeAlias = Literal[32, 64, 128, 256, 512, 1024, 2048, 4096]  # those that bitsandbytes' kernels have


class DamagedCodesError(AdapterError):
    """What is stored beside codes of a known format is missing or damaged, or does not fit them."""


class UnreadCodesError(AdapterError):
    """A weight in codes of no known format."""


class Tensors:
    """The tensors of one weight. In names, `{weight}` is its parameter and `{module}` the layer that holds that."""

    def __init__(self, weights: BaseWeights, parameter: str, form: Form, expert: int | None) -> None:
        self.weights, self.names, self.form, self.parameter = weights, set[str](), form, parameter
        self._expert = expert

    def find(self, pattern: str) -> BaseTensor | None:
        """The tensor of that name, in this folder and of this very weight."""
        name = pattern.format(weight=self.parameter, module=self.parameter.rpartition(".")[0])
        tensor = self.weights.find(name)
        return tensor if tensor is not None and tensor.name == name else None

    def stack(self) -> int | None:
        """How many weights are stacked in these tensors; None if they hold one matrix."""
        shape = self._whole(self.form.codes)
        return shape[0] if len(shape) > self.form.axes else None

    def header(self, pattern: str) -> tuple[int, ...]:
        """The shape of a tensor, without the axis of a stack."""
        shape, stack = self._whole(pattern), self.stack()
        if stack is None or shape == ():
            return shape
        if shape[0] != stack:
            raise DamagedCodesError(
                f"{self.parameter}: {_called(pattern)} of shape {list(shape)} beside {stack} experts"
            )
        return shape[1:]

    def _whole(self, pattern: str) -> tuple[int, ...]:
        return self.beside(pattern).info.shape

    def beside(self, *patterns: str) -> BaseTensor:
        """The first of these tensors that there is.

        Raises:
            DamagedCodesError: there is none.
        """
        tensor = next((one for pattern in patterns if (one := self.find(pattern)) is not None), None)
        if tensor is None:
            raise DamagedCodesError(f"{self.parameter}: {_called(patterns[0])} is not beside its codes")
        return tensor

    def read(self, *patterns: str) -> Array:
        """The data of the first of these tensors that there is, of a stack this expert's; E8M0 as bytes."""
        tensor = self.beside(*patterns)
        self.names.add(tensor.name)
        if tensor.info.dtype == "F8_E8M0":
            data = tensor.file.raw(tensor.name).reshape(tensor.info.shape)
            return data if self._expert is None else data[self._expert]
        if self._expert is None or not tensor.info.shape:
            return tensor.file.read(tensor.name)
        return tensor.file.read_slice(tensor.name, self._expert)

    def codes(self) -> Array:
        """The tensor of codes."""
        return self.read(self.form.codes)

    def numbers(self, *patterns: str) -> Array:
        """Scales or zero points in float32; bytes are exponents of two (E8M0, of the OCP's MX formats)."""
        data = self.read(*patterns)
        powers = data.view(ml_dtypes.float8_e8m0fnu) if data.dtype == np.uint8 else data
        numbers = powers.astype(np.float32)
        refuse_infinite(self.parameter, numbers)
        return numbers

    def shape(self) -> tuple[int, ...]:
        """The shape of the model's parameter, from the headers alone, all of which fit it.

        Raises:
            DamagedCodesError: a tensor is missing, or of another dtype or shape.
            UnreadCodesError: another layout of the same names.
        """
        stack = self.stack()
        try:
            m, n = self.form.shape(self)
            for part in self.form.parts:
                self._refuse_unfit(part, m, n)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise DamagedCodesError(
                f"{self.parameter}: what is stored beside its codes does not fit: {error}"
            ) from error
        if min(m, n) < 1 or max(m, n) > _LONGEST:
            raise DamagedCodesError(f"{self.parameter}: codes of a weight of shape {[m, n]}")
        m, n = (n, m) if self.form.turned else (m, n)
        return (m, n) if stack is None else (stack, m, n)

    def _refuse_unfit(self, part: Part, m: int, n: int) -> None:
        found = [name for name in part.names if self.find(name) is not None]
        if not found and part.is_optional:
            return
        info, shape = self.beside(*part.names).info, self.header(found[0]) if found else ()
        if info.dtype not in part.dtypes or not part.fits(shape, Fitted(self, info.dtype, m, n)):
            raise DamagedCodesError(
                f"{self.parameter}: {_called(found[0])}, {info.dtype} of shape {list(info.shape)},"
                f" does not fit a weight of shape {[m, n]} in these codes"
            )


def refuse_infinite(parameter: str, *numbers: Array | None) -> None:
    """Refuse scales and zero points of a weight that are NaN or infinite.

    Raises:
        DamagedCodesError: one is.
    """
    if not all(one is None or np.isfinite(one).all() for one in numbers):
        raise DamagedCodesError(f"{parameter}: a scale or zero point beside its codes is NaN or infinite")


def _tail(pattern: str) -> str:
    return pattern.partition("}")[2]


def _called(pattern: str) -> str:
    return _tail(pattern).lstrip("._") or "weight" if pattern.startswith("{module}") else f"weight{_tail(pattern)}"


Kind: TypeAlias = Literal["nf4", "fp4", "bnb8", "fp8", "mxfp4", "int8", "nvfp4", "nvfp4-modelopt", "packed", "gptq"]


class Fitted(NamedTuple):
    """What a shape is held against: the weight (m, n), the tensors beside its codes, and the dtype of this one."""

    tensors: Tensors
    dtype: str
    m: int
    n: int


class Part(NamedTuple):
    """A tensor of a format: its names, of which the first found counts, its dtypes, and what shapes fit a weight."""

    names: tuple[str, ...]
    dtypes: frozenset[str]
    fits: Callable[[tuple[int, ...], Fitted], bool]
    is_optional: bool = False


class Form(NamedTuple):
    """One format: its reader's name, the tensor of its codes with their dtypes, what it is known by, and its source."""

    kind: Kind
    codes: str
    dtypes: frozenset[str]
    marks: tuple[tuple[str, frozenset[str] | None], ...]
    """The tensors beside the codes that no other format has, and their dtypes where these tell."""
    shape: Callable[[Tensors], tuple[int, int]]
    """The shape that the codes stand for, from headers; what is read for it is bounded first."""
    parts: tuple[Part, ...]
    """Every tensor beside the codes that is read."""
    methods: frozenset[str]
    """A config.json's quant_method by which codes whose marks are missing are known."""
    source: str
    axes: int = 2
    """Of the tensor of one weight's codes."""
    turned: bool = False


def recognised(weights: BaseWeights, parameter: str, expert: int | None) -> tuple[Tensors, str] | None:
    """The tensors of a parameter in codes of a known format, and the name of that of its codes; None if it is not."""
    module, _, leaf = parameter.rpartition(".")
    known = None
    for form in FORMS:
        codes = weights.find(form.codes.format(weight=parameter, module=module))
        if codes is None or codes.info.dtype not in form.dtypes:
            continue
        # `find` may have added or dropped a prefix: what belongs to the codes has the prefix that they have.
        stem = codes.name.removesuffix(_tail(form.codes))
        own = stem if form.codes.startswith("{weight}") else f"{stem}.{leaf}"
        tensors = Tensors(weights, own, form, expert)
        found = [(tensors.find(name), dtypes) for name, dtypes in form.marks]
        if all(one is not None and one.info.dtype in (dtypes or {one.info.dtype}) for one, dtypes in found):
            return tensors, codes.name
        if known is None and weights.quantization.quant_method in form.methods:
            known = tensors, codes.name
    return known


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
            shape = tensors.shape()
        except AdapterError:
            continue  # damaged: it stays as stored, and whoever reads it says what is wrong
        marks = [tensors.find(name) for name, _ in tensors.form.marks]
        halves = any(mark is not None and mark.info.dtype == "F16" for mark in marks)
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

    blocksize: _Block
    dtype: Literal["bfloat16", "float16", "float32"]
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=1, le=_LONGEST)]], msgspec.Meta(min_length=2, max_length=2)]
    nested_blocksize: _Block | None = None
    nested_offset: Annotated[float, msgspec.Meta(ge=0.0, le=_LARGEST_MEAN)] | None = None
    """The mean of the scales, if they are codes themselves."""


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


def step_of(count: int, size: int, told: int | None = None) -> int:
    """How many neighbours share a scale, of `size` with `count` scales.

    Raises:
        ValueError: no such number, or several are as likely.
    """
    if count == 1:
        return size
    # A last block may be shorter than its step, so an even division is only the last guess.
    exact = size // count if count > 0 and size % count == 0 else None
    powers = [2**k for k in range(3, 17) if -(-size // 2**k) == count]
    for step in (told, _USUAL_BLOCK, exact if exact in powers or not powers else None):
        if step and step > 0 and -(-size // step) == count:
            return step
    raise ValueError(f"{count} scales or zero points for {size} weights")


def state_of(tensors: Tensors) -> BitsandbytesState:
    """What bitsandbytes says of codes of 4 bits, within its bounds."""
    pattern = f"{{weight}}.quant_state.bitsandbytes__{tensors.form.kind}"
    info = tensors.beside(pattern).info
    if info.dtype != "U8" or len(info.shape) != 1 or info.shape[0] > _LARGEST_STATE:
        raise ValueError(f"quant_state is {info.dtype} of shape {list(info.shape)}")
    return decode_json(tensors.read(pattern).tobytes(), BitsandbytesState)


def _bnb4_shape(tensors: Tensors) -> tuple[int, int]:
    state, is_nested = state_of(tensors), _is_nested(tensors)
    if is_nested != (state.nested_blocksize is not None) or is_nested != (state.nested_offset is not None):
        raise ValueError("of absmax and quant_state, one says that the scales are codes themselves and one that not")
    m, n = state.shape
    if 2 * math.prod(tensors.header(tensors.form.codes)) not in {m * n, m * n + 1}:
        raise ValueError(f"codes of shape {list(tensors.header(tensors.form.codes))} for a weight of {[m, n]}")
    return m, n


def _as_stored(tensors: Tensors) -> tuple[int, int]:
    m, n = _sides(tensors, tensors.form.codes)
    return m, n


def _sides(tensors: Tensors, pattern: str) -> tuple[int, int]:
    shape = tensors.header(pattern)
    if len(shape) != _AXES:
        raise ValueError(f"{_called(pattern)} of shape {list(shape)}, which is no matrix")
    return shape[0], shape[1]


def _as_stated(tensors: Tensors) -> tuple[int, int]:
    pattern = "{weight}_shape"
    info = tensors.beside(pattern).info
    if info.dtype not in _WHOLE or info.shape != (_AXES,):
        raise ValueError(f"weight_shape is {info.dtype} of shape {list(info.shape)}")
    (m, n), (high, words) = (int(side) for side in tensors.read(pattern)), _sides(tensors, tensors.form.codes)
    if m != high or n < 1:
        raise ValueError(f"codes of shape {[high, words]} for a weight of {[m, n]}")
    bits_of(words, n)
    return m, n


def _two_to_a_byte(group: int) -> Callable[[Tensors], tuple[int, int]]:
    """Of (m, n / 2) bytes, or gpt-oss's blocks (m, g, 16), with a scale for each `group` weights."""

    def read(tensors: Tensors) -> tuple[int, int]:
        m, *rest = tensors.header(tensors.form.codes)
        if len(rest) + 1 != tensors.form.axes or (tensors.form.turned and rest[-1] != group // 2):
            raise ValueError(f"codes of shape {[m, *rest]}")
        scales = next((one for part in tensors.form.parts[:1] for one in part.names if tensors.find(one)), None)
        count, width = math.prod(tensors.header(scales)[1:]) if scales else 0, math.prod(rest)
        # Codes of 6 or 8 bits have the same names beside as many scales, and more bytes.
        bits, odd = divmod(8 * width, group * count) if count > 0 else (0, 0)
        if not odd and bits in {2, 3, 5, 6, 7, 8} and tensors.header(str(scales))[0] == m:
            raise UnreadCodesError(f"stored in codes of {bits} bits, which are not read here")
        return m, 2 * width

    return read


def _of_words(tensors: Tensors) -> tuple[int, int]:
    """Of GPTQ's words (n * bits / 32, m) or AWQ's (n, m * bits / 32)."""
    told = tensors.weights.quantization
    (high, wide), (count, m) = _sides(tensors, "{module}.qweight"), _sides(tensors, "{module}.scales")
    rows, width = _sides(tensors, "{module}.qzeros")
    if told.version not in {"", "gemm"} or told.checkpoint_format not in {"", "gptq", "gptq_v2"}:
        raise UnreadCodesError(
            f"stored in the layout {told.version or told.checkpoint_format!r}, which is not read here"
        )
    # AutoAWQ's kernel gemv turns all three, and pads the groups to whole words (modules/linear/gemv.py).
    if high == count == rows and wide != m and m == 8 * width and wide >= width:
        raise UnreadCodesError("stored in AWQ's layout 'gemv', which is not read here")
    if told.desc_act:
        tensors.beside("{module}.g_idx")  # without it the order of the columns is not known
    bits = bits_of(width, m)
    n = high if is_awq(tensors) else high * WORD // bits
    if (
        rows != count
        or wide != (width if is_awq(tensors) else m)
        or (is_awq(tensors) and (bits != 4 or n % 8 or m % 8))
    ):
        raise ValueError(f"qweight {[high, wide]}, qzeros {[rows, width]}, scales {[count, m]}")
    return m, n


def is_awq(tensors: Tensors) -> bool:
    """Whether codes are packed along the outputs, as AWQ's; GPTQ's are along the inputs. The widths tell."""
    wide, m = tensors.header("{module}.qweight")[1], tensors.header("{module}.scales")[1]
    return wide == tensors.header("{module}.qzeros")[1] != m


# What fits: functions of a tensor's shape and the weight (m, n).


def _one(shape: tuple[int, ...], _at: Fitted) -> bool:
    return math.prod(shape) == 1 and len(shape) <= _AXES


def _exactly(of: Callable[[Fitted], tuple[int, ...]]) -> Callable[[tuple[int, ...], Fitted], bool]:
    return lambda shape, at: shape == of(at)


def _blocks(shape: tuple[int, ...], at: Fitted) -> bool:
    """One number for all, for each row, or for each block of some rows and columns."""
    told = at.tensors.weights.quantization
    if at.dtype == "U8":  # powers of two in bytes: MXFP8
        return _groups_of(MXFP4)(shape, at)
    if told.weight_block_size is not None:
        high, wide = told.weight_block_size
        grid = (-(-at.m // high), -(-at.n // wide))
        return shape == grid or (grid == (1, 1) and _one(shape, at))
    if len(shape) != _AXES:
        return shape in {(), (1,), (at.m,)}
    return (shape[0] == at.m or _steps(shape[0], at.m, None)) and _steps(shape[1], at.n, told.group_size)


def _steps(count: int, size: int, told: int | None) -> bool:
    try:
        step = step_of(count, size, told)
    except ValueError:
        return False
    return step >= _LEAST_BLOCK or step in {size, told}


def _as_scales(*names: str) -> Callable[[tuple[int, ...], Fitted], bool]:
    def fits(shape: tuple[int, ...], at: Fitted) -> bool:
        scales = at.tensors.header(next(name for name in names if at.tensors.find(name)))
        if at.dtype == "I32" and at.tensors.form.kind == "packed":  # packed as the codes are, along the rows
            bits = bits_of(at.tensors.header(at.tensors.form.codes)[1], at.n)
            return len(scales) == _AXES and shape == (-(-at.m * bits // WORD), scales[1])
        return shape == scales

    return fits


def _groups_of(size: int) -> Callable[[tuple[int, ...], Fitted], bool]:
    return lambda shape, at: at.n % size == 0 and shape == (at.m, at.n // size)


def _of_gptq(shape: tuple[int, ...], at: Fitted) -> bool:
    return _steps(shape[0], at.n, at.tensors.weights.quantization.group_size)


def _groups_of_bnb(at: Fitted) -> int:
    return -(-at.m * at.n // state_of(at.tensors).blocksize)


def _is_nested(tensors: Tensors) -> bool:
    return tensors.beside("{weight}.absmax").info.dtype == "U8"


def _nested(of: Callable[[Fitted], int]) -> Callable[[tuple[int, ...], Fitted], bool]:
    """The shape (of(at),), where the scales are codes themselves."""
    return lambda shape, at: not _is_nested(at.tensors) or shape == (of(at),)


def _scales_of_scales(at: Fitted) -> int:
    return -(-_groups_of_bnb(at) // (state_of(at.tensors).nested_blocksize or 1))


_U8, _I8, _I32, _F32 = frozenset({"U8"}), frozenset({"I8"}), frozenset({"I32"}), frozenset({"F32"})
_F8: Final = frozenset({"F8_E4M3", "F8_E5M2"})
_POWERS: Final = frozenset({"U8", "F8_E8M0"})
_WHOLE: Final = frozenset({"I32", "I64"})
_POINTS: Final = READABLE | {"I8", "U8", "I16", "I32", "I64"}
_BNB4: Final[tuple[Kind, ...]] = ("nf4", "fp4")
_COMPRESSED: Final = "compressed-tensors 0.20, compressors/"

_BNB4_PARTS: Final = (
    Part(("{weight}.absmax",), _F32 | _U8, _exactly(lambda at: (_groups_of_bnb(at),))),
    Part(("{weight}.quant_map",), _F32, _exactly(lambda _: (16,))),
    Part(("{weight}.nested_absmax",), _F32, _nested(_scales_of_scales), is_optional=True),
    Part(("{weight}.nested_quant_map",), _F32, _nested(lambda _: 256), is_optional=True),
)


def _scaled(*names: str, dtypes: frozenset[str] = READABLE) -> Part:
    return Part(names, dtypes, _blocks)


def _fp4(name: str, dtypes: frozenset[str], group: int, *more: Part) -> tuple[Part, ...]:
    return (Part((name,), dtypes, _groups_of(group)), *more)


def _points(name: str, scale: str) -> Part:
    return Part((name,), _POINTS, _as_scales(scale), is_optional=True)


_GROUPS: Final = Part(("{weight}_g_idx",), _WHOLE, _exactly(lambda at: (at.n,)), is_optional=True)
_GPTQ: Final = (
    Part(("{module}.scales",), READABLE, _of_gptq),
    Part(("{module}.qzeros",), _I32, _of_gptq),
    _GROUPS._replace(names=("{module}.g_idx",)),
)
_FP8_PARTS: Final = (_scaled("{weight}_scale_inv", "{weight}_scale", dtypes=READABLE | _POWERS),)
_AO = ("{module}._weight_scale", "{module}._weight_zero_point")

_NV4, _MX4 = _two_to_a_byte(NVFP4), _two_to_a_byte(MXFP4)
_NV_SCALE: Final = frozenset({"F8_E4M3"})


def _known_by(*names: str) -> tuple[tuple[str, frozenset[str] | None], ...]:
    return tuple((name, None) for name in names)


def _told(*methods: str) -> frozenset[str]:
    return frozenset(methods)


# fmt: off
FORMS: Final = (
    *(Form(kind, "{weight}", _U8, _known_by(f"{{weight}}.quant_state.bitsandbytes__{kind}"), _bnb4_shape, _BNB4_PARTS,
           _told("bitsandbytes"), "bitsandbytes 0.50, functional.py") for kind in _BNB4),
    Form("bnb8", "{weight}", _I8, _known_by("{module}.SCB"), _as_stored,
         (Part(("{module}.SCB",), READABLE, _exactly(lambda at: (at.m,))),
          Part(("{weight}_format",), _U8 | _WHOLE, _one, is_optional=True)),
         _told("bitsandbytes"), "bitsandbytes 0.50, int8_vectorwise_dequant"),
    Form("fp8", "{weight}", _F8, _known_by("{weight}_scale_inv"), _as_stored, _FP8_PARTS, _told("fp8"),
         "transformers 5.24, finegrained_fp8.py"),
    Form("mxfp4", "{weight}", _I8, _known_by("{weight}_scale_inv"), _MX4, _fp4("{weight}_scale_inv", _POWERS, MXFP4),
         _told(), "transformers 5.24, finegrained_fp8.py"),
    Form("fp8", "{weight}", _F8, _known_by("{weight}_scale"), _as_stored, (_FP8_PARTS[0]._replace(
             names=("{weight}_scale", "{weight}_scale_inv")),),
         _told("compressed-tensors", "fbgemm_fp8", "modelopt"), f"{_COMPRESSED}naive_quantized"),
    Form("int8", "{weight}", _I8, _known_by("{weight}_scale"), _as_stored,
         (_scaled("{weight}_scale"), _points("{weight}_zero_point", "{weight}_scale")), _told("compressed-tensors"),
         f"{_COMPRESSED}naive_quantized"),
    Form("nvfp4", "{weight}_packed", _U8, (("{weight}_scale", _NV_SCALE),), _NV4,
         _fp4("{weight}_scale", _NV_SCALE, NVFP4, Part(("{weight}_global_scale",), _F32, _one)),
         _told("compressed-tensors"), f"{_COMPRESSED}nvfp4"),
    Form("mxfp4", "{weight}_packed", _U8, _known_by("{weight}_scale"), _MX4, _fp4("{weight}_scale", _POWERS, MXFP4),
         _told(), f"{_COMPRESSED}mxfp4"),
    Form("packed", "{weight}_packed", _I32, _known_by("{weight}_scale", "{weight}_shape"), _as_stated,
         (_scaled("{weight}_scale"), _points("{weight}_zero_point", "{weight}_scale"), _GROUPS),
         _told("compressed-tensors"), f"{_COMPRESSED}pack_quantized"),
    Form("nvfp4-modelopt", "{weight}", _U8, _known_by("{weight}_scale", "{weight}_scale_2"), _NV4,
         _fp4("{weight}_scale", _NV_SCALE, NVFP4, Part(("{weight}_scale_2",), _F32, _one)),
         _told("modelopt"), "ModelOpt 0.47, nvfp4_tensor.py"),
    Form("mxfp4", "{weight}_blocks", _U8, _known_by("{weight}_scales"), _MX4, _fp4("{weight}_scales", _POWERS, MXFP4),
         _told("mxfp4"), "transformers 5.24, mxfp4.py", axes=3, turned=True),
    Form("gptq", "{module}.qweight", _I32, _known_by("{module}.qzeros", "{module}.scales"), _of_words, _GPTQ,
         _told("gptq", "awq", "auto-round", "intel/auto-round"),
         "AutoGPTQ 0.7.1, qlinear_cuda.py; AutoAWQ 0.2.9, packing_utils.py"),
    Form("fp8", "{module}._weight_qdata", _F8, _known_by(_AO[0]), _as_stored, (_scaled(_AO[0]),), _told("torchao"),
         "torchao 0.18, Float8Tensor"),
    Form("int8", "{module}._weight_qdata", _I8, _known_by(_AO[0]), _as_stored,
         (_scaled(_AO[0]), _points(_AO[1], _AO[0])), _told("torchao"), "torchao 0.18, Int8Tensor"),
)
# fmt: on
"""Known formats, the more particular first."""
