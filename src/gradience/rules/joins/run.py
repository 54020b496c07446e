"""What became of a run: NaN, nothing learnt, nothing saved, divergence, overfitting. Log, weights, config and disk."""

from __future__ import annotations

from typing import Final

from gradience.rules.evidence import (
    DIVERGENCE,
    EXPLODED,
    JITTER,
    MASKED,
    NAN_TRL,
    NEMOTRON,
    NOISE_SPREAD,
    ONE_ERROR,
    PRECHELT,
    SWEEP_HIGH,
    TRL_RL,
    ZERO_B,
)
from gradience.rules.joins import files as joins_files
from gradience.rules.joins.joins import Join, Leg, Wording
from gradience.rules.thresholds import EXPLODED_RMS, TIED

_NO_UPDATE: Final = frozenset({"untrained", "near_untrained"})
_VALUES_THAT_STOP: Final = frozenset({"lr", "lora_alpha", "max_steps", "epochs"})
_HIGH_RATE: Final = ("LR002", "LR003", "LR004", "LR005", "LR007")
_LOW_RATE: Final = ("LR001", "ALP002")

_NAN = Join(
    id="NUM301",
    severity="error",
    title="NaN, from the log to the weights",
    legs=(
        Leg("log", ("NUM102", "NUM101", "NUM201")),
        Leg("weights", ("NUM201",), frozenset({"broken"})),
        Leg("weights", quiet=("NUM201",), says="the weights in this file are all finite"),
    ),
    hints=(
        Leg("log", ("GRD107",)),
        Leg("config", (*_HIGH_RATE, "NUM001", "REC003")),
        Leg("disk", ("before_nan",)),
    ),
    wordings=(
        Wording(("log", "weights"), "NaN, masked in the log from step {first_step} on, is in the weights: {lost}."),
        Wording(("log", "weights"), "NaN in the log is in the weights too: {lost}."),
        Wording(
            ("log", "weights"),
            "Numbers in the log are not finite; the weights in this file are finite: it passed, or the file is older.",
            action="One gradient alone is skipped by fp16's loss scaling; else see of which step these weights are.",
        ),
        Wording(("log",), "NaN in the log, masked from step {first_step} on; there are no weights to confirm it."),
        Wording(("log",), "Numbers in the log are not finite; there are no weights to say whether it lasted."),
    ),
    confidence=0.97,
    evidence=(MASKED, NAN_TRL),
    rationale="The Hugging Face Trainer averages non-finite losses away by default, so that a broken run looks "
    "healthy; once a NaN is in the weights, every later step is lost.",
    action="Go back to a checkpoint before it; look at the learning rate, the precision and the data of that step.",
    scope="any run; one non-finite gradient alone is skipped by fp16's loss scaling",
    verify="Audit that checkpoint: its weights are finite or they are not.",
)
_UNTRAINED = Join(
    id="TRN302",
    severity="error",
    title="an adapter that was not trained",
    legs=(
        Leg("config", ("VAL001",), _VALUES_THAT_STOP),
        Leg("config", ("TGT002",), frozenset({"error"})),  # it reaches nothing
        Leg("log", ("NOL106",)),
        Leg("log", ("GRD108",), frozenset({"warning"})),  # info: there is nothing left to learn
        Leg("log", ("LRS109",), frozenset({"rows"})),
        Leg("weights", ("TRN202",), _NO_UPDATE),
    ),
    hints=(
        Leg("log", ("TRN202", "PLT105", "CHN112")),
        Leg("config", (*_LOW_RATE, "STP001", "SCH002", "TGT002", "TGT003")),
        Leg("weights", ("SCL208",)),
        Leg("config", ("idle_targets",)),
    ),
    wordings=(
        Wording(("config", "weights"), "The adapter was not trained, and the configuration says why: {stops}."),
        Wording(("log", "weights"), "The adapter was not trained: {rate_zero}, and {zero}."),
        Wording(("log", "weights"), "The adapter was not trained: nothing was learnt in the log, and {zero}."),
        Wording(("config", "log"), "Nothing was learnt in the log, and the configuration says why: {stops}."),
        Wording(("log",), "Nothing was learnt, as far as the log shows."),
    ),
    confidence=0.95,
    evidence=(ZERO_B, NEMOTRON),
    rationale="B starts at zero: an update of exactly zero is what was there before the first step.",
    action="Check that the adapter's parameters require gradients and reach the optimizer, what target_modules hit, "
    "and the learning rate.",
    scope="LoRA that starts at B = 0, which is PEFT's default",
    verify="model.print_trainable_parameters(); then overfit 32 examples on purpose.",
)
_NOT_SAVED = Join(
    id="SAV303",
    severity="error",
    title="the log learnt, the file did not",
    legs=(
        Leg("log", quiet=("NOL106", "GRD108"), says="the loss falls and gradients flow"),
        Leg("weights", ("TRN202",), frozenset({"untrained"})),
    ),
    hints=(Leg("log", ("TRN202",)), Leg("weights", ("LED205",))),
    wordings=(Wording(("log", "weights"), "The loss fell, yet {zero}: what was trained is not in this file."),),
    confidence=0.85,
    evidence=(ZERO_B,),
    rationale="Either another part was trained (a classifier head), or a fresh adapter was saved in its place.",
    action="Look at what was saved and when; see which parameters required gradients.",
    scope="LoRA that starts at B = 0; logs of at least 30 rows",
    verify="Load the adapter and evaluate it: the held-out loss of the log comes back or it does not.",
)
_DIVERGED = Join(
    id="DIV305",
    severity="error",
    title="divergence, and what else shows it",
    legs=(
        Leg("log", ("DIV104",)),
        Leg("log", ("GRD107",), frozenset({"warning"})),  # info: one burst, or clipping
        Leg("weights", ("exploded",)),
        Leg("config", _HIGH_RATE),
        Leg("disk", ("lowest",)),
    ),
    hints=(Leg("log", ("DIV103", "NOL106")), Leg("config", ("SCH001", "ALP001"))),
    wordings=(
        Wording(("log", "weights"), "The run diverged around step {lowest_step}, and the weights show it: {exploded}."),
        Wording(("log", "weights"), "Gradients explode, and the weights show it: {exploded}."),
        Wording(
            ("log", "config"), "The run diverged around step {lowest_step}; by its configuration the rate is high."
        ),
        Wording(("log", "config"), "Gradients explode; by the configuration the learning rate is high."),
        Wording(("log", "disk"), "The run diverged around step {lowest_step}; a checkpoint from there is on disk."),
        Wording(("log",), "The run diverged around step {lowest_step}."),
    ),
    confidence=0.9,
    evidence=(DIVERGENCE, SWEEP_HIGH, EXPLODED),
    rationale="Steps that are too long grow the update faster than the loss can correct it.",
    action="Go back to the checkpoint nearest the lowest loss; lower the learning rate or lengthen warmup.",
    scope="positive losses; the size of the update counts only where the log diverged too",
    verify="The same run with a third of the learning rate: its loss stays down or it does not.",
    thresholds=(EXPLODED_RMS,),
)
_OVERFIT = Join(
    id="OVF304",
    severity="warning",
    title="overfitting, and the checkpoint to keep",
    legs=(Leg("log", ("OVF110",)), Leg("disk", ("best_checkpoint",)), Leg("disk", ("no_checkpoint",))),
    hints=(Leg("log", ("GAP111", "MEM127")), Leg("config", ("EPO001", "REC004"))),
    wordings=(
        Wording(
            ("log", "disk"),
            "Overfits after step {best_step}; the weights here are those of {saved_as}, the best checkpoint on disk.",
            action="Keep these weights; next time stop earlier.",
            severity="info",
        ),
        Wording(("log", "disk"), "Overfits after step {best_step}; the best checkpoint on disk is {checkpoint}."),
        Wording(("log", "disk"), "Overfits after step {best_step}, and no checkpoint from about there is on disk."),
    ),
    confidence=0.85,
    evidence=(PRECHELT, ONE_ERROR, JITTER, NOISE_SPREAD),
    rationale="From that step on the run fitted its training data at the cost of held-out data.",
    action="Keep a checkpoint near the best held-out loss; fewer epochs or more data come before less rank.",
    scope="held-out losses of one data set, checkpoints that were evaluated",
    verify="Compare the task metric of that checkpoint with that of the last.",
    thresholds=(TIED,),
    least=1,
)
_REWARD = Join(
    id="RWD315",
    severity="warning",
    title="a reward that falls, and what else shows it",
    legs=(Leg("log", ("RWD122",)), Leg("config", ("LR004",)), Leg("disk", ("best_reward",))),
    hints=(Leg("log", ("KLD124", "ZVR123", "CLP125")),),
    wordings=(
        Wording(("log", "config"), "The reward fell; by the configuration the rate is high for this objective."),
        Wording(("log", "disk"), "The reward fell; a checkpoint from around its best is on disk."),
        Wording(("log",), "The reward fell, and the log shows more of it."),
    ),
    confidence=0.65,
    evidence=(TRL_RL,),
    rationale="A policy that moves too fast leaves what its reward was good for.",
    action="Go back to the checkpoint nearest the best reward; lower the learning rate or raise beta.",
    scope="reinforcement learning that logs its reward",
    verify="Judge completions of both checkpoints by hand: a reward can also be gamed while it rises.",
)

JOINS: Final[tuple[Join, ...]] = (_NAN, _DIVERGED, _UNTRAINED, _NOT_SAVED, _OVERFIT, _REWARD)


ALL_JOINS: Final[tuple[Join, ...]] = JOINS + joins_files.JOINS
