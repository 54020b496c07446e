"""Where a tokenizer is found, what a report says of it, and how long a sequence may be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from tables import every

from gradience.configs.document import DataPlan
from gradience.data import Shape
from gradience.data.formats import recognise
from gradience.data.tokens import Masking
from gradience.errors import ConfigError
from gradience.judge.check.data import (
    _TOKENIZER,
    _beside,
    _derived,
    _examples,
    _length,
    _limit,
    _loss_mode,
    _notes,
    _per_epoch,
    _sample,
    _tokenizer,
    check_data,
)
from gradience.judge.check.options import DataOptions
from gradience.schema.document import Coverage
from gradience.schema.events import ConfigSnapshot, TrainingSnapshot
from gradience.schema.reports import CHECK_SCHEMA_ID, CheckReport, DataReport, RowsSeen


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
    names.by_trainer, names.is_retemplated = "", False
    names.marks_answers, names.split_controls = True, lambda: ["<x>"]
    return names


@every(
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
    found = _tokenizer(encoder(template), Shape(form, "sft"), RowsSeen())
    assert (found["tokenizer"], found["pad_is_end"], found["end_tokens"]) == ("tok", True, ["<3>", "<5>"])
    assert ("template" in found) is told
    assert bool(found.get("template_digest")) is told
    asked = encoder(template)
    asked.by_trainer = "qwen"
    by_trainer = _tokenizer(asked, Shape(form, "sft"), RowsSeen())
    assert by_trainer.keys() - {"tokenizer", "pad_is_end", "end_tokens"} == (
        {"template"} if form in {"messages", "instruction"} else set()
    )
    assert _tokenizer(None, Shape("tokenised", "sft"), RowsSeen()) == {}


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
    DataOptions(samples=1).refuse_bad()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"num_labels": 0}, "--num-labels: expected a number of classes from 1, got 0"),
        ({"samples": 0}, "--samples: expected a number of rows or all, got 0"),
        ({"seed": -1}, "--seed: expected a whole number from 0, got -1"),
    ],
)
def test_a_number_out_of_its_range_is_refused_before_anything_is_read(given, says):
    with pytest.raises(ConfigError, match=says):
        check_data("missing.jsonl", **given)


# --- what an epoch holds -----------------------------------------------------------------------------------------


def read(**fields: Any) -> DataReport:
    """A sample of a quarter of 1000 rows."""
    given = {
        "path": "d", "format": "text", "trainer": "sft", "rows": 1000, "rows_read": 250, "sequences": 250,
        "whole_rows": 250, "loss": "all", "tokens": {"total": 6000, "kept": 5000, "supervised": 2001}, **fields,
    }  # fmt: skip
    return msgspec.convert(given, DataReport)


@every(("tokens", "rows", "of", "expected"), [(5000, 1000, 250, 20_000), (1, 3, 2, 2), (7, 10, 10, 7), (7, 10, 0, 0)])
def test_tokens_of_an_epoch_are_those_of_the_sample_times_its_rows(tokens, rows, of, expected):
    assert _per_epoch(read(rows=rows, rows_read=of), tokens) == expected


@every(("packing", "packed", "examples"), [(False, 50, 1000), (True, 50, 200), (True, None, 1000), (True, 0, 1000)])
def test_examples_of_an_epoch_are_rows_or_packed_sequences(packing, packed, examples):
    batching = {"batch_size": 8} | ({} if packed is None else {"packed_sequences": packed})
    assert _examples(read(packing=packing, batching=batching)) == examples


@every(
    ("batch", "size", "trainer", "derived"),
    [
        (None, None, "sft", {"supervised_tokens_per_epoch": 8004}),
        (8.0, None, "sft", {"supervised_tokens_per_epoch": 8004, "steps_per_epoch": 125}),
        (7.0, None, "kto", {"supervised_tokens_per_epoch": 8004, "steps_per_epoch": 143}),
        (1.0, None, "reward", {"steps_per_epoch": 1000}),
        (0.0, 4000, "classification", {"tokens_per_parameter": 5.0}),
        (None, 0, "dpo", {"supervised_tokens_per_epoch": 8004}),
    ],
)
def test_what_follows_from_the_data_and_its_configuration(batch, size, trainer, derived):
    covered = {"base": "m", "model_type": "llama", "layout": "x", "modules": 1, "layers": 1, "layers_total": 1}
    base = CheckReport(
        schema=CHECK_SCHEMA_ID,
        config=ConfigSnapshot(),
        derived={} if batch is None else {"effective_batch": batch},
        coverage=None if size is None else msgspec.convert({**covered, "lora_params": size}, Coverage),
    )
    assert _derived(base, read(trainer=trainer)) == {"tokens_per_epoch": 20_000, **derived}


@every(
    ("form", "trainer", "asked", "mode"),
    [
        *(("messages", trainer, "assistant", "none") for trainer in ("reward", "classification")),
        *(("messages", trainer, "all", "completion") for trainer in ("dpo", "kto")),
        ("messages", "sft", None, "all"),
        ("messages", "sft", "assistant", "assistant"),
        ("prompt-completion", "sft", None, "completion"),
        ("instruction", "sft", None, "completion"),
        ("instruction", "sft", "all", "all"),
        ("text", "sft", None, "all"),
    ],
)
def test_the_loss_is_the_trainer_s_own_unless_it_was_asked_for(form, trainer, asked, mode):
    assert _loss_mode(Shape(form, trainer), Masking(asked)) == mode


@every(
    ("given", "trainer", "program", "limit"),
    [
        (0, "sft", "trl", None),
        (7, "sft", "trl", 7),
        (None, "sft", "trl", 1024),
        (None, "classification", "trl", None),
        (None, "sft", "axolotl", None),
    ],
)
def test_without_a_limit_trl_has_one_of_1024_tokens(given, trainer, program, limit):
    asked = SimpleNamespace(max_length=given, masking=Masking(None, program))
    notes = ["no length limit is given: TRL's default of 1024 tokens"] if limit == 1024 else []
    assert _limit(asked, Shape("messages", trainer)) == (limit, notes)


def test_notes_say_how_instructions_are_written_and_who_masks():
    written = "an instruction is written as a user's message with its input, the output as the answer"
    assert _notes(Shape("instruction", "sft"), Masking(None)) == [written]
    assert _notes(recognise({"instruction": "", "input": "", "resume": "x", "n": 1, "output": ""}), Masking(None)) == [
        written,
        "columns that are not read: resume",
    ]
    assert _notes(Shape("messages", "sft"), Masking(None)) == []
    (masks,) = _notes(Shape("messages", "sft"), Masking(None, "axolotl"))
    assert masks.endswith(" masks by turn: its masks are rebuilt from the chat template, turn by turn")
