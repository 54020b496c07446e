"""What a run's telemetry says: each detector returns a finding, nothing, or why it could not run.

All look at the series with superseded rows removed. Conservative: a detector without enough to go on
abstains and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from gradience.policy.adapter_rules import low_utilization
from gradience.schema.findings import Evidence, Finding, NotRun, gravest_first
from gradience.schema.reports import BadLine, EvalPoint, GapReading
from gradience.schema.scalars import as_float

__all__ = ["DEFAULT_GAP", "RunFacts", "Series", "detect"]

DEFAULT_GAP: Final = 1.5  # held-out over train perplexity, 0.41 nats; a convention of the project, no source found
CHANCE_Z: Final = 1.64  # one-sided 95 %
CHANCE_MARGIN: Final = 0.03  # where the number of examples is unknown; a judgement
SMALL_EVAL: Final = 0.03  # half-width of a 95 % interval, as a fraction; a judgement
FEW_ROWS: Final = 20  # below it most detectors of a curve abstain; a judgement

Outcome: TypeAlias = Finding | NotRun | None


@dataclass(frozen=True, slots=True)
class Series:
    """Parallel columns of the training rows; a missing value is NaN."""

    steps: Sequence[int]
    losses: Sequence[float]
    grad_norms: Sequence[float]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the detectors look at."""

    series: Series
    evals: Sequence[EvalPoint]
    gap: GapReading | None
    held_out: EvalPoint | None
    num_labels: int | None
    epoch: float | None
    utilization_mean: float | None
    status: str
    last_step: int | None
    max_steps: int | None
    issues: Sequence[BadLine]
    issues_total: int
    gap_threshold: float = DEFAULT_GAP


def detect(facts: RunFacts) -> tuple[list[Finding], list[NotRun]]:
    """Return the findings, most severe first, and the detectors that could not run with their reasons."""
    outcomes = [detector(facts) for detector in _DETECTORS]
    findings = [o for o in outcomes if isinstance(o, Finding)]
    return gravest_first(findings), [o for o in outcomes if isinstance(o, NotRun)]


def _non_finite(facts: RunFacts) -> Outcome:
    series = facts.series
    bad_losses = _steps_where(series, series.losses, math.isfinite)
    bad_evals = [e for e in facts.evals if e.metrics.loss is not None and not math.isfinite(as_float(e.metrics.loss))]
    infinite = _steps_where(series, series.grad_norms, lambda norm: not math.isinf(norm))
    if not series.steps and not facts.evals:
        return NotRun(id="NUM101", reason="no loss was recorded")
    if not bad_losses and not bad_evals and not infinite:
        return None
    where = [f"loss at step {bad_losses[0]}"] if bad_losses else []
    where += [f"{bad_evals[0].split} loss at step {bad_evals[0].step}"] if bad_evals else []
    where += [f"gradient norm at step {infinite[0]}"] if infinite else []
    return Finding(
        id="NUM101",
        severity="error" if bad_losses or bad_evals or len(infinite) > 1 else "info",
        message=f"Not finite: {', '.join(where)} ({len(bad_losses)} of {len(series.steps)} training rows).",
        action="Go back to a checkpoint before it; look at the learning rate, the precision and the data there.",
        confidence=0.95,
        scope="any run",
        verify="Audit the adapter: non-finite weights confirm it.",
        evidence=[Evidence(source="the log", says=f"first non-finite value: {where[0]}")],
        values={"rows": len(bad_losses), "gradient_rows": len(infinite)},
    )


def _steps_where(series: Series, values: Sequence[float], fine: Callable[[float], bool]) -> list[int]:
    """Return the steps whose value is not fine; a million fine rows take no loop of ours."""
    if all(map(fine, values)):
        return []
    return [step for step, value in zip(series.steps, values, strict=True) if not fine(value)]


