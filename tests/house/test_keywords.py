"""The keywords of a verb's function are the fields of its record, typed, so that a caller's type checker knows them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

from tables import every

import gradience
from gradience.ranges import VerbOptions


def functions() -> list[Callable[..., Any]]:
    """The public functions that take keywords beyond those they name."""
    public = [getattr(gradience, name) for name in gradience.__all__]
    return [each for each in public if inspect.isfunction(each) and inspect.getfullargspec(each).varkw]


def keywords_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of the keywords that a function does not name."""
    return get_type_hints(get_args(get_type_hints(function)[inspect.getfullargspec(function).varkw])[0])


def as_keyword(hint: Any) -> str:
    """A field's type as a keyword's, where a path may be text."""
    text = str(hint).replace("pathlib.Path", "str | os.PathLike[str]")
    return re.sub(r"^typing\.Optional\[(.+)\]$", r"\1 | None", text)  # what is left of a union with a range in it


@every("function", functions(), ids=lambda each: each.__name__)
def test_single_options_are_the_fields_of_the_record_and_typed(function):
    records = [each for each in get_type_hints(function).values() if VerbOptions in getattr(each, "__mro__", ())]
    fields = {name: hint for each in records for name, hint in get_type_hints(each).items()}
    if function is gradience.audit_pytree:  # it finds the arrays for a function without a record
        fields = {k: v for k, v in get_type_hints(gradience.audit_arrays).items() if k not in {"factors", "return"}}
    own = inspect.signature(function).parameters
    expected = {name: as_keyword(hint) for name, hint in fields.items() if name not in own}
    assert {name: as_keyword(hint) for name, hint in keywords_of(function).items()} == expected
    assert expected


def test_verbs_take_single_options():
    assert {"audit_adapter", "audit_pytree", "check_config", "check_data", "diagnose", "write_report"} <= {
        each.__name__ for each in functions()
    }
