"""Write a file or a folder that appears complete or not at all, and replaces nothing unless asked to.

Data are written to a hidden sibling, which is renamed to the output path when it is complete. So a reader never sees
half an output, an interrupted run leaves nothing behind, and an older output stays until the new one is complete.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import reduce
from itertools import islice
from operator import and_
from pathlib import Path
from typing import Final, TypeVar

from gradience.errors import OutputError
from gradience.io import make_folder
from gradience.io.interrupt import held

_T = TypeVar("_T")
_FREE: Final = "check path and free space"
_LONGEST: Final = 200  # bytes of a name that are kept in that of its hidden sibling; most file systems take 255
_READABLE: Final = 0o044  # by group and others
_MOST_SOURCES: Final = 1000  # files of a folder whose modes are looked at


@contextmanager
def atomic_file(out: Path, *, force: bool = False) -> Iterator[Path]:
    """A context that yields a sibling path to write to, renamed to `out` if the block succeeds and else removed.

    Args:
        out: the file wanted.
        force: replace a file that is there already. A folder is never replaced by a file.

    Raises:
        OutputError: the name is taken, or the parent folder cannot be written to.
    """
    refuse_file(out, force=force)
    _make_parent(out)
    partial = _sibling(out)
    try:
        with held():
            _attempt(out, lambda: partial.touch(exist_ok=False))
        with _of(out, partial):
            yield partial
        with held():
            if force:
                _attempt(out, lambda: partial.replace(out))
            else:
                _attempt(out, lambda: _name_unless_taken(partial, out))
    finally:
        with held(), suppress(OSError):  # the file has its name by now, or another error says why not
            partial.unlink()


@contextmanager
def atomic_folder(out: Path, *, force: bool = False, check: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """A context that yields an empty sibling folder, renamed to `out` if the block succeeds and else removed.

    Args:
        out: the folder wanted; it may exist if it is empty.
        force: replace a folder that is there already. Its content is lost once the new folder is complete.
        check: called with the folder that is about to be replaced; raises OutputError if something in it must stay.
            It is called last, because the user may have put a file there while the verb was working.

    Raises:
        OutputError: the name is taken, a file must stay, or the parent folder cannot be written to.
    """
    refuse_folder(out, force=force)
    _make_parent(out)
    _refuse_long(out)
    partial = _sibling(out)
    try:
        with held():
            _attempt(out, partial.mkdir)
        with _of(out, partial):
            yield partial
        with held():
            _attempt(out, lambda: _swap(partial, out, force=force, check=check))
    finally:
        with held():
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _of(out: Path, partial: Path) -> Iterator[None]:
    """A context that turns a failure to write into an OutputError: of a file in `partial`, or of none that is named.

    An error of a file that is read has its name.
    """
    try:
        yield
    except OSError as error:
        named = error.filename
        if named is not None and not Path(os.fsdecode(named)).is_relative_to(partial):
            raise
        raise OutputError(f"cannot write {out}: {error.strerror or error}", advice=_FREE) from error


def keep_private(place: Path, sources: Iterable[Path]) -> None:
    """Take from a file, or from all of a folder, what others may not do with every one of its sources.

    What is made of a log or an adapter that only its owner may read is for its owner only, too.

    Args:
        place: what was written, before it has its name.
        sources: files, or folders of files; those that are missing count for nothing.
    """
    shared = _shared(sources)
    if shared & _READABLE == _READABLE:
        return
    for path in (place, *(place.rglob("*") if place.is_dir() else ())):
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode & (0o700 | shared | (shared & 0o044) >> 2 if path.is_dir() else 0o700 | shared))


def are_private(sources: Iterable[Path]) -> bool:
    """Whether somebody of the group, or others, may not read every source, given as for `keep_private`."""
    return _shared(sources) & _READABLE != _READABLE


def _shared(sources: Iterable[Path]) -> int:
    """What group and others may do with every one of the sources."""
    return reduce(and_, (mode for source in sources for mode in _modes(source)), 0o077) & 0o077


def _modes(source: Path) -> Iterator[int]:
    with suppress(OSError):
        if source.is_dir():
            yield from (path.stat().st_mode for path in islice(source.iterdir(), _MOST_SOURCES) if path.is_file())
        else:
            yield source.stat().st_mode


def refuse_file(out: Path, *, force: bool) -> None:
    """Refuse, before any work is done, an output path that `atomic_file` would refuse.

    Raises:
        OutputError: the name is taken and may not be replaced, or the path does not end in a name.
    """
    _refuse_name(out)
    if os.path.isdir(out):  # noqa: PTH112  # on some Pythons Path.is_dir raises if a name is too long
        raise OutputError(f"{out} is a folder: no file takes its place", advice="choose another name")
    if os.path.lexists(out) and not force:
        raise OutputError(f"{out} exists already", advice="choose another name, or replace it with --force")


def refuse_folder(out: Path, *, force: bool) -> None:
    """Refuse, before any work is done, an output path that `atomic_folder` would refuse.

    Raises:
        OutputError: the name is taken and may not be replaced, or the path does not end in a name.
    """
    _refuse_name(out)
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        what = "a link" if out.is_symlink() else "no folder"
        raise OutputError(f"{out} exists already, and is {what}: it is never replaced", advice="choose another name")
    if not force and _attempt(out, lambda: any(out.iterdir())):
        raise OutputError(f"{out} exists already", advice="choose another name, or replace it with --force")


def _refuse_name(out: Path) -> None:
    if out.name in {"", ".."}:
        raise OutputError(f"{out} is not a usable output path", advice="give a path that ends in a name")
    if os.path.lexists(out.parent) and not out.parent.is_dir():
        raise OutputError(f"cannot write {out}: {out.parent} is not a folder", advice="choose another place")


def _make_parent(out: Path) -> None:
    if not os.path.isdir(out.parent):  # noqa: PTH112  # as above
        _attempt(out, lambda: make_folder(out.parent))


def _sibling(out: Path) -> Path:
    """A hidden path beside `out` with a random part, so that the name is not taken; no longer than a name may be."""
    name = os.fsdecode(os.fsencode(out.name)[:_LONGEST])
    return out.with_name(f".{name}.partial-{secrets.token_hex(4)}")


def _refuse_long(out: Path) -> None:
    """Refuse a name that is too long for the file system before any work is done."""
    try:
        out.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise OutputError(f"cannot write {out}: {error.strerror}", advice=_FREE) from error


def _attempt(out: Path, action: Callable[[], _T]) -> _T:
    try:
        return action()
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}", advice=_FREE) from error


def _name_unless_taken(partial: Path, out: Path) -> None:
    """Give the file its name, unless the name is taken.

    A hard link fails if the name exists, so no other process can take it in between. A file system without hard links
    falls back to a rename.
    """
    try:
        os.link(partial, out)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise
        partial.rename(out)


def _swap(partial: Path, out: Path, *, force: bool, check: Callable[[Path], object] | None) -> None:
    """Give the folder its name. An older folder is renamed first, and gets its name back if anything fails."""
    try:
        partial.rename(out)  # succeeds only if the name is free or is that of an empty folder
    except OSError:
        if not (force and out.is_dir()):
            raise
    else:
        return
    if check is not None:
        check(out)
    aside = _sibling(out)
    try:
        out.rename(aside)
        partial.rename(out)
    except BaseException:  # an interrupt, too, must not leave the old folder under a hidden name
        if os.path.lexists(aside) and not os.path.lexists(out):
            aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)
