"""Adapters that other people trained: the error is the least possible, and the one that is reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tables import once

from gradience import resize_adapter
from gradience.adapters.open import open_adapter
from gradience.spectral.update import core_singular_values, stacked

ADAPTERS = ["dialogpt-random-r8", "roberta-agnews-r4-bias-all", "roberta-portuguese-r8"]


@once(name=ADAPTERS, criterion=[{"rank": 2}, {"like_suggested": True}, {"energy": 0.96}])
def test_a_real_adapter_loses_no_more_than_it_must(shared_data, tmp_path, name: str, criterion: dict[str, Any]) -> None:
    source = shared_data / "adapters" / name
    report = resize_adapter(source, tmp_path / "out", dtype="float32", **criterion)
    before, after = ({m.name: m for m in open_adapter(f)[1].modules} for f in (source, tmp_path / "out"))
    assert before.keys() == after.keys()
    for row in report.modules:
        old, new = before[row.name], after[row.name]
        (b, a), (new_b, new_a) = old.load(), new.load()
        sigma = core_singular_values(b, a) * abs(old.scale)
        lost = core_singular_values(*stacked([(b, a, old.scale), (new_b, new_a, -new.scale)]))
        size = np.linalg.norm(sigma)
        least = np.linalg.norm(sigma[row.rank_after :]) / size
        assert new.r == row.rank_after
        assert row.relative_error == pytest.approx(least, abs=1e-6)
        assert np.linalg.norm(lost) / size == pytest.approx(least, abs=1e-6)
