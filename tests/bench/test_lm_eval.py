"""lm-eval as an evaluator: what is read of its samples, and what is refused. Its own run is not part of the tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gradience.errors import GradienceError
from gradience.verbs.bench.evaluators import LmEval

RUN = """
import json, pathlib, sys
words = sys.argv
folder = pathlib.Path(words[words.index("--output_path") + 1]) / "model"
folder.mkdir()
rows = [{"doc_id": 1, "exact_match": [0, 1], "acc_norm": 0.0, "f1": 1.0}]
rows += [{"doc_id": 0, "exact_match": [1], "acc_norm": 1.0}]
metrics = json.loads(pathlib.Path(__file__).with_name("metrics.json").read_text())
rows = [{k: v for k, v in row.items() if k in metrics or k == "doc_id"} for row in rows]
(folder / "samples_task_1.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
pathlib.Path(__file__).with_name("words.json").write_text(json.dumps(words))
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that puts a module `lm_eval` in place whose samples have some metrics."""

    def install(*metrics):
        package = tmp_path / "site" / "lm_eval"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(RUN)
        (package / "metrics.json").write_text(json.dumps(metrics))
        monkeypatch.syspath_prepend(str(package.parent))
        monkeypatch.setenv("PYTHONPATH", str(package.parent))
        monkeypatch.delitem(sys.modules, "lm_eval", raising=False)
        return package

    return install


def evaluator():
    return LmEval("task", base="org/base", timeout=60, of={"base": "b"})


def test_scores_are_of_the_first_metric_that_all_samples_have_in_the_order_of_documents(installed, tmp_path):
    package = installed("exact_match", "acc_norm", "f1")
    found = evaluator().evaluate(tmp_path / "adapter", None)
    assert (found.unit, found.scores, found.weights) == ("example", [1.0, 0.0], [1.0, 1.0])
    words = json.loads((package / "words.json").read_text())
    model = f"pretrained=org/base,peft={tmp_path / 'adapter'}"
    assert words[1:7] == ["--model", "hf", "--model_args", model, "--tasks", "task"]
    assert "--log_samples" in words


def test_samples_without_a_metric_that_is_known_are_an_error(installed, tmp_path):
    installed("f1")
    with pytest.raises(GradienceError, match="left no samples of task with one of acc"):
        evaluator().evaluate(tmp_path / "adapter", None)


def test_a_path_with_a_comma_would_be_read_as_two_arguments(installed):
    installed("acc")
    with pytest.raises(GradienceError, match="cannot take a path with a comma"):
        evaluator().evaluate(Path("a,b"), None)


def test_without_lm_eval_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("gradience.verbs.bench.evaluators.find_spec", lambda _name: None)
    with pytest.raises(GradienceError, match="lm-eval is not installed"):
        evaluator()
