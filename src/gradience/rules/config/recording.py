"""Rules on what a run will leave behind to judge it by: its log, its evaluations, its checkpoints, its folder.

A setting of the Trainer in steps may also be a ratio of all steps (below 1); `Facts` turns both into steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradience.rules.config.facts import Facts, given
from gradience.rules.evidence import EVAL_DEFAULT, NO_TRAIN_LOSS, SAVE_FLOW
from gradience.rules.rule import Observation, Rule, Unknown
from gradience.schema.findings import Evidence


def _no_train_loss(facts: Facts) -> Iterator[Observation]:
    every = facts.logged_every
    if math.isinf(every):
        yield Observation("logging is off: no training loss will be recorded", {"logging_strategy": "no"})
        return
    steps = facts.steps
    if every >= steps:
        rows = "one row" if every == steps else "no row"
        yield Observation(
            f"logging_steps {every:g} against {steps} steps: {rows} of training loss will be recorded",
            {"logging_steps": every, "steps": steps},
            action=f"set logging_steps to {max(1, steps // 50)}",
        )


def _no_evaluation(facts: Facts) -> Iterator[Observation]:
    if given(facts.config.training.eval_strategy, "eval_strategy") == "no":
        yield Observation("evaluation is off: overfitting cannot be seen", {"eval_strategy": "no"})


def _nan_filter(facts: Facts) -> Iterator[Observation]:
    if given(facts.config.training.logging_nan_inf_filter, "logging_nan_inf_filter"):
        yield Observation("a NaN loss will be averaged away in the log", {"logging_nan_inf_filter": True})


def _no_checkpoint(facts: Facts) -> Iterator[Observation]:
    every = facts.saved_every
    if math.isinf(every):
        yield Observation("saving is off: a crash leaves nothing on disk", {"save_strategy": "no"})
        return
    steps = facts.steps
    if every >= steps:
        yield Observation(
            f"save_steps {every:g} against {steps} steps: a crash before the end leaves nothing on disk",
            {"save_steps": every, "steps": steps},
        )


def _output_in_use(facts: Facts) -> Iterator[Observation]:
    if facts.around.output is None:
        raise Unknown(facts.around.no_output)
    extras = facts.config.training.extras
    if facts.around.output and not extras.get("resumes") and not extras.get("overwrites_output"):
        held = ", ".join(facts.around.output)
        yield Observation(f"the output folder already holds a run: {held}", {"holds": list(facts.around.output)})


RULES = (
    Rule(
        id="REC001",
        severity="warning",
        title="no training loss recorded",
        groups=("config",),
        condition="logging is off, or logging_steps is as long as the run or longer",
        observe=_no_train_loss,
        confidence=0.95,
        evidence=(NO_TRAIN_LOSS,),
        rationale="A run without a loss curve cannot be judged afterwards, or compared with the next one.",
        action="set logging_steps to a fiftieth of the steps",
        scope="trainers that log by step; a callback of your own may log besides",
        verify="the log holds train_step rows after the first fiftieth of the run",
        settings=("logging_steps", "logging_strategy"),
    ),
    Rule(
        id="REC002",
        severity="info",
        title="no held-out signal",
        groups=("config",),
        condition="eval_strategy is 'no'",
        observe=_no_evaluation,
        confidence=0.9,
        evidence=(EVAL_DEFAULT,),
        rationale="Train loss falls in a run that learns and in one that memorises.",
        action="hold out a few hundred examples and set eval_strategy='steps'",
        scope="supervised and preference runs above all; RL has its reward",
        verify="the log holds eval rows",
        settings=("eval_strategy",),
    ),
    Rule(
        id="REC003",
        severity="info",
        title="NaN losses are filtered from the log",
        groups=("config",),
        condition="logging_nan_inf_filter is on, which is the Trainer's default",
        observe=_nan_filter,
        confidence=0.95,
        evidence=(
            Evidence(
                source="huggingface/trl#6702; experiment, transformers 5.24",
                says="a non-finite loss is replaced by the running mean in the log: the log shows a healthy number",
            ),
        ),
        rationale="The curve looks healthy while the weights are already NaN; only grad_norm tells.",
        action="set logging_nan_inf_filter=False",
        scope="transformers' Trainer, where it is the default",
        verify="grad_norm in the log stays finite",
        settings=("logging_nan_inf_filter",),
    ),
    Rule(
        id="REC004",
        severity="info",
        title="no checkpoint before the end",
        groups=("config",),
        condition="saving is off, or save_steps is as long as the run or longer",
        observe=_no_checkpoint,
        confidence=0.9,
        evidence=(SAVE_FLOW,),
        rationale="Long runs die of things that have nothing to do with training.",
        action="save a few times per run",
        scope="trainers that save by step",
        verify="a checkpoint folder appears during the run",
        settings=("save_steps", "save_strategy"),
    ),
    Rule(
        id="REC005",
        severity="warning",
        title="output folder in use",
        groups=("config",),
        condition="output_dir already holds checkpoints, a log or an adapter, and nothing resumes or overwrites them",
        observe=_output_in_use,
        confidence=0.8,
        evidence=(
            Evidence(
                source="huggingface/transformers#19446; roboflow/rf-detr#1325",
                says="a second run into the same folder mixes checkpoints and logs with the first, or overwrites them",
            ),
        ),
        rationale="Two runs in one folder cannot be told apart afterwards, and one may overwrite the other.",
        action="give a new output_dir, or resume_from_checkpoint if this goes on with that run",
        scope="trainers with an output_dir; looked up from the folder in which check is run",
        verify="the folder's checkpoints and logs after the start",
        settings=("output_dir",),
    ),
)
