"""What kind of adapter it is: starts are held against PEFT itself, obstacles against what each verb can do."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch
from peft import EvaConfig, LoftQConfig, LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from torch import nn

from gradience.adapters.traits import Obstacle, Operation, obstacles, start_of, traits_of

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


def test_names_of_starts_that_are_not_known_are_the_default():
    assert start_of("xavier") == start_of(None) == start_of("True")
    assert start_of("pissa_niter_16")[:3] == ("pissa", True, False)
    assert start_of("corda_ipm").name == "corda"


def test_the_facts_of_starts_need_no_numpy():
    code = "import sys, gradience.adapters.traits; print({'numpy', 'jax', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def adapter_of(make, **options: Any) -> Any:
    return make(Net(), LoraConfig(**({"r": 4, "target_modules": ["q_proj"]} | options))).read()


CASES: dict[str, tuple[dict[str, Any], dict[Operation, set[str]]]] = {
    "plain": ({}, {}),
    "rsLoRA": ({"use_rslora": True}, {}),
    "an embedding": ({"target_modules": ["embed_tokens"]}, {}),
    "DoRA": ({"use_dora": True}, {Operation.MERGE: {"DORA"}}),
    "PiSSA": ({"init_lora_weights": "pissa"}, {Operation.RESIZE: {"START"}, Operation.MERGE: {"START"}}),
    "PiSSA by randomised SVD": (
        {"init_lora_weights": "pissa_niter_4"},
        {
            Operation.RESIZE: {"START"},
            Operation.MERGE: {"START"},
            Operation.CONVERT: {"START_UNKNOWN"},
            Operation.REPLAY: {"START_UNKNOWN"},
        },
    ),
    "OLoRA with DoRA": (
        {"init_lora_weights": "olora", "use_dora": True},
        {
            Operation.RESIZE: {"START"},
            Operation.MERGE: {"START", "DORA"},
            Operation.CONVERT: {"DORA_ON_CHANGED_BASE"},
            Operation.REPLAY: {"DORA_ON_CHANGED_BASE"},
        },
    ),
    "orthogonal": ({"init_lora_weights": "orthogonal"}, {}),
    "lora_bias": ({"lora_bias": True}, {Operation.MERGE: {"LORA_BIAS"}}),
}


@pytest.mark.parametrize(("options", "expected"), CASES.values(), ids=CASES)
def test_each_operation_names_its_own_obstacles_and_no_others(make, options, expected):
    adapter = adapter_of(make, **options)
    found = {operation: {one.obstacle.name for one in obstacles(adapter, operation)} for operation in Operation}
    assert {operation: names for operation, names in found.items() if names} == expected


@pytest.mark.parametrize(
    ("change", "operations"),
    [
        ({"kasa_config": {}}, {"resize", "merge"}),
        ({"use_bdlora": {"nblocks": 1}}, {"resize", "merge"}),
        ({"use_qalora": True, "qalora_group_size": 1}, {"resize", "merge", "convert", "replay"}),
        ({"arrow_config": {}}, {"merge", "convert"}),
        ({"alora_invocation_tokens": [5]}, {"merge", "convert"}),
        ({"peft_type": "IA3"}, {"resize", "merge"}),
    ],
    ids=lambda value: str(sorted(value)),
)
def test_a_variant_named_by_the_config_stands_in_the_way_of_what_it_changes(make, change, operations):
    case = make(Net(), LoraConfig(r=4, target_modules=["q_proj"]))
    path = case.folder / "adapter_config.json"
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | change))
    adapter = case.read()
    assert {operation.value for operation in Operation if any(obstacles(adapter, operation))} == operations


def test_the_texts_are_filled_in(make):
    adapter = adapter_of(make, init_lora_weights="pissa")
    assert [refusal.text for refusal in obstacles(adapter, Operation.RESIZE)] == [
        "init_lora_weights='pissa': pissa changed the base model, so its update is not s B A alone"
    ]
    assert all("{" not in text for text in (o for o in Obstacle if o.name in {"KASA", "ALORA", "DORA", "TORCHTUNE"}))


def test_the_traits_of_plain_lora_and_of_what_lies_beside_it(make):
    plain = traits_of(adapter_of(make))
    assert plain.is_plain
    assert plain.variants == ()
    assert not plain.unknown
    more = traits_of(
        adapter_of(
            make,
            bias="all",
            modules_to_save=["conv"],
            rank_pattern={"q_proj": 2},
            alpha_pattern={"q_proj": 2},
            use_dora=True,
            use_rslora=True,
        )
    )
    assert more.variants == ("DoRA", "rsLoRA")
    assert not more.is_plain
    assert more.is_peft_lora


@pytest.mark.parametrize("operation", Operation)
def test_a_module_of_a_kind_that_an_operation_cannot_work_on_is_named_with_its_kind(make, operation):
    plain = adapter_of(make)
    unasked = replace(plain, config=msgspec.structs.replace(plain.config, alora_invocation_tokens=[]))
    assert list(obstacles(unasked, operation)) == []
    later = [one.text for one in obstacles(replace(plain, base_dependent=plain.modules), operation)]
    told = f"the update of {plain.modules[0].name} is a function of the base weight"
    assert later == [told] * (operation is Operation.MERGE)
    for kind, known in (("linear", True), ("hira", False)):
        modules = [replace(one, kind=kind) for one in plain.modules]
        found = [one.text for one in obstacles(replace(plain, modules=modules), operation)]
        is_asked = operation in {Operation.RESIZE, Operation.MERGE}
        assert found == ([f"{modules[0].name} is of kind hira"] if is_asked and not known else [])


def test_a_variant_shows_in_the_config_or_in_the_tensors(make):
    plain = adapter_of(make)
    first = plain.modules[0]
    biased = replace(first, keys={**first.keys, "lora_B.bias": "a name"})
    for adapter, wanted in (
        (plain, (False, False)),
        (replace(plain, config=msgspec.structs.replace(plain.config, use_dora=True)), (True, False)),
        (replace(plain, modules=[replace(first, magnitude=lambda: None)]), (True, False)),
        (replace(plain, config=msgspec.structs.replace(plain.config, lora_bias=True)), (False, True)),
        (replace(plain, modules=[biased]), (False, True)),
    ):
        traits = traits_of(adapter)
        assert (traits.dora, traits.lora_bias) == wanted
    for init, texts in (
        ("pissa", ["DoRA on a base that pissa changed cannot be recomputed"]),
        ("pissa_niter_4", ["pissa changed the base, by an amount that cannot be recomputed"]),
    ):
        changed = replace(plain, config=msgspec.structs.replace(plain.config, use_dora=True, init_lora_weights=init))
        found = [one.text.replace("pissa_niter_4", "pissa") for one in obstacles(changed, Operation.CONVERT)]
        assert found == texts
        assert traits_of(changed).variants == ("DoRA", init)
