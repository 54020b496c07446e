"""A table of cases in one test: each case is run, and each that fails is named with its values."""

from __future__ import annotations

import inspect

import pytest
from tables import every


def test_every_case_is_run_and_each_that_fails_is_named_with_its_values():
    met = []

    @every(("number", "most"), [(1, 2), (5, 4), pytest.param(3, 3, id="three"), (9, 8)], ids=None)
    def small(number, most):
        met.append(number)
        assert number < most

    with pytest.raises(ExceptionGroup) as failed:
        small()
    assert met == [1, 5, 3, 9]
    assert str(failed.value).splitlines() == [
        "3 of 4 cases failed:",
        "  case 1: {'number': 5, 'most': 4}",
        "  case 2 (three): {'number': 3, 'most': 3}",
        "  case 3: {'number': 9, 'most': 8} (3 sub-exceptions)",
    ]


def test_a_case_has_its_own_folder_and_what_it_changed_or_printed_is_gone(tmp_path, capsys, monkeypatch):
    @every("name", ["one", "two"], ids=str.upper)
    def alone(name, tmp_path, capsys, monkeypatch):
        assert list(tmp_path.iterdir()) == []
        (tmp_path / name).touch()
        assert not hasattr(inspect, "changed")
        monkeypatch.setattr(inspect, "changed", name, raising=False)
        print(name)  # noqa: T201  # what is looked for
        if name == "two":
            assert capsys.readouterr().out == "two\n"

    assert list(inspect.signature(alone).parameters) == ["tmp_path", "capsys", "monkeypatch"]
    alone(tmp_path=tmp_path, capsys=capsys, monkeypatch=monkeypatch)
