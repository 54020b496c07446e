"""A tokenizer of transformers as it runs in a confined process: what `data.encoder` asks for, as plain values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import msgspec

from gradience.data import Columns
from gradience.data.pictures import Processor
from gradience.data.programs import Program, program
from gradience.errors import ConfigError
from gradience.io import pretrained
from gradience.io.confined import allow
from gradience.io.reading import decode_json, read_small
from gradience.schema import Json

ADVICE: Final = "give --tokenizer the folder with its tokenizer.json and tokenizer_config.json"
THINK: Final = "<think>"
_PROBE: Final = "gradienceprobe"  # a word that no template has of its own
_ASKING: Final[dict[str, Json]] = {"role": "user", "content": "?"}
_CONTROL: Final = re.compile(r"<[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]>|<(?:start|end)_of_(?:turn|text)>")


def _called(arguments: Json) -> dict[str, Json]:
    call = {"id": "call00001", "type": "function", "function": {"name": "ask", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


class TokenizerFacts(msgspec.Struct):
    """What is known of a tokenizer once it is loaded."""

    template: str | None = None
    eos: str | None = None
    eos_id: int | None = None
    bos_id: int | None = None
    pad_id: int | None = None
    end_ids: list[int] = []
    control_ids: list[int] = []
    special_ids: list[int] = []
    size: int = 0
    """The number of tokens, added ones included."""
    controls: list[str] = []
    """The added tokens, as text."""
    think_ids: list[int] = []
    """The tokens that begin a block of thought, where the template may write one."""
    by: str = ""
    """The name that the trainer's own template has there; empty if the trainer was not asked for it."""
    refusal: str = ""
    """Why the trainer's own template cannot be used."""


