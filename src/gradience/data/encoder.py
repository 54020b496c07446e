"""A tokenizer of transformers, used in batches on texts, and on conversations by the chat template, with its mask.

Tokenizer and template are a stranger's. So they run in a confined process, which a panic, a crash or an endless loop
ends without harm (`gradience.io.confined`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from gradience.data import Columns
from gradience.data.asked import ControlTokens, Vocabulary
from gradience.data.pictures import IMPORTS as OF_PICTURES, has_processor
from gradience.data.programs import IMPORTS, MODULES
from gradience.data.tokenizer import ADVICE, TokenizerFacts
from gradience.errors import ConfigError
from gradience.io.confined import Confined, Foreign, prepare
from gradience.io.reading import read_small
from gradience.schema import Json

_MARKER: Final = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as trl.chat_template_utils.has_generation_markers
_MAX_TEMPLATE: Final = 1 << 20  # bytes
_CLASS: Final = "gradience.data.tokenizer:Tokenizer"
_TOKENIZERS: Final = "transformers:AutoTokenizer"
# With a model's config beside it, a tokenizer imports all of transformers' modelling, as long as a child may compute
_MODELLING: Final = "transformers:LlamaConfig"


class Encoding(NamedTuple):
    """Token ids, and a mask of the tokens in the template's `{% generation %}` blocks; None if it was not asked for."""

    ids: list[int]
    answers: list[int] | None = None


class Trainer(NamedTuple):
    """The program that trains, and the settings of its recipe."""

    name: str
    settings: Mapping[str, Json] = {}

    @property
    def is_installed(self) -> bool:
        """Whether its own template can be asked for; it is only located."""
        return self.name in MODULES and find_spec(MODULES[self.name]) is not None


class Chat(NamedTuple):
    """A conversation to be rendered, with the values that its row passes to the template."""

    messages: list[dict[str, Json]]
    prompt: bool = False
    """Add the generation prompt."""
    answers: bool = False
    """Ask for the mask of the `{% generation %}` blocks."""
    passed: Mapping[str, Json] = {}


class Pictures(NamedTuple):
    """The name of a processor that counts images, and the token that a chat template writes in an image's place."""

    name: str
    token: int


def expect_tokenizer() -> None:
    """Have the process of tokenizers import what it needs while the caller imports torch, on another core."""
    prepare([_TOKENIZERS, _MODELLING])


