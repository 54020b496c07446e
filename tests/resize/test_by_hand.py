"""Adapters small enough to resize by hand: ranks, budgets, tensors and refusals, number by number and word by word."""

from __future__ import annotations

import itertools
import json
import math

import ml_dtypes
import numpy as np
import pytest
from hand_made import (
    PREFIX,
    WEIGHTS,
    adapter,
    base,
    best,
    config_of,
    diagonal,
    drawn,
    kohya,
    left_out,
    tensors_of,
    update,
)
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tables import every

from gradience import AdapterError, OutputError, resize_adapter
from gradience.adapters.patterns import Patterns
from gradience.rewriting.sides import open_stored
from gradience.spectral.update import reduced
from gradience.verbs.resize import weights
from gradience.verbs.resize.factors import Cut, Loss, ResizePlan, new_config, planned_file, relative_error
from gradience.verbs.resize.subject import Subject, resizable_pairs

# --- criteria ----------------------------------------------------------------------------------------------------


@every(
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
)
def test_each_criterion_gives_these_ranks_and_errors(criterion, ranks, tmp_path):
    modules = {
        "q": diagonal(4.0, 2.0, 1.0),  # squares 16, 4, 1
        "v": diagonal(1.0, 1.0, 1.0, 1.0),
        "k": diagonal(3.0),
        "z": diagonal(0.0, 0.0, 0.0),
    }
    report = resize_adapter(adapter(tmp_path / "a", modules), tmp_path / "out", **criterion)
    rows = {row.name: row for row in report.modules}
    assert {name: row.rank_after for name, row in rows.items()} == ranks
    assert {name: row.rank_before for name, row in rows.items()} == {"k": 1, "q": 3, "v": 4, "z": 3}
    q, v = rows["q"], rows["v"]
    left_q, left_v = sum([16, 4, 1][ranks["q"] :]), 4 - ranks["v"]
    assert q.relative_error == pytest.approx(math.sqrt(left_q / 21), abs=1e-6)
    assert v.relative_error == pytest.approx(math.sqrt(left_v / 4), abs=1e-6)
    # a rank of its own has the scale alpha / rank of the config: 4 / 3, 4 / 4, 4 / 1
    energies = [(4 / 3) ** 2 * 21, 4.0, 16 * 9.0]
    lost = (4 / 3) ** 2 * left_q + left_v
    assert report.relative_error == pytest.approx(math.sqrt(lost / sum(energies)), abs=1e-6)
    assert rows["z"].relative_error is None
    assert (report.params_before, report.params_after) == (11 * 11, 11 * sum(ranks.values()))
    assert (q.params_before, q.params_after) == (33, 11 * ranks["q"])
    assert (report.criterion, report.value) == (*criterion, float(*criterion.values()))
    written = config_of(tmp_path / "out")
    for name, rank in ranks.items():
        r = written["rank_pattern"].get(name, written["r"])
        alpha = written["alpha_pattern"].get(name, written["lora_alpha"])
        assert (r, alpha / r) == (rank, pytest.approx(4 / len(modules[name][1])))


@every("size", [1.0, 1e-3, 1e-6])
@every(("target", "rank", "lost"), [({"rank": 1}, 1, 8), ({"energy": 0.7}, 2, 4)])
def test_an_error_is_the_same_share_whatever_the_size_of_the_update(size, target, rank, lost, tmp_path):
    report = resize_adapter(adapter(tmp_path / "a", {"q": diagonal(4.0 * size, 2.0 * size, 2.0 * size)}), **target)
    assert report.modules[0].rank_after == rank
    assert report.relative_error == pytest.approx(math.sqrt(lost / 24), rel=1e-5)


@every(
    ("lost", "energy", "error"),
    [(1.0, 4.0, 0.5), (1e-30, 4e-30, 0.5), (1.1, 1.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, None)],
)
def test_an_error_is_a_share_of_the_energy_and_never_over_one(lost, energy, error):
    assert relative_error([Loss(lost / 2, energy / 2)] * 2) == (None if error is None else pytest.approx(error))


# --- budgets in bytes --------------------------------------------------------------------------------------------


