"""The base's files: where they are, which base they are."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tables import every

from gradience.adapters.layout import check_shape
from gradience.base.weights import (
    BaseTensor,
    BaseWeights,
    Norms,
    NormsCache,
    file_digest,
    find_shards,
    identity,
    matrix_of,
    stamp,
)
from gradience.errors import AdapterError
from gradience.io.safetensors import TensorInfo


def shard(path, **tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors or {"x.y.weight": np.ones((2, 2), np.float32)}, path)
    return path


def hub_entry(root, revisions=("abc",), main="abc"):
    entry = root / "models--org--name"
    for revision in revisions:
        blob = shard(entry / "blobs" / ("a" * 64))
        link = entry / "snapshots" / revision / "model.safetensors"
        link.parent.mkdir(parents=True)
        link.symlink_to(blob)
    if main:
        (entry / "refs").mkdir()
        (entry / "refs" / "main").write_text(main)
    return entry


def test_a_folder_with_one_file_and_the_file_itself(tmp_path):
    file = shard(tmp_path / "model.safetensors")
    assert find_shards(tmp_path) == find_shards(file) == [file]


def test_an_index_names_its_shards(tmp_path):
    files = [shard(tmp_path / f"model-0000{i}-of-00002.safetensors") for i in (1, 2)]
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": files[0].name, "b": files[1].name, "c": files[1].name}}))
    assert find_shards(tmp_path) == find_shards(index) == files
    files[1].unlink()
    with pytest.raises(AdapterError, match="1 of 2 shards"):
        find_shards(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(AdapterError, match="outside"):
        find_shards(tmp_path)


def test_a_hub_cache_entry_leads_to_its_main_revision(tmp_path, monkeypatch):
    entry = hub_entry(tmp_path, ("abc", "def"))
    expected = [entry / "snapshots" / "abc" / "model.safetensors"]
    assert find_shards(entry) == find_shards(expected[0].parent) == expected
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert find_shards(Path("org/name")) == expected


def test_revisions_without_a_main_are_not_guessed(tmp_path):
    with pytest.raises(AdapterError, match="2 revisions"):
        find_shards(hub_entry(tmp_path, ("abc", "def"), main=None))


def test_a_folder_with_pickles_only_says_what_to_do(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(AdapterError) as caught:
        find_shards(tmp_path)
    assert "safe_serialization" in caught.value.advice


def test_the_identity_is_of_names_sizes_and_content_in_order(tmp_path):
    files = [tmp_path / name for name in ("b.safetensors", "a.safetensors")]
    for file, content in zip(files, (b"two", b"three"), strict=True):
        file.write_bytes(content)
    lines = (
        f"{name}\0{len(content)}\0sha256:{hashlib.sha256(content).hexdigest()}\n"
        for name, content in (("b.safetensors", b"two"), ("a.safetensors", b"three"))
    )
    assert identity(files) == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("change", ["content", "time", "replaced", "longer"])
def test_a_stamp_changes_with_whatever_is_done_to_a_file(change, wait_a_tick, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    before, times = stamp([file]), file.stat()
    assert stamp([file]) == before
    if change == "content":
        wait_a_tick(file)
        file.write_bytes(b"WEIGHTS")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "time":
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    elif change == "replaced":
        (tmp_path / "new").write_bytes(b"WEIGHTS")
        (tmp_path / "new").replace(file)
    else:
        file.write_bytes(b"weights more")
    assert stamp([file]) != before


def test_a_stamp_tells_files_of_one_content_apart_but_not_blobs_of_one_etag(tmp_path):
    one, two = (shard(tmp_path / d / "model.safetensors") for d in ("one", "two"))
    assert stamp([one]) != stamp([two])
    places = [hub_entry(tmp_path / d) / "snapshots" / "abc" / "model.safetensors" for d in ("here", "there")]
    assert stamp(places[:1]) == stamp(places[1:])


def test_a_tail_that_two_tensors_share_is_not_guessed(tmp_path):
    pair = {f"{side}.layers.0.q.weight": np.ones((2, 2), np.float32) for side in ("encoder", "decoder")}
    weights = BaseWeights([shard(tmp_path / "model.safetensors", **pair)])
    assert weights.find("layers.0.q.weight") is None
    assert weights.find("model.decoder.layers.0.q.weight").name == "decoder.layers.0.q.weight"
    assert weights.find("layers.0.k.weight") is None


@every(
    ("held", "asked", "is_found"),
    [
        ("q.weight", "h.0.q.weight", False),  # one part and the leaf would fit too many
        ("0.q.weight", "h.0.q.weight", True),
        ("h.0.q.weight", "q.weight", True),  # the other way round what is asked for says enough
        ("weight", "q.weight", False),
    ],
)
def test_a_tail_of_two_parts_and_the_leaf_is_enough(held, asked, is_found, tmp_path):
    weights = BaseWeights([shard(tmp_path / "model.safetensors", **{held: np.ones((2, 2), np.float32)})])
    found = weights.find(asked)
    assert (found is not None and found.name == held) is is_found


def test_one_expert_is_read_without_the_others(tmp_path):
    stack = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    weights = BaseWeights([shard(tmp_path / "model.safetensors", **{"mlp.experts.w": stack})])
    found = weights.find("mlp.experts.w")
    assert np.array_equal(weights.read(found, 1), stack[1])
    with pytest.raises(AdapterError, match="no expert 3"):
        weights.read(found, 3)


def test_an_index_goes_before_one_file_and_that_before_others_which_adapters_are_not(tmp_path):
    other = shard(tmp_path / "weights.safetensors")
    shard(tmp_path / "adapter_model.safetensors")
    assert find_shards(tmp_path) == [other]
    one = shard(tmp_path / "model.safetensors")
    assert find_shards(tmp_path) == [one]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": other.name}}))
    assert find_shards(tmp_path) == [other]
    held = tmp_path / "held"
    held.mkdir()
    for listed in ("nothing", "0, 1, 2, 3, 4, 5, 6, 7", "0, 1, 2, 3, 4, 5, 6, 7"):
        with pytest.raises(AdapterError) as error:
            find_shards(held)
        assert error.value.message == f"no base weights in {held} (it holds {listed})"
        for name in range(9 if (held / "0").exists() else 8):
            (held / str(name)).touch()


def test_a_ref_names_one_folder_of_the_snapshots(tmp_path):
    commit = "0123456789" * 4
    entry = hub_entry(tmp_path, (commit, "abc"), main=None)
    (entry / "refs").mkdir()
    main = entry / "refs" / "main"
    main.write_text(f"{commit}\n")
    assert find_shards(entry) == [entry / "snapshots" / commit / "model.safetensors"]
    for text in ("../snapshots/abc", "gone", "", "."):
        main.write_text(text)
        with pytest.raises(AdapterError) as error:
            find_shards(entry)
        assert error.value.message == f"{main} names no revision in snapshots/"
        assert error.value.advice == "give one of the folders in snapshots/"
    main.unlink()
    with pytest.raises(AdapterError) as error:
        find_shards(entry)
    assert error.value.message == f"{entry} holds 2 revisions and no refs/main"


HUB_CACHES = [  # {0} is the folder of the test, and where in it the cache is
    ({"HF_HUB_CACHE": "{0}/mine/a", "HUGGINGFACE_HUB_CACHE": "{0}/mine/b", "HF_HOME": "{0}/mine/c"}, "mine/a"),
    ({"HUGGINGFACE_HUB_CACHE": "{0}/mine/b", "HF_HOME": "{0}/mine/c"}, "mine/b"),
    ({"HF_HOME": "{0}/mine/c", "XDG_CACHE_HOME": "{0}/mine/d"}, "mine/c/hub"),
    ({"XDG_CACHE_HOME": "{0}/mine/d"}, "mine/d/huggingface/hub"),
    ({}, "home/.cache/huggingface/hub"),
    ({"HF_HOME": "~/c"}, "home/c/hub"),
    ({"HF_HUB_CACHE": "$MINE/a"}, "mine/a"),
    ({"XDG_CACHE_HOME": "~/d"}, "home/d/huggingface/hub"),
    ({"HF_HUB_CACHE": ""}, "here"),
    ({"HF_HOME": "", "XDG_CACHE_HOME": "{0}/mine/d"}, "here/hub"),
]


def place_of_hub():
    """huggingface_hub's own answer of these variables, which its module reads on import; None without it."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    spec = importlib.util.find_spec("huggingface_hub.constants")
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return Path(fresh.HF_HUB_CACHE).absolute()


