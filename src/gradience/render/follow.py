"""A run while it is being written: one frame for a terminal, or single lines for anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gradience.render.curve import curve_lines
from gradience.render.text import clean
from gradience.schema.events import Alert, Eval, Event, RunEnd, RunStart, UnknownEvent
from gradience.schema.scalars import as_float

__all__ = ["Glance", "event_line", "frame_lines", "progress_line"]


class Glance(NamedTuple):
    """What one look at a run shows."""

    model: str | None
    step: int | None
    max_steps: int | None
    loss: float | None
    rate: float | None
    points: Sequence[tuple[int, float]]  # step and loss
    evals: Sequence[tuple[str, int, float]]  # split, step and loss
    reward: float | None = None
    rewards: Sequence[tuple[int, float]] = ()  # step and reward: drawn instead of the loss where there are any
    alerts: Sequence[Alert] = ()
    not_finite: int = 0
    bad_lines: int = 0


def progress_line(glance: Glance) -> str:
    """Return where the run is, on one line."""
    planned = f" of {glance.max_steps}" if glance.max_steps else ""
    parts = [f"step {'-' if glance.step is None else glance.step}{planned}"]
    if glance.loss is not None:
        parts.append(f"loss {glance.loss:.4g}")
    if glance.reward is not None:
        parts.append(f"reward {glance.reward:.4g}")
    if glance.rate is not None:
        parts.append(f"lr {glance.rate:.3g}")
    for split in dict.fromkeys(split for split, _, _ in glance.evals):
        step, loss = next((step, loss) for name, step, loss in reversed(glance.evals) if name == split)
        parts.append(f"{clean(split)} loss {loss:.4g} @ {step}")
    if glance.not_finite:
        parts.append(f"{glance.not_finite} losses not finite")
    if glance.bad_lines:
        parts.append(f"{glance.bad_lines} lines are no events")
    return "  ".join(parts)


def frame_lines(glance: Glance, *, width: int = 72, height: int = 10, dots: bool = True) -> list[str]:
    """Return one frame: the model, where the run is, newest alerts, and the loss by step, or under RL the reward."""
    held_out = [(step, loss) for split, step, loss in glance.evals if split != "train" and not glance.rewards]
    points = glance.rewards or glance.points
    curve = curve_lines(points, marks=held_out, width=width, height=height, dots=dots)
    what = "reward" if glance.rewards else "training loss"
    legend = [f"          {what}" + (", o held-out loss" if held_out else "")] if curve else []
    alerts = [f"[{a.severity.upper()}] {clean(a.code)}: {clean(a.message)}" for a in glance.alerts[-3:]]
    lines = [f"Model: {clean(glance.model or '-')}", progress_line(glance), *alerts, *curve, *legend]
    return [line[:width] for line in lines]


def event_line(event: Event | UnknownEvent) -> str | None:
    """Return a line about an event that deserves one of its own, else None."""
    match event:
        case RunStart():
            resumed = "" if event.resumed_from_step is None else f", resumed from step {event.resumed_from_step}"
            return f"run {clean(event.run_id)} starts{resumed}"
        case Eval():
            loss = "" if event.metrics.loss is None else f"  loss {as_float(event.metrics.loss):.4g}"
            accuracy = "" if event.metrics.accuracy is None else f"  accuracy {as_float(event.metrics.accuracy):.1%}"
            return f"eval {clean(event.split)} at step {event.step}{loss}{accuracy}"
        case Alert():
            return f"[{event.severity.upper()}] {clean(event.code)}: {clean(event.message)}"
        case RunEnd():
            return f"run {clean(event.run_id)} ends: {event.status}"
    return None
