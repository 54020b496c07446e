"""The writer: one event, one write, nothing lost, nothing leaked.

The file is append-only and never truncated. A torn tail left by a crash is closed with a newline
before anything is added. One writer per file, held by an advisory lock.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from gradience.errors import RecorderError, SchemaError
from gradience.schema.config import ConfigSnapshot
from gradience.schema.events import (
    Alert,
    Eval,
    EvalMetrics,
    Event,
    EventBase,
    Metrics,
    Recommendation,
    RecommendationItem,
    RunEnd,
    RunStart,
    TrainStep,
)
from gradience.schema.scalars import SCHEMA_ID, Severity, Status
from gradience.telemetry.codec import MAX_LINE_BYTES, decode, decode_known, encode, encode_document, to_document
from gradience.telemetry.logfile import Fsync, LogFile
from gradience.telemetry.redact import DEFAULT_MAX_STR_LEN, DEFAULT_REDACTION, Redaction, redact_document, redact_id
from gradience.telemetry.values import number, plain, rates

_DURABLE: Final = (RunStart, Eval, Alert, RunEnd)
_ADVICE: Final = "see the event's fields in gradience.schema"


class TelemetryWriter:
    """Writes one run to a `run.jsonl`; a context manager that records how the run ended.

    Threads may share one; a forked child may not write through its parent's.

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
            raise ValueError(f"fsync must be 'always', 'auto' or 'never', not {fsync!r}")
        self.run_id: str = redact_id(run_id) if run_id else uuid.uuid4().hex
        self.session = uuid.uuid4().hex[:12]
        self._refused = 0
        self._rule = Redaction(allow_text, max_str_len)
        self._clock = clock
        self._seq = 0
        self._ended = False
        self._guard = threading.RLock()
        log = Path(path)
        self._file = LogFile(log, sibling=f"{log.stem}.{self.session}{log.suffix}" if siblings else None, fsync=fsync)

    @property
    def lost(self) -> int:
        """Events that were refused, could not be written, or went with a log that was removed."""
        return self._refused + self._file.lost

    @property
    def path(self) -> Path:
        """The file written: the one asked for, or its sibling if that was taken."""
        return self._file.path

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record how the run ended, and close; a failure to do so never takes the place of the run's own error."""
        try:
            try:
                if not self._ended and self._file.is_open:
                    self.run_end(status=_status(error), reason=self._reason(error))
            finally:
                self.close()
        except RecorderError as failure:
            if error is None:
                raise
            warnings.warn(f"the end of the run was not recorded: {failure}", RuntimeWarning, stacklevel=2)

    def run_start(
        self,
        config: ConfigSnapshot | None = None,
        *,
        meta: Mapping[str, Any] | None = None,
        resumed_from_step: int | None = None,
    ) -> None:
        """Open the run, or its continuation from a step."""
        self._record(
            RunStart,
            resumed_from_step,
            config=config or ConfigSnapshot(),
            meta=self._held(meta or {}, "meta"),
            resumed_from_step=resumed_from_step,
        )

    def train_step(
        self,
        step: int,
        *,
        loss: float | None = None,
        lr: float | Sequence[float] | None = None,
        grad_norm: float | None = None,
        epoch: float | None = None,
        **extras: Any,
    ) -> None:
        """Record one row of training; further keywords stand beside the known ones."""
        self._record(
            TrainStep,
            step,
            loss=None if loss is None else number(loss, "loss"),
            lr=None if lr is None else rates(lr),
            grad_norm=None if grad_norm is None else number(grad_norm, "grad_norm"),
            epoch=None if epoch is None else number(epoch, "epoch"),
            extras=self._held(extras, "") if extras else {},
        )

    def eval(self, step: int | None, *, split: str, metrics: Mapping[str, Any] | EvalMetrics) -> None:
        """Record one evaluation of one split: `loss`, `ppl`, `accuracy`, `n`, and whatever else was measured."""
        self._record(Eval, step, split=split, metrics=self._eval_metrics(metrics))

    def metrics(self, step: int | None, *, kind: str, metrics: Mapping[str, Any]) -> None:
        """Record a block of numbers of a named kind."""
        self._record(Metrics, step, kind=kind, metrics=self._held(metrics, "metrics"))

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
        self._record(
            Alert, step, severity=severity, code=code, message=message, context=self._held(context or {}, "context")
        )

    def recommendation(self, items: Sequence[RecommendationItem], *, step: int | None = None) -> None:
        """Record suggestions."""
        self._record(Recommendation, step, recommendations=list(items))

    def run_end(self, *, status: Status = "ok", reason: str | None = None) -> None:
        """Close the run. The file stays open for late evaluations until `close`."""
        if self.lost and reason is None:
            reason = f"{self.lost} events could not be recorded"
        self._record(RunEnd, None, status=status, reason=reason)
        self._ended = True

    def write(self, event: Event) -> None:
        """Append one typed event, after redaction; numbered in this session if it has no session of its own.

        Raises:
            RecorderError: the event is not valid, the line is too long, or the file cannot be written.
        """
        self._file.require_own()
        with self._guard:
            seq = self._take_seq()
            if event.session is None and event.seq is None:
                event = msgspec.structs.replace(event, session=self.session, seq=seq)
            self._append(event)

    def close(self) -> None:
        """Release the file and its lock; closing twice is harmless."""
        if self._file.is_open:
            with self._guard:
                self._file.close()

    def _record(self, cls: type[EventBase], step: int | None, /, **fields: Any) -> None:
        self._file.require_own()
        if step is not None and type(step) is not int:
            step = _step(step)
        with self._guard:  # seq follows the order of the file
            event = cls(
                schema=SCHEMA_ID,
                ts=self._clock(),
                run_id=self.run_id,
                step=step,
                seq=self._take_seq(),
                session=self.session,
                **fields,
            )
            self._append(event)  # type: ignore[arg-type]  # every kind of ours is an Event

    def _take_seq(self) -> int:
        seq = self._seq
        self._seq = seq + 1  # even if the write fails: the gap shows the loss
        return seq

    def _append(self, event: Event) -> None:
        try:
            line = self._line(event)
            if type(event) is RunStart:
                self._file.opening = line
            self._file.append(line, durable=isinstance(event, _DURABLE))
        except RecorderError:
            self._refused += 1
            raise

    def _held(self, values: Mapping[str, Any], name: str) -> Any:
        """Return values of the caller's own as JSON; an event whose values cannot be written is lost."""
        try:
            return plain(values, name)
        except RecorderError:
            self._refused += 1
            raise

    def _eval_metrics(self, metrics: Mapping[str, Any] | EvalMetrics) -> EvalMetrics:
        if isinstance(metrics, EvalMetrics):
            return metrics
        given = self._held(metrics, "metrics")
        known = {k: given.pop(k) for k in ("loss", "ppl", "accuracy", "n") if k in given}
        return EvalMetrics(**known, extras=given)

    def _line(self, event: Event) -> bytes:
        own = event.run_id == self.run_id and event.session == self.session
        return to_line(event, self._rule, bare=own and type(event) is TrainStep and not event.extras)

    def _reason(self, error: BaseException | None) -> str | None:
        """Return the exception's type; its text may hold prompts or paths and needs the opt-in."""
        if error is None:
            return None
        name = type(error).__name__
        return f"{name}: {error}" if self._rule.allow_text else name


