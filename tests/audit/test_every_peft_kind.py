"""Every kind of adapter that the installed PEFT knows, on real models: audited is merged minus base."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny_models
import torch
from peft_models import save_base
from safetensors.torch import load_file, save_file
from tables import every
from torch import nn

from gradience.adapters.config import ANALYSED, PROMPTS, UNMERGEABLE
from gradience.errors import AdapterError
from gradience.schema.audit import AuditReport
from gradience.verbs.audit.run import audit_adapter

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
    "vit": (vit, ["query", "dense", "q_proj", "fc2"], ["layernorm_before"], []),  # in older transformers the first two
    "convolutions": (Convolutions, ["first", "square", "pointwise"], [], []),
}


def config_of(kind: str, model: str, **more: Any) -> Any:
    _, targets, norms, embedding = MODELS[model]
    chosen = {"LN_TUNING": norms, "TRAINABLE_TOKENS": embedding}.get(kind, targets)
    extra = {"feedforward_modules": [chosen[-1]]} if kind == "IA3" else {}
    made = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    return made(target_modules=chosen, **{**OPTIONS[kind], **extra, **more})


def saved(model: nn.Module, config: Any, folder: Path) -> dict[str, np.ndarray]:
    """Save the model and a random adapter on it as users do; return what PEFT's merge changes, by the base's tensor."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))  # biases and norms are all 0 or 1 at the start
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder / "base", max_shard_size="4kB")
    else:
        save_base(model, folder / "base")
    wrapped = peft.get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += (0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    wrapped.save_pretrained(folder / "adapter")
    merged = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder / "adapter").merge_and_unload().state_dict()
    changes = {}
    for file in (folder / "base").glob("*.safetensors"):
        for stored, tensor in load_file(file).items():
            # By value, because transformers saves some modules under other names, and a tied weight once.
            name = stored if stored in base else next(n for n, t in base.items() if torch.equal(t, tensor))
            if not torch.equal(merged[name], tensor):
                changes[stored] = (merged[name].double() - tensor.double()).numpy()
    return changes


def audited(folder: Path) -> AuditReport:
    return audit_adapter(folder / "adapter", base=folder / "base", norms_cache=False)


def assert_same(report: AuditReport, truth: dict[str, np.ndarray]) -> None:
    """Each tensor that PEFT's merge changes has one row, and the numbers of that change."""
    assert not report.base.not_compared
    rows = {row.base.weight: row for row in report.modules}
    assert len(rows) == len(report.modules)
    assert rows.keys() == truth.keys()
    for name, change in truth.items():
        row = rows[name]
        assert (row.state, row.frobenius_norm) == ("ok", pytest.approx(float(np.linalg.norm(change)), rel=1e-4)), name
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


KNOWN = {kind.value for kind in peft.PeftType}
NEWER = frozenset({"BEFT", "DEFT", "FROD", "GLORA", "HIRA", "SHADOW", "SUPERTUNING", "UNILORA"})
"""Kinds that PEFT has since 0.20 or 0.21."""


def test_the_table_has_every_kind_of_the_installed_peft():
    """A new kind in PEFT fails here: give it options above, or say that it has no merge."""
    lacking = NEWER - KNOWN if "SUPERTUNING" not in KNOWN else set()  # it is of PEFT 0.21
    assert (OPTIONS.keys() | PROMPTS | UNMERGEABLE) - lacking == KNOWN
    assert KNOWN >= ANALYSED
    tuners = peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING
    prompts = {kind for kind in KNOWN if not issubclass(tuners[kind], peft.tuners.tuners_utils.BaseTuner)}
    assert prompts == PROMPTS & KNOWN


ON_CONVOLUTIONS = frozenset({"ADALORA", "BOFT", "HIRA", "HRA", "IA3", "LOHA", "LOKR", "LORA", "OFT"})
NOT_ON_CONV1D = frozenset({"BEFT", "BOFT", "C3A", "DELORA", "GLORA", "HRA", "LOHA", "LOKR", "MISS", "OFT", "PEANUT"})
REFUSED = {
    "llama": {"BEFT"},  # none of its layers has a bias
    "gpt2": NOT_ON_CONV1D | {"PSOFT", "ROAD", "SHIRA", "SUPERTUNING"},
    "bert": set(),
    "vit": {"TRAINABLE_TOKENS"},
    "convolutions": OPTIONS.keys() - ON_CONVOLUTIONS,
}
"""What PEFT itself does not adapt: it has no layer of the kind for Conv1D or convolutions."""

