"""Checkpoints that could go are named with their command; nothing is removed."""

from __future__ import annotations

from pathlib import Path

from gradience.schema.diagnose import BestCheckpoint, Checkpoint
from gradience.verbs.diagnose.checkpoints import CheckpointChoice
from gradience.verbs.diagnose.spare import spare_checkpoints
from gradience.verbs.diagnose.spare_view import spare_lines

KNOWN = {"split": "eval", "noise_from": "", "lowest_loss": 1.0, "lowest_step": 30}


def choice(tmp_path: Path, noise: float | None = 0.1) -> CheckpointChoice:
    """Checkpoint 30 is the best and 70 the newest; 40 is tied, 20 worse, 50 broken, 60 of another run, 10 not seen."""
    told = {
        10: {"loss": None, "of_run": True},
        20: {"loss": 2.0, "of_run": True},
        30: {"loss": 1.0, "of_run": True},
        40: {"loss": 1.05, "of_run": True, "tied": True},
        50: {"loss": 1.5, "of_run": True, "fault": "cut off"},
        60: {"loss": 1.2, "of_run": None},
        70: {"loss": 1.9, "of_run": True},
    }
    paths = {f"checkpoint-{step}": tmp_path / f"run 1/checkpoint-{step}" for step in told}
    for path in paths.values():
        path.mkdir(parents=True)
        (path / "adapter_model.safetensors").write_bytes(bytes(1500))
        (path / "optimizer.pt").write_bytes(bytes(2500))
    listed = [Checkpoint(name=f"checkpoint-{step}", step=step, **of) for step, of in told.items()]
    return CheckpointChoice(
        listed, BestCheckpoint(name="checkpoint-30", step=30, loss=1.0, noise=noise, **KNOWN), paths
    )


def test_what_was_evaluated_and_is_no_better_than_what_stays_could_go(tmp_path):
    found = spare_checkpoints(choice(tmp_path), None)
    assert [(Path(one.path).name, one.within_noise, one.bytes, one.kept) for one in found] == [
        ("checkpoint-20", False, 4000, "checkpoint-30"),
        ("checkpoint-40", True, 4000, "checkpoint-30"),
    ]


def test_the_weights_that_are_diagnosed_stay_and_nothing_goes_without_a_known_noise(tmp_path):
    found = choice(tmp_path)
    assert [Path(one.path).name for one in spare_checkpoints(found, found.paths["checkpoint-20"])] == ["checkpoint-40"]
    unknown = found._replace(best=BestCheckpoint(name="checkpoint-30", step=30, loss=1.0, noise=None, **KNOWN))
    assert spare_checkpoints(unknown, None) == spare_checkpoints(found._replace(best=None), None) == []


def test_each_is_one_command_to_copy(tmp_path):
    first, *commands = spare_lines(spare_checkpoints(choice(tmp_path), None))
    assert first == "Could go: 2 checkpoints, 0.0 MB (checkpoint-30 and the newest stay; nothing is removed here):"
    at = f"'{tmp_path}/run 1"
    assert commands == [
        f"  rm -r -- {at}/checkpoint-20'  # checkpoint-20: worse than checkpoint-30; 0.0 MB",
        f"  rm -r -- {at}/checkpoint-40'  # checkpoint-40: within noise of checkpoint-30; 0.0 MB",
    ]
    assert list(spare_lines([])) == []
