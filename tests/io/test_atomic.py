"""What is written appears whole or not at all, and never over something else unasked."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from tables import every

from gradience.errors import OutputError
from gradience.io import atomic
from gradience.io.atomic import atomic_file, atomic_folder, scratch_folder

pytestmark = pytest.mark.filterwarnings("ignore:os.fork")  # of JAX, where another test has imported it


@pytest.fixture(autouse=True)
def usual_umask():
    """The modes below are those under this umask, whatever the tests were started with."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def _fill(folder: Path, text: str) -> None:
    (folder / "a.txt").write_text(text)


def _broken_off(out: Path, error: type[BaseException], *, force: bool = False) -> None:
    with atomic_folder(out, sources=[], force=force) as draft:
        _fill(draft, "new")
        raise error


def _overtaken(out: Path) -> None:
    with atomic_file(out, sources=[]) as draft:
        draft.write_text("ours")
        out.write_text("theirs")


def test_a_folder_appears_with_its_content_and_a_full_one_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    for empty in (False, True):  # an empty folder of that name is taken
        with atomic_folder(out, sources=[]) as draft:
            _fill(draft, "1")
            assert out.exists() is empty
        assert (out / "a.txt").read_text() == "1"
        assert [p.name for p in out.parent.iterdir()] == ["out"]
        with pytest.raises(OutputError, match="exists already"), atomic_folder(out, sources=[]):
            pytest.fail("the block must not begin")
        (out / "a.txt").unlink()


@every("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_folder_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        _broken_off(tmp_path / "out", error)
    assert list(tmp_path.iterdir()) == []


def test_force_replaces_a_folder_only_once_the_new_one_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    _fill(out, "old")
    with pytest.raises(RuntimeError):
        _broken_off(out, RuntimeError, force=True)
    assert (out / "a.txt").read_text() == "old"
    with atomic_folder(out, sources=[], force=True) as draft:
        _fill(draft, "new")
    assert (out / "a.txt").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_force_replaces_no_file_by_a_folder_and_no_folder_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError), atomic_folder(tmp_path / "file", sources=[], force=True):
        pytest.fail("the block must not begin")
    with pytest.raises(OutputError), atomic_file(tmp_path / "folder", sources=[], force=True):
        pytest.fail("the block must not begin")


