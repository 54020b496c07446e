"""Parts of a store: many small ones become full ones, and a kill between two steps loses no row and doubles none."""

from __future__ import annotations

import json

import pytest

from gradience.errors import GradienceError
from gradience.schema.fleet import AdapterRow, ModuleRow
from gradience.verbs.fleet import INDEX, Folders, Known, encoded, read_index, store as storing, write_index
from gradience.verbs.fleet.audit import known_rows
from gradience.verbs.fleet.query import FLEET, select
from gradience.verbs.fleet.store import Store


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


def test_the_index_says_what_the_tables_say_and_holds_for_these_parts_only(tmp_path):
    store = filled(tmp_path / "s", 3)
    known = known_rows(store)
    assert known["a01"] == Known("stamp of a01", "1", "hash of a01", failed=False)
    write_index(store, known, Folders())
    assert read_index(Store(tmp_path / "s", FLEET))[0] == known
    with store.writing() as writer:
        writer.add([result("later")])
    assert read_index(Store(tmp_path / "s", FLEET))[0] is None
    for damage in (b"", b"x", (tmp_path / "s" / INDEX).read_bytes()[:-3]):
        (tmp_path / "s" / INDEX).write_bytes(damage)
        assert read_index(store)[0] is None


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


def test_a_number_that_a_foreign_file_has_is_not_used(tmp_path):
    filled(tmp_path / "s", 1)
    (tmp_path / "s" / "modules" / "part-000002.parquet").write_text("mine")
    with Store(tmp_path / "s", FLEET).writing() as writer:
        writer.add([result("later")])
    assert Store(tmp_path / "s", FLEET).parts == [1, 3]
    assert (tmp_path / "s" / "modules" / "part-000002.parquet").read_text() == "mine"


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
