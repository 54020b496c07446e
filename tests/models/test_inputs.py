"""Rows become tokens, the choice depends on content and seed alone, and a bad row is named by its number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tables import every

from gradience.data.encoder import Encoder
from gradience.errors import ConfigError
from gradience.models.inputs import ModelInput, batches, digest_of, read_inputs
from gradience.models.outputs import InputScores, divergence, tokens_within


def as_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_choice_is_the_same_in_any_order_and_another_with_another_seed(loaded, texts, tmp_path):
    lines = texts.read_text().splitlines()
    turned = tmp_path / "turned.txt"
    turned.write_text("\n".join([*lines[::-1], *lines[:9]]))
    first, second = read_inputs(texts, loaded, most=10), read_inputs(turned, loaded, most=10)
    assert first == second
    assert first.found == len(set(lines))
    assert digest_of(first.examples) != digest_of(read_inputs(texts, loaded, most=10, seed=1).examples)


def test_places_that_count_depend_on_the_kind_of_row(loaded, tmp_path):
    rows = [{"text": "w0 w1 w2"}, {"prompt": "w3 w4"}, {"prompt": "w5 ", "completion": "w6 w7", "label": 1}]
    inputs = read_inputs(as_jsonl(tmp_path / "rows.jsonl", rows), loaded, most=9)
    assert sorted(inputs.examples) == [
        ModelInput((2, 4, 5, 6, 3), 0, 4, None),  # whole: all but after the last token
        ModelInput((2, 7, 8, 3), 0, 4, None),  # to be continued: after the last token, too
        ModelInput((2, 9, 10, 11, 3), 1, 4, 1),  # a completion: from the last token of the prompt, without its [SEP]
    ]


def test_messages_go_through_the_chat_template(llama, loaded, tmp_path):
    template = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}w9{% endif %}"
    rows = [{"messages": [{"role": "user", "content": "w1"}]}]
    with pytest.raises(ConfigError, match="no chat template"):
        read_inputs(as_jsonl(tmp_path / "m.jsonl", rows), loaded, most=1)
    (tmp_path / "chat.jinja").write_text(template)
    chatty = replace(loaded, tokenizer=Encoder(Path(llama.base), tmp_path / "chat.jinja"))
    (example,) = read_inputs(tmp_path / "m.jsonl", chatty, most=1).examples
    assert example == ModelInput((5, 13), 0, 2)


def test_parquet_rows_are_read_like_json(loaded, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["w0 w1", "w2"], "other": [1, 2]}), tmp_path / "t.parquet")
    same = as_jsonl(tmp_path / "t.jsonl", [{"text": "w0 w1"}, {"text": "w2"}])
    assert read_inputs(tmp_path / "t.parquet", loaded, most=5) == read_inputs(same, loaded, most=5)


@every(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b'{"text": "w1"}\n{"texts": "w1"}\n', "row 2: holds texts, expected text, prompt or messages"),
        (b'{"text": "w1"}\nnot json\n', ":2: no JSON object"),
        (b"\xff\xfe\x00w", ":1: no UTF-8 text"),
        (b"a\x00b\n", ":1: a NUL"),
        (b"PAR1 and no more", "damaged Parquet"),
    ],
)
def test_a_file_that_holds_no_inputs_is_refused_with_the_line(loaded, tmp_path, content, says):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_inputs(tmp_path / "bad", loaded, most=5)
    assert says in str(caught.value)


# --- batches ---------------------------------------------------------------------------------------------------


def model(task: str = "causal-lm", **config: Any) -> Any:
    embeddings = SimpleNamespace(weight=np.zeros((50, 2)))
    return SimpleNamespace(
        task=task,
        config=SimpleNamespace(**config),
        tokenizer=SimpleNamespace(special_ids=[0, 9]),
        model=SimpleNamespace(get_input_embeddings=lambda: embeddings),
    )


def test_a_batch_s_tokens_follow_from_the_size_of_the_model():
    per_token = 4 * (24 * 2 * 64 + 4 * 1000)
    assert tokens_within(model(hidden_size=64, num_hidden_layers=2, vocab_size=1000)) == (96 << 20) // per_token
    assert tokens_within(model("other", hidden_size=64, num_hidden_layers=2, vocab_size=1000)) == (96 << 20) // (
        4 * 24 * 2 * 64
    )
    assert tokens_within(model(hidden_size=10**8)) == 1


def test_batches_take_the_longest_first_and_as_many_as_fit():
    examples = [ModelInput(tuple(range(n)), 0, n - 1, None) for n in (2, 4, 4, 1, 3)]
    made = batches(examples, tokens=9, pad=7)
    assert [one.rows for one in made] == [[1, 2], [4, 0, 3]]
    assert made[1].ids.tolist() == [[0, 1, 2], [0, 1, 7], [0, 7, 7]]
    assert made[1].mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert made[1].counts.tolist() == [[True, True, False], [True, False, False], [False] * 3]
    assert [one.rows for one in batches(examples, tokens=9, pad=None)] == [[1], [2], [4], [0], [3]]
    assert [len(one.rows) for one in batches(examples, tokens=1, pad=0)] == [1] * 5


def test_one_prediction_is_its_own_mean():
    assert divergence([InputScores(0, 1, 0.5, 1, 0.0, 0.0, 0)]) == (0.5, 1.0, 1)
