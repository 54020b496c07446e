"""Intruders of updates small enough to work out on paper: one column of W is turned out of W's own directions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gradience import AdapterError, MitigateOptions, OptionError, mitigate_adapter
from gradience.adapters.layout import LARGEST_ENTRY
from gradience.rewrite import mitigate
from gradience.rewrite.mitigate import _relative_change, mitigated, scaled

PREFIX = "base_model.model."


def base(folder: Path, *, turned: bool = False, sigma: tuple[float, ...] = (3.0, 1.0), **more: Any) -> Path:
    """W of 6 x 5 with singular values along its axes, stored as it is or (in, out)."""
    folder.mkdir()
    w = np.zeros((6, 5), np.float32)
    w[range(len(sigma)), range(len(sigma))] = sigma
    tensors = {"q.weight": w.T.copy() if turned else w, **{name.replace("__", "."): x for name, x in more.items()}}
    save_file(tensors, folder / "model.safetensors")
    return folder


def adapter(folder: Path, *, size: float = 4.0, dtype: Any = np.float32, extra: Any = None, **config: Any) -> Path:
    """dW = size e_6 e_1^T: with W's 3 e_1 e_1^T the first left vector is (3, 0, ..., size) / hypot(3, size)."""
    folder.mkdir()
    b, a = np.zeros((6, 2)), np.zeros((2, 5))
    b[5, 0], a[0, 0], a[1, 1] = size / 2, 1.0, 1.0
    tensors = {
        f"{PREFIX}q.lora_A.weight": a.astype(dtype),
        f"{PREFIX}q.lora_B.weight": b.astype(dtype),
        **(extra or {}),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    given = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(given))
    return folder


def new_update(folder: Path) -> np.ndarray:
    tensors = load_file(folder / "adapter_model.safetensors")
    b, a = (tensors[f"{PREFIX}q.lora_{side}.weight"].astype(np.float64) for side in "BA")
    return 2.0 * b @ a


@pytest.mark.parametrize("turned", [False, True], ids=["(out, in)", "(in, out)"])
@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0])
def test_an_intruder_at_an_overlap_of_three_fifths(scale, turned, tmp_path):
    """u = (3, 4) / 5 in the plane of e_1 and e_6, and u^T dW = 16 / 5 of dW's 4."""
    folder = adapter(tmp_path / "a", fan_in_fan_out=turned)
    report = mitigate_adapter(
        folder, base(tmp_path / "base", turned=turned), tmp_path / "out", scale=scale, k=1, eps=0.61
    )
    removed = (1.0 - scale) * 3.2
    new = np.array([-0.6 * removed, 4.0 - 0.8 * removed])
    wanted = np.zeros((6, 5))
    wanted[[0, 5], 0] = new
    np.testing.assert_allclose(new_update(tmp_path / "out"), wanted, atol=1e-6)
    (row,) = report.modules
    assert (row.name, row.before, row.scaled, row.undecided, row.method, row.converged) == ("q", 1, 1, 0, "exact", True)
    assert row.relative_change == pytest.approx(0.8 * (1.0 - scale))
    assert row.alpha_factor == pytest.approx(1.0 - 0.8 * (1.0 - scale))
    # W + dW' is (3, 4) less its part along itself: of the same direction, so an intruder as before
    assert row.after == 1
    smaller = 4.0 * row.alpha_factor  # the whole update scaled instead: (3, smaller)
    assert row.alpha_after == int(3.0 / math.hypot(3.0, smaller) < 0.61)
    assert (report.before, report.after, report.alpha_after) == (1, 1, row.alpha_after)
    assert (report.scale, report.k, report.eps, report.not_looked_at) == (scale, 1, 0.61, [])
    record = json.loads((tmp_path / "out" / "gradience_provenance.json").read_text())
    assert (record["operation"], record["options"]) == ("mitigate", {"scale": scale, "k": 1, "eps": 0.61, "seed": 0})
    (change,) = record["modules"]
    assert (change["rank_before"], change["rank_after"]) == (2, 2)
    assert change["relative_error"] == pytest.approx(0.8 * (1.0 - scale))


@pytest.mark.parametrize(
    ("k", "eps", "before"),
    [
        (1, 0.59, 0),  # an overlap of .6 is not under it
        (1, 0.61, 1),
        (2, 0.61, 1),  # W + dW = 5 u e_1^T + e_2 e_2^T: the second is W's own
        (1, 1.0, 1),
    ],
)
def test_of_the_k_leading_vectors_those_under_eps_are_intruders(k, eps, before, tmp_path):
    report = mitigate_adapter(adapter(tmp_path / "a"), base(tmp_path / "base"), k=k, eps=eps)
    assert (report.before, report.modules[0].scaled) == (before, before)


@pytest.mark.parametrize(("k", "before"), [(1, 0), (2, 1)])
def test_an_intruder_that_comes_second_is_seen_from_two_on(k, before, tmp_path):
    """W = 3 e_1 e_1^T + 9 e_2 e_2^T: the vector at .6 has the second singular value, 5."""
    report = mitigate_adapter(adapter(tmp_path / "a"), base(tmp_path / "base", sigma=(3.0, 9.0)), k=k, eps=0.61)
    assert report.before == before


