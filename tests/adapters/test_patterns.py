"""rank_pattern and alpha_pattern mean what they mean to PEFT, and cost what their length costs."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradience.adapters.config import AdapterConfig, ScalingRules
from gradience.adapters.patterns import PatternTable
from gradience.errors import AdapterError

NAMES = [
    "model.layers.3.self_attn.q_proj",
    "model.layers.13.mlp.up_proj",
    "q_proj",
    "lm_head",
    "a.b",
    "x\n",
    "a.b\n",
    "a\nb",
    "",
    "\n",
]
KEYS = [
    "q_proj",
    "layers.3.self_attn.q_proj",
    r"layers\.\d+\.mlp\.up_proj",
    "^model.layers.3..*",
    "(q|k)_proj",
    ".*",
    r"layers\.(1[0-9]|3)\..*",
    "b",
    r"[^.]+_proj",
    "",
    "a+b*",
    "(a+)+",
    "x?",
    "(?:a|b).b",
    r"(?!lm).*head",
    "self_attn.q_proj$",
    "^a.b$",
    "$",
    "a.b",
    "ab{2,3}",
    r"\w+",
    "m{1}.{3,}",
    r"\Aq_proj",
    "a\nb",
    r"[\s\S]*",
    r"(\w)\1*_proj",
]


def peft_matches(key, name):
    """`peft/utils/other.py`, get_pattern_key."""
    return re.match(rf"(.*\.)?({key})$", name) is not None


@pytest.mark.parametrize("key", KEYS)
def test_a_key_matches_the_names_that_peft_would_match(key):
    table = PatternTable([key])
    for name in NAMES:
        assert bool(table.matching(name)) is peft_matches(key, name), name


pieces = st.recursive(
    st.sampled_from(["a", "b", r"\.", ".", "[ab]", "[^a]", r"\d", r"\w", "^", "$", "1", ""]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "*?"])).map(lambda p: f"(?:{p[0]}){p[1]}"),
    ),
    max_leaves=6,
)


@settings(max_examples=300)
@given(key=pieces, names=st.lists(st.text("ab.1\n", max_size=7), min_size=1, max_size=8))
def test_any_regular_key_matches_as_re_does(key, names):
    table = PatternTable([key])
    for name in names:
        assert bool(table.matching(name)) is peft_matches(key, name), name


@settings(max_examples=100)
@given(keys=st.lists(pieces, min_size=1, max_size=6, unique=True), name=st.text("ab.1", max_size=7))
def test_keys_come_back_in_the_order_of_the_dict(keys, name):
    assert PatternTable(keys).matching(name) == [key for key in keys if peft_matches(key, name)]


@pytest.mark.parametrize("key", ["(a+)+b", "((a*)*)*c", "(.*.*.*.*.*.*x)*y", "(a|a)*b", "(a|aa)+$b", "a{0,50}a{0,50}b"])
def test_keys_that_would_run_for_ever_do_not(key):
    start = time.process_time()
    assert PatternTable([key]).matching("a" * 20_000) == []
    assert time.process_time() - start < 2


@pytest.mark.parametrize("key", ["(a{1000}){1000}", "(){100000000}", r"((a)\2+)+b", "(a+)+(?=b)", "(", "*", "a{4,2}"])
def test_keys_that_cannot_be_matched_in_bounded_time_are_refused(key):
    with pytest.raises(AdapterError):
        PatternTable([key])


def test_one_key_for_each_of_ten_thousand_modules_takes_no_ten_thousand_times_as_long():
    names = [f"model.layers.{i}.self_attn.{x}_proj" for i in range(2500) for x in "qkvo"]
    start = time.process_time()
    table = PatternTable(names)
    assert all(table.matching(name) == [name] for name in names)
    assert time.process_time() - start < 3


def test_scaling_follows_the_first_key_and_the_rank_on_disk():
    config = AdapterConfig(r=8, lora_alpha=16, rank_pattern={"q_proj": 4}, alpha_pattern={"1.q_proj": 32, "q_proj": 4})
    rules = ScalingRules(config)
    assert rules.of("layers.1.q_proj", 4)[:2] == (32.0, 8.0)
    assert rules.of("layers.0.q_proj", 4)[:2] == (4.0, 1.0)
    assert rules.of("layers.0.v_proj", 8)[:3] == (16.0, 2.0, 8)
    assert rules.contested == ["layers.1.q_proj"]
    assert rules.unmatched() == ([], [])
    assert ScalingRules(AdapterConfig(r=16, use_rslora=True)).of("x", 16).scale == 2.0
