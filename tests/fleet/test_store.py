"""Parts of a store: many small ones become full ones, and a kill between two steps loses no row and doubles none."""

from __future__ import annotations

import json
import stat

import pytest
from pyarrow import parquet as pq

from gradience.cli.main import main
from gradience.errors import GradienceError
from gradience.schema.fleet import AdapterRow, ModuleRow
from gradience.tables import encoded, store as storing
from gradience.tables.query import FLEET, select
from gradience.tables.store import Store
from gradience.verbs.fleet.audit import known_rows


def result(name, modules=3):
    row = AdapterRow(path=name, status="ok", stamp=f"stamp of {name}", rules="1", content_hash=f"hash of {name}")
    return encoded([row], [ModuleRow(path=name, position=n, name=f"m{n}", **SHAPE) for n in range(modules)], [])


SHAPE = {"module_type": "attn", "kind": "linear", "rows": 8, "columns": 8, "r": 2, "params": 32, "state": "ok"}


def filled(folder, parts, **options):
    store = Store(folder, FLEET)
    with store.writing() as writer:
        for number in range(parts):
            writer.add([result(f"a{number:02d}", **options)])
    return store


def paths(folder, table="adapters"):
    return Store(folder, FLEET).table(table)["path"].to_pylist()


def on_disk(folder):
    return {name: sorted(int(p.stem.removeprefix("part-")) for p in (folder / name).iterdir()) for name in FLEET.rows}


@pytest.mark.parametrize(("parts", "left"), [(8, 8), (9, 1)])
def test_more_than_eight_small_parts_become_one_with_the_same_rows(tmp_path, parts, left):
    store = filled(tmp_path / "s", parts)
    before = {name: store.table(name) for name in FLEET.rows}
    with store.writing() as writer:
        writer.compact()
    again = Store(tmp_path / "s", FLEET)
    assert len(again.parts) == left
    assert all(again.table(name).equals(table) for name, table in before.items())
    assert set(map(tuple, on_disk(tmp_path / "s").values())) == {tuple(again.parts)}


def test_full_parts_are_left_and_merged_ones_are_no_larger_than_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(storing, "_FULL", 12)
    store = filled(tmp_path / "s", 2, modules=11)  # 12 rows each: full
    with store.writing() as writer:
        for number in range(9):
            writer.add([result(f"b{number}")])  # 4 rows each
        writer.compact()
    assert store.parts == [1, 2, 12, 13, 14]
    assert paths(tmp_path / "s") == ["a00", "a01", *(f"b{n}" for n in range(9))]


class Killed(BaseException):
    """What no handler of the store catches."""


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 5, 17, 31, 32])
def test_a_kill_at_any_step_of_a_merge_leaves_each_row_once(tmp_path, monkeypatch, step):
    store = filled(tmp_path / "s", 9)
    left = [step]

    def dying(real):
        def call(*args, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*args, **options)

        return call

    monkeypatch.setattr(storing.Writer, "_write", dying(storing.Writer._write))
    monkeypatch.setattr(storing.Writer, "_publish", dying(storing.Writer._publish))
    monkeypatch.setattr(storing.Path, "unlink", dying(storing.Path.unlink))
    killed = False
    try:
        with store.writing() as writer:
            writer.compact()
    except Killed:
        killed = True
    monkeypatch.undo()
    assert killed == (step < STEPS)
    expected = [f"a{n:02d}" for n in range(9)]
    assert paths(tmp_path / "s") == expected
    with Store(tmp_path / "s", FLEET).writing():
        pass
    assert paths(tmp_path / "s", "modules") == [path for path in expected for _ in range(3)]
    live = json.loads((tmp_path / "s" / "fleet.json").read_text())["parts"]
    assert on_disk(tmp_path / "s") == dict.fromkeys(FLEET.rows, sorted(live))


STEPS = 1 + 2 + 2 + 9 * 3  # the part, the manifest before and after it, each with its partial file, the old parts


def test_files_that_it_did_not_write_stay(tmp_path):
    store = filled(tmp_path / "s", 2)
    foreign = [tmp_path / "s" / name for name in ("adapters/mine.parquet", "modules/part-000099.parquet", "findings/x")]
    for path in foreign:
        path.write_text("mine")
    with Store(tmp_path / "s", FLEET).writing() as writer:
        writer.add([result("later")])
    assert [path.read_text() for path in foreign] == ["mine"] * 3
    assert len(store.table("adapters")) == 2
    assert paths(tmp_path / "s") == ["a00", "a01", "later"]


@pytest.mark.parametrize("parts", [[1, 1], [0], [3], [-1]], ids=str)
def test_a_manifest_with_a_part_twice_or_one_never_written_is_damaged(tmp_path, parts):
    filled(tmp_path / "s", 2)
    place = tmp_path / "s" / "fleet.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"parts": parts}))
    with pytest.raises(GradienceError, match="damaged"):
        Store(tmp_path / "s", FLEET)


