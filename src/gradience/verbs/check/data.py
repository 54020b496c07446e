"""The verb ``check --data``: tokenise a data set as its trainer would, and report on it; or read it as text only."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, Unpack

import msgspec

from gradience.configs.document import DataPlan, read_data_plan, read_labels
from gradience.configs.prompts import form_in
from gradience.configs.settings import Layer
from gradience.data import Columns, Shape, Unusable, content_of, template_digest
from gradience.data.encoder import Encoder, Pictures, Trainer
from gradience.data.formats import conversation, recognise
from gradience.data.measure import TRL_LENGTH, MeasureSettings, RowCounter, RowCounts
from gradience.data.overlap import EvalRows
from gradience.data.programs import prepares
from gradience.data.rows import Row, RowSource, UnusableRow
from gradience.data.tokens import Masking, Tokeniser
from gradience.errors import ConfigError, few
from gradience.folder.prompts import PromptLink
from gradience.rules import judge
from gradience.rules.config import RULES
from gradience.rules.data import DATA_RULES, ROW_TESTS
from gradience.schema import Json, Real, real
from gradience.schema.document import NotRun, by_severity
from gradience.schema.events import ConfigSnapshot
from gradience.schema.reports import CHECK_SCHEMA_ID, CheckReport, DataReport, InputFile, LossMode, Overlong, Rows
from gradience.verbs.check.options import DataKeywords, DataOptions, Samples
from gradience.verbs.check.run import (
    IDS,
    SETTINGS,
    CheckKeywords,
    CheckOptions,
    Place,
    Settings,
    judged,
    when_of,
    with_files,
)

_BEGINNING: Final = 100  # rows that show whether all begin with one system text
_TURNS: Final = ("messages", "conversations", "prompt")  # columns whose first turn may be a system text
_PEEK: Final = 20  # first rows among which a usable one must be found to show the format
_MOST_COLUMNS: Final = 12  # columns that a finding names

RECIPE: Final = "recipe"  # in place of a path: the data set that the training recipe names
_OF_THE_TOKENIZER: Final = frozenset({"axolotl", "llama-factory"})
_UNPROMPTED: Final = frozenset({"text", "classification", "tokenised", "segments", "steps"})  # no template is used
_OFTEN: Final = 256  # rows between two reports of progress
_NO_LIMIT: Final = 1 << 30  # tokens
_BATCH: Final = 8  # default per_device_train_batch_size of transformers
_CONFIG_IDS: Final = tuple(rule.id for rule in RULES)
_TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json")
_DEFAULTS: Final = DataOptions()
_NO_CONFIG: Final = CheckOptions()


Progress: TypeAlias = Callable[[int, int], object]
"""Gets the rows read so far, and all that are to be read."""


class CheckSettings(NamedTuple):
    """A check: its options, completed by the recipe, and what else decides it."""

    options: DataOptions
    train: Path
    plan: DataPlan
    loss_from: str
    task: str | None = None
    batch_size: int | None = None
    """Rows of a batch, if they are stated."""
    progress: Progress | None = None

    @property
    def masking(self) -> Masking:
        """The program whose label masks are built, and the loss mode."""
        return Masking(self.options.loss, self.plan.program, assumed=not self.plan.stated)


def measure_data(asked: CheckSettings) -> DataReport:
    """The report on a data set, read in one pass.

    Raises:
        ConfigError: a file cannot be read, or its rows need an option that was not given.
    """
    options, evaluation = asked.options, asked.options.eval_data
    source = RowSource(asked.train)
    wanted = _sample(source.count, options.samples, options.seed)
    standard = asked.plan.naming.standard
    shape, columns = _shape_of(source, asked.task or asked.plan.task, standard)
    template = None if shape.format == "tokenised" else options.template or installed_template(asked.plan)
    has_tokens = options.tokenizer is not None or shape.format == "tokenised"
    limit, notes = _limit(asked, shape) if has_tokens else (options.max_length or None, [])
    asks = template is None and prepares(asked.plan.program, shape)
    trainer = _trainer(asked, limit) if asks else None
    encoder = None if options.tokenizer is None else Encoder(options.tokenizer, template, trainer=trainer)
    tokeniser = Tokeniser(
        shape,
        encoder,
        asked.masking,
        standard=standard,
        folder=source.path if source.path.is_dir() else source.path.parent,
    )
    # Where it knows the model, TRL puts a template that marks the answers in the place of the model's own.
    if asked.masking.trl and options.loss == "assistant" and encoder is not None and not encoder.marks_answers:
        encoder.use_training_template()
    limits = MeasureSettings(
        max_length=limit,
        packing=bool(options.packing),
        batch_size=asked.batch_size or _BATCH,
        num_labels=options.num_labels,
        seed=options.seed,
        show_rows=options.show_rows,
        overlong=_overlong(asked, shape),
        trl=asked.masking.trl,
    )
    held_out = None if evaluation is None else _eval_rows(evaluation, tokeniser, asked)
    total = source.count if wanted is None else len(wanted)
    measure = RowCounter(shape, encoder, limits, ROW_TESTS, expected=total)
    for done, row in enumerate(tokeniser.run(source.rows(wanted)), 1):
        measure.add(row)
        if asked.progress is not None and (done % _OFTEN == 0 or done == total):
            asked.progress(done, total)
        if held_out is not None and not isinstance(row, UnusableRow):
            held_out.compare(row.columns)
    counts = measure.result()
    if not counts.read:
        raise ConfigError(f"{asked.train}: no row can be used: {counts.faults[0].reason}", advice="correct the rows")
    return DataReport(
        path=str(source.path),
        prompt=_prompt(asked.plan, None if template is not None else encoder, shape),
        eval_path=None if evaluation is None else str(evaluation),
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
        label_weights=[*asked.plan.weights] if shape.trainer == "kto" else [],
        unread_length=asked.plan.unread_length if limit == asked.plan.unread_length else None,
        overlap=None if held_out is None else held_out.result(),
        columns=columns[:_MOST_COLUMNS],
        rewards_lack=_lacking(asked.plan, columns) if shape.trainer == "grpo" else {},
        program_stated=asked.plan.stated,
        batch_stated=asked.batch_size is not None,
        keeps_overflow=limits.packing and asked.plan.keeps_overflow,
        pads=asked.plan.pads,
        overlong=limits.overlong,
        unwritten_roles={} if _by_trainer(encoder) else _unwritten(encoder, measure.roles()),
        notes=[
            *asked.plan.notes,
            *notes,
            *(_notes(shape, asked.masking) if has_tokens and not _by_trainer(encoder) else []),
            *_images(counts, encoder),
        ],
        turn_end=encoder.names([counts.turn_end])[0] if encoder is not None and counts.turn_end is not None else "",
        **_tokenizer(encoder, shape, counts.seen),
        **counts.fields,
    )


def _lacking(plan: DataPlan, columns: list[str]) -> dict[str, list[str]]:
    """The columns that the recipe's reward functions need and the rows do not have."""
    lacks = {name: [one for one in needed if one not in columns] for name, needed in plan.rewards.items()}
    return {name: missing for name, missing in lacks.items() if missing}


