"""Parts of the rules on logs on numbers that can be worked out on paper: levels, steps, and what few rows show."""

from __future__ import annotations

import math

import pytest
from log_runs import FALL, NAN, changed, evaluation, line, run, said, with_history
from tables import every

from gradience.rules.log import learning as learning_rules
from gradience.rules.log.learning import learning, not_finite
from gradience.schema import ConfigSnapshot, LoraSnapshot
from gradience.schema.reports import EvalPoint

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


LN2 = math.log(2.0)


@every(
    ("losses", "hint"),
    [
        ([LN2] * 8, True),
        ([0.7 * LN2, *[LN2] * 7], True),  # the median of the first three
        ([*[0.7 * LN2] * 3, *[LN2] * 5], False),
        ([*[LN2] * 3, *[1.3 * LN2] * 5], False),
        ([*[0.7 * LN2] * 3, *[LN2] * 37], True),  # of forty rows, of the first eight
    ],
)
def test_a_loss_sits_at_chance_if_its_first_rows_and_its_second_half_do(losses, hint):
    facts = changed(with_history(*(evaluation(step, 2.0) for step in (2, 4, 6)), losses=losses), num_labels=2)
    found = said("NOL106", facts)
    assert ("It sits at ln 2 = 0.6931: the loss of a random guess." in found.message) is hint
    assert found.confidence == (0.9 if hint else 0.75)
    assert hint or found.message.endswith("of 3 evaluations. Gradients arrive (norm 1), and the loss stays.")


def test_a_fall_of_the_first_row_alone_is_not_held_against_a_held_out_loss_that_fell():
    losses = [3.0, *[2.0] * 18]
    facts = with_history(*(evaluation(5 * i, x) for i, x in enumerate((2.0, 1.9, 2.0), 1)), losses=losses)
    assert learning(facts).shown
    assert said("NOL106", facts) is None


def test_two_skipped_steps_running_are_finite():
    rates = [2e-4 - 1e-6 * (row - (row > 10) - (row > 11)) for row in range(40)]
    norms = [NAN if row in {10, 11} else 1.0 for row in range(40)]
    losses = [*line(20, 4.0, 2.0), *[2.0] * 20]
    assert not not_finite(run(losses, rates=rates, norms=norms, lost=[11, 12]))
    assert not_finite(run(losses, norms=norms, lost=[11, 12]))
    assert not not_finite(run(losses, norms=[NAN if row in {10, 12} else 1.0 for row in range(40)], lost=[11, 13]))


def test_a_rate_that_was_not_logged_is_not_counted_as_idle_or_not():
    low = [1e-6, NAN] * 10
    losses = line(20, 4.0, 2.0) + [2.0] * 20
    assert said("PLT105", run(losses, rates=[2e-4] * 20 + low)) is None
    assert said("PLT105", run(losses, rates=[2e-4] * 20 + [2e-4, NAN] * 10)).id == "PLT105"


# --- held-out data -----------------------------------------------------------------------------------------------


def test_overfitting_names_its_split_and_up_to_three_others():
    def of(*splits: str) -> str:
        events = [  # the split that is shown counts first, though each further one rises more
            evaluation(s, x, split)
            for number, split in enumerate(splits)
            for s, x in ((20, 1.5), (40, 1.2), (50, 1.4 + number), (60, 1.4 + number))
        ]
        shown = EvalPoint(split=splits[0], step=60, metrics=events[3].metrics)
        return said("OVF110", changed(run(FALL), history=events, held_out=shown)).message

    one = "Overfits: a loss was lowest at step 40 (1.2) and is 16.7% higher at step 60, while training loss fell."
    events = [evaluation(s, x, "a") for s, x in ((60, 1.4), (20, 1.5), (50, 1.4), (40, 1.2))]  # logged out of order
    shown = EvalPoint(split="a", step=60, metrics=events[0].metrics)
    assert said("OVF110", changed(run(FALL), history=events, held_out=shown)).message == one
    assert of("a") == one
    assert of("a", "b") == f"{one} So do b."
    assert of("a", "b", "c", "d", "e") == f"{one} So do b, c, d."


