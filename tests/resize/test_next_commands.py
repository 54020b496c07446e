"""The command that an audit names next is run as it is printed, for every format that audit reads."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradience.cli.main import main

RANK, USED = 16, 2
SIDES = {"self_attn.q_proj": (40, 32), "self_attn.v_proj": (24, 32), "mlp.up_proj": (48, 32)}
MODULES = {f"model.layers.{i}.{name}": sides for i in range(2) for name, sides in SIDES.items()}
LORA = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj", "v_proj", "up_proj"]}


def pairs(seed=0):
    """The factors (b, a) of each module, of rank 16, which use two directions."""
    rng = np.random.default_rng(seed)
    for name, (out, inner) in MODULES.items():
        b = 0.02 * rng.normal(size=(out, USED)) @ rng.normal(size=(USED, RANK)) + 1e-5 * rng.normal(size=(out, RANK))
        yield name, b.astype(np.float32), rng.normal(size=(RANK, inner)).astype(np.float32)


def peft(folder, seed=0, **more):
    folder.mkdir()
    stem = "base_model.model."
    tensors = {f"{stem}{n}.lora_{side}.weight": x for n, b, a in pairs(seed) for side, x in (("A", a), ("B", b))}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**LORA, **more}))
    return folder


def kohya(folder):
    folder.mkdir()
    tensors = {}
    for name, b, a in pairs():
        stem = f"lora_te_text_model_encoder_{name.removeprefix('model.').replace('.', '_')}"
        tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": np.array(16.0)}
    save_file(tensors, folder / "last.safetensors")
    return folder


def diffusers(folder):
    folder.mkdir()
    stem = "unet.down_blocks.{}.attentions.0.transformer_blocks.0.attn1.{}"
    names = [stem.format(i, name) for i in range(2) for name in ("to_q", "to_k", "to_v")]
    tensors = {
        f"{name}.lora_{side}.weight": x
        for name, (_, b, a) in zip(names, pairs(), strict=True)
        for side, x in (("A", a), ("B", b))
    }
    save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    return folder


def transposed():
    return {f"{n}.lora_{s}": np.ascontiguousarray(x.T) for n, b, a in pairs() for s, x in (("a", a), ("b", b))}


def mlx(folder):
    folder.mkdir()
    save_file(transposed(), folder / "adapters.safetensors")
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": RANK, "scale": 1.0}, "model": "m"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merged(folder):
    parts = [str(peft(folder.with_name(f"part-{seed}"), seed)) for seed in (1, 2)]
    assert main(["merge", *parts, "--method", "svd", "--rank", "16", "--out", str(folder)]) == 0
    return folder


def resized(folder):
    before = peft(folder.with_name("before"))
    assert main(["resize", str(before), "--rank", "12", "--out", str(folder)]) == 0
    return folder


def next_of(adapter, capsys):
    """The commands that the audit names next."""
    capsys.readouterr()
    assert main(["audit", str(adapter)]) == 0
    named = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: ")]
    return [shlex.split(part) for line in named for part in line.removeprefix("Next: ").split(" && ")]


FORMATS = [
    (peft, "", 1, "given-smaller"),
    (resized, "", 1, "given-smaller"),
    (merged, "", 1, "given-smaller"),
    (kohya, "", 1, "given/last-smaller.safetensors"),
    (kohya, "last.safetensors", 1, "given/last-smaller.safetensors"),
    (diffusers, "", 2, "given/pytorch_lora_weights-smaller"),
    (diffusers, "pytorch_lora_weights.safetensors", 2, "given/pytorch_lora_weights-smaller"),
    (mlx, "", 2, "given-smaller"),
]


@pytest.mark.parametrize(("make", "file", "count", "made"), FORMATS)
def test_the_command_that_audit_names_next_can_be_run_as_it_is_printed(make, file, count, made, tmp_path, capsys):
    commands = next_of(make(tmp_path / "given") / file, capsys)
    assert len(commands) == count
    run(commands)
    run(next_of(tmp_path / made, capsys))


def run(commands):
    for program, *arguments in commands:
        assert program == "gradience"
        assert main(arguments) == 0


def test_of_what_only_audit_reads_or_resize_refuses_no_command_is_named(tmp_path, capsys):
    np.savez(tmp_path / "arrays.npz", **transposed())
    assert next_of(tmp_path / "arrays.npz", capsys) == []
    blocks = {"nblocks": 2, "target_modules_bd_a": [], "target_modules_bd_b": []}
    assert next_of(peft(tmp_path / "blocks", use_bdlora=blocks), capsys) == []
    both = diffusers(tmp_path / "both")  # of two models of a pipeline, of which `convert` writes one at a time
    names = [f"{part}.layers.{i}.{n}" for part in ("unet", "text_encoder") for i in range(3) for n in ("to_q",)]
    tensors = {
        f"{name}.lora_{s}.weight": x for name, (_, b, a) in zip(names, pairs(), strict=True)
        for s, x in (("A", a), ("B", b))
    }  # fmt: skip
    save_file(tensors, both / "pytorch_lora_weights.safetensors")
    assert next_of(both, capsys) == []
