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
from types import SimpleNamespace

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from tables import every, few

import gradience
from gradience import audit_arrays, spectral
from gradience.spectral import base, batch, codes, devices, krylov
from gradience.spectral.batch import spectra
from gradience.spectral.grams import Factors

ROOT = Path(gradience.__file__).parent

FOUR = """
import json, sys
import jax, numpy as np
jax.lax.platform_dependent = lambda *stacks, cpu, default: default(*stacks)
from gradience.spectral import batch, devices
from gradience.spectral.grams import Factors

batch.devices = batch.devices_of_float64 = jax.local_devices

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
        assert all(len(shards) * len(shard.data) == len(found.sigma) for shard in shards)
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
    settings = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    settings["PJRT_NPROC"] = "64"  # batched calls, as an accelerator makes them, wait for threads of a CPU's pool
    program = [sys.executable, "-c", FOUR]
    done = subprocess.run(program, env=os.environ | settings, capture_output=True, text=True, check=True)
    by_grams, by_qr, devices_of_grams, devices_of_qr = json.loads(done.stdout)
    assert devices_of_grams == devices_of_qr == [0, 1, 2, 3]
    alone = spectra([lambda seed=seed: case(seed) for seed in range(13)])
    for place, one in enumerate(alone):
        assert by_grams[place] == pytest.approx(one.sigma, rel=1e-12)
        assert by_qr[place] == pytest.approx(one.sigma, rel=1e-12)


@every(("platform", "used"), [("cpu", 1), ("gpu", 4), ("tpu", 4)])
def test_the_devices_of_a_cpu_share_its_cores_and_are_used_as_one(platform, used, monkeypatch):
    local = [SimpleNamespace(platform=platform, id=n) for n in range(4)]
    monkeypatch.setattr(jax, "local_devices", lambda *, backend: local)
    assert devices.devices() == local[:used]


@pytest.mark.parametrize("size", few([1e-30, 1e-6, 1.0, 1e30], each=3))
def test_a_device_without_float64_keeps_its_stated_bound_at_any_scale(monkeypatch, size):
    monkeypatch.setattr(batch, "on_cpu", lambda: False)
    monkeypatch.setattr(batch, "has_float64", lambda: False)
    for seed, (d_out, r, d_in) in enumerate([(40, 6, 90), (1500, 16, 700), (300, 64, 2000), (3, 8, 50)]):
        rng = np.random.default_rng(seed)
        b, a = (rng.standard_normal(shape) for shape in ((d_out, r), (r, d_in)))
        b, a = b * 0.7 ** np.arange(r) * size, a * size  # the product of the sizes may be beyond float32
        b, a = b.astype(np.float32), a.astype(np.float32)
        (found,) = spectra([lambda b=b, a=a: Factors(b, a, 2.0)])
        wide = b.astype(np.float64), a.astype(np.float64)
        exact = 2.0 * np.linalg.svd(wide[0] @ wide[1], compute_uv=False)[:r]
        bound = 2.0 * batch.SINGLE_ERROR * np.linalg.norm(wide[0], 2) * np.linalg.norm(wide[1], 2)
        error = np.abs(found.sigma[: len(exact)] - exact).max()
        assert 0.0 < error <= bound  # of zero it would be float64
        assert found.stable_rank == pytest.approx(np.sum(exact**2) / exact[0] ** 2, rel=1e-4)


# --- every kernel of the package ----------------------------------------------------------------------------------

S, F = np.float32, np.float64
BASIS = krylov.Bidiagonal(
    *(
        jax.ShapeDtypeStruct(shape, kind)
        for shape, kind in (((5, 4, 30), S), ((5, 4, 20), S), ((5, 4, 5, 4), F), ((), np.int32))
    )
)


def sized(*shapes: tuple[int, ...], dtype: type = F) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]


OPERATOR = krylov.Operator(*sized((30, 20), (30, 2), (2, 20), dtype=S))
MEASURES = base.Measures(*(base.Measure(*sized((9,), (2, 9), (4, 9))) for _ in range(3)))

CODES = codes.Codes(*sized((4, 30), dtype=np.uint32), *sized((2, 30), dtype=S), coding="offset4", columns=32, block=16)

KERNELS: dict[str, tuple[list[object], dict[str, object]]] = {
    "spectral.batch.of_singular_values": (sized((8,)), {}),
    "spectral.batch.stable_ranks": (sized((4, 8, 8)), {}),
    "spectral.batch.batched_by_qr": (sized((4, 24, 8), (4, 8, 40)), {}),
    "spectral.batch.batched_by_grams": (sized((4, 8, 8), (4, 8, 8)), {}),
    "spectral.batch.batched_maps": (sized((4, 8, 8), (4, 8, 8)), {}),
    "spectral.dense.singular_values": (sized((24, 40)), {}),
    "spectral.update.svd_by_qr": (sized((24, 8), (8, 40)), {}),
    "spectral.update.whole_svd": (sized((24, 40)), {}),
    "spectral.update.leading_svd": (sized((50, 40), (40, 5)), {}),
    "spectral.krylov.advanced": ([OPERATOR, *sized((4, 30), dtype=S), BASIS, 3], {}),
    "spectral.krylov.looked": ([BASIS], {"size": 5, "k": 2, "vectors": True}),
    "spectral.krylov.dense_svd": ([OPERATOR], {}),
    "spectral.krylov.lanczos": (sized((30, 20), (2, 20), dtype=S), {"most": 8}),
    "spectral.subspace._square": (sized((8, 90)), {}),
    "spectral.subspace.compared_by_grams": (sized((4, 16, 16), (4, 16, 16), (4, 2)), {}),
    "spectral.subspace.compared_by_qr": (sized((30, 16), (16, 20), (2,)), {}),
    "spectral.sums.new_factor": (sized((8, 90), (8, 3), dtype=S), {"dtype": "bfloat16", "in_rows": True}),
    "spectral.sums.loss": ([sized((8, 8), (8, 3), (3, 3)), sized((8, 8), (8, 3), (3, 3)), *sized((8, 3), (3, 8))], {}),
    "spectral.base.sums_of_low": (
        sized((30, 20), (30, 2), (2, 20), (), dtype=S),
        {"target": "bfloat16", "delta_dtype": "float32"},
    ),
    "spectral.base.sums_of_dense": (sized((30, 20), (30, 20), dtype=S), {"target": "float16"}),
    "spectral.base.seen_from": ([BASIS], {"size": 5, "k": 2}),
    "spectral.base.within": ([MEASURES, *sized((6,), (6,), ())], {}),
    "spectral.base.exact_overlaps": ([OPERATOR, OPERATOR], {"k": 3}),
    "spectral.merging.dense_update": (sized((30, 2), (2, 20), ()), {}),
    "spectral.merging.zeroed_under": (sized((30, 20), (), dtype=S), {}),
    "spectral.merging.rescaled": ([*sized((30, 20), dtype=S), *sized((30, 20), dtype=bool), *sized((), dtype=S)], {}),
    "spectral.merging.with_agreeing": (sized((30, 20), (30, 20), (30, 20), (30, 20), dtype=S), {}),
    "spectral.merging.row_sums": (sized((3, 30, 2), (3, 2, 20)), {}),
    "spectral.quantised.restored": (sized((30, 20), dtype=S), {"name": "nf4"}),
    "spectral.codes.whole": ([CODES], {}),
    "spectral.codes.moved": ([CODES, *sized((30, 32), dtype=S)], {}),
    "spectral.codes.from_awq": (sized((32, 4), dtype=np.uint32), {}),
    "verbs.resize.pieces.split": (sized((8, 8), (8, 8)), {}),
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


OTHERS = ["cpu", "rocm"] if os.environ.get("GRADIENCE_SLOW") else []  # the other tests run here, and rocm is as cuda


def test_every_kernel_is_lowered_for_every_kind_of_device():
    """Traced once, and lowered for all of them; the usual run takes every other one."""
    platforms = ("cuda", "tpu", *OTHERS)
    with devices.float64():
        for name, (args, options) in few(KERNELS.items(), each=2):
            module, _, function = name.rpartition(".")
            kernel = getattr(importlib.import_module(f"gradience.{module}"), function)
            assert jax.export.export(kernel, platforms=platforms)(*args, **options).platforms == platforms


def test_the_numbers_of_modules_are_lowered_for_a_device_without_float64():
    with jax.enable_x64(False):  # noqa: FBT003  # JAX's own signature
        made = jax.export.export(batch.batched_by_qr, platforms=["tpu"])(*sized((4, 24, 8), (4, 8, 40), dtype=S))
    assert {one.dtype for one in made.out_avals} == {np.dtype(S), np.dtype(bool), np.dtype(np.int32)}


def test_float64_is_computed_on_the_cpu_where_a_device_has_none(monkeypatch):
    monkeypatch.setattr(devices, "devices", lambda: [SimpleNamespace(platform="tpu")])
    with devices.float64():
        assert jnp.zeros(1, float).dtype == np.float64
        assert jax.config.jax_default_device == jax.local_devices(backend="cpu")[0]
    assert jax.config.jax_default_device is None
    assert jnp.zeros(1, float).dtype == np.float32


def test_a_report_of_float32_says_so_and_one_of_float64_does_not(monkeypatch):
    from gradience.verbs.audit import report

    arrays = {"q_proj": (np.ones((2, 5), np.float32), np.ones((4, 2), np.float32))}
    assert not any("float32" in note for note in audit_arrays(arrays, scale=1.0).notes)
    monkeypatch.setattr(report, "has_float64", lambda: False)
    assert [note for note in audit_arrays(arrays, scale=1.0).notes if "at most 1e-05 of the product" in note]
