"""A tokenizer of transformers, used in batches on texts, and on conversations by the chat template, with its mask."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from gradience.errors import ConfigError
from gradience.io.reading import decode_json, read_small
from gradience.schema import Json

_MARKER: Final = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as trl.chat_template_utils.has_generation_markers
_CONTROL: Final = re.compile(r"<[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]>|<(?:start|end)_of_(?:turn|text)>")
_MAX_TEMPLATE: Final = 1 << 20  # bytes
_ADVICE: Final = "give --tokenizer the folder with its tokenizer.json and tokenizer_config.json"


class Encoded(NamedTuple):
    """Token ids, and a mask of the tokens in the template's `{% generation %}` blocks; None if it was not asked for."""

    ids: list[int]
    answers: list[int] | None = None


class Chat(NamedTuple):
    """A conversation to be rendered, with the values that its row passes to the template."""

    messages: list[dict[str, Json]]
    prompt: bool = False
    """Add the generation prompt."""
    answers: bool = False
    """Ask for the mask of the `{% generation %}` blocks."""
    passed: Mapping[str, Json] = {}


class Encoder:
    """A tokenizer, its chat template, and the tokens that end an answer.

    Args:
        folder: folder of the tokenizer, or organisation/name in the local hub cache.
        template: a file with a chat template, to be used instead of the tokenizer's own.

    Raises:
        ConfigError: transformers is not installed, or the tokenizer or template cannot be read.
    """

    def __init__(self, folder: Path, template: Path | None = None) -> None:
        self.name = folder.name
        self._tokenizer = _loaded(folder)
        if template is not None:
            self._tokenizer.chat_template = _read_template(template)
        own = self._tokenizer.chat_template
        self.template: str | None = own.get("default") if isinstance(own, dict) else own
        self.template_from = "" if self.template is None else "the file given" if template else "the tokenizer"
        self.eos: str | None = self._tokenizer.eos_token
        self.bos_id: int | None = self._tokenizer.bos_token_id
        self.pad_is_end = self._tokenizer.pad_token_id is not None and self.pad_id == self._tokenizer.eos_token_id
        self.end_ids = _end_ids(folder, self._tokenizer.eos_token_id)
        self.control_ids = frozenset(self._tokenizer.get_added_vocab().values())

    @property
    def pad_id(self) -> int | None:
        """The id of the padding token."""
        found: int | None = self._tokenizer.pad_token_id
        return found

    @property
    def marks_answers(self) -> bool:
        """Whether the chat template has a `{% generation %}` block."""
        return self.template is not None and _MARKER.search(self.template) is not None

    def use_training_template(self) -> bool:
        """Replace the template by the one that TRL trains with; return False if the installed TRL has none."""
        found = _training_template(self.template)
        if found is not None:
            self.template, self.template_from = found, "TRL, in place of the tokenizer's"
        return found is not None

    def names(self, ids: Sequence[int]) -> list[str]:
        """The tokens of these ids, as text."""
        return [str(token) for token in self._tokenizer.convert_ids_to_tokens(list(ids))]

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with the special tokens that the tokenizer adds."""
        if not texts:
            return []
        out = self._tokenizer(list(texts), return_attention_mask=False, return_token_type_ids=False, verbose=False)
        found: list[list[int]] = out["input_ids"]
        return found

    def chats(self, chats: Sequence[Chat]) -> list[Encoded | str]:
        """The token ids of each conversation, or the reason why the template cannot render it.

        All conversations must have equal `prompt` and `answers`.
        """
        plain = [chat.messages for chat in chats if not chat.passed]
        if len(plain) == len(chats) and chats:
            try:
                return self._rendered(plain, chats[0])
            except _failures():
                pass  # one conversation failed; the loop below finds which
        return [self._one(chat) for chat in chats]

    def split_controls(self) -> list[str]:
        """Control tokens written in the template that the tokenizer splits into pieces or does not know."""
        found = dict.fromkeys(_CONTROL.findall(self.template or ""))
        unknown = self._tokenizer.unk_token_id
        coded = [self._tokenizer(token, add_special_tokens=False, verbose=False)["input_ids"] for token in found]
        return [token for token, ids in zip(found, coded, strict=True) if len(ids) != 1 or ids[0] == unknown]

    def _one(self, chat: Chat) -> Encoded | str:
        try:
            return self._rendered([chat.messages], chat)[0]
        except _failures() as error:
            return f"the chat template cannot render it: {' '.join(str(error).split())[:200] or type(error).__name__}"

    def _rendered(self, conversations: list[list[dict[str, Json]]], like: Chat) -> list[Encoded | str]:
        passed = dict(like.passed)
        tools = passed.pop("tools", None)
        kwargs = passed.pop("chat_template_kwargs", None) or {}
        out = self._tokenizer.apply_chat_template(
            conversations,
            tools=json.loads(tools) if isinstance(tools, str) else tools,
            chat_template=self.template,
            add_generation_prompt=like.prompt,
            return_assistant_tokens_mask=like.answers,
            return_dict=True,
            tokenizer_kwargs={"verbose": False},
            **(kwargs if isinstance(kwargs, dict) else {}),
        )
        masks = out["assistant_masks"] if like.answers else [None] * len(conversations)
        return [Encoded(ids, mask) for ids, mask in zip(out["input_ids"], masks, strict=True)]


def _failures() -> tuple[type[Exception], ...]:
    """The exceptions that a chat template raises on a conversation that it cannot render."""
    from jinja2 import TemplateError  # noqa: PLC0415  # comes with transformers

    return (TemplateError, LookupError, TypeError, ValueError, AttributeError)


@contextmanager
def quiet() -> Iterator[None]:
    """A context that keeps transformers from writing to stderr what the report says itself."""
    from transformers.utils import logging  # noqa: PLC0415  # seconds, for those who tokenise

    verbosity: Any = logging

    before = verbosity.get_verbosity()
    verbosity.set_verbosity_error()
    try:
        yield
    finally:
        verbosity.set_verbosity(before)


def _loaded(folder: Path) -> Any:
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415  # seconds, for those who tokenise
    except ModuleNotFoundError:
        raise ConfigError("tokenising needs transformers", advice="in the clone: pip install -e '.[hf]'") from None
    place = folder.as_posix()
    if folder.is_dir() and not any(folder.glob("token*")):
        raise ConfigError(f"{folder}: no tokenizer in this folder", advice=_ADVICE)
    try:
        found = AutoTokenizer.from_pretrained(place, local_files_only=True)
    except Exception as error:  # noqa: BLE001  # tokenizers raises Exception itself on a file that is none
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"{folder}: no usable tokenizer: {reason}", advice=_ADVICE) from None
    if not getattr(found, "is_fast", False):
        raise ConfigError(f"{folder}: a tokenizer without tokenizer.json", advice=_ADVICE)
    return found


def _read_template(path: Path) -> str:
    try:
        return read_small(path, most=_MAX_TEMPLATE, what="a chat template").decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: {reason}", advice="give --template a file with a Jinja chat template") from None


class _Generation(msgspec.Struct):
    eos_token_id: int | list[int] | None = None


def _end_ids(folder: Path, eos: int | None) -> frozenset[int]:
    """The ids that end generation: the tokenizer's, and those of a generation_config.json beside it."""
    found = set() if eos is None else {eos}
    try:
        raw = read_small(folder / "generation_config.json", most=1 << 20, what="a generation config")
        more = decode_json(raw, _Generation).eos_token_id
    except (OSError, RecursionError, msgspec.MsgspecError):
        return frozenset(found)
    return frozenset(found | (set(more) if isinstance(more, list) else set() if more is None else {more}))


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
