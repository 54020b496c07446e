"""A fleet's rows: equal to single audits, whatever was killed or changed in between."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import msgspec
import pytest
from filelock import FileLock
from fleet_inputs import factors, peft
from safetensors.numpy import load_file, save_file
from tables import every

import gradience
from gradience.cli.main import main
from gradience.errors import GradienceError, OutputError
from gradience.schema.fleet import AdapterRow, ModuleRow
from gradience.tables import WorkerResult, encoded
from gradience.tables.query import open_fleet
from gradience.verbs.audit.run import audit_adapter
from gradience.verbs.fleet import audit
from gradience.verbs.fleet.audit import Job, audit_fleet, audit_job, failed, failures_in, is_failure, plan_of
from gradience.verbs.fleet.records import Known
from gradience.verbs.fleet.workers import Done, carried_out


def rows(fleet):
    opened = open_fleet(fleet)
    return [table.to_pylist() for table in (opened.adapters, opened.modules, opened.findings)]


def near(tables):
    """The rows with room for rounding: other processes may divide the work of a sum otherwise."""
    return [[{name: close(value) for name, value in row.items()} for row in table] for table in tables]


def close(value):
    is_number = isinstance(value[0] if isinstance(value, list) and value else value, float)
    return pytest.approx(value, rel=1e-12, abs=1e-12) if is_number else value


def test_a_fleets_rows_are_the_numbers_of_single_audits(collection, fleet):
    opened = gradience.fleet.open(fleet)
    for name in ("run-2", "r16", "untrained"):
        (row,) = (row for row in opened.adapters.to_pylist() if row["path"] == str(collection / name))
        report = audit_adapter(collection / name)
        summary, cut = report.summary, report.suggested.get("p90")
        numbers = {field: getattr(summary, field) for field in row if hasattr(summary, field)}
        assert {field: row[field] for field in numbers} == {field: close(value) for field, value in numbers.items()}
        assert (row["verdict"], row["params"], row["findings"]) == (
            report.health.verdict, summary.total_lora_params, len(report.findings),
        )  # fmt: skip
        assert (row["suggested_rank"], row["bytes_saved"]) == ((cut.rank, cut.bytes_saved) if cut else (None, 0))
        assert row["bytes"] == sum(entry.bytes for entry in report.ledger)
        energies = [float(m.frobenius_norm) ** 2 for m in report.modules if m.state == "ok"]
        assert row["frobenius_norm"] == (pytest.approx(sum(energies) ** 0.5, rel=1e-12) if energies else None)
        modules = [m for m in opened.modules.to_pylist() if m["path"] == str(collection / name)]
        for place, (got, expected) in enumerate(zip(modules, report.modules, strict=True)):
            assert (got["rows"], got["columns"], got["position"]) == (*expected.shape, place)
            shared = {field: getattr(expected, field) for field in got if hasattr(expected, field)}
            assert {field: got[field] for field in shared} == {field: close(value) for field, value in shared.items()}
            assert len(shared) == 25
        ids = [f["id"] for f in opened.findings.to_pylist() if f["path"] == str(collection / name)]
        assert ids == [finding.id for finding in report.findings]


def test_a_broken_adapter_is_a_row_with_its_error(collection, fleet):
    by_name = {Path(row["path"]).name: row for row in open_fleet(fleet).adapters.to_pylist()}
    assert (by_name["truncated"]["status"], by_name["no-weights"]["status"]) == ("error", "error")
    assert "truncated: " in by_name["truncated"]["error"]
    assert "no adapter weights" in by_name["no-weights"]["error"]
    assert by_name["untrained"]["verdict"] == "untrained"


def copied(fleet, tmp_path):
    shutil.copytree(fleet, tmp_path / "fleet")
    return tmp_path / "fleet"


def test_an_unchanged_collection_is_not_read_again(collection, fleet, tmp_path):
    mine = copied(fleet, tmp_path)
    before = rows(mine)
    report = audit_fleet(collection, out=mine, workers=1)
    assert (report.audited, report.unchanged, report.removed) == (0, 13, 0)
    assert rows(mine) == before


@pytest.mark.usefixtures("called")
def test_changes_are_seen_by_size_time_and_content(tmp_path):
    root, out = tmp_path / "many", tmp_path / "fleet"
    for name in ("kept", "touched", "changed", "removed"):
        peft(root / name, factors(len(name)))
    audit_fleet(root, out=out, workers=1)
    before = {row["path"]: row for row in open_fleet(out).adapters.to_pylist()}
    os.utime(root / "touched" / "adapter_model.safetensors", ns=(1, 1))
    save_file(factors(77), root / "changed" / "adapter_model.safetensors")
    shutil.rmtree(root / "removed")
    peft(root / "added", factors(5))
    report = audit_fleet(root, out=out, workers=1)
    assert (report.found, report.audited, report.unchanged, report.removed) == (4, 2, 2, 1)
    after = {Path(row["path"]).name: row for row in open_fleet(out).adapters.to_pylist()}
    assert sorted(after) == ["added", "changed", "kept", "touched"]
    assert after["touched"]["content_hash"] == before[str(root / "touched")]["content_hash"]
    assert " 1 " in after["touched"]["stamp"]
    assert after["changed"]["content_hash"] != before[str(root / "changed")]["content_hash"]
    fresh = tmp_path / "fresh"
    audit_fleet(root, out=fresh, workers=1)
    assert rows(fresh) == near(rows(out))


@pytest.mark.usefixtures("called")
def test_a_fleet_is_for_its_owner_only_if_one_of_its_adapters_is(tmp_path):
    files = [file for name in "ab" for file in peft(tmp_path / name, factors(3)).iterdir()]
    for mode in (0o644, 0o600):
        for file in files[: 1 if mode == 0o600 else None]:
            file.chmod(mode)
        audit_fleet(tmp_path / "a", tmp_path / "b", out=tmp_path / "fleet", workers=1)
        kept = [path for path in (tmp_path / "fleet").rglob("*.*") if path.suffix in {".json", ".parquet", ".msgpack"}]
        assert {path.stat().st_mode & 0o777 for path in kept} == {mode}


@pytest.mark.usefixtures("called")
def test_a_listed_place_that_is_missing_is_a_row_until_it_is_there(tmp_path):
    place, out = tmp_path / "later", tmp_path / "fleet"
    report = audit_fleet(out=out, listed=[str(place)], workers=1)
    assert (report.found, report.errors, report.crashed) == (1, 1, 0)
    peft(place)
    assert audit_fleet(out=out, listed=[str(place)], workers=1).errors == 0
    assert open_fleet(out).adapters["verdict"].to_pylist() == ["trained"]


@pytest.mark.usefixtures("called")
def test_each_line_of_an_audit_of_a_fleet_is_of_what_is_there_now(tmp_path, monkeypatch, capsys):
    """Of three adapters one cannot be read; then only that one goes, then nothing, then one comes and one changes."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "cut"):
        peft(Path("many") / name, factors(len(name) + ord(name[0])))
    file = Path("many/cut/adapter_model.safetensors")
    file.write_bytes(file.read_bytes()[:-4])

    def shown():
        assert main(["fleet", "audit", "many", "--out", "a fleet", "--workers", "1"]) == 0
        return [
            re.sub(r" in [\d.]+ s( \([\d.]+ a second\))?", "", line)
            for line in capsys.readouterr().out.splitlines()[3:]
        ]

    why = "Why: gradience fleet show 'a fleet'"
    three = ["Fleet: a fleet", "3 adapters: 2 with numbers, 1 that cannot be read", "  3 looked at, 0 unchanged", why]
    assert shown() == three
    shutil.rmtree("many/cut")
    two = "2 adapters: 2 with numbers, 0 that cannot be read"
    assert shown() == ["Fleet: a fleet", two, "  0 looked at, 2 unchanged", "  1 no longer there"]
    assert shown() == ["Fleet: a fleet", two, "  0 looked at, 2 unchanged"]
    peft(Path("many/new"), factors(7))
    save_file(factors(9), "many/one/adapter_model.safetensors")
    said = "3 adapters: 3 with numbers, 0 that cannot be read"
    assert shown() == ["Fleet: a fleet", said, "  2 looked at, 1 unchanged"]


