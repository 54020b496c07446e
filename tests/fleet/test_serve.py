"""Which adapters one process serves together: groups and misfits of real adapters, and PEFT itself as the judge."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fleet_inputs import factors, peft
from safetensors.numpy import save_file
from tables import few

from gradience import check_config
from gradience.cli.main import main
from gradience.rules.config.serving import ENGINES
from gradience.verbs.fleet.audit import audit_fleet
from gradience.verbs.fleet.show import show_fleet

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*have invalid shape"),  # PEFT 0.21.2 takes lora_bias for a tensor that is cut
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PEFT's advice on what is done here on purpose
]

PLAIN = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
MADE: dict[str, dict[str, Any]] = {
    "a/peft": {},
    "b/peft": {"lora_alpha": 64},
    "r4": {"r": 4},
    "r64": {"r": 64},
    "wide": {"target_modules": ["q_proj", "v_proj", "up_proj"]},
    "narrow": {"target_modules": ["q_proj"]},
    "first-layer": {"layers_to_transform": [0]},
    "rslora": {"use_rslora": True},
    "dropout": {"lora_dropout": 0.1},
    "ranks": {"rank_pattern": {"q_proj": 2}},
    "alphas": {"alpha_pattern": {"q_proj": 4}},
    "dora": {"use_dora": True},
    "head": {"modules_to_save": ["lm_head"]},
    "head-too": {"modules_to_save": ["lm_head"], "r": 4},
    "tokens": {"trainable_token_indices": [1, 2]},
    "bias": {"bias": "lora_only"},
    "lora-bias": {"lora_bias": True},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "alora": {"alora_invocation_tokens": [5, 6]},
    "pissa": {"init_lora_weights": "pissa"},
}


def tiny(width: int = 32) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(width)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "vocab_size": 64}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, attention_bias=True)
    ).eval()


def save(folder: Path, settings: dict[str, Any], *, base: str = "tiny", width: int = 32) -> None:
    """Save an adapter by PEFT whose spectra decay, so that an audit calls it trained."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny(width), LoraConfig(**{**PLAIN, **settings}))
    torch.manual_seed(len(str(folder.name)))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad and "lora_A" in name:
                value.copy_(torch.randn_like(value) * (0.7 ** torch.arange(len(value)))[:, None])
            elif value.requires_grad and "lora_B" in name and value.ndim == 2:
                value.copy_(torch.randn_like(value) * 0.7 ** torch.arange(value.shape[1]) * 0.3)
            elif value.requires_grad:
                value.add_(torch.randn_like(value) * 0.3)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder, save_embedding_layers=False)


class Zoo(NamedTuple):
    """Real adapters, and the fleet of them."""

    root: Path
    fleet: Path


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Zoo:
    root = tmp_path_factory.mktemp("zoo")
    for name, settings in MADE.items():
        save(root / "runs" / name, settings)
    save(root / "runs" / "other", {}, base="large", width=64)
    save(root / "runs" / "other-r32", {"r": 32}, base="large", width=64)
    save(root / "runs" / "wrong", {}, width=64)
    save(root / "runs" / "in-4-bits", {}, base="someone/tiny-bnb-4bit")
    audit_fleet(root / "runs", out=root / "fleet", workers=1)
    return Zoo(root, root / "fleet")


def named(zoo: Zoo, path: str) -> str:
    return str(Path(path).relative_to(zoo.root / "runs"))


def planned(zoo: Zoo, engine: str) -> tuple[list[set[str]], set[str]]:
    """The groups of an engine, and the misfits."""
    [plan] = show_fleet(zoo.fleet, serve=[engine]).plans
    groups = [{named(zoo, one.path) for one in group.adapters} for group in plan.groups]
    return groups, {named(zoo, one.path) for misfit in plan.misfits for one in misfit.adapters}


ALONE = [{"other", "other-r32"}, {"wrong"}, {"in-4-bits"}]
COMMON = {"a/peft", "b/peft", "r4", "r64", "wide", "narrow", "first-layer", "rslora", "dropout", "embedding", "alora"}
GROUPS = {  # engine: groups beside those of another base, and misfits
    "vllm": ([COMMON], {"ranks", "alphas", "dora", "head", "head-too", "tokens", "bias", "pissa"} | {"lora-bias"}),
    "sglang": ([COMMON - {"rslora"} | {"ranks", "alphas", "head", "head-too", "tokens", "bias", "lora-bias"}],
        {"rslora", "dora", "pissa"}),
    "peft": ([COMMON | {"ranks", "alphas", "lora-bias"}, {"head", "head-too"}, {"tokens"}], {"dora", "bias", "pissa"}),
    "hotswap": ([COMMON - {"rslora", "dropout", "embedding", "alora"}, {"rslora"}, {"dropout"}, {"lora-bias"}],
        {"dora", "head", "head-too", "tokens", "bias", "pissa", "embedding", "alora", "ranks", "alphas"}),
}  # fmt: skip


