"""The house: code of a stranger never runs. Models and tokenizers pass one door, and nothing unpickles.

What ruff sees by a name that is imported (pickle, eval, jinja2, datasets) it forbids; here are methods of anything.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tables import every

import gradience

SOURCE = Path(gradience.__file__).parent

DOORS = {  # what a call's last name may be, and the one file that may call it
    "from_pretrained": "io/pretrained.py",
    "from_file": "",  # of tokenizers
    "get_class_from_dynamic_module": "",
    "from_string": "",  # of jinja2
    "get_template": "data/programs.py",  # of jinja2; that of ms-swift looks up a name
    "Unpickler": "",
    "read_pickle": "",
}
SAFE = {"np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}
NEVER = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False, "shell": True}
NAMED = re.compile(rf"\b(?:{'|'.join(DOORS)}|load)\(|\b(?:{'|'.join(NEVER)})=")


def faults(tree: ast.AST, module: str) -> Iterator[str]:
    """Yield each call that could run what a file holds."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last = called.rpartition(".")[2]
        if last in DOORS and DOORS[last] != module:
            yield called
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in SAFE and given.get(SAFE[called][0]) != str(SAFE[called][1]):
            yield f"{called} without {SAFE[called][0]}"
        yield from (f"{called}({name}={value})" for name, value in NEVER.items() if given.get(name) == str(value))


@cache
def found() -> dict[str, list[str]]:
    files = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}
    texts = {module: path.read_text(encoding="utf-8") for module, path in files.items()}
    trees = {module: ast.parse(text) for module, text in texts.items() if NAMED.search(text)}  # else nothing is called
    return {module: some for module, tree in trees.items() if (some := list(faults(tree, module)))}


def test_nothing_runs_code_of_a_file_and_one_door_loads_what_transformers_and_peft_load() -> None:
    assert found() == {}


def test_the_door_never_trusts_and_never_downloads() -> None:
    tree = ast.parse((SOURCE / "io" / "pretrained.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and "kind.from" in ast.unparse(node.func)]
    (model, adapter) = (ast.unparse(node) for node in calls)
    assert model.endswith("local_files_only=True, trust_remote_code=False)")
    assert adapter == "kind.from_pretrained(model, os.fspath(folder))"  # of PEFT, which runs no code of a folder


def test_a_python_that_is_started_does_not_look_into_the_folder_it_is_started_in() -> None:
    started = [
        (path.relative_to(SOURCE).as_posix(), node)
        for path in SOURCE.rglob("*.py")
        if "sys.executable" in (text := path.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.List) and node.elts and ast.unparse(node.elts[0]) == "sys.executable"
    ]
    assert {module for module, _ in started} == {
        "importers/databases.py",
        "io/confined.py",
    }
    assert all(ast.unparse(node.elts[1]) == "'-P'" for _, node in started)


@every(
    "line",
    [
        *("AutoTokenizer.from_pretrained(p)", "np.load(p)", "np.load(p, allow_pickle=True)", "torch.load(p)"),
        *("torch.load(p, weights_only=False)", "f(trust_remote_code=True)", "subprocess.run(x, shell=True)"),
        *("Tokenizer.from_file(p)", "environment.from_string(t)", "pd.read_pickle(p)"),
    ],
)
def test_each_way_to_run_a_strangers_code_is_noticed(line: str) -> None:
    assert NAMED.search(line)
    assert list(faults(ast.parse(line), "verbs/audit.py"))