class Tokenizer:
    """A tokenizer and its chat template.

    Args:
        folder: folder of the tokenizer, or organisation/name in the local hub cache.
        template: a chat template to be used instead of the tokenizer's own.
        masks: whether answers are to be masked, which needs a tokenizer.json.
        trainer: the program whose own template is to be used, and the settings of its recipe.

    Raises:
        ConfigError: transformers is not installed, or the folder holds no such tokenizer.
    """

    def __init__(
        self,
        folder: str,
        template: str | None,
        masks: bool,  # noqa: FBT001  # sent by position
        trainer: tuple[str, dict[str, Json]] | None = None,
    ) -> None:
        self._tokenizer = _loaded(folder)
        if masks and not getattr(self._tokenizer, "is_fast", False):
            raise ConfigError(f"{folder}: a tokenizer without tokenizer.json", advice=ADVICE)
        if template is not None:
            self._tokenizer.chat_template = template
        self._program, self._refusal = _made(self._tokenizer, trainer)
        own = self._tokenizer.chat_template
        self._template: str | None = own.get("default") if isinstance(own, dict) else own
        self._folder = folder

    def facts(self) -> dict[str, Json]:
        """The fields of `TokenizerFacts`."""
        tokenizer = self._tokenizer
        return {
            "template": self._template,
            "eos": tokenizer.eos_token,
            "eos_id": tokenizer.eos_token_id,
            "bos_id": tokenizer.bos_token_id,
            "pad_id": tokenizer.pad_token_id,
            "end_ids": _end_ids(Path(self._folder), tokenizer.eos_token_id),
            "control_ids": sorted(tokenizer.get_added_vocab().values()),
            "special_ids": sorted(tokenizer.all_special_ids),
            "size": len(tokenizer),
            "controls": sorted(tokenizer.get_added_vocab()),
            "think_ids": self.bare([THINK])[0] if THINK in (self._template or "") else [],
            "by": self._program.template if self._program is not None else "",
            "refusal": self._refusal,
        }

    def prepared(self, rows: list[Columns]) -> list[Json]:
        """The sequences of each row as the trainer makes them (`programs.Program`), or why it does not take the row."""
        return [self._prepared(row) for row in rows]

    def _prepared(self, row: Columns) -> Json:
        # Each row has the time of one answer: many rows that take long are no endless loop.
        allow()
        try:
            return self._program(row) if self._program is not None else "no program"
        except Exception as error:  # noqa: BLE001  # a program of others may raise anything
            return " ".join(str(error).split())[:200] or type(error).__name__

    def use_training_template(self) -> str | None:
        """The template that TRL trains with, which is used from now on; None if the installed TRL has none."""
        template = _training_template(self._template)
        self._template = template or self._template
        return template

    def pictures(self) -> list[Json] | str:
        """The fields of `encoder.Pictures`, or why the processor cannot be used."""
        try:
            self._processor = Processor(self._folder)
        except Exception as error:  # noqa: BLE001  # its files are a stranger's, and it may need torchvision
            return pretrained.reason(error)
        return [self._processor.name, self._processor.token]

    def image_tokens(self, images: list[list[Json]], folder: str) -> list[Json]:
        """The number of tokens of each image of each row, or why they are not known."""
        return [self._image_tokens(some, folder) for some in images]

    def _image_tokens(self, images: list[Json], folder: str) -> Json:
        allow()
        try:
            return self._processor.tokens(images, folder)
        except Exception as error:  # noqa: BLE001  # Pillow and the rule may raise anything on a stranger's image
            return pretrained.reason(error)

    def names(self, ids: Sequence[int]) -> list[str]:
        """The tokens of these ids, as text."""
        return [str(token) for token in self._tokenizer.convert_ids_to_tokens(list(ids))]

    def decoded(self, runs: Sequence[Sequence[int]]) -> list[str]:
        """The text of each run of tokens, control tokens included."""
        # An older tokenizer would remove blanks before marks, and show what no model is given.
        return [self._tokenizer.decode(list(run), clean_up_tokenization_spaces=False) for run in runs]

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with the special tokens that the tokenizer adds."""
        # Not verbose: transformers would warn of a text over model_max_length, which the report itself counts.
        out = self._tokenizer(list(texts), return_attention_mask=False, return_token_type_ids=False, verbose=False)
        ids: list[list[int]] = out["input_ids"]
        return ids

    def bare(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        out = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids: list[list[int]] = out["input_ids"]
        return ids

    def unwritten(self, roles: Sequence[str]) -> list[str]:
        """The roles whose turns the template leaves out."""
        return [role for role in roles if not self._writes(role)]

    def _writes(self, role: str) -> bool:
        """Whether the template writes a turn of a role, given as text or in parts."""
        contents: tuple[Json, ...] = (_PROBE, [{"type": "text", "text": _PROBE}])
        turn = {"role": role, "name": "ask", "tool_call_id": "call00001"}  # a result names its call
        return any(_PROBE in text for content in contents for text in self._renderings({**turn, "content": content}))

    def takes_parts(self) -> bool:
        """Whether the template writes the text of content that is a list of parts."""
        texts = self._renderings({"role": "user", "content": [{"type": "text", "text": _PROBE}]})
        return any(_PROBE in text and "'type'" not in text for text in texts)  # not the list as Python writes it

    def encodes_arguments(self) -> bool:
        """Whether the template encodes the arguments of a call as JSON even if they are text already."""
        return any('{\\"q' in text for text in self._renderings(_called('{"q":"x"}')))

    def writes_calls(self) -> bool:
        """Whether the template writes the arguments of a call; True if it takes none of those asked with."""
        calls = [_called({"q": _PROBE}), _called(f'{{"q": "{_PROBE}"}}')]
        tools: list[list[Json] | None] = [None, [{"type": "function", "function": {"name": "ask", "parameters": {}}}]]
        texts = [text for call in calls for some in tools for text in self._renderings(call, some)]
        return not texts or any(_PROBE in text for text in texts)

    def _renderings(self, turn: dict[str, Json], tools: list[Json] | None = None) -> Iterator[str]:
        """Yield the text of a turn as the first, after a user's, and after a call, where the template takes it."""
        before: list[list[dict[str, Json]]] = [[], [_ASKING], [_ASKING, _called({})]]
        for turns in before if self._template is not None else ():
            with suppress(Exception):  # a template may raise anything on turns that it does not take
                every = [*turns, turn]
                yield self._tokenizer.apply_chat_template(
                    every, chat_template=self._template, tools=tools, tokenize=False
                )

    def chats(self, chats: list[list[Any]]) -> list[Json]:
        """Ids and mask of each conversation, or the reason why the template cannot render it.

        Args:
            chats: the fields of `encoder.Chat`.
        """
        plain = [messages for messages, _, _, passed in chats if not passed]
        if len(plain) == len(chats) and chats:
            try:
                return self._rendered(plain, *chats[0][1:])
            except Exception:  # noqa: BLE001, S110  # a template may raise anything: the loop below finds where
                pass
        return [self._one(chat) for chat in chats]

    def split_controls(self) -> list[str]:
        """Control tokens written in the template that the tokenizer splits into pieces or does not know."""
        controls = dict.fromkeys(_CONTROL.findall(self._template or ""))
        unknown = self._tokenizer.unk_token_id
        coded = [self._tokenizer(token, add_special_tokens=False, verbose=False)["input_ids"] for token in controls]
        return [token for token, ids in zip(controls, coded, strict=True) if len(ids) != 1 or ids[0] == unknown]

    def _one(self, chat: list[Any]) -> Json:
        allow()
        try:
            return self._rendered([chat[0]], *chat[1:])[0]
        except Exception as error:  # noqa: BLE001  # as above: of this conversation
            return f"the chat template cannot render it: {' '.join(str(error).split())[:200] or type(error).__name__}"

    def _rendered(
        self,
        conversations: list[list[dict[str, Json]]],
        prompt: bool,  # noqa: FBT001  # a field of `encoder.Chat`
        answers: bool,  # noqa: FBT001  # the same
        passed: dict[str, Json],
    ) -> list[Json]:
        values = dict(passed)
        tools = values.pop("tools", None)
        kwargs = values.pop("chat_template_kwargs", None) or {}
        out = self._tokenizer.apply_chat_template(
            conversations,
            tools=json.loads(tools) if isinstance(tools, str) else tools,
            chat_template=self._template,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=answers,
            return_dict=True,
            tokenizer_kwargs={"verbose": False},
            **(kwargs if isinstance(kwargs, dict) else {}),
        )
        masks = out["assistant_masks"] if answers else [None] * len(conversations)
        return [[ids, mask] for ids, mask in zip(out["input_ids"], masks, strict=True)]


