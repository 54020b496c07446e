"""`gradience report` as a user meets it: what it writes, refuses, how it exits; its comment is no markup of a log."""

from __future__ import annotations

import re
import tomllib

import pytest
from hypothesis import example, given, strategies as st
from markdown_it import MarkdownIt
from pages import gather, parse
from tables import every

import gradience
from gradience.blocks import clean
from gradience.blocks.markdown import escape
from gradience.cli.main import main
from gradience.verbs.report.run import report_text


def failure(capsys, *tokens) -> str:
    assert main(["report", *map(str, tokens)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("gradience: ")
    return err


def test_without_a_file_markdown_goes_to_the_terminal(log, capsys):
    assert main(["report", str(log)]) == 0
    assert re.match(r"### Gradience report: run\d+ \(acme/base-7b\)\n", capsys.readouterr().out)


def test_the_format_is_told_by_the_suffix_or_by_the_option(log, tmp_path, capsys):
    assert main(["report", str(log), "--out", str(tmp_path / "a.md")]) == 0
    assert main(["report", str(log), "--out", str(tmp_path / "a.txt"), "--format", "md"]) == 0
    assert (tmp_path / "a.md").read_bytes() == (tmp_path / "a.txt").read_bytes()
    assert "--format" in failure_after(capsys, log, "--out", tmp_path / "b.txt")
    assert "--out report.html" in failure(capsys, log, "--format", "html")


def failure_after(capsys, *tokens) -> str:
    capsys.readouterr()
    return failure(capsys, *tokens)


def test_a_file_that_is_there_is_kept_unless_force_is_given(log, tmp_path, capsys):
    out = tmp_path / "report.html"
    out.write_text("mine")
    assert "--force" in failure(capsys, log, "--out", out)
    assert out.read_text() == "mine"
    assert main(["report", str(log), "--out", str(out), "--force"]) == 0
    assert out.read_text(encoding="utf-8") != "mine"


def test_a_report_that_fails_leaves_nothing_and_keeps_what_was_there(log, tmp_path, capsys):
    out = tmp_path / "report.html"
    out.write_text("mine")
    failure(capsys, log, "--adapter", tmp_path / "missing", "--out", out, "--force")
    assert out.read_text() == "mine"
    failure(capsys, tmp_path / "missing.jsonl", "--out", tmp_path / "other.html")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["report.html"]


def test_nothing_to_report_on_and_a_base_without_weights_are_errors_that_say_what_to_do(log, tmp_path, capsys):
    assert "--adapter" in failure(capsys)
    assert "safetensors" in failure(capsys, log, "--base", tmp_path)


def test_a_source_that_cannot_be_read_is_exit_code_two_and_the_rest_is_written(log, adapter, tmp_path, capsys):
    damaged = tmp_path / "adapter_model.safetensors"
    damaged.write_bytes(b"not tensors")
    out = tmp_path / "a.html"
    assert main(["report", str(log), "--adapter", str(damaged), "--out", str(out), "--fail-on", "info"]) == 2
    assert "unreadable" in out.read_text(encoding="utf-8")
    assert "not readable, so not judged: weights: " in capsys.readouterr().out
    assert str(damaged) in failure_after(capsys, damaged, "--out", tmp_path / "b.html")
    assert not (tmp_path / "b.html").exists()


@pytest.mark.parametrize("tokens", [["--out", "a.html"], ["--out", "a.md", "--format", "html"]])
def test_a_page_without_matplotlib_is_one_line_with_the_command_that_installs_it(
    log, tokens, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gradience.commands.page.find_spec", lambda _: None)
    assert failure(capsys, log, *tokens) == (
        "gradience: an HTML report needs matplotlib, which is not installed"
        " (in the clone: pip install -e '.[report]'; or give --format md)\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_install_command_names_an_extra_that_brings_matplotlib(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [line.partition(">")[0] for line in project["optional-dependencies"]["report"]] == ["matplotlib"]
    assert not any("matplotlib" in line for line in project["dependencies"])


def test_the_library_writes_the_same_page_and_returns_what_it_says(log, tmp_path):
    assert main(["report", str(log), "--out", str(tmp_path / "a.html")]) == 0
    story = gradience.write_report(log, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert story.diagnosis.monitor is not None
    assert story.series is not None
    assert list(story.series.steps) == list(range(1, 121))


def test_an_adapter_alone_and_a_config_alone_have_a_report(adapter, capsys):
    assert main(["report", "--adapter", str(adapter)]) == 0
    assert "Suggested rank" in capsys.readouterr().out
    assert main(["report", "--config", str(adapter / "adapter_config.json")]) == 3
    assert "no log was named" in capsys.readouterr().out


GFM = MarkdownIt("gfm-like", {"html": True, "linkify": False})


@given(st.text(st.characters(codec="utf-8"), max_size=80))
@example("a|b **c** `d` [e](javascript:f) <script>alert(1)</script> ~~g~~ &lt; \\| __h__ ![i](j)")
@example("*_*")
@example("$x$ <!-- y -->")
def test_a_cell_shows_the_text_and_nothing_else(text):
    shown = clean(text).strip()
    found = parse(GFM.render(f"| a | b |\n|---|---|\n| x{escape(text)}x | c |\n"))
    assert {name for name, _ in found.elements} == {"table", "thead", "tbody", "tr", "th", "td"}
    assert [name for name, _ in found.elements].count("td") == 2
    assert " ".join(f"x{clean(text)}x".split()) in " ".join(found.text.split())
    assert shown in found.text or not shown.isascii() or "  " in shown


@every("text", ["@someone", "fixes #12", "a/repo#3", "see https://evil.example/x", "www.evil.example"])
def test_no_one_is_summoned_and_no_address_becomes_a_link(text):
    written = escape(text)
    for trigger in ("@s", "#1", "#3", "https:/", "www.e"):
        assert trigger not in written


def test_a_report_on_everything_is_short_and_parses(log, adapter):
    story = gather(log, adapter=adapter)
    text = report_text(story, "md")
    found = parse(GFM.render(text))
    assert len(text) < 8_000
    assert len(found.all("table")) == 5
    for words in (
        "acme/base-7b",
        "ended, step 120 of 120",
        "trained",
        "most modules",
        "DIV103",
        "Skipped (missing input or not applicable): ",
    ):
        assert words in found.text


def test_a_hostile_model_name_stays_text(write_log):
    name = "x | <img src=q onerror=alert(1)> @everyone"
    text = report_text(gather(write_log(model=name)), "md")
    assert "img" not in {element for element, _ in parse(GFM.render(text)).elements}
    assert "@everyone" not in text
