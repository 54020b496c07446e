"""Rows 17, 18 and 23, how a command ends: whole output, or one line and an exit code that says so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from hostile.inputs import adapter, factors, lay_out, log_line, run_log, trainer_state
from hostile.outcome import raw_controls
from tables import every, grid, once

UNWRITABLE = 2


LIGHT = {
    "rules": ["rules"],
    "rules --json": ["rules", "--json"],
    "monitor": ["monitor", "run.jsonl"],
    "check --format sarif": ["check", "run.jsonl", "--format", "sarif"],
    "check --format github": ["check", "run.jsonl", "--set", "lr=1", "--format", "github"],
    "--help": ["--help"],
    "--version": ["--version"],
}
FORKED = """
import os, sys
{stdout}
sys.argv = {argv!r}
from gradience.cli.main import script
raise SystemExit(script())
"""
FULL_DISK = "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
CLOSED = "sys.stdout = None; os.close(1)"  # as the interpreter begins without one
READER_GONE = "read, write = os.pipe(); os.close(read); os.dup2(write, 1)"


def forked(run, stdout, argv):
    """Run a command in a fork whose stdout is what the code makes of it."""
    return run(python=FORKED.format(stdout=stdout, argv=["gradience", *argv]))


@once(case=LIGHT, stdout=[FULL_DISK, CLOSED])
def test_a_stdout_that_takes_nothing_is_one_line_of_error(run, tmp_path, case, stdout):
    run_log(tmp_path / "run.jsonl")
    told = forked(run, stdout, LIGHT[case])
    assert told.code == UNWRITABLE
    assert len(told.errors) == 1
    assert "Errno" not in told.err


@pytest.mark.parametrize(("onto", "code"), [(">&-", {UNWRITABLE}), ("> /dev/full", {UNWRITABLE}), ("| true", {0, 141})])
def test_so_does_a_whole_interpreter_whose_end_writes_nothing_more(tmp_path, onto, code):
    run_log(tmp_path / "run.jsonl")
    shell = f'set -o pipefail; "{sys.executable}" -m gradience monitor run.jsonl {onto}'
    told = subprocess.run(["bash", "-c", shell], cwd=tmp_path, stderr=subprocess.PIPE, timeout=300, check=False)
    assert told.returncode in code
    assert len(told.stderr.splitlines()) == (told.returncode == UNWRITABLE)


@pytest.mark.parametrize("case", LIGHT)
def test_a_reader_that_went_away_is_no_error(run, tmp_path, case):
    run_log(tmp_path / "run.jsonl")
    told = forked(run, READER_GONE, LIGHT[case])
    assert told.err == ""
    assert told.code in {0, 141}


@grid(each=2, options=[[], ["--json"], ["-v"]], encoding=["ascii", "latin-1", "cp1252", "utf-16", "ascii:strict"])
def test_a_stdout_that_has_no_such_letters_gets_the_report_all_the_same(run, tmp_path, options, encoding):
    alert = log_line("alert", 2, severity="info", code="größe", message="模型 ✓ \U0001f600")
    run_log(tmp_path / "läuft-模型.jsonl", alert, config={"model_name": "org/模型", "notes": "naïve ✓"})
    codec, _, errors = encoding.partition(":")
    stdout = f"sys.stdout = open('out', 'w', encoding={codec!r}, errors={errors or None!r})"
    told = forked(run, stdout, ["monitor", "läuft-模型.jsonl", *options])
    assert (told.code, told.err) == (0, "")
    written = (tmp_path / "out").read_bytes()
    assert written
    if options == ["--json"]:
        json.loads(written.decode("utf-8" if codec in {"ascii", "latin-1", "cp1252"} else codec))


def test_the_c_locale_gets_the_report_all_the_same(tmp_path):
    run_log(tmp_path / "run.jsonl", config={"model_name": "org/模型"})
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "gradience", "monitor", "run.jsonl"]
    told = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=300, check=False)
    assert (told.returncode, told.stderr) == (0, b"")


LOOKING = (
    *("audit @a --json", "audit @a", "check --peft-dir @a --base @base --json", "check --peft-dir @a --format sarif"),
    *("compare @a @b --json", "convert @a --to mlx --out @c --json", "diagnose @ --json", "import @state --json"),
    *("monitor @run.jsonl --format sarif", "report @ --out @page.html", "audit @nowhere --json"),
    "runs @ --out @s",
)


@every("line", LOOKING)
def test_a_path_that_is_not_utf_8_is_shown_and_stays_json(run, tmp_path, line):
    name = os.fsdecode(b"a\xff\xfeb")
    lay_out(tmp_path / name)
    told = run(*line.replace("@", f"{name}/").split(" "), cwd=tmp_path)
    assert told.code in {0, 1, 2, 3}
    assert len(told.errors) <= (told.code == 2)
    if told.code != 2 and ("--json" in line or "sarif" in line):
        json.loads(told.out)


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.argv = {argv!r}
from gradience.cli.main import script
raise SystemExit(script())
"""
WRITING = {
    "report": ["report", ".", "--out", "out.html"],
    "report.md": ["report", ".", "--out", "out.md"],
    "report --force": ["report", ".", "--out", "old.html", "--force"],
    "import": ["import", "state", "--out", "out.jsonl"],
    "resize": ["resize", "a", "--rank", "2", "--out", "out"],
    "resize --force": ["resize", "a", "--rank", "2", "--out", "b", "--force"],
    "convert": ["convert", "a", "--to", "mlx", "--out", "out"],
    "merge": ["merge", "a", "b", "--out", "out"],
    "audit --append": ["audit", "a", "--append", "run.jsonl"],
}