def _made(tokenizer: Any, trainer: Sequence[Any] | None) -> tuple[Program | None, str]:
    """The program of a trainer, or why it cannot be used."""
    if trainer is None:
        return None, ""
    try:
        return program(trainer[0], tokenizer, trainer[1]), ""
    except Exception as error:  # noqa: BLE001  # its import and its settings may fail in any way
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _loaded(folder: str) -> Any:
    try:
        from transformers import AutoTokenizer  # seconds, for those who tokenise
        from transformers.utils import logging  # the same
    except ModuleNotFoundError:
        raise ConfigError("tokenising needs transformers", advice="in the clone: pip install -e '.[hf]'") from None
    verbosity: Any = logging
    verbosity.set_verbosity_error()
    try:
        return pretrained.load(AutoTokenizer, folder)
    except Exception as error:  # noqa: BLE001  # tokenizers raises Exception itself on a file that is none
        reason = pretrained.reason(error)
        raise ConfigError(f"{folder}: no usable tokenizer: {reason}", advice=ADVICE) from None


class _Generation(msgspec.Struct):
    eos_token_id: int | list[int] | None = None


def _end_ids(folder: Path, eos: int | None) -> list[int]:
    """The ids that end generation: the tokenizer's, and those of a generation_config.json beside it."""
    ends = set() if eos is None else {eos}
    try:
        raw = read_small(folder / "generation_config.json", most=1 << 20, what="a generation config")
        more = decode_json(raw, _Generation).eos_token_id
    except (OSError, RecursionError, msgspec.MsgspecError, UnicodeDecodeError):
        return sorted(ends)
    return sorted(ends | (set(more) if isinstance(more, list) else set() if more is None else {more}))


def _training_template(template: str | None) -> str | None:
    """The template with `{% generation %}` blocks by which TRL replaces a stock one; None if TRL has none."""
    spec = find_spec("trl")  # only locates its files, because importing trl would import torch
    if template is None or spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "chat_templates"
    for path in sorted(folder.glob("*_training.jinja")):
        stock = path.with_name(path.name.replace("_training", ""))
        if stock.is_file() and stock.read_text(encoding="utf-8") == template:
            return path.read_text(encoding="utf-8")
    return None
