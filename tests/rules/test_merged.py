"""The rules on a merged model's folder, one entry each: where a rule fires, is silent, and abstains."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from tables import every

from gradience.rules import judge
from gradience.rules.merged import MERGED_RULES, MergedFolder, Tokens

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4,
    "vocab_size": 9,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
TENSORS = {
    "model.embed_tokens.weight": ((9, 4), "BF16"),
    "lm_head.weight": ((9, 4), "BF16"),
    "model.norm.weight": ((4,), "F32"),
}
NO_CONFIG = "the merged folder has no config.json"


class On(NamedTuple):
    """A folder, what the rule says of it, and how grave that is."""

    folder: MergedFolder
    says: str
    severity: str = "error"


class Entry(NamedTuple):
    """One rule: folders with what it says of them, folders of which it says nothing, and a folder it cannot judge."""

    fires: list[On]
    silent: list[MergedFolder]
    abstains: list[tuple[MergedFolder, str]]


def folder(config: dict[str, Any] | None = None, *, more: dict[str, Any] | None = None, **fields: Any) -> MergedFolder:
    usual: dict[str, Any] = {
        "config": CONFIG | (config or {}),
        "base": CONFIG,
        "tensors": TENSORS | (more or {}),
        "names": frozenset(TENSORS),
        "same_head": False,
    }
    return MergedFolder(**usual | fields)


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in TENSORS.items() if key != name}


def tokens(**fields: Any) -> Tokens:
    return Tokens(**{"last": 8, "added": frozenset({"<a>", "<b>"}), "template": "{{ x }}", **fields})


ENTRIES: dict[str, Entry] = {
    "MLD601": Entry(
        [
            On(
                MergedFolder(tensors=TENSORS),
                "The folder holds no config.json: transformers and vLLM cannot load it.",
                "warning",
            )
        ],
        [folder()],
        [],
    ),
    "MLD602": Entry(
        [
            On(
                folder({"tie_word_embeddings": True}),
                "tie_word_embeddings is true, and lm_head.weight differs from the embedding: transformers 4, vLLM and "
                "llama.cpp load one matrix for both, and transformers 5 alone keeps them apart.",
            ),
            On(
                folder(tensors=without("lm_head.weight")),
                "tie_word_embeddings is false, and no head is stored: a random one is made as the model is loaded.",
            ),
        ],
        [
            folder(),
            folder({"tie_word_embeddings": True}, same_head=True),
            folder({"tie_word_embeddings": True}, tensors=without("lm_head.weight"), same_head=None),
            folder({"architectures": ["LlamaModel"]}, tensors=without("lm_head.weight")),
        ],
        [],
    ),
    "MLD603": Entry(
        [
            On(folder({"vocab_size": 8}), "config.json says vocab_size 8, and model.embed_tokens.weight has 9 rows."),
            On(
                folder(more={"lm_head.weight": ((7, 4), "BF16")}),
                "config.json says vocab_size 9, and lm_head.weight has 7 rows.",
            ),
            On(folder(tokens=tokens(last=9)), "The tokenizer has the id 9, and model.embed_tokens.weight has 9 rows."),
        ],
        [folder(tokens=tokens()), folder({"vocab_size": 8}, coded=True)],
        [],
    ),
    "MLD604": Entry(
        [
            On(
                folder({"quantization_config": {"load_in_4bit": True}}),
                "config.json still has quantization_config (bitsandbytes), and all weights are stored as floats.",
            ),
            On(
                folder({"quantization_config": {"quant_method": "gptq"}}),
                "config.json still has quantization_config (gptq), and all weights are stored as floats.",
            ),
        ],
        [folder(), folder({"quantization_config": {"quant_method": "gptq"}}, coded=True)],
        [],
    ),
    "MLD605": Entry(
        [
            On(
                folder(more={"base_model.model.model.norm.weight": ((4,), "F32")}),
                "1 of 4 tensors have names of PEFT or of a wrapper (first: base_model.model.model.norm.weight).",
            )
        ],
        [folder(), folder(more={"a.base_layer.weight": ((4,), "F32")}, names=frozenset({"a.base_layer.weight"}))],
        [],
    ),
    "MLD606": Entry(
        [
            On(
                folder(adapter={"task_type": "SEQ_CLS"}),
                "The adapter is of task_type SEQ_CLS, and no head of a classifier is stored: it is loaded with a "
                "random head, or none.",
            ),
            On(
                folder(adapter={"task_type": "TOKEN_CLS"}, more={"classifier.weight": ((3, 4), "F32")}),
                "The adapter is of task_type TOKEN_CLS, and config.json names LlamaForCausalLM: it is loaded with a "
                "random head, or none.",
            ),
        ],
        [
            folder(),
            folder(
                {"architectures": ["LlamaForSequenceClassification"]},
                adapter={"task_type": "SEQ_CLS"},
                more={"score.weight": ((3, 4), "F32")},
            ),
        ],
        [],
    ),
    "MLD607": Entry(
        [
            On(folder(base_tokens=tokens()), "No tokenizer lies beside the merged weights.", "warning"),
            On(
                folder(
                    adapter_tokens=tokens(),
                    base_tokens=tokens(added=frozenset()),
                    tokens=tokens(added=frozenset({"<a>"})),
                ),
                "The merged model's tokenizer lacks 1 tokens of the one that was trained with (<b>).",
                "warning",
            ),
        ],
        [folder(tokens=tokens(), base_tokens=tokens()), folder(tokens=tokens(), adapter_tokens=tokens())],
        [(folder(), "no tokenizer lies beside the adapter or the base")],
    ),
    "MLD608": Entry(
        [
            On(
                folder(tokens=tokens(template=None), adapter_tokens=tokens()),
                "The merged model has no chat template, and the adapter's tokenizer has one.",
                "warning",
            ),
            On(
                folder(tokens=tokens(template="{{ y }}"), adapter_tokens=tokens()),
                "The merged model's chat template is not that beside the adapter.",
                "warning",
            ),
        ],
        [
            folder(tokens=tokens(template="{{ x }}\n"), adapter_tokens=tokens()),
            folder(tokens=tokens(template=None), adapter_tokens=tokens(template=None)),
            folder(adapter_tokens=tokens()),  # MLD607 tells that none is there
        ],
        [(folder(), "no tokenizer lies beside the adapter or the base")],
    ),
    "MLD609": Entry(
        [
            On(
                folder(base_generation={"eos_token_id": 2}),
                "The base has a generation_config.json, and the merged model none: its end-of-text tokens are not "
                "known.",
                "info",
            ),
            On(
                folder(base_generation={"eos_token_id": [7, 2]}, generation={"eos_token_id": 7}),
                "generation_config.json no longer ends a text at 2, as the base's does.",
                "warning",
            ),
            On(
                folder({"eos_token_id": 5}, base=CONFIG | {"eos_token_id": 2}, adapter_tokens=tokens(end=2)),
                "config.json ends a text at 5, and the tokenizer that it was trained with at 2: generation does not "
                "stop there.",
                "warning",
            ),
            On(  # the tokenizer's end was replaced for the training, and the base's config was exported
                folder(
                    base_generation={"eos_token_id": 2},
                    generation={"eos_token_id": 2},
                    base_tokens=tokens(end=2),
                    adapter_tokens=tokens(end=7),
                ),
                "generation_config.json ends a text at 2, and the tokenizer that it was trained with at 7: generation "
                "does not stop there.",
                "warning",
            ),
        ],
        [
            folder(),
            folder(base_generation={"eos_token_id": 2}, generation={"eos_token_id": [2, 7]}),
            folder(  # replaced in both
                base_generation={"eos_token_id": 2},
                generation={"eos_token_id": 7},
                base_tokens=tokens(end=2),
                adapter_tokens=tokens(end=7),
            ),
            folder({"eos_token_id": 5}, base=CONFIG | {"eos_token_id": 5}, base_tokens=tokens(end=2)),
        ],
        [],
    ),
    "MLD610": Entry(
        [
            On(
                folder({"torch_dtype": "float16"}),
                "config.json says float16, and most weights are stored as BF16.",
                "warning",
            )
        ],
        [
            folder(),
            folder({"torch_dtype": None, "dtype": "bfloat16"}),
            folder({"torch_dtype": "float16"}, more={"a.weight": ((2, 2), "F16"), "b.weight": ((2, 2), "F16")}),  # half
            folder({"torch_dtype": "float16"}, coded=True),
        ],
        [],
    ),
    "MLD611": Entry(
        [
            On(
                folder({"hidden_size": 5, "model_type": "qwen2"}),
                "config.json is another model's: model_type qwen2 instead of llama, hidden_size 5 instead of 4.",
            )
        ],
        [folder(), folder({"text_config": {"hidden_size": 5}})],
        [(folder(base=None), "the base has no config.json")],
    ),
}


def cases(kind: str) -> list[Any]:
    return [
        pytest.param(rule, case, id=f"{rule}-{place}")
        for rule, entry in ENTRIES.items()
        for place, case in enumerate(getattr(entry, kind))
    ]


def verdict(rule: str, of: MergedFolder) -> Any:
    return judge([next(each for each in MERGED_RULES if each.id == rule)], of)


@every(("rule", "case"), cases("fires"))
def test_a_rule_fires(rule, case):
    (found,) = verdict(rule, case.folder).findings
    assert (found.message, found.severity) == (case.says, case.severity)
    assert found.action


@every(("rule", "case"), cases("silent"))
def test_a_rule_is_silent_after_having_looked(rule, case):
    judged = verdict(rule, case)
    assert (judged.findings, judged.not_run) == ([], [])


@every(("rule", "case"), cases("abstains"))
def test_a_rule_without_its_input_says_so(rule, case):
    judged = verdict(rule, case[0])
    assert ([each.reason for each in judged.not_run], judged.findings) == ([case[1]], [])


def test_without_a_config_the_rules_that_read_it_say_so():
    judged = judge(MERGED_RULES, MergedFolder(tensors=TENSORS))
    reasons = {each.id: each.reason for each in judged.not_run}
    assert {rule for rule, reason in reasons.items() if reason.startswith(NO_CONFIG)} == {
        *("MLD602", "MLD603", "MLD604", "MLD606", "MLD610", "MLD611")
    }


def test_every_rule_has_an_entry():
    assert {rule.id for rule in MERGED_RULES} == ENTRIES.keys()
