"""The spectral probe: an audit of the adapter during training, on the CPU, that changes nothing.

It copies each factor out of the model and audits the copies. The log gets as many of the audit's rows as fit in a line,
and its summary. No gradient, weight or random state is changed. The event states the time that the probe took.
"""

from __future__ import annotations

import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from typing import Any, Final

import ml_dtypes
import msgspec
import numpy as np
import numpy.typing as npt
import torch

from gradience.adapters.layout import Module
from gradience.schema.audit import AuditSummary, ModuleAudit

_MODULE_BYTES: Final = 48 * 1024  # a log line may have 64 KiB
_OF_MODULE: Final = (
    "stable_rank",
    "effective_rank",
    "utilization",
    "energy_rank_90",
    "spectral_norm",
    "frobenius_norm",
)
_OF_SUMMARY: Final = (
    "stable_rank_mean",
    "effective_rank_mean",
    "utilization_mean",
    "energy_rank_90_p50",
    "energy_rank_90_p90",
    "update_norm",
    "update_size",
)


def live_modules(model: torch.nn.Module) -> list[Module]:
    """Return the modules that PEFT's LoRA adapts and whose factors are not sharded. They load the current factors."""
    return [adapted for name, module in model.named_modules() for adapted in _adapted(name, module)]


def spectral_metrics(model: torch.nn.Module) -> dict[str, Any]:
    """Return the payload of a `metrics` event of kind `spectral`; `elapsed_s` is the time that it took.

    If the model has no whole LoRA factors (none, or sharded over processes), `not_analysed` has the reason.
    """
    began = time.perf_counter()
    live = live_modules(model)
    if not live:
        return {"n_layers": 0, "not_analysed": "no whole LoRA factors here", "elapsed_s": _since(began)}
    with _random_states_kept():
        rows, summary = _audit(live)
    return {**_summary(rows, summary), **_fitting(list(map(_row, rows))), "elapsed_s": _since(began)}


def _adapted(name: str, module: torch.nn.Module) -> Iterator[Module]:
    for side_a, side_b in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
        a, b, scaling = (getattr(module, key, None) for key in (side_a, side_b, "scaling"))
        if a is None or b is None or not scaling:
            continue
        for adapter in getattr(module, "active_adapters", ()):
            if adapter in a and adapter in b:
                factors = _weight(b[adapter]), _weight(a[adapter])
                if _are_whole(*factors):
                    yield _module(name.removeprefix("base_model.model."), *factors, scaling[adapter])


def _module(name: str, b: torch.Tensor, a: torch.Tensor, scale: float) -> Module:
    r = int(a.shape[0])
    return Module(
        name=name,
        kind="linear",
        shape=(int(b.shape[0]), a.numel() // r),
        r=r,
        alpha=scale * r,
        scale=scale,
        params=a.numel() + b.numel(),
        load=lambda: (_array(b), _array(a)),
    )


def _weight(factor: Any) -> torch.Tensor:
    tensor: torch.Tensor = getattr(factor, "weight", factor)
    return tensor.detach()


def _are_whole(b: torch.Tensor, a: torch.Tensor) -> bool:
    """Whether both factors are complete. A sharded factor is flat, empty, or a tensor of another class (FSDP2)."""
    if type(a) is not torch.Tensor or type(b) is not torch.Tensor:
        return False  # reading it would wait for the other processes, which do not read theirs
    return min(a.ndim, b.ndim) >= 2 and a.numel() > 0 and b.numel() > 0 and a.shape[0] == b.shape[1]


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return the tensor as a matrix of its own dtype. A convolution is flattened after its first axis."""
    matrix = tensor.reshape(tensor.shape[0], -1).to("cpu").contiguous()
    if matrix.dtype == torch.bfloat16:
        # torch gives NumPy no bfloat16: the bits go over as integers.
        return matrix.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(matrix.numpy())


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Restore Python's and NumPy's global random states after the block: importing JAX draws from NumPy's."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002  # the user's state
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _audit(live: list[Module]) -> tuple[list[ModuleAudit], AuditSummary]:
    cpu = _cpu_only()
    from gradience.base.weights import factors_of  # only an audit needs it
    from gradience.spectral.batch import spectra  # imports JAX
    from gradience.verbs.audit.measured import module_row  # the same
    from gradience.verbs.audit.summary import summary_of  # the same

    with cpu():
        measured = spectra(list(map(factors_of, live)))
    rows = [module_row(module, spectrum).row for module, spectrum in zip(live, measured, strict=True)]
    return rows, summary_of(rows)


def _cpu_only() -> Callable[[], AbstractContextManager[Any]]:
    """Import JAX so that it takes no accelerator memory, and return a context in which it runs on the CPU."""
    fresh = "jax" not in sys.modules and "JAX_PLATFORMS" not in os.environ
    import jax  # only a probe needs it

    # A platform that the user chose stays, and one that is in use cannot be changed.
    if fresh:
        jax.config.update("jax_platforms", "cpu")
    return lambda: jax.default_device(jax.devices("cpu")[0])


def _row(module: ModuleAudit) -> dict[str, Any]:
    numbers = {name: _rounded(getattr(module, name)) for name in _OF_MODULE} if module.state == "ok" else {}
    return {"name": module.name, "r": module.r, "state": module.state, **numbers}


def _fitting(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the rows of modules, without the last ones if a log line has no room for all."""
    ends = accumulate(len(msgspec.json.encode(row)) + 1 for row in rows)
    kept = sum(end <= _MODULE_BYTES for end in ends)
    return {"modules": rows[:kept], **({"modules_omitted": len(rows) - kept} if kept < len(rows) else {})}


def _summary(rows: list[ModuleAudit], summary: AuditSummary) -> dict[str, Any]:
    """Return the adapter's summary numbers, named as in an audit's summary."""
    counts = {
        "n_layers": summary.n_layers,
        "total_lora_params": summary.total_lora_params,
        "n_zero": sum(row.state == "zero" for row in rows),
        "n_non_finite": sum(row.state == "non_finite" for row in rows),
    }
    healthy = [row for row in rows if row.state == "ok"]
    if not healthy:
        return counts
    return {
        **counts,
        **{name: getattr(summary, name) for name in _OF_SUMMARY},
        "frobenius_norm": math.hypot(*(float(row.frobenius_norm or 0.0) for row in healthy)),
        "spectral_norm_max": max(float(row.spectral_norm or 0.0) for row in healthy),
    }


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 6)
