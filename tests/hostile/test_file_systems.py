"""File systems that fail: every verb that writes leaves the whole result or none, and says so on one line."""

from __future__ import annotations

import errno
import json
import os

import pytest
from hostile.inputs import adapter, factors, run_log, trainer_state
from tables import every

from gradience.cli.main import main
from gradience.io import atomic
from gradience.rewriting import writing
from gradience.rewriting.writing import Changes, NewAdapter, SourceFiles, provenance_of

WRITERS = {
    "report": "report state --out out/p.md",
    "report --force": "report state --out old --force",
    "import": "import state --out out/r.jsonl",
    "convert": "convert a --to mlx --out out/c",
    "resize --force": "resize a --rank 2 --out b --force",  # merge and bench end in the same function
    "audit --append": "audit a --append run/run.jsonl",
    "runs": "runs run --out out/s",
}
RENAMES = ("rename", "replace", "link")
WRITES = ("open", "mkdir", *RENAMES)
FAULTS = {
    "renames that fail": (errno.EIO, RENAMES),
    "a server that lost the file": (errno.ESTALE, RENAMES),
    "another device": (errno.EXDEV, RENAMES),
    "a read-only file system": (errno.EROFS, WRITES),
    "a full disk": (errno.ENOSPC, ("open", "mkdir")),
    "a disk that syncs nothing": (errno.EIO, ("fsync",)),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    adapter(tmp_path / "a")
    adapter(tmp_path / "b", factors(seed=1))
    run_log(tmp_path / "run" / "run.jsonl")
    trainer_state(tmp_path / "state" / "trainer_state.json")
    (tmp_path / "old").write_text("mine")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def break_calls(monkeypatch, number, names):
    """Let system calls fail: `open` only for writing."""
    opened = os.open

    def fail(path="", *_args, **_options):
        raise OSError(number, os.strerror(number), os.fspath(path) if isinstance(path, str | os.PathLike) else None)

    def fail_to_write(path, flags, *args, **options):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            fail(path)
        return opened(path, flags, *args, **options)

    for name in names:
        monkeypatch.setattr(os, name, fail_to_write if name == "open" else fail)


@pytest.mark.parametrize("fault", FAULTS)
@every("verb", WRITERS)
def test_a_file_system_that_fails_gets_the_whole_or_nothing(place, monkeypatch, capsys, verb, fault):
    before = files(place)
    with monkeypatch.context() as broken:
        break_calls(broken, *FAULTS[fault])
        broken.setattr(atomic, "_system_call", lambda: None)  # nor does the kernel exchange two names
        code = main(WRITERS[verb].split())
    errors = capsys.readouterr().err.splitlines()
    assert (code, len(errors)) in {(0, 0), (2, 1)}
    if code == 2 and verb != "audit --append":
        assert files(place) == before
    assert code == 2 or fault == "a disk that syncs nothing" or verb == "audit --append"  # which renames nothing
    assert not [name for name in files(place) if "partial" in name]
    if verb == "audit --append":
        assert b"crashed" not in (place / "run" / "run.jsonl").read_bytes()


def test_a_result_is_there_though_its_hidden_name_cannot_be_removed(place, monkeypatch, capsys):
    with monkeypatch.context() as broken:
        break_calls(broken, errno.ESTALE, ("unlink",))
        assert main(["import", "state", "--out", "out/r.jsonl"]) == 0
    assert capsys.readouterr().err == ""
    assert (place / "out" / "r.jsonl").stat().st_size > 0


def test_a_store_whose_first_job_failed_is_written_by_the_next(place, monkeypatch, capsys):
    argv = ["runs", "run", "--out", "out/s"]
    with monkeypatch.context() as broken:
        break_calls(broken, errno.EIO, RENAMES)
        assert main(argv) == 2
    assert (place / "out" / "s" / "runs").is_dir()
    capsys.readouterr()
    assert main(argv) == 0
    (place / "out" / "t" / "runs").mkdir(parents=True)
    (place / "out" / "t" / "runs" / "mine").touch()
    assert main([*argv[:-1], "out/t"]) == 2
    assert "holds something else" in capsys.readouterr().err


@pytest.mark.parametrize("key", writing._BASE_NAMES)
def test_a_token_in_the_name_of_the_base_is_not_copied(tmp_path, key):
    token = "Zq3" + "vK8xT1mN" * 2
    config = {key: f"https://me:{token}@git.example.org/m", "r": 4, "target_modules": [f"a.{token}"]}
    sources = SourceFiles([])
    record = provenance_of("resize", sources, {}, Changes([]))
    writing.write_adapter(tmp_path / "o", NewAdapter([], config), lambda: record, sources=sources)
    found = json.loads((tmp_path / "o" / "adapter_config.json").read_text())
    assert token not in found[key]
    assert found[key].startswith("https://")
    assert found["target_modules"] == config["target_modules"]  # what PEFT matches names with stays as it is
