"""Logs that trainers print, and Ludwig's statistics: values by step."""

from __future__ import annotations

import contextlib
import io
import json

import pytest

from gradience.errors import RecorderError


def trained(events):
    return [(e.step, e.loss, e.lr) for e in events.of("train_step")]


def held(events):
    return [(e.step, e.split, e.metrics.loss) for e in events.of("eval")]


def test_torchtune_s_disk_logger(tmp_path, import_events):
    """The lines are as torchtune.training.metric_logging.DiskLogger.log_dict writes them: it does not install here."""
    path = tmp_path / "log_1700000000.txt"
    path.write_text(
        "Step 1 | loss:2.5 lr:0.0003 tokens_per_second_per_gpu:812.5 \n"
        "Step 2 | loss:1.25 lr:0.00015 grad_norm:0.5 \n"
        "Step 2 | val_loss:1.5 \n"
    )
    events, imported = import_events(tmp_path)
    assert imported.format == "text"
    assert trained(events) == [(1, 2.5, 3e-4), (2, 1.25, 1.5e-4)]
    assert events.of("train_step")[1].grad_norm == 0.5
    assert events.of("train_step")[0].extras["tokens_per_second_per_gpu"] == 812.5
    assert held(events) == [(2, "val", 1.5)]


def test_prime_rl_s_steps_of_both_programs(tmp_path, import_events):
    """The lines are as its orchestrator and its trainer write them, with loguru's colours."""
    (tmp_path / "orchestrator.log").write_text(
        "\x1b[2m10:31:02\x1b[0m \x1b[1mSUCCESS\x1b[0m Step 3 | Time: 35.70s | Reward: 0.8529 | Seq. Length: 1455.6 "
        "tokens/sample | Max. Off-Policy Level: 1\n"
        "10:31:40 DEBUG Micro Step 0/4 | Loss: 9.0000 | Entropy: 0.2105\n"
        "10:31:42 SUCCESS Step 4 | Time: 36.00s | Reward: 0.9 | Seq. Length: 1400.0 tokens/sample\n"
    )
    events, _ = import_events(tmp_path / "orchestrator.log")
    assert [(e.step, e.extras) for e in events.of("train_step")] == [
        (3, {"reward": 0.8529, "seq_len/mean": 1455.6}),
        (4, {"reward": 0.9, "seq_len/mean": 1400.0}),
    ]
    (tmp_path / "trainer.log").write_text(
        "10:31:42 SUCCESS Step 0 | Time: 348.53s | Loss: 0.0019 | Entropy: 0.2105 | Mismatch KL: 0.0006 | Grad. Norm: "
        "0.0680 | LR: 1.00e-06 | Throughput: 1859 tokens/s | MFU: 3.1% | Peak Mem.: 70.1 GiB\n"
    )
    events, _ = import_events(tmp_path / "trainer.log")
    assert trained(events) == [(0, 0.0019, 1e-6)]
    assert events.of("train_step")[0].grad_norm == 0.068
    assert events.of("train_step")[0].extras == {"entropy/mean": 0.2105, "mismatch_kl/mean": 0.0006}


def test_nemo_rl_s_blocks_below_the_line_of_a_step(tmp_path, import_events):
    """The lines are as nemo_rl.algorithms.grpo prints them."""
    sign, dot = "=" * 25, "\u2022"
    lines = [
        f"  {dot} Loss: 7.0000",  # of no step
        f"{sign} Step 1/20 {sign}",
        "\u25b6 Generating responses for batch of size 1024...",
        f"  {dot} Loss: -0.0012",
        f"  {dot} Generation KL Error: 0.0010",
        f"  {dot} Avg Reward: 0.1000",
        f"  {dot} Mean Generation Length: 201.2197",
        f"  {dot} Total step time: 35.70s",
        f"{sign} Step 2/20 {sign}",
        f"    {dot} Accuracy: 0.2500",
        f"  {dot} Loss: 0.0003",
    ]
    path = tmp_path / "ray-driver.log"
    path.write_text("\n".join(lines), encoding="utf-8")
    events, imported = import_events(path)
    assert imported.format == "text"
    rows = events.of("train_step")
    assert [(e.step, e.loss) for e in rows if e.loss is not None] == [(1, -0.0012), (2, 0.0003)]
    assert {name: value for e in rows if e.step == 1 for name, value in e.extras.items()} == {
        "gen_kl_error": 0.001,
        "reward": 0.1,
        "mean_gen_tokens_per_sample": 201.2197,
    }
    assert [(e.step, e.metrics.accuracy) for e in events.of("eval")] == [(2, 0.25)]
    assert events.start.config.training.max_steps == 20