def test_the_count_after_is_of_factors_as_they_are_stored(tmp_path):
    """In bfloat16 the new B is rounded, and so is what it is counted by."""
    folder = adapter(tmp_path / "a", dtype=ml_dtypes.bfloat16, size=40.0)
    report = mitigate_adapter(folder, base(tmp_path / "base"), tmp_path / "out", scale=0.3, k=1, eps=0.61)
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")[f"{PREFIX}q.lora_B.weight"]
    u = np.zeros(6)
    u[[0, 5]] = np.array([3.0, 40.0]) / math.hypot(3.0, 40.0)
    old = np.zeros((6, 2))
    old[5, 0] = 20.0
    exact = old - 0.7 * np.outer(u, u @ old)
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.astype(float), exact.astype(ml_dtypes.bfloat16).astype(float))
    assert (report.before, report.after) == (1, 1)


def test_a_module_without_an_intruder_keeps_its_bytes_and_its_alpha(tmp_path):
    folder = adapter(tmp_path / "a", size=0.1)
    report = mitigate_adapter(folder, base(tmp_path / "base"), tmp_path / "out", k=2, eps=0.9)
    (row,) = report.modules
    assert (row.before, row.scaled, row.after, row.alpha_after) == (0, 0, 0, 0)
    assert (row.relative_change, row.alpha_factor) == (0.0, 1.0)
    old, new = (load_file(each / "adapter_model.safetensors") for each in (folder, tmp_path / "out"))
    assert {name: x.tobytes() for name, x in old.items()} == {name: x.tobytes() for name, x in new.items()}
    one, two = (json.loads((each / "adapter_config.json").read_text()) for each in (folder, tmp_path / "out"))
    assert one == two


def test_only_what_lies_along_the_vectors_is_scaled():
    b, u = np.arange(12.0).reshape(4, 3), np.eye(4)[:, [1, 3]]
    found = scaled(b.astype(np.float32), u, 0.25)
    np.testing.assert_array_equal(found[[0, 2]], b[[0, 2]])
    np.testing.assert_array_equal(found[[1, 3]], 0.25 * b[[1, 3]])
    np.testing.assert_array_equal(scaled(b, u, 1.0), b)


@pytest.mark.parametrize(
    ("given", "is_refused"),
    [
        ({"scale": 0.0}, False),
        ({"scale": 1.0}, False),
        ({"scale": -0.001}, True),
        ({"scale": 1.001}, True),
        ({"k": 1}, False),
        ({"k": 0}, True),
        ({"eps": 1.0}, False),
        ({"eps": 1.001}, True),
        ({"eps": 0.001}, False),
        ({"eps": 0.0}, True),
    ],
    ids=str,
)
def test_an_option_at_the_end_of_its_range_is_taken_and_one_beyond_it_is_not(given, is_refused, tmp_path):
    asked = {"scale": 0.5, "k": 10, "eps": 0.5} | given
    if not is_refused:
        assert len(mitigate_adapter(adapter(tmp_path / "a"), base(tmp_path / "base"), **asked).modules) == 1
        return
    with pytest.raises(OptionError) as error:
        mitigate_adapter(tmp_path / "missing", tmp_path / "missing", **asked)
    [(name, value)] = given.items()
    wanted = {"scale": "from 0 to 1", "k": "a whole number from 1", "eps": "above 0, at most 1"}[name]
    assert str(error.value) == f"--{name} is {value}, expected {wanted}"


def test_an_overlap_that_is_the_threshold_is_no_intruder(monkeypatch):
    """`eps` is the overlap under which a vector is one: of upper bounds, what they leave open is not scaled."""
    u = np.eye(6)[:, :3]
    found = mitigate.Overlaps(
        np.array([0.4, 0.3, 0.3]), np.array([0.5, 0.49, 0.6]), exact=False, converged=True, left=u
    )
    monkeypatch.setattr(mitigate, "overlaps", lambda *_args, **_more: found)
    b, a = np.ones((6, 2), np.float32), np.ones((2, 5), np.float32)
    module: Any = SimpleNamespace(load=lambda: (b, a), scale=1.0, factored=None, dense=None)
    made = mitigated(module, np.ones((6, 5), np.float32), b, MitigateOptions(scale=0.0), transposed=False)
    np.testing.assert_array_equal(made.vectors, u[:, [1]])
    assert (made.before, made.undecided) == (3, 2)


