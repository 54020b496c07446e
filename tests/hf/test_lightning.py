"""The Lightning callback in real fits: accumulation, validation intervals, any metric's name, rates, neutrality."""

from __future__ import annotations

import logging
import math
import warnings

import lightning
import pytest

pytestmark = pytest.mark.oracle("lightning")
torch = pytest.importorskip("torch")

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def module(names=("val_loss",), *, lora=False, poison=None, fail=None, loaders=1, rate=1e-2):
    """A module that keeps each batch's loss, logs a validation under the names given, and decays its rate each step."""

    class Regression(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            base = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
            if lora:
                from peft import LoraConfig, get_peft_model

                base = get_peft_model(base, LoraConfig(r=2, lora_alpha=6, target_modules=["0", "2"]))
            self.net, self.losses, self.rates, self.norms = base, [], [], []

        def training_step(self, batch, _index):
            x, y = batch
            loss = torch.nn.functional.mse_loss(self.net(x), y)
            if poison is not None and self.global_step >= poison:
                loss = loss * math.nan
            if fail is not None and self.global_step >= fail:
                raise ValueError("the text of an exception may hold a prompt")
            self.losses.append(loss.item())
            self.log("train_acc", 0.5)
            return loss

        def on_before_optimizer_step(self, optimizer):
            self.rates.append(optimizer.param_groups[0]["lr"])
            self.norms.append(torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None]))

        def validation_step(self, batch, _index, dataloader_idx=0):
            loss = torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])
            for name in names:
                self.log(name, loss)

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=rate)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    return Regression()


def data(n, loaders=1):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=draw)
    made = [
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), 8)
        for _ in range(loaders)
    ]
    return made[0] if loaders == 1 else made


@pytest.fixture
def fit(tmp_path, log):
    """A function that fits and returns the module and its log."""
    from gradience.lightning import GradienceCallback

    def run(made, *more, n=64, loaders=1, callback=None, **given):
        recorder = callback or GradienceCallback(verbose=False)
        options = {"max_epochs": 2, "accelerator": "cpu", "default_root_dir": tmp_path, **QUIET, **given}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = lightning.Trainer(callbacks=[recorder, *more], **options)
            trainer.fit(made, data(n), data(16, loaders))
        return made, log(tmp_path)

    return run


def test_each_step_is_a_row_with_its_loss_norm_and_the_rate_it_used(fit):
    made, events = fit(module(), gradient_clip_val=1e-3)
    assert events.steps == list(range(1, 17))
    rows = events.of("train_step")
    assert [row.loss for row in rows] == pytest.approx(made.losses, rel=1e-6)
    assert [row.lr for row in rows] == pytest.approx([1e-2 * 0.9**i for i in range(16)])
    assert [row.lr for row in rows] == made.rates
    assert [row.grad_norm for row in rows] == pytest.approx([float(norm) for norm in made.norms], rel=1e-6)
    assert [row.epoch for row in rows][7] == 1.0
    assert [(e.status, e.reason) for e in events.of("run_end")] == [("ok", None)]


def test_with_accumulation_a_row_is_an_optimizer_step_and_its_loss_the_mean_of_its_batches(fit):
    made, events = fit(module(), accumulate_grad_batches=4)
    assert events.steps == [1, 2, 3, 4]
    means = [sum(made.losses[4 * i : 4 * i + 4]) / 4 for i in range(4)]
    assert [row.loss for row in events.of("train_step")] == pytest.approx(means, rel=1e-5)
    assert events[0].config.training.gradient_accumulation == 4
    assert events[0].config.training.max_steps == 4


def test_validations_within_an_epoch_and_of_any_name_are_recorded_at_their_steps(fit):
    _, events = fit(module(("nll_of_valid", "valid/acc")), val_check_interval=3, num_sanity_val_steps=2)
    evals = events.of("eval")
    assert [e.step for e in evals] == [3, 6, 11, 14]
    assert all(e.split == "eval" and e.metrics.accuracy is not None for e in evals)
    assert all(set(e.metrics.extras) == {"nll_of_valid"} for e in evals)  # and nothing that was logged in training


def test_a_loss_under_another_name_is_the_loss_and_each_loader_a_split(fit):
    _, events = fit(module(("avg_val_loss",)), loaders=2)
    assert [(e.split, e.step) for e in events.of("eval")] == [("eval", 8), ("eval_1", 8), ("eval", 16), ("eval_1", 16)]
    assert all(e.metrics.loss > 0 for e in events.of("eval"))


def test_the_config_is_read_from_the_trainer_the_module_and_its_adapter(fit):
    _, events = fit(module(lora=True, rate=2e-4), gradient_clip_val=1.0, precision="bf16-mixed")
    config = events[0].config
    assert (config.lora.r, config.lora.alpha, sorted(config.lora.target_modules)) == (2, 6, ["0", "2"])
    assert (config.optimizer.name, config.optimizer.lr) == ("adamw", 2e-4)
    plan = config.training
    assert (plan.batch_size, plan.max_steps, plan.epochs, plan.max_grad_norm) == (8, 16, 2, 1.0)
    assert (plan.dtype, plan.world_size) == ("bfloat16", 1)
    assert events[0].meta["versions"]["lightning"] == lightning.__version__