def test_mlx_lm_s_sentences(tmp_path, import_events):
    """The sentences are those of mlx_lm.tuner.trainer before it drew a table."""
    path = tmp_path / "train.log"
    path.write_text(
        "Loading pretrained model\nStarting training..., iters: 20\n"
        "Iter 1: Val loss 3.012, Val took 1.234s\n"
        "Iter 10: Train loss 2.100, Learning Rate 1.000e-05, It/sec 0.5, Tokens/sec 100.1, Trained Tokens 2000, "
        "Peak mem 4.1 GB\n"
        "Iter 20: Saved adapter weights to adapters/a.safetensors\n"
        "Iter 20: Train loss nan, Learning Rate 5.000e-06, It/sec 0.5\n"
    )
    events, _ = import_events(path)
    assert trained(events) == [(10, 2.1, 1e-5), (20, "NaN", 5e-6)]
    assert held(events) == [(1, "val", 3.012)]
    assert events.of("train_step")[0].extras["Trained Tokens"] == 2000


def test_mlx_lm_s_table_as_mlx_lm_prints_it(tmp_path, import_events):
    mx, nn, optim = (pytest.importorskip(f"mlx.{name}") for name in ("core", "nn", "optimizers"))
    trainer = pytest.importorskip("mlx_lm.tuner.trainer")
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
    path = tmp_path / "train.log"
    path.write_text(said.getvalue(), encoding="utf-8")
    events, _ = import_events(path)
    assert events.steps == [2, 4, 6]
    assert events.losses == [pytest.approx(seen[step], abs=6e-4) for step in (2, 4, 6)]
    assert held(events) == [(step, "val", pytest.approx(seen["val", step], abs=6e-4)) for step in (1, 4, 6)]


def test_megatron_s_iterations(tmp_path, import_events):
    """The lines are as megatron.training.training_log and evaluate_and_print_results print them."""
    path = tmp_path / "slurm.out"
    path.write_text(
        "using world size: 1\n" + "  arguments ........................ 1\n" * 1000 +
        " [2024-01-01 10:00:00] iteration       10/      20 | consumed samples:          320 | "
        "elapsed time per iteration (ms): 1000.0 | learning rate: 1.500000E-04 | global batch size:    32 | "
        "lm loss: 1.000000E+00 | loss scale: 1.0 | grad norm: 0.750 | number of nan iterations:   0 |\n"
        " validation loss at iteration 10 | lm loss value: 1.500000E+00 | lm loss PPL: 4.500000E+00 | \n"
        " iteration       20/      20 | learning rate: 5.0E-05 | lm loss: 5.000000E-01 | grad norm: 0.5 |\n"
    )  # fmt: skip
    events, _ = import_events(path)
    assert trained(events) == [(10, 1.0, 1.5e-4), (20, 0.5, 5e-5)]
    assert [e.grad_norm for e in events.of("train_step")] == [0.75, 0.5]
    assert [(e.step, e.metrics.loss, e.metrics.ppl) for e in events.of("eval")] == [(10, 1.5, 4.5)]
    assert events.end.status == "ok"  # of 20 planned


@pytest.mark.parametrize(("period", "every", "steps"), [("epoch", 1, [1, 2]), ("step", 50, [50, 100])])
@pytest.mark.parametrize("indent", [4, None])
def test_ludwig_s_statistics(tmp_path, import_events, period, every, steps, indent):
    """The layout is that of ludwig.api.TrainingStats, written by save_json."""
    document = {
        "evaluation_frequency": {"frequency": every, "period": period},
        "training": {"combined": {"loss": [2.0, 1.0]}, "out": {"loss": [2.0, 1.0], "perplexity": [7.0, 2.5]}},
        "validation": {"combined": {"loss": [2.25, [2, 100, 1.25]]}, "out": {}},
        "test": {},
    }
    path = tmp_path / "training_statistics.json"
    path.write_text(json.dumps(document, indent=indent, sort_keys=True))
    events, imported = import_events(tmp_path)
    assert imported.format == "ludwig"
    assert trained(events) == [(step, loss, None) for step, loss in zip(steps, (2.0, 1.0), strict=True)]
    assert held(events) == [(step, "val", loss) for step, loss in zip(steps, (2.25, 1.25), strict=True)]


def test_prose_is_no_log(tmp_path, import_events):
    path = tmp_path / "notes.txt"
    path.write_text("Step one | of: two\nIter: 10\n10 2.1\niteration 10 of 20\n")
    with pytest.raises(RecorderError, match="no format known here"):
        import_events(path)
    with pytest.raises(RecorderError, match="no line is a step"):
        import_events(path, kind="text")


def test_an_aim_repository_is_refused_with_what_to_export(tmp_path, import_events):
    (tmp_path / ".aim").mkdir()
    with pytest.raises(RecorderError, match="Aim repository") as caught:
        import_events(tmp_path)
    assert "CSV" in caught.value.advice