SOME = {  # of models whose layers are no others than those of the rest: the kinds that a bias or a new name matters to
    "bert": {"BEFT", "IA3", "LN_TUNING", "OFT", "RANDLORA", "TRAINABLE_TOKENS", "UNILORA"},
    "vit": {"BEFT", "LORA", "VERA"},
    "gpt2": {"ADALORA", "FOURIERFT", "IA3", "LORA", "RANDLORA", "TRAINABLE_TOKENS", "VERA"},  # its weights lie turned
}
CASES = [(model, kind) for model in MODELS for kind in OPTIONS if kind not in REFUSED[model]]


@pytest.mark.parametrize(
    ("model", "kind"), [c for c in CASES if os.environ.get("GRADIENCE_SLOW") or c[1] in SOME.get(c[0], OPTIONS)]
)
def test_every_kind_is_what_peft_merges(model, kind, tmp_path):
    if kind in NEWER - KNOWN:
        pytest.skip(f"PEFT {peft.__version__} has no {kind}")
    if kind == "ADAMSS":
        pytest.importorskip("sklearn", reason="PEFT's AdaMSS clusters with it")
    truth = saved(MODELS[model][0](), config_of(kind, model), tmp_path)
    assert_same(audited(tmp_path), truth)


@pytest.mark.parametrize(
    "options", [{"r": 5}, {"init_weights": "mini", "mini_r": 4}, {"init_weights": "bat", "r": 2}], ids=str
)
def test_variants_of_miss_are_what_peft_merges(options, tmp_path):
    truth = saved(llama(), config_of("MISS", "llama", **options), tmp_path)
    assert_same(audited(tmp_path), truth)


