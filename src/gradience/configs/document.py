"""Read a configuration from one file: a document that the user wrote, or a config that was saved beside weights.

A document may be canonical, flat, or a mixture, because a section is only a scope. The canonical shape is that of
``ConfigSnapshot``, as in a log's ``run_start``, also wrapped as ``config``. A flat document has one level of keys under
the names people use. Recipes of MLX-LM, torchtune, Axolotl, LLaMA-Factory and verl are recognised by their keys and
read by their own names. Configs beside weights are `adapter_config.json` (PEFT or MLX-LM) and a model's `config.json`.

A recipe also has data settings: files, template, cutoff, loss mode, packing. Their names come from TRL 1.16 (SFTConfig;
scripts/sft.py), Axolotl (docs/dataset-formats), LLaMA-Factory (hparams/data_args.py, data/parser.py) and torchtune
(datasets/_sft.py). A data set name that is not a local file is taken for one on the hub, and is not looked up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from gradience.configs.files import MAX_JSON_BYTES, HasToDict, plain_mapping, read_bytes, read_mapping
from gradience.configs.recipes import RECIPES, is_axolotl, is_llama_factory, is_mlx, is_torchtune, read_mlx_fields
from gradience.configs.rewards import columns_needed
from gradience.configs.settings import (
    LORA,
    OF_ANY_METHOD,
    OPTIMIZER,
    RUN,
    TRAINING,
    Draft,
    Layer,
    Setting,
    knows_lora,
    knows_training,
    layer_of,
    maybe,
)
from gradience.configs.training import PICKLED, fields_in, note_training, output_dir, read_training, training_in
from gradience.configs.values import Fields, Malformed, short_name, text
from gradience.errors import ConfigError
from gradience.io.reading import real_path
from gradience.names import NAMES, Level
from gradience.schema import Json
from gradience.schema.events import ConfigSnapshot
from gradience.schema.reports import InputFile, Overlong

CONFIG_NAME = "adapter_config.json"

_VARIANTS = ("use_bdlora", "use_qalora", "kasa_config", "monteclora_config", "velora_config", "arrow_config")
_TABLES: Final[dict[Level, tuple[Setting, ...]]] = {"optimizer": OPTIMIZER, "lora": LORA, "training": TRAINING}
_OF_A_MODEL = ("name_or_path", "name", "base_model_name_or_path", "base_model")  # the first is what is trained
_OBJECTIVES = ("sft", "dpo", "orpo", "kto", "simpo", "cpo", "grpo", "rloo", "ppo")  # sections of a file
_BARE_NAME = "name"  # names the optimizer inside the optimizer section only: at the top it names something else
# Fields of our own snapshots, as a log's run_start has them: known, and not read.
_COMPUTED = {"alpha_over_r", "extras"}
_ENVELOPE = {"schema", "ts", "run_id", "event", "step", "seq", "session", "meta", "resumed_from_step"}

MODEL_CONFIG = "config.json"
_DEFAULT_LABELS: Final = 2  # of transformers' PretrainedConfig
_NO_ONE_CLASS: Final = {"regression", "multi_label_classification"}  # equal odds are not one over the labels
_HEAD = "Classification"  # ends the name of every transformers class with a classifier head

_Mapping = dict[str, Json]
KEEPS_OVERFLOW: Final = frozenset({"wrapped", "bfd_split", "bfd-requeue"})  # TRL 1.16, pack_dataset: no token is lost
_EXCESS: Final[dict[str, Overlong]] = {"truncate": "cut", "raise": "refused"}  # Axolotl, utils/data/utils.py
_INFO: Final = "dataset_info.json"
_WANDB: Final = "_wandb"  # a key of every config.yaml that wandb writes


def read_peft_dir(folder: Path) -> Layer:
    """Read the adapter config of a folder that PEFT (or MLX-LM) saved."""
    if folder.is_file():
        raise ConfigError(f"{folder}: a file, where a folder was expected", advice="use --peft for a file")
    path = folder / CONFIG_NAME
    if not folder.is_dir() or not path.exists():
        raise ConfigError(_missing(folder), advice=_where_else(folder))
    return read_peft(path)


def read_peft(path: Path) -> Layer:
    """Read one adapter config; ConfigError if it is not one."""
    return peft_in(path, read_mapping(path))


def peft_in(path: Path, mapping: dict[str, Json]) -> Layer:
    """The settings in the mapping of an adapter config; ConfigError if it is not one."""
    return _read_mapping(mapping, str(path))


def read_arguments(path: Path) -> Layer:
    """Read a file of training arguments, or a recipe, which holds them beside its other settings.

    Raises:
        ConfigError: it is neither.
    """
    return arguments_in(path, fields_in(path, read_bytes(path, MAX_JSON_BYTES)))


def arguments_in(path: Path, mapping: dict[str, Json]) -> Layer:
    """The training arguments, or the recipe, in the mapping of a file; ConfigError if it is neither."""
    fields = Fields(mapping, str(path))
    is_recipe = path.suffix not in PICKLED and any(fits(fields) for fits, _ in RECIPES)
    return _read_any(mapping, str(path)) if is_recipe else training_in(path, mapping)


def read_peft_object(config: HasToDict | Mapping[str, Any]) -> Layer:
    """Read a `peft.LoraConfig`, or a mapping of its settings; ConfigError if it is not one."""
    return _read_mapping(plain_mapping(config), type(config).__name__)


def _read_mapping(mapping: dict[str, Json], where: str) -> Layer:
    fields, draft = Fields(mapping, where), Draft()
    unknown = read_mlx_fields(fields, draft) if is_mlx(mapping) else _read_native(fields, draft)
    if not fields.n_read:
        message = f"{where}: no setting of an adapter in it"
        raise ConfigError(message, advice=f"give PEFT's {CONFIG_NAME}; training arguments go to --training")
    return layer_of(draft, InputFile(role="adapter", path=where), [fields], unknown=unknown)


def _read_native(fields: Fields, draft: Draft) -> list[str]:
    draft.read("run", RUN, fields, loose=False)
    draft.read("lora", OF_ANY_METHOD, fields, loose=False)
    if draft.get("lora", "peft_type") not in {None, "LORA"}:
        return []  # another method: its settings are not LoRA's, even if they share a name
    draft.read("lora", LORA, fields, loose=False)
    note_adapter(fields, draft)
    return list(fields.left_over(knows_lora))


def note_adapter(fields: Fields, draft: Draft) -> None:
    """Add to the extras: null targets, variants in use, a trained lora bias, aLoRA, the base model's class and type."""
    if fields.is_null("target_modules"):
        draft.set("lora", "target_modules_null", value=True, extra=True)
    variants = [key for key in _VARIANTS if fields.take([key], bool)]
    if variants:
        draft.set("lora", "variants", variants, extra=True)
    if fields.take(["lora_bias"], maybe):  # a word is a file's own name for the mode of the biases
        draft.set("lora", "lora_bias", value=True, extra=True)
    if fields.take(["alora_invocation_tokens"], bool):
        draft.set("lora", "alora_invocation_tokens", value=True, extra=True)
    for name, value in (fields.take(["auto_mapping"], _base_class) or {}).items():
        draft.set("lora", name, value, extra=True)


