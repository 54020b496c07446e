"""What must hold of a long column drawn in few points: no spike and no non-finite row is lost."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, strategies as st

from gradience.blocks.html.plot import envelope

VALUES = st.one_of(
    st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf]), st.floats(allow_nan=False, width=64)
)
COLUMNS = st.lists(VALUES, min_size=0, max_size=200)
BUCKETS = st.integers(1, 40)


@given(COLUMNS, BUCKETS)
def test_every_finite_row_lies_within_the_band_of_some_bucket_and_the_extremes_are_drawn(column, buckets):
    drawn = envelope(range(len(column)), column, buckets=buckets)
    finite = np.clip([v for v in column if math.isfinite(v)], -1e300, 1e300)
    assert len(drawn.low) <= max(2 * buckets, 1)
    assert drawn.rows == len(finite)
    if len(finite):
        assert drawn.low.min() == finite.min()
        assert drawn.high.max() == finite.max()
        assert (drawn.low <= drawn.middle).all()
        assert (drawn.middle <= drawn.high).all()


@given(COLUMNS, BUCKETS)
def test_no_row_that_is_not_finite_goes_uncounted_or_unplaced(column, buckets):
    drawn = envelope(range(len(column)), column, buckets=buckets)
    lost = [i for i, v in enumerate(column) if not math.isfinite(v)]
    assert drawn.lost_rows == len(lost)
    assert drawn.rows + drawn.lost_rows == len(column)
    width = math.ceil(len(column) / buckets) if drawn.sampled else 0
    for step in lost:
        assert np.abs(drawn.lost - step).min() <= width


@given(st.permutations(list(range(60))), BUCKETS)
def test_the_order_of_the_rows_does_not_matter(order, buckets):
    column = np.sin(np.arange(60.0))
    column[7] = math.nan
    straight, shuffled = envelope(range(60), column, buckets=buckets), envelope(order, column[order], buckets=buckets)
    assert all(np.array_equal(a, b) for a, b in zip(straight, shuffled, strict=True))


def test_the_line_breaks_where_all_rows_between_are_not_finite_and_only_there():
    drawn = envelope(range(6), [1.0, 2.0, math.nan, math.inf, 3.0, 4.0])
    assert drawn.broken.tolist() == [False, False, True, False]
    assert drawn.lost.tolist() == [2, 3]
