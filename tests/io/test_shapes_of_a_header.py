"""A header whose shapes, sizes or places contradict each other is refused, whichever axis is wrong."""

from __future__ import annotations

import json

import pytest
from tables import every

from gradience.errors import AdapterError
from gradience.io.safetensors import SafetensorsFile


def file(folder, shape, begin=0, end=24, size=24):
    header = json.dumps({"t": {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}}).encode()
    header += b" " * (-len(header) % 8)
    path = folder / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    return path


def test_a_header_that_is_right_is_read(tmp_path):
    assert SafetensorsFile(file(tmp_path, [2, 3])).tensors["t"].shape == (2, 3)


@every("shape", [[-2, 3], [2, -3], [-2, -3], [-1, 0], [0, -1], [2, 4], [2], [7]])
def test_a_shape_that_is_not_of_its_bytes_is_refused(tmp_path, shape):
    with pytest.raises(AdapterError):
        _ = SafetensorsFile(file(tmp_path, shape)).tensors


@every(("begin", "end"), [(1, 25), (0, 23), (24, 0), (0, 28)])
def test_bytes_begin_where_the_last_ended_and_are_in_the_file(tmp_path, begin, end):
    with pytest.raises(AdapterError):
        _ = SafetensorsFile(file(tmp_path, [2, 3], begin, end)).tensors


@every("shape", [[-1, 0], [0, -1], [-1, 0, 2]])
def test_an_axis_below_zero_is_refused_where_the_product_is_that_of_no_bytes(tmp_path, shape):
    with pytest.raises(AdapterError, match="claims bytes 0 to 0, expected to begin at 0"):
        _ = SafetensorsFile(file(tmp_path, shape, 0, 0, 0)).tensors
