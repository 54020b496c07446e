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
from gradience.rules.config.serving import ENGINES, FACTS, FEATURES, PROCESSES, RANKS, RULES, UNKNOWN
from gradience.schema.document import Coverage
from gradience.schema.events import ConfigSnapshot, LoraSnapshot

DORA = ConfigSnapshot(lora=LoraSnapshot(r=12, use_dora=True, use_rslora=True))


@every("fact", FACTS, ids=lambda fact: f"{fact.engine}-{fact.feature}")
def test_every_row_names_the_commit_and_file_or_the_thread_it_was_read_in(fact) -> None:
    source = fact.source
    assert re.fullmatch(r"20\d\d-\d\d", source.seen)
    if source.thread is None:
        assert re.fullmatch(r"[0-9a-f]{8}|v\d+\.\d+\.\d+", source.commit)  # a commit, or a release's tag
        assert source.url == f"https://github.com/{source.repository}/blob/{source.commit}/{source.path}"
        assert str(source) == f"{source.repository}@{source.commit}, {source.path} (read {source.seen})"
    else:
        assert (source.commit, source.path) == ("", "")
        assert source.url == f"https://github.com/{source.repository}/issues/{source.thread}"
        assert str(source) == f"{source.repository}#{source.thread} (read {source.seen})"
    assert fact.feature in FEATURES
    assert fact.says


def test_an_engine_and_a_feature_have_one_row_and_every_engine_has_some() -> None:
    assert len({(fact.engine, fact.feature) for fact in FACTS}) == len(FACTS)
    assert {fact.engine for fact in FACTS} == set(ENGINES)
    assert {fact.feature for fact in FACTS} == set(FEATURES) == set(SHOWN)
    assert all(bool(fact.only) for fact in FACTS if fact.feature in {"targets", "base"})


@given(rank=st.integers(1, 600))
def test_room_is_never_less_than_the_rank_and_a_size_fits_itself(rank: int) -> None:
    for sizes in RANKS:
        room = sizes.room_for(rank)
        if room is None:
            assert rank > max(sizes.sizes)
        else:
            assert room >= rank
            assert sizes.room_for(room) == room


@every(("rank", "room"), [(1, 1), (2, 8), (12, 16), (16, 16), (65, 128), (257, 320), (513, None)])
def test_vllm_has_nine_sizes(rank: int, room: int | None) -> None:
    (sizes,) = [sizes for sizes in RANKS if sizes.engine == "vllm"]
    assert sizes.room_for(rank) == room


@every(("rank", "room"), [(1, 8), (8, 8), (9, 16), (17, 32), (48, 48)])
def test_lorax_pads_to_eight_and_then_by_sixteen(rank: int, room: int) -> None:
    (sizes,) = [sizes for sizes in RANKS if sizes.engine == "lorax"]
    assert sizes.room_for(rank) == room


def test_an_adapter_is_converted_where_its_format_is_not_read_and_elsewhere_the_feature_is_left_out() -> None:
    report = check_config(DORA, serve=["mlx,vllm"], select=["SRV00"])
    actions = {
        (item.values["engine"], item.values["feature"]): item.action
        for item in report.findings
        if "feature" in item.values
    }
    assert actions["mlx", "peft_format"] == (
        "gradience convert ADAPTER --to mlx --out NEW (replace ADAPTER by the adapter's folder and NEW by a new folder)"
    )
    assert str(actions["vllm", "dora"]).endswith(
        "(replace ADAPTER by the adapter's folder, NEW by a new folder and MODEL by the base model)"
    )


def test_each_finding_cites_its_own_row() -> None:
    report = check_config(DORA, serve=["vllm,llamacpp"], select=["SRV"])
    cited = {(item.id, item.values["engine"]): item.evidence[0].source for item in report.findings}
    assert "vllm/lora/lora_model.py" in cited["SRV001", "vllm"]
    assert "src/llama-adapter.h" in cited["SRV002", "llamacpp"]
    assert "25% of its adapter memory" in next(item.message for item in report.findings if item.id == "SRV004")


def test_without_an_engine_nothing_is_said_and_a_strange_one_is_refused(tmp_path: Path) -> None:
    report = check_config(DORA, select=["SRV"])
    assert report.findings == []
    assert {item.reason for item in report.not_run if item.id.startswith("SRV")} == {"no engine is named (--serve)"}
    with pytest.raises(ConfigError, match="no engine is called tgi"):
        check_config(DORA, serve=["vllm", "tgi"])
    settings = tmp_path / "gradience.toml"
    settings.write_text('serve = ["mlx", "vllm"]\nselect = ["SRV"]\n')
    for serve, engines in (((), {"mlx", "vllm"}), (("vllm",), {"vllm"})):  # what is given wins
        report = check_config(DORA, serve=serve, settings=settings)
        assert {item.values["engine"] for item in report.findings} == engines


