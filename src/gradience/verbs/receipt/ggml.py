"""What a GGUF file's own types make of a weight, by the library that wrote them: llama.cpp's ggml.

llama-cpp-python brings that library. Its functions are called as ggml.h and gguf.h declare them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gradience.adapters import layer_index
from gradience.errors import AdapterError

_MODULES: Final = MappingProxyType(
    {
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
    }
)
"""Names of a layer's matrices in transformers and in GGUF: Llama, Mistral, Qwen, Gemma and their like."""

_WHOLE: Final = MappingProxyType({"embed_tokens": ("token_embd",), "lm_head": ("output", "token_embd")})
"""Those outside the layers; a head may be the embeddings."""

_TO_FLOAT: Final = MappingProxyType({"f16": "ggml_fp16_to_fp32_row", "bf16": "ggml_bf16_to_fp32_row"})
IMATRIX: Final = "quantize.imatrix.file"  # the key that llama-quantize leaves in a file


class FileRounding:
    """What a file's types give back of a matrix.

    Args:
        types: of each tensor of the file without its suffix, such as `blk.0.attn_q`, the number of its ggml type.
    """

    def __init__(self, types: Mapping[str, int]) -> None:
        self._types, self._ggml = types, _library()

    def __call__(self, path: str, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The weight of a module as the file would give it back.

        Args:
            path: the module's path in transformers.
            weight: its matrix (out, in), not yet rounded.
        """
        kind = next(self._types[name] for name in _names(path) if name in self._types)
        if (called := self._name(kind)) == "f32":
            return weight
        rows, width = weight.shape
        if width % (block := self._ggml.ggml_blck_size(kind)):  # the library would abort
            raise AdapterError(f"{path}: rows of {width}, and the file's type {called} has blocks of {block}")
        matrix = np.ascontiguousarray(weight, np.float32)
        codes = np.empty(rows * self._ggml.ggml_row_size(kind, width), np.uint8)
        self._ggml.ggml_quantize_chunk(kind, matrix.ctypes, codes.ctypes, 0, rows, width, None)
        rounded = np.empty_like(matrix)
        getattr(self._ggml, _of(called))(codes.ctypes, rounded.ctypes, ctypes.c_int64(matrix.size))
        return rounded

    def can_round(self, paths: list[str]) -> bool:
        """Whether the file has each of these modules, and its type is one that is made of the weights alone."""
        kinds = [next((self._types[name] for name in _names(path) if name in self._types), None) for path in paths]
        return bool(kinds) and all(kind is not None and self._is_known(kind) for kind in kinds)

    def _is_known(self, kind: int) -> bool:
        called = self._name(kind)
        return called == "f32" or (
            hasattr(self._ggml, _of(called)) and not self._ggml.ggml_quantize_requires_imatrix(kind)
        )

    def _name(self, kind: int) -> str:
        name: bytes = self._ggml.ggml_type_name(kind)
        return name.decode()


def types_of(path: str) -> dict[str, int] | None:
    """The number of each tensor's ggml type, by its name without suffix; None if the library cannot open the file."""
    ggml = _library()
    # no_alloc: names and types are read, and no weights.
    file = ggml.gguf_init_from_file(path.encode(), _InitParams(no_alloc=True, context=None))
    if not file:
        return None
    try:
        count = ggml.gguf_get_n_tensors(file)
        names = [ggml.gguf_get_tensor_name(file, i).decode() for i in range(count)]
        return {name.removesuffix(".weight"): ggml.gguf_get_tensor_type(file, i) for i, name in enumerate(names)}
    finally:
        ggml.gguf_free(file)


class _InitParams(ctypes.Structure):
    """`gguf_init_params`."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


def _names(path: str) -> tuple[str, ...]:
    """The names that a module's matrix may have in a file."""
    leaf, layer = path.rpartition(".")[2], layer_index(path)
    if layer is None:
        return _WHOLE.get(leaf, ())
    return (f"blk.{layer}.{_MODULES[leaf]}",) if leaf in _MODULES else ()


def _of(kind: str) -> str:
    return _TO_FLOAT.get(kind, f"dequantize_row_{kind}")


def _library() -> Any:
    import llama_cpp  # only those who have such a file need it
    from llama_cpp._ctypes_extensions import load_shared_library

    ggml = load_shared_library("ggml-base", Path(llama_cpp.__file__).parent / "lib")
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for name, given, back in (
        ("ggml_type_name", [ctypes.c_int], ctypes.c_char_p),
        ("ggml_blck_size", [ctypes.c_int], number),
        ("ggml_row_size", [ctypes.c_int, number], ctypes.c_size_t),
        ("ggml_quantize_requires_imatrix", [ctypes.c_int], ctypes.c_bool),
        ("ggml_quantize_chunk", [ctypes.c_int, pointer, pointer, number, number, number, pointer], ctypes.c_size_t),
        ("gguf_init_from_file", [ctypes.c_char_p, _InitParams], pointer),
        ("gguf_get_n_tensors", [pointer], number),
        ("gguf_get_tensor_name", [pointer, number], ctypes.c_char_p),
        ("gguf_get_tensor_type", [pointer, number], ctypes.c_int),
        ("gguf_free", [pointer], None),
    ):
        function = getattr(ggml, name)
        function.argtypes, function.restype = given, back
    return ggml
