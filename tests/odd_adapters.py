"""Adapter files of every kind and with many faults, made from a config and shapes only, and the reading of each.

After an intended change, `python tests/odd_adapters.py` writes the golden file of `tests/adapters/test_odd_files.py`
again. That file pins each number. The other tests in `tests/adapters` check the formulas against PEFT's own merges.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from gradience.adapters.layout import Adapter, Module
from gradience.adapters.open import open_adapter
from gradience.adapters.traits import Operation, obstacles, traits_of
from gradience.errors import AdapterError
from gradience.schema.audit import LeftoverReason

GOLDEN: Final = Path(__file__).parent / "golden" / "odd_adapters.json"
P: Final = "base_model.model."
_FLOAT: Final = re.compile(r"(?<![\w.])-?\d+\.\d+(?![\w.])")
_NUMBER: Final = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?%?")


def numbers(text: str | None) -> str:
    """The numbers in a sentence, as they are printed, without its words."""
    return " ".join(_NUMBER.findall(text or ""))


def shown(value: Any) -> Any:
    """A value with its floats at five digits, so that differences between platforms' libm do not matter."""
    if isinstance(value, float):
        return f"{value:.5g}"
    return [shown(each) for each in value[:5]] if isinstance(value, list) else value


class Case(NamedTuple):
    """An adapter to write: its config (None: no config file), the shapes of its tensors by name, and its metadata."""

    config: dict[str, Any] | None
    shapes: Mapping[str, tuple[int, ...]]
    metadata: dict[str, str] | None = None


def lora(*paths: str, r: int = 4, out: int = 6, inner: int = 5, adapter: str = "", **more: tuple[int, ...]) -> dict:
    """LoRA pairs of these modules under PEFT's names, and further tensors."""
    name = f".{adapter}" if adapter else ""
    pairs = {
        f"{P}{path}.lora_{side}{name}.weight": shape
        for path in paths
        for side, shape in (("A", (r, inner)), ("B", (out, r)))
    }
    return pairs | {P + key.replace("__", "."): shape for key, shape in more.items()}


def peft(**fields: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **fields}


Q: Final = "layers.1.q_proj"
MAGNITUDE: Final = {f"{P}{Q}.lora_magnitude_vector.weight": (6,)}
CONV: Final = {f"{P}{Q}.lora_A.weight": (4, 3, 2, 2), f"{P}{Q}.lora_B.weight": (6, 4, 1, 1)}
EMBEDDING: Final = {f"{P}embed_tokens.lora_embedding_A": (4, 9), f"{P}embed_tokens.lora_embedding_B": (5, 4)}
EXPERTS: Final = {
    f"{P}layers.0.mlp.experts.base_layer.lora_A.weight": (12, 5),
    f"{P}layers.0.mlp.experts.base_layer.lora_B.weight": (8, 12),
    f"{P}layers.0.mlp.experts.lora_A.weight": (12, 4),
    f"{P}layers.0.mlp.experts.lora_B.weight": (5, 12),
}
HADA: Final = {f"{P}{Q}.hada_w{i}_{x}": (6, 2) if x == "a" else (2, 5) for i in (1, 2) for x in "ab"}
TUCKER: Final = {
    **{f"{P}{Q}.hada_w{i}_{x}": (2, 6) if x == "a" else (2, 3) for i in (1, 2) for x in "ab"},
    **{f"{P}{Q}.hada_t{i}": (2, 2, 2, 2) for i in (1, 2)},
}
KRON: Final = {f"{P}{Q}.lokr_w1": (2, 3), f"{P}{Q}.lokr_w2_a": (3, 2), f"{P}{Q}.lokr_w2_b": (2, 4)}
VERA: Final = {
    "base_model.vera_A": (4, 5),
    "base_model.vera_B": (6, 4),
    f"{P}layers.0.q_proj.vera_lambda_b": (6,),
    f"{P}layers.0.q_proj.vera_lambda_d": (4,),
}
OTHER_WIDTH: Final = {f"{P}layers.0.x_proj.vera_lambda_b": (3,), f"{P}layers.0.x_proj.vera_lambda_d": (4,)}
HIRA: Final = {f"{P}{Q}.hira_A": (4, 5), f"{P}{Q}.hira_B": (6, 4)}
KOHYA: Final = "lora_unet_down_blocks_0_q"