COMPARE = "compare both checkpoints on what you need."


@every(
    ("metric", "values", "gained", "best_step", "words"),
    [
        (
            "f1",
            (0.5, 0.6, 0.7, 0.7),
            True,
            50,
            f"F1 still gained (0.6 -> 0.7): {COMPARE}",
        ),
        ("f1", (0.5, 0.7, 0.69, 0.68), False, 40, "F1 did not gain (0.7 -> 0.68, within chance)."),
        ("f1", (0.5, 0.7, 0.5, 0.5), False, 40, "F1 was lost too (0.7 -> 0.5)."),
        (
            "wer",
            (40.0, 34.0, 33.0, 32.0),
            True,
            60,
            f"Wer still gained (34 -> 32): {COMPARE}",
        ),
        ("wer", (40.0, 30.0, 33.0, 36.0), False, 40, "Wer was lost too (30 -> 36)."),
        ("temperature", (1.0, 2.0, 3.0, 4.0), False, 40, ""),
    ],
)
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


def test_the_most_evaluations_of_one_split_are_counted():
    events = [evaluation(1, 1.0, "a"), evaluation(2, 1.0, "a"), evaluation(3, 1.0, "b")]
    assert said("OVF110", with_history(*events)) == "2 held-out losses of one split; it needs 3"
    assert said("OVF110", run(FALL)) == "0 held-out losses of one split; it needs 3"
    assert said("UND126", with_history(*events[:2])) == "2 held-out losses of one split; it needs 3"


@every(
    ("steps", "since"),
    [((10, 100, 320, 410), 100), ((10, 110, 310, 410), 310), ((10, 110, 311, 410), 110), ((0, 200, 300, 400), 300)],
)
def test_the_last_quarter_of_a_run_is_of_the_steps_between_its_evaluations(steps, since):
    facts = with_history(*(evaluation(step, 2.0 - 0.1 * i) for i, step in enumerate(steps)))
    found = said("UND126", facts)
    assert (found.values["from_step"], found.values["to_step"]) == (since, steps[-1])


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


# --- divergence --------------------------------------------------------------------------------------------------


def test_the_lowest_loss_is_that_of_the_first_row_where_a_later_level_is_as_low():
    found = said("DIV104", run([1.0, *[4.0] * 10, *[1.0] * 5, *[9.0] * 12]))
    assert (found.values["lowest"], found.values["lowest_step"]) == (1.0, 1)
    found = said("DIV104", run([1.0, *[4.0] * 10, *[0.9] * 5, *[9.0] * 12]))
    assert (found.values["lowest"], found.values["lowest_step"]) == (0.9, 12)


# --- preferences and rewards -------------------------------------------------------------------------------------


def test_rows_over_ten_nats_are_counted():
    found = said("KLD124", run(kind="rl", columns={"kl": [*[0.1] * 10, 10.0, 11.0, *[0.1] * 10]}))
    assert found.message == "KL jumps to 11 nats a token at step 12 (1 such rows), and comes back to 0.1."
    assert found.values == {"highest": 11.0, "step": 12, "rows": 1, "late": 0.1}


# --- epochs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("times", "hint"), [(2.0, True), (0.0001, True), (2.0001, False)])
def test_a_loss_at_the_bound_of_chance_sits_there(times, hint, monkeypatch):
    """The bound is the level itself here, above and below."""
    monkeypatch.setattr(learning_rules, "CHANCE_NEAR", learning_rules.CHANCE_NEAR._replace(value=1.0))
    facts = changed(with_history(evaluation(2, 2.0), evaluation(4, 2.0), losses=[times * LN2] * 8), num_labels=2)
    assert ("It sits at ln 2" in said("NOL106", facts).message) is hint
