"""Which rows are the early ones, and where a loss that is almost nothing begins."""

from __future__ import annotations

import pytest
from log_runs import finding as said, run


@pytest.mark.parametrize(("norm", "found"), [(0.03, True), (0.06, False)])
def test_the_early_level_of_a_hundred_gradients_is_the_median_of_ten(norm, found):
    norms = [1.0] * 5 + [100.0] * 5 + [1.0] * 50 + [norm] * 40  # 50.5, and a thousandth of it
    finding = said("GRD108", run([2.0] * 100, norms=norms))
    assert (finding is not None) is found
    assert finding is None or finding.values["early"] == 50.5


@pytest.mark.parametrize(("early", "found"), [([1.0] * 3 + [100.0] * 2, False), ([1.0] * 2 + [100.0] * 3, True)])
def test_the_early_level_of_few_gradients_is_the_median_of_five(early, found):
    norms = [*early, *[1.0] * 10, *[0.05] * 5]
    assert (said("GRD108", run([2.0] * 20, norms=norms)) is not None) is found
