"""What a Trainer's run leaves behind, with nothing more than `callbacks=[GradienceCallback()]`."""

from __future__ import annotations

import getpass
import socket
import sys

import numpy as np
import pytest


@pytest.fixture(scope="module")
def plain_run(training, callback, log, tmp_path_factory):
    """One run with two evaluation sets, and an evaluation, a prediction and another prefix after its end."""
    out = tmp_path_factory.mktemp("plain")
    evals = {"easy": training.sequences(8, seed=2), "hard": training.sequences(6, seed=3)}
    run = training.trainer(
        out,
        callback(),
        evals=evals,
        eval_strategy="steps",
        eval_steps=4,
        max_steps=8,
        gradient_accumulation_steps=2,
        learning_rate=3e-4,
        lr_scheduler_type="cosine",
        warmup_steps=2,
    )
    run.evaluate(evals["hard"])
    run.train()
    run.evaluate(evals["easy"])
    run.evaluate(evals["easy"], metric_key_prefix="train")
    run.predict(evals["hard"])
    return log(out)


def test_a_run_is_recorded_from_its_start_to_its_end(plain_run):
    names = plain_run.names
    assert names[0] == "run_start"
    assert plain_run.steps == list(range(1, 9))
    assert [e.status for e in plain_run.of("run_end")] == ["ok"]
    assert len({e.run_id for e in plain_run}) == 1
    assert all(e.loss > 0 and e.grad_norm > 0 and e.lr is not None for e in plain_run.of("train_step"))


def test_each_split_of_a_dict_is_recorded_once_per_evaluation(plain_run):
    during = [e for e in plain_run[: plain_run.names.index("run_end")] if e in plain_run.of("eval")]
    assert [(e.split, e.step) for e in during] == [("eval", 0), ("easy", 4), ("hard", 4), ("easy", 8), ("hard", 8)]
    assert [e.metrics.n for e in during] == [6, 8, 6, 8, 6]


def test_a_baseline_evaluated_before_training_joins_its_run(plain_run):
    assert plain_run.names[:2] == ["run_start", "eval"]


def test_the_summary_is_a_block_of_metrics_and_no_train_row(plain_run):
    (summary,) = plain_run.kind("train_summary")
    assert summary.metrics["train_loss"] > 0
    assert summary.metrics["total_flos"] > 0


def test_evaluations_after_the_end_join_the_run_under_their_own_split(plain_run):
    late = plain_run[plain_run.names.index("run_end") + 1 :]
    assert [(e.split, e.metrics.n) for e in late] == [("eval", 8), ("train", 8), ("test", 6)]
    assert len({e.run_id for e in plain_run}) == 1


def test_the_config_holds_what_check_judges(plain_run):
    config = plain_run[0].config
    assert (config.lora.r, config.lora.alpha, config.lora.alpha_over_r, config.lora.dropout) == (4, 8, 2, 0.1)
    assert config.lora.target_modules == ["q_proj", "v_proj"]
    assert (config.lora.use_rslora, config.lora.use_dora, config.lora.task_type) == (False, False, "CAUSAL_LM")
    assert (config.optimizer.lr, config.optimizer.name) == (3e-4, "adamw_torch_fused")
    plan = config.training
    assert (plan.batch_size, plan.gradient_accumulation, plan.world_size, plan.max_steps) == (4, 2, 1, 8)
    assert (plan.lr_scheduler, plan.warmup_steps, plan.seed, plan.dtype) == ("cosine", 2, 42, "float32")
    assert (plan.logging_steps, plan.eval_strategy, plan.save_strategy) == (1, "steps", "no")
    assert plan.extras["train_examples"] == 32


def test_twenty_steps_at_the_default_logging_leave_config_summary_and_end(training, callback, log, tmp_path):
    training.trainer(tmp_path, callback(), max_steps=20, logging_steps=500).train()
    events = log(tmp_path)
    digests = events.names.count("step_digests")
    assert digests == 2  # of 16 steps each
    rest = [name for name in events.names if name != "step_digests"]
    assert rest == ["run_start", "wiring", "wiring", "metrics", "metrics", "metrics", "run_end"]
    assert [event.kind for event in events.of("metrics")] == ["data", "train_summary", "data"]
    assert events[0].config.training.logging_steps == 500


def test_training_again_is_a_new_run_behind_the_old_one(training, callback, log, tmp_path):
    run = training.trainer(tmp_path, callback())
    run.train()
    before = (tmp_path / "run.jsonl").read_bytes()
    run.train()
    training.trainer(tmp_path, callback(), max_steps=2).train()
    events = log(tmp_path)
    assert (tmp_path / "run.jsonl").read_bytes().startswith(before)
    assert len({e.run_id for e in events.of("run_start")}) == 3
    assert [e.resumed_from_step for e in events.of("run_start")] == [None, None, None]


def test_evaluating_alone_makes_no_log(training, callback, tmp_path):
    training.trainer(tmp_path, callback(), evals=training.sequences(4)).evaluate()
    assert not (tmp_path / "run.jsonl").exists()


