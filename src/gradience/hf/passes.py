"""How a model is called: in which mode before each step, with its adapter or without, and whether evaluations use it.

Hooks on the first two adapted modules and the last, or where none is adapted on the model and the first and the last
module that has trainable tensors. Of the calls before an optimizer step the last one with gradients is the training's;
those after a step and before an evaluation's end are the evaluation's. Where no training call was seen, as under
`torch.compile`, nothing is said.
"""

from __future__ import annotations

from typing import Any

import torch

from gradience.hf.fed import Hook
from gradience.schema.wiring import EvaluationWiring, PassWiring


class Passes:
    """Hooks that see how a model is called."""

    def __init__(self, model: torch.nn.Module) -> None:
        adapted = [module for module in model.modules() if _live_names(module)]
        self._adapted = bool(adapted)
        among = adapted or [model, *(module for module in model.modules() if _own_live(module))]
        watched = {id(module): module for module in (*among[:2], among[-1])}
        hook = Hook(self._adapter_called if adapted else self._called)
        self._handles = [module.register_forward_pre_hook(hook) for module in watched.values()]
        self._names = {id(module): _live_names(module) for module in watched.values()}
        self._last: tuple[bool, bool, bool] | None = None
        self._trained = False
        self._calls = self._used = self._drawn = 0
        self._said = (True, False, False)  # as PassWiring has it where nothing is said
        self._evaluation: EvaluationWiring | None = None

    def step_made(self) -> PassWiring | None:
        """Return how the model was called for the step that was just made, if that is new."""
        last, self._last = self._last, None
        self._calls = self._used = self._drawn = 0
        if last is None:
            return None
        self._trained = True
        new, self._said = last != self._said, last
        training, merged, off = last
        return PassWiring(training=training, merged=merged, off=off) if new else None

    def evaluated(self) -> EvaluationWiring | None:
        """Return what was called since the last step, as an evaluation ends, if that is known and new."""
        now = EvaluationWiring(
            called=self._calls > 0,
            adapted=self._used > 0 if self._adapted else None,
            # A call with gradients may be that of a micro-batch, and is of no evaluation
            training=self._calls > 0 and self._drawn == self._calls and self._last is None,
        )
        if not self._trained or now == self._evaluation:
            return None
        self._evaluation = now
        return now

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _called(self, module: torch.nn.Module, _args: Any) -> None:
        self._calls += 1
        self._drawn += module.training
        if torch.is_grad_enabled():
            self._last = module.training, False, False

    def _adapter_called(self, module: Any, _args: Any) -> None:
        off = module.disable_adapters or self._is_unused(module)
        self._calls += 1
        self._drawn += module.training
        self._used += not off
        # Reference passes and generation have no gradient, and may be without the adapter on purpose.
        if torch.is_grad_enabled():
            self._last = module.training, getattr(module, "merged", False), off

    def _is_unused(self, module: Any) -> bool:
        """Whether the adapters that are trained are not among the active ones; those trained now are asked last."""
        active = module.active_adapters
        return self._names[id(module)].isdisjoint(active) and _live_names(module).isdisjoint(active)


def _own_live(module: torch.nn.Module) -> bool:
    return any(tensor.requires_grad for tensor in module.parameters(recurse=False))


def _live_names(module: Any) -> set[str]:
    """Return the adapters of an adapted module of PEFT that have a trainable tensor there; none for other modules."""
    parts = [getattr(module, name, None) for name in getattr(module, "adapter_layer_names", ())]
    named = [of for of in parts if isinstance(of, torch.nn.ModuleDict | torch.nn.ParameterDict)]
    return {name.partition(".")[0] for of in named for name, tensor in of.named_parameters() if tensor.requires_grad}
