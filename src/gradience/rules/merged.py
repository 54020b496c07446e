"""Rules on a merged model's folder: would it load as it is, as the model that was trained?

`gradience verify` asks them beside the verdict on the tensors. `MergedFolder` is their input: what config.json, the
tokenizers and the headers say, of the merged model, its base and the adapter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gradience.errors import few
from gradience.rules import Observation, Rule, Unknown, premise
from gradience.schema import Json
from gradience.schema.document import RuleGroup

_SHOWN: Final = 4
_SHORT: Final = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_EMBEDDINGS: Final = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "shared.weight")
_HEADS: Final = ("lm_head.weight", "embed_out.weight")
_LEFT: Final = (".lora_", ".base_layer.", "base_model.model.", ".modules_to_save.", ".original_module.", "_orig_mod.")
_SIZES: Final = (
    *("model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "n_embd", "n_layer"),
)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What the files of a tokenizer in a folder say.

    Attributes:
        last: the largest id of an added token; None without one.
        added: the added tokens.
        template: the chat template; None without one.
        end: the id of the end-of-text token; None if it is no added token.
    """

    last: int | None = None
    added: frozenset[str] = frozenset()
    template: str | None = None
    end: int | None = None


@dataclass(frozen=True, kw_only=True)
class MergedFolder:
    """A merged model's folder beside its base and its adapter.

    Attributes:
        tensors: shape and dtype by name, from the headers of the merged weights.
        names: names of the base's tensors.
        config: the merged config.json; None without one.
        base: the base's config.json; None without one.
        adapter: the adapter's config; empty without one.
        tokens: of the merged model, the base and the adapter; None where there is no tokenizer.
        generation: the merged generation_config.json; None without one.
        base_generation: the base's.
        same_head: whether head and embedding are equal, if both are stored; None if not.
        coded: whether a weight is stored in codes.
    """

    tensors: Mapping[str, tuple[tuple[int, ...], str]]
    names: frozenset[str] = frozenset()
    config: Mapping[str, Json] | None = None
    base: Mapping[str, Json] | None = None
    adapter: Mapping[str, Json] = field(default_factory=dict)
    tokens: Tokens | None = None
    base_tokens: Tokens | None = None
    adapter_tokens: Tokens | None = None
    generation: Mapping[str, Json] | None = None
    base_generation: Mapping[str, Json] | None = None
    same_head: bool | None = None
    coded: bool = False

    @property
    def stated(self) -> Mapping[str, Json]:
        """The merged config.

        Raises:
            Unknown: there is none.
        """
        if self.config is None:
            raise Unknown("the merged folder has no config.json")
        return self.config

    def stored(self, names: tuple[str, ...]) -> tuple[str, tuple[int, ...]] | None:
        """The first tensor with one of these endings, and its shape."""
        found = (name for name in self.tensors if name.endswith(names))
        return next(((name, self.tensors[name][0]) for name in found), None)


@dataclass(frozen=True, kw_only=True)
class MergedRule(Rule[MergedFolder]):
    """A rule that `gradience verify` applies to a merged model's folder."""

    groups: tuple[RuleGroup, ...] = ("merged",)
    scope: str = "merged models in a folder, as transformers saves them"
    verify: str = "Load the folder with transformers, and compare a few answers with those of base and adapter."


@premise("the merged folder has a config.json")
def _config(folder: MergedFolder) -> str | None:
    return None if folder.config is not None else "the merged folder has no config.json (see MLD601)"


def _inner(config: Mapping[str, Json], key: str) -> Json:
    """A key of a config, or of the language model's config in it."""
    text = config.get("text_config")
    return config[key] if key in config else text.get(key) if isinstance(text, dict) else None


@MergedRule("MLD601", severity="warning", confidence=0.95)
def _no_config(folder: MergedFolder) -> Observation | None:
    """no config.json

    the merged folder holds weights and no config.json

    Why: Without it nothing says which class the weights are of. Other programs may bring a config of their own.
    Action: Copy the base's config.json beside the merged weights.
    Source: https://huggingface.co/docs/transformers/main_classes/model -- from_pretrained needs config.json in the
        folder
    """
    return (
        Observation("The folder holds no config.json: transformers and vLLM cannot load it.")
        if folder.config is None
        else None
    )


