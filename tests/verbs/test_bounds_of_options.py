"""Options at the ends of their ranges are taken, and those beyond are refused in words that name the range."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_adapters import adapter, base
from tables import every

import gradience as g
from gradience.configs.settings import split_names
from gradience.rules.between.rules import FILE_RULES
from gradience.rules.config import RULES
from gradience.verbs.resize.options import ResizeOptions


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    """An adapter and its base."""
    root, rng = tmp_path_factory.mktemp("drawn"), random.Random(0)  # noqa: S311  # an input repeats itself
    return adapter(root / "adapter", rng, plain=True), base(root / "base", rng)


@pytest.mark.parametrize(
    ("options", "good"),
    [
        ({"intruder_k": 1}, True),
        ({"intruder_k": 0}, False),
        ({"intruder_eps": 1.0}, True),
        ({"intruder_eps": 0.0}, False),
        ({"intruder_eps": 1.1}, False),
    ],
)
def test_intruders_of_an_audit_have_a_number_and_a_bound(places, options, good):
    call = lambda: g.audit_adapter(places[0], base=places[1], norms_cache=False, intruders=True, **options)  # noqa: E731
    if good:
        assert call().base.intruder_total is not None
        return
    with pytest.raises(g.OptionError) as caught:
        call()
    [(name, value)] = options.items()
    wanted = {"intruder_k": "a whole number from 1", "intruder_eps": "above 0, at most 1"}[name]
    assert caught.value.message == f"--{name.replace('_', '-')} is {value}, expected {wanted}"


def test_intruders_are_counted_where_they_are_asked_for(places):
    found = g.audit_adapter(places[0], base=places[1], norms_cache=False)
    assert found.base.intruder_total is None
    assert all(module.base.intruders is None for module in found.modules)


def test_a_resize_takes_a_record_and_single_options_which_win_over_it(places):
    record = ResizeOptions(energy=0.5, dtype="float16")
    found = g.resize_adapter(places[0], options=record, energy=1.0)
    assert (found.criterion, found.value, found.dtype) == ("energy", 1.0, "F16")
    with pytest.raises(TypeError, match="enregy"):
        g.resize_adapter(places[0], options=record, enregy=1.0)


@every(
    ("call", "says"),
    [
        (lambda: g.audit_adapter("missing", intruders=True), "--intruders needs --base"),
        (lambda: g.audit_adapter("missing", top_singular_values=-1),
         "--top-singular-values is -1, expected a whole number from 0"),
        (lambda: g.audit_adapter("missing", seed=0.5), "--seed is 0.5, expected a whole number from 0"),
        (lambda: g.diagnose("missing", gap_threshold=0.0), "--gap-threshold is 0.0, expected above 0"),
        (lambda: g.convert_adapter("missing", rank=10**400), f"--rank is 1{'0' * 39}, expected a finite number"),
        (lambda: g.bench_adapter("missing", "out", options=g.BenchOptions(seed=-1)),
         "--seed is -1, expected a whole number from 0"),
        (lambda: g.bench_merge([], "out", options=g.BenchOptions(timeout=0)), "--timeout is 0, expected above 0"),
        (lambda: g.bench_merge([], "out", options=g.BenchOptions(max_length=0)),
         "--max-length is 0, expected a whole number from 1"),
        (lambda: g.merge_adapters(["missing"] * 2, seed=-1), "--seed is -1, expected a whole number from 0"),
    ],
)  # fmt: skip
def test_an_option_is_refused_by_its_name_before_anything_is_read(call, says):
    with pytest.raises(g.OptionError) as caught:
        call()
    assert caught.value.message == says


def test_a_keyword_wins_over_the_record_and_numpy_s_numbers_are_numbers():
    options = g.AuditOptions(intruder_k=0, intruder_eps=2.0)
    replace(options, intruder_k=np.int64(1), intruder_eps=np.float32(1.0)).refuse_bad()
    with pytest.raises(g.OptionError, match="--intruder-k is 0"):
        g.audit_adapter("missing", options=options, intruder_eps=1.0)
    for call in (g.audit_adapter, g.diagnose, g.convert_adapter):
        with pytest.raises(TypeError, match="enregy"):
            call("missing", enregy=1.0)
    with pytest.raises(TypeError, match="enregy"):
        g.write_report("missing", "out.md", enregy=1.0)


def test_what_was_judged_is_every_rule_but_those_that_were_not(places):
    found = g.check_config(peft_dir=places[0])
    assert found.derived["rules_judged"] + len({item.id for item in found.not_run}) == len(RULES) + len(FILE_RULES)


def test_names_in_a_text_are_apart_by_commas():
    assert split_names(" a, b,,c ,") == ["a", "b", "c"]
