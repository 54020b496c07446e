"""What was false of runs that nobody had seen: each class as a table, with a case that speaks and one that does not."""

from __future__ import annotations

import math
from typing import Any

from log_runs import evaluation, facts_of, finding as said, logged_rows
from tables import every

from gradience.rules.log import detect
from gradience.rules.log.advice import advice
from gradience.rules.log.facts import RunFacts, Signal, ends
from gradience.rules.log.rewards import change_of
from gradience.rules.log.story import line_of, story_parts
from gradience.schema import ConfigSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.schema.events import Eval
from gradience.schema.reports import EvalPoint, TrainSummary

NAN = math.nan
FALL = [2.0 - 1.5 * i / 59 + 0.02 * math.sin(37.0 * i) for i in range(60)]


def evals(losses: list[Any], *, step: int = 10, **metrics: list[float]) -> list[Eval]:
    return [
        evaluation(step * (i + 1), loss, **{name: values[i] for name, values in metrics.items()})
        for i, loss in enumerate(losses)
    ]


def run(losses: list[float], history: list[Eval] | None = None, *, grads: Any = None, **more: Any) -> RunFacts:
    n, history = len(losses), history or []
    steps = more.pop("steps", list(range(1, n + 1)))
    training = TrainingSnapshot(**more.pop("training", {}))
    last = history[-1] if history else None
    return facts_of(
        logged_rows(steps, losses, [1.0] * n if grads is None else grads, more.pop("rates", [2e-4] * n)),
        history=history,
        held_out=None if last is None else EvalPoint(split="eval", step=last.step, metrics=last.metrics),
        config=ConfigSnapshot(training=training, optimizer=OptimizerSnapshot(lr=more.pop("lr", None))),
        status=more.pop("status", "ok"),
        last_step=more.pop("last_step", max([*steps, *(event.step or 0 for event in history)], default=0)),
        **more,
    )


def told(facts: RunFacts) -> str:
    losses = facts.series.losses
    rows = len(losses)
    train = TrainSummary(
        rows=rows,
        first_loss=losses[0] if rows else None,
        last_loss=losses[-1] if rows else None,
        min_loss=min(losses, default=None),
    )
    return line_of(story_parts(facts, detect(facts).told, train))


# --- "learns" is not said against what was held out ----------------------------------------------------------------


@every(
    ("losses", "metrics", "begins"),
    [
        ([1.0, 0.6, 0.4], {"wer": [98.9, 99.6, 99.7]}, "the training loss falls, but eval wer does not improve"),
        ([1.0, 0.6, 0.4], {"wer": [94.9, 99.6, 99.7]}, "learns"),  # 0.95 of 100: hardly a word is right
        ([1.0, 0.6, 0.4], {"wer": [0.96, 0.97, 0.96]}, "the training loss falls, but eval wer does not improve"),
        ([1.0, 0.6, 0.4], {"bleu": [0.0, 0.0, 0.0]}, "the training loss falls, but eval bleu does not improve"),
        ([1.0, 0.6, 0.4], {"bleu": [0.0, 0.0, 0.1]}, "learns"),
        (  # the loss decides, and the accuracy says the same
            [1.0, 0.6, 0.4],
            {"f1": [0.3, 0.4, 0.5], "bleu": [0.0, 0.0, 0.0]},
            "the training loss falls, but eval bleu does not improve",
        ),
        ([1.9, 1.85, 1.9], {"f1": [0.4, 0.4, 0.4]}, "the training loss falls, but eval f1 does not improve"),
        ([1.7, 1.65, 1.7], {"f1": [0.4, 0.4, 0.4]}, "learns"),  # under 0.9 of the first training loss
        ([1.9, 1.85, 1.9], {"f1": [0.4, 0.41, 0.4]}, "learns"),
        ([1.9, 1.85, 1.9], {"f1": [0.98, 0.98, 0.98]}, "learns"),  # nothing is left to improve
        ([1.9, 1.95], {}, "the training loss falls, but eval loss does not improve"),
        ([1.9, 1.85], {}, "learns"),
        ([1.9, 1.7, 1.5], {"mean_token_accuracy": [0.152, 0.151, 0.149]},
         "the training loss falls, but eval mean_token_accuracy does not improve"),
        ([1.9, 1.7, 1.5], {"mean_token_accuracy": [0.152, 0.151, 0.153]}, "learns"),
    ],
)  # fmt: skip
def test_it_learns_unless_held_out_data_say_that_it_does_not(losses, metrics, begins):
    assert told(run(FALL, evals(losses, step=20, **metrics))).startswith(f"{begins}; ")


