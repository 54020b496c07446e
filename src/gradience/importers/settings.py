"""Settings that a source holds beside its rows, as a layer of configuration; what cannot be read is a note."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from gradience.configs.peft import CONFIG_NAME, read_peft
from gradience.configs.settings import LORA, OPTIMIZER, RUN, TRAINING, Draft, Layer, Level, stack
from gradience.configs.training import ARGS_NAMES, PICKLE_NAME, note_training, read_training
from gradience.configs.values import Fields
from gradience.errors import ConfigError, RecorderError
from gradience.importers.files import SourceRun, count_of, whole_json
from gradience.schema.config import ConfigSnapshot, TrainingSnapshot
from gradience.schema.reports import SourceFile
from gradience.schema.scalars import Json

MODEL_CONFIG: Final = "config.json"
_LEVELS: Final[tuple[Level, ...]] = ("run", "optimizer", "lora", "training")


def add_settings(raw: SourceRun, *folders: Path) -> None:
    """Add the settings of the adapter config and training arguments in the folders; the first that has one counts."""
    for names, read in (((CONFIG_NAME,), read_peft), (ARGS_NAMES, read_training)):
        path = next((f / name for f in folders for name in names if (f / name).is_file()), None)
        if path is not None:
            _add(raw, path, read)
    _add_labels(raw, folders)
    pickle = next((f / PICKLE_NAME for f in folders if (f / PICKLE_NAME).is_file()), None)
    if pickle is not None:
        raw.notes.append(f"{PICKLE_NAME} is a pickle and was not opened: it runs code, and may hold the hub token")
    if raw.layer.secret_keys:
        raw.notes.append(f"not copied, for they hold a secret: {', '.join(dict.fromkeys(raw.layer.secret_keys))}")


def _add_labels(raw: SourceRun, folders: Iterable[Path]) -> None:
    """Add the number of classes that the model's config.json has, if it is a classifier's."""
    path = next((folder / MODEL_CONFIG for folder in folders if (folder / MODEL_CONFIG).is_file()), None)
    if path is None:
        return
    try:
        document = whole_json(path)
    except RecorderError:
        return  # not a source of this run's log: what it cannot say is not missed
    classes = _classes(document) if isinstance(document, dict) else None
    if classes is not None:
        layer = Layer(config=ConfigSnapshot(num_labels=classes), sources=(SourceFile(role="model", path=str(path)),))
        raw.layer = stack([layer, raw.layer])
        raw.files.append(path)


def _classes(model: Mapping[str, Json]) -> int | None:
    """The classes of a classifier's config; transformers writes no id2label for its default of two."""
    heads, names, problem = model.get("architectures"), model.get("id2label"), model.get("problem_type")
    if isinstance(heads, list) and not any(str(head).endswith("Classification") for head in heads):
        return None  # others have labels too: BART's models come with three
    if isinstance(names, dict):
        return len(names)
    return 2 if problem == "single_label_classification" else None


def _add(raw: SourceRun, path: Path, read: Callable[[Path], Layer]) -> None:
    try:
        layer = read(path)
    except ConfigError as error:
        raw.notes.append(f"{path.name} was not used: {str(error).removeprefix(f'{path}: ')}")
        return
    raw.layer = stack([raw.layer, layer])
    raw.files.append(path)


def mapping_layer(mapping: Mapping[str, Json], raw: SourceRun) -> Layer:
    """Return the settings of a mapping of a logger's own, by the Trainer's and PEFT's names; wrong ones are notes."""
    flat = {**mapping, **_adapter(mapping)}
    draft = Draft()
    for level, settings in zip(_LEVELS, (RUN, OPTIMIZER, LORA, TRAINING), strict=True):
        for setting in settings:
            try:
                draft.read(level, (setting,), Fields(dict(flat), raw.path.name), loose=level != "lora")
            except ConfigError as error:
                raw.notes.append(f"a setting was not used: {error}")
    try:
        note_training(Fields(dict(flat), raw.path.name), draft)
    except ConfigError as error:
        raw.notes.append(f"a setting was not used: {error}")
    return Layer(config=draft.snapshot())


def _adapter(mapping: Mapping[str, Json]) -> dict[str, Json]:
    """Return PEFT's settings out of `peft_config`, as the Trainer's callbacks of other loggers nest them."""
    nested = mapping.get("peft_config")
    if not isinstance(nested, dict):
        return {}
    only = next(iter(nested.values())) if len(nested) == 1 else nested
    return only if isinstance(only, dict) else nested


def state_layer(state: Mapping[str, Json], path: Path) -> Layer:
    """Return the settings in a trainer_state.json: lengths and intervals, nothing else."""
    batch, epochs = count_of(state.get("train_batch_size")), count_of(state.get("num_train_epochs"))
    training = TrainingSnapshot(
        max_steps=count_of(state.get("max_steps")),
        epochs=None if epochs is None else float(epochs),
        batch_size=batch,
        logging_steps=_interval(state.get("logging_steps")),
        save_steps=_interval(state.get("save_steps")),
    )
    source = SourceFile(role="trainer state", path=str(path))
    return Layer(config=ConfigSnapshot(training=training), sources=(source,))


def _interval(value: Json) -> float | None:
    """Return steps, or a share of all steps."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value < float("inf") else None
