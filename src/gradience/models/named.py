"""An adapter's config as PEFT is given it: with names in place of every expression that a stranger wrote.

PEFT matches the expressions of a config with a matcher that backtracks, which `(a+)+b` keeps busy for years. Here they
are resolved to the names of modules before, in bounded time, and PEFT gets an expression of plain names.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from gradience.adapters.patterns import first_matches, whole
from gradience.errors import AdapterError
from gradience.io import PathLike, pretrained
from gradience.io.atomic import scratch_folder
from gradience.io.reading import real_path
from gradience.schema import Json

_WHOLE: Final = ("target_modules", "exclude_modules", "feedforward_modules")  # expressions of a whole name
_TAILS: Final = ("rank_pattern", "alpha_pattern", "lambda_pattern")  # keys are expressions of a name's end
_PLAIN: Final = re.compile(r"(?:[A-Za-z0-9_.-]|\\[.])*")  # matched in time that is linear in a name
_KEPT: Final = frozenset({"all-linear"})  # PEFT's own words
_BARE: Final = ("embed_tokens", "lm_head")  # names that PEFT tries by themselves


@contextmanager
def named(folder: PathLike, model: Any) -> Iterator[Path]:
    """A context with a folder that holds what `folder` does, and a config without expressions for this model.

    Raises:
        OSError: the folder is none, or holds something other than regular files.
        ValueError: the config is none, or names a Python module.
        AdapterError: an expression is none, takes too long, or cannot be resolved.
    """
    fields = with_names(pretrained.adapter_config(folder), (name for name, _ in model.named_modules()))
    with scratch_folder() as made:
        for path in Path(folder).iterdir():
            if path.is_file() and path.name != pretrained.ADAPTER_CONFIG:
                _link(made / path.name, real_path(path))
        (made / pretrained.ADAPTER_CONFIG).write_text(json.dumps(fields), encoding="utf-8")
        yield made


def _link(place: Path, target: Path) -> None:
    try:
        place.symlink_to(target)
    except OSError:  # not every user of Windows may
        shutil.copyfile(target, place)


def with_names(fields: Mapping[str, Json], names: Iterable[str]) -> dict[str, Json]:
    """The fields of a config, with expressions that match the same modules of a model and are plain names.

    Raises:
        AdapterError: an expression is none, takes too long, or stands where it cannot be resolved.
    """
    known, found = [*dict.fromkeys((*names, *_BARE))], dict(fields)
    for field, value in fields.items():
        if field in _WHOLE and isinstance(value, str) and value not in _KEPT and not _PLAIN.fullmatch(value):
            found[field] = _exactly(first_matches([whole(value)], known)) or [value]  # a list holds no expressions
        elif field in _TAILS and isinstance(value, dict) and not all(map(_PLAIN.fullmatch, value)):
            found[field] = _by_names(value, first_matches(value, known))
        elif field.endswith("_pattern") or field == "modules_to_save":
            _refuse_expressions(field, [value] if isinstance(value, str) else value)
    return found


def _by_names(value: Mapping[str, Json], hits: Mapping[str, str]) -> dict[str, Json]:
    by_key: dict[str, list[str]] = {}
    for name, key in hits.items():
        by_key.setdefault(key, []).append(name)
    return {_exactly(names): value[key] for key, names in by_key.items()}


def _exactly(names: Iterable[str]) -> str:
    """An expression of these names alone; empty if there is none."""
    listed = "|".join(map(re.escape, names))
    return f"^(?:{listed})$" if listed else ""


def _refuse_expressions(field: str, value: Json) -> None:
    for one in value if isinstance(value, (list, dict)) else ():
        if not isinstance(one, str) or not _PLAIN.fullmatch(one):
            raise AdapterError(
                f"the config's {field} holds {str(one)[:80]!r}, which is no plain name",
                advice="write it as names of modules: expressions are resolved in target_modules and rank_pattern only",
            )