# --- held-out loss that rises while the training loss does not fall --------------------------------------------------

STILL = [1.0, 1.06, 0.98, 1.02] * 3


@every(
    ("train", "metrics", "message", "clause"),
    [
        (STILL, {}, "Gets worse: ", "gets worse held out from step 6 (eval loss +37.1% since)"),
        (STILL[:4] + [1.2] * 8, {}, "Gets worse: ", "gets worse held out from step 6 (eval loss +37.1% since)"),
        (FALL[::5], {}, "Overfits: ", "overfits from step 6 (eval loss +37.1% since)"),
        ([], {}, "Gets worse: ", "gets worse held out from step 6 (eval loss +37.1% since)"),
        ([], {"f1": [0.4, 0.5, 0.55, 0.6]}, "Eval loss rises: ",
         "eval loss rises from step 6 (eval loss +37.1% since), but f1 still gained"),
        (STILL, {"f1": [0.4, 0.6, 0.59, 0.59]}, "Gets worse: ", "gets worse held out from step 6"),
        (STILL, {"f1": [0.026, 0.026, 0.02, 0.014]}, "Gets worse: ", "gets worse held out from step 6"),  # half is lost
    ],
)  # fmt: skip
def test_a_held_out_loss_that_rises_is_overfitting_only_if_the_training_loss_fell(train, metrics, message, clause):
    history = evals([1.03, 0.97, 1.22, 1.33], step=3, **metrics)
    facts = run(train, history, steps=list(range(1, len(train) + 1)))
    found = said("OVF110", facts)
    assert found is not None
    assert found.message.startswith(message)
    assert clause in told(facts)


# --- single losses and norms of 0 ------------------------------------------------------------------------------------


@every(("after", "severity"), [(3, "info"), (2, "error")])
def test_zeros_that_losses_over_0_follow_are_no_masked_nan(after, severity):
    losses = [2.0, 1.5, 1.2, 1.0, 0.0, 0.9, 0.8, 0.0, *[0.5] * after]
    grads = [0.0 if loss == 0.0 else 1.0 for loss in losses]
    found = said("NUM102", run(losses, grads=grads))
    assert found is not None
    assert found.severity == severity


# --- RL -------------------------------------------------------------------------------------------------------------

RL: dict[str, Any] = {"extras": {"trainer": "rl"}}


@every(("kind", "found"), [("rl", False), ("sft", True)])
def test_under_rl_a_burst_of_the_norm_follows_the_spread_of_the_rewards(kind, found):
    grads = [0.001 * (1.0 + 0.1 * math.sin(i)) for i in range(60)]
    grads[30:33] = [0.09, 0.1, 0.08]
    facts = run(FALL, grads=grads, training={"extras": {"trainer": kind}})
    assert (said("GRD107", facts) is not None) is found


@every("rows", list(range(1, 31)))
def test_the_story_and_the_cell_of_a_reward_are_of_the_same_rows(rows):
    values = [float(row * row % 7) for row in range(rows)]
    first, last, width = ends(Signal(list(range(rows)), values), least=2)
    change = change_of(values)
    assert (change.first, change.last, change.rows) == (first, last, width)


# --- what the log cannot show ---------------------------------------------------------------------------------------


@every(("planned", "found"), [(9_499, True), (10_000, False)])
def test_a_log_cut_at_its_first_row_is_no_sparse_log(planned, found):
    training = {"max_steps": planned, "logging_steps": 500}
    facts = run([0.24], steps=[500], training=training, status="unknown", last_step=500)
    assert (said("GAP118", facts) is not None) is found


# --- advice ---------------------------------------------------------------------------------------------------------


HUMP, RISES = [*FALL[:30], *[3.0 + 0.05 * math.sin(9.0 * i) for i in range(30)]], [1.2, 0.8, 1.0, 1.3, 1.6, 1.9]
KEPT, GOES_ON = {"save_steps": 10}, {"status": "no_run_end", "training": {"save_steps": 10, "max_steps": 600}}
GAPS = {"epoch": 3.0, "training": {"save_steps": 15}}
ANSWERS = "See whether its answers differ from row to row: gradients came until step 21"


