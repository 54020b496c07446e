"""Adapters small enough to resize by hand: ranks, budgets, tensors and refusals, number by number and word by word."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gradience import AdapterError, ConfigError, OutputError, resize_adapter
from gradience.adapters.open import open_adapter
from gradience.schema.writing import Criterion
from gradience.verbs.resize import calibrated
from gradience.verbs.resize.calibrated import kept_for
from gradience.verbs.resize.choice import Candidate, Order, first_pieces, ordered, predicted_kl, shortest, within
from gradience.verbs.resize.criteria import Target, module_rank, target_of
from gradience.verbs.resize.cut import refitted
from gradience.verbs.resize.pieces import combined, gates_of, pieces_of, share_left_out
from gradience.verbs.resize.plan import resizable_pairs
from gradience.verbs.resize.targets import without_modules

PREFIX = "base_model.model."
CRITERIA = ", ".join(get_args(Criterion))


def adapter(folder: Path, modules: dict[str, Any], *, extra: dict[str, Any] | None = None, **config: Any) -> Path:
    """An adapter whose modules have these factors (b, a), in their own dtypes."""
    folder.mkdir(parents=True)
    tensors = {f"{PREFIX}{name}": value for name, value in (extra or {}).items()}
    for name, (b, a) in modules.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(a)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(b)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    r = max(len(a) for _, a in modules.values()) if modules else 1
    given = {"peft_type": "LORA", "r": r, "lora_alpha": r, "target_modules": sorted(modules), **config}
    (folder / "adapter_config.json").write_text(json.dumps(given))
    return folder


def diagonal(*sigma: float, d_out: int = 6, d_in: int = 5, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Factors of a diagonal update with these singular values."""
    n = len(sigma)
    return (np.eye(d_out, n) * np.asarray(sigma)).astype(dtype), np.eye(n, d_in).astype(dtype)


def dense(folder: Path, name: str, scale: float = 1.0) -> np.ndarray:
    tensors = load_file(folder / "adapter_model.safetensors")
    b, a = (tensors[f"{PREFIX}{name}.lora_{x}.weight"].astype(np.float64) for x in "BA")
    return scale * b @ a


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


# --- criteria ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, f"expected exactly one criterion of {CRITERIA}; got none"),
        ({"like_suggested": False, "rank": None}, f"expected exactly one criterion of {CRITERIA}; got none"),
        ({"energy": 0.5, "rank": 1}, f"expected exactly one criterion of {CRITERIA}; got rank, energy"),
        ({"energy": 0.0, "rank": 1}, f"expected exactly one criterion of {CRITERIA}; got rank, energy"),
        ({"rank": 0}, "rank is 0, expected a whole number from 1"),
        ({"rank": 1.5}, "rank is 1.5, expected a whole number from 1"),
        ({"rank": "4"}, "rank is 4, expected a whole number from 1"),
        ({"energy": 0.0}, "energy is 0.0, expected above 0, at most 1"),
        ({"energy": 1.1}, "energy is 1.1, expected above 0, at most 1"),
        ({"rel_error": -0.1}, "rel_error is -0.1, expected from 0, under 1"),
        ({"rel_error": 1}, "rel_error is 1, expected from 0, under 1"),
        ({"max_mb": 0.0}, "max_mb is 0.0, expected above 0"),
        ({"max_mb": math.inf}, "max_mb is inf, expected above 0"),
        ({"max_params": 0.5}, "max_params is 0.5, expected a whole number from 1"),
        ({"max_params": 2.5}, "max_params is 2.5, expected a whole number from 1"),
        ({"like_suggested": 2}, "like_suggested is 2, expected true"),
        ({"kl": 0}, "kl is 0, expected above 0, in nats"),
        ({"sv_ratio": 0.9}, "sv_ratio is 0.9, expected from 1"),
        ({"sv_fro": 0}, "sv_fro is 0, expected above 0, at most 1"),
        ({"sv_fro": 1.1}, "sv_fro is 1.1, expected above 0, at most 1"),
        ({"sv_cumulative": 0}, "sv_cumulative is 0, expected above 0, at most 1"),
        ({"sv_cumulative": 1.1}, "sv_cumulative is 1.1, expected above 0, at most 1"),
    ],
)
def test_a_criterion_out_of_its_range_is_refused_with_the_range(given, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message follows
        target_of(given)
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["energy", "rel_error", "sv_ratio", "sv_fro", "sv_cumulative"])
def test_of_nothing_one_direction_is_kept(name):
    assert module_rank(Target(name, 0.9 if name != "sv_ratio" else 2.0), np.zeros(3)) == 1
    assert module_rank(Target("rank", 2.0), np.zeros(3)) == 2
    assert module_rank(Target(name, 0.9 if name != "sv_ratio" else 2.0), np.zeros(0)) == 1


