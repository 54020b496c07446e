"""The forms of prompts, by the text that begins a turn in them, and what programs call their templates."""

from __future__ import annotations

from typing import Final, NamedTuple


class PromptForm(NamedTuple):
    """A form of prompts: what begins a turn, and what ends one."""

    begins: str
    ends: str

    @property
    def has_own_tokens(self) -> bool:
        """Whether a turn begins with a token of the form's own, and not with plain words."""
        return self.begins.startswith("<")


# The first whose beginning a text holds is the text's form, so what others contain comes last.
_FORMS: Final = {
    "chatml": PromptForm("<|im_start|>", "<|im_end|>"),
    "kimi": PromptForm("<|im_user|>", "<|im_end|>"),
    "llama3": PromptForm("<|start_header_id|>", "<|eot_id|>"),
    "llama4": PromptForm("<|header_start|>", "<|eot|>"),
    "gemma": PromptForm("<start_of_turn>", "<end_of_turn>"),
    "gemma4": PromptForm("<|turn>", "<turn|>"),
    "deepseek": PromptForm("<\uff5cUser\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    "harmony": PromptForm("<|message|>", "<|end|>"),
    "cohere": PromptForm("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    "granite": PromptForm("<|start_of_role|>", "<|end_of_text|>"),
    "exaone": PromptForm("[|user|]", "[|endofturn|]"),
    "phi": PromptForm("<|user|>", "<|end|>"),
    "mistral": PromptForm("[INST]", "</s>"),
    "alpaca": PromptForm("### Instruction:", ""),
    "vicuna": PromptForm("USER:", "</s>"),
}
# Names of templates by their beginnings, the longest first; "" is of no form above. Source: LLaMA-Factory at ff6d4d1,
# src/llamafactory/data/template.py; Axolotl's and ms-swift's names begin in the same way.
_NAMED: Final = {
    "chatml": "chatml",
    "qwen": "chatml",
    "yi": "chatml",
    "yi_vl": "",
    "smollm": "chatml",
    "intern": "chatml",
    "dbrx": "chatml",
    "lfm2": "chatml",
    "minicpm": "chatml",
    "llama2": "mistral",
    "llama3": "llama3",
    "llama4": "llama4",
    "mllama": "llama3",
    "mistral": "mistral",
    "mixtral": "mistral",
    "ministral": "mistral",
    "pixtral": "mistral",
    "gemma": "gemma",
    "gemma4": "gemma4",
    "deepseek3": "deepseek",
    "deepseekr1": "deepseek",
    "deepseek_r1": "deepseek",
    "deepseek_v3": "deepseek",
    "gpt_oss": "harmony",
    "cohere": "cohere",
    "command_r": "cohere",
    "granite3": "granite",
    "granite3_vision": "phi",
    "granite4": "granite",
    "kimi": "kimi",
    "moonlight": "kimi",
    "phi": "phi",
    "phi4": "chatml",
    "phi4_mini": "phi",
    "zephyr": "phi",
    "alpaca": "alpaca",
    "vicuna": "vicuna",
    "exaone": "exaone",
}

# What a template writes before a call of a tool, and the parsers that look for it; the first whose text a template
# holds is its own. Source: names by the registries of vllm/tool_parsers at 02bb669b and sglang's function_call at
# 00828e56; marks as the models' templates write them. Those that read several forms, or a bare object (llama3_json,
# pythonic, xlam), are left out.
_CALLS: Final = {
    "<arg_key>": ("glm45", "glm47", "glm"),
    "<function=": ("qwen3_coder", "qwen3_xml", "step3p5"),
    "<tool_call>": ("hermes", "qwen", "qwen25", "granite4"),
    "[TOOL_CALLS]": ("mistral",),
    "<|tool_calls_section_begin|>": ("kimi_k2",),
    "<\uff5ctool\u2581calls\u2581begin\uff5c>": ("deepseek_v3", "deepseek_v31", "deepseekv3", "deepseekv31"),
    "<start_function_call>": ("functiongemma",),
    "<|tool_call>": ("gemma4",),
    "<|python_tag|>": (),
}


def calls_in(text: str, parser: str) -> tuple[str, str] | None:
    """What a template writes before calls, and what a server's parser looks for; None if one is not known, or equal.

    >>> calls_in("<tool_call>{{ call | tojson }}", "mistral"), calls_in("<tool_call>", "hermes")
    (('<tool_call>', '[TOOL_CALLS]'), None)
    """
    written = next((mark for mark in _CALLS if mark in text), None)
    sought = next((mark for mark, parsers in _CALLS.items() if parser in parsers), None)
    return None if written is None or sought is None or written == sought else (written, sought)


def form_in(text: str) -> PromptForm | None:
    """The form that a template, or a text of turns, is written in; None if it is none of those known.

    >>> form_in("{{ '<|im_start|>' + role }}"), form_in("{{ .Prompt }}")
    (PromptForm(begins='<|im_start|>', ends='<|im_end|>'), None)
    """
    return next((form for form in _FORMS.values() if form.begins in text), None)


def form_named(name: str) -> PromptForm | None:
    """The form of a program's own template, by its name.

    >>> form_named("qwen3_nothink") == form_named("gemma_chatml"), form_named("llama-3.1"), form_named("yi_vl")
    (True, PromptForm(begins='<|start_header_id|>', ends='<|eot_id|>'), None)
    """
    lowered = name.lower()
    # Unsloth's names have hyphens: llama-3.1, gpt-oss, gemma_chatml.
    if lowered.startswith("tokenizer_default"):  # Axolotl's: the tokenizer's own, whatever it falls back to
        return None
    spelt = ("chatml",) if "chatml" in lowered else (lowered, lowered.replace("-", ""), lowered.replace("-", "_"))
    beginnings = [known for known in _NAMED if any(one.startswith(known) for one in spelt)]
    return _FORMS.get(_NAMED[max(beginnings, key=len)]) if beginnings else None
