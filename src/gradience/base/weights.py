"""Where a base model's weights are: a folder, one file, a sharded index, or the hub's cache."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np

from gradience.adapters.patterns import dotted_tails
from gradience.errors import AdapterError
from gradience.io.safetensors import Array, SafetensorsFile, TensorInfo, indexed_files

_ONE_FILE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_REPO_PARTS: Final = 2  # organisation and name
_COMMIT: Final = re.compile(r"[0-9a-zA-Z][0-9a-zA-Z_-]{0,63}")  # hexadecimal on the hub; never a path
_MAX_REF: Final = 256  # bytes
_ADVICE: Final = "give a folder with model.safetensors or model.safetensors.index.json"


def find_shards(path: Path) -> list[Path]:
    """The base's safetensors files, in order of their names.

    A path that does not exist but reads as `organisation/name` is looked up in the hub's local cache;
    nothing is ever downloaded.

    Raises:
        AdapterError: nothing is there, or the checkpoint is incomplete or of another format.
    """
    place = path if os.path.exists(path) else _cached(path)  # noqa: PTH110  # Path.exists raises on long names
    if place.is_file():
        return indexed_files(place) if place.name.endswith(".index.json") else [place]
    if not place.is_dir():
        raise AdapterError(f"{place} is neither a folder nor a file of weights", advice=_ADVICE)
    folder = _snapshot(place)
    if (folder / _INDEX).is_file():
        return indexed_files(folder / _INDEX)
    if (folder / _ONE_FILE).is_file():
        return [folder / _ONE_FILE]
    found = sorted(p for p in folder.glob("*.safetensors") if p.is_file() and not p.name.startswith("adapter"))
    if found:
        return found
    held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    pickled = any(folder.glob("*.bin"))
    advice = "only safetensors are read: save the model again with safe_serialization=True" if pickled else _ADVICE
    raise AdapterError(f"no base weights in {folder} (it holds {held})", advice=advice)


def _snapshot(folder: Path) -> Path:
    """The revision's folder of a hub cache entry, or the folder itself."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    if (revision := _revision(main)) and (chosen := snapshots / revision).is_dir():
        return chosen
    revisions = sorted(p for p in snapshots.iterdir() if p.is_dir())
    if len(revisions) == 1:
        return revisions[0]
    raise AdapterError(
        f"{folder} holds {len(revisions)} revisions and no refs/main",
        advice="give one of the folders in snapshots/",
    )


def _revision(ref: Path) -> str:
    """The commit that a ref of the hub's cache names; nothing where it names none, such as a way out of the cache."""
    try:
        with ref.open("rb") as file:
            text = file.read(_MAX_REF).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text if _COMMIT.fullmatch(text) else ""


def _cached(path: Path) -> Path:
    if len(path.parts) <= _REPO_PARTS and not path.is_absolute():
        entry = _hub_cache() / "--".join(("models", *path.parts))
        if entry.is_dir():
            return entry
        raise AdapterError(f"no such base: {path} is neither a path nor in {_hub_cache()}", advice=_ADVICE)
    raise AdapterError(f"no such base: {path}", advice=_ADVICE)


def _hub_cache() -> Path:
    """The hub's cache as huggingface_hub finds it."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache)
    home = os.environ.get("HF_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "huggingface") / "hub"


_ETAG: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def identity(files: Iterable[Path]) -> str:
    """A hash over names, sizes and content of the files; equal if and only if the base is the same.

    In the hub's cache a file is a link to a blob named by its etag, which is a hash of its content (git's or
    SHA-256): the link is enough, and nothing is read. Elsewhere the content is hashed.
    """
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.name}\0{file.stat().st_size}\0{file_digest(file)}\n".encode())
    return whole.hexdigest()


def file_digest(file: Path) -> str:
    """`etag:...` of a file in the hub's cache, `sha256:...` of any other."""
    target = file.resolve()
    if file.is_symlink() and target.parent.name == "blobs" and _ETAG.fullmatch(target.name):
        return f"etag:{target.name}"
    with file.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


_READABLE: Final[dict[str, np.dtype[Any]]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class Found(NamedTuple):
    """One tensor of the base: its name there, and where it is."""

    name: str
    info: TensorInfo
    file: SafetensorsFile


class BaseWeights:
    """The tensors of a base model, whatever the number of its files. Only headers are read at first.

    Raises:
        AdapterError: a file is missing, damaged or no safetensors.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = [SafetensorsFile(file) for file in files]
        self._held: dict[str, SafetensorsFile] = {name: file for file in self.files for name in file.tensors}
        self._by_tail: dict[str, list[str]] = {}
        for name in self._held:
            for tail in dotted_tails(name)[1:]:
                self._by_tail.setdefault(tail, []).append(name)

    def find(self, name: str) -> Found | None:
        """The tensor of that name, or None.

        A model class adds or drops prefixes (`transformer.h.0` of GPT2LMHeadModel is `h.0` in the hub's
        file), so where the whole name is not there, one that ends with the other is taken if it is the only one.
        """
        if name not in self._held:
            longer = self._by_tail.get(name, [])
            shorter = [tail for tail in dotted_tails(name)[1:] if tail in self._held and tail.count(".") > 1][:1]
            hits = longer or shorter
            if len(hits) != 1:
                return None
            name = hits[0]
        return Found(name, self._held[name].tensors[name], self._held[name])

    def read(self, found: Found, expert: int | None = None) -> Array:
        """The weight as stored, as a matrix: an expert's slice, a convolution flattened after its first axis.

        Raises:
            AdapterError: the weight is quantised, or no matrix.
        """
        if (reason := self.refusal(found)) is not None:
            raise AdapterError(f"{found.name}: {reason}")
        part = found.file.read(found.name) if expert is None else self._slice(found, expert)
        return part.reshape(part.shape[0], -1)

    def _slice(self, found: Found, expert: int) -> Array:
        """One slice along the first axis, reading no other."""
        count, *rest = found.info.shape
        if expert >= count or len(rest) < 2:
            raise AdapterError(f"{found.name}: of shape {list(found.info.shape)}: no expert {expert}")
        return found.file.read_slice(found.name, expert)

    def refusal(self, found: Found) -> str | None:
        """The reason why no number can be derived from the tensor, or None."""
        if found.info.dtype not in _READABLE:
            return f"stored as {found.info.dtype}: a quantised base weight is not comparable"
        if len(found.info.shape) < 2 or 0 in found.info.shape:
            return f"of shape {list(found.info.shape)}: no matrix"
        return None