@pytest.mark.parametrize("engine", GROUPS)
def test_adapters_of_one_base_share_a_process_unless_the_engine_or_a_setting_parts_them(zoo, engine):
    groups, misfits = planned(zoo, engine)
    expected, unfit = GROUPS[engine]
    assert sorted(map(sorted, groups)) == sorted(map(sorted, [*expected, *ALONE]))
    assert misfits == unfit


# PEFT is here: it judges the plans for itself.


def rows() -> Any:
    return torch.arange(12).reshape(2, 6)


def outputs(model: Any, **how: Any) -> Any:
    with torch.no_grad():
        return model.eval()(rows(), **how).logits


def alone(zoo: Zoo, name: str) -> Any:
    from peft import PeftModel

    return outputs(PeftModel.from_pretrained(tiny(), zoo.root / "runs" / name))


def swapped(zoo: Zoo, first: str, then: list[str]) -> list[Any]:
    """The outputs after each swap into a model with the first."""
    from peft import PeftModel
    from peft.utils.hotswap import hotswap_adapter

    model = PeftModel.from_pretrained(tiny(), zoo.root / "runs" / first)
    found = []
    for name in then:
        hotswap_adapter(model, str(zoo.root / "runs" / name), adapter_name="default", torch_device="cpu")
        found.append(outputs(model))
    return found


