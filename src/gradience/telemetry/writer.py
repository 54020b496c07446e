"""The writer: one event, one write, nothing lost.

The file is append-only and never truncated. A torn tail left by a crash is closed with a newline
before anything is added. One writer per file, held by an advisory lock.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

import msgspec
from filelock import FileLock, Timeout

from gradience.errors import RecorderError
from gradience.schema.config import ConfigSnapshot
from gradience.schema.events import (
    Alert,
    Eval,
    EvalMetrics,
    Event,
    Metrics,
    Recommendation,
    RecommendationItem,
    RunEnd,
    RunStart,
    TrainStep,
)
from gradience.schema.scalars import SCHEMA_ID, Severity, Status, real
from gradience.telemetry.codec import MAX_LINE_BYTES, decode_known, encode
from gradience.telemetry.redact import DEFAULT_MAX_STR_LEN, redact_event

__all__ = ["FSYNC_INTERVAL_S", "Fsync", "TelemetryWriter"]

Fsync: TypeAlias = Literal["always", "auto", "never"]

FSYNC_INTERVAL_S: Final = 5.0  # power loss costs at most this much of a run; a killed process costs nothing
_DURABLE = (RunStart, Eval, Alert, RunEnd)
_PRIVATE_MODE: Final = 0o600


class TelemetryWriter:
    """Writes one run to a `run.jsonl`; a context manager that records how the run ended.

    Args:
        path: the log; created with mode 0600, appended to if it exists.
        run_id: of a run to continue; a new one if None.
        allow_text: write strings longer than `max_str_len` in clear. Secrets are redacted all the same.
        max_str_len: characters a string may have before it is redacted.
        fsync: `always`, `never`, or `auto`: at run_start, eval, alert and run_end, else every few seconds.
        siblings: if another process is writing the log, write a file beside it and warn; else refuse.
        clock: returns Unix seconds.

    Raises:
        RecorderError: the file cannot be opened or written, or an event is not valid.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        run_id: str | None = None,
        *,
        allow_text: bool = False,
        max_str_len: int = DEFAULT_MAX_STR_LEN,
        fsync: Fsync = "auto",
        siblings: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if fsync not in {"always", "auto", "never"}:
            message = f"fsync must be 'always', 'auto' or 'never', not {fsync!r}"
            raise ValueError(message)
        self.run_id = run_id or uuid.uuid4().hex
        self.session = uuid.uuid4().hex[:12]
        self._allow_text = allow_text
        self._max_str_len = max_str_len
        self._fsync = fsync
        self._clock = clock
        self._seq = itertools.count()
        self._synced_at = 0.0
        self._ended = False
        self._guard = threading.Lock()
        self.path, self._lock = _lock(Path(path), self.session, siblings=siblings)
        self._fd: int | None = _open(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._ended and self._fd is not None:
                self.run_end(status=_status(kind), reason=self._reason(error))
        finally:
            self.close()

    def run_start(
        self,
        config: ConfigSnapshot | None = None,
        *,
        meta: Mapping[str, Any] | None = None,
        resumed_from_step: int | None = None,
    ) -> None:
        """Open the run, or its continuation from a step."""
        self.write(
            RunStart(
                **self._envelope(resumed_from_step),
                config=config or ConfigSnapshot(),
                meta=_finite(meta or {}),
                resumed_from_step=resumed_from_step,
            )
        )

    def train_step(
        self,
        step: int,
        *,
        loss: float | None = None,
        lr: float | Sequence[float] | None = None,
        grad_norm: float | None = None,
        epoch: float | None = None,
        **extras: Any,  # noqa: ANN401  # any JSON value
    ) -> None:
        """Record one row of training; further keywords stand beside the known ones."""
        self.write(
            TrainStep(
                **self._envelope(step),
                loss=None if loss is None else real(loss),
                lr=_rates(lr),
                grad_norm=None if grad_norm is None else real(grad_norm),
                epoch=None if epoch is None else real(epoch),
                extras=_finite(extras) if extras else {},
            )
        )

    def eval(self, step: int | None, *, split: str, metrics: Mapping[str, Any] | EvalMetrics) -> None:
        """Record one evaluation of one split: `loss`, `ppl`, `accuracy`, `n`, and whatever else was measured."""
        self.write(Eval(**self._envelope(step), split=split, metrics=_eval_metrics(metrics)))

    def metrics(self, step: int | None, *, kind: str, metrics: Mapping[str, Any]) -> None:
        """Record a block of numbers of a named kind."""
        self.write(Metrics(**self._envelope(step), kind=kind, metrics=_finite(metrics)))

    def alert(
        self,
        *,
        severity: Severity,
        code: str,
        message: str,
        step: int | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Record something a person should see."""
        self.write(
            Alert(
                **self._envelope(step),
                severity=severity,
                code=code,
                message=message,
                context=_finite(context or {}),
            )
        )

    def recommendation(self, items: Sequence[RecommendationItem], *, step: int | None = None) -> None:
        """Record suggestions."""
        self.write(Recommendation(**self._envelope(step), recommendations=list(items)))

    def run_end(self, *, status: Status = "ok", reason: str | None = None) -> None:
        """Close the run. The file stays open for late evaluations until `close`."""
        self.write(RunEnd(**self._envelope(None), status=status, reason=reason))
        self._ended = True

    def write(self, event: Event) -> None:
        """Append one typed event, after redaction. Returns when the bytes are with the operating system.

        Raises:
            RecorderError: the event is not valid, the line is too long, or the file cannot be written.
        """
        line = self._line(event)
        with self._guard:
            self._append(line)
            self._sync(event)

    def close(self) -> None:
        """Release the file and its lock; closing twice is harmless."""
        with self._guard:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
        self._lock.release()

    def _envelope(self, step: int | None) -> dict[str, Any]:
        return {
            "schema": SCHEMA_ID,
            "ts": self._clock(),
            "run_id": self.run_id,
            "step": step,
            "seq": next(self._seq),
            "session": self.session,
        }

    def _line(self, event: Event) -> bytes:
        """Return the event's bytes, read back first: no line leaves that our reader cannot read."""
        try:
            safe = redact_event(event, allow_text=self._allow_text, max_str_len=self._max_str_len)
            line = encode(safe)
            decode_known(line)
        except (msgspec.MsgspecError, TypeError, RecursionError) as error:
            message = f"not a valid {type(event).__name__} event: {error}"
            raise RecorderError(message, advice="see the event's fields in gradience.schema") from error
        if len(line) >= MAX_LINE_BYTES:
            message = f"a {type(event).__name__} event of {len(line)} bytes: a line holds {MAX_LINE_BYTES}"
            raise RecorderError(message, advice="record a summary, or split it into several events")
        return line + b"\n"

    def _append(self, line: bytes) -> None:
        if self._fd is None:
            raise RecorderError("the telemetry writer is closed", advice="open a new TelemetryWriter")
        try:
            written = os.write(self._fd, line)
            while written < len(line):  # a full disk or a signal can cut a write short
                written += os.write(self._fd, line[written:])
        except OSError as error:
            message = f"cannot write {self.path}: {error.strerror}"
            raise RecorderError(message, advice="free space or choose another path") from error

    def _sync(self, event: Event) -> None:
        if self._fd is None or self._fsync == "never":
            return
        now = time.monotonic()
        due = self._fsync == "always" or isinstance(event, _DURABLE) or now - self._synced_at > FSYNC_INTERVAL_S
        if due:
            os.fsync(self._fd)
            self._synced_at = now

    def _reason(self, error: BaseException | None) -> str | None:
        """Return the exception's type; its text may hold prompts or paths and needs the opt-in."""
        if error is None:
            return None
        name = type(error).__name__
        return f"{name}: {error}" if self._allow_text else name


def _status(kind: type[BaseException] | None) -> Status:
    if kind is None:
        return "ok"
    return "interrupted" if issubclass(kind, KeyboardInterrupt) else "error"


def _lock(path: Path, session: str, *, siblings: bool) -> tuple[Path, FileLock]:
    """Return the path that this writer may use, and the lock it holds: a sibling if the log is in use."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(_lock_path(path), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            if not siblings:
                message = f"{path} is being written by another process"
                raise RecorderError(message, advice="wait until that run has ended") from None
            sibling = path.with_name(f"{path.stem}.{session}{path.suffix}")
            text = f"{path} is being written by another process; this run is recorded in {sibling}"
            warnings.warn(text, RuntimeWarning, stacklevel=4)
            lock = FileLock(_lock_path(sibling), timeout=0)
            lock.acquire()
            return sibling, lock
    except (OSError, NotImplementedError) as error:
        message = f"cannot open {path} for writing: {error}"
        raise RecorderError(message, advice="choose a path in a folder you can write to") from error
    return path, lock


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _open(path: Path) -> int:
    """Return an append-only descriptor, with a torn tail closed by a newline."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        fd = os.open(path, flags, _PRIVATE_MODE)
        size = os.fstat(fd).st_size
        if size:
            os.lseek(fd, size - 1, os.SEEK_SET)
            if os.read(fd, 1) != b"\n":
                os.write(fd, b"\n")
    except OSError as error:
        message = f"cannot open {path} for writing: {error.strerror}"
        raise RecorderError(message, advice="choose a path in a folder you can write to") from error
    return fd


def _rates(lr: float | Sequence[float] | None) -> Any:  # noqa: ANN401  # a Real or a list of them
    if lr is None:
        return None
    return real(lr) if isinstance(lr, (int, float)) else [real(rate) for rate in lr]


def _eval_metrics(metrics: Mapping[str, Any] | EvalMetrics) -> EvalMetrics:
    if isinstance(metrics, EvalMetrics):
        return metrics
    plain = _finite(metrics)
    known = {k: plain.pop(k) for k in ("loss", "ppl", "accuracy", "n") if k in plain}
    nested = plain.pop("extras", {})
    return EvalMetrics(**known, extras={**nested, **plain})


def _finite(value: Any) -> Any:  # noqa: ANN401  # any JSON value
    """Return the value with non-finite floats named, and numpy or torch scalars as Python numbers."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_finite(v) for v in value]
    if isinstance(value, (str, int, bool)) or value is None:
        return value
    if isinstance(value, float):
        return real(value)
    item = getattr(value, "item", None)
    return _finite(item()) if callable(item) else value
