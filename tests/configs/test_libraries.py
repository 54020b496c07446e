"""What the real libraries write is read as they meant it. The only test module that imports them here."""

from __future__ import annotations

import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gradience import check_config

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TOKEN = "hf_doNotPrintMe"  # noqa: S105  # not one


@pytest.fixture
def arguments(tmp_path: Path) -> Any:
    """Return a writer of training_args.json."""

    def write(**settings: Any) -> Path:
        args = transformers.TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, **settings)
        (tmp_path / "training_args.json").write_text(args.to_json_string())
        return tmp_path

    return write


def test_peft_and_transformers_files_give_what_was_set(tmp_path: Path, arguments: Any) -> None:
    config = peft.LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
        use_rslora=True, init_lora_weights="pissa", base_model_name_or_path="org/m",
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    folder = arguments(learning_rate=2e-4, max_steps=300, logging_steps=10, warmup_steps=0.1, hub_token="hf_x")  # noqa: S106  # not one
    report = check_config(peft_dir=tmp_path, training_dir=folder)
    assert report.unknown_keys == []
    found = report.config
    assert (found.lora.r, found.lora.alpha, found.lora.init, found.model_name) == (16, 32.0, "pissa", "org/m")
    assert sorted(found.lora.target_modules or []) == ["q_proj", "v_proj"]
    assert (found.optimizer.lr, found.training.max_steps, found.training.logging_steps) == (2e-4, 300, 10.0)
    assert report.derived["scaling"] == 8.0
    assert report.derived["warmup_share"] == pytest.approx(0.1)
    assert "REC002" in {item.id for item in report.findings}
    assert [item.id for item in report.readings] == ["TGT001"]


def test_masked_token_is_said_to_be_undecidable(arguments: Any) -> None:
    """to_dict() writes <HUB_TOKEN> whether or not one is set: neither a finding nor a pass."""
    report = check_config(training_dir=arguments())
    assert "SEC001" not in {item.id for item in report.findings}
    assert "hub_token" in next(item.reason for item in report.not_run if item.id == "SEC001")


def test_defaults_of_both_libraries_are_flagged_together(tmp_path: Path, arguments: Any) -> None:
    """Everything left at its default, on a short run: the mistakes of a first evening."""
    peft.LoraConfig(task_type="CAUSAL_LM").save_pretrained(tmp_path)
    report = check_config(peft_dir=tmp_path, training_dir=arguments(max_steps=60))
    assert {item.id for item in report.findings} == {"LR001", "REC001", "REC002", "STP001"}
    assert [item.id for item in report.readings] == ["TGT003"]


@pytest.mark.parametrize("how", ["torch.save", "torch.save before 1.6", *range(6)])
@pytest.mark.parametrize(
    "name",
    [
        "TrainingArguments",
        *(pytest.param(name, marks=pytest.mark.oracle("trl")) for name in ("SFTConfig", "DPOConfig")),
    ],
)
def test_pickled_arguments_read_as_their_json_does(tmp_path: Path, name: str, how: str | int) -> None:
    """Of every trainer, by torch.save and by every protocol of pickle; and the token is found, which JSON masks."""
    torch = pytest.importorskip("torch")
    library = transformers if name == "TrainingArguments" else import_module("trl")
    args = getattr(library, name)(
        output_dir="out", use_cpu=True, learning_rate=2e-4, per_device_train_batch_size=8, hub_token=TOKEN,
        gradient_accumulation_steps=4, num_train_epochs=3, bf16=False, report_to="none", lr_scheduler_type="cosine",
        save_strategy="epoch", optim="adamw_torch", warmup_steps=10,
    )  # fmt: skip
    (tmp_path / "training_args.json").write_text(args.to_json_string())
    by_json = check_config(training=tmp_path / "training_args.json")
    path = tmp_path / "training_args.bin"
    if isinstance(how, int):
        path.write_bytes(pickle.dumps(args, how))
    else:
        torch.save(args, path, _use_new_zipfile_serialization=how == "torch.save")
    report = check_config(training=path)
    assert report.config.training.world_size == 1
    expected = by_json.config
    training = msgspec.structs.replace(report.config.training, world_size=None, extras={})
    assert training == msgspec.structs.replace(expected.training, extras={})
    assert report.config.optimizer == expected.optimizer
    assert report.config.training.extras.get("trainer") == expected.training.extras.get("trainer")
    assert (report.config.training.lr_scheduler, report.config.training.save_strategy) == ("cosine", "epoch")
    assert report.unknown_keys == []
    secret = [item for item in report.findings if item.id == "SEC001"]
    assert [item.values["key"] for item in secret] == ["hub_token"]
    assert TOKEN not in msgspec.json.encode(report).decode()
