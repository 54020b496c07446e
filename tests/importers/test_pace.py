"""Speed and memory of other programs' logs, as the events that the recorder writes: the numbers by hand."""

from __future__ import annotations

import json

import msgspec
import pytest
from tables import every
from wandb_records import field, items, offline, varint

from gradience.render.pace import pace_words
from gradience.verbs.monitor.run import monitor_run

GIB = 2**30
PLACE = "global_step/max_steps"


@pytest.fixture
def paces(tmp_path, import_events, write_lines):
    """A function that imports rows of JSON lines, and returns the `throughput` events as (step, steps, further)."""

    def read(rows, name="trainer_log.jsonl"):
        events, _ = import_events(write_lines(tmp_path / name, rows))
        return [_told(event) for event in events.of("throughput")]

    return read


def _told(event):
    """The step and the fields of an event that are set."""
    plain = json.loads(msgspec.json.encode(event))
    head = {"event", "schema", "ts", "run_id", "seq", "session", "step"}
    return event.step, {name: value for name, value in plain.items() if name not in head and value is not None}


def clock(seconds):
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def factory(step, seconds, **more):
    """A row of LLaMA-Factory."""
    return {"current_steps": step, "total_steps": 100, "loss": 2.0, "elapsed_time": clock(seconds), **more}


def test_windows_of_a_clock_of_whole_seconds_are_of_a_minute_at_least(paces):
    rows = [factory(s, 3 * s + 7, total_tokens=500 * s, throughput="166.67") for s in range(5, 65, 5)]
    assert paces(rows) == [
        (step, {"steps": 20, "seconds_per_step": 3.0, "padded_tokens_per_second": pytest.approx(500 / 3)})
        for step in (25, 45)
    ]
    assert paces([factory(s, 100 * s) for s in (1, 2, 11, 12)]) == [(11, {"steps": 10, "seconds_per_step": 100.0})]
    vram = {"vram_allocated": 1.5, "vram_reserved": 2}
    memory = {"peak_bytes": 3 * GIB // 2, "reserved_bytes": 2 * GIB}
    nine = {"steps": 10, "seconds_per_step": 9.0}
    assert paces([factory(s, 9 * s, **vram) for s in (10, 20)])[0][1] == {**nine, **memory}
    assert paces([factory(s, 9 * s, total_tokens=0) for s in (10, 20)]) == [(20, nine)]


def test_an_evaluation_is_in_no_window_by_its_runtime_and_without_one_leaves_none(paces):
    held = {"current_steps": 20, "total_steps": 100, "eval_loss": 1.0, "elapsed_time": clock(200)}
    train = [factory(s, 10 * s) for s in (10, 20)]
    after = [factory(30, 400), factory(40, 500)]
    timed = paces([*train, {**held, "eval_runtime": 100.0}, *after])
    assert [told.get("seconds_per_step") for _, told in timed] == [10.0, 10.0, 10.0]
    assert [step for step, _ in paces([*train, {**held, "elapsed_time": None}, *after])] == [20, 40]
    both = [{**held, "elapsed_time": clock(now)} for now in (240, 300)]  # two sets; no runtime, but the clock goes on
    assert [told["seconds_per_step"] for _, told in paces([*train, *both, *after])] == [10.0, 10.0, 10.0]


def test_ms_swift_has_its_clock_in_words_and_what_is_reserved(paces):
    rows = [
        {"loss": 2.0, PLACE: f"{s}/60", "memory(GiB)": gib, "train_speed(iter/s)": 0.1, "elapsed_time": said}
        for s, gib, said in ((10, 9.0, "1m 40s"), (20, 9.5, "3m 20s"), (30, 9.5, "1d 1h 3m 20s"))
    ]
    rows.append({"train_runtime": 3800.0, "total_flos": 1.0, "train_loss": 2.0, PLACE: "30/30"})  # says nothing more
    assert paces(rows, "logging.jsonl") == [
        (20, {"steps": 10, "seconds_per_step": 10.0, "reserved_bytes": int(9.5 * GIB)}),
        (30, {"steps": 10, "seconds_per_step": 9000.0, "reserved_bytes": int(9.5 * GIB)}),
    ]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("memory(GiB)", value) for value in (0, 14200, 1e300, -1)),  # MiB under the name of GiB
        *(("tokens_per_second_per_gpu", value) for value in (1e300, 1.1e9)),
        ("elapsed_time", "9" * 5000 + "s"),
    ],
)
def test_a_number_that_no_machine_reaches_is_no_measurement(paces, column, value):
    rows = [{"loss": 2.0, PLACE: f"{s}/60", "elapsed_time": f"{s}m", column: value} for s in (10, 20, 30)]
    pace = {} if column == "elapsed_time" else {"steps": 10, "seconds_per_step": 60.0}
    assert paces(rows, "logging.jsonl") == ([(20, pace), (30, pace)] if pace else [])


def test_the_trainers_summary_stands_for_the_run_without_its_evaluations(tmp_path, write_state, rows):
    tracked = {"before_init_mem_gpu": 1, "init_mem_gpu_alloc_delta": 2, "train_mem_gpu_alloc_delta": 4}
    summary = {
        "step": 20, "total_flos": 1.0, "train_loss": 1.0, "train_runtime": 50.0, "train_samples_per_second": 3.2,
        **tracked, "train_mem_gpu_peaked_delta": 8,
    }  # fmt: skip
    held = {"step": 10, "eval_loss": 1.0, "eval_runtime": 10.0}
    history = [*rows([5, 10]), held, *rows([15], num_tokens=300), *rows([20], num_tokens=400), summary]
    pace = monitor_run(write_state(tmp_path, history)).pace
    assert (pace.seconds_per_step, pace.samples_per_second, pace.tokens_per_second) == (2.0, 4.0, 10.0)
    assert (pace.peak_bytes, pace.reserved_bytes, pace.windows) == (15, None, 1)
    summary["step"] = 25  # the last five were not logged: their tokens are not known
    pace = monitor_run(write_state(tmp_path, history)).pace
    assert (pace.seconds_per_step, pace.samples_per_second, pace.tokens_per_second) == (1.6, 4.0, None)
    del held["eval_runtime"]
    assert monitor_run(write_state(tmp_path, history)).pace.seconds_per_step is None
    history[-1] = {name: value for name, value in summary.items() if name not in tracked}
    assert monitor_run(write_state(tmp_path, history)).pace is None


