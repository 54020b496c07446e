"""An adapter's own numbers, taken from what its pairs were compared by."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tables import every

from gradience.errors import AdapterError
from gradience.spectral.batch import spectrum_of
from gradience.spectral.subspace import PairGeometry
from gradience.verbs.compare.run import SETTLED, are_series, checkpoints_of, cosine_of, means_of, series_of


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
    assert (
        error.value.message == f"{tmp_path} holds {count} checkpoint-N folders with an adapter, expected at least two"
    )
    with pytest.raises(AdapterError, match="no such folder"):
        checkpoints_of(tmp_path / "missing")


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
