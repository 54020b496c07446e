"""`gradience.preflight` says what is about to be trained, and the training after it is the same bit for bit."""

from __future__ import annotations

import hashlib
import random
from importlib import import_module

import numpy as np
import pytest

import gradience


class Masks:
    """A collator that draws from every generator there is, from its own, and from one that it makes on first use."""

    def __init__(self, torch):
        self.torch, self.seen = torch, []
        self.own, self.numpy, self.python = torch.Generator().manual_seed(4), np.random.default_rng(5), random.Random(6)  # noqa: S311  # data

    def __call__(self, rows):
        torch = self.torch
        if not hasattr(self, "generator"):
            self.generator = torch.Generator().manual_seed(3)
        ids = torch.stack([row["input_ids"] for row in rows])
        drawn = torch.rand(ids.shape) + torch.rand(ids.shape, generator=self.generator)
        drawn += random.random() + np.random.random()  # noqa: S311, NPY002  # as data pipelines do
        drawn += torch.rand(ids.shape, generator=self.own) + self.numpy.random() + self.python.random()
        self.seen.append(len(rows))
        return {"input_ids": ids, "labels": torch.where(drawn > 3.5, ids, -100)}


def _trained(training, out, look):
    made = training.trainer(out, model=training.llama(seed=5), gradient_accumulation_steps=2)
    made.data_collator = Masks(training.torch)
    training.set_seed(7)
    reports = [gradience.preflight(made, memory=False) for _ in range(look)]
    assert made.optimizer is None
    assert made.lr_scheduler is None
    assert (made.accelerator._dataloaders, made.data_collator.seen) == ([], [])
    assert all(one.grad is None for one in made.model.parameters())
    assert made.model.training is True
    made.train()
    weights = hashlib.sha256(b"".join(one.detach().numpy().tobytes() for one in made.model.parameters()))
    losses = [row["loss"] for row in made.state.log_history if "loss" in row]
    states = random.getstate(), np.random.get_state()[1].tolist(), training.torch.get_rng_state().tolist()  # noqa: NPY002
    return reports, (weights.hexdigest(), losses, states)


def test_training_after_a_look_is_the_training_without_one(training, tmp_path):
    _, plain = _trained(training, tmp_path / "plain", 0)
    (first, second), looked = _trained(training, tmp_path / "looked", 2)
    assert looked == plain
    assert first.to_json() == second.to_json()
    assert 0 < first.batches.counts["supervised"] < first.batches.counts["tokens"]


def test_it_says_what_trains_at_which_rate_on_what(training, tmp_path):
    made = training.trainer(
        tmp_path, learning_rate=2e-4, warmup_steps=2, lr_scheduler_type="cosine", eval_strategy="no"
    )
    made.model.base_model.model.lm_head.to(training.torch.bfloat16)
    report = gradience.preflight(made, memory=False)
    groups = {group.kind: (group.trainable, group.trainable_tensors, group.dtypes) for group in report.groups}
    assert groups["adapter"] == (1024, 8, ["float32"])  # two layers of q and v: 4 x (32 + 32) each
    assert groups["base"][0] == groups["norm"][0] == 0
    assert groups["head"] == (0, 0, ["bfloat16"])
    assert [(one.step, one.lr) for one in report.rates] == [
        (1, 0.0),
        (3, 2e-4),
        (4, pytest.approx(1e-4 * (1 + np.cos(np.pi / 4)))),
        (6, pytest.approx(1e-4 * (1 + np.cos(3 * np.pi / 4)))),
    ]
    assert report.optimizer.held == 8
    assert report.batches.inputs == {"input_ids": "4 x 12 int64", "labels": "4 x 12 int64"}
    text = str(report)
    assert "Trains:     adapter 1.0K parameters, 8 tensors in float32 on cpu" in text
    assert "Fed:        32 rows and 384 tokens in the first 8 micro-batches, 0.0% padding" in text
    assert "In loss:    384 of 384 tokens (100.0%)" in text


