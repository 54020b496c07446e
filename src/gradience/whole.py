"""A file or a folder that appears whole or not at all, and never over something else unasked."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from gradience.errors import OutputError

__all__ = ["whole_file", "whole_folder"]

_T = TypeVar("_T")


@contextmanager
def whole_file(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a sibling path to write to; it takes the name `out` when the block ends well, else it is removed.

    Args:
        out: the file wanted.
        force: replace a file that is there already. A folder is never replaced by a file.

    Raises:
        OutputError: something of that name exists, or its parent cannot be written to.
    """
    _refuse(out, force=force and not out.is_dir())
    partial = _sibling(out)
    _attempt(out, lambda: partial.touch(exist_ok=False))
    try:
        yield partial
        if force:
            _attempt(out, lambda: partial.replace(out))
        else:
            _attempt(out, lambda: _name_unless_taken(partial, out))
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty sibling folder to fill; it takes the name `out` when the block ends well, else it is removed.

    Args:
        out: the folder wanted; it may exist if it is empty.
        force: replace a folder that is there already, whose content is lost once the new one is complete.

    Raises:
        OutputError: something of that name exists, or its parent cannot be written to.
    """
    empty = out.is_dir() and not out.is_symlink() and not any(out.iterdir())
    _refuse(out, force=empty or (force and out.is_dir() and not out.is_symlink()))
    partial = _sibling(out)
    _attempt(out, partial.mkdir)
    try:
        yield partial
        _attempt(out, lambda: _swap(partial, out, force=force))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse(out: Path, *, force: bool) -> None:
    if not out.name:
        raise OutputError(f"{out} is no name for something new", advice="give a path that ends in a name")
    if os.path.lexists(out) and not force:
        raise OutputError(f"{out} exists already", advice="choose another name, or replace it with --force")
    if not out.parent.is_dir():
        _attempt(out, lambda: out.parent.mkdir(parents=True, exist_ok=True))


def _sibling(out: Path) -> Path:
    """Return a hidden name beside `out` that nothing has."""
    return out.with_name(f".{out.name}.partial-{secrets.token_hex(4)}")


def _attempt(out: Path, action: Callable[[], _T]) -> _T:
    try:
        return action()
    except OSError as error:
        raise OutputError(
            f"cannot write {out}: {error.strerror}", advice="check path and free space"
        ) from error


def _name_unless_taken(partial: Path, out: Path) -> None:
    """Give the file its name; where the file system knows links, no other process can slip one in between."""
    try:
        os.link(partial, out)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise
        partial.rename(out)


def _swap(partial: Path, out: Path, *, force: bool) -> None:
    """Give the folder its name; an older one is set aside first, and put back if that fails."""
    try:
        partial.rename(out)  # takes the place of an empty folder, and of nothing else
    except OSError:
        if not (force and out.is_dir()):
            raise
    else:
        return
    aside = _sibling(out)
    out.rename(aside)
    try:
        partial.rename(out)
    except OSError:
        aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)
