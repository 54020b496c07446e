"""Tiny transformers models with PEFT adapters and a tokenizer, saved as users save them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

VOCABULARY = 60
WORDS = [f"w{i}" for i in range(VOCABULARY - 4)]


class Saved(NamedTuple):
    """The folders of a base and of an adapter on it."""

    base: Path
    adapter: Path


def causal(width: int = 16, layers: int = 2) -> Any:
    """A Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=24, num_hidden_layers=layers,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
            initializer_range=0.3,
        )
    )  # fmt: skip


def gpt2(**options: Any) -> Any:
    """A GPT-2, whose layers are Conv1D."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=64,
            initializer_range=0.3,
            bos_token_id=2,
            eos_token_id=3,
            **options,
        )
    )


def mixtral() -> Any:
    """A Mixtral, whose experts are 3-D parameters."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=2, max_position_embeddings=64, pad_token_id=0,
        )
    )  # fmt: skip


def squeezebert() -> Any:
    """A SqueezeBERT, whose layers are convolutions of width 1, channels first."""
    import transformers

    torch.manual_seed(0)
    return transformers.SqueezeBertForSequenceClassification(
        transformers.SqueezeBertConfig(
            vocab_size=VOCABULARY, hidden_size=16, embedding_size=16, intermediate_size=24, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=64, num_labels=3, initializer_range=0.3, q_groups=1,
            k_groups=1, v_groups=1, post_attention_groups=1, intermediate_groups=1, output_groups=1,
        )
    )  # fmt: skip


def bert(kind: str = "Sequence", **options: Any) -> Any:
    """A BERT for classification of sequences or tokens."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.3, num_labels=3, **options,
    )  # fmt: skip
    return getattr(transformers, f"BertFor{kind}Classification")(config)


def save_tokenizer(folder: Path) -> None:
    """Save a tokenizer of whole words: w0, w1, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    unknown = "[UNK]"
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(folder)


def saved(model: Any, folder: Path, **options: Any) -> Saved:
    """Save a base with its tokenizer, and an adapter on it whose factors are random with a falling spectrum."""
    from peft import LoraConfig, get_peft_model
    from transformers.utils.logging import disable_progress_bar

    base, adapter = folder / "base", folder / "adapter"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        disable_progress_bar()
        model.save_pretrained(base)
        save_tokenizer(base)
        wrapped = get_peft_model(model, LoraConfig(**options))
        generator = torch.Generator().manual_seed(1)
        for name, parameter in wrapped.named_parameters():
            if ".lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                fall = 0.6 ** torch.arange(len(noise)) if "_A" in name else torch.ones(len(noise))
                parameter.data = (0.4 * noise * fall.reshape(-1, *[1] * (noise.ndim - 1))).to(parameter.dtype)
        wrapped.save_pretrained(adapter, save_embedding_layers=False)
    return Saved(base, adapter)


def write_texts(path: Path, n: int, *, seed: int = 0, longest: int = 12) -> Path:
    """Write n lines of random words, of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for _ in range(n):
        size = int(torch.randint(3, longest, (1,), generator=generator))
        lines.append(" ".join(f"w{int(i)}" for i in torch.randint(len(WORDS), (size,), generator=generator)))
    path.write_text("\n".join(lines) + "\n")
    return path
