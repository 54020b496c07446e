"""The numbers of a fleet one by one: what is to be done again, which rows a report makes, padding, and pairs."""

from __future__ import annotations

import msgspec
import pytest
from fleet_inputs import peft
from safetensors.numpy import load_file
from tables import every

from gradience.collect.fleet import Known
from gradience.collect.fleet.audit import Job, audit_job, failed, failures_in, is_failure, plan_of
from gradience.errors import GradienceError
from gradience.schema.fleet import AdapterRow, ModuleRow
from gradience.tables import WorkerResult, encoded


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


OF_A_MODULE = {"module_type": "attn", "kind": "linear", "rows": 8, "columns": 8, "r": 2, "params": 32, "state": "ok"}


@every(("value", "kept"), [(2**63 - 1, 2**63 - 1), (2**63, None), (-(2**63), -(2**63)), (-(2**63) - 1, None)])
def test_a_whole_number_that_no_column_holds_is_null_where_a_column_has_null(value, kept):
    row = ModuleRow(path="a", position=0, name="m", config_r=value, **OF_A_MODULE)
    lines = msgspec.msgpack.decode(encoded([AdapterRow(path="a")], [row], []), type=WorkerResult).tables[1]
    assert msgspec.json.decode(lines)["config_r"] == kept


def test_a_whole_number_that_no_column_holds_is_refused_where_there_is_no_null():
    with pytest.raises(GradienceError, match="bytes is 9223372036854775808, which no column"):
        encoded([AdapterRow(path="a", bytes=2**63)], [], [])
