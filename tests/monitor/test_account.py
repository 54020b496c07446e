"""The account of a run from a trainer's own state: what it establishes, and the one piece of advice that follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tables import every

from gradience.rules.log.account import higher_is_better
from gradience.rules.log.facts import RunFacts
from gradience.schema.events import ConfigSnapshot
from gradience.schema.reports import MonitorReport
from gradience.telemetry.series import RunSeries
from gradience.verbs.diagnose.run import diagnose
from gradience.verbs.monitor.run import monitor_run
from gradience.verbs.monitor.view import monitor_text


def reported(
    folder: Path, rows: list[dict[str, Any]], args: dict[str, Any] | None = None, **state: Any
) -> MonitorReport:
    """The report on a folder with this history; `args` are training arguments beside it."""
    last = max(row["step"] for row in rows)
    document = {"global_step": last, "max_steps": last, "log_history": rows, **state}
    (folder / "trainer_state.json").write_text(json.dumps(document))
    if args is not None:
        (folder / "training_args.json").write_text(json.dumps(args))
    return monitor_run(folder)


def trained(losses: list[float], every: int = 100, rate: float = 1e-4) -> list[dict[str, Any]]:
    return [
        {"step": every * (i + 1), "epoch": 0.5 * (i + 1), "loss": loss, "learning_rate": rate}
        for i, loss in enumerate(losses)
    ]


def evaluated(name: str, values: list[tuple[int, float, float]]) -> list[dict[str, Any]]:
    return [{"step": step, "eval_loss": loss, f"eval_{name}": value} for step, loss, value in values]


FALLING = [2.0, 1.5, 1.0, 0.8, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25]


@every(
    ("names", "up"),
    [
        (("wer", "eval_cer", "ter", "perplexity", "loss", "mae", "mse", "rmse", "word_error_rate"), False),
        (("accuracy", "overall_f1", "f1_score", "rouge-l", "rougeL", "bleu-4", "chrf", "map", "mAP@50"), True),
        (("exact_match", "pass@k", "pass@1", "macro_f1", "matthews_correlation", "mean_token_accuracy"), True),
        (("temperature", "length", "mapped", "answer"), None),
    ],
)
def test_the_name_of_a_value_tells_its_direction(names, up):
    assert {name: higher_is_better(name) for name in names} == dict.fromkeys(names, up)


LOST = [(200, 0.9, 0.5), (400, 0.7, 0.72), (600, 0.8, 0.6), (800, 0.9, 0.55), (1000, 1.0, 0.5)]


@every(
    ("args", "state", "advice"),
    [
        ({"save_steps": 200}, {}, "Use checkpoint-400, if it was kept: eval f1 was best at step 400"),
        ({"save_steps": 200, "save_total_limit": 2}, {},
         "Train again for about 400 steps, or with load_best_model_at_end: eval f1 was best there"),
        ({"save_steps": 200, "save_total_limit": 2},
         {"best_metric": 0.72, "best_model_checkpoint": "out/checkpoint-400"},
         "Use checkpoint-400, if it was kept: eval f1 was best at step 400"),
        ({"load_best_model_at_end": True, "metric_for_best_model": "f1", "save_steps": 200},
         {"best_metric": 0.72, "best_model_checkpoint": "out\\checkpoint-400"}, None),
        ({"save_strategy": "no"}, {},
         "Train again for about 400 steps, or with load_best_model_at_end: eval f1 was best there"),
    ],
)  # fmt: skip
def test_advice_on_overfitting_is_what_is_possible_and_was_not_done(args, state, advice, tmp_path):
    report = reported(tmp_path, [*trained(FALLING), *evaluated("f1", LOST)], args, **state)
    (found,) = [each for each in report.findings if each.id == "OVF110"]
    assert found.severity == ("info" if advice is None else "warning")  # whose best weights were restored
    assert (report.advice and report.advice.text) == advice
    assert (f"  Next: {advice}.\n" in monitor_text(report)) is (advice is not None)


@every(
    ("names", "decisive"),
    [
        (("overall_precision", "overall_recall", "overall_f1", "overall_accuracy"), "overall_f1"),
        (("accuracy", "f1"), "accuracy"),
        (("precision", "accuracy"), "accuracy"),
        (("recall",), "recall"),
        (("A_f1", "B_f1", "C_f1", "D_f1", "macro_f1"), "macro_f1"),
        (("A_f1", "B_f1", "C_f1", "D_f1"), "loss"),
        (("A_f1", "B_f1", "C_f1"), "A_f1"),
        (("mean_token_accuracy",), "loss"),
        (("temperature",), "loss"),
    ],
)
def test_of_several_metrics_the_usual_one_decides(names, decisive, tmp_path):
    values = {f"eval_{name}": 0.5 for name in names}
    report = reported(tmp_path, [*trained(FALLING), {"step": 1000, "eval_loss": 0.5, **values}])
    assert report.account.decisive == decisive


def test_an_evaluation_after_the_best_was_loaded_is_of_the_best_step(tmp_path):
    again = {"step": 1000, "eval_loss": 0.7, "eval_f1": 0.72}
    rows = [*trained(FALLING), *evaluated("f1", LOST), again]
    report = reported(tmp_path, rows, {"load_best_model_at_end": True, "metric_for_best_model": "eval_f1"})
    of = report.account
    assert (of.shown_step, of.evaluations, of.last_pair.held_out, of.metrics[0].last) == (400, 5, 1.0, 0.5)
    assert "(the weights of step 400, restored)" in monitor_text(report)


@every(
    ("at", "pair"),
    [
        (1000, (0.25, 1000, 1000)),  # the row of its step
        (950, (0.3, 900, 900)),  # both are as near: no later row where there is an earlier one
        (960, (0.25, 1000, 1000)),
        (910, (0.3, 900, 900)),
        (20, None),  # the first row is the mean of steps 1 to 100
    ],
)
def test_a_held_out_loss_is_paired_with_training_rows_of_its_step(at, pair, tmp_path):
    report = reported(tmp_path, [*trained(FALLING), {"step": at, "eval_loss": 0.5}], max_steps=1000)
    found = report.account.last_pair
    assert (found and (pytest.approx(found.train), found.first_step, found.last_step)) == pair


@every(
    ("rows", "story", "advice"),
    [
        ([*trained(FALLING), {"step": 1000, "eval_loss": "NaN"}], "not finite: eval loss at step 1000; learns;",
         "Evaluate again in float32, and look for a batch without a label: the training losses are finite"),
        (trained([*FALLING[:5], float("nan"), float("nan")]), "not finite: loss at step 600, 2 training rows;", None),
        (trained([40.0 - row for row in range(20)]), "loss starts at 40, above that of a uniform guess over",
         "Decode a row with its labels, and see whether the loss is summed over tokens, steps or several losses"),
    ],
)  # fmt: skip
def test_a_cause_has_the_advice_that_is_right_for_it(rows, story, advice, tmp_path):
    report = reported(tmp_path, rows)
    assert report.story.startswith(story)
    if advice is None:
        advice = "Do not use the weights before 'gradience audit' finds them finite"
    assert (report.advice.text if report.advice else "") == advice


def test_a_run_that_ends_in_its_warmup_says_so_and_what_to_set(tmp_path):
    rows = [{"step": 10 * i, "loss": 2.0 + 0.01 * (-1) ** i, "learning_rate": 1e-6 * i} for i in range(1, 11)]
    report = reported(tmp_path, rows, {"learning_rate": 1e-4, "warmup_steps": 1000})
    (found,) = [each for each in report.findings if each.id == "LRS133"]
    assert found.message == (
        "The run ended at step 100 while the learning rate still rose (warm-up 1000 steps): it reached 1e-05 of the "
        "configured 0.0001."
    )
    assert report.advice.text == "Set the warm-up to a tenth of the steps (10), or train longer"
    assert "Peak LR: 1e-4  (1e-5 reached)\n" in monitor_text(report)
    assert [cause.id for cause in diagnose(tmp_path).findings] == ["LRS133"]  # and not SCH002, of the same warm-up


def test_the_peak_rate_is_the_largest_logged_beside_what_was_configured(tmp_path):
    for rate, says in (
        (3e-5, "3e-5  (largest logged; 1e-4 is configured)"), (0.0, "1e-4 is configured"), (None, "1e-4"),
    ):  # fmt: skip
        given = {} if rate is None else {"learning_rate": rate}
        rows = [{"step": i, "loss": 2.0 - 0.01 * i, **given} for i in range(1, 11)]
        (place := tmp_path / str(rate)).mkdir()
        assert f"Peak LR: {says}\n" in monitor_text(reported(place, rows, {"learning_rate": 1e-4}))


def test_a_perplexity_is_that_of_a_language_model_or_one_that_was_logged(tmp_path):
    def cells(name: str, config: dict[str, Any], **metrics: float) -> str:
        place = tmp_path / name
        place.mkdir()
        (place / "adapter_config.json").write_text(json.dumps({"r": 8, "peft_type": "LORA", **config}))
        return monitor_text(reported(place, [*trained(FALLING), {"step": 1000, "eval_loss": 0.5, **metrics}]))

    assert "Eval  PPL: 1.65" in cells("lm", {"task_type": "CAUSAL_LM"})
    classes = cells("classes", {"task_type": "SEQ_CLS"})
    assert "eval loss 0.5" in classes
    assert "Eval  loss: 0.5" not in classes  # which repeats the story
    assert "PPL" not in cells("judged", {"task_type": "CAUSAL_LM"}, eval_rouge1=0.4)
    assert "Eval  PPL: 1.65" in cells("tokens", {}, eval_mean_token_accuracy=0.9)
    assert "Eval  PPL: 7.00" in cells("logged", {"task_type": "SEQ_CLS"}, eval_ppl=7.0)


def test_a_log_that_begins_at_a_decayed_rate_is_the_last_part_of_a_longer_run(tmp_path):
    rows = [{"step": 10 * i, "loss": 0.05, "learning_rate": 2e-4 / 3 * (1 - i / 11)} for i in range(1, 11)]
    assert reported(tmp_path, rows, {"learning_rate": 2e-4}).account.starts_at == 10
    late = [{**row, "step": row["step"] + 900, "learning_rate": 2e-4} for row in rows]
    assert reported(tmp_path, late, {"learning_rate": 2e-4}).account.starts_at == 910


def test_label_smoothing_has_a_floor_and_without_the_classes_no_gap_is_read(tmp_path):
    rows = [*trained([1.0, 0.9, 0.8]), {"step": 300, "eval_loss": 2.0, "eval_accuracy": 0.5}]
    args = {"label_smoothing_factor": 0.1}
    report = reported(tmp_path, rows, args)
    assert report.account.floor is None
    assert [item.reason for item in report.not_run if item.id == "GAP111"] == [
        "label smoothing raises both losses by an amount that is not known"
    ]
    (tmp_path / "config.json").write_text(
        json.dumps({"id2label": {"0": "a", "1": "b"}, "architectures": ["BertForSequenceClassification"]})
    )
    assert reported(tmp_path, rows, args).account.floor == pytest.approx(0.1985, abs=1e-4)


def test_the_classes_of_a_known_data_set_are_those_of_its_name():
    known = {"sst2 cola mrpc qqp qnli rte wnli imdb": 2, "mnli": 3, "ag_news": 4, "squad": None}
    for names, classes in known.items():
        for name in names.split():
            run = RunSeries("r", config=ConfigSnapshot(dataset_name=f"Owner/{name.upper().replace('_', '-')}"))
            assert RunFacts(run).num_labels == classes, name


def test_of_many_metrics_six_are_shown_with_their_course_and_the_rest_counted(tmp_path):
    names = ("f1", "rouge1", "rouge2", "bleu", "chrf", "wer", "cer", "meteor")
    seen = ((200, 1.5, 0.51), (600, 1.0, 0.71), (1000, 1.2, 0.61))
    rows = [
        {"step": step, "eval_loss": loss, **{f"eval_{name}": x + k / 100 for k, name in enumerate(names)}}
        for step, loss, x in seen
    ]
    shown = monitor_text(reported(tmp_path, [*trained(FALLING), *rows])).split("(step 1000)\n")[1].split("\n\n")[0]
    assert shown.splitlines() == [
        *(f"  Eval  {n}: 0.6{k}  (first 0.5{k}, best 0.7{k} at step 600)" for k, n in enumerate(names[:5], 1)),
        "  Eval  wer: 0.66  (first 0.56)",
        "  Eval  and 2 more metrics (--json)",
    ]
