"""Find a base model's weight files, identify them, and read their tensors one at a time.

A base is a folder, one file, an index of shards, or `organisation/name` in the hub's local cache. Only safetensors are
read, and nothing is downloaded. Opening reads the headers; a tensor's data are read on request, and of a stack of
experts only the slice that is asked for.

This module also brings a module's update to the orientation and shape of the base weight. It caches the norms of base
weights on disk.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, KeysView, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np

from gradience.adapters.formats import distributed_advice
from gradience.adapters.layout import DenseUpdate, Module, check_shape, oriented
from gradience.adapters.patterns import dotted_tails
from gradience.errors import AdapterError, MissingBaseError, OutputError
from gradience.io.atomic import atomic_file
from gradience.io.reading import decode_json, open_regular, read_small, real_path
from gradience.io.safetensors import Array, SafetensorsFile, TensorInfo, ThreadBuffer, indexed_files
from gradience.spectral import in_threads
from gradience.spectral.grams import Factors

_VERSION: Final = 2
_LARGEST: Final = 64 << 20  # bytes: an entry of the cache takes 100

_LARGEST_CONFIG: Final = 16 << 20  # bytes
_ONE_FILE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_REPO_PARTS: Final = 2  # organisation and name
_GIVE_REVISION: Final = "give one of the folders in snapshots/"
_ADVICE: Final = "give a folder with model.safetensors or model.safetensors.index.json"

_REVISION: Final = re.compile(rb"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")  # a commit, or another plain name
_LARGEST_REF: Final = 256  # bytes: a commit has 40

_ETAG: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

_SINGLY: Final = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
    "up_proj": (("up_proj",),),
}
"""The matrices of one expert in files, from top to bottom, by the stack that transformers 5 makes of them on loading
(conversion_mapping.py)."""

READABLE: Final = frozenset({"F64", "F32", "F16", "BF16"})
"""Dtypes, by safetensors' name, that hold a weight's values and not quantised codes."""


class Norms(msgspec.Struct, frozen=True):
    """Spectral and Frobenius norm of one weight."""

    spectral: float
    frobenius: float


class _NormsDocument(msgspec.Struct):
    version: int
    stamp: str
    identity: str
    norms: dict[str, Norms]


class NormsCache:
    """A cache on disk of one base's norms by tensor name, and of its `identity`. `save` writes what was added.

    The cache file is found by the `stamp` of the base's files. If an existing file is damaged or was written for
    another base, it is not used, and `refused` has the reason.
    """

    def __init__(self, folder: Path | None, files: Sequence[Path]) -> None:
        self._files, self._stamp = files, "" if folder is None else stamp(files)
        # Half of the stamp is name enough; the document holds it whole, and is compared by that.
        self._file = None if folder is None else folder / f"{self._stamp[:32]}.json"
        self.refused: str | None = None
        document = self._load()
        self._added = False
        self._norms = {} if document is None else document.norms
        self.identity = "" if self._file is None else identity(files) if document is None else document.identity

    def get(self, name: str) -> Norms | None:
        """The weight's norms, or None if they are not in the cache."""
        return self._norms.get(name)

    def put(self, name: str, norms: Norms) -> None:
        """Add a weight's norms."""
        self._norms[name] = norms
        self._added = True

    def save(self) -> None:
        """Write the cache if something was added, whole or not at all. A failure to write is ignored."""
        if self._file is None or not self._added:
            return
        document = _NormsDocument(version=_VERSION, stamp=self._stamp, identity=self.identity, norms=self._norms)
        # With a read-only home or a full disk, the norms are computed again next time.
        with suppress(OSError, OutputError), atomic_file(self._file, sources=self._files, force=True) as draft:
            draft.write_bytes(msgspec.json.encode(document))

    def _load(self) -> _NormsDocument | None:
        if self._file is None or not self._file.is_file():
            return None
        try:
            document = decode_json(read_small(self._file, most=_LARGEST, what="a norms cache"), _NormsDocument)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.refused = f"the norms cache {self._file} is damaged: not used"
            return None
        if document.stamp != self._stamp or document.version != _VERSION:
            self.refused = f"the norms cache {self._file} belongs to another base: not used"
            return None
        return document


