"""Readers for each kind of value in a configuration file, and `Fields`, which is one level of a document.

A reader takes a JSON value and returns the typed value, or raises `Malformed` with the kind of value that it expects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar, get_args

from gradience.errors import ConfigError, few
from gradience.schema import Json, NonFinite, TaskProfile, real as on_the_wire
from gradience.telemetry.secrets import hide_secrets

MAX_DIGITS = 400  # digits of a number: the largest float has 309 when written out
MAX_TEXT = 256  # characters: longer strings are redacted in a log, and refused here
MAX_REGEX = 8192  # characters: a generated `target_modules` expression can be long
MAX_SHOWN = 40  # characters of a value quoted in an error
MAX_INT = 2**63  # whole numbers from here on do not fit the JSON readers of our reports

T = TypeVar("T")

_ENUM = re.compile(r"[A-Z][A-Za-z0-9]*\.(\w+)")  # `OptimizerNames.ADAMW_TORCH`, as str() writes an enum
_NO = {"false", "no", "off", "0"}
_YES = {"true", "yes", "on", "1"}

_SECRET = re.compile(r"(?:.*_)?(?:token|api_?key|access_?key|secret(?:_key)?|password)", re.IGNORECASE)
_VOCABULARY = re.compile(  # tokens of a tokenizer, not of an account
    r"(?:.*_)?(?:eos|bos|pad|unk|sep|cls|mask|start|end|stop|image|audio|video|vision|think|special|boi|eoi)_token",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"<[A-Z0-9_]+>")  # TrainingArguments.to_dict() writes it whether or not a token is set


class Malformed(ValueError):  # noqa: N818  # names the state of the text
    """A text that is not a usable document, or a value of the wrong kind. The message names the fault."""


def plain(value: Json) -> str:
    """Describe a value for an error message: its kind, and its start if it is a text or a number.

    >>> plain("abc"), plain(None), plain([1])
    ("the text 'abc'", 'null', 'a list')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    shown = ascii(value) if isinstance(value, str) else _digits(value)
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[: MAX_SHOWN - 3]}..."
    return f"the text {shown}" if isinstance(value, str) else f"the number {shown}"


def _digits(value: float) -> str:
    # repr() raises on a number of thousands of digits.
    big = isinstance(value, int) and abs(value) >= MAX_INT
    return "of more than 18 digits" if big else repr(value)


def real(value: Json) -> float | NonFinite:
    """Return a number, also if it is written as text (YAML 1.1 reads `1e-4` as text)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Malformed("a number")
    try:
        return on_the_wire(float(value))
    except OverflowError:
        # float() raises on a whole number beyond 1e308, and reads the text of one as infinity.
        return on_the_wire(math.inf if int(value) > 0 else -math.inf)
    except ValueError:
        raise Malformed("a number") from None


def whole(value: Json) -> int:
    """Return a whole number; 8.0 and "8" are 8, and 8.5 is refused."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        read = real(value)
        if isinstance(read, str) or not read.is_integer():
            raise Malformed("a whole number")
        number = int(read)
    if abs(number) >= MAX_INT:
        raise Malformed("a whole number of at most 18 digits")
    return number


def text(value: Json) -> str:
    """Return a short text."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise Malformed(f"a text of at most {MAX_TEXT} characters")
    return printable(value)


def printable(value: str) -> str:
    """Return the text without lone surrogates, which JSON can spell and UTF-8 cannot."""
    return value.encode("utf-8", "replace").decode("utf-8")


def keyword(value: Json) -> str:
    """Return a name from a fixed choice, in lower case, without the name of its Python enum."""
    name = text(value)
    match = _ENUM.fullmatch(name)
    return (match[1] if match else name).lower()


def upper(value: Json) -> str:
    """Return a name from a fixed choice, as PEFT writes them: in upper case."""
    return keyword(value).upper()


def strategy(value: Json) -> str:
    """Return a strategy such as `no`, `steps` or `epoch`. YAML 1.1 reads a bare `no` as false, so false is `no`."""
    return "no" if value is False else keyword(value)


def flag(value: Json) -> bool:
    """Return a boolean, also if it is written as 0, 1 or text."""
    word = str(value).lower() if isinstance(value, bool | int | str) else ""
    if word in _YES | _NO:
        return word in _YES
    raise Malformed("true or false")


def as_text(value: Json) -> str:
    """Return a value that is true, false or a name, as text (PEFT's `init_lora_weights`)."""
    return str(value).lower() if isinstance(value, bool) else text(value)


_CACHED: Final = re.compile("(?:models|datasets)--(?=[^-])")
_FRAMEWORKS: Final = frozenset({"transformers", "pytorch", "keras", "jax", "other"})
_OF_KAGGLE: Final = 3  # of .../model/framework/variation/version
_ALIKE: Final = 4  # letters of a model's name with which a variation's name begins too


def short_name(value: Json) -> str:
    r"""Return a hub id as it is, and only the last part of a path: a log must not reveal local paths.

    A folder of the hub's cache, or of Kaggle's models, is named by the model.

    >>> short_name("org/model"), short_name("/home/me/model/"), short_name("C:\\models\\m")
    ('org/model', 'model', 'm')
    >>> short_name("/c/models--org--m/snapshots/0a1"), short_name("/kaggle/input/gemma-2/transformers/gemma-2-2b/1")
    ('org/m', 'gemma-2-2b')
    >>> short_name("/kaggle/input/qwen2.5/transformers/0.5b-instruct/1"), short_name("/kaggle/x/m-8b/pyTorch/default/2")
    ('qwen2.5-0.5b-instruct', 'm-8b')
    """
    path = hide_secrets(text(value))  # before the path is cut: the end of a webhook's address is its secret
    parts = [part for part in re.split(r"[/\\]", path) if part]
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) is not None
    return path if is_hub_id or not parts else _name_in(parts)


