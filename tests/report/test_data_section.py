"""The page's section on data: what the model was fed, and the histogram of a check's lengths with its limit."""

from __future__ import annotations

from pages import gather, parse
from tables import every

from gradience.render.page import report_html
from gradience.telemetry.writer import TelemetryWriter

COUNTS = {
    "batches": 9,
    "watched": 8,
    "rows": 32,
    "tokens": 900,
    "padding": 100,
    "supervised": 450,
    "rows_unsupervised": 2,
}


def page(folder, **more):
    with TelemetryWriter(folder / "run.jsonl", fsync="never") as log:
        log.run_start({})
        log.train_step(1, loss=2.0)
        log.metrics(1, kind="data", metrics={**COUNTS, **more})
        log.run_end(status="ok")
    return report_html(gather(folder / "run.jsonl"))


def test_the_counts_are_a_table_and_the_lengths_a_histogram(tmp_path):
    html = page(tmp_path, announced={"bins": [0, 5, 20, 7], "bin_width": 16, "max_length": 48})
    assert "data" in [section["id"] for section in parse(html).all("section")]
    for text in ("8 of 9 micro-batches, 32 rows", "50.0% of the tokens", "32 to 47: 20", "limit 48"):
        assert text in html


@every(
    "announced",
    [
        None,
        "x",
        {"bins": ["x"], "bin_width": 1},
        {"bins": [1], "bin_width": 0},
        {"bins": [], "bin_width": 1},
        {"bins": [-1]},
    ],
)
def test_a_histogram_of_anybodys_making_is_left_out(announced, tmp_path):
    html = page(tmp_path, announced=announced)
    assert "32 rows" in html
    assert "Tokens per sequence" not in html
