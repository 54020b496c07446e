"""The verb ``check --data``: a data set, tokenised as its trainer would, to a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from gradience.configs import HasToDict, Layer
from gradience.configs.data import DataPlan, read_data_plan
from gradience.configs.peft import read_labels
from gradience.data.measure import Limits
from gradience.errors import ConfigError
from gradience.rules.config.judge import RULES
from gradience.rules.data.judge import DATA_RULES
from gradience.rules.rule import judge
from gradience.rules.select import excluded_rules
from gradience.schema.config import ConfigSnapshot
from gradience.schema.data import DataReport
from gradience.schema.findings import NotRun, by_severity
from gradience.schema.reports import CHECK_SCHEMA_ID, CheckReport, SourceFile
from gradience.schema.scalars import Json, Real, real
from gradience.verbs.check.config import Place, judged, read_layers
from gradience.verbs.check.dataset import Asked, Samples, measure_data

SAMPLES: Final = 10_000  # rows of a quick look: a share of 1 % is then known to 0.1 percentage points
RECIPE: Final = "recipe"  # in place of a path: the data set that the training recipe names
_BATCH: Final = 8  # per_device_train_batch_size of transformers, where it is not set
_CONFIG_IDS: Final = tuple(rule.id for rule in RULES)
_TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json")


def check_data(
    data: Place | None = None,
    *,
    eval_data: Place | None = None,
    tokenizer: Place | None = None,
    max_length: int | None = None,
    loss: Literal["assistant", "completion", "all"] | None = None,
    template: Place | None = None,
    packing: bool | None = None,
    samples: Samples = SAMPLES,
    seed: int = 0,
    show_rows: bool = False,
    config: ConfigSnapshot | None = None,
    document: Place | None = None,
    peft_dir: Place | None = None,
    training_dir: Place | None = None,
    peft: Place | HasToDict | None = None,
    training: Place | HasToDict | None = None,
    overrides: ConfigSnapshot | None = None,
    base: Place | None = None,
    task: str | None = None,
    serve: Iterable[str] = (),
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    settings: Place | None = None,
) -> CheckReport:
    """The findings of the rules on a data set, tokenised as its trainer would; and on a configuration, if one is given.

    What is not given is taken from the recipe in `training` or `document` (TRL, Axolotl, LLaMA-Factory, torchtune).

    Args:
        data: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder of such files or of `save_to_disk`; None or
            `recipe`: the data set that the recipe names.
        eval_data: the evaluation set, for overlap.
        tokenizer: its folder, or organisation/name in the hub's local cache; else one beside the adapter or the base.
        max_length: tokens per sequence; 0 for no limit. Else the recipe's, else TRL's default of 1024 for its trainers.
        loss: on the assistant's turns, on completions, or on all tokens; else the trainer's default for the format.
        template: a file with a chat template, instead of the tokenizer's.
        packing: whether sequences are packed.
        samples: rows to read, drawn with the seed; `all` for every row.
        seed: of the sample.
        show_rows: put the text of rows that a finding names into the report.
        config: a configuration, as of `check_config`, like the arguments that follow it.
        document: one file of any shape, or the folder a run left.
        peft_dir: a folder with an adapter config.
        training_dir: a folder with training arguments.
        peft: an adapter config.
        training: training arguments or a recipe.
        overrides: a Struct that wins over all of these.
        base: the base model; its config.json says how many classes it has.
        task: what is trained: `reward` reads preferences as RewardTrainer does.
        serve: engines the adapter is meant for.
        select: ids of rules, or beginnings of ids, to apply; all by default.
        ignore: ids of rules, or beginnings of ids, to leave out.
        settings: a gradience.toml, or a pyproject.toml with `[tool.gradience]`.

    Raises:
        ConfigError: a file cannot be read, is of no known format, or its rows need what was not given.
        AdapterError: the base cannot be read.
    """
    ids = [*_CONFIG_IDS, *(rule.id for rule in DATA_RULES)]
    unwanted = excluded_rules(ids, select=select, ignore=ignore, settings=settings)
    whole = read_layers(
        config=config,
        document=document,
        peft_dir=peft_dir,
        training_dir=training_dir,
        peft=peft,
        training=training,
        overrides=overrides,
    )
    plan = _plan(training, document)
    train = plan.train if data is None or str(data) == RECIPE else Path(data)
    if train is None:
        raise ConfigError("no data: the recipe names no data set that is found here", advice="give --data FILE")
    folders = [Path(place) for place in (document, peft_dir, training_dir, base) if place is not None]
    report = measure_data(
        Asked(
            plan=plan,
            train=train,
            evaluation=_path(eval_data) or plan.evaluation,
            loss=loss or plan.loss,
            loss_from="the option" if loss else "the recipe" if plan.loss else "the trainer's default",
            max_length=_length(max_length, plan, whole.config),
            packing=bool(plan.packing) if packing is None else packing,
            tokenizer=_path(tokenizer) or plan.tokenizer or _beside(folders),
            template=_path(template) or plan.template,
            samples=samples,
            task=task,
            limits=Limits(
                batch_size=whole.config.training.batch_size or _BATCH,
                num_labels=_classes(whole.config, base),
                seed=seed,
                show_rows=show_rows,
            ),
        )
    )
    of_config = {rule_id: why for rule_id, why in unwanted.items() if rule_id in _CONFIG_IDS}
    found = CheckReport(schema=CHECK_SCHEMA_ID, config=ConfigSnapshot())
    if whole.config != ConfigSnapshot():
        known, named = _with_data(whole, report), task or report.trainer
        found = judged(known, folders, base=base, task=named, serve=serve, settings=settings, unwanted=of_config)
    return _joined(found, report, unwanted)


def _joined(base: CheckReport, data: DataReport, unwanted: Mapping[str, str]) -> CheckReport:
    """The report on the configuration with that on its data."""
    verdict = judge([rule for rule in DATA_RULES if rule.id not in unwanted], data)
    left_out = [NotRun(id=rule.id, reason=unwanted[rule.id]) for rule in DATA_RULES if rule.id in unwanted]
    not_run = [*base.not_run, *verdict.not_run, *left_out]
    judged_here = len(DATA_RULES) - len({item.id for item in (*verdict.not_run, *left_out)})
    rules_judged = float(base.derived.get("rules_judged") or 0) + judged_here
    named = (("data", data.path), ("eval data", data.eval_path))
    return msgspec.structs.replace(
        base,
        sources=[*base.sources, *(SourceFile(role=role, path=path) for role, path in named if path is not None)],
        derived={**base.derived, **_derived(base, data), "rules_judged": rules_judged},
        findings=by_severity([*verdict.findings, *base.findings]),
        not_run=not_run,
        data=data,
    )


def _derived(base: CheckReport, data: DataReport) -> dict[str, Real]:
    """Tokens of an epoch and its steps; with an adapter that was counted, tokens for each of its parameters."""
    found: dict[str, Real] = {"tokens_per_epoch": _per_epoch(data, data.tokens.kept)}
    if data.trainer in {"sft", "dpo", "kto"}:
        found["supervised_tokens_per_epoch"] = _per_epoch(data, data.tokens.supervised)
    batch = base.derived.get("effective_batch")
    if isinstance(batch, float) and batch >= 1:
        found["steps_per_epoch"] = -(-_examples(data) // int(batch))
    size = None if base.coverage is None else base.coverage.lora_params
    if size:
        found["tokens_per_parameter"] = real(_per_epoch(data, data.tokens.kept) / size)
    return found


def _per_epoch(data: DataReport, tokens: int) -> int:
    """Tokens of all rows, by those of a sample."""
    return round(tokens * data.rows / data.rows_read) if data.rows_read else 0


def _examples(data: DataReport) -> int:
    """Examples of an epoch: rows, or sequences that packing makes."""
    packed = data.batching.packed_sequences
    return max(1, _per_epoch(data, packed)) if data.packing and packed else data.rows


def _with_data(whole: Layer, data: DataReport) -> Layer:
    """The configuration with what was counted in its data."""
    training = whole.config.training
    counted: dict[str, Json] = {"train_examples": _examples(data), "train_tokens": _per_epoch(data, data.tokens.kept)}
    changed = msgspec.structs.replace(
        training, extras={**training.extras, **counted}, max_length=training.max_length or data.max_length
    )
    return msgspec.structs.replace(whole, config=msgspec.structs.replace(whole.config, training=changed))


def _plan(training: Place | HasToDict | None, document: Place | None) -> DataPlan:
    for place in (training, document):
        if place is not None and not isinstance(place, HasToDict):
            return read_data_plan(Path(place))
    return DataPlan()


def _length(given: int | None, plan: DataPlan, config: ConfigSnapshot) -> int | None:
    """Tokens per sequence: as given, else the recipe's, else the configuration's; 0 for no limit."""
    length = next((n for n in (given, plan.max_length, config.training.max_length) if n is not None), None)
    if length is not None and length < 0:
        raise ConfigError(f"--max-length: expected tokens, 0 for no limit, got {length}", advice="correct the option")
    return length


def _beside(folders: Iterable[Path]) -> Path | None:
    """The first folder with a tokenizer in it."""
    return next((folder for folder in folders if any((folder / name).is_file() for name in _TOKENIZER)), None)


def _path(place: Place | None) -> Path | None:
    return None if place is None else Path(place)


def _classes(config: ConfigSnapshot, base: Place | None) -> int | None:
    if config.num_labels is not None or base is None or not (Path(base) / "config.json").is_file():
        return config.num_labels
    return read_labels(Path(base) / "config.json").config.num_labels
