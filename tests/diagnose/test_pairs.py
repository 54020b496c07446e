"""No two verbs contradict each other about one run: the table of pairs, over every log and configuration at hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from log_runs import AT, RUNS, field_logs
from pairs import PAIRS, contradictions, stated
from tables import every, few

from gradience import check_config, diagnose
from gradience.errors import GradienceError
from gradience.rules import all_ids
from gradience.rules.log import detect
from gradience.rules.log.story import story_parts
from gradience.schema.reports import TrainSummary

CONFIGS: dict[str, dict[str, Any]] = {  # what may lie beside a log: rates too low and too high, and little recorded
    "low": {"learning_rate": 1e-6, "eval_strategy": "no", "num_train_epochs": 30},
    "high": {"learning_rate": 5e-2, "warmup_ratio": 0.9, "max_steps": -1},
    "blind": {"learning_rate": 2e-4, "logging_steps": 10_000, "save_strategy": "no", "max_steps": 50},
}
ADAPTER = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
FACTS = {"learns", "unknown", "no better", "evaluated", "rows", "fine", "wrong"}


def test_every_pair_names_statements_that_exist():
    for pair in PAIRS:
        assert {pair.one, pair.other} <= {*all_ids(), *FACTS}, pair
        assert pair.why
    assert len(PAIRS) == len({frozenset(pair[:2]) for pair in PAIRS})


@every(
    ("statements", "found"),
    [
        ({"LR001", "PLT105"}, [("LR001", "PLT105")]),
        ({"LR001", "NOL106"}, []),
        ({"NOL106", "learns", "PLT105"}, [("NOL106", "learns"), ("NOL106", "PLT105")]),
        (set(), []),
    ],
)
def test_what_stands_together_is_found(statements, found):
    assert [pair[:2] for pair in contradictions(statements)] == found


def folders(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Published logs, each beside one of the configurations in turn."""
    for log, name in zip(few(field_logs(), each=2), cycle(CONFIGS), strict=False):
        folder = tmp_path / f"{log.stem}-{name}"
        folder.mkdir()
        (folder / "trainer_state.json").write_bytes(log.read_bytes())
        (folder / "training_args.json").write_text(json.dumps(CONFIGS[name]))
        (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
        yield folder.name, folder


def test_the_verbs_agree_on_every_published_log_beside_any_configuration(tmp_path):
    faults = {}
    for name, folder in folders(tmp_path):
        if found := contradictions(stated(diagnose(folder), check_config(document=folder))):
            faults[name] = [pair[:2] for pair in found]
    assert faults == {}


def test_the_findings_and_the_story_agree_on_every_run_of_the_thresholds():
    faults = {}
    for name, run in (RUNS | AT).items():
        losses, findings = run.series.losses, detect(run).told
        train = TrainSummary(rows=len(losses), first_loss=losses[0] if losses else None, last_loss=[None, *losses][-1])
        statements = {item.id for item in findings}
        story = story_parts(run, findings, train)
        statements |= {"learns"} if any(part.says.startswith("learns") for part in story) else set()
        if found := contradictions(statements):
            faults[name] = [pair[:2] for pair in found]
    assert faults == {}


@pytest.mark.parametrize(
    "kind", ["masked_nan", "untrained", "zero_rate", "diverged", "head_only", "overfit", "healthy"]
)
def test_the_verbs_agree_on_real_runs_with_a_known_fault(trained, kind):
    folder = trained(kind)
    assert contradictions(stated(diagnose(folder), check_config(document=folder))) == []


def test_the_verbs_agree_on_the_real_files_of_others(shared_data):
    """Every folder and log that was collected for trying on."""
    places = [*(shared_data / "field").glob("*.json"), *(shared_data / "trainer_states").glob("*.json")]
    places += [*(shared_data / "runs").glob("*.jsonl"), *(shared_data / "field2").glob("*/")]
    assert len(places) > 20
    faults = {}
    for place in places:
        reports: list[Any] = []
        for verb in (diagnose, lambda path: check_config(document=path)):
            try:
                reports.append(verb(place))
            except GradienceError:
                continue
        if found := contradictions(stated(*reports)):
            faults[place.name] = [pair[:2] for pair in found]
    assert faults == {}
