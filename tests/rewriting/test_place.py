"""Where a verb may write: what is read stays, whatever links lead to it, and force takes no folder but an adapter's."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradience.adapters.files import AdapterFiles, find_files
from gradience.base.weights import find_shards
from gradience.errors import AdapterError, OutputError
from gradience.io.atomic import atomic_folder
from gradience.rewriting.writing import refuse_place


@pytest.fixture
def files(tmp_path: Path) -> AdapterFiles:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("{}")
    return find_files(folder)


def refused(out: Path, files: AdapterFiles, match: str, **more: object) -> None:
    with pytest.raises(OutputError, match=match) as error:
        refuse_place(out, [files], **{"force": True, **more})
    assert error.value.advice


def test_the_adapter_what_holds_it_and_what_is_in_it_are_refused(files, tmp_path):
    for out in (files.folder, tmp_path, Path("/"), files.folder / ".." / "adapter"):
        refused(out, files, "is, or holds, an adapter that is read")
    refused(files.folder / "sub", files, "in an adapter's folder")


def test_a_folder_of_links_to_the_adapter_is_no_less_the_adapter(files, tmp_path):
    cache = tmp_path / "snapshot"
    cache.mkdir()
    for path in (files.config, files.weights):
        (cache / path.name).symlink_to(path)
    linked = find_files(cache)
    refused(cache, linked, "an adapter that is read")
    apart = find_files(tmp_path / "adapter", weights=cache / files.weights.name)
    refused(cache, apart, "an adapter that is read")


def test_the_base_is_never_replaced_nor_a_folder_of_links_to_it(files, tmp_path):
    held, cache = tmp_path / "blobs", tmp_path / "base"
    held.mkdir()
    cache.mkdir()
    (held / "abc").write_text("weights")
    (cache / "model.safetensors").symlink_to(held / "abc")
    for out in (held, cache):
        refused(out, files, "base model that is read", base=[cache / "model.safetensors"])


def test_force_takes_an_adapters_folder_and_no_other(files, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    refuse_place(out, [files], force=False)  # empty
    (out / "thesis.txt").write_text("mine")
    refused(out, files, "exists already", force=False)
    refused(out, files, "holds no adapter")
    (out / "adapter_config.json").write_text("{}")
    refused(out, files, r"--force would remove: thesis\.txt \(choose")
    (out / "thesis.txt").unlink()
    refuse_place(out, [files], force=True)


def test_force_replaces_the_card_that_peft_left_blank_and_none_that_somebody_wrote(files, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "adapter_config.json").write_text("{}")
    card = "\n".join(f"- **Field {n}:** [More Information Needed]" for n in range(30))
    (out / "README.md").write_text(card)
    refuse_place(out, [files], force=True)
    (out / "README.md").write_text(card.replace("[More Information Needed]", "mine", 10))  # twenty are left open
    refuse_place(out, [files], force=True)
    (out / "README.md").write_text(card.replace("[More Information Needed]", "mine", 11))
    refused(out, files, "README.md")


def test_a_file_or_a_link_never_gives_way_to_a_folder_and_the_error_does_not_say_force(files, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "linked").symlink_to(tmp_path)
    for name in ("file", "dangling"):
        with pytest.raises(OutputError, match="never replaced") as error:
            refuse_place(tmp_path / name, [files], force=True)
        assert "--force" not in error.value.advice
    refused(tmp_path / "file" / "below", files, "is not a folder")


def test_a_file_beside_a_file_is_a_place(files, tmp_path):
    one = AdapterFiles(tmp_path, tmp_path / "none.json", files.weights)
    refuse_place(tmp_path / "two.safetensors", [one], force=False, one_file=True)
    refused(files.weights, one, "that is read", one_file=True)
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", one, "is a folder", one_file=True)


@pytest.mark.parametrize("name", ["x" * 300, "", ".", "..", "/"], ids=["long", "empty", "here", "above", "root"])
def test_a_name_that_nothing_new_can_have_is_refused_in_words(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError), atomic_folder(Path(name), sources=[], force=True):
        pytest.fail("the block must not begin")


def test_a_name_that_is_too_long_is_no_file(tmp_path):
    for find in (find_files, find_shards):
        with pytest.raises(AdapterError, match="no such"):
            find(tmp_path / ("x" * 300))


@pytest.mark.parametrize("place", ["/dev/zero", ".", "nowhere", "x" * 300], ids=["device", "folder", "nothing", "long"])
def test_files_that_are_named_must_be_files(files, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdapterError, match="no config file"):
        find_files(files.folder, config=Path(place))
    with pytest.raises(AdapterError, match="no weights file"):
        find_files(files.folder, weights=Path(place))


def test_a_device_is_no_base():
    with pytest.raises(AdapterError, match="neither a folder nor a file"):
        find_shards(Path("/dev/null"))