def test_verl_s_console(tmp_path, import_events):
    """The lines are as verl.utils.logger prints them below Ray, which colours its prefix."""
    path = tmp_path / "train.log"
    path.write_text(
        "(TaskRunner pid=7) step:0 - val-core/gsm8k/reward/mean@1:0.05 - val-aux/gsm8k/reward/std@2:0.1\n"
        "Training Progress:   1%|          | 1/140 [00:49<1:53:43, 49.09s/it]\n"
        "\x1b[36m(TaskRunner pid=7, ip=10.0.0.1)\x1b[0m step:1 - actor/entropy:0.5 - actor/pg_loss:-0.25 - "
        "actor/grad_norm:0.75 - actor/lr:1e-06 - training/global_step:9 - critic/rewards/mean:np.float64(0.125)\n"
        "step:2 - actor/entropy:0.25 - actor/pg_loss:nan - actor/lr(1e-4):0.020 - critic/rewards/mean:0.5 - "
        "val-core/gsm8k/reward/mean@1:0.2\n"
        "(main_task pid=7) step:3 - critic/kl:0.209 - actor/pg_loss:0.005 - actor/lr:0.000\n"  # rounded: no rate of 0
    )
    events, _ = import_events(path)
    assert trained(events) == [(1, -0.25, 1e-6), (2, "NaN", pytest.approx(2e-6)), (3, 0.005, None)]
    first, second, _ = (row.extras for row in events.of("train_step"))
    assert (first["actor/entropy"], first["critic/rewards/mean"], second["critic/rewards/mean"]) == (0.5, 0.125, 0.5)
    assert [(e.step, e.split, e.metrics.extras["gsm8k/reward/mean@1"]) for e in events.of("eval")] == [
        (0, "eval", 0.05),
        (2, "eval", 0.2),
    ]


def test_openrlhf_s_status(tmp_path, import_events):
    path = tmp_path / "train.log"
    path.write_text(
        "(PPOTrainer pid=9) ppo_trainer.py:547] \u2728 Global step 1: {'response_length': 40.5, 'policy_loss': 0.5, "
        "'reward': 0.25, 'kl': 0.0, 'actor_lr': 5e-07}\n"
        "(PPOTrainer pid=9) Global step 2: {'response_length': 49.5, 'policy_loss': nan, 'reward': np.float64(0.75)}\n"
    )
    events, _ = import_events(path)
    assert trained(events) == [(1, 0.5, 5e-7), (2, "NaN", None)]
    assert [row.extras["reward"] for row in events.of("train_step")] == [0.25, 0.75]
    assert [row.extras["response_length"] for row in events.of("train_step")] == [40.5, 49.5]


def test_openrlhf_s_bars_are_counted_at_their_ends(tmp_path, import_events):
    """Older versions print no step: the bar of each step ends at 100 %, and that state is drawn twice."""
    bar = "Train epoch [1/1]: {0:3d}%|####  | {1}/2 [00:03<00:00,  1.67s/it, pg={2}, rm=0.5, glen=126, act_lr=1e-6]"
    ends = [bar.format(100, 2, loss) for loss in (0.25, 0.125)]
    path = tmp_path / "train.log"
    path.write_text(
        f"Train epoch [1/1]:   0%|      | 0/2 [00:00<?, ?it/s]\r{bar.format(50, 1, 0.5)}\r{ends[0]}\r{ends[0]}\n"
        f"{bar.format(50, 1, 0.5)}\n{ends[1]}\n{ends[1]}\n"
    )
    events, _ = import_events(path)
    assert trained(events) == [(1, 0.25, 1e-6), (2, 0.125, 1e-6)]
    assert [row.extras["response_length"] for row in events.of("train_step")] == [126, 126]


def test_mmengine_s_iterations_and_epochs(tmp_path, import_events):
    """The lines are as mmengine.hooks.LoggerHook prints them; XTuner trains with it."""
    path = tmp_path / "20240504_085111.log"
    path.write_text(
        "05/04 08:52:12 - mmengine - INFO - Checkpoints will be saved to here.\n"
        "05/04 08:52:15 - mmengine - INFO - Iter(train) [  10/20]  lr: 3.25e-05  eta: 0:11:00  time: 0.3  loss: 2.5\n"
        "2025/02/09 07:49:32 - mmengine - INFO - Iter(train) [  20/20]  lr: 6.5e-05  eta: 18 days, 16:13:38  "
        "memory: 10081  loss: 1.25  grad_norm: 4.5\n"
        "05/04 08:53:00 - mmengine - INFO - Iter(val) [11/11]    mIoU: 50.5  data_time: 0.0040  time: 0.1462\n"
    )
    events, _ = import_events(path)
    assert trained(events) == [(10, 2.5, 3.25e-5), (20, 1.25, 6.5e-5)]
    assert [row.extras for row in events.of("train_step")] == [{}, {}]
    assert [(e.step, e.metrics.extras) for e in events.of("eval")] == [(20, {"mIoU": 50.5})]
    assert (events.of("train_step")[1].grad_norm, events.end.status) == (4.5, "ok")
    path.write_text("05/04 08:52:15 - mmengine - INFO - Epoch(train)  [2][ 50/100]  lr: 1.0000e-05  loss: 0.5\n")
    events, _ = import_events(path)
    assert (trained(events), events.of("train_step")[0].epoch) == ([(150, 0.5, 1e-5)], 2)


def test_nemo_s_iterations(tmp_path, import_events):
    path = tmp_path / "nemo.log"
    path.write_text(
        "Training epoch 0, iteration 3/99 | lr: 0.0005 | global_batch_size: 8 | global_step: 4 | "
        "reduced_train_loss: 11.5 | val_loss: 9.5\n"
    )
    events, _ = import_events(path)
    assert (trained(events), held(events)) == ([(4, 11.5, 5e-4)], [(4, "val", 9.5)])
