"""The verb as a function: sources, precedence, derived quantities, and nothing that makes it crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, strategies as st

from gradience import check_config
from gradience.errors import ConfigError
from gradience.schema.events import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.schema.reports import CheckReport
from gradience.verbs.check.view import check_text

KEYS = [
    *("lr", "learning_rate", "r", "lora_r", "lora_alpha", "alpha", "target_modules", "targets", "model"),
    *("base_model", "optimizer", "optim", "lora", "training", "config", "extras", "peft_type", "task_type"),
    *("max_steps", "num_train_epochs", "logging_steps", "save_steps", "save_strategy", "eval_strategy"),
    *("warmup_steps", "warmup_ratio", "lr_scheduler_type", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "world_size", "fp16", "bf16", "bias", "init_lora_weights", "use_rslora"),
    *("rank_pattern", "alpha_pattern", "hub_token", "fine_tune_type", "lora_parameters", "rank", "scale"),
    *("iters", "betas", "adam_beta1", "dropout", "train_examples", "task", "auto_mapping", "modules_to_save"),
    *("dtype", "surprise"),
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["no", "steps", "all-linear", "1e-4", "LORA", "IA3", "sft", "q_proj", "constant", "NaN", "\ud800"]),
)
DOCUMENTS = st.recursive(
    st.dictionaries(st.sampled_from(KEYS), SCALARS | st.lists(SCALARS, max_size=3), max_size=8),
    lambda inner: st.dictionaries(st.sampled_from(KEYS), inner | SCALARS, max_size=6),
    max_leaves=4,
)
SCHEMA = msgspec.json.schema(CheckReport)


@given(document=DOCUMENTS)
def test_any_document_is_a_report_or_a_config_error(
    document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(document))
    try:
        report = check_config(document=path)
    except ConfigError:
        return
    encoded = msgspec.json.encode(report)
    assert msgspec.json.decode(encoded, type=CheckReport).findings == report.findings
    jsonschema.validate(json.loads(encoded), SCHEMA)
    check_text(report, verbose=True).encode()


@given(
    lr=st.floats() | st.none(),
    r=st.integers(-3, 10**9) | st.none(),
    alpha=st.floats() | st.none(),
    steps=st.integers(-1, 10**9) | st.none(),
    every=st.floats() | st.none(),
)
def test_any_numbers_are_judged_or_named(
    lr: float | None, r: int | None, alpha: float | None, steps: int | None, every: float | None
) -> None:
    config = ConfigSnapshot(
        optimizer=OptimizerSnapshot(lr=lr),
        lora=LoraSnapshot(r=r, alpha=alpha, use_rslora=r == 1),
        training=TrainingSnapshot(max_steps=steps, logging_steps=every, warmup_steps=every),
        notes="x",
    )
    report = check_config(config)
    seen = {item.id for item in report.findings} | {item.id for item in report.not_run}
    assert "VAL001" in seen or (lr is not None and r is not None and alpha is not None)


def write(path: Path, value: object) -> Path:
    """Write JSON and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def test_precedence_is_overrides_files_folders_document(tmp_path: Path) -> None:
    document = write(tmp_path / "c.json", {"lr": 1.0, "r": 1, "alpha": 1.0, "weight_decay": 1.0, "seed": 1})
    write(tmp_path / "peft" / "adapter_config.json", {"r": 2, "lora_alpha": 2, "lora_dropout": 0.2})
    write(tmp_path / "training" / "training_args.json", {"learning_rate": 2.0, "weight_decay": 2.0, "seed": 2})
    peft = write(tmp_path / "p.json", {"r": 3, "lora_alpha": 3})
    training = write(tmp_path / "t.json", {"learning_rate": 3.0, "weight_decay": 3.0})
    report = check_config(
        document=document,
        peft_dir=tmp_path / "peft",
        training_dir=str(tmp_path / "training"),
        peft=peft,
        training=training,
        overrides=ConfigSnapshot(optimizer=OptimizerSnapshot(lr=4.0), lora=LoraSnapshot(r=4)),
    )
    config = report.config
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.training.seed) == (4.0, 3.0, 2)
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (4, 3.0, 0.2)
    assert [source.role for source in report.sources] == ["config", "adapter", "training", "adapter", "training"]


def test_nothing_given_is_said() -> None:
    with pytest.raises(ConfigError) as error:
        check_config(task="sft")
    advice = "give a config file, --adapter, --training-dir, or settings such as --set lr=1e-4"
    assert (error.value.message, error.value.advice) == ("nothing to check", advice)
    assert str(error.value) == f"nothing to check ({advice})"
    assert str(ConfigError("nothing to check")) == "nothing to check"


def test_secret_in_a_file_is_a_finding_without_its_value(tmp_path: Path) -> None:
    path = write(tmp_path / "training_args.json", {"learning_rate": 1e-4, "hub_token": "hf_doNotPrintMe"})
    report = check_config(training=path)
    assert "SEC001" in {item.id for item in report.findings}
    assert "hf_doNotPrintMe" not in msgspec.json.encode(report).decode() + check_text(report, verbose=True)


def test_text_of_input_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", {"model": "a\x1b[31mb\u202e", "lr": 1e-4, "k\x1b]0;x\x07": 1, "task": "\x9b2J"})
    text = check_text(check_config(document=path), verbose=True)
    assert not set(text) & {"\x1b", "\u202e", "\x07", "\x9b"}


def test_peft_configs_of_41_methods_are_read(shared_data: Path) -> None:
    paths = sorted((shared_data / "configs").glob("peft-*.json"))
    assert len(paths) == 41
    for path in paths:
        report = check_config(peft=path)
        kind = report.config.lora.peft_type
        about_rank = {item.id for item in report.findings} & {"TGT001", "TGT003", "BIA001"}
        assert kind == "LORA" or not about_rank
