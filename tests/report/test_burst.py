"""What the page shows of a noisy run with several spikes: all of them, a smoothed line, and the held-out loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pages import gather
from tables import every

from gradience.blocks.html.plot import PlotLine, envelope
from gradience.render.curves import marks_of
from gradience.render.diagnose import step_of
from gradience.render.page import report_html
from gradience.schema.events import ConfigSnapshot
from gradience.telemetry.writer import TelemetryWriter

SPIKES = (150, 170, 190, 230)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    draw = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("run") / "run.jsonl"
    with TelemetryWriter(path, fsync="never") as log:
        log.run_start(ConfigSnapshot(model_name="acme/base"))
        for step in range(1, 301):
            loss = 1.6 * math.exp(-step / 120) + 0.4 + 0.05 * draw.standard_normal()
            log.train_step(step, loss=loss + 3.0 * (step in SPIKES))
            if step % 100 == 0:
                log.eval(step, split="test", metrics={"loss": 1.0 + abs(step - 200) / 1000, "n": 1872})
        log.run_end(status="ok")
    return gather(path)


def test_every_spike_of_a_burst_is_marked_with_the_number_of_its_finding(story):
    found = story.diagnosis.findings
    ((number, spike),) = [(n, cause) for n, cause in enumerate(found, 1) if cause.id == "DIV103"]
    marks = [mark for mark in marks_of(found) if mark.number == number]
    assert [mark.step for mark in marks] == list(SPIKES)
    assert step_of(spike) in SPIKES


def test_the_skipped_checks_are_folded_and_counted_in_the_heading(story):
    page = report_html(story)
    section = page[page.index('id="not-judged"') :].partition("</section>")[0]
    assert section.index("<details><summary>") < section.index("<table>") < section.index("</details>")
    assert f"Skipped ({len(story.diagnosis.not_run)})" in section


def test_the_smoothed_line_has_its_rows_colour_and_the_evaluations_keep_theirs(story):
    chart = report_html(story).partition("<svg")[2].partition("</svg>")[0]
    strokes = [colour for colour in ("--c0", "--c1", "--c2") if f'stroke="var({colour})"' in chart]
    assert strokes == ["--c0", "--c1"]  # those of the legend
    assert 'stroke-width="2.2"' in chart


@every(("rows", "smooth", "window"), [(99, True, 0), (100, True, 5), (100, False, 0), (400, True, 21)])
def test_a_short_curve_is_not_smoothed(rows, smooth, window):
    line = PlotLine("x", envelope(np.arange(rows), np.ones(rows)), smooth=smooth)
    assert line.window == window
