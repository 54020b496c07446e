"""Adapters small enough to resize by hand: ranks, budgets, tensors and refusals, number by number and word by word."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hand_made import PREFIX, adapter, diagonal, kohya
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tables import every

from gradience import AdapterError, OptionError, OutputError, resize_adapter
from gradience.adapters.patterns import Patterns
from gradience.rewrite.options import ResizeOptions, Target
from gradience.rewrite.resize import factors
from gradience.rewrite.resize.factors import Cut, Loss, planned_file, refit_of, refitted
from gradience.rewrite.resize.plan import ResizePlan, new_config, relative_error
from gradience.rewrite.resize.subject import Subject, resizable_pairs
from gradience.rewrite.resize.weights import module_rank
from gradience.rewrite.sides import open_stored
from gradience.spectral.update import reduced


def dense(folder: Path, name: str, scale: float = 1.0) -> np.ndarray:
    tensors = load_file(folder / "adapter_model.safetensors")
    b, a = (tensors[f"{PREFIX}{name}.lora_{x}.weight"].astype(np.float64) for x in "BA")
    return scale * b @ a


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


# --- criteria ----------------------------------------------------------------------------------------------------


@every(
    ("given", "message"),
    [
        ({}, "expected exactly one criterion, got none"),
        ({"like_suggested": False, "rank": None}, "expected exactly one criterion, got none"),
        ({"energy": 0.5, "rank": 1}, "expected exactly one criterion, got --rank and --energy"),
        ({"energy": 0.0, "rank": 1}, "expected exactly one criterion, got --rank and --energy"),
        ({"rank": 0}, "--rank is 0, expected a whole number from 1"),
        ({"rank": 1.5}, "--rank is 1.5, expected a whole number from 1"),
        ({"rank": "4"}, "--rank is '4', expected a whole number from 1"),
        ({"energy": 0.0}, "--energy is 0.0, expected above 0, at most 1"),
        ({"energy": 1.1}, "--energy is 1.1, expected above 0, at most 1"),
        ({"max_mb": 0.0}, "--max-mb is 0.0, expected above 0"),
        ({"max_mb": math.inf}, "--max-mb is inf, expected a finite number"),
        ({"max_params": 0.5}, "--max-params is 0.5, expected a whole number from 1"),
        ({"max_params": 2.5}, "--max-params is 2.5, expected a whole number from 1"),
        ({"like_suggested": 2}, "--like-suggested is 2, expected true"),
        ({"kl": 0}, "--kl is 0, expected above 0, in nats"),
        ({"kl": 0.1, "flips": 0.0}, "--flips is 0.0, expected above 0, at most 1"),
        ({"kl": 0.1, "flips": 1.1}, "--flips is 1.1, expected above 0, at most 1"),
        ({"rank": 1, "flips": 0.1}, "--flips is a bound beside a KL, and none is given"),
        ({"rank": 1, "seed": -1}, "--seed is -1, expected a whole number from 0"),
    ],
)
def test_a_criterion_out_of_its_range_is_refused_with_the_range(given, message):
    with pytest.raises(OptionError) as error:
        ResizeOptions(**given).target()
    assert str(error.value) == message


def test_of_nothing_one_direction_is_kept():
    assert module_rank(Target("energy", 0.9), np.zeros(3)) == 1
    assert module_rank(Target("rank", 2.0), np.zeros(3)) == 2
    assert module_rank(Target("energy", 0.9), np.zeros(0)) == 1


@pytest.mark.parametrize(
    ("criterion", "ranks"),
    [
        ({"rank": 2}, {"k": 1, "q": 2, "v": 2, "z": 2}),
        ({"energy": 0.75}, {"k": 1, "q": 1, "v": 3, "z": 1}),
        ({"energy": 0.95}, {"k": 1, "q": 2, "v": 4, "z": 1}),
        ({"like_suggested": True}, {"k": 1, "q": 2, "v": 4, "z": 3}),
        ({"max_params": 44}, {"k": 1, "q": 1, "v": 1, "z": 1}),
        ({"max_params": 55}, {"k": 1, "q": 2, "v": 1, "z": 1}),
        ({"max_params": 1000}, {"k": 1, "q": 3, "v": 4, "z": 1}),
    ],
    ids=str,
)
def test_each_criterion_gives_these_ranks_and_errors(criterion, ranks, tmp_path):
    modules = {
        "q": diagonal(4.0, 2.0, 1.0),  # squares 16, 4, 1
        "v": diagonal(1.0, 1.0, 1.0, 1.0),
        "k": diagonal(3.0),
        "z": diagonal(0.0, 0.0, 0.0),
    }
    report = resize_adapter(adapter(tmp_path / "a", modules), tmp_path / "out", **criterion)
    assert {row.name: row.rank_after for row in report.modules} == ranks
    assert {row.name: row.rank_before for row in report.modules} == {"k": 1, "q": 3, "v": 4, "z": 3}
    q, v = (next(row for row in report.modules if row.name == name) for name in "qv")
    left_q, left_v = sum([16, 4, 1][ranks["q"] :]), 4 - ranks["v"]
    assert q.relative_error == pytest.approx(math.sqrt(left_q / 21), abs=1e-6)
    assert v.relative_error == pytest.approx(math.sqrt(left_v / 4), abs=1e-6)
    # a rank of its own has the scale alpha / rank of the config: 4 / 3, 4 / 4, 4 / 1
    energies = [(4 / 3) ** 2 * 21, 4.0, 16 * 9.0]
    lost = (4 / 3) ** 2 * left_q + left_v
    assert report.relative_error == pytest.approx(math.sqrt(lost / sum(energies)), abs=1e-6)
    assert [row.relative_error for row in report.modules if row.name == "z"] == [None]
    assert (report.params_before, report.params_after) == (11 * 11, 11 * sum(ranks.values()))
    assert (q.params_before, q.params_after) == (33, 11 * ranks["q"])
    assert (report.criterion, report.value) == (*criterion, float(*criterion.values()))
    written = config_of(tmp_path / "out")
    for name, rank in ranks.items():
        r = written["rank_pattern"].get(name, written["r"])
        alpha = written["alpha_pattern"].get(name, written["lora_alpha"])
        assert (r, alpha / r) == (rank, pytest.approx(4 / len(modules[name][1])))


# --- budgets in bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "each"), [(None, 6 * 4 + 5 * 2), ("float32", 44), ("bfloat16", 22)])
def test_a_rank_costs_the_bytes_of_its_factors_as_they_will_be_stored(dtype, each, tmp_path):
    b, a = diagonal(4.0, 3.0, 2.0, 1.0)
    folder = adapter(tmp_path / "a", {"q": (b, a.astype(np.float16))})
    sizes = [resize_adapter(folder, rank=rank, dtype=dtype).bytes_after for rank in (1, 2, 3)]
    assert {two - one for one, two in itertools.pairwise(sizes)} <= {each, each - 8, each + 8}
    assert sizes[2] - sizes[0] in range(2 * each - 8, 2 * each + 9)
    with pytest.raises(AdapterError) as error:
        resize_adapter(folder, max_mb=0.0001, dtype=dtype)
    words = str(error.value).split()
    beside = int(words[words.index("beside") + 2])
    assert str(error.value) == (
        f"the budget leaves {100 - beside} bytes beside the {beside} of the rest, and rank 1 of every module needs "
        f"{each}"
    )
    assert error.value.advice == "give a larger one"
    assert resize_adapter(folder, max_mb=(beside + 2 * each) / 1e6, dtype=dtype).modules[0].rank_after == 2
    assert resize_adapter(folder, max_mb=(beside + 2 * each - 1) / 1e6, dtype=dtype).modules[0].rank_after == 1


def test_pairs_that_share_their_config_share_the_cost_of_a_rank(tmp_path):
    b, a = diagonal(4.0, 3.0, 2.0)
    names = [f"q.lora_{side}.{adapter}.weight" for adapter in ("one", "two") for side in "AB"]
    folder = adapter(tmp_path / "a", {}, extra=dict(zip(names, (a, b, a, b), strict=True)), r=3, lora_alpha=3)
    for params, rank in ((22, 1), (43, 1), (44, 2), (65, 2), (66, 3)):
        report = resize_adapter(folder, max_params=params)
        assert [(row.rank_after, row.params_after) for row in report.modules] == [(rank, 11 * rank)] * 2
    with pytest.raises(AdapterError, match="the budget leaves 21 parameters, and rank 1 of every module needs 22"):
        resize_adapter(folder, max_params=21)


def test_the_report_has_the_bytes_of_both_files(tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(4.0, 3.0)}, extra={"head.weight": np.ones(9, np.float32)})
    report = resize_adapter(folder, tmp_path / "out", rank=1)
    assert report.bytes_before == (folder / "adapter_model.safetensors").stat().st_size
    assert report.bytes_after == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert (report.source, report.out) == (str(folder), str(tmp_path / "out"))
    file = folder / "adapter_model.safetensors"
    assert resize_adapter(file, rank=1).source == str(file)
    half = resize_adapter(folder, tmp_path / "half", rank=2, dtype="float16").bytes_after / 1e6
    for megabytes, rank in ((half, 2), (half - 1e-6, 1)):
        report = resize_adapter(folder, max_mb=megabytes, dtype="float16")
        assert report.modules[0].rank_after == rank
    assert resize_adapter(tmp_path / "out", rank=1).notes == []  # the record beside it is no file left behind
    assert resize_adapter(folder, rank=1).out is None
    whole = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    for n, names in enumerate((sorted(whole)[:1], sorted(whole)[1:]), 1):
        save_file({name: whole[name] for name in names}, folder / f"adapter_model-0000{n}-of-00002.safetensors")
    report = resize_adapter(folder, rank=1)
    assert report.bytes_before == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert report.notes == []  # nor is a part of the weights


def test_a_folder_that_is_there_is_kept_unless_asked_otherwise(tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(4.0, 3.0)})
    for rank in (1, 2):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "adapter_config.json").write_text("{}")
        with pytest.raises(OutputError, match="exists already"):
            resize_adapter(folder, tmp_path / "out", rank=rank)
    resize_adapter(folder, tmp_path / "out", rank=1, force=True)
    assert config_of(tmp_path / "out")["r"] == 1
    base = tmp_path / "base"
    base.mkdir()
    save_file({"q.weight": np.ones((6, 5), np.float32)}, base / "model.safetensors")
    with pytest.raises(OutputError, match="base model that is read"):
        resize_adapter(folder, base, rank=1, base=base, force=True)


@pytest.mark.parametrize("is_kohya", [False, True])
def test_what_came_while_a_resize_was_writing_is_kept(is_kohya, tmp_path):
    b, a = diagonal(4.0, 3.0)
    folder, out = adapter(tmp_path / "a", {"q": (b, a)}), tmp_path / "out.safetensors"
    source = kohya(tmp_path / "b.safetensors", {"q": (b, a, 2.0)}) if is_kohya else folder

    def comes(done: int, *_: object) -> None:
        if done == 1 and is_kohya:
            out.write_text("mine")
        elif done == 1:
            out.mkdir()
            (out / "adapter_config.json").write_text("mine")

    with pytest.raises(OutputError, match="File exists" if is_kohya else "not empty"):
        resize_adapter(source, out, rank=1, progress=comes)
    assert (out if is_kohya else out / "adapter_config.json").read_text() == "mine"


# --- tensors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [4.0, 0.0, -4.0])
def test_the_best_update_is_written_at_the_scale_there_was(alpha, tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(4.0, 2.0, 1.0, 0.5)}, lora_alpha=alpha)
    report = resize_adapter(folder, tmp_path / "out", rank=2)
    scale = alpha / 4
    found = config_of(tmp_path / "out")
    assert found["lora_alpha"] / found["r"] == scale
    np.testing.assert_allclose(dense(tmp_path / "out", "q"), np.diag([4.0, 2, 0, 0, 0, 0])[:, :5], atol=1e-6)
    assert report.relative_error == (pytest.approx(math.sqrt(1.25 / 21.25)) if alpha else None)


@pytest.mark.parametrize(
    ("rank", "alpha"), [(1, 3.0), (2, 3.0 * math.sqrt(2)), (3, 3.0 * math.sqrt(3)), (4, 6.0), (9, 6.0)]
)
@pytest.mark.parametrize("at_once", [True, False])
def test_with_rslora_alpha_goes_with_the_root_of_the_rank(rank, alpha, at_once, tmp_path):
    """6 over sqrt(4) is a scale of 3. A module of less rank than the others has an exception, whichever way it goes."""
    folder = adapter(
        tmp_path / "a",
        {"q": diagonal(4.0, 3.0, 2.0, 1.0), "v": diagonal(1.0)},
        use_rslora=True,
        lora_alpha=6,
        rank_pattern={"v": 1},
        alpha_pattern={"v": 3},
    )
    report = resize_adapter(folder, tmp_path / "out" if at_once else None, rank=rank)
    kept = min(rank, 4)
    assert (report.r, report.lora_alpha) == (kept, pytest.approx(alpha))
    assert (report.rank_pattern, report.alpha_pattern) == (({"v": 1}, {"v": 3}) if kept > 1 else ({}, {}))
    assert report.use_rslora
    if at_once:
        found = config_of(tmp_path / "out")
        assert found["lora_alpha"] / math.sqrt(found["r"]) == pytest.approx(3.0)
        wanted = np.diag([4.0, 3.0, 2.0, 1.0, 0.0, 0.0][:kept] + [0.0] * (6 - kept))[:, :5]
        np.testing.assert_allclose(dense(tmp_path / "out", "q"), wanted, atol=1e-6)


@pytest.mark.parametrize("alpha", [2.0, 0.0])
def test_factors_that_all_but_cancel_are_cut_as_they_are_whatever_alpha(alpha, tmp_path):
    b = np.array([[1.0, -1.0, 0.0], [0.0, 1e-7, 0.0], [0.0, 0.0, 1e-8]])
    a = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    resize_adapter(adapter(tmp_path / "a", {"q": (b, a)}, lora_alpha=alpha), tmp_path / "out", rank=1)
    np.testing.assert_allclose(dense(tmp_path / "out", "q"), [[0, 0], [1e-7, 0], [0, 0]], atol=1e-15)


def test_of_a_zero_update_the_other_factor_keeps_its_first_directions(tmp_path):
    b, a = np.arange(18.0, dtype=np.float32).reshape(6, 3), np.arange(15.0, dtype=np.float32).reshape(3, 5)
    folder = adapter(tmp_path / "a", {"q": (0 * b, a), "v": (b, 0 * a), "z": (0 * b, 0 * a)})
    resize_adapter(folder, tmp_path / "out", rank=2)
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    np.testing.assert_array_equal(found[f"{PREFIX}q.lora_A.weight"], a[:2])
    np.testing.assert_array_equal(found[f"{PREFIX}v.lora_B.weight"], b[:, :2])
    for name in ("q.lora_B", "v.lora_A", "z.lora_A", "z.lora_B"):
        assert not found[f"{PREFIX}{name}.weight"].any()


def test_a_module_that_keeps_its_rank_keeps_its_bytes_unless_its_dtype_changes(tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(1.3, 0.7), "v": diagonal(1.0, 0.1, 0.01)})
    before = load_file(folder / "adapter_model.safetensors")
    save_file(before, folder / "adapter_model.safetensors", metadata={"format": "pt", "mine": "kept"})
    for dtype in (None, "float32", "float16"):
        report = resize_adapter(folder, tmp_path / f"out-{dtype}", rank=2, dtype=dtype)
        with safe_open(tmp_path / f"out-{dtype}" / "adapter_model.safetensors", framework="numpy") as opened:
            assert opened.metadata() == {"format": "pt", "mine": "kept"}
        after = load_file(tmp_path / f"out-{dtype}" / "adapter_model.safetensors")
        for name in ("q.lora_A", "q.lora_B"):
            one, two = before[f"{PREFIX}{name}.weight"], after[f"{PREFIX}{name}.weight"]
            np.testing.assert_array_equal(two, one.astype(np.float16 if dtype == "float16" else np.float32))
            assert two.dtype == (np.float16 if dtype == "float16" else np.float32)
        assert report.modules[0].relative_error == 0.0
        assert report.dtype == {None: None, "float32": "F32", "float16": "F16"}[dtype]
        rounding = "errors are those of the lower rank; rounding the factors to float16 comes on top"
        assert report.notes == ([rounding] if dtype == "float16" else [])


def test_new_factors_that_a_dtype_cannot_hold_are_refused_by_name(tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(1e12, 1e11)})
    for rank in (1, 2):
        with pytest.raises(AdapterError) as error:
            resize_adapter(folder, tmp_path / "out", rank=rank, dtype="float16")
        assert "the new factors do not fit F16" in str(error.value)
        assert error.value.advice == "name a wider --dtype"
        assert not (tmp_path / "out").exists()


def test_one_expert_that_is_not_finite_is_named(tmp_path):
    a, b = np.ones((4, 5), np.float32), np.ones((6, 4), np.float32)
    a[3, 0] = np.nan  # of the second of two
    folder = adapter(tmp_path / "a", {"x.experts": (b, a)}, r=2, target_parameters=["experts.w"])
    with pytest.raises(AdapterError, match=r"x\.experts\.w\[1\] holds NaN"):
        resize_adapter(folder, rank=1)


def test_factors_of_eight_bits_are_not_rounded_to_eight_bits_again(tmp_path):
    b, a = (x.astype(ml_dtypes.float8_e4m3fn) for x in diagonal(4.0, 2.0))
    folder = adapter(tmp_path / "a", {"q": (b, a)})
    with pytest.raises(AdapterError) as error:
        resize_adapter(folder, rank=1)
    assert str(error.value) == "q: its factors are of F8_E4M3, and new ones would be rounded to 8 bits again"
    assert error.value.advice == "name their dtype, such as --dtype bfloat16"
    assert resize_adapter(folder, rank=1, dtype="bfloat16").modules[0].rank_after == 1
    for name, pair in (("b", (b, a.astype(np.float32))), ("c", (b.astype(np.float32), a))):  # one of the two
        with pytest.raises(AdapterError, match="q: its factors are of F8_E4M3, and new"):
            resize_adapter(adapter(tmp_path / name, {"q": pair}), rank=1)
    with pytest.raises(AdapterError, match="of F8_E5M2, and new"):
        resize_adapter(adapter(tmp_path / "d", {"q": (b.astype(ml_dtypes.float8_e5m2), a.astype(np.float32))}), rank=1)


@pytest.mark.parametrize(("kinds", "half"), [(("f2", "f2"), True), (("f2", "f4"), False), (("f4", "f2"), False)])
def test_products_are_of_float32_where_both_factors_will_be_of_sixteen_bits(kinds, half, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        factors, "reduced", lambda *a, half, **more: seen.append(half) or reduced(*a, half=half, **more)
    )
    pair = tuple(x.astype(kind) for x, kind in zip(diagonal(4.0, 2.0), kinds, strict=True))
    resize_adapter(adapter(tmp_path / "a", {"q": pair}), tmp_path / "out", rank=1)
    assert seen == [half]


@pytest.mark.parametrize("side", ["b", "a"])
def test_a_module_that_is_not_finite_is_named(side, tmp_path):
    b, a = diagonal(4.0, 2.0)
    (b if side == "b" else a)[0, 0] = np.nan
    folder = adapter(tmp_path / "a", {"q": diagonal(1.0), "v": (b, a)})
    with pytest.raises(AdapterError) as error:
        resize_adapter(folder, rank=1)
    assert str(error.value) == "v holds NaN or infinite numbers: it has no best update of a lower rank"
    assert error.value.advice == "'gradience audit' names all such modules"


def test_a_norm_whose_square_is_over_the_range_is_refused(tmp_path):
    b, a = diagonal(1e80, 1.0, dtype=np.float64)
    folder = adapter(tmp_path / "a", {"q": diagonal(1.0), "v": (b, a * 1e80)})
    with pytest.raises(AdapterError) as error:
        resize_adapter(folder, rank=1)
    assert str(error.value) == "v: the square of its norm is over the range of float64"


# --- DoRA --------------------------------------------------------------------------------------------------------


def test_magnitudes_are_the_least_squares_fit_of_each_row():
    """Rows of W + B A along axes: cut to rank 1, the second row is W's alone and keeps what it has along it."""
    w = np.asarray([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    b, a = np.asarray([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), np.asarray([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    magnitude = np.asarray([5.0, 2.0, 7.0])
    fit = refitted(w, b, a, magnitude, scale=1.0, rank=1)
    np.testing.assert_allclose(fit.b @ fit.a, [[3.0, 0, 0], [0, 0, 0], [0, 0, 0]], atol=1e-12)
    # row 2 was 2 (0, 1, 1) / sqrt(2); along (0, 1, 0) that is sqrt(2), and sqrt(2) across is lost
    np.testing.assert_allclose(fit.magnitude, [5.0, math.sqrt(2), 0.0], atol=1e-12)
    assert fit.lost == pytest.approx(2.0)
    # the change to W: row 1 from 2 to 5, row 2 from (0, 1, 0) to (0, r, r), r = sqrt(2)
    assert fit.energy == pytest.approx(9.0 + (math.sqrt(2) - 1) ** 2 + 2.0)
    whole = refitted(w, b, a, magnitude, scale=1.0, rank=2)
    np.testing.assert_allclose(whole.magnitude, [5.0, 2.0, 0.0], atol=1e-12)
    assert whole.lost == pytest.approx(0.0, abs=1e-12)
    doubled = refitted(w, b / 2, a, magnitude, scale=2.0, rank=1)
    np.testing.assert_allclose(2.0 * doubled.b @ doubled.a, fit.b @ fit.a, atol=1e-12)
    silent = refitted(w, b, a, np.asarray([0.0, 2.0, 7.0]), scale=1.0, rank=1)
    np.testing.assert_allclose(silent.b @ silent.a, [[0, 0, 0], [0, 0, 1.0], [0, 0, 0]], atol=1e-12)


def test_dora_without_its_base_or_with_another_is_refused_in_words(tmp_path):
    extra = {"q.lora_magnitude_vector.weight": np.ones(6, np.float32)}
    folder = adapter(tmp_path / "a", {"q": diagonal(4.0, 2.0)}, extra=extra, use_dora=True)
    with pytest.raises(AdapterError) as error:
        resize_adapter(folder, rank=1)
    assert str(error.value) == ("q is DoRA: its magnitudes are relative to norm(W + s B A), which another B A changes")
    assert error.value.advice == "give the base model with --base, and they are fitted anew"
    for name, shape, message in (
        ("v", (6, 5), "the base has no q.weight"),
        ("q", (6, 4), "q.weight is of shape [6, 4] in the base, and the update of [6, 5]"),
        ("q", (5, 6), "q.weight is of shape [5, 6] in the base, and the update of [6, 5]"),
    ):
        base = tmp_path / f"{name}{shape[0]}"
        base.mkdir()
        save_file({f"{name}.weight": np.ones(shape, np.float32)}, base / "model.safetensors")
        (base / "config.json").write_text("{}")
        with pytest.raises(AdapterError) as error:
            resize_adapter(folder, rank=1, base=base)
        assert (str(error.value), error.value.advice) == (message, "give the model the adapter was trained on")
    fits = tmp_path / "fits"
    fits.mkdir()
    save_file({"q.weight": np.eye(6, 5, dtype=np.float32)}, fits / "model.safetensors")
    (fits / "config.json").write_text("{}")
    report = resize_adapter(folder, tmp_path / "out", rank=1, base=fits)
    np.testing.assert_allclose(dense(tmp_path / "out", "q"), np.diag([4.0, 0, 0, 0, 0, 0])[:, :5], atol=1e-6)
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    magnitude = written[f"{PREFIX}q.lora_magnitude_vector.weight"]
    np.testing.assert_allclose(magnitude, [1.0] * 5 + [0.0], atol=1e-6)  # the last row of W is zero
    dora = "DoRA: magnitudes fitted anew by least squares; errors are of the whole change to the weight"
    assert report.notes == [dora]
    # rows keep their length 1: along its axis nothing changes but that (5, 3 were to be 1, 1); nothing is lost
    assert report.relative_error is None or report.relative_error < 1e-6
    assert resize_adapter(folder, rank=2, base=fits).notes == []


# --- refusals and notes ------------------------------------------------------------------------------------------


def test_what_holds_no_pair_is_refused(tmp_path):
    folder = adapter(tmp_path / "a", {}, extra={"head.weight": np.ones((2, 2), np.float32)}, modules_to_save=["head"])
    with pytest.raises(AdapterError) as error:
        resize_adapter(folder, rank=1)
    assert str(error.value) == "cannot resize this adapter: it holds no LoRA pair"
    assert error.value.advice == "give the folder PEFT saved"


@every(("others", "tail"), [(0, None), (1, "n0"), (8, "n7"), (9, "n7 and 1 more"), (11, "n7 and 3 more")])
def test_what_else_lies_in_the_folder_is_named_eight_at_the_most(others, tail, tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(1.0, 1.0)})
    for place in range(others):
        (folder / f"n{place}" if place < 10 else folder / f"o{place}").write_text("")
    notes = resize_adapter(folder, rank=1).notes
    assert len(notes) == bool(others)
    if tail is not None:
        assert notes[0].startswith("not copied from the adapter's folder: n0")
        assert notes[0].endswith(tail)


@every(
    ("options", "message"),
    [
        ({"kl": 0.1}, "--kl is measured on inputs, and none are given"),
        (
            {"rank": 1, "calibrate": "t", "calibrate_tokens": "t", "base": "b"},
            "got --calibrate and --calibrate-tokens, expected one of them",
        ),
        ({"rank": 1, "calibrate": "t"}, "--calibrate runs the model, and no base is given"),
        ({"rank": 1, "calibrate_tokens": "t"}, "--calibrate-tokens runs the model, and no base is given"),
        (
            {"energy": 0.5, "calibrate": "t", "base": "b"},
            "--energy is a rule on singular values, which --calibrate does without",
        ),
        ({"rank": 1, "calibrate": True}, "--calibrate takes --data's rows, and none are given"),
        ({"rank": 1, "recover": True}, "--recover takes --data's rows, and none are given"),
        ({"rank": 1, "data": "d"}, "nothing asks for --data's rows"),
        ({"kl": 0.1, "data": "d", "calibrate": "t"}, "nothing asks for --data's rows"),
        ({"kl": 0.1, "data": "d"}, "--data runs the model, and no base is given"),
        ({"energy": 0.5, "data": "d", "recover": True}, "--recover runs the model, and no base is given"),
    ],
)
def test_what_a_calibration_lacks_is_said_before_anything_is_read(options, message, tmp_path):
    with pytest.raises(OptionError) as error:
        resize_adapter(tmp_path / "missing", **options)
    assert str(error.value) == message


@every(
    ("options", "inputs", "recovers_on"),
    [
        ({"calibrate": "t", "recover": "u"}, "t", "u"),
        ({"data": "d", "calibrate": True, "recover": True}, "d", "d"),
        ({"data": "d", "calibrate": "t", "recover": True}, "t", "d"),
        ({"data": "d", "calibrate": True, "recover": "u"}, "d", "u"),
        ({"data": "d", "calibrate_tokens": "i", "recover": True}, "i", "d"),
        ({"data": "d", "recover": True}, None, "d"),
        ({"data": "d", "kl": 0.1}, "d", None),
        ({"data": "d", "kl": 0.1, "calibrate": "t", "recover": True}, "t", "d"),
        ({"calibrate": False, "recover": False}, None, None),
    ],
)
def test_the_rows_of_data_are_taken_where_no_file_is_given(options, inputs, recovers_on):
    taken = ResizeOptions().completed(options if "kl" in options else {"rank": 1} | options)
    paths = [None if name is None else Path(name) for name in (inputs, recovers_on)]
    assert [taken.inputs, taken.recovers_on] == paths


def test_progress_counts_the_tensors_written(tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(1.0, 1.0)}, extra={"head.weight": np.ones(2, np.float32)})
    seen = []
    resize_adapter(folder, tmp_path / "out", rank=1, progress=lambda *at: seen.append(at))
    names = sorted(load_file(folder / "adapter_model.safetensors"))
    assert sorted(seen) == [(place, 3, name) for place, name in enumerate([name for *_, name in seen], 1)]
    assert sorted(name for *_, name in seen) == names


# --- kohya's files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alphas", "sizes", "dim", "alpha"),
    [
        ((2.0, 2.0), (2, 2), "2", "1"),
        ((2.0, 4.0), (2, 2), "Dynamic", "Dynamic"),
        ((4.0, 2.0), (4, 2), "Dynamic", "Dynamic"),
    ],
)
def test_the_header_has_rank_and_alpha_where_all_modules_share_them(alphas, sizes, dim, alpha, tmp_path):
    modules = {
        name: (*diagonal(*[3.0] * size, *[0.0] * (4 - size)), each)
        for name, each, size in zip("ab", alphas, sizes, strict=True)
    }
    source = kohya(
        tmp_path / "in.safetensors",
        modules,
        ss_network_dim="4",
        sshs_model_hash="x",
        sshs_legacy_hash="y",
        ss_tag="kept",
    )
    report = resize_adapter(source, tmp_path / "out.safetensors", energy=1.0)
    with safe_open(tmp_path / "out.safetensors", framework="numpy") as opened:
        metadata = opened.metadata()
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == (dim, alpha)
    assert metadata["ss_tag"] == "kept"
    assert not {"sshs_model_hash", "sshs_legacy_hash"} & metadata.keys()
    record = json.loads(metadata["gradience_provenance"])
    assert record["options"] == {"criterion": "energy", "value": 1.0, "dtype": None}
    assert record["modules"] == []
    assert report.bytes_after == (tmp_path / "out.safetensors").stat().st_size
    found = load_file(tmp_path / "out.safetensors")
    for name, each, size in zip("ab", alphas, sizes, strict=True):
        if size < 4:
            assert found[f"lora_unet_{name}.alpha"] == each / 4 * size
            assert found[f"lora_unet_{name}.alpha"].dtype == np.float32


def test_a_budget_for_a_file_of_kohyas_has_room_for_its_record(tmp_path):
    source = kohya(tmp_path / "in.safetensors", {"a": (*diagonal(4.0, 3.0, 2.0, 1.0), 4.0)})
    with pytest.raises(AdapterError) as error:
        resize_adapter(source, max_mb=0.001)
    words = str(error.value).split()
    beside = int(words[words.index("beside") + 2])
    plain = resize_adapter(source, rank=1).bytes_after
    assert beside - 4096 in range(plain - 44 - 16, plain - 44 + 17)


def test_what_lies_beside_a_file_of_kohyas_is_no_part_of_it(tmp_path):
    source = kohya(tmp_path / "in.safetensors", {"a": (*diagonal(4.0, 3.0), 2.0)})
    (tmp_path / "notes.txt").write_text("mine")
    assert resize_adapter(source, rank=1).notes == []


def test_a_pair_at_rank_zero_leaves_the_file_and_all_others_stay_in_their_order(tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(4.0, 2.0), "v": diagonal(1.0, 0.5), "w": diagonal(2.0)})
    stored, ranks = open_stored(folder), {"q": 0, "v": 1, "w": 1}
    pairs = resizable_pairs(stored.adapter)
    tensors = planned_file(Subject(stored, pairs, None), [Cut(pair, ranks[pair.path], [], dict) for pair in pairs])
    names = [f"{PREFIX}{name}.lora_{side}.weight" for name in "vw" for side in "AB"]
    assert [tensor.name for tensor in tensors] == names
    assert [tensor.shape for tensor in tensors] == [(1, 5), (6, 1)] * 2
    assert [tensor.with_another for tensor in tensors] == [False, True, False, False]  # w is copied


def test_a_lora_of_kohyas_is_written_to_a_file(tmp_path):
    source = kohya(tmp_path / "in.safetensors", {"a": (*diagonal(4.0, 3.0), 2.0)})
    for name in ("out", "out.bin"):
        with pytest.raises(OutputError) as error:
            resize_adapter(source, tmp_path / name, rank=1)
        assert str(error.value) == f"{tmp_path / name}: a LoRA in kohya's format is one file"
        assert error.value.advice == "give a name that ends in .safetensors"
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("target", [{"rank": 1}, {"energy": 0.7}])
def test_an_error_is_the_same_share_whatever_the_size_of_the_update(size, target, tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(4.0 * size, 2.0 * size, 2.0 * size)})
    report = resize_adapter(folder, **target)
    rank, lost = (2, 4) if "energy" in target else (1, 8)
    assert report.modules[0].rank_after == rank
    assert report.relative_error == pytest.approx(math.sqrt(lost / 24), rel=1e-5)


