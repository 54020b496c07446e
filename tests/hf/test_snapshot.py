"""The configuration in a run's first line: every field it has, in the words of the config reader."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
from tables import every

from gradience.configs.document import read_peft_dir
from gradience.configs.settings import Draft
from gradience.hf.snapshot import batch_size, note_optimizer, unwrapped
from gradience.schema import ConfigSnapshot


@pytest.fixture
def start(training, tmp_path):
    """A function that returns the configuration which a Trainer's callbacks would record as it begins."""

    from transformers import TrainerState

    from gradience.hf.snapshot import config_snapshot

    def begin(model, rows=None, **given):
        args = training.arguments(tmp_path, **given)
        loader = None if rows is None else SimpleNamespace(dataset=rows)
        state = TrainerState(max_steps=1, train_batch_size=4)
        return config_snapshot(args, state, ConfigSnapshot(), model=model, train_dataloader=loader)

    return begin


VARIANTS = {
    "rslora": {"use_rslora": True, "r": 8, "lora_alpha": 16},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 32}},
    "regex": {"target_modules": r".*layers\.[01]\..*(q|k)_proj"},
    "all-linear": {"target_modules": "all-linear", "bias": "lora_only"},
    "pissa": {"init_lora_weights": "pissa", "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_recorded_adapter_is_the_adapter_that_was_saved(training, start, tmp_path, variant):
    model = training.llama(**VARIANTS[variant])
    recorded = msgspec.to_builtins(start(model).lora)
    model.save_pretrained(tmp_path / "peft")
    saved = msgspec.to_builtins(read_peft_dir(tmp_path / "peft").config.lora)
    recorded.pop("alpha_over_r")
    for one in (recorded, saved):
        one.pop("extras", None)
        if isinstance(one["target_modules"], list):
            one["target_modules"] = sorted(one["target_modules"])
    assert recorded == saved


def test_recorded_targets_are_sorted_whatever_order_a_set_has(training, start):
    found = start(training.llama(target_modules=["v_proj", "k_proj", "q_proj"])).lora.target_modules
    assert found == ["k_proj", "q_proj", "v_proj"]


@pytest.mark.parametrize(("given", "dtype"), [({}, "bfloat16"), ({"bf16": True}, "bfloat16")])
def test_the_precision_is_that_of_mixed_precision_or_else_of_the_weights(training, start, given, dtype):
    model = training.llama().to(training.torch.bfloat16)
    assert start(model, **given).training.dtype == dtype


def test_a_model_without_an_adapter_is_recorded_as_such(training, start):
    config = start(training.llama().unload().requires_grad_())
    assert config.lora.r is None
    assert config.lora.extras == {"base_model_class": "LlamaForCausalLM"}


def test_another_method_than_lora_keeps_its_name_and_no_lora_settings(training, start):
    from peft import IA3Config, get_peft_model

    base = training.llama().unload()
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    found = start(get_peft_model(base, config)).lora
    assert (found.peft_type, found.r, found.target_modules) == ("IA3", None, None)


@every(("used", "devices", "size"), [(16, 2, 8), (16, 1, 16), (16, 0, 16), (None, 2, 4), (0, 2, 4), (17, 2, 8)])
def test_the_batch_of_one_device_is_that_in_use(used, devices, size):
    args = SimpleNamespace(n_gpu=devices, per_device_train_batch_size=4)
    assert batch_size(args, SimpleNamespace(train_batch_size=used)) == size


def test_of_groups_of_an_optimizer_the_highest_rate_and_decay_count():
    draft = Draft()
    groups = [
        {"initial_lr": 2e-4, "lr": 9e-4, "weight_decay": 0.0},
        {"initial_lr": 1e-4, "lr": 9e-4, "weight_decay": 0.25},
        {"lr": 3e-4},  # added after the schedule was made
        {},
    ]
    note_optimizer(draft, SimpleNamespace(param_groups=groups))
    found = draft.snapshot().optimizer
    assert (found.lr, found.weight_decay) == (3e-4, 0.25)
    assert (found.extras["lr_groups"], found.extras["class"]) == ([1e-4, 2e-4, 3e-4], "SimpleNamespace")


def test_a_wrapper_has_its_model_as_its_only_child():
    model = SimpleNamespace(_modules={"a": 1})
    for wrapped in (SimpleNamespace(_modules={name: model}) for name in ("module", "_orig_mod")):
        assert unwrapped(wrapped) is model
    for other in ({"module": model, "b": model}, {"inner": model}, {}):
        own = SimpleNamespace(_modules=other)
        assert unwrapped(own) is own


def test_a_classifier_is_recorded_with_its_number_of_labels(training, start):
    config = start(training.distilbert())
    assert (config.num_labels, config.lora.task_type) == (3, "SEQ_CLS")
    assert config.lora.extras["base_model_class"] == "DistilBertForSequenceClassification"


def test_a_hub_data_set_names_itself_and_a_local_file_does_not(training, start):
    from datasets import Dataset

    rows = Dataset.from_list([{k: v.tolist() for k, v in row.items()} for row in training.sequences()])
    for name, expected in (("imdb", "imdb"), ("json", None)):
        rows.info.dataset_name = name
        config = start(training.llama(), rows)
        assert (config.dataset_name, config.training.extras["train_examples"]) == (expected, 32)
    assert "train_examples" not in start(training.llama(), iter([])).training.extras  # a stream


def test_the_recorded_config_is_what_check_reads(training, start, tmp_path):
    from gradience.verbs.check.run import check_config

    path = tmp_path / "config.json"
    path.write_bytes(msgspec.json.encode(start(training.llama())))
    assert check_config(document=path).config.lora.r == 4
