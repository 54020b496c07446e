"""rank_pattern and alpha_pattern mean what they mean to PEFT, and cost what their length costs."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings, strategies as st
from tables import every, met

from gradience.adapters import patterns
from gradience.adapters.config import AdapterConfig, ScalingRules
from gradience.adapters.patterns import PatternTable, first_matches, layer_number, whole
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
    r"layers\.(1[0-9]|3)\..*",
    "b",
    r"[^.]+_proj",
    "",
    "a+b*",
    "(a+)+",
    "(?:a|b).b",
    r"(?!lm).*head",
    "^a.b$",
    "$",
    "a.b",
    r"\w+",
    "m{1}.{3,}",
    r"\Aq_proj",
    "a\nb",
    r"[\s\S]*",
    r"(\w)\1*_proj",
    r"\bq_proj",
    r"(?i:Q_PROJ)",
    r"a\.b",
    r"a\.*b",
    "a{,3}.*",
    "[[:alpha:]]*b",
    r"(?<=\.)q_proj",
    r"^(?!.*visual).*(?:q_proj|k_proj).*",
    r"[]a]b|[^]a]\.b",
    r".*\Z",
    r"layers\.\d+\..*(?<!o)_proj",
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


@every(("key", "name"), [*met(KEYS, ODD_NAMES, each=3), ("a.b", "a\nb")])
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


def test_the_first_number_is_the_layers_whoever_matches_it():
    number = layer_number(["(layers|experts)"])
    assert [number(name) for name in ("m.layers.1.experts.0.w", "é.layers.2.experts.0.w", "m.h.3.w")] == [1, 2, None]


FOR_EVER = {
    "a back-reference under repeats": r"(?:(a)\3+)+b",
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
    assert error.value.message == (
        f"the pattern {shown!r} in the adapter config cannot be matched on the name {name!r}: "
        "it takes more than 0 s of processor time"
    )
    assert table.matching("h.q_proj") == ["q_proj"]  # in a new process


def test_the_time_is_that_of_all_names_together(monkeypatch):
    monkeypatch.setattr(patterns, "_SECONDS", 0.5)
    table = PatternTable(["(?:a|a)*(?=b)"])
    with pytest.raises(AdapterError, match="cannot be matched"):
        list(map(table.matching, ["a" * 17 + f"x{n}" for n in range(10_000)]))


@every(
    "key",
    [
        "(",
        "*",
        "a{4,2}",
        r"(a)\2",
        "(?i)q",
        r"((a)\2+)+b",
        f"a{{{10**20}}}",
        f"a{{{'9' * 5000}}}",
        "(" + "a" * 79,
        "(" + "a" * 80,
    ],
)
def test_keys_that_peft_cannot_compile_are_refused(key):
    with pytest.raises(AdapterError, match="is not a regular expression") as error:
        PatternTable([key])
    shown = repr(key if len(key) <= 80 else f"{key[:77]}...")
    assert f"the pattern {shown} in the adapter config" in str(error.value)
    assert error.value.advice == "PEFT would refuse it too: correct rank_pattern or alpha_pattern"


plain_keys = st.lists(st.sampled_from(["a", "b", ".", r"\."]), min_size=1, max_size=6).map("".join)


@settings(max_examples=60)
@given(key=plain_keys, name=st.text("ab.x", max_size=7))
def test_a_plain_name_with_dots_escaped_or_not_matches_as_re_does(key, name):
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


@every(
    ("fields", "name", "r", "scale", "config_r"),
    [
        ({"r": 8, "lora_alpha": 16}, "q", 4, 4.0, 8),
        ({"r": 8, "lora_alpha": 16}, "q", None, 2.0, 8),
        ({"r": 8, "lora_alpha": 16, "use_rslora": True}, "q", 16, 4.0, 8),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {"q": 2}}, "q", None, 8.0, 2),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {"q": True, "k": [True]}}, "q", None, 2.0, 8),
        ({"r": 8, "lora_alpha": 16, "alpha_pattern": {"q": 0.5}}, "l.q", 2, 0.25, 8),
        ({"r": 8, "lora_alpha": 16, "alpha_pattern": {"q": 0.0}}, "q", 2, 0.0, 8),
        ({"r": 0, "lora_alpha": 16}, "q", None, 16.0, 0),
        ({"r": 0, "lora_alpha": 16, "use_rslora": True}, "q", None, 16.0, 0),
    ],
)
def test_a_scale_is_alpha_over_the_rank_on_disk_or_its_root(fields, name, r, scale, config_r):
    found = ScalingRules(AdapterConfig(**fields)).of(name, r)
    assert (found.scale, found.config_r, found.path) == (scale, config_r, name)


def test_keys_of_equal_values_do_not_contest_and_unused_keys_are_named():
    config = AdapterConfig(rank_pattern={"q": 2, "1.q": 2, "k": 3}, alpha_pattern={"v": 1.0, "0.v": 2.0, "z": 1.0})
    rules = ScalingRules(config)
    assert (rules.of("1.q").rank_pattern, rules.of("0.v").alpha_pattern) == ("q", "v")
    assert (rules.contested, rules.unmatched()) == (["0.v"], (["k"], ["z"]))
    assert rules.of("x", 4, default_alpha=2.0).scale == 0.5