def _trainer(asked: CheckSettings, limit: int | None) -> Trainer:
    """The program of the recipe, with the settings that the options change."""
    # LLaMA-Factory has no word for no limit.
    changed: dict[str, Json] = {"cutoff_len": limit or _NO_LIMIT, "max_length": limit}
    if asked.loss_from == "the option":
        of_all = asked.options.loss == "all"
        changed |= {"train_on_prompt": of_all, "loss_scale": "all" if of_all else None}
    return Trainer(asked.plan.program, {**asked.plan.settings, **changed})


def _by_trainer(encoder: Encoder | None) -> bool:
    return encoder is not None and bool(encoder.by_trainer)


def _prompt(plan: DataPlan, encoder: Encoder | None, shape: Shape) -> str:
    """The prompt that was assumed, if the trainer may write another one, or the trainer's own; else empty."""
    if encoder is None:
        return ""
    program, named = plan.program, plan.prompt
    if encoder.by_trainer:
        return f"the template {encoder.by_trainer} of {program}, as it is installed here"
    if not encoder.template or shape.format in _UNPROMPTED:
        return ""
    assumed = "assumed: the tokenizer's chat template"
    if not plan.stated:
        return f"{assumed}, as SFTTrainer applies it; no recipe says which program trains"
    is_own = named is None and program in _OF_THE_TOKENIZER  # they take the tokenizer's if none is named
    if program == "trl" or is_own or str(named).startswith("tokenizer_default"):
        return ""
    own = f"its own template {named!r}" if named else "the template that it has for the model"
    why = f"; it is installed and cannot be used: {encoder.refusal}" if encoder.refusal else ""
    also = "; it may add a system text" if program in {"llama-factory", "ms-swift"} else ""
    return f"{assumed}; {program} writes {own}{also}{why}"


