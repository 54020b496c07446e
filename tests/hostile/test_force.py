"""Row 1, `--force`: it replaces an adapter, and costs the user nothing else that lies in the folder."""

from __future__ import annotations

import pytest
from hostile.inputs import adapter, base, factors

VERBS = {
    "resize": ("resize", "a", "--rank", "2"),
    "merge": ("merge", "a", "b"),
    "convert": ("convert", "a", "--to", "mlx"),
}


@pytest.fixture
def place(tmp_path):
    adapter(tmp_path / "a")
    adapter(tmp_path / "b", factors(seed=1))
    base(tmp_path / "base")
    return tmp_path


def snapshot(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def training_folder(out):
    adapter(out, factors(seed=2))
    adapter(out / "checkpoint-500", factors(seed=3))
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (out / "run.jsonl").write_text("{}\n")
    return out


@pytest.mark.parametrize("verb", VERBS)
def test_force_refuses_a_folder_that_holds_more_than_an_adapter_and_names_it(run, place, verb):
    before = snapshot(training_folder(place / "out"))
    told = run(*VERBS[verb], "--out", "out", "--force")
    assert told.code == 2
    assert any(name in told.err for name in ("checkpoint-500", ".git", "run.jsonl"))
    assert snapshot(place / "out") == before


@pytest.mark.parametrize(
    "name", ["notes.txt", ".env", "optimizer.pt", "my adapter_model.safetensors", "empty/", "link"]
)
def test_force_leaves_a_file_of_the_users_alone(run, place, name):
    out = adapter(place / "out", factors(seed=2))
    if name == "link":
        (out / name).symlink_to(place / "a")
    elif name.endswith("/"):
        (out / name).mkdir()
    else:
        (out / name).write_text("mine")
    before = snapshot(out)
    told = run("resize", "a", "--rank", "2", "--out", "out", "--force")
    assert told.code == 2
    assert name.rstrip("/") in told.err
    assert snapshot(out) == before


@pytest.mark.parametrize("verb", VERBS)
def test_force_replaces_what_the_verb_itself_wrote(run, place, verb):
    first = run(*VERBS[verb], "--out", "out")
    second = run(*VERBS[verb], "--out", "out", "--force")
    assert (first.code, second.code) == (0, 0)
