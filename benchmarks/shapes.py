"""Write src/gradience/base/shapes.toml: the shape numbers of open models by their names on the hub, with their sources.

    git clone https://github.com/Lightning-AI/litgpt && git -C litgpt checkout 26857050
    git clone https://github.com/pytorch/torchtune && git -C torchtune checkout bd2a0fc7
    python benchmarks/shapes.py litgpt torchtune

A name is written only if two programs that load its weights state the same numbers: litgpt's table by names of the
hub, and torchtune's builder of the model, which also says whether the head is tied. Of GPT-2 transformers' defaults are
the numbers.
"""

from __future__ import annotations

import argparse
import ast
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[1] / "src/gradience/base/shapes.toml"
SOURCES = {"litgpt": "Lightning-AI/litgpt@26857050 litgpt/config.py", "torchtune": "pytorch/torchtune@bd2a0fc7"}
MODELS = "torchtune/models/{}/_model_builders.py"
# Their field, and torchtune's, for each key of a config.json.
KEYS = {
    "hidden_size": ("n_embd", "embed_dim"),
    "intermediate_size": ("intermediate_size", "intermediate_dim"),
    "num_hidden_layers": ("n_layer", "num_layers"),
    "num_attention_heads": ("n_head", "num_heads"),
    "num_key_value_heads": ("n_query_groups", "num_kv_heads"),
    "head_dim": ("head_size", "head_dim"),
    "vocab_size": ("padded_vocab_size", "vocab_size"),
}
POSITIONS = ("num_layers", "num_heads", "num_kv_heads", "embed_dim", "intermediate_dim")  # of smollm2
TIED = {"gemma", "gemma2", "smol"}  # families of which torchtune ties every head
NOT_COMPARED = {("mistralai/Mistral-7B-v0.3", "vocab_size"), ("mistralai/Mistral-7B-Instruct-v0.3", "vocab_size")}


def names(org: str, *patterns: str) -> list[str]:
    return [f"{org}/{pattern}" for pattern in patterns]


def both(org: str, stem: str, tail: str = "-Instruct") -> list[str]:
    return names(org, stem, stem + tail)


LLAMA, QWEN, GEMMA, PHI, SMOL = "meta-llama", "Qwen", "google", "microsoft", "HuggingFaceTB"
VERSIONS = ("v0.1", "Instruct-v0.1", "Instruct-v0.2", "v0.3", "Instruct-v0.3")
# model_type, torchtune's family and builder, names.
BUILDERS: list[tuple[str, str, str, list[str]]] = [
    *(
        ("llama", "llama2", f"llama2_{n}b", names(LLAMA, f"Llama-2-{n}b-hf", f"Llama-2-{n}b-chat-hf"))
        for n in (7, 13, 70)
    ),
    *(("llama", "llama3", f"llama3_{n}b", both(LLAMA, f"Meta-Llama-3-{n}B")) for n in (8, 70)),
    *(("llama", "llama3_1", f"llama3_1_{n}b", both(LLAMA, f"Meta-Llama-3.1-{n}B")) for n in (8, 70)),
    *(("llama", "llama3_2", f"llama3_2_{n}b", both(LLAMA, f"Llama-3.2-{n}B")) for n in (1, 3)),
    ("llama", "llama3_1", "llama3_1_70b", names(LLAMA, "Llama-3.3-70B-Instruct")),
    ("mistral", "mistral", "mistral_7b", names("mistralai", *(f"Mistral-7B-{version}" for version in VERSIONS))),
    *(("qwen2", "qwen2_5", f"qwen2_5_{n}b", both(QWEN, f"Qwen2.5-{n.replace('_', '.')}B")) for n in ("0_5", "3")),
    *(
        ("qwen2", "qwen2_5", f"qwen2_5_{n}b_base", both(QWEN, f"Qwen2.5-{n.replace('_', '.')}B"))
        for n in ("1_5", "7", "14", "32", "72")
    ),
    *(
        ("qwen3", "qwen3", f"qwen3_{n}b_base", both(QWEN, f"Qwen3-{n.replace('_', '.')}B", "-Base"))
        for n in ("0_6", "1_7", "4", "8", "14")
    ),
    ("qwen3", "qwen3", "qwen3_32b", names(QWEN, "Qwen3-32B")),
    *(("gemma", "gemma", f"gemma_{n}b", both(GEMMA, f"gemma-{n}b", "-it")) for n in (2, 7)),
    *(("gemma2", "gemma2", f"gemma2_{n}b", both(GEMMA, f"gemma-2-{n}b", "-it")) for n in (2, 9, 27)),
    ("phi3", "phi3", "phi3_mini", names(PHI, "Phi-3-mini-4k-instruct", "Phi-3.5-mini-instruct")),
    ("phi3", "phi4", "phi4_14b", names(PHI, "phi-4")),
    *(
        ("llama", "smol", f"smollm2_{n}", both(SMOL, f"SmolLM2-{n.replace('_', '.').upper()}"))
        for n in ("135m", "360m", "1_7b")
    ),
]