@MergedRule("MLD602", severity="error", confidence=0.9, needs=(_config,))
def _tied(folder: MergedFolder) -> Observation | None:
    """a tie flag that does not fit the weights

    config.json ties the head to the embedding, and the two are stored and differ; or it does not, and no head is stored

    Why: transformers 4, vLLM and llama.cpp take one matrix for both where the flag says so: the other one, which was
        trained, is lost. Without the flag a head that is not stored is random.
    Seen: https://github.com/huggingface/transformers/issues/45127 -- a merged model of a tied base repeats one token
    """
    ties = _inner(folder.stated, "tie_word_embeddings")
    head, embedding = folder.stored(_HEADS), folder.stored(_EMBEDDINGS)
    if ties is True and head is not None and folder.same_head is False:
        return Observation(
            f"tie_word_embeddings is true, and {head[0]} differs from the embedding: transformers 4, vLLM and "
            "llama.cpp "
            "load one matrix for both, and transformers 5 alone keeps them apart.",
            {"tie_word_embeddings": True},
            action="Set tie_word_embeddings to false in config.json.",
        )
    classes = map(str, _list(folder.stated, "architectures"))
    generates = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in classes)
    if ties is False and head is None and embedding is not None and generates:
        return Observation(
            "tie_word_embeddings is false, and no head is stored: a random one is made as the model is loaded.",
            {"tie_word_embeddings": False},
            action="Store lm_head.weight, or set tie_word_embeddings to true if the base does.",
        )
    return None


def _list(config: Mapping[str, Json], key: str) -> list[Json]:
    value = config.get(key)
    return value if isinstance(value, list) else []


@MergedRule("MLD603", severity="error", confidence=0.95, needs=(_config,))
def _vocabulary(folder: MergedFolder) -> Observation | None:
    """another vocabulary than the weights have

    vocab_size differs from the rows of the embedding or the head, or a tokenizer's id is beyond them

    Why: Loading ends with a size mismatch, or new tokens have no row.
    Action: Set vocab_size to the rows that are stored, and put the tokenizer that was trained with beside them.
    Seen: https://github.com/huggingface/peft/issues/1457 -- size mismatch of the embedding after tokens were added
    """
    size = _inner(folder.stated, "vocab_size")
    for names in (_EMBEDDINGS, _HEADS):
        held = folder.stored(names)
        if held is None or len(held[1]) != 2 or folder.coded:  # a matrix
            continue
        if isinstance(size, int) and size != held[1][0]:
            return Observation(
                f"config.json says vocab_size {size:,}, and {held[0]} has {held[1][0]:,} rows.",
                {"vocab_size": size, "rows": held[1][0]},
            )
        last = folder.tokens.last if folder.tokens else None
        if last is not None and last >= held[1][0]:
            return Observation(
                f"The tokenizer has the id {last:,}, and {held[0]} has {held[1][0]:,} rows.",
                {"last_token": last, "rows": held[1][0]},
            )
    return None


@MergedRule("MLD604", severity="error", confidence=0.9, needs=(_config,))
def _quantised(folder: MergedFolder) -> Observation | None:
    """a quantisation in config.json that the weights do not have

    config.json has a quantization_config, and every weight is stored as a float

    Why: The model is quantised again as it is loaded, or an engine looks for codes that are not there.
    Action: Remove quantization_config from config.json.
    Seen: https://github.com/unslothai/unsloth/issues/1601 -- the section was left in a model merged in 16 bits, and
        caused errors
    """
    left = folder.stated.get("quantization_config")
    if not isinstance(left, dict) or folder.coded:
        return None
    method = left.get("quant_method") or ("bitsandbytes" if any("load_in" in key for key in left) else "a quantisation")
    return Observation(
        f"config.json still has quantization_config ({method}), and all weights are stored as floats.",
        {"quant_method": method},
    )


@MergedRule("MLD605", severity="error", confidence=0.9)
def _left_names(folder: MergedFolder) -> Observation | None:
    """names that the model's class does not have

    tensors are named as PEFT or a wrapper of training names them

    Why: Loading passes over a name that the class does not have, and what it should have filled is random.
    Action: Save the model that merge_and_unload returns, not the PeftModel or what wraps it.
    Seen: https://github.com/MakazhanAlpamys/Soup/issues/335 -- names with `_orig_mod.`, of which none was loaded
    """
    left = [name for name in folder.tensors if any(part in name for part in _LEFT)]
    if not left or any(any(part in name for part in _LEFT) for name in folder.names):
        return None
    return Observation(
        f"{len(left)} of {len(folder.tensors)} tensors have names of PEFT or of a wrapper (first: {left[0]}).",
        {"tensors": len(left), "first": left[0]},
    )


