"""What a file holds that is not analysed, each with its reason and its cause; what is noted; what is refused whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
from adapter_files import ADALORA, LOHA, LOKR, PREFIX, TUCKER, VERA, lora, saved, written
from hypothesis import given, settings, strategies as st
from tables import every

from gradience.adapters.config import parse_config
from gradience.adapters.kinds import lora as lora_kinds, products
from gradience.adapters.layout import LeftoverTensor
from gradience.adapters.open import open_adapter
from gradience.errors import AdapterError
from gradience.schema.audit import LeftoverReason

ADA, HADAMARD, KRONECKER, OF_VERA = ({"peft_type": kind} for kind in ("ADALORA", "LOHA", "LOKR", "VERA"))
KERNEL = {"q.lora_A.weight": (2, 3, 1, 1), "q.lora_B.weight": (5, 2, 1, 1)}
EXPERTS = lora("x.experts", r=4, d_out=6, d_in=5)
TWO = lora("x.experts.base_layer", r=4, d_out=6, d_in=5) | lora("x.experts", r=4, d_out=5, d_in=6)
GATE = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}


def blocks(n, **more):
    return {"use_bdlora": {"nblocks": n, "target_modules_bd_a": ["v", "q"]}, **more}


def unfit(a, b, why="expected (r, in) and (out, r)"):
    return f"factors of shape {[*a]} and {[*b]}: {why}"


def core(t, p=(2, 5), q=(2, 3)):
    return f"a core of shape {[*t]} with factors {[*p]} and {[*q]}: expected (r, r, k, k), (r, out), (r, in)"


def vera(out, r, a, b):
    return f"VeRA vectors of {out} and {r} entries do not fit projections of shape {a} and {b}"


GONE = "VeRA's projections are not in the file (save_projection: false): only torch can draw them again"
SHARED = "factors of shape [4, 5] and [6, 4] cannot be shared out among experts of rank {}, the rank that the config"
AMBIGUOUS = "which of a, b each pair belongs to is ambiguous, and their ranks differ"
LEFT = [  # shapes, config, the reason of each group
    (lora("q") | {"q.lora_A.weight": (3, 3)}, {}, unfit((3, 3), (5, 2), "ranks disagree")),
    (KERNEL | {"q.lora_B.weight": (5, 2, 1, 3)}, {}, unfit((2, 3, 1, 1), (5, 2, 1, 3), "expected a 1 x 1 kernel in B")),
    (lora("q") | {"q.lora_B.weight": (5, 2, 1)}, {}, unfit((2, 3), (5, 2, 1))),
    (lora("q") | {"q.lora_A.weight": (2,)}, {}, unfit((2,), (5, 2))),
    ({"q.lora_A.weight": (), "q.lora_B.weight": ()}, {}, unfit((), ())),
    (lora("q", r=0), {}, "factors of shape [0, 3] and [5, 0]: no elements"),
    (lora("q", d_in=0), {}, "factors of shape [2, 0] and [5, 2]: no elements"),
    ({"q.lora_A.weight": (2, 3)}, {}, "lora_B is missing beside lora_A"),
    ({"q.lora_B.weight": (5, 2)}, {}, "lora_A is missing beside lora_B"),
    ({"q.lora_embedding_A": (2, 3)}, {}, "lora_embedding_B is missing beside lora_embedding_A"),
    ({"q.lora_embedding_B": (5, 2)}, {}, "lora_embedding_A is missing beside lora_embedding_B"),
    ({"q.lora_magnitude_vector": (5,)}, {}, "lora_A, lora_B is missing beside nothing else"),
    *(
        (
            ADALORA | {"q.lora_E": shape},
            ADA,
            f"AdaLoRA factors of shape [2, 3], [5, 2] and {[*shape]}: expected (r, in), (out, r) and (r, 1)",
        )
        for shape in ((3, 1), (2, 2))
    ),
    (ADALORA, ADA | {"init_r": 0}, "init_r is 0 in the config, expected at least 1"),
    (lora("q") | {"q.lora_diag": (3,)}, {}, "lora_diag has 3 entries, expected the rank 2"),
    *(
        (shapes, blocks(n), f"{n} BD-LoRA blocks do not fit factors of shape {ab}")
        for shapes, n, ab in (
            (lora("q"), 3, "[2, 3] and [5, 2]"), (lora("q"), 0, "[2, 3] and [5, 2]"),
            (lora("q", r=4) | {"q.lora_B.weight": (5, 3)}, 2, "[4, 3] and [5, 3]"),
        )
    ),
    (LOKR, KRONECKER | {"rank_pattern": {"q": 0}}, "the config gives it rank 0, expected at least 1"),
    (LOKR | {"q.lokr_w1": (2,)}, KRONECKER, "lokr_w1 has shape [2]: expected a matrix"),
    *(
        (LOHA | {"q.hada_w2_a": a, "q.hada_w2_b": b}, HADAMARD, unfit(a, b, "expected (out, r) and (r, in)"))
        for a, b in (((5, 2, 1), (2, 3)), ((5, 2), (2, 3, 1)), ((5, 2), (3, 3)))
    ),
    *(
        (LOHA | {"q.hada_w2_a": a, "q.hada_w2_b": b}, HADAMARD, f"LoHa halves of shape (5, 3) and {other} do not match")
        for a, b, other in (((4, 2), (2, 3), "(4, 3)"), ((5, 2), (2, 6), "(5, 6)"))
    ),
    *(
        (TUCKER | {f"q.hada_{field}": shape}, HADAMARD, core(**{"t": (2, 2, 2, 2), name: shape}))
        for field, name, shape in (
            ("w1_a", "p", (2, 5, 1)), ("w1_b", "q", (2, 3, 1)), ("w1_a", "p", (3, 5)), ("w1_b", "q", (3, 3)),
            ("t1", "t", (2, 2, 2)), ("t1", "t", (3, 2, 1, 2)),
        )
    ),
    (
        {f"q.hada_w{i}_{x}": (5, 33) if x == "a" else (33, 3) for i in (1, 2) for x in "ab"}, HADAMARD,
        "an update of rank up to 1089: too large to be analysed as a pair of factors",
    ),
    *(({key: s for key, s in VERA.items() if key != gone}, OF_VERA, GONE) for gone in ("vera_A", "vera_B")),
    (VERA | {"vera_B": (6, 3)}, OF_VERA, vera(6, 2, [2, 5], [6, 3])),
    (VERA | {"vera_A": (3, 5)}, OF_VERA, vera(6, 2, [3, 5], [6, 2])),
    (VERA | {"q.vera_lambda_b": (7,)}, OF_VERA, vera(7, 2, [2, 5], [6, 2])),
    *(
        (EXPERTS, {"target_parameters": ["experts.w"], "rank_pattern": {"experts.w": r}}, f"{SHARED.format(r)} gives")
        for r in (0, 3)
    ),
    (TWO, {"target_parameters": ["experts.a", "experts.b"], "rank_pattern": {"experts.a": 4}}, AMBIGUOUS),
    (TWO, GATE | {"rank_pattern": {"down_proj": 4}}, "its parameters would have 1 and 2 experts by the config's ranks"),
]  # fmt: skip
CAUSES = {
    "missing": LeftoverReason.FACTOR_MISSING,
    "the config gives it": LeftoverReason.CONFIG,
    "in the config": LeftoverReason.CONFIG,
    "save_projection": LeftoverReason.CONFIG,
    "the config's ranks": LeftoverReason.CONFIG,
    "ambiguous": LeftoverReason.AMBIGUOUS,
    "too large": LeftoverReason.TOO_LARGE,
}


@every(("shapes", "config", "reason"), LEFT)
def test_what_is_not_analysed_has_its_reason(shapes, config, reason, tmp_path):
    _, found = open_adapter(saved(tmp_path / "a", shapes, **config))
    assert found.modules == found.base_dependent == []
    cause = next((cause for words, cause in CAUSES.items() if words in reason), LeftoverReason.SHAPE)
    assert {(item.reason, item.cause) for item in found.skipped if ".vera_" not in item.name} == {(reason, cause)}
    assert {role for name, role in found.roles.items() if "vera_A" not in name and "vera_B" not in name} == {
        "not_analysed"
    }


@every("dtypes", [("I8", "I8"), ("I32", "F32"), ("F8_E9M9", "F8_E9M9")])
def test_factors_that_are_no_floats_are_left_out_by_their_dtypes(dtypes, tmp_path):
    held = {f"{PREFIX}q.lora_{x}.weight": np.ones((2, 2), np.int8) for x in "AB"}
    path = written(tmp_path, held, {"peft_type": "LORA", "r": 2}) / "adapter_model.safetensors"
    header, at = {}, 0
    for name, dtype in zip(held, dtypes, strict=True):
        nbytes = 4 * {"I8": 1, "F8_E9M9": 1}.get(dtype, 4)
        header[name] = {"dtype": dtype, "shape": [2, 2], "data_offsets": [at, at + nbytes]}
        at += nbytes
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(at))
    said = f"factors of dtype {dtypes[0]} and {dtypes[1]}: not floating point"
    assert open_adapter(tmp_path)[1].skipped == [LeftoverTensor("q", said, LeftoverReason.DTYPE)]
    of_vera = {f"{PREFIX}q.vera_lambda_{x}": np.ones(2, np.float32) for x in "bd"}
    shared = {"base_model.vera_A": np.ones((2, 3), np.float32), "base_model.vera_B": np.ones((2, 2), np.int32)}
    reason = "VeRA's projections: factors of dtype F32 and I32: not floating point"
    found = open_adapter(written(tmp_path / "vera", of_vera | shared, {"peft_type": "VERA"}))[1].skipped
    assert found[0] == LeftoverTensor("q", reason, LeftoverReason.DTYPE)


LARGE = "an update of rank up to 4: too large to be analysed as a pair of factors"
LIMITS = [  # module, limit, the size that just fits, an adapter of it, why it is not read where one less fits
    (
        lora_kinds, "MOST_ELEMENTS", 24, lora("q", r=4), blocks(2),
        "2 BD-LoRA blocks do not fit factors of shape [4, 3] and [5, 4]",
    ),
    (products, "MOST_ELEMENTS", 20, LOHA, HADAMARD, LARGE),
    (products, "MOST_ELEMENTS", 48, TUCKER, HADAMARD, LARGE),
    (
        products, "MOST_RANK", 2, {"q.lokr_w1": (1, 3), "q.lokr_w2": (2, 5)}, KRONECKER,
        "lokr_w2 of shape [2, 5]: too large to be analysed as a pair of factors",
    ),
]  # fmt: skip


@every(("where", "name", "most", "shapes", "config", "reason"), LIMITS)
def test_a_size_at_the_limit_is_read_and_one_over_it_is_not(
    where, name, most, shapes, config, reason, tmp_path, monkeypatch
):
    folder = saved(tmp_path / "a", shapes, **config)
    cause = LeftoverReason.TOO_LARGE if "too large" in reason else LeftoverReason.SHAPE
    for limit, wanted in ((most, []), (most - 1, [LeftoverTensor("q", reason, cause)])):
        monkeypatch.setattr(where, name, limit)
        _, found = open_adapter(folder)
        assert (len(found.modules), found.skipped) == (1 - len(wanted), wanted)


def test_a_core_that_would_unfold_beyond_the_limit_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(products, "MOST_ELEMENTS", 23)  # of two rows of 12
    said = "a core of shape [2, 2, 2, 2] is too large to be unfolded"
    found = open_adapter(saved(tmp_path / "a", TUCKER, **HADAMARD))[1].skipped
    assert found == [LeftoverTensor("q", said, LeftoverReason.TOO_LARGE)]


@every(
    ("role", "text"),
    [
        ("strange.x", "not part of any adapter layout known here"),
        ("q.oft_r.", "a tensor of a kind that is not analysed"),
    ],
)
def test_what_no_module_holds_is_named_and_from_nine_on_counted(role, text, tmp_path):
    for count in (8, 9):
        names = [f"{role}{n}" for n in range(count)]
        _, found = open_adapter(saved(tmp_path / str(count), lora("q") | dict.fromkeys(names, (1,))))
        keys = [f"{PREFIX}{name}" for name in names]
        said = keys if count == 8 else [f"{keys[0]} and 8 more"]
        assert [(item.name, item.reason) for item in found.skipped] == [(name, text) for name in said]


CONTESTED = (
    "2 modules match several keys of a pattern, with different values (first: a.q): PEFT sorts the keys when it saves, "
    "so the one that held in training may be another than the first, which PEFT applies on loading and is used here"
)
SAID = (
    "init_lora_weights='loftq' changed the base model's weights at the start: s B A is not the whole change to "
    "the original base\n"
    "KaSA removed the r smallest singular values from the base: s B A is not the whole change to it\n"
    "aLoRA: the update applies only after its invocation tokens, and cannot be merged\n"
    "Arrow: this adapter routes among others; what it does depends on the input"
)
VARIANTS = {"init_lora_weights": "loftq", "kasa_config": {}, "alora_invocation_tokens": [1], "arrow_config": {}}
NOTES = [
    (lora("q"), {"rank_pattern": {"x": 4, "y": 4}}, "2 keys of rank_pattern match no module of the file (first: 'x')"),
    (lora("q"), {"alpha_pattern": {"y": 4}}, "1 keys of alpha_pattern match no module of the file (first: 'y')"),
    (ADALORA, ADA | {"init_r": 2, "rank_pattern": {"x": 4}, "alpha_pattern": {"y": 4}}, ""),  # which has no patterns
    (lora("a.q", "b.q", "v"), {"alpha_pattern": {"a.q": 2, "b.q": 2, "q": 4}}, CONTESTED),
    (lora("a", "b", "k"), {"rank_pattern": {"a": 8, "b": 8}},
     "2 of 3 modules (first: a) have another rank in the file than in the config; the file's is used"),
    (lora("q") | {"q.lora_magnitude_vector": (5,)}, {},
     "DoRA: the update is s B A rescaled by the magnitude, and follows only with the base"),
    (lora("q"), {"use_dora": True}, ""),
    (lora("q"), {"target_modules": ["v", "q"]}, ""),
    (lora("q"), {"target_modules": ["v", "k", "o", "x", "y"]},
     "no target module of the config (v, k, o, x) is in the file: is it another adapter's?"),
    (lora("q"), VARIANTS, SAID),
]  # fmt: skip


@every(("shapes", "config", "note"), NOTES)
def test_a_note_counts_and_names_the_first(shapes, config, note, tmp_path):
    _, found = open_adapter(saved(tmp_path / "a", shapes, **config))
    assert (len(found.modules) > 0, "\n".join(found.notes)) == (True, note)


@every(
    ("kind", "said", "cause"),
    [
        ("IA3", "its update is what PEFT's merge makes of the base: give it with --base", LeftoverReason.NEEDS_BASE),
        ("PROMPT_TUNING", "trains a prompt and changes no weight: there is no update to analyse",
         LeftoverReason.TYPE_NOT_ANALYSED),
        ("XLORA", "depends on the input, and PEFT has no merge for it: there is no update to analyse",
         LeftoverReason.TYPE_NOT_ANALYSED),
    ],
)  # fmt: skip
def test_of_a_type_that_is_not_analysed_only_whole_tensors_have_a_role(kind, said, cause, tmp_path):
    whole = {"head.weight": (3,), "x.trainable_tokens_delta": (2, 3)}
    config = {"modules_to_save": ["head"], "alpha": [1]}  # a field of ours that means something else
    _, found = open_adapter(saved(tmp_path / "a", lora("q") | whole, peft_type=kind, **config))
    assert (found.modules, found.by_peft) == ([], kind == "IA3")
    (entry,) = found.skipped
    assert (entry.name, entry.cause) == ("*", cause)
    assert said in entry.reason
    assert sorted(found.roles.values()) == ["full_module", "not_analysed", "not_analysed", "token_rows"]


LIMIT = "is not a list of [start, end): [(0, 100001)]"
REFUSED = [  # shapes, config, what the error says
    (lora("q"), {"peft_type": "LOHA"}, "the config says peft_type LOHA, but the file holds tensors of LORA"),
    (ADALORA, {}, "the config says peft_type LORA, but the file holds tensors of ADALORA"),
    (LOKR | lora("q"), OF_VERA, "the config says peft_type VERA, but the file holds tensors of LOKR and LORA"),
    (lora("q"), {"peft_type": None, "lora_parameters": {}}, "the config is MLX-LM's, but the tensors of "),
    (lora("q"), {"layer_replication": [[0, 100_001]]}, f"layer_replication in the adapter config {LIMIT}"),
    (lora("q"), {"layer_replication": [[2, 1]]}, "is not a list of [start, end): [(2, 1)]"),
    (lora("q"), {"layer_replication": [[-1, 1]]}, "is not a list of [start, end): [(-1, 1)]"),
    (lora("q"), {"layer_replication": [[0, 60_000], [0, 40_001]]}, "makes more than 100 000 layers"),
    (lora("q"), {"layer_replication": [[0, 60_000], [0, 40_000], *[[1, 1]] * 9]}, None),
    (lora("q"), {"rank_pattern": {"(": 4}}, "is not a regular expression"),
    (lora("q"), {"alpha_pattern": {"q": "big"}}, "is not an adapter config"),
    (lora("q"), {"lora_parameters": {}}, None),  # a type is named, so it is not MLX-LM's
    (lora("q"), {"r": 10**30, "rank_pattern": {"(a+)+b": 4, "(.*.*.*.*.*.*.*x)*y": 8, "(?!.*v).*q": 2}}, None),
]


@every(("shapes", "config", "said"), REFUSED)
def test_a_config_that_cannot_be_the_files_is_refused(shapes, config, said, tmp_path):
    folder = saved(tmp_path / "a", shapes, **config)
    if said is None:
        assert len(open_adapter(folder)[1].modules) == 1
        return
    with pytest.raises(AdapterError) as error:
        open_adapter(folder)
    assert said in str(error.value)


NO_CONFIG = "c is not an adapter config: "
DEEP = "nested more than 64 levels deep"


@every(
    ("text", "said"),
    [
        *((text, NO_CONFIG) for text in ("", "{", "[]", "3", "null")),
        *(('{"peft_type": "LORA", ' + field + "}", NO_CONFIG) for field in (
            '"r": "8"', '"r": 4.5', '"lora_alpha": null', '"lora_alpha": "16"', '"lora_alpha": NaN',
        )),
        ("[" * 100_000, DEEP),
        ('{"rank_pattern": ' + '{"a":' * 50_000 + "1" + "}" * 50_001, DEEP),
        ('{"r": 0}', f"{NO_CONFIG}r is 0, expected at least 1"),
        ('{"peft_type": "LOKR", "r": -8}', f"{NO_CONFIG}r is -8, expected at least 1"),
        ('{"lora_alpha": 1.1e30}', "c: lora_alpha is 1.1e+30, over the limit of 1e+30"),
        ('{"lora_alpha": 1e999}', "c"),
        ('{"alpha": -2e30}', "c: alpha is -2e+30, over the limit of 1e+30"),
        ('{"alpha_pattern": {"q": 1, "k": -1e31}}', "c: alpha_pattern of 'k' is -1e+31, over the limit of 1e+30"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_meant_is_refused(text, said):
    with pytest.raises(AdapterError) as error:
        parse_config(text, "c")
    assert said in str(error.value)


@every(("shapes", "kind"), [(lora("q"), "linear"), (LOKR, "lokr"), (ADALORA, "adalora"), (LOHA | lora("v"), "loha")])
def test_a_config_without_a_type_leaves_it_to_the_tensors_and_of_two_to_the_first_by_name(shapes, kind, tmp_path):
    _, found = open_adapter(saved(tmp_path / "a", shapes, peft_type=None))
    assert [module.kind for module in found.modules] == [kind]
    assert [item.name for item in found.skipped] == ["v"] * ("v.lora_A.weight" in shapes)


def test_patterns_end_on_the_longest_name_that_a_file_may_hold(tmp_path):
    """Matched by backtracking, each of the two would run for years."""
    folder = saved(tmp_path / "a", lora("a" * 990), rank_pattern={"(a+)+b": 4, "(.*.*.*x)*y": 8})
    assert len(open_adapter(folder)[1].modules) == 1


# --- any file ----------------------------------------------------------------------------------------------------

FAMILIES = [
    {"lora_A.weight": "ri", "lora_B.weight": "or"},
    {"lora_A.weight": "ri", "lora_B.weight": "or", "lora_magnitude_vector": "o", "lora_B.bias": "o"},
    {"lora_A.weight": "ri", "lora_B.weight": "or", "lora_diag": "r"},
    {"lora_A.weight": "rik", "lora_B.weight": "or1", "lora_magnitude_vector": "1o1"},
    {"lora_embedding_A": "ri", "lora_embedding_B": "or", "lora_magnitude_vector": "o"},
    {"lora_A": "ri", "lora_B": "or", "lora_E": "r1"},
    {"hada_w1_a": "or", "hada_w1_b": "ri", "hada_w2_a": "or", "hada_w2_b": "ri"},
    {"hada_w1_a": "ro", "hada_w1_b": "ri", "hada_w2_a": "ro", "hada_w2_b": "ri", "hada_t1": "rrkk", "hada_t2": "rrkk"},
    {"lokr_w1": "oi", "lokr_w2": "or"},
    {"lokr_w1_a": "or", "lokr_w1_b": "ri", "lokr_w2_a": "ro", "lokr_w2_b": "ri", "lokr_t2": "rrkk"},
    {"vera_lambda_b": "o", "vera_lambda_d": "r"},
    {"hira_A": "ri", "hira_B": "or"},
    {"lora_a": "ir", "lora_b": "ro", "m": "o"},
    {"lora_a": "kri", "lora_b": "kor"},
    {"lora_a.weight": "ri", "lora_b.weight": "or", "magnitude": "o"},
    {"lora_down.weight": "ri", "lora_up.weight": "or", "alpha": "1", "dora_scale": "1i"},
    {"lora_down.weight": "ri11", "lora_up.weight": "or11", "lora_mid.weight": "rrkk"},
]
FIELDS = [*{field for family in FAMILIES for field in family}, "weight", "bias", "base_layer.weight"]
STEM = f"{PREFIX}model.layers.0.self_attn.q_proj"
STEMS = [STEM, f"{STEM}.base_layer", "transformer.x", "lora_unet_a", "base_model", "", f"{PREFIX}mlp.experts"]
TYPES = [*[None] * 9, "LORA", "ADALORA", "LOHA", "LOKR", "VERA", "HIRA", "MISS", "IA3", "XLORA"]
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6]), max_size=4)


@st.composite
def tensor_sets(draw):
    """Return tensors that fit each other, but for a change that may break any of that."""
    sizes = {letter: draw(st.integers(1, 6)) for letter in "riok"} | {"1": 1}
    tensors = {}
    for family in draw(st.lists(st.sampled_from(FAMILIES), min_size=1, max_size=2)):
        stem = draw(st.sampled_from(STEMS))
        dtype = draw(st.sampled_from([np.float32, np.float32, np.float16, np.int32, np.float64]))
        tensors |= {f"{stem}.{field}": ([sizes[x] for x in axes], dtype) for field, axes in family.items()}
    if draw(st.booleans()):
        tensors["base_model.vera_A"] = [sizes["r"], 9], np.float32
        tensors["base_model.vera_B"] = [9, sizes["r"]], np.float32
    for change in (draw(st.sampled_from([*[None] * len(tensors), *tensors])), draw(st.sampled_from([None, *FIELDS]))):
        if change is not None:  # the shape of one, and one more
            name = change if change in tensors else f"{draw(st.sampled_from(STEMS))}.{change}"
            tensors[name] = draw(SHAPES), np.float32
    tensors.pop(draw(st.sampled_from([*[None] * 2 * len(tensors), *tensors])), None)
    return tensors


CONFIGS = st.fixed_dictionaries(
    {"peft_type": st.sampled_from(TYPES), "r": st.integers(1, 6)},
    optional={
        "use_rslora": st.booleans(),
        "use_dora": st.booleans(),
        "use_qalora": st.booleans(),
        "qalora_group_size": st.integers(-1, 3),
        "fan_in_fan_out": st.booleans(),
        "init_lora_weights": st.sampled_from([True, False, "pissa", "olora", "loftq"]),
        "init_r": st.integers(-1, 4),
        "alpha": st.floats(-2, 2),
        "lora_alpha": st.floats(-2, 2),
        "target_parameters": st.lists(st.sampled_from(["experts.down_proj", "gate_up_proj", "q_proj.weight"])),
        "target_modules": st.lists(st.sampled_from(["q_proj", "x"]), max_size=2) | st.just("all-linear"),
        "rank_pattern": st.dictionaries(st.sampled_from(["q_proj", ".*", "(x|y)+", "(?=q)"]), st.integers(-1, 5)),
        "alpha_pattern": st.dictionaries(st.text(max_size=6), st.floats(-2, 2), max_size=2),
        "lora_parameters": st.dictionaries(st.sampled_from(["scale", "rank"]), st.none() | st.floats(-2, 2)),
        "use_bdlora": st.fixed_dictionaries(
            {"target_modules_bd_a": st.just(["q_proj"]), "nblocks": st.integers(-1, 4)}
        ),
        "layer_replication": st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=3),
    },
)


def in_words(work):
    """Return what the work makes, or None where it refuses with a sentence."""
    try:
        return work()
    except AdapterError as error:
        if len(str(error)) < 10:
            raise
        return None


def read(folder):
    """Read everything there is to read, as an audit would."""
    _, adapter = open_adapter(folder)
    assert set(adapter.roles) == set(adapter.tensors)
    for module in adapter.modules:
        b, a = module.load()
        assert (len(b), a.shape[1]) == module.shape
        assert b.shape[1] == a.shape[0] == module.r
    return adapter


@settings(max_examples=4 * settings.default.max_examples)
@given(tensors=tensor_sets(), config=CONFIGS)
def test_any_tensors_under_any_config_are_read_or_refused_in_words(tmp_path_factory, tensors, config):
    held = {name: np.ones(shape, dtype) for name, (shape, dtype) in tensors.items()}
    folder = written(tmp_path_factory.mktemp("any"), held, config)
    adapter = in_words(lambda: read(folder))
    for module in [] if adapter is None else [*adapter.modules, *adapter.base_dependent]:
        for weight in (np.ones((4, 6), np.float32), np.ones((2, 3, 2), np.float32)):
            if module.dense is not None:
                dw = in_words(lambda: module.dense(weight))  # noqa: B023  # called at once
                assert dw is None or dw.shape == (len(weight), 6)


@settings(max_examples=2 * settings.default.max_examples)
@given(at=st.integers(0, 2000), value=st.integers(0, 255), name=st.sampled_from(["safetensors", "bin"]))
def test_a_good_file_with_one_byte_changed_is_read_or_refused_in_words(tmp_path_factory, at, value, name):
    folder = saved(tmp_path_factory.mktemp("flip") / "a", lora("q"))
    weights = folder / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[at % len(data)] = value
    weights.write_bytes(data)
    weights.rename(folder / f"adapter_model.{name}")
    in_words(lambda: read(folder))