def test_a_file_appears_whole_and_is_not_overwritten_unasked(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    with atomic_file(out, sources=[]) as draft:
        draft.write_text("1")
    with pytest.raises(OutputError), atomic_file(out, sources=[]):
        pytest.fail("the block must not begin")
    with atomic_file(out, sources=[], force=True) as draft:
        draft.write_text("2")
    assert out.read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_file_that_another_program_makes_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError):
        _overtaken(out)
    assert out.read_text() == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@every(
    ("error", "said"),
    [(PermissionError(13, "Permission denied"), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_an_old_folder_is_put_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch, error, said):
    out = tmp_path / "out"
    out.mkdir()
    _fill(out, "old")
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)  # a file system that cannot
    rename, moved = Path.rename, []

    def refusing(self: Path, target: Path) -> Path:
        if ".partial-" in self.name and moved:
            raise error
        moved.extend([target] if self == out else [])
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(said), atomic_folder(out, sources=[], force=True) as draft:
        _fill(draft, "new")
    assert moved
    assert (out / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_name_of_255_bytes_is_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "\u00e9" * 127, os.fsdecode(b"\xff" * 255)):
        with atomic_file(tmp_path / name, sources=[]) as draft:
            draft.write_text("whole")
        assert (tmp_path / name).read_text() == "whole"
        (tmp_path / name).unlink()


def test_a_failure_to_write_is_said_with_the_name_wanted_and_one_to_read_stays_as_it_is(tmp_path: Path) -> None:
    for context in (partial(atomic_file, sources=[]), partial(atomic_folder, sources=[])):
        with (
            pytest.raises(OutputError, match=r"cannot write .*wanted: No space left"),
            context(tmp_path / "wanted"),
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with (
            pytest.raises(OutputError, match="wanted: Input/output error"),
            context(tmp_path / "wanted") as draft,
        ):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(draft))
        with pytest.raises(OutputError, match=r"wanted/a: full$"), context(tmp_path / "wanted") as draft:
            raise OutputError(f"cannot write {draft}/a: full")
        with pytest.raises(FileNotFoundError), context(tmp_path / "wanted"):
            (tmp_path / "read").read_bytes()
        assert list(tmp_path.iterdir()) == []


def test_a_result_is_as_private_as_its_sources_from_its_first_byte_on(tmp_path: Path) -> None:
    sources = [tmp_path / name for name in ("open", "group", "private")]
    for path, mode in zip(sources, (0o644, 0o640, 0o600), strict=True):
        path.touch()
        path.chmod(mode)
    for some, mode in (([], 0o644), (sources[:1], 0o644), (sources[:2], 0o640), (sources, 0o600)):
        made, file = tmp_path / f"made{mode}{len(some)}", tmp_path / f"file{mode}{len(some)}"
        with (
            atomic_folder(made, sources=[*some, tmp_path / "missing"]) as draft,
            atomic_file(file, sources=some) as one,
        ):
            begun = [stat.S_IMODE(path.stat().st_mode) for path in (draft, one)]
            (draft / "in").mkdir()
            (draft / "in" / "file").touch(0o644)
        assert begun == [mode | 0o100 | (mode & 0o444) >> 2, mode]
        assert stat.S_IMODE((made / "in" / "file").stat().st_mode) == mode == stat.S_IMODE(file.stat().st_mode)
        assert stat.S_IMODE((made / "in").stat().st_mode) == mode | 0o100 | (mode & 0o444) >> 2


def test_a_folder_that_keeps_others_from_a_source_and_not_from_the_result_counts(tmp_path: Path) -> None:
    for guard, beside, within in ((0o700, 0o600, 0o644), (0o750, 0o640, 0o644), (0o755, 0o644, 0o644)):
        guarded = tmp_path / f"{guard:o}"
        (guarded / "adapter").mkdir(parents=True)
        (guarded / "adapter" / "weights").touch(0o644)
        (tmp_path / f"link{guard:o}").symlink_to(guarded / "adapter")
        guarded.chmod(guard)
        for source in (guarded / "adapter", guarded / "adapter" / "weights", tmp_path / f"link{guard:o}"):
            for out, mode in ((tmp_path / "out", beside), (guarded / "out", within)):
                with atomic_file(out, sources=[source], force=True):
                    pass
                assert stat.S_IMODE(out.stat().st_mode) == mode, (guard, source, out)
    with atomic_file(tmp_path / "log", sources=[], private=True) as one:
        assert stat.S_IMODE(one.stat().st_mode) == 0o600


def _text(out: Path) -> str:
    return "".join(path.read_text() for path in sorted(out.iterdir())) if out.is_dir() else out.read_text()


# Replaces an output in a fork, which is killed at its so-many-eth call into C; here, since a fork of the tests is dear.
KILLED = """
import os, signal, sys
from pathlib import Path
from gradience.io.atomic import atomic_file, atomic_folder

def replaced(out, as_folder):
    if as_folder:
        with atomic_folder(out, sources=[], force=True) as draft:
            for name in ("a.txt", "b.txt"):
                (draft / name).write_text("new")
    else:
        with atomic_file(out, sources=[], force=True) as draft:
            draft.write_text("newnew")

def profile(frame, event, of):
    if event == "c_call" and next(calls) == at:
        os.kill(os.getpid(), signal.SIGKILL)

out, as_folder = Path(sys.argv[1]), sys.argv[2] == "True"
replaced(out, as_folder)
for line in sys.stdin:
    at = int(line)
    if not (child := os.fork()):
        calls = iter(range(1 << 20))
        sys.setprofile(profile)
        replaced(out, as_folder)
        os._exit(0)
    print(int(os.WIFSIGNALED(os.waitpid(child, 0)[1])), flush=True)
"""


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_kill_at_any_call_leaves_a_whole_output_under_the_name_and_nothing_beside_it_after_the_next(
    tmp_path: Path, *, as_folder: bool
) -> None:
    out, kills = tmp_path / "out", 0
    command, pipe = [sys.executable, "-c", KILLED, str(out), str(as_folder)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for at in range(0, 1 << 20, 3):
            process.stdin.write(f"{at}\n")
            if process.stdout.readline() != "1\n":
                break
            kills += 1
            assert _text(out) == "newnew", at
            assert len(list(tmp_path.iterdir())) <= 2, at  # what the killed one before left is gone
        process.stdin.close()
    assert (process.returncode, kills > 20) == (0, True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_living_process_keeps_its_sibling_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / ".notes.partial-1").touch()
    with atomic_folder(tmp_path / "one", sources=[]) as ours:
        with atomic_folder(tmp_path / "other", sources=[]) as draft:
            _fill(draft, "1")
        assert ours.is_dir()
        _fill(ours, "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes.partial-1", "one", "other"]


def test_a_killed_process_leaves_its_scratch_folder_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / ".gradience-scratch-mine").mkdir()
    child = os.fork()
    if not child:
        with scratch_folder() as left:
            (left / "huge").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 2
    with scratch_folder() as one, scratch_folder() as other:
        assert sorted(tmp_path.iterdir()) == sorted([tmp_path / ".gradience-scratch-mine", one, other])
        assert stat.S_IMODE(one.stat().st_mode) == 0o700
    assert [path.name for path in tmp_path.iterdir()] == [".gradience-scratch-mine"]


def test_a_link_that_takes_the_folder_s_place_meanwhile_is_not_followed(tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    for folder in (out, mine):
        folder.mkdir()
        _fill(folder, "mine")

    def link(_: Path) -> None:
        out.rename(tmp_path / "moved")
        out.symlink_to(mine)

    with pytest.raises(OutputError), atomic_folder(out, sources=[], force=True, check=link) as draft:
        _fill(draft, "new")
    assert out.is_symlink()
    assert _text(mine) == "mine"


@every("url", ["s3://bucket/page.html", "hf://me/adapter/page.html"])
def test_a_url_is_refused_before_any_folder_is_made(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="a URL is not a folder of this machine"), atomic_file(Path(url), sources=[]):
        pass
    assert not list(tmp_path.iterdir())
    with atomic_file(Path("s:/page.html"), sources=[]) as draft:  # a drive, or a folder that is named so
        draft.write_text("page")
    assert Path("s:/page.html").read_text() == "page"


def test_a_path_of_more_folders_than_can_be_made_at_once_is_an_error(tmp_path):
    deep = tmp_path / ("x/" * 1900)
    with pytest.raises(OutputError, match="too many folders within one another"), atomic_file(deep, sources=[]):
        pass
    assert not any(tmp_path.iterdir())
