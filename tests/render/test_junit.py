"""JUnit: a rule is a test, which fails by a finding of warning or graver, passes, or is skipped with its reason."""

from __future__ import annotations

from xml.etree import ElementTree as ET  # what we wrote ourselves is read

from gradience.blocks.programs import junit_xml
from gradience.cli import main
from gradience.schema.document import Finding, NotRun, RuleCard
from gradience.schema.reports import SourceLocation


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