@every(("steps", "warmup", "found"), [(15, 100, True), (15, 15, False), (9, 100, False)])
def test_a_run_of_one_row_ended_inside_the_warm_up_of_its_settings(steps, warmup, found):
    training = {"max_steps": steps, "warmup_steps": warmup}
    facts = run([26.0], steps=[8], rates=[3e-6], training=training, lr=4e-5, last_step=steps)
    assert (said("LRS133", facts) is not None) is found


@every(
    ("facts", "cause", "text"),
    [
        (run([*FALL[:35], *[NAN] * 25], training=KEPT), "not_finite", "Go back to checkpoint-30, before the first"),
        (run([*FALL[:35], *[NAN] * 25]), "not_finite",
         "Do not use the weights before 'gradience audit' finds them finite"),
        (run(FALL, rates=[1e-4] * 30 + [0.0] * 30), "rate_zero",
         "Give the scheduler the number of steps that the run really makes: it had ended"),
        (run(HUMP, rates=[0.0] * 60), "rate_zero", "Set a learning rate: every step of this run had 0"),
        (run(HUMP, **GOES_ON), "diverged", "Stop it, and start again with a lower learning rate"),
        (run(HUMP), "diverged", "Train again with a lower learning rate than 0.0002; None"),
        (run(HUMP, training=KEPT), "diverged",
         "Train again with a lower learning rate than 0.0002; checkpoint-30 is from before the rise"),
        (run(HUMP, training=KEPT | {"save_total_limit": 3}), "diverged",
         "Train again with a lower learning rate than 0.0002; None"),
        (run([0.9] * 60, grads=[1.0] * 20 + [0.0] * 40), "no_gradient", ANSWERS),
        (run([0.9] * 60, grads=[0.0] * 60), "no_gradient", "See which parameters require gradients: with"),
        (run([2.0, 1.9] * 30, rates=[5e-7] * 60), "no_learning",
         "Raise the learning rate: 5e-07 is under any usual one"),
        (run([2.0, 1.9] * 30), "no_learning",
         "Train on 32 examples until they are learnt; if that fails, see which parameters require gradients"),
        (run(FALL, evals(RISES), **GOES_ON), "overfits", "Stop it: eval loss was best at step 20"),
        (run(FALL, evals(RISES), training=KEPT), "overfits",
         "Use checkpoint-20, if it was kept: eval loss was best at step 20"),
        (run(FALL, evals(RISES), training={"save_steps": 35}), "overfits",
         "Train again for about 20 steps, or with load_best_model_at_end: eval loss was best there"),
        (run(FALL, evals([NAN, NAN])), "evaluation_not_finite",
         "Evaluate again in float32, and look for a batch without a label: the training losses are finite"),
        (run(FALL[:45], status="interrupted", training=KEPT), "cut_off",
         "If it does not run any more, resume it from checkpoint-40"),
        (run(FALL, evals([1.6], step=60), **GAPS), "gap", "Evaluate an earlier checkpoint too: one evaluation"),
        (run(FALL, evals([1.4, 1.6], step=30), **GAPS), "gap",
         "Use checkpoint-30, if it was kept: eval loss was lower there"),
        (run(FALL, evals([1.4, 1.6], step=30), epoch=3.0, training={"save_steps": 20}), None,
         "Compare the task metric"),  # no checkpoint of that step
        (run(FALL, evals([1.6, 1.4], step=30), **GAPS), None, "Compare the task metric"),  # the last is the lowest
        (run(FALL, rates=[2e-4] * 20 + [0.5e-4] * 20 + [1.9e-4] * 20), None, "See what the scheduler was made with"),
    ],
)  # fmt: skip
def test_the_leading_cause_of_a_run_is_answered_with_what_to_do(facts, cause, text):
    given = advice(facts, detect(facts)[0])
    assert given is not None
    assert given.cause == cause
    assert f"{given.text}; {given.alternative}".startswith(text)


# --- a number that is dead, flat or exploded gets a clause ------------------------------------------------------------
HUGE = [90.0, 41000.0, 800.0] * 20
COLLAPSED = [0.74, 0.72, 0.75, 0.73] * 5 + [0.6914, 0.6953] * 40


