"""Models of a few numbers, written by hand: every verdict, factor, reason and message of a merge that went wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tables import every

from gradience import AdapterError, verify_merged
from gradience.schema.merge import VerifiedModule
from gradience.verbs.verify.delta import rounded
from gradience.verbs.verify.run import concluded

PREFIX = "base_model.model."
RNG = np.random.default_rng(5)
W = RNG.standard_normal((8, 10)).astype(np.float32)
B, A = (RNG.standard_normal(shape).astype(np.float32) for shape in ((8, 4), (4, 10)))
SCALE = 3.0  # alpha 12 over r 4
DW = (np.float32(SCALE) * (B @ A)).astype(np.float32)


def model(folder: Path, **tensors: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    named = {name.replace("__", "."): np.ascontiguousarray(x) for name, x in tensors.items()}
    save_file(named, folder / "model.safetensors")
    return folder


def adapter(folder: Path, *, extra: dict[str, np.ndarray] | None = None, at: str = "q", **config: Any) -> Path:
    folder.mkdir(parents=True)
    tensors = {f"{PREFIX}{at}.lora_A.weight": A, f"{PREFIX}{at}.lora_B.weight": B, **(extra or {})}
    save_file(tensors, folder / "adapter_model.safetensors")
    given = {"peft_type": "LORA", "r": 4, "lora_alpha": 12, "target_modules": ["q"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(given))
    return folder


def only(base: Path, folder: Path, merged: Path) -> VerifiedModule:
    (row,) = verify_merged(base, folder, merged).modules
    return row


TWICE = "merged twice, or at twice the strength"
AS_TRAINED = "as if alpha / r had been left out"
BY_R = "as if alpha had not been divided by r"
BY_ROOT = "as if rsLoRA's alpha / sqrt(r) had been taken for alpha / r"
TO_ROOT = "as if alpha / r had been taken for rsLoRA's alpha / sqrt(r)"


@pytest.mark.parametrize(
    ("factor", "verdict", "reason"),
    [
        (1.0, "exact", None),
        (2.0, "scaled", f"{TWICE}, or {TO_ROOT}"),
        (0.5, "scaled", "merged at half strength"),
        (-1.0, "scaled", "subtracted"),
        (1 / 3, "scaled", AS_TRAINED),
        (3.0, "scaled", "as if it had been scaled twice"),
        (4.0, "scaled", BY_R),
        (10.0, "scaled", None),
        (1.7, "scaled", None),
        (-0.37, "scaled", None),  # of either sign
        (-1.7, "scaled", None),
        (0.02, "scaled", None),
        (-0.02, "scaled", None),
        (0.005, "other", "cosine of M - W with dW: 1.000"),  # under a hundredth it is no factor
        (-0.005, "other", "cosine of M - W with dW: -1.000"),
        (0.0, "absent", None),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_factor_of_the_update_is_named_with_its_mistake(factor, verdict, reason, dtype, tmp_path):
    merged = W.astype(dtype) + dtype(factor) * DW.astype(dtype)
    row = only(model(tmp_path / "w", q__weight=W), adapter(tmp_path / "a"), model(tmp_path / "m", q__weight=merged))
    assert (row.verdict, row.reason) == (verdict, reason)
    assert row.coefficient == pytest.approx(factor, abs=1e-6)
    if verdict == "scaled":
        assert row.factor == pytest.approx(factor, rel=1e-5)
    else:
        assert row.factor is None
    if verdict == "exact":
        assert (row.expected_coefficient, row.changed) == (pytest.approx(1.0, abs=1e-6), 1.0)


@pytest.mark.parametrize(
    ("factor", "reason"), [(0.5, f"merged at half strength, or {BY_ROOT}"), (2.0, f"{TWICE}, or {BY_R}"), (4.0, None)]
)
def test_the_factors_of_rslora_are_of_the_root_of_the_rank(factor, reason, tmp_path):
    """alpha 6 over sqrt(4) is the same scale of 3; at r = 4 the root is 2."""
    folder = adapter(tmp_path / "a", use_rslora=True, lora_alpha=6)
    merged = model(tmp_path / "m", q__weight=W + np.float32(factor) * DW)
    row = only(model(tmp_path / "w", q__weight=W), folder, merged)
    assert (row.verdict, row.reason) == ("scaled", reason)
    assert row.factor == pytest.approx(factor, rel=1e-5)


def test_what_is_no_multiple_of_the_update_has_the_cosine_with_it(tmp_path):
    """E = dW + N with N orthogonal to dW and three times as long: a cosine of 1 / sqrt(10), and 3 dW is left."""
    noise = RNG.standard_normal(W.shape)
    noise -= DW * np.sum(noise * DW) / np.sum(DW.astype(float) ** 2)
    noise *= 3.0 * np.linalg.norm(DW) / np.linalg.norm(noise)
    merged = model(tmp_path / "m", q__weight=(W + DW + noise).astype(np.float32))
    row = only(model(tmp_path / "w", q__weight=W), adapter(tmp_path / "a"), merged)
    assert (row.verdict, row.reason) == ("other", f"cosine of M - W with dW: {1 / math.sqrt(10):.3f}")
    assert (row.coefficient, row.residual) == (pytest.approx(1.0, abs=1e-5), pytest.approx(3.0, rel=1e-4))


@pytest.mark.parametrize(
    ("change", "verdict", "reason"),
    [
        (0.0, "unresolved", "the update is zero"),
        (0.1, "other", "the update is zero, and yet it changed"),
        (math.nan, "other", "the merged tensor holds NaN or infinite numbers"),
    ],
)
def test_an_update_of_zero_tells_nothing_and_a_change_beside_it_is_another(change, verdict, reason, tmp_path):
    folder = adapter(tmp_path / "a", extra={f"{PREFIX}q.lora_B.weight": 0 * B})
    merged = model(tmp_path / "m", q__weight=W + np.float32(change))
    row = only(model(tmp_path / "w", q__weight=W), folder, merged)
    assert (row.verdict, row.reason, row.coefficient) == (verdict, reason, None)


@pytest.mark.parametrize("where", ["base", "update"])
def test_what_is_not_finite_is_named(where, tmp_path):
    w, b = W.copy(), B.copy()
    (w if where == "base" else b)[0, 0] = np.inf
    folder = adapter(tmp_path / "a", extra={f"{PREFIX}q.lora_B.weight": b})
    row = only(model(tmp_path / "w", q__weight=w), folder, model(tmp_path / "m", q__weight=W + DW))
    named = "the base's tensor" if where == "base" else "the update"
    assert (row.verdict, row.reason) == ("other", f"{named} holds NaN or infinite numbers")


# --- biases ------------------------------------------------------------------------------------------------------


@every(
    ("update", "base", "merged", "reason"),
    [
        (8, "F8", "F8", None),
        (7, "F8", "F8", "biases of 7, 8 and 8 entries"),
        (8, "F7", "F8", "biases of 8, 7 and 8 entries"),
        (8, "F8", "F7", "biases of 8, 8 and 7 entries"),
        (8, None, "F8", "the base has no q.bias"),
        (8, "F8", None, "the merged model has no q.bias"),
        (8, "I8", "F8", "the base: q.bias is stored as I32"),
    ],
)
def test_a_bias_of_lora_needs_three_of_one_size_in_floats(update, base, merged, reason, tmp_path):
    bias = np.arange(1.0, 9.0, dtype=np.float32)

    def held(form, values):
        dtype = {"F": np.float32, "I": np.int32}
        return {} if form is None else {"q__bias": values.astype(dtype[form[0]])[: int(form[1])]}

    rows = verify_merged(
        model(tmp_path / "w", q__weight=W, **held(base, np.ones(8))),
        adapter(tmp_path / "a", extra={f"{PREFIX}q.lora_B.bias": bias[:update]}, lora_bias=True),
        model(tmp_path / "m", q__weight=W + DW, **held(merged, 1.0 + SCALE * bias)),
    ).modules
    verdict = "exact" if reason is None else "not_compared"
    assert [(row.name, row.verdict, row.reason) for row in rows] == [("q", "exact", None), ("q.bias", verdict, reason)]


# --- names -------------------------------------------------------------------------------------------------------


@every(
    ("base", "merged"),
    [
        ("", ""),
        ("model.", "model."),
        ("", "transformer."),  # the merged model's names are longer
        ("transformer.", ""),  # or the base's
        ("", "base_model.model."),
    ],
)
def test_a_tensor_that_several_names_end_with_is_found_by_the_prefix_of_the_others(base, merged, tmp_path):
    """`norm.weight` is the end of three names of a model: only what prefix the others have says which it is."""
    others = {"a.norm.weight": np.ones(3), "b.norm.weight": 2 * np.ones(3), "norm.weight": 3 * np.ones(3)}
    held = {name: x.astype(np.float32) for name, x in others.items()}
    report = verify_merged(
        model(tmp_path / "w", **{f"{base}{name}": x for name, x in {"h.0.q.weight": W, **held}.items()}),
        adapter(tmp_path / "a", at="h.0.q"),
        model(tmp_path / "m", **{f"{merged}{name}": x for name, x in {"h.0.q.weight": W + DW, **held}.items()}),
    )
    assert (report.verdict, report.untouched, report.others) == ("contained", 3, [])
    assert [row.verdict for row in report.modules] == ["exact"]


def test_tensors_that_the_adapter_leaves_are_the_same_changed_added_missing_or_beyond_comparison(tmp_path):
    held = {
        "same": np.ones(9, np.float32),
        "cast": np.full(4, 0.1, np.float32),
        "changed": np.array([3.0, 4.0], np.float32),
        "whole": np.arange(8, dtype=np.int64),
        "shape": np.ones((2, 3), np.float32),
        "packed": np.ones(2, np.int8),
        "missing": np.ones(1, np.float32),
        "zeros": np.zeros(2, np.float32),
    }
    after = held | {
        "cast": held["cast"].astype(np.float16),
        "changed": np.array([3.0, 4.5], np.float32),
        "whole": np.array([0, 1, 2, 3, 4, 5, 8, 9]),
        "shape": np.ones((3, 2), np.float32),
        "packed": np.ones(2, np.float32),
        "added": np.ones(1, np.float32),
        "zeros": np.ones(2, np.float32),
    }
    del after["missing"]
    report = verify_merged(
        model(tmp_path / "w", q__weight=W, **held),
        adapter(tmp_path / "a"),
        model(tmp_path / "m", q__weight=W + DW, **after),
    )
    found = {item.name: (item.what, item.relative_change, item.reason) for item in report.others}
    assert found == {
        "changed": ("changed", pytest.approx(0.1), None),
        "whole": ("changed", pytest.approx(math.sqrt(8 / 140)), None),  # of whole numbers too
        "shape": ("not_compared", None, "of shape [3, 2], in the base [2, 3]"),
        "packed": ("not_compared", None, "stored as F32, in the base as I8"),
        "added": ("added", None, None),
        "missing": ("missing", None, None),
        "zeros": ("changed", "Infinity", None),
    }
    assert (report.untouched, report.verdict) == (7, "contained")


def test_of_codes_that_are_no_numbers_it_is_said_that_their_bytes_are_others(tmp_path):
    def coded(folder: Path, w: np.ndarray, code: bytes) -> Path:
        folder.mkdir()
        fields = {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [w.nbytes, w.nbytes + 2]}
        weight = {"dtype": "F32", "shape": [8, 10], "data_offsets": [0, w.nbytes]}
        header = json.dumps({"q.weight": weight, "scales": fields}).encode()
        data = len(header).to_bytes(8, "little") + header + w.tobytes() + code
        (folder / "model.safetensors").write_bytes(data)
        return folder

    base, folder = coded(tmp_path / "w", W, b"ab"), adapter(tmp_path / "a")
    assert verify_merged(base, folder, coded(tmp_path / "same", W + DW, b"ab")).others == []
    (other,) = verify_merged(base, folder, coded(tmp_path / "m", W + DW, b"ac")).others
    assert (other.what, other.reason) == ("not_compared", "its bytes are others, and F8_E8M0 is not read as numbers")


def test_a_weight_that_is_not_there_is_said_of_whom_and_what_is_there_instead(tmp_path):
    words = {
        "q__base_layer__weight": "it was saved with the adapter beside it, not merged",
        "k__weight": None,
    }
    base, folder = model(tmp_path / "w", q__weight=W), adapter(tmp_path / "a")
    for place, (name, why) in enumerate(words.items()):
        row = only(base, folder, model(tmp_path / f"m{place}", **{name: W}))
        dotted = name.replace("__", ".")
        said = "has no q.weight" if why is None else f"has {dotted} instead of q.weight: {why}"
        assert (row.verdict, row.reason) == ("not_compared", f"the merged model {said}")
    row = only(model(tmp_path / "x", k__weight=W), folder, base)
    assert row.reason == "the base has no q.weight"
    row = only(base, folder, model(tmp_path / "i", q__weight=np.ones((8, 10), np.int8)))
    unread = "q.weight is stored in codes that are not read here: weight (I8), and no config.json names their format"
    assert row.reason == f"the merged model: {unread}"
    row = only(base, folder, model(tmp_path / "s", q__weight=np.ones((8, 9), np.float32)))
    assert row.reason == "q.weight is of shape [8, 9], in the base [8, 10]"


def test_two_updates_of_one_weight_are_not_both_compared(tmp_path):
    extra = {f"{PREFIX}m.h.0.q.lora_{s}.weight": x for s, x in (("A", A), ("B", B))}
    rows = verify_merged(
        model(tmp_path / "w", h__0__q__weight=W),
        adapter(tmp_path / "a", at="h.0.q", extra=extra),
        model(tmp_path / "m", h__0__q__weight=W + DW),
    ).modules
    assert [(row.verdict, row.reason) for row in rows] == [
        ("exact", None),
        ("not_compared", "another update of the adapter goes to h.0.q.weight, too"),
    ]


# --- the whole ---------------------------------------------------------------------------------------------------


def rows(*verdicts: tuple[str, str | None]) -> list[VerifiedModule]:
    return [VerifiedModule(name=f"m{n}", verdict=v, reason=why) for n, (v, why) in enumerate(verdicts)]  # type: ignore[arg-type]


EXACT, MISSED = ("exact", None), ("not_compared", "why")


@every(
    ("some", "verdict", "reasons"),
    [
        ([EXACT], "contained", []),
        ([("within_rounding", None), ("unresolved", "x")], "contained", []),
        ([EXACT, ("absent", None)], "not_contained", ["1 of 2 without the update (first: m1)"]),
        ([("scaled", None), ("other", None), ("scaled", None), MISSED], "not_contained",
         ["2 of 4 with another factor of it (first: m0)", "1 of 4 with something else (first: m1)"]),
        ([EXACT, MISSED], "inconclusive", ["m1 not compared: why"]),
        ([MISSED, MISSED, EXACT], "inconclusive", ["2 (first: m0) not compared: why"]),
        ([("unresolved", "x"), ("unresolved", "x")], "inconclusive", ["no module can tell: x"]),
        ([], "inconclusive", []),
        ([("not_compared", f"w{n}") for n in range(5)], "inconclusive", [f"m{n} not compared: w{n}" for n in range(5)]),
        ([("not_compared", f"w{n}") for n in range(7)], "inconclusive",
         [*(f"m{n} not compared: w{n}" for n in range(5)), "and 2 more reasons"]),
    ],
)  # fmt: skip
def test_the_whole_follows_from_the_rows(some, verdict, reasons):
    assert concluded(rows(*some)) == (verdict, reasons)


def test_the_coefficient_of_the_whole_is_over_all_modules_that_are_finite(tmp_path):
    """k has M = W + 2 dW and q M = W + dW, of the same dW: (1 + 2) / 2 together; v has no number."""
    factors = {f"{PREFIX}{name}.lora_{s}.weight": x for name in "kv" for s, x in (("A", A), ("B", B))}
    seen: list[tuple[int, int, str]] = []
    report = verify_merged(
        model(tmp_path / "w", q__weight=W, k__weight=W, v__weight=W),
        adapter(tmp_path / "a", extra=factors),
        model(tmp_path / "m", q__weight=W + DW, k__weight=W + 2 * DW, v__weight=W * np.nan, other=np.ones(1)),
        progress=lambda *at: seen.append(at),
    )
    assert report.coefficient == pytest.approx(1.5, abs=1e-6)
    assert report.counts == {"scaled": 1, "exact": 1, "other": 1}
    assert report.dtypes == {"F32 -> F32": 3}
    assert seen == [(0, 4, "k"), (1, 4, "q"), (2, 4, "v"), (3, 4, "other"), (4, 4, "")]


def test_an_adapter_of_nothing_to_merge_is_refused(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    save_file({"x.y": np.ones(2, np.float32)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    base = model(tmp_path / "w", q__weight=W)
    with pytest.raises(AdapterError) as error:
        verify_merged(base, folder, base)
    assert error.value.message == (
        "the adapter holds nothing that a merge would add: not part of any adapter layout known here"
    )
    assert error.value.advice == "'gradience audit' says what it holds"


# --- DoRA --------------------------------------------------------------------------------------------------------


def dora_merge(w: np.ndarray, magnitude: np.ndarray, factor: float = 1.0) -> np.ndarray:
    """PEFT's: each output's row of W + s B A at the length of its magnitude."""
    v = w.astype(np.float64) + factor * SCALE * B.astype(np.float64) @ A.astype(np.float64)
    return (magnitude[:, None] / np.linalg.norm(v, axis=1)[:, None] * v).astype(np.float32)


@every(
    ("case", "verdict", "reason"),
    [
        ("merged", "within_rounding", ""),
        ("without the magnitude", "other", "W + s B A: DoRA's magnitude was left out"),
        ("twice", "other", "cosine of M - W with dW"),
        ("unscaled", "other", "cosine of M - W with dW"),
        ("by columns", "other", "cosine of M - W with dW"),
        ("not", "absent", ""),
    ],
)
def test_a_merge_of_dora_is_by_the_norm_of_each_output(case, verdict, reason, tmp_path):
    magnitude = np.linspace(2.0, 5.0, 8).astype(np.float32)
    folder = adapter(tmp_path / "a", extra={f"{PREFIX}q.lora_magnitude_vector": magnitude}, use_dora=True)
    v = W.astype(np.float64) + DW
    merged = {
        "merged": dora_merge(W, magnitude),
        "without the magnitude": W + DW,
        "twice": dora_merge(W, magnitude, 2.0),
        "unscaled": dora_merge(W, magnitude, 1 / 3),
        "by columns": (v / np.linalg.norm(v, axis=0) * 3.0).astype(np.float32),
        "not": W,
    }[case]
    row = only(model(tmp_path / "w", q__weight=W), folder, model(tmp_path / "m", q__weight=merged))
    assert (row.verdict, row.factor) == (verdict, None)
    assert (row.reason or "").startswith(reason)


# --- orientation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [True, False])
def test_a_weight_that_is_stored_turned_takes_the_update_turned(turned, tmp_path):
    folder = adapter(tmp_path / "a", fan_in_fan_out=turned)
    w, m = (x.T if turned else x for x in (W, W + DW))
    assert only(model(tmp_path / "w", q__weight=w), folder, model(tmp_path / "m", q__weight=m)).verdict == "exact"


def test_a_square_weight_that_is_stored_turned_does_not_take_the_update_as_it_is(tmp_path):
    w, a = W[:, :8].copy(), A[:, :8].copy()
    dw = (np.float32(SCALE) * (B @ a)).astype(np.float32)
    base, extra = model(tmp_path / "w", q__weight=w), {f"{PREFIX}q.lora_A.weight": a}
    for given in (False, True):
        folder = adapter(tmp_path / f"a{given}", extra=extra, fan_in_fan_out=given)
        found = [only(base, folder, model(tmp_path / f"{given}{n}", q__weight=w + d)) for n, d in enumerate((dw, dw.T))]
        assert [row.verdict for row in found] == (["other", "exact"] if given else ["exact", "other"])


@pytest.mark.parametrize("half", ["F16", "BF16"])
def test_a_base_that_went_through_16_bits_is_absent_and_nothing_has_changed(half, tmp_path):
    row = only(
        model(tmp_path / "w", q__weight=W), adapter(tmp_path / "a"), model(tmp_path / "m", q__weight=rounded(W, half))
    )
    assert (row.verdict, row.changed, row.reason) == ("absent", 0.0, None)


@every(
    ("rows", "note"),
    [
        ((9, 9, 9), None),
        ((9, 12, 9), "rows of base, merged model and adapter: 9, 12, 9: the first 9 are compared"),
        ((12, 12, 9), "rows of base, merged model and adapter: 12, 12, 9: the first 9 are compared"),
        ((8, 9, 9), "rows of base, merged model and adapter: 8, 9, 9: the first 8 are compared"),
    ],
)
def test_of_a_vocabulary_that_grew_the_rows_that_all_have_are_compared(rows, note, tmp_path):
    in_base, in_merged, in_adapter = rows
    a, b = RNG.standard_normal((4, in_adapter)).astype(np.float32), RNG.standard_normal((6, 4)).astype(np.float32)
    extra = {f"{PREFIX}embed_tokens.lora_embedding_A": a, f"{PREFIX}embed_tokens.lora_embedding_B": b}
    folder = adapter(tmp_path / "a", extra=extra)
    w = RNG.standard_normal((12, 6)).astype(np.float32)
    m = w.copy()
    m[:in_adapter] += np.float32(SCALE) * (b @ a).T
    found = verify_merged(
        model(tmp_path / "w", q__weight=W, embed_tokens__weight=w[:in_base]),
        folder,
        model(tmp_path / "m", q__weight=W + DW, embed_tokens__weight=m[:in_merged]),
    ).modules
    assert [(row.name, row.verdict, row.reason) for row in found] == [
        ("embed_tokens", "exact", note),
        ("q", "exact", None),
    ]


def test_a_merged_model_that_is_contained_and_would_not_load_as_it_is_fails(tmp_path, capsys):
    """transformers 4 ties the head again; what is loaded is not what was merged."""
    import json

    import tiny_models
    from peft import PeftModel
    from safetensors.torch import load_file, save_file

    from gradience.cli.main import main

    made = tiny_models.saved(tiny_models.causal(), tmp_path, target_modules=["q_proj"], task_type="CAUSAL_LM")
    merged = tmp_path / "merged"
    PeftModel.from_pretrained(tiny_models.causal(), made.adapter).merge_and_unload().save_pretrained(merged)
    tiny_models.save_tokenizer(merged)
    command = ["verify", str(merged), "--adapter", str(made.adapter), "--base", str(made.base)]
    assert main(command) == 0
    assert "WOULD NOT LOAD" not in capsys.readouterr().out
    config = json.loads((merged / "config.json").read_text())
    (merged / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True, "vocab_size": 60}))
    assert main(command) == 1
    shown = capsys.readouterr().out
    assert "Verdict: CONTAINED, AND WOULD NOT LOAD AS IT IS" in shown
    assert "Set tie_word_embeddings to false in config.json." in " ".join(shown.split())
    tensors = load_file(merged / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, merged / "model.safetensors")
    assert main([*command, "--json"]) == 0  # another head than the base's is a change, and fits the flag
    assert [each["id"] for each in json.loads(capsys.readouterr().out)["findings"]] == []