@pytest.mark.parametrize("name", ["r=99", "path=x/f", "f[0]*?", "a\\b", "q'uote"])
def test_the_name_of_a_store_is_neither_a_column_nor_a_pattern(tmp_path, name):
    filled(tmp_path / name, 2)
    assert set(known_rows(Store(tmp_path / name, FLEET))) == {"a00", "a01"}
    report = select(Store(tmp_path / name, FLEET), "select path, r from modules order by path, position")
    assert report.rows == [["a00", 2]] * 3 + [["a01", 2]] * 3


TOKEN = "hf_" + "aB3" * 12


def test_a_secret_in_a_row_is_in_no_file_and_no_output(tmp_path, capsys):
    row = AdapterRow(path="a", status="ok", stamp="s", rules="1", base_model=f"https://joe:{TOKEN}@hub.org/m")
    error = AdapterRow(path="b", status="error", stamp="s", rules="1", error=f"cannot read {TOKEN}")
    store = Store(tmp_path / "s", FLEET)
    with store.writing() as writer:
        writer.add([encoded([row, error], [], [])])
    for out, argv in {"": ["--csv"], "q.parquet": ["--parquet", str(tmp_path / "q.parquet")]}.items():
        sql = "select base_model, error, 'TOKEN' as x from adapters".replace("TOKEN", TOKEN)
        assert main(["fleet", "query", str(tmp_path / "s"), sql, *argv]) == 0
        assert TOKEN not in capsys.readouterr().out
        if out:
            found = pq.read_table(tmp_path / out).to_pylist()
            assert TOKEN not in str(found)
            assert found[0]["base_model"] == "https://<redacted: url password>@hub.org/m"
    assert all(TOKEN not in str(store.table(name).to_pylist()) for name in FLEET.rows)


def test_csv_holds_no_character_that_steers_a_terminal(tmp_path, capsys):
    filled(tmp_path / "s", 1)
    sql = "select 'a' || chr(27) || '[31m' || chr(8238) || 'b' as x, 1.5 as y, null as z"
    assert main(["fleet", "query", str(tmp_path / "s"), sql, "--csv"]) == 0
    assert capsys.readouterr().out == "x,y,z\r\na\\u001b[31m\\u202eb,1.5,\r\n"


def test_a_store_becomes_private_with_its_first_private_source_and_stays_so(tmp_path):
    source = tmp_path / "adapter"
    source.mkdir()
    (source / "weights").write_text("")
    store = filled(tmp_path / "s", 1)
    store.keep_private([source])
    assert modes(tmp_path / "s") == {0o644}
    (source / "weights").chmod(0o640)
    store.keep_private([source])
    assert stat.S_IMODE(store.files("adapters")[0].stat().st_mode) == 0o600
    (source / "weights").chmod(0o644)
    for again in (store, Store(tmp_path / "s", FLEET)):
        again.keep_private([source])
        with again.writing() as writer:
            writer.add([result("b")])
        assert modes(tmp_path / "s") == {0o600}


def modes(folder):
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.*") if path.suffix in {".json", ".parquet"}}


def test_a_damaged_part_is_an_error_before_parts_are_merged(tmp_path):
    store = filled(tmp_path / "s", 2)
    part = store.files("modules")[1]
    part.write_text("mine")
    with store.writing() as writer, pytest.raises(GradienceError, match=f"cannot read {part}: Parquet file size is 4"):
        writer.compact()
    assert part.read_text() == "mine"
    with pytest.raises(GradienceError) as caught:
        select(store, "select * from modules")
    assert (caught.value.advice, str(part) in str(caught.value)) == ("remove the folder and audit again", True)


def test_a_part_from_before_a_column_has_null_in_it_and_can_be_rewritten(tmp_path):
    store = filled(tmp_path / "s", 2)
    for part in store.files("adapters"):  # after the first, parts of both kinds
        pq.write_table(pq.read_table(part, partitioning=None).drop_columns(["settings", "shapes"]), part)
        asked = select(store, "select path, settings, shapes is null or shapes = '' from adapters order by path").rows
        assert asked == [["a00", None, True], ["a01", None, True]]
        assert store.table("adapters")["settings"].to_pylist() == [None, None]
    with store.writing() as writer:
        writer.replace({"a01": "another stamp"})
    assert store.table("adapters").sort_by("path")["stamp"].to_pylist() == ["stamp of a00", "another stamp"]


def test_a_number_that_a_foreign_file_has_is_not_used(tmp_path):
    filled(tmp_path / "s", 1)
    (tmp_path / "s" / "modules" / "part-000002.parquet").write_text("mine")
    with Store(tmp_path / "s", FLEET).writing() as writer:
        writer.add([result("later")])
    assert Store(tmp_path / "s", FLEET).parts == [1, 3]
    assert (tmp_path / "s" / "modules" / "part-000002.parquet").read_text() == "mine"