def _base_class(value: Json) -> dict[str, str]:
    """The class of the base, and its model type by the folder of transformers that the class is in."""
    if not isinstance(value, dict):
        raise Malformed("a mapping")
    name, library = value.get("base_model_class"), value.get("parent_library")
    kind = re.match(r"transformers\.models\.(\w+)\.", library) if isinstance(library, str) else None
    mapping = {"base_model_class": "" if name is None else text(name), "base_model_type": kind[1] if kind else ""}
    return {key: value for key, value in mapping.items() if value}


def _missing(folder: Path) -> str:
    return f"{folder}: no {CONFIG_NAME} in it" if folder.is_dir() else f"{folder}: no such folder"


def _where_else(folder: Path) -> str:
    configs = sorted(folder.glob(f"*/{CONFIG_NAME}")) if folder.is_dir() else []
    if configs:
        return f"there is one in {configs[-1].parent}: give that folder"
    return "give the folder where PEFT's save_pretrained wrote"


def read_labels(path: Path) -> Layer:
    """Read the number of classes from a model's config.json. The layer is empty if the model is not a classifier.

    Raises:
        ConfigError: the file cannot be read.
    """
    return labels_in(path, read_mapping(path))


def labels_in(path: Path, model: dict[str, Json]) -> Layer:
    """The same, of the mapping of a model's config.json."""
    classes, labels = model.get("architectures"), model.get("id2label")
    named = isinstance(classes, list) and any(str(name).endswith(_HEAD) for name in classes)
    # One label is a number: of a regression, or of a reward model. transformers leaves out what is its default: two.
    count = len(labels) if isinstance(labels, dict) else _DEFAULT_LABELS
    if not named or count < _DEFAULT_LABELS or model.get("problem_type") in _NO_ONE_CLASS:
        return Layer()
    return Layer(config=ConfigSnapshot(num_labels=count), sources=(InputFile(role="model", path=str(path)),))


