"""What a conversion refuses and remarks, word by word, and what it reports, of adapters of a few numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hand_made import PREFIX, adapter, base, config_of, update
from safetensors.numpy import load_file
from tables import every

from gradience import AdapterError, convert_adapter

RNG = np.random.default_rng(2)
B, A, M, W = (RNG.standard_normal(shape).astype(np.float32) for shape in ((6, 2), (2, 5), (6,), (6, 5)))
LORA = {"q.lora_A.weight": A, "q.lora_B.weight": B}
LOHA = {
    f"q.hada_w{i}_{x}": RNG.standard_normal(s).astype(np.float32)
    for i in (1, 2)
    for x, s in (("a", (6, 2)), ("b", (2, 5)))
}


def peft(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    return adapter(folder, {}, extra=tensors, **{"r": 2, "lora_alpha": 6, "target_modules": ["q"], **config})


HEAD = "head.weight (weights that were trained whole; it holds factors alone)"
NO_USE = "nothing here tells where they belong"
REFUSED: list[tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any], str, str]] = [
    (LORA, {}, {}, "{weights} is a plain PEFT LoRA already", "use it as it is"),
    (LORA, {}, {"rank": 1}, "{weights} is a plain PEFT LoRA already", "gradience resize changes its rank"),
    (LORA, {"alora_invocation_tokens": [1]}, {"to": "mlx"},
     "this adapter cannot be converted: aLoRA applies after its invocation tokens only (alora_invocation_tokens)",
     "see docs/convert.md for what can be"),
    (LORA | {"head.weight": M, "x.y": M, "z.w": M, "u.v": M}, {"modules_to_save": ["head"]}, {"to": "mlx"},
     f"MLX-LM's file cannot hold all of {{weights}}: {HEAD}; u.v, x.y, z.w (tensors of no known use; {NO_USE})",
     "leave them out with --drop, or merge the adapter into the base instead"),
    (LORA | {"x.y": M, "q.lora_magnitude_vector": np.abs(M)}, {"use_dora": True}, {"rank": 1},
     f"a plain PEFT LoRA cannot hold all of {{weights}}: x.y (tensors of no known use; {NO_USE})",
     "leave them out with --drop, or merge the adapter into the base instead"),
    ({f"q.lora_{side}.{name}.weight": x for name in "ab" for side, x in (("A", A), ("B", B))}, {"use_rslora": True}, {},
     "this adapter cannot be converted: the file holds several adapters: save each on its own first",
     "see docs/convert.md for what can be"),
    *(  # norms of a weight that is stored turned run over the other axis than MLX's
        (
            LORA | {"q.lora_magnitude_vector": np.abs(M)},
            {"use_dora": True, **turned},
            to,
            "q: DoRA: s B A is rescaled by the magnitude",
            "give the base model that it was trained on with --base PATH",
        )
        for turned, to in (({}, {}), ({"fan_in_fan_out": True}, {"to": "mlx"}))
    ),
    (LORA, {"init_lora_weights": "pissa"}, {}, "q: PiSSA took the best rank-r part out of the base",
     "give the base model that it was trained on with --base PATH"),
    ({f"q.hada_w{i}_a": np.ones((6, 2), np.float32) for i in (1, 2)}, {"peft_type": "LOHA"}, {},
     "no module of {weights} can be converted (q: hada_w1_b is missing beside hada_w1_a)", ""),
]  # fmt: skip


@every(("tensors", "config", "asked", "said", "advice"), REFUSED)
def test_what_is_refused_is_said_in_these_words(tensors, config, asked, said, advice, tmp_path):
    folder = peft(tmp_path / "a", tensors, **config)
    with pytest.raises(AdapterError) as error:
        convert_adapter(folder, tmp_path / "out", **asked)
    assert error.value.message == said.format(weights=folder / "adapter_model.safetensors")
    assert (error.value.advice or "") == advice
    assert not (tmp_path / "out").exists()


@every(
    ("renames", "name", "said"),
    [
        ([], "q", None),
        (["q=m.q"], "m.q", None),
        (["q.=m.q."], "m.q", None),  # dots at the end say the same
        (["x=y"], "q", None),
        (["q"], None, "no prefix to replace in 'q'"),
        (["=q"], None, "no prefix to replace in '=q'"),
    ],
)
def test_a_prefix_is_replaced_as_it_is_update(renames, name, said, tmp_path):
    folder = peft(tmp_path / "a", LORA, use_rslora=True)
    if said is not None:
        with pytest.raises(AdapterError) as error:
            convert_adapter(folder, renames=renames)
        assert (error.value.message, error.value.advice) == (said, "write --rename OLD=NEW")
        return
    convert_adapter(folder, tmp_path / "out", renames=renames)
    np.testing.assert_allclose(update(tmp_path / "out", name), 6 / math.sqrt(2) * B @ A, atol=1e-5)


def test_two_modules_of_one_name_are_refused(tmp_path):
    folder = peft(tmp_path / "a", LORA | {name.replace("q.", "v."): x for name, x in LORA.items()}, use_rslora=True)
    with pytest.raises(AdapterError) as error:
        convert_adapter(folder, renames=["v=q"])
    assert (error.value.message, error.value.advice) == ("q and v would both be called q", "correct --rename")


@every(
    ("rank", "energy", "kept"),
    [(None, None, 4), (1, None, 1), (3, None, 3), (9, None, 4), (None, 1.0, 4), (None, 0.5, None)],
)
def test_a_product_of_two_updates_is_cut_by_its_singular_values(rank, energy, kept, tmp_path):
    """LoHa of rank 2: (w1_a w1_b) o (w2_a w2_b) times 6 / 2, of rank 4."""
    folder = peft(tmp_path / "a", LOHA, peft_type="LOHA", alpha=6.0)
    report = convert_adapter(folder, tmp_path / "out", rank=rank, energy=energy)
    truth = 3.0 * (LOHA["q.hada_w1_a"] @ LOHA["q.hada_w1_b"]) * (LOHA["q.hada_w2_a"] @ LOHA["q.hada_w2_b"])
    sigma = np.linalg.svd(truth.astype(np.float64), compute_uv=False)
    if kept is None:
        kept = 1 + int(np.sum(np.cumsum(sigma**2) < energy * np.sum(sigma**2)))
    (row,) = report.modules
    assert (row.rank_before, row.rank_after, row.kind) == (4, kept, "loha")
    assert row.method == ("factors" if kept == 4 else "truncated")
    lost = np.linalg.norm(sigma[kept:]) / np.linalg.norm(sigma)
    assert row.relative_error == pytest.approx(lost, abs=1e-7)
    assert report.relative_error == pytest.approx(lost, abs=1e-7)
    seen = np.linalg.norm(update(tmp_path / "out", "q") - truth) / np.linalg.norm(truth)
    assert seen == pytest.approx(lost, abs=1e-6)
    assert (report.params_before, report.params_after) == (4 * 11, kept * 11)
    assert report.options == {key: x for key, x in (("to", "peft"), ("rank", rank), ("energy", energy)) if x}


def test_an_update_of_zero_has_no_error(tmp_path):
    report = convert_adapter(peft(tmp_path / "a", {"q.lora_A.weight": A, "q.lora_B.weight": 0 * B}, use_rslora=True))
    assert (report.relative_error, report.modules[0].relative_error) == (None, None)


@every("axis", ["(out, in)", "(in, out)"])
def test_dora_becomes_the_best_of_a_rank_of_its_whole_update(axis, tmp_path):
    """Of a weight that is stored (in, out) the norms run over its columns, which are the outputs."""
    turned = axis == "(in, out)"
    magnitude = np.abs(M)
    folder = peft(tmp_path / "a", LORA | {"q.lora_magnitude_vector": magnitude}, use_dora=True, fan_in_fan_out=turned)
    w = base(tmp_path / "base", q__weight=np.ascontiguousarray(W.T if turned else W))
    report = convert_adapter(folder, tmp_path / "out", base=w, rank=3)
    v = W.astype(np.float64) + 3.0 * B.astype(np.float64) @ A
    truth = (magnitude / np.linalg.norm(v, axis=1))[:, None] * v - W
    u, sigma, vh = np.linalg.svd(truth, full_matrices=False)
    np.testing.assert_allclose(update(tmp_path / "out", "q"), (u[:, :3] * sigma[:3]) @ vh[:3], atol=1e-5)
    assert report.modules[0].method == "dense"
    assert report.modules[0].relative_error == pytest.approx(
        np.linalg.norm(sigma[3:]) / np.linalg.norm(sigma), rel=1e-5
    )
    config = config_of(tmp_path / "out")
    assert (config.get("fan_in_fan_out", False), config["use_dora"]) == (turned, False)


def test_numbers_that_are_not_finite_or_beyond_float32_are_refused_with_the_limit(tmp_path):
    for value in (np.nan, np.inf, 3.5e38):
        b = B.astype(np.float64)
        b[0, 0] = value
        folder = peft(tmp_path / str(value), LORA | {"q.lora_B.weight": b}, use_rslora=True)
        with pytest.raises(AdapterError) as error:
            convert_adapter(folder)
        assert error.value.message == "q holds NaN or infinite values, or some over the limit of 3.4e+38"


@every("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_a_pair_is_copied_bit_by_bit_in_its_own_dtype(dtype, tmp_path):
    tensors = {name: x.astype(dtype) for name, x in LORA.items()}
    report = convert_adapter(peft(tmp_path / "a", tensors, use_rslora=True), tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name, x in tensors.items():
        assert found[f"{PREFIX}{name}"].dtype == dtype
        assert found[f"{PREFIX}{name}"].tobytes() == x.tobytes()
    config = config_of(tmp_path / "out")
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (2, pytest.approx(6 * math.sqrt(2)), False)
    assert (report.modules[0].method, report.relative_error, report.source_type) == ("copied", 0.0, "LORA rsLoRA")


@every(
    ("asked", "rank", "method"),
    [
        ({"rank": 2}, 2, "copied"),
        ({"rank": 9}, 2, "copied"),
        ({"energy": 1.0}, 2, "copied"),
        ({"rank": 1}, 1, "truncated"),
    ],
)
def test_factors_are_the_files_own_unless_something_is_left_out(asked, rank, method, tmp_path):
    report = convert_adapter(peft(tmp_path / "a", LORA, use_rslora=True), tmp_path / "out", **asked)
    whole = 6 / math.sqrt(2) * B.astype(float) @ A
    assert [(row.rank_after, row.method) for row in report.modules] == [(rank, method)]
    lost = np.linalg.norm(update(tmp_path / "out", "q") - whole) / np.linalg.norm(whole)
    assert report.relative_error == pytest.approx(lost, abs=1e-6)


def test_a_plain_adapter_is_renamed_with_its_targets_and_its_whole_tensors(tmp_path):
    tensors = {f"model.{name}": x for name, x in LORA.items()} | {"model.embed.weight": W, "head.weight": M}
    expression = r"model\.q"
    folder = peft(tmp_path / "a", tensors, target_modules=expression, modules_to_save=["embed", "head"])
    convert_adapter(folder, tmp_path / "out", renames=["model=model.language_model"])
    kept = load_file(tmp_path / "out" / "adapter_model.safetensors")
    stem = f"{PREFIX}model.language_model."
    assert set(kept) == {
        stem + "q.lora_A.weight",
        stem + "q.lora_B.weight",
        stem + "embed.weight",
        f"{PREFIX}head.weight",
    }
    np.testing.assert_array_equal(kept[stem + "embed.weight"], W)
    config = config_of(tmp_path / "out")
    assert config["target_modules"] == ["model.language_model.q"]
    np.testing.assert_array_equal(update(tmp_path / "out", "model.language_model.q"), 3 * B.astype(float) @ A)


def test_by_way_of_mlx_all_modules_get_one_rank_and_one_alpha(tmp_path):
    wide = {"v.lora_A.weight": np.vstack([A, A]), "v.lora_B.weight": np.hstack([B, -3 * B])}
    patterns = {"rank_pattern": {"v": 4}, "alpha_pattern": {"v": 5}}
    folder = peft(tmp_path / "a", LORA | wide, target_modules=["q", "v"], **patterns)
    convert_adapter(folder, tmp_path / "one", to="mlx")
    convert_adapter(tmp_path / "one", tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (4, {}, {})
    np.testing.assert_allclose(update(tmp_path / "out", "q"), 3 * B @ A, atol=1e-5)
    np.testing.assert_allclose(update(tmp_path / "out", "v"), 5 / 4 * -2 * B @ A, atol=1e-5)