@pytest.mark.parametrize(
    ("criterion", "ranks"),
    [
        ({"rank": 2}, {"k": 1, "q": 2, "v": 2, "z": 2}),
        ({"energy": 0.75}, {"k": 1, "q": 1, "v": 3, "z": 1}),
        ({"energy": 0.95}, {"k": 1, "q": 2, "v": 4, "z": 1}),
        ({"rel_error": 0.5}, {"k": 1, "q": 1, "v": 3, "z": 1}),
        ({"sv_ratio": 3.0}, {"k": 1, "q": 2, "v": 4, "z": 1}),
        ({"sv_fro": 0.8}, {"k": 1, "q": 1, "v": 3, "z": 1}),
        ({"sv_cumulative": 0.6}, {"k": 1, "q": 2, "v": 3, "z": 1}),
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


def test_the_report_has_the_bytes_of_both_files(tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(4.0, 3.0)}, extra={"head.weight": np.ones(9, np.float32)})
    report = resize_adapter(folder, tmp_path / "out", rank=1)
    assert report.bytes_before == (folder / "adapter_model.safetensors").stat().st_size
    assert report.bytes_after == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert report.out == str(tmp_path / "out")
    assert resize_adapter(folder, rank=1).out is None


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


def test_of_a_zero_update_the_other_factor_keeps_its_first_directions(tmp_path):
    b, a = np.ones((6, 3), np.float32), np.arange(15.0, dtype=np.float32).reshape(3, 5)
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
    for dtype in (None, "float32", "float16"):
        report = resize_adapter(folder, tmp_path / f"out-{dtype}", rank=2, dtype=dtype)
        after = load_file(tmp_path / f"out-{dtype}" / "adapter_model.safetensors")
        for name in ("q.lora_A", "q.lora_B"):
            one, two = before[f"{PREFIX}{name}.weight"], after[f"{PREFIX}{name}.weight"]
            np.testing.assert_array_equal(two, one.astype(np.float16 if dtype == "float16" else np.float32))
            assert two.dtype == (np.float16 if dtype == "float16" else np.float32)
        assert report.modules[0].relative_error == 0.0
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


def test_factors_of_eight_bits_are_not_rounded_to_eight_bits_again(tmp_path):
    b, a = (x.astype(ml_dtypes.float8_e4m3fn) for x in diagonal(4.0, 2.0))
    folder = adapter(tmp_path / "a", {"q": (b, a)})
    with pytest.raises(AdapterError) as error:
        resize_adapter(folder, rank=1)
    assert str(error.value) == "q: its factors are of F8_E4M3, and new ones would be rounded to 8 bits again"
    assert error.value.advice == "name their dtype, such as --dtype bfloat16"
    assert resize_adapter(folder, rank=1, dtype="bfloat16").modules[0].rank_after == 1


@pytest.mark.parametrize("side", ["b", "a"])
def test_a_module_that_is_not_finite_is_named(side, tmp_path):
    b, a = diagonal(4.0, 2.0)
    (b if side == "b" else a)[0, 0] = np.nan
    folder = adapter(tmp_path / "a", {"q": diagonal(1.0), "v": (b, a)})
    with pytest.raises(AdapterError) as error:
        resize_adapter(folder, rank=1)
    assert str(error.value) == "v holds NaN or infinite numbers: it has no best update of a lower rank"


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
    ):
        base = tmp_path / name
        base.mkdir()
        save_file({f"{name}.weight": np.ones(shape, np.float32)}, base / "model.safetensors")
        (base / "config.json").write_text("{}")
        with pytest.raises(AdapterError) as error:
            resize_adapter(folder, rank=1, base=base)
        assert str(error.value) == message
    fits = tmp_path / "fits"
    fits.mkdir()
    save_file({"q.weight": np.eye(6, 5, dtype=np.float32)}, fits / "model.safetensors")
    (fits / "config.json").write_text("{}")
    report = resize_adapter(folder, rank=1, base=fits)
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


