"""The flight recorder in the Hugging Face Trainer: `Trainer(..., callbacks=[GradienceCallback()])`."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, get_args

import msgspec
from transformers import TrainerCallback

from gradience.hf.recorder import RunRecorder
from gradience.hf.snapshot import batch_size, config_snapshot, dataset_size, run_meta
from gradience.hf.watch import BatchWatch, watch_batches
from gradience.schema.config import ConfigSnapshot
from gradience.schema.data import announced_by
from gradience.schema.reports import CheckReport
from gradience.schema.scalars import TaskProfile, as_float
from gradience.telemetry.rows import Values, eval_columns, split_row, train_columns
from gradience.telemetry.values import described


class GradienceCallback(TrainerCallback):
    """Records a Trainer's run in `<output_dir>/run.jsonl`. It changes nothing and never ends a training.

    Also a context manager: `with GradienceCallback() as recorder:` around `trainer.train()` records at once
    how training was left; without it an exception is recorded when the program ends, when the next training
    begins, or when the Trainer is freed.

    Args:
        path: the log, if not `<output_dir>/run.jsonl`; appended to, never truncated.
        dataset_name: what the run is trained on.
        task_profile: `easy_classification`, `hard_reasoning`, `generation` or `unknown`.
        notes: a sentence for the log.
        spectral_every: audit the adapter in training every so many steps, on the CPU. Off by default.
        data: count what the model is fed, in the first 8 micro-batches and then one in 100; False: do not. A report of
            `check_data`: also record what it announced, to be compared with.
        guard: EXPERIMENTAL, acts on the weights: see `gradience.hf.guard`. Off by default.
        allow_text: write strings over 256 characters, and exceptions' texts, in clear.
        meta: further facts for the log's first line.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        dataset_name: str | None = None,
        task_profile: TaskProfile = "unknown",
        notes: str | None = None,
        spectral_every: int | None = None,
        data: bool | CheckReport = True,
        guard: Any = None,
        allow_text: bool = False,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        if task_profile not in get_args(TaskProfile):
            message = f"task_profile must be one of {', '.join(get_args(TaskProfile))}, not {task_profile!r}"
            raise ValueError(message)
        if spectral_every is not None and spectral_every < 1:
            message = f"spectral_every must be at least 1 step, not {spectral_every}"
            raise ValueError(message)
        self._path = None if path is None else Path(path)
        self._given = ConfigSnapshot(dataset_name=dataset_name, task_profile=task_profile, notes=notes)
        self._spectral_every = spectral_every
        self._guard = guard
        self._watch: Any = None
        self._data = data
        self._batches: BatchWatch | None = None
        self._data_recorded = False
        self._meta = dict(meta or {})
        self._recorder = RunRecorder(allow_text=allow_text)
        self._finalizer: weakref.finalize[[], GradienceCallback] | None = None
        self._batch_size: int | None = None
        self._early: list[tuple[int, str, Values]] = []
        self._last_eval: tuple[int, Values] | None = None
        self._alerted: set[str] = set()

    def __enter__(self) -> Self:
        """Begin a block in which training runs."""
        return self

    def __exit__(self, *_: object) -> None:
        """Record how training was left, if it did not come to its end."""
        self._recorder.close_interrupted()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Open the log, or go on with it; on every process, put the guard on duty if there is one."""
        if state.is_world_process_zero:
            with self._recorder:
                self._begin(args, state, kwargs)
            with self._recorder:
                self._watch_batches(args, kwargs["model"])
        self._watch = None
        if self._guard:
            with self._recorder:
                self._arm(args, state, kwargs["model"])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Record a row that the Trainer logs: a step, evaluations or the summary, by its keys."""
        if not state.is_world_process_zero:
            return
        with self._recorder:
            row = dict(logs or {})
            if "train_runtime" in row:
                _restore_total_flos(row, state.log_history)
            self._take_row(state.global_step, row, kwargs)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Record the evaluation, unless its row came through `on_log` already."""
        if not state.is_world_process_zero:
            return
        with self._recorder:
            evals = split_row(dict(metrics or {})).evals
            self._take_evals(state.global_step, evals, kwargs.get("eval_dataloader"))

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        """Record a prediction's metrics as an evaluation of its split."""
        self.on_evaluate(args, state, control, metrics, **kwargs)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Let the guard look at the gradients, on every process."""
        if (watch := self._watch) is not None:
            self._watch = None  # off, should it fail
            with self._recorder:
                watch.before_step(state.global_step + 1)
                self._watch = watch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Let rows come again: what repeats within an epoch is counted."""
        if self._batches is not None:
            self._batches.new_epoch()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Let the guard copy the weights; record the first batches, and audit the adapter when it is time to."""
        step = state.global_step
        if self._batches is not None and not self._data_recorded and self._batches.settled:
            with self._recorder:
                self._record_data(step)
        if (watch := self._watch) is not None:
            self._watch = None
            with self._recorder:
                watch.after_step(step)
                self._watch = watch
        if self._spectral_every and state.is_world_process_zero and step % self._spectral_every == 0:
            with self._recorder:
                self._probe(step, kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Close the run; evaluations that come later are still recorded."""
        early = 0 < state.global_step < state.max_steps
        if self._batches is not None:
            with self._recorder:
                self._record_data(state.global_step)
            self._batches.close()
            self._batches = None
        with self._recorder:
            self._recorder.end("ok", f"stopped at step {state.global_step} of {state.max_steps}" if early else None)

    def _begin(self, args: Any, state: Any, shown: Mapping[str, Any]) -> None:
        size = batch_size(args, state)
        restart = self._recorder.in_run and bool(args.auto_find_batch_size) and size != self._batch_size
        self._batch_size = size
        if not restart:
            self._alerted, self._last_eval = set(), None
        if self._finalizer is None:
            self._finalizer = weakref.finalize(self, self._recorder.close_interrupted)  # freed, or the program ends
        path = self._path or Path(args.output_dir) / "run.jsonl"
        meta = {**run_meta(args), **({"restarted_by": "auto_find_batch_size"} if restart else {}), **self._meta}
        self._recorder.start(path, self._config(args, state, shown), meta, step=state.global_step, restart=restart)
        early, self._early = self._early, []
        for evaluation in early:
            self._write_eval(*evaluation)

    def _config(self, args: Any, state: Any, shown: Mapping[str, Any]) -> ConfigSnapshot:
        """Return the run's configuration; only what the user gave of it where the rest cannot be read."""
        parts = {name: shown.get(name) for name in ("model", "optimizer", "train_dataloader")}
        try:
            return config_snapshot(args, state, self._given, **parts)
        except Exception as error:  # noqa: BLE001  # foreign objects: a run without its config is still a run
            self._recorder.warn(f"the configuration could not be read, and is not recorded: {type(error).__name__}")
            return msgspec.structs.replace(self._given, extras={"snapshot_failed": type(error).__name__})

    def _take_row(self, step: int, row: Values, shown: Mapping[str, Any]) -> None:
        parts = split_row(row)
        if parts.train.keys() - {"epoch"}:
            known, extras = train_columns(parts.train)
            self._recorder.record(lambda log: log.train_step(step, **known, **extras))
            self._alert_if_diverged(step, known)
        if parts.evals:
            alone = len(parts.evals) == 1 and not parts.train  # else the loader is not that of this row's every split
            self._take_evals(step, parts.evals, shown.get("eval_dataloader") if alone else None)
        if parts.summary:
            self._record_metrics(step, "train_summary", {key: described(item) for key, item in parts.summary.items()})

    def _take_evals(self, step: int, evals: Mapping[str, Values], dataloader: Any) -> None:
        """Record an evaluation once: its row comes through `on_log`, its metrics through `on_evaluate`."""
        mark = (step, {split: measured.get("runtime") for split, measured in evals.items()})
        if not evals or mark == self._last_eval:
            return
        self._last_eval = mark
        n = dataset_size(dataloader)
        for split, measured in evals.items():
            known, extras = eval_columns(measured)
            metrics = {**({} if n is None else {"n": n}), **known, **extras}
            if self._recorder.began:
                self._write_eval(step, split, metrics)
            else:
                self._early.append((step, split, metrics))  # a baseline: its run is still to begin

    def _write_eval(self, step: int, split: str, metrics: Values) -> None:
        self._recorder.record(lambda log: log.eval(step, split=split, metrics=metrics))

    def _record_metrics(self, step: int, kind: str, metrics: Values) -> None:
        self._recorder.record(lambda log: log.metrics(step, kind=kind, metrics=metrics))

    def _alert_if_diverged(self, step: int, known: Values) -> None:
        """Record an alert, once, of what a diverged run's rows hide: the Trainer averages non-finite losses away."""
        loss, norm = known.get("loss"), known.get("grad_norm")
        if loss is not None and not math.isfinite(as_float(loss)):
            self._alert(step, "NUM101", "the training loss is not finite", known)
        elif loss == 0.0 and norm is not None and not math.isfinite(as_float(norm)):
            self._alert(step, "NUM102", "a loss of exactly 0 with a gradient norm that is not finite", known)

    def _alert(self, step: int, code: str, message: str, known: Values) -> None:
        if code in self._alerted:
            return
        self._alerted.add(code)
        context = {name: known.get(name) for name in ("loss", "grad_norm", "lr")}
        self._recorder.record(
            lambda log: log.alert(severity="error", code=code, message=message, step=step, context=context)
        )

    def _probe(self, step: int, model: Any) -> None:
        from gradience.hf.probe import spectral_metrics  # noqa: PLC0415  # only where asked for

        self._record_metrics(step, "spectral", spectral_metrics(model))

    def _watch_batches(self, args: Any, model: Any) -> None:
        """Begin to count what the model is fed; a hook of a training that was left is removed."""
        if self._batches is not None:
            self._batches.close()
        self._batches, self._data_recorded = None, False
        if self._data:
            length = getattr(args, "max_length", None)
            self._batches = watch_batches(model, max_length=length if isinstance(length, int) else None)

    def _record_data(self, step: int) -> None:
        """Record the counts, and what a check of the data announced."""
        if self._batches is None:
            return
        self._data_recorded = True
        report = self._data.data if isinstance(self._data, CheckReport) else None
        announced = {} if report is None else {"announced": announced_by(report)}
        self._record_metrics(step, "data", {**self._batches.values(), **announced})

    def _arm(self, args: Any, state: Any, model: Any) -> None:
        from gradience.hf.guard import Guard, Watch  # noqa: PLC0415  # only where asked for

        guard = self._guard if isinstance(self._guard, Guard) else Guard()
        report = self._report_guard if state.is_world_process_zero else _report_nothing
        self._watch = Watch.over(guard, model, args, state.global_step, report)

    def _report_guard(self, step: int, action: Values) -> None:
        with self._recorder:
            self._record_metrics(step, "guard", action)


def _report_nothing(_step: int, _action: Values) -> None:
    """Another process records what the guard does: all of them do the same."""


def _restore_total_flos(row: Values, history: list[Values]) -> None:
    """Put back what a callback before this one took out of the summary: `PrinterCallback` pops `total_flos`."""
    if "loss" not in row and history and "total_flos" in history[-1]:
        row.setdefault("total_flos", history[-1]["total_flos"])
