"""The command: exit codes, one document, help by formula, and an end by signal that leaves nothing behind."""

from __future__ import annotations

import json

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