CASES: Final[dict[str, Case]] = {
    "plain": Case(peft(), lora(Q)),
    "two layers": Case(peft(), lora("layers.2.q_proj", "layers.10.q_proj")),
    "rslora": Case(peft(use_rslora=True), lora(Q)),
    "another rank in the file": Case(peft(r=8), lora(Q, "layers.2.q_proj")),
    "patterns": Case(
        peft(rank_pattern={"1.q_proj": 4, "v": 2}, alpha_pattern={r"layers\.\d+.q_proj": 3, "w": 1}, r=2), lora(Q)
    ),
    "contested": Case(peft(alpha_pattern={"1.q_proj": 3, "q_proj": 5}), lora(Q)),
    "dora": Case(peft(use_dora=True), lora(Q) | MAGNITUDE),
    "dora of conv1d": Case(
        peft(use_dora=True, fan_in_fan_out=True), lora(Q) | {f"{P}{Q}.lora_magnitude_vector.weight": (6,)}
    ),
    "dora on pissa": Case(peft(use_dora=True, init_lora_weights="pissa"), lora(Q) | MAGNITUDE),
    "conv1d": Case(peft(fan_in_fan_out=True), lora(Q)),
    "conv": Case(peft(), CONV),
    "conv with a kernel in B": Case(peft(), CONV | {f"{P}{Q}.lora_B.weight": (6, 4, 2, 1)}),
    "embedding": Case(peft(target_modules=["embed_tokens"]), EMBEDDING),
    "pissa": Case(peft(init_lora_weights="pissa"), lora(Q)),
    "olora": Case(peft(init_lora_weights="olora"), lora(Q)),
    "pissa niter": Case(peft(init_lora_weights="pissa_niter_4"), lora(Q)),
    "loftq conv": Case(peft(init_lora_weights="loftq"), CONV),
    "pissa beside a conv": Case(
        peft(init_lora_weights="pissa"),
        lora("layers.0.v_proj") | CONV,
    ),
    "dora beside plain": Case(peft(use_dora=True), lora(Q, "layers.2.q_proj") | MAGNITUDE),
    "embedding tied": Case(peft(target_modules=["embed_tokens"], ensure_weight_tying=True), EMBEDDING),
    "kasa": Case(peft(kasa_config={}), lora(Q, r=2) | {f"{P}{Q}.lora_diag": (2,)}),
    "kasa of another rank": Case(peft(kasa_config={}), lora(Q) | {f"{P}{Q}.lora_diag": (3,)}),
    "qalora": Case(peft(use_qalora=True, qalora_group_size=3), lora(Q)),
    "qalora of group 0": Case(peft(use_qalora=True, qalora_group_size=0), lora(Q)),
    "bdlora a": Case(
        peft(use_bdlora={"nblocks": 2, "target_modules_bd_a": ["q_proj"]}),
        {f"{P}{Q}.lora_A.weight": (4, 3), f"{P}{Q}.lora_B.weight": (6, 4)},
    ),
    "bdlora b": Case(
        peft(use_bdlora={"nblocks": 2, "target_modules_bd_b": ["q_proj"]}),
        {f"{P}{Q}.lora_A.weight": (4, 5), f"{P}{Q}.lora_B.weight": (6, 2)},
    ),
    "bdlora of three blocks": Case(peft(use_bdlora={"nblocks": 3, "target_modules_bd_a": ["q_proj"]}), lora(Q)),
    "ranks disagree": Case(peft(), {f"{P}{Q}.lora_A.weight": (4, 5), f"{P}{Q}.lora_B.weight": (6, 3)}),
    "a vector": Case(peft(), {f"{P}{Q}.lora_A.weight": (4,), f"{P}{Q}.lora_B.weight": (6, 4)}),
    "a lone factor": Case(peft(), {f"{P}{Q}.lora_A.weight": (4, 5)}),
    "a bias of its own": Case(peft(lora_bias=True), lora(Q) | {f"{P}{Q}.lora_B.bias": (6,)}),
    "several": Case(peft(), lora(Q, adapter="one") | lora(Q, adapter="two")),
    "beside": Case(
        peft(bias="all", modules_to_save=["score"]),
        lora(Q)
        | {
            f"{P}{Q}.base_layer.bias": (6,),
            f"{P}norm.bias": (5,),
            f"{P}score.modules_to_save.weight": (2, 5),
            f"{P}lm_head.weight": (9, 5),
            f"{P}embed_tokens.token_adapter.trainable_tokens_delta": (2, 5),
            f"{P}{Q}.base_layer.weight": (6, 5),
            "something": (3,),
            f"{P}{Q}.lora_velora_embed": (2,),
        },
    ),
    "many unknown": Case(peft(), lora(Q) | {f"other{n}": (2,) for n in range(9)}),
    "eight unknown": Case(peft(), lora(Q) | {f"other{n}": (2,) for n in range(8)}),
    "untargeted": Case(peft(target_modules=["a", "b", "c", "d", "e"]), lora(Q)),
    "attention": Case(
        peft(target_modules=["attn"]),
        lora("attn", out=15) | lora("attn.base_layer.out_proj", out=5),
    ),
    "replicated": Case(peft(layer_replication=[[0, 2], [1, 3]]), lora("layers.3.q_proj")),
    "replicated backwards": Case(peft(layer_replication=[[2, 1]]), lora(Q)),
    "variants": Case(
        peft(alora_invocation_tokens=[1], arrow_config={}, kasa_config={}, init_lora_weights="corda"), lora(Q)
    ),
    "experts": Case(peft(target_parameters=["experts.gate_up_proj", "experts.down_proj"]), EXPERTS),
    "experts of one rank": Case(peft(target_parameters=["experts.a", "experts.b"]), EXPERTS),
    "experts ambiguous": Case(
        peft(target_parameters=["experts.a", "experts.b"], rank_pattern={"experts.a": 2}), EXPERTS
    ),
    "experts unequal": Case(
        peft(target_parameters=["experts.gate_up_proj", "experts.down_proj"], rank_pattern={"gate_up_proj": 2}),
        EXPERTS,
    ),
    "experts indivisible": Case(peft(target_parameters=["experts.gate_up_proj", "experts.down_proj"], r=5), EXPERTS),
    "one parameter": Case(peft(target_parameters=["proj.weight"], target_modules=[]), lora("proj")),
    "loha": Case({"peft_type": "LOHA", "r": 2, "alpha": 6}, HADA),
    "loha of conv": Case({"peft_type": "LOHA", "r": 2, "alpha": 6}, TUCKER),
    "loha unequal": Case({"peft_type": "LOHA", "r": 2, "alpha": 6}, HADA | {f"{P}{Q}.hada_w2_b": (2, 4)}),
    "loha core": Case({"peft_type": "LOHA", "r": 2, "alpha": 6}, TUCKER | {f"{P}{Q}.hada_t1": (2, 3, 2, 2)}),
    "lokr": Case({"peft_type": "LOKR", "r": 2, "alpha": 6}, KRON),
    "lokr whole": Case(
        {"peft_type": "LOKR", "r": 3, "alpha": 6}, {f"{P}{Q}.lokr_w1": (2, 3), f"{P}{Q}.lokr_w2": (5, 4)}
    ),
    "lokr without alpha": Case({"peft_type": "LOKR", "r": 2}, KRON),
    "lokr of rank 0": Case(
        {"peft_type": "LOKR", "r": 1, "rank_pattern": {"q_proj": 0}},
        {f"{P}{Q}.lokr_w1": (2, 3), f"{P}{Q}.lokr_w2": (5, 4)},
    ),
    "lokr vector": Case({"peft_type": "LOKR", "r": 2}, KRON | {f"{P}{Q}.lokr_w1": (2,)}),
    "adalora": Case(
        {"peft_type": "ADALORA", "r": 8, "init_r": 6, "lora_alpha": 3},
        {f"{P}{Q}.lora_A": (4, 5), f"{P}{Q}.lora_B": (6, 4), f"{P}{Q}.lora_E": (4, 1)},
    ),
    "adalora pruned": Case(
        {
            "peft_type": "ADALORA",
            "r": 8,
            "init_r": 6,
            "lora_alpha": 0,
            "rank_pattern": {f"{Q}.lora_E": [True, False, True, True]},
        },
        {f"{P}{Q}.lora_A": (4, 5), f"{P}{Q}.lora_B": (6, 4), f"{P}{Q}.lora_E": (4, 1)},
    ),
    "adalora of init_r 0": Case(
        {"peft_type": "ADALORA", "init_r": 0},
        {f"{P}{Q}.lora_A": (4, 5), f"{P}{Q}.lora_B": (6, 4), f"{P}{Q}.lora_E": (4, 1)},
    ),
    "vera": Case({"peft_type": "VERA", "r": 4}, VERA),
    "vera of several widths": Case({"peft_type": "VERA", "r": 4}, VERA | OTHER_WIDTH),
    "vera too wide": Case({"peft_type": "VERA", "r": 4}, VERA | {f"{P}layers.0.q_proj.vera_lambda_b": (7,)}),
    "hira": Case({"peft_type": "HIRA", "r": 4}, HIRA),
    "hira disagrees": Case({"peft_type": "HIRA", "r": 4}, HIRA | {f"{P}{Q}.hira_B": (6, 3)}),
    "miss": Case({"peft_type": "MISS", "r": 2}, {f"{P}{Q}.miss_block": (2, 6)}),
    "miss mini": Case({"peft_type": "MISS", "r": 2, "init_weights": "mini"}, {f"{P}{Q}.miss_block": (2, 3)}),
    "miss bat": Case({"peft_type": "BONE", "r": 2, "init_weights": "bat"}, {f"{P}{Q}.miss_block": (3, 2, 2)}),
    "miss of two axes": Case({"peft_type": "MISS", "r": 2, "init_weights": "bat"}, {f"{P}{Q}.miss_block": (3, 2)}),
    "ia3": Case({"peft_type": "IA3"}, {f"{P}{Q}.ia3_l": (5, 1), f"{P}score.modules_to_save.weight": (2, 5)}),
    "another type": Case(peft(), HADA),
    "mlx": Case(
        {"lora_parameters": {"scale": 3.0, "rank": 8}, "model": "m"},
        {"layers.0.q_proj.lora_a": (5, 4), "layers.0.q_proj.lora_b": (4, 6)},
    ),
    "mlx dora": Case(
        {"lora_parameters": {"scale": 3.0, "rank": 4}, "fine_tune_type": "dora"},
        {"layers.0.q_proj.lora_a": (5, 4), "layers.0.q_proj.lora_b": (4, 6), "layers.0.q_proj.m": (6,)},
    ),
    "mlx embedding": Case(
        {"lora_parameters": {"scale": 3.0, "rank": 4}}, {"embed_tokens.lora_a": (9, 4), "embed_tokens.lora_b": (4, 5)}
    ),
    "mlx experts": Case(
        {"lora_parameters": {"scale": 3.0, "rank": 4}}, {"mlp.switch.lora_a": (2, 4, 5), "mlp.switch.lora_b": (2, 6, 4)}
    ),
    "mlx experts unequal": Case(
        {"lora_parameters": {"scale": 3.0, "rank": 4}}, {"mlp.switch.lora_a": (2, 4, 5), "mlp.switch.lora_b": (3, 6, 4)}
    ),
    "mlx without scale": Case({}, {"q.lora_a": (5, 4), "q.lora_b": (4, 6)}),
    "torchtune": Case(peft(), {"q.lora_a.weight": (4, 5), "q.lora_b.weight": (6, 4), "q.magnitude": (6,)}),
    "kohya": Case(None, {f"{KOHYA}.lora_down.weight": (4, 5), f"{KOHYA}.lora_up.weight": (6, 4), f"{KOHYA}.alpha": ()}),
    "kohya without alpha": Case(None, {f"{KOHYA}.lora_down.weight": (4, 5), f"{KOHYA}.lora_up.weight": (6, 4)}),
    "kohya mid": Case(
        None,
        {
            f"{KOHYA}.lora_down.weight": (4, 3, 1, 1),
            f"{KOHYA}.lora_up.weight": (6, 4, 1, 1),
            f"{KOHYA}.lora_mid.weight": (4, 4, 2, 2),
        },
    ),
    "kohya of two alphas": Case(
        None, {f"{KOHYA}.lora_down.weight": (4, 5), f"{KOHYA}.lora_up.weight": (6, 4), f"{KOHYA}.alpha": (2,)}
    ),
    "lycoris": Case(
        None,
        {
            f"{KOHYA}.{n}": s
            for n, s in (
                ("hada_w1_a", (6, 2)),
                ("hada_w1_b", (2, 5)),
                ("hada_w2_a", (6, 2)),
                ("hada_w2_b", (2, 5)),
                ("alpha", ()),
            )
        },
    ),
    "lycoris kron": Case(
        None, {f"{KOHYA}.{n}": s for n, s in (("lokr_w1", (2, 3)), ("lokr_w2", (3, 2)), ("alpha", ()))}
    ),
    "lycoris dora": Case(
        None, {f"{KOHYA}.lora_down.weight": (4, 5), f"{KOHYA}.lora_up.weight": (6, 4), f"{KOHYA}.dora_scale": (6, 1)}
    ),
    "lycoris dora by input": Case(
        None, {f"{KOHYA}.lora_down.weight": (4, 5), f"{KOHYA}.lora_up.weight": (6, 4), f"{KOHYA}.dora_scale": (1, 5)}
    ),
    "lycoris dora of neither": Case(
        None, {f"{KOHYA}.lora_down.weight": (4, 5), f"{KOHYA}.lora_up.weight": (6, 4), f"{KOHYA}.dora_scale": (2, 3)}
    ),
    "diffusers": Case(None, {f"transformer.blocks.0.q.lora_{x}.weight": (4, 5) if x == "A" else (6, 4) for x in "AB"}),
    "diffusers with a config": Case(
        None,
        {f"transformer.blocks.0.q.lora_{x}.weight": (4, 5) if x == "A" else (6, 4) for x in "AB"},
        {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 2})},
    ),
}


