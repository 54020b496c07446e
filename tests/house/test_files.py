"""The house: a stranger's file is opened in one place, `gradience.io.reading`, and nowhere else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tables import every

import gradience

SOURCE = Path(gradience.__file__).parent

OPENERS = frozenset({  # of a path: functions, or methods of anything
    *("open", "open_binary", "open_text", "fdopen", "fromfile", "memmap", "loadtxt", "genfromtxt", "FileIO"),
    *("ZipFile", "TarFile", "copyfile", "copy2", "copytree", "connect", "mmap", "safe_open"),
})  # fmt: skip
METHODS = frozenset({".read_text", ".read_bytes"})
LOADERS = frozenset({"np.load", "numpy.load", "jnp.load", "torch.load"})

ALLOWED = {  # how often a module opens something itself, and what
    "adapters/formats/__init__.py": (3, "what was opened as a regular file: weights only, no pickles"),
    "announce.py": (1, "written: the summary that a GitHub runner names, appended to"),
    "blocks/html/figures.py": (1, "a file of ours"),
    "cli/main.py": (2, "the null device"),
    "commands/output.py": (1, "the null device"),
    "configs/pickled.py": (2, "an archive in memory, and its member"),
    "data/pictures.py": (1, "of what was opened as a regular file, or of bytes"),
    "data/tokenizer.py": (2, "templates in TRL's own package"),
    "folder/moments.py": (1, "an archive in what was opened as a regular file"),
    "hf/pace.py": (2, "the kernel's own files of this process and its group"),
    "importers/__init__.py": (1, "written: a new name beside the output"),
    "importers/databases.py": (3, "regular files, copied into a folder of ours and opened read only"),
    "models/named.py": (1, "a regular file into scratch of ours, where links are not allowed"),
    "models/statistics.py": (1, "scratch of ours, in a temporary folder"),
    "rewriting/writing.py": (1, "what it wrote itself, in a temporary folder of ours"),
    "tables/query.py": (1, "a database in memory"),
    "tables/store.py": (1, "written: a new name of a part, with its mode from creation"),
    "telemetry/logfile.py": (1, "the log that is written: without blocking, then checked"),
}
_CANDIDATES = OPENERS | {name.rpartition(".")[2] for name in METHODS | LOADERS}
NAMED = re.compile("|".join(sorted(_CANDIDATES)))


def _last_name(function: ast.expr) -> str:
    """`c` of `a.b.c(...)`: most calls need not be written out."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ast.unparse(function).rpartition(".")[2]


def opened(tree: ast.AST) -> Iterator[str]:
    """Yield what opens a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _last_name(node.func) in _CANDIDATES:
            called = ast.unparse(node.func)
            if called.rpartition(".")[2] in OPENERS or called in LOADERS or called.endswith(tuple(METHODS)):
                yield called


def test_files_are_opened_in_the_one_guarded_place_and_where_it_is_said_why() -> None:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        module, text = path.relative_to(SOURCE).as_posix(), path.read_text(encoding="utf-8")
        if not module.startswith("io/") and NAMED.search(text) and (count := len(list(opened(ast.parse(text))))):
            found[module] = count
    assert found == {module: count for module, (count, _) in ALLOWED.items()}


@every(
    "line",
    [
        *("open(path)", "path.open('rb')", "Path(p).read_text()", "p.read_bytes()", "io.open_binary(p)"),
        *("np.load(p)", "np.fromfile(p)", "sqlite3.connect(p)", "shutil.copyfile(a, b)", "zipfile.ZipFile(p)"),
        *("torch.load(p)", "safe_open(p, framework='np')", "os.open(p, 0)", "mmap.mmap(-1, 1)"),
    ],
)
def test_each_way_to_open_a_file_is_noticed(line: str) -> None:
    assert len(list(opened(ast.parse(f"def f():\n    {line}\n")))) == 1


def test_links_are_followed_only_where_a_circle_of_them_is_no_error() -> None:
    found = [path.name for path in SOURCE.rglob("*.py") if ".resolve(" in path.read_text(encoding="utf-8")]
    assert found == []  # but `io.reading.real_path`
