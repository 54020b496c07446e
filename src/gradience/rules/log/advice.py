"""What to do next: one piece of advice for the leading cause, from a table of situations.

A situation is a cause, what is possible now (is the best checkpoint on disk? does the run go on?), and what was done
already (was the best one restored? was anything evaluated?). A row answers if its premises hold; a cause without such a
row gets no advice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from gradience.rules.log import RULE_OF
from gradience.rules.log.account import account
from gradience.rules.log.facts import START, RunFacts, Values
from gradience.rules.log.learning import held_still
from gradience.rules.log.statistics import median
from gradience.schema import as_float, number_in
from gradience.schema.document import SEVERITIES, Finding
from gradience.schema.reports import Advice, Cause, RunAccount

_GRAVE: Final = SEVERITIES.index("warning")
_FEW_STEPS: Final = 10  # a run of fewer is no plan
_NEAR: Final = 0.1  # of the best step, within which a saved checkpoint stands for it
_LOW_RATE: Final = 1e-5  # a rate under it may be why nothing is learnt; published LoRA rates are 1e-5 to 3e-4
_RANK: Final[dict[Cause, int]] = {  # the leading cause: without labels or numbers nothing else means anything
    cause: place
    for place, cause in enumerate[Cause](
        (
            "nothing_supervised",
            "not_finite",
            "evaluation_not_finite",
            "rate_zero",
            "diverged",
            "rate_absurd",
            "no_gradient",
            "at_chance",
            "no_learning",
            "in_warmup",
            "overfits",
            "gap",
            "other_scale",
            "evaluations_empty",
            "resumed_otherwise",
            "cut_off",
            "unfinished",
        )
    )
}


class _Case(NamedTuple):
    """The situation: the run and its account, and the numbers of the finding that leads."""

    facts: RunFacts
    of: RunAccount
    values: Values


class _Row(NamedTuple):
    """Advice, and its premises; it answers the first situation in which they hold."""

    text: Callable[[_Case], str]
    holds: Callable[[_Case], bool] = lambda _: True
    alternative: Callable[[_Case], str | None] = lambda _: None


def advice(facts: RunFacts, findings: Iterable[Finding]) -> Advice | None:
    """The advice for the leading cause of the findings that are warnings or graver; None if nothing needs doing."""
    grave = [finding for finding in findings if SEVERITIES.index(finding.severity) >= _GRAVE]
    causes = [(cause, finding) for finding in grave if (cause := RULE_OF[finding.id].cause_of(finding)) is not None]
    for cause, finding in sorted(causes, key=lambda item: _RANK[item[0]]):
        case = _Case(facts, account(facts), finding.values)
        row = next((row for row in _TABLE.get(cause, ()) if row.holds(case)), None)
        if row is not None:
            return Advice(cause=cause, finding=finding.id, text=row.text(case), alternative=row.alternative(case))
        if cause in _ENDS_IT:
            return None
    lead = next((finding for finding in grave if finding.action), None) or next(iter(grave), None)
    return None if lead is None else Advice(finding=lead.id, text=(lead.action or lead.verify or "").rstrip("."))


def _step(case: _Case, key: str) -> int | None:
    value = case.values.get(key)
    return value if isinstance(value, int) else None


def _runs(case: _Case) -> bool:
    """Whether the run may still go on."""
    return case.of.ending.status == "no_run_end" and not case.of.ending.finished


def _saved_before(of: RunAccount, step: int | None) -> int | None:
    """The last step before the given one at which a checkpoint was saved and, so far as is known, kept."""
    every, last = of.saving.every, of.ending.step
    if every is None or step is None or last is None:
        return None
    saved = (step - 1) // every * every
    # A limit on checkpoints keeps the newest
    oldest = 0 if of.saving.most is None else (last // every - of.saving.most + 1) * every
    return saved if saved >= max(every, oldest) else None


def _before_the_rise(case: _Case) -> int | None:
    """The checkpoint up to the lowest loss, if the loss there is nearer to the lowest than to where the run ended."""
    step = _saved_before(case.of, (_step(case, "lowest_step") or 0) + 1)
    lowest, last = number_in(case.values, "lowest"), number_in(case.values, "last")
    if step is None or lowest is None or last is None:
        return None
    there = median(case.facts.losses_until(step, START))
    return step if there - lowest < (last - lowest) / 2.0 else None


def _saved_at(of: RunAccount, step: int | None) -> bool:
    """Whether the settings have a checkpoint of just this step."""
    return step is not None and _saved_before(of, step + 1) == step


def _newest(of: RunAccount) -> int | None:
    """The step of the newest checkpoint."""
    return None if of.ending.step is None else _saved_before(of, of.ending.step + 1)


def _kept(case: _Case) -> int | None:
    """The step of the best checkpoint, if the settings have it on disk: chosen by the trainer, or saved near."""
    of = case.of
    if of.selection.step is not None and of.selection.by in {of.decisive, None}:
        return of.selection.step
    best, every, last = of.best_step, of.saving.every, of.ending.step
    if best is None or every is None or last is None:
        return None
    near = round(best / every) * every
    oldest = 0 if of.saving.most is None else (last // every - of.saving.most + 1) * every
    return near if abs(near - best) <= _NEAR * best and max(every, oldest) <= near <= last else None


def _earlier(case: _Case) -> bool:
    """Whether a checkpoint from before the end is on disk, by the settings."""
    return case.of.ending.step is not None and _saved_before(case.of, case.of.ending.step) is not None


def _stands_from(case: _Case) -> int | None:
    """The step from which held-out data did not improve while the training went on."""
    still = held_still(case.facts)
    return still.step if still is not None and still.how == "late" else None


def _restored(case: _Case) -> bool:
    return case.of.selection.restored is True and case.of.selection.by == case.of.decisive


def _targets(case: _Case) -> str:
    return "what target_modules matched and " if case.of.adapter else ""


def _rate(case: _Case) -> float:
    return as_float(case.of.schedule.peak) if case.of.schedule.peak is not None else 0.0


def _by(of: RunAccount) -> str:
    return f"{of.split} {of.decisive}"


_TABLE: Final[Mapping[Cause, tuple[_Row, ...]]] = {
    "nothing_supervised": (
        _Row(
            lambda _: (
                "Decode one batch and look at its labels: a template, a collator or a length limit masks all of them"
            )
        ),
    ),
    "not_finite": (
        _Row(
            lambda c: (
                f"Go back to checkpoint-{_saved_before(c.of, _step(c, 'first_step'))}, before the first such step, "
                "and lower the learning rate or train in bf16 from there"
            ),
            lambda c: _saved_before(c.of, _step(c, "first_step")) is not None,
        ),
        _Row(lambda _: "Do not use the weights before 'gradience audit' finds them finite"),
    ),
    "rate_zero": (
        _Row(
            lambda _: "Give the scheduler the number of steps that the run really makes: it had ended",
            lambda c: not c.values.get("throughout"),
        ),
        _Row(lambda _: "Set a learning rate: every step of this run had 0"),
    ),
    "diverged": (
        _Row(lambda _: "Stop it, and start again with a lower learning rate", _runs),
        _Row(
            lambda c: f"Train again with a lower learning rate than {_rate(c):.3g}",
            lambda c: _rate(c) > 0.0,
            lambda c: None if (step := _before_the_rise(c)) is None else f"checkpoint-{step} is from before the rise",
        ),
        _Row(lambda _: "Train again with a lower learning rate"),
    ),
    "rate_absurd": (_Row(lambda _: "Train with a learning rate of at most 1e-3; 1e-4 to 3e-4 is usual for a LoRA"),),
    "no_gradient": (
        _Row(
            lambda c: (
                f"See whether its answers differ from row to row: gradients came until step {_step(c, 'step')}, so the "
                "model may have collapsed; train again with a lower learning rate"
            ),
            lambda c: (number_in(c.values, "early") or 0.0) > 0.0,
        ),
        _Row(
            lambda _: (
                "See which parameters require gradients: with gradient checkpointing the inputs must too "
                "(enable_input_require_grads)"
            )
        ),
    ),
    "at_chance": (
        _Row(
            lambda _: (
                "Train on 32 examples until they are learnt: if that fails, look at the labels, the prompt and the "
                "head, and if not, at the learning rate"
            )
        ),
    ),
    "no_learning": (
        _Row(
            lambda c: f"Raise the learning rate: {_rate(c):.1g} is under any usual one",
            lambda c: 0.0 < _rate(c) < _LOW_RATE,
        ),
        _Row(
            lambda c: (
                f"Train on 32 examples until they are learnt; if that fails, see {_targets(c)}which parameters require "
                "gradients"
            )
        ),
    ),
    "in_warmup": (
        _Row(
            lambda c: (
                f"Set the warm-up to a tenth of the steps ({max(1, (c.of.ending.step or 0) // 10)}), or train longer"
            )
        ),
    ),
    "overfits": (
        _Row(lambda c: f"Stop it: {_by(c.of)} was best at step {c.of.best_step}", _runs),
        _Row(
            lambda c: f"Use checkpoint-{_kept(c)}, if it was kept: {_by(c.of)} was best at step {c.of.best_step}",
            lambda c: _kept(c) is not None and not _restored(c),
        ),
        _Row(
            lambda c: (
                f"Train again for about {c.of.best_step} steps, or with load_best_model_at_end: {_by(c.of)} was best "
                "there"
            ),
            lambda c: not _restored(c) and (c.of.best_step or 0) >= _FEW_STEPS,
        ),
    ),
    "gap": (
        _Row(
            lambda c: f"Use checkpoint-{_step(c, 'lowest_step')}, if it was kept: {_by(c.of)} was lower there",
            lambda c: c.of.decisive == "loss" and _saved_at(c.of, _step(c, "lowest_step")) and not _restored(c),
        ),
        _Row(
            lambda _: "Evaluate an earlier checkpoint too: one evaluation does not show where held-out loss was lowest",
            lambda c: c.of.evaluations == 1 and _earlier(c),
        ),
        _Row(
            lambda c: f"Train for about {_stands_from(c)} steps: {_by(c.of)} stands since",
            lambda c: _stands_from(c) is not None,
        ),
    ),
    "other_scale": (
        _Row(
            lambda _: "Judge the run by its held-out loss: the training loss is on another scale",
            lambda c: c.of.evaluations > 0,
        ),
        _Row(
            lambda _: (
                "Decode a row with its labels, and see whether the loss is summed over tokens, steps or several losses"
            )
        ),
    ),
    "evaluation_not_finite": (
        _Row(
            lambda _: "Evaluate again in float32, and look for a batch without a label: the training losses are finite"
        ),
    ),
    "evaluations_empty": (
        _Row(
            lambda _: "See whether the evaluation rows have labels, under a name in label_names: then a loss is logged"
        ),
    ),
    "resumed_otherwise": (_Row(lambda _: "See whether data order and optimizer state were restored with the weights"),),
    "cut_off": (
        _Row(
            lambda c: f"If it does not run any more, resume it from checkpoint-{_newest(c.of)}",
            lambda c: _newest(c.of) is not None and not c.of.ending.finished,
        ),
    ),
}
"""Rows by cause, asked in order. `unfinished` is no warning, and needs none."""

# Where these have no advice, advice on a lesser cause would be empty
_ENDS_IT: Final = frozenset({"nothing_supervised", "not_finite", "rate_zero"})
