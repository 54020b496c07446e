"""The table of engines: complete, cited, and what a rank costs in each."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, strategies as st
from tables import every

from gradience import check_config
from gradience.errors import ConfigError
from gradience.rules.config.serving import ENGINES, FACTS, FEATURES, RANKS
from gradience.schema.events import ConfigSnapshot, LoraSnapshot

DORA = ConfigSnapshot(lora=LoraSnapshot(r=12, use_dora=True, use_rslora=True))


@every("fact", FACTS, ids=lambda fact: f"{fact.engine}-{fact.feature}")
def test_every_row_names_the_commit_and_file_it_was_read_in(fact) -> None:
    assert re.fullmatch(r"[0-9a-f]{8}", fact.source.commit)
    assert re.fullmatch(r"20\d\d-\d\d", fact.source.seen)
    assert (
        fact.source.url == f"https://github.com/{fact.source.repository}/blob/{fact.source.commit}/{fact.source.path}"
    )
    assert fact.feature in FEATURES
    assert fact.says


def test_an_engine_and_a_feature_have_one_row_and_every_engine_has_some() -> None:
    assert len({(fact.engine, fact.feature) for fact in FACTS}) == len(FACTS)
    assert {fact.engine for fact in FACTS} == set(ENGINES)


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
    assert actions["mlx", "peft_format"] == "convert the adapter to the engine's own format"
    assert actions["vllm", "dora"] == "train without the feature, or merge the adapter into the base before serving"


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


def test_an_adapter_has_a_feature_by_its_settings() -> None:
    asked = (
        ("beyond_attention", {"target_modules": "All-Linear"}, True),
        ("beyond_attention", {"target_modules": "q_proj"}, False),
        ("beyond_attention", {"target_modules": ["model.q_proj", "o_proj"]}, False),
        ("beyond_attention", {"target_modules": ["q_proj", "up_proj"]}, True),
        ("beyond_attention", {}, False),
        ("bias", {"bias": "none"}, False),
        ("bias", {"bias": "lora_only"}, True),
        ("bias", {"bias": "none", "extras": {"lora_bias": True}}, True),
        ("bias", {"extras": {"lora_bias": False}}, False),
        ("token_rows", {"extras": {"trainable_token_indices": [1]}}, True),
        ("token_rows", {"extras": {"trainable_token_indices": []}}, False),
        ("some_layers", {"extras": {"layers_to_transform": [0]}}, True),
        ("some_layers", {}, False),
        ("peft_format", {}, True),
    )
    shown = [FEATURES[name].asked_for(msgspec.convert({"lora": lora}, ConfigSnapshot)) for name, lora, _ in asked]
    assert shown == [has for _, _, has in asked]
    assert not FEATURES["peft_format"].asked_for(ConfigSnapshot(extras={"format": "mlx-lm"}))
