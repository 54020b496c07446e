"""Rows 6 and 7, numbers: whatever a float32 file and a JSON config can spell ends in a report or in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hostile.inputs import STEM, adapter, base, factors
from tables import grid

VERBS = {
    "audit": ("audit", "a", "--json"),
    "audit --intruders": ("audit", "a", "--base", "base", "--intruders", "--no-cache", "--json"),
    "resize": ("resize", "a", "--rank", "2", "--out", "out", "--json"),
    "compare": ("compare", "a", "b", "--json"),
    "merge-check": ("merge-check", "a", "b", "--json"),
    "merge": ("merge", "a", "b", "--out", "out", "--json"),
    "ties": ("merge", "a", "b", "--method", "ties", "--out", "out", "--json"),
    "convert": ("convert", "a", "--to", "mlx", "--out", "out", "--json"),
    "verify-merge": ("verify-merge", "--base", "base", "--adapter", "a", "--merged", "base", "--json"),
    "diagnose": ("diagnose", "a", "--json"),
    "report": ("report", "a", "--out", "page.md"),
    "report page": ("report", "a", "--out", "page.html"),
    "check": ("check", "--peft-dir", "a", "--json"),
}


def big(scale, dtype=np.float32):
    return factors(scale=scale, dtype=dtype)


def with_entry(value):
    tensors = factors()
    tensors[f"{STEM}.lora_A.weight"][0, 0] = value
    return tensors


INPUTS = {
    "alpha 1e160": (None, {"lora_alpha": 1e160}),
    "alpha -1e300": (None, {"lora_alpha": -1e300}),
    "alpha 1e-320": (None, {"lora_alpha": 1e-320}),
    "alpha of 300 digits": (None, {"lora_alpha": 10**300}),
    "alpha_pattern 1e200": (None, {"alpha_pattern": {"q_proj": 1e200}}),
    "factors of 1e30": (big(1e30), {}),
    "factors of 1e-30": (big(1e-30), {}),
    "float64 factors of 1e200": (big(1e200, np.float64), {}),
    "float16 factors at the limit": (big(3e4, np.float16), {}),
    "one entry of 3e38": (with_entry(3e38), {}),
    "one entry inf": (with_entry(np.inf), {}),
    "one entry NaN": (with_entry(np.nan), {}),
}


@grid(each=6, verb=VERBS, case=INPUTS)
def test_no_size_of_number_ends_in_a_traceback_or_a_warning_of_a_library(run, tmp_path, verb, case):
    tensors, config = INPUTS[case]
    adapter(tmp_path / "a", tensors, config)
    adapter(tmp_path / "b", factors(seed=1))
    base(tmp_path / "base")
    told = run(*VERBS[verb])
    assert told.code in {0, 1, 2, 3}
    assert len(told.errors) <= (told.code == 2)
    if "--json" in VERBS[verb] and told.out:
        json.loads(told.out, parse_constant=pytest.fail)


@pytest.mark.parametrize("entry", [np.inf, 3e38, np.nan])
def test_a_base_whose_weights_overflow_is_a_verdict_without_a_warning(run, tmp_path, entry):
    weight = np.full((20, 12), entry, np.float32)
    adapter(tmp_path / "a")
    base(tmp_path / "base", {"model.layers.0.self_attn.q_proj.weight": weight})
    base(tmp_path / "merged", {"model.layers.0.self_attn.q_proj.weight": -weight})
    told = run("verify-merge", "--base", "base", "--adapter", "a", "--merged", "merged", "--json")
    assert told.code in {1, 3}
    assert told.errors == []


SHAPES = {
    "all differ": [{"q": (20, 12)}, {"q": (40, 24)}],
    "of three all differ": [{"q": (20, 12)}, {"q": (40, 24)}, {"q": (60, 36)}],
    "of three the third is alone": [{"q": (20, 12)}, {"q": (20, 12)}, {"q": (60, 36)}],
    "inputs differ": [{"q": (20, 12)}, {"q": (20, 24)}],
    "none is shared": [{"q": (20, 12)}, {"v": (20, 12)}],
    "one of two fits": [{"q": (20, 12), "v": (8, 8)}, {"q": (20, 12), "v": (9, 9)}],
}


@grid(each=2, verb=["merge-check", "compare", "merge"], case=SHAPES)
def test_adapters_of_models_of_other_sizes_are_told_apart_in_words(run, tmp_path, verb, case):
    for name, modules in zip("abc", SHAPES[case], strict=False):
        tensors = {}
        for module, shape in modules.items():
            tensors |= factors(shape, stem=STEM.replace("q_proj", f"{module}_proj"))
        adapter(tmp_path / name, tensors, {"target_modules": [f"{m}_proj" for m in modules]})
    names = "abc"[: len(SHAPES[case])]
    told = run(verb, *names, *(("--out", "out") if verb == "merge" else ()))
    assert told.code in {0, 2}
    assert len(told.errors) == (told.code == 2)