def read_document(path: Path) -> Layer:
    """Read a configuration of any shape; ConfigError if none of its keys is a setting."""
    if path.suffix in PICKLED:
        return read_training(path)
    if path.name.endswith("_results.json"):
        raise ConfigError(f"{path} is the summary of a run, not its settings", advice=f"give the folder, {path.parent}")
    return _read_any(read_mapping(path), str(path))


def read_settings(settings: Mapping[str, Any], where: str = "") -> Layer:
    """Read settings of any shape, as a file would have them; ConfigError, at `where`, if none of them is known."""
    return _read_any(plain_mapping(settings), where or type(settings).__name__)


def _read_any(mapping: dict[str, Json], where: str) -> Layer:
    recorded = _WANDB in mapping
    outer = Fields(_unwrapped(mapping) if recorded else mapping, where)
    wrapped = outer.section("config")
    draft = Draft()
    levels, unknown = _read_levels(wrapped or outer, draft)
    if wrapped is not None:
        unknown += outer.left_over(_ENVELOPE.__contains__)
        levels.append(outer)
    if draft.is_empty:
        message = f"{where}: no setting this program knows in it"
        raise ConfigError(message, advice="give keys such as lr, r, lora_alpha, target_modules, max_steps")
    if recorded:
        unknown = []  # the model's config and the logger's own keys are among them
    if is_ms_swift(mapping) and draft.get("lora", "target_modules") == ["all-linear"]:
        draft.set("lora", "target_modules", "all-linear")  # ms-swift takes the word in a list, too
    place = next((folder for item in levels if (folder := output_dir(item))), None)
    layer = layer_of(draft, InputFile(role="config", path=where), levels, unknown=unknown, output_dir=place)
    return msgspec.structs.replace(layer, log="wandb recorded it") if recorded else layer


def _unwrapped(mapping: _Mapping) -> _Mapping:
    """The plain settings of a config.yaml of wandb, which holds each as `{desc, value}`."""
    items = ((key, item.get("value")) for key, item in mapping.items() if isinstance(item, dict))
    return {key: value for key, value in items if key != _WANDB}


def _read_levels(fields: Fields, draft: Draft) -> tuple[list[Fields], list[str]]:
    """Read every level into the draft; return the levels, and the keys nobody knows."""
    for fits, read in RECIPES:
        if fits(fields):
            return [fields], read(fields, draft)
    sections = list(_sections(fields, draft))
    unknown = _read_flat(fields, draft)
    return [fields, *sections], unknown + [key for item in sections for key in item.left_over(_known)]


