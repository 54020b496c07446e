"""What each program leaves behind, as its own code writes it: steps, losses, rates and evaluations by value."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import pytest
from tables import every

from gradience.errors import RecorderError
from gradience.verbs.monitor.run import monitor_run


class Log(NamedTuple):
    """A file, and what its events say; None is not looked at."""

    name: str
    text: str
    trained: Sequence[tuple[Any, ...]] = ()  # step, loss, rate
    held: Sequence[tuple[Any, ...]] = ()  # step, split, and those of loss, perplexity and accuracy that there are
    extras: list[dict[str, Any]] | None = None  # of the training rows
    measured: list[dict[str, Any]] | None = None  # of the evaluations, beside these three
    norms: list[float | None] | None = None
    kind: str | None = None
    planned: int | None = None
    ended: str | None = None
    says: str | None = None  # a part of a note


def lines(*rows: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def logged(form: str, file: str, function: str, message: str, *, dates: str | None = None) -> str:
    """A line as a program's own formatter writes it; its form and dates are those of the program's source."""
    record = logging.LogRecord("program", logging.INFO, f"/program/{file}", 547, message, None, None, function)
    return logging.Formatter(form, dates).format(record) + "\n"


def openrlhf(message: str) -> str:
    """openrlhf/utils/logging_utils.py, `_FORMAT` and `_DATE_FORMAT`."""
    form = "%(levelname)s %(asctime)s %(filename)s:%(lineno)d] %(message)s"
    return logged(form, "ppo_trainer.py", "fit", message, dates="%m-%d %H:%M:%S")


def deepspeed(message: str) -> str:
    """deepspeed/utils/logging.py, `create_logger`."""
    form = "[%(asctime)s] [%(levelname)s] [%(filename)s:%(lineno)d:%(funcName)s] %(message)s"
    return logged(form, "logging.py", "log_dist", f"[Rank 0] {message}")


ARGUMENT = "  arguments ........................ 1\n"
SIGN, DOT, PLACE = "=" * 25, "\u2022", "global_step/max_steps"
BAR = "Train epoch [1/1]: {0:3d}%|####  | {1}/2 [00:03<00:00,  1.67s/it, pg={2}, rm=0.5, glen=126, act_lr=1e-6]"
FIRST_BARS = f"{BAR.format(50, 1, 0.5)}\r{BAR.format(100, 2, 0.25)}\r{BAR.format(100, 2, 0.25)}"
LAST_BARS = f"{BAR.format(50, 1, 0.5)}\n{BAR.format(100, 2, 0.125)}\n{BAR.format(100, 2, 0.125)}"
SWIFT = {"loss": 2.0, "grad_norm": 1.5, "learning_rate": 1e-4, "memory(GiB)": 9.1, "elapsed_time": "3s"}
FACTORY = {"current_steps": 5, "total_steps": 20, "loss": 2.0, "lr": 1e-5, "epoch": 0.1, "elapsed_time": "0:00:10"}

LOGS: dict[str, Log] = {
    "torchtune's DiskLogger": Log(
        "log_1700000000.txt",
        "Step 1 | loss:2.5 lr:0.0003 tokens_per_second_per_gpu:812.5 \n"
        "Step 2 | loss:1.25 lr:0.00015 grad_norm:0.5 \nStep 2 | val_loss:1.5 \n",
        trained=[(1, 2.5, 3e-4), (2, 1.25, 1.5e-4)],
        held=[(2, "val", 1.5)],
        extras=[{"tokens_per_second_per_gpu": 812.5}, {}],
        norms=[None, 0.5],
        kind="text",
    ),
    "a loop's own lines, behind a logger's time and level": Log(
        "train.log",
        "learning_rate: 0.0003, steps: 1000\nAt step 5 loss 9.0 was seen\nSaved at step 7, loss 9.0\n"
        "2024-01-15 10:30:45,123 - INFO - step 10/1,000 | loss: 2.5 | lr 6.00e-04 | dt: 300.0ms | tok/sec: 1,200\n"
        "[2024-01-15 10:30:46][train.py:42] step 20/1000, loss=tensor(1.5, device='cuda:0'), avg val loss = 1.75\n"
        "INFO:__main__:step 30 loss nan (best) eta 0:10:30 lr 1e-4\n[Valid] step 30 | loss 1.625 | ppl 5\n",
        trained=[(10, 2.5, 6e-4), (20, 1.5, None), (30, "NaN", 1e-4)],
        held=[(20, "val", 1.75), (30, "valid", 1.625, 5)],
        extras=[{"dt": 300.0, "tok/sec": 1200}, {}, {}],
        planned=1000,
        kind="text",
    ),
    "nanoGPT's lines, whose train loss is of an evaluation": Log(
        "out.txt",
        "step 0: train loss 4.25, val loss 4.5\niter 0: loss 4.125, time 90.5ms, mfu -100.00%\n"
        "iter 10: loss 3.25, time 7.5ms, mfu 0.49%\n",
        trained=[(0, 4.125, None), (10, 3.25, None)],
        held=[(0, "val", 4.5)],
        extras=[{"time": 90.5, "mfu": -100.0}, {"time": 7.5, "mfu": 0.49}],
    ),
    "a step that begins anew in each epoch of 40": Log(
        "train.log",
        "Epoch [1/3], Step [20/40], Loss: 2.5\nEpoch [1/3], Step [40/40], Loss: 2.25 (2.375)\n"
        "Epoch 1 | train loss 2.375 | val loss 2.75\nEpoch [2/3], Step [20/40], Loss: 2.0\n",
        trained=[(20, 2.5, None), (40, 2.25, None), (60, 2.0, None)],
        held=[(40, "val", 2.75)],
        planned=120,
    ),
    "a step of the whole run below the epoch's own line": Log(
        "train.log",
        "=== Epoch 0/2 ===\n[Step 100/1772] Loss: 1.5\n=== Epoch 1/2 ===\n[Step 900/1772] Loss: 1.25\n",
        trained=[(100, 1.5, None), (900, 1.25, None)],
    ),
    "a line for each epoch": Log(
        "train.log",
        "EPOCH 1/3, train_loss: 2.5, val_loss: 2.75\nEPOCH 2/3, train_loss: 2.25, val_loss: 2.5\n",
        trained=[(1, 2.5, None), (2, 2.25, None)],
        held=[(1, "val", 2.75), (2, "val", 2.5)],
        says="steps are counted in epochs",
        planned=3,
    ),
    "prime-rl's orchestrator, in loguru's colours": Log(
        "orchestrator.log",
        "\x1b[2m10:31:02\x1b[0m \x1b[1mSUCCESS\x1b[0m Step 3 | Time: 35.70s | Reward: 0.8529 | Seq. Length: 1455.6 "
        "tokens/sample | Max. Off-Policy Level: 1\n"
        "10:31:40 DEBUG Micro Step 0/4 | Loss: 9.0000 | Entropy: 0.2105\n"
        "10:31:42 SUCCESS Step 4 | Time: 36.00s | Reward: 0.9 | Seq. Length: 1400.0 tokens/sample\n",
        trained=[(3, None, None), (4, None, None)],
        extras=[{"reward": 0.8529, "seq_len/mean": 1455.6}, {"reward": 0.9, "seq_len/mean": 1400.0}],
    ),
    "prime-rl's trainer": Log(
        "trainer.log",
        "10:31:42 SUCCESS Step 0 | Time: 348.53s | Loss: 0.0019 | Entropy: 0.2105 | Mismatch KL: 0.0006 | Grad. Norm: "
        "0.0680 | LR: 1.00e-06 | Throughput: 1859 tokens/s | MFU: 3.1% | Peak Mem.: 70.1 GiB\n",
        trained=[(0, 0.0019, 1e-6)],
        extras=[{"entropy/mean": 0.2105, "mismatch_kl/mean": 0.0006}],
        norms=[0.068],
    ),
    "NeMo-RL's blocks below the line of a step": Log(
        "ray-driver.log",
        f"  {DOT} Loss: 7.0000\n"  # of no step
        f"{SIGN} Step 1/20 {SIGN}\n\u25b6 Generating responses for batch of size 1024...\n  {DOT} Loss: -0.0012\n"
        f"  {DOT} Generation KL Error: 0.0010\n  {DOT} Avg Reward: 0.1000\n  {DOT} Mean Generation Length: 201.2197\n"
        f"  {DOT} Total step time: 35.70s\n{SIGN} Step 2/20 {SIGN}\n    {DOT} Accuracy: 0.2500\n  {DOT} Loss: 0.0003",
        trained=[(1, -0.0012, None), *[(1, None, None)] * 3, (2, 0.0003, None)],
        held=[(2, "validation", 0.25)],
        extras=[{}, {"gen_kl_error": 0.001}, {"reward": 0.1}, {"mean_gen_tokens_per_sample": 201.2197}, {}],
        planned=20,
    ),
    "MLX-LM's sentences": Log(
        "train.log",
        "Loading pretrained model\nStarting training..., iters: 20\nIter 1: Val loss 3.012, Val took 1.234s\n"
        "Iter 10: Train loss 2.100, Learning Rate 1.000e-05, It/sec 0.5, Tokens/sec 100.1, Trained Tokens 2000, "
        "Peak mem 4.1 GB\nIter 20: Saved adapter weights to adapters/a.safetensors\n"
        "Iter 20: Train loss nan, Learning Rate 5.000e-06, It/sec 0.5\n",
        trained=[(10, 2.1, 1e-5), (20, "NaN", 5e-6)],
        held=[(1, "val", 3.012)],
        extras=[{"It/sec": 0.5, "Tokens/sec": 100.1, "Trained Tokens": 2000, "Peak mem": 4.1}, {"It/sec": 0.5}],
    ),
    "Megatron's iterations, behind some 40 KB of arguments": Log(
        "slurm.out",
        f"using world size: 1\n{ARGUMENT * 1000}"
        " [2024-01-01 10:00:00] iteration       10/      20 | consumed samples:          320 | "
        "elapsed time per iteration (ms): 1000.0 | learning rate: 1.500000E-04 | global batch size:    32 | "
        "lm loss: 1.000000E+00 | loss scale: 1.0 | grad norm: 0.750 | number of nan iterations:   0 |\n"
        " validation loss at iteration 10 | lm loss value: 1.500000E+00 | lm loss PPL: 4.500000E+00 | \n"
        " iteration       20/      20 | learning rate: 5.0E-05 | lm loss: 5.000000E-01 | grad norm: 0.5 |\n",
        trained=[(10, 1.0, 1.5e-4), (20, 0.5, 5e-5)],
        held=[(10, "val", 1.5, 4.5)],
        norms=[0.75, 0.5],
        ended="ok",  # of 20 planned
    ),
    "NeMo's iterations": Log(
        "nemo.log",
        "Training epoch 0, iteration 3/99 | lr: 0.0005 | global_batch_size: 8 | global_step: 4 | "
        "reduced_train_loss: 11.5 | val_loss: 9.5\n",
        trained=[(4, 11.5, 5e-4)],
        held=[(4, "val", 9.5)],
    ),
    "verl's console below Ray, which colours its prefix": Log(
        "train.log",
        "(TaskRunner pid=7) step:0 - val-core/gsm8k/reward/mean@1:0.05 - val-aux/gsm8k/reward/std@2:0.1\n"
        "Training Progress:   1%|          | 1/140 [00:49<1:53:43, 49.09s/it]\n"
        "\x1b[36m(TaskRunner pid=7, ip=10.0.0.1)\x1b[0m step:1 - actor/entropy:0.5 - actor/pg_loss:-0.25 - "
        "actor/grad_norm:0.75 - actor/lr:1e-06 - training/global_step:9 - critic/rewards/mean:np.float64(0.125)\n"
        "step:2 - actor/pg_loss:nan - actor/lr(1e-4):0.020 - val-core/gsm8k/reward/mean@1:0.2\n"
        "(main_task pid=7) step:3 - critic/kl:0.209 - actor/pg_loss:0.005 - actor/lr:0.000\n",  # rounded: no rate of 0
        trained=[(1, -0.25, 1e-6), (2, "NaN", pytest.approx(2e-6)), (3, 0.005, None)],
        held=[(0, "eval"), (2, "eval")],
        extras=[
            {"actor/entropy": 0.5, "training/global_step": 9, "critic/rewards/mean": 0.125},
            {},
            {"critic/kl": 0.209},
        ],
        measured=[{"gsm8k/reward/mean@1": 0.05, "gsm8k/reward/std@2": 0.1}, {"gsm8k/reward/mean@1": 0.2}],
    ),
    "OpenRLHF's status": Log(
        "train.log",
        deepspeed("step=100, skipped=0, lr=[5e-06], mom=[(0.9, 0.95)]")  # of its own engine's steps
        + "(PPOTrainer pid=9) "
        + openrlhf(
            "\u2728 Global step 1: {'response_length': 40.5, 'policy_loss': 0.5, 'reward': 0.25, 'kl': 0.0, "
            "'actor_lr': 5e-07}"
        )
        + openrlhf("\u2728 Evaluation completed in 0:01:02, global_step 1, eval_metrics: {'eval_math_pass1': 0.5}")
        + "(PPOTrainer pid=9) ppo_trainer.py:547] "  # as Ray shows it where the logger is another's
        + "Global step 2: {'response_length': 49.5, 'policy_loss': nan, 'reward': np.float64(0.75)}\n"
        + openrlhf("Eval at step 2: {'eval_math_pass1': 0.25}"),
        trained=[(1, 0.5, 5e-7), (2, "NaN", None)],
        held=[(1, "eval"), (2, "eval")],
        extras=[{"response_length": 40.5, "reward": 0.25, "kl": 0.0}, {"response_length": 49.5, "reward": 0.75}],
        measured=[{"math_pass1": 0.5}, {"math_pass1": 0.25}],
    ),
    "DeepSpeed's pipelines": Log(
        "train.log",
        deepspeed("step=10, skipped=0, lr=[0.0001], mom=[(0.9, 0.95)]")
        + "steps: 10 loss: 2.5000 aux: 0.2500 iter time (s): 0.500 samples/sec: 16.000\n",
        trained=[(10, None, 1e-4), (10, 2.5, None)],
        extras=[{"skipped_steps": 0}, {"aux": 0.25, "seconds_per_step": 0.5, "samples_per_second": 16.0}],
    ),
    "OpenRLHF's bars, each counted at its end, which is drawn twice": Log(
        "train.log",
        f"Train epoch [1/1]:   0%|      | 0/2 [00:00<?, ?it/s]\r{FIRST_BARS}\n{LAST_BARS}\n",
        trained=[(1, 0.25, 1e-6), (2, 0.125, 1e-6)],
        extras=[{"reward": 0.5, "response_length": 126}] * 2,
    ),
    "MMEngine's iterations; XTuner trains with it": Log(
        "20240504_085111.log",
        "05/04 08:52:12 - mmengine - INFO - Checkpoints will be saved to here.\n"
        "05/04 08:52:15 - mmengine - INFO - Iter(train) [  10/20]  lr: 3.25e-05  eta: 0:11:00  time: 0.3  loss: 2.5\n"
        "2025/02/09 07:49:32 - mmengine - INFO - Iter(train) [  20/20]  lr: 6.5e-05  eta: 18 days, 16:13:38  "
        "memory: 10081  loss: 1.25  grad_norm: 4.5\n"
        "05/04 08:53:00 - mmengine - INFO - Iter(val) [11/11]    mIoU: 50.5  data_time: 0.0040  time: 0.1462\n",
        trained=[(10, 2.5, 3.25e-5), (20, 1.25, 6.5e-5)],
        held=[(20, "eval")],
        extras=[{}, {}],
        measured=[{"mIoU": 50.5}],
        norms=[None, 4.5],
        ended="ok",
    ),
    "MMEngine's epochs": Log(
        "20240504_085111.log",
        "05/04 08:52:15 - mmengine - INFO - Epoch(train)  [2][ 50/100]  lr: 1.0000e-05  loss: 0.5\n",
        trained=[(150, 0.5, 1e-5)],
    ),
    "W&B's export counts the Trainer's steps, not its own rows": Log(
        "export.csv",
        "_step,_timestamp,train/global_step,train/loss,train/learning_rate,eval/loss\n"
        "0,1700000000,10,2.0,1e-4,\n1,1700000001,10,,,1.9\n2,1700000002,20,1.5,5e-5,\n3,1700000003,20,,,1.4\n",
        trained=[(10, 2.0, 1e-4), (20, 1.5, 5e-5)],
        held=[(10, "eval", 1.9), (20, "eval", 1.4)],
    ),
    "a table of NeMo": Log(
        "log.csv", "global_step,reduced_train_loss,lr,val_loss\n5,1.25,3e-4,1.5\n", [(5, 1.25, 3e-4)], [(5, "val", 1.5)]
    ),
    "a table of Megatron": Log(
        "log.csv",
        "iteration,lm loss,learning-rate,lm loss validation\n5,1.25,3e-4,1.5\n",
        [(5, 1.25, 3e-4)],
        [(5, "val", 1.5)],
    ),
    "Keras' CSVLogger counts epochs": Log(
        "training.csv",
        "epoch,accuracy,loss,val_accuracy,val_loss\n0,0.5,2.0,0.5,2.1\n1,0.75,1.0,0.25,1.2\n",
        trained=[(0, 2.0, None), (1, 1.0, None)],
        held=[(0, "val", 2.1, 0.5), (1, "val", 1.2, 0.25)],
        says="step=epoch",
    ),
    "LLaMA-Factory's v0": Log(
        "trainer_log.jsonl",
        lines(
            FACTORY,
            {"current_steps": 10, "total_steps": 20, "eval_loss": 1.9, "epoch": 0.2, "percentage": 50.0},
            {**FACTORY, "current_steps": 15, "loss": 1.8, "lr": 5e-6, "remaining_time": "0:00:05"},
        ),
        trained=[(5, 2.0, 1e-5), (15, 1.8, 5e-6)],
        held=[(10, "eval", 1.9)],
        extras=[{"elapsed_time": "0:00:10"}] * 2,
        kind="llama-factory",
        ended="unknown: the source ends before its 20 planned steps",
    ),
    "LLaMA-Factory's v1": Log(
        "trainer_log.jsonl",
        lines(*({"loss": 2 / s, "grad_norm": 1.0, "learning_rate": 1e-5, "step": s, "total_steps": 2} for s in (1, 2))),
        trained=[(1, 2.0, 1e-5), (2, 1.0, 1e-5)],
        norms=[1.0, 1.0],
        kind="llama-factory",
        ended="ok",
    ),
    "a bare NaN": Log(
        "trainer_log.jsonl",
        '{"current_steps": 5, "total_steps": 20, "loss": NaN, "lr": Infinity}\n',
        trained=[(5, "NaN", "Infinity")],
    ),
    "ms-swift has its step in a text, and a last line that repeats the history": Log(
        "logging.jsonl",
        lines(
            {**SWIFT, PLACE: "1/12"},
            {"eval_loss": 1.9, "eval_runtime": 2.0, "eval_samples_per_second": 5.0, "epoch": 1.0, PLACE: "12/12"},
            {"train_runtime": 40.0, "total_flos": 1e12, "train_loss": 1.95, PLACE: "12/12"},
            {"best_metric": 1.9, "global_step": 12, "log_history": [{"loss": 2.0, "step": 1}] * 3000},  # over 64 KB
        ),
        trained=[(1, 2.0, 1e-4)],
        held=[(12, "eval", 1.9)],
        extras=[{"memory(GiB)": 9.1, "elapsed_time": "3s"}],
        norms=[1.5],
        kind="ms-swift",
        planned=12,
        ended="ok: the source has the summary of a finished run",
        says="line 4 repeats the whole history and was not read",
    ),
    "verl's file log is a table of its data": Log(
        "log.jsonl",
        lines(
            {"step": 1, "data": {"actor/pg_loss": 0.5, "critic/rewards/mean": 0.25, "actor/lr": 1e-6}},
            {"step": 2, "data": {"val-core/a/acc/mean@1": 0.75}},
        ),
        trained=[(1, 0.5, 1e-6)],
        held=[(2, "eval")],
        extras=[{"critic/rewards/mean": 0.25}],
        measured=[{"a/acc/mean@1": 0.75}],
        kind="table",
    ),
    "`data` beside other keys is a column like any other": Log(
        "other.jsonl",
        lines({"step": 1, "loss": 1.0, "data": {"loss": 2.0}}),
        [(1, 1.0, None)],
        [],
        [{"data.loss": 2.0}],
    ),
    "`val/` is of the value function in TRL's PPO": Log(
        "ppo.jsonl",
        lines({"step": 1, "loss/policy_avg": 0.5, "val/ratio": 1.0, "val/num_eos_tokens": 3, "lr": 1e-6}),
        trained=[(1, None, 1e-6)],
        extras=[{"loss/policy_avg": 0.5, "val/ratio": 1.0, "val/num_eos_tokens": 3}],
    ),
}


@every("name", LOGS)
def test_a_programs_log_says(name, tmp_path, import_events):
    log = LOGS[name]
    (tmp_path / log.name).write_text(log.text, encoding="utf-8", newline="")
    events, imported = import_events(tmp_path)
    rows, evals = events.of("train_step"), events.of("eval")
    assert [(row.step, row.loss, row.lr) for row in rows] == [*log.trained]
    metrics = [(each.metrics.loss, each.metrics.ppl, each.metrics.accuracy) for each in evals]
    found = zip(evals, metrics, strict=True)
    assert [(each.step, each.split, *(v for v in known if v is not None)) for each, known in found] == [*log.held]
    assert log.extras is None or [row.extras for row in rows] == log.extras
    assert log.measured is None or [each.metrics.extras for each in evals] == log.measured
    assert log.norms is None or [row.grad_norm for row in rows] == log.norms
    assert log.kind in {None, imported.format}
    assert log.planned in {None, events.start.config.training.max_steps}
    assert f"{events.end.status}: {events.end.reason}".startswith(log.ended or "")
    assert log.says is None or any(log.says in note for note in imported.notes)
    assert imported.skipped == []


def test_deepspeeds_report_of_its_rates_alone_is_no_run(tmp_path, import_events):
    (tmp_path / "train.log").write_text(deepspeed("step=20, skipped=1, lr=[5e-05], mom=[[0.9, 0.999]]"))
    with pytest.raises(RecorderError, match="no column is a loss or an evaluation"):
        import_events(tmp_path)


@every(
    ("text", "says"),
    [
        (
            "[epoch 0 iter 10] loss=2.5\n[epoch 1 iter 10] loss=2.25\n",
            "the step begins anew in each epoch, and no line says how many an epoch has",
        ),
        ("epoch 1 loss=2.5\nepoch 1 loss=2.25\n", "an epoch has several losses, and no line names its step"),
        ("step 10 loss 2.5\n", "no format known here"),  # one line is no log
        ("Train Epoch: 1 [0/600 (0%)]\tLoss: 2.5\nTrain Epoch: 1 [64/600 (1%)]\tLoss: 2.25\n", "no format known here"),
        ("At step 1, loss 2.5\nIn step 2, loss 2.25\n[Best] step 2 loss 2.25\n", "no format known here"),
        ("step 1 has a loss 2.5\nstep 2 loss 2.25, saved to out-2\nstep 1.5 loss 2.5\n", "no format known here"),
    ],
)
def test_a_loops_lines_of_which_no_step_can_be_told_and_chatter_are_refused(text, says, tmp_path, import_events):
    (tmp_path / "train.log").write_text(text)
    with pytest.raises(RecorderError, match=says):
        import_events(tmp_path / "train.log")


def test_a_loops_line_that_says_more_is_listed_as_skipped(tmp_path, import_events):
    path = tmp_path / "train.log"
    more = "step 30 loss 2.125, saved to out-30\nstep 40 with a loss 2.0\nval step 5 loss 9.0\nepoch 1 loss 2.0\n"
    path.write_text(f"epoch 1/3 step 10/40 loss 2.5\nstep 20/40 loss 2.25\n{more}")
    events, imported = import_events(path)
    assert events.losses == [2.5, 2.25]
    assert events.start.config.training.max_steps is None  # 40 may be of an epoch or of the whole run
    assert events.of("eval") == []
    assert [(bad.line, bad.reason) for bad in imported.skipped] == [
        (3, "more than names and their numbers"),
        (4, "more than names and their numbers"),
        (5, "a step before the one above: of an evaluation's own count?"),
        (6, "no step in it"),
    ]


def test_lines_that_are_no_rows_are_counted_by_number(tmp_path, import_events):
    rows = [json.dumps(FACTORY), "{broken", "", json.dumps({**FACTORY, "current_steps": None}), "[1]", '{"current_st']
    path = tmp_path / "trainer_log.jsonl"
    path.write_text("\n".join(rows))
    _, imported = import_events(path)
    assert [bad.line for bad in imported.skipped] == [2, 4, 5, 6]
    assert imported.skipped[-1].reason.startswith("cut off while being written")


def test_a_log_of_lines_is_of_the_program_that_wrote_most_of_them(tmp_path, import_events):
    swift = {**SWIFT, PLACE: "1/9"}
    for rows, kind in (((swift, FACTORY, FACTORY), "llama-factory"), ((FACTORY, swift, swift), "ms-swift")):
        (tmp_path / "log.jsonl").write_text(lines(*rows))
        assert import_events(tmp_path)[1].format == kind


def test_tinkers_rows_have_rewards_groups_and_the_samplers_kl(tmp_path, import_events):
    """The keys are those of tinker_cookbook's metrics.jsonl: no loss of the policy, and evaluations in the same row."""
    usual = {
        "optim/lr": 4e-05, "env/all/ac_tokens_per_turn": 3725.0, "env/all/by_group/frac_mixed": 0.25,
        "optim/entropy": 0.46, "optim/kl_sample_train_v1": 0.0009, "optim/kl_sample_train_v2": 0.02,
        "time/total": 752.8,
    }  # fmt: skip
    rows = [{"step": n, "progress/batch": n, "env/all/reward/total": 0.5 + 0.01 * n, **usual} for n in range(30)]
    rows[0] |= {"test/env/all/reward/total": 0.61, "test/env/all/ac_tokens_per_turn": 3513.65}
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(*rows))
    events, _ = import_events(path)
    assert events.of("train_step")[1].lr == 4e-5
    assert (events.of("eval")[0].split, events.of("eval")[0].metrics.extras["reward"]) == ("test", 0.61)
    found = {finding.id: finding.severity for finding in monitor_run(path).findings}
    assert found == {"SMP196": "warning", "ZVR123": "info"}  # and nothing of a loss that was not logged


