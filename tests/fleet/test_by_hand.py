"""The numbers of a fleet one by one: what is to be done again, which rows a report makes, padding, and pairs."""

from __future__ import annotations

import math
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from gradience.schema.audit import AuditReport, ModuleAudit
from gradience.schema.fleet import AdapterRow, ModuleRow
from gradience.verbs.fleet import show as comparing
from gradience.verbs.fleet.audit import failures_in, plan_of
from gradience.verbs.fleet.index import Folders, Known, Listing
from gradience.verbs.fleet.job import Job, failed, is_failure
from gradience.verbs.fleet.query import _plain
from gradience.verbs.fleet.rows import number_column, rows_of
from gradience.verbs.fleet.show import Load, _candidates, _pairs_in, candidate_pairs, serving, share_below, similar

# --- what is to be done again ------------------------------------------------------------------------------------


def job(stamp: str = "s", fault: str | None = None) -> Job:
    return Job("a", "/a", (), stamp, fault=fault)


@pytest.mark.parametrize(
    ("known", "now", "jobs", "hashed", "gone"),
    [
        (None, job(), 1, "", []),
        (Known("s", "2", "h"), job(), 0, "", []),
        (Known("old", "2", "h"), job(), 1, "h", []),  # its content decides
        (Known("old", "2", ""), job(), 1, "", ["a"]),
        (Known("s", "1", "h"), job(), 1, "", ["a"]),  # of other rules
        (Known("", "2", ""), job(), 1, "", ["a"]),  # a crash is tried again
        (Known("s", "2", "h"), job(fault="gone"), 1, "h", []),
    ],
)
def test_a_source_is_done_again_if_its_files_or_the_rules_are_others(known, now, jobs, hashed, gone):
    plan = plan_of([now], {} if known is None else {"a": known}, "2")
    assert (len(plan.jobs), list(plan.gone), plan.found, plan.removed) == (jobs, gone, 1, 0)
    assert [one.known_hash for one in plan.jobs] == [hashed] * jobs


def test_sources_that_are_there_no_more_lose_their_rows():
    plan = plan_of([job()], {"a": Known("s", "2", "h"), "b": Known("s", "2", "h"), "c": Known("s", "1", "")}, "2")
    assert (plan.jobs, sorted(plan.gone), plan.found, plan.removed) == ([], ["b", "c"], 1, 2)


def test_errors_and_deaths_are_counted_apart():
    known = {"a": Known("s", failed=True), "b": Known("", failed=True), "c": Known("", failed=True), "d": Known("s")}
    assert failures_in(known) == (1, 2)


def test_a_failure_is_a_row_without_numbers_and_a_crash_has_no_stamp():
    for crashed, status, stamp in ((False, "error", "s"), (True, "crashed", "")):
        answer = failed(job(), "why \n so", crashed=crashed)
        assert is_failure(answer)
        raw = msgspec.msgpack.decode(answer)
        (row,) = msgspec.msgpack.decode(msgspec.msgpack.encode(raw[1][0]))
        values = dict(zip(AdapterRow.__struct_fields__, row, strict=True))
        assert (values["path"], values["status"], values["error"], values["stamp"]) == ("a", status, "why so", stamp)
    assert is_failure(None)
    assert not is_failure(b"")


SECOND = 1_000_000_000


@pytest.mark.parametrize(("age", "kept"), [(3 * SECOND, False), (3 * SECOND + 1, True), (0, False)])
def test_a_folder_changed_within_three_seconds_is_listed_again(age, kept):
    folders = Folders(now=lambda: 100 * SECOND)
    folders.met("f", SimpleNamespace(st_mtime_ns=100 * SECOND - age), ["g"], [])  # type: ignore[arg-type]
    assert list(folders.listings) == ["f"] * kept
    assert folders.are_as_before is not kept


def test_a_folder_is_as_before_if_its_time_is():
    before = {"f": Listing(5, ["g"], [("", ("x",))])}
    folders = Folders(dict(before), now=lambda: 0)
    for time, found in ((6, None), (4, None), (5, before["f"])):
        assert folders.unchanged("f", SimpleNamespace(st_mtime_ns=time)) == found  # type: ignore[arg-type]
    assert folders.unchanged("g", SimpleNamespace(st_mtime_ns=5)) is None  # type: ignore[arg-type]
    assert folders.are_as_before


# --- rows --------------------------------------------------------------------------------------------------------


