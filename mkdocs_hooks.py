"""The site holds docs/ alone: links from there to other files of the repository become their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: object) -> str:
    """The page's text; a link to a file that does not exist ends the build."""
    root = Path(config["config_file_path"]).parent
    up = re.escape("../" * (page.file.src_uri.count("/") + 1))  # from the page's folder to the repository

    def named(link: re.Match[str]) -> str:
        if not (root / link["path"]).exists():
            raise FileNotFoundError(f"docs/{page.file.src_uri} links to {link['path']}, which does not exist")
        return f"`{link['path']}`"

    return re.sub(rf"\[[^\]]*\]\({up}(?P<path>[^)#]+)(?:#[^)]*)?\)", named, markdown)
