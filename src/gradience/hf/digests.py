"""Digests of tensors, batches and random states. Nothing is changed, and no random number is drawn.

A digest is a sum of mixed 64-bit integers, one for each element, so it depends neither on the order of the tensors nor
on how a device splits the sum. Two digests of the same version are equal if the tensors are; others are equal by a
chance of 2^-64.
"""

from __future__ import annotations

import hashlib
import random
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch

_VERSION: Final = "s1"
# Odd constants of splitmix64, less their highest bit: torch takes no integer over 2^63 - 1.
MIX: Final = (0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB)
_CHUNK: Final = 1 << 20  # elements mixed at once, so that 8 MB of integers are alive
_MASK: Final = (1 << 64) - 1
_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_WRAPPED: Final = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_ROWS: Final = 16  # rows of a step that are told apart
_WIDEST: Final = 4096  # elements of a row that are mixed; of a longer one, evenly spread elements
IGNORED: Final = -100  # the label that a loss leaves out


class TensorDigest(NamedTuple):
    """A digest, and of how many elements every one is in it."""

    digest: str
    sampled: int


def plain_name(name: str) -> str:
    """Return a parameter's name without the wrappers of data parallelism and compilation.

    >>> plain_name("module._orig_mod.model.layers.0.weight")
    'model.layers.0.weight'
    """
    return _WRAPPED.sub("", name)


