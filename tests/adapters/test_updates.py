"""Every kind and format by one table: the tensors of a file, and the update that the program's own formula makes."""

from __future__ import annotations

import json
import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from adapter_files import PREFIX, lora, saved, written
from tables import every

from gradience.adapters import kinds
from gradience.adapters.config import AdapterConfig, ScalingRules
from gradience.adapters.formats import FORMATS
from gradience.adapters.layout import LARGEST_ENTRY, Context, all_finite, within_range
from gradience.adapters.open import open_adapter
from gradience.adapters.pairs import LoraPair, peft_pair, stored_pairs
from gradience.errors import AdapterError


def drawn(*shape: int) -> Any:
    return np.random.default_rng(1 + sum(shape) + 10 * len(shape)).standard_normal(shape).astype(np.float32)


class Case(NamedTuple):
    """A file; of each module its kind, its scale and its update; and the base's weight where the update needs it."""

    tensors: dict[str, Any]
    config: dict[str, Any] | None
    found: dict[str, tuple[str, float, Any]]
    w: Any = None
    metadata: dict[str, str] | None = None


def rescaled(w: Any, delta: Any, m: Any, axis: int) -> Any:
    """DoRA's update m (W + dW) / |W + dW| - W, with norms along an axis."""
    v = w.astype(np.float64) + delta
    m = m.reshape(-1, 1) if axis else m.reshape(1, -1)
    return m * v / np.linalg.norm(v, axis=axis, keepdims=True) - w


def turned(case: Case) -> Case:
    """The same in a base that stores its weights transposed."""
    found = {name: (kind, scale, dw.T) for name, (kind, scale, dw) in case.found.items()}
    return case._replace(config={**(case.config or {}), "fan_in_fan_out": True}, found=found)


def peft(tensors: dict[str, Any], kind: str, scale: float, update: Any, w: Any = None, **config: Any) -> Case:
    """A file of PEFT's with one module `q`, of rank 2 and alpha 4."""
    named = {key if key.startswith("base_model.") else f"{PREFIX}q.{key}": x for key, x in tensors.items()}
    return Case(named, {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}, {"q": (kind, scale, update)}, w)


A, B, W, SQUARE = drawn(2, 3), drawn(5, 2), drawn(5, 3), drawn(5, 5)
A5, M5, DIAGONAL, LAMBDA = drawn(2, 5), np.abs(drawn(5)) + 0.5, drawn(2), drawn(5)
PAIR, D = {"lora_A.weight": A, "lora_B.weight": B}, B.astype(float) @ A
PAIR5, D5 = {"lora_A.weight": A5, "lora_B.weight": B}, B.astype(float) @ A5
KERNEL = drawn(2, 3, 2, 2)
OF_KERNEL = {"lora_A.weight": KERNEL, "lora_B.weight": B[:, :, None, None]}, B @ KERNEL.reshape(2, 12)
LINE = {"lora_A.weight": drawn(2, 3, 4), "lora_B.weight": B[:, :, None]}, B @ drawn(2, 3, 4).reshape(2, 12)
EMBEDDED = {"lora_embedding_A": A, "lora_embedding_B": B}
HALVES = {f"hada_w{i}_{x}": drawn(*s) + i for i in (1, 2) for x, s in (("a", (5, 4)), ("b", (4, 3)))}
HADAMARD = np.multiply(*(HALVES[f"hada_w{i}_a"].astype(float) @ HALVES[f"hada_w{i}_b"] for i in (1, 2)))
TUCKER = {
    **{f"hada_w{i}_{x}": drawn(*s) + i for i in (1, 2) for x, s in (("a", (2, 5)), ("b", (4, 3)))},
    **{f"hada_t{i}": drawn(2, 4, 2, 2) + i for i in (1, 2)},
}
CORES = np.multiply(
    *(
        np.einsum("ijkl,ip,jr->prkl", *(TUCKER[f"hada_{x}"] for x in (f"t{i}", f"w{i}_a", f"w{i}_b"))).reshape(5, 12)
        for i in (1, 2)
    )
)  # fmt: skip
W1, W2, W2A, W2B = drawn(2, 3), drawn(5, 2), drawn(5, 4), drawn(4, 2)
WHOLE, SPLIT = {"lokr_w1": W1, "lokr_w2": W2}, {"lokr_w1": W1, "lokr_w2_a": W2A, "lokr_w2_b": W2B}
STACK_A, STACK_B = drawn(6, 3), drawn(5, 6)
BDA, BDB = drawn(4, 3), drawn(6, 2)
UP4, DOWN4 = drawn(5, 4), drawn(4, 6)
ADALORA = {"lora_A": A, "lora_B": B, "lora_E": DIAGONAL[:, None]}
VERA = {"vera_lambda_b": LAMBDA, "vera_lambda_d": DIAGONAL, "base_model.vera_A": A, "base_model.vera_B": B}


def blocks(*parts: Any) -> Any:
    (a, b), zero = parts, np.zeros_like(parts[0])
    return np.block([[a, zero], [zero, b]])


def bd(**config: Any) -> dict[str, Any]:
    return {"use_bdlora": {name: ["q"] if name.startswith("target") else n for name, n in config.items()}}


def without(w: Any, part: slice) -> Any:
    u, s, v = np.linalg.svd(w.astype(np.float64), full_matrices=False)
    return -(u[:, part] * s[part]) @ v[part]


