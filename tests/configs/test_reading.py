"""Files of every shape become one snapshot, or one ConfigError."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tables import every

from gradience import check_config
from gradience.configs.document import read_document, read_peft, read_peft_dir
from gradience.configs.families import families
from gradience.configs.files import MAX_JSON_BYTES, MAX_YAML_BYTES, plain_mapping
from gradience.configs.settings import Layer, overlay
from gradience.configs.training import read_training, read_training_dir, read_training_object
from gradience.configs.values import MAX_TEXT, short_name
from gradience.errors import ConfigError
from gradience.schema.events import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot

GOLDEN = Path(__file__).parents[1] / "golden" / "configs"
SECRET = "hf_doNotPrintMe"  # noqa: S105  # what no output may hold


def written(folder: Path, text: str, name: str = "c.yaml") -> Path:
    """Write a file and return its path."""
    path = folder / name
    path.write_text(text)
    return path


@every("path", sorted((GOLDEN / "bad").iterdir()), ids=lambda path: path.name)
def test_bad_file_is_one_config_error_with_advice(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    assert path.name in str(caught.value)
    assert caught.value.advice


@every("path", sorted((GOLDEN / "good").iterdir()), ids=lambda path: path.name)
def test_good_file_is_read(path: Path) -> None:
    config = read_document(path).config
    assert config.optimizer.lr or config.lora.r


def test_old_peft_config_is_read_without_unknown_keys() -> None:
    layer = read_peft(GOLDEN / "good" / "adapter_old_peft.json")
    assert (layer.config.lora.r, layer.config.lora.alpha, layer.config.model_name) == (8, 32.0, "gpt2")
    assert layer.unknown_keys == ()


def test_mlx_config_is_told_apart_by_its_keys() -> None:
    """scale x rank is alpha; the alpha beside it is not read, and that is said."""
    layer = read_peft(GOLDEN / "good" / "adapter_mlx.json")
    assert (layer.config.lora.alpha, layer.config.lora.r, layer.config.optimizer.lr) == (160.0, 8, 1e-5)
    assert (layer.config.model_name, layer.config.training.max_steps) == ("tiny", 600)
    assert layer.config.extras["format"] == "mlx-lm"
    assert layer.unknown_keys == ("lora_parameters.alpha",)


def test_old_names_of_training_arguments_are_understood() -> None:
    layer = read_training(GOLDEN / "good" / "training_old_names.json")
    config = layer.config
    assert (config.optimizer.name, config.training.lr_scheduler) == ("adamw_torch", "linear")
    assert (config.training.eval_strategy, config.training.batch_size) == ("epoch", 16)
    assert (config.training.max_steps, config.training.dtype) == (None, "float16")
    assert layer.masked_keys == ("hub_token",)
    assert layer.secret_keys == ()


@every(("given", "read"), [(-1, None), (0, None), (1, 1)])
def test_steps_that_are_not_above_0_are_not_planned(given: int, read: int | None) -> None:
    training = read_training_object({"max_steps": given, "num_train_epochs": 3}).config.training
    assert (training.max_steps, "epochs_overridden" in training.extras) == (read, read is not None)


def test_yaml_traps_are_read_as_meant() -> None:
    config = read_document(GOLDEN / "good" / "flat.yaml").config
    assert (config.optimizer.lr, config.optimizer.name) == (2e-4, "adamw")
    assert config.training.eval_strategy == "no"


def test_canonical_config_of_a_log_is_read_whole() -> None:
    layer = read_document(GOLDEN / "good" / "canonical.json")
    assert layer.config.task_profile == "easy_classification"
    assert layer.config.training.extras == {"world": "one"}
    assert layer.unknown_keys == ()


def test_first_line_of_a_log_is_a_document(tmp_path: Path) -> None:
    """`gradience check run.jsonl` needs no copying."""
    line = json.dumps(json.loads((GOLDEN / "good" / "canonical.json").read_text()))
    path = written(tmp_path, f"{line}\n{{cut", "run.jsonl")
    assert read_document(path).config.lora.r == 8


@pytest.mark.parametrize("key", ["hub_token", "push_to_hub_token", "HF_TOKEN", "wandb_api_key", "aws_secret"])
@pytest.mark.parametrize("read", [read_document, read_training])
def test_secret_is_named_and_its_value_is_kept_nowhere(tmp_path: Path, key: str, read: Callable[[Path], Layer]) -> None:
    layer = read(written(tmp_path, json.dumps({"learning_rate": 1e-4, key: SECRET}), "c.json"))
    assert layer.secret_keys == (key,)
    assert SECRET not in repr(layer)
    assert layer.unknown_keys == ()


@every("key", ["eos_token", "pad_token", "decoder_start_token", "use_auth_token"])
def test_token_of_a_tokenizer_is_no_secret(tmp_path: Path, key: str) -> None:
    """TRL's SFTConfig has an eos_token; a flag is no credential."""
    value = True if key == "use_auth_token" else "<|im_end|>"
    path = written(tmp_path, json.dumps({"learning_rate": 1e-4, key: value}), "c.json")
    assert read_document(path).secret_keys == ()


