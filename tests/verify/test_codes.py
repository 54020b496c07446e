"""Bases and merges in bitsandbytes' 4 bits: files written here as bitsandbytes writes them, by NumPy alone."""

from __future__ import annotations

import json
from importlib import import_module

import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import save_file
from scipy.stats import norm
from tables import every

from gradience import verify_merged
from gradience.spectral.quantised import FP4, NF4, restored

NAME, SHAPE, BLOCK = "model.layers.0.q_proj", (96, 192), 64
RNG = np.random.default_rng(0)
W = RNG.standard_normal(SHAPE).astype(np.float32)
B, A = RNG.standard_normal((96, 4)).astype(np.float32), RNG.standard_normal((4, 192)).astype(np.float32)
DELTA = 0.02 * B @ A


def codes_of(weight, levels=NF4):
    """Codes (n,), scales a block, and the weight that they give back: the nearest level, by trying them all."""
    blocks = weight.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(axis=1)
    codes = np.abs((blocks / scales[:, None])[..., None] - np.array(levels, np.float32)).argmin(-1)
    return codes.reshape(-1), scales, (np.array(levels, np.float32)[codes] * scales[:, None]).reshape(weight.shape)


def in_codes(weight, *, nested=False, dtype="bfloat16"):
    """The tensors of a weight in NF4."""
    codes, scales, _ = codes_of(weight)
    state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": dtype, "shape": list(weight.shape)}
    held = {"": (codes[::2] << 4 | codes[1::2]).astype(np.uint8)[:, None], ".quant_map": np.array(NF4, np.float32)}
    if nested:
        offset = float(scales.mean())
        groups = np.pad(scales - offset, (0, -len(scales) % 256)).reshape(-1, 256)
        outer = np.abs(groups).max(axis=1)
        book = np.linspace(-1.0, 1.0, 256, dtype=np.float32)
        inner = np.abs((groups / outer[:, None])[..., None] - book).argmin(-1).reshape(-1)[: len(scales)]
        held |= {".absmax": inner.astype(np.uint8), ".nested_absmax": outer.astype(np.float32),
                 ".nested_quant_map": book}  # fmt: skip
        state |= {"nested_blocksize": 256, "nested_offset": offset}
    else:
        held[".absmax"] = scales
    held[".quant_state.bitsandbytes__nf4"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return {f"{NAME}.weight{suffix}": np.ascontiguousarray(value) for suffix, value in held.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the adapter, and a base in codes."""
    folder = tmp_path_factory.mktemp("codes")
    (folder / "adapter").mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 0.08, "target_modules": ["q_proj"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    stem = f"base_model.model.{NAME}"
    save_file({f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B}, folder / "adapter/adapter_model.safetensors")
    return folder


def asked(folder, base, merged):
    for name, tensors in (("base", base), ("merged", merged)):
        (folder / name).mkdir(exist_ok=True)
        save_file(tensors, folder / name / "model.safetensors")
    report = verify_merged(folder / "base", folder / "adapter", folder / "merged")
    assert report.others == []  # the scales beside the codes are accounted for
    return report


def whole(weight, dtype=np.float32):
    return {f"{NAME}.weight": weight.astype(dtype)}


GIVEN_BACK = codes_of(W)[2].astype(bfloat16).astype(np.float32)  # in the dtype that it had before


def size(x):
    return float(np.linalg.norm(x))


@every(
    ("merged", "verdict", "says"),
    [
        (whole(GIVEN_BACK + DELTA), "exact", ""),
        (whole(GIVEN_BACK + DELTA, bfloat16), "exact", ""),
        (whole(GIVEN_BACK), "absent", ""),
        (whole(GIVEN_BACK + DELTA / 2), "scaled", "half"),
        (whole(W + DELTA), "within_rounding", "merged into the weights before they were rounded to NF4"),
        (whole(W + DELTA / 2), "other", ""),
        (whole(W), "other", ""),
        (whole(W[::-1] + DELTA), "other", ""),
        (in_codes(GIVEN_BACK + DELTA), "within_rounding", "rounded to NF4 again"),
        (in_codes(GIVEN_BACK + DELTA, nested=True), "within_rounding", "rounded to NF4 again"),
        (in_codes(GIVEN_BACK + DELTA / 2), "other", "rounded to NF4 again"),
        (in_codes(GIVEN_BACK - DELTA), "other", "rounded to NF4 again"),
        (in_codes(W), "absent", "no code differs"),
        (in_codes(W[::-1] + DELTA), "other", "rounded to NF4 again"),
    ],
)
def test_what_a_base_in_codes_was_merged_to(merged, verdict, says, place):
    (row,) = asked(place, in_codes(W), merged).modules
    assert row.verdict == verdict, row
    assert says in (row.reason or "")
    assert (row.codes, row.base_dtype) == ("NF4", "NF4")


def test_the_loss_is_that_of_its_definition(place):
    (row,) = asked(place, in_codes(W), whole(W + DELTA)).modules
    assert row.lost == pytest.approx(size(W - GIVEN_BACK) / size(DELTA), rel=1e-5)
    assert row.expected_lost is None
    again = codes_of(GIVEN_BACK + DELTA)[2]
    (row,) = asked(place, in_codes(W), in_codes(GIVEN_BACK + DELTA, dtype="float32")).modules
    assert row.lost == pytest.approx(size(again - GIVEN_BACK - DELTA) / size(DELTA), rel=1e-4)
    assert row.expected_lost == pytest.approx(row.lost, rel=1e-4)
    assert row.lost > 1.0  # so little of dW is left
    (row,) = asked(place, in_codes(W), whole(GIVEN_BACK + DELTA)).modules
    assert row.lost < 1e-5


def test_an_update_that_no_code_shows_is_unresolved(place):
    tiny = {**in_codes(W)}
    config = json.loads((place / "adapter" / "adapter_config.json").read_text())
    (place / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1e-6}))
    (row,) = asked(place, in_codes(W), tiny).modules
    (place / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert (row.verdict, "no code differs" in row.reason) == ("unresolved", True)


@every("missing", [".absmax", ".quant_map", "shape"])
def test_codes_that_do_not_fit_are_not_compared(missing, place):
    bad = in_codes(W)
    if missing == "shape":
        bad[f"{NAME}.weight"] = bad[f"{NAME}.weight"][:-8]
    else:
        del bad[f"{NAME}.weight{missing}"]
    for name, tensors in (("base", bad), ("merged", whole(W + DELTA))):
        (place / name).mkdir(exist_ok=True)
        save_file(tensors, place / name / "model.safetensors")
    report = verify_merged(place / "base", place / "adapter", place / "merged")
    assert report.verdict == "inconclusive"
    assert "codes" in report.reasons[0]


def test_nf4s_levels_are_quantiles_of_the_normal_distribution():
    """QLoRA's construction: 8 quantiles below zero and 9 from it on, each half in equal steps of probability."""
    offset = 0.9677083
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([above, [0.0], below])) / above.max()
    assert pytest.approx(levels, abs=2e-7) == NF4
    assert (FP4[8], FP4[-1], len(FP4)) == (pytest.approx(1 / 192), 1.0, 15)


@pytest.mark.oracle("gguf")
def test_q4_0_is_ggufs():
    gguf = import_module("gguf")
    kind = gguf.GGMLQuantizationType.Q4_0
    expected = gguf.quants.dequantize(gguf.quants.quantize(W, kind), kind)
    assert np.asarray(restored(W, "q4_0")) == pytest.approx(expected, abs=1e-6)
    kind = gguf.GGMLQuantizationType.Q8_0
    expected = gguf.quants.dequantize(gguf.quants.quantize(W, kind), kind)
    assert size(np.asarray(restored(W, "int8")) - expected) < 0.1 * size(expected - W)


def test_a_receipt_says_how_far_the_merged_model_answers_differently(tmp_path, capsys):
    import torch
    from peft import PeftModel
    from tiny_models import causal, save_tokenizer, saved, write_texts
    from transformers import AutoModelForCausalLM

    from gradience.cli.main import main
    from gradience.verbs.receipt.run import make_receipt, write_receipt

    kit = saved(causal(), tmp_path, r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    rows = write_texts(tmp_path / "rows.txt", 40)
    write_receipt(make_receipt(kit.adapter, kit.base, prompts=rows), tmp_path / "receipt.json", sources=[])
    model = AutoModelForCausalLM.from_pretrained(kit.base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, kit.adapter).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    save_tokenizer(tmp_path / "merged")
    argv = ["verify", str(tmp_path / "merged"), "--base", str(kit.base), "--adapter", str(kit.adapter)]
    assert main([*argv, "--receipt", str(tmp_path / "receipt.json")]) == 0
    said = capsys.readouterr().out
    assert "receipt.json: SAME\n" in said
    assert "outputs" not in said
    found = verify_merged(kit.base, kit.adapter, kit.base, receipt=tmp_path / "receipt.json")
    assert (found.verdict, found.answers.verdict) == ("not_contained", "the_base")
    assert found.answers.residual == pytest.approx(1.0, abs=1e-3)
    assert main([*argv, "--receipt", str(rows)]) == 2


def test_a_merge_in_codes_is_not_run(place, tmp_path):
    held = {"schema": "gradience.receipt/v1", "task": "causal-lm", "adapter": "", "noise": [],
            "rows": [{"ids": [1, 2], "base": [-1.0], "adapter": [-2.0]}]}  # fmt: skip
    (tmp_path / "receipt.json").write_text(json.dumps(held))
    asked(place, in_codes(W), in_codes(GIVEN_BACK + DELTA))
    told = verify_merged(place / "base", place / "adapter", place / "merged", receipt=tmp_path / "receipt.json").answers
    assert (told.verdict, told.residual) == ("cannot_tell", None)
    assert "not run" in told.story
