"""Reports at a prompt, in a notebook and as data frames."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradience.schema import ConfigSnapshot, Finding, NotRun
from gradience.schema.events import EvalMetrics
from gradience.schema.reports import CheckReport, EvalPoint, ValidateReport


@pytest.fixture(scope="module")
def audit():
    import gradience

    draw = np.random.default_rng(0)
    pairs = {f"layers.{i}.q_proj": (draw.normal(size=(4, 16)), draw.normal(size=(24, 4))) for i in range(60)}
    pairs["layers.60.q_proj"] = (np.full((4, 16), np.nan), np.zeros((24, 4)))
    return gradience.audit_arrays(pairs, scale=2.0)


def test_the_repr_of_a_report_is_a_summary_of_some_lines(audit):
    shown = repr(audit)
    assert len(shown) < 4000
    assert shown.startswith("AuditReport(\n")
    assert "  modules=<61 items>,\n" in shown
    assert "NUM201 error" in shown
    assert "total_lora_params=" in shown


def test_a_long_text_is_cut_and_an_empty_field_left_out():
    report = ValidateReport(
        schema="gradience.validate/v2", file="x" * 500, valid=False, lines=3, issues=[], issues_total=2
    )
    assert f"file='{'x' * 156}...," in repr(report)
    assert max(map(len, repr(report).splitlines())) < 180


def test_the_html_escapes_what_a_file_says():
    finding = Finding(id="LR001", severity="warning", message="<script>alert(1)</script>", action="a & b")
    page = CheckReport(schema="gradience.check/v3", config=ConfigSnapshot(), findings=[finding])._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a &amp; b" in page


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_the_rows_of_a_list_are_columns_of_a_data_frame(audit, library):
    frames = pytest.importorskip(library)
    frame = frames.DataFrame(audit.table("modules"))
    assert len(frame) == 61
    assert next(iter(frame["name"])) == "layers.0.q_proj"
    assert float(frame["stable_rank"][0]) == pytest.approx(audit.modules[0].stable_rank)
    assert frame["spectral_norm"].dtype in ("float64", getattr(frames, "Float64", None))


def test_a_column_of_numbers_with_named_ones_is_of_floats():
    class Report(ValidateReport, frozen=True, kw_only=True):
        evals: list[EvalPoint]

    evals = [EvalPoint(split="test", step=s, metrics=EvalMetrics(loss=x)) for s, x in ((1, 1), (2, "Infinity"))]
    report = Report(
        schema="gradience.validate/v2", file="f", valid=True, lines=0, issues=[], issues_total=0, evals=evals
    )
    assert [row["metrics.loss"] for row in report.table("evals")] == [1.0, math.inf]
    assert [row["step"] for row in report.table("evals")] == [1, 2]
    assert all(type(row["step"]) is int for row in report.table("evals"))


def test_a_list_that_is_not_there_is_refused_with_the_names_of_those_that_are():
    report = CheckReport(schema="gradience.check/v3", config=ConfigSnapshot(), not_run=[NotRun(id="LR001", reason="r")])
    with pytest.raises(ValueError, match=r"no table 'modules'; it has .*findings, readings, not_run"):
        report.table("modules")
    assert report.table("not_run") == [{"id": "LR001", "reason": "r"}]
