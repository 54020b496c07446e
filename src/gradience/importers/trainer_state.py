"""Read the Trainer's `trainer_state.json`, or join those that a run left in its checkpoints into one history.

Some settings of a run are in no config file. They are read from the state, from the Trainer's closing summary, and from
the names of logged values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Final

import msgspec

from gradience.configs.settings import Layer
from gradience.configs.training import STATE_NAME
from gradience.errors import RecorderError
from gradience.importers.files import LoggedRow, SourceRun, count_of, whole_json
from gradience.io import CHECKPOINT_PREFIX
from gradience.schema import Json, as_float
from gradience.schema.events import TELLING, ConfigSnapshot, TrainingSnapshot
from gradience.schema.reports import InputFile
from gradience.schema.values import finite_of, number_of, step_of
from gradience.telemetry.rows import split_row

MAX_STATES: Final = 500

_NAMES: Final = ("all_results.json", "train_results.json", "eval_results.json")
_COUNTS: Final = ("eval_samples", "test_samples", "predict_samples")

_ROUNDED: Final = 0.0005  # the Trainer rounds rates to three decimals
_MOST: Final = 2**20  # sequences per step; a larger quotient is not a batch size


def read_state(path: Path) -> SourceRun:
    """Return the rows of a trainer_state.json, and its counters.

    Raises:
        RecorderError: the file is not a trainer_state.json.
    """
    document = whole_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("log_history"), list):
        raise RecorderError(f"{path} has no list `log_history`", advice="give the trainer_state.json of a run")
    raw = history(path, document["log_history"])
    raw.planned, raw.reached = count_of(document.get("max_steps")), step_of(document.get("global_step"))
    raw.layer, raw.best = state_layer(document, path), best_of(document)
    return raw


def best_of(state: Mapping[str, Json]) -> dict[str, Json]:
    """Return the best value that the Trainer chose checkpoints by, and its step: `best_metric`, `best_step`."""
    checkpoint = state.get("best_model_checkpoint")
    # PureWindowsPath parts at both kinds of slash: the run may have been made on Windows.
    number = PureWindowsPath(checkpoint).name.removeprefix(CHECKPOINT_PREFIX) if isinstance(checkpoint, str) else None
    step = step_of(state.get("best_global_step")) or step_of(number)
    value = number_of(state.get("best_metric"))
    return {name: entry for name, entry in (("best_metric", value), ("best_step", step)) if entry is not None}


def history(path: Path, listed: Iterable[Json]) -> SourceRun:
    """Return the rows of a `log_history`. Entries that hold no measurement are listed as skipped."""
    raw = SourceRun(path, unit="row", files=[path])
    for place, row in enumerate(listed, 1):
        if isinstance(row, dict):
            values = {key: value for key, value in row.items() if key != "step" and value is not None}
            raw.take(place, row.get("step"), values, bare=True)
        else:
            raw.skip(place, "not a mapping")
    return raw


def find_states(folder: Path) -> list[Path]:
    """Return the folder's own trainer_state.json and those of its checkpoints, sorted by checkpoint number."""
    numbered = sorted(
        (step, child / STATE_NAME)
        for child in folder.glob(f"{CHECKPOINT_PREFIX}*")
        if (step := step_of(child.name.removeprefix(CHECKPOINT_PREFIX))) is not None and (child / STATE_NAME).is_file()
    )
    own = [folder / STATE_NAME] if (folder / STATE_NAME).is_file() else []
    return own + [path for _, path in numbered[-MAX_STATES:]]


def join_states(folder: Path, paths: list[Path]) -> list[SourceRun]:
    """Join the files into runs. Files that agree on their common steps belong to one run.

    The last run is that of the folder's own file, or else of the checkpoint that came furthest.

    Raises:
        RecorderError: none of the files can be read.
    """
    states, faults = _readable(paths)
    if not states:
        raise faults[0]
    states.sort(key=lambda state: (state.path.parent == folder, state.furthest), reverse=True)
    runs: list[list[SourceRun]] = []
    for state in states:
        home = next((run for run in runs if all(_agree(other, state) for other in run)), None)
        if home is None:
            runs.append([state])
        else:
            home.append(state)
    joined = [_union(folder, run) for run in reversed(runs)]
    joined[-1].notes += [f"not used: {fault.message}" for fault in faults]
    if len(runs) > 1:
        joined[-1].notes.append(_several_note(folder, runs))
    return joined


def _readable(paths: Iterable[Path]) -> tuple[list[SourceRun], list[RecorderError]]:
    states, faults = [], []
    for path in paths:
        try:
            states.append(read_state(path))
        except RecorderError as fault:
            faults.append(fault)
    return states, faults


