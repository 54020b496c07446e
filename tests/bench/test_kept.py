"""A kept evaluation is used again only where it is whole, of this version, and of the same trial."""

from __future__ import annotations

import json

import numpy as np
from tables import every

from gradience.verbs.bench.evaluators import digest_of_command
from gradience.verbs.bench.store import Evaluation, opened_store, report_path, slug

FOUND = Evaluation(scores=[1.0, 0.5], weights=[1.0, 1.0])


@every(
    ("changed", "kept"),
    [
        ({}, True),
        ({"version": 1}, False),
        ({"version": 0}, False),
        ({"of": {"a": 2}}, False),
        *[
            ({"evaluation": {"scores": scores, "weights": weights}}, False)
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
    assert np.isnan(Evaluation(scores=["Infinity", "-Infinity"], weights=[1.0, 1.0]).mean)
    assert not recwarn


def test_names_are_parts_of_a_files_name(tmp_path):
    assert [slug(name) for name in ("linear:0.5,0.5", "--", "a" * 70)] == ["linear-0.5-0.5", "x", "a" * 60]
    assert report_path(tmp_path).parent == tmp_path
    assert report_path(tmp_path / "x.json") == tmp_path / "x.json"


SCRIPTS = {
    "eval.py": "import sys\nfrom mine.core import x\n",
    "mine/core.py": "x = 1\n",
    "mine/deep/more.py": "",
    "mine/__main__.py": "",
    "other/core.py": "",
    "jobs/run.sh": "#!/bin/sh\nexec python3 ../eval.py --of inner.py; cat 'held.csv'\n",
    "jobs/inner.py": "",
    "held.csv": "1",
    "tasks.yaml": "",
    "tool": "1",
    "others": "",
    "out.log": "",
}
MINE = {"mine/core.py", "mine/deep/more.py", "mine/__main__.py"}
PACKAGE = {"eval.py", *MINE}
JOB = {*PACKAGE, "jobs/run.sh", "jobs/inner.py", "held.csv"}


@every(
    ("command", "named"),
    [
        ("python3 eval.py {adapter}", PACKAGE),
        ("python3 {here}/eval.py --x={adapter}", PACKAGE),
        ("sh -c 'python3 eval.py {adapter} | tail -1'", PACKAGE),
        ("python3 -m mine {adapter}", MINE),
        ("sh jobs/run.sh {adapter}", JOB),
        ("./jobs/run.sh {adapter} --tasks=tasks.yaml", JOB | {"tasks.yaml"}),
        ("echo {adapter} 1", set()),
        ("./tool {adapter} --log=out.log others", {"tool"}),  # the others may be what it writes
    ],
)
def test_a_command_has_another_digest_once_a_file_that_it_uses_was_edited(command, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in SCRIPTS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "tool").chmod(0o755)
    command = command.replace("{here}", str(tmp_path))
    before, found = digest_of_command(command), set()
    for name, text in SCRIPTS.items():
        (tmp_path / name).write_text(text + "#1")
        found |= {name} if digest_of_command(command) != before else set()
        (tmp_path / name).write_text(text)
    assert found == named
    assert digest_of_command(f"{command} 2") != before
