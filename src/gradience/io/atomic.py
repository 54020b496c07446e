"""Write a file or a folder that appears complete or not at all, and replaces nothing unless asked to.

Data are written to a hidden sibling, which takes the output path when it is complete. So a reader never sees half an
output, and a whole one stands under its name at every moment, whenever the process is killed. What others may not read
of the sources, they may not read of the output, from its first byte on.

A sibling is locked for as long as its process lives. One that nobody locks was left by a process that was killed, and
goes with the next output in that folder.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, reduce
from itertools import islice
from operator import and_
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from gradience.errors import OutputError
from gradience.io import make_folder
from gradience.io.interrupt import held

if sys.platform != "win32":
    from fcntl import LOCK_EX, LOCK_NB, flock

_T = TypeVar("_T")
_FREE: Final = "check path and free space"
_LONGEST: Final = 200  # bytes of a name that are kept in that of its hidden sibling; most file systems take 255
_READABLE: Final = 0o044  # by group and others
_MOST_SOURCES: Final = 1000  # files of a folder whose modes are looked at
_LEFT: Final = re.compile(r"\..*\.partial-[0-9a-f]{8}", re.DOTALL)
_SCRATCH_PREFIX: Final = ".gradience-scratch-"
_SCRATCH: Final = re.compile(re.escape(_SCRATCH_PREFIX) + r"[a-z0-9_]{8}")
_TRIES: Final = 5  # to make a sibling that no other process takes for one that was left
_HERE: Final = -100  # AT_FDCWD of Linux: a path is taken from the working folder
_EXCHANGE: Final = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS


@contextmanager
def atomic_file(
    out: Path, *, sources: Iterable[Path], force: bool | None = False, private: bool = False
) -> Iterator[Path]:
    """A context that yields a sibling path to write to, renamed to `out` if the block succeeds and else removed.

    Args:
        out: the file wanted.
        sources: files, or folders of files, that the content is made of: what others may not do with every one of them,
            by their modes or those of folders around them, they may not do with `out`. Those that are missing count for
            nothing.
        force: replace a file that is there already; None if the verb has no `--force`. A folder is never replaced.
        private: nobody but the owner may read it, whoever may read the sources.

    Raises:
        OutputError: the name is taken, or the parent folder cannot be written to.
    """
    refuse_file(out, force=force)
    _make_parent(out)
    mode = 0o600 | (0 if private else _shared(sources, out) & 0o066)
    # A new name, so that until the file is made the end has something harmless to remove.
    partial = _sibling(out)
    lock = -1
    try:
        with held():
            # A signal between the making of the file and this assignment would leave a file that nobody removes.
            partial, lock = _attempt(out, lambda: _locked(out, lambda path: os.close(_created(path, mode))))
        with _of(out, partial):
            yield partial
        with held():
            if force:
                _attempt(out, lambda: partial.replace(out))
            else:
                _attempt(out, lambda: _name_unless_taken(partial, out))
    finally:
        with held(), suppress(OSError):  # the file has its name by now, or another error says why not
            _unlock(lock)
            partial.unlink()


@contextmanager
def atomic_folder(
    out: Path, *, sources: Iterable[Path], force: bool = False, check: Callable[[Path], object] | None = None
) -> Iterator[Path]:
    """A context that yields an empty sibling folder, which takes the name `out` if the block succeeds, else removed.

    Args:
        out: the folder wanted; it may exist if it is empty.
        sources: as of `atomic_file`.
        force: replace a folder that is there already. Its content is lost once the new folder is complete.
        check: called with the folder that is about to be replaced; raises OutputError if something in it must stay.
            It is called last, because the user may have put a file there while the verb was working.

    Raises:
        OutputError: the name is taken, a file must stay, or the parent folder cannot be written to.
    """
    refuse_folder(out, force=force)
    _make_parent(out)
    _refuse_long(out)
    shared = _shared(sources, out)
    partial = _sibling(out)
    lock = -1
    try:
        with held():
            partial, lock = _attempt(out, lambda: _locked(out, lambda path: path.mkdir(_of_folder(0o777, shared))))
        with _of(out, partial):
            yield partial
            _narrow(partial, shared)
        with held():
            _attempt(out, lambda: _swap(partial, out, force=force, check=check))
    finally:
        with held():
            _unlock(lock)
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A context that yields a temporary folder, for its owner only, and removes it at the end, also after an error.

    Those of processes that were killed are removed before.

    Raises:
        OutputError: the folder cannot be made.
    """
    folder, lock = Path(), -1
    try:
        with held():
            folder, lock = _made_scratch()
        yield folder
    finally:
        with held():
            _unlock(lock)
            if folder.name:
                shutil.rmtree(folder, ignore_errors=True)


