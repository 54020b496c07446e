"""What dashboards and other trainers leave: steps, losses, evaluations and learning rates, by value."""

from __future__ import annotations

import warnings

import pytest

from gradience.cli.main import main
from gradience.errors import RecorderError


def test_a_wandb_export_counts_the_trainer_s_steps_not_its_own_rows(tmp_path, import_events):
    path = tmp_path / "export.csv"
    path.write_text(
        "_step,_timestamp,train/global_step,train/loss,train/learning_rate,eval/loss\n"
        "0,1700000000,10,2.0,1e-4,\n"
        "1,1700000001,10,,,1.9\n"
        "2,1700000002,20,1.5,5e-5,\n"
        "3,1700000003,20,,,1.4\n"
    )
    events, _ = import_events(path)
    assert [(e.step, e.loss, e.lr) for e in events.of("train_step")] == [(10, 2.0, 1e-4), (20, 1.5, 5e-5)]
    assert [(e.step, e.metrics.loss) for e in events.of("eval")] == [(10, 1.9), (20, 1.4)]


@pytest.mark.parametrize(
    ("header", "row", "loss"),
    [
        ("global_step,reduced_train_loss,lr,val_loss", "5,1.25,3e-4,1.5", 1.25),
        ("iteration,lm loss,learning-rate,lm loss validation", "5,1.25,3e-4,1.5", 1.25),
    ],
)
def test_columns_of_nemo_and_megatron_are_known(tmp_path, import_events, header, row, loss):
    path = tmp_path / "log.csv"
    path.write_text(f"{header}\n{row}\n")
    events, _ = import_events(path)
    assert [(e.step, e.loss, e.lr) for e in events.of("train_step")] == [(5, loss, 3e-4)]
    assert [(e.step, e.split, e.metrics.loss) for e in events.of("eval")] == [(5, "val", 1.5)]


def test_a_csv_of_unknown_columns_is_asked_for_a_map_and_never_called_json(tmp_path, capsys):
    path = tmp_path / "log.csv"
    path.write_text("when,how much\n1,2\n")
    for command in (["monitor", str(path)], ["import", str(path), "--out", str(tmp_path / "run.jsonl")]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "no column is the step" in said
        assert "JSON" not in said


def test_lightning_s_learning_rates_join_the_loss_of_their_step(tmp_path, import_events):
    torch, lightning = pytest.importorskip("torch"), pytest.importorskip("lightning.pytorch")
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
    logger = CSVLogger(tmp_path, name="csv", version=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=1, logger=logger, log_every_n_steps=2, callbacks=[LearningRateMonitor("step")],
            accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Line(), data, data)
    events, _ = import_events(tmp_path / "csv" / "version_0" / "metrics.csv")
    assert [(e.step, e.lr) for e in events.of("train_step")] == [(1, 5e-3), (3, 1.25e-3)]
    assert all(isinstance(loss, float) for loss in events.losses)
    assert [(e.step, e.split) for e in events.of("eval")] == [(3, "val")]


def test_keras_counts_epochs(tmp_path, import_events):
    path = tmp_path / "training.csv"
    path.write_text("epoch,accuracy,loss,val_accuracy,val_loss\n0,0.5,2.0,0.5,2.1\n1,0.75,1.0,0.25,1.2\n")
    events, imported = import_events(path)
    assert [(e.step, e.loss) for e in events.of("train_step")] == [(0, 2.0), (1, 1.0)]
    assert [(e.step, e.metrics.loss, e.metrics.accuracy) for e in events.of("eval")] == [(0, 2.1, 0.5), (1, 1.2, 0.25)]
    assert any("step=epoch" in note for note in imported.notes)


def test_a_table_without_a_measured_column_is_refused(tmp_path, import_events):
    path = tmp_path / "log.csv"
    path.write_text("epoch,seconds\n0,1\n")
    with pytest.raises(RecorderError, match="no column is a loss or an evaluation"):
        import_events(path)
