"""Where the core computes: on several devices, on one without float64, and lowered for every kind."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest

import gradience
from gradience import spectral
from gradience.spectral import batch
from gradience.spectral.batch import spectra
from gradience.spectral.grams import Factors

ROOT = Path(gradience.__file__).parent

FOUR = """
import json, sys
import jax, numpy as np
from gradience.spectral import batch
from gradience.spectral.grams import Factors

def case(seed):
    rng = np.random.default_rng(seed)
    return Factors(rng.standard_normal((40 + seed % 3, 6)), rng.standard_normal((6, 90)), 0.5)

cases = [case(seed) for seed in range(13)]
loads = [lambda one=one: one for one in cases]
seen = set()

def watched(kernel):
    def call(*stacks):
        found = kernel(*stacks)
        shards = found.sigma.addressable_shards
        assert all(4 * len(shard.data) == len(found.sigma) for shard in shards)
        assert "all-gather" not in kernel.lower(*stacks).compile().as_text()  # no device needs another's modules
        seen.update(shard.device.id for shard in shards)
        return found
    return call

batch.batched_by_grams, batch.batched_by_qr = watched(batch.batched_by_grams), watched(batch.batched_by_qr)
by_grams, devices = batch.spectra(loads), sorted(seen)
seen.clear()
batch.on_cpu = lambda: False
by_qr = batch.spectra(loads)
print(json.dumps([[one.sigma.tolist() for one in found] for found in (by_grams, by_qr)] + [devices, sorted(seen)]))
"""


def case(seed: int) -> Factors:
    rng = np.random.default_rng(seed)
    return Factors(rng.standard_normal((40 + seed % 3, 6)), rng.standard_normal((6, 90)), 0.5)


def test_four_devices_give_the_numbers_of_one_and_each_computes_its_part():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", FOUR], env=environment, capture_output=True, text=True, check=True)
    by_grams, by_qr, devices_of_grams, devices_of_qr = json.loads(done.stdout)
    assert devices_of_grams == devices_of_qr == [0, 1, 2, 3]
    alone = spectra([lambda seed=seed: case(seed) for seed in range(13)])
    for place, one in enumerate(alone):
        assert by_grams[place] == pytest.approx(one.sigma, rel=1e-12)
        assert by_qr[place] == pytest.approx(one.sigma, rel=1e-12)


@pytest.mark.parametrize(
    ("numbers", "devices", "rows"), [(1, 1, 64), (1, 4, 64), (300, 4, 4), (100, 4, 8), (100, 3, 9)]
)
def test_a_call_has_an_equal_part_for_each_device_and_at_least_one_module(numbers, devices, rows):
    assert batch.rows_for(numbers, 1000, [jax.devices()[0]] * devices) == rows


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e12])
def test_a_device_without_float64_keeps_its_stated_bound_at_any_scale(monkeypatch, size):
    monkeypatch.setattr(batch, "on_cpu", lambda: False)
    monkeypatch.setattr(batch, "has_float64", lambda: False)
    for seed, (d_out, r, d_in) in enumerate([(40, 6, 90), (1500, 16, 700), (300, 64, 2000), (3, 8, 50)]):
        rng = np.random.default_rng(seed)
        b, a = rng.standard_normal((d_out, r)) * 0.7 ** np.arange(r) * size, rng.standard_normal((r, d_in))
        b, a = b.astype(np.float32), a.astype(np.float32)
        (found,) = spectra([lambda b=b, a=a: Factors(b, a, 2.0)])
        wide = b.astype(np.float64), a.astype(np.float64)
        exact = 2.0 * np.linalg.svd(wide[0] @ wide[1], compute_uv=False)[:r]
        bound = 2.0 * batch.SINGLE_ERROR * np.linalg.norm(wide[0], 2) * np.linalg.norm(wide[1], 2)
        error = np.abs(found.sigma[: len(exact)] - exact).max()
        assert 0.0 < error <= bound  # of zero it would be float64
        assert found.stable_rank == pytest.approx(np.sum(exact**2) / exact[0] ** 2, rel=1e-4)


# --- every kernel of the package ----------------------------------------------------------------------------------

KERNELS = {
    "spectral.batch.of_singular_values": [(8,)],
    "spectral.batch.stable_ranks": [(4, 8, 8)],
    "spectral.batch.batched_by_qr": [(4, 24, 8), (4, 8, 40)],
    "spectral.batch.batched_by_grams": [(4, 8, 8), (4, 8, 8)],
    "spectral.batch.batched_maps": [(4, 8, 8), (4, 8, 8)],
    "spectral.dense.singular_values": [(24, 40)],
    "spectral.update.svd_by_qr": [(24, 8), (8, 40)],
    "spectral.update.whole_svd": [(24, 40)],
    "spectral.update.leading_svd": [(50, 40), (40, 5)],
    "verbs.resize.pieces.split": [(8, 8), (8, 8)],
}


def kernels() -> set[str]:
    """Every jitted function that the package defines, by module and name."""
    names = [one.name for one in pkgutil.iter_modules(spectral.__path__, "spectral.")]
    return {
        f"{place}.{name}"
        for place in [*names, "verbs.resize.pieces"]
        for name, value in vars(importlib.import_module(f"gradience.{place}")).items()
        if isinstance(value, jax.stages.Wrapped) and inspect.unwrap(value).__module__ == f"gradience.{place}"
    }


def test_the_table_has_every_kernel():
    assert kernels() == set(KERNELS)
    places = [path for path in sorted(ROOT.rglob("*.py")) if "jax.jit" in path.read_text(encoding="utf-8")]
    assert {path.parent.name for path in places} == {"spectral", "resize"}  # else `kernels` misses some


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
def test_every_kernel_is_lowered_for_every_kind_of_device(platform):
    wide = platform != "tpu"
    with jax.enable_x64(wide):
        dtype = np.float64 if wide else np.float32
        for name, shapes in KERNELS.items():
            module, _, function = name.rpartition(".")
            kernel = getattr(importlib.import_module(f"gradience.{module}"), function)
            made = jax.export.export(kernel, platforms=[platform])(*(jax.ShapeDtypeStruct(s, dtype) for s in shapes))
            assert made.platforms == (platform,)