def _sections(fields: Fields, draft: Draft) -> Iterator[Fields]:
    for key, level in NAMES.sections.items():
        section = fields.section(key)
        if section is not None:
            yield section
            yield from _read_section(section, draft, level, _TABLES[level])
    named = next((key for key in _OF_A_MODEL if fields.holds("model", key)), None)
    if named is not None and (section := fields.section("model")) is not None:
        draft.read("run", (Setting("model_name", short_name, (named,)),), section, loose=False)
        yield section
    objectives = [key for key in _OBJECTIVES if fields.is_mapping(key)]
    if len(objectives) == 1:  # a file of several stages does not say which one is meant
        yield from _read_objective(objectives[0], fields, draft)
    yield from _read_extras(fields, draft, "run")


def _read_objective(objective: str, fields: Fields, draft: Draft) -> Iterator[Fields]:
    """Read the section named after an objective; it holds the training settings if no other section does."""
    others = any(fields.is_mapping(key) for key, level in NAMES.sections.items() if level == "training")
    section = None if others else fields.section(objective)
    if section is not None:
        yield section
        yield from _sections(section, draft)
        yield from _read_section(section, draft, "training", TRAINING)
    if others or not draft.is_empty:
        draft.set("run", "task", objective, extra=True)


def _read_section(section: Fields, draft: Draft, level: Level, settings: tuple[Setting, ...]) -> Iterator[Fields]:
    draft.read(level, settings, section, loose=True)
    if level == "lora":
        note_adapter(section, draft)
    if level == "training":
        draft.read("optimizer", _without_bare_name(), section, loose=True)
        note_training(section, draft)
    yield from _read_extras(section, draft, level)


def _read_extras(fields: Fields, draft: Draft, level: Level) -> Iterator[Fields]:
    extras = fields.section("extras")
    if extras is not None:
        draft.keep(level, extras.scalars())
        yield extras


def _read_flat(fields: Fields, draft: Draft) -> list[str]:
    draft.read("run", RUN, fields, loose=True)
    draft.read("optimizer", _without_bare_name(fields), fields, loose=True)
    draft.read("lora", LORA, fields, loose=True)
    if draft.get("lora", "r") == 0 and "lora_rank" in fields:  # verl's word for no adapter; PEFT's r of 0 is an error
        draft.forget("lora")
    draft.read("training", TRAINING, fields, loose=True)
    note_adapter(fields, draft)
    note_training(fields, draft)
    if draft.get("lora", "peft_type") not in {None, "LORA"}:
        return []  # the keys left belong to another PEFT method: they are not LoRA settings, and not misspelt ones
    return list(fields.left_over(_known))


def _without_bare_name(fields: Fields | None = None) -> tuple[Setting, ...]:
    sections = {key for key in ("optimizer", "optim") if fields is not None and fields.is_mapping(key)}
    dropped = {_BARE_NAME, *sections}
    return tuple(
        item._replace(native=_without(item.native, dropped), loose=_without(item.loose, dropped)) for item in OPTIMIZER
    )


