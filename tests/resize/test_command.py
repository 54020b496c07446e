"""The command: exit codes, one document, help by formula, and an end by signal that leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from tables import every

from gradience.cli.main import main


def test_a_resize_prints_its_table_or_one_document(pair, tmp_path, capsys):
    assert main(["resize", str(pair.folder), "--out", str(tmp_path / "out"), "--rank", "2"]) == 0
    assert "r=8 -> 2: 4" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert main(["resize", str(pair.folder), "--dry-run", "--max-mb", ".004", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes_after"] <= 4000


@every(
    ("arguments", "says"),
    [
        (["--dry-run"], "give --kl, --rank, --energy, --max-mb or --like-suggested"),
        (["--rank", "2"], "gradience: needs --out (give --out FOLDER, or try --dry-run first)"),
        (["--rank", "0", "--dry-run"], "rank"),
        (["--dry-run", "--rel-error", "0"], "--rel-error is gone: give --energy 1 - x^2"),
        (["--max-mb", "1e-9", "--dry-run"], "budget"),
        (["--energy", "nan", "--dry-run"], "nan"),
        (["--rank", "2", "--base", "nowhere", "--dry-run"], "nowhere"),
        (["--kl", ".01", "--dry-run"], "--kl needs --data (give --data FILE)"),
        (["--kl", ".01", "--data", "t", "--dry-run"], "--kl needs --base, because it runs the model (give --base "),
        (["--energy", ".9", "--data", "t", "--calibrate", "--dry-run"], "give --kl, --rank or --max-mb"),
        (["--rank", "2", "--calibrate", "x"], ": --calibrate takes no file: give --data FILE --calibrate (see"),
        (["--rank", "2", "--recover=x"], "gradience: --recover takes no file: give --data FILE --recover (see"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(pair, capsys, arguments, says):
    assert main(["resize", str(pair.folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1


def test_the_help_defines_each_criterion_by_its_formula(capsys):
    main(["resize", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "sum_{i<=k} sigma_i^2 >= ENERGY * sum sigma_i^2" in text


SLOW = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import gradience.verbs.resize.weights as weights
fast = weights.reduced
def slow(*arguments, **options):
    os.write(1, b"begun\\n")  # several threads cut, and a line must stay one
    time.sleep(600)
    return fast(*arguments, **options)
weights.reduced = slow
from gradience.cli.main import script
sys.exit(script())
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, None), *([(signal.SIGTERM, 143)] if os.environ.get("GRADIENCE_SLOW") else [])]
)
def test_an_end_by_signal_leaves_nothing_behind(pair, tmp_path, number, code):
    command = [sys.executable, "-c", SLOW, "resize", str(pair.folder), "--out", str(tmp_path / "out"), "--rank", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    assert process.stdout.readline() == b"begun\n"
    assert any(p.name.startswith(".out.partial") for p in tmp_path.iterdir())
    process.send_signal(number)
    status = process.wait(300)
    process.stdout.close()
    assert status == code if code else status != 0
    assert not [p.name for p in tmp_path.iterdir() if "out" in p.name]
