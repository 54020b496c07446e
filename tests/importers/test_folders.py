"""What a run leaves in its folder, and in one log: files that tell one story, or several; rows in order, or not."""

from __future__ import annotations

import argparse
import json
import pickle
from typing import Any, NamedTuple

import pytest
from hypothesis import given, strategies as st
from tables import every

from gradience.errors import RecorderError
from gradience.importers.events import arrange
from gradience.importers.files import LoggedRow, SourceRun

ADAPTER = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": "/home/me/models/tiny"}
SUMMARY = {"train_runtime": 9.0, "train_loss": 1.0, "total_flos": 1e9}
STATE, LOG = "trainer_state.json", "trainer_log.jsonl"


def rows(*steps: int, scale: float = 1.0) -> list[dict[str, Any]]:
    return [{"step": s, "epoch": s / 10, "loss": scale / s, "learning_rate": 1e-4, "grad_norm": 1.0} for s in steps]


def tens(last: int, first: int = 10, scale: float = 1.0) -> list[dict[str, Any]]:
    return rows(*range(first, last + 1, 10), scale=scale)


def factory(*pairs: tuple[int, float]) -> str:
    """LLaMA-Factory's log of (step, loss) pairs."""
    return "".join(f'{{"current_steps": {s}, "total_steps": 100, "loss": {loss}, "lr": 1e-4}}\n' for s, loss in pairs)


def falling(*steps: int, scale: float = 1.0) -> str:
    return factory(*((s, round(scale / s, 4)) for s in steps))