def _without(names: tuple[str, ...], dropped: set[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in dropped)


def _known(key: str) -> bool:
    return key in _COMPUTED or key in _ENVELOPE or knows_lora(key) or knows_training(key)


class Naming(NamedTuple):
    """A recipe's own names, each with the standard one."""

    columns: Mapping[str, str] = {}
    keys: Mapping[str, str] = {}
    """Of a turn: the keys of its role and its content."""
    roles: Mapping[str, str] = {}

    def standard(self, row: _Mapping) -> _Mapping:
        """The row under standard names."""
        if not (self.columns or self.keys or self.roles):
            return row
        return {self.columns.get(name, name): self._turns(value) for name, value in row.items()}

    def _turns(self, value: Json) -> Json:
        if isinstance(value, dict) and self.keys:
            return self._turn(value)
        return (
            [self._turn(one) if isinstance(one, dict) else one for one in value] if isinstance(value, list) else value
        )

    def _turn(self, turn: _Mapping) -> _Mapping:
        renamed = {self.keys.get(key, key): value for key, value in turn.items()}
        for key in ("role", "from"):
            if isinstance(renamed.get(key), str):
                renamed[key] = self.roles.get(renamed[key], renamed[key])
        return renamed


LossOn: TypeAlias = Literal["assistant", "completion", "all"]
"""The tokens that a loss on tokens is computed on."""


class DataPlan(NamedTuple):
    """The data settings of a recipe. A setting that the recipe does not state is None."""

    program: Literal["trl", "axolotl", "llama-factory", "mlx-lm", "ms-swift", "torchtune"] = "trl"
    train: Path | None = None
    evaluation: Path | None = None
    tokenizer: Path | None = None
    template: Path | None = None
    max_length: int | None = None
    packing: bool | None = None
    loss: LossOn | None = None
    notes: tuple[str, ...] = ()
    stated: bool = False
    """A recipe or training arguments were read; otherwise TRL is assumed."""
    keeps_overflow: bool = False
    """Packing puts what is beyond the limit into the next sequence."""
    pads: bool = True
    """Batches of rows of any length are padded: they are not sorted by length, and not joined without padding."""
    naming: Naming = Naming()
    prompt: str | None = None
    """The program's own name of the prompt template."""
    overlong: Overlong = "cut"
    """What becomes of a row over the limit."""
    task: str | None = None
    """The stage of training, by the program's own name."""
    settings: Mapping[str, Json] = {}
    """The whole recipe, for the program's own preparation of rows."""
    rewards: Mapping[str, tuple[str, ...]] = {}
    """The columns that each reward function needs."""
    unread_length: int | None = None
    """A limit that is stated under max_seq_length alone, a name that TRL no longer reads."""
    weights: tuple[float, float] = (1.0, 1.0)
    """KTO's weights of wanted and of unwanted answers."""


def read_data_plan(path: Path, fields: dict[str, Json] | None = None) -> DataPlan:
    """The data settings of a recipe or of training arguments, of which the fields may have been read.

    A recipe may be a stranger's: of the files that it names, only those below its own folder are taken.

    Raises:
        ConfigError: the file cannot be read.
    """
    if path.suffix in PICKLED or path.is_dir():
        return DataPlan()
    mapping = read_mapping(path) if fields is None else fields
    places = (path.parent, Path.cwd())
    read = next((read for fits, read in _PROGRAMS if fits(mapping)), _trl)
    # transformers 5 has train_sampling_strategy in place of group_by_length.
    sorted_by_length = mapping.get("group_by_length") is True or "length" in str(mapping.get("train_sampling_strategy"))
    padded = not sorted_by_length and mapping.get("padding_free") is not True
    plan = read(mapping, places)._replace(stated=True, pads=padded)
    if mapping.get("reward_funcs"):
        rewards = columns_needed(mapping["reward_funcs"], path.parent)
        plan = plan._replace(task=plan.task or "grpo", rewards=rewards)
    return _below(plan, real_path(path.parent))


def _below(plan: DataPlan, folder: Path) -> DataPlan:
    """The plan without the files that are outside of a folder, which its notes name."""
    outside: list[str] = []

    def inside(place: Path | None) -> Path | None:
        if place is None or real_path(place).is_relative_to(folder):
            return place
        outside.append(f"{place}: named by the recipe, and outside of its folder: name it yourself")
        return None

    train, evaluation, template = inside(plan.train), inside(plan.evaluation), inside(plan.template)
    return plan._replace(train=train, evaluation=evaluation, template=template, notes=(*plan.notes, *outside))


def _trl(mapping: _Mapping, places: tuple[Path, ...]) -> DataPlan:
    assistant, completion = mapping.get("assistant_only_loss"), mapping.get("completion_only_loss")
    loss: LossOn | None = "assistant" if assistant is True else None
    if loss is None and isinstance(completion, bool):
        loss = "completion" if completion else "all"
    return DataPlan(
        train=_place(mapping.get("dataset_name") or mapping.get("dataset"), places),
        tokenizer=_place(mapping.get("model_name_or_path"), places),
        template=_place(mapping.get("chat_template_path"), places),
        max_length=_number(mapping.get("max_length", mapping.get("max_seq_length"))),
        packing=_flag(mapping.get("packing")),
        loss=loss,
        overlong="cut_left" if mapping.get("truncation_mode") == "keep_end" else "cut",
        keeps_overflow=mapping.get("packing_strategy") in KEEPS_OVERFLOW,
        unread_length=None if mapping.get("max_length") else _number(mapping.get("max_seq_length")),
        weights=_weights(mapping, "desirable_weight", "undesirable_weight"),
    )


def _weights(mapping: _Mapping, *names: str) -> tuple[float, float]:
    """The weights of wanted and of unwanted answers, each 1 unless it is stated."""
    wanted, unwanted = (mapping.get(name, 1.0) for name in names)
    return (
        float(wanted) if isinstance(wanted, int | float) else 1.0,
        float(unwanted) if isinstance(unwanted, int | float) else 1.0,
    )


def _axolotl(mapping: _Mapping, places: tuple[Path, ...]) -> DataPlan:
    trains = [item for item in _list(mapping.get("datasets")) if isinstance(item, dict)]
    tests = [item for item in _list(mapping.get("test_datasets")) if isinstance(item, dict)]
    completion = bool(trains) and str(trains[0].get("type", "")).startswith("completion")
    return DataPlan(
        program="axolotl",
        train=_first(trains, places),
        evaluation=_first(tests, places),
        tokenizer=_place(mapping.get("tokenizer_config") or mapping.get("base_model"), places),
        template=_place(mapping.get("chat_template_jinja"), places),
        naming=_axolotl_naming(trains[0]) if trains else Naming(),
        prompt=_named((trains[0].get("chat_template") if trains else None) or mapping.get("chat_template")),
        task="reward" if mapping.get("reward_model") is True else None,
        max_length=_number(mapping.get("sequence_len")),
        # Axolotl's own default is to drop such a row.
        overlong=_EXCESS.get(str(mapping.get("excess_length_strategy")).lower(), "left_out"),
        packing=_flag(mapping.get("sample_packing")),
        loss="all" if mapping.get("train_on_inputs") is True or completion else "assistant",
        weights=_weights(mapping, "kto_desirable_weight", "kto_undesirable_weight"),
        notes=_several(len(trains)),
    )


def _first(items: list[_Mapping], places: tuple[Path, ...]) -> Path | None:
    for item in items:
        files = item.get("data_files")
        named = files if isinstance(files, str) else (_list(files) or [None])[0]
        # Beside data_files, path is the name of a loader, such as json.
        place = _place(named, places) or _place(item.get("path"), places)
        if place is not None:
            return place
    return None


def _llama_factory(mapping: _Mapping, places: tuple[Path, ...]) -> DataPlan:
    names = _names(mapping.get("dataset"))
    # LLaMA-Factory's own defaults: the folder data, a cutoff of 2048 tokens, and packing at stage pt.
    folder = _place(mapping.get("dataset_dir", "data"), places)
    naming, pretrains = _llama_factory_naming(_entry(names, folder)), mapping.get("stage") == "pt"
    packing = mapping.get("packing", True if pretrains else None)
    return DataPlan(
        program="llama-factory",
        train=_registered(names, folder),
        naming=naming._replace(columns=_as_text(naming.columns)) if pretrains else naming,
        evaluation=_registered(_names(mapping.get("eval_dataset")), folder),
        tokenizer=_place(mapping.get("model_name_or_path"), places),
        prompt=_named(mapping.get("template")),
        max_length=_number(mapping.get("cutoff_len", 2048)),
        overlong="cut" if pretrains else "shared",
        task=_named(mapping.get("stage")),
        settings=mapping,
        packing=_flag(packing),
        keeps_overflow=pretrains,
        loss="all" if mapping.get("train_on_prompt") is True or pretrains else "assistant",
        weights=_weights(mapping, "kto_chosen_weight", "kto_rejected_weight"),
        notes=_several(len(names)),
    )


def is_ms_swift(mapping: Container[object]) -> bool:
    """Whether the keys are ms-swift's."""
    own = ("tuner_type", "train_type", "truncation_strategy", "split_dataset_ratio")
    return any(key in mapping for key in own) and any(key in mapping for key in ("model", "dataset"))


def _ms_swift(mapping: _Mapping, places: tuple[Path, ...]) -> DataPlan:
    trains, tests = (_names_or_one(mapping.get(key)) for key in ("dataset", "val_dataset"))
    # ms-swift's own default: a row over the limit is left out.
    strategy = mapping.get("truncation_strategy") or "delete"
    columns = _section(mapping, "columns")
    return DataPlan(
        program="ms-swift",
        train=_place(_without_sample(trains), places),
        evaluation=_place(_without_sample(tests), places),
        tokenizer=_place(mapping.get("model"), places),
        naming=Naming(columns={name: ours for name, ours in columns.items() if isinstance(ours, str)}),
        prompt=_named(mapping.get("template")),
        max_length=_number(mapping.get("max_length")),
        packing=_flag(mapping.get("packing")),
        loss="all" if mapping.get("loss_scale") == "all" else "assistant",
        overlong="left_out" if strategy == "delete" else "cut_left" if strategy == "left" else "cut",
        keeps_overflow=strategy == "split",
        task=_named(mapping.get("rlhf_type")),
        weights=_weights(mapping, "desirable_weight", "undesirable_weight"),
        notes=_several(len(trains)),
        settings=mapping,
    )


def _names_or_one(value: Json) -> list[str]:
    return [value] if isinstance(value, str) else _names(value)


def _without_sample(names: list[str]) -> str | None:
    """The first of the names without the number of rows that ms-swift draws from it, as in `data.jsonl#500`."""
    return names[0].partition("#")[0] if names else None


def _registered(names: list[str], folder: Path | None) -> Path | None:
    """The file that LLaMA-Factory's dataset_info.json lists for the first of the names, or None."""
    return None if folder is None else _place(_entry(names, folder).get("file_name"), (folder,))


def _entry(names: list[str], folder: Path | None) -> _Mapping:
    """What dataset_info.json says of the first of the names; empty if it says nothing."""
    if folder is None or not names or not (folder / _INFO).is_file():
        return {}
    entry = read_mapping(folder / _INFO).get(names[0])
    return entry if isinstance(entry, dict) else {}


def _llama_factory_naming(entry: _Mapping) -> Naming:
    return Naming(
        columns=_standard(_section(entry, "columns"), NAMES.data.llama_factory_columns),
        keys=_standard(_section(entry, "tags"), NAMES.data.llama_factory_keys),
        roles=_standard(_section(entry, "tags"), NAMES.data.llama_factory_roles),
    )


def _as_text(columns: Mapping[str, str]) -> dict[str, str]:
    """The columns of LLaMA-Factory's stage pt, which trains on what is asked as plain text."""
    asked = next((name for name, ours in columns.items() if ours == "instruction"), "instruction")
    return {**columns, asked: "text"}


def _axolotl_naming(entry: _Mapping) -> Naming:
    """The names of an Axolotl data set: of its messages, or of the fields of an instruction."""
    named, instruction = NAMES.data, _section(entry, "type")
    roles = ((role, name) for role, names in _section(entry, "roles").items() for name in _list(names))
    return Naming(
        columns={**_standard(entry, named.axolotl_fields), **_standard(instruction, named.axolotl_instruction)},
        keys=_standard(_section(entry, "message_property_mappings"), named.axolotl_keys),
        roles={name: role for role, name in roles if isinstance(name, str)},
    )


def _standard(given: _Mapping, names: Mapping[str, str]) -> dict[str, str]:
    """Their names, each with ours, of those settings that are stated."""
    return {str(given[setting]): ours for setting, ours in names.items() if isinstance(given.get(setting), str)}


def _mlx(mapping: _Mapping, places: tuple[Path, ...]) -> DataPlan:
    """As mlx_lm 0.32 reads its rows (tuner/datasets.py): a prompt and its completion are two turns of a chat."""
    folder = _place(mapping.get("data"), places)
    ours = {"prompt": "instruction", "completion": "output", "chat": "messages", "text": "text"}
    theirs = {name: mapping.get(f"{name}_feature", "messages" if name == "chat" else name) for name in ours}
    train, evaluation = (None if folder is None else _place(name, (folder,)) for name in ("train.jsonl", "valid.jsonl"))
    return DataPlan(
        program="mlx-lm",
        train=train,
        evaluation=evaluation,
        tokenizer=_place(mapping.get("model"), places),
        naming=Naming(columns={str(theirs[name]): standard for name, standard in ours.items()}),
        max_length=_number(mapping.get("max_seq_length", 2048)),
        loss="assistant" if mapping.get("mask_prompt") is True else "all",
    )


def _torchtune(mapping: _Mapping, places: tuple[Path, ...]) -> DataPlan:
    data, tokenizer = _section(mapping, "dataset"), _section(mapping, "tokenizer")
    # Meta's folders have tokenizer.model in `original`, one below tokenizer.json.
    merges = _place(tokenizer.get("path"), places)
    return DataPlan(
        program="torchtune",
        train=_place(data.get("data_files"), places) or _place(data.get("source"), places),
        evaluation=_place(_section(mapping, "dataset_val").get("data_files"), places),
        tokenizer=None
        if merges is None
        else next((p for p in (merges.parent, merges.parent.parent) if (p / "tokenizer.json").is_file()), None),
        max_length=_number(tokenizer.get("max_seq_len")),
        packing=_flag(data.get("packed")),
        loss="all" if data.get("train_on_input") is True else "assistant",
    )


def _section(mapping: _Mapping, name: str) -> _Mapping:
    section = mapping.get(name)
    return section if isinstance(section, dict) else {}


def _place(value: Json, places: tuple[Path, ...]) -> Path | None:
    """The file or folder of this name beside the recipe or in the working folder; None if there is none."""
    if not isinstance(value, str) or not value or "\0" in value:
        return None
    return next(_existing(value, places), None)


def _existing(value: str, places: tuple[Path, ...]) -> Iterator[Path]:
    for place in places:
        try:
            if (place / value).exists():
                yield place / value
        except OSError:  # a name that no file system allows
            return


def _named(value: Json) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Json) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _flag(value: Json) -> bool | None:
    return value if isinstance(value, bool) else None


def _list(value: Json) -> list[Any]:
    return value if isinstance(value, list) else []


def _names(value: Json) -> list[str]:
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return [name for name in _list(value) if isinstance(name, str)]


def _several(count: int) -> tuple[str, ...]:
    return (f"the recipe names {count} data sets: only the first is read",) if count > 1 else ()


_PROGRAMS: Final[tuple[tuple[Callable[[_Mapping], bool], Callable[[_Mapping, tuple[Path, ...]], DataPlan]], ...]] = (
    (lambda mapping: is_torchtune(Fields(mapping, "")), _torchtune),
    (is_axolotl, _axolotl),
    (is_llama_factory, _llama_factory),
    (is_ms_swift, _ms_swift),
    (is_mlx, _mlx),
)
