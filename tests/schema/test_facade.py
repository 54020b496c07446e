"""The types by their short names: what type checkers are told is what a program gets."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest
from tables import every

from gradience import schema

DECLARED = [
    (node.module, name.asname)
    for node in ast.walk(ast.parse(Path(schema.__file__).read_text(encoding="utf-8")))
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gradience.schema")
    for name in node.names
]


def test_every_declared_name_is_the_one_of_its_module():
    assert len(DECLARED) > 40
    for module, name in DECLARED:
        assert getattr(schema, name) is getattr(import_module(module), name)


@every("name", ["TrainStepp", "_Missing", "codec"])
def test_another_name_is_an_error_that_names_it(name):
    with pytest.raises(AttributeError, match=f"module 'gradience.schema' has no attribute '{name}'"):
        getattr(schema, name)


def test_completion_offers_every_event_and_every_report_but_not_what_their_modules_import():
    offered = dir(schema)
    assert {cls.__name__ for cls in schema.EVENT_TYPES.values()} <= {*offered}
    assert {"AuditReport", "DiagnoseReport", "Finding", "SCHEMA_ID", "real"} <= {*offered}
    assert not {"Struct", "Sequence"} & {*offered}