def by_two(apart: float, lr: float = 1e-4, epoch: int = 1) -> str:
    """A log in which a second writer is one row behind the first; its losses are lower by a fraction."""
    written = [(s, 1 / s, 1e-4) for s in range(5, 105, 5)]
    again = [(s, loss * (1.0 - apart), lr) for s, loss, _ in written]
    pairs = [written[0], *(row for pair in zip(written[1:], again, strict=False) for row in pair), again[-1]]
    more = {"epoch": 0.5} if epoch else {}
    lines = ({"current_steps": s, "total_steps": 100, "loss": loss, "lr": rate, **more} for s, loss, rate in pairs)
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def put(folder, files: dict[str, Any]):
    """Write the files: a list as the history of a trainer_state.json, a dict as JSON, a text as it is."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        document = state_of(content) if isinstance(content, list) else content
        path.write_text(document if isinstance(document, str) else json.dumps(document, indent=2), encoding="utf-8")
    return folder


def state_of(history: list[Any]) -> dict[str, Any]:
    steps = [row["step"] for row in history if isinstance(row, dict) and isinstance(row.get("step"), int)]
    return {"global_step": max(steps, default=0), "max_steps": 100, "log_history": history}


class Case(NamedTuple):
    """The files of a folder, and what is read from them."""

    files: dict[str, Any]
    steps: list[int]  # of the run that is shown
    says: str | None = None  # a part of a note
    runs: tuple[Any, ...] = (None,)  # names
    losses: list[float] | None = None  # the first of them
    evals: list[tuple[int | None, float]] | None = None
    status: str | None = None


LINES = {LOG: falling(10, 20, 30, 40)}
HELD = {"step": 20, "eval_loss": 1.5, "eval_runtime": 2.0}
TRIES = factory((10, 0.1), (20, 0.05), (30, 0.9), (20, 0.05), (30, 1 / 30), (40, 0.025), (50, 0.02))
MIXED = [pair for s in range(5, 105, 5) for pair in ((s, 1 / s), *([(s, 2 / s)] if s < 55 else []))]
APART = [pair for s in range(5, 105, 5) for pair in ((s, 1 / s), *([(s + 1000, 2 / s)] if s < 55 else []))]
CASES: dict[str, Case] = {
    "the furthest checkpoint counts": Case({f"checkpoint-{n}/{STATE}": tens(n) for n in (50, 90, 100)},
        [*range(10, 101, 10)], f"no {STATE} beside the checkpoints: read checkpoint-100/{STATE}, the furthest one"),
    "a stale root is completed": Case({STATE: tens(60), f"checkpoint-100/{STATE}": tens(100)}, [*range(10, 101, 10)],
        f"4 rows come from checkpoint-100/{STATE}: {STATE} lacks them"),
    "a summary in the middle is no end": Case(
        {STATE: [*rows(10, 20), {"step": 20, **SUMMARY}, *rows(30, 40)]}, [10, 20, 30, 40], status="unknown"
    ),
    "three runs in one folder": Case(
        {STATE: rows(10, 20), f"checkpoint-50/{STATE}": tens(50, scale=2), f"checkpoint-90/{STATE}": tens(90, scale=3)},
        [10, 20],
        "3 runs in one folder",
        (f"checkpoint-50/{STATE}", f"checkpoint-90/{STATE}", STATE),
        [1 / 10, 1 / 20],
    ),
    "a state of an evaluation before the first row": Case(
        {f"checkpoint-5/{STATE}": [{"step": 5, "eval_loss": 2.5}], f"checkpoint-20/{STATE}": rows(10, 20)},
        [10, 20],
        evals=[(5, 2.5)],
    ),
    "a state of an evaluation after the last row": Case(
        {f"checkpoint-30/{STATE}": [{"step": 30, "eval_loss": 2.5}], f"checkpoint-20/{STATE}": rows(10, 20)},
        [10, 20],
        evals=[(30, 2.5)],
    ),
    "a row without a step stands before all": Case(  # behind the last it would be an evaluation at the end
        {
            f"checkpoint-20/{STATE}": [*rows(10, 20), {"eval_loss": 2.5}],
            f"checkpoint-10/{STATE}": [*rows(10), {"step": 10, "eval_loss": 1.5}],
        },
        [10, 20],
        evals=[(None, 2.5), (10, 1.5)],
    ),
    "runs by number, the last is shown": Case(
        {f"model/{name}/checkpoint-20/{STATE}": rows(10, 20, scale=int(name[1:])) for name in ("v9", "v10", "v1")},
        [10, 20],
        "3 runs: model/v1, model/v9, model/v10; model/v10 is shown; --run NAME chooses",
        ("model/v1", "model/v9", "model/v10"),
        [1.0],
    ),
    "runs beside the folder's own": Case(
        {STATE: rows(10, 20), f"earlier/{STATE}": rows(10, scale=2)}, [10, 20], "runs in subfolders, not read: earlier"
    ),
    "the state before the log, for its grad_norm": Case({STATE: rows(10, 20), LOG: falling(10, 20)}, [10, 20],
        f"read {STATE} (it has grad_norm); also there and not read: {LOG}"),
    "what a log has beyond the last checkpoint": Case({f"checkpoint-20/{STATE}": rows(10, 20), **LINES},
        [10, 20, 30, 40], f"2 rows beyond step 20 come from {LOG}: no checkpoint was made after them"),
    "a log of another run": Case(
        {f"checkpoint-20/{STATE}": rows(10, 20), LOG: falling(10, 20, 30, scale=3)}, [10, 20], "is of another run than"
    ),
    "a log with a crashed try in it": Case(
        {f"checkpoint-40/{STATE}": rows(10, 20, 30, 40), LOG: TRIES}, [10, 20, 30, 40, 50]
    ),
    "an unreadable checkpoint hides no other": Case(
        {f"checkpoint-10/{STATE}": rows(10), f"checkpoint-20/{STATE}": '{"log_history": [{"step": 10,'},
        [10],
        "not used: ",
    ),
    "three logs are three runs": Case({f"run-{n}.jsonl": falling(10, 20, scale=n) for n in (1, 2, 10)}, [10, 20],
        "3 runs: ", ("run-1.jsonl", "run-2.jsonl", "run-10.jsonl"), [1.0, 0.5]),
    "a state under another name": Case({"old-state.json": rows(10, 20)}, [10, 20]),
    "a state under another name beside a real one": Case({"old-state.json": rows(10, 20), STATE: rows(10, 20, 30)},
        [10, 20, 30], "also there and not read: old-state.json"),
    "a broken config": Case(
        {STATE: rows(10, 20), "adapter_config.json": '{"r": "many"}'}, [10, 20], "adapter_config.json was not used: "
    ),
    "a pickle with a call in it, which is not made": Case(
        {STATE: rows(10), "training_args.bin": "cos\nsystem\n(S'exit 1'\ntR."},
        [10],
        "training_args.bin was not used: not read: a pickle that names os.system",
    ),
    "marks of progress are no rows": Case({LOG: falling(5, 10) + '{"current_steps": 11, "total_steps": 100}\n' * 6},
        [5, 10], "measured nothing, marks of progress only: line 3, 4, 5, 6, 7 ..."),
    "copies are written once": Case({LOG: factory((5, 2.0), (10, 1.5), (10, 1.5), (15, 1.0), (5, 2.0))}, [5, 10, 15],
        "2 rows are copies of an earlier one, written once (lines 3, 5)"),
    "swapped rows": Case({LOG: factory((5, 2.0), (15, 1.0), (10, 1.5), (20, 0.9))}, [5, 10, 15, 20],
        "1 row is out of order, put in the order of steps (line 3)"),
    "a start over is another run": Case({LOG: falling(*range(5, 55, 5)) + falling(*range(5, 30, 5), scale=2)},
        [5, 10, 15, 20, 25], "2 runs in one log, the last shown", (LOG, LOG), [0.4], status="unknown"),
    "two writers": Case({LOG: factory(*MIXED)}, [*range(5, 105, 5)], "2 writers at once", (LOG, LOG), [0.2, 0.1]),
    "one run, written by two processes": Case(
        {LOG: by_two(0.004)},
        [*range(5, 105, 5)],
        "20 rows are of steps that another process of this run wrote, too, with nearly the same loss: left out "
        "(lines 3, 5, 7, 9, 11 and 15 more)",
    ),
    "two runs of one plan": Case({LOG: by_two(0.006)}, [*range(5, 105, 5)], "2 writers at once", (LOG, LOG)),
    "two runs at other rates": Case({LOG: by_two(0.0, lr=2e-4)}, [*range(5, 105, 5)], "(a guess)", (LOG, LOG)),
    "two runs without an epoch": Case({LOG: by_two(0.001, epoch=0)}, [*range(5, 105, 5)], "(a guess)", (LOG, LOG)),
    "two writers far apart": Case({LOG: factory(*APART)}, [*range(5, 105, 5)], "(a guess)", (LOG, LOG), [0.2, 0.1]),
    "an evaluation made twice at the end": Case(
        {STATE: [*rows(10, 20), *({"step": 20, "eval_loss": 1.0, "eval_runtime": r} for r in (1.0, 2.0))]},
        [10, 20],
        evals=[(20, 1.0), (20, 1.0)],
    ),
}  # fmt: skip


@every("name", CASES)
def test_a_folder_is_read_as(name, tmp_path, import_events):
    case = CASES[name]
    events, imported = import_events(put(tmp_path, case.files))
    assert events.steps == case.steps
    assert case.says is None or any(case.says in note for note in imported.notes)
    assert tuple(run.name if len(case.runs) > 1 else None for run in imported.runs) == case.runs
    assert len({run.run_id for run in imported.runs}) == len(case.runs)
    assert case.losses is None or events.losses[: len(case.losses)] == case.losses
    assert case.evals is None or [(e.step, e.metrics.loss) for e in events.of("eval")] == case.evals
    assert case.status in {None, events.end.status}


def test_one_of_several_runs_is_chosen_by_name(tmp_path, import_events):
    put(tmp_path, {f"model/v{n}/{STATE}": rows(10, 20, scale=n) for n in (9, 10)})
    assert import_events(tmp_path, run="model/v9")[0].losses[0] == 0.9
    with pytest.raises(RecorderError, match="no run is called"):
        import_events(tmp_path, run="v11")


def test_a_replay_is_a_resume_from_the_step_before_it(tmp_path, import_events):
    put(tmp_path, {LOG: falling(*range(5, 55, 5)) + falling(*range(40, 80, 5), scale=1.1)})
    events, imported = import_events(tmp_path)
    starts = events.of("run_start")
    assert [start.resumed_from_step for start in starts] == [None, 35]
    assert (len({start.session for start in starts}), len({event.run_id for event in events})) == (2, 1)
    assert any(note.startswith("steps go back from 50 to 35 at line 11: taken for") for note in imported.notes)


@every(
    ("steps", "resumed", "notes"),
    [
        ([10, 20, 10, 30, 20, 40, 30, 40], [None], 1),  # 3 jumps, 8 rows: two writers
        ([10, 20, 30, 40, 20, 30, 40, 50, 30, 40, 50, 60], [None, 10, 20], 2),
        ([*range(10, 70, 10), *[*range(30, 70, 10)] * 7], [None, *[20] * 7], 6),  # five are named, the others counted
    ],
)
def test_jumps_back_with_rows_between_them_are_resumes(steps, resumed, notes):
    raw = SourceRun("log", rows=[LoggedRow(n, step, {"loss": n / 7}) for n, step in enumerate(steps, 1)])
    assert [segment.resumed_from for segment in arrange(raw)[-1]] == resumed
    assert len(raw.notes) == notes


@given(st.lists(st.tuples(st.integers(0, 12), st.floats(0, 9, width=16)), max_size=40))
def test_no_row_is_lost_whatever_the_order_of_steps(pairs):
    raw = SourceRun("log", rows=[LoggedRow(i, step, {"loss": loss}) for i, (step, loss) in enumerate(pairs, 1)])
    runs = arrange(raw)
    kept = sorted((row.step, row.values["loss"]) for run in runs for segment in run for row in segment.rows)
    assert kept == sorted(set(pairs))
    for segment in (segment for run in runs for segment in run):
        steps = [row.step for row in segment.rows]
        assert steps == sorted(steps)


@every("results", [SUMMARY, {"train_loss": 1.0}])
def test_saved_results_add_the_summary_and_the_number_of_examples(tmp_path, import_events, results):
    held = {**HELD, "eval_samples": 277}
    put(tmp_path, {f"checkpoint-20/{STATE}": [*rows(10, 20), HELD], "all_results.json": {**held, **results}})
    events, imported = import_events(tmp_path)
    assert [e.metrics.n for e in events.of("eval")] == [277]
    assert (events.end.status == "ok") == ({"train_runtime", "train_loss"} <= results.keys())
    if results is SUMMARY:
        assert [(e.kind, e.step) for e in events.of("metrics")] == [("train_summary", None)]
        assert any(note.startswith("all_results.json adds") for note in imported.notes)


@every("pickled", [False, True])
def test_configs_come_from_the_folder_or_the_checkpoint(tmp_path, import_events, pickled):
    arguments = {"learning_rate": 5e-4, "seed": 7, "hub_token": "hf_" + "a" * 34}
    put(tmp_path, {f"checkpoint-20/{STATE}": rows(10, 20), "checkpoint-20/adapter_config.json": ADAPTER})
    if pickled:
        (tmp_path / "training_args.bin").write_bytes(pickle.dumps(argparse.Namespace(**arguments)))
    else:
        put(tmp_path, {"training_args.json": arguments})
    events, imported = import_events(tmp_path)
    config = events.start.config
    assert (config.lora.r, config.lora.alpha_over_r, config.model_name) == (8, 2.0, "tiny")
    assert (config.optimizer.lr, config.optimizer.extras, config.training.seed) == (5e-4, {}, 7)
    assert "not copied, for they hold a secret: hub_token" in imported.notes


def test_settings_beside_another_run_s_checkpoint_are_not_of_this_one(tmp_path, import_events):
    for name, scale, own in (("", 1.0, 6), ("checkpoint-20", 3.0, 20), ("checkpoint-5", 1.0, 6)):
        put(tmp_path / name, {"trainer_state.json": {**state_of(tens(20, scale=scale)), "max_steps": own}})
    put(tmp_path / "checkpoint-20", {"training_args.json": {"seed": 3, "max_steps": 1000}})
    events, _ = import_events(tmp_path)
    assert (events.start.config.training.seed, events.start.config.training.max_steps) == (None, 6)
    put(tmp_path / "checkpoint-5", {"training_args.json": {"seed": 2}})
    events, _ = import_events(tmp_path)
    assert (events.start.config.training.seed, events.start.config.training.max_steps) == (2, 6)


def test_a_log_says_where_it_comes_from_by_no_path_and_has_no_clock(tmp_path, import_events):
    events, _ = import_events(put(tmp_path / "my-run", {STATE: rows(10, 20)}))
    meta = events.start.meta
    assert {event.ts for event in events} == {None}
    assert (meta["imported_from"], len(meta["source_sha256"])) == ("my-run", 64)
    assert meta["importer"].startswith("gradience ")
    assert str(tmp_path) not in str(meta)


def test_rows_that_are_none_are_counted_by_number(tmp_path, import_events):
    history = [*rows(10), 5, {"step": -1, "loss": 1.0}, {"step": 20, "epoch": 1.0}, {"step": 30, "loss": "lost"}]
    events, imported = import_events(put(tmp_path, {STATE: history}))
    assert [bad.line for bad in imported.skipped] == [2, 3, 4]
    assert events.of("train_step")[1].extras == {"loss_": "lost"}


def test_a_symlink_out_of_the_folder_is_not_followed(tmp_path, import_events):
    put(tmp_path / "far" / "run", {STATE: rows(10, 20)})
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far" / "run")
    with pytest.raises(RecorderError, match=r"no run\.jsonl"):
        import_events(tmp_path / "near")


def test_of_very_many_checkpoints_the_last_are_read(tmp_path, import_events, monkeypatch):
    monkeypatch.setattr("gradience.importers.trainer_state.MAX_STATES", 2)
    put(tmp_path, {f"checkpoint-{n}/{STATE}": [{"step": n, "eval_loss": 1.0}] for n in (10, 2, 1)})
    assert [e.step for e in import_events(tmp_path)[0].of("eval")] == [2, 10]


@every(
    ("state", "silence"),
    [
        ({"global_step": 3, "max_steps": 3, "logging_steps": 25}, ": logging_steps is 25, and 3 steps were made"),
        ({"global_step": 1, "max_steps": 1, "logging_steps": 25}, ": logging_steps is 25, and 1 step was made"),
        ({"global_step": 25, "max_steps": 25, "logging_steps": 25}, ""),
        ({"global_step": 3, "max_steps": 3, "logging_steps": 0.5}, ""),  # a share of the steps
        ({"global_step": 3, "max_steps": 3}, ""),
    ],
)
def test_a_run_without_a_training_row_says_why(tmp_path, import_events, state, silence):
    put(tmp_path, {STATE: {**state, "log_history": [{"step": 1, "eval_loss": 0.5}]}})
    end = import_events(tmp_path)[0].end
    assert (end.status, end.reason) == ("ok", f"the planned steps were made; no training row was logged{silence}")