@pytest.mark.parametrize(
    ("others", "tail"), [(0, None), (1, "n0"), (8, "n7"), (9, "n7 and 1 more"), (11, "n7 and 3 more")]
)
def test_what_else_lies_in_the_folder_is_named_eight_at_the_most(others, tail, tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(1.0, 1.0)})
    for place in range(others):
        (folder / f"n{place}" if place < 10 else folder / f"o{place}").write_text("")
    notes = resize_adapter(folder, rank=1).notes
    assert len(notes) == bool(others)
    if tail is not None:
        assert notes[0].startswith("not copied from the adapter's folder: n0")
        assert notes[0].endswith(tail)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl": 0.1}, "kl is measured on inputs: expected calibrate or calibrate_tokens"),
        (
            {"rank": 1, "calibrate": "t", "calibrate_tokens": "t", "base": "b"},
            "expected calibrate or calibrate_tokens, got both",
        ),
        ({"rank": 1, "calibrate": "t"}, "calibration runs the model: expected base"),
        ({"rank": 1, "calibrate_tokens": "t"}, "calibration runs the model: expected base"),
        (
            {"energy": 0.5, "calibrate": "t", "base": "b"},
            "energy is a rule on singular values; calibration takes kl, rank, max_params, max_mb",
        ),
    ],
)
def test_what_a_calibration_lacks_is_said_before_anything_is_read(options, message, tmp_path):
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message follows
        resize_adapter(tmp_path / "missing", **options)
    assert str(error.value) == message


def test_progress_counts_the_tensors_written(tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(1.0, 1.0)}, extra={"head.weight": np.ones(2, np.float32)})
    seen = []
    resize_adapter(folder, tmp_path / "out", rank=1, progress=lambda *at: seen.append(at))
    names = sorted(load_file(folder / "adapter_model.safetensors"))
    assert sorted(seen) == [(place, 3, name) for place, name in enumerate([name for *_, name in seen], 1)]
    assert sorted(name for *_, name in seen) == names


# --- kohya's files -----------------------------------------------------------------------------------------------


def kohya(path: Path, modules: dict[str, tuple[np.ndarray, np.ndarray, float]], **metadata: str) -> Path:
    tensors = {}
    for name, (b, a, alpha) in modules.items():
        tensors[f"lora_unet_{name}.lora_up.weight"] = b
        tensors[f"lora_unet_{name}.lora_down.weight"] = a
        tensors[f"lora_unet_{name}.alpha"] = np.asarray(alpha, np.float16)
    save_file(tensors, path, metadata=metadata)
    return path


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
    source = kohya(tmp_path / "in.safetensors", modules, ss_network_dim="4", sshs_model_hash="x", ss_tag="kept")
    report = resize_adapter(source, tmp_path / "out.safetensors", energy=1.0)
    with safe_open(tmp_path / "out.safetensors", framework="numpy") as opened:
        metadata = opened.metadata()
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == (dim, alpha)
    assert metadata["ss_tag"] == "kept"
    assert "sshs_model_hash" not in metadata
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


def test_a_lora_of_kohyas_is_written_to_a_file(tmp_path):
    source = kohya(tmp_path / "in.safetensors", {"a": (*diagonal(4.0, 3.0), 2.0)})
    with pytest.raises(OutputError) as error:
        resize_adapter(source, tmp_path / "out", rank=1)
    assert str(error.value) == f"{tmp_path / 'out'}: a LoRA in kohya's format is one file"
    assert error.value.advice == "give a name that ends in .safetensors"


