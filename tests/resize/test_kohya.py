"""A LoRA file as sd-scripts writes it, resized to a file of the same kind: s = alpha / r, dW = s up @ down."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hand_made import best
from peft_models import same
from safetensors.numpy import load_file, save_file

from gradience import AdapterError, OutputError, resize_adapter

LINEAR = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
BARE = "lora_te_text_model_encoder_layers_0_mlp_fc1"


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    fall = 0.6 ** np.arange(8)
    tensors = {
        f"{LINEAR}.lora_down.weight": rng.standard_normal((8, 30)) * fall[:, None],
        f"{LINEAR}.lora_up.weight": rng.standard_normal((20, 8)),
        f"{LINEAR}.alpha": np.asarray(4.0),
        f"{CONV}.lora_down.weight": rng.standard_normal((8, 6, 3, 3)) * fall[:, None, None, None],
        f"{CONV}.lora_up.weight": rng.standard_normal((24, 8, 1, 1)),
        f"{CONV}.alpha": np.asarray(8.0),
        f"{BARE}.lora_down.weight": rng.standard_normal((8, 30)) * fall[:, None],
        f"{BARE}.lora_up.weight": rng.standard_normal((20, 8)),  # no alpha: s = 1
    }
    metadata = {
        "ss_network_dim": "8",
        "ss_network_alpha": "4",
        "ss_base_model_version": "sd_v1",
        "sshs_model_hash": "x",
    }
    save_file({n: t.astype(np.float32) for n, t in tensors.items()}, tmp_path / "lora.safetensors", metadata=metadata)
    return tmp_path / "lora.safetensors"


def updates(path):
    """Return dW of each module, by sd-scripts' own formula."""
    tensors = {name: tensor.astype(np.float64) for name, tensor in load_file(path).items()}
    found = {}
    for name, down in tensors.items():
        if name.endswith(".lora_down.weight"):
            stem = name.removesuffix(".lora_down.weight")
            up, alpha = tensors[f"{stem}.lora_up.weight"], tensors.get(f"{stem}.alpha", np.asarray(float(len(down))))
            found[stem] = float(alpha) / len(down) * up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    return found


@pytest.mark.parametrize("criterion", [{"rank": 3}, {"energy": 0.91}], ids=str)
def test_each_update_is_the_best_of_its_rank(source, tmp_path, criterion):
    report = resize_adapter(source, tmp_path / "out.safetensors", **criterion)
    before, after = updates(source), updates(tmp_path / "out.safetensors")
    ranks = {row.name: row.rank_after for row in report.modules}
    assert ranks.keys() == before.keys() == after.keys()
    for name, update in before.items():
        assert 1 <= ranks[name] < 8
        assert same(after[name], best(update, ranks[name]), update)


def test_at_its_own_rank_every_tensor_is_the_same(source, tmp_path):
    resize_adapter(source, tmp_path / "out.safetensors", rank=8)
    old, new = load_file(source), load_file(tmp_path / "out.safetensors")
    assert old.keys() == new.keys()
    assert all(np.array_equal(old[name], new[name]) for name in old)


def test_alpha_is_not_rounded_to_the_dtype_of_the_factors(source, tmp_path):
    save_file({n: t.astype(ml_dtypes.bfloat16) for n, t in load_file(source).items()}, source)
    resize_adapter(source, tmp_path / "out.safetensors", rank=3)
    tensors = load_file(tmp_path / "out.safetensors")
    assert tensors[f"{LINEAR}.alpha"].dtype == np.float32
    assert float(tensors[f"{LINEAR}.alpha"]) == 1.5


def test_the_source_itself_is_not_written_over(source):
    with pytest.raises(OutputError, match="that is read"):
        resize_adapter(source, source, rank=2, force=True)


def test_a_file_never_exceeds_its_megabytes_metadata_and_record_included(source, tmp_path):
    ranks = []
    for size in range(6000, 11_600, 400):  # bytes: 712 for each rank of all three modules, and 4096 for the record
        out = tmp_path / f"{size}.safetensors"
        report = resize_adapter(source, out, max_mb=size / 1e6)
        assert out.stat().st_size == report.bytes_after <= size
        ranks.append(sum(row.rank_after for row in report.modules))
    assert ranks == sorted(ranks)
    assert (ranks[0], ranks[-1]) == (3, 24)
    with pytest.raises(AdapterError, match="rank 1 of every module needs 712"):
        resize_adapter(source, max_mb=5900 / 1e6)
