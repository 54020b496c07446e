"""RES224, EVL225 and REP229: a resume that began anew, and losses that do not see what is trained."""

from __future__ import annotations

from typing import Final

from gradience.rules import Observation, Threshold, Unknown, premise
from gradience.rules.log.divergence import DIVERGED_NOISE, STILL_BOUND
from gradience.rules.log.facts import LogRule, RunFacts, not_under, seen, shown
from gradience.rules.log.preference import FEW_ROWS
from gradience.rules.log.statistics import median, median_error, noise

BACK = Threshold("back", 0.8, "of what the loss had lost, that it is back up", "165 logs: no change from 0.2 to 0.88")
SAME_EVALS = Threshold("same_evals", 4, "evaluations in a row", "74 trainings: no change from 3 to 4")
RECURRING_ROWS = Threshold("recurring_rows", 8, "rows of a pass", "a judgement: chance repeats no eight losses")
_DECIMALS: Final = 4


@premise("the run was resumed")
def _was_resumed(facts: RunFacts) -> str | None:
    record = facts.run.record
    stated = facts.config.training.extras.get("resumes")
    wired = any(wiring.phase == "resume" for wiring in facts.run.wirings)
    return None if stated or record.resumed_from or wired else "nothing says that the run was resumed"


@LogRule(
    "RES224",
    severity="error",
    confidence=0.85,
    needs=(_was_resumed,),
    place="broken",
    phrase=lambda v: f"began anew at its resume, at step {shown(v, 'step', 'd')}",
    thresholds=(BACK, STILL_BOUND, DIVERGED_NOISE, FEW_ROWS),
)
def _began_anew(facts: RunFacts) -> Observation | None:
    """a loss that is back at its start after a resume

    the median of {few_rows} rows is up again at once by {back} of what the loss had lost since its first {few_rows}
    rows, and above these by no more than the rest of it; it had lost over {still_bound} of them and {diverged_noise}
    standard errors

    Why: What was learnt before the resume is lost: the adapter was not loaded, or another one was.
    Scope: runs whose settings or log say that they were resumed
    Action: Load the adapter of the checkpoint before training (PeftModel.from_pretrained(base, checkpoint,
        is_trainable=True)), or start from the last checkpoint with trainer.train(resume_from_checkpoint=...).
    Verify: The sum of the absolute values of lora_B before the first step after the resume.
    Seen: https://github.com/huggingface/diffusers/issues/12689 -- after a resume training starts from the untrained
        adapter
    """
    losses, rows = facts.loss.values, facts.loss.rows
    few = int(FEW_ROWS.value)
    if len(losses) < 3 * few:
        raise Unknown(f"{len(losses)} rows with a training loss; it needs {3 * few}")
    start = median(losses[:few])
    least = max(STILL_BOUND.value * start, DIVERGED_NOISE.value * median_error(noise(losses), few, few))
    for at in range(2 * few, len(losses) - few + 1):
        before, after = median(losses[at - few : at]), median(losses[at : at + few])
        fall = start - before
        up = min(losses[at], after) - max(before, losses[at - 1])  # from one row to the next, which is the resume's
        if fall <= least or up < BACK.value * fall or after - start > (1.0 - BACK.value) * fall:
            continue
        step = facts.step(rows[at])
        return Observation(
            f"At step {step} the loss is back at {after:.4g}, where the run began ({start:.4g}), from {before:.4g} "
            "just before: the resume started from an untrained adapter, not from what was saved.",
            {"step": step, "before": before, "after": after, "start": start},
            evidence=seen(f"loss {before:.4g} before step {step}, {after:.4g} from it on"),
        )
    return None