# --- pieces ------------------------------------------------------------------------------------------------------


def test_pieces_of_diagonal_moments():
    pieces = pieces_of(np.diag([4.0, 1.0, 0.0]), np.diag([1.0, 9.0, 1.0]))
    # roots: 2, 1, sqrt(4e-9) and 1, 3, 1: products 2, 3, 2 sqrt(1e-9)
    np.testing.assert_allclose(pieces.sizes, [3.0, 2.0, 2.0 * 1e-9**0.5], rtol=1e-9)
    for k, place in enumerate((1, 0, 2)):
        unit = np.zeros((3, 3))
        unit[place, place] = 1.0
        np.testing.assert_allclose(combined(pieces, [k]), unit, atol=1e-9)
    lopsided = np.asarray([[1.0, 2.0], [0.0, 1.0]])
    turned = pieces_of(lopsided, np.eye(2))
    np.testing.assert_allclose(
        turned.sizes**2, np.linalg.eigvalsh((lopsided + lopsided.T) / 2)[::-1].clip(2e-9), atol=1e-8
    )


def test_gates_are_the_pieces_parts_of_the_gradients():
    pieces = pieces_of(np.eye(2) * 4.0, np.eye(2))
    gradients = np.asarray([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 1.0]]])
    found = gates_of(pieces, gradients)
    wanted = [[float(np.sum(g * np.outer(pieces.left[:, i], pieces.right[i]))) for i in range(2)] for g in gradients]
    np.testing.assert_allclose(found, wanted)
    np.testing.assert_allclose(found.sum(axis=1), [5.0, 1.0])  # the pieces sum to the identity


def test_a_share_left_out_is_of_the_update_s_norm():
    gram_a, gram_b = np.diag([1.0, 4.0]), np.diag([9.0, 1.0])  # squares 9 and 4
    assert share_left_out(np.diag([1.0, 0.0]), gram_a, gram_b) == pytest.approx(math.sqrt(4 / 13))
    assert share_left_out(np.eye(2), gram_a, gram_b) == 0.0
    assert share_left_out(np.zeros((2, 2)), gram_a, gram_b) == 1.0
    assert share_left_out(np.eye(2), 0 * gram_a, gram_b) is None


def test_predicted_costs_are_half_the_mean_square_of_what_the_gates_left_out_say():
    gates = {"a": np.asarray([[3.0, 1.0], [1.0, 2.0]]), "b": np.asarray([[4.0], [-2.0]])}
    candidates = {name: Candidate(gate, 1) for name, gate in gates.items()}
    assert predicted_kl(candidates, {"a": [0], "b": []}, 8) == pytest.approx(0.5 * ((1 + 4) ** 2 + 0) / 8)
    assert predicted_kl(candidates, {"a": [0, 1], "b": [0]}, 8) == 0.0
    assert predicted_kl(candidates, {"a": [0], "b": [0]}, 0) == pytest.approx(0.5 * (1 + 4))


def test_equal_scores_keep_their_order_and_costs_of_nothing_count_as_one():
    order = ordered({"a": Candidate(np.ones((1, 2)), 0), "b": Candidate(np.ones((1, 1)), 1)})
    assert order == Order([("a", 0), ("a", 1), ("b", 0)], 1)
    both = ordered({"a": Candidate(np.ones((1, 2)), 1, least=1), "b": Candidate(2 * np.ones((1, 1)), 1, least=1)})
    assert both == Order([("b", 0), ("a", 0), ("a", 1)], 2)
    assert first_pieces(both, 2) == {"a": [0], "b": [0]}
    assert first_pieces(both, 0) == {"a": [], "b": []}
    assert within(both, 1, {"a": 1, "b": 1}) is None
    assert within(both, 2, {"a": 1, "b": 1}) == {"a": [0], "b": [0]}


