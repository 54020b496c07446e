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


def test_rows_of_shards_are_numbered_by_the_lines_of_all_of_them(tmp_path: Path) -> None:
    one, two, held, last = (json.dumps({"input_ids": [*range(9), i]}) + "\n" for i in range(4))
    shards = {"train/1": one + "\n \n" + two + "\n", "train/2": "\n" + one + held}
    shards |= {"eval/1": "\n\n" + last, "eval/2": "[]\n" + last, "eval/3": "\n" + held}
    for name, text in shards.items():
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    found = check_data(tmp_path / "train", eval_data=tmp_path / "eval").data
    assert (found.rows, found.seen["duplicate"].first, found.overlap.exact.first) == (4, [7], [7])