@LogRule(
    "EVL225",
    severity="warning",
    confidence=0.85,
    place="later",
    phrase=lambda v: f"held-out loss is the same to the last digit in {shown(v, 'evaluations', 'd')} evaluations",
    thresholds=(SAME_EVALS,),
)
def _same_evaluations(facts: RunFacts) -> Observation | None:
    """an evaluation that is the same to the last digit

    {same_evals} evaluations in a row have exactly the same loss, of over four decimals, while the training loss
    changes and the learning rate is not 0

    Why: Weights that move give another loss each time: what is evaluated is not what is trained.
    Scope: held-out losses of one split
    Action: Evaluate the object that trains: not a copy, not the base, not with the adapter switched off.
    Verify: Evaluate twice with a step between.
    Seen: https://github.com/unslothai/unsloth/issues/1067 -- held-out loss is the same to the last digit while
        training goes on
    """
    curve = facts.held_out_curve
    if curve is None or len(curve.losses) < SAME_EVALS.value:
        have = 0 if curve is None else len(curve.losses)
        raise Unknown(f"{have} held-out losses; it needs {SAME_EVALS.value:g}")
    last, first = curve.losses[-1], len(curve.losses) - 1
    while first > 0 and curve.losses[first - 1] == last:
        first -= 1
    same = len(curve.losses) - first
    if same < SAME_EVALS.value:
        return None
    if round(last, _DECIMALS) == last:
        raise Unknown("the held-out losses are rounded, so that equal ones may be others")
    since, until = curve.steps[first], curve.steps[-1]
    inside = [i for i, step in enumerate(facts.series.steps) if since < step <= until]
    losses = {facts.series.losses[i] for i in inside}
    rates = [facts.series.rates[i] for i in inside]
    if len(losses) <= 1 or not any(rate != 0.0 for rate in rates):
        return None
    return Observation(
        f"The held-out loss is exactly the same in {same} evaluations, from step {since} to {until} ({last!r}), while "
        "training goes on: the evaluation does not see the weights that are trained.",
        {"evaluations": same, "since": since, "until": until, "loss": last},
        evidence=seen(f"{same} evaluations with the loss {last!r}"),
    )


@LogRule(
    "REP229",
    severity="error",
    confidence=0.9,
    place="broken",
    phrase=lambda v: f"the training loss repeats to the last digit every {shown(v, 'rows', 'd')} rows",
    needs=(not_under("rl"),),
    thresholds=(RECURRING_ROWS,),
)
def _same_passes(facts: RunFacts) -> Observation | None:
    """every pass has the losses of the one before

    the training losses, most of them different, are from the beginning on a sequence of {recurring_rows} rows or more
    that comes again and again to the last digit, twice at least, and the learning rate is not 0

    Why: Weights that move give the same rows another loss at each pass: what is called is not what is trained.
    Scope: rows that are not drawn anew in each epoch; not RL
    Action: Look that the optimizer holds the parameters of the model that is called, and that each step is kept.
    Verify: Compare one trained tensor before and after a step.
    Seen: https://github.com/xmeng525/RealTimeDenoisingNeuralBilateralGrid/issues/16 -- each epoch after the first has
        the loss of the one before to the last digit
    """
    losses, least = [*facts.series.losses], int(RECURRING_ROWS.value)
    if len(losses) < 2 * least:
        raise Unknown(f"{len(losses)} losses; it needs {2 * least}")
    passes = range(least, len(losses) // 2 + 1)
    every = next((n for n in passes if losses[n] == losses[0] and losses[n:] == losses[:-n]), None)
    if every is None or 2 * len({*losses[:every]}) <= every or not any(rate != 0.0 for rate in facts.series.rates):
        return None
    return Observation(
        f"The training loss repeats to the last digit every {every} rows, {len(losses) // every} times: the rows come "
        "again, and the weights that they meet have not moved.",
        {"rows": every, "times": len(losses) // every},
        evidence=seen(f"{len(losses)} losses, of which {len({*losses[:every]})} differ"),
    )


RULES: Final[tuple[LogRule, ...]] = (_began_anew, _same_evaluations, _same_passes)
