"""Whether the gradient of a step is added to that of the step before, as where a loop never sets gradients to zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from gradience.hf.fed import Hook
from gradience.hf.parameters import NamedParameter
from gradience.hf.wiring import is_sharded

_CLOSE: Final = 0.01  # of the gradient that was left: half precision rounds sums so


class Leftover:
    """Hooks on the smallest trained tensor, which see what each backward pass adds to its gradient.

    What is there beyond the sum of what was added since a step is what was not set to zero. It is `kept` if it is the
    gradient that the step left, as clipping left it. Sharded and sparse gradients are not looked at. `arrived`
    counts the backward passes.
    """

    def __init__(self, parts: Sequence[NamedParameter]) -> None:
        self.compared = self.kept = self.arrived = 0
        self._added: torch.Tensor | None = None
        self._whole: torch.Tensor | None = None
        self._left: torch.Tensor | None = None
        live = [part.tensor for part in parts if part.tensor.requires_grad]
        whole = [tensor for tensor in live if not is_sharded(tensor) and not hasattr(tensor, "to_local")]
        # The smallest is enough, and its gradient is copied at every backward pass.
        self._tensor = min(whole, key=torch.Tensor.numel, default=None)
        self._handles: list[Any] = []
        if self._tensor is not None:
            after = self._tensor.register_post_accumulate_grad_hook(Hook(self._accumulated))
            self._handles = [self._tensor.register_hook(Hook(self._arrived)), after]

    def step_made(self) -> None:
        """Compare what the step's gradient was, and note what it leaves."""
        added, whole, left = self._added, self._whole, self._left
        if added is not None and whole is not None and left is not None:
            size = float(torch.linalg.vector_norm(left))
            self.compared += size > 0.0
            self.kept += size > 0.0 and float(torch.linalg.vector_norm(whole - added - left)) <= _CLOSE * size
        self._added = self._whole = None
        self._left = None if self._tensor is None else _copied(self._tensor.grad)

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _arrived(self, gradient: torch.Tensor) -> None:
        self.arrived += 1
        try:
            now = _copied(gradient)
            self._added = now if self._added is None or now is None else self._added + now
        except RuntimeError:  # no memory, or the model was moved meanwhile: the backward pass goes on
            self._give_up()

    def _accumulated(self, tensor: torch.Tensor) -> None:
        try:
            self._whole = _copied(tensor.grad)
        except RuntimeError:  # the same
            self._give_up()

    def _give_up(self) -> None:
        self.remove()
        self._tensor = self._added = self._whole = self._left = None


def _copied(gradient: torch.Tensor | None) -> torch.Tensor | None:
    # It is a copy, because clipping and `zero_grad` change the gradient in place.
    return None if gradient is None or gradient.is_sparse else gradient.detach().to(torch.float32, copy=True)
