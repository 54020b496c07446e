"""Safetensors files, with the library as the oracle: headers, indices, parts of tensors, and what is written."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from tables import every

from gradience.errors import AdapterError, OutputError
from gradience.io.safetensors import (
    DTYPES,
    SafetensorsFile,
    ThreadBuffer,
    copied,
    file_size,
    indexed_files,
    is_float,
    planned,
    read_header,
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


def declared(**entries: Any) -> bytes:
    return json.dumps(entries).encode()


A8, AB = declared(a=entry([2], 0, 8)), declared(a=entry([2], 0, 8), b=entry([1], 8, 12))
HEADERS: dict[str, tuple[bytes, int, int, bool]] = {  # header, data, what is added to its length, whether it is read
    "the shortest": (b"{}", 0, 0, True),
    "one byte": (b"{", 0, 0, False),
    "none": (b"", 0, 0, False),
    **{f"a length of {more:+}": (A8, 8, more, more == 0) for more in (-1, 0, 1, 2**40, 2**63)},
    **{f"data of {more:+}": (AB, 12 + more, 0, more == 0) for more in (-1, 0, 1)},
    **{f"{n} bytes for two floats": (declared(a=entry([2, 1], 0, n)), n, 0, n == 8) for n in (7, 8, 9)},
    "not JSON": (b"{nonsense}", 0, 0, False),
    "deep": (b"[" * 100_000 + b"]" * 100_000, 0, 0, False),
    "an entry that is a text": (b'{"a": "b"}', 0, 0, False),
    "an entry without a shape": (b'{"a": {"dtype": "F32", "data_offsets": [0, 0]}}', 0, 0, False),
    "metadata of numbers": (b'{"__metadata__": {"r": 4}}', 0, 0, False),
    "a hole": (declared(a=entry([1], 0, 4), b=entry([1], 8, 12)), 12, 0, False),
    "an overlap": (declared(a=entry([2], 0, 8), b=entry([1], 4, 8), c=entry([1], 8, 12)), 12, 0, False),
    "an end before its beginning": (
        declared(a=entry([1], 0, 4), b=entry([2], 4, -4), c=entry([3], 4, 12)), 12, 0, False,
    ),
    "offsets beyond 64 bits": (declared(a=entry([2], 0, 10**30)), 8, 0, False),
    "a negative shape": (declared(a=entry([-1, -3], 0, 12)), 12, 0, False),
    "a negative axis of no bytes": (declared(a=entry([-1, 0], 0, 0)), 0, 0, False),
}  # fmt: skip


@every("name", HEADERS)
def test_a_header_is_read_by_us_and_by_the_library_or_by_neither(name, tmp_path):
    header, size, more, readable = HEADERS[name]
    path = written(tmp_path / "a.safetensors", header, bytes(size), length=len(header) + more)
    assert we_read(path) is readable is the_library_reads(path)


@every(
    ("header", "size", "said"),
    [
        (declared(a=entry([1] * 33, 0, 4)), 4, "tensor 'a' claims 33 axes"),
        (declared(a=entry([1] * 32, 0, 4)), 4, None),
        (A8[:-1] + b", " + A8[1:], 8, "names a tensor twice"),
        (b'{"data_offsets": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8, None),
        (A8, 9, "holds 1 bytes that its header does not name"),
        (A8, 7, "is truncated: 8 bytes expected by its header, 7 found"),
        (declared(**{"x" * 1025: entry([2], 0, 8)}), 8, "is 1025 characters long"),
        (declared(a=entry([3], 0, 8)), 8, "tensor 'a' of F32 [3] needs 12 bytes, has 8"),
    ],
)
def test_a_damaged_header_is_refused_in_these_words(header, size, said, tmp_path):
    path = written(tmp_path / "a.safetensors", header, bytes(size))
    if said is None:
        assert len(SafetensorsFile(path).tensors) == 1
        return
    with pytest.raises(AdapterError) as error:
        SafetensorsFile(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


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
    file, held = (SafetensorsFile(tmp_path / "x.safetensors") for _ in range(2))
    assert held.read("x").tolist() == [0, 1, 2, 3]  # and stays open
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-1])
    for again in (file, held):
        with pytest.raises(
            AdapterError, match=f"truncated: {len(whole)} bytes expected by its header, {len(whole) - 1}"
        ):
            again.read("x")


def test_bytes_of_a_tensor_are_read_in_parts_and_none_beyond_it(tmp_path):
    x = np.arange(12, dtype=np.uint8)
    save_file({"a": np.ones(8, np.uint8), "x": x, "z": np.ones(8, np.uint8)}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    for start, most in ((0, 5), (7, 5), (3, 1), (10, 5), (0, None), (4, None)):
        np.testing.assert_array_equal(file.raw("x", start, most), x[start : None if most is None else start + most])
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-9])
    with pytest.raises(AdapterError, match=f"truncated: {len(whole) - 8} bytes expected by its header"):
        file.raw("x", 7, 5)
    file.path.unlink()
    with pytest.raises(AdapterError, match="cannot read"):
        file.raw("x", 0, 5)


def test_a_tensor_is_the_librarys_array_and_a_float8_that_it_lacks_is_read_here(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    whole = [planned(name, name, (2, 3), lambda: np.arange(6).reshape(2, 3)) for name in DTYPES]
    write_safetensors(path, whole, metadata={})
    file, ours = SafetensorsFile(path), []
    monkeypatch.setattr(file, "_array", lambda name, *_: ours.append(name))
    with safe_open(path, framework="numpy") as opened:
        for name in DTYPES.keys() - {"F8_E4M3", "F8_E5M2"}:
            theirs, found = opened.get_tensor(name), file.read(name)
            assert (found.dtype, found.tolist()) == (DTYPES[name], theirs.tolist())
            assert found.flags.writeable
    assert ours == []
    for name in ("F8_E4M3", "F8_E5M2"):
        found = SafetensorsFile(path).read(name)
        assert (found.dtype, found.astype(float).tolist()) == (DTYPES[name], [[0, 1, 2], [3, 4, 5]])


def test_a_dtype_that_the_library_does_not_know_hides_no_other_tensor(tmp_path):
    header = declared(a=entry([1], 0, 4), b=entry([1], 4, 5, "F3"))
    path = written(tmp_path / "x.safetensors", header, struct.pack("<fb", 2, 0))
    assert not the_library_reads(path)
    file = SafetensorsFile(path)
    assert file.read("a").tolist() == [2.0]
    with pytest.raises(AdapterError, match="tensor 'b' is of dtype F3, which cannot be read"):
        file.read("b")


def test_floats_are_those_dtypes_that_can_be_read_and_multiplied():
    assert all(map(is_float, ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")))
    assert not any(map(is_float, ("I8", "U8", "BOOL", "F6_E2M3", "F4", "")))


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


@every(
    ("text", "why"),
    [
        ('{"weight_map": {"w": "here"}', "is not an index of weights: Input data was truncated"),
        ('{"weights": {"w": "here"}}', "is not an index of weights: Object missing required field `weight_map`"),
        ('{"weight_map": {}}', "names 0 files"),
    ],
)
def test_what_is_no_index_is_said_with_what_to_give_in_its_place(tmp_path, text, why):
    index = indexed(tmp_path, [])
    index.write_text(text)
    with pytest.raises(AdapterError) as error:
        indexed_files(index)
    assert (error.value.message, error.value.advice) == (f"{index} {why}", "give the weights file itself")


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


# --- any header ---------------------------------------------------------------------------------------------------

SIZES = {"F32": 4, "BF16": 2, "U8": 1, "F64": 8, "F4": 1}
NAMES = st.one_of(
    st.sampled_from(
        ["a", "data_offsets", "dtype", "__metadata__", "}", '"', "[", "x" * 63, "x" * 1025, "." * 63, "." * 64]
    ),
    st.text("ab.é\\ ", min_size=1, max_size=4),
)
SHAPES = st.lists(st.integers(0, 3), max_size=3)


@st.composite
def documents(draw) -> tuple[str, int]:
    """Return a header's text and the bytes of data behind it: mostly right, else wrong in one place or two."""
    position, pairs = 0, []
    for name in draw(st.lists(NAMES, max_size=8, unique=draw(st.integers(0, 4)) > 0)):
        dtype, shape = draw(st.sampled_from([*SIZES, "F32", "F32", "F32"])), draw(SHAPES)
        nbytes = SIZES[dtype]
        for n in shape:
            nbytes *= n
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + nbytes]}
        if name == "__metadata__":
            pairs.append((name, draw(st.sampled_from([{}, None, {"format": "pt"}, {"r": 4}, {"data_offsets": "x"}]))))
            continue
        position += nbytes
        pairs.append((name, entry))
    wrong = draw(st.integers(0, 9))
    if pairs and wrong < 8:
        place = draw(st.integers(0, len(pairs) - 1))
        name, entry = pairs[place]
        if entry and "data_offsets" in entry and wrong < 6:
            changes = [{"dtype": 1}, {"shape": [-1]}, {"shape": None}, {"data_offsets": [0, 1]}, {"more": [{}]}, {}]
            pairs[place] = (name, entry | changes[wrong])
        elif wrong == 6:
            pairs.reverse()
        else:
            pairs[place] = (name, None)
    spaces = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " : ")]))
    items = (
        f"{json.dumps(k, ensure_ascii=draw(st.booleans()))}{spaces[1]}{json.dumps(v, separators=spaces)}"
        for k, v in pairs
    )
    text = "{" + spaces[0].join(items) + "}"
    if draw(st.integers(0, 9)) == 0:
        cut = draw(st.integers(0, len(text)))
        text = text[:cut] + draw(st.sampled_from(["", "}", ",", '"', "[", "{}"])) + text[cut:]
    return text, position + draw(st.sampled_from([0] * 8 + [-1, 1]))