LORA = {"r": 8, "alpha": 16.0, "target_modules": ["q_proj", "v_proj"]}
LLAMA = Coverage(base="b", model_type="llama", layout="transformers 5", modules=1, layers=1, layers_total=1)
QWEN = msgspec.structs.replace(LLAMA, model_type="qwen2")
MOVED = Moved("model", "model.language_model", saved=True)
PLAIN = CheckContext(coverage=LLAMA)
SHOWN = {  # a feature: settings or surroundings that show it, and those like them that do not
    "dora": ({"use_dora": True}, {"use_dora": False}),
    "modules_to_save": ({"modules_to_save": ["score"]}, {"modules_to_save": []}),
    "bias": ({"bias": "lora_only"}, {"bias": "none", "extras": {"lora_bias": False}}),
    "rslora": ({"use_rslora": True}, {"use_rslora": False}),
    "rank_pattern": ({"rank_pattern": {"q_proj": 4}}, {"rank_pattern": {}}),
    "alpha_pattern": ({"alpha_pattern": {"q_proj": 4.0}}, {"alpha_pattern": {}}),
    "token_rows": ({"extras": {"trainable_token_indices": [1]}}, {"extras": {"trainable_token_indices": []}}),
    "new_rows": (PLAIN._replace(new_rows=("<x>",)), PLAIN),
    "some_layers": ({"extras": {"layers_to_transform": [0]}}, {}),
    "targets": ({"target_modules": ["q_proj", "a.wqkv"]}, {"target_modules": ["a.q_proj", "o_proj"]}),
    "embedding_or_head": ({"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["head"]}),
    "expression": ({"target_modules": ".*q_proj"}, {"target_modules": ["q_proj"]}),
    "prefix": (PLAIN._replace(moved=MOVED), PLAIN._replace(moved=MOVED._replace(saved=False))),
    "base": (PLAIN._replace(coverage=QWEN), PLAIN),
    "fraction": ({"alpha": 22.5}, {"alpha": 22.0}),
    "base_bias": ({"bias": "all"}, {"bias": "none", "extras": {"lora_bias": True}}),
    "embedding": ({"target_modules": ["model.embed_tokens"]}, {"target_modules": ["lm_head"]}),
    "alora": ({"extras": {"alora_invocation_tokens": True}}, {}),
    "experts": (
        {"extras": {"target_parameters": ["mlp.experts.up_proj"]}},
        {"target_modules": ["shared_expert.up_proj"]},
    ),
    "peft_format": ({}, "mlx-lm"),
    "mlx_format": ("mlx-lm", {}),
}


def _facts(shown: dict[str, object] | CheckContext | str, base: Dimensions | None = None) -> Facts:
    extras = {"format": shown} if isinstance(shown, str) else {}
    lora = LORA | (shown if isinstance(shown, dict) else {})
    around = shown if isinstance(shown, CheckContext) else PLAIN
    return Facts(msgspec.convert({"lora": lora, "extras": extras}, ConfigSnapshot), around=around._replace(model=base))


BASES = {"bitsandbytes": Dimensions("qwen3_moe", quant_method="bitsandbytes"), None: None}


@every("fact", FACTS, ids=lambda fact: f"{fact.engine}-{fact.feature}")
def test_a_fact_applies_to_an_adapter_with_the_feature_and_not_to_its_twin(fact) -> None:
    shown, twin = SHOWN[fact.feature]
    assert fact.applies(_facts(shown, BASES[fact.beside]))
    assert not fact.applies(_facts(twin, BASES[fact.beside]))
    assert fact.applies(_facts(shown)) == (fact.beside is None)


def test_experts_are_refused_beside_a_base_in_bitsandbytes_by_its_config_or_its_name() -> None:
    lora = {"r": 8, "target_parameters": ["mlp.experts.gate_up_proj"]}
    for base, seen in (("org/moe-bnb-4bit", True), ("org/moe", False), ("org/subnbase", False)):
        found = check_config({"model_name": base, "lora": lora}, serve=["vllm"], select=["SRV001"]).findings
        assert [item.values["feature"] for item in found] == ["experts"] * seen
        assert all("issues/29424" in str(item.values["url"]) for item in found)


@every("process", PROCESSES.values(), ids=lambda process: process.engine)
def test_a_command_has_a_place_for_each_adapter_or_names_the_first(process) -> None:
    assert ("{adapters}" in process.command) == bool(process.adapter)
    assert not process.nested or "{first" in process.command
    assert not process.padded or {"{rank}", "{slots}"} <= set(re.findall(r"\{\w+\}", process.command))
    assert process.source.url.startswith("https://github.com/")
    assert set(UNKNOWN) == set(ENGINES)
    listed = {(fact.engine, fact.feature) for fact in FACTS if fact.beside is None}
    assert not listed & {(engine, name) for engine, names in UNKNOWN.items() for name in names}


def test_some_features_show_in_several_ways() -> None:
    by_engine = {fact.engine: fact for fact in FACTS if fact.feature == "targets"}
    asked = (
        ("slora", {"target_modules": "All-Linear"}, True),
        ("slora", {"target_modules": ["q_proj", "up_proj"]}, True),
        ("slora", {"target_modules": "q_proj"}, False),  # an expression, whose names are not known
        ("ollama", {"target_modules": "all-linear"}, False),
        ("ollama", {"target_modules": None}, False),
        ("tensorrt", {"target_modules": ["lm_head", "w2"]}, False),
    )
    assert [by_engine[engine].applies(_facts(lora)) for engine, lora, _ in asked] == [has for _, _, has in asked]
    assert FEATURES["bias"].asked_for(_facts({"bias": "none", "extras": {"lora_bias": True}}))
    assert FEATURES["embedding_or_head"].asked_for(_facts({"target_modules": ["model.embed_tokens"]}))
    assert not FEATURES["fraction"].asked_for(_facts({"alpha": None}))
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
        "peft_format": "gradience convert ADAPTER --to mlx",
        "prefix": "gradience convert ADAPTER --to peft",
        "modules_to_save": None,
    }
    assert str(mends["prefix"]).endswith(" --rename language_model=")
    prefix = next(item.message for item in seen if item.values["feature"] == "prefix")
    assert prefix.startswith("vLLM leaves out modules below language_model where the base has the top: a name")