def test_an_adapter_that_keeps_its_ranks_loses_nothing(tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(4.0, 2.0), "v": diagonal(1.0, 0.5)})
    report = resize_adapter(folder, rank=2)
    assert [(row.rank_after, row.relative_error) for row in report.modules] == [(2, 0.0), (2, 0.0)]
    assert report.relative_error == 0.0


@every(
    ("lost", "energy", "error"),
    [(1.0, 4.0, 0.5), (1e-30, 4e-30, 0.5), (1.1, 1.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, None)],
)
def test_an_error_is_a_share_of_the_energy_and_never_over_one(lost, energy, error):
    assert relative_error([Loss(lost / 2, energy / 2)] * 2) == (None if error is None else pytest.approx(error))


@pytest.mark.parametrize(("given", "asked"), [("h.attn.in_proj_weight", "h.attn.in_proj_weight"), (None, "q.weight")])
def test_dora_asks_its_base_for_the_tensor_that_the_module_names(given, asked):
    module = SimpleNamespace(name="q", base_name=given)
    base = SimpleNamespace(find=lambda name: None)
    with pytest.raises(AdapterError) as error:
        refit_of(None, SimpleNamespace(first=module, layout=None), 1, base)
    assert str(error.value) == f"the base has no {asked}"


def test_a_tensor_that_may_depend_on_the_rank_is_named_with_its_reason(tmp_path):
    b, a = diagonal(4.0, 2.0)
    folder = adapter(tmp_path / "a", {"q": (b, a), "v": (b, a[:1]), "w": (b[:, :1], a)})
    with pytest.raises(AdapterError) as error:
        resize_adapter(folder, rank=1)
    assert error.value.advice == "'gradience audit --verbose' lists them"
    assert str(error.value) == (
        f"cannot resize this adapter: 4 of its tensors may depend on the rank ({PREFIX}v.lora_A.weight: factors of "
        "shape [1, 5] and [6, 2]: ranks disagree)"
    )


