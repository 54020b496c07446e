"""The site of docs/: it builds without a warning, and holds every public name."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import api_page
import pytest

import gradience

VERBS = (
    *("audit", "bench", "check", "compare", "convert", "data", "detectors", "diagnose", "import", "loops", "merge"),
    *("monitor", "report", "resize", "verify", "why", "wiring"),
)
TASKS = ("ci", "judge", "many", "ship", "smaller", "watch")
MOST = 30_000
NEEDED = ("mkdocs", "mkdocstrings", "mkdocstrings_handlers.python")


def missing(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except ModuleNotFoundError:
        return True


def build(root: Path, out: Path, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    command += [] if config is None else ["--config-file", str(config)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(root, tmp_path_factory) -> Path:
    absent = [name for name in NEEDED if missing(name)]
    if absent:
        pytest.skip(f"{absent[0]} is not installed: 'nox -s docs' builds the site")
    out = tmp_path_factory.mktemp("site")
    done = build(root, out)
    assert done.returncode == 0, done.stderr
    return out


def test_every_public_name_is_in_the_reference_with_its_docstring(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    headings = set(re.findall(r'<h3 id="gradience\.(\w+)"', page))
    assert headings == {*gradience.__all__, "GradienceCallback", "preflight"} - {"__version__"}
    assert "Return the audit of one trained adapter." in page
    assert ("<blockquote>" in page, page.count("language-pycon") > 1) == (False, True)  # sessions are code


def test_a_link_to_a_file_outside_docs_is_its_name(site):
    page = (site / "loops.html").read_text(encoding="utf-8")
    assert "<code>examples/vnext/jax_loop.py</code>" in page
    assert "../examples" not in page


def test_the_index_names_every_page(root):
    index = (root / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (root / "docs").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\((\S+?\.md)\)", index))


def test_the_list_of_public_names_is_the_package(root):
    written = (root / "docs" / "api.md").read_text(encoding="utf-8")
    assert written == api_page.page(), "after a change that was meant: python tests/api_page.py"


def test_a_page_for_a_verb_or_a_task_is_short(root):
    """Details and measurements are in docs/evidence; a reference (rules, numbers, limits) is no such page."""
    words = {page: len((root / "docs" / f"{page}.md").read_text(encoding="utf-8").split()) for page in (*VERBS, *TASKS)}
    assert {page: n for page, n in words.items() if n > 750} == {}


def test_all_pages_together_are_no_more_than_a_person_reads(root):
    pages = [root / "README.md", *(root / "docs").rglob("*.md")]
    assert sum(len(page.read_text(encoding="utf-8").split()) for page in pages) <= MOST


def test_a_link_from_page_to_page_has_its_target(root):
    for path in (root / "docs").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_each_page_of_evidence_is_linked_from_its_page(root):
    for path in (root / "docs" / "evidence").glob("*.md"):
        pages = [page.read_text(encoding="utf-8") for page in (root / "docs").glob("*.md")]
        assert any(f"(evidence/{path.name}" in re.sub(r"\s+", "", page) for page in pages), path.name


def test_each_rule_that_a_page_or_a_benchmark_of_detectors_names_is_there(root):
    pages = {
        path for path in (root / "docs").rglob("*.md") if path != root / "docs" / "evidence" / "rules.md"
    }  # history
    known = {card.id for card in gradience.list_rules().rules}
    for path in (*pages, root / "README.md", *(root / "benchmarks").glob("rl*.py"), root / "benchmarks" / "faults.py"):
        named = set(re.findall(r"\b[A-Z]{2,3}\d{3}\b", path.read_text(encoding="utf-8")))
        assert named <= known, path.name


@pytest.mark.parametrize(("text", "said"), [("[x](absent.md)", "absent.md"), ("[x](../absent.py)", "absent.py")])
def test_a_link_to_nothing_fails_the_build(site, root, tmp_path, text, said):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n{text}\n")
    config = tmp_path / "mkdocs.yml"
    hooks = (root / "mkdocs_hooks.py").as_posix()
    config.write_text(f"site_name: x\nhooks: [{hooks}]\nvalidation: {{unrecognized_links: warn}}\n")
    done = build(tmp_path, tmp_path / "out", config)
    assert done.returncode != 0
    assert said in done.stderr
