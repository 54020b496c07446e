"""Correlations on how a run ended: NaN, nothing learnt, nothing saved, divergence, overfitting, a falling reward.

`JOINS` is the table of all correlations, with those on files at its end. Its order matters: a finding belongs to the
first cause that it fits.
"""

from __future__ import annotations

from typing import Final

from gradience.rules import (
    ALL_MASKED,
    DIVERGENCE,
    MASKED,
    NAN_TRL,
    NEMOTRON,
    PRECHELT,
    SAVE_FLOW,
    SWEEP_HIGH,
    TRL_RL,
    Threshold,
    cite,
    joins,
)
from gradience.rules.joins import Correlation, Message, Needs
from gradience.rules.joins.symptoms import EXPLODED_RMS, FEW_LAYERS, MANY_LAYERS, OUTGROWN
from gradience.rules.weights import TINY_RMS

TIED = Threshold("tied", 1.0, "noise of one evaluation", "one-standard-error rule, Breiman et al., CART, 1984")
MID_RUN = Threshold(
    "mid_run", 0.9, "step of the weights over the last step logged", "arithmetic: 1 % of a decay is left"
)
SIZES = cite("heuristic; adapters at hand", "an update's entries are 1e-4 to 3e-3 in size in trained adapters")
ZERO_B = cite("LoRA, arXiv 2106.09685; PEFT's default", "B starts at zero: before a step s B A is zero")

