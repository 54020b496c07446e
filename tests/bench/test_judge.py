"""From scores to a verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tables import every

from gradience.errors import GradienceError
from gradience.schema import real
from gradience.schema.compare import BenchMetric
from gradience.verbs.bench.judge import Contender, LossRule, Task, judge, tolerance_of
from gradience.verbs.bench.store import Evaluation

N = 400


def evaluation(scores):
    return Evaluation(scores=[real(float(s)) for s in scores], weights=[1.0] * len(scores))


def right(share, n=N):
    """Scores of which a share is right, the same examples first."""
    return evaluation([1.0] * round(share * n) + [0.0] * (n - round(share * n)))


def judged(scores, *, tolerance="5%", better=True, tasks=()):
    """The judgement of evaluations by name: full is the reference, base an anchor; each is smaller than the last."""
    roles = {"full": "reference", "base": "anchor"}
    params = {name: 0 if name == "base" else 100 - 10 * i for i, name in enumerate(scores)}
    contenders = [Contender(name, roles.get(name, "candidate"), Path(name), params=params[name]) for name in scores]
    tasks = [Task("held-out", "", "", "full", scores), *tasks]
    metric = BenchMetric(name="m", higher_is_better=better)
    return judge(contenders, tasks, metric, LossRule(tolerance_of(tolerance), None, 0))


def outcomes(found):
    return {c.name: c.outcome for c in found.candidates}


def test_the_smallest_that_is_within_the_tolerance_holds():
    found = judged({"full": right(0.9), "a": right(0.9), "b": right(0.895), "c": right(0.7), "base": right(0.3)})
    assert outcomes(found) == {"full": "reference", "a": "within", "b": "within", "c": "over", "base": "anchor"}
    assert (found.verdict.state, found.verdict.candidate) == ("holds", "b")
    assert found.tasks[0].margin == pytest.approx(0.045)
    assert found.candidates[2].share == 0.8


def test_a_tolerance_without_percent_is_in_the_metrics_unit():
    assert judged({"full": right(0.5), "a": right(0.5)}, tolerance="0.05").tasks[0].margin == pytest.approx(0.05)
    assert judged({"full": right(0.5), "a": right(0.5)}, tolerance="5%").tasks[0].margin == pytest.approx(0.025)


@every(
    ("text", "value", "relative"),
    [("1%", 0.01, True), (" 2.5% ", 0.025, True), ("0.01", 0.01, False), ("3", 3.0, False)],
)
def test_a_tolerance_is_a_share_or_a_difference(text, value, relative):
    assert tolerance_of(text) == (pytest.approx(value), relative)


@every("text", ["", "%", "x", "0", "0%", "-1%", "nan", "inf%"])
def test_a_tolerance_that_is_none_is_refused(text):
    with pytest.raises(GradienceError, match="expected such as 1%"):
        tolerance_of(text)


def test_a_lower_loss_is_no_harm_and_a_higher_one_is():
    rng = np.random.default_rng(0)
    own = 2.0 + 0.1 * rng.normal(size=N)
    found = judged(
        {"full": evaluation(own), "less": evaluation(own - 0.5), "more": evaluation(own + 0.5)}, better=False
    )
    assert outcomes(found) == {"full": "reference", "less": "within", "more": "over"}
    assert [c.results[0].harm for c in found.candidates[1:]] == pytest.approx([-0.5, 0.5])


def test_where_no_data_decide_the_number_needed_is_said():
    found = judged({"full": right(0.9, 60), "a": right(0.9, 60), "base": right(0.2, 60)}, tolerance="1%")
    assert found.verdict.state == "not_decided"
    row = found.candidates[1].results[0]
    assert row.needed_from == pytest.approx(331, rel=0.05)  # 3 / 0.009
    assert row.needed_from < row.needed == found.verdict.needed < 400  # the pilot has an error of its own
    assert (found.tasks[0].missed, found.tasks[0].seen_from) == pytest.approx((0.99**60, 0.0487), rel=1e-2)
    assert "n = 60" in found.verdict.says


def test_where_the_base_is_not_shown_to_be_worse_nothing_follows():
    found = judged({"full": right(0.9), "a": right(0.9), "base": right(0.87)})
    assert 0.0 < found.candidates[-1].results[0].low < found.tasks[0].margin  # worse, but not by the tolerance
    assert found.tasks[0].has_contrast is False
    assert found.verdict.state == "no_contrast"
    assert outcomes(found)["a"] == "within"


def test_all_over_the_tolerance_is_none_and_one_left_open_is_not():
    over = {"full": right(0.9), "a": right(0.5), "base": right(0.2)}
    assert judged(over).verdict.state == "none"
    assert judged({**over, "b": right(0.85)}).verdict.state == "not_decided"


def test_a_candidate_whose_scores_are_not_finite_does_not_hold():
    bad = evaluation([float("nan")] + [1.0] * (N - 1))
    found = judged({"full": right(0.9), "a": bad, "base": right(0.2)})
    assert outcomes(found)["a"] == "not_finite"
    assert found.verdict.state == "none"


def test_a_reference_without_finite_scores_and_unequal_lengths_are_errors():
    with pytest.raises(GradienceError, match="full has no finite score"):
        judged({"full": evaluation([float("inf")] * 3), "a": right(1.0, 3)})
    with pytest.raises(GradienceError, match="a has 5 scores on held-out, and full 3"):
        judged({"full": right(1.0, 3), "a": right(1.0, 5)})


def test_a_candidate_must_hold_on_every_task_and_examples_are_those_of_the_smallest():
    first = {"full": right(0.9), "a": right(0.9), "base": right(0.2)}
    second = {"full": right(0.9), "a": right(0.5), "base": right(0.2)}
    found = judged(first, tasks=[Task("other", "", "", "full", second)])
    assert (found.verdict.state, found.verdict.n) == ("none", N)
    assert [row.outcome for row in found.candidates[1].results] == ["within", "over"]
    few = {name: right(share, 50) for name, share in (("full", 0.9), ("a", 0.9), ("base", 0.2))}
    assert judged(first, tasks=[Task("other", "", "", "full", few)]).verdict.n == 50


def test_a_candidate_needs_the_examples_of_its_hardest_task_and_the_verdict_those_of_the_nearest_candidate():
    def scores(full, **others):
        return {"full": right(full, 60), "base": right(0.1, 60), **{name: right(x, 60) for name, x in others.items()}}

    found = judged(
        scores(0.9, a=0.9, b=0.95), tolerance="1%", tasks=[Task("other", "", "", "full", scores(0.6, a=0.6, b=0.6))]
    )
    needed = {c.name: [row.needed for row in c.results] for c in found.candidates if c.role == "candidate"}
    assert {c.outcome for c in found.candidates if c.role == "candidate"} == {"open"}
    assert len({n for row in needed.values() for n in row}) > 2
    assert found.verdict.needed == min(max(row) for row in needed.values())


def test_a_share_is_of_the_reference_also_where_a_candidate_is_larger():
    sizes = {"full": ("reference", 100), "merged": ("candidate", 150)}
    some = [Contender(name, role, Path(name), params=params) for name, (role, params) in sizes.items()]
    tasks = [Task("t", "", "", "full", {name: right(0.9) for name in sizes})]
    metric = BenchMetric(name="m", higher_is_better=True)
    found = judge(some, tasks, metric, LossRule(tolerance_of("5%"), None, 0))
    assert [(c.name, c.share) for c in found.candidates] == [("full", 1.0), ("merged", 1.5)]


@every(
    ("better", "harm"),
    [(True, 0.14 / 3), (False, -0.14 / 3)],
)
def test_a_harm_is_the_fall_of_a_score_or_the_rise_of_a_loss(better, harm):
    scores = {"full": evaluation((0.90, 0.91, 0.92)), "a": evaluation((0.85, 0.86, 0.88))}
    assert judged(scores, better=better).candidates[1].results[0].harm == pytest.approx(harm)


@every(
    ("fall", "tolerance", "outcome", "state"),
    [
        (0.02, "0.1", "within", "holds"),
        (0.098, "0.1", "open", "not_decided"),
        (0.3, "0.1", "over", "none"),
        (0.02, "10%", "within", "holds"),
    ],
)
@every("sign", [1.0, -1.0])  # a share of a negative score is an allowance too
def test_a_candidate_is_within_over_or_open(fall, tolerance, outcome, state, sign):
    jitter = (0.0, 0.01, -0.01) * 4
    full = [sign * value for value in (0.90, 0.91, 0.92) * 4]
    a = evaluation([value - fall + off for value, off in zip(full, jitter, strict=True)])
    found = judged({"full": evaluation(full), "a": a}, tolerance=tolerance)
    assert (found.candidates[1].outcome, found.verdict.state) == (outcome, state)
    assert found.tasks[0].margin == pytest.approx(0.091 if "%" in tolerance else 0.1)


def test_a_small_difference_in_answers_is_bounded_as_answers_and_not_by_what_was_seen():
    """400 answers without a flip leave 0.75 % open, whatever the spread of what was seen."""
    found = judged({"full": right(1.0), "a": right(1.0)}, tolerance="0.007")
    assert outcomes(found)["a"] == "open"
    assert judged({"full": right(1.0), "a": right(1.0)}, tolerance="0.008").verdict.state == "holds"


def test_accuracy_of_tokens_is_bet_on_with_the_longest_row_that_could_come():
    scores = {name: Evaluation(scores=[0.5] * N, weights=[20.0] * N) for name in ("full", "a")}
    contenders = [Contender("full", "reference", Path("f"), params=9), Contender("a", "candidate", Path("a"), params=8)]
    metric = BenchMetric(name="accuracy", higher_is_better=True, mean_over="tokens")
    task = Task("held-out", "", "", "full", scores)
    found = [
        judge(contenders, [task], metric, LossRule(tolerance_of("0.02"), None, 0, longest)) for longest in (20, 1024)
    ]
    assert [one.verdict.state for one in found] == ["holds", "not_decided"]
    assert found[1].verdict.needed > 20 * N


def test_of_equally_small_ones_the_least_worst_loss_is_named():
    contenders = [Contender("full", "reference", Path("f"), params=9)]
    contenders += [Contender(name, "candidate", Path(name), params=9) for name in ("a", "b")]
    scores = {"full": right(0.9), "a": right(0.88), "b": right(0.895)}
    metric = BenchMetric(name="m", higher_is_better=True)
    task = Task("held-out", "", "", "full", scores)
    found = judge(contenders, [task], metric, LossRule(tolerance_of("9%"), None, 0)).verdict
    assert found.says == "b holds: the smallest whose worst plausible loss is within the tolerance"