@every(("period", "frequency", "steps"), [("epoch", 1, (1, 2)), ("step", 50, (50, 100))])
@pytest.mark.parametrize("indent", [4, None])
def test_ludwigs_statistics(tmp_path, import_events, period, frequency, steps, indent):
    """The layout is that of ludwig.api.TrainingStats, written by save_json."""
    document = {
        "evaluation_frequency": {"frequency": frequency, "period": period},
        "training": {"combined": {"loss": [2.0, 1.0]}, "out": {"loss": [2.0, 1.0], "perplexity": [7.0, 2.5]}},
        "validation": {"combined": {"loss": [2.25, [2, 100, 1.25]]}, "out": {}},
        "test": {},
    }
    (tmp_path / "training_statistics.json").write_text(json.dumps(document, indent=indent, sort_keys=True))
    events, imported = import_events(tmp_path)
    assert imported.format == "ludwig"
    assert [(e.step, e.loss) for e in events.of("train_step")] == list(zip(steps, (2.0, 1.0), strict=True))
    assert [(e.step, e.metrics.loss) for e in events.of("eval")] == list(zip(steps, (2.25, 1.25), strict=True))


@pytest.mark.oracle("mlx")
def test_mlx_lms_table_as_mlx_lm_prints_it(tmp_path, import_events):
    mx, nn, optim = (import_module(f"mlx.{name}") for name in ("core", "nn", "optimizers"))
    trainer = import_module("mlx_lm.tuner.trainer")
    model = nn.Sequential(nn.Embedding(16, 4), nn.Linear(4, 16))
    data = [([1, 2, 3, 4, 5, 6], 0)] * 4
    seen = {}

    class Noted(trainer.TrainingCallback):
        def on_train_loss_report(self, train_info):
            seen[train_info["iteration"]] = train_info["train_loss"]

        def on_val_loss_report(self, val_info):
            seen["val", val_info["iteration"] + 1] = val_info["val_loss"]

    args = trainer.TrainingArgs(
        batch_size=2, iters=6, val_batches=1, steps_per_report=2, steps_per_eval=4, steps_per_save=100,
        max_seq_length=32, adapter_file=str(tmp_path / "adapters.safetensors"),
    )  # fmt: skip
    mx.random.seed(0)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        trainer.train(model, optim.Adam(1e-2), data, data, args, training_callback=Noted())
    (tmp_path / "train.log").write_text(said.getvalue(), encoding="utf-8")
    events, _ = import_events(tmp_path / "train.log")
    assert events.losses == [pytest.approx(seen[step], abs=6e-4) for step in (2, 4, 6)]
    held = {e.step: e.metrics.loss for e in events.of("eval")}
    assert held == {step: pytest.approx(seen["val", step], abs=6e-4) for step in (1, 4, 6)}


