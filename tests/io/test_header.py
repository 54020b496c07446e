"""A header that is decoded in pieces and one that is decoded whole are accepted, refused and read alike."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tables import every

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


@given(documents(), st.sampled_from([0, 40, 1 << 20]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_and_the_whole_say_the_same(tmp_path, document, piece):
    text, nbytes = document
    raw = text.encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * max(nbytes, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(header, "_PIECE", piece)
        in_pieces = outcome(path)
        patch.setattr(header, "_usual", lambda _raw, _available: None)
        assert in_pieces == outcome(path)


def usual(n: int, *, separators=(",", ":"), **more: object) -> bytes:
    entries = {
        f"layers.{i}.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(n)
    }
    return json.dumps(more | entries, separators=separators).encode()


@every("separators", [(",", ":"), (", ", ": ")], ids=str)
@every("piece", [0, 100, 1 << 20])
def test_a_usual_header_needs_no_second_look(monkeypatch, separators, piece):
    monkeypatch.setattr(header, "_PIECE", piece)
    raw = usual(50, separators=separators, __metadata__={"format": "pt"}) + b"   "
    tensors, metadata = header._usual(raw, 200)
    assert list(tensors) == [f"layers.{i}.weight" for i in range(50)]
    assert (tensors["layers.7.weight"].offset, metadata) == (28, {"format": "pt"})
    assert tensors["layers.0.weight"].shape is tensors["layers.49.weight"].shape  # memory: a million of them
    pieces = len(list(header._pieces(raw)))
    assert pieces == {0: 51, 1 << 20: 1}.get(piece, pieces)
    assert header._usual(raw, 199) is header._usual(raw, 201) is None


def test_each_entry_has_its_own_dtype_and_shape_whatever_the_one_before_had():
    declared = [("F32", [2]), ("F32", [1]), ("BF16", [1]), ("BF16", [1]), ("U8", [2, 1])]
    entries, position = {}, 0
    for i, (dtype, shape) in enumerate(declared):
        end = position + SIZES[dtype] * shape[0]
        entries[str(i)] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    tensors, _ = header._usual(json.dumps(entries).encode(), position)
    assert [(one.dtype, list(one.shape), one.offset, one.nbytes) for one in tensors.values()] == [
        ("F32", [2], 0, 8),
        ("F32", [1], 8, 4),
        ("BF16", [1], 12, 2),
        ("BF16", [1], 14, 2),
        ("U8", [2, 1], 16, 2),
    ]


@every("entry", [{}, {"dtype": ""}, {"dtype": "F32"}, {"shape": []}, {"shape": [0]}], ids=str)
def test_a_first_entry_that_lacks_dtype_or_shape_is_no_usual_one(entry):
    raw = json.dumps({"a": entry | {"data_offsets": [0, 0]}}).encode()
    assert header._usual(raw, 0) is None


@every(
    ("text", "shallow"),
    [
        (b'{"a":{"shape":[1],"data_offsets":[0,4]}}', True),
        (b"{}", True),
        (b'{"a[":{"shape":[1]}}', False),
        (b'{"a":"[","b":"]"}', False),
        (b'{"a":{"shape":[[1]]}}', False),
        (b'{"a":{"b":{"c":{}}}}', False),
        (b'{"a\\u005b":{}}', False),
        (b'{"a":{}', False),
        (b'{"]":[1,"[":[2]}', False),
    ],
)
def test_a_header_is_shallow_where_no_string_holds_a_bracket_and_nothing_is_deep(text, shallow):
    assert header._is_shallow(text) is shallow
