"""The files beside weights: `adapter_config.json`, of PEFT or MLX-LM, and a model's `config.json`."""

from __future__ import annotations

from pathlib import Path

from gradience.configs.files import HasToDict, plain_mapping, read_mapping
from gradience.configs.recipes import is_mlx, read_mlx_fields
from gradience.configs.settings import LORA, RUN, Draft, Layer, knows_lora, layer_of
from gradience.configs.values import Fields, Malformed, flag, text
from gradience.errors import ConfigError
from gradience.schema.config import ConfigSnapshot
from gradience.schema.reports import SourceFile
from gradience.schema.scalars import Json

CONFIG_NAME = "adapter_config.json"

_VARIANTS = ("use_bdlora", "use_qalora", "kasa_config", "monteclora_config", "velora_config", "arrow_config")
_SHARED = {"peft_type", "task_type", "modules_to_save"}  # mean the same for every peft_type


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
    return _read_mapping(read_mapping(path), str(path))


def read_peft_object(config: HasToDict) -> Layer:
    """Read a `peft.LoraConfig`; ConfigError if it is not one."""
    return _read_mapping(plain_mapping(config), type(config).__name__)


def _read_mapping(mapping: dict[str, Json], where: str) -> Layer:
    fields, draft = Fields(mapping, where), Draft()
    unknown = read_mlx_fields(fields, draft) if is_mlx(mapping) else _read_native(fields, draft)
    if not fields.n_read:
        message = f"{where}: no setting of an adapter in it"
        raise ConfigError(message, advice=f"give PEFT's {CONFIG_NAME}; training arguments go to --training")
    return layer_of(draft, SourceFile(role="adapter", path=where), [fields], unknown=unknown)


def _read_native(fields: Fields, draft: Draft) -> list[str]:
    draft.read("run", RUN, fields, loose=False)
    draft.read("lora", (item for item in LORA if item.field in _SHARED), fields, loose=False)
    if draft.get("lora", "peft_type") not in {None, "LORA"}:
        return []  # another method: its settings are not LoRA's, even where they share a name
    draft.read("lora", LORA, fields, loose=False)
    note_adapter(fields, draft)
    return list(fields.left_over(knows_lora))


def note_adapter(fields: Fields, draft: Draft) -> None:
    """Add what the snapshot has no field for: null targets, and the class of the base model."""
    if fields.is_null("target_modules"):
        draft.set("lora", "target_modules_null", value=True, extra=True)
    variants = [key for key in _VARIANTS if fields.take([key], bool)]
    if variants:
        draft.set("lora", "variants", variants, extra=True)
    if fields.take(["lora_bias"], flag):
        draft.set("lora", "lora_bias", value=True, extra=True)
    found = fields.take(["auto_mapping"], _base_class)
    if found:
        draft.set("lora", "base_model_class", found, extra=True)


def _base_class(value: Json) -> str:
    if not isinstance(value, dict):
        raise Malformed("a mapping")
    name = value.get("base_model_class")
    return "" if name is None else text(name)


def _missing(folder: Path) -> str:
    return f"{folder}: no {CONFIG_NAME} in it" if folder.is_dir() else f"{folder}: no such folder"


def _where_else(folder: Path) -> str:
    found = sorted(folder.glob(f"*/{CONFIG_NAME}")) if folder.is_dir() else []
    if found:
        return f"there is one in {found[-1].parent}: give that folder"
    return "give the folder where PEFT's save_pretrained wrote"


MODEL_CONFIG = "config.json"
_HEAD = "Classification"  # in the name of every class of transformers with a classifier head


def read_labels(path: Path) -> Layer:
    """Read the number of classes of a model's config.json; an empty layer where it is of no classifier.

    Raises:
        ConfigError: the file cannot be read.
    """
    model = read_mapping(path)
    classes, labels = model.get("architectures"), model.get("id2label")
    named = isinstance(classes, list) and any(str(name).endswith(_HEAD) for name in classes)
    if not named or not isinstance(labels, dict) or len(labels) < 2 or model.get("problem_type") == "regression":
        return Layer()
    return Layer(config=ConfigSnapshot(num_labels=len(labels)), sources=(SourceFile(role="model", path=str(path)),))
