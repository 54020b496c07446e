"""What lies around a configuration: the base, tokenizers, the folder to be written to, and live objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from gradience import check_config
from gradience.errors import AdapterError, ConfigError
from gradience.schema.events import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot
from gradience.schema.reports import CheckReport
from gradience.verbs.check.view import check_text

WIDTH, ROWS, LAYERS = 8, 20, 4


def write_base(folder: Path, *, dtype: Any = np.float32, packed: bool = False) -> Path:
    folder.mkdir()
    tensors = {"model.embed_tokens.weight": np.zeros((ROWS, WIDTH), dtype)}
    for i in range(LAYERS):
        stem = f"model.layers.{i}.self_attn.q_proj"
        tensors[f"{stem}.weight"] = np.zeros((WIDTH * WIDTH // 2, 1) if packed else (WIDTH, WIDTH), dtype)
        if packed:
            tensors[f"{stem}.weight.absmax"] = np.zeros(4, np.uint8)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    return folder


def write_adapter(folder: Path, **fields: Any) -> Path:
    folder.mkdir()
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**said, **fields}))
    return folder


def write_tokenizer(folder: Path, **added: int) -> None:
    tokens = [{"id": number, "content": token} for token, number in added.items()]
    vocabulary = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens, "model": vocabulary}))


def found(report: CheckReport) -> dict[str, str]:
    return {item.id: item.message for item in report.findings}


def reasons(report: CheckReport) -> dict[str, str]:
    return {item.id: item.reason for item in report.not_run}


def test_the_report_names_the_base_and_what_is_reached(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    report = check_config(peft_dir=write_adapter(tmp_path / "peft"), base=base)
    assert report.coverage is not None
    assert (report.coverage.modules, report.coverage.layers) == (LAYERS, LAYERS)
    assert report.coverage.trainable_params == LAYERS * 2 * 2 * WIDTH
    assert ("base", str(base)) in [(source.role, source.path) for source in report.sources]
    text = check_text(report)
    assert "Reaches:    4 modules (attn 4) in 4 of 4 layers" in text
    assert "TGT002" not in found(report) | reasons(report)


def test_a_target_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    report = check_config(
        peft_dir=write_adapter(tmp_path / "peft", target_modules=["qproj"]), base=write_base(tmp_path / "base")
    )
    assert [(item.id, item.severity) for item in report.findings if item.id == "TGT002"] == [("TGT002", "error")]


def test_a_base_in_the_hubs_cache_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshots = tmp_path / "models--org--tiny" / "snapshots"
    snapshots.mkdir(parents=True)
    write_base(snapshots / "0123abc")
    report = check_config(peft_dir=write_adapter(tmp_path / "peft"), base="org/tiny")
    assert report.coverage is not None
    assert report.coverage.modules == LAYERS


def test_a_quantised_base_gives_modules_and_no_invented_size(tmp_path: Path) -> None:
    """Packed weights do not tell their shape."""
    report = check_config(
        peft_dir=write_adapter(tmp_path / "peft"), base=write_base(tmp_path / "base", dtype=np.uint8, packed=True)
    )
    assert report.coverage is not None
    assert report.coverage.modules == LAYERS
    assert (report.coverage.lora_params, report.coverage.adapter_bytes, report.coverage.optimizer_bytes) == (None,) * 3
    assert any("quantised" in note for note in report.coverage.notes)


def test_an_optimizer_whose_states_are_not_known_gets_no_number(tmp_path: Path) -> None:
    sgd = ConfigSnapshot(optimizer=OptimizerSnapshot(name="sgd"))
    report = check_config(peft_dir=write_adapter(tmp_path / "peft"), overrides=sgd, base=write_base(tmp_path / "base"))
    assert report.coverage is not None
    assert report.coverage.optimizer_bytes is None
    assert report.coverage.adapter_bytes is not None


def test_another_method_than_lora_is_not_counted(tmp_path: Path) -> None:
    report = check_config(
        peft_dir=write_adapter(tmp_path / "peft", peft_type="IA3"), base=write_base(tmp_path / "base")
    )
    assert report.coverage is None
    assert "IA3" in reasons(report)["TGT002"]


@pytest.mark.parametrize("damage", ["no config", "cut", "not json"])
def test_a_damaged_base_is_one_clear_error(damage: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    weights, config = base / "model.safetensors", base / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "not json":
        config.write_text("{")
    else:
        config.unlink()
    with pytest.raises(AdapterError, match="base"):
        check_config(peft_dir=write_adapter(tmp_path / "peft"), base=base)


def test_a_config_alone_is_a_base_whose_modules_are_not_counted(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    (base / "model.safetensors").unlink()
    report = check_config(peft_dir=write_adapter(tmp_path / "peft"), base=base)
    assert report.coverage is None
    assert "config.json alone" in reasons(report)["TGT002"]


@pytest.mark.parametrize("place", ["/dev/null", "/nowhere/at/all", "nobody/nothing"])
def test_a_base_that_is_no_folder_is_one_clear_error(place: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        check_config(peft_dir=write_adapter(tmp_path / "peft"), base=place)
    assert caught.value.advice


def test_tokens_added_without_a_trained_embedding_are_found(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "peft")
    write_tokenizer(base, **{"<pad>": 2})
    write_tokenizer(adapter, **{"<pad>": 2, "<tool>": 20, "a": 0})
    report = check_config(peft_dir=adapter, base=base)
    assert "<tool>" in found(report)["TGT005"]
    assert report.coverage is not None
    assert report.coverage.added_tokens == ["<tool>"]


@pytest.mark.parametrize(
    "trained",
    [
        {"trainable_token_indices": [20]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
)
def test_tokens_added_with_a_trained_embedding_are_fine(trained: dict[str, Any], tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "peft", **trained)
    write_tokenizer(base)
    write_tokenizer(adapter, **{"<tool>": 20})
    assert "TGT005" not in found(check_config(peft_dir=adapter, base=base))


def test_tokens_cannot_be_compared_without_both_tokenizers(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "peft")
    assert "beside the configuration" in reasons(check_config(peft_dir=adapter, base=base))["TGT005"]
    write_tokenizer(adapter)
    assert "beside the base" in reasons(check_config(peft_dir=adapter, base=base))["TGT005"]


def test_a_real_tokenizers_added_token_is_seen(tmp_path: Path) -> None:
    """Saved by transformers, read without it."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    model = tokenizers.models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]")  # noqa: S106  # a word
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model))
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "peft")
    tokenizer.save_pretrained(base)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(adapter)
    report = check_config(peft_dir=adapter, base=base)
    assert report.coverage is not None
    assert report.coverage.added_tokens == ["<tool>"]


