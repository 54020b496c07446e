"""Unchanged in TRL's trainers: supervised fine-tuning and preference optimisation."""

from __future__ import annotations

import pytest

pytest.importorskip("trl", reason="TRL is not installed: pip install trl")

PROMPTS = [{"text": "w1 w2 w3 w4 w5 w6"}, {"text": "w7 w8 w9 w10 w11"}] * 8
PAIRS = [{"prompt": "w1 w2 w3", "chosen": " w4 w5 w6", "rejected": " w7 w8 w9"}] * 16


def _given(out):
    return {
        "output_dir": str(out),
        "max_steps": 4,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_train_batch_size": 2,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "learning_rate": 1e-2,
    }


def test_sft_is_recorded_with_trls_own_measurements(training, callback, log, tokenizer, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list(PROMPTS)
    run = SFTTrainer(
        model=training.llama(),
        args=SFTConfig(max_length=16, **_given(tmp_path)),
        train_dataset=data,
        eval_dataset={"one": data.select(range(4)), "two": data.select(range(6))},
        processing_class=tokenizer,
        callbacks=[callback(spectral_every=4)],
    )
    run.train()
    events = log(tmp_path)
    assert events.steps == [1, 2, 3, 4]
    assert all("mean_token_accuracy" in row.extras for row in events.of("train_step"))
    assert [(e.split, e.step, e.metrics.n) for e in events.of("eval")] == [
        ("one", 2, 4),
        ("two", 2, 6),
        ("one", 4, 4),
        ("two", 4, 6),
    ]
    assert all("mean_token_accuracy" in e.metrics.extras for e in events.of("eval"))
    assert len(events.kind("spectral")) == len(events.kind("train_summary")) == 1
    config = events[0].config
    assert (config.training.extras["trainer"], config.training.max_length) == ("sft", 16)
    settings = config.training.extras["trl"]
    assert (settings["packing"], settings["loss_type"]) == (False, run.args.loss_type)
    assert settings["assistant_only_loss"] is False
    assert "beta" not in settings
    assert events[0].meta["versions"]["trl"]


def test_dpo_is_recorded_with_its_rewards(training, callback, log, tokenizer, tmp_path):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    data = Dataset.from_list(PAIRS)
    run = DPOTrainer(
        model=training.llama(),
        args=DPOConfig(max_length=16, beta=0.25, **_given(tmp_path)),
        train_dataset=data,
        eval_dataset=data.select(range(4)),
        processing_class=tokenizer,
        callbacks=[callback()],
    )
    run.train()
    events = log(tmp_path)
    assert events.steps == [1, 2, 3, 4]
    assert all("rewards/margins" in row.extras for row in events.of("train_step"))
    settings = events[0].config.training.extras["trl"]
    assert (settings["beta"], settings["loss_type"]) == (0.25, run.args.loss_type)
    assert [(e.split, e.step, e.metrics.n) for e in events.of("eval")] == [("eval", 2, 4), ("eval", 4, 4)]
    assert all("rewards/margins" in e.metrics.extras for e in events.of("eval"))
    assert events[0].config.training.extras["trainer"] == "preference"
    assert events.of("run_end")[0].status == "ok"


def test_dpo_is_bit_for_bit_that_without_the_callback_and_its_reference_passes_are_no_fault(
    training, callback, log, tokenizer, tmp_path
):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    def weights(out, *callbacks):
        run = DPOTrainer(
            model=training.llama(),
            args=DPOConfig(max_length=16, **{**_given(out), "eval_strategy": "no"}),
            train_dataset=Dataset.from_list(PAIRS),
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        run.train()
        return [*run.model.parameters(), training.torch.get_rng_state()]

    with_it, without = weights(tmp_path / "on", callback()), weights(tmp_path / "off")
    assert all(training.torch.equal(a, b) for a, b in zip(with_it, without, strict=True))
    events = log(tmp_path / "on")
    assert [e.phase for e in events.of("wiring")] == ["start", "gradients"]
    assert not [e.code for e in events.of("alert") if e.code.startswith("WIR")]
