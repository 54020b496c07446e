"""The one table of what programs call a thing: every name in it is read, and stands for one thing."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import msgspec
import pytest

from gradience.configs.document import read_settings
from gradience.errors import RecorderError
from gradience.importers.table import find_columns
from gradience.names import NAMES, columns_of
from gradience.telemetry.near import near_choice, near_event

PROGRAMS = ("mlx", "torchtune", "axolotl", "llama_factory")
VALUES = {
    "whole": 3,
    "real": 0.5,
    "reals": [0.9, 0.95],
    "flag": True,
    "maybe": True,
    "strategy": "steps",
    "text": "sft",
    "names": ["q"],
    "name_list": ["q"],
    "keyword": "none",
    "profile": "generation",
    "upper": "LORA",
    "as_text": "pissa",
    "whole_pattern": {"q": 4},
    "real_pattern": {"q": 4.0},
    "layer_numbers": [0, 1],
    "layer_ranges": [[0, 2]],
    "short_name": "owner/model",
    "short_names": "owner/data",
    "token_indices": [1, 2],
}
SETTINGS = [(level, field, named) for level, table in NAMES.settings.items() for field, named in table.items()]


def twice(names):
    return [name for name, n in Counter(names).items() if n > 1]


def test_every_name_of_a_setting_is_read_as_that_setting():
    unread = []
    for level, field, named in SETTINGS:
        for name in (*named.native.split(), *named.loose.split()):
            value = VALUES[named.read]
            document = {level: {name: value}} if (level, name) == ("optimizer", "name") else {name: value}
            config = read_settings(document).config
            held = config if level == "run" else getattr(config, level)
            if getattr(held, field, None) is None and field not in held.extras:
                unread.append((level, field, name))
    assert unread == []


def test_every_name_of_a_column_is_found_as_that_column():
    for column in NAMES.columns:
        for name in columns_of(column):
            present = {name, "step", "eval_loss"} if column != "step" else {name, "loss"}
            assert find_columns(present)[name] == column, name
    for metric, name in NAMES.held_out.items():
        assert find_columns({"step", name.replace("_", " ")})[name.replace("_", " ")] == metric
    with pytest.raises(RecorderError, match="no column is a loss"):
        find_columns({"step", "los"})


def test_every_name_of_an_event_or_a_choice_is_near_it():
    assert all(near_event(name) == event for event, names in NAMES.events.items() for name in names.split())
    for field, choices in NAMES.choices.items():
        assert all(near_choice(field, name) == value for value, names in choices.items() for name in names.split())


def test_no_name_stands_for_two_things_of_a_section():
    for table in NAMES.settings.values():
        people = [name for named in table.values() for name in f"{named.native} {named.loose} {named.parts}".split()]
        assert twice(people) == []
        for program in PROGRAMS:
            assert twice(name for named in table.values() for name in getattr(named, program).split()) == []
    columns = chain.from_iterable(columns_of(column) for column in NAMES.columns)
    assert twice(columns) == ["epoch"]  # Keras' CSVLogger counts nothing else
    for names in (*NAMES.log.values(), *NAMES.choices.values(), NAMES.events, NAMES.metrics, NAMES.held_out):
        assert twice(name for text in names.values() for name in text.split()) == []


def test_a_key_that_the_table_does_not_know_is_refused():
    given = msgspec.to_builtins(NAMES)
    given["settings"]["lora"]["r"]["llamafactory"] = "lora_rank"
    with pytest.raises(msgspec.ValidationError, match=r"unknown field `llamafactory` - at `\$.settings"):
        msgspec.convert(given, type(NAMES))