# --- ranks of pairs that share one ---------------------------------------------------------------------------------


def test_an_expert_counts_its_own_parameters_alone(tmp_path):
    config = {"r": 2, "lora_alpha": 2, "target_parameters": ["experts.down_proj"], "target_modules": []}
    b, a = np.random.default_rng(0).standard_normal((2, 6, 6))
    folder = adapter(tmp_path / "a", {"experts": (b.astype(np.float32), a[:, :5].astype(np.float32))}, **config)
    rows = resize_adapter(folder, rank=1).modules
    assert [(row.rank_before, row.rank_after, row.params_before, row.params_after) for row in rows] == [
        (2, 1, 22, 11)
    ] * 3


def test_dora_that_keeps_its_rank_needs_no_base(tmp_path):
    extra = {"q.lora_magnitude_vector": np.ones(6, np.float32)}
    folder = adapter(tmp_path / "a", {"q": diagonal(4.0, 2.0)}, extra=extra, use_dora=True)
    assert resize_adapter(folder, rank=2).modules[0].relative_error == 0.0
    with pytest.raises(AdapterError, match="q is DoRA: its magnitudes are relative"):
        resize_adapter(folder, rank=1)


def test_a_config_keeps_its_keys_and_takes_the_plan_s_ranks_and_fields():
    plan = ResizePlan([], Patterns(2, 4, {"q": 1}, {"q": 2}), [], None, {"target_modules": ["q", "v"]})
    raw = {"r": 8, "target_modules": "all-linear", "bias": "none", "init_lora_weights": "Orthogonal"}
    fields, notes = new_config(raw, plan)
    wanted = {"r": 2, "lora_alpha": 4, "rank_pattern": {"q": 1}, "alpha_pattern": {"q": 2}, "bias": "none"}
    assert fields == wanted | {"target_modules": ["q", "v"], "init_lora_weights": True}
    assert notes == ["init_lora_weights was 'Orthogonal': PEFT would run it again on loading, for a rank it may refuse"]
    assert new_config(raw | {"init_lora_weights": "eva"}, plan) == (fields | {"init_lora_weights": "eva"}, [])