def _masked_nan(facts: RunFacts) -> Outcome:
    """A loss of exactly zero: how a trainer that filters non-finite losses shows a NaN."""
    steps, losses = facts.series.steps, facts.series.losses
    if not losses:
        return NotRun(id="NUM102", reason="no training loss was recorded")
    zero = [index for index, loss in enumerate(losses) if loss == 0.0] if 0.0 in losses else []
    runs_of_two = [index for index in zero if index + 1 < len(losses) and losses[index + 1] == 0.0]
    if not runs_of_two:
        return None
    first = steps[runs_of_two[0]]
    return Finding(
        id="NUM102",
        severity="error",
        message=f"The training loss is exactly 0.0 from step {first} in {len(zero)} rows: NaN is probably masked.",
        action="Set logging_nan_inf_filter=False to see it, and audit the adapter for non-finite weights.",
        rationale="The Hugging Face Trainer averages non-finite losses away by default: a broken run looks healthy.",
        confidence=0.9,
        scope="losses that cannot be zero; not policy-gradient objectives",
        verify="Look at grad_norm in the same rows, and at the adapter's weights.",
        evidence=[
            Evidence(source="transformers 5.24, observed", says="a NaN step is logged as loss 0.0, grad_norm nan")
        ],
        values={"rows": len(zero), "first_step": first},
    )


def _gap(facts: RunFacts) -> Outcome:
    gap = facts.gap
    if gap is None:
        return NotRun(id="GAP111", reason="needs a loss or perplexity on train and on a held-out split")
    ratio = as_float(gap.ratio)
    if not ratio > facts.gap_threshold:
        return None
    repeated = facts.epoch is None or facts.epoch > 1.0
    return Finding(
        id="GAP111",
        severity="warning" if repeated else "info",
        message=f"Gap is {ratio:.2f}x ({gap.test_split} over {gap.train_split} perplexity), "
        f"over {facts.gap_threshold:g}x: "
        + ("probably memorizing." if repeated else "but the data has not repeated yet, so not memorization."),
        action="Use the checkpoint with the best held-out loss; fewer epochs or more data come before less rank.",
        rationale="A model that fits its training data much better than held-out data has begun to memorize it.",
        confidence=0.6 if repeated and gap.same_step else 0.4,
        scope="token-level or class cross-entropy, data seen more than once",
        verify="Compare the task metric of the best checkpoint with that of the last.",
        evidence=[
            Evidence(source="project convention", says="gap over 1.5x, that is 0.41 nats; no source for the number"),
            Evidence(
                source="InstructGPT (2203.02155)",
                says="validation loss can overfit while task quality still rises",
            ),
        ],
        values={"ratio": gap.ratio, "nats": gap.nats, "threshold": facts.gap_threshold},
    )


def _chance(facts: RunFacts) -> Outcome:
    point = facts.held_out
    if point is None or point.metrics.accuracy is None:
        return NotRun(id="CHN112", reason="no held-out accuracy was recorded")
    if not facts.num_labels or facts.num_labels < 2:  # noqa: PLR2004  # fewer is no classification
        return NotRun(id="CHN112", reason="the number of classes is unknown (num_labels in the run's config)")
    accuracy, chance = as_float(point.metrics.accuracy), 1.0 / facts.num_labels
    n = point.metrics.n
    margin = CHANCE_Z * math.sqrt(chance * (1.0 - chance) / n) if n else CHANCE_MARGIN
    if not accuracy <= chance + margin:
        return None
    return Finding(
        id="CHN112",
        severity="warning",
        message=f"{point.split.capitalize()} accuracy {accuracy:.1%} is not above chance ({chance:.1%} "
        f"for {facts.num_labels} classes" + (f", n={n})." if n else ", n unknown)."),
        action="Fix the task set-up before tuning LoRA: labels, prompt or head, learning rate, number of steps.",
        rationale="At chance level no other number about this run means much.",
        confidence=0.85 if n else 0.6,
        scope="classification with balanced classes",
        verify="Overfit 32 examples on purpose: if training accuracy cannot reach 100 %, the set-up is broken.",
        evidence=[
            Evidence(
                source="binomial test, one-sided 95 %",
                says=f"chance {chance:.3f} plus margin {margin:.3f} is {chance + margin:.3f}",
            )
        ],
        values={"accuracy": accuracy, "chance": chance, "margin": margin},
    )


