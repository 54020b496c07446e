"""The parts of a sentence that a rule says in some cases only: each is there in its case, and not in the other.

The table in `log_runs` holds the answers; words of some cases are held here.
"""

from __future__ import annotations

import pytest
from log_runs import AT, FALL, RUNS, run
from tables import every

from gradience.rules.log import detect
from gradience.rules.log.facts import RunFacts
from gradience.telemetry.series import LogRecord

ALL = RUNS | AT


def says(rule: str, facts: RunFacts) -> str:
    """The one sentence of a rule, or why it was not judged."""
    found = detect(facts)
    (said,) = [x.message for x in found.findings if x.id == rule] + [x.reason for x in found.not_run if x.id == rule]
    return said


PARTS = [  # rule, a run whose sentence has the words, one whose sentence has not, the words
    ("CHN112", "CHN112 chance_margin 0.529", "SML113 small_eval 1060", ", n unknown)."),
    ("CLP125", "CLP125 zero_groups_also 0.305", "CLP125 cut_off 0.51", "of the groups have equal rewards"),
    ("DIV103", "DIV103 two 15", "DIV103 spike_k 1.305", "; 2 spikes in all"),
    ("DIV104", "DIV104 at_once 1.51", "DIV104 lost_share 0.51", "diverged at once: 1 in the first row, 1.51 at"),
    ("DIV104", "DIV104 absurd_rate 0.0101", "DIV104 at_once 1.51", "the learning rate of 0.0101 is over any published"),
    ("DIV104", "DIV104 lost_share 0.51", "DIV104 diverged_noise 0.0465", "51% of what it had learnt is lost"),
    (
        "DIV104",
        "DIV104 diverged_noise 0.0465",
        "DIV104 lost_share 0.51",
        "it ended above its start and did not recover",
    ),
    ("DIV104", "DIV104 start 1", "DIV104 at_once 1.51", "The loss exploded to 3 from 1 and ended no lower"),
    ("DUP117", "DUP117 twice 1", "DUP117 interleaved 3", "2 rows go back to a step already passed"),
    ("DUP117", "DUP117 interleaved 3", "DUP117 twice 1", "3 times another process wrote in between"),
    ("END114", "END114 planned 100", "END114 ended 1", " of 100 planned"),
    ("END114", "END114 before_the_first_step 0", "END114 ended 1", "stops before the first step"),
    ("END114", "END114 ended 0", "END114 ended 1", "with an error at step 60, and the log does not say why"),
    ("GAP111", "GAP111 one_epoch 1", "GAP111 loss_gap 1.51", "in the first pass over the data"),
    ("GAP118", "GAP118 some_steps 20", "GAP118 few_rows 2", "1 training loss was logged"),
    ("GRD108", "GRD108 memorized 0.0098", "GRD108 vanished_ratio 0.00098", "the loss is almost 0, nothing is left"),
    ("LRS109", "LRS109 times 2", "LRS109 decayed 0.49", ", 2 times, first at step"),
    ("LRS109", "LRS109 decayed 0.49", "LRS109 times 2", ", once, first at step"),
    ("MEM127", "MEM127 epoch_drop 0.051", "MEM127 epoch_share 30", "(by 5%, 5%)"),
    ("NOL106", "NOL106 margin 0.27", "DIV103 many_rows 20", "It sits at ln 2 = 0.6931"),
    ("NOL106", "NOL106 alpha 0.01085", "DIV103 noisy 0.33", "cannot tell: 12 rows;"),
    ("NUM131", "NUM131 skips_shown 10", "NUM131 stood_still 0.645", "(6, 10, 14, 18, 22, ...) were skipped"),
    ("NUM131", "NUM131 stood_still 0.645", "NUM131 skips_shown 10", "1 optimizer step (42) was skipped"),
    ("PRF119", "PRF119 swapped 0.449", "PRF119 separated 0.549", "told apart the wrong way round"),
    ("RES116", "RES116 replay_difference 0.205", "RES116 replay_difference 0.195", "their losses differ by 21%"),
    ("RES116", "RES116 replay_difference 0.195", "RES116 replayed_again 0", "5 logged steps were run again"),
    ("RWN139", "RWN139 null_rows 18", "RWN139 none_at_all 0", "In 2 of 20 logged rows the reward is not a number"),
    ("RWN139", "RWN139 none_at_all 0", "RWN139 null_rows 18", "In all 20 logged rows the reward is not a number"),
    (
        "SCL129",
        "SCL129 ln_vocabulary 12.48",
        "SCL129 scale_ratio 3.02",
        "above that of a uniform guess over any vocabulary",
    ),
    ("TRN115", "TRN115 torn 2", "TRN115 torn 1", "2 lines are not events (first: line 9: not JSON)"),
    ("TRN115", "TRN115 torn 1", "TRN115 torn 2", "The last line is torn"),
    ("TRN115", "TRN115 missing 1", "TRN115 torn 2", "1 lines are missing"),
]


@every(("rule", "there", "not_there", "words"), PARTS)
def test_a_part_of_a_sentence_stands_in_its_case_only(rule, there, not_there, words):
    assert words in says(rule, ALL[there])
    assert words not in says(rule, ALL[not_there])


@pytest.mark.parametrize(("accumulated", "known"), [(None, ""), (8, "; gradient_accumulation_steps is 8")])
def test_a_loss_on_another_scale_names_the_accumulation_that_the_config_has(accumulated, known):
    facts = run([4.0] * 12, held_out=[0.5] * 3, training={"gradient_accumulation": accumulated})
    assert says("SCL129", facts) == (
        f"Training loss is 8.0 times the held-out loss (about 8): summed over accumulation steps{known}."
    )


SAW = [*[1.0] * 20, *[0.3] * 20, *[0.9] * 20]


@every(
    ("scheduler", "record", "speaks"),
    [
        (None, {}, True),
        ("linear", {}, True),
        ("cosine_with_restarts", {}, False),
        ("Cyclic", {}, False),
        (None, {"sessions": {"a"}}, True),
        (None, {"sessions": {"a", "b"}}, False),
        (None, {"resumed_from": [30]}, False),
    ],
)
def test_a_rate_may_rise_again_after_a_restart_that_was_planned_or_logged(scheduler, record, speaks):
    rates = [2e-4 * each for each in SAW]
    facts = run(FALL, rates=rates, training={"lr_scheduler": scheduler}, record=LogRecord(**record))
    found = [x.message for x in detect(facts).findings if x.id == "LRS109"]
    says_so = (
        "The learning rate rises again after it had decayed, once, first at step 41: the schedule was started or "
        "computed anew."
    )
    assert found == ([says_so] if speaks else [])


def test_a_level_is_given_by_medians_at_both_ends_of_what_is_spoken_of():
    assert says("NOL106", run([2.0] * 20)) == (
        "The loss does not fall: 2 in the first fifth of the rows, 2 in the second half (medians). Gradients arrive "
        "(norm 1), and the loss stays."
    )
    learnt = run([4.0 - 0.1 * min(i, 20) for i in range(60)])
    assert says("PLT105", learnt) == (
        "The loss no longer falls from step 22 on: 2 in the first third of the rows since, 2 in the last (medians)."
    )
