"""Rows to tokens and masks, as the trainers of TRL 1.16 (SFT, DPO, reward, KTO) and a plain classifier prepare them.

The prompt ends where its tokens and those of prompt and answer diverge. Text gets the end token; conversations get what
their template writes. Other programs mask by turn, so their masks are rebuilt from the template, turn by turn.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from gradience.data import Columns, Shape, Turn, Unusable, content_of, part_text
from gradience.data.encoder import Chat, Encoder, Encoding, Pictures
from gradience.data.equality import with_keys
from gradience.data.formats import canonical
from gradience.data.pictures import images_of, spread, with_images
from gradience.data.rows import Found, Row, UnusableRow
from gradience.errors import ConfigError
from gradience.schema import Json
from gradience.schema.reports import LossMode

_BATCH: Final = 256  # rows tokenised in one call
_NOT_CONVERSATIONAL: Final = frozenset({"text", "tokenised", "segments", "steps", "prompt-only"})
_STEP: Final = "\n"  # what PRMTrainer writes after each step by default
_IGNORED: Final = -100  # label of a token that the loss ignores


class CutSequence(NamedTuple):
    """What a trainer keeps of a sequence: token ids and their mask."""

    ids: list[int]
    mask: list[int]


class Sequence(NamedTuple):
    """Token ids, and a mask with 1 for each token in the loss; None if all are in it, or if tokens have no loss."""

    ids: list[int]
    mask: list[int] | None = None
    kept: CutSequence | None = None
    """What the trainer itself keeps, if it was asked."""


class TokenRow(NamedTuple):
    """A row as its trainer prepares it, before any cut: one sequence, or the chosen and the rejected one."""

    number: int
    columns: Columns
    sequences: tuple[Sequence, ...]
    prompt: int = 0
    """Number of tokens before the answer, if the row has a prompt."""


class Masking(NamedTuple):
    """Which tokens the loss is computed on, and the program whose rules are followed."""

    loss: LossMode | None = None
    """None is the trainer's default."""
    by: str = "trl"
    assumed: bool = False
    """The program was not stated: TRL is taken, but roles are translated as the others do."""

    @property
    def trl(self) -> bool:
        """Whether TRL's rules are followed."""
        return self.by == "trl"


