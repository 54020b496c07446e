"""Write a Llama of transformers as a GGUF file, and ask `gradience verify-served` of files in llama.cpp's K-quants.

Needs the packages `gguf` and `llama-cpp-python`. For Llamas of benchmarks/receipt_models.py: byte-level BPE, no bias.
`python benchmarks/receipt_gguf.py FOLDER wide` writes each adapter merged, an older checkpoint, the adapter without a
part and the base, lets llama.cpp quantise each, and prints a line for each file and a table.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import gguf
import numpy as np
import torch

from gradience.models import load_model
from gradience.models.inputs import read_inputs
from gradience.models.probes import Probes
from gradience.models.states import adapted, matrices
from gradience.verbs.receipt.run import receipt_of
from gradience.verbs.receipt.targets import examples_of, read_target
from gradience.verbs.receipt.verdict import LogProbPairs, conclude

_NAMES: Final = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_WHOLE: Final = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
TYPES: Final = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}


def write_gguf(model: Any, tokenizer: Path, out: Path, kind: str = "f16") -> Path:
    """Write the model with the tokenizer of a folder; return the path."""
    config = model.config
    stored, file_type = TYPES[kind]
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(file_type)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    for name, value in model.state_dict().items():
        array = value.float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        count = next((heads[kind] for kind in heads if f".{kind}." in name), None)
        if count is not None:
            array = _rotated(array, count)
        is_small = array.ndim == 1 or array.shape[-1] % 32
        of = gguf.GGMLQuantizationType.F32 if is_small else stored
        writer.add_tensor(_named(name), gguf.quants.quantize(np.ascontiguousarray(array), of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _named(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    if module in _WHOLE:
        return f"{_WHOLE[module]}.{leaf}"
    _, _, layer, kind = module.split(".", 3)
    return f"blk.{layer}.{_NAMES[kind]}.{leaf}"


def _rotated(weight: Any, heads: int) -> Any:
    """Return the rows in llama.cpp's order: pairs of a head lie beside each other, and not half a head apart."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def _add_tokenizer(writer: Any, folder: Path, size: int) -> None:
    held = json.loads((folder / "tokenizer.json").read_text())
    tokens = [f"[PAD{i}]" for i in range(size)]
    kinds = [gguf.TokenType.UNUSED] * size
    for token, i in held["model"]["vocab"].items():
        tokens[i], kinds[i] = token, gguf.TokenType.NORMAL
    for added in held.get("added_tokens", ()):
        tokens[added["id"]], kinds[added["id"]] = added["content"], gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = [one if isinstance(one, str) else " ".join(one) for one in held["model"]["merges"]]
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bool(gguf.Keys.Tokenizer.ADD_BOS, val=False)
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text())


K_QUANTS: Final = {"Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "Q8_0": 7}
RIGHT: Final = frozenset({"same", "same_within_quantisation"})


class CachedProbes(Probes):
    """Probes that run what does not depend on the target once."""

    def parts(self) -> dict[str, Any]:
        """What is read without each group of modules."""
        return self._once("parts", super().parts)

    def noises(self) -> Any:
        """What is read in 16 and in 8 bits."""
        return self._once("noises", super().noises)

    def scaled(self, factor: float) -> Any:
        """What is read at another scale."""
        return self._once(factor, lambda: super(CachedProbes, self).scaled(factor))

    def of_file(self, own: Any) -> CachedProbes:
        """The same for a file that keeps its weights in `own` types."""
        self.knows_form, self._forms = True, {"its own types": (own, True, True)}
        return self

    def _once(self, key: Any, make: Any) -> Any:
        held = self.__dict__.setdefault("_held", {})
        if key not in held:
            held[key] = make()
        return held[key]


def _merged(base: Path, adapter: Path, missing: frozenset[str] = frozenset(), scale: float = 1.0) -> Any:
    """Return the base with an adapter merged into it, but for some modules, and its update counted so many times."""
    loaded = load_model(base, adapter)
    for path, layer in adapted(loaded).items():
        layer.lora_B["default"].weight.data *= 0.0 if path in missing else scale
    return loaded.model.merge_and_unload()


def _quantised(source: Path, out: Path, kind: int) -> Path:
    import llama_cpp  # for those who quantise: a test writes files alone

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = kind, 1
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(parameters)):
        raise SystemExit(f"llama.cpp does not quantise {source}")
    return out


def _files(base: Path, adapter: Path, groups: dict[str, frozenset[str]]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name of each model that is served in the adapter's place, and what makes it."""
    part = max(groups, key=lambda name: name.startswith("layer "))
    yield "right", lambda: _merged(base, adapter)
    yield "the_base", lambda: _merged(base, adapter, scale=0.0)
    yield "part_missing", lambda: _merged(base, adapter, groups[part])
    yield "wrong_scale", lambda: _merged(base, adapter, scale=2.0)
    for place in sorted(adapter.glob("checkpoint-*")):
        yield f"another_checkpoint:{place.name}", lambda p=place: _merged(base, p)


def judged(base: Path, adapter: Path, folder: Path) -> Iterator[tuple[str, str, str, float]]:
    """Yield the name, the kind of file, the verdict and the residual of each file."""
    loaded = load_model(base, adapter)
    held = receipt_of(loaded, read_inputs(adapter / "rows.jsonl", loaded, most=24).examples, rows=16)
    probes = CachedProbes(loaded, examples_of(held.rows))
    paths = [path for path, _ in matrices(loaded)]
    for name, make in _files(base, adapter, probes.groups):
        whole = write_gguf(make(), base, folder / "whole.gguf", "f16")
        for kind, number in K_QUANTS.items():
            target = read_target(
                held, str(_quantised(whole, folder / f"{kind}.gguf", number)), base=base, model=None, timeout=1.0
            )
            if target.rounding is None or not target.rounding.can_round(paths):
                raise SystemExit(f"{kind}: its types are not known")
            probes.of_file(target.rounding)
            found = conclude(LogProbPairs(held, target.reading), precision=target.precision, exact=False, probes=probes)
            yield name, kind, found.verdict, found.residual or 0.0


def main(folder: Path, kind: str) -> None:
    """Print a line for each file, and of each kind how many right ones were called the same, and wrong ones not."""
    torch.set_num_threads(1)
    rows = []
    for adapter in sorted(place.parent for place in (folder / kind).glob("*/rows.jsonl")):
        with TemporaryDirectory() as scratch:
            for row in judged(folder / kind / "base", adapter, Path(scratch)):
                rows.append(row)
                print(adapter.name, *row[:3], f"{row[3]:.4f}", flush=True)
    for quant in K_QUANTS:
        own = [row for row in rows if row[1] == quant]
        right, wrong = ([row for row in own if (row[0] == "right") == value] for value in (True, False))
        same, wrongly = (sum(row[2] in RIGHT for row in some) for some in (right, wrong))
        named = sum(row[2] == row[0].partition(":")[0] for row in wrong)
        untold = sum(row[2] == "cannot_tell" for row in wrong)
        print(f"{quant}: same {same}/{len(right)} of right, {wrongly}/{len(wrong)} of wrong;", end=" ")
        print(f"cause named {named}, untold {untold}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
