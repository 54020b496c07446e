"""TIES and DARE, against their papers' definitions written out with numpy on dense updates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as of_numpy
from peft_models import furthest, merged_update

from gradience import merge_adapters
from gradience.spectral.merging import elected_mean, mask_generator, trimmed

FLOATS = st.floats(-4.0, 4.0, width=32, allow_subnormal=False)


def _ties(updates: list[np.ndarray], weights: list[float], density: float) -> np.ndarray:
    """Trim, elect, merge: one entry at a time."""
    kept = []
    for update, weight in zip(updates, weights, strict=True):
        k = int(density * update.size)
        least = np.sort(np.abs(update), axis=None)[::-1][k - 1] if k else np.inf
        kept.append(weight * np.where(np.abs(update) >= least, update, 0.0))
    out = np.zeros(updates[0].shape)
    for place in np.ndindex(*out.shape):
        values = [x[place] for x in kept]
        sign = np.sign(sum(values))
        agreeing = [v for v in values if sign and np.sign(v) == sign]
        out[place] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return out


@given(
    updates=st.lists(of_numpy.arrays(np.float32, (3, 4), elements=FLOATS), min_size=1, max_size=4),
    density=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_trim_elect_and_merge_are_the_papers(updates, density):
    found = elected_mean(lambda: (trimmed(update, density) for update in updates))
    truth = _ties(updates, [1.0] * len(updates), density)
    near_zero = np.abs(sum(np.asarray(trimmed(u, density), np.float64) for u in updates)) < 1e-5  # the sign is rounding
    np.testing.assert_allclose(np.where(near_zero, 0.0, found), np.where(near_zero, 0.0, truth), atol=1e-5)


@pytest.mark.parametrize(("size", "mean"), [(1e-37, 1.5), (1e-39, 3.0)])
def test_an_entry_below_the_normal_floats_counts_as_zero(size, mean):
    updates = [np.full((3, 4), x, np.float32) for x in (3.0, size)]
    np.testing.assert_array_equal(elected_mean(lambda: iter(updates)), np.full((3, 4), mean))


def test_masks_depend_on_seed_adapter_and_module_alone():
    first = mask_generator(0, 1, "a").random(4)
    np.testing.assert_array_equal(first, mask_generator(0, 1, "a").random(4))
    others = [mask_generator(1, 1, "a"), mask_generator(0, 0, "a"), mask_generator(0, 1, "b")]
    assert all(np.all(other.random(4) != first) for other in others)


def test_dare_at_density_one_is_the_sum_and_its_masks_are_repeatable(save, tmp_path):
    one, two = save("one", seed=1), save("two", seed=2)
    folders = [one.folder, two.folder]
    merge_adapters(folders, tmp_path / "all", method="dare_linear", density=1.0, rank=8, weights=[0.5, 0.5])
    assert furthest(merged_update(one.model, tmp_path / "all"), [(0.5, one.update), (0.5, two.update)]) < 1e-5
    reports = [
        merge_adapters(folders, tmp_path / name, method="dare_ties", density=0.5, seed=seed)
        for name, seed in (("a", 7), ("b", 7), ("c", 8))
    ]
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]
    assert reports[0].relative_error == reports[1].relative_error
