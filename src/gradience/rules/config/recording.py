"""What the run will leave behind to judge it by."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradience.rules.config.facts import Facts, given
from gradience.rules.config.hits import Hit, Rule
from gradience.rules.evidence import EVAL_DEFAULT, NAN_FILTER, NO_TRAIN_LOSS, OUTPUT_REUSED, SAVE_FLOW
from gradience.rules.rule import Unknown


def _no_train_loss(facts: Facts) -> Iterator[Hit]:
    every = facts.logged_every
    if math.isinf(every):
        yield Hit("logging is off: no training loss will be recorded", {"logging_strategy": "no"})
        return
    steps = facts.steps
    if every >= steps:
        rows = "one row" if every == steps else "no row"
        yield Hit(
            f"logging_steps {every:g} against {steps} steps: {rows} of training loss will be recorded",
            {"logging_steps": every, "steps": steps},
            action=f"set logging_steps to {max(1, steps // 50)}",
        )


def _no_evaluation(facts: Facts) -> Iterator[Hit]:
    if given(facts.config.training.eval_strategy, "eval_strategy") == "no":
        yield Hit("evaluation is off: overfitting cannot be seen", {"eval_strategy": "no"})


def _nan_filter(facts: Facts) -> Iterator[Hit]:
    if given(facts.config.training.logging_nan_inf_filter, "logging_nan_inf_filter"):
        yield Hit("a NaN loss will be averaged away in the log", {"logging_nan_inf_filter": True})


def _no_checkpoint(facts: Facts) -> Iterator[Hit]:
    every = facts.saved_every
    if math.isinf(every):
        yield Hit("saving is off: a crash leaves nothing on disk", {"save_strategy": "no"})
        return
    steps = facts.steps
    if every >= steps:
        yield Hit(
            f"save_steps {every:g} against {steps} steps: a crash before the end leaves nothing on disk",
            {"save_steps": every, "steps": steps},
        )


def _output_in_use(facts: Facts) -> Iterator[Hit]:
    if facts.around.output is None:
        raise Unknown(facts.around.no_output)
    extras = facts.config.training.extras
    if facts.around.output and not extras.get("resumes") and not extras.get("overwrites_output"):
        held = ", ".join(facts.around.output)
        yield Hit(f"the output folder already holds a run: {held}", {"holds": list(facts.around.output)})


RULES = (
    Rule(
        id="REC001",
        severity="warning",
        title="no training loss recorded",
        condition=_no_train_loss,
        confidence=0.95,
        evidence=(NO_TRAIN_LOSS,),
        rationale="A run without a loss curve cannot be judged afterwards, or compared with the next one.",
        action="set logging_steps to a fiftieth of the steps",
        scope="trainers that log by step; a callback of your own may log besides",
        verify="the log holds train_step rows after the first fiftieth of the run",
        about_lora=False,
    ),
    Rule(
        id="REC002",
        severity="info",
        title="no held-out signal",
        condition=_no_evaluation,
        confidence=0.9,
        evidence=(EVAL_DEFAULT,),
        rationale="Train loss falls in a run that learns and in one that memorises.",
        action="hold out a few hundred examples and set eval_strategy='steps'",
        scope="supervised and preference runs above all; RL has its reward",
        verify="the log holds eval rows",
        about_lora=False,
    ),
    Rule(
        id="REC003",
        severity="info",
        title="NaN losses are filtered from the log",
        condition=_nan_filter,
        confidence=0.95,
        evidence=(NAN_FILTER,),
        rationale="The curve looks healthy while the weights are already NaN; only grad_norm tells.",
        action="set logging_nan_inf_filter=False",
        scope="transformers' Trainer, where it is the default",
        verify="grad_norm in the log stays finite",
        about_lora=False,
    ),
    Rule(
        id="REC004",
        severity="info",
        title="no checkpoint before the end",
        condition=_no_checkpoint,
        confidence=0.9,
        evidence=(SAVE_FLOW,),
        rationale="Long runs die of things that have nothing to do with training.",
        action="save a few times per run",
        scope="trainers that save by step",
        verify="a checkpoint folder appears during the run",
        about_lora=False,
    ),
    Rule(
        id="REC005",
        severity="warning",
        title="output folder in use",
        condition=_output_in_use,
        confidence=0.8,
        evidence=(OUTPUT_REUSED,),
        rationale="Two runs in one folder cannot be told apart afterwards, and one may overwrite the other.",
        action="give a new output_dir, or resume_from_checkpoint if this goes on with that run",
        scope="trainers with an output_dir; looked up from the folder in which check is run",
        verify="the folder's checkpoints and logs after the start",
        about_lora=False,
    ),
)
