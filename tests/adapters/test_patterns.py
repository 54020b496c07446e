"""rank_pattern and alpha_pattern mean what they mean to PEFT, and cost what their length costs."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings, strategies as st
from tables import every

from gradience.adapters import patterns
from gradience.adapters.config import AdapterConfig, ScalingRules
from gradience.adapters.patterns import PatternTable, dotted_tails, first_matches, whole
from gradience.errors import AdapterError

NAMES = [
    "model.layers.3.self_attn.q_proj",
    "model.layers.13.mlp.up_proj",
    "q_proj",
    "lm_head",
    "a.b",
    "",
]
ODD_NAMES = ["x\n", "a.b\n", "a\nb", "\n", "é.b", "a\u0663_proj"]  # a line break, a letter and a digit outside ASCII
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
    r"\bq_proj",
    r"(?i:Q_PROJ)",
    r"layers\.3\.self_attn\.q_proj",
    r"a\.b",
    r"a\.*b",
    "a{,3}.*",
    "[[:alpha:]]*b",
    r"(?<=\.)q_proj",
    r"^(?!.*visual).*(?:q_proj|k_proj).*",
    r"(?#any)q_proj",
    r"[]a]b|[^]a]\.b",
    r"(?P<one>q)_proj",
    r".*\Z",
]


def peft_matches(key, name):
    """`peft/utils/other.py`, get_pattern_key."""
    return re.match(rf"(.*\.)?({key})$", name) is not None


pytestmark = pytest.mark.filterwarnings("ignore:Possible nested set")


@every("key", KEYS)
def test_a_key_matches_the_names_that_peft_would_match(key):
    table = PatternTable([key])
    for name in NAMES:
        assert bool(table.matching(name)) is peft_matches(key, name), name


@every("key", KEYS)
@every("name", ODD_NAMES)
def test_a_name_with_a_line_break_or_foreign_letters_is_matched_as_re_matches_it(key, name):
    assert bool(PatternTable([key]).matching(name)) is peft_matches(key, name)


pieces = st.recursive(
    st.sampled_from(["a", "b", r"\.", ".", "[ab]", "[^a]", r"\d", r"\w", "^", "$", "1", ""]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "*?"])).map(lambda p: f"(?:{p[0]}){p[1]}"),
    ),
    max_leaves=6,
)


@settings(max_examples=60)
@given(key=pieces, names=st.lists(st.text("ab.1", max_size=7), min_size=1, max_size=8))
def test_any_regular_key_matches_as_re_does(key, names):
    table = PatternTable([key])
    for name in names:
        assert bool(table.matching(name)) is peft_matches(key, name), name


@settings(max_examples=40)
@given(keys=st.lists(pieces, min_size=1, max_size=6, unique=True), name=st.text("ab.1", max_size=7))
def test_keys_come_back_in_the_order_of_the_dict(keys, name):
    assert PatternTable(keys).matching(name) == [key for key in keys if peft_matches(key, name)]


@every("key", ["(a+)+b", "((a*)*)*c", "(.*.*.*.*.*.*x)*y", "(a|a)*b", "(a|aa)+$b", "a{0,50}a{0,50}b"])
def test_keys_that_would_run_for_ever_by_backtracking_end(key):
    assert PatternTable([key]).matching("a" * 20_000) == []


FOR_EVER = {
    "a repeat in a repeat": "(a+)+(?=b)",
    "a back-reference under repeats": r"(?:(a)\3+)+b",
    "alternatives under a repeat": "(?:a|a)*(?=b)",
    "many optional letters": "a?" * 30 + "a" * 30 + "(?=b)",
    "on a name outside ASCII, which RE2 may read otherwise": "(a|\u0663+)+b",
}


@pytest.mark.parametrize("key", FOR_EVER.values(), ids=FOR_EVER)
def test_a_key_that_backtracks_for_ever_is_refused_when_its_time_is_up(key, monkeypatch):
    monkeypatch.setattr(patterns, "_SECONDS", 0.1)
    name = "a" * 40 + ("\u0663" * 30 if "\u0663" in key else "")
    table = PatternTable(["q_proj", key])
    assert table.matching("h.q_proj") == ["q_proj"]
    start = time.monotonic()
    with pytest.raises(AdapterError) as error:
        table.matching(name)
    assert time.monotonic() - start < 60
    shown = f"{key[:77]}..." if len(key) > 80 else key
    assert str(error.value) == (
        f"the pattern {shown!r} in the adapter config cannot be matched on the name {name!r}: "
        "it takes more than 0 s of processor time"
    )
    assert table.matching("h.q_proj") == ["q_proj"]  # in a new process


def test_the_time_is_that_of_all_names_together(monkeypatch):
    monkeypatch.setattr(patterns, "_SECONDS", 0.5)
    table = PatternTable(["(?:a|a)*(?=b)"])
    with pytest.raises(AdapterError, match="cannot be matched"):
        list(map(table.matching, ["a" * 17 + f"x{n}" for n in range(10_000)]))


@every("key", ["(", "*", "a{4,2}", r"(a)\2", "(?i)q", r"((a)\2+)+b", f"a{{{10**20}}}", f"a{{{'9' * 5000}}}"])
def test_keys_that_peft_cannot_compile_are_refused(key):
    with pytest.raises(AdapterError, match="is not a regular expression") as error:
        PatternTable([key])
    assert error.value.advice == "PEFT would refuse it too: correct rank_pattern or alpha_pattern"


def test_a_long_pattern_is_shown_in_eighty_characters():
    for key, shown in (("(" + "a" * 77, "(" + "a" * 77), ("(" + "a" * 90, "(" + "a" * 76 + "...")):
        with pytest.raises(AdapterError) as error:
            PatternTable([key])
        assert f"'{shown}'" in str(error.value)


plain_keys = st.lists(st.sampled_from(["a", "b", ".", r"\."]), min_size=1, max_size=6).map("".join)


@settings(max_examples=60)
@given(key=plain_keys, name=st.text("ab.x", max_size=7))
def test_a_plain_name_with_dots_escaped_or_not_matches_as_re_does(key, name):
    assert bool(PatternTable([key]).matching(name)) is peft_matches(key, name)


def test_the_tails_of_a_path_begin_at_each_dot():
    assert dotted_tails("a.b.c") == ["a.b.c", "b.c", "c"]
    assert dotted_tails("a") == ["a"]


LOOK_AROUND = {
    "LLaMA-Factory's for a vision model": r"^(?!.*visual).*(?:q_proj|k_proj|v_proj|o_proj).*",
    "three wildcards and a look-ahead": r"(?!lm).*layers\.\d+\..*_proj",
    "a back-reference": r"(\w+)\.\1_proj",
}


@pytest.mark.parametrize("key", LOOK_AROUND.values(), ids=LOOK_AROUND)
def test_keys_that_people_write_with_look_around_are_matched_on_long_names(key):
    name = "model.language_model.layers.31.block_sparse_moe.experts.127.self_attn.q_proj"
    assert bool(PatternTable([key]).matching(name)) is peft_matches(key, name)


def test_each_module_gets_its_first_key():
    names = ["h.0.q_proj", "h.1.q_proj", "h.1.k_proj", "h.visual.k_proj"]
    text = r"^(?!h\.visual).*_proj"
    assert first_matches(["1.q_proj", text], names) == {
        "h.0.q_proj": text,
        "h.1.q_proj": "1.q_proj",
        "h.1.k_proj": text,
    }


@every("expression", ["q_proj", r".*\.q_proj", "h|q_proj", r"(?!h\.visual).*q_proj"])
def test_a_string_of_targets_matches_whole_names_as_peft_reads_it(expression):
    names = ["q_proj", "h.q_proj", "h.visual.q_proj", "h"]
    found = first_matches([whole(expression)], names)
    assert list(found) == [name for name in names if re.fullmatch(expression, name)]


def test_one_key_for_each_of_ten_thousand_modules_is_found_by_hashing():
    """A hundred million matches one by one would take minutes."""
    names = [f"model.layers.{i}.self_attn.{x}_proj" for i in range(2500) for x in "qkvo"]
    table = PatternTable(names)
    assert all(table.matching(name) == [name] for name in names)


def test_scaling_follows_the_first_key_and_the_rank_on_disk():
    config = AdapterConfig(r=8, lora_alpha=16, rank_pattern={"q_proj": 4}, alpha_pattern={"1.q_proj": 32, "q_proj": 4})
    rules = ScalingRules(config)
    assert rules.of("layers.1.q_proj", 4)[:2] == (32.0, 8.0)
    assert rules.of("layers.0.q_proj", 4)[:2] == (4.0, 1.0)
    assert rules.of("layers.0.v_proj", 8)[:3] == (16.0, 2.0, 8)
    assert rules.contested == ["layers.1.q_proj"]
    assert rules.unmatched() == ([], [])
    assert ScalingRules(AdapterConfig(r=16, use_rslora=True)).of("x", 16).scale == 2.0
