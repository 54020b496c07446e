"""What a report takes from a run before it is judged: worked out on paper, each bound from either side."""

from __future__ import annotations

import math
from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tables import every

from gradience.judge.monitor import (
    _by_step,
    _notes,
    _num_labels,
    _signal,
    _train,
    derived_notes,
    facts_of,
    gap_of,
    latest_evals,
    report_of,
)
from gradience.judge.monitor.source import LogSource, thinned
from gradience.rules.log.facts import PROBES, Signal
from gradience.schema import ConfigSnapshot, EvalMetrics, Metrics, RunEnd
from gradience.schema.events import Eval
from gradience.schema.reports import LossPair
from gradience.telemetry.reader import RunSummary
from gradience.telemetry.series import Column, LogRecord, RunSeries

HEAD: dict[str, Any] = {"schema": "gradience.vnext.telemetry/v1", "ts": None, "run_id": "r"}


def evaluation(split: str, step: int = 10, **measured: Any) -> Eval:
    known = {name: measured.pop(name) for name in ("loss", "ppl", "accuracy", "n") if name in measured}
    return Eval(**HEAD, step=step, split=split, metrics=EvalMetrics(**known, extras=measured))


def run_of(*evals: Eval, losses: Any = (), steps: Any = None, **more: Any) -> RunSeries:
    steps = array("q", range(1, len(losses) + 1) if steps is None else steps)
    blank = array("d", [math.nan] * len(losses))
    return RunSeries(
        "r", steps=steps, losses=array("d", losses), rates=blank, grad_norms=blank, evals=list(evals), **more
    )


# --- evaluations -------------------------------------------------------------------------------------------------


def test_the_newest_evaluation_of_each_split_comes_train_first_then_held_out_ones():
    splits = ("zoo", "dev", "val", "train", "arc", "valid", "validation", "eval", "test")
    events = [evaluation(split, step, loss=float(step)) for step in (1, 2) for split in splits]
    found = latest_evals(run_of(*events))
    order = ["train", "test", "eval", "validation", "valid", "val", "dev", "arc", "zoo"]
    assert [(point.split, point.step, point.metrics.loss) for point in found] == [(split, 2, 2.0) for split in order]


@every(
    ("rate", "runtime", "given", "n"),
    [
        (12.5, 8.0, None, 100),
        (12.5, 8.0, 7, 7),
        (0.5, 1.0, None, None),  # half an example is none
        (0.51, 1.0, None, 1),
        (1.0, 1.49, None, 1),
        (1.0, 1.51, None, 2),
        (2.0**52, 2.0, None, None),  # no reader keeps it
        (2.0**51, 2.0, None, 2**52),
        (None, 8.0, None, None),
        (12.5, None, None, None),
        (12.5, "NaN", None, None),
    ],
)
def test_examples_of_an_evaluation_are_its_speed_times_its_time(rate, runtime, given, n):
    (point,) = latest_evals(run_of(evaluation("eval", n=given, samples_per_second=rate, runtime=runtime)))
    assert point.metrics.n == n
    derived = n is not None and n < 200 and given is None
    says = f"examples per evaluation, derived as runtime * samples_per_second (about): eval {n}"
    assert derived_notes([point]) == ([says] if derived else [])


@every(
    ("config", "classes"),
    [
        ({"num_labels": 5, "dataset_name": "imdb"}, 5),
        ({"extras": {"num_labels": 7}, "dataset_name": "imdb"}, 7),
        ({"extras": {"num_labels": "7"}, "dataset_name": "imdb"}, 2),
        *(({"dataset_name": name}, 2) for name in ("sst2", "cola", "mrpc", "qqp", "qnli", "rte", "wnli", "IMDB")),
        ({"dataset_name": "glue/mnli"}, 3),
        ({"dataset_name": "fancyzhx/ag-news"}, 4),
        ({"dataset_name": "glue"}, None),
        ({}, None),
    ],
)
def test_the_number_of_classes_is_stated_or_that_of_a_known_data_set(config, classes):
    assert _num_labels(msgspec.convert(config, ConfigSnapshot)) == classes


# --- the gap -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "name"), [(0, "train"), (1, "the training row of step 8"), (3, "training rows of steps 8 to 12")]
)
def test_a_gap_is_the_ratio_of_perplexities_of_a_pair_of_losses(rows, name):
    pair = LossPair(split="eval", step=12, held_out=1.5, train=1.0, rows=rows, first_step=8, last_step=12)
    found = gap_of(pair)
    assert (found.train_split, found.test_split, found.nats, found.same_step) == (name, "eval", 0.5, True)
    assert found.ratio == pytest.approx(math.exp(0.5))
    assert (found.step, found.train_loss, found.test_loss) == (12, 1.0, 1.5)
    assert gap_of(msgspec.structs.replace(pair, held_out=1e4)).ratio == "Infinity"
    assert gap_of(None) is None