@every(("dtype", "each"), [(None, 6 * 4 + 5 * 2), ("float32", 44), ("bfloat16", 22)])
def test_a_rank_costs_the_bytes_of_its_factors_as_they_will_be_stored_beside_those_of_all_else(dtype, each, tmp_path):
    b, a = diagonal(4.0, 3.0, 2.0, 1.0)
    head = {"head.weight": np.ones((10, 100), np.float32)}
    folder = adapter(tmp_path / "a", {"q": (b, a.astype(np.float16))}, extra=head, modules_to_save=["head"])
    sizes = [resize_adapter(folder, rank=rank, dtype=dtype).bytes_after for rank in (1, 2, 3)]
    assert {two - one for one, two in itertools.pairwise(sizes)} <= {each, each - 8, each + 8}
    with pytest.raises(AdapterError) as error:
        resize_adapter(folder, max_mb=0.0001, dtype=dtype)
    words = str(error.value).split()
    beside = int(words[words.index("beside") + 2])
    assert beside > 4000
    assert error.value.message == (
        f"the budget leaves {100 - beside} bytes beside the {beside} of the rest, and rank 1 of every module needs "
        f"{each}"
    )
    assert error.value.advice == "give a larger one"
    for budget, rank in ((beside + 2 * each, 2), (beside + 2 * each - 1, 1)):
        report = resize_adapter(folder, tmp_path / f"out{rank}", max_mb=budget / 1e6, dtype=dtype)
        assert report.modules[0].rank_after == rank
        assert (tmp_path / f"out{rank}" / WEIGHTS).stat().st_size == report.bytes_after <= budget


def test_pairs_that_share_their_config_share_the_cost_of_a_rank_and_must_share_ranks(tmp_path):
    b, a = diagonal(4.0, 3.0, 2.0)
    names = [f"q.lora_{side}.{adapter}.weight" for adapter in ("one", "two") for side in "AB"]
    folder = adapter(tmp_path / "a", {}, extra=dict(zip(names, (a, b, a, b), strict=True)), r=3, lora_alpha=3)
    for params, rank in ((22, 1), (43, 1), (44, 2), (65, 2), (66, 3)):
        report = resize_adapter(folder, max_params=params)
        assert [(row.rank_after, row.params_after) for row in report.modules] == [(rank, 11 * rank)] * 2
    with pytest.raises(AdapterError, match="the budget leaves 21 parameters, and rank 1 of every module needs 22"):
        resize_adapter(folder, max_params=21)
    unequal = dict(zip(names, (a, b, a[:2], b[:, :2]), strict=True))
    with pytest.raises(AdapterError, match="share their config, but have ranks 3 and 2"):
        resize_adapter(adapter(tmp_path / "b", {}, extra=unequal, r=3, lora_alpha=3), rank=1)


def test_the_report_has_the_bytes_of_both_files_and_parts_of_the_weights_are_no_notes(tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(4.0, 3.0)}, extra={"head.weight": np.ones(9, np.float32)})
    report = resize_adapter(folder, tmp_path / "out", rank=1)
    assert report.bytes_before == (folder / WEIGHTS).stat().st_size
    assert report.bytes_after == (tmp_path / "out" / WEIGHTS).stat().st_size
    assert (report.source, report.out) == (str(folder), str(tmp_path / "out"))
    assert resize_adapter(folder / WEIGHTS, rank=1).source == str(folder / WEIGHTS)
    assert resize_adapter(tmp_path / "out", rank=1).notes == []  # the record beside it is no file left behind
    whole = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    for n, names in enumerate((sorted(whole)[:1], sorted(whole)[1:]), 1):
        save_file({name: whole[name] for name in names}, folder / f"adapter_model-0000{n}-of-00002.safetensors")
    report = resize_adapter(folder, rank=1)
    assert report.bytes_before == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert (report.notes, report.out) == ([], None)


