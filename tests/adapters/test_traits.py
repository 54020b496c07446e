"""What kind of adapter it is: starts are held against PEFT itself, obstacles against what each verb can do."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import EMBEDDING, LOHA, PREFIX, lora, saved, written
from peft import EvaConfig, LoftQConfig, LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from tables import every
from torch import nn

from gradience.adapters.open import open_adapter
from gradience.adapters.traits import Operation, obstacles, start_of, traits_of

pytestmark = [  # what PEFT and torch say of the starts below
    pytest.mark.filterwarnings(r"ignore:lora with eva initialization used with:UserWarning:peft\.mapping_func"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:`init_lora_weights` is '(eva|corda)':UserWarning:peft\.tuners\.lora\.config"),
]

STARTS = [
    *(True, False, None, "gaussian", "eva", "mica", "orthogonal"),
    *("pissa", "pissa_niter_4", "olora", "OLORA", "corda", "lora_ga", "loftq"),
]


class Net(nn.Module):
    """Two layers that LoRA adapts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q_proj = nn.Linear(12, 20)
        self.embed_tokens = nn.Embedding(30, 12)
        self.conv = nn.Conv2d(4, 6, 3)

    def forward(self, x):
        return self.q_proj(self.embed_tokens(x))


def started(init: Any, target: str = "q_proj", *, seed: int = 0) -> tuple[Any, torch.Tensor]:
    """A model that PEFT has just wrapped with a start, with its data where it needs some, and the weight before."""
    model, batch = Net(), torch.arange(30)
    before = model.get_submodule(target).weight.detach().clone()
    extra: dict[str, Any] = {
        "eva": {"eva_config": EvaConfig()},
        "corda": {"corda_config": CordaConfig(corda_method="kpm")},
        "lora_ga": {"lora_ga_config": LoraGAConfig()},
        "loftq": {"loftq_config": LoftQConfig(loftq_bits=4)},
    }.get(init, {})
    config = LoraConfig(r=4, target_modules=[target], init_lora_weights=init, **extra)
    if init == "corda":
        preprocess_corda(model, config, run_model=lambda: model(batch))
    if init == "lora_ga":
        preprocess_loraga(model, config, lambda: model(batch).square().sum().backward())
    torch.manual_seed(seed)
    return get_peft_model(model, config), before


def weight(model: Any, target: str = "q_proj") -> torch.Tensor:
    return model.base_model.model.get_submodule(target).get_base_layer().weight


@pytest.mark.parametrize("init", STARTS, ids=str)
def test_a_start_changes_the_base_if_peft_changes_the_weight_of_a_linear_layer(init):
    if init == "loftq":
        pytest.importorskip("bitsandbytes", reason="PEFT runs LoftQ with bitsandbytes only")
    model, before = started(init)
    assert start_of(init).changes_base is not torch.equal(weight(model), before)


@pytest.mark.parametrize("init", [i for i in STARTS if i not in {"loftq", "lora_ga"}], ids=str)
def test_no_start_that_peft_runs_on_an_embedding_changes_its_weight(make, init):
    model, before = started(init, "embed_tokens")
    assert torch.equal(weight(model, "embed_tokens"), before)
    adapter = make(Net(), LoraConfig(r=4, target_modules=["embed_tokens"], init_lora_weights=init)).read()
    assert [(module.dense, module.note) for module in adapter.modules] == [(None, None)]


@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_1"])
def test_a_start_is_recomputable_if_it_takes_the_same_from_the_base_whatever_the_seed(init):
    first, second = (weight(started(init, seed=seed)[0]) for seed in (1, 2))
    assert start_of(init).recomputable is torch.equal(first, second)


