"""A kept evaluation is used again only where it is whole, of this version, and of the same trial."""

from __future__ import annotations

import json

import numpy as np
from tables import every

from gradience.prove.bench.evaluators import digest_of_command
from gradience.prove.bench.store import Evaluation, opened_store, report_path, slug

FOUND = Evaluation(unit="example", scores=[1.0, 0.5], weights=[1.0, 1.0])


@every(
    ("changed", "kept"),
    [
        ({}, True),
        ({"version": 2}, False),
        ({"version": 0}, False),
        ({"of": {"a": 2}}, False),
        *[
            ({"evaluation": {"unit": "example", "scores": scores, "weights": weights}}, False)
            for scores, weights in (
                *[([], []), ([1.0], [1.0, 1.0]), ([1.0], [0.0]), ([1.0], [-1.0]), ([1.0], [5e-324]), ([1.0], [1.1e15])],
                *[([1.1e100], [1.0]), ([1.0, -1e308], [1.0, 1.0])],
            )
        ],
        (None, False),
    ],
)
def test_what_is_kept_is_run_again_unless_it_is_whole_and_of_this_version_and_trial(tmp_path, changed, kept):
    for expected in (False, kept):
        with opened_store(tmp_path / "out", []) as store:
            assert store.evaluation("e", {"a": 1}, lambda: FOUND) == FOUND
            assert (store.evaluated, store.reused) == (not expected, expected)
        (file,) = (tmp_path / "out" / "evaluations").glob("e-*.json")
        file.write_text("{" if changed is None else json.dumps(json.loads(file.read_text()) | changed))


def test_scores_of_both_infinities_have_no_mean_and_nothing_is_said_on_stderr(recwarn):
    assert np.isnan(Evaluation(unit="example", scores=["Infinity", "-Infinity"], weights=[1.0, 1.0]).mean)
    assert not recwarn


def test_names_are_parts_of_a_files_name(tmp_path):
    assert [slug(name) for name in ("linear:0.5,0.5", "--", "a" * 70)] == ["linear-0.5-0.5", "x", "a" * 60]
    assert report_path(tmp_path).parent == tmp_path
    assert report_path(tmp_path / "x.json") == tmp_path / "x.json"


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