@MergedRule("MLD606", severity="error", confidence=0.85, needs=(_config,))
def _no_head(folder: MergedFolder) -> Observation | None:
    """a classifier whose head is not there

    the adapter is one of a classifier, and the merged model has no head of that name, or another class

    Why: The head is made of random numbers as the model is loaded.
    Action: Save the head with the merged model, and its class, num_labels and id2label in config.json.
    Seen: https://github.com/unslothai/unsloth-zoo/pull/1087 -- merged without score.weight and num_labels: it is
        initialised anew as the model is loaded
    """
    if folder.adapter.get("task_type") not in {"SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"}:
        return None
    held = any(part in f".{name}" for name in folder.tensors for part in (".score.", ".classifier.", ".qa_outputs."))
    named = [str(name) for name in _list(folder.stated, "architectures")]
    fits = any(name.endswith(("Classification", "QuestionAnswering")) for name in named)
    if held and (fits or not named):
        return None
    lacks = "no head of a classifier is stored" if not held else f"config.json names {few(named, 1)}"
    return Observation(
        f"The adapter is of task_type {folder.adapter['task_type']}, and {lacks}: it is loaded with a random head, "
        "or none.",
        {"held": held, "architectures": list(named)},
    )


@premise("a tokenizer lies beside the adapter or the base")
def _a_tokenizer(folder: MergedFolder) -> str | None:
    known = folder.adapter_tokens or folder.base_tokens
    return None if known is not None else "no tokenizer lies beside the adapter or the base"


@MergedRule("MLD607", severity="warning", confidence=0.85, needs=(_a_tokenizer,))
def _tokenizer(folder: MergedFolder) -> Observation | None:
    """another tokenizer than in training

    no tokenizer lies beside the merged weights, or it lacks tokens of the one beside the adapter

    Why: The model is asked in other tokens than it was trained on.
    Action: Copy the tokenizer's files from the adapter's folder, or from the base's if nothing was added.
    Seen: https://github.com/unslothai/unsloth/issues/3428 -- new tokens were lost in the merged model
    """
    trained = folder.adapter_tokens or folder.base_tokens
    if folder.tokens is None:
        return Observation("No tokenizer lies beside the merged weights.", {"tokenizer": False})
    lacking = sorted((trained.added if trained else frozenset()) - folder.tokens.added)
    if not lacking:
        return None
    return Observation(
        f"The merged model's tokenizer lacks {len(lacking)} tokens of the one that was trained with "
        f"({few(lacking, _SHOWN)}).",
        {"lacking": lacking[:_SHOWN]},
    )


@MergedRule("MLD608", severity="warning", confidence=0.8, needs=(_a_tokenizer,))
def _template(folder: MergedFolder) -> Observation | None:
    """another chat template than in training

    the tokenizer beside the adapter has a chat template, and that beside the merged model has none, or another

    Why: A server writes the conversation in another form than the model was trained on.
    Action: Copy chat_template.jinja, or chat_template of tokenizer_config.json, from the adapter's folder.
    Seen: https://github.com/hiyouga/LlamaFactory/issues/6020 -- the exported model talks nonsense in one server only
    """
    known = folder.adapter_tokens
    if known is None or known.template is None or folder.tokens is None:
        return None
    if folder.tokens.template is None:
        return Observation("The merged model has no chat template, and the adapter's tokenizer has one.", {})
    if folder.tokens.template.strip() == known.template.strip():
        return None
    return Observation("The merged model's chat template is not that beside the adapter.", {})


