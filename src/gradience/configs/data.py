"""What a trainer's recipe says about its data: files, template, cutoff, loss mode, packing.

Read in TRL 1.16 (SFTConfig; scripts/sft.py), Axolotl (docs/dataset-formats), LLaMA-Factory (hparams/data_args.py,
data/parser.py) and torchtune (datasets/_sft.py). A name that is not a file here is a hub data set: not looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from gradience.configs.files import read_mapping
from gradience.configs.recipes import is_axolotl, is_llama_factory, is_torchtune
from gradience.configs.training import PICKLED
from gradience.configs.values import Fields
from gradience.schema.reports import LossMode
from gradience.schema.scalars import Json

_Mapping = dict[str, Json]
_INFO: Final = "dataset_info.json"


class DataPlan(NamedTuple):
    """The data settings of a recipe, as far as it has them."""

    program: Literal["trl", "axolotl", "llama-factory", "torchtune"] = "trl"
    train: Path | None = None
    evaluation: Path | None = None
    tokenizer: Path | None = None
    template: Path | None = None
    max_length: int | None = None
    packing: bool | None = None
    loss: LossMode | None = None
    notes: tuple[str, ...] = ()


def read_data_plan(path: Path) -> DataPlan:
    """The data settings of a recipe or of training arguments.

    Raises:
        ConfigError: the file cannot be read.
    """
    if path.suffix in PICKLED or path.is_dir():
        return DataPlan()
    mapping = read_mapping(path)
    places = (path.parent, Path.cwd())
    for fits, read in _PROGRAMS:
        if fits(mapping):
            return read(mapping, places)
    return _trl(mapping, places)


def _trl(mapping: _Mapping, places: tuple[Path, ...]) -> DataPlan:
    assistant, completion = mapping.get("assistant_only_loss"), mapping.get("completion_only_loss")
    loss: LossMode | None = "assistant" if assistant is True else None
    if loss is None and isinstance(completion, bool):
        loss = "completion" if completion else "all"
    return DataPlan(
        train=_place(mapping.get("dataset_name") or mapping.get("dataset"), places),
        tokenizer=_place(mapping.get("model_name_or_path"), places),
        template=_place(mapping.get("chat_template_path"), places),
        max_length=_number(mapping.get("max_length", mapping.get("max_seq_length"))),
        packing=_flag(mapping.get("packing")),
        loss=loss,
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
        max_length=_number(mapping.get("sequence_len")),
        packing=_flag(mapping.get("sample_packing")),
        loss="all" if mapping.get("train_on_inputs") is True or completion else "assistant",
        notes=_several(len(trains)),
    )


def _first(items: list[_Mapping], places: tuple[Path, ...]) -> Path | None:
    for item in items:
        files = item.get("data_files")
        named = files if isinstance(files, str) else (_list(files) or [None])[0]
        found = _place(named, places) or _place(item.get("path"), places)
        if found is not None:
            return found
    return None


def _llama_factory(mapping: _Mapping, places: tuple[Path, ...]) -> DataPlan:
    names = _names(mapping.get("dataset"))
    folder = _place(mapping.get("dataset_dir", "data"), places)
    return DataPlan(
        program="llama-factory",
        train=_registered(names, folder),
        evaluation=_registered(_names(mapping.get("eval_dataset")), folder),
        tokenizer=_place(mapping.get("model_name_or_path"), places),
        max_length=_number(mapping.get("cutoff_len", 2048)),
        packing=_flag(mapping.get("packing")),
        loss="all" if mapping.get("train_on_prompt") is True or mapping.get("stage") == "pt" else "assistant",
        notes=_several(len(names)),
    )


def _registered(names: list[str], folder: Path | None) -> Path | None:
    """The file that LLaMA-Factory's dataset_info.json has for the first of the names."""
    if folder is None or not names or not (folder / _INFO).is_file():
        return None
    entry = read_mapping(folder / _INFO).get(names[0])
    file = entry.get("file_name") if isinstance(entry, dict) else None
    return _place(file, (folder,))


def _torchtune(mapping: _Mapping, places: tuple[Path, ...]) -> DataPlan:
    data, tokenizer = _section(mapping, "dataset"), _section(mapping, "tokenizer")
    merges = _place(tokenizer.get("path"), places)
    return DataPlan(
        program="torchtune",
        train=_place(data.get("data_files"), places) or _place(data.get("source"), places),
        evaluation=_place(_section(mapping, "dataset_val").get("data_files"), places),
        tokenizer=None
        if merges is None
        else next((p for p in (merges.parent, merges.parent.parent) if _is_tokenizer(p)), None),
        max_length=_number(tokenizer.get("max_seq_len")),
        packing=_flag(data.get("packed")),
        loss="all" if data.get("train_on_input") is True else "assistant",
    )


def _is_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file()


def _section(mapping: _Mapping, name: str) -> _Mapping:
    found = mapping.get(name)
    return found if isinstance(found, dict) else {}


def _place(value: Json, places: tuple[Path, ...]) -> Path | None:
    """The file or folder of this name beside the recipe or in the working folder; None where there is none."""
    if not isinstance(value, str) or not value or "\0" in value:
        return None
    return next(_existing(value, places), None)


def _existing(value: str, places: tuple[Path, ...]) -> Iterator[Path]:
    for place in places:
        try:
            if (place / value).exists():
                yield place / value
        except OSError:  # a name that no disk can hold
            return


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
)
