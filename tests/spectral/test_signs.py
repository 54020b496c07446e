"""Signs, ranks and overlaps at the numbers that decide: a sample's size, its error, and what is rounding."""

from __future__ import annotations

import json
import math

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from gradience import merge_check
from gradience.spectral.batch import effective_rank
from gradience.spectral.merging import Signs, dropped, elected_mean, mask_generator, pooled_signs, signs_of, trimmed
from gradience.spectral.subspace import chance_overlap, chance_overlap_sd, overlap, principal_cosines
from gradience.spectral.sums import gram_norm, numerical_rank, pair_grams, squared_distance
from gradience.spectral.update import core_singular_values


def squared_norm(b: np.ndarray, a: np.ndarray) -> float:
    return gram_norm(pair_grams(b, a), lambda: (b, a))


def parts(d_out=100, d_in=50, r=2, seed=0, scales=(1.0, 0.5)):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in)), scale) for scale in scales]


# --- signs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "rows"), [(None, 100), (0, 8), (449, 8), (450, 9), (5000, 100), (9999, 100), (4950, 99)]
)
def test_a_sample_has_whole_rows_and_eight_at_least(most, rows):
    found = signs_of(parts(), most=most, seed=1)
    assert (found.entries, found.of) == (rows * 50, 5000)


def test_errors_are_those_of_rows_drawn_without_replacement():
    found = signs_of(parts(), most=20 * 50, seed=3)
    rows = np.sort(np.random.default_rng(3).choice(100, 20, replace=False))
    x, y = (scale * (b @ a)[rows] for b, a, scale in parts())
    clash = np.mean(x * y < 0, axis=1)
    net, gross = np.abs(x + y).sum(axis=1), (np.abs(x) + np.abs(y)).sum(axis=1)
    ratio = net.sum() / gross.sum()
    assert found.conflict == pytest.approx(clash.mean(), abs=1e-12)
    assert found.conflict_error == pytest.approx(math.sqrt(0.8 * np.var(clash, ddof=1) / 20), rel=1e-9)
    assert found.cancelled == pytest.approx(1 - ratio, rel=1e-5)
    residual = math.sqrt(0.8 * np.var(net - ratio * gross, ddof=1) / 20) * 20 / gross.sum()
    assert found.cancelled_error == pytest.approx(residual, rel=1e-4)
    assert found.weight == pytest.approx(gross.sum() * 100 / 20, rel=1e-6)


def test_pooled_errors_are_those_of_independent_samples():
    one = Signs(0.5, 0.2, 0.03, 0.01, entries=10, of=100, weight=2.0)
    two = Signs(0.1, 0.4, 0.01, 0.02, entries=20, of=300, weight=6.0)
    pooled = pooled_signs([one, two])
    assert pooled is not None
    assert pooled.conflict == pytest.approx((0.5 * 100 + 0.1 * 300) / 400)
    assert pooled.cancelled == pytest.approx((0.2 * 2 + 0.4 * 6) / 8)
    assert pooled.conflict_error == pytest.approx(math.hypot(3.0, 3.0) / 400)
    assert pooled.cancelled_error == pytest.approx(math.hypot(0.02, 0.12) / 8)
    assert (pooled.entries, pooled.of, pooled.weight) == (30, 400, 8.0)
    assert pooled_signs([]) is None
    assert pooled_signs([Signs(0.0, 0.0, 0.0, 0.0, 1, 1, 0.0)]).cancelled == 0.0