def _unwritten(encoder: Encoder | None, roles: Mapping[str, Rows]) -> dict[str, Rows]:
    """The rows by the roles that the chat template leaves out."""
    if encoder is None or not encoder.template or not roles:
        return {}
    return {role: roles[role] for role in encoder.unwritten(roles)}


def _tokenizer(encoder: Encoder | None, shape: Shape, seen: Mapping[str, Rows]) -> dict[str, Any]:
    """The report's fields on the tokenizer and, if the rows are conversations, on the chat template."""
    if encoder is None:
        return {}
    fields: dict[str, Any] = {
        "tokenizer": encoder.name,
        "pad_is_end": encoder.pad_is_end,
        "has_processor": encoder.has_processor,
        "end_tokens": encoder.names(sorted(encoder.end_ids)),
    }
    if shape.format in _UNPROMPTED:
        return fields
    if encoder.by_trainer:
        fields["template"] = encoder.template_from
    elif encoder.template:
        fields["template"] = encoder.template_from
        fields["template_digest"] = "" if encoder.is_retemplated else template_digest(encoder.template)
        fields["template_marks_answers"] = encoder.marks_answers
        fields["template_tokens_split"] = encoder.split_controls()
        fields["encodes_arguments"] = bool(seen["arguments_text"].count) and encoder.encodes_arguments
        calls = seen["arguments_text"].count or seen["arguments_object"].count
        fields["calls_unwritten"] = bool(calls) and not encoder.writes_calls
        fields["parts_joined"] = bool(seen["parts"].count) and not encoder.takes_parts
    return fields


def installed_template(plan: DataPlan) -> Path | None:
    """The file of the program's own chat template, if the program is installed and keeps its templates in files."""
    spec = find_spec("axolotl") if plan.program == "axolotl" and plan.prompt else None  # only locates it
    if spec is None or spec.origin is None or plan.prompt is None:
        return None
    file = Path(spec.origin).parent / "utils" / "chat_templates" / "templates" / f"{Path(plan.prompt).name}.jinja"
    return file if file.is_file() else None


def _sample(count: int, samples: Samples, seed: int) -> set[int] | None:
    """The numbers of the rows to read; None for all rows."""
    if samples == "all" or samples >= count:
        return None
    return set(random.Random(seed).sample(range(1, count + 1), samples))  # noqa: S311  # rows, not a secret


def _shape_of(source: RowSource, task: str | None, standard: Callable[[Row], Row]) -> tuple[Shape, list[str]]:
    """The format of the first usable row, and its columns."""
    faults: list[str] = []
    for row in islice(source.rows(), _PEEK):
        if not isinstance(row, UnusableRow):
            try:
                return recognise(standard(row[1]), task), [*row[1]]
            except ConfigError as error:
                raise ConfigError(f"{source.path}: {error.message}", advice=error.advice) from None
        faults.append(f"row {row.number}: {row.reason}")
    raise ConfigError(f"{source.path}: no usable row at its beginning: {faults[0]}", advice="correct the rows")