Q, _ = np.linalg.qr(W[:, :2].astype(np.float64))
OF_PEFT = {
    "a pair": peft(PAIR, "linear", 2.0, 2 * D),
    "rsLoRA": peft(PAIR, "linear", 8**0.5, 8**0.5 * D, use_rslora=True),
    "of another rank": peft(PAIR, "linear", 2.0, 2 * D, r=8),
    "patterns": peft(PAIR, "linear", 0.5, 0.5 * D, rank_pattern={"q": 9}, alpha_pattern={"q": 1.0}),
    "an embedding": peft(EMBEDDED, "embedding", 2.0, 2 * D.T),
    "an embedding whatever the option": peft(EMBEDDED, "embedding", 2.0, 2 * D.T, fan_in_fan_out=True),
    "a kernel": peft(OF_KERNEL[0], "conv", 2.0, 2 * OF_KERNEL[1]),
    "a kernel whatever the option": peft(OF_KERNEL[0], "conv", 2.0, 2 * OF_KERNEL[1], fan_in_fan_out=True),
    "a kernel of one axis": peft(LINE[0], "conv", 2.0, 2 * LINE[1]),
    "PiSSA": peft(PAIR, "linear", 2.0, 2 * D + without(W, np.s_[:2]), W, init_lora_weights="pissa"),
    "OLoRA": peft(PAIR, "linear", 2.0, 2 * D - 2 * Q @ Q.T @ W, W, init_lora_weights="olora"),
    "PiSSA of an embedding": peft(EMBEDDED, "embedding", 2.0, 2 * D.T, init_lora_weights="pissa"),
    "PiSSA of a kernel": peft(OF_KERNEL[0], "conv", 2.0, 2 * OF_KERNEL[1], init_lora_weights="pissa"),
    "KaSA": peft(
        PAIR | {"lora_diag": DIAGONAL}, "linear", 2.0, 2 * B * DIAGONAL @ A + without(W, np.s_[1:]), W, kasa_config={}
    ),
    "DoRA": peft(PAIR5 | {"lora_magnitude_vector": M5}, "dora", 2.0, rescaled(SQUARE, 2 * D5, M5, 1), SQUARE),
    "DoRA of Conv1D": peft(
        PAIR5 | {"lora_magnitude_vector": M5}, "dora", 2.0, rescaled(SQUARE, 2 * D5.T, M5, 0), SQUARE,
        fan_in_fan_out=True,
    ),
    "DoRA of an embedding": peft(
        {"lora_embedding_A": A5, "lora_embedding_B": B, "lora_magnitude_vector": M5}, "dora", 2.0,
        rescaled(SQUARE, 2 * D5.T, M5, 0), SQUARE,
    ),
    "QALoRA": peft(
        PAIR, "linear", 2.0, 2 * B @ np.repeat(A, 4, axis=1) * 0.75, np.zeros((5, 12)), use_qalora=True,
        qalora_group_size=4,
    ),
    "QALoRA on a base that is not of GPTQ": peft(
        PAIR, "linear", 2.0, 2 * B @ A, W, use_qalora=True, qalora_group_size=4
    ),
    "BD-LoRA of A": peft(
        {"lora_A.weight": BDA, "lora_B.weight": UP4}, "linear", 1.0, UP4 @ blocks(BDA[:2], BDA[2:]),
        **bd(nblocks=2, target_modules_bd_a=1, target_modules_bd_b=1),
    ),
    "BD-LoRA of B": peft(
        {"lora_A.weight": DOWN4, "lora_B.weight": BDB}, "linear", 1.0, blocks(BDB[:3], BDB[3:]) @ DOWN4,
        **bd(nblocks=2, target_modules_bd_b=1),
    ),
    **{
        f"BD-LoRA of {n!r} blocks": peft(PAIR, "linear", 2.0, 2 * D, **bd(nblocks=n, target_modules_bd_a=1))
        for n in (1, "2", None)
    },
    "AdaLoRA": peft(
        ADALORA, "adalora", 4 / 6.00001, 4 / 6.00001 * B @ (A * ADALORA["lora_E"]), peft_type="ADALORA", init_r=6
    ),
    "AdaLoRA without alpha": peft(
        ADALORA, "adalora", 1 / 1.00001, 1 / 1.00001 * B @ (A * ADALORA["lora_E"]), peft_type="ADALORA", init_r=1,
        lora_alpha=0,
    ),
    "VeRA": peft(VERA, "vera", 1.0, LAMBDA[:, None] * (B @ (DIAGONAL[:, None] * A)), peft_type="VERA"),
    "LoHa": peft(HALVES, "loha", 1.5, 1.5 * HADAMARD, peft_type="LOHA", alpha=6, use_rslora=True),
    "LoHa without alpha": peft(HALVES, "loha", 2.0, 2 * HADAMARD, peft_type="LOHA"),
    "LoHa of a kernel": peft(TUCKER, "loha", 3.0, 3 * CORES, peft_type="LOHA", alpha=6),
    "LoKr of whole matrices": peft(WHOLE, "lokr", 3.0, 3 * np.kron(W1, W2), peft_type="LOKR", alpha=6),
    "LoKr by patterns": peft(
        WHOLE, "lokr", 0.25, 0.25 * np.kron(W1, W2), peft_type="LOKR", alpha=6, rank_pattern={"q": 4},
        alpha_pattern={"q": 1},
    ),
    "LoKr of factors": peft(SPLIT, "lokr", 1.5, 1.5 * np.kron(W1, W2A @ W2B), peft_type="LOKR", alpha=6),
}  # fmt: skip
OF_PEFT |= {f"{name}, turned": turned(OF_PEFT[name]) for name in ("a pair", "rsLoRA", "AdaLoRA", "VeRA")}
OF_PEFT["experts"] = Case(
    {f"{PREFIX}x.experts.lora_A.weight": STACK_A, f"{PREFIX}x.experts.lora_B.weight": STACK_B},
    {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_parameters": ["experts.w"]},
    {f"x.experts.w[{e}]": ("expert", 2.0, 2 * STACK_B[:, e::3] @ STACK_A[2 * e : 2 * e + 2]) for e in range(3)},
)
OF_PEFT["experts of rank one"] = Case(
    OF_PEFT["experts"].tensors,
    {"peft_type": "LORA", "r": 1, "lora_alpha": 4, "target_parameters": ["experts.w"]},
    {f"x.experts.w[{e}]": ("expert", 4.0, 4 * np.outer(STACK_B[:, e], STACK_A[e])) for e in range(6)},
)
OF_PEFT["one parameter"] = Case(
    OF_PEFT["experts"].tensors,
    {"peft_type": "LORA", "r": 6, "lora_alpha": 6, "target_parameters": ["experts.w"], "target_modules": ["v"]},
    {"x.experts.w": ("linear", 1.0, STACK_B @ STACK_A)},
)


def mlx(tensors: dict[str, Any], found: dict[str, Any], w: Any = None, **config: Any) -> Case:
    given = {"fine_tune_type": "lora", "model": "m", "lora_parameters": {"rank": 2, "scale": 10.0}, **config}
    return Case(tensors, given, found, w)


def mlx_q(name: str, **more: Any) -> dict[str, Any]:
    return {f"{name}.{key}": x for key, x in ({"lora_a": A5.T, "lora_b": B.T} | more).items()}


EA, EB = drawn(3, 2, 6), drawn(3, 5, 2)
TUNE = {"l.q.lora_a.weight": A5, "l.q.lora_b.weight": B}
OF_OTHERS = {
    # mlx_lm/tuner/lora.py and dora.py: fuse
    "MLX": mlx(mlx_q("l.0.q"), {"l.0.q": ("linear", 10.0, 10 * D5)}),
    "MLX, a negative scale": mlx(
        mlx_q("l.0.q"), {"l.0.q": ("linear", -0.5, -0.5 * D5)}, lora_parameters={"rank": "4", "scale": -0.5}
    ),
    "MLX, an embedding": mlx(mlx_q("embed_tokens"), {"embed_tokens": ("embedding", 10.0, 10 * D5.T)}),
    "MLX, experts": mlx(
        {f"{x}.lora_{y}": t * n for x, n in (("up", 1), ("gate", 2)) for y, t in (("a", EA), ("b", EB))},
        {
            f"{x}[{e}]": ("expert", 10.0, 10 * n * n * EB[e] @ EA[e])
            for x, n in (("gate", 2), ("up", 1)) for e in range(3)
        },
    ),
    "MLX, DoRA": mlx(mlx_q("l.q", m=M5), {"l.q": ("dora", 10.0, rescaled(SQUARE, 10 * D5, M5, 1))}, SQUARE),
    "MLX, DoRA of an embedding": mlx(
        mlx_q("wte", m=M5), {"wte": ("dora", 10.0, rescaled(SQUARE, 10 * D5.T, M5, 1))}, SQUARE
    ),
    # torchtune/modules/peft: lora.py, dora.py
    **{
        f"torchtune {more}": Case(TUNE, {"r": 8, "lora_alpha": 4, **more}, {"l.q": ("linear", scale, scale * D5)})
        for more, scale in (({}, 2.0), ({"use_rslora": True}, 8**0.5), ({"alpha_pattern": {"q": 1}}, 0.5))
    },
    "torchtune, DoRA": Case(
        TUNE | {"l.q.magnitude": M5}, {"r": 2, "lora_alpha": 4},
        {"l.q": ("dora", 2.0, rescaled(SQUARE, 2 * D5, M5, 1))}, SQUARE,
    ),
}  # fmt: skip


def kohya(tensors: dict[str, Any], kind: str, scale: float, update: Any, w: Any = None) -> Case:
    return Case(
        {f"lora_unet_q.{key}": x for key, x in tensors.items()}, None, {"lora_unet_q": (kind, scale, update)}, w
    )


def alpha(value: float, kind: Any = np.float32) -> dict[str, Any]:
    return {"alpha": np.asarray(value, kind)}


DOWN = {"lora_down.weight": A, "lora_up.weight": B}
DOWN5 = {"lora_down.weight": A5, "lora_up.weight": B}
MID, MID_UP, MID_DOWN = drawn(4, 2, 3, 3), drawn(6, 4), drawn(2, 5)
OF_CORE = np.einsum("ijkl,pi,jr->prkl", MID, MID_UP, MID_DOWN).reshape(6, -1)  # LyCORIS, rebuild_tucker
OF_OTHERS |= {
    "kohya": kohya(DOWN | alpha(1), "linear", 0.5, 0.5 * D),
    "kohya without alpha": kohya(DOWN, "linear", 1.0, D),
    "kohya, alpha 0 is the rank": kohya(DOWN | alpha(0), "linear", 1.0, D),
    "kohya, alpha in an array of one": kohya(DOWN | alpha([-3.0], np.float16), "linear", -1.5, -1.5 * D),
    "kohya, a kernel": kohya(
        {"lora_down.weight": KERNEL, "lora_up.weight": B[:, :, None, None]}, "conv", 1.0, OF_KERNEL[1]
    ),
    **{
        f"kohya, a core beside {len(more)} axes": kohya(
            {
                "lora_down.weight": MID_DOWN.reshape(2, 5, *more), "lora_up.weight": MID_UP.reshape(6, 4, *more),
                "lora_mid.weight": MID,
            },
            "conv", 1.0, OF_CORE,
        )
        for more in ((), (1, 1))
    },
    **{
        f"LyCORIS, DoRA of shape {shape}": kohya(
            DOWN5 | {"dora_scale": M5.reshape(shape)}, "dora", 1.0, rescaled(SQUARE, D5, M5, axis), SQUARE
        )
        for shape, axis in (((5, 1), 1), ((5, 1, 1, 1), 1), ((5,), 1), ((1, 5), 0))
    },
    "LyCORIS, LoHa": kohya(HALVES | alpha(6), "loha", 1.5, 1.5 * HADAMARD),
    "LyCORIS, LoHa without alpha": kohya(HALVES, "loha", 1.0, HADAMARD),
    "LyCORIS, LoHa with alpha 0": kohya(HALVES | alpha(0), "loha", 1.0, HADAMARD),
    "LyCORIS, LoKr of whole matrices": kohya(WHOLE | alpha(6), "lokr", 1.0, np.kron(W1, W2)),
    "LyCORIS, LoKr": kohya(SPLIT | alpha(6), "lokr", 1.5, 1.5 * np.kron(W1, W2A @ W2B)),
}  # fmt: skip


def diffusers(config: dict[str, Any] | None, tensors: dict[str, Any], scale: float, *more: Any) -> Case:
    declared = config and {"lora_adapter_metadata": json.dumps({f"unet.{key}": x for key, x in config.items()})}
    named = {f"unet.b.q.{key}": x for key, x in tensors.items()}
    kind, update, w = more or ("linear", scale * D, None)
    return Case(named, None, {"unet.b.q": (kind, scale, update)}, w, declared)


CONFIG = {"r": 8, "lora_alpha": 8}
OF_OTHERS |= {
    "diffusers": diffusers(None, PAIR, 1.0),
    **{
        f"diffusers' older names, {path}{down}": Case(
            {f"{path}{down}": A, f"{path}{down.replace('down', 'up')}": B}, None, {path: ("linear", 1.0, D)}
        )
        for path, down in (
            ("unet.q", ".lora.down.weight"), ("unet.p.to_q", "_lora.down.weight"),
            ("te.q", ".lora_linear_layer.down.weight"),
        )
    },
    "diffusers with alpha": diffusers(None, PAIR | alpha(1), 0.5),
    "diffusers with alpha 0": diffusers(None, PAIR | alpha(0), 1.0),
    "diffusers with a config": diffusers(CONFIG, PAIR, 4.0),
    "diffusers by a pattern": diffusers(CONFIG | {"alpha_pattern": {"^b.q": 1}}, PAIR, 0.5),
    "diffusers' tensor says more than its config": diffusers(CONFIG | {"use_rslora": True}, PAIR | alpha(1), 0.5),
    "diffusers, turned": diffusers(CONFIG | {"fan_in_fan_out": True}, PAIR, 4.0, "linear", 4 * D.T, None),
    "diffusers, DoRA": diffusers(
        CONFIG, PAIR5 | {"lora_magnitude_vector": M5}, 4.0, "dora", rescaled(SQUARE, 4 * D5, M5, 1), SQUARE
    ),
}  # fmt: skip

CASES = OF_PEFT | OF_OTHERS


@every("name", CASES)
def test_an_update_is_what_the_programs_own_formula_makes(name, tmp_path):
    case = CASES[name]
    _, adapter = open_adapter(written(tmp_path / "a", case.tensors, case.config, case.metadata))
    assert [module.name for module in adapter.modules] == list(case.found)
    assert adapter.skipped == []
    for module, (kind, scale, update) in zip(adapter.modules, case.found.values(), strict=True):
        assert (module.kind, module.scale) == (kind, pytest.approx(scale))
        b, a = module.load()
        assert module.shape == (len(b), a.shape[1])
        assert module.shape == update.shape or name == "QALoRA"  # whose width only the base tells
        assert b.shape[1] == module.r
        if kind in {"linear", "embedding", "conv", "expert"} and not module.rslora:
            assert module.alpha == pytest.approx(scale * module.r)
        got = module.scale * b.astype(np.float64) @ a if case.w is None else module.dense(case.w)
        np.testing.assert_allclose(got, update, atol=1e-5 * np.abs(update).max())
        assert (module.dense is None) is (case.w is None)
        if module.factored is not None:
            np.testing.assert_allclose(np.matmul(*module.factored(case.w)), update, atol=1e-5 * np.abs(update).max())
        entries = sum(case.tensors[key].size for field, key in module.keys.items() if field != "alpha")
        assert module.params * sum(one.keys == module.keys for one in adapter.modules) == entries
        if kind == "dora":
            np.testing.assert_array_equal(module.magnitude().reshape(-1), M5)
    first, (_, scale, update) = adapter.modules[0], next(iter(case.found.values()))
    if case.w is None:  # the first again, after all others: of experts, one stack is held at a time
        np.testing.assert_allclose(scale * np.matmul(*first.load()), update, atol=1e-5 * np.abs(update).max())


def test_the_table_of_formats_is_this():
    flags = [
        (
            one.name,
            {name for name in ("is_peft", "module_paths", "component_prefix", "embeds_by_name") if getattr(one, name)},
        )
        for one in FORMATS
    ]
    assert flags == [
        ("mlx", {"module_paths", "embeds_by_name"}),
        ("torchtune", {"module_paths"}),
        ("kohya", set()),
        ("peft", {"module_paths", "is_peft"}),
        ("diffusers", {"module_paths", "component_prefix"}),
        ("mlx", {"module_paths", "embeds_by_name"}),
    ]


# --- what depends on the base ------------------------------------------------------------------------------------


LOST = "the update cannot be recomputed"


@every(
    ("init", "more", "note", "known"),
    [
        ("pissa", {}, "PiSSA took the best rank-r part out of the base", True),
        ("olora", {}, "OLoRA took a rank-r part out of the base", True),
        ("pissa_niter_4", {}, "pissa_niter_4 changed the base, by an amount that cannot be recomputed", False),
        ("loftq", {}, "loftq changed the base, by an amount that cannot be recomputed", False),
        ("eva", {}, None, True),
        (True, {"q.lora_diag": (2,)}, "KaSA took the r smallest singular values out of the base", True),
        (True, {"q.lora_magnitude_vector": (5,)}, "DoRA: s B A is rescaled by the magnitude", True),
        *(
            (init, {"q.lora_magnitude_vector": (5,)}, f"DoRA on a base that {init} changed: {LOST}", False)
            for init in ("pissa", "loftq")
        ),
    ],
)  # fmt: skip
def test_what_a_start_took_out_of_the_base_is_known_or_not(init, more, note, known, tmp_path):
    (module,) = open_adapter(saved(tmp_path / "a", lora("q") | more, init_lora_weights=init))[1].modules
    assert (module.note, module.is_unknown) == (note, not known)
    assert (module.dense is not None) is (known and note is not None)


def test_loftq_changed_embeddings_and_kernels_too(tmp_path):
    for number, shapes in enumerate(
        (
            {"e.lora_embedding_A": (2, 3), "e.lora_embedding_B": (5, 2)},
            {"e.lora_A.weight": (2, 3, 1), "e.lora_B.weight": (5, 2, 1)},
        )
    ):
        (module,) = open_adapter(saved(tmp_path / str(number), shapes, init_lora_weights="loftq"))[1].modules
        assert module.is_unknown


def load():
    return B, A


@pytest.mark.parametrize("block", [1, 9])
def test_norms_are_added_up_over_all_blocks_of_rows(block, monkeypatch):
    monkeypatch.setattr(kinds, "_BLOCK", block)
    for axis, m in ((1, M5), (0, M5[:3])):
        wanted = rescaled(W, 0.5 * D, m, axis)
        np.testing.assert_allclose(kinds.dora(load, 0.5, lambda m=m: m, axis=axis)(W), wanted, atol=1e-5)
        # stored transposed, the other axis is the outputs'
        np.testing.assert_allclose(kinds.dora(load, 0.5, lambda m=m: m, axis=axis)(W.T), wanted.T, atol=1e-5)


def test_a_row_of_norm_zero_is_not_finite_and_warns_of_nothing():
    w, zero = np.diag([0.0, 0.0, 2.0]), (np.zeros((3, 1)), np.zeros((1, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = kinds.dora(lambda: zero, 1.0, lambda: np.array([0.0, 1.0, 6.0]), axis=1)(w)
    assert np.isnan(found[:2]).any(axis=1).all()
    assert found[2].tolist() == [0.0, 0.0, 4.0]


BASE = "a base weight of shape (5, 3)"


@every(
    ("update", "shape", "said"),
    [
        (kinds.dora(load, 1.0, lambda: M5[:3], axis=1), (5, 3), f"a magnitude of 3 entries does not fit {BASE}"),
        *(
            (kinds.dora(load, 1.0, lambda: M5, axis=1), s, f"an update of shape [5, 3] for a base weight of {[*s]}")
            for s in ((5, 2), (6, 3), (2, 5), (3, 6), (5, 5), (15, 1))
        ),
        *((kinds.kasa(load, 1.0, r), (5, 3), f"KaSA of rank {r} leaves nothing of {BASE}") for r in (3, 4)),
    ],
)  # fmt: skip
def test_a_base_of_another_shape_is_refused_with_both(update, shape, said):
    with pytest.raises(AdapterError) as error:
        update(np.ones(shape, np.float32))
    assert error.value.message == said


@every(("heights", "known"), [((4, 4, 4), True), ((4, 4, 6), False), ((4, 6, 6), True)])
def test_vera_of_a_name_with_two_heights_needs_the_width_of_the_base(heights, known, tmp_path):
    names = ("0.q_proj", "0.v_proj", "1.v_proj")
    shapes = {f"{n}.vera_lambda_b": (h,) for n, h in zip(names, heights, strict=True)} | {
        "vera_A": (2, 5),
        "vera_B": (6, 2),
    }
    shapes |= {f"{name}.vera_lambda_d": (2,) for name in names}
    _, found = open_adapter(saved(tmp_path / "a", shapes, peft_type="VERA"))
    assert (len(found.modules), len(found.base_dependent)) == ((3, 0) if known else (0, 3))
    for module in found.base_dependent:
        height = heights[names.index(module.name)]
        a, b = (1.0 + np.arange(n).reshape(s) for n, s in ((10, (2, 5)), (12, (6, 2))))
        both, down = 1.0 + np.arange(height), 1.0 + np.arange(2)
        wanted = both[:, None] * (b[:height] @ (down[:, None] * a[:, :3]))
        np.testing.assert_allclose(module.dense(np.zeros((height, 3))), wanted)
        with pytest.raises(AdapterError, match=r"VeRA vectors of . entries do not fit a base weight of shape"):
            module.dense(np.zeros((height + 1, 3)))
        with pytest.raises(AdapterError, match="several widths"):
            module.load()


# --- names, layers, experts --------------------------------------------------------------------------------------


def test_adapters_of_one_file_are_named_and_one_alone_is_not(tmp_path):
    one = {"q.lora_A.x.weight": (2, 3), "q.lora_B.x.weight": (5, 2)}
    for shapes, names in ((one, [("q", None)]), (one | lora("q"), [("q:default", "default"), ("q:x", "x")])):
        _, found = open_adapter(saved(tmp_path / str(len(shapes)), shapes))
        assert [(module.name, module.adapter) for module in found.modules] == names
        several = ["the file holds several adapters (default, x); the config was applied to each"]
        assert found.notes == several * (len(names) > 1)
    stacks = {f"x.experts.{key.partition('.')[2]}": (4, 5) if "_A" in key else (6, 4) for key in one | lora("q")}
    _, found = open_adapter(saved(tmp_path / "experts", stacks, target_parameters=["experts.w"]))
    names = [f"x.experts.w:{name}[{e}]" for name in ("default", "x") for e in range(2)]
    assert sorted(module.name for module in found.modules) == names


def test_the_output_of_an_attention_has_the_scale_of_the_whole_layer(tmp_path):
    shapes = lora("attn", "attn.base_layer.out_proj", "other.out_proj")
    _, found = open_adapter(saved(tmp_path / "a", shapes, alpha_pattern={"attn": 6.0}))
    assert {module.name: (module.scale, module.base_name) for module in found.modules} == {
        "attn": (3.0, "attn.in_proj_weight"),
        "attn.out_proj": (3.0, "attn.out_proj.weight"),
        "other.out_proj": (2.0, "other.out_proj.weight"),
    }


def test_a_replicated_layer_is_one_of_the_base_s_and_beyond_the_last_its_own(tmp_path):
    bases = {0: 0, 1: 1, 2: 1, 3: 2, 4: 4, 9: 9}
    names = {f"x.layers.{n}.h.3.q": f"x.layers.{base}.h.3.q.weight" for n, base in bases.items()}  # the first number
    names |= {f"h.{n}.q": f"h.{base}.q.weight" for n, base in bases.items()}
    _, found = open_adapter(saved(tmp_path / "a", lora(*names), layer_replication=[[0, 2], [1, 3]]))
    assert {module.name: module.base_name for module in found.modules} == names
    assert [module.name for module in found.modules] == sorted(names)


@every(
    ("rank", "shape", "kind", "note"),
    [(2, (4, 5), "expert", False), (2, (5, 5), "expert", True), (4, (5, 5), "linear", False)],
)
def test_of_square_experts_it_is_said_that_their_orientation_is_not_known(rank, shape, kind, note, tmp_path):
    targets = {"target_parameters": ["experts.w"], "target_modules": ["q_proj"]}
    shapes = lora("x.experts", r=4, d_out=shape[0], d_in=shape[1])
    _, found = open_adapter(saved(tmp_path / "a", shapes, r=rank, **targets))
    said = "a square weight: the file does not say whether the base stores it transposed"
    assert {(module.kind, module.note) for module in found.modules} == {(kind, said if note else None)}


def test_parameters_of_experts_have_names_where_one_can_feed_the_other(tmp_path):
    targets = {"target_parameters": ["experts.down_proj", "experts.gate_up_proj"], "target_modules": ["shared_experts"]}
    inmost = lora("x.experts.base_layer", r=4, d_out=7, d_in=3)
    for (out, inner), named in (((3, 4), True), ((5, 7), True), ((5, 4), False)):  # of the last, beside 7 x 3
        shapes = inmost | lora("x.experts", r=4, d_out=out, d_in=inner) | lora("x.shared_experts")
        _, found = open_adapter(saved(tmp_path / f"{out}-{inner}", shapes, **targets))
        first, last = ("gate_up_proj", "down_proj") if named else ("parameter0", "parameter1")
        assert {module.name: (module.shape, module.base_name) for module in found.modules} == {
            f"x.experts.{name}[{e}]": (shape, f"x.experts.{name}" if named else None)
            for name, shape in ((first, (7, 3)), (last, (out, inner)))
            for e in (0, 1)
        } | {"x.shared_experts": ((5, 3), "x.shared_experts.weight")}  # whose name only ends alike
    half = inmost | {"x.experts.lora_A.weight": (4, 7)}  # a pair without its B
    _, found = open_adapter(saved(tmp_path / "half", half, **targets))
    assert [module.name for module in found.modules] == ["x.experts.gate_up_proj[0]", "x.experts.gate_up_proj[1]"]
    assert [item.name for item in found.skipped] == ["x.experts.down_proj"]
    elsewhere = {"target_parameters": ["mlp.experts.down_proj", "gate_up_proj"]}  # of which one names another module
    (module,) = open_adapter(saved(tmp_path / "y", lora("y.experts"), **elsewhere))[1].modules
    assert module.base_name == "y.experts.gate_up_proj"


def test_a_tensor_of_another_name_leaves_a_file_its_format(tmp_path):
    pair = {"lora_unet_a.lora_down.weight": A, "lora_unet_a.lora_up.weight": B}
    for tensors, name in (
        (pair, "kohya"),
        ({f"{part}.q.{key}": x for part in ("unet", "x") for key, x in PAIR.items()}, "diffusers"),
    ):
        _, found = open_adapter(written(tmp_path / name, tensors | {"strange": M5}))
        assert (found.format, found.roles["strange"], len(found.modules)) == (name, "unknown", len(tensors) // 2)
    _, found = open_adapter(written(tmp_path / "more", pair | {"lora_unet_a.strange": M5}))
    assert found.roles["lora_unet_a.strange"] == "not_analysed"  # of a name of kohya's
    for part in ("transformer", "unet", "text_encoder", "text_encoder_2", "text_encoder_3", "diffusion_model"):
        _, found = open_adapter(written(tmp_path / part, {f"{part}.q.{key}": x for key, x in PAIR.items()}))
        assert found.notes == ["the file gives no alpha: it is taken to be the rank, as diffusers does"]
    whole = {"fine_tune_type": "full", "lora_parameters": {}}
    _, found = open_adapter(written(tmp_path / "whole", {"q.weight": W}, whole))
    assert (found.format, [item.reason for item in found.skipped]) == (
        "mlx",
        ["fine_tune_type is full: whole weights, no adapter"],
    )


DORA_SCALE = "dora_scale of shape {} has a norm that is not of a row or a column".format
SHAPE = "factors of shape {} and {}: expected (E, r, in) and (E, out, r)".format
MLX = {"lora_parameters": {"rank": 2, "scale": 1.0}}
K = "lora_unet_a."


def ones(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {key.replace("__", "."): np.ones(shape, np.float32) for key, shape in shapes.items()}


@every(
    ("tensors", "config", "reason"),
    [
        *(
            (DOWN | {"dora_scale": np.ones(s)}, None, DORA_SCALE([*s]))
            for s in ((5, 1, 3), (5, 3), (1, 5), (1, 3, 1), (4,), ())
        ),
        (DOWN | alpha([1, 1]), None, "alpha has 2 entries, expected one"),
        (DOWN | alpha([]), None, "alpha has 0 entries, expected one"),
        (DOWN | alpha(np.inf), None, "alpha is not finite"),
        ({"hada_w1_a": W2, "hada_w1_b": W1}, None, "hada_w2_a, hada_w2_b is missing beside nothing else"),
        *(
            (
                ones(lora_down__weight=down, lora_up__weight=up, lora_mid__weight=mid), None,
                f"factors of shape {[*up]}, {[*mid]} and {[*down]}: expected (out, r), (r, r, k, k), (r, in)",
            )
            for down, up, mid in (
                ((2, 3), (5,), (2, 2, 1, 1)), ((2,), (5, 2), (2, 2, 1, 1)),
                ((2, 3), (5, 2), (2, 2, 1)),
                ((2, 3), (5, 2), (2, 3, 1, 1)), ((2, 3), (5, 2), (3, 2, 1, 1)),
                ((2, 3, 1, 1), (5, 2, 3, 1), (2, 2, 1, 1)),
                ((2, 3, 1, 3), (5, 2, 1, 1), (2, 2, 1, 1)),
            )
        ),
        (ones(lora_a=(3, 4, 9), lora_b=(9, 4)), MLX, SHAPE([3, 4, 9], [9, 4])),
        (ones(lora_a=(3, 4, 9), lora_b=(2, 9, 4)), MLX, SHAPE([3, 4, 9], [2, 9, 4])),
        (ones(lora_a=(3, 4, 9), lora_b=(3, 9, 5)), MLX, SHAPE([3, 4, 9], [3, 9, 5])),
        (ones(lora_a=(9, 4, 1, 1), lora_b=(4, 9, 1, 1)), MLX, "factors with more than two axes"),
        (ones(lora_a=(9, 4), lora_b=(5, 9)), MLX, "factors of shape [5, 9] and [9, 4]: ranks disagree"),
        (ones(lora_a=(9, 4)), MLX, "lora_b is missing beside lora_a"),
    ],
)  # fmt: skip
def test_factors_of_other_programs_that_do_not_fit_are_left_out_with_their_shapes(tensors, config, reason, tmp_path):
    named = {f"{K if config is None else 'q.'}{key}": x for key, x in tensors.items()}
    _, found = open_adapter(written(tmp_path / "a", named, config))
    assert (found.modules, [item.reason for item in found.skipped]) == ([], [reason])
    assert set(found.roles.values()) == {"not_analysed"}


@every("parameters", [{"rank": 4, "alpha": 16}, {"scale": True}, {"scale": 1.01e30}, {"scale": "1"}, None])
def test_mlx_without_a_scale_is_refused(parameters, tmp_path):
    with pytest.raises(AdapterError, match=r"gives no lora_parameters\.scale"):
        open_adapter(written(tmp_path / "a", mlx_q("q"), {"lora_parameters": parameters}))


def test_dora_of_a_component_needs_the_scale_of_its_config(tmp_path):
    tensors = {f"unet.q.{key}": x for key, x in (PAIR5 | {"lora_magnitude_vector": M5}).items()}
    _, found = open_adapter(written(tmp_path / "a", tensors))
    assert [item.reason for item in found.skipped] == ["DoRA without a config: its scale is not known"]
    with pytest.raises(AdapterError, match="lora_adapter_metadata is not a JSON object"):
        open_adapter(written(tmp_path / "b", tensors, metadata={"lora_adapter_metadata": "["}))


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
        _, adapter = open_adapter(shared_data / "adapters" / name)
        assert (adapter.format, len(adapter.modules)) == (kind, modules), name
        assert set(adapter.roles) == set(adapter.tensors)
        assert not {"unknown", "not_analysed"} & set(adapter.roles.values()), name


# --- layouts of pairs --------------------------------------------------------------------------------------------


def test_a_pair_of_a_layer_a_kernel_and_an_embedding_has_these_names_and_shapes():
    layer = peft_pair("m", 3, (6, 20), kernel=(2, 2))
    assert layer == LoraPair(f"{PREFIX}m.lora_A.weight", f"{PREFIX}m.lora_B.weight", 3, 5, 6, (2, 2))
    assert (layer.shapes(2), layer.params_per_rank) == (((2, 5, 2, 2), (6, 2, 1, 1)), 26)
    stack = LoraPair("a", "b", 2, 5, 6, experts=3)
    assert (stack.shapes(4), stack.params_per_rank, stack.swapped("b", "a")) == (((12, 5), (6, 12)), 33, ("b", "a"))
    embedding = peft_pair("e", 2, (6, 5), embedding=True)
    assert (embedding.a_name, embedding.swapped("b", "a")) == (f"{PREFIX}e.lora_embedding_A", ("a", "b"))


@every(
    "pair",
    [LoraPair("a", "b", 2, 5, 6, experts=3), LoraPair("a", "b", 2, 3, 6, kernel=(2, 2)), LoraPair("a", "b", 2, 5, 6)],
)
def test_a_pair_is_split_by_experts_and_joined_at_any_larger_rank(pair):
    """Experts are outermost in A and innermost in B."""
    shape_a, shape_b = pair.shapes(2)
    a, b = drawn(*shape_a), drawn(*shape_b)
    split_b, split_a = pair.split(b, a)
    for e in range(pair.experts):
        np.testing.assert_array_equal(split_b[e], b.reshape(6, -1)[:, e :: pair.experts])
        np.testing.assert_array_equal(split_a[e], a.reshape(len(a), -1)[2 * e : 2 * e + 2])
    for same, joined in zip((b, a), pair.joined(split_b, split_a, 2), strict=True):
        np.testing.assert_array_equal(same, joined)
    wide_b, wide_a = pair.joined(split_b, split_a, 3)
    assert (wide_a.shape, wide_b.shape) == pair.shapes(3)
    again = pair._replace(rank=3).split(wide_b, wide_a)
    np.testing.assert_array_equal(again[0] @ again[1], split_b @ split_a)


def test_stored_pairs_say_which_are_transposed(tmp_path):
    shapes = lora("q") | {"c.lora_A.weight": (2, 3, 2, 2), "c.lora_B.weight": (5, 2, 1, 1), "q.lora_B.bias": (5,)}
    for option in (True, False):
        _, found = open_adapter(saved(tmp_path / str(option), shapes, fan_in_fan_out=option, lora_bias=True))
        assert [(pair.path, pair.layout.transposed) for pair in stored_pairs(found)] == [("c", False), ("q", option)]
        assert [one.params for one in found.modules] == [34, 16]  # without the bias
    _, found = open_adapter(
        saved(
            tmp_path / "x", lora("x.experts.base_layer", "x.experts"), target_parameters=["experts.a", "experts.b"], r=1
        )
    )
    with pytest.raises(AdapterError, match="does not say which parameter this pair belongs to"):
        stored_pairs(found)


# --- numbers -----------------------------------------------------------------------------------------------------


@every(
    ("value", "dtype", "within"),
    [
        (LARGEST_ENTRY, np.float64, True),
        (-LARGEST_ENTRY * 1.01, np.float64, False),
        (math.inf, np.float32, False),
        (math.nan, np.float16, False),
        (3.4e38, np.float32, True),
    ],
)
def test_numbers_of_an_update_are_within_the_range_of_float32(value, dtype, within):
    assert within_range(np.ones(2), np.asarray([0.0, value], dtype)) is within


@every("dtype", [np.float16, np.dtype(">f2"), ml_dtypes.bfloat16, np.float32, ml_dtypes.float8_e5m2])
def test_every_pattern_of_16_bits_is_finite_or_not_as_numpy_says(dtype):
    kind = np.dtype(dtype)
    if kind.itemsize == 2:
        each = np.arange(1 << 16, dtype=np.uint16).view(kind)
        truth = np.isfinite(each[::31].astype(np.float32))  # of bfloat16 itself it warns
        assert [all_finite(each[i : i + 1]) for i in range(0, 1 << 16, 31)] == truth.tolist()
    for value in (np.inf, -np.inf, np.nan):
        assert not all_finite(np.asarray([[1.0, value], [0.0, -2.0]], kind))
    assert all_finite(np.asarray([[1.0, -3.0], [0.0, -2.0]], kind).T)
    assert all_finite(np.zeros((0, 2), kind))


def test_each_thread_keeps_the_tensors_that_it_read_itself():
    ctx = Context(None, AdapterConfig(), ScalingRules(AdapterConfig()))
    ctx.kept["stack"] = 1
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: ctx.kept).result() == {}
    assert ctx.kept == {"stack": 1}