def _made_scratch() -> _Sibling:
    try:
        place = Path(tempfile.gettempdir())
        _sweep(place, _SCRATCH)
        return _first_locked(lambda: Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=place)))
    except OSError as error:
        message = f"cannot make a temporary folder: {error.strerror}"
        raise OutputError(message, advice="check the space left, or set TMPDIR to another place") from error


def _created(path: Path, mode: int) -> int:
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)


class _Sibling(NamedTuple):
    path: Path
    lock: int
    """The descriptor that holds the lock; -1 on systems without."""


def _locked(out: Path, make: Callable[[Path], object]) -> _Sibling:
    """A new sibling of the output, locked until its descriptor is closed. Those that were left are removed before."""

    def made() -> Path:
        path = _sibling(out)
        make(path)
        return path

    _sweep(out.parent, _LEFT)
    return _first_locked(made)


def _first_locked(make: Callable[[], Path]) -> _Sibling:
    for _ in range(_TRIES):
        path = make()
        lock = _lock(path)
        if lock is None:  # no locks here
            return _Sibling(path, -1)
        if lock >= 0:
            return _Sibling(path, lock)
    raise OSError(errno.EAGAIN, "another process removes what is written")


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a file or folder; -1 if it is another's, or gone; None without locks."""
    if sys.platform == "win32":
        return None
    try:
        # In a folder that others write to, the name may be a link, or a pipe at which an opening waits.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    except OSError:  # what may be written, and not read
        return None
    try:
        # Not lockf, whose lock ends when the process closes any descriptor of the file, and which no folder can have.
        flock(descriptor, LOCK_EX | LOCK_NB)
        # Between the opening and the lock another process may have swept it away: nobody would see that lock.
        if os.path.samestat(os.fstat(descriptor), path.lstat()):
            return descriptor
        lock = -1
    except (BlockingIOError, FileNotFoundError):
        lock = -1
    except OSError:  # a file system without
        lock = None
    os.close(descriptor)
    return lock


def _unlock(lock: int) -> None:
    if lock >= 0:
        os.close(lock)


def _sweep(folder: Path, left: re.Pattern[str]) -> None:
    """Remove what killed processes left in a folder: what has such a name, and nobody locks. A failure is ignored."""
    with suppress(OSError):
        for path in [Path(one) for one in os.scandir(folder) if left.fullmatch(one.name)]:
            lock = _lock(path)
            if lock is not None and lock >= 0:
                shutil.rmtree(path, ignore_errors=True)
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                os.close(lock)


@contextmanager
def _of(out: Path, partial: Path) -> Iterator[None]:
    """A context that turns a failure to write into an OutputError on `out`: of a file in `partial`, or of none named.

    An error of a file that is read has its name.
    """
    try:
        yield
    except OutputError as error:
        if str(partial) not in error.message:
            raise
        raise OutputError(error.message.replace(str(partial), str(out)), advice=error.advice) from error
    except OSError as error:
        named = error.filename
        if named is not None and not Path(os.fsdecode(named)).is_relative_to(partial):
            raise
        raise OutputError(f"cannot write {out}: {error.strerror or error}", advice=_FREE) from error


