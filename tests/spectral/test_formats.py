"""Storage formats of 8 and 4 bits, from their definitions: the levels of a block, of which the nearest is taken."""

from __future__ import annotations

import numpy as np
from tables import every

from gradience.spectral.codes import from_awq
from gradience.spectral.quantised import FP4, NF4, restored

RNG = np.random.default_rng(0)


def whole_multiples(most):
    return lambda block: np.arange(-most, most + 1) * (np.abs(block).max() / most)


def between(block):
    return np.linspace(block.min(), block.max(), 16)


def of_book(levels):
    return lambda block: np.array(levels) * np.abs(block).max()


@every(
    ("name", "size", "levels"),
    [
        ("int8", 32, whole_multiples(127)),
        ("int4", 32, whole_multiples(7)),
        ("nf4", 64, of_book(NF4)),
        ("fp4", 64, of_book(FP4)),
        ("int4, 128 to a scale", 128, between),
        ("int4, 128 to a scale, symmetric", 128, whole_multiples(7)),
    ],
)
def test_each_entry_becomes_the_nearest_level_of_its_block(name, size, levels):
    weight = RNG.standard_normal((16, 2 * size)).astype(np.float32)
    weight[0, :size] = 0.0  # a block of zeros stays one
    found = np.asarray(restored(weight, name))
    for block, stored in zip(weight.reshape(-1, size), found.reshape(-1, size), strict=True):
        grid = np.sort(levels(block.astype(np.float64)))
        off = np.abs(stored[:, None] - grid).min(axis=1)
        assert off.max() <= 1e-5 * np.abs(grid).max()  # on the grid
        nearest = np.abs(block[:, None] - grid).min(axis=1)
        assert np.all(np.abs(stored - block) <= nearest + 1e-5 * np.abs(grid).max())
        assert len(np.unique(stored)) <= len(grid)


def test_the_eight_codes_of_a_word_of_awq_go_to_their_columns_and_down_the_rows():
    """AutoAWQ packs columns 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on; every bit of every word is drawn."""
    words = RNG.integers(0, 1 << 32, size=(16, 3), dtype=np.uint32)
    codes = np.zeros((16, 24), int)
    for row, word, place in np.ndindex(16, 3, 8):
        codes[row, 8 * word + (0, 2, 4, 6, 1, 3, 5, 7)[place]] = int(words[row, word]) >> 4 * place & 15
    found = np.asarray(from_awq(words))
    assert found.shape == (2, 24)
    for block, column in np.ndindex(2, 24):
        down = codes[8 * block : 8 * block + 8, column]
        assert int(found[block, column]) == sum(int(code) << 4 * n for n, code in enumerate(down))
