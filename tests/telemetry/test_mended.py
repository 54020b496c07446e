"""Faults of one line after another: what is wrong is mended for the next to show, and what cannot be ends the list."""

from __future__ import annotations

from tables import every

from gradience.telemetry.lines import _STAND_INS, Fault, _item, _mend


def mended(document, path, expected=None):
    return _mend(document, Fault("why", path, expected)), document


@every(
    ("path", "can", "left"),
    [
        ("$.step", True, {"step": None, "lr": [1, "x"], "own": 1}),
        ("$.own", True, {"step": "x", "lr": [1, "x"]}),
        ("$.metrics", True, {"step": "x", "lr": [1, "x"], "own": 1, "metrics": {}}),
        ("$.gone", False, {"step": "x", "lr": [1, "x"], "own": 1}),
        ("$.step.deeper", False, {"step": "x", "lr": [1, "x"], "own": 1}),
        ("$.none.deeper", False, {"step": "x", "lr": [1, "x"], "own": 1}),
    ],
)
def test_a_place_gets_a_value_that_is_valid_or_goes(path, can, left):
    assert mended({"step": "x", "lr": [1, "x"], "own": 1}, path) == (can, left)


def test_a_value_that_stands_in_is_no_other_documents():
    for name in ("config", "metrics", "recommendations"):
        document = {name: 3}
        assert _mend(document, Fault("why", f"$.{name}"))
        assert document[name] == _STAND_INS[name]
        assert document[name] is not _STAND_INS[name]


def test_an_item_of_a_list_keeps_its_place():
    assert mended({"lr": [1, "x", 3]}, "$.lr[1]", "float") == (True, {"lr": [1, 0, 3]})
    assert [_item(kind) for kind in ("int", "a number, ...", "str")] == [0, 0, "-"]
    assert set(_item("object")) == {"severity", "action", "message"}
