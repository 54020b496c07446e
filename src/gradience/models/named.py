"""An adapter's config as PEFT is given it: with names in place of every expression, and sizes that its tensors have.

PEFT matches the expressions of a config with a matcher that backtracks, which `(a+)+b` keeps busy for years. Here they
are resolved to the names of modules before, in bounded time, and PEFT gets an expression of plain names. A rank of
10^9 would take all memory before PEFT compares it with the tensors, so it is compared here.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

from gradience.adapters.patterns import first_matches, whole
from gradience.errors import AdapterError
from gradience.io import PathLike, pretrained
from gradience.io.atomic import scratch_folder
from gradience.io.reading import real_path
from gradience.io.safetensors import TensorInfo
from gradience.schema import Json

_WHOLE: Final = ("target_modules", "exclude_modules", "feedforward_modules")  # expressions of a whole name
_TAILS: Final = ("rank_pattern", "alpha_pattern", "lambda_pattern")  # keys are expressions of a name's end
_PLAIN: Final = re.compile(r"(?:[A-Za-z0-9_.-]|\\[.])*")  # matched in time that is linear in a name
_KEPT: Final = frozenset({"all-linear"})  # PEFT's own words
_SIZES: Final = ("r", "init_r", "target_r", "num_virtual_tokens", "n_frequency", "num_vectors", "vector_length")
_ANY_RANK: Final = "LOKR"  # which takes a matrix as it is from some rank on, whatever the rank
_TURNS: Final = re.compile(r"niter_(\d+)")
_MOST_TURNS: Final = 64  # of an initial value that PEFT computes when it loads an adapter; 4 and 16 are usual
_BARE: Final = ("embed_tokens", "lm_head")  # names that PEFT tries by themselves


@contextmanager
def named(folder: PathLike, model: Any, tensors: Mapping[str, TensorInfo]) -> Iterator[Path]:
    """A context with a folder that holds what `folder` does, and a config without expressions for this model.

    Args:
        folder: the adapter's.
        model: the base.
        tensors: those of the adapter, by name.

    Raises:
        OSError: the folder is none, or holds something other than regular files.
        ValueError: the config is none, or names a Python module.
        AdapterError: as for `safe_config`.
    """
    fields = pretrained.adapter_config(folder)
    fields = safe_config(fields, (name for name, _ in model.named_modules()), tensors)
    with scratch_folder() as made:
        for path in Path(folder).iterdir():
            if path.is_file() and path.name != pretrained.ADAPTER_CONFIG:
                _link(made / path.name, real_path(path))
        (made / pretrained.ADAPTER_CONFIG).write_text(json.dumps(fields), encoding="utf-8")
        yield made


def _refuse_sizes(fields: Mapping[str, Json], tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse ranks wider than every tensor, more copies of layers than tensors, and turns without end."""
    widest = max((max(info.shape, default=0) for info in tensors.values()), default=0)
    ranks = fields.get("rank_pattern")
    sizes = {name: fields.get(name) for name in _SIZES} | (ranks if isinstance(ranks, dict) else {})
    for name, size in sizes.items() if fields.get("peft_type") != _ANY_RANK else ():
        if isinstance(size, int) and size > widest:
            _refuse(f"{name} is {size:,}, and none of its tensors is wider than {widest:,}")
    layers = sum(end - start for start, end in _pairs(fields.get("layer_replication")))
    if layers > max(len(tensors), pretrained.FEW_LAYERS):
        _refuse(f"layer_replication makes {layers:,} layers, for {len(tensors):,} tensors")
    # Nine digits are far over the limit already, and Python refuses to read a number of more than 4300.
    turns = [int(turn[:9]) for turn in _TURNS.findall(str(fields.get("init_lora_weights")))]
    match fields.get("loftq_config"):
        case {"loftq_iter": int(turn)}:
            turns.append(turn)
    if max(turns, default=0) > _MOST_TURNS:
        _refuse(f"initial values take {max(turns):,} turns to compute; the limit is {_MOST_TURNS}")


def _pairs(value: Json) -> Iterator[tuple[int, int]]:
    for one in value if isinstance(value, list) else ():
        match one:
            case [int(start), int(end)]:
                yield start, end


def _refuse(what: str) -> NoReturn:
    raise AdapterError(f"the config's {what}", advice="give an adapter whose config and tensors belong together")


def _link(place: Path, target: Path) -> None:
    try:
        place.symlink_to(target)
    except OSError:  # not every user of Windows may
        shutil.copyfile(target, place)


def safe_config(fields: Mapping[str, Json], names: Iterable[str], tensors: Mapping[str, TensorInfo]) -> dict[str, Json]:
    """The fields of a config that PEFT may be given, with plain names that match the same modules of a model.

    Raises:
        AdapterError: an expression is none, takes too long, or stands where it cannot be resolved; or a size is larger
            than the adapter's tensors.
    """
    _refuse_sizes(fields, tensors)
    known, exact = [*dict.fromkeys((*names, *_BARE))], dict(fields)
    for field, value in fields.items():
        if field in _WHOLE and isinstance(value, str) and value not in _KEPT and not _PLAIN.fullmatch(value):
            exact[field] = _exactly(first_matches([whole(value)], known)) or [value]  # a list holds no expressions
        elif field in _TAILS and isinstance(value, dict) and not all(map(_PLAIN.fullmatch, value)):
            exact[field] = _by_names(value, first_matches(value, known))
        elif field.endswith("_pattern") or field == "modules_to_save":
            _refuse_expressions(field, [value] if isinstance(value, str) else value)
    return exact


def _by_names(value: Mapping[str, Json], hits: Mapping[str, str]) -> dict[str, Json]:
    by_key: dict[str, list[str]] = {}
    for name, key in hits.items():
        by_key.setdefault(key, []).append(name)
    return {_exactly(names): value[key] for key, names in by_key.items()}


def _exactly(names: Iterable[str]) -> str:
    """An expression of these names alone; empty if there is none."""
    # With `^`, because PEFT lets any path that ends in a dot stand before a pattern's key (get_pattern_key).
    listed = "|".join(map(re.escape, names))
    return whole(listed) if listed else ""


def _refuse_expressions(field: str, value: Json) -> None:
    for one in value if isinstance(value, (list, dict)) else ():
        if not isinstance(one, str) or not _PLAIN.fullmatch(one):
            raise AdapterError(
                f"the config's {field} holds {str(one)[:80]!r}, which is no plain name",
                advice="write it as names of modules: expressions are resolved in target_modules and rank_pattern only",
            )
