"""Where an adapter stands in a fleet: percentiles among healthy adapters of the same rank and module type."""

from __future__ import annotations

from statistics import fmean

import pytest
from fleet_inputs import factors, peft

from gradience.cli.main import main
from gradience.tables.query import open_fleet
from gradience.verbs.audit.run import audit_adapter
from gradience.verbs.audit.standing import MEASURES, share_below


def expected(fleet, report, measure, kind, r, *, without=()):
    """The percentile and n from the tables, in Python."""
    trained = {}
    for row in open_fleet(fleet).adapters.to_pylist():
        if row["verdict"] == "trained" and row["path"] not in without:
            trained.setdefault(row["content_hash"], row["path"])
    values = {}
    for row in open_fleet(fleet).modules.to_pylist():
        if row["path"] in trained.values() and (row["module_type"], row["r"]) == (kind, r):
            values.setdefault(row["path"], []).append(row[measure])
    means = [fmean(each) for each in values.values()]
    mine = fmean(getattr(m, measure) for m in report.modules if (m.module_type, m.r) == (kind, r))
    return mine, 100 * (sum(m < mine for m in means) + sum(m == mine for m in means) / 2) / len(means), len(means)


@pytest.mark.parametrize("measure", MEASURES[:3])
def test_a_percentile_is_that_of_the_adapters_mean_among_theirs(measure, fleet, tmp_path):
    report = audit_adapter(peft(tmp_path / "mine", factors(50, decay=0.7)), against=fleet)
    found = {(p.measure, p.module_type, p.r): p for p in report.standing.percentiles}
    for kind in ("attn", "mlp"):
        item = found[measure, kind, 4]
        mine, share, n = expected(fleet, report, measure, kind, 4)
        assert (item.value, item.percentile, item.n) == (pytest.approx(mine), pytest.approx(share), n)
        assert n == 8  # five runs, the near one, another base, bf16; the copy counts once, r 16 and untrained do not
    assert found["stable_rank", "attn", 4].percentile > 60.0  # a flatter spectrum than theirs
    assert not {"udr", "relative_frobenius"} & {p.measure for p in report.standing.percentiles}
    assert report.standing.notes == ["few to compare with: n = 8"]


def test_an_adapter_of_the_fleet_is_not_compared_with_itself_or_its_copies(collection, fleet):
    standing = audit_adapter(collection / "run-0", against=fleet).standing
    assert {p.n for p in standing.percentiles} == {7}


def test_a_rank_that_no_adapter_has_is_a_note(fleet, tmp_path):
    standing = audit_adapter(peft(tmp_path / "mine", factors(1, r=3), r=3), against=fleet).standing
    assert standing.percentiles == []
    assert "no trained adapter of the fleet" in standing.notes[0]


def test_ties_count_by_half():
    assert share_below(1.0, [0.0, 1.0, 1.0, 5.0]) == 50.0
    assert (share_below(-1.0, [0.0]), share_below(1.0, [0.0])) == (0.0, 100.0)


def test_audit_and_report_print_it(fleet, tmp_path, capsys):
    mine = peft(tmp_path / "mine", factors(50, decay=0.7))
    assert main(["audit", str(mine), "--against", str(fleet)]) == 0
    out = " ".join(capsys.readouterr().out.split())  # lines break where the screen ends
    assert f"Among the trained adapters of {fleet}, by type of module and rank:" in out
    assert "utilization, attn, r 4" in out
    assert "(n = 8)" in out
    assert main(["report", str(mine), "--against", str(fleet)]) == 0
    assert "Among the trained adapters of" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    assert main(["report", str(mine), "--against", str(fleet), "--out", str(tmp_path / "r.html")]) == 0
    assert "Among the trained adapters of" in (tmp_path / "r.html").read_text()
    assert main(["audit", str(mine), "--against", str(tmp_path)]) == 2
