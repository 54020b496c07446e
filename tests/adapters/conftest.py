"""Real PEFT adapters, made on the spot, and the truth about them: merged minus base."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradience.adapters.files import find_files
from gradience.adapters.layout import Adapter, Module
from gradience.adapters.open import read_adapter
from gradience.io.safetensors import SafetensorsFile
from gradience.verbs.audit.run import audit_adapter


class Case(NamedTuple):
    """A saved adapter, and the model's weights before it and with it merged."""

    folder: Path
    base: dict[str, Any]
    merged: dict[str, Any]

    def read(self) -> Adapter:
        return read_adapter(find_files(self.folder), SafetensorsFile)


def _arrays(model: Any) -> dict[str, Any]:
    return {name: tensor.detach().double().numpy().copy() for name, tensor in model.state_dict().items()}


def _randomise(model: Any, seed: int) -> None:
    """Give every trainable tensor of the adapter values of order one, and magnitudes near their own."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        old = parameter.data
        new = old * (1 + 0.2 * noise.to(old.dtype)) if "magnitude" in name else 0.3 * noise
        parameter.data = new.to(old.dtype)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Case]:
    """Return a function that wraps a model with a PEFT config, trains nothing, and saves it."""

    def build(model: Any, config: Any, *, seed: int = 0, edit: Callable[[Any], None] | None = None) -> Case:
        from peft import PeftModel, get_peft_model

        base = _arrays(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = get_peft_model(copy.deepcopy(model), config)
            _randomise(wrapped, seed)
            if edit is not None:
                edit(wrapped)
            wrapped.save_pretrained(tmp_path / "adapter")
            # What PEFT makes of the files, not of the model in memory: saving sorts the keys of patterns.
            loaded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "adapter")
            merged = _arrays(loaded.merge_and_unload())
        return Case(tmp_path / "adapter", base, merged)

    return build


def update(module: Module, base: dict[str, Any]) -> Any:
    """Return the module's update as our reader understands it, and the truth's place for it."""
    weight = base[module.base_name]
    weight = weight if module.expert is None else weight[module.expert]
    if module.dense is not None:
        return module.dense(weight)
    b, a = module.load()
    assert (len(b), a.shape[1]) == module.shape
    assert b.shape[1] == a.shape[0] == module.r
    return module.scale * (b.astype(np.float64) @ a.astype(np.float64))


def assert_audited_as_merged(case: Case) -> None:
    """Every number of an audit with the base is that of merged minus base, by numpy's SVD."""
    folder = case.folder.parent / "base"
    folder.mkdir(exist_ok=True)
    weights = {n: w.astype(np.float32) if w.dtype == np.float64 else w for n, w in case.base.items()}
    save_file(weights, folder / "model.safetensors")
    rows = {row.name: row for row in audit_adapter(case.folder, base=folder, norms_cache=False).modules}
    adapter = case.read()
    for module in [*adapter.modules, *adapter.base_dependent]:
        truth = case.merged[module.base_name] - case.base[module.base_name]
        truth = truth if module.expert is None else truth[module.expert]
        sigma = np.linalg.svd(truth.reshape(len(truth), -1), compute_uv=False)
        energy = np.cumsum(sigma**2)
        row = rows[module.name]
        if energy[-1] == 0.0:
            assert row.state == "zero"
            continue
        assert row.state == "ok"
        assert row.stable_rank == pytest.approx(energy[-1] / sigma[0] ** 2, rel=1e-4)
        assert row.spectral_norm == pytest.approx(sigma[0], rel=1e-4)
        assert row.frobenius_norm == pytest.approx(np.sqrt(energy[-1]), rel=1e-4)
        ranks = [int(np.argmax(energy >= share * energy[-1])) + 1 for share in (0.90, 0.95, 0.99)]
        assert [row.energy_rank_90, row.energy_rank_95, row.energy_rank_99] == ranks
        for k, error in row.relative_errors.items():
            left_out = np.sqrt(max(0.0, 1.0 - energy[min(int(k), len(energy)) - 1] / energy[-1]))
            assert error == pytest.approx(left_out, rel=1e-3, abs=1e-4)


@pytest.fixture
def worst_error() -> Callable[[Case], float]:
    """Return the largest error of any module, relative to the largest entry of its true update.

    Every weight that the merge changed must belong to a module, and an audit with the base must agree with it.
    """

    def measure(case: Case) -> float:
        adapter = case.read()
        assert set(adapter.roles) == set(adapter.tensors)
        errors = []
        seen: set[str] = set()
        for module in [*adapter.modules, *adapter.base_dependent]:
            seen.add(str(module.base_name))
            got = update(module, case.base)
            truth = case.merged[module.base_name] - case.base[module.base_name]
            truth = truth if module.expert is None else truth[module.expert]
            truth = truth.reshape(len(truth), -1)
            if got.shape != truth.shape and module.expert is not None:
                got = got.T
            assert got.shape == truth.shape, module.name
            errors.append(np.abs(got - truth).max() / np.abs(truth).max())
        changed = {n for n, w in case.merged.items() if n in case.base and not np.array_equal(w, case.base[n])}
        whole = {n.removeprefix("base_model.model.") for n, role in adapter.roles.items() if role == "full_module"}
        left = {n for n in changed - seen - whole if not n.endswith(".bias")}
        assert not [n for n in left if not any(np.array_equal(case.base[n], case.base[other]) for other in seen)]
        assert errors, "no module was read"
        assert_audited_as_merged(case)
        return float(max(errors))

    return measure
