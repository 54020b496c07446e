"""The table of engines: complete, cited, and what a rank costs in each."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, strategies as st
from tables import every

from gradience import check_config
from gradience.configs.families import Dimensions
from gradience.errors import ConfigError
from gradience.rules.config.facts import CheckContext, Facts, Moved
from gradience.rules.config.serving import (
    ENGINES,
    FACTS,
    FEATURES,
    RULES,
    known_engines,
    read_flags,
    room_for,
    shows,
    unjudged,
)
from gradience.schema.document import Coverage
from gradience.schema.events import ConfigSnapshot, LoraSnapshot

DORA = ConfigSnapshot(lora=LoraSnapshot(r=12, use_dora=True, use_rslora=True))


@every("fact", FACTS, ids=lambda fact: f"{fact.row.engine}-{fact.feature}")
def test_every_row_names_the_commit_and_file_or_the_thread_it_was_read_in(fact) -> None:
    source = fact.row.source
    assert re.fullmatch(r"20\d\d-\d\d(-\d\d)?", source.seen)
    if source.thread is None:
        assert re.fullmatch(r"[0-9a-f]{8}|v\d+\.\d+\.\d+", source.commit)  # a commit, or a release's tag
        file = source.path.partition(":")[0]
        assert source.url == f"https://github.com/{source.repository}/blob/{source.commit}/{file}"
        assert str(source) == f"{source.repository}@{source.commit}, {source.path} (read {source.seen})"
    else:
        assert (source.commit, source.path) == ("", "")
        assert source.url == f"https://github.com/{source.repository}/issues/{source.thread}"
        assert str(source) == f"{source.repository}#{source.thread} (read {source.seen})"
    assert fact.feature in FEATURES
    assert fact.says


def test_an_engine_and_a_feature_have_one_row_and_every_engine_has_some() -> None:
    assert len({(fact.row.engine, fact.feature, fact.row.models, fact.row.since, fact.says) for fact in FACTS}) == len(
        FACTS
    )
    assert {fact.row.engine for fact in FACTS} == set(ENGINES)
    assert {fact.feature for fact in FACTS} | {"alora"} == set(SHOWN) == set(FEATURES) - {"rank"}
    assert all(bool(fact.row.only) for fact in FACTS if fact.feature in {"targets", "base", "model"})


@given(rank=st.integers(1, 600))
def test_room_is_never_less_than_the_rank_and_a_size_fits_itself(rank: int) -> None:
    for name, engine in ENGINES.items():
        room = room_for(name, rank)
        if room is None:
            assert engine.ranks is not None
            assert rank > max(engine.ranks.sizes)
        else:
            assert room >= rank
            assert room_for(name, room) == room


@every(
    ("engine", "ranks", "rooms"),
    [
        ("vllm", (1, 2, 12, 16, 65, 257, 513), [1, 8, 16, 16, 128, 320, None]),
        ("lorax", (1, 8, 9, 17, 48), [8, 8, 16, 32, 48]),
        ("sglang", (3, 600), [3, 600]),
    ],
)
def test_vllm_has_nine_sizes_and_lorax_pads_to_eight_and_then_by_sixteen(engine, ranks, rooms) -> None:
    assert [room_for(engine, rank) for rank in ranks] == rooms


def test_without_an_engine_nothing_is_said_and_a_strange_one_is_refused(tmp_path: Path) -> None:
    report = check_config(DORA, select=["SRV"])
    assert report.findings == []
    assert {item.reason for item in report.not_run if item.id.startswith("SRV")} == {"no engine is named (--serve)"}
    with pytest.raises(ConfigError, match="not judged: no engine is called hotswap, tgi"):
        check_config(DORA, serve=["vllm", "tgi", "hotswap"])
    settings = tmp_path / "gradience.toml"
    settings.write_text('serve = ["mlx", "vllm"]\nselect = ["SRV"]\n')
    for serve, engines in (((), {"mlx", "vllm"}), (("vllm",), {"vllm"})):  # what is given wins
        report = check_config(DORA, serve=serve, settings=settings)
        assert {item.values["engine"] for item in [*report.findings, *report.readings]} == engines


LORA = {"r": 8, "alpha": 16.0, "target_modules": ["q_proj", "v_proj"]}
LLAMA = Coverage(base="b", model_type="llama", layout="transformers 5", modules=1, layers=1, layers_total=1)
VIT = msgspec.structs.replace(LLAMA, model_type="vit")
MOVED = Moved("model", "model.language_model", saved=True)
PLAIN = CheckContext(coverage=LLAMA)


def _held(**groups: list[str]) -> CheckContext:
    return PLAIN._replace(groups={"language": ["model.layers.0.self_attn.q_proj"], **groups})


SHOWN = {  # a feature: settings or surroundings that show it, and those like them that do not
    "dora": ({"use_dora": True}, {"use_dora": False}),
    "modules_to_save": ({"modules_to_save": ["score"]}, {"modules_to_save": []}),
    "bias": ({"bias": "lora_only"}, {"bias": "none", "extras": {"lora_bias": False}}),
    "rslora": ({"use_rslora": True}, {"use_rslora": False}),
    "rank_pattern": ({"rank_pattern": {"q_proj": 4}}, {"rank_pattern": {}}),
    "alpha_pattern": ({"alpha_pattern": {"q_proj": 4.0}}, {"alpha_pattern": {}}),
    "token_rows": ({"extras": {"trainable_token_indices": [1]}}, {"extras": {"trainable_token_indices": []}}),
    "new_rows": (PLAIN._replace(new_rows=("<x>",)), PLAIN),
    "rotated": ({"target_modules": ["k_proj", "o_proj"]}, {"target_modules": ["v_proj", "o_proj"]}),
    "some_layers": (_held(language=["m.0.q_proj", "m.1.q_proj", "m.0.v_proj"]),
        _held(language=["m.0.q_proj", "m.1.q_proj", "m.0.v_proj", "m.1.v_proj"])),
    "targets": ({"target_modules": ["q_proj", "a.wqkv"]}, {"target_modules": ["a.q_proj", "o_proj"]}),
    "embedding_or_head": ({"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["head"]}),
    "tied_head": (_held(tied_head=["lm_head"]), _held(head=["lm_head"])),
    "expression": ({"target_modules": ".*q_proj"}, {"target_modules": "all-linear"}),
    "prefix": (PLAIN._replace(moved=MOVED), PLAIN._replace(moved=MOVED._replace(saved=False))),
    "base": (PLAIN._replace(coverage=VIT), PLAIN),
    "model": (PLAIN._replace(coverage=VIT), PLAIN),
    "unreached": (PLAIN._replace(coverage=msgspec.structs.replace(LLAMA, modules=0)), PLAIN),
    "start": ({"init": "pissa"}, {"init": "gaussian"}),
    "absent": (_held()._replace(absent=frozenset({"model.layers.0.self_attn.q_proj"})),
        _held()._replace(absent=frozenset({"model.layers.1.self_attn.q_proj"}))),
    "unwrapped": (_held()._replace(coverage=None), _held()),
    "fraction": ({"alpha": 22.5}, {"alpha": 22.0}),
    "base_bias": ({"bias": "all"}, {"bias": "none", "extras": {"lora_bias": True}}),
    "embedding": ({"target_modules": ["model.embed_tokens"]}, {"target_modules": ["lm_head"]}),
    "expert_parameters": ({"extras": {"target_parameters": ["mlp.experts.up_proj"]}},
        _held(experts=["m.mlp.experts.0.up_proj"])),
    "expert_scale": ({"use_rslora": True, "extras": {"target_parameters": ["mlp.experts.up_proj"]}},
        {"use_rslora": True}),
    "single_experts": (_held(experts=["m.mlp.experts.0.up_proj"]), _held(expert_parameters=["m.mlp.experts"])),
    "tower": (_held(tower=["visual.blocks.0.attn.qkv"]), _held()),
    "unnamed": (_held()._replace(flags={"lora-target-modules": ("o_proj", "gate_up_proj")}),
        _held()._replace(flags={"lora-target-modules": ("o_proj", "qkv_proj")})),
    "wrapped": (PLAIN._replace(groups={"language": ["model.language_model.layers.0.q_proj"]}), _held()),
    "copies": (_held(copies=["lm_head.base_layer"]), _held()),
    "any": ({}, None),
    "alora": ({"extras": {"alora_invocation_tokens": True}}, {}),
    "experts": ({"extras": {"target_parameters": ["mlp.experts.up_proj"]}},
        {"target_modules": ["shared_expert.up_proj"]}),
    "peft_format": ({}, "mlx-lm"),
    "mlx_format": ("mlx-lm", {}),
}  # fmt: skip


def _facts(shown: dict[str, object] | CheckContext | str, base: Dimensions | None = None) -> Facts:
    extras = {"format": shown} if isinstance(shown, str) else {}
    lora = LORA | (shown if isinstance(shown, dict) else {})
    around = shown if isinstance(shown, CheckContext) else PLAIN
    if base is not None and around.coverage is not None:
        around = around._replace(coverage=msgspec.structs.replace(around.coverage, model_type=base.model_type))
    return Facts(msgspec.convert({"lora": lora, "extras": extras}, ConfigSnapshot), around=around._replace(model=base))


BASES = {"bitsandbytes": Dimensions("qwen3_moe", quant_method="bitsandbytes"), None: None}


@every("fact", FACTS, ids=lambda fact: f"{fact.row.engine}-{fact.feature}")
def test_a_fact_applies_to_an_adapter_with_the_feature_and_not_to_its_twin(fact) -> None:
    (shown, twin), row = SHOWN[fact.feature], fact.row
    about = [*sorted(row.types), *row.models]
    base = Dimensions(about[0]) if about else BASES[row.beside]
    assert fact.applies(_facts(shown, base))
    assert twin is None or not fact.applies(_facts(twin, base))  # without a twin it is of every adapter
    assert fact.applies(_facts(shown)) == (
        row.beside is None and not row.models and (not row.types or "llama" in row.types)
    )


@every("name", ENGINES)
def test_a_command_has_a_place_for_each_adapter_or_names_the_first_and_what_is_unknown_has_no_row(name) -> None:
    if (process := ENGINES[name].process) is not None:
        assert ("{adapters}" in process.command) == bool(process.adapter)
        assert not process.nested or "{first" in process.command
        assert not process.padded or {"{rank}", "{slots}"} <= set(re.findall(r"\{\w+\}", process.command))
        assert process.source.url.startswith("https://github.com/")
    rows = (fact.row for fact in FACTS if fact.feature in ENGINES[name].unknown and fact.row.engine == name)
    assert all(row.beside or row.models or row.since or row.until for row in rows)
    assert set(ENGINES[name].unknown) <= set(FEATURES)


def test_some_features_show_in_several_ways() -> None:
    by_engine = {fact.row.engine: fact for fact in FACTS if fact.feature == "targets"}
    asked = (
        ("ollama", {"target_modules": "wqkv"}, False),  # an expression, whose names are not known
        ("ollama", {"target_modules": "all-linear"}, False),
        ("ollama", {"target_modules": None}, False),
        ("tensorrt", {"target_modules": ["lm_head", "w2"]}, False),
    )
    assert [by_engine[engine].applies(_facts(lora)) for engine, lora, _ in asked] == [has for _, _, has in asked]
    assert shows("bias", _facts({"bias": "none", "extras": {"lora_bias": True}}))
    base = next(fact for fact in FACTS if fact.feature == "base")
    assert not base.applies(_facts(CheckContext()))


def test_a_finding_names_the_conversion_that_mends_it() -> None:
    adapter = {"use_rslora": True, "use_dora": True, "alpha_pattern": {"q_proj": 4.0}, "modules_to_save": ["score"]}
    facts = _facts(adapter)
    facts.around = PLAIN._replace(moved=Moved("language_model", "", saved=True), engines=("vllm", "ollama", "mlx"))
    seen = [item for rule in RULES[:3] for item in rule.observe(facts)]
    mends = {item.values["feature"]: item.action for item in seen}
    assert {feature: mend and mend.partition(" --out")[0] for feature, mend in mends.items()} == {
        "dora": "gradience convert ADAPTER --to peft",
        "rslora": "gradience convert ADAPTER --to peft",
        "alpha_pattern": "gradience convert ADAPTER --to mlx",
        "prefix": "gradience convert ADAPTER --to peft",
        "modules_to_save": None,
        "rotated": "make a GGUF of it with llama.cpp's converter, which regroups lora_B",
    }
    assert str(mends["prefix"]).endswith(" --rename language_model=")
    prefix = next(item.message for item in seen if item.values["feature"] == "prefix")
    assert prefix.startswith("vLLM leaves out modules below language_model where the base has the top: a name")


def test_an_engine_may_have_a_version_and_what_no_row_is_of_is_not_judged() -> None:
    assert known_engines(["mlx, vLLM@0.28", "vllm"]) == ("vllm@0.28", "vllm", "mlx")
    assert known_engines(["hotswap"], fleet=True) == ("hotswap",)
    assert [bool(unjudged(f"vllm@{version}")) for version in ("0.8.3", "0.8.4", "v0.28", "0.28.1")] == [1, 0, 0, 1]
    assert unjudged("llamacpp@b9000") == "what is known of llama.cpp was read without a version"
    assert unjudged("llamacpp") == ""
    for engine, says in (("ollama", []), ("ollama@0.34", []), ("ollama@0.34.1", ["SRV001"]), ("mlx@0.32", [])):
        found = check_config({"lora": LORA, "format": "mlx-lm"}, serve=[engine], select=["SRV001", "SRV003"]).findings
        assert [item.id for item in found if item.values["feature"] == "any"] == says, engine
    rslora = {"lora": LORA | {"use_rslora": True}}
    for engine, says in (
        ("tensorrt", []),
        ("tensorrt@0.11", []),
        ("tensorrt@0.10.9", ["SRV002"]),
        ("tensorrt@1.1", ["SRV005"]),
    ):
        found = check_config(rslora, serve=[engine], select=["SRV"]).findings
        assert [item.id for item in found] == says, engine
    (item,) = check_config(rslora, serve=["tensorrt@1.1"], select=["SRV"]).findings
    assert item.message == (
        "TensorRT-LLM 1.1 is not judged: what is known of TensorRT-LLM was read of 0.9 to 1.0, and not of 1.1"
    )


@every(
    ("base", "modules", "engines", "told"),
    [
        ("org/moe-bnb-4bit", "mlp.experts.up_proj", "vllm", "SRV001"),  # stored in bitsandbytes, by its name
        ("org/subnbase", "mlp.experts.up_proj", "vllm", "-"),
        ("openai/whisper-small", "q_proj v_proj", "vllm vllm@0.17 vllm@0.18 llamacpp lorax",
            "SRV005 SRV001 - SRV001 SRV001"),
        ("google-bert/bert-base-uncased", "query value", "vllm llamacpp mlx", "SRV001 SRV005 SRV001"),
        ("bigscience/bloom-1b1", "query_key_value", "vllm llamacpp lorax tensorrt", "SRV001 - - SRV001,SRV005"),
        ("Qwen/Qwen2.5-7B", "q_proj v_proj", "vllm llamacpp lorax tensorrt", "- - - -"),
        ("Qwen/Qwen3-8B", "q_proj v_proj", "vllm lorax", "- SRV001"),
        ("bigcode/starcoder2-3b", "c_fc", "vllm ollama sglang", "- SRV006 SRV005"),
        ("openai-community/gpt2", "c_attn", "vllm llamacpp sglang", "SRV001 - SRV001"),
        ("meta-llama/Llama-3.1-8B", "q_proj o_proj", "ollama", "SRV002"),
        ("meta-llama/Llama-3.1-8B", "o_proj up_proj", "ollama", "-"),
        ("meta-llama/Llama-3.1-8B", "wqkv", "ollama", "SRV001"),
        ("google/gemma-2-9b", "q_proj v_proj", "ollama", "-"),
        ("facebook/opt-1.3b", "q_proj", "llamacpp ollama", "SRV001 SRV001,SRV006"),
        ("Qwen/Qwen2.5-7B", "c_attn", "ollama", "SRV006"),
    ],
)  # fmt: skip
def test_the_types_of_bases_that_an_engine_takes(base, modules, engines, told) -> None:
    config = {"model_name": base, "lora": LORA | {"target_modules": modules.split()}}
    for engine, ids in zip(engines.split(), told.split(), strict=True):
        report = check_config(config, serve=[engine], select=["SRV"])
        found = sorted(item.id for item in [*report.findings, *report.readings])
        is_mlx = engine == "mlx"  # which reads another file, too
        assert found == [*([] if ids == "-" else ids.split(",")), *["SRV006"] * is_mlx], engine


def test_flags_of_the_server_decide_on_modules_and_ranks() -> None:
    assert read_flags("vllm serve m --a=1 --b_c q v --d") == {"a": ("1",), "b-c": ("q", "v"), "d": ()}
    with pytest.raises(ConfigError, match="--server-flags: No closing quotation"):
        read_flags("--a 'b")
    with pytest.raises(ConfigError, match="--server-flags without --serve"):
        check_config({"lora": LORA}, server_flags="--max-lora-rank 8")
    said = {
        "--lora-target-modules qkv_proj": [],
        "--lora-target-modules q_proj": [
            "vLLM leaves out modules that --lora-target-modules does not name: "
            + next(fact.says for fact in FACTS if fact.feature == "unnamed")
        ],
    }
    for flags, messages in said.items():
        found = check_config({"lora": LORA}, serve=["vllm"], server_flags=flags, select=["SRV"]).findings
        assert [item.message for item in found] == messages, flags
    assert [name for name, one in ENGINES.items() if one.flags is not None] == ["vllm"]
