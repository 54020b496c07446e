"""Rules on a run: its data, batch, length and warm-up, and the record it leaves for judging it.

A Trainer setting in steps below 1 is a ratio of all steps; `Facts` turns both forms into steps. RNK001 sets the data
against the size of the adapter, which `--base` gives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from gradience.rules import (
    EVAL_DEFAULT,
    INSTRUCT_GPT,
    LWR,
    NO_TRAIN_LOSS,
    SAVE_FLOW,
    TINKER_STEPS,
    Observation,
    Threshold,
    Unknown,
    cite,
)
from gradience.rules.config.facts import OPEN_OR_WEIGHED, TO_COME, ConfigRule, Facts, LoraRule, given
from gradience.schema import as_float

ONE_EPOCH = Threshold("one_epoch", 1, "epochs", "definition: in one pass no example is seen twice")
LONG_RUN = Threshold("long_run", 500, "optimizer steps", "a judgement: a shorter run is started again")
ROWS_WANTED = 50  # rows of a training log: enough for a curve


def _no_train_loss(facts: Facts) -> Iterator[Observation]:
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
            action=f"set logging_steps to {max(1, steps // ROWS_WANTED)}",
        )


def _no_evaluation(facts: Facts) -> Iterator[Observation]:
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


def _no_checkpoint(facts: Facts) -> Iterator[Observation]:
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


def _output_in_use(facts: Facts) -> Iterator[Observation]:
    if facts.around.output is None:
        raise Unknown(facts.around.no_output)
    extras = facts.config.training.extras
    if facts.around.output and not extras.get("resumes") and not extras.get("overwrites_output"):
        held = ", ".join(facts.around.output)
        yield Observation(f"the output folder already holds a run: {held}", {"holds": list(facts.around.output)})


def _checkpoints(facts: Facts) -> int:
    """Checkpoints that the run writes; one more at the end is not counted."""
    if given(facts.config.training.save_strategy, "save_strategy") == "epoch":
        return math.ceil(facts.epochs)
    every = facts.saved_every
    return 0 if math.isinf(every) else int(facts.steps // every)


def _best_is_deleted(facts: Facts) -> Iterator[Observation]:
    training = facts.config.training
    program = facts.config.extras.get("format")
    if program is not None:
        raise Unknown(f"a recipe of {program}, which may have the best checkpoint kept by itself")
    kept = given(training.save_total_limit, "save_total_limit")
    evaluated = given(training.eval_strategy, "eval_strategy") != "no"
    if kept < 1 or not evaluated or training.load_best_model_at_end or training.metric_for_best_model:
        return
    saved = _checkpoints(facts)
    if saved > kept:
        yield Observation(
            f"save_total_limit {kept} keeps the newest of {saved} checkpoints, whatever the evaluations say",
            {"save_total_limit": kept, "checkpoints": saved},
        )


_RECORDING = (
    ConfigRule(
        id="REC001",
        severity="warning",
        title="no training loss recorded",
        condition="logging is off, or logging_steps is as long as the run or longer",
        observe=_no_train_loss,
        needs=(OPEN_OR_WEIGHED,),
        predicts=True,
        confidence=0.95,
        signs=("no_rows",),
        evidence=(NO_TRAIN_LOSS,),
        rationale="A run without a loss curve cannot be judged afterwards, or compared with the next one.",
        action="set logging_steps to a fiftieth of the steps",
        scope="trainers that log by step; a callback of your own may still log",
        verify="the log holds train_step rows after the first fiftieth of the run",
        settings=("logging_steps", "logging_strategy"),
    ),
    ConfigRule(
        id="REC002",
        severity="info",
        title="no held-out signal",
        condition="eval_strategy is 'no', unless the run makes {one_epoch} epoch, or so many that EPO001 speaks",
        observe=_no_evaluation,
        predicts=True,
        confidence=0.9,
        signs=("nothing_held_out",),
        evidence=(EVAL_DEFAULT,),
        rationale="Train loss falls in a run that learns and in one that memorises.",
        action="hold out a few hundred examples and set eval_strategy='steps'",
        scope="supervised and preference runs; RL has its reward",
        verify="the log holds eval rows",
        thresholds=(ONE_EPOCH,),
        settings=("eval_strategy",),
    ),
    ConfigRule(
        id="REC004",
        severity="info",
        title="no checkpoint before the end",
        condition="saving is off, or save_steps is as long as the run; in a run to come, from {long_run} steps on",
        observe=_no_checkpoint,
        needs=(OPEN_OR_WEIGHED,),
        predicts=True,
        confidence=0.9,
        signs=("saved_once",),
        evidence=(SAVE_FLOW,),
        rationale="Long runs die of things that have nothing to do with training.",
        action="save a few times per run",
        scope="trainers that save by step",
        verify="a checkpoint folder appears during the run",
        thresholds=(LONG_RUN,),
        settings=("save_steps", "save_strategy"),
    ),
    ConfigRule(
        id="REC006",
        severity="info",
        title="the best checkpoint may be deleted",
        condition="save_total_limit is less than the checkpoints that the run writes, evaluation is on, and neither "
        "load_best_model_at_end nor metric_for_best_model is set",
        observe=_best_is_deleted,
        needs=(TO_COME,),
        predicts=True,
        confidence=0.9,
        evidence=(
            cite(
                "transformers, rotate_checkpoints and Trainer._determine_best_metric (5.24)",
                "only the newest checkpoint and best_model_checkpoint are spared; there is no such without "
                "metric_for_best_model, which load_best_model_at_end sets",
            ),
        ),
        rationale="If the run overfits, the checkpoint that the evaluations point at is gone.",
        action="set load_best_model_at_end=True, or metric_for_best_model='loss', which spares the best checkpoint too",
        scope="the Trainer of transformers and those built on it",
        verify="checkpoint folders that are left after a short run with more evaluations than save_total_limit",
        settings=("save_total_limit", "load_best_model_at_end", "metric_for_best_model"),
    ),
    ConfigRule(
        id="REC005",
        severity="warning",
        title="output folder in use",
        condition="output_dir already holds checkpoints, a log or an adapter, and nothing resumes or overwrites them",
        observe=_output_in_use,
        needs=(TO_COME,),
        confidence=0.8,
        evidence=(
            cite(
                "huggingface/transformers#19446; roboflow/rf-detr#1325",
                "a second run into the same folder mixes checkpoints and logs with the first, or overwrites them",
            ),
        ),
        rationale="Two runs in one folder cannot be told apart afterwards, and one may overwrite the other.",
        action="give a new output_dir, or resume_from_checkpoint if this goes on with that run",
        scope="trainers with an output_dir; looked up from the folder in which check is run",
        verify="the folder's checkpoints and logs after the start",
        settings=("output_dir",),
    ),
)


BITS_PER_PARAMETER = Threshold(
    "bits_per_parameter", 2.0, "bits per adapter parameter", "LoRA Without Regret, as quoted; not re-measured"
)
BITS_PER_TOKEN = Threshold("bits_per_token", 1.0, "bits per token", "LoRA Without Regret, as quoted; not re-measured")
CAPACITY_EXCESS = Threshold(
    "capacity_excess", 3.0, "bits of data over bits of adapter", "proposal: slack for padding and repeated data"
)
BATCH_LARGE = Threshold("batch_large", 256, "sequences per optimizer step", "proposal: twice tinker-cookbook's 128")
SHORT_RUN = Threshold("short_run", 100, "optimizer steps", "tinker-cookbook hyperparams: at least 100 steps")
EPOCHS_MANY = Threshold("epochs_many", 3, "epochs", "Unsloth's guide: 1 to 3 epochs")
EPOCHS_BLIND = Threshold(
    "epochs_blind", 10, "epochs", "a judgement: real runs of 20 epochs and more ended at a loss near 0"
)
WARMUP_LONG = Threshold("warmup_long", 0.5, "share of all steps", "mechanical: the peak comes after half the run")
TRIAL_STEPS = Threshold("trial_steps", 10, "steps", "a judgement: a few steps show that a script runs")
WARMUP_RATIO_REMOVED = Threshold(
    "warmup_ratio_removed", 5.2, "transformers version", "huggingface/peft#2949; absent in 5.24"
)


def _capacity(facts: Facts) -> Iterator[Observation]:
    if facts.objective.kind != "sft":
        raise Unknown(f"objective {facts.objective.kind}: the estimate is for supervised training")
    parameters, tokens = given(facts.coverage.lora_params, "the adapter's size (r, or a packed base)"), facts.tokens
    capacity, content = parameters * BITS_PER_PARAMETER.value, tokens * BITS_PER_TOKEN.value
    if content > CAPACITY_EXCESS.value * capacity:
        yield Observation(
            f"up to {tokens:.2g} tokens against {parameters:.2g} adapter parameters: the adapter may be too small",
            {"tokens_at_most": tokens, "lora_params": parameters, "ratio": content / capacity},
        )


def _large_batch(facts: Facts) -> Iterator[Observation]:
    if "samples_per_step" in facts.config.training.extras:
        if facts.effective_batch > BATCH_LARGE.value:
            yield _large(facts.effective_batch)
        return
    per_process = facts.batch_per_process
    if per_process > BATCH_LARGE.value:  # then it holds for any number of processes
        yield Observation(f"{per_process} sequences per step and process", {"batch_per_process": per_process})
        return
    if facts.config.training.world_size is None:
        raise Unknown(f"the number of processes is not given; with one, the batch is {per_process}")
    if facts.effective_batch > BATCH_LARGE.value:
        yield _large(facts.effective_batch)


def _large(batch: int) -> Observation:
    return Observation(f"{batch} sequences per optimizer step", {"effective_batch": batch})


def _short_run(facts: Facts) -> Iterator[Observation]:
    if facts.steps < SHORT_RUN.value:
        yield Observation(f"the run has only {facts.steps} optimizer steps", {"steps": facts.steps})


def _many(facts: Facts) -> float:
    """The number of epochs over which a run of this kind makes many."""
    return (EPOCHS_MANY if facts.objective.kind == "sft" else EPOCHS_BLIND).value


def _many_epochs(facts: Facts) -> Iterator[Observation]:
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


def _ignored_warmup(facts: Facts) -> Iterator[Observation]:
    if given(facts.config.training.lr_scheduler, "lr_scheduler_type") == "constant" and facts.has_warmup:
        yield Observation("lr_scheduler_type 'constant' ignores the warmup that is set", {"lr_scheduler": "constant"})


def _long_warmup(facts: Facts) -> Iterator[Observation]:
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


def _is_trial(facts: Facts) -> bool:
    try:
        return facts.steps < TRIAL_STEPS.value
    except Unknown:  # the share is configured as a share
        return False


def _removed_ratio(facts: Facts) -> Iterator[Observation]:
    program = facts.config.extras.get("format")
    if program is not None:
        raise Unknown(f"a recipe of {program}, which hands the setting on as its own version of transformers wants it")
    ratio = facts.config.training.warmup_ratio
    if ratio is None or as_float(ratio) <= 0:
        return
    version = given(facts.transformers, "the version of transformers (it is not installed here), which")
    if _major_minor(version) >= _major_minor(str(WARMUP_RATIO_REMOVED.value)):
        yield Observation(
            f"warmup_ratio is set, and transformers {version} (installed here) has no such argument",
            {"warmup_ratio": as_float(ratio), "transformers": version},
            action=f"use warmup_steps={as_float(ratio):g}: below 1 it is a ratio",
        )


def _major_minor(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise Unknown(f"transformers' version {version!r} is not readable")
    return int(match[1]), int(match[2])


RULES = (
    LoraRule(
        id="RNK001",
        severity="info",
        title="more data than the adapter may hold",
        groups=("base",),
        condition="tokens x {bits_per_token} bit > {capacity_excess} x trainable parameters x {bits_per_parameter} bit",
        observe=_capacity,
        confidence=0.35,
        evidence=(
            cite(
                LWR,
                "an adapter holds about 2 bits a parameter and a data set about 1 bit a token; past that LoRA "
                "falls behind",
            ),
        ),
        rationale="Past its capacity LoRA learns more slowly per example than full fine-tuning.",
        action="raise r, or target more modules, before raising lr",
        scope="supervised training; tokens are an upper bound: full sequences, every step counted as new data",
        verify="the same run at twice the rank: compare held-out loss after equal steps",
        thresholds=(BITS_PER_PARAMETER, BITS_PER_TOKEN, CAPACITY_EXCESS),
        settings=("r",),
    ),
    *_RECORDING,
    LoraRule(
        id="BAT001",
        severity="info",
        title="large batch",
        condition="more than {batch_large} sequences per optimizer step",
        observe=_large_batch,
        predicts=True,
        confidence=0.4,
        evidence=(
            cite(LWR, "large batches hurt LoRA more than full fine-tuning; rank does not fix it"),
            cite("TRL docs, lora_without_regret.md", "effective batch under 32; tinker-cookbook starts at 128"),
        ),
        rationale="LoRA loses more from large batches than full fine-tuning does, and rank does not help.",
        action="compare with a batch of 32 to 128 at the same number of examples",
        scope="supervised LoRA; sources disagree on the batch size from which this holds",
        verify="held-out loss after the same number of examples",
        thresholds=(BATCH_LARGE,),
        settings=("batch_size", "gradient_accumulation"),
    ),
    ConfigRule(
        id="STP001",
        severity="info",
        title="very short run",
        condition="fewer than {short_run} optimizer steps",
        observe=_short_run,
        confidence=0.6,
        signs=("few_steps",),
        evidence=(TINKER_STEPS,),
        rationale="Of so few steps many go into warm-up, and LoRA's B, which starts at zero, has only begun to move.",
        action="plan at least 100 steps, unless this is a trial",
        scope="every run; a smoke test is meant to be short",
        verify="the loss is still falling at the end",
        thresholds=(SHORT_RUN,),
        settings=("max_steps", "epochs"),
    ),
    ConfigRule(
        id="EPO001",
        severity="info",
        title="many passes over the data",
        condition="more than {epochs_many} epochs of instruction tuning, or {epochs_blind} of another task; a warning "
        "from {epochs_blind} on with evaluation off",
        predicts=True,
        observe=_many_epochs,
        confidence=0.5,
        signs=("many_passes",),
        evidence=(cite("Unsloth LoRA hyperparameters guide", "1 to 3 epochs"), INSTRUCT_GPT),
        rationale="Repeated data is where memorising starts; without evaluation it goes unseen.",
        action="evaluate each epoch and keep the best checkpoint",
        scope="supervised and preference runs; small classification sets often take more epochs",
        verify="held-out loss and the task's own metric by epoch: they may disagree",
        thresholds=(EPOCHS_MANY, EPOCHS_BLIND),
        settings=("epochs",),
    ),
    ConfigRule(
        id="SCH001",
        severity="warning",
        title="warmup that is ignored",
        condition="lr_scheduler_type is 'constant', and a warmup is set",
        observe=_ignored_warmup,
        confidence=0.95,
        signs=("warmup_ignored",),
        evidence=(
            cite("transformers/optimization.py, get_scheduler (5.24)", "'constant' returns before warmup is looked at"),
        ),
        rationale="The first step runs at the full rate, which warmup was meant to avoid.",
        action="use lr_scheduler_type='constant_with_warmup'",
        scope="transformers' Trainer",
        verify="the logged learning rate of the first rows",
        settings=("lr_scheduler",),
    ),
    ConfigRule(
        id="SCH002",
        severity="warning",
        title="warmup over half the run",
        condition="warmup takes {warmup_long} of all steps or more, of {trial_steps} steps at least",
        observe=_long_warmup,
        confidence=0.8,
        signs=("long_warmup",),
        evidence=(cite("definition", "the peak rate is reached when warmup ends: after half the run or more"),),
        rationale="The rate that was chosen is reached late and hardly used.",
        action="warm up for 3 to 10 % of the steps",
        scope="schedules with warmup",
        verify="the logged learning rate over steps",
        thresholds=(WARMUP_LONG, TRIAL_STEPS),
        settings=("warmup_steps", "warmup_ratio"),
    ),
    ConfigRule(
        id="SCH003",
        severity="info",
        title="warmup_ratio where it was removed",
        condition="warmup_ratio is set, and transformers here is {warmup_ratio_removed} or later",
        observe=_removed_ratio,
        needs=(TO_COME,),
        confidence=0.9,
        evidence=(
            cite(
                "huggingface/peft#2949; transformers 5.24",
                "warmup_ratio is deprecated in 5.0 and removed in 5.2; warmup_steps below 1 is a ratio from 5.0 on",
            ),
        ),
        rationale="TrainingArguments refuses the argument, or a script drops it and trains without warmup.",
        action="use warmup_steps with a value below 1",
        scope="the transformers installed where check runs",
        verify="see whether TrainingArguments(warmup_ratio=...) raises an error",
        thresholds=(WARMUP_RATIO_REMOVED,),
        settings=("warmup_ratio",),
    ),
)
