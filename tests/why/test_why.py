"""`gradience why`: the first step at which two logs part, and the one cause, or what to record to tell it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gradience import explain_difference
from gradience.cli.main import main
from gradience.errors import RecorderError
from gradience.telemetry import TelemetryWriter

ROWS = ["aa0001 aa0002", "aa0003 aa0004", "aa0005 aa0006", "aa0007 aa0008"]
OWN = {"kind": "adapter", "tensors": 2, "trainable": 8, "digest": "s1:a", "dtypes": ["float32"]}
BASE = {"kind": "base", "tensors": 2, "frozen_digest": "s1:b", "dtypes": ["float32"]}
CONFIG = {
    "optimizer": {"lr": 1e-3},
    "training": {"seed": 0, "batch_size": 2, "gradient_accumulation": 1},
    "lora": {"r": 4, "dropout": 0.1},
}


def config(**other: Any) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(CONFIG))
    for path, value in other.items():
        level, name = path.split("__")
        changed[level][name] = value
    return changed


def record(  # each is one thing that a log has
    path: Path,
    *,
    config: dict[str, Any] = CONFIG,
    groups: list[dict[str, Any]] | None = None,
    batches: list[str] | None = ROWS,
    losses: list[float] = [2.0, 1.9, 1.8, 1.7],  # noqa: B006  # read only
    rates: list[float] = [1e-3] * 4,  # the same
    versions: dict[str, str] | None = None,
    wiring: bool = True,
    rng: str = "0",
    **look: Any,
) -> Path:
    with TelemetryWriter(path) as log:
        log.run_start(config, meta={"versions": {"torch": "2.13"} if versions is None else versions})
        if wiring:
            from gradience.events import StepDigests, Wiring
            from gradience.schema.wiring import ParameterGroup

            held = [ParameterGroup(**group) for group in ([OWN, BASE] if groups is None else groups)]
            log.looked(Wiring, 0, {"phase": "start", "groups": held, **look})
            if batches is not None:
                log.looked(StepDigests, 4, {"first": 1, "batches": batches, "rng": [rng] * len(batches)})
        for step, (loss, rate) in enumerate(zip(losses, rates, strict=True), 1):
            log.train_step(step, loss=loss, lr=rate, grad_norm=1.0)
    return path


def why(tmp_path: Path, **second: Any) -> Any:
    return explain_difference(record(tmp_path / "a.jsonl"), record(tmp_path / "b.jsonl", **second))


OTHER = [2.0, 1.9, 1.85, 1.8]  # as the first until step 2
EARLY = [2.1, 2.0, 1.9, 1.8]
SWAPPED = [ROWS[0], ROWS[2], ROWS[1], ROWS[3]]


@pytest.mark.parametrize(
    ("second", "cause", "step"),
    [
        ({"config": config(training__seed=1), "batches": SWAPPED, "losses": EARLY}, "seed", 1),
        ({"config": config(training__seed=1), "groups": [{**OWN, "digest": "s1:c"}, BASE]}, "seed", 0),
        ({"groups": [{**OWN, "digest": "s1:c"}, BASE], "losses": EARLY}, "adapter_init", 0),
        ({"groups": [OWN, {**BASE, "frozen_digest": "s1:c"}], "losses": EARLY}, "base_weights", 0),
        ({"batches": SWAPPED, "losses": [2.0, 1.8, 1.8, 1.8]}, "order", 2),
        ({"batches": [*ROWS[:2], "aa0005 bb0006", ROWS[3]], "losses": OTHER}, "data_row", 3),
        ({"batches": [f"{row} cc0001" for row in ROWS], "losses": EARLY}, "batch_size", 1),
        ({"batches": [f"{row}|{row}" for row in ROWS], "losses": EARLY}, "accumulation", 1),
        ({"batches": [row.replace(" ", "|") for row in ROWS], "losses": EARLY}, "accumulation", 1),
        ({"config": config(optimizer__lr=2e-3), "rates": [2e-3] * 4, "losses": EARLY}, "lr", 1),
        ({"rates": [2e-3] * 4, "losses": EARLY}, "lr", 1),
        ({"config": config(training__warmup_steps=2), "rates": [0.0, 5e-4, 1e-3, 1e-3]}, None, 1),
        ({"rates": [1e-4, 5e-4, 1e-3, 1e-3], "losses": EARLY}, "warmup", 1),
        ({"rates": [1e-3, 9e-4, 7e-4, 2e-4], "losses": OTHER}, "schedule", 2),
        ({"config": config(lora__dropout=0.2), "losses": EARLY}, "dropout", 1),
        ({"dropouts": {"0.2": 4}, "losses": EARLY}, "dropout", 1),
        ({"groups": [{**OWN, "dtypes": ["bfloat16"], "digest": "s1:d"}, BASE], "losses": EARLY}, "dtype", 0),
        ({"versions": {"torch": "2.12"}, "losses": OTHER}, "version", 3),
        ({"settings": {"threads": 2}, "losses": OTHER}, None, 3),
        ({"config": config(optimizer__weight_decay=0.1), "losses": OTHER}, None, 3),
    ],
)
def test_the_first_step_and_the_cause(tmp_path: Path, second: dict[str, Any], cause: str | None, step: int):
    report = why(tmp_path, **second)
    assert report.step == step
    if cause is not None:
        assert (report.verdict, report.cause.cause) == ("one_cause", cause)


def test_runs_that_do_not_part_say_so(tmp_path: Path):
    report = why(tmp_path)
    assert (report.verdict, report.step, report.cause, report.parts) == ("same", None, None, [])
    assert report.story == "the runs do not part in what both recorded"


def test_random_states_count_where_they_change_the_loss(tmp_path: Path):
    assert why(tmp_path, rng="1").verdict == "same"
    (tmp_path / "b.jsonl").unlink()
    report = why(tmp_path, rng="1", losses=EARLY)
    assert (report.step, report.parts[0].quantity) == (1, "rng")


def test_a_seed_is_no_cause_of_a_row_that_changed_later(tmp_path: Path):
    seeded = config(training__seed=1)
    assert why(tmp_path, config=seeded, batches=[ROWS[0], "aa0003 bb0004", *ROWS[2:]]).cause.cause == "data_row"
    (tmp_path / "b.jsonl").unlink()
    assert why(tmp_path, config=seeded, batches=["aa0001 bb0002", *ROWS[1:]]).cause.cause == "seed"


def test_versions_that_changed_nothing_are_named_all_the_same(tmp_path: Path):
    report = why(tmp_path, versions={"torch": "2.12"})
    assert report.verdict == "same"
    assert report.story.endswith("; the versions differ")


def test_two_settings_that_act_from_the_same_step_are_both_named(tmp_path: Path):
    changed = config(lora__dropout=0.2, optimizer__lr=2e-3)
    report = why(tmp_path, config=changed, losses=EARLY)
    assert report.verdict == "several"
    assert {each.cause for each in report.differences} == {"dropout", "lr"}


def test_a_rounding_of_the_loss_is_no_parting(tmp_path: Path):
    assert why(tmp_path, losses=[2.0 * (1 + 1e-7), 1.9, 1.8, 1.7]).verdict == "same"
    (tmp_path / "b.jsonl").unlink()
    assert why(tmp_path, losses=[2.0 * (1 + 1e-5), 1.9, 1.8, 1.7]).verdict == "unknown"


def test_what_cannot_be_told_says_what_to_record(tmp_path: Path):
    report = why(tmp_path, losses=OTHER, wiring=False)
    assert report.verdict == "unknown"
    assert [says.partition(":")[0] for says in report.not_told] == [
        "the weights before the first step",
        "the rows of each step",
    ]
    assert report.compared == ["lr", "loss", "grad_norm"]


def test_one_log_twice_needs_a_resume(tmp_path: Path):
    path = record(tmp_path / "a.jsonl")
    with pytest.raises(RecorderError, match="nothing to compare it with"):
        explain_difference(path, path)


def test_the_last_two_runs_of_a_log_are_compared(tmp_path: Path):
    record(tmp_path / "run.jsonl")
    record(tmp_path / "run.jsonl", config=config(lora__dropout=0.2), losses=EARLY)
    assert explain_difference(tmp_path, tmp_path).cause.cause == "dropout"


def test_a_run_is_asked_for_by_the_beginning_of_its_id(tmp_path: Path):
    path = record(tmp_path / "run.jsonl")
    record(path, config=config(lora__dropout=0.2), losses=EARLY)
    ids = [json.loads(line)["run_id"] for line in path.read_text().splitlines() if '"run_start"' in line]
    assert explain_difference(path, path, runs=[each[:8] for each in ids]).cause.cause == "dropout"
    with pytest.raises(RecorderError, match="no run is called 'nowhere1'"):
        explain_difference(path, path, runs=["nowhere1", ids[1]])


def test_the_command_prints_the_story_and_its_exit_code_says_whether_it_could_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    record(tmp_path / "a.jsonl")
    record(tmp_path / "b.jsonl", config=config(lora__dropout=0.2), losses=EARLY)
    record(tmp_path / "c.jsonl", losses=OTHER)
    assert main(["why", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "The runs part at step 1, where the loss differs: the dropout (lora.dropout: 0.1 and 0.2).\n"
    )
    assert main(["why", str(tmp_path / "a.jsonl"), str(tmp_path / "c.jsonl"), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["verdict"] == "unknown"
    assert main(["why", str(tmp_path / "a.jsonl"), str(tmp_path / "missing.jsonl")]) == 2
