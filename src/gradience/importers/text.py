"""Logs in a trainer's own form: printed lines, JSON lines, or statistics.

The steps that torchtune (DiskLogger), MLX-LM (sentences, and the table of newer versions), Megatron, NeMo, verl,
OpenRLHF and MMEngine (which XTuner trains with) print are read from their output. A mark of each is anchored to the
line's beginning, behind what a launcher puts there, so that no program's line is taken for another's. LLaMA-Factory and
ms-swift write one JSON object a line. Ludwig's `training_statistics.json` holds lists by split, output feature and
metric, with one value per evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final, Literal, NamedTuple, TypeAlias

from gradience.errors import RecorderError
from gradience.importers.files import MAX_ROWS, LoggedRow, SourceRun, count_of, json_lines, require_file, whole_json
from gradience.importers.loops import EXAMPLE, is_loop, loop_rows
from gradience.importers.table import Numbered, cell_value, rows_to_raw
from gradience.io.reading import open_regular
from gradience.names import NAMES
from gradience.schema import Json
from gradience.schema.values import step_of

_HEAD: Final = 1 << 20  # bytes searched for a step: Megatron prints some 20 KB of arguments first
_MAX_LINE: Final = 64 * 1024
_ANSI: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_BEGUN: Final = "begun"  # the line begins a step of so many, whose values stand in lines below
_BELOW: Final = "below"  # such a line
_COUNTED: Final = "counted"  # in place of a step: the row is of the step after the last row's
_ENGINE: Final = "engine"  # a line of the engine below a program, whose steps may be others than the program's
_SCALED: Final = "actor/lr(1e-4)"  # the rate as older versions of verl print it: in units of 1e-4
_Row = dict[str, Json]

_PLACE: Final = "global_step/max_steps"  # ms-swift: "12/100"
_PROGRESS: Final = frozenset({"percentage", "remaining_time"})  # derived from the step, so not copied
_COUNTERS: Final = frozenset({"current_steps", "total_steps", "step", "global_step", _PLACE})
_IDLE: Final = frozenset(
    {
        "epoch",
        "elapsed_time",
        "total_tokens",
        "throughput",
        "memory(GiB)",
        "train_speed(s/it)",
        "vram_allocated",
        "vram_reserved",
    }
)
_SHOWN: Final = 5
_CLOSING: Final = "log_history"  # ms-swift's last line repeats all rows

_SPLITS: Final = {"training": "", "validation": "val_", "test": "test_"}
_COMBINED: Final = "combined"  # all output features together; its loss is the one minimised
_TRIPLE: Final = 3  # an unflattened metric is (epoch, step, value)


def is_text_log(path: Path) -> bool:
    """Whether the beginning of the file has a step as a known trainer prints it, or two as one's own loop does."""
    try:
        with open_regular(path) as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    lines = _ANSI.sub("", head.decode("utf-8", "replace")).splitlines()
    return b"\0" not in head and (any(map(_is_step, lines)) or is_loop(lines))


def _is_step(line: str) -> bool:
    row = _row(line)
    return row is not None and _BELOW not in row


def _is_program(line: str) -> bool:
    row = _row(line)
    return row is not None and _ENGINE not in row


def read_text(path: Path, columns: Mapping[str, str] | None = None) -> SourceRun:
    """Return the run whose steps are printed in the file among other lines.

    Raises:
        RecorderError: no line is a step as one of these programs prints it.
    """
    require_file(path)
    raw = SourceRun(path, files=[path])
    rows = _rows(raw, path)
    first = next(rows, None)
    if first is None:
        with open_regular(path) as file:
            rows = loop_rows(raw, path, _lines(file))
            first = next(rows, None)
    if first is None:
        message = f"{path}: no line is a step as {_PROGRAMS} print it, or {EXAMPLE}"
        raise RecorderError(message, advice="give the trainer's own log, or a table of its values")
    return rows_to_raw(raw, chain([first], rows), columns)


