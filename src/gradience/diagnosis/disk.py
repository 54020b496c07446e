"""What the folder adds to a finding on the run: the checkpoint to go back to, or that there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from gradience.diagnosis.checkpoints import Choice
from gradience.diagnosis.listing import CheckpointFolder
from gradience.diagnosis.sources import Sources
from gradience.errors import GradienceError
from gradience.policy.joins import Sign
from gradience.schema.diagnose import BestCheckpoint
from gradience.schema.reports import MonitorReport
from gradience.schema.scalars import as_float
from gradience.telemetry.summary import RunSeries

__all__ = ["disk_signs"]

_TRIED: Final = 3  # checkpoints whose weights are looked at for one that is finite
_AFTER_LOWEST: Final = ("lowest", "where the loss was lowest", "lower the learning rate or lengthen warmup.")
_AFTER_BEST: Final = ("best_reward", "where the reward was best", "lower the learning rate or raise beta.")
_NEXT_TIME: Final = "and stop earlier; fewer epochs or more data come before less rank."


def disk_signs(sources: Sources, choice: Choice, report: MonitorReport, run: RunSeries) -> Iterator[Sign]:
    """Yield what the checkpoints on disk say to the findings of the log; nothing where no folder was looked through."""
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
    if "RWD122" in values:
        yield from _nearest(sources.checkpoints, values["RWD122"].get("best_step"), *_AFTER_BEST)
    if "END114" in values:
        yield from _short(sources, report.train.last_step)


def _to_keep(folders: Sequence[CheckpointFolder], choice: Choice, found: dict[str, Any]) -> Sign:
    best, step = choice.best, int(found["best_step"])
    if best is not None:
        saved = {"saved_as": best.name} if best.saved_as else {}
        told = f"{best.name} ({best.split} loss {as_float(best.loss):.4g}, {_beside_lowest(best)})"
        ties = [c.name for c in choice.checkpoints if c.tied]
        also = f"; {', '.join(ties)} cannot be told from it" if ties else ""
        return Sign(
            "disk",
            "best_checkpoint",
            f"{told}{also}; noise {_noise(best)}",
            values={"checkpoint": told, **saved},
            action=None if saved else f"Keep {best.name}, {_NEXT_TIME}",
        )
    if folders:
        near = min(folders, key=lambda folder: abs(folder.step - step)).path.name
        told = f"{near} (the nearest to step {step}; not evaluated at its own step)"
        action = f"Evaluate {near} and the last, keep the better, {_NEXT_TIME}"
        return Sign("disk", "best_checkpoint", told, values={"checkpoint": told}, action=action)
    action = f"Train again with checkpoints, {_NEXT_TIME}"
    return Sign("disk", "no_checkpoint", "no checkpoint-N folder holds an adapter", action=action)


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
    """Return the step from which numbers are bad for good, or None.

    That is where the loss is masked or not finite first, or where the rows begin that have no finite gradient up to
    the end. A gradient in between was skipped by fp16's loss scaling.
    """
    rows = zip(reversed(run.steps), reversed(run.grad_norms), strict=True)
    tail = takewhile(lambda row: math.isinf(row[1]) or row[0] in run.lost_norms, rows)
    first = [*(values.get("first_step") for values in found), min((step for step, _ in tail), default=None)]
    return min((step for step in first if step is not None), default=None)


def _before_nan(folders: Sequence[CheckpointFolder], step: int) -> Sign:
    """Return the last checkpoint before a step whose weights are finite: they are read, for a log lags behind."""
    before = [folder.path for folder in folders if folder.step < step]
    broken: list[str] = []
    for path in reversed(before[-_TRIED:]):
        if _is_finite(path):
            after = f"; {', '.join(broken)} is not" if broken else ""
            says = f"{path.name}, saved before step {step}: its weights are finite{after}"
            action = f"Go back to {path.name}; look at the learning rate, the precision and the data after it."
            return Sign("disk", "before_nan", says, action=action)
        broken.append(path.name)
    if broken:
        return Sign("disk", "before_nan", f"{', '.join(broken)}, saved before step {step}: not finite or not readable")
    return Sign("disk", "before_nan", f"no checkpoint from before step {step} is on disk")


def _is_finite(folder: Path) -> bool:
    from gradience.audit import audit_adapter  # noqa: PLC0415  # imports jax: only where a checkpoint is looked at

    try:
        return audit_adapter(folder).health.verdict not in {"broken", "not_analysed"}
    except GradienceError:
        return False


def _nearest(folders: Sequence[CheckpointFolder], step: int | None, fact: str, what: str, then: str) -> Iterator[Sign]:
    """Yield the checkpoint nearest a step, one before it rather than after."""
    if not folders or step is None:
        return
    near = min(folders, key=lambda folder: (folder.step > step, abs(folder.step - step))).path.name
    yield Sign("disk", fact, f"{near} is the nearest to step {step}, {what}", action=f"Go back to {near}; {then}")


def _short(sources: Sources, last: int | None) -> Iterator[Sign]:
    """Yield that the weights are of an earlier step than the log's last, where their folder says so."""
    step = next((c.step for c in sources.checkpoints if c.path == sources.weights.path), None)
    if step is not None and last is not None and step < last:
        says = f"{sources.weights.path.name if sources.weights.path else ''} is the newest; the log reaches step {last}"
        yield Sign("disk", "short_of_the_end", says, values={"weights_step": step})
