"""One run's log for a callback, and the remarks on its rows while they come.

The log is opened, continued or closed as training begins, resumes and ends. No failure here reaches the training.
`with recorder:` notes a failure and swallows it, the run goes on, and its last line counts the lost events. If a
training is left before its end (an exception, Ctrl-C, an exit), `close_interrupted` closes the run and records the
exception behind it, if one can be seen.

Rows are judged by those rules of `monitor` that a person at the screen would act on. A rule is only tried if a cheap
look at the newest row gives a reason: a number that is not finite, a loss of 0, no gradient, three rows well above the
lowest loss, an evaluation. A rule speaks once a run, through the logger `gradience`, which writes to stderr by default.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from weakref import WeakValueDictionary

from gradience.announce import Announcer, Place, checked, of_finding, of_report
from gradience.errors import RecorderError, said
from gradience.rules import Threshold
from gradience.schema import SCHEMA_ID, Status, as_float
from gradience.schema.document import SEVERITIES, Finding, escape_controls
from gradience.schema.events import ConfigSnapshot, Eval, EvalMetrics, Metrics, StepDigests, Wiring
from gradience.telemetry import TelemetryWriter
from gradience.telemetry.logfile import logger, notice
from gradience.telemetry.reader import TelemetryReader
from gradience.telemetry.secrets import hide_secrets
from gradience.telemetry.series import FIRST_FED, RunSeries, rate_of
from gradience.telemetry.writer import last_run_id

if TYPE_CHECKING:
    from gradience.rules.log.facts import LogRule


HIGH = Threshold("high", 1.3, "times the lowest loss, in three rows running", "a judgement: a reason to look, no more")
SMALL = Threshold("small", 1e-3, "of the first gradient norm", "a judgement: a reason to look, no more")

_ROWS: Final = 3
_MOST_READ: Final = 64 << 20  # bytes of a log that is judged as training ends, some seconds
_PAUSE: Final = 20  # a twentieth of the rows so far passes between two looks for the same reason
_GRAVE: Final = frozenset({"warning", "error", "critical"})

_NO_MEMORY: Final = ("can't allocate memory", "out of memory")
_LEVELS: Final = {"warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}


# The recorders of this process by the log that was asked for; one whose Trainer was freed is not kept by it.
_open: WeakValueDictionary[Path, RunRecorder] = WeakValueDictionary()


class RunRecorder:
    """One log, written for one callback.

    Attributes:
        joined: another callback records the same training, so this one writes nothing.

    Args:
        allow_text: write long strings and exceptions' texts in clear.
    """

    def __init__(self, *, allow_text: bool = False) -> None:
        self.run_id: str | None = None
        self.in_run = False
        self.dropped = 0
        self.joined = False
        self._allow_text = allow_text
        self._key: Path | None = None  # the log asked for; key of the run in `_open`
        self._path: Path | None = None  # the log written; a sibling if the one asked for was taken
        self._training: object = None
        self._writer: TelemetryWriter | None = None
        self._enabled = True
        self._pid = os.getpid()
        self._earlier = 0

    def __enter__(self) -> Self:
        """Begin a block whose failure must not reach the training."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        """Note a failure and swallow it; let Ctrl-C and exits pass."""
        if not isinstance(error, Exception):
            return False
        self.fail(error)
        return True

    def records(self, training: object) -> bool:
        """Whether the open run belongs to this training."""
        return self.in_run and self._training is training

    @property
    def began(self) -> bool:
        """Whether a run was ever begun here, even if it has ended."""
        return self._path is not None

    @property
    def log(self) -> Path | None:
        """The log that is written; a sibling of the one asked for if that was taken."""
        return self._path

    def start(
        self,
        path: Path,
        config: ConfigSnapshot,
        meta: Mapping[str, Any],
        *,
        training: object,
        step: int,
        restart: bool = False,
    ) -> None:
        """Begin a run at step 0, continue the log's last run at a later step, or restart the open run.

        Args:
            path: the log.
            config: the run's configuration.
            meta: further facts of the run.
            training: an object that identifies the training loop. If another recorder has the same log and object, this
                one joins it and writes nothing.
            step: the step at which it begins.
            restart: the open run begins again, with a smaller batch.
        """
        if restart and self._writer is not None:
            self._writer.run_start(config, meta=meta, resumed_from_step=step)
            return
        self.close_interrupted()
        path = path.absolute()
        other = _open.get(path)
        self.joined = other is not None and other is not self and other._training is training  # noqa: SLF001  # kin
        if self.joined:
            self.warn("two callbacks record this training in one log: the first one writes, the second does nothing")
            return
        if other is not None:
            other.close_interrupted()  # an interrupted loop of this process whose Trainer still exists
        self.run_id = (last_run_id(path) or self.run_id) if step else None
        self.dropped, self.in_run, self._enabled = 0, True, True
        self._key = self._path = path
        # In a notebook the last exception may be that of an earlier cell: it did not end this run.
        self._training, self._pid, self._earlier = training, os.getpid(), id(_uncaught())
        # It raises, because this recorder counts what is lost, and knows a log at fault from an event.
        self._writer = TelemetryWriter(path, self.run_id, allow_text=self._allow_text, on_error="raise")
        self.run_id, self._path = self._writer.run_id, self._writer.path
        _open[path] = self
        self._writer.run_start(config, meta=meta, resumed_from_step=step or None)

    def train_step(self, step: int, known: Mapping[str, Any], extras: Mapping[str, Any]) -> None:
        """Write a training row, as `record` does but faster while the run is open."""
        if self._writer is not None and self._enabled and os.getpid() == self._pid:
            self._writer.train_step(step, **known, **extras)
        else:
            self.record(lambda log: log.train_step(step, **known, **extras))

    def alert(self, finding: Finding, step: int, *, stops: bool) -> None:
        """Write a finding as an alert."""
        self.record(lambda log: write_alert(log, finding, step, stops=stops))

    def recall(self, lookout: Lookout, step: int) -> None:
        """Let a lookout know what the log has of this run up to a step."""
        if self._path is not None and self.run_id is not None:
            lookout.remember(self._path, self.run_id, step)

    def record(self, write: Callable[[TelemetryWriter], None]) -> None:
        """Write one event. After the run's end the log is opened for the event and closed again.

        Raises:
            RecorderError: the event cannot be written, or after the end another process holds the log.
        """
        # In a forked worker the log belongs to the parent.
        if self.joined or os.getpid() != self._pid:
            return
        if self._writer is not None and self._enabled:
            write(self._writer)
        elif not self._enabled or self._path is None:
            self.dropped += 1
        else:
            with self._reopened() as writer:
                write(writer)

    @contextmanager
    def _reopened(self) -> Iterator[TelemetryWriter]:
        """Open the log for one event; never write the event to a sibling file."""
        assert self._path is not None  # noqa: S101  # a run was begun
        writer = TelemetryWriter(self._path, self.run_id, allow_text=self._allow_text, siblings=False, on_error="raise")
        try:
            yield writer
        finally:
            writer.close()

    def fail(self, error: Exception) -> None:
        """Count an event that could not be written; stop recording if the log itself is at fault."""
        self.dropped += 1
        if self.dropped == 1:
            self.warn(f"an event of this run could not be recorded, training goes on: {_shown(error)}")
        # The log is at fault (disk, permission, descriptor) and not the event: later events may fail too.
        if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
            self._enabled = False

    def end(self, status: Status, reason: str | None = None) -> None:
        """Close the run. Its last line and a warning count the lost events."""
        if not self.in_run or os.getpid() != self._pid:
            return
        self.in_run = False
        lost = f"{self.dropped} events could not be recorded" if self.dropped else None
        try:
            self._last_line(status, "; ".join(part for part in (reason, lost) if part) or None)
        except (RecorderError, OSError) as error:
            lost = f"{self.dropped + 1} events could not be recorded, the last one too: {_shown(error)}"
        finally:
            self._close()
            self._enabled = True  # for late evaluations
        if lost:
            self.warn(lost)

    def finish(self, step: int, planned: int, stopped: str | None) -> None:
        """Close a run that reached its end at a step, or was stopped there by `stopped`."""
        at = f"stopped at step {step}" + (f" of {planned}" if planned > 0 else "")
        if stopped:
            self.end("aborted", f"{at} by {stopped}")
        else:
            self.end("ok", at if 0 < step < planned else None)

    def close_interrupted(self, error: BaseException | None = None) -> None:
        """Close a run whose training was left before its end by an exception, Ctrl-C or an exit."""
        if self.in_run:
            self.end(*self._how_it_was_left(error))

    def _last_line(self, status: Status, reason: str | None) -> None:
        if self._path is not None and (not self._enabled or self._writer is None):
            self._close()  # open anew: the disk may have room again, and opening closes a torn line
            with self._reopened() as writer:
                writer.run_end(status=status, reason=reason)
        elif self._writer is not None:
            self._writer.run_end(status=status, reason=reason)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if self._key is not None and _open.get(self._key) is self:
            del _open[self._key]
        if writer is not None:
            try:
                writer.close()
            except (RecorderError, OSError) as error:
                self.warn(f"the log could not be closed: {_shown(error)}")

    def _how_it_was_left(self, error: BaseException | None) -> tuple[Status, str]:
        """Return status and reason by the given exception, the one in flight, or the last uncaught one."""
        error = error or sys.exception() or _uncaught()
        if error is None or id(error) == self._earlier:
            return "aborted", "training was left before its end"
        reason = f"{type(error).__name__}: {error}" if self._allow_text else type(error).__name__
        if not self._allow_text and any(words in str(error) for words in _NO_MEMORY):
            reason += ": out of memory"  # torch says so of a CPU by a RuntimeError
        return ("interrupted" if isinstance(error, KeyboardInterrupt) else "error"), reason

    def warn(self, message: str) -> None:
        """Warn of what went wrong. Training goes on, even if warnings are errors."""
        notice(message, stacklevel=4)


def write_alert(log: TelemetryWriter, finding: Finding, step: int, *, stops: bool) -> None:
    """Write a finding to a log as an alert, with a mark if training stops by it."""
    context = {**finding.values, **({"stops": True} if stops else {})}
    log.alert(severity=finding.severity, code=finding.id, message=finding.message, step=step, context=context)


def _uncaught() -> BaseException | None:
    """Return the last uncaught exception that the interpreter, or the notebook, reported."""
    # It is set before what runs at the interpreter's exit, where a run that was left is closed.
    return getattr(sys, "last_value", None)


def _shown(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {said(error)}"
        if isinstance(error, (RecorderError, OSError))
        else type(error).__name__
    )


def live_rules() -> list[LogRule]:
    """The rules that speak while training runs."""
    from gradience.rules.log import DETECTORS  # a run that shows nothing needs none of it

    return [rule for rule in DETECTORS if rule.live]


def live_ids(asked: Iterable[str]) -> frozenset[str]:
    """Return the rules named for `stop_on`, in upper case.

    Raises:
        ValueError: one of them does not speak while training runs.
    """
    wanted = frozenset(name.upper() for name in ([asked] if isinstance(asked, str) else asked))
    if not wanted:
        return wanted
    live = [rule.id for rule in live_rules()]
    if strange := sorted(wanted.difference(live)):
        raise ValueError(f"stop_on: expected ids among {', '.join(live)}, got {', '.join(strange)}")
    return wanted


class Lookout:
    """One run's rows and evaluations as they come, and the findings on them that are new.

    Args:
        config: the run's configuration, which several rules read.
        stop_on: ids for which training is to stop.
    """

    def __init__(self, config: ConfigSnapshot, stop_on: Collection[str] = ()) -> None:
        self._stop_on = stop_on
        self._run = RunSeries("live", config=config)
        self._said: set[str] = set()
        self._lowest = self._bar = math.inf
        # It is infinite, so that the first row takes the slow way, which sets it.
        self._least_norm = math.inf
        self._high = 0
        self._next = {"odd": 0, "high": 0}

    def row(self, step: int, row: Mapping[str, Any]) -> Sequence[Finding]:
        """Take one row of training by its known columns; return what it newly shows."""
        if (value := row.get("loss")) is None:
            return ()
        loss, measured, run = as_float(value), row.get("grad_norm"), self._run
        norm = math.nan if measured is None else as_float(measured)
        run.steps.append(step)
        run.losses.append(loss)
        run.grad_norms.append(norm)
        run.rates.append(rate_of(row.get("lr")))
        run.last_step = step
        if self._least_norm < norm < math.inf and 0.0 < loss < self._bar:  # a row like most
            if loss < self._lowest:
                self._lowest, self._bar = loss, HIGH.value * loss
            self._high = 0
            return ()
        return self._unusual(step, loss, norm, logged=measured is not None)

    def evaluation(self, step: int, split: str, metrics: Mapping[str, Any]) -> Sequence[Finding]:
        """Take one evaluation of one split; return what it newly shows."""
        names = set(EvalMetrics.__struct_fields__) - {"extras"}
        known, extras = ({k: v for k, v in metrics.items() if (k in names) is of_field} for of_field in (True, False))
        measured = EvalMetrics(**known, extras=extras)
        self._run.evals.append(Eval(schema=SCHEMA_ID, ts=None, run_id="live", step=step, split=split, metrics=measured))
        self._run.last_step = max(step, self._run.last_step or 0)
        return self._judge()

    def looked(self, event: Wiring | StepDigests | Metrics) -> Sequence[Finding]:
        """Take a look at what is trained, or at what was fed; return what it newly shows."""
        self._run.add(event)
        # Of digests the first are judged: all steps may be fed the same, or after a resume what was fed before.
        return () if isinstance(event, StepDigests) and len(self._run.fed) > FIRST_FED else self._judge()

    def remember(self, path: Path, run_id: str, step: int) -> None:
        """Take the looks that a log has of this run up to a step, for a resume from there."""
        for event in TelemetryReader(path):
            if event.run_id == run_id and isinstance(event, Wiring | StepDigests | Metrics):
                self._run.add(event)
        self._run.resume_from(step)
        self._judge()  # what they show was said then

    def stops(self, findings: Iterable[Finding]) -> list[str]:
        """Return the ids among new findings for which training is to stop."""
        return [finding.id for finding in findings if finding.id in self._stop_on]

    def _unusual(self, step: int, loss: float, norm: float, *, logged: bool) -> Sequence[Finding]:
        if logged and math.isnan(norm):
            self._run.lost_norms.add(step)
        if loss < self._lowest and loss > 0.0:
            self._lowest, self._bar = loss, HIGH.value * loss
        if math.isinf(self._least_norm) and math.isfinite(norm):  # the first
            self._least_norm = SMALL.value * norm
        if not math.isfinite(loss) or loss == 0.0 or (logged and not self._least_norm < norm < math.inf):
            return self._look("odd")
        self._high = self._high + 1 if loss > self._bar else 0
        return self._look("high") if self._high >= _ROWS else ()

    def _look(self, reason: str) -> Sequence[Finding]:
        rows = len(self._run.steps)
        if rows < self._next[reason]:
            return ()
        self._next[reason] = rows + 1 + rows // _PAUSE
        return self._judge()

    def _judge(self) -> Sequence[Finding]:
        from gradience.rules import judge  # the same
        from gradience.rules.log.facts import RunFacts  # the same

        rules = [rule for rule in live_rules() if rule.id not in self._said]
        new = [finding for finding in judge(rules, RunFacts(self._run)).findings if finding.severity in _GRAVE]
        self._said.update(finding.id for finding in new)
        # Of several findings of one rule the first is said.
        return list({finding.id: finding for finding in reversed(new)}.values())


class Voice:
    """Says findings, one line each, nothing where it is not `loud`; and announces them where the user asked for it.

    Raises:
        GradienceError: a place is not known, or its package is missing.
    """

    def __init__(self, *, loud: bool, announce: Iterable[Place] = ()) -> None:
        self._loud = loud
        self._places = checked(announce)
        self._announcer: Announcer | None = None

    def begin(self, folder: Path) -> None:
        """Open the places to announce to; a failure is said, and the training goes on without them."""
        try:
            self._announcer = Announcer(self._places, folder) if self._places else None
        except Exception as error:  # noqa: BLE001  # foreign packages may raise anything
            notice(f"findings are announced nowhere, training goes on: {type(error).__name__}: {error}")

    def config(self, config: ConfigSnapshot, step: int = 0) -> None:
        """Say the findings on a configuration, warnings and graver, as training begins."""
        if not self._loud and self._announcer is None:
            return
        from gradience.rules.config import judge_config  # a silent run needs none of it

        for finding in judge_config(config).findings:
            self._say(finding, "", step)

    def finding(self, finding: Finding, step: int) -> None:
        """Say a finding on the rows up to a step."""
        self._say(finding, f" at step {step}", step)

    def stop(self, step: int, reason: str) -> None:
        """Say that training ends early, and by what."""
        if self._loud:
            logger.warning("gradience: training stops after step %d, by %s", step, reason)

    def ended(self, log: Path) -> None:
        """Say how the run went, where its log is and what to run next, on stderr below a bar that is still drawn."""
        if not (self._loud or self._announcer) or log.stat().st_size > _MOST_READ:
            return
        from gradience.verbs.monitor.run import monitor_run  # the whole log is judged once, after the training

        report = monitor_run(log)
        if self._loud:
            story, at = hide_secrets(report.story), shlex.quote(str(log.parent))
            text = f"\ngradience: {log}: {story}\ngradience: next: gradience diagnose {at}\n"
            sys.stderr.write(escape_controls(text))
        if self._announcer is not None:
            lines = [report.story, *(f"{one.severity} {one.id}: {one.message}" for one in report.findings)]
            self._announcer.tell(of_report(f"gradience: {log.parent.name}", "\n".join(lines), report.findings))

    def _say(self, finding: Finding, at: str, step: int) -> None:
        if SEVERITIES.index(finding.severity) < SEVERITIES.index("warning"):
            return
        if self._loud:
            text = hide_secrets(" -> ".join(part for part in (finding.message, finding.action) if part))
            logger.log(_LEVELS[finding.severity], "gradience: %s%s: %s", finding.id, at, escape_controls(text))
        if self._announcer is not None:
            self._announcer.tell(of_finding(finding, step))
