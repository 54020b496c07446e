"""What a run did is said: cases by folder of a trainer's state, with the sentences, severities and verdict of each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tables import every

from gradience import TelemetryWriter
from gradience.schema import SCHEMA_ID, ConfigSnapshot
from gradience.schema.events import Wiring
from gradience.schema.wiring import EvaluationWiring
from gradience.verbs.diagnose.run import diagnose
from gradience.verbs.diagnose.view import diagnose_text
from gradience.verbs.monitor.run import monitor_run
from gradience.verbs.monitor.view import monitor_text

STEPS = (25, 50, 75, 100, 125, 150, 175, 200)
RISES = (0.62, 0.45, 0.5, 0.62, 0.8, 1.0, 1.2, 1.35)
FALLS = (1.6, 1.3, 1.15, 1.05, 1.0, 0.97, 0.95, 0.94)
GAINS = (0.7, 0.74, 0.76, 0.77, 0.78, 0.79, 0.8, 0.82)
EVEN = (0.7, 0.76, 0.75, 0.77, 0.76, 0.75, 0.77, 0.76)


def fitted(part: float) -> float:
    return 0.7 * math.exp(-4.0 * part) + 0.01


def slow(part: float) -> float:
    return 1.5 * math.exp(-1.5 * part) + 0.5


def trained(loss: Any = fitted, *, epochs: float = 5.0, **columns: float) -> list[dict[str, Any]]:
    rates = {"learning_rate": 2e-4, "grad_norm": 1.0}
    return [{"step": 5 * i, "epoch": epochs * i / 40, "loss": loss(i / 40), **rates, **columns} for i in range(1, 41)]


def evaluated(losses: Any = RISES, steps: Any = STEPS, **metrics: Any) -> list[dict[str, Any]]:
    named = {f"eval_{name.replace('__', '/')}": values for name, values in metrics.items()}
    counted = {"eval_runtime": 2.0, "eval_samples_per_second": 500.0}
    return [
        {"step": step, "eval_loss": loss, **counted, **{name: values[i] for name, values in named.items()}}
        for i, (step, loss) in enumerate(zip(steps, losses, strict=True))
    ]


def folder(path: Path, rows: list[dict[str, Any]], args: dict[str, Any] | None = None, **state: Any) -> Path:
    last = max(row["step"] for row in rows)
    document = {"log_history": rows, "max_steps": last, "global_step": last, **state}
    (path / "trainer_state.json").write_text(json.dumps(document))
    if args is not None:
        (path / "training_args.json").write_text(json.dumps({"max_steps": last, **args}))
    return path


class Case(NamedTuple):
    """A run, what the screens say of it (as `SEVERITY ID: words`), what they do not, and the verdict."""

    rows: list[dict[str, Any]]
    says: tuple[str, ...] = ()
    not_said: tuple[str, ...] = ()
    verdict: str = "no_fault_found"
    args: dict[str, Any] | None = None
    state: Mapping[str, Any] = MappingProxyType({})


RESTORED = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
AT_50 = {"best_metric": 0.45, "best_global_step": 50, "best_model_checkpoint": "out/checkpoint-50"}
CASES = {
    "a metric that gains makes it a choice": Case(
        [*trained(), *evaluated(accuracy=GAINS)],
        (
            "[INFO] OVF110: Overfits: eval loss was lowest at step 50 (0.45) and is 200.0% higher",
            "Accuracy still gained (74.0% -> 82.0%): compare both checkpoints on what you need.",
            "[INFO] GAP111: Gap 3.77x, over 1.5x: probably memorizing.",
        ),
        verdict="worth_a_look",
    ),
    "a metric within its noise is no gain": Case([*trained(), *evaluated(accuracy=EVEN)],
        ("[WARNING] OVF110", "Accuracy did not gain (76.0% -> 76.0%, within chance).", "[WARNING] GAP111"),
        verdict="needs_attention"),
    "nor is a constant one, which is one answer to every row": Case([*trained(), *evaluated(accuracy=(0.1,) * 8)],
        ("[WARNING] OVF110", "[WARNING] CON193: Eval accuracy is 10.0% at each of 8 evaluations"),
        verdict="needs_attention"),
    "a score that only one class has": Case([*trained(slow), *evaluated(FALLS, accuracy=GAINS, recall=(0.5,) * 8)],
        ("[WARNING] CON193: Eval accuracy is 82.0%, and recall is 1 / 2",), verdict="needs_attention"),
    "no metric": Case([*trained(), *evaluated()], ("[WARNING] OVF110", "[WARNING] GAP111"), verdict="needs_attention"),
    "a column named reward changes nothing": Case(
        [*trained(reward=0.5), *evaluated()], ("[WARNING] OVF110", "[WARNING] GAP111"), verdict="needs_attention"
    ),
    "an optimum that was restored": Case([*trained(), *evaluated()],
        ("[INFO] OVF110", "The weights of step 50 were restored at the end.", "Kept:      step 50 (restored)"),
        verdict="worth_a_look", args=RESTORED, state=AT_50),
    "restored by loss, better by accuracy": Case([*trained(), *evaluated(accuracy=GAINS)],
        ("[INFO] SEL190: Step 50 was restored by loss: its accuracy is 74.0%, and was 82.0% at step 200.",),
        verdict="worth_a_look", args=RESTORED, state=AT_50),
    "the worst checkpoint as the best": Case([*trained(slow), *evaluated(FALLS, accuracy=GAINS)],
        ("[WARNING] SEL192: greater_is_better=False with metric_for_best_model=accuracy",), ("restored",),
        verdict="needs_attention",
        args={"load_best_model_at_end": True, "metric_for_best_model": "accuracy", "greater_is_better": False}),
    "weights that were not measured": Case([*trained(slow), *evaluated(FALLS[:3], STEPS[:3])],
        ("[INFO] EVL191: The final weights, of step 200, were not evaluated: the last evaluation is of step 75.",)),
    "a healthy run": Case([*trained(slow), *evaluated(FALLS)], ("Recommendations (0): none", "NO PROBLEMS FOUND"),
        ("GAP111", "hypotheses", "Model:", "Profile:")),
    "a squared error is no nats": Case(
        [
            *trained(lambda part: 1200.0 - 300.0 * part),
            *evaluated([x * 900 for x in FALLS], mse=[x * 900 for x in FALLS]),
        ],
        (),
        ("GAP111", "uniform guess"),
    ),
    "too good within the first pass": Case(trained(lambda part: 3.0 * math.exp(-60.0 * part) + 0.003, epochs=1.0),
        ("[INFO] LEK185: The training loss is down to 0.003 within the first pass over the data",),
        verdict="worth_a_look"),
    "a rate that rises over most of it": Case(
        [{**row, "learning_rate": 2e-4 * min(1.0, row["step"] / 140)} for row in trained(slow)],
        ("[INFO] LRS133: The learning rate rose until step 140 of 200: the warm-up took 70% of it.",),
        ("still rose",),
        verdict="worth_a_look",
    ),
    "gradients, and nothing moves": Case(trained(lambda part: 2.0 + 0.01 * math.sin(99.0 * part)),
        ("[WARNING] NOL106", "Gradients arrive (norm 1), and the loss stays."), verdict="needs_attention"),
    "held-out pairs the other way round": Case(
        [
            *(
                {**row, "rewards/accuracies": min(0.99, 0.5 + row["step"] / 100), "rewards/margins": row["step"] / 25}
                for row in trained()
            ),
            *evaluated(rewards__accuracies=(0.24, 0.2, 0.15, 0.12, 0.1, 0.09, 0.08, 0.08)),
        ],
        ("[WARNING] PRF194: 8% of the held-out pairs are in the order of their labels",),
        ("OVF110",),
        verdict="needs_attention",
    ),
    "no row, since it logs less often than it steps": Case([{"step": 3, "train_runtime": 9.0, "train_loss": 1.0}],
        ("[INFO] REC310: The log holds 0 training rows: logging_steps is 25, and the run had 3.",),
        verdict="worth_a_look", args={"logging_steps": 25}),
}  # fmt: skip


def flat(text: str) -> str:
    """The text with folded lines joined."""
    return " ".join(line.strip() if line.startswith("    ") else line for line in text.split("\n"))


@every("name", CASES)
def test_the_screens_say_it_with_this_verdict(name, tmp_path):
    case = CASES[name]
    run = folder(tmp_path, case.rows, case.args, **case.state)
    report, diagnosis = monitor_run(run), diagnose(run)
    screens = monitor_text(report), diagnose_text(diagnosis)
    both = flat(screens[0]) + flat(screens[1])
    assert [says for says in case.says if says not in both] == []
    assert [words for words in case.not_said if words in both] == []
    assert diagnosis.verdict == case.verdict
    assert all(len(line) <= 100 for screen in screens for line in screen.split("\n") if str(tmp_path) not in line)


def test_of_findings_that_are_only_info_five_are_shown_and_the_rest_counted(tmp_path):
    run = folder(tmp_path, [*trained(), *evaluated(accuracy=GAINS)])
    report = monitor_run(run)
    more = report.findings * 3
    shown = monitor_text(
        type(report)(**{**{f: getattr(report, f) for f in report.__struct_fields__}, "findings": more})
    )
    assert shown.count("[INFO]") == 5
    assert f"... and {len(more) - 5} more (--verbose lists all)" in shown


@every(("called", "adapted", "speaks"), [(True, True, True), (True, False, False), (False, None, False)])
def test_an_evaluation_of_another_model_tells_nothing_of_the_run(called, adapted, speaks, tmp_path):
    log = tmp_path / "run.jsonl"
    with TelemetryWriter(log) as writer:
        writer.run_start(ConfigSnapshot())
        run_id = writer.run_id
        for row in trained():
            writer.train_step(row["step"], loss=row["loss"], lr=2e-4)
        for step, loss in zip(STEPS, RISES, strict=True):
            writer.eval(step, split="eval", metrics={"loss": loss})
            seen = EvaluationWiring(called=called, adapted=adapted)
            writer.write(
                Wiring(schema=SCHEMA_ID, ts=None, run_id=run_id, step=step, phase="evaluation", evaluation=seen)
            )
    report = monitor_run(log)
    assert any(found.id == "OVF110" for found in report.findings) is speaks
    assert any(found.id == "WIR182" for found in report.findings) is not speaks
    assert bool(report.evals) is speaks


@every(
    ("losses", "title"),
    [
        (RISES, "Evaluations that matter (loss +/- 0.033; same: within that of the best):"),
        ((0.68, 0.7, 0.2, 0.18, 0.17), "Evaluations that matter:"),
    ],
)
def test_a_curve_that_bends_is_no_noise(losses, title, tmp_path):
    run = folder(tmp_path, [*trained(), *evaluated(losses, STEPS[: len(losses)])], RESTORED, **AT_50)
    assert title in diagnose_text(diagnose(run))


@every(("size", "line"), [(0.02, "loss 2.02 -> 2.02;"), (0.4, "(medians);")])
def test_where_rows_scatter_medians_stand_for_the_ends(size, line, tmp_path):
    rows = [{"step": i, "loss": 2.0 + size * (-1) ** i * (i % 3 > 0)} for i in range(1, 41)]
    rows[0]["loss"] = rows[-1]["loss"] = 2.0 + size
    shown = monitor_text(monitor_run(folder(tmp_path, rows)))
    assert line in shown
