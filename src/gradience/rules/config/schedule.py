"""How long, how big, how often, and whether the rate ever gets to its peak."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gradience.rules.config.facts import Facts, given
from gradience.rules.config.hits import Hit, Rule
from gradience.rules.evidence import (
    CONSTANT_SCHEDULE,
    INSTRUCT_GPT,
    LATE_PEAK,
    LWR_BATCH,
    TINKER_STEPS,
    TRL_BATCH,
    UNSLOTH_EPOCHS,
    WARMUP_RATIO,
)
from gradience.rules.rule import Unknown
from gradience.rules.thresholds import BATCH_LARGE, EPOCHS_MANY, SHORT_RUN, WARMUP_LONG, WARMUP_RATIO_REMOVED
from gradience.schema.scalars import as_float


def _large_batch(facts: Facts) -> Iterator[Hit]:
    per_process = facts.batch_per_process
    if per_process > BATCH_LARGE.value:  # true of any number of processes
        yield Hit(f"{per_process} sequences per step and process", {"batch_per_process": per_process})
        return
    if facts.config.training.world_size is None:
        reason = f"the number of processes is not given; with one, the batch is {per_process}"
        raise Unknown(reason)
    if facts.effective_batch > BATCH_LARGE.value:
        yield Hit(
            f"{facts.effective_batch} sequences per optimizer step",
            {"effective_batch": facts.effective_batch},
        )


def _short_run(facts: Facts) -> Iterator[Hit]:
    if facts.steps < SHORT_RUN.value:
        yield Hit(f"the run has only {facts.steps} optimizer steps", {"steps": facts.steps})


def _many_epochs(facts: Facts) -> Iterator[Hit]:
    training = facts.config.training
    if training.extras.get("epochs_overridden"):
        reason = "max_steps goes before epochs: how often the data repeats is not known"
        raise Unknown(reason)
    if facts.objective.kind == "rl":
        reason = "the objective is rl: every pass samples new completions"
        raise Unknown(reason)
    epochs = as_float(given(training.epochs, "epochs"))
    if epochs > EPOCHS_MANY.value:
        blind = training.eval_strategy == "no"
        tail = ", and evaluation is off" if blind else ""
        yield Hit(
            f"{epochs:g} passes over the data{tail}",
            {"epochs": epochs, "eval_strategy": training.eval_strategy},
            severity="warning" if blind else None,
        )


def _ignored_warmup(facts: Facts) -> Iterator[Hit]:
    if given(facts.config.training.lr_scheduler, "lr_scheduler_type") == "constant" and facts.has_warmup:
        yield Hit("lr_scheduler_type 'constant' ignores the warmup that is set", {"lr_scheduler": "constant"})


def _long_warmup(facts: Facts) -> Iterator[Hit]:
    if facts.config.training.lr_scheduler == "constant":
        return
    share = facts.warmup_share
    if share >= WARMUP_LONG.value:
        yield Hit(f"warmup takes {share:.0%} of the run: the peak rate is hardly used", {"warmup_share": share})


def _removed_ratio(facts: Facts) -> Iterator[Hit]:
    ratio = facts.config.training.warmup_ratio
    if ratio is None or as_float(ratio) <= 0:
        return
    version = given(facts.transformers, "the version of transformers (it is not installed here), which")
    if _major_minor(version) >= _major_minor(str(WARMUP_RATIO_REMOVED.value)):
        yield Hit(
            f"warmup_ratio is set, and transformers {version} (installed here) has no such argument",
            {"warmup_ratio": as_float(ratio), "transformers": version},
            action=f"use warmup_steps={as_float(ratio):g}: below 1 it is a ratio",
        )


def _major_minor(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        reason = f"transformers' version {version!r} is not readable"
        raise Unknown(reason)
    return int(match[1]), int(match[2])


RULES = (
    Rule(
        id="BAT001",
        severity="info",
        title="large batch",
        condition=_large_batch,
        confidence=0.4,
        evidence=(LWR_BATCH, TRL_BATCH),
        rationale="LoRA loses more from large batches than full fine-tuning does, and rank does not help.",
        action="compare with a batch of 32 to 128 at the same number of examples",
        scope="supervised LoRA; sources disagree on where it starts",
        verify="held-out loss after the same number of examples",
        thresholds=(BATCH_LARGE,),
    ),
    Rule(
        id="STP001",
        severity="info",
        title="very short run",
        condition=_short_run,
        confidence=0.6,
        evidence=(TINKER_STEPS,),
        rationale="B starts at zero, so the first steps only get the adapter moving.",
        action="plan at least 100 steps, or say that this is a trial",
        scope="every LoRA run; a smoke test is meant to be short",
        verify="the loss is still falling at the end",
        thresholds=(SHORT_RUN,),
    ),
    Rule(
        id="EPO001",
        severity="info",
        title="many passes over the data",
        condition=_many_epochs,
        confidence=0.5,
        evidence=(UNSLOTH_EPOCHS, INSTRUCT_GPT),
        rationale="Repeated data is where memorising starts; without evaluation it goes unseen.",
        action="evaluate each epoch and keep the best checkpoint",
        scope="supervised and preference runs; small classification sets often take more epochs",
        verify="held-out loss and the task's own metric by epoch: they may disagree",
        thresholds=(EPOCHS_MANY,),
        about_lora=False,
    ),
    Rule(
        id="SCH001",
        severity="warning",
        title="warmup that is ignored",
        condition=_ignored_warmup,
        confidence=0.95,
        evidence=(CONSTANT_SCHEDULE,),
        rationale="The first step runs at the full rate, which warmup was meant to avoid.",
        action="use lr_scheduler_type='constant_with_warmup'",
        scope="transformers' Trainer",
        verify="the logged learning rate of the first rows",
        about_lora=False,
    ),
    Rule(
        id="SCH002",
        severity="warning",
        title="warmup over half the run",
        condition=_long_warmup,
        confidence=0.8,
        evidence=(LATE_PEAK,),
        rationale="The rate that was chosen is reached late and hardly used.",
        action="warm up for 3 to 10 % of the steps",
        scope="schedules with warmup",
        verify="the logged learning rate over steps",
        thresholds=(WARMUP_LONG,),
        about_lora=False,
    ),
    Rule(
        id="SCH003",
        severity="warning",
        title="warmup_ratio where it was removed",
        condition=_removed_ratio,
        confidence=0.9,
        evidence=(WARMUP_RATIO,),
        rationale="TrainingArguments refuses the argument, or a script drops it and trains without warmup.",
        action="use warmup_steps with a value below 1",
        scope="the transformers installed where check runs",
        verify="TrainingArguments(warmup_ratio=...) raises or does not",
        thresholds=(WARMUP_RATIO_REMOVED,),
        about_lora=False,
    ),
)
