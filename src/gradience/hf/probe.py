"""The spectral probe: a live audit of the adapter in training, on the CPU, touching nothing.

It copies each factor out of the model and hands it to the numeric core. No gradient, weight or random
state is changed; what it costs is in the event it returns.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from statistics import fmean
from typing import Any, Final, NamedTuple

import ml_dtypes
import msgspec
import numpy as np
import numpy.typing as npt
import torch

from gradience.rules.weights.ranks import percentile

_MODULE_BYTES: Final = 48 * 1024  # of the 64 KiB a log line may have


class LiveModule(NamedTuple):
    """One adapted module of a model in training: dW = scale * B @ A."""

    name: str
    a: torch.Tensor
    b: torch.Tensor
    scale: float


def live_modules(model: torch.nn.Module) -> list[LiveModule]:
    """Return the modules that PEFT's LoRA adapts, with the active adapter's factors as they are now."""
    return [found for name, module in model.named_modules() for found in _factors(name, module)]


def spectral_metrics(model: torch.nn.Module) -> dict[str, Any]:
    """Return the payload of a `metrics` event of kind `spectral`; `elapsed_s` is what it cost.

    Without a whole LoRA factor to see (none adapted, or sharded over processes) it says so in `not_analysed`.
    """
    began = time.perf_counter()
    live = [module for module in live_modules(model) if _is_whole(module)]
    if not live:
        return {"n_layers": 0, "not_analysed": "no whole LoRA factors here", "elapsed_s": _since(began)}
    with _random_states_kept():
        rows = _rows(live)
    return {**_summary(live, rows), **_fitting(rows), "elapsed_s": _since(began)}


def _factors(name: str, module: torch.nn.Module) -> Iterator[LiveModule]:
    for side_a, side_b in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
        a, b, scaling = (getattr(module, key, None) for key in (side_a, side_b, "scaling"))
        if a is None or b is None or not scaling:
            continue
        for adapter in getattr(module, "active_adapters", ()):
            if adapter in a and adapter in b:
                yield LiveModule(
                    name.removeprefix("base_model.model."), _weight(a[adapter]), _weight(b[adapter]), scaling[adapter]
                )


def _weight(factor: Any) -> torch.Tensor:
    tensor: torch.Tensor = getattr(factor, "weight", factor)
    return tensor.detach()


def _is_whole(module: LiveModule) -> bool:
    """Whether both factors are here in full: a sharded one is flat, empty, or a tensor of another class (FSDP2)."""
    a, b = module.a, module.b
    if type(a) is not torch.Tensor or type(b) is not torch.Tensor:
        return False  # to look into it would wait for the other processes, which do not look
    return min(a.ndim, b.ndim) >= 2 and a.numel() > 0 and b.numel() > 0 and a.shape[0] == b.shape[1]


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return a matrix of the tensor's own dtype; convolutions flattened as an audit does."""
    turned = tensor.reshape(tensor.shape[0], -1).to("cpu").contiguous()
    if turned.dtype == torch.bfloat16:
        return turned.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(turned.numpy())


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Put Python's and NumPy's global random states back: importing JAX draws from NumPy's."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002  # the user's state
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _rows(live: list[LiveModule]) -> list[dict[str, Any]]:
    cpu = _cpu_only()
    from gradience.spectral.batch import spectra  # noqa: PLC0415  # JAX, only where asked for
    from gradience.spectral.grams import Factors  # noqa: PLC0415  # JAX, only where asked for

    def loader(module: LiveModule) -> Callable[[], Factors]:
        return lambda: Factors(b=_array(module.b), a=_array(module.a), scale=module.scale)

    with cpu():
        found = spectra([loader(module) for module in live])
    return [_row(module, spectrum) for module, spectrum in zip(live, found, strict=True)]


def _cpu_only() -> Callable[[], AbstractContextManager[Any]]:
    """Import JAX so that it takes no accelerator memory, and return a context in which it runs on the CPU."""
    fresh = "jax" not in sys.modules and "JAX_PLATFORMS" not in os.environ
    import jax  # noqa: PLC0415  # only where asked for

    if fresh:
        jax.config.update("jax_platforms", "cpu")
    return lambda: jax.default_device(jax.devices("cpu")[0])


def _row(module: LiveModule, spectrum: Any) -> dict[str, Any]:
    r = int(module.a.shape[0])
    if not spectrum.finite or spectrum.spectral_norm == 0.0:
        return {"name": module.name, "r": r, "state": "zero" if spectrum.finite else "non_finite"}
    return {
        "name": module.name,
        "r": r,
        "state": "ok",
        "stable_rank": _rounded(spectrum.stable_rank),
        "effective_rank": _rounded(spectrum.effective_rank),
        "utilization": _rounded(spectrum.stable_rank / r),
        "energy_rank_90": int(spectrum.energy_ranks[0]),
        "spectral_norm": _rounded(spectrum.spectral_norm),
        "frobenius_norm": _rounded(spectrum.frobenius_norm),
    }


def _fitting(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the modules, the first ones where a log line has no room for all."""
    ends = accumulate(len(msgspec.json.encode(row)) + 1 for row in rows)
    kept = sum(end <= _MODULE_BYTES for end in ends)
    return {"modules": rows[:kept], **({"modules_omitted": len(rows) - kept} if kept < len(rows) else {})}


def _summary(live: list[LiveModule], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the adapter in a few numbers, named as an audit's summary names them."""
    healthy = [row for row in rows if row["state"] == "ok"]
    summary: dict[str, Any] = {
        "n_layers": len(rows),
        "total_lora_params": sum(module.a.numel() + module.b.numel() for module in live),
        "n_zero": sum(row["state"] == "zero" for row in rows),
        "n_non_finite": sum(row["state"] == "non_finite" for row in rows),
    }
    if not healthy:
        return summary
    k90 = [float(row["energy_rank_90"]) for row in healthy]
    return summary | {
        "stable_rank_mean": fmean(row["stable_rank"] for row in healthy),
        "effective_rank_mean": fmean(row["effective_rank"] for row in healthy),
        "utilization_mean": fmean(row["utilization"] for row in healthy),
        "energy_rank_90_p50": percentile(k90, 0.5),
        "energy_rank_90_p90": percentile(k90, 0.9),
        "frobenius_norm": sum(float(row["frobenius_norm"]) ** 2 for row in healthy) ** 0.5,
        "spectral_norm_max": max(float(row["spectral_norm"]) for row in healthy),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 6)