def outcome(path: Path) -> object:
    try:
        found = read_header(path)
    except AdapterError as error:
        return str(error)
    return list(found.tensors.items()), found.metadata, found.start


@given(documents())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_what_is_read_the_library_reads_alike_and_what_it_refuses_is_refused(tmp_path, document):
    text, nbytes = document
    raw = text.encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * max(nbytes, 0))
    found = outcome(path)
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            theirs = {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
            metadata = file.metadata() or {}
    except SafetensorError:
        assert isinstance(found, str) or "F4" in text  # whose size is not checked here: nothing reads it
        return
    if not isinstance(found, str):
        assert ({name: (info.dtype, info.shape) for name, info in found[0]}, found[1]) == (theirs, metadata)


# --- writing ------------------------------------------------------------------------------------------------------


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = [
        planned("x", "F32", (2, 3), lambda: x),
        planned("half", "F16", (2, 3), lambda: x),
        planned("scalar", "F64", (), lambda: np.float64(3.0) * np.ones(())),
        planned("empty", "F32", (0, 4), lambda: np.zeros((0, 4))),
    ]
    write_safetensors(tmp_path / "t.safetensors", tensors, metadata={"format": "pt", "odd": "x"})
    assert int.from_bytes((tmp_path / "t.safetensors").read_bytes()[:8], "little") % 8 == 0  # data begin aligned
    got = load_file(tmp_path / "t.safetensors")
    assert got["x"].tolist() == x.tolist()
    assert got["half"].dtype == np.float16
    assert got["scalar"].item() == 3.0
    assert got["empty"].shape == (0, 4)
    with safe_open(tmp_path / "t.safetensors", framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt", "odd": "x"}


def test_a_copy_is_bit_for_bit_whatever_the_dtype(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, 64, dtype=np.uint8)
    kinds = {"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F32": np.float32}
    made = [planned(n, n, (64 // np.dtype(k).itemsize,), lambda k=k: bits.view(k)) for n, k in kinds.items()]
    write_safetensors(tmp_path / "a.safetensors", made, metadata={})
    source = SafetensorsFile(tmp_path / "a.safetensors")
    write_safetensors(tmp_path / "b.safetensors", [copied(source, n) for n in kinds], metadata={})
    again = SafetensorsFile(tmp_path / "b.safetensors")
    for name in kinds:
        assert again.raw(name).tobytes() == bits.tobytes()
        assert again.tensors[name].dtype == name


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    one = planned("x", "F32", (1,), lambda: np.zeros(1))
    with pytest.raises(OutputError, match="two tensors"):
        write_safetensors(tmp_path / "t.safetensors", [one, one], metadata={})