def test_a_report_has_no_gap_where_the_loss_is_on_another_scale_and_its_probes_are_by_step():
    name = PROBES[0]
    source = LogSource(Path("run.jsonl"), RunSummary(Path("run.jsonl")), [])
    for level, found in ((4.0, None), (1.0, (-0.5, True))):
        run = run_of(evaluation("eval", 12, loss=0.5, ppl=math.exp(0.5)), losses=[level] * 12)
        run.columns[name] = Column(array("q", [20, 10, 20]), array("d", [1.0, 2.0, 3.0]))
        report = report_of(source, run)
        assert (report.gap and (report.gap.nats, report.gap.same_step)) == found
        assert ("SCL129" in {finding.id for finding in report.findings}) is (found is None)
        probe = report.probes[name.partition("/")[2]]
        assert (probe.rows, probe.first, probe.last, probe.lowest, probe.highest) == (2, 2.0, 3.0, 2.0, 3.0)


# --- rows, columns and notes -------------------------------------------------------------------------------------


def test_a_summary_of_the_rows_has_these_numbers():
    run = run_of(losses=[3.0, math.nan, 1.0, 2.0, 1.0], steps=[10, 20, 30, 40, 50])
    run.rates[0], run.superseded, run.last_step = 2e-4, 4, 55
    run.first_ts, run.last_ts = 100.0, 160.5
    found = _train(run, facts_of(RunSummary(Path()), run, ConfigSnapshot()))
    assert msgspec.to_builtins(found) == {
        "rows": 5, "superseded_rows": 4, "non_finite_rows": 1, "first_step": 10, "last_step": 55, "first_loss": 3.0,
        "last_loss": 1.0, "min_loss": 1.0, "min_loss_step": 30, "max_lr": 2e-4, "duration_s": 60.5,
    }  # fmt: skip
    empty = run_of()
    found = _train(empty, facts_of(RunSummary(Path()), empty, ConfigSnapshot()))
    assert (found.rows, found.first_loss, found.min_loss, found.max_lr, found.duration_s) == (0, None, None, None, None)


def test_a_column_is_summed_up_by_the_medians_of_its_fifths_and_its_ends():
    found = _signal(Signal(range(10), [5.0, 1.0, *[2.0] * 6, 8.0, 4.0]))
    assert (found.rows, found.first, found.last, found.lowest, found.highest) == (10, 3.0, 6.0, 1.0, 8.0)


@pytest.mark.parametrize(
    ("steps", "rising"),
    [
        ([1, 2, 3], [(1, 1.0), (2, 2.0), (3, 3.0)]),
        ([1, 3, 2], [(1, 1.0), (2, 3.0), (3, 2.0)]),
        ([1, 2, 2], [(1, 1.0), (2, 3.0)]),
    ],
)
def test_a_column_is_by_rising_step_and_of_a_step_twice_the_later(steps, rising):
    found = _by_step(Column(array("q", steps), array("d", [1.0, 2.0, 3.0])))
    assert list(zip(found.steps, found.values, strict=True)) == rising


def test_the_facts_of_a_run_are_those_of_its_end_its_audit_and_its_record():
    run = run_of(losses=[1.0, 0.5], record=LogRecord(out_of_order=1), last_epoch=2.5, last_step=2)
    facts = facts_of(RunSummary(Path()), run, ConfigSnapshot())
    assert (facts.status, facts.status_reason, facts.series.in_order) == ("no_run_end", None, False)
    assert (facts.audit, facts.data, facts.epoch, facts.last_step) == (None, None, 2.5, 2)
    run.end = RunEnd(**HEAD, step=None, status="error", reason="why")
    run.record.out_of_order = 0
    run.latest_metrics = {
        "lora_audit": Metrics(**HEAD, step=1, kind="lora_audit", metrics={"utilization_mean": 0.25}),
        "data": Metrics(**HEAD, step=1, kind="data", metrics={"rows": 3}),
    }
    facts = facts_of(RunSummary(Path()), run, ConfigSnapshot())
    assert (facts.status, facts.status_reason, facts.series.in_order) == ("error", "why", True)
    assert (facts.audit, facts.data) == ({"utilization_mean": 0.25}, {"rows": 3})


def test_notes_name_what_is_not_shown():
    run, summary = run_of(config=ConfigSnapshot()), RunSummary(Path())
    summary.runs = {"r": run}
    assert _notes(summary, run) == []
    summary.runs = {"a": run, "r": run}
    run.record.resumed_from, run.superseded, run.config = [5, 9], 3, None
    summary.unknown.update({"x": 2})
    summary.bare_tokens = 4
    assert _notes(summary, run) == [
        "no run_start in the log: the configuration is unknown",
        "2 runs in this log; r is shown; 'gradience runs': a too",
        "resumed from step 5, 9; 3 superseded rows are not shown",
        "events of a name unknown here were kept and not used: x (2)",
        "4 lines hold bare NaN or Infinity, which is not JSON; they were read anyway",
    ]


@every(("rows", "width"), [(512, 1), (513, 2), (1024, 2), (1025, 4), (1100, 4), (2049, 8)])
def test_a_curve_is_thinned_by_powers_of_two(rows, width):
    found = thinned(range(1, rows + 1), [float(row) for row in range(1, rows + 1)])
    assert len(found) == math.ceil(rows / width)
    assert found[0] == (width, (width + 1) / 2)
    assert found[-1][0] == rows