def _narrow(folder: Path, shared: int) -> None:
    """Take from all of a folder what group and others may not do with its sources."""
    for path in folder.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        # chmod would follow a link, out of the folder.
        if not path.is_symlink():
            path.chmod(_of_folder(mode, shared) if path.is_dir() else mode & (0o700 | shared))


def _of_folder(mode: int, shared: int) -> int:
    """The mode of a folder: who may read its files may enter it."""
    return mode & (0o700 | shared | (shared & 0o044) >> 2)


def are_private(sources: Iterable[Path], out: Path) -> bool:
    """Whether somebody of the group, or others, may not read every source, for `out`, given as for `atomic_file`."""
    return _shared(sources, out) & _READABLE != _READABLE


def _shared(sources: Iterable[Path], out: Path) -> int:
    """What group and others may do with every one of the sources, and may do with what is written at `out`."""
    around = {*Path(os.path.realpath(out)).parents}
    return reduce(and_, (mode for source in sources for mode in _modes(source, around)), 0o077) & 0o077


def _modes(source: Path, around: set[Path]) -> Iterator[int]:
    """Yield the modes of files, and those of the folders that guard them and not the output: who may enter, may all."""
    with suppress(OSError):
        if is_folder := source.is_dir():
            yield from (path.stat().st_mode for path in islice(source.iterdir(), _MOST_SOURCES) if path.is_file())
        else:
            yield source.stat().st_mode
        place = Path(os.path.realpath(source))
        for folder in {*([place] if is_folder else ()), *place.parents} - around:
            mode = folder.stat().st_mode
            yield (mode & 0o010) * 7 | (mode & 0o001) * 7


def refuse_file(out: Path, *, force: bool | None) -> None:
    """Refuse, before any work is done, an output path that `atomic_file` would refuse.

    Raises:
        OutputError: the name is taken and may not be replaced, or the path does not end in a name.
    """
    _refuse_name(out)
    if os.path.isdir(out):  # noqa: PTH112  # on some Pythons Path.is_dir raises if a name is too long
        raise OutputError(f"{out} is a folder: no file takes its place", advice="choose another name")
    if os.path.lexists(out) and not force:
        advice = "choose another name" + ("" if force is None else ", or replace it with --force")
        raise OutputError(f"{out} exists already", advice=advice)


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
    """Give the folder its name. An older folder has the sibling's name afterwards."""
    try:
        partial.rename(out)  # succeeds only if the name is free or is that of an empty folder
    except OSError:
        if not (force and out.is_dir() and not out.is_symlink()):
            raise
    else:
        return
    if check is not None:
        check(out)
    if not _exchange(partial, out):
        _rename_both(partial, out)
    elif partial.is_symlink():  # put there meanwhile
        _exchange(partial, out)
        raise OSError(errno.EEXIST, "a link has taken the folder's place")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names at one moment; return whether this system and file system can.

    Raises:
        OSError: they can, and refuse.
    """
    call = _system_call()
    if call is None:
        return False
    if not call(os.fsencode(one), os.fsencode(other)):
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        return False
    raise OSError(code, os.strerror(code))


@cache
def _system_call() -> Callable[[bytes, bytes], int] | None:
    """The system's call that exchanges two names, and gives 0 if it did; None if it has none."""
    if sys.platform == "win32":
        return None
    # Python has no name for either call.
    library: Any = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "renameat2"):
        return lambda one, other: int(library.renameat2(_HERE, one, _HERE, other, _EXCHANGE))
    if hasattr(library, "renamex_np"):
        return lambda one, other: int(library.renamex_np(one, other, _EXCHANGE))
    return None


def _rename_both(partial: Path, out: Path) -> None:
    """Rename the older folder, then the new one; the older one gets its name back if anything fails.

    A kill between the two, of a microsecond, leaves the older folder beside its name, and nothing removes it.
    """
    aside = out.with_name(f"{out.name}.replaced-{secrets.token_hex(4)}")
    try:
        out.rename(aside)
        partial.rename(out)
    except BaseException:  # an interrupt, too, must not leave the old folder under another name
        if os.path.lexists(aside) and not os.path.lexists(out):
            aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)
