"""A resize to one rank in one pass: the same bytes as in two, each factor read once, refusals that leave nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hand_made import adapter, diagonal, kohya

from gradience import AdapterError, resize_adapter
from gradience.adapters.open import open_adapter
from gradience.io.safetensors import SafetensorsFile
from gradience.verbs.resize import adapter as verb
from gradience.verbs.resize.at_once import planned_at_once
from gradience.verbs.resize.criteria import Target
from gradience.verbs.resize.cut import Job, planned_file
from gradience.verbs.resize.plan import resizable_pairs

RNG = np.random.default_rng(5)


def factors(r: int, d_out: int, d_in: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    decay = 0.6 ** np.arange(r)[:, None]
    return RNG.standard_normal((d_out, r)).astype(dtype), (RNG.standard_normal((r, d_in)) * decay).astype(dtype)


def cancelling() -> tuple[np.ndarray, np.ndarray]:
    """Return factors whose parts all but cancel: QR decides, not Gram matrices."""
    b, a = factors(4, 30, 40)
    moved = b + 1e-5 * RNG.standard_normal(b.shape).astype(np.float32)
    return np.hstack([b, moved]), np.vstack([a, -a])


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Return an adapter of many ranks, one of them below what will be asked for, one update zero, one all but zero."""
    modules = {f"layers.{i}.q_proj": factors(8, 24 + i, 20) for i in range(70)}
    modules |= {
        "zero": (np.zeros((9, 8), np.float32), factors(8, 9, 7)[1]),
        "low": diagonal(3.0, 2.0),
        "wide": factors(96, 40, 24),
        "cancels": cancelling(),
        "half": factors(8, 30, 20, ml_dtypes.bfloat16),
    }
    ranks = {"low": 2, "wide": 96}
    return adapter(tmp_path / "mixed", modules, r=8, rank_pattern=ranks, alpha_pattern=ranks)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32"])
def test_one_pass_writes_what_two_do(mixed, tmp_path, monkeypatch, dtype):
    at_once = resize_adapter(mixed, tmp_path / "one", rank=3, dtype=dtype)
    monkeypatch.setattr(verb, "planned_at_once", lambda *_, **__: None)
    in_two = resize_adapter(mixed, tmp_path / "two", rank=3, dtype=dtype)
    assert msgspec.structs.replace(at_once, out=None) == msgspec.structs.replace(in_two, out=None)
    assert {row.name: row.rank_after for row in at_once.modules}["low"] == 2
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    records = [json.loads((tmp_path / place / "gradience_provenance.json").read_bytes()) for place in ("one", "two")]
    assert [record.pop("created") > 0 for record in records] == [True, True]
    assert records[0] == records[1]


def test_the_stated_error_is_that_of_the_dense_update(tmp_path):
    b, a = factors(8, 24, 20)
    folder = adapter(tmp_path / "a", {"q_proj": (b, a)})
    report = resize_adapter(folder, tmp_path / "out", rank=3)
    sigma = np.linalg.svd(b.astype(np.float64) @ a, compute_uv=False)
    assert report.relative_error == pytest.approx(np.linalg.norm(sigma[3:]) / np.linalg.norm(sigma), rel=1e-9)


def test_each_factor_that_is_cut_is_read_once(mixed, tmp_path, monkeypatch):
    read: Counter[str] = Counter()
    whole = SafetensorsFile.read

    def counted(self, name, memory=None):
        read[name] += 1
        return whole(self, name, memory)

    monkeypatch.setattr(SafetensorsFile, "read", counted)
    resize_adapter(mixed, tmp_path / "out", rank=3)
    assert {name: count for name, count in read.items() if ".low." not in name and count > 1} == {}
    assert len(read) == 2 * 75


@pytest.mark.parametrize("spoiled", ["b", "low"])
def test_a_module_that_is_not_finite_is_refused_by_name_and_nothing_stays(tmp_path, spoiled):
    modules = {"a": factors(8, 24, 20), "b": factors(8, 24, 20), "low": diagonal(3.0, 2.0)}
    modules[spoiled][1][0, 0] = np.inf
    folder = adapter(tmp_path / "adapter", modules, r=8, rank_pattern={"low": 2}, alpha_pattern={"low": 2})
    with pytest.raises(AdapterError, match=f"^{spoiled} holds NaN"):
        resize_adapter(folder, tmp_path / "out", rank=3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("target", "form", "more", "taken"),
    [
        (Target("rank", 2.0), "peft", {}, True),
        (Target("energy", 0.9), "peft", {}, False),
        (Target("rank", 2.0), "kohya", {}, False),
        (Target("rank", 2.0), "peft", {"fan_in_fan_out": True}, False),
    ],
)
def test_one_pass_is_for_plain_factors_and_a_rank_that_is_known(tmp_path, target, form, more, taken):
    if form == "kohya":
        place = kohya(tmp_path / "a.safetensors", {"q": (*factors(4, 9, 7), 4.0)})
    else:
        place = adapter(tmp_path / "a", {"q_proj": factors(4, 9, 7)}, **more)
    found = planned_at_once(open_adapter(place)[1], target, dtype=None)
    assert (found is not None) is taken


def test_where_there_is_an_accelerator_a_resize_takes_two_passes(tmp_path, monkeypatch):
    folder = adapter(tmp_path / "a", {"q_proj": factors(4, 9, 7)})
    monkeypatch.setattr("gradience.verbs.resize.at_once.on_cpu", lambda: False)
    assert planned_at_once(open_adapter(folder)[1], Target("rank", 2.0), dtype=None) is None


def test_the_later_factor_of_a_pair_that_is_cut_comes_with_the_other(tmp_path):
    modules = {"a": factors(4, 9, 7), "low": diagonal(3.0)}
    place = adapter(tmp_path / "a", modules, r=4, rank_pattern={"low": 1}, extra={"head.weight": np.ones(3)})
    found = open_adapter(place)[1]
    tensors = planned_file(found.source, [Job(pair, 1) for pair in resizable_pairs(found)])
    marked = [tensor.name for tensor in tensors if tensor.with_another]
    cut = [name for name in found.source.tensors if ".a." in name]
    assert marked == cut[1:]
    assert len(cut) == 2