def _rows(raw: SourceRun, path: Path) -> Iterator[Numbered]:
    last = 0
    counted: _Row = {}
    begun = False
    alone: bool | None = None  # whether an engine's lines are all that there is
    with open_regular(path) as file:
        # A progress bar may draw a whole run on one line, which is then read in pieces.
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), 1):
            for row in _printed(line):
                if row.pop(_ENGINE, False):
                    alone = _of_engine_alone(path) if alone is None else alone
                    if not alone:
                        continue
                if (of := row.pop(_BEGUN, None)) is not None:
                    begun, last, raw.planned = True, step_of(row["step"]) or last, count_of(of) or raw.planned
                    continue
                if row.pop(_BELOW, False) and not begun:
                    continue  # somebody else's list
                if row.pop(_COUNTED, False):
                    if row == counted:
                        continue  # the bar's last state, drawn again
                    counted = dict(row)
                    last += 1
                row.setdefault("step", last)
                last = step_of(row["step"]) or last
                raw.planned = count_of(row.pop("planned", None)) or raw.planned
                yield number, row


def _of_engine_alone(path: Path) -> bool:
    """Whether no program prints steps of its own. OpenRLHF's are others than those of DeepSpeed below it."""
    with open_regular(path) as file:
        return not any(_is_program(part) for _, part in _lines(file))


def _lines(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """The lines with their numbers, and a line drawn anew as several."""
    return ((n, part) for n, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), 1) for part in _parts(line))


def _parts(line: bytes) -> list[str]:
    """What a line shows one after the other: a progress bar draws itself anew behind each carriage return."""
    return _ANSI.sub("", line.decode("utf-8", "replace")).rstrip("\r\n").split("\r")


def _printed(line: bytes) -> list[_Row]:
    """The rows in a line. A progress bar draws its last state twice."""
    rows: list[_Row] = []
    for part in _parts(line):
        row = _row(part)
        if row is not None and row not in rows:
            rows.append(row)
    return rows


def _row(line: str) -> _Row | None:
    """Return the values of a line that prints a step, named as the columns of a table; None for any other line."""
    return next((row for read in _READERS if (row := read(line)) is not None), None)


class _Dialect(NamedTuple):
    """How a program prints a step.

    Groups of the line are its `step`, `planned` steps and `values`, which are pairs; any other group is a column. A
    line without a step is counted.
    """

    line: re.Pattern[str]
    pair: re.Pattern[str]  # a name, and its number
    names: Mapping[str, str] = MappingProxyType({})  # columns by the program's name
    others: bool = True  # whether values of other names are kept
    is_engine: bool = False


def _read(dialect: _Dialect, line: str) -> _Row | None:
    hit = dialect.line.match(line)
    if hit is None:
        return None
    parts = {name: text for name, text in hit.groupdict().items() if text is not None}
    names, pairs = dialect.names, ((n.strip(), text) for n, text in dialect.pair.findall(parts.pop("values", "")))
    row = {names.get(n, n): cell_value(text) for n, text in pairs if n and (dialect.others or n in names)}
    row |= {name: cell_value(text.replace(",", "")) for name, text in parts.items()}
    if isinstance(scaled := row.pop(_SCALED, None), int | float):
        row["actor/lr"] = scaled * 1e-4
    if row.keys() <= {"step", "planned"}:
        return None
    if dialect.is_engine:
        row[_ENGINE] = True
    if "step" not in row:
        return {**row, _COUNTED: True}
    row["step"] = row.pop("global_step", row["step"])  # as NeMo, which counts iterations anew in each epoch
    return row


