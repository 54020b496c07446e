"""Choose the checkpoint to keep: match those on disk with held-out losses, and see which differ beyond the noise."""

from __future__ import annotations

import filecmp
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from gradience.adapters.open import WEIGHT_NAMES
from gradience.errors import GradienceError
from gradience.rules import Observation
from gradience.rules.joins import Symptom
from gradience.rules.joins.run import MID_RUN, TIED
from gradience.schema import as_float
from gradience.schema.diagnose import BestCheckpoint, Checkpoint
from gradience.schema.reports import MonitorReport
from gradience.telemetry.series import RunSeries
from gradience.verbs.diagnose.sources import CheckpointFolder, Sources
from gradience.verbs.monitor import held_out_split

_SECOND: Final = 0.6053  # standard deviation over the median |second difference|: 1 / (0.6745 sqrt 6)
_LEAST_EVALS: Final = 5  # three second differences

_TRIED: Final = 3  # checkpoints that are audited at most to find one with finite weights
_AFTER_LOWEST: Final = ("lowest", "where the loss was lowest", "lower the learning rate or lengthen warmup.")
_AFTER_BEST: Final = ("best_reward", "where the reward was best", "lower the learning rate or raise beta.")
_NEXT_TIME: Final = "and stop earlier; try fewer epochs or more data before a lower rank."


class Noise(NamedTuple):
    """The noise of one held-out loss relative to others, in nats or None, and how it was estimated."""

    value: float | None
    source: str


class Choice(NamedTuple):
    """The checkpoints on disk with their losses, and the best of them, None if none was evaluated."""

    checkpoints: list[Checkpoint]
    best: BestCheckpoint | None = None


def choose(folders: Sequence[CheckpointFolder], run: RunSeries, report: MonitorReport, weights: Path | None) -> Choice:
    """Return the checkpoints on disk and the one with the lowest held-out loss.

    Args:
        folders: the checkpoints, by step.
        run: the run as logged.
        report: the monitor's report; its held-out split is the one compared.
        weights: the folder of the diagnosed adapter, to see which checkpoint it is.
    """
    split = _split(report)
    curve = run.losses_of(split)
    bare = [Checkpoint(name=f.path.name, step=f.step) for f in folders]
    if split is None or not curve:
        return Choice(bare)
    listed = [Checkpoint(name=c.name, step=c.step, loss=curve.get(c.step)) for c in bare]
    saved = [(curve[folder.step], folder) for folder in folders if folder.step in curve]
    if not saved:
        return Choice(listed)
    lowest_step = min(curve, key=curve.__getitem__)
    loss, folder = min(saved, key=lambda item: item[0])
    n, accuracy = _n_and_accuracy(report, split)
    error = standard_error(loss, n, accuracy)
    noise = loss_noise(list(curve.values()))
    listed = [_tied(c, loss, noise.value) for c in listed]
    best = BestCheckpoint(
        name=folder.path.name,
        step=folder.step,
        loss=loss,
        split=split,
        noise=noise.value,
        noise_from=noise.source,
        n=n,
        standard_error=error,
        lowest_loss=curve[lowest_step],
        lowest_step=lowest_step,
        within_noise=_within(loss, curve[lowest_step], noise.value),
        saved_as=str(weights) if weights and _same_weights(folder.path, weights) else "",
    )
    return Choice(listed, best)


def _split(report: MonitorReport) -> str | None:
    """The held-out split on which overfitting was found, else the one that the monitor shows first."""
    overfit = next((f.values.get("split") for f in report.findings if f.id == "OVF110"), None)
    return overfit or held_out_split(report)


def _n_and_accuracy(report: MonitorReport, split: str) -> tuple[int | None, float | None]:
    metrics = next((point.metrics for point in report.evals if point.split == split), None)
    if metrics is None:
        return None, None
    accuracy = None if metrics.accuracy is None else as_float(metrics.accuracy)
    return metrics.n, accuracy if accuracy is not None and 0.0 <= accuracy <= 1.0 else None


