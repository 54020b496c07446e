"""Three newcomers walk over a run, each with one tool: the command line, a notebook, a CI job."""

from __future__ import annotations

import pytest
import screens

LINES, COLUMNS = 30, 100


@pytest.mark.parametrize("walk", screens.WALKS)
def test_the_screens_of_a_newcomer_are_the_golden_ones(walk):
    golden = (screens.FOLDER / f"{walk}.txt").read_text(encoding="utf-8")
    assert screens.whole(screens.walked(walk)) == golden, "after a change that was meant: python tests/screens.py"


def test_a_verb_fits_one_screen_but_for_stories_and_commands():
    """A story, a command and a path are as long as the run makes them; a terminal wraps them."""
    golden = (screens.FOLDER / "cli.txt").read_text(encoding="utf-8")
    for screen in golden.removeprefix("$ ").split("\n$ "):
        command, *lines = screen.rstrip("\n").split("\n")
        assert len([line for line in lines if not line.startswith("    ")]) <= LINES, command  # less what is folded
        wide = [line for line in lines if len(line) > COLUMNS]
        assert [line for line in wide if not line.startswith(("Story:", "Next", "  config  runs/"))] == []
