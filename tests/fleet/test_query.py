"""A fleet in SQL: right answers, and no way to anything but its tables."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pytest
from fleet_inputs import peft

from gradience.cli.main import main
from gradience.errors import GradienceError
from gradience.tables.query import open_fleet, query_fleet
from gradience.verbs.fleet.audit import audit_fleet

HOSTILE = [
    "select * from read_csv('/etc/passwd')",
    "select * from read_text('/etc/passwd')",
    "select * from '/etc/passwd'",
    "select * from glob('/etc/*')",
    "select * from parquet_metadata('/etc/passwd')",
    "select * from sniff_csv('/etc/passwd')",
    "copy (select 1) to '{out}/x.csv'",
    "copy adapters to '{out}/x.parquet'",
    "export database '{out}/x'",
    "attach '{out}/x.db'",
    "install httpfs",
    "load httpfs",
    "select * from read_parquet('https://localhost/x.parquet')",
    "set enable_external_access = true",
    "pragma enable_profiling",
    "create table x as select 1",
    "drop view adapters",
    "select 1; copy (select 1) to '{out}/x.csv'",
    "select * from query('copy (select 1) to ''{out}/x.csv''')",
    "",
]


@pytest.mark.parametrize("sql", HOSTILE)
def test_a_query_reaches_nothing_but_the_fleets_tables(sql, fleet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GradienceError):
        query_fleet(fleet, sql.format(out=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_variable_of_the_caller_is_no_table(fleet):
    secret = open_fleet(fleet).adapters
    assert secret.num_rows
    with pytest.raises(GradienceError, match="secret"):
        query_fleet(fleet, "select * from secret")


def test_a_group_by_is_what_arrow_counts(fleet):
    table = open_fleet(fleet).modules
    expected = sorted(table.group_by("r").aggregate([("stable_rank", "mean"), ("r", "count")]).to_pylist(), key=str)
    got = query_fleet(fleet, "select avg(stable_rank), count(*), r from modules group by r order by 3")
    assert [column.type for column in got.columns] == ["DOUBLE", "BIGINT", "BIGINT"]
    by_r = {row["r"]: (row["stable_rank_mean"], row["r_count"]) for row in expected}
    assert {r: (pytest.approx(mean, rel=1e-12), n) for mean, n, r in got.rows} == by_r


@pytest.mark.usefixtures("called")
def test_an_injected_path_is_a_text_and_a_fleet_whose_adapters_are_gone_has_its_tables(tmp_path):
    peft(tmp_path / "a'); drop--")
    audit_fleet(tmp_path, out=tmp_path / "it's", workers=1)
    assert query_fleet(tmp_path / "it's", "select path from adapters").rows == [[str(tmp_path / "a'); drop--")]]
    shutil.rmtree(tmp_path / "a'); drop--")
    audit_fleet(tmp_path, out=tmp_path / "it's")
    assert query_fleet(tmp_path / "it's", "select count(*), sum(r), any_value(sketch) from adapters").rows == [
        [0, None, None]
    ]


def test_results_come_as_table_json_csv_and_parquet(fleet, tmp_path, capsys):
    sql = "select verdict, count(*) as n, avg(r) as r, list(r order by r) as l from adapters group by 1 order by 2, 1"
    assert main(["fleet", "query", str(fleet), sql, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [c["name"] for c in document["columns"]] == ["verdict", "n", "r", "l"]
    assert main(["fleet", "query", str(fleet), sql, "--csv"]) == 0
    table = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert table[0] == ["verdict", "n", "r", "l"]
    assert [row[0] for row in table[1:]] == [row[0] or "" for row in document["rows"]]
    assert main(["fleet", "query", str(fleet), sql]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["verdict", "n", "r", "l"]
    assert len(lines) == len(document["rows"]) + 2
    assert main(["fleet", "query", str(fleet), sql, "--parquet", str(tmp_path / "x.parquet")]) == 0
    from pyarrow import parquet

    assert parquet.read_table(tmp_path / "x.parquet")["n"].to_pylist() == [row[1] for row in document["rows"]]
    assert main(["fleet", "query", str(fleet), sql, "--parquet", str(tmp_path / "x.parquet")]) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["FLEET", "selec 1"], "syntax error"),
        (["FLEET", "select nosuch from adapters"], "nosuch"),
        (["FLEET", "select 1", "--csv", "--json"], "exclude each other"),
        (["nowhere", "select 1"], "no fleet in nowhere"),
    ],
)
def test_a_query_that_cannot_be_is_one_line_and_a_two(arguments, says, fleet, capsys):
    assert main(["fleet", "query", *(str(fleet) if a == "FLEET" else a for a in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err
