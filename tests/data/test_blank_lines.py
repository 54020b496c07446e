"""A sample of a data set is of its rows, wherever blank lines stand between them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradience import check_data


@pytest.mark.parametrize("blank", ["\n", "  \n", "\t\r\n"])
def test_blank_lines_move_no_row_of_a_sample(tmp_path: Path, blank: str) -> None:
    lines = [json.dumps({"input_ids": [5] * (i + 1)}) + "\n" for i in range(60)]
    whole, apart = tmp_path / "whole" / "rows.jsonl", tmp_path / "apart" / "rows.jsonl"
    for path, text in ((whole, "".join(lines)), (apart, blank + (blank * 3).join(lines) + blank)):
        path.parent.mkdir()
        path.write_text(text)
    one, other = (check_data(path, samples=12).data for path in (whole, apart))
    assert (one.rows, one.rows_read) == (other.rows, other.rows_read) == (60, 12)
    assert one.tokens == other.tokens
    drawn = {check_data(whole, samples=12, seed=seed).data.tokens.total for seed in range(4)}
    assert len(drawn) > 1  # so that a sample of other rows would show
