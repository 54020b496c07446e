"""The golden path's first command: it runs offline, learns, and leaves a whole record."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from toy_run import GUARDED

from gradience import ConfigError, TelemetryReader, audit_adapter

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "vnext" / "toy_lora_run.py"

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("torch", "transformers", "peft", "datasets")),
    reason="the toy run needs the hf extra: pip install -e '.[hf]'",
)


# Runs the script whose base has learnt next to nothing, where it is not asked what it has learnt.
UNLEARNT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("toy_lora_run", sys.argv[1])
script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
script.WARM_UP_BATCHES = 2
sys.exit(script.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def toy_run(warmed):
    """A function that runs the script in a process of its own; hub settings of the developer's shell do not count."""

    def run(out, *options, guarded=False, unlearnt=False, **environment):
        clean = {"HF_HUB_OFFLINE": environment.pop("HF_HUB_OFFLINE", "0")}
        start = ["-c", UNLEARNT if unlearnt else GUARDED, SCRIPT] if guarded or unlearnt else [SCRIPT]
        return warmed.run(*start, "--out", out, *options, timeout=600, **clean, **environment)

    return run


def hashes(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def events(folder):
    return [json.loads(line) for line in (folder / "run.jsonl").read_text(encoding="utf-8").splitlines()]


def stable_rank(matrix):
    sigma = np.linalg.svd(matrix, compute_uv=False)
    return float(np.sum(sigma**2) / sigma[0] ** 2)


def refused(result):
    """Return the one line that a refused run says."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def script():
    """The script as a module: imported, not run."""
    spec = spec_from_file_location("toy_lora_run", SCRIPT)
    module = sys.modules[spec.name] = module_from_spec(spec)  # cyclopts looks the annotations up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def default(toy):
    """The README's run, with the default options, network refused."""
    return toy.run, toy


@pytest.fixture(scope="module")
def replaced(toy_run, tmp_path_factory):
    """One short run over an earlier one, without audit, with text, in a folder that holds more than a run."""
    out = tmp_path_factory.mktemp("runs") / "toy"
    for name in ("run.jsonl", "peft/old.bin", "training/old.json", "notes.md"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("earlier", encoding="utf-8")
    few = ("--steps", "2", "--samples", "8", "--eval-samples", "8", "--device", "cpu")
    base = ("--save-base", str(out.parent / "base"))
    result = toy_run(out, "--overwrite", "--no-audit", "--telemetry-allow-text", *base, *few, unlearnt=True)
    assert result.returncode == 0, result.stderr
    return out


def test_default_run_asks_for_no_network_and_warns_of_nothing(default):
    _, result = default
    assert "NETWORK" not in result.err
    assert "Warning" not in result.err


def test_leaves_log_adapter_and_settings_and_no_pickle(default):
    out, _ = default
    names = set(hashes(out))
    assert names >= {
        "run.jsonl",
        "peft/adapter_config.json",
        "peft/adapter_model.safetensors",
        "training/training_args.json",
    }
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]


def test_learns_more_than_chance_on_held_out_sentences(default):
    out, _ = default
    tests = [e["metrics"]["accuracy"] for e in events(out) if e["event"] == "eval" and e["split"] == "test"]
    assert tests[0] < 0.65, "the base must not know the labels"
    assert 0.75 <= tests[-1] < 1.0


def test_spectrum_looks_trained_not_random(default):
    out, _ = default
    tensors = load_file(out / "peft" / "adapter_model.safetensors")
    pairs = [(tensors[n.replace("lora_A", "lora_B")], a) for n, a in tensors.items() if "lora_A" in n]
    rng = np.random.default_rng(0)
    trained = np.mean([stable_rank(b.astype(float) @ a.astype(float)) for b, a in pairs])
    null = np.mean([stable_rank(rng.normal(size=b.shape) @ rng.normal(size=a.shape)) for b, a in pairs])
    assert len(pairs) == 8
    assert trained < null / 2


def test_log_tells_the_whole_run_and_every_line_reads(default):
    out, _ = default
    log = events(out)
    reader = TelemetryReader(out / "run.jsonl")
    assert len(list(reader)) == len(log)
    assert not reader.issues
    assert (log[0]["event"], log[-1]["event"], log[-1]["status"]) == ("run_start", "run_end", "ok")
    count = Counter(e["event"] for e in log)
    assert count["train_step"] == log[0]["config"]["training"]["max_steps"]
    assert all(np.isfinite([e["loss"], e["grad_norm"], e["lr"]]).all() for e in log if e["event"] == "train_step")
    assert Counter(e["split"] for e in log if e["event"] == "eval") == {"train": 5, "test": 5}
    assert [e["kind"] for e in log if e["event"] == "metrics"] == ["lora_audit"]


def test_log_and_settings_say_the_same(default):
    out, _ = default
    config = events(out)[0]["config"]
    settings = json.loads((out / "training" / "training_args.json").read_text(encoding="utf-8"))
    adapter = json.loads((out / "peft" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["optimizer"]["lr"] == settings["learning_rate"]
    assert config["training"]["epochs"] == settings["num_train_epochs"]
    assert config["lora"]["target_modules"] == sorted(adapter["target_modules"])
    assert config["model_name"] == adapter["base_model_name_or_path"] == "toy-distilbert-2x128"
    assert config["num_labels"] == 2


def test_records_no_text_of_the_data_by_default(default, script):
    out, _ = default
    words = set(re.findall(r"\w+", (out / "run.jsonl").read_text(encoding="utf-8")))
    assert not words & {*script.BAD, *script.GOOD}


def test_writes_no_path_of_the_machine(default):
    out, _ = default
    for name in ("run.jsonl", "peft/adapter_config.json", "training/training_args.json"):
        assert str(out.parent) not in (out / name).read_text(encoding="utf-8")


def test_refuses_a_folder_that_holds_a_run_and_changes_nothing(default, toy_run):
    out, _ = default
    before = hashes(out)
    assert "--overwrite" in refused(toy_run(out))
    assert hashes(out) == before


def test_overwrite_replaces_the_earlier_run_and_nothing_else(replaced):
    assert (replaced / "notes.md").read_text(encoding="utf-8") == "earlier"
    assert not (replaced / "peft" / "old.bin").exists()
    assert not (replaced / "training" / "old.json").exists()
    assert Counter(e["event"] for e in events(replaced))["run_start"] == 1


def test_opting_in_records_example_sentences(replaced, script):
    examples = events(replaced)[0]["meta"]["examples"]
    assert len(examples) == 3
    assert all(set(sentence.split()) & {*script.BAD, *script.GOOD} for sentence in examples)


def test_the_saved_base_is_the_one_that_the_adapter_was_trained_on(replaced):
    report = audit_adapter(replaced / "peft", base=replaced.parent / "base", norms_cache=False)
    assert report.base.compared == len(report.modules) == 8
    assert report.base.not_compared == []


def test_a_base_is_not_saved_over_something_else(replaced, toy_run, tmp_path):
    base = replaced.parent / "base"
    before = hashes(base)
    assert "--save-base" in refused(toy_run(tmp_path / "out", "--save-base", str(base)))
    assert hashes(base) == before


def test_no_audit_records_no_audit(replaced):
    assert not [e for e in events(replaced) if e["event"] == "metrics"]


@pytest.mark.parametrize(
    "option",
    ["--r 0", "--steps 0", "--lr 0", "--lr nan", "--dropout 1", "--device tpu", "--dtype int8", "--stepz 1"],
)
def test_bad_value_is_one_line_and_writes_nothing(tmp_path, capsys, script, option):
    assert script.main(["--out", str(tmp_path / "toy"), *option.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert option.split()[0] in line
    assert not (tmp_path / "toy").exists()


def test_absent_gpu_is_one_line(toy_run, tmp_path):
    line = refused(toy_run(tmp_path / "toy", "--device", "cuda", CUDA_VISIBLE_DEVICES=""))
    assert "CUDA" in line
    assert "--device cpu" in line


def test_targets_that_match_nothing_are_named(script):
    class Encoder:
        def named_modules(self):
            return iter([("", self), ("layer.0.q_lin", self), ("layer.0.lin1", self)])

    choose = script.target_modules
    assert choose(Encoder(), []) == ["q_lin"]
    assert choose(Encoder(), ["q_lin,", "lin1"]) == ["q_lin", "lin1"]
    with pytest.raises(ConfigError, match="no module of the base is named gate, lin"):
        choose(Encoder(), ["gate,q_lin", "lin"])


@pytest.mark.parametrize("option", ["--dataset glue/sst2", "--model distilbert-base-uncased"])
def test_unreachable_hub_is_one_line_that_names_the_offline_default(toy_run, tmp_path, option):
    line = refused(toy_run(tmp_path / "toy", *option.split(), guarded=True, HF_HUB_OFFLINE="1"))
    assert option.split()[1] in line
    assert "leave out --model and --dataset" in line
    assert not (tmp_path / "toy").exists()


def test_held_out_descriptions_occur_in_no_other_part(script):
    descriptions = script.descriptions
    for label in (0, 1):
        test, train, text = (set(descriptions(part, label)) for part in ("test", "train", "warm-up"))
        assert train < text
        assert not test & text
        assert {adjective for adjective, _ in test} > {adjective for adjective, _ in train}