def _small_eval(facts: RunFacts) -> Outcome:
    point = facts.held_out
    if point is None or point.metrics.accuracy is None or not point.metrics.n:
        return NotRun(id="SML113", reason="needs a held-out accuracy and the number of examples (n)")
    p, n = as_float(point.metrics.accuracy), point.metrics.n
    if not 0.0 <= p <= 1.0:
        return NotRun(id="SML113", reason=f"an accuracy of {p} is no fraction")
    half = 1.96 * math.sqrt(max(p * (1.0 - p), 1.0 / (4.0 * n)) / n)
    if half <= SMALL_EVAL:
        return None
    return Finding(
        id="SML113",
        severity="info",
        message=f"{n} held-out examples give the accuracy an uncertainty of +/- {half * 100:.1f} points.",
        action="Differences smaller than that say nothing; evaluate on more examples before comparing runs.",
        confidence=0.95,
        scope="accuracies",
        evidence=[Evidence(source="binomial 95 % interval", says=f"1.96 sqrt(p (1 - p) / n) = {half:.4f}")],
        values={"n": n, "half_width": half},
    )


def _no_end(facts: RunFacts) -> Outcome:
    if facts.status != "no_run_end":
        return None
    planned = f" of {facts.max_steps} planned" if facts.max_steps else ""
    at = f"at step {facts.last_step}{planned}" if facts.last_step is not None else "before the first step"
    return Finding(
        id="END114",
        severity="warning",
        message=f"The log stops {at} without run_end: crashed, killed, or still running.",
        action="If it is not running any more, resume from the last checkpoint or treat the run as incomplete.",
        confidence=0.9,
        scope="any log",
        verify="Look for the process, and whether the log still grows.",
        evidence=[Evidence(source="the log", says="no run_end event for this run")],
    )


def _bad_lines(facts: RunFacts) -> Outcome:
    if not facts.issues_total:
        return None
    only_torn = facts.issues_total == 1 and facts.issues[0].torn
    first = facts.issues[0]
    return Finding(
        id="TRN115",
        severity="info" if only_torn else "warning",
        message="The last line is torn: the writer was cut off in the middle of it."
        if only_torn
        else f"{facts.issues_total} lines are no events (first: line {first.line}: {first.reason}).",
        action="Nothing to do: the next writer repairs it."
        if only_torn
        else "Run 'gradience validate' on the log: corruption, or two writers in one file.",
        confidence=1.0,
        scope="any log",
        evidence=[Evidence(source=f"line {first.line}, byte {first.offset}", says=first.reason)],
        values={"lines": facts.issues_total},
    )


def _sparse(facts: RunFacts) -> Outcome:
    rows = len(facts.series.steps)
    if rows >= FEW_ROWS and facts.evals:
        return None
    missing = ([f"only {rows} training rows with a loss"] if rows < FEW_ROWS else []) + (
        [] if facts.evals else ["no evaluation"]
    )
    return Finding(
        id="GAP118",
        severity="info",
        message=f"Sparse log: {' and '.join(missing)}; what a curve would show cannot be judged.",
        action="Log at least every steps/50 steps, and evaluate on held-out data a few times a run.",
        confidence=0.95,
        scope="any log",
        evidence=[
            Evidence(source="transformers 5.24", says="the default logging_steps=500 logs nothing in a short run")
        ],
        values={"rows": rows, "evals": len(facts.evals)},
    )


def _utilization(facts: RunFacts) -> Outcome:
    if facts.utilization_mean is None:
        return NotRun(id="UTL204", reason="no lora_audit in the log ('gradience audit --append run.jsonl' adds one)")
    return low_utilization(facts.utilization_mean)


_DETECTORS: Final = (
    _non_finite,
    _masked_nan,
    _gap,
    _chance,
    _small_eval,
    _no_end,
    _bad_lines,
    _sparse,
    _utilization,
)
