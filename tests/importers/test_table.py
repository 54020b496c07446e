"""CSV, JSON lines and JSON lists, by the names of their columns or by a map."""

from __future__ import annotations

import pytest
from tables import every

from gradience.errors import RecorderError
from gradience.importers.files import clock_of
from gradience.importers.table import MAX_COLUMNS, find_columns, parse_map
from gradience.verbs.monitor.run import monitor_run


def test_a_map_names_columns_that_nobody_knows(tmp_path, import_events):
    path = tmp_path / "log.csv"
    path.write_text("n;objective;g;held\n1;2,5;1;3\n2;2.0;1;2.9\n")
    events, imported = import_events(path, columns=parse_map(["step=n,loss=objective", "grad_norm=g", "val.loss=held"]))
    assert events.losses == [None, 2.0]
    assert [e.extras for e in events.of("train_step")] == [{"loss_": "2,5"}, {}]
    assert [(e.split, e.metrics.loss) for e in events.of("eval")] == [("val", 3.0), ("val", 2.9)]
    assert "no numbers, kept as they are: loss (line 2)" in imported.notes


def test_nested_json_lines_have_dotted_columns(tmp_path, import_events, write_lines):
    path = write_lines(tmp_path / "m.jsonl", [{"it": s, "train": {"ce": 1 / s}, "lr": 1e-4} for s in (1, 2)])
    events, _ = import_events(path, columns=parse_map(["step=it", "loss=train.ce"]))
    assert (events.steps, events.losses) == ([1, 2], [1.0, 0.5])


@every(
    ("columns", "found"),
    [
        (["step", "loss"], {"step": "step", "loss": "loss"}),
        (["global_step", "train_loss", "lr-AdamW"], {"global_step": "step", "train_loss": "loss"}),
        (["trainer/global_step", "train/loss"], {"trainer/global_step": "step", "train/loss": "loss"}),
        (["Step", "Loss", "Learning Rate"], {"Step": "step", "Loss": "loss", "Learning Rate": "learning_rate"}),
        (["step", "val_loss", "val/acc"], {"val_loss": "val_loss", "val/acc": "val_accuracy"}),
        (["step", "loss", "train/epoch", "eval/g0_loss"], {"train/epoch": "epoch", "eval/g0_loss": "eval_g0_loss"}),
        (["step", "loss", "train_loss"], {"loss": "loss", "train_loss": "train_loss"}),
        (["step", "loss", "train/loss"], {"loss": "loss", "train/loss": "train/loss"}),
        (["step", "train/loss", "train_loss"], {"train/loss": "loss", "train_loss": "train_loss"}),  # the first counts
        (["step", "train_loss", "train/loss"], {"train_loss": "loss", "train/loss": "train/loss"}),
        (["step", "loss", "lr", "lr-AdamW"], {"lr": "learning_rate", "lr-AdamW": "lr-AdamW"}),  # one rate, not two
        (["step", "loss", "lr-a", "lr-b"], {"lr-a": "learning_rate", "lr-b": "learning_rate"}),
        (["step", "loss", "actor/lr", "critic/lr"], {"actor/lr": "learning_rate", "critic/lr": "critic/lr"}),
        (["step", "actor/pg_loss", "actor/grad_norm"], {"actor/pg_loss": "loss", "actor/grad_norm": "grad_norm"}),
        (["step", "policy_loss", "loss"], {"loss": "loss", "policy_loss": "policy_loss"}),
        (["step", "loss", "val-core/a/mean@1"], {"val-core/a/mean@1": "eval_a/mean@1"}),
        # Tinker's cookbook, supervised and RL; prime-rl; NeMo-RL; verl, whose steps W&B counts too
        (["step", "train_mean_nll", "test/nll"], {"train_mean_nll": "loss", "test/nll": "test_loss"}),
        (["progress/batch", "env/all/reward/total"], {"progress/batch": "step", "env/all/reward/total": "reward"}),
        (["step", "test/env/all/reward/total", "optim/lr"], {"test/env/all/reward/total": "test/reward"}),
        (
            ["step", "loss/mean", "reward/mean", "optim/grad_norm"],
            {"loss/mean": "loss", "optim/grad_norm": "grad_norm"},
        ),
        (["step", "loss/mean", "reward/mean", "progress/epoch"], {"reward/mean": "reward", "progress/epoch": "epoch"}),
        (["step", "train/loss", "validation/val_loss"], {"validation/val_loss": "validation_loss"}),
        (["training/global_step", "_step", "actor/pg_loss"], {"training/global_step": "step", "_step": "_step"}),
        (["step", "training/global_step", "actor/pg_loss"], {"step": "step"}),
        (["step", "reward", "reward/mean"], {"reward": "reward", "reward/mean": "reward/mean"}),
        (["step", "loss", "test_wer", "test/cer"], {"test_wer": "test_wer", "test/cer": "test/cer"}),
        (["step", "loss", "lr_scheduler"], {"lr_scheduler": "lr_scheduler"}),
        (["step", "dpo_loss", "accuracy"], {"dpo_loss": "loss", "accuracy": "rewards/accuracies"}),
        (["step", "train/preference_loss", "train/accuracy", "train/loss"], {"train/accuracy": "rewards/accuracies"}),
        (["step", "loss", "accuracy", "margin"], {"accuracy": "accuracy", "margin": "margin"}),
        (["step", "reward/all/mean", "loss/mean"], {"reward/all/mean": "reward", "loss/mean": "loss"}),
    ],
)
def test_names_that_everyone_knows_are_found(columns, found):
    assert found.items() <= {**dict(zip(columns, columns, strict=True)), **find_columns(columns)}.items()


