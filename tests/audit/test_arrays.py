"""Factors in memory: against NumPy's own singular values, in both orders, from Flax and Keras models and files."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from tables import every

from gradience import AdapterError, TelemetryWriter, audit_adapter, audit_arrays, audit_pytree
from gradience.schema.events import ConfigSnapshot

D_IN, D_OUT, R = 24, 40, 4


@pytest.fixture(scope="module")
def pair():
    """Factors as PEFT orders them, and the singular values of their product."""
    draw = np.random.default_rng(3)
    a, b = draw.normal(size=(R, D_IN)), draw.normal(size=(D_OUT, R))
    return a, b, np.linalg.svd(b @ a, compute_uv=False)[:R]


def only(report):
    (module,) = report.modules
    return module


def assert_is(module, sigma, scale):
    assert (module.r, module.state, module.shape) == (R, "ok", [D_OUT, D_IN])
    assert module.top_singular_values == pytest.approx(list(scale * sigma), rel=1e-5)
    assert module.stable_rank == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-5)


@pytest.mark.parametrize("kind", ["peft", "jax", "heads"])
def test_both_orders_of_axes_give_the_singular_values_of_the_same_update(pair, kind):
    import jax.numpy as jnp

    a, b, sigma = pair
    given = {"peft": (a, b), "jax": (jnp.asarray(a.T), jnp.asarray(b.T)), "heads": (a.T, b.T.reshape(R, 8, 5))}[kind]
    report = audit_arrays({"q": given}, scale=0.5, top_singular_values=R)
    assert_is(only(report), sigma, 0.5)
    assert (report.format, report.summary.total_lora_params) == ("arrays", R * (D_IN + D_OUT))
    assert only(report).alpha == 0.5 * R


def test_where_both_orders_fit_the_smaller_axis_is_the_rank():
    draw = np.random.default_rng(0)
    wide, tall = draw.normal(size=(R, 16)), draw.normal(size=(16, R))
    assert only(audit_arrays({"q": (wide, tall)})).r == R
    assert only(audit_arrays({"q": (tall, wide)})).r == R
    a, b = draw.normal(size=(R, R)), draw.normal(size=(R, R))
    found = only(audit_arrays({"q": (a, b)}, top_singular_values=1)).top_singular_values
    assert found == pytest.approx([np.linalg.svd(b @ a, compute_uv=False)[0]], rel=1e-5)


def test_stacked_layers_are_a_module_each(pair):
    a, b, sigma = pair
    report = audit_arrays({"q": (np.stack([a.T, 2 * a.T]), np.stack([b.T, b.T]))}, top_singular_values=R)
    assert [module.name for module in report.modules] == ["q.0", "q.1"]
    assert_is(report.modules[1], sigma, 2.0)


def test_each_module_may_have_its_own_scale(pair):
    a, b, sigma = pair
    report = audit_arrays({"q": (a, b), "v": (a, b)}, scale={"q": 1.0, "v": 3.0}, top_singular_values=R)
    assert_is(report.modules[1], sigma, 3.0)
    with pytest.raises(AdapterError, match="no scale for v"):
        audit_arrays({"q": (a, b), "v": (a, b)}, scale={"q": 1.0})


def test_zero_and_nan_are_judged_as_in_a_file(pair):
    a, b, _ = pair
    assert audit_arrays({"q": (a, 0 * b)}).health.verdict == "untrained"
    report = audit_arrays({"q": (a * np.nan, b)})
    assert [finding.id for finding in report.findings] == ["NUM201"]


@every("shapes", [((4, 8), (6, 3)), ((4,), (6, 4)), ((0, 8), (6, 0)), ((2, 4, 8), (3, 6, 5))], ids=str)
def test_factors_that_share_no_rank_are_refused_by_name_and_shape(shapes):
    with pytest.raises(AdapterError, match=r"layer\.q: factors of shape \[") as error:
        audit_arrays({"layer.q": (np.ones(shapes[0]), np.ones(shapes[1]))})
    assert "(r, d_in)" in error.value.advice


def test_nothing_to_audit_is_an_error():
    with pytest.raises(AdapterError, match="no pair of factors"):
        audit_arrays({})


def test_the_audit_of_arrays_is_that_of_the_file_with_the_same_factors(pair, tmp_path):
    import json

    from safetensors.numpy import save_file

    a, b, _ = pair
    name = "base_model.model.layers.0.q_proj"
    tensors = {f"{name}.lora_A.weight": a.astype("f4"), f"{name}.lora_B.weight": np.ascontiguousarray(b.astype("f4"))}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": R, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    file = audit_adapter(tmp_path)
    memory = audit_arrays({"layers.0.q_proj": (a.astype("f4"), b.astype("f4"))}, scale=2.0)
    assert memory.summary == file.summary
    assert memory.suggested == file.suggested
    assert [m.stable_rank for m in memory.modules] == [m.stable_rank for m in file.modules]
    assert memory.ledger == file.ledger


# Models


@pytest.mark.oracle("flax")
def test_flax_nnx_lora_is_found_in_a_module_its_state_and_its_pure_dict(pair):
    from flax import nnx

    a, b, sigma = pair

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.head = nnx.Linear(D_IN, D_OUT, rngs=rngs)
            self.q = nnx.LoRA(D_IN, R, D_OUT, base_module=nnx.Linear(D_IN, D_OUT, rngs=rngs), rngs=rngs)

    model = Model(nnx.Rngs(0))
    model.q.lora_a[...], model.q.lora_b[...] = a.T, b.T
    for params in (model, nnx.state(model), nnx.to_pure_dict(nnx.state(model)), [nnx.state(model)]):
        module = only(audit_pytree(params, top_singular_values=R))
        assert module.name.endswith("q.lora")
        assert_is(module, sigma, 1.0)


def test_linen_and_other_names_are_found_in_a_dict(pair):
    a, b, sigma = pair
    params = {
        "params": {
            "layers_0": {"q": {"kernel": np.ones((3, 3)), "kernel_lora_a": a.T, "kernel_lora_b": b.T}},
            "layers_1": {"lora_A": {"kernel": a.T}, "lora_B": {"kernel": b.T}},
        }
    }
    report = audit_pytree(params, scale=2.0, top_singular_values=R)
    assert {m.name for m in report.modules} == {"params.layers_0.q.kernel_lora", "params.layers_1.lora.kernel"}
    for module in report.modules:
        assert_is(module, sigma, 2.0)


def test_parameters_without_factors_are_named():
    with pytest.raises(AdapterError, match=r"no LoRA factors among 2 arrays \(a\.bias, a\.kernel\)"):
        audit_pytree({"a": {"kernel": np.ones(2), "bias": np.ones(2)}})


KERAS = """
import sys
import numpy as np
import keras
from gradience import AdapterError, audit_adapter, audit_pytree

