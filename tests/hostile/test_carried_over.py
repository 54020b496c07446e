"""Rows 19 and 20, tensors of kinds we do not know: they are named, and nothing unreadable is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hostile.inputs import CONFIG, STEM, adapter, base, container, factors, safetensors
from tables import grid


def torch_file(folder, tensors):
    import torch

    folder.mkdir()
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))


def made(kind):
    import torch

    plain = {name: torch.from_numpy(array) for name, array in factors().items()}
    with torch.no_grad():
        strange = {
            "a nested tensor": lambda: torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)]),
            "a jagged tensor": lambda: torch.nested.nested_tensor(
                [torch.zeros(2, 3), torch.zeros(4, 3)], layout=torch.jagged
            ),
            "a quantized tensor": lambda: torch.quantize_per_tensor(torch.zeros(2, 3), 0.1, 0, torch.qint8),
            "a complex tensor": lambda: torch.zeros(2, 3, dtype=torch.complex64),
            "a sparse tensor": lambda: torch.eye(3).to_sparse_csr(),
            "a tensor on meta": lambda: torch.zeros(2, 3, device="meta"),
            "a conjugate view": lambda: torch.zeros(2, 3, dtype=torch.complex64).conj(),
            "a parameter": lambda: torch.nn.Parameter(torch.zeros(2, 3)),
            "a size": lambda: torch.Size([1, 2]),
            "a dtype": lambda: torch.float32,
            "an empty tensor of 70 axes": lambda: torch.zeros([1] * 60),
        }[kind]()
    return plain | {"base_model.model.lm_head.weight": strange}


@pytest.mark.parametrize(
    "kind",
    [
        "a nested tensor",
        "a jagged tensor",
        "a quantized tensor",
        "a complex tensor",
        "a sparse tensor",
        "a tensor on meta",
        "a conjugate view",
        "a parameter",
        "a size",
        "a dtype",
        "an empty tensor of 70 axes",
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")  # of the tensors made here
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_a_bin_with_a_strange_tensor_is_read_or_one_line_of_error(run, tmp_path, kind):
    torch_file(tmp_path / "a", made(kind))
    for argv in (["audit", "a", "--json"], ["convert", "a", "--to", "mlx", "--drop", "--out", "o"]):
        told = run(*argv, limit_s=30, imports=("torch",))
        assert told.code in {0, 2}
        assert len(told.errors) == (told.code == 2)


FOREIGN = {
    "F99": ("F99", [2, 2], b"\0" * 16),
    "an empty name": ("", [2, 2], b"\0" * 16),
    "lower case": ("f32", [2, 2], b"\0" * 16),
    "F4 of odd length": ("F4", [3], b"\0\0"),
    "C64": ("C64", [2], b"\0" * 16),
    "I128": ("I128", [1], b"\0" * 16),
    "F32 of other length": ("F32", [2, 2], b"\0" * 12),
}
WRITERS = {
    "convert": ["convert", "a", "--to", "mlx", "--out", "o"],
    "convert to peft": ["convert", "a", "--rank", "2", "--out", "o"],
    "resize": ["resize", "a", "--rank", "2", "--out", "o"],
    "merge": ["merge", "a", "a", "--out", "o"],
}


@grid(each=3, name=["base_model.model.lm_head.weight", f"{STEM}.bias", "extra"], verb=WRITERS, case=FOREIGN)
def test_what_is_written_opens_in_safetensors_or_nothing_is_written(run, tmp_path, verb, case, name):
    from safetensors import safe_open

    adapter(tmp_path / "a", **{name: FOREIGN[case]})
    base(tmp_path / "base")
    told = run(*WRITERS[verb])
    assert told.code in {0, 2}
    assert len(told.errors) == (told.code == 2)
    for path in tmp_path.glob("o/*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            assert set(file.keys())
    assert bool(list(tmp_path.glob("o"))) == (told.code == 0)


def test_a_dtype_unknown_to_us_is_named_by_what_looks_at_it(run, tmp_path):
    adapter(tmp_path / "a", **{"base_model.model.lm_head.weight": FOREIGN["F99"]})
    told = run("audit", "a", "--json")
    assert told.code in {0, 2}
    assert "F99" in told.out + told.err


@pytest.mark.parametrize(
    "metadata",
    ['{"format": "pt", "x": "' + "y" * 100_000 + '"}', '{"x": 1}', '{"\\ud800": "a"}', "[]", '{"a": null}'],
    ids=["long", "a number", "half a pair", "a list", "a null"],
)
@pytest.mark.parametrize("verb", ["convert", "resize"])
def test_strange_metadata_is_carried_over_readably_or_refused(run, tmp_path, verb, metadata):
    from safetensors import safe_open

    adapter(tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    whole = safetensors(factors())
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length].decode()
    path.write_bytes(container(f'{{"__metadata__": {metadata}, {header[1:]}'.encode(), whole[8 + length :]))
    base(tmp_path / "base")
    told = run(*WRITERS[verb])
    assert told.code in {0, 2}
    assert len(told.errors) == (told.code == 2)
    for written in Path(tmp_path).glob("o/*.safetensors"):
        with safe_open(written, framework="numpy") as file:
            assert set(file.keys())
