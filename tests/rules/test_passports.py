"""Every rule names what shows that its fault is met; what it names can be looked up."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from tables import every

from gradience.rules import rule_cards
from gradience.rules.passports import COUNTED, passport
from gradience.schema.document import Evidence, Passport, RuleCard

THREAD = "https://github.com/huggingface/trl/issues/6700"


def kind(source: str, *, seen: bool) -> str | None:
    made = passport(Evidence(source=source, says="so"), seen=seen)
    return made and made.kind


@every(
    ("source", "seen", "is_a"),
    [
        (THREAD, True, "complaint"),
        (THREAD, False, "complaint"),
        ("https://github.com/huggingface/trl", True, "public run"),
        ("https://huggingface.co/datasets/tatsu-lab/alpaca", True, "public run"),
        (COUNTED, True, "public run"),
        (COUNTED, False, None),
        ("peft/utils/other.py:get_pattern_key@0.21.2", False, "library"),
        ("peft/utils/other.py:get_pattern_key@0.21.2", True, None),
        ("peft/utils/other.py:get_pattern_key", False, None),
        ("peft/utils/other.py@0.21.2", False, None),
        ("https://huggingface.co/docs/peft/developer_guides/troubleshooting", False, "library"),
        ("https://arxiv.org/abs/2410.21228", False, None),
        ("arithmetic", False, "arithmetic"),
        ("a judgement", False, None),
        ("benchmarks/detectors.py", True, None),
        ("arXiv 2410.21228", False, None),
    ],
)
def test_a_passport_is_known_by_its_form_and_a_judgement_or_a_drawn_log_is_none(source, seen, is_a) -> None:
    assert kind(source, seen=seen) == is_a


def test_every_rule_names_one() -> None:
    assert [card.id for card in rule_cards() if not card.passports and not card.reading] == []


def of(form: str) -> Iterator[tuple[RuleCard, Passport]]:
    for card in rule_cards():
        for each in card.passports:
            if re.fullmatch(form, each.source):
                yield card, each


def test_what_is_said_to_be_counted_is_in_the_table_of_public_repositories(root: Path) -> None:
    table = (root / "docs" / "evidence" / "rules.md").read_text(encoding="utf-8")
    useful = {}
    for names, count in re.findall(r"^\| ([A-Z]{2,3}\d{3}[^|]*) \| *\d+ \| (\d*) *\|", table, re.MULTILINE):
        useful.update(dict.fromkeys(_ids(names), int(count or 0)))
    assert len(useful) > 40
    assert {card.id for card, _ in of(COUNTED) if not useful.get(card.id)} == set()


def _ids(names: str) -> list[str]:
    """The ids of a cell such as `DAT311 to DAT313, DAT315`.

    >>> _ids("DAT311 to DAT313, DAT315")
    ['DAT311', 'DAT312', 'DAT313', 'DAT315']
    """
    spans = [part.split(" to ") for part in names.strip().split(", ")]
    return [f"{span[0][:-3]}{n:03}" for span in spans for n in range(int(span[0][-3:]), int(span[-1][-3:]) + 1)]


def defined(tree: ast.AST, name: str) -> bool:
    """Whether a module defines this function, class, method or constant."""
    first, _, rest = name.partition(".")
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == first:
            return not rest or defined(node, rest)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == first for target in targets):
            return not rest
        if isinstance(node, ast.If | ast.Try) and defined(node, name):
            return True
    return False


def test_a_function_of_a_library_stands_in_its_file_in_the_version_that_is_named() -> None:
    looked_up, absent = 0, []
    for card, each in of(r"[^:]+:[^:]+@.*"):
        path, name, version = re.fullmatch(r"([^:]+):(.+)@(.+)", each.source).groups()
        library = path.split("/")[0]
        try:
            installed = metadata.distribution(library)
        except metadata.PackageNotFoundError:
            continue
        if installed.version.split("+")[0] != version:
            continue
        looked_up += 1
        file = Path(str(installed.locate_file(path)))
        if not file.is_file() or not defined(ast.parse(file.read_text(encoding="utf-8")), name):
            absent.append((card.id, each.source))
    assert absent == []
    if not looked_up:
        pytest.skip("none of the libraries is installed in the version that is named")


BARE = re.compile(r"a judgement|trial|heuristic|spike trial.*|proposal( of .*)?|a project convention.*")


def test_no_threshold_of_a_rule_that_warns_rests_on_a_bare_judgement() -> None:
    warns = [card for card in rule_cards() if card.severity != "info" and not card.reading]
    assert len(warns) > 150
    bare = [(card.id, each.name) for card in warns for each in card.thresholds if BARE.fullmatch(each.source)]
    assert bare == []