def write(folder: Path, case: Case) -> Path:
    """Write the adapter's files, with numbers that depend only on the tensors' names."""
    folder.mkdir(parents=True)
    tensors = {
        name: np.asarray(np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape), np.float32)
        for name, shape in case.shapes.items()
    }
    if case.config is None:
        save_file(tensors, folder / "adapter.safetensors", metadata=case.metadata)
        return folder / "adapter.safetensors"
    save_file(tensors, folder / "adapter_model.safetensors", metadata=case.metadata or {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(case.config), encoding="utf-8")
    return folder


def read(path: Path) -> list[str]:
    """Read an adapter, and return one line for each thing that was read."""
    try:
        _, adapter = open_adapter(path)
    except AdapterError as error:
        return [f"refused: {numbers(str(error).replace(str(path.parent), ''))}"]
    return _lines(adapter)


def _lines(adapter: Adapter) -> list[str]:
    roles = sorted(f"{name.removeprefix(P)}={role}" for name, role in adapter.roles.items())
    refusals = {
        operation.value: [refusal.obstacle.name for refusal in obstacles(adapter, operation)] for operation in Operation
    }
    return [
        (
            f"{adapter.format} {adapter.config.peft_type}; unmatched {adapter.unmatched_rank_patterns} "
            f"{adapter.unmatched_alpha_patterns}"
        ),
        f"roles {' '.join(roles)}",
        f"traits {_traits(adapter)}",
        *(f"module {_module(module)}" for module in adapter.modules),
        *(f"needs base {_module(module)}" for module in adapter.base_dependent),
        *(
            f"skipped {one.name} {LeftoverReason(one.cause).name if one.cause else None}: {numbers(one.reason)}"
            for one in adapter.skipped
        ),
        *(f"note: {numbers(note)}" for note in adapter.notes),
        *(f"{name} refuses: {' '.join(found)}" for name, found in refusals.items() if found),
    ]


def _traits(adapter: Adapter) -> str:
    traits = dataclasses.asdict(traits_of(adapter))
    return " ".join(f"{name}={value}" for name, value in traits.items() if value not in (False, ()))


def _module(module: Module) -> str:
    fields = ("kind", "shape", "r", "alpha", "scale", "params", "config_r", "rank_pattern", "alpha_pattern")
    more = ("pattern_path", "rslora", "base_name", "expert", "adapter")
    values = " ".join(f"{name}={shown(getattr(module, name))}" for name in (*fields, *more))
    return f"{module.name} {values} note={numbers(module.note)} {_product(module)} {_dense(module)}"


def _product(module: Module) -> str:
    try:
        b, a = module.load()
    except AdapterError:
        return "no factors"
    return f"{b.shape} {a.shape} {_checksum(module.scale * b.astype(np.float64) @ a.astype(np.float64))}"


def _dense(module: Module) -> str:
    """The update for a made-up base weight. If the file does not state the weight's shape, several are tried."""
    if module.dense is None:
        return ""
    found = []
    for shape in dict.fromkeys((module.shape, module.shape[::-1], (6, 4), (6, 5), (6, 6), (3, 5))):
        if 0 in shape:  # the file does not state it, and an empty base weight is refused before it is read
            continue
        w = np.random.default_rng(shape[0] * 10 + shape[1]).standard_normal(shape)
        try:
            found.append(f"{shape}:{_checksum(module.dense(w))}")
        except AdapterError as error:
            found.append(f"{shape}:{numbers(str(error))}")
        except (ValueError, ZeroDivisionError, np.linalg.LinAlgError) as error:
            found.append(f"{shape}:{type(error).__name__}")
    return " ".join(found)


def _checksum(matrix: np.ndarray) -> str:
    """A weighted sum that changes if any two entries are swapped."""
    weights = np.arange(1, matrix.size + 1).reshape(matrix.shape)
    return f"{float(np.sum(np.sin(weights) * matrix)):.6f}"


def alike(one: list[str], two: list[str]) -> bool:
    """Whether two readings are equal, up to the differences in numbers between float32 results of different BLAS."""
    texts = [[_FLOAT.sub("#", line) for line in lines] for lines in (one, two)]
    values = [[float(hit) for line in lines for hit in _FLOAT.findall(line)] for lines in (one, two)]
    return texts[0] == texts[1] and all(
        math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4) for a, b in zip(*values, strict=True)
    )


def all_read(folder: Path) -> dict[str, list[str]]:
    """The readings of all cases, which are written below a folder."""
    return {name: read(write(folder / str(n), case)) for n, (name, case) in enumerate(CASES.items())}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        GOLDEN.write_text(json.dumps(all_read(Path(place)), indent=0) + "\n", encoding="utf-8")
    sys.stdout.write(f"{GOLDEN}\n")
