"""What a diagnosis makes of a run that turned out well, of what it did not look at, and of weights that tell on it."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from gradience import diagnose


@pytest.fixture
def copied(trained, tmp_path):
    """A function that copies a run's folder, with another learning rate in its arguments."""

    def copy(kind, rate=None):
        folder = tmp_path / "out"
        shutil.copytree(trained(kind), folder)
        if rate is not None:
            arguments = {"learning_rate": rate, "optim": "adamw_torch", "num_train_epochs": 1}
            (folder / "training_args.json").write_text(json.dumps(arguments))
        return folder

    return copy


def of(report, rule):
    return next((cause for cause in report.findings if rule in {piece.id for piece in cause.pieces}), None)


@pytest.mark.parametrize(("rate", "rule"), [(2e-5, "LR001"), (5e-2, "LR003")])
def test_what_a_configuration_predicts_is_not_said_of_a_run_whose_log_shows_otherwise(copied, rate, rule):
    report = diagnose(copied("healthy", rate))
    assert of(report, rule) is None
    reason = next(item.reason for item in report.not_run if item.id == rule)
    assert reason == "what it predicts of a run is told by this run's log, which shows nothing of it"
    assert report.verdict == "no_fault_found"


def test_a_prediction_is_a_part_of_the_cause_that_bears_it_out(copied):
    cause = of(diagnose(copied("diverged", 5e-2)), "LR003")
    assert (cause.id, cause.joined) == ("DIV305", True)


def test_a_prediction_is_said_where_the_log_shows_nothing(copied):
    folder = copied("healthy", 2e-5)
    state = json.loads((folder / "trainer_state.json").read_text())
    state["log_history"] = state["log_history"][:1]
    for kept in folder.glob("checkpoint-*"):
        shutil.rmtree(kept)
    (folder / "run.jsonl").unlink()
    (folder / "trainer_state.json").write_text(json.dumps(state))
    assert of(diagnose(folder, task="sft"), "LR001").severity == "info"


def test_the_verdict_says_how_much_was_judged_and_what_was_not_seen(copied):
    folder = copied("healthy")
    report = diagnose(folder)
    ran = ", ".join(f"{item.source} {item.judged} of {item.total}" for item in report.coverage if item.source != "join")
    assert report.headline.startswith(f"no problems found (checked: {ran})")
    assert min(item.judged for item in report.coverage) > 0
    shutil.rmtree(folder / "checkpoint-50")
    shutil.rmtree(folder / "checkpoint-100")
    (folder / "adapter_model.safetensors").unlink()
    report = diagnose(folder)
    assert report.headline.startswith("worth a look (checked: config ")
    assert "; not there: weights" in report.headline
    assert "healthy" not in report.headline.lower()


def test_weights_of_an_early_checkpoint_shipped_as_the_final_ones_are_named(copied):
    folder = copied("masked_nan")  # checkpoints at 10, 20, 30 and 40
    shutil.copy(folder / "checkpoint-10" / "adapter_model.safetensors", folder)
    report = diagnose(folder)
    (cause,) = [cause for cause in report.findings if cause.id == "MID318"]
    assert cause.message == "These weights are those of step 10, and the log reaches step 40."
    last = diagnose(folder, adapter=folder / "checkpoint-40")
    assert "MID318" not in {cause.id for cause in last.findings}


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (2, []),  # of a trained adapter, as this one, lora_B is at .67 of the sum: twice that may be another training
        (4, [("SIZ331", "Entries of lora_B began at 0 and are at 0.14, 2.7 times as far as all steps of this log")]),
        (10, [("UPD316", "The update is huge, and lora_B is 6.7 times as far from 0 as all steps of this log could")]),
    ],
)
def test_an_adapter_that_was_multiplied_is_further_from_zero_than_its_steps_could_move_it(copied, factor, said):
    folder = copied("healthy", 1e-3)
    path = folder / "adapter_model.safetensors"
    save_file({name: t * factor if "lora_B" in name else t for name, t in load_file(path).items()}, path)
    causes = [cause for cause in diagnose(folder).findings if cause.id in {"SIZ331", "UPD316"}]
    assert [(cause.id, cause.message[: len(words)]) for cause, (_, words) in zip(causes, said, strict=True)] == said