def _name_in(parts: list[str]) -> str:
    cached = next((part for part in parts if _CACHED.match(part)), None)
    if cached is not None:
        return _CACHED.sub("", cached).replace("--", "/", 1)
    *before, last = parts
    if len(before) < _OF_KAGGLE or before[-2].lower() not in _FRAMEWORKS or not last.isdigit():
        return last
    model, variation = before[-3], before[-1]
    begins_alike = variation.lower().startswith(model.lower()[:_ALIKE])
    return model if variation == "default" else variation if begins_alike else f"{model}-{variation}"


def place(value: Json) -> str | None:
    """Return a path, or None for anything else: it is opened, never reported."""
    return value if isinstance(value, str) and value and "\0" not in value else None


def short_names(value: Json) -> str:
    """Return one name as `short_name` does, or those of a list in one text.

    >>> short_names("org/data"), short_names(["/home/me/train.jsonl"]), short_names(["a", "b", "c", "d"])
    ('org/data', 'train.jsonl', 'a, b, c and 1 more')
    """
    return few([short_name(item) for item in value]) if isinstance(value, list) else short_name(value)


def names(value: Json) -> list[str] | str:
    """Return a list of module names, or one text (a name or a regular expression)."""
    if isinstance(value, str) and len(value) <= MAX_REGEX:
        return printable(value)
    if isinstance(value, list):
        return [text(item) for item in value]
    raise Malformed("a list of names, or one text")


def name_list(value: Json) -> list[str]:
    """Return a list of names; one name is a list of one."""
    named = names(value)
    return [named] if isinstance(named, str) else named


def reals(value: Json) -> list[float | NonFinite]:
    """Return a list of numbers."""
    if not isinstance(value, list):
        raise Malformed("a list of numbers")
    return [real(item) for item in value]


def wholes(value: Json) -> list[int]:
    """Return a list of whole numbers."""
    if not isinstance(value, list):
        raise Malformed("a list of whole numbers")
    return [whole(item) for item in value]


def layer_numbers(value: Json) -> list[int]:
    """Return PEFT's `layers_to_transform` as a list; one number is a list of one."""
    return wholes(value) if isinstance(value, list) else [whole(value)]


def token_indices(value: Json) -> list[int] | dict[str, list[int]]:
    """Return PEFT's `trainable_token_indices`: token ids, of the input embedding or by layer."""
    if isinstance(value, dict):
        return {printable(key): wholes(item) for key, item in value.items()}
    return wholes(value)


def layer_ranges(value: Json) -> list[list[int]]:
    """Return PEFT's `layer_replication`: ranges of layers."""
    if not isinstance(value, list):
        raise Malformed("a list of pairs of whole numbers")
    return [wholes(item) for item in value]


def pattern(read: Callable[[Json], T]) -> Callable[[Json], dict[str, T]]:
    """Return a reader of PEFT's `rank_pattern` and `alpha_pattern`: module pattern to number."""

    def read_pattern(value: Json) -> dict[str, T]:
        if not isinstance(value, dict):
            raise Malformed("a mapping of module patterns to numbers")
        return {printable(key): read(item) for key, item in value.items()}

    return read_pattern