def test_two_jobs_on_one_fleet_refuse_each_other(collection, fleet, tmp_path):
    mine = copied(fleet, tmp_path)
    with FileLock(mine / ".lock"), pytest.raises(OutputError, match="another job is writing"):
        audit_fleet(collection, out=mine, workers=1)


def test_a_folder_without_adapters_makes_no_fleet(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert main(["fleet", "audit", "empty", "--out", "fleet"]) == 2
    assert capsys.readouterr().err == (
        "gradience: no adapter below empty (looked for adapter_config.json, and adapter_model.safetensors, "
        "adapters.safetensors, adapter_model.bin, adapter_model.pt or other tensors of an adapter)\n"
    )
    assert not Path("fleet").exists()


def test_a_folder_of_something_else_is_left_alone(collection, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="holds something else"):
        audit_fleet(collection, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "mine.txt").rename(tmp_path / "fleet.json")
    with pytest.raises(GradienceError, match="cannot read"):
        open_fleet(tmp_path)
    (tmp_path / "fleet.json").write_text('{"schema": "gradience.fleet/v0"}')
    with pytest.raises(GradienceError, match=r"expected 'gradience\.fleet/v1'"):
        open_fleet(tmp_path)


@pytest.mark.usefixtures("called")
def test_a_base_puts_relative_norms_into_the_rows(tmp_path):
    import numpy as np

    rng = np.random.default_rng(3)
    base = tmp_path / "base"
    base.mkdir()
    names = [f"model.layers.{n}.{m}.weight" for n in range(2) for m in ("self_attn.q_proj", "mlp.up_proj")]
    save_file({name: rng.standard_normal((48, 24)).astype(np.float32) for name in names}, base / "model.safetensors")
    folder = peft(tmp_path / "a")
    audit_fleet(tmp_path / "a", out=tmp_path / "fleet", base=base, workers=1)
    (row,) = open_fleet(tmp_path / "fleet").adapters.to_pylist()
    report = audit_adapter(folder, base=base, norms_cache=False)
    assert row["relative_frobenius"] == pytest.approx(report.base.relative_frobenius, rel=1e-12)
    assert open_fleet(tmp_path / "fleet").modules["udr"].to_pylist() == pytest.approx([m.udr for m in report.modules])
    assert row["rules"].endswith(f" base {base}")


class Killed(BaseException):
    """What no handler of the audit catches."""


def test_a_job_killed_between_two_parts_goes_on_and_ends_with_the_same_rows(collection, fleet, tmp_path, monkeypatch):
    out = tmp_path / "fleet"

    def run(work, jobs, *, most=None, **_):
        for job in jobs[:most]:
            yield Done(job, work(job))
        if most:
            raise Killed

    monkeypatch.setattr(audit, "BATCH", 2)
    monkeypatch.setattr(audit, "carried_out", partial(run, most=5))
    with pytest.raises(Killed):
        audit_fleet(collection, out=out, workers=1)
    kept = rows(out)[0]
    assert len(kept) in {4, 5}  # what was in flight may be lost
    monkeypatch.setattr(audit, "carried_out", run)
    assert audit_fleet(collection, out=out, workers=1).audited == 13 - len(kept)
    assert rows(out) == near(rows(fleet))
    live = json.loads((out / "fleet.json").read_text())["parts"]
    assert sorted(p.stem for p in (out / "modules").iterdir()) == [f"part-{number:06d}" for number in sorted(live)]


@pytest.fixture
def killing(tmp_path, monkeypatch):
    """Jobs of which two kill their workers once, one each time; importable by the workers."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]))
    module = __import__("killing_jobs")
    jobs = []
    for place in range(12):
        count = tmp_path / f"count-{place}"
        count.write_text("")
        jobs.append(module.Job(str(place), {3: 1, 7: 1, 9: 9}.get(place, 0), str(count)))
    return module, jobs


def test_a_dead_workers_job_is_tried_alone_and_then_reported(killing):
    module, jobs = killing
    done = {d.job.path: d.answer for d in carried_out(module.work, jobs, workers=2, prepare=module.prepare)}
    assert done == {job.path: None if job.path == "9" else job.path.encode() for job in jobs}
    (limit,) = carried_out(module.limit, jobs[:1], workers=1, prepare=module.prepare)
    assert limit.answer == b"2"


def test_workers_that_cannot_start_are_an_error_and_not_a_loop(killing):
    module, jobs = killing
    with pytest.raises(GradienceError, match="die before their first job"):
        list(carried_out(module.work, jobs, workers=2, prepare=module.die))


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
