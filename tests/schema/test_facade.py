"""The types by their short names: each is found in the module that defines it."""

from __future__ import annotations

import pytest
from tables import every

from gradience import events, schema
from gradience.schema import audit, diagnose, document, reports


def test_a_name_is_the_type_of_the_module_that_defines_it():
    for home, name in (
        (audit, "AuditReport"),
        (diagnose, "DiagnoseReport"),
        (document, "Finding"),
        (reports, "BadLine"),
    ):
        assert getattr(schema, name) is getattr(home, name)
    assert all(getattr(schema, cls.__name__) is getattr(events, cls.__name__) for cls in events.EVENT_TYPES.values())


@every("name", ["TrainStepp", "_Missing", "codec"])
def test_another_name_is_an_error_that_names_it(name):
    with pytest.raises(AttributeError, match=f"module 'gradience.schema' has no attribute '{name}'"):
        getattr(schema, name)