def built(source: str, builder: str) -> dict[str, Any]:
    """The arguments of the call that a builder returns, as far as they are constants or its own defaults."""
    made = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == builder)
    call = next(node.value for node in made.body if isinstance(node, ast.Return))
    assert isinstance(call, ast.Call)
    own = {arg.arg: default for arg, default in zip(made.args.args, made.args.defaults, strict=True)}
    given = [*zip(POSITIONS, call.args, strict=False), *((word.arg, word.value) for word in call.keywords)]
    nodes = {name: own.get(node.id) if isinstance(node, ast.Name) else node for name, node in given if name}
    return {name: node.value for name, node in nodes.items() if isinstance(node, ast.Constant)}


def config(name: str, stated: Any, model_type: str, family: str, there: dict[str, Any]) -> dict[str, Any]:
    """The keys of a config.json, of which each that both state is the same in both."""
    fields: dict[str, Any] = {"model_type": model_type}
    for key, (ours, theirs) in KEYS.items():
        fields[key] = getattr(stated, ours)
        if (name, key) not in NOT_COMPARED and fields[key] != there.get(theirs, fields[key]):
            sys.exit(f"{name}: {key} is {fields[key]} in litgpt and {there[theirs]} in torchtune")
    fields["tie_word_embeddings"] = bool(there.get("tie_word_embeddings", family in TIED))
    if stated.attention_logit_softcapping:
        fields["attn_logit_softcapping"] = stated.attention_logit_softcapping
    if model_type in {"mistral", "phi3", "gemma2"}:
        fields["sliding_window"] = stated.sliding_window_size or 0
    return fields


def rows(litgpt: Path, torchtune: Path) -> Iterator[tuple[list[str], str, dict[str, Any]]]:
    of_name = runpy.run_path(str(litgpt / "litgpt/config.py"))["Config"].from_name
    for model_type, family, builder, known in BUILDERS:
        path = MODELS.format(family)
        there = built((torchtune / path).read_text(), builder)
        together: dict[str, tuple[list[str], dict[str, Any]]] = {}
        for name in known:
            fields = config(name, of_name(name.split("/")[1]), model_type, family, there)
            aliases = [name, name.replace("/Meta-Llama-3.1", "/Llama-3.1")]  # the hub knows both
            together.setdefault(str(fields), ([], fields))[0].extend(dict.fromkeys(aliases))
        for same, fields in together.values():
            yield same, f"{SOURCES['litgpt']}, {SOURCES['torchtune']} {path}:{builder}", fields
    default = "huggingface/transformers@v5.24.0 src/transformers/models/gpt2/configuration_gpt2.py:GPT2Config"
    yield ["gpt2", "openai-community/gpt2"], default, {"model_type": "gpt2", "dtype": "float32"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("litgpt", type=Path)
    parser.add_argument("torchtune", type=Path)
    options = parser.parse_args()
    lines = [
        "# Shape numbers of open models, with their sources, written by benchmarks/shapes.py; a window of 0 is none."
    ]
    for known, source, fields in rows(options.litgpt, options.torchtune):
        told = [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
        lines += ["", "[[models]]", f'names = "{" ".join(known)}"', f'source = "{source}"', "[models.config]", *told]
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
