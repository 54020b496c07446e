"""A data set's files, its tokenizer and its recipe to a `DataReport`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from gradience.configs.data import DataPlan
from gradience.data.encoder import Encoder, quiet
from gradience.data.measure import Limits, Measure
from gradience.data.overlap import EvalRows
from gradience.data.rows import Fault, Source
from gradience.data.shapes import Columns, Shape, recognise
from gradience.data.tokens import Masking, Tokeniser
from gradience.errors import ConfigError
from gradience.schema.data import DataReport, LossMode

_TRL_LENGTH: Final = 1024  # max_length of TRL's SFT, DPO, reward and KTO configs (1.16), where it is not set
_PEEK: Final = 20  # rows of which the first usable one shows the format

Samples: TypeAlias = int | Literal["all"]


class Asked(NamedTuple):
    """What the caller asks for, over what the recipe says."""

    plan: DataPlan
    train: Path
    evaluation: Path | None
    loss: LossMode | None
    loss_from: str
    max_length: int | None
    packing: bool
    tokenizer: Path | None
    template: Path | None
    samples: Samples
    task: str | None
    limits: Limits

    @property
    def masking(self) -> Masking:
        """Whose masks are built, and on what."""
        return Masking(self.loss, self.plan.program)


def measure_data(asked: Asked) -> DataReport:
    """The report on a data set, read in one pass.

    Raises:
        ConfigError: a file cannot be read, or its rows need what was not given.
    """
    source = Source(asked.train)
    wanted = _sample(source.count, asked.samples, asked.limits.seed)
    shape = _shape_of(source, asked.task)
    template = None if shape.format == "tokenised" else asked.template
    encoder = None if asked.tokenizer is None else Encoder(asked.tokenizer, template)
    tokeniser = Tokeniser(shape, encoder, asked.masking)
    if asked.masking.trl and asked.loss == "assistant" and encoder is not None and not encoder.marks_answers:
        encoder.use_training_template()
    limit, notes = _limit(asked, shape)
    limits = asked.limits._replace(max_length=limit, packing=asked.packing)
    held_out = None if asked.evaluation is None else _eval_rows(asked.evaluation, tokeniser, asked.task)
    measure = Measure(shape, encoder, limits)
    with quiet() if encoder is not None else nullcontext():
        for row in tokeniser.run(source.rows(wanted)):
            measure.add(row)
            if held_out is not None and not isinstance(row, Fault):
                held_out.compare(row.columns)
    found = measure.result()
    if not found.read:
        raise ConfigError(f"{asked.train}: no row can be used: {found.faults[0].reason}", advice="correct the rows")
    return DataReport(
        path=str(source.path),
        eval_path=None if asked.evaluation is None else str(asked.evaluation),
        format=shape.format,
        trainer=shape.trainer,
        masked_by=asked.plan.program,
        rows=source.count,
        sampled=wanted is not None,
        seed=limits.seed,
        loss=_loss_mode(shape, asked.masking),
        loss_from=asked.loss_from,
        max_length=limit,
        packing=limits.packing,
        num_labels=limits.num_labels,
        overlap=None if held_out is None else held_out.result(),
        notes=[*asked.plan.notes, *notes, *_notes(shape, asked.masking)],
        turn_end=encoder.names([found.turn_end])[0] if encoder is not None and found.turn_end is not None else "",
        **_tokenizer(encoder, shape),
        **found.fields,
    )


def _tokenizer(encoder: Encoder | None, shape: Shape) -> dict[str, Any]:
    """The fields of a report on its tokenizer, and on the chat template where the rows are conversations."""
    if encoder is None:
        return {}
    found: dict[str, Any] = {
        "tokenizer": encoder.name,
        "pad_is_end": encoder.pad_is_end,
        "end_tokens": encoder.names(sorted(encoder.end_ids)),
    }
    if encoder.template and shape.format not in {"text", "classification", "tokenised"}:
        found["template"] = encoder.template_from
        found["template_marks_answers"] = encoder.marks_answers
        found["template_tokens_split"] = encoder.split_controls()
    return found


def _sample(count: int, samples: Samples, seed: int) -> set[int] | None:
    """The numbers of the rows to read; None for all of them."""
    if samples != "all" and samples < 1:
        raise ConfigError(f"--samples: expected a number of rows or all, got {samples}", advice="correct the option")
    if samples == "all" or samples >= count:
        return None
    return set(random.Random(seed).sample(range(1, count + 1), samples))  # noqa: S311  # rows, not a secret


def _shape_of(source: Source, task: str | None) -> Shape:
    """The format of the first usable row."""
    faults: list[str] = []
    for found in islice(source.rows(), _PEEK):
        if not isinstance(found, Fault):
            try:
                return recognise(found[1], task)
            except ConfigError as error:
                raise ConfigError(f"{source.path}: {error}", advice=error.advice) from None
        faults.append(f"row {found.number}: {found.reason}")
    raise ConfigError(f"{source.path}: no usable row at its beginning: {faults[0]}", advice="correct the rows")


def _limit(asked: Asked, shape: Shape) -> tuple[int | None, list[str]]:
    if asked.max_length is not None:
        return asked.max_length or None, []
    if asked.masking.trl and shape.trainer != "classification":
        return _TRL_LENGTH, [f"no length limit is given: TRL's default of {_TRL_LENGTH} tokens"]
    return None, []


def _eval_rows(place: Path, tokeniser: Tokeniser, task: str | None) -> EvalRows:
    source, found = Source(place), EvalRows()
    shape = _shape_of(source, task)
    if shape.format != tokeniser.shape.format:
        raise ConfigError(
            f"{place}: rows of format {shape.format}, those of the training set of {tokeniser.shape.format}",
            advice="give both in one format",
        )

    def usable() -> Iterator[tuple[int, Columns]]:
        for example in tokeniser.examples(source.rows()):
            if not isinstance(example, Fault):
                yield example

    found.read(usable())
    return found


def _notes(shape: Shape, masking: Masking) -> list[str]:
    found = []
    if shape.format == "instruction":
        found.append("an instruction is written as a user's message with its input, the output as the answer")
    if not masking.trl:
        found.append(f"{masking.by} masks by turn: its masks are rebuilt from the chat template, turn by turn")
    return found


def _loss_mode(shape: Shape, masking: Masking) -> LossMode:
    if shape.trainer in {"reward", "classification"}:
        return "none"
    if shape.trainer in {"dpo", "kto"}:
        return "completion"
    pairs = shape.format in {"prompt-completion", "instruction"}
    return masking.loss or ("completion" if pairs else "all")