def stats(seconds, **values):
    stamp = field(2, field(1, 0)[:1] + varint(seconds))
    each = (field(3, field(1, name.encode()) + field(16, str(value).encode())) for name, value in values.items())
    return field(7, stamp + b"".join(each))


def card(seconds, used, percent):
    of_card = {"gpu.1.memoryAllocatedBytes": used * GIB, "gpu.1.memoryAllocated": percent}
    other = {"gpu.0.memoryAllocatedBytes": GIB, "gpu.0.memoryAllocated": 2.5}  # which is less full
    return stats(seconds, **other, **of_card, cpu=1)


def at(step, seconds):
    return field(2, items(loss=2.0, _step=step, _timestamp=seconds))


START = 1_700_000_000
ROWS = [at(10 * i, START + 20 * i) for i in range(1, 10)]


ODD = ["NaN", "Infinity", "-1e308", "1e308", "1e999", "9" * 400, "true", "[]", '"x"', '"1e400"']


SIZES = [*((one, 12.5, None) for one in ODD), *((GIB, one, GIB) for one in [*ODD[:3], *ODD[4:], "5e-324", 0])]


@every(("used", "percent", "known"), SIZES)
def test_memory_that_is_no_number_of_bytes_is_left_out_and_the_log_is_read(
    tmp_path, import_events, used, percent, known
):
    """int() and round() of infinity and NaN were errors, in a log of which all else can be read."""
    log = offline(at(10, START), card_of(used, percent), at(20, START + 9), card_of(used, percent), at(30, START + 18))
    (tmp_path / "run-abc.wandb").write_bytes(log)
    events, _ = import_events(tmp_path)
    assert [one.step for one in events.of("train_step")] == [10, 20, 30]
    assert {(one.reserved_bytes, one.total_bytes) for one in events.of("throughput")} == {(known, None)}


def card_of(used, percent):
    return stats(START, **{"gpu.0.memoryAllocatedBytes": used, "gpu.0.memoryAllocated": percent})


def test_wandb_has_a_clock_and_what_its_monitor_read_of_the_card(tmp_path, import_events):
    path = tmp_path / "run-abc.wandb"
    path.write_bytes(offline(card(START + 30, 8, 50.0), *ROWS[:2], card(START + 90, 15, 93.75), *ROWS[2:3]))
    events, _ = import_events(path)
    assert [_told(event) for event in events.of("throughput")] == [
        (20, {"steps": 10, "seconds_per_step": 2.0, "reserved_bytes": 8 * GIB, "total_bytes": 16 * GIB}),
        (30, {"steps": 10, "seconds_per_step": 2.0, "reserved_bytes": 8 * GIB, "total_bytes": 16 * GIB}),
        (30, {"steps": 0, "reserved_bytes": 15 * GIB, "total_bytes": 16 * GIB}),  # after the last row
    ]
    assert pace_words(monitor_run(path).pace) == "2 s a step; 15.0 of 16.0 GiB reserved"


def test_without_a_card_wandbs_monitor_tells_of_the_process(tmp_path, import_events):
    path = tmp_path / "run-abc.wandb"
    of_process = {"proc.memory.rssMB": 512, "proc.memory.percent": 25.0}
    path.write_bytes(offline(*ROWS[:1], stats(START + 30, **of_process), ROWS[1]))
    told = _told(import_events(path)[0].of("throughput")[0])[1]
    assert (told["peak_bytes"], told["held_bytes"], told["total_bytes"]) == (GIB // 2, GIB // 2, 2 * GIB)


@pytest.mark.parametrize("code", [(), (field(18, field(1, 1)),)])
def test_an_error_of_memory_is_told_without_a_reading_of_memory(tmp_path, code):
    path = tmp_path / "run-abc.wandb"
    raised = "Traceback (most recent call last):\n  File x\ntorch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\n"
    batch = field(5, items(per_device_train_batch_size=4, max_length=2048))
    path.write_bytes(offline(batch, ROWS[0], field(13, field(3, raised.encode())), *code))
    (found,) = (found for found in monitor_run(path).findings if found.id == "CST195")
    assert (found.severity, found.confidence) == ("error", 0.95)
    assert found.message == "Out of memory at step 11, batch of 4 x at most 2,048."


def test_a_log_written_afterwards_has_no_speed(paces):
    def table(each):
        return [{"step": s, "loss": 2.0, "timestamp": START + s * each} for s in (10, 20, 30)]

    # TRL's PPO logs its value function, and no evaluation
    of_the_critic = [{**row, "val/ratio": 1.0, "val/num_eos_tokens": 3} for row in table(0.5)]
    assert [told["seconds_per_step"] for _, told in paces(of_the_critic, "ppo.jsonl")] == [0.5, 0.5]
    assert paces(table(1e-4), "log.jsonl") == []
    assert [told["seconds_per_step"] for _, told in paces(table(0.125), "log.jsonl")] == [0.125, 0.125]
