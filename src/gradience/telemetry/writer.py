"""Write events to a log: one write per event, secrets redacted, losses counted.

The file is append-only and never truncated. A torn tail left by a crash is closed with a newline before anything is
added. An advisory lock allows one writer per file.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import (
    Any,
    ClassVar,
    Concatenate,
    Final,
    Literal,
    ParamSpec,
    Protocol,
    Self,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
)

import msgspec

from gradience.errors import RecorderError, SchemaError, said
from gradience.io.reading import open_regular
from gradience.schema import MAX_INT, SCHEMA_ID, Severity, Status
from gradience.schema.events import (
    Alert,
    ConfigSnapshot,
    Eval,
    EvalMetrics,
    EventBase,
    Metrics,
    Recommendation,
    RecommendationItem,
    RunEnd,
    RunStart,
    StepDigests,
    Throughput,
    TrainStep,
    UnknownEvent,
    Wiring,
)
from gradience.schema.flat import expectation, unchecked
from gradience.schema.values import number, plain, rates
from gradience.telemetry.codec import JsonObject, convert_part, decode, encode_row
from gradience.telemetry.logfile import Fsync, LogFile, notice
from gradience.telemetry.redact import DEFAULT_MAX_STR_LEN, Redaction, redact_id, to_line

OnError: TypeAlias = Literal["warn", "raise"]

_DURABLE: Final = (RunStart, Eval, Alert, RunEnd)
_ADVICE: Final = "see the event's fields in gradience.events"
_MOST_ITEMS: Final = 1000  # recommendations of one event: more do not fit a line of 64 KiB
_TAIL_BYTES: Final = 1 << 18  # room for four lines of the greatest length
_P = ParamSpec("_P")
C_ = TypeVar("C_", ConfigSnapshot, EvalMetrics, RecommendationItem)


class WatchKeywords(TypedDict, total=False):
    """What `TelemetryWriter.watch` is told beside the model and its optimizer."""

    schedule: Any
    loader: Any
    accumulation: int | None
    stop_on: Iterable[str]
    digests: bool
    verbose: bool


class WatchHandle(Protocol):
    """What `TelemetryWriter.watch` returns: `gradience.hf.wires.Wires`."""

    @property
    def should_stop(self) -> bool:
        """Whether a rule of `stop_on` has spoken."""
        ...

    def saved(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Record what was saved just now."""
        ...

    def evaluated(self, step: int | None) -> None:
        """Record what an evaluation called that has just ended."""
        ...

    def failed(self) -> None:
        """Record how the model was called last, as training fails."""
        ...

    def close(self) -> None:
        """Stop watching."""
        ...


