"""Row 21, the page of a damaged run: extreme values cost no more time than others."""

from __future__ import annotations

import json

import pytest
from hostile.inputs import adapter, factors, log_line, run_log
from tables import few, grid, met

from gradience.cli.main import main

LIMIT = 8  # a page takes about two seconds, most of them to draw it

VALUES = {
    "1e308 and -1e308": [1e308, -1e308, 1e308],
    "1e308 and 1e-308": [1e308, 1e-308, 1.0],
    "subnormal": [5e-324, 1e-323, 0.0],
    "all the same and huge": [1.7e308] * 3,
    "non-finite": ["NaN", "Infinity", "-Infinity"],
    "one finite among none": ["NaN", 1.0, "NaN"],
    "nearly the same": [1.0, 1.0 + 2e-16, 1.0],
    "one of 1e300": [1.0, 1e300, 1.0],
}
STEPS = {
    "1, 2, 3": [1, 2, 3],
    "far apart": [1, 2, 2**53],
    "at the end of integers": [2**63 - 3, 2**63 - 2, 2**63 - 1],
    "all the same": [5, 5, 5],
    "backwards": [3, 2, 1],
}


PAGES = [
    *((case, "1, 2, 3", out) for case, out in met(VALUES, ("page.html", "page.md"), each=2)),
    *(("1e308 and -1e308", at, "page.html") for at in few([*STEPS][1:], each=2)),
    *(("nearly the same", at, "page.html") for at in few(STEPS, each=2) if at != "1, 2, 3"),
]


@pytest.mark.parametrize(("case", "at", "out"), PAGES)
def test_a_page_of_extreme_values_is_drawn_soon_or_says_what_it_left_out(run, tmp_path, case, at, out):
    rows = []
    for step, value in zip(STEPS[at], VALUES[case], strict=True):
        rows += [
            log_line("train_step", step, loss=value, lr=value, grad_norm=value),
            log_line("eval", step, split="test", metrics={"loss": value, "ppl": value, "accuracy": value}),
        ]
    run_log(tmp_path / "run.jsonl", *rows, steps=0)
    told = run("report", "run.jsonl", "--out", out, limit_s=LIMIT)
    assert told.code in {0, 1, 2}
    assert len(told.errors) <= (told.code == 2)
    assert told.memory_mb < 400


def test_losses_whose_sum_no_float_holds_have_a_mean(tmp_path, capsys):
    rows = [log_line("train_step", step, loss=1e308) for step in range(4, 30)]
    rows += [log_line("eval", step, split="test", metrics={"loss": 1e308}) for step in (10, 20)]
    log = run_log(tmp_path / "run.jsonl", *rows)
    assert main(["monitor", str(log), "--json"]) == 0
    account = json.loads(capsys.readouterr().out)["account"]
    assert (account["first_pair"]["train"], account["last_pair"]["train"]) == (1e308, 1e308)


LONG = [[1e308, 1e-300, "NaN", 1.0, 5e-324, "Infinity"], [1e-300, 1e300, 1e-20, 1e20]]


@pytest.mark.parametrize("values", few(LONG, each=2))
def test_a_long_run_of_extreme_values_takes_seconds(run, tmp_path, values):
    rows = (values[step * step % len(values)] for step in range(6_000))
    lines = [log_line("train_step", step, loss=value, lr=value, grad_norm=value) for step, value in enumerate(rows)]
    run_log(tmp_path / "run.jsonl", *lines, steps=0)
    told = run("report", "run.jsonl", "--out", "page.html", limit_s=LIMIT)
    assert told.code in {0, 1}
    assert told.errors == []
    assert told.memory_mb < 400


@pytest.mark.parametrize("times", [[-1e300, 0, 1e300], [1e18, 2e18, 3e18], ["NaN", None, "Infinity"]])
def test_a_clock_of_extreme_times_costs_no_more(run, tmp_path, times):
    lines = []
    for step, (line, ts) in enumerate(
        zip([log_line("train_step", s, loss=1.0) for s in (1, 2, 3)], times, strict=True)
    ):
        lines.append(json.dumps(json.loads(line) | {"ts": ts, "seq": step}))
    run_log(tmp_path / "run.jsonl", *lines, steps=0)
    told = run("report", "run.jsonl", "--out", "page.html", limit_s=LIMIT)
    assert told.code in {0, 2}
    assert len(told.errors) <= (told.code == 2)


def test_three_thousand_splits_are_drawn_soon_or_left_out(run, tmp_path):
    lines = [log_line("eval", step, split=f"s{n}", metrics={"loss": 1.0}) for n in range(3000) for step in (1, 2)]
    run_log(tmp_path / "run.jsonl", *lines)
    told = run("report", "run.jsonl", "--out", "page.html", limit_s=LIMIT)
    assert told.code in {0, 2}
    assert len(told.errors) <= (told.code == 2)
    assert told.memory_mb < 400


@grid(each=3, alpha=[8, 1e160, -1e-160], scale=[1e30, 1e-30, 0.0])
def test_a_page_of_an_adapter_of_extreme_weights_is_drawn_soon(run, tmp_path, scale, alpha):
    tensors = {}
    for n in range(3):
        tensors |= factors(stem=f"base_model.model.model.layers.{n}.self_attn.q_proj", scale=scale, seed=n)
    adapter(tmp_path / "a", tensors, {"lora_alpha": alpha})
    told = run("report", "a", "--out", "page.html", limit_s=LIMIT)
    assert told.code in {0, 1, 2}
    assert len(told.errors) <= (told.code == 2)
