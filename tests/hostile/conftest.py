"""Commands in processes of their own, and the smallest inputs that are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from isolated import Stable

HERE = Path(__file__).resolve().parent
# Tests that fail as yet, by the row of the fault: whoever mends one takes its line out. Empty, the file goes.
ROWS = json.loads((HERE / "unmended.json").read_text(encoding="utf-8"))
UNMENDED = {name: row for row, names in ROWS.items() for name in names}


@pytest.fixture(scope="session")
def stable(tmp_path_factory):
    """The process whose forks are the commands."""
    made = Stable(tmp_path_factory.mktemp("commands"))
    yield made
    made.close()


@pytest.fixture
def run(stable, tmp_path):
    """A function that runs `gradience` with arguments in `tmp_path`, and returns what became of it."""

    def command(*argv, **options):
        return stable.run(*argv, **({"cwd": tmp_path} | options))

    return command


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == HERE and (row := UNMENDED.get(item.nodeid.partition("::")[2])):
            item.add_marker(pytest.mark.xfail(strict=True, reason=row))
