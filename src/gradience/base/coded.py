"""Weights that files hold in codes, read: each format of `forms` in a layout of `gradience.spectral.codes`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from gradience.base.forms import (
    MXFP4,
    NVFP4,
    WORD,
    DamagedCodesError,
    Kind,
    Tensors,
    UnreadCodesError,
    bits_of,
    is_awq,
    recognised,
    refuse_infinite,
    state_of,
    step_of,
)
from gradience.base.weights import READABLE, BaseWeights, names_of_expert
from gradience.errors import AdapterError
from gradience.io.safetensors import Array, ThreadBuffer
from gradience.spectral.codes import Codes, from_awq, moved, whole, words_of
from gradience.spectral.quantised import NF4

_CLOSE: Final = 1e-4  # of a level of 4 bits: those of bitsandbytes are constants of its kernels
# bitsandbytes keeps each row's largest magnitude (SCB), which is the code 127.
_BNB8: Final = np.float32(1.0 / 127.0)
_HALF: Final = (0.0, 0.0052083, 0.6666667, 1.0, 0.3333333, 0.5, 0.1666667, 0.25)
_BNB4: Final = MappingProxyType(
    {"nf4": np.array(NF4, np.float32), "fp4": np.array((*_HALF, *(-level for level in _HALF)), np.float32)}
)
"""bitsandbytes' levels by code (0.50, functional.py:get_4bit_type), in units of a block's largest magnitude."""
_DTYPES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


class CodedWeight(NamedTuple):
    """A weight that is stored in codes."""

    name: str
    """The tensor of its codes."""
    form: str
    """As a reader knows it, such as `NF4` or `GPTQ int4`."""
    dtype: str
    """The 16- or 32-bit dtype that it is computed in, by safetensors' name."""
    codes: Codes
    names: frozenset[str]
    """The tensors that hold it."""
    turned: bool = False
    """Whether the codes hold the transpose of the model's parameter."""

    @property
    def shape(self) -> tuple[int, int]:
        """That of the model's parameter."""
        m, n = self.codes.shape
        return (n, m) if self.turned else (m, n)

    def moved(self, delta: Array) -> Array:
        """The change of the weight by a merge of delta that is rounded to its codes again; both as the parameter is."""
        change = np.asarray(moved(self.codes, delta.T if self.turned else delta))
        return change.T if self.turned else change

    def whole(self) -> Array:
        """The weight in float32, in the orientation of the model's parameter."""
        floats = np.asarray(whole(self.codes))
        return floats.T if self.turned else floats


class Weight(NamedTuple):
    """A weight of the base: the tensors that hold it, its key in the cache of norms, and its numbers as stored."""

    name: str
    key: str
    dtype: str
    w: Array | Codes
    coded: CodedWeight | None = None
    names: frozenset[str] = frozenset()
    """The tensors that hold it."""

    @property
    def is_turned(self) -> bool:
        """Whether `w` is the transpose of the model's parameter."""
        return self.coded is not None and self.coded.turned

    @property
    def shape(self) -> tuple[int, int]:
        """That of the parameter."""
        m, n = self.w.shape if self.coded is None else self.coded.shape
        return m, n

    def floats(self) -> Array:
        """The parameter as a matrix of floats."""
        return self.coded.whole() if self.coded is not None else np.asarray(self.w)


def weight_of(
    weights: BaseWeights, parameter: str, expert: int | None = None, memory: ThreadBuffer | None = None
) -> Weight | None:
    """The weight of a parameter as the files store it, in floats or in codes; None if they have no such weight.

    Args:
        weights: the model's files.
        parameter: its name in the model, such as `model.layers.0.self_attn.q_proj.weight`.
        expert: the slice of a stack, or the expert that files hold by itself.
        memory: where floats are read to; they are valid until the next read into it.

    Raises:
        UnreadCodesError: it is in codes of no known format.
        DamagedCodesError: a tensor beside its codes is missing or damaged, or does not fit them.
        AdapterError: it is no matrix.
    """
    tensor = weights.find(parameter)
    if tensor is not None and tensor.info.dtype in READABLE:
        w = weights.read(tensor, expert, memory)
        return Weight(tensor.name, _key(tensor.name, expert), tensor.info.dtype, w, names=frozenset([tensor.name]))
    # transformers stacks experts as it loads them, and the files may hold each by itself.
    parts = [] if expert is None else weights.find_expert(parameter, expert)
    if parts and all(part.info.dtype in READABLE for part in parts):
        names, rows = [part.name for part in parts], [weights.read(part) for part in parts]
        if len(forms := {(part.info.dtype, row.shape[1]) for part, row in zip(parts, rows, strict=True)}) > 1:
            raise AdapterError(f"the parts of one weight are of several dtypes or widths: {sorted(forms)}")
        name = " and ".join(names)
        return Weight(name, name, parts[0].info.dtype, np.concatenate(rows), names=frozenset(names))
    codes = coded(weights, parameter, expert)
    if codes is None and expert is not None:
        codes, expert = _coded_expert(weights, parameter, expert), None
    if codes is not None:
        return Weight(codes.name, _key(codes.name, expert), codes.dtype, codes.codes, codes, codes.names)
    refuse_unread(weights, parameter)
    return None