def _agree(one: SourceRun, other: SourceRun) -> bool:
    """Whether two files can be of one run.

    They must have logged the same training row and the same evaluation at every common step. If both have training
    rows, there must be a common step; if there is none of either kind, they must have planned equally many steps.
    """
    first, second = _trained(one), _trained(other)
    evaluations, other_evaluations = _evaluated(one), _evaluated(other)
    trained, evaluated = first.keys() & second.keys(), evaluations.keys() & other_evaluations.keys()
    if not trained and not evaluated and one.planned != other.planned:
        return False
    return (
        all(first[step] == second[step] for step in trained)
        and all(evaluations[step] == other_evaluations[step] for step in evaluated)
        and (bool(trained) or not first or not second)
    )


def _trained(raw: SourceRun) -> dict[int, bytes]:
    # A copy of a state has its rows to the last digit, so whole rows are compared, and not losses alone.
    rows = (row for row in raw.rows if row.step is not None and "loss" in row.values)
    return {row.step: msgspec.json.encode(row.values, order="sorted") for row in rows if row.step is not None}


def _evaluated(raw: SourceRun) -> dict[int, Json]:
    """The held-out loss by step: the first one, because a restored model may be evaluated again at the last step."""
    losses: dict[int, Json] = {}
    for row in raw.rows:
        if row.step is not None and "eval_loss" in row.values:
            losses.setdefault(row.step, row.values["eval_loss"])
    return losses


def _union(folder: Path, states: list[SourceRun]) -> SourceRun:
    """Return the first file's run, with the rows that only the other files have inserted by step."""
    best, furthest = states[0], max(states, key=lambda state: state.furthest)
    reached = furthest.furthest  # before rows are added
    marks = {_mark(row) for row in best.rows}
    for other in states[1:]:
        added = [row for row in other.rows if _mark(row) not in marks]
        marks |= {_mark(row) for row in added}
        if not added:
            continue
        best.rows += added
        best.files.append(other.path)
        best.notes.append(f"{len(added)} rows come from {_short(folder, other.path)}: {best.path.name} lacks them")
    best.rows.sort(key=lambda row: -1 if row.step is None else row.step)
    best.planned, best.reached = furthest.planned or best.planned, reached
    best.layer, best.best, best.states = furthest.layer, furthest.best, states
    best.skipped += [skip for state in states[1:] for skip in state.skipped if state.path in best.files]
    if best.path.parent != folder:
        best.notes.append(f"no {STATE_NAME} beside the checkpoints: read {_short(folder, best.path)}, the furthest one")
    return best


def _mark(row: LoggedRow) -> bytes:
    return msgspec.json.encode((row.step, row.values), order="sorted")


