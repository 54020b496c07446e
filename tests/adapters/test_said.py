"""What is said of an adapter's files: refusals, reasons and notes, word by word and number by number."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tables import every

from gradience.adapters import formats
from gradience.adapters.formats.assembly import Assembly, grouped
from gradience.adapters.kinds import lora as lora_kinds, products
from gradience.adapters.layout import Group, LeftoverTensor, UnsuitableError
from gradience.adapters.open import CHECKPOINT, find_files, notes_on, open_adapter
from gradience.adapters.pairs import stored_pairs
from gradience.adapters.traits import traits_of
from gradience.base.weights import find_shards
from gradience.errors import AdapterError
from gradience.schema.audit import LeftoverReason

PREFIX = "base_model.model."
MANY = 8  # names that are listed one by one


def saved(folder: Path, shapes: dict[str, tuple[int, ...]], **config: Any) -> Path:
    """An adapter whose tensors count from one, in these shapes."""
    folder.mkdir(parents=True)
    tensors = {
        f"{PREFIX}{name}": 1.0 + np.arange(math.prod(s), dtype=np.float32).reshape(s) for name, s in shapes.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    given = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(given))
    return folder


def lora(*names: str, r: int = 2, d_out: int = 5, d_in: int = 3) -> dict[str, tuple[int, ...]]:
    return {f"{n}.lora_{x}.weight": s for n in names for x, s in (("A", (r, d_in)), ("B", (d_out, r)))}


ADALORA = {"q.lora_A": (2, 3), "q.lora_B": (5, 2), "q.lora_E": (2, 1)}
LOKR = {"q.lokr_w1": (2, 3), "q.lokr_w2": (5, 2)}
REASONS: list[tuple[dict[str, tuple[int, ...]], dict[str, Any], str]] = [
    (lora("q") | {"q.lora_A.weight": (3, 3)}, {}, "factors of shape [3, 3] and [5, 2]: ranks disagree"),
    (
        {"q.lora_A.weight": (2, 3, 1, 1), "q.lora_B.weight": (5, 2, 1, 3)},
        {},
        "factors of shape [2, 3, 1, 1] and [5, 2, 1, 3]: expected a 1 x 1 kernel in B",
    ),
    (
        {"q.lora_A.weight": (2, 3), "q.lora_B.weight": (5, 2, 1)},
        {},
        "factors of shape [2, 3] and [5, 2, 1]: expected (r, in) and (out, r)",
    ),
    (
        ADALORA | {"q.lora_E": (3, 1)},
        {"peft_type": "ADALORA"},
        "AdaLoRA factors of shape [2, 3], [5, 2] and [3, 1]: expected (r, in), (out, r) and (r, 1)",
    ),
    (
        ADALORA | {"q.lora_E": (2, 2)},
        {"peft_type": "ADALORA"},
        "AdaLoRA factors of shape [2, 3], [5, 2] and [2, 2]: expected (r, in), (out, r) and (r, 1)",
    ),
    (ADALORA, {"peft_type": "ADALORA", "init_r": 0}, "init_r is 0 in the config, expected at least 1"),
    (lora("q") | {"q.lora_diag": (3,)}, {}, "lora_diag has 3 entries, expected the rank 2"),
    (
        lora("q"),
        {"use_qalora": True, "qalora_group_size": 0},
        "a QALoRA group size of 0 does not fit A of shape [2, 3]",
    ),
    (
        lora("q"),
        {"use_bdlora": {"nblocks": 3, "target_modules_bd_a": ["v", "q"]}},
        "3 BD-LoRA blocks do not fit factors of shape [2, 3] and [5, 2]",
    ),
    (
        {"q.lora_A.weight": (4, 3), "q.lora_B.weight": (5, 3)},
        {"use_bdlora": {"nblocks": 2, "target_modules_bd_a": ["q"]}},
        "2 BD-LoRA blocks do not fit factors of shape [4, 3] and [5, 3]",
    ),
    (
        {"q.lora_A.weight": (2, 3, 1, 1), "q.lora_B.weight": (5, 2, 1, 1)},
        {"use_qalora": True, "qalora_group_size": 1},
        "a QALoRA group size of 1 does not fit A of shape [2, 3, 1, 1]",
    ),
    (LOKR, {"peft_type": "LOKR", "rank_pattern": {"q": 0}}, "the config gives it rank 0, expected at least 1"),
    (
        lora("q"),
        {"use_bdlora": {"nblocks": 0, "target_modules_bd_a": ["q"]}},
        "0 BD-LoRA blocks do not fit factors of shape [2, 3] and [5, 2]",
    ),
]


@every(("shapes", "config", "reason"), REASONS)
def test_what_is_not_analysed_has_its_reason(shapes, config, reason, tmp_path):
    _, found = open_adapter(saved(tmp_path / "a", shapes, **config))
    assert found.modules == []
    cause = LeftoverReason.CONFIG if "the config" in reason else LeftoverReason.SHAPE
    assert [(item.reason, item.cause) for item in found.skipped] == [(reason, cause)]
    assert set(found.roles.values()) == {"not_analysed"}


@pytest.mark.parametrize(
    ("role", "text"),
    [
        ("strange.x", "not part of any adapter layout known here"),
        ("q.oft_r.", "a tensor of a kind that is not analysed"),
    ],
)
@pytest.mark.parametrize(("count", "counted"), [(MANY, False), (MANY + 1, True)])
def test_what_no_module_holds_is_named_or_from_many_on_counted(role, text, count, counted, tmp_path):
    names = [f"{role}{n}" for n in range(count)]
    _, found = open_adapter(saved(tmp_path / "a", lora("q") | dict.fromkeys(names, (1,))))
    keys = sorted(f"{PREFIX}{name}" for name in names)
    said = [f"{keys[0]} and {MANY} more"] if counted else keys
    assert [(item.name, item.reason) for item in found.skipped] == [(name, text) for name in said]


CONTESTED = (
    "2 modules match several keys of a pattern, with different values (first: a.q): PEFT sorts the keys when it saves, "
    "so the one that held in training may be another than the first, which PEFT applies on loading and is used here"
)
UNMATCHED = "keys of {} match no module of the file (first: '{}')".format
NOTES = [
    (lora("q", "v"), {"rank_pattern": {"x": 4, "y": 4}}, f"2 {UNMATCHED('rank_pattern', 'x')}"),
    (lora("q", "v"), {"alpha_pattern": {"y": 4}}, f"1 {UNMATCHED('alpha_pattern', 'y')}"),
    (
        lora("a.q", "b.q", "v"),
        {"alpha_pattern": {"a.q": 2, "b.q": 2, "q": 4}},
        CONTESTED,
    ),
    (
        lora("a", "b", "k"),
        {"rank_pattern": {"a": 8, "b": 8}},
        "2 of 3 modules (first: a) have another rank in the file than in the config; the file's is used",
    ),
    (
        lora("q") | {"q.lora_magnitude_vector": (5,)},
        {},
        "DoRA: the update is s B A rescaled by the magnitude, and follows only with the base",
    ),
    (lora("q"), {"use_dora": True}, ""),
    (
        lora("q"),
        {"target_modules": ["v", "k", "o", "x", "y"]},
        "no target module of the config (v, k, o, x) is in the file: is it another adapter's?",
    ),
    (
        lora("q"),
        {"init_lora_weights": "loftq", "kasa_config": {}, "alora_invocation_tokens": [1], "arrow_config": {}},
        (
            "init_lora_weights='loftq' changed the base model's weights at the start: s B A is not the whole change to "
            "the original base\n"
            "KaSA removed the r smallest singular values from the base: s B A is not the whole change to it\n"
            "aLoRA: the update applies only after its invocation tokens, and cannot be merged\n"
            "Arrow: this adapter routes among others; what it does depends on the input"
        ),
    ),
]


@every(("shapes", "config", "note"), NOTES)
def test_a_note_counts_and_names_the_first(shapes, config, note, tmp_path):
    _, found = open_adapter(saved(tmp_path / "a", shapes, **config))
    assert "\n".join(found.notes) == note


@every(
    ("declared", "shapes", "held"),
    [
        ("LOHA", lora("q"), "LORA"),
        ("LORA", LOKR, "LOKR"),
        ("LORA", ADALORA, "ADALORA"),
        ("VERA", LOKR | lora("q"), "LOKR and LORA"),
    ],
)
def test_a_config_of_another_type_than_its_tensors_is_refused_with_both(declared, shapes, held, tmp_path):
    with pytest.raises(AdapterError) as error:
        open_adapter(saved(tmp_path / "a", shapes, peft_type=declared))
    assert str(error.value) == f"the config says peft_type {declared}, but the file holds tensors of {held}"


@pytest.mark.parametrize(("shapes", "kind"), [(lora("q"), "linear"), (LOKR, "lokr"), (ADALORA, "adalora")])
def test_a_config_without_a_type_leaves_it_to_the_tensors(shapes, kind, tmp_path):
    _, found = open_adapter(saved(tmp_path / "a", shapes, peft_type=None))
    assert [module.kind for module in found.modules] == [kind]


def test_a_folder_of_adapters_is_not_one_and_one_nested_adapter_is_taken(tmp_path):
    saved(tmp_path / "all" / "one", lora("q"))
    assert open_adapter(tmp_path / "all")[0].folder == tmp_path / "all" / "one"
    saved(tmp_path / "all" / "two", lora("q"))
    with pytest.raises(AdapterError) as error:
        open_adapter(tmp_path / "all")
    assert str(error.value) == f"{tmp_path / 'all'} holds 2 adapters in sub-folders (one, two)"
    assert error.value.advice == f"give one of them, for example {tmp_path / 'all' / 'two'}"
    beside = saved(tmp_path / "beside", lora("q"))
    saved(beside / "sub", lora("q"))
    saved(beside / "more", lora("q"))
    assert find_files(beside).others == (beside / "more", beside / "sub")
    note = "the folder also holds adapters in sub-folders, which were not read: more, sub"
    assert open_adapter(beside)[1].notes == [note]
    alone = find_files(beside / "adapter_model.safetensors")  # a file is meant alone
    assert (alone.folder, alone.others, notes_on(alone)) == (beside, (), [])
    given = find_files(beside, weights=beside / "sub" / "adapter_model.safetensors")
    assert (given.others, given.config) == ((), beside / "sub" / "adapter_config.json")  # the config beside the weights
    elsewhere = tmp_path / "all" / "one" / "adapter_config.json"
    assert find_files(beside, config=elsewhere).config == elsewhere  # although one lies beside the weights
    for options, said, advice in (
        ({"weights": beside / "sub"}, f"no weights file at {beside / 'sub'}", "give the weights file itself"),
        ({"config": beside / "sub"}, f"no config file at {beside / 'sub'}", "give it with --adapter-config FILE"),
    ):
        with pytest.raises(AdapterError) as error:
            find_files(beside, **options)  # a folder is no file
        assert (str(error.value), error.value.advice) == (said, advice)
    with pytest.raises(AdapterError) as error:
        find_files(tmp_path / "gone")
    assert str(error.value) == f"no such file or folder: {tmp_path / 'gone'}"
    assert error.value.advice == "give the folder that PEFT saved"
    given.config.unlink()
    assert find_files(beside, weights=given.weights).config == beside / "adapter_config.json"


def test_a_folder_without_weights_is_listed_up_to_eight_names(tmp_path):
    for n in range(8):
        (tmp_path / f"{n}.txt").touch()
    eight = "0.txt, 1.txt, 2.txt, 3.txt, 4.txt, 5.txt, 6.txt, 7.txt"
    for listed in (eight, f"{eight}, ..."):
        with pytest.raises(AdapterError) as error:
            open_adapter(tmp_path)
        assert str(error.value) == f"no adapter weights in {tmp_path} (it holds {listed})"
        assert (
            error.value.advice == "expected adapter_model.safetensors; if they have another name, give the file itself"
        )
        (tmp_path / "8.txt").touch()


def test_missing_shards_are_counted(tmp_path):
    steps = {
        "checkpoint-7": "7",
        f"checkpoint-{'9' * 15}": "9" * 15,
        f"checkpoint-{'9' * 16}": None,
        "checkpoint-": None,
    }
    assert {name: (hit := CHECKPOINT.fullmatch(name)) and hit[1] for name in steps} == steps
    folder = saved(tmp_path / "a", lora("q"))
    shard = folder / "adapter_model-00001-of-00002.safetensors"
    (folder / "adapter_model.safetensors").rename(shard)
    with pytest.raises(AdapterError) as error:
        open_adapter(folder)
    assert str(error.value) == f"1 shards beside {shard}, expected 00002"
    for n in (2, 3):
        (folder / f"adapter_model-0000{n}-of-00002.safetensors").touch()
    with pytest.raises(AdapterError, match="3 shards beside"):
        find_files(folder)
    (folder / "adapter_model-00003-of-00002.safetensors").rename(folder / "model-00003-of-00002.safetensors")
    assert [path.name for path in find_files(folder, weights=shard).shards] == [
        f"adapter_model-0000{n}-of-00002.safetensors"
        for n in (1, 2)  # and not those of another name
    ]
    torchs = tmp_path / "b"
    torchs.mkdir()
    (torchs / "adapter_model.bin.index.json").write_text('{"weight_map": {"q": "x.bin", "v": "y.bin", "k": "x.bin"}}')
    for name in ("x.bin", "y.bin"):
        (torchs / name).touch()
    assert [path.name for path in find_files(torchs).shards] == ["x.bin", "y.bin"]
    (torchs / "adapter_model.bin.index.json").rename(tmp_path / "index")
    for kind in ("adapters.safetensors", "model.safetensors", "adapter_model.safetensors"):  # each before those above
        inner = tmp_path / "around" / kind.partition(".")[0]
        inner.mkdir(parents=True)
        for folder in (torchs, inner):
            (folder / f"{kind}.index.json").write_text((tmp_path / "index").read_text())
            for name in ("x.bin", "y.bin"):
                (folder / name).touch()
        assert [find_files(folder).weights.name for folder in (torchs, inner)] == [f"{kind}.index.json"] * 2
    with pytest.raises(AdapterError, match=r"holds 3 adapters in sub-folders \(adapter_model, adapters, model\)"):
        find_files(tmp_path / "around")
    for name in ("adapter_model.pt", "adapter_model.bin", "adapters.safetensors", "adapter_model.safetensors"):
        (torchs / name).touch()  # each goes before those above, and before an index
        assert find_files(torchs)[2:4] == (torchs / name, ())


def test_adapters_of_one_file_are_named_and_one_alone_is_not(tmp_path):
    one = {f"q.lora_{side}.x.weight": shape for side, shape in (("A", (2, 3)), ("B", (5, 2)))}
    for shapes, names in ((one, [("q", None)]), (one | lora("q"), [("q:default", "default"), ("q:x", "x")])):
        _, found = open_adapter(saved(tmp_path / str(len(shapes)), shapes))
        assert [(module.name, module.adapter) for module in found.modules] == names
        several = ["the file holds several adapters (default, x); the config was applied to each"]
        assert found.notes == several * (len(names) > 1)
    for number, (peft_type, each) in enumerate(
        [
            ("ADALORA", {"lora_A{}": (2, 3), "lora_B{}": (5, 2), "lora_E{}": (2, 1)}),
        ]
    ):
        for others, names in (((), [("q", None)]), (("x", "y"), [("q:x", "x"), ("q:y", "y")])):
            shapes = {f"q.{field.format(f'.{name}')}": s for name in others or ("x",) for field, s in each.items()}
            _, found = open_adapter(saved(tmp_path / f"{number}{len(others)}", shapes, peft_type=peft_type))
            assert [(module.name, module.adapter) for module in found.modules + found.base_dependent] == names
    _, found = open_adapter(saved(tmp_path / "c", one, lora_parameters={}))  # a type is named, so it is not MLX-LM's
    assert len(found.modules) == 1
    of_experts = {name.replace("q.", "x.experts."): shape for name, shape in LOHA.items()}
    _, found = open_adapter(saved(tmp_path / "d", of_experts, peft_type="LOHA", target_parameters=["experts.w"]))
    assert [module.kind for module in found.modules] == ["loha"]  # of LoRA alone parameters have pairs
    _, found = open_adapter(saved(tmp_path / "e", {"x.trainable_tokens_delta": (2, 3)}, peft_type="IA3"))
    assert list(found.roles.values()) == ["token_rows"]
    _, found = open_adapter(saved(tmp_path / "f", lora("q") | {"norm.bias": (3,)}, bias="all"))
    assert found.roles[f"{PREFIX}norm.bias"] == "bias"


def test_the_output_of_an_attention_has_the_scale_of_the_whole_layer(tmp_path):
    shapes = lora("attn", "attn.base_layer.out_proj", "other.out_proj")
    _, found = open_adapter(saved(tmp_path / "a", shapes, alpha_pattern={"attn": 6.0}))
    assert {module.name: (module.scale, module.base_name) for module in found.modules} == {
        "attn": (3.0, "attn.in_proj_weight"),
        "attn.out_proj": (3.0, "attn.out_proj.weight"),
        "other.out_proj": (2.0, "other.out_proj.weight"),
    }


def test_an_array_over_the_limit_is_refused_with_its_name(tmp_path, monkeypatch):
    path = tmp_path / "y.npz"
    np.savez(path, **{"a/b": np.ones(2)})
    assert list(formats.read_archive(path)) == ["a.b"]
    path = tmp_path / "x.npz"
    np.savez(path, a=np.ones(2), b=np.ones(3))
    with np.load(path) as held:
        size = max(len(held.zip.read(name)) for name in ("a.npy", "b.npy"))
    monkeypatch.setattr(formats, "MOST_ELEMENTS", size // 8)
    assert list(formats.read_archive(path)) == ["a", "b"]
    monkeypatch.setattr(formats, "MOST_ELEMENTS", size // 8 - 1)
    with pytest.raises(AdapterError) as error:
        formats.read_archive(path)
    assert str(error.value) == f"{path}: b.npy is larger than {size - 8} bytes, the limit"


def test_an_hdf5_file_without_factors_says_how_many_arrays_it_holds(tmp_path):
    h5py = pytest.importorskip("h5py")
    for path in (tmp_path / "x.h5", tmp_path / "x.hdf5"):
        with h5py.File(path, "w") as file:
            file["layers/kernel"], file["layers/bias"] = np.ones(2), np.ones(3)
        with pytest.raises(AdapterError) as error:
            formats.read_archive(path)
        assert str(error.value) == (
            f"{path} holds 2 arrays and no LoRA factors: Keras merges them into the kernels as it saves"
        )
    for path in (tmp_path / "x.h5", tmp_path / "x.hdf5", tmp_path / "x.npz"):
        with pytest.raises(AdapterError) as error:
            formats.open_weights(path)
        assert str(error.value) == f"{path} holds arrays as JAX and Keras programs save them, which only audit reads"
        assert error.value.advice == f"run: gradience audit {path}"


# --- limits ------------------------------------------------------------------------------------------------------

LOHA = {f"q.hada_w{i}_{x}": s for i in (1, 2) for x, s in (("a", (5, 2)), ("b", (2, 3)))}
TUCKER = {
    **{f"q.hada_w{i}_{x}": s for i in (1, 2) for x, s in (("a", (2, 5)), ("b", (2, 3)))},
    **{f"q.hada_t{i}": (2, 2, 2, 2) for i in (1, 2)},
}
LIMITS = [  # module, limit, the size that just fits, an adapter of it, why it is not read where one less fits
    (
        lora_kinds, "MOST_ELEMENTS", 12, lora("q"), {"use_qalora": True, "qalora_group_size": 2},
        "a QALoRA group size of 2 does not fit A of shape [2, 3]",
    ),
    (
        lora_kinds, "MOST_ELEMENTS", 24, {"q.lora_A.weight": (4, 3), "q.lora_B.weight": (5, 4)},
        {"use_bdlora": {"nblocks": 2, "target_modules_bd_a": ["q"]}},
        "2 BD-LoRA blocks do not fit factors of shape [4, 3] and [5, 4]",
    ),
    (
        products, "MOST_ELEMENTS", 20, LOHA, {"peft_type": "LOHA"},
        "an update of rank up to 4: too large to be analysed as a pair of factors",
    ),
    (
        products, "MOST_ELEMENTS", 48, TUCKER, {"peft_type": "LOHA"},
        "an update of rank up to 4: too large to be analysed as a pair of factors",
    ),
    (
        products, "MOST_RANK", 2, {"q.lokr_w1": (1, 3), "q.lokr_w2": (2, 5)}, {"peft_type": "LOKR"},
        "lokr_w2 of shape [2, 5]: too large to be analysed as a pair of factors",
    ),
]  # fmt: skip


@every(("where", "name", "most", "shapes", "config", "reason"), LIMITS)
def test_a_size_at_the_limit_is_read_and_one_over_it_is_not(
    where, name, most, shapes, config, reason, tmp_path, monkeypatch
):
    folder = saved(tmp_path / "a", shapes, **config)
    for limit, count in ((most, 1), (most - 1, 0)):
        monkeypatch.setattr(where, name, limit)
        _, found = open_adapter(folder)
        assert len(found.modules) == count
        said = "QALoRA: read from PEFT's forward pass, which has no merge to compare with"
        assert all((module.note == said) is ("use_qalora" in config) for module in found.modules)
        cause = LeftoverReason.TOO_LARGE if "too large" in reason else LeftoverReason.SHAPE
        assert [(item.reason, item.cause) for item in found.skipped] == [(reason, cause)] * (1 - count)


@pytest.mark.parametrize(("most", "reads"), [(12, True), (11, False)])
def test_a_core_is_unfolded_up_to_the_limit(most, reads, monkeypatch):
    monkeypatch.setattr(products, "MOST_ELEMENTS", most)
    core = np.arange(24.0).reshape(2, 4, 1, 3)
    q = np.arange(8.0).reshape(4, 2)
    if not reads:
        with pytest.raises(UnsuitableError, match=r"a core of shape \[2, 4, 1, 3\] is too large to be unfolded"):
            products.unfolded(core.shape, 6, lambda: core, lambda: q)
        return
    wanted = [[[core[i, :, 0, k] @ q[:, r] for k in range(3)] for r in range(2)] for i in range(2)]
    found = products.unfolded(core.shape, 6, lambda: core, lambda: q)()
    np.testing.assert_array_equal(found, np.reshape(wanted, (2, 6)))


@pytest.mark.parametrize(("size", "kept"), [(2, ["bias", "l.0.lora_a"]), (1, [])])
def test_an_hdf5_array_over_the_limit_is_left_out(size, kept, tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["l/0/lora_a"], file["bias"], file["kernel"] = np.ones(2), np.ones(2), np.ones(3)
    monkeypatch.setattr(formats, "MOST_ELEMENTS", size)
    if kept:
        assert sorted(formats.read_archive(path)) == kept
    else:
        with pytest.raises(AdapterError, match="holds 0 arrays and no LoRA factors"):
            formats.read_archive(path)


def test_adalora_of_rank_one_is_the_least_that_is_read(tmp_path):
    _, found = open_adapter(saved(tmp_path / "a", ADALORA, peft_type="ADALORA", init_r=1))
    assert [module.scale for module in found.modules] == [4.0 / (1 + 1e-5)]


def test_a_core_has_as_many_rows_as_its_first_factor():
    rng = np.random.default_rng(0)
    p, q, core = rng.standard_normal((2, 5)), rng.standard_normal((4, 3)), rng.standard_normal((2, 4, 1, 2))
    made = products._tucker([x.shape for x in (p, q, core)], [lambda x=x: x for x in (p, q, core)])
    assert made.shape == (5, 2, 6)
    b, a = made.load()
    wanted = np.einsum("ijkl,ip,jr->prkl", core, p, q).reshape(5, 6)
    np.testing.assert_allclose(b @ a, wanted, rtol=1e-5)


@every(("scale", "reads"), [(1e30, True), (-1e30, True), (1.01e30, False), (math.inf, False), (True, False)])
def test_mlx_s_scale_is_a_number_up_to_the_limit_of_an_alpha(scale, reads, tmp_path):
    (tmp_path / "a").mkdir()
    tensors = {"layers.0.q.lora_a": np.ones((3, 2), np.float32), "layers.0.q.lora_b": np.ones((2, 5), np.float32)}
    save_file(tensors, tmp_path / "a" / "adapters.safetensors")
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": scale}}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    if reads:
        assert [module.scale for module in open_adapter(tmp_path / "a")[1].modules] == [scale]
    else:
        with pytest.raises(AdapterError):
            open_adapter(tmp_path / "a")


def test_a_pickled_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "gone.bin", tmp_path):
        with pytest.raises(AdapterError) as error:
            formats.TorchFile(path)
        assert str(error.value) == f"no weights file at {path}"


def test_a_cp_decomposed_convolution_needs_two_matrices_and_a_core(tmp_path):
    good = {"down": (2, 3, 1, 1), "up": (5, 2, 1, 1), "mid": (2, 2, 1, 1)}
    wrong = [
        ("up", (5,)),
        ("down", (2,)),
        ("mid", (2, 2, 1)),
        ("mid", (2, 3, 1, 1)),
        ("mid", (3, 2, 1, 1)),
        ("up", (5, 2, 3, 1)),
        ("down", (2, 3, 1, 3)),
    ]
    for changed, shape in ((None, ()), *wrong):
        shapes = good | ({changed: shape} if changed else {})
        tensors = {f"lora_unet_x.lora_{name}.weight": np.ones(s, np.float32) for name, s in shapes.items()}
        save_file(tensors, tmp_path / "x.safetensors")
        _, found = open_adapter(tmp_path / "x.safetensors")
        assert [module.shape for module in found.modules] == ([] if changed else [(5, 3)])
        up, mid, down = (list(shapes[name]) for name in ("up", "mid", "down"))
        why = f"factors of shape {up}, {mid} and {down}: expected (out, r), (r, r, k, k), (r, in)"
        assert [item.reason for item in found.skipped] == ([why] if changed else [])


BAD_CORES = [  # shapes of p, q and the core; good are (2, 5), (4, 3) and (2, 4, 1, 2)
    {"p": (2, 5, 1)},
    {"q": (4, 3, 1)},
    {"p": (3, 5)},
    {"q": (3, 3)},
    {"t": (2, 4, 2)},
    {"t": (4, 2, 1, 2)},
]


@every("wrong", BAD_CORES, ids=str)
def test_a_core_that_does_not_fit_its_two_matrices_is_refused_with_all_three(wrong):
    shapes: dict[str, tuple[int, ...]] = {"p": (2, 5), "q": (4, 3), "t": (2, 4, 1, 2)} | wrong
    with pytest.raises(UnsuitableError) as error:
        products._tucker(list(shapes.values()), [pytest.fail] * 3)
    p, q, t = (list(shapes[name]) for name in "pqt")
    assert error.value.reason == (
        f"a core of shape {t} with factors {p} and {q}: expected (r, r, k, k), (r, out), (r, in)"
    )


def test_a_half_that_is_no_product_of_two_matrices_is_refused_with_both(tmp_path):
    for number, (a, b) in enumerate([((5, 2, 1), (2, 3)), ((5, 2), (2, 3, 1)), ((5, 2), (3, 3))]):
        shapes = LOHA | {"q.hada_w2_a": a, "q.hada_w2_b": b}
        _, found = open_adapter(saved(tmp_path / str(number), shapes, peft_type="LOHA"))
        why = f"factors of shape {list(a)} and {list(b)}: expected (out, r) and (r, in)"
        assert ([*found.modules], [item.reason for item in found.skipped]) == ([], [why])


@every(
    ("held", "reason"),
    [
        ({"lora_embedding_A": (2, 3)}, "lora_embedding_B is missing beside lora_embedding_A"),
        ({"lora_embedding_B": (5, 2)}, "lora_embedding_A is missing beside lora_embedding_B"),
        ({"lora_A.weight": (2, 3)}, "lora_B is missing beside lora_A"),
        ({"lora_B.weight": (5, 2)}, "lora_A is missing beside lora_B"),
        ({"lora_magnitude_vector": (5,)}, "lora_A, lora_B is missing beside nothing else"),
        ({"lora_A.weight": (0, 3), "lora_B.weight": (5, 0)}, "factors of shape [0, 3] and [5, 0]: no elements"),
    ],
)
def test_half_of_a_pair_is_named_with_the_half_that_is_missing(held, reason, tmp_path):
    _, found = open_adapter(saved(tmp_path / "a", {f"e.{name}": shape for name, shape in held.items()}))
    cause = LeftoverReason.FACTOR_MISSING if "missing" in reason else LeftoverReason.SHAPE
    assert ([*found.modules], [(item.reason, item.cause) for item in found.skipped]) == ([], [(reason, cause)])


@pytest.mark.parametrize(
    ("rank", "shape", "names", "note"),
    [
        (2, (4, 5), ["x.experts.w[0]", "x.experts.w[1]"], False),
        (2, (5, 5), ["x.experts.w[0]", "x.experts.w[1]"], True),
        (4, (5, 5), ["x.experts.w"], False),  # one matrix, which a layer's weight is
    ],
)
def test_of_square_experts_it_is_said_that_their_orientation_is_not_known(rank, shape, names, note, tmp_path):
    shapes = {"x.experts.lora_A.weight": (4, shape[1]), "x.experts.lora_B.weight": (shape[0], 4)}
    targets = {"target_parameters": ["experts.w"], "target_modules": ["q_proj"]}
    _, found = open_adapter(saved(tmp_path / "a", shapes, r=rank, **targets))
    assert (found.notes == []) is (len(names) > 1)  # experts are no target module
    assert [module.name for module in found.modules] == names
    said = "a square weight: the file does not say whether the base stores it transposed"
    assert {module.note for module in found.modules} == {said if note else None}
    assert {module.kind for module in found.modules} == {"expert" if len(names) > 1 else "linear"}


@every("init", ["pissa", "PiSSA_niter_4", "olora", "loftq", "corda"])
def test_dora_on_a_base_that_its_start_changed_cannot_be_recomputed(init, tmp_path):
    shapes = lora("q") | {"q.lora_magnitude_vector": (5,)}
    (module,) = open_adapter(saved(tmp_path / "a", shapes, init_lora_weights=init, use_dora=True))[1].modules
    assert module.is_unknown
    assert (module.dense, module.factored) == (None, None)
    assert module.note == f"DoRA on a base that {init} changed: the update cannot be recomputed"


@every(
    ("init", "shapes", "note", "known"),
    [
        ("pissa", lora("q"), "PiSSA took the best rank-r part out of the base", True),
        ("olora", lora("q"), "OLoRA took a rank-r part out of the base", True),
        ("pissa_niter_4", lora("q"), "pissa_niter_4 changed the base, by an amount that cannot be recomputed", False),
        ("loftq", lora("q"), "loftq changed the base, by an amount that cannot be recomputed", False),
        ("eva", lora("q"), None, True),
        (True, lora("q") | {"q.lora_diag": (2,)}, "KaSA took the r smallest singular values out of the base", True),
        ("pissa", {"e.lora_embedding_A": (2, 3), "e.lora_embedding_B": (5, 2)}, None, True),  # linear layers alone
        (
            "loftq",
            {"e.lora_embedding_A": (2, 3), "e.lora_embedding_B": (5, 2)},
            "loftq changed the base, by an amount that cannot be recomputed",
            False,
        ),
        ("pissa", {"q.lora_A.weight": (2, 3, 1, 1), "q.lora_B.weight": (5, 2, 1, 1)}, None, True),
    ],
)
def test_what_a_start_took_out_of_the_base_is_known_or_not(init, shapes, note, known, tmp_path):
    (module,) = open_adapter(saved(tmp_path / "a", shapes, init_lora_weights=init))[1].modules
    assert (module.note, module.is_unknown) == (note, not known)
    assert (module.factored is not None) is (known and note is not None)
    if "q.lora_diag" in shapes:  # B diag A, scaled, less the two smallest of the base's three
        w = np.random.default_rng(0).standard_normal((5, 3))
        b, a = 1.0 + np.arange(10.0).reshape(5, 2), 1.0 + np.arange(6.0).reshape(2, 3)
        u, s, v = np.linalg.svd(w, full_matrices=False)
        np.testing.assert_allclose(module.dense(w), 2.0 * b * [1, 2] @ a - (u[:, 1:] * s[1:]) @ v[1:], atol=1e-5)


@pytest.mark.parametrize(
    ("peft_type", "shapes", "config", "scale"),
    [
        ("LOHA", {f"q.hada_w{i}_{x}": (5, 4) if x == "a" else (4, 3) for i in (1, 2) for x in "ab"}, {"alpha": 6}, 1.5),
        ("LOHA", {f"q.hada_w{i}_{x}": (5, 4) if x == "a" else (4, 3) for i in (1, 2) for x in "ab"}, {}, 2.0),  # 8 / 4
        ("LOKR", LOKR, {"alpha": 6}, 3.0),  # both whole: over the config's rank
        ("LOKR", LOKR, {"alpha": 6, "rank_pattern": {"q": 4}}, 1.5),
        ("LOKR", {"q.lokr_w1": (2, 3), "q.lokr_w2_a": (5, 4), "q.lokr_w2_b": (4, 2)}, {"alpha": 6}, 1.5),
        ("LOKR", LOKR, {"alpha": 6, "alpha_pattern": {"q": 1}}, 0.5),
    ],
)
@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_of_a_product_is_alpha_over_its_rank_and_no_root(peft_type, shapes, config, scale, rslora, tmp_path):
    folder = saved(tmp_path / "a", shapes, peft_type=peft_type, use_rslora=rslora, **config)
    _, found = open_adapter(folder)
    (module,) = found.modules
    assert (module.scale, module.rslora, module.config_r) == (scale, False, None)
    assert found.notes == []  # of a type without a rank of the config's none is said to be another


@pytest.mark.parametrize(
    ("peft_type", "shapes"),
    [
        ("ADALORA", ADALORA),
        ("lora", lora("q")),
    ],
)
def test_patterns_that_a_type_does_not_have_are_not_missed(peft_type, shapes, tmp_path):
    patterns = {"rank_pattern": {"k": 3}, "alpha_pattern": {"v": 1.0}}
    _, found = open_adapter(saved(tmp_path / "a", shapes, peft_type=peft_type, **patterns))
    assert len(found.modules) + len(found.base_dependent) == 1
    missed = (["k"], ["v"]) if peft_type == "lora" else ([], [])
    assert (found.unmatched_rank_patterns, found.unmatched_alpha_patterns) == missed
    assert traits_of(found).is_peft_lora is (peft_type == "lora")
    assert not traits_of(replace(found, file_format=formats.KOHYA)).is_peft_lora


def test_a_group_of_which_some_is_read_keeps_the_roles_of_its_tensors(tmp_path):
    _, plain = open_adapter(saved(tmp_path / "a", lora("q")))
    why = LeftoverTensor("q[1]", "why")
    for found, role in (
        ([*plain.modules, why], "lora_pair"),
        ([why, *plain.modules], "lora_pair"),
        ([why], "not_analysed"),
    ):
        assembly = Assembly(plain.file_format, plain.source, dict(plain.roles))
        assembly.add(Group("q", keys=plain.modules[0].keys), found)
        made = assembly.adapter(plain.config)
        assert (set(made.roles.values()), made.skipped) == ({role}, [why])
    (group,), _ = grouped(SimpleNamespace(tensors={"q.x.a": None}), {".x.a": "first", ".a": "second"})
    assert (group.module, group.keys) == ("q", {"first": "q.x.a"})
    (group,), _ = grouped(SimpleNamespace(tensors={"q.a.b.a": None}), {".a": "last"})
    assert (group.module, group.keys) == ("q.a.b", {"last": "q.a.b.a"})  # a module may be named like an ending
    _, many = open_adapter(saved(tmp_path / "b", lora("layers.10.q", "layers.9.q", "layers.9.k")))
    assert [module.name for module in many.modules] == ["layers.9.k", "layers.9.q", "layers.10.q"]


def test_a_kernel_is_stored_as_it_is_whatever_the_config_says_of_matrices_and_a_bias_is_no_parameter(tmp_path):
    shapes = lora("q") | {"c.lora_A.weight": (2, 3, 2, 2), "c.lora_B.weight": (5, 2, 1, 1), "q.lora_B.bias": (5,)}
    shapes |= {"l.lora_A.weight": (2, 3, 4), "l.lora_B.weight": (5, 2, 1)}
    for turned in (True, False):
        _, found = open_adapter(saved(tmp_path / str(turned), shapes, fan_in_fan_out=turned, lora_bias=True))
        assert found.roles[f"{PREFIX}q.lora_B.bias"] == "bias"
        assert [(pair.path, pair.layout.transposed) for pair in stored_pairs(found)] == [
            ("c", False),
            ("l", False),
            ("q", turned),
        ]
        assert [(one.kind, one.shape, one.params) for one in found.modules] == [
            ("conv", (5, 12), 2 * 12 + 5 * 2),
            ("conv", (5, 12), 2 * 12 + 5 * 2),
            ("linear", (3, 5) if turned else (5, 3), 2 * 3 + 5 * 2),
        ]


@every(("layer", "of_base"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 4), (9, 9)])
def test_a_replicated_layer_is_one_of_the_base_s_and_beyond_the_last_its_own(layer, of_base, tmp_path):
    names = [f"model.layers.{layer}.h.3.q", f"h.{layer}.q", f"x.layer.{layer}.q"]
    folder = saved(tmp_path / "a", lora(*names), layer_replication=[[0, 2], [1, 3]])
    found = {module.name: module for module in open_adapter(folder)[1].modules}
    assert [found[name].base_name for name in names[1:]] == [f"h.{of_base}.q.weight", f"x.layer.{of_base}.q.weight"]
    module = found[names[0]]
    assert module.name == f"model.layers.{layer}.h.3.q"
    assert module.base_name == f"model.layers.{of_base}.h.3.q.weight"  # of a name's numbers the first alone
    for number, (peft_type, shapes) in enumerate(
        [
            ("LOKR", {f"h.{layer}.q.{name.removeprefix('q.')}": shape for name, shape in LOKR.items()}),
            ("ADALORA", {f"h.{layer}.q.{name.removeprefix('q.')}": shape for name, shape in ADALORA.items()}),
        ]
    ):
        other = saved(tmp_path / str(number), shapes, peft_type=peft_type, layer_replication=[[0, 2], [1, 3]])
        _, adapter = open_adapter(other)
        assert [one.base_name for one in adapter.modules + adapter.base_dependent] == [f"h.{of_base}.q.weight"]


@every(
    ("ranges", "said"),
    [
        ([[0, 100_000]], None),
        ([[0, 100_001]], "layer_replication in the adapter config is not a list of [start, end): [(0, 100001)]"),
        ([[2, 1]], "layer_replication in the adapter config is not a list of [start, end): [(2, 1)]"),
        ([[-1, 1]], "layer_replication in the adapter config is not a list of [start, end): [(-1, 1)]"),
        ([[0, 100_000], [0, 1]], "layer_replication in the adapter config makes more than 100 000 layers"),
        ([[1, 1]], None),
        ([[1, 1]] * 100_001, None),  # of no layer each
    ],
)
def test_layers_are_replicated_a_hundred_thousand_times_at_most(ranges, said, tmp_path):
    folder = saved(tmp_path / "a", lora("q"), layer_replication=ranges)
    if said is None:
        assert len(open_adapter(folder)[1].modules) == 1
        return
    with pytest.raises(AdapterError) as error:
        open_adapter(folder)
    assert str(error.value) == said


def test_one_target_of_the_config_in_the_file_is_enough(tmp_path):
    _, found = open_adapter(saved(tmp_path / "a", lora("q", "v"), target_modules=["q"]))
    assert found.notes == []


@pytest.mark.parametrize(("heights", "known"), [((4, 4, 4), True), ((4, 4, 6), False), ((4, 6, 6), True)])
def test_a_name_of_two_heights_makes_the_widths_of_all_vera_modules_unknown(heights, known, tmp_path):
    names = ("0.q_proj", "0.v_proj", "1.v_proj")
    tensors = {f"{PREFIX}{n}.vera_lambda_b": np.ones(h, np.float32) for n, h in zip(names, heights, strict=True)}
    tensors |= {f"{PREFIX}{name}.vera_lambda_d": np.ones(2, np.float32) for name in names}
    shared = {"base_model.vera_A": np.ones((2, 5), np.float32), "base_model.vera_B": np.ones((6, 2), np.float32)}
    save_file(tensors | shared, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "VERA", "r": 2}))
    _, found = open_adapter(tmp_path)
    assert (len(found.modules), len(found.base_dependent)) == ((3, 0) if known else (0, 3))
    if known:
        return
    gone = "VeRA's projections are not in the file (save_projection: false): only torch can draw them again"
    unfit = "VeRA vectors of {} and 2 entries do not fit projections of shape {} and {}".format
    for changed, reasons, cause in (
        ({"base_model.vera_A": None}, [gone] * 3, LeftoverReason.CONFIG),
        ({"base_model.vera_B": None}, [gone] * 3, LeftoverReason.CONFIG),
        (
            {"base_model.vera_B": np.ones((6, 2), np.int32)},
            ["VeRA's projections: factors of dtype F32 and I32: not floating point"] * 3,
            LeftoverReason.DTYPE,
        ),
        (
            {"base_model.vera_B": np.ones((6, 3), np.float32)},
            [unfit(height, [2, 5], [6, 3]) for height in heights],
            LeftoverReason.SHAPE,
        ),
        (
            {"base_model.vera_A": np.ones((3, 5), np.float32)},
            [unfit(height, [3, 5], [6, 2]) for height in heights],
            LeftoverReason.SHAPE,
        ),
    ):
        held = {name: x for name, x in (tensors | shared | changed).items() if x is not None}
        save_file(held, tmp_path / "adapter_model.safetensors")
        _, found = open_adapter(tmp_path)
        skipped = [(item.name, item.reason, item.cause) for item in found.skipped if item.name in names]
        assert skipped == [(name, why, cause) for name, why in zip(names, reasons, strict=True)]


@pytest.mark.parametrize("mark", ["_CHECKPOINT_METADATA", "manifest.ocdbt", "_METADATA"])
def test_a_folder_with_any_mark_of_orbax_is_one_of_its_checkpoints(mark, tmp_path):
    assert formats.orbax_advice(tmp_path) is None
    (tmp_path / mark).touch()
    assert formats.orbax_advice(tmp_path) == (
        "it is an Orbax checkpoint: restore it in the program that saved it, and call gradience.audit_pytree(params)"
    )


def test_a_checkpoint_in_parts_names_the_command_that_gathers_it(tmp_path, capfd):
    """The parts are written by torch, and gathered by accelerate."""
    import torch
    import torch.distributed.checkpoint as dcp
    from accelerate.utils import merge_fsdp_weights

    stem = "base_model.model.layers.0.q_proj"
    factors = {f"{stem}.lora_A.weight": torch.ones(2, 8), f"{stem}.lora_B.weight": torch.ones(8, 2)}
    parts, whole = tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0", tmp_path / "whole"
    with pytest.warns(UserWarning, match="single process"):
        dcp.save({"model": factors}, checkpoint_id=parts)
    command = f"it is a checkpoint in parts (FSDP, DCP): run 'accelerate merge-weights {parts} OUT',"
    for place in (parts, parts.parent):
        with pytest.raises(AdapterError) as error:
            open_adapter(place)
        assert error.value.advice == f"{command} copy adapter_config.json into OUT, and give OUT"
        with pytest.raises(AdapterError) as error:
            find_shards(place)
        assert error.value.advice == f"{command} and give OUT"
    merge_fsdp_weights(str(parts), str(tmp_path / "OUT"))
    (tmp_path / "OUT" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    assert [module.name for module in open_adapter(tmp_path / "OUT")[1].modules] == ["layers.0.q_proj"]
    whole.mkdir()
    torch.save(factors, whole / "pytorch_model_fsdp.bin")
    with pytest.raises(AdapterError) as error:
        open_adapter(whole)
    assert error.value.advice == f"it is a checkpoint of FSDP: give {whole / 'pytorch_model_fsdp.bin'} itself"
    config = tmp_path / "OUT" / "adapter_config.json"
    found = open_adapter(whole, weights=whole / "pytorch_model_fsdp.bin", adapter_config=config)
    assert len(found[1].modules) == 1


def test_a_weights_file_of_another_name_is_asked_for(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(AdapterError) as error:
        open_adapter(tmp_path / "a")
    advice = "expected adapter_model.safetensors; if they have another name, give the file itself"
    assert (str(error.value), error.value.advice) == (
        f"no adapter weights in {tmp_path / 'a'} (it holds nothing)",
        advice,
    )
    for name in ("x.safetensors", "y.safetensors"):
        (tmp_path / "a" / name).write_text("")
    with pytest.raises(AdapterError) as error:
        open_adapter(tmp_path / "a")
    assert str(error.value) == (
        f"2 weights files, none named as PEFT does, in {tmp_path / 'a'} (x.safetensors, y.safetensors)"
    )
    assert error.value.advice == advice


def test_experts_of_rank_zero_are_shared_out_among_none(tmp_path):
    shapes = {"x.experts.lora_A.weight": (4, 5), "x.experts.lora_B.weight": (6, 4)}
    folder = saved(tmp_path / "a", shapes, target_parameters=["experts.w"], rank_pattern={"experts.w": 0})
    _, found = open_adapter(folder)
    said = "cannot be shared out among experts of rank 0, the rank that the config gives"
    assert [item.reason for item in found.skipped] == [f"factors of shape [4, 5] and [6, 4] {said}"]


def test_two_parameters_of_experts_have_names_where_one_can_feed_the_other(tmp_path):
    targets = ["experts.down_proj", "experts.gate_up_proj"]
    for (out, inner), named in (((3, 4), True), ((5, 7), True), ((5, 4), False)):  # of the last, beside 7 x 3
        inmost = {f"x.experts.base_layer.lora_{side}.weight": s for side, s in (("A", (4, 3)), ("B", (7, 4)))}
        shapes = inmost | lora("x.experts", r=4, d_out=out, d_in=inner) | lora("x.shared_experts")
        folder = saved(
            tmp_path / f"{out}-{inner}", shapes, target_parameters=targets, target_modules=["shared_experts"]
        )
        _, found = open_adapter(folder)
        first, last = ("gate_up_proj", "down_proj") if named else ("parameter0", "parameter1")
        assert {module.name: (module.shape, module.base_name) for module in found.modules} == {
            f"x.experts.{name}[{e}]": (shape, f"x.experts.{name}" if named else None)
            for name, shape in ((first, (7, 3)), (last, (out, inner)))
            for e in (0, 1)
        } | {"x.shared_experts": ((5, 3), "x.shared_experts.weight")}  # whose name only ends alike
    half = lora("x.experts.base_layer", r=4, d_out=7, d_in=3) | {"x.experts.lora_A.weight": (4, 7)}
    _, found = open_adapter(saved(tmp_path / "half", half, target_parameters=targets))  # a pair without its B
    assert [module.name for module in found.modules] == ["x.experts.gate_up_proj[0]", "x.experts.gate_up_proj[1]"]
    assert [(item.name, item.reason) for item in found.skipped] == [
        ("x.experts.down_proj", "lora_B is missing beside lora_A")
    ]
    nested = [f"x.experts{depth * '.base_layer'}" for depth in range(3)]  # the last is the innermost
    three = {"down_proj": (6, 5), "up_proj": (5, 6), "gate_proj": (5, 6)}
    shapes = {}
    for path, (out, inner) in zip(nested, three.values(), strict=True):
        shapes |= lora(path, r=4, d_out=out, d_in=inner)
    _, found = open_adapter(saved(tmp_path / "c", shapes, target_parameters=[f"experts.{name}" for name in three]))
    assert {module.name: (module.shape, module.keys["lora_A"]) for module in found.modules} == {
        f"x.experts.{name}[{e}]": (three[name], f"{PREFIX}{path}.lora_A.weight")
        for name, path in zip(three, nested, strict=True)
        for e in (0, 1)
    }


def test_experts_of_several_adapters_are_told_apart_by_their_names(tmp_path):
    shapes = {
        f"x.experts.lora_{side}.{name}.weight": shape
        for name in ("one", "two")
        for side, shape in (("A", (4, 5)), ("B", (6, 4)))
    }
    _, found = open_adapter(saved(tmp_path / "a", shapes, target_parameters=["experts.w"]))
    names = [f"x.experts.w:{name}[{e}]" for name in ("one", "two") for e in range(2)]
    assert sorted(module.name for module in found.modules) == names
    assert {module.adapter for module in found.modules} == {"one", "two"}
    shapes = {name.replace(".one", ""): shape for name, shape in shapes.items()}
    _, found = open_adapter(saved(tmp_path / "b", shapes, target_parameters=["experts.w"]))
    names = [f"x.experts.w:{name}[{e}]" for name in ("default", "two") for e in range(2)]
    assert sorted(module.name for module in found.modules) == names


def test_of_two_types_in_one_file_without_a_config_s_word_the_first_by_name_is_read(tmp_path):
    halves = {f"v.hada_w{i}_{x}": (5, 2) if x == "a" else (2, 3) for i in (1, 2) for x in "ab"}
    folder = saved(tmp_path / "a", lora("q") | halves)
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["peft_type"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    _, found = open_adapter(folder)
    assert [(module.name, module.kind) for module in found.modules] == [("v", "loha")]
    assert [item.name for item in found.skipped] == ["q"]


def test_experts_of_rank_one_and_a_single_block_are_pairs_as_any(tmp_path):
    shapes = {"experts.lora_A.weight": (3, 4), "experts.lora_B.weight": (5, 3)}
    experts = open_adapter(saved(tmp_path / "a", shapes, r=1, target_parameters=["experts.down_proj"]))[1].modules
    for e, module in enumerate(experts):
        b, a = module.load()
        np.testing.assert_array_equal(b @ a, np.outer(1.0 + e + 3.0 * np.arange(5), 1.0 + 4 * e + np.arange(4)))
    assert [(module.name, module.r, module.scale) for module in experts] == [
        (f"experts.down_proj[{e}]", 1, 4.0) for e in range(3)
    ]
    for count in ({"nblocks": 1}, {}, {"nblocks": "2"}, {"nblocks": None}):  # of no number of blocks there is one
        blocks = {"target_modules_bd_a": ["q"], **count}
        (module,) = open_adapter(saved(tmp_path / f"b{count}", lora("q"), use_bdlora=blocks))[1].modules
        assert [factor.tolist() for factor in module.load()] == [
            [[2 * i + 1, 2 * i + 2] for i in range(5)],
            [[1, 2, 3], [4, 5, 6]],
        ]
    both = {"nblocks": 2, "target_modules_bd_a": ["q"], "target_modules_bd_b": ["q"]}  # PEFT asks for A's first
    shapes = {"q.lora_A.weight": (4, 3), "q.lora_B.weight": (5, 4)}
    (module,) = open_adapter(saved(tmp_path / "both", shapes, use_bdlora=both))[1].modules
    first, last = [[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]
    assert module.load()[1].tolist() == [row + [0] * 3 for row in first] + [[0] * 3 + row for row in last]
