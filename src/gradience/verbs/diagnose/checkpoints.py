"""Choose the checkpoint to keep: match those on disk with held-out losses, and see which differ beyond the noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from gradience.adapters.files import WEIGHT_NAMES, holds_adapter
from gradience.errors import GradienceError
from gradience.folder import Documents
from gradience.folder.checkpoints import OwnedCheckpoint
from gradience.folder.found import CheckpointFolder, weights_alone
from gradience.importers.files import same_bytes, sha256_of
from gradience.io.reading import is_zip, real_path
from gradience.io.safetensors import read_header
from gradience.rules import Observation
from gradience.rules.joins import Symptom, shown
from gradience.rules.joins.run import MID_RUN, TIED
from gradience.rules.joins.symptoms import symptoms_of
from gradience.rules.log.account import higher_is_better, values_of
from gradience.rules.log.statistics import noise as noise_of
from gradience.schema import as_float
from gradience.schema.diagnose import BestCheckpoint, Checkpoint
from gradience.schema.document import SEVERITIES
from gradience.schema.reports import MonitorReport, RunAccount
from gradience.telemetry.series import RunSeries

_LEAST_EVALS: Final = 5  # three second differences

_TRIED: Final = 3  # checkpoints that are audited at most to find one with finite weights
_AFTER_LOWEST: Final = ("lowest", "where the loss was lowest", "lower the learning rate or lengthen warmup.")
_AFTER_BEST: Final = ("best_reward", "where the reward was best", "lower the learning rate or raise beta.")
_EARLIER: Final = "Next time stop earlier; try fewer epochs or more data."
_FROM_THE_START: Final = "Start again; look at the learning rate, the precision and the data of that step."
_LOSS: Final = "loss"
_ERROR: Final = SEVERITIES.index("error")


class LossNoise(NamedTuple):
    """The noise of one held-out loss relative to others, in nats or None, and how it was estimated."""

    value: float | None
    source: str


class CheckpointChoice(NamedTuple):
    """The checkpoints on disk, and the best of this run among those whose weights are whole; None if there is none."""

    checkpoints: list[Checkpoint]
    best: BestCheckpoint | None = None
    paths: Mapping[str, Path] = {}
    fault_of: Callable[[str], str] = str
    """Why the weights of the checkpoint of a name cannot be used, "" if they can; each is opened once.

    Where none was looked for, none can be.
    """
    no_better: frozenset[str] = frozenset()
    """Those of the run that are no better than the best by anything that was measured of both."""

    def of_run(self) -> list[Checkpoint]:
        """The checkpoints that their own history shows to be of this run, by step."""
        return [checkpoint for checkpoint in self.checkpoints if checkpoint.of_run]


class _Judge(NamedTuple):
    """What decides which checkpoint is best: its name, its values by step, and whether more is better."""

    name: str
    split: str
    values: Mapping[int, float]
    more: bool

    def badness(self, step: int) -> float:
        """The value at a step, turned so that less is better."""
        return -self.values[step] if self.more else self.values[step]

    @property
    def best_step(self) -> int:
        """The step of the best evaluation."""
        return min(self.values, key=self.badness)


def choose(
    checkpoints: Sequence[OwnedCheckpoint],
    run: RunSeries,
    report: MonitorReport,
    weights: Path | None,
    digest_of: Callable[[Path], str] = sha256_of,
) -> CheckpointChoice:
    """Return the checkpoints on disk, and the best one of this run whose weights are whole.

    Args:
        checkpoints: those on disk, by step.
        run: the run as logged.
        report: the monitor's report; its account says what decides, and on which split.
        weights: the folder of the diagnosed adapter, to see which checkpoint it is.
        digest_of: the digest of a file, by which weights are compared.
    """
    split = report.account.split
    curve = run.losses_of(split)
    paths = {each.folder.path.name: each.folder.path for each in checkpoints}
    fault_of = cache(lambda name: unreadable(paths[name]))
    listed = [_listed(each, curve) for each in checkpoints]
    judge = _judge(run, report)
    if split is None or judge is None or not curve:
        return CheckpointChoice(listed, None, paths, fault_of)
    noise = loss_noise(list(judge.values.values()))
    own = [item for item in listed if item.of_run and item.step in judge.values and item.step in curve]
    listed, chosen = _first_whole(listed, sorted(own, key=lambda item: judge.badness(item.step)), fault_of)
    if chosen is None:
        return CheckpointChoice(listed, None, paths, fault_of)
    lowest = min(curve, key=curve.__getitem__)
    n, accuracy = _n_and_accuracy(report, split)
    best = BestCheckpoint(
        name=chosen.name,
        step=chosen.step,
        loss=curve[chosen.step],
        split=split,
        by=judge.name,
        value=judge.values[chosen.step],
        best_value=judge.values[judge.best_step],
        best_step=judge.best_step,
        noise=noise.value,
        noise_from=noise.source,
        n=n,
        standard_error=standard_error(curve[chosen.step], n, accuracy) if judge.name == _LOSS else None,
        lowest_loss=curve[lowest],
        lowest_step=lowest,
        within_noise=_within(judge.badness(chosen.step), judge.badness(judge.best_step), noise.value),
        saved_as=str(weights) if weights and _same_weights(paths[chosen.name], weights, digest_of) else "",
    )
    measured = {event.step: values_of(event.metrics) for event in run.evals if event.split == split}
    no_better = frozenset(item.name for item in own if not _is_better(measured[item.step], measured[chosen.step]))
    tied = [_tied(item, chosen, judge, noise.value) for item in listed]
    return CheckpointChoice(tied, best, paths, fault_of, no_better)


def _is_better(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether a checkpoint is better than another by any value that both have, by however little."""
    ups = {name: up for name in one.keys() & other.keys() if (up := higher_is_better(name)) is not None}
    return any(one[name] > other[name] if up else one[name] < other[name] for name, up in ups.items())


