"""Count the rows that have an aLoRA's invocation tokens: in those without them the adapter acts on no token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gradience.hf.fed import Hook


class Invocations:
    """A hook on one model whose adapters are all aLoRAs, and its counts; without one it counts nothing."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.rows = 0
        self.invoked: int | None = None
        self._calls = _invocations(model)
        self._handle: Any = None
        if self._calls:
            self.invoked = 0
            self._handle = model.register_forward_pre_hook(Hook(self._called), with_kwargs=True)

    def remove(self) -> None:
        """Remove the hook; the counts stay."""
        if self._handle is not None:
            self._handle.remove()

    def _called(self, _module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if torch.is_grad_enabled():
            self.see(kwargs.get("input_ids", args[0] if args else None))

    def see(self, ids: Any) -> None:
        """Count the rows of a batch. One that cannot be read ends the counting, for of some rows nothing follows."""
        if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or not ids.numel() or self.invoked is None:
            return
        try:
            has = torch.stack([_has(ids, call) for call in self._calls]).any(0)
            self.invoked += int(has.count_nonzero())
            self.rows += len(ids)
        except (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):  # of a kind that is not foreseen
            self.rows, self.invoked = 0, None
            self.remove()


def _invocations(model: torch.nn.Module) -> list[list[int]]:
    """Return the invocation tokens of each adapter; none if one is no aLoRA."""
    named_configs: list[Any] = [getattr(module, "peft_config", None) for module in model.modules()]
    configs: list[Any] = [config for named in named_configs if isinstance(named, dict) for config in named.values()]
    calls = [getattr(config, "alora_invocation_tokens", None) for config in configs]
    return [list(tokens) for tokens in calls if tokens] if calls and all(calls) else []


def _has(ids: torch.Tensor, call: list[int]) -> torch.Tensor:
    """Return for each row whether the tokens stand in it, one after another."""
    wanted = torch.tensor(call, device=ids.device)
    return (ids.unfold(1, len(call), 1) == wanted).all(2).any(1) if ids.shape[1] >= len(call) else ids[:, 0] < 0