@every(
    ("name", "start"),
    [
        ("pissa", ("pissa", True, True, True)),
        ("PiSSA_niter_16", ("pissa", True, False, True)),
        ("olora", ("olora", True, True, True)),
        ("corda_ipm", ("corda", True, False, True)),
        ("lora_ga", ("lora_ga", True, False, False)),
        ("loftq", ("loftq", True, False, True)),
        ("eva", ("eva", False, False, True)),
        ("orthogonal", ("orthogonal", False, False, True)),
        *((name, ("default", False, False, False)) for name in ("eva_x", "xavier", "True", None, True)),
    ],
)
def test_a_start_is_known_by_its_name(name, start):
    """Whether it changes the base, whether that can be recomputed, and whether PEFT's conversion doubles the rank."""
    assert start_of(name) == start


def test_the_facts_of_starts_need_no_numpy():
    code = "import sys, gradience.adapters.traits; print({'numpy', 'jax', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- what each verb can do ---------------------------------------------------------------------------------------

KASA = "KaSA takes as many singular values out of the base as its rank (kasa_config)"
BDLORA = "BD-LoRA's factors are block-diagonal (use_bdlora)"
QALORA = "QALoRA's A is of pooled inputs for a GPTQ base, and PEFT has no merge of it to compare with (use_qalora)"
ARROW = "Arrow routes among adapters: what it does depends on the input (arrow_config)"
ALORA = "aLoRA applies after its invocation tokens only (alora_invocation_tokens)"
TIED = "ensure_weight_tying: the embedding and the head share factors, which two cuts would tear apart"
BIAS = "lora_bias: a bias of its own beside B A"
DORA = "DoRA rescales each row of W + s B A: its update does not follow from the factors alone"
SEVERAL = "the file holds several adapters: save each on its own first"
STRANGE = f"2 of its tensors are not understood (first: {PREFIX}q.strange)"
Q = lora("q")
MAGNITUDE = Q | {"q.lora_magnitude_vector": (5,)}
NITER = "pissa_niter_4"
TWO = {name.replace(".weight", f".{each}.weight"): shape for each in "xy" for name, shape in Q.items()}


def changed(init):
    said = (
        f"init_lora_weights={init!r}: {init.partition('_')[0]} changed the base model, so its update is not s B A alone"
    )
    return {"resize": [said], "merge": [said]}


def unknown(init):
    said = f"{init} changed the base, by an amount that cannot be recomputed"
    return changed(init) | {"convert": [said], "replay": [said]}


def for_each(text, operations="resize merge"):
    return {name: [text] for name in operations.split()}


DORA_CHANGED = for_each("DoRA on a base that olora changed cannot be recomputed", "convert replay")
CASES = {  # shapes, config, what each operation says, and the variants of its label
    "plain": (Q, {}, {}, ()),
    "rsLoRA, patterns, a head": (
        Q | {"head.weight": (2, 3)},
        {"use_rslora": True, "rank_pattern": {"q": 2}, "alpha_pattern": {"q": 4}, "modules_to_save": ["head"]},
        {},
        ("rsLoRA",),
    ),
    "orthogonal": (Q, {"init_lora_weights": "orthogonal"}, {}, ()),
    "aLoRA": (Q, {"alora_invocation_tokens": [1]}, for_each(ALORA, "merge convert"), ()),
    "an empty aLoRA": (Q, {"alora_invocation_tokens": []}, {}, ()),
    "Arrow": (Q, {"arrow_config": {}}, for_each(ARROW, "merge convert"), ()),
    "KaSA": (Q, {"kasa_config": {}}, for_each(KASA), ("KaSA",)),
    "KaSA by its diagonal": (Q | {"q.lora_diag": (2,)}, {}, for_each(KASA), ("KaSA",)),
    "BD-LoRA": (Q, {"use_bdlora": {"nblocks": 1}}, for_each(BDLORA), ("BD-LoRA",)),
    "QALoRA": (
        Q, {"use_qalora": True, "qalora_group_size": 1}, for_each(QALORA, "resize merge convert replay"), (),
    ),
    "a bias by the config": (Q, {"lora_bias": True}, {"merge": [BIAS]}, ()),
    "a bias by the tensors": (Q | {"q.lora_B.bias": (5,)}, {}, {"merge": [BIAS]}, ()),
    "tied embeddings": (EMBEDDING, {"ensure_weight_tying": True}, {"resize": [TIED]}, ()),
    "tied, without an embedding": (Q, {"ensure_weight_tying": True}, {}, ()),
    "an embedding": (EMBEDDING, {}, {}, ()),
    "DoRA by the config": (Q, {"use_dora": True}, {"merge": [DORA]}, ("DoRA",)),
    "DoRA by the tensors": (MAGNITUDE, {}, {"merge": [DORA]}, ("DoRA",)),
    "PiSSA": (Q, {"init_lora_weights": "pissa"}, changed("pissa"), ("pissa",)),
    "PiSSA by randomised SVD": (Q, {"init_lora_weights": NITER}, unknown(NITER), (NITER,)),
    "LoftQ": (Q, {"init_lora_weights": "loftq"}, unknown("loftq"), ("loftq",)),
    "OLoRA with DoRA": (
        MAGNITUDE,
        {"init_lora_weights": "olora", "use_dora": True},
        changed("olora") | {"merge": [*changed("olora")["merge"], DORA]} | DORA_CHANGED,
        ("DoRA", "olora"),
    ),
    "LoHa": (LOHA, {"peft_type": "LOHA"}, for_each("peft_type LOHA is not LoRA"), ()),
    "IA3": (Q, {"peft_type": "ia3"}, for_each("peft_type IA3 is not LoRA"), ()),
    "two adapters": (TWO, {}, {"merge": [SEVERAL], "convert": [SEVERAL]}, ()),
    "not understood": (Q | {"q.strange": (1,), "q.stranger": (1,)}, {}, {"merge": [STRANGE]}, ()),
}  # fmt: skip


