"""Files that lie: each gives a clear AdapterError or a finding; never a traceback, a hang or a wrong number."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from safetensors.numpy import save_file
from tables import every

from gradience.adapters import formats
from gradience.adapters.formats import TorchFile, _described, open_weights
from gradience.adapters.layout import Adapter
from gradience.adapters.open import find_files, read_adapter
from gradience.errors import AdapterError
from gradience.io.safetensors import SafetensorsFile
from gradience.schema.audit import LeftoverReason

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
STEM = "base_model.model.model.layers.0.self_attn.q_proj"
GOOD = {f"{STEM}.lora_A.weight": (4, 12), f"{STEM}.lora_B.weight": (20, 4)}


def opened(path: Path):
    return TorchFile(path) if path.suffix == ".bin" else SafetensorsFile(path)


def read(folder: Path) -> Adapter:
    """Read everything there is to read, as an audit would."""
    adapter = read_adapter(find_files(folder), opened)
    assert set(adapter.roles) == set(adapter.tensors)
    for module in adapter.modules:
        b, a = module.load()
        assert (len(b), a.shape[1]) == module.shape
        assert b.shape[1] == a.shape[0] == module.r
    return adapter


def container(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def folder(tmp_path: Path, weights: bytes | None = None, config=None, name="adapter_model.safetensors") -> Path:
    """Write an adapter; a config given as text is written as it is."""
    if weights is None:
        save_file({k: np.ones(s, np.float32) for k, s in GOOD.items()}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(weights)
    text = config if isinstance(config, str) else json.dumps(CONFIG if config is None else config)
    (tmp_path / "adapter_config.json").write_text(text)
    return tmp_path


def arrays(tmp_path: Path, tensors: dict[str, np.ndarray], config=None) -> Path:
    folder(tmp_path, config=config)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    return tmp_path


def in_words(work):
    """Return what the work makes, or None where it refuses with a sentence."""
    try:
        return work()
    except AdapterError as error:
        if len(str(error)) < 10:
            raise
        return None


A_HEADER = json.dumps({"a": entry([2], 0, 8)}).encode()
DEEP = b"[" * 100_000 + b"]" * 100_000
LYING = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "length 0": container(b"", length=0),
    "length beyond the file": container(A_HEADER, b"\0" * 8, length=2**40),
    "length of 2^64 - 1": container(A_HEADER, b"\0" * 8, length=2**64 - 1),
    "length a little too long": container(A_HEADER, b"\0" * 8, length=len(A_HEADER) + 4),
    "data cut short": container(A_HEADER, b"\0" * 7),
    "data too long": container(A_HEADER, b"\0" * 9),
    "not JSON": container(b"{nonsense}"),
    "not UTF-8": container(b'{"\xff\xfe": 1}'),
    "an array": container(b"[]"),
    "deep": container(DEEP),
    "deep in an entry": container(b'{"a": ' + DEEP + b"}"),
    "an entry that is a string": container(b'{"a": "b"}'),
    "an entry that is null": container(b'{"a": null}'),
    "an entry with no shape": container(b'{"a": {"dtype": "F32", "data_offsets": [0, 0]}}'),
    "overlapping": container(json.dumps({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}).encode(), b"\0" * 12),
    "a hole": container(json.dumps({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}).encode(), b"\0" * 20),
    "offsets backwards": container(json.dumps({"a": entry([2], 8, 0)}).encode(), b"\0" * 8),
    "offsets negative": container(json.dumps({"a": entry([2], -8, 0)}).encode(), b"\0" * 8),
    "offsets of 10^30": container(json.dumps({"a": entry([2], 0, 10**30)}).encode(), b"\0" * 8),
    "shape and bytes disagree": container(json.dumps({"a": entry([3], 0, 8)}).encode(), b"\0" * 8),
    "shape negative": container(json.dumps({"a": entry([-2, -1], 0, 8)}).encode(), b"\0" * 8),
    "shape of floats": container(json.dumps({"a": entry([2.5], 0, 8)}).encode(), b"\0" * 8),
    "a hundred axes": container(json.dumps({"a": entry([1] * 100, 0, 4)}).encode(), b"\0" * 4),
    "a name twice": container(
        b'{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b' "a": {"dtype":"F16","shape":[4],"data_offsets":[0,8]}}',
        b"\0" * 8,
    ),
    "metadata of numbers": container(b'{"__metadata__": {"r": 4}}'),
    "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n",
    "a web page": b"<!DOCTYPE html><html></html>",
    "a GGUF file": b"GGUF" + b"\0" * 60,
    "a zip": b"PK\x03\x04" + b"\0" * 60,
}


@every("weights", LYING.values(), ids=LYING)
def test_a_weights_file_that_lies_is_refused(tmp_path, weights):
    with pytest.raises(AdapterError) as error:
        read(folder(tmp_path, weights))
    assert "adapter_model.safetensors" in str(error.value)


CONFIGS = {
    "empty": "",
    "not JSON": "{",
    "an array": "[]",
    "a number": "3",
    "null": "null",
    "deep": DEEP.decode(),
    "deep in a field": '{"rank_pattern": ' + '{"a":' * 50_000 + "1" + "}" * 50_001,
    "r a string": {"peft_type": "LORA", "r": "8"},
    "r negative": {"peft_type": "LORA", "r": -8},
    "r zero": {"peft_type": "LORA", "r": 0},
    "r a float": {"peft_type": "LORA", "r": 4.5},
    "alpha null": {"peft_type": "LORA", "r": 4, "lora_alpha": None},
    "alpha a string": {"peft_type": "LORA", "r": 4, "lora_alpha": "16"},
    "alpha beyond floats": '{"peft_type": "LORA", "r": 4, "lora_alpha": 1e999}',
    "alpha NaN": '{"peft_type": "LORA", "r": 4, "lora_alpha": NaN}',
    "a pattern that is no expression": CONFIG | {"alpha_pattern": {"(": 4}},
    "a pattern with a string": CONFIG | {"alpha_pattern": {"q_proj": "big"}},
    "a pattern too large": CONFIG | {"rank_pattern": {"(){100000000}": 4}},
    "a back-reference under repeats": CONFIG | {"rank_pattern": {r"((a)\2+)+b": 4}},
    "layers replicated beyond measure": CONFIG | {"layer_replication": [[0, 10**12]]},
    "layers replicated backwards": CONFIG | {"layer_replication": [[4, 0]]},
    "another type": CONFIG | {"peft_type": "LOHA"},
    "another type still": CONFIG | {"peft_type": "VERA"},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_cannot_be_meant_is_refused(tmp_path, config):
    with pytest.raises(AdapterError) as error:
        read(folder(tmp_path, config=config))
    assert str(error.value)


HARMLESS = {
    "r huge": CONFIG | {"r": 10**30},
    "r of another adapter": CONFIG | {"r": 16},
    "targets of another adapter": CONFIG | {"target_modules": ["c_attn"]},
    "a pattern that runs for ever": CONFIG | {"rank_pattern": {"(a+)+b": 4, "(.*.*.*.*.*.*.*x)*y": 8, "((a*)*)*z": 2}},
    "a look-ahead": CONFIG | {"alpha_pattern": {"(?!.*vision).*q_proj": 4}},
    "an unknown type": CONFIG | {"peft_type": "NEXT_YEARS"},
    "a prompt": CONFIG | {"peft_type": "PROMPT_TUNING", "r": None},
}


@every("config", HARMLESS.values(), ids=HARMLESS)
def test_a_config_at_odds_with_the_file_is_said(tmp_path, config):
    adapter = read(folder(tmp_path, config=config))
    assert adapter.notes or adapter.skipped or any(m.alpha_pattern for m in adapter.modules)


def test_patterns_end_on_the_longest_name_that_a_file_may_hold(tmp_path):
    """Matched by backtracking, each of the two would run for years."""
    stem = "base_model.model." + "a" * 990
    tensors = {
        f"{stem}.lora_A.weight": np.ones((4, 6), np.float32),
        f"{stem}.lora_B.weight": np.ones((8, 4), np.float32),
    }
    read(arrays(tmp_path, tensors, CONFIG | {"rank_pattern": {"(a+)+b": 4, "(.*.*.*x)*y": 8}}))


def skipped_reasons(tmp_path, tensors):
    adapter = read(arrays(tmp_path, tensors))
    assert not adapter.modules
    assert set(adapter.roles.values()) == {"not_analysed"}
    return [item.reason for item in adapter.skipped]


@every(
    ("a", "b", "words"),
    [
        ((4, 12), None, "lora_B is missing"),
        (None, (20, 4), "lora_A is missing"),
        ((4, 12), (20, 5), "ranks disagree"),
        ((0, 12), (20, 0), "no elements"),
        ((4, 0), (20, 4), "no elements"),
        ((4,), (20, 4), "expected (r, in)"),
        ((), (), "expected (r, in)"),
        ((4, 12, 3), (20, 4), "expected (r, in)"),
        ((4, 12, 3), (20, 4, 2), "1 x 1"),
    ],
)
def test_factors_that_do_not_fit_are_skipped_with_their_reason(tmp_path, a, b, words):
    shapes = {"A": a, "B": b}
    tensors = {f"{STEM}.lora_{k}.weight": np.ones(s, np.float32) for k, s in shapes.items() if s is not None}
    (reason,) = skipped_reasons(tmp_path, tensors)
    assert words in reason


def test_factors_of_integers_are_skipped(tmp_path):
    (reason,) = skipped_reasons(tmp_path, {k: np.ones(s, np.int8) for k, s in GOOD.items()})
    assert reason == "factors of dtype I8 and I8: not floating point"
    (of_one,) = skipped_reasons(tmp_path, {k: np.ones(s, "if"["lora_B" in k]) for k, s in GOOD.items()})
    assert of_one == "factors of dtype I32 and F32: not floating point"


def test_an_unknown_dtype_is_skipped(tmp_path):
    header, at = {}, 0
    for key, shape in GOOD.items():
        n = shape[0] * shape[1]
        header[key] = entry(list(shape), at, at + n, dtype="F8_E9M9")
        at += n
    adapter = read(folder(tmp_path, container(json.dumps(header).encode(), b"\0" * at)))
    assert [(one.reason, one.cause) for one in adapter.skipped] == [
        ("factors of dtype F8_E9M9 and F8_E9M9: not floating point", LeftoverReason.DTYPE)
    ]


def test_non_finite_factors_stay_visible(tmp_path):
    adapter = read(arrays(tmp_path, {k: np.full(s, np.nan, np.float32) for k, s in GOOD.items()}))
    assert np.isnan(adapter.modules[0].load()[0]).all()


def test_a_file_without_modules_says_what_is_in_it(tmp_path):
    adapter = read(arrays(tmp_path, {f"x{i}": np.ones(3, np.float32) for i in range(100)}))
    assert set(adapter.roles.values()) == {"unknown"}
    assert [s.name for s in adapter.skipped] == ["x0 and 99 more"]


def test_a_header_over_the_formats_limit_is_named_and_not_read(tmp_path):
    length = 100_000_008
    path = folder(tmp_path, container(b"{}", length=length)) / "adapter_model.safetensors"
    os.truncate(path, length + 16)
    tracemalloc.start()
    with pytest.raises(AdapterError, match="over the format's limit"):
        SafetensorsFile(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_thousands_of_tensors_are_read(tmp_path):
    """In seconds; growth that is not linear would not end within a test run."""
    n = 100_000 if os.environ.get("GRADIENCE_SLOW") else 5_000
    names = (f"{STEM}{i}.lora_{side}.weight" for i in range(n) for side in "AB")
    header = (
        "{" + ",".join(f'"{n}":{{"dtype":"F32","shape":[0,4],"data_offsets":[0,0]}}' for n in names) + "}"
    ).encode()
    path = folder(tmp_path, container(header))
    adapter = read(path)
    assert len(adapter.tensors) == 2 * n


def test_reading_a_module_needs_no_more_memory_than_its_tensors(tmp_path):
    shapes = {f"{STEM}.lora_A.weight": (8, 200_000), f"{STEM}.lora_B.weight": (200_000, 8)}
    path = arrays(tmp_path, {k: np.ones(s, np.float32) for k, s in shapes.items()})
    size = (path / "adapter_model.safetensors").stat().st_size
    tracemalloc.start()
    read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * size


@pytest.mark.parametrize("kind", ["hada", "lokr"])
def test_products_that_would_unfold_beyond_reason_are_skipped(tmp_path, kind):
    if kind == "hada":
        shapes = {"hada_w1_a": (64, 60), "hada_w1_b": (60, 64), "hada_w2_a": (64, 60), "hada_w2_b": (60, 64)}
        config = {"peft_type": "LOHA", "r": 60, "alpha": 8}
    else:
        shapes = {"lokr_w1": (4000, 1), "lokr_w2": (4000, 1200)}
        config = {"peft_type": "LOKR", "r": 60, "alpha": 8}
    adapter = read(arrays(tmp_path, {f"{STEM}.{k}": np.ones(s, np.float16) for k, s in shapes.items()}, config))
    assert not adapter.modules
    assert "too large" in adapter.skipped[0].reason


def test_shards_are_read_together_and_only_from_their_folder(tmp_path):
    keys = list(GOOD)
    index = {"weight_map": {keys[0]: "m-00001-of-00002.safetensors", keys[1]: "m-00002-of-00002.safetensors"}}
    for key, name in index["weight_map"].items():
        save_file({key: np.ones(GOOD[key], np.float32)}, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    assert len(read(tmp_path).modules) == 1  # by their names
    path = tmp_path / "adapter_model.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert len(read(tmp_path).modules) == 1
    shards = [tmp_path / name for name in index["weight_map"].values()]
    assert read(tmp_path).weights == shards  # and not the index
    (tmp_path / "elsewhere").mkdir()
    target = shards[1].rename(tmp_path / "elsewhere" / "x")
    shards[1].symlink_to(target)
    assert read(tmp_path).notes == []  # within the folder
    shards[1].unlink()
    target = target.rename(tmp_path.parent / f"{tmp_path.name}-x")
    shards[1].symlink_to(target)
    assert read(tmp_path).notes == [f"{shards[1].name} is a link to another place, which was read: {target}"]
    for name in ("../../etc/passwd", "/etc/passwd", "..", "missing.safetensors", "a\0b", "a\\b"):
        path.write_text(json.dumps({"weight_map": {keys[0]: name}}))
        with pytest.raises(AdapterError):
            read(tmp_path)
    for text in ("[]", "{}", '{"weight_map": {"a": 1}}', DEEP.decode()):
        path.write_text(text)
        with pytest.raises(AdapterError):
            read(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    for name in ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"):
        save_file({"x": np.ones(3, np.float32)}, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(AdapterError, match="both hold"):
        read(tmp_path)


def test_a_missing_shard_is_refused(tmp_path):
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "m-00001-of-00003.safetensors")
    with pytest.raises(AdapterError, match="expected 00003"):
        read(tmp_path)


def test_a_link_out_of_the_folder_is_said_but_not_a_hub_cache(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder(tmp_path / "elsewhere")
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (linked / name).symlink_to(tmp_path / "elsewhere" / name)
    notes = read(linked).notes
    assert len([note for note in notes if "is a link to another place" in note]) == 2
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "elsewhere" / name).rename(blobs / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    assert read(snapshot).notes == []
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (linked / name).unlink()
        (blobs / name).rename(linked / f"own-{name}")
        (linked / name).symlink_to(f"own-{name}")
    assert read(linked).notes == []  # of a folder's own files
    foreign = tmp_path / "blobs"
    foreign.mkdir()
    (linked / "own-adapter_model.safetensors").rename(foreign / "x")
    (linked / "adapter_model.safetensors").unlink()
    (linked / "adapter_model.safetensors").symlink_to(foreign / "x")
    assert read(linked).notes == [
        f"adapter_model.safetensors is a link to another place, which was read: {foreign / 'x'}"
    ]


@pytest.mark.parametrize("target", ["/dev/zero", "/nowhere", "."])
def test_a_link_to_what_is_no_file_is_refused(tmp_path, target):
    folder(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_model.safetensors").symlink_to(target)
    with pytest.raises(AdapterError):
        read(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    folder(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    os.mkfifo(tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError):
        read(tmp_path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/gradience_was_here",)


def test_code_in_a_pickle_never_runs(tmp_path):
    Path("/tmp/gradience_was_here").unlink(missing_ok=True)  # noqa: S108  # the payload's own path
    for payload in (Evil(), {"a": Evil()}, [1, 2], {"a": 3}, {1: 2}):
        with pytest.raises(AdapterError):
            read(folder(tmp_path, pickle.dumps(payload), name="adapter_model.bin"))
    assert not Path("/tmp/gradience_was_here").exists()  # noqa: S108


@every("data", [b"", b"\x80", b"PK\x03\x04", b"\0" * 100, b"version https://git-lfs"])
def test_a_bin_that_is_none_is_refused(tmp_path, data):
    with pytest.raises(AdapterError):
        read(folder(tmp_path, data, name="adapter_model.bin"))


def test_a_bin_reads_like_safetensors_whatever_its_dtype(tmp_path):
    import safetensors.torch
    import torch

    with pytest.raises(AdapterError, match="not a plain array"):
        _described(tmp_path, "x", torch.ones(2, device="meta"))
    whole = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    safetensors.torch.save_file({str(kind): torch.ones(1, dtype=kind) for kind in whole}, tmp_path / "w.safetensors")
    for name, info in open_weights(tmp_path / "w.safetensors").tensors.items():
        assert formats._NAMES[name] == info.dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        tensors = {k: torch.arange(float(s[0] * s[1])).reshape(s).to(dtype) for k, s in GOOD.items()}
        torch.save(tensors, tmp_path / "adapter_model.bin")
        (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
        b, _ = read(tmp_path).modules[0].load()
        np.testing.assert_array_equal(b.astype(np.float32), tensors[f"{STEM}.lora_B.weight"].float().numpy())
        torch.save({**tensors, "odd": torch.ones(3, 5, dtype=dtype)}, tmp_path / "adapter_model.bin")
        pickled, plain = tmp_path / "x.pth", tmp_path / "x.safetensors"
        torch.save(tensors, pickled)
        safetensors.torch.save_file(tensors, plain)
        assert {k: v.dtype for k, v in open_weights(pickled).tensors.items()} == {
            k: v.dtype for k, v in open_weights(plain).tensors.items()
        }
        assert TorchFile(tmp_path / "adapter_model.bin").read("odd").shape == (3, 5)  # of an odd number of bytes


def test_strides_and_compression_cannot_claim_more_than_the_file(tmp_path):
    import torch

    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    path = tmp_path / "adapter_model.bin"
    torch.save({"a": torch.zeros(1).expand(10**9)}, path)
    with pytest.raises(AdapterError, match="'a' claims 4000000000 bytes, more than the file has"):
        read(tmp_path)
    size = path.stat().st_size
    for dtype, each in ((torch.uint8, 1), (torch.int16, 2), (torch.float64, 8)):
        assert _described(path, "a", torch.zeros(size // each, dtype=dtype)).nbytes == size // each * each
        with pytest.raises(AdapterError, match="more than the file has"):
            _described(path, "a", torch.zeros(size // each + 1, dtype=dtype))
    torch.save({k: torch.zeros(s) for k, s in GOOD.items()}, tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "plain") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            kind = zipfile.ZIP_DEFLATED if name.endswith("data.pkl") else zipfile.ZIP_STORED
            packed.writestr(name, plain.read(name), kind)  # one is enough
    with pytest.raises(AdapterError, match="compressed"):
        read(tmp_path)


@pytest.mark.parametrize("other", [3, None])
@pytest.mark.parametrize("first", [True, False])
def test_a_dict_of_tensors_and_something_else_is_refused(other, first, tmp_path):
    import torch

    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    held = {k: torch.zeros(s) for k, s in GOOD.items()}
    torch.save({"x": other, **held} if first else {**held, 4: held.popitem()[1]}, tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterError, match="is not a dict of tensors"):
        read(tmp_path)


def test_a_sparse_tensor_in_a_bin_is_refused(tmp_path):
    import torch

    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    path = tmp_path / "adapter_model.bin"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of kinds of tensor that it will drop
        odd = (torch.eye(3).to_sparse(), torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    for tensor in odd:
        torch.save({"a": tensor}, path)
        with pytest.raises(AdapterError) as error:
            read(tmp_path)
        assert str(error.value) == f"{path}: tensor 'a' is not a plain array"
    torch.save({"x" * 1025: torch.ones(1)}, path)
    with pytest.raises(AdapterError) as error:
        read(tmp_path)
    assert str(error.value).endswith("... is 1025 characters long, over the limit of 1024")
    torch.save({"a": np.random.default_rng()}, path)
    with pytest.raises(AdapterError) as error:
        read(tmp_path)
    said = f"{path} cannot be loaded as plain tensors: UnpicklingError: Weights only load failed. "
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)  # torch goes on for many lines


def test_folders_without_an_adapter_say_what_they_hold(tmp_path):
    with pytest.raises(AdapterError, match="no such file"):
        find_files(tmp_path / "nowhere")
    with pytest.raises(AdapterError, match="nothing"):
        find_files(tmp_path)
    for config in (tmp_path, tmp_path / "x.json"):  # a folder is no config
        (tmp_path / "w.safetensors").touch()
        with pytest.raises(AdapterError, match=f"^no config file at {re.escape(str(config))}$"):
            find_files(tmp_path / "w.safetensors", config=config)
    (tmp_path / "w.safetensors").unlink()
    for name in ("checkpoint-10", "checkpoint-20"):
        (tmp_path / name).mkdir()
        folder(tmp_path / name)
    with pytest.raises(AdapterError, match="2 adapters in sub-folders") as error:
        find_files(tmp_path)
    assert "checkpoint-20" in error.value.advice


def test_one_nested_adapter_is_found(tmp_path):
    (tmp_path / "inner").mkdir()
    folder(tmp_path / "inner")
    assert len(read(tmp_path).modules) == 1


FIELDS = [
    "lora_A.weight", "lora_B.weight", "lora_A", "lora_B", "lora_E", "lora_embedding_A", "lora_embedding_B", "lora_diag",
    "lora_magnitude_vector", "lora_B.bias", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "vera_lambda_b",
    "vera_lambda_d", "hira_A", "hira_B", "miss_block", "lora_a", "lora_b", "m", "lora_a.weight", "lora_b.weight",
    "magnitude", "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "weight", "bias",
    "base_layer.weight",
]  # fmt: skip
STEMS = [STEM, f"{STEM}.base_layer", "transformer.x", "lora_unet_a", "base_model", "", "base_model.model.mlp.experts"]
TYPES = [*[None] * 9, "LORA", "ADALORA", "LOHA", "LOKR", "VERA", "HIRA", "MISS", "IA3", "XLORA"]
FAMILIES = [
    {"lora_A.weight": "ri", "lora_B.weight": "or"},
    {"lora_A.weight": "ri", "lora_B.weight": "or", "lora_magnitude_vector": "o", "lora_B.bias": "o"},
    {"lora_A.weight": "ri", "lora_B.weight": "or", "lora_diag": "r"},
    {"lora_A.weight": "rik", "lora_B.weight": "or1", "lora_magnitude_vector": "1o1"},
    {"lora_embedding_A": "ri", "lora_embedding_B": "or", "lora_magnitude_vector": "o"},
    {"lora_A": "ri", "lora_B": "or", "lora_E": "r1"},
    {"hada_w1_a": "or", "hada_w1_b": "ri", "hada_w2_a": "or", "hada_w2_b": "ri"},
    {"hada_w1_a": "ro", "hada_w1_b": "ri", "hada_w2_a": "ro", "hada_w2_b": "ri", "hada_t1": "rrkk", "hada_t2": "rrkk"},
    {"lokr_w1": "oi", "lokr_w2": "or"},
    {"lokr_w1_a": "or", "lokr_w1_b": "ri", "lokr_w2_a": "ro", "lokr_w2_b": "ri", "lokr_t2": "rrkk"},
    {"vera_lambda_b": "o", "vera_lambda_d": "r"},
    {"hira_A": "ri", "hira_B": "or"},
    {"miss_block": "ro"},
    {"lora_a": "ir", "lora_b": "ro", "m": "o"},
    {"lora_a": "kri", "lora_b": "kor"},
    {"lora_a.weight": "ri", "lora_b.weight": "or", "magnitude": "o"},
    {"lora_down.weight": "ri", "lora_up.weight": "or", "alpha": "1", "dora_scale": "1i"},
    {"lora_down.weight": "ri11", "lora_up.weight": "or11", "lora_mid.weight": "rrkk"},
]
shapes = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6]), max_size=4)


@st.composite
def tensor_sets(draw):
    """Return tensors that fit each other, but for a change that may break any of that."""
    sizes = {letter: draw(st.integers(1, 6)) for letter in "riok"} | {"1": 1}
    tensors = {}
    for family in draw(st.lists(st.sampled_from(FAMILIES), min_size=1, max_size=2)):
        stem = draw(st.sampled_from(STEMS))
        dtype = draw(st.sampled_from([np.float32, np.float32, np.float16, np.int32, np.float64]))
        tensors |= {f"{stem}.{field}": ([sizes[x] for x in axes], dtype) for field, axes in family.items()}
    if draw(st.booleans()):
        tensors |= {
            "base_model.vera_A": ([sizes["r"], 9], np.float32),
            "base_model.vera_B": ([9, sizes["r"]], np.float32),
        }
    broken = draw(st.sampled_from([*[None] * len(tensors), *tensors]))
    if broken is not None:
        tensors[broken] = (draw(shapes), np.float32)
    dropped = draw(st.sampled_from([*[None] * 2 * len(tensors), *tensors]))
    tensors.pop(dropped, None)
    stray = draw(st.sampled_from([None, *FIELDS]))
    return (
        tensors if stray is None else tensors | {f"{draw(st.sampled_from(STEMS))}.{stray}": (draw(shapes), np.float32)}
    )


configs = st.fixed_dictionaries(
    {"peft_type": st.sampled_from(TYPES), "r": st.integers(1, 6)},
    optional={
        "use_rslora": st.booleans(),
        "use_dora": st.booleans(),
        "use_qalora": st.booleans(),
        "qalora_group_size": st.integers(-1, 3),
        "fan_in_fan_out": st.booleans(),
        "init_lora_weights": st.sampled_from([True, False, "pissa", "olora", "loftq"]),
        "init_weights": st.sampled_from([True, "bat", "mini"]),
        "init_r": st.integers(-1, 4),
        "alpha": st.floats(-2, 2),
        "lora_alpha": st.floats(-2, 2),
        "target_parameters": st.lists(st.sampled_from(["experts.down_proj", "gate_up_proj", "q_proj.weight"])),
        "target_modules": st.one_of(st.lists(st.sampled_from(["q_proj", "x"]), max_size=2), st.just("all-linear")),
        "rank_pattern": st.dictionaries(st.sampled_from(["q_proj", ".*", "(x|y)+", "(?=q)"]), st.integers(-1, 5)),
        "alpha_pattern": st.dictionaries(st.text(max_size=6), st.floats(-2, 2), max_size=2),
        "lora_parameters": st.dictionaries(st.sampled_from(["scale", "rank"]), st.one_of(st.none(), st.floats(-2, 2))),
        "use_bdlora": st.fixed_dictionaries(
            {"target_modules_bd_a": st.just(["q_proj"]), "nblocks": st.integers(-1, 4)}
        ),
        "layer_replication": st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=3),
    },
)


@settings(max_examples=4 * settings.default.max_examples)
@given(tensors=tensor_sets(), config=configs)
def test_any_tensors_under_any_config_are_read_or_refused_in_words(tmp_path_factory, tensors, config):
    path = tmp_path_factory.mktemp("any")
    save_file({k: np.ones(s, d) for k, (s, d) in tensors.items()}, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(config))
    adapter = in_words(lambda: read(path))
    if adapter is None:
        return
    for module in [*adapter.modules, *adapter.base_dependent]:
        for weight in (np.ones((4, 6), np.float32), np.ones((2, 3, 2), np.float32)):
            if module.dense is None:
                continue
            dw = in_words(lambda: module.dense(weight))  # noqa: B023  # called at once
            assert dw is None or dw.shape == (len(weight), 6)


@settings(max_examples=2 * settings.default.max_examples)
@given(data=st.binary(max_size=200), name=st.sampled_from(["adapter_model.safetensors", "adapter_model.bin"]))
def test_any_bytes_are_refused_in_words(tmp_path_factory, data, name):
    path = folder(tmp_path_factory.mktemp("bytes"), data, name=name)
    in_words(lambda: read(path))


@settings(max_examples=2 * settings.default.max_examples)
@given(at=st.integers(0, 2000), value=st.integers(0, 255))
def test_a_good_file_with_one_byte_changed_is_read_or_refused_in_words(tmp_path_factory, at, value):
    path = folder(tmp_path_factory.mktemp("flip"))
    weights = path / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[at % len(data)] = value
    weights.write_bytes(data)
    in_words(lambda: read(path))
