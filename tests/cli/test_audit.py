"""`gradience audit` as a user meets it: output, exit codes, one-line errors, what is imported."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradience.cli.main import main

STEM = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "peft"
    path.mkdir()
    tensors = {}
    for i in range(4):
        tensors[STEM.format(i, "A")] = rng.standard_normal((8, 32)).astype(np.float32)
        tensors[STEM.format(i, "B")] = (0.02 * rng.standard_normal((48, 8)) * 0.5 ** np.arange(8)).astype(np.float32)
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16}))
    return path


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"


def truncated(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def bad_base(folder):
    (folder.parent / "bad").mkdir()
    (folder.parent / "bad" / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")


def without_weights(folder):
    (folder / "adapter_model.safetensors").rename(folder / "README.md")


def config(text):
    return lambda folder: (folder / "adapter_config.json").write_text(text)


@pytest.mark.parametrize(
    ("change", "argv", "says"),
    [
        (None, "{} --intruders", "--base"),
        (None, "", "give the adapter's folder once: 'gradience audit DIR' or '--adapter DIR'"),
        (None, "{0} --peft-dir {0}", "once"),
        (None, "{0} --adapter {0}", "once"),
        (None, "{}/nowhere", "no such file or folder"),
        (None, "{} --base {}/nowhere", "no such base"),
        (None, "{} --append {}/nowhere.jsonl", "nowhere.jsonl"),
        (bad_base, "{0} --base {0}/../bad", "model.safetensors"),
        (without_weights, "{}", "README.md"),
        (lambda folder: (folder / "adapter_model.safetensors").write_text(POINTER), "{}", "git lfs pull"),
        (truncated, "{}", "truncated"),
        *((config(text), "{}", "adapter_config.json") for text in ("{", '{"r": "eight"}', "[]")),
    ],
)
def test_what_cannot_be_audited_is_one_line_that_says_what_to_do(folder, capsys, change, argv, says):
    if change is not None:
        change(folder)
    given = argv.replace("{}", "{0}").format(folder).split()
    assert main(["audit", *given]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


@pytest.mark.parametrize(
    ("option", "shows"),
    [
        ("--verbose", "Scales (dW = s B A):"),
        ("--verbose", "All modules"),
        ("--heatmap", "Heat map of Frobenius norm"),
        ("-v", "Rules for a rank"),
        ("--suggest-per-layer", '"rank_pattern": {'),
    ],
)
def test_each_extra_is_behind_its_option(folder, capsys, option, shows):
    main(["audit", str(folder)])
    assert shows not in capsys.readouterr().out
    assert main(["audit", str(folder), option]) == 0
    assert shows in capsys.readouterr().out


def test_monitor_shows_an_audit_that_was_appended(folder, capsys, tmp_path):
    from gradience.telemetry.writer import TelemetryWriter

    log = tmp_path / "run.jsonl"
    with TelemetryWriter(log) as writer:
        writer.run_start()
        writer.train_step(1, loss=1.0)
        writer.run_end()
    assert main(["audit", str(folder), "--append", str(log)]) == 0
    capsys.readouterr()
    assert main(["monitor", str(log), "--verbose"]) == 0
    assert "Stable rank (mean):" in capsys.readouterr().out
