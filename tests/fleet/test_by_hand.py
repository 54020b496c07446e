"""The numbers of a fleet one by one: what is to be done again, which rows a report makes, padding, and pairs."""

from __future__ import annotations

import os
import signal
from typing import Any

import msgspec
import numpy as np
import pytest
from fleet_inputs import peft
from safetensors.numpy import load_file
from tables import every

from gradience.collect.fleet import Known, show as comparing
from gradience.collect.fleet.audit import Job, audit_job, failed, failures_in, is_failure, plan_of
from gradience.collect.fleet.show import Load, candidate_pairs, one_version, serving, show_fleet, similar
from gradience.errors import GradienceError
from gradience.judge.audit import audit_adapter
from gradience.judge.audit.standing import with_standing
from gradience.render.fleet import fleet_show_text
from gradience.schema.fleet import AdapterRow, ModuleRow
from gradience.tables import WorkerResult, encoded
from gradience.tables.query import FLEET
from gradience.tables.store import Store

# --- what is to be done again ------------------------------------------------------------------------------------


def job(stamp: str = "s", fault: str | None = None) -> Job:
    return Job("a", "/a", (), stamp, fault=fault)


@every(
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


def head_of(answer):
    return msgspec.json.decode(msgspec.msgpack.decode(answer, type=WorkerResult).tables[0], type=AdapterRow)


def test_a_failure_is_a_row_without_numbers_and_a_crash_has_no_stamp():
    for status, stamp in (("error", "s"), ("crashed", "")):
        answer = failed(job(), "why \n so", stamp)
        assert is_failure(answer)
        row = head_of(answer)
        assert (row.path, row.status, row.error, row.stamp) == ("a", status, "why so", stamp)
    assert is_failure(None)
    assert not is_failure(b"")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_content_that_is_as_it_was_is_not_read_again_and_other_content_is(tmp_path, name):
    """One file in memory, or files of any kind: the hash of the row decides, not that there is one."""
    folder = peft(tmp_path / "a")
    files = ("adapter_config.json", "adapter_model.safetensors")
    if name.endswith(".bin"):
        torch = pytest.importorskip("torch")
        tensors = {key: torch.from_numpy(x) for key, x in load_file(folder / files[1]).items()}
        torch.save(tensors, folder / name)
        (folder / files[1]).unlink()
        files = (files[0], name)
    asked = Job(str(folder), str(folder), files, "s")
    rows = {known: audit_job(asked.knowing(known)) for known in ("", "another")}
    assert rows[""] == rows["another"] != b""
    assert audit_job(asked.knowing(head_of(rows[""]).content_hash)) == b""


# --- padding, standing, values -----------------------------------------------------------------------------------


def test_an_adapter_beyond_every_server_is_left_out_of_the_padding_and_listed():
    found = serving("b", {8: Load(2, 100, 800), 600: Load(1, 10, 6000)})
    assert (found.adapters, found.ranks, found.max_lora_rank) == (3, {"8": 2, "600": 1}, None)
    assert (found.used_bytes, found.padding_bytes) == (1600, 0)
    assert [split.max_lora_ranks for split in found.buckets] == [[8]]
    none = serving("b", {})
    assert (none.adapters, none.used_bytes, none.padding_bytes, none.buckets) == (0, 0, 0, [])


# --- pairs -------------------------------------------------------------------------------------------------------


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
        {"path": str(n), "sketch": list(s), "base_model": "b", "shapes": "k", "content_hash": str(n)}
        for n, s in enumerate(sketches)
    ]


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


# --- small fleets, written row by row ----------------------------------------------------------------------------


def stored(folder: Any, *rows: tuple[dict[str, Any], list[dict[str, Any]]]) -> Any:
    """A fleet of adapters with these fields, and modules."""
    store = Store(folder, FLEET)
    usual = {"status": "ok", "stamp": "s", "rules": "1", "verdict": "trained", "base_model": "b"}
    shape = {"module_type": "attn", "kind": "linear", "rows": 8, "columns": 4, "r": 2, "params": 24, "state": "ok"}
    made = []
    for place, (fields, modules) in enumerate(rows):
        name = f"a{place:02d}"
        row = AdapterRow(**{"path": name, "content_hash": name, **usual, **fields})
        some = [
            ModuleRow(**{"path": name, "position": n, "name": f"m{n}", **shape, **one}) for n, one in enumerate(modules)
        ]
        made.append(encoded([row], some, []))
    with store.writing() as writer:
        writer.add(made)
    return folder


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_in_place_of_a_part_is_refused_and_not_waited_for(tmp_path):
    fleet = stored(tmp_path / "f", ({}, []))
    part = next((fleet / "modules").iterdir())
    part.unlink()
    os.mkfifo(part)
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(30)
    try:
        with pytest.raises(GradienceError, match="is not a regular file"):
            show_fleet(fleet)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_equal_reasons_of_unread_adapters_are_counted_as_one(tmp_path):
    errors = ("a00/w: 12 bytes", "a01/w: 7 bytes", "other")
    rows = [({"status": "error", "verdict": None, "error": error}, []) for error in errors]
    found = show_fleet(stored(tmp_path / "f", *rows, ({}, [])))
    assert [(reason.value, reason.adapters) for reason in found.unread] == [("w: N bytes", 2), ("other", 1)]
    lines = fleet_show_text(found).splitlines()
    start = lines.index("Needs a look (3):")
    assert lines[start + 1 : start + 4] == [
        "  3 adapters cannot be read:", "        2 x w: N bytes", "        1 x other",
    ]  # fmt: skip


