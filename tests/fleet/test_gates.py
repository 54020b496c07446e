"""A fleet fails a job by what its adapters' findings say; what cannot be read is never passed over; how it gets on."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from fleet_inputs import factors, peft

from gradience.cli.main import main
from gradience.verbs.fleet import results as cli
from gradience.verbs.fleet.audit import JobProgress, audit_fleet
from gradience.verbs.fleet.show import findings_of, show_fleet


def small(seed: int, size: float = 1.0) -> dict:
    """Factors whose update is of an ordinary size, or so many times as large."""
    return {name: x * (size if "lora_B" in name else 1.0) * 0.2 for name, x in factors(seed).items()}


@pytest.fixture(scope="module")
def gated(tmp_path_factory) -> Path:
    """The fleet of three ordinary adapters and one whose update is 500 times as large."""
    root = tmp_path_factory.mktemp("gated")
    for seed in range(3):
        peft(root / "adapters" / f"a{seed}", small(seed))
    peft(root / "adapters" / "huge", small(3, 500.0))
    audit_fleet(root / "adapters", out=root / "fleet", workers=1)
    return root / "fleet"


def test_an_update_far_too_large_needs_a_look(gated):
    [one] = show_fleet(gated).faulty
    assert (Path(one.path).name, one.verdict, "The update is huge" in one.reason) == ("huge", "UPD316", True)
    assert [(Path(path).name, found.id) for path, found in findings_of(gated)] == [("huge", "UPD316")]


@pytest.mark.parametrize(("bar", "code"), [((), 0), (("--fail-on", "warning"), 1), (("--fail-on", "error"), 0)])
def test_the_findings_of_a_fleet_fail_a_job_from_the_severity_asked_for(gated, bar, code, capsys):
    assert main(["fleet", "show", str(gated), *bar]) == code
    out, err = capsys.readouterr()
    assert ("Needs a look (1)" in out, err) == (True, "")
    folder = str(gated.parent / "adapters")
    assert main(["fleet", "audit", folder, "--out", str(gated), *bar]) == code
    assert ("gradience fleet show" in capsys.readouterr().err) == (code == 1)


def test_a_severity_of_another_version_is_refused_in_one_line(gated, tmp_path, capsys):
    import pyarrow.compute
    from pyarrow import parquet

    copied = shutil.copytree(gated, tmp_path / "fleet")
    for part in (copied / "findings").glob("*.parquet"):  # a slow audit writes more than one
        table = parquet.read_table(part)
        place = table.schema.get_field_index("severity")
        told = pyarrow.compute.replace_substring(table["severity"], "warning", "grave")
        parquet.write_table(table.set_column(place, table.schema.field(place), told), part)
    assert main(["fleet", "show", str(copied), "--fail-on", "warning"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "a finding of another version: Invalid enum value 'grave'" in err
    assert "(audit the fleet again)" in err


def test_ci_reads_a_fleet_as_annotations_and_as_sarif(gated, capsys):
    assert main(["fleet", "show", str(gated), "--format", "github"]) == 0
    assert capsys.readouterr().out.startswith(
        f"::warning file={gated.parent / 'adapters' / 'huge'},title=gradience UPD316"
    )
    assert main(["fleet", "show", str(gated), "--format", "sarif"]) == 0
    [result] = json.loads(capsys.readouterr().out)["runs"][0]["results"]
    assert result["ruleId"] == "UPD316"


def test_what_cannot_be_read_is_not_passed_by_a_gate(fleet, capsys):
    assert main(["fleet", "show", str(fleet), "--fail-on", "critical"]) == 2
    assert "2 adapters could not be judged" in capsys.readouterr().err
    assert main(["fleet", "show", str(fleet)]) == 0


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    return now


def told(monkeypatch, clock, stream, moments):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", stream)
    tell = cli.rate_on_stderr("fleet")
    for seconds, tally in moments:
        clock[0] = seconds
        tell(JobProgress(*tally))
    return stream.getvalue()


def test_a_file_gets_a_line_now_and_then_and_none_of_a_short_job(monkeypatch, clock):
    assert told(monkeypatch, clock, io.StringIO(), [(0.5, (1, 2, 0)), (1.9, (2, 2, 0))]) == ""
    clock[0] = 0.0
    text = told(
        monkeypatch, clock, io.StringIO(), [(5.0, (1, 9, 0)), (31.0, (3, 9, 0)), (40.0, (5, 9, 0)), (45.0, (9, 9, 1))]
    )
    assert text.splitlines() == ["fleet: 3/9, 0.1 a second", "fleet: 9/9, 0.2 a second, 1 failed"]
