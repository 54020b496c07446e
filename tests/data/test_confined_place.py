"""A confined process reads a relative path where the caller is now, not where the helper was started."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradience.io.columnar import count_rows


def test_a_relative_path_is_read_from_the_folder_of_the_caller(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for rows in (1, 3):
        folder = tmp_path / str(rows)
        folder.mkdir()
        parquet.write_table(pa.table({"a": list(range(rows))}), folder / "d.parquet")
        monkeypatch.chdir(folder)
        assert count_rows(Path("d.parquet")) == rows