def test_stop_on_ends_the_fit_and_is_recorded_and_said(fit, records):
    from gradience.lightning import GradienceCallback

    _, events = fit(module(poison=5), callback=GradienceCallback(stop_on=("NUM101",)), max_epochs=4)
    assert events.steps == [1, 2, 3, 4, 5, 6]
    assert [(e.code, e.step) for e in events.of("alert")] == [("NUM101", 6)]
    (end,) = events.of("run_end")
    assert (end.status, end.reason) == ("aborted", "stopped at step 6 by stop_on: NUM101")
    assert any("NUM101 at step 6" in record.getMessage() for record in records)


def test_an_exception_is_the_end_that_the_log_names(fit, tmp_path, log):
    with pytest.raises(ValueError, match="prompt"):
        fit(module(fail=3))
    events = log(tmp_path)
    assert events.steps == [1, 2, 3]
    assert [(e.status, e.reason) for e in events.of("run_end")] == [("error", "ValueError")]


def test_rows_every_so_many_steps_hold_the_mean_of_the_losses_between(fit):
    from gradience.lightning import GradienceCallback

    made, events = fit(module(), callback=GradienceCallback(every=4, verbose=False))
    assert events.steps == [4, 8, 12, 16]
    means = [sum(made.losses[4 * i : 4 * i + 4]) / 4 for i in range(4)]
    assert [row.loss for row in events.of("train_step")] == pytest.approx(means, rel=1e-5)
    assert all(row.grad_norm is not None for row in events.of("train_step"))


def test_what_is_trained_is_recorded_and_judged(fit):
    _, events = fit(module(lora=True))
    assert [(e.phase, e.step) for e in events.of("wiring")] == [("start", 0), ("gradients", 8), ("evaluation", 8)]
    start = events.of("wiring")[0]
    assert (start.adapter.layers, start.optimizer.held, start.schedule.name) == (2, 4, "ExponentialLR")
    assert {group.kind for group in start.groups} == {"adapter", "base"}
    digests = events.of("step_digests")
    assert [(e.first, e.step, len(e.batches)) for e in digests] == [(1, 16, 16)]
    assert all(len(batch.split()) == 8 for batch in digests[0].batches)
    assert [(e.code, e.step > 8) for e in events.of("alert")] == [("GAP111", True)]  # the data repeat after step 8


def test_a_resume_is_compared_with_its_save(fit, tmp_path, log):
    from gradience.lightning import GradienceCallback

    checkpoints = {"filename": "{step}", "every_n_train_steps": 8, "save_top_k": -1}
    keep = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, **checkpoints)
    given = {"accelerator": "cpu", "default_root_dir": tmp_path, **QUIET, "enable_checkpointing": True}
    recorder = GradienceCallback(verbose=False)
    lightning.Trainer(max_epochs=1, callbacks=[recorder, keep], **given).fit(module(lora=True), data(64), data(16))

    def forget(self, checkpoint):
        checkpoint["optimizer_states"] = [{**state, "state": {}} for state in checkpoint["optimizer_states"]]

    made = module(lora=True)
    made.on_load_checkpoint = forget.__get__(made)
    trainer = lightning.Trainer(max_epochs=2, callbacks=[GradienceCallback(verbose=False), keep], **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the folder is not empty
        trainer.fit(made, data(64), data(16), ckpt_path=tmp_path / "step=8.ckpt", weights_only=False)
    events = log(tmp_path)
    assert ("save", 8) in [(e.phase, e.step) for e in events.of("wiring")]
    assert [(e.code, e.step) for e in events.of("alert")] == [("WIR176", 8), ("GAP111", 16)]


def test_the_fit_is_bit_for_bit_the_one_without_the_callback(tmp_path):
    from gradience.lightning import GradienceCallback

    def weights(*callbacks):
        lightning.seed_everything(7, verbose=False)
        made = module(lora=True)
        options = {"max_epochs": 2, "accelerator": "cpu", "accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
        lightning.Trainer(callbacks=list(callbacks), default_root_dir=tmp_path, **options, **QUIET).fit(
            made, data(64), data(16)
        )
        return [*made.parameters(), torch.get_rng_state().float()], made.losses

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (without, losses), (with_it, others) = weights(), weights(GradienceCallback(stop_on=("DIV104",)))
    assert losses == others
    assert all(torch.equal(a, b) for a, b in zip(without, with_it, strict=True))


def test_a_child_without_parameters_is_not_taken_for_the_model(fit):
    made = module()
    metric, net = torch.nn.Identity(), made.net
    del made.net
    made.metric, made.net = metric, net
    _, events = fit(made, n=16)
    (look, *_) = events.of("wiring")
    assert sum(group.trainable for group in look.groups) == sum(p.numel() for p in made.parameters())
