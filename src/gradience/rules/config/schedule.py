"""Rules on the schedule: how many steps and epochs, how large a batch, and whether the rate ever gets to its peak."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gradience.rules.config.facts import Facts, about_lora, given
from gradience.rules.evidence import INSTRUCT_GPT, LWR, TINKER_STEPS
from gradience.rules.rule import Observation, Rule, Threshold, Unknown
from gradience.schema.findings import Evidence
from gradience.schema.scalars import as_float

BATCH_LARGE = Threshold("batch_large", 256, "sequences per optimizer step", "proposal: twice tinker-cookbook's 128")
SHORT_RUN = Threshold("short_run", 100, "optimizer steps", "tinker-cookbook hyperparams: at least 100 steps")
EPOCHS_MANY = Threshold("epochs_many", 3, "epochs", "Unsloth's guide: 1 to 3 epochs")
EPOCHS_BLIND = Threshold(
    "epochs_blind",
    10,
    "epochs",
    "a judgement: real runs of 20 epochs and more ended at a loss near 0",
)
WARMUP_LONG = Threshold("warmup_long", 0.5, "share of all steps", "mechanical: the peak comes after half the run")
WARMUP_RATIO_REMOVED = Threshold(
    "warmup_ratio_removed", 5.2, "transformers version", "huggingface/peft#2949; absent in 5.24"
)


def _large_batch(facts: Facts) -> Iterator[Observation]:
    if "samples_per_step" in facts.config.training.extras:
        if facts.effective_batch > BATCH_LARGE.value:
            yield _large(facts.effective_batch)
        return
    per_process = facts.batch_per_process
    if per_process > BATCH_LARGE.value:  # true of any number of processes
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


def _many_epochs(facts: Facts) -> Iterator[Observation]:
    training = facts.config.training
    if facts.objective.kind == "rl":
        raise Unknown("the objective is rl: every pass samples new completions")
    epochs = facts.epochs
    if epochs > EPOCHS_MANY.value:
        off = training.eval_strategy == "no"
        tail = ", and evaluation is off" if off else ""
        yield Observation(
            f"{epochs:g} passes over the data{tail}",
            {"epochs": epochs, "eval_strategy": training.eval_strategy},
            severity="warning" if off and epochs >= EPOCHS_BLIND.value else None,
        )


def _ignored_warmup(facts: Facts) -> Iterator[Observation]:
    if given(facts.config.training.lr_scheduler, "lr_scheduler_type") == "constant" and facts.has_warmup:
        yield Observation("lr_scheduler_type 'constant' ignores the warmup that is set", {"lr_scheduler": "constant"})


def _long_warmup(facts: Facts) -> Iterator[Observation]:
    if facts.config.training.lr_scheduler == "constant":
        return
    share = facts.warmup_share
    if share >= WARMUP_LONG.value:
        yield Observation(f"warmup takes {share:.0%} of the run: the peak rate is hardly used", {"warmup_share": share})


def _removed_ratio(facts: Facts) -> Iterator[Observation]:
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
    Rule(
        id="BAT001",
        severity="info",
        title="large batch",
        groups=("config",),
        condition="more than {batch_large} sequences per optimizer step",
        observe=_large_batch,
        confidence=0.4,
        evidence=(
            Evidence(source=LWR, says="large batches hurt LoRA more than full fine-tuning; rank does not fix it"),
            Evidence(
                source="TRL docs, lora_without_regret.md",
                says="effective batch under 32; tinker-cookbook starts at 128",
            ),
        ),
        rationale="LoRA loses more from large batches than full fine-tuning does, and rank does not help.",
        action="compare with a batch of 32 to 128 at the same number of examples",
        scope="supervised LoRA; sources disagree on where it starts",
        verify="held-out loss after the same number of examples",
        thresholds=(BATCH_LARGE,),
        needs=(about_lora,),
        settings=("batch_size", "gradient_accumulation"),
    ),
    Rule(
        id="STP001",
        severity="info",
        title="very short run",
        groups=("config",),
        condition="fewer than {short_run} optimizer steps",
        observe=_short_run,
        confidence=0.6,
        evidence=(TINKER_STEPS,),
        rationale="B starts at zero, so the first steps only get the adapter moving.",
        action="plan at least 100 steps, or say that this is a trial",
        scope="every LoRA run; a smoke test is meant to be short",
        verify="the loss is still falling at the end",
        thresholds=(SHORT_RUN,),
        needs=(about_lora,),
        settings=("max_steps", "epochs"),
    ),
    Rule(
        id="EPO001",
        severity="info",
        title="many passes over the data",
        groups=("config",),
        condition="more than {epochs_many} epochs; a warning from {epochs_blind} on with evaluation off",
        observe=_many_epochs,
        confidence=0.5,
        evidence=(Evidence(source="Unsloth LoRA hyperparameters guide", says="1 to 3 epochs"), INSTRUCT_GPT),
        rationale="Repeated data is where memorising starts; without evaluation it goes unseen.",
        action="evaluate each epoch and keep the best checkpoint",
        scope="supervised and preference runs; small classification sets often take more epochs",
        verify="held-out loss and the task's own metric by epoch: they may disagree",
        thresholds=(EPOCHS_MANY, EPOCHS_BLIND),
        settings=("epochs",),
    ),
    Rule(
        id="SCH001",
        severity="warning",
        title="warmup that is ignored",
        groups=("config",),
        condition="lr_scheduler_type is 'constant', and a warmup is set",
        observe=_ignored_warmup,
        confidence=0.95,
        evidence=(
            Evidence(
                source="transformers/optimization.py, get_scheduler (5.24)",
                says="'constant' returns before warmup is looked at",
            ),
        ),
        rationale="The first step runs at the full rate, which warmup was meant to avoid.",
        action="use lr_scheduler_type='constant_with_warmup'",
        scope="transformers' Trainer",
        verify="the logged learning rate of the first rows",
        settings=("lr_scheduler",),
    ),
    Rule(
        id="SCH002",
        severity="warning",
        title="warmup over half the run",
        groups=("config",),
        condition="warmup takes {warmup_long} of all steps or more",
        observe=_long_warmup,
        confidence=0.8,
        evidence=(
            Evidence(source="definition", says="the peak rate is reached when warmup ends: after half the run or more"),
        ),
        rationale="The rate that was chosen is reached late and hardly used.",
        action="warm up for 3 to 10 % of the steps",
        scope="schedules with warmup",
        verify="the logged learning rate over steps",
        thresholds=(WARMUP_LONG,),
        settings=("warmup_steps", "warmup_ratio"),
    ),
    Rule(
        id="SCH003",
        severity="warning",
        title="warmup_ratio where it was removed",
        groups=("config",),
        condition="warmup_ratio is set, and transformers here is {warmup_ratio_removed} or later",
        observe=_removed_ratio,
        confidence=0.9,
        evidence=(
            Evidence(
                source="huggingface/peft#2949; transformers 5.24",
                says="warmup_ratio is deprecated in 5.0 and removed in 5.2; warmup_steps below 1 is a ratio from 5.0 "
                "on",
            ),
        ),
        rationale="TrainingArguments refuses the argument, or a script drops it and trains without warmup.",
        action="use warmup_steps with a value below 1",
        scope="the transformers installed where check runs",
        verify="TrainingArguments(warmup_ratio=...) raises or does not",
        thresholds=(WARMUP_RATIO_REMOVED,),
        settings=("warmup_ratio",),
    ),
)