def _limit(asked: CheckSettings, shape: Shape) -> tuple[int | None, list[str]]:
    if asked.options.max_length is not None:
        return asked.options.max_length or None, []
    if asked.masking.trl and shape.trainer != "classification":
        return TRL_LENGTH, [f"no length limit is given: TRL's default of {TRL_LENGTH} tokens"]
    return None, []


def _overlong(asked: CheckSettings, shape: Shape) -> Overlong:
    """What becomes of a row over the limit. TRL 1.16 keeps the end in DPO, and in SFT that does not pack; else none."""
    may_be_cut_left = shape.trainer == "dpo" or (shape.trainer == "sft" and not asked.options.packing)
    return "cut" if asked.masking.trl and not may_be_cut_left else asked.plan.overlong


def _eval_rows(place: Path, tokeniser: Tokeniser, asked: CheckSettings) -> EvalRows:
    source, rows = RowSource(place), EvalRows()
    shape, _ = _shape_of(source, asked.task or asked.plan.task, asked.plan.naming.standard)
    if shape.format != tokeniser.shape.format:
        raise ConfigError(
            f"{place}: rows of format {shape.format}, those of the training set of {tokeniser.shape.format}",
            advice="give both in one format",
        )

    def usable() -> Iterator[tuple[int, Columns]]:
        for example in tokeniser.examples(source.rows()):
            if not isinstance(example, UnusableRow):
                yield example

    rows.read(usable())
    return rows


def _notes(shape: Shape, masking: Masking) -> list[str]:
    rows = []
    if shape.format == "instruction":
        rows.append("an instruction is written as a user's message with its input, the output as the answer")
        rows += [f"columns that are not read: {few(shape.unread)}"] if shape.unread else []
    if shape.format == "sharegpt" and masking.trl and masking.loss == "assistant":
        rows.append("SFTTrainer takes the assistant's loss on a column messages: rename conversations")
    if shape.format == "segments" and masking.trl:
        rows.append("segments are read as Axolotl's type input_output reads them; TRL does not read them")
    if not masking.trl:
        rows.append(f"{masking.by} masks by turn: its masks are rebuilt from the chat template, turn by turn")
    return rows


def _images(found: RowCounts, encoder: Encoder | None) -> list[str]:
    counted, left = found.tokens.images, found.seen["media"].count
    notes = []
    if counted and encoder is not None and isinstance(encoder.pictures, Pictures):
        notes = [f"images take {counted:,} tokens, as {encoder.pictures.name} counts them"]
    if left:
        why = f" ({encoder.pictures})" if encoder is not None and isinstance(encoder.pictures, str) else ""
        notes.append(f"{left:,} rows hold images, videos or sounds: their tokens are not counted{why}")
    return notes


def _loss_mode(shape: Shape, masking: Masking) -> LossMode:
    if shape.trainer in {"reward", "classification", "grpo", "prm"}:
        return "none"
    if shape.trainer in {"dpo", "kto"}:
        return "completion"
    pairs = shape.format in {"prompt-completion", "instruction", "segments"}
    return masking.loss or ("completion" if pairs else "all")


class CheckDataKeywords(DataKeywords, CheckKeywords, total=False):
    """`DataOptions` and `CheckOptions` as keywords."""

    config: ConfigSnapshot | Mapping[str, Any] | None