@every(
    ("text", "message"),
    [
        ("", "no column is the step"),
        ("step=s", "no column is a loss"),
        ("step=s,loss", "expected NAME=COLUMN"),
        ("step=x", "there is no column 'x'"),
        ("speed=s", "no value is called 'speed'"),
        ("step=s,step=other", "two columns one name"),
    ],
)
def test_what_cannot_be_told_is_asked_for(text, message):
    with pytest.raises(RecorderError, match=message) as caught:
        find_columns(["s", "other"], parse_map([text]))
    assert caught.value.advice


@every(
    ("text", "epochs"),
    [
        ("epoch,loss\n1,3\n2,2.5\n", [1.0, 2.0]),
        ("epoch,loss\n0,3\n1,2.5\n", [1.0, 2.0]),  # those done
        ("epoch,loss\n5,3\n6,2.5\n", [None, None]),  # a part of a run
        ("epoch,loss\n1,3\n2,2.5\n2,2.4\n", [None, None, None]),  # several rows a pass
        ("step,loss\n1,3\n2,2.5\n", [None, None]),
        ("loss,val_loss\n3,4\n2.5,3.5\n", [1.0, 2.0]),
    ],
)
def test_a_table_that_counts_epochs_says_which_are_done(tmp_path, import_events, text, epochs):
    (tmp_path / "log.csv").write_text(text)
    events, imported = import_events(tmp_path / "log.csv")
    assert [each.epoch for each in events.of("train_step")] == epochs
    counted = "no column is the step: each row is taken for a pass over the data, as Keras counts them"
    assert (counted in imported.notes) is text.startswith("loss")


@pytest.mark.parametrize("text", ["loss,val_loss\n3,4\n2.5,\n", '{"loss": 3, "val_loss": 4}\n{"loss": 2.5}\n'])
def test_a_table_without_a_step_is_no_history_if_a_row_lacks_a_loss(tmp_path, import_events, text):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(RecorderError, match=r"log\.csv: no column is the step") as caught:
        import_events(tmp_path / "log.csv", kind="table")
    assert caught.value.advice == "give --map step=COLUMN; there are loss, val_loss"


def test_a_row_that_only_adds_an_evaluation_to_the_one_before_is_no_resume(tmp_path, import_events):
    text = "step,loss,rate,val_loss\n50,9,1,\n100,8,2,\n100,8,3,7.5\n150,7,4,\n150,6.5,5,7\n"
    (tmp_path / "log.csv").write_text(text)
    events, imported = import_events(tmp_path / "log.csv")
    assert [(e.step, e.loss, e.extras) for e in events.of("train_step")] == [
        (50, 9.0, {"rate": 1}),
        (100, 8.0, {"rate": 2}),
        (150, 7.0, {"rate": 4}),
        (150, 6.5, {"rate": 5}),
    ]
    assert [(e.step, e.metrics.loss) for e in events.of("eval")] == [(100, 7.5), (150, 7.0)]
    assert [note for note in imported.notes if "go back" in note] == [
        "steps go back from 150 to 100 at line 6: taken for a resume; replayed rows superseded"
    ]


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("step,loss\n1,2\n2\n3,1,9\n4,0.5\n", [3, 4]),
        ("step,loss\n1,2\nx,1\n-3,1\n1.5,1\n4,0.5\n", [3, 4, 5]),
        ("step,loss\n1,2\n,\n4,0.5\n2,\n", [5]),
    ],
)
def test_bad_rows_of_a_csv_are_counted_by_line(tmp_path, import_events, text, bad):
    path = tmp_path / "log.csv"
    path.write_text(text)
    events, imported = import_events(path)
    assert [skipped.line for skipped in imported.skipped] == bad
    assert events.steps == [1, 4]


