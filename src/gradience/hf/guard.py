"""EXPERIMENTAL, off by default: on a non-finite gradient, drop the step and restore earlier, finite weights.

Every `every` steps the guard copies the trainable weights into a ring, if they are finite. When a gradient is NaN or
infinite, it drops the step's gradients, so that neither weights nor optimizer state see them, and restores the newest
copy. If a second rollback comes before a new copy was made, it restores the next older copy.

The guard cannot undo the optimizer's moments and step counts, the learning rate schedule, the position in the data,
random states, buffers (batch norm), or the loss that is already averaged into the log. A dropped step has no weight
decay. Gradients are checked after they were averaged over processes, so all ranks decide alike. The guard turns itself
off under fp16 loss scaling, which skips such steps itself, and if weights are sharded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

Report: TypeAlias = Callable[[int, dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Guard:
    """The settings of the guard. Steps are optimizer steps.

    Attributes:
        every: steps between copies of the weights.
        ring: number of copies kept.
        cooldown: steps after a rollback in which no copy is made, and a bad gradient is only dropped.
        max_rollbacks: after this many rollbacks the next bad gradient outside a cooldown ends the training.
        max_bad: more consecutive steps with a bad gradient than this end the training.
    """

    every: int = 50
    ring: int = 3
    cooldown: int = 20
    max_rollbacks: int = 3
    max_bad: int = 5

    def __post_init__(self) -> None:
        """Refuse counts that make no sense."""
        for name, least in (("every", 1), ("ring", 1), ("cooldown", 0), ("max_rollbacks", 1), ("max_bad", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")


@dataclass(slots=True)
class Watch:
    """The guard of one run: the weights it watches, their copies, and its counters."""

    guard: Guard
    weights: dict[str, torch.nn.Parameter]
    report: Report
    copies: deque[tuple[int, list[torch.Tensor]]] = field(default_factory=deque)
    rollbacks: int = 0
    quiet_until: int = -1
    bad: int = 0  # consecutive steps with a bad gradient
    on: bool = True
    _restored: int | None = None  # the step of the copy that was restored last

    @classmethod
    def over(cls, guard: Guard, model: torch.nn.Module, args: Any, step: int, report: Report) -> Watch:
        """Return the watch of a run that begins. It is off if the guard must not act in this run."""
        weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        watch = cls(guard, weights, report, deque(maxlen=guard.ring))
        reason = _unfit(args, weights.values())
        watch.on = reason is None
        report(
            step, {"action": "stand_down", "reason": reason} if reason else {"action": "arm", "weights": len(weights)}
        )
        return watch

    def after_step(self, step: int) -> None:
        """Copy the weights if a copy is due and they are finite."""
        if not self.on or step < self.quiet_until or step % self.guard.every:
            return
        if _finite(self.weights.values()):
            self.copies.append((step, [p.detach().clone() for p in self.weights.values()]))
            self.report(step, {"action": "snapshot", "copies": len(self.copies)})

    def before_step(self, step: int) -> str | None:
        """Check the gradients; drop a bad step, and restore a good copy unless cooling down.

        Returns:
            The reason to stop the training, or None to go on. A bad step changes neither weights nor optimizer.
        """
        if not self.on:
            return None
        if _finite(p.grad for p in self.weights.values() if p.grad is not None):
            self.bad = 0
            return None
        for p in self.weights.values():
            p.grad = None
        self.bad += 1
        cooling = step < self.quiet_until
        if (reason := self._beyond_help(cooling=cooling)) is not None:
            self.on = False
            self.report(step, {"action": "stop", "reason": reason})
        elif cooling:
            self.report(step, {"action": "drop", "reason": "non-finite gradient, cooling down"})
        else:
            self._roll_back(step)
        return reason

    def _beyond_help(self, *, cooling: bool) -> str | None:
        if self.bad > self.guard.max_bad:
            return f"non-finite gradients in {self.bad} steps running"
        if self.rollbacks >= self.guard.max_rollbacks and not cooling:
            return f"a non-finite gradient after {self.rollbacks} rollbacks, the limit"
        return None

    def _roll_back(self, step: int) -> None:
        if self.copies and self.copies[-1][0] == self._restored:
            self.copies.pop()  # this copy was restored before, and training failed again
        if not self.copies:
            self.report(step, {"action": "drop", "reason": "non-finite gradient, no copy to go back to"})
            return
        self._restored, copy = self.copies[-1]
        with torch.no_grad():
            for p, kept in zip(self.weights.values(), copy, strict=True):
                p.copy_(kept)
        self.rollbacks += 1
        self.quiet_until = step + self.guard.cooldown
        self.report(step, {"action": "rollback", "to_step": self._restored, "rollbacks": self.rollbacks})


def _finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether all entries of all tensors are finite. The flags are combined on the device, for a single transfer."""
    flags = [torch.isfinite(tensor.detach()).all() for tensor in tensors]
    return bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all()) if flags else True


def _unfit(args: Any, weights: Iterable[torch.nn.Parameter]) -> str | None:
    if args.fp16:
        return "fp16 loss scaling skips non-finite steps itself"
    kinds = {type(p.data) for p in weights}
    if args.deepspeed or args.fsdp or not kinds <= {torch.Tensor}:
        return "weights may be sharded over processes"
    return None if kinds else "no trainable weight"
