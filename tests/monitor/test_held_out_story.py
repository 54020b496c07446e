"""What the story says of a run whose training loss falls, by what its evaluations show."""

from __future__ import annotations

from tables import every

from gradience import monitor_run
from gradience.telemetry.writer import TelemetryWriter

FALLS = "the training loss falls, but eval {} does not improve"


def reported(path, metrics, losses):
    """The report on a run of 60 steps whose evaluations have these values, at equal distances."""
    with TelemetryWriter(path, fsync="never") as log:
        log.run_start({})
        apart = 60 // max(len(values) for values in metrics.values())
        for step in range(1, 61):
            log.train_step(step, loss=losses[0] + (losses[1] - losses[0]) * step / 60, lr=1e-3, grad_norm=1.0)
            if step % apart == 0:
                at = step // apart - 1
                seen = {name: values[at] for name, values in metrics.items() if at < len(values)}
                log.eval(step, split="eval", metrics={"n": 1000, **seen})
        log.run_end(status="ok")
    return monitor_run(path)


@every(
    ("metrics", "says"),
    [
        ({"loss": [2.1, 1.9, 1.7]}, "learns"),
        ({"loss": [2.1, 2.1, 2.3]}, "memorises"),
        ({"loss": [2.1, 2.3]}, FALLS.format("loss")),
        ({"accuracy": [0.5, 0.9, 0.85], "loss": [2.1, 2.1, 2.1]}, "learns"),  # its best counts where its last is better
        ({"accuracy": [0.5, 0.9, 0.4], "loss": [2.1, 2.1, 2.1]}, FALLS.format("accuracy")),
        ({"accuracy": [0.5, 0.5, 0.5], "loss": [2.1, 2.1, 2.1]}, "memorises"),
        ({"accuracy": [0.5, 0.5, 0.5], "loss": [2.1, 2.0, 1.9]}, FALLS.format("accuracy")),
        ({"accuracy": [0.99, 0.99, 0.99], "loss": [2.1, 2.1, 2.1]}, "learns"),  # there is nothing left to improve
        ({"exact_match": [0.0, 0.0, 0.0], "loss": [2.1, 1.9, 1.7]}, FALLS.format("exact_match")),
        ({"exact_match": [0.0, 0.0, 0.2], "loss": [2.1, 1.9, 1.7]}, "learns"),
        ({"wer": [0.999, 1.0, 0.995], "loss": [2.1, 1.9, 1.7]}, FALLS.format("wer")),
        ({"wer": [0.99, 0.7, 0.5], "loss": [2.1, 1.9, 1.7]}, "learns"),
        ({"wer": [100.0, 99.9, 99.8], "loss": [2.1, 1.9, 1.7]}, FALLS.format("wer")),
        ({"accuracy": [0.5, 0.5, 0.5], "loss": [0.4, 0.4, 0.4]}, "learns"),  # it had learnt before it was evaluated
    ],
)
def test_a_falling_loss_is_learning_unless_what_decides_held_out_does_not_improve(tmp_path, metrics, says):
    report = reported(tmp_path / "run.jsonl", metrics, losses=(2.2, 1.2))
    assert (report.story.split(";")[0], report.account.learns) == (says, says == "learns")


@every(
    ("metrics", "decisive", "step"),
    [
        ({"loss": [2.1, 1.7, 1.9]}, "loss", 40),
        ({"loss": [1.5, 1.7, 1.9]}, "loss", 20),
        ({"loss": [2.1, 1.9, 1.7]}, "loss", 60),
        ({"loss": [2.1, 1.7, 1.9], "accuracy": [0.5, 0.6, 0.8]}, "accuracy", 60),
        ({"loss": [2.1, 1.9, 1.7], "wer": [0.3, 0.1, 0.2]}, "wer", 40),
        ({"accuracy": [0.9, 0.6, 0.8]}, "accuracy", 20),
    ],
)
def test_the_best_step_is_that_of_a_task_metric_else_of_the_loss(tmp_path, metrics, decisive, step):
    found = reported(tmp_path / "run.jsonl", metrics, losses=(2.2, 1.2)).account
    assert (found.decisive, found.best_step) == (decisive, step)
