"""The types by their short names: what type checkers are told is what a program gets."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest
from tables import every

from gradience import schema

DECLARED = [
    (node.module, name.name)
    for node in ast.walk(ast.parse(Path(schema.__file__).read_text(encoding="utf-8")))
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gradience.schema")
    for name in node.names
]


def test_every_declared_name_is_the_one_of_its_module():
    assert len(DECLARED) > 40
    for module, name in DECLARED:
        assert name in schema.__all__
        assert getattr(schema, name) is getattr(import_module(module), name)


@every("name", ["TrainStepp", "_Missing", "codec"])
def test_another_name_is_an_error_that_names_it(name):
    with pytest.raises(AttributeError, match=f"module 'gradience.schema' has no attribute '{name}'"):
        getattr(schema, name)


def test_completion_offers_every_event_and_report_but_not_what_the_modules_import():
    assert dir(schema) == sorted(schema.__all__)
    assert {cls.__name__ for cls in schema.EVENT_TYPES.values()} <= {*schema.__all__}
    assert {"AuditReport", "DiagnoseReport", "Finding", "SCHEMA_ID", "as_float"} <= {*schema.__all__}
    assert not {"Struct", "Sequence", "Mapping", "import_module", "annotations"} & {*schema.__all__}
    assert all(hasattr(schema, name) for name in schema.__all__)
