"""Compile each Jinja template once per process, because PEFT compiles the text of its model card at every save."""

from __future__ import annotations

from typing import Any

__all__ = ["install"]


def install() -> None:
    """Make every Jinja environment cache the code of a template by the template's text."""
    import jinja2

    compiled = jinja2.Environment.compile
    made: dict[Any, tuple[jinja2.Environment, Any]] = {}  # holds the environment too, whose id is part of the key

    def compile_once(self: jinja2.Environment, source: Any, *args: Any, **options: Any) -> Any:
        key = (id(self), source, args, tuple(options.items()))
        if key not in made:
            made[key] = (self, compiled(self, source, *args, **options))
        return made[key][1]

    jinja2.Environment.compile = compile_once  # type: ignore[method-assign]