@pytest.mark.parametrize(("pieces", "step"), [(99, 1), (199, 1), (200, 2), (350, 3)])
def test_the_shortest_beginning_is_sought_to_one_in_a_hundred(pieces, step):
    order = Order([("a", k) for k in range(pieces)], 1)
    asked = []

    def measured(count: int) -> float:
        asked.append(count)
        return 0.5 if count >= 61 else 0.51

    found = shortest(order, 0.5, measured)
    assert 61 <= found < 61 + step
    assert len(asked) <= math.ceil(math.log2(pieces / step)) + 1
    assert all(1 <= count < pieces for count in asked)
    assert shortest(Order([("a", 0)], 1), 0.5, measured) == 1


def test_targets_of_the_modules_that_stay():
    assert without_modules(["h.q", "a.q"], ["h.q", "a.q", "h.k"]) == {"target_modules": ["a.q", "h.q"]}
    pattern = {"target_modules": r"(?:a\.q|q)", "layers_to_transform": None, "layers_pattern": None}
    assert without_modules(["q", "a.q"], ["q", "a.q", "b.q"]) == pattern
    assert without_modules(["a.q"], ["a.q", "x.a.q"])["target_modules"] == r"(?:a\.q)"
    assert without_modules(["a.q"], ["a.q", "xa.q"])["target_modules"] == ["a.q"]


# --- calibration, without a model --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usable", "task", "chosen", "most"),
    [
        (24, "causal", 16, 192),
        (25, "causal", 17, 192),
        (191, "causal", 128, 192),
        (192, "causal", 128, 192),
        (150, "sequence-classification", 100, 384),
        (384, "sequence-classification", 128, 384),
    ],
)
def test_two_thirds_of_the_inputs_choose_and_the_rest_measures(usable, task, chosen, most, monkeypatch):
    asked = []

    def read(path, loaded, *, most, seed, token_ids):
        asked.append((path, most, seed, token_ids))
        return SimpleNamespace(examples=list(range(usable)), cut=3)

    monkeypatch.setattr(calibrated, "read_inputs", read)
    found = calibrated._split(calibrated.Asked("base", "t", token_ids=True, seed=5), SimpleNamespace(task=task))
    assert asked == [("t", most, 5, True)]
    assert (found.chosen_by, found.measured_on, found.cut) == (list(range(chosen)), list(range(chosen, usable)), 3)


def test_fewer_inputs_than_24_are_refused_with_the_number_that_would_be_used(monkeypatch):
    monkeypatch.setattr(calibrated, "read_inputs", lambda *_, **__: SimpleNamespace(examples=[0] * 23, cut=0))
    with pytest.raises(ConfigError) as error:
        calibrated._split(calibrated.Asked("base", "t"), SimpleNamespace(task="causal"))
    assert str(error.value) == "t has 23 different inputs that can be used, expected at least 24"
    assert error.value.advice == "192 are used where there are so many; they need no labels"


def opened(folder: Path) -> calibrated.Calibrated:
    """An adapter as a calibration would leave it, each module's pieces by the weights, gates of one sequence."""
    _, found = open_adapter(folder)
    pairs = {pair.path: pair for pair in resizable_pairs(found)}
    pieces = {path: pieces_of(*calibrated._grams(found, pair)) for path, pair in pairs.items()}
    candidates = {
        path: Candidate(pieces[path].sizes[None], pair.layout.params_per_rank, calibrated._least(found, pair))
        for path, pair in pairs.items()
    }
    return calibrated.Calibrated(
        adapter=found,
        asked=calibrated.Asked("b", "t"),
        model=None,
        pairs=pairs,
        pieces=pieces,
        candidates=candidates,
        order=ordered(candidates),
        predictions=1,
        inputs=None,
        measure=lambda kept: SimpleNamespace(kl=0.1 * (4 - sum(map(len, kept.values())))),
    )


