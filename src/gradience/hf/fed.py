"""Digest what a model is fed, and the random states, at each step: so that two runs can be compared where they part.

The digests stay on the device until 16 steps are written together, so no step waits for them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import torch

from gradience.hf.digests import batch_text, random_digest, row_hashes

_TOGETHER: Final = 16  # steps of one event, so that its envelope costs each of them 12 bytes
_MOST_BATCHES: Final = 32  # micro-batches of a step that are told

Write = Callable[[int, dict[str, Any]], None]


class _Micro(NamedTuple):
    hashes: torch.Tensor | None
    rows: int


class Hook:
    """A hook that calls a method of its owner. A copied or pickled model has one that does nothing."""

    def __init__(self, method: Callable[..., None] | None = None) -> None:
        # The model may outlive the run, and must not keep what watched it.
        self._method = None if method is None else weakref.WeakMethod(method)

    def __call__(self, *args: Any) -> None:
        """Call the method, if its owner is alive."""
        # Dynamo would trace it into the model's graph.
        if not torch.compiler.is_compiling() and self._method is not None and (method := self._method()) is not None:
            method(*args)

    def __deepcopy__(self, memo: object) -> Hook:
        """Return a hook that does nothing."""
        # An average of the weights or a reference model is made by `deepcopy`, hooks and all.
        return Hook()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a hook that does nothing."""
        return Hook, ()


class BatchDigests:
    """A hook on one model, and the digests of its batches by optimizer step.

    Args:
        model: the module that is called with the batch; None if `see` is told of each batch.
        write: gets the last step and the fields of a `step_digests` event.
        step: the optimizer steps made before.
    """

    def __init__(self, model: torch.nn.Module | None, write: Write, step: int = 0) -> None:
        self._write = write
        self._batches: list[list[_Micro]] = []
        self._open: list[_Micro] = []
        self._rng: list[str] = []
        self._state: str | None = None
        self._last = step
        hook = Hook(self._called)
        self._handle = None if model is None else model.register_forward_pre_hook(hook, with_kwargs=True)

    def step_made(self, step: int) -> None:
        """Take what was fed since the last step as that of this one."""
        # An event has consecutive steps: it states only the first.
        if self._batches and step != self._last + 1:
            self.flush()
        self._batches.append(self._open)
        self._rng.append(self._state or "")
        self._open, self._state, self._last = [], None, step
        if len(self._batches) == _TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Write the steps that are not yet written."""
        batches, self._batches = self._batches, []
        rng, self._rng = self._rng, []
        if any(batches):
            texts = _texts(batches)
            self._write(self._last, {"first": self._last - len(batches) + 1, "batches": texts, "rng": rng})

    def close(self) -> None:
        """Write the rest, and remove the hook."""
        if self._handle is not None:
            self._handle.remove()
        self.flush()

    def see(self, batch: Any) -> None:
        """Digest a batch: a tensor, a sequence of them, or a mapping."""
        args = tuple(batch) if isinstance(batch, tuple | list) else () if isinstance(batch, Mapping) else (batch,)
        self._take(args, batch if isinstance(batch, Mapping) else {})

    def _called(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Digest a batch. Evaluation, generation and reference passes have no gradient and are left out."""
        if module.training and torch.is_grad_enabled():
            self._take(args, kwargs)

    def _take(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if len(self._open) == _MOST_BATCHES:
            return
        try:
            # It is taken before the step's first batch, because dropout draws from it.
            if self._state is None:
                self._state = f"{random_digest(whole=self._last % _TOGETHER == 0):08x}"
            with torch.no_grad():
                self._open.append(_Micro(row_hashes(args, kwargs), _rows(args, kwargs)))
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
            self._open.append(_Micro(None, 0))  # inputs of an unforeseen shape


def _rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    ids = kwargs.get("input_ids", args[0] if args else None)
    tensors = [ids] if isinstance(ids, torch.Tensor) else [v for v in kwargs.values() if isinstance(v, torch.Tensor)]
    return len(tensors[0]) if tensors and tensors[0].ndim else 0


def _texts(batches: list[list[_Micro]]) -> list[str]:
    """Return each step's micro-batches as text; what lies on one device is read at once."""
    rows = [micro.hashes for batch in batches for micro in batch if micro.hashes is not None]
    numbers = torch.cat([row.to(rows[0].device) for row in rows]).tolist() if rows else []
    texts, at = [], 0
    for batch in batches:
        parts = []
        for micro in batch:
            width = 0 if micro.hashes is None else len(micro.hashes)
            parts.append(batch_text(numbers[at : at + width], micro.rows) if width else "?")
            at += width
        texts.append("|".join(parts))
    return texts
