"""Which files make up an adapter, by their names and, where a name is open, by their headers."""

from __future__ import annotations

import os

import numpy as np
import pytest
from fleet_inputs import factors, peft
from safetensors.numpy import save_file
from tables import every

from gradience.errors import AdapterError
from gradience.verbs.fleet.find import find_adapters, read_list, targets

CONFIG = "adapter_config.json"


MAIN, MLX, STEP = "adapter_model.safetensors", "adapters.safetensors", "0000100_adapters.safetensors"
INDEX, PARTS = f"{MAIN}.index.json", ("a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors")
YES = ("yes-a.safetensors", "yes-b.safetensors")


@every(
    ("names", "expected"),
    [
        ([CONFIG, MAIN, "optimizer.pt"], [("", (CONFIG, MAIN))]),
        ([CONFIG, "adapter_model.bin"], [("", (CONFIG, "adapter_model.bin"))]),
        ([MAIN, "adapter_model.bin"], [("", (MAIN,))]),
        (["optimizer.pt", "training_args.bin", "pytorch_model.bin"], []),
        ([CONFIG], [("", (CONFIG,))]),
        ([CONFIG, "odd.safetensors"], [("", (CONFIG, "odd.safetensors"))]),
        ([CONFIG, MLX, STEP], [("", (CONFIG, MLX)), (STEP, (CONFIG, STEP))]),
        ([CONFIG, INDEX, *PARTS], [("", (CONFIG, INDEX, *PARTS))]),
        ([CONFIG, *PARTS], [("", (CONFIG, *PARTS))]),
        (PARTS, []),
        (["model.safetensors.index.json", "model-00001-of-00001.safetensors"], []),
        (YES, [(name, (name,)) for name in YES]),
        ([CONFIG, *YES], [(name, (CONFIG, name)) for name in YES]),
        ([MAIN, "model.safetensors", YES[0]], [("", (MAIN,)), (YES[0], (YES[0],))]),
    ],
)
def test_file_names_tell_the_adapters_of_a_folder(names, expected):
    assert list(targets(set(names), lambda name: name.startswith("yes"))) == expected


def found(*roots, **options):
    return [(item.path, item.fault) for item in find_adapters(roots, **options)]


def test_adapters_checkpoints_and_named_ones_are_each_found_once_in_order(tmp_path):
    peft(tmp_path / "run")
    peft(tmp_path / "run" / "other")
    peft(tmp_path / "run" / "checkpoint-20")
    peft(tmp_path / ".hidden" / "x")
    names = [path.removeprefix(f"{tmp_path}/") for path, _ in found(tmp_path, tmp_path / "run")]
    assert sorted(names) == ["run", "run/checkpoint-20", "run/other"]


def test_a_folder_with_a_config_alone_is_broken_unless_adapters_lie_below(tmp_path):
    peft(tmp_path / "saved" / "first")
    for name in ("saved", "lonely"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / CONFIG).write_text("{}")
    assert sorted(path for path, _ in found(tmp_path)) == [str(tmp_path / "lonely"), str(tmp_path / "saved" / "first")]


def test_links_of_a_hub_cache_are_read_and_its_blobs_are_not_adapters(tmp_path):
    home = tmp_path / "models--org--name"
    (home / "blobs").mkdir(parents=True)
    real = peft(tmp_path / "elsewhere")
    snapshot = home / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("adapter_model.safetensors", CONFIG):
        (real / name).rename(home / "blobs" / name.replace(".", ""))
        (snapshot / name).symlink_to(home / "blobs" / name.replace(".", ""))
    real.rmdir()
    assert found(tmp_path) == [(str(snapshot), None)]


def test_a_linked_folder_is_named_by_its_real_place_and_a_loop_ends(tmp_path):
    real = peft(tmp_path / "z-real")
    (tmp_path / "a-link").symlink_to(real)
    (real / "loop").symlink_to(tmp_path)
    assert found(tmp_path) == [(str(real), None)]
    assert found(tmp_path / "a-link") == [(str(tmp_path / "a-link"), None)]


def test_a_lone_file_is_an_adapter_by_its_header_and_a_model_is_none(tmp_path):
    save_file({"lora_unet_x.lora_up.weight": np.zeros((8, 2), np.float32)}, tmp_path / "style.safetensors")
    save_file({"model.layers.0.mlp.weight": np.zeros((8, 2), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert [os.path.basename(path) for path, _ in found(tmp_path)] == ["cut.safetensors", "style.safetensors"]  # noqa: PTH119


def test_a_missing_root_is_an_error_and_a_missing_line_of_a_list_a_row(tmp_path):
    with pytest.raises(AdapterError, match="no such file"):
        found(tmp_path / "nowhere")
    listed = tmp_path / "list.txt"
    listed.write_text(f"# mine\n\n{tmp_path}/gone\n{peft(tmp_path / 'a')}\n")
    rows = found(listed=read_list(listed))
    assert [(path, fault is None) for path, fault in rows] == [(f"{tmp_path}/gone", False), (str(tmp_path / "a"), True)]


def test_a_stamp_tells_size_and_time_of_every_file(tmp_path):
    folder = peft(tmp_path / "a")
    (before,) = find_adapters([tmp_path])
    os.utime(folder / CONFIG, ns=(1, 1))
    (touched,) = find_adapters([tmp_path])
    save_file(factors(3, layers=3), folder / "adapter_model.safetensors")
    (grown,) = find_adapters([tmp_path])
    assert len({before.stamp, touched.stamp, grown.stamp}) == 3
    status = (folder / CONFIG).stat()
    assert f"{CONFIG} {status.st_size} 1 {status.st_ctime_ns};" in touched.stamp


def test_a_url_is_refused_with_what_to_do():
    with pytest.raises(
        AdapterError, match=r"^s3://bucket/x is a URL \(copy the adapters here, and give their folder\)$"
    ):
        list(find_adapters(["s3://bucket/x"]))
