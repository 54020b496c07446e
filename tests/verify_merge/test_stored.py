"""Rows of a weight in its files are those of the whole tensor, wherever it lies and whatever is asked for."""

from __future__ import annotations

from contextlib import ExitStack

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from gradience.base.weights import BaseWeights
from gradience.errors import AdapterError
from gradience.prove.verify_merge.delta import head, stored

BF16 = ml_dtypes.bfloat16


@pytest.fixture
def weights(tmp_path):
    rng = np.random.default_rng(0)
    held = {
        "a.weight": rng.standard_normal((5, 3)).astype(BF16),
        "b.weight": rng.standard_normal((4, 3)).astype(BF16),
        "wide.weight": rng.standard_normal((4, 4)).astype(BF16),
        "single.weight": rng.standard_normal((4, 3)).astype(np.float32),
        "conv.weight": rng.standard_normal((6, 2, 3, 3)).astype(np.float32),
        "experts.weight": rng.standard_normal((3, 4, 5)).astype(np.float16),
    }
    save_file(held, tmp_path / "model.safetensors")
    return held, BaseWeights([tmp_path / "model.safetensors"])


AT = [slice(0, 2), slice(2, 7), slice(4, 5), slice(5, 99), slice(0, 9), slice(7, 7)]
PICKED = [[8, 0, 4, 5], [3, 4, 5, 6], [0], [6, 5, 4], [2, 2], [1, 3]]


@pytest.mark.parametrize("at", AT, ids=str)
def test_rows_of_tensors_below_each_other_are_those_of_both(weights, at):
    held, base = weights
    whole = np.concatenate([held["a.weight"], held["b.weight"]])
    with ExitStack() as files:
        found = stored([base.find("a.weight"), base.find("b.weight")], None, files)
        assert (found.shape, len(found), found.size, found.dtype) == ((9, 3), 9, 27, BF16)
        np.testing.assert_array_equal(found[at], whole[at])
        for rows in (2, 5, 7):
            cut = head(found, rows)
            assert len(cut) == rows
            np.testing.assert_array_equal(cut[:], whole[:rows])
    np.testing.assert_array_equal(head(whole, 2), whole[:2])


def test_rows_by_number_are_those_and_consecutive_ones_are_read_together(weights, monkeypatch):
    held, base = weights
    whole, reads = np.concatenate([held["a.weight"], held["b.weight"]]), []
    with ExitStack() as files:
        found = stored([base.find("a.weight"), base.find("b.weight")], None, files)
        for numbers in PICKED:
            np.testing.assert_array_equal(found[np.array(numbers)], whole[numbers])
        read = found._read
        monkeypatch.setattr(found, "_read", lambda *at: reads.append(at[:2]) or read(*at))
        assert len(found[np.array([3, 4, 5, 8])]) == 4
        assert reads == [(3, 6), (8, 9)]


def test_a_convolution_is_flattened_and_an_expert_is_its_slice(weights):
    held, base = weights
    with ExitStack() as files:
        conv = stored([base.find("conv.weight")], None, files)
        np.testing.assert_array_equal(conv[1:4], held["conv.weight"].reshape(6, -1)[1:4])
        for expert in range(3):
            one = stored([base.find("experts.weight")], expert, files)
            np.testing.assert_array_equal(one[1:3], held["experts.weight"][expert][1:3])
        for name, expert in (("experts.weight", 3), ("a.weight", 0)):
            with pytest.raises(AdapterError, match=f"no expert {expert}"):
                stored([base.find(name)], expert, files)


@pytest.mark.parametrize("other", ["wide.weight", "single.weight"])
def test_parts_of_other_widths_or_dtypes_are_refused(weights, other):
    base = weights[1]
    with ExitStack() as files, pytest.raises(AdapterError, match="several dtypes or widths"):
        stored([base.find("a.weight"), base.find(other)], None, files)
