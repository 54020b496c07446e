"""MLflow's folder and database, written and read by MLflow, without leaving a trace."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest

from gradience.errors import MissingPackageError, RecorderError
from gradience.importers import read_source

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow and SQLAlchemy


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A folder and a database with a run logged as the Trainer's callback does, and one that failed before."""
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow")
    patch = pytest.MonkeyPatch()
    patch.setenv("MLFLOW_ALLOW_FILE_STORE", "1")
    patch.setenv("MLFLOW_DISABLE_TELEMETRY", "1")
    folder = tmp_path_factory.mktemp("mlflow")
    places = {"folder": folder / "mlruns", "database": folder / "mlflow.db"}
    uris = {"folder": places["folder"].as_uri(), "database": f"sqlite:///{places['database']}"}
    if find_spec("sqlalchemy") is None or find_spec("alembic") is None:  # mlflow-skinny reads no database
        del places["database"]
    for kind in places:
        uri = uris[kind]
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(f"demo-{kind}")
        mlflow.start_run(run_name="failed")
        mlflow.log_metrics({"loss": 3.0}, step=10)
        mlflow.end_run("FAILED")
        with mlflow.start_run(run_name="one"):
            mlflow.log_params({"learning_rate": 1e-3, "max_steps": 30})
            for step in (10, 20, 30):
                mlflow.log_metrics({"loss": 20 / step, "learning_rate": 1e-2 / step, "train/extra": 1.0}, step=step)
                if step != 20:
                    mlflow.log_metrics({"eval_loss": 19 / step, "eval_accuracy": 0.5}, step=step)
    patch.undo()
    return places


def holds(events):
    assert [(e.step, e.loss, e.lr) for e in events.of("train_step")] == [
        (10, 2.0, 1e-3),
        (20, 1.0, 5e-4),
        (30, 20 / 30, 1e-2 / 30),
    ]
    evals = [(e.step, e.metrics.loss, e.metrics.accuracy) for e in events.of("eval")]
    assert evals == [(10, 1.9, 0.5), (30, 19 / 30, 0.5)]
    assert (events.start.config.optimizer.lr, events.start.config.training.max_steps) == (1e-3, 30)
    assert (events.end.status, events.end.reason) == ("ok", "the planned steps were made")
    assert all(event.ts > 1.7e9 and event.extras["extra"] == 1.0 for event in events.of("train_step"))


def test_both_stores_are_read_without_a_trace(stores, import_events):
    metas = sorted(stores["folder"].glob("*/*/meta.yaml"), key=lambda path: "name: one" in path.read_text())
    places = [metas[-1].parent, metas[-1], *stores.values()]
    before = sorted(stores["folder"].parent.rglob("*"))
    for source in places:
        events, imported = import_events(source, run="one")
        holds(events)
        assert imported.format == "mlflow"
    assert sorted(stores["folder"].parent.rglob("*")) == before


def test_a_failed_run_has_its_status(stores, import_events):
    events, _ = import_events(stores["folder"], run="failed")
    assert (events.losses, events.end.status) == ([3.0], "error")
    assert events.end.reason == "MLflow recorded the status FAILED"


def test_what_mlflow_cannot_read_is_an_error_in_one_line(tmp_path):
    pytest.importorskip("mlflow", reason="pip install mlflow")
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "loss").write_text("x\n")
    (tmp_path / "meta.yaml").write_text("run_id: abc\nrun_name: one\nstatus: 4\n")
    with pytest.raises(RecorderError, match="mlflow cannot read it: ") as caught:
        read_source(tmp_path)
    assert "\n" not in str(caught.value)


def test_metrics_that_are_larger_than_a_source_may_be_are_refused_unread(tmp_path):
    pytest.importorskip("mlflow", reason="pip install mlflow")
    (tmp_path / "metrics").mkdir()
    (tmp_path / "meta.yaml").write_text("run_id: abc\n")
    for name in ("loss", "lr"):
        with (tmp_path / "metrics" / name).open("wb") as file:
            file.truncate(300 << 20)  # sparse; neither is too large alone
    with pytest.raises(RecorderError, match="is larger than 512 MiB"):
        read_source(tmp_path)


def test_without_the_package_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    (tmp_path / "metrics").mkdir()
    (tmp_path / "meta.yaml").write_text("run_id: abc\n")
    with pytest.raises(MissingPackageError, match="reading this needs mlflow") as caught:
        read_source(tmp_path)
    assert caught.value.advice == "pip install mlflow"
