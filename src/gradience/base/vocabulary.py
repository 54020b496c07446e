"""The tokens of a run's tokenizer and of its base's, read from their files without a tokenizer library.

A training run that adds tokens needs their rows trained; what it added is what its tokenizer has and the base's lacks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

import msgspec

from gradience.io.decoding import decode_json
from gradience.io.reading import read_small

T = TypeVar("T")

_LARGEST: Final = 256 << 20  # bytes: the largest tokenizer.json seen has 35 MB


class _Token(msgspec.Struct):
    id: int
    content: str


class _Model(msgspec.Struct):
    vocab: dict[str, int] | msgspec.Raw | None = None


class _Tokenizer(msgspec.Struct):
    """tokenizer.json, as far as it matters here."""

    added_tokens: list[_Token] = []
    model: _Model | None = None


class _Content(msgspec.Struct):
    content: str


class _Config(msgspec.Struct):
    """tokenizer_config.json, as far as it matters here."""

    added_tokens_decoder: dict[str, _Content] = {}


class Vocabulary(msgspec.Struct, frozen=True):
    """The tokens of one tokenizer with their ids: those added, and the rest where the file lists them."""

    added: dict[str, int]
    known: frozenset[str] | None = None


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary that a folder's tokenizer files give, or None where it holds none that can be read."""
    whole = _decoded(folder / "tokenizer.json", _Tokenizer)
    config = _decoded(folder / "tokenizer_config.json", _Config)
    extra = _decoded(folder / "added_tokens.json", dict[str, int])
    if whole is None and config is None and extra is None:
        return None
    added = dict(extra or {})
    added |= {
        item.content: int(key) for key, item in (config or _Config()).added_tokens_decoder.items() if key.isdecimal()
    }
    added |= {token.content: token.id for token in (whole or _Tokenizer()).added_tokens}
    vocab = whole.model.vocab if whole is not None and whole.model is not None else None
    return Vocabulary(added, frozenset(vocab) if isinstance(vocab, dict) else None)


def added_tokens(run: Vocabulary, base: Vocabulary) -> list[str]:
    """The tokens that the run's tokenizer has and the base's has not, by id."""
    known = base.added.keys() | (base.known or frozenset())
    return [token for token, _ in sorted(run.added.items(), key=lambda item: item[1]) if token not in known]


def _decoded(path: Path, kind: type[T]) -> T | None:
    try:
        return decode_json(read_small(path, most=_LARGEST, what="a tokenizer's file"), kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
