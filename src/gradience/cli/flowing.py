"""Help that flows: a docstring's own line breaks give way to those of the terminal's width."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from inspect import cleandoc

__all__ = ["flowing", "with_flowing_help"]

_UNDERLINE = "----"


def with_flowing_help(target: str) -> Callable[..., object]:
    """Return the command `module:function` with each paragraph of its docstring on one line."""
    module, _, name = target.partition(":")
    command: Callable[..., object] = getattr(import_module(module), name)
    command.__doc__ = flowing(cleandoc(command.__doc__ or ""))
    return command


def flowing(text: str) -> str:
    """Return the text with lines joined that stand at the same depth; below an underline, indented ones only."""
    lines: list[str] = []
    listing = False
    for line in text.splitlines():
        listing = listing or line.startswith(_UNDERLINE)
        before = lines[-1] if lines else ""
        alike = before.strip() and line.strip() and _depth(before) == _depth(line)
        if alike and (_depth(line) > 0 or not listing):
            lines[-1] = f"{before} {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())