inputs = keras.Input((24,))
dense = keras.layers.Dense(40, name="q")
model = keras.Model(inputs, dense(inputs))
dense.enable_lora(4, lora_alpha=12)
a, b = np.random.default_rng(0).normal(size=(24, 4)), np.random.default_rng(1).normal(size=(4, 40))
dense.lora_kernel_a.assign(a)
dense.lora_kernel_b.assign(b)
sigma = 3 * np.linalg.svd(a @ b, compute_uv=False)[:4]
(module,) = audit_pytree(model, top_singular_values=4).modules
assert module.name == "q.lora_kernel", module.name
assert np.allclose(module.top_singular_values, sigma, rtol=1e-5)
assert np.allclose(np.asarray(dense.kernel) - np.asarray(dense._kernel), 3 * a @ b, atol=1e-4)  # Keras' own update
model.save_weights(sys.argv[1] + "/x.weights.h5")
try:
    audit_adapter(sys.argv[1] + "/x.weights.h5")
except AdapterError as error:
    print(error.message, "|", error.advice)
"""


@pytest.mark.oracle("keras")
@pytest.mark.slow  # imports Keras in a process of its own
def test_a_keras_model_is_audited_with_its_own_scale_and_its_saved_file_is_named_for_what_it_is(tmp_path):
    env = {**os.environ, "KERAS_BACKEND": "jax", "KERAS_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", KERAS, str(tmp_path)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        "no LoRA factors: Keras merges them into the kernels as it saves | call gradience.audit_pytree" in done.stdout
    )


# Files


def test_an_npz_is_read_by_audit_and_by_its_command(pair, tmp_path, capsys):
    from gradience.cli.main import main

    a, b, sigma = pair
    path = tmp_path / "adapter.npz"
    np.savez(path, **{"layers.0.q.lora_a": a.T, "layers.0.q.lora_b": b.T})
    report = audit_adapter(path, top_singular_values=R)
    assert_is(only(report), sigma, 1.0)
    assert (report.format, report.weights_path) == ("npz", str(path))
    assert report.notes == ["the file does not say what multiplies A @ B; taken as 1.0"]
    assert main(["audit", str(path)]) == 0
    assert "layers.0.q.lora" in capsys.readouterr().out


@pytest.mark.oracle("h5py")
def test_an_h5_with_factors_is_read(pair, tmp_path):
    import h5py

    a, b, sigma = pair
    with h5py.File(tmp_path / "x.lora.h5", "w") as file:
        file["lora/0/lora_kernel_a"], file["lora/0/lora_kernel_b"] = a.T, b.T
    assert_is(only(audit_adapter(tmp_path / "x.lora.h5", top_singular_values=R)), sigma, 1.0)


def test_objects_in_an_npz_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", lora_a=np.array([print], dtype=object))
    with pytest.raises(AdapterError, match="is not a readable NumPy archive: Object arrays cannot be loaded"):
        audit_adapter(tmp_path / "x.npz")


@pytest.mark.oracle("orbax")
def test_an_orbax_checkpoint_is_named_for_what_it_is(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "step", {"q": {"lora_a": np.ones((8, 2)), "lora_b": np.ones((2, 8))}})
        saver.wait_until_finished()
    with pytest.raises(AdapterError) as error:
        audit_adapter(tmp_path / "step")
    assert error.value.advice.startswith("it is an Orbax checkpoint: restore it")
    with ocp.StandardCheckpointer() as saver:  # and what the advice says works
        assert only(audit_pytree(saver.restore(tmp_path / "step"))).r == 2


def test_an_archive_is_judged_by_the_optimizer_that_is_given(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 16), "b": (12, 4)}
    arrays = {f"{i}.lora_{side}": rng.standard_normal(shape) for i in range(4) for side, shape in shapes.items()}
    np.savez(tmp_path / "x.npz", **arrays)
    assert audit_adapter(tmp_path / "x.npz").health.verdict == "random_like"
    muon = audit_adapter(tmp_path / "x.npz", optimizer="muon")
    assert (muon.health.verdict, muon.optimizer) == ("trained", "muon")


def test_factors_in_memory_have_nothing_beside_them(tmp_path, monkeypatch):
    with TelemetryWriter(tmp_path / "run.jsonl") as log:
        log.run_start(ConfigSnapshot(model_name="own/er"))
    monkeypatch.chdir(tmp_path)
    assert audit_arrays({"q": (np.ones((2, 8)), np.ones((6, 2)))}).beside.base is None
