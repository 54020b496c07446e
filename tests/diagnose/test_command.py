"""The command: what is not seen is said, exit code 2 where it could not judge, one valid document with --json."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from jsonschema import Draft202012Validator

from gradience import diagnose
from gradience.cli.main import main
from gradience.rules.joins.run import JOINS
from gradience.rules.judged import IDS
from gradience.schema.diagnose import VERDICT_LABELS
from gradience.schema.export import json_schema


@pytest.mark.parametrize("kind", ["masked_nan", "untrained", "healthy"])
def test_json_is_one_valid_document_in_which_every_check_ran_or_is_listed_with_its_reason(trained, kind, capsys):
    assert main(["diagnose", str(trained(kind)), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    Draft202012Validator(json_schema("diagnose")).validate(document)
    assert document["schema"] == "gradience.diagnose/v3"
    assert document["headline"].startswith(VERDICT_LABELS[document["verdict"]])
    totals = {**{source: len(ids) for source, ids in IDS.items()}, "join": len(JOINS)}
    gone = {(item["source"], item["id"]) for item in document["not_run"] if item["reason"]}
    for covered in document["coverage"]:
        source = covered["source"]
        assert covered["total"] == totals[source]
        assert covered["judged"] + sum(of == source for of, _ in gone) == covered["total"]
    known = {*IDS["config"], *IDS["log"], *IDS["weights"], *(join.id for join in JOINS)}
    assert {item["id"] for item in (*document["not_run"], *document["findings"])} <= known


def test_the_first_lines_are_the_verdict_and_verbose_shows_the_grounds(trained, capsys):
    folder = str(trained("masked_nan"))
    assert main(["diagnose", folder]) == 0
    brief = capsys.readouterr().out
    assert brief.splitlines()[4].startswith("Verdict: BROKEN (1 error")
    assert not [word for word in ("evidence:", "      -> ") if word in brief]
    assert main(["diagnose", folder, "--verbose"]) == 0
    told = capsys.readouterr().out
    for word in ("      -> ", "evidence:", "confidence:", "verify:", "why:", "scope:"):
        assert word in told
    only_brief = sorted(set(brief.splitlines()) - set(told.splitlines()))
    (skipped,) = only_brief
    assert skipped.startswith("Skipped (missing input or not applicable): ")
    assert "--verbose" in skipped


@pytest.mark.parametrize(("kind", "bar", "code"), [("masked_nan", "error", 1), ("healthy", "warning", 0)])
def test_fail_on_turns_a_cause_into_exit_code_1(trained, kind, bar, code, capsys):
    assert main(["diagnose", str(trained(kind)), "--fail-on", bar]) == code


def test_an_empty_folder_could_not_be_judged_and_every_check_is_counted_and_on_request_listed(tmp_path, capsys):
    assert main(["diagnose", str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert "LR001" not in out
    assert "Verdict: COULD NOT JUDGE; checked: nothing; not there: config, log, weights" in out
    total = sum(map(len, IDS.values())) + len(JOINS)
    assert f"Skipped (missing input or not applicable): {total} (--verbose" in out
    assert main(["diagnose", str(tmp_path), "--verbose"]) == 2
    out = capsys.readouterr().out
    for rule in (rule for ids in IDS.values() for rule in ids):
        assert rule in out


def test_weights_that_cannot_be_read_are_never_fine(trained, tmp_path, capsys):
    copy = tmp_path / "out"
    shutil.copytree(trained("healthy"), copy)
    (copy / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    assert main(["diagnose", str(copy), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    states = {source["source"]: source["state"] for source in document["sources"]}
    assert states == {"config": "read", "log": "read", "weights": "unreadable"}
    assert document["verdict"] == "could_not_judge"
    lost = [item for item in document["not_run"] if item["source"] == "weights"]
    assert {item["id"] for item in lost} == set(IDS["weights"])
    assert all("adapter_model.safetensors" in item["reason"] for item in lost)


def test_a_broken_log_beside_good_weights_is_exit_code_2_and_keeps_what_the_weights_say(trained, tmp_path, capsys):
    copy = tmp_path / "out"
    shutil.copytree(trained("untrained"), copy, ignore=shutil.ignore_patterns("checkpoint-*"))
    (copy / "trainer_state.json").write_text('{"log_history": [')
    assert main(["diagnose", str(copy)]) == 2
    out = capsys.readouterr().out
    assert "log     NOT READABLE" in out
    assert "TRN202 (weights)" in out
    assert "BROKEN" in out


def test_the_weights_alone_can_be_judged_and_the_rest_is_said_to_be_absent(trained, tmp_path):
    only = tmp_path / "out"
    only.mkdir()
    shutil.copy(trained("untrained") / "adapter_model.safetensors", only)
    shutil.copy(trained("untrained") / "adapter_config.json", only)
    report = diagnose(only)
    assert [(s.source, s.state) for s in report.sources] == [("config", "read"), ("log", "absent"), ("weights", "read")]
    assert report.verdict == "broken"
    assert [c.id for c in report.findings if c.severity == "error"] == ["TRN202"]
    assert "not there: log" in report.headline


def test_sources_named_one_by_one_give_the_same_causes_as_the_folder(trained):
    folder = trained("untrained")
    whole = diagnose(folder)
    named = diagnose(run=folder, adapter=folder)
    assert {(c.id, c.severity) for c in named.findings} == {(c.id, c.severity) for c in whole.findings}


@pytest.mark.parametrize("arguments", [["missing"], [], [".", "--base", "no/such-base"]])
def test_bad_input_is_one_line_and_exit_code_2(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["diagnose", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gradience: ")
    assert err.count("\n") == 1


def test_neither_help_nor_a_log_alone_imports_jax_or_torch(trained, tmp_path):
    """One after the other in one interpreter: what either of them imports stays."""
    log = shutil.copy(trained("healthy") / "run.jsonl", tmp_path / "run.jsonl").as_posix()
    script = (
        "import sys\nfrom gradience.cli.main import main\n"
        f"main(['diagnose', '--help'])\nmain(['diagnose', {log!r}])\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"jax", "torch", "transformers"}.isdisjoint(done.stdout.splitlines()[-1].split())
    assert "Usage: " in done.stdout
    assert "Verdict: " in done.stdout


def test_real_folders_of_others_are_judged_without_an_error(shared_data):
    for folder in sorted((shared_data / "adapters").iterdir()):
        report = diagnose(folder)
        assert report.complete
        assert {source.source for source in report.sources if source.state == "read"} >= {"config", "weights"}
        assert report.verdict != "broken"  # by hand: all five are whole, one is random
    random_like = diagnose(shared_data / "adapters" / "dialogpt-random-r8")
    assert [cause.id for cause in random_like.findings] == ["RND203", "SIZ215"]  # and twice as large as fresh weights
