"""The rows of a receipt without a file of them: of the data set that a recipe names, or sampled."""

from __future__ import annotations

import json
import shutil

import pytest

from gradience.cli.main import main
from gradience.errors import ConfigError
from gradience.verbs.receipt.options import ReceiptOptions
from gradience.verbs.receipt.run import make_receipt

FOUR = ReceiptOptions(rows=4)


@pytest.fixture
def run(llama, tmp_path):
    """A run's folder with the adapter below it, an evaluation set and a recipe of Axolotl that names it."""
    shutil.copytree(llama.adapter, tmp_path / "run" / "adapter")
    rows = [json.dumps({"text": f"w{i} w{i + 1} w{i + 2} w{i + 3}"}) for i in range(20)]
    (tmp_path / "run" / "eval.jsonl").write_text("\n".join(rows))
    (tmp_path / "run" / "train.jsonl").write_text("\n".join(rows[:3]))
    (tmp_path / "run" / "a.yaml").write_text("services: {db: {image: x}}\n")  # another program's
    recipe = {"base_model": "b", "micro_batch_size": 1, "datasets": [{"path": "train.jsonl", "type": "completion"}],
              "test_datasets": [{"path": "eval.jsonl", "type": "completion"}]}  # fmt: skip
    (tmp_path / "run" / "axolotl.yaml").write_text(json.dumps(recipe))
    return tmp_path / "run"


def test_a_recipe_beside_the_adapter_names_the_evaluation_set(run, llama):
    made = make_receipt(run / "adapter", llama.base, options=FOUR)
    assert made.rows_from == "eval.jsonl, which axolotl.yaml names"
    assert {len(row.ids) for row in made.rows} == {6}
    given = make_receipt(run / "adapter", llama.base, prompts=run / "eval.jsonl", options=FOUR)
    assert (given.rows_from, given.rows) == ("eval.jsonl", made.rows)
    named = make_receipt(llama.adapter, llama.base, prompts=run / "axolotl.yaml", options=FOUR)
    assert (named.rows_from, named.rows) == (made.rows_from, made.rows)


def test_without_an_evaluation_set_the_training_set_is_read(run, llama):
    (run / "eval.jsonl").unlink()
    made = make_receipt(run / "adapter", llama.base, options=FOUR)
    assert (made.rows_from, len(made.rows)) == ("train.jsonl, which axolotl.yaml names", 3)
    with pytest.raises(ConfigError, match=r"a\.yaml names no data set below its folder"):
        make_receipt(run / "adapter", llama.base, prompts=run / "a.yaml")


def test_without_a_recipe_base_and_adapter_sample_rows(llama, tmp_path, capsys):
    made = make_receipt(llama.adapter, llama.base, options=FOUR)
    assert made.rows_from == "sampled by base and adapter"
    assert made.rows == make_receipt(llama.adapter, llama.base, options=FOUR).rows
    assert made.rows != make_receipt(llama.adapter, llama.base, options=ReceiptOptions(rows=4, seed=1)).rows
    assert made.forward_rows == 4 + 2 * 4 + 4 * 4
    assert len({tuple(row.ids) for row in made.rows}) == 4
    out = tmp_path / "receipt.json"
    assert main(["receipt", str(llama.adapter), "--base", str(llama.base), "--out", str(out), "--rows", "2"]) == 0
    assert "Rows:       sampled by base and adapter" in capsys.readouterr().out
    assert main(["verify", str(llama.adapter), "--receipt", str(out), "--base", str(llama.base)]) == 0


def test_rows_are_sampled_from_the_models_own_distribution(llama):
    """More probable under the adapter than tokens that are drawn evenly."""
    import numpy as np

    made = make_receipt(llama.adapter, llama.base, options=ReceiptOptions(rows=8))
    own = np.concatenate([row.adapter for row in made.rows]).mean()
    even = np.concatenate([row.base for row in made.rows]).mean()
    assert own > even + 0.5
