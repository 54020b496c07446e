"""What a report takes from a run before it is judged: worked out on paper, each bound from either side."""

from __future__ import annotations

import math
from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tables import every

from gradience.reading import Reading
from gradience.reading.follow import thinned
from gradience.rules.log.facts import PROBES, derived_notes, latest_evals
from gradience.schema import EvalMetrics
from gradience.schema.events import Eval
from gradience.schema.reports import LossPair
from gradience.telemetry.reader import RunSummary
from gradience.telemetry.series import Column, RunSeries
from gradience.verbs.monitor.run import gap_of, report_of

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


# --- the gap -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "name"), [(0, "train"), (1, "the training row of step 8"), (3, "training rows of steps 8 to 12")]
)
def test_a_gap_is_the_ratio_of_perplexities_of_a_pair_of_losses(rows, name):
    pair = LossPair(split="eval", step=12, held_out=1.5, train=1.0, rows=rows, first_step=8, last_step=12)
    found = gap_of(pair)
    assert (found.train_split, found.test_split, found.nats) == (name, "eval", 0.5)
    assert found.ratio == pytest.approx(math.exp(0.5))
    assert (found.step, found.train_loss, found.test_loss) == (12, 1.0, 1.5)
    assert gap_of(msgspec.structs.replace(pair, held_out=1e4)).ratio == "Infinity"
    assert gap_of(None) is None


def test_a_report_has_no_gap_where_the_loss_is_on_another_scale_and_its_probes_are_by_step():
    name = PROBES[0]
    log = RunSummary(Path("run.jsonl"))
    for level, nats in ((4.0, None), (1.0, -0.5)):
        run = run_of(evaluation("eval", 12, loss=0.5, ppl=math.exp(0.5)), losses=[level] * 12)
        run.columns[name] = Column(array("q", [20, 10, 20]), array("d", [1.0, 2.0, 3.0]))
        report = report_of(Reading(log.path, log, run, [log.path]))
        assert (report.gap and report.gap.nats) == nats
        assert ("SCL129" in {finding.id for finding in report.findings}) is (nats is None)
        probe = report.probes[name.partition("/")[2]]
        assert (probe.rows, probe.first, probe.last, probe.lowest, probe.highest) == (2, 2.0, 3.0, 2.0, 3.0)


# --- rows, columns and notes -------------------------------------------------------------------------------------


@every(("rows", "width"), [(512, 1), (513, 2), (1024, 2), (1025, 4), (1100, 4), (2049, 8)])
def test_a_curve_is_thinned_by_powers_of_two(rows, width):
    found = thinned(range(1, rows + 1), [float(row) for row in range(1, rows + 1)])
    assert len(found) == math.ceil(rows / width)
    assert found[0] == (width, (width + 1) / 2)
    assert found[-1][0] == rows