def check_data(
    data: Place | None = None,
    *,
    options: DataOptions = _DEFAULTS,
    check: CheckOptions = _NO_CONFIG,
    progress: Progress | None = None,
    **keywords: Unpack[CheckDataKeywords],
) -> CheckReport:
    """Check a data set by the rules, tokenised as its trainer would; and a configuration, if one is given.

    Without a tokenizer rows are read as text: what needs tokens is not judged, and nothing is said of lengths.

    Missing options are taken from the recipe in `training` or `document` (TRL, Axolotl, LLaMA-Factory, torchtune).

    Args:
        data: the data set, as in `DataOptions`; None or `recipe`: the one that the recipe names.
        options: the data set, and how its trainer tokenises it. A tokenizer may also be organisation/name in the hub's
            local cache; without one, one beside the adapter or the base is taken.
        check: a configuration and the rules, as for `check_config`; the base's config.json says how many classes it
            has, and the task `reward` reads preferences as RewardTrainer does.
        progress: is called now and then with the rows read and the rows to read.
        keywords: single options of both records by name, such as `loss="all"`; they win over the records.

    Raises:
        ConfigError: a file cannot be read, is of no known format, or its rows need an option that was not given; or an
            option is out of its range.
        AdapterError: the base cannot be read.
        TypeError: no option has such a name.
    """
    of_data = {name: value for name, value in keywords.items() if name in DataKeywords.__annotations__}
    options = options.completed(of_data)
    given = check.completed({name: value for name, value in keywords.items() if name not in of_data})
    data = options.data if data is None else data
    ids = [*IDS, *(rule.id for rule in DATA_RULES)]
    unwanted = given.unwanted(ids)
    whole = given.read()
    plan = _plan(given.training, given.document)
    train = plan.train if data is None or str(data) == RECIPE else Path(data)
    if train is None:
        why = f": {plan.notes[-1]}" if plan.notes else ""
        raise ConfigError(f"no data: the recipe names no data set below its folder{why}", advice="give --data FILE")
    folders = [*given.folders, *([] if given.base is None else [Path(given.base)])]
    loss_from = "the option" if options.loss else "the recipe" if plan.loss else "the trainer's default"
    completed = replace(
        options,
        eval_data=options.eval_data or plan.evaluation,
        loss=options.loss or plan.loss,
        max_length=_length(options.max_length, plan, whole.config),
        packing=plan.packing if options.packing is None else options.packing,
        tokenizer=options.tokenizer or plan.tokenizer or _beside(folders),
        template=options.template or plan.template,
        num_labels=options.num_labels or _classes(whole.config, given.base),
    )
    batch_size = whole.config.training.batch_size
    report = measure_data(CheckSettings(completed, train, plan, loss_from, given.task, batch_size, progress))
    of_config = {rule_id: why for rule_id, why in unwanted.items() if rule_id in _CONFIG_IDS}
    checked = CheckReport(schema=CHECK_SCHEMA_ID, config=ConfigSnapshot())
    if whole.config != ConfigSnapshot():
        known, by_data = _with_data(whole, report), replace(given, task=given.task or report.trainer)
        checked = judged(known, by_data, unwanted=of_config, around=when_of(whole, given.stated))
        checked = with_files(checked, given, whole, unwanted, rows=_rows(train, plan))
    return _joined(checked, report, unwanted)


def _rows(train: Path, plan: DataPlan) -> PromptLink:
    """What the first rows say of the prompt: the system text that all begin with, and the form of their text."""
    read = [row[1] for row in islice(RowSource(train).rows(), _BEGINNING) if not isinstance(row, UnusableRow)]
    texts = {_system_of(plan.naming.standard(columns)) for columns in read}
    where = f"the first {len(read)} rows of {train.name}"
    written = [str(columns.get("text") or "") for columns in read]
    return PromptLink(
        "rows",
        where,
        template=written[0] if len({form_in(text) for text in written}) == 1 < len(read) else None,
        system=texts.pop() if len(texts) == 1 < len(read) else None,
    )


def _system_of(row: Row) -> str:
    """The system text of a row; empty if it has none, or is no conversation."""
    stated, name = row.get("system"), next((name for name in _TURNS if isinstance(row.get(name), list)), "")
    with suppress(Unusable):
        turn = {"role": "system", "content": stated} if isinstance(stated, str) else conversation(row, name)[0]
        stated = content_of(turn) if turn["role"] == "system" else ""
    return stated.strip() if isinstance(stated, str) else ""


