"""Every command that an output suggests runs as it is printed; the words in capitals stand for what the user has."""

from __future__ import annotations

import ast
import io
import re
import shlex
import shutil
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

from gradience.cli.main import build_app, main

SOURCES = Path(__file__).resolve().parents[2] / "src" / "gradience"
LINE = re.compile(r"^(?:Next[^:]*: |Why: |  )gradience (.+)$", re.MULTILINE)
QUOTED = re.compile(r"gradience ([a-z]+(?:-[a-z]+)?)((?: [a-z]+)?(?: --?[a-z][a-z-]*| [A-Z]+)*)")


def suggested(text: str) -> list[str]:
    return [found.strip() for found in LINE.findall(text)]


def test_what_the_golden_path_suggests_runs_as_printed_and_so_does_what_that_suggests(
    toy, tmp_path, monkeypatch, capsys
):
    shutil.copytree(toy.run, tmp_path / "runs" / "toy")
    monkeypatch.chdir(tmp_path)
    run = Path("runs/toy")
    stands = {"MODEL": f"{run}/base", "TEXTS": f"{run}/heldout.jsonl", "FLEET": str(tmp_path / "fleet")}
    stands |= {f"{run}/smaller": str(tmp_path / "smaller")}
    left, ran = suggested(toy.out), []
    assert len(left) == 4
    left += ["runs/toy", "diagnose runs/toy"]
    while left:
        argv = [stands.get(word, word) for word in shlex.split(left.pop(0))]
        if argv in ran:
            continue
        ran.append(argv)
        assert main(argv) in {0, 1}, (argv, capsys.readouterr().err)
        left += suggested(capsys.readouterr().out)
    verbs = {argv[0] for argv in ran}
    assert verbs == {"runs/toy", "check", "monitor", "audit", "diagnose", "resize"}
    assert ["resize", "runs/toy/peft", "--base", "runs/toy/base"] in [argv[:4] for argv in ran]


def literals() -> list[str]:
    """Every string that is no docstring, of the files that name a command."""
    found = []
    for path in SOURCES.rglob("*.py"):
        if "gradience " not in (text := path.read_text(encoding="utf-8")):
            continue
        tree = ast.parse(text)
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        whole = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs]
        found += [node.value for node in whole if isinstance(node.value, str)]
    return found


VERBS = {name for name in build_app("--help") if not name.startswith("-")}


@cache
def help_of(*verb: str) -> str:
    said = io.StringIO()
    with redirect_stdout(said):
        main([*verb, "--help"])
    return said.getvalue()


def test_a_command_in_a_sentence_has_a_verb_and_options_that_exist():
    texts = {text for text in literals() if QUOTED.search(text)}
    assert len(texts) > 50
    for text in texts:
        for verb, rest in QUOTED.findall(text):
            if verb not in VERBS:
                assert "'" not in text.split(verb)[0][-12:], text  # a sentence with the program's name, not a command
                continue
            words = rest.split()
            below = [word for word in words[:1] if verb in {"runs", "fleet"} and word.islower() and word[0] != "-"]
            for option in (word for word in words if word.startswith("-") and word != "--help"):
                assert option in help_of(verb, *below), f"{text!r}: {verb} has no {option}"