# what a launcher puts before a line: Ray's `(Actor pid=1, ip=1.2.3.4)`, a time or rank in brackets, srun's `0:`
_LEAD: Final = r" *(?:\([^()]*pid=[^()]*\) *|\[[^\[\]]*\]:? *|\d{1,6}: +)*"
_STEP: Final = r"(?P<step>\d{1,15})"
_OF: Final = r"(?P<planned>\d{1,15})"
# NumPy 2 prints a scalar with its type, as np.float64(0.1).
_FLOAT: Final = r"(?:np\.float(?:32|64)\()?([-+\w.]+)"
# OpenRLHF's logger (openrlhf/utils/logging_utils.py): level, month and day, time, and the place; before it, the place
_LOGGED: Final = r"(?:(?:[A-Z]+ +\d\d-\d\d +\d\d:\d\d:\d\d +)?\S+\.py:\d+\] *)?"
_BETWEEN_BARS: Final = re.compile(r"(?:^|\|)([^|]*):([^|:]*)")
_DIALECTS: Final = (
    _Dialect(  # torchtune: `Step 1 | loss:1.5 lr:0.0003 tokens_per_second_per_gpu:12.5`
        re.compile(rf"\s*Step {_STEP} \| (?P<values>\S+:.*)"), re.compile(r"(?<!\S)(\S+):([^\s:]*)")
    ),
    _Dialect(  # MLX-LM: `Iter 10: Train loss 2.1, Learning Rate 1.000e-05, It/sec 0.5`
        re.compile(rf"\s*Iter {_STEP}: (?P<values>(?:Train|Val) loss .*)"),
        re.compile(r"(?:^|,)\s*([A-Za-z][A-Za-z /]*?) ([-+\d.eE]+|nan|inf)(?: ?[A-Za-z]*)?\s*(?=,|$)"),
        NAMES.printed["MLX-LM"],
    ),
    _Dialect(  # its table: `  10    2.100 \u25bc    1,234     12.3k`; `   1    val 3.000    1.20s`
        re.compile(
            rf" *{_STEP} {{2,}}(?:val (?P<val_loss>[\d.]+|nan|inf) {{2,}}[\d.]+s"
            r"|(?P<loss>[\d.]+|nan|inf) [\u25b2\u25bc] {2,}(?P<tokens_per_second>[\d,]+) {2,}[\d.]+k) *$"
        ),
        _BETWEEN_BARS,
    ),
    _Dialect(  # Megatron: ` iteration 10/ 100 | learning rate: 1.5E-04 | lm loss: 1.0E+00 | grad norm: 1.0 |`
        re.compile(rf"{_LEAD}iteration +{_STEP}/ *{_OF} \|(?P<values>.*)"), _BETWEEN_BARS
    ),
    *(
        _Dialect(
            re.compile(rf"{_LEAD}{split} loss at iteration {_STEP}[^|]*\|(?P<values>.*)"),
            _BETWEEN_BARS,
            {"lm loss value": f"{ours}_loss", "lm loss PPL": f"{ours}_ppl"},
            others=False,
        )
        for split, ours in (("validation", "val"), ("test", "test"))
    ),
    _Dialect(  # NeMo: `Training epoch 0, iteration 9/99 | lr: 3e-04 | global_step: 9 | reduced_train_loss: 1.5`
        re.compile(rf"{_LEAD}Training epoch \d+, iteration {_STEP}/\d{{1,15}} \| (?P<values>.*)"), _BETWEEN_BARS
    ),
    _Dialect(  # verl: `step:1 - actor/pg_loss:-0.003 - critic/rewards/mean:0.08`; before 0.3 a rate of three decimals
        re.compile(rf"{_LEAD}step:{_STEP} - (?P<values>[\w-]+/\S+:\S.*)"),
        re.compile(rf"(?:^| - )(?!actor/lr:0\.000(?: |$))(\S+):{_FLOAT}\)?\s*(?= - |$)"),
    ),
    *(
        _Dialect(re.compile(rf"{_LEAD}{_LOGGED}(?:\u2728 )?{line}"), re.compile(rf"'([^']+)': {_FLOAT}"))
        for line in (
            # OpenRLHF: `INFO 11-30 10:00:00 ppo_trainer.py:547] Global step 1: {'policy_loss': 0.1, 'actor_lr': 5e-07}`
            rf"Global step {_STEP}: \{{(?P<values>.*)\}}",
            # and `... Evaluation completed in 0:01:02, global_step 1, eval_metrics: {'eval_math_pass1': 0.5}`
            rf"Evaluation completed in [^{{}}]*, global_step {_STEP}, eval_metrics: \{{(?P<values>.*)\}}",
            rf"Eval at step {_STEP}: \{{(?P<values>.*)\}}",
        )
    ),
    _Dialect(  # before, a bar for each step: `Train epoch [1/1]: 100%|###| 2/2 [00:03<00:00, pg=0.161, glen=126]`
        re.compile(
            rf"{_LEAD}Train epoch \[\d+/\d+\]: +100%\|[^|]*\| (\d+)/\1 \[[^,\]]*(?:, +\S+/s\S*)?,(?P<values> .*)\]"
        ),
        re.compile(r"(?:^|,) *([^=,]+)=([^,]*)"),
        NAMES.printed["OpenRLHF"],
        others=False,
    ),
    _Dialect(  # prime-rl: `10:31:02 SUCCESS Step 3 | Time: 35.70s | Reward: 0.8529 | Seq. Length: 1455.6 tokens/sample`
        re.compile(rf".*?\bStep {_STEP} \| Time: [\d.]+s \| (?P<values>.*)"),
        re.compile(r"(?:^|\| )([^|:]+): ([^\s|]+)"),
        NAMES.printed["prime-rl"],
        others=False,
    ),
    # DeepSpeed (deepspeed/utils/logging.py): `[time] [INFO] [logging.py:107:log_dist] [Rank 0] step=10, skipped=0, ...`
    _Dialect(
        re.compile(rf"{_LEAD}step={_STEP}, (?P<values>skipped=\d+, lr=\[.*)"),
        re.compile(rf"(?:^|, )(skipped|lr)=\[?{_FLOAT}"),
        NAMES.printed["DeepSpeed"],
        others=False,
        is_engine=True,
    ),
    _Dialect(  # its pipelines: `steps: 10 loss: 2.5000 iter time (s): 0.500 samples/sec: 16.000`
        re.compile(rf"{_LEAD}steps: {_STEP} (?P<values>loss: .* iter time \(s\): .*)"),
        re.compile(rf"(?:^| )([A-Za-z_][\w/]*(?: time \(s\))?): {_FLOAT}"),
        NAMES.printed["DeepSpeed"],
        is_engine=True,
    ),
)
_NEMO_RL: Final = re.compile(r"={25} Step (\d{1,15})/(\d{1,15}) ={25}")
_NEMO_RL_VALUE: Final = re.compile(_LEAD + r"\u2022 ([A-Z][A-Za-z ]*): ([-\d.]+|nan|inf)")
_NEMO_RL_NAMES: Final = NAMES.printed["NeMo-RL"]
_MMENGINE: Final = re.compile(
    r"(?:\d{4}/)?\d\d/\d\d \d\d:\d\d:\d\d - mmengine - INFO - "
    r"(?:Iter\((train|val|test)\) *\[ *(\d{1,15})/ *(\d{1,15})\]"
    r"|Epoch\((train|val|test)\) *\[ *(\d{1,15})\]\[ *(\d{1,15})/ *(\d{1,15})\]) +(.*)"
)
_MMENGINE_PAIR: Final = re.compile(r"([A-Za-z_][\w./@-]*): (-?\d[\d.]*(?:e[-+]?\d+)?|nan|-?inf)(?=\s|$)")
_MMENGINE_IDLE: Final = frozenset({"eta", "time", "data_time", "memory"})


