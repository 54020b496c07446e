"""Determine, without PEFT, what PEFT would adapt: a base's module tree, and PEFT's targets, ranks and sizes.

Everything that imitates another library's decisions is in this package (and in `adapters.patterns`, for PEFT's matching
of rank_pattern and alpha_pattern). It imitates PEFT 0.21.2 and transformers 5.24.0, and transformers 4.x for the older
names of modules. tests/base compares the package with the installed libraries on small real models. When either library
changes, read again: PEFT's `tuners/tuners_utils.py` (targets), `utils/other.py` (patterns, modules to save),
`utils/constants.py` (default targets) and `utils/transformers_weight_conversion.py` (fused experts); transformers'
`conversion_mapping.py` (renamed and fused modules) and the `base_model_prefix` of its classes.

This file reads the keys of a base's config.json that decide its module tree. It also has tables of facts about model
types that are only in the code of the two libraries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from gradience.errors import AdapterError
from gradience.io.reading import decode_json, read_small

_LARGEST: Final = 16 << 20  # bytes


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CONV1D_TYPES: Final = _words("gpt2 gpt-sw3 openai-gpt imagegpt decision_transformer clvp")


"""Model types whose blocks use transformers' Conv1D, which stores a weight as (in, out)."""

MAMBA_TYPES: Final = _words("falcon_h1 mamba mamba2 falcon_mamba nemotron_h")


"""Model types in which PEFT refuses out_proj and conv1d."""

_GATE_UP: Final = _words(
    """
    qwen2_moe exaone_moe afmoe deepseek_v2 deepseek_v3 deepseek_v32 dots1 ernie4_5_moe glm4_moe glm4_moe_lite
    glm_moe_dsa longcat_flash solar_open mellum qwen3_moe qwen3_next hunyuan_v1_moe flex_olmo olmoe sarvam_mla
    cohere2_moe jamba
    """
)


_W1_W3: Final = _words("mixtral minimax_m2 minimax lfm2_moe")


_RENAMED: Final = _words(
    """
    vit beit deit ijepa vit_mae vit_msn vivit dinov2 dinov2_with_registers audio-spectrogram-transformer swin swinv2
    yolos pixio videomae dinov3_vit dinov3_convnext altclip clip siglip siglip2 lw_detr rt_detr rt_detr_v2 d_fine
    deformable_detr maskformer phimoe deepseek_v4 deepseek_ocr2 kimi_linear kimi_k25 minimax_m3_vl bailing_hybrid
    sarvam_moe kolibri1 laguna hy_v3 hy_v4 axk1 axk2 glm5_next mimo_v2_flash granitemoe granitemoehybrid
    granitemoeshared nemotron_h olmo_hybrid qwen3_5_text qwen3_5_moe_text qwen2_5_omni_thinker qwen3_omni_moe
    qwen3_omni_moe_thinker glm4v_moe ernie4_5_vl_moe nomic_bert jina_embeddings_v3 gte exaone molmo2 paddleocr_vl
    mistral_large4 step3p7 hrm_text
    """
)


_AS_MIXTRAL: Final = _words("mixtral minimax minimax_m2")


_AS_QWEN2: Final = _words(
    """
    afmoe deepseek_v2 deepseek_v3 deepseek_v32 dots1 ernie4_5_moe glm4_moe glm4_moe_lite glm_moe_dsa glm4v_moe
    longcat_flash solar_open mellum qwen3_moe beam qwen3_omni_moe qwen3_omni_moe_thinker qwen3_omni_moe_text
    qwen3_next hunyuan_v1_moe flex_olmo olmoe sarvam_mla exaone_moe cohere2_moe
    """
)


_PREFIXES: Final[dict[str, str]] = {
    **dict.fromkeys(
        _words(
            "bloom codegen ctrl dbrx falcon gpt-sw3 gpt2 gpt_bigcode gpt_neo gptj mpt openai-gpt xlm xlnet "
            "imagegpt decision_transformer"
        ),
        "transformer",
    ),
    **dict.fromkeys(_words("bert bert-generation big_bird megatron-bert"), "bert"),
    **dict.fromkeys(_words("camembert roberta xlm-roberta xlm-roberta-xl xmod"), "roberta"),
    **dict.fromkeys(_words("mamba mamba2 falcon_mamba xlstm"), "backbone"),
    **{name: name for name in _words("electra distilbert albert deberta mpnet rwkv gpt_neox biogpt ernie rembert")},
    "deberta-v2": "deberta",
}


DEFAULT_TARGETS: Final[dict[str, tuple[str, ...] | str]] = {
    **dict.fromkeys(_words("t5 mt5"), ("q", "v")),
    **dict.fromkeys(
        _words("bart opt gptj gpt_neo llama llama4 mistral mixtral stablelm gemma gemma2 gemma3_text qwen2 qwen3"),
        ("q_proj", "v_proj"),
    ),
    **dict.fromkeys(_words("gpt2 gpt_bigcode"), ("c_attn",)),
    **dict.fromkeys(_words("bloom gpt_neox chatglm RefinedWebModel RefinedWeb falcon"), ("query_key_value",)),
    **dict.fromkeys(_words("bert roberta xlm-roberta electra layoutlm"), ("query", "value")),
    "blip-2": ("q", "v", "q_proj", "v_proj"),
    "deberta-v2": ("query_proj", "value_proj"),
    "deberta": ("in_proj",),
    "mpt": ("Wqkv",),
    "btlm": ("c_proj", "c_attn"),
    "codegen": ("qkv_proj",),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
    "nemotron_h": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "rwkv": ("key", "value", "receptance", "output"),
    "rwkv7": ("r_proj", "k_proj", "v_proj", "o_proj", "key", "value"),
}


"""The modules that PEFT's LoRA adapts if target_modules is null, by model type."""


class Architecture(msgspec.Struct, frozen=True):
    """The keys of config.json that decide names and shapes. Other keys are ignored."""

    model_type: str = ""
    architectures: list[str] | None = None
    vocab_size: int | None = None
    torch_dtype: str | None = None
    dtype: str | None = None

    @property
    def head(self) -> str:
        """The name of the class that the files were saved from, or an empty text."""
        return (self.architectures or [""])[0]

    @property
    def prefix(self) -> str:
        """The attribute under which a class with a head keeps the bare model; `model` if the type is not known."""
        return _PREFIXES.get(self.model_type, "model")

    @property
    def is_renamed(self) -> bool:
        """Whether transformers 5 renames or splits modules on loading, in ways that are not imitated here."""
        return self.model_type in _RENAMED

    @property
    def fuses_experts(self) -> bool:
        """Whether transformers 5 fuses the experts of a layer, which files hold singly, into two 3-D parameters."""
        return self.model_type in _GATE_UP | _W1_W3

    @property
    def expert_names(self) -> dict[str, str]:
        """Module name to the parameter that PEFT adapts instead, under transformers 5. Empty for most model types."""
        if self.model_type in _AS_MIXTRAL:
            return {"gate": "gate.weight", "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
        if self.model_type in _AS_QWEN2:
            fused = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
            return {"gate": "gate.weight", **fused}
        return {}


def read_architecture(folder: Path) -> Architecture:
    """The keys of the folder's config.json that decide names and shapes.

    Raises:
        AdapterError: the file is missing, too large, or not a model's config.
    """
    path = folder / "config.json"
    try:
        return decode_json(read_small(path, most=_LARGEST, what="a model's config"), Architecture)
    except OSError as error:
        raise AdapterError(f"cannot read {path}: {error.strerror}", advice="give the base model's folder") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError(f"{path}: no config of a model: {error}", advice="download it again") from error