@every("is_kohya", [False, True])
def test_what_is_there_or_came_meanwhile_is_kept(is_kohya, tmp_path):
    b, a = diagonal(4.0, 3.0)
    folder, out = adapter(tmp_path / "a", {"q": (b, a)}), tmp_path / "out.safetensors"
    source = kohya(tmp_path / "b.safetensors", {"q": (b, a, 2.0)}) if is_kohya else folder

    def comes(done: int, *_: object) -> None:
        if done == 1 and is_kohya:
            out.write_text("mine")
        elif done == 1:
            out.mkdir()
            (out / "adapter_config.json").write_text("mine")

    for progress in (comes, None):
        with pytest.raises(OutputError):
            resize_adapter(source, out, rank=1, progress=progress)
        assert (out if is_kohya else out / "adapter_config.json").read_text() == "mine"
    resize_adapter(source, out, rank=1, force=True)
    assert is_kohya or config_of(out)["r"] == 1
    of = base(tmp_path / "base", q__weight=np.ones((6, 5), np.float32))
    with pytest.raises(OutputError, match="base model that is read"):
        resize_adapter(folder, of, rank=1, base=of, force=True)


# --- tensors -----------------------------------------------------------------------------------------------------


@every("alpha", [4.0, 0.0, -4.0])
def test_the_best_update_is_written_at_the_scale_there_was(alpha, tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(4.0, 2.0, 1.0, 0.5)}, lora_alpha=alpha)
    report = resize_adapter(folder, tmp_path / "out", rank=2)
    assert (config_of(tmp_path / "out")["lora_alpha"], config_of(tmp_path / "out")["r"]) == (alpha / 2, 2)
    tensors = tensors_of(tmp_path / "out")
    made = tensors["q.lora_B.weight"] @ tensors["q.lora_A.weight"]
    np.testing.assert_allclose(made, np.diag([4.0, 2, 0, 0, 0, 0])[:, :5], atol=1e-6)
    assert report.relative_error == (pytest.approx(math.sqrt(1.25 / 21.25)) if alpha else None)


@every(("rank", "alpha"), [(1, 3.0), (2, 3.0 * math.sqrt(2)), (3, 3.0 * math.sqrt(3)), (4, 6.0), (9, 6.0)])
def test_with_rslora_alpha_goes_with_the_root_of_the_rank(rank, alpha, tmp_path):
    """6 over sqrt(4) is a scale of 3. A module of less rank than the others has an exception, whichever way it goes."""
    modules = {"q": diagonal(4.0, 3.0, 2.0, 1.0), "v": diagonal(1.0)}
    patterns = {"rank_pattern": {"v": 1}, "alpha_pattern": {"v": 3}}
    folder = adapter(tmp_path / "a", modules, use_rslora=True, lora_alpha=6, **patterns)
    report, kept = resize_adapter(folder, tmp_path / "out", rank=rank), min(rank, 4)
    assert (report.r, report.lora_alpha, report.use_rslora) == (kept, pytest.approx(alpha), True)
    assert (report.rank_pattern, report.alpha_pattern) == (({"v": 1}, {"v": 3}) if kept > 1 else ({}, {}))
    wanted = 3.0 * np.diag([4.0, 3.0, 2.0, 1.0, 0.0, 0.0][:kept] + [0.0] * (6 - kept))[:, :5]
    np.testing.assert_allclose(update(tmp_path / "out", "q"), wanted, atol=1e-5)


@every("alpha", [2.0, 0.0])
def test_factors_that_all_but_cancel_are_cut_as_they_are_whatever_alpha(alpha, tmp_path):
    b = np.array([[1.0, -1.0, 0.0], [0.0, 1e-7, 0.0], [0.0, 0.0, 1e-8]])
    a = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    resize_adapter(adapter(tmp_path / "a", {"q": (b, a)}, lora_alpha=alpha), tmp_path / "out", rank=1)
    tensors = tensors_of(tmp_path / "out")
    made = tensors["q.lora_B.weight"] @ tensors["q.lora_A.weight"]
    np.testing.assert_allclose(made, [[0, 0], [1e-7, 0], [0, 0]], atol=1e-15)


def test_of_a_zero_update_the_other_factor_keeps_its_first_directions(tmp_path):
    b, a = np.arange(18.0, dtype=np.float32).reshape(6, 3), np.arange(15.0, dtype=np.float32).reshape(3, 5)
    folder = adapter(tmp_path / "a", {"q": (0 * b, a), "v": (b, 0 * a), "z": (0 * b, 0 * a)})
    resize_adapter(folder, tmp_path / "out", rank=2)
    found = tensors_of(tmp_path / "out")
    np.testing.assert_array_equal(found["q.lora_A.weight"], a[:2])
    np.testing.assert_array_equal(found["v.lora_B.weight"], b[:, :2])
    for name in ("q.lora_B", "v.lora_A", "z.lora_A", "z.lora_B"):
        assert not found[f"{name}.weight"].any()


