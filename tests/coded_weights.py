"""Rewrite tests/golden/codes: one small weight in each format, as its own library writes and decodes it.

Needs compressed-tensors, torchao, bitsandbytes and transformers; the layers of AutoGPTQ 0.7.1 (qlinear_cuda.py) and
AutoAWQ 0.2.9 (modules/linear/gemm.py, utils/packing_utils.py), and ModelOpt, are taken where they can be imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "golden" / "codes"
SHAPE = (32, 64)
NAME = "model.layers.0.self_attn.q_proj"


def weight() -> torch.Tensor:
    """A weight that every format can hold, with a row and a group of zeros."""
    w = 0.02 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    w[3], w[5, :32] = 0.0, 0.0
    return w


def write(name: str, held: dict[str, torch.Tensor], expected: torch.Tensor, library: str, **config: Any) -> None:
    """Write the tensors of one format, named after the module, and the weight that its library gives back."""
    tensors = {key if key.startswith(NAME) else f"{NAME}.{key}": x.contiguous() for key, x in held.items()}
    extra = {key: config.pop(key) for key in list(config) if key.startswith(NAME)}
    metadata = {"library": library, "quantization_config": json.dumps(config), **extra}
    save_file(tensors | {"expected": expected.contiguous()}, FOLDER / f"{name}.safetensors", metadata)


def compressed(name: str, form: str, **args: Any) -> None:
    """A format of compressed-tensors; scales by its own rule from each group's least and largest weight."""
    from compressed_tensors import __version__
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    kind, w = scheme.weights, weight()
    (rows, columns), (high, wide) = SHAPE, kind.block_structure or (1, kind.group_size or SHAPE[1])
    blocks = w.reshape(rows // high, high, columns // wide, wide)
    least, most = (
        (w.amin()[None], w.amax()[None]) if kind.strategy == "tensor" else (blocks.amin((1, 3)), blocks.amax((1, 3)))
    )
    held, more = {"weight": w}, {}
    if kind.strategy == "tensor_group":
        held["weight_global_scale"] = more["global_scale"] = generate_gparam(w.amin()[None], w.amax()[None])
    held["weight_scale"], zeros = calculate_qparams(least, most, kind, **more)
    if not kind.symmetric:
        held["weight_zero_point"] = zeros
    codec = BaseCompressor.get_value_from_registry(form)
    written = {key: x for key, x in codec.compress(held, scheme).items() if x is not None}
    expected = codec.decompress(dict(written), scheme)["weight"]
    write(name, written, expected, f"compressed-tensors {__version__}", quant_method="compressed-tensors", format=form)


def fine_grained() -> None:
    """Blocks of FP8, and DeepSeek's bytes of two FP4, by transformers."""
    from transformers import __version__
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    config = SimpleNamespace(weight_block_size=[16, 32], scale_fmt="float")
    held = Fp8Quantize(SimpleNamespace(quantization_config=config))._quantize_one("weight", weight())
    decode = Fp8Dequantize(SimpleNamespace(quantization_config=None))._dequantize_one
    library = f"transformers {__version__}"
    write("fp8-blocks", held, decode(*held.values()), library, quant_method="fp8", weight_block_size=[16, 32])
    given = torch.Generator().manual_seed(1)
    codes = torch.randint(-128, 128, (SHAPE[0], SHAPE[1] // 2), dtype=torch.int8, generator=given)
    scales = torch.randint(112, 124, (SHAPE[0], SHAPE[1] // 32), dtype=torch.uint8, generator=given)
    held = {"weight": codes, "weight_scale_inv": scales.view(torch.float8_e8m0fnu)}
    write("mxfp4-int8", held, decode(codes, scales, torch.float32), library, quant_method="fp8")


def experts() -> None:
    """gpt-oss's stack of experts, by transformers."""
    from transformers import __version__
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    given = torch.Generator().manual_seed(2)
    blocks = torch.randint(0, 256, (2, SHAPE[0], SHAPE[1] // 32, 16), dtype=torch.uint8, generator=given)
    scales = torch.randint(112, 124, (2, SHAPE[0], SHAPE[1] // 32), dtype=torch.uint8, generator=given)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    held = {"weight_blocks": blocks, "weight_scales": scales}
    write("mxfp4-experts", held, expected, f"transformers {__version__}", quant_method="mxfp4")


def grid(w: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points (rows, groups) of groups along the rows."""
    blocks = w.reshape(len(w), -1, group)
    least, most = blocks.amin(2).clamp(max=0.0), blocks.amax(2).clamp(min=0.0)
    scales = ((most - least) / (2**bits - 1)).clamp(min=1e-4).half().float()
    return scales, torch.round(-least / scales).clamp(1, 2**bits - 1)


def gptq(name: str, bits: int, *, ordered: bool = False) -> None:
    """AutoGPTQ's layer, and its own product with the unit matrix."""
    from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear

    w, group, (rows, columns) = weight().half(), 32, SHAPE
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(3)) if ordered else torch.arange(columns)
    groups = torch.empty(columns, dtype=torch.int32)
    groups[order] = (torch.arange(columns) // group).int()
    layer, linear = QuantLinear(bits, group, columns, rows, bias=False), torch.nn.Linear(columns, rows, bias=False)
    linear.weight.data = w
    layer.pack(linear, *(x.half() for x in grid(w.float()[:, order], bits, group)), groups)
    layer.autogptq_cuda_available, layer.kernel_switch_threshold, layer.scales = False, False, layer.scales.float()
    expected = layer(torch.eye(columns)).T
    held = {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales.half(), "g_idx": layer.g_idx}
    write(name, held, expected, "auto-gptq 0.7.1", quant_method="gptq", bits=bits)
    if ordered:  # the second version of the format stores zero points as they are
        one_each = torch.tensor(int("1" * (32 // bits), 2**bits), dtype=torch.int32)
        held["qzeros"] = layer.qzeros + one_each
        write(f"{name}-v2", held, expected, "auto-gptq 0.7.1", quant_method="gptq", checkpoint_format="gptq_v2")


def awq() -> None:
    """AutoAWQ's layer."""
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    linear = torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    linear.weight.data = weight()
    scales, zeros = (x.T.contiguous() for x in grid(weight(), 4, 32))
    layer = WQLinear_GEMM.from_linear(linear, 4, 32, scales=scales, zeros=zeros)
    held = {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales}
    expected = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales.float(), 4, 32).T
    write("awq", held, expected, "autoawq 0.2.9", quant_method="awq", version="gemm")


def bitsandbytes() -> None:
    """4 bits with plain and nested scales, and 8 bits."""
    import bitsandbytes as bnb
    import bitsandbytes.functional as lib

    library = f"bitsandbytes {bnb.__version__}"
    for name, kind, nested in (("nf4", "nf4", False), ("nf4-nested", "nf4", True), ("fp4", "fp4", False)):
        packed, state = lib.quantize_4bit(weight(), quant_type=kind, blocksize=64, compress_statistics=nested)
        held = {"weight": packed} | {f"weight.{key}": x for key, x in state.as_dict(packed=True).items()}
        write(name, held, lib.dequantize_4bit(packed, state), library, quant_method="bitsandbytes")
    codes, scales, _ = lib.int8_vectorwise_quant(weight().half())
    expected = lib.int8_vectorwise_dequant(codes, scales)
    write("int8-bnb", {"weight": codes, "SCB": scales}, expected, library, quant_method="bitsandbytes")


def torchao() -> None:
    """Int8Tensor and Float8Tensor, as transformers saves them."""
    import torchao as ao
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    for name, config in (("int8-torchao", Int8WeightOnlyConfig(version=2)), ("fp8-torchao", Float8WeightOnlyConfig())):
        linear = torch.nn.Sequential(torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False))
        linear[0].weight.data = weight() + 1e-4  # torchao makes NaN of a row of zeros
        quantize_(linear, config)
        found = linear[0].weight.detach()
        held, _ = flatten_tensor_state_dict({f"{NAME}.weight": found})
        write(name, held, found.dequantize(), f"torchao {ao.__version__}", quant_method="torchao")


def modelopt() -> None:
    """NVFP4 of ModelOpt."""
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

    found, scales, outer = NVFP4QTensor.quantize(weight(), 16)
    expected = found.dequantize(torch.float32, scale=scales, double_scale=outer, block_sizes={-1: 16})
    held = {"weight": found._quantized_data, "weight_scale": scales, "weight_scale_2": outer}
    write("nvfp4-modelopt", held, expected, "nvidia-modelopt 0.47.0", quant_method="modelopt")


def main() -> None:
    """Write every file."""
    FOLDER.mkdir(exist_ok=True)
    eight, four = {"num_bits": 8, "type": "float"}, {"num_bits": 4, "type": "int"}
    compressed("fp8-tensor", "float-quantized", strategy="tensor", **eight)
    compressed("fp8-channel", "float-quantized", strategy="channel", **eight)
    compressed("fp8-block", "float-quantized", strategy="block", block_structure=[16, 32], **eight)
    compressed("int8", "int-quantized", num_bits=8, type="int", strategy="channel")
    compressed("int8-zeros", "int-quantized", num_bits=8, type="int", strategy="channel", symmetric=False)
    compressed("int8-packed", "pack-quantized", num_bits=8, type="int", strategy="channel")
    compressed("int4", "pack-quantized", strategy="group", group_size=32, **four)
    compressed("int4-zeros", "pack-quantized", strategy="group", group_size=32, symmetric=False, **four)
    compressed("int3-unread", "pack-quantized", num_bits=3, type="int", strategy="channel")
    scales = torch.float8_e4m3fn
    compressed(
        "nvfp4",
        "nvfp4-pack-quantized",
        num_bits=4,
        type="float",
        strategy="tensor_group",
        group_size=16,
        scale_dtype=scales,
    )
    compressed(
        "mxfp4",
        "mxfp4-pack-quantized",
        num_bits=4,
        type="float",
        strategy="group",
        group_size=32,
        scale_dtype=torch.uint8,
    )
    fine_grained()
    experts()
    bitsandbytes()
    torchao()
    for bits in (2, 4, 8):
        gptq(f"gptq-{bits}", bits)
    gptq("gptq-order", 4, ordered=True)
    awq()
    modelopt()


if __name__ == "__main__":
    sys.exit(main())