def _nemo_rl(line: str) -> _Row | None:
    """`===== Step 3/100 =====`, each with 25 signs, and below it lines such as `  \u2022 Avg Reward: 0.5`."""
    if hit := _NEMO_RL.search(line):
        return {"step": int(hit[1]), _BEGUN: int(hit[2])}
    hit = _NEMO_RL_VALUE.match(line)
    if hit is None or hit[1] not in _NEMO_RL_NAMES:
        return None
    return {_NEMO_RL_NAMES[hit[1]]: cell_value(hit[2]), _BELOW: True}


def _mmengine(line: str) -> _Row | None:
    """`05/04 08:52:19 - mmengine - INFO - Iter(train) [  20/1920]  lr: 6.8e-05  loss: 2.8  grad_norm: 4.1`.

    `Epoch(train)  [2][ 50/100]` is step 150. An evaluation names no step: it is of the last one.
    """
    hit = _MMENGINE.match(line)
    if hit is None:
        return None
    values: _Row = {
        name: cell_value(text) for name, text in _MMENGINE_PAIR.findall(hit[8]) if name not in _MMENGINE_IDLE
    }
    split = hit[1] or hit[4]
    if split != "train":
        split = "eval" if split == "val" else split
        return {f"{split}_{name}": value for name, value in values.items()} or None
    if hit[2]:
        return {**values, "step": int(hit[2]), "planned": int(hit[3])}
    return {**values, "step": (int(hit[5]) - 1) * int(hit[7]) + int(hit[6]), "epoch": int(hit[5])}


_READERS: Final[tuple[Callable[[str], _Row | None], ...]] = (
    *(partial(_read, dialect) for dialect in _DIALECTS),
    *(_mmengine, _nemo_rl),
)
_PROGRAMS: Final = (
    "torchtune, MLX-LM, Megatron, NeMo, NeMo-RL, verl, OpenRLHF, prime-rl, DeepSpeed or MMEngine (XTuner)"
)

Dialect: TypeAlias = Literal["llama-factory", "ms-swift"]