def module(name: str, place: int, **more: Any) -> dict[str, Any]:
    numbers = {"spectral_norm": 1.5, "frobenius_norm": 3.0, "stable_rank": 2.25, "utilization": 0.25, "udr": 0.125}
    return {
        "name": name,
        "module_type": "attn",
        "layer": place,
        "shape": [6, 5],
        "r": 4 + place,
        "params": 44,
        "scaling": 2.0,
        "alpha": 8.0,
        "config_r": 7,
        "rslora": True,
        "effective_rank": 3.5,
        "participation_ratio": 2.75,
        "energy_rank_90": 2,
        "energy_rank_95": 3,
        "energy_rank_99": 4,
        "knee_rank": 1,
        "null_stable_rank": 1.75,
        "energy_share": 0.625,
        "relative_frobenius": 0.0625,
        **numbers,
        **more,
    }


def report(*modules: dict[str, Any]) -> AuditReport:
    fields = {
        "schema": "gradience.audit/v2",
        "peft_dir": "d",
        "weights_path": "w",
        "format": "peft",
        "peft_type": "LORA",
        "base_model": "b",
        "ledger": [
            {"role": role, "tensors": 1, "params": 5, "bytes": size, "share": 0.5}
            for role, size in (("lora_pair", 24), ("bias", 3))
        ],
        "summary": {
            "total_lora_params": 100,
            "n_layers": len(modules),
            "utilization_mean": 0.5,
            "stable_rank_mean": 1.5,
        },
        "modules": list(modules),
        "health": {"verdict": "trained", "reason": "why"},
    }
    return msgspec.convert(fields, AuditReport)


def test_each_field_of_a_module_that_a_row_has_is_in_it():
    made = report(module("m.0", 0), module("m.1", 1, udr="NaN", frobenius_norm="Infinity", state="non_finite"))
    adapter, rows, findings = rows_of("p", made, ("rules", "stamp", "content", "weights"), [1.0, 2.0])
    shared = set(ModuleRow.__struct_fields__) & set(ModuleAudit.__struct_fields__)
    assert len(shared) == 25
    for place, (row, own) in enumerate(zip(rows, made.modules, strict=True)):
        values = {name: getattr(row, name) for name in shared}
        expected = {name: getattr(own, name) for name in shared}
        assert values == {
            name: None if isinstance(v, str) and v in {"NaN", "Infinity"} else v for name, v in expected.items()
        }
        assert (row.path, row.position, row.rows, row.columns) == ("p", place, 6, 5)
    assert findings == []
    assert (adapter.rules, adapter.stamp, adapter.content_hash, adapter.weights_hash) == (
        "rules",
        "stamp",
        "content",
        "weights",
    )
    assert (adapter.r, adapter.r_min, adapter.bytes, adapter.modules, adapter.params) == (5, 4, 27, 2, 100)
    assert (adapter.frobenius_norm, adapter.sketch, adapter.worst, adapter.suggested_rank) == (
        3.0,
        [1.0, 2.0],
        None,
        None,
    )


def test_the_norm_of_an_adapter_is_over_its_healthy_modules():
    made = report(module("a", 0), module("b", 1, frobenius_norm=4.0), module("c", 2, state="zero"))
    assert rows_of("p", made, ("",) * 4, [])[0].frobenius_norm == 5.0
    assert rows_of("p", report(module("c", 2, state="zero")), ("",) * 4, [])[0].frobenius_norm is None
    assert [number_column(v) for v in (1.5, math.inf, "NaN", None)] == [1.5, None, None, None]


# --- padding, standing, values -----------------------------------------------------------------------------------


def test_an_adapter_beyond_every_server_is_left_out_of_the_padding_and_listed():
    found = serving("b", {8: Load(2, 100, 800), 600: Load(1, 10, 6000)})
    assert (found.adapters, found.ranks, found.max_lora_rank) == (3, {"8": 2, "600": 1}, None)
    assert (found.used_bytes, found.padding_bytes) == (1600, 0)
    assert [split.max_lora_ranks for split in found.buckets] == [[8]]
    none = serving("b", {})
    assert (none.adapters, none.used_bytes, none.padding_bytes, none.buckets) == (0, 0, 0, [])


def test_at_most_three_servers_are_proposed_and_no_more_than_sizes():
    sizes = {rank: Load(1, 10, 10 * rank) for rank in (5, 12, 20, 40)}
    assert [split.max_lora_ranks for split in serving("b", sizes).buckets] == [[64], [16, 64], [16, 32, 64]]
    assert len(serving("b", {3: Load(1, 10, 30), 4: Load(1, 10, 40)}).buckets) == 1


