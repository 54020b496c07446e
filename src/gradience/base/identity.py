"""Which base this is: a hash over its files, by the hub's etags where they are known, by content elsewhere."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ["file_digest", "identity"]

_ETAG: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def identity(files: Iterable[Path]) -> str:
    """Return a hash over names, sizes and content of the files; equal if and only if the base is the same.

    In the hub's cache a file is a link to a blob named by its etag, which is a hash of its content (git's or
    SHA-256): the link is enough, and nothing is read. Elsewhere the content is hashed.
    """
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.name}\0{file.stat().st_size}\0{file_digest(file)}\n".encode())
    return whole.hexdigest()


def file_digest(file: Path) -> str:
    """Return `etag:...` of a file in the hub's cache, `sha256:...` of any other."""
    target = file.resolve()
    if file.is_symlink() and target.parent.name == "blobs" and _ETAG.fullmatch(target.name):
        return f"etag:{target.name}"
    with file.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