def test_a_lowered_batch_size_begins_the_same_run_again(training, callback, log, tmp_path):
    class TooBig(training.Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            if len(inputs["input_ids"]) > 5 and self.state.global_step == 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return super().training_step(model, inputs, num_items_in_batch)

    given = {"auto_find_batch_size": True, "per_device_train_batch_size": 8}
    training.trainer(tmp_path, callback(), cls=TooBig, **given).train()
    events = log(tmp_path)
    first, *again = events.of("run_start")
    sizes = [e.config.training.batch_size for e in events.of("run_start")]
    assert sizes[0] == 8
    assert sizes[-1] <= 5
    assert {e.run_id for e in again} == {first.run_id}
    assert {e.resumed_from_step for e in again} == {0}
    assert [e.status for e in events.of("run_end")] == ["ok"]
    assert events.steps == [1, 2, *[1, 2] * (len(again) - 1), 1, 2, 3, 4, 5, 6]


def test_early_stopping_ends_the_run_in_order_and_says_where(training, callback, log, tmp_path):
    seen = []

    class Stop(training.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append({k: v for k, v in state.log_history[-1].items() if k != "step"} == logs)

    training.trainer(tmp_path, callback(), Stop()).train()
    assert seen == [True] * 4  # a row is read and never written
    (end,) = log(tmp_path).of("run_end")
    assert (end.status, end.reason) == ("ok", "stopped at step 3 of 6")


def test_a_summary_that_another_callback_spoiled_is_still_a_summary(training, callback, log, tmp_path):
    class Spoil(training.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            logs.pop("total_flos", None)  # as PrinterCallback does

    training.trainer(tmp_path, Spoil(), callback()).train()
    assert len(log(tmp_path).kind("train_summary")) == 1
    assert log(tmp_path).of("eval") == []


def test_tensors_arrays_and_foreign_objects_in_a_row_become_json(training, callback, log, tmp_path):
    class Chatty(training.Trainer):
        def training_step(self, *given):
            super().log({"reward": 0.5})
            return super().training_step(*given)

        def log(self, logs, start_time=None):
            logs |= {"a_tensor": training.torch.tensor(1.5), "per_head": np.arange(3), "big": np.zeros(9999)}
            logs |= {"thing": object(), "step": 7, "empty": training.torch.zeros(0)}
            super().log(logs, start_time)

    training.trainer(tmp_path, callback(), cls=Chatty, max_steps=1).train()
    own, row = log(tmp_path).of("train_step")
    assert (own.loss, own.extras) == (None, {"reward": 0.5})
    assert row.extras["a_tensor"] == 1.5
    assert row.extras["per_head"] == [0, 1, 2]
    assert row.extras["big"] == "<array of shape [9999]>"
    assert (row.extras["thing"], row.extras["step_"], row.extras["empty"]) == ("<object>", 7, [])


def test_metrics_that_are_no_numbers_do_not_cost_the_evaluation(training, callback, log, tmp_path):
    def measure(_prediction):
        return {"accuracy": {"a": 0.5}, "f1": np.float32(0.25)}

    evals = training.sequences(4)
    run = training.trainer(tmp_path, callback(), evals=evals, compute_metrics=measure, max_steps=1)
    run.train()
    run.evaluate()
    (found,) = log(tmp_path).of("eval")
    assert found.metrics.extras["accuracy_"] == {"a": 0.5}
    assert found.metrics.extras["f1"] == 0.25


@pytest.mark.parametrize("filtered", [True, False])
def test_a_run_that_goes_nan_says_so_once_and_keeps_its_rows(training, callback, log, tmp_path, filtered):
    def poison(model):
        next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))

    given = {"logging_nan_inf_filter": filtered}
    training.trainer(tmp_path, training.At(3, poison), callback(), **given).train()
    events = log(tmp_path)
    assert events.steps == [1, 2, 3, 4, 5, 6]
    assert [e.grad_norm for e in events.of("train_step")][3:] == ["NaN"] * 3
    assert [e.loss for e in events.of("train_step")][3:] == ([0.0] * 3 if filtered else ["NaN"] * 3)
    said = [(e.code, e.step) for e in events.of("alert")]  # of gradients alone two rows make an error
    assert said == ([("NUM102", 4), ("NUM101", 5)] if filtered else [("NUM101", 4)])


def test_nothing_private_reaches_the_log(training, callback, log, tmp_path, monkeypatch):
    token = "hf_" + "Ab1" * 12
    monkeypatch.setenv("A_SECRET_OF_MINE", "environment-value-0815")
    given = {"hub_token": token, "run_name": str(tmp_path / "run")}
    model = training.llama()
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "models" / "my-llama")
    training.trainer(tmp_path, callback(notes=f"key {token}"), model=model, max_steps=1, **given).train()
    text = (tmp_path / "run.jsonl").read_text()
    private = [token, str(tmp_path), "environment-value-0815", socket.gethostname(), sys.argv[0], sys.executable]
    assert [item for item in private if item and item in text] == []
    if len(getpass.getuser()) > 3:
        assert f"/{getpass.getuser()}" not in text
    start = log(tmp_path)[0]
    assert start.config.model_name == "my-llama"
    assert set(start.meta) == {"framework", "versions", "device", "platform"}


def test_what_the_user_says_of_the_run_is_in_its_first_line(training, callback, log, tmp_path):
    said = {"dataset_name": "glue/sst2", "task_profile": "easy_classification", "notes": "second try"}
    path = tmp_path / "elsewhere" / "my.jsonl"
    training.trainer(tmp_path, callback(path, meta={"sweep": 7}, **said), max_steps=1).train()
    start = log(path)[0]
    assert (start.config.dataset_name, start.config.task_profile) == ("glue/sst2", "easy_classification")
    assert (start.config.notes, start.meta["sweep"]) == ("second try", 7)
    assert not (tmp_path / "run.jsonl").exists()


def test_every_line_stands_in_the_file_before_the_next_step(training, callback, tmp_path):
    counts = []

    def count(_model):
        counts.append(len((tmp_path / "run.jsonl").read_bytes().splitlines()))

    training.trainer(tmp_path, *[training.At(n, count) for n in (2, 4)], callback()).train()
    assert counts == [3, 5]  # run_start and wiring, then a row for each step before