@MergedRule("MLD609", severity="warning", confidence=0.75)
def _ends(folder: MergedFolder) -> Observation | None:
    """a text that ends otherwise

    the base has a generation_config.json and the merged model none, or its end-of-text tokens lack one of the base's,
    or the one of the tokenizer that it was trained with

    Why: Generation runs on past the token that it was trained to end with.
    Action: Copy generation_config.json from the base, or set eos_token_id to the ids that were trained.
    Seen: https://github.com/QwenLM/Qwen3/issues/1064 -- a fine-tuned model never stops
    Seen: https://github.com/ymcui/Chinese-LLaMA-Alpaca/issues/116 -- a merged model stops only where the tokenizer's
        eos_token_id is handed to generate
    """
    after, said_in = _stops(folder.generation, folder.config)
    before, _ = _stops(folder.base_generation, folder.base)
    trained = folder.adapter_tokens or folder.base_tokens
    end = None if trained is None else trained.end
    of_base = None if folder.base_tokens is None else folder.base_tokens.end
    if end is not None and after and end not in after and (end in before or (of_base is not None and end != of_base)):
        return Observation(
            f"{said_in} ends a text at {few([*map(str, sorted(after))], _SHOWN)}, and the tokenizer that it was "
            f"trained with at {end}: generation does not stop there.",
            {"end": end},
        )
    if folder.base_generation is None:
        return None
    if folder.generation is None:
        return Observation(
            "The base has a generation_config.json, and the merged model none: its end-of-text tokens are not known.",
            {},
            severity="info",
        )
    kept, held = (_ids(each.get("eos_token_id")) for each in (folder.generation, folder.base_generation))
    lost = sorted(held - kept)
    if not lost or (end in kept and end != of_base):
        return None
    return Observation(
        f"generation_config.json no longer ends a text at {few([*map(str, lost)], _SHOWN)}, as the base's does.",
        {"lost": lost},
    )


def _stops(generation: Mapping[str, Json] | None, config: Mapping[str, Json] | None) -> tuple[set[int], str]:
    """The ids that end a text, and the file that says so: generation_config.json is read before config.json."""
    if generation is not None and (ids := _ids(generation.get("eos_token_id"))):
        return ids, "generation_config.json"
    return (_ids(_inner(config, "eos_token_id")) if config is not None else set()), "config.json"


def _ids(value: Json) -> set[int]:
    listed = value if isinstance(value, list) else [value]
    return {item for item in listed if isinstance(item, int) and not isinstance(item, bool)}


@MergedRule("MLD610", severity="warning", confidence=0.8, needs=(_config,))
def _dtype(folder: MergedFolder) -> Observation | None:
    """another dtype in config.json than in the weights

    config.json names a dtype that less than half of the stored numbers have

    Why: Weights are cast as they are loaded: bfloat16 in float16 may overflow, float32 in 16 bits loses the update.
    Action: Set dtype (torch_dtype) in config.json to that of the weights.
    Source: transformers/modeling_utils.py:PreTrainedModel.from_pretrained@5.24.0 -- dtype "auto" is the config's
    """
    named = str(_inner(folder.stated, "dtype") or _inner(folder.stated, "torch_dtype") or "").removeprefix("torch.")
    wanted = _SHORT.get(named)
    counts = Counter(dtype for shape, dtype in folder.tensors.values() if len(shape) == 2)  # matrices
    if wanted is None or folder.coded or not counts or 2 * counts[wanted] >= counts.total():
        return None
    stored = counts.most_common(1)[0][0]
    return Observation(
        f"config.json says {named}, and most weights are stored as {stored}.", {"dtype": named, "stored": stored}
    )


@MergedRule("MLD611", severity="error", confidence=0.9, needs=(_config,))
def _other_model(folder: MergedFolder) -> Observation | None:
    """a config of another model

    config.json differs from the base's in a size or in the model type

    Why: The weights were made of that base: with other sizes they do not fit, or are read otherwise.
    Action: Copy the base's config.json, and change only what the merge changes.
    Source: arithmetic -- a weight of other sides than the config's sizes cannot be filled
    """
    if folder.base is None:
        raise Unknown("the base has no config.json")
    pairs = {key: (_inner(folder.base, key), _inner(folder.stated, key)) for key in _SIZES}
    other = [
        f"{key} {after} instead of {before}"
        for key, (before, after) in pairs.items()
        if before is not None and after is not None and before != after
    ]
    if not other:
        return None
    return Observation(f"config.json is another model's: {few(other, _SHOWN)}.", {"other": other})


MERGED_RULES: Final[tuple[Rule[MergedFolder], ...]] = (
    _no_config,
    _tied,
    _vocabulary,
    _quantised,
    _left_names,
    _no_head,
    _tokenizer,
    _template,
    _ends,
    _dtype,
    _other_model,
)