class Tokeniser:
    """A tokeniser of rows of one shape.

    Args:
        shape: the format, and its trainer.
        encoder: the tokenizer; without one a row that is not tokenised already has no sequence.
        masking: which tokens are supervised.
        standard: gives a row the standard names of its columns, roles and keys.
        folder: where relative paths of images begin.

    Raises:
        ConfigError: the masking is impossible for this shape, or the tokenizer lacks what the rows need.
    """

    def __init__(
        self,
        shape: Shape,
        encoder: Encoder | None,
        masking: Masking,
        *,
        standard: Callable[[Row], Row] = lambda row: row,
        folder: Path = Path(),
    ) -> None:
        self.shape, self.encoder, self.masking, self._folder = shape, encoder, masking, folder
        self._standard = standard
        if masking.trl and masking.loss == "assistant" and shape.format in _NOT_CONVERSATIONAL:
            raise ConfigError(
                f"--loss assistant on rows of format {shape.format}: SFTTrainer takes it for conversations only",
                advice="give messages, or prompt and completion as messages; or another --loss",
            )
        if masking.by == "mlx-lm" and masking.loss == "assistant" and shape.format == "text":
            raise ConfigError("mask_prompt on rows of text: MLX-LM refuses it", advice="take mask_prompt out")
        self._prepare = _PREPARE.get(shape.trainer, Tokeniser._sft)
        if shape.format == "tokenised":
            self._prepare = Tokeniser._ready
        elif encoder is None:
            self._prepare = Tokeniser._read_only
        elif encoder.by_trainer:
            self._prepare = Tokeniser._by_trainer

    def examples(self, rows: Iterable[Found]) -> Iterator[tuple[int, Columns] | UnusableRow]:
        """Yield each row in its trainer's columns, or as a fault."""
        for row in rows:
            if isinstance(row, UnusableRow):
                yield row
                continue
            try:
                yield row[0], self._canonical(row[1])
            except Unusable as error:
                yield UnusableRow(row[0], str(error))
            except Exception as error:  # noqa: BLE001  # a value of a type or size that no row of the format has
                yield UnusableRow(row[0], f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def run(self, rows: Iterable[Found]) -> Iterator[TokenRow | UnusableRow]:
        """Yield each row as tokens, or as a fault, in their order, except that faults come first within a batch.

        The next batch is tokenised while the caller takes this one's rows.
        """
        # A thread is enough, because the tokenizer works in a process of its own.
        with ThreadPoolExecutor(1) as pool:
            batches = self._batches(rows)
            coming = pool.submit(next, batches, None)
            while (some := coming.result()) is not None:
                coming = pool.submit(next, batches, None)
                yield from some

    def _batches(self, rows: Iterable[Found]) -> Iterator[list[TokenRow | UnusableRow]]:
        every = self.examples(rows)
        while some := list(islice(every, _BATCH)):
            usable = self._counted([one for one in some if not isinstance(one, UnusableRow)])
            faults = [one for one in some if isinstance(one, UnusableRow)]
            yield [*faults, *(map(self._with_images, self._prepare(self, usable)) if usable else ())]

    def _counted(self, rows: list[tuple[int, Columns]]) -> list[tuple[int, Columns]]:
        """The rows, with the tokens of each image in `image_tokens` where TRL's processor counts them."""
        images = {i: listed for i, (_, item) in enumerate(rows) if (listed := images_of(item)) is not None}
        if (
            not images
            or not self.masking.trl
            or self.encoder is None
            or not isinstance(self.encoder.pictures, Pictures)
        ):
            return rows
        counts = dict(zip(images, self.encoder.image_tokens(list(images.values()), self._folder), strict=True))
        return [
            (number, {**item, "image_tokens": counts[i]} if isinstance(counts.get(i), list) else item)
            for i, (number, item) in enumerate(rows)
        ]

    def _with_images(self, found: TokenRow | UnusableRow) -> TokenRow | UnusableRow:
        """The row, with as many tokens for each image as the model is given; as it is if it has no place for one."""
        if (
            isinstance(found, UnusableRow)
            or "image_tokens" not in found.columns
            or not isinstance(self._enc.pictures, Pictures)
        ):
            return found
        token, counts = self._enc.pictures.token, found.columns["image_tokens"]
        places = [spread(one.ids, token, counts) for one in found.sequences]
        known = [some for some in places if some is not None]
        if len(known) < len(places):
            return found._replace(columns={name: one for name, one in found.columns.items() if name != "image_tokens"})
        sequences = (
            Sequence([one.ids[i] for i in some], None if one.mask is None else [one.mask[i] for i in some])
            for one, some in zip(found.sequences, known, strict=True)
        )
        return found._replace(sequences=tuple(sequences), prompt=bisect_left(known[0], found.prompt))

    def _canonical(self, row: Columns) -> Columns:
        chat = self.encoder is None or self.encoder.template is not None or bool(self.encoder.by_trainer)
        read = self._standard(row)
        columns = canonical(
            read, self.shape, chat=chat, trl=self.masking.by in {"trl", "mlx-lm"} and not self.masking.assumed
        )
        return with_keys(columns, read, self.shape)

    @property
    def _enc(self) -> Encoder:
        if self.encoder is None:
            raise ConfigError("rows of text need a tokenizer", advice="give --tokenizer FOLDER")
        return self.encoder

    @property
    def _eos(self) -> str:
        if self._enc.eos is None:
            raise ConfigError(
                f"the tokenizer {self._enc.name} has no end token, which trainers append to text",
                advice="set eos_token in its tokenizer_config.json",
            )
        return self._enc.eos

    def _ended(self, text: str) -> str:
        return text if text.endswith(self._eos) else text + self._eos

    def _encode(
        self, items: list[Json], rows: list[Columns], *, prompt: bool = False, answers: bool = False
    ) -> list[Encoding | str]:
        """Encode the texts or conversations of these rows, which may be mixed."""
        out: list[Encoding | str] = [Encoding([])] * len(items)
        texts = [i for i, item in enumerate(items) if isinstance(item, str)]
        for i, ids in zip(texts, self._enc.texts([items[i] for i in texts]), strict=True):
            out[i] = Encoding(ids)
        chats = [i for i, item in enumerate(items) if not isinstance(item, str)]
        if chats and self._enc.template is None:
            raise ConfigError(
                f"the tokenizer {self._enc.name} has no chat template, and the rows are conversations",
                advice="give --set template=FILE, or the tokenizer of an instruct model",
            )
        conversations = [Chat(self._written(items[i], rows[i]), prompt, answers, _passed(rows[i])) for i in chats]
        for i, encoded in zip(chats, self._enc.chats(conversations), strict=True):
            out[i] = encoded
        return out

    def _written(self, turns: list[Turn], columns: Columns) -> list[Turn]:
        """The turns with their parts as the template takes them: each with its text in `text`, else as one text."""
        if "image_tokens" in columns:
            turns = list(with_images(turns, len(columns.get("images", ()))))
        if not any(isinstance(turn.get("content"), list) for turn in turns):
            return turns
        joined = not self._enc.takes_parts
        return [{**turn, "content": _content(turn, joined=joined)} for turn in turns]

    def _read_only(self, rows: list[tuple[int, Columns]]) -> Iterator[TokenRow | UnusableRow]:
        """Yield rows without tokens, for there is no tokenizer."""
        return (TokenRow(number, item, ()) for number, item in rows)

    def _by_trainer(self, rows: list[tuple[int, Columns]]) -> Iterator[TokenRow | UnusableRow]:
        """Yield rows as the installed trainer makes them."""
        read = [{**item, "stored": None} for _, item in rows]
        for (number, item), sequences in zip(rows, self._enc.prepared(read), strict=True):
            if isinstance(sequences, str):
                yield UnusableRow(number, sequences)
                continue
            made = tuple(Sequence(ids, mask, CutSequence(*kept)) for ids, mask, *kept in sequences)
            begun = next((i for i, bit in enumerate(made[0].mask or ()) if bit), 0)
            yield TokenRow(number, item, made, begun)

    def _sft(self, rows: list[tuple[int, Columns]]) -> Iterator[TokenRow | UnusableRow]:
        if self.shape.format in {"messages", "sharegpt", "text"}:
            return self._language(rows)
        if self.shape.format == "segments":
            return self._segments(rows)
        return self._pairs(rows)

    def _segments(self, rows: list[tuple[int, Columns]]) -> Iterator[TokenRow | UnusableRow]:
        """Yield segments one behind the other without special tokens, as Axolotl's `input_output` does."""
        texts = [one["text"] for _, item in rows for one in item["segments"]]
        coded = iter(self._enc.bare(texts))
        for number, item in rows:
            pieces = [(next(coded), one["label"]) for one in item["segments"]]
            mask = [int(label) for ids, label in pieces for _ in ids]
            yield TokenRow(number, item, (Sequence([one for ids, _ in pieces for one in ids], mask),))

    def _prompts(self, rows: list[tuple[int, Columns]]) -> Iterator[TokenRow | UnusableRow]:
        """Yield prompts alone, as GRPOTrainer gives them to the model that answers."""
        columns = [item for _, item in rows]
        prompts = self._encode([item["prompt"] for item in columns], columns, prompt=True)
        for (number, item), prompt in zip(rows, prompts, strict=True):
            yield (
                UnusableRow(number, prompt)
                if isinstance(prompt, str)
                else TokenRow(number, item, (Sequence(prompt.ids),))
            )

    def _steps(self, rows: list[tuple[int, Columns]]) -> Iterator[TokenRow | UnusableRow]:
        """Yield a prompt and its steps, each followed by a line break, as `trl.PRMTrainer` joins them."""
        texts = [item["prompt"] + "".join(step + _STEP for step in item["steps"]) for _, item in rows]
        for (number, item), ids in zip(rows, self._enc.texts(texts), strict=True):
            yield TokenRow(number, item, (Sequence(ids),))

    def _language(self, rows: list[tuple[int, Columns]]) -> Iterator[TokenRow | UnusableRow]:
        columns = [item for _, item in rows]
        items = [item["messages"] if "messages" in item else self._ended(item["text"]) for item in columns]
        by_turn = self.masking.loss in {"assistant", "completion"} and not self.masking.trl
        answers = self.masking.loss == "assistant" and self.masking.trl
        for (number, item), encoding in zip(rows, self._encode(items, columns, answers=answers), strict=True):
            if isinstance(encoding, str):
                yield UnusableRow(number, encoding)
            elif by_turn and "messages" in item:
                yield TokenRow(number, item, (Sequence(encoding.ids, self._turns(item, encoding.ids)),))
            else:
                yield TokenRow(number, item, (Sequence(encoding.ids, encoding.answers),))

    def _turns(self, columns: Columns, whole: list[int]) -> list[int]:
        """The mask of the assistant's turns, which are the tokens that the template adds with each turn.

        MLX-LM leaves the last turn in the loss, whoever's it is.
        """
        messages, mask = columns["messages"], [0] * len(whole)
        for i, turn in enumerate(messages):
            answers = i == len(messages) - 1 if self.masking.by == "mlx-lm" else turn.get("role") == "assistant"
            # Before the first turn there is nothing to render: most templates fail on an empty conversation.
            if not answers or not i:
                continue
            before, after = (
                self._encode([messages[:end]], [columns], prompt=prompt)[0]
                for end, prompt in ((i, turn.get("role") == "assistant"), (i + 1, False))
            )
            if not isinstance(before, str) and not isinstance(after, str):
                start, end = common_prefix(before.ids, whole), common_prefix(after.ids, whole)
                mask[start:end] = [1] * max(end - start, 0)
        return mask

    def _pairs(self, rows: list[tuple[int, Columns]]) -> Iterator[TokenRow | UnusableRow]:
        """Yield prompt and completion as SFTTrainer and KTOTrainer prepare them."""
        columns = [item for _, item in rows]
        both = [_joined(item["prompt"], self._ended_answer(item["completion"])) for item in columns]
        # KTOTrainer has no setting for it: its loss is of the completion.
        always = self.shape.trainer == "kto"
        answers = self.masking.loss == "assistant" and self.masking.trl and not always
        wholes = self._encode(both, columns, answers=answers)
        prompts = self._encode([item["prompt"] for item in columns], columns, prompt=True)
        for (number, item), prompt, whole in zip(rows, prompts, wholes, strict=True):
            if isinstance(whole, str) or isinstance(prompt, str):
                yield UnusableRow(number, whole if isinstance(whole, str) else str(prompt))
                continue
            begun = common_prefix(prompt.ids, whole.ids)
            mask = [0] * begun + [1] * (len(whole.ids) - begun)
            if self.masking.loss == "all" and not always:
                yield TokenRow(number, item, (Sequence(whole.ids),), begun)
                continue
            if whole.answers is not None:
                mask = [a & b for a, b in zip(mask, whole.answers, strict=True)]
            yield TokenRow(number, item, (Sequence(whole.ids, mask),), begun)

    def _ended_answer(self, answer: Json) -> Json:
        return self._ended(answer) if isinstance(answer, str) else answer

    def _sides(self, columns: list[Columns]) -> list[list[Encoding | str]]:
        """The chosen and the rejected answers, each after its prompt if it has one."""
        return [
            self._encode([_joined(item.get("prompt"), self._ended_answer(item[side])) for item in columns], columns)
            for side in ("chosen", "rejected")
        ]

    def _dpo(self, rows: list[tuple[int, Columns]]) -> Iterator[TokenRow | UnusableRow]:
        columns = [item for _, item in rows]
        prompts = self._encode([item["prompt"] for item in columns], columns, prompt=True)
        sides = self._sides(columns)
        for (number, item), prompt, chosen, rejected in zip(rows, prompts, *sides, strict=True):
            fault = next((part for part in (prompt, chosen, rejected) if isinstance(part, str)), None)
            if fault is not None:
                yield UnusableRow(number, fault)
                continue
            ids = [part.ids for part in (prompt, chosen, rejected) if not isinstance(part, str)]
            begun = min(common_prefix(ids[0], ids[1]), common_prefix(ids[0], ids[2]))
            made = tuple(Sequence(one, [0] * begun + [1] * (len(one) - begun)) for one in ids[1:])
            yield TokenRow(number, item, made, begun)

    def _reward(self, rows: list[tuple[int, Columns]]) -> Iterator[TokenRow | UnusableRow]:
        sides = self._sides([item for _, item in rows])
        for (number, item), chosen, rejected in zip(rows, *sides, strict=True):
            if isinstance(chosen, str) or isinstance(rejected, str):
                yield UnusableRow(number, chosen if isinstance(chosen, str) else str(rejected))
            else:
                yield TokenRow(number, item, (Sequence(chosen.ids), Sequence(rejected.ids)))

    def _classified(self, rows: list[tuple[int, Columns]]) -> Iterator[TokenRow | UnusableRow]:
        ids = self._enc.texts([item["text"] for _, item in rows])
        for (number, item), one in zip(rows, ids, strict=True):
            yield TokenRow(number, item, (Sequence(one),))

    def _ready(self, rows: list[tuple[int, Columns]]) -> Iterator[TokenRow | UnusableRow]:
        """Yield rows that are already tokenised, masked by their labels, else by the masks that SFTTrainer applies."""
        for number, item in rows:
            ids: list[int] = item["input_ids"]
            if "labels" in item:
                yield TokenRow(number, item, (Sequence(ids, [int(label != _IGNORED) for label in item["labels"]]),))
                continue
            names = (
                ("assistant_masks", "completion_mask") if self.masking.loss == "completion" else ("assistant_masks",)
            )
            masks = [item[name] for name in names if name in item]
            mask = [int(all(bits)) for bits in zip(*masks, strict=True)] if masks else None
            yield TokenRow(number, item, (Sequence(ids, mask),))


_PREPARE: Final[dict[str, Callable[[Tokeniser, list[tuple[int, Columns]]], Iterator[TokenRow | UnusableRow]]]] = {
    "kto": Tokeniser._pairs,  # noqa: SLF001  # the table of this class's own methods
    "dpo": Tokeniser._dpo,  # noqa: SLF001
    "reward": Tokeniser._reward,  # noqa: SLF001
    "classification": Tokeniser._classified,  # noqa: SLF001
    "grpo": Tokeniser._prompts,  # noqa: SLF001
    "prm": Tokeniser._steps,  # noqa: SLF001
}


def _content(turn: Turn, *, joined: bool) -> Json:
    content = turn.get("content")
    if not isinstance(content, list):
        return content
    return content_of(turn) if joined else [_part(part) for part in content]


def _part(part: Turn) -> Turn:
    return {**part, "text": part_text(part)} if part_text(part) and "text" not in part else part


def _passed(columns: Columns) -> dict[str, Json]:
    return {name: columns[name] for name in ("tools", "chat_template_kwargs") if name in columns}


def _joined(prompt: Json, answer: Json) -> Json:
    return answer if prompt is None else prompt + answer


def common_prefix(ids: list[int], others: list[int]) -> int:
    """The number of leading tokens that two sequences share."""
    shorter = min(len(ids), len(others))
    # Nearly always one is the beginning of the other, and slices are compared in C.
    if ids[:shorter] == others[:shorter]:
        return shorter
    return next(i for i in range(shorter) if ids[i] != others[i])
