"""Parts of the rules on logs on numbers that can be worked out on paper: levels, steps, and what few rows show."""

from __future__ import annotations

import pytest
from log_runs import evaluation, run, said, with_history
from tables import every

from gradience.rules.log.learning import learning
from gradience.schema import ConfigSnapshot, LoraSnapshot

# --- whether it learns -------------------------------------------------------------------------------------------


@every(
    ("losses", "shown"),
    [
        ([2.0, 1.1], False),  # under 0.6
        ([2.0, 0.7], True),
        ([2.0, 2.2, 1.1], False),  # not in order
        ([2.0, 1.5, 1.1], True),
        ([2.0, 2.0, 1.1], False),
        ([2.0, 2.2, 0.99], True),  # under half
        ([2.0, 2.2, 1.0], False),
        ([2.0, 1.8, 1.4, 1.5, 1.1], True),  # one pair of five rows may differ: p = 5 / 120
        ([2.0, 1.4, 1.8, 1.5, 1.1], False),  # of two pairs p is 14 / 120
        ([4.0, 5.0, 3.0, 5.0, 4.0, 5.0, 3.0, 1.9], True),  # under half of the first, of 8 rows
        ([4.0, 5.0, 3.0, 5.0, 4.0, 5.0, 3.0, 5.0, 1.9], False),  # of 9 the order alone decides
        ([4.0, 5.0, 3.0, 5.0, 4.0, 5.0, 1.5, 2.1], False),
    ],
)
def test_whether_few_rows_show_that_it_learns(losses, shown):
    assert learning(run(losses, every=1)).shown is shown


SAW = [1.25, 0.85] * 9  # batches sorted by length: blocks of long and of short examples in turn


@every(
    ("losses", "shown"),
    [
        ([2.4, 1.15, *SAW], True),  # all falls within the first two rows
        ([1.25, 0.85, *SAW], False),
        ([2.4, 1.15, *SAW[:14]], False),  # eight pairs are too few
        ([a * (1.0 - i / 60) for i, a in enumerate(SAW)], True),  # slowly, over all rows
        ([2.4, 1.15, *sorted(SAW)], False),  # no saw: it rises
        ([2.0, *[1.5, 1.51, 1.49] * 4], True),  # 0.49 below, where the noise is under 0.02
        ([1.8, *[1.5, 1.51, 1.49] * 4], False),  # falls by less than a fifth
        ([2.0, *[1.5, 1.6, 1.4] * 4], False),  # 0.4 below, where the noise is 0.18
        ([2.0, *[1.5, 1.51, 1.49] * 2, 2.0], False),  # and comes back
        ([2.0, *[1.5, 1.51, 1.49] * 2, 1.5], False),  # 8 rows
    ],
)
def test_a_loss_that_falls_at_once_or_under_a_saw_learns(losses, shown):
    assert learning(run(losses, every=25)).shown is shown


def test_a_first_loss_of_nothing_is_no_start_to_fall_from():
    assert said("NOL106", run([0.0, *[2.0] * 11])).startswith(
        "cannot tell: 12 rows; their noise would hide a fall of under "
    )


# --- held-out data -----------------------------------------------------------------------------------------------


COMPARE = "compare both checkpoints on what you need."


@every(
    ("metric", "values", "gained", "best_step", "words"),
    [
        ("f1", (0.5, 0.6, 0.7, 0.7), True, 50, f"F1 still gained (0.6 -> 0.7): {COMPARE}"),
        ("f1", (0.5, 0.7, 0.69, 0.68), False, 40, "F1 did not gain (0.7 -> 0.68, within chance)."),
        ("f1", (0.5, 0.7, 0.5, 0.5), False, 40, "F1 was lost too (0.7 -> 0.5)."),
        ("wer", (40.0, 34.0, 33.0, 32.0), True, 60, f"Wer still gained (34 -> 32): {COMPARE}"),
        ("wer", (40.0, 30.0, 33.0, 36.0), False, 40, "Wer was lost too (30 -> 36)."),
        ("temperature", (1.0, 2.0, 3.0, 4.0), False, 40, ""),
    ],
)  # fmt: skip
def test_beside_a_loss_that_rises_stands_the_task_metric_and_it_decides(metric, values, gained, best_step, words):
    steps = zip((20, 40, 50, 60), (1.5, 1.2, 1.4, 1.4), values, strict=True)
    found = said("OVF110", with_history(*(evaluation(s, x, **{metric: value}) for s, x, value in steps)))
    assert (found.values["metric_gained"], found.values["best_step"]) == (gained, best_step)
    assert (found.severity, found.confidence) == (("info", 0.6) if gained else ("warning", 0.85))
    assert found.message.endswith(words or "while training loss fell.")


@every(
    ("values", "best"),
    [((0.5, 0.7, 0.6, 0.6), 40), ((0.5, 0.7, 0.6, 0.69), None), ((0.5, 0.7, 0.69, 0.6), None), ((0.5, 0.7), None)],
)
def test_a_task_metric_that_is_lost_again_is_overfitting_without_a_loss(values, best):
    events = [evaluation(s, None, f1=value) for s, value in zip((20, 40, 50, 60), values, strict=False)]
    found = said("OVF110", with_history(*events))
    if best is None:
        assert found is None or isinstance(found, str)
    else:
        assert (found.severity, found.values["best_step"]) == ("warning", best)
        assert found.message == "Eval f1 was best at step 40 (0.7) and is 0.6 at the end, while training loss fell."


@pytest.mark.parametrize("classes", [None, 0, 1])
def test_of_no_two_classes_there_is_no_level_of_chance(classes):
    config = ConfigSnapshot(lora=LoraSnapshot(task_type="SEQ_CLS"), num_labels=classes)
    facts = with_history(evaluation(10, 0.0), config=config, num_labels=classes)
    assert facts.objective.kind == "classification"
    assert said("CHN112", facts) == "no held-out accuracy was recorded"


def test_an_accuracy_without_a_loss_and_without_classes_fits_none():
    facts = with_history(evaluation(10, None, accuracy=0.5))
    assert said("CHN112", facts) == (
        "the number of classes is unknown (num_labels in the run's config); loss and accuracy are at chance for none"
    )
