"""A DoRA module at a lower rank: cut against its base, its magnitudes fitted anew by least squares."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hand_made import adapter, base, best, diagonal, tensors_of, update
from peft import LoraConfig
from tables import every

from gradience import AdapterError, resize_adapter
from gradience.verbs.resize.weights import refit_of, refitted


def weight(w, b, a, m, scale):
    """DoRA's weight: each row of W + s B A at its magnitude."""
    v = w + scale * b @ a
    norm = np.linalg.norm(v, axis=1, keepdims=True)
    return m[:, None] * v / np.where(norm > 0.0, norm, 1.0)


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    w, b, a = rng.standard_normal((7, 5)), 0.2 * rng.standard_normal((7, 4)), rng.standard_normal((4, 5))
    return w, b, a, np.linalg.norm(w, axis=1) * (1 + 0.1 * rng.standard_normal(7))


@every("rank", [1, 2, 3, 4])
def test_the_cut_is_the_best_with_rows_weighted_and_the_loss_that_of_both_weights(rank):
    w, b, a, m = drawn(2)
    m[1] *= -1.0  # training may turn one
    fit = refitted(w, b, a, m, scale=1.5, rank=rank)
    weights = m / np.linalg.norm(w + 1.5 * b @ a, axis=1)
    np.testing.assert_allclose(weights[:, None] * (fit.b @ fit.a), best(weights[:, None] * (b @ a), rank), atol=1e-12)
    old, new = weight(w, b, a, m, 1.5), weight(w, fit.b, fit.a, fit.magnitude, 1.5)
    assert fit.lost == pytest.approx(np.sum((old - new) ** 2), rel=1e-9, abs=1e-12)
    assert fit.energy == pytest.approx(np.sum((old - w) ** 2), rel=1e-9)
    v = w + 1.5 * fit.b @ fit.a
    unit = v / np.linalg.norm(v, axis=1, keepdims=True)
    np.testing.assert_allclose(fit.magnitude, np.sum(old * unit, axis=1), atol=1e-12)  # least squares


def test_rows_of_nothing_stay_nothing_and_a_short_row_is_fitted_like_the_others():
    w, b, a, m = drawn()
    w[2], b[2], m[3] = 0.0, 0.0, 0.0
    fit = refitted(w, b, a, m, scale=2.0, rank=4)
    assert (fit.magnitude[2], fit.magnitude[3], fit.b[3].any()) == (0.0, 0.0, False)
    new = weight(w, fit.b, fit.a, fit.magnitude, 2.0)
    np.testing.assert_allclose(new, weight(w, b, a, m, 2.0), atol=1e-10)
    w, b, a, m = drawn(3)
    small = np.where(np.arange(7) == 4, 1e-6, 1.0)[:, None]
    one, two = (refitted(s * w, s * b, a, m, scale=1.5, rank=2) for s in (1.0, small))
    np.testing.assert_allclose(two.magnitude, one.magnitude, rtol=1e-9)
    assert two.lost == pytest.approx(one.lost, rel=1e-9)


MAGNITUDE = {"q.lora_magnitude_vector.weight": np.ones(6, np.float32)}
FITTING = "give the model the adapter was trained on"


@every(
    ("tensors", "message", "advice"),
    [
        (None, "q is DoRA: its magnitudes are relative to norm(W + s B A), which another B A changes",
         "give the base model with --base, and they are fitted anew"),
        ({"v__weight": np.ones((6, 5), np.float32)}, "the base has no q.weight", FITTING),
        *[
            (
                {"q__weight": np.ones(shape, np.float32)},
                f"q.weight is of shape {list(shape)} in the base, and the update of [6, 5]",
                FITTING,
            )
            for shape in ((6, 4), (5, 6))
        ],
    ],
)  # fmt: skip
def test_without_its_base_or_with_another_it_is_refused_unless_nothing_is_cut(tensors, message, advice, tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(4.0, 2.0)}, extra=MAGNITUDE, use_dora=True)
    of = None if tensors is None else base(tmp_path / "base", **tensors)
    with pytest.raises(AdapterError) as error:
        resize_adapter(folder, tmp_path / "out", rank=1, base=of)
    assert (error.value.message, error.value.advice) == (message, advice)
    assert not (tmp_path / "out").exists()
    report = resize_adapter(folder, tmp_path / "out", rank=2, base=of)
    assert (report.notes, report.modules[0].relative_error) == ([], 0.0)
    old, new = tensors_of(folder), tensors_of(tmp_path / "out")
    assert all(np.array_equal(old[name], new[name]) for name in old)


