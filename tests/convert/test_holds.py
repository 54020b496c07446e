"""What each target's file holds of an adapter that PEFT saved: each cell of holds.toml by what convert does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hand_made import PREFIX
from peft import LoraConfig
from peft_models import Case, Experts, Net, made
from safetensors.numpy import load_file, save_file
from torch import nn

from gradience.errors import AdapterError, few
from gradience.verbs.convert.holds import HOLDS
from gradience.verbs.convert.run import convert_adapter

Q = ["q_proj"]
ADAPTER, MLX = "adapter_model.safetensors", "adapters.safetensors"


def llama(*, tied: bool = False) -> Any:
    torch.manual_seed(1)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": tied}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))


def bert() -> Any:
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, num_attention_heads=2))


class Bare(nn.Module):
    """A layer whose weight has a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 5))


class Parts(nn.Module):
    """A language model's layer beside experts one by one, a tower, and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(6, 6)
        self.experts = nn.ModuleList(nn.ModuleDict({"up_proj": nn.Linear(6, 9)}) for _ in range(2))
        self.visual = nn.ModuleDict({"fc1": nn.Linear(6, 7)})
        self.bare = Bare()


class Wrapped(nn.Module):
    """A language model below a model of pictures and text."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"language_model": nn.ModuleDict({"q_proj": nn.Linear(6, 6)})})


class Stacked(nn.Module):
    """A layer of stacked experts."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict({"experts": Experts()})


def lora(folder: Path, model: Any = None, **config: Any) -> Case:
    return made(folder, LoraConfig(**({"r": 2, "lora_alpha": 6, "target_modules": Q} | config)), model or Net())


def by_way_of_mlx(case: Case) -> Path:
    there = case.folder.with_name("mlx")
    convert_adapter(case.folder, there, to="mlx")
    return there


def split_experts(folder: Path) -> Path:
    """An adapter of MLX-LM's experts whose gate and up have factors of their own, which PEFT's fused pair stacks."""
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    there = by_way_of_mlx(
        lora(
            folder,
            Stacked(),
            target_modules=[],
            target_parameters=targets,
            rank_pattern={"down_proj": 1},
            alpha_pattern={"down_proj": 3},
        )
    )
    tensors = load_file(there / MLX)
    save_file({name: -x if name.endswith("gate_proj.lora_a") else x for name, x in tensors.items()}, there / MLX)
    return there


def lacking_magnitudes(folder: Path) -> Path:
    """DoRA of two layers in kohya's names, of which one has its magnitudes."""
    case = lora(folder, use_dora=True)
    tensors = {}
    for name, x in load_file(case.folder / ADAPTER).items():
        module, _, leaf = name.removeprefix(PREFIX).partition(".lora_")
        kohya = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight", "magnitude_vector": "dora_scale"}[leaf]
        if kohya != "dora_scale" or module == "layers.0.q_proj":
            shaped = x.reshape(-1, 1) if kohya == "dora_scale" else x
            tensors[f"lora_unet_{module.replace('.', '_')}.{kohya}"] = shaped
    save_file(tensors, case.folder / "kohya.safetensors")
    return case.folder / "kohya.safetensors"


def with_more(folder: Path) -> Path:
    case = lora(folder)
    tensors = load_file(case.folder / ADAPTER)
    save_file(tensors | {"layers.0.odd": tensors[f"{PREFIX}layers.0.q_proj.lora_A.weight"]}, case.folder / ADAPTER)
    return case.folder


def text_encoder(folder: Path) -> Path:
    """As diffusers saves it: PEFT's names under the component's."""
    case = lora(folder.with_name("peft"))
    folder.mkdir()
    tensors = {f"text_encoder.{k.removeprefix(PREFIX)}": x for k, x in load_file(case.folder / ADAPTER).items()}
    save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    return folder / "pytorch_lora_weights.safetensors"