def test_a_list_names_as_many_as_asked_for_and_counts_all(tmp_path):
    broken = [({"status": "error", "verdict": None, "error": "e"}, [])] * 4
    wasteful = [
        ({"r": 8, "suggested_rank": 2, "utilization_mean": 0.1, "bytes_saved": size}, []) for size in (5, 7, 0, 6)
    ]
    found = show_fleet(stored(tmp_path / "f", *broken, *wasteful), top=2)
    assert ([item.path for item in found.faulty], found.faulty_total) == (["a00", "a01"], 4)
    assert [(item.path, item.bytes_saved) for item in found.wasteful] == [("a05", 7), ("a07", 6)]
    assert [(reason.value, reason.adapters) for reason in found.unread] == [("e", 4)]
    assert (found.adapters, found.modules, found.bytes) == (8, 0, 0)


@pytest.mark.parametrize(
    ("usual", "other", "named"), [(2, 1, 1), (1, 1, 0), (1, 0, 0), (3, 2, 2), (2, 2, 0), (2, 3, 2)]
)
def test_a_shape_is_strange_where_over_half_of_two_or_more_have_another(tmp_path, usual, other, named):
    rows = [({}, [{}])] * usual + [({}, [{"rows": 16}])] * other
    found = show_fleet(stored(tmp_path / "f", *rows)).other_shapes
    assert len(found) == named
    if named and usual > other:
        assert (found[0].shape, found[0].usual, found[0].usual_adapters) == ([16, 4], [8, 4], usual)


@pytest.mark.parametrize(("others", "few"), [(19, True), (20, False)])
def test_under_twenty_others_are_few_to_compare_with(tmp_path, others, few):
    place = stored(tmp_path / "f", *[({}, [{"r": 4, "stable_rank": 1.0 + n}]) for n in range(others)])
    found = with_standing(audit_adapter(peft(tmp_path / "own")), place).standing
    assert [(one.measure, one.n, 0.0 < one.percentile < 100.0) for one in found.percentiles] == [
        ("stable_rank", others, True)
    ]
    assert found.notes == ([f"few to compare with: n = {others}"] if few else [])


OF_A_MODULE = {"module_type": "attn", "kind": "linear", "rows": 8, "columns": 8, "r": 2, "params": 32, "state": "ok"}


@every(("value", "kept"), [(2**63 - 1, 2**63 - 1), (2**63, None), (-(2**63), -(2**63)), (-(2**63) - 1, None)])
def test_a_whole_number_that_no_column_holds_is_null_where_a_column_has_null(value, kept):
    row = ModuleRow(path="a", position=0, name="m", config_r=value, **OF_A_MODULE)
    lines = msgspec.msgpack.decode(encoded([AdapterRow(path="a")], [row], []), type=WorkerResult).tables[1]
    assert msgspec.json.decode(lines)["config_r"] == kept


def test_a_whole_number_that_no_column_holds_is_refused_where_there_is_no_null():
    with pytest.raises(GradienceError, match="bytes is 9223372036854775808, which no column"):
        encoded([AdapterRow(path="a", bytes=2**63)], [], [])


def test_snapshots_of_one_repository_are_versions_of_one_adapter(tmp_path):
    repository = tmp_path / "models--acme--toy"
    paths = [f"{repository}/snapshots/{name}" for name in ("aa", "bb", "aa/sub")]
    rows = [{"path": path} for path in (*paths, f"{tmp_path}/snapshots/cc", f"{tmp_path}/snapshots/dd")]
    kept, notes = one_version(rows)
    assert {row["path"] for row in kept} == {row["path"] for row in rows} - {paths[0]}
    assert notes == [f"{repository} has 2 snapshots, versions of one adapter: of them bb is compared"]
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("aa\n")
    assert paths[1] not in {row["path"] for row in one_version(rows)[0]}
