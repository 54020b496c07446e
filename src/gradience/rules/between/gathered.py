"""The facts that rules between files judge, gathered from the documents of a run.

`gather` opens nothing of the weights but their header, unless rows of an audit say that the numbers were read too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from gradience.adapters.files import CHECKPOINT, WEIGHT_NAMES
from gradience.adapters.layout import Adapter, parse_key
from gradience.base.coverage import added_tokens, read_added, read_vocabulary
from gradience.base.peft_emulation.loading import Model, names_of
from gradience.base.weights import BaseWeights, find_shards, local_folder
from gradience.configs.files import read_mapping
from gradience.errors import AdapterError, ConfigError
from gradience.folder import Documents
from gradience.folder.beside import base_of
from gradience.importers.files import same_bytes
from gradience.rules.between import CheckpointFiles, Parts, SavedState
from gradience.schema import Json
from gradience.schema.audit import ModuleAudit
from gradience.schema.events import LoraSnapshot

_BASE_CONFIG: Final = "config.json"


def gather(
    documents: Documents,
    *,
    base: Path | None = None,
    weights: BaseWeights | None = None,
    modules: Sequence[ModuleAudit] | None = None,
) -> Parts:
    """The parts of the adapter of a run.

    Args:
        documents: the run.
        base: the base that was given; else the one that the config names is used, if it is at hand.
        weights: the base that was given, if it is open.
        modules: the rows of the adapter's modules, if its numbers were read.

    Raises:
        AdapterError: the adapter cannot be read.
    """
    opened = documents.adapter.take()
    adapter, folder = opened.adapter, documents.folders[0]
    lora = _lora(documents)
    named = adapter.config.base_model_name_or_path
    at = _base_folder(base, named, folder) if weights is None else weights.files[0].path.parent
    parts = Parts(
        format=adapter.format,
        tensors={name: (info.shape, info.dtype) for name, info in adapter.tensors.items()},
        metadata=adapter.source.metadata if adapter.source is not None else {},
        config=documents.config_fields.held,
        settings=documents.training_fields.held or {},
        base=None if at is None else _mapping(at / _BASE_CONFIG),
        modules=modules,
        zeros=None if modules is None else _zeros(adapter),
        files=frozenset(path.name for path in folder.iterdir()),
        checkpoints=tuple(_checkpoints(folder, documents.digest_of)),
        **_optimizer(documents, modules),
        added=_added(folder, at),
        last_token=max(read_added(folder).values(), default=None),
    )
    if adapter.format != "peft" or lora is None:
        return replace(parts, no_loading="no adapter_config.json of PEFT" if lora is None else "not PEFT's format")
    model = Model(named, parts.base or {}, weights) if weights or at is None else _opened(at, named, parts.base or {})
    return replace(parts, **names_of(parts.tensors, lora, model)._asdict())


def _opened(base: Path, name: str | None, config: Mapping[str, Json]) -> Model:
    """A model whose folder is at hand; of some only the config is."""
    with suppress(OSError, AdapterError):
        shards = find_shards(base)
        try:
            return Model(name, config, BaseWeights(shards))
        except AdapterError as error:
            return Model(name, config, fault=error.message)
    return Model(name, config)


def _mapping(path: Path | None) -> Mapping[str, Json] | None:
    with suppress(ConfigError, OSError):
        return None if path is None or not path.is_file() else read_mapping(path)
    return None


def _lora(documents: Documents) -> LoraSnapshot | None:
    """The adapter's settings by its config; None if it is not LoRA's, or cannot be read."""
    whole = documents.adapter_settings.held
    return whole.config.lora if whole is not None and whole.config.lora.peft_type == "LORA" else None


def _base_folder(given: Path | None, named: str | None, folder: Path) -> Path | None:
    """The folder of the base that was given, else of the one that the config names, if it is at hand."""
    place = base_of([named], folder) if given is None else given
    with suppress(AdapterError, OSError, ValueError):
        found = None if place is None else local_folder(Path(place))
        return None if found is None else found if found.is_dir() else found.parent
    return None


def _added(folder: Path, base: Path | None) -> tuple[str, ...] | None:
    known = None if base is None else read_vocabulary(base)  # first, because a tokenizer.json has megabytes
    run = None if known is None else read_vocabulary(folder)
    return None if run is None or known is None else tuple(added_tokens(run, known))


def _zeros(adapter: Adapter) -> float | None:
    """The share of exact zeros in lora_B of modules that were trained, if it is stored in float16; else None."""
    zeros = entries = 0
    for name, info in adapter.tensors.items():
        key = parse_key(name)
        is_b = (key is not None and key.field == "lora_B") or name.endswith((".lora_up.weight", ".lora_b"))
        if info.dtype != "F16" or not is_b or adapter.source is None:
            continue
        values = adapter.source.read(name)
        count = int((values != 0).sum())
        if count:  # a module that was not trained is all zeros, and told elsewhere
            zeros, entries = zeros + values.size - count, entries + values.size
    return zeros / entries if entries else None


def _optimizer(documents: Documents, modules: Sequence[ModuleAudit] | None) -> dict[str, Any]:
    """The optimizer's state, if the numbers of the weights were read too; else why not."""
    if modules is None:
        return {}
    part = documents.optimizer_state
    if (state := part.held) is None or part.place.path is None:
        return {"no_optimizer": part.reason}
    folder = part.place.path.parent
    step = CHECKPOINT.fullmatch(folder.name)
    name = part.place.path.name if folder == documents.folders[0] else f"{folder.name}/{part.place.path.name}"
    return {"optimizer": SavedState(name, None if step is None else int(step[1]), *state)}


def _checkpoints(folder: Path, digest_of: Callable[[Path], str]) -> Iterator[CheckpointFiles]:
    """The checkpoints of a run's folder; of a checkpoint those up to it, of which only its own weights are compared."""
    one = CHECKPOINT.fullmatch(folder.name)
    run = folder.parent if one else folder
    steps = {
        int(hit[1]): child for child in run.iterdir() if (hit := CHECKPOINT.fullmatch(child.name)) and child.is_dir()
    }
    before: Path | None = None
    for step in sorted(steps):
        if one and step > int(one[1]):
            return
        files = frozenset(path.name for path in steps[step].iterdir())
        weights = next((steps[step] / name for name in WEIGHT_NAMES if name in files), None)
        if weights is None:
            continue
        same = before is not None and (one is None or step == int(one[1])) and same_bytes(before, weights, digest_of)
        yield CheckpointFiles(steps[step].name, files, same)
        before = weights