def to_line(event: Event, rule: Redaction = DEFAULT_REDACTION, *, bare: bool = False) -> bytes:
    """Return the event's line without its newline: redacted, and read back, so that no log holds what no reader reads.

    Args:
        event: of any kind.
        rule: how much of a string may be written.
        bare: the event holds no text but our own, so that nothing need be redacted: the writer's hot path.

    Raises:
        RecorderError: the event is not valid, or the line is too long.
    """
    try:
        line = encode(event) if bare else encode_document(redact_document(to_document(event), rule))
        _read_back(line)
    except (msgspec.MsgspecError, SchemaError, TypeError, ValueError, RecursionError) as error:
        raise RecorderError(f"not a valid {type(event).__name__} event: {error}", advice=_ADVICE) from error
    if len(line) > MAX_LINE_BYTES:
        message = f"a {type(event).__name__} event of {len(line)} bytes; a line may have {MAX_LINE_BYTES}"
        raise RecorderError(message, advice="record a summary, or split it into several events")
    return line


def _read_back(line: bytes) -> None:
    try:
        decode_known(line)
    except msgspec.ValidationError:
        decode(line)  # an extra of the name `extras` is a value like any other


def _status(error: BaseException | None) -> Status:
    if error is None or (isinstance(error, SystemExit) and error.code in {None, 0}):
        return "ok"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "error"


def _step(step: Any) -> int:
    """Return a step as an integer: numpy, torch and whole floats have one, too."""
    value = number(step, "step")
    if isinstance(value, str) or value != int(value):
        raise RecorderError(f"`step`: expected a whole number, got {value!r}", advice=_ADVICE)
    return int(value)
