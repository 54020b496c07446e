"""The state of torch's optimizers as the Trainer saves it beside weights: how many steps it made, what is not finite.

The pickle is walked as that of training arguments is; the numbers are read as bytes, so torch is not needed.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np

from gradience.configs.pickled import Record, Walk, entry_of
from gradience.configs.values import Malformed
from gradience.errors import AdapterError
from gradience.io.reading import open_regular
from gradience.io.safetensors import DTYPES

_AVERAGES: Final = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")  # of Adam, AdamW and SGD
MAX_BYTES: Final = 4 * 2**30
_MAX_OPCODES: Final = 400_000  # 30 for a tensor
_MAX_ENTRIES: Final = 20_000  # 3 for a tensor that is trained
_TENSOR: Final = "torch._utils _rebuild_tensor_v2"
_STORED: Final = "stored"
_DTYPES: Final = {
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
    "torch DoubleStorage": "F64",
}
_OTHER: Final = ("torch ByteStorage", "torch CharStorage", "torch IntStorage", "torch LongStorage", "torch BoolStorage")
_POINTER: Final = b"version https://git-lfs"


class OptimizerState(NamedTuple):
    """What the state of an optimizer tells."""

    steps: int | None
    """The most steps that it made with one parameter; None if it does not count them."""
    tensors: int
    """The averages that it keeps."""
    broken: Mapping[str, int]
    """How many of each name are not finite."""


class _StateWalk(Walk):
    """A walk that knows tensors, too."""

    most = _MAX_OPCODES

    def known(self, text: str) -> bool:
        return text == _TENSOR or text in _DTYPES or text in _OTHER or super().known(text)

    def step(self, opcode: str, argument: Any) -> None:  # whatever the opcode carries
        if opcode == "BINPERSID":  # ("storage", its class, its key in the archive, device, elements)
            self.stack.append(Record(self.name(_TENSOR), (_STORED, *self.stack.pop())))
        else:
            super().step(opcode, argument)


def read_optimizer(path: Path) -> OptimizerState:
    """What an `optimizer.pt` tells.

    Raises:
        AdapterError: it cannot be read, or is no state of one of torch's optimizers.
    """
    try:
        with open_regular(path) as file, _archive(file) as archive:
            return _told(archive)
    except Malformed as error:
        raise AdapterError(f"{path}: not read: {error}") from error
    except Exception as error:  # zlib, struct and zipfile have errors of their own
        raise AdapterError(f"{path}: not read: {type(error).__name__}: {error}") from error


def _archive(file: BinaryIO) -> zipfile.ZipFile:
    if file.read(len(_POINTER)) == _POINTER:
        raise Malformed("it is a git-lfs pointer ('git lfs pull' fetches it)")
    if file.seek(0, io.SEEK_END) > MAX_BYTES:
        raise Malformed(f"it is larger than {MAX_BYTES // 2**30} GiB")
    return zipfile.ZipFile(file)


def _told(archive: zipfile.ZipFile) -> OptimizerState:
    pickle, data = entry_of(archive, _MAX_ENTRIES)
    whole = _StateWalk(data).next()
    state = whole.get("state") if isinstance(whole, dict) else None
    if not isinstance(state, dict) or not all(isinstance(one, dict) for one in state.values()):
        raise Malformed("it is no state of one of torch's optimizers")
    folder, steps, broken, tensors = pickle.rpartition("/")[0], [], Counter[str](), 0
    for values in state.values():
        if (step := values.get("step")) is not None:
            steps.append(step if type(step) is int else int(_numbers(archive, folder, step)[0]))
        for name in _AVERAGES:
            if isinstance(values.get(name), Record):
                tensors += 1
                broken[name] += not np.isfinite(_numbers(archive, folder, values[name])).all()
    return OptimizerState(max(steps, default=None), tensors, +broken)


def _numbers(archive: zipfile.ZipFile, folder: str, tensor: Record) -> np.ndarray[Any, np.dtype[Any]]:
    """The numbers that a tensor is stored in."""
    _, _, kind, key, *_ = tensor.arguments[0].arguments
    if kind.text not in _DTYPES:
        raise Malformed(f"it holds numbers of the kind {kind.text.partition(' ')[2]}")
    entry = archive.getinfo(f"{folder}/data/{key}")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise Malformed("it is compressed, which torch.save never does")
    return np.frombuffer(archive.read(entry), DTYPES[_DTYPES[kind.text]])
