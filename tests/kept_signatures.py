"""Make cyclopts build its table of a command's options once per process, and not at every call of the command.

A program runs one command, but tests run thousands in one process, and this table takes two thirds of a short command's
time. If pydantic is imported, as by the tests' libraries but by none of our commands, cyclopts also validates each
value with a pydantic validator that it makes for that value only. Those validators are kept as well.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

from cyclopts import App
from cyclopts.argument import Argument, ArgumentCollection

__all__ = ["keep_signatures"]


def keep_signatures() -> None:
    """From now on, give every parse a copy of the table that the command's first parse built."""
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

    assemble.kept = kept  # type: ignore[attr-defined]  # distinguishes it from cyclopts' own function
    App.assemble_argument_collection = assemble  # type: ignore[method-assign]
    _keep_validators()


def _keep_validators() -> None:
    """Make cyclopts reuse pydantic's validator of a type."""
    validate = Argument.validate
    kept: dict[int, tuple[Any, Any]] = {}  # id of a type -> the type, which must stay alive, and its validator

    def validated(argument: Argument, value: Any) -> Any:
        pydantic: Any = sys.modules.get("pydantic")
        if pydantic is None:
            return validate(argument, value)
        make = pydantic.TypeAdapter

        def adapter(hint: Any) -> Any:
            if id(hint) not in kept:
                kept[id(hint)] = hint, make(hint)
            return kept[id(hint)][1]

        pydantic.TypeAdapter = adapter
        try:
            return validate(argument, value)
        finally:
            pydantic.TypeAdapter = make

    Argument.validate = validated  # type: ignore[method-assign]


def _without_tokens(pristine: ArgumentCollection) -> ArgumentCollection:
    """A copy of a table into which no command line was read. A parse writes only into the arguments of the table."""
    fresh: dict[int, Argument] = {id(argument): copy.copy(argument) for argument in pristine}
    for argument in fresh.values():
        argument.tokens = []
        argument.children = ArgumentCollection(fresh[id(child)] for child in argument.children)
    return ArgumentCollection(fresh.values())
