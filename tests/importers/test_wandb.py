"""W&B's offline log: a golden file by wandb 0.31.0, and damage to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tables import every
from wandb_records import field, items, offline

from gradience.cli.main import main
from gradience.errors import RecorderError

GOLDEN = Path(__file__).parent / "golden" / "offline.wandb"  # wandb.init(mode="offline"), five logs, finish()


def test_an_offline_log_needs_neither_the_package_nor_a_sync(tmp_path, import_events):
    shutil.copy(GOLDEN, tmp_path / "run-abc.wandb")
    for source in (GOLDEN, tmp_path):
        events, imported = import_events(source)
        assert (imported.format, imported.skipped) == ("wandb", [])
        assert [(e.step, e.loss, e.lr) for e in events.of("train_step")] == [
            (10, 2.0, 1e-3),
            (20, 1.0, 5e-4),
            (30, 20 / 30, 1e-2 / 30),
        ]
        assert [(e.step, e.metrics.loss) for e in events.of("eval")] == [(10, 1.9), (30, 19 / 30)]
        assert all(e.ts > 1.7e9 for e in events.of("train_step"))
        assert (events.start.config.optimizer.lr, events.start.config.training.max_steps) == (1e-3, 30)
        assert (events.end.status, events.end.reason) == ("ok", "the planned steps were made")


def test_a_log_cut_off_at_any_byte_is_read_to_there_or_refused_in_one_line(tmp_path, capsys):
    whole, path, out = GOLDEN.read_bytes(), tmp_path / "run-abc.wandb", tmp_path / "run.jsonl"
    codes = set()
    for size in range(8, len(whole), 61):
        path.write_bytes(whole[:size])
        code = main(["import", str(path), "--out", str(out), "--force"])
        said = capsys.readouterr().err
        codes.add(code)
        assert code == 0 or (code == 2 and said.count("\n") == 1)
    assert codes == {0, 2}


def test_damage_is_refused_with_how_to_export(tmp_path, import_events):
    path = tmp_path / "run-abc.wandb"
    path.write_bytes(b":W&B\xe1\xbe\x00" + b"\x00\x00\x00\x00\x05\x00\x01" + b"\xff" * 5)
    with pytest.raises(RecorderError) as caught:
        import_events(path)
    assert "scan_history" in caught.value.advice or "damaged" in str(caught.value)


def printed(text):
    return field(13, field(3, text.encode()))


ROW = field(2, items(loss=2.0, _step=1))
VALIDATED = field(2, items(**{"val-core/a/mean@8": 0.5, "val-aux/a/std@8": 0.1, "_step": 0}))  # verl's first act
OOM = "Traceback (most recent call last):\n  File x\ntorch.cuda.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\n"
SAID = "OutOfMemoryError: CUDA out of memory. Tried 2 GiB"
SILENT = "no training row was logged"
CLOSING = field(3, items(train_runtime=9.5, train_loss=1.5, total_flos=8))
KILLED = "W&B recorded no exit: the program was killed, or still runs"


@every(
    ("records", "end"),
    [
        ((ROW, field(18, b"")), ("ok", "W&B recorded exit code 0")),
        ((ROW, field(18, field(2, 5))), ("ok", "W&B recorded exit code 0")),
        ((field(18, b""),), ("unknown", f"W&B recorded exit code 0; {SILENT}")),
        ((), ("unknown", f"{KILLED}; {SILENT}")),
        ((VALIDATED, field(18, b"")), ("unknown", f"W&B recorded exit code 0; {SILENT}")),
        ((field(5, items(max_steps=9)), ROW, field(18, b"")),
         ("unknown", "W&B recorded exit code 0; the source ends before its 9 planned steps")),
        ((ROW, field(18, field(1, 1))), ("error", "W&B recorded exit code 1")),
        ((ROW, printed(OOM), field(18, field(1, 1))), ("error", f"W&B recorded exit code 1: {SAID}")),
        ((ROW, printed(OOM[:40]), printed(OOM[40:])), ("error", f"W&B's output ends with an exception: {SAID}")),
        ((ROW, printed(OOM + "going on\n" * 20)), ("unknown", KILLED)),
        ((ROW, printed("Traceback (most recent call last):\nKeyboardInterrupt\n"), field(18, field(1, 127))),
         ("interrupted", "W&B recorded exit code 127: KeyboardInterrupt")),
        ((ROW,), ("unknown", KILLED)),
        ((ROW, CLOSING, printed(OOM), field(18, field(1, 1))),
         ("ok", f"the source has the summary of a finished run; after it: W&B recorded exit code 1: {SAID}")),
        ((field(5, items(max_steps=9)), field(18, field(1, 1))), ("error", f"W&B recorded exit code 1; {SILENT}")),
        ((field(5, items(logging_steps=25)),), ("unknown", f"{KILLED}; {SILENT} (logging_steps is 25)")),
    ],
)  # fmt: skip
def test_how_a_run_ended_is_what_wandb_recorded(tmp_path, import_events, records, end):
    path = tmp_path / "run-abc.wandb"
    path.write_bytes(offline(*records))
    events, _ = import_events(path)
    assert (events.end.status, events.end.reason) == end


def test_a_record_over_several_blocks_is_joined(tmp_path, import_events):
    (tmp_path / "run-abc.wandb").write_bytes(offline(printed("x" * 70_000), ROW, field(18, b"")))
    events, imported = import_events(tmp_path)
    assert (events.losses, imported.skipped) == ([2.0], [])


def folder_of(place, *, log=None, summary=None, settings="", output=""):
    """A run's folder as W&B writes it."""
    files = place / "files"
    files.mkdir(parents=True)
    if log is not None:
        (place / "run-nmrz2w6w.wandb").write_bytes(log)
    (files / "wandb-summary.json").write_text(json.dumps(summary or {}))
    (files / "config.yaml").write_text(settings)
    (files / "output.log").write_text(output)
    return place


