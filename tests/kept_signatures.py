"""cyclopts makes its table of a command's options once in a process, and not at every call of the command in it.

A program runs one command, tests run thousands in one process, and two thirds of a short command's time is that table.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from cyclopts import App
from cyclopts.argument import Argument, ArgumentCollection

__all__ = ["keep_signatures"]


def keep_signatures() -> None:
    """From now on, give every parse its own copy of the table that the command's first parse made."""
    made: Callable[..., ArgumentCollection] = App.assemble_argument_collection
    if hasattr(made, "kept"):
        return
    kept: dict[Any, ArgumentCollection] = {}

    def assemble(app: App, **options: Any) -> ArgumentCollection:
        command = app.default_command
        if any(options.values()) or not getattr(command, "__module__", "").startswith("gradience.cli."):
            return made(app, **options)  # as for help, which needs the docstring, too
        if command not in kept:
            kept[command] = made(app)
        return _without_tokens(kept[command])

    assemble.kept = kept  # type: ignore[attr-defined]  # what tells it from cyclopts' own
    App.assemble_argument_collection = assemble  # type: ignore[method-assign]


def _without_tokens(pristine: ArgumentCollection) -> ArgumentCollection:
    """A table like the one that no command line was read into: a parse writes into arguments and nothing below them."""
    fresh: dict[int, Argument] = {id(argument): copy.copy(argument) for argument in pristine}
    for argument in fresh.values():
        argument.tokens = []
        argument.children = ArgumentCollection(fresh[id(child)] for child in argument.children)
    return ArgumentCollection(fresh.values())