def test_rows_along_axes_are_worked_out_by_hand(tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(4.0, 2.0)}, extra=MAGNITUDE, use_dora=True)
    of = base(tmp_path / "base", q__weight=np.eye(6, 5, dtype=np.float32))
    report = resize_adapter(folder, tmp_path / "out", rank=1, base=of)
    np.testing.assert_allclose(update(tmp_path / "out", "q"), np.diag([4.0, 0, 0, 0, 0, 0])[:, :5], atol=1e-6)
    magnitude = tensors_of(tmp_path / "out")["q.lora_magnitude_vector.weight"]
    np.testing.assert_allclose(magnitude, [1.0] * 5 + [0.0], atol=1e-6)  # the last row of W is zero
    dora = "DoRA: magnitudes fitted anew by least squares; errors are of the whole change to the weight"
    assert report.notes == [dora]


@every(("given", "asked"), [("h.attn.in_proj_weight", "h.attn.in_proj_weight"), (None, "q.weight")])
def test_dora_asks_its_base_for_the_tensor_that_the_module_names(given, asked):
    module = SimpleNamespace(name="q", base_name=given)
    with pytest.raises(AdapterError, match=f"^the base has no {asked} \\("):
        refit_of(None, SimpleNamespace(first=module, layout=None), 1, SimpleNamespace(find=lambda _: None))


@pytest.mark.parametrize(
    ("targets", "turned"),
    [(["q_proj"], False), (["c_attn"], True), (["embed_tokens"], False), (["conv2d", "pointwise"], False)],
)
def test_the_error_is_the_one_that_results_and_less_than_with_the_old_magnitudes(targets, turned, make, tmp_path):
    case = make(LoraConfig(r=4, lora_alpha=6, target_modules=targets, use_dora=True, fan_in_fan_out=turned))
    report = resize_adapter(case.folder, tmp_path / "out", rank=2, base=case.base)
    before, after = case.update(), case.update(tmp_path / "out")
    for row in report.modules:
        truth = before[f"{row.name}.weight"]
        error = np.linalg.norm(after[f"{row.name}.weight"] - truth) / np.linalg.norm(truth)
        assert error == pytest.approx(row.relative_error, rel=1e-3)
        assert error < naive_error(case, row.name, truth, turned=turned or targets == ["embed_tokens"])


def naive_error(case, module, truth, *, turned):
    """The error of cutting s B A and leaving the magnitudes as they are."""
    tensors = tensors_of(case.folder)
    embedding = f"{module}.lora_embedding_A" in tensors
    names = (f"{module}.lora_embedding_{x}" if embedding else f"{module}.lora_{x}.weight" for x in "AB")
    a, b = (tensors[name].astype(np.float64) for name in names)
    w = case.model.state_dict()[f"{module}.weight"].double().numpy()
    flat = (w.T if turned else w).reshape(len(b), -1)
    cut = best(6 / 4 * b.reshape(len(b), -1) @ a.reshape(len(a), -1), 2)
    new = weight(flat, cut, np.eye(flat.shape[1]), tensors[f"{module}.lora_magnitude_vector"].reshape(-1), 1.0) - flat
    truth = (truth.T if turned else truth).reshape(new.shape)
    return np.linalg.norm(new - truth) / np.linalg.norm(truth)
