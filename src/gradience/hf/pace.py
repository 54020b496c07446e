"""How fast a training goes, what it waits for, and what memory it takes; nothing here waits for the device.

Times are the host's. The tokens of a window are counted on the device and read when the trainer has just read a loss,
so the read finds the device idle.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch

from gradience.hf.fed import Hook

EVERY: Final = 10  # optimizer steps of a window, at least
_STATUS: Final = Path("/proc/self/status")
_GROUP: Final = Path("/sys/fs/cgroup/memory.max")
_FIELDS: Final = {"VmHWM": "peak_bytes", "VmRSS": "held_bytes"}


class PaceMeter:
    """The steps since the last look; its hook counts what the model is fed.

    Args:
        model: the module that is called with `input_ids`.
        every: steps of a window, at least.
        clock: seconds.
    """

    def __init__(
        self, model: torch.nn.Module, *, every: int = EVERY, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock, self._every = clock, every
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._total = _total(self._device)
        self._handle = model.register_forward_pre_hook(Hook(self._see), with_kwargs=True)
        self._mark: float | None = None  # when the last thing besides a step ended
        self._clear(clock())

    def close(self) -> None:
        """Remove the hook."""
        self._handle.remove()

    def begin(self) -> None:
        """A step has its batches, and begins."""
        if self._mark is not None:
            self._waited += self._clock() - self._mark
            self._mark = None

    def end(self, steps: int = 1) -> None:
        """So many optimizer steps have ended: 0 for a micro-batch before the last of its step."""
        self._steps += steps
        self._mark = self._clock()

    def rest(self) -> None:
        """An evaluation or a save has ended, which is no part of the steps."""
        now = self._clock()
        if self._mark is not None:
            self._aside += now - self._mark
        self._mark = now

    def look(self) -> dict[str, Any]:
        """The fields of a `throughput` event, and a new window; nothing before the window has its steps.

        It is called when the trainer has waited for the device anyway.
        """
        now = self._clock()
        if self._steps < self._every:
            return {}
        seconds = max(now - self._began - self._aside, 1e-9)
        fields = {
            "steps": self._steps,
            "seconds_per_step": seconds / self._steps,
            "waiting_share": min(self._waited / seconds, 1.0),
            **self._fed(seconds),
            **_memory(self._device),
            "total_bytes": self._total,
        }
        self._mark = now
        self._clear(now)
        return {name: value for name, value in fields.items() if value is not None}

    def _fed(self, seconds: float) -> dict[str, Any]:
        if not self._room:
            return {}
        fed = {"longest": self._longest, "rows": self._rows, "padded_tokens_per_second": self._room / seconds}
        if self._tokens is None:
            return {**fed, "tokens_per_second": self._room / seconds}
        return {**fed, "tokens_per_second": float(self._tokens) / seconds}

    def _clear(self, now: float) -> None:
        self._began, self._aside, self._waited, self._steps = now, 0.0, 0.0, 0
        self._tokens: torch.Tensor | None = None
        self._room = self._longest = self._rows = 0

    def _see(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not module.training or not torch.is_grad_enabled():
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(ids, torch.Tensor) or ids.ndim != 2:  # rows and tokens
            return
        self._room += ids.numel()
        self._longest, self._rows = max(self._longest, ids.shape[1]), max(self._rows, ids.shape[0])
        mask = kwargs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.shape == ids.shape:
            with torch.no_grad():
                sum_ = mask.sum()
                self._tokens = sum_ if self._tokens is None else self._tokens + sum_


def _memory(device: torch.device) -> dict[str, int]:
    """Bytes by torch's allocator, or of the process; both without waiting for the device."""
    if device.type == "cuda":
        stats = torch.cuda.memory_stats(device)
        names = {"allocated": "peak_bytes", "reserved": "reserved_bytes"}
        peaks = {field: stats.get(f"{name}_bytes.all.peak", 0) for name, field in names.items()}
        return {**peaks, "held_bytes": stats.get("allocated_bytes.all.current", 0)}
    with suppress(OSError, ValueError):  # not Linux: the memory is not said
        lines = (line.split() for line in _STATUS.read_text(encoding="ascii").splitlines())
        return {_FIELDS[name]: int(rest[0]) << 10 for head, *rest in lines if (name := head[:-1]) in _FIELDS}
    return {}


def _total(device: torch.device) -> int | None:
    """Memory of the card, or of the machine, bytes; None if it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    with suppress(OSError, ValueError, AttributeError, ImportError):  # as above
        import resource  # there is none on Windows

        kinds = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
        if any(resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in kinds):
            return None  # a limit on addresses, of which a process has more than it uses
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        with suppress(OSError, ValueError):  # no control group, or one without a limit
            return min(whole, int(_GROUP.read_text(encoding="ascii")))
        return whole
    return None
