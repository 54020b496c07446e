"""The page: what it holds, that nothing of a log becomes markup, that it is small, legible and the same twice."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import re
from importlib.resources import files
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from pages import gather, parse
from tables import every

from gradience.blocks import clean
from gradience.blocks.html import document, tag
from gradience.blocks.html.plot import PlotLine, envelope
from gradience.schema import SCHEMA_ID
from gradience.schema.diagnose import Cause, Piece
from gradience.schema.events import Alert
from gradience.telemetry.writer import TelemetryWriter
from gradience.verbs.diagnose.view import step_of, steps_of
from gradience.verbs.report.page import report_html
from gradience.verbs.report.run import write_report
from gradience.verbs.runs.curves import marks_of

HOSTILE = '<script>alert("1")</script>"><img src=x onerror=alert(1)>'
CSS = files("gradience.blocks.html").joinpath("style.css").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def story(log, adapter):
    return gather(log, adapter=adapter)


@pytest.fixture(scope="module")
def page(story):
    return report_html(story)


@pytest.fixture
def page_of(tmp_path):
    """A function that writes a log of rows (step, loss, further columns), and returns its page and story."""

    def made(rows, evals=(), data=None):
        with TelemetryWriter(tmp_path / "run.jsonl", fsync="never") as log:
            log.run_start({"model_name": "acme/base"})
            for step, loss, more in rows:
                log.train_step(step, loss=loss, **more)
            for step, metrics in evals:
                log.eval(step, split="test", metrics=metrics)
            if data is not None:
                log.metrics(1, kind="data", metrics=data)
            log.run_end(status="ok")
        gathered = gather(tmp_path / "run.jsonl")
        return report_html(gathered), gathered

    return made


SPIKES = (150, 170, 190, 230)


def test_a_burst_of_spikes_is_marked_whole_and_the_loss_is_smoothed_in_its_colour(page_of):
    draw = np.random.default_rng(1)
    rows = [
        (n, 1.6 * math.exp(-n / 120) + 0.4 + 0.05 * draw.standard_normal() + 3.0 * (n in SPIKES), {})
        for n in range(1, 301)
    ]
    html, story = page_of(rows, [(n, {"loss": 1.0 + abs(n - 200) / 1000, "n": 1872}) for n in (100, 200, 300)])
    found = story.diagnosis.findings
    ((number, spike),) = [(n, cause) for n, cause in enumerate(found, 1) if cause.id == "DIV103"]
    assert [mark.step for mark in marks_of(found) if mark.number == number] == list(SPIKES)
    assert step_of(spike) in SPIKES
    text = parse(html).text
    assert "Held-out loss, test1.1 at step 300 (lowest 1 at step 200), 1,872 examples" in text
    assert "The strong line is the running median of 15 rows; the faint one is not smoothed." in text
    chart = html.partition("<svg")[2].partition("</svg>")[0]
    strokes = [colour for colour in ("--c0", "--c1", "--c2") if f'stroke="var({colour})"' in chart]
    assert strokes == ["--c0", "--c1"]  # those of the legend
    assert 'stroke-width="2.2"' in chart
    section = html[html.index('id="not-judged"') :].partition("</section>")[0]
    assert section.index("<details><summary>") < section.index("<table>") < section.index("</details>")
    assert f"Skipped ({len(story.diagnosis.not_run)})" in section


@every(("rows", "smooth", "window"), [(99, True, 0), (100, True, 5), (100, False, 0), (400, True, 21)])
def test_a_short_curve_is_not_smoothed(rows, smooth, window):
    line = PlotLine("x", envelope(np.arange(rows), np.ones(rows)), smooth=smooth)
    assert line.window == window


def cause(rule: str, source: str = "log", pieces: tuple[str, ...] = (), **values: Any) -> Cause:
    some = [Piece(source=source, id=one, severity=None, says="") for one in (rule, *pieces)]
    return Cause(id=rule, severity="warning", message="m", values=values, joined=False, pieces=some)


@every(
    ("values", "steps"),
    [
        ({"steps": [3, 5, True, "x", 2.0]}, [3, 5]),
        *(({name: value}, []) for name, value in (("steps", []), ("steps", 4), ("first_step", True), ("x", 1))),
        ({"first_step": 7}, [7]),
        ({"steps": [1], "first_step": 7}, [1]),
    ],
)
def test_steps_of_a_finding_are_whole_numbers(values, steps):
    assert steps_of(cause("DIV103", **values)) == steps


def test_marks_are_of_findings_in_the_log_by_step_and_by_the_beginning_of_an_id():
    found = [
        cause("DIV103", steps=[9, 2]),
        cause("NUM101", "weights", first_step=5),
        cause("OVF110", pieces=("DIV104",), first_step=4),
    ]
    assert [(mark.number, mark.step) for mark in marks_of(found)] == [(1, 2), (3, 4), (1, 9)]
    assert [[mark.number for mark in marks_of(found, begins)] for begins in ("DIV", "OVF", "NUM")] == [
        [1, 3, 1],
        [3],
        [],
    ]


COUNTS = {"batches": 9, "watched": 8, "rows": 32, "tokens": 900, "padding": 100, "supervised": 450}


@every(
    ("announced", "drawn"),
    [
        ({"bins": [0, 5, 20, 7], "bin_width": 16, "max_length": 48}, 3),
        *(({"bins": [0, 5, 20, 7], "bin_width": 16, "max_length": none}, 2) for none in (None, 0, "48")),
        *((bad, 0) for bad in (None, "x", {"bins": [-1]}, {"bins": [], "bin_width": 1})),
        *(({"bins": [one], "bin_width": width}, 0) for one, width in (("x", 1), (1, 0))),
    ],
)
def test_what_the_model_was_fed_is_a_table_and_the_lengths_of_a_check_a_histogram(page_of, announced, drawn):
    html, _ = page_of([(1, 2.0, {})], data={**COUNTS, "rows_unsupervised": 2, "announced": announced})
    assert "data" in [section["id"] for section in parse(html).all("section")]
    for text in ("8 of 9 micro-batches, 32 rows", "50.0% of the tokens"):
        assert text in html
    texts = ("Tokens per sequence", "32 to 47: 20", "limit 48")
    assert [text in html for text in texts] == [True] * drawn + [False] * (3 - drawn)


TEXTS = st.text() | st.sampled_from(
    ["</td></table><img src=x onerror=alert(1)>", '" onload="x', "]]><!--", "&lt;&amp;"]
)


@given(TEXTS, TEXTS)
@example("</style><script>", "'\"><svg onload=1>\x1b[31mb\u202e")
def test_text_and_attributes_come_back_as_they_went_in_and_make_no_element(text, attribute):
    written = document(tag("p", "before ", tag("b", text), text, title=attribute))
    page = parse(written)
    assert [name for name, _ in page.elements] == ["p", "b"]
    assert page.elements[0][1] == {"title": clean(attribute)}
    assert page.text.strip("\n") == f"before {clean(text) * 2}".strip("\n")
    assert "\x1b" not in written


def test_the_page_holds_every_part_of_the_story(page):
    found = parse(page)
    assert [s["id"] for s in found.all("section")] == [
        "findings", "training", "weights", "config", "not-judged", "provenance",
    ]  # fmt: skip
    for words in ("acme/base-7b", "acme/sentences", "ended, step 120 of 120", "TRAINED", "Suggested rank", "lora pair"):
        assert words in found.text
    for title in (
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Singular values",
        "Energy by rank",
        "How large the update",
    ):
        assert any(a.get("aria-label", "").startswith(title) for a in found.all("svg"))


def test_token_accuracy_entropy_and_reward_have_a_curve_under_the_names_they_are_logged_by(page_of, page):
    names = ("mean_token_accuracy", "actor/entropy", "critic/rewards/mean")
    rows = [(n, 2.0 - n / 10, dict(zip(names, (n / 10, 1.0 / n, -1.0 * n), strict=True))) for n in range(1, 9)]
    shown = [svg.get("aria-label", "") for svg in parse(page_of(rows)[0]).all("svg")]
    for title, first, last in (("Token accuracy", "0.1", "0.8"), ("Entropy", "1", "0.125"), ("Reward", "-1", "-8")):
        start = f"{title}. {title.lower()}: {first} at step 1, {last} at step 8;"
        assert any(label.startswith(start) for label in shown)
        assert f"{title}." not in page  # of a run that logs none


@every("sigma", [[0.0, 1e200], [1e-300, 1.0, 1e300], [1e-310, 1e-310], [0.0, 0.0]])
def test_a_spectrum_of_any_order_and_size_is_drawn(story, sigma):
    audit = story.diagnosis.audit
    odd = [msgspec.structs.replace(one, top_singular_values=sigma, frobenius_norm=max(sigma)) for one in audit.modules]
    audit = msgspec.structs.replace(audit, modules=odd)
    with np.errstate(all="raise", under="ignore"):
        drawn = report_html(dataclasses.replace(story, diagnosis=msgspec.structs.replace(story.diagnosis, audit=audit)))
    assert 'aria-label="Energy by rank' in drawn


def test_the_first_screen_holds_verdict_next_step_and_curve(log, story, page):
    header = page[page.index("<header>") : page.index("</header>")]
    told = story.diagnosis.monitor.story[1:30]
    places = [header.index(part) for part in ("<h1>", 'class="verdict', told, "Next: ", "<svg", "<dl")]
    assert places == sorted(places)
    assert ['class="figures"' in part for part in (header, page)] == [False, True]  # a grid is of sections
    assert f"<h1>{log.parent.name}</h1>" in header
    assert "Gradience report: acme/base-7b" in header
    assert story.diagnosis.advice.text in parse(page).text


@every(("spikes", "close"), [((70,), True), ((), False), ((60, 70, 80, 90), False)])
def test_one_row_far_off_does_not_flatten_the_first_curve(page_of, spikes, close):
    html, _ = page_of([(step, 50.0 if step in spikes else 2.0 - step / 100, {}) for step in range(1, 101)])
    header = html[: html.index("</header>")]
    assert ("1 training row lies beyond, drawn at the edge." in header) == close
    assert ("<h3>Loss, all rows</h3>" in html) == close


def test_every_cause_is_there_with_its_evidence_and_is_marked_at_its_step(story, page):
    causes = story.diagnosis.findings
    found = parse(page)
    assert [a["id"] for a in found.all("article")] == [f"finding-{n}" for n in range(1, len(causes) + 1)]
    for cause in causes:
        assert cause.message in found.text
        assert all(item.says in found.text for item in cause.evidence)
        assert all(piece.says in found.text for piece in cause.pieces)
    spike = next(n for n, cause in enumerate(causes, 1) if cause.id == "DIV103")
    step = causes[spike - 1].values["step"]
    loss = next(a["aria-label"] for a in found.all("svg") if a.get("aria-label", "").startswith("Loss."))
    assert f"{spike} at step {step}" in loss.partition("Marked: ")[2]


def test_provenance_is_the_hash_of_each_file_and_no_folder_above_its_own(log, adapter, page, tmp_path_factory):
    for path in (log, adapter / "adapter_model.safetensors", adapter / "adapter_config.json"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in page
    assert str(tmp_path_factory.getbasetemp()) not in page


def test_the_same_sources_give_the_same_bytes(log, adapter, page, drawn):
    drawn.clear()  # or the second page would hold the first one's figures
    assert report_html(gather(log, adapter=adapter)) == page


def test_the_page_has_no_script_and_names_no_other_place(page):
    found = parse(page)
    assert {name for name, _ in found.elements}.isdisjoint({"script", "link", "iframe", "img", "object", "form"})
    for _, attributes in found.elements:
        assert not any(key.startswith("on") or key in {"src", "style"} for key in attributes)
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in CSS
    assert "@import" not in CSS


def test_the_policy_allows_our_style_sheet_and_nothing_else(page):
    digest = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
    policy = next(a["content"] for a in parse(page).all("meta") if a.get("http-equiv"))
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert f"<style>{CSS}</style>" in page


def test_every_link_leads_somewhere_and_every_picture_says_what_it_shows(page):
    found = parse(page)
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"].removeprefix("#") for a in found.all("a")} <= set(ids)
    for svg in found.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and len(svg["aria-label"]) > 20)


def test_names_in_a_log_and_in_an_adapter_never_become_elements(write_log, write_adapter, page):
    hostile = report_html(
        gather(write_log(model=HOSTILE, split=HOSTILE), adapter=write_adapter(f"attn.{HOSTILE.replace('.', '')}"))
    )
    found = parse(hostile)
    assert {name for name, _ in found.elements} <= {name for name, _ in parse(page).elements}
    assert HOSTILE in found.text


def test_a_log_without_rows_and_one_of_nothing_but_nan_have_their_page(write_log, tmp_path):
    lines = write_log(12).read_text().splitlines()
    (tmp_path / "empty.jsonl").write_text(lines[0] + "\n")
    assert "no training row" in parse(report_html(gather(tmp_path / "empty.jsonl"))).text
    rows = [re.sub(r'"loss":[^,}]+', '"loss":"NaN"', line) for line in lines]
    (tmp_path / "nan.jsonl").write_text("\n".join(rows) + "\n")
    page = parse(report_html(gather(tmp_path / "nan.jsonl")))
    assert "12 of them are not finite: crosses at the top" in page.text


def test_a_long_log_is_drawn_in_buckets_and_fits_two_megabytes(write_log, tmp_path):
    write_report(write_log(3_000), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(html) < 2_000_000
    assert "3,000 rows in 480 buckets" in parse(html).text
    assert "1 of them is not finite" in parse(html).text


def colours(scheme: str) -> dict[str, np.ndarray]:
    """The variables of the style sheet as linear RGB."""
    found = re.findall(r"--(\w+): #(\w{6})", CSS.split("@media")[1 if scheme == "dark" else 0])
    srgb = {name: np.array([int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)]) for name, code in found}
    return {name: np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for name, c in srgb.items()}


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    """WCAG 2.2's contrast ratio."""
    light = sorted(float(c @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (light[1] + 0.05) / (light[0] + 0.05)


@every("scheme", ["light", "dark"])
def test_text_has_a_contrast_of_at_least_4_5_and_lines_of_at_least_3(scheme):
    c = colours(scheme)
    for name in ("ink", "soft", "link", "info", "warning", "error", "critical"):
        assert contrast(c[name], c["page"]) >= 4.5, name
        assert contrast(c[name], c["panel"]) >= 4.5 or name not in {"ink", "soft"}, name
    for name in ("info", "warning", "error", "critical"):
        assert contrast(c[name], c["on"]) >= 4.5, name
    for name in ("c0", "c1", "c2", "c3", "heat"):
        assert contrast(c[name], c["page"]) >= 3.0, name


def test_a_page_stays_small_whatever_the_number_of_modules_splits_and_alerts(story):
    audit, monitor, series = story.diagnosis.audit, story.diagnosis.monitor, story.series
    assert audit is not None
    assert monitor is not None
    assert series is not None
    many = [
        msgspec.structs.replace(audit.modules[0], name=f"layers.{layer}.block{kind}.proj", layer=layer)
        for layer in range(48)
        for kind in range(60)
    ]
    alert = Alert(schema=SCHEMA_ID, ts=None, run_id="r", step=1, severity="info", code="c", message="m" * 200)
    evals = [msgspec.structs.replace(e, split=f"split {n}") for n in range(500) for e in series.evals]
    diagnosis = msgspec.structs.replace(
        story.diagnosis,
        audit=msgspec.structs.replace(audit, modules=many),
        monitor=msgspec.structs.replace(monitor, alerts=[alert] * 5_000),
    )
    page = report_html(dataclasses.replace(story, diagnosis=diagnosis, series=dataclasses.replace(series, evals=evals)))
    assert len(page) < 2_000_000
    text = parse(page).text
    for words in ("the first 100 of 2,880", "the first 100 of 5,000", "the first 100 of 500", "further kinds"):
        assert words in text
