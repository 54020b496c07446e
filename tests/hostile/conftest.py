"""Commands in processes of their own, and the smallest inputs that are whole."""

from __future__ import annotations

import pytest
from isolated import Stable


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
