"""Which checkpoint to keep: those on disk beside the run's held-out losses, and how far the noise tells them apart."""

from __future__ import annotations

import filecmp
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from gradience.adapters.folder import WEIGHT_NAMES
from gradience.diagnosis.listing import CheckpointFolder
from gradience.policy.thresholds import TIED
from gradience.schema.diagnose import BestCheckpoint, Checkpoint
from gradience.schema.events import Eval
from gradience.schema.reports import MonitorReport
from gradience.schema.scalars import as_float

__all__ = ["Choice", "Noise", "choose", "loss_noise", "standard_error"]

_SECOND: Final = 0.6053  # standard deviation over the median |second difference|: 1 / (0.6745 sqrt 6)
_LEAST_EVALS: Final = 5  # three second differences


class Noise(NamedTuple):
    """The noise of one held-out loss beside others, nats, or None; and how it was come by."""

    value: float | None
    source: str


class Choice(NamedTuple):
    """The checkpoints on disk with their losses, and the best of them; None where none was evaluated."""

    checkpoints: list[Checkpoint]
    best: BestCheckpoint | None = None


def choose(
    folders: Sequence[CheckpointFolder], evals: Iterable[Eval], report: MonitorReport, weights: Path | None
) -> Choice:
    """Return the checkpoints on disk, and the one whose held-out loss is lowest.

    Args:
        folders: the checkpoints, by step.
        evals: every evaluation of the run.
        report: the monitor's; its held-out split is the one compared.
        weights: the folder of the diagnosed adapter, to see which checkpoint it is.
    """
    split = _split(report)
    curve = _curve(evals, split)
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
    noise = loss_noise(list(curve.values()), error)
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
    """Return the held-out split that was found to overfit, else the one that the monitor shows first."""
    told = next((f.values.get("split") for f in report.findings if f.id == "OVF110"), None)
    return told or next((point.split for point in report.evals if point.split != "train"), None)


def _curve(evals: Iterable[Eval], split: str | None) -> dict[int, float]:
    """Return the split's finite losses by step; of two at one step the later."""
    of_split = ((e.step, e.metrics.loss) for e in evals if e.split == split)
    found = {step: as_float(loss) for step, loss in of_split if step is not None and loss is not None}
    return {step: loss for step, loss in sorted(found.items()) if math.isfinite(loss)}


def _n_and_accuracy(report: MonitorReport, split: str) -> tuple[int | None, float | None]:
    metrics = next((point.metrics for point in report.evals if point.split == split), None)
    if metrics is None:
        return None, None
    accuracy = None if metrics.accuracy is None else as_float(metrics.accuracy)
    return metrics.n, accuracy if accuracy is not None and 0.0 <= accuracy <= 1.0 else None


def loss_noise(losses: Sequence[float], standard_error: float | None) -> Noise:
    """Return the noise that two evaluations of one set are compared with.

    Both saw the same examples, so that the error of the set is mostly theirs in common: what is left shows in how
    the losses jump about, in second differences, which a steady rise leaves at zero. With too few evaluations for
    that the standard error stands in, which is too wide rather than too narrow.

    >>> loss_noise([], 0.05).value, loss_noise([], None).value
    (0.05, None)
    """
    if len(losses) >= _LEAST_EVALS:
        slopes = [b - a for a, b in pairwise(losses)]
        jumps = median(abs(b - a) for a, b in pairwise(slopes))
        return Noise(_SECOND * jumps, f"second differences of {len(losses)} evaluations of the same examples")
    if standard_error is not None:
        return Noise(standard_error, "standard error from n: too few evaluations to see how they jump about")
    return Noise(None, f"unknown: n was not recorded, and {len(losses)} evaluations are too few to see it")


def standard_error(loss: float, n: int | None, accuracy: float | None) -> float | None:
    """Return the standard error of a mean loss over n examples, nats; None where n is not known.

    A heuristic, for the losses of single examples are not logged: their spread is taken as their mean, and with an
    accuracy p as sqrt(p / (1 - p)) times their mean if that is more, for then the wrong ones carry the loss.

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
    """Whether two folders hold the same weights file, byte for byte."""
    return any(_equal(checkpoint / name, weights / name) for name in WEIGHT_NAMES)


def _equal(one: Path, other: Path) -> bool:
    try:
        return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False