def listing(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".lock" not in p.name
    }


@grid(each=2, verb=WRITING, limit=[0, 900])
def test_a_full_disk_leaves_nothing_half_written_and_is_one_line_of_error(run, tmp_path, verb, limit):
    place = lay_out(tmp_path / "place")
    (place / "old.html").write_text("mine")
    before = listing(place)
    told = run(cwd=place, python=FULL.format(limit=limit, argv=["gradience", *WRITING[verb]]))
    # stdout is a file here too: the limit may cut it, which is for another test
    assert "Traceback" not in told.err
    if told.code != 0:
        assert told.code == 2
        assert listing(place) == before or verb == "audit --append"


CONTROLS = (
    *("\x9b31m", "\x85", "\x7f", "\x1b[31m", "\x07", "\r"),  # for the terminal: CSI of eight bits, NEL, DEL, ESC, BEL
    *("\u2028", "\u2029"),  # ends of lines, to some
    *("\u202e", "\u2066", "\u200f", "\u061c", "\U000e0041"),  # that turn the order of letters, or hide
)
FORMATS = [
    ["monitor", "run.jsonl"],
    ["monitor", "run.jsonl", "--json"],
    ["monitor", "run.jsonl", "--format", "sarif"],
    ["monitor", "run.jsonl", "--format", "github"],
    ["check", "c.json"],
    ["check", "c.json", "--json"],
    ["check", "c.json", "--format", "sarif"],
    ["check", "c.json", "--format", "github"],
    ["audit", "a", "--json"],
    ["audit", "a", "-v"],
    ["audit", "a", "--format", "github"],
    ["diagnose", ".", "--json"],
    ["diagnose", ".", "--format", "sarif"],
    ["diagnose", "."],
    ["report", "."],
    ["report", ".", "--out", "page.html"],
    ["import", "state", "--out", "o.jsonl", "--json"],
    ["merge", "a", "a", "--check", "--json"],
    ["validate", "bad.jsonl", "--json"],
    ["validate", "bad.jsonl"],
]