def _short(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _several_note(folder: Path, runs: list[list[SourceRun]]) -> str:
    names = "; ".join(" + ".join(_short(folder, state.path) for state in run[:3]) for run in runs)
    return f"{len(runs)} runs in one folder, of different losses at the same steps; the first is shown: {names}"


def add_results(raw: SourceRun, folder: Path) -> None:
    """Add the summary and evaluations that the rows lack, from the folder's results files. They get no step."""
    for name in _NAMES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            document = whole_json(path)
        except RecorderError as error:
            raw.notes.append(f"{name} was not used: {error.message.removeprefix(f'{path}: ')}")
            continue
        if isinstance(document, dict):
            _add(raw, path, document)


def _add(raw: SourceRun, path: Path, results: dict[str, Json]) -> None:
    _count_examples(raw, results)
    added = [part for part in _parts(results) if not _is_there(raw, part)]
    if "train_runtime" in results and "train_loss" in results:
        raw.finished = True
    if not added:
        return
    raw.rows += [LoggedRow(0, None, part) for part in added]
    raw.files.append(path)
    raw.notes.append(f"{path.name} adds what {raw.path.name} lacks, without a step: {', '.join(map(_named, added))}")


def _parts(results: dict[str, Json]) -> list[dict[str, Json]]:
    summary = {k: v for k, v in results.items() if k.startswith("train_") or k == "total_flos"}
    rest = {k: v for k, v in results.items() if k not in summary and k not in {*_COUNTS, "epoch"}}
    parts = [{"total_flos": None, **summary}] if "train_runtime" in summary else []
    return parts + [
        {f"eval_{k}" if s == "eval" else f"{s}_{k}": v for k, v in m.items()} for s, m in split_row(rest).evals.items()
    ]


def _named(part: dict[str, Json]) -> str:
    return "the summary" if "total_flos" in part else " and ".join(split_row(part).evals)


def _is_there(raw: SourceRun, part: dict[str, Json]) -> bool:
    """Whether a row of the history already holds these results: the files repeat the history's last rows."""
    known = {key: value for key, value in part.items() if value is not None}
    shared = [key for key in known if key.endswith(("_loss", "_runtime"))] or list(known)
    return any(all(row.values.get(key) == known[key] for key in shared) for row in raw.rows)


def _count_examples(raw: SourceRun, results: dict[str, Json]) -> None:
    """Add the number of examples to the evaluations, if the script saved it."""
    n = results.get("eval_samples")
    if not isinstance(n, int) or isinstance(n, bool):
        return
    for place, row in enumerate(raw.rows):
        if "eval_loss" in row.values and "eval_n" not in row.values:
            raw.rows[place] = LoggedRow(row.place, row.step, {**row.values, "eval_n": n}, row.ts)


def state_layer(state: Mapping[str, Json], path: Path) -> Layer:
    """Return the settings in a trainer_state.json: run length, batch size and intervals."""
    batch, epochs = count_of(state.get("train_batch_size")), count_of(state.get("num_train_epochs"))
    training = TrainingSnapshot(
        max_steps=count_of(state.get("max_steps")),
        epochs=None if epochs is None else float(epochs),
        batch_size=batch,
        extras={} if batch is None else {"batch_from": STATE_NAME},  # one device's batch, without the accumulation
        logging_steps=_interval(state.get("logging_steps")),
        save_steps=_interval(state.get("save_steps")),
    )
    source = InputFile(role="trainer state", path=str(path))
    return Layer(config=ConfigSnapshot(training=training), sources=(source,))


def _interval(value: Json) -> float | None:
    """Return an interval in steps, or as a fraction of all steps; None if it is not a positive finite number."""
    interval = finite_of(value) if isinstance(value, int | float) else None
    return interval if interval is not None and interval > 0.0 else None


def shown_in_rows(raw: SourceRun, config: ConfigSnapshot) -> ConfigSnapshot:
    """Settings that are inferred from the rows, in the extras of the training settings.

    `logged_names` are the logged names that tell the task. `samples_per_step` is the number of sequences per step, only
    if no file states the accumulation.
    """
    extras: dict[str, Json] = {}
    names = sorted(TELLING & {name for row in raw.rows for name in row.values})
    if names:
        extras["logged_names"] = list(names)
    training = config.training
    summary = next((row.values for row in reversed(raw.rows) if "train_samples_per_second" in row.values), None)
    if training.gradient_accumulation is None and summary is not None:
        epochs = None if training.epochs is None else as_float(training.epochs)
        steps = raw.planned or training.planned_steps
        batch = samples_per_step(summary, steps=steps, epochs=epochs, micro_batch=training.batch_size)
        if batch is not None:
            extras["samples_per_step"] = batch
    return ConfigSnapshot(training=TrainingSnapshot(extras=extras))


def samples_per_step(
    summary: Mapping[str, Json], *, steps: int | None, epochs: float | None = None, micro_batch: int | None = None
) -> int | None:
    """Return the sequences per optimizer step over all processes; None if the summary fits several numbers.

    The Trainer counts samples as max_steps x batch, or as examples x epochs. In the latter case the last step of an
    epoch may be smaller, so the ratio is a little below the batch.

    Args:
        summary: has `train_samples_per_second`, and `train_steps_per_second` or `train_runtime`.
        steps: planned optimizer steps; with the runtime they are more exact than the rounded steps per second.
        epochs: planned epochs.
        micro_batch: sequences in one device's micro-batch; the sequences per step are a multiple of it.

    >>> samples_per_step({"train_samples_per_second": 26.2, "train_steps_per_second": 3.275}, steps=None)
    8
    """
    rate, pace = _number(summary, "train_samples_per_second"), _number(summary, "train_steps_per_second")
    runtime = _number(summary, "train_runtime")
    if rate is None or rate <= 0.0:
        return None
    error = _ROUNDED / rate
    if steps and runtime:
        ratio, error = rate * runtime / steps, error + _ROUNDED / runtime
    elif pace:
        ratio, error = rate / pace, error + _ROUNDED / pace
    else:
        return None
    low, high = ratio * (1.0 - error), ratio * (1.0 + error)
    exact = _only(low, high, micro_batch or 1)
    if exact is not None or not steps or not epochs:
        return exact
    per_epoch = steps / epochs
    if per_epoch <= 1.0:
        return None
    # Of p steps an epoch the last may have one example: p ratio >= (p - 1) B + 1 for the batch B.
    return _only(low, (high * per_epoch - 1.0) / (per_epoch - 1.0), micro_batch or 1)


def _only(low: float, high: float, unit: int) -> int | None:
    """Return the only multiple of `unit` between the bounds, or if several, the only power of two; else None."""
    if not 0.0 < low <= high < _MOST or unit < 1:
        return None
    multiples = range(math.ceil(low / unit) * unit, math.floor(high) + 1, unit)
    powers = [number for number in multiples if number & (number - 1) == 0] if len(multiples) < _MOST else []
    if len(multiples) == 1:
        return multiples[0]
    return powers[0] if len(powers) == 1 else None


def _number(values: Mapping[str, Json], key: str) -> float | None:
    number = number_of(values.get(key))
    return number if isinstance(number, float) and number > 0.0 else None
