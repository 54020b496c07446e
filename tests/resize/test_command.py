"""The command: exit codes, one document, help by formula, and an end by signal that leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from jsonschema import Draft202012Validator
from peft import LoraConfig
from resize_nets import Net

from gradience.cli.main import main
from gradience.schema.export import json_schema


@pytest.fixture
def folder(make):
    return make(Net(), LoraConfig(r=8, target_modules=["q_proj", "up_proj"])).folder


def test_a_resize_prints_its_table_and_writes_the_folder(folder, tmp_path, capsys):
    assert main(["resize", "--peft-dir", str(folder), "--out", str(tmp_path / "out"), "--rank", "2"]) == 0
    text = capsys.readouterr().out
    assert "r=8 -> 2: 4" in text
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_json_is_one_document_of_its_schema(folder, capsys):
    assert main(["resize", str(folder), "--dry-run", "--max-params", "400", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    Draft202012Validator(json_schema("resize")).validate(document)
    assert document["params_after"] <= 400


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dry-run"], "exactly one criterion, got none"),
        (["--dry-run", "--rank", "2", "--energy", "0.9"], "got --rank and --energy"),
        (["--rank", "2"], "no output path"),
        (["--rank", "0", "--dry-run"], "rank"),
        (["--energy", "2", "--dry-run"], "energy"),
        (["--dry-run", "--rel-error", "0"], "--rel-error is gone: give --energy 1 - x^2"),
        (["--max-mb", "1e-9", "--dry-run"], "budget"),
        (["--max-mb", "inf", "--dry-run"], "finite"),
        (["--energy", "nan", "--dry-run"], "nan"),
        (["--rank", "2", "--base", "nowhere", "--dry-run"], "nowhere"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_code_2(folder, capsys, arguments, says):
    assert main(["resize", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1


def test_no_folder_or_two_are_refused(folder, capsys):
    assert main(["resize", "--rank", "2", "--dry-run"]) == 2
    assert main(["resize", str(folder), "--peft-dir", str(folder), "--rank", "2", "--dry-run"]) == 2
    assert "once" in capsys.readouterr().err


def test_the_help_defines_each_criterion_by_its_formula(capsys):
    main(["resize", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "sum_{i<=k} sigma_i^2 >= ENERGY * sum sigma_i^2" in text


SLOW = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import gradience.rewrite.resize.factors as factors
fast = factors.reduced
def slow(*arguments, **options):
    os.write(1, b"begun\\n")  # several threads cut, and a line must stay one
    time.sleep(600)
    return fast(*arguments, **options)
factors.reduced = slow
from gradience.cli.main import script
sys.exit(script())
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, None), *([(signal.SIGTERM, 143)] if os.environ.get("GRADIENCE_SLOW") else [])]
)
def test_an_end_by_signal_leaves_nothing_behind(folder, tmp_path, number, code):
    command = [sys.executable, "-c", SLOW, "resize", str(folder), "--out", str(tmp_path / "out"), "--rank", "2"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert process.stdout.readline() == b"begun\n"
    assert any(p.name.startswith(".out.partial") for p in tmp_path.iterdir())
    process.send_signal(number)
    status = process.wait(300)
    process.stdout.close()
    assert status == code if code else status != 0
    assert not [p.name for p in tmp_path.iterdir() if "out" in p.name]
