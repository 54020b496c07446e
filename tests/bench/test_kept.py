"""A kept evaluation is used again only where it is whole, of this version, and of the same trial."""

from __future__ import annotations

import msgspec
from tables import every

from gradience.prove.bench.evaluators import digest_of_command
from gradience.prove.bench.store import Evaluation, _EvaluationDocument, _read, report_path, slug

FOUND = Evaluation(unit="example", scores=[1.0, 0.5], weights=[1.0, 1.0])


@every(
    ("version", "of", "kept"), [(1, {"a": 1}, True), (2, {"a": 1}, False), (1, {"a": 2}, False), (0, {"a": 1}, False)]
)
def test_of_another_version_or_another_trial_it_is_run_again(tmp_path, version, of, kept):
    place = tmp_path / "e.json"
    assert _read(place, {"a": 1}) is None
    place.write_bytes(msgspec.json.encode(_EvaluationDocument(version, of, FOUND)))
    assert _read(place, {"a": 1}) == (FOUND if kept else None)
    place.write_bytes(place.read_bytes()[:-3])
    assert _read(place, {"a": 1}) is None


def test_names_are_parts_of_a_file_s_name(tmp_path):
    assert [slug(name) for name in ("linear:0.5,0.5", "--", "a" * 70)] == ["linear-0.5-0.5", "x", "a" * 60]
    assert report_path(tmp_path).parent == tmp_path
    assert report_path(tmp_path / "x.json") == tmp_path / "x.json"


@every(
    ("scores", "weights"),
    [
        *[([], []), ([1.0], [1.0, 1.0]), ([1.0], [0.0]), ([1.0], [-1.0]), ([1.0], [5e-324]), ([1.0], [1.1e15])],
        *[([1.1e100], [1.0]), ([1.0, -1e308], [1.0, 1.0])],
    ],
)
def test_a_kept_evaluation_whose_weights_are_of_no_sample_is_run_again(tmp_path, scores, weights):
    place = tmp_path / "e.json"
    found = Evaluation(unit="example", scores=scores, weights=weights)
    place.write_bytes(msgspec.json.encode(_EvaluationDocument(1, {}, found)))
    assert _read(place, {}) is None


def test_a_command_has_another_digest_once_a_file_that_its_script_uses_was_edited(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = {
        "eval.py": "import sys\nfrom mine.core import x\n",
        "mine/core.py": "x = 1\n",
        "mine/deep/more.py": "",
        "other/core.py": "",
        "jobs/run.sh": "#!/bin/sh\nexec python3 ../eval.py --of inner.py; cat 'held.csv'\n",
        "jobs/inner.py": "",
        "held.csv": "1",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    package = {"eval.py", "mine/core.py", "mine/deep/more.py"}
    commands = {
        "python3 eval.py {adapter}": package,
        "sh jobs/run.sh {adapter}": package | {"jobs/run.sh", "jobs/inner.py", "held.csv"},
    }
    for command, named in commands.items():
        for name, text in texts.items():
            before = digest_of_command(command)
            (tmp_path / name).write_text(text + "#1")
            assert (digest_of_command(command) != before) is (name in named), (command, name)
            (tmp_path / name).write_text(text)


def test_a_command_has_another_digest_once_a_file_that_it_names_was_edited(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("eval.py", "helper.py", "tasks.yaml", "pkg/__main__.py", "run.sh", "other", "tool", "out.log")
    files = {name: tmp_path / name for name in names}
    for path in files.values():
        path.parent.mkdir(exist_ok=True)
        path.write_text("1")
    files["tool"].chmod(0o755)
    commands = {
        "python3 eval.py {adapter}": {"eval.py", "helper.py"},
        f"python3 {tmp_path}/eval.py --x={{adapter}}": {"eval.py", "helper.py"},
        "python3 -m pkg {adapter}": {"pkg/__main__.py"},
        "./run.sh {adapter} --tasks=tasks.yaml": {"run.sh", "tasks.yaml"},
        "sh -c 'python3 eval.py {adapter} | tail -1'": {"eval.py", "helper.py"},
        "echo {adapter} 1": set(),
        "./tool {adapter} --log=out.log other": {"tool"},  # the others may be what it writes
    }
    for command, named in commands.items():
        for name, path in files.items():
            before = digest_of_command(command)
            path.write_text(path.read_text() + "1")
            assert (digest_of_command(command) != before) is (name in named), (command, name)
    assert digest_of_command("echo {adapter} 1") != digest_of_command("echo {adapter} 2")
