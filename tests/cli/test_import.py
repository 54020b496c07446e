"""The command: what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest

from gradience.cli.main import main
from gradience.schema.reports import ImportReport


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run of twenty steps."""
    rows = [{"step": s, "epoch": s / 10, "loss": 2 / s, "learning_rate": 1e-4, "grad_norm": 1.0} for s in range(1, 21)]
    rows.append({"step": 20, "epoch": 2.0, "eval_loss": 0.2, "eval_runtime": 2.0, "eval_samples_per_second": 50.0})
    state = {"global_step": 20, "max_steps": 20, "log_history": rows}
    run = tmp_path / "my-run"
    run.mkdir()
    (run / "trainer_state.json").write_text(json.dumps(state))
    (run / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16}))
    return run


def test_a_folder_becomes_a_log_that_validates_and_can_be_monitored(folder, capsys) -> None:
    assert main(["import", str(folder)]) == 0
    out = capsys.readouterr().out
    for piece in ("GRADIENCE IMPORT", "(trainer-state)", "20 rows of training, 1 evaluations", "ended: ok", "Next: "):
        assert piece in out
    log = folder / "run.jsonl"
    assert log.stat().st_mode & 0o777 == 0o600
    assert main(["validate", str(log)]) == 0
    assert main(["monitor", str(folder)]) == 0
    assert str(log) in capsys.readouterr().out
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_json_is_one_valid_document_and_nothing_else(folder, capsys) -> None:
    assert main(["import", str(folder), "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    jsonschema.validate(document, msgspec.json.schema(ImportReport))
    assert captured.err == ""
    assert document["runs"][0]["events"] == {"run_start": 1, "train_step": 20, "eval": 1, "run_end": 1}


def test_a_log_that_is_there_is_not_overwritten_without_force(folder, capsys) -> None:
    log = folder / "run.jsonl"
    log.write_text("mine\n")
    assert main(["import", str(folder)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert log.read_text() == "mine\n"
    assert main(["import", str(folder), "--force"]) == 0
    assert main(["validate", str(log)]) == 0


def test_force_never_writes_over_the_source(folder, capsys) -> None:
    state = folder / "trainer_state.json"
    before = state.read_bytes()
    (folder / "link").symlink_to(state)
    for out in (state, folder / "link"):
        assert main(["import", str(state), "--out", str(out), "--force"]) == 2
        assert "is the source itself" in capsys.readouterr().err
    assert state.read_bytes() == before


def test_a_file_needs_the_name_of_the_log(folder, capsys) -> None:
    assert main(["import", str(folder / "trainer_state.json")]) == 2
    assert "--out run.jsonl" in capsys.readouterr().err


def test_a_log_of_ours_is_not_imported(folder, capsys) -> None:
    main(["import", str(folder)])
    assert main(["import", str(folder / "run.jsonl"), "--out", str(folder / "again.jsonl")]) == 2
    assert "is a log of gradience already" in capsys.readouterr().err


def test_a_table_is_mapped_by_options(tmp_path, capsys) -> None:
    path = tmp_path / "log.csv"
    path.write_text("n,objective,held\n1,2.0,\n2,1.0,1.5\n")
    out = tmp_path / "run.jsonl"
    assert main(["import", str(path), "--out", str(out)]) == 2
    capsys.readouterr()
    given = ["--map", "loss=objective,step=n", "--map", "eval.loss=held"]
    assert main(["import", str(path), "--out", str(out), *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["events"]["eval"] == 1


def test_monitor_and_check_take_the_folder_and_the_file(folder, capsys) -> None:
    for source in (folder, folder / "trainer_state.json"):
        assert main(["monitor", str(source)]) == 0
        out = capsys.readouterr().out
        assert "Note: imported in memory from trainer_state.json" in out
        assert "derived as runtime * samples_per_second (about): eval 100" in out
    assert not (folder / "run.jsonl").exists()
    assert main(["check", str(folder)]) == 0
    assert "r=8 alpha=16 scaling=2" in capsys.readouterr().out
    assert main(["check", "--training-dir", str(folder), "--peft-dir", str(folder)]) == 0
    assert "lr=1e-4" in capsys.readouterr().out
