"""A kept evaluation is used again only where it is whole, of this version, and of the same trial."""

from __future__ import annotations

import msgspec
import pytest

from gradience.verbs.bench.store import Evaluation, _Document, _read, report_path, slug

FOUND = Evaluation(unit="example", scores=[1.0, 0.5], weights=[1.0, 1.0])


@pytest.mark.parametrize(
    ("version", "of", "kept"), [(1, {"a": 1}, True), (2, {"a": 1}, False), (1, {"a": 2}, False), (0, {"a": 1}, False)]
)
def test_of_another_version_or_another_trial_it_is_run_again(tmp_path, version, of, kept):
    place = tmp_path / "e.json"
    assert _read(place, {"a": 1}) is None
    place.write_bytes(msgspec.json.encode(_Document(version, of, FOUND)))
    assert _read(place, {"a": 1}) == (FOUND if kept else None)
    place.write_bytes(place.read_bytes()[:-3])
    assert _read(place, {"a": 1}) is None


def test_names_are_parts_of_a_file_s_name(tmp_path):
    assert [slug(name) for name in ("linear:0.5,0.5", "--", "a" * 70)] == ["linear-0.5-0.5", "x", "a" * 60]
    assert report_path(tmp_path).parent == tmp_path
    assert report_path(tmp_path / "x.json") == tmp_path / "x.json"