def test_a_check_reads_half_a_million_entries_of_a_module_unless_all_are_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        key = "base_model.model.m.q_proj.lora_"
        tensors = {f"{key}A.weight": rng.standard_normal((1, 1024)), f"{key}B.weight": rng.standard_normal((1024, 1))}
        save_file({k: v.astype(np.float32) for k, v in tensors.items()}, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    sampled = merge_check(tmp_path / "a", tmp_path / "b").signs
    assert (sampled.entries, sampled.of) == (1 << 19, 1 << 20)
    assert sampled.conflict_error > 0.0
    assert merge_check(tmp_path / "a", tmp_path / "b", exact=True).signs.entries == 1 << 20
    other = merge_check(tmp_path / "a", tmp_path / "b", seed=1).signs
    assert other.conflict != sampled.conflict


# --- TIES and DARE -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("density", "kept"), [(0.09, 0), (0.1, 1), (0.29, 2), (0.3, 3), (0.95, 9), (1.0, 10)])
def test_of_ten_entries_the_floor_of_the_density_is_kept(density, kept):
    update = np.arange(1.0, 11.0, dtype=np.float32).reshape(2, 5)
    update[0, 0] = -1.0
    found = trimmed(update, density)
    assert np.count_nonzero(found) == kept
    assert sorted(np.abs(found[found != 0.0])) == list(range(11 - kept, 11))


def test_what_is_kept_at_random_is_divided_by_the_density_and_all_of_it_at_one():
    update = np.ones((50, 50), np.float32)
    assert dropped(update, 1.0, mask_generator(0, 0, "m")) is update
    mask = mask_generator(0, 0, "m").random((50, 50), dtype=np.float32) < np.float32(0.2)
    np.testing.assert_array_equal(dropped(update, 0.2, mask_generator(0, 0, "m")), mask / np.float32(0.2))


def test_the_elected_mean_is_over_the_updates_of_the_sum_s_sign():
    rows = [3.0, 1.0, 0.0, 2.0], [-1.0, 1.0, 0.0, -2.0], [1.0, 0.0, 0.0, 0.0]
    updates = [np.asarray([row], np.float32) for row in rows]
    np.testing.assert_array_equal(elected_mean(lambda: iter(updates)), [[2.0, 1.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="nothing to merge"):
        elected_mean(list)


# --- ranks and norms ---------------------------------------------------------------------------------------------


def diagonal(*sigma):
    n = len(sigma)
    return np.eye(40, n) * np.asarray(sigma), np.eye(n, 30)


@pytest.mark.parametrize(("least", "rank"), [(1.1e-6, 3), (0.9e-6, 2), (0.0, 2)])
def test_a_direction_under_a_millionth_of_the_largest_is_rounding(least, rank):
    assert numerical_rank(*diagonal(1.0, 0.5, least)) == rank


def test_parts_that_cancel_have_the_norm_of_what_is_left():
    b, a = parts(scales=(1.0,))[0][:2]
    off = 1e-6 * np.random.default_rng(5).standard_normal(b.shape)
    both_b, both_a = np.hstack([b, b + off]), np.vstack([a, -a])
    assert squared_norm(both_b, both_a) == pytest.approx(np.sum((off @ a) ** 2), rel=1e-4)
    assert squared_norm(np.hstack([b, b]), both_a) == 0.0
    assert core_singular_values(b[:, :0], a[:0]).shape == (0,)  # of no parts
    assert squared_norm(b, a) == pytest.approx(np.sum((b @ a) ** 2))
    with np.errstate(over="ignore", invalid="ignore"):
        assert squared_norm(b * 1e200, a) == math.inf
    same = [squared_distance((b, a), (b * k, a / k)) for k in range(3, 40)]
    assert (min(same), max(same)) == (0.0, pytest.approx(0.0, abs=1e-10))  # rounding makes no negative square
    assert squared_distance((b, a), (b, 0.5 * a)) == pytest.approx(0.25 * np.sum((b @ a) ** 2))


# --- subspaces ---------------------------------------------------------------------------------------------------


def test_overlaps_are_those_of_hu_et_al_and_their_chance():
    cross = np.asarray([[1.0, 0.0, 0.0], [0.0, 0.6, 0.0]])
    assert overlap(cross, 1, 1) == 1.0
    assert overlap(cross, 2, 3) == pytest.approx((1 + 0.36) / 2)
    assert overlap(cross, 2, 1) == overlap(cross * (1.0 + 1e-9), 1, 1) == 1.0
    assert overlap(cross, 0, 3) == 0.0
    assert chance_overlap(2, 5, 20) == 0.25
    assert chance_overlap(2, 5, 0) == 0.0
    rng = np.random.default_rng(0)
    seen = [np.sum(np.linalg.qr(rng.standard_normal((12, 2)))[0][:4] ** 2) / 2 for _ in range(4000)]
    assert np.mean(seen) == pytest.approx(chance_overlap(2, 4, 12), rel=0.02)
    assert np.std(seen) == pytest.approx(chance_overlap_sd(2, 4, 12), rel=0.05)
    assert chance_overlap_sd(1, 1, 3) == pytest.approx(math.sqrt(1 / 5 - 1 / 9))  # of z^2 on the sphere
    assert chance_overlap_sd(2, 4, 1) == chance_overlap_sd(0, 4, 12) == chance_overlap_sd(12, 4, 12) == 0.0


def test_principal_cosines_are_singular_values_within_zero_and_one():
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        found = principal_cosines(np.asarray([[0.0, 1.0 + 1e-9], [0.5, 0.0]]))
    np.testing.assert_array_equal(found[0], 1.0)
    np.testing.assert_allclose(found[1], 0.5, rtol=1e-15)


# --- single numbers ----------------------------------------------------------------------------------------------


def test_one_row_has_no_error_to_speak_of():
    found = signs_of(parts(d_out=1), most=None, seed=0)
    assert (found.conflict_error, found.cancelled_error) == (0.0, 0.0)


@pytest.mark.parametrize("most", [None, 30])
def test_updates_of_zero_have_nothing_in_conflict(most):
    entries = 60 if most is None else 30
    for r in (1, 0):
        nothing = np.zeros((20, r)), np.zeros((r, 3)), 1.0
        found = signs_of([nothing, nothing], most=most, seed=0)
        assert found == pooled_signs([found]) == (0.0, 0.0, 0.0, 0.0, entries, 60, 0.0)
    no_columns = np.zeros((20, 1)), np.zeros((1, 0)), 1.0
    assert signs_of([no_columns, no_columns], most=most, seed=0)[:5] == (0.0, 0.0, 0.0, 0.0, 0)
    assert pooled_signs([signs_of([no_columns, no_columns], most=most, seed=0)]) is None


def test_the_effective_rank_of_nothing_is_zero_and_of_equal_values_their_number():
    assert float(effective_rank(np.zeros(4))) == 0.0
    assert float(effective_rank(np.ones(4))) == pytest.approx(4.0, rel=1e-6)
    assert float(effective_rank(np.asarray([1.0, 0.0, 0.0]))) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e36, 1e38])
def test_signs_of_entries_beyond_float32_are_those_of_small_ones(size):
    b, a = np.asarray([[1.0], [-2.0]]), np.asarray([[3.0, 1.0, 2.0]])
    found = signs_of([(b, a, size), (b, a, -0.5 * size)], most=None, seed=0)
    assert (found.conflict, found.cancelled) == (1.0, pytest.approx(1.0 - 0.5 / 1.5))
    assert math.isfinite(found.weight)
    many = signs_of([(b[:1], a[:, :1], 3e36)] * 40, most=None, seed=0)  # each is within float32, their sum is not
    assert (many.conflict, many.cancelled, many.weight) == (0.0, 0.0, pytest.approx(3.6e38))
    wide = np.ones((1, 40)), np.full((40, 1), 3.0), 3e36  # nor is the sum of one update's 40 terms
    assert signs_of([wide, (b[:1], a[:, :1], 1.0)], most=None, seed=0).weight == pytest.approx(3.6e38)
