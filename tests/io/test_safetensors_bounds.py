"""The bounds of a header and of an index: the last value that is right, and the first that is not."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tables import every

from gradience.errors import AdapterError
from gradience.io.safetensors import (
    SafetensorsFile,
    ShardedFiles,
    ThreadBuffer,
    file_size,
    indexed_files,
    is_float,
    planned,
    write_safetensors,
)

LIMIT = 100_000_000  # bytes, the format's


def written(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def the_library_reads(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy") as opened:
            return opened.keys() is not None
    except SafetensorError:
        return False


def we_read(path: Path) -> bool:
    try:
        SafetensorsFile(path)
    except AdapterError:
        return False
    return True


@pytest.mark.parametrize(("length", "readable"), [(LIMIT, True), (LIMIT + 1, False)])
def test_a_header_of_a_hundred_million_bytes_is_the_longest_for_us_as_for_the_library(tmp_path, length, readable):
    path = written(tmp_path / "long.safetensors", b"{}".ljust(length))
    assert the_library_reads(path) is readable
    if readable:
        assert SafetensorsFile(path).tensors == {}
    else:
        with pytest.raises(AdapterError, match=f"a header of {length} bytes, over the format's limit of {LIMIT}"):
            SafetensorsFile(path)


@every(("header", "readable"), [(b"{}", True), (b"{", False), (b"", False)])
def test_two_bytes_are_the_shortest_header(tmp_path, header, readable):
    path = written(tmp_path / "short.safetensors", header)
    assert we_read(path) is readable is the_library_reads(path)


@every("change", [-1, 0, 1])
def test_a_declared_length_must_be_the_headers_own(tmp_path, change):
    header = json.dumps({"a": entry([2], 0, 8)}).encode()
    path = written(tmp_path / "a.safetensors", header, b"\0" * 8, length=len(header) + change)
    assert we_read(path) is (change == 0) is the_library_reads(path)


def test_a_header_that_ends_where_the_file_ends_is_whole_and_one_byte_more_is_missing(tmp_path):
    path = written(tmp_path / "a.safetensors", b"{}  ")
    assert SafetensorsFile(path).tensors == {}
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="truncated: 12 bytes expected by its header, 11 found"):
        SafetensorsFile(path)


@every("extra", [-1, 0, 1])
def test_data_must_end_where_the_last_tensor_does(tmp_path, extra):
    header = json.dumps({"a": entry([2], 0, 8), "b": entry([1], 8, 12)}).encode()
    path = written(tmp_path / "a.safetensors", header, b"\0" * (12 + extra))
    assert we_read(path) is (extra == 0) is the_library_reads(path)


@every(("axes", "readable"), [(32, True), (33, False)])
def test_thirty_two_axes_are_the_most(tmp_path, axes, readable):
    header = json.dumps({"a": entry([1] * axes, 0, 4)}).encode()
    assert we_read(written(tmp_path / "a.safetensors", header, b"\0" * 4)) is readable


@every("nbytes", [7, 8, 9])
def test_a_tensor_has_as_many_bytes_as_its_shape_and_dtype_need(tmp_path, nbytes):
    header = json.dumps({"a": entry([2, 1], 0, nbytes)}).encode()
    path = written(tmp_path / "a.safetensors", header, b"\0" * nbytes)
    assert we_read(path) is (nbytes == 8) is the_library_reads(path)


def test_an_empty_tensor_between_others_is_read(tmp_path):
    header = json.dumps({"a": entry([1], 0, 4), "b": entry([0, 3], 4, 4), "c": entry([1], 4, 8)}).encode()
    file = SafetensorsFile(written(tmp_path / "a.safetensors", header, struct.pack("<ff", 1, 2)))
    assert (file.read("a").tolist(), file.read("b").shape, file.read("c").tolist()) == ([1.0], (0, 3), [2.0])


def test_tensors_may_be_declared_in_another_order_than_their_data(tmp_path):
    header = json.dumps({"b": entry([1], 4, 8), "c": entry([1], 8, 12), "a": entry([1], 0, 4)}).encode()
    file = SafetensorsFile(written(tmp_path / "a.safetensors", header, struct.pack("<fff", 1, 2, 3)))
    assert [file.read(name).item() for name in "abc"] == [1.0, 2.0, 3.0]


@every(
    ("first", "what"), [(0x3C, "<, as a web page"), (0x80, "a pickle's"), (0x50, "P"), (0x47, "G"), (0x93, "NumPy's")]
)
def test_a_header_whose_length_looks_like_another_formats_first_byte_is_read(tmp_path, first, what):
    path = written(tmp_path / "a.safetensors", b"{}".ljust(first))
    assert path.read_bytes()[0] == first
    assert SafetensorsFile(path).tensors == {}


@every(
    ("start", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "a git-lfs pointer"),
        (b"<!DOCTYPE html>" + b" " * 60, "an HTML or XML page"),
        (b"\x80\x02}q\x00." + b" " * 60, "a pickle"),
        (b"PK\x03\x04" + b"\0" * 60, "a zip archive"),
        (b"GGUF" + b"\0" * 60, "a GGUF file"),
        (b"\x93NUMPY" + b"\0" * 60, "a NumPy file"),
    ],
)
def test_a_file_of_another_format_is_named_as_what_it_is(tmp_path, start, message):
    (tmp_path / "a.safetensors").write_bytes(start)
    with pytest.raises(AdapterError, match=f"is {message}"):
        SafetensorsFile(tmp_path / "a.safetensors")


CONTRADICTIONS = {
    "a hole": {"a": entry([1], 0, 4), "b": entry([1], 8, 12)},
    "an overlap": {"a": entry([2], 0, 8), "b": entry([1], 4, 8), "c": entry([1], 8, 12)},
    "an end before its beginning": {"a": entry([1], 0, 4), "b": entry([2], 4, -4), "c": entry([3], 4, 12)},
    "a negative shape": {"a": entry([-1, -3], 0, 12)},
    "a first tensor that begins late": {"a": entry([2], 4, 12)},
}


@every("header", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_header_that_contradicts_itself_is_refused_by_us_as_by_the_library(tmp_path, header):
    path = written(tmp_path / "a.safetensors", json.dumps(header).encode(), b"\0" * 12)
    assert not we_read(path)
    assert not the_library_reads(path)


def test_a_declared_length_at_the_limit_in_a_short_file_is_a_file_cut_short(tmp_path):
    with pytest.raises(AdapterError, match=f"truncated: {LIMIT + 8} bytes expected"):
        SafetensorsFile(written(tmp_path / "a.safetensors", b"{}", length=LIMIT))
    with pytest.raises(AdapterError, match="not a safetensors file"):
        SafetensorsFile(written(tmp_path / "b.safetensors", b"{}", length=LIMIT + 1))


def test_the_size_of_a_file_is_known_before_it_is_written(tmp_path):
    tensors = [planned(name, "F32", (n,), lambda n=n: np.ones(n)) for name, n in (("a", 3), ("long name", 10))]
    write_safetensors(tmp_path / "a.safetensors", tensors, metadata={"format": "pt"})
    assert file_size(tensors, metadata={"format": "pt"}) == (tmp_path / "a.safetensors").stat().st_size


def test_a_slice_is_read_from_its_own_place_and_no_other_exists(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    save_file({"before": np.ones(5, np.float32), "x": x, "scalar": np.ones((), np.float32)}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    for index in range(3):
        np.testing.assert_array_equal(file.read_slice("x", index), x[index])
    for name, index in (("x", 3), ("x", -1), ("scalar", 0)):
        with pytest.raises(AdapterError, match=f"has no slice {index}"):
            file.read_slice(name, index)


def test_a_file_that_is_cut_after_it_was_opened_is_named_with_the_bytes_it_lacks(tmp_path):
    save_file({"x": np.arange(4, dtype=np.float32)}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-1])
    with pytest.raises(AdapterError, match=f"truncated: {len(whole)} bytes expected by its header, {len(whole) - 1}"):
        file.read("x")


def test_a_tensor_is_read_in_parts_of_its_own_bytes_and_no_others(tmp_path):
    x = np.arange(12, dtype=np.uint8)
    save_file({"a": np.ones(8, np.uint8), "x": x, "z": np.ones(8, np.uint8)}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    out = np.zeros(5, np.uint8)
    with file.reader("x") as reader:
        for start in (0, 7, 3):
            reader.into(start, out)
            np.testing.assert_array_equal(out, x[start : start + 5])
        for start in (-1, 8):
            with pytest.raises(ValueError, match=f"bytes {start} to {start + 5} of a tensor of 12"):
                reader.into(start, out)
        whole = file.path.read_bytes()
        file.path.write_bytes(whole[:-9])
        with pytest.raises(AdapterError, match=f"truncated: {len(whole) - 8} bytes expected by its header"):
            reader.into(7, out)
    file.path.unlink()
    with pytest.raises(AdapterError, match="cannot read"):
        file.reader("x")


def test_a_dtype_without_an_array_type_is_listed_and_not_read(tmp_path):
    header = json.dumps({"a": entry([4], 0, 3, dtype="F6_E2M3")}).encode()
    file = SafetensorsFile(written(tmp_path / "a.safetensors", header, b"abc"))
    assert file.raw("a").tobytes() == b"abc"
    with pytest.raises(AdapterError, match="F6_E2M3, which cannot be read"):
        file.read("a")


def test_floats_are_those_dtypes_that_can_be_read_and_multiplied():
    assert all(map(is_float, ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")))
    assert not any(map(is_float, ("I8", "U8", "BOOL", "F6_E2M3", "F4", "")))


def test_two_shards_may_not_hold_one_name(tmp_path):
    for name in "ab":
        save_file({"x": np.ones(1, np.float32)}, tmp_path / f"{name}.safetensors")
    shards = [SafetensorsFile(tmp_path / f"{name}.safetensors") for name in "ab"]
    with pytest.raises(AdapterError, match="both hold a tensor 'x'"):
        ShardedFiles(tmp_path / "index", shards)


def indexed(folder: Path, names: list[str]) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(
        json.dumps({"metadata": {"total_size": 8}, "weight_map": {f"t{i}": n for i, n in enumerate(names)}})
    )
    return path


def test_an_index_names_each_file_once_in_the_order_of_names(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).touch()
    assert indexed_files(indexed(tmp_path, ["b", "a", "b"])) == [tmp_path / "a", tmp_path / "b"]


@every(
    ("names", "message"),
    [
        ([], "names 0 files"),
        (["here", "gone", "lost"], "2 of 3 shards .* are missing .first: gone"),
        (["../here"], "outside its folder"),
        (["/here"], "outside its folder"),
        ([".."], "outside its folder"),
        (["."], "outside its folder"),
        ([""], "outside its folder"),
        (["a\\here"], "outside its folder"),
        (["here\0"], "outside its folder"),
        ([f"s{i}" for i in range(10_001)], "names 10001 files"),
        ([f"s{i}" for i in range(10_000)], "10000 of 10000 shards"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_index_of_files_that_are_not_there_or_not_its_own_is_refused(tmp_path, names, message):
    (tmp_path / "here").touch()
    with pytest.raises(AdapterError, match=message):
        indexed_files(indexed(tmp_path, names))


def test_bfloat16_keeps_its_bits(tmp_path):
    header = json.dumps({"a": entry([2], 0, 4, dtype="BF16")}).encode()
    file = SafetensorsFile(written(tmp_path / "a.safetensors", header, b"\x80\x3f\x00\x40"))
    assert file.read("a").dtype == ml_dtypes.bfloat16
    assert file.read("a").astype(np.float32).tolist() == [1.0, 2.0]


def test_memory_that_is_given_holds_one_tensor_after_the_other_where_xla_wants_it(tmp_path):
    tensors = {"small": np.arange(6, dtype=np.int16).reshape(2, 3), "large": np.arange(4000.0).reshape(2, 2000)}
    save_file(tensors, tmp_path / "x.safetensors")
    file, memory = SafetensorsFile(tmp_path / "x.safetensors"), ThreadBuffer()
    for name in ("small", "large", "small"):
        found = file.read(name, memory)
        assert found.ctypes.data % 64 == 0
        assert found.dtype == tensors[name].dtype
        assert np.array_equal(found, tensors[name])
    again = file.read_slice("large", 1, memory)
    assert again.ctypes.data == found.ctypes.data  # the larger room is kept
    assert np.array_equal(again, tensors["large"][1])