def _key(name: str, expert: int | None) -> str:
    return name if expert is None else f"{name}[{expert}]"


class _CodesReading(NamedTuple):
    """A format's name as a reader knows it, the codes, and the dtype that they are computed in, if that is told."""

    form: str
    codes: Codes
    dtype: str | None = None


def coded(weights: BaseWeights, parameter: str, expert: int | None = None) -> CodedWeight | None:
    """The weight of a parameter if it is in codes of a known format; else None.

    Args:
        weights: the model's files.
        parameter: its name in the model, such as `model.layers.0.self_attn.q_proj.weight`.
        expert: the slice of a stack.

    Raises:
        DamagedCodesError: a tensor beside the codes is missing or damaged, or does not fit them.
    """
    known = recognised(weights, parameter, expert)
    if known is None:
        return None
    tensors, name = known
    try:
        tensors.shape()  # the headers are in order
        if (stack := tensors.stack()) is not None and (expert is None or expert >= stack):
            raise DamagedCodesError(f"{name}: a stack of {stack}, which has no weight {expert}")
        if stack is None and expert is not None:
            raise DamagedCodesError(f"{name}: one matrix in place of a stack of experts")
        with np.errstate(all="ignore"):  # of scales that others scale, the products are looked at
            read = _READERS[tensors.form.kind](tensors)
        refuse_infinite(parameter, read.codes.scales, read.codes.zeros)
    except UnreadCodesError as error:
        raise UnreadCodesError(f"{error.message}, {_method(weights)}") from error
    except ValueError as error:
        raise DamagedCodesError(f"{name}: what is stored beside its codes does not fit them: {error}") from error
    dtypes = {one.info.dtype for key in tensors.names if (one := weights.find(key)) is not None}
    # Most formats do not say it: float16 if anything beside the codes is, else that in which models are served.
    dtype = read.dtype or ("F16" if "F16" in dtypes else "BF16")
    return CodedWeight(name, read.form, dtype, read.codes, frozenset(tensors.names), tensors.form.turned)


def _coded_expert(weights: BaseWeights, stack: str, expert: int) -> CodedWeight | None:
    """The same for one expert of a stack whose matrices are stored singly, from top to bottom."""
    for names in names_of_expert(stack, expert):
        parts = [one for name in names if (one := coded(weights, name)) is not None]
        if len(parts) == len(names):
            together = frozenset().union(*(part.names for part in parts))
            name = " and ".join(part.name for part in parts)
            return parts[0]._replace(name=name, codes=_stacked(name, [part.codes for part in parts]), names=together)
    return None


def refuse_unread(weights: BaseWeights, parameter: str) -> None:
    """Refuse a parameter that is stored as something else than numbers of a float dtype.

    Raises:
        UnreadCodesError: it is; the error names the tensors, and what the config calls their format.
    """
    plain, module = weights.find(parameter), parameter.rpartition(".")[0]
    stored = [plain] if plain is not None else weights.named_under(module)
    if all(one.info.dtype in READABLE for one in stored):
        return
    if plain is not None and len(stored) == 1 and plain.info.dtype.startswith("F8_"):
        raise UnreadCodesError(f"stored as {plain.info.dtype} with no scale beside it, {_method(weights)}")
    tensors = ", ".join(f"{one.name.rpartition(f'{module}.')[2]} ({one.info.dtype})" for one in stored[:3])
    raise UnreadCodesError(f"stored in codes that are not read here: {tensors}, {_method(weights)}")


def _method(weights: BaseWeights) -> str:
    method = weights.quantization.quant_method
    return f"quant_method {method!r}" if method else "and no config.json names their format"


def _stacked(name: str, parts: Sequence[Codes]) -> Codes:
    """One weight of several, one below the other.

    Raises:
        DamagedCodesError: they differ in more than their rows.
    """
    first, axis = parts[0], parts[0].axis
    alike = {
        (one.coding, one.columns, one.block, one.zeros is None, one.groups is None, one.packed.dtype) for one in parts
    }
    order = first.groups
    same_order = order is None or all(np.array_equal(order, np.asarray(one.groups)) for one in parts)
    if len(alike) > 1 or not same_order:
        raise DamagedCodesError(f"{name}: in different codes")
    packed, scales = (np.concatenate([getattr(one, of) for one in parts], axis) for of in ("packed", "scales"))
    zeros = None if first.zeros is None else np.concatenate([one.zeros for one in parts], axis)
    return replace(first, packed=packed, scales=scales, zeros=zeros)


