"""`TelemetryWriter.watch`: record and judge what is trained in a loop of one's own, in Accelerate, or in Lightning."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from gradience.hf.recorder import Lookout, Voice, live_ids, write_alert
from gradience.hf.watched import WiringWatch
from gradience.hf.wiring import data_of, prepared_of
from gradience.schema import SCHEMA_ID
from gradience.schema.document import Finding
from gradience.schema.events import ConfigSnapshot, EventBase
from gradience.schema.flat import unchecked
from gradience.telemetry import TelemetryWriter
from gradience.telemetry.logfile import notice


class Wires:
    """The wiring of a run whose log a `TelemetryWriter` writes.

    Attributes:
        findings: what was found so far.

    Args:
        log: the writer.
        model: the model that is called with each batch.
        optimizer: its optimizer, or a list of all.
        schedule: the learning rate's.
        loader: the DataLoader.
        accumulation: micro-batches per optimizer step.
        stop_on: ids of rules at whose first finding `should_stop` becomes true.
        digests: record digests of the batches and the random states.
        verbose: log findings, warnings and graver.

    Raises:
        ValueError: an id of `stop_on` is none of a rule that speaks while training runs.
    """

    def __init__(  # noqa: PLR0913  # the one list of its options, for others' scripts
        self,
        log: TelemetryWriter,
        model: torch.nn.Module,
        optimizer: Any,
        *,
        schedule: Any = None,
        loader: Any = None,
        accumulation: int | None = None,
        stop_on: Iterable[str] = (),
        digests: bool = True,
        verbose: bool = True,
    ) -> None:
        self.findings: list[Finding] = []
        self._log, self._stops = log, live_ids(stop_on)
        self._voice = Voice(loud=verbose)
        opened = log.opened
        step = (opened.resumed_from_step or 0) if opened else 0
        self._prepared: dict[str, list[str]] = {}
        parts = {"model": model, "optimizer": optimizer, "loader": loader}
        self._safely("what Accelerate prepared", lambda: self._prepared.update(prepared_of(**parts)))
        self._lookout = Lookout(opened.config if opened else ConfigSnapshot(), self._stops)
        if step:
            # This comes before the watch, whose first look at a resume is compared with what the log has.
            self._safely("the run so far", lambda: self._lookout.remember(log.path, log.run_id, step))
        self._watch = WiringWatch(
            model,
            optimizer,
            self._take,
            self._fail,
            schedule=schedule,
            data=lambda: data_of(loader, accumulation=accumulation),
            step=step,
            digests=digests,
        )

    @property
    def should_stop(self) -> bool:
        """Whether a rule of `stop_on` has spoken: the loop may end."""
        return any(finding.id in self._stops for finding in self.findings)

    def saved(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Record what is trained at a save, which a resume is compared with, and look into the adapter file."""
        self._watch.saved(None if folder is None else Path(folder))

    def evaluated(self, step: int | None) -> None:
        """Record what an evaluation called that has just ended; `TelemetryWriter.eval` calls this."""
        self._watch.evaluated(step)

    def failed(self) -> None:
        """Record how the model was called last, as training fails."""
        self._watch.failed()

    def close(self) -> None:
        """Stop watching, and write what is not yet written."""
        self._watch.close()

    def _safely(self, what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001  # a log that cannot be read, and Accelerate's private names
            self._fail(error, what)

    def _take(self, kind: type[EventBase], step: int, fields: dict[str, Any]) -> None:
        if fields.get("phase") in {"start", "resume"}:
            fields = {**fields, **self._prepared}
        self._log.looked(kind, step, fields)  # type: ignore[arg-type]  # one of these two
        for finding in self._lookout.looked(live_look(kind, step, fields)):
            self.findings.append(finding)
            self._voice.finding(finding, step)
            write_alert(self._log, finding, step, stops=finding.id in self._stops)

    def _fail(self, error: Exception, what: str = "what is trained") -> None:
        notice(f"{what} could not be looked at, training goes on: {type(error).__name__}: {error}")


def live_look(kind: type[EventBase], step: int, fields: dict[str, Any]) -> Any:
    """Return the event of a run that is being recorded, for its rules."""
    return unchecked(kind, schema=SCHEMA_ID, ts=None, run_id="live", step=step, **fields)