def _listed(checkpoint: OwnedCheckpoint, curve: Mapping[int, float]) -> Checkpoint:
    folder, identity = checkpoint
    loss = curve.get(folder.step) if identity.of_run else None
    return Checkpoint(name=folder.path.name, step=folder.step, loss=loss, of_run=identity.of_run, why=identity.why)


def _first_whole(
    listed: Iterable[Checkpoint], ranked: Sequence[Checkpoint], fault_of: Callable[[str], str]
) -> tuple[list[Checkpoint], Checkpoint | None]:
    """The checkpoints, with the fault of each that was opened in vain, and the first of the best that is whole."""
    in_vain = [*takewhile(lambda item: fault_of(item.name), ranked[:_TRIED])]
    faults = {item.name: fault_of(item.name) for item in in_vain}
    whole = next(iter(ranked[len(in_vain) : _TRIED]), None)
    return [msgspec.structs.replace(item, fault=faults.get(item.name, "")) for item in listed], whole


def _judge(run: RunSeries, report: MonitorReport) -> _Judge | None:
    """What decides by the run's account, with its values over the evaluations of the run."""
    account = report.account
    if account.split is None or account.decisive is None:
        return None
    if account.decisive == _LOSS:
        return _Judge(_LOSS, account.split, run.losses_of(account.split), more=False)
    metric = next((item for item in account.metrics if item.name == account.decisive), None)
    if metric is None or metric.higher_is_better is None:
        return None
    events = [event for event in run.evals if event.split == account.split and event.step is not None]
    logged = {event.step: values_of(event.metrics).get(metric.name) for event in events}
    values = {step: value for step, value in logged.items() if step is not None and value is not None}
    return _Judge(metric.name, account.split, values, more=metric.higher_is_better) if values else None


def _n_and_accuracy(report: MonitorReport, split: str) -> tuple[int | None, float | None]:
    metrics = next((point.metrics for point in report.evals if point.split == split), None)
    if metrics is None:
        return None, None
    accuracy = None if metrics.accuracy is None else as_float(metrics.accuracy)
    return metrics.n, accuracy if accuracy is not None and 0.0 <= accuracy <= 1.0 else None