def _grid(of_blocks: Array, shape: tuple[int, ...], told: Sequence[int] | None = None) -> tuple[Array, int]:
    """Numbers of a tensor, rows, or blocks as numbers (m, g) of each row's groups, and the size of a group."""
    m, n = shape
    square = of_blocks.reshape(-1, 1) if of_blocks.ndim < 2 else of_blocks.reshape(len(of_blocks), -1)
    high, wide = told or (None, None)
    rows, block = step_of(len(square), m, high), step_of(square.shape[1], n, wide)
    return np.repeat(square, rows, axis=0)[:m], block


def _fp8(tensors: Tensors) -> _CodesReading:
    codes = tensors.codes()
    # In spite of its name, weight_scale_inv is multiplied with, like all scales here: the inverse is the quantiser's.
    of_blocks = tensors.numbers("{weight}_scale_inv", "{weight}_scale", "{module}._weight_scale")
    scales, block = _grid(of_blocks, codes.shape, tensors.weights.quantization.weight_block_size)
    coding = codes.dtype.name
    return _CodesReading("FP8", Codes(codes.view(np.uint8), scales, coding, codes.shape[1], block))


def _int8(tensors: Tensors) -> _CodesReading:
    codes = tensors.codes()
    scales, block = _grid(tensors.numbers("{weight}_scale", "{module}._weight_scale"), codes.shape)
    patterns = ("{weight}_zero_point", "{module}._weight_zero_point")
    zeros = None
    if any(tensors.find(one) for one in patterns):
        zeros, _ = _grid(tensors.numbers(*patterns), codes.shape)
    return _CodesReading("INT8", Codes(codes, scales, "int8", codes.shape[1], block, zeros=zeros))


def _bnb8(tensors: Tensors) -> _CodesReading:
    if (
        tensors.find("{weight}_format") is not None
        and (layout := int(tensors.read("{weight}_format").reshape(()))) != 0
    ):
        raise UnreadCodesError(f"stored in bitsandbytes' layout {layout}, of one kind of GPU, which is not read here")
    codes = tensors.codes()
    scales, block = _grid(tensors.numbers("{module}.SCB"), codes.shape)
    return _CodesReading("INT8 (bitsandbytes)", Codes(codes, scales * _BNB8, "int8", codes.shape[1], block))


