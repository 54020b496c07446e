"""Where a tokenizer is found, what a report says of it, and how long a sequence may be."""

from __future__ import annotations

import pytest

from gradience.errors import ConfigError
from gradience.judge.check.data import check_data


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"num_labels": 0}, "--num-labels: expected a number of classes from 1, got 0"),
        ({"samples": 0}, "--samples: expected a number of rows or all, got 0"),
        ({"seed": -1}, "--seed: expected a whole number from 0, got -1"),
    ],
)
def test_a_number_out_of_its_range_is_refused_before_anything_is_read(given, says):
    with pytest.raises(ConfigError, match=says):
        check_data("missing.jsonl", **given)


# --- what an epoch holds -----------------------------------------------------------------------------------------
