"""Near misses: names in a log that no reader knows, although they look like one that every reader knows.

A name is near another if it is written alike but for case and separators, if it is what other loggers call the same
value (`ALIASES`), or if it is spelt almost like one of these (`difflib`). Nothing is said of a name if the known one is
in the same object, nor is a log faulty because of it: further keys are legal.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final, TypeAlias

from gradience.names import NAMES, columns_of
from gradience.schema.events import EVENT_TYPES, TELLING, EvalMetrics, RecommendationItem
from gradience.schema.flat import CHOICES, known_keys
from gradience.telemetry.rows import HELD_OUT, split_row

JsonObject: TypeAlias = dict[str, Any]
Level: TypeAlias = str
"""A kind of object in a log: an event's name, and the path below it, as in `run_start.config.lora`."""

_CLOSE: Final = 0.85  # ratio of difflib; a heuristic: `los` and `loss` have 0.857, `aux_loss` and `loss` 0.727
_SHORTEST: Final = 3  # characters of a name that may be misspelt; shorter ones are all alike
_SEPARATORS: Final = re.compile(r"[^a-z0-9]+")
_MOST_SHAPES: Final = 1000  # sets of keys that are told apart; a log with more has made them up
_MOST_HINTS: Final = 20
_SHOWN: Final = 80  # characters of a name

_SPLIT: Final = "SPLIT"  # in a name of the table: any held-out split


def _spelt(names: Mapping[str, str]) -> dict[str, list[str]]:
    """The aliases of each name."""
    return {
        field: [name.replace(_SPLIT, word) for name in text.split() for word in (HELD_OUT if _SPLIT in name else [""])]
        for field, text in names.items()
    }


_EVENTS: Final = _spelt(NAMES.events)
_CHOICES: Final = {field: _spelt(names) for field, names in NAMES.choices.items()}
_COLUMNS: Final = {"loss": "loss", "lr": "learning_rate", "grad_norm": "grad_norm", "epoch": "epoch"}
ALIASES: Final[dict[Level, dict[str, list[str]]]] = {
    **{level: _spelt(names) for level, names in NAMES.log.items()},
    **{
        f"run_start.config.{level}": {
            field: [name for name in f"{names.native} {names.loose}".split() if name != field]
            for field, names in NAMES.settings[level].items()
        }
        for level in ("optimizer", "lora", "training")
    },
}
_ENVELOPE: Final = ALIASES.pop("envelope")
ALIASES["train_step"] = {
    field: [*(name for name in columns_of(column) if name != field), *ALIASES["train_step"].get(field, ())]
    for field, column in _COLUMNS.items()
}
_LEVELS: Final[dict[Level, frozenset[str]]] = {
    **{name: known_keys(cls) for name, cls in EVENT_TYPES.items()},
    "eval.metrics": known_keys(EvalMetrics),
    "recommendation.recommendations": known_keys(RecommendationItem),
    **{level: frozenset(names) for level, names in ALIASES.items() if level.startswith("run_start.")},
}
_BELOW: Final = {"eval": "metrics", "recommendation": "recommendations", "run_start": "config"}
_READ: Final = {  # what readers use of an event; of any other event they use every field
    "train_step": frozenset({"loss", "lr", "grad_norm", "epoch"}) | TELLING,
    "run_start": frozenset[str](),
    "run_end": frozenset[str](),
}
_READ_KINDS: Final = ("lora_audit", "spectral", "data", "train_summary")


def near(name: str, meant: Mapping[str, Collection[str]]) -> str | None:
    """Return the known name that another one looks like, or None. `meant` has the aliases of each known name.

    >>> near("learningRate", {"lr": ("learning_rate",)}), near("los", {"loss": ()}), near("aux_loss", {"loss": ()})
    ('lr', 'loss', None)
    """
    spelt = {_bare(alias): known for known, aliases in meant.items() for alias in (*aliases, known)}
    bare = _bare(name)
    if bare in spelt or len(bare) < _SHORTEST:
        return spelt.get(bare)
    close = get_close_matches(bare, [other for other in spelt if len(other) >= _SHORTEST], n=1, cutoff=_CLOSE)
    return spelt[close[0]] if close else None


def near_event(name: str) -> str | None:
    """Return the event that another name looks like, or None.

    >>> near_event("trainstep"), near_event("Evaluation"), near_event("checkpoint")
    ('train_step', 'eval', None)
    """
    return near(name, _EVENTS)


def near_choice(field: str, value: str) -> str | None:
    """Return the value of a choice that another one looks like, or None.

    >>> near_choice("status", "SUCCESS"), near_choice("severity", "warn"), near_choice("status", "paused")
    ('ok', 'warning', None)
    """
    return near(value, {choice: _CHOICES.get(field, {}).get(choice, ()) for choice in CHOICES.get(field, ())})


