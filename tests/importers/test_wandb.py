"""W&B's offline log: a golden file by wandb 0.31.0, and damage to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

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
        assert (events.end.status, events.end.reason) == ("ok", "the source has the summary of a finished run")


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


def field(number, value):
    """A field of a protocol buffer: a whole number under 128, or bytes under 128."""
    return bytes([number << 3 | 2, len(value)]) + value if isinstance(value, bytes) else bytes([number << 3, value])


def test_a_run_that_logged_nothing_is_not_told_to_sync(tmp_path, import_events):
    path, record = tmp_path / "run-abc.wandb", field(5, b"")
    path.write_bytes(b":W&B\xe1\xbe\x00" + (b"\0\0\0\0" + len(record).to_bytes(2, "little") + b"\1" + record) * 3)
    with pytest.raises(RecorderError, match="logged no row: its 3 records hold settings") as caught:
        import_events(path)
    assert caught.value.advice == "give a run whose training called wandb.log"


@pytest.mark.parametrize("name", ["run-abc.wandb", "events.out.tfevents.1.host.1.0"])
def test_a_folder_whose_log_is_a_pointer_says_so(name, tmp_path, import_events):
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(RecorderError, match=rf"{name} is a git-lfs pointer"):
        import_events(tmp_path)