def _joined(base: CheckReport, data: DataReport, unwanted: Mapping[str, str]) -> CheckReport:
    """The report on the configuration joined with the report on its data."""
    verdict = judge([rule for rule in DATA_RULES if rule.id not in unwanted], data)
    left_out = [NotRun(id=rule.id, reason=unwanted[rule.id]) for rule in DATA_RULES if rule.id in unwanted]
    not_run = [*base.not_run, *verdict.not_run, *left_out]
    judged_here = len(DATA_RULES) - len({item.id for item in (*verdict.not_run, *left_out)})
    rules_judged = float(base.derived.get("rules_judged") or 0) + judged_here
    named = (("data", data.path), ("eval data", data.eval_path))
    return msgspec.structs.replace(
        base,
        sources=[*base.sources, *(InputFile(role=role, path=path) for role, path in named if path is not None)],
        derived={**base.derived, **_derived(base, data), "rules_judged": rules_judged},
        findings=by_severity([*verdict.findings, *base.findings]),
        not_run=not_run,
        data=data,
    )


def _derived(base: CheckReport, data: DataReport) -> dict[str, Real]:
    """Tokens and steps per epoch; if the adapter's parameters were counted, also tokens per parameter."""
    counts: dict[str, Real] = {}
    if data.sequences:
        counts["tokens_per_epoch"] = _per_epoch(data, data.tokens.kept)
    if data.sequences and data.trainer in {"sft", "dpo", "kto"}:
        counts["supervised_tokens_per_epoch"] = _per_epoch(data, data.tokens.supervised)
    batch = base.derived.get("effective_batch")
    if isinstance(batch, float) and batch >= 1 and (examples := _examples(data)):
        counts["steps_per_epoch"] = -(-examples // int(batch))
    size = None if base.coverage is None else base.coverage.lora_params
    if size and data.sequences:
        counts["tokens_per_parameter"] = real(_per_epoch(data, data.tokens.kept) / size)
    return counts


def _per_epoch(data: DataReport, tokens: int) -> int:
    """Tokens of all rows, extrapolated from those of the rows read."""
    # Rows are drawn at random, so those that were read stand for all.
    return round(tokens * data.rows / data.rows_read) if data.rows_read else 0


def _examples(data: DataReport) -> int | None:
    """Examples per epoch: rows, or packed sequences, which nobody knows without a tokenizer."""
    if data.packing and not data.sequences:
        return None
    packed = data.batching.packed_sequences
    return max(1, _per_epoch(data, packed)) if data.packing and packed else data.rows


def _with_data(whole: Layer, data: DataReport) -> Layer:
    """The configuration with the number of examples and tokens of its data."""
    training = whole.config.training
    counted: dict[str, Json] = {} if (examples := _examples(data)) is None else {"train_examples": examples}
    if data.sequences:
        counted |= {"train_tokens": _per_epoch(data, data.tokens.kept), "length_p99": data.lengths.p99}
    changed = msgspec.structs.replace(
        training, extras={**training.extras, **counted}, max_length=training.max_length or data.max_length
    )
    return msgspec.structs.replace(whole, config=msgspec.structs.replace(whole.config, training=changed))


def _plan(training: Place | Settings | None, document: Place | None) -> DataPlan:
    for place in (training, document):
        if place is not None and not isinstance(place, SETTINGS):
            return read_data_plan(Path(place))
    return DataPlan()


def _length(given: int | None, plan: DataPlan, config: ConfigSnapshot) -> int | None:
    """Tokens per sequence: the given number, else the recipe's, else the configuration's; 0, or less, for no limit."""
    length = next((n for n in (given, plan.max_length, config.training.max_length) if n is not None), None)
    return None if length is None else max(0, length)


def _beside(folders: Iterable[Path]) -> Path | None:
    """The first folder with a tokenizer in it."""
    return next((folder for folder in folders if any((folder / name).is_file() for name in _TOKENIZER)), None)


def _classes(config: ConfigSnapshot, base: Place | None) -> int | None:
    if config.num_labels is not None or base is None or not (Path(base) / "config.json").is_file():
        return config.num_labels
    return read_labels(Path(base) / "config.json").config.num_labels
