"""Single parts: the histogram, quantiles, mojibake, rows of odd shape, overlap, recipes without data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from tables import every

from gradience.blocks.plots import histogram_lines
from gradience.configs.document import read_data_plan
from gradience.data import Shape, Unusable
from gradience.data.formats import canonical
from gradience.data.measure import quantile
from gradience.data.overlap import EvalRows
from gradience.data.tokens import common_prefix
from gradience.rules.data.content import is_mojibake


def test_the_limit_is_drawn_behind_the_bar_that_it_ends() -> None:
    lines = histogram_lines([1, 4, 2], 10, limit=20, height=2)
    assert [line[10:] for line in lines] == [" █│", "▄█│█", "0 limit 20 30"]
    assert histogram_lines([1, 4, 2], 10, limit=31, height=1)[0][10:] == "▂█▄"
    assert histogram_lines([], 10) == histogram_lines([0, 0], 10) == []


@given(st.lists(st.integers(0, 999), min_size=1, max_size=60), st.sampled_from([50, 90, 95, 99]))
def test_a_quantile_keeps_its_share_whole_and_no_smaller_value_does(values: list[int], percent: int) -> None:
    found = quantile(sorted(values), percent)
    assert 100 * sum(value <= found for value in values) >= percent * len(values)
    assert 100 * sum(value < found for value in values) < percent * len(values)


@given(st.text(alphabet="äöüßéèñç€", min_size=1, max_size=6))
def test_any_accented_word_read_as_latin_1_is_mojibake(word: str) -> None:
    assert is_mojibake(word.encode("utf-8").decode("latin-1"))
    assert not is_mojibake(word)


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_the_common_prefix_ends_where_tokens_differ(some: list[int], others: list[int]) -> None:
    length = common_prefix(some, others)
    assert some[:length] == others[:length]
    assert some[length : length + 1] != others[length : length + 1] or length == min(len(some), len(others))


MESSAGES = Shape("messages", "sft")


@every(
    "messages",
    [
        None,
        [],
        "hello",
        [1],
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": [{"text": "no type"}]}],
    ],
)
def test_messages_of_another_shape_are_a_reason_and_no_crash(messages: object) -> None:
    with pytest.raises(Unusable, match="messages: "):
        canonical({"messages": messages}, MESSAGES, chat=True, trl=True)


def test_short_rows_are_compared_exactly_only() -> None:
    held_out = EvalRows()
    held_out.read([(1, {"text": "yes please do so"}), (2, {"text": "Yes, please do so!"})])
    held_out.compare({"text": "yes please do it"})
    assert held_out.result().near.count == held_out.result().exact.count == 0
    held_out.compare({"text": "yes please DO so."})
    assert (held_out.result().exact.count, held_out.result().by_words.count) == (0, 2)
    held_out.compare({"text": "Yes, please do so!"})
    assert (held_out.result().exact.first, held_out.result().by_words.first) == ([2], [1])


def test_a_recipe_of_data_on_the_hub_names_no_file(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"dataset_name": "org/data", "max_length": 7, "packing": True}), encoding="utf-8")
    plan = read_data_plan(recipe)
    assert (plan.train, plan.max_length, plan.packing, plan.program) == (None, 7, True, "trl")


def test_of_the_files_that_a_recipe_names_those_below_its_folder_are_taken(tmp_path: Path) -> None:
    own = tmp_path / "adapter"
    (own / "data").mkdir(parents=True)
    for place in (own / "data" / "a.jsonl", tmp_path / "secret.jsonl"):
        place.touch()
    (own / "linked.jsonl").symlink_to(tmp_path / "secret.jsonl")
    names = {
        "data/a.jsonl": True,
        f"{own}/data/a.jsonl": True,
        "../secret.jsonl": False,
        f"{tmp_path}/secret.jsonl": False,
    }
    for name, taken in {**names, "linked.jsonl": False, "data/../../secret.jsonl": False}.items():
        for recipe in (
            {"dataset_name": name, "max_length": 7},
            {"datasets": [{"path": name}], "test_datasets": [{"path": name}], "sequence_len": 7, "base_model": "a"},
            {"dataset_name": "data/a.jsonl", "chat_template_path": name},
        ):
            (own / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
            plan = read_data_plan(own / "recipe.json")
            found = (plan.train, plan.evaluation, plan.template)
            assert any(place and place.name in name for place in found) is taken, recipe
            assert any("outside of its folder" in note for note in plan.notes) is not taken
