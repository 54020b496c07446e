"""Record a Hugging Face Trainer's run: `Trainer(..., callbacks=[GradienceCallback()])`."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self, Unpack, get_args

import msgspec
from transformers import TrainerCallback

from gradience.configs.values import short_name
from gradience.data import template_digest
from gradience.errors import GradienceError
from gradience.hf.live import LiveOptions, LiveRun
from gradience.hf.snapshot import batch_size, config_snapshot, dataset_size, run_meta
from gradience.hf.watch import BatchWatch, watch_batches
from gradience.hf.wiring import data_of
from gradience.schema import TaskProfile
from gradience.schema.events import ConfigSnapshot
from gradience.schema.reports import CheckReport, announced_by
from gradience.schema.values import described
from gradience.schema.wiring import DataWiring
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
        receipt: at the end write `receipt.json` beside the log, for `gradience verify`, by a few passes over 24
            rows of the evaluation set.
        meta: further facts for the log's first line.
        options: `stop_on`, `verbose`, `announce`, `allow_text`, `wiring`, `digests`: of `hf.live.LiveOptions`.

    Raises:
        ValueError: an argument is out of its range.
        GradienceError: a place to announce to is not known, or its package is missing.
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
        receipt: bool = False,
        meta: Mapping[str, Any] | None = None,
        **options: Unpack[LiveOptions],
    ) -> None:
        if task_profile not in get_args(TaskProfile):
            raise ValueError(f"task_profile must be one of {', '.join(get_args(TaskProfile))}, not {task_profile!r}")
        if spectral_every is not None and spectral_every < 1:
            raise ValueError(f"spectral_every must be at least 1 step, not {spectral_every}")
        self._run = LiveRun(**options)
        self._path = None if path is None else Path(path)
        self._given = ConfigSnapshot(dataset_name=dataset_name, task_profile=task_profile, notes=notes)
        self._meta = dict(meta or {})
        self._spectral_every, self._wants_receipt, self._data = spectral_every, receipt, data
        self._batches: BatchWatch | None = None
        self._data_recorded = False
        self._fed: Values = {}
        self._program: Values = {}
        self._finalizer: weakref.finalize[[], GradienceCallback] | None = None
        self._batch_size: int | None = None
        self._early: list[tuple[int, str, Values]] = []
        self._last_eval: tuple[int, dict[str, list[Any]]] | None = None
        self._last_row: Any = None
        self._probed: int | None = None

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
        self._run.recorder.close_interrupted()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # theirs
        """Open the log, or continue it; on every process, judge the rows if training may have to stop."""
        run, main = self._run, state.is_world_process_zero
        # Each `train()` makes a state of its own: the same one again is the same training.
        if run.recorder.records(state):
            run.recorder.warn("this callback was given to the Trainer twice: each event is recorded once")
            return
        if not run.judges(main=main):
            return
        with run.recorder:
            self._begin(args, state, kwargs)
        if main and not run.recorder.joined:
            with run.recorder:
                self._watch_batches(args, kwargs)
        run.watch(
            kwargs["model"],
            kwargs.get("optimizer"),
            step=state.global_step,
            schedule=kwargs.get("lr_scheduler"),
            data=lambda: _data_wiring(args, state, kwargs.get("train_dataloader")),
        )
        _obey(run.heed(state.global_step), control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Record a row that the Trainer logs: a step, evaluations or the summary, told apart by its keys."""
        # The same row comes twice where one callback was given to the Trainer twice.
        if self._run.recorder.joined or (logs is self._last_row and logs is not None):
            return
        self._last_row = logs
        if self._run.judges(main=state.is_world_process_zero):
            with self._run.recorder:
                # The row is copied, because all callbacks share it and some take values out of it.
                row = dict(logs or {})
                if "train_runtime" in row:
                    _restore_total_flos(row, state.log_history)
                self._take_row(state.global_step, row, kwargs, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Record the evaluation, unless `on_log` already got its row."""
        if self._run.recorder.joined or not self._run.judges(main=state.is_world_process_zero):
            return
        step = state.global_step
        with self._run.recorder:
            _obey(self._run.evaluated(step, of=step), control)
            self._take_evals(step, split_row(dict(metrics or {})).evals, kwargs.get("eval_dataloader"), control)

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        """Record a prediction's metrics as an evaluation of its split."""
        self.on_evaluate(args, state, control, metrics, **kwargs)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Start counting repeated rows anew: rows that come again in a new epoch are not counted as repeated."""
        if self._batches is not None:
            self._batches.new_epoch()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Note how long the step waited for its batches."""
        self._run.step_begins()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Record the first batches' counts; audit the adapter if it is due."""
        step = state.global_step
        _obey(self._run.step_ended(step), control)
        if self._batches is not None and not self._data_recorded and self._batches.settled:
            _obey(self._record_data(step), control)
        if self._spectral_every and step % self._spectral_every == 0 and step != self._probed:
            self._probed = step
            if state.is_world_process_zero and not self._run.recorder.joined:
                with self._run.recorder:
                    self._probe(step, kwargs["model"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Record what is trained at a save, and what the checkpoint's adapter file holds."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        _obey(self._run.saved(state.global_step, folder), control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # theirs
        """Close the run; later evaluations are still recorded."""
        if self._batches is not None:
            self._record_data(state.global_step)
            self._batches.close()
            self._batches = None
        self._run.end(state.global_step, state.max_steps)
        if self._wants_receipt and self._run.recorder.log is not None and state.is_world_process_zero:
            with self._run.recorder:
                self._write_receipt(args, kwargs)
        self._run.tell_story()

    def _write_receipt(self, args: Any, shown: Mapping[str, Any]) -> None:
        from gradience.hf.receipt import write_at_end  # only where asked for

        log = self._path or Path(args.output_dir) / "run.jsonl"
        rows = shown.get("eval_dataloader") or shown.get("train_dataloader")
        try:
            write_at_end(shown["model"], shown.get("processing_class"), rows, log)
        except GradienceError as error:
            self._run.recorder.warn(f"no receipt is written: {error.message}")

    def _begin(self, args: Any, state: Any, shown: Mapping[str, Any]) -> None:
        recorder, size = self._run.recorder, batch_size(args, state)
        # After too little memory the Trainer begins again without an end of training.
        restart = recorder.in_run and bool(args.auto_find_batch_size) and size != self._batch_size
        self._batch_size = size
        if not restart:
            self._last_eval, self._probed = None, None
        if self._finalizer is None:
            # It is a method of the recorder: one of this object would keep it alive until the program ends.
            self._finalizer = weakref.finalize(self, recorder.close_interrupted)  # freed, or the program ends
        self._run.begin(
            self._path or Path(args.output_dir) / "run.jsonl",
            self._config(args, state, shown),
            {
                **run_meta("transformers", str(args.device.type)),
                **({"restarted_by": "auto_find_batch_size"} if restart else {}),
                **self._meta,
            },
            training=state,
            step=state.global_step,
            main=state.is_world_process_zero,
            restart=restart,
        )
        early, self._early = self._early, []
        for step, split, metrics in early:
            self._write_eval(step, split, metrics)

    def _config(self, args: Any, state: Any, shown: Mapping[str, Any]) -> ConfigSnapshot:
        """Return the run's configuration; if it cannot be read, only the part that the user gave."""
        parts = {name: shown.get(name) for name in ("model", "optimizer", "train_dataloader")}
        try:
            return config_snapshot(args, state, self._given, **parts)
        except Exception as error:  # noqa: BLE001  # foreign objects may raise anything; record the run without its config
            self._run.recorder.warn(f"the configuration could not be read, and is not recorded: {type(error).__name__}")
            return msgspec.structs.replace(self._given, extras={"snapshot_failed": type(error).__name__})

    def _take_row(self, step: int, row: Values, shown: Mapping[str, Any], control: Any) -> None:
        if (plain := plain_columns(row)) is not None:
            _obey(self._run.row(step, plain, {}), control)
            return
        parts = split_row(row)
        # The Trainer puts the epoch into every row; alone it is no row of training.
        if parts.train.keys() - {"epoch"}:
            _obey(self._run.row(step, *train_columns(parts.train)), control)
        if parts.evals:
            alone = len(parts.evals) == 1 and not parts.train  # else the row's splits have other loaders
            self._take_evals(step, parts.evals, shown.get("eval_dataloader") if alone else None, control)
        if parts.summary:
            self._record_metrics(step, "train_summary", {key: described(item) for key, item in parts.summary.items()})

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
            if self._run.began:
                _obey(self._run.evaluation(step, split, metrics), control)
            else:
                self._early.append((step, split, metrics))  # evaluated before the run began: written once it does

    def _write_eval(self, step: int, split: str, metrics: Values) -> None:
        self._run.recorder.record(lambda log: log.eval(step, split=split, metrics=metrics))

    def _record_metrics(self, step: int, kind: str, metrics: Values) -> None:
        self._run.recorder.record(lambda log: log.metrics(step, kind=kind, metrics=metrics))

    def _probe(self, step: int, model: Any) -> None:
        from gradience.hf.probe import spectral_metrics  # only where asked for

        self._record_metrics(step, "spectral", spectral_metrics(model))

    def _watch_batches(self, args: Any, shown: Mapping[str, Any]) -> None:
        """Begin to count what the model is fed; first remove the hook of an earlier training."""
        if self._batches is not None:
            self._batches.close()
        self._batches, self._data_recorded = None, False
        if self._data:
            length, tokenizer = getattr(args, "max_length", None), shown.get("processing_class")
            length = self._program.get("max_length", length)
            self._batches = watch_batches(shown["model"], max_length=length, tokenizer=tokenizer)
            digest = template_digest(getattr(tokenizer, "chat_template", None))
            self._fed = {**self._program, **({"template_digest": digest} if digest else {})}

    def _record_data(self, step: int) -> bool:
        """Record the counts of the batches, and what a check of the data announced; whether training is to stop."""
        assert self._batches is not None  # noqa: S101  # both callers know it
        self._data_recorded = True
        report = self._data.data if isinstance(self._data, CheckReport) else None
        announced = {} if report is None else {"announced": announced_by(report)}
        return self._run.fed(step, {**self._fed, **self._batches.values(), **announced})


def _obey(stop: bool, control: Any) -> None:  # noqa: FBT001  # whether to
    if stop:
        control.should_training_stop = True


def _data_wiring(args: Any, state: Any, loader: Any) -> DataWiring | None:
    """Return what decides the rows of a step, by a Trainer's arguments and its loader."""
    # The Trainer seeds its sampler in the same way.
    seed = args.data_seed if getattr(args, "data_seed", None) is not None else args.seed
    return data_of(
        loader,
        batch_size=batch_size(args, state),
        accumulation=args.gradient_accumulation_steps,
        world_size=args.world_size,
        seed=seed,
        skips=not args.ignore_data_skip,
    )


def _restore_total_flos(row: Values, history: list[Values]) -> None:
    """Put `total_flos` back into the summary row: an earlier callback such as `PrinterCallback` popped it."""
    if "loss" not in row and history and "total_flos" in history[-1]:
        row.setdefault("total_flos", history[-1]["total_flos"])
