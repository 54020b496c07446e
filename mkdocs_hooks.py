"""The site holds docs/ alone: links from there to other files become their names, and api.md gets the docstrings.

The pages of rules are made here, of the rules as they are: one for each group, and one that lists them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from griffe import Extension
from mkdocs.structure.files import File

from gradience.render.findings import HEADINGS
from gradience.render.rules import rules_markdown
from gradience.rules import rule_cards


class Doctests(Extension):
    """Sessions of Python in docstrings as blocks of code: Markdown takes `>>>` for quotations."""

    def on_instance(self, *, obj: Any, **_: object) -> None:
        """Fence the sessions of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^( *)>>> .*(?:\n\1\S.*)*", r"\1```pycon\n\g<0>\n\1```", obj.docstring.value, flags=re.MULTILINE
            )


def on_files(files: Any, *, config: Any, **_: object) -> Any:
    """The site's files, with the pages of rules, and a style by which long names break."""
    made = {"site.css": "code { overflow-wrap: anywhere; white-space: normal; }\npre code { white-space: pre; }\n"}
    index = ["# Every rule", "", "| group | rules | of which |", "|---|---|---|"]
    for group, heading in HEADINGS.items():
        members = [card for card in rule_cards() if card.groups[0] == group]
        if members:
            ids = " ".join(card.id for card in members)
            index.append(f"| [{heading}](rules-{group}.md) | {len(members)} | {ids} |")
            made[f"rules-{group}.md"] = rules_markdown(members)
    for name, text in {**made, "rules.md": "\n".join(index)}.items():
        files.append(File.generated(config, name, content=text))
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