def test_secret_in_extras_or_in_broken_yaml_is_not_shown(tmp_path: Path) -> None:
    canonical = {"optimizer": {"lr": 1e-4, "extras": {"api_key": SECRET, "beta3": 0.5}}}
    layer = read_document(written(tmp_path, json.dumps(canonical), "c.json"))
    assert layer.secret_keys == ("api_key",)
    assert layer.config.optimizer.extras == {"beta3": 0.5}
    with pytest.raises(ConfigError) as caught:
        read_document(written(tmp_path, f"hub_token: {SECRET}: [\n"))
    assert SECRET not in str(caught.value)


def test_trainer_state_beside_the_arguments_adds_the_steps(tmp_path: Path) -> None:
    written(tmp_path, json.dumps({"max_steps": -1, "num_train_epochs": 3, "logging_steps": 10}), "training_args.json")
    written(tmp_path, json.dumps({"max_steps": 1200, "logging_steps": 500, "log_history": []}), "trainer_state.json")
    training = read_training_dir(tmp_path).config.training
    assert (training.max_steps, training.logging_steps, training.epochs) == (1200, 10.0, 3.0)
    assert "epochs_overridden" not in training.extras


@pytest.mark.parametrize("grad_norm", [1.25, float("nan")])
def test_the_trainer_state_of_a_long_run_is_read_for_its_plan(tmp_path: Path, grad_norm: float) -> None:
    """Also one with bare NaN in it, as the Trainer writes them."""
    rows = [{"step": step, "loss": 1.5, "grad_norm": grad_norm, "learning_rate": 1e-4} for step in range(90_000)]
    written(tmp_path, json.dumps({"learning_rate": 1e-4}), "training_args.json")
    state = {"log_history": rows, "max_steps": 90_000, "logging_steps": 1}
    assert written(tmp_path, json.dumps(state), "trainer_state.json").stat().st_size > MAX_JSON_BYTES
    plan = read_training_dir(tmp_path).config.training
    assert (plan.max_steps, plan.logging_steps) == (90_000, 1)