def profile(value: Json) -> TaskProfile:
    """Return one of the task profiles."""
    choices = get_args(TaskProfile)
    for choice in choices:
        if choice == value:
            profile: TaskProfile = choice
            return profile
    raise Malformed(f"one of {', '.join(choices)}")


class Fields:
    """One level of a document. It keeps track of the keys that were read. Credentials are never read."""

    def __init__(self, mapping: dict[str, Json], where: str, at: str = "$") -> None:
        self._mapping = mapping
        self._where = where
        self._at = at
        self._read: set[str] = set()

    def __contains__(self, name: object) -> bool:
        """Whether the document has the key."""
        return name in self._mapping

    @property
    def n_read(self) -> int:
        """The number of keys that were read."""
        return len(self._read)

    def is_null(self, *keys: str) -> bool:
        """Whether one of the keys is there and none of them has a value."""
        present = [key for key in keys if key in self._mapping]
        return bool(present) and all(self._mapping[key] is None for key in present)

    def is_mapping(self, key: str) -> bool:
        """Whether the key holds a mapping, which is a section and not a plain value."""
        return isinstance(self._mapping.get(key), dict)

    def holds(self, key: str, inner: str) -> bool:
        """Whether `key` holds a mapping that has `inner`. Neither key counts as read."""
        value = self._mapping.get(key)
        return isinstance(value, dict) and inner in value

    def take(self, keys: Sequence[str], read: Callable[[Json], T]) -> T | None:
        """Return the value under the keys, or None if none is set; ConfigError if two of them disagree."""
        by_key: dict[str, T] = {}
        for key in keys:
            if key not in self._mapping:
                continue
            self._read.add(key)
            if self._mapping[key] is not None:
                by_key[key] = self._value(key, read)
        values = list(by_key.values())
        if any(value != values[0] for value in values):
            message = f"{self._where}: {self._at}: {' and '.join(by_key)} contradict each other"
            raise ConfigError(message, advice="they are names of one setting: keep one")
        return values[0] if values else None

    def section(self, key: str) -> Fields | None:
        """The mapping under a key, as `Fields`; None if the key holds no mapping."""
        value = self._mapping.get(key)
        if not isinstance(value, dict):
            return None
        self._read.add(key)
        return Fields(value, self._where, f"{self._at}.{printable(key)}")

    def contradiction(self, setting: str) -> ConfigError:
        """Return the error for a setting that another level of the document states with a different value."""
        message = f"{self._where}: {self._at}: {setting} is given twice, with different values"
        return ConfigError(message, advice="a section and the top level speak of one setting: keep one")

    def left_over(self, known: Callable[[str], bool]) -> Iterator[str]:
        """Yield the dotted path of each key that was neither read nor known. Values are never yielded."""
        for key in self._mapping:
            if key not in self._read and not known(key) and not _is_secret(key):
                yield f"{self._at}.{printable(key)[:MAX_TEXT]}".removeprefix("$.")

    def secrets(self) -> Iterator[str]:
        """Yield the keys that hold a credential. The values are not used."""
        for key, value in self._mapping.items():
            if _is_secret(key) and isinstance(value, str) and value and not _PLACEHOLDER.fullmatch(value):
                yield printable(key)[:MAX_TEXT]

    def masked(self) -> Iterator[str]:
        """Yield the credential keys that hold a placeholder instead of a value."""
        for key, value in self._mapping.items():
            if _is_secret(key) and isinstance(value, str) and _PLACEHOLDER.fullmatch(value):
                yield printable(key)[:MAX_TEXT]

    def scalars(self) -> dict[str, Json]:
        """The short plain values that are not credentials. Only these may be kept in `extras`."""
        kept = {key: value for key, value in self._mapping.items() if _is_short(value) and not _is_secret(key)}
        self._read |= set(kept)
        return {
            printable(key)[:MAX_TEXT]: on_the_wire(value) if isinstance(value, float) else value
            for key, value in kept.items()
        }

    def _value(self, key: str, read: Callable[[Json], T]) -> T:
        try:
            return read(self._mapping[key])
        except Malformed as error:
            got = plain(self._mapping[key])
            message = f"{self._where}: {self._at}.{key}: expected {error}, got {got}"
            raise ConfigError(message, advice="correct the value, or leave the key out") from None


def _is_secret(key: str) -> bool:
    return _SECRET.fullmatch(key) is not None and _VOCABULARY.fullmatch(key) is None


def _is_short(value: Json) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT and value == printable(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    return isinstance(value, bool | float)
