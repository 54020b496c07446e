"""What engines do with the tensors of a file: groups by name, and the share of the energy that is lost, by hand."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel
from peft_models import made
from safetensors.numpy import load_file, save_file
from tables import every

from gradience import check_config
from gradience.cli.main import main
from gradience.rules.config.serving import FACTS, held
from gradience.verbs.check.run import facts_to_serve
from gradience.verbs.convert.run import convert_adapter

ATTENTION = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
TOWER = "base_model.model.model.visual.blocks.0.attn.qkv"
EXPERTS = "base_model.model.model.layers.0.mlp.experts"


def save(folder: Path, sizes: dict[str, float], **config: object) -> Path:
    """An adapter whose update of each module has the norm given: factors of rank one, with one entry each."""
    tensors = {}
    for n, (module, size) in enumerate(sizes.items()):
        a, b = np.zeros((1, 5 + n), "f4"), np.zeros((7 + n, 1), "f4")
        a[0, 1], b[2, 0] = 1.0, size
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    stated = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj", "qkv"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(stated))
    return folder


def test_a_tower_that_vllm_leaves_out_is_told_with_its_share_of_the_energy(tmp_path: Path) -> None:
    adapter = save(tmp_path / "a", {ATTENTION: 3.0, TOWER: 1.0}, r=1, alpha_pattern={"qkv": 4})
    report = check_config(document=adapter, serve=["vllm@0.28"], select=["SRV003"])
    (item,) = report.findings
    assert item.values["share"] == pytest.approx(16 / (36 + 16))  # scales of 2 and 4, squared
    told = "vLLM leaves out the vision or audio tower (1 module, 31% of the update's energy): a module outside"
    assert item.message.startswith(told)
    adapter = save(tmp_path / "b", {ATTENTION: 3.0, TOWER: 1.0})
    report = check_config(document=adapter, serve=["vllm@0.28"])
    assert [(one.group, one.modules, one.fate) for one in report.serving] == [
        ("the language model", 1, "applied"),
        ("the vision or audio tower", 1, "dropped in silence"),
    ]
    mended = check_config(
        document=adapter, serve=["vllm"], server_flags="--enable-tower-connector-lora", select=["SRV"]
    )
    assert mended.findings == []
    assert {one.fate for one in mended.serving} == {"applied"}


def test_the_command_takes_flags_that_begin_with_a_hyphen_and_says_how_to_start(tmp_path: Path, capsys) -> None:
    adapter = save(tmp_path / "a", {ATTENTION: 1.0}, r=64, lora_alpha=64)
    for flags, says in (("--max-lora-rank 16", ""), ("serve base --enable-lora", ", as none is given")):
        assert main(["check", str(adapter), "--serve", "vllm", "--server-flags", flags]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert f"SRV004: vLLM refuses rank 64: --max-lora-rank is 16{says} -> start it with --max-lora-rank 64" in told
        assert "vllm: 1 module of the language model: refused at start" in told
    assert main(["check", str(adapter), "--serve", "vllm"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "vllm: 1 module of the language model: applied; start it with a max_lora_rank of 64: its default is 16" in told
    )
    assert main(["check", "--set", "r=64", "--serve", "vllm"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "vllm: no tensor was read: not judged; start it with a max_lora_rank of 64: its default is 16" in told


HEAD = "base_model.model.lm_head"
PLAIN = ATTENTION.replace("language_model.", "")
EXPERT = {f"{EXPERTS}.lora_A.weight": (4, 5), f"{EXPERTS}.lora_B.weight": (7, 4)}
REFUSED, APPLIED, NOT_JUDGED = "refused at start", "applied", "not judged"
ENGINES = ["mlx", "llamacpp", "tensorrt", "sglang", "vllm", "peft", "transformers"]
TIED_FATES = [REFUSED, REFUSED, "dropped in silence", NOT_JUDGED, REFUSED, APPLIED, APPLIED]
UNTIED_FATES = [APPLIED, NOT_JUDGED, *TIED_FATES[2:]]


@pytest.mark.parametrize(
    ("stated", "group", "fates"),
    [
        ({"tie_word_embeddings": True}, "the head, tied to the embedding", TIED_FATES),
        ({"text_config": {"tie_word_embeddings": True}}, "the head, tied to the embedding", TIED_FATES),
        ({"tie_word_embeddings": False}, "the head", UNTIED_FATES),
        ({}, "the head", UNTIED_FATES),
    ],
)
def test_a_head_tied_to_the_embedding_is_told_from_one_that_is_not(stated, group, fates, tmp_path: Path) -> None:
    adapter = save(tmp_path / "a", {PLAIN: 3.0, HEAD: 4.0}, target_modules=["q_proj", "lm_head"])
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "gemma2", **stated}))
    report = check_config(document=adapter, base=base, serve=ENGINES)
    heads = [fate for fate in report.serving if "head" in fate.group]
    assert {fate.group for fate in heads} == {group}
    assert {fate.engine: fate.fate for fate in heads} == dict(zip(ENGINES, fates, strict=True))


UP = "base_model.model.model.layers.0.mlp.up_proj"
LANGUAGE, BIASES, WHOLE = "the language model", "biases", "whole weights"
DROPPED, OTHERWISE = "dropped in silence", "applied otherwise than trained"


@every(
    ("engine", "flags", "stated", "beside", "fates", "message"),
    [
        ("vllm", "--lora-target-modules q_proj", {}, [],
         [(LANGUAGE, 1, 2, "up_proj", 0.8, DROPPED), (LANGUAGE, 1, 2, "q_proj", None, APPLIED)],
         "vLLM leaves out modules that --lora-target-modules does not name (1 module, 80% of the update's energy)"),
        ("vllm", "--lora-target-modules o_proj", {}, [], [(LANGUAGE, 2, 0, "", 1.0, DROPPED)],
         "vLLM leaves out modules that --lora-target-modules does not name (2 modules, 100% of the update's energy)"),
        ("vllm", "", {"alpha_pattern": {"q_proj": 6}}, [],
         [(LANGUAGE, 1, 2, "q_proj", 9 / 13, OTHERWISE), (LANGUAGE, 1, 2, "up_proj", None, APPLIED)],
         "vLLM misreads alpha_pattern (1 module, 69% of the update's energy)"),
        ("vllm", "", {"alpha_pattern": {"o_proj": 6, "q_proj": 2}}, [], [(LANGUAGE, 2, 0, "", None, APPLIED)], ""),
        ("sglang", "", {"rank_pattern": {"up_proj": 4}}, [],
         [(LANGUAGE, 1, 2, "up_proj", None, NOT_JUDGED), (LANGUAGE, 1, 2, "q_proj", None, APPLIED)],
         "SGLang is not judged with rank_pattern"),
        ("vllm", "", {"alpha_pattern": {"experts.up_proj": 6}, "target_parameters": ["mlp.experts.up_proj"]}, [*EXPERT],
         [(LANGUAGE, 2, 0, "", None, APPLIED), ("experts, as parameters", 1, 0, "", 5040 / 5060, OTHERWISE)],
         "vLLM misreads alpha_pattern (1 module, 100% of the update's energy)"),
        ("vllm", "", {"alpha_pattern": {"experts": 6}, "target_parameters": ["mlp.experts.up_proj"]}, [*EXPERT],
         [(LANGUAGE, 2, 0, "", None, APPLIED), ("experts, as parameters", 1, 0, "", None, NOT_JUDGED)],
         "vLLM is not judged with experts as parameters (target_parameters)"),
        ("sglang", "", {"use_rslora": True}, [f"{PLAIN}.lora_B.bias"],
         [(LANGUAGE, 2, 0, "", None, OTHERWISE), (BIASES, 1, 0, "", None, NOT_JUDGED)],
         "SGLang misreads use_rslora"),
        ("lorax", "", {"layers_to_transform": [0]}, [], [(LANGUAGE, 2, 0, "", 1.0, DROPPED)],
         "LoRAX leaves out modules of some layers alone (2 modules, 100% of the update's energy)"),
        ("lorax", "", {"lora_bias": True}, [f"{PLAIN}.lora_B.bias"],
         [(LANGUAGE, 2, 0, "", None, NOT_JUDGED), (BIASES, 1, 0, "", None, DROPPED)],
         "LoRAX leaves out a trained bias (1 module)"),
        ("lorax", "", {"use_dora": True}, [f"{UP}.lora_magnitude_vector"],
         [(LANGUAGE, 1, 2, "up_proj", None, OTHERWISE), (LANGUAGE, 1, 2, "q_proj", None, NOT_JUDGED),
          ("DoRA's magnitudes", 1, 0, "", None, OTHERWISE)],
         "LoRAX misreads use_dora (1 module)"),
        ("tensorrt", "", {"modules_to_save": ["lm_head"]}, [], [(LANGUAGE, 2, 0, "", None, APPLIED)],
         "TensorRT-LLM leaves out modules_to_save"),
        ("tensorrt", "", {"modules_to_save": ["lm_head"], "alpha_pattern": {"q_proj": 6}}, [f"{HEAD}.weight"],
         [(LANGUAGE, 1, 2, "q_proj", 9 / 13, OTHERWISE), (LANGUAGE, 1, 2, "up_proj", None, APPLIED),
          (WHOLE, 1, 0, "", None, DROPPED)],
         "TensorRT-LLM misreads alpha_pattern (1 module, 69% of the factors' energy)"),
        ("transformers", "", {"alora_invocation_tokens": [1]}, [], [(LANGUAGE, 2, 0, "", None, DROPPED)],
         "transformers (load_adapter) leaves out alora_invocation_tokens"),
    ],
)  # fmt: skip
def test_of_a_group_the_part_is_named_with_its_own_share(engine, flags, stated, beside, fates, message, tmp_path):
    """Updates of 1 and 2 have energies of 1 and 4; an alpha of 6 in place of 2 makes 9 of the first.

    Four experts of 35 ones each, at an alpha of 6, have 5040 where those two at 2 have 20.
    """
    adapter = save(tmp_path / "a", {PLAIN: 1.0, UP: 2.0}, target_modules=["q_proj", "up_proj"], **stated)
    held = load_file(adapter / "adapter_model.safetensors")
    save_file(
        held | {name: np.ones(EXPERT.get(name, 7), "f4") for name in beside}, adapter / "adapter_model.safetensors"
    )
    report = check_config(document=adapter, serve=[engine], server_flags=flags, select=["SRV"])
    found = [(one.group, one.modules, one.of, one.which, one.share, one.fate) for one in report.serving]
    assert sorted(found, key=str) == [
        (*one[:4], one[4] and pytest.approx(one[4]), one[5]) for one in sorted(fates, key=str)
    ]
    said = [one.message.partition(":")[0] for one in report.findings]
    assert message in said if message else not said


WRAPPED = PLAIN.replace("model.layers", "model.language_model.layers")
ONE = "base_model.model.model.language_model.layers.0.mlp.experts.0.up_proj"
COPY = f"{HEAD}.base_layer.weight"
MAGNITUDE = {f"{PLAIN}.lora_magnitude_vector": (7,)}
HEADS = {f"{HEAD}.lora_A.weight": (1, 5), f"{HEAD}.lora_B.weight": (7, 1)}


@every(
    ("engine", "base", "more", "findings", "fates"),
    [
        ("vllm", "b", {COPY: (7, 5)}, "SRV005", {APPLIED, NOT_JUDGED}),
        ("peft", "b", {COPY: (7, 5)}, "", {APPLIED}),
        ("tensorrt@0.12", "b", MAGNITUDE, "SRV001", {REFUSED}),
        ("tensorrt@0.13", "b", MAGNITUDE, "SRV005", {NOT_JUDGED}),
        ("tensorrt@1.0", "b", MAGNITUDE, "", {APPLIED}),
        ("llamacpp", "Qwen/Qwen3-30B-A3B", EXPERT, "SRV001", {REFUSED}),
        ("llamacpp", "openai/gpt-oss-20b", EXPERT, "SRV005", {APPLIED, NOT_JUDGED}),
        ("peft", "Qwen/Qwen3-30B-A3B", EXPERT, "SRV001", {REFUSED}),
        ("vllm", "Qwen/Qwen3-30B-A3B", EXPERT, "SRV003", {APPLIED, DROPPED}),
        ("vllm", "google/gemma-4-26B-A4B-it", EXPERT, "SRV003", {APPLIED, DROPPED}),
        ("vllm", "org/Nemotron-H-8B", EXPERT, "SRV001", {REFUSED}),
        ("vllm", "openai/gpt-oss-20b", EXPERT, "SRV005", {APPLIED, NOT_JUDGED}),
        ("vllm", "Qwen/Qwen3.6-35B-A3B", EXPERT, "SRV003 SRV005", {DROPPED, NOT_JUDGED}),
        ("vllm", "Qwen/Qwen2.5-0.5B", HEADS, "SRV001", {REFUSED}),
        ("vllm", "google/gemma-2-2b", HEADS, "SRV001", {REFUSED}),
        ("vllm", "Qwen/Qwen3-8B", HEADS, "SRV005", {APPLIED, NOT_JUDGED}),
        ("vllm", "meta-llama/Llama-3.2-1B", HEADS, "", {APPLIED}),
        ("vllm", "google/gemma-3-4b-it", {}, "SRV003", {DROPPED}),
        ("llamacpp", "google/gemma-4-E2B-it", {}, "SRV005", {NOT_JUDGED}),
        ("llamacpp", "nvidia/Nemotron-H-8B", {}, "SRV005", {NOT_JUDGED}),
        ("sglang", "Qwen/Qwen3-Next-80B-A3B", {f"{PLAIN[:-6]}in_proj_ba.lora_A.weight": (1, 5)}, "SRV005",
         {APPLIED, NOT_JUDGED}),
        ("vllm", "google/gemma-3-1b-it", {}, "", {APPLIED}),
        ("mlx", "openai/whisper-small", {}, "SRV001", {REFUSED}),
        ("mlx", "meta-llama/Llama-3.2-1B", {}, "", {APPLIED}),
        ("mlx", "b", {}, "", {NOT_JUDGED}),
        ("ollama", "mistralai/Mistral-7B-v0.1", {UP + ".lora_A.weight": (1, 5)}, "SRV002", {OTHERWISE, APPLIED}),
        ("vllm@0.15.1", "mistralai/Ministral-3-8B", {f"{WRAPPED}.lora_A.weight": (1, 5)}, "SRV003", {DROPPED, APPLIED}),
        ("vllm", "Qwen/Qwen3.5-35B-A3B", {f"{ONE}.lora_A.weight": (1, 5)}, "SRV001 SRV003", {REFUSED}),
        ("peft", "Qwen/Qwen3.5-0.8B", {f"{WRAPPED}.lora_A.weight": (1, 5)}, "SRV005", {NOT_JUDGED, APPLIED}),
        ("transformers", "google/gemma-4-E2B", {f"{TOWER}.lora_A.weight": (1, 5)}, "SRV005", {NOT_JUDGED, APPLIED}),
        ("ollama", "HuggingFaceH4/zephyr-7b-beta", {}, "", {NOT_JUDGED}),
    ],
)  # fmt: skip
def test_what_engines_do_with_tensors_that_people_complained_of(engine, base, more, findings, fates, tmp_path) -> None:
    adapter = save(tmp_path / "a", {PLAIN: 1.0}, base_model_name_or_path=base, use_dora="lora_magnitude" in str(more))
    held = load_file(adapter / "adapter_model.safetensors")
    added = {name: np.ones(shape, "f4") for name, shape in more.items()}
    save_file(held | added, adapter / "adapter_model.safetensors")
    report = check_config(document=adapter, serve=[engine], select=["SRV"])
    assert [item.id for item in report.findings] == findings.split()
    assert {one.fate for one in report.serving} == fates


def test_what_is_not_known_without_the_base_or_the_version_is_said(tmp_path: Path) -> None:
    adapter = save(tmp_path / "a", {PLAIN: 1.0}, base_model_name_or_path="b")
    later = "as of 0.34.1 otherwise: ollama create no longer takes a Modelfile with ADAPTER (ollama/ollama#14969); "
    later += "models that were created before are served"
    asks = "the base's type is not known here (--base), and it takes some alone ("
    asks += "https://github.com/ollama/ollama/blob/fb307609/convert/convert.go)"
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
    served = {"ollama": f"{asks}; {later}", "ollama@0.34": asks, "mlx": "the base's type", "tensorrt": ""}
    for engine, reason in served.items():
        (group,) = check_config(document=adapter, serve=[engine]).serving
        assert (group.fate == NOT_JUDGED, group.reason[: len(reason) or None]) == (bool(reason), reason)
    named = save(tmp_path / "b", {PLAIN: 1.0}, base_model_name_or_path="google/gemma-2-2b", use_dora=False)
    for folder, base in ((adapter, tmp_path / "base"), (named, None)):
        (group,) = check_config(document=folder, base=base, serve=["ollama"]).serving
        assert (group.fate, group.reason) == (APPLIED, later)
    dora = save(tmp_path / "c", {PLAIN: 1.0}, use_dora=True)
    (group,) = check_config(document=dora, serve=["tensorrt"]).serving
    assert (group.fate, group.reason) == (APPLIED, "")


def test_names_that_the_base_has_under_no_known_stem_are_dropped_whatever_the_targets_say(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    strange = PLAIN.replace("model.layers", "model.text.layers")
    found = {}
    for name, sizes, targets in (
        ("regex", {strange: 1.0}, r".*text\..*q_proj"),
        ("part", {PLAIN: 1.0, strange: 2.0}, ["q_proj"]),
    ):
        adapter = save(tmp_path / name, sizes, target_modules=targets)
        report = check_config(
            document=adapter, base=tmp_path / "base", serve=["vllm", "lorax", "peft"], select=["SRV00"]
        )
        found[name] = [(one.engine, one.modules, one.fate) for one in report.serving]
    assert found == {
        "regex": [("vllm", 1, DROPPED), ("lorax", 1, NOT_JUDGED), ("peft", 1, REFUSED)],
        "part": [
            ("vllm", 1, DROPPED),
            ("vllm", 1, APPLIED),
            ("lorax", 1, NOT_JUDGED),
            ("lorax", 1, APPLIED),
            ("peft", 1, DROPPED),
            ("peft", 1, APPLIED),
        ],
    }
    with pytest.raises(ValueError, match="not found in the base model"):
        PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "regex")


def test_llama_cpp_takes_no_file_of_mlx_lm() -> None:
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0}}
    (item,) = check_config(config, serve=["llamacpp"], select=["SRV"]).findings
    assert item.message.startswith("llama.cpp refuses MLX-LM's format: adapter_model.safetensors or .bin is converted")
    assert str(item.action).startswith("gradience convert ADAPTER --to peft --out NEW")


@pytest.mark.oracle("mlx")
@pytest.mark.parametrize(("tied", "fate"), [(False, APPLIED), (True, REFUSED)])
def test_mlx_lm_s_own_loader_does_with_a_head_what_is_said_of_it(tied, fate, tmp_path: Path) -> None:
    mx, loaders = import_module("mlx.core"), import_module("mlx_lm.utils")
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": tied}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
    model.save_pretrained(tmp_path / "base")
    said, outputs = [], []
    for name, targets in (("a", ["q_proj"]), ("b", ["q_proj", "lm_head"])):
        adapter, *_ = made(tmp_path / name, LoraConfig(r=2, lora_alpha=6, target_modules=targets), model)
        report = check_config(document=adapter, base=tmp_path / "base", serve=["mlx@0.32.2"])
        said.append({one.fate for one in report.serving})
        convert_adapter(adapter, written := tmp_path / f"{name}-mlx", to="mlx", drop=True)
        base = loaders.load_model(tmp_path / "base")[0]
        if said[-1] == {REFUSED}:
            with pytest.raises(ValueError, match=r"lm_head\.lora_a: not an adapter parameter in the model"):
                loaders.load_adapters(base, str(written))
            continue
        loaded = loaders.load_adapters(base, str(written))
        outputs.append(np.array(loaded(mx.array([[1, 5, 7]])).astype(mx.float32)))
    assert said == [{APPLIED}, {fate}]
    assert tied or np.abs(outputs[0] - outputs[1]).max() > 1e-3


def mixtral() -> transformers.MixtralForCausalLM:
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 3}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads))


def test_peft_s_mixed_batches_refuse_experts_as_parameters(tmp_path: Path) -> None:
    model = mixtral()
    parameters = ["mlp.experts.down_proj"]
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=parameters)
    adapter, *_ = made(tmp_path / "a", config, model)
    report = check_config(document=adapter, serve=["peft"], select=["SRV001"])
    assert [item.values["feature"] for item in report.findings] == ["expert_parameters"]
    adapted = PeftModel.from_pretrained(model, adapter)
    with pytest.raises(ValueError, match="does not support mixed adapter batches"):
        adapted(input_ids=torch.ones((1, 3), dtype=torch.long), adapter_names=["default"])


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match")  # PEFT asks modules alone
@pytest.mark.parametrize("key", ["experts.gate_up_proj", "down_proj", ".*_proj", "experts"])
def test_a_pattern_of_expert_parameters_is_of_those_that_peft_scales_otherwise(key, tmp_path: Path) -> None:
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=2, lora_alpha=2, target_modules=[], target_parameters=parameters, alpha_pattern={key: 6})
    model = mixtral()
    adapter, *_ = made(tmp_path / "a", config, model)
    adapted = PeftModel.from_pretrained(model, adapter)
    scales = {n: one.scaling["default"] for n, one in adapted.named_modules() if hasattr(one, "parameter_name")}
    other = {name.removeprefix("base_model.model.") for name, scale in scales.items() if scale > 1.0}
    assert len(other) == {"experts": 0, ".*_proj": 2}.get(key, 1)
    facts = facts_to_serve(adapter, None, engine="vllm")
    assert {one for found in held("alpha_pattern", facts).values() for one in found} == other


@pytest.mark.oracle("mlx")
def test_mlx_lm_has_models_of_the_types_that_it_is_said_to_take() -> None:
    loader = import_module("mlx_lm.utils")
    (row,) = [fact.row for fact in FACTS if (fact.row.engine, fact.feature) == ("mlx", "model")]
    folder = Path(str(import_module("mlx_lm.models").__file__)).parent
    files = {loader.MODEL_REMAPPING.get(kind, kind) for kind in row.only}
    assert {kind for kind in files if not (folder / f"{kind}.py").is_file()} == set()
    with pytest.raises(ValueError, match="Model type whisper not supported"):
        loader._get_classes({"model_type": "whisper"})
