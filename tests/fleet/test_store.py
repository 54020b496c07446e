"""Parts of a store: many small ones become full ones, and a kill between two steps loses no row and doubles none."""

from __future__ import annotations

import json

import pytest

from gradience.schema.fleet import AdapterRow, ModuleRow
from gradience.verbs.fleet import INDEX, Folders, Known, encoded, read_index, store as storing, write_index
from gradience.verbs.fleet.audit import known_rows
from gradience.verbs.fleet.query import FLEET
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


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 17, 29, 30])
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


STEPS = 1 + 1 + 1 + 9 * 3  # the part, the manifest, its partial file, the old parts


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