LAST = {"train/loss": 1.25, "train/global_step": 30, "train/learning_rate": 1e-5, "eval/loss": 1.5, "eval/wer": 20.5}
END = {"train_runtime": 9.5, "train_loss": 2.5, "total_flos": 8, "_step": 7, "_wandb": {"runtime": 9}}
YAML = "max_steps:\n  desc: null\n  value: 30\n_name_or_path:\n  value: org/base\n"


@pytest.mark.parametrize("log", [None, b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"])
def test_without_its_log_a_run_is_the_last_value_of_each_metric(tmp_path, import_events, log):
    place = folder_of(tmp_path / "wandb" / "run-1-nmrz2w6w", log=log, summary=LAST | END, settings=YAML)
    for source in (place, place / "files", place / "files" / "wandb-summary.json", place.parent):
        events, imported = import_events(source)
        assert (imported.format, len(imported.runs)) == ("wandb", 1)
        assert [(e.step, e.loss, e.lr) for e in events.of("train_step")] == [(30, 1.25, 1e-5)]
        assert [(e.step, e.metrics.loss, e.metrics.extras["wer"]) for e in events.of("eval")] == [(None, 1.5, 20.5)]
        config = events.start.config
        assert (config.model_name, config.training.max_steps, events.end.status) == ("org/base", 30, "ok")
        assert any("only the last value of each metric is known" in note for note in imported.notes)


@every(
    ("settings", "note"),
    [
        ("since:\n  value: 2024-02-31\n", ""),
        (f"seed:\n  value: {'9' * 5000}\n", "config.yaml was not used: a number of 5000 digits"),
        ("".join(f"{' ' * i}a:\n" for i in range(600)), "config.yaml was not used: nested more than"),
        (f"a: {'[' * 600}{']' * 600}\n", "config.yaml was not used: nested more than"),
        ("a: [\n", "config.yaml was not used: not YAML"),
    ],
)
def test_settings_that_no_yaml_reader_takes_are_named_and_the_run_is_read(tmp_path, import_events, settings, note):
    folder_of(tmp_path / "run-1-nmrz2w6w", summary=LAST, settings=YAML + settings)
    events, imported = import_events(tmp_path)
    assert events.losses == [1.25]
    assert events.start.config.training.max_steps == (None if note else 30)
    assert any(said.startswith(note) for said in imported.notes)


def test_a_run_that_died_before_its_first_row_is_a_run(tmp_path, import_events):
    folder_of(tmp_path / "run-1-nmrz2w6w", summary={"_wandb": {"runtime": 2}}, settings=YAML, output=OOM)
    events, imported = import_events(tmp_path)
    assert (events.losses, events.end.status) == ([], "error")
    assert events.end.reason == f"W&B's output ends with an exception: {SAID}; {SILENT}"
    assert imported.runs[0].run_id == "nmrz2w6w"


@pytest.mark.parametrize("name", ["run-abc.wandb", "events.out.tfevents.1.host.1.0"])
def test_a_folder_whose_log_is_a_pointer_says_so(name, tmp_path, import_events):
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(RecorderError, match=rf"{name} is a git-lfs pointer"):
        import_events(tmp_path)
