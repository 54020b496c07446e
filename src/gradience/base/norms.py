"""Norms of base weights, kept between audits: spectral norms are the costly part of an audit with a base.

The cache is one JSON file for each base, found by the hash of its content. A file that is damaged or was written for
another base is not used, and said so; whether a norm is still that weight's is checked again by its Frobenius norm.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from gradience.errors import OutputError
from gradience.io.atomic import atomic_file
from gradience.io.decoding import decode_json
from gradience.io.reading import read_small

_VERSION: Final = 1
_LARGEST: Final = 64 << 20  # bytes: a norm takes 100


class Norms(msgspec.Struct, frozen=True):
    """Spectral and Frobenius norm of one weight."""

    spectral: float
    frobenius: float


class _Document(msgspec.Struct):
    version: int
    identity: str
    norms: dict[str, Norms]


class NormsCache:
    """The norms of one base by tensor name; `save` keeps what was added.

    `refused` says why an existing file was not believed: damaged, or written for another base.
    """

    def __init__(self, folder: Path | None, identity: str) -> None:
        self._file = None if folder is None else folder / f"{identity[:32]}.json"
        self.identity = identity
        self._added = False
        self.refused: str | None = None
        self._norms = self._load()

    def get(self, name: str) -> Norms | None:
        """The weight's norms, or None where they are not known."""
        return self._norms.get(name)

    def put(self, name: str, norms: Norms) -> None:
        """Add a weight's norms."""
        self._norms[name] = norms
        self._added = True

    def save(self) -> None:
        """Write the cache if something was added; whole or not at all, and never a reason to fail."""
        if self._file is None or not self._added:
            return
        document = _Document(version=_VERSION, identity=self.identity, norms=self._norms)
        # A read-only home or a full disk: compute again next time.
        with suppress(OSError, OutputError), atomic_file(self._file, force=True) as draft:
            draft.write_bytes(msgspec.json.encode(document))

    def _load(self) -> dict[str, Norms]:
        if self._file is None or not self._file.is_file():
            return {}
        try:
            document = decode_json(read_small(self._file, most=_LARGEST, what="a norms cache"), _Document)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.refused = f"the norms cache {self._file} is damaged: not used"
            return {}
        if document.identity != self.identity or document.version != _VERSION:
            self.refused = f"the norms cache {self._file} belongs to another base: not used"
            return {}
        return document.norms
