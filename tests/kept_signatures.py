"""cyclopts makes its table of a command's options once in a process, and not at every call of the command in it.

A program runs one command, tests run thousands in one process, and two thirds of a short command's time is that table.
Where anything has imported pydantic, as the tests' libraries do and no command of ours, cyclopts has it look at each
value, too, by a validator made for that value alone; those are kept as well.
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
    _keep_validators()


def _keep_validators() -> None:
    """Have cyclopts find pydantic's validator of a type, where it made one, and not make another."""
    validate = Argument.validate
    kept: dict[int, tuple[Any, Any]] = {}  # by the id of the type, which is held beside its validator

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
    """A table like the one that no command line was read into: a parse writes into arguments and nothing below them."""
    fresh: dict[int, Argument] = {id(argument): copy.copy(argument) for argument in pristine}
    for argument in fresh.values():
        argument.tokens = []
        argument.children = ArgumentCollection(fresh[id(child)] for child in argument.children)
    return ArgumentCollection(fresh.values())
