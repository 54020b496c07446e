"""The verdict of a diagnosis follows from its gravest cause or from what was judged; and the line that says it."""

from __future__ import annotations

import doctest
import json
import math
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
from audited import report as audited, save_adapter
from tables import every

from gradience.schema import ConfigSnapshot, OptimizerSnapshot
from gradience.schema.audit import AuditSummary
from gradience.schema.diagnose import Cause, DiagnosedSource, Piece, SourceCoverage
from gradience.schema.reports import CHECK_SCHEMA_ID, CheckReport
from gradience.telemetry.writer import TelemetryWriter
from gradience.verbs.diagnose import run as diagnose
from gradience.verbs.diagnose.run import headline, is_complete
from gradience.verbs.diagnose.verdict import doubts, verdict_of


@every(
    ("severities", "complete", "verdict"),
    [
        ((), True, "no_fault_found"),
        ((), False, "could_not_judge"),
        (("info",), True, "no_fault_found"),
        (("info",), False, "could_not_judge"),
        (("info", "warning"), True, "needs_attention"),
        (("warning",), False, "needs_attention"),
        (("error", "info"), True, "broken"),
        (("critical",), False, "broken"),
    ],
)
def test_the_gravest_cause_decides(severities, complete, verdict):
    causes = [Cause(id="X1", severity=one, message="It is so.") for one in severities]
    assert verdict_of(causes, complete=complete) == verdict
    alone = verdict_of(causes, complete=complete, alone=True)
    assert alone == ("could_not_judge" if verdict == "no_fault_found" else verdict)
    assert verdict_of([], complete=True, alone=True, doubt=True) == "worth_a_look"


@every(
    ("source", "rule", "severity", "verdict"),
    [
        ("log", "OVF110", "info", "worth_a_look"),
        ("log", "GAP111", "info", "worth_a_look"),
        ("log", "UND126", "info", "no_fault_found"),
        ("config", "LR001", "info", "no_fault_found"),
        ("config", "LR001", "warning", "worth_a_look"),  # what it lets expect, nothing shows
    ],
)
def test_what_a_reader_has_to_decide_is_worth_a_look(source, rule, severity, verdict):
    piece = Piece(source=source, id=rule, severity=severity, says="It is so.")
    cause = Cause(id=rule, severity=severity, message="It is so.", pieces=[piece])
    assert verdict_of([cause], complete=True) == verdict
    assert verdict_of([cause], complete=False) == "could_not_judge"
    if severity == "warning":
        shown = msgspec.structs.replace(cause, pieces=[piece, Piece(source="log", says="It came so.")])
        assert verdict_of([shown], complete=False) == "needs_attention"


@every(
    ("states", "judged", "complete"),
    [
        (("read", "absent"), {"config": 1, "log": 0}, True),
        (("read", "unreadable"), {"config": 1, "log": 0}, False),
        (("read", "absent"), {"config": 0, "log": 0}, False),
        (("read",), {"join": 5, "log": 0}, False),
    ],
)
def test_enough_was_judged_if_something_was_and_all_could_be_read(states, judged, complete):
    sources: Any = [SimpleNamespace(state=state) for state in states]
    coverage: Any = [SimpleNamespace(source=source, judged=n) for source, n in judged.items()]
    assert is_complete(sources, coverage) is complete


FALLS = (1.6, 1.3, 1.15, 1.05, 1.0, 0.97, 0.95, 0.94)
GAINS = (0.7, 0.74, 0.76, 0.77, 0.78, 0.79, 0.8, 0.82)


def rows(n=40, fall=1.5, **metrics):
    """Rows of a training loss, and eight evaluations of what is named."""
    for i in range(1, n + 1):
        yield {"step": i * 5, "epoch": i / 40, "loss": fall * math.exp(-i / 20) + 0.5, "learning_rate": 2e-4}
    for place in range(8 if metrics else 0):
        yield {"step": 25 * (place + 1)} | {f"eval_{name}": values[place] for name, values in metrics.items()}