def find_shards(path: Path) -> list[Path]:
    """The base's safetensors files, sorted by name.

    A path that does not exist but has the form `organisation/name` is looked up in the hub's local cache. Nothing is
    ever downloaded.

    Raises:
        AdapterError: nothing is there, or the checkpoint is incomplete or of another format.
    """
    folder = local_folder(path)
    index = folder if folder.name.endswith(".index.json") else folder / _INDEX
    if index.is_file():
        return indexed_files(index)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise AdapterError(f"{folder} is neither a folder nor a file of weights", advice=_ADVICE)
    if (folder / _ONE_FILE).is_file():
        return [folder / _ONE_FILE]
    # An adapter that was saved into the base's folder is not the base's.
    shards = sorted(p for p in folder.glob("*.safetensors") if p.is_file() and not p.name.startswith("adapter"))
    if shards:
        return shards
    names = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    pickled = any(folder.glob("*.bin"))
    advice = "only safetensors are read: save the model again with safe_serialization=True" if pickled else _ADVICE
    advice = distributed_advice(folder) or advice
    raise AdapterError(f"no base weights in {folder} (it holds {names})", advice=advice)


def local_folder(base: Path) -> Path:
    """The folder of a base's files: of `organisation/name` its revision in the hub's local cache.

    Raises:
        MissingBaseError: there is no such path, and nothing of that name in the cache.
        AdapterError: the cache holds several revisions, and names none.
    """
    place = base if os.path.exists(base) else _cached(base)  # noqa: PTH110  # Path.exists raises on long names
    return _snapshot(place) if place.is_dir() else place


def _snapshot(folder: Path) -> Path:
    """The folder of the main (or only) revision, if the folder is a hub cache entry; else the folder itself."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    # refs/main names the revision that a plain download gets; the cache may hold older revisions beside it.
    if os.path.lexists(main):
        return snapshots / _revision(main)
    revisions = sorted(p for p in snapshots.iterdir() if p.is_dir())
    if len(revisions) == 1:
        return revisions[0]
    raise AdapterError(
        f"{folder} holds {len(revisions)} revisions and no refs/main",
        advice=_GIVE_REVISION,
    )


def _revision(main: Path) -> str:
    """The name of the folder in snapshots/ that a ref names. It must be a plain name, so it cannot lead elsewhere."""
    try:
        name = read_small(main, most=_LARGEST_REF, what="a ref").strip()
    except OSError as error:
        raise AdapterError(f"cannot read {main}: {error.strerror}", advice=_GIVE_REVISION) from error
    if _REVISION.fullmatch(name) is None or not (main.parent.parent / "snapshots" / name.decode()).is_dir():
        raise AdapterError(f"{main} names no revision in snapshots/", advice=_GIVE_REVISION)
    return name.decode()


def _cached(path: Path) -> Path:
    if len(path.parts) <= _REPO_PARTS and not path.is_absolute():
        entry = _hub_cache() / "--".join(("models", *path.parts))
        if entry.is_dir():
            return entry
        raise MissingBaseError(f"no such base: {path} is neither a path nor in {_hub_cache()}", advice=_ADVICE)
    raise MissingBaseError(f"no such base: {path}", advice=_ADVICE)


def _hub_cache() -> Path:
    """The hub's cache folder, found as huggingface_hub finds it (constants.py): an empty variable counts as given."""
    user = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = _place("HF_HOME", Path(user) / "huggingface")
    return _place("HF_HUB_CACHE", Path(os.environ.get("HUGGINGFACE_HUB_CACHE", home / "hub")))


def _place(variable: str, default: Path) -> Path:
    place = os.environ.get(variable, str(default))
    return Path(os.path.expandvars(os.path.expanduser(place)))  # noqa: PTH111  # Path.expanduser raises without a home


def identity(files: Sequence[Path]) -> str:
    """A hash over the names, sizes and content of the files. Equal hashes mean the same base.

    In the hub's cache a file is a link to a blob named by its etag, which is a hash of its content (git's or SHA-256).
    There the link is enough, and nothing is read. Elsewhere the content is hashed, in one thread per file.
    """
    digests = in_threads([partial(file_digest, file) for file in files])
    named = zip(files, digests, strict=True)
    return _hash_of(f"{file.name}\0{file.stat().st_size}\0{digest}" for file, digest in named)