def loss_noise(losses: Sequence[float]) -> LossNoise:
    """The noise with which two evaluations of one held-out set are compared.

    Both evaluations saw the same examples, so the sampling error of the set is mostly common to them. The rest shows as
    jumps of the loss, measured by second differences, which a steady rise leaves at zero. With too few evaluations the
    noise is unknown: the standard error of one loss is not that of a difference on the same examples.

    >>> loss_noise([2.0, 1.0]).value
    """
    if len(losses) >= _LEAST_EVALS:
        return LossNoise(
            noise_of(losses, few=0), f"second differences of {len(losses)} evaluations of the same examples"
        )
    return LossNoise(
        None, f"unknown: {len(losses)} evaluations of the same examples are too few to see how they jump about"
    )


def standard_error(loss: float, n: int | None, accuracy: float | None) -> float | None:
    """The standard error of a mean loss over n examples, in nats; None if n is not known or the loss is not above 0.

    A heuristic, because the losses of single examples are not logged. Their spread is taken as their mean. With an
    accuracy p it is sqrt(p / (1 - p)) times their mean if that is more, because then the wrong examples carry the loss.

    >>> standard_error(0.5, 100, None)
    0.05
    """
    if not n or not loss > 0.0:
        return None
    # With no wrong example among n, as if one were: the share cannot be shown to be smaller.
    wrong = 1.0 if accuracy is None else max(1.0 - accuracy, 1.0 / n)
    return loss * max(1.0, math.sqrt((1.0 - wrong) / wrong)) / math.sqrt(n)


def _tied(item: Checkpoint, best: Checkpoint, judge: _Judge, noise: float | None) -> Checkpoint:
    if not item.of_run or item.name == best.name or item.step not in judge.values or item.fault:
        return item
    least, own = judge.badness(best.step), judge.badness(item.step)
    return msgspec.structs.replace(item, tied=own >= least and bool(_within(own, least, noise)))


def _within(value: float, least: float, noise: float | None) -> bool | None:
    if value <= least:
        return True
    return None if noise is None else value - least <= TIED.value * noise


def unreadable(folder: Path) -> str:
    """The reason why a folder's weights cannot be used: not whole, not weights, or not finite; "" if they can."""
    from gradience.verbs.audit.options import AuditOptions  # only if a checkpoint is examined
    from gradience.verbs.audit.report import audit_documents  # imports jax, the same

    try:
        if not CheckpointFolder(0, folder).has_weights:
            return "it holds no weights"
        if holds_adapter(folder):
            health = audit_documents(Documents(weights_alone(folder)), AuditOptions(), left_out={}).health
            return health.reason if health.verdict in {"broken", "not_analysed"} else ""
        for path in sorted(folder.glob("*.safetensors")):
            # The header tells where the file must end; to read the numbers of a whole model would take minutes.
            read_header(path)
        broken = [path.name for path in sorted(folder.glob("pytorch_model*.bin")) if not is_zip(path)]
    except GradienceError as fault:
        return fault.message.removeprefix(f"{folder}/")
    return f"{broken[0]} is no file that torch wrote whole" if broken else ""


def _same_weights(checkpoint: Path, weights: Path, digest_of: Callable[[Path], str]) -> bool:
    """Whether two folders hold the same weights file."""
    pairs = ((checkpoint / name, weights / name) for name in WEIGHT_NAMES)
    return any(same_bytes(one, other, digest_of) for one, other in pairs)


