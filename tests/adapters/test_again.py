"""An adapter laid out as one before it: the same as if it had been read alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fleet_inputs import factors, peft

from gradience.adapters import open as opening
from gradience.adapters.open import Buffer, Layouts, find_files, read_adapter
from gradience.errors import AdapterError

PLAIN = ("name", "kind", "shape", "r", "alpha", "scale", "params", "config_r", "rank_pattern", "rslora", "base_name")


class Reader:
    def __init__(self):
        self.buffer, self.layouts = Buffer(1 << 24), Layouts()

    def __call__(self, folder):
        files = find_files(folder)
        return self.layouts.read(files, self.buffer.read(files.weights))


def told(adapter):
    modules = [[getattr(m, name) for name in PLAIN] for m in adapter.modules]
    return (modules, adapter.config, adapter.notes, adapter.weights, adapter.roles, adapter.unmatched_rank_patterns)


def with_config(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


@pytest.fixture
def parsed(monkeypatch):
    """The folders whose names were taken apart."""
    seen = []
    real = opening.read_adapter
    monkeypatch.setattr(
        opening, "read_adapter", lambda files, opened: seen.append(files.folder.name) or real(files, opened)
    )
    return seen


def test_equal_layouts_are_taken_apart_once_and_told_apart_by_their_numbers(tmp_path, parsed):
    read = Reader()
    for seed, name in enumerate("abc"):
        folder = with_config(peft(tmp_path / name, factors(seed)), base_model_name_or_path=f"base-{name}")
        adapter, alone = read(folder), read_adapter(find_files(folder))
        assert told(adapter) == told(alone)
        assert adapter.source.path == folder / "adapter_model.safetensors"  # named by errors in the numbers
        for one, other in zip(adapter.modules, alone.modules, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(one.load(), other.load(), strict=True))
    assert parsed == ["a"]


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_alpha": 99},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2.0, ".*": 3.0}},
        {"rank_pattern": {"q_proj": True}},
        {"fan_in_fan_out": True},
        {"init_lora_weights": "pissa"},
    ],
)
def test_another_config_under_the_same_header_is_read_anew(tmp_path, fields, parsed):
    read = Reader()
    read(with_config(peft(tmp_path / "a", factors(0)), alpha_pattern={".*": 3.0, "q_proj": 2.0}))
    folder = with_config(peft(tmp_path / "b", factors(1)), **fields)
    assert told(read(folder)) == told(read_adapter(find_files(folder)))
    assert parsed == ["a", "b"]


def test_a_config_that_is_gone_or_wrong_is_an_error_although_the_header_is_known(tmp_path):
    read = Reader()
    read(peft(tmp_path / "a", factors(0)))
    folder = peft(tmp_path / "b", factors(1))
    for text in ("{", '{"peft_type": "LORA", "r": 0}', '{"peft_type": "LOHA"}', None):
        path = folder / "adapter_config.json"
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(AdapterError) as known:
            read(folder)
        with pytest.raises(AdapterError) as alone:
            read_adapter(find_files(folder))
        assert str(known.value) == str(alone.value)
    weights = folder / "adapter_model.safetensors"
    peft(tmp_path / "c", factors(1))
    (tmp_path / "c" / "adapter_config.json").rename(folder / "adapter_config.json")
    for data in (weights.read_bytes() + bytes(8), weights.read_bytes()[:-8]):  # of the known header, and damaged
        weights.write_bytes(data)
        with pytest.raises(AdapterError):
            read(folder)


def test_only_the_layouts_met_last_are_kept(tmp_path, monkeypatch, parsed):
    monkeypatch.setattr(opening, "_MOST", 1)
    read = Reader()
    one, other = peft(tmp_path / "a", factors(0)), peft(tmp_path / "b", factors(1, r=3), r=3)
    for folder in (one, one, other, other, one):
        read(folder)
    assert parsed == ["a", "b", "a"]
    monkeypatch.setattr(opening, "_MOST", 2)
    read, third = Reader(), peft(tmp_path / "c", factors(2, r=2), r=2)
    del parsed[:]
    for folder in (one, other, one, third, one, other):
        read(folder)
    assert parsed == ["a", "b", "c", "b"]


def test_what_is_no_plain_lora_is_read_anew_and_notes_on_a_folder_stay_with_it(tmp_path, parsed):
    read = Reader()
    for name in "ab":
        read(with_config(peft(tmp_path / name, factors(0)), init_lora_weights="pissa"))
    assert parsed == ["a", "b"]
    peft(peft(tmp_path / "c", factors(0)) / "further", factors(0))
    notes = [read(folder).notes for folder in (tmp_path / "c", peft(tmp_path / "d", factors(0)), tmp_path / "c")]
    assert parsed == ["a", "b", "c"]
    assert (len(notes[0]), notes[1], notes[2]) == (1, [], notes[0])
