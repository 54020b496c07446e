"""A merged model's folder as `rules.merged` judges it: its documents beside those of the base and the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from gradience.base.coverage import read_vocabulary
from gradience.base.weights import BaseTensor, BaseWeights
from gradience.configs.files import read_mapping
from gradience.errors import AdapterError, ConfigError
from gradience.io.reading import read_small
from gradience.io.safetensors import is_float
from gradience.rewriting.sides import StoredAdapter
from gradience.rules.merged import MergedFolder, Tokens
from gradience.schema import Json

_HEADS: Final = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS: Final = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "shared.weight")
_LARGEST: Final = 4 << 20  # bytes of a chat template
_CONFIG: Final = "config.json"
_GENERATION: Final = "generation_config.json"
_MODELS: Final = ("U8", "I8", "I32", "F8_E4M3", "F8_E5M2")  # dtypes of codes


def read_merged(weights: BaseWeights, base: BaseWeights, adapter: StoredAdapter) -> MergedFolder:
    """What lies around the merged weights, the base's and the adapter's config; nothing that cannot be read."""
    folder, before = (each.files[0].path.parent for each in (weights, base))
    tensors = {name: (info.shape, info.dtype) for file in weights.files for name, info in file.tensors.items()}
    return MergedFolder(
        tensors=tensors,
        names=frozenset(base.names),
        config=_mapping(folder / _CONFIG),
        base=_mapping(before / _CONFIG),
        adapter=adapter.raw,
        tokens=_tokens(folder),
        base_tokens=_tokens(before),
        adapter_tokens=_tokens(adapter.files.config.parent) if adapter.raw else None,
        generation=_mapping(folder / _GENERATION),
        base_generation=_mapping(before / _GENERATION),
        same_head=_same_head(weights),
        coded=any(dtype in _MODELS for _, dtype in tensors.values()),
    )


def _mapping(path: Path) -> Mapping[str, Json] | None:
    with suppress(ConfigError, OSError):
        return read_mapping(path) if path.is_file() else None
    return None


def _tokens(folder: Path) -> Tokens | None:
    vocabulary, config = read_vocabulary(folder), _mapping(folder / "tokenizer_config.json") or {}
    if vocabulary is None:
        return None
    stated, end = config.get("chat_template"), config.get("eos_token")
    if isinstance(end, dict):
        end = end.get("content")
    return Tokens(
        last=max(vocabulary.added.values(), default=None),
        added=frozenset(vocabulary.added),
        template=_template(folder) or (stated if isinstance(stated, str) else None),
        end=vocabulary.added.get(end) if isinstance(end, str) else None,
    )


def _template(folder: Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        return read_small(folder / "chat_template.jinja", most=_LARGEST, what="a chat template").decode()
    return None


def _same_head(weights: BaseWeights) -> bool | None:
    """Whether head and embedding are equal; None if one of them is not stored, or is no float."""
    head, embedding = (_stored(weights, endings) for endings in (_HEADS, _EMBEDDINGS))
    if head is None or embedding is None:
        return None
    if head.info.shape != embedding.info.shape:
        return False
    with suppress(AdapterError):
        return bool(np.array_equal(weights.read_whole(head), weights.read_whole(embedding)))
    return None


def _stored(weights: BaseWeights, endings: tuple[str, ...]) -> BaseTensor | None:
    found = next((name for name in weights.names if name.endswith(endings)), None)
    tensor = None if found is None else weights.find(found)
    return tensor if tensor is not None and is_float(tensor.info.dtype) else None
