"""MLX-LM, torchtune, kohya and diffusers: rebuilt by each one's own formula, from tensors made here."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from tables import every

from gradience.adapters.layout import LeftoverTensor
from gradience.adapters.open import find_files, read_adapter
from gradience.errors import AdapterError
from gradience.io.safetensors import SafetensorsFile
from gradience.schema.audit import LeftoverReason

RNG = np.random.default_rng(0)
MLX = {"fine_tune_type": "lora", "num_layers": 2, "model": "base", "lora_parameters": {"rank": 4, "scale": 10.0}}


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def write(folder, tensors, config=None, metadata=None, name="adapters.safetensors"):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / name, metadata)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return read_adapter(find_files(folder), SafetensorsFile)


def product(module):
    b, a = module.load()
    assert (len(b), a.shape[1]) == module.shape
    return module.scale * b.astype(np.float64) @ a.astype(np.float64)


def close(got, truth):
    np.testing.assert_allclose(got, truth, atol=1e-5 * np.abs(truth).max())


def test_mlx_is_scale_b_a_transposed_and_never_divided_by_the_rank(tmp_path):
    a, b = normal(12, 4), normal(4, 20)
    adapter = write(
        tmp_path, {"model.layers.0.self_attn.q_proj.lora_a": a, "model.layers.0.self_attn.q_proj.lora_b": b}, MLX
    )
    (module,) = adapter.modules
    assert (adapter.format, module.base_name) == ("mlx", "model.layers.0.self_attn.q_proj.weight")
    assert adapter.config.base_model_name_or_path == "base"
    close(product(module), (10.0 * b.T) @ a.T)  # mlx_lm/tuner/lora.py, LoRALinear.fuse
    assert module.config_r == 4


def test_mlx_embeddings_and_experts_have_their_own_orientation(tmp_path):
    a, b, ea, eb = normal(50, 4), normal(4, 12), normal(3, 4, 12), normal(3, 20, 4)
    tensors = {
        "model.embed_tokens.lora_a": a,
        "model.embed_tokens.lora_b": b,
        "model.layers.0.mlp.switch_mlp.up_proj.lora_a": ea,
        "model.layers.0.mlp.switch_mlp.up_proj.lora_b": eb,
        "model.layers.0.mlp.switch_mlp.gate_proj.lora_a": 2 * ea,
        "model.layers.0.mlp.switch_mlp.gate_proj.lora_b": 3 * eb,
    }
    modules = {m.name: m for m in write(tmp_path, tensors, MLX).modules}
    close(product(modules["model.embed_tokens"]), 10.0 * a @ b)  # LoRAEmbedding.fuse
    for e in range(3):
        for name, times in (("up_proj", 10.0), ("gate_proj", 60.0)):  # in turns, though one is held at a time
            close(product(modules[f"model.layers.0.mlp.switch_mlp.{name}[{e}]"]), times * eb[e] @ ea[e])


def test_mlx_dora_is_what_its_fuse_makes(tmp_path):
    a, b, m, w = normal(12, 4), normal(4, 20), np.abs(normal(20)), normal(20, 12)
    tensors = {f"model.layers.0.q_proj.{name}": x for name, x in (("lora_a", a), ("lora_b", b), ("m", m))}
    (module,) = write(tmp_path, tensors, MLX | {"fine_tune_type": "dora"}).modules
    v = w + (10.0 * b.T) @ a.T
    close(module.dense(w), (m / np.linalg.norm(v, axis=1))[:, None] * v - w)  # mlx_lm/tuner/dora.py, fuse
    np.testing.assert_array_equal(module.magnitude(), m)
    halves = {f"layers.{n}.q.lora_a": a for n in (10, 2)}
    adapter = write(tmp_path, halves, MLX)
    assert [item.name for item in adapter.skipped] == ["layers.2.q", "layers.10.q"]
    assert write(tmp_path, tensors, MLX).roles["model.layers.0.q_proj.m"] == "magnitude"
    rows = np.abs(normal(12))
    table = {"embed_tokens.lora_a": a, "embed_tokens.lora_b": b, "embed_tokens.m": rows}
    (module,) = write(tmp_path, table, MLX).modules
    assert (module.kind, module.shape) == ("dora", (12, 20))
    v = w.T + 10.0 * a @ b
    close(module.dense(w.T), (rows / np.linalg.norm(v, axis=1))[:, None] * v - w.T)  # DoRAEmbedding.fuse


def test_mlx_without_a_scale_is_refused(tmp_path):
    tensors = {"q.lora_a": normal(12, 4), "q.lora_b": normal(4, 20)}
    for config in ({"peft_type": "LORA", "r": 4}, MLX | {"lora_parameters": {"rank": 4, "alpha": 16}}):
        with pytest.raises(AdapterError, match="scale"):
            write(tmp_path, tensors, config)


def test_peft_weights_with_an_mlx_config_are_refused(tmp_path):
    key = "base_model.model.model.layers.0.q_proj.lora_"
    with pytest.raises(AdapterError, match="MLX"):
        write(tmp_path, {f"{key}A.weight": normal(4, 12), f"{key}B.weight": normal(20, 4)}, MLX)


def test_mlx_whole_weights_are_no_adapter(tmp_path):
    adapter = write(tmp_path, {"model.layers.0.q_proj.weight": normal(4, 4)}, MLX | {"fine_tune_type": "full"})
    assert (adapter.format, set(adapter.roles.values())) == ("mlx", {"full_module"})
    why = LeftoverTensor("*", "fine_tune_type is full: whole weights, no adapter", LeftoverReason.WHOLE_WEIGHTS)
    assert adapter.skipped == [why]
    other = write(tmp_path, {"x.weight": normal(4, 4)}, {"peft_type": "LORA", "fine_tune_type": "full"})
    assert other.format == "peft"  # a type is named, so it is an adapter of another program


def test_torchtune_names_are_read_with_alpha_over_r(tmp_path):
    a, b = normal(4, 12), normal(20, 4)
    tensors = {"layers.0.attn.q_proj.lora_a.weight": a, "layers.0.attn.q_proj.lora_b.weight": b}
    (module,) = write(tmp_path, tensors, {"r": 4, "lora_alpha": 12}).modules
    close(product(module), 3.0 * b @ a)


def test_kohya_scale_is_alpha_over_rank_and_one_without_alpha(tmp_path):
    down, up = normal(4, 12), normal(20, 4)
    tensors = {}
    for name, alpha in (("a", 2.0), ("b", 0.0), ("c", None)):
        tensors |= {f"lora_unet_{name}.lora_down.weight": down, f"lora_unet_{name}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"lora_unet_{name}.alpha"] = np.array(alpha, np.float32)
    adapter = write(tmp_path, tensors)
    assert adapter.format == "kohya"
    assert [m.scale for m in adapter.modules] == [0.5, 1.0, 1.0]
    assert list(adapter.roles.values()).count("scale") == 2
    close(product(adapter.modules[0]), 0.5 * up @ down)
    (tmp_path / "adapter_config.json").mkdir()  # no file, so no config
    assert len(write(tmp_path, tensors).modules) == 3
    (tmp_path / "adapter_config.json").rmdir()
    beside = write(tmp_path, tensors, {"base_model_name_or_path": "sd", "r": 2, "lora_alpha": 9, "use_rslora": True})
    assert beside.config.base_model_name_or_path == "sd"
    assert [(m.scale, m.rslora, m.config_r) for m in beside.modules] == [(x, False, None) for x in (0.5, 1.0, 1.0)]


def test_kohya_convolutions_with_and_without_a_core_are_rebuilt(tmp_path):
    down, up = normal(4, 6, 3, 3), normal(8, 4, 1, 1)
    cp_down, cp_up, mid = normal(4, 6, 1, 1), normal(8, 5, 1, 1), normal(5, 4, 3, 3)
    tensors = {
        "lora_unet_a.lora_down.weight": down,
        "lora_unet_a.lora_up.weight": up,
        "lora_unet_b.lora_down.weight": cp_down,
        "lora_unet_b.lora_up.weight": cp_up,
        "lora_unet_b.lora_mid.weight": mid,
    }
    flat = {"lora_unet_c.lora_down.weight": cp_down[:, :, 0, 0], "lora_unet_c.lora_up.weight": cp_up[:, :, 0, 0]}
    line = {f"lora_unet_d.lora_{x}.weight": np.ascontiguousarray(y[..., 0]) for x, y in (("down", down), ("up", up))}
    adapter = write(tmp_path, tensors | flat | line | {"lora_unet_c.lora_mid.weight": mid})
    plain, core, matrices, of_a_line = adapter.modules
    assert {module.kind for module in adapter.modules} == {"conv"}
    close(product(of_a_line), up.reshape(8, 4) @ down[..., 0].reshape(4, -1))
    close(product(plain), up.reshape(8, 4) @ down.reshape(4, -1))
    # LyCORIS, functional/general.py, rebuild_tucker
    truth = np.einsum("ijkl,pi,jr->prkl", mid, cp_up[:, :, 0, 0], cp_down[:, :, 0, 0])
    close(product(core), truth.reshape(8, -1))
    close(product(matrices), truth.reshape(8, -1))


def test_a_tensor_of_another_name_leaves_a_file_its_format(tmp_path):
    pair = {"lora_down.weight": normal(4, 6), "lora_up.weight": normal(8, 4)}
    kohya = write(tmp_path / "a", {"strange": normal(2), **{f"lora_unet_a.{name}": x for name, x in pair.items()}})
    assert (kohya.format, kohya.roles["strange"], len(kohya.modules)) == ("kohya", "unknown", 1)
    named = {f"{path}.lora_{x}.weight": normal(3, 3) for path in ("unet.a", "other.b") for x in "AB"}
    diffusers = write(tmp_path / "b", named)
    assert (diffusers.format, [m.name for m in diffusers.modules]) == ("diffusers", ["other.b", "unet.a"])
    for part in ("transformer", "unet", "text_encoder", "text_encoder_2", "text_encoder_3", "diffusion_model"):
        alone = {f"{part}.q.lora_{x}.weight": normal(3, 3) for x in "AB"} | {f"{part}.q.lora_B.bias": normal(3)}
        found = write(tmp_path / part, alone)
        assert (found.format, [m.name for m in found.modules]) == ("diffusers", [f"{part}.q"])
        assert found.roles == {f"{part}.q.lora_{x}": "lora_pair" for x in ("A.weight", "B.weight")} | {
            f"{part}.q.lora_B.bias": "bias"
        }
        assert [(m.params, m.keys["lora_B"]) for m in found.modules] == [(18, f"{part}.q.lora_B.weight")]
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):  # whose scale nothing else gives
        write(tmp_path / "c", {"strange": normal(2)} | {f"q.lora_{x}.weight": normal(3, 3) for x in "AB"})


@every("shape", [(8, 1, 3), (8, 3), (1, 5), (1, 6, 1), (5,), ()])
def test_a_magnitude_of_neither_side_is_refused_by_its_shape(shape, tmp_path):
    pair = {"lora_down.weight": normal(4, 6), "lora_up.weight": normal(8, 4), "dora_scale": np.asarray(normal(*shape))}
    adapter = write(tmp_path, {f"lora_unet_a.{name}": x for name, x in pair.items()})
    assert [item.reason for item in adapter.skipped] == [
        f"dora_scale of shape {list(shape)} has a norm that is not of a row or a column"
    ]


def test_a_magnitude_says_of_which_side_it_is(tmp_path):
    down, up, w = normal(4, 6), normal(8, 4), normal(8, 6)
    for shape, axis, side in (
        ((8, 1), 1, "each output, as PEFT's"),
        ((8, 1, 1, 1), 1, "each output, as PEFT's"),
        ((8,), 1, "each output, as PEFT's"),
        ((1, 6), 0, "each input, unlike PEFT's"),
    ):
        m = np.abs(normal(*shape))
        tensors = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": m}
        (module,) = write(tmp_path, {f"lora_unet_a.{name}": x for name, x in tensors.items()}).modules
        assert (module.kind, module.note, module.params) == ("dora", f"dora_scale: the norm of {side}", 56 + m.size)
        v = w + up @ down
        close(
            module.dense(w),
            m.reshape((-1, 1) if axis else (1, -1)) / np.linalg.norm(v, axis=axis, keepdims=True) * v - w,
        )
        np.testing.assert_array_equal(module.magnitude(), m)


def test_lycoris_factors_with_one_missing_are_skipped(tmp_path):
    tensors = {
        "lora_unet_a.hada_w1_a": normal(8, 2),
        "lora_unet_a.hada_w1_b": normal(2, 8),
        "lora_unet_a.alpha": np.array(1.0, np.float32),
    }
    adapter = write(tmp_path, tensors)
    assert not adapter.modules
    assert set(adapter.roles.values()) == {"not_analysed"}
    halves = {f"lora_unet_a.hada_w{i}_{x}": normal(*s) for i in (1, 2) for x, s in (("a", (8, 2)), ("b", (2, 8)))}
    wholes = {f"lora_unet_a.lokr_w{i}": normal(2, 3) for i in (1, 2)}
    for n, (factors, alpha, scale) in enumerate(
        [
            (halves, None, 1.0),  # without an alpha, or with 0, it is the rank
            (halves, 0.0, 1.0),
            (halves, 3.0, 1.5),
            (wholes, None, 1.0),
            (wholes, 3.0, 1.0),  # LyCORIS scales no product of two whole matrices
        ]
    ):
        more = {} if alpha is None else {"lora_unet_a.alpha": np.array(alpha, np.float32)}
        (module,) = write(tmp_path / str(n), factors | more).modules
        assert (module.scale, module.base_name) == (scale, None)
        assert {name: f"lora_unet_a.{field}" for field, name in module.keys.items()} == {
            name: name for name in factors | more
        }


def test_kohya_alpha_that_is_no_number_skips_the_module(tmp_path):
    tensors = {
        "lora_unet_a.lora_down.weight": normal(4, 12),
        "lora_unet_a.lora_up.weight": normal(20, 4),
        "lora_unet_a.alpha": np.array(np.nan, np.float32),
    }
    adapter = write(tmp_path, tensors)
    assert adapter.skipped == [LeftoverTensor("lora_unet_a", "alpha is not finite", LeftoverReason.CONFIG)]


@every(
    "names",
    [
        ("unet.down_blocks.0.attn1.to_q.lora_A.weight", "unet.down_blocks.0.attn1.to_q.lora_B.weight"),
        ("unet.down_blocks.0.attn1.to_q.lora.down.weight", "unet.down_blocks.0.attn1.to_q.lora.up.weight"),
        ("unet.attn1.processor.to_q_lora.down.weight", "unet.attn1.processor.to_q_lora.up.weight"),
        ("text_encoder.q_proj.lora_linear_layer.down.weight", "text_encoder.q_proj.lora_linear_layer.up.weight"),
    ],
)
def test_diffusers_without_an_alpha_takes_the_rank_for_it(tmp_path, names):
    a, b = normal(4, 12), normal(20, 4)
    (module,) = write(tmp_path, dict(zip(names, (a, b), strict=True)), name="pytorch_lora_weights.safetensors").modules
    assert module.scale == 1.0
    close(product(module), b @ a)


def test_diffusers_metadata_gives_alpha_by_component(tmp_path):
    tensors = {}
    for path in ("transformer.blocks.0.to_q", "transformer.blocks.1.to_q", "text_encoder.layers.0.q_proj"):
        tensors |= {f"{path}.lora_A.weight": normal(4, 12), f"{path}.lora_B.weight": normal(20, 4)}
    declared = {
        "transformer.r": 4,
        "transformer.lora_alpha": 8,
        "transformer.alpha_pattern": {"^blocks.1.to_q": 2},
        "text_encoder.r": 4,
        "text_encoder.lora_alpha": 4,
        "text_encoder.use_rslora": True,
    }
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(declared)}
    adapter = write(tmp_path, tensors, metadata=metadata)
    assert adapter.format == "diffusers"
    assert {m.name: m.scale for m in adapter.modules} == {
        "text_encoder.layers.0.q_proj": 2.0,
        "transformer.blocks.0.to_q": 2.0,
        "transformer.blocks.1.to_q": 0.5,
    }
    declared = {"transformer.r": 4, "transformer.fan_in_fan_out": True}  # and of the text encoder nothing
    adapter = write(tmp_path, tensors, metadata=metadata | {"lora_adapter_metadata": json.dumps(declared)})
    assert [module.shape for module in adapter.modules] == [(20, 12), (12, 20), (12, 20)]


def test_an_alpha_tensor_beside_diffusers_names_is_its_scale(tmp_path):
    tensors = {
        "diffusion_model.blocks.0.to_q.lora_A.weight": normal(4, 12),
        "diffusion_model.blocks.0.to_q.lora_B.weight": normal(20, 4),
        "diffusion_model.blocks.0.to_q.alpha": np.array(2.0, np.float32),
    }
    (module,) = write(tmp_path, tensors).modules
    assert module.scale == 0.5
    assert module.keys.keys() == {"lora_A", "lora_B"}


def test_real_adapters_of_others_are_read_whole(shared_data):
    """Files of the hub, in ../shared/data/adapters: every tensor has a role, and none is unknown."""
    expected = {
        "convnext-fc-r8": ("peft", 36),
        "dialogpt-random-r8": ("peft", 12),
        "mlx-qwen-r8": ("mlx", 8),
        "roberta-agnews-r4-bias-all": ("peft", 36),
        "roberta-portuguese-r8": ("peft", 24),
    }
    for name, (kind, modules) in expected.items():
        adapter = read_adapter(find_files(shared_data / "adapters" / name), SafetensorsFile)
        assert (adapter.format, len(adapter.modules)) == (kind, modules), name
        assert set(adapter.roles) == set(adapter.tensors)
        assert not {"unknown", "not_analysed"} & set(adapter.roles.values()), name
        for module in adapter.modules:
            b, a = module.load()
            assert (len(b), a.shape[1]) == module.shape


KOHYA_PAIR = {"lora_unet_a.lora_down.weight": normal(4, 12), "lora_unet_a.lora_up.weight": normal(20, 4)}


@every(
    ("alpha", "scale", "reason"),
    [
        (np.float16(2.0), 0.5, None),
        (np.float32(-2.0), -0.5, None),
        (np.array([2.0], np.float32), 0.5, None),
        (np.array([2.0, 2.0], np.float32), None, "alpha has 2 entries, expected one"),
        (np.array([], np.float32), None, "alpha has 0 entries, expected one"),
        (np.float32(np.inf), None, "alpha is not finite"),
    ],
)
def test_an_alpha_is_one_finite_number(alpha, scale, reason, tmp_path):
    adapter = write(tmp_path, KOHYA_PAIR | {"lora_unet_a.alpha": np.asarray(alpha)})
    if reason is not None:
        assert ([*adapter.modules], [item.reason for item in adapter.skipped]) == ([], [reason])
        return
    (module,) = adapter.modules
    assert (module.scale, module.alpha, module.r, module.params) == (scale, 4 * scale, 4, 4 * 32)
    assert (module.kind, module.base_name, module.name) == ("linear", None, "lora_unet_a")


COMPONENT = "transformer.blocks.0.to_q"


@every(
    ("config", "alpha", "scale", "config_r"),
    [
        (None, None, 1.0, None),
        (None, 2.0, 0.5, None),
        (None, 0.0, 1.0, None),
        ({"r": 8, "lora_alpha": 8}, None, 2.0, 8),  # over the rank on disk
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, None, 4.0, 4),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 2.0, 0.5, None),  # a tensor says more than a config
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_q": 1}}, None, 0.25, 4),
    ],
)
def test_the_scale_of_a_component_is_its_tensor_s_or_its_config_s_or_one(config, alpha, scale, config_r, tmp_path):
    a, b = normal(4, 12), normal(20, 4)
    tensors = {f"{COMPONENT}.lora_A.weight": a, f"{COMPONENT}.lora_B.weight": b}
    if alpha is not None:
        tensors[f"{COMPONENT}.alpha"] = np.asarray(alpha, np.float32)
    metadata = None
    if config is not None:
        metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": x for key, x in config.items()})}
    adapter = write(tmp_path, tensors, metadata=metadata)
    (module,) = adapter.modules
    assert (module.name, module.scale, module.config_r) == (COMPONENT, scale, config_r)
    assert module.rslora is (alpha is None and bool(config and config.get("use_rslora")))
    close(product(module), scale * b @ a)
    assumed = "the file gives no alpha: it is taken to be the rank, as diffusers does"
    assert adapter.notes == ([assumed] if config is None else [])


@pytest.mark.parametrize("configured", [True, False])
def test_dora_of_a_component_needs_the_scale_of_its_config(configured, tmp_path):
    a, b, m, w = normal(4, 12), normal(20, 4), np.abs(normal(20)), normal(20, 12)
    tensors = {f"{COMPONENT}.lora_{s}.weight": x for s, x in (("A", a), ("B", b))}
    tensors[f"{COMPONENT}.lora_magnitude_vector"] = m
    declared = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.use_dora": True})
    adapter = write(tmp_path, tensors, metadata={"lora_adapter_metadata": declared} if configured else None)
    if not configured:
        assert [item.reason for item in adapter.skipped] == ["DoRA without a config: its scale is not known"]
        return
    v = w + 2.0 * b @ a
    close(adapter.modules[0].dense(w), (m / np.linalg.norm(v, axis=1))[:, None] * v - w)


@every(
    ("shapes", "reason"),
    [
        (((3, 4, 12), (20, 4)), "factors of shape [3, 4, 12] and [20, 4]: expected (E, r, in) and (E, out, r)"),
        (((3, 4, 12), (2, 20, 4)), "factors of shape [3, 4, 12] and [2, 20, 4]: expected (E, r, in) and (E, out, r)"),
        (((3, 4, 12), (3, 20, 5)), "factors of shape [3, 4, 12] and [3, 20, 5]: expected (E, r, in) and (E, out, r)"),
        (((12, 4, 1, 1), (4, 20, 1, 1)), "factors with more than two axes"),
        (((12, 4), (5, 20)), "factors of shape [5, 20] and [12, 4]: ranks disagree"),
        (((12, 4), None), "lora_b is missing beside lora_a"),
    ],
)
def test_factors_of_mlx_that_do_not_fit_are_refused_with_their_shapes(shapes, reason, tmp_path):
    names = ("lora_a", "lora_b")
    tensors = {f"q.{name}": normal(*shape) for name, shape in zip(names, shapes, strict=True) if shape is not None}
    adapter = write(tmp_path, tensors, MLX)
    assert ([*adapter.modules], [item.reason for item in adapter.skipped]) == ([], [reason])


@every(
    ("scale", "rank", "config_r"), [(10.0, 4, 4), (-0.5, 8, 8), (2, "4", None), (0.0, True, None), (1.0, None, None)]
)
def test_what_mlx_s_config_says_of_scale_and_rank(scale, rank, config_r, tmp_path):
    a, b = normal(12, 4), normal(4, 20)
    config = MLX | {"lora_parameters": {"rank": rank, "scale": scale}}
    (module,) = write(tmp_path, {"l.0.q.lora_a": a, "l.0.q.lora_b": b}, config).modules
    assert (module.scale, module.alpha, module.r, module.config_r) == (scale, 4 * scale, 4, config_r)
    assert (module.kind, module.shape, module.params, module.base_name) == ("linear", (20, 12), 128, "l.0.q.weight")
    if scale:
        close(product(module), scale * b.T @ a.T)


@every(
    ("config", "scale"),
    [
        ({"r": 4, "lora_alpha": 12}, 3.0),
        ({"r": 8, "lora_alpha": 12}, 3.0),
        ({"r": 4, "lora_alpha": 12, "use_rslora": True}, 6.0),
        ({"r": 4, "lora_alpha": 12, "alpha_pattern": {"q_proj": 2}}, 0.5),
    ],
)
def test_torchtune_is_scaled_and_rescaled_as_peft(config, scale, tmp_path):
    a, b, m, w = normal(4, 12), normal(20, 4), np.abs(normal(20)), normal(20, 12)
    tensors = {"l.0.q_proj.lora_a.weight": a, "l.0.q_proj.lora_b.weight": b}
    (module,) = write(tmp_path / "plain", tensors, config).modules
    assert (module.scale, module.kind, module.base_name) == (scale, "linear", "l.0.q_proj.weight")
    close(product(module), scale * b @ a)
    (dora,) = write(tmp_path / "dora", tensors | {"l.0.q_proj.magnitude": m}, config).modules
    v = w + scale * b @ a
    assert dora.kind == "dora"
    close(dora.dense(w), (m / np.linalg.norm(v, axis=1))[:, None] * v - w)