def near_required(field: str, event: str, present: Collection[str]) -> str | None:
    """Return the key that was probably meant as a required field, or None."""
    aliases = _ENVELOPE.get(field) or ALIASES.get(event, {}).get(field, [])
    known = _LEVELS.get(event, frozenset()) | _ENVELOPE.keys()
    return next((key for key in present if key not in known and near(key, {field: aliases})), None)


class Census:
    """The sets of keys that the objects of a log have, counted. It sees each line, and says at the end what it misses.

    A key counts if its value is not null.
    """

    def __init__(self) -> None:
        self._shapes: Counter[tuple[Level, frozenset[str]]] = Counter()
        self._whole = True  # whether every shape is counted

    def add(self, document: JsonObject) -> None:
        """Count the objects of one line."""
        event = document.get("event")
        if not isinstance(event, str):
            return
        for level, part in _objects(event, document):
            shape = (level, frozenset(key for key, value in part.items() if value is not None))
            if shape in self._shapes or len(self._shapes) < _MOST_SHAPES:
                self._shapes[shape] += 1
            else:
                self._whole = False

    def warnings(self) -> list[str]:
        """Return sentences about values that no reader finds."""
        return [*self._unread(), *self._near_misses()][:_MOST_HINTS]

    def _unread(self) -> Iterator[str]:
        rows = Counter(dict.fromkeys((True, False), 0))
        anything = False
        for (level, keys), n in self._shapes.items():
            used = _is_read(level, keys)
            anything = anything or used
            if level == "train_step":
                rows[used] += n
        # Among the shapes that were not counted one may hold what a reader uses.
        if not self._whole:
            return
        if not anything:
            yield "no event holds a value that a reader uses: valid, and monitor has nothing to show"
        elif rows[False] and not rows[True]:
            yield f"no train_step has loss, lr, grad_norm or epoch, in {_lines(rows[False])}: no reader uses them"

    def _near_misses(self) -> Iterator[str]:
        keys: Counter[tuple[Level, str, str]] = Counter()
        events: Counter[tuple[str, str]] = Counter()
        for (level, present), n in self._shapes.items():
            if level in _LEVELS:
                for key, meant in _missed(level, present):
                    keys[level, key, meant] += n
            elif "." not in level and (name := near_event(level)):
                events[level, name] += n
        for (level, key, meant), n in keys.items():
            yield f"`{key[:_SHOWN]}` of {level}, in {_lines(n)}: {meant}"
        for (event, name), n in events.items():
            yield f"event `{event[:_SHOWN]}`, in {_lines(n)}: no reader knows it; perhaps `{name}` is meant"


def _objects(event: str, document: JsonObject) -> Iterator[tuple[Level, JsonObject]]:
    """Yield the objects of a line that have names of their own, each with its level."""
    kind = document.get("kind")
    yield (f"metrics.{kind}" if event == "metrics" and kind in _READ_KINDS else event), document
    below = document.get(_BELOW[event]) if event in _BELOW else None
    for part in below if isinstance(below, list) else [below]:
        if isinstance(part, dict):
            yield f"{event}.{_BELOW[event]}", part
            if event == "run_start":
                for name in ("optimizer", "lora", "training"):
                    if isinstance(part.get(name), dict):
                        yield f"run_start.config.{name}", part[name]


def _is_read(level: Level, keys: frozenset[str]) -> bool:
    if level in _READ:
        return bool(keys & _READ[level]) or any(key.startswith("rewards/") for key in keys)
    if level == "eval.metrics" or level.startswith("run_start.config"):
        return bool(keys)
    return level in {"alert", "recommendation"} or level.startswith("metrics.")


def _missed(level: Level, present: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yield each key of an object that looks like a name that it lacks, and what it should be."""
    unknown = sorted(present - _LEVELS[level] - {"extras"})
    measured = _held_out(unknown, present) if level == "train_step" else {}
    for key in unknown:
        if key in measured:
            yield key, measured[key]
            continue
        aliases = ALIASES.get(level, {})
        lacking = {name: aliases.get(name, ()) for name in _LEVELS[level] - present - _ENVELOPE.keys()}
        meant = near(key, lacking)
        if meant is not None and key != f"{meant}_":  # which our own writer calls a value that was no number
            yield key, f"no reader knows it; perhaps `{meant}` is meant"


def _held_out(unknown: list[str], present: frozenset[str]) -> dict[str, str]:
    """Return the keys of a training row that are an evaluation's, each with where it should stand."""
    # The keys alone decide how a row is split; any number does as the values.
    row = dict.fromkeys([*unknown, *(present & {"loss", "lr", "grad_norm"})], 0.0)
    places = {}
    for split, values in split_row(row).evals.items():
        for key in unknown:
            name = next((n for n in values if key.endswith(f"_{n}") and key.startswith(HELD_OUT)), None)
            if name is not None:
                places[key] = f"readers take it from an `eval` event: split `{split}`, metrics `{name}`"
    return places


def _lines(n: int) -> str:
    return "1 line" if n == 1 else f"{n:,} lines"


def _bare(name: str) -> str:
    return _SEPARATORS.sub("", name.lower())
