"""`gradience why`: the first step at which two logs part, and the one cause, or what to record to tell it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tables import every

from gradience import explain_difference
from gradience.cli.main import main
from gradience.errors import RecorderError
from gradience.events import StepDigests, Wiring
from gradience.schema.wiring import DataWiring, ParameterGroup
from gradience.telemetry import TelemetryWriter

ROWS = ["aa0001 aa0002", "aa0003 aa0004", "aa0005 aa0006", "aa0007 aa0008"]
SWAPPED = [ROWS[0], ROWS[2], ROWS[1], ROWS[3]]
LOSSES = [2.0, 1.9, 1.8, 1.7]
ADAPTER = {"kind": "adapter", "tensors": 2, "trainable": 8, "digest": "s1:a", "dtypes": ["float32"]}
BASE = {"kind": "base", "tensors": 2, "frozen_digest": "s1:b", "dtypes": ["float32"]}


def record(path: Path, config: dict[str, Any], **given: Any) -> Path:
    """A log of four steps: `adapter` and `base` are fields of their groups, other names those of what was seen."""
    with TelemetryWriter(path) as log:
        log.run_start(config, meta={"versions": given.get("versions", {"torch": "2.13"})})
        if given.get("wiring", True):
            groups = [ParameterGroup(**(usual | given.get(usual["kind"], {}))) for usual in (ADAPTER, BASE)]
            data = DataWiring(**given["data"]) if "data" in given else None
            log.looked(Wiring, 0, {"phase": "start", "groups": groups, "data": data, **given.get("look", {})})
            rng = [given.get("rng", "0")] * 4
            log.looked(StepDigests, 4, {"first": 1, "batches": given.get("batches", ROWS), "rng": rng})
        rates, norms = given.get("rates", [1e-3] * 4), given.get("norms", [1.0] * 4)
        for step, (loss, rate, norm) in enumerate(zip(given.get("losses", LOSSES), rates, norms, strict=True), 1):
            log.train_step(step, loss=loss, lr=rate, grad_norm=norm)
    return path


def nested(**settings: Any) -> dict[str, Any]:
    """A config of settings by their paths, with two underscores for a dot."""
    config: dict[str, Any] = {}
    for path, value in settings.items():
        *parents, name = path.split("__")
        level = config
        for parent in parents:
            level = level.setdefault(parent, {})
        level[name] = value
    return json.loads(json.dumps(config))


def explained(folder: Path, settings: dict[str, tuple[Any, Any]] | None = None, **second: Any) -> Any:
    """What parts a log from another, of settings with a value in each; `second` is what was seen in the other."""
    shutil.rmtree(folder / "logs", ignore_errors=True)
    (folder / "logs").mkdir()
    one, other = (nested(**{path: values[i] for path, values in (settings or {}).items()}) for i in (0, 1))
    first = record(folder / "logs" / "a.jsonl", one, **second.pop("first", {}))
    return explain_difference(first, record(folder / "logs" / "b.jsonl", other, **second))


EARLY = {"losses": [2.1, 2.0, 1.9, 1.8]}
LATE = {"losses": [2.0, 1.9, 1.85, 1.8]}  # as the first until step 2
SEED = {"training__seed": (0, 1)}


@every(
    ("settings", "second", "cause", "step"),
    [
        (SEED, {"batches": SWAPPED, **EARLY}, "seed", 1),
        (SEED, {"adapter": {"digest": "s1:c"}}, "seed", 0),
        ({}, {"adapter": {"digest": "s1:c"}, **EARLY}, "adapter_init", 0),
        ({}, {"base": {"frozen_digest": "s1:c"}, **EARLY}, "base_weights", 0),
        ({}, {"batches": SWAPPED, "losses": [2.0, 1.8, 1.8, 1.8]}, "order", 2),
        ({}, {"batches": [*ROWS[:2], "aa0005 bb0006", ROWS[3]], **LATE}, "data_row", 3),
        ({}, {"batches": [f"{row} cc0001" for row in ROWS], **EARLY}, "batch_size", 1),
        ({}, {"batches": [f"{row}|{row}" for row in ROWS], **EARLY}, "accumulation", 1),
        ({}, {"batches": [row.replace(" ", "|") for row in ROWS], **EARLY}, "accumulation", 1),
        ({"optimizer__lr": (1e-3, 2e-3)}, {"rates": [2e-3] * 4, **EARLY}, "lr", 1),
        ({}, {"rates": [2e-3] * 4, **EARLY}, "lr", 1),
        ({}, {"rates": [1e-4, 5e-4, 1e-3, 1e-3], **EARLY}, "warmup", 1),
        ({}, {"rates": [1e-3, 9e-4, 7e-4, 2e-4], **LATE}, "schedule", 2),
        ({}, {"look": {"dropouts": {"0.2": 4}}, **EARLY}, "dropout", 1),
        ({}, {"adapter": {"dtypes": ["bfloat16"], "digest": "s1:d"}, **EARLY}, "dtype", 0),
        ({}, {"versions": {"torch": "2.12"}, **LATE}, "version", 3),
        ({}, {"look": {"settings": {"threads": 2}}, **LATE}, None, 3),
    ],
)
def test_the_first_step_and_the_cause(tmp_path: Path, settings: Any, second: Any, cause: str | None, step: int):
    report = explained(tmp_path, settings, **second)
    assert report.step == step
    if cause is not None:
        assert (report.verdict, report.cause.cause) == ("one_cause", cause)


@every(
    ("setting", "one", "other", "cause", "words"),
    [
        ("training__seed", 0, 1, "seed", "the seed"),
        ("training__batch_size", 2, 4, "batch_size", "the batch size"),
        ("training__world_size", 1, 2, "batch_size", "the batch size"),
        ("training__gradient_accumulation", 1, 8, "accumulation", "the accumulation of gradients"),
        ("optimizer__lr", 1e-3, 2e-3, "lr", "the learning rate"),
        ("training__warmup_steps", 0.0, 2.0, "warmup", "the warm-up"),
        ("training__warmup_ratio", 0.0, 0.1, "warmup", "the warm-up"),
        ("training__lr_scheduler", "linear", "cosine", "schedule", "the schedule of the learning rate"),
        ("training__max_steps", 4, 8, "length", "the number of steps"),
        ("training__epochs", 1.0, 2.0, "length", "the number of steps"),
        ("training__dtype", "float32", "bfloat16", "dtype", "the dtype"),
        ("extras__quantization", "nf4", "int8", "dtype", "the dtype"),
        ("lora__dropout", 0.0, 0.1, "dropout", "the dropout"),
        ("lora__r", 4, 8, "adapter", "the adapter's configuration"),
        ("lora__alpha", 8.0, 16.0, "adapter", "the adapter's configuration"),
        ("lora__use_dora", False, True, "adapter", "the adapter's configuration"),
        ("lora__use_rslora", False, True, "adapter", "the adapter's configuration"),
        ("lora__bias", "none", "all", "adapter", "the adapter's configuration"),
        ("lora__init", "gaussian", "pissa", "adapter_init", "the adapter's initial weights"),
        ("optimizer__name", "adamw", "lion", "optimizer", "the optimizer"),
        ("optimizer__weight_decay", 0.0, 0.1, "optimizer", "the optimizer"),
        ("optimizer__betas", [0.9, 0.999], [0.9, 0.95], "optimizer", "the optimizer"),
        ("optimizer__eps", 1e-8, 1e-6, "optimizer", "the optimizer"),
        ("training__max_grad_norm", 1.0, 0.3, "clipping", "the clipping of gradients"),
        ("dataset_name", "x", "y", "data", "the data"),
        ("training__max_length", 512, 1024, "data", "the data"),
        ("model_name", "x", "y", "base_weights", "the base's weights"),
    ],
)
def test_a_setting_that_differs_is_the_cause_in_words_with_both_values(
    tmp_path: Path, setting: str, one: Any, other: Any, cause: str, words: str
) -> None:
    report = explained(tmp_path, {setting: (one, other)}, **EARLY)
    assert (report.verdict, report.step, report.cause.cause) == ("one_cause", 1, cause)
    assert (report.cause.first, report.cause.second) == (one, other)
    path = setting.replace("__", ".")
    assert report.story == (
        f"the runs part at step 1, where the loss differs: {words} ({path}: {report.cause.first} and "
        f"{report.cause.second})"
    )


def test_targets_in_another_order_are_the_same_targets(tmp_path: Path) -> None:
    key = "lora__target_modules"
    assert explained(tmp_path, {key: (["q", "v"], ["v", "q"])}, **EARLY).verdict == "unknown"
    assert explained(tmp_path, {key: (["q", "v"], ["v", "k"])}, **EARLY).cause.cause == "adapter"


@every(
    ("setting", "values", "seen"),
    [
        ("lora__dropout", (0.0, 0.1), {"batches": ["bb0001 bb0002", *ROWS[1:]]}),  # it draws no rows
        ("lora__dropout", (0.0, 0.1), {"adapter": {"digest": "s1:c"}}),  # and no weights
        ("optimizer__lr", (1e-3, 2e-3), {"adapter": {"digest": "s1:c"}}),
        ("training__max_grad_norm", (1.0, 0.3), {"rates": [2e-3] * 4}),
        ("training__max_grad_norm", (1.0, 0.3), {"batches": ["bb0001 bb0002", *ROWS[1:]]}),
        ("optimizer__eps", (1e-8, 1e-6), {"base": {"frozen_digest": "s1:c"}}),
        ("training__lr_scheduler", ("linear", "cosine"), {"batches": ["bb0001 bb0002", *ROWS[1:]]}),
        ("dataset_name", ("x", "y"), {"adapter": {"digest": "s1:c"}}),
        ("lora__r", (4, 8), {"rates": [2e-3] * 4}),
    ],
)
def test_a_setting_is_no_cause_of_what_it_cannot_change(
    tmp_path: Path, setting: str, values: tuple[Any, Any], seen: dict[str, Any]
) -> None:
    report = explained(tmp_path, {setting: values}, **seen, **EARLY)
    assert report.cause is None or report.cause.cause not in setting
    assert setting.replace("__", ".") not in report.story


@every(
    ("settings", "seen", "cause", "follows"),
    [
        ({"lora__r": (4, 8)}, {"adapter": {"digest": "s1:c"}}, "adapter", "adapter_init"),
        ({"lora__r": (4, 8)}, {"adapter": {"trainable": 16}}, "adapter", "trainable"),
        ({"training__dtype": ("float32", "bfloat16")}, {"base": {"frozen_digest": "s1:c"}}, "dtype", "base_weights"),
        ({"training__batch_size": (2, 4), "training__max_steps": (8, 4)}, {}, "batch_size", "length"),
        ({"training__gradient_accumulation": (1, 4), "training__epochs": (1, 2)}, {}, "accumulation", "length"),
        ({"dataset_name": ("x", "y")}, {"batches": ["bb0001 bb0002", *ROWS[1:]]}, "data", "data_row"),
        ({"training__seed": (0, 1)}, {"adapter": {"digest": "s1:c"}}, "seed", "adapter_init"),
        ({"model_name": ("x", "y")}, {"adapter": {"digest": "s1:c"}}, "base_weights", "adapter_init"),
    ],
)
def test_what_follows_from_a_cause_is_no_second_one(
    tmp_path: Path, settings: dict[str, Any], seen: dict[str, Any], cause: str, follows: str
) -> None:
    report = explained(tmp_path, settings, **seen, **EARLY)
    assert (report.verdict, report.cause.cause) == ("one_cause", cause)
    assert [each.cause for each in report.differences] == [cause, follows]


SEEN = {"seed": 1, "batch_size": 2, "accumulation": 1, "world_size": 1, "rows": 8, "sampler": "RandomSampler"}


@every(
    ("field", "value", "cause"),
    [
        ("seed", 2, "order"),
        ("batch_size", 4, "batch_size"),
        ("accumulation", 4, "accumulation"),
        ("world_size", 2, "batch_size"),
        ("rows", 9, "data"),
        ("sampler", "SequentialSampler", "order"),
    ],
)
def test_what_was_seen_of_the_data_is_a_cause_too(tmp_path: Path, field: str, value: Any, cause: str) -> None:
    first, other = {"data": SEEN}, {"data": SEEN | {field: value}}
    report = explained(tmp_path, first=first, **other, **EARLY)
    assert (report.verdict, report.cause.cause) == ("one_cause", cause)
    assert report.cause.says == f"{field}: {SEEN[field]} and {value}"


def test_a_gradient_norm_that_parts_alone_is_named_and_a_version_gives_way_to_a_setting(tmp_path: Path) -> None:
    report = explained(tmp_path, {"lora__dropout": (0.0, 0.1)}, norms=[1.0, 1.0, 1.2, 1.0])
    assert (report.step, [part.quantity for part in report.parts]) == (3, ["grad_norm"])
    assert report.story.startswith("the runs part at step 3, where the grad_norm differs: the dropout")


@every(
    ("seen", "causes"),
    [
        ({"adapter": {"digest": "s1:c"}}, {"adapter_init"}),
        ({"adapter": {"digest": "s1:c", "trainable": 16}}, {"adapter_init", "trainable"}),
        ({"base": {"frozen_digest": "s1:c"}}, {"base_weights"}),
        ({"adapter": {"trainable": 16}, "losses": [2.1, 2.0, 1.9, 1.8]}, {"trainable"}),
        ({"look": {"seed": 1}, "batches": ["bb0001 bb0002", *ROWS[1:]]}, {"seed"}),
        ({"batches": ["aa0003 aa0004", "aa0001 aa0002", *ROWS[2:]]}, {"order"}),
        ({"batches": ["aa0002 aa0001", *ROWS[1:]]}, {"order"}),
        ({"batches": ["aa0001|aa0002", *ROWS[1:]]}, {"accumulation"}),
    ],
)
def test_what_was_seen_to_part_has_these_causes(tmp_path: Path, seen: dict[str, Any], causes: set[str]) -> None:
    report = explained(tmp_path, **seen)
    assert report.verdict == ("one_cause" if len(causes) == 1 else "several")
    followed = {"data_row"} if "seed" in causes else set()
    assert {each.cause for each in report.differences} - followed == causes


def test_runs_that_do_not_part_say_so(tmp_path: Path):
    report = explained(tmp_path)
    assert (report.verdict, report.step, report.cause, report.parts) == ("same", None, None, [])
    assert report.story == "the runs do not part in what both recorded (weights, batch, rng, lr, loss, grad_norm)"


def test_random_states_count_where_they_change_the_loss(tmp_path: Path):
    assert explained(tmp_path, rng="1").verdict == "same"
    report = explained(tmp_path, rng="1", **EARLY)
    assert (report.step, report.parts[0].quantity) == (1, "rng")


def test_a_seed_is_no_cause_of_a_row_that_changed_later(tmp_path: Path):
    assert explained(tmp_path, SEED, batches=[ROWS[0], "aa0003 bb0004", *ROWS[2:]]).cause.cause == "data_row"
    assert explained(tmp_path, SEED, batches=["aa0001 bb0002", *ROWS[1:]]).cause.cause == "seed"


def test_versions_that_changed_nothing_are_named_all_the_same(tmp_path: Path):
    report = explained(tmp_path, versions={"torch": "2.12"})
    assert report.verdict == "same"
    assert report.story.endswith("; what differs: the versions")


def test_two_settings_that_act_from_the_same_step_are_both_named(tmp_path: Path):
    report = explained(tmp_path, {"lora__dropout": (0.1, 0.2), "optimizer__lr": (1e-3, 2e-3)}, **EARLY)
    assert report.verdict == "several"
    assert {each.cause for each in report.differences} == {"dropout", "lr"}


def test_other_rates_follow_from_another_batch_size(tmp_path: Path) -> None:
    late = {"rates": [1e-3, 9e-4, 7e-4, 2e-4], **EARLY}
    report = explained(tmp_path, {"training__batch_size": (2, 4)}, **late)
    assert (report.verdict, report.cause.cause) == ("one_cause", "batch_size")


def test_where_nothing_was_compared_it_is_unknown_whether_the_runs_are_the_same(tmp_path: Path) -> None:
    steps = {"wiring": False, "losses": [None] * 4, "rates": [None] * 4, "norms": [None] * 4}
    report = explained(tmp_path, {"lora__r": (4, 8)}, first=steps, **steps)
    assert (report.verdict, report.compared) == ("unknown", [])
    assert report.story == (
        "nothing could be compared: no step has the same quantity in both logs; what differs: the adapter's "
        "configuration"
    )


def test_a_rounding_of_the_loss_is_no_parting(tmp_path: Path):
    assert explained(tmp_path, losses=[2.0 * (1 + 1e-7), *LOSSES[1:]]).verdict == "same"
    report = explained(tmp_path, losses=[2.0 * (1 + 1e-5), *LOSSES[1:]])
    assert (report.verdict, len(report.not_told)) == ("unknown", 1)
    assert "kernels that are not deterministic" in report.not_told[0]
    assert explained(tmp_path, {"lora__dropout": (0.1, 0.2)}, **EARLY).not_told == []


def test_what_cannot_be_told_says_what_to_record(tmp_path: Path):
    report = explained(tmp_path, wiring=False, **LATE)
    assert report.verdict == "unknown"
    told = [says.partition(":")[0] for says in report.not_told]
    assert told == ["the weights before the first step", "the rows of each step"]
    assert report.compared == ["lr", "loss", "grad_norm"]


DROPOUT = [nested(lora__dropout=value) for value in (0.1, 0.2)]


def test_of_one_log_its_last_two_runs_are_compared_or_those_of_two_ids(tmp_path: Path):
    path = record(tmp_path / "run.jsonl", DROPOUT[0])
    with pytest.raises(RecorderError, match="nothing to compare it with"):
        explain_difference(path, path)
    record(path, DROPOUT[1], **EARLY)
    assert explain_difference(tmp_path, tmp_path).cause.cause == "dropout"
    ids = [json.loads(line)["run_id"] for line in path.read_text().splitlines() if '"run_start"' in line]
    assert explain_difference(path, path, runs=[each[:8] for each in ids]).cause.cause == "dropout"
    with pytest.raises(RecorderError, match="no run is called 'nowhere1'"):
        explain_difference(path, path, runs=["nowhere1", ids[1]])


def test_the_command_prints_the_story_and_its_exit_code_says_whether_it_could_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    a, b, c, d = (str(tmp_path / f"{name}.jsonl") for name in "abcd")
    record(Path(a), DROPOUT[0])
    record(Path(b), DROPOUT[1], **EARLY)
    record(Path(c), DROPOUT[0], **LATE)
    assert main(["why", a, b]) == 0
    assert capsys.readouterr().out.startswith(
        "The runs part at step 1, where the loss differs: the dropout (lora.dropout: 0.1 and 0.2).\n"
    )
    assert main(["why", a, c, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["verdict"] == "unknown"
    assert main(["why", a, d]) == 2


def test_a_run_that_was_to_resume_and_repeats_another_began_anew(tmp_path):
    rows = [{"step": step, "loss": 2.0 - step / 100, "epoch": step / 10} for step in range(1, 41)]
    state = {"log_history": rows, "global_step": 40, "max_steps": 40, "num_train_epochs": 4}
    for name, more in (("a", {}), ("b", {"resume_from_checkpoint": "a/checkpoint-40"}), ("c", {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps(state))
        (tmp_path / name / "training_args.json").write_text(json.dumps({"learning_rate": 1e-4, **more}))
    story = explain_difference(tmp_path / "a", tmp_path / "b").story
    assert story == (
        "the runs do not part in what both recorded (loss); b was to resume, and repeats the other from its first "
        "step: it did not resume, it began anew"
    )
    assert (
        explain_difference(tmp_path / "a", tmp_path / "c").story == "the runs do not part in what both recorded (loss)"
    )
