"""Adapters behind fsspec URLs: listed in one call, copied to this machine for the time of their audit."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

from gradience.adapters.open import CONFIG_NAME
from gradience.errors import AdapterError
from gradience.verbs.fleet.find import Found, holds_adapter, targets

_MOST_HEADER: Final = 100_000_000  # bytes: the format's own limit


def find_remote(root: str, known: Collection[str]) -> Iterator[Found]:
    """Every adapter below a URL, its files stamped by what the store tells of them: size, time of change, etag.

    Raises:
        AdapterError: the store cannot be reached or listed, or its package is missing.
    """
    system, place = _system(root)
    try:
        listed = system.find(place, detail=True)
    except (OSError, ValueError) as error:
        raise _unreachable(root, error) from error
    folders: dict[str, dict[str, Any]] = {}
    for path, info in sorted(listed.items()):
        parts = PurePosixPath(path)
        folders.setdefault(str(parts.parent), {})[parts.name] = info
    for folder, files in folders.items():
        url = str(system.unstrip_protocol(folder))

        def peek(name: str, folder: str = folder, url: str = url) -> bool:
            return f"{url}/{name}" in known or _peeked(system, f"{folder}/{name}")

        for name, read in targets(files.keys(), peek):
            path = f"{url}/{name}" if name else url
            if read != (CONFIG_NAME,):
                yield Found(path, path, read, "; ".join(_stamp(n, files[n]) for n in read), remote=True)


@contextmanager
def fetched(url: str, files: Iterable[str]) -> Iterator[Path]:
    """A context with a copy of an adapter's files on this machine, which goes with the block.

    Raises:
        AdapterError: they cannot be read.
    """
    names = list(files)
    single = url.rpartition("/")[2] in names
    system, place = _system(url.rpartition("/")[0] if single else url)
    with tempfile.TemporaryDirectory(prefix="gradience-") as folder:
        try:
            for name in names:
                system.get_file(f"{place}/{name}", f"{folder}/{name}")
        except (OSError, ValueError) as error:
            raise _unreachable(url, error) from error
        yield Path(folder, names[-1]) if single else Path(folder)


def _system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415  # extra [fleet]
    except ImportError as error:
        raise AdapterError("a URL needs fsspec, which is not installed", advice="pip install fsspec") from error
    try:
        system, place = url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:  # the package of this protocol, such as s3fs
        raise _unreachable(url, error) from error
    return system, str(place)


def _unreachable(url: str, error: Exception) -> AdapterError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return AdapterError(f"cannot read {url}: {reason}", advice="check the URL, its package and your credentials")


def _stamp(name: str, info: dict[str, Any]) -> str:
    """What a store tells of a file's version, whatever it calls it."""
    keys = ("mtime", "LastModified", "last_modified", "updated", "ETag", "etag", "sha256", "blob_id", "md5Hash")
    return " ".join([name, str(info.get("size")), *(str(info[key]) for key in keys if info.get(key))])


def _peeked(system: Any, path: str) -> bool:
    """Whether a safetensors file holds an adapter, by its header: the rest of the copy is a hole."""
    try:
        with system.open(path, "rb") as file, tempfile.NamedTemporaryFile(suffix=".safetensors") as copy:
            head = file.read(8)
            copy.write(head + file.read(min(int.from_bytes(head, "little"), _MOST_HEADER)))
            copy.truncate(max(copy.tell(), system.size(path) or 0))
            copy.flush()
            return holds_adapter(Path(copy.name))
    except (OSError, ValueError) as error:
        raise _unreachable(path, error) from error
