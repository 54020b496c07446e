"""Errors that a caller can act on, and words for messages about many items.

Each error says what is wrong and carries one line of advice. The module also detects another project on the package
index with the same name. Both install a package `gradience` and a command `gradience`; if both are installed, some
files of one replace those of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    pass


__all__ = [
    "AdapterError",
    "ConfigError",
    "DamagedError",
    "GradienceError",
    "MissingPackageError",
    "OptionError",
    "OutputError",
    "RecorderError",
    "SchemaError",
]

UNUSABLE: Final = 2
"""The exit code of a command whose input, or whose use, is refused."""
SUMMARY: Final = "Flight recorder and mechanic for LoRA fine-tuning: check a config, monitor a run, audit an adapter."
INSTALL: Final = "in the clone: pip install -e '.[hf]'"
"""How the extra for the Trainer callback is installed. From the index, `pip install gradience` is the other project."""


class GradienceError(Exception):
    """Base of every error that is raised on purpose. Its text is both of its parts.

    Attributes:
        message: what is wrong.
        advice: one line that says what to do, or empty.
    """

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        """What is wrong and what to do, as the command line says it."""
        return f"{self.message} ({self.advice})" if self.advice else self.message


class SchemaError(GradienceError):
    """A document does not follow its schema."""


class AdapterError(GradienceError):
    """An adapter folder or weights file cannot be read."""


class DamagedError(AdapterError):
    """A weights file that ends before its data do: nothing can load it."""


class MissingBaseError(AdapterError):
    """No file of a base model is at hand."""


class RecorderError(GradienceError):
    """A telemetry log cannot be written or read."""


class MissingPackageError(RecorderError):
    """A log can be read once a package is installed: a fact of the environment, not of the log."""


class ConfigError(GradienceError):
    """A configuration file cannot be read or understood."""


# A ValueError too, which callers from Python expect for an argument out of its range.
class OptionError(GradienceError, ValueError):
    """An option is out of its range, or options do not go together."""


def said(error: BaseException) -> str:
    """What an error says, without advice."""
    return error.message if isinstance(error, GradienceError) else str(error)


class Unknown(Exception):  # noqa: N818  # a result of looking, not an error
    """What a rule needs is not there. The message is the reason, for the report."""


class OutputError(GradienceError):
    """A file or folder cannot be written, or something of that name exists already."""


def require(*modules: str, extra: str, what: str = "this") -> None:
    """Refuse work that would end at a package that is not installed, before the work.

    Raises:
        GradienceError: one of the modules is missing; the advice installs the extra that has it.
    """
    from importlib.util import find_spec  # 5 ms that an error-free start need not pay

    if missing := [name for name in modules if find_spec(name) is None]:
        verb = "is" if len(missing) == 1 else "are"
        message = f"{what} needs {' and '.join(missing)}, which {verb} not installed"
        raise GradienceError(message, advice=f"in the clone: pip install -e '.[{extra}]'")


def few(items: Sequence[object], shown: int = 3, between: str = ", ") -> str:
    """The first items of a list, for a message, and the number of the remaining ones.

    >>> few(["q", "k", "v", "o"]), few(["q", "k"])
    ('q, k, v and 1 more', 'q, k')
    """
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return between.join(map(str, items[:shown])) + more


def other_project() -> str | None:
    """A warning if another project's distribution of this name is installed; None if not."""
    from importlib.metadata import distributions  # only those who ask pay for it

    # Name and command are the same, so the summary, which pyproject.toml sets, tells the two apart.
    others = [one for one in distributions(name="gradience") if (one.metadata["Summary"] or "").strip() != SUMMARY]
    if not others:
        return None
    versions = ", ".join(sorted({dist.version for dist in others}))
    return (
        f"another project named gradience ({versions}) is installed in this environment, with the same package and "
        "command: pip uninstall gradience, then install this one from its clone or wheel"
    )