@every("name", CASES)
def test_each_operation_refuses_what_it_must_in_these_words_and_nothing_else(name, tmp_path):
    shapes, config, refused, variants = CASES[name]
    _, adapter = open_adapter(saved(tmp_path / "a", shapes, **config))
    found = {operation.value: [*obstacles(adapter, operation)] for operation in Operation}
    assert {operation: texts for operation, texts in found.items() if texts} == refused
    traits = traits_of(adapter)
    is_lora = "peft_type" not in config
    assert (traits.variants, traits.is_peft_lora, traits.is_plain) == (variants, is_lora, is_lora and not variants)


@every("operation", Operation)
def test_what_no_file_of_lora_shows_is_named_by_the_module_it_is_of(operation, tmp_path):
    """A kind that the operation cannot work on, an update that needs the base, and other programs' files."""
    _, plain = open_adapter(saved(tmp_path / "a", Q))
    strange = replace(plain, modules=[replace(module, kind="hira") for module in plain.modules])
    waiting = replace(plain, base_dependent=plain.modules)
    for adapter, said, asked in (
        (strange, "q is of kind hira", {"resize", "merge"}),
        (waiting, "the update of q is a function of the base weight", {"merge"}),
    ):
        assert [*obstacles(adapter, operation)] == [said] * (operation.value in asked)
    tensors = {f"l.q.lora_{x}.weight": np.ones((2, 2), np.float32) for x in "ab"}
    _, tune = open_adapter(written(tmp_path / "tune", tensors, {"r": 2}))
    said = {
        "convert": [
            "torchtune's names and the order of its query and key rows are its own: export it to PEFT from torchtune"
        ]
    }
    said |= for_each("it is in torchtune's format, not PEFT's")
    assert [*obstacles(tune, operation)] == said.get(operation.value, [])
    for more, kind in (({}, None), ({"lora_mid.weight": (2, 2, 1, 1)}, "conv"), ({"dora_scale": (5, 1)}, "dora")):
        shapes = {"lora_down.weight": (2, 3), "lora_up.weight": (5, 2), **more}
        kohya = {f"lora_unet_q.{key}": np.ones(shape, np.float32) for key, shape in shapes.items()}
        _, adapter = open_adapter(written(tmp_path / f"kohya {kind}", kohya))
        if operation is Operation.RESIZE:
            texts = [] if kind is None else [f"lora_unet_q is more than one pair of factors ({kind})"]
            assert [*obstacles(adapter, operation)] == texts