@every(
    ("facts", "story"),
    [
        (run(FALL, grads=HUGE), "learns; loss 2 -> 0.5079; gradient norm 800 (median); no held-out signal"),
        (run(FALL, grads=[50.0] * 60), "learns; loss 2 -> 0.5079; no held-out signal"),
        (run(FALL, rates=[5e-7] * 60),
         "learns; loss 2 -> 0.5079; the learning rate never was above 5e-07; no held-out signal"),
        (
            run([2.0, 0.4], rates=[9e-7, 5e-7], steps=[500, 1000]),
            "learns; loss 2 -> 0.4; no held-out signal",
        ),  # of the end of a decay
        (run(FALL, rates=[1e-6] * 60), "learns; loss 2 -> 0.5079; no held-out signal"),
        (run(FALL, rates=[1e-2] * 60), "learns; loss 2 -> 0.5079; learning rate up to 0.01; no held-out signal"),
        (run(FALL, rates=[4.9e-3] * 60), "learns; loss 2 -> 0.5079; no held-out signal"),
        (run([2.0, 1.9] * 30, rates=[5e-7] * 60), "the loss does not fall; loss 2 -> 1.9; no held-out signal"),
        (  # a rate far too low is what the advice says
            run(COLLAPSED, evals([0.6938, 0.6932], step=50)),
            "the loss comes to ln 2, as by a guess among so many; loss 0.74 -> 0.6953; eval loss 0.6932, its best",
        ),
        (run(COLLAPSED, evals([0.6938, 0.6932], step=50), num_labels=2),
         "the loss comes to ln 2, a random guess; loss 0.74 -> 0.6953; eval loss 0.6932, its best"),
        (run(COLLAPSED, evals([0.6, 0.5], step=50)), "learns; loss 0.74 -> 0.6953; eval loss 0.5, its best"),
        (run(COLLAPSED, num_labels=3),
         "learns; the loss no longer falls from step 11; loss 0.74 -> 0.6953; no held-out signal"),
        (run(FALL, evals([0.9, 0.8], step=30, accuracy=[0.6, 0.62]), num_labels=2),
         "learns; loss 2 -> 0.5079; eval loss 0.8, its best; eval accuracy 62.0% (chance 50.0%)"),
        (run(FALL, evals([0.9, 0.8], step=30, accuracy=[0.6, 0.63]), num_labels=2),
         "learns; loss 2 -> 0.5079; eval loss 0.8, its best; eval accuracy 63.0%"),
        (run([], evals([6.552, 4.622], step=6)), "no training loss was logged; eval loss 6.552 -> 4.622, its best"),
    ],
)  # fmt: skip
def test_what_no_recipe_has_is_told(facts, story):
    assert told(facts) == story


@every(
    ("classes", "severity", "guess"),
    [(2, "warning", "a random guess among 2"), (None, "info", "a random guess, if it chooses among 2")],
)
def test_of_classes_that_nobody_stated_a_guess_is_a_condition(classes, severity, guess):
    found = said("NOL106", run(COLLAPSED, num_labels=classes))
    says = f"The loss comes to ln 2 = 0.6931, that of {guess}: 0.6934 in the second half of the rows (median)."
    assert (found.severity, found.message) == (severity, says)


def test_a_rate_that_rises_again_is_told_with_its_step():
    found = said("LRS109", run(FALL, rates=[2e-4] * 20 + [0.5e-4] * 20 + [1.9e-4] * 20))
    assert found is not None
    assert found.message.startswith("The learning rate rises again after it had decayed, once, first at step 41")


@every(
    ("losses", "says"),
    [
        (
            [1.2, 0.8, 0.802, 0.799, 0.801, 0.8],
            (
                "Eval loss has not improved since step 20 (0.8 there, 0.799 at best of 5 evaluations), while the "
                "training loss fell on: about 20 steps would have done."
            ),
        ),
        ([0.9, 0.1177, 0.11, 0.102, 0.106, 0.1032], None),  # 13 % lower than at step 20
    ],
)
def test_what_improved_since_does_not_stand_still(losses, says):
    found = said("HLD146", run(FALL, evals(losses)))
    assert (found and found.message) == says
