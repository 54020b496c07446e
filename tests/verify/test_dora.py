"""DoRA's merges by PEFT are within rounding, in any dtype; those that went wrong are not."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tables import grid

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYERS = [
    {"target_modules": ["q_proj"]},
    {"target_modules": ["c_attn"], "fan_in_fan_out": True},
    {"target_modules": ["conv"]},
    {"target_modules": ["pointwise"]},
    {"target_modules": ["embed_tokens"]},
    {"target_modules": ["square"]},
]


def dora(**options) -> LoraConfig:
    return LoraConfig(**({"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "use_dora": True} | options))


def found(report) -> set[str]:
    return {row.verdict for row in report.modules}


@grid(each=2, half=[False, True], dtype=DTYPES, options=LAYERS)
def test_a_merge_of_dora_by_peft_is_within_rounding(make, dtype, options, half):
    if half and dtype == "float32":
        return
    case = make(dora(**options), dtype=DTYPES[dtype])
    report = case.verify(case.merge(half_adapter=DTYPES[dtype] if half else None))
    assert report.verdict == "contained"
    assert found(report) == {"within_rounding"}, report.modules
    assert case.verify(case.base).verdict == "not_contained"


@grid(each=2, save=DTYPES, during=DTYPES)
def test_dora_through_other_dtypes_is_within_rounding_too(make, during, save):
    case = make(dora(), dtype=torch.bfloat16)
    report = case.verify(case.merge(dtype=DTYPES[during], save=DTYPES[save], safe_merge=True))
    assert found(report) == {"within_rounding"}


def rewritten(case, name, change):
    """Return the case of an adapter with other tensors beside it."""
    folder = case.root / name
    folder.mkdir()
    tensors = load_file(case.adapter / "adapter_model.safetensors")
    save_file({key: change(key, x).contiguous() for key, x in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text((case.adapter / "adapter_config.json").read_text())
    return case._replace(adapter=folder)


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_magnitude_is_not_the_merge(make, dtype):
    """One output's magnitude is 5 per cent off; one that is 1.6 off passes for four roundings to bfloat16."""
    case = make(dora(), dtype=DTYPES[dtype])

    def change(key, x):
        if "magnitude" in key:
            x = x.clone()
            x[3] *= 1.05
        return x

    report = case.verify(rewritten(case, "other", change).merge())
    assert report.verdict == "not_contained"


def test_entries_that_are_zero_are_divided_by_in_silence_on_any_thread(make):
    """Any f takes a zero to a zero; warnings are errors here."""
    case = make(dora(), dtype=torch.bfloat16)
    name = next(key for key, _ in case.model.named_parameters() if key.endswith("q_proj.weight"))
    case.model.get_parameter(name).data[:, 5] = 0.0
    state = case.stored()
    state[name][:, 5] = 0.0
    save_file(state, case.base / "model.safetensors", metadata={"format": "pt"})

    def change(key, x):
        if "lora_A" in key:
            x = x.clone()
            x[:, 5] = 0.0
        return x

    other = rewritten(case, "zeros", change)
    report = other.verify(other.merge())
    assert found(report) == {"within_rounding"}
    assert report.notes == ["DoRA: the update is s B A rescaled by the magnitude, and follows only with the base"]