def disk_symptoms(
    documents: Documents, choice: CheckpointChoice, report: MonitorReport, run: RunSeries
) -> Iterator[Symptom]:
    """The symptoms that checkpoints on disk add to the log's findings; none if no folder was searched."""
    if documents.found.folder is None:
        return
    of_log = symptoms_of("log", report.findings)
    signs = [(sign.name, symptom) for symptom in of_log for sign in shown("log", symptom.id, symptom.tags)]
    values = {name: symptom.seen.values for name, symptom in signs}
    if "overfits" in values:
        yield _to_keep(choice, report)
    bad = [symptom.seen.values for name, symptom in signs if name == "not_finite" and _dates_an_error(symptom)]
    if bad and (step := _lasting(run, bad)) is not None:
        yield _before_nan(choice, step)
    if "diverged" in values:
        yield from _nearest(choice, values["diverged"].get("lowest_step"), *_AFTER_LOWEST)
    if "reward_fell" in values:
        yield from _nearest(choice, values["reward_fell"].get("best_step"), *_AFTER_BEST)
    if "cut_off" in values:
        yield from _short(documents, report.train.last_step)
    else:
        yield from _mid_run(documents, choice, report.train.last_step)


def _dates_an_error(symptom: Symptom) -> bool:
    """Whether a finding is an error, and says since which step."""
    grave = symptom.finding is not None and SEVERITIES.index(symptom.finding.severity) >= _ERROR
    return grave and "first_step" in symptom.seen.values


def _to_keep(choice: CheckpointChoice, report: MonitorReport) -> Symptom:
    """What can be kept of a run that overfits: what was restored, else the best checkpoint, else nothing."""
    account, best = report.account, choice.best
    restored = account.selection.restored and account.ending.finished and account.selection.step is not None
    if best is None and restored:
        step = account.selection.step
        says = f"the trainer loaded its best checkpoint, of step {step}, at the end (load_best_model_at_end)"
        return Symptom("disk", "restored", Observation(says, {"restored": step}))
    if best is not None and best.within_noise is not False:
        saved = {"saved_as": best.name} if best.saved_as else {}
        ties = [item.name for item in choice.checkpoints if item.tied]
        also = f"; {', '.join(ties)} within its noise" if ties else ""
        name = f"{best.name} ({_standing(best)})"
        observation = Observation(
            f"{name}{also}; noise {_noise(best)}",
            {"checkpoint": name, **saved},
            action=None if saved else f"Keep {best.name}.",
        )
        return Symptom("disk", "best_checkpoint", observation)
    return Symptom("disk", "no_checkpoint", Observation(_why_none(choice), action=_next_time(account)))


def _standing(best: BestCheckpoint) -> str:
    """The best checkpoint's value, and how far it is from the best of the run."""
    own = f"{best.split} {best.by} {as_float(best.value):.4g}"
    if best.value == best.best_value:
        return f"{own}, the best of the run"
    words = "within the noise of" if best.within_noise else "perhaps no worse than"
    return f"{own}, {words} the best, {as_float(best.best_value):.4g} at step {best.best_step}, which was not saved"


def _why_none(choice: CheckpointChoice) -> str:
    """The reason why no checkpoint of this run can be advised."""
    best, faults = choice.best, [item for item in choice.checkpoints if item.fault]
    if best is not None:
        return (
            f"the best one on disk is {best.name} ({best.split} {best.by} {as_float(best.value):.4g}); the best of the "
            f"run, {as_float(best.best_value):.4g} at step {best.best_step}, was not kept"
        )
    if faults:
        return f"{faults[0].name} cannot be used: {faults[0].fault}"
    if any(item.of_run for item in choice.checkpoints):
        return "no checkpoint on disk was evaluated at its own step"
    strange = next((item for item in choice.checkpoints if not item.of_run), None)
    if strange is not None:
        whose = "is of another run" if strange.of_run is False else "is not shown to be of this run"
        return f"{strange.name} {whose}: {strange.why}"
    return "no checkpoint-N folder holds weights"


def _next_time(account: RunAccount) -> str:
    """What would have kept the best checkpoint, of the settings that were not set already."""
    if account.selection.restored:
        return _EARLIER
    by = account.decisive or _LOSS
    chosen = "" if by == _LOSS else f" and metric_for_best_model='{by}'"
    return f"Next time set load_best_model_at_end=True{chosen}, or stop near step {account.best_step}."