def arguments(folder: Path, **fields: Any) -> Path:
    path = folder / "training_args.json"
    path.write_text(json.dumps({"learning_rate": 1e-4, **fields}))
    return path


def test_an_output_folder_with_a_run_in_it_is_found_and_never_named(tmp_path: Path) -> None:
    out = tmp_path / "private-place"
    (out / "checkpoint-10").mkdir(parents=True)
    report = check_config(training=arguments(tmp_path, output_dir=str(out)))
    assert "checkpoint-10" in found(report)["REC005"]
    assert "private-place" not in msgspec.json.encode(report).decode()


@pytest.mark.parametrize("fields", [{"resume_from_checkpoint": True}, {"overwrite_output_dir": True}])
def test_a_resumed_or_overwritten_run_is_meant(fields: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out" / "checkpoint-10").mkdir(parents=True)
    report = check_config(training=arguments(tmp_path, output_dir=str(tmp_path / "out"), **fields))
    assert "REC005" not in found(report) | reasons(report)


@pytest.mark.parametrize("make", [lambda _: None, lambda out: out.mkdir(), lambda out: out.write_text("a file")])
def test_an_output_folder_that_is_missing_or_empty_is_fine(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "out")
    report = check_config(training=arguments(tmp_path, output_dir=str(tmp_path / "out")))
    assert "REC005" not in found(report) | reasons(report)


def test_arguments_read_from_the_output_folder_itself_say_nothing_of_another_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-10").mkdir()
    report = check_config(training=arguments(tmp_path, output_dir=str(tmp_path)))
    assert "itself" in reasons(report)["REC005"]


@pytest.mark.parametrize("place", ["a\0b", "x" * 5000, ""])
def test_a_strange_output_folder_is_no_crash(place: str, tmp_path: Path) -> None:
    assert "REC005" not in found(check_config(training=arguments(tmp_path, output_dir=place)))


def test_live_objects_say_what_their_files_say(tmp_path: Path) -> None:
    """A notebook has objects, not files."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    lora = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", exclude_modules=["x"], use_dora=True)
    args = transformers.TrainingArguments(str(tmp_path / "out"), learning_rate=3e-4, max_steps=7, use_cpu=True)
    lora.save_pretrained(tmp_path)
    (tmp_path / "training_args.json").write_text(args.to_json_string())
    live, filed = check_config(peft=lora, training=args), check_config(peft_dir=tmp_path, training_dir=tmp_path)
    assert live.config == filed.config
    assert live.unknown_keys == []
    assert [source.path for source in live.sources] == ["LoraConfig", "TrainingArguments"]


def test_an_object_of_another_kind_is_a_config_error() -> None:
    class Odd:
        def to_dict(self) -> dict[str, object]:
            return {"a": 1}

    class Odder:
        def to_dict(self) -> int:
            return 3

    for odd in (Odd(), Odder()):
        with pytest.raises(ConfigError, match="Odd"):
            check_config(peft=odd)  # type: ignore[arg-type]


def test_rules_are_selected_and_ignored_by_the_beginning_of_their_ids() -> None:
    config = ConfigSnapshot(optimizer=OptimizerSnapshot(lr=1e-5), lora=LoraSnapshot(r=8), extras={"task": "sft"})
    assert set(found(check_config(config, select=["LR"]))) == {"LR001"}
    assert "not selected" in reasons(check_config(config, select=["LR"]))["VAL001"]
    assert set(found(check_config(config, select=["lr,val"], ignore=["LR001"]))) == set()
    assert set(found(check_config(config, ignore=["lr001"]))) == set()
    with pytest.raises(ConfigError, match="--select: no rule is called LX"):
        check_config(config, select=["LX"])
    with pytest.raises(ConfigError, match="an empty text"):
        check_config(config, ignore=["LR,"])


@pytest.mark.parametrize(("length", "kept"), [(255, 255), (256, 256), (257, 256)])
def test_a_task_has_256_characters(length: int, kept: int) -> None:
    report = check_config(ConfigSnapshot(num_labels=2), task="y" + "x" * (length - 1))
    assert report.config.extras["task"] == "y" + "x" * (kept - 1)


def test_weights_named_below_another_stem_are_found_for_the_engine_that_skips_them(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "peft")
    weights = adapter / "adapter_model.safetensors"
    for stem, said in (("language_model.model", {"SRV003"}), ("model", set()), ("h", {"SRV003"})):
        name = f"base_model.model.{stem}.layers.0.self_attn.q_proj.lora_A.weight"
        save_file({name: np.zeros((2, WIDTH), np.float32)}, weights)
        report = check_config(peft_dir=adapter, base=base, serve=["vllm"], select=["SRV00", "TGT002"])
        assert {item.id for item in report.findings if item.severity == "warning"} == said
    weights.write_bytes(b"no header")
    assert "SRV003" not in found(check_config(peft_dir=adapter, base=base, serve=["vllm"]))
    named = write_adapter(tmp_path / "full", target_modules=["language_model.model.layers.0.self_attn.q_proj"])
    (item,) = check_config(peft_dir=named, base=base, serve=["vllm"], select=["SRV003", "TGT002"]).findings
    assert item.action == "name modules below model, as the base does, not below language_model.model"


def test_a_token_beyond_the_bases_embedding_is_refused_by_sglang(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "peft")
    for row, said in ((ROWS, ["new_rows"]), (ROWS - 1, [])):
        (adapter / "added_tokens.json").write_text(json.dumps({"<tool>": row}))
        report = check_config(peft_dir=adapter, base=base, serve=["sglang"], select=["SRV001"])
        assert [item.values["feature"] for item in report.findings] == said


def begun(folder: Path, **fields: Any) -> Path:
    """The folder of an adapter whose run is over, by the log in it."""
    write_adapter(folder, **fields)
    (folder / "run.jsonl").write_text("{}\n")
    return folder


def test_a_stated_setting_is_judged_whatever_lies_beside_it(tmp_path: Path) -> None:
    folder = begun(tmp_path / "peft")
    assert "LR003" not in found(check_config(peft_dir=folder, training={"learning_rate": 2e-4}))
    stated = OptimizerSnapshot(lr=1.0)
    for report in (
        check_config(peft_dir=folder, overrides=ConfigSnapshot(optimizer=stated, extras={"task": "sft"})),
        check_config({"lr": 1.0, "task": "sft"}, peft_dir=folder),
        check_config(peft_dir=folder, training={"learning_rate": 1.0}, task="sft"),
    ):
        assert found(report)["LR003"] == "at lr 1 most LoRA runs of a 35-model sweep diverged"
        assert "REC004" in reasons(report)  # about a setting that was not stated: the run is over
    filed = begun(tmp_path / "filed", lora_alpha=4)
    (filed / "training_args.json").write_text('{"learning_rate": 1.0}')
    report = check_config(peft_dir=filed, training_dir=filed, task="sft")
    assert reasons(report)["LR003"] == "the run has begun (run.jsonl): gradience diagnose reads what came of it"


def test_the_configuration_of_a_local_base_tells_its_modules(tmp_path: Path) -> None:
    base = tmp_path / "my-model"
    base.mkdir()
    text = {"hidden_size": 8, "num_hidden_layers": 2}
    (base / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text, "n_layer": 99}))
    fields = {"target_modules": ["q_proj", "v_porj"], "r": 9, "layers_to_transform": [1, 2]}
    told = found(check_config(peft={**fields, "base_model_name_or_path": str(base)}))
    assert told["TGT006"].startswith("models of the Gemma 3 family have no module called v_porj (did you mean v_proj?)")
    assert told["TGT007"].startswith("layers_to_transform 2 is not in a model of 2 layers")
    # of a folder that is no more, its last part is a name; another model, stated, is not the folder's
    gone = check_config(peft={**fields, "base_model_name_or_path": "/gone/TinyLlama-1.1B"})
    assert found(gone)["TGT006"].startswith("models of the Llama family")
    renamed = ConfigSnapshot(model_name="gpt2")
    other = check_config(peft={**fields, "base_model_name_or_path": str(base)}, overrides=renamed)
    assert found(other)["TGT006"].startswith("models of the GPT-2 family")
    (base / "config.json").write_text("[")
    assert "TGT006" not in found(check_config(peft={"target_modules": ["q"], "base_model_name_or_path": str(base)}))


def test_the_class_that_peft_noted_tells_the_modules() -> None:
    noted = {"base_model_class": "ViTModel", "parent_library": "transformers.models.vit.modeling_vit"}
    fields = {"base_model_name_or_path": None, "auto_mapping": noted}
    assert "TGT006" not in found(check_config(peft={"target_modules": ["query", "value"], **fields}))
    told = found(check_config(peft={"target_modules": ["query", "c_attn"], **fields}))
    assert told["TGT006"].startswith("models of the ViT family have no module called c_attn")


def test_a_base_tells_what_is_not_saved(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    peft = write_adapter(tmp_path / "peft", r=9, modules_to_save=["embed_tokens", "heads"])
    told = found(check_config(peft_dir=peft, base=base))
    assert told["TGT008"] == "modules_to_save: heads is no module of base: neither trained nor saved"
    fitting = found(check_config(peft_dir=write_adapter(tmp_path / "fits", r=8), base=base))
    assert "TGT008" not in fitting


def test_the_screen_shows_five_notes_the_surest_first_and_no_row_without_a_value() -> None:
    settings = {
        "model": "gpt2",
        "targets": ["c_proj", "c_attn", "c_attn"],
        "bias": "all",
        "r": 32,
        "alpha": 4,
        "lr": 1e-4,
        "task": "clm",
        "epochs": 5,
        "max_steps": 20,
        "warmup_ratio": 0.1,
        "train_examples": 10**6,
        "per_device_train_batch_size": 300,
        "world_size": 1,
        "eval_strategy": "no",
    }
    report = check_config(settings, ignore=["REC001", "LR"])
    sure = {item.id: item.confidence for item in report.findings if item.severity == "info"}
    assert len(sure) == 5
    shown = check_text(report).splitlines()
    notes = [line.split()[1].rstrip(":") for line in shown if line.startswith("  [INFO] ")]
    assert notes == sorted(sure, key=lambda rule: -sure[rule])[:5]
    assert not any("(--verbose lists all)" in line for line in shown)
    assert "  [INFO] BIA001: bias is 'all': biases of the base model are trained and saved too" in shown
    assert [line for line in shown if "Targets:" in line] == ["  Targets:    c_attn, c_proj"]
    assert check_text(report, verbose=True).count("[INFO]") == 5
    alone = check_text(check_config({"lr": 1e-4}))
    assert "  Optimizer:  lr=1e-4" in alone.splitlines()
    assert not {"not given", "?", "Model:", "Length:"} & set(alone.replace("\n", " ").split(" "))
