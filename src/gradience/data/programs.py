"""Rows as LLaMA-Factory and ms-swift prepare them, by their own templates, where these programs are installed.

It runs in the confined process of the tokenizer (`data.tokenizer`), which alone imports a program.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Final, Protocol

from gradience.data import ANSWERERS, Columns, Shape, Turn, content_of
from gradience.schema import Json

MODULES: Final = {"llama-factory": "llamafactory", "ms-swift": "swift"}  # what each program is imported as
IMPORTS: Final = {"llama-factory": "llamafactory.data", "ms-swift": "swift.template"}

_NO_LIMIT: Final = 1 << 30  # tokens
_IGNORED: Final = -100  # label of a token that the loss ignores
_OF_FACTORY: Final = (  # its settings that decide what a row becomes
    *("template", "cutoff_len", "train_on_prompt", "mask_history", "tool_format", "default_system"),
    *("enable_thinking", "preserve_thinking"),
)
_OF_SWIFT: Final = ("loss_scale", "agent_template", "response_prefix", "enable_thinking", "preserve_thinking")
_FACTORY_ROLES: Final = {
    "user": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "observation",
    "observation": "observation",
    "function_call": "function",
    "tool_call": "function",
}
_ASKS, _ANSWERS = ("user", "observation"), ("assistant", "function")
_PREPARED: Final = {"llama-factory": ("sft", "dpo", "reward", "kto"), "ms-swift": ("sft", "dpo")}  # for these trainers


def prepares(name: str, shape: Shape) -> bool:
    """Whether a program is asked for rows of a format."""
    texts = () if name == "llama-factory" else ("text",)  # it pre-trains on text
    return shape.trainer in _PREPARED.get(name, ()) and shape.format not in {"tokenised", "segments", *texts}


class Program(Protocol):
    """A program that makes tokens of rows; `template` is the name that its template has there."""

    template: str

    def __call__(self, columns: Columns) -> list[Json]:
        """The sequences of a row: of each the ids, the mask of the loss, and the ids and mask that the limit leaves.

        Raises:
            Exception: anything that the program raises, and ValueError for a row that it leaves out.
        """


def program(name: str, tokenizer: Any, settings: Mapping[str, Json]) -> Program:
    """The program of this name with a tokenizer, to which it may add end tokens.

    Args:
        name: a key of `MODULES`.
        tokenizer: the tokenizer, as transformers loads it.
        settings: the settings of its recipe.

    Raises:
        Exception: anything that the program raises, such as ValueError for a template that it does not have.
    """
    return _PROGRAMS[name](tokenizer, settings)


class _LlamaFactory:
    """LLaMA-Factory 0.9: stages pt, sft, rm, dpo and kto, without images."""

    def __init__(self, tokenizer: Any, settings: Mapping[str, Json]) -> None:
        from llamafactory.data import get_template_and_fix_tokenizer
        from llamafactory.hparams import DataArguments

        own = {name: settings[name] for name in _OF_FACTORY if settings.get(name) is not None}
        arguments = DataArguments(**own)
        template = get_template_and_fix_tokenizer(tokenizer, arguments)
        self.template = str(arguments.template or "parsed from the tokenizer's")

        @cache
        def processors(kind: str) -> list[Any]:
            of = getattr(import_module("llamafactory.data.processor"), f"{kind}DatasetProcessor")
            return [of(template, tokenizer, None, it) for it in (replace(arguments, cutoff_len=_NO_LIMIT), arguments)]

        self._processors = processors

    def __call__(self, columns: Columns) -> list[Json]:
        kinds = {"text": "Pretrain", "rejected": "Pairwise", "label": "Feedback"}
        kind = next((kind for name, kind in kinds.items() if name in columns), "Supervised")
        system, turns = _split(columns.get("messages", _turns(columns.get("prompt", columns.get("text")), "user")))
        if kind == "Pairwise":
            prompt, responses = turns, [_factory_turn(_last(columns[side])) for side in ("chosen", "rejected")]
        else:
            dialogue = [*turns, *_turns(columns.get("completion"), "assistant")]
            place = len(dialogue) if kind == "Pretrain" else len(dialogue) - 1
            prompt, responses = dialogue[:place], [_factory_turn(turn) for turn in dialogue[place:]]
        prompt_turns = [_factory_turn(turn) for turn in prompt]
        ordered = [*prompt_turns, *responses[:1]] if responses else []
        if len(ordered) % 2 or any(turn["role"] not in (_ASKS, _ANSWERS)[i % 2] for i, turn in enumerate(ordered)):
            raise ValueError("LLaMA-Factory leaves it out: questions and answers do not alternate")
        if kind == "Feedback":  # a wanted answer stands first there, an unwanted one second
            responses.insert(int(columns["label"]), {"role": "assistant", "content": ""})
        tools = columns.get("tools") or ""
        example = {
            "_prompt": [prompt_turns],
            "_response": [responses],
            "_system": [system],
            "_tools": [tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)],
            **{name: [None] for name in ("_images", "_videos", "_audios")},
        }
        whole, kept = (it.preprocess_dataset(example) for it in self._processors(kind))
        names = ("chosen_", "rejected_") if "rejected" in columns else ("",)
        return [[*_labelled(whole, name, 0), *_labelled(kept, name, 0)] for name in names]


class _Swift:
    """ms-swift 4: supervised fine-tuning and preferences, without images."""

    def __init__(self, tokenizer: Any, settings: Mapping[str, Json]) -> None:
        from swift.model import get_matched_model_meta
        from swift.template import get_template

        known = get_matched_model_meta(str(settings.get("model") or ""))
        kind = settings.get("template") or (known.template if known is not None else None)
        if kind is None:
            raise ValueError("ms-swift knows no template of this model; set template in the recipe")
        self.template = str(kind)
        # What ms-swift's own loader puts on a tokenizer, and its templates read.
        tokenizer.model_info = SimpleNamespace(config=None, task_type="causal_lm", max_model_len=None, model_dir="")
        tokenizer.model_meta = SimpleNamespace(is_multimodal=False, template=kind, candidate_templates=[])
        own = {name: settings[name] for name in _OF_SWIFT if settings.get(name) is not None}
        system, limit, strategy = (settings.get(name) for name in ("system", "max_length", "truncation_strategy"))
        how = strategy if strategy in {"left", "right"} else "right"  # else the row is left out, or split
        limits = (None, limit if isinstance(limit, int) else None)
        self._made = [
            get_template(tokenizer, system, most, template_type=kind, truncation_strategy=how, **own) for most in limits
        ]

    def __call__(self, columns: Columns) -> list[Json]:
        turns = columns.get("messages", _turns(columns.get("prompt"), "user"))
        dialogue = [*turns, *_turns(columns.get("completion", columns.get("chosen")), "assistant")]
        row: dict[str, Json] = {"messages": [{**turn, "content": content_of(turn)} for turn in dialogue]}
        if "rejected" in columns:
            row["rejected_response"] = content_of(_last(columns["rejected"]))
        if columns.get("tools"):
            row["tools"] = columns["tools"]
        whole, kept = (
            self._encoded(template, row, "rlhf" if "rejected" in columns else "train") for template in self._made
        )
        names = ("chosen_", "rejected_") if "rejected" in columns else ("",)
        return [[*_labelled(whole, name), *_labelled(kept, name)] for name in names]

    @staticmethod
    def _encoded(template: Any, row: Mapping[str, Json], mode: str) -> Any:
        template.set_mode(mode)
        return template.encode(dict(row))


def _labelled(made: Any, name: str, place: int | None = None) -> list[list[int]]:
    """Ids and mask of a sequence that a program made; of a batch, the one at that place."""
    if not made:
        raise ValueError("the program leaves it out")
    ids = made[f"{name}input_ids"]
    labels = made.get(f"{name}labels", ids)  # of text, none are stated
    if place is not None:
        ids, labels = ids[place], labels[place]
    return [list(ids), [int(label != _IGNORED) for label in labels]]


def _turns(value: Json, role: str) -> list[Turn]:
    """The turns of a column; a text is one turn of that role."""
    if isinstance(value, list):
        return value
    return [] if value is None else [{"role": role, "content": value}]


def _last(value: Json) -> Turn:
    return _turns(value, "assistant")[-1]


def _split(turns: Sequence[Turn]) -> tuple[str, list[Turn]]:
    """The system text, and the turns after it."""
    first = turns[0] if turns else {}
    return (content_of(first), list(turns[1:])) if first.get("role") == "system" else ("", list(turns))


def _factory_turn(turn: Turn) -> dict[str, str]:
    """A turn in LLaMA-Factory's roles: calls of tools are text of the role `function`."""
    calls = turn.get("tool_calls")
    if turn.get("role") in ANSWERERS and isinstance(calls, list) and calls:
        return {"role": "function", "content": json.dumps([one["function"] for one in calls], ensure_ascii=False)}
    return {"role": _FACTORY_ROLES.get(str(turn.get("role")), str(turn.get("role"))), "content": content_of(turn)}


_PROGRAMS: Final[dict[str, Callable[[Any, Mapping[str, Json]], Program]]] = {
    "llama-factory": _LlamaFactory,
    "ms-swift": _Swift,
}
