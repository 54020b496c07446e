"""One set of options for check, monitor, audit and diagnose: what is applied, how it is shown, when the code is 1."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from safetensors.numpy import save_file

from gradience import audit_adapter, diagnose, monitor_run
from gradience.cli.main import main
from gradience.errors import ConfigError
from gradience.rules import all_ids, cards_of
from gradience.rules.log.facts import DEFAULT_GAP
from gradience.schema import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.telemetry.writer import TelemetryWriter
from gradience.verbs.runs.rows import read_rows

ROOT = Path(__file__).parents[2]
STEM = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
GIVEN = {"check": "run.jsonl", "monitor": "run.jsonl", "audit": "peft", "diagnose": "."}
EXPECTED = {"check": {"LR001"}, "monitor": {"GAP111", "GAP118"}, "audit": {"TRN202"}, "diagnose": {"TRN202", "GAP111"}}
PLACES = {
    "check": {"run.jsonl"},
    "monitor": {"run.jsonl"},
    "audit": {"peft/adapter_model.safetensors"},
    "diagnose": {"run.jsonl", "peft/adapter_model.safetensors"},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose weights are zero, whose gap is large and whose learning rate is low."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "peft").mkdir()
    shapes = {"A": (4, 16), "B": (16, 4)}
    tensors = {
        STEM.format(i, half): np.full(shape, float(half == "A"), np.float32)
        for i in range(2)
        for half, shape in shapes.items()
    }
    save_file(tensors, tmp_path / "peft" / "adapter_model.safetensors")
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(CONFIG))
    lora = LoraSnapshot(r=4, alpha=8.0, target_modules=["q_proj"], task_type="CAUSAL_LM")
    config = ConfigSnapshot(
        optimizer=OptimizerSnapshot(name="adamw_torch", lr=1e-5),
        lora=lora,
        training=TrainingSnapshot(save_strategy="no"),
    )
    with TelemetryWriter(tmp_path / "run.jsonl") as log:
        log.run_start(config)
        for step in (10, 20):  # too few to bound a fall: NOL106 abstains, and GAP118 says so
            log.train_step(step, loss=1.0, epoch=step / 5)
        log.eval(20, split="train", metrics={"loss": 1.0})
        log.eval(20, split="test", metrics={"loss": 1.6, "n": 500})
        log.run_end()
    return tmp_path


def said(command: str, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, set[str], set[str]]:
    """Return the exit code, the ids found and the ids not judged; what is printed follows its committed schema."""
    code = main([command, GIVEN[command], "--json", *more])
    document = json.loads(capsys.readouterr().out)
    (committed,) = (ROOT / "schemas").glob(f"{command}-report-v*.schema.json")
    schema = json.loads(committed.read_text())
    Draft202012Validator(schema).validate(document)
    found = document.get("findings", [])
    pieces = {piece["id"] for cause in found for piece in cause.get("pieces", ()) if "severity" in piece}
    return code, pieces | {item["id"] for item in found}, {item["id"] for item in document.get("not_run", [])}


@pytest.mark.parametrize("command", GIVEN)
def test_what_is_ignored_is_found_nowhere_and_only_what_is_selected_is_found(
    command: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, _ = said(command, capsys)
    assert code == 0
    assert found >= EXPECTED[command]
    one = min(EXPECTED[command])
    _, found, not_run = said(command, capsys, "--ignore", one.lower())
    assert found >= EXPECTED[command] - {one}
    assert one not in found
    assert one in not_run
    _, found, not_run = said(command, capsys, "--select", one)
    assert found == {one}
    assert one not in not_run


@pytest.mark.parametrize("command", GIVEN)
def test_a_rule_of_another_command_is_refused_as_an_option_and_taken_in_the_settings(
    command: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "MRG401"
    assert main([command, GIVEN[command], "--ignore", other]) == 2
    assert other in capsys.readouterr().err
    (project / "gradience.toml").write_text(f"ignore = ['{other}']\n")
    _, found, _ = said(command, capsys)
    assert found >= EXPECTED[command]


@pytest.mark.parametrize("command", GIVEN)
def test_settings_apply_below_the_command_line(command: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = min(EXPECTED[command])
    (project / "gradience.toml").write_text(f"ignore = ['{gone}']\nfail-on = 'info'\n")
    code, found, _ = said(command, capsys)
    assert (code, gone in found) == (1 if found else 0, False)
    code, found, _ = said(command, capsys, "--settings", "none")
    assert (code, gone in found) == (0, True)
    (project / "other.toml").write_text("fail-on = 'info'\n")
    code, found, _ = said(command, capsys, "--settings", "other.toml", "--fail-on", "never")
    assert (code, gone in found) == (0, True)
    assert said(command, capsys, "--settings", "other.toml")[0] == 1


@pytest.mark.parametrize("command", ["monitor", "diagnose"])
def test_the_gap_of_the_settings_applies_and_the_option_goes_before_it(
    command: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "gradience.toml").write_text("gap-threshold = 3.0\n")
    assert "GAP111" not in said(command, capsys)[1]
    assert "GAP111" in said(command, capsys, "--gap-threshold", "1.2")[1]
    assert "GAP111" in said(command, capsys, "--settings", "none")[1]


@pytest.mark.parametrize("command", ["monitor", "diagnose"])
def test_the_help_names_the_gap_that_applies_without_the_option(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([command, "--help"])
    assert f"Default: {DEFAULT_GAP:g}" in re.sub(r"[\s│]+", " ", capsys.readouterr().out)


@pytest.mark.parametrize("command", GIVEN)
def test_github_points_at_the_file_that_a_finding_is_about(
    command: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, GIVEN[command], "--format", "github", "--fail-on", "info"]) == 1
    lines = capsys.readouterr().out.splitlines()
    parts = [
        re.fullmatch(r"::(notice|warning|error) file=([^,]+)(,line=\d+)?,title=gradience \w+::.+", x) for x in lines
    ]
    assert {part[2] for part in parts if part} == PLACES[command]


@pytest.mark.parametrize("command", GIVEN)
def test_sarif_describes_the_rules_of_the_command_and_holds_the_same_findings(
    command: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = pytest.importorskip("pydantic_sarif.model")
    assert main([command, GIVEN[command], "--format", "sarif"]) == 0
    document = json.loads(capsys.readouterr().out)
    model.StaticAnalysisResultsFormatSarifVersion210JsonSchema.model_validate(document)
    run = document["runs"][0]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert set(rules) <= set(all_ids())
    results = {result["ruleId"] for result in run["results"]}
    assert results <= said(command, capsys)[1]
    assert results
    places = {result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in run["results"]}
    assert places == PLACES[command]
    assert run["invocations"][0]["toolExecutionNotifications"]


def test_every_rule_that_a_log_can_break_is_described(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["monitor", "run.jsonl", "--format", "sarif"])
    driver = json.loads(capsys.readouterr().out)["runs"][0]["tool"]["driver"]
    assert [rule["id"] for rule in driver["rules"]] == [card.id for card in cards_of("log", "joins")]
    assert all(rule["help"]["text"].startswith("When: ") for rule in driver["rules"])


def test_several_runs_are_no_sarif(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["monitor", "run.jsonl", "run.jsonl", "--format", "sarif"]) == 2
    assert "--format sarif is for one run" in capsys.readouterr().err


def test_an_imported_folder_points_at_its_own_log(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "out").mkdir()
    rows = [{"step": s, "loss": float("nan"), "epoch": 1.0} for s in range(1, 9)]  # what is worth a line in a review
    state = {"global_step": 8, "log_history": rows}
    (project / "out" / "trainer_state.json").write_text(json.dumps(state))
    assert main(["monitor", "out", "--format", "github"]) == 0
    assert "file=out/trainer_state.json," in capsys.readouterr().out


def test_python_callers_select_too_and_read_no_settings_unless_asked(project: Path) -> None:
    (project / "gradience.toml").write_text("select = ['RND203']\n")
    calls: list[Any] = [
        (monitor_run, "run.jsonl", "findings", "GAP118"),
        (audit_adapter, "peft", "findings", "TRN202"),
        (diagnose, ".", "findings", "TRN202"),
    ]
    for verb, path, field, rule in calls:
        assert {item.id for item in getattr(verb(path, select=[rule]), field)} == {rule}
        assert getattr(verb(path), field)
        assert not getattr(verb(path, settings="gradience.toml"), field)
        with pytest.raises(ConfigError, match="NOPE"):
            verb(path, ignore=["NOPE"])
    assert [row.findings for row in read_rows("run.jsonl", "run.jsonl", ignore=["GAP", "LR001"])] == ["", ""]


def test_an_ignored_finding_is_not_in_the_story_either(project: Path) -> None:
    assert "test loss 1.6 against 1 in training" in monitor_run("run.jsonl").story
    assert "against" not in monitor_run("run.jsonl", ignore=["GAP111"]).story


def test_an_ignored_join_leaves_its_findings_alone(project: Path) -> None:
    """The log stops, and by the configuration nothing was to be saved."""
    with (project / "run.jsonl").open() as log:
        kept = [line for line in log if '"run_end"' not in line]
    (project / "run.jsonl").write_text("".join(kept))
    joined = [cause for cause in diagnose(".").findings if cause.joined]
    assert [cause.id for cause in joined] == ["END312"]
    apart = diagnose(".", ignore=["END312"])
    assert not [cause for cause in apart.findings if cause.joined]
    assert {"END114"} <= {cause.id for cause in apart.findings}
    assert {(item.id, item.reason) for item in apart.not_run} >= {("END312", "ignored on request")}


@pytest.mark.parametrize(("bias", "found", "code"), [("none", [], 0), ("all", ["BIA001"], 1)])
def test_a_reading_alone_never_makes_the_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bias: str, found: list[str], code: int
) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(CONFIG | {"base_model_name_or_path": "meta-llama/Llama-2-7b", "bias": bias}))
    assert main(["check", str(file), "--fail-on", "info", "--json"]) == code
    report = json.loads(capsys.readouterr().out)
    assert [item["id"] for item in report["findings"]] == found
    assert [item["id"] for item in report["readings"]] == ["TGT001"]