@every("argv", FORMATS)
def test_no_control_character_of_an_input_reaches_an_output_as_itself(run, tmp_path, argv):
    evil = f"a{'c'.join(CONTROLS)}b"
    config = {"model_name": evil, "notes": evil, "lora": {"r": 4, "alpha": 8.0, "target_modules": [evil]}}
    lines = [
        log_line("alert", 2, severity="warning", code=evil, message=evil),
        log_line("train_step", 3, loss="NaN", **{evil: evil}),
        log_line("eval", 3, split=evil, metrics={"loss": 1.0}),
    ]
    run_log(tmp_path / "run.jsonl", *lines, config=config)
    run_log(tmp_path / "bad.jsonl", log_line("train_step", evil), f"{evil}", log_line(evil, evil))
    (tmp_path / "c.json").write_text(json.dumps({"lr": 1.0, "r": 4, "optimizer": evil, evil: 1, "model_name": evil}))
    stem = f"base_model.model.{evil}.layers.0.q_proj"
    tensors = factors(stem=stem, scale=0.0) | {
        f"{evil}.other": factors()["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    }
    adapter(tmp_path / "a", tensors, {"base_model_name_or_path": evil, "target_modules": [evil]})
    rows = [{"step": 1, "loss": 1.0, evil: 1.0}, {"step": 2, f"eval_{evil}_loss": 1.0}]
    trainer_state(tmp_path / "state" / "trainer_state.json", rows, best_model_checkpoint=evil)
    told = run(*argv, cwd=tmp_path)
    written = [p for p in (tmp_path / "page.html", tmp_path / "o.jsonl") if p.exists()]
    outputs = [told.out, told.err, *(p.read_text(encoding="utf-8") for p in written)]
    assert [raw_controls(text) for text in outputs] == [set()] * len(outputs)
    assert told.code in {0, 1, 2}


@once(verb=["check", "monitor", "audit"], options=[[], ["--json"], ["--format", "sarif"], ["--format", "github"]])
def test_no_control_character_of_a_path_reaches_an_output_as_itself(run, tmp_path, verb, options):
    evil = f"a{'c'.join(CONTROLS)}b"
    config = {"lr": 10.0, "r": 4, "alpha": 4000.0, "optimizer": "adamw"}
    lines = [log_line("train_step", step, loss=float(step * step), lr=10.0, grad_norm=1e6) for step in range(1, 40)]
    run_log(tmp_path / evil / "run.jsonl", *lines, steps=0)
    (tmp_path / evil / "c.json").write_text(json.dumps(config))
    adapter(tmp_path / evil / "a", factors(scale=0.0))
    at = {"check": "c.json", "monitor": "run.jsonl", "audit": "a"}[verb]
    told = run(verb, f"{evil}/{at}", *options)
    assert raw_controls(told.out + told.err) == set()
    assert told.code in {0, 1}


SWEEP = """
import os, signal, sys
seen, at = 0, {at}
def hook(event, args):
    global seen
    if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "shutil.rmtree") or (
        event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    ):
        seen += 1
        if seen == at:
            os.kill(os.getpid(), {number})
sys.addaudithook(hook)
sys.argv = {argv!r}
from gradience.cli.main import script
raise SystemExit(script())
"""


@grid(each=2, verb=["resize", "convert", "import", "report.md"], number=[15, 2])
def test_a_signal_at_any_write_leaves_the_whole_or_nothing(run, tmp_path, verb, number):
    place = lay_out(tmp_path / "place")
    before = listing(place)
    each = 1 if os.environ.get("GRADIENCE_SLOW") else 3  # the one signal at other writes than the other
    for at in range(1 + number % each, 12, each):
        told = run(cwd=place, python=SWEEP.format(at=at, number=number, argv=["gradience", *WRITING[verb]]))
        left = {name: data for name, data in listing(place).items() if name not in before}
        assert "Traceback" not in told.err, (at, told.err)
        assert not any(part.startswith(".") for name in left for part in name.split("/")), (at, sorted(left))
        assert not [p for p in place.iterdir() if p.name.startswith(".")], at
        if told.code in {0, 128 + number, -number}:
            if told.code == 0:
                break
        else:
            pytest.fail(f"exit code {told.code} at write {at}: {told.err}")
        for name in left:
            (place / name).unlink()
        for folder in ("out",):
            if (place / folder).is_dir():
                (place / folder).rmdir()


LATE = """
import atexit, os, signal, sys
{late}
sys.argv = ["gradience", "rules", "--json"]
from gradience.cli.main import script
sys.exit(script())
"""


@pytest.mark.parametrize(
    "late",
    [
        "atexit.register(lambda: os.kill(os.getpid(), 2))",
        "import threading; threading._register_atexit(lambda: os.kill(os.getpid(), 2))",
        "import gc; freeze = gc.freeze; gc.freeze = lambda: (freeze(), os.kill(os.getpid(), 2))",
    ],
    ids=["at exit", "while threads are joined", "after the last line"],
)
def test_an_interrupt_after_the_output_is_whole_prints_no_traceback(tmp_path, late):
    told = subprocess.run(
        [sys.executable, "-c", LATE.format(late=late)], cwd=tmp_path, capture_output=True, timeout=300, check=False
    )
    assert b"Traceback" not in told.stderr
    assert b"Exception ignored" not in told.stderr
    assert told.returncode in {0, 130}
    json.loads(told.stdout)


@pytest.mark.parametrize("soon", [0.001, 30.0], ids=["tried often", "not tried again"])
def test_an_interrupt_while_imports_are_going_on_is_one_line(tmp_path, soon):
    code = f"""
import os, sys
from gradience.io import interrupt
interrupt._SOON = {soon}
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "gradience.schema.rules" or name == "msgspec":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), 2)
sys.meta_path.insert(0, Interrupting())
sys.argv = ["gradience", "rules"]
from gradience.cli.main import script
sys.exit(script())
"""
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=300, check=False)
    assert told.returncode == 130
    assert told.stdout == b""
    assert len(told.stderr.splitlines()) == 1


STEERING = "layer\x1b[2J\r\u202e\x9b31m"


def test_what_steers_a_terminal_is_an_escape_on_stdout_and_stderr(monkeypatch, capsys):
    """Names of modules reach the line of progress, and texts of a log the lines of a report that is followed."""
    from gradience.commands import bar, output

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(bar, "_PATIENCE", 0.0)
    draw = bar.on_terminal("merge")
    draw(0, 3, STEERING)
    draw(3, 3, STEERING)
    output.tell(f"gradience: {STEERING}")
    output.print_text(f"a line {STEERING}")
    out, err = capsys.readouterr()
    shown = r"layer\u001b[2J\u000d\u202e\u009b31m"
    assert out == f"a line {shown}\n"
    drawn, last = (re.sub(r"\x1b\[[0-9;]*m", "", line) for line in re.split(r"\r\x1b\[K", err)[1:])
    assert (drawn.split()[0], drawn.rstrip().rpartition(" ")[2]) == ("merge", shown)
    assert last == f"gradience: {shown}\n"
    assert output.safe_lines([STEERING]) == f"{shown}\n"


ELSEWHERE = {  # ways to stderr that are not ours
    "a warning": "warnings.warn('w' + RAW)",
    "a log": "logging.getLogger('theirs').error('w' + RAW)",
    "a print": "print('w' + RAW, file=sys.stderr)",
    "a bar": "sys.stderr.writelines(['w' + RAW, RAW])",
    "a trace of a thread": "exec('def f(): raise ValueError(RAW)', globals()); "
    "t = threading.Thread(target=f); t.start(); t.join()",
}


THEIRS = """
import logging, threading, warnings
import gradience.verbs.rules as verbs
RAW, plain = {raw!r}, verbs.rules
def rules(*given, **named):
    {code}
    return plain(*given, **named)
rules.__doc__ = "Rules."
verbs.rules = rules
"""


def test_what_libraries_write_steers_no_terminal_either(run):
    for way, code in ELSEWHERE.items():
        theirs = THEIRS.format(raw=STEERING, code=code)
        told = run(python=theirs + FORKED.format(stdout="", argv=["gradience", "rules"]))
        assert told.code == 0, (way, told.err)
        assert r"\u001b[2J\u000d\u202e\u009b31m" in told.err, way
        assert not set("\x1b\r\u202e\x9b") & set(told.err), way