QS = ["layers.0.q_proj", "layers.1.q_proj"]
LLAMAS = [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
OUTER = {"target_modules": ["q_proj", "lm_head"]}
HOLD, LACK = "holds", "lacks"
ONE_SCALE = "MLX-LM takes one scale: in 1 modules the ratio to 3 goes into lora_b"
ONE_RANK = "MLX-LM takes one rank: 1 modules of a lower one are padded with zeros to 2"
PADDED = "1 pairs on experts are padded with zeros to rank 4, the one of all of them"
ROOT = "rsLoRA's scale lora_alpha / sqrt(r) is written as "
ALPHA, NUMBER = (
    f"{ROOT}a plain lora_alpha / r: lora_alpha takes the ratio",
    f"{ROOT}the one number that MLX-LM has for it",
)
UNSURE = "MLX-LM loads no adapter of lm_head if the base ties it to the embedding: --base PATH tells"
TIED = "MLX-LM applies an embedding's update to a tied output head too; PEFT does so with ensure_weight_tying only"
WRAPPED = (
    "MLX-LM has what is below model.language_model (1 here) below language_model.model: "
    "--rename model.language_model=language_model.model"
)
MIXED = {"target_modules": ["q_proj", "up_proj"]}
CELLS: dict[str, tuple[Any, str, str, list[str]]] = {
    "alphas": (lambda f: lora(f, **MIXED, alpha_pattern={"1.up_proj": 5}), HOLD, ONE_SCALE, []),
    "ranks": (lambda f: lora(f, **MIXED, rank_pattern={"1.up_proj": 1}, alpha_pattern={"1.up_proj": 3}), HOLD, ONE_RANK,
        []),
    "expert_ranks": (split_experts, PADDED, ONE_RANK, []),
    "rslora": (lambda f: lora(f, use_rslora=True), ALPHA, NUMBER, []),
    "magnitudes": (lambda f: by_way_of_mlx(lora(f, use_dora=True)), HOLD, HOLD, []),
    "dora_in_part": (lacking_magnitudes, LACK, LACK, ["lora_unet_layers_1_q_proj"]),
    "whole": (lambda f: lora(f, llama(), modules_to_save=["lm_head"]), HOLD, LACK, ["lm_head.weight"]),
    "bias": (lambda f: lora(f, bias="lora_only"), HOLD, LACK, [f"{q}.base_layer.bias" for q in QS]),
    "lora_bias": (lambda f: lora(f, lora_bias=True), HOLD, LACK, [f"{q}.lora_B.bias" for q in QS]),
    "token_rows": (lambda f: lora(f, llama(), trainable_token_indices={"embed_tokens": [3]}), HOLD, LACK,
        ["model.embed_tokens.token_adapter.trainable_tokens_delta"]),
    "base_copy": (lambda f: lora(f, llama(), target_modules=["q_proj", "embed_tokens"]), HOLD, LACK,
        ["model.embed_tokens.base_layer.weight"]),
    "unknown": (with_more, LACK, LACK, ["layers.0.odd"]),
    "convolution": (lambda f: lora(f, target_modules=["conv2d", "q_proj"]), HOLD, LACK, ["conv2d"]),
    "multihead": (lambda f: lora(f, target_modules=["attention", "q_proj"]), LACK, LACK, ["attention"]),
    "parameter": (lambda f: lora(f, Parts(), target_parameters=["bare.table"]), LACK, LACK, ["bare.table"]),
    "lone_experts": (lambda f: lora(f, Parts(), target_modules=["q_proj", "up_proj"]), HOLD, LACK,
        ["experts.0.up_proj", "experts.1.up_proj"]),
    "tower": (lambda f: lora(f, Parts(), target_modules=["q_proj", "fc1"]), HOLD, LACK, ["visual.fc1"]),
    "wrapped": (lambda f: lora(f, Wrapped()), HOLD, WRAPPED, []),
    "pipeline": (text_encoder, HOLD, LACK, [f"text_encoder.{q}" for q in QS]),
    "replicated": (lambda f: lora(f, llama(), layer_replication=[[0, 2], [1, 2]]), HOLD, LACK,
        [*LLAMAS, "model.layers.2.self_attn.q_proj"]),
    "tied_head": (lambda f: lora(f, llama(tied=True), **OUTER), HOLD, LACK, ["lm_head"]),
    "head": (lambda f: lora(f, llama(), **OUTER), HOLD, UNSURE, []),
    "no_model": (lambda f: lora(f, bert(), target_modules=["query"]), HOLD, HOLDS["no_model"].cell("mlx").says, []),
    "embedding": (lambda f: by_way_of_mlx(lora(f, target_modules=["q_proj", "embed_tokens"])), TIED, TIED, []),
}  # fmt: skip


def test_each_part_has_its_case():
    assert CELLS.keys() == HOLDS.keys()


@pytest.mark.parametrize("to", ["peft", "mlx"])
@pytest.mark.parametrize("part", CELLS)
def test_a_cell_is_what_convert_does(part, to, tmp_path):
    build, *does, names = CELLS[part]
    made_of = build(tmp_path / "old")
    source = made_of.folder if isinstance(made_of, Case) else made_of
    asked: dict[str, Any] = {"to": to, "renames": ["layers=layers"], "drop": part == "head"}
    if part == "tied_head":
        made_of.model.save_pretrained(tmp_path / "base")
    if part in {"tied_head", "dora_in_part"}:
        asked["base"] = tmp_path / ("base" if part == "tied_head" else "old-base")
    if to == "mlx" and source.name == "mlx":
        source = tmp_path / "old"  # that PEFT saved
    expected = does[to == "mlx"]
    row, out = HOLDS[part], tmp_path / "new"
    if expected != LACK:
        report = convert_adapter(source, out, **asked)
        assert report.notes == ([] if expected == HOLD else [expected])
        assert all("lm_head" in name for name in report.dropped)
        if expected == HOLD and isinstance(made_of, Case):
            before, after = load_file(source / ADAPTER), load_file(out / (MLX if to == "mlx" else ADAPTER))
            assert len(before) == len(after)
        return
    with pytest.raises(AdapterError) as error:
        convert_adapter(source, out, **asked)
    assert f"{few(names)} ({row.what}; {row.cell(to).lacks})" in error.value.message
    assert not out.exists()
    mend = row.cell(to).mend
    assert error.value.advice == (mend or "leave them out with --drop, or merge the adapter into the base instead")
    asked["drop"] = True
    if mend:
        with pytest.raises(AdapterError):
            convert_adapter(source, out, **asked)
        return
    report = convert_adapter(source, out, **asked)
    assert {row.name for row in report.modules}.isdisjoint(names)
    stems = {name.removesuffix(".table") for name in names}  # a parameter's pair lies under its module's name
    assert {one for one in stems if any(one in tensor for tensor in report.dropped)} == stems