@every(
    ("logged", "state", "words"),
    [
        (rows(loss=FALLS), {}, None),
        (rows(loss=FALLS, accuracy=GAINS), {}, None),
        (rows(), {}, None),
        (rows(fall=0.0), {}, "the loss does not fall"),
        ([*rows(39), {"step": 200, "loss": 2.13}], {}, "learns; loss 1.927 -> 2.13"),  # by over a tenth of the first
        ([*rows(39), {"step": 200, "loss": 2.11}], {}, None),
        (rows(loss=(1.9,) * 8), {}, "memorises; eval loss did not improve"),
        (rows(loss=FALLS, f1=(0.0,) * 8), {}, "eval f1 does not improve"),
        (rows(loss=FALLS, f1=(0.5, *[0.45, 0.4] * 3, 0.3)), {}, "eval f1 0.3 (best 0.5 at step 25)"),
        (rows(loss=(*FALLS[:2], *[1.299] * 6)), {}, "eval loss has not improved since step 50"),
        (rows(4), {}, "cannot tell whether it learns"),
        ([{"step": 200, "eval_loss": 1.3}], {}, "no training loss was logged"),
        (rows(loss=FALLS), {"max_steps": 800}, "the log ends at step 200 of 800"),
        (rows(loss=(*FALLS[:7], 1.05)), {}, "eval loss 1.05 (best 0.95 at step 175)"),  # one is not yet overfitting
        (rows(loss=(*FALLS[:7], 0.96)), {}, None),  # within what the evaluations scatter by
        (rows(loss=FALLS, accuracy=(*GAINS[:7], 0.74)), {}, "eval accuracy 74.0% (best 80.0% at step 175)"),
        (rows(loss=FALLS, accuracy=(*GAINS[:7], 0.795)), {}, None),
    ],
)
def test_no_problem_is_found_beside_no_words_that_deny_it(logged, state, words, tmp_path):
    state = {"log_history": list(logged), "max_steps": 200, "global_step": 200, **state}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    report = diagnose.diagnose(tmp_path)
    assert words is None or words in report.monitor.story
    assert (report.verdict == "no_fault_found") is (words is None)


@every(("n", "told"), [(18, False), (2, True)])
def test_that_steps_are_few_is_told_where_the_log_does_not_show_what_they_did(n, told, tmp_path):
    state = {"log_history": [*rows(n)], "max_steps": 5 * n, "global_step": 5 * n}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert ("STP001" in {cause.id for cause in diagnose.diagnose(tmp_path).findings}) is told


@every(("rate", "size", "doubt"), [(9.7e-5, 1.19, False), (9.9e-5, 1.19, True), (9.7e-5, 1.21, True)])
def test_nor_beside_a_first_step_or_an_update_over_all_others(rate, size, doubt):
    config = ConfigSnapshot(extras={"objective": "sft"})
    step = CheckReport(schema=CHECK_SCHEMA_ID, config=config, derived={"scaling_r_lr": 512 * rate})
    weights = audited(summary=AuditSummary(total_lora_params=1, n_layers=1, update_size=size))
    assert any(doubts(None, step, weights)) is doubt


@every(
    ("optimizer", "fall", "severity", "verdict"),
    [
        ("adamw_torch", 1.0, "info", "worth_a_look"),
        ("sgd", 1.0, "warning", "needs_attention"),
        ("adamw_torch", 0.0, "warning", "needs_attention"),
    ],
)
def test_weights_like_random_ones_are_no_fault_where_adam_made_the_loss_fall(
    optimizer, fall, severity, verdict, tmp_path
):
    rng = np.random.default_rng(0)
    flat = [(0.02 * rng.standard_normal((64, 8)), rng.standard_normal((8, 64))) for _ in range(6)]
    save_adapter(tmp_path, flat, task_type="CAUSAL_LM")
    with TelemetryWriter(tmp_path / "run.jsonl", fsync="never") as log:
        log.run_start(ConfigSnapshot(optimizer=OptimizerSnapshot(name=optimizer)))
        for step in range(1, 101):
            log.train_step(step, loss=2.0 + fall * (math.exp(-step / 25) - 1.0), lr=1e-3, grad_norm=1.0)
        log.run_end(status="ok")
    report = diagnose.diagnose(tmp_path)
    assert {c.severity for c in report.findings if c.id == "RND309"} == {severity}
    assert report.verdict == verdict


SOURCES = [
    DiagnosedSource(source="config", state="read"),
    DiagnosedSource(source="log", state="unreadable"),
    DiagnosedSource(source="weights", state="absent"),
]
COVERAGE = [SourceCoverage(source="config", judged=23, total=34)]


def causes(*severities):
    return [Cause(id="LR001", severity=severity, message="m") for severity in severities]


@every(
    ("verdict", "severities", "line"),
    [
        ("no_fault_found", ["info"], "no problems found (checked: config 23 of 34); 1 info; "),
        ("no_fault_found", [], "no problems found (checked: config 23 of 34); "),
        ("broken", ["info", "error", "error"], "broken (2 errors, 1 info); checked: config 23 of 34; "),
        ("needs_attention", ["warning"], "needs attention (1 warning); checked: config 23 of 34; "),
        ("could_not_judge", [], "could not judge; checked: config 23 of 34; "),
    ],
)
def test_no_problem_stands_beside_what_was_checked_and_a_problem_beside_its_severity(verdict, severities, line):
    found = headline(verdict, SOURCES, causes(*severities), COVERAGE)
    assert found == line + "not there: weights; there but not readable: log"


def test_the_example_in_the_module_holds():
    assert doctest.testmod(diagnose).failed == 0
