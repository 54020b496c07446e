"""Arrays that wait on disk come back bit for bit; where there is no room for them, the error says where that was."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from tables import grid

from gradience.errors import OutputError
from gradience.rewriting.writing import ArraySpool


@grid(each=2, shape=[(3, 4), (0, 5), (), (2, 3, 4)], dtype=[np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_an_array_comes_back_bit_for_bit(tmp_path, dtype, shape):
    spool = ArraySpool(tmp_path)
    rng = np.random.default_rng(0)
    kept = [rng.standard_normal(shape).astype(dtype) for _ in range(2)]
    for load, array in zip([spool.keep(array) for array in kept], kept, strict=True):
        back = load()
        assert back.dtype == array.dtype
        assert back.tobytes() == array.tobytes()
        assert back.shape == array.shape


def test_a_turned_array_comes_back_in_its_order(tmp_path):
    array = np.arange(12.0).reshape(3, 4).T
    np.testing.assert_array_equal(ArraySpool(tmp_path).keep(array)(), array)


def test_no_room_is_an_error_that_names_the_place(tmp_path):
    with pytest.raises(OutputError, match="cannot keep what is computed in") as error:
        ArraySpool(tmp_path / "gone").keep(np.ones(3))
    assert "TMPDIR" in error.value.advice
