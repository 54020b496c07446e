"""Where a tokenizer is found, what a report says of it, and how long a sequence may be."""

from __future__ import annotations

import pytest

from gradience.errors import OptionError
from gradience.judge.check.data import check_data


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"num_labels": 0}, "--num-labels is 0, expected a whole number from 1"),
        ({"samples": 0}, "samples is 0, expected a whole number from 1, or all"),
        ({"seed": -1}, "--seed is -1, expected a whole number from 0"),
    ],
)
def test_a_number_out_of_its_range_is_refused_before_anything_is_read(given, says):
    with pytest.raises(OptionError, match=says):
        check_data("missing.jsonl", **given)


# --- what an epoch holds -----------------------------------------------------------------------------------------
