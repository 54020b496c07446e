"""A file read whole into memory that is used again: its bytes, its limits, and what became of longer ones."""

from __future__ import annotations

import os

import numpy as np
import pytest
from safetensors.numpy import save_file
from tables import every

from gradience.adapters.open import Buffer, HeldFile, header_of
from gradience.errors import AdapterError
from gradience.io.safetensors import SafetensorsFile


@every("size", [0, 1, 7, 8, 9, 15, 16])
def test_a_buffer_holds_files_up_to_its_limit_and_no_longer_ones(tmp_path, monkeypatch, size):
    monkeypatch.setattr("gradience.adapters.open._FIRST_ROOM", 4)
    path, data = tmp_path / "f", os.urandom(size)
    path.write_bytes(data)
    for buffer in (Buffer(15), used(tmp_path, Buffer(15))):
        found = buffer.read(path)
        assert (None if found is None else found.tobytes()) == (data if size <= 15 else None)


def used(tmp_path, buffer):
    (tmp_path / "before").write_bytes(b"x" * 15)
    assert buffer.read(tmp_path / "before") is not None
    return buffer


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe, not a regular file"):
        Buffer(100).read(tmp_path / "pipe")


def held_file(path):
    data = Buffer(1 << 20).read(path)
    return HeldFile(path, data, header_of(path, data))


def test_tensors_are_those_of_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.ones(3, np.int8)}, path, {"format": "pt"})
    one, other = held_file(path), SafetensorsFile(path)
    assert (one.tensors, one.metadata) == (other.tensors, other.metadata)
    assert all((one.read(name) == other.read(name)).all() for name in "xy")
    assert one.raw("x").tobytes() == other.raw("x").tobytes()


@every("cut", [0, 4, 8, 40, -1])
def test_a_damaged_file_is_refused_in_the_same_words(tmp_path, cut):
    path = tmp_path / "a.safetensors"
    save_file({"x": np.zeros(100, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:cut])
    said = []
    for opening in (SafetensorsFile, held_file):
        with pytest.raises(AdapterError) as error:
            opening(path)
        said.append(str(error.value))
    assert said[0] == said[1]
