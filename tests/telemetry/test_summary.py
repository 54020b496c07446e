from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradience import telemetry
from gradience.schema import SCHEMA_ID, RecommendationItem, TrainStep
from gradience.telemetry import TelemetryReader, TelemetryWriter
from gradience.telemetry.reader import RunSummary
from gradience.telemetry.series import RunSeries

HEAD = {"schema": "gradience.vnext.telemetry/v1", "ts": 1.0, "run_id": "r"}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def write(log: Path, *documents: dict[str, object]) -> RunSummary:
    log.write_text("".join(json.dumps(HEAD | document) + "\n" for document in documents))
    return TelemetryReader(log).summarize()


def row(step: int | None, **fields: object) -> dict[str, object]:
    return {"event": "train_step", "step": step, "loss": 0.5} | fields


def start(**fields: object) -> dict[str, object]:
    return {"event": "run_start", "step": None, "config": {}} | fields


def only(summary: RunSummary) -> RunSeries:
    (run,) = summary.runs.values()
    return run


def test_the_run_that_began_last_is_shown(log: Path) -> None:
    summary = write(log, start(run_id="a"), start(run_id="b"), row(1, run_id="a"), row(2, run_id="b"))
    assert list(summary.runs) == ["a", "b"]
    assert summary.last.run_id == "b"
    assert write(log, start(run_id="a"), start(run_id="b"), start(run_id="a")).last.run_id == "a"
    resumed = start(run_id="a", resumed_from_step=0)
    assert write(log, start(run_id="a"), start(run_id="b"), resumed).last.run_id == "a"


def test_the_losses_of_a_split_rise_by_step_and_of_two_the_later_counts(log: Path) -> None:
    def evaluation(step: int | None, loss: object, split: str = "test") -> dict[str, object]:
        return {"event": "eval", "step": step, "split": split, "metrics": {"loss": loss}}

    losses = [(5, 3.0), (2, 4.0), (5, 1.0), (7, "NaN"), (8, None), (None, 9.0), (0, 5.0)]
    run = only(write(log, *(evaluation(*each) for each in losses), evaluation(1, 6.0, "other")))
    assert list(run.losses_of("test").items()) == [(0, 5.0), (2, 4.0), (5, 1.0)]
    assert run.losses_of("none") == {}


def test_the_last_epoch_and_the_last_time_may_be_whole_numbers_or_none() -> None:
    """As events have them that no log was read for."""
    run = RunSeries("r")
    for n, (epoch, ts) in enumerate([(0.5, 3), (2, 7.5), (None, None), ("NaN", "Infinity")]):
        run.add(TrainStep(schema=SCHEMA_ID, ts=ts, run_id="r", step=n, loss=1.0, epoch=epoch))
    assert (run.last_epoch, run.first_ts, run.last_ts, run.last_step) == (2, 3, 7.5, 3)


def test_the_package_names_what_it_gives_and_nothing_else() -> None:
    assert dir(telemetry) == telemetry.__all__ == ["TelemetryReader", "TelemetryWriter", "decode", "encode"]
    with pytest.raises(AttributeError, match=r"^module 'gradience\.telemetry' has no attribute 'nothing'$"):
        _ = telemetry.nothing
    assert not hasattr(telemetry, "reader_of_logs")


def test_alerts_and_recommendations_of_all_events_are_kept_in_their_order(log: Path) -> None:
    with TelemetryWriter(log) as writer:
        for n in (1, 2, 3):
            writer.alert(severity="info", code=f"c{n}", message="m", step=n)
            item = RecommendationItem(severity="info", action=f"a{n}", message="m")
            writer.recommendation([item, item], step=n)
    run = TelemetryReader(log).summarize().last
    assert run is not None
    assert [alert.code for alert in run.alerts] == ["c1", "c2", "c3"]
    assert [item.action for item in run.recommendations] == ["a1", "a1", "a2", "a2", "a3", "a3"]
