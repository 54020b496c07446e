"""Rules on a run: its data, batch, length and warm-up, and the record it leaves for judging it.

A Trainer setting in steps below 1 is a ratio of all steps; `Facts` turns both forms into steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradience.rules import (
    EVAL_DEFAULT,
    INSTRUCT_GPT,
    NO_TRAIN_LOSS,
    SAVE_FLOW,
    TINKER_STEPS,
    Observation,
    Threshold,
    Unknown,
)
from gradience.rules.config.facts import OPEN_OR_WEIGHED, TO_COME, ConfigRule, Facts, given
from gradience.schema import as_float

ONE_EPOCH = Threshold("one_epoch", 1, "epochs", "definition: in one pass no example is seen twice")
LONG_RUN = Threshold("long_run", 500, "optimizer steps", "a judgement: a shorter run is started again")
ROWS_WANTED = 50  # rows of a training log: enough for a curve
SHORT_RUN = Threshold("short_run", 100, "optimizer steps", "tinker-cookbook hyperparams: at least 100 steps")
EPOCHS_MANY = Threshold("epochs_many", 3, "epochs", "Unsloth's guide: 1 to 3 epochs")
EPOCHS_BLIND = Threshold(
    "epochs_blind", 10, "epochs", "a judgement: real runs of 20 epochs and more ended at a loss near 0"
)
WARMUP_LONG = Threshold("warmup_long", 0.5, "share of all steps", "mechanical: the peak comes after half the run")
DECAYED_EARLY = Threshold("decayed_early", 0.8, "share of all steps", "a judgement: a fifth of the run is then idle")
CLIPPED = Threshold("clipped", 1.0, "times Adam's epsilon", "arithmetic: all weights then move less than one would")
RATE_GONE = Threshold("rate_gone", 0.1, "of the peak rate", "a judgement: a tenth moves the weights a tenth as far")
TRIAL_STEPS = Threshold("trial_steps", 10, "steps", "a judgement: a few steps show that a script runs")


@ConfigRule(
    "REC001",
    severity="warning",
    confidence=0.95,
    needs=(OPEN_OR_WEIGHED,),
    predicts=True,
    signs=("no_rows",),
    settings=("logging_steps", "logging_strategy"),
    evidence=(NO_TRAIN_LOSS,),
)
def _no_train_loss(facts: Facts) -> Iterator[Observation]:
    """no training loss recorded

    logging is off, or logging_steps is as long as the run or longer

    Why: A run without a loss curve cannot be judged afterwards, or compared with the next one.
    Scope: trainers that log by step; a callback of your own may still log
    Action: set logging_steps to a fiftieth of the steps
    Verify: the log holds train_step rows after the first fiftieth of the run
    Seen: public repositories -- runs without a single row of training loss
    """
    every = facts.logged_every
    if math.isinf(every):
        yield Observation("logging is off: no training loss is recorded", {"logging_strategy": "no"})
        return
    steps = facts.steps
    if every >= steps:
        rows = "one row" if every == steps else "no row"
        yield Observation(
            f"logging_steps {every:g} against {steps} steps: {rows} of training loss is recorded",
            {"logging_steps": every, "steps": steps, "every": max(1, steps // ROWS_WANTED)},
            severity=None if facts.around.moment == "to come" else "info",  # what is past is not logged any more
            action=f"set logging_steps to {max(1, steps // ROWS_WANTED)}",
        )


@ConfigRule(
    "REC002",
    severity="info",
    confidence=0.9,
    predicts=True,
    signs=("nothing_held_out",),
    settings=("eval_strategy",),
    thresholds=(ONE_EPOCH,),
    evidence=(EVAL_DEFAULT,),
)
def _no_evaluation(facts: Facts) -> Iterator[Observation]:
    """no held-out signal

    eval_strategy is 'no', unless the run makes {one_epoch} epoch, or so many that EPO001 speaks

    Why: Train loss falls in a run that learns and in one that memorises.
    Scope: supervised and preference runs; RL has its reward
    Action: hold out a few hundred examples and set eval_strategy='steps'
    Verify: the log holds eval rows
    Seen: public repositories -- runs of many epochs without a held-out signal
    """
    if facts.objective.kind == "rl":
        raise Unknown("the objective is rl: its reward is the signal")
    if given(facts.config.training.eval_strategy, "eval_strategy") != "no":
        return
    try:
        epochs = facts.epochs
    except Unknown:
        yield Observation("evaluation is off: overfitting cannot be seen", {"eval_strategy": "no"})
        return
    if ONE_EPOCH.value < epochs <= _many(facts):
        yield Observation(
            f"evaluation is off: overfitting in {epochs:g} passes cannot be seen", {"eval_strategy": "no"}
        )


@ConfigRule(
    "REC004",
    severity="info",
    confidence=0.9,
    needs=(OPEN_OR_WEIGHED,),
    predicts=True,
    signs=("saved_once",),
    settings=("save_steps", "save_strategy"),
    thresholds=(LONG_RUN,),
    evidence=(SAVE_FLOW,),
)
def _no_checkpoint(facts: Facts) -> Iterator[Observation]:
    """no checkpoint before the end

    saving is off, or save_steps is as long as the run; in a run to come, from {long_run} steps on

    Why: Long runs die of things that have nothing to do with training.
    Scope: trainers that save by step
    Action: save a few times per run
    Verify: a checkpoint folder appears during the run
    Seen: public repositories -- long runs without a checkpoint
    """
    every = facts.saved_every
    if facts.around.moment == "to come" and facts.steps < LONG_RUN.value:
        return
    if math.isinf(every):
        yield Observation("saving is off: a crash leaves nothing on disk", {"save_strategy": "no"})
    elif every >= facts.steps:
        yield Observation(
            f"save_steps {every:g} against {facts.steps} steps: a crash before the end leaves nothing on disk",
            {"save_steps": every, "steps": facts.steps},
        )


@ConfigRule(
    "REC005",
    severity="warning",
    confidence=0.8,
    needs=(TO_COME,),
    settings=("output_dir",),
)
def _output_in_use(facts: Facts) -> Iterator[Observation]:
    """output folder in use

    output_dir already holds checkpoints, a log or an adapter, and nothing resumes or overwrites them

    Why: Two runs in one folder cannot be told apart afterwards, and one may overwrite the other.
    Scope: trainers with an output_dir; looked up from the folder in which check is run
    Action: give a new output_dir, or resume_from_checkpoint if this goes on with that run
    Verify: the folder's checkpoints and logs after the start
    Source: https://github.com/LibreYOLO/libreyolo/issues/833 -- a second run into the same folder overwrites the
        first run's checkpoints
    """
    if facts.around.output is None:
        raise Unknown(facts.around.no_output)
    extras = facts.config.training.extras
    if facts.around.output and not extras.get("resumes") and not extras.get("overwrites_output"):
        names = ", ".join(facts.around.output)
        yield Observation(f"the output folder already holds a run: {names}", {"holds": list(facts.around.output)})


def _checkpoints(facts: Facts) -> int:
    """Checkpoints that the run writes; one more at the end is not counted."""
    if given(facts.config.training.save_strategy, "save_strategy") == "epoch":
        # The Trainer ends an epoch, and saves, also where the run ends within it
        return math.ceil(facts.epochs)
    every = facts.saved_every
    return 0 if math.isinf(every) else int(facts.steps // every)


@ConfigRule(
    "REC006",
    severity="info",
    confidence=0.9,
    needs=(TO_COME,),
    predicts=True,
    settings=("save_total_limit", "load_best_model_at_end", "metric_for_best_model"),
)
def _best_is_deleted(facts: Facts) -> Iterator[Observation]:
    """the best checkpoint may be deleted

    save_total_limit is less than the checkpoints that the run writes, evaluation is on, and neither
    load_best_model_at_end nor metric_for_best_model is set

    Why: If the run overfits, the checkpoint that the evaluations point at is gone.
    Scope: the Trainer of transformers and those built on it
    Action: set load_best_model_at_end=True, or metric_for_best_model='loss', which spares the best checkpoint too
    Verify: checkpoint folders that are left after a short run with more evaluations than save_total_limit
    Source: transformers/trainer_utils.py:rotate_checkpoints@5.24.0 -- spares the newest checkpoint and the best one
        it is told of, no other
    """
    training = facts.config.training
    program = facts.config.extras.get("format")
    if program is not None:
        raise Unknown(f"a recipe of {program}, which may have the best checkpoint kept by itself")
    kept = given(training.save_total_limit, "save_total_limit")
    evaluated = given(training.eval_strategy, "eval_strategy") != "no"
    # transformers deletes no checkpoint at a limit of 0 or less
    if kept < 1 or not evaluated or training.load_best_model_at_end or training.metric_for_best_model:
        return
    saved = _checkpoints(facts)
    if saved > kept:
        yield Observation(
            f"save_total_limit {kept} keeps the newest of {saved} checkpoints, whatever the evaluations say",
            {"save_total_limit": kept, "checkpoints": saved},
        )


@ConfigRule(
    "STP001",
    groups=("config", "log"),
    severity="info",
    confidence=0.6,
    predicts=True,
    signs=("few_steps",),
    settings=("max_steps", "epochs"),
    thresholds=(SHORT_RUN,),
    evidence=(TINKER_STEPS,),
)
def _short_run(facts: Facts) -> Iterator[Observation]:
    """very short run

    fewer than {short_run} optimizer steps

    Why: Of so few steps many go into warm-up, and LoRA's B, which starts at zero, has only begun to move.
    Scope: every run; a smoke test is meant to be short
    Action: plan at least 100 steps, unless this is a trial
    Verify: the loss is still falling at the end
    Seen: https://github.com/hiyouga/LlamaFactory/issues/7486 -- 3 steps: after training the model answers as before
    """
    if facts.steps < SHORT_RUN.value:
        yield Observation(f"the run has only {facts.steps} optimizer steps", {"steps": facts.steps})


def _many(facts: Facts) -> float:
    """The number of epochs over which a run of this kind makes many."""
    return (EPOCHS_MANY if facts.objective.kind == "sft" else EPOCHS_BLIND).value


@ConfigRule(
    "EPO001",
    severity="info",
    confidence=0.5,
    predicts=True,
    signs=("many_passes",),
    settings=("epochs",),
    thresholds=(EPOCHS_MANY, EPOCHS_BLIND),
    evidence=(INSTRUCT_GPT,),
)
def _many_epochs(facts: Facts) -> Iterator[Observation]:
    """many passes over the data

    more than {epochs_many} epochs of instruction tuning, or {epochs_blind} of another task; a warning from
    {epochs_blind} on with evaluation off

    Why: Repeated data is where memorising starts; without evaluation it goes unseen.
    Scope: supervised and preference runs; small classification sets often take more epochs
    Action: evaluate each epoch and keep the best checkpoint
    Verify: held-out loss and the task's own metric by epoch: they may disagree
    Seen: public repositories -- runs of 5 to 60 passes with nothing held out
    Source: Unsloth LoRA hyperparameters guide -- 1 to 3 epochs
    """
    kind, evaluation = facts.objective.kind, facts.config.training.eval_strategy
    if kind == "rl":
        raise Unknown("the objective is rl: every pass samples new completions")
    epochs = facts.epochs
    off = evaluation == "no"
    if epochs > _many(facts):
        yield Observation(
            f"{epochs:g} passes over the data" + (", and evaluation is off" if off else ""),
            {"epochs": epochs, "eval_strategy": evaluation},
            severity="warning" if off and epochs >= EPOCHS_BLIND.value else None,
            action=None if evaluation is None or off else "keep the checkpoint that evaluates best, not the last",
        )


@ConfigRule(
    "SCH001",
    severity="warning",
    confidence=0.95,
    signs=("warmup_ignored",),
    settings=("lr_scheduler",),
)
def _ignored_warmup(facts: Facts) -> Iterator[Observation]:
    """warmup that is ignored

    lr_scheduler_type is 'constant', and a warmup is set

    Why: The first step runs at the full rate, which warmup was meant to avoid.
    Scope: transformers' Trainer
    Action: use lr_scheduler_type='constant_with_warmup'
    Verify: the logged learning rate of the first rows
    Source: transformers/optimization.py:get_scheduler@5.24.0 -- 'constant' returns before warm-up is looked at
    """
    if given(facts.config.training.lr_scheduler, "lr_scheduler_type") == "constant" and facts.has_warmup:
        yield Observation("lr_scheduler_type 'constant' ignores the warmup that is set", {"lr_scheduler": "constant"})


@ConfigRule(
    "SCH002",
    severity="warning",
    confidence=0.8,
    signs=("long_warmup",),
    settings=("warmup_steps", "warmup_ratio"),
    thresholds=(WARMUP_LONG, TRIAL_STEPS),
)
def _long_warmup(facts: Facts) -> Iterator[Observation]:
    """warmup over half the run

    warmup takes {warmup_long} of all steps or more, of {trial_steps} steps at least

    Why: The rate that was chosen is reached late and hardly used.
    Scope: schedules with warmup
    Action: warm up for 3 to 10 % of the steps
    Verify: the logged learning rate over steps
    Seen: https://github.com/ace-step/ACE-Step/pull/198 -- 4000 warm-up steps of 1000: 20 hours of training show no
        difference
    Source: definition -- the peak rate is reached when warmup ends: after half the run or more
    """
    if facts.config.training.lr_scheduler == "constant":
        return
    share = facts.warmup_share
    if share >= WARMUP_LONG.value and not _is_trial(facts):
        left = share < 1.0 and facts.around.moment == "weighed"  # the log shows what came of it after the warm-up
        yield Observation(
            f"warmup takes {share:.0%} of the run: the peak rate is hardly used",
            {"warmup_share": share},
            severity="info" if left else None,
        )


@ConfigRule(
    "SCH003",
    severity="warning",
    confidence=0.8,
    settings=("lr_scheduler",),
    thresholds=(DECAYED_EARLY, RATE_GONE),
)
def _early_decay(facts: Facts) -> Iterator[Observation]:
    """the rate has decayed long before the end

    the schedule is at its last rate, {rate_gone} of the peak or less, within {decayed_early} of the steps

    Why: From there on hardly anything is learnt, and nothing says so.
    Scope: schedules that state their own length: MLX-LM's arguments
    Action: give the schedule the steps of the run
    Verify: the logged learning rate over steps
    Seen: https://github.com/ml-explore/mlx-examples/issues/985 -- the rate falls to 1e-7 and stays there
    Source: mlx/optimizers/schedulers.py:cosine_decay@0.32.4 -- after decay_steps the rate stays at its end
    """
    extras, training = facts.config.training.extras, facts.config.training
    decay, end = given(extras.get("decay_steps"), "the length of the schedule"), extras.get("decay_end")
    warmup = as_float(training.warmup_steps) if training.warmup_steps is not None else 0.0
    length, last = int(decay + warmup), as_float(end) if isinstance(end, int | float) else 0.0
    if length <= DECAYED_EARLY.value * facts.steps and last <= RATE_GONE.value * facts.lr:
        yield Observation(
            f"the schedule is at its last rate ({last:g}) after {length:,} of {facts.steps:,} steps, before the end",
            {"decays_within": length, "steps": facts.steps, "last": last},
            action=f"set the schedule's steps to {int(facts.steps - warmup):,}".replace(",", ""),
        )


@ConfigRule(
    "CLN001",
    groups=("config", "log"),
    severity="error",
    confidence=0.9,
    settings=("max_grad_norm", "eps"),
    thresholds=(CLIPPED,),
)
def _clipped_away(facts: Facts) -> Iterator[Observation]:
    """gradients are clipped below Adam's epsilon

    max_grad_norm is above 0, and at most {clipped} of epsilon, of an optimizer of the Adam family

    Why: The mean of gradients is no longer than the longest of them, and is divided by epsilon or more: all weights
        together move as far in a step as one weight does else.
    Scope: the Adam family; where epsilon is not stated, it is 1e-8
    Action: set max_grad_norm to 1
    Verify: the loss falls
    Source: arithmetic -- a step is at most lr x max_grad_norm / epsilon long
    """
    most = as_float(given(facts.config.training.max_grad_norm, "max_grad_norm"))
    eps = 1e-8 if facts.config.optimizer.eps is None else as_float(facts.config.optimizer.eps)
    if facts.is_adam is None:
        raise Unknown("the optimizer is not known")
    if facts.is_adam and 0.0 < most <= CLIPPED.value * eps:
        yield Observation(
            f"max_grad_norm {most:g} leaves no gradient longer than Adam's epsilon ({eps:g}): a step moves "
            f"all weights together by {most / eps:.2g} of the learning rate at most",
            {"max_grad_norm": most, "eps": eps},
        )


def _is_trial(facts: Facts) -> bool:
    try:
        return facts.steps < TRIAL_STEPS.value
    except Unknown:  # the share is configured as a share
        return False


RULES = (
    _no_train_loss,
    _no_evaluation,
    _no_checkpoint,
    _best_is_deleted,
    _output_in_use,
    _short_run,
    _many_epochs,
    _ignored_warmup,
    _long_warmup,
    _early_decay,
    _clipped_away,
)
