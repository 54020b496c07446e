"""What the README shows as output is what the commands print, line by line."""

from __future__ import annotations

import re

import pytest
import readme_blocks


@pytest.fixture(scope="module")
def blocks(root):
    return readme_blocks.blocks((root / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("step", ["check", "monitor", "audit", "diagnose"])
def test_every_line_of_the_block_is_printed(blocks, step):
    shown, printed = blocks[step]
    assert shown.splitlines() == printed.splitlines(), "after a change that was meant: python tests/readme_blocks.py"


@pytest.mark.parametrize("page", readme_blocks.PAGES[1:])
def test_a_page_shows_what_its_commands_print(root, page):
    found = readme_blocks.blocks((root / page).read_text(encoding="utf-8"))
    assert found
    assert [shown for shown, _ in found.values()] == [printed for _, printed in found.values()]


def test_each_block_of_output_has_its_command(root, blocks):
    text = (root / "README.md").read_text(encoding="utf-8")
    assert text.count("```text\n") == len(blocks)


def test_a_cut_block_is_compared_up_to_its_cut_and_a_whole_one_to_its_end():
    assert readme_blocks.as_shown("a\nb\n...\n", "a\nx\nc\n") == "a\nx\n...\n"
    assert readme_blocks.as_shown("a\nb\n", "a\nb\nc\n") == "a\nb\nc\n"


def test_what_the_readme_says_of_the_smaller_adapter_is_what_resize_says(root):
    text = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    with readme_blocks.clone_with_run():
        said = readme_blocks.printed("gradience resize runs/toy/peft --like-suggested --out runs/small")
    before, after = re.search(r"Parameters: (\S+) -> (\S+)", said).groups()
    (error,) = re.search(r"Error: +([\d.]+)% of the whole", said).groups()
    assert f"Here {before} parameters become {after}, and {error} % of the update (in norm) is left out" in text
