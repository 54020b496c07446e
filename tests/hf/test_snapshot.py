"""The configuration in a run's first line: every field it has, in the words of the config reader."""

from __future__ import annotations

import json

import msgspec
import pytest
from tables import every

from gradience.configs.document import read_peft_dir
from gradience.telemetry.rows import eval_columns, train_columns


@pytest.fixture(scope="module")
def start(training, callback, log, tmp_path_factory):
    """A function that begins a run of the model and returns its first event."""

    def begin(model, out=None, **given):
        out = out or tmp_path_factory.mktemp("snapshot")
        training.trainer(out, callback(), model=model, **{"max_steps": 1, **given}).train()
        return log(out)[0]

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
    recorded = msgspec.to_builtins(start(model, out=tmp_path).config.lora)
    model.save_pretrained(tmp_path / "peft")
    saved = msgspec.to_builtins(read_peft_dir(tmp_path / "peft").config.lora)
    recorded.pop("alpha_over_r")
    for one in (recorded, saved):
        one.pop("extras", None)
        if isinstance(one["target_modules"], list):
            one["target_modules"] = sorted(one["target_modules"])
    assert recorded == saved


def test_recorded_targets_are_sorted_whatever_order_a_set_has(training, start):
    found = start(training.llama(target_modules=["v_proj", "k_proj", "q_proj"])).config.lora.target_modules
    assert found == ["k_proj", "q_proj", "v_proj"]


def test_a_classifier_is_recorded_with_its_number_of_labels(training, start, callback, log, tmp_path):
    rows = training.sequences(labels=3)
    args = training.arguments(tmp_path, max_steps=1)
    training.Trainer(model=training.distilbert(), args=args, train_dataset=rows, callbacks=[callback()]).train()
    config = log(tmp_path)[0].config
    assert (config.num_labels, config.lora.task_type) == (3, "SEQ_CLS")
    assert config.lora.extras["base_model_class"] == "DistilBertForSequenceClassification"


def test_the_optimizer_in_force_is_recorded_and_not_the_argument(training, callback, log, tmp_path):
    model = training.llama()
    sgd = training.torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5, weight_decay=0.1)
    args = training.arguments(tmp_path, max_steps=1)
    rows = training.sequences()
    run = training.Trainer(model=model, args=args, train_dataset=rows, optimizers=(sgd, None), callbacks=[callback()])
    run.train()
    optimizer = log(tmp_path)[0].config.optimizer
    assert (optimizer.extras["class"], optimizer.lr, optimizer.weight_decay) == ("SGD", 0.5, 0.1)


@pytest.mark.parametrize(("given", "dtype"), [({}, "bfloat16"), ({"bf16": True}, "bfloat16")])
def test_the_precision_is_that_of_mixed_precision_or_else_of_the_weights(training, start, given, dtype):
    model = training.llama().to(training.torch.bfloat16)
    assert start(model, **given).config.training.dtype == dtype


def test_a_model_without_an_adapter_is_recorded_as_such(training, start):
    config = start(training.llama().unload().requires_grad_()).config
    assert config.lora.r is None
    assert config.lora.extras == {"base_model_class": "LlamaForCausalLM"}


def test_another_method_than_lora_keeps_its_name_and_no_lora_settings(training, start):
    from peft import IA3Config, get_peft_model

    base = training.llama().unload()
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    found = start(get_peft_model(base, config)).config.lora
    assert (found.peft_type, found.r, found.target_modules) == ("IA3", None, None)


def test_a_hub_data_set_names_itself_and_a_local_file_does_not(training, callback, log, tmp_path):
    from datasets import Dataset

    rows = Dataset.from_list([{k: v.tolist() for k, v in row.items()} for row in training.sequences()])
    for name, expected in (("imdb", "imdb"), ("json", None)):
        rows.info.dataset_name = name
        args = training.arguments(tmp_path / name, max_steps=1)
        training.Trainer(model=training.llama(), args=args, train_dataset=rows, callbacks=[callback()]).train()
        assert log(tmp_path / name)[0].config.dataset_name == expected


def test_a_model_is_found_within_its_wrappers(training):
    from gradience.hf.snapshot import unwrapped

    model = training.llama()
    assert unwrapped(model) is model
    assert unwrapped(training.torch.nn.DataParallel(training.torch.compile(model))) is model


def test_a_stream_of_unknown_length_is_recorded_without_one(training, callback, log, tmp_path):
    class Stream(training.torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(training.sequences())

    args = training.arguments(tmp_path, max_steps=2)
    training.Trainer(model=training.llama(), args=args, train_dataset=Stream(), callbacks=[callback()]).train()
    assert "train_examples" not in log(tmp_path)[0].config.training.extras
    assert log(tmp_path).steps == [1, 2]


def test_groups_of_different_rates_are_all_named(training, callback, log, tmp_path):
    model = training.llama()
    sides = [[p for n, p in model.named_parameters() if f"lora_{side}" in n] for side in "AB"]
    groups = [{"params": sides[0], "lr": 1e-4}, {"params": sides[1], "lr": 1.6e-3}]  # as LoRA+ does
    args = training.arguments(tmp_path, max_steps=1)
    optimizers = (training.torch.optim.AdamW(groups), None)
    rows = training.sequences()
    training.Trainer(model=model, args=args, train_dataset=rows, optimizers=optimizers, callbacks=[callback()]).train()
    optimizer = log(tmp_path)[0].config.optimizer
    assert (optimizer.lr, optimizer.extras["lr_groups"]) == (1.6e-3, [1e-4, 1.6e-3])


def test_the_recorded_config_is_what_check_reads(training, start, tmp_path):
    from gradience.judge.check import check_config

    start(training.llama(), out=tmp_path)
    line = (tmp_path / "run.jsonl").read_bytes().split(b"\n")[0]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(line)["config"]))
    assert check_config(document=path)


@every(
    ("row", "columns"),
    [
        ({"loss": "1.5", "learning_rate": 2e-4}, {"loss": 1.5, "lr": 2e-4}),
        ({"lr": [1e-3, 1e-4], "learning_rate": 1e-3}, {"lr": [1e-3, 1e-4], "learning_rate": 1e-3}),
        ({"loss": {"a": 1.0}, "grad_norm": True, "epoch": "first"}, {"loss_": {"a": 1.0}, "grad_norm_": True}),
        ({"step": 3, "self": 1, "reward": 0.5}, {"step_": 3, "self_": 1, "reward": 0.5}),
    ],
)
def test_what_is_no_number_does_not_cost_the_row(row, columns):
    known, extras = train_columns(row)
    assert columns.items() <= {**known, **extras}.items()
    assert len(known) + len(extras) == len(row)


def test_what_is_called_accuracy_and_is_no_number_keeps_its_value():
    assert eval_columns({"accuracy": {"a": 1}, "loss": 0.5}) == ({"loss": 0.5}, {"accuracy_": {"a": 1}})