def dialect_of(row: dict[str, Json]) -> Dialect | None:
    """Return the program that logged a row, judged by its keys, or None.

    >>> dialect_of({"current_steps": 5, "total_steps": 10, "loss": 1.0}), dialect_of({"step": 5, "loss": 1.0})
    ('llama-factory', None)
    """
    if isinstance(row.get(_PLACE), str):
        return "ms-swift"
    if "total_steps" in row and ("current_steps" in row or "step" in row):
        return "llama-factory"
    return None


def read_json_lines(path: Path) -> SourceRun:
    """Return the run of the log; lines that are not rows are listed as skipped.

    Raises:
        RecorderError: the file cannot be read.
    """
    raw = SourceRun(path, files=[path])
    for place, row in json_lines(path):
        if isinstance(row, str):
            raw.skip(place, row)
        elif _CLOSING in row:
            raw.notes.append(f"line {place} repeats the whole history and was not read")
        else:
            _take_line(raw, place, row)
    idle = [row.place for row in raw.rows if row.values.keys() <= _IDLE]
    raw.rows = [row for row in raw.rows if not row.values.keys() <= _IDLE]
    if idle:
        lines = ", ".join(map(str, idle[:_SHOWN])) + (" ..." if len(idle) > _SHOWN else "")
        raw.notes.append(f"measured nothing, marks of progress only: line {lines}")
    raw.notes.append(f"not copied, for they follow from the step: {', '.join(sorted(_PROGRESS))}")
    return raw


def _take_line(raw: SourceRun, place: int, row: dict[str, Json]) -> None:
    step, planned = _counters(row)
    values = {k: v for k, v in row.items() if v is not None and k not in _COUNTERS | _PROGRESS}
    if step is None:
        raw.skip(place, "no step in it")
        return
    raw.planned = planned or raw.planned
    raw.reached = max(step, raw.reached or 0)
    raw.add(LoggedRow(place, step, values))


def _counters(row: dict[str, Json]) -> tuple[int | None, int | None]:
    """Return the step and the planned number of steps."""
    place = row.get(_PLACE)
    if isinstance(place, str):
        step, _, planned = place.partition("/")
        return step_of(step), count_of(planned)
    steps: Iterator[int] = (s for key in ("current_steps", "step") if (s := step_of(row.get(key))) is not None)
    return next(steps, None), count_of(row.get("total_steps"))


def is_ludwig(document: Mapping[str, Json]) -> bool:
    """Whether the document holds Ludwig's training statistics."""
    training = document.get("training")
    return isinstance(training, dict) and isinstance(training.get(_COMBINED), dict)


def read_ludwig(path: Path, columns: Mapping[str, str] | None = None) -> SourceRun:
    """Return the run, one row per evaluation. Steps count steps if Ludwig evaluated every so many, else epochs.

    Raises:
        RecorderError: the file holds no such statistics.
    """
    document = whole_json(path)
    if not isinstance(document, dict) or not is_ludwig(document):
        raise RecorderError(f"{path}: no training statistics of Ludwig", advice="give training_statistics.json")
    raw = SourceRun(path, unit="evaluation", files=[path])
    every, unit = _frequency(document.get("evaluation_frequency"))
    raw.notes.append(f"one value every {every} {unit}: steps are counted in {unit}")
    return rows_to_raw(raw, _evaluations(document, every), columns)


def _frequency(value: Json) -> tuple[int, str]:
    mapping = value if isinstance(value, dict) else {}
    if mapping.get("period") == "step" and (every := step_of(mapping.get("frequency"))):
        return every, "steps"
    return 1, "epochs"


def _evaluations(document: Mapping[str, Json], every: int) -> Iterator[Numbered]:
    columns = {name: values for split, prefix in _SPLITS.items() for name, values in _columns(document, split, prefix)}
    for place in range(1, min(max(map(len, columns.values()), default=0), MAX_ROWS) + 1):
        row = {name: _value(values[place - 1]) for name, values in columns.items() if len(values) >= place}
        yield place, {**row, "step": place * every}


def _columns(document: Mapping[str, Json], split: str, prefix: str) -> Iterator[tuple[str, list[Json]]]:
    features = document.get(split)
    for feature, metrics in features.items() if isinstance(features, dict) else ():
        for metric, values in metrics.items() if isinstance(metrics, dict) else ():
            if isinstance(values, list):
                yield f"{prefix}{metric}" if feature == _COMBINED else f"{prefix}{feature}_{metric}", values


def _value(value: Json) -> Json:
    return value[-1] if isinstance(value, list) and len(value) == _TRIPLE else value
