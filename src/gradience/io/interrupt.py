"""Turn SIGINT and SIGTERM into exceptions, and delay them while a file is renamed or removed.

Such an exception may be replaced by another one on its way up, or be dropped, as in a finaliser. `came` still reports
the signal, and a dropped exception is raised again. No exception is raised while a module is imported, because C code
there may turn it into an ImportError or end the process.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

INTERRUPTED: Final = 128 + signal.SIGINT  # a shell's exit status for a program that the signal ended
_SOON: Final = 0.01  # s
_CAN_WAIT: Final = hasattr(signal, "setitimer")
_IMPORT: Final = "<frozen importlib._bootstrap>"


class _Waiting:
    """The number of blocks that hold signals, and the last signal that was held or raised."""

    blocks = 0
    signal = 0  # the last signal that came while held; 0 for none
    raised = 0  # the last signal that was raised; 0 for none
    soon = 0  # the signal that a timer will raise; 0 for none


def install() -> None:
    """Make SIGINT a KeyboardInterrupt and SIGTERM a SystemExit, unless the process has handlers of its own.

    Only our command line calls it, on its main thread. On other threads it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _arrived)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _arrived)
    sys.unraisablehook = _dropped


def came() -> int:
    """The number of the last signal that was raised as an exception, even if that was dropped; 0 for none."""
    return _Waiting.raised


def forget() -> None:
    """Forget the signals of an earlier command."""
    _Waiting.raised = _Waiting.soon = 0


def _dropped(unraisable: sys.UnraisableHookArgs) -> None:
    """Raise a signal again, soon, if its exception was dropped. Any other dropped exception is reported as usual."""
    if _Waiting.raised and unraisable.exc_type in {KeyboardInterrupt, SystemExit} and _CAN_WAIT:
        raise_soon(_Waiting.raised)
    else:
        sys.__unraisablehook__(unraisable)


def raise_delayed() -> None:
    """Raise the signal that came during an import, if one did, without waiting for the timer.

    The timer tries every 10 ms, and a command that imports until its end would be done before a try succeeds.
    """
    if _Waiting.soon:
        signal.setitimer(signal.ITIMER_REAL, 0.0)  # else it would raise the signal once more, while the command ends
        _end(_Waiting.soon)


def raise_soon(number: int) -> None:
    """Raise the signal where `raise_delayed` is called, or by a timer."""
    _Waiting.soon = number
    # By a signal again, because its handler runs in the main thread, and a timer of `threading` would not.
    signal.signal(signal.SIGALRM, lambda _, frame: _arrived(number, frame))
    signal.setitimer(signal.ITIMER_REAL, _SOON)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            return True
        frame = frame.f_back
    return False


def ignore() -> None:
    """Ignore both signals from now on. This is for a program that has only to exit."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if _CAN_WAIT:
            signal.setitimer(signal.ITIMER_REAL, 0.0)


@contextmanager
def held() -> Iterator[None]:
    """A block that no signal interrupts, if `install` was called. A signal that comes meanwhile is raised at its end.

    This uses a flag, not the thread's signal mask: a signal goes to any thread that does not mask it, and XLA has many.
    """
    _Waiting.blocks += 1
    try:
        yield
    finally:
        _Waiting.blocks -= 1
    if _Waiting.signal and not _Waiting.blocks:
        number, _Waiting.signal = _Waiting.signal, 0
        _end(number)


def _arrived(number: int, frame: FrameType | None) -> None:
    if _Waiting.blocks:
        _Waiting.signal = number
    elif _CAN_WAIT and _is_importing(frame):
        raise_soon(number)
    else:
        _end(number)


def _end(number: int) -> None:
    _Waiting.raised, _Waiting.soon = number, 0
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
