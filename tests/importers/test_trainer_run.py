"""A run of the real Trainer, imported, and compared with what the Trainer and our callback have of it."""

from __future__ import annotations

import json
import shutil

import msgspec
import pytest

from gradience.importers import import_run
from gradience.telemetry import TelemetryReader
from gradience.verbs.check.run import check_config
from gradience.verbs.monitor.run import monitor_run

pytest.importorskip("peft", reason="needs the hf extra: pip install -e '.[hf]'")
torch = pytest.importorskip("torch", reason="needs the hf extra: pip install -e '.[hf]'")

STEPS = 12
RATE = 1e-2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An output folder with checkpoints, a root state and our own log; and the Trainer's log_history."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

    from gradience.hf import GradienceCallback

    torch.set_num_threads(1)
    set_seed(0)
    folder = tmp_path_factory.mktemp("trainer") / "out"
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    data, held_out = ([{"input_ids": row, "labels": row} for row in torch.randint(0, 32, (n, 8))] for n in (24, 12))
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, per_device_train_batch_size=4, logging_steps=1, eval_strategy="steps",
        eval_steps=4, save_steps=4, learning_rate=RATE, warmup_steps=2, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=get_peft_model(LlamaForCausalLM(config), lora),
        args=arguments,
        train_dataset=data,
        eval_dataset={"easy": held_out[:7], "hard": held_out[7:]},
        callbacks=[GradienceCallback()],
    )
    result = trainer.train()
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)
    (folder / "training_args.json").write_text(arguments.to_json_string())
    return folder, trainer.state.log_history


def test_every_row_of_the_log_history_is_an_event(run, import_events):
    folder, history = run
    events, imported = import_events(folder)
    rows = [event for event in events if event.__struct_config__.tag not in {"run_start", "run_end", "throughput"}]
    assert imported.skipped == []
    for event, row in zip(rows, history, strict=True):
        assert event.step == row["step"]
        assert event.__struct_config__.tag == (
            "metrics" if "total_flos" in row else "train_step" if "loss" in row else "eval"
        )
    trained = [row for row in history if "loss" in row]
    assert [(e.loss, e.lr, e.grad_norm, e.epoch) for e in events.of("train_step")] == [
        (row["loss"], row["learning_rate"], row["grad_norm"], row["epoch"]) for row in trained
    ]
    measured = [row for row in history if any(key.startswith("eval_") for key in row)]
    for event, row in zip(events.of("eval"), measured, strict=True):
        back = {f"eval_{event.split}_loss": event.metrics.loss, **back_to_row(event)}
        assert {**back, "step": event.step} == row


def back_to_row(event):
    named = {f"eval_{event.split}_{key}": value for key, value in event.metrics.extras.items() if key != "epoch"}
    return {**named, "epoch": event.metrics.extras["epoch"]}


def test_the_import_says_what_our_callback_recorded_live(run, import_events):
    folder, _ = run
    live = list(TelemetryReader(folder / "run.jsonl"))
    events, _ = import_events(folder)
    for cls in ("train_step", "eval", "metrics"):
        recorded = [e for e in live if e.__struct_config__.tag == cls and getattr(e, "kind", "") != "data"]  # batches
        assert [told_by(e) for e in events.of(cls)] == [told_by(e) for e in recorded]
    ours, theirs = events.start.config, live[0].config
    for field in ("r", "alpha", "alpha_over_r", "dropout", "bias", "use_rslora", "task_type", "peft_type"):
        assert getattr(ours.lora, field) == getattr(theirs.lora, field)
    assert set(ours.lora.target_modules) == set(theirs.lora.target_modules)
    for field in ("max_steps", "batch_size", "gradient_accumulation", "seed", "logging_steps", "lr_scheduler"):
        assert getattr(ours.training, field) == getattr(theirs.training, field)
    assert (ours.optimizer.lr, ours.optimizer.name) == (theirs.optimizer.lr, theirs.optimizer.name)


def told_by(event):
    """Return what an event says, without who said it and when; the number of examples is known to the living only."""
    said = {name: getattr(event, name) for name in event.__struct_fields__}
    if event.__struct_config__.tag == "eval":
        said["metrics"] = msgspec.structs.replace(event.metrics, n=None)
    return {k: v for k, v in said.items() if k not in {"ts", "run_id", "seq", "session"}}


def test_the_summary_of_a_real_run_gives_its_batch_where_the_arguments_are_gone(run, tmp_path):
    folder, _ = run
    copy = tmp_path / "out"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("run.jsonl", "training_args*"))
    report = check_config(document=copy)
    assert report.derived["effective_batch"] == 4.0
    assert report.config.training.extras["samples_per_step"] == 4


def test_monitor_reads_the_log_in_the_folder_else_imports_it_to_the_same_story(run, tmp_path):
    folder, _ = run
    live = monitor_run(folder)
    assert live.file == str(folder / "run.jsonl")
    copy = tmp_path / "out"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("run.jsonl"))
    before = sorted(path.name for path in copy.iterdir())
    memory = monitor_run(copy)
    assert sorted(path.name for path in copy.iterdir()) == before
    import_run(copy)
    written = monitor_run(copy)
    for report in (memory, written):
        assert (report.train.rows, report.train.last_loss) == (live.train.rows, live.train.last_loss)
        assert [(p.split, p.metrics.loss) for p in report.evals] == [(p.split, p.metrics.loss) for p in live.evals]
        assert {f.id for f in report.findings} == {f.id for f in live.findings}
        assert report.train.duration_s is None
    assert memory.notes[0].startswith("imported in memory from trainer_state.json")
    assert {point.split: point.metrics.n for point in memory.evals} == {"easy": 7, "hard": 5}


def test_the_hub_token_in_the_pickle_reaches_no_log(run, tmp_path):
    folder, _ = run
    out = tmp_path / "run.jsonl"
    import_run(folder, out)
    assert b"hub_token" not in out.read_bytes()
    assert json.loads(out.read_bytes().splitlines()[0])["meta"]["imported_from"] == "out"