@pytest.mark.parametrize(("value", "share"), [(0.5, 0.0), (1.0, 12.5), (2.5, 50.0), (4.0, 87.5), (5.0, 100.0)])
def test_equal_ones_are_half_below(value, share):
    assert share_below(value, [1.0, 2.0, 3.0, 4.0]) == share


def test_values_of_a_query_are_those_of_json():
    assert _plain([1, 1.5, True, None, "a", math.inf, math.nan]) == [1, 1.5, True, None, "a", "inf", "nan"]
    assert _plain({1: (2, b"ab")}) == {"1": [2, "YWI="]}
    assert _plain(SimpleNamespace) == str(SimpleNamespace)


# --- pairs -------------------------------------------------------------------------------------------------------


def test_in_a_full_bucket_each_is_compared_with_its_sixteen_neighbours(monkeypatch):
    members = list(range(40))
    assert len(list(_pairs_in(members))) == 40 * 39 // 2
    monkeypatch.setattr(comparing, "_MOST_IN_BUCKET", 40)
    assert len(list(_pairs_in(members))) == 40 * 39 // 2
    monkeypatch.setattr(comparing, "_MOST_IN_BUCKET", 39)
    assert set(_pairs_in(members)) == {(a, b) for a, b in combinations(members, 2) if b - a <= 16}


def unit(*rows: list[float]) -> np.ndarray:
    some = np.array(rows, float)
    return some / np.maximum(np.linalg.norm(some, axis=1), 1e-300)[:, None]


def test_sketches_are_candidates_if_the_signs_of_one_of_twelve_bands_of_ten_agree():
    rng = np.random.default_rng(0)
    one = rng.standard_normal(128)
    for band in range(12):
        other = -one
        other[10 * band : 10 * band + 10] *= -1.0
        assert candidate_pairs(unit(one, other)) == {(0, 1)}
        other[10 * band] *= -1.0
        assert candidate_pairs(unit(one, other)) == set()
    other = -one
    other[120:] *= -1.0  # in no band
    assert candidate_pairs(unit(one, other)) == set()
    assert candidate_pairs(np.zeros((2, 128))) == set()  # an update of zero is like none


def block(*sketches: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"path": str(n), "sketch": list(s), "base_model": "b", "shape_key": "k", "content_hash": str(n)}
        for n, s in enumerate(sketches)
    ]


def test_candidates_have_the_least_cosine():
    one = np.ones(128)
    other = one.copy()
    other[120:] = -1.0  # cosine 112 / 128 = .875
    (found,) = _candidates(block(one, 3.0 * other), 0.875)
    assert found == (pytest.approx(0.875), "0", "1")
    assert list(_candidates(block(one, other), 0.8751)) == []
    assert list(_candidates(block(one), 0.0)) == []


def test_pairs_are_looked_for_a_tenth_below_the_threshold_and_read_the_likeliest_first(monkeypatch):
    one = np.ones(128)
    made = []
    for flipped in (1, 4, 8):
        made.append(one.copy())
        made[-1][128 - flipped :] = -1.0
    read: list[tuple[str, str]] = []
    exact = {("0", "1"): 0.97, ("0", "2"): 0.95}
    monkeypatch.setattr(comparing, "open_adapter", lambda path: (None, str(path)))
    monkeypatch.setattr(comparing, "update_cosine", lambda a, b: read.append((a, b)) or exact.get((a, b), 0.0))
    rows = block(one, *made)
    found = similar(rows, threshold=0.97, most=2)  # from .87 on: all six pairs have cosines over .88
    assert read == [("0", "1"), ("1", "2")]
    assert [(alike.paths, alike.cosine) for alike in found.near] == [(["0", "1"], 0.97)]  # at the threshold
    assert (found.compared, found.not_compared, found.all_pairs) == (2, 4, 6)
    rows[1]["content_hash"] = "0"
    again = similar(rows, threshold=0.97, most=9)
    assert ([alike.paths for alike in again.same], again.all_pairs) == ([["0", "1"]], 3)


def test_pairs_that_cannot_be_read_are_not_compared(monkeypatch):
    def gone(path: Any) -> Any:
        raise OSError(path)

    monkeypatch.setattr(comparing, "open_adapter", gone)
    found = similar(block(np.ones(128), np.ones(128)), threshold=0.99, most=5)
    assert (found.near, found.compared, found.not_compared) == ([], 0, 1)
