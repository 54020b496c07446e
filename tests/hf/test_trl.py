"""Unchanged in TRL's trainers: supervised fine-tuning and preference optimisation; and what they are fed."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.oracle("trl")


PROMPTS = [{"prompt": f"w{i} w2 w3 ", "completion": f"w4 w{i + 5}"} for i in range(16)]
PAIRS = [{"prompt": f"w{i} w2", "chosen": " w4 w5", "rejected": f" w{i + 6}"} for i in range(8)]


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


@pytest.fixture(scope="module")
def dpo(training, tokenizer, tmp_path_factory):
    """A function that trains by DPO, and returns the Trainer and all that a change of its numbers would show."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    def run(out, *callbacks):
        data = Dataset.from_list(PAIRS)
        made = DPOTrainer(
            model=training.llama(),
            args=DPOConfig(max_length=16, beta=0.25, **_given(out)),
            train_dataset=data,
            eval_dataset=data.select(range(4)),
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        made.train()
        return made, [*made.model.parameters(), training.torch.get_rng_state()]

    return run


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
    found = events.kind("data")[-1].metrics
    assert (found["tokens"], found["supervised"]) == (6 * found["rows"], 3 * found["rows"])
    assert found["rows_with_end"] == found["rows"] > 0
    assert found["rows_unsupervised"] == found["padding"] == found["packed"] == 0
    config = events[0].config
    assert (config.training.extras["trainer"], config.training.max_length) == ("sft", 16)
    settings = config.training.extras["trl"]
    assert (settings["packing"], settings["loss_type"]) == (False, run.args.loss_type)
    assert settings["assistant_only_loss"] is False
    assert "beta" not in settings
    assert events[0].meta["versions"]["trl"]


def test_dpo_is_recorded_with_its_rewards_and_is_bit_for_bit_that_without_the_callback(
    training, callback, log, dpo, tmp_path
):
    run, with_it = dpo(tmp_path / "on", callback())
    _, without = dpo(tmp_path / "off")
    assert all(training.torch.equal(a, b) for a, b in zip(with_it, without, strict=True))
    events = log(tmp_path / "on")
    assert events.steps == [1, 2, 3, 4]
    assert all("rewards/margins" in row.extras for row in events.of("train_step"))
    settings = events[0].config.training.extras["trl"]
    assert (settings["beta"], settings["loss_type"]) == (0.25, run.args.loss_type)
    assert [(e.split, e.step, e.metrics.n) for e in events.of("eval")] == [("eval", 2, 4), ("eval", 4, 4)]
    assert all("rewards/margins" in e.metrics.extras for e in events.of("eval"))
    assert events[0].config.training.extras["trainer"] == "preference"
    assert events.of("run_end")[0].status == "ok"
    assert [e.phase for e in events.of("wiring")][:2] == ["start", "evaluation"]
    assert not [e.code for e in events.of("alert") if e.code.startswith("WIR")]  # reference passes are no fault
    found = events.kind("data")[-1].metrics  # both answers, and reference passes are not counted
    assert (found["batches"], found["rows"], found["tokens"], found["padding"]) == (4, 16, 8 * (5 + 4), 8)
    assert (found["supervised"], found["rows_unsupervised"]) == (8 * (3 + 2), 0)