def _noise(best: BestCheckpoint) -> str:
    noise = best.noise_from if best.noise is None else f"+/- {best.noise:.2g} ({best.noise_from})"
    if best.standard_error is None or best.standard_error == best.noise:
        return noise
    return f"{noise}; on other data +/- {best.standard_error:.2g} (n={best.n}; a heuristic)"


def _lasting(run: RunSeries, found: Iterable[Mapping[str, Any]]) -> int | None:
    """The step from which the numbers stay bad, or None.

    That is the first step with a masked or non-finite loss, or the first of the last rows without a finite gradient,
    whichever is earlier. A single bad gradient before these was skipped by fp16 loss scaling.
    """
    rows = zip(reversed(run.steps), reversed(run.grad_norms), strict=True)
    tail = takewhile(lambda row: math.isinf(row[1]) or row[0] in run.lost_norms, rows)
    first = [*(values.get("first_step") for values in found), min((step for step, _ in tail), default=None)]
    return min((step for step in first if step is not None), default=None)


def _before_nan(choice: CheckpointChoice, step: int) -> Symptom:
    """The last checkpoint before a step with finite weights. The weights are read, because a log lags behind them."""
    broken: list[str] = []
    for item in [item for item in reversed(choice.of_run()) if item.step < step][:_TRIED]:
        if not choice.fault_of(item.name):
            after = f"; {', '.join(broken)} is not" if broken else ""
            says = f"{item.name}, saved before step {step}: its weights are finite{after}"
            action = f"Go back to {item.name}; look at the learning rate, the precision and the data after it."
            return Symptom("disk", "before_nan", Observation(says, action=action))
        broken.append(item.name)
    says = f"no checkpoint of this run from before step {step} is on disk"
    if broken:
        says = f"{', '.join(broken)}, saved before step {step}: not finite or not readable"
    return Symptom("disk", "before_nan", Observation(says, action=_FROM_THE_START))


def _nearest(choice: CheckpointChoice, step: int | None, fact: str, what: str, then: str) -> Iterator[Symptom]:
    """The whole checkpoint of this run nearest to a step; one before the step is preferred."""
    if step is None:
        return
    ranked = sorted(choice.of_run(), key=lambda item: (item.step > step, abs(item.step - step)))
    near = next((item.name for item in ranked[:_TRIED] if not choice.fault_of(item.name)), None)
    if near is not None:
        says = f"{near} is the nearest to step {step}, {what}"
        yield Symptom("disk", fact, Observation(says, action=f"Go back to {near}; {then}"))


def _mid_run(documents: Documents, choice: CheckpointChoice, last: int | None) -> Iterator[Symptom]:
    """A symptom if the weights are of a step far from the log's last one, and no evaluation chose that step."""
    own = [item for item in reversed(choice.of_run()) if _is_or_equals(choice.paths[item.name], documents)]
    if not own or last is None or own[0].step >= MID_RUN.value * last:
        return
    at = own[0]
    if choice.best is not None and choice.best.step == at.step:
        return
    says = f"{at.name} holds these weights; the log reaches step {last}"
    yield Symptom("disk", "mid_run", Observation(says, {"weights_step": at.step, "last_step": last}))


def is_within(weights: Path | None, checkpoint: Path) -> bool:
    """Whether the weights are a checkpoint's, by whichever path or link they were named: its folder or a file in it."""
    return weights is not None and real_path(weights).is_relative_to(real_path(checkpoint))


def _is_or_equals(checkpoint: Path, documents: Documents) -> bool:
    weights = documents.weights.path
    if weights is None:
        return False
    return is_within(weights, checkpoint) or _same_weights(checkpoint, weights, documents.digest_of)


def _short(documents: Documents, last: int | None) -> Iterator[Symptom]:
    """A symptom if the weights' folder is a checkpoint of an earlier step than the log's last one."""
    at = next((c for c in documents.found.checkpoints if is_within(documents.weights.path, c.path)), None)
    if at is not None and last is not None and at.step < last:
        says = f"{at.path.name} is the newest; the log reaches step {last}"
        yield Symptom("disk", "short_of_the_end", Observation(says, {"weights_step": at.step}))
