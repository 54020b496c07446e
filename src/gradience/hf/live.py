"""One training as a callback records it, of transformers or of Lightning.

| when | recorded | judged |
|---|---|---|
| training begins or goes on | `run_start`; `wiring`: start, or resume | the settings; what is trained |
| a row is logged | `train_step`; every ten steps `throughput` | the rows so far |
| an evaluation ends | `eval`; `wiring`: evaluation, if it called the model otherwise | the evaluations so far |
| a step is made | `wiring`: pass, if the model was called otherwise | how it was called |
| eight micro-batches are fed | `metrics`: data | what they hold |
| eight steps are made | `wiring`: gradients | what got a gradient |
| sixteen steps are made | `step_digests` | of the first: what was fed |
| a checkpoint is saved | `wiring`: save | the file against the model |
| training ends, fails or is left | `run_end` | |

A finding is recorded as an `alert`. The Trainer's callback alone counts what the model is fed, and also records
`metrics` of its adapter's spectrum, and the summary that the Trainer logs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import torch

from gradience.announce import Place
from gradience.hf.pace import PaceMeter
from gradience.hf.recorder import Lookout, RunRecorder, Voice, live_ids
from gradience.hf.watched import WiringWatch
from gradience.hf.wires import live_look
from gradience.schema.document import Finding
from gradience.schema.events import ConfigSnapshot, EventBase, Metrics


class LiveOptions(TypedDict, total=False):
    """What every callback takes.

    Args:
        stop_on: ids of rules, such as `("NUM101", "DIV104")`, at whose first finding training is asked to stop.
        verbose: say findings through logging (logger `gradience`); they are recorded in any case.
        announce: where findings and the run's story are told too, such as `("wandb", "webhook")`: the places of
            `gradience.announce`. Nowhere by default; a failure there never reaches the training.
        allow_text: write strings over 256 characters, and exceptions' texts, in clear.
        wiring: record what is trained, at the start, at a resume, after the first steps and at each save, and judge it.
        digests: record digests of each step's batch and of the random states, for `gradience why`.
    """

    stop_on: Iterable[str]
    verbose: bool
    announce: Iterable[Place]
    allow_text: bool
    wiring: bool
    digests: bool


class LiveRun:
    """The log of one callback's trainings, the findings on them as they come, and what watches them.

    Attributes:
        recorder: writes the log. `with recorder:` keeps a failure from the training.

    The arguments are those of `LiveOptions`.

    Raises:
        ValueError: an id of `stop_on` is none of a rule that speaks while training runs.
        GradienceError: a place to announce to is not known, or its package is missing.
    """

    def __init__(
        self,
        *,
        stop_on: Iterable[str] = (),
        verbose: bool = True,
        announce: Iterable[Place] = (),
        allow_text: bool = False,
        wiring: bool = True,
        digests: bool = True,
    ) -> None:
        self.recorder = RunRecorder(allow_text=allow_text)
        self._stop_on = live_ids(stop_on)
        self._voice = Voice(loud=verbose, announce=announce)
        self._wiring, self._digests = wiring, digests
        self._main = True  # whether this is the first of several processes
        self._lookout: Lookout | None = None
        self._watch: WiringWatch | None = None
        self._found: list[Finding] = []  # by the watch, not heeded yet
        self._pace: PaceMeter | None = None
        self._stopped: str | None = None

    @property
    def began(self) -> bool:
        """Whether a training was ever begun here, even if it has ended."""
        return self._lookout is not None or self.recorder.began

    def judges(self, *, main: bool) -> bool:
        """Whether this process judges rows: the first does, and all do if they may have to stop together."""
        return main or bool(self._stop_on)

    def begin(
        self,
        path: Path,
        config: ConfigSnapshot,
        meta: Mapping[str, Any],
        *,
        training: object,
        step: int,
        main: bool,
        restart: bool = False,
    ) -> None:
        """Judge from here on; on the first process also begin the log, as `RunRecorder.start` does."""
        self._main, self._stopped = main, None
        self._lookout = Lookout(config, self._stop_on)
        if not main:
            return
        self.recorder.start(path, config, meta, training=training, step=step, restart=restart)
        if not self.recorder.joined and not restart:
            self._voice.begin(path.parent)
            self._voice.config(config, step)

    def watch(self, model: torch.nn.Module, optimizer: Any, *, step: int, **options: Any) -> None:
        """Time the steps and look at what is trained; `options` are those of `WiringWatch`."""
        self._unwatch()
        if self.recorder.joined:
            return
        with self.recorder:
            self._pace = PaceMeter(model) if self._main else None
        if self._wiring and self._lookout is not None:
            with self.recorder:
                if step and self._main:
                    # This comes before the watch, whose first look at a resume is compared with what the log has.
                    self.recorder.recall(self._lookout, step)
                self._watch = WiringWatch(
                    model, optimizer, self._take, self._fail, step=step, digests=self._digests, **options
                )

    def see(self, batch: Any) -> None:
        """Take the next batch, where the model is not called with it."""
        if self._watch is not None:
            self._watch.see(batch)

    def step_begins(self) -> None:
        """A step has its batches."""
        if self._pace is not None:
            self._pace.begin()

    def step_ended(self, step: int, steps: int = 1) -> bool:
        """So many optimizer steps have ended; whether training is to stop."""
        if self._pace is not None:
            self._pace.end(steps)
        return self.heed(step)

    def row(self, step: int, known: Mapping[str, Any], extras: Mapping[str, Any]) -> bool:
        """Record and judge a row; whether training is to stop. One that cannot be written is judged all the same."""
        with self.recorder:
            self.recorder.train_step(step, known, extras)
            if self._pace is not None and "loss" in known and (window := self._pace.look()):
                self.recorder.record(lambda log: log.throughput(step, **window))
        return self.heed(step, self._lookout.row(step, known) if self._lookout else ())

    def fed(self, step: int, counts: Mapping[str, Any]) -> bool:
        """Record and judge the counts of the first batches; whether to stop, if this is the only process."""
        with self.recorder:
            self.recorder.record(lambda log: log.metrics(step, kind="data", metrics=counts))
        seen = live_look(Metrics, step, {"kind": "data", "metrics": counts})
        alone = not torch.distributed.is_available() or not torch.distributed.is_initialized()
        return self.heed(step, self._lookout.looked(seen) if self._lookout else (), may_stop=alone)

    def evaluation(self, step: int, split: str, metrics: Mapping[str, Any]) -> bool:
        """Record and judge the evaluation of a split, as a row; whether training is to stop."""
        with self.recorder:
            self.recorder.record(lambda log: log.eval(step, split=split, metrics=metrics))
        return self.heed(step, self._lookout.evaluation(step, split, metrics) if self._lookout else ())

    def evaluated(self, step: int, of: int | None = None) -> bool:
        """Look at what an evaluation called that has just ended, of a step if told; whether training is to stop."""
        if self._pace is not None:
            self._pace.rest()
        if self._watch is not None:
            self._watch.evaluated(of)
        return self.heed(step)

    def saved(self, step: int, folder: Path | None = None) -> bool:
        """Look at what is trained as a checkpoint was saved, in a folder if told; whether training is to stop."""
        if self._watch is not None:
            self._watch.saved(folder, step)
        if self._pace is not None:
            self._pace.rest()
        return self.heed(step)

    def failed(self, error: BaseException, step: int) -> None:
        """Record how the model was called last, as training fails, and close the run."""
        if self._watch is not None:
            self._watch.failed()
        self._unwatch()
        self.heed(step, may_stop=False)
        with self.recorder:
            self.recorder.close_interrupted(error)

    def end(self, step: int, planned: int) -> None:
        """Close the run; later evaluations are still recorded."""
        self._unwatch()
        self.heed(step, may_stop=False)
        self._lookout = None
        with self.recorder:
            self.recorder.finish(step, planned, self._stopped)

    def tell_story(self) -> None:
        """Say how the run went, and what to run next."""
        if self._speaks and self.recorder.log is not None:
            with suppress(Exception):  # what is only said must not end a training
                self._voice.ended(self.recorder.log)

    def heed(self, step: int, found: Sequence[Finding] = (), *, may_stop: bool = True) -> bool:
        """Say new findings, the watch's too, and then record them, if that works; whether training is to stop."""
        if not found and not self._found:
            return False
        found, self._found = [*found, *self._found], []
        stops = self._lookout.stops(found) if self._lookout and may_stop else []
        for finding in found if self._speaks else ():
            self._voice.finding(finding, step)
        if stops:
            self._stopped = f"stop_on: {', '.join(stops)}"
            if self._speaks:
                self._voice.stop(step, self._stopped)
        for finding in found if self._main else ():
            with self.recorder:
                self.recorder.alert(finding, step, stops=finding.id in stops)
        return bool(stops)

    @property
    def _speaks(self) -> bool:
        return self._main and not self.recorder.joined

    def _unwatch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
        pace, self._pace = self._pace, None
        if pace is not None:
            pace.close()

    def _take(self, kind: type[EventBase], step: int, fields: dict[str, Any]) -> None:
        if self._main:
            self.recorder.record(lambda log: log.looked(kind, step, fields))  # type: ignore[arg-type]  # one of the two
        if self._lookout is not None:
            self._found += self._lookout.looked(live_look(kind, step, fields))

    def _fail(self, error: Exception) -> None:
        if self._main:
            self.recorder.fail(error)