@every("dtype", [None, "float32", "float16"])
def test_a_module_that_keeps_its_rank_keeps_its_bytes_unless_its_dtype_changes(dtype, tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(1.3, 0.7), "v": diagonal(1.0, 0.1, 0.01)})
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"format": "pt", "mine": "kept"})
    before = tensors_of(folder)
    report = resize_adapter(folder, tmp_path / "out", rank=2, dtype=dtype)
    with safe_open(tmp_path / "out" / WEIGHTS, framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt", "mine": "kept"}
    after, kind = tensors_of(tmp_path / "out"), np.dtype(dtype or "float32")
    assert {tensor.dtype for tensor in after.values()} == {kind}
    for name in ("q.lora_A.weight", "q.lora_B.weight"):
        np.testing.assert_array_equal(after[name], before[name].astype(kind))
    assert (report.modules[0].rank_after, report.modules[0].relative_error) == (2, 0.0)
    assert report.dtype == {None: None, "float32": "F32", "float16": "F16"}[dtype]
    rounding = "errors are those of the lower rank; rounding the factors to float16 comes on top"
    assert report.notes == ([rounding] if dtype == "float16" else [])


F8 = ml_dtypes.float8_e4m3fn
UNSOUND = [  # factors (b, a), options, what is said, and what to do
    (diagonal(1e12, 1e11), {"dtype": "float16"}, "q.lora_A.weight: the new factors do not fit F16",
     "name a wider --dtype"),
    (diagonal(4.0, math.nan), {}, "q holds NaN or infinite numbers: it has no best update of a lower rank",
     "'gradience audit' names all such modules"),
    ([x.astype(F8) for x in diagonal(4.0, 2.0)], {},
     "q: its factors are of F8_E4M3, and new ones would be rounded to 8 bits again",
     "name their dtype, such as --dtype bfloat16"),
    ((diagonal(4.0, 2.0)[0], diagonal(4.0, 2.0)[1].astype(ml_dtypes.float8_e5m2)), {},
     "q: its factors are of F8_E5M2, and new ones would be rounded to 8 bits again",
     "name their dtype, such as --dtype bfloat16"),
    ((diagonal(1e80, 1.0, dtype=float)[0], 1e80 * diagonal(1e80, 1.0, dtype=float)[1]), {},
     "q: the square of its norm is over the range of float64", "lower its alpha"),
]  # fmt: skip


@every(("pair", "options", "said", "advice"), UNSOUND)
def test_what_has_no_best_update_or_cannot_hold_it_is_refused_and_nothing_stays(pair, options, said, advice, tmp_path):
    folder = adapter(tmp_path / "a", {"q": pair})
    with pytest.raises(AdapterError) as error:
        resize_adapter(folder, tmp_path / "out", rank=1, **options)
    assert (error.value.message.replace("base_model.model.", ""), error.value.advice) == (said, advice)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    if "8 bits" in said:
        assert resize_adapter(folder, rank=1, dtype="bfloat16").modules[0].rank_after == 1


def test_one_expert_that_is_not_finite_is_named_and_each_counts_its_own_parameters(tmp_path):
    config = {"r": 2, "lora_alpha": 2, "target_parameters": ["experts.w"], "target_modules": []}
    b, a = np.random.default_rng(0).standard_normal((2, 6, 6)).astype(np.float32)
    rows = resize_adapter(adapter(tmp_path / "a", {"x.experts": (b, a[:, :5])}, **config), rank=1).modules
    found = [(row.rank_before, row.rank_after, row.params_before, row.params_after) for row in rows]
    assert found == [(2, 1, 22, 11)] * 3
    a[3, 0] = np.nan  # of the second of three
    with pytest.raises(AdapterError, match=r"x\.experts\.w\[1\] holds NaN"):
        resize_adapter(adapter(tmp_path / "b", {"x.experts": (b, a[:, :5])}, **config), rank=1)


@every(("kinds", "half"), [(("f2", "f2"), True), (("f2", "f4"), False), (("f4", "f2"), False)])
def test_products_are_of_float32_where_both_factors_will_be_of_sixteen_bits(kinds, half, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        weights, "reduced", lambda *a, half, **more: seen.append(half) or reduced(*a, half=half, **more)
    )
    pair = tuple(x.astype(kind) for x, kind in zip(diagonal(4.0, 2.0), kinds, strict=True))
    resize_adapter(adapter(tmp_path / "a", {"q": pair}), tmp_path / "out", rank=1)
    assert seen == [half]


def cancelling(seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Factors whose parts all but cancel: QR decides, not Gram matrices."""
    b, a = drawn(30, 4, 40, seed=seed)
    moved = b + 1e-5 * np.random.default_rng(seed).standard_normal(b.shape).astype(np.float32)
    return np.hstack([b, moved]), np.vstack([a, -a])


@every(("dtype", "near"), [(None, 1e-6), ("bfloat16", 1e-2)])
def test_of_many_modules_of_many_ranks_each_becomes_its_best_of_the_rank(dtype, near, tmp_path):
    modules = {f"layers.{i}.q_proj": drawn(24 + i, 8, 20, seed=i) for i in range(70)}
    modules |= {"low": diagonal(3.0, 2.0), "wide": drawn(40, 96, 24), "cancels": cancelling()}
    modules |= {"half": [x.astype(ml_dtypes.bfloat16) for x in drawn(30, 8, 20)]}
    ranks = {"low": 2, "wide": 96}
    mixed = adapter(tmp_path / "a", modules, r=8, lora_alpha=8, rank_pattern=ranks, alpha_pattern=ranks)
    report = resize_adapter(mixed, tmp_path / "out", rank=3, dtype=dtype)
    rows = {row.name: row for row in report.modules}
    for name in ("layers.0.q_proj", "layers.69.q_proj", "wide", "low"):
        whole, rank = update(mixed, name), rows[name].rank_after
        assert rank == (2 if name == "low" else 3)
        np.testing.assert_allclose(
            update(tmp_path / "out", name), best(whole, rank), atol=near * np.linalg.norm(whole, 2)
        )
        assert rows[name].relative_error == pytest.approx(left_out(whole, rank), rel=1e-6, abs=1e-12)
    assert np.linalg.matrix_rank(update(tmp_path / "out", "cancels"), rtol=1e-6) == 3


# --- the file and the config -------------------------------------------------------------------------------------


def test_a_pair_at_rank_zero_leaves_the_file_and_the_later_factor_of_one_that_is_cut_comes_with_the_other(tmp_path):
    modules = {"q": diagonal(4.0, 2.0), "v": diagonal(1.0, 0.5), "w": diagonal(2.0)}
    stored, ranks = open_stored(adapter(tmp_path / "a", modules)), {"q": 0, "v": 1, "w": 1}
    pairs = resizable_pairs(stored.adapter)
    tensors = planned_file(Subject(stored, pairs, None), [Cut(pair, ranks[pair.path], [], dict) for pair in pairs])
    assert [tensor.name for tensor in tensors] == [
        f"{PREFIX}{name}.lora_{side}.weight" for name in "vw" for side in "AB"
    ]
    assert [tensor.shape for tensor in tensors] == [(1, 5), (6, 1)] * 2
    assert [tensor.with_another for tensor in tensors] == [False, True, False, False]  # w is copied


@every(("init", "again"), [("orthogonal", True), ("Orthogonal", True), ("mica", True), ("gaussian", False)])
def test_a_config_keeps_its_keys_and_takes_the_plans_ranks_and_fields(init, again):
    plan = ResizePlan([], Patterns(2, 4, {"q": 1}, {"q": 2}), [], None, {"target_modules": ["q", "v"]})
    fields, notes = new_config({"r": 8, "target_modules": "all-linear", "mine": 1, "init_lora_weights": init}, plan)
    wanted = {"r": 2, "lora_alpha": 4, "rank_pattern": {"q": 1}, "alpha_pattern": {"q": 2}, "mine": 1}
    assert fields == wanted | {"target_modules": ["q", "v"], "init_lora_weights": True if again else init}
    said = f"init_lora_weights was {init!r}: PEFT would run it again on loading, for a rank it may refuse"
    assert notes == ([said] if again else [])


@every(("others", "tail"), [(0, None), (1, "n0"), (8, "n7"), (9, "n7 and 1 more")])
def test_what_else_lies_in_the_folder_is_named_eight_at_the_most(others, tail, tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(1.0, 1.0)})
    for place in range(others):
        (folder / f"n{place}").write_text("")
    notes = resize_adapter(folder, rank=1).notes
    assert len(notes) == bool(others)
    if tail is not None:
        assert notes[0].startswith("not copied from the adapter's folder: n0")
        assert notes[0].endswith(tail)


def test_progress_counts_the_tensors_written(tmp_path):
    folder = adapter(tmp_path / "a", {"q": diagonal(1.0, 1.0)}, extra={"head.weight": np.ones(2, np.float32)})
    seen = []
    resize_adapter(folder, tmp_path / "out", rank=1, progress=lambda *at: seen.append(at))
    assert sorted(name for *_, name in seen) == sorted(load_file(folder / WEIGHTS))
    assert sorted((place, total) for place, total, _ in seen) == [(1, 3), (2, 3), (3, 3)]


DISAGREE = "factors of shape [1, 5] and [6, 2]: ranks disagree"


@every(
    ("modules", "extra", "said", "advice"),
    [
        ({}, {"head.weight": np.ones((2, 2))}, "it holds no LoRA pair", "give the folder PEFT saved"),
        ({"q": diagonal(4.0, 2.0), "v": (diagonal(4.0, 2.0)[0], diagonal(1.0)[1])}, {},
         f"2 of its tensors may depend on the rank ({PREFIX}v.lora_A.weight: {DISAGREE})",
         "'gradience audit --verbose' lists them"),
        ({"q": diagonal(4.0, 2.0)}, {"q.lora_velora_embed": np.ones((2, 2))},
         f"1 of its tensors may depend on the rank ({PREFIX}q.lora_velora_embed: used in training only)",
         "'gradience audit --verbose' lists them"),
    ],
)  # fmt: skip
def test_what_holds_no_pair_or_a_tensor_that_may_depend_on_the_rank_is_refused(modules, extra, said, advice, tmp_path):
    folder = adapter(tmp_path / "a", modules, extra=extra, modules_to_save=["head"])
    with pytest.raises(AdapterError) as error:
        resize_adapter(folder, rank=1)
    assert (error.value.message, error.value.advice) == (f"cannot resize this adapter: {said}", advice)


# --- kohya's files -----------------------------------------------------------------------------------------------


@every(
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
    kept = {"ss_network_dim": "4", "sshs_model_hash": "x", "sshs_legacy_hash": "y", "ss_tag": "kept"}
    report = resize_adapter(
        kohya(tmp_path / "in.safetensors", modules, **kept), tmp_path / "out.safetensors", energy=1.0
    )
    with safe_open(tmp_path / "out.safetensors", framework="numpy") as opened:
        metadata = opened.metadata()
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"], metadata["ss_tag"]) == (dim, alpha, "kept")
    assert not {"sshs_model_hash", "sshs_legacy_hash"} & metadata.keys()
    record = json.loads(metadata["gradience_provenance"])
    assert (record["operation"], record["modules"]) == ("resize", [])
    assert record["options"] == {"criterion": "energy", "value": 1.0, "dtype": None}
    assert report.bytes_after == (tmp_path / "out.safetensors").stat().st_size
    assert (report.rank_pattern, report.alpha_pattern) == ({}, {})
    found = load_file(tmp_path / "out.safetensors")
    for name, each, size in zip("ab", alphas, sizes, strict=True):
        if size < 4:
            assert found[f"lora_unet_{name}.alpha"] == each / 4 * size
            assert found[f"lora_unet_{name}.alpha"].dtype == np.float32


def test_a_lora_of_kohyas_is_written_to_a_file_and_what_lies_beside_is_no_part_of_it(tmp_path):
    source = kohya(tmp_path / "in.safetensors", {"a": (*diagonal(4.0, 3.0), 2.0)})
    assert resize_adapter(source, rank=1).notes == []
    for name in ("out", "out.bin"):
        with pytest.raises(OutputError) as error:
            resize_adapter(source, tmp_path / name, rank=1)
        assert error.value.message == f"{tmp_path / name}: a LoRA in kohya's format is one file"
        assert error.value.advice == "give a name that ends in .safetensors"
        assert not (tmp_path / name).exists()
