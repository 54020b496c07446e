"""The house: a stranger's file is opened in one place, `gradience.io.reading`, and nowhere else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
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

ALLOWED = {
    ("announce.py", "send", "path.open"): "written: the summary that a GitHub runner names, appended to",
    ("adapters/formats/__init__.py", "_npz", "np.load"): "no pickles, of what was opened as a regular file",
    ("adapters/formats/__init__.py", "_npz", "zipfile.ZipFile"): "the same file's list of entries",
    ("adapters/formats/__init__.py", "_load", "torch.load"): "weights only, of what was opened as a regular file",
    ("cli/main.py", "_keep_descriptors", "os.open"): "the null device",
    ("cli/main.py", "script", "Path(os.devnull).open"): "the null device",
    ("cli/output.py", "leave_stdout", "os.open"): "the null device",
    ("configs/pickled.py", "_entry", "archive.open"): "a member of an archive in memory",
    ("configs/pickled.py", "_pickle_of", "zipfile.ZipFile"): "of bytes in memory",
    ("data/pictures.py", "_size", "Image.open"): "of what was opened as a regular file, or of bytes",
    ("data/tokenizer.py", "_training_template", "stock.read_text"): "a template in TRL's own package",
    ("data/tokenizer.py", "_training_template", "path.read_text"): "the same",
    ("judge/check/clean.py", "write_clean", "rows.open"): "written: a new name beside the output",
    ("judge/check/clean.py", "write_clean", "ledger.open"): "the same",
    ("importers/__init__.py", "_write", "partial.open"): "written: a new name beside the output",
    ("importers/databases.py", "_copied", "copyfile"): "of what `require_file` found to be a regular file",
    ("importers/databases.py", "_stored", "copyfile"): "of regular files, into a folder of ours",
    ("importers/databases.py", "_tables", "sqlite3.connect"): "opens by a path, read only; the same",
    ("models/statistics.py", "statistics", "np.memmap"): "scratch of ours, in a temporary folder",
    (
        "blocks/html/figures.py",
        "style_sheet",
        "files('gradience.blocks.html').joinpath('style.css').read_text",
    ): "a file of ours",
    ("tables/store.py", "_write", "os.open"): "written: a new name of a part, with its mode from creation",
    ("tables/query.py", "opened", "duckdb.connect"): "a database in memory",
    ("collect/fleet/find.py", "_peeked", "system.open"): "by fsspec: a URL, of whose file a bounded head is read",
    ("collect/fleet/find.py", "_peeked", "(folder / 'head.safetensors').open"): "scratch of ours",
    ("models/named.py", "_link", "shutil.copyfile"): "a regular file into scratch of ours, where links are not allowed",
    ("hf/pace.py", "_memory", "_STATUS.read_text"): "the kernel's own file of this process",
    ("hf/pace.py", "_total", "_GROUP.read_text"): "the kernel's own file of this process's group",
    ("rewrite/writing.py", "keep", "np.fromfile"): "what `keep` wrote, in a temporary folder of ours",
    ("telemetry/logfile.py", "_opened", "os.open"): "the log that is written: without blocking, then checked",
}


_CANDIDATES = OPENERS | {name.rpartition(".")[2] for name in METHODS | LOADERS}
NAMED = re.compile("|".join(sorted(_CANDIDATES)))


def _last_name(function: ast.expr) -> str:
    """`c` of `a.b.c(...)`: most calls need not be written out."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ast.unparse(function).rpartition(".")[2]


def opened(tree: ast.AST, function: str = "") -> Iterator[tuple[str, str]]:
    """Yield the function in which each file is opened, and by what."""
    for node in ast.iter_child_nodes(tree):
        name = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(node, ast.Call) and _last_name(node.func) in _CANDIDATES:
            called = ast.unparse(node.func)
            last = called.rpartition(".")[2]
            if last in OPENERS or called in LOADERS or called.endswith(tuple(METHODS)):
                yield name, called
        yield from opened(node, name)


@cache
def found() -> set[tuple[str, str, str]]:
    places = set()
    for path in sorted(SOURCE.rglob("*.py")):
        module, text = path.relative_to(SOURCE).as_posix(), path.read_text(encoding="utf-8")
        if not module.startswith("io/") and NAMED.search(text):  # where no name of them stands, nothing is called
            for function, called in opened(ast.parse(text)):
                places.add((module, function, called))
    return places


def test_no_file_is_opened_beside_the_one_guarded_place() -> None:
    assert sorted(found() - ALLOWED.keys()) == []


def test_every_exception_is_still_one() -> None:
    assert sorted(ALLOWED.keys() - found()) == []


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