def mixed(zoo: Zoo, names: list[str]) -> Any:
    """The outputs of a batch whose two rows name two adapters."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(tiny(), zoo.root / "runs" / names[0], adapter_name="0")
    model.load_adapter(zoo.root / "runs" / names[1], adapter_name="1")
    return outputs(model, adapter_names=["0", "1"])


def fails(made: Any, expected: Any) -> bool:
    """Whether PEFT refuses, or computes something else."""
    try:
        return not torch.allclose(made(), expected, atol=1e-5)
    except (KeyError, AttributeError, ValueError, RuntimeError):
        return True


def test_a_group_said_to_be_swappable_swaps(zoo):
    [plan] = show_fleet(zoo.fleet, serve=["hotswap"]).plans
    group = next(group for group in plan.groups if len(group.adapters) > 1)
    names = [named(zoo, one.path) for one in group.adapters]
    assert names[0] == "wide"  # it has every module of the others
    assert repr(str(zoo.root / "runs" / "wide")) in group.command
    assert "target_rank=64" in group.command
    for name, found in zip(names, swapped(zoo, names[0], names), strict=True):
        torch.testing.assert_close(found, alone(zoo, name), atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", few(sorted(set(MADE) - GROUPS["hotswap"][0][0]), each=2))
def test_an_adapter_said_not_to_be_swappable_is_not(zoo, name):
    assert fails(lambda: swapped(zoo, "wide", [name])[0], alone(zoo, name))


@pytest.mark.parametrize("name", few(sorted(set(MADE) - {"a/peft"}), each=2))
def test_a_batch_names_adapters_of_one_group_and_no_others(zoo, name):
    groups, _ = planned(zoo, "peft")
    pair = next((group for group in groups if {"a/peft", name} <= group), None)
    expected = torch.stack([alone(zoo, "a/peft")[0], alone(zoo, name)[1]])
    assert fails(lambda: mixed(zoo, ["a/peft", name]), expected) == (pair is None)


# What a plan says


def test_a_slot_takes_the_largest_rank_in_all_modules_and_the_few_that_need_it_are_named(zoo):
    [plan] = show_fleet(zoo.fleet, serve=["vllm"]).plans
    group = plan.groups[0]
    attention, mlp, embedding = (32 + 32) + (32 + 16), 32 + 64, 32 + 64
    width = 2 * (attention + mlp) + embedding
    assert (group.rank, group.slots, group.slot_bytes) == (64, 8, 64 * width * 2)
    assert (group.next_rank, group.without_largest) == (8, 8 * width * 2)
    assert [named(zoo, path) for path in group.largest] == ["r64"]
    assert (plan.groups[1].rank, plan.groups[1].next_rank) == (32, None)  # one of two is not few
    assert group.targets == ["embed_tokens", "q_proj", "up_proj", "v_proj"]
    assert "--max-lora-rank 64 --max-loras 8" in group.command
    assert {one.argument.partition("=")[0] for one in group.adapters} >= {"a/peft", "b/peft", "r4"}
    assert any("may be one base under several names" in note for note in plan.notes)
    wrong = next(group for group in plan.groups if group.adapters[0].name == "wrong")
    assert wrong.notes[0].endswith("self_attn.q_proj is 64 x 64 and not 32 x 32")


def test_what_is_said_to_make_a_misfit_fit_runs_and_does(zoo, tmp_path, capsys):
    [plan] = show_fleet(zoo.fleet, serve=["vllm"]).plans
    commands = {named(zoo, one.path): one.command for misfit in plan.misfits for one in misfit.adapters if one.command}
    assert set(commands) == {"ranks", "alphas", "dora", "pissa"}
    tiny().save_pretrained(tmp_path / "base")
    for name, command in commands.items():
        for part in command.split(" && "):
            words = shlex.split(part.replace("MODEL", str(tmp_path / "base"), 1), comments=True)
            assert main(words[1:]) == 0, (name, capsys.readouterr())
    capsys.readouterr()
    made = [zoo.root / "runs" / f"{name}-served" for name in commands]
    audit_fleet(*made, out=tmp_path / "fleet", workers=1)
    [again] = show_fleet(tmp_path / "fleet", serve=["vllm"]).plans
    assert [len(group.adapters) for group in again.groups] == [4]
    assert again.misfits == []


@pytest.mark.parametrize(("bar", "code"), [((), 0), (("--fail-on", "warning"), 1), (("--fail-on", "error"), 0)])
def test_the_screen_and_the_exit_code(zoo, bar, code, capsys):
    assert main(["fleet", "show", str(zoo.fleet), "--serve", "vllm,hotswap", "--top", "2", *bar]) == code
    out = capsys.readouterr().out
    text = " ".join(out.split())
    for words in (
        "vLLM: 15 adapters in 4 groups; 9 do not fit",
        "1. tiny: 11 adapters (1 of rank 4, 9 of rank 8, 1 of rank 64)",
        "... and 9 more (--verbose)",
        "SRV001 vLLM refuses use_dora: loading it is not implemented (1 adapter) [vllm-project/vllm@",
        "rank 64 is for 1 of 11: resized to 8, a slot takes",
        "apart from others because of lora_dropout 0.1",
    ):
        assert words in text
    command = out[out.index("vllm serve tiny") :].split("\n       ...")[0]
    assert all(line.endswith("\\") for line in command.splitlines()[:-1])
    assert shlex.split(command.replace("\\\n", " "))[:4] == ["vllm", "serve", "tiny", "--enable-lora"]


def test_json_sarif_and_python_give_the_same_plan(zoo, capsys):
    assert main(["fleet", "show", str(zoo.fleet), "--serve", "vllm", "--json"]) == 0
    [plan] = json.loads(capsys.readouterr().out)["plans"]
    assert [len(group["adapters"]) for group in plan["groups"]] == [11, 2, 1, 1]
    assert main(["fleet", "show", str(zoo.fleet), "--serve", "vllm", "--format", "sarif"]) == 0
    [run] = json.loads(capsys.readouterr().out)["runs"]
    assert {result["ruleId"] for result in run["results"]} == {"SRV001", "SRV002"}
    assert len(run["results"]) == 9


def test_what_cannot_be_judged_is_said_and_a_gate_does_not_pass_it(tmp_path, capsys):
    peft(tmp_path / "runs" / "good", factors(0))
    stem = "lora_unet_down_blocks_0_attentions_0_to_q"
    names = {"lora_A": f"{stem}.lora_down.weight", "lora_B": f"{stem}.lora_up.weight"}
    one = {
        names[k]: x for name, x in factors(1).items() for k in names if k in name and ".0." in name and "q_proj" in name
    }
    (tmp_path / "runs" / "kohya").mkdir(parents=True)
    save_file({**one, f"{stem}.alpha": np.float32([4.0])}, tmp_path / "runs" / "kohya" / "x.safetensors")
    peft(tmp_path / "runs" / "large", factors(2, r=600, decay=0.99), r=600)
    peft(tmp_path / "runs" / "revised", factors(3), revision="v2")
    experts = {name.replace("mlp.up_proj", "mlp.experts.0.up_proj"): x for name, x in factors(4).items()}
    peft(tmp_path / "runs" / "experts", experts, base="org/moe-bnb-4bit")
    peft(tmp_path / "runs" / "experts-16", experts, base="org/moe")
    audit_fleet(tmp_path / "runs", out=tmp_path / "fleet", workers=1)
    [plan] = show_fleet(tmp_path / "fleet", serve=["vllm"]).plans
    said = {
        Path(one.path).parent.name if "kohya" in one.path else Path(one.path).name: (misfit.id, misfit.reason)
        for misfit in plan.misfits
        for one in misfit.adapters
    }
    assert {name: id_ for name, (id_, _) in said.items()} == {"kohya": "", "large": "SRV004", "experts": "SRV001"}
    assert said["kohya"][1].endswith("it is in kohya's format")
    assert said["experts"][1].startswith("vLLM refuses LoRA on experts: its bitsandbytes method")
    assert said["large"][1].startswith("vLLM has no room for rank 600")
    assert [(group.base_model, group.revision) for group in plan.groups] == [
        ("org/moe", None),
        ("tiny", None),
        ("tiny", "v2"),
    ]
    assert main(["fleet", "show", str(tmp_path / "fleet"), "--serve", "vllm", "--fail-on", "critical"]) == 2
    assert "1 adapter could not be judged" in capsys.readouterr().err


def test_a_flag_parts_a_fleet_and_a_version_that_no_source_is_of_is_not_judged(zoo):
    [plan] = show_fleet(zoo.fleet, serve=["vllm"], server_flags="--max-lora-rank 32").plans
    [misfit] = [misfit for misfit in plan.misfits if misfit.id == "SRV004"]
    assert [named(zoo, one.path) for one in misfit.adapters] == ["r64"]
    assert any(note.startswith("if it is started with --lora-target-modules, name ") for note in plan.notes)
    [plan] = show_fleet(zoo.fleet, serve=["vllm@99"]).plans
    assert plan.groups == []
    assert {misfit.reason for misfit in plan.misfits} == {
        "not judged: what is known of vLLM was read of 0.8.4 to 0.28.0, and not of 99"
    }


def test_a_fleet_and_a_check_say_the_same_of_unlike_adapters(tmp_path):
    stem = "base_model.model.model.layers"
    rng = np.random.default_rng(5)
    pairs = {f"{stem}.0.mlp.{name}.lora_{x}.weight": rng.standard_normal((6, 6)) * 0.5 ** np.arange(6)
             for name in ("experts", "experts.base_layer") for x in "AB"}  # fmt: skip
    pairs = {name: value.T if "lora_A" in name else value for name, value in pairs.items()}
    experts = {name: np.ascontiguousarray(value, "f4") for name, value in pairs.items()}
    runs, whole = tmp_path / "runs", {"base_model.model.score.weight": np.ones((3, 24), "f4")}
    peft(runs / "plain", base="meta-llama/Llama-3.2-1B")
    peft(runs / "rslora", factors(1, r=32), r=32, use_rslora=True, base="openai/whisper-small")
    peft(runs / "alphas", factors(2), alpha_pattern={"q_proj": 3}, base="google/gemma-3-4b-it")
    peft(runs / "whole", factors(3) | whole, layers_to_transform=[0, 1])
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    peft(runs / "experts", factors(4) | experts, r=2, base="Qwen/Qwen3-30B-A3B", target_parameters=parameters)
    audit_fleet(runs, out=tmp_path / "fleet", workers=1)
    served = [(["vllm"], "--lora-target-modules q_proj --max-lora-rank 16"), (["vllm@0.28"], "--enable-lora")]
    served += [([engine for engine in ENGINES if engine != "hotswap"], "")]
    told = set()
    for engines, flags in served:
        plans = show_fleet(tmp_path / "fleet", serve=engines, server_flags=flags).plans
        misfits = [(Path(one.path).name, each) for plan in plans for each in plan.misfits for one in each.adapters]
        notes = " ".join(note for plan in plans for group in plan.groups for note in group.notes)
        for folder in runs.iterdir():
            report = check_config(document=folder, serve=engines, server_flags=flags, select=["SRV"])
            found = {
                (one.id, re.sub(r", [\d.]+% of [^)]*energy", "", one.message))
                for one in [*report.findings, *report.readings]
                if one.id.startswith("SRV")
            }
            said = {(misfit.id, misfit.reason) for name, misfit in misfits if name == folder.name}
            assert said == {pair for pair in found if pair[0] != "SRV005"}, (engines, folder.name)
            unknown = [message.partition("with ")[2].partition(":")[0] for id_, message in found if id_ == "SRV005"]
            assert said or all(one in notes for one in unknown), (engines, folder.name)
            told |= {id_ for id_, _ in found}
    assert told == {"SRV001", "SRV002", "SRV003", "SRV004", "SRV005", "SRV006"}
