"""A header is read as the safetensors library reads it, and refused where that refuses it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors import SafetensorError, safe_open

from gradience.errors import AdapterError
from gradience.io import header
from gradience.io.header import read_header

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


def test_each_entry_has_its_own_dtype_and_shape_whatever_the_one_before_had():
    declared = [("F32", [2]), ("F32", [1]), ("BF16", [1]), ("BF16", [1]), ("U8", [2, 1])]
    entries, position = {}, 0
    for i, (dtype, shape) in enumerate(declared):
        end = position + SIZES[dtype] * shape[0]
        entries[str(i)] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    tensors, _ = header.parsed_header(Path("f"), json.dumps(entries).encode(), position)
    assert [(one.dtype, list(one.shape), one.offset, one.nbytes) for one in tensors.values()] == [
        ("F32", [2], 0, 8),
        ("F32", [1], 8, 4),
        ("BF16", [1], 12, 2),
        ("BF16", [1], 14, 2),
        ("U8", [2, 1], 16, 2),
    ]