def stamp(files: Sequence[Path]) -> str:
    """A hash that identifies unchanged files without reading them, over inodes, sizes and times of change.

    Every write changes a file's `ctime`, which no program can set. A copy of a file counts as another file. A file in
    the hub's cache is identified by its etag.
    """
    return _hash_of(_etag(file) or _written(file) for file in files)


def _written(file: Path) -> str:
    status = file.stat()
    fields = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return " ".join(map(str, fields))


def _hash_of(lines: Iterable[str]) -> str:
    whole = hashlib.sha256()
    for line in lines:
        whole.update(f"{line}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()


def file_digest(file: Path) -> str:
    """`etag:...` of a file in the hub's cache, `sha256:...` of any other."""
    if tag := _etag(file):
        return tag
    with open_regular(file) as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def _etag(file: Path) -> str:
    """`etag:...` of a file in the hub's cache, else nothing."""
    target = real_path(file)
    is_blob = file.is_symlink() and target.parent.name == "blobs" and _ETAG.fullmatch(target.name)
    return f"etag:{target.name}" if is_blob else ""


class Quantization(NamedTuple):
    """The part of a config.json's quantization_config that is read here; what is not of its kind is not given."""

    quant_method: str = ""
    checkpoint_format: str = ""
    """`gptq_v2` if GPTQ's zero points are stored as they are."""
    version: str = ""
    """AWQ's layout."""
    group_size: int | None = None
    desc_act: bool = False
    """Whether GPTQ ordered the columns."""
    weight_block_size: tuple[int, int] | None = None

    @classmethod
    def of(cls, told: dict[str, object]) -> Quantization:
        """That of a quantization_config."""
        method, form, version = (
            word.lower() if isinstance(word := told.get(name), str) else ""
            for name in ("quant_method", "checkpoint_format", "version")
        )
        sides = told.get("weight_block_size")
        high, wide = (_size_of(side) for side in sides) if isinstance(sides, list) and len(sides) == 2 else (None, None)
        block = None if high is None or wide is None else (high, wide)
        return cls(method, form, version, _size_of(told.get("group_size")), told.get("desc_act") is True, block)


def _size_of(value: object) -> int | None:
    """A number of weights: -1 is said for none."""
    return value if type(value) is int and 0 < value <= _LARGEST else None


class _CodedConfig(msgspec.Struct):
    quantization_config: dict[str, object] | None = None


def names_of_expert(stack: str, expert: int) -> Iterator[list[str]]:
    """The names that the matrices of one expert may have in files that hold experts singly, from top to bottom."""
    parent, _, leaf = stack.rpartition(".")
    for names in _SINGLY.get(leaf, ()):
        for place in (parent, parent.replace(".mlp.experts", ".block_sparse_moe.experts")):
            yield [f"{place}.{expert}.{name}.weight" for name in names]


class _Stated(msgspec.Struct):
    tie_word_embeddings: bool = True
    model_type: str = ""


class BaseTensor(NamedTuple):
    """One tensor of the base: its name in the base, its header entry, and its file."""

    name: str
    info: TensorInfo
    file: SafetensorsFile


class BaseWeights:
    """The tensors of a base model in one or several files. Opening reads only the headers.

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

    def find(self, name: str) -> BaseTensor | None:
        """The tensor of that name, or None.

        A model class may add or drop a prefix (`transformer.h.0` of GPT2LMHeadModel is `h.0` in the hub's file). So if
        the full name is missing, a tensor is taken whose name ends with this one, or the other way round, if there is
        only one such tensor.
        """
        if name not in self._held:
            longer = self._by_tail.get(name, [])
            # A single component, such as `weight`, would fit any file.
            shorter = [tail for tail in dotted_tails(name)[1:] if tail in self._held and tail.count(".") > 1][:1]
            hits = longer or shorter
            if len(hits) != 1:
                return None
            name = hits[0]
        return BaseTensor(name, self._held[name].tensors[name], self._held[name])

    def find_expert(self, stack: str, expert: int) -> list[BaseTensor]:
        """The matrices of one expert of a stack, from top to bottom, if the files hold experts singly; else none.

        transformers 5 stacks experts on loading and takes them apart on saving, so the stack is in no file.
        """
        for names in names_of_expert(stack, expert):
            tensors = [self.find(name) for name in names]
            if None not in tensors:
                return [one for one in tensors if one is not None]
        return []

    def named_under(self, module: str) -> list[BaseTensor]:
        """The tensors whose names begin with a module's."""
        # Anywhere in the name, because the files may have a prefix before it.
        return [BaseTensor(name, file.tensors[name], file) for name, file in self._held.items() if f"{module}." in name]

    @cached_property
    def quantization(self) -> Quantization:
        """What config.json says of codes; of a folder without one, nothing."""
        try:
            raw = read_small(self.files[0].path.parent / "config.json", most=_LARGEST, what="a base's config.json")
            return Quantization.of(decode_json(raw, _CodedConfig).quantization_config or {})
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError, AdapterError):
            return Quantization()

    def read(self, found: BaseTensor, expert: int | None = None, memory: ThreadBuffer | None = None) -> Array:
        """The weight as a matrix in its stored dtype. A convolution is flattened after its first axis.

        If `expert` is given, only that expert's slice is read. If `memory` is given, the array lies in it and is valid
        until the next read into it.

        Raises:
            AdapterError: the weight is quantised, or is no matrix.
        """
        if (reason := self.refusal(found)) is not None:
            raise AdapterError(f"{found.name}: {reason}")
        part = found.file.read(found.name, memory) if expert is None else self._slice(found, expert, memory)
        return part.reshape(part.shape[0], -1)

    def _slice(self, found: BaseTensor, expert: int, memory: ThreadBuffer | None) -> Array:
        """One expert's slice along the first axis. Only its bytes are read."""
        count, *rest = found.info.shape
        if expert >= count or len(rest) < 2:
            raise AdapterError(f"{found.name}: of shape {list(found.info.shape)}: no expert {expert}")
        return found.file.read_slice(found.name, expert, memory)

    @property
    def names(self) -> KeysView[str]:
        """The names of all tensors."""
        return self._held.keys()

    def read_whole(self, found: BaseTensor) -> Array:
        """The tensor with all of its axes, in its stored dtype; a vector too.

        Raises:
            AdapterError: it is quantised, or empty.
        """
        if (reason := _quantised(found)) is not None or 0 in found.info.shape:
            raise AdapterError(f"{found.name}: {reason or f'of shape {list(found.info.shape)}'}")
        return found.file.read(found.name)

    def refusal(self, found: BaseTensor) -> str | None:
        """The reason why no number can be derived from the tensor, or None."""
        if (reason := _quantised(found)) is not None:
            return reason
        if len(found.info.shape) < 2 or 0 in found.info.shape:
            return f"of shape {list(found.info.shape)}: no matrix"
        return None


def _quantised(found: BaseTensor) -> str | None:
    if found.info.dtype in READABLE:
        return None
    return f"stored as {found.info.dtype}: a quantised base weight is not comparable"


def factors_of(module: Module) -> Callable[[], Factors]:
    """A function that loads the module's update for the spectral kernels."""
    return lambda: Factors(*module.load(), module.scale)


def plain_factors(module: Module, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The factors (b, a) in the orientation of a base weight of this shape.

    Raises:
        AdapterError: the base weight has another shape.
    """
    b, a, _ = oriented(*module.load(), shape)
    return b, a


def matrix_of(update: DenseUpdate, w: Array) -> Array:
    """The update for a base weight `w`, as a float32 matrix of the same shape.

    Raises:
        AdapterError: the base weight has another shape.
    """
    dense = update(w)
    check_shape(dense.shape, w.shape)
    return dense.astype(np.float32, copy=False)


def ties_head(base: BaseWeights) -> bool:
    """Whether a base without a head of its own ties it to the embedding, as transformers does unless told not to."""
    return _stated(base).tie_word_embeddings


def model_type_of(base: BaseWeights) -> str:
    """The model type that a base's config states; empty if it states none."""
    return _stated(base).model_type


def _stated(base: BaseWeights) -> _Stated:
    try:
        text = read_small(base.files[0].path.parent / "config.json", most=_LARGEST_CONFIG, what="a config")
        return decode_json(text, _Stated)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Stated(tie_word_embeddings=False)
