"""Names that were probably meant to be ours, and logs that are valid and say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tables import every

from gradience.cli.main import main
from gradience.telemetry.near import ALIASES
from gradience.telemetry.reader import validate_log

HEAD: dict[str, Any] = {"schema": "gradience.vnext.telemetry/v1", "ts": 1.0, "run_id": "r", "step": 1}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def warned(log: Path, *lines: dict[str, Any]) -> list[str]:
    log.write_text("".join(json.dumps({**HEAD, **line}) + "\n" for line in lines))
    return validate_log(log).warnings


def row(**values: Any) -> dict[str, Any]:
    return {"event": "train_step", **values}


ROW = row(loss=0.5)
FROM_EVAL = "readers take it from an `eval` event:"
READ_BY_NOBODY = "no event holds a value that a reader uses: valid, and monitor has nothing to show"


@every(
    ("line", "said"),
    [
        (row(train_loss=1.0), "`train_loss` of train_step, in 1 line: no reader knows it; perhaps `loss` is meant"),
        (row(learning_rate=1.0), "`learning_rate` of train_step, in 1 line: no reader knows it; perhaps `lr` is meant"),
        (row(learningRate=1.0), "`learningRate` of train_step, in 1 line: no reader knows it; perhaps `lr` is meant"),
        (row(**{"train/loss": 1}),
         "`train/loss` of train_step, in 1 line: no reader knows it; perhaps `loss` is meant"),
        (row(Loss=1), "`Loss` of train_step, in 1 line: no reader knows it; perhaps `loss` is meant"),
        (row(grad_nrom=1), "`grad_nrom` of train_step, in 1 line: no reader knows it; perhaps `grad_norm` is meant"),
        (row(eval_loss=1.0),
         "`eval_loss` of train_step, in 1 line: readers take it from an `eval` event: split `eval`, metrics `loss`"),
        (row(val_accuracy=1.0),
         f"`val_accuracy` of train_step, in 1 line: {FROM_EVAL} split `val`, metrics `accuracy`"),
        ({"event": "trainstep"}, "event `trainstep`, in 1 line: no reader knows it; perhaps `train_step` is meant"),
        ({"event": "Train-Step"}, "event `Train-Step`, in 1 line: no reader knows it; perhaps `train_step` is meant"),
        ({"event": "validation"}, "event `validation`, in 1 line: no reader knows it; perhaps `eval` is meant"),
        ({"event": "eval", "split": "test", "metrics": {"eval_loss": 1.0}},
         "`eval_loss` of eval.metrics, in 1 line: no reader knows it; perhaps `loss` is meant"),
        ({"event": "run_start", "config": {"lora": {"rank": 8}}},
         "`rank` of run_start.config.lora, in 1 line: no reader knows it; perhaps `r` is meant"),
        ({"event": "run_start", "config": {"model": "m"}},
         "`model` of run_start.config, in 1 line: no reader knows it; perhaps `model_name` is meant"),
    ],
)  # fmt: skip
def test_a_near_miss_is_named(log, line, said):
    assert said in warned(log, ROW, line)


@every(
    "line",
    [
        row(loss=0.5, train_loss=0.5),  # the known name is there
        row(loss=0.5, tokens=1, reward=2, kl=0.1, aux_loss=1, entropy=3, step_time=0.5),
        row(loss=0.5, **{"rewards/margins": 1}),
        row(loss="1.5", loss_=None),
        row(loss=0.5, grad_norm_="n/a"),  # our own name for a value that was no number
        {"event": "checkpoint"},
        {"event": "eval", "split": "test", "metrics": {"loss": 0.5, "f1": 0.5, "runtime": 3}},
        {"event": "run_start", "config": {"training": {"batch_size": 8, "eval_steps": 10, "extras": {"x": 1}}}},
    ],
)
def test_what_is_no_near_miss_is_left_alone(log, line):
    assert warned(log, ROW, line) == []


def test_a_log_without_a_value_that_a_reader_uses_says_so_and_is_valid(log, capsys):
    lines = [{"event": "run_start", "config": {}}, row(entropy=1.0), {"event": "run_end", "status": "ok"}]
    assert warned(log, *lines) == [READ_BY_NOBODY]
    assert main(["validate", str(log)]) == 0
    assert f"  warning: {READ_BY_NOBODY}\n" in capsys.readouterr().out


@every("line", [row(loss=None), row(entropy=1), {"event": "metrics", "kind": "mine", "metrics": {"a": 1}}])
def test_a_null_and_what_no_reader_knows_are_not_enough(log, line):
    assert READ_BY_NOBODY in warned(log, line)


def test_rows_without_a_known_value_are_counted_beside_what_is_used(log):
    said = "no train_step has loss, lr, grad_norm or epoch, in 2 lines: no reader uses them"
    start = {"event": "run_start", "config": {"model_name": "m"}}
    assert warned(log, start, row(x=1), row(y=1)) == [said]
    assert warned(log, start, row(x=1), row(lr=1)) == []


def test_a_million_names_are_not_kept(log):
    lines = [row(**{f"metric_{i}": 1.0}) for i in range(3000)]
    assert warned(log, *lines) == []  # with so many nothing is known of all


def test_a_missing_field_and_an_unknown_value_say_what_was_probably_meant(log, capsys):
    head = {key: value for key, value in HEAD.items() if key != "ts"}
    lines = [
        {**head, "timestamp": 1, "event": "train_step", "loss": 1},
        {**HEAD, "event": "run_end", "status": "Success"},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [bad.hint for bad in validate_log(log).issues] == [
        "perhaps `timestamp` is meant as `ts`",
        "perhaps `ok` is meant",
    ]
    assert main(["validate", str(log)]) == 2
    assert "line 1, $.ts: expected a value (required), got nothing (perhaps `timestamp` is meant as `ts`)" in (
        capsys.readouterr().out
    )


def test_no_alias_is_that_of_two_fields():
    for level, fields in ALIASES.items():
        names = [alias for field, aliases in fields.items() for alias in (field, *aliases)]
        assert len(names) == len(set(names)), level


def test_several_logs_are_checked_and_one_that_cannot_be_read_is_named(log, tmp_path, capsys):
    warned(log, ROW)
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    missing = tmp_path / "missing.jsonl"
    assert main(["validate", str(log), str(log)]) == 0
    assert capsys.readouterr().out.count("valid, 1 line") == 2
    assert main(["validate", str(log), str(bad), str(missing)]) == 2
    said = capsys.readouterr().out
    assert f"{log}: valid, 1 line" in said
    assert f"{bad}: not valid" in said
    assert f"{missing}: cannot be read: cannot read {missing}: No such file" in said
    assert main(["validate", "--json", str(log), str(missing)]) == 2
    report = json.loads(capsys.readouterr().out)
    assert (report["schema"], report["valid"], [one["valid"] for one in report["logs"]]) == (
        "gradience.validate-logs/v2",
        False,
        [True, False],
    )
    assert main(["validate"]) == 2
    assert "no log to check" in capsys.readouterr().err