class Encoder:
    """A tokenizer, its chat template, and the tokens that end an answer.

    Args:
        folder: folder of the tokenizer, or organisation/name in the local hub cache.
        template: a file with a chat template, to be used instead of the tokenizer's own.
        masks: whether answers are to be masked, which needs a tokenizer.json.
        trainer: the program whose own template is used, if it is installed.

    Raises:
        ConfigError: transformers is not installed, or the tokenizer or template cannot be read.
    """

    def __init__(
        self, folder: Path, template: Path | None = None, *, masks: bool = True, trainer: Trainer | None = None
    ) -> None:
        self.name = folder.absolute().name
        # Before transformers is imported, whose own error on such a folder speaks of packages to convert a tokenizer.
        if folder.is_dir() and not any(folder.glob("token*")):
            raise ConfigError(f"{folder}: no tokenizer in this folder", advice=ADVICE)
        own = None if template is None else _read_template(template)
        try:
            is_alone = folder.is_dir() and not (folder / "config.json").is_file()
            imports = [_TOKENIZERS] if is_alone else [_TOKENIZERS, _MODELLING]
            program = trainer if trainer is not None and trainer.is_installed else None
            imports += [IMPORTS[program.name]] if program is not None else []
            self.has_processor = has_processor(folder)
            imports += OF_PICTURES if self.has_processor else ()
            self._confined = Confined(_CLASS, folder.as_posix(), own, masks, program, imports=imports)
            facts = msgspec.convert(self._confined.call("facts"), TokenizerFacts)
        except (Foreign, msgspec.ValidationError) as error:
            raise ConfigError(f"{folder}: no usable tokenizer: {error}", advice=ADVICE) from None
        self.template = facts.template
        self.template_from = "" if facts.template is None else "the file given" if template else "the tokenizer"
        self.is_retemplated = False
        self.by_trainer, self.refusal = facts.by, facts.refusal
        if trainer is not None and facts.by:
            self.template_from = f"{trainer.name} ({facts.by})"
        self.eos = facts.eos
        self.pad_is_end = facts.pad_id is not None and facts.pad_id == facts.eos_id
        self.end_ids = frozenset(facts.end_ids)
        self.special_ids = frozenset(facts.special_ids)
        text = facts.template or ""
        written = {token for token in facts.controls if token in text} | {facts.eos or ""} - {""}
        self.vocabulary = Vocabulary(
            size=facts.size,
            ends=self.end_ids,
            controls=frozenset(facts.control_ids),
            pad=None if self.pad_is_end else facts.pad_id,
            bos=facts.bos_id,
            own=ControlTokens(
                frozenset(facts.controls),
                frozenset(written) if facts.template else frozenset(),
                templated=bool(written - {facts.eos}),
            ),
            think=tuple(facts.think_ids),
            ends_plain_turns=not written - {facts.eos}
            and ("eos_token" in text or bool(facts.eos and facts.eos in text)),
        )

    @property
    def marks_answers(self) -> bool:
        """Whether the chat template has a `{% generation %}` block."""
        return self.template is not None and _MARKER.search(self.template) is not None

    def use_training_template(self) -> bool:
        """Replace the template by the one that TRL trains with; return False if the installed TRL has none."""
        answer = self._asked("the tokenizer", "use_training_template")
        if answer is not None:
            self.is_retemplated = True  # TRL renders with it, and leaves the tokenizer's as it is
            self.template, self.template_from = answer, "TRL, in place of the tokenizer's"
        return answer is not None

    def names(self, ids: Iterable[int]) -> list[str]:
        """The tokens of these ids, as text."""
        names: list[str] = self._asked("the tokenizer", "names", list(ids))
        return names

    def decoded(self, runs: Sequence[Sequence[int]]) -> list[str]:
        """The text of each run of tokens, control tokens included."""
        texts: list[str] = self._asked("the tokenizer", "decoded", [list(run) for run in runs]) if runs else []
        return texts

    @cached_property
    def pictures(self) -> Pictures | str:
        """How the processor beside the tokenizer counts images, or why it cannot be asked."""
        if not self.has_processor:
            return f"{self.name} has no processor_config.json"
        answer = self._asked("the processor", "pictures")
        return answer if isinstance(answer, str) else Pictures(*answer)

    def image_tokens(self, images: Sequence[Sequence[Json]], folder: Path) -> list[list[int] | str]:
        """The number of tokens of each image of each row, or why they are not known; `folder` begins relative paths."""
        tokens: list[list[int] | str] = self._asked("the processor", "image_tokens", list(images), folder.as_posix())
        return tokens

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with the special tokens that the tokenizer adds."""
        ids: list[list[int]] = self._asked("the tokenizer", "texts", list(texts)) if texts else []
        return ids

    def bare(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        ids: list[list[int]] = self._asked("the tokenizer", "bare", list(texts)) if texts else []
        return ids

    @cached_property
    def takes_parts(self) -> bool:
        """Whether the chat template writes the text of content that is a list of parts."""
        return self._asked("the chat template", "takes_parts") is True

    @cached_property
    def encodes_arguments(self) -> bool:
        """Whether the chat template encodes arguments of a call as JSON even if they are text already."""
        return self._asked("the chat template", "encodes_arguments") is True

    @property
    def writes_calls(self) -> bool:
        """Whether the chat template writes the calls of a turn."""
        return self._asked("the chat template", "writes_calls") is True

    def unwritten(self, roles: Iterable[str]) -> list[str]:
        """The roles whose turns the chat template leaves out."""
        unwritten: list[str] = self._asked("the chat template", "unwritten", sorted(roles))
        return unwritten

    def chats(self, chats: Sequence[Chat]) -> list[Encoding | str]:
        """The token ids of each conversation, or the reason why the template cannot render it.

        All conversations must have equal `prompt` and `answers`.
        """
        encoded = self._asked("the chat template", "chats", [list(chat) for chat in chats]) if chats else []
        return [one if isinstance(one, str) else Encoding(*one) for one in encoded]

    def prepared(self, rows: Sequence[Columns]) -> list[list[list[list[int]]] | str]:
        """The sequences of each row as the trainer makes them, or why it does not take the row.

        Of each sequence: the ids, the mask of the loss, and the ids and the mask that the length limit leaves.
        """
        prepared: list[list[list[list[int]]] | str] = self._asked("the trainer's template", "prepared", list(rows))
        return prepared

    def split_controls(self) -> list[str]:
        """Control tokens written in the template that the tokenizer splits into pieces or does not know."""
        controls: list[str] = self._asked("the tokenizer", "split_controls")
        return controls

    def _asked(self, what: str, method: str, *args: Any) -> Any:
        try:
            return self._confined.call(method, *args)
        except Foreign as error:
            raise ConfigError(
                f"{what} of {self.name} cannot be used on these rows: {error}", advice="correct it, or the rows"
            ) from None


def _read_template(path: Path) -> str:
    try:
        return read_small(path, most=_MAX_TEMPLATE, what="a chat template").decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: {reason}", advice="give --set template=FILE a Jinja chat template") from None