def _bnb4(tensors: Tensors) -> _CodesReading:
    state, kind = state_of(tensors), tensors.form.kind
    scales = tensors.read("{weight}.absmax")
    if scales.dtype == np.uint8:  # double quantisation: the scales are codes themselves, with scales of their own
        outer = np.repeat(tensors.numbers("{weight}.nested_absmax"), state.nested_blocksize or 1)[: scales.size]
        levels = tensors.numbers("{weight}.nested_quant_map")
        if np.abs(levels).max() > 1.0 or (np.diff(levels) <= 0.0).any():
            raise ValueError("nested_quant_map does not ascend from -1 to 1")
        scales = levels[scales] * outer + np.float32(state.nested_offset or 0.0)
    m, n = state.shape
    # Blocks run through the rows, and may cross their borders: shorter groups never do.
    group = math.gcd(n, state.blocksize)
    scales = np.repeat(scales, state.blocksize // group)[: m * n // group].astype(np.float32)
    values = tensors.numbers("{weight}.quant_map")
    if np.abs(values - _BNB4[kind]).max() > _CLOSE:
        raise ValueError(f"quant_map holds other levels than {kind.upper()}'s")
    scales = np.ascontiguousarray(scales.reshape(m, -1).T)
    packed = _low_first(tensors.codes().reshape(-1), m, n)
    return _CodesReading(kind.upper(), Codes(words_of(packed), scales, "own values", n, group, values=values),
                         _DTYPES[state.dtype])  # fmt: skip


def _low_first(packed: Array, m: int, n: int) -> Array:
    """Codes of which the first of two is in the high bits, as bitsandbytes has it alone, in rows and the low bits."""
    if n % 2 == 0:
        return (packed >> 4 | packed << 4).reshape(m, -1)
    single = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[: m * n].reshape(m, n)
    even = np.pad(single, ((0, 0), (0, 1)))  # a byte does not end where a row of odd length does
    paired: Array = even[:, ::2] | even[:, 1::2] << 4
    return paired


def _nibbles(packed: Array, scales: Array, group: int) -> Codes:
    """Codes of FP4, two to a byte (m, n / 2), beside scales (m, n / group)."""
    return Codes(words_of(packed), np.ascontiguousarray(scales.T), "float4_e2m1fn", 2 * packed.shape[1], group)


def _nvfp4(tensors: Tensors) -> _CodesReading:
    # compressed-tensors stores the quantiser's factor, the reciprocal of ModelOpt's weight_scale_2.
    scales = tensors.numbers("{weight}_scale") / tensors.numbers("{weight}_global_scale").reshape(())
    return _CodesReading("NVFP4", _nibbles(tensors.codes(), scales, NVFP4))


def _nvfp4_modelopt(tensors: Tensors) -> _CodesReading:
    scales = tensors.numbers("{weight}_scale") * tensors.numbers("{weight}_scale_2").reshape(())
    return _CodesReading("NVFP4", _nibbles(tensors.codes(), scales, NVFP4))


def _mxfp4(tensors: Tensors) -> _CodesReading:
    codes = tensors.read(tensors.form.codes).view(np.uint8)
    scales = tensors.numbers("{weight}_scale", "{weight}_scales", "{weight}_scale_inv")
    return _CodesReading("MXFP4", _nibbles(codes.reshape(len(codes), -1), scales, MXFP4))


def _unpacked(words: Array, bits: int, axis: int) -> Array:
    """The numbers in words, the first in the lowest bits, along an axis; for zero points, which are few."""
    shifts = np.arange(0, WORD, bits, dtype=np.uint32)
    apart = (np.moveaxis(words, axis, -1).astype(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)
    return np.moveaxis(apart.reshape(*apart.shape[:-2], -1), -1, axis).astype(np.float32)


def _packed(tensors: Tensors) -> _CodesReading:
    words, (m, n) = tensors.codes(), tensors.read("{weight}_shape").tolist()
    bits = bits_of(words.shape[1], n)
    scales, block = _grid(tensors.numbers("{weight}_scale"), (m, n))
    zeros, groups = None, None
    if (points := tensors.find("{weight}_zero_point")) is not None:
        zeros = tensors.read("{weight}_zero_point")
        if points.info.dtype == "I32":
            # Packed as the codes are: without sign, half the range added.
            zeros = _unpacked(zeros, bits, 0)[:m] - 2.0 ** (bits - 1)
        zeros, _ = _grid(zeros.astype(np.float32), (m, n))
        zeros = np.ascontiguousarray(zeros.T)
    if tensors.find("{weight}_g_idx") is not None:
        groups = _order(tensors.read("{weight}_g_idx"), n, scales.shape[1])
    packed = np.ascontiguousarray(words.view(np.uint32).T)
    scales = np.ascontiguousarray(scales.T)
    return _CodesReading(f"INT{bits}", Codes(packed, scales, f"offset{bits}", n, block, zeros=zeros, groups=groups))


def _order(groups: Array, n: int, count: int) -> Array | None:
    """The group of each column; None if neighbours share theirs, or if the file says none (-1)."""
    if (groups < 0).all() or np.array_equal(groups, np.arange(n) // -(-n // count)):
        return None
    if not 0 <= groups.min() <= groups.max() < count:
        raise ValueError(f"g_idx names group {int(groups.max())} of {count}")
    return groups.astype(np.int32)


def _gptq(tensors: Tensors) -> _CodesReading:
    words, zeros = tensors.codes(), tensors.read("{module}.qzeros")
    scales = tensors.numbers("{module}.scales")
    count, m = scales.shape
    bits, packs_outputs = bits_of(zeros.shape[1], m), is_awq(tensors)
    n = len(words) if packs_outputs else len(words) * WORD // bits
    offsets = _unpacked(zeros.view(np.uint32), bits, 1)
    if packs_outputs:
        # A word of AWQ holds columns 0, 2, 4, 6, 1, 3, 5, 7: the order in which its kernel takes them apart.
        offsets = offsets.reshape(count, -1, 8)[:, :, [0, 4, 1, 5, 2, 6, 3, 7]].reshape(count, m)
        packed, groups = np.asarray(from_awq(words.view(np.uint32))), None
    else:
        # The first version of the format, and programs that write it, store zero points less one.
        offsets = offsets[:, :m] + float(tensors.weights.quantization.checkpoint_format != "gptq_v2")
        packed = words.view(np.uint32)
        groups = _order(tensors.read("{module}.g_idx"), n, count) if tensors.find("{module}.g_idx") else None
    called = f"{'AWQ' if packs_outputs else 'GPTQ'} int{bits}"
    return _CodesReading(
        called,
        Codes(
            packed,
            scales,
            f"uint{bits}",
            n,
            step_of(count, n, tensors.weights.quantization.group_size),
            zeros=offsets,
            groups=groups,
        ),
    )


_READERS: Final[dict[Kind, Callable[[Tensors], _CodesReading]]] = {
    "nf4": _bnb4,
    "fp4": _bnb4,
    "bnb8": _bnb8,
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "int8": _int8,
    "nvfp4": _nvfp4,
    "nvfp4-modelopt": _nvfp4_modelopt,
    "packed": _packed,
    "gptq": _gptq,
}