def _counted(
    method: Callable[Concatenate[Any, _P], None],
) -> Callable[Concatenate[TelemetryWriter, _P], None]:
    """Wrap a method so that an event it could not write is counted, and raises only if the writer does not forgive."""

    @wraps(method)
    def write(self: TelemetryWriter, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001  # a value's own methods may raise anything
            self._lose(error)

    return write


class TelemetryWriter:
    """Writes one run to a `run.jsonl`; a context manager that records how the run ended.

    Threads may share one writer. A forked child must not write through its parent's.

    Args:
        path: the log; created with mode 0600, appended to if it exists.
        run_id: of a run to continue; if None a new one, or at a `run_start` with `resumed_from_step` that of the log's
            last run.
        allow_text: write strings longer than `max_str_len` in clear. Secrets are redacted all the same.
        max_str_len: characters a string may have before it is redacted.
        fsync: `always`, `never`, or `auto`: at run_start, eval, alert and run_end, else every few seconds.
        siblings: if another process is writing the log, write a file beside it and warn; else refuse.
        on_error: `warn`: an event that cannot be written is lost and counted, with a warning at the first one and
            another at the end, and training goes on; `raise`: a RecorderError.
        clock: returns Unix seconds.

    Raises:
        RecorderError: the log is held by another process and `siblings` is False. Under `on_error="raise"` also if the
            file cannot be opened or written, or an event is not valid.
        ValueError: an argument is out of its range.
    """

    watched_by: ClassVar[Callable[..., WatchHandle] | None] = None
    """What watches a torch model for `watch`: `gradience.recording` registers it, which stands above this package."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        run_id: str | None = None,
        *,
        allow_text: bool = False,
        max_str_len: int = DEFAULT_MAX_STR_LEN,
        fsync: Fsync = "auto",
        siblings: bool = True,
        on_error: OnError = "warn",
        clock: Callable[[], float] = time.time,
    ) -> None:
        if fsync not in {"always", "auto", "never"}:
            raise ValueError(f"fsync must be 'always', 'auto' or 'never', not {fsync!r}")
        if on_error not in {"warn", "raise"}:
            raise ValueError(f"on_error must be 'warn' or 'raise', not {on_error!r}")
        self.run_id: str = redact_id(str(run_id)) if run_id else uuid.uuid4().hex
        self._is_named = bool(run_id)
        self.session = uuid.uuid4().hex[:12]
        self._refused = self._said = 0
        self._raises = on_error == "raise"
        self._rule = Redaction(allow_text, max_str_len)
        self._clock = clock
        self._seq = 0
        self._ended = False
        self._wires: list[WatchHandle] = []
        self.opened: RunStart | None = None
        self._guard = threading.RLock()
        self._pid = os.getpid()
        self._asked, self._siblings, self._fsync = Path(path), siblings, fsync
        self._file: LogFile | None = None
        try:
            self._open()
        except RecorderError as error:
            if self._raises or not siblings:
                raise
            self._say(f"this run is not being recorded: {error.message}")

    @property
    def lost(self) -> int:
        """Number of events that were refused, could not be written, or vanished with a removed log."""
        return self._refused + (self._file.lost if self._file else 0)

    @property
    def path(self) -> Path:
        """The file being written: the path asked for, or its sibling if another process held that."""
        return self._file.path if self._file else self._asked

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record how the run ended, and close. A failure here never replaces the run's own error."""
        try:
            try:
                # They are asked before `run_end` closes them: how the model was called last may be why it failed.
                for wires in self._wires if error is not None else ():
                    wires.failed()
                if not self._ended and (self._file is None or self._file.is_open):
                    self.run_end(status=_status(error), reason=self._reason(error))
            finally:
                self.close()
        except Exception as failure:  # whatever it is, the run's own error comes first
            if error is None:
                raise
            notice(f"the end of the run was not recorded: {_text_of(failure)}")

    @_counted
    def run_start(
        self,
        config: ConfigSnapshot | Mapping[str, Any] | None = None,
        *,
        meta: Mapping[str, Any] | None = None,
        resumed_from_step: int | None = None,
    ) -> None:
        """Open the run, or its continuation from a step. A mapping as the config has its keys."""
        step = None if resumed_from_step is None else _step(resumed_from_step)
        if step and self._seq == 0 and not self._is_named:
            self.run_id = last_run_id(self.path) or self.run_id
        facts = {} if meta is None else plain(meta, "meta")
        self._record(
            RunStart,
            step,
            config=_part({} if config is None else config, "config", ConfigSnapshot),
            meta=facts,
            resumed_from_step=step,
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
        """Record one training row; further keywords are stored beside the known ones."""
        try:
            floats = type(lr) is type(grad_norm) is type(epoch) is type(loss) is float and not extras
            if floats and self._record_floats(step, loss, lr, grad_norm, epoch):  # type: ignore[arg-type]  # all floats
                return
            self._record(
                TrainStep,
                step,
                plain(extras, "") if extras else {},
                loss=None if loss is None else number(loss, "loss"),
                lr=None if lr is None else rates(lr),
                grad_norm=None if grad_norm is None else number(grad_norm, "grad_norm"),
                epoch=None if epoch is None else number(epoch, "epoch"),
            )
        except Exception as error:  # noqa: BLE001  # as in `_counted`, which would take a third of the time again
            self._lose(error)

    @_counted
    def eval(self, step: int | None, *, split: str, metrics: Mapping[str, Any] | EvalMetrics) -> None:
        """Record one evaluation of one split: `loss`, `ppl`, `accuracy`, `n`, and any other measurement."""
        self._record(Eval, step, split=_text(split, "split"), metrics=_part(metrics, "metrics", EvalMetrics))
        for wires in self._wires:
            wires.evaluated(step)

    @_counted
    def metrics(self, step: int | None, *, kind: str, metrics: Mapping[str, Any]) -> None:
        """Record a block of numbers of a named kind."""
        self._record(Metrics, step, kind=_text(kind, "kind"), metrics=plain(metrics, "metrics"))

    @_counted
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
            Alert,
            step,
            severity=_text(severity, "severity"),
            code=_text(code, "code"),
            message=_text(message, "message"),
            context={} if context is None else plain(context, "context"),
        )

    @_counted
    def recommendation(
        self, items: Sequence[RecommendationItem | Mapping[str, Any]], *, step: int | None = None
    ) -> None:
        """Record suggestions."""
        # A foreign sequence may go on without end.
        first = list(islice(items, _MOST_ITEMS + 1))
        if len(first) > _MOST_ITEMS:
            raise RecorderError(f"an event may hold {_MOST_ITEMS} recommendations", advice="write several events")
        parts = [_part(item, f"recommendations[{i}]", RecommendationItem) for i, item in enumerate(first)]
        self._record(Recommendation, step, recommendations=parts)

    @_counted
    def looked(self, kind: type[Wiring | StepDigests], step: int, fields: Mapping[str, Any]) -> None:
        """Record a look at what is trained, or digests of what was fed, by the event's fields."""
        self._record(kind, step, **fields)

    @_counted
    def throughput(self, /, step: int, *, steps: int, **fields: float | None) -> None:
        """Record the speed, the waiting and the memory of the last steps, by the fields of `Throughput`."""
        self._record(Throughput, step, steps=steps, **fields)

    def watch(self, model: Any, optimizer: Any, **options: Unpack[WatchKeywords]) -> WatchHandle:
        """Record and judge from here on what is trained. Needs torch; changes no number of the training.

        Call it once model, optimizer and schedule are ready, after `run_start`: a `run_start` with `resumed_from_step`
        makes it a look at the resume. The log's end ends it.

        Args:
            model: the model that is called with each batch, as a torch module.
            optimizer: its optimizer, or a list of all its optimizers.
            options: `schedule`, the learning rate's; `loader`, the DataLoader; `accumulation`, micro-batches per step;
                `stop_on`, ids of rules at whose first finding `should_stop` becomes true; `digests`, False to record no
                digests of the batches; `verbose`, False to log no finding.
        """
        if TelemetryWriter.watched_by is None:
            raise RecorderError("nothing here knows torch", advice="from gradience import TelemetryWriter")
        wires = TelemetryWriter.watched_by(self, model, optimizer, **options)
        self._wires.append(wires)
        return wires

    @_counted
    def run_end(self, status: Status = "ok", *, reason: str | None = None) -> None:
        """Close the run. The file stays open for late evaluations until `close`."""
        if self.lost and reason is None:
            reason = f"{self.lost} events could not be recorded"
        text = None if reason is None else _text(reason, "reason")
        # What is watched writes its last looks, which belong before the end of the run.
        self._close_wires()
        self._record(RunEnd, None, status=_text(status, "status"), reason=text)
        self._ended = True

    @_counted
    def write(self, event: EventBase | UnknownEvent) -> None:
        """Append one typed event of this run after redaction: one of another `run_id` is refused.

        If it has neither session nor seq, it gets this session's. A `RunEnd` ends the run: none is added when the
        writer is left. A class of your own that inherits from `EventBase` is an event too; readers keep and count it.
        """
        if not isinstance(event, EventBase | UnknownEvent):
            raise RecorderError(f"expected a typed event, got {type(event).__name__}", advice=_ADVICE)
        if redact_id(event.run_id) != self.run_id:
            raise RecorderError(
                f"`run_id`: expected {self.run_id!r}, the run of this log, got {redact_id(event.run_id)!r}",
                advice="give the event the writer's `run_id`, or open the writer with run_id= that of the event",
            )
        self._require_own()
        is_end = isinstance(event, RunEnd)
        if is_end:
            self._close_wires()
        with self._guard:
            seq = self._take_seq()
            if event.session is None and event.seq is None:
                event = _numbered(event, self.session, seq)
            self._append(event, {})
        self._ended = self._ended or is_end

    def close(self) -> None:
        """Release the file and its lock, and say how many events were lost. Closing twice is harmless.

        Raises:
            RecorderError: the last lines could not be synced to disk, under `on_error="raise"`.
        """
        try:
            if self._file is not None and self._file.is_open:
                self._close_wires()
                with self._guard:
                    self._file.close()
        except RecorderError as error:
            if self._raises:
                raise
            self._say(error.message)
        if self.lost > self._said and not self._raises:
            self._said = self.lost
            self._say(f"{self.path}: {self.lost} events could not be recorded")

    def _close_wires(self) -> None:
        wires, self._wires = self._wires, []
        for each in wires:
            each.close()

    def _open(self) -> None:
        beside = f"{self._asked.stem}.{self.session}{self._asked.suffix}" if self._siblings else None
        self._file = LogFile(self._asked, sibling=beside, fsync=self._fsync)

    def _lose(self, error: Exception) -> None:
        """Count a lost event and warn of the first one, or raise what came as a RecorderError."""
        self._refused += 1
        if self._raises:
            if isinstance(error, RecorderError):
                raise error
            message = f"a value could not be read: {_text_of(error)}"
            raise RecorderError(message, advice="record numbers, strings and lists of them") from error
        if self._refused == 1:
            self._say(f"an event of this run could not be recorded, training goes on: {_text_of(error)}")

    def _say(self, message: str) -> None:
        notice(message, stacklevel=5)

    def _require_own(self) -> None:
        if os.getpid() == self._pid:
            return
        if self._file is not None:
            self._file.require_own()
        raise RecorderError(f"the writer of {self._asked} belongs to process {self._pid}, of which this is a fork")

    def _record(
        self, cls: type[EventBase], step: int | None, extras: JsonObject | None = None, /, **fields: Any
    ) -> None:
        self._require_own()
        if step is not None and type(step) is not int:
            step = _step(step)
        # The number and the clock are taken inside, so that both rise in the order of the file.
        with self._guard:
            event = unchecked(
                cls,
                schema=SCHEMA_ID,
                ts=self._clock(),
                run_id=self.run_id,
                step=step,
                seq=self._take_seq(),
                session=self.session,
                **fields,
            )
            self._append(event, extras or {})

    def _record_floats(self, step: int, loss: float, lr: Any, grad_norm: Any, epoch: Any) -> bool:
        """Record a row of floats on the hot path: floats need no redaction, and every reader accepts them.

        Returns:
            False if the row or writer does not qualify, and nothing was written.
        """
        file = self._file
        if file is None or type(step) is not int or not 0 <= step <= MAX_INT:
            return False
        if os.getpid() != self._pid:  # before the lock, which a thread of the parent may have held for ever
            self._require_own()
        with self._guard:
            self._seq = seq = self._seq + 1
            event = unchecked(
                TrainStep,
                schema=SCHEMA_ID,
                ts=self._clock(),
                run_id=self.run_id,
                step=step,
                seq=seq - 1,
                session=self.session,
                loss=loss,
                lr=lr,
                grad_norm=grad_norm,
                epoch=epoch,
            )
            file.append(encode_row(event), durable=False)
        return True

    def _take_seq(self) -> int:
        seq = self._seq
        self._seq = seq + 1  # even if the write fails, so that a gap shows the loss
        return seq

    def _append(self, event: EventBase | UnknownEvent, extras: JsonObject) -> None:
        line = to_line(event, self._rule, extras)
        durable = isinstance(event, _DURABLE)
        if self._file is None and durable:
            self._open()  # opening failed before; the disk may have room again
        if self._file is None:
            raise RecorderError(f"{self._asked} could not be opened")
        if isinstance(event, RunStart):
            self.opened = event
            # If the log vanishes, the new one begins with this line, which has the run's config.
            self._file.opening = line
        self._file.append(line, durable=durable)

    def _reason(self, error: BaseException | None) -> str | None:
        """Return the exception's type; with `allow_text` also its text, which may hold prompts or paths."""
        if error is None:
            return None
        name, text = type(error).__name__, _text_of(error) if self._rule.allow_text else ""
        return f"{name}: {text}" if text not in {"", name} else name


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RecorderError(f"`{name}`: expected a text, got {type(value).__name__}", advice=_ADVICE)
    return value


def _part(value: C_ | Mapping[str, Any], name: str, cls: type[C_]) -> C_:
    """Return a part of an event, which may be given as a mapping."""
    if isinstance(value, cls):
        return value
    document = plain(value, name)
    if not isinstance(document, dict):
        raise RecorderError(f"`{name}`: expected a mapping, got {type(value).__name__}", advice=_ADVICE)
    try:
        return convert_part(document, cls)
    except msgspec.ValidationError as error:
        path, expected, got = expectation(str(error))
        came = f", got {got}" if got else ""
        raise RecorderError(f"`{name}{path[1:]}`: expected {expected}{came}", advice=_ADVICE) from error


def _numbered(event: EventBase | UnknownEvent, session: str, seq: int) -> EventBase | UnknownEvent:
    if isinstance(event, UnknownEvent):
        return msgspec.structs.replace(event, payload={**event.payload, "seq": seq, "session": session})
    return msgspec.structs.replace(event, session=session, seq=seq)


def _text_of(error: BaseException) -> str:
    """Return an error's text, or its type if even the text raises."""
    try:
        return said(error) or type(error).__name__
    except Exception:  # noqa: BLE001  # its `__str__` is foreign code
        return type(error).__name__


def last_run_id(path: Path) -> str | None:
    """Return the run_id of the last event in the log, or None. Reads only the tail."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return decode(line).run_id
        except SchemaError:
            continue  # a torn line, or one whose beginning was not read
    return None


def _status(error: BaseException | None) -> Status:
    if error is None or (isinstance(error, SystemExit) and error.code in {None, 0}):
        return "ok"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "error"


def _step(step: Any) -> int:
    """Return a step as an int, also if given as a NumPy or torch number or as a whole float."""
    value = number(step, "step")
    if isinstance(value, str) or value != int(value):
        raise RecorderError(f"`step`: expected a whole number, got {value!r}", advice=_ADVICE)
    return int(value)