def test_miss_under_its_old_name_is_what_peft_merges(tmp_path):
    truth = saved(llama(), config_of("MISS", "llama"), tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(path.read_text().replace('"MISS"', '"BONE"'))
    assert_same(audited(tmp_path), truth)


@pytest.mark.skipif(not os.environ.get("GRADIENCE_SLOW"), reason="asks only whether the table is still PEFT's")
@pytest.mark.parametrize(("model", "kind"), [(model, kind) for model in MODELS for kind in sorted(REFUSED[model])])
def test_what_peft_refuses_is_refused_by_peft(model, kind, tmp_path):
    with pytest.raises((TypeError, ValueError, NotImplementedError, KeyError, AssertionError)):
        assert saved(MODELS[model][0](), config_of(kind, model), tmp_path)


def test_a_kind_that_changes_nothing_yet_is_untrained(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path / "base")
    peft.get_peft_model(model, config_of("OFT", "llama")).save_pretrained(tmp_path / "adapter")
    report = audited(tmp_path)
    assert {row.state for row in report.modules} == {"zero"}
    assert (len(report.modules), report.health.verdict) == (6, "untrained")


def test_one_module_that_the_base_lacks_is_said_and_the_others_have_numbers(tmp_path):
    truth = saved(llama(), config_of("OFT", "llama"), tmp_path)
    left_out = "model.layers.1.self_attn.q_proj.weight"
    for file in (tmp_path / "base").glob("*.safetensors"):
        held = {name: tensor for name, tensor in load_file(file).items() if name != left_out}
        save_file(held, file, metadata={"format": "pt"})
    index = tmp_path / "base" / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    del document["weight_map"][left_out]
    index.write_text(json.dumps(document))
    report = audited(tmp_path)
    assert {row.base.weight for row in report.modules} == truth.keys() - {left_out}
    (missed,) = report.base.not_compared
    assert (missed.name, missed.reason) == ("model.layers.1.self_attn.q_proj", f"the base has no {left_out}")
    assert [(item.name, item.cause) for item in report.not_analysed] == [(missed.name, "needs_base")]
    assert "BAS211" in {finding.id for finding in report.findings}


def test_a_bias_to_merge_into_that_is_not_there_is_no_fault_of_the_base(tmp_path):
    """PEFT trains a BEFT adapter of layers without bias, but cannot merge it."""
    model = llama()
    model.save_pretrained(tmp_path / "base")
    peft.get_peft_model(model, config_of("BEFT", "llama")).save_pretrained(tmp_path / "adapter")
    report = audited(tmp_path)
    assert report.health.verdict == "not_analysed"
    assert "Base layer has no bias" in report.health.reason
    assert "BAS211" not in {finding.id for finding in report.findings}
    assert {item.cause for item in report.not_analysed} == {"kind_not_analysed"}


def test_a_quantised_weight_is_said(tmp_path):
    saved(llama(), config_of("OFT", "llama"), tmp_path)
    for file in (tmp_path / "base").glob("*.safetensors"):
        held = {n: t.to(torch.int8) if "q_proj" in n else t for n, t in load_file(file).items()}
        save_file(held, file, metadata={"format": "pt"})
    missed = audited(tmp_path).base.not_compared
    assert len(missed) == 2
    assert all("stored as I8: a quantised base weight is not comparable" in item.reason for item in missed)


@pytest.mark.parametrize(("kind", "what"), [("TINYLORA", "in the model's order"), ("UNILORA", "in the model's order")])
def test_an_order_that_no_file_gives_is_said(kind, what, tmp_path):
    saved(llama(), config_of(kind, "llama"), tmp_path)
    (tmp_path / "base" / "config.json").unlink()
    with pytest.raises(AdapterError, match=what):
        audited(tmp_path)


def test_projections_of_all_weights_that_are_not_saved_are_said(tmp_path):
    saved(llama(), config_of("FROD", "llama", save_projection=False), tmp_path)
    with pytest.raises(AdapterError, match="projections are not in the file"):
        audited(tmp_path)


@pytest.mark.parametrize("kind", ["OFT", "VERA", "TRAINABLE_TOKENS"])
def test_a_base_without_a_config_gives_the_same(kind, tmp_path):
    truth = saved(llama(), config_of(kind, "llama"), tmp_path)
    (tmp_path / "base" / "config.json").unlink()
    assert_same(audited(tmp_path), truth)


def test_ranks_by_module_and_a_head_that_is_saved_whole_are_as_peft_loads_them(tmp_path):
    config = config_of(
        "DELORA", "llama", task_type="CAUSAL_LM", rank_pattern={"0.self_attn.q_proj": 2}, modules_to_save=["lm_head"]
    )
    truth = saved(llama(), config, tmp_path)
    assert truth.pop("lm_head.weight").any()  # in the file whole, not a merge's
    alone = audit_adapter(tmp_path / "adapter")
    assert (alone.health.verdict, alone.modules, bool(alone.not_analysed)) == ("not_analysed", [], True)
    report = audited(tmp_path)
    assert_same(report, truth)
    assert {entry.role: entry.tensors for entry in report.ledger} == {"other_kind": 24, "full_module": 1}


@every("kind", sorted(PROMPTS | UNMERGEABLE))
def test_kinds_without_a_merge_say_so_in_one_line_with_and_without_a_base(kind, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"prompt_embeddings": torch.zeros(4, 8)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    llama().save_pretrained(tmp_path / "base")
    for base in (None, tmp_path / "base"):
        report = audit_adapter(folder, base=base, norms_cache=False)
        (left,) = report.not_analysed
        assert (left.name, left.cause) == ("*", "type_not_analysed")
        assert left.reason == report.health.reason
        assert ("trains a prompt and changes no weight" in left.reason) == (kind in PROMPTS)


def qwen3_moe() -> Any:
    """A Qwen3-MoE, whose files hold gate_proj and up_proj of each expert."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, moe_intermediate_size=12, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, num_experts=3, num_experts_per_tok=2, head_dim=8,
        )
    )  # fmt: skip


@pytest.mark.parametrize("make", [tiny_models.mixtral, qwen3_moe])
def test_experts_that_transformers_takes_apart_on_saving_are_compared(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "base")
    assert not any(
        key.endswith(("gate_up_proj", "down_proj")) for key in load_file(tmp_path / "base/model.safetensors")
    )
    before = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters() if ".experts." in name}
    parts = ["experts.gate_up_proj", "experts.down_proj"]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=parts))
    for name, p in wrapped.named_parameters():
        if "lora_B" in name:
            p.data = torch.randn_like(p)
    wrapped.save_pretrained(tmp_path / "adapter")
    after = dict(wrapped.merge_and_unload().named_parameters())
    report = audit_adapter(tmp_path / "adapter", base=tmp_path / "base")
    assert report.base.not_compared == []
    experts = [m for m in report.modules if m.expert is not None]
    assert len(experts) == sum(len(stack) for stack in before.values())
    for m in experts:
        name = m.name.partition("[")[0]
        w = before[name][m.expert]
        change = after[name].detach().double().numpy()[m.expert] - w
        assert m.relative_frobenius == pytest.approx(np.linalg.norm(change) / np.linalg.norm(w), rel=1e-5)
        assert m.udr == pytest.approx(np.linalg.norm(change, 2) / np.linalg.norm(w, 2), rel=1e-4)
        assert m.base.weight.count(" and ") == ("gate_up" in name)