JOINS: Final[tuple[Correlation, ...]] = (
    Correlation(
        "DAT330",
        severity="critical",
        title="no token supervised, and what follows from it",
        needs=(
            Needs("log", ("all_masked",)),
            Needs("log", ("loss_of_nothing",)),
            Needs("weights", ("not_finite", "zero_update")),
        ),
        messages=(
            Message(("log", "weights"), "No token was supervised ({masked}), and the weights show it."),
            Message(("log", "weights"), "No token was supervised in any batch that was seen, and the weights show it."),
        ),
        seen=(
            cite("https://github.com/huggingface/trl/issues/6668", "every label is masked, and the log says loss 0.0"),
        ),
        confidence=0.97,
        evidence=(ALL_MASKED,),
        rationale="Without a supervised token there is no gradient, or one of 0 / 0: the adapter stays as it began, or "
        "becomes NaN.",
        action="Look at the labels of a batch; then at the chat template, the columns and the loss mode.",
        scope="runs whose recorder saw batches with labels of tokens",
        verify="The share of labels that are not -100 in a batch of the trainer.",
    ),
    Correlation(
        "NUM301",
        severity="error",
        title="NaN, from the log to the weights",
        needs=(
            Needs("log", ("not_finite",)),
            Needs("weights", ("lost_weights",)),
            Needs("weights", silent=("not_finite",), says="the weights in this file are all finite"),
        ),
        hints=(
            Needs("log", ("large_gradients",)),
            Needs("config", ("high_rate", "half_precision")),
            Needs("weights", ("half_precision",)),
            Needs("disk", ("before_nan",)),
        ),
        messages=(
            Message(("log", "weights"), "NaN, masked in the log from step {first_step} on, is in the weights: {lost}."),
            Message(("log", "weights"), "NaN in the log is in the weights too: {lost}."),
            Message(
                ("log", "weights"),
                "Numbers in the log are not finite; the weights in this file are finite: the fault passed, or the file "
                "is older.",
                action="A single such gradient is skipped by fp16's loss scaling; else see which step these weights "
                "are from.",
            ),
            Message(("log",), "NaN in the log, masked from step {first_step} on; there are no weights to confirm it."),
            Message(("log",), "Numbers in the log are not finite; there are no weights to show whether it lasted."),
        ),
        seen=(
            cite(
                "https://github.com/huggingface/trl/issues/6702",
                "a step of NaN corrupts the weights, and the curve is clean",
            ),
        ),
        confidence=0.97,
        evidence=(MASKED, NAN_TRL),
        rationale="The Hugging Face Trainer averages non-finite losses away by default, so that a broken run looks "
        "healthy; once a NaN is in the weights, every later step is lost.",
        action="Go back to a checkpoint before it; look at the learning rate, the precision and the data of that step.",
        scope="any run; one non-finite gradient alone is skipped by fp16's loss scaling",
        verify="Audit that checkpoint: are its weights finite?",
    ),
    Correlation(
        "DIV305",
        severity="error",
        title="divergence, and what else shows it",
        needs=(
            Needs("log", ("diverged",)),
            Needs("log", ("exploding_gradients",)),
            Needs("weights", ("exploded",)),
            Needs("config", ("high_rate",)),
            Needs("disk", ("lowest",)),
        ),
        hints=(
            Needs("log", ("spike", "no_learning", "oversized", "summed_rates")),
            Needs("config", ("warmup_ignored",)),
            Needs("weights", ("oversized", "outgrown")),
        ),
        messages=(
            Message(
                ("log", "weights"), "The run diverged around step {lowest_step}, and the weights show it: {exploded}."
            ),
            Message(("log", "weights"), "Gradients explode, and the weights show it: {exploded}."),
            Message(
                ("log", "config"), "The run diverged around step {lowest_step}; the configured learning rate is high."
            ),
            Message(("log", "config"), "Gradients explode; the configured learning rate is high."),
            Message(("log", "disk"), "The run diverged around step {lowest_step}; a checkpoint from there is on disk."),
            Message(("log",), "The run diverged around step {lowest_step}."),
        ),
        seen=(cite("https://github.com/paiml/aprender/pull/2258", "loss 4.31, 1.44, then 7.08, 15.06, 16.02"),),
        confidence=0.9,
        evidence=(DIVERGENCE, SWEEP_HIGH, SIZES),
        rationale="Steps that are too large grow the update faster than the loss can correct it.",
        action="Lower the learning rate or lengthen warmup; go back to a checkpoint from before it, if one was kept.",
        scope="positive losses; the size of the update counts only where the log diverged too",
        verify="Repeat the run at a third of the learning rate: does its loss stay down?",
        thresholds=(EXPLODED_RMS,),
    ),
    Correlation(
        "TRN302",
        severity="error",
        title="an adapter that was not trained",
        needs=(
            Needs("config", ("stops",)),
            Needs("log", ("no_learning",)),
            Needs("log", ("no_gradient",)),
            Needs("log", ("rate_zero",)),
            Needs("weights", ("no_update",)),
        ),
        hints=(
            Needs("log", ("zero_update", "plateau", "at_chance")),
            Needs("config", ("low_rate", "few_steps", "long_warmup", "missed_targets", "default_targets")),
            Needs("config", ("idle_targets",)),
        ),
        messages=(
            Message(("config", "weights"), "The adapter was not trained, and the configuration says why: {stops}."),
            Message(("log", "weights"), "The adapter was not trained: {rate_zero}, and {zero}."),
            Message(("log", "weights"), "The adapter was not trained: nothing was learnt in the log, and {zero}."),
            Message(("config", "log"), "Nothing was learnt in the log, and the configuration says why: {stops}."),
            Message(("log",), "Nothing was learnt, as far as the log shows: {not_learnt}."),
        ),
        seen=(cite("public repositories", "runs that did not learn beside adapters whose B is 0"),),
        confidence=0.95,
        evidence=(ZERO_B, NEMOTRON),
        rationale="B starts at zero: an update of exactly zero is what was there before the first step.",
        action="Check that the adapter's parameters require gradients and reach the optimizer, what target_modules "
        "hit, and the learning rate.",
        scope="LoRA that starts at B = 0, which is PEFT's default",
        verify="model.print_trainable_parameters(); then overfit 32 examples on purpose.",
    ),
    Correlation(
        "SAV303",
        severity="error",
        title="the run learnt, but the file holds no update",
        needs=(
            Needs("log", silent=("no_learning", "vanished_gradient"), says="the loss falls and gradients flow"),
            Needs("weights", ("untrained",)),
        ),
        hints=(Needs("log", ("zero_update",)),),
        messages=(Message(("log", "weights"), "The loss fell, yet {zero}: what was trained is not in this file."),),
        seen=(
            cite(
                "https://github.com/huggingface/trl/issues/742",
                "DPO trains and saves, and the saved weights are not the trained ones",
            ),
        ),
        confidence=0.85,
        evidence=(ZERO_B,),
        rationale="Either another part was trained (a classifier head), or a fresh adapter was saved in its place.",
        action="Look at what was saved and when; see which parameters required gradients.",
        scope="LoRA that starts at B = 0; logs of at least 30 rows",
        verify="Load the adapter and evaluate it: is the held-out loss that of the log?",
    ),
    Correlation(
        "OVF304",
        severity="warning",
        title="overfitting, and the checkpoint to keep",
        needs=(Needs("log", ("overfits",)), Needs("disk", ("best_checkpoint", "no_checkpoint", "restored"))),
        hints=(Needs("log", ("gap", "memorizes")), Needs("config", ("many_passes", "saved_once"))),
        messages=(
            Message(
                ("log", "disk"),
                "Worse held out from step {from_step} on; the weights here are those of {saved_as}, the best on disk.",
                action="Keep these weights; next time stop earlier.",
                severity="info",
            ),
            Message(
                ("log", "disk"),
                "Worse held out from step {from_step} on; its best checkpoint, of step {restored}, was restored.",
                action="Keep the weights saved at the end; next time stop earlier.",
                severity="info",
            ),
            Message(("log", "disk"), "Worse held out from step {from_step} on; the best on disk is {checkpoint}."),
            Message(
                ("log", "disk"),
                "Worse held out from step {from_step} on, and no checkpoint of this run from about there can be kept.",
            ),
        ),
        seen=(
            cite(
                "https://github.com/aigoncharov/trainer_state_viz", "held-out losses best after the first of 30 epochs"
            ),
        ),
        confidence=0.85,
        evidence=(
            PRECHELT,
            cite(
                "one-standard-error rule, Breiman et al., Classification and Regression Trees, 1984",
                "results within one standard error of the best cannot be told from it",
            ),
            cite(
                "heuristic",
                "evaluations on one set share its examples, so the noise between them is estimated from second "
                "differences of their losses, not from the sampling error of the examples",
            ),
            cite(
                "heuristic",
                "the standard deviation of the per-example losses is not logged: it is taken as their mean, or, with "
                "an accuracy p, as sqrt(p / (1 - p)) times their mean if that is more",
            ),
        ),
        rationale="From that step on the run fitted its training data at the cost of held-out data.",
        action="Next time stop earlier; try fewer epochs or more data.",
        scope="held-out losses of one data set, checkpoints that were evaluated",
        verify="Compare the task metric of that checkpoint with that of the last.",
        thresholds=(TIED,),
    ),
    Correlation(
        "RWD315",
        severity="warning",
        title="a reward that falls, and what else shows it",
        needs=(
            Needs("log", ("reward_fell",)),
            Needs("config", ("high_rate_for_preferences",)),
            Needs("disk", ("best_reward",)),
        ),
        hints=(Needs("log", ("far_from_reference", "equal_rewards", "cut_completions")),),
        messages=(
            Message(("log", "config"), "The reward fell; the configured learning rate is high for this objective."),
            Message(("log", "disk"), "The reward fell; a checkpoint from around its best is on disk."),
            Message(("log",), "The reward fell, and the log shows further signs of it."),
        ),
        seen=(
            cite(
                "https://github.com/huggingface/open-r1/issues/257",
                "the reward rises, is 0 at the end, and the KL is large",
            ),
        ),
        confidence=0.65,
        evidence=(TRL_RL,),
        rationale="A policy that moves too fast leaves the region where its reward is reliable.",
        action="Go back to the checkpoint nearest the best reward; lower the learning rate or raise beta.",
        scope="reinforcement learning that logs its reward",
        verify="Judge completions of both checkpoints by hand: a reward can also be gamed while it rises.",
    ),
    Correlation(
        "UPD316",
        severity="warning",
        title="an update that is huge or almost zero",
        needs=(Needs("weights", ("exploded", "tiny")),),
        hints=(Needs("weights", ("oversized", "outgrown")), Needs("log", ("oversized", "summed_rates"))),
        messages=(
            Message(
                ("weights",),
                "The update is huge, and lora_B is {times:.2g} times as far from 0 as all steps of this log could move "
                "it: {exploded}.",
            ),
            Message(("weights",), "The update is huge: {exploded}."),
            Message(("weights",), "The update is almost zero: {tiny}."),
        ),
        seen=(cite("public repositories", "updates of almost nothing"),),
        confidence=0.7,
        evidence=(SIZES,),
        rationale="A huge update overwrites what the base knows; one that is almost zero changes next to nothing.",
        action="Compare held-out results with and without the adapter; see the learning rate and the number of steps.",
        scope="LoRA that starts at B = 0; sizes hold for language models of 0.1B to 10B parameters",
        verify="gradience audit --base: the norm of the update over that of the base weights.",
        thresholds=(EXPLODED_RMS, TINY_RMS),
        least=1,
    ),
    Correlation(
        "SIZ331",
        severity="warning",
        title="factors that moved further than their learning rates allow",
        needs=(Needs("log", ("summed_rates",)), Needs("weights", ("outgrown",))),
        hints=(Needs("weights", ("oversized",)), Needs("log", ("oversized",))),
        messages=(
            Message(
                ("log", "weights"),
                "Entries of lora_B began at 0 and are at {moved:.2g}, {times:.2g} times as far as all steps of this "
                "log could move them ({logged:.2g}).",
            ),
        ),
        confidence=0.8,
        evidence=(
            cite("arithmetic", "a step of Adam or Lion moves an entry by its learning rate: their sum bounds it"),
            cite("Adam, arXiv 1412.6980, section 2.1", "a step moves an entry by about the learning rate at most"),
            cite("Lion, arXiv 2302.06675", "each step is the learning rate times a sign"),
        ),
        rationale="Either a higher rate was used than was logged (one of lora_B's own, as in LoRA+, too), or the run "
        "began from an adapter, or the weights were multiplied later, or log and weights are of two runs.",
        action="See what the run began from and whether this is its log; compare held-out results with the base's.",
        scope="LoRA whose lora_B begins at zero, trained by Adam or Lion. Other optimizers (SGD, Muon, Adafactor) are "
        "not judged, nor several rates that the log names. In a long run a tenfold update may stay below the sum",
        verify="The root mean square of lora_B's entries at the first checkpoint: there it is at most steps x rate.",
        thresholds=(OUTGROWN,),
    ),
    Correlation(
        "LYR317",
        severity="info",
        title="few layers reached",
        needs=(Needs("weights", ("few_layers",)),),
        messages=(Message(("weights",), "{few}."),),
        seen=(cite("https://github.com/huggingface/peft/issues/3554", "default targets hit 4 of 56 layers"),),
        confidence=0.6,
        evidence=(NEMOTRON,),
        rationale="target_modules or layers_to_transform that miss most layers train less than was meant.",
        action="Check target_modules and layers_to_transform if more was meant; gradience check --base counts them.",
        scope="adapters whose module names have the number of the layer; a base may have more layers than seen here",
        verify="model.print_trainable_parameters(), and the list of adapted modules.",
        thresholds=(FEW_LAYERS, MANY_LAYERS),
        least=1,
    ),
    Correlation(
        "MID318",
        severity="warning",
        title="weights from mid-run",
        needs=(Needs("disk", ("mid_run",)),),
        messages=(
            Message(("disk",), "These weights are those of step {weights_step}, and the log reaches step {last_step}."),
        ),
        confidence=0.8,
        evidence=(
            cite(
                "transformers/trainer_callback.py:DefaultFlowCallback@5.24.0",
                "saves every save_steps: a folder may be of any step",
            ),
            SAVE_FLOW,
        ),
        rationale="What was learnt later is not in this file.",
        action="Save the model at the end of training, or take the last checkpoint, unless this step was chosen.",
        scope="checkpoints named checkpoint-N; the best checkpoint on disk is meant, and not reported",
        verify="Compare the file with that of the last checkpoint.",
        thresholds=(MID_RUN,),
        least=1,
    ),
    *joins.JOINS,
)
