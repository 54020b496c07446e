"""The laws of matching: the same answer as PEFT's own function for any targets, and no crash for any file."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from safetensors.numpy import save_file
from tables import every

from gradience import check_config
from gradience.base.peft_emulation import DEFAULT_TARGETS, Architecture
from gradience.base.peft_emulation.layout import build_layout
from gradience.base.peft_emulation.targets import ModuleChoice, NotFollowedError, resolve
from gradience.errors import GradienceError

LEAVES = ("q_proj", "v_proj", "up_proj", "norm", "embed_tokens", "lm_head", "score")
NAMES = [
    f"model.layers.{i}.{block}.{leaf}"
    for i in range(3)
    for block, leaf in zip(("attn", "attn", "mlp"), LEAVES, strict=False)
]
TENSORS = {
    **{f"{name}.weight": ((8, 4), "F32") for name in NAMES},
    **{f"model.layers.{i}.norm.weight": ((4,), "F32") for i in range(3)},
    "model.embed_tokens.weight": ((20, 4), "F32"),
    "lm_head.weight": ((20, 4), "F32"),
}
LAYOUT = build_layout(Architecture(model_type="llama", architectures=["LlamaForCausalLM"]), TENSORS)
PARTS = st.sampled_from(
    [*LEAVES, "attn.q_proj", "layers.1.mlp.up_proj", "model.layers.0.attn.v_proj", "mlp", "roj", "x", ""]
)
EXPRESSIONS = st.sampled_from(
    [
        r".*\.(q|v)_proj",
        r"model\.layers\.[01]\..*",
        ".*proj",
        "q_proj",
        ".*norm",
        "lm_.*|.*embed.*",
        r".*(?=proj).*",
        "",
    ]
)
LAYER_LISTS = [
    *((), ("layers",), ("h", "layers"), ("blocks",), ("(h|layers)",), ("h|layers",), ("layers|h",), ("lay.*",)),
    *(("m.*", "layers"), ("layers.0",), ("",), ("(?:la)?yers", "x"), (r"(l)ay(?=e)ers",)),
]
SAVED = [*LEAVES, "(q|v)_proj", "q_pro", "_proj", "q_proj$", "layers|x", "attn.q", "l.*s"]
WANTED = st.builds(
    ModuleChoice,
    modules=st.lists(PARTS, max_size=4) | EXPRESSIONS,
    exclude=st.lists(PARTS, max_size=2) | EXPRESSIONS,
    save=st.lists(st.sampled_from(SAVED), max_size=2),
    layers=st.none() | st.lists(st.integers(0, 4), max_size=2),
    layers_pattern=st.sampled_from(LAYER_LISTS),
)


def agree(wanted: ModuleChoice) -> None:
    """Matching, and check_target_module_exists, over every name of the tree, whether adaptable or not."""
    utils = pytest.importorskip("peft.tuners.tuners_utils")
    expression = isinstance(wanted.modules, str)
    config = SimpleNamespace(
        target_modules=wanted.modules,
        target_parameters=None,
        exclude_modules=wanted.exclude,
        modules_to_save=list(wanted.save),
        layers_to_transform=None if expression else wanted.layers,
        layers_pattern=None if expression else list(wanted.layers_pattern),
    )
    theirs = {name for name in (*LAYOUT.sites, *LAYOUT.containers) if utils.check_target_module_exists(config, name)}
    mine = resolve(wanted, LAYOUT)
    assert {*mine.adapted, *(name for name, _ in mine.refused)} == theirs


@given(wanted=WANTED)
def test_any_targets_hit_what_pefts_own_function_says(wanted: ModuleChoice) -> None:
    agree(wanted)


@every(
    "fields", [*({"layers": [1], "layers_pattern": one} for one in LAYER_LISTS), *({"save": [one]} for one in SAVED)]
)
def test_patterns_are_read_as_pefts_own_function_reads_them(fields: dict[str, Any]) -> None:
    agree(ModuleChoice(modules=["q_proj", "up_proj"], **fields))


def test_default_targets_are_pefts() -> None:
    constants = pytest.importorskip("peft.utils.constants")
    theirs = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    assert {key: value if isinstance(value, str) else list(value) for key, value in DEFAULT_TARGETS.items()} == theirs


def test_types_whose_experts_peft_converts_are_those_of_the_installed_libraries() -> None:
    """A new release that converts another type is noticed here."""
    conversion = pytest.importorskip("peft.utils.transformers_weight_conversion")
    theirs = {
        kind: set(conversion._MOE_TARGET_MODULE_MAPPING[family])
        for kind, family in conversion._MODEL_TO_CONVERSION_PATTERN.items()
        if family in conversion._MOE_TARGET_MODULE_MAPPING and kind.islower()
    }
    mine = {kind: set(Architecture(model_type=kind).expert_names) for kind in theirs}
    assert mine == theirs


def test_a_type_without_a_default_is_not_guessed() -> None:
    layout = LAYOUT._replace(architecture=Architecture(model_type="unheard_of"))
    with pytest.raises(NotFollowedError, match="unheard_of"):
        resolve(ModuleChoice(), layout)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_file({name: np.zeros(shape, np.float32) for name, (shape, _) in TENSORS.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    return folder


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.text(max_size=6),
    EXPRESSIONS,
    st.lists(PARTS | st.integers(-2, 9), max_size=3),
    st.dictionaries(PARTS, st.integers(-2, 9) | PARTS, max_size=2),
    st.sampled_from(["all-linear", "(", "(a+)+$", "[", "\\", "(?i)q_proj"]),
)
KEYS = st.sampled_from(
    [
        "r",
        "lora_alpha",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "rank_pattern",
        "bias",
        "trainable_token_indices",
        "target_parameters",
        "lora_bias",
        "use_dora",
        "lora_dropout",
        "layer_replication",
        "task_type",
    ]
)


@given(config=st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_adapter_config_beside_a_base_is_a_report_or_a_clear_error(
    config: dict[str, object], base: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", **config}))
    try:
        report = check_config(peft=path, base=base)
    except GradienceError:
        return
    assert report.coverage is not None or any(item.id == "TGT002" for item in report.not_run)


@given(
    shapes=st.dictionaries(
        st.text("abq_.0weightbias", min_size=1, max_size=12), st.lists(st.integers(0, 5), max_size=5), max_size=6
    )
)
def test_any_tensor_names_and_shapes_make_a_layout(shapes: dict[str, list[int]]) -> None:
    """A file of a stranger: no name or shape is a crash."""
    tensors = {name: (tuple(shape), "F32") for name, shape in shapes.items()}
    for kind in ("llama", "gpt2", "mixtral", ""):
        layout = build_layout(Architecture(model_type=kind), tensors, task_type="CAUSAL_LM")
        hits = resolve(ModuleChoice(modules=r".*"), layout)
        assert set(hits.adapted) <= set(layout.sites)