def test_quoted_newlines_bom_and_crlf_do_not_shift_anything(tmp_path, import_events):
    path = tmp_path / "log.csv"
    path.write_bytes(b'\xef\xbb\xbfstep,loss,note\r\n1,2.0,"a\r\nb"\r\n2,1.0,\r\n')
    events, imported = import_events(path)
    assert (events.steps, events.losses, imported.skipped) == ([1, 2], [2.0, 1.0], [])
    assert events.of("train_step")[0].extras["note"] == "a\r\nb"


def test_time_without_a_zone_is_no_clock(tmp_path, import_events):
    path = tmp_path / "log.csv"
    path.write_text("step,loss,timestamp\n1,2.0,2024-01-01 10:00:00\n2,1.0,2024-01-01T10:00:00+00:00\n3,0.5,12.5\n")
    events, _ = import_events(path)
    assert [e.ts for e in events.of("train_step")] == [None, 1704103200.0, None]
    assert events.of("train_step")[2].extras == {"ts_": 12.5}


def test_a_column_named_twice_is_refused(tmp_path, import_events):
    path = tmp_path / "log.csv"
    path.write_text("step,loss,loss\n1,2,3\n")
    with pytest.raises(RecorderError, match="appears twice"):
        import_events(path)


@every(
    ("reading", "seconds"),
    [
        (1e9, 1e9),
        (1e9 - 1, None),
        (1e10 - 1, 1e10 - 1),
        (1e10, None),
        (1e12, 1e9),
        (1e13 - 1000, 1e10 - 1),
        (1e13, None),
        ("2023-11-14T22:13:20Z", 1.7e9),
        ("2023-11-14T23:13:20.5+01:00", 1.7e9 + 0.5),
        ("1700000000", 1.7e9),
    ],
)
def test_a_clock_reading_is_in_seconds_or_milliseconds_of_the_years_2001_to_2286(reading, seconds):
    assert clock_of(reading) == seconds


def test_the_rates_of_all_parameter_groups_are_kept_and_the_largest_is_the_run_s(tmp_path, import_events):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,lr-AdamW/pg1,lr-AdamW/pg2\n1,2.0,1e-5,2e-4\n2,1.0,3e-4,1e-4\n3,0.5,1e-6,\n")
    events, _ = import_events(path)
    assert [event.lr for event in events.of("train_step")] == [[1e-5, 2e-4], [3e-4, 1e-4], 1e-6]
    assert events.start.config.optimizer.lr == 3e-4
    report = monitor_run(path)
    assert report.train.max_lr == 3e-4


@every(
    ("text", "says"),
    [
        ('{ "log_history": [\n {"step": 1, "loss": 2.0}\n], "global_step": 1 }\n', None),  # no brace of its own line
        ('{"log_history": [\n {"step": 1, "loss": 2.0}\n], "global_step": 1 }\n', None),
        ('{\n "best": 1.0,\n "runs": [1]\n}\n', r"it is JSON, and no log known here \(its keys: best, runs\)"),
        ('{"best": 1.0,\n "runs": [1]}\n', r"it is JSON, and no log known here \(its keys: best, runs\)"),
        ('{"best": 1.0,\n "runs": [1\n', "not JSON: Input data was truncated"),
    ],
)
def test_valid_json_is_not_called_truncated(tmp_path, text, says):
    path = tmp_path / "some.json"
    path.write_text(text)
    if says is None:
        assert monitor_run(path).train.rows == 1
    else:
        with pytest.raises(RecorderError, match=says):
            monitor_run(path)


def test_a_table_at_the_limit_of_columns_is_read_and_one_beyond_is_counted():
    names = ["step", "loss", *(f"x{i}" for i in range(MAX_COLUMNS - 2))]
    assert find_columns(names)["step"] == "step"
    with pytest.raises(RecorderError) as caught:
        find_columns([*names, "one_more"])
    assert str(caught.value).startswith("10001 columns, over the limit of 10000")