def test_pieces_are_kept_within_each_kind_of_budget(tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(4.0, 2.0), "v": diagonal(3.0, 1.0, d_out=3, d_in=8)})
    found = opened(folder)
    assert found.order.pieces == [("q", 0), ("v", 0), ("q", 1), ("v", 1)]  # both cost eleven

    def kept(criterion: str, value: float, **more: Any) -> dict[str, int]:
        return {path: len(some) for path, some in kept_for(found, Target(criterion, value), **more).items()}

    assert kept("max_params", 11) == {"q": 1, "v": 0}
    assert kept("max_params", 32) == {"q": 1, "v": 1}
    assert kept("max_params", 33) == {"q": 2, "v": 1}
    assert kept("rank", 1) == {"q": 1, "v": 1}
    assert kept("rank", 9) == {"q": 2, "v": 2}
    assert kept("kl", 0.11) == {"q": 2, "v": 1}
    assert kept("kl", 0.21) == {"q": 1, "v": 1}
    whole = (folder / "adapter_model.safetensors").stat().st_size
    assert kept("max_mb", whole / 1e6) == {"q": 2, "v": 2}
    assert kept("max_mb", (whole - 1) / 1e6) == {"q": 2, "v": 1}
    assert kept("max_mb", (whole - 2 * 11 * 4) / 1e6, dtype="F16") == {"q": 2, "v": 2}
    with pytest.raises(AdapterError) as error:
        kept("max_params", 10)
    assert str(error.value) == "the budget leaves 10 parameters, and the least that can be written needs more"
    with pytest.raises(AdapterError, match=r"the budget leaves -?[0-9]+ bytes, and the least"):
        kept("max_mb", 0.0001)


def test_a_module_with_a_bias_beside_its_factors_keeps_a_piece(tmp_path):
    extra = {"q.bias": np.ones(6, np.float32), "qv.bias": np.ones(6, np.float32)}
    folder = adapter(tmp_path / "a", {"q": diagonal(1.0), "v": diagonal(9.0)}, extra=extra, bias="lora_only")
    _, found = open_adapter(folder)
    assert {pair.path: calibrated._least(found, pair) for pair in resizable_pairs(found)} == {"q": 1, "v": 0}


def test_the_maps_of_pieces_share_each_size_evenly_and_their_loss_is_the_share_left_out(tmp_path):
    b, a = diagonal(4.0, 2.0)
    folder = adapter(tmp_path / "a", {"q": (b * 1e3, a * 1e-3)}, lora_alpha=4)
    found = opened(folder)
    gram_a, gram_b = calibrated._grams(found.adapter, found.pairs["q"])
    maps = calibrated._maps(found.pieces["q"], [0], gram_a, gram_b)
    new_b, new_a = b * 1e3 @ maps.left, maps.right @ (a * 1e-3)
    np.testing.assert_allclose(np.abs(new_b @ new_a)[:2, :2], [[4.0, 0.0], [0.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(new_b), np.linalg.norm(new_a), rtol=1e-6)
    loss = calibrated._loss(found, "q", [0], gram_a, gram_b)
    assert (loss.lost, loss.energy) == (pytest.approx(4 * 4.0, rel=1e-6), pytest.approx(4 * 20.0, rel=1e-6))
    assert calibrated._loss(found, "q", [0, 1], gram_a, gram_b) == (0.0, pytest.approx(80.0, rel=1e-6))
    assert calibrated._loss(found, "q", [], gram_a, gram_b).lost == pytest.approx(80.0, rel=1e-6)


def test_what_peft_would_not_load_is_not_calibrated(tmp_path):
    source = kohya(tmp_path / "in.safetensors", {"a": (*diagonal(4.0, 3.0), 2.0)})
    files, found = open_adapter(source)
    with pytest.raises(AdapterError) as error:
        calibrated._pairs(files, found)
    assert str(error.value) == "the adapter is in kohya's format, which PEFT does not load"
    folder = adapter(tmp_path / "a", {"q": diagonal(1.0)})
    files, found = open_adapter(folder)
    assert list(calibrated._pairs(files, found)) == ["q"]
    (folder / "adapter_model.safetensors").rename(folder / "other.safetensors")
    files, found = open_adapter(folder)
    with pytest.raises(AdapterError) as error:
        calibrated._pairs(files, found)
    assert str(error.value) == (
        f"PEFT loads adapter_config.json and adapter_model.safetensors of one folder, and these are {files.config} and "
        f"{files.weights}"
    )
