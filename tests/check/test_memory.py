"""The memory of a training step, as `check` with a base says it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from tables import every, few

from gradience import TelemetryWriter, check_config, diagnose
from gradience.base.shapes import folder_of
from gradience.cli.main import main
from gradience.errors import AdapterError, ConfigError
from gradience.schema.memory import Memory
from gradience.verbs.check.memory import parse_size
from gradience.verbs.check.view import check_text
from gradience.verbs.diagnose.view import diagnose_text

SIZES = {"vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": 4, **SIZES}
GEMMA = {
    "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "num_key_value_heads": 2, "head_dim": 16,
    "attn_logit_softcapping": 50.0,
}  # fmt: skip
LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**LLAMA, "torch_dtype": "bfloat16"}))
    return folder


def checked(base: Path, *, length: int | None = 256, memory: str | None = None, **training: Any) -> Any:
    settings = {"per_device_train_batch_size": 4, "learning_rate": 1e-4, **training}
    return check_config(peft=LORA, training=settings, base=base, max_length=length, memory=memory)


def test_a_config_alone_tells_the_peak_its_parts_and_what_is_assumed(base: Path) -> None:
    report = checked(base, bf16=True)
    memory = report.memory
    assert memory.reason == ""
    assert memory.parts.loss == pytest.approx(3 * 4 * 4 * 256 * 2048, rel=0.01)
    parts = memory.parts
    held = (parts.weights, parts.adapter, parts.optimizer, parts.activations, parts.loss, parts.backward)
    assert memory.peak_bytes == sum(held)
    assert memory.reserved_bytes[0] <= memory.peak_bytes <= memory.reserved_bytes[1]
    assert "4 x 256 tokens, padded" in memory.assumes
    assert memory.assumes[-1].startswith("no autocast, with which it is 0.0 GiB")
    assert memory.reserved_bytes[0] < memory.peak_bytes
    assert not any("autocast" in one for one in checked(base).memory.assumes)
    assert "Memory: about" in check_text(report)
    assert "MEM001" not in {one.id for one in report.findings}


def test_a_step_that_does_not_fit_names_the_cheapest_change_that_does(base: Path) -> None:
    peak = checked(base).memory.peak_bytes
    report = checked(base, memory=f"{peak - 1}B")
    assert [one.severity for one in report.findings if one.id == "MEM001"] == ["error"]
    assert report.memory.changes[0].change.startswith("gradient_checkpointing")
    assert all(one.peak_bytes < peak for one in report.memory.changes)
    spared = checked(base, gradient_checkpointing=True)
    assert spared.memory.peak_bytes == report.memory.changes[0].peak_bytes


def test_the_bits_of_a_base_are_those_of_the_training_or_else_its_own(base: Path) -> None:
    whole = checked(base).memory.parts.weights
    halves = {}
    for name, bits in (("bits", 4), ("w_bit", 4), ("load_in_4bit", True), ("bits", 8), ("load_in_8bit", True)):
        (base / "config.json").write_text(
            json.dumps({**LLAMA, "torch_dtype": "bfloat16", "quantization_config": {name: bits}})
        )
        halves[name, bits] = checked(base).memory.parts.weights
    (base / "config.json").write_text(json.dumps({**LLAMA, "torch_dtype": "bfloat16"}))
    four, eight = (checked(base, **{f"load_in_{n}bit": True}).memory.parts.weights for n in (4, 8))
    assert four < eight < whole
    assert list(halves.values()) == [four, four, four, eight, eight]


def test_a_model_that_cannot_be_made_is_unknown_with_the_reason(base: Path) -> None:
    (base / "config.json").write_text('{"model_type": "flux"}')
    report = checked(base)
    assert report.memory.peak_bytes is None
    made = "the installed transformers and PEFT make no step of this base with LORA without its weights (ValueError)"
    assert report.memory.reason == made
    assert f"Memory: unknown: {made}" in " ".join(check_text(report).split())


@pytest.mark.parametrize("kind", ["WAVEFT", "FROD"])
def test_an_adapter_that_cannot_be_followed_is_told_in_our_words(base: Path, kind: str) -> None:
    memory = check_config(
        peft={**LORA, "peft_type": kind}, training={"per_device_train_batch_size": 4}, base=base, max_length=64
    ).memory
    assert memory is not None
    assert memory.peak_bytes is None
    made = f"the installed transformers and PEFT make no step of this base with {kind} without its weights"
    assert memory.reason == f"{made} (NotImplementedError)"


@pytest.mark.parametrize("named", [{"peft_type": "XLORA"}, {"megatron_config": {"a": 1}}])
def test_peft_is_given_no_config_for_which_it_would_load_what_is_named(base: Path, named: dict[str, object]) -> None:
    folder = base.parent / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({**LORA, **named}))
    memory = check_config(peft_dir=folder, base=base, max_length=64).memory
    told = "the adapter's adapter_config.json cannot be read, or would make PEFT load what it names"
    assert memory == Memory(reason=told)


def test_without_torch_the_parts_that_need_no_model_are_given(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradience.verbs.check.memory.find_spec", lambda name: None if name == "torch" else sys)
    memory = checked(base).memory
    assert memory.peak_bytes is None
    assert "[hf]" in memory.reason


def test_a_size_that_is_none_is_refused() -> None:
    for text in ("", "24 parsecs", "-1", "0", "GiB"):
        with pytest.raises(ConfigError, match="--memory"):
            parse_size(text)
    sizes = ["24", "24GiB", "24G", "80gb", "1.5 MiB", "0.5", "7 tib", "9 b", "3k"]
    assert [parse_size(text) for text in sizes] == [
        24 << 30, 24 << 30, 24 * 10**9, 80 * 10**9, 3 << 19, 1 << 29, 7 << 40, 9, 3000
    ]  # fmt: skip


def test_a_config_alone_tells_what_the_targets_reach(base: Path) -> None:
    reached = checked(base).memory.reached
    embedded, mixed, norms = 2 * 2048 * 64, 4 * 64 * 64 + 3 * 64 * 128, 2 * 64
    assert (reached.modules, reached.trainable_params) == (2, 2 * 2 * 8 * 64)
    assert reached.base_params == embedded + 2 * (mixed + norms) + 64
    assert "Adapter: 2 modules, 2,048 parameters that are trained" in check_text(checked(base))


def test_a_base_of_the_hubs_cache_is_found_there(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = tmp_path / "hub" / "models--org--m"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("0a1")
    (entry / "snapshots").mkdir()
    base.rename(entry / "snapshots" / "0a1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for named in (Path("org/m"), entry):
        assert checked(named).memory.peak_bytes == checked(entry / "snapshots" / "0a1").memory.peak_bytes > 0
    with pytest.raises(AdapterError, match=r"^no such base: org/other is neither a path nor in ") as error:
        checked(Path("org/other"))
    assert error.value.advice == "its config.json is enough: give its folder, or hf download org/other config.json"


@pytest.mark.parametrize(
    ("name", "builder", "params"),
    few(
        [  # numbers of parameters that the hub's files hold: a tied head, biases, a window that is none, a head apart
            ("meta-llama/Llama-3.2-1B", "llama3_2/_model_builders.py:llama3_2_1b", 1_235_814_400),
            ("Qwen/Qwen2.5-7B-Instruct", "qwen2_5/_model_builders.py:qwen2_5_7b_base", 7_615_616_512),
            ("mistralai/Mistral-7B-v0.3", "mistral/_model_builders.py:mistral_7b", 7_248_023_552),
            ("Qwen/Qwen3-0.6B", "qwen3/_model_builders.py:qwen3_0_6b_base", 596_049_920),
        ],
        each=2,
    ),
)
def test_the_shape_of_an_open_model_is_known_by_its_name(name: str, builder: str, params: int) -> None:
    report = checked(Path(name))
    assert report.memory.reached.base_params == params
    litgpt, torchtune = "Lightning-AI/litgpt@26857050 litgpt/config.py", "pytorch/torchtune@bd2a0fc7 torchtune/models/"
    by = f"the base's shape by its name ({litgpt}, {torchtune}{builder}), and the dtype of its weights"
    assert report.memory.assumes[-1] == by
    assert ("base", name) in [(one.role, one.path) for one in report.sources]
    assert report.memory.parts.weights == pytest.approx(2 * params, rel=0.01)
    assert any(one.id == "TGT002" and "config.json alone" in one.reason for one in report.not_run)


def test_a_folder_of_the_name_goes_before_the_name(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base.parent)
    base.rename("gpt2")
    assert checked(Path("gpt2")).memory.assumes == checked(base.with_name("gpt2")).memory.assumes
    windows = {"mistralai/Mistral-7B-v0.3": None, "microsoft/Phi-3-mini-4k-instruct": 2048}
    for name, window in windows.items():
        with folder_of(Path(name)) as (folder, _):
            assert json.loads((folder / "config.json").read_text())["sliding_window"] == window


def test_diagnose_foretells_the_longest_batch_that_was_seen(base: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(base)
    transformers.AutoModelForCausalLM.from_config(config, dtype="bfloat16").save_pretrained(base)
    run = tmp_path / "run"
    run.mkdir()
    (run / "adapter_config.json").write_text(json.dumps(LORA))
    (run / "training_args.json").write_text('{"per_device_train_batch_size": 4, "learning_rate": 1e-4}')
    with TelemetryWriter(run / "run.jsonl") as log:
        for step in range(1, 21):
            log.train_step(step, loss=2.0 - step / 100)
        log.throughput(20, steps=10, longest=256, rows=4, peak_bytes=3 << 30, reserved_bytes=4 << 30)
    report = diagnose(run, base=base)
    assert report.check.memory.peak_bytes == checked(base).memory.peak_bytes
    assert "GiB foretold, 3.0 used, 4.0 reserved" in diagnose_text(report)


TILES = "the loss in tiles of the logits, as in TRL 1.16; TRL 1.9 holds all logits at once"
OF_COMPLETIONS = TILES.replace("all logits", "all logits of the completions")
OFF = "a reference pass with the adapter off"
AT_ONCE = "completions that the model itself generates at once"
ALIGNED = {"num_generations": 2, "max_completion_length": 100}


@pytest.mark.parametrize(
    ("settings", "rows", "said"),
    [
        ({"precompute_ref_log_probs": False}, "4 pairs, so 8 x 256", (OFF, TILES)),
        ({"precompute_ref_log_probs": True}, "4 pairs, so 8 x 256", ("a reference that passed before training", TILES)),
        ({"desirable_weight": 1.0}, "4 x 256", (OFF, TILES)),
        ({"desirable_weight": 1.0, "use_liger_kernel": True}, "4 x 256", (OFF, TILES.partition(";")[0])),
        ({"generate_during_eval": False}, "4 pairs, so 8 x 256", ("all logits, as in TRL 1.16",)),
        ({**ALIGNED, "gradient_accumulation_steps": 3}, "4 x 256",
         ("100 tokens of them generated", "no reference, as beta is not stated", f"12 {AT_ONCE}", OF_COMPLETIONS)),
        ({**ALIGNED, "beta": 0.1, "use_vllm": True}, "4 x 256",
         ("100 tokens of them generated", OFF, "what vLLM takes is left out", OF_COMPLETIONS)),
        ({**ALIGNED, "normalize_advantages": True, "steps_per_generation": 5}, "4 x 256",
         ("100 tokens of them generated", "a reference, as beta is not stated", f"20 {AT_ONCE}", OF_COMPLETIONS)),
    ],
)  # fmt: skip
def test_what_an_objective_adds_to_a_step_is_said(
    base: Path, settings: dict[str, Any], rows: str, said: tuple[str, ...]
) -> None:
    memory = checked(base, **settings).memory
    assert memory.reason == ""
    assert memory.assumes[: len(said) + 2] == [f"{rows} tokens, padded", *said, "weights in bfloat16"]
    assert memory.peak_bytes != checked(base).memory.peak_bytes


@pytest.mark.parametrize(
    ("kind", "stated", "said"),
    [
        ({}, {}, "attention by sdpa"),
        ({}, {"attn_implementation": "flash_attention_2"}, "attention by flash_attention_2"),
        ({"attn_logit_softcapping": None}, {}, "attention by sdpa"),
        (GEMMA, {"attn_implementation": "eager"}, "attention by eager"),
    ],
)
def test_the_kernel_of_attention_is_the_one_that_the_model_takes(
    base: Path, kind: dict[str, Any], stated: dict[str, Any], said: str
) -> None:
    (base / "config.json").write_text(json.dumps({**LLAMA, **kind}))
    memory = checked(base, **stated).memory
    assert [one for one in memory.assumes if one.startswith("attention")] == [said]
    assert memory.peak_bytes > 0


@pytest.mark.parametrize("kernel", ["flash_attention_2", "sdpa"])
def test_a_kernel_that_caps_the_scores_itself_is_unknown(base: Path, kernel: str) -> None:
    (base / "config.json").write_text(json.dumps({**LLAMA, **GEMMA}))
    memory = checked(base, attn_implementation=kernel).memory
    reason = f"attention by {kernel} is not followed where scores are capped (attn_logit_softcapping)"
    assert (memory.peak_bytes, memory.reason) == (None, reason)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "the length of the completions is not stated (max_completion_length)"),
        ({"max_completion_length": 256}, "completions of 256 tokens leave no prompt in a row of 256"),
    ],
)
def test_a_rollout_whose_lengths_are_not_known_is_unknown(base: Path, settings: dict[str, Any], reason: str) -> None:
    memory = checked(base, num_generations=2, **settings).memory
    assert (memory.peak_bytes, memory.reason) == (None, reason)


def test_a_row_of_a_rollout_is_its_prompt_and_completion(base: Path) -> None:
    training = {"num_generations": 2, "max_completion_length": 100, "max_length": 900}
    together = "the length is not stated (max_length): give --max-length, of a prompt and its completion together"
    assert checked(base, length=None, **training).memory.reason == together
    stated = checked(base, length=None, max_prompt_length=56, **training).memory
    assert stated.assumes[0] == "4 x 156 tokens, padded"


def test_the_changes_that_fit_are_those_of_the_objective(base: Path) -> None:
    pairs = checked(base, memory="1B", precompute_ref_log_probs=False).memory
    assert pairs.peak_bytes > 1
    limit = f"{pairs.peak_bytes - 1}B"
    first = [one.change for one in checked(base, memory=limit, precompute_ref_log_probs=False).memory.changes]
    assert "batch 1 with 4 x accumulation" in first
    alone = checked(base, per_device_train_batch_size=1, precompute_ref_log_probs=False).memory
    found = [one.peak_bytes for one in checked(base, memory=limit, precompute_ref_log_probs=False).memory.changes]
    # A pair is padded, alone too.
    assert alone.assumes[0] == "1 pair, so 2 x 256 tokens, padded"
    assert found[first.index("batch 1 with 4 x accumulation")] > alone.peak_bytes  # gradients of earlier micro-batches
    answers = checked(base, memory=limit, desirable_weight=1.0)
    assert not any("batch 1" in one.change for one in answers.memory.changes)


def test_a_step_of_another_objective_is_not_given_the_figure_of_a_supervised_one(base: Path) -> None:
    assert checked(base, packing=False).memory.peak_bytes
    compared = "answers come in pairs, or a reference passes beside the model, or both"
    for setting, words in {
        "simpo_gamma": f"preference training, where {compared}",
        "teacher_model_kind": "distillation training, where a teacher passes beside the model",
        "num_ppo_epochs": "rl training, where the rows are generated, and what generates them takes memory too",
    }.items():
        memory = checked(base, memory="24", **{setting: 2}).memory
        assert (memory.peak_bytes, memory.changes) == (None, [])
        followed = (
            "only supervised steps and those of TRL's DPO, KTO, ORPO, reward, GRPO and RLOO trainers are followed"
        )
        assert memory.reason == f"{followed}, and this is {words}"
        assert memory.limit_bytes == 24 << 30


@every(
    ("given", "code"),
    [
        (["--fail-on", "error"], 3),
        (["--fail-on", "error", "--format", "github"], 3),
        ([], 0),
        (["--fail-on", "error", "--set", "batch_size=2"], 0),
        (["--fail-on", "error", "--set", "batch_size=2", "--memory", "1MB"], 1),
        (["--fail-on", "info", "--set", "lr=3"], 1),
    ],
)
def test_a_memory_that_is_asked_for_and_unknown_is_undecided_where_a_finding_would_fail(base, given, code, capsys):
    card = [] if "--memory" in given else ["--memory", "24"]
    words = ["check", "--base", str(base), "--max-length", "64", "--set", "lr=1e-4", "--set", "r=8"]
    assert main([*words, "--set", "targets=q_proj", *card, *given]) == code
    said = capsys.readouterr()
    reason = "the batch per device is not stated (per_device_train_batch_size)"
    assert said.err == (f"gradience: memory unknown: {reason}\n" if "github" in given else "")
    assert (f"Memory: unknown: {reason}" in said.out) == ("github" not in given and "batch_size=2" not in given)
