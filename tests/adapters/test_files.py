"""Which files are an adapter's, and what is refused of a folder or a file before a tensor is read."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc
import warnings
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from adapter_files import PREFIX, lora, saved, written
from fleet_inputs import factors, peft
from safetensors.numpy import save_file
from tables import every

from gradience.adapters import formats
from gradience.adapters.files import CHECKPOINT, find_files
from gradience.adapters.formats import open_weights
from gradience.adapters.open import Buffer, Layouts, open_adapter, read_adapter
from gradience.base.weights import find_shards
from gradience.cli.main import main
from gradience.errors import AdapterError

INDEX = "adapter_model.safetensors.index.json"
ADVICE = "expected adapter_model.safetensors; if they have another name, give the file itself"


def refusal(call: Any, *args: Any, **options: Any) -> tuple[str, str]:
    """The words and the advice of an error."""
    with pytest.raises(AdapterError) as error:
        call(*args, **options)
    return error.value.message, error.value.advice


# --- folders -----------------------------------------------------------------------------------------------------


def test_a_folder_of_adapters_is_not_one_and_one_nested_adapter_is_taken(tmp_path):
    whole = tmp_path / "all"
    saved(whole / "one", lora("q"))
    assert open_adapter(whole)[0].folder == whole / "one"
    saved(whole / "two", lora("q"))
    assert refusal(open_adapter, whole) == (
        f"{whole} holds 2 adapters in sub-folders (one, two)",
        f"give one of them, for example {whole / 'two'}",
    )
    beside = saved(tmp_path / "beside", lora("q"))
    for name in ("sub", "more"):
        saved(beside / name, lora("q"))
    note = "the folder also holds adapters in sub-folders, which were not read: more, sub"
    assert open_adapter(beside)[1].notes == [note]
    assert find_files(beside / "adapter_model.safetensors").others == ()  # a file is meant alone
    given = find_files(beside, weights=beside / "sub" / "adapter_model.safetensors")
    assert (given.others, given.config) == ((), beside / "sub" / "adapter_config.json")  # the config beside the weights
    elsewhere = whole / "one" / "adapter_config.json"
    assert find_files(beside, config=elsewhere).config == elsewhere  # although one lies beside the weights
    given.config.unlink()
    assert find_files(beside, weights=given.weights).config == beside / "adapter_config.json"
    for options, said, advice in (
        ({"weights": beside / "sub"}, f"no weights file at {beside / 'sub'}", "give the weights file itself"),
        ({"config": beside / "sub"}, f"no config file at {beside / 'sub'}", "give it with --adapter-config FILE"),
    ):
        assert refusal(find_files, beside, **options) == (said, advice)  # a folder is no file
    gone = f"no such file or folder: {tmp_path / 'gone'}"
    assert refusal(find_files, tmp_path / "gone") == (gone, "give the folder that PEFT saved")


def test_a_folder_without_weights_is_listed_up_to_eight_names(tmp_path):
    assert refusal(open_adapter, tmp_path) == (f"no adapter weights in {tmp_path} (it holds nothing)", ADVICE)
    for n in range(9):
        (tmp_path / f"{n}.txt").touch()
        listed = ", ".join(f"{i}.txt" for i in range(min(n, 7) + 1)) + (", ..." if n == 8 else "")
        assert refusal(open_adapter, tmp_path) == (f"no adapter weights in {tmp_path} (it holds {listed})", ADVICE)
    folder = saved(tmp_path / "a", lora("q"))
    (folder / "adapter_model.safetensors").rename(folder / "one.safetensors")
    assert len(open_adapter(folder)[1].modules) == 1
    (folder / "two.safetensors").touch()
    named = f"2 weights files, none named as PEFT does, in {folder} (one.safetensors, two.safetensors)"
    assert refusal(open_adapter, folder) == (named, ADVICE)


def test_a_checkpoint_has_a_step_of_at_most_fifteen_digits():
    steps = {
        "checkpoint-7": "7",
        f"checkpoint-{'9' * 15}": "9" * 15,
        f"checkpoint-{'9' * 16}": None,
        "checkpoint-": None,
    }
    assert {name: (hit := CHECKPOINT.fullmatch(name)) and hit[1] for name in steps} == steps


def test_weights_are_taken_by_the_first_of_these_names(tmp_path):
    (tmp_path / "x.bin").touch()
    names = (
        "adapter_model.bin.index.json",
        "adapters.safetensors.index.json",
        "model.safetensors.index.json",
        INDEX,
        *("adapter_model.pt", "adapter_model.bin", "adapters.safetensors", "adapter_model.safetensors"),
    )
    for name in names:
        (tmp_path / name).write_text('{"weight_map": {"q": "x.bin"}}')
        found = find_files(tmp_path)
        assert (found.weights.name, found.shards) == (name, (tmp_path / "x.bin",) * name.endswith(".index.json"))


def test_shards_are_read_together_by_their_names_or_by_an_index_and_only_from_their_folder(tmp_path):
    held = {key: np.ones(shape, np.float32) for key, shape in lora(f"{PREFIX}q").items()}
    shards = [tmp_path / f"m-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for path, (key, x) in zip(shards, held.items(), strict=True):
        save_file({key: x}, path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    assert open_adapter(tmp_path)[1].weights == shards
    (tmp_path / "n-00001-of-00002.safetensors").touch()  # of another name
    assert find_files(tmp_path, weights=shards[0]).shards == tuple(shards)
    (tmp_path / "m-00003-of-00002.safetensors").touch()
    assert refusal(find_files, tmp_path)[0] == f"3 shards beside {shards[0]}, expected 00002"
    (tmp_path / INDEX).write_text(
        json.dumps({"weight_map": {key: p.name for key, p in zip(held, shards, strict=True)}})
    )
    assert open_adapter(tmp_path)[1].weights == shards  # and not the index
    save_file(held, shards[1])
    assert "both hold a tensor" in refusal(open_adapter, tmp_path)[0]
    target = shards[1].rename(tmp_path.parent / f"{tmp_path.name}-x")
    assert "1 of 2 shards" in refusal(open_adapter, tmp_path)[0]
    save_file({PREFIX + "q.lora_B.weight": held[f"{PREFIX}q.lora_B.weight"]}, target)
    shards[1].symlink_to(target)
    note = f"{shards[1].name} is a link to another place, which was read: {target}"
    assert open_adapter(tmp_path)[1].notes == [note]


def test_a_link_out_of_the_folder_is_said_but_not_within_it_nor_a_hub_cache(tmp_path):
    hub = tmp_path / "models--a--b"
    blobs, snapshot, own = hub / "blobs", hub / "snapshots" / "abc", tmp_path / "own"
    saved(blobs, lora("q"))
    for folder in (snapshot, own):
        folder.mkdir(parents=True)
        for path in sorted(blobs.iterdir()):
            (folder / path.name).symlink_to(path)
    assert open_adapter(snapshot)[1].notes == []
    links = [f"{p.name} is a link to another place, which was read: {p}" for p in sorted(blobs.iterdir())]
    assert open_adapter(own)[1].notes == links  # of a folder that is named like a cache's
    for path in own.iterdir():
        path.unlink()
        (blobs / path.name).rename(own / f"own-{path.name}")
        path.symlink_to(f"own-{path.name}")
    assert open_adapter(own)[1].notes == []


@every("target", ["/dev/zero", "/nowhere", ".", None])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(target, tmp_path):
    weights = saved(tmp_path / "a", lora("q")) / "adapter_model.safetensors"
    weights.unlink()
    os.mkfifo(weights) if target is None else weights.symlink_to(target)
    with pytest.raises(AdapterError):
        open_adapter(tmp_path / "a")


def test_a_checkpoint_in_parts_names_the_command_that_gathers_it(tmp_path):
    """The parts are written by torch, and gathered by accelerate."""
    from accelerate.utils import merge_fsdp_weights

    pair = {f"{PREFIX}q.lora_A.weight": torch.ones(2, 8), f"{PREFIX}q.lora_B.weight": torch.ones(8, 2)}
    parts, whole, out = tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0", tmp_path / "whole", tmp_path / "OUT"
    with pytest.warns(UserWarning, match="single process"):
        dcp.save({"model": pair}, checkpoint_id=parts)
    command = f"it is a checkpoint in parts (FSDP, DCP): run 'accelerate merge-weights {parts} OUT',"
    for place in (parts, parts.parent):
        assert refusal(open_adapter, place)[1] == f"{command} copy adapter_config.json into OUT, and give OUT"
        assert refusal(find_shards, place)[1] == f"{command} and give OUT"
    merge_fsdp_weights(str(parts), str(out))
    (out / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    assert [module.name for module in open_adapter(out)[1].modules] == ["q"]
    whole.mkdir()
    file = whole / "pytorch_model_fsdp.bin"
    torch.save(pair, file)
    assert refusal(open_adapter, whole)[1] == f"it is a checkpoint of FSDP: give {file} itself"
    assert len(open_adapter(whole, weights=file, adapter_config=out / "adapter_config.json")[1].modules) == 1
    for mark in ("_CHECKPOINT_METADATA", "manifest.ocdbt", "_METADATA"):
        (tmp_path / mark).mkdir()
        (tmp_path / mark / mark).touch()
        assert refusal(open_adapter, tmp_path / mark)[1].startswith(
            "it is an Orbax checkpoint: restore it in the program"
        )


# --- tensors without their numbers -------------------------------------------------------------------------------


def ungathered(folder: Path, *, kind: str = "LORA", part: str = "lora_A.weight", whole: int = 0) -> Path:
    """A save under ZeRO-3 of six tensors, of which only the first `whole` have their numbers."""
    tensors = {f"{PREFIX}l.{i}.q_proj.{part}": np.ones((2, 3) if i < whole else 0, np.float32) for i in range(6)}
    return written(folder, tensors, {"peft_type": kind, "r": 2, "target_modules": ["q_proj"]})


@every(
    ("kind", "part", "whole", "said"),
    [
        ("LORA", "lora_A.weight", 0, "6 of 6"),
        ("LORA", "lora_A.weight", 2, "4 of 6"),
        ("OFT", "oft_R.weight", 5, "1 of 6"),
    ],
)
def test_a_save_of_zero3_without_gathering_is_named_with_its_cure(kind, part, whole, said, tmp_path):
    text, _ = refusal(open_adapter, ungathered(tmp_path / "a", kind=kind, part=part, whole=whole))
    first = f"{PREFIX}l.{whole}.q_proj.{part}"
    assert f"{said} tensors have shape [0] (first: {first}): DeepSpeed ZeRO-3 saved them without gathering" in text
    assert "run the checkpoint's zero_to_fp32.py, or set stage3_gather_16bit_weights_on_model_save" in text


@every(
    "words",
    [
        ["audit", "{}"],
        ["check", "--peft-dir", "{}"],
        ["resize", "{}", "--rank", "1", "--out", "{}-out"],
        ["convert", "{}", "--out", "{}-out"],
        ["compare", "{}", "{}"],
        ["merge", "{}", "{}", "--out", "{}-out"],
    ],
)
def test_every_verb_that_opens_one_ends_with_one_line(words, tmp_path, capsys):
    folder = ungathered(tmp_path / "adapter")
    assert main([word.replace("{}", str(folder)) for word in words]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert (out, "tensors have shape [0]" in line) == ("", True)


def test_a_config_is_checked_where_the_weights_are_damaged(tmp_path, capsys):
    folder = ungathered(tmp_path / "adapter", whole=6)
    (folder / "adapter_model.safetensors").write_bytes(b"{")
    assert main(["check", "--peft-dir", str(folder)]) == 0
    assert "GRADIENCE" in capsys.readouterr().out


# --- pickles and archives ----------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/gradience_was_here",)


def test_code_in_a_pickle_never_runs(tmp_path):
    Path("/tmp/gradience_was_here").unlink(missing_ok=True)  # noqa: S108  # the payload's own path
    for payload in (Evil(), {"a": Evil()}, [1, 2], {"a": 3}, {1: 2}):
        (tmp_path / "x.bin").write_bytes(pickle.dumps(payload))
        assert "\n" not in refusal(open_weights, tmp_path / "x.bin")[0]
    assert not Path("/tmp/gradience_was_here").exists()  # noqa: S108


@every("data", [b"", b"\x80", b"PK\x03\x04", b"\0" * 100, b"version https://git-lfs"])
def test_a_bin_that_is_none_is_refused(data, tmp_path):
    (tmp_path / "x.bin").write_bytes(data)
    assert str(tmp_path / "x.bin") in refusal(open_weights, tmp_path / "x.bin")[0]


def test_a_bin_reads_like_safetensors_whatever_its_dtype(tmp_path):
    names = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 bool"
    tensors = {name: torch.arange(15.0).reshape(3, 5).to(getattr(torch, name)) for name in names.split()}
    torch.save(tensors, tmp_path / "x.pth")
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    pickled, plain = open_weights(tmp_path / "x.pth"), open_weights(tmp_path / "x.safetensors")
    for name, info in plain.tensors.items():
        assert (pickled.tensors[name].dtype, pickled.tensors[name].shape) == (info.dtype, info.shape)
        assert pickled.read(name).dtype == plain.read(name).dtype
        assert pickled.raw(name).tobytes() == plain.raw(name).tobytes()


def test_what_is_no_plain_array_or_claims_more_than_the_file_is_refused_by_its_name(tmp_path):
    path = tmp_path / "x.bin"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of kinds of tensor that it will drop
        odd = (
            *(torch.eye(3).to_sparse(), torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)),
            torch.ones(2, device="meta"),
        )
    for tensor in odd:
        torch.save({"a": tensor}, path)
        assert refusal(open_weights, path)[0] == f"{path}: tensor 'a' is not a plain array"
    torch.save({"a": torch.zeros(1).expand(10**9)}, path)
    assert refusal(open_weights, path)[0] == f"{path}: tensor 'a' claims 4000000000 bytes, more than the file has"
    torch.save({"x" * 1025: torch.ones(1)}, path)
    assert refusal(open_weights, path)[0].endswith("... is 1025 characters long, over the limit of 1024")
    torch.save({"q\ud800": torch.ones(1)}, path)
    assert refusal(open_weights, path)[0].endswith(
        r"name 'q\ud800' holds half of a surrogate pair, which is no character"
    )
    for other in ({"x": 3}, {4: torch.ones(1)}, {"x": torch.ones(1), "y": None}):
        torch.save(other, path)
        assert refusal(open_weights, path)[0] == f"{path} is not a dict of tensors"
    torch.save({"a": np.random.default_rng()}, path)
    assert (
        "cannot be loaded as plain tensors: UnpicklingError: Weights only load failed. "
        in refusal(open_weights, path)[0]
    )
    for gone in (tmp_path / "gone.bin", tmp_path / "folder.bin"):
        (tmp_path / "folder.bin").mkdir(exist_ok=True)
        assert refusal(open_weights, gone)[0] == f"no weights file at {gone}"


def test_a_compressed_pickle_is_refused(tmp_path):
    torch.save({"a": torch.zeros(9)}, tmp_path / "plain.bin")
    with zipfile.ZipFile(tmp_path / "plain.bin") as plain, zipfile.ZipFile(tmp_path / "x.bin", "w") as packed:
        for name in plain.namelist():
            kind = zipfile.ZIP_DEFLATED if name.endswith("data.pkl") else zipfile.ZIP_STORED
            packed.writestr(name, plain.read(name), kind)  # one is enough
    assert "is a compressed archive" in refusal(open_weights, tmp_path / "x.bin")[0]


def test_an_array_over_the_limit_is_refused_with_its_name(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    np.savez(path, **{"a/b": np.ones(2), "c": np.ones(3)})
    size = 128 + 24  # of an array of three with its header
    for most, refused in ((size // 8, False), (size // 8 - 1, True)):
        monkeypatch.setattr(formats, "MOST_ELEMENTS", most)
        if refused:
            said = f"{path}: c.npy is larger than {8 * most} bytes, the limit"
            assert refusal(formats.read_archive, path)[0] == said
        else:
            assert list(formats.read_archive(path)) == ["a.b", "c"]
    path.write_bytes(b"PK\x03\x04")
    assert "is not a readable NumPy archive" in refusal(formats.read_archive, path)[0]


@pytest.mark.oracle("h5py")
def test_of_an_hdf5_file_large_arrays_are_left_out_and_one_without_factors_is_refused(tmp_path, monkeypatch):
    h5py = import_module("h5py")
    path = tmp_path / "x.hdf5"
    with h5py.File(path, "w") as file:
        file["l/0/lora_a"], file["bias"], file["kernel"] = np.ones(2), np.ones(2), np.ones(3)
    for most, said in (
        (2, None),
        (1, "holds 0 arrays and no LoRA factors: Keras merges them into the kernels as it saves"),
    ):
        monkeypatch.setattr(formats, "MOST_ELEMENTS", most)
        if said is None:
            assert sorted(formats.read_archive(path)) == ["bias", "l.0.lora_a"]
        else:
            assert refusal(formats.read_archive, path)[0] == f"{path} {said}"
    path.write_bytes(b"no")
    assert "is not a readable HDF5 file" in refusal(formats.read_archive, path)[0]
    said = f"{path} holds arrays as JAX and Keras programs save them, which only audit reads"
    assert refusal(open_weights, path) == (said, f"run: gradience audit {path}")


# --- cost --------------------------------------------------------------------------------------------------------


def test_reading_a_module_needs_no_more_memory_than_its_tensors(tmp_path):
    folder = saved(tmp_path / "a", lora("q", r=8, d_out=200_000, d_in=200_000), r=8)
    size = (folder / "adapter_model.safetensors").stat().st_size
    tracemalloc.start()
    open_adapter(folder)[1].modules[0].load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * size


def test_thousands_of_tensors_are_read_in_seconds(tmp_path):
    """Growth that is not linear would not end within a test run."""
    folder = saved(tmp_path / "a", lora(*(f"l.{i}.q" for i in range(5_000)), r=1, d_out=1, d_in=1), r=1)
    assert len(open_adapter(folder)[1].modules) == 5_000


# --- a file read whole, and one laid out as one before it ---------------------------------------------------------


@every("size", [0, 1, 7, 8, 9, 15, 16])
def test_a_buffer_holds_files_up_to_its_limit_and_no_longer_ones(size, tmp_path, monkeypatch):
    monkeypatch.setattr("gradience.adapters.open._FIRST_ROOM", 4)
    data, before = tmp_path / "f", tmp_path / "before"
    data.write_bytes(os.urandom(size))
    before.write_bytes(b"x" * 15)
    used = Buffer(15)
    assert used.read(before) is not None
    for buffer in (Buffer(15), used):
        found = buffer.read(data)
        assert (None if found is None else found.tobytes()) == (data.read_bytes() if size <= 15 else None)


PLAIN = ("name", "kind", "shape", "r", "alpha", "scale", "params", "config_r", "rank_pattern", "rslora", "base_name")


class Reader:
    """Reads folders through one cache of layouts; `parsed` are those that were read anew."""

    def __init__(self, monkeypatch: Any) -> None:
        self.buffer, self.layouts, self.parsed = Buffer(1 << 24), Layouts(), []
        monkeypatch.setattr(
            "gradience.adapters.open.read_adapter",
            lambda files, *opened: self.parsed.append(files.folder.name) or read_adapter(files, *opened),
        )

    def __call__(self, folder: Path) -> Any:
        files = find_files(folder)
        return self.layouts.read(files, self.buffer.read(files.weights))


def told(adapter: Any) -> Any:
    modules = [[getattr(m, name) for name in PLAIN] for m in adapter.modules]
    return (modules, adapter.config, adapter.notes, adapter.weights, adapter.roles, adapter.unmatched_rank_patterns)


def with_config(folder: Path, **fields: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def test_equal_layouts_are_taken_apart_once_and_told_apart_by_their_numbers(tmp_path, monkeypatch):
    read = Reader(monkeypatch)
    for seed, name in enumerate("abc"):
        folder = with_config(peft(tmp_path / name, factors(seed)), base_model_name_or_path=f"base-{name}")
        adapter, alone = read(folder), read_adapter(find_files(folder))
        assert told(adapter) == told(alone)
        assert adapter.source.path == folder / "adapter_model.safetensors"  # named by errors in the numbers
        for one, other in zip(adapter.modules, alone.modules, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(one.load(), other.load(), strict=True))
        assert all(adapter.source.raw(key).tobytes() == alone.source.raw(key).tobytes() for key in adapter.tensors)
    assert read.parsed == ["a"]


@every(
    "fields",
    [
        {"lora_alpha": 99},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2.0, ".*": 3.0}},
        {"rank_pattern": {"q_proj": True}},
        {"fan_in_fan_out": True},
        {"init_lora_weights": "pissa"},
    ],
)
def test_another_config_under_the_same_header_is_read_anew(fields, tmp_path, monkeypatch):
    read = Reader(monkeypatch)
    read(with_config(peft(tmp_path / "a", factors(0)), alpha_pattern={".*": 3.0, "q_proj": 2.0}))
    folder = with_config(peft(tmp_path / "b", factors(1)), **fields)
    assert told(read(folder)) == told(read_adapter(find_files(folder)))
    assert read.parsed == ["a", "b"]
    if "init_lora_weights" in fields:
        read(folder)
        assert read.parsed == ["a", "b", "b"]  # no plain LoRA, which alone is kept


def test_a_damaged_file_or_config_is_refused_in_the_same_words_although_the_header_is_known(tmp_path, monkeypatch):
    read = Reader(monkeypatch)
    read(peft(tmp_path / "a", factors(0)))
    folder = peft(tmp_path / "b", factors(1))
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    good, whole = config.read_bytes(), weights.read_bytes()
    for text in (b"{", b'{"peft_type": "LORA", "r": 0}', b'{"peft_type": "LOHA"}', None):
        config.unlink() if text is None else config.write_bytes(text)
        assert refusal(read, folder) == refusal(open_adapter, folder)
    config.write_bytes(good)
    for data in (whole + bytes(8), whole[:-8], whole[:40], whole[:8], whole[:4], b""):
        weights.write_bytes(data)
        assert refusal(read, folder) == refusal(open_adapter, folder)


def test_only_the_layouts_met_last_are_kept_and_notes_stay_with_their_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("gradience.adapters.open._MOST", 2)
    one, other, third = (peft(tmp_path / name, factors(0, r=r), r=r) for name, r in (("a", 4), ("b", 3), ("c", 2)))
    saved(one / "further", lora("q"))
    read = Reader(monkeypatch)
    for folder in (one, other, one, third, one, other):
        assert len(read(folder).notes) == (folder == one)
    assert read.parsed == ["a", "b", "c", "b"]
