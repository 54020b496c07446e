"""What the callback says, and when it stops a training, while the training runs."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from gradience import preflight
from gradience.hf.live import LiveOptions, LiveRun


def poison(model):
    next(p for p in model.parameters() if p.requires_grad).data.fill_(math.nan)


@pytest.fixture
def said(records):
    """A function that returns what was said so far, by level and first word."""

    def read():
        return [(r.levelname, r.getMessage().removeprefix("gradience: ")) for r in records]

    return read


def test_alerts_are_said_as_they_happen_once_each_with_the_id(training, callback, said, tmp_path):
    when = []
    look = training.At(5, lambda _model: when.extend(said()))
    given = {"learning_rate": 2e-4, "logging_nan_inf_filter": False}
    training.trainer(tmp_path, training.At(3, poison), look, callback(), **given).train()
    told = [line for line in said() if "NUM101" in line[1]]
    assert told == [line for line in when if "NUM101" in line[1]]  # the row of step 4 came before the end of step 5
    assert [level for level, _ in told] == ["ERROR"]
    assert told[0][1].startswith("NUM101 at step 4: Not finite: loss at step 4")


def test_what_memorises_is_said_while_it_trains(training, callback, said, tmp_path):
    model = training.llama().unload().requires_grad_(requires_grad=True)
    given = {"max_steps": 100, "eval_strategy": "steps", "eval_steps": 10, "learning_rate": 2e-3, "logging_steps": 2}
    training.trainer(
        tmp_path,
        callback(),
        model=model,
        evals=training.sequences(seed=7, n=24),
        per_device_train_batch_size=16,
        **given,
    ).train()
    steps = {line[:6]: int(line.split()[3].rstrip(":")) for level, line in said() if "at step" in line}
    assert {"GAP111"} < steps.keys() <= {"GAP111", "HLD146", "OVF110"}  # one of these two, whichever comes first
    assert max(steps.values()) <= 60


def test_what_the_first_batches_hold_is_told_and_may_stop_as_preflight_foretold_it(training, callback, said, tmp_path):
    made = training.trainer(tmp_path, callback(stop_on=["DAT358"]), max_steps=20, per_device_train_batch_size=2)
    for row in made.train_dataset:
        row["position_ids"] = training.torch.zeros_like(row["input_ids"])
    (foretold,) = (one for one in preflight(made, memory=False).findings if one.id == "DAT358")
    made.train()
    says = f"DAT358 at step 8: {foretold.message} -> {foretold.action}"
    assert [line for line in said() if line[1][:3] == "DAT"] == [("ERROR", says)]
    assert foretold.message == "all 8 rows of the first batches have one and the same position id for every token"
    assert made.state.global_step == 8


END = 7


def ended(length, ends, **beside):
    """A row of one token, with an end token at these places."""
    ids = torch.tensor([END if i in ends else 20 + i % 9 for i in range(length)])
    return {"input_ids": ids, "labels": ids.where(ids != 23, -100), **beside}


def places(*lengths):
    return torch.cat([torch.arange(length) for length in lengths])


def unshifted(outputs, labels, num_items_in_batch=None):
    return torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())


def shifted(outputs, labels, num_items_in_batch=None):
    return torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


ONES = torch.ones(12, dtype=torch.int64)


@pytest.mark.parametrize(
    ("row", "given", "says"),
    [
        (ended(12, {5}), {}, None),
        (ended(12, {5}, position_ids=places(6, 6)), {}, None),
        (ended(12, {5}, attention_mask=ONES.cumsum(0) // 7 + 1), {}, None),
        (ended(12, {11}), {}, None),
        (
            ended(12, {5}, position_ids=places(6, 6), attention_mask=ONES),
            {},
            (
                "DAT355 at step 4: all 8 rows of the first batches have position_ids that begin anew, and an "
                "attention_mask beside them: documents attend to each other"
            ),
        ),
        (ended(12, {11}, position_ids=places(12), attention_mask=ONES), {}, None),
        (
            ended(12, {11}),
            {"loss": unshifted},
            (
                "FED227 at step 4: of 44 tokens in the loss of the first batch, it asks at 44 for the very token that "
                "the model read there, and at 0 for the next: labels and logits are not shifted against each other"
            ),
        ),
        (ended(12, {11}), {"loss": shifted}, None),
        (
            ended(12, {11}),
            {"grown": {}},
            (
                "FED228 at step 4: all 8 rows of the first batches have a token whose embedding was never trained, and "
                "is frozen"
            ),
        ),
        (ended(12, {11}), {"grown": {"modules_to_save": ["embed_tokens", "lm_head"]}}, None),
        (ended(12, {11}), {"grown": {"trainable_token_indices": [64, 65]}}, None),
    ],
)  # fmt: skip
def test_the_first_batches_and_their_loss_are_looked_at(training, callback, said, tmp_path, row, given, says):
    model = training.llama(**given.get("grown", {}), words=66 if "grown" in given else None)
    made = training.trainer(tmp_path, callback(), model=model, max_steps=4, gradient_accumulation_steps=2)
    made.compute_loss_func = given.get("loss")
    made.model.base_model.model.generation_config.eos_token_id = END
    added = row["input_ids"].where(row["input_ids"] != 26, 65) if "grown" in given else row["input_ids"]
    made.train_dataset = [{**row, "input_ids": added} for _ in range(32)]
    made.train()
    found = [line for _, line in said() if line[:6] in {"DAT355", "FED227", "FED228"}]
    assert [line.partition(" -> ")[0] for line in found] == ([] if says is None else [says])


def test_findings_on_the_config_are_said_when_training_begins(training, callback, said, tmp_path):
    when = []
    look = training.At(1, lambda _model: when.extend(said()))
    training.trainer(tmp_path, look, callback(), max_steps=4, logging_steps=500, learning_rate=5e-5).train()
    assert {line[:6] for level, line in when if level == "WARNING"} == {"REC001", "LR001:"}
    assert said() == when


def test_the_last_words_are_the_log_its_story_and_the_next_command(training, callback, tmp_path, capsys):
    place = tmp_path / "a run"
    training.trainer(place, callback(), max_steps=4).train()
    end = capsys.readouterr().err
    assert f"gradience: {place / 'run.jsonl'}: cannot tell whether it learns" in end
    assert f"gradience: next: gradience diagnose '{place}'\n" in end
    training.trainer(tmp_path / "quiet", callback(verbose=False), max_steps=4).train()
    assert "next: gradience" not in capsys.readouterr().err


def test_a_log_that_cannot_be_judged_at_the_end_ends_no_training(training, callback, tmp_path, capsys):
    def in_its_place(_model):
        (tmp_path / "run.jsonl").unlink()
        (tmp_path / "run.jsonl").mkdir()

    gone = training.At(4, in_its_place)
    assert training.trainer(tmp_path, gone, callback(), max_steps=4).train().global_step == 4
    assert "next: gradience" not in capsys.readouterr().err


def test_verbose_false_silences_and_records_all_the_same(training, callback, said, log, tmp_path):
    training.trainer(tmp_path, training.At(3, poison), callback(verbose=False), logging_nan_inf_filter=False).train()
    assert said() == []
    assert [e.code for e in log(tmp_path).of("alert")] == ["NUM101"]


def test_stop_on_ends_the_training_says_so_and_records_it(training, callback, said, log, tmp_path):
    given = {"logging_nan_inf_filter": False, "max_steps": 40}
    run = training.trainer(tmp_path, training.At(3, poison), callback(stop_on=("NUM101", "DIV104")), **given)
    assert run.train().global_step == 4
    assert ("WARNING", "training stops after step 4, by stop_on: NUM101") in said()
    events = log(tmp_path)
    (alert,) = events.of("alert")
    assert (alert.code, alert.step, alert.context["stops"]) == ("NUM101", 4, True)
    (end,) = events.of("run_end")
    assert (end.status, end.reason) == ("aborted", "stopped at step 4 of 40 by stop_on: NUM101")


def test_a_finding_that_is_not_in_stop_on_stops_nothing(training, callback, tmp_path):
    given = {"logging_nan_inf_filter": False}
    run = training.trainer(tmp_path, training.At(3, poison), callback(stop_on=("DIV104",)), **given)
    assert run.train().global_step == 6


def test_stop_on_takes_only_ids_that_speak_while_training_runs(callback):
    with pytest.raises(ValueError, match=r"stop_on: expected ids among NUM102.* got LR001"):
        callback(stop_on=("NUM101", "LR001"))
    with pytest.raises(ValueError, match="task_profile must be one of"):
        callback(task_profile="classify")
    with pytest.raises(ValueError, match="spectral_every must be at least 1 step, not 0"):
        callback(spectral_every=0)


@pytest.mark.parametrize("twins", [True, False], ids=["one object twice", "two objects"])
def test_of_two_callbacks_in_one_trainer_one_records(training, callback, log, tmp_path, twins):
    first = callback()
    second = first if twins else callback()
    evals = training.sequences(4, seed=2)
    run = training.trainer(tmp_path, first, second, evals=evals, eval_strategy="steps", eval_steps=3)
    with pytest.warns(RuntimeWarning, match="twice|two callbacks") as caught:  # noqa: PT031  # several lines warn
        run.train()
        run.evaluate()
    assert len([w for w in caught if "gradience" in str(w.message)]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.jsonl"]
    events = log(tmp_path)
    assert events.steps == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in events.of("eval")] == [3, 6, 6]
    assert events.names.count("run_start") == events.names.count("run_end") == 1
    assert [e.seq for e in events if e.session == events[0].session] == list(range(len(events) - 1))


def test_two_evaluations_of_one_step_that_took_equally_long_are_two_and_one_that_is_said_twice_is_one(
    training, callback, log, tmp_path
):
    recorder = callback()
    run = training.trainer(tmp_path, recorder)
    run.train()
    for rows in (254.0, 253.8, 253.8):
        metrics = {"eval_loss": 4.0, "eval_runtime": 0.0158, "eval_samples_per_second": rows}
        recorder.on_evaluate(run.args, run.state, run.control, metrics)
    assert [e.metrics.extras["samples_per_second"] for e in log(tmp_path).of("eval")] == [254.0, 253.8]


def test_late_events_of_a_loop_that_was_left_make_no_file_of_their_own(training, callback, log, tmp_path):
    left = training.trainer(tmp_path, training.At(3, training.ACTS["break"]), callback())
    with pytest.raises(ValueError, match="prompt"):
        left.train()

    def late(_model):
        with pytest.warns(RuntimeWarning, match="could not be recorded, .*being written by another process"):  # noqa: PT031  # several lines warn
            left.evaluate(training.sequences(4))
            left.evaluate(training.sequences(4))

    training.trainer(tmp_path, training.At(2, late), callback()).train()
    assert [p.name for p in tmp_path.iterdir()] == ["run.jsonl"]


def test_a_log_taken_by_another_process_has_one_sibling_for_the_whole_run(training, callback, log, tmp_path):
    from gradience import TelemetryWriter

    with TelemetryWriter(tmp_path / "run.jsonl"):
        run = training.trainer(tmp_path, callback(), evals=training.sequences(4))
        with pytest.warns(RuntimeWarning, match="is being written by another process"):
            run.train()
        run.evaluate()
    (sibling,) = [p for p in tmp_path.iterdir() if p.name != "run.jsonl"]
    assert log(sibling).names[-2:] == ["run_end", "eval"]


def test_what_every_callback_takes_is_what_the_run_takes():
    taken = inspect.signature(LiveRun).parameters
    assert LiveOptions.__annotations__.keys() == taken.keys()
    assert all(one.default is not one.empty for one in taken.values())
