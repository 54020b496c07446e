"""Singular values and eigenvalues come from `jnp.linalg` alone: by the source, and by verbs run without NumPy's own."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import gradience

ROOT = Path(gradience.__file__).parent
DECOMPOSITIONS = {"svd", "svdvals", "eigh", "eigvalsh", "eig", "eigvals", "pinv", "cond", "matrix_rank", "lstsq"}
NAMED = re.compile(rf"linalg|\.(?:{'|'.join(DECOMPOSITIONS)})\b")
# The base's part that PiSSA and KaSA start from: matrices that are subtracted, not spectra.
ELSEWHERE = {("adapters/kinds/__init__.py", "np.linalg.eigh"), ("adapters/kinds/__init__.py", "np.linalg.svd")}


def foreign(source: str) -> set[str]:
    """The decompositions that a source names other than as `jnp.linalg`'s, and its imports of such."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in DECOMPOSITIONS:
            name = ast.unparse(node)
            if "linalg" in name and not name.startswith("jnp.linalg."):
                found.add(name)
        if isinstance(node, ast.ImportFrom) and "linalg" in (node.module or ""):
            found.add(f"from {node.module}")
        if isinstance(node, ast.Import):
            found |= {f"import {one.name}" for one in node.names if "linalg" in one.name}
    return found


def test_the_check_sees_what_it_looks_for():
    assert foreign("np.linalg.svd(x); jnp.linalg.svd(x); np.linalg.norm(x)") == {"np.linalg.svd"}
    assert foreign("from scipy.linalg import svd") == {"from scipy.linalg"}
    assert foreign("import numpy.linalg as la") == {"import numpy.linalg"}


def test_no_module_takes_singular_values_from_anywhere_else():
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in sorted(ROOT.rglob("*.py"))
        if NAMED.search(text := path.read_text(encoding="utf-8"))
        for name in foreign(text)
    }
    assert found <= ELSEWHERE


@pytest.fixture
def without_numpy(monkeypatch):
    """Let every decomposition of NumPy and SciPy raise."""
    import scipy.linalg

    def refused(*_, **__):
        raise AssertionError("a decomposition that is not JAX's")

    for module in (np.linalg, scipy.linalg):
        for name in DECOMPOSITIONS:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, refused)


def adapter(folder: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(3):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = rng.standard_normal((8, 120), np.float32)
        tensors[f"{name}.lora_B.weight"] = rng.standard_normal((100, 8), np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def base_of(folder: Path) -> Path:
    rng = np.random.default_rng(9)
    folder.mkdir()
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(3)]
    save_file({name: rng.standard_normal((100, 120), np.float32) for name in names}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.usefixtures("without_numpy")
def test_every_verb_on_weights_runs_without_numpy_s_decompositions(tmp_path):
    from gradience import audit_adapter, compare_adapters, merge_adapters, resize_adapter
    from gradience.collect.fleet.audit import Job, audit_job

    one, two, base = adapter(tmp_path / "one", 1), adapter(tmp_path / "two", 2), base_of(tmp_path / "base")
    assert audit_adapter(one).summary.n_layers == 3
    assert audit_adapter(one, base=base, intruders=True, norms_cache=False).base is not None
    compare_adapters(one, two)
    resize_adapter(one, tmp_path / "resized", rank=2)
    for method in ("linear", "svd", "ties", "dare_linear"):
        density = 0.5 if method in {"ties", "dare_linear"} else None
        merge_adapters([one, two], tmp_path / method, method=method, density=density)
    job = Job(str(one), str(one), ("adapter_config.json", "adapter_model.safetensors"), "stamp")
    answer = audit_job(job)
    assert b"q_proj" in answer
    assert b"a decomposition" not in answer