@pytest.mark.oracle("lightning")
def test_lightnings_learning_rates_join_the_loss_of_their_step(tmp_path, import_events):
    torch, lightning = pytest.importorskip("torch"), import_module("lightning.pytorch")
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import CSVLogger

    class Line(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch, _):
            loss = self.layer(batch[0]).square().mean()
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, _):
            self.log("val_loss", self.layer(batch[0]).square().mean())

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), "interval": "step"}]

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 2)), batch_size=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            max_epochs=1, logger=CSVLogger(tmp_path, name="csv", version=0), log_every_n_steps=2, accelerator="cpu",
            callbacks=[LearningRateMonitor("step")], enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Line(), data, data)  # fmt: skip
    events, _ = import_events(tmp_path / "csv" / "version_0" / "metrics.csv")
    assert [(e.step, e.lr) for e in events.of("train_step")] == [(1, 5e-3), (3, 1.25e-3)]
    assert all(isinstance(loss, float) for loss in events.losses)
    assert [(e.step, e.split) for e in events.of("eval")] == [(3, "val")]


def test_prose_is_no_log_and_aim_is_refused_with_what_to_export(tmp_path, import_events):
    path = tmp_path / "notes.txt"
    path.write_text("Step one | of: two\nIter: 10\n10 2.1\niteration 10 of 20\n")
    with pytest.raises(RecorderError, match="no format known here"):
        import_events(path)
    with pytest.raises(RecorderError, match="no line is a step"):
        import_events(path, kind="text")
    (tmp_path / "repo" / ".aim").mkdir(parents=True)
    with pytest.raises(RecorderError, match="Aim repository") as caught:
        import_events(tmp_path / "repo")
    assert "CSV" in caught.value.advice