@every(("variables", "place"), HUB_CACHES)
def test_the_hubs_cache_lies_where_its_variables_say(variables, place, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "{0}/home", "MINE": "{0}/mine", **variables}.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    file = hub_entry(tmp_path / place) / "snapshots" / "abc" / "model.safetensors"
    assert [one.absolute() for one in find_shards(Path("org/name"))] == [file]
    assert place_of_hub() in {None, tmp_path / place}


def test_only_a_link_to_a_blob_has_an_etag(tmp_path):
    for tag, digest in (("a" * 40, "etag:"), ("b" * 64, "etag:"), ("c" * 41, "sha256:"), ("D" * 40, "sha256:")):
        blob = shard(tmp_path / "blobs" / tag)
        link = tmp_path / f"{tag}.safetensors"
        link.symlink_to(blob)
        assert file_digest(link).startswith(digest)
        assert file_digest(blob).startswith("sha256:")  # no link itself


def test_a_longer_name_goes_before_a_tail_of_the_name_asked_for(tmp_path):
    one = np.ones((2, 2), np.float32)
    weights = BaseWeights([shard(tmp_path / "model.safetensors", **{"m.h.0.q.weight": one, "0.q.weight": one})])
    assert weights.find("h.0.q.weight").name == "m.h.0.q.weight"