@pytest.mark.parametrize(("eps", "asked"), [(0.5, [0.3, 0.5, 0.7]), (0.61, [0.3, 0.5, 0.61, 0.7])])
def test_the_bounds_separate_the_thresholds_of_an_audit_and_the_one_asked_for(eps, asked, tmp_path, monkeypatch):
    seen = []

    def spy(one: Any, two: Any, k: int, thresholds: list[float], *, seed: int) -> Any:
        seen.append((k, thresholds, seed))
        return given(one, two, k, thresholds, seed=seed)

    given: Callable[..., Any] = mitigate.overlaps
    monkeypatch.setattr(mitigate, "overlaps", spy)
    mitigate_adapter(adapter(tmp_path / "a"), base(tmp_path / "base"), k=4, eps=eps, seed=7)
    assert set(map(str, seen)) == {str((4, asked, 7))}


@pytest.mark.parametrize(("value", "taken"), [(LARGEST_ENTRY, True), (1.01 * LARGEST_ENTRY, False), (math.nan, False)])
def test_a_base_beyond_the_range_is_left_out_with_the_limit(value, taken, tmp_path):
    w = np.eye(6, 5)
    w[2, 2] = value
    folder = base(tmp_path / "base", v__weight=w)
    extra = {f"{PREFIX}v.lora_{s}.weight": np.ones(shape, np.float32) for s, shape in (("A", (2, 5)), ("B", (6, 2)))}
    report = mitigate_adapter(adapter(tmp_path / "a", extra=extra), folder)
    assert [row.name for row in report.modules] == ["q", "v"][: 1 + taken]
    said = "it holds NaN, or numbers over the limit of 3.4e+38"
    assert [(item.name, item.reason) for item in report.not_looked_at] == [] if taken else [("v", said)]


@pytest.mark.parametrize(("size", "taken"), [(1e37, True), (1e38, False)])
def test_an_update_beyond_float32_is_left_out(size, taken, tmp_path):
    """The bound is |scale| norm(B) norm(A): sqrt(12) sqrt(10) times the entries of B here."""
    pair = {"A": np.ones((2, 5), np.float32), "B": np.full((6, 2), size, np.float32)}
    extra = {f"{PREFIX}v.lora_{side}.weight": value for side, value in pair.items()}
    report = mitigate_adapter(adapter(tmp_path / "a", extra=extra), base(tmp_path / "base", v__weight=np.eye(6, 5)))
    assert [row.name for row in report.modules] == ["q", "v"][: 1 + taken]
    said = [(item.name, item.reason) for item in report.not_looked_at]
    assert said == [] if taken else [("v", "its update is beyond float32")]


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (None, "the base has no q.weight"),
        ((6, 4), "the base's weight is [6, 4], and the update [6, 5]"),
        ((5, 6), "the base's weight is [5, 6], and the update [6, 5]"),
    ],
)
def test_nothing_to_compare_with_is_an_error_with_the_first_reason(shape, reason, tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(
        {"other.weight" if shape is None else "q.weight": np.ones(shape or (2, 2), np.float32)},
        folder / "model.safetensors",
    )
    with pytest.raises(AdapterError) as error:
        mitigate_adapter(adapter(tmp_path / "a"), folder)
    assert str(error.value) == f"no module can be compared with its base (first: q: {reason})"
    assert error.value.advice == "give a PEFT LoRA and its own base"


def test_modules_are_counted_from_none_to_all(tmp_path):
    seen = []
    mitigate_adapter(adapter(tmp_path / "a"), base(tmp_path / "base"), progress=lambda *at: seen.append(at))
    assert seen == [(0, 1, "q"), (1, 1, "")]


def test_other_formats_are_refused_and_what_needs_its_base_is_listed(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({f"lora_unet_q.lora_{s}.weight": np.ones((2, 2), np.float32) for s in ("up", "down")}, file)
    with pytest.raises(AdapterError) as error:
        mitigate_adapter(file, base(tmp_path / "base"))
    assert str(error.value) == "cannot mitigate this adapter: it is in kohya's format, not PEFT's"
    folder = adapter(tmp_path / "pissa", init_lora_weights="pissa")
    with pytest.raises(AdapterError, match=r"\(first: q: the update of q is a function of the base weight\)"):
        mitigate_adapter(folder, tmp_path / "base")
    loftq = adapter(tmp_path / "loftq", init_lora_weights="loftq")
    with pytest.raises(AdapterError, match=r"\(first: q: the update of q is a function of the base weight\)"):
        mitigate_adapter(loftq, tmp_path / "base")
    vocabulary = {f"{PREFIX}e.lora_embedding_{s}": np.ones(n, np.float32) for s, n in (("A", (2, 9)), ("B", (5, 2)))}
    report = mitigate_adapter(adapter(tmp_path / "e", extra=vocabulary), tmp_path / "base")
    assert [(item.name, item.reason) for item in report.not_looked_at] == [("e", "e is of kind embedding")]


def test_of_an_update_of_zero_nothing_changes():
    u = np.eye(3)[:, :1]
    assert _relative_change(np.zeros((3, 2)), np.ones((2, 4)), u, 0.0) == 0.0
    assert _relative_change(np.ones((3, 2)), np.zeros((2, 4)), u, 0.0) == 0.0
    assert _relative_change(np.eye(3, 2), np.ones((2, 4)), u, 0.25) == pytest.approx(0.75 / math.sqrt(2))
