"""Where a tokenizer is found, what a report says of it, and how long a sequence may be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gradience.configs.data import DataPlan
from gradience.data.shapes import Shape
from gradience.errors import ConfigError
from gradience.schema.config import ConfigSnapshot, TrainingSnapshot
from gradience.verbs.check.data import _TOKENIZER, _beside, _length, _sample, _tokenizer


def test_a_folder_has_a_tokenizer_if_it_has_one_of_its_files(tmp_path):
    folders = [tmp_path / name for name in ("none", "one", "two")]
    for folder in folders:
        folder.mkdir()
    assert _beside(folders) is None
    for name in _TOKENIZER:
        (folders[1] / name).write_text("{}")
        (folders[2] / name).write_text("{}")
        assert _beside(folders) == folders[1]
        (folders[1] / name).unlink()


def encoder(template: str) -> Any:
    names = SimpleNamespace(name="tok", pad_is_end=True, end_ids={5, 3}, template=template, template_from="its own")
    names.names = lambda ids: [f"<{one}>" for one in ids]
    names.marks_answers, names.split_controls = True, lambda: ["<x>"]
    return names


@pytest.mark.parametrize(
    ("template", "form", "told"),
    [
        ("t", "messages", True),
        ("t", "instruction", True),
        ("t", "text", False),
        ("t", "classification", False),
        ("t", "tokenised", False),
        ("", "messages", False),
    ],
)
def test_a_template_is_told_of_where_rows_are_conversations(template, form, told):
    found = _tokenizer(encoder(template), Shape(form, "sft"))
    assert (found["tokenizer"], found["pad_is_end"], found["end_tokens"]) == ("tok", True, ["<3>", "<5>"])
    assert ("template" in found) is told
    assert _tokenizer(None, Shape("tokenised", "sft")) == {}


def test_the_length_is_the_option_s_else_the_recipe_s_else_the_configuration_s():
    plan, config = DataPlan(max_length=20), ConfigSnapshot(training=TrainingSnapshot(max_length=30))
    assert [_length(given, plan, config) for given in (10, 0, None)] == [10, 0, 20]
    assert _length(None, DataPlan(), config) == 30
    assert _length(None, DataPlan(), ConfigSnapshot()) is None
    with pytest.raises(ConfigError, match="got -1"):
        _length(-1, plan, config)


def test_a_sample_is_of_rows_from_one_on_unless_all_are_read():
    assert [_sample(9, samples, 0) for samples in ("all", 9, 10)] == [None, None, None]
    some = [_sample(9, 8, seed) for seed in range(20)]
    assert all(one is not None and len(one) == 8 for one in some)
    assert set().union(*(one or () for one in some)) == set(range(1, 10))
    with pytest.raises(ConfigError, match="got 0"):
        _sample(9, 0, 0)