def loss_noise(losses: Sequence[float]) -> Noise:
    """The noise with which two evaluations of one held-out set are compared.

    Both evaluations saw the same examples, so the sampling error of the set is mostly common to them. The rest shows as
    jumps of the loss, measured by second differences, which a steady rise leaves at zero. With too few evaluations the
    noise is unknown: the standard error of one loss is not that of a difference on the same examples.

    >>> loss_noise([2.0, 1.0]).value
    """
    if len(losses) >= _LEAST_EVALS:
        slopes = [b - a for a, b in pairwise(losses)]
        jumps = median(abs(b - a) for a, b in pairwise(slopes))
        return Noise(_SECOND * jumps, f"second differences of {len(losses)} evaluations of the same examples")
    return Noise(
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
    wrong = 1.0 if accuracy is None else max(1.0 - accuracy, 1.0 / n)
    return loss * max(1.0, math.sqrt((1.0 - wrong) / wrong)) / math.sqrt(n)


def _tied(checkpoint: Checkpoint, lowest: float, noise: float | None) -> Checkpoint:
    loss = None if checkpoint.loss is None else as_float(checkpoint.loss)
    tied = loss is not None and loss > lowest and bool(_within(loss, lowest, noise))
    return Checkpoint(name=checkpoint.name, step=checkpoint.step, loss=checkpoint.loss, tied=tied)


def _within(loss: float, lowest: float, noise: float | None) -> bool | None:
    if loss <= lowest:
        return True
    return None if noise is None else loss - lowest <= TIED.value * noise


def _same_weights(checkpoint: Path, weights: Path) -> bool:
    """Whether two folders hold the same weights file, compared byte by byte."""
    return any(_equal(checkpoint / name, weights / name) for name in WEIGHT_NAMES)


def _equal(one: Path, other: Path) -> bool:
    try:
        return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def disk_symptoms(sources: Sources, choice: Choice, report: MonitorReport, run: RunSeries) -> Iterator[Symptom]:
    """The symptoms that checkpoints on disk add to the log's findings; none if no folder was searched."""
    if sources.folder is None:
        return
    values = {finding.id: finding.values for finding in report.findings}
    if "OVF110" in values:
        yield _to_keep(sources.checkpoints, choice, values["OVF110"])
    bad = [values[rule] for rule in ("NUM101", "NUM102") if rule in values]
    if bad and (step := _lasting(run, bad)) is not None:
        yield _before_nan(sources.checkpoints, step)
    if "DIV104" in values:
        yield from _nearest(sources.checkpoints, values["DIV104"].get("lowest_step"), *_AFTER_LOWEST)
    if "best_step" in values.get("RWD122", {}):  # a reward that only fails to rise has no best step
        yield from _nearest(sources.checkpoints, values["RWD122"].get("best_step"), *_AFTER_BEST)
    if "END114" in values:
        yield from _short(sources, report.train.last_step)
    else:
        yield from _mid_run(sources, choice, report.train.last_step)


def _to_keep(folders: Sequence[CheckpointFolder], choice: Choice, found: dict[str, Any]) -> Symptom:
    best, step = choice.best, int(found["best_step"])
    if best is not None:
        saved = {"saved_as": best.name} if best.saved_as else {}
        name = f"{best.name} ({best.split} loss {as_float(best.loss):.4g}, {_beside_lowest(best)})"
        ties = [c.name for c in choice.checkpoints if c.tied]
        also = f"; {', '.join(ties)} within its noise" if ties else ""
        seen = Observation(
            f"{name}{also}; noise {_noise(best)}",
            {"checkpoint": name, **saved},
            action=None if saved else f"Keep {best.name}, {_NEXT_TIME}",
        )
        return Symptom("disk", "best_checkpoint", seen)
    if folders:
        near = min(folders, key=lambda folder: abs(folder.step - step)).path.name
        name = f"{near} (the nearest to step {step}; not evaluated at its own step)"
        action = f"Evaluate {near} and the last, keep the better, {_NEXT_TIME}"
        return Symptom("disk", "best_checkpoint", Observation(name, {"checkpoint": name}, action=action))
    action = f"Train again with checkpoints, {_NEXT_TIME}"
    return Symptom("disk", "no_checkpoint", Observation("no checkpoint-N folder holds an adapter", action=action))


def _beside_lowest(best: BestCheckpoint) -> str:
    lowest, above = as_float(best.lowest_loss), as_float(best.loss) - as_float(best.lowest_loss)
    if above <= 0.0:
        return "the lowest of the run"
    words = {True: "within the noise of", False: "above", None: "perhaps no worse than"}[best.within_noise]
    return f"{words} the lowest, {lowest:.4g} at step {best.lowest_step}, which was not saved"


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


def _before_nan(folders: Sequence[CheckpointFolder], step: int) -> Symptom:
    """The last checkpoint before a step with finite weights. The weights are read, because a log lags behind them."""
    before = [folder.path for folder in folders if folder.step < step]
    broken: list[str] = []
    says, action = f"no checkpoint from before step {step} is on disk", None
    for path in reversed(before[-_TRIED:]):
        if _is_finite(path):
            after = f"; {', '.join(broken)} is not" if broken else ""
            says = f"{path.name}, saved before step {step}: its weights are finite{after}"
            action = f"Go back to {path.name}; look at the learning rate, the precision and the data after it."
            break
        broken.append(path.name)
        says = f"{', '.join(broken)}, saved before step {step}: not finite or not readable"
    return Symptom("disk", "before_nan", Observation(says, action=action))


def _is_finite(folder: Path) -> bool:
    from gradience.verbs.audit import audit_adapter  # noqa: PLC0415  # imports jax: only if a checkpoint is examined

    try:
        return audit_adapter(folder).health.verdict not in {"broken", "not_analysed"}
    except GradienceError:
        return False


def _nearest(
    folders: Sequence[CheckpointFolder], step: int | None, fact: str, what: str, then: str
) -> Iterator[Symptom]:
    """The checkpoint nearest to a step; one before the step is preferred."""
    if not folders or step is None:
        return
    near = min(folders, key=lambda folder: (folder.step > step, abs(folder.step - step))).path.name
    yield Symptom(
        "disk", fact, Observation(f"{near} is the nearest to step {step}, {what}", action=f"Go back to {near}; {then}")
    )


def _mid_run(sources: Sources, choice: Choice, last: int | None) -> Iterator[Symptom]:
    """A symptom if the weights are of a step far from the log's last one, and no evaluation chose that step."""
    at = next((c for c in reversed(sources.checkpoints) if _is_or_equals(c.path, sources.weights.path)), None)
    if at is None or last is None or at.step >= MID_RUN.value * last:
        return
    if choice.best is not None and choice.best.step == at.step:
        return
    says = f"{at.path.name} holds these weights; the log reaches step {last}"
    yield Symptom("disk", "mid_run", Observation(says, {"weights_step": at.step, "last_step": last}))


def _is_or_equals(checkpoint: Path, weights: Path | None) -> bool:
    return weights is not None and (checkpoint == weights or _same_weights(checkpoint, weights))


def _short(sources: Sources, last: int | None) -> Iterator[Symptom]:
    """A symptom if the weights' folder is a checkpoint of an earlier step than the log's last one."""
    step = next((c.step for c in sources.checkpoints if c.path == sources.weights.path), None)
    if step is not None and last is not None and step < last:
        says = f"{sources.weights.path.name if sources.weights.path else ''} is the newest; the log reaches step {last}"
        yield Symptom("disk", "short_of_the_end", Observation(says, {"weights_step": step}))
