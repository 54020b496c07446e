"""Findings for other programs: SARIF against models of its official schema, GitHub's commands read back, JUnit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET  # what we wrote ourselves is read

import msgspec
import pytest
from hypothesis import given, strategies as st
from tables import every

from gradience.blocks.programs import github_lines, junit_xml, sarif_log
from gradience.cli import main
from gradience.schema.document import Evidence, Finding, NotRun, RuleCard
from gradience.schema.reports import SourceLocation

TEXT = st.text(max_size=40)
FINDINGS = st.lists(
    st.builds(
        Finding,
        id=st.sampled_from(["LR001", "TGT002", "OWN9"]),
        severity=st.sampled_from(["info", "warning", "error", "critical"]),
        message=TEXT,
        action=st.none() | TEXT,
        rationale=st.none() | TEXT,
        confidence=st.none() | st.floats(0, 1),
        evidence=st.lists(st.builds(Evidence, source=TEXT, says=TEXT), max_size=2),
        values=st.dictionaries(TEXT, st.none() | st.integers(-9, 9) | TEXT, max_size=2),
    ),
    max_size=4,
)
PATHS = st.sampled_from(["a.json", "b c/é%.yaml", "/etc/x.json", "../up.json", "a,b:c.json"])
LOCATIONS = st.none() | st.builds(SourceLocation, PATHS, st.none() | st.integers(1, 9))
KNOWN = [
    RuleCard(id="LR001", title="low rate", severity="warning", condition="lr is low", rationale="because", action="do",
        evidence=[Evidence(source="s", says="t")])
]  # fmt: skip
COMMAND = re.compile(r"::(?P<command>notice|warning|error) (?P<parameters>[^\n]*?)::(?P<data>[^\r\n]*)")


def log(findings: list[Finding], locations: list[SourceLocation | None], root: Path = Path("/srv")) -> dict[str, Any]:
    not_run = [NotRun(id="LR001", reason="no lr"), NotRun(id="NEW1", reason="why\nnot")]
    made = sarif_log(findings, locations=locations, known=KNOWN, not_run=not_run, version="1.2.3", root=root)
    return json.loads(msgspec.json.encode(made))


@given(st.data())
def test_any_findings_are_valid_sarif(data: st.DataObject) -> None:
    """pydantic-sarif is generated from OASIS's sarif-schema-2.1.0.json, and refuses what the schema does."""
    model = pytest.importorskip("pydantic_sarif.model")
    findings = data.draw(FINDINGS)
    locations = [data.draw(LOCATIONS) for _ in findings]
    document = log(findings, locations)
    model.StaticAnalysisResultsFormatSarifVersion210JsonSchema.model_validate(document)
    assert document["version"] == "2.1.0"
    run = document["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    assert len({rule["id"] for rule in rules}) == len(rules)


def test_a_rule_carries_its_help_and_default_level_and_a_result_its_place(tmp_path: Path) -> None:
    finding = Finding(id="LR001", severity="info", message="low", action="raise", confidence=0.5, values={"lr": 1e-5})
    document = log([finding], [SourceLocation("c.json", 7)], tmp_path)
    rule = document["runs"][0]["tool"]["driver"]["rules"][0]
    assert rule["shortDescription"]["text"] == "Low rate."
    assert rule["defaultConfiguration"] == {"level": "warning"}
    assert "Evidence: s: t" in rule["help"]["text"]
    result = document["runs"][0]["results"][0]
    assert (result["level"], result["message"]["text"]) == ("note", "low (raise)")
    assert result["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "c.json"},
        "region": {"startLine": 7},
    }
    assert result["properties"] == {"severity": "info", "confidence": 0.5, "values": {"lr": 1e-5}}


def test_what_was_not_judged_is_a_notification() -> None:
    notes = log([], [])["runs"][0]["invocations"][0]["toolExecutionNotifications"]
    assert [note["level"] for note in notes] == ["note", "note"]
    assert notes[0]["associatedRule"] == {"id": "LR001", "index": 0}
    assert "no lr" in notes[0]["message"]["text"]


@every(
    ("path", "uri"),
    [
        ("a b.json", "a%20b.json"),
        ("{root}/deep/c.json", "deep/c.json"),
        ("{root}/../other.json", "{parent}/other.json"),
    ],
)
def test_paths_are_relative_to_the_working_folder_where_they_can_be(path: str, uri: str, tmp_path: Path) -> None:
    finding = Finding(id="LR001", severity="info", message="m")
    document = log([finding], [SourceLocation(path.format(root=tmp_path))], tmp_path)
    found = document["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert found == uri.format(parent=tmp_path.parent.as_uri())


def unescaped(text: str) -> str:
    """Return what the runner makes of it (actions/runner, ActionCommand)."""
    for mark, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(mark, character)
    return text


@given(st.data())
def test_any_finding_is_one_command_that_reads_back(data: st.DataObject) -> None:
    """No text of the input can end the command, start another, or add a parameter."""
    findings = data.draw(FINDINGS)
    locations = [data.draw(LOCATIONS) for _ in findings]
    lines = list(github_lines(findings, locations=locations))
    assert len(lines) == len(findings)
    for finding, at, line in zip(findings, locations, lines, strict=True):
        hit = COMMAND.fullmatch(line)
        assert hit is not None
        parameters = dict(item.split("=", 1) for item in hit["parameters"].split(","))
        assert unescaped(parameters["title"]) == f"gradience {finding.id}"
        assert ("file" in parameters) is (at is not None)
        if at is not None:
            assert unescaped(parameters["file"]) == at.path
            assert parameters.get("line") == (None if at.line is None else str(at.line))


def test_an_annotation_names_severity_file_line_and_message() -> None:
    finding = Finding(id="LR001", severity="warning", message="50 % too low", action="raise it")
    (line,) = github_lines([finding], locations=[SourceLocation("conf/a,b.yaml", 3)])
    assert line == "::warning file=conf/a%2Cb.yaml,line=3,title=gradience LR001::50 %25 too low (raise it)"


def test_each_rule_is_a_case_with_its_outcome():
    findings = [
        Finding(id="A1", severity="warning", message="a\x1b[31m <b> & ü", action="do this"),
        Finding(id="A2", severity="info", message="by the way"),
        Finding(id="A3", severity="critical", message="broken"),
    ]
    cards = [RuleCard(id=name, title=name, severity="info") for name in ("A1", "A2", "A3", "A4", "A5")]
    at = [SourceLocation("x.yaml", 3), None, SourceLocation("x.yaml", None)]
    text = junit_xml(findings, locations=at, known=cards, not_run=[NotRun(id="A5", reason="no base")])
    assert text.isascii()
    root = ET.fromstring(text)  # noqa: S314  # ours
    assert root.attrib == {"name": "gradience", "tests": "5", "failures": "2", "skipped": "1"}
    cases = {case.get("name"): case for case in root.iter("testcase")}
    first = cases["A1"].find("failure")
    assert first is not None
    assert (first.get("type"), first.get("message"), first.text) == ("warning", "a <b> & ü", "a <b> & ü\ndo this")
    assert (cases["A1"].get("file"), cases["A1"].get("line"), cases["A3"].get("line")) == ("x.yaml", "3", None)
    assert cases["A2"].findtext("system-out") == "by the way"
    assert list(cases["A4"]) == []
    skipped = cases["A5"].find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "no base"


def test_a_config_is_judged_as_tests(tmp_path, capsys):
    config = tmp_path / "sft.yaml"
    config.write_text("adapter: lora\nlora_r: 8\nlora_alpha: 16\nlearning_rate: 0.5\n", encoding="utf-8")
    assert main.main(["check", str(config), "--format", "junit", "--fail-on", "warning"]) == 1
    root = ET.fromstring(capsys.readouterr().out)  # noqa: S314  # ours
    assert any(case.get("line") == "4" for case in root.iter("testcase") if case.find("failure") is not None)
