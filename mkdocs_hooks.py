"""The site holds docs/ alone: links from there to other files become their names, and api.md gets the docstrings.

The page of rules is made here, of the rules as they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from gradience.render.rules import rules_markdown
from gradience.rules import rule_cards


def on_files(files: Any, *, config: Any, **_: object) -> Any:
    """The site's files, with the page of rules."""
    files.append(File.generated(config, "rules.md", content=rules_markdown(rule_cards())))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: object) -> str:
    """The page's text; a link to a file that does not exist ends the build."""
    root = Path(config["config_file_path"]).parent
    up = re.escape("../" * (page.file.src_uri.count("/") + 1))  # from the page's folder to the repository

    def named(link: re.Match[str]) -> str:
        if not (root / link["path"]).exists():
            raise FileNotFoundError(f"docs/{page.file.src_uri} links to {link['path']}, which does not exist")
        return f"`{link['path']}`"

    text = re.sub(rf"\[[^\]]*\]\({up}(?P<path>[^)#]+)(?:#[^)]*)?\)", named, markdown)
    return re.sub(r"(?:^\|.*\|\n)+", _explained, text, flags=re.MULTILINE) if page.file.src_uri == "api.md" else text


def _explained(table: re.Match[str]) -> str:
    """A table of names, and behind it what mkdocstrings makes of each; fields of options have comments of their own."""
    style = {True: "\n    options:\n      docstring_style: numpy", False: ""}
    names = re.findall(r"^\| `(\w+)` \|", table[0], re.MULTILINE)
    own = (name.endswith("Options") and name != "CheckOptions" for name in names)
    return table[0] + "".join(
        f"\n::: gradience.{name}{style[is_own]}\n" for name, is_own in zip(names, own, strict=True)
    )