def test_the_step_and_its_memory_are_those_of_check(training, tmp_path):
    model = training.llama()
    report = gradience.preflight(training.trainer(tmp_path, model=model))
    foretold = report.check.memory
    assert foretold.parts.adapter == sum(
        512 * -(-4 * one.numel() // 512) for one in model.parameters() if one.requires_grad
    )
    assert foretold.assumes[0] == "4 x 12 tokens, padded"
    assert report.check.sources == []  # no folder that is gone
    assert "Memory: about" in str(report)
    assert any("the model lies on cpu" in note for note in report.notes)


def test_a_grave_finding_is_an_exception_if_asked_for(training, tmp_path):
    model = training.llama()
    for one in model.parameters():
        one.requires_grad_(requires_grad=False)
    rows, args = training.sequences(), training.arguments(tmp_path)
    report = gradience.preflight(model, rows, args, memory=False)
    assert report.findings[0].id == "WIR171"
    with pytest.raises(
        gradience.GradienceError, match=r"preflight: WIR171: .*none of the adapter's 8 tensors"
    ) as error:
        gradience.preflight(model, rows, args, memory=False, raise_on="error")
    assert "is_trainable=True" in error.value.advice
    assert gradience.preflight(training.llama(), rows, args, memory=False, raise_on="error").findings
    with pytest.raises(ValueError, match="raise_on: expected one of info, warning"):
        gradience.preflight(model, raise_on="fatal")


def test_rows_that_teach_nothing_are_found_before_a_step_is_made(training, tmp_path):
    rows = [{**row, "labels": training.torch.full_like(row["labels"], -100)} for row in training.sequences()]
    report = gradience.preflight(training.llama(), rows, training.arguments(tmp_path), memory=False)
    assert "DAT301" in {one.id for one in report.findings}
    assert "In loss:    0 of 384 tokens (0.0%); masked 100.0%; 32 rows without one" in str(report)


def test_what_cannot_be_looked_at_is_said(training, tmp_path):
    class Stream(training.torch.utils.data.IterableDataset):
        def __iter__(self):
            raise AssertionError("a stream that may not begin again was read")

    args = training.arguments(tmp_path)
    of_text = gradience.preflight(training.llama(), [{"input_ids": "a text"}] * 4, args, memory=False)
    assert of_text.batches.inputs == {}
    stream = gradience.preflight(training.llama(), Stream(), args, memory=False)
    assert "may not begin again" in stream.batches.reason
    alone = gradience.preflight(training.llama(), memory=False)
    assert alone.batches.reason == "no data set was given"
    assert alone.rates == []
    own = type("Own", (training.Trainer,), {"create_optimizer": lambda self: pytest.fail("it was called")})
    made = gradience.preflight(training.trainer(tmp_path, cls=own), memory=False)
    assert made.optimizer is None
    assert "the optimizer is not looked at" in made.notes[0]


def test_a_notebook_shows_a_table(training):
    shown = gradience.preflight(training.distilbert(), training.sequences(labels=3), memory=False)._repr_html_()
    assert shown.startswith("<table>")
    assert (
        '<th scope="row" style="text-align:left">In loss</th><td style="text-align:left">class labels 0 to 2</td>'
        in shown
    )


@pytest.mark.oracle("trl")
def test_sft_and_dpo_of_trl_say_what_is_in_the_loss(training, tokenizer, tmp_path):
    trl = import_module("trl")
    from datasets import Dataset

    given = {"output_dir": str(tmp_path), "max_steps": 2, "per_device_train_batch_size": 2, "report_to": []}
    given |= {"use_cpu": True, "bf16": False, "max_length": 16, "save_strategy": "no"}
    pairs = Dataset.from_list([{"prompt": f"w{i} w2 w3", "completion": " w4 w5"} for i in range(4)])
    sft = trl.SFTTrainer(training.llama(), trl.SFTConfig(**given), train_dataset=pairs, processing_class=tokenizer)
    report = gradience.preflight(sft, memory=False)
    assert (report.batches.counts["supervised"], report.batches.counts["tokens"]) == (12, 24)  # two words and the end
    assert report.check.config.training.max_length == 16
    sft.train()
    choices = [{"prompt": f"w{i} w2 w3", "chosen": " w4 w5", "rejected": " w7 w8"} for i in range(4)]
    dpo = trl.DPOTrainer(
        training.llama(),
        args=trl.DPOConfig(**given),
        train_dataset=Dataset.from_list(choices),
        processing_class=tokenizer,
    )
    report = gradience.preflight(dpo, memory=False)
    assert report.batches.judged == {"kept": 24, "tokens": 48}
    assert "24 of 48 tokens (50.0%), by completion_mask" in str(report)


def test_the_rates_are_those_of_what_the_trainer_was_given(training, tmp_path):
    made = training.trainer(tmp_path, learning_rate=2e-4, eval_strategy="no")
    held = [one for one in made.model.parameters() if one.requires_grad]
    made.optimizer = training.torch.optim.AdamW([{"params": held[::2], "lr": 1e-5}, {"params": held[1::2], "lr": 1e-4}])
    report = gradience.preflight(made, memory=False)
    assert (report.rates[0].lr, report.check.config.optimizer.lr) == (1e-4, 1e-4)  # not those of the arguments
    made.lr_scheduler = training.torch.optim.lr_scheduler.LambdaLR(made.optimizer, lambda step: step // 100)
    report = gradience.preflight(made, memory=False)
    assert (report.schedule, {one.lr for one in report.rates}) == ("LambdaLR", {0.0})
    made.lr_scheduler = training.torch.optim.lr_scheduler.StepLR(made.optimizer, 2)
    report = gradience.preflight(made, memory=False)
    assert (report.schedule, report.rates) == ("StepLR", [])


@pytest.mark.parametrize(("end", "expected"), [(None, True), (3, False)])
def test_the_tokenizers_end_token_is_an_end(training, tmp_path, end, expected):
    """Training makes it one of the model's, whose own is another."""
    made = training.trainer(tmp_path, eval_strategy="no")
    made.model.base_model.model.generation_config.eos_token_id = 99
    made.processing_class = type("Tokenizer", (), {"eos_token_id": end})()
    made.train_dataset = [{"input_ids": ids, "labels": ids} for ids in training.torch.full((64, 6), 3)]
    report = gradience.preflight(made, memory=False)
    assert ("DAT307" in {one.id for one in report.findings}) == expected


@pytest.mark.parametrize(("call", "expected"), [([3, 3], False), ([3, 4], True)])
def test_rows_without_the_invocation_of_an_alora_are_named(training, tmp_path, call, expected):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(alora_invocation_tokens=call, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(training.llama().unload(), lora)
    made = training.trainer(tmp_path, model=model, eval_strategy="no")
    made.train_dataset = [{"input_ids": ids, "labels": ids} for ids in training.torch.full((64, 6), 3)]
    report = gradience.preflight(made, memory=False)
    assert ("WIR173" in {one.id for one in report.findings}) == expected
    assert not model._forward_pre_hooks


def test_data_that_break_end_the_drawing_and_not_the_report(training, tmp_path):
    class Rows(list):
        def __getitem__(self, place):
            if place >= self.whole:
                raise ZeroDivisionError("no words")
            return super().__getitem__(place)

    made = training.trainer(tmp_path, train_sampling_strategy="sequential")
    made.train_dataset = rows = Rows(training.sequences())
    rows.whole = 0
    told = str(gradience.preflight(made, memory=False))
    assert "not looked at: no batch can be made of the rows: ZeroDivisionError: no words" in told
    rows.whole = 8
    report = gradience.preflight(made, memory=False)
    assert report.batches.counts["rows"] == 8
    assert "Then:       micro-batch 3 cannot be made of the rows: ZeroDivisionError: no words" in str(report)


def test_of_several_adapters_the_active_one_is_told(training, tmp_path):
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    model = training.llama()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["k_proj"]))
    model.set_adapter("second")
    told = str(gradience.preflight(training.trainer(tmp_path, model=model)))
    assert "LoRA  r=2" in told
    assert "Targets:    k_proj" in told


def test_a_model_without_numbers_trains_what_it_would(training, tmp_path):
    with training.torch.device("meta"):
        model = training.llama()
    report = gradience.preflight(model, training.sequences(), training.arguments(tmp_path), memory=False)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert sum(group.trainable for group in report.groups) == trained > 0
    assert "on meta" in str(report)
    with pytest.raises(TypeError, match="expected a Trainer or a torch model, got int"):
        gradience.preflight(3)


def test_the_end_token_is_the_one_that_the_trainer_gives_the_model(training, tokenizer, tmp_path):
    made = training.trainer(tmp_path)
    made.processing_class = tokenizer
    for row in made.train_dataset:
        row["input_ids"][-1] = tokenizer.eos_token_id
    assert made.model.config.eos_token_id != tokenizer.eos_token_id
    counts = gradience.preflight(made, memory=False).batches.counts
    assert counts["rows_with_end"] == counts["rows"] > 0
    made.train()
    assert made.model.config.eos_token_id == tokenizer.eos_token_id