def test_folder_without_a_config_names_where_one_is(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-100").mkdir()
    written(tmp_path / "checkpoint-100", "{}", "adapter_config.json")
    with pytest.raises(ConfigError) as caught:
        read_peft_dir(tmp_path)
    assert "checkpoint-100" in caught.value.advice


@every(("read", "hint"), [(read_peft_dir, "--peft"), (read_training_dir, "--training")])
def test_file_for_a_folder_is_said(tmp_path: Path, read: Callable[[Path], Layer], hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(written(tmp_path, "{}"))
    assert hint in caught.value.advice


@every("read", [read_peft, read_training, read_document, read_peft_dir, read_training_dir])
def test_missing_folder_and_empty_path_are_config_errors(tmp_path: Path, read: Callable[[Path], Layer]) -> None:
    for place in (tmp_path, tmp_path / "nothing.json", Path("/dev/null"), Path("a\0b")):
        with pytest.raises(ConfigError) as caught:
            read(place)
        assert caught.value.advice


@every(("levels", "is_read"), [(64, True), (65, False)])
def test_a_document_may_be_64_levels_deep(tmp_path: Path, levels: int, *, is_read: bool) -> None:
    path = written(tmp_path, "lr: 1.0e-4\n" + "\n".join("  " * i + "a:" for i in range(levels)) + " 1\n")
    if is_read:
        assert read_document(path).config.optimizer.lr == 1e-4
    else:
        with pytest.raises(ConfigError, match="nested more than 64 levels"):
            read_document(path)
    value: object = 1
    for _ in range(levels):
        value = [value]
    assert ("list" in str(plain_mapping({"a": value}))) is not is_read  # a value that is too deep is its type's name


def test_large_files_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    for name, limit in (("c.json", MAX_JSON_BYTES), ("c.yaml", MAX_YAML_BYTES)):
        with pytest.raises(ConfigError, match="larger"):
            read_document(written(tmp_path, "lr: " + "1" * limit, name))


def test_type_error_says_where_what_and_what_instead(tmp_path: Path) -> None:
    path = written(tmp_path, "optimizer: {lr: fast}\n")
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    assert caught.value.message == f"{path}: $.optimizer.lr: expected a number, got the text 'fast'"


@every(("text", "rank"), [("r: 8", 8), ("r: 8.0", 8), ('r: "8"', 8), ("r: -1", -1), ("r: 1e1", 10)])
def test_whole_numbers_are_read_in_every_spelling(tmp_path: Path, text: str, rank: int) -> None:
    assert read_document(written(tmp_path, text)).config.lora.r == rank


def test_overflow_and_nan_reach_the_rules_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, '{"lr": 1e400, "alpha": NaN, "weight_decay": -1e400}', "c.json")
    config = read_document(path).config
    assert (config.optimizer.lr, config.lora.alpha, config.optimizer.weight_decay) == ("Infinity", "NaN", "-Infinity")


def test_foreign_sections_are_unknown_keys_not_errors(tmp_path: Path) -> None:
    """A model that is a section is another program's; that is no mistake in ours."""
    layer = read_document(written(tmp_path, "model: {_component_: x}\nlr: 1e-4\nepochs: 1\n"))
    assert layer.unknown_keys == ("model",)


def test_other_peft_methods_are_recognised_without_their_settings(tmp_path: Path) -> None:
    text = json.dumps({"peft_type": "IA3", "feedforward_modules": ["w0"], "task_type": "SEQ_CLS"})
    layer = read_peft(written(tmp_path, text, "adapter_config.json"))
    assert (layer.config.lora.peft_type, layer.unknown_keys) == ("IA3", ())


def test_null_targets_are_told_from_absent_ones(tmp_path: Path) -> None:
    null = read_peft(written(tmp_path, '{"peft_type": "LORA", "target_modules": null}', "a.json"))
    absent = read_peft(written(tmp_path, '{"peft_type": "LORA"}', "b.json"))
    assert null.config.lora.extras == {"target_modules_null": True}
    assert absent.config.lora.extras == {}


def test_later_layer_wins_and_extras_are_joined() -> None:
    lower = ConfigSnapshot(optimizer=OptimizerSnapshot(lr=1e-4, name="sgd"), extras={"a": 1})
    upper = ConfigSnapshot(optimizer=OptimizerSnapshot(lr=2e-4), lora=LoraSnapshot(r=8), extras={"b": 2})
    both = overlay(lower, upper)
    assert (both.optimizer.lr, both.optimizer.name, both.lora.r) == (2e-4, "sgd", 8)
    assert both.extras == {"a": 1, "b": 2}


@every(
    ("given", "kept"),
    [("org/model", "org/model"), ("/home/me/m", "m"), ("./m/", "m"), ("~/x/y", "y"), ("a/b/c", "c"), ("", "")],
)
def test_model_is_a_hub_id_or_a_folder_name(given: str, kept: str) -> None:
    assert short_name(given) == kept


def test_overlong_text_is_refused_without_being_quoted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_document(written(tmp_path, json.dumps({"notes": "x" * (MAX_TEXT + 1)}), "c.json"))
    assert "x" * 50 not in str(caught.value)


def test_keys_beside_a_wrapped_config_are_not_lost(tmp_path: Path) -> None:
    text = json.dumps({"config": {"lr": 1e-4}, "hub_token": SECRET, "stray": 1, "run_id": "a"})
    layer = read_document(written(tmp_path, text, "c.json"))
    assert (layer.unknown_keys, layer.secret_keys) == (("stray",), ("hub_token",))


@every(("read", "name"), [(read_peft, "adapter"), (read_training, "training")])
def test_file_of_the_other_kind_is_refused_with_the_right_option(
    tmp_path: Path, read: Callable[[Path], Layer], name: str
) -> None:
    mine = {"adapter": {"learning_rate": 1e-4}, "training": {"r": 8, "lora_alpha": 16}}[name]
    with pytest.raises(ConfigError, match=r"no (setting|training argument)") as caught:
        read(written(tmp_path, json.dumps(mine), "c.json"))
    assert {"adapter": "--training", "training": "--peft"}[name] in caught.value.advice


def test_adafactor_flag_of_old_arguments_names_the_optimizer(tmp_path: Path) -> None:
    layer = read_training(written(tmp_path, json.dumps({"adafactor": True, "optim": "adamw_hf"}), "t.json"))
    assert layer.config.optimizer.name == "adafactor"


def test_a_config_that_wandb_recorded_is_read_and_is_of_a_run_that_has_begun(tmp_path: Path) -> None:
    """Each setting is `{desc, value}`, among the logger's keys and the model's own config."""
    text = "_wandb:\n  value: {}\nlearning_rate:\n  desc: null\n  value: 1.0e-06\nwarmup_ratio:\n  value: 0.1\n"
    text += "pad_token_idd:\n  value: 3\nmax_length:\n  value: 20\nnum_beams:\n  value: 1\nwandb_version: 1\n"
    path = tmp_path / "config.yaml"
    path.write_text(text)
    report = check_config(document=path, task="sft")
    assert report.config.optimizer.lr == 1e-6
    assert report.config.training.max_length is None  # how long the model generates
    assert report.unknown_keys == []
    reasons = {item.id: item.reason for item in report.not_run}
    assert reasons["REC001"] == "about a run to come; this one has begun (wandb recorded it)"


def test_an_axolotl_recipe_without_an_adapter_has_none(tmp_path: Path) -> None:
    """Its lora_ keys are left over from another recipe, and Axolotl does not read them."""
    path = tmp_path / "c.yaml"
    common = "base_model: m\nmicro_batch_size: 1\nsequence_len: 64\nlora_r: 8\nlora_alpha: 16\nlearning_rate: 1e-6\n"
    for adapter, r in (("", None), ("adapter: lora\n", 8)):
        path.write_text(common + adapter)
        report = check_config(document=path)
        assert report.config.lora.r == r
        assert ("LR001" in {item.id for item in report.findings}) is (r is not None)


@every(
    ("written", "read", "value"),
    [
        ("training: {grad_accum_steps: 4}", lambda c: c.training.gradient_accumulation, 4),
        ("grad_accumulation_steps: 4", lambda c: c.training.gradient_accumulation, 4),
        ("training: {max_seq_len: 512}", lambda c: c.training.max_length, 512),
        ("model: {name: org/m}", lambda c: c.model_name, "org/m"),
        ("peft_config: {r: 8}", lambda c: c.lora.r, 8),
        ("qlora: {r: 8, alpha: 16}", lambda c: c.lora.alpha, 16.0),
        ("model: {name: org/tuned, base_model: org/base}", lambda c: c.model_name, "org/tuned"),
        ("training: {epochs: 2}\ndpo: {beta: 0.1, epochs: 9}", lambda c: (c.extras.get("task"), c.training.epochs),
         ("dpo", 2.0)),
        ("sft: {epochs: 3, lora: {r: 4}}", lambda c: (c.extras.get("task"), c.lora.r), ("sft", 4)),
        ("dpo: {num_train_epochs: 3}", lambda c: (c.extras.get("task"), c.training.epochs), ("dpo", 3.0)),
        ("sft: {note: a}\ndpo: {beta: 0.1}", lambda c: c.extras.get("task"), None),
        ("lora_bias: none", lambda c: c.lora.extras.get("lora_bias"), None),
        ("optim: {name: adamw, weight_decay: 0.1}", lambda c: c.optimizer.weight_decay, 0.1),
        ("training: {per_device_batch_size: 2}", lambda c: c.training.batch_size, 2),
        ("dataset: [org/a, data/b.jsonl]", lambda c: c.dataset_name, "org/a, data/b.jsonl"),
        ("{fine_tune_type: lora, iters: 9}", lambda c: (c.lora.r, c.lora.alpha), (8, 160.0)),
        ("{iters: 421, steps_per_report: 10, grad_accumulation_steps: 4}", lambda c: c.training.max_steps, 105),
        ("{iters: 421, lr: 1.0e-4, rank: 4}", lambda c: c.extras.get("format"), None),
    ],
)  # fmt: skip
def test_settings_of_peoples_own_files_are_read(
    tmp_path: Path, written: str, read: Callable[[ConfigSnapshot], object], value: object
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(written if written.startswith("{") else f"lr: 1.0e-4\n{written}\n", encoding="utf-8")
    assert read(read_document(path).config) == value


def test_a_stack_within_a_stack_of_a_family_has_a_number_too():
    """T5's blocks hold layers, and Swin's layers blocks: modules are counted by the outer stack."""
    names = {name for family in families() for name in family.module_names(2)}
    assert {name for name in names if "*" in name} == set()
    assert {"encoder.block.1.layer.0.SelfAttention.q", "encoder.layers.1.blocks.0.attention.q_proj"} <= names
