"""Record a Hugging Face Trainer's run: `Trainer(..., callbacks=[GradienceCallback()])`."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self, get_args

import msgspec
from transformers import TrainerCallback

from gradience.announce import Place
from gradience.configs.values import short_name
from gradience.data import template_digest
from gradience.errors import GradienceError
from gradience.hf.pace import PaceMeter
from gradience.hf.recorder import Lookout, RunRecorder, Voice, live_ids
from gradience.hf.snapshot import batch_size, config_snapshot, dataset_size, run_meta
from gradience.hf.trainer_wires import CallbackWires, WiringRequest
from gradience.hf.watch import BatchWatch, watch_batches
from gradience.schema import TaskProfile
from gradience.schema.document import Finding
from gradience.schema.events import ConfigSnapshot
from gradience.schema.reports import CheckReport, announced_by
from gradience.schema.values import described
from gradience.telemetry.rows import Values, eval_columns, plain_columns, split_row, train_columns

_TIMES: Final = ("runtime", "samples_per_second", "steps_per_second")  # rounded, so two evaluations may share the first


class GradienceCallback(TrainerCallback):  # type: ignore[misc]
    """Records a Trainer's run in `<output_dir>/run.jsonl`. It changes nothing, and ends a training only on `stop_on`.

    Findings to act on during the run go to the logger `gradience` as they happen, each rule once a run. These are
    findings on the configuration as training begins, then NaN, divergence, overfitting, a loss or a gradient of 0.

    Also a context manager: `with GradienceCallback() as recorder:` around `trainer.train()` records at once how
    training was left. Without it an exception is recorded when the program ends, when the next training begins, or when
    the Trainer is freed.

    Args:
        path: the log, if not `<output_dir>/run.jsonl`; appended to, never truncated.
        dataset_name: what the run is trained on.
        task_profile: `easy_classification`, `hard_reasoning`, `generation` or `unknown`.
        notes: a sentence for the log.
        spectral_every: audit the adapter in training every so many steps, on the CPU. Off by default.
        data: count what the model is fed, in the first 8 micro-batches and then one in 100; False turns this off. If it
            is a report of `check_data`, what that announced is recorded too, for comparison.
        stop_on: ids of rules, such as `("NUM101", "DIV104")`, at whose first finding the Trainer is asked to stop.
        wiring: record what is trained, at the start, at a resume, after the first steps and at each save, and judge it.
        receipt: at the end write `receipt.json` beside the log, for `gradience verify-served`, by a few passes over 24
            rows of the evaluation set.
        digests: record digests of each step's batch and of the random states, for `gradience why`.
        verbose: say findings through logging; they are recorded in any case.
        announce: where findings and the run's story are told too, such as `("wandb", "webhook")`: the places of
            `gradience.announce`. Nowhere by default; a failure there never reaches the training.
        allow_text: write strings over 256 characters, and exceptions' texts, in clear.
        meta: further facts for the log's first line.

    Raises:
        ValueError: an argument is out of its range.
        GradienceError: a place to announce to is not known, or its package is missing.
    """

    def __init__(  # noqa: PLR0913  # the one list of its options, for others' scripts
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        dataset_name: str | None = None,
        task_profile: TaskProfile = "unknown",
        notes: str | None = None,
        spectral_every: int | None = None,
        data: bool | CheckReport = True,
        stop_on: Iterable[str] = (),
        wiring: bool = True,
        digests: bool = True,
        receipt: bool = False,
        verbose: bool = True,
        announce: Iterable[Place] = (),
        allow_text: bool = False,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        if task_profile not in get_args(TaskProfile):
            raise ValueError(f"task_profile must be one of {', '.join(get_args(TaskProfile))}, not {task_profile!r}")
        if spectral_every is not None and spectral_every < 1:
            raise ValueError(f"spectral_every must be at least 1 step, not {spectral_every}")
        self._path = None if path is None else Path(path)
        self._given = ConfigSnapshot(dataset_name=dataset_name, task_profile=task_profile, notes=notes)
        self._spectral_every = spectral_every
        self._data = data
        self._wanted = WiringRequest(wiring, digests)
        self._wiring: CallbackWires | None = None
        self._batches: BatchWatch | None = None
        self._data_recorded = False
        self._wants_receipt = receipt
        self._pace: PaceMeter | None = None
        self._fed: Values = {}
        self._program: Values = {}
        self._meta = dict(meta or {})
        self._recorder = RunRecorder(allow_text=allow_text)
        self._finalizer: weakref.finalize[[], GradienceCallback] | None = None
        self._batch_size: int | None = None
        self._early: list[tuple[int, str, Values]] = []
        self._last_eval: tuple[int, dict[str, list[Any]]] | None = None
        self._last_row: Any = None
        self._probed: int | None = None
        self._stop_on = live_ids(stop_on)
        self._voice = Voice(loud=verbose, announce=announce)
        self._lookout: Lookout | None = None
        self._stopped: str | None = None

    def take_program(
        self, *, dataset: str | None = None, template: str | None = None, max_length: int | None = None
    ) -> None:
        """Take what a program says of its data, where the Trainer does not know it; recorded with the batches' counts.

        Args:
            dataset: its name, or its file's.
            template: the program's name of the prompt template.
            max_length: the length at which rows are cut, in tokens.
        """
        names = {"dataset": dataset, "template": template}
        self._program = {key: short_name(name) for key, name in names.items() if name}
        if isinstance(max_length, int):
            self._program["max_length"] = max_length

    def __enter__(self) -> Self:
        """Begin a block in which training runs."""
        return self

    def __exit__(self, *_: object) -> None:
        """Record how training was left, if it did not reach its end."""
        self._recorder.close_interrupted()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # theirs
        """Open the log, or continue it; on every process, judge the rows if training may have to stop."""
        if self._recorder.records(state):
            self._recorder.warn("this callback was given to the Trainer twice: each event is recorded once")
            return
        self._lookout = self._stopped = None
        if state.is_world_process_zero:
            with self._recorder:
                self._begin(args, state, kwargs)
            if not self._recorder.joined:
                with self._recorder:
                    self._watch_batches(args, kwargs)
                    self._watch_pace(kwargs["model"])
        elif self._stop_on:  # all processes must stop together, so each judges the same rows
            with self._recorder:
                self._lookout = Lookout(self._config(args, state, kwargs), self._stop_on)
        if self._wanted.wiring and not self._recorder.joined and (state.is_world_process_zero or self._stop_on):
            with self._recorder:
                self._watch_wiring(args, state, control, kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Record a row that the Trainer logs: a step, evaluations or the summary, told apart by its keys."""
        if self._recorder.joined or (logs is self._last_row and logs is not None):
            return
        self._last_row = logs
        if not state.is_world_process_zero and self._lookout is None:
            return
        with self._recorder:
            row = dict(logs or {})
            if "train_runtime" in row:
                _restore_total_flos(row, state.log_history)
            self._take_row(state.global_step, row, kwargs, control)
            if self._pace is not None and "loss" in row and (found := self._pace.look()):
                self._recorder.record(lambda log: log.throughput(state.global_step, **found))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Record the evaluation, unless `on_log` already got its row."""
        if self._recorder.joined or not (state.is_world_process_zero or self._lookout):
            return
        if self._pace is not None:
            self._pace.rest()
        with self._recorder:
            if self._wiring is not None:
                self._wiring.evaluated(state.global_step)
                self._heed(state.global_step, self._wiring.take(), control)
            evals = split_row(dict(metrics or {})).evals
            self._take_evals(state.global_step, evals, kwargs.get("eval_dataloader"), control)

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        """Record a prediction's metrics as an evaluation of its split."""
        self.on_evaluate(args, state, control, metrics, **kwargs)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Start counting repeated rows anew: rows that come again in a new epoch are not counted as repeated."""
        if self._batches is not None:
            self._batches.new_epoch()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Note how long the step waited for its batches."""
        if self._pace is not None:
            self._pace.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Record the first batches' counts; audit the adapter if it is due."""
        if self._pace is not None:
            self._pace.end()
        step = state.global_step
        if self._batches is not None and not self._data_recorded and self._batches.settled:
            with self._recorder:
                self._record_data(step)
        if self._wiring is not None and (found := self._wiring.take()):
            with self._recorder:
                self._heed(step, found, control)
        if self._spectral_every and step % self._spectral_every == 0 and step != self._probed:
            self._probed = step
            if state.is_world_process_zero and not self._recorder.joined:
                with self._recorder:
                    self._probe(step, kwargs["model"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Record what is trained at a save, and what the checkpoint's adapter file holds."""
        if self._wiring is not None:
            with self._recorder:
                self._wiring.saved(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)
                self._heed(state.global_step, self._wiring.take(), control)
        if self._pace is not None:
            self._pace.rest()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Close the run; later evaluations are still recorded."""
        if self._wiring is not None:
            self._wiring.close()
            for finding in self._wiring.take():
                with self._recorder:
                    self._voice.finding(finding, state.global_step)
                    self._recorder.alert(finding, state.global_step, stops=False)
            self._wiring = None
        self._lookout = None
        self._watch_pace(None)
        if self._batches is not None:
            with self._recorder:
                self._record_data(state.global_step)
            self._batches.close()
            self._batches = None
        with self._recorder:
            self._recorder.finish(state.global_step, state.max_steps, self._stopped)
        if self._wants_receipt and self._recorder.log is not None and state.is_world_process_zero:
            with self._recorder:
                self._write_receipt(args, kwargs)
        if self._recorder.log is not None and state.is_world_process_zero:
            with suppress(Exception):  # what is only said must not end a training
                self._voice.ended(self._recorder.log)

    def _write_receipt(self, args: Any, shown: Mapping[str, Any]) -> None:
        from gradience.hf.receipt import write_at_end  # only where asked for

        log = self._path or Path(args.output_dir) / "run.jsonl"
        rows = shown.get("eval_dataloader") or shown.get("train_dataloader")
        try:
            write_at_end(shown["model"], shown.get("processing_class"), rows, log)
        except GradienceError as error:
            self._recorder.warn(f"no receipt is written: {error}")

    def _begin(self, args: Any, state: Any, shown: Mapping[str, Any]) -> None:
        size = batch_size(args, state)
        restart = self._recorder.in_run and bool(args.auto_find_batch_size) and size != self._batch_size
        self._batch_size = size
        if not restart:
            self._last_eval, self._probed = None, None
        if self._finalizer is None:
            self._finalizer = weakref.finalize(self, self._recorder.close_interrupted)  # freed, or the program ends
        path = self._path or Path(args.output_dir) / "run.jsonl"
        meta = {**run_meta(args), **({"restarted_by": "auto_find_batch_size"} if restart else {}), **self._meta}
        config = self._config(args, state, shown)
        self._lookout = Lookout(config, self._stop_on)
        self._recorder.start(path, config, meta, training=state, step=state.global_step, restart=restart)
        if not self._recorder.joined and not restart:
            self._voice.begin(path.parent)
            self._voice.config(config, state.global_step)
        early, self._early = self._early, []
        for evaluation in early:
            self._write_eval(*evaluation)

    def _config(self, args: Any, state: Any, shown: Mapping[str, Any]) -> ConfigSnapshot:
        """Return the run's configuration; if it cannot be read, only the part that the user gave."""
        parts = {name: shown.get(name) for name in ("model", "optimizer", "train_dataloader")}
        try:
            return config_snapshot(args, state, self._given, **parts)
        except Exception as error:  # noqa: BLE001  # foreign objects may raise anything; record the run without its config
            self._recorder.warn(f"the configuration could not be read, and is not recorded: {type(error).__name__}")
            return msgspec.structs.replace(self._given, extras={"snapshot_failed": type(error).__name__})

    def _take_row(self, step: int, row: Values, shown: Mapping[str, Any], control: Any) -> None:
        if (plain := plain_columns(row)) is not None:
            self._take_step(step, plain, {}, control)
            return
        parts = split_row(row)
        if parts.train.keys() - {"epoch"}:
            self._take_step(step, *train_columns(parts.train), control)
        if parts.evals:
            alone = len(parts.evals) == 1 and not parts.train  # else the row's splits have other loaders
            self._take_evals(step, parts.evals, shown.get("eval_dataloader") if alone else None, control)
        if parts.summary:
            self._record_metrics(step, "train_summary", {key: described(item) for key, item in parts.summary.items()})

    def _take_step(self, step: int, known: Values, extras: Values, control: Any) -> None:
        with self._recorder:  # a row that cannot be written is judged all the same
            self._recorder.train_step(step, known, extras)
        if self._lookout is not None and (found := self._lookout.row(step, known)):
            self._heed(step, found, control)

    def _take_evals(self, step: int, evals: Mapping[str, Values], dataloader: Any, control: Any) -> None:
        """Record an evaluation only once: its row comes through `on_log`, its metrics again through `on_evaluate`."""
        mark = (step, {split: [measured.get(name) for name in _TIMES] for split, measured in evals.items()})
        if not evals or mark == self._last_eval:
            return
        self._last_eval = mark
        n = dataset_size(dataloader)
        for split, measured in evals.items():
            known, extras = eval_columns(measured)
            metrics = {**({} if n is None else {"n": n}), **known, **extras}
            if not self._recorder.began:
                self._early.append((step, split, metrics))  # evaluated before the run began: written once it does
                continue
            with self._recorder:  # as above
                self._write_eval(step, split, metrics)
            if self._lookout is not None:
                self._heed(step, self._lookout.evaluation(step, split, metrics), control)

    def _write_eval(self, step: int, split: str, metrics: Values) -> None:
        self._recorder.record(lambda log: log.eval(step, split=split, metrics=metrics))

    def _record_metrics(self, step: int, kind: str, metrics: Values) -> None:
        self._recorder.record(lambda log: log.metrics(step, kind=kind, metrics=metrics))

    def _heed(self, step: int, found: Sequence[Finding], control: Any) -> None:
        """Announce new findings, stop the training if `stop_on` asks for it, and then record them, if that works."""
        assert self._lookout is not None  # noqa: S101  # it found this
        stops = self._lookout.stops(found)
        for finding in found:
            self._voice.finding(finding, step)
        if stops:
            self._stop(step, f"stop_on: {', '.join(stops)}", control)
        for finding in found:
            self._recorder.alert(finding, step, stops=finding.id in stops)

    def _watch_wiring(self, args: Any, state: Any, control: Any, shown: Mapping[str, Any]) -> None:
        """Look at what is trained, and follow it; first end what watched an earlier training."""
        if self._wiring is not None:
            self._wiring.close()
        recorder = self._recorder if state.is_world_process_zero else None
        assert self._lookout is not None  # noqa: S101  # made as training begins
        self._wiring = CallbackWires(self._lookout, recorder, self._wanted.digests)
        self._wiring.begin_trainer(args, state, shown)
        self._heed(state.global_step, self._wiring.take(), control)

    def _stop(self, step: int, reason: str, control: Any) -> None:
        control.should_training_stop = True
        self._stopped = reason
        self._voice.stop(step, reason)

    def _probe(self, step: int, model: Any) -> None:
        from gradience.hf.probe import spectral_metrics  # only where asked for

        self._record_metrics(step, "spectral", spectral_metrics(model))

    def _watch_batches(self, args: Any, shown: Mapping[str, Any]) -> None:
        """Begin to count what the model is fed; first remove the hook of an earlier training."""
        if self._batches is not None:
            self._batches.close()
        self._batches, self._data_recorded = None, False
        if self._data:
            length = self._program.get("max_length", getattr(args, "max_length", None))
            self._batches = watch_batches(shown["model"], max_length=length if isinstance(length, int) else None)
            digest = template_digest(getattr(shown.get("processing_class"), "chat_template", None))
            self._fed = {**self._program, **({"template_digest": digest} if digest else {})}

    def _watch_pace(self, model: Any) -> None:
        """Begin to count a model's steps and tokens, and end with an earlier one's; None ends only."""
        if self._pace is not None:
            self._pace.close()
        self._pace = None if model is None else PaceMeter(model)

    def _record_data(self, step: int) -> None:
        """Record the counts of the batches, and what a check of the data announced."""
        if self._batches is None:
            return
        self._data_recorded = True
        report = self._data.data if isinstance(self._data, CheckReport) else None
        announced = {} if report is None else {"announced": announced_by(report)}
        self._record_metrics(step, "data", {**self._fed, **self._batches.values(), **announced})


def _restore_total_flos(row: Values, history: list[Values]) -> None:
    """Put `total_flos` back into the summary row: an earlier callback such as `PrinterCallback` popped it."""
    if "loss" not in row and history and "total_flos" in history[-1]:
        row.setdefault("total_flos", history[-1]["total_flos"])
