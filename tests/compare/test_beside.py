"""An adapter's own numbers, taken from what its pairs were compared by."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tables import every

from gradience.adapters.layout import Module
from gradience.errors import AdapterError
from gradience.rewrite import sides as sides_module
from gradience.rewrite.compare import (
    SETTLED,
    _cosines,
    _notes,
    _points,
    _root_ratio,
    _shares,
    _wanted,
    adapter_pair,
    are_series,
    checkpoints_of,
    cosine_of,
    means_of,
    module_pair,
    series_of,
)
from gradience.rewrite.sides import _energy, _Owns
from gradience.spectral.batch import spectrum_of
from gradience.spectral.grams import padded
from gradience.spectral.subspace import PairGeometry


def test_the_squared_norm_is_that_of_the_dense_update_or_is_not_vouched_for():
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((30, 4)), rng.standard_normal((4, 20))
    assert _energy(b.T @ b, a @ a.T, -0.5) == pytest.approx(np.sum((0.5 * b @ a) ** 2), rel=1e-12)
    assert _energy(np.zeros((2, 2)), np.eye(2), 3.0) == 0.0
    assert _energy(np.full((2, 2), np.nan), np.eye(2), 1.0) is None
    assert _energy(np.eye(2), np.eye(2), np.inf) is None


@pytest.mark.parametrize(("angle", "vouched"), [(0.16, True), (0.12, False)])
def test_parts_that_all_but_cancel_are_left_to_the_spectrum(angle, vouched):
    """Of b_1 = -b_2 and unit rows an angle apart: |b a|^2 over the sum of squares is 1 - cos(angle), here 1 %."""
    gram_b = np.array([[1.0, -1.0], [-1.0, 1.0]])
    gram_a = np.array([[1.0, np.cos(angle)], [np.cos(angle), 1.0]])
    assert (_energy(gram_b, gram_a, 1.0) is not None) == vouched


def test_what_is_the_share_itself_does_not_vouch_for_a_norm(monkeypatch):
    """Of sums that binary numbers hold: 0.25 of 1 is left, of halves less 0.25 in the place of each product."""
    monkeypatch.setattr(sides_module, "_VOUCHED", 0.25)
    gram_b, gram_a = np.array([[0.5, -0.375], [-0.375, 0.5]]), np.ones((2, 2))
    assert _energy(gram_b, gram_a, 2.0) is None
    gram_b[0, 1] += 2.0**-20
    assert _energy(gram_b, gram_a, 2.0) == 4.0 * (0.25 + 2.0**-20)


def owns(*, whole: bool) -> tuple[_Owns, Module]:
    """What is gathered of one adapter with one module, b a = 3 on a diagonal of two, so that its norm is 18^0.5."""
    b, a = 3.0 * np.eye(4, 2), np.eye(2, 3)
    module = Module("m.q", "lora", (4, 3), 2, 2.0, 1.0, 14, lambda: (b, a))
    side: Any = SimpleNamespace(adapter=SimpleNamespace(modules=[module]))
    return _Owns([side], whole=whole), module


@pytest.mark.parametrize(("whole", "waiting"), [(False, 0), (True, 1)])
def test_spectra_are_computed_only_where_they_are_asked_for(whole, waiting):
    found, module = owns(whole=whole)
    found.put(0, module, 9.0 * np.eye(2), np.eye(2))
    assert len(found._open) == waiting
    (own,) = found.finish()
    assert own.energies["m.q"] == pytest.approx(18.0)
    assert [s.sigma[:2].tolist() for s in own.spectra.values()] == [[3.0, 3.0]] * waiting


def test_a_norm_that_is_not_vouched_for_is_that_of_the_spectrum():
    found, module = owns(whole=False)
    found.put(0, module, np.full((2, 2), np.nan), np.eye(2))
    assert [name for _, name, _ in found._open] == [module]
    found.put(0, module, 9.0 * np.eye(2), np.eye(2))  # and vouched for, it waits for nothing
    assert len(found._open) == 1
    assert found.finish()[0].spectra == {}


def test_what_waits_is_let_go_at_the_limit(monkeypatch):
    found, module = owns(whole=True)
    size = 2 * padded(np.eye(2)).size
    monkeypatch.setattr(sides_module, "_HELD", 2 * size)
    found.put(0, module, 9.0 * np.eye(2), np.eye(2))
    assert (len(found._open), found._held) == (1, size)
    found.put(0, module, 9.0 * np.eye(2), np.eye(2))
    assert (len(found._open), found._held) == (0, 0)


@pytest.mark.parametrize(
    ("n", "series", "pairs"),
    [
        (2, True, [(0, 1)]),
        (4, True, [(0, 1), (0, 3), (1, 2), (1, 3), (2, 3)]),
        (4, False, [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
    ],
)
def test_of_a_series_each_is_compared_with_the_next_and_the_last(n, series, pairs):
    assert _wanted(n, series=series) == pairs


@pytest.mark.parametrize(
    ("norms", "state", "ratio", "sides"),
    [((2.0, 3.0), "ok", 1.5, True), ((2.0, 0.0), "zero", 0.0, False), ((0.0, 3.0), "zero", None, False)],
)
def test_a_pair_of_which_one_is_zero_has_no_directions_in_common(norms, state, ratio, sides):
    _, module = owns(whole=False)
    directions = {"left": np.eye(2), "right": np.eye(2), "cosines": (np.ones(2), np.ones(2))}
    row = module_pair(module, module, PairGeometry(finite=True, norms=norms, inner=1.0, distance=1.0, **directions))
    assert (row.state, row.norm_ratio, row.frobenius_norms) == (state, ratio, list(norms))
    assert (row.output_side is not None, row.input_side is not None) == (sides, sides)


@every(
    ("cosines", "settled"),
    [([0.5, SETTLED, 1.0], 1), ([SETTLED, 0.5, 1.0], None), ([None, SETTLED, 1.0], 1), ([SETTLED, 1.0, 1.0], 0)],
)
def test_a_series_has_settled_from_where_every_cosine_is_at_the_threshold(cosines, settled):
    points: Any = [
        SimpleNamespace(cosine_to_final=c, effective_rank_mean=2.0 + i, name=f"c{i}", step=i)
        for i, c in enumerate(cosines)
    ]
    found = series_of(points)
    assert (found.settled_step, found.rank_growth) == (settled, 2.0)
    for place in (0, -1):
        kept, points[place].effective_rank_mean = points[place].effective_rank_mean, None
        assert series_of(points).rank_growth is None
        points[place].effective_rank_mean = kept


@pytest.mark.parametrize("total", [0.0, np.inf, np.nan])
def test_there_are_no_shares_of_an_energy_that_is_none(total):
    assert _shares(({"layers.0.q": total}, {"layers.0.q": 1.0})) == []
    assert _shares(({"layers.0.q": 1.0}, {"layers.0.q": total})) == []
    assert len(_shares(({"layers.0.q": 1.0}, {"layers.0.q": 2.0}))) == 1


@pytest.mark.parametrize(("held", "count"), [([], 0), ([10], 1), ([200, 30], None), ([30, 200, 10], None)])
def test_a_run_has_two_checkpoints_at_least(held, count, tmp_path):
    for step in held:
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors").write_text("")
    (tmp_path / "checkpoint-5").mkdir()  # holds no adapter
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "adapter_model.safetensors").write_text("")
    if count is None:
        assert [path.name for path in checkpoints_of(tmp_path)] == [f"checkpoint-{step}" for step in sorted(held)]
        return
    with pytest.raises(AdapterError) as error:
        checkpoints_of(tmp_path)
    assert str(error.value) == (f"{tmp_path} holds {count} checkpoint-N folders with an adapter, expected at least two")
    with pytest.raises(AdapterError, match="no such folder"):
        checkpoints_of(tmp_path / "missing")


def test_two_adapters_by_their_energies_and_distances():
    """q is in both and turned, v in the first and k in the second alone."""

    def geometry(inner: float, distance: float, *, finite: bool = True) -> PairGeometry:
        none = np.zeros((0, 0))
        return PairGeometry(
            finite=finite, norms=(3.0, 4.0), inner=inner, distance=distance, left=none, right=none, cosines=(none, none)
        )

    _, module = owns(whole=False)
    rows = [module_pair(module, module, geometry(6.0, 5.0))]
    energies = ({"layers.0.q": 9.0, "layers.1.v": 16.0}, {"layers.0.q": 4.0, "layers.2.k": 32.0})
    found = adapter_pair(("a", "b"), rows, [geometry(6.0, 5.0)], energies)
    assert (found.first, found.second, found.compared) == ("a", "b", 1)
    assert found.cosine == pytest.approx(6.0 / (5.0 * 6.0))
    assert found.norm_ratio == pytest.approx(6.0 / 5.0)
    assert found.relative_change == pytest.approx(math.sqrt((16.0 + 32.0 + 25.0) / 25.0))
    assert [(s.layer, s.first, s.second) for s in found.layers] == [
        (0, pytest.approx(9 / 25), pytest.approx(4 / 36)),
        (1, pytest.approx(16 / 25), 0.0),
        (2, 0.0, pytest.approx(32 / 36)),
    ]
    assert found.energy_moved == pytest.approx((9 / 25 - 4 / 36 + 16 / 25 + 32 / 36) / 2)
    broken = adapter_pair(("a", "b"), rows, [geometry(6.0, 5.0, finite=False)], energies)
    assert (broken.cosine, broken.relative_change) == (0.0, None)


@every(
    ("inner", "sizes", "cosine"),
    [
        (6.0, (9.0, 16.0), 0.5),
        (-6.0, (9.0, 16.0), -0.5),
        (13.0, (9.0, 16.0), 1.0),  # rounding
        (-13.0, (9.0, 16.0), -1.0),
        (0.0, (0.0, 16.0), None),
        (1.0, (math.inf, 16.0), None),
        (1.0, (math.nan, 16.0), None),
    ],
)
def test_a_cosine_is_within_one_and_none_of_what_is_zero_or_not_finite(inner, sizes, cosine):
    none = np.zeros((0, 0))
    found = PairGeometry(
        finite=True, norms=(1.0, 1.0), inner=inner, distance=0.0, left=none, right=none, cosines=(none, none)
    )
    assert cosine_of([found], *sizes) == cosine


@every(
    ("energy", "over", "ratio"),
    [
        (4.0, 1.0, 2.0),
        (0.0, 1.0, 0.0),
        (1.0, 0.0, None),
        (1.0, math.inf, None),
        (math.inf, 1.0, None),
        (math.nan, 1.0, None),
    ],
)
def test_a_ratio_of_norms_is_of_finite_ones_over_one_that_is_not_zero(energy, over, ratio):
    assert _root_ratio(energy, over) == ratio


@every(("energy", "own"), [(4.0, 1.0), (0.0, None), (math.inf, None), (math.nan, None)])
def test_an_update_is_itself_unless_it_is_zero_or_not_finite(energy, own):
    sides: Any = [SimpleNamespace(energy=energy), SimpleNamespace(energy=9.0)]
    assert [row[place] for place, row in enumerate(_cosines(sides, {}))] == [own, 1.0]
    spectra: Any = SimpleNamespace(spectra={})
    measured: Any = [
        SimpleNamespace(energy=one.energy, own=spectra, side=SimpleNamespace(name="c", path=Path("checkpoint-7")))
        for one in sides[::-1]
    ]
    none = np.zeros((0, 0))
    seen = {
        "q": PairGeometry(
            finite=True, norms=(2.0, 3.0), inner=6.0, distance=1.5, left=none, right=none, cosines=(none, none)
        )
    }
    first, last = _points(measured, {(0, 1): seen})
    assert (last.cosine_to_final, last.step) == (own, 7)
    cosine = 1.0 if energy == 4.0 else None
    assert (first.cosine_to_final, last.cosine_to_previous, first.cosine_to_previous) == (cosine, cosine, None)
    assert (first.relative_change, last.relative_change) == (None, 0.5)  # 1.5 over the 3 of the one before
    assert first.frobenius_norm == 3.0


@pytest.mark.parametrize(
    ("names", "is_series"),
    [
        (["run/checkpoint-1", "run/checkpoint-20"], True),
        (["run/checkpoint-1", "other/checkpoint-20"], False),
        (["run/checkpoint-1", "run/final"], False),
        (["run/checkpoint-1", "run/checkpoint-x"], False),
    ],
)
def test_checkpoints_in_one_place_are_a_series(names, is_series, tmp_path):
    assert are_series([tmp_path / name for name in names]) is is_series


def test_means_are_over_what_is_finite_and_not_zero():
    some = [spectrum_of(np.array(sigma)) for sigma in ([3.0, 0.0], [2.0, 2.0], [0.0, 0.0])]
    broken = some[0]._replace(finite=False, stable_rank=9.0)
    assert means_of([*some, broken]) == {
        "stable_rank_mean": pytest.approx(1.5),
        "effective_rank_mean": pytest.approx(1.5),
        "energy_rank_90_mean": 1.5,
    }
    assert means_of([some[2], broken]) == {}


@pytest.mark.parametrize(("bases", "told"), [(["m", "m"], False), (["m", "n"], True), (["m", None], True)])
def test_other_bases_are_noted_and_so_are_modules_that_need_theirs(bases, told):
    sides: Any = [
        SimpleNamespace(
            name=name,
            adapter=SimpleNamespace(
                notes=[f"of {name}"],
                base_dependent=[None] * count,
                config=SimpleNamespace(base_model_name_or_path=base),
            ),
        )
        for name, base, count in zip("ab", bases, (0, 2), strict=True)
    ]
    said = "the configs name different base models: the same numbers then mean different things"
    wanted = ["a: of a", "b: of b", "b: 2 modules need the base model, and are not compared"]
    assert _notes(sides) == [*wanted, *([said] if told else [])]


def test_a_module_that_is_not_finite_in_one_has_no_numbers():
    _, module = owns(whole=False)
    none = np.zeros((0, 0))
    nan = math.nan
    found = PairGeometry(
        finite=False, norms=(nan, nan), inner=nan, distance=nan, left=none, right=none, cosines=(none, none)
    )
    row = module_pair(module, module, found)
    assert (row.state, row.shape, row.ranks, row.name) == ("non_finite", [4, 3], [2, 2], "m.q")
    assert [row.frobenius_norms, row.norm_ratio, row.cosine, row.relative_change] == [None] * 4
    assert (row.output_side, row.input_side) == (None, None)