def test_a_weight_that_no_number_follows_from_is_refused_with_its_dtype_or_shape(tmp_path):
    weights = BaseWeights([shard(tmp_path / "model.safetensors", w=np.ones((3, 2), np.float32))])
    for dtype, shape, reason in (
        *((dtype, [2, 3], None) for dtype in ("F64", "F32", "F16", "BF16")),
        *(
            (dtype, [2, 3], f"stored as {dtype}: a quantised base weight is not comparable")
            for dtype in ("F8_E4M3", "F8_E5M2", "I8", "U8", "I32")
        ),
        *(("F32", shape, f"of shape {shape}: no matrix") for shape in ([], [3], [0, 3], [3, 0])),
        ("F32", [2, 3, 1, 1], None),
    ):
        assert weights.refusal(BaseTensor("w", TensorInfo(dtype, tuple(shape), 0, 0), weights.files[0])) == reason
    with pytest.raises(AdapterError) as error:
        weights.read(weights.find("w"), 0)
    assert error.value.message == "w: of shape [3, 2]: no expert 0"
    with pytest.raises(AdapterError) as error:
        check_shape((2, 3), (4, 5))
    assert error.value.message == "an update of shape [2, 3] for a base weight of [4, 5]"
    assert matrix_of(lambda w: w, np.ones((2, 2))).dtype == np.float32


def test_norms_are_kept_for_the_files_that_they_are_of(tmp_path):
    file, folder = shard(tmp_path / "model.safetensors"), tmp_path / "cache"
    cache = NormsCache(folder, [file])
    cache.save()
    assert not folder.exists()  # of nothing that was added
    cache.put("w", Norms(2.0, 3.0))
    cache.save()
    kept = folder / f"{stamp([file])[:32]}.json"
    assert list(folder.iterdir()) == [kept]
    again = NormsCache(folder, [file])
    assert (again.get("w"), again.get("v"), again.refused) == (Norms(2.0, 3.0), None, None)
    assert again.identity == identity([file])
    whole = json.loads(kept.read_text())
    for text, why in (
        ("{", "is damaged"),
        (json.dumps({**whole, "version": whole["version"] + 1}), "belongs to another base"),
        (json.dumps({**whole, "stamp": "0"}), "belongs to another base"),
    ):
        kept.write_text(text)
        found = NormsCache(folder, [file])
        assert (found.get("w"), found.refused) == (None, f"the norms cache {kept} {why}: not used")
        assert found.identity == identity([file])
    without = NormsCache(None, [file])
    assert (without.identity, without.refused, without.get("w")) == ("", None, None)
