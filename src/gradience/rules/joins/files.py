"""Correlations on the files of a run: whether they are of one run and whole, what was not recorded, what is wasted."""

from __future__ import annotations

from typing import Final

from gradience.rules import (
    CLASSIFIER_DOCS,
    EVAL_DEFAULT,
    LOGGING_DEFAULT,
    NEMOTRON,
    NO_TRAIN_LOSS,
    SAVE_FLOW,
    UTILIZATION,
    cite,
)
from gradience.rules.joins import Correlation, Message, Needs

JOINS: Final[tuple[Correlation, ...]] = (
    Correlation(
        id="CFG306",
        severity="warning",
        title="configuration and adapter of different runs",
        needs=(Needs("config", ("other_config",)), Needs("log", ("other_log",)), Needs("weights", ("other_adapter",))),
        hints=(Needs("weights", ("SCL206",)),),
        messages=(
            Message(("config", "weights"), "The configuration is not that of this adapter: {differs}."),
            Message(("log", "weights"), "The log is not of this adapter: {differs}."),
        ),
        confidence=0.85,
        evidence=(cite("the weights file", "rank and names of the modules are those of the factors stored"),),
        rationale="Findings that join files of two runs explain neither.",
        action="Give the sources of one run with --run, --adapter and --config; else see what was saved over what.",
        scope="plain LoRA; ranks that a conversion doubles (PiSSA and its kin) are left out",
        verify="Load the adapter with PEFT and print its config.",
    ),
    Correlation(
        id="HED308",
        severity="warning",
        title="a classifier head that is not in the file",
        needs=(Needs("config", ("TGT004",)), Needs("weights", ("no_head",))),
        hints=(Needs("log", ("CHN112",)),),
        messages=(
            Message(
                ("config", "weights"),
                "The classifier head was not saved: the config leaves it out, and so does the file.",
            ),
        ),
        confidence=0.9,
        evidence=(CLASSIFIER_DOCS,),
        rationale="The reloaded model gets a fresh random head and predicts at chance.",
        action="Set task_type='SEQ_CLS' (or TOKEN_CLS), or name the head in modules_to_save, and train again.",
        scope="classification with PEFT",
        verify="Reload the adapter on the base model and evaluate it.",
    ),
    Correlation(
        id="RND309",
        severity="warning",
        title="weights that look like an initialisation",
        needs=(
            Needs("weights", ("RND203",)),
            Needs("log", ("NOL106", "GRD108")),
            Needs("log", silent=("NOL106",), says="the loss falls"),
        ),
        hints=(Needs("log", ("RND203",)),),
        messages=(
            Message(("log", "weights"), "The weights look like random factors; compare that with what this log shows."),
        ),
        confidence=0.6,
        rationale="The spectrum of a trained update is seldom as flat as that of random factors: if the loss fell, "
        "this may be another file; if not, an initialisation.",
        action="Check that this is the trained adapter of this run.",
        scope="LoRA of rank 4 and more",
        verify="Load the adapter and compare its held-out loss with that of the log.",
    ),
    Correlation(
        id="TGT307",
        severity="info",
        title="targets without a module",
        needs=(Needs("config", ("idle_targets",)), Needs("weights", ("adapted",))),
        messages=(
            Message(("config", "weights"), "target_modules names {idle}, and nothing of that name was adapted."),
        ),
        confidence=0.7,
        evidence=(
            cite(
                "PEFT, tuners_utils (0.21)", "target_modules that match nothing raise only where none of them matches"
            ),
            NEMOTRON,
        ),
        rationale="PEFT passes over a name that matches no module, as long as another matches one.",
        action="Correct the name if those modules were meant; see model.named_modules().",
        scope="target_modules as a list of names; LoRA",
        verify="model.print_trainable_parameters(), and the list of adapted modules.",
    ),
    Correlation(
        id="END312",
        severity="warning",
        title="a run that was cut off",
        needs=(
            Needs("log", ("END114",)),
            Needs("weights", ("NUM209",)),
            Needs("config", ("REC004",)),
            Needs("disk", ("short_of_the_end",)),
        ),
        hints=(Needs("log", ("TRN115",)),),
        messages=(
            Message(("log", "weights"), "The run was cut off, and the adapter's file is incomplete."),
            Message(("log", "disk"), "The log stops without run_end; these weights are from step {weights_step}."),
            Message(
                ("log", "config"), "The log stops without run_end, and no checkpoint was to be written before that."
            ),
            Message(("log",), "The log stops without run_end, and lines of it are damaged: a crash or a kill."),
        ),
        confidence=0.8,
        evidence=(SAVE_FLOW,),
        rationale="What is on disk is then older than the last row, or was written in part.",
        action="Resume from the last whole checkpoint, and save a few times a run.",
        scope="logs of our recorder; a run that still goes on looks the same",
        verify="See whether the process still runs.",
    ),
    Correlation(
        id="REC310",
        severity="warning",
        title="nothing was logged, as configured",
        needs=(Needs("config", ("REC001",)), Needs("log", ("GAP118",), frozenset({"few_rows"}))),
        hints=(Needs("config", ("REC002",)),),
        messages=(Message(("config", "log"), "The log holds {rows} training rows because logging_steps is so large."),),
        confidence=0.95,
        evidence=(NO_TRAIN_LOSS, LOGGING_DEFAULT),
        rationale="Without rows no curve can be judged: what is not found below was not looked for.",
        action="Set logging_steps to a fiftieth of the steps.",
        scope="the Hugging Face Trainer",
        verify="The next log has 50 rows.",
    ),
    Correlation(
        id="REC311",
        severity="info",
        title="no held-out signal, as configured",
        needs=(Needs("config", ("REC002",)), Needs("log", ("GAP118",), frozenset({"no_evals"}))),
        messages=(
            Message(
                ("config", "log"), "Nothing held-out was measured, as configured: overfitting could not be judged."
            ),
        ),
        confidence=0.95,
        evidence=(EVAL_DEFAULT,),
        rationale="Training loss falls in a run that memorizes as in one that learns.",
        action="Give an eval set and eval_strategy='steps'.",
        scope="any run",
        verify="The next log has evaluations.",
    ),
    Correlation(
        id="UTL313",
        severity="info",
        title="low utilization, recorded and in the file",
        needs=(Needs("log", ("UTL204",)), Needs("weights", ("UTL204",))),
        hints=(Needs("log", ("CMP213",)),),
        messages=(
            Message(
                ("log", "weights"),
                "Utilization is low in the metrics recorded and in the file: {utilization_mean:.1%}.",
            ),
        ),
        confidence=0.5,
        evidence=(UTILIZATION,),
        rationale="Two measurements of one update agree; a low value is normal at r >= 16, and describes these weights "
        "only.",
        action="Consider compressing it after training: gradience resize --calibrate measures what that changes.",
        scope="trained LoRA adapters",
        verify="Evaluate the compressed adapter on held-out data.",
    ),
    Correlation(
        id="SCL314",
        severity="info",
        title="a small scaling, in config and file",
        needs=(Needs("config", ("ALP002", "LR001")), Needs("weights", ("SCL208",))),
        messages=(
            Message(("config", "weights"), "The update is scaled down: lora_alpha is 8 at r={r}, at a low rate."),
        ),
        confidence=0.6,
        rationale="alpha / r shrinks as r grows: the default of 8 at a high rank learns slowly.",
        action="Set lora_alpha on purpose: r, or 2 r.",
        scope="plain LoRA",
        verify="The same run with alpha = r: compare training loss after 100 steps.",
    ),
)
