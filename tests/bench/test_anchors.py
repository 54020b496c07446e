"""Variants of an adapter, seen through PEFT: no update, a shuffled one, a scaled one."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from peft_models import loaded, merged_weights, weights_of
from safetensors.numpy import load_file
from tiny_models import bert, causal, gpt2, saved

from gradience.verbs.bench.contest import write_scaled, write_shuffled, write_without_update

MODELS = {
    "llama": (causal, {"target_modules": ["q_proj", "down_proj", "embed_tokens"], "use_rslora": True}),
    "gpt2": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "alpha_pattern": {"h.0.attn.c_attn": 3}}),
    "bert": (bert, {"target_modules": ["query"], "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request, tmp_path_factory):
    build, options = MODELS[request.param]
    return build(), saved(build(), tmp_path_factory.mktemp("anchors"), r=4, **options).adapter


def updates(model, folder):
    before, after = weights_of(model), merged_weights(loaded(model, folder).double())
    return {n: after[n] - before[n] for n in before if "classifier" not in n and np.abs(after[n] - before[n]).max() > 0}


def test_without_update_the_weights_are_the_bases_and_the_rest_is_kept(case, tmp_path):
    model, adapter = case
    write_without_update(adapter, tmp_path / "zero")
    assert updates(model, tmp_path / "zero") == {}
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "zero"))
    assert all(np.array_equal(old[name], new[name]) for name in old if "lora_" not in name)


def test_a_shuffled_update_keeps_its_singular_values_and_none_of_its_directions(case, tmp_path):
    model, adapter = case
    write_shuffled(adapter, tmp_path / "shuffled", seed=3)
    old, new = updates(model, adapter), updates(model, tmp_path / "shuffled")
    assert old.keys() == new.keys()
    for name in old:
        one, two = (np.linalg.svd(side[name], compute_uv=False) for side in (old, new))
        assert two == pytest.approx(one, abs=1e-5)
        cosine = np.sum(old[name] * new[name]) / np.linalg.norm(old[name]) ** 2
        assert abs(cosine) < 0.5
    write_shuffled(adapter, tmp_path / "again", seed=3)
    write_shuffled(adapter, tmp_path / "other", seed=4)
    again, other = (updates(model, tmp_path / name) for name in ("again", "other"))
    assert all(np.array_equal(new[n], again[n]) for n in new)
    assert not all(np.array_equal(new[n], other[n]) for n in new)


def test_a_scaled_alpha_scales_every_update(case, tmp_path):
    model, adapter = case
    write_scaled(adapter, tmp_path / "scaled", factor=0.25)
    old, new = updates(model, adapter), updates(model, tmp_path / "scaled")
    for name in old:
        assert new[name] == pytest.approx(0.25 * old[name], abs=1e-7)


def test_a_config_without_an_alpha_has_pefts_of_8_scaled(case, tmp_path):
    _, adapter = case
    shutil.copytree(adapter, tmp_path / "plain")
    file = tmp_path / "plain" / "adapter_config.json"
    given = json.loads(file.read_text())
    del given["lora_alpha"]
    file.write_text(json.dumps(given))
    write_scaled(tmp_path / "plain", tmp_path / "scaled", factor=0.25)
    assert json.loads((tmp_path / "scaled" / "adapter_config.json").read_text())["lora_alpha"] == 2.0