def digest_of(named: Iterable[tuple[str, torch.Tensor]], budget: int) -> TensorDigest | None:
    """Return the digest of named tensors; None if there are none, or one has no numbers, on the meta device.

    Args:
        named: names and tensors; both are in the digest.
        budget: bytes that are read. If there are more, every n-th element of each tensor is.
    """
    tensors = [(plain_name(name), local(tensor.detach())) for name, tensor in named]
    if not tensors or any(tensor.is_meta for _, tensor in tensors):
        return None
    size = sum(tensor.numel() * tensor.element_size() for _, tensor in tensors)
    every = max(1, -(-size // budget))
    with torch.no_grad():
        sums = [(name, _sum_of(tensor.reshape(-1)[::every])) for name, tensor in tensors]
    # The name is mixed in, so that two tensors cannot change their values unseen.
    total = sum(_mixed_int(_hash(name) + value) for (name, _), value in zip(sums, _numbers(sums), strict=True))
    return TensorDigest(f"{_VERSION}:{total & _MASK:016x}", every)


def random_digest(*, whole: bool = True) -> int:
    """Return 32 bits of the states of the random generators of torch, on the CPU and on CUDA.

    If `whole`, also of those of Python and NumPy, which take longer to read.
    """
    total = zlib.crc32(torch.default_generator.get_state().numpy().tobytes())
    # `get_rng_state` would start CUDA in a process that does not use it.
    if torch.cuda.is_initialized():
        total = zlib.crc32(torch.cuda.get_rng_state().numpy().tobytes(), total)
    if whole:
        # A tuple of integers has the same hash in every process; only texts and bytes are salted.
        total = zlib.crc32(hash(random.getstate()[1]).to_bytes(8, signed=True), total)
        state: Any = np.random.get_state()  # noqa: NPY002  # the state of NumPy itself is what is asked for
        total = zlib.crc32(bytes(str(state[2]), "ascii"), zlib.crc32(state[1].tobytes(), total))
    return total


def row_hashes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return 24 bits for each row of a batch that a model is called with, and last those of the rows beyond the 16th.

    A row is what the model reads of it: its tokens without padding and its labels, else its other tensors.
    """
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.ndim]
    ids, labels = kwargs.get("input_ids", args[0] if args else None), kwargs.get("labels")
    if isinstance(ids, torch.Tensor) and ids.ndim > 1 and not ids.is_floating_point():
        parts: list[Any] = _tokens(ids, kwargs.get("attention_mask"), labels)
    else:
        rows = {len(value) for value in tensors}
        parts = [_row_sums(value) for value in tensors] if len(rows) == 1 else []
    if not parts:
        return None
    mixed = mixed_bits(sum(parts))
    if isinstance(mixed, np.ndarray):
        return torch.from_numpy(np.append(mixed[:_ROWS], mixed[_ROWS:].sum()) & 0xFFFFFF)
    return torch.cat([mixed[:_ROWS], mixed[_ROWS:].sum(0, keepdim=True)]) & 0xFFFFFF


def batch_text(rows: Sequence[int], count: int) -> str:
    """Return a micro-batch of `count` rows as text: 24 bits of each of the first rows, then the sum of the others.

    >>> batch_text([1, 0xABCDEF, 0], 2)
    '000001 abcdef'
    """
    *first, rest = rows
    return " ".join([f"{row:06x}" for row in first] + ([f"+{count - len(first)}:{rest:06x}"] if count > _ROWS else []))


def _tokens(ids: torch.Tensor, given: Any, labels: Any) -> list[Any]:
    """Return sums for each row: tensors, or arrays of NumPy if the tokens are on the CPU."""
    of_rows = isinstance(labels, torch.Tensor) and labels.ndim > 0 and len(labels) == len(ids)
    fits = [isinstance(other, torch.Tensor) and other.shape == ids.shape for other in (given, labels)]
    read = _own if ids.device.type == "cpu" else _on_device  # NumPy takes a third of the time of torch on few numbers
    mixed = _token_sums(
        read(ids),
        read(given) if fits[0] else None,
        read(labels) if fits[1] else None,
        torch.arange(1, ids.shape[1] + 1, device=ids.device) if read is _on_device else np.arange(1, ids.shape[1] + 1),
    )
    return [mixed, read(_row_sums(labels))] if of_rows and not fits[1] else [mixed]


def _own(tensor: torch.Tensor) -> Any:
    return tensor.detach().to("cpu", torch.int64).numpy()


def _on_device(tensor: torch.Tensor) -> Any:
    return tensor.detach().to(torch.int64)


def _token_sums(ids: Any, given: Any, labels: Any, places: Any) -> Any:
    """Return a sum for each row: of tensors, or of the same arrays of NumPy. Masked tokens are left out."""
    mask = None if given is None else given != 0
    # Places are counted without the padding, so that a row is the same on whichever side it is padded.
    places = places if mask is None else mask.cumsum(1)
    # One is added so that a token 0 is not multiplied away.
    keys = (ids + 1) * MIX[0] + places * MIX[1]
    if labels is not None:
        keys += (labels != IGNORED) * (labels + 2) * MIX[2]
    mixed = mixed_bits(keys)
    return (mixed if mask is None else mixed * mask).reshape(len(ids), -1).sum(1)


def _row_sums(value: torch.Tensor) -> torch.Tensor:
    flat = value.detach().reshape(len(value), -1)
    flat = flat[:, :: max(1, flat.shape[1] // _WIDEST)].contiguous()
    bits = flat.view(_INTEGERS[flat.element_size()]) if flat.is_floating_point() else flat
    places = torch.arange(bits.shape[1], device=bits.device)
    sums: torch.Tensor = mixed_bits((bits.to(torch.int64) + 1) * MIX[0] + places * MIX[1]).sum(1)
    return sums


def _sum_of(flat: torch.Tensor) -> torch.Tensor:
    """Return one 64-bit integer of a flat tensor's bits and places."""
    flat = flat.contiguous()
    if flat.dtype == torch.bool or flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat.to(torch.uint8)
    bits = flat.view(_INTEGERS[flat.element_size()])
    places = torch.arange(min(_CHUNK, bits.numel()), device=bits.device) * MIX[1]
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for number, chunk in enumerate(bits.split(_CHUNK) if bits.numel() else ()):
        # The chunk's number is added: two equal chunks must not change places unseen.
        mixed = (chunk.to(torch.int64) + 1).mul_(MIX[0]).add_(places[: len(chunk)]).add_(number)
        mixed ^= mixed >> 31
        total += mixed.mul_(MIX[1]).sum()
    return total


def _numbers(sums: Sequence[tuple[str, torch.Tensor]]) -> list[int]:
    """Read the sums, those of one device at once."""
    numbers: dict[int, int] = {}
    for device in {value.device for _, value in sums}:
        places = [place for place, (_, value) in enumerate(sums) if value.device == device]
        numbers |= zip(places, torch.stack([sums[place][1] for place in places]).tolist(), strict=True)
    return [numbers[place] for place in range(len(sums))]


def mixed_bits(values: Any) -> Any:
    """Return 64-bit integers, of a tensor or of an array, whose bits depend on all bits of the given ones."""
    # NumPy and torch wrap and shift signed integers alike, so a row has one hash on the CPU and on a card.
    mixed = (values ^ (values >> 31)) * MIX[1]
    return mixed ^ (mixed >> 29)


def _mixed_int(value: int) -> int:
    mixed = ((value & _MASK) ^ ((value & _MASK) >> 31)) * MIX[1] & _MASK
    return mixed ^ (mixed >> 29)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a sharded tensor, else the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
