"""No public function has more than eight parameters: beyond that its options are a record."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

MOST = 8
CONSTRUCTORS = {  # whose keywords are the one list of their options, and whose callers are other programs' scripts
    "cli/merge.py: verify_merge": 9,  # a command; two of them name one adapter
    "hf/callback.py: GradienceCallback.__init__": 14,
    "hf/watched.py: WiringWatch.__init__": 9,
    "hf/wires.py: Wires.__init__": 9,
    "lightning.py: GradienceCallback.__init__": 10,
}


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The public functions and methods of a module, each with the number of its parameters (without self and cls)."""
    for node in tree.body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        for each in inside:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                given = [a.arg for a in (*each.args.posonlyargs, *each.args.args, *each.args.kwonlyargs)]
                name = f"{node.name}.{each.name}" if isinstance(node, ast.ClassDef) else each.name
                if not any(part.startswith("_") and not part.startswith("__") for part in name.split(".")):
                    yield name, len([arg for arg in given if arg not in {"self", "cls"}])


def test_no_public_function_has_more_than_eight_parameters(root: Path) -> None:
    source = root / "src" / "gradience"
    found = {
        f"{path.relative_to(source).as_posix()}: {name}": count
        for path in sorted(source.rglob("*.py"))
        for name, count in functions(ast.parse(path.read_text(encoding="utf-8")))
        if count > MOST
    }
    assert found == CONSTRUCTORS


@pytest.mark.parametrize(("count", "listed"), [(8, 0), (9, 1)])
def test_parameters_of_every_kind_are_counted(count: int, listed: int) -> None:
    names = [f"p{n}" for n in range(count)]
    for text in (
        f"def f({', '.join(names)}): ...",
        f"def f({', '.join(names[:2])}, /, *, {', '.join(names[2:])}): ...",
        f"class C:\n    async def f(self, {', '.join(names)}, **more): ...",
    ):
        assert len([name for name, n in functions(ast.parse(text)) if n > MOST]) == listed
    private = f"def _f({', '.join(names)}): ...\nclass _C:\n    def f({', '.join(names)}): ..."
    assert not list(functions(ast.parse(private)))
