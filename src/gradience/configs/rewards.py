"""The columns that a recipe's reward functions are called with, read from their signatures; nothing is imported."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

from gradience.io.reading import read_small, real_path

_OF_TRL: Final = {"accuracy_reward": ("solution",), "reasoning_accuracy_reward": ("solution",)}  # TRL 1.16, trl.rewards
_GIVEN: Final = frozenset({  # by the trainer itself, beside the columns
    "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments",
})  # fmt: skip
_MOST: Final = 1 << 20  # bytes of a file of reward functions


def columns_needed(names: object, folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the columns that each reward function needs, of those whose signature is known.

    Args:
        names: `reward_funcs` of a recipe: names of TRL, or `module.function` of a file below the folder.
        folder: the recipe's.
    """
    functions = [name for name in (names if isinstance(names, list) else [names]) if isinstance(name, str)]
    return {name: reward for name in functions if (reward := _OF_TRL.get(name) or _of_own(name, folder))}


def _of_own(name: str, folder: Path) -> tuple[str, ...]:
    module, _, function = name.rpartition(".")
    path = folder / (module.replace(".", "/") + ".py")
    if not module or not real_path(path).is_relative_to(real_path(folder)):
        return ()
    try:
        body = ast.parse(read_small(path, most=_MOST, what="a file of reward functions")).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    made = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function]
    return _without_default(made[-1].args) if made else ()


def _without_default(args: ast.arguments) -> tuple[str, ...]:
    named = [*args.posonlyargs, *args.args]
    parameters = named[: len(named) - len(args.defaults)]
    parameters += [one for one, default in zip(args.kwonlyargs, args.kw_defaults, strict=True) if default is None]
    return tuple(one.arg for one in parameters if one.arg not in _GIVEN)
